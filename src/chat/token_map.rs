//! Which token of one vocabulary is which of another: by text, whatever the order and the number.
//!
//! Continual pre-training extends vocabularies, converters pad and re-order them, and a chat model
//! makes a placeholder into an end token. Rows of the embeddings follow their token. A token is its
//! text; its type only tells apart tokens that share one, as `<0x41>` the byte and `<0x41>` the
//! text. A user-defined run of spaces is one token whether a converter writes it with U+2581 or with
//! spaces.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use bstr::{BStr, BString, ByteSlice};

use super::tokenizer::TokenKind;
use super::{TOKEN_TYPE, TOKENS};
use crate::gguf::{Array, Metadata, StringArray};

/// For each token of one vocabulary its place in another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TokenMap {
    /// None where every token is at its own place in the other vocabulary, as far as both go.
    places: Option<Vec<u32>>,
    n_own: u32,
    n_other: u32,
}

/// No place.
const NONE: u32 = u32::MAX;

impl TokenMap {
    /// Finds each token of `own` in `other`. None if one of them has no tokens, or more than ids
    /// can number.
    ///
    /// Equal texts are told apart by their types, and after that by their order: the second of one
    /// vocabulary is the second of the other.
    pub fn new(own: &Metadata, other: &Metadata) -> Option<Self> {
        let (own_tokens, other_tokens) = (own.get_strings(TOKENS)?, other.get_strings(TOKENS)?);
        let (n_own, n_other) = (u32::try_from(own_tokens.len()).ok()?, u32::try_from(other_tokens.len()).ok()?);
        let (own, other) = (Tokens::new(own, own_tokens), Tokens::new(other, other_tokens));
        if own_tokens == other_tokens && (own.types == other.types || !own.has_equal_texts()) {
            return Some(TokenMap { places: None, n_own, n_other });
        }
        let places = places(&own, &other);
        let in_place = |(i, place): (usize, &u32)| *place == i as u32;
        let is_identity = n_own == n_other && places.iter().enumerate().all(in_place);
        Some(TokenMap { places: (!is_identity).then_some(places), n_own, n_other })
    }

    /// The place in the other vocabulary of a token of the own one.
    pub fn find(&self, id: u32) -> Option<u32> {
        match &self.places {
            None => (id < self.n_own.min(self.n_other)).then_some(id),
            Some(places) => places.get(id as usize).copied().filter(|place| *place != NONE),
        }
    }

    /// The map in the other direction: for each token of the other vocabulary its place in the own
    /// one.
    #[must_use]
    pub fn inverted(&self) -> TokenMap {
        let places = self.places.as_ref().map(|places| {
            let mut inverted = vec![NONE; self.n_other as usize];
            for (id, &place) in (0..).zip(places) {
                if let Some(own) = inverted.get_mut(place as usize) {
                    *own = id;
                }
            }
            inverted
        });
        TokenMap { places, n_own: self.n_other, n_other: self.n_own }
    }

    /// Whether both vocabularies have the same tokens at the same places.
    pub fn is_identity(&self) -> bool {
        self.places.is_none()
    }

    /// How many tokens the own vocabulary has.
    pub fn n_own(&self) -> usize {
        self.n_own as usize
    }

    /// How many tokens the other vocabulary has.
    pub fn n_other(&self) -> usize {
        self.n_other as usize
    }

    /// How many tokens both have.
    pub fn n_shared(&self) -> usize {
        match &self.places {
            None => self.n_own as usize,
            Some(places) => places.iter().filter(|place| **place != NONE).count(),
        }
    }

    /// How many tokens have another place in the other vocabulary.
    pub fn n_moved(&self) -> usize {
        let is_moved = |(i, place): (usize, &u32)| *place != NONE && *place != i as u32;
        self.places.as_ref().map_or(0, |places| places.iter().enumerate().filter(|at| is_moved(*at)).count())
    }
}

/// The texts of a vocabulary and their types, as far as the file has them.
struct Tokens<'a> {
    texts: &'a StringArray,
    types: Option<&'a Array>,
}

