//! Why a model does not run.

use std::path::{Path, PathBuf};

use crate::ggml::GgmlType;
use crate::gguf;
use crate::pool::NoThreads;
use crate::vector;

/// How llama.cpp is compiled in.
const INSTALL: &str = "cargo install --locked --path . --features llama-cpp";

/// A log, which may be empty.
fn shown(log: &str) -> &str {
    if log.is_empty() { "nothing" } else { log }
}

/// Why a model does not run here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The container.
    #[error(transparent)]
    Container(#[from] gguf::Error),
    /// An architecture without a forward pass in this crate.
    #[error(
        "{}: smoke inference knows the architectures {}, not {found}; try the file in llama.cpp itself",
        path.display(), super::architectures().map(|(name, _)| name).collect::<Vec<_>>().join(", ")
    )]
    Architecture {
        /// The file.
        path: PathBuf,
        /// `general.architecture`, or what stands for it.
        found: String,
    },
    /// The same where another engine can be asked for.
    #[error(
        "{}: smoke inference knows the architectures {}, not {found}; --engine llama-cpp asks llama.cpp, in a chatvec that \
         is built with it: {INSTALL}", path.display(), super::architectures().map(|(name, _)| name).collect::<Vec<_>>().join(", ")
    )]
    OtherEngine {
        /// The file.
        path: PathBuf,
        /// `general.architecture`, or what stands for it.
        found: String,
    },
    /// llama.cpp is asked for, but is not compiled in.
    #[error(
        "this chatvec is built without llama.cpp, which --engine asks for; build it by {INSTALL}, which needs cmake, a C++ \
         compiler and libclang, or take --engine built-in"
    )]
    NoLlamaCpp,
    /// llama.cpp does not do what it is asked for.
    #[error("{}: llama.cpp {what}; its log ends with: {}", path.display(), shown(log))]
    LlamaCppRefuses {
        /// The file.
        path: PathBuf,
        /// What it does not do.
        what: String,
        /// The last lines of its log.
        log: String,
    },
    /// The process of llama.cpp ended, or makes no sense.
    #[error("{}: the process of llama.cpp {what}; its log ends with: {}", path.display(), shown(log))]
    LlamaCppEnded {
        /// The file.
        path: PathBuf,
        /// How it ended.
        what: String,
        /// The last lines of its log.
        log: String,
    },
    /// Weights that are folded, in an architecture in which nobody reads them.
    #[error(
        "{}: key {key}: its weights are folded, which llama.cpp 0.8 does not read in the architecture {architecture}; get the \
         model with plain weights", path.display()
    )]
    Folded {
        /// The file.
        path: PathBuf,
        /// The first key that says so.
        key: String,
        /// `general.architecture`.
        architecture: String,
    },
    /// Folds that are not known.
    #[error(transparent)]
    Fold(#[from] vector::Error),
    /// A key that is missing, or whose value makes no sense.
    #[error("{}: key {key}: expected {expected}, found {found}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it should have been.
        expected: String,
        /// What it was.
        found: String,
    },
    /// A key that says what the forward pass here has not.
    #[error("{}: key {key}: {found} is not built in, {expected} is; try the file in llama.cpp itself", path.display())]
    NotBuiltIn {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is built in.
        expected: String,
        /// What the key says.
        found: String,
    },
    /// An adapter that is not one of this model.
    #[error(transparent)]
    Adapter(Box<Error>),
    /// A tensor that is missing, or has another shape than the metadata ask for.
    #[error("{}: tensor {tensor}: expected {expected}, found {found}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape it should have, row length first.
        expected: String,
        /// The shape it has, or that there is none.
        found: String,
    },
    /// Tensors with no place in the architecture.
    #[error(
        "{}: {} tensors have no place in a {architecture} model that writes text, among them {}",
        path.display(), tensors.len(), tensors[0]
    )]
    Extra {
        /// The file.
        path: PathBuf,
        /// The architecture.
        architecture: String,
        /// Names of the tensors, at least one.
        tensors: Vec<String>,
    },
    /// A tensor of a type that cannot be computed with.
    #[error("{}: tensor {tensor} is {ty}, which smoke inference cannot multiply with", path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: GgmlType,
    },
    /// The memory that was allowed is too small.
    #[error(
        "{}: a context of {n_ctx} tokens takes {} of memory, but --memory allows {}; give more memory or a smaller context",
        path.display(), bytesize::ByteSize::b(*needed).display().iec(), bytesize::ByteSize::b(*allowed).display().iec()
    )]
    Memory {
        /// The file.
        path: PathBuf,
        /// Tokens.
        n_ctx: usize,
        /// Bytes of keys, values and activations.
        needed: u64,
        /// Bytes that were allowed.
        allowed: u64,
    },
    /// More tokens than the context holds.
    #[error("{n_tokens} tokens do not fit in a context of {n_ctx}")]
    Context {
        /// Tokens in all.
        n_tokens: usize,
        /// Tokens that fit.
        n_ctx: usize,
    },
    /// A text too short to gather importance from.
    #[error(
        "the text has {n_tokens} tokens, but {needed} are needed at least, two chunks of {n_ctx}; give a longer text or a \
         smaller --ctx-size"
    )]
    TooShort {
        /// Tokens of the text.
        n_tokens: usize,
        /// Tokens that are enough.
        needed: usize,
        /// Tokens of a chunk.
        n_ctx: usize,
    },
    /// Activations that are no numbers.
    #[error(
        "chunk {chunk}: what tensor {tensor} is multiplied with is not finite or its squares are beyond f32; the model's \
         weights are damaged or overflow"
    )]
    NotFinite {
        /// The first such tensor by name.
        tensor: String,
        /// The chunk, from 1.
        chunk: usize,
    },
    /// A token that is not in the vocabulary.
    #[error("token {id} is not in a vocabulary of {n_vocab} tokens")]
    Token {
        /// The token.
        id: u32,
        /// Tokens of the vocabulary.
        n_vocab: usize,
    },
    /// A setting that makes no sense.
    #[error("{what} is {found}, expected {expected}")]
    Setting {
        /// Which.
        what: &'static str,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// The system gave no threads.
    #[error(transparent)]
    Threads(#[from] NoThreads),
    /// Someone asked to stop.
    #[error("interrupted")]
    Cancelled,
}

impl Error {
    /// The same, of an adapter.
    pub(super) fn of_adapter(error: Error) -> Self {
        Error::Adapter(Box::new(error))
    }

    pub(super) fn key(path: &Path, key: &str, expected: impl Into<String>, found: impl Into<String>) -> Self {
        let (path, key) = (path.to_owned(), key.to_owned());
        Error::Key { path, key, expected: expected.into(), found: found.into() }
    }
}
