//! Q6_K: 16 sub-blocks of 16 weights, each with a signed scale of 8 bits.
//!
//! | bytes | field | meaning |
//! |---|---|---|
//! | 0..128 | `ql` | bits 0 to 3 of each code: byte 64·h + i holds weights 128·h + (i, i + 64), i below 64 |
//! | 128..192 | `qh` | bits 4 and 5 of each code, a plane of 2 bits |
//! | 192..208 | `scales` | i8 |
//! | 208..210 | `d` | f16: what the scales count |
//!
//! w = (d·scale)·(q − 32). Encoder `quantize_row_q6_K_ref`, decoder `dequantize_row_q6_K` of ggml-quants.c.

use super::float::{read_f16, write_f16};
use super::planes::{self, Codes};
use super::rounding::nearest_int;
use super::search::{self, GROUP_MAX_EPS, LANES, requantize};
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

pub(super) fn encode(w: &[f32; QK_K], block: &mut [u8; 210]) {
    let mut codes = [0; QK_K];
    let mut scales = [0.0f32; N_SUB];
    search::each_group::<SUB>(w, &mut codes, |x, codes, at| {
        scales[at..at + LANES].copy_from_slice(&search::symmetric_scale(x, 32.0, codes));
    });

    // The scale farthest from zero becomes −128.
    let max_scale = scales.iter().fold(0.0f32, |max, &scale| if scale.abs() > max.abs() { scale } else { max });
    if max_scale.abs() < GROUP_MAX_EPS {
        block.fill(0);
        return;
    }
    let iscale = -128.0 / max_scale;
    let stored = scales.map(|scale| nearest_int(iscale * scale).min(127) as i8);
    *field_mut(block, 192) = stored.map(i8::cast_unsigned);
    let d = write_f16(1.0 / iscale, field_mut(block, 208));

    for ((w, codes), scale) in w.as_chunks::<SUB>().0.iter().zip(codes.as_chunks_mut::<SUB>().0).zip(stored) {
        requantize(w, d * f32::from(scale), 0.0, -32.0, 31.0, codes);
    }
    pack_ql(&codes, field_mut(block, 0));
    planes::pack_pairs(&codes, 4, field_mut(block, 128));
}

#[inline(always)]
fn unpack_ql(ql: &[u8; 128]) -> Codes {
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
fn pack_ql(codes: &Codes, ql: &mut [u8; 128]) {
    for (ql, codes) in ql.as_chunks_mut::<64>().0.iter_mut().zip(codes.as_chunks::<128>().0) {
        for (i, byte) in ql.iter_mut().enumerate() {
            *byte = codes[i] & 0xf | codes[i + 64] << 4;
        }
    }
}
