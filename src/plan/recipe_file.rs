//! Recipes as files: everything about a merge but where its output goes.
//!
//! A recipe of our own is TOML, and what is stored in an output (`chatvec.recipe`) is one, too: run
//! again beside the same files, it gives the same bytes. mergekit's YAML is read into the same form
//! ([`RecipeFile::from_mergekit`]).
//!
//! ```toml
//! model = "cp.gguf"
//! method = "ties"                  # task_arithmetic (or sum), linear, ties, dare_linear, dare_ties
//! lambda = 0.9
//! preset = ["skip-norms"]
//! ratio-for = ["attn_v=0.5"]
//! type = "Q4_K_M"
//!
//! [[vector]]
//! base = "base.gguf"
//! chat = "chat.gguf"
//! ratio = 0.7
//! density = [0.2, 0.8]             # over the layers
//!
//! [[vector]]
//! patch = "style.gguf"
//! ratio = [{ filter = "mlp", value = 0.3 }, { value = 0 }]
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::merging::{Merging, VectorSettings};
use super::mixture::{Options, Override};
use super::ratios::Ratios;
use super::setting::{Setting, in_f32};
use super::{Embeddings, Error, Importance, LossPolicy, OnLoss, OutputType, Recipe, SpecialTokens};
use crate::ggml::GgmlType;
use crate::vector::Method;

/// The most bytes that a recipe may have.
pub const MAX_BYTES: u64 = 1 << 20;

/// A merge in words: files, ratios, types.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RecipeFile {
    /// The model that is added to, whose tensors and types the output has.
    pub model: PathBuf,
    /// How vectors are combined.
    pub method: Method,
    /// Whether ratios are divided by their sum; the method's own way if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalize: Option<Setting<bool>>,
    /// Whether selected weights are scaled up; the method's own way if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rescale: Option<Setting<bool>>,
    /// What the sum is multiplied by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda: Option<Setting<f64>>,
    /// Where weights are drawn by chance, which ones.
    #[serde(skip_serializing_if = "is_default")]
    pub seed: u64,
    /// `REGEX=R`: what ratios are multiplied by, for tensors of such names. The first match counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ratio_for: Vec<String>,
    /// What ratios are multiplied by over the layers, where no such rule matches.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ratio_gradient: Vec<f64>,
    /// Names of presets, which multiply ratios where no such rule matches.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub preset: Vec<String>,
    /// What becomes of the embeddings.
    #[serde(skip_serializing_if = "is_default")]
    pub embeddings: Embeddings,
    /// Whose rows are the chat model's: `auto`, `none`, or texts with commas between.
    #[serde(skip_serializing_if = "is_auto")]
    pub special_tokens: String,
    /// Whether the model gets tokens that the chat needs and it lacks.
    #[serde(skip_serializing_if = "is_default")]
    pub add_missing_tokens: bool,
    /// What is done where rounding would take the vector.
    #[serde(skip_serializing_if = "is_default")]
    pub on_loss: OnLoss,
    /// The least share of the vector that a tensor has to hold; that of [`LossPolicy`] if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_survival: Option<f64>,
    /// The most rounding error that it may have, in units of the vector; that of [`LossPolicy`] if
    /// none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_noise: Option<f64>,
    /// `keep`, or a file type of llama-quantize.
    #[serde(rename = "type")]
    pub ty: String,
    /// llama-quantize's options of the same names.
    #[serde(skip_serializing_if = "is_default")]
    pub pure: bool,
    /// `REGEX=TYPE`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tensor_type: Vec<String>,
    /// The type of `output.weight`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_tensor_type: Option<String>,
    /// The type of the token embeddings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_embedding_type: Option<String>,
    /// Whether `output.weight` keeps its type.
    #[serde(skip_serializing_if = "is_default")]
    pub leave_output_tensor: bool,
    /// An importance matrix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub imatrix: Option<PathBuf>,
    /// What stands in for one where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub importance: Option<Importance>,
    /// The parts of names for which alone it is used.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub include_weights: Vec<String>,
    /// The parts of names for which it is not used.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude_weights: Vec<String>,
    /// What is added.
    #[serde(rename = "vector")]
    pub vectors: Vec<VectorFile>,
    /// How many layers the model must have; a recipe that cuts layers out means another model.
    #[serde(skip)]
    pub n_layers: Option<u64>,
}

