//! Whether the headers of the inputs describe siblings.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use super::merging::Reach;
use super::special::TakenRows;
use super::{Embeddings, Error, Protected, Recipe, TensorPlan, mixture};
use crate::chat::{self, TOKENS, TokenMap, Unrendered};
use crate::ggml::GgmlType;
use crate::gguf::names::OUTPUT;
use crate::gguf::{Metadata, Model, Value};
use crate::survey::{SpecialToken, SpecialTokens};
use crate::vector::{Inputs, Kept, Pair, Role, fold_key, has_row_per_token};

/// Says how text is split before byte pairs are merged.
const PRE_TOKENIZER: &str = "tokenizer.ggml.pre";

/// Says that the texts of an output are split by a default, because its model does not say how.
pub(super) fn pre_tokenizer_warning(output: &Metadata, chat: Option<&Metadata>) -> Option<Warning> {
    let chat = chat?.get_str(PRE_TOKENIZER)?.to_string();
    output.get(PRE_TOKENIZER).is_none().then_some(Warning::NoPreTokenizer { chat })
}

/// Something odd but legal in the inputs.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Warning {
    /// A hyperparameter that may change in training differs; the output has the model's.
    Differs {
        /// The key.
        key: String,
        /// The role of the file that others are compared with.
        own: &'static str,
        /// Its value there.
        model: String,
        /// Its value in the other file.
        other: String,
        /// The other file's role.
        role: &'static str,
    },
    /// A file has no token list to compare.
    NoVocabulary {
        /// The file's role.
        role: &'static str,
    },
    /// A file has other tokens, or has them in another order.
    Vocabulary {
        /// The role of the file that others are compared with.
        own: &'static str,
        /// The other file's role.
        role: &'static str,
        /// Tokens of the first.
        n_own: usize,
        /// Tokens of the other.
        n_other: usize,
        /// Tokens of both.
        n_shared: usize,
        /// Tokens of both that have another id in the other.
        n_moved: usize,
        /// Whether it does not matter, because rows of tokens are left out.
        is_skipped: bool,
    },
    /// Tensors of the model that no vector changes.
    NoPartner {
        /// Their names.
        tensors: Vec<String>,
    },
    /// `output.weight` meets a tied embedding.
    TiedOutput,
    /// The model is tied and the vector is not: what it does to `output.weight` is lost.
    OutputDropped,
    /// The chat model has no chat template.
    NoTemplate,
    /// A chat template that was not rendered, or not to its end.
    Unrendered {
        /// The file.
        path: PathBuf,
        /// The template's key.
        key: String,
        /// Why.
        reason: String,
    },
    /// The output does not say how text is split before tokens are made of it, and chat does.
    NoPreTokenizer {
        /// What chat says.
        chat: String,
    },
    /// Chat plumbing that llama.cpp would refuse.
    Unusable {
        /// The keys.
        keys: Vec<String>,
    },
    /// Tensors that are encoded without importance although there is a matrix.
    ImportanceMissing {
        /// Their names.
        tensors: Vec<String>,
        /// How many there are that a matrix could change.
        of: usize,
    },
    /// Entries of the importance matrix without a tensor.
    ImportanceUnmatched {
        /// Their names.
        entries: Vec<String>,
        /// How many entries there are.
        of: usize,
    },
    /// An importance matrix that changes nothing.
    ImportanceIdle,
    /// An importance matrix for folded weights.
    ImportanceFolded {
        /// The first key that says so.
        key: String,
    },
    /// Tensors whose rows are no whole number of blocks of the type that they should have.
    FellBack {
        /// The type that they should have.
        wanted: GgmlType,
        /// The type that they have instead.
        #[serde(rename = "type")]
        ty: GgmlType,
        /// Their names.
        tensors: Vec<String>,
    },
    /// Tensors that are not written as they would be by the types asked for, because rounding would
    /// take the vector.
    Protected {
        /// What is done about each.
        changes: Vec<Protected>,
    },
    /// A filter of a recipe that is for no tensor.
    IdleFilter {
        /// The filter.
        filter: String,
        /// The last words of the tensors' names.
        known: String,
    },
    /// A vector whose ratio is 0 in every tensor.
    Silent {
        /// The file of the chat model, or of the patch.
        path: PathBuf,
    },
    /// Tokens that a conversation needs, whose rows stay the model's because the ratio there is 0.
    RowsKept {
        /// Their texts.
        tokens: Vec<String>,
        /// The tensors.
        tensors: Vec<String>,
        /// Whether it is known that nobody trained the model on them.
        is_untrained: bool,
    },
    /// Tokens that the chat's template writes, but not in a conversation without tools, and that the
    /// model lacks.
    LacksWritten {
        /// Their texts.
        tokens: Vec<String>,
    },
    /// The base of the vector is the model, so that nothing says which tokens the model was trained
    /// on.
    BaseIsModel,
    /// A ratio beyond all that is usual.
    LargeRatio {
        /// The largest.
        ratio: f32,
    },
    /// A finding of the survey that the user chose to go past.
    Forced {
        /// What it said.
        finding: String,
    },
}

