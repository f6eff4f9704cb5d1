//! The search of the IQ2 and IQ3 encoders: a scale for each sub-block, and for each of its groups
//! of codes the best point of a grid.
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
//! Here the loops over groups and candidates have changed places. Nothing passes from one candidate
//! to the next but which was the best, so that the sums of all can be computed side by side and
//! compared afterwards, in ggml's order.

use super::QK_K;
use super::grids::{Grid, Neighbours, Point};
use super::rounding::{MAGIC, nearest_int};
use super::simd::{Floats, Ints, LANES, Mask, Simd};

/// Weights below this count as zero in IQ2_S and IQ3_XXS (`GROUP_MAX_EPS_IQ2_S`).
pub(super) const GROUP_MAX_EPS: f32 = 1e-8;

/// Weights of a super-block as the search wants them.
pub(super) struct SearchedWeights {
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
#[inline(always)]
pub(super) fn sigma2(w: &[f32; QK_K], times: f32) -> f32 {
    times * w.iter().fold(0.0, |sum, x| sum + x * x) / QK_K as f32
}

/// The importance that the IQ encoders make of that of the matrix.
#[inline(always)]
pub(super) fn weigh(w: &[f32], matrix: &[f32], sigma2: f32, importance: &mut [f32]) {
    for ((importance, x), m) in importance.iter_mut().zip(w).zip(matrix) {
        *importance = m * (sigma2 + x * x).sqrt();
    }
}

impl SearchedWeights {
    /// Splits weights in magnitudes and signs.
    #[inline(always)]
    pub(super) fn new(w: &[f32; QK_K], importance: [f32; QK_K]) -> Self {
        let mut signs = [0; QK_K / 8];
        for (signs, w) in signs.iter_mut().zip(w.as_chunks::<8>().0) {
            for (i, &w) in w.iter().enumerate() {
                // A NaN is negative in ggml.
                *signs |= u8::from(w < 0.0 || w.is_nan()) << i;
            }
        }
        let x = w.map(|w| if w >= 0.0 { w } else { -w });
        Self { x, root: importance.map(f32::sqrt), importance, signs }
    }

    /// Makes the number of negative signs in each group of 8 even, so that 7 bits tell them: where
    /// it is odd, the weight that matters least gets the wrong sign.
    #[inline(always)]
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
    #[inline(always)]
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
    #[inline(always)]
    pub(super) fn max(&self) -> f32 {
        self.x.iter().fold(self.x[0], |max, &x| if max > x { max } else { x })
    }
}

/// The scales that are tried.
pub(super) struct Candidates {
    /// How many scales lie on either side of the one in the middle; at most 15.
    pub(super) n_beside: i8,
    /// The step from one scale to the next, in units of half a code.
    pub(super) step: f32,
    /// Which groups are rounded again once the scale is known.
    pub(super) again: Again,
}

/// Which groups of a sub-block are rounded again for the best candidate's scale, fitted to its
/// codes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// Every group.
    All,
    /// The groups that were off the grid in the best candidate.
    OffGrid,
    /// Every group, if any was off the grid or no candidate was good.
    AllIfOffGrid,
}

/// Groups of a sub-block, at most: 32 weights by 4.
const MAX_GROUPS: usize = 8;

/// Vectors that hold a number for each candidate.
const MAX_VECTORS: usize = 2;

/// A number for each candidate.
type EachCandidate<T> = [[T; LANES]; MAX_VECTORS];

/// Candidates, or whatever else needs a neighbour, that share a vector, at most.
const MAX_TASKS: usize = 4;

/// What a search found for a sub-block.
pub(super) struct Found {
    /// The scale of codes 2·l + 1.
    pub(super) scale: f32,
    /// The point of each group; as many count as there are groups.
    pub(super) points: [Point; MAX_GROUPS],
}

