//! Encoding pieces of a sample as a run would encode them.

use crate::vector::{Encoder, Error, Inputs, Pair, Piece, Pieces, Sum, TensorSource, ToEncode};

/// Blocks of a piece.
pub(super) struct Bench<'a> {
    inputs: &'a Inputs,
    /// Those that were encoded.
    blocks: Vec<u8>,
    /// The model's own.
    own: Vec<u8>,
}

impl<'a> Bench<'a> {
    /// Bytes for each weight of a piece, at most: blocks of F32, and the model's own if it is
    /// quantised.
    pub(super) const BYTES_PER_WEIGHT: u64 = 4 + 2;

    pub(super) fn new(inputs: &'a Inputs) -> Self {
        Bench { inputs, blocks: Vec::new(), own: Vec::new() }
    }

    /// Encodes the sum that was computed last on a piece, and reads it back into `got`.
    ///
    /// # Errors
    /// Those of the sources.
    pub(super) fn encode(
        &mut self,
        pair: &Pair,
        encoder: &Encoder<'_>,
        piece: Piece,
        pieces: &mut Pieces<'_>,
        sum: &Sum,
        got: &mut Vec<f32>,
    ) -> Result<(), Error> {
        let (row, start, len) = piece;
        let ty = encoder.encoding.ty;
        let is_still = |delta: &[f32]| delta.iter().all(|d| *d == 0.0);
        // Only what is copied is asked for.
        let is_copied = || encoder.grid.is_some() || sum.delta().chunks_exact(ty.block_len()).any(is_still);
        // Rows that are no sums count as zeros here, and the model's own blocks are not.
        let is_taken = u32::try_from(row).is_ok_and(|row| pair.except.binary_search(&row).is_ok());
        let has_own = ty.is_quantized() && pair.model_type(self.inputs) == Some(ty) && !is_taken && is_copied();
        if has_own {
            self.own.clear();
            self.own.extend_from_slice(pieces.blocks_of_model(piece)?);
        }
        // Scales that lie beside the model's weights stay as they are.
        let scaled = pair.model.map(|at| (self.inputs.source(at.source), at.tensor));
        let scaled = scaled.filter(|(source, tensor)| source.scale_of(*tensor).is_some());
        let scaled = scaled.map(|(source, tensor)| (source as &dyn TensorSource, tensor));
        self.blocks.resize(ty.size_of(len).expect("only types that divide the row are tried") as usize, 0);
        let (first, own) = (row * encoder.row_len + start, has_own.then_some(&self.own[..]));
        let of = ToEncode { first, sum, coordinates: pieces.coordinates(), scaled, own };
        encoder.encode(of, got, &mut self.blocks)
    }
}
