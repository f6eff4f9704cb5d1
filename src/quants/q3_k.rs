//! Q3_K: 16 sub-blocks of 16 weights, each with a signed scale of 6 bits.
//!
//! | bytes | field | meaning |
//! |---|---|---|
//! | 0..32 | `hmask` | bit 2 of each code, a plane of 1 bit |
//! | 32..96 | `qs` | bits 0 and 1 of each code, a plane of 2 bits |
//! | 96..104 | `scales` | byte j: low four bits of scales j and j + 8 |
//! | 104..108 |  | byte j: bits 4 and 5 of scales j, j + 4, j + 8 and j + 12, from the low bits up |
//! | 108..110 | `d` | f16: what the scales count |
//!
//! w = (d·(scale − 32))·(q − 4). Encoders `quantize_row_q3_K_ref` and `_impl`, decoder
//! `dequantize_row_q3_K` of ggml-quants.c.

use super::batch::{Batch, Encoder};
use super::float::{read_f16, write_f16};
use super::planes::{self, Codes};
use super::rounding::nearest_int;
use super::scales;
use super::simd::Simd;
use super::super_block::{WithoutMin, encode_symmetric, farthest};
use super::weighting::Weighting;
use super::{QK_K, field, field_mut};

/// Weights in a sub-block.
const SUB: usize = 16;
const N_SUB: usize = QK_K / SUB;

#[inline(always)]
pub(super) fn decode(block: &[u8; 110], w: &mut [f32; QK_K]) {
    let d = read_f16(field(block, 108));
    let scales = scales::unpack_sixteen(field(block, 96));
    let mut codes = [0; QK_K];
    planes::unpack_pairs(field(block, 32), 0, &mut codes);
    planes::unpack_bits(field(block, 0), 2, &mut codes);
    for ((w, codes), scale) in w.as_chunks_mut::<SUB>().0.iter_mut().zip(codes.as_chunks::<SUB>().0).zip(scales) {
        let dl = d * (i32::from(scale) - 32) as f32;
        for (w, &q) in w.iter_mut().zip(codes) {
            *w = dl * (i32::from(q) - 4) as f32;
        }
    }
}

pub(super) struct Q3K;

impl Encoder<QK_K, 110> for Q3K {
    #[inline(always)]
    fn encode<S: Simd>(simd: S, batch: Batch<'_, QK_K>, blocks: &mut [[u8; 110]]) {
        encode_symmetric::<S, Q3K, 110>(simd, batch, blocks);
    }
}

impl WithoutMin<110> for Q3K {
    const NMAX: f32 = 4.0;
    const BY_ROUNDS: bool = true;
    const IMPORTANCE: Weighting = Weighting::Importance { times: 2.0, over: QK_K as f32 };
    const SEARCHES_SCALES: bool = true;

    fn store(scales: &[f32; N_SUB], block: &mut [u8; 110]) -> Option<[f32; N_SUB]> {
        // The scale farthest from zero becomes −32. Without any scale ggml stores zeros, which read
        // as −32.
        let max_scale = farthest(scales);
        if max_scale == 0.0 {
            return Some(Self::store_codes((0.0, &[0; N_SUB]), block));
        }
        let iscale = -32.0 / max_scale;
        let codes = scales.map(|scale| ((nearest_int(iscale * scale) as i8).clamp(-32, 31) + 32).cast_unsigned());
        Some(Self::store_codes((1.0 / iscale, &codes), block))
    }

    fn store_codes((d, codes): (f32, &[u8; N_SUB]), block: &mut [u8; 110]) -> [f32; N_SUB] {
        pack_scales(codes, field_mut(block, 96));
        let d = write_f16(d, field_mut(block, 108));
        codes.map(|code| d * (i32::from(code) - 32) as f32)
    }

    fn pack(codes: &Codes, block: &mut [u8; 110]) {
        planes::pack_bits(codes, 2, field_mut(block, 0));
        planes::pack_pairs(codes, 0, field_mut(block, 32));
    }
}

fn pack_scales(scales: &[u8; N_SUB], bytes: &mut [u8; 12]) {
    bytes.fill(0);
    for (j, scale) in scales.iter().enumerate() {
        bytes[j % 8] |= (scale & 0xf) << (4 * (j / 8));
        bytes[8 + j % 4] |= scale >> 4 << (2 * (j / 4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_bit_scales_survive_packing() {
        let scales = [0, 63, 1, 32, 15, 16, 48, 63, 7, 0, 31, 33, 62, 2, 47, 17];
        let mut bytes = [0xff; 12];
        pack_scales(&scales, &mut bytes);
        assert_eq!(scales::unpack_sixteen(&bytes), scales);
    }
}