impl<'a> Tokens<'a> {
    fn new(metadata: &'a Metadata, texts: &'a StringArray) -> Self {
        Tokens { texts, types: metadata.get(TOKEN_TYPE).and_then(|types| types.as_array()) }
    }

    /// The type of a token; that of an ordinary one if the file does not say.
    fn ty(&self, id: usize) -> i32 {
        self.types.and_then(|types| types.get(id)?.as_f64()).map_or(1, |ty| ty as i32)
    }

    fn has_equal_texts(&self) -> bool {
        let mut seen = HashSet::with_capacity(self.texts.len());
        !self.texts.iter().all(|text| seen.insert(text))
    }

    /// The text by which a token is known.
    fn key(&self, id: u32, text: &'a BStr) -> Cow<'a, BStr> {
        let is_defined = || TokenKind::from_type(self.ty(id as usize)) == TokenKind::UserDefined;
        match is_blank(text) && is_defined() {
            true => Cow::Owned(BString::from(vec![b' '; text.chars().count()])),
            false => Cow::Borrowed(text),
        }
    }

    /// The ids of each text, lowest first.
    fn by_text(&self) -> HashMap<Cow<'a, BStr>, Ids> {
        let mut ids: HashMap<Cow<'_, BStr>, Ids> = HashMap::with_capacity(self.texts.len());
        for (id, text) in (0..).zip(self.texts.iter()) {
            ids.entry(self.key(id, text)).and_modify(|ids| ids.push(id)).or_insert(Ids::One(id));
        }
        ids
    }
}

/// Whether a text is spaces alone, as they are or as SentencePiece writes them.
fn is_blank(text: &BStr) -> bool {
    !text.is_empty() && text.chars().all(|c| c == ' ' || c == '\u{2581}')
}

/// The ids of one text: almost always one.
enum Ids {
    One(u32),
    Many(Vec<u32>),
}

impl Ids {
    fn push(&mut self, id: u32) {
        match self {
            Ids::One(first) => *self = Ids::Many(vec![*first, id]),
            Ids::Many(ids) => ids.push(id),
        }
    }

    fn as_slice(&self) -> &[u32] {
        match self {
            Ids::One(id) => std::slice::from_ref(id),
            Ids::Many(ids) => ids,
        }
    }
}

fn places(own: &Tokens<'_>, other: &Tokens<'_>) -> Vec<u32> {
    let (own_ids, other_ids) = (own.by_text(), other.by_text());
    let mut places = vec![NONE; own.texts.len()];
    for (text, ids) in &own_ids {
        let Some(others) = other_ids.get(text) else { continue };
        match (ids.as_slice(), others.as_slice()) {
            (&[id], &[place]) => {
                if is_byte(own.ty(id as usize)) == is_byte(other.ty(place as usize)) {
                    places[id as usize] = place;
                }
            }
            (ids, others) => {
                for (id, place) in equal_texts(own, ids, other, others) {
                    places[id as usize] = place;
                }
            }
        }
    }
    places
}

/// A byte and a text that looks like one are two tokens.
fn is_byte(ty: i32) -> bool {
    TokenKind::from_type(ty) == TokenKind::Byte
}

