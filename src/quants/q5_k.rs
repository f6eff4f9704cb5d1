//! Q5_K: 8 sub-blocks of 32 weights, each with a scale and a minimum of 6 bits; Q4_K with a fifth
//! bit.
//!
//! | bytes | field | meaning |
//! |---|---|---|
//! | 0..2 | `d` | f16: what the scales count |
//! | 2..4 | `dmin` | f16: what the minimums count |
//! | 4..16 | `scales` | scales and minimums, packed as in `scales` |
//! | 16..48 | `qh` | bit 4 of each code, a plane of 1 bit |
//! | 48..176 | `qs` | bits 0 to 3 of each code, a plane of 4 bits |
//!
//! w = (d·scale)·q − dmin·minimum. Encoders `quantize_row_q5_K_ref` and `_impl`, decoder
//! `dequantize_row_q5_K` of ggml-quants.c.

use super::batch::{Batch, Encoder};
use super::planes::{self, Codes};
use super::scales::{self, N_SUB};
use super::search::Candidates;
use super::simd::Simd;
use super::super_block::{WithMin, encode_with_min};
use super::weighting::Weighting;
use super::{QK_K, field, field_mut, q4_k};

/// Weights in a sub-block.
const SUB: usize = 32;

#[inline(always)]
pub(super) fn decode(block: &[u8; 176], w: &mut [f32; QK_K]) {
    let mut codes = [0; QK_K];
    planes::unpack_nibbles(field(block, 48), &mut codes);
    planes::unpack_bits(field(block, 16), 4, &mut codes);
    q4_k::decode_codes(field(block, 0), &codes, w);
}

pub(super) struct Q5K;

impl Encoder<QK_K, 176> for Q5K {
    #[inline(always)]
    fn encode<S: Simd>(simd: S, batch: Batch<'_, QK_K>, blocks: &mut [[u8; 176]]) {
        encode_with_min::<S, Q5K, SUB, N_SUB, 176>(simd, batch, blocks);
    }
}

impl WithMin<SUB, N_SUB, 176> for Q5K {
    const CANDIDATES: Candidates =
        Candidates { nmax: 31.0, rmin: -0.5, rdelta: 0.1, nstep: 15, use_mad: false, is_bounded: false };
    const PLAIN: Weighting = Weighting::SizeAndRms;
    const IMPORTANCE: Weighting = Weighting::Importance { times: 2.0, over: QK_K as f32 };
    const MAX_SCALE: f32 = 63.0;

    fn store(scales: &[f32; N_SUB], mins: &[f32; N_SUB], block: &mut [u8; 176]) -> [(f32, f32); N_SUB] {
        scales::encode(scales, mins, field_mut(block, 0))
    }

    /// ggml cuts these codes to six bits, and not those of Q4_K.
    fn store_codes(
        (d, scales): (f32, &[u8; N_SUB]),
        (dmin, mins): (f32, &[u8; N_SUB]),
        block: &mut [u8; 176],
    ) -> [(f32, f32); N_SUB] {
        let at_most_63 = |codes: &[u8; N_SUB]| codes.map(|code| code.min(63));
        scales::store((d, &at_most_63(scales)), (dmin, &at_most_63(mins)), field_mut(block, 0))
    }

    fn pack(codes: &Codes, block: &mut [u8; 176]) {
        planes::pack_bits(codes, 4, field_mut(block, 16));
        planes::pack_nibbles(codes, field_mut(block, 48));
    }
}
