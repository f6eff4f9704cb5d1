//! Smoke inference: what a file answers, in this process, as llama.cpp computes it.
//!
//! [`Transformer::load`] maps the weights of a `llama` or `qwen2` model, [`Session`] keeps the keys and values of one
//! conversation, and [`generate`] continues it. Weights are multiplied in the type they are stored in: candle's dot
//! products with activations rounded to 8 bits (K-quants, Q4_0, Q8_0), to F16 or BF16, as ggml rounds them; the codec's own
//! where candle has no vector code; and rows decoded on the way for everything else. Nothing is expanded in memory.

mod error;
mod generate;
mod hyperparameters;
mod matrix;
mod ops;
mod rope;
mod sample;
mod session;
mod transformer;

pub use error::Error;
pub use generate::{End, Generated, generate};
pub use hyperparameters::{ARCHITECTURES, Hyperparameters};
pub use sample::{Sampler, Sampling};
pub use session::Session;
pub use transformer::Transformer;
