//! The fast Walsh–Hadamard transform, and signs of columns: what folds of weights are made of.
//!
//! Both are exact but for the rounding of f32: a weight of a block of n is the sum of n products, by
//! log₂ n additions, so that it is off by at most about log₂(n) · 2⁻²⁴ of the block's norm. Equal
//! rows stay equal.

use crate::quants::{self, Loops};

/// The longest block of which a piece of a row holds whole ones.
pub(super) const LONGEST_BLOCK: u64 = 1 << 14;

/// Changes the signs of these columns; the first weight is that of column `first`, or of one that
/// is whole rows further.
pub(super) fn flip(signs: Option<&[bool]>, first: u64, weights: &mut [f32]) {
    let Some(signs) = signs.filter(|signs| !signs.is_empty()) else { return };
    let column = (first % signs.len() as u64) as usize;
    for (w, is_negative) in weights.iter_mut().zip(signs.iter().cycle().skip(column)) {
        *w = if *is_negative { -*w } else { *w };
    }
}

/// Multiplies each block with the normalised Hadamard matrix of Sylvester's order, which is its own
/// inverse.
pub(super) fn rotate(block_size: u64, weights: &mut [f32]) {
    let block = usize::try_from(block_size).unwrap_or(usize::MAX);
    debug_assert!(weights.len().is_multiple_of(block), "whole blocks");
    quants::vectorized(WalshHadamard { block, weights });
}

/// The fast Walsh–Hadamard transform of each block, normalised.
struct WalshHadamard<'a> {
    /// Weights of a block: a power of two.
    block: usize,
    weights: &'a mut [f32],
}

impl Loops for WalshHadamard<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let scale = 1.0 / (self.block as f32).sqrt();
        for block in self.weights.chunks_exact_mut(self.block) {
            let mut half = 1;
            while half < block.len() {
                for pair in block.chunks_exact_mut(2 * half) {
                    let (left, right) = pair.split_at_mut(half);
                    for (l, r) in left.iter_mut().zip(right) {
                        (*l, *r) = (*l + *r, *l - *r);
                    }
                }
                half *= 2;
            }
            block.iter_mut().for_each(|w| *w *= scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quants::{Level, vectorized_at};

    fn numbers(n: usize) -> Vec<f32> {
        (0..n as u32).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// Σ over a block by the matrix itself, in f64 (`load_tensors_hadamard`, src/llama-model.cpp).
    fn by_matrix(block: usize, x: &[f32]) -> Vec<f64> {
        let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        let row = |x: &[f32], j: usize| x.iter().enumerate().map(|(i, x)| f64::from(*x) * sign(i, j)).sum::<f64>();
        let all = x.chunks(block).flat_map(|x| (0..block).map(move |j| row(x, j) / (block as f64).sqrt()));
        all.collect()
    }

    #[test]
    fn a_block_is_multiplied_with_the_matrix() {
        for block in [1, 2, 8, 64, 512] {
            let x = numbers(1024);
            let mut found = x.clone();
            rotate(block as u64, &mut found);
            let worst = found.iter().zip(by_matrix(block, &x)).map(|(f, e)| (f64::from(*f) - e).abs());
            let bound = ((block as f64).log2() + 2.0) * (block as f64).sqrt() * 2f64.powi(-24);
            assert!(worst.fold(0.0, f64::max) <= bound, "{block}");
        }
    }

    #[test]
    fn every_level_turns_to_the_same_bits() {
        let turned = |level, block| {
            let mut weights = numbers(1024);
            vectorized_at(level, WalshHadamard { block, weights: &mut weights });
            weights.iter().map(|w| w.to_bits()).collect::<Vec<_>>()
        };
        for block in [1, 4, 16, 256, 1024] {
            for level in Level::available() {
                assert!(turned(level, block) == turned(Level::Scalar, block), "{block} at {level}");
            }
        }
    }

    #[test]
    fn signs_are_those_of_the_columns_wherever_a_piece_begins() {
        let signs = [false, true, true, false];
        let mut weights = vec![1.0; 6];
        flip(Some(&signs), 7, &mut weights);
        assert_eq!(weights, [1.0, 1.0, -1.0, -1.0, 1.0, 1.0]);
    }
}
