//! The tokens that a chat model's template is made of.

use std::collections::BTreeSet;

use bstr::ByteSlice;

use super::plumbing::{ENDS, templates};
use super::template::{MAX_SOURCE_BYTES, Message, RenderOptions, Template};
use super::tokenizer::{MOST_SPECIAL, TokenKind, Tokenizer};
use super::{TOKEN_TYPE, TOKENS};
use crate::gguf::Metadata;

/// A shorter text in a template is punctuation, whatever the vocabulary has it as.
const LEAST_TEXT: usize = 3;

/// The special tokens of a chat model.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct SpecialIds {
    /// Those that a conversation cannot do without: what the template writes, and what ends an answer. In order.
    pub needed: Vec<u32>,
    /// All control tokens besides. In order.
    pub others: Vec<u32>,
}

/// Finds the special tokens of a chat model: conversations are written by each of its templates and tokenised, and texts of
/// special tokens are looked for in the templates themselves, for what these conversations do not show.
pub fn special_ids(metadata: &Metadata) -> SpecialIds {
    let Some(tokens) = metadata.get_strings(TOKENS) else { return SpecialIds::default() };
    let n_tokens = tokens.len() as u64;
    let types = metadata.get(TOKEN_TYPE).and_then(|types| types.as_array());
    let tokenizer = Tokenizer::from_metadata(metadata).ok();
    // As the file says it, where there is no tokenizer that knows better.
    let stated = |id: u32| {
        let ty = types.and_then(|types| types.get(id as usize)?.as_f64());
        ty.map_or(TokenKind::Normal, |ty| TokenKind::from_type(ty as i32))
    };

    let mut needed: BTreeSet<u32> =
        ENDS.iter().filter_map(|key| metadata.get_u64(key)).filter(|id| *id < n_tokens).map(|id| id as u32).collect();
    let is_special = |kind| matches!(kind, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown);
    let sources: Vec<String> = sources(metadata).collect();
    let prompts: Vec<String> = sources.iter().flat_map(|source| conversations(source, tokenizer.as_ref())).collect();
    if let Some(tokenizer) = &tokenizer {
        for prompt in &prompts {
            let ids = tokenizer.encode(prompt, false, true);
            needed.extend(ids.into_iter().filter(|id| is_special(tokenizer.kind(*id))));
        }
    }
    // What a conversation does not show, such as calls of tools, stands in the template as it is.
    let written = sources.iter().chain(&prompts).fold(String::new(), |all, text| all + text + "\0");
    let is_written = |id: &u32| {
        let text = tokens.get(*id as usize).unwrap_or_default();
        text.len() >= LEAST_TEXT && written.as_bytes().contains_str(text)
    };
    let special = (0..n_tokens as u32).filter(|id| matches!(stated(*id), TokenKind::Control | TokenKind::UserDefined));
    // More are refused by the tokenizer, and are no marks of a conversation.
    needed.extend(special.take(MOST_SPECIAL).filter(is_written));
    let kind = |id: u32| tokenizer.as_ref().map_or_else(|| stated(id), |tokenizer| tokenizer.kind(id));
    let others = (0..n_tokens as u32).filter(|id| kind(*id) == TokenKind::Control && !needed.contains(id)).collect();
    SpecialIds { needed: needed.into_iter().collect(), others }
}

/// The texts of all templates: the default one and those with a name. What is too long to be used says nothing.
fn sources(metadata: &Metadata) -> impl Iterator<Item = String> {
    let sources = templates(metadata).map(|(_, source)| source).filter(|source| source.len() <= MAX_SOURCE_BYTES);
    sources.map(|source| source.to_str_lossy().into_owned())
}

/// Conversations as the template writes them, with and without a system prompt, those that it refuses left out.
fn conversations(source: &str, tokenizer: Option<&Tokenizer>) -> Vec<String> {
    let Ok(template) = Template::parse(source) else { return Vec::new() };
    let said = |role: &str| Message { role: role.to_owned(), content: format!("What the {role} says.") };
    let talks = [vec!["user"], vec!["user", "assistant", "user"], vec!["system", "user", "assistant", "user"]];
    let mut prompts = Vec::new();
    for roles in talks {
        let messages: Vec<Message> = roles.into_iter().map(said).collect();
        for add_generation_prompt in [true, false] {
            let options = RenderOptions::new(tokenizer, add_generation_prompt);
            prompts.extend(template.render(&messages, &options));
        }
    }
    prompts
}
