//! IQ1_S, IQ1_M: groups of 8 weights as points of a grid of signs and zeros, moved an eighth up or
//! down.
//!
//! | IQ1_S | field | meaning |
//! |---|---|---|
//! | 0..2 | `d` | f16: what the scales count |
//! | 2..34 | `qs` | for each group the low 8 bits of its point number |
//! | 34..50 | `qh` | for each 32 weights a u16: four times 3 high bits, a scale of 3 bits, 1 for down |
//!
//! | IQ1_M | field | meaning |
//! |---|---|---|
//! | 0..32 | `qs` | for each group the low 8 bits of its point number |
//! | 32..48 | `qh` | for each group 4 bits: 3 high bits, 1 for down |
//! | 48..56 | `scales` | four u16: four scales of 3 bits each, then 4 bits of `d`, the low ones first |
//!
//! w = (d·(2·scale + 1))·(value ± ⅛), where codes 0, 1 and 2 have values −1, 0 and 1. Encoders
//! `quantize_row_iq1_s_impl` and `quantize_row_iq1_m_impl`, decoders `dequantize_row_iq1_s` and
//! `dequantize_row_iq1_m` of ggml-quants.c.
//!
//! Both encoders sort the weights of a sub-block, with C's `qsort` by value alone. Where values are
//! equal, the order is up to the C library, and the sums and so the bytes depend on it. Here equal
//! values stay in their order, as they do with glibc, which merges arrays of this size in every
//! release.

use super::batch::{Batch, Encoder};
use super::float::{read_f16, write_f16};
use super::grids::{self, Neighbours, POINTS_IQ1, Point};
use super::lattice::{nearest, number, scale_code, sigma2, unit, weigh};
use super::simd::{Floats, Ints, LANES, Mask, Simd};
use super::{QK_K, REQUIRED, field, field_mut};

/// Weights of a group.
const DIM: usize = 8;

/// How far the points are moved (`IQ1S_DELTA`, `IQ1M_DELTA`).
const DELTA: f32 = 0.125;
/// What the codes of a group stand for, moved up or down.
const UP: [f32; 3] = [-1.0 + DELTA, DELTA, 1.0 + DELTA];
const DOWN: [f32; 3] = [-1.0 - DELTA, -DELTA, 1.0 - DELTA];

static VALUES: [[i8; DIM]; 2048] = grids::values(&POINTS_IQ1, [-1, 0, 1]);

pub(super) fn decode_s(block: &[u8; 50], w: &mut [f32; QK_K]) {
    let d = read_f16(field(block, 0));
    let (qs, qh): (&[u8; 32], &[u8; 16]) = (field(block, 2), field(block, 34));
    let sub_blocks = w.as_chunks_mut::<32>().0.iter_mut().zip(qs.as_chunks::<4>().0).zip(qh.as_chunks().0);
    for ((w, qs), qh) in sub_blocks {
        let qh = u16::from_le_bytes(*qh);
        let dl = d * f32::from(2 * (qh >> 12 & 7) + 1);
        for (k, (w, &q)) in w.as_chunks_mut().0.iter_mut().zip(qs).enumerate() {
            moved(usize::from(q) | usize::from(qh >> (3 * k) & 7) << 8, dl, qh & 0x8000 != 0, w);
        }
    }
}

pub(super) fn decode_m(block: &[u8; 56], w: &mut [f32; QK_K]) {
    let (qs, qh): (&[u8; 32], &[u8; 16]) = (field(block, 0), field(block, 32));
    let scales = scale_words(field(block, 48));
    let d = scales.iter().enumerate().fold(0, |d, (k, word)| d | (word >> 12) << (4 * k));
    let d = read_f16(&d.to_le_bytes());
    for (k, w) in w.as_chunks_mut().0.iter_mut().enumerate() {
        let dl = d * f32::from(2 * (scales[k / 8] >> (3 * (k / 2 % 4)) & 7) + 1);
        let high = qh[k / 2] >> (4 * (k % 2));
        moved(usize::from(qs[k]) | usize::from(high & 7) << 8, dl, high & 8 != 0, w);
    }
}

