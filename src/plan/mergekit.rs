//! mergekit's recipes on GGUF files.
//!
//! What is understood of mergekit 0.1.5 (its mergekit/config.py and mergekit/plan.py): the methods
//! that [`Method`] has, with `models` or one slice of whole models, `parameters` at every level
//! with filters and gradients, `base_model`, `dtype` and `out_dtype`. Everything else is refused by
//! name rather than left out.
//!
//! Sums are f32 whatever `dtype` says; it names the types of the output.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Error;
use super::recipe_file::{MAX_BYTES, RecipeFile, VectorFile};
use super::setting::Setting;
use crate::vector::Method;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Configuration {
    merge_method: String,
    base_model: Option<String>,
    models: Option<Vec<Source>>,
    slices: Option<Vec<Slice>>,
    modules: Option<IgnoredAny>,
    parameters: Option<Parameters>,
    dtype: Option<String>,
    out_dtype: Option<String>,
    tokenizer_source: Option<String>,
    tokenizer: Option<IgnoredAny>,
    chat_template: Option<String>,
    /// What mergekit calls its output where it writes a card of the model.
    #[allow(dead_code, reason = "understood and of no effect")]
    name: Option<IgnoredAny>,
}

/// The method alone: others have parameters of their own, and are refused by their name.
#[derive(Deserialize)]
struct MethodOnly {
    merge_method: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Slice {
    sources: Vec<Source>,
    base_model: Option<String>,
    parameters: Option<Parameters>,
}

/// A model, or a slice of one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    model: String,
    layer_range: Option<(u64, u64)>,
    parameters: Option<OfSource>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfSource {
    weight: Option<Setting<f64>>,
    density: Option<Setting<f64>>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    weight: Option<Setting<f64>>,
    density: Option<Setting<f64>>,
    lambda: Option<Setting<f64>>,
    normalize: Option<Setting<bool>>,
    rescale: Option<Setting<bool>>,
    /// Where mergekit keeps signs while it elects them; in f32 it changes nothing.
    #[allow(dead_code, reason = "understood and of no effect")]
    int8_mask: Option<Setting<bool>>,
}

impl Parameters {
    /// What `other` says where these say nothing.
    fn or(self, other: Parameters) -> Parameters {
        fn or<T>(own: Option<Setting<T>>, other: Option<Setting<T>>) -> Option<Setting<T>> {
            match own {
                Some(own) => Some(own.or(other)),
                None => other,
            }
        }
        Parameters {
            weight: or(self.weight, other.weight),
            density: or(self.density, other.density),
            lambda: or(self.lambda, other.lambda),
            normalize: or(self.normalize, other.normalize),
            rescale: or(self.rescale, other.rescale),
            int8_mask: or(self.int8_mask, other.int8_mask),
        }
    }
}

fn refuse<T>(key: &str, reason: impl Into<String>) -> Result<T, Error> {
    Err(Error::RecipeKey { key: key.to_owned(), reason: reason.into() })
}

impl RecipeFile {
    /// Reads a recipe of mergekit's.
    ///
    /// # Errors
    /// [`Error::RecipeSyntax`], [`Error::RecipeTooLong`], and [`Error::RecipeKey`] for what is
    /// understood but not done.
    pub fn from_mergekit(text: &str) -> Result<Self, Error> {
        if text.len() as u64 > MAX_BYTES {
            return Err(Error::RecipeTooLong { limit: MAX_BYTES });
        }
        // Far more than a recipe has, far less than hurts.
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! { max_events: 100_000, max_aliases: 1_000, max_anchors: 1_000, max_depth: 32 },
            alias_limits: serde_saphyr::alias_limits! {
                max_total_replayed_events: 100_000,
                max_replay_stack_depth: 16,
            },
        };
        if let Ok(MethodOnly { merge_method }) = serde_saphyr::from_str_with_options(text, options.clone()) {
            known_method(&merge_method)?;
        }
        let configuration: Configuration = serde_saphyr::from_str_with_options(text, options)
            .map_err(|e| Error::RecipeSyntax { format: "YAML", reason: one_line(&e.to_string()) })?;
        configuration.into_recipe()
    }
}

