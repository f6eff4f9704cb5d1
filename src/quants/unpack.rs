//! Blocks of a stored row as a dot product takes them: a byte for each code, scales as numbers.
//!
//! The layouts are those of the types' own modules. Functions are `#[inline(always)]`, so that they
//! are compiled for the vector instructions of their caller.

use super::float::read_f16;
use super::operands::{Form, LEN, N_SUB, Packed, SUPER_LEN, Small, Super};
use super::{field, fp4, iq4, q3_k, scales};

pub(super) struct Q4_0;

impl Packed<18> for Q4_0 {
    const CODES: usize = 2;
    const FORM: Form = Form::Above(8);
}

pub(super) struct Q4_1;

impl Packed<20> for Q4_1 {
    const MINIMUM: Option<usize> = Some(2);
    const CODES: usize = 4;
    const FORM: Form = Form::Above(0);
}

pub(super) struct Q5_0;

impl Packed<22> for Q5_0 {
    const FIFTH: Option<usize> = Some(2);
    const CODES: usize = 6;
    const FORM: Form = Form::Above(16);
}

pub(super) struct Q5_1;

impl Packed<24> for Q5_1 {
    const MINIMUM: Option<usize> = Some(2);
    const FIFTH: Option<usize> = Some(4);
    const CODES: usize = 8;
    const FORM: Form = Form::Above(0);
}

pub(super) struct Q8_0;

impl Packed<34> for Q8_0 {
    const CODES: usize = 2;
    const FORM: Form = Form::Bytes;
}

pub(super) struct Mxfp4;

impl Packed<17> for Mxfp4 {
    const IS_EXPONENT: bool = true;
    const CODES: usize = 1;
    const FORM: Form = Form::Of(&FP4_VALUES);
}

pub(super) struct Iq4Nl;

impl Packed<18> for Iq4Nl {
    const CODES: usize = 2;
    const FORM: Form = Form::Of(&IQ4_VALUES);
}

const FP4_VALUES: [i8; 16] = {
    let mut values = [0; 16];
    let mut code = 0;
    while code < 16 {
        values[code] = fp4::value(code as u8);
        code += 1;
    }
    values
};

const IQ4_VALUES: [i8; 16] = {
    let mut values = [0; 16];
    let mut code = 0;
    while code < 16 {
        values[code] = iq4::VALUES[code] as i8;
        code += 1;
    }
    values
};

/// The scale of a block, and the minimum, 0 if it has none.
#[inline(always)]
pub(super) fn scale_and_minimum<B: Packed<SIZE>, const SIZE: usize>(
    block: &[u8; SIZE],
    half: impl Fn(&[u8; 2]) -> f32,
) -> (f32, f32) {
    let d = if B::IS_EXPONENT { fp4::half_e8m0(block[0]) } else { half(field(block, 0)) };
    (d, B::MINIMUM.map_or(0.0, |at| half(field(block, at))))
}

/// A small block, without vector instructions.
pub(super) fn small<B: Packed<SIZE>, const SIZE: usize>(block: &[u8; SIZE]) -> Small {
    let (d, minimum) = scale_and_minimum::<B, SIZE>(block, read_f16);
    let fifths = B::FIFTH.map_or(0, |at| u32::from_le_bytes(*field(block, at)));
    let nibble = |i: usize| block[B::CODES + i % (LEN / 2)] >> (i / (LEN / 2) * 4) & 15;
    let code = |i: usize| match B::FORM {
        Form::Bytes => block[B::CODES + i].cast_signed(),
        Form::Above(offset) => (nibble(i) | (fifths >> i & 1) as u8 * 16).wrapping_sub(offset).cast_signed(),
        Form::Of(values) => values[usize::from(nibble(i))],
    };
    Small { d, minimum, codes: std::array::from_fn(code) }
}

/// Bit `k` of the bytes of a plane of one bit (`planes`).
#[inline(always)]
fn bit(byte: u8, k: usize) -> u8 {
    byte >> k & 1
}

