//! What a dot product multiplies: blocks and halves of a stored row, and activations in 8 bits.

use half::{bf16, f16};

/// Activations of a block.
pub(super) const LEN: usize = 32;

/// 32 activations in 8 bits: `d · codes`.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Block8 {
    /// The scale, rounded to F16.
    pub(super) d: f32,
    /// `d · Σ codes` before `d` was rounded, itself rounded to F16: what a type's minimum is
    /// multiplied with.
    pub(super) s: f32,
    /// −127 to 127.
    pub(super) codes: [i8; LEN],
}

/// A number of 16 bits.
pub(super) trait Half {
    /// Whether it is the upper half of an f32.
    const IS_BRAIN: bool;

    /// The value of a number.
    fn to_f32(bytes: [u8; 2]) -> f32;
}

pub(super) struct F16;

impl Half for F16 {
    const IS_BRAIN: bool = false;

    fn to_f32(bytes: [u8; 2]) -> f32 {
        f16::from_le_bytes(bytes).to_f32()
    }
}

pub(super) struct BF16;

impl Half for BF16 {
    const IS_BRAIN: bool = true;

    fn to_f32(bytes: [u8; 2]) -> f32 {
        bf16::from_le_bytes(bytes).to_f32()
    }
}

/// A block of 32 weights: `scale · code + minimum`, or `scale · (code − offset)`; codes of 4 bits
/// and perhaps a fifth. The scale is the first F16 of the block.
pub(super) trait Block<const SIZE: usize> {
    /// Where the F16 minimum is.
    const MINIMUM: Option<usize>;
    /// What is taken off each code.
    const OFFSET: u8;
    /// Where the four bytes with the fifth bits begin.
    const FIFTH: Option<usize>;
    /// Where the 16 bytes with the lower four bits of the codes begin.
    const NIBBLES: usize;
}

pub(super) struct Q4_1;

impl Block<20> for Q4_1 {
    const MINIMUM: Option<usize> = Some(2);
    const OFFSET: u8 = 0;
    const FIFTH: Option<usize> = None;
    const NIBBLES: usize = 4;
}

pub(super) struct Q5_0;

impl Block<22> for Q5_0 {
    const MINIMUM: Option<usize> = None;
    const OFFSET: u8 = 16;
    const FIFTH: Option<usize> = Some(2);
    const NIBBLES: usize = 6;
}

pub(super) struct Q5_1;

impl Block<24> for Q5_1 {
    const MINIMUM: Option<usize> = Some(2);
    const OFFSET: u8 = 0;
    const FIFTH: Option<usize> = Some(4);
    const NIBBLES: usize = 8;
}

/// The scale of a block, and the minimum, 0 if it has none.
#[inline(always)]
pub(super) fn scale_and_minimum<B: Block<SIZE>, const SIZE: usize>(
    block: &[u8; SIZE],
    half: impl Fn([u8; 2]) -> f32,
) -> (f32, f32) {
    let minimum = B::MINIMUM.map_or(0.0, |at| half([block[at], block[at + 1]]));
    (half([block[0], block[1]]), minimum)
}

/// `Σ (code − offset) · x.code` of a block.
pub(super) fn products<B: Block<SIZE>, const SIZE: usize>(block: &[u8; SIZE], x: &Block8) -> i32 {
    let fifths = B::FIFTH.map_or(0, |at| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]));
    let mut sum = 0;
    for i in 0..LEN / 2 {
        let byte = block[B::NIBBLES + i];
        let fifth = |bit: usize| ((fifths >> bit & 1) << 4) as i32;
        let offset = i32::from(B::OFFSET);
        sum += ((i32::from(byte & 15) | fifth(i)) - offset) * i32::from(x.codes[i]);
        sum += ((i32::from(byte >> 4) | fifth(i + LEN / 2)) - offset) * i32::from(x.codes[i + LEN / 2]);
    }
    sum
}
