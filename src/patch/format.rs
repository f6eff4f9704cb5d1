//! The patch format: every key, name and word of a patch file, in the order of `docs/PATCH.md`.
//!
//! `NAME` stands for the name of a tensor of the model. τ is the vector, chat − base.

use crate::gguf::Metadata;

// Names of tensors. What has no ending is τ of `NAME` itself, in any type.

/// Ends the name of some rows of τ: those of the tokens that [`row_tokens_key`] lists.
pub const MOVED_ROWS: &str = ".rows";
/// Ends the name of the factor of a low-rank product that is multiplied with inputs.
pub const LOW_RANK_A: &str = ".lora_a";
/// Ends the name of the factor of a low-rank product that gives outputs.
pub const LOW_RANK_B: &str = ".lora_b";
/// Ends the name of a decomposition's scales, one for each direction, in F32.
pub const SVD_SCALES: &str = ".svd_d";
/// Ends the name of a decomposition's codes of inputs: a row for each direction, in zstd frames.
pub const SVD_A: &str = ".svd_a.zstd";
/// Ends the name of a decomposition's codes of outputs: a row for each direction, in zstd frames.
pub const SVD_B: &str = ".svd_b.zstd";
/// Ends the name of rows of the chat model: those of the tokens in [`SPECIAL_TOKENS`].
pub const SPECIAL_ROWS: &str = ".special_rows";
/// Ends the name of rows of the base: those of the tokens in [`BASE_TOKENS`].
pub const BASE_ROWS: &str = ".base_rows";

// Keys, and the words that they hold.

/// Holds the kind of the file, [`TYPE`] (string).
pub const TYPE_KEY: &str = "general.type";
/// The kind of a patch.
pub const TYPE: &str = "chat-vector";
/// Holds the architecture of base and chat (string).
pub const ARCHITECTURE: &str = "general.architecture";
/// Holds the version of the format, [`PLAIN_VERSION`] or [`VERSION`] (uint32).
pub const VERSION_KEY: &str = "chatvec.patch.version";
/// The newest version. A file has it if a reader of an older one would compute something else: if
/// τ of a tensor is a difference of logarithms ([`LOGARITHMS`]) or of folded weights.
pub const VERSION: u32 = 2;
/// The version of all other files.
pub const PLAIN_VERSION: u32 = 1;
/// Lists the tensors whose τ is ln(chat / base) (string\[\]); absent if there are none.
pub const LOGARITHMS: &str = "chatvec.patch.logarithms";
/// Begins the keys that say how τ is folded: as the chat model is. Absent if it is not.
pub const FOLDS: &str = crate::vector::FOLD_KEYS;
/// Holds the encoding that was asked for (string): a type of ggml, or one of the next two.
pub const ENCODING: &str = "chatvec.patch.encoding";
/// The encoding of a patch whose matrices are quantised decompositions.
pub const SVD: &str = "svd";
/// The encoding of a patch whose matrices are low-rank products.
pub const LOW_RANK: &str = "lora";
// Keys that begin with `general.architecture` and a dot hold the base's hyperparameters.

