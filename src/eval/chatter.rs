//! Asking a model the prompts of a set.

use std::time::Duration;

use serde::Serialize;

use super::engine::InLlamaCpp;
use super::{Answer, End, Loaded, Prompt, Reply, Scorer};
use crate::chat::{self, Message, RenderOptions, Template, TemplateError, Templates, TokenKind, Tokenizer};
use crate::gguf::Model;
use crate::infer::{self, Sampling, Session};

/// Stands for an answer when a template is looked at.
const MARKER: &str = "An answer of the assistant";

/// Characters of a turn's end that are shown.
const SHOWN: usize = 40;

/// What a template writes after an assistant's turn.
pub(super) enum TurnEnd {
    Nothing,
    /// The first special token of it.
    Token(u32),
    /// The beginning of what has no special token.
    Text(String),
}

/// Finds what this template writes after an assistant's turn.
///
/// # Errors
/// [`TemplateError`] if it refuses a conversation, with an answer or without.
pub(super) fn turn_end(template: &Template, tokenizer: &Tokenizer) -> Result<TurnEnd, TemplateError> {
    let message = |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
    let render = |messages: &[Message], add| template.render(messages, &RenderOptions::new(Some(tokenizer), add));
    let text = render(&[message("user", "A question?"), message("assistant", MARKER)], false)?;
    // Also what is said here without an answer has to render.
    render(&[message("user", "A question?")], true)?;
    let after = text.rsplit_once(MARKER).map_or("", |(_, after)| after);
    let is_special = |id: &u32| matches!(tokenizer.kind(*id), TokenKind::Control | TokenKind::UserDefined);
    Ok(match tokenizer.encode(after, false, true).into_iter().find(is_special) {
        Some(id) => TurnEnd::Token(id),
        None if after.trim().is_empty() => TurnEnd::Nothing,
        None => TurnEnd::Text(after.trim().chars().take(SHOWN).collect()),
    })
}

/// Whether turns end with the token that ChatML has for it.
fn is_end_of_chatml(tokenizer: &Tokenizer, end: &TurnEnd) -> bool {
    matches!(end, TurnEnd::Token(id) if tokenizer.text(*id).is_some_and(|text| text == "<|im_end|>"))
}

/// The warning of [`TurnEnd::Text`].
pub(super) fn no_special_end(text: &str) -> String {
    format!(
        "the template ends turns with {text:?}, which is no special token of the vocabulary: the file may stop at another one"
    )
}

/// All that it takes to talk to a model, but for the engine that runs it.
#[derive(Debug)]
pub struct Chatter {
    tokenizer: Tokenizer,
    template: Template,
    loaded: Loaded,
}

/// Why a model cannot be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatterError {
    /// Its tokenizer is not known.
    #[error("{}", path.display())]
    Tokenizer {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        source: chat::Error,
    },
}

/// How a model is asked.
#[derive(Clone, PartialEq, Debug)]
pub struct Asking {
    /// Tokens of an answer at most.
    pub max_tokens: usize,
    /// Tokens of a conversation at most.
    pub n_ctx: usize,
    /// Bytes that the conversation may take.
    pub memory: u64,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// What a model said to a set.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Conversations {
    /// An answer to each prompt, in their order. Where the template refuses a prompt, it has fewer
    /// replies, or none.
    pub answers: Vec<Answer>,
    /// How fast they came.
    pub speed: Speed,
    /// The same in tokens: each reply, in the order of prompts and turns.
    pub transcripts: Vec<Transcript>,
    /// [`Chatter::loaded`], with what the template said against these prompts.
    pub loaded: Loaded,
    /// Whether the asking was ended before all prompts were answered. Then there are answers to those
    /// alone that have all their replies.
    pub is_partial: bool,
}

/// A reply in tokens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transcript {
    /// Which prompt.
    pub prompt: usize,
    /// Tokens of the conversation before the reply.
    pub n_asked: usize,
    /// These, those of the reply, and the one that ended it.
    pub tokens: Vec<u32>,
}

/// How fast a model was.
#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize)]
pub struct Speed {
    /// Tokens of prompts that were computed; those that a conversation still had are not.
    pub prompt_tokens: usize,
    /// Seconds they took.
    pub prompt_seconds: f64,
    /// Tokens that were generated one by one.
    pub decode_tokens: usize,
    /// Seconds they took.
    pub decode_seconds: f64,
}

impl Speed {
    /// Tokens of prompts a second.
    pub fn prompt_rate(&self) -> Option<f64> {
        (self.prompt_seconds > 0.0).then(|| self.prompt_tokens as f64 / self.prompt_seconds)
    }

    /// Generated tokens a second.
    pub fn decode_rate(&self) -> Option<f64> {
        (self.decode_seconds > 0.0).then(|| self.decode_tokens as f64 / self.decode_seconds)
    }

    /// Adds a step in which so many tokens of prompts and of answers went through the network. They
    /// share its time.
    pub(super) fn add_step(&mut self, time: Duration, prompt_tokens: usize, decode_tokens: usize) {
        let seconds = time.as_secs_f64() / (prompt_tokens + decode_tokens).max(1) as f64;
        self.prompt_tokens += prompt_tokens;
        self.prompt_seconds += seconds * prompt_tokens as f64;
        self.decode_tokens += decode_tokens;
        self.decode_seconds += seconds * decode_tokens as f64;
    }

