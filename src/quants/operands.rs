//! What a dot product multiplies: blocks of a stored row whose codes are unpacked, and activations
//! in 8 bits.

use super::float;

/// Weights or activations of a small block.
pub(super) const LEN: usize = 32;

/// Weights or activations of a super-block.
pub(super) const SUPER_LEN: usize = super::QK_K;

/// Sub-blocks of 16 in a super-block.
pub(super) const N_SUB: usize = SUPER_LEN / 16;

/// 32 activations in 8 bits: `d · codes`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Block8 {
    /// The scale, rounded to F16.
    pub(super) d: f32,
    /// `d · Σ codes` before `d` was rounded, itself rounded to F16: what a type's minimum is
    /// multiplied with.
    pub(super) s: f32,
    /// −127 to 127.
    pub(super) codes: [i8; LEN],
}

impl Block8 {
    pub(super) const ZERO: Self = Self { d: 0.0, s: 0.0, codes: [0; LEN] };
}

/// 256 activations in 8 bits: `d · codes` (`block_q8_K`).
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(crate) struct Block8K {
    /// −127 to 127.
    pub(super) codes: [i8; SUPER_LEN],
    /// Sums of the codes of each 16.
    pub(super) sums: [i16; N_SUB],
    pub(super) d: f32,
}

impl Block8K {
    pub(super) const ZERO: Self = Self { codes: [0; SUPER_LEN], sums: [0; N_SUB], d: 0.0 };
}

/// 32 weights of a row: `d · codes + minimum`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Small {
    pub(super) d: f32,
    pub(super) minimum: f32,
    pub(super) codes: [i8; LEN],
}

impl Small {
    pub(super) const ZERO: Self = Self { d: 0.0, minimum: 0.0, codes: [0; LEN] };
}

/// How the codes of a small block are stored.
pub(super) enum Form {
    /// As i8.
    Bytes,
    /// In four bits, perhaps with a fifth, and this much too large.
    Above(u8),
    /// In four bits, which stand for these.
    Of(&'static [i8; 16]),
}

/// Where a type of small blocks has its fields. The scale is the first of the block.
pub(super) trait Packed<const SIZE: usize> {
    /// Whether the scale is a byte, an exponent (`block_mxfp4`), and not an F16.
    const IS_EXPONENT: bool = false;
    /// Where the F16 minimum is.
    const MINIMUM: Option<usize> = None;
    /// Where the four bytes with the fifth bits begin.
    const FIFTH: Option<usize> = None;
    /// Where the codes begin. The low four bits of 16 bytes come before the high ones.
    const CODES: usize;
    const FORM: Form;
}

/// Where a type of super-blocks has its fields. Its codes lie in planes (`planes`).
pub(super) trait PackedSuper<const SIZE: usize> {
    /// Where a plane of four bits begins, and how many weights apart are those of a byte: 32 or 64.
    const NIBBLES: Option<(usize, usize)> = None;
    /// Where a plane of two bits begins, and which bits they are.
    const PAIRS: Option<(usize, u32)> = None;
    /// Where a plane of one bit begins, and which bit it is.
    const BITS: Option<(usize, u32)> = None;
    /// Whether the minimums count as the scales do: they are integers, then, to the end.
    const IS_CENTERED: bool = false;

    /// Reads all but the codes.
    fn scales(block: &[u8; SIZE], to: &mut Super);
}

/// 256 weights of a row in sub-blocks of 16: `d · scale · codes − dmin · minimum`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(super) struct Super {
    /// At most 63.
    pub(super) codes: [u8; SUPER_LEN],
    /// Scales of sub-blocks 0, 2, 4 and so on, then those of sub-blocks 1, 3, 5.
    pub(super) scales: [i16; N_SUB],
    pub(super) minimums: [i16; N_SUB],
    pub(super) d: f32,
    pub(super) dmin: f32,
}

impl Super {
    pub(super) const ZERO: Self =
        Self { codes: [0; SUPER_LEN], scales: [0; N_SUB], minimums: [0; N_SUB], d: 0.0, dmin: 0.0 };

    /// The scale of a sub-block.
    pub(super) fn scale(&self, sub: usize) -> i16 {
        self.scales[sub / 2 + N_SUB / 2 * (sub % 2)]
    }
}

/// Running sums of a row and a token: eight, and what a type's minimums add to them.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(super) struct Sums {
    pub(super) lanes: [f32; 8],
    pub(super) rest: f32,
}

impl Sums {
    pub(super) const ZERO: Self = Self { lanes: [0.0; 8], rest: 0.0 };

    /// Their sum.
    pub(super) fn total(&self) -> f32 {
        self.lanes.iter().sum::<f32>() + self.rest
    }
}

/// How a weight that is a number is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Format {
    F32,
    F16,
    BF16,
}

/// A weight that is a number.
pub(super) trait Number {
    /// It, as it is stored.
    type Stored: Copy;
    const FORMAT: Format;

    fn read(stored: Self::Stored) -> f32;
}

/// An f32 in memory.
impl Number for f32 {
    type Stored = f32;
    const FORMAT: Format = Format::F32;

    fn read(stored: f32) -> f32 {
        stored
    }
}

/// An f32 in a file.
pub(super) struct F32;

impl Number for F32 {
    type Stored = [u8; 4];
    const FORMAT: Format = Format::F32;

    fn read(stored: [u8; 4]) -> f32 {
        f32::from_le_bytes(stored)
    }
}

pub(super) struct F16;

impl Number for F16 {
    type Stored = [u8; 2];
    const FORMAT: Format = Format::F16;

    fn read(stored: [u8; 2]) -> f32 {
        float::read_f16(&stored)
    }
}

pub(super) struct BF16;

impl Number for BF16 {
    type Stored = [u8; 2];
    const FORMAT: Format = Format::BF16;

    fn read(stored: [u8; 2]) -> f32 {
        float::read_bf16(&stored)
    }
}

/// What the codes stand for (`kvalues_iq4nl`).
pub(super) const IQ4_VALUES: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0, //
];
