//! IQ1_S, IQ1_M: groups of 8 weights as points of a grid of signs and zeros, moved an eighth up or down.
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
//! w = (d·(2·scale + 1))·(value ± ⅛), where codes 0, 1 and 2 have values −1, 0 and 1. Encoders `quantize_row_iq1_s_impl`
//! and `quantize_row_iq1_m_impl`, decoders `dequantize_row_iq1_s` and `dequantize_row_iq1_m` of ggml-quants.c.
//!
//! Both encoders sort the weights of a sub-block, with C's `qsort` by value alone. Where values are equal, the order is
//! up to the C library, and the sums and so the bytes depend on it. Here equal values stay in their order, as they do with
//! glibc, which merges arrays of this size in every release.

use super::batch::BlockEncoder;
use super::float::{read_f16, write_f16};
use super::grids::{self, Neighbours, POINTS_IQ1, Point};
use super::lattice::{number, scale_code, sigma2, unit, weigh};
use super::simd::Simd;
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

impl BlockEncoder<QK_K, 50> for S {
    #[inline(always)]
    fn encode<S: Simd>(simd: S, w: &[f32; QK_K], matrix: Option<&[f32; QK_K]>, block: &mut [u8; 50]) {
        encode_s(simd, w, matrix.expect(REQUIRED), block);
    }
}

pub(super) struct M;

impl BlockEncoder<QK_K, 56> for M {
    #[inline(always)]
    fn encode<S: Simd>(simd: S, w: &[f32; QK_K], matrix: Option<&[f32; QK_K]>, block: &mut [u8; 56]) {
        encode_m(simd, w, matrix, block);
    }
}

#[inline(always)]
fn encode_s<S: Simd>(simd: S, w: &[f32; QK_K], matrix: &[f32; QK_K], block: &mut [u8; 50]) {
    const N: usize = 32;
    block.fill(0);
    let neighbours = grids::IQ1.neighbours();
    let mut importance = [0.0; QK_K];
    weigh(w, matrix, sigma2(w, 2.0), &mut importance);

    let mut qh = [0u16; QK_K / N];
    let mut scales = [0.0; QK_K / N];
    for (ib, (x, importance)) in w.as_chunks::<N>().0.iter().zip(importance.as_chunks::<N>().0).enumerate() {
        if farthest(x) < MAX_EPS_S {
            continue;
        }
        let order = ascending(x);
        let Some(split) = best_split_s(x, importance, &order) else { continue };
        let fit = fit(neighbours, x, importance, &order, split);
        for (k, &point) in fit.points[..N / DIM].iter().enumerate() {
            let number = number(neighbours, point);
            block[2 + N / DIM * ib + k] = number as u8;
            qh[ib] |= number >> 8 << (3 * k);
        }
        qh[ib] |= u16::from(fit.down & 1) << 15;
        scales[ib] = fit.scale;
    }
    // Without any scale ggml does not come to store which way the points are moved.
    let unit = unit(&scales, 15.0);
    if let Some((d, _)) = unit {
        write_f16(d * 1.125, field_mut(block, 0));
    }
    for ((out, qh), scale) in field_mut::<16>(block, 34).as_chunks_mut().0.iter_mut().zip(qh).zip(scales) {
        let qh = match unit {
            Some((_, id)) => qh | u16::from(scale_code(scale, id, 7)) << 12,
            None => qh & 0xfff,
        };
        *out = qh.to_le_bytes();
    }
}

