//! The codec, the types of `quantize` and inference against the real ggml and llama.cpp, which are compiled
//! in.
//!
//! `cargo test --release -p oracle`. Two variables make it long (docs/PERFORMANCE.md has what was
//! found): `CHATVEC_ORACLE_WEIGHTS` is the number of weights of each distribution,
//! `CHATVEC_ORACLE_MODELS=full` makes the synthetic models those of about 20 million weights, for
//! every file type.

mod codec;
mod distributions;
// Smoke and compare with llama.cpp in its process: answers, adapters, crashes, ends.
mod engine;
// The built-in engine beside llama.cpp, on models of every family.
mod families;
mod ggml;
mod quantize;
#[path = "../integration/support.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "shared with the tests of the crate, which use all of it")]
mod support;
mod synthetic;
