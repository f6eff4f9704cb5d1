//! Whether the headers of the inputs describe siblings.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::merging::Reach;
use super::special::TakenRows;
use super::warning::{PRE_TOKENIZER, Warning};
use super::{Embeddings, Error, Recipe, TensorPlan, mixture};
use crate::chat::{self, PromptsDiffer, TOKENS, Templates, TokenMap, Unrendered};
use crate::ggml::GgmlType;
use crate::gguf::names::OUTPUT;
use crate::gguf::{Metadata, Model, Value};
use crate::survey::{SpecialToken, SpecialTokens};
use crate::vector::{Inputs, Kept, Nature, Pair, Role, fold_key, has_row_per_token, nature};

/// Says that the texts of an output are split by a default, because its model does not say how.
pub(super) fn pre_tokenizer_warning(output: &Metadata, chat: Option<&Metadata>) -> Option<Warning> {
    let chat = chat?.get_str(PRE_TOKENIZER)?.to_string();
    output.get(PRE_TOKENIZER).is_none().then_some(Warning::NoPreTokenizer { chat })
}

/// A hyperparameter in which siblings cannot differ, because it gives tensors their shape or their
/// meaning.
struct Fixed {
    suffix: &'static str,
    /// The key whose value stands in where this one is absent (llama.cpp src/llama-model.cpp,
    /// `load_hparams`).
    default: Option<&'static str>,
    /// What that value is divided by.
    divisor: Option<&'static str>,
}

const fn fixed(suffix: &'static str) -> Fixed {
    Fixed { suffix, default: None, divisor: None }
}

/// Absent, it is the width of one attention head.
const fn head_width(suffix: &'static str) -> Fixed {
    Fixed { suffix, default: Some("embedding_length"), divisor: Some("attention.head_count") }
}

const FIXED: [Fixed; 21] = [
    fixed("block_count"),
    fixed("embedding_length"),
    fixed("feed_forward_length"),
    fixed("attention.head_count"),
    Fixed { suffix: "attention.head_count_kv", default: Some("attention.head_count"), divisor: None },
    head_width("attention.key_length"),
    head_width("attention.value_length"),
    head_width("rope.dimension_count"),
    fixed("rope.dimension_sections"),
    fixed("expert_count"),
    fixed("expert_used_count"),
    fixed("expert_feed_forward_length"),
    fixed("expert_shared_count"),
    fixed("attention.q_lora_rank"),
    fixed("attention.kv_lora_rank"),
    // Heads of states.
    fixed("ssm.group_count"),
    fixed("ssm.state_size"),
    fixed("ssm.time_step_rank"),
    fixed("ssm.inner_size"),
    fixed("wkv.head_size"),
    // Two matrices of a layer are divided by a power of two that follows from it (conversion/rwkv.py).
    fixed("rescale_every_n_layers"),
];

/// Architectures whose query and key rows are in another order where the file has sections of rope
/// (conversion/glm.py; src/llama-model.cpp, `llama_model_rope_type`).
const ORDERED_BY_SECTIONS: [&str; 2] = ["glm4", "bailingmoe3"];

/// Factors beside matrices. Where base and chat have other ones, their weights are in other units,
/// and a difference is no training.
const FACTORS: [&str; 6] = [
    "embedding_scale",
    "logit_scale",
    "residual_scale",
    "attention.scale",
    "attention.output_scale",
    "attention.value_scale",
];

/// In talkie a factor is trained (conversion/talkie.py).
const TRAINED_FACTORS: [(&str, &str); 1] = [("talkie", "logit_scale")];

const NOT_SIBLINGS: &str = "the files are no siblings";
const OTHER_ORDER: &str = "rows of queries and keys are in another order in one of the files";
const OTHER_UNITS: &str = "weights of base and chat are in other units, and their difference is no training";
const VOCABULARY_HINT: &str = "tokens of different algorithms cannot be told to be the same";

/// Vocabularies with less than this share of the smaller one in common are not of one family.
/// Extended ones have nearly all of it, those of different families a fifth to a half: single
/// letters, and frequent words in one spelling.
const FAMILY: f64 = 0.6;

