//! SentencePiece by scores: any two neighbours whose texts together are a token may merge.

use std::borrow::Cow;

use bstr::{BStr, ByteSlice};

use super::merge::{Chain, NONE};
use super::vocab::Vocab;

/// What a space is in the vocabulary: ▁, U+2581.
pub(super) const SPACE: &str = "\u{2581}";

/// Text with spaces for ▁.
pub(super) fn unescape(text: &BStr) -> Cow<'_, [u8]> {
    match text.find(SPACE) {
        Some(_) => Cow::Owned(text.replace(SPACE, " ")),
        None => Cow::Borrowed(text),
    }
}

/// The tokens of a text, its spaces escaped already (src/llama-vocab.cpp,
/// `llm_tokenizer_spm_session::tokenize`).
///
/// A character without a token becomes its bytes; a byte without a token becomes `unknown`, where
/// llama.cpp ends with an exception.
///
/// The text may be the halves of characters between tokens that are none: what a byte begins is as
/// long as the byte says, or as is left (src/unicode.cpp, `unicode_len_utf8`).
pub(super) fn encode(vocab: &Vocab, text: &[u8], unknown: Option<u32>, out: &mut Vec<u32>) {
    let mut chain = Chain::default();
    let mut start = 0;
    while let Some(&byte) = text.get(start) {
        let len = match byte >> 4 {
            0..=11 => 1,
            12 | 13 => 2,
            14 => 3,
            _ => 4,
        };
        let len = len.min(text.len() - start);
        chain.push(start, len, vocab.find(&text[start..start + len]).unwrap_or(NONE));
        start += len;
    }
    chain.merge(|l, r| {
        let id = vocab.find(&text[l.start..r.start + r.len])?;
        Some((vocab.priority(id), id))
    });
    for symbol in chain.symbols() {
        if symbol.id != NONE {
            out.push(symbol.id);
            continue;
        }
        for &byte in &text[symbol.start..symbol.start + symbol.len] {
            out.extend(vocab.find_byte(byte).or_else(|| vocab.find(&[byte])).or(unknown));
        }
    }
}
