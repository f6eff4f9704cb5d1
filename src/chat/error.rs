//! Why metadata give no tokenizer.

use bstr::BStr;

use crate::gguf::{Value, ValueType};

/// Why metadata give no tokenizer. Each is a reason for which llama.cpp refuses the file, or a
/// tokenizer that is not built in here.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A key without which there is no tokenizer.
    #[error("the metadata have no {key}; the file has no vocabulary to talk with")]
    MissingKey {
        /// The key.
        key: &'static str,
    },
    /// A key with a value of another type than llama.cpp reads.
    #[error("{key} is of type {found}, expected {expected}")]
    WrongType {
        /// The key.
        key: &'static str,
        /// The type that llama.cpp reads.
        expected: &'static str,
        /// The type in the file.
        found: String,
    },
    /// A list with fewer entries than there are tokens.
    #[error("{key} has {found} entries for {n_tokens} tokens")]
    TooShort {
        /// The key of the list.
        key: &'static str,
        /// Entries that the list has.
        found: usize,
        /// Entries of `tokenizer.ggml.tokens`.
        n_tokens: usize,
    },
    /// More tokens and merges than ids can number.
    #[error("{n_tokens} tokens and {n_merges} merges are more than ids can number")]
    TooMany {
        /// Entries of `tokenizer.ggml.tokens`.
        n_tokens: usize,
        /// Entries of `tokenizer.ggml.merges`.
        n_merges: usize,
    },
    /// More special tokens than can be looked for in every text.
    #[error(
        "tokenizer.ggml.token_type has {found} special tokens, more than {most}, which is too many to look for in every text"
    )]
    TooManySpecial {
        /// Control, unknown and user-defined tokens.
        found: usize,
        /// How many are allowed.
        most: usize,
    },
    /// An algorithm that is not built in.
    #[error("tokenizer.ggml.model is {found:?}, which is not built in; known are {known}")]
    UnknownModel {
        /// The algorithm that the file names.
        found: String,
        /// The algorithms that are built in.
        known: &'static str,
    },
    /// A pre-tokenizer that is not built in.
    #[error("tokenizer.ggml.pre is {found:?}, which is not built in; known are {known}")]
    UnknownPre {
        /// The pre-tokenizer that the file names.
        found: String,
        /// The pre-tokenizers that are built in.
        known: String,
    },
    /// A way to begin a text with ▁ that llama.cpp refuses.
    #[error(
        "tokenizer.ggml.metaspace.prepend_scheme is {found:?}, expected \"never\" or \"first\", or \"always\" with \
         tokenizer.ggml.model \"llama\""
    )]
    UnknownPrepend {
        /// The way that the file names.
        found: String,
    },
    /// Two tokens with one text.
    #[error("tokens {first} and {second} both have the text {text:?}; llama.cpp cannot load such a vocabulary")]
    DuplicateToken {
        /// The text.
        text: String,
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
    },
    /// A token that llama.cpp asks for because of the model's name.
    #[error("the model is called {name:?}, and for such a name llama.cpp asks for a token {text:?}, which is missing")]
    MissingToken {
        /// `general.name`.
        name: String,
        /// The token's text.
        text: &'static str,
    },
    /// A token of type byte whose text has no place for the byte.
    #[error("token {id} is a byte token, but its text is {text:?} instead of <0x00> to <0xFF>")]
    ByteToken {
        /// The token.
        id: u32,
        /// Its text.
        text: String,
    },
}

impl Error {
    pub(super) fn wrong_type(key: &'static str, expected: &'static str, found: &Value) -> Self {
        let found = match found {
            Value::Array(a) => format!("array of {}", a.element_type().name()),
            other => other.value_type().name().to_owned(),
        };
        Error::WrongType { key, expected, found }
    }
}

/// A file's text as an error shows it: short, and in one line.
pub(super) fn shown(text: &BStr) -> String {
    const BYTES: usize = 500;
    Value::String(text[..text.len().min(BYTES)].into()).summary()
}

/// The value of an optional key, which must be of one type: llama.cpp converts none
/// (src/llama-model-loader.cpp, `get_kv`).
pub(super) fn typed<'a, T>(
    metadata: &'a crate::gguf::Metadata,
    key: &'static str,
    expected: ValueType,
    read: impl Fn(&'a Value) -> Option<T>,
) -> Result<Option<T>, Error> {
    let Some(value) = metadata.get(key) else { return Ok(None) };
    match read(value) {
        Some(v) => Ok(Some(v)),
        None => Err(Error::wrong_type(key, expected.name(), value)),
    }
}
