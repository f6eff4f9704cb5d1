//! The codec and the types of `quantize` against the real ggml and llama.cpp, which are compiled
//! in.
//!
//! `cargo test --release -p oracle`. Two variables make it long (docs/PERFORMANCE.md has what was
//! found): `CHATVEC_ORACLE_WEIGHTS` is the number of weights of each distribution,
//! `CHATVEC_ORACLE_MODELS=full` makes the synthetic models those of about 20 million weights, for
//! every file type.

mod codec;
mod distributions;
mod ggml;
mod quantize;
