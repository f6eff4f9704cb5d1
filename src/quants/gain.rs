//! Blocks that hold as much of a vector as there is of it.
//!
//! Types of one and two bits have one scale for a block, and the scale with the least error makes
//! weights too small: of a normal vector one bit holds .64. A chat vector that is too small by a
//! third does not make a model chat, while its rounding errors average out, so here the scale is
//! that with which ⟨stored, w⟩ = ⟨w, w⟩ in each block. ggml decodes the blocks as any others.

use half::f16;

use super::{Error, dequantize_row, quantize_row};
use crate::ggml::GgmlType::{self, *};

/// Whether a type has one scale for a block of a few values, so that [`quantize_to_unit_gain`] is
/// for it.
pub fn has_few_values(ty: GgmlType) -> bool {
    matches!(ty, TQ1_0 | TQ2_0 | Q1_0 | Q2_0)
}

/// Where the scale of a block is, in bytes from its start.
fn scale_at(ty: GgmlType) -> usize {
    if matches!(ty, TQ1_0 | TQ2_0) { ty.block_size() - 2 } else { 0 }
}

/// Encodes whole blocks, so that each holds as much of its weights as there is. In blocks of three
/// values those weights are not 0 with which the error is least.
///
/// # Errors
/// As [`quantize_row`].
///
/// # Panics
/// If the type does not [have few values](has_few_values).
pub fn quantize_to_unit_gain(ty: GgmlType, src: &[f32], dst: &mut [u8]) -> Result<(), Error> {
    assert!(has_few_values(ty), "{ty} has scales of other kinds");
    quantize_row(ty, src, dst)?;
    let (len, size) = (ty.block_len(), ty.block_size());
    let mut got = vec![0.0; len];
    for (weights, block) in src.chunks_exact(len).zip(dst.chunks_exact_mut(size)) {
        if ty != Q1_0 {
            quantize_row(ty, &three_values(weights), block)?;
        }
        dequantize_row(ty, block, &mut got)?;
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let (kept, all) = (product(&got, weights), product(weights, weights));
        let scale = &mut block[scale_at(ty)..][..2];
        let d = f64::from(f16::from_le_bytes([scale[0], scale[1]]).to_f32());
        let wanted = f16::from_f64(d * all / kept);
        // Of weights that a half cannot hold, or none, the encoder's own stays.
        if kept > 0.0 && wanted.is_finite() {
            scale.copy_from_slice(&wanted.to_le_bytes());
        }
    }
    Ok(())
}

/// −d, 0 or d for each weight, with the least error: d is the mean size of those that are not 0,
/// the largest ones.
fn three_values(weights: &[f32]) -> Vec<f32> {
    let mut sizes: Vec<f32> = weights.iter().map(|w| w.abs()).collect();
    sizes.sort_by(|a, b| b.total_cmp(a));
    // What k of them take off the error is (their sum)² / k.
    let mut best = (0.0, 0.0, f32::INFINITY);
    let mut sum = 0.0;
    for (k, size) in (1u32..).zip(&sizes) {
        sum += f64::from(*size);
        let less = sum * sum / f64::from(k);
        if less > best.0 {
            best = (less, sum / f64::from(k), *size);
        }
    }
    let (_, d, least) = best;
    weights.iter().map(|w| if w.abs() >= least { (d as f32).copysign(*w) } else { 0.0 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(n: usize) -> Vec<f32> {
        let uniform = |i: usize| (i.wrapping_mul(2_654_435_761) >> 8 & 0xffff) as f32 / 65536.0 - 0.5;
        (0..n).map(|i| (0..12).map(|k| uniform(i * 12 + k)).sum::<f32>() * 0.01).collect()
    }

    #[test]
    fn blocks_have_unit_gain_and_the_least_error_for_it() {
        let weights = normal(2048);
        let norm2: f64 = weights.iter().map(|w| f64::from(*w).powi(2)).sum();
        // Of a normal vector with unit gain: √(π/2 − 1) in one bit, and .485 in three values (by
        // numpy).
        for (ty, most) in [(Q1_0, 0.77), (Q2_0, 0.50), (TQ1_0, 0.50), (TQ2_0, 0.50)] {
            let mut blocks = vec![0; ty.size_of(2048).unwrap() as usize];
            let mut got = vec![0.0; 2048];
            quantize_to_unit_gain(ty, &weights, &mut blocks).unwrap();
            dequantize_row(ty, &blocks, &mut got).unwrap();
            let product: f64 = got.iter().zip(&weights).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let error2: f64 = got.iter().zip(&weights).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            assert!((product / norm2 - 1.0).abs() < 1e-3, "{ty}: gain {}", product / norm2);
            assert!((error2 / norm2).sqrt() < most, "{ty}: error {}", (error2 / norm2).sqrt());
        }
    }

    #[test]
    fn blocks_of_nothing_and_of_too_much_are_the_encoders() {
        for ty in [Q1_0, Q2_0, TQ1_0, TQ2_0] {
            for weights in [vec![0.0; 256], vec![1e-30; 256]] {
                let size = ty.size_of(256).unwrap() as usize;
                let (mut blocks, mut plain) = (vec![1; size], vec![2; size]);
                quantize_to_unit_gain(ty, &weights, &mut blocks).unwrap();
                quantize_row(ty, &weights, &mut plain).unwrap();
                assert_eq!(blocks, plain, "{ty}");
            }
        }
    }
}
