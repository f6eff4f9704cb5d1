//! The search of the IQ2 and IQ3 encoders: a scale for each sub-block, and for each of its groups of codes the best point
//! of a grid.
//!
//! ggml takes one sub-block at a time (`quantize_row_iq2_xs_impl` and its like in ggml-quants.c):
//!
//! ```text
//! for each candidate scale
//!     for each group of 8 (or 4) weights
//!         round to codes
//!         if they are no point of the grid: take the neighbour with the least weighted distance
//!     sum over the weights of the sub-block; if the candidate is better, keep it
//! round once more with the best scale, fit the scale to the codes
//! ```
//!
//! Here the loops over groups and candidates have changed places. Nothing passes from one candidate to the next but
//! which was the best, so that the sums of all can be computed side by side and compared afterwards, in ggml's order.

use super::QK_K;
use super::grids::{Grid, Neighbours, Point};
use super::rounding::nearest_int;

/// Weights below this count as zero in IQ2_S and IQ3_XXS (`GROUP_MAX_EPS_IQ2_S`).
pub(super) const GROUP_MAX_EPS: f32 = 1e-8;

/// Weights of a super-block as the search wants them.
pub(super) struct Weights {
    /// Magnitudes; for types whose signs have even parity, one of a group may be negative.
    pub(super) x: [f32; QK_K],
    /// How much the error of each counts.
    pub(super) importance: [f32; QK_K],
    /// Square roots of `importance`, by which neighbours are chosen.
    pub(super) root: [f32; QK_K],
    /// The signs of 8 weights, lowest bit first; a set one is negative.
    pub(super) signs: [u8; QK_K / 8],
}

/// The mean square of the weights of a super-block, `times` a power of two.
pub(super) fn sigma2(w: &[f32; QK_K], times: f32) -> f32 {
    times * w.iter().fold(0.0, |sum, x| sum + x * x) / QK_K as f32
}

/// The importance that the IQ encoders make of that of the matrix.
pub(super) fn weigh(w: &[f32], matrix: &[f32], sigma2: f32, importance: &mut [f32]) {
    for ((importance, x), m) in importance.iter_mut().zip(w).zip(matrix) {
        *importance = m * (sigma2 + x * x).sqrt();
    }
}

impl Weights {
    /// Splits weights in magnitudes and signs.
    pub(super) fn new(w: &[f32; QK_K], importance: [f32; QK_K]) -> Self {
        let mut signs = [0; QK_K / 8];
        for (signs, w) in signs.iter_mut().zip(w.as_chunks::<8>().0) {
            for (i, &w) in w.iter().enumerate() {
                // A NaN is negative in ggml.
                *signs |= u8::from(!(w >= 0.0)) << i;
            }
        }
        let x = w.map(|w| if w >= 0.0 { w } else { -w });
        Self { x, root: importance.map(f32::sqrt), importance, signs }
    }

    /// Makes the number of negative signs in each group of 8 even, so that 7 bits tell them: where it is odd, the weight
    /// that matters least gets the wrong sign.
    pub(super) fn with_even_signs(mut self) -> Self {
        let groups = self.x.as_chunks_mut::<8>().0.iter_mut().zip(self.importance.as_chunks::<8>().0);
        for ((x, importance), signs) in groups.zip(&mut self.signs) {
            if signs.count_ones() % 2 == 0 {
                continue;
            }
            let cost = |i: usize| importance[i] * x[i] * x[i];
            let least = (1..8).fold(0, |least, i| if cost(i) < cost(least) { i } else { least });
            x[least] = -x[least];
            *signs ^= 1 << least;
        }
        self
    }

    /// Sub-block `at` of `N` weights.
    pub(super) fn sub_block<const N: usize>(&self, at: usize) -> SubBlock<'_, N> {
        SubBlock {
            x: &self.x.as_chunks().0[at],
            importance: &self.importance.as_chunks().0[at],
            root: &self.root.as_chunks().0[at],
        }
    }
}

/// The `N` weights that share a scale.
#[derive(Clone, Copy)]
pub(super) struct SubBlock<'a, const N: usize> {
    pub(super) x: &'a [f32; N],
    pub(super) importance: &'a [f32; N],
    root: &'a [f32; N],
}

impl<const N: usize> SubBlock<'_, N> {
    pub(super) fn max(&self) -> f32 {
        self.x.iter().fold(self.x[0], |max, &x| if max > x { max } else { x })
    }
}

/// The scales that are tried.
pub(super) struct Candidates {
    /// On either side of the one in the middle.
    pub(super) n_beside: i8,
    /// From one to the next, in units of half a code.
    pub(super) step: f32,
    /// Which groups are rounded again once the scale is known.
    pub(super) again: Again,
}

/// Which groups of a sub-block are rounded again for the best candidate's scale, fitted to its codes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// Every one.
    All,
    /// Those that were off the grid in the best candidate.
    OffGrid,
    /// Every one if any was off the grid, or no candidate was good.
    AllIfOffGrid,
}

/// Groups of a sub-block, at most: 32 weights by 4.
const MAX_GROUPS: usize = 8;

/// What a search found for a sub-block.
pub(super) struct Found {
    /// Of codes 2·l + 1.
    pub(super) scale: f32,
    /// One for each group, as many as there are.
    pub(super) points: [Point; MAX_GROUPS],
}