fn scale_words(bytes: &[u8; 8]) -> [u16; 4] {
    std::array::from_fn(|k| u16::from_le_bytes([bytes[2 * k], bytes[2 * k + 1]]))
}

#[inline(always)]
fn moved(number: usize, scale: f32, is_down: bool, w: &mut [f32; DIM]) {
    let delta = if is_down { -DELTA } else { DELTA };
    for (w, &value) in w.iter_mut().zip(&VALUES[number]) {
        *w = scale * (f32::from(value) + delta);
    }
}

/// The weights of a sub-block that count as zero (`GROUP_MAX_EPS_IQ1_S`, `GROUP_MAX_EPS_IQ1_M`).
const MAX_EPS_S: f32 = 1e-12;
const MAX_EPS_M: f32 = 1e-7;

pub(super) struct S;

impl Encoder<QK_K, 50> for S {
    #[inline(always)]
    fn encode<S: Simd>(simd: S, batch: Batch<'_, QK_K>, blocks: &mut [[u8; 50]]) {
        for ((w, matrix), block) in batch.each_block().zip(blocks) {
            encode_s(simd, w, matrix.expect(REQUIRED), block);
        }
    }
}

pub(super) struct M;

impl Encoder<QK_K, 56> for M {
    #[inline(always)]
    fn encode<S: Simd>(simd: S, batch: Batch<'_, QK_K>, blocks: &mut [[u8; 56]]) {
        for ((w, matrix), block) in batch.each_block().zip(blocks) {
            encode_m(simd, w, matrix, block);
        }
    }
}

#[inline(always)]
fn encode_s<S: Simd>(simd: S, w: &[f32; QK_K], matrix: &[f32; QK_K], block: &mut [u8; 50]) {
    const N: usize = 32;
    block.fill(0);
    let mut importance = [0.0; QK_K];
    weigh(w, matrix, sigma2(w, 2.0), &mut importance);
    let neighbours = grids::IQ1.neighbours();
    let mut fits = [SubBlockFit::default(); QK_K / N];
    for ((fit, x), importance) in fits.iter_mut().zip(w.as_chunks::<N>().0).zip(importance.as_chunks().0) {
        if farthest(x) >= MAX_EPS_S {
            let order = ascending(simd, x);
            *fit = SubBlockFit::new(&order, best_split_s(simd, x, importance, &order));
        }
    }
    let points = fit_to_grid(simd, neighbours, w, &importance, &mut fits);

    let scales = fits.map(|fit| fit.scale);
    // Without any scale ggml does not come to store which way the points are moved.
    let unit = unit(&scales, 15.0);
    if let Some((d, _)) = unit {
        write_f16(d * 1.125, field_mut(block, 0));
    }
    for (ib, (fit, points)) in fits.iter().zip(points.as_chunks::<{ N / DIM }>().0).enumerate() {
        let mut qh = match unit {
            Some((_, id)) => u16::from(scale_code(fit.scale, id, 7)) << 12 | u16::from(fit.down & 1) << 15,
            None => 0,
        };
        for (k, &point) in points.iter().enumerate() {
            let number = number(neighbours, point);
            block[2 + N / DIM * ib + k] = number as u8;
            qh |= number >> 8 << (3 * k);
        }
        *field_mut(block, 34 + 2 * ib) = qh.to_le_bytes();
    }
}

