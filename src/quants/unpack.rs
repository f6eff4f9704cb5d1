//! Blocks of a stored row as a dot product takes them: a byte for each code, scales as numbers.
//!
//! The layouts are those of the types' own modules. Functions are `#[inline(always)]`, so that they
//! are compiled for the vector instructions of their caller.

use super::float::read_f16;
use super::operands::{Form, IQ4_VALUES as IQ4_LEVELS, LEN, N_SUB, Packed, PackedSuper, Small, Super};
use super::{field, fp4, scales};

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
        values[code] = IQ4_LEVELS[code] as i8;
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
    let fifth = |i: usize| ((fifths >> i & 1) as u8) << 4;
    let code = |i: usize| match B::FORM {
        Form::Bytes => block[B::CODES + i].cast_signed(),
        Form::Above(offset) => (nibble(i) | fifth(i)).wrapping_sub(offset).cast_signed(),
        Form::Of(values) => values[usize::from(nibble(i))],
    };
    Small { d, minimum, codes: std::array::from_fn(code) }
}

/// A super-block, without vector instructions.
pub(super) fn super_block<B: PackedSuper<SIZE>, const SIZE: usize>(block: &[u8; SIZE], to: &mut Super) {
    B::scales(block, to);
    for (k, codes) in to.codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        codes.fill(0);
        if let Some((at, apart)) = B::NIBBLES {
            let (start, shift) = nibbles_of(apart, k);
            add(codes, field(block, at + start), shift, 15, 0);
        }
        if let Some((at, bit)) = B::PAIRS {
            add(codes, field(block, at + k / 4 * 32), 2 * (k as u32 % 4), 3, bit);
        }
        if let Some((at, bit)) = B::BITS {
            add(codes, field(block, at), k as u32, 1, bit);
        }
    }
}

/// Where the four bits of the `k`th 32 codes begin in their plane, and in the bytes.
#[inline(always)]
pub(super) fn nibbles_of(apart: usize, k: usize) -> (usize, u32) {
    let n = apart / 32;
    (k / (2 * n) * apart + k % n * 32, (k / n % 2) as u32 * 4)
}

/// Adds some bits of bytes to codes, from `bit` up.
fn add(codes: &mut [u8; 32], bytes: &[u8; 32], shift: u32, mask: u8, bit: u32) {
    for (code, byte) in codes.iter_mut().zip(bytes) {
        *code |= (byte >> shift & mask) << bit;
    }
}

/// Scales in the order of [`Super::scales`].
fn in_order(scales: [i16; N_SUB]) -> [i16; N_SUB] {
    std::array::from_fn(|i| scales[2 * (i % 8) + i / 8])
}

pub(super) struct Q2K;

impl PackedSuper<84> for Q2K {
    const PAIRS: Option<(usize, u32)> = Some((16, 0));

    fn scales(block: &[u8; 84], to: &mut Super) {
        let bytes: &[u8; N_SUB] = field(block, 0);
        to.scales = in_order(bytes.map(|byte| i16::from(byte & 15)));
        to.minimums = bytes.map(|byte| i16::from(byte >> 4));
        (to.d, to.dmin) = (read_f16(field(block, 80)), read_f16(field(block, 82)));
    }
}

pub(super) struct Q3K;

impl PackedSuper<110> for Q3K {
    const PAIRS: Option<(usize, u32)> = Some((32, 0));
    const BITS: Option<(usize, u32)> = Some((0, 2));
    const IS_CENTERED: bool = true;

    fn scales(block: &[u8; 110], to: &mut Super) {
        let scales = scales::unpack_sixteen(field(block, 96)).map(|scale| i16::from(scale) - 32);
        to.scales = in_order(scales);
        to.minimums = scales.map(|scale| 4 * scale);
        to.d = read_f16(field(block, 108));
    }
}

pub(super) struct Q4K;

impl PackedSuper<144> for Q4K {
    const NIBBLES: Option<(usize, usize)> = Some((16, 32));

    fn scales(block: &[u8; 144], to: &mut Super) {
        scales_of_head(field(block, 0), to);
    }
}

pub(super) struct Q5K;

impl PackedSuper<176> for Q5K {
    const NIBBLES: Option<(usize, usize)> = Some((48, 32));
    const BITS: Option<(usize, u32)> = Some((16, 4));

    fn scales(block: &[u8; 176], to: &mut Super) {
        scales_of_head(field(block, 0), to);
    }
}

/// The first 16 bytes of Q4_K and Q5_K: a scale and a minimum for each 32 weights.
fn scales_of_head(head: &[u8; 16], to: &mut Super) {
    let (scales, minimums) = scales::unpack(field(head, 4));
    to.scales = std::array::from_fn(|i| i16::from(scales[i % 8]));
    to.minimums = std::array::from_fn(|i| i16::from(minimums[i / 2]));
    (to.d, to.dmin) = (read_f16(field(head, 0)), read_f16(field(head, 2)));
}

pub(super) struct Q6K;

impl PackedSuper<210> for Q6K {
    const NIBBLES: Option<(usize, usize)> = Some((0, 64));
    const PAIRS: Option<(usize, u32)> = Some((128, 4));
    const IS_CENTERED: bool = true;

    fn scales(block: &[u8; 210], to: &mut Super) {
        let scales = field::<N_SUB>(block, 192).map(|scale| i16::from(scale.cast_signed()));
        to.scales = in_order(scales);
        to.minimums = scales.map(|scale| 32 * scale);
        to.d = read_f16(field(block, 208));
    }
}
