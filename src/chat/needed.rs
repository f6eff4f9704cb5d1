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
    /// Tokens that a conversation cannot do without, in ascending order: what the template writes in
    /// one, and what ends an answer.
    pub needed: Vec<u32>,
    /// What a template may write besides, such as around calls of tools, in ascending order.
    pub written: Vec<u32>,
    /// All other control tokens, in ascending order.
    pub others: Vec<u32>,
    /// Templates that cannot be parsed or rendered, or not to their end: of theirs, all that stands
    /// in them is needed.
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
/// these conversations do not show. That is needed only where a template was not rendered, since no
/// conversation without tools reaches it elsewhere.
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
    let Rendered { sources, unread, prompts, mut unrendered } = rendered(metadata, tokenizer.as_ref(), templates);
    if let Some(tokenizer) = &tokenizer {
        for prompt in &prompts {
            let ids = tokenizer.encode(prompt, false, true);
            needed.extend(ids.into_iter().filter(|id| is_special(tokenizer.kind(*id))));
        }
    }
    let without_tokenizer = if tokenizer.is_none() { &prompts[..] } else { &[] };
    let all_of = |texts: &mut dyn Iterator<Item = &String>| texts.fold(String::new(), |all, text| all + text + "\0");
    let (shown, written) = (all_of(&mut unread.iter().chain(without_tokenizer)), all_of(&mut sources.iter()));
    let is_in = |text: &str, id: u32| {
        let token = tokens.get(id as usize).unwrap_or_default();
        token.len() >= LEAST_TEXT && text.as_bytes().contains_str(token)
    };
    let is_markup = |id: &u32| matches!(stated(*id), TokenKind::Control | TokenKind::UserDefined);
    // More are refused by the tokenizer, and are no marks of a conversation.
    let special: Vec<u32> = (0..n_tokens as u32).filter(is_markup).take(MOST_SPECIAL).collect();
    let mut in_template = BTreeSet::new();
    let n_bytes = shown.len() + written.len();
    if (special.len() as u64).saturating_mul(n_bytes as u64) <= MAX_LOOKED_THROUGH {
        needed.extend(special.iter().filter(|id| is_in(&shown, **id)));
        in_template.extend(special.into_iter().filter(|id| is_in(&written, *id)));
    } else {
        let n = special.len();
        let reason =
            format!("{n} special tokens are too many to be looked for in {n_bytes} bytes of templates and prompts");
        unrendered.push(Unrendered { key: TEMPLATE.to_owned(), reason });
    }
    let kind = |id: u32| tokenizer.as_ref().map_or_else(|| stated(id), |tokenizer| tokenizer.kind(id));
    in_template.retain(|id| !needed.contains(id));
    let is_named = |id: &u32| needed.contains(id) || in_template.contains(id);
    let others = (0..n_tokens as u32).filter(|id| kind(*id) == TokenKind::Control && !is_named(id)).collect();
    let (needed, written) = (needed.into_iter().collect(), in_template.into_iter().collect());
    SpecialIds { needed, written, others, unrendered }
}

/// What is known of the templates of a file.
struct Rendered {
    /// Their texts, the default one first.
    sources: Vec<String>,
    /// The texts of those that were given up.
    unread: Vec<String>,
    /// Conversations as they write them.
    prompts: Vec<String>,
    /// Those that were given up.
    unrendered: Vec<Unrendered>,
}

/// Renders all templates. What is too long to be used says nothing.
fn rendered(metadata: &Metadata, tokenizer: Option<&Tokenizer>, by: &Templates) -> Rendered {
    let mut named: Vec<_> = templates(metadata).filter(|(_, source)| source.len() <= MAX_SOURCE_BYTES).collect();
    named.sort_by_key(|(name, _)| name.is_some());
    let mut all = Rendered { sources: Vec::new(), unread: Vec::new(), prompts: Vec::new(), unrendered: Vec::new() };
    for (i, (name, source)) in named.into_iter().enumerate() {
        let source = source.to_str_lossy().into_owned();
        let reason = match i {
            _ if i < MAX_RENDERED => {
                conversations(&source, tokenizer, by, &mut all.prompts).err().map(|e| e.to_string())
            }
            MAX_RENDERED => Some(format!("no more than {MAX_RENDERED} templates of a file are rendered")),
            _ => None,
        };
        if reason.is_some() || i >= MAX_RENDERED {
            all.unread.push(source.clone());
        }
        all.unrendered.extend(reason.map(|reason| {
            let key = name.map_or(TEMPLATE.to_owned(), |name| format!("{TEMPLATE}.{name}"));
            Unrendered { key, reason }
        }));
        all.sources.push(source);
    }
    all
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
