//! Continuing a prompt.

use std::time::{Duration, Instant};

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
    /// How long the prompt took.
    pub prompt_time: Duration,
    /// How long the tokens after the first took, which came with the prompt.
    pub decode_time: Duration,
}

/// Feeds a prompt and continues it by at most `max_tokens` tokens, until one of which `is_end` says
/// that it ends the generation. The session then holds the prompt and what was generated, but for
/// the last token if the context is full.
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
    let started = Instant::now();
    let mut logits = session.feed_and_predict(prompt)?;
    let prompt_time = started.elapsed();
    let mut tokens = Vec::new();
    let mut is_finite = true;
    let end = loop {
        if !go_on(&tokens) {
            return Err(Error::Cancelled);
        }
        is_finite &= logits.iter().all(|l| l.is_finite());
        if tokens.len() == max_tokens || !is_finite {
            break End::Limit;
        }
        let token = sampler.choose(&logits);
        if is_end(token) {
            break End::Token(token);
        }
        tokens.push(token);
        if session.tokens().len() == session.n_ctx() {
            break End::Context;
        }
        logits = session.feed_and_predict(&[token])?;
    };
    Ok(Generated { tokens, end, is_finite, prompt_time, decode_time: started.elapsed() - prompt_time })
}
