//! Smoke inference: what a file answers, in this process, as llama.cpp computes it.
//!
//! [`Transformer::load`] maps the weights of a model of one of the [`architectures`], [`Session`]
//! keeps the keys and values of one conversation, [`Sequences`] those of several, and [`generate`]
//! continues one. Weights are multiplied in the type they are stored in, with activations rounded
//! as ggml rounds them ([`quants`](crate::quants)); rows of types without a kernel are decoded on
//! the way. Nothing is expanded in memory.

mod architecture;
mod attention;
mod cache;
mod engine;
mod error;
mod feed_forward;
mod generate;
mod hyperparameters;
mod importance;
mod keys;
mod linear;
mod llama_cpp;
mod lora;
mod matrix;
#[cfg(test)]
mod mutants;
mod ops;
mod recommended;
mod rope;
mod sample;
mod sequences;
mod session;
mod shape;
mod transformer;
mod weights;

pub use architecture::architectures;
pub use engine::{Engine, Fed, Host};
pub use error::Error;
pub use generate::{End, Generated, generate};
pub use hyperparameters::{Hyperparameters, RopeParameters, Scales, Temperature};
pub use importance::{Gathering, gather_importance};
pub use llama_cpp::{COMMAND as LLAMA_CPP_COMMAND, HAS_LLAMA_CPP, LlamaCpp, serve_llama_cpp};
pub use lora::LoraFile;
pub use recommended::Recommended;
pub use sample::{Sampler, Sampling};
pub use sequences::Sequences;
pub use session::Session;
pub use transformer::Transformer;