/// Bits of a plane of two: `k` counts pairs.
#[inline(always)]
fn pair(byte: u8, k: usize) -> u8 {
    byte >> (2 * k) & 3
}

/// Sets each 32 codes to `code(k, i)`, `k` counting the 32.
#[inline(always)]
fn set(codes: &mut [u8; SUPER_LEN], code: impl Fn(usize, usize) -> u8) {
    for (k, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let new: [u8; 32] = std::array::from_fn(|i| code(k, i));
        *codes = new;
    }
}

/// Scales in the order of [`Super::scales`].
#[inline(always)]
fn in_order(scales: [i16; N_SUB]) -> [i16; N_SUB] {
    std::array::from_fn(|i| scales[2 * (i % 8) + i / 8])
}

#[inline(always)]
pub(super) fn q2_k(block: &[u8; 84], to: &mut Super) {
    let bytes: &[u8; N_SUB] = field(block, 0);
    let pairs: &[u8; 64] = field(block, 16);
    set(&mut to.codes, |k, i| pair(pairs[k / 4 * 32 + i], k % 4));
    to.scales = in_order(bytes.map(|byte| i16::from(byte & 15)));
    to.minimums = bytes.map(|byte| i16::from(byte >> 4));
    (to.d, to.dmin) = (read_f16(field(block, 80)), read_f16(field(block, 82)));
}

#[inline(always)]
pub(super) fn q3_k(block: &[u8; 110], to: &mut Super) {
    let scales = q3_k::unpack_scales(field(block, 96)).map(|scale| i16::from(scale) - 32);
    let (pairs, bits): (&[u8; 64], &[u8; 32]) = (field(block, 32), field(block, 0));
    set(&mut to.codes, |k, i| pair(pairs[k / 4 * 32 + i], k % 4) | bit(bits[i], k) << 2);
    to.scales = in_order(scales);
    to.minimums = scales.map(|scale| 4 * scale);
    to.d = read_f16(field(block, 108));
    to.dmin = to.d;
}

#[inline(always)]
pub(super) fn q4_k(block: &[u8; 144], to: &mut Super) {
    let nibbles: &[u8; 128] = field(block, 16);
    set(&mut to.codes, |k, i| nibbles[k / 2 * 32 + i] >> (k % 2 * 4) & 15);
    head_k(field(block, 0), to);
}

#[inline(always)]
pub(super) fn q5_k(block: &[u8; 176], to: &mut Super) {
    let (nibbles, bits): (&[u8; 128], &[u8; 32]) = (field(block, 48), field(block, 16));
    set(&mut to.codes, |k, i| nibbles[k / 2 * 32 + i] >> (k % 2 * 4) & 15 | bit(bits[i], k) << 4);
    head_k(field(block, 0), to);
}

/// The first 16 bytes of Q4_K and Q5_K: a scale and a minimum for each 32 weights.
#[inline(always)]
fn head_k(head: &[u8; 16], to: &mut Super) {
    let (scales, minimums) = scales::unpack(field(head, 4));
    to.scales = std::array::from_fn(|i| i16::from(scales[i % 8]));
    to.minimums = std::array::from_fn(|i| i16::from(minimums[i / 2]));
    (to.d, to.dmin) = (read_f16(field(head, 0)), read_f16(field(head, 2)));
}

#[inline(always)]
pub(super) fn q6_k(block: &[u8; 210], to: &mut Super) {
    let scales = field::<N_SUB>(block, 192).map(|scale| i16::from(scale.cast_signed()));
    let (nibbles, pairs): (&[u8; 128], &[u8; 64]) = (field(block, 0), field(block, 128));
    let nibble = |k: usize, i: usize| nibbles[k / 4 * 64 + k % 2 * 32 + i] >> (k % 4 / 2 * 4) & 15;
    set(&mut to.codes, |k, i| nibble(k, i) | pair(pairs[k / 4 * 32 + i], k % 4) << 4);
    to.scales = in_order(scales);
    to.minimums = scales.map(|scale| 32 * scale);
    to.d = read_f16(field(block, 208));
    to.dmin = to.d;
}
