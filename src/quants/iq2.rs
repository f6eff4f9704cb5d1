//! IQ2_XXS, IQ2_XS, IQ2_S: groups of 8 weights as signs and a point of a grid of magnitudes.
//!
//! | IQ2_XXS | field | meaning |
//! |---|---|---|
//! | 0..2 | `d` | f16: what the scales count |
//! | 2..66 | `qs` | for each 32 weights two u32: four point numbers of 8 bits; four signs of 7 bits, then a scale of 4 |
//!
//! | IQ2_XS | field | meaning |
//! |---|---|---|
//! | 0..2 | `d` | as above |
//! | 2..66 | `qs` | for each group a u16: point number of 9 bits, then signs of 7 |
//! | 66..74 | `scales` | for each 16 weights 4 bits |
//!
//! | IQ2_S | field | meaning |
//! |---|---|---|
//! | 0..2 | `d` | as above |
//! | 2..34 | `qs` | for each group the low 8 bits of its point number |
//! | 34..66 | `signs` | for each group 8 signs |
//! | 66..74 | `qh` | for each group 2 high bits of its point number |
//! | 74..82 | `scales` | for each 16 weights 4 bits |
//!
//! w = ±(d·(½ + scale)·¼)·value, where codes 0, 1 and 2 have values 8, 25 and 43. Seven bits of
//! signs tell eight: their number is even. Encoders `quantize_row_iq2_xxs_impl` and its like,
//! decoders `dequantize_row_iq2_xxs` and its like of ggml-quants.c.

use super::batch::{Batch, Encoder};
use super::float::{read_f16, write_f16};
use super::grids::{self, POINTS_IQ2_S, POINTS_IQ2_XS, POINTS_IQ2_XXS};
use super::lattice::{
    self, Again, Candidates, SearchedWeights, even_signs, number, scale_code, sigma2, signed, unit, weigh,
};
use super::rounding::nearest_int;
use super::search::GROUP_MAX_EPS;
use super::simd::Simd;
use super::{QK_K, REQUIRED, field, field_mut};

/// Weights of a group.
const DIM: usize = 8;
/// Weights that share a scale, in IQ2_XS and IQ2_S.
const SUB: usize = 16;

const VALUES: [i8; 3] = [8, 25, 43];
static VALUES_XXS: [[i8; DIM]; 256] = grids::values(&POINTS_IQ2_XXS, VALUES);
static VALUES_XS: [[i8; DIM]; 512] = grids::values(&POINTS_IQ2_XS, VALUES);
static VALUES_S: [[i8; DIM]; 1024] = grids::values(&POINTS_IQ2_S, VALUES);

pub(super) fn decode_xxs(block: &[u8; 66], w: &mut [f32; QK_K]) {
    let d = read_f16(field(block, 0));
    let qs: &[u8; 64] = field(block, 2);
    for (w, qs) in w.as_chunks_mut::<32>().0.iter_mut().zip(qs.as_chunks::<8>().0) {
        let [numbers @ .., a, b, c, e] = *qs;
        let rest = u32::from_le_bytes([a, b, c, e]);
        let db = d * (0.5 + (rest >> 28) as f32) * 0.25;
        for (l, (w, number)) in w.as_chunks_mut().0.iter_mut().zip(numbers).enumerate() {
            signed(&VALUES_XXS[usize::from(number)], db, even_signs(rest >> (7 * l)), w);
        }
    }
}

pub(super) fn decode_xs(block: &[u8; 74], w: &mut [f32; QK_K]) {
    let d = read_f16(field(block, 0));
    let (qs, scales): (&[u8; 64], &[u8; 8]) = (field(block, 2), field(block, 66));
    for (k, (w, q)) in w.as_chunks_mut().0.iter_mut().zip(qs.as_chunks().0).enumerate() {
        let q = u16::from_le_bytes(*q);
        signed(&VALUES_XS[usize::from(q & 511)], sub_scale(d, scales, k), even_signs(u32::from(q >> 9)), w);
    }
}

pub(super) fn decode_s(block: &[u8; 82], w: &mut [f32; QK_K]) {
    let d = read_f16(field(block, 0));
    let (qs, signs): (&[u8; 32], &[u8; 32]) = (field(block, 2), field(block, 34));
    let (qh, scales): (&[u8; 8], &[u8; 8]) = (field(block, 66), field(block, 74));
    for (k, w) in w.as_chunks_mut().0.iter_mut().enumerate() {
        let number = usize::from(qs[k]) | usize::from(qh[k / 4] >> (2 * (k % 4)) & 3) << 8;
        signed(&VALUES_S[number], sub_scale(d, scales, k), signs[k], w);
    }
}

/// The scale of group `k`, of 4 bits for two groups.
#[inline(always)]
fn sub_scale(d: f32, scales: &[u8; 8], k: usize) -> f32 {
    d * (0.5 + f32::from(scales[k / 4] >> (4 * (k / 2 % 2)) & 0xf)) * 0.25
}

