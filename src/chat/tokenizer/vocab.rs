//! The tokens: texts, kinds, scores, and the way from a text to its id.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use bstr::{BStr, ByteSlice};

use super::merge::NONE;
use crate::chat::error::{Error, shown, typed};
use crate::chat::{TOKEN_TYPE, TOKENS};
use crate::gguf::{Array, Metadata, StringArray, Value, ValueType};

const SCORES: &str = "tokenizer.ggml.scores";

/// What a token is for (llama.h, `llama_token_type`), after llama.cpp has put right what files say
/// wrongly.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// Text.
    Normal,
    /// What stands for text without a token.
    Unknown,
    /// Structure, not text: ends of turns, beginnings of files. In a prompt only where special
    /// tokens are parsed.
    Control,
    /// Text that is always this token, wherever it stands.
    UserDefined,
    /// A place held for later.
    Unused,
    /// One byte, `<0x00>` to `<0xFF>`.
    Byte,
    /// A type that llama.cpp does not know; such a token has no text.
    Undefined,
}

impl TokenKind {
    /// The kind of this type id in a file.
    pub(in crate::chat) fn from_type(id: i32) -> Self {
        match id {
            1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => TokenKind::Undefined,
        }
    }
}

/// The tokens. Ids from [`Vocab::len`] up are strings that only merges know.
pub(crate) struct Vocab {
    texts: StringArray,
    pub(crate) kinds: Vec<TokenKind>,
    /// Higher is merged earlier: scores in the order of their bits. All equal if the file has none.
    priorities: Vec<u32>,
    ids: HashMap<Box<[u8]>, u32>,
    longest: usize,
}

impl Vocab {
    /// The tokens of a file, by the checks of `llama_vocab::impl::load` (src/llama-vocab.cpp).
    pub(super) fn load(metadata: &Metadata) -> Result<Self, Error> {
        let tokens = strings(metadata, TOKENS)?.ok_or(Error::MissingKey { key: TOKENS })?;
        let n = tokens.len();
        if i32::try_from(n).is_err() {
            return Err(Error::TooMany { n_tokens: n, n_merges: 0 });
        }
        let kinds = match numbers(metadata, TOKEN_TYPE, n, &[ValueType::I32])? {
            Some(types) => types.take(n).map(|t| TokenKind::from_type(integer(&t))).collect(),
            None => vec![TokenKind::Normal; n],
        };
        let priorities = match numbers(metadata, SCORES, n, &[ValueType::F32, ValueType::I32])? {
            Some(scores) => scores.take(n).map(|s| priority(&s)).collect(),
            None => vec![0; n],
        };
        let mut vocab =
            Vocab { texts: StringArray::default(), kinds, priorities, ids: HashMap::with_capacity(n), longest: 0 };
        for (id, text) in (0..).zip(tokens.iter().map(until_nul)) {
            match text.is_empty() {
                true => vocab.add(id, BStr::new(&format!("[EMPTY_{id}]")))?,
                false => vocab.add(id, text)?,
            }
        }
        Ok(vocab)
    }

    fn add(&mut self, id: u32, text: &BStr) -> Result<(), Error> {
        let kind = self.kinds[id as usize];
        if kind == TokenKind::Byte && text.len() < 3 {
            return Err(Error::ByteToken { id, text: shown(text) });
        }
        match self.ids.entry(text.as_bytes().into()) {
            Entry::Occupied(first) => {
                return Err(Error::DuplicateToken { text: shown(text), first: *first.get(), second: id });
            }
            Entry::Vacant(place) => place.insert(id),
        };
        self.longest = self.longest.max(text.len());
        self.texts.push(text);
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.texts.len()
    }

    pub(crate) fn text(&self, id: u32) -> Option<&BStr> {
        self.texts.get(id as usize)
    }

    pub(crate) fn kind(&self, id: u32) -> TokenKind {
        self.kinds.get(id as usize).copied().unwrap_or(TokenKind::Undefined)
    }

