//! A text as tokens, of which some are scored.

use super::error::{Error, MIN_CHUNK, Side, shown};

/// A text as tokens, cut into chunks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Text {
    tokens: Vec<u32>,
    n_ctx: usize,
    bos: Option<u32>,
}

impl Text {
    /// llama-perplexity's default for n_ctx.
    pub const DEFAULT_N_CTX: usize = 512;

    /// Cuts `tokens`, the whole text with BOS before it where the vocabulary adds one (`bos` is
    /// then that token), into chunks of `n_ctx`; what is left over at the end is not scored. A text
    /// shorter than `n_ctx` is one chunk of its own length; llama-perplexity refuses texts shorter
    /// than two chunks, see [`Text::is_short`].
    ///
    /// # Errors
    /// [`Error::Context`], [`Error::TooShort`].
    pub fn new(mut tokens: Vec<u32>, n_ctx: usize, bos: Option<u32>) -> Result<Self, Error> {
        if n_ctx < MIN_CHUNK {
            return Err(Error::Context { n_ctx });
        }
        if tokens.len() < MIN_CHUNK {
            return Err(Error::TooShort { n_tokens: tokens.len() });
        }
        let n_ctx = n_ctx.min(tokens.len());
        tokens.truncate(tokens.len() / n_ctx * n_ctx);
        Ok(Text { tokens, n_ctx, bos })
    }

    /// The first `n_chunks` chunks, at least one.
    #[must_use]
    pub fn first_chunks(mut self, n_chunks: usize) -> Self {
        self.tokens.truncate(n_chunks.max(1).saturating_mul(self.n_ctx));
        self
    }

    /// Tokens in a chunk.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Chunks.
    pub fn n_chunks(&self) -> usize {
        self.tokens.len() / self.n_ctx
    }

    /// Tokens that are scored.
    pub fn n_scored(&self) -> usize {
        self.n_chunks() * self.n_scored_of_chunk()
    }

    /// Whether there is but one chunk, so that errors say little and llama-perplexity would refuse.
    pub fn is_short(&self) -> bool {
        self.n_chunks() < 2
    }

    fn n_scored_of_chunk(&self) -> usize {
        self.n_ctx - 1 - self.first()
    }

    /// The position whose logits are the first to be scored.
    pub(super) fn first(&self) -> usize {
        self.n_ctx / 2
    }

    pub(super) fn chunk(&self, index: usize) -> Vec<u32> {
        let mut chunk = self.tokens[index * self.n_ctx..(index + 1) * self.n_ctx].to_vec();
        if let Some(bos) = self.bos {
            chunk[0] = bos;
        }
        chunk
    }

    pub(super) fn check_tokens(&self, side: Side, n_vocab: usize) -> Result<(), Error> {
        let all = self.bos.into_iter().map(|bos| (0, bos)).chain(self.tokens.iter().copied().enumerate());
        match all.into_iter().find(|(_, token)| *token as usize >= n_vocab) {
            None => Ok(()),
            Some((index, token)) => Err(Error::NoSuchToken { side, index, token, n_vocab }),
        }
    }

    /// Refuses the text of B if it is not that of A.
    pub(super) fn must_equal(&self, b: &Text) -> Result<(), Error> {
        if self.n_ctx != b.n_ctx {
            return Err(Error::Chunks { key: "n_ctx", a: self.n_ctx.to_string(), b: b.n_ctx.to_string() });
        }
        if self.bos != b.bos {
            return Err(Error::Chunks { key: "the BOS token", a: shown(self.bos), b: shown(b.bos) });
        }
        if self.tokens == b.tokens {
            return Ok(());
        }
        let index = self.tokens.iter().zip(&b.tokens).take_while(|(a, b)| a == b).count();
        Err(Error::Text {
            index,
            a: self.tokens.get(index).copied(),
            b: b.tokens.get(index).copied(),
            a_tokens: self.tokens.len(),
            b_tokens: b.tokens.len(),
        })
    }
}
