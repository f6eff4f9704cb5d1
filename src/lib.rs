//! Chat vectors on GGUF files.

pub mod chat;
pub mod cli;
pub mod ggml;
pub mod gguf;
pub mod patch;
pub mod pipeline;
pub mod plan;
pub mod quants;
pub mod report;
pub mod survey;