    /// The token with this text.
    pub(crate) fn find(&self, text: &[u8]) -> Option<u32> {
        if text.len() > self.longest {
            return None;
        }
        self.ids.get(text).copied().filter(|&id| self.is_token(id))
    }

    pub(super) fn is_token(&self, id: u32) -> bool {
        (id as usize) < self.len()
    }

    pub(super) fn priority(&self, id: u32) -> u32 {
        self.priorities.get(id as usize).copied().unwrap_or(0)
    }

    /// The id of a text that a merge may know, or [`NONE`].
    pub(super) fn symbol(&self, text: &[u8]) -> u32 {
        self.ids.get(text).copied().unwrap_or(NONE)
    }

    /// The id of a text, a new one if it has none. Ids stay below [`NONE`]: the caller has counted.
    pub(super) fn intern(&mut self, text: &[u8]) -> u32 {
        let next = self.ids.len() as u32;
        match self.ids.get(text) {
            Some(&id) => id,
            None => *self.ids.entry(text.into()).or_insert(next),
        }
    }

    /// The token that stands for a byte as `<0x0A>`.
    pub(super) fn find_byte(&self, byte: u8) -> Option<u32> {
        self.find(format!("<0x{byte:02X}>").as_bytes())
    }

    /// The byte that a token of kind [`TokenKind::Byte`] stands for
    /// (`llama_vocab::impl::token_to_byte`): the two digits after `<0x`, as far as they are digits.
    pub(super) fn byte(&self, id: u32) -> u8 {
        let digits = self.text(id).and_then(|t| t.get(3..)).unwrap_or_default().iter().take(2);
        digits.map_while(|&d| char::from(d).to_digit(16)).fold(0, |byte, d| byte << 4 | d as u8)
    }
}

/// An array of strings, if the key is there.
pub(super) fn strings<'a>(metadata: &'a Metadata, key: &'static str) -> Result<Option<&'a StringArray>, Error> {
    match metadata.get(key) {
        None => Ok(None),
        Some(Value::Array(Array::Strings(a))) => Ok(Some(a)),
        Some(other) => Err(Error::wrong_type(key, "array of string", other)),
    }
}

/// A text as C reads it, and llama.cpp tokens and merges: up to a NUL.
pub(super) fn until_nul(text: &BStr) -> &BStr {
    &text[..text.find_byte(0).unwrap_or(text.len())]
}

/// An array of at least `n` numbers of one of these types, if the key is there.
fn numbers<'a>(
    metadata: &'a Metadata,
    key: &'static str,
    n: usize,
    types: &[ValueType],
) -> Result<Option<impl Iterator<Item = Value> + 'a>, Error> {
    let Some(value) = metadata.get(key) else { return Ok(None) };
    match value.as_array() {
        Some(a) if !types.contains(&a.element_type()) => Err(Error::wrong_type(key, types[0].name(), value)),
        Some(a) if a.len() < n => Err(Error::TooShort { key, found: a.len(), n_tokens: n }),
        Some(a) => Ok(Some(a.iter())),
        None => Err(Error::wrong_type(key, types[0].name(), value)),
    }
}

fn integer(value: &Value) -> i32 {
    match value {
        Value::I32(v) => *v,
        _ => 0,
    }
}

/// A score as a number that orders like it. NaN is the lowest: llama.cpp's order with it is
/// undefined.
fn priority(score: &Value) -> u32 {
    let score = match *score {
        Value::F32(s) if s.is_nan() => f32::NEG_INFINITY,
        // Also makes +0 of -0, which are equal scores.
        Value::F32(s) => s + 0.0,
        Value::I32(s) => s as f32,
        _ => 0.0,
    };
    let bits = score.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// The value of an optional key of text.
pub(super) fn text<'a>(metadata: &'a Metadata, key: &'static str) -> Result<Option<&'a BStr>, Error> {
    typed(metadata, key, ValueType::String, Value::as_str)
}

/// The value of an optional key of yes or no.
pub(super) fn flag(metadata: &Metadata, key: &'static str) -> Result<Option<bool>, Error> {
    typed(metadata, key, ValueType::Bool, Value::as_bool)
}
