//! Dot products of stored rows with activations, for the types that candle multiplies without
//! vector instructions on x86 unless it is compiled for one processor: F16, BF16, Q4_1, Q5_0 and
//! Q5_1.
//!
//! The arithmetic is ggml's (ggml-cpu, `ggml_vec_dot_f16`, `quantize_row_q8_1`,
//! `ggml_vec_dot_q4_1_q8_1` and their like): activations are rounded to the halves of the row, or
//! to 8 bits in blocks of 32. Products of 8-bit codes are summed as integers, and scales are
//! applied per block. The order of sums differs between processors, as it does in ggml.

use half::{bf16, f16};

use super::operands::{BF16, Block, Block8, F16, LEN, Q4_1, Q5_0, Q5_1};
use super::simd;
use crate::ggml::GgmlType;

/// Whether [`dot`] takes rows of this type.
pub fn has_dot(ty: GgmlType) -> bool {
    matches!(ty, GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1)
}

/// Whether [`dot_halves`] takes rows of this type.
pub fn has_dot_halves(ty: GgmlType) -> bool {
    matches!(ty, GgmlType::F16 | GgmlType::BF16)
}

/// Rounds activations to F16 or BF16, for [`dot_halves`]; other types leave them as they are.
pub fn round_activations(ty: GgmlType, x: &mut [f32]) {
    match ty {
        GgmlType::F16 => x.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32()),
        GgmlType::BF16 => x.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32()),
        _ => {}
    }
}

/// The dot product of a row of F16 or BF16 with activations; 0 for another type. The shorter of
/// both counts.
pub fn dot_halves(ty: GgmlType, row: &[u8], x: &[f32]) -> f32 {
    match ty {
        GgmlType::F16 => simd::dot::dot_halves::<F16>(row, x),
        GgmlType::BF16 => simd::dot::dot_halves::<BF16>(row, x),
        _ => 0.0,
    }
}

/// Appends the activations of a row to `out`, block by block. What is left over of `row` after
/// whole blocks is ignored.
///
/// An activation that is no number makes the scale of its block no number, so that the dot product
/// says so too.
pub fn quantize_activations(row: &[f32], out: &mut Vec<Block8>) {
    for x in row.chunks_exact(LEN) {
        let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
        let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
        let mut codes = [0i8; LEN];
        for (code, v) in codes.iter_mut().zip(x) {
            *code = (v * inverse).round_ties_even() as i8;
        }
        let sum = codes.iter().map(|&c| i32::from(c)).sum::<i32>();
        let d = if x.iter().any(|v| v.is_nan()) { f32::NAN } else { largest / 127.0 };
        let rounded = |v: f32| f16::from_f32(v).to_f32();
        out.push(Block8 { d: rounded(d), s: rounded(d * sum as f32), codes });
    }
}

/// The dot products of a stored row with several rows of activations, which are all as long as the
/// row; 0 for a type without [`has_dot`].
///
/// `x` holds the activations of `out.len()` tokens, one after the other.
pub fn dot(ty: GgmlType, row: &[u8], x: &[Block8], out: &mut [f32]) {
    match ty {
        GgmlType::Q4_1 => dot_blocks::<Q4_1, 20>(row, x, out),
        GgmlType::Q5_0 => dot_blocks::<Q5_0, 22>(row, x, out),
        GgmlType::Q5_1 => dot_blocks::<Q5_1, 24>(row, x, out),
        _ => out.fill(0.0),
    }
}

