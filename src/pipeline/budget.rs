//! What a run may use.

use crate::imatrix::ImportanceMatrix;
use crate::vector::Inputs;

/// What a run may use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Budget {
    /// Bytes for the buffers of all workers together and an importance matrix. Headers and
    /// vocabularies come on top (some megabytes a file).
    pub memory: u64,
    /// Workers; fewer run if the budget does not hold their buffers.
    pub threads: usize,
}

impl Default for Budget {
    /// 1 GiB, and a worker for each processor.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        Budget { memory: 1 << 30, threads }
    }
}

impl Budget {
    /// Bytes that are left for buffers.
    pub(super) fn memory_for_buffers(&self, inputs: &Inputs) -> u64 {
        self.memory.saturating_sub(importance_bytes(inputs))
    }
}

/// Bytes that the importance matrix takes; 0 without one.
pub(super) fn importance_bytes(inputs: &Inputs) -> u64 {
    inputs.importance().map_or(0, ImportanceMatrix::n_bytes)
}
