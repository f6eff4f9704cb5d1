//! Q2_K: 16 sub-blocks of 16 weights, each with a scale and a minimum of 4 bits.
//!
//! | bytes | field | meaning |
//! |---|---|---|
//! | 0..16 | `scales` | byte j: scale of sub-block j in the low half, its minimum in the high half |
//! | 16..80 | `qs` | codes, a plane of 2 bits |
//! | 80..82 | `d` | f16: what the scales count |
//! | 82..84 | `dmin` | f16: what the minimums count |
//!
//! w = (d·scale)·q − dmin·minimum. Encoders `quantize_row_q2_K_ref` and `_impl`, decoder
//! `dequantize_row_q2_K` of ggml-quants.c.

use super::batch::{Batch, Encoder};
use super::float::{read_f16, write_f16};
use super::planes::{self, Codes};
use super::rounding::nearest_int;
use super::scales::largest;
use super::search::Candidates;
use super::simd::Simd;
use super::super_block::{WithMin, encode_with_min};
use super::weighting::Weighting;
use super::{QK_K, field, field_mut};

/// Weights in a sub-block.
const SUB: usize = 16;
const N_SUB: usize = QK_K / SUB;

#[inline(always)]
pub(super) fn decode(block: &[u8; 84], w: &mut [f32; QK_K]) {
    let scales: &[u8; N_SUB] = field(block, 0);
    let (d, dmin) = (read_f16(field(block, 80)), read_f16(field(block, 82)));
    let mut codes = [0; QK_K];
    planes::unpack_pairs(field(block, 16), 0, &mut codes);
    for ((w, codes), sc) in w.as_chunks_mut::<SUB>().0.iter_mut().zip(codes.as_chunks::<SUB>().0).zip(scales) {
        let (dl, ml) = (d * f32::from(sc & 0xf), dmin * f32::from(sc >> 4));
        for (w, &q) in w.iter_mut().zip(codes) {
            *w = dl * f32::from(q) - ml;
        }
    }
}

pub(super) struct Q2K;

impl Encoder<QK_K, 84> for Q2K {
    #[inline(always)]
    fn encode<S: Simd>(simd: S, batch: Batch<'_, QK_K>, blocks: &mut [[u8; 84]]) {
        encode_with_min::<S, Q2K, SUB, N_SUB, 84>(simd, batch, blocks);
    }
}

impl WithMin<SUB, N_SUB, 84> for Q2K {
    const CANDIDATES: Candidates =
        Candidates { nmax: 3.0, rmin: -0.5, rdelta: 0.1, nstep: 15, use_mad: true, is_bounded: false };
    const PLAIN: Weighting = Weighting::Size;
    const IMPORTANCE: Weighting = Weighting::Importance { times: 1.0, over: QK_K as f32 };
    const MAX_SCALE: f32 = 15.0;

    fn store(scales: &[f32; N_SUB], mins: &[f32; N_SUB], block: &mut [u8; 84]) -> [(f32, f32); N_SUB] {
        // A search can end on a negative scale, whose code is then a byte that is not small.
        let codes = |values: &[f32; N_SUB], max: f32| {
            let inverse = if max > 0.0 { Self::MAX_SCALE / max } else { 0.0 };
            values.map(|x| nearest_int(inverse * x) as u8)
        };
        let (max_scale, max_min) = (largest(scales), largest(mins));
        let (ls, lm) = (codes(scales, max_scale), codes(mins, max_min));
        Self::store_codes((max_scale / Self::MAX_SCALE, &ls), (max_min / Self::MAX_SCALE, &lm), block)
    }

    /// The low byte of a code is stored as it is, so it spills into the minimum's bits, in ggml
    /// too: what counts is what a decoder will read.
    fn store_codes(
        (d, ls): (f32, &[u8; N_SUB]),
        (dmin, lm): (f32, &[u8; N_SUB]),
        block: &mut [u8; 84],
    ) -> [(f32, f32); N_SUB] {
        let stored: [u8; N_SUB] = std::array::from_fn(|j| ls[j] | lm[j] << 4);
        *field_mut(block, 0) = stored;
        let d = write_f16(d, field_mut(block, 80));
        let dmin = write_f16(dmin, field_mut(block, 82));
        stored.map(|sc| (d * f32::from(sc & 0xf), dmin * f32::from(sc >> 4)))
    }

    fn pack(codes: &Codes, block: &mut [u8; 84]) {
        planes::pack_pairs(codes, 0, field_mut(block, 16));
    }
}
