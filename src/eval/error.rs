//! Why two models could not be compared.

use std::path::PathBuf;

/// One of the two models, in messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The one whose distribution is the truth of KL(A‖B).
    A,
    /// The one that is held against it.
    B,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Side::A => "model A",
            Side::B => "model B",
        })
    }
}

/// Why two models could not be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A chunk in which nothing would be scored.
    #[error("a context of {n_ctx} tokens leaves nothing to score; take at least {MIN_CHUNK}")]
    Context {
        /// Tokens in a chunk.
        n_ctx: usize,
    },
    /// A text in which nothing would be scored.
    #[error(
        "the text has {n_tokens} tokens, of which none would be scored; give at least {MIN_CHUNK}, better thousands"
    )]
    TooShort {
        /// Tokens of the text.
        n_tokens: usize,
    },
    /// More would be kept of the first model's probabilities than memory is allowed.
    #[error(
        "what is kept of model A's probabilities of {n_scored} tokens takes {}, but --memory leaves {}; take fewer --chunks, \
         a smaller --top, or more memory",
        bytesize::ByteSize::b(*needed).display().iec(), bytesize::ByteSize::b(*allowed).display().iec()
    )]
    Memory {
        /// Tokens that are scored.
        n_scored: usize,
        /// Bytes that they take.
        needed: u64,
        /// Bytes that were allowed.
        allowed: u64,
    },
    /// A token that a model does not have.
    #[error("token {index} of the text is {token}, but {side} has {n_vocab} tokens; was another tokenizer used?")]
    NoSuchToken {
        /// The model.
        side: Side,
        /// Position in the text; that of a chunk's first token for BOS.
        index: usize,
        /// The id.
        token: u32,
        /// Tokens in the vocabulary.
        n_vocab: usize,
    },
    /// A file without a list of tokens.
    #[error("{}: key tokenizer.ggml.tokens is absent or no list of strings, so its tokens cannot be compared", path.display())]
    NoVocabulary {
        /// The file.
        path: PathBuf,
    },
    /// Two files of which not one tensor can be held against another.
    #[error("no tensor of {} has the name and shape of one in {}: these are different networks", b.display(), a.display())]
    NothingShared {
        /// The first file.
        a: PathBuf,
        /// The second.
        b: PathBuf,
    },
    /// A vector and a model.
    #[error(
        "{} is a patch and {} is a model: a vector is compared with a vector; give two patches, or two models, with --base and --chat \
         for how much of a vector there is in what B has beyond A",
        patch.display(), model.display()
    )]
    PatchAndModel {
        /// The patch.
        patch: PathBuf,
        /// The other file.
        model: PathBuf,
    },
    /// Vocabularies of different sizes.
    #[error("model A has {a} tokens and model B {b}; probabilities can only be compared over one vocabulary")]
    VocabularySize {
        /// Tokens of A.
        a: usize,
        /// Tokens of B.
        b: usize,
    },
    /// A token with another text.
    #[error(
        "token {id} is {a:?} in model A but {b:?} in model B; probabilities can only be compared over one vocabulary"
    )]
    Token {
        /// The first token that differs.
        id: usize,
        /// Its text in A.
        a: bstr::BString,
        /// Its text in B.
        b: bstr::BString,
    },
    /// The models cut the text into other tokens, although their vocabularies may be the same.
    #[error(
        "the text is not the same for both: token {index} of {a_tokens} is {} for model A, of {b_tokens} {} for model B; \
         compare with one list of tokens, n_ctx and BOS", shown(*.a), shown(*.b)
    )]
    Text {
        /// The first token that differs, or the length of the shorter list.
        index: usize,
        /// The token in A's list.
        a: Option<u32>,
        /// The token in B's list.
        b: Option<u32>,
        /// Tokens of A's list.
        a_tokens: usize,
        /// Tokens of B's list.
        b_tokens: usize,
    },
    /// The texts are cut into other chunks.
    #[error("the text is not cut the same way for both: {key} is {a} for model A and {b} for model B")]
    Chunks {
        /// What differs.
        key: &'static str,
        /// Its value for A.
        a: String,
        /// Its value for B.
        b: String,
    },
    /// A logit that is no number.
    #[error(
        "{side}: chunk {chunk}, position {position}: the logit of token {token} is {value}; its weights are damaged or overflow"
    )]
    NotFinite {
        /// The model.
        side: Side,
        /// The chunk.
        chunk: usize,
        /// The position in the chunk.
        position: usize,
        /// The token.
        token: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// The scorer broke its promise on lengths, order or number of rows.
    #[error("{side}: chunk {chunk}: expected {expected} logits for position {position}, found {found}")]
    Rows {
        /// The model.
        side: Side,
        /// The chunk.
        chunk: usize,
        /// The position whose row was due.
        position: usize,
        /// Tokens in the vocabulary.
        expected: usize,
        /// What came instead.
        found: String,
    },
    /// The model could not be evaluated.
    #[error("{side}: chunk {chunk} could not be evaluated")]
    Scorer {
        /// The model.
        side: Side,
        /// The chunk.
        chunk: usize,
        /// The model's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

pub(super) fn shown(token: Option<u32>) -> String {
    token.map_or("absent".to_owned(), |token| token.to_string())
}

/// The smallest chunk in which something is scored: n_ctx − 1 − n_ctx/2 ≥ 1.
pub(super) const MIN_CHUNK: usize = 3;