/// The best scale and points for a sub-block. `span` is what the largest odd code is tried for, and
/// `scale` what it is if all candidates fail.
#[inline(always)]
#[expect(
    clippy::too_many_lines,
    reason = "one search: each step works on the arrays of those before it, which stay in registers"
)]
pub(super) fn search<S: Simd, const N: usize, const DIM: usize>(
    simd: S,
    neighbours: &Neighbours,
    weights: SubBlock<'_, N>,
    candidates: &Candidates,
    span: f32,
    scale: f32,
) -> Found {
    let n_groups = N / DIM;
    let n_candidates = 2 * usize::from(candidates.n_beside.unsigned_abs()) + 1;
    let n_vectors = n_candidates.div_ceil(LANES);

    let mut scales = [[0.0; LANES]; MAX_VECTORS];
    let mut rounded = [[[0; LANES]; MAX_VECTORS]; MAX_GROUPS];
    for v in 0..n_vectors {
        let first = (LANES * v) as i32 - i32::from(candidates.n_beside);
        let at = simd.load(&std::array::from_fn(|k| (first + k as i32) as f32));
        let highest = simd.splat((2 * Grid::<DIM>::N_CODES - 1) as f32);
        let id = (highest + at * simd.splat(candidates.step)) / simd.splat(span);
        scales[v] = (simd.splat(1.0) / id).to_array();
        for (x, rounded) in weights.x.as_chunks::<DIM>().0.iter().zip(&mut rounded) {
            rounded[v] = round_group(simd, x, id).to_array().map(|u| u as Point);
        }
    }

    let n_tasks = LANES / Grid::<DIM>::CHUNK;
    let mut trial = rounded;
    for (scales, at) in scales.as_flattened().chunks_exact(n_tasks).zip(0..).take(n_candidates.div_ceil(n_tasks)) {
        let odd_codes = spread::<S, DIM>(simd, scales) * odd_codes::<S, DIM>(simd);
        for (k, trial) in trial.iter_mut().enumerate().take(n_groups) {
            let tasks = &mut trial.as_flattened_mut()[n_tasks * at..][..n_tasks];
            let (x, root) = (&weights.x.as_chunks::<DIM>().0[k], &weights.root.as_chunks::<DIM>().0[k]);
            nearest(simd, neighbours, &errors(simd, x, root, odd_codes), tasks);
        }
    }

    let (mut sumqx, mut sumq2) = ([[0.0; LANES]; MAX_VECTORS], [[0.0; LANES]; MAX_VECTORS]);
    for v in 0..n_vectors {
        (sumqx[v], sumq2[v]) = candidate_sums::<S, N, DIM>(simd, weights, v, &trial);
    }

    let mut best: f32 = 0.0;
    let mut found = Found { scale, points: [0; MAX_GROUPS] };
    let mut chosen = None;
    for (at, (&sumqx, &sumq2)) in sumqx.as_flattened().iter().zip(sumq2.as_flattened()).enumerate().take(n_candidates) {
        if sumq2 > 0.0 && sumqx * sumqx > best * sumq2 {
            found.scale = sumqx / sumq2;
            best = found.scale * sumqx;
            chosen = Some(at);
        }
    }
    let all = (1u32 << n_groups) - 1;
    let mut off_grid = if candidates.again == Again::OffGrid { 0 } else { all };
    if let Some(at) = chosen {
        off_grid = 0;
        for (k, point) in found.points.iter_mut().enumerate().take(n_groups) {
            *point = trial[k].as_flattened()[at];
            let is_off_grid = neighbours.index(rounded[k].as_flattened()[at]).is_none();
            off_grid |= u32::from(is_off_grid) << k;
        }
    }

    let again = match candidates.again {
        Again::All => all,
        Again::OffGrid => off_grid,
        Again::AllIfOffGrid if off_grid == 0 => 0,
        Again::AllIfOffGrid => all,
    };
    if again != 0 && found.scale > 0.0 {
        let id = simd.splat(1.0 / found.scale);
        let odd_codes = simd.splat(found.scale) * odd_codes::<S, DIM>(simd);
        for (k, point) in found.points.iter_mut().enumerate().take(n_groups) {
            if again >> k & 1 == 0 {
                continue;
            }
            let (x, root) = (&weights.x.as_chunks::<DIM>().0[k], &weights.root.as_chunks::<DIM>().0[k]);
            let mut tasks = [round_group(simd, x, id).to_array()[0] as Point; MAX_TASKS];
            nearest(simd, neighbours, &errors(simd, x, root, odd_codes), &mut tasks[..n_tasks]);
            *point = tasks[0];
        }
        let (sumqx, sumq2) = sums::<N, DIM>(weights, &found.points);
        if sumq2 > 0.0 {
            found.scale = sumqx / sumq2;
        }
    }
    found
}

