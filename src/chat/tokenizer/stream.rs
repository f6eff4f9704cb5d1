//! Tokens to text as they come, one by one.

use std::borrow::Cow;

use super::{TokenKind, Tokenizer};

/// Makes text of tokens that come one after the other. A token may end within a character: its
/// bytes wait for those that complete it.
pub struct StreamDecoder<'t> {
    tokenizer: &'t Tokenizer,
    special: bool,
    /// Whether the next token is the first.
    is_first: bool,
    /// With `prepend_scheme` `first`: whether no token was shown yet.
    none_shown: bool,
    /// Bytes of a character that is not complete, three at most.
    begun: Vec<u8>,
}

impl<'t> StreamDecoder<'t> {
    /// A decoder before the first token. With `special` it writes the texts of control tokens, as
    /// [`Tokenizer::piece`] does.
    pub fn new(tokenizer: &'t Tokenizer, special: bool) -> Self {
        let none_shown = tokenizer.begins_with_space;
        StreamDecoder { tokenizer, special, is_first: true, none_shown, begun: Vec::new() }
    }

    /// The bytes of the next token: [`Tokenizer::decode`] token by token.
    pub(super) fn bytes(&mut self, id: u32) -> Cow<'t, [u8]> {
        let is_first = self.is_first && self.tokenizer.adds_space || self.none_shown;
        let is_hidden = matches!(self.tokenizer.kind(id), TokenKind::Control | TokenKind::Unknown);
        self.is_first = false;
        self.none_shown &= !self.special && is_hidden;
        match self.tokenizer.piece(id, self.special) {
            Cow::Borrowed(piece) => Cow::Borrowed(piece.strip_prefix(b" ").filter(|_| is_first).unwrap_or(piece)),
            Cow::Owned(mut piece) => {
                if is_first && piece.starts_with(b" ") {
                    piece.remove(0);
                }
                Cow::Owned(piece)
            }
        }
    }

    /// The text that is complete with the next token. Bytes that are of no character are U+FFFD, as
    /// [`String::from_utf8_lossy`] has them.
    pub fn push(&mut self, id: u32) -> String {
        let bytes = self.bytes(id);
        self.begun.extend_from_slice(&bytes);
        let (mut text, mut rest) = (String::new(), &self.begun[..]);
        let left = loop {
            match std::str::from_utf8(rest) {
                Ok(whole) => {
                    text += whole;
                    break 0;
                }
                Err(e) => {
                    let (valid, behind) = rest.split_at(e.valid_up_to());
                    text += &String::from_utf8_lossy(valid);
                    // Without a length the end is cut: what is missing may be in the next token.
                    let Some(len) = e.error_len() else { break behind.len() };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &behind[len..];
                }
            }
        };
        self.begun.drain(..self.begun.len() - left);
        text
    }

    /// What is left at the end: U+FFFD for a character that was not completed.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.begun).into_owned()
    }
}
