//! Rounding floats to codes without leaving the float registers.
//!
//! C's conversions are undefined where Rust's saturate, and saturating costs more than the
//! conversion. The trick of ggml's `nearest_int` serves for all roundings here: it says what
//! happens to any bits, and it vectorises.

/// 1.5·2²³: a number of a few digits added to this is rounded to an integer, which is then in the
/// low bits of the sum.
pub(super) const MAGIC: f32 = 12_582_912.0;

/// The nearest integer, ties to even (`nearest_int`). Beyond 2²² and for NaN the result is without
/// meaning but the same as in ggml, whose callers clamp it.
#[inline(always)]
pub(super) fn nearest_int(x: f32) -> i32 {
    ((x + MAGIC).to_bits() & 0x007f_ffff).cast_signed() - 0x0040_0000
}

/// [`nearest_int`] as a float: 2²³ with the low bits of the sum is always a number, MAGIC away from
/// the integer.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    f32::from_bits((x + MAGIC).to_bits() & 0x007f_ffff | 0x4b00_0000) - MAGIC
}

/// The code of the integer below `x`, for `x` from 0 up, at most `highest`; 0 for NaN as arithmetic
/// makes it.
#[inline(always)]
pub(super) fn whole_code(x: f32, highest: f32) -> u8 {
    let sum = x + MAGIC;
    let sum = if sum - MAGIC > x { sum - 1.0 } else { sum };
    let sum = if sum > highest + MAGIC { highest + MAGIC } else { sum };
    sum.to_bits() as u8
}

/// The code of the nearest integer, ties away from zero like C's `roundf`, from −128 to 127 as i8.
#[inline(always)]
pub(super) fn round_away(x: f32) -> u8 {
    let l = nearest(x);
    let up = if (x - l == 0.5) & (x > 0.0) { 1.0 } else { 0.0 };
    let down = if (x - l == -0.5) & (x < 0.0) { 1.0 } else { 0.0 };
    code_byte(l + up - down)
}

/// The byte of a code.
#[inline(always)]
pub(super) fn code_byte(code: f32) -> u8 {
    (code + MAGIC).to_bits() as u8
}

/// 1/d, or 0 for a scale of 0.
///
/// A denormal d may have no finite inverse, and then ggml's conversion of infinity to an integer is
/// undefined in C; on x86-64 it gives the least integer, as that of NaN does, of which the encoders
/// store the low bits. With NaN as the inverse, every code is made in the same way.
#[inline(always)]
pub(super) fn inverse(d: f32) -> f32 {
    let id = 1.0 / d;
    if d == 0.0 {
        0.0
    } else if id.is_infinite() {
        f32::NAN
    } else {
        id
    }
}

/// The largest absolute value, NaN passed over.
#[inline(always)]
pub(super) fn farthest<const N: usize>(w: &[f32; N]) -> f32 {
    let mut amax = [0.0f32; 8];
    for w in w.as_chunks::<8>().0 {
        for (amax, w) in amax.iter_mut().zip(w) {
            *amax = if w.abs() > *amax { w.abs() } else { *amax };
        }
    }
    fold(amax, |a, b| if b > a { b } else { a })
}

/// One number from eight, two by two, so that no step waits for all before it.
#[inline(always)]
pub(super) fn fold(mut x: [f32; 8], f: impl Fn(f32, f32) -> f32) -> f32 {
    for n in [4, 2, 1] {
        for k in 0..n {
            x[k] = f(x[k], x[k + n]);
        }
    }
    x[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_int_rounds_ties_to_even() {
        for (x, l) in [(0.5, 0), (1.5, 2), (-0.5, 0), (-1.5, -2), (2.4999, 2), (-3.7, -4), (4_194_303.0, 4_194_303)] {
            assert_eq!(nearest_int(x), l, "{x}");
        }
    }

    #[test]
    fn round_away_is_round_up_to_127() {
        for i in -127 * 64..=127 * 64 {
            for x in [i as f32 / 64.0, (i as f32 / 64.0).next_up(), (i as f32 / 64.0).next_down()] {
                assert_eq!(round_away(x).cast_signed(), x.round() as i8, "{x}");
            }
        }
    }

    #[test]
    fn whole_code_is_floor() {
        for i in 0..=32 * 64 {
            for x in [i as f32 / 64.0, (i as f32 / 64.0).next_up()] {
                assert_eq!(whole_code(x, 31.0), (x as u8).min(31), "{x}");
            }
        }
        assert_eq!(whole_code(f32::NAN, 31.0), 0);
    }
}