/// The method of this name.
fn known_method(name: &str) -> Result<Method, Error> {
    Method::ALL.into_iter().find(|method| method.name() == name).ok_or_else(|| {
        let known = Method::ALL.map(Method::name).join(", ");
        let reason = format!("{name:?} is not among those that can be done: {known}");
        Error::RecipeKey { key: "merge_method".to_owned(), reason }
    })
}

/// What a parser says, without the lines of the text that it shows below.
fn one_line(message: &str) -> String {
    message.trim().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// What is merged: whole models, or slices of the same layers.
struct MergedModels {
    sources: Vec<Source>,
    parameters: Parameters,
    base: Option<String>,
    /// How many layers the models must have, where slices say it.
    n_layers: Option<u64>,
}

impl Configuration {
    fn into_recipe(mut self) -> Result<RecipeFile, Error> {
        let method = known_method(&self.merge_method)?;
        self.refuse_what_is_not_done()?;
        let (dtype, out_dtype) = (self.dtype.take(), self.out_dtype.take());
        let MergedModels { sources, parameters, base, n_layers } = self.into_merged()?;
        let mut sources: Vec<(String, OfSource)> =
            sources.into_iter().map(|source| (source.model, source.parameters.unwrap_or_default())).collect();
        for (i, (model, _)) in sources.iter().enumerate() {
            if sources[..i].iter().any(|(other, _)| other == model) {
                return refuse("model", format!("{model} is there twice"));
            }
        }
        let Some(model) = base.clone().or_else(|| sources.first().map(|(model, _)| model.clone())) else {
            return refuse("models", "there is none");
        };
        if method == Method::Linear {
            // As in mergekit, the base model is one of those that are averaged.
            if let Some(base) = base.filter(|base| sources.iter().all(|(model, _)| model != base)) {
                sources.push((base, OfSource::default()));
            }
        } else if base.is_none() {
            return refuse("base_model", format!("{} needs one", method.name()));
        } else {
            sources.retain(|(source, _)| *source != model);
        }
        let base = (method != Method::Linear).then(|| PathBuf::from(&model));
        let vectors = sources.into_iter().map(|(source, own)| vector(method, base.clone(), source, own, &parameters));
        let recipe = RecipeFile {
            model: PathBuf::from(&model),
            method,
            normalize: parameters.normalize.clone(),
            rescale: parameters.rescale.clone().filter(|_| method.is_sparse()),
            lambda: parameters.lambda.clone().filter(|_| method != Method::Linear),
            ty: output_type(dtype, out_dtype)?.to_owned(),
            vectors: vectors.collect::<Result<_, _>>()?,
            n_layers,
            // mergekit has rows of its own for no token.
            special_tokens: "none".to_owned(),
            ..RecipeFile::default()
        };
        recipe.check()?;
        Ok(recipe)
    }

    fn refuse_what_is_not_done(&self) -> Result<(), Error> {
        if self.modules.is_some() {
            return refuse("modules", "GGUF files have one module; give models");
        }
        match &self.tokenizer_source {
            None => {}
            Some(source) if source == "base" => {}
            Some(source) => {
                return refuse(
                    "tokenizer_source",
                    format!("{source:?}: the vocabulary is the base model's; leave it out"),
                );
            }
        }
        if self.tokenizer.is_some() {
            return refuse("tokenizer", "the vocabulary is the base model's; leave it out");
        }
        if self.chat_template.as_deref().is_some_and(|template| template != "auto") {
            return refuse("chat_template", "the template is that of the first model that has one; leave it out");
        }
        Ok(())
    }

    fn into_merged(self) -> Result<MergedModels, Error> {
        match (self.models, self.slices) {
            (Some(models), None) => {
                if models.iter().any(|source| source.layer_range.is_some()) {
                    return refuse("layer_range", "models have none; slices do");
                }
                let parameters = self.parameters.unwrap_or_default();
                Ok(MergedModels { sources: models, parameters, base: self.base_model, n_layers: None })
            }
            (None, Some(slices)) => {
                let Ok([slice]) = <[Slice; 1]>::try_from(slices) else {
                    return refuse(
                        "slices",
                        "more or less than one would give a model of other layers; give one, or models",
                    );
                };
                let range = slice.sources.first().and_then(|source| source.layer_range);
                let Some((0, n_layers)) = range.filter(|_| slice.sources.iter().all(|s| s.layer_range == range)) else {
                    return refuse(
                        "layer_range",
                        "all sources of a slice must have the same, from 0 to the number of layers",
                    );
                };
                let parameters = slice.parameters.unwrap_or_default().or(self.parameters.unwrap_or_default());
                let base = slice.base_model.or(self.base_model);
                Ok(MergedModels { sources: slice.sources, parameters, base, n_layers: Some(n_layers) })
            }
            _ => refuse("models", "give either models or slices"),
        }
    }
}

/// The vector from the base to a source.
fn vector(
    method: Method,
    base: Option<PathBuf>,
    source: String,
    own: OfSource,
    parameters: &Parameters,
) -> Result<VectorFile, Error> {
    let weight = match own.weight {
        Some(weight) => weight.or(parameters.weight.clone()),
        None => match parameters.weight.clone() {
            Some(weight) => weight,
            None => return refuse("weight", format!("{source} has none")),
        },
    };
    let density = match own.density {
        Some(density) => Some(density.or(parameters.density.clone())),
        None => parameters.density.clone(),
    };
    // mergekit takes a density where it means nothing.
    let density = density.filter(|_| method.is_sparse());
    Ok(VectorFile { base, chat: Some(source.into()), patch: None, ratio: weight, density })
}

/// The type that torch's name means.
fn output_type(dtype: Option<String>, out_dtype: Option<String>) -> Result<&'static str, Error> {
    let (key, Some(name)) = (if out_dtype.is_some() { "out_dtype" } else { "dtype" }, out_dtype.or(dtype)) else {
        return Ok("keep");
    };
    match name.strip_prefix("torch.").unwrap_or(&name) {
        "float32" => Ok("F32"),
        "float16" => Ok("F16"),
        "bfloat16" => Ok("BF16"),
        other => refuse(key, format!("{other:?} is none of float32, float16 and bfloat16")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> RecipeFile {
        RecipeFile::from_mergekit(text).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn models_become_vectors_of_the_base_and_levels_fall_through() {
        let recipe = read(
            "merge_method: ties\nbase_model: b.gguf\ndtype: bfloat16\nmodels:\n  - model: b.gguf\n  - model: m.gguf\n    \
             parameters:\n      weight: [0, 0.5, 1]\n      density:\n        - filter: mlp\n          value: 0.25\n  - model: \
             n.gguf\n    parameters: {weight: 1e-1}\nparameters: {density: 0.5, int8_mask: true, normalize: false}\n",
        );
        assert_eq!((recipe.method, recipe.ty.as_str()), (Method::Ties, "BF16"));
        assert_eq!(recipe.vectors.len(), 2);
        let density = recipe.vectors[0].density.clone();
        assert_eq!(
            density,
            Some(Setting::from(0.5)).map(|all| {
                let mlp: Parameters = serde_saphyr::from_str("density: [{filter: mlp, value: 0.25}]").expect("YAML");
                mlp.density.expect("a density").or(Some(all))
            })
        );
        assert_eq!(recipe.vectors[1].plain_ratio(), 0.1);
        assert_eq!(recipe.vectors[1].base, Some("b.gguf".into()));
        assert_eq!(recipe.normalize, Some(false.into()));
    }

    #[test]
    fn a_linear_merge_averages_models_and_its_base() {
        let recipe = read("merge_method: linear\nbase_model: b\nmodels: [{model: m}]\nparameters: {weight: 1}\n");
        let chats: Vec<_> = recipe.vectors.iter().map(|v| (v.base.clone(), v.chat.clone())).collect();
        assert_eq!(chats, [(None, Some("m".into())), (None, Some("b".into()))]);
    }

    #[test]
    fn one_slice_of_whole_models_is_the_models() {
        let slice = "merge_method: task_arithmetic\nslices:\n  - base_model: b\n    parameters: {weight: 2}\n    sources:\n      \
                     - {model: b, layer_range: [0, 4]}\n      - {model: m, layer_range: [0, 4]}\n";
        let recipe = read(slice);
        assert_eq!((recipe.n_layers, recipe.vectors.len(), recipe.vectors[0].plain_ratio()), (Some(4), 1, 2.0));
        let other = slice.replacen("[0, 4]", "[1, 5]", 1);
        assert!(RecipeFile::from_mergekit(&other).is_err());
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let models = "models: [{model: m, parameters: {weight: 1}}]\nbase_model: b\n";
        for (text, names) in [
            (format!("merge_method: slerp\n{models}"), &["merge_method", "slerp", "dare_ties"][..]),
            (format!("merge_method: ties\n{models}tokenizer_source: union\n"), &["tokenizer_source"]),
            (format!("merge_method: ties\n{models}tokenizer: {{source: union}}\n"), &["tokenizer"]),
            (format!("merge_method: ties\n{models}chat_template: chatml\n"), &["chat_template"]),
            (format!("merge_method: ties\n{models}dtype: float8\n"), &["dtype", "float8"]),
            (format!("merge_method: ties\n{models}densty: 1\n"), &["densty", "out_dtype"]),
            (format!("merge_method: ties\n{models}parameters: {{gamma: 1}}\n"), &["gamma", "density"]),
            ("merge_method: ties\nmodels: [{model: m}]\n".to_owned(), &["base_model"]),
            ("merge_method: ties\nbase_model: b\nmodels: [{model: m}]\n".to_owned(), &["weight", "m"]),
            ("merge_method: ties\nbase_model: b\nmodels: [{model: m}, {model: m}]\n".to_owned(), &["twice"]),
            ("merge_method: ties\nbase_model: b\n".to_owned(), &["models", "slices"]),
            ("merge_method: linear\nmodels: []\n".to_owned(), &["models"]),
        ] {
            let message = RecipeFile::from_mergekit(&text).expect_err(&text).to_string();
            assert!(names.iter().all(|name| message.contains(name)), "{text}\n{message}");
        }
    }

    #[test]
    fn hostile_yaml_is_an_error_and_not_a_burden() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..12 {
            let list = vec![format!("*a{}", i - 1); 10].join(", ");
            bomb += &format!("a{i}: &a{i} [{list}]\n");
        }
        let weight_bomb = format!("merge_method: linear\nparameters:\n  weight: {}\n", "[".repeat(20_000));
        for text in [bomb, weight_bomb, "&a [*a]".to_owned(), "- ".repeat(50_000), "x: ".repeat(50_000), String::new()]
        {
            assert!(matches!(RecipeFile::from_mergekit(&text), Err(Error::RecipeSyntax { .. })));
        }
        let long = "#".repeat(MAX_BYTES as usize + 1);
        assert!(matches!(RecipeFile::from_mergekit(&long), Err(Error::RecipeTooLong { .. })));
    }

    #[test]
    fn a_method_that_is_not_there_is_named_whatever_its_parameters_are() {
        let text = "merge_method: slerp\nbase_model: a\nparameters:\n  t:\n    - value: 0.5\n";
        let error = RecipeFile::from_mergekit(text).unwrap_err().to_string();
        assert!(error.contains("slerp") && error.contains("dare_ties"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line_with_its_place() {
        let yaml = "merge_method: linear\nmodels:\n  - model: a\n    parameters:\n    weight: 1\n";
        let toml = "model = \"a\"\nweight = 1\n";
        for (error, line) in [(RecipeFile::from_mergekit(yaml), "line 5"), (RecipeFile::from_toml(toml), "line 2")] {
            let error = error.unwrap_err().to_string();
            let words = [line, "`weight`", "expected one of"];
            assert!(words.iter().all(|word| error.contains(word)) && error.lines().count() == 1, "{error}");
        }
    }

    #[test]
    fn a_name_of_the_output_is_of_no_effect() {
        let text = |name: &str| {
            format!("merge_method: linear\nmodels:\n  - model: a\n    parameters:\n      weight: 1\n{name}")
        };
        let plain = RecipeFile::from_mergekit(&text("")).unwrap();
        assert_eq!(RecipeFile::from_mergekit(&text("name: x\n")).unwrap(), plain);
    }
}