/// The best scale and points for a sub-block. `span` is what the largest odd code is tried for, and `scale` what it is if
/// all candidates fail.
pub(super) fn search<const N: usize, const DIM: usize>(
    neighbours: &Neighbours,
    weights: SubBlock<'_, N>,
    candidates: &Candidates,
    span: f32,
    scale: f32,
) -> Found {
    let n_groups = N / DIM;
    let all = (1u32 << n_groups) - 1;
    let mut found = Found { scale, points: [0; MAX_GROUPS] };
    let mut off_grid = if candidates.again == Again::OffGrid { 0 } else { all };
    let mut best = 0.0;
    for at in -candidates.n_beside..=candidates.n_beside {
        let id = ((2 * Grid::<DIM>::N_CODES - 1) as f32 + f32::from(at) * candidates.step) / span;
        let mut trial = [0; MAX_GROUPS];
        let mut trial_off_grid = 0;
        for (k, trial) in trial.iter_mut().enumerate().take(n_groups) {
            let (point, is_off_grid) = nearest_point::<N, DIM>(neighbours, weights, k, id, 1.0 / id);
            *trial = point;
            trial_off_grid |= u32::from(is_off_grid) << k;
        }
        let (sumqx, sumq2) = sums::<N, DIM>(weights, &trial);
        if sumq2 > 0.0 && sumqx * sumqx > best * sumq2 {
            found = Found { scale: sumqx / sumq2, points: trial };
            best = found.scale * sumqx;
            off_grid = trial_off_grid;
        }
    }

    let again = match candidates.again {
        Again::All => all,
        Again::OffGrid => off_grid,
        Again::AllIfOffGrid if off_grid == 0 => 0,
        Again::AllIfOffGrid => all,
    };
    if again != 0 && found.scale > 0.0 {
        let id = 1.0 / found.scale;
        for (k, point) in found.points.iter_mut().enumerate().take(n_groups).filter(|(k, _)| again >> k & 1 != 0) {
            *point = nearest_point::<N, DIM>(neighbours, weights, k, id, found.scale).0;
        }
        let (sumqx, sumq2) = sums::<N, DIM>(weights, &found.points);
        if sumq2 > 0.0 {
            found.scale = sumqx / sumq2;
        }
    }
    found
}

/// The point for group `k` at inverse scale `id`, and whether rounding alone did not lead to it.
fn nearest_point<const N: usize, const DIM: usize>(
    neighbours: &Neighbours,
    weights: SubBlock<'_, N>,
    k: usize,
    id: f32,
    scale: f32,
) -> (Point, bool) {
    let x = &weights.x.as_chunks::<DIM>().0[k];
    let mut rounded = 0;
    for (i, x) in x.iter().enumerate() {
        let l = nearest_int(0.5 * (id * x - 1.0)).clamp(0, Grid::<DIM>::N_CODES - 1);
        rounded |= (l as Point) << (Grid::<DIM>::BITS * i as u32);
    }
    let near = neighbours.of(rounded);
    if near.is_empty() {
        return (rounded, false);
    }
    let root = &weights.root.as_chunks::<DIM>().0[k];
    let mut errors = [[0.0; 8]; DIM];
    for ((errors, x), root) in errors.iter_mut().zip(x).zip(root) {
        for (error, q) in errors.iter_mut().zip([1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0]) {
            let difference = scale * q - x;
            *error = root * difference * difference;
        }
    }
    let (mut best, mut best_error) = (near[0], f32::MAX);
    for &point in near {
        let mut error = 0.0;
        for (errors, code) in errors.iter().zip(Grid::<DIM>::codes(point)) {
            error += errors[usize::from(code)];
        }
        if error < best_error {
            (best, best_error) = (point, error);
        }
    }
    (best, true)
}

/// `sumqx` and `sumq2` of ggml for the points of a sub-block.
fn sums<const N: usize, const DIM: usize>(weights: SubBlock<'_, N>, points: &[Point; MAX_GROUPS]) -> (f32, f32) {
    let (mut sumqx, mut sumq2) = (0.0, 0.0);
    let groups = weights.x.as_chunks::<DIM>().0.iter().zip(weights.importance.as_chunks::<DIM>().0);
    for ((x, importance), &point) in groups.zip(points) {
        for ((x, w), code) in x.iter().zip(importance).zip(Grid::<DIM>::codes(point)) {
            let q = f32::from(2 * code + 1);
            sumqx += w * x * q;
            sumq2 += w * q * q;
        }
    }
    (sumqx, sumq2)
}

/// The code of a sub-block's scale, in units of half the super-block's: the scale is (code + ½).
pub(super) fn scale_code(scale: f32, id: f32, highest: i32) -> u8 {
    nearest_int(0.5 * (id * scale - 1.0)).clamp(0, highest) as u8
}

/// What the scales of a super-block count if the largest has code `highest`, and its inverse; none if all are zero.
pub(super) fn unit(scales: &[f32], highest: f32) -> Option<(f32, f32)> {
    let max = scales.iter().fold(0.0f32, |max, &scale| if max > scale { max } else { scale });
    let d = max / highest;
    (max != 0.0).then_some((d, 1.0 / d))
}

/// Eight signs of even number from the first seven (`ksigns_iq2xs`).
#[inline(always)]
pub(super) fn even_signs(seven: u32) -> u8 {
    let seven = seven as u8 & 0x7f;
    seven | ((seven.count_ones() & 1) << 7) as u8
}

/// Weights of magnitude `scale`·value; a set bit of `signs` makes one negative.
#[inline(always)]
pub(super) fn signed<const N: usize>(values: &[i8; N], scale: f32, signs: u8, w: &mut [f32; N]) {
    for (i, (w, &value)) in w.iter_mut().zip(values).enumerate() {
        let magnitude = scale * f32::from(value);
        *w = f32::from_bits(magnitude.to_bits() ^ u32::from(signs >> i & 1) << 31);
    }
}