/// Compares the headers of all inputs with the model's (or the chat model's, when a vector is
/// extracted). Where embeddings are left out, tokens may differ as they like.
///
/// # Errors
/// [`Error::NoArchitecture`], [`Error::NotAModel`], [`Error::NoTensors`], [`Error::Mismatch`] where
/// siblings cannot differ, and [`Error::Container`] for a big-endian file.
pub fn check(inputs: &Inputs, embeddings: Embeddings) -> Result<Vec<Warning>, Error> {
    inputs.require_little_endian()?;
    let mut warnings = Vec::new();
    let (own, own_role) = (inputs.source(inputs.skeleton()), inputs.role(inputs.skeleton()));
    for (id, (role, other)) in inputs.sources().enumerate() {
        // Adapters, importance matrices and patches have a type of their own; models often have
        // none.
        let kind = other.metadata().get_str("general.type").filter(|t| *t != "model").map(ToString::to_string);
        // What sees for a model had no type once, but an architecture of its own.
        let kind = kind.or_else(|| (other.metadata().architecture() == Some("clip")).then(|| "mmproj".to_owned()));
        // Its weights can be written in other types too.
        let kind = kind.filter(|t| *t != "mmproj" || !inputs.vectors().is_empty());
        if let Some(found) = kind.filter(|_| role != Role::Patch) {
            return Err(Error::NotAModel { path: other.path().to_owned(), found });
        }
        if other.n_tensors() == 0 && role != Role::Patch && !inputs.vectors().is_empty() {
            return Err(Error::NoTensors { path: other.path().to_owned() });
        }
        let architecture = |model: &Model| match model.metadata().architecture() {
            Some(name) => Ok(name.to_owned()),
            None => Err(Error::NoArchitecture { path: model.path().to_owned() }),
        };
        let (expected, found) = (architecture(own)?, architecture(other)?);
        let compare = Comparer { own, own_role: own_role.name(), other, role: role.name() };
        if expected != found {
            return Err(compare.mismatch("general.architecture", expected, found, NOT_SIBLINGS));
        }
        if !inputs.vectors().is_empty() {
            compare.hyperparameters(&expected, &mut warnings)?;
            compare.vocabulary(inputs.token_map(id), embeddings, &mut warnings)?;
        }
    }
    for vector in inputs.vectors() {
        let Some(base) = vector.minus else { continue };
        let (own, other) = (inputs.source(base), inputs.source(vector.plus));
        let (own_role, role) = (inputs.role(base).name(), inputs.role(vector.plus).name());
        Comparer { own, own_role, other, role }.factors()?;
    }
    Ok(warnings)
}

/// Which rows take part, where that follows from the vocabularies.
///
/// # Errors
/// [`Error::Unshared`] if all should, and cannot.
pub(super) fn embeddings(inputs: &Inputs, wanted: Embeddings) -> Result<Embeddings, Error> {
    let own = inputs.source(inputs.skeleton());
    let unshared = inputs.sources().enumerate().find_map(|(id, (_, other))| {
        let map = inputs.token_map(id).filter(|map| map.n_shared() < map.n_own())?;
        let lacks = (0..map.n_own() as u32).find(|token| map.find(*token).is_none())?;
        let example = own.metadata().get_strings(TOKENS)?.get(lacks as usize)?.to_string();
        let (n, of) = (map.n_own() - map.n_shared(), map.n_own());
        let (model, other) = (own.path().to_owned(), other.path().to_owned());
        Some(Error::Unshared { n, of, example, model, other })
    });
    match (wanted, unshared) {
        (Embeddings::Auto, None) => Ok(Embeddings::All),
        (Embeddings::Auto, Some(_)) => Ok(Embeddings::Shared),
        (Embeddings::All, Some(error)) => Err(error),
        (wanted, _) => Ok(wanted),
    }
}

struct Comparer<'a> {
    own: &'a Model,
    own_role: &'static str,
    other: &'a Model,
    role: &'static str,
}

