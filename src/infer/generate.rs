//! Continuing a prompt.

use super::{Error, Sampler, Session};

/// Why a generation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The model chose this end-of-generation token, which is not among the tokens.
    Token(u32),
    /// It wrote as many tokens as were allowed.
    Limit,
    /// The context is full.
    Context,
}

/// What a model wrote.
#[derive(Clone, PartialEq, Debug)]
pub struct Generated {
    /// Tokens, without the one that ended it.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub end: End,
    /// Whether all logits were numbers. If not, the generation ended where the first was not.
    pub is_finite: bool,
}

/// Feeds a prompt and continues it by at most `max_tokens` tokens, until one of which `is_end` says that it ends the
/// generation. The session then holds the prompt and what was generated, but for the last token if the context is full.
///
/// `go_on` is asked before each token, and given what was generated so far.
///
/// # Errors
/// As [`Session::feed_and_predict`]; [`Error::Cancelled`] if `go_on` says no.
pub fn generate(
    session: &mut Session<'_>,
    prompt: &[u32],
    max_tokens: usize,
    sampler: &mut Sampler,
    is_end: &dyn Fn(u32) -> bool,
    go_on: &dyn Fn(&[u32]) -> bool,
) -> Result<Generated, Error> {
    let mut logits = session.feed_and_predict(prompt)?;
    let mut tokens = Vec::new();
    loop {
        if !go_on(&tokens) {
            return Err(Error::Cancelled);
        }
        let is_finite = logits.iter().all(|l| l.is_finite());
        if tokens.len() == max_tokens || !is_finite {
            return Ok(Generated { tokens, end: End::Limit, is_finite });
        }
        let token = sampler.choose(&logits);
        if is_end(token) {
            return Ok(Generated { tokens, end: End::Token(token), is_finite });
        }
        tokens.push(token);
        if session.tokens().len() == session.n_ctx() {
            return Ok(Generated { tokens, end: End::Context, is_finite });
        }
        logits = session.feed_and_predict(&[token])?;
    }
}