/// Begins the keys of the sampling that the chat model's makers recommend.
pub const SAMPLING: &str = crate::chat::SAMPLING;
/// Begins the keys of the vocabulary, the chat templates and the end tokens: the chat model's.
pub const TOKENIZER: &str = "tokenizer.";
/// Lists the tensors of the vector (string\[\]), also those that are zero and left out.
pub const TENSORS: &str = "chatvec.patch.tensors";
/// Holds ‖base‖ of each of [`TENSORS`] (float32\[\]), of the rows that are stored.
pub const BASE_NORM: &str = "chatvec.patch.base_norm";
/// Holds ‖τ‖ of each of [`TENSORS`] (float32\[\]), of the rows that are stored.
pub const NORM: &str = "chatvec.patch.norm";
/// Holds ⟨stored, τ⟩ / ⟨τ, τ⟩ of each of [`TENSORS`] (float32\[\]); NaN where τ is zero.
pub const GAIN: &str = "chatvec.patch.gain";
/// Holds ‖stored − τ‖ / ‖τ‖ of each of [`TENSORS`] (float32\[\]); NaN where τ is zero.
pub const ERROR: &str = "chatvec.patch.error";
/// Holds the cosine of stored and τ of each of [`TENSORS`] (float32\[\]); NaN where τ is zero.
pub const COSINE: &str = "chatvec.patch.cosine";
/// Holds the hash of the base's tensor for each of [`TENSORS`] (string\[\]), in hexadecimal digits.
pub const BASE_HASHES: &str = "chatvec.patch.base_blake3";
/// Holds the hash of the chat's tensor for each of [`TENSORS`] (string\[\]), in hexadecimal digits.
pub const CHAT_HASHES: &str = "chatvec.patch.chat_blake3";
/// Begins the key of a tensor's [`MOVED_ROWS`]; the name of the tensor ends it.
pub const ROW_TOKENS: &str = "chatvec.patch.rows.";
/// Lists the matrices that are decomposed (string\[\]).
pub const SVD_TENSORS: &str = "chatvec.patch.svd.tensors";
/// Holds weights in a row, and rows, of each of [`SVD_TENSORS`] (uint32\[\]).
pub const SVD_SHAPES: &str = "chatvec.patch.svd.shapes";
/// Lists the tokens of all [`SPECIAL_ROWS`] (uint32\[\]): the chat's special tokens, ascending.
pub const SPECIAL_TOKENS: &str = "chatvec.patch.special_tokens";
/// Lists the tokens of all [`BASE_ROWS`] (uint32\[\]): special and some ordinary ones, ascending.
pub const BASE_TOKENS: &str = "chatvec.patch.base_tokens";
/// Lists the tokens that were placeholders in the base (uint32\[\]), ascending; absent if none were.
pub const RENAMED_TOKENS: &str = "chatvec.patch.renamed_tokens";
/// Holds what the base calls each of [`RENAMED_TOKENS`] (string\[\]).
pub const RENAMED_FROM: &str = "chatvec.patch.renamed_from";
/// Hold size, drift, gain and relative error of the whole vector, as in a merge (float64).
pub const MEASURED: [&str; 4] = crate::plan::MEASURED_KEYS;
/// Lists the hashes of the file's tensors (string\[\]), in their order, in hexadecimal digits.
pub const HASHES: &str = "chatvec.blake3";
/// Holds the hash of the header (string), taken with zeros in its place.
pub const HEADER_HASH: &str = "chatvec.header_blake3";
/// Holds the version of ggml's quantised types (uint32).
pub const QUANTIZATION: &str = "general.quantization_version";

// `general.base_model.N.*` hold what base (0) and chat (1) say of themselves: `plan::base_models`.

/// Hold what the chat model says of itself, if it does.
pub const OF_CHAT: [&str; 5] =
    ["general.name", "general.license", "general.license.name", "general.license.link", "general.languages"];

// Rules of naming.

/// Whether the metadata are those of a patch.
pub fn is_patch(metadata: &Metadata) -> bool {
    metadata.get_str(TYPE_KEY).is_some_and(|found| found == TYPE)
}

/// The key that lists the tokens of `NAME.rows` (uint32\[\]), ascending.
pub fn row_tokens_key(name: &str) -> String {
    format!("{ROW_TOKENS}{name}")
}

/// `NAME`, of a tensor that is all or [some rows](MOVED_ROWS) of it.
pub fn whole_name(name: &str) -> &str {
    name.strip_suffix(MOVED_ROWS).unwrap_or(name)
}

/// `NAME` and the ending, of some rows or of a factor.
pub fn part(name: &str) -> Option<(&str, &'static str)> {
    [LOW_RANK_A, LOW_RANK_B, MOVED_ROWS].into_iter().find_map(|end| Some((name.strip_suffix(end)?, end)))
}

/// `NAME`, of a part of a decomposition.
pub fn decomposed_name(name: &str) -> Option<&str> {
    [SVD_SCALES, SVD_A, SVD_B].iter().find_map(|end| name.strip_suffix(end))
}

/// Whether a tensor has rows of the chat model or the base, which are no part of the vector.
pub fn is_beside(name: &str) -> bool {
    [SPECIAL_ROWS, BASE_ROWS].iter().any(|end| name.ends_with(end))
}