pub(super) struct Xxs;

impl Encoder<QK_K, 66> for Xxs {
    #[inline(always)]
    fn encode<S: Simd>(simd: S, batch: Batch<'_, QK_K>, blocks: &mut [[u8; 66]]) {
        for ((w, matrix), block) in batch.each_block().zip(blocks) {
            encode_xxs(simd, w, matrix.expect(REQUIRED), block);
        }
    }
}

pub(super) struct Xs;

impl Encoder<QK_K, 74> for Xs {
    #[inline(always)]
    fn encode<S: Simd>(simd: S, batch: Batch<'_, QK_K>, blocks: &mut [[u8; 74]]) {
        for ((w, matrix), block) in batch.each_block().zip(blocks) {
            encode_xs(simd, w, matrix.expect(REQUIRED), block);
        }
    }
}

pub(super) struct S;

impl Encoder<QK_K, 82> for S {
    #[inline(always)]
    fn encode<S: Simd>(simd: S, batch: Batch<'_, QK_K>, blocks: &mut [[u8; 82]]) {
        for ((w, matrix), block) in batch.each_block().zip(blocks) {
            encode_s(simd, w, matrix, block);
        }
    }
}

#[inline(always)]
fn encode_xxs<S: Simd>(simd: S, w: &[f32; QK_K], matrix: &[f32; QK_K], block: &mut [u8; 66]) {
    const CANDIDATES: Candidates = Candidates { n_beside: 6, step: 0.1, again: Again::All };
    block.fill(0);
    let neighbours = grids::IQ2_XXS.neighbours();
    let mut importance = [0.0; QK_K];
    weigh(w, matrix, sigma2(w, 1.0), &mut importance);
    let weights = SearchedWeights::new(w, importance).with_even_signs();

    let mut qs = [[0u32; 2]; QK_K / 32];
    let mut scales = [0.0; QK_K / 32];
    for (ib, (qs, stored)) in qs.iter_mut().zip(&mut scales).enumerate() {
        let sub_block = weights.sub_block::<32>(ib);
        if sub_block.max() < GROUP_MAX_EPS {
            continue;
        }
        let scale = positive_scale(sub_block.x, sub_block.importance);
        let span = scale * 3.0;
        if span <= 0.0 {
            continue;
        }
        let found = lattice::search::<S, 32, DIM>(simd, neighbours, sub_block, &CANDIDATES, span, scale);
        let flip = if found.scale < 0.0 { 0x7f } else { 0 };
        for k in 0..4 {
            qs[0] |= u32::from(number(neighbours, found.points[k])) << (8 * k);
            qs[1] |= u32::from(weights.signs[4 * ib + k] & 0x7f ^ flip) << (7 * k);
        }
        *stored = found.scale.abs();
    }
    let Some((d, id)) = unit(&scales, 31.0) else { return };
    write_f16(d, field_mut(block, 0));
    let out: &mut [u8; 64] = field_mut(block, 2);
    for ((out, mut qs), scale) in out.as_chunks_mut::<8>().0.iter_mut().zip(qs).zip(scales) {
        qs[1] |= u32::from(scale_code(scale, id, 15)) << 28;
        out.as_chunks_mut().0.copy_from_slice(&qs.map(u32::to_le_bytes));
    }
}

#[inline(always)]
fn encode_xs<S: Simd>(simd: S, w: &[f32; QK_K], matrix: &[f32; QK_K], block: &mut [u8; 74]) {
    const CANDIDATES: Candidates = Candidates { n_beside: 9, step: 0.1, again: Again::OffGrid };
    block.fill(0);
    let neighbours = grids::IQ2_XS.neighbours();
    let mut importance = [0.0; QK_K];
    weigh(w, matrix, sigma2(w, 1.0), &mut importance);
    let weights = SearchedWeights::new(w, importance).with_even_signs();

    let mut qs = [0; QK_K / DIM];
    let mut scales = [0.0; QK_K / SUB];
    for (ib, stored) in scales.iter_mut().enumerate() {
        let sub_block = weights.sub_block::<SUB>(ib);
        let max = sub_block.max();
        if max < GROUP_MAX_EPS {
            continue;
        }
        let found = lattice::search::<S, SUB, DIM>(simd, neighbours, sub_block, &CANDIDATES, max, max / 5.0);
        let flip = if found.scale < 0.0 { 0x7f } else { 0 };
        for k in 0..2 {
            let signs = u16::from(weights.signs[2 * ib + k] & 0x7f ^ flip);
            qs[2 * ib + k] = number(neighbours, found.points[k]) | signs << 9;
        }
        *stored = found.scale.abs();
    }
    let Some((d, id)) = unit(&scales, 31.0) else { return };
    write_f16(d, field_mut(block, 0));
    field_mut::<64>(block, 2).as_chunks_mut().0.copy_from_slice(&qs.map(u16::to_le_bytes));
    write_sub_scales(&scales, id, field_mut(block, 66));
}

