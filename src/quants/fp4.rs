//! The types of 4-bit floats with a shared scale: MXFP4 and NVFP4.
//!
//! | type | bytes | field | meaning |
//! |---|---|---|---|
//! | MXFP4 | 0 | `e` | E8M0: the scale of 32 weights is 2^(e − 127) |
//! |       | 1..17 | `qs` | codes of weights j and j + 16 in the low and high half of byte j |
//! | NVFP4 | 0..4 | `d` | UE4M3: the scales of 4 sub-blocks of 16 weights |
//! |       | 4..36 | `qs` | 8 bytes a sub-block: codes of weights j and j + 8 in the low and high half of byte j |
//!
//! A code is E2M1: a sign, two bits of exponent, one of mantissa. Like ggml, everything here counts
//! halves, so that the values are integers (`kvalues_fp4` in ggml-common.h) and the scales half of
//! what they are elsewhere. A model may hold another scale for a whole NVFP4 tensor in a tensor of
//! its own; blocks do not know of it.
//!
//! The encoders are `quantize_row_mxfp4_ref` and `quantize_row_nvfp4_ref`, the decoders
//! `dequantize_row_mxfp4` and `dequantize_row_nvfp4` of ggml-quants.c.

use super::rounding::farthest;
use super::{field, field_mut};

/// Weights in a sub-block of NVFP4.
const SUB: usize = 16;

#[inline(always)]
pub(super) fn decode_mxfp4(block: &[u8; 17], w: &mut [f32; 32]) {
    decode::<16>(field(block, 1), half_e8m0(block[0]), w);
}

#[inline(always)]
pub(super) fn encode_mxfp4(w: &[f32; 32], block: &mut [u8; 17]) {
    let amax = farthest(w);
    block[0] = exponent(amax);
    encode::<16>(w, amax, half_e8m0(block[0]), field_mut(block, 1));
}

#[inline(always)]
pub(super) fn decode_nvfp4(block: &[u8; 36], w: &mut [f32; 64]) {
    for (s, w) in w.as_chunks_mut::<SUB>().0.iter_mut().enumerate() {
        decode::<8>(field(block, 4 + 8 * s), HALF_UE4M3[usize::from(block[s])], w);
    }
}

#[inline(always)]
pub(super) fn encode_nvfp4(w: &[f32; 64], block: &mut [u8; 36]) {
    for (s, w) in w.as_chunks::<SUB>().0.iter().enumerate() {
        let amax = farthest(w);
        let scale = to_ue4m3(amax / 6.0);
        block[s] = scale;
        encode::<8>(w, amax, HALF_UE4M3[usize::from(scale)], field_mut(block, 4 + 8 * s));
    }
}

#[inline(always)]
fn decode<const N: usize>(qs: &[u8; N], d: f32, w: &mut [f32]) {
    let (low, high) = w.split_at_mut(N);
    for ((&q, low), high) in qs.iter().zip(low).zip(high) {
        *low = f32::from(value(q & 0xf)) * d;
        *high = f32::from(value(q >> 4)) * d;
    }
}

/// What a code counts: 0, 1, 2, 3, 4, 6, 8, 12 and the same negative. Written as arithmetic, which
/// vectorises where a table does not.
#[inline(always)]
pub(super) const fn value(code: u8) -> i8 {
    let size = code & 7;
    let size = size + size.saturating_sub(4) + if size == 7 { 2 } else { 0 };
    let sign = (code >> 3).wrapping_neg();
    (size ^ sign).wrapping_sub(sign).cast_signed()
}

#[inline(always)]
fn encode<const N: usize>(w: &[f32], amax: f32, d: f32, qs: &mut [u8; N]) {
    let (low, high) = w.split_at(N);
    // Beyond this, differences are rounded so much that several values are equally near, or values
    // are infinite; see `nearest_far`.
    if amax <= 24.0 * d && (24.0 * d).is_finite() {
        let d = THRESHOLDS.map(|t| t * d);
        for ((q, &low), &high) in qs.iter_mut().zip(low).zip(high) {
            *q = nearest(low, &d) | nearest(high, &d) << 4;
        }
    } else {
        for ((q, &low), &high) in qs.iter_mut().zip(low).zip(high) {
            *q = nearest_far(low, d) | nearest_far(high, d) << 4;
        }
    }
}

/// Half way between neighbouring values. Multiplied with a scale they are exact: it has at most
/// four bits.
const THRESHOLDS: [f32; 7] = [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0];

/// The code of the nearest value, of two that are equally near the smaller (`best_index_mxfp4`,
/// which takes the first of the least difference). Near a threshold both differences are exact.
#[inline(always)]
fn nearest(x: f32, thresholds: &[f32; 7]) -> u8 {
    let size = thresholds.iter().map(|&t| u32::from(x.abs() > t)).sum::<u32>();
    let sign = if size == 0 { 0 } else { x.to_bits() >> 31 << 3 };
    (size | sign) as u8
}

/// As [`nearest`] for any `x`, by the definition: differences in f32, the first of the least.
#[cold]
fn nearest_far(x: f32, d: f32) -> u8 {
    let difference = |code: u8| (f32::from(value(code)) * d - x.abs()).abs();
    let size = (1..8).fold(0, |best, code| if difference(code) < difference(best) { code } else { best });
    if size != 0 && x < 0.0 { size | 8 } else { size }
}

