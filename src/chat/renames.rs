//! Placeholders that a chat model gave names to.
//!
//! Vocabularies hold tokens that nobody uses, so that there is room for more
//! (`<|reserved_special_token_3|>` in Llama 3, `<unused12>` in Gemma). A chat model makes its marks
//! of them: its vocabulary is the base's, with other names at some ids. A model that was trained
//! from the base still has the placeholders. They are the same tokens under another name, so rows
//! stay where they are, and the model's get the chat's names.

use std::collections::{HashMap, HashSet};

use bstr::{BStr, BString, ByteSlice};

use super::plumbing::Change;
use super::shown::shown_token;
use super::tokenizer::TokenKind;
use super::{TOKEN_TYPE, TOKENS};
use crate::gguf::{Array, Metadata, StringArray, Value};

/// The most names that are taken over; Gemma has 6,242 placeholders, Llama 3 has 251.
const MOST: usize = 1 << 14;

/// A token under two names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rename {
    /// What the base calls it.
    pub from: BString,
    /// What the chat model calls it.
    pub to: BString,
}

/// The placeholders of `base` that `chat` has given names, in the order of their ids. None at all
/// unless the vocabularies are the same otherwise, as far as both go, so that an id is one token.
pub fn renames(base: &Metadata, chat: &Metadata) -> Vec<Rename> {
    let (Some(own), Some(other)) = (base.get_strings(TOKENS), chat.get_strings(TOKENS)) else { return Vec::new() };
    // A base may be padded beyond its chat.
    let is_padding = |(id, text): (usize, &BStr)| is_placeholder(base, id, text);
    if own == other || !own.iter().enumerate().skip(other.len()).all(is_padding) {
        return Vec::new();
    }
    let mut renames = Vec::new();
    for (id, (from, to)) in own.iter().zip(other.iter()).enumerate().filter(|(_, (from, to))| from != to) {
        if renames.len() == MOST || !is_placeholder(base, id, from) || !is_mark(chat, id) {
            return Vec::new();
        }
        renames.push(Rename { from: from.to_owned(), to: to.to_owned() });
    }
    // A name that is there twice says nothing.
    let (from, to): (HashSet<&BStr>, HashSet<&BStr>) =
        renames.iter().map(|rename| (rename.from.as_bstr(), rename.to.as_bstr())).unzip();
    let is_new = to.len() == renames.len()
        && !own.iter().any(|text| to.contains(text))
        && !other.iter().any(|text| from.contains(text));
    if is_new { renames } else { Vec::new() }
}

/// The tokens of `own` that `other` knows by another name, by these renames in either direction: each
/// vocabulary has one of the names and not the other.
pub fn renames_between(own: &Metadata, other: &Metadata, renames: &[Rename]) -> Vec<Rename> {
    if renames.is_empty() {
        return Vec::new();
    }
    let (Some(here), Some(there)) = (texts(own), texts(other)) else { return Vec::new() };
    let has = |texts: &HashSet<&BStr>, one: &BString, other: &BString| {
        texts.contains(one.as_bstr()) && !texts.contains(other.as_bstr())
    };
    let mut found = Vec::new();
    for Rename { from, to } in renames {
        for (own_name, other_name) in [(from, to), (to, from)] {
            if has(&here, own_name, other_name) && has(&there, other_name, own_name) {
                found.push(Rename { from: own_name.clone(), to: other_name.clone() });
            }
        }
    }
    // Several chats may have given one placeholder names.
    found.dedup();
    found
}

fn texts(metadata: &Metadata) -> Option<HashSet<&BStr>> {
    Some(metadata.get_strings(TOKENS)?.iter().collect())
}

/// Gives tokens their new names. None if the vocabulary has none of the old ones.
pub fn rename(metadata: &mut Metadata, renames: &[Rename]) -> Option<Change> {
    let texts = renamed(metadata, renames)?;
    let names = |name: fn(&Rename) -> &BString| {
        let shown: Vec<String> = renames.iter().take(3).map(|rename| shown_token(name(rename).as_bstr())).collect();
        let more = if renames.len() > shown.len() {
            format!(" and {} more", renames.len() - shown.len())
        } else {
            String::new()
        };
        Some(shown.join(" ") + &more)
    };
    let change = Change { key: TOKENS.to_owned(), from: names(|r| &r.from), to: names(|r| &r.to) };
    metadata.set(TOKENS, Value::Array(Array::Strings(texts)));
    Some(change)
}

/// The tokens and types of a vocabulary, with these names.
pub fn renamed_vocabulary(metadata: &Metadata, renames: &[Rename]) -> Option<Metadata> {
    let texts = renamed(metadata, renames)?;
    let mut vocabulary = Metadata::default();
    vocabulary.set(TOKENS, Value::Array(Array::Strings(texts)));
    if let Some(types) = metadata.get(TOKEN_TYPE) {
        vocabulary.set(TOKEN_TYPE, types.clone());
    }
    Some(vocabulary)
}

fn renamed(metadata: &Metadata, renames: &[Rename]) -> Option<StringArray> {
    let texts = metadata.get_strings(TOKENS).filter(|_| !renames.is_empty())?;
    let new: HashMap<&BStr, &BStr> =
        renames.iter().map(|rename| (rename.from.as_bstr(), rename.to.as_bstr())).collect();
    Some(texts.iter().map(|text| new.get(text).copied().unwrap_or(text)).collect())
}

