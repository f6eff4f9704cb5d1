//! The types of 32 weights and one f16 scale: Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0.
//!
//! | type | bytes | field | meaning |
//! |---|---|---|---|
//! | Q4_0 | 0..2 | `d` | scale; w = d·(q − 8) |
//! |      | 2..18 | `qs` | q of weights j and j + 16 in the low and high half of byte j |
//! | Q4_1 | 0..2 | `d` | scale; w = d·q + m |
//! |      | 2..4 | `m` | minimum |
//! |      | 4..20 | `qs` | as Q4_0 |
//! | Q5_0 | 0..2 | `d` | scale; w = d·(q − 16) |
//! |      | 2..6 | `qh` | bit j of these 32 is bit 4 of q of weight j |
//! |      | 6..22 | `qs` | as Q4_0, the low four bits of q |
//! | Q5_1 | 0..2 | `d` | scale; w = d·q + m |
//! |      | 2..4 | `m` | minimum |
//! |      | 4..8 | `qh` | as Q5_0 |
//! |      | 8..24 | `qs` | as Q5_0 |
//! | Q8_0 | 0..2 | `d` | scale; w = d·q |
//! |      | 2..34 | `qs` | q as i8 |
//!
//! The encoders are `quantize_row_q*_ref`, the decoders `dequantize_row_q*` of ggml-quants.c.

use super::float::{read_f16, write_f16};
use super::rounding::{fold, inverse, round_away, whole_code};
use super::{field, field_mut};

/// Weights in a block.
pub(super) const QK: usize = 32;

type BlockWeights = [f32; QK];
pub(super) type Codes = [u8; QK];

#[inline(always)]
pub(super) fn decode_q4_0(block: &[u8; 18], w: &mut BlockWeights) {
    let d = read_f16(field(block, 0));
    let q = unpack_nibbles(field(block, 2));
    for (w, q) in w.iter_mut().zip(q) {
        *w = (i32::from(q) - 8) as f32 * d;
    }
}

#[inline(always)]
pub(super) fn encode_q4_0(w: &BlockWeights, block: &mut [u8; 18]) {
    let q = encode_symmetric(w, 8, field_mut(block, 0));
    pack_nibbles(&q, field_mut(block, 2));
}

#[inline(always)]
pub(super) fn decode_q4_1(block: &[u8; 20], w: &mut BlockWeights) {
    let (d, m) = (read_f16(field(block, 0)), read_f16(field(block, 2)));
    let q = unpack_nibbles(field(block, 4));
    for (w, q) in w.iter_mut().zip(q) {
        *w = f32::from(q) * d + m;
    }
}

#[inline(always)]
pub(super) fn encode_q4_1(w: &BlockWeights, block: &mut [u8; 20]) {
    let q = encode_with_min(w, 15, field_mut(block, 0));
    pack_nibbles(&q, field_mut(block, 4));
}

#[inline(always)]
pub(super) fn decode_q5_0(block: &[u8; 22], w: &mut BlockWeights) {
    let d = read_f16(field(block, 0));
    let q = unpack_5_bits(field(block, 2), field(block, 6));
    for (w, q) in w.iter_mut().zip(q) {
        *w = (i32::from(q) - 16) as f32 * d;
    }
}

#[inline(always)]
pub(super) fn encode_q5_0(w: &BlockWeights, block: &mut [u8; 22]) {
    let q = encode_symmetric(w, 16, field_mut(block, 0));
    pack_fifth_bits(&q, field_mut(block, 2));
    pack_nibbles(&q, field_mut(block, 6));
}

#[inline(always)]
pub(super) fn decode_q5_1(block: &[u8; 24], w: &mut BlockWeights) {
    let (d, m) = (read_f16(field(block, 0)), read_f16(field(block, 2)));
    let q = unpack_5_bits(field(block, 4), field(block, 8));
    for (w, q) in w.iter_mut().zip(q) {
        *w = f32::from(q) * d + m;
    }
}

#[inline(always)]
pub(super) fn encode_q5_1(w: &BlockWeights, block: &mut [u8; 24]) {
    let q = encode_with_min(w, 31, field_mut(block, 0));
    pack_fifth_bits(&q, field_mut(block, 4));
    pack_nibbles(&q, field_mut(block, 8));
}

#[inline(always)]
pub(super) fn decode_q8_0(block: &[u8; 34], w: &mut BlockWeights) {
    let d = read_f16(field(block, 0));
    let qs: &Codes = field(block, 2);
    for (w, q) in w.iter_mut().zip(qs) {
        *w = f32::from(q.cast_signed()) * d;
    }
}

#[inline(always)]
pub(super) fn encode_q8_0(w: &BlockWeights, block: &mut [u8; 34]) {
    let (min, max) = extremes(w);
    let amax = if max > -min { max } else { -min };
    let d = amax.abs() / 127.0; // not -0
    let id = inverse(d);
    write_f16(d, field_mut(block, 0));
    *field_mut(block, 2) = each_code(w, |w| round_away(w * id));
}

