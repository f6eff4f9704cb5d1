//! How large a patch is to be.

use crate::vector::Inputs;

/// How large a patch may be.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Target {
    /// Bits for each weight of all matrices, embeddings among them; the header and vectors come on
    /// top.
    Bits(f64),
    /// Bytes of the file.
    Bytes(u64),
    /// No size, but factors of this rank in F16, for those who read no compressed ones.
    Rank(usize),
}

impl Target {
    /// Bytes of the file, or of its matrices.
    pub(super) fn limit(self, n_weights: u64) -> u64 {
        match self {
            Target::Bytes(bytes) => bytes,
            Target::Bits(bits) => (bits * n_weights as f64 / 8.0) as u64,
            Target::Rank(_) => u64::MAX,
        }
    }
}

/// Weights of all matrices of the chat model, also of rows that did not move.
pub(super) fn n_weights(inputs: &Inputs) -> u64 {
    inputs.source(inputs.skeleton()).tensors().filter(|t| t.n_dims() > 1).map(|t| t.n_weights()).sum()
}