#[inline(always)]
fn encode_m<S: Simd>(simd: S, w: &[f32; QK_K], matrix: Option<&[f32; QK_K]>, block: &mut [u8; 56]) {
    const N: usize = 16;
    block.fill(0);
    let mut importance = [0.0; QK_K];
    match matrix {
        Some(matrix) => weigh(w, matrix, sigma2(w, 2.0), &mut importance),
        None => importance = w.map(|x| x * x),
    }
    let neighbours = grids::IQ1.neighbours();
    let mut fits = [SubBlockFit::default(); QK_K / N];
    for ((fit, x), importance) in fits.iter_mut().zip(w.as_chunks::<N>().0).zip(importance.as_chunks().0) {
        if farthest(x) >= MAX_EPS_M {
            let order = ascending(simd, x);
            *fit = SubBlockFit::new(&order, best_split_m(simd, x, importance, &order));
        }
    }
    let points = fit_to_grid(simd, neighbours, w, &importance, &mut fits);

    for (k, &point) in points.iter().enumerate() {
        let number = number(neighbours, point);
        block[k] = number as u8;
        block[32 + k / 2] |= (number >> 8 << (4 * (k % 2))) as u8;
    }
    // Without any scale ggml does not come to store which way the points are moved.
    let Some((mut d, id)) = unit(&fits.map(|fit| fit.scale), 15.0) else { return };
    let mut words = [0u16; 4];
    let (mut sumqx, mut sumq2) = (0.0, 0.0);
    for (ib, fit) in fits.iter().enumerate() {
        let l = scale_code(fit.scale, id, 7);
        words[ib / 4] |= u16::from(l) << (3 * (ib % 4));
        block[32 + ib] |= (fit.down & 1) << 3 | (fit.down >> 1 & 1) << 7;
        for (k, &point) in points.iter().enumerate().skip(2 * ib).take(2) {
            let values = values(fit.down >> (k % 2)).map(|value| value * f32::from(2 * l + 1));
            let (x, importance) = (&w.as_chunks::<DIM>().0[k], &importance.as_chunks::<DIM>().0[k]);
            for ((x, w), code) in x.iter().zip(importance).zip(codes(point)) {
                let q = values[usize::from(code)];
                sumqx += w * q * x;
                sumq2 += w * q * q;
            }
        }
    }
    if sumq2 > 0.0 {
        d = sumqx / sumq2;
    }
    let mut bytes = [0; 2];
    write_f16(d * 1.1125, &mut bytes);
    let d = u16::from_le_bytes(bytes);
    for (k, (out, word)) in field_mut::<8>(block, 48).as_chunks_mut().0.iter_mut().zip(words).enumerate() {
        *out = (word | (d >> (4 * k) & 0xf) << 12).to_le_bytes();
    }
}

#[inline(always)]
fn codes(point: Point) -> [u8; DIM] {
    grids::Grid::<DIM>::codes(point)
}

/// What codes stand for; code 3 is none.
#[inline(always)]
fn values(down: u8) -> [f32; 4] {
    let [a, b, c] = if down & 1 == 0 { UP } else { DOWN };
    [a, b, c, 0.0]
}

#[inline(always)]
fn farthest(x: &[f32]) -> f32 {
    x.iter().fold(x[0].abs(), |max, x| if max > x.abs() { max } else { x.abs() })
}

/// The places of the weights in ascending order; those of equal ones stay in theirs.
#[inline(always)]
fn ascending<S: Simd, const N: usize>(simd: S, x: &[f32; N]) -> [u8; N] {
    let mut order = [0; N];
    let mut taken = 0u32;
    for (v, own) in x.as_chunks::<LANES>().0.iter().enumerate() {
        let own = simd.load(own);
        let mut n_less = simd.splat(0.0);
        for &x in x {
            n_less = n_less + simd.splat(x).less(own).select(simd.splat(1.0), simd.splat(0.0));
        }
        for (k, n_less) in n_less.int().to_array().into_iter().enumerate() {
            let place = n_less as usize % N;
            order[place] = (LANES * v + k) as u8;
            taken |= 1 << place;
        }
    }
    // Equal weights, and NaN, want the same place.
    let all = u32::MAX >> (32 - N);
    if taken == all { order } else { sorted(x) }
}

