//! One answer of a conversation that goes on, token by token.

use super::chatter::Chatter;
use super::{End, Reply};
use crate::chat::{Message, StreamDecoder, TemplateError};
use crate::infer::{self, Engine, Fed, Sampler};

/// Tokens of a question that are fed at once: after each of these it can be stopped.
const PIECE: usize = 128;

/// The sequence that the conversation is in.
const SEQUENCE: usize = 0;

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Turn {
    /// What was said.
    pub reply: Reply,
    /// Whether somebody stopped it; [`Reply::end`] then means nothing.
    pub is_stopped: bool,
    /// Tokens of the conversation before it.
    pub n_asked: usize,
    /// Of these, tokens that the engine still had from earlier turns.
    pub n_kept: usize,
}

/// Why there is no answer. The conversation can go on with another message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TurnError {
    /// The template does not render the conversation.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The conversation has no room for an answer. Nothing of it was left out.
    #[error(
        "the conversation takes {n_tokens} tokens, and the context has {n_ctx}; nothing was left out of it: begin anew, or give \
         a larger --ctx-size"
    )]
    Full {
        /// Tokens of the conversation.
        n_tokens: usize,
        /// Tokens of the context.
        n_ctx: usize,
    },
    /// The engine.
    #[error(transparent)]
    Infer(#[from] infer::Error),
}

impl Chatter {
    /// Answers the last message of a conversation in the first sequence of an engine. What the
    /// engine has of its beginning is not computed again. The tokens are those of
    /// [`Chatter::ask`] for the same conversation. It has `max_tokens` at most, or as many as fit.
    ///
    /// `heard` gets the text of the answer as it comes, and says whether to go on; it also gets
    /// empty texts, so that it is asked before each token and between parts of a long question.
    ///
    /// # Errors
    /// [`TurnError`]; the engine then has a beginning of the conversation, and can be asked again.
    pub fn answer(
        &self,
        engine: &mut dyn Engine,
        messages: &[Message],
        max_tokens: Option<usize>,
        sampler: &mut Sampler,
        heard: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Turn, TurnError> {
        let asked = self.prompt_of(messages)?;
        let n_ctx = engine.room();
        if asked.is_empty() || asked.len() >= n_ctx {
            return Err(TurnError::Full { n_tokens: asked.len(), n_ctx });
        }
        let in_common = engine.tokens(SEQUENCE).iter().zip(&asked).take_while(|(a, b)| a == b).count();
        // The last token is fed in any case: its logits are the answer's beginning.
        let n_kept = in_common.min(asked.len() - 1);
        engine.truncate(SEQUENCE, n_kept)?;
        let mut logits = Vec::new();
        let mut is_stopped = !heard("");
        for piece in asked[n_kept..].chunks(PIECE) {
            if is_stopped {
                break;
            }
            logits = feed(engine, piece)?;
            is_stopped = !heard("");
        }
        let (mut tokens, mut is_finite) = (Vec::new(), true);
        let mut text = StreamDecoder::new(self.tokenizer(), false);
        let mut end = infer::End::Limit;
        while !is_stopped {
            is_finite &= logits.iter().all(|l| l.is_finite());
            let token = sampler.choose(&logits);
            if !is_finite || max_tokens == Some(tokens.len()) {
                break;
            }
            if self.tokenizer().is_end(token) {
                end = infer::End::Token(token);
                break;
            }
            tokens.push(token);
            is_stopped = !heard(&text.push(token));
            if asked.len() + tokens.len() > n_ctx {
                end = infer::End::Context;
                break;
            }
            if is_stopped || max_tokens == Some(tokens.len()) {
                break;
            }
            logits = feed(engine, &[token])?;
        }
        heard(&text.finish());
        let reply = self.reply(&tokens, &end, is_finite);
        let is_stopped = is_stopped && !matches!(reply.end, End::Token(_));
        Ok(Turn { reply, is_stopped, n_asked: asked.len(), n_kept })
    }
}

/// Feeds tokens and gives the logits after the last of them.
fn feed(engine: &mut dyn Engine, tokens: &[u32]) -> Result<Vec<f32>, infer::Error> {
    let mut last = Vec::new();
    let fed = [Fed { sequence: SEQUENCE, tokens, first: tokens.len() - 1 }];
    engine.feed(&fed, &mut |_, _, logits| last = logits.to_vec())?;
    Ok(last)
}
