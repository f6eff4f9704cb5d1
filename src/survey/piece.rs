//! Pieces of rows of the tensors that a sum is made of.

use super::pairing::{Inputs, Part, Rows, TensorRef, Term, parts};
use super::source::{Error, decode};
use super::sum::Sum;

/// Computes sums on pieces of rows, whole blocks of every type, with one buffer for all.
pub(super) struct Pieces<'a> {
    inputs: &'a Inputs,
    model: Option<TensorRef>,
    terms: &'a [Term],
    parts: Vec<(Part, Rows<'a>)>,
    row_len: u64,
    raw: Vec<u8>,
}

impl<'a> Pieces<'a> {
    /// For `model`, if there is one, and what `terms` add to rows of this length.
    pub(super) fn new(inputs: &'a Inputs, model: Option<TensorRef>, terms: &'a [Term], row_len: u64) -> Self {
        let parts = parts(model, terms).map(|part| (part, inputs.rows(&part, &[]))).collect();
        Pieces { inputs, model, terms, parts, row_len, raw: Vec::new() }
    }

    /// The sum on `len` weights of a row from `start` on.
    ///
    /// # Errors
    /// Those of the sources.
    pub(super) fn compute(&mut self, sum: &mut Sum, row: u64, start: u64, len: u64) -> Result<(), Error> {
        let Pieces { inputs, model, terms, parts, row_len, raw } = self;
        let mut next = parts.iter();
        let load = |_: TensorRef, out: &mut [f32]| {
            let (part, rows) = next.next().expect("a sum asks for its parts in their order");
            let (mut at, mut from) = (part.at, rows.find(row));
            if from.is_none() && !part.is_difference {
                // Both halves of a difference are the output's own row, so that it is zero.
                (at, from) = (parts[0].0.at, parts[0].1.find(row));
            }
            let Some(from) = from else {
                out.fill(0.0);
                return Ok(());
            };
            let source = inputs.source(at.source);
            let info = source.tensor(at.tensor);
            let size = |n: u64| info.ty().size_of(n).expect("pieces begin and end at blocks");
            raw.resize(size(len) as usize, 0);
            source.read(at.tensor, from * info.row_size() + size(start), raw)?;
            decode(source, at.tensor, from * *row_len + start, raw, out)
        };
        sum.compute(len as usize, *model, terms, false, load)
    }
}
