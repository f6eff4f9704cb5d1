//! Chat vectors on GGUF files: give a language model a chat in its own language.
//!
//! A chat vector is τ = chat − base, weight by weight (Huang et al., ACL 2024, arXiv 2310.04799).
//! Added to a model that was continually pre-trained on another language, it makes that model
//! follow instructions and hold a conversation in that language, without training:
//!
//! ```text
//! base.gguf ──┐
//!             ├─ τ = chat − base ──┐
//! chat.gguf ──┘                    ├─ merged = model + Σ ratio · τ ──> out.gguf
//! model.gguf (continual-pretrained)┘
//! ```
//!
//! # The map
//!
//! In reading order; a module uses only those above it, which a test holds.
//!
//! | module | its one job |
//! |---|---|
//! | [`ggml`] | the type table: id, name, weights and bytes of a block |
//! | [`pool`] | threads: every loop that runs on several of them |
//! | [`gguf`] | the container: bytes ↔ ordered metadata and tensor infos; rows by position; split sets; the writer |
//! | [`quants`] | the codec: rows of f32 ↔ blocks, to ggml's bits |
//! | [`imatrix`] | importance matrices: which weights' errors matter |
//! | [`chat`] | what the metadata says about talking, and moving it from one model to another |
//! | [`vector`] | the algebra: what is added to what, and its rows |
//! | [`survey`] | looking at weights before deciding: a sample of what is added, what looks wrong |
//! | [`plan`] | headers and a recipe → everything about the output, before a weight is read |
//! | [`pipeline`] | carrying a plan out under a byte budget, and measuring |
//! | [`patch`] | a vector on its own, in a file |
//! | [`infer`] | smoke inference: what a file answers |
//! | [`eval`] | judging models: answers, KL divergence, perplexity, differences of weights |
//! | [`job`] | what a run is: its stages, what it refuses, how it ends |
//! | [`report`] | results as text and JSON |
//! | [`cli`] | the command |
//!
//! Follow one merge through it: [`gguf::Model::open`] reads three headers, [`plan::check`] asks
//! whether they are siblings, [`vector::pair`] finds what is added to each tensor,
//! [`plan::MergePlan::merge`] decides, [`survey::survey`] looks at a sample of what that will give,
//! and [`pipeline::write()`] does it.
//!
//! # Example
//!
//! ```
//! use chatvec::gguf::{Limits, Model, WriteOptions};
//! use chatvec::pipeline::{self, Budget};
//! use chatvec::plan::{self, LossPolicy, MergePlan, OutputType, Recipe};
//! use chatvec::survey;
//! use chatvec::vector::{self, Inputs};
//!
//! let open = |name: &str| {
//!     let path = format!("fixtures/models/tinyworld-A-{name}-F16.gguf");
//!     Model::open(path.as_ref(), &Limits::default())
//! };
//! let inputs = Inputs::merge(open("cp-de")?, open("base")?, open("chat")?, 1.0);
//! plan::check(&inputs)?;
//! let pairs = vector::pair(&inputs)?;
//! let recipe = Recipe { output: OutputType::parse("Q8_0", false)?, ..Recipe::default() };
//! let special = survey::special_tokens(&inputs, recipe.talker(&inputs, &pairs))?;
//! let plan = MergePlan::merge(&inputs, pairs, &recipe, special.as_ref())?;
//!
//! let folder = tempfile::tempdir()?;
//! let out = folder.path().join("merged.gguf");
//! let written = pipeline::write(&plan, &inputs, &out, &WriteOptions::default(), &(), &Budget::default())?;
//! assert!(written.measured.total.survival().is_some_and(|s| s > 0.99));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What the library promises
//!
//! It neither prints nor exits, and no input makes it panic. The same inputs and options give the
//! same bytes, whatever the number of threads, the budget or the processor. An output appears under
//! its name complete or not at all.

// In the order of the map, not of the alphabet.
pub mod ggml;
pub mod pool;
pub mod gguf;
pub mod quants;
pub mod imatrix;
pub mod chat;
pub mod vector;
pub mod survey;
pub mod plan;
pub mod pipeline;
pub mod patch;
pub mod infer;
pub mod eval;
pub mod job;
pub mod report;
pub mod cli;