impl Comparer<'_> {
    fn mismatch(&self, key: &str, expected: String, found: String, hint: &'static str) -> Error {
        let path = |model: &Model| -> PathBuf { Path::to_owned(model.path()) };
        let (expected_in, found_in) = (path(self.own), path(self.other));
        Error::Mismatch { key: key.to_owned(), expected, expected_in, found, found_in, hint }
    }

    /// Refuses a base and a chat model with other factors beside their matrices.
    fn factors(&self) -> Result<(), Error> {
        let (own, other) = (self.own.metadata(), self.other.metadata());
        let architecture = own.architecture().unwrap_or_default();
        for suffix in FACTORS.into_iter().filter(|suffix| !TRAINED_FACTORS.contains(&(architecture, suffix))) {
            let key = format!("{architecture}.{suffix}");
            let (expected, found) = (own.get(&key), other.get(&key));
            // An older converter may have left one out that is llama.cpp's default; it is told like other
            // keys that differ.
            if let (Some(expected), Some(found)) = (expected, found)
                && !same_values(expected, found)
            {
                return Err(self.mismatch(&key, expected.summary(), found.summary(), OTHER_UNITS));
            }
        }
        Ok(())
    }

    fn hyperparameters(&self, architecture: &str, warnings: &mut Vec<Warning>) -> Result<(), Error> {
        let (own, other) = (self.own.metadata(), self.other.metadata());
        for fixed in &FIXED {
            let value = |m: &Metadata| fixed.value(m, architecture);
            // Absent in one and without a rule for that: nothing to compare. The shapes still have
            // to agree.
            let (Some(expected), Some(found)) = (value(own), value(other)) else { continue };
            if !same(&expected, &found) {
                let key = format!("{architecture}.{}", fixed.suffix);
                return Err(self.mismatch(&key, listed(&expected), listed(&found), NOT_SIBLINGS));
            }
        }
        let sections = format!("{architecture}.rope.dimension_sections");
        let has = [own, other].map(|metadata| metadata.get(&sections).is_some());
        if has[0] != has[1] && ORDERED_BY_SECTIONS.contains(&architecture) {
            let [expected, found] = has.map(|has| if has { "there" } else { "absent" }.to_owned());
            return Err(self.mismatch(&sections, expected, found, OTHER_ORDER));
        }
        let prefix = format!("{architecture}.");
        // The vocabulary is compared token by token.
        let is_told = |key: &str| key.strip_prefix(&prefix).is_some_and(|suffix| suffix != "vocab_size");
        let mut others: HashMap<&str, &Value> = other.iter().filter(|(key, _)| is_told(key)).collect();
        let mut differs = |key: &str, model: Option<&Value>, other: Option<&Value>| {
            let fixed = FIXED.iter().any(|f| key.strip_prefix(&prefix) == Some(f.suffix));
            // What is fixed was compared above if both say something, and has a default in some of
            // the other cases.
            if fixed && (model.is_some() == other.is_some() || stands_in(key, &prefix)) {
                return;
            }
            let shown = |value: Option<&Value>| value.map_or("absent".to_owned(), Value::summary);
            let (model, other) = (shown(model), shown(other));
            warnings.push(Warning::Differs { key: key.to_owned(), own: self.own_role, model, other, role: self.role });
        };
        for (key, value) in own.iter().filter(|(key, _)| is_told(key)) {
            match others.remove(key) {
                Some(other) if same_values(value, other) => {}
                other => differs(key, Some(value), other),
            }
        }
        for (key, value) in other.iter().filter(|(key, _)| others.contains_key(key)) {
            differs(key, None, Some(value));
        }
        Ok(())
    }

    /// `map` says where `other` has the tokens of `own`.
    fn vocabulary(
        &self,
        map: Option<&TokenMap>,
        embeddings: Embeddings,
        warnings: &mut Vec<Warning>,
    ) -> Result<(), Error> {
        let (own, other) = (self.own.metadata(), self.other.metadata());
        let is_skipped = embeddings == Embeddings::Skip;
        let Some(map) = map else {
            warnings.extend((!is_skipped).then_some(Warning::NoVocabulary { role: self.role }));
            return Ok(());
        };
        let differs = |map: &TokenMap| Warning::Vocabulary {
            own: self.own_role,
            role: self.role,
            n_own: map.n_own(),
            n_other: map.n_other(),
            n_shared: map.n_shared(),
            n_moved: map.n_moved(),
            is_skipped,
        };
        if is_skipped {
            warnings.extend((!map.is_identity()).then(|| differs(map)));
            return Ok(());
        }
        let model_key = "tokenizer.ggml.model";
        if let (Some(a), Some(b)) = (own.get(model_key), other.get(model_key))
            && a != b
        {
            return Err(self.mismatch(model_key, a.summary(), b.summary(), VOCABULARY_HINT));
        }
        if !map.is_identity() {
            let (shared, of) = (map.n_shared(), map.n_own().min(map.n_other()));
            if (shared as f64) < FAMILY * of as f64 {
                let (model, other) = (self.own.path().to_owned(), self.other.path().to_owned());
                return Err(Error::Vocabulary { shared, of, model, other });
            }
            warnings.push(differs(map));
        }
        for key in ["tokenizer.ggml.pre", "tokenizer.ggml.merges"] {
            // Other tokens come with other merges.
            if key.ends_with("merges") && !map.is_identity() {
                continue;
            }
            match (own.get(key), other.get(key)) {
                (Some(a), Some(b)) if a != b => warnings.push(Warning::Differs {
                    key: key.to_owned(),
                    own: self.own_role,
                    model: a.summary(),
                    other: if a.summary() == b.summary() { "others".to_owned() } else { b.summary() },
                    role: self.role,
                }),
                _ => {}
            }
        }
        Ok(())
    }
}

