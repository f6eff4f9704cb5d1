//! Rows cut into what vectors take at a time, and the results put where blocks belong.

use std::marker::PhantomData;

use super::simd::{Kernel, Level, Simd, run};

/// Rows of one tensor, to be encoded.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// Their weights, one row after the other.
    pub(super) weights: &'a [f32],
    /// How much the error of each weight of a row counts; has the length of a row.
    pub(super) importance: Option<&'a [f32]>,
}

/// An encoder that takes `LEN` weights at a time, a whole number of blocks, and gives their `SIZE` bytes.
pub(super) trait Encoder<const LEN: usize, const SIZE: usize> {
    /// Weights in a block.
    const BLOCK_LEN: usize;

    /// Encodes; every byte of `blocks` is written. Implementations are `#[inline(always)]`.
    fn encode<S: Simd>(simd: S, x: &[f32; LEN], importance: Option<&[f32; LEN]>, blocks: &mut [u8; SIZE]);
}

/// Encodes rows with `E`. What is left over after whole batches is filled up with zeros, whose blocks are dropped: no
/// block knows of another.
pub(super) fn encode<E: Encoder<LEN, SIZE>, const LEN: usize, const SIZE: usize>(
    level: Level,
    rows: Rows<'_>,
    dst: &mut [u8],
) {
    run(level, Encode::<E, LEN, SIZE> { rows, dst, encoder: PhantomData });
}

struct Encode<'a, E, const LEN: usize, const SIZE: usize> {
    rows: Rows<'a>,
    dst: &'a mut [u8],
    encoder: PhantomData<E>,
}

impl<E: Encoder<LEN, SIZE>, const LEN: usize, const SIZE: usize> Kernel for Encode<'_, E, LEN, SIZE> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut importance = self.rows.importance.map(|row| (row.chunks(E::BLOCK_LEN).cycle(), [0.0; LEN]));
        for (x, blocks) in self.rows.weights.chunks(LEN).zip(self.dst.chunks_mut(SIZE)) {
            if let Some((row, batch)) = &mut importance {
                for (block, row) in batch.chunks_mut(E::BLOCK_LEN).zip(row.take(x.len() / E::BLOCK_LEN)) {
                    block.copy_from_slice(row);
                }
            }
            let importance = importance.as_ref().map(|(_, batch)| batch);
            let (mut padded_x, mut padded_blocks) = ([0.0; LEN], [0; SIZE]);
            match (x.first_chunk(), blocks.first_chunk_mut()) {
                (Some(x), Some(blocks)) => E::encode(simd, x, importance, blocks),
                _ => {
                    padded_x[..x.len()].copy_from_slice(x);
                    E::encode(simd, &padded_x, importance, &mut padded_blocks);
                    blocks.copy_from_slice(&padded_blocks[..blocks.len()]);
                }
            }
        }
    }
}
