//! Chat vectors on GGUF files.

pub mod ggml;
pub mod gguf;
pub mod quants;
