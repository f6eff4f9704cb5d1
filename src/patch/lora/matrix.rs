//! A tensor of an adapter, and the shapes of its factors.

use crate::ggml::GgmlType;
use crate::gguf::TensorSpec;
use crate::gguf::names::TOKEN_EMBEDDINGS;
use crate::patch::format::{LOW_RANK_A, LOW_RANK_B};
use crate::patch::{low_rank, rows};
use crate::plan::TensorPlan;

/// A tensor of an adapter: a matrix, or several in a stack.
#[derive(Debug)]
pub(super) struct Matrix {
    /// The position of the tensor in the plan.
    pub(super) tensor: usize,
    pub(super) name: String,
    pub(super) rank: usize,
    pub(super) row_len: u64,
    /// Rows of one matrix of the stack.
    pub(super) n_rows: u64,
    pub(super) n_matrices: u64,
    /// Whether factors change places, and one is turned over. llama.cpp takes rows of the first
    /// from token embeddings (src/llama-graph.cpp, `build_inp_embd`).
    pub(super) is_flipped: bool,
    /// What each column is multiplied by, from the change of the norm before the matrix.
    pub(super) gain: Option<Vec<f32>>,
}

impl Matrix {
    pub(super) fn new(tensor: usize, planned: &TensorPlan, rank: u32) -> Self {
        let at = |i: usize| planned.ne.get(i).copied().unwrap_or(1);
        let least = at(0).min(at(1)).min(rank.into());
        Matrix {
            tensor,
            name: planned.name.clone(),
            rank: least as usize,
            row_len: at(0),
            n_rows: at(1),
            n_matrices: at(2) * at(3),
            is_flipped: planned.name == TOKEN_EMBEDDINGS,
            gain: None,
        }
    }

    pub(super) fn need(&self) -> rows::Need<'_> {
        let factors = low_rank::needed_bytes(self.n_rows, self.row_len as usize, self.rank).unwrap_or(u64::MAX);
        // Their blocks, and a factor that is turned over.
        let blocks = (self.n_rows + self.row_len).saturating_mul(8 * self.rank as u64);
        let n_weights = self.row_len.saturating_mul(self.n_rows);
        rows::Need { tensor: &self.name, n_weights, bytes: factors.saturating_add(blocks) }
    }

    pub(super) fn ne(&self) -> Vec<u64> {
        let all = [self.row_len, self.n_rows, self.n_matrices];
        all[..if self.n_matrices > 1 { 3 } else { 2 }].to_vec()
    }

    /// Numbers in a row and rows of the first and the second factor, as they are stored.
    pub(super) fn shapes(&self) -> [(u64, u64); 2] {
        let rank = self.rank as u64;
        match self.is_flipped {
            true => [(rank, self.n_rows), (rank, self.row_len)],
            false => [(self.row_len, rank), (rank, self.n_rows)],
        }
    }

    pub(super) fn specs(&self, ty: GgmlType) -> [TensorSpec; 2] {
        let of = |suffix: &str, (row_len, n_rows): (u64, u64)| {
            let mut ne = vec![row_len, n_rows];
            ne.extend((self.n_matrices > 1).then_some(self.n_matrices));
            TensorSpec { name: format!("{}{suffix}", self.name), ne, ty: type_for(ty, row_len) }
        };
        let [a, b] = self.shapes();
        [of(LOW_RANK_A, a), of(LOW_RANK_B, b)]
    }
}

/// The type for rows of this length.
pub(super) fn type_for(ty: GgmlType, row_len: u64) -> GgmlType {
    if row_len.is_multiple_of(ty.block_len() as u64) { ty } else { GgmlType::F16 }
}