/// Takes four tokens at a time, so that a block is unpacked once for all of them.
fn dot_blocks<B: Block<SIZE>, const SIZE: usize>(row: &[u8], x: &[Block8], out: &mut [f32]) {
    let (blocks, _) = row.as_chunks::<SIZE>();
    let n = blocks.len();
    let tokens = |from: usize| &x[from * n..];
    let (fours, rest) = out.as_chunks_mut::<4>();
    for (i, out) in fours.iter_mut().enumerate() {
        *out = simd::dot::dot::<B, SIZE, 4>(blocks, std::array::from_fn(|k| &tokens(4 * i + k)[..n]));
    }
    let done = 4 * fours.len();
    for (i, out) in rest.iter_mut().enumerate() {
        [*out] = simd::dot::dot::<B, SIZE, 1>(blocks, [&tokens(done + i)[..n]]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quants::{self, operands::products};

    /// Rows of 512 weights with a spread of values, from a small linear congruence.
    fn numbers(seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..512).map(|_| next() + next() * next()).collect()
    }

    #[test]
    fn equals_the_product_of_the_decoded_row() {
        for (seed, ty) in [GgmlType::Q4_1, GgmlType::Q5_0, GgmlType::Q5_1].into_iter().enumerate() {
            let (weights, x) = (numbers(seed as u32 + 1), numbers(seed as u32 + 100));
            let mut row = vec![0; ty.size_of(512).expect("two whole K blocks") as usize];
            quants::quantize_row(ty, &weights, &mut row).expect("a whole row");
            let mut decoded = vec![0.0; 512];
            quants::dequantize_row(ty, &row, &mut decoded).expect("a whole row");
            let mut blocks = Vec::new();
            quantize_activations(&x, &mut blocks);
            let rounded = blocks.iter().flat_map(|b| b.codes.map(|c| f64::from(b.d) * f64::from(c)));
            let expected: f64 = rounded.zip(&decoded).map(|(x, w)| x * f64::from(*w)).sum();
            // Five tokens: four together, and one more.
            let five: Vec<Block8> = (0..5).flat_map(|_| blocks.clone()).collect();
            let mut out = [0.0; 5];
            dot(ty, &row, &five, &mut out);
            assert!(out.iter().all(|v| *v == out[0]), "{out:?}");
            let found = f64::from(out[0]);
            // The minimum is multiplied with a sum that is rounded to F16.
            assert!((found - expected).abs() < 2e-3, "{ty}: {found} instead of {expected}");
            let exact: f64 = x.iter().zip(&decoded).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            assert!((found - exact).abs() < 0.05, "{ty}: {found}, without rounding {exact}");
        }
    }

    #[test]
    fn halves_are_multiplied_as_they_are() {
        for (seed, ty) in [GgmlType::F16, GgmlType::BF16].into_iter().enumerate() {
            // A length with whole vectors and a rest.
            let (weights, mut x) = (&numbers(seed as u32 + 1)[..493], numbers(seed as u32 + 100)[..493].to_vec());
            let mut row = vec![0; 986];
            quants::quantize_row(ty, weights, &mut row).expect("a whole row");
            let mut decoded = vec![0.0; 493];
            quants::dequantize_row(ty, &row, &mut decoded).expect("a whole row");
            round_activations(ty, &mut x);
            let expected: f64 = x.iter().zip(&decoded).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            let found = f64::from(dot_halves(ty, &row, &x));
            assert!((found - expected).abs() < 1e-5, "{ty}: {found} instead of {expected}");
        }
    }

    #[test]
    fn vector_instructions_find_the_same_integers() {
        for seed in 0..200 {
            let bytes: Vec<u8> = numbers(seed).iter().map(|v| (v * 997.0) as i32 as u8).collect();
            let mut x = Vec::new();
            quantize_activations(&numbers(seed + 1000)[..32], &mut x);
            x[0].codes[0] = -127;
            let check = |scalar: i32, vector: Option<i32>| {
                if let Some(vector) = vector {
                    assert_eq!(scalar, vector);
                }
            };
            let (a, b, c) = (bytes[..20].try_into(), bytes[..22].try_into(), bytes[..24].try_into());
            let (a, b, c) = (a.expect("20"), b.expect("22"), c.expect("24"));
            check(products::<Q4_1, 20>(a, &x[0]), simd::dot::products::<Q4_1, 20>(a, &x[0]));
            check(products::<Q5_0, 22>(b, &x[0]), simd::dot::products::<Q5_0, 22>(b, &x[0]));
            check(products::<Q5_1, 24>(c, &x[0]), simd::dot::products::<Q5_1, 24>(c, &x[0]));
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        let mut x = numbers(3);
        x[40] = f32::NAN;
        let mut blocks = Vec::new();
        quantize_activations(&x, &mut blocks);
        let mut row = vec![0; 512 / 32 * 20];
        quants::quantize_row(GgmlType::Q4_1, &numbers(4), &mut row).expect("a whole row");
        let mut out = [0.0];
        dot(GgmlType::Q4_1, &row, &blocks, &mut out);
        assert!(out[0].is_nan());
    }
}
