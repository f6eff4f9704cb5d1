//! Activations, rounded as ggml rounds them for the rows that they are multiplied with
//! (`vec_dot_type`, ggml-cpu/ggml-cpu.c).
//!
//! A number that is none, or infinite, makes the scale of its block no number or infinite, so that
//! the dot product says so too.

use std::borrow::Cow;

use super::float::write_f16;
use super::operands::{Block8, Block8K, LEN, SUPER_LEN};
use super::simd::{self, Level};
use crate::ggml::GgmlType;

/// Rows of activations, one after the other.
pub(crate) enum Activations<'a> {
    /// As they are, or rounded and read back.
    Floats(Cow<'a, [f32]>),
    /// In 8 bits, a scale for 32.
    Small(Vec<Block8>),
    /// In 8 bits, a scale for 256.
    Super(Vec<Block8K>),
}

/// What a type's dot product in ggml takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    F32,
    /// F16 or BF16.
    Halves,
    /// Q8_0 or Q8_1, which have the same codes.
    Small,
    /// Q8_K.
    Super,
}

fn form(ty: GgmlType) -> Form {
    use GgmlType::*;
    match ty {
        F16 | BF16 => Form::Halves,
        Q1_0 | Q2_0 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | MXFP4 | NVFP4 | IQ4_NL => Form::Small,
        Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_XS
        | TQ1_0 | TQ2_0 => Form::Super,
        _ => Form::F32,
    }
}

/// Rounds whole rows of activations for rows of `ty`, whose dot product takes blocks or, without a
/// kernel, numbers.
pub(super) fn round(ty: GgmlType, x: &[f32], has_kernel: bool) -> Activations<'_> {
    match form(ty) {
        Form::F32 => Activations::Floats(Cow::Borrowed(x)),
        Form::Halves => Activations::Floats(Cow::Owned(round_to_halves(ty, x))),
        Form::Small if has_kernel => Activations::Small(round_small(x)),
        Form::Super if has_kernel => Activations::Super(round_super(x)),
        // A decoded row is multiplied with what the 8 bits mean.
        Form::Small => {
            let value = |b: &Block8| b.codes.map(|code| b.d * f32::from(code));
            Activations::Floats(round_small(x).iter().flat_map(value).collect())
        }
        Form::Super => {
            let value = |b: &Block8K| b.codes.map(|code| b.d * f32::from(code));
            Activations::Floats(round_super(x).iter().flat_map(value).collect())
        }
    }
}

fn round_to_halves(ty: GgmlType, x: &[f32]) -> Vec<f32> {
    let mut halves = vec![0; 2 * x.len()];
    let mut rounded = x.to_vec();
    let done = super::quantize_row(ty, x, &mut halves).and_then(|()| super::dequantize_row(ty, &halves, &mut rounded));
    debug_assert!(done.is_ok(), "halves have blocks of one");
    rounded
}

fn round_small(x: &[f32]) -> Vec<Block8> {
    let (x, _) = x.as_chunks::<LEN>();
    let mut blocks = vec![Block8::ZERO; x.len()];
    simd::convert(Level::current(), x, &mut blocks, small);
    blocks
}

fn round_super(x: &[f32]) -> Vec<Block8K> {
    let (x, _) = x.as_chunks::<SUPER_LEN>();
    let mut blocks = vec![Block8K::ZERO; x.len()];
    simd::convert(Level::current(), x, &mut blocks, super_block);
    blocks
}

/// The bits of a number's size; those of NaN are above those of infinity.
#[inline(always)]
fn size(v: f32) -> u32 {
    v.to_bits() & 0x7fff_ffff
}

/// The nearest integer, ties to even, of a number below 2²² in size; its low byte.
#[inline(always)]
fn nearest(v: f32) -> i8 {
    // The last bit of 1.5 · 2²³ counts 1.
    (v + 12_582_912.0).to_bits() as u8 as i8
}

/// One block (`quantize_row_q8_0` and `quantize_row_q8_1`, ggml-cpu/arch/x86/quants.c).
#[inline(always)]
fn small(x: &[f32; LEN], to: &mut Block8) {
    let largest = f32::from_bits(x.iter().fold(0, |m, &v| m.max(size(v))));
    let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
    for (code, v) in to.codes.iter_mut().zip(x) {
        *code = nearest(v * inverse);
    }
    let sum = to.codes.iter().map(|&code| i32::from(code)).sum::<i32>();
    let d = largest / 127.0;
    let mut bytes = [0; 2];
    (to.d, to.s) = (write_f16(d, &mut bytes), write_f16(d * sum as f32, &mut bytes));
}