    pub(super) fn add(&mut self, other: &Speed) {
        self.prompt_tokens += other.prompt_tokens;
        self.prompt_seconds += other.prompt_seconds;
        self.decode_tokens += other.decode_tokens;
        self.decode_seconds += other.decode_seconds;
    }
}

impl Chatter {
    /// Loads a model's tokenizer with its own template, or the given one. A model without any is talked to in
    /// ChatML, as llama.cpp does; so is one whose template cannot be parsed. What is odd about them
    /// is in [`Chatter::loaded`]. `by` renders the model's own template.
    ///
    /// # Errors
    /// [`ChatterError`] if its tokenizer is not known.
    pub fn load(model: &Model, template: Option<Template>, by: &Templates) -> Result<Self, ChatterError> {
        let tokenizer = Tokenizer::from_metadata(model.metadata())
            .map_err(|source| ChatterError::Tokenizer { path: model.path().to_owned(), source })?;
        // Another's is given where the own one cannot be used: then it is not even parsed.
        let engine = InLlamaCpp::of(model.metadata());
        let own = if template.is_some() { Ok(None) } else { by.of_as(model.metadata(), engine.render_as) };
        let mut loaded = Loaded {
            has_template: template.is_some() || !matches!(own, Ok(None)),
            end_tokens: tokenizer.ends().iter().map(|&id| text_of(&tokenizer, id)).collect(),
            ..Loaded::default()
        };
        if template.is_none() {
            loaded.refused_by_llama_cpp = engine.refusal;
            loaded.warnings.extend(engine.note);
        }
        let template = match (template, own) {
            (Some(given), _) => given,
            (None, Ok(own)) => own.unwrap_or_else(Template::chatml),
            (None, Err(e)) => {
                loaded.template_error = Some(e.to_string());
                Template::chatml()
            }
        };
        let has_template = loaded.has_template;
        let mut chatter = Chatter { tokenizer, template, loaded };
        if chatter.loaded.template_error.is_none() {
            match turn_end(&chatter.template, &chatter.tokenizer) {
                Ok(TurnEnd::Nothing) => {}
                // ChatML stands in for a template that is not there: what it ends turns with is no fault
                // of a file that does not know it.
                Ok(end) if !has_template && !is_end_of_chatml(&chatter.tokenizer, &end) => {}
                Ok(TurnEnd::Token(id)) => chatter.loaded.turn_end = Some(text_of(&chatter.tokenizer, id)),
                Ok(TurnEnd::Text(text)) => chatter.loaded.warnings.push(no_special_end(&text)),
                Err(e) => chatter.loaded.template_error = Some(e.to_string()),
            }
        }
        Ok(chatter)
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The template it is talked to by.
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// What is known of the file before it answers.
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// The conversation so far, as tokens, with the beginning of an answer.
    pub(super) fn question(&self, prompt: &Prompt, messages: &[Message]) -> Result<Vec<u32>, TemplateError> {
        match &prompt.rendered {
            Some(rendered) if !self.loaded.has_template => Ok(self.encode(rendered)),
            _ => self.prompt_of(messages),
        }
    }

    /// The same by the template alone.
    pub(super) fn prompt_of(&self, messages: &[Message]) -> Result<Vec<u32>, TemplateError> {
        Ok(self.encode(&self.template.render(messages, &RenderOptions::new(Some(&self.tokenizer), true))?))
    }

    fn encode(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode(self.without_added(text), true, true)
    }

    /// The text without the BOS and EOS that the tokenizer adds itself (common/chat.cpp,
    /// `common_chat_template_direct_apply`).
    fn without_added<'a>(&self, text: &'a str) -> &'a str {
        let added = |adds: bool, id: Option<u32>| id.filter(|_| adds).map(|id| text_of(&self.tokenizer, id));
        let bos = added(self.tokenizer.adds_bos(), self.tokenizer.bos()).filter(|t| !t.is_empty());
        let eos = added(self.tokenizer.adds_eos(), self.tokenizer.eos()).filter(|t| !t.is_empty());
        let text = bos.and_then(|bos| text.strip_prefix(&bos)).unwrap_or(text);
        eos.and_then(|eos| text.strip_suffix(&eos)).unwrap_or(text)
    }

    /// What a model said.
    pub(super) fn reply(&self, tokens: &[u32], end: &infer::End, finite: bool) -> Reply {
        let decode = |ids: &[u32], special| String::from_utf8_lossy(&self.tokenizer.decode(ids, special)).into_owned();
        let mut raw = decode(tokens, true);
        let mut n_tokens = tokens.len();
        let end = match *end {
            infer::End::Limit => End::Limit,
            infer::End::Context => End::Context,
            infer::End::Token(id) => {
                let text = text_of(&self.tokenizer, id);
                raw += &text;
                n_tokens += 1;
                End::Token(text)
            }
        };
        Reply { text: decode(tokens, false), raw, end, n_tokens, finite }
    }
}

/// The text of a token as the vocabulary has it; a token that is not UTF-8 loses what is not.
pub(super) fn text_of(tokenizer: &Tokenizer, id: u32) -> String {
    tokenizer.text(id).map_or(String::new(), ToString::to_string)
}

impl Scorer for Session<'_> {
    fn n_vocab(&self) -> usize {
        self.model().hyperparameters().n_vocab
    }

    fn logits(
        &mut self,
        tokens: &[u32],
        first: usize,
        row: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.truncate(0);
        Ok(self.feed(tokens, first, row)?)
    }
}
