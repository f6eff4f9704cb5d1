//! Special tokens in a text: found before anything else is looked at.

use std::ops::Range;

use bstr::{BStr, ByteSlice};

use super::vocab::{TokenKind, Vocab, text};
use crate::chat::error::{Error, shown};
use crate::gguf::Metadata;

/// Special tokens of a vocabulary, at most: each is looked for in the whole of every text. Gemma 3
/// has 6,414.
pub(in crate::chat) const MOST_SPECIAL: usize = 1 << 16;

/// A part of a text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Fragment {
    /// Text without special tokens, in bytes of the whole.
    Text(Range<usize>),
    /// A special token.
    Token(u32),
}

/// The tokens that are looked for in texts, in the order in which they are.
pub(super) struct Specials {
    list: Vec<Special>,
}

struct Special {
    id: u32,
    /// Takes the white space before it, or after it, along.
    takes_before: bool,
    takes_after: bool,
}

impl Specials {
    /// The longest first, those of one length by id, where llama.cpp's order is its library's; and
    /// white space that goes with some of them by the model's name, since files do not say it
    /// (src/llama-vocab.cpp, `llama_vocab::impl::load`, from "build special tokens cache" on).
    pub(super) fn load(metadata: &Metadata, vocab: &Vocab) -> Result<Self, Error> {
        use TokenKind::{Control, Unknown, UserDefined};
        let ids = (0..vocab.len() as u32).filter(|&id| matches!(vocab.kind(id), Control | Unknown | UserDefined));
        let found = ids.clone().count();
        if found > MOST_SPECIAL {
            return Err(Error::TooManySpecial { found, most: MOST_SPECIAL });
        }
        let mut list: Vec<_> = ids.map(|id| Special { id, takes_before: false, takes_after: false }).collect();
        list.sort_by_key(|s| std::cmp::Reverse(vocab.text(s.id).map_or(0, |t| t.len())));

        let has = |key, words: &[&str]| -> Result<bool, Error> {
            let value = text(metadata, key)?.unwrap_or_default();
            Ok(words.iter().any(|w| value.contains_str(w)))
        };
        let name = text(metadata, "general.name")?.unwrap_or_default().to_ascii_lowercase();
        let mut mask = |token: &str| {
            let id = vocab.find(token.as_bytes());
            list.iter_mut().filter(|s| Some(s.id) == id).for_each(|s| s.takes_before = true);
        };
        if has("tokenizer.ggml.pre", &["jina-v2-de", "jina-v2-es", "jina-v2-code", "mmbert"])?
            || has("general.architecture", &["nomic-bert-moe", "jina-bert-v3"])?
        {
            mask("<mask>");
        } else if ["phi-3", "phi3"].iter().any(|n| name.contains_str(n)) {
            let exceptions = ["<unk>", "<s>", "<|endoftext|>"];
            for token in ["</s>"].into_iter().chain(exceptions) {
                if vocab.find(token.as_bytes()).is_none() {
                    let name = shown(text(metadata, "general.name")?.unwrap_or_default());
                    return Err(Error::MissingToken { name, text: token });
                }
            }
            for special in &mut list {
                special.takes_after = !exceptions.iter().any(|e| vocab.text(special.id) == Some(BStr::new(e)));
            }
        } else if name.contains_str("modern-bert") {
            mask("[MASK]");
        }
        Ok(Specials { list })
    }

    /// The parts of a text, none empty (src/llama-vocab.cpp,
    /// `llama_vocab::impl::tokenizer_st_partition`): a token is looked for in what the tokens
    /// before it in the order left. Control tokens count only if asked for, user-defined ones
    /// always.
    pub(super) fn partition(&self, vocab: &Vocab, text: &str, parse_special: bool) -> Vec<Fragment> {
        if text.is_empty() {
            return Vec::new();
        }
        let mut parts = vec![Fragment::Text(0..text.len())];
        let pairs = Pairs::of(text.as_bytes());
        for special in &self.list {
            let wanted = parse_special || vocab.kind(special.id) == TokenKind::UserDefined;
            let Some(token) = vocab.text(special.id).filter(|token| wanted && pairs.may_hold(token)) else { continue };
            if text.as_bytes().find(token).is_none() {
                continue;
            }
            let mut finer = Vec::with_capacity(parts.len());
            for part in parts {
                match part {
                    Fragment::Text(range) => special.split(token, text.as_bytes(), range, &mut finer),
                    found => finer.push(found),
                }
            }
            parts = finer;
        }
        parts
    }
}

impl Special {
    fn split(&self, token: &[u8], text: &[u8], mut rest: Range<usize>, parts: &mut Vec<Fragment>) {
        // Built once for all occurrences: a finder is set up in the time of a short search.
        let finder = bstr::Finder::new(token);
        while let Some(at) = finder.find(&text[rest.clone()]) {
            let (at, end) = (rest.start + at, rest.start + at + token.len());
            let spaces = |bytes: &mut dyn Iterator<Item = &u8>| bytes.take_while(|b| is_space(**b)).count();
            let before = if self.takes_before { spaces(&mut text[rest.start..at].iter().rev()) } else { 0 };
            let after = if self.takes_after { spaces(&mut text[end..rest.end].iter()) } else { 0 };
            if at - before > rest.start {
                parts.push(Fragment::Text(rest.start..at - before));
            }
            parts.push(Fragment::Token(self.id));
            rest.start = end + after;
        }
        if !rest.is_empty() {
            parts.push(Fragment::Text(rest));
        }
    }
}

/// C's `isspace`.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// Which pairs of neighbouring bytes a text holds: most of thousands of special tokens are ruled
/// out by it.
struct Pairs(Box<[u64; 1024]>);

impl Pairs {
    fn of(text: &[u8]) -> Self {
        let mut set = Box::new([0; 1024]);
        for pair in text.windows(2) {
            let i = Self::index(pair);
            set[i / 64] |= 1 << (i % 64);
        }
        Pairs(set)
    }

    fn may_hold(&self, token: &[u8]) -> bool {
        token.windows(2).map(Self::index).all(|i| self.0[i / 64] >> (i % 64) & 1 == 1)
    }

    fn index(pair: &[u8]) -> usize {
        usize::from(pair[0]) << 8 | usize::from(pair[1])
    }
}
