//! Q4_K: 8 sub-blocks of 32 weights, each with a scale and a minimum of 6 bits.
//!
//! | bytes | field | meaning |
//! |---|---|---|
//! | 0..2 | `d` | f16: what the scales count |
//! | 2..4 | `dmin` | f16: what the minimums count |
//! | 4..16 | `scales` | scales and minimums, packed as in `scales` |
//! | 16..144 | `qs` | codes, a plane of 4 bits |
//!
//! w = (d·scale)·q − dmin·minimum. Encoders `quantize_row_q4_K_ref` and `_impl`, decoder
//! `dequantize_row_q4_K` of ggml-quants.c.

use super::batch::{Batch, Encoder};
use super::float::read_f16;
use super::planes::{self, Codes};
use super::scales::{self, N_SUB};
use super::search::Candidates;
use super::simd::Simd;
use super::super_block::{WithMin, encode_with_min};
use super::weighting::Weighting;
use super::{QK_K, field, field_mut};

/// Weights in a sub-block.
const SUB: usize = 32;

#[inline(always)]
pub(super) fn decode(block: &[u8; 144], w: &mut [f32; QK_K]) {
    let mut codes = [0; QK_K];
    planes::unpack_nibbles(field(block, 16), &mut codes);
    decode_codes(field(block, 0), &codes, w);
}

pub(super) struct Q4K;

impl Encoder<QK_K, 144> for Q4K {
    #[inline(always)]
    fn encode<S: Simd>(simd: S, batch: Batch<'_, QK_K>, blocks: &mut [[u8; 144]]) {
        encode_with_min::<S, Q4K, SUB, N_SUB, 144>(simd, batch, blocks);
    }
}

impl WithMin<SUB, N_SUB, 144> for Q4K {
    const CANDIDATES: Candidates =
        Candidates { nmax: 15.0, rmin: -1.0, rdelta: 0.1, nstep: 20, use_mad: false, is_bounded: false };
    const PLAIN: Weighting = Weighting::SizeAndRms;
    const IMPORTANCE: Weighting = Weighting::Importance { times: 2.0, over: QK_K as f32 };
    const MAX_SCALE: f32 = 63.0;

    fn store(scales: &[f32; N_SUB], mins: &[f32; N_SUB], block: &mut [u8; 144]) -> [(f32, f32); N_SUB] {
        scales::encode(scales, mins, field_mut(block, 0))
    }

    fn store_codes(
        scales: (f32, &[u8; N_SUB]),
        mins: (f32, &[u8; N_SUB]),
        block: &mut [u8; 144],
    ) -> [(f32, f32); N_SUB] {
        scales::store(scales, mins, field_mut(block, 0))
    }

    fn pack(codes: &Codes, block: &mut [u8; 144]) {
        planes::pack_nibbles(codes, field_mut(block, 16));
    }
}

/// Weights from codes and the first 16 bytes of a block, which Q5_K has in common.
#[inline(always)]
pub(super) fn decode_codes(head: &[u8; 16], codes: &Codes, w: &mut [f32; QK_K]) {
    let (d, dmin) = (read_f16(field(head, 0)), read_f16(field(head, 2)));
    let (scales, mins) = scales::unpack(field(head, 4));
    let sub_blocks = w.as_chunks_mut::<SUB>().0.iter_mut().zip(codes.as_chunks::<SUB>().0);
    for ((w, codes), (scale, min)) in sub_blocks.zip(scales.into_iter().zip(mins)) {
        // The compiler would take one weight of each of four sub-blocks together, which is four
        // times as slow.
        let (dl, ml) = std::hint::black_box((d * f32::from(scale), dmin * f32::from(min)));
        for (w, &q) in w.iter_mut().zip(codes) {
            *w = dl * f32::from(q) - ml;
        }
    }
}