#[inline(always)]
fn encode_m<S: Simd>(simd: S, w: &[f32; QK_K], matrix: Option<&[f32; QK_K]>, block: &mut [u8; 56]) {
    const N: usize = 16;
    block.fill(0);
    let neighbours = grids::IQ1.neighbours();
    let mut importance = [0.0; QK_K];
    match matrix {
        Some(matrix) => weigh(w, matrix, sigma2(w, 2.0), &mut importance),
        None => importance = w.map(|x| x * x),
    }

    let mut points = [0; QK_K / DIM];
    let mut downs = [0; QK_K / N];
    let mut scales = [0.0; QK_K / N];
    for (ib, (x, importance)) in w.as_chunks::<N>().0.iter().zip(importance.as_chunks::<N>().0).enumerate() {
        if farthest(x) < MAX_EPS_M {
            continue;
        }
        let order = ascending(x);
        let Some(split) = best_split_m(x, importance, &order) else { continue };
        let fit = fit(neighbours, x, importance, &order, split);
        points[2 * ib..][..2].copy_from_slice(&fit.points[..2]);
        (scales[ib], downs[ib]) = (fit.scale, fit.down);
    }
    for (k, &point) in points.iter().enumerate() {
        let number = number(neighbours, point);
        block[k] = number as u8;
        block[32 + k / 2] |= (number >> 8 << (4 * (k % 2))) as u8;
    }
    // Without any scale ggml does not come to store which way the points are moved.
    let Some((mut d, id)) = unit(&scales, 15.0) else { return };
    let mut words = [0u16; 4];
    let (mut sumqx, mut sumq2) = (0.0, 0.0);
    for (ib, scale) in scales.into_iter().enumerate() {
        let l = scale_code(scale, id, 7);
        words[ib / 4] |= u16::from(l) << (3 * (ib % 4));
        block[32 + ib] |= (downs[ib] & 1) << 3 | (downs[ib] >> 1) << 7;
        for k in 2 * ib..2 * ib + 2 {
            let values = values(downs[ib] >> (k % 2));
            let (x, importance) = (&w.as_chunks::<DIM>().0[k], &importance.as_chunks::<DIM>().0[k]);
            for ((x, w), code) in x.iter().zip(importance).zip(codes(points[k])) {
                let q = values[usize::from(code)] * f32::from(2 * l + 1);
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

fn codes(point: Point) -> [u8; DIM] {
    grids::Grid::<DIM>::codes(point)
}

fn values(down: u8) -> &'static [f32; 3] {
    if down & 1 == 0 { &UP } else { &DOWN }
}

fn farthest(x: &[f32]) -> f32 {
    x.iter().fold(x[0].abs(), |max, x| if max > x.abs() { max } else { x.abs() })
}

/// The places of the weights in ascending order; those of equal ones stay in theirs.
fn ascending<const N: usize>(x: &[f32; N]) -> [u8; N] {
    let mut order = std::array::from_fn(|i| i as u8);
    order.sort_by_key(|&i| rank(x[usize::from(i)]));
    order
}

/// An integer that ascends with the float, the same for both zeros. NaN has one too: sorting would panic without.
fn rank(x: f32) -> i32 {
    let bits = (x + 0.0).to_bits().cast_signed();
    if bits < 0 { bits ^ i32::MAX } else { bits }
}

/// Where a sorted sub-block is cut: codes 0 before `first`, 1 up to `second`, and then 2.
#[derive(Clone, Copy)]
struct Split {
    first: usize,
    second: usize,
    /// For each group of the sub-block a bit, set if its points are moved down. In IQ1_S all are the same.
    down: u8,
    scale: f32,
}

/// The best of all splits of a sub-block whose groups are all moved the same way. None if no weight has importance.
fn best_split_s(x: &[f32; 32], importance: &[f32; 32], order: &[u8; 32]) -> Option<Split> {
    const N: usize = 32;
    let (mut sumx, mut sumw) = ([0.0; N + 1], [0.0; N + 1]);
    for (j, &i) in order.iter().enumerate() {
        let i = usize::from(i);
        sumx[j + 1] = sumx[j] + importance[i] * x[i];
        sumw[j + 1] = sumw[j] + importance[i];
    }
    let mut best = None;
    let mut best_score = f32::MIN;
    for first in 0..=N {
        for second in first..=N {
            for (down, v) in [(0, UP), (0xf, DOWN)] {
                let sumqx = sumx[first] * v[0] + (sumx[second] - sumx[first]) * v[1] + (sumx[N] - sumx[second]) * v[2];
                let sumq2 = sumw[first] * v[0] * v[0]
                    + (sumw[second] - sumw[first]) * v[1] * v[1]
                    + (sumw[N] - sumw[second]) * v[2] * v[2];
                if sumq2 > 0.0 && sumqx * sumqx > best_score * sumq2 {
                    let scale = sumqx / sumq2;
                    best_score = scale * sumqx;
                    best = Some(Split { first, second, down, scale });
                }
            }
        }
    }
    best
}

/// The best of all splits of a sub-block whose two groups are moved independently. None if no weight has importance.
fn best_split_m(x: &[f32; 16], importance: &[f32; 16], order: &[u8; 16]) -> Option<Split> {
    const N: usize = 16;
    // For each group.
    let (mut sumx, mut sumw) = ([[0.0; N + 1]; 2], [[0.0; N + 1]; 2]);
    for (j, &i) in order.iter().enumerate() {
        let i = usize::from(i);
        for group in 0..2 {
            let is_own = i / DIM == group;
            sumx[group][j + 1] = if is_own { sumx[group][j] + importance[i] * x[i] } else { sumx[group][j] };
            sumw[group][j + 1] = if is_own { sumw[group][j] + importance[i] } else { sumw[group][j] };
        }
    }
    // Neighbouring values are 1 apart, and so are their squares by these constants.
    let step = |v: [f32; 3]| (v[2], v[0] * v[0] - v[1] * v[1], v[1] * v[1] - v[2] * v[2]);
    let ways = [step(UP), step(DOWN)];
    let mut best = None;
    let mut best_score = f32::MIN;
    for first in 0..=N {
        for second in first..=N {
            let sums: [[(f32, f32); 2]; 2] = std::array::from_fn(|group| {
                let (sumx, sumw) = (&sumx[group], &sumw[group]);
                let sx = sumx[first] + sumx[second];
                ways.map(|(v, c1, c2)| (sumx[N] * v - sx, sumw[N] * v * v + sumw[first] * c1 + sumw[second] * c2))
            });
            for (a, b) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let (sumqx, sumq2) = (sums[0][a].0 + sums[1][b].0, sums[0][a].1 + sums[1][b].1);
                if sumq2 > 0.0 && sumqx * sumqx > best_score * sumq2 {
                    let scale = sumqx / sumq2;
                    best_score = scale * sumqx;
                    best = Some(Split { first, second, down: (a | b << 1) as u8, scale });
                }
            }
        }
    }
    best
}

/// A sub-block on the grid.
struct Fit {
    scale: f32,
    down: u8,
    /// As many as the sub-block has groups.
    points: [Point; 4],
}

/// Brings the codes of a split to the grid, and fits the scale if that changed them.
fn fit<const N: usize>(
    neighbours: &Neighbours,
    x: &[f32; N],
    importance: &[f32; N],
    order: &[u8; N],
    split: Split,
) -> Fit {
    let Split { first, second, mut down, mut scale } = split;
    // A negative scale turns codes and moves round.
    let turn = scale < 0.0;
    if turn {
        (scale, down) = (-scale, !down);
    }
    let mut points = [0; 4];
    for (j, &i) in order.iter().enumerate() {
        let code = Point::from(j >= first) + Point::from(j >= second);
        let code = if turn { 2 - code } else { code };
        points[usize::from(i) / DIM] |= code << (2 * (usize::from(i) % DIM));
    }
    let groups = || x.as_chunks::<DIM>().0.iter().zip(importance.as_chunks::<DIM>().0).enumerate();
    let mut is_on_grid = true;
    for (k, (x, importance)) in groups() {
        if neighbours.index(points[k]).is_none() {
            is_on_grid = false;
            points[k] = nearest(neighbours.of(points[k]), x, importance, scale, values(down >> k));
        }
    }
    if !is_on_grid {
        let (mut sumqx, mut sumq2) = (0.0, 0.0);
        for (k, (x, importance)) in groups() {
            let values = values(down >> k);
            for ((x, w), code) in x.iter().zip(importance).zip(codes(points[k])) {
                let q = values[usize::from(code)];
                sumqx += w * q * x;
                sumq2 += w * q * q;
            }
        }
        if sumqx > 0.0 && sumq2 > 0.0 {
            scale = sumqx / sumq2;
        }
    }
    Fit { scale, down, points }
}

/// The neighbour with the least weighted distance (`iq1_find_best_neighbour2`).
fn nearest(near: &[Point], x: &[f32; DIM], importance: &[f32; DIM], scale: f32, values: &[f32; 3]) -> Point {
    let (mut best, mut best_error) = (near[0], f32::MAX);
    for &point in near {
        let mut error = 0.0;
        for ((x, w), code) in x.iter().zip(importance).zip(codes(point)) {
            let difference = scale * values[usize::from(code)] - x;
            error += w * difference * difference;
        }
        if error < best_error {
            (best, best_error) = (point, error);
        }
    }
    best
}