/// Half of 2^(e − 127) (`ggml_e8m0_to_fp32_half` in ggml-impl.h, which knows no NaN).
#[inline(always)]
pub(super) fn half_e8m0(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// The E8M0 exponent that puts `amax` between values 8 and 16. In C an exponent out of range is
/// undefined, and so is that of infinity; on x86-64 the low byte of the integer is stored, and 0.
#[inline(always)]
fn exponent(amax: f32) -> u8 {
    if amax > 0.0 && amax < f32::INFINITY { (floor_log2(amax) - 2 + 127) as u8 } else { 0 }
}

/// `floorf(log2f(x))` of a positive number, for a `log2f` that is rounded to nearest, as that of
/// glibc is in all places that matter here.
///
/// For an `x` a little below 2^k, the logarithm rounds up to k. With x = 2^k·(1 − n·2⁻²⁴) it is k −
/// n·2⁻²⁴/ln 2, and half of the distance from k to the number below it is 2^m·2⁻²⁴, where 2^m ≤ |k|
/// < 2^(m+1) for negative k, and 2^m < k ≤ 2^(m+1) for positive k. So it rounds up for n < 2^m·ln
/// 2, and never does for k = 0.
#[inline(always)]
fn floor_log2(x: f32) -> i32 {
    const N: [u32; 8] = [0, 1, 2, 5, 11, 22, 44, 88];
    // A subnormal number becomes normal by 2²⁴.
    let (x, bias) = if x < f32::MIN_POSITIVE { (x * 16_777_216.0, 127 + 24) } else { (x, 127) };
    let floor = (x.to_bits() >> 23).cast_signed() - bias;
    let n = 0x0080_0000 - (x.to_bits() & 0x007f_ffff);
    let k = floor + 1;
    let m = if k > 0 { k - 1 } else { -k }.checked_ilog2().unwrap_or(0);
    if n <= N[(m & 7) as usize] { k } else { floor }
}

/// UE4M3 scales, halved, by their byte (`ggml_ue4m3_to_fp32` in ggml-impl.h): bit 7 is not looked
/// at but for 0x7f, which is NaN in the format and 0 here.
const HALF_UE4M3: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (exponent, mantissa) = (byte >> 3 & 15, byte & 7);
        // In 2⁻¹⁰, which is half of what the least bit counts.
        let count = if exponent == 0 { mantissa } else { (8 + mantissa) << (exponent - 1) };
        table[byte] = if byte == 0x7f { 0.0 } else { count as f32 / 1024.0 };
        byte += 1;
    }
    table
};

/// The UE4M3 byte of a scale (`ggml_fp32_to_ue4m3` in ggml-impl.h): half up by the first bit that
/// is cut off, and the largest, 448, for all from 248 on.
#[inline(always)]
fn to_ue4m3(x: f32) -> u8 {
    const LARGEST: u32 = 0x7e;
    if x <= 0.0 {
        return 0;
    }
    // Sixteenths of an octave, counted from 2⁻⁷, of which a byte counts every second.
    let steps = (x.to_bits() >> 19).wrapping_sub((127 - 7) << 4).cast_signed();
    if steps < 1 << 4 {
        // Below 2⁻⁶ there are no octaves: a byte counts 2⁻⁹.
        return ((x * 512.0 + 0.5) as u8).min(7);
    }
    let rounded = (steps.cast_unsigned() + 1) >> 1;
    if rounded < 15 << 3 { rounded as u8 } else { LARGEST as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_ggml() {
        let sizes = [0, 1, 2, 3, 4, 6, 8, 12];
        for code in 0..16 {
            let size = sizes[usize::from(code & 7)];
            assert_eq!(value(code), if code < 8 { size } else { -size });
        }
    }

    #[test]
    fn both_ways_to_the_nearest_value_agree() {
        for d in [1.0, 0.625, 1.875, f32::from_bits(0x0020_0000)] {
            let thresholds = THRESHOLDS.map(|t| t * d);
            for i in 0..=24 * 32 {
                let x = i as f32 / 32.0 * d;
                for x in [x, x.next_up(), x.next_down()].into_iter().flat_map(|x| [x, -x]) {
                    assert_eq!(nearest(x, &thresholds), nearest_far(x, d), "{x} in {d}");
                }
            }
        }
    }

    #[test]
    fn logarithms_round_up_just_below_powers_of_two() {
        // Pairs of the last number whose log2f has the floor k − 1 and k, found by glibc's log2f.
        for (k, n) in
            [(-126, 22), (-64, 44), (-63, 22), (-2, 1), (-1, 0), (0, 0), (1, 0), (4, 1), (5, 2), (64, 22), (65, 44)]
        {
            let power = (f64::from(k)).exp2() as f32;
            let below = |n| (0..n).fold(power, |x, _| x.next_down());
            assert_eq!((floor_log2(below(n)), floor_log2(below(n + 1))), (k, k - 1), "2^{k}");
        }
        assert_eq!((floor_log2(f32::MAX), floor_log2(f32::from_bits(1))), (128, -149));
    }
}