/// A hyperparameter as numbers: one, or one for each layer.
fn numbers(metadata: &Metadata, architecture: &str, suffix: &str) -> Option<Vec<f64>> {
    numeric(metadata.get(&format!("{architecture}.{suffix}"))?)
}

fn numeric(value: &Value) -> Option<Vec<f64>> {
    match value {
        // One for each layer; llama.cpp has at most 512 (`LLAMA_MAX_LAYERS`).
        Value::Array(array) if array.len() <= 1024 => array.iter().map(|v| v.as_f64()).collect(),
        Value::Array(_) => None,
        other => Some(vec![other.as_f64()?]),
    }
}

/// Whether two values say the same, integers of different widths included.
fn same_values(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => {
            a == b || (a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| same_values(&a, &b)))
        }
        _ => a == b || a.as_f64().is_some_and(|n| b.as_f64() == Some(n)),
    }
}

/// Whether another key says what this fixed one would where it is absent.
fn stands_in(key: &str, prefix: &str) -> bool {
    FIXED.iter().any(|f| key.strip_prefix(prefix) == Some(f.suffix) && f.default.is_some())
}

impl Fixed {
    fn value(&self, metadata: &Metadata, architecture: &str) -> Option<Vec<f64>> {
        if let Some(value) = numbers(metadata, architecture, self.suffix) {
            return Some(value);
        }
        let mut value = numbers(metadata, architecture, self.default?)?;
        if let Some(divisor) = self.divisor {
            let by = *numbers(metadata, architecture, divisor)?.first().filter(|n| **n > 0.0)?;
            value.iter_mut().for_each(|v| *v = (*v / by).floor());
        }
        Some(value)
    }
}

/// Whether two hyperparameters say the same; one number stands for every layer.
fn same(a: &[f64], b: &[f64]) -> bool {
    match (a, b) {
        ([one], many) | (many, [one]) => many.iter().all(|n| n == one),
        _ => a == b,
    }
}

