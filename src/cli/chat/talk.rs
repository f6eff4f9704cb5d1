//! A conversation, and its next answer.

use crate::chat::Message;
use crate::eval::{Chatter, End, Turn, TurnError};
use crate::infer::{Engine, Sampler, Sampling};

/// A conversation that goes on.
pub(super) struct Talk {
    max_tokens: Option<usize>,
    sampling: Sampling,
    /// What the model is told before it.
    pub(super) system: Option<String>,
    /// Messages of user and assistant in turn.
    pub(super) messages: Vec<Message>,
    /// How often it was asked something: each answer has a chance of its own.
    n_asked: u64,
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned() }
}

impl Talk {
    pub(super) fn new(system: Option<String>, max_tokens: Option<usize>, sampling: Sampling) -> Self {
        Talk { max_tokens, sampling, system, messages: Vec::new(), n_asked: 0 }
    }

    /// All messages, as the template gets them.
    pub(super) fn conversation(&self) -> Vec<Message> {
        let system = self.system.as_deref().map(|text| message("system", text));
        system.into_iter().chain(self.messages.iter().cloned()).collect()
    }

    /// Whether the last message has no answer.
    pub(super) fn is_due(&self) -> bool {
        self.messages.last().is_some_and(|last| last.role == "user")
    }

    /// Asks something.
    pub(super) fn ask(&mut self, text: &str) {
        self.n_asked += 1;
        self.messages.push(message("user", text));
    }

    /// Takes back a question that has no answer.
    pub(super) fn take_back(&mut self) {
        if self.is_due() {
            self.messages.pop();
        }
    }

    /// Takes an answer for the last question's. It goes on as a set of prompts does.
    pub(super) fn hear(&mut self, turn: &Turn) {
        self.messages.push(message("assistant", turn.reply.text.trim()));
    }

    /// Answers the last question, again if it has an answer. `heard` gets the text without the space
    /// around it, and says whether to go on.
    pub(super) fn answer(
        &self,
        chatter: &Chatter,
        engine: &mut dyn Engine,
        max_tokens: Option<usize>,
        heard: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Turn, TurnError> {
        let mut messages = self.conversation();
        if !self.is_due() {
            messages.pop();
        }
        let mut sampler = Sampler::new(self.sampling.clone())?.of_stream(self.n_asked);
        let mut trimmed = Trimmed::default();
        let max_tokens = self.max_tokens.or(max_tokens);
        chatter.answer(engine, &messages, max_tokens, &mut sampler, &mut |text| heard(&trimmed.push(text)))
    }

    /// What is to be said of an answer that did not end by itself: a kind, and the text.
    pub(super) fn remark(&self, turn: &Turn, n_ctx: usize) -> Option<(&'static str, String)> {
        let reply = &turn.reply;
        match reply.end {
            _ if turn.is_stopped => None,
            _ if !reply.finite => Some((
                "warning",
                "what the model computes is not finite: its weights are damaged or overflow, and the answer is cut"
                    .to_owned(),
            )),
            End::Token(_) => None,
            End::Limit => Some(("note", format!("the answer is cut at {} tokens", reply.n_tokens))),
            End::Context => Some((
                "note",
                format!(
                    "the answer is cut: the context of {n_ctx} tokens is full; begin anew, or give a larger --ctx-size"
                ),
            )),
        }
    }
}

/// A text that comes in parts, without the space around it.
#[derive(Default)]
struct Trimmed {
    has_begun: bool,
    /// Space that only counts if something follows.
    space: String,
}

impl Trimmed {
    fn push(&mut self, text: &str) -> String {
        let text = if self.has_begun { text } else { text.trim_start() };
        let said = text.trim_end();
        self.has_begun |= !said.is_empty();
        let space = &text[said.len()..];
        if said.is_empty() {
            self.space += space;
            return String::new();
        }
        std::mem::replace(&mut self.space, space.to_owned()) + said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_text_are_trimmed_as_the_whole() {
        for parts in [&[" \n", " a", "b  ", "\n", "", " c d", " ", "\n"][..], &["", "a"], &[" ", "\n"], &["a b\n"]] {
            let mut trimmed = Trimmed::default();
            let shown: String = parts.iter().map(|part| trimmed.push(part)).collect();
            assert_eq!(shown, parts.concat().trim(), "{parts:?}");
        }
    }
}