/// The order that [`ascending`] finds, for any weights: also equal ones and NaN.
#[cold]
fn sorted<const N: usize>(x: &[f32; N]) -> [u8; N] {
    // What is sorted are integers that ascend with the float, the same for both zeros, and then
    // with the place.
    let mut keys = [0; N];
    for ((i, key), x) in keys.iter_mut().enumerate().zip(x) {
        let bits = (x + 0.0).to_bits();
        let ascending = if bits >> 31 == 0 { bits ^ 1 << 31 } else { !bits };
        *key = u64::from(ascending) << 8 | i as u64;
    }
    keys.sort_unstable();
    keys.map(|key| key as u8)
}

/// Where a sorted sub-block is cut: codes 0 before `first`, 1 up to `second`, and then 2.
#[derive(Clone, Copy)]
struct Split {
    first: usize,
    second: usize,
    /// Which of the ways to move the groups, in ggml's order.
    way: usize,
    scale: f32,
    /// By which splits are compared: the square of the sum of products, divided by the sum of
    /// squares.
    score: f32,
}

/// The sums of splits, a split a lane, for each way to move the groups.
#[derive(Clone, Copy)]
struct SplitSums<S: Simd, const WAYS: usize> {
    qx: [S::F; WAYS],
    q2: [S::F; WAYS],
}

impl<S: Simd, const WAYS: usize> SplitSums<S, WAYS> {
    /// The lanes whose score is above in any way. Where a sum of squares is not positive, a lane
    /// may be among them that has no score.
    #[inline(always)]
    fn lanes_above(&self, simd: S, score: f32) -> u32 {
        let score = simd.splat(score);
        let mut above = (score * self.q2[0]).less(self.qx[0] * self.qx[0]);
        for way in 1..WAYS {
            above = above | (score * self.q2[way]).less(self.qx[way] * self.qx[way]);
        }
        above.bits()
    }

    /// The highest score.
    #[inline(always)]
    fn highest(&self, simd: S) -> f32 {
        let mut highest = simd.splat(f32::MIN);
        for way in 0..WAYS {
            // NaN, where there is no split, is not higher.
            highest = (self.qx[way] * self.qx[way] / self.q2[way]).max(highest);
        }
        highest.to_array().into_iter().fold(f32::MIN, f32::max)
    }
}

impl Split {
    /// No split at all, worse than any.
    const NONE: Self = Self { first: 0, second: 0, way: usize::MAX, scale: 0.0, score: f32::MIN };

    /// Becomes the best of itself and the splits at `cuts`. ggml takes them in turn, first by cut,
    /// then by way, and keeps each that is better than the one it has. Most are not: vectors find
    /// the next one that is. Those not above `floor` may be passed over.
    #[inline(always)]
    fn improve<S: Simd, const WAYS: usize>(&mut self, simd: S, cuts: [Cuts; 2], sums: &SplitSums<S, WAYS>, floor: f32) {
        let mut lanes = sums.lanes_above(simd, self.score.max(floor));
        if lanes == 0 {
            return;
        }
        let (mut sums_qx, mut sums_q2) = ([[0.0; LANES]; WAYS], [[0.0; LANES]; WAYS]);
        for way in 0..WAYS {
            (sums_qx[way], sums_q2[way]) = (sums.qx[way].to_array(), sums.q2[way].to_array());
        }
        while lanes != 0 {
            let lane = lanes.trailing_zeros() as usize % LANES;
            for way in 0..WAYS {
                let (sumqx, sumq2) = (sums_qx[way][lane], sums_q2[way][lane]);
                if sumq2 > 0.0 && sumqx * sumqx > self.score * sumq2 {
                    let scale = sumqx / sumq2;
                    let Cuts { first, second } = cuts[lane / HALF];
                    *self = Self { first, second: second + lane % HALF, way, scale, score: scale * sumqx };
                }
            }
            lanes = sums.lanes_above(simd, self.score.max(floor)) & (!1 << lane);
        }
    }
}

