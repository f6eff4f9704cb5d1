//! The types of three values: TQ1_0 and TQ2_0, blocks of 256 weights that are −d, 0 or d.
//!
//! | type | bytes | field | meaning |
//! |---|---|---|---|
//! | TQ1_0 | 0..48 | `qs` | five digits of base 3 a byte: byte j of the first 32 holds weights j + 32·n, byte j of the last 16 weights 160 + j + 16·n, n from 0 to 4 |
//! |       | 48..52 | `qh` | four digits a byte: byte j holds weights 240 + j + 4·n |
//! |       | 52..54 | `d` | f16: scale; w = d·(q − 1) |
//! | TQ2_0 | 0..64 | `qs` | codes, a plane of 2 bits |
//! |       | 64..66 | `d` | f16: scale; w = d·(q − 1), also for a code of 3 |
//!
//! The number of five digits, below 243, is stored as the 8-bit fraction of it: multiplied by
//! three, a digit is what leaves the byte. Encoders `quantize_row_tq1_0_ref` and
//! `quantize_row_tq2_0_ref`, decoders `dequantize_row_tq1_0` and `dequantize_row_tq2_0` of
//! ggml-quants.c.

use super::float::{read_f16, write_f16};
use super::rounding::{farthest, inverse};
use super::{QK_K, field, field_mut, planes};

#[inline(always)]
pub(super) fn decode_tq1_0(block: &[u8; 54], w: &mut [f32; QK_K]) {
    let d = read_f16(field(block, 52));
    let (first, rest) = w.split_at_mut(160);
    let (second, third) = rest.split_at_mut(80);
    decode_digits::<32>(field(block, 0), d, first);
    decode_digits::<16>(field(block, 32), d, second);
    decode_digits::<4>(field(block, 48), d, third);
}

#[inline(always)]
pub(super) fn encode_tq1_0(w: &[f32; QK_K], block: &mut [u8; 54]) {
    let codes = encode_codes(w, field_mut(block, 52));
    pack_digits::<32>(&codes[..160], field_mut(block, 0));
    pack_digits::<16>(&codes[160..240], field_mut(block, 32));
    pack_digits::<4>(&codes[240..], field_mut(block, 48));
}

#[inline(always)]
pub(super) fn decode_tq2_0(block: &[u8; 66], w: &mut [f32; QK_K]) {
    let d = read_f16(field(block, 64));
    let mut codes = [0; QK_K];
    planes::unpack_pairs(field(block, 0), 0, &mut codes);
    for (w, q) in w.iter_mut().zip(codes) {
        *w = (i32::from(q) - 1) as f32 * d;
    }
}

#[inline(always)]
pub(super) fn encode_tq2_0(w: &[f32; QK_K], block: &mut [u8; 66]) {
    let codes = encode_codes(w, field_mut(block, 64));
    planes::pack_pairs(&codes, 0, field_mut(block, 0));
}

/// The scale is the largest absolute value; each weight is rounded to −1, 0 or 1 of it, ties away
/// from zero (`lroundf`).
#[inline(always)]
fn encode_codes(w: &[f32; QK_K], d_bytes: &mut [u8; 2]) -> planes::Codes {
    let d = farthest(w);
    let id = inverse(d);
    write_f16(d, d_bytes);
    let mut codes = [0; QK_K];
    for (q, w) in codes.iter_mut().zip(w) {
        // What is no number becomes 0, as on x86-64 in C.
        let x = w * id;
        *q = 1 + u8::from(x >= 0.5) - u8::from(x <= -0.5);
    }
    codes
}

/// Digit n of byte j is weight j + `N`·n.
#[inline(always)]
fn decode_digits<const N: usize>(bytes: &[u8; N], d: f32, w: &mut [f32]) {
    let mut fractions = *bytes;
    for w in w.as_chunks_mut::<N>().0 {
        for (fraction, w) in fractions.iter_mut().zip(w) {
            let digit = i32::from((u16::from(*fraction) * 3) >> 8);
            *w = (digit - 1) as f32 * d;
            *fraction = fraction.wrapping_mul(3);
        }
    }
}

/// The inverse of [`decode_digits`]. Where the codes give four digits, the fifth is 0.
#[inline(always)]
fn pack_digits<const N: usize>(codes: &[u8], bytes: &mut [u8; N]) {
    let mut numbers = [0u16; N];
    let (digits, _) = codes.as_chunks::<N>();
    for n in 0..5 {
        for (j, number) in numbers.iter_mut().enumerate() {
            *number = *number * 3 + digits.get(n).map_or(0, |digits| u16::from(digits[j]));
        }
    }
    for (byte, number) in bytes.iter_mut().zip(numbers) {
        *byte = (number * 256).div_ceil(243) as u8;
    }
}
