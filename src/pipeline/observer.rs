//! Who takes what a run writes, and who watches it.

use crate::gguf;

/// Where the blocks of the output go, from any thread in any order, each byte once.
pub trait TensorSink: Sync {
    /// Takes bytes of a tensor (by its position in the plan), `offset` bytes after its start.
    ///
    /// # Errors
    /// Whatever the sink reports; the run then stops.
    fn write(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), gguf::Error>;
}

impl TensorSink for gguf::Writer {
    fn write(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), gguf::Error> {
        gguf::Writer::write(self, tensor, offset, bytes)
    }
}

/// Someone who watches a run and may end it.
pub trait Observer: Sync {
    /// `bytes` more of the output are written.
    fn written(&self, bytes: u64);

    /// Asked before each chunk: whether to stop.
    fn is_cancelled(&self) -> bool;

    /// From now on there is a file that has to be removed if the run does not end well. Said only
    /// by what may work for long before.
    fn has_begun(&self) {}
}

/// Watches nothing.
impl Observer for () {
    fn written(&self, _bytes: u64) {}

    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Takes what is written and forgets it.
pub(super) struct Nowhere;

impl TensorSink for Nowhere {
    fn write(&self, _tensor: usize, _offset: u64, _bytes: &[u8]) -> Result<(), gguf::Error> {
        Ok(())
    }
}