/// A vector in words: `chat` − `base`, or a `patch`; in a linear merge a `chat` alone, which is
/// then a model.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VectorFile {
    /// What is subtracted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<PathBuf>,
    /// What it is subtracted from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<PathBuf>,
    /// A difference already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch: Option<PathBuf>,
    /// How much of it.
    #[serde(default = "one")]
    pub ratio: Setting<f64>,
    /// The share of its weights that is selected, by methods that select.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub density: Option<Setting<f64>>,
}

fn one() -> Setting<f64> {
    1.0.into()
}

fn is_auto(text: &str) -> bool {
    text == "auto"
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Default for RecipeFile {
    /// A plain sum of nothing, in the model's own types.
    fn default() -> Self {
        RecipeFile {
            model: PathBuf::new(),
            method: Method::default(),
            normalize: None,
            rescale: None,
            lambda: None,
            seed: 0,
            ratio_for: Vec::new(),
            ratio_gradient: Vec::new(),
            preset: Vec::new(),
            embeddings: Embeddings::default(),
            special_tokens: "auto".to_owned(),
            add_missing_tokens: false,
            on_loss: OnLoss::default(),
            min_survival: None,
            max_noise: None,
            ty: "keep".to_owned(),
            pure: false,
            tensor_type: Vec::new(),
            output_tensor_type: None,
            token_embedding_type: None,
            leave_output_tensor: false,
            imatrix: None,
            importance: None,
            include_weights: Vec::new(),
            exclude_weights: Vec::new(),
            vectors: Vec::new(),
            n_layers: None,
        }
    }
}

impl VectorFile {
    /// `ratio · (chat − base)`.
    pub fn pair(base: PathBuf, chat: PathBuf, ratio: f64) -> Self {
        VectorFile { base: Some(base), chat: Some(chat), patch: None, ratio: ratio.into(), density: None }
    }

    /// `ratio · patch`.
    pub fn patch(patch: PathBuf, ratio: f64) -> Self {
        VectorFile { base: None, chat: None, patch: Some(patch), ratio: ratio.into(), density: None }
    }

    fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        [&mut self.base, &mut self.chat, &mut self.patch].into_iter().flatten()
    }

    /// The ratio that is the same for all tensors; 1 where it depends on them.
    pub fn plain_ratio(&self) -> f64 {
        self.ratio.as_value().unwrap_or(1.0)
    }
}

impl RecipeFile {
    /// Reads TOML.
    ///
    /// # Errors
    /// [`Error::RecipeSyntax`], which names an unknown key and those that there are.
    pub fn from_toml(text: &str) -> Result<Self, Error> {
        if text.len() as u64 > MAX_BYTES {
            return Err(Error::RecipeTooLong { limit: MAX_BYTES });
        }
        // Below the place it shows lines of the text.
        let place = |e: &toml::de::Error| e.to_string().lines().next().unwrap_or_default().to_owned();
        toml::from_str(text).map_err(|e| {
            let reason = format!("{}: {}", place(&e), e.message().replace('\n', ", "));
            Error::RecipeSyntax { format: "TOML", reason }
        })
    }

    /// Writes TOML, in an order that follows from the recipe alone.
    ///
    /// # Errors
    /// [`Error::RecipeSyntax`] for paths that are no text.
    pub fn to_toml(&self) -> Result<String, Error> {
        toml::to_string(self).map_err(|e| Error::RecipeSyntax { format: "TOML", reason: e.to_string() })
    }

    fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let vectors = self.vectors.iter_mut().flat_map(VectorFile::paths);
        std::iter::once(&mut self.model).chain(vectors).chain(&mut self.imatrix)
    }

    /// The recipe with paths that are relative to this folder.
    #[must_use]
    pub fn in_folder(mut self, folder: &Path) -> Self {
        self.paths().filter(|path| !path.as_os_str().is_empty()).for_each(|path| *path = folder.join(&*path));
        self
    }

    /// With names of files in place of paths, so that the recipe means the same beside the files
    /// elsewhere. A file has one name, that of its first mention, however it is spelled and
    /// whatever links lead to it. Where several files have one name, all are named from the folder
    /// that they have in common; if that is the root, each with as many folders as tell it from the
    /// others.
    #[must_use]
    pub fn portable(mut self) -> Self {
        let spelled: Vec<PathBuf> = self.paths().map(|path| path.clone()).collect();
        self.paths().zip(names_of(&spelled)).for_each(|(path, name)| *path = name.into());
        self
    }

    /// The types of the output's tensors.
    ///
    /// # Errors
    /// Those of [`OutputType::new`], [`Error::Override`], [`Error::Type`].
    pub fn output_type(&self) -> Result<OutputType, Error> {
        let parse = |name: &Option<String>| name.as_deref().map(str::parse::<GgmlType>).transpose();
        let options = Options {
            pure: self.pure,
            leave_output: self.leave_output_tensor,
            output: parse(&self.output_tensor_type)?,
            embeddings: parse(&self.token_embedding_type)?,
            overrides: self.tensor_type.iter().map(|text| Override::parse(text)).collect::<Result<_, _>>()?,
        };
        OutputType::new(&self.ty, options)
    }

    /// What the plan needs of it. The inputs are to have its vectors in their order, with
    /// [`VectorFile::plain_ratio`].
    ///
    /// # Errors
    /// Those of [`RecipeFile::output_type`], [`Ratios::new`] and [`RecipeFile::check`].
    pub fn recipe(&self) -> Result<Recipe, Error> {
        if self.imatrix.is_some() && self.importance.is_some() {
            let reason = "an imatrix says how much errors count; leave one of the two out".to_owned();
            return Err(Error::RecipeKey { key: "importance".to_owned(), reason });
        }
        self.check()?;
        let vectors = self.vectors.iter().map(|vector| VectorSettings {
            weight: vector.ratio.as_value().is_none().then(|| vector.ratio.clone()),
            density: vector.density.clone(),
        });
        let merging = Merging {
            method: self.method,
            ratios: Ratios::new(&self.ratio_for, &self.ratio_gradient, &self.preset)?,
            vectors: vectors.collect(),
            normalize: self.normalize.clone(),
            rescale: self.rescale.clone(),
            lambda: self.lambda.clone(),
            seed: self.seed,
            masks: None,
            n_layers: self.n_layers,
        };
        let text = Some(self.clone().portable().to_toml()?);
        let usual = LossPolicy::default();
        let loss = LossPolicy {
            on_loss: self.on_loss,
            min_survival: self.min_survival.unwrap_or(usual.min_survival),
            max_noise: self.max_noise.unwrap_or(usual.max_noise),
        };
        Ok(Recipe {
            output: self.output_type()?,
            embeddings: self.embeddings,
            special_tokens: SpecialTokens::parse(&self.special_tokens),
            add_missing_tokens: self.add_missing_tokens,
            loss,
            merging,
            text,
        })
    }

    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// [`Error::RecipeKey`].
    pub fn check(&self) -> Result<(), Error> {
        let error = |key: &str, reason: String| Err(Error::RecipeKey { key: key.to_owned(), reason });
        if self.model.as_os_str().is_empty() {
            return error("model", "there is none; it is the file that vectors are added to".to_owned());
        }
        if self.vectors.is_empty() {
            return error("vector", "there is none; give base and chat, or a patch".to_owned());
        }
        let is_linear = self.method == Method::Linear;
        for (i, vector) in self.vectors.iter().enumerate() {
            let key = format!("vector {}", i + 1);
            match (&vector.base, &vector.chat, &vector.patch) {
                (None, Some(_), None) if is_linear => {}
                _ if is_linear => return error(&key, "a linear merge is of models: give chat alone".to_owned()),
                (Some(_), Some(_), None) | (None, None, Some(_)) => {}
                _ => return error(&key, "give base and chat, or a patch".to_owned()),
            }
            if !vector.ratio.all(f64::is_finite) {
                return error(&key, "a ratio must be a finite number".to_owned());
            }
            if let Some(density) = &vector.density {
                if !self.method.is_sparse() {
                    let known = Method::ALL.iter().filter(|m| m.is_sparse()).map(|m| m.name()).collect::<Vec<_>>();
                    let (method, known) = (self.method.name(), known.join(", "));
                    return error(&key, format!("{method} has no density; {known} have"));
                }
                if !density.all(|density| (0.0..=1.0).contains(&density)) {
                    return error(&key, "a density is a share from 0 to 1".to_owned());
                }
            }
        }
        if self.add_missing_tokens && self.special_tokens == "none" {
            return error("add-missing-tokens", "special-tokens is none, which leaves them alone".to_owned());
        }
        for (key, bound) in [("min-survival", self.min_survival), ("max-noise", self.max_noise)] {
            if bound.is_some_and(|bound| bound.is_nan() || bound < 0.0) {
                return error(key, "a bound is 0 or more".to_owned());
            }
        }
        if self.rescale.is_some() && !self.method.is_sparse() {
            return error("rescale", format!("{} selects nothing that could be scaled up", self.method.name()));
        }
        if is_linear && self.lambda.is_some() {
            return error("lambda", "a linear merge has none".to_owned());
        }
        match &self.lambda {
            Some(lambda) if !lambda.all(|lambda| in_f32(lambda).is_some()) => error(
                "lambda",
                "it must be a finite number that f32 can hold and that does not become 0 in it".to_owned(),
            ),
            _ => Ok(()),
        }
    }
}