fn listed(values: &[f64]) -> String {
    match values {
        [one] => one.to_string(),
        // Numbers as the file has them: `{:?}` of an f64 would make 8 an 8.0.
        many => format!("[{}]", many.iter().map(f64::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// Tensors that did not get the type they should have.
pub(super) fn fallback_warnings(tensors: &[mixture::Tensor<'_>], choices: &[mixture::Choice]) -> Vec<Warning> {
    let mut fell: BTreeMap<(GgmlType, GgmlType), Vec<String>> = BTreeMap::new();
    for (tensor, choice) in tensors.iter().zip(choices).filter(|(_, choice)| choice.ty != choice.wanted) {
        fell.entry((choice.wanted, choice.ty)).or_default().push(tensor.name.to_owned());
    }
    fell.into_iter().map(|((wanted, ty), tensors)| Warning::FellBack { wanted, ty, tensors }).collect()
}

/// What is said of the templates of a file that were not rendered.
pub fn unrendered<'a>(model: &'a Model, templates: &'a [Unrendered]) -> impl Iterator<Item = Warning> + 'a {
    templates.iter().map(|Unrendered { key, reason }| Warning::Unrendered {
        path: model.path().to_owned(),
        key: key.clone(),
        reason: reason.clone(),
    })
}

/// An importance matrix says nothing of the coordinates it was gathered in.
pub(super) fn importance_warning(inputs: &Inputs) -> Option<Warning> {
    inputs.importance().filter(|matrix| !matrix.is_flat())?;
    let key = inputs.sources().find_map(|(_, source)| fold_key(source.metadata()))?.to_owned();
    Some(Warning::ImportanceFolded { key })
}

/// Vectors of which nothing reaches the output.
pub(super) fn silent_warnings(inputs: &Inputs, reach: &Reach) -> Vec<Warning> {
    let paths = reach.silent(inputs).map(|vector| inputs.source(inputs.vectors()[vector].plus).path().to_owned());
    paths.map(|path| Warning::Silent { path }).collect()
}

/// Special tokens whose rows may be other ones than the user thinks.
pub(super) fn row_warnings(
    special: Option<&SpecialTokens>,
    recipe: &Recipe,
    taken: &TakenRows,
    tensors: &[TensorPlan],
) -> Vec<Warning> {
    let mut warnings = Vec::new();
    if !taken.kept.is_empty() {
        let (tokens, tensors) = (taken.kept.clone(), taken.kept_in.clone());
        warnings.push(Warning::RowsKept { tokens, tensors, is_untrained: true });
    }
    let is_auto = recipe.special_tokens == super::SpecialTokens::Auto;
    let is_lacking = |token: &&SpecialToken| token.is_written && token.id.is_none() && !recipe.add_missing_tokens;
    let lacking = special.into_iter().flat_map(|special| &special.tokens).filter(is_lacking);
    let tokens: Vec<String> = lacking.map(|token| token.text.to_string()).collect();
    if !tokens.is_empty() {
        warnings.push(Warning::LacksWritten { tokens });
    }
    let Some(special) = special.filter(|special| special.is_base_model && is_auto) else { return warnings };
    let by_token = || tensors.iter().filter(|tensor| has_row_per_token(&tensor.name));
    if by_token().any(|tensor| tensor.is_sum()) {
        warnings.push(Warning::BaseIsModel);
        return warnings;
    }
    let needed = special.tokens.iter().filter(|token| token.is_needed && token.id.is_some());
    let tokens: Vec<String> = needed.map(|token| token.text.to_string()).collect();
    let tensors: Vec<String> =
        by_token().filter(|tensor| tensor.kept() == Some(Kept::RatioZero)).map(|t| t.name.clone()).collect();
    if !tokens.is_empty() && !tensors.is_empty() {
        warnings.push(Warning::RowsKept { tokens, tensors, is_untrained: false });
    }
    warnings
}

/// Says that a conversation becomes another prompt in the output than in the chat model.
pub(super) fn prompt_warning(output: &Metadata, chat: Option<&Metadata>, templates: &Templates) -> Option<Warning> {
    let PromptsDiffer { own, other } = chat::prompts_differ(output, chat?, templates)?;
    Some(Warning::Prompt { output: own, chat: other })
}

/// Tensors that are added although it is not known that they may be.
fn nature_warnings(inputs: &Inputs, pairs: &[Pair]) -> Vec<Warning> {
    let architecture = inputs.source(inputs.skeleton()).metadata().architecture().unwrap_or_default();
    let mut unsure: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    let mut unknown = Vec::new();
    let is_added = |pair: &&Pair| pair.kept.is_none() && pair.info(inputs).n_weights() > 0;
    for pair in pairs.iter().filter(is_added) {
        match nature(architecture, &pair.name, pair.info(inputs).n_dims()) {
            Nature::Unsure(reason) => unsure.entry(reason).or_default().push(pair.name.clone()),
            Nature::Unknown => unknown.push(pair.name.clone()),
            Nature::Weight | Nature::NoWeight | Nature::Table => {}
        }
    }
    let unsure = unsure.into_iter().map(|(reason, tensors)| Warning::UnsureSum { tensors, reason: Some(reason) });
    let unknown = (!unknown.is_empty()).then_some(Warning::UnsureSum { tensors: unknown, reason: None });
    unsure.chain(unknown).collect()
}

/// What the pairing left out or bent.
pub fn pairing_warnings(inputs: &Inputs, pairs: &[Pair]) -> Vec<Warning> {
    let mut warnings: Vec<Warning> = importance_warning(inputs).into_iter().collect();
    warnings.extend(nature_warnings(inputs, pairs));
    let tensors: Vec<String> =
        pairs.iter().filter(|p| p.kept == Some(Kept::NoPartner)).map(|p| p.name.clone()).collect();
    if !tensors.is_empty() {
        warnings.push(Warning::NoPartner { tensors });
    }
    if pairs.iter().any(|p| p.tied) {
        warnings.push(Warning::TiedOutput);
    }
    if inputs.sources().any(|(_, source)| source.find(OUTPUT).is_some())
        && !pairs.iter().any(|pair| pair.name == OUTPUT)
    {
        warnings.push(Warning::OutputDropped);
    }
    warnings
}