/// Each scale in as many lanes as a task has.
#[inline(always)]
fn spread<S: Simd, const DIM: usize>(simd: S, scales: &[f32]) -> S::F {
    match *scales {
        [a, b, c, d] => simd.splat_quads(&[a, b, c, d]),
        [a, b] => simd.splat_halves(&[a, b]),
        _ => simd.splat(0.0),
    }
}

/// What the codes stand for, in the lanes of each task.
#[inline(always)]
fn odd_codes<S: Simd, const DIM: usize>(simd: S) -> S::F {
    let n = Grid::<DIM>::CHUNK;
    simd.load(&std::array::from_fn(|k| (2 * (k % n) + 1) as f32))
}

/// The codes of a group for the inverse scale of each lane, whether on the grid or not.
#[inline(always)]
fn round_group<S: Simd, const DIM: usize>(simd: S, x: &[f32; DIM], id: S::F) -> S::I {
    let (half, one) = (simd.splat(0.5), simd.splat(1.0));
    let (lowest, highest) = (simd.splat(0.0), simd.splat((Grid::<DIM>::N_CODES - 1) as f32));
    let mut point = lowest;
    let mut place = 1.0;
    for &x in x {
        let l = nearest_int_lanes(simd, half * (id * simd.splat(x) - one));
        // Whole numbers below 2¹⁶: exact.
        point = point + l.max(lowest).min(highest) * simd.splat(place);
        place *= (1 << Grid::<DIM>::BITS) as f32;
    }
    point.int()
}

/// [`nearest_int`] as a float, with what that makes of numbers too large.
#[inline(always)]
fn nearest_int_lanes<S: Simd>(simd: S, x: S::F) -> S::F {
    let magic = simd.splat(MAGIC);
    ((x + magic).bits() & simd.splat_int(0x007f_ffff) | simd.splat_int(0x4b00_0000)).float_of_bits() - magic
}

/// What each code adds to the weighted distance: vector i for place i of a group, in the lanes of
/// each task. `values` are what the codes stand for, times the scale.
#[inline(always)]
fn errors<S: Simd, const DIM: usize>(simd: S, x: &[f32; DIM], importance: &[f32; DIM], values: S::F) -> [S::F; DIM] {
    let mut errors = [values; DIM];
    for i in 0..DIM {
        let difference = values - simd.splat(x[i]);
        errors[i] = simd.splat(importance[i]) * difference * difference;
    }
    errors
}