impl Warning {
    /// Whether it says what is done and why, rather than what may be wrong.
    pub fn is_note(&self) -> bool {
        matches!(self, Warning::Silent { .. } | Warning::RowsKept { .. } | Warning::BaseIsModel)
    }
}

impl fmt::Display for Warning {
    #[expect(clippy::too_many_lines, reason = "a list: one arm a warning")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::Differs { key, own, model, other, role } if *own == Role::Model.name() => {
                write!(f, "{key} is {model} in the model and {other} in {role}; the output has the model's")
            }
            Warning::Differs { key, own, model, other, role } => {
                write!(f, "{key} is {model} in {own} and {other} in {role}; a patch has the base's")
            }
            Warning::NoVocabulary { role } => {
                write!(f, "{role} has no token list: that its rows belong to the same tokens could not be checked")
            }
            Warning::Vocabulary { own, role, n_own, n_other, n_shared, n_moved, is_skipped } => {
                write!(f, "{own} has {n_own} tokens, {role} {n_other}: {n_shared} are in both")?;
                if *n_moved > 0 {
                    write!(f, ", {n_moved} of them at other places")?;
                }
                if *is_skipped {
                    return write!(f, "; rows of embeddings stay {own}'s (--embeddings skip)");
                }
                write!(f, "; rows are matched by their tokens, and the {} without one get no vector", n_own - n_shared)
            }
            Warning::NoPartner { tensors } => write!(
                f,
                "{} tensors have no partner in base and chat and stay the model's, among them {}",
                tensors.len(),
                tensors[0]
            ),
            Warning::TiedOutput => write!(
                f,
                "output.weight has no partner in a file with tied embeddings; token_embd.weight stands for it there"
            ),
            Warning::OutputDropped => write!(
                f,
                "the model's embeddings are tied and the vector's are not: what it does to output.weight is left out"
            ),
            Warning::NoTemplate => write!(
                f,
                "chat has no chat template: llama.cpp will talk to the result in the model's own template if it has one, \
                 else in its built-in ChatML, and neither may be what the vector teaches"
            ),
            Warning::Unrendered { path, key, reason } => write!(
                f,
                "{}: {key}: {reason}; which special tokens a conversation needs is known by the template's text alone: look at \
                 those of the plan (--dry-run), or name them with --special-tokens",
                path.display()
            ),
            Warning::NoPreTokenizer { chat } => write!(
                f,
                "the model has no key {PRE_TOKENIZER}, and chat has {chat:?}: without it llama.cpp splits text by its \
                 default before it makes tokens, which may be other tokens than the model was trained on; convert the \
                 model again, with a newer converter"
            ),
            Warning::Unusable { keys } => {
                write!(
                    f,
                    "chat has values that llama.cpp would refuse, or tokens that the model lacks; these keys are left out: {}",
                    keys.join(", ")
                )
            }
            Warning::ImportanceMissing { tensors, of } => write!(
                f,
                "the importance matrix has no entry for {} of the {of} tensors it could change, which are encoded without \
                 it, among them {}",
                tensors.len(),
                tensors[0]
            ),
            Warning::ImportanceUnmatched { entries, of } => write!(
                f,
                "{} of the {of} entries of the importance matrix belong to no tensor of the model, among them {}: it may \
                 be that of another model",
                entries.len(),
                entries[0]
            ),
            Warning::ImportanceIdle => write!(
                f,
                "the importance matrix changes nothing: no tensor is encoded in a type for which ggml has a use for it"
            ),
            Warning::ImportanceFolded { key } => write!(
                f,
                "weights are folded (key {key}), and an importance matrix does not say of which activations it is: one that was \
                 gathered from another file than a model folded like this weighs the wrong columns"
            ),
            Warning::FellBack { wanted, ty, tensors } => write!(
                f,
                "{} tensors are {ty} instead of {wanted}, whose blocks of {} weights do not fill their rows, among them {}",
                tensors.len(),
                wanted.block_len(),
                tensors[0]
            ),
            Warning::Protected { changes } => {
                let more = changes.iter().map(|c| c.more_bytes).sum::<u64>();
                let n_promoted = changes.iter().filter(|c| c.ty != c.from).count();
                let (n_dithered, size) = (changes.len() - n_promoted, bytesize::ByteSize::b(more).display().iec());
                write!(f, "rounding to the nearest would take the vector from {} tensors: ", changes.len())?;
                match (n_dithered, n_promoted) {
                    (_, 0) => write!(f, "they are dithered, at the same size"),
                    (0, _) => write!(f, "they get finer types, {size} more"),
                    _ => write!(f, "{n_dithered} are dithered, {n_promoted} get finer types, {size} more"),
                }
            }
            Warning::IdleFilter { filter, known } => {
                write!(f, "no tensor has {filter:?} in its name; the parts of this model are {known}")
            }
            Warning::Silent { path } => write!(
                f,
                "the ratio of {}, or what it is multiplied by, is 0 in every tensor: nothing of it reaches the output, neither rows of tokens nor template \
                 nor end tokens",
                path.display()
            ),
            Warning::RowsKept { tokens, tensors, is_untrained } => write!(
                f,
                "the ratio is 0 in {}, so that the rows of {} stay the model's{}; --special-tokens '{}' takes the chat model's",
                tensors.join(" and "),
                tokens.iter().map(|text| chat::shown_token(text.as_str().into())).collect::<Vec<_>>().join(" "),
                if *is_untrained { ", which nobody trained on them" } else { "" },
                tokens.join(",")
            ),
            Warning::LacksWritten { tokens } => write!(
                f,
                "the model lacks {}, which the chat's template writes around calls of tools or the like, and in no plain \
                 conversation: there they would be split into letters (--add-missing-tokens adds them)",
                tokens.iter().map(|text| chat::shown_token(text.as_str().into())).collect::<Vec<_>>().join(" ")
            ),
            Warning::BaseIsModel => write!(
                f,
                "the base of the vector is the model itself, so that nothing says which special tokens the model was trained \
                 on: their rows are sums by the ratio, as all others are (--special-tokens TEXT,TEXT takes the chat model's)"
            ),
            Warning::LargeRatio { ratio } => write!(
                f,
                "a ratio of {ratio} is far beyond what is usual (0.5 to 1.5): a vector of three times its length leaves no \
                 right answer on the bundled models"
            ),
            Warning::Forced { finding } => write!(f, "forced: {finding}"),
        }
    }
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

const FIXED: [Fixed; 15] = [
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
];

const NOT_SIBLINGS: &str = "the files are no siblings";
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
    inputs.importance()?;
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

/// What the pairing left out or bent.
pub fn pairing_warnings(inputs: &Inputs, pairs: &[Pair]) -> Vec<Warning> {
    let mut warnings: Vec<Warning> = importance_warning(inputs).into_iter().collect();
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
