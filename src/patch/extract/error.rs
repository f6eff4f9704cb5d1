//! Why no patch of decomposed matrices was made.

use std::io;
use std::path::PathBuf;

use crate::gguf;
use crate::imatrix;
use crate::patch::low_rank;
use crate::pipeline;
use crate::plan;

/// Why no patch was made; nothing is left of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The container.
    #[error(transparent)]
    Container(#[from] gguf::Error),
    /// The planner.
    #[error(transparent)]
    Plan(#[from] plan::Error),
    /// Reading base and chat, or memory for it.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    /// An importance matrix that is not these models'.
    #[error(transparent)]
    Importance(#[from] imatrix::Error),
    /// A matrix that cannot be decomposed.
    #[error("tensor {tensor} cannot be decomposed")]
    Decomposition {
        /// The tensor.
        tensor: String,
        /// Why.
        source: low_rank::Error<pipeline::Error>,
    },
    /// Factors that F16 cannot hold.
    #[error("the factors of tensor {tensor} are beyond the range of F16; give --encoding svd:BITS")]
    Range {
        /// The tensor.
        tensor: String,
    },
    /// The temporary file for singular vectors, or the compressor.
    #[error("cannot keep singular vectors beside {}", path.display())]
    Spill {
        /// The output.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A size that not even the rest of the file fits in.
    #[error("a patch of {asked} bytes is impossible: without any decomposed matrix it takes {least}; ask for more")]
    Size {
        /// Bytes asked for: of the file, or of its matrices.
        asked: u64,
        /// Bytes that it takes at least.
        least: u64,
    },
    /// A size that is none.
    #[error("{} bits per weight make no patch; ask for more than 0 and at most 16", if *bits < 1e6 { bits.to_string() } else { format!("{bits:.1e}") })]
    Bits {
        /// The bits asked for.
        bits: f64,
    },
}
