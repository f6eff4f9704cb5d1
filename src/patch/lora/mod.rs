//! LoRA adapters: the low-rank part of a vector, or of what rounding took from one, as a file that
//! llama.cpp adds to a model while it runs (`--lora`, `--lora-scaled`).
//!
//! For a matrix NAME of [in, out] the file has `NAME.lora_a` [in, r] and `NAME.lora_b` [r, out],
//! and llama.cpp computes `y = W x + s · alpha/r · B (A x)` (src/llama-adapter.cpp,
//! `llama_adapter_lora_init_impl`; src/llama-graph.cpp, `build_lora_mm`). `alpha` is the adapter's
//! largest rank; a matrix with less has it in its `lora_b`, so that every scale is 1.
//!
//! What it has no way to add is left out, and said to be ([`Left`]): norms and biases, matrices
//! that do not go through `build_lora_mm`, and both tables of tokens where the output is tied to
//! the embeddings: llama.cpp finds the adapter by the tensor's name, which is the same in both
//! uses, and the shapes fit but one.

// From the ground up: a file uses only those above it.
mod settings;
mod error;
mod place;
mod fit;
mod matrix;
mod norms;
mod adapter;
mod factors;
mod write;

pub use adapter::{Adapter, TYPE};
pub use error::Error;
pub use fit::Fit;
pub use place::{Left, Reason};
pub use settings::{FACTOR_TYPES, Settings};
pub use write::Written;
