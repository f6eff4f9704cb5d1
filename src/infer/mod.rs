//! Smoke inference: what a file answers, in this process, as llama.cpp computes it.
//!
//! [`Transformer::load`] maps the weights of a `llama` or `qwen2` model, [`Session`] keeps the keys
//! and values of one conversation, and [`generate`] continues it. Weights are multiplied in the
//! type they are stored in, with activations rounded as ggml rounds them: by candle's dot products
//! (F32, Q8_0, Q4_0, K-quants), by the codec's own where candle has no vector code (F16, BF16,
//! Q4_1, Q5_0, Q5_1), and where neither fits by rows decoded on the way. Nothing is expanded in
//! memory.

mod error;
mod generate;
mod hyperparameters;
mod importance;
mod matrix;
mod ops;
mod rope;
mod sample;
mod session;
mod transformer;

pub use error::Error;
pub use generate::{End, Generated, generate};
pub use hyperparameters::{ARCHITECTURES, Hyperparameters};
pub use importance::{Gathering, gather_importance};
pub use sample::{Sampler, Sampling};
pub use session::Session;
pub use transformer::Transformer;
