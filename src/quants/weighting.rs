//! How much the error of each weight counts in a search.

use super::batch::{Batch, group, sums_of_squares};
use super::simd::{Floats, LANES, Simd};

/// How much each weight's error counts.
#[derive(Clone, Copy)]
pub(super) enum Weighting {
    /// As its size.
    Size,
    /// As its size, plus the root mean square of the sub-block.
    SizeAndRms,
    /// As its square.
    Square,
    /// As its importance times √(w² + s·`times`/`over`), where s is the sum of squares of its
    /// block.
    Importance { times: f32, over: f32 },
    /// As its importance times √(w² + mean square of its row).
    ImportanceInRow,
    /// As its importance.
    ImportanceAlone,
}

/// How much errors count, for the runs of `SUB` weights of a batch.
pub(super) struct ErrorWeights<'a, const LEN: usize, const SUB: usize> {
    weighting: Weighting,
    importance: &'a [[f32; SUB]],
    /// What is added to squares, by block.
    sigma2: [f32; LANES],
}

impl<'a, const LEN: usize, const SUB: usize> ErrorWeights<'a, LEN, SUB> {
    #[inline(always)]
    pub(super) fn new<S: Simd>(simd: S, batch: Batch<'a, LEN>, weighting: Weighting) -> Self {
        let sigma2 = match weighting {
            Weighting::Importance { times, over } => {
                let sum_x2 = sums_of_squares(simd, batch.x.as_flattened(), LEN);
                (simd.splat(times) * sum_x2 / simd.splat(over)).to_array()
            }
            _ => batch.mean_squares,
        };
        Self { weighting, importance: batch.importance.unwrap_or_default().as_flattened().as_chunks().0, sigma2 }
    }

    /// Those of group `i`, whose weights are `x`.
    #[inline(always)]
    pub(super) fn of<S: Simd>(&self, simd: S, x: &[S::F; SUB], i: usize) -> [S::F; SUB] {
        let mut weights = *x;
        let importance = || group(simd, &self.importance[i * LANES..self.importance.len().min((i + 1) * LANES)]);
        match self.weighting {
            Weighting::Size => {
                for weight in &mut weights {
                    *weight = weight.abs();
                }
            }
            Weighting::SizeAndRms => {
                let mut sum_x2 = simd.splat(0.0);
                for &x in x {
                    sum_x2 = sum_x2 + x * x;
                }
                let rms = (sum_x2 / simd.splat(SUB as f32)).sqrt();
                for weight in &mut weights {
                    *weight = rms + weight.abs();
                }
            }
            Weighting::Square => {
                for weight in &mut weights {
                    *weight = *weight * *weight;
                }
            }
            Weighting::Importance { .. } | Weighting::ImportanceInRow => {
                let sigma2: [f32; LANES] = std::array::from_fn(|lane| self.sigma2[(i * LANES + lane) * SUB / LEN]);
                let sigma2 = simd.load(&sigma2);
                for (weight, importance) in weights.iter_mut().zip(importance()) {
                    *weight = importance * (sigma2 + *weight * *weight).sqrt();
                }
            }
            Weighting::ImportanceAlone => weights = importance(),
        }
        weights
    }
}

/// Lane by lane, from the first to the last.
#[inline(always)]
pub(super) fn sum<S: Simd, const N: usize>(simd: S, x: &[S::F; N]) -> S::F {
    let mut sum = simd.splat(0.0);
    for &x in x {
        sum = sum + x;
    }
    sum
}