/// A score so far below `highest`, the score of some split, that passing over all splits not above
/// it changes nothing.
///
/// ggml's comparison is that of exact quotients but for rounding, a factor of 1 ± 2⁻²¹. A split
/// that is passed over can be the last one kept only if no other is clearly better, and there is
/// the one with `highest`. It can keep another out only if that is no better than it by such a
/// factor; and that other the next, by one more. There are at most 33·34 splits after one another,
/// so all that may come out otherwise is below 1 + 2⁻¹⁰ times the floor, and the split with
/// `highest` replaces it. This holds where nothing underflows or overflows; elsewhere there is no
/// floor.
#[inline(always)]
fn floor_below(highest: f32, importance: &[f32], sum_importance: f32) -> f32 {
    let is_tame = |x: f32| (1e-12..1e12).contains(&x);
    let is_sound =
        is_tame(highest) & is_tame(sum_importance) & importance.iter().fold(true, |all, &w| all & (w >= 0.0));
    if is_sound { highest * (1.0 - 1.0 / 512.0) } else { f32::MIN }
}

/// Lanes of half a vector.
const HALF: usize = LANES / 2;

/// The splits in half a vector: one first cut, and the second cuts from `second` on.
#[derive(Clone, Copy)]
struct Cuts {
    first: usize,
    second: usize,
}

/// All splits of `N` weights, in ggml's order; filled up with second cuts beyond the last, which
/// are none.
const fn all_cuts<const N: usize, const LEN: usize>() -> [[Cuts; 2]; LEN] {
    let mut all = [[Cuts { first: N, second: N + 1 }; 2]; LEN];
    let (mut at, mut first) = (0, 0);
    while first <= N {
        let mut second = first;
        while second <= N {
            all[at / 2][at % 2] = Cuts { first, second };
            at += 1;
            second += HALF;
        }
        first += 1;
    }
    assert!(at.div_ceil(2) == LEN);
    all
}

static CUTS_S: [[Cuts; 2]; 43] = all_cuts::<32, 43>();
static CUTS_M: [[Cuts; 2]; 14] = all_cuts::<16, 14>();

/// A number for each place of a cut, and beyond the last NaN, so that no split is there.
type AtCut<const LEN: usize> = [f32; LEN];

#[inline(always)]
fn at_first<S: Simd, const LEN: usize>(simd: S, numbers: &AtCut<LEN>, [a, b]: [Cuts; 2]) -> S::F {
    simd.splat_halves(&[numbers[a.first], numbers[b.first]])
}

#[inline(always)]
fn at_second<S: Simd, const LEN: usize>(simd: S, numbers: &AtCut<LEN>, [a, b]: [Cuts; 2]) -> S::F {
    match (numbers[a.second..].first_chunk(), numbers[b.second..].first_chunk()) {
        (Some(a), Some(b)) => simd.load_halves([a, b]),
        _ => simd.splat(f32::NAN),
    }
}

/// The sorted weights of a sub-block whose groups are all moved the same way.
struct SortedS {
    sumx: AtCut<{ 32 + LANES }>,
    sumw: AtCut<{ 32 + LANES }>,
    /// What the weights after the second cut add, for each of the ways.
    above_x: [AtCut<{ 32 + LANES }>; 2],
    above_w: [AtCut<{ 32 + LANES }>; 2],
}

impl SortedS {
    const N: usize = 32;

    #[inline(always)]
    fn new(x: &[f32; 32], importance: &[f32; 32], order: &[u8; 32]) -> Self {
        let (mut sumx, mut sumw) = ([f32::NAN; 32 + LANES], [f32::NAN; 32 + LANES]);
        (sumx[0], sumw[0]) = (0.0, 0.0);
        for (j, &i) in order.iter().enumerate() {
            let i = usize::from(i) % Self::N;
            sumx[j + 1] = sumx[j] + importance[i] * x[i];
            sumw[j + 1] = sumw[j] + importance[i];
        }
        let above_x = [UP, DOWN].map(|v| sumx.map(|sum| (sumx[Self::N] - sum) * v[2]));
        let above_w = [UP, DOWN].map(|v| sumw.map(|sum| (sumw[Self::N] - sum) * v[2] * v[2]));
        Self { sumx, sumw, above_x, above_w }
    }

