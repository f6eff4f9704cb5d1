//! Why there is no adapter.

use std::path::PathBuf;

use super::settings::FACTOR_TYPES;
use crate::ggml::GgmlType;
use crate::gguf;
use crate::imatrix;
use crate::patch::low_rank;
use crate::pipeline;

/// Why there is no adapter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The container.
    #[error(transparent)]
    Container(#[from] gguf::Error),
    /// The sums, or memory for them.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    /// An importance matrix that is not this model's.
    #[error(transparent)]
    Importance(#[from] imatrix::Error),
    /// A matrix that cannot be decomposed.
    #[error("tensor {tensor} has no low-rank part")]
    Decomposition {
        /// The tensor.
        tensor: String,
        /// Why.
        source: low_rank::Error<pipeline::Error>,
    },
    /// A factor that its type cannot hold.
    #[error("the factors of tensor {tensor} are beyond the range of {ty}; write them as F32")]
    Range {
        /// The tensor.
        tensor: String,
        /// The type of the factors.
        ty: GgmlType,
    },
    /// A type that factors cannot have.
    #[error("the factors of an adapter cannot be {ty}; known are {}", FACTOR_TYPES.map(GgmlType::name).join(", "))]
    Type {
        /// The type.
        ty: GgmlType,
    },
    /// A matrix that is folded: llama.cpp multiplies factors with activations as they are, before
    /// it folds those.
    #[error(
        "{}: tensor {tensor} is folded (key {key}), but an adapter multiplies with plain activations; make the adapter from \
         files with plain weights, or a patch", path.display()
    )]
    Folded {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The first of the file's keys that say so.
        key: String,
    },
    /// Nothing that an adapter could hold.
    #[error("an adapter would be empty: {reason}")]
    Empty {
        /// Why.
        reason: &'static str,
    },
}