/// Codes of 4 or 5 bits, as all types but Q8_0 end with them.
#[inline(always)]
pub(super) fn pack<const BITS: u32>(q: &Codes, bytes: &mut [u8]) {
    if BITS == 5 {
        pack_fifth_bits(q, field_mut(bytes, 0));
        pack_nibbles(q, field_mut(bytes, 4));
    } else {
        pack_nibbles(q, field_mut(bytes, 0));
    }
}

/// Codes of Q4_0 and Q5_0. The weight farthest from zero, of two with both signs the first, becomes
/// code 0; its scale is thus of the opposite sign, and the code range is used whole on that side.
#[inline(always)]
fn encode_symmetric(w: &BlockWeights, half_range: u8, d_bytes: &mut [u8; 2]) -> Codes {
    let (min, max) = extremes(w);
    let (min, max) = (if min < 0.0 { min } else { 0.0 }, if max > 0.0 { max } else { 0.0 });
    let farthest = if max > -min {
        max
    } else if max < -min {
        min
    } else {
        w.iter().copied().find(|w| w.abs() == max && max != 0.0).unwrap_or(0.0)
    };
    let d = farthest / -f32::from(half_range);
    let id = inverse(d);
    write_f16(d, d_bytes);
    let bias = f32::from(half_range) + 0.5;
    let top = f32::from(2 * half_range - 1);
    each_code(w, |w| whole_code(w * id + bias, top))
}

/// Codes of Q4_1 and Q5_1, counted from the least weight.
#[inline(always)]
fn encode_with_min(w: &BlockWeights, top: u8, dm_bytes: &mut [u8; 4]) -> Codes {
    let (min, max) = extremes(w);
    // Which zero is the least decides the sign of the stored minimum: in ggml, the first.
    let first_of = |x: f32| if x == 0.0 { w.iter().copied().find(|&w| w == x).unwrap_or(x) } else { x };
    let (min, max) = (first_of(min), first_of(max));
    let top = f32::from(top);
    let d = (max - min) / top;
    let id = inverse(d);
    write_f16(d, field_mut(dm_bytes, 0));
    write_f16(min, field_mut(dm_bytes, 2));
    each_code(w, |w| whole_code((w - min) * id + 0.5, top))
}

#[inline(always)]
fn each_code(w: &BlockWeights, code: impl Fn(f32) -> u8) -> Codes {
    let mut q = [0; QK];
    for (q, &w) in q.iter_mut().zip(w) {
        *q = code(w);
    }
    q
}

/// The least and the largest weight; of two zeros, either. The compiler may not reorder comparisons
/// of floats by itself, because of NaN and the zeros.
#[inline(always)]
fn extremes(w: &BlockWeights) -> (f32, f32) {
    let (mut min, mut max) = ([f32::MAX; 8], [-f32::MAX; 8]);
    for w in w.as_chunks::<8>().0 {
        for k in 0..8 {
            min[k] = least(min[k], w[k]);
            max[k] = largest(max[k], w[k]);
        }
    }
    (fold(min, least), fold(max, largest))
}

/// The lesser, and `a` if `b` is NaN. Not `f32::min`, which is not one instruction.
#[inline(always)]
fn least(a: f32, b: f32) -> f32 {
    if b < a { b } else { a }
}

/// The larger, and `a` if `b` is NaN.
#[inline(always)]
fn largest(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

#[inline(always)]
pub(super) fn unpack_nibbles(qs: &[u8; QK / 2]) -> Codes {
    let mut q = [0; QK];
    for (j, &byte) in qs.iter().enumerate() {
        q[j] = byte & 0xf;
        q[j + QK / 2] = byte >> 4;
    }
    q
}

#[inline(always)]
pub(super) fn pack_nibbles(q: &Codes, qs: &mut [u8; QK / 2]) {
    for (j, byte) in qs.iter_mut().enumerate() {
        *byte = q[j] & 0xf | q[j + QK / 2] << 4;
    }
}

#[inline(always)]
pub(super) fn unpack_5_bits(qh: &[u8; 4], qs: &[u8; QK / 2]) -> Codes {
    let mut q = unpack_nibbles(qs);
    for (j, q) in q.iter_mut().enumerate() {
        *q |= if qh[j / 8] & 1 << (j % 8) != 0 { 0x10 } else { 0 };
    }
    q
}

#[inline(always)]
pub(super) fn pack_fifth_bits(q: &Codes, qh: &mut [u8; 4]) {
    for (byte, q) in qh.iter_mut().zip(q.as_chunks::<8>().0) {
        // Bit 4 of byte j of the word moves to bit 56 + j; no two sums of shifts meet there.
        let fifths = u64::from_le_bytes(*q) >> 4 & 0x0101_0101_0101_0101;
        *byte = (fifths.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
    }
}
