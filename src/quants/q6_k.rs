//! Q6_K: 16 sub-blocks of 16 weights, each with a signed scale of 8 bits.
//!
//! | bytes | field | meaning |
//! |---|---|---|
//! | 0..128 | `ql` | bits 0 to 3 of each code: byte 64·h + i holds weights 128·h + (i, i + 64), i below 64 |
//! | 128..192 | `qh` | bits 4 and 5 of each code, a plane of 2 bits |
//! | 192..208 | `scales` | i8 |
//! | 208..210 | `d` | f16: what the scales count |
//!
//! w = (d·scale)·(q − 32). Encoders `quantize_row_q6_K_ref` and `_impl`, decoder
//! `dequantize_row_q6_K` of ggml-quants.c.

use super::batch::{Batch, Encoder};
use super::float::{read_f16, write_f16};
use super::planes::{self, Codes};
use super::rounding::nearest_int;
use super::search::GROUP_MAX_EPS;
use super::simd::Simd;
use super::super_block::{WithoutMin, encode_symmetric, farthest};
use super::weighting::Weighting;
use super::{QK_K, field, field_mut};

/// Weights in a sub-block.
const SUB: usize = 16;
const N_SUB: usize = QK_K / SUB;

#[inline(always)]
pub(super) fn decode(block: &[u8; 210], w: &mut [f32; QK_K]) {
    let scales: &[u8; N_SUB] = field(block, 192);
    let d = read_f16(field(block, 208));
    let mut codes = unpack_ql(field(block, 0));
    planes::unpack_pairs(field(block, 128), 4, &mut codes);
    for ((w, codes), scale) in w.as_chunks_mut::<SUB>().0.iter_mut().zip(codes.as_chunks::<SUB>().0).zip(scales) {
        let dl = d * f32::from(scale.cast_signed());
        for (w, &q) in w.iter_mut().zip(codes) {
            *w = dl * (i32::from(q) - 32) as f32;
        }
    }
}

pub(super) struct Q6K;

impl Encoder<QK_K, 210> for Q6K {
    #[inline(always)]
    fn encode<S: Simd>(simd: S, batch: Batch<'_, QK_K>, blocks: &mut [[u8; 210]]) {
        encode_symmetric::<S, Q6K, 210>(simd, batch, blocks);
    }
}

impl WithoutMin<210> for Q6K {
    const NMAX: f32 = 32.0;
    const BY_ROUNDS: bool = false;
    const IMPORTANCE: Weighting = Weighting::ImportanceAlone;
    const SEARCHES_SCALES: bool = false;

    fn store(scales: &[f32; N_SUB], block: &mut [u8; 210]) -> Option<[f32; N_SUB]> {
        // The scale farthest from zero becomes −128.
        let max_scale = farthest(scales);
        if max_scale.abs() < GROUP_MAX_EPS {
            block.fill(0);
            return None;
        }
        let iscale = -128.0 / max_scale;
        let codes = scales.map(|scale| (nearest_int(iscale * scale).min(127) as i8).cast_unsigned());
        Some(Self::store_codes((1.0 / iscale, &codes), block))
    }

    fn store_codes((d, codes): (f32, &[u8; N_SUB]), block: &mut [u8; 210]) -> [f32; N_SUB] {
        *field_mut(block, 192) = *codes;
        let d = write_f16(d, field_mut(block, 208));
        codes.map(|code| d * f32::from(code.cast_signed()))
    }

    fn pack(codes: &Codes, block: &mut [u8; 210]) {
        pack_ql(codes, field_mut(block, 0));
        planes::pack_pairs(codes, 4, field_mut(block, 128));
    }
}

#[inline(always)]
pub(super) fn unpack_ql(ql: &[u8; 128]) -> Codes {
    let mut codes = [0; QK_K];
    for (ql, codes) in ql.as_chunks::<64>().0.iter().zip(codes.as_chunks_mut::<128>().0) {
        for (i, byte) in ql.iter().enumerate() {
            codes[i] = byte & 0xf;
            codes[i + 64] = byte >> 4;
        }
    }
    codes
}

#[inline(always)]
pub(super) fn pack_ql(codes: &Codes, ql: &mut [u8; 128]) {
    for (ql, codes) in ql.as_chunks_mut::<64>().0.iter_mut().zip(codes.as_chunks::<128>().0) {
        for (i, byte) in ql.iter_mut().enumerate() {
            *byte = codes[i] & 0xf | codes[i + 64] << 4;
        }
    }
}
