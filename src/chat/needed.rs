//! The tokens that a chat model's template is made of.

use std::collections::BTreeSet;

use bstr::ByteSlice;

use super::plumbing::{ENDS, templates};
use super::template::{MAX_SOURCE_BYTES, Message, RenderOptions, TemplateError, Templates};
use super::tokenizer::{MOST_SPECIAL, TokenKind, Tokenizer};
use super::{TEMPLATE, TOKEN_TYPE, TOKENS};
use crate::gguf::Metadata;

/// A shorter text in a template is punctuation, whatever the vocabulary has it as.
const LEAST_TEXT: usize = 3;

/// The special tokens of a chat model.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct SpecialIds {
    /// Tokens that a conversation cannot do without, in ascending order: what the template writes,
    /// and what ends an answer.
    pub needed: Vec<u32>,
    /// All other control tokens, in ascending order.
    pub others: Vec<u32>,
    /// Templates that cannot be parsed or rendered, or not to their end: of theirs, `needed` may lack
    /// some.
    pub unrendered: Vec<Unrendered>,
}

/// A template that was given up.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Unrendered {
    /// Its key.
    pub key: String,
    /// Why.
    pub reason: String,
}

/// The most templates of a file that are rendered. Files have one, and up to three more with names.
pub const MAX_RENDERED: usize = 8;

/// Bytes that are looked through for the texts of special tokens, at most: some seconds. Files in
/// use have up to some thousand such tokens, and some ten thousand bytes.
const MAX_LOOKED_THROUGH: u64 = 1 << 34;

/// Finds the special tokens of a chat model: conversations are written by each of its templates and
/// tokenised, and texts of special tokens are looked for in the templates themselves, for what
/// these conversations do not show.
pub fn special_ids(metadata: &Metadata, templates: &Templates) -> SpecialIds {
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
    let (sources, prompts, mut unrendered) = rendered(metadata, tokenizer.as_ref(), templates);
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
    let is_markup = |id: &u32| matches!(stated(*id), TokenKind::Control | TokenKind::UserDefined);
    // More are refused by the tokenizer, and are no marks of a conversation.
    let special: Vec<u32> = (0..n_tokens as u32).filter(is_markup).take(MOST_SPECIAL).collect();
    if (special.len() as u64).saturating_mul(written.len() as u64) <= MAX_LOOKED_THROUGH {
        needed.extend(special.into_iter().filter(is_written));
    } else {
        let (n, bytes) = (special.len(), written.len());
        let reason =
            format!("{n} special tokens are too many to be looked for in {bytes} bytes of templates and prompts");
        unrendered.push(Unrendered { key: TEMPLATE.to_owned(), reason });
    }
    let kind = |id: u32| tokenizer.as_ref().map_or_else(|| stated(id), |tokenizer| tokenizer.kind(id));
    let others = (0..n_tokens as u32).filter(|id| kind(*id) == TokenKind::Control && !needed.contains(id)).collect();
    SpecialIds { needed: needed.into_iter().collect(), others, unrendered }
}

/// The texts of all templates, the default one first, with what they write, and those that were
/// given up. What is too long to be used says nothing.
fn rendered(
    metadata: &Metadata,
    tokenizer: Option<&Tokenizer>,
    by: &Templates,
) -> (Vec<String>, Vec<String>, Vec<Unrendered>) {
    let mut named: Vec<_> = templates(metadata).filter(|(_, source)| source.len() <= MAX_SOURCE_BYTES).collect();
    named.sort_by_key(|(name, _)| name.is_some());
    let (mut sources, mut prompts, mut unrendered) = (Vec::new(), Vec::new(), Vec::new());
    for (i, (name, source)) in named.into_iter().enumerate() {
        let source = source.to_str_lossy().into_owned();
        let mut give_up = |reason: String| {
            let key = name.map_or(TEMPLATE.to_owned(), |name| format!("{TEMPLATE}.{name}"));
            unrendered.push(Unrendered { key, reason });
        };
        if i < MAX_RENDERED {
            if let Err(e) = conversations(&source, tokenizer, by, &mut prompts) {
                give_up(e.to_string());
            }
        } else if i == MAX_RENDERED {
            give_up(format!("no more than {MAX_RENDERED} templates of a file are rendered"));
        }
        sources.push(source);
    }
    (sources, prompts, unrendered)
}

/// Adds conversations as the template writes them, with and without a system prompt, those that it
/// refuses left out.
///
/// # Errors
/// Where the template cannot be parsed, refuses every conversation, or meets a bound; with the
/// prompts that it had time for.
fn conversations(
    source: &str,
    tokenizer: Option<&Tokenizer>,
    templates: &Templates,
    prompts: &mut Vec<String>,
) -> Result<(), TemplateError> {
    let template = templates.parse(source)?;
    let said = |role: &str| Message { role: role.to_owned(), content: format!("What the {role} says.") };
    let talks = [vec!["user"], vec!["user", "assistant", "user"], vec!["system", "user", "assistant", "user"]];
    let (mut met, mut refused, before) = (None, None, prompts.len());
    for roles in talks {
        let messages: Vec<Message> = roles.into_iter().map(said).collect();
        for add_generation_prompt in [true, false] {
            let options = RenderOptions::new(tokenizer, add_generation_prompt);
            match template.render(&messages, &options) {
                Ok(prompt) => prompts.push(prompt),
                Err(e) if e.is_given_up() => return Err(e),
                Err(e) if e.is_bound() => met = met.or(Some(e)),
                Err(e) => refused = refused.or(Some(e)),
            }
        }
    }
    // Many templates refuse one conversation or another, such as one with a system prompt.
    match met.or(refused.filter(|_| prompts.len() == before)) {
        Some(e) => Err(e),
        None => Ok(()),
    }
}
