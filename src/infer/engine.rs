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
    /// What runs it, for reports.
    fn name(&self) -> String;

    /// Tokens in the vocabulary.
    fn n_vocab(&self) -> usize;

    /// Tokens that the model was trained on at once.
    fn n_ctx_train(&self) -> usize;

    /// Bytes that `n` sequences of `room` tokens take. More of either take no less.
    fn bytes_needed(&self, n: usize, room: usize) -> u64;

    /// The largest number of sequences of `room` tokens, at most `most`, that fit in `memory` bytes;
    /// 0 if none does.
    fn largest_number(&self, most: usize, room: usize, memory: u64) -> usize {
        largest(most, |n| self.bytes_needed(n, room) <= memory)
    }

    /// The largest context, of at most `most` tokens, that one sequence has room for in `memory`
    /// bytes; 0 if there is none.
    fn largest_context(&self, most: usize, memory: u64) -> usize {
        largest(most, |room| self.bytes_needed(1, room) <= memory)
    }

    /// `n` sequences of at most `room` tokens each, parts of a context of `n_ctx`, in at most
    /// `memory` bytes.
    ///
    /// # Errors
    /// [`Error::Memory`] and [`Error::Setting`]; where the engine fails.
    fn sequences(&self, n: usize, n_ctx: usize, room: usize, memory: u64) -> Result<Box<dyn Engine + '_>, Error>;
}

/// The largest number up to `most` that fits, where all smaller ones fit too; 0 if none does.
pub(super) fn largest(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

/// Refuses what cannot be fed.
///
/// # Panics
/// If there is no such sequence, or a sequence is fed twice.
pub(super) fn check(engine: &dyn Engine, fed: &[Fed<'_>]) -> Result<(), Error> {
    let (n_vocab, n_ctx) = (engine.n_vocab(), engine.room());
    for (i, f) in fed.iter().enumerate() {
        assert!(fed[..i].iter().all(|other| other.sequence != f.sequence), "a sequence is fed once");
        let n_tokens = engine.tokens(f.sequence).len() + f.tokens.len();
        if n_tokens > n_ctx {
            return Err(Error::Context { n_tokens, n_ctx });
        }
        if let Some(&id) = f.tokens.iter().find(|&&id| id as usize >= n_vocab) {
            return Err(Error::Token { id, n_vocab });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_largest_that_fits_is_found() {
        for limit in [0, 1, 2, 6, 7, 8, 100] {
            assert_eq!(super::largest(7, |n| n <= limit), limit.min(7));
        }
        assert_eq!(super::largest(0, |_| true), 0);
    }
}
