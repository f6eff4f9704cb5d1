//! Two models on one text: KL divergence, perplexities, and how often they would say the same.
//!
//! What is scored, and the errors of means, are those of `llama-perplexity`
//! (tools/perplexity/perplexity.cpp: `perplexity`, `kl_divergence`): the text is cut into chunks of
//! n_ctx tokens, each evaluated from an empty context with its first token replaced by BOS where
//! the vocabulary adds one, and of each the tokens after the first n_ctx/2 + 1 are scored. Its
//! option `--kl-divergence` rounds the first model's log-probabilities to 16 bits, cuts them at 16
//! below the largest, and leaves out what is less probable than e⁻¹⁶. That shows where models are
//! surprised: the perplexity it gives for the first model is too small (on the texts in
//! fixtures/compare by 1 to 17 % against its own result without that option, so that a model's
//! ratio to itself is 1.012 ± 0.005 on one of them); KL moves by about 1e-5. Nothing is rounded or
//! cut here.
//!
//! Two ways, with one result: [`compare`] evaluates both models chunk by chunk and is exact; a
//! [`Reference`](super::Reference) holds what one model said in a few KB a position, so that models
//! need not be in memory together and many can be held against one.

use super::comparison::{Comparison, Said};
use super::error::{Error, Side};
use super::kl::{Distribution, Known};
use super::scorer::{Scorer, score_chunk};
use super::text::Text;
use crate::chat;
use crate::gguf::Model;

/// Refuses two models whose probabilities are not over the same tokens.
///
/// # Errors
/// [`Error::NoVocabulary`], [`Error::VocabularySize`], [`Error::Token`] with the first one that
/// differs.
pub fn same_vocabulary(a: &Model, b: &Model) -> Result<(), Error> {
    let tokens = |model: &Model| -> Result<_, Error> {
        let tokens = model.metadata().get_strings(chat::TOKENS).cloned();
        tokens.ok_or_else(|| Error::NoVocabulary { path: model.path().to_owned() })
    };
    let (a, b) = (tokens(a)?, tokens(b)?);
    if a.len() != b.len() {
        return Err(Error::VocabularySize { a: a.len(), b: b.len() });
    }
    match a.iter().zip(b.iter()).enumerate().find(|(_, (a, b))| a != b) {
        None => Ok(()),
        Some((id, (a, b))) => Err(Error::Token { id, a: a.to_owned(), b: b.to_owned() }),
    }
}

/// Compares two models on a text exactly. Both are evaluated chunk after chunk, and the first one's
/// logits of a chunk are held: 4 · n_vocab · n_ctx/2 bytes (150 MB for 150 000 tokens at n_ctx
/// 512).
///
/// # Errors
/// Everything in [`Error`] that concerns sizes, tokens and rows. Whether the vocabularies have the
/// same tokens is for [`same_vocabulary`] to say.
pub fn compare(a: &mut dyn Scorer, b: &mut dyn Scorer, text: &Text) -> Result<Comparison, Error> {
    let n_vocab = a.n_vocab();
    must_have_size(n_vocab, b.n_vocab())?;
    text.check_tokens(Side::A, n_vocab)?;
    let (mut said_a, mut said_b) = (Said::default(), Said::default());
    let mut kl = Vec::with_capacity(text.n_scored());
    let mut logits = Vec::new();
    for chunk in 0..text.n_chunks() {
        logits.clear();
        score_chunk(a, Side::A, text, chunk, &mut |s| {
            said_a.add(s);
            logits.extend_from_slice(s.distribution.logits);
        })?;
        let mut rows = logits.chunks_exact(n_vocab);
        score_chunk(b, Side::B, text, chunk, &mut |s| {
            said_b.add(s);
            let row = rows.next().expect("both models are asked for the same rows");
            let value = Distribution::new(row).divergence(&s.distribution);
            kl.push(Known { value, drawing_error: 0.0, lower: value, upper: value });
        })?;
    }
    Ok(Comparison::new(text, &said_a, &said_b, &kl))
}

pub(super) fn must_have_size(a: usize, b: usize) -> Result<(), Error> {
    if a == b { Ok(()) } else { Err(Error::VocabularySize { a, b }) }
}
