//! Rows of the output, read from the tensor of an input that has them.

use std::ops::Range;

use super::error::Error;
use super::rows::{Absent, Rows};
use super::source::TensorSource;
use crate::gguf::{self, TensorId};

/// Decodes blocks: [`decode`](super::decode), or [`decode_unscaled`](super::decode_unscaled).
pub type DecodeFn = fn(&dyn TensorSource, TensorId, u64, &[u8], &mut [f32]) -> Result<(), Error>;

/// Blocks of rows of the output, as the tensor of an input has them.
#[derive(Clone, Copy)]
pub struct RowBlocks<'a> {
    source: &'a dyn TensorSource,
    tensor: TensorId,
    rows: Rows<'a>,
    /// The row of the output at which the blocks begin.
    first: u64,
    blocks: &'a [u8],
}

impl<'a> RowBlocks<'a> {
    /// Reads the `wanted` rows of the output into `blocks`, which has room for them. Rows that the
    /// tensor lacks are zeros there: what nothing is added to is copied and looked at.
    ///
    /// # Errors
    /// Whatever the container reports.
    pub fn read(
        source: &'a dyn TensorSource,
        tensor: TensorId,
        rows: Rows<'a>,
        wanted: Range<u64>,
        blocks: &'a mut [u8],
    ) -> Result<Self, gguf::Error> {
        let row_size = source.tensor(tensor).row_size();
        let first = wanted.start;
        for (run, from) in rows.runs(wanted) {
            let blocks =
                &mut blocks[((run.start - first) * row_size) as usize..((run.end - first) * row_size) as usize];
            match from {
                Some(from) => source.read(tensor, from * row_size, blocks)?,
                None => blocks.fill(0),
            }
        }
        Ok(RowBlocks { source, tensor, rows, first, blocks })
    }

    /// The input.
    pub fn source(&self) -> &'a dyn TensorSource {
        self.source
    }

    /// The tensor in it.
    pub fn tensor(&self) -> TensorId {
        self.tensor
    }

    /// Which rows of the tensor those of the output are.
    pub fn rows(&self) -> Rows<'a> {
        self.rows
    }

    /// All blocks that were read.
    pub fn all(&self) -> &'a [u8] {
        self.blocks
    }

    /// The blocks of these rows of the output, which are among those that were read.
    pub fn of(&self, rows: Range<u64>) -> &'a [u8] {
        let row_size = self.source.tensor(self.tensor).row_size();
        let (start, end) = ((rows.start - self.first) * row_size, (rows.end - self.first) * row_size);
        &self.blocks[start as usize..end as usize]
    }

    /// The weights of these rows of the output, folded as those are. What stands for rows that the tensor lacks is said
    /// by [`Rows::absent`]; `own` are the output's own rows, if there are any.
    ///
    /// # Errors
    /// Those of `decode`.
    pub fn decode(
        &self,
        wanted: Range<u64>,
        own: Option<&RowBlocks<'_>>,
        decode: DecodeFn,
        out: &mut [f32],
    ) -> Result<(), Error> {
        let (start, row_len) = (wanted.start, self.source.tensor(self.tensor).row_len());
        for (run, from) in self.rows.runs(wanted) {
            let out = &mut out[((run.start - start) * row_len) as usize..((run.end - start) * row_len) as usize];
            match (from, self.rows.absent(), own) {
                (Some(from), ..) => {
                    decode(self.source, self.tensor, from * row_len, self.of(run), out)?;
                    self.rows.turn(from * row_len, out);
                }
                (None, Absent::Own, Some(own)) => own.decode(run, None, decode, out)?,
                (None, ..) => out.fill(0.0),
            }
        }
        Ok(())
    }
}