/// A name for each path, the same for paths of one file. No name begins at the root.
fn names_of(paths: &[PathBuf]) -> Vec<String> {
    let mut files: Vec<&Path> = Vec::new();
    let file_of = |path| {
        files.iter().position(|other| is_same_file(path, other)).unwrap_or_else(|| {
            files.push(path);
            files.len() - 1
        })
    };
    let of_paths: Vec<usize> = paths.iter().map(PathBuf::as_path).map(file_of).collect();
    let places: Vec<Vec<String>> = files.into_iter().map(parts).collect();
    let names = names_apart(&places);
    of_paths.into_iter().map(|file| names[file].clone()).collect()
}

/// Whether two paths lead to one file. Nothing but files is opened for that: a pipe would be waited
/// for.
fn is_same_file(a: &Path, b: &Path) -> bool {
    let are_files = [a, b].into_iter().all(|path| fs::metadata(path).is_ok_and(|about| about.is_file()));
    parts(a) == parts(b) || (are_files && same_file::is_same_file(a, b).unwrap_or(false))
}

/// The folders of a path from the root on, and the file's own name. Links among the folders are
/// followed as far as these exist.
fn parts(path: &Path) -> Vec<String> {
    let (folder, name) = match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) if folder.as_os_str().is_empty() => (Path::new("."), Path::new(name)),
        (Some(folder), Some(name)) => (folder, Path::new(name)),
        _ => (path, Path::new("")),
    };
    let folder =
        fs::canonicalize(folder).or_else(|_| std::path::absolute(folder)).unwrap_or_else(|_| folder.to_owned());
    let mut parts = Vec::new();
    for part in folder.join(name).components() {
        match part {
            Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            Component::ParentDir => drop(parts.pop()),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    parts
}

/// The shortest names that tell files apart, of those that mean the same in another folder.
fn names_apart(places: &[Vec<String>]) -> Vec<String> {
    let last = |parts: &Vec<String>, n: usize| parts[parts.len().saturating_sub(n)..].join("/");
    let names: Vec<String> = places.iter().map(|parts| last(parts, 1)).collect();
    if names.iter().collect::<BTreeSet<_>>().len() == names.len() {
        return names;
    }
    let is_shared = |i: &usize| places.iter().all(|parts| parts.len() > i + 1 && parts[*i] == places[0][*i]);
    let n_shared = (0..).take_while(is_shared).count();
    if n_shared > 0 {
        return places.iter().map(|parts| parts[n_shared..].join("/")).collect();
    }
    let of_file = |(file, parts): (usize, &Vec<String>)| {
        let others = || places.iter().enumerate().filter(|(other, _)| *other != file);
        let is_apart = |n: &usize| others().all(|(_, other)| !other.ends_with(&parts[parts.len() - n..]));
        last(parts, (1..=parts.len()).find(is_apart).unwrap_or(parts.len()))
    };
    places.iter().enumerate().map(of_file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
model = "cp.gguf"
method = "dare_ties"
seed = 7
ratio-for = ["attn=0.5"]
type = "Q4_K_M"

[[vector]]
base = "/models/base.gguf"
chat = "chat/model.gguf"
ratio = 0.7
density = [0.2, 0.8]

[[vector]]
patch = "style/model.gguf"
ratio = [{ filter = "mlp", value = 0.3 }, { value = [0, 1] }]
"#;

    #[test]
    fn what_is_written_is_read_again() {
        let recipe = RecipeFile::from_toml(TEXT).unwrap_or_else(|e| panic!("{e}"));
        let text = recipe.to_toml().unwrap_or_else(|e| panic!("{e}"));
        let again = RecipeFile::from_toml(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(again, recipe, "{text}");
        assert_eq!(again.to_toml().ok(), Some(text));
    }

    #[test]
    fn portable_recipes_name_files_and_tell_them_apart() {
        let recipe = RecipeFile::from_toml(TEXT).unwrap_or_else(|e| panic!("{e}")).in_folder(Path::new("/home/me"));
        let mut portable = recipe.clone().portable();
        let names: Vec<String> = portable.paths().map(|path| path.display().to_string()).collect();
        assert_eq!(names, ["cp.gguf", "base.gguf", "chat/model.gguf", "style/model.gguf"]);
        assert_eq!(portable.clone().portable(), portable);
        let simple = RecipeFile { vectors: recipe.vectors[..1].to_vec(), ..recipe };
        let mut simple = simple.portable();
        assert_eq!(
            simple.paths().map(|p| p.display().to_string()).collect::<Vec<_>>(),
            ["cp.gguf", "base.gguf", "model.gguf"]
        );
    }

    #[test]
    fn files_of_one_name_are_named_from_the_folder_that_they_share() {
        let place = |text: &str| text.split('/').map(str::to_owned).collect::<Vec<_>>();
        let names = |places: &[&str]| names_apart(&places.iter().map(|text| place(text)).collect::<Vec<_>>());
        assert_eq!(names(&["m/a/base.gguf", "m/b/chat.gguf"]), ["base.gguf", "chat.gguf"]);
        assert_eq!(names(&["m/x.gguf", "m/a/x.gguf", "m/y.gguf"]), ["x.gguf", "a/x.gguf", "y.gguf"]);
        assert_eq!(names(&["home/a/x.gguf", "disk/b/x.gguf", "disk/y.gguf"]), ["a/x.gguf", "b/x.gguf", "y.gguf"]);
        assert_eq!(parts(Path::new("no/such/../x.gguf")), parts(Path::new("./no/x.gguf")));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_key() {
        let refused = |change: &dyn Fn(&mut RecipeFile)| {
            let mut recipe = RecipeFile::from_toml(TEXT).unwrap_or_else(|e| panic!("{e}"));
            change(&mut recipe);
            recipe.check().expect_err("refused").to_string()
        };
        assert!(refused(&|r| r.model = PathBuf::new()).contains("model"));
        assert!(refused(&|r| r.vectors.clear()).contains("vector"));
        assert!(refused(&|r| r.vectors[0].base = None).contains("vector 1"));
        assert!(refused(&|r| r.vectors[1].chat = Some("x".into())).contains("vector 2"));
        assert!(refused(&|r| r.method = Method::TaskArithmetic).contains("dare_ties"));
        assert!(refused(&|r| r.vectors[0].density = Some(1.5.into())).contains("share"));
        for lambda in [f64::NAN, 1e-60, -1e-60, 1e60] {
            assert!(refused(&|r| r.lambda = Some(lambda.into())).contains("lambda"), "{lambda}");
        }
        let unknown = RecipeFile::from_toml("modle = 1").expect_err("unknown").to_string();
        assert!(unknown.contains("modle") && unknown.contains("ratio-for"), "{unknown}");
    }
}
