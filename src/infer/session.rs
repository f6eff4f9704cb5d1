//! One conversation with a model.

use super::Error;
use super::engine::{Engine, Fed};
use super::linear::Watch;
use super::sequences::Sequences;
use super::transformer::Transformer;

/// Keys and values of the tokens that a model was fed, in f32 as llama.cpp's with `--cache-type-k
/// f32`.
pub struct Session<'m> {
    one: Sequences<'m>,
}

impl<'m> Session<'m> {
    /// A session for at most `n_ctx` tokens that takes at most `memory` bytes; weights are not
    /// counted, they are pages of the system's cache.
    ///
    /// # Errors
    /// [`Error::Memory`]; [`Error::Setting`] for a context of no tokens; [`Error::Container`] if
    /// the system gives less memory than was allowed.
    pub fn new(model: &'m Transformer, n_ctx: usize, memory: u64) -> Result<Self, Error> {
        Ok(Session { one: Sequences::new(model, 1, n_ctx, n_ctx, memory)? })
    }

    /// The largest context, of at most `most` tokens, that a session has room for in `memory`
    /// bytes; 0 if there is none.
    pub fn largest_context(model: &Transformer, most: usize, memory: u64) -> usize {
        Sequences::largest_context(model, most, memory)
    }

    /// Bytes that it takes at most, of those that [`Session::new`] was allowed.
    pub fn n_bytes(&self) -> u64 {
        self.one.n_bytes()
    }

    /// The model.
    pub fn model(&self) -> &'m Transformer {
        self.one.model()
    }

    /// Tokens that fit in all.
    pub fn n_ctx(&self) -> usize {
        self.one.room()
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        self.one.tokens(0)
    }

    /// Forgets all tokens but the first `n`.
    pub fn truncate(&mut self, n: usize) {
        // In this process nothing can fail.
        let _ = self.one.truncate(0, n);
    }

    /// Feeds tokens, and calls `logits` for each of them from position `first` on (counted from the
    /// first of `tokens`) with the `n_vocab` logits of what comes after it, in order.
    ///
    /// # Errors
    /// [`Error::Context`], [`Error::Token`]; nothing is fed then.
    pub fn feed(&mut self, tokens: &[u32], first: usize, logits: &mut dyn FnMut(usize, &[f32])) -> Result<(), Error> {
        self.feed_watched(tokens, first, logits, &mut None)
    }

    /// Feeds tokens as [`Session::feed`] does, and shows `watch` what goes into each matrix.
    pub(super) fn feed_watched(
        &mut self,
        tokens: &[u32],
        first: usize,
        logits: &mut dyn FnMut(usize, &[f32]),
        watch: &mut Watch<'_>,
    ) -> Result<(), Error> {
        let fed = [Fed { sequence: 0, tokens, first }];
        self.one.feed_watched(&fed, &mut |_, index, values| logits(index, values), watch)
    }

    /// Feeds tokens and gives the `n_vocab` logits after the last of them.
    ///
    /// # Errors
    /// As [`Session::feed`], and [`Error::Setting`] for no tokens.
    pub fn feed_and_predict(&mut self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        if tokens.is_empty() {
            let found = "empty".to_owned();
            return Err(Error::Setting { what: "the prompt", expected: "at least one token", found });
        }
        let mut last = Vec::new();
        self.feed(tokens, tokens.len() - 1, &mut |_, logits| last.extend_from_slice(logits))?;
        Ok(last)
    }
}