    #[inline(always)]
    fn sums<S: Simd>(&self, simd: S, cuts: [Cuts; 2]) -> SplitSums<S, 2> {
        let Self { sumx, sumw, above_x, above_w } = self;
        let (below_x, below_w) = (at_first(simd, sumx, cuts), at_first(simd, sumw, cuts));
        let delta = simd.splat(DELTA);
        let middle_x = (at_second(simd, sumx, cuts) - below_x) * delta;
        let middle_w = (at_second(simd, sumw, cuts) - below_w) * delta * delta;
        let (up, down) = (simd.splat(UP[0]), simd.splat(DOWN[0]));
        SplitSums {
            qx: [
                below_x * up + middle_x + at_second(simd, &above_x[0], cuts),
                below_x * down - middle_x + at_second(simd, &above_x[1], cuts),
            ],
            q2: [
                below_w * up * up + middle_w + at_second(simd, &above_w[0], cuts),
                below_w * down * down + middle_w + at_second(simd, &above_w[1], cuts),
            ],
        }
    }
}

/// The best of all splits of a sub-block whose groups are all moved the same way.
#[inline(always)]
fn best_split_s<S: Simd>(simd: S, x: &[f32; 32], importance: &[f32; 32], order: &[u8; 32]) -> Split {
    const N: usize = SortedS::N;
    let sorted = SortedS::new(x, importance, order);
    // Three parts of like size are a good guess.
    let row = |first| [Cuts { first, second: first }, Cuts { first, second: first + HALF }];
    let highest = sorted.sums(simd, row(8)).highest(simd).max(sorted.sums(simd, row(10)).highest(simd));
    let floor = floor_below(highest, importance, sorted.sumw[N]);
    let mut best = Split::NONE;
    for &cuts in &CUTS_S {
        best.improve(simd, cuts, &sorted.sums(simd, cuts), floor);
    }
    // All groups alike.
    Split { way: if best.way == 1 { 0xf } else { best.way }, ..best }
}

/// The sorted weights of a sub-block whose two groups are moved independently.
struct SortedM {
    /// Σ importance·x and Σ importance before each cut, for each group.
    sumx: [AtCut<{ 16 + LANES }>; 2],
    sumw: [AtCut<{ 16 + LANES }>; 2],
    /// For each group and way, the sums without cuts.
    all_x: [[f32; 2]; 2],
    all_w: [[f32; 2]; 2],
}

impl SortedM {
    const N: usize = 16;
    // Neighbouring values are 1 apart, and so are their squares by these constants.
    const FIRST: [f32; 2] = [UP[0] * UP[0] - UP[1] * UP[1], DOWN[0] * DOWN[0] - DOWN[1] * DOWN[1]];
    const SECOND: [f32; 2] = [UP[1] * UP[1] - UP[2] * UP[2], DOWN[1] * DOWN[1] - DOWN[2] * DOWN[2]];

    #[inline(always)]
    fn new(x: &[f32; 16], importance: &[f32; 16], order: &[u8; 16]) -> Self {
        let (mut sumx, mut sumw) = ([[f32::NAN; 16 + LANES]; 2], [[f32::NAN; 16 + LANES]; 2]);
        // A weight adds 0 to the sums of the group that is not its own.
        let mut own = [[[0.0; 2]; 16]; 2];
        for (j, &i) in order.iter().enumerate() {
            let i = usize::from(i) % Self::N;
            own[i / DIM][j] = [importance[i] * x[i], importance[i]];
        }
        for group in 0..2 {
            (sumx[group][0], sumw[group][0]) = (0.0, 0.0);
            for (j, [x, w]) in own[group].into_iter().enumerate() {
                sumx[group][j + 1] = sumx[group][j] + x;
                sumw[group][j + 1] = sumw[group][j] + w;
            }
        }
        let all_x = sumx.map(|sumx| [UP, DOWN].map(|v| sumx[Self::N] * v[2]));
        let all_w = sumw.map(|sumw| [UP, DOWN].map(|v| sumw[Self::N] * v[2] * v[2]));
        Self { sumx, sumw, all_x, all_w }
    }

