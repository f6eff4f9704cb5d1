//! F32, F16 and BF16: one number a block, and the f16 scales inside all other blocks.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// Weights converted at a time, through an aligned buffer on the stack. Of 64, 256 and 1024, tried by decoding F16, 64 was
/// slower and 1024 no faster.
const CHUNK: usize = 256;

pub(super) fn decode_f32(src: &[u8], dst: &mut [f32]) {
    for (bytes, weight) in src.as_chunks().0.iter().zip(dst) {
        *weight = f32::from_le_bytes(*bytes);
    }
}

pub(super) fn encode_f32(src: &[f32], dst: &mut [u8]) {
    for (weight, bytes) in src.iter().zip(dst.as_chunks_mut().0) {
        *bytes = weight.to_le_bytes();
    }
}

pub(super) fn decode_f16(src: &[u8], dst: &mut [f32]) {
    let mut halves = [f16::ZERO; CHUNK];
    for (bytes, weights) in src.chunks(2 * CHUNK).zip(dst.chunks_mut(CHUNK)) {
        let halves = &mut halves[..weights.len()];
        for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks().0) {
            *half = f16::from_le_bytes(*bytes);
        }
        halves.convert_to_f32_slice(weights);
    }
}

pub(super) fn encode_f16(src: &[f32], dst: &mut [u8]) {
    let mut halves = [f16::ZERO; CHUNK];
    for (weights, bytes) in src.chunks(CHUNK).zip(dst.chunks_mut(2 * CHUNK)) {
        let halves = &mut halves[..weights.len()];
        halves.convert_from_f32_slice(weights);
        for ((weight, half), bytes) in weights.iter().zip(&*halves).zip(bytes.as_chunks_mut().0) {
            *bytes = with_ggml_nan(*weight, *half).to_le_bytes();
        }
    }
}

pub(super) fn decode_bf16(src: &[u8], dst: &mut [f32]) {
    for (bytes, weight) in src.as_chunks().0.iter().zip(dst) {
        *weight = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
}

/// Round to nearest even, and a NaN made quiet (`ggml_compute_fp32_to_bf16` in ggml-impl.h). Written out rather than
/// left to `half`, whose loop has a branch for each weight.
pub(super) fn encode_bf16(src: &[f32], dst: &mut [u8]) {
    for (weight, bytes) in src.iter().zip(dst.as_chunks_mut().0) {
        let bits = weight.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        let quiet = bits | 64 << 16;
        let bits = if weight.is_nan() { quiet } else { rounded };
        *bytes = ((bits >> 16) as u16).to_le_bytes();
    }
}

/// A scale (`ggml_half`) inside a block.
#[inline]
pub(super) fn read_f16(bytes: &[u8; 2]) -> f32 {
    f16::from_le_bytes(*bytes).to_f32()
}

/// Stores a scale inside a block, and gives it back as a decoder will read it.
#[inline]
pub(super) fn write_f16(x: f32, bytes: &mut [u8; 2]) -> f32 {
    let half = with_ggml_nan(x, f16::from_f32(x));
    *bytes = half.to_le_bytes();
    half.to_f32()
}

/// `half` keeps the payload of a NaN, and not in the same way on every processor; ggml has one NaN for each sign
/// (`ggml_compute_fp32_to_fp16` in ggml-impl.h).
#[inline]
fn with_ggml_nan(x: f32, half: f16) -> f16 {
    let nan = (x.to_bits() >> 16 & 0x8000) as u16 | 0x7e00;
    if x.is_nan() { f16::from_bits(nan) } else { half }
}