/// One super-block (`quantize_row_q8_K_ref`, ggml-quants.c): the number farthest from zero, of
/// several the first, becomes −127.
#[inline(always)]
fn super_block(x: &[f32; SUPER_LEN], to: &mut Block8K) {
    let largest = x.iter().fold(0, |m, &v| m.max(size(v)));
    if largest == 0 {
        *to = Block8K::ZERO;
        return;
    }
    let is_first = |(i, v): (u32, &f32)| if size(*v) == largest { i } else { u32::MAX };
    let first = (0..).zip(x).map(is_first).fold(u32::MAX, u32::min);
    let inverse = -127.0 / x[first as usize % SUPER_LEN];
    for (code, v) in to.codes.iter_mut().zip(x) {
        *code = nearest(v * inverse);
    }
    for (sum, codes) in to.sums.iter_mut().zip(to.codes.as_chunks::<16>().0) {
        *sum = codes.iter().map(|&code| i16::from(code)).sum();
    }
    to.d = 1.0 / inverse;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<f32>> {
        let number = |i: usize| ((i * 7919 + 13) % 2003) as f32 / 1001.5 - 1.0;
        let ties = (0..256).map(|i| (i as f32 - 127.5).clamp(-127.0, 127.0)).collect();
        vec![
            (0..256).map(number).collect(),
            ties,
            (0..256).map(|i| number(i).powi(9) * 1e-30).collect(),
            (0..256).map(|i| if i == 77 { -3.0 } else { 0.0 }).collect(),
            vec![0.0; 256],
            // Two that are equally far: the first decides on the sign.
            (0..256).map(|i| [0.25, 4.0, -4.0][(i == 9) as usize + 2 * (i == 200) as usize]).collect(),
        ]
    }

    #[test]
    fn small_blocks_are_those_of_ggml_at_every_level() {
        for row in rows() {
            for x in row.as_chunks::<LEN>().0 {
                let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
                let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
                let codes = x.map(|v| (v * inverse).round_ties_even() as i8);
                let sum: i32 = codes.iter().map(|&code| i32::from(code)).sum();
                let half = |v: f32| half::f16::from_f32(v).to_f32();
                for level in Level::available() {
                    let mut found = [Block8::ZERO];
                    simd::convert(level, std::slice::from_ref(x), &mut found, small);
                    assert_eq!(found[0].codes, codes, "{level}");
                    assert_eq!(found[0].d, half(largest / 127.0), "{level}");
                    assert_eq!(found[0].s, half(largest / 127.0 * sum as f32), "{level}");
                }
            }
        }
    }

    #[test]
    fn super_blocks_are_those_of_ggml_at_every_level() {
        for row in rows() {
            let (mut largest, mut farthest) = (0.0, 0.0);
            for &v in &row {
                if v.abs() > largest {
                    (largest, farthest) = (v.abs(), v);
                }
            }
            let inverse = if largest == 0.0 { 0.0 } else { -127.0 / farthest };
            let codes: Vec<i8> = row.iter().map(|v| (v * inverse).round_ties_even() as i8).collect();
            for level in Level::available() {
                let mut found = [Block8K::ZERO];
                simd::convert(level, row.as_chunks().0, &mut found, super_block);
                assert_eq!(found[0].codes[..], codes, "{level}");
                assert_eq!(found[0].d, if largest == 0.0 { 0.0 } else { 1.0 / inverse }, "{level}");
                let sums = codes.chunks(16).map(|codes| codes.iter().map(|&code| i16::from(code)).sum::<i16>());
                assert!(sums.eq(found[0].sums), "{level}");
            }
        }
    }

    #[test]
    fn what_is_no_number_makes_no_scale() {
        let mut x = vec![0.5; 256];
        x[100] = f32::NAN;
        assert!(round_small(&x)[3].d.is_nan());
        assert!(!round_small(&x)[4].d.is_nan());
        assert!(round_super(&x)[0].d.is_nan());
    }
}