    #[inline(always)]
    fn sums<S: Simd>(&self, simd: S, cuts: [Cuts; 2]) -> SplitSums<S, 4> {
        let zero = simd.splat(0.0);
        let (mut qx, mut q2) = ([[zero; 2]; 2], [[zero; 2]; 2]);
        for group in 0..2 {
            let (sumx, sumw) = (&self.sumx[group], &self.sumw[group]);
            let cuts_x = at_first(simd, sumx, cuts) + at_second(simd, sumx, cuts);
            let (first_w, second_w) = (at_first(simd, sumw, cuts), at_second(simd, sumw, cuts));
            for way in 0..2 {
                let all_w = simd.splat(self.all_w[group][way]);
                qx[group][way] = simd.splat(self.all_x[group][way]) - cuts_x;
                q2[group][way] =
                    all_w + first_w * simd.splat(Self::FIRST[way]) + second_w * simd.splat(Self::SECOND[way]);
            }
        }
        let [[a, b], [c, d]] = qx;
        let [[e, f], [g, h]] = q2;
        SplitSums { qx: [a + c, a + d, b + c, b + d], q2: [e + g, e + h, f + g, f + h] }
    }
}

/// The best of all splits of a sub-block whose two groups are moved independently.
#[inline(always)]
fn best_split_m<S: Simd>(simd: S, x: &[f32; 16], importance: &[f32; 16], order: &[u8; 16]) -> Split {
    const N: usize = SortedM::N;
    let sorted = SortedM::new(x, importance, order);
    // Three parts of like size are a good guess.
    let row = |first| Cuts { first, second: 8 };
    let highest = sorted.sums(simd, [row(4), row(5)]).highest(simd);
    let floor = floor_below(highest, importance, sorted.sumw[0][N] + sorted.sumw[1][N]);
    let mut best = Split::NONE;
    for &cuts in &CUTS_M {
        best.improve(simd, cuts, &sorted.sums(simd, cuts), floor);
    }
    // The first group's way counts twice in ggml's order; here it has the lowest bit.
    Split { way: [0, 2, 1, 3].get(best.way).copied().unwrap_or(usize::MAX), ..best }
}

/// A sub-block's scale, moves and codes.
#[derive(Clone, Copy, Default)]
struct SubBlockFit {
    scale: f32,
    /// For each group a bit, set if its points are moved down.
    down: u8,
    /// The point of each group; as many count as the sub-block has groups.
    points: [Point; 4],
}

impl SubBlockFit {
    /// What a split means, whether its codes are on the grid or not; nothing without a split.
    #[inline(always)]
    fn new<const N: usize>(order: &[u8; N], split: Split) -> Self {
        if split.way == usize::MAX {
            return Self::default();
        }
        // A negative scale turns codes and moves round.
        let turn = split.scale < 0.0;
        let code_of = if turn { [2, 1, 0] } else { [0, 1, 2] };
        let mut points = [0; 4];
        for (j, &i) in order.iter().enumerate() {
            let code = code_of[usize::from(j >= split.first) + usize::from(j >= split.second)];
            points[usize::from(i) / DIM % 4] |= code << (2 * (usize::from(i) % DIM));
        }
        let down = if turn { !split.way } else { split.way } as u8;
        Self { scale: split.scale.abs(), down, points }
    }
}