/// Replaces the codes of each task by the neighbour with the least weighted distance, the first of
/// equals (`iq2_find_best_neighbour`, `iq3_find_best_neighbour`, `iq1_find_best_neighbour2`).
///
/// ggml squares and adds for each neighbour. But a code adds one of three (or eight) values, so
/// those come computed, and neighbours only look them up and add; which they do in ggml's order, a
/// neighbour a lane.
#[inline(always)]
pub(super) fn nearest<S: Simd, const DIM: usize>(
    simd: S,
    neighbours: &Neighbours,
    errors: &[S::F; DIM],
    tasks: &mut [Point],
) {
    let n = Grid::<DIM>::CHUNK;
    let mut near: [&[Point]; MAX_TASKS] = [&[]; MAX_TASKS];
    let mut n_chunks = 1;
    for (near, &mut task) in near.iter_mut().zip(&mut *tasks) {
        *near = neighbours.of(task);
        n_chunks = n_chunks.max(near.len() / n);
    }
    let mut best = simd.splat(f32::MAX);
    let mut best_points = simd.splat(0.0);
    for chunk in 0..n_chunks {
        let points = chunk_of::<S, DIM>(simd, &near, chunk);
        let mut error = lookup::<S, DIM>(points, errors[0]);
        for (i, &errors) in errors.iter().enumerate().skip(1) {
            error = error + lookup::<S, DIM>(points.shr(Grid::<DIM>::BITS * i as u32), errors);
        }
        let is_less = error.less(best);
        best = is_less.select(error, best);
        best_points = is_less.select(points.float_of_bits(), best_points);
    }
    let least = if DIM == 8 { best.least_of_quads() } else { best.least_of_halves() };
    let lanes = best.equal(least).bits();
    let best_points = best_points.bits().to_array();
    for (t, task) in tasks.iter_mut().enumerate() {
        let lanes = lanes >> (n * t) & ((1 << n) - 1);
        // Where lanes tie, the first has the first neighbour, unless they have it from different
        // chunks.
        if n_chunks == 1 || lanes.is_power_of_two() {
            *task = best_points[n * t + lanes.trailing_zeros() as usize % n] as Point;
        } else {
            *task = first_of(near[t], &best_points[n * t..][..n], lanes);
        }
    }
}

/// The first neighbour that is in one of the lanes; the first of all if the weights are NaN and no
/// lane has any.
#[cold]
fn first_of(near: &[Point], points: &[i32], lanes: u32) -> Point {
    let is_tied =
        |near: Point| (0..).zip(points).any(|(lane, &point)| lanes >> lane & 1 != 0 && point as Point == near);
    near.iter().copied().find(|&point| is_tied(point)).unwrap_or(near[0])
}

/// A chunk of the neighbours of each task; of those with fewer their last.
#[inline(always)]
fn chunk_of<S: Simd, const DIM: usize>(simd: S, near: &[&[Point]; MAX_TASKS], chunk: usize) -> S::I {
    if DIM == 8 {
        let of = |t: usize| &near[t].as_chunks::<4>().0[chunk.min(near[t].len() / 4 - 1)];
        simd.widen_quads([of(0), of(1), of(2), of(3)])
    } else {
        let of = |t: usize| &near[t].as_chunks::<8>().0[chunk.min(near[t].len() / 8 - 1)];
        simd.widen_halves([of(0), of(1)])
    }
}

#[inline(always)]
fn lookup<S: Simd, const DIM: usize>(code: S::I, table: S::F) -> S::F {
    if DIM == 8 { code.lookup_in_quads(table) } else { code.lookup_in_halves(table) }
}

/// `sumqx` and `sumq2` of ggml for vector `v` of candidates.
#[inline(always)]
fn candidate_sums<S: Simd, const N: usize, const DIM: usize>(
    simd: S,
    weights: SubBlock<'_, N>,
    v: usize,
    trial: &[EachCandidate<Point>; MAX_GROUPS],
) -> ([f32; LANES], [f32; LANES]) {
    let odd_codes = odd_codes::<S, DIM>(simd);
    let (mut sumqx, mut sumq2) = (simd.splat(0.0), simd.splat(0.0));
    let groups = weights.x.as_chunks::<DIM>().0.iter().zip(weights.importance.as_chunks::<DIM>().0);
    for ((x, importance), trial) in groups.zip(trial) {
        let [low, high] = trial[v].as_chunks::<8>().0 else { continue };
        let points = simd.widen_halves([low, high]);
        for i in 0..DIM {
            let q = lookup::<S, DIM>(points.shr(Grid::<DIM>::BITS * i as u32), odd_codes);
            sumqx = sumqx + simd.splat(importance[i] * x[i]) * q;
            sumq2 = sumq2 + simd.splat(importance[i]) * q * q;
        }
    }
    (sumqx.to_array(), sumq2.to_array())
}

