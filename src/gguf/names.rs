//! Names of tensors that the code must know, as llama.cpp has them (src/llama-arch.cpp).

/// The matrix that gives a logit for each token. Files with tied embeddings do without it.
pub const OUTPUT: &str = "output.weight";
/// A number for each token that is added to its logit.
pub const OUTPUT_BIAS: &str = "output.bias";
/// The factor of [`OUTPUT`], which llama.cpp looks for beside NVFP4 alone.
pub const OUTPUT_SCALE: &str = "output.scale";
/// The factor of what [`OUTPUT`] is multiplied with.
pub const OUTPUT_INPUT_SCALE: &str = "output.input_scale";
/// A row for each token. It stands for [`OUTPUT`] where a file has none.
pub const TOKEN_EMBEDDINGS: &str = "token_embd.weight";
/// Rows of each token for each layer, in one tensor (Gemma 3n).
pub const PER_LAYER_EMBEDDINGS: &str = "per_layer_token_embd.weight";
