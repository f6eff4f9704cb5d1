//! The types of one and two bits with one scale: Q1_0 and Q2_0.
//!
//! | type | bytes | field | meaning |
//! |---|---|---|---|
//! | Q1_0 | 0..2 | `d` | f16: scale; w = d or −d |
//! |      | 2..18 | `qs` | bit j of these 128 says that weight j is not negative |
//! | Q2_0 | 0..2 | `d` | f16: scale; w = d·(q − 1) |
//! |      | 2..18 | `qs` | codes of weights 4·j to 4·j + 3 from the low bits of byte j up |
//!
//! The encoders are `quantize_row_q1_0_ref` and `quantize_row_q2_0_ref`, the decoders
//! `dequantize_row_q1_0` and `dequantize_row_q2_0` of ggml-quants.c.

use super::float::{read_f16, write_f16};
use super::rounding::{farthest, inverse};
use super::{field, field_mut};

/// Weights in a block of Q1_0.
const QK1: usize = 128;
/// Weights in a block of Q2_0.
const QK2: usize = 64;

#[inline(always)]
pub(super) fn decode_q1_0(block: &[u8; 18], w: &mut [f32; QK1]) {
    let d = read_f16(field(block, 0)).to_bits();
    let qs: &[u8; 16] = field(block, 2);
    for (word, w) in qs.as_chunks::<4>().0.iter().zip(w.as_chunks_mut::<32>().0) {
        let negative = !u32::from_le_bytes(*word);
        for (j, w) in w.iter_mut().enumerate() {
            *w = f32::from_bits(d ^ negative << (31 - j) & 1 << 31);
        }
    }
}

/// Blocks whose sums are made side by side: 128 sums one after the other take longer than all else.
pub(super) const SIDE_BY_SIDE: usize = 8;

/// The scale is the mean absolute value, summed in the order of the weights.
#[inline(always)]
pub(super) fn encode_q1_0<const N: usize>(weights: &[[f32; QK1]; N], blocks: &mut [[u8; 18]; N]) {
    let mut sums = [0.0; N];
    for j in 0..QK1 {
        for (sum, w) in sums.iter_mut().zip(weights) {
            *sum += w[j].abs();
        }
    }
    for ((w, block), sum) in weights.iter().zip(blocks).zip(sums) {
        write_f16(sum / QK1 as f32, field_mut(block, 0));
        let qs: &mut [u8; 16] = field_mut(block, 2);
        for (word, w) in qs.as_chunks_mut::<4>().0.iter_mut().zip(w.as_chunks::<32>().0) {
            let mut bits = 0;
            for (j, &w) in w.iter().enumerate() {
                bits |= u32::from(w >= 0.0) << j;
            }
            *word = bits.to_le_bytes();
        }
    }
}

#[inline(always)]
pub(super) fn decode_q2_0(block: &[u8; 18], w: &mut [f32; QK2]) {
    let d = read_f16(field(block, 0));
    let qs: &[u8; 16] = field(block, 2);
    for (word, w) in qs.as_chunks::<4>().0.iter().zip(w.as_chunks_mut::<16>().0) {
        let word = u32::from_le_bytes(*word);
        for (j, w) in w.iter_mut().enumerate() {
            *w = ((word >> (2 * j) & 3).cast_signed() - 1) as f32 * d;
        }
    }
}

/// The scale is the largest absolute value, so that of the values −d, 0, d and 2·d the last is
/// never used.
#[inline(always)]
pub(super) fn encode_q2_0(w: &[f32; QK2], block: &mut [u8; 18]) {
    let d = farthest(w);
    let id = inverse(d);
    write_f16(d, field_mut(block, 0));
    let qs: &mut [u8; 16] = field_mut(block, 2);
    for (word, w) in qs.as_chunks_mut::<4>().0.iter_mut().zip(w.as_chunks::<16>().0) {
        let mut codes = 0;
        for (j, w) in w.iter().enumerate() {
            // Rounded with ties away from zero. What is no number becomes 0, the least code, as on
            // x86-64 in C.
            let x = w * id;
            codes |= (u32::from(x > -0.5) + u32::from(x >= 0.5)) << (2 * j);
        }
        *word = codes.to_le_bytes();
    }
}