/// `sumqx` and `sumq2` of ggml for the points of a sub-block.
#[inline(always)]
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
#[inline(always)]
pub(super) fn scale_code(scale: f32, id: f32, highest: i32) -> u8 {
    nearest_int(0.5 * (id * scale - 1.0)).clamp(0, highest) as u8
}

/// What the scales of a super-block count if the largest has code `highest`, and its inverse; none
/// if all are zero.
#[inline(always)]
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

/// The number that a block stores for a point of the grid.
#[inline(always)]
pub(super) fn number(neighbours: &Neighbours, point: Point) -> u16 {
    neighbours.index(point).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ggml::GgmlType;
    use crate::quants::{Level, dequantize_row, quantize_rows_at, requires_importance};

    const TYPES: [GgmlType; 7] = [
        GgmlType::IQ2_XXS,
        GgmlType::IQ2_XS,
        GgmlType::IQ3_XXS,
        GgmlType::IQ1_S,
        GgmlType::IQ3_S,
        GgmlType::IQ2_S,
        GgmlType::IQ1_M,
    ];

    /// Some numbers of every kind, from −1 to 1.
    fn noise(n: usize) -> Vec<f32> {
        let mut state = 0x9e37_79b9_u32;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as i32 as f32 / i32::MAX as f32
        };
        (0..n).map(|_| next()).collect()
    }

    fn inputs() -> Vec<Vec<f32>> {
        let noise = noise(4 * QK_K);
        let map = |f: &dyn Fn(usize, f32) -> f32| noise.iter().enumerate().map(|(i, &x)| f(i, x)).collect();
        vec![
            map(&|_, x| x * x * x),
            map(&|_, x| (x * 3.0).round() / 3.0),
            map(&|_, x| 0.5f32.copysign(x)),
            map(&|i, x| if i / 16 % 3 == 0 { 0.0 } else { x }),
            map(&|i, x| if i % 97 == 0 { 1e4 * x } else { 1e-3 * x }),
            map(&|_, x| x * 1e-39),
            map(&|i, _| if i % 2 == 0 { 0.0 } else { -0.0 }),
        ]
    }

    fn encode(level: Level, ty: GgmlType, x: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
        let mut blocks = vec![0xa5; x.len() / ty.block_len() * ty.block_size()];
        quantize_rows_at(level, ty, x, importance, &mut blocks).expect("whole blocks");
        blocks
    }

    #[test]
    fn every_level_gives_the_bytes_of_scalar_code() {
        let importance: Vec<f32> =
            noise(2 * QK_K).iter().enumerate().map(|(i, x)| if i % 7 == 0 { 0.0 } else { x * x }).collect();
        for ty in TYPES {
            for (n, x) in inputs().iter().enumerate() {
                for importance in [None, Some(&importance[..])] {
                    if importance.is_none() && requires_importance(ty) {
                        continue;
                    }
                    let expected = encode(Level::Scalar, ty, x, importance);
                    for level in Level::available() {
                        assert!(encode(level, ty, x, importance) == expected, "{ty}, {level}, input {n}");
                    }
                }
            }
        }
    }

    #[test]
    fn weights_and_importance_without_meaning_are_encoded_somehow() {
        let strange = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, -1.0, 0.0, -0.0];
        let strange: Vec<f32> = noise(2 * QK_K).iter().map(|x| strange[(x.to_bits() >> 5 & 7) as usize]).collect();
        for ty in TYPES {
            for level in Level::available() {
                for x in [&noise(2 * QK_K), &strange] {
                    let blocks = encode(level, ty, x, Some(&strange));
                    dequantize_row(ty, &blocks, &mut vec![0.0; x.len()]).expect("whole blocks");
                }
            }
        }
    }

    #[test]
    fn seven_signs_tell_the_eighth() {
        for seven in 0..128 {
            assert_eq!(even_signs(seven).count_ones() % 2, 0);
            assert_eq!(even_signs(seven) & 0x7f, seven as u8);
        }
    }
}
