//! Why no plan could be made: errors in groups, by what can be changed about them.

use std::path::PathBuf;

use crate::ggml::{GgmlType, TypeError};
use crate::{gguf, imatrix};

/// Why no plan could be made. Nothing has been written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // The files are not what they are given for, or not siblings: give others.
    /// Two files that must agree do not.
    #[error("{key} is {found} in {} but {expected} in {}; {hint}", found_in.display(), expected_in.display())]
    Mismatch {
        /// The metadata key.
        key: String,
        /// Its value in the model.
        expected: String,
        /// The model's file.
        expected_in: PathBuf,
        /// Its value in the other file.
        found: String,
        /// The other file.
        found_in: PathBuf,
        /// What that means.
        hint: &'static str,
    },
    /// A file without `general.architecture`.
    #[error("{}: the key general.architecture is missing; this is no model", path.display())]
    NoArchitecture {
        /// The file.
        path: PathBuf,
    },
    /// A file of another kind in place of a model.
    #[error(
        "{}: key general.type: expected \"model\", found {found:?}; {}", path.display(), advice_for(found)
    )]
    NotAModel {
        /// The file.
        path: PathBuf,
        /// Its `general.type`.
        found: String,
    },
    /// A file with metadata alone, such as the vocabularies that convert_hf_to_gguf.py makes with
    /// --vocab-only.
    #[error("{}: the file has no tensors, only metadata such as a vocabulary; give the model's own file", path.display())]
    NoTensors {
        /// The file.
        path: PathBuf,
    },
    /// A model that does not say how many layers it has, which the rules of a mixture need.
    #[error("the key {key} is missing or no number: without it there is no choosing types; --pure needs none")]
    NoNumber {
        /// The metadata key.
        key: String,
    },
    /// A token of the model that another file lacks, where all were to take part.
    #[error(
        "{} of the {of} tokens of {} are not in {}, among them {example:?}: not every row can take part; --embeddings shared \
         leaves those out", n, model.display(), other.display()
    )]
    Unshared {
        /// How many.
        n: usize,
        /// How many tokens the model has.
        of: usize,
        /// One of them.
        example: String,
        /// The model's file.
        model: PathBuf,
        /// The other file.
        other: PathBuf,
    },
    /// Vocabularies that have little in common.
    #[error(
        "only {shared} of the {of} tokens of {} are in {}: the files are no siblings", model.display(), other.display()
    )]
    Vocabulary {
        /// Tokens in both.
        shared: usize,
        /// Tokens of the smaller vocabulary.
        of: usize,
        /// The model's file.
        model: PathBuf,
        /// The other file.
        other: PathBuf,
    },
    /// A tensor that takes part in the sum has a type that cannot be read.
    #[error(
        "{}: tensor {tensor} is {ty}, for which ggml has no decoder; get this model as F16, Q8_0 or a K-quant",
        path.display()
    )]
    CannotDecode {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type there.
        ty: GgmlType,
    },
    /// An importance matrix that is not this model's.
    #[error(transparent)]
    Importance(#[from] imatrix::Error),

    // The types that were asked for cannot be had: choose others, or give what they take.
    /// A file type for which llama.cpp has no rules which tensor gets which type.
    #[error("llama.cpp has no mixture for the output type {name}; give --pure for this one type in every tensor")]
    NoRules {
        /// The type as asked for.
        name: &'static str,
    },
    /// An output type that does not exist.
    #[error("no output type is called {name:?}; known are keep, {known}")]
    UnknownType {
        /// The type as asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// Options that choose types, where every tensor keeps its own.
    #[error("with keep every tensor has its own type; give a --type for the others")]
    NoMixture,
    /// A type for some tensors that cannot be read.
    #[error("the type {text:?} for some tensors: {reason}; write REGEX=TYPE, such as attn_v=Q8_0")]
    Override {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor of a mixture of experts that is in no layer.
    #[error(
        "tensor {tensor} is in none of the {n_layers} layers, so its type cannot be chosen; --pure needs no layers"
    )]
    NoLayer {
        /// The tensor.
        tensor: String,
        /// How many layers the model has.
        n_layers: u64,
    },
    /// A tensor whose rows do not divide into blocks, and for which no other type stands in.
    #[error(
        "tensor {tensor} cannot be {ty}: its rows of {row_len} weights are no whole number of blocks of {}; ask for another \
         type for it with --tensor-type",
        .ty.block_len()
    )]
    Rows {
        /// The tensor.
        tensor: String,
        /// The type asked for.
        ty: GgmlType,
        /// Weights in a row.
        row_len: u64,
    },
    /// A tensor would be quantised a second time.
    #[error(
        "tensor {tensor} is {from} already; making it {to} loses more than from F16 or F32: start from such a model, or give \
         --allow-requantize"
    )]
    Requantize {
        /// The tensor.
        tensor: String,
        /// Its type in the model.
        from: GgmlType,
        /// Its type in the output.
        to: GgmlType,
    },
    /// A tensor would be written in a type that is worthless without an importance matrix.
    #[error(
        "tensor {tensor} would be {ty}, worthless without an importance matrix: give --imatrix FILE, or --importance flat, or a finer --type"
    )]
    ImportanceMissing {
        /// The tensor.
        tensor: String,
        /// Its type in the output.
        ty: GgmlType,
    },
    /// A ggml type that does not exist.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// A tensor that the recipe changes has a type that cannot be written.
    #[error("tensor {tensor} would have to be written as {ty}, for which ggml has no encoder; ask for another --type")]
    CannotEncode {
        /// The tensor.
        tensor: String,
        /// Its type in the output.
        ty: GgmlType,
    },

    // The tokens of a conversation: say which rows are taken, and which tokens are added.
    /// Tokens that a conversation needs and the model lacks.
    #[error(
        "{} lacks tokens that the chat of {} needs: {}; {}", model.display(), chat.display(), tokens.join(", "),
        if *can_be_added {
            "--add-missing-tokens gives it them with the chat model's rows, --special-tokens none goes on without"
        } else {
            "a patch has no rows for them; merge with base and chat themselves, or go on without by --special-tokens none"
        }
    )]
    MissingTokens {
        /// Their texts.
        tokens: Vec<String>,
        /// The model's file.
        model: PathBuf,
        /// The chat model's.
        chat: PathBuf,
        /// Whether there are rows for them.
        can_be_added: bool,
    },
    /// A special token that the chat model does not have.
    #[error(
        "--special-tokens: {} has no special token {text:?}: none of type control, and none that its templates write", path.display()
    )]
    UnknownToken {
        /// The text.
        text: String,
        /// The chat model's file.
        path: PathBuf,
    },
    /// Rows of special tokens are asked for, and there are none.
    #[error("--special-tokens: {} is a patch, which has no rows of its own; use auto or none", path.display())]
    NoRows {
        /// The patch.
        path: PathBuf,
    },
    /// Rows of a vector of which nothing is to reach the output.
    #[error(
        "--special-tokens names tokens whose rows are the chat model's, but the ratio of every vector is 0 everywhere, so that \
         nothing of a chat model reaches the output: give a ratio, or leave --special-tokens out"
    )]
    SilentTokens,
    /// A model whose tensors cannot grow by a token.
    #[error("{}: no tokens can be added, since chat has nothing for them in tensor {tensor}", model.display())]
    CannotAddTokens {
        /// The tensor.
        tensor: String,
        /// The model's file.
        model: PathBuf,
    },

    // The words for a vector and its ratios, on the command line or in a recipe: write them anew.
    /// A ratio that cannot be read.
    #[error("a ratio must be a number, found {text:?}; write PATCH@0.5")]
    RatioText {
        /// The text.
        text: String,
    },
    /// A vector that cannot be read.
    #[error("the vector {text:?}: {reason}; write BASE:CHAT@0.5 or PATCH@0.5")]
    VectorText {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A ratio for some tensors that cannot be read.
    #[error("the ratio {text:?} for some tensors: {reason}; write REGEX=R, such as attn_v=0.5")]
    RatioRule {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A name of no preset.
    #[error("no preset is called {name:?}; known are {known}")]
    UnknownPreset {
        /// The name.
        name: String,
        /// What there is.
        known: String,
    },
    /// A gradient with something that is no number.
    #[error("a gradient over the layers must be of finite numbers, found {value}")]
    Gradient {
        /// What was found.
        value: f64,
    },
    /// A ratio that is no number, or too large or too small to be one in f32; also a product of
    /// such, or a sum that is divided by.
    #[error("a ratio must be a finite number that f32 can hold and that does not become 0 in it, found {ratio:e}")]
    Ratio {
        /// The ratio.
        ratio: f64,
    },

    // The recipe, and what it asks of these models: change the recipe.
    /// A rule for tensors that there are not.
    #[error("no tensor's name has a match of {pattern:?}; the parts of this model are {known}")]
    NothingMatches {
        /// The expression.
        pattern: String,
        /// The last words of the tensors' names.
        known: String,
    },
    /// A recipe for models of another depth.
    #[error("the recipe is for models of {expected} layers, and these have {found}: layers cannot be left out")]
    Layers {
        /// What the recipe says.
        expected: u64,
        /// What the model says.
        found: u64,
    },
    /// A tensor for which a recipe gives a vector no weight.
    #[error(
        "vector {vector} has no weight for tensor {tensor}: none of its filters is part of the name, and none is for all"
    )]
    NoWeight {
        /// The tensor.
        tensor: String,
        /// The vector, counted from 1.
        vector: usize,
    },
    /// A tensor that not every model of a linear merge has.
    #[error("tensor {tensor} is not in every model with the same rows; a linear merge needs it there")]
    LinearGap {
        /// The tensor.
        tensor: String,
    },
    /// A mean of nothing.
    #[error("the ratios of tensor {tensor} add up to 0; a linear merge divides by their sum")]
    LinearZero {
        /// The tensor.
        tensor: String,
    },
    /// A recipe that is not what its name says.
    #[error("the recipe is no {format} that is understood: {reason}")]
    RecipeSyntax {
        /// TOML or YAML.
        format: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// A recipe that is too long to be one.
    #[error("the recipe has more than {limit} bytes")]
    RecipeTooLong {
        /// The most it may have.
        limit: u64,
    },
    /// A value of a recipe that cannot be meant, or done.
    #[error("the recipe's {key}: {reason}")]
    RecipeKey {
        /// The key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },

    // The output itself: its header has no room for what was planned.
    /// The output's header cannot be laid out.
    #[error(transparent)]
    Container(#[from] gguf::Error),
}

/// What to do with a file of this kind (gguf-py/gguf/constants.py, `GGUFType`, and this crate's
/// own).
fn advice_for(kind: &str) -> &'static str {
    match kind {
        "chat-vector" => "it is a patch, which goes to chatvec apply",
        "adapter" => "it is a LoRA adapter: put it into its model first, with llama-export-lora, and give that",
        "mmproj" => "it is the part of a model that sees or hears: give the language model's own file",
        "imatrix" => "it is an importance matrix, which goes to --imatrix",
        _ => "give the model's own file",
    }
}
