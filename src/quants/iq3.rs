//! IQ3_XXS, IQ3_S: groups of 4 weights as signs and a point of a grid of magnitudes.
//!
//! | IQ3_XXS | field | meaning |
//! |---|---|---|
//! | 0..2 | `d` | f16: what the scales count |
//! | 2..66 | `qs` | for each group the number of its point |
//! | 66..98 | `scales_and_signs` | for each 32 weights a u32: four signs of 7 bits, then a scale of 4 |
//!
//! | IQ3_S | field | meaning |
//! |---|---|---|
//! | 0..2 | `d` | as above |
//! | 2..66 | `qs` | for each group the low 8 bits of its point number |
//! | 66..74 | `qh` | for each group the high bit |
//! | 74..106 | `signs` | for each 8 weights 8 signs |
//! | 106..110 | `scales` | for each 32 weights 4 bits |
//!
//! In IQ3_XXS w = ±(d·(½ + scale)·½)·value, with values 4, 12, 20, 28, 36, 44, 52 and 62, and signs
//! as in IQ2_XXS; in IQ3_S w = ±(d·(1 + 2·scale))·(2·code + 1). Encoders
//! `quantize_row_iq3_xxs_impl` and `quantize_row_iq3_s_impl`, decoders `dequantize_row_iq3_xxs` and
//! `dequantize_row_iq3_s` of ggml-quants.c.

use super::batch::{Batch, Encoder};
use super::float::{read_f16, write_f16};
use super::grids::{self, POINTS_IQ3_S, POINTS_IQ3_XXS};
use super::lattice::{
    self, Again, Candidates, SearchedWeights, even_signs, number, scale_code, sigma2, signed, unit, weigh,
};
use super::simd::Simd;
use super::{QK_K, field, field_mut};

/// Weights of a group.
const DIM: usize = 4;
/// Weights that share a scale.
const SUB: usize = 32;

static VALUES_XXS: [[i8; DIM]; 256] = grids::values(&POINTS_IQ3_XXS, [4, 12, 20, 28, 36, 44, 52, 62]);
static VALUES_S: [[i8; DIM]; 512] = grids::values(&POINTS_IQ3_S, [1, 3, 5, 7, 9, 11, 13, 15]);

pub(super) fn decode_xxs(block: &[u8; 98], w: &mut [f32; QK_K]) {
    let d = read_f16(field(block, 0));
    let (qs, rest): (&[u8; 64], &[u8; 32]) = (field(block, 2), field(block, 66));
    let sub_blocks = w.as_chunks_mut::<SUB>().0.iter_mut().zip(qs.as_chunks::<8>().0).zip(rest.as_chunks().0);
    for ((w, qs), rest) in sub_blocks {
        let rest = u32::from_le_bytes(*rest);
        let db = d * (0.5 + (rest >> 28) as f32) * 0.5;
        for (k, (w, &q)) in w.as_chunks_mut().0.iter_mut().zip(qs).enumerate() {
            let signs = even_signs(rest >> (7 * (k / 2))) >> (4 * (k % 2));
            signed(&VALUES_XXS[usize::from(q)], db, signs, w);
        }
    }
}

pub(super) fn decode_s(block: &[u8; 110], w: &mut [f32; QK_K]) {
    let d = read_f16(field(block, 0));
    let (qs, qh): (&[u8; 64], &[u8; 8]) = (field(block, 2), field(block, 66));
    let (signs, scales): (&[u8; 32], &[u8; 4]) = (field(block, 74), field(block, 106));
    for (ib, w) in w.as_chunks_mut::<SUB>().0.iter_mut().enumerate() {
        let scale = scales[ib / 2] >> (4 * (ib % 2)) & 0xf;
        let db = d * f32::from(1 + 2 * scale);
        for (k, w) in w.as_chunks_mut().0.iter_mut().enumerate() {
            let number = usize::from(qs[8 * ib + k]) | usize::from(qh[ib] >> k & 1) << 8;
            signed(&VALUES_S[number], db, signs[4 * ib + k / 2] >> (4 * (k % 2)), w);
        }
    }
}

fn importance(w: &[f32; QK_K], matrix: Option<&[f32; QK_K]>) -> [f32; QK_K] {
    let Some(matrix) = matrix else { return w.map(|x| x * x) };
    let mut importance = [0.0; QK_K];
    weigh(w, matrix, sigma2(w, 2.0), &mut importance);
    importance
}

pub(super) struct Xxs;

