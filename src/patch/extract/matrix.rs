//! The matrices that are decomposed, and the plan of all others.

use super::error::Error;
use super::kinds::{bits_of_matrices, is_decomposed};
use super::target::Target;
use crate::patch::{low_rank, rows};
use crate::plan::{MergePlan, TensorPlan};
use crate::quants;

/// A matrix that is decomposed.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    /// The position of the tensor in the plan.
    pub(super) tensor: usize,
    pub(super) name: &'a str,
    pub(super) row_len: usize,
    pub(super) n_rows: usize,
    /// The largest rank that is looked for.
    pub(super) rank: usize,
    /// The most bits that the matrix is expected to have.
    pub(super) most_bits: f64,
}

impl Matrix<'_> {
    pub(super) fn shape(&self) -> (usize, usize) {
        (self.row_len, self.n_rows)
    }

    /// Numbers of both factors.
    pub(super) fn n_numbers(&self) -> u64 {
        ((self.n_rows + self.row_len) as u64).saturating_mul(self.rank as u64)
    }

    /// Bytes that finding and encoding the factors takes: factors in f32 and f64, their products,
    /// and H.
    pub(super) fn need(&self) -> rows::Need<'_> {
        let found = low_rank::needed_bytes(self.n_rows as u64, self.row_len, self.rank).unwrap_or(u64::MAX);
        let products = (self.rank as u64).pow(2).saturating_mul(32);
        let feedback = quants::Feedback::bytes_to_make(self.row_len as u64);
        // The side of the inputs takes more where an importance matrix weighs them.
        let encoded = self.n_numbers().saturating_mul(4 + 24 + 2).saturating_add(products).saturating_add(feedback);
        let n_weights = (self.n_rows as u64).saturating_mul(self.row_len as u64);
        rows::Need { tensor: self.name, n_weights, bytes: found.max(encoded) }
    }
}

/// The most bits that a matrix is taken to have, in those that it would have if all had as many for
/// each weight. On the bundled trio 1.35.
const MOST_BITS: f64 = 1.6;

/// The matrices of a plan that are decomposed.
pub(super) fn matrices(plan: &MergePlan, target: Target, n_weights: u64) -> Vec<Matrix<'_>> {
    let bits = bits_of_matrices(target, plan, n_weights, None).unwrap_or(0.0);
    let decomposed = plan.tensors().iter().enumerate().filter(|(_, t)| is_decomposed(t));
    let matrix = |(tensor, planned): (usize, &'_ TensorPlan)| {
        let (row_len, n_rows) = (planned.ne[0] as usize, planned.ne[1] as usize);
        let least = row_len.min(n_rows);
        let (rank, most_bits) = match target {
            Target::Rank(rank) => (rank.min(least), 0.0),
            // A number of a factor takes one bit at least.
            _ => (rank_for(bits, row_len, n_rows), MOST_BITS * bits * planned.n_weights() as f64),
        };
        (tensor, row_len, n_rows, rank, most_bits)
    };
    let named = |(tensor, row_len, n_rows, rank, most_bits): (usize, usize, usize, usize, f64)| {
        let name = &plan.tensors()[tensor].name;
        Matrix { tensor, name, row_len, n_rows, rank, most_bits }
    };
    decomposed.map(matrix).map(named).collect()
}

/// The largest rank that the bits could be spent on: a number of a factor takes one at least.
fn rank_for(bits: f64, row_len: usize, n_rows: usize) -> usize {
    let numbers = (row_len + n_rows).max(1) as f64;
    let rank = bits.max(0.0) * row_len as f64 * n_rows as f64 / numbers;
    (rank.ceil() as usize).max(8).min(row_len).min(n_rows)
}

/// The plan without these matrices.
pub(super) fn rest(plan: &MergePlan, matrices: &[Matrix<'_>]) -> Result<MergePlan, Error> {
    let is_decomposed = |i| matrices.binary_search_by_key(&i, |m| m.tensor).is_ok();
    let tensors = plan.tensors().iter().enumerate().filter(|(i, _)| !is_decomposed(*i));
    let tensors = tensors.map(|(_, tensor)| tensor.clone()).collect();
    Ok(MergePlan::from_parts(plan.header().metadata().clone(), tensors, Vec::new(), Vec::new())?)
}

#[cfg(test)]
mod tests {
    use super::rank_for;

    #[test]
    fn ranks_are_as_large_as_bits_could_be_spent_on() {
        assert_eq!(rank_for(1.0, 256, 768), 192);
        assert_eq!(rank_for(16.0, 256, 768), 256);
        assert_eq!(rank_for(0.001, 4, 768), 4);
    }
}
