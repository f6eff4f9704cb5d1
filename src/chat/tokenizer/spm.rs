//! SentencePiece by scores: any two neighbours whose texts together are a token may merge.

use super::merge::{Chain, NONE};
use super::vocab::Vocab;

/// What a space is in the vocabulary: ▁, U+2581.
pub(super) const SPACE: &str = "\u{2581}";

/// The tokens of a text, its spaces escaped already (src/llama-vocab.cpp,
/// `llm_tokenizer_spm_session::tokenize`).
///
/// A character without a token becomes its bytes; a byte without a token becomes `unknown`, where
/// llama.cpp ends with an exception.
pub(super) fn encode(vocab: &Vocab, text: &str, unknown: Option<u32>, out: &mut Vec<u32>) {
    let mut chain = Chain::default();
    for (start, c) in text.char_indices() {
        let len = c.len_utf8();
        chain.push(start, len, vocab.find(&text.as_bytes()[start..start + len]).unwrap_or(NONE));
    }
    chain.merge(|l, r| {
        let id = vocab.find(&text.as_bytes()[l.start..r.start + r.len])?;
        Some((vocab.priority(id), id))
    });
    for symbol in chain.symbols() {
        if symbol.id != NONE {
            out.push(symbol.id);
            continue;
        }
        for &byte in &text.as_bytes()[symbol.start..symbol.start + symbol.len] {
            out.extend(vocab.find_byte(byte).or_else(|| vocab.find(&[byte])).or(unknown));
        }
    }
}
