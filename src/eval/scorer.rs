//! A model that says how probable each token of a text is.

use super::error::{Error, Side};
use super::kl::Distribution;
use super::statistics::Estimate;
use super::text::Text;

/// Next-token logits of a model.
pub trait Scorer {
    /// Tokens in the vocabulary: the length of every row of logits.
    fn n_vocab(&self) -> usize;

    /// Evaluates `tokens` from an empty context and hands over the logits after each token from
    /// position `first` on, in order: a position and `n_vocab` logits for the token that follows
    /// it.
    ///
    /// # Errors
    /// Whatever the model reports.
    fn logits(
        &mut self,
        tokens: &[u32],
        first: usize,
        row: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// What is handed over for each scored token.
pub(super) struct Scored<'a> {
    /// The distribution before the token.
    pub(super) distribution: Distribution<'a>,
    /// The token itself.
    pub(super) next: usize,
}

/// Evaluates one chunk and hands over every token that is scored, in order.
pub(super) fn score_chunk(
    scorer: &mut dyn Scorer,
    side: Side,
    text: &Text,
    chunk: usize,
    each: &mut dyn FnMut(&Scored<'_>),
) -> Result<(), Error> {
    let n_vocab = scorer.n_vocab();
    let tokens = text.chunk(chunk);
    let first = text.first();
    let mut due = first;
    let mut broken = None;
    // The last token is only scored; what would follow it is not asked for.
    let evaluated = scorer.logits(&tokens[..text.n_ctx() - 1], first, &mut |position, logits| {
        if broken.is_some() {
            return;
        }
        let rows = |found| Error::Rows { side, chunk, position: due, expected: n_vocab, found };
        if position != due || due + 1 >= tokens.len() {
            broken = Some(rows(format!("a row for position {position}")));
        } else if logits.len() != n_vocab || n_vocab == 0 {
            broken = Some(rows(logits.len().to_string()));
        } else if let Some(token) = logits.iter().position(|l| !l.is_finite()) {
            broken = Some(Error::NotFinite { side, chunk, position, token, value: logits[token] });
        } else {
            due += 1;
            each(&Scored { distribution: Distribution::new(logits), next: tokens[due] as usize });
        }
    });
    match (evaluated, broken) {
        (_, Some(error)) => Err(error),
        (Err(source), None) => Err(Error::Scorer { side, chunk, source }),
        (Ok(()), None) if due + 1 < tokens.len() => {
            Err(Error::Rows { side, chunk, position: due, expected: n_vocab, found: "the end".to_owned() })
        }
        (Ok(()), None) => Ok(()),
    }
}

/// The perplexity of one model on a text: e to the mean negative log-likelihood of the scored
/// tokens, llama-perplexity's "Final estimate".
///
/// # Errors
/// What the model reports, and rows that are not as promised.
pub fn perplexity(model: &mut dyn Scorer, text: &Text) -> Result<Estimate, Error> {
    text.check_tokens(Side::A, model.n_vocab())?;
    let mut nll = Vec::with_capacity(text.n_scored());
    for chunk in 0..text.n_chunks() {
        score_chunk(model, Side::A, text, chunk, &mut |s| nll.push(-s.distribution.ln_p(s.next)))?;
    }
    Ok(Estimate::mean(&nll).expect("a text has something to score").exp())
}
