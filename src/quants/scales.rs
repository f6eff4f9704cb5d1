//! The twelve bytes of Q4_K and Q5_K that hold 8 scales and 8 minimums of 6 bits, one of each for
//! 32 weights (`get_scale_min_k4` in ggml-quants.c).
//!
//! | byte | bits 0..6 or 0..4 | bits 4..8 or 6..8 |
//! |---|---|---|
//! | j (0 to 3) | scale j | bits 4 and 5 of scale j + 4 |
//! | j + 4 | minimum j | bits 4 and 5 of minimum j + 4 |
//! | j + 8 | low four bits of scale j + 4 | low four bits of minimum j + 4 |

use super::float::write_f16;
use super::rounding::nearest_int;
use super::{QK_K, field, field_mut};

/// Sub-blocks of 32 weights in a super-block.
pub(super) const N_SUB: usize = QK_K / 32;

/// Scales and minimums, each below 64.
#[inline]
pub(super) fn unpack(bytes: &[u8; 12]) -> ([u8; N_SUB], [u8; N_SUB]) {
    let (mut scales, mut mins) = ([0; N_SUB], [0; N_SUB]);
    for j in 0..4 {
        let (s, m, low) = (bytes[j], bytes[j + 4], bytes[j + 8]);
        (scales[j], scales[j + 4]) = (s & 63, low & 0xf | s >> 6 << 4);
        (mins[j], mins[j + 4]) = (m & 63, low >> 4 | m >> 6 << 4);
    }
    (scales, mins)
}

/// The sixteen scales of six bits in the twelve bytes of Q3_K: the low four bits of two each, then the
/// high two of four each.
#[inline]
pub(super) fn unpack_sixteen(bytes: &[u8; 12]) -> [u8; 16] {
    // Eight, or four, at a time.
    let low = u64::from_le_bytes(*field(bytes, 0));
    let high = u32::from_le_bytes(*field(bytes, 8));
    let pairs =
        |shift: u32| u64::from(high >> shift & 0x0303_0303) | u64::from(high >> (shift + 2) & 0x0303_0303) << 32;
    let halves = [low & 0x0f0f_0f0f_0f0f_0f0f | pairs(0) << 4, low >> 4 & 0x0f0f_0f0f_0f0f_0f0f | pairs(4) << 4];
    *field(halves.map(u64::to_le_bytes).as_flattened(), 0)
}

/// The inverse of [`unpack`].
pub(super) fn pack(scales: &[u8; N_SUB], mins: &[u8; N_SUB], bytes: &mut [u8; 12]) {
    for j in 0..4 {
        bytes[j] = scales[j] | scales[j + 4] >> 4 << 6;
        bytes[j + 4] = mins[j] | mins[j + 4] >> 4 << 6;
        bytes[j + 8] = scales[j + 4] & 0xf | mins[j + 4] << 4;
    }
}

/// Stores `d`, `dmin` and the packed scales in the first 16 bytes of a Q4_K or Q5_K block, and
/// gives back the scale and minimum of each sub-block as a decoder will compute them.
pub(super) fn encode(scales: &[f32; N_SUB], mins: &[f32; N_SUB], head: &mut [u8; 16]) -> [(f32, f32); N_SUB] {
    let max_scale = largest(scales);
    let max_min = largest(mins);
    let codes = |values: &[f32; N_SUB], max: f32| {
        let inverse = if max > 0.0 { 63.0 / max } else { 0.0 };
        values.map(|x| (nearest_int(inverse * x) as u8).min(63))
    };
    let (ls, lm) = (codes(scales, max_scale), codes(mins, max_min));
    store((max_scale / 63.0, &ls), (max_min / 63.0, &lm), head)
}

/// Stores codes with their scales as [`encode`] does. A code that has more than six bits spills, in
/// ggml too: what counts is what a decoder will read.
pub(super) fn store(
    (d, ls): (f32, &[u8; N_SUB]),
    (dmin, lm): (f32, &[u8; N_SUB]),
    head: &mut [u8; 16],
) -> [(f32, f32); N_SUB] {
    let d = write_f16(d, field_mut(head, 0));
    let dmin = write_f16(dmin, field_mut(head, 2));
    pack(ls, lm, field_mut(head, 4));
    let (ls, lm) = unpack(field(head, 4));
    std::array::from_fn(|j| (d * f32::from(ls[j]), dmin * f32::from(lm[j])))
}

/// The largest of some scales, or 0 if none is positive. Not `f32::max`: ggml's comparison passes
/// over NaN in any place.
pub(super) fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max, &x| if x > max { x } else { max })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_bit_scales_survive_packing() {
        let scales = [0, 63, 1, 32, 15, 16, 48, 63];
        let mins = [63, 0, 62, 31, 16, 15, 63, 0];
        let mut bytes = [0xff; 12];
        pack(&scales, &mins, &mut bytes);
        assert_eq!(unpack(&bytes), (scales, mins));
    }
}
