//! Why a run ended early.

use crate::ggml::GgmlType;
use crate::pool::NoThreads;
use crate::{gguf, plan, vector};

/// Why a run ended early. The sink then holds parts of an output.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The sink, or a file that could not be read.
    #[error(transparent)]
    Container(#[from] gguf::Error),
    /// Weights that could not be had.
    #[error(transparent)]
    Source(#[from] vector::Error),
    /// No plan for tensors that are to be encoded again.
    #[error(transparent)]
    Plan(#[from] plan::Error),
    /// A sum that the output cannot hold.
    #[error(
        "tensor {tensor}: weight {index} would be {value:e}, which {ty} cannot hold; {}",
        if value.is_finite() && *value != 0.0 { "write a type with more range (BF16 or F32)" } else { "use a smaller ratio" }
    )]
    Range {
        /// The tensor.
        tensor: String,
        /// Which weight, counted through the tensor with the row's direction fastest.
        index: u64,
        /// Its value in f32.
        value: f32,
        /// The output's type.
        ty: GgmlType,
    },
    /// A block that came out as no number because of its importance, as where all of it is 0.
    #[error(
        "tensor {tensor}: the block of weight {index} ({value:e}) cannot be encoded as {ty} with the importance it has; \
         leave the tensor out with --exclude-weights {tensor}"
    )]
    Importance {
        /// The tensor.
        tensor: String,
        /// Which weight, counted through the tensor with the row's direction fastest.
        index: u64,
        /// Its value in f32.
        value: f32,
        /// The output's type.
        ty: GgmlType,
    },
    /// The rows of a tensor do not fit in the budget.
    #[error(
        "tensor {tensor} needs {needed} bytes for its rows, more than the budget of {budget}; give --memory {needed} or more"
    )]
    Budget {
        /// The tensor.
        tensor: String,
        /// Bytes one worker needs for the smallest chunk of it.
        needed: u64,
        /// Bytes allowed.
        budget: u64,
    },
    /// The observer ended the run.
    #[error("interrupted; nothing is written")]
    Cancelled,
    /// The system gave no threads.
    #[error(transparent)]
    Threads(#[from] NoThreads),
}
