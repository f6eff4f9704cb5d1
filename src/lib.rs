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
//! Follow one merge through it: [`gguf::Model::open`] reads three headers, and [`vector::Inputs`]
//! says what each file is for. [`job::Merge::prepare`] asks whether they are siblings
//! ([`plan::check`]), finds what is added to each tensor ([`vector::pair`]), decides
//! ([`plan::MergePlan::merge`]) and looks at a sample of what that will give ([`survey::survey`]).
//! [`job::Prepared::write`] carries the plan out ([`pipeline::write_mending`]), and
//! [`job::Written::judge`] says whether the output is good.
//!
//! # Examples
//!
//! A merge onto a 4-bit model, stage by stage. Rounding to the nearest would lose a part of the
//! vector, so codes of some tensors are chosen anew (dither); then the output is asked some prompts
//! before it gets its name:
//!
//! ```
//! use chatvec::eval::PromptSet;
//! use chatvec::gguf::{Limits, Model};
//! use chatvec::job::{Merge, Outcome, Quantize, Questions, Settings, SmokeTest};
//! use chatvec::pipeline::Budget;
//! use chatvec::plan::{OutputType, Recipe};
//! use chatvec::vector::Inputs;
//!
//! let open = |name: &str| {
//!     let path = format!("fixtures/models/tinyworld-A-{name}-F16.gguf");
//!     Model::open(path.as_ref(), &Limits::default())
//! };
//! let (folder, settings) = (tempfile::tempdir()?, Settings::new(Budget::default()));
//!
//! // The model as a user has it: in four bits.
//! let small = folder.path().join("cp-Q4_K.gguf");
//! let recipe = Recipe { output: OutputType::parse("Q4_K", true)?, ..Recipe::default() };
//! let inputs = Inputs::new(open("cp-de")?);
//! let quantize = Quantize { inputs: &inputs, recipe: &recipe, allows_requantize: false };
//! quantize.prepare(&settings)?.write(&small, &())?;
//!
//! let inputs = Inputs::merge(Model::open(&small, &Limits::default())?, open("base")?, open("chat")?, 1.0);
//! let set = PromptSet::load("fixtures/models/prompts-de.jsonl".as_ref())?;
//! let questions = Questions { set: Some(set), limit: Some(12), max_tokens: 56, ..Questions::default() };
//! let smoke = SmokeTest { questions, is_kept: false };
//! let recipe = Recipe::default();
//! let merge = Merge { smoke: Some(&smoke), ..Merge::new(&inputs, &recipe) };
//!
//! let prepared = merge.prepare(&folder.path().join("merged.gguf"), &settings)?;
//! prepared.cautions().iter().for_each(|caution| eprintln!("{caution}"));
//! assert!(!prepared.plan().protected().is_empty(), "tensors that are dithered");
//! let written = prepared.write(&())?;
//! assert!(written.measured().total.survival().is_some_and(|s| s > 0.9));
//! let judged = written.judge(&|_n_answered: usize| true)?;
//! assert_eq!(judged.outcome(), Outcome::Good);
//! assert!(judged.publish()?.file().path.ends_with("merged.gguf"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! One that is rejected. A twentieth of the vector is not enough to chat; the output is kept beside
//! its name, and each check says why:
//!
//! ```
//! use chatvec::eval::{PromptSet, Verdict};
//! use chatvec::gguf::{Limits, Model};
//! use chatvec::job::{Merge, Outcome, Questions, Settings, SmokeTest};
//! use chatvec::pipeline::Budget;
//! use chatvec::plan::Recipe;
//! use chatvec::vector::Inputs;
//!
//! let open = |name: &str| {
//!     let path = format!("fixtures/models/tinyworld-A-{name}-F16.gguf");
//!     Model::open(path.as_ref(), &Limits::default())
//! };
//! let (folder, settings) = (tempfile::tempdir()?, Settings::new(Budget::default()));
//! let inputs = Inputs::merge(open("cp-de")?, open("base")?, open("chat")?, 0.05);
//! let set = PromptSet::load("fixtures/models/prompts-de.jsonl".as_ref())?;
//! let questions = Questions { set: Some(set), limit: Some(12), max_tokens: 56, ..Questions::default() };
//! let (smoke, recipe) = (SmokeTest { questions, is_kept: false }, Recipe::default());
//! let merge = Merge { smoke: Some(&smoke), ..Merge::new(&inputs, &recipe) };
//!
//! let prepared = merge.prepare(&folder.path().join("merged.gguf"), &settings)?;
//! let judged = prepared.write(&())?.judge(&|_n_answered: usize| true)?;
//! assert_eq!(judged.outcome(), Outcome::DoesNotChat);
//! let talk = judged.talk().expect("it was asked");
//! for check in talk.judgement.checks.iter().filter(|check| check.verdict == Verdict::Fail) {
//!     eprintln!("{}: {}", check.name, check.message);
//! }
//! assert!(judged.publish()?.file().path.ends_with("merged.gguf.rejected"));
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
