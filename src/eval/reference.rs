//! What one model says of a text, kept so that others can be held against it.

use super::compare::must_have_size;
use super::comparison::{Comparison, Said};
use super::error::{Error, Side};
use super::kl::{Keep, KeptDistributions};
use super::scorer::{Scorer, score_chunk};
use super::statistics::Estimate;
use super::text::Text;

/// What one model says of a text, for others to be compared with.
#[derive(Debug)]
pub struct Reference {
    text: Text,
    n_vocab: usize,
    said: Said,
    kept: KeptDistributions,
}

impl Reference {
    /// Refuses to keep more of a text than `memory` bytes, for a vocabulary of `n_vocab` tokens.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn require_memory(text: &Text, keep: &Keep, n_vocab: usize, memory: u64) -> Result<(), Error> {
        let n_scored = text.n_scored();
        let needed = (n_scored as u64).saturating_mul(keep.bytes_per_position(n_vocab) as u64);
        if needed > memory { Err(Error::Memory { n_scored, needed, allowed: memory }) } else { Ok(()) }
    }

    /// Evaluates a model on a text and keeps the most of it. Takes [`Keep::bytes_per_position`] for
    /// each of [`Text::n_scored`] positions, which [`Reference::require_memory`] bounds.
    ///
    /// # Errors
    /// What the model reports, and rows that are not as promised.
    pub fn new(a: &mut dyn Scorer, text: Text, keep: Keep) -> Result<Self, Error> {
        let n_vocab = a.n_vocab();
        text.check_tokens(Side::A, n_vocab)?;
        let mut said = Said::default();
        let mut kept = KeptDistributions::new(keep, n_vocab, text.n_scored());
        for chunk in 0..text.n_chunks() {
            score_chunk(a, Side::A, &text, chunk, &mut |s| {
                said.add(s);
                kept.push(&s.distribution);
            })?;
        }
        Ok(Reference { text, n_vocab, said, kept })
    }

    /// The model's own perplexity.
    pub fn perplexity(&self) -> Estimate {
        self.said.perplexity()
    }

    /// Bytes that are kept.
    pub fn n_bytes(&self) -> usize {
        self.kept.n_bytes()
    }

    /// Holds another model against this one, on the same text: `text` as that model's own tokenizer
    /// and options make it.
    ///
    /// # Errors
    /// Everything in [`Error`] that concerns sizes, tokens and rows. Whether the vocabularies have
    /// the same tokens is for [`super::same_vocabulary`] to say.
    pub fn compare(&self, b: &mut dyn Scorer, text: &Text) -> Result<Comparison, Error> {
        must_have_size(self.n_vocab, b.n_vocab())?;
        self.text.must_equal(text)?;
        let mut said = Said::default();
        let mut kl = Vec::with_capacity(text.n_scored());
        let mut scratch = Vec::new();
        for chunk in 0..text.n_chunks() {
            score_chunk(b, Side::B, text, chunk, &mut |s| {
                said.add(s);
                kl.push(self.kept.divergence(kl.len(), &s.distribution, &mut scratch));
            })?;
        }
        Ok(Comparison::new(text, &self.said, &said, &kl))
    }
}
