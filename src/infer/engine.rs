//! What continues sequences of tokens: this crate's forward pass, or another program's.

use super::Error;

/// Tokens for a sequence.
#[derive(Clone, Copy, Debug)]
pub struct Fed<'t> {
    /// Which sequence.
    pub sequence: usize,
    /// What follows the tokens that it has.
    pub tokens: &'t [u32],
    /// From which of them on logits are wanted; their number for none.
    pub first: usize,
}

/// A model that continues several sequences of tokens, which know nothing of each other.
pub trait Engine {
    /// How many sequences there are.
    fn n_sequences(&self) -> usize;

    /// Tokens that fit in each.
    fn room(&self) -> usize;

    /// Tokens in the vocabulary: the length of every row of logits.
    fn n_vocab(&self) -> usize;

    /// The tokens of a sequence so far.
    ///
    /// # Panics
    /// If there is no such sequence.
    fn tokens(&self, sequence: usize) -> &[u32];

    /// Forgets all tokens of a sequence but the first `n`.
    ///
    /// # Errors
    /// Where the engine fails.
    ///
    /// # Panics
    /// If there is no such sequence.
    fn truncate(&mut self, sequence: usize, n: usize) -> Result<(), Error>;

    /// Makes the first `n` tokens of a sequence those of another one, and forgets its own.
    ///
    /// # Errors
    /// Where the engine fails.
    ///
    /// # Panics
    /// If there is no such sequence, or it has no `n` tokens.
    fn share(&mut self, from: usize, to: usize, n: usize) -> Result<(), Error>;

    /// Feeds tokens to sequences, each at most once, and calls `logits` for each token from
    /// [`Fed::first`] on with what was fed, with which of its tokens, and with the `n_vocab` logits
    /// of what comes after it. Calls for one sequence come in order.
    ///
    /// # Errors
    /// [`Error::Context`], [`Error::Token`]; nothing is fed then.
    ///
    /// # Panics
    /// If there is no such sequence, or a sequence is fed twice.
    fn feed(&mut self, fed: &[Fed<'_>], logits: &mut dyn FnMut(usize, usize, &[f32])) -> Result<(), Error>;
}

/// A model that gives room for sequences.
pub trait Host {
    /// The largest number of sequences of `room` tokens, at most `most`, that fit in `memory` bytes;
    /// 0 if none does.
    fn largest_number(&self, most: usize, room: usize, memory: u64) -> usize;

    /// `n` sequences of at most `room` tokens each, parts of a context of `n_ctx`, in at most
    /// `memory` bytes.
    ///
    /// # Errors
    /// [`Error::Memory`] and [`Error::Setting`]; where the engine fails.
    fn sequences(&self, n: usize, n_ctx: usize, room: usize, memory: u64) -> Result<Box<dyn Engine + '_>, Error>;
}