#[inline(always)]
fn encode_s<S: Simd>(simd: S, w: &[f32; QK_K], matrix: Option<&[f32; QK_K]>, block: &mut [u8; 82]) {
    const CANDIDATES: Candidates = Candidates { n_beside: 9, step: 0.1, again: Again::OffGrid };
    block.fill(0);
    let neighbours = grids::IQ2_S.neighbours();
    let sigma2 = sigma2(w, 2.0);
    let mut importance = [0.0; QK_K];
    match matrix {
        Some(matrix) => weigh(w, matrix, sigma2, &mut importance),
        None => importance = w.map(|x| 0.25 * sigma2 + x * x),
    }
    let weights = SearchedWeights::new(w, importance);

    let mut scales = [0.0; QK_K / SUB];
    for (ib, stored) in scales.iter_mut().enumerate() {
        let sub_block = weights.sub_block::<SUB>(ib);
        let max = sub_block.max();
        if max < lattice::GROUP_MAX_EPS {
            continue;
        }
        let found = lattice::search::<S, SUB, DIM>(simd, neighbours, sub_block, &CANDIDATES, max, max / 5.0);
        let flip = if found.scale < 0.0 { 0xff } else { 0 };
        for (k, &point) in (2 * ib..).zip(&found.points[..2]) {
            let [low, high] = number(neighbours, point).to_le_bytes();
            block[2 + k] = low;
            block[34 + k] = weights.signs[k] ^ flip;
            block[66 + k / 4] |= high << (2 * (k % 4));
        }
        *stored = found.scale.abs();
    }
    // Where all scales came out as zero, ggml leaves points and signs in the block.
    let Some((d, id)) = unit(&scales, 31.0) else { return };
    write_f16(d * 0.9875, field_mut(block, 0));
    write_sub_scales(&scales, id, field_mut(block, 74));
}

fn write_sub_scales(scales: &[f32; QK_K / SUB], id: f32, out: &mut [u8; 8]) {
    for (out, scales) in out.iter_mut().zip(scales.as_chunks::<2>().0) {
        *out = scale_code(scales[0], id, 15) | scale_code(scales[1], id, 15) << 4;
    }
}

/// The scale for magnitudes as codes from 0 to 4, before the grid constrains them
/// (`make_qp_quants`).
fn positive_scale(x: &[f32; 32], importance: &[f32; 32]) -> f32 {
    const NMAX: i32 = 4;
    let max = x.iter().fold(0.0f32, |max, &x| if max > x { max } else { x });
    if max < GROUP_MAX_EPS {
        return 0.0;
    }
    let error = |scale: f32, code: &dyn Fn(f32) -> i32| {
        x.iter().zip(importance).fold(0.0, |sum, (x, w)| {
            let difference = x - scale * code(*x) as f32;
            sum + w * difference * difference
        })
    };
    let mut iscale = NMAX as f32 / max;
    // ggml keeps codes in bytes: that of a weight with the wrong sign, below 0, wraps to 255.
    let mut best_error = error(1.0 / iscale, &|x| i32::from(nearest_int(iscale * x) as u8));
    for step in (-4i8..=4).filter(|&step| step != 0) {
        let this = (0.1 * f32::from(step) + NMAX as f32) / max;
        let this_error = error(1.0 / this, &|x| nearest_int(this * x).min(NMAX));
        if this_error < best_error {
            (best_error, iscale) = (this_error, this);
        }
    }

    let mut codes = [0u8; 32];
    let (mut sumlx, mut suml2) = (0.0, 0.0);
    for ((x, w), code) in x.iter().zip(importance).zip(&mut codes) {
        let l = nearest_int(iscale * x).min(NMAX);
        *code = l as u8;
        sumlx += w * x * l as f32;
        suml2 += w * l as f32 * l as f32;
    }
    for _ in 0..5 {
        let mut is_changed = false;
        for ((x, w), code) in x.iter().zip(importance).zip(&mut codes) {
            let l = f32::from(*code);
            let slx = sumlx - w * x * l;
            let sl2 = suml2 - w * l * l;
            if !(slx > 0.0 && sl2 > 0.0) {
                continue;
            }
            let new_l = nearest_int(x * sl2 / slx).min(NMAX);
            if new_l == i32::from(*code) {
                continue;
            }
            let slx = slx + w * x * new_l as f32;
            let sl2 = sl2 + w * new_l as f32 * new_l as f32;
            if slx * slx * suml2 > sumlx * sumlx * sl2 {
                *code = new_l as u8;
                (sumlx, suml2) = (slx, sl2);
                is_changed = true;
            }
        }
        if !is_changed {
            break;
        }
    }
    if suml2 > 0.0 { sumlx / suml2 } else { 0.0 }
}
