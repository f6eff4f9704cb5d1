//! The executor: stream rows source → f32 → combine → blocks → sink.
//!
//! It decides nothing; the [`MergePlan`](crate::plan::MergePlan) has decided. It measures: for each
//! tensor the [`Moments`](crate::vector::Moments) from which norms, survival and noise follow.
//!
//! Work is cut into *chunks* of whole rows of one tensor. Each worker takes the next chunk, reads
//! its sources by position, computes, writes its output by position and reports sums. Nothing is
//! handed from one worker to another, so memory is what a worker needs, times workers, and bytes
//! are the same for any number of either:
//!
//! ```text
//! per chunk: read raw blocks of model, base, chat …      one positional read each
//!   per strip of about 4096 weights, whole rows:
//!     model, plus, minus → f32                           finite, or an error with tensor and index
//!     δ = ratio·(plus − minus), += for each further term f32, in recipe order
//!     out = model + δ                                    f32
//!     out → blocks                                       blocks with δ = ±0 of an unchanged type are copied; where the
//!                                                        plan says so, codes are chosen anew on the model's grid
//!     blocks → f32, add to the sums                      f64
//! write the chunk's blocks                               one positional write
//! ```
//!
//! Vectors of which weights are selected, as by TIES, are read before, to know which.

mod budget;
mod chunk;
mod error;
mod feedbacks;
mod layout;
mod lock;
mod mend;
mod observer;
mod prepare;
mod run;
mod segment;
mod sums;
mod tally;
mod write;

pub use budget::Budget;
pub use error::Error;
pub use mend::{Mended, hold_mending, write_mending};
pub use observer::{Observer, TensorSink};
pub use run::{Measured, TensorResult, measure, rehearse, run};
pub use sums::PlannedSums;
pub use write::{WrittenFile, write, write_unnamed};