impl Encoder<QK_K, 98> for Xxs {
    #[inline(always)]
    fn encode<S: Simd>(simd: S, batch: Batch<'_, QK_K>, blocks: &mut [[u8; 98]]) {
        for ((w, matrix), block) in batch.each_block().zip(blocks) {
            encode_xxs(simd, w, matrix, block);
        }
    }
}

pub(super) struct S;

impl Encoder<QK_K, 110> for S {
    #[inline(always)]
    fn encode<S: Simd>(simd: S, batch: Batch<'_, QK_K>, blocks: &mut [[u8; 110]]) {
        for ((w, matrix), block) in batch.each_block().zip(blocks) {
            encode_s(simd, w, matrix, block);
        }
    }
}

#[inline(always)]
fn encode_xxs<S: Simd>(simd: S, w: &[f32; QK_K], matrix: Option<&[f32; QK_K]>, block: &mut [u8; 98]) {
    const CANDIDATES: Candidates = Candidates { n_beside: 15, step: 0.2, again: Again::OffGrid };
    block.fill(0);
    let neighbours = grids::IQ3_XXS.neighbours();
    let weights = SearchedWeights::new(w, importance(w, matrix)).with_even_signs();

    let mut qs = [0; QK_K / DIM];
    let mut signs = [0u32; QK_K / SUB];
    let mut scales = [0.0; QK_K / SUB];
    for (ib, stored) in scales.iter_mut().enumerate() {
        let sub_block = weights.sub_block::<SUB>(ib);
        let max = sub_block.max();
        if max < lattice::GROUP_MAX_EPS {
            continue;
        }
        let found = lattice::search::<S, SUB, DIM>(simd, neighbours, sub_block, &CANDIDATES, max, max / 15.0);
        for (q, point) in qs[8 * ib..].iter_mut().zip(found.points) {
            *q = number(neighbours, point) as u8;
        }
        let flip = if found.scale < 0.0 { 0x7f } else { 0 };
        for k in 0..4 {
            signs[ib] |= u32::from(weights.signs[4 * ib + k] & 0x7f ^ flip) << (7 * k);
        }
        *stored = found.scale.abs();
    }
    let Some((d, id)) = unit(&scales, 31.0) else { return };
    write_f16(d * 1.0125, field_mut(block, 0));
    *field_mut(block, 2) = qs;
    let out: &mut [u8; 32] = field_mut(block, 66);
    for ((out, signs), scale) in out.as_chunks_mut().0.iter_mut().zip(signs).zip(scales) {
        *out = (signs | u32::from(scale_code(scale, id, 15)) << 28).to_le_bytes();
    }
}

#[inline(always)]
fn encode_s<S: Simd>(simd: S, w: &[f32; QK_K], matrix: Option<&[f32; QK_K]>, block: &mut [u8; 110]) {
    const CANDIDATES: Candidates = Candidates { n_beside: 9, step: 0.2, again: Again::AllIfOffGrid };
    block.fill(0);
    let neighbours = grids::IQ3_S.neighbours();
    let weights = SearchedWeights::new(w, importance(w, matrix));

    let mut scales = [0.0; QK_K / SUB];
    // ggml's pointers into `qs` and `signs` stay where they are at a sub-block of zeros, and all
    // that follow write one place too early: such weights decode to others. The bytes are ggml's
    // here too.
    let mut at = 0;
    for (ib, stored) in scales.iter_mut().enumerate() {
        let sub_block = weights.sub_block::<SUB>(ib);
        let max = sub_block.max();
        if max == 0.0 {
            continue;
        }
        let found = lattice::search::<S, SUB, DIM>(simd, neighbours, sub_block, &CANDIDATES, max, max / 15.0);
        for (k, point) in found.points.into_iter().enumerate() {
            let [low, high] = number(neighbours, point).to_le_bytes();
            block[2 + 8 * at + k] = low;
            block[66 + ib] |= high << k;
        }
        let flip = if found.scale < 0.0 { 0xff } else { 0 };
        for k in 0..4 {
            block[74 + 4 * at + k] = weights.signs[4 * ib + k] ^ flip;
        }
        at += 1;
        *stored = found.scale.abs();
    }
    // Where all scales came out as zero, ggml leaves points and signs in the block.
    let Some((d, id)) = unit(&scales, 31.0) else { return };
    write_f16(d * 1.033, field_mut(block, 0));
    for (out, scales) in field_mut::<4>(block, 106).iter_mut().zip(scales.as_chunks::<2>().0) {
        *out = scale_code(scales[0], id, 15) | scale_code(scales[1], id, 15) << 4;
    }
}
