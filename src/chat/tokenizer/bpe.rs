//! Byte-pair encoding: words by the pre-tokenizer, then merges by rank.

use std::borrow::Cow;
use std::collections::HashMap;

use bstr::{BStr, ByteSlice};

use super::merge::Chain;
use super::pre::{Pre, Splitter};
use super::vocab::{Vocab, strings, until_nul};
use crate::chat::error::Error;
use crate::gguf::{Metadata, StringArray};

const MERGES: &str = "tokenizer.ggml.merges";

/// Merges and the rules of one pre-tokenizer.
pub(super) struct Bpe {
    splitter: Splitter,
    pre: &'static Pre,
    /// (left, right) → (rank, merged), by the ids of [`Vocab::symbol`].
    merges: HashMap<(u32, u32), (u32, u32)>,
}

impl Bpe {
    pub(super) fn load(metadata: &Metadata, vocab: &mut Vocab, pre: &'static Pre) -> Result<Self, Error> {
        let none = StringArray::default();
        let list = match strings(metadata, MERGES)? {
            Some(list) => list,
            None if pre.no_merges => &none,
            None => return Err(Error::MissingKey { key: MERGES }),
        };
        // Each merge may bring three strings that are no tokens.
        let most = list.len().checked_mul(3).and_then(|n| n.checked_add(vocab.len()));
        if most.is_none_or(|n| i32::try_from(n).is_err()) {
            return Err(Error::TooMany { n_tokens: vocab.len(), n_merges: list.len() });
        }
        let mut merges = HashMap::with_capacity(list.len());
        let mut joined = Vec::new();
        for (rank, merge) in (0..).zip(list.iter().map(until_nul)) {
            // The first character may be a space; llama.cpp looks for the one between the halves
            // behind it.
            let Some(at) = merge.get(1..).and_then(|rest| rest.find_byte(b' ')) else { continue };
            let (left, right) = (&merge[..at + 1], &merge[at + 2..]);
            joined.clear();
            joined.extend_from_slice(left);
            joined.extend_from_slice(right);
            let pair = (vocab.intern(left), vocab.intern(right));
            let merged = vocab.intern(&joined);
            merges.entry(pair).or_insert((rank, merged));
        }
        Ok(Bpe { splitter: pre.splitter(), pre, merges })
    }

    /// The tokens of a text (src/llama-vocab.cpp, `llm_tokenizer_bpe_session::tokenize`). Bytes
    /// without a token are lost, as they are there; with [`Pre::no_bytes`] `unknown` stands for
    /// each text without a token.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, unknown: Option<u32>, out: &mut Vec<u32>) {
        let mut chain = Chain::default();
        let mut bytes = String::new();
        let text = self.splitter.rewrite(text);
        for word in self.splitter.split(&text) {
            let word = match self.pre.raw {
                true => word,
                false => {
                    bytes.clear();
                    bytes.extend(word.bytes().map(|b| ALPHABET[usize::from(b)]));
                    &bytes
                }
            };
            let whole = self.pre.ignore_merges || self.pre.raw_newlines && word.bytes().all(|b| b == b'\n');
            if let Some(id) = whole.then(|| vocab.find(word.as_bytes())).flatten() {
                out.push(id);
                continue;
            }
            chain.clear();
            for (start, c) in word.char_indices() {
                let len = c.len_utf8();
                chain.push(start, len, vocab.symbol(&word.as_bytes()[start..start + len]));
            }
            chain.merge(|l, r| self.merges.get(&(l.id, r.id)).map(|&(rank, id)| (!rank, id)));
            for symbol in chain.symbols() {
                if vocab.is_token(symbol.id) {
                    out.push(symbol.id);
                    continue;
                }
                let rest = &word.as_bytes()[symbol.start..symbol.start + symbol.len];
                match self.pre.raw {
                    _ if self.pre.no_bytes => out.extend(unknown),
                    true => out.extend(rest.iter().filter_map(|&b| vocab.find_byte(b))),
                    false => out.extend(rest.iter().filter_map(|&b| vocab.find(&[b]))),
                }
            }
        }
    }

    /// Whether tokens have ▁ for spaces.
    pub(super) fn escapes(&self) -> bool {
        self.pre.escapes
    }

    /// The bytes of a normal token's text.
    pub(super) fn decode<'a>(&self, text: &'a BStr) -> Cow<'a, [u8]> {
        match self.pre {
            Pre { escapes: true, .. } => super::spm::unescape(text),
            Pre { no_bytes: true, .. } => Cow::Borrowed(text),
            _ => Cow::Owned(decode_bytes(text)),
        }
    }
}

/// GPT-2's alphabet of bytes: the printable characters of Latin-1 stand for themselves, the others
/// for U+0100 and up in their order.
const ALPHABET: [char; 256] = {
    let mut alphabet = ['\0'; 256];
    let (mut byte, mut next) = (0, 0x100);
    while byte < 256 {
        alphabet[byte] = match byte as u8 {
            b @ (b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) => b as char,
            _ => {
                next += 1;
                match char::from_u32(next - 1) {
                    Some(c) => c,
                    None => unreachable!(),
                }
            }
        };
        byte += 1;
    }
    alphabet
};

/// The byte that a character of [`ALPHABET`] stands for.
fn byte_of(c: char) -> Option<u8> {
    // 68 bytes stand for others: 0 to 0x20, 0x7F to 0xA0, and 0xAD.
    match c as u32 {
        b @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(b as u8),
        c @ 0x100..=0x120 => Some((c - 0x100) as u8),
        c @ 0x121..=0x142 => Some((c - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// Texts up to this length have characters outside the alphabet spelled out with the text, once for
/// each, as llama.cpp does; longer ones would grow with the square of their length.
const SPELLED_OUT: usize = 1024;

/// The bytes that a text in the byte alphabet stands for (src/llama-vocab.cpp,
/// `llama_decode_text`).
fn decode_bytes(text: &BStr) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let (c, len) = match bstr::decode_utf8(rest) {
            (Some(c), len) => (c, len),
            (None, _) => (char::REPLACEMENT_CHARACTER, 1),
        };
        rest = &rest[len..];
        match byte_of(c) {
            Some(byte) => out.push(byte),
            None => {
                let mut utf8 = [0; 4];
                let utf8 = c.encode_utf8(&mut utf8).as_bytes();
                out.extend_from_slice(b"[UNK_BYTE_0x");
                out.extend(utf8.iter().flat_map(|b| format!("{b:02x}").into_bytes()));
                if text.len() <= SPELLED_OUT {
                    out.extend_from_slice(text);
                }
                out.push(b']');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        for byte in 0..=255u8 {
            assert_eq!(byte_of(ALPHABET[usize::from(byte)]), Some(byte));
        }
        let known = (0..0x11_0000).filter_map(char::from_u32).filter(|&c| byte_of(c).is_some());
        assert_eq!(known.count(), 256);
    }
}