/// Pairs tokens of one text: first within their types, in order; then what is left, in order, bytes
/// with bytes only.
fn equal_texts(own: &Tokens<'_>, ids: &[u32], other: &Tokens<'_>, others: &[u32]) -> Vec<(u32, u32)> {
    let mut pairs = Vec::new();
    let mut queues: HashMap<i32, std::collections::VecDeque<u32>> = HashMap::new();
    for &place in others {
        queues.entry(other.ty(place as usize)).or_default().push_back(place);
    }
    let mut left = Vec::new();
    for &id in ids {
        match queues.get_mut(&own.ty(id as usize)).and_then(|queue| queue.pop_front()) {
            Some(place) => pairs.push((id, place)),
            None => left.push(id),
        }
    }
    let mut rest: [Vec<u32>; 2] = Default::default();
    for (ty, queue) in queues {
        rest[usize::from(is_byte(ty))].extend(queue);
    }
    let mut rest = rest.map(|mut places| {
        places.sort_unstable();
        places.into_iter()
    });
    for id in left {
        if let Some(place) = rest[usize::from(is_byte(own.ty(id as usize)))].next() {
            pairs.push((id, place));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Value;

    fn vocabulary(tokens: &[(&str, i32)]) -> Metadata {
        let mut metadata = Metadata::default();
        metadata.set(TOKENS, Value::Array(Array::Strings(tokens.iter().map(|(text, _)| text).collect())));
        let types: Vec<i32> = tokens.iter().map(|(_, ty)| *ty).collect();
        metadata.set(TOKEN_TYPE, Value::Array(Array::from_i32s(&types)));
        metadata
    }

    #[track_caller]
    fn places(own: &[(&str, i32)], other: &[(&str, i32)]) -> Vec<Option<u32>> {
        let map = TokenMap::new(&vocabulary(own), &vocabulary(other)).unwrap();
        (0..own.len() as u32 + 1).map(|id| map.find(id)).collect()
    }

    #[test]
    fn a_token_is_its_text_whatever_its_type_and_place() {
        let own = [("a", 1), ("new", 1), ("<|im_end|>", 1), ("b", 1)];
        let other = [("b", 1), ("a", 1), ("old", 1), ("<|im_end|>", 3)];
        assert_eq!(places(&own, &other), [Some(1), None, Some(3), Some(0), None]);
        let inverted = TokenMap::new(&vocabulary(&own), &vocabulary(&other)).unwrap().inverted();
        assert_eq!([0, 1, 2, 3, 4].map(|id| inverted.find(id)), [Some(3), Some(0), None, Some(2), None]);
    }

    #[test]
    fn one_text_for_two_tokens_is_told_apart_by_type_and_then_by_order() {
        let own = [("<0x41>", 1), ("<0x41>", 6), ("", 1), ("", 5), ("", 1)];
        let other = [("", 5), ("<0x41>", 6), ("<0x41>", 1), ("", 1)];
        assert_eq!(places(&own, &other), [Some(2), Some(1), Some(3), Some(0), None, None]);
        // The second of one text is the second of the other, also where types differ.
        assert_eq!(places(&[("x", 1), ("x", 1)], &[("x", 3), ("x", 4)]), [Some(0), Some(1), None]);
        assert_eq!(places(&[("<0x41>", 6)], &[("x", 1), ("<0x41>", 1)]), [None, None], "a byte is no text");
    }

    #[test]
    fn a_run_of_spaces_is_one_token_however_it_is_written() {
        let (spaces, pieces) = (("  ", 4), ("\u{2581}\u{2581}", 4));
        assert_eq!(places(&[("a", 1), spaces], &[pieces, ("a", 1)]), [Some(1), Some(0), None]);
        assert_eq!(places(&[pieces], &[("\u{2581}", 4), ("\u{2581}\u{2581}", 1), spaces]), [Some(2), None]);
        // A piece of text with the same letters is another token.
        assert_eq!(places(&[("\u{2581}\u{2581}", 1)], &[spaces]), [None, None]);
        assert_eq!(places(&[("\u{2581}a", 4)], &[(" a", 4)]), [None, None]);
    }

    #[test]
    fn equal_lists_need_no_places() {
        let own = vocabulary(&[("a", 1), ("b", 1)]);
        let other = vocabulary(&[("a", 1), ("b", 3)]);
        let map = TokenMap::new(&own, &other).unwrap();
        assert!(map.is_identity() && map.find(1) == Some(1) && map.find(2).is_none());
        assert_eq!((map.n_shared(), map.n_moved()), (2, 0));
        assert!(TokenMap::new(&own, &Metadata::default()).is_none());
        let swapped = places(&[("<0x41>", 6), ("<0x41>", 1)], &[("<0x41>", 1), ("<0x41>", 6)]);
        assert_eq!(swapped, [Some(1), Some(0), None], "equal texts in one order, and other types");
        let longer = TokenMap::new(&own, &vocabulary(&[("a", 1), ("b", 1), ("c", 1)])).unwrap();
        assert!(!longer.is_identity());
        assert_eq!((longer.n_shared(), longer.n_moved(), longer.n_other()), (2, 0, 3));
    }
}
