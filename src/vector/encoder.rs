//! How a sum becomes blocks: the one way, of a run and of a sample that forecasts it.

use std::ops::Range;

use super::encoding::{Encoding, Rounding};
use super::error::Error;
use super::source::{TensorSource, divide_scale, multiply_scale};
use super::space::Coordinates;
use super::sum::{Sum, resize};
use crate::ggml::GgmlType;
use crate::gguf::TensorId;
use crate::imatrix::RowImportance;
use crate::quants::{self, Dither, Feedback, Placement};

/// How the weights of one tensor become blocks. The codec can do what it asks for, and its type
/// fits the rows.
#[derive(Clone, Copy, Debug)]
pub struct Encoder<'a> {
    /// The type, and how its codes are found.
    pub encoding: Encoding,
    /// Weights in a row.
    pub row_len: u64,
    /// How much the errors of the weights count.
    pub importance: Option<RowImportance<'a>>,
    /// What codes are chosen anew with, if that is how they are found.
    pub grid: Option<(&'a Feedback, Dither)>,
}

/// A sum on weights of one tensor: whole rows, or whole blocks of one row.
#[derive(Clone, Copy)]
pub struct ToEncode<'a> {
    /// The index in the tensor of the first weight.
    pub first: u64,
    /// The sum.
    pub sum: &'a Sum,
    /// The way out of the space that it was computed in.
    pub coordinates: &'a Coordinates,
    /// The model's tensor whose factors lie beside the blocks, also in the output.
    pub scaled: Option<(&'a dyn TensorSource, TensorId)>,
    /// The model's own blocks of these weights, if they are of the output's type.
    pub own: Option<&'a [u8]>,
}

impl Encoder<'_> {
    /// Encodes a sum into `out`; `got` gets what the blocks hold, in the space of the sum.
    ///
    /// Blocks that nothing is added to are the model's own.
    ///
    /// # Errors
    /// [`Error::Scale`], [`Error::Container`].
    pub fn encode(&self, of: ToEncode<'_>, got: &mut Vec<f32>, out: &mut [u8]) -> Result<(), Error> {
        let ToEncode { first, sum, coordinates, scaled, own } = of;
        let ty = self.encoding.ty;
        resize(got, sum.wanted().len());
        let stored = match scaled {
            None if coordinates.is_as_stored(sum) => sum.wanted(),
            _ => {
                coordinates.leave(sum, got);
                if let Some((source, tensor)) = scaled {
                    divide_scale(source, tensor, first, got)?;
                }
                &got[..]
            }
        };
        match own {
            Some(own) if self.grid.is_some() => out.copy_from_slice(own),
            Some(own) if ty.is_quantized() || scaled.is_some() => {
                self.encode_changed(first, stored, sum.delta(), own, out);
            }
            _ if self.encoding.rounding == Rounding::UnitGain => {
                quants::quantize_to_unit_gain(ty, stored, out).expect("a type with few values was chosen");
            }
            // Floats decode and encode to the same bits, and the sum has kept what does not change.
            _ => self.encode_weights(first, stored, out),
        }
        if let Some((feedback, dither)) = self.grid {
            let place = Placement { row_len: self.row_len as usize, first_weight: first };
            let rounded = quants::round_to_grid(ty, out, stored, sum.delta(), place, feedback, dither);
            rounded.expect("a type with a grid was chosen");
        }
        quants::dequantize_row(ty, out, got).expect("a type that can be read was chosen");
        if let Some((source, tensor)) = scaled {
            multiply_scale(source, tensor, first, got)?;
        }
        coordinates.enter_stored(sum, got);
        Ok(())
    }

    /// Encodes weights as ggml does it, whatever is added to them.
    pub fn encode_weights(&self, first: u64, weights: &[f32], out: &mut [u8]) {
        let ty = self.encoding.ty;
        let Some(importance) = self.importance else { return encode(ty, weights, None, out) };
        let (row, start) = (first / self.row_len, (first % self.row_len) as usize);
        if start > 0 || weights.len() < self.row_len as usize {
            let importance = &importance.of_row(row)[start..start + weights.len()];
            return encode(ty, weights, Some(importance), out);
        }
        let (row_len, n_rows) = (self.row_len as usize, weights.len() as u64 / self.row_len);
        let row_size = out.len() / n_rows.max(1) as usize;
        for (rows, importance) in importance.parts(row..row + n_rows) {
            let rows = (rows.start - row) as usize..(rows.end - row) as usize;
            let weights = &weights[rows.start * row_len..rows.end * row_len];
            encode(ty, weights, Some(importance), &mut out[rows.start * row_size..rows.end * row_size]);
        }
    }

    /// Encodes the blocks that change and copies those that do not: encoders are not idempotent, so
    /// a block that was decoded and encoded again would differ from itself.
    ///
    /// With an importance the encoder sees whole rows, because some types weigh a block by its
    /// row's variance; blocks of them that do not change are put back afterwards.
    fn encode_changed(&self, first: u64, stored: &[f32], delta: &[f32], own: &[u8], out: &mut [u8]) {
        let ty = self.encoding.ty;
        let (len, size) = (ty.block_len(), ty.block_size());
        let unit = if self.importance.is_some() { stored.len().min(self.row_len as usize).max(len) } else { len };
        let is_changed = |delta: &[f32]| delta.iter().any(|d| *d != 0.0);
        for (is_change, units) in runs(delta.chunks_exact(unit).map(is_changed)) {
            let weights = units.start * unit..units.end * unit;
            let bytes = weights.start / len * size..weights.end / len * size;
            if !is_change {
                out[bytes.clone()].copy_from_slice(&own[bytes]);
                continue;
            }
            self.encode_weights(first + weights.start as u64, &stored[weights.clone()], &mut out[bytes.clone()]);
            if unit > len {
                let changed = delta[weights].chunks_exact(len).map(is_changed);
                let blocks = own[bytes.clone()].chunks_exact(size);
                for ((out, block), _) in out[bytes].chunks_exact_mut(size).zip(blocks).zip(changed).filter(|(_, c)| !c)
                {
                    out.copy_from_slice(block);
                }
            }
        }
    }
}

fn encode(ty: GgmlType, weights: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let encoded = quants::quantize_rows(ty, weights, importance, out);
    encoded.expect("a type that can be written and fits the rows was chosen");
}

/// Ranges of neighbours that are alike.
fn runs(flags: impl Iterator<Item = bool>) -> impl Iterator<Item = (bool, Range<usize>)> {
    let mut flags = flags.enumerate().peekable();
    std::iter::from_fn(move || {
        let (start, flag) = flags.next()?;
        let mut end = start + 1;
        while flags.next_if(|(_, other)| *other == flag).is_some() {
            end += 1;
        }
        Some((flag, start..end))
    })
}
