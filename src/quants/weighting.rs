//! How much the error of each weight counts in a search.

use super::batch::{Batch, group, sums_of_squares};
use super::simd::{Floats, LANES, Simd};

/// What the error of a weight w is multiplied by.
#[derive(Clone, Copy)]
pub(super) enum Weighting {
    /// |w|.
    Size,
    /// |w| + the root mean square of the sub-block.
    SizeAndRms,
    /// w².
    Square,
    /// The importance of the weight times √(w² + s·`times`/`over`), where s is the sum of squares
    /// of its block.
    Importance { times: f32, over: f32 },
    /// The importance of the weight times √(w² + the mean square of its row).
    ImportanceInRow,
    /// The importance of the weight.
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

    /// The factors of the errors of group `i`, whose weights are `x`.
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
