//! Gathering importance: a model reads a text, and the squares of what goes into its matrices are
//! summed.

use super::Error;
use super::linear::Watch;
use super::session::Session;
use super::transformer::Transformer;
use crate::gguf::names::OUTPUT;
use crate::imatrix::Sums;

/// How a text is read. What is gathered is what llama-imatrix gathers (`compute_imatrix`,
/// tools/imatrix/imatrix.cpp).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gathering {
    /// Tokens of a chunk, each of which is read from an empty context.
    pub n_ctx: usize,
    /// Chunks at most, or as many as the text has; what is left over at its end is not read.
    pub n_chunks: Option<usize>,
    /// What stands in for the first token of each chunk, where the vocabulary adds a BOS.
    pub bos: Option<u32>,
    /// Whether `output.weight` takes part. A tied model has none: its embedding is no entry of any
    /// matrix.
    pub process_output: bool,
}

impl Gathering {
    /// Chunks of a text of so many tokens.
    ///
    /// # Errors
    /// [`Error::TooShort`] for less than two, which llama-imatrix refuses; [`Error::Setting`] for
    /// chunks of no tokens.
    pub fn n_chunks_of(&self, n_tokens: usize) -> Result<usize, Error> {
        if self.n_ctx == 0 {
            return Err(Error::Setting { what: "the context", expected: "at least one token", found: "0".to_owned() });
        }
        let needed = self.n_ctx.saturating_mul(2);
        if n_tokens < needed {
            return Err(Error::TooShort { n_tokens, needed, n_ctx: self.n_ctx });
        }
        let n_chunks = n_tokens / self.n_ctx;
        Ok(self.n_chunks.map_or(n_chunks, |n| n.clamp(1, n_chunks)))
    }

    /// Room for the sums of a model, by the name of the text.
    pub fn sums(&self, model: &Transformer, dataset: &str) -> Sums {
        let mut sums = Sums::new(dataset, u32::try_from(self.n_ctx).unwrap_or(u32::MAX));
        for linear in model.linears() {
            sums.add_tensor(&linear.name, linear.weight.row_len(), 1);
        }
        for stack in model.stacks() {
            sums.add_tensor(&stack.name, stack.row_len(), stack.weights.len());
        }
        if let Some(output) = model.output.as_ref().filter(|_| self.process_output) {
            sums.add_tensor(OUTPUT, output.weight.row_len(), 1);
        }
        sums
    }
}

/// Reads a text and adds to `sums` (those of [`Gathering::sums`]) what goes into the model's
/// matrices, chunk by chunk. `go_on` is told before each how many are done. Keys, values and
/// activations take at most `memory` bytes.
///
/// # Errors
/// Those of [`Gathering::n_chunks_of`] and of a [`Session`]; [`Error::NotFinite`];
/// [`Error::Cancelled`].
pub fn gather_importance(
    model: &Transformer,
    tokens: &[u32],
    gathering: &Gathering,
    sums: &mut Sums,
    memory: u64,
    go_on: &mut dyn FnMut(usize) -> bool,
) -> Result<(), Error> {
    let n_chunks = gathering.n_chunks_of(tokens.len())?;
    let mut session = Session::new(model, gathering.n_ctx, memory)?;
    // The logits themselves are of no use, but what goes into their matrix may be.
    let first_logits = if gathering.process_output && model.output.is_some() { 0 } else { gathering.n_ctx };
    for (i, chunk) in tokens.chunks_exact(gathering.n_ctx).take(n_chunks).enumerate() {
        if !go_on(i) {
            return Err(Error::Cancelled);
        }
        let mut chunk = chunk.to_vec();
        if let Some(bos) = gathering.bos {
            chunk[0] = bos;
        }
        session.truncate(0);
        let mut add = |tensor: &str, matrix: usize, x: &[f32]| sums.add(tensor, matrix, x);
        let mut watch: Watch<'_> = Some(&mut add);
        session.feed_watched(&chunk, first_logits, &mut |_, _| {}, &mut watch)?;
        if let Some(tensor) = sums.first_not_finite() {
            return Err(Error::NotFinite { tensor: tensor.to_owned(), chunk: i + 1 });
        }
    }
    Ok(())
}
