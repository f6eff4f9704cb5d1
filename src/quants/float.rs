//! F32, F16 and BF16: one number a block, and the f16 scales inside all other blocks.
//!
//! Conversions are arithmetic without branches, which the compiler turns into vectors of every
//! level. For rows of F16 many processors have instructions (`simd::decode_f16`), which give the
//! same bits.

#[inline(always)]
pub(super) fn decode_f32(bytes: &[u8; 4], w: &mut [f32; 1]) {
    *w = [f32::from_le_bytes(*bytes)];
}

#[inline(always)]
pub(super) fn encode_f32(w: &[f32; 1], bytes: &mut [u8; 4]) {
    *bytes = w[0].to_le_bytes();
}

#[inline(always)]
pub(super) fn decode_f16(bytes: &[u8; 2], w: &mut [f32; 1]) {
    *w = [read_f16(bytes)];
}

#[inline(always)]
pub(super) fn encode_f16(w: &[f32; 1], bytes: &mut [u8; 2]) {
    *bytes = f16_bits(w[0]).to_le_bytes();
}

#[inline(always)]
pub(super) fn decode_bf16(bytes: &[u8; 2], w: &mut [f32; 1]) {
    *w = [read_bf16(bytes)];
}

#[inline(always)]
pub(super) fn read_bf16(bytes: &[u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16)
}

/// Round to nearest even, and a NaN made quiet (`ggml_compute_fp32_to_bf16` in ggml-impl.h).
#[inline(always)]
pub(super) fn encode_bf16(w: &[f32; 1], bytes: &mut [u8; 2]) {
    let bits = w[0].to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let quiet = bits | 64 << 16;
    let bits = if w[0].is_nan() { quiet } else { rounded };
    *bytes = ((bits >> 16) as u16).to_le_bytes();
}

/// A scale (`ggml_half`) inside a block.
#[inline(always)]
pub(super) fn read_f16(bytes: &[u8; 2]) -> f32 {
    f16_value(u16::from_le_bytes(*bytes))
}

/// Stores a scale inside a block, and gives it back as a decoder will read it.
#[inline(always)]
pub(super) fn write_f16(x: f32, bytes: &mut [u8; 2]) -> f32 {
    let bits = f16_bits(x);
    *bytes = bits.to_le_bytes();
    f16_value(bits)
}

/// The exponent of f32 less that of f16, of numbers that are normal in both.
const BIAS: u32 = (127 - 15) << 23;

/// The number of these bits; a NaN keeps what it says.
#[inline(always)]
fn f16_value(bits: u16) -> f32 {
    let (sign, size) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7fff) << 13);
    // Infinity and NaN end in the largest exponent, too.
    let normal = size + if size < 0x7c00 << 13 { BIAS } else { 2 * BIAS };
    // A subnormal number counts 2⁻²⁴, which is what the last bit of 0.5 counts.
    let subnormal = (f32::from_bits(0.5f32.to_bits() | size >> 13) - 0.5).to_bits();
    let value = if size < 1 << 23 { subnormal } else { normal };
    f32::from_bits(sign | value)
}

/// The nearest number, ties to even. There is one NaN for each sign, as in ggml
/// (`ggml_compute_fp32_to_fp16` in ggml-impl.h); processors keep what a NaN says.
#[inline(always)]
fn f16_bits(x: f32) -> u16 {
    let (sign, size) = (x.to_bits() >> 16 & 0x8000, x.to_bits() & 0x7fff_ffff);
    let rounded = (size + 0xfff + (size >> 13 & 1)).wrapping_sub(BIAS) >> 13;
    let normal = if size < 65536f32.to_bits() { rounded } else { 0x7c00 };
    let subnormal = (x.abs() + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let value = if size < (127 - 14) << 23 { subnormal } else { normal };
    let value = if size > f32::INFINITY.to_bits() { 0x7e00 } else { value };
    (sign | value) as u16
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn halves_are_those_of_the_half_crate() {
        for bits in 0..=u16::MAX {
            let expected = f16::from_bits(bits);
            assert!(
                f16_value(bits) == expected.to_f32() || expected.is_nan() && f16_value(bits).is_nan(),
                "{bits:04x}"
            );
            // The neighbours of a number and of the middle to the next, where rounding changes.
            let middle = f32::midpoint(f16_value(bits), f16_value(bits.wrapping_add(1)));
            for x in [f16_value(bits), middle].into_iter().flat_map(|x| [x.next_down(), x, x.next_up()]) {
                let expected =
                    if x.is_nan() { f16::from_bits(0x7e00).copysign(f16::from_f32(x)) } else { f16::from_f32(x) };
                assert_eq!(f16_bits(x), expected.to_bits(), "{x:e}");
            }
        }
    }
}
