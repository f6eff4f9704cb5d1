//! What is odd but legal in the inputs, and said.

use std::fmt;
use std::path::PathBuf;

use super::Protected;
use crate::chat;
use crate::ggml::GgmlType;
use crate::vector::Role;

/// Says how text is split before byte pairs are merged.
pub(super) const PRE_TOKENIZER: &str = "tokenizer.ggml.pre";

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
    /// Tensors that are added as they are stored, though that may not be right.
    UnsureSum {
        /// Their names.
        tensors: Vec<String>,
        /// Why; none where nothing is known of such names.
        reason: Option<&'static str>,
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
    /// A conversation that becomes another prompt in the output than in the chat model.
    Prompt {
        /// The output's, from shortly before the difference on, special tokens in brackets.
        output: String,
        /// The chat model's.
        chat: String,
    },
    /// What an engine makes of the output's chat template.
    Template {
        /// Which engine, what, and where.
        said: String,
    },
    /// Layers that the metadata promise and the file lacks.
    LacksBlocks {
        /// The key.
        key: String,
        /// How many it promises.
        promised: u64,
        /// The first layer without a tensor.
        block: u64,
    },
    /// Hyperparameters of a type that llama.cpp does not read.
    ScalarTypes {
        /// The keys, each with its type.
        keys: Vec<String>,
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
                    return write!(f, "; rows of embeddings stay the {own}'s (--embeddings skip)");
                }
                write!(f, "; rows are matched by their tokens, and the {} without one get no vector", n_own - n_shared)
            }
            Warning::NoPartner { tensors } => write!(
                f,
                "{} tensors have no partner in base and chat and stay the model's, among them {}",
                tensors.len(),
                tensors[0]
            ),
            Warning::UnsureSum { tensors, reason } => write!(
                f,
                "{} tensors are added as they are stored, which may not be right: {}; among them {}",
                tensors.len(),
                reason.unwrap_or(
                    "they are neither matrices, norms nor biases, and no converter that is known writes their names"
                ),
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
            Warning::Prompt { output, chat } => write!(
                f,
                "a prompt of the output is not the chat's, in which the vector was trained: {output:?} where the chat has {chat:?} \
                 (special tokens in brackets)"
            ),
            Warning::Template { said } => write!(f, "{said} (inspect --chat shows all)"),
            Warning::LacksBlocks { key, promised, block } => write!(
                f,
                "{key} promises {promised} layers, and there is no tensor of blk.{block}: llama.cpp will not load the output; \
                 get the whole model, or convert it again"
            ),
            Warning::ScalarTypes { keys } => write!(
                f,
                "llama.cpp reads hyperparameters as uint32, float32, bool or string, and refuses other types of those that it \
                 reads: {}; convert the model again",
                keys.join(", ")
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
                "the model lacks {}, which the chat's template writes in no plain conversation, but as around calls of tools \
                 or thoughts: where it does, or the chat itself did, they are split into letters (--add-missing-tokens adds them)",
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
