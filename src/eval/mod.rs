//! Judging models.

mod compare;
mod kl;
mod statistics;
mod tensors;

pub use compare::{Comparison, Divergence, Error, Reference, Scorer, Side, Text, compare, perplexity, same_vocabulary};
pub use kl::Keep;
pub use statistics::Estimate;
pub use tensors::{
    Difference, NotCompared, PartDifference, Reason, Tau, TensorDifference, TensorTable, compare_tensors,
};