/// Brings the codes of all sub-blocks to the grid, and fits the scale of those that this changed.
#[inline(always)]
fn fit_to_grid<S: Simd, const N_SUB: usize>(
    simd: S,
    neighbours: &Neighbours,
    w: &[f32; QK_K],
    importance: &[f32; QK_K],
    fits: &mut [SubBlockFit; N_SUB],
) -> [Point; QK_K / DIM] {
    let n_groups = QK_K / DIM / N_SUB;
    let mut points = [0; QK_K / DIM];
    for (points, fit) in points.chunks_exact_mut(n_groups).zip(&*fits) {
        points.copy_from_slice(&fit.points[..n_groups]);
    }
    let wanted = points;
    let (x, importance) = (w.as_chunks::<DIM>().0, importance.as_chunks::<DIM>().0);
    for (at, tasks) in points.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        if tasks.iter().all(|&point| neighbours.index(point).is_some()) {
            continue;
        }
        let group = |t: usize| 4 * at + t;
        let of = |t: usize| &fits[group(t) / n_groups];
        let scales = simd.splat_quads(&std::array::from_fn(|t| of(t).scale));
        let values = [0, 1, 2, 3].map(|t| values(of(t).down >> (group(t) % n_groups)));
        let values = scales * simd.load_quads([&values[0], &values[1], &values[2], &values[3]]);
        let mut errors = [values; DIM];
        for (i, error) in errors.iter_mut().enumerate() {
            let difference = values - simd.splat_quads(&std::array::from_fn(|t| x[group(t)][i]));
            *error = simd.splat_quads(&std::array::from_fn(|t| importance[group(t)][i])) * difference * difference;
        }
        nearest(simd, neighbours, &errors, tasks);
    }

    for (ib, fit) in fits.iter_mut().enumerate() {
        let groups = n_groups * ib..n_groups * (ib + 1);
        if points[groups.clone()] == wanted[groups.clone()] {
            continue;
        }
        let (mut sumqx, mut sumq2) = (0.0, 0.0);
        for k in groups {
            let values = values(fit.down >> (k % n_groups));
            for ((x, w), code) in x[k].iter().zip(&importance[k]).zip(codes(points[k])) {
                let q = values[usize::from(code)];
                sumqx += w * q * x;
                sumq2 += w * q * q;
            }
        }
        if sumqx > 0.0 && sumq2 > 0.0 {
            fit.scale = sumqx / sumq2;
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quants::simd::{Kernel, Level, run};

    struct Both<'a>(&'a [f32; 32], &'a [f32; 32]);

    impl Kernel for Both<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Self(x, importance) = self;
            let order = ascending(simd, x);
            assert_eq!(order, sorted(x));
            let split = best_split_s(simd, x, importance, &order);
            // As ggml has it: all splits in turn.
            let sorted = SortedS::new(x, importance, &order);
            let mut best = Split::NONE;
            for &cuts in &CUTS_S {
                best.improve(simd, cuts, &sorted.sums(simd, cuts), f32::MIN);
            }
            let all_alike = if best.way == 1 { 0xf } else { best.way };
            assert_eq!((split.first, split.second, split.way), (best.first, best.second, all_alike));
            assert_eq!(split.scale.to_bits(), best.scale.to_bits());
        }
    }

    #[test]
    fn passing_over_splits_changes_nothing() {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from((state >> 16) as i16) / 32768.0
        };
        for round in 0..3000 {
            let scale = [1.0, 1e-3, 1e-15, 1e9][round % 4];
            let steps = [1000.0, 2.0, 5.0][round % 3];
            let x = std::array::from_fn(|_| (next() * steps).round() / steps * scale);
            let importance = std::array::from_fn(|i| if (round + i) % 5 == 0 { 0.0 } else { next().powi(2) });
            for level in Level::available() {
                run(level, Both(&x, &importance));
            }
        }
    }

    #[test]
    fn equal_weights_stay_in_their_order() {
        let x = [2.0, -0.0, 1.0, 0.0, 2.0, -1.0, 0.0, 1.0, 2.0, 3.0, -1.0, 0.0, 1.0, 4.0, -2.0, -0.0];
        assert_eq!(sorted(&x), [14, 5, 10, 1, 3, 6, 11, 15, 2, 7, 12, 0, 4, 8, 9, 13]);
    }
}