/// Whether a token of a base is one that nobody uses: it is special, or unused, or its name is in
/// brackets.
fn is_placeholder(metadata: &Metadata, id: usize, text: &BStr) -> bool {
    use TokenKind::*;
    let is_bracketed =
        |(open, close): (&str, &str)| text.starts_with(open.as_bytes()) && text.ends_with(close.as_bytes());
    match kind(metadata, id) {
        Control | UserDefined | Unused => true,
        Byte => false,
        _ => text.len() > 2 && [("<", ">"), ("[", "]")].into_iter().any(is_bracketed),
    }
}

/// Whether a token of a chat model is a mark of its conversations.
fn is_mark(metadata: &Metadata, id: usize) -> bool {
    metadata.get(TOKEN_TYPE).is_none() || matches!(kind(metadata, id), TokenKind::Control | TokenKind::UserDefined)
}

fn kind(metadata: &Metadata, id: usize) -> TokenKind {
    let ty = metadata.get(TOKEN_TYPE).and_then(|types| types.as_array()?.get(id)?.as_f64());
    ty.map_or(TokenKind::Normal, |ty| TokenKind::from_type(ty as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(tokens: &[(&str, i32)]) -> Metadata {
        let mut metadata = Metadata::default();
        metadata.set(TOKENS, Value::Array(Array::Strings(tokens.iter().map(|(text, _)| text).collect())));
        let types: Vec<i32> = tokens.iter().map(|(_, ty)| *ty).collect();
        metadata.set(TOKEN_TYPE, Value::Array(Array::from_i32s(&types)));
        metadata
    }

    fn found(base: &[(&str, i32)], chat: &[(&str, i32)]) -> Vec<String> {
        let renames = renames(&vocabulary(base), &vocabulary(chat));
        renames.iter().map(|rename| format!("{} {}", rename.from, rename.to)).collect()
    }

    #[test]
    fn placeholders_at_the_ids_of_marks_are_renamed() {
        let base = [("a", 1), ("<res0>", 3), ("<unused1>", 1), ("<x>", 5)];
        assert_eq!(
            found(&base, &[("a", 1), ("<user>", 3), ("<unused1>", 1), ("<end>", 4)]),
            ["<res0> <user>", "<x> <end>"]
        );
        // Further tokens behind change nothing.
        assert_eq!(found(&base, &[("a", 1), ("<res0>", 3), ("<user>", 3), ("<x>", 5), ("b", 1)]), ["<unused1> <user>"]);
    }

    #[test]
    fn where_an_id_may_be_another_token_nothing_is_renamed() {
        let base = [("a", 1), ("<res0>", 3), ("b", 1)];
        for chat in [
            // A word is no placeholder.
            &[("a", 1), ("<user>", 3), ("c", 1)][..],
            // A word is no mark.
            &[("a", 1), ("user", 1), ("b", 1)],
            // Tokens that changed places.
            &[("a", 1), ("b", 1), ("<res0>", 3)],
            // Fewer tokens, of which one is a word.
            &[("a", 1), ("<user>", 3)],
            // A name that is there already, and one that stays there.
            &[("a", 1), ("b", 3), ("b", 1)],
            &[("a", 1), ("<user>", 3), ("b", 1), ("<res0>", 3)],
        ] {
            assert_eq!(found(&base, chat), Vec::<String>::new(), "{chat:?}");
        }
    }

    #[test]
    fn vocabularies_are_matched_in_either_direction() {
        let renames = renames(&vocabulary(&[("<r0>", 3), ("<r1>", 3)]), &vocabulary(&[("<user>", 3), ("<end>", 3)]));
        let between = |own: &[(&str, i32)], other: &[(&str, i32)]| {
            let found = renames_between(&vocabulary(own), &vocabulary(other), &renames);
            found.iter().map(|rename| format!("{} {}", rename.from, rename.to)).collect::<Vec<_>>()
        };
        let (old, new) = ([("x", 1), ("<r1>", 3), ("<r0>", 3)], [("<user>", 3), ("<end>", 3)]);
        assert_eq!(between(&old, &new), ["<r0> <user>", "<r1> <end>"]);
        assert_eq!(between(&new, &old), ["<user> <r0>", "<end> <r1>"]);
        // One that has both names, or has the other's, is not taken for another token.
        assert_eq!(between(&[("<r0>", 3), ("<user>", 3), ("<r1>", 3)], &new), ["<r1> <end>"]);
        assert_eq!(between(&new, &new), Vec::<String>::new());
        assert_eq!(between(&old, &[("y", 1)]), Vec::<String>::new());
    }

    #[test]
    fn a_model_takes_the_names_of_the_placeholders_that_it_has() {
        let chat = vocabulary(&[("<user>", 3), ("<end>", 3)]);
        let renames = renames(&vocabulary(&[("<r0>", 3), ("<r1>", 3)]), &chat);
        let mut model = vocabulary(&[("x", 1), ("<r1>", 3), ("<user>", 3), ("<r0>", 3)]);
        let own = renames_between(&model, &chat, &renames);
        let change = rename(&mut model, &own).unwrap();
        assert_eq!((change.from.as_deref(), change.to.as_deref()), (Some("<r1>"), Some("<end>")));
        let texts: Vec<String> = model.get_strings(TOKENS).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["x", "<end>", "<user>", "<r0>"]);
        assert_eq!(rename(&mut model, &renames_between(&vocabulary(&[("y", 1)]), &chat, &renames)), None);
    }
}
