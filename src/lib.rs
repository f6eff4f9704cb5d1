//! Chat vectors on GGUF files.

pub mod chat;
pub mod ggml;
pub mod gguf;
pub mod pipeline;
pub mod plan;
pub mod quants;
pub mod survey;
