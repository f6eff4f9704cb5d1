//! Dot products, whose sums may be taken in any order: by AVX2 with fused multiply-add, or as they
//! are written.

use half::f16;

#[cfg(target_arch = "x86_64")]
use super::x86::dot as x86;
use crate::quants::operands::{self, Block, Block8, Half};

/// The dot products of a row of blocks with the activations of some tokens, all of the row's
/// length.
pub(in crate::quants) fn dot<B: Block<SIZE>, const SIZE: usize, const N: usize>(
    blocks: &[[u8; SIZE]],
    x: [&[Block8]; N],
) -> [f32; N] {
    #[cfg(target_arch = "x86_64")]
    if x86::is_available() {
        return x86::dot::<B, SIZE, N>(blocks, x);
    }
    x.map(|x| {
        let mut total = 0.0;
        for (block, x) in blocks.iter().zip(x) {
            let (scale, minimum) =
                operands::scale_and_minimum::<B, SIZE>(block, |bytes| f16::from_le_bytes(bytes).to_f32());
            total += scale * x.d * operands::products::<B, SIZE>(block, x) as f32 + minimum * x.s;
        }
        total
    })
}

/// The dot product of a row of halves with activations.
pub(in crate::quants) fn dot_halves<H: Half>(row: &[u8], x: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if x86::is_available() {
        return x86::dot_halves::<H>(row, x);
    }
    row.as_chunks().0.iter().zip(x).map(|(&half, x)| H::to_f32(half) * x).sum()
}

/// The sum of products of one block, for the comparison with that of scalar code; none without
/// vector instructions.
#[cfg(test)]
pub(in crate::quants) fn products<B: Block<SIZE>, const SIZE: usize>(block: &[u8; SIZE], x: &Block8) -> Option<i32> {
    #[cfg(target_arch = "x86_64")]
    if x86::is_available() {
        return Some(x86::products::<B, SIZE>(block, x));
    }
    None
}
