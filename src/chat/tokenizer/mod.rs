//! Text to tokens and back, from the metadata alone, with llama.cpp's results.
//!
//! The llama.cpp that is followed is 0.8 (b12032). Built in are byte-pair encoding
//! (`tokenizer.ggml.model` `gpt2`, and `gemma4` with text instead of bytes) with all of its
//! pre-tokenizers, and SentencePiece by scores (`llama`). Refused by name are WordPiece (`bert`),
//! unigram (`t5`), `rwkv`, `plamo2`, `plamo3`, `hybriddna` (DNA) and `whitespace` (an embedding
//! model; the pre-tokenizer of that name is built in).
//!
//! Of the keys by which texts are read, `tokenizer.ggml.metaspace.prepend_scheme` counts with
//! byte-pair encoding. Others are looked at for their types only, as llama.cpp looks at them:
//! `normalizer.nfc` and `remove_extra_whitespaces` are for `t5`, `add_sep_token` for `bert`,
//! `normalizer.lowercase` and `normalizer.strip_accents` for `bert`
//! and `whitespace`, `dna_auto_tags` for `hybriddna`, and `clean_spaces` for what
//! [`Tokenizer::decode`] leaves out.

mod bpe;
mod end;
mod merge;
mod pre;
mod special;
mod spm;
mod stream;
mod vocab;

use std::borrow::Cow;
use std::fmt;

use bstr::{BStr, ByteSlice};

use crate::chat::error::{Error, shown};
use crate::gguf::Metadata;
use bpe::Bpe;
use end::{Defaults, Named};
use pre::Pre;
use special::{Fragment, Specials};
use vocab::{Vocab, flag, text};

pub(super) use special::MOST_SPECIAL;
pub use stream::StreamDecoder;
pub use vocab::TokenKind;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const PREPEND: &str = "tokenizer.ggml.metaspace.prepend_scheme";

/// Keys that change no token of a vocabulary that is built in.
const IGNORED_FLAGS: [&str; 7] = [
    "tokenizer.ggml.add_sep_token",
    "tokenizer.ggml.remove_extra_whitespaces",
    "tokenizer.ggml.clean_spaces",
    "tokenizer.ggml.normalizer.nfc",
    "tokenizer.ggml.normalizer.lowercase",
    "tokenizer.ggml.normalizer.strip_accents",
    "tokenizer.ggml.dna_auto_tags",
];

/// A model's tokenizer.
///
/// ```
/// use chatvec::chat::Tokenizer;
/// use chatvec::gguf::{Limits, Model};
///
/// let model = Model::open("fixtures/models/tinyworld-A-chat-F16.gguf".as_ref(), &Limits::default())?;
/// let tokenizer = Tokenizer::from_metadata(model.metadata())?;
/// let ids = tokenizer.encode("Guten Tag", false, false);
/// assert_eq!(tokenizer.decode(&ids, false), b"Guten Tag");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Tokenizer {
    vocab: Vocab,
    algorithm: Algorithm,
    specials: Specials,
    named: Named,
    ends: Vec<u32>,
    adds_bos: bool,
    adds_eos: bool,
    adds_space: bool,
    /// Byte-pair encoding begins the whole text with ▁.
    begins_with_space: bool,
    pre: Option<String>,
}

enum Algorithm {
    Bpe(Box<Bpe>),
    Spm,
}

impl Tokenizer {
    /// Builds the tokenizer of a file. What llama.cpp refuses is refused, and what it would abort
    /// on; a pre-tokenizer that the file does not name is `default`, as there.
    ///
    /// Takes memory and time in proportion to the vocabulary's bytes.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, Error> {
        let model = text(metadata, MODEL)?.ok_or(Error::MissingKey { key: MODEL })?;
        let pre = text(metadata, PRE)?.filter(|pre| !pre.is_empty());
        let rules = match model.as_bytes() {
            b"llama" => None,
            b"gpt2" => Some(pre.unwrap_or("default".into())),
            b"gemma4" => Some("gemma4".into()),
            _ => return Err(Error::UnknownModel { found: shown(model), known: "gpt2, llama, gemma4" }),
        };
        let rules = match rules {
            None => None,
            Some(name) => match Pre::find(name) {
                Some(rules) => Some(rules),
                None => return Err(Error::UnknownPre { found: shown(name), known: Pre::known() }),
            },
        };
        let defaults = match (rules, model.as_bytes()) {
            (None, _) => Defaults { bos: Some(1), eos: Some(2), unknown: Some(0), ends: &[] },
            (Some(_), b"gemma4") => Defaults::default(),
            (Some(rules), _) => {
                Defaults { bos: Some(11).filter(|_| !rules.no_bos), eos: Some(11), unknown: None, ends: rules.ends }
            }
        };

        let mut vocab = Vocab::load(metadata)?;
        let named = Named::load(metadata, &mut vocab, defaults)?;
        let specials = Specials::load(metadata, &vocab)?;
        let algorithm = match rules {
            Some(rules) => Algorithm::Bpe(Box::new(Bpe::load(metadata, &mut vocab, rules)?)),
            None => Algorithm::Spm,
        };
        let adds_bos = flag(metadata, "tokenizer.ggml.add_bos_token")?;
        for key in IGNORED_FLAGS {
            flag(metadata, key)?;
        }
        Ok(Tokenizer {
            ends: named.ends.iter().copied().collect(),
            adds_bos: match rules {
                None => adds_bos.unwrap_or(true),
                // Whatever the file says (src/llama-vocab.cpp, "workaround for Gemma 4").
                Some(rules) if rules.always_bos => true,
                Some(rules) => adds_bos.unwrap_or(rules.add_bos),
            },
            adds_eos: flag(metadata, "tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            adds_space: flag(metadata, "tokenizer.ggml.add_space_prefix")?.unwrap_or(rules.is_none()),
            begins_with_space: begins_with_space(metadata, rules.is_some())?,
            pre: rules.and(pre).map(|pre| pre.to_string()),
            vocab,
            algorithm,
            specials,
            named,
        })
    }

    /// How many tokens there are; ids are below.
    pub fn n_tokens(&self) -> usize {
        self.vocab.len()
    }

    /// The name of the pre-tokenizer; none with SentencePiece, and none if the file of a byte-pair
    /// vocabulary names none. llama.cpp then warns that answers will be worse.
    pub fn pre(&self) -> Option<&str> {
        self.pre.as_deref()
    }

    /// The tokens of a text (`llama_tokenize`).
    ///
    /// With `add_special`, BOS and EOS stand around it if the file wants them. With
    /// `parse_special`, the texts of control tokens become those tokens: for templates, not for
    /// what a person typed.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        let mut out = Vec::new();
        if add_special && self.adds_bos {
            out.extend(self.named.bos);
        }
        let mut after_special = true;
        for (i, part) in self.specials.partition(&self.vocab, text, parse_special).into_iter().enumerate() {
            match part {
                Fragment::Token(id) => out.push(id),
                Fragment::Text(ref range) => {
                    self.encode_part(&text.as_bytes()[range.clone()], after_special, i == 0, &mut out);
                }
            }
            after_special = matches!(part, Fragment::Token(_));
        }
        if add_special && self.adds_eos {
            out.extend(self.named.eos);
        }
        out
    }

    /// Ends of parts are ends of characters unless a vocabulary has tokens that are none.
    fn encode_part(&self, part: &[u8], after_special: bool, first: bool, out: &mut Vec<u32>) {
        match &self.algorithm {
            Algorithm::Bpe(bpe) => {
                let mut text = text_of(part);
                if bpe.escapes() && text.contains(' ') {
                    text = text.replace(' ', spm::SPACE).into();
                }
                if self.begins_with_space && first && !text.starts_with(spm::SPACE) {
                    text.to_mut().insert_str(0, spm::SPACE);
                }
                bpe.encode(&self.vocab, &text, self.named.unknown, out);
            }
            Algorithm::Spm => {
                let prefix = if self.adds_space && after_special { spm::SPACE } else { "" };
                let escaped = [prefix.as_bytes(), &part.replace(" ", spm::SPACE)].concat();
                spm::encode(&self.vocab, &escaped, self.named.unknown, out);
            }
        }
    }

    /// The bytes of one token (`llama_token_to_piece`), which need not be UTF-8 by themselves.
    /// Control and unknown tokens have their text with `special`, else nothing; an id out of range
    /// has nothing.
    pub fn piece(&self, id: u32, special: bool) -> Cow<'_, [u8]> {
        let Some(text) = self.vocab.text(id) else { return Cow::default() };
        match (self.vocab.kind(id), &self.algorithm) {
            (TokenKind::Control | TokenKind::Unknown, _) if !special => Cow::default(),
            (TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined, _) => Cow::Borrowed(text),
            (TokenKind::Normal, Algorithm::Bpe(bpe)) => bpe.decode(text),
            (TokenKind::Normal, Algorithm::Spm) => spm::unescape(text),
            (TokenKind::Byte, _) => Cow::Owned(vec![self.vocab.byte(id)]),
            (TokenKind::Unused | TokenKind::Undefined, _) => Cow::default(),
        }
    }

    /// The bytes of tokens, one after the other; one space at the beginning goes if encoding puts
    /// one there (`llama_detokenize` without `remove_special`). With
    /// `tokenizer.ggml.metaspace.prepend_scheme` `first` it goes from the first token shown.
    ///
    /// What is left out is llama.cpp's "clean-up of spaces", by which `llama_detokenize` drops the
    /// space of ` .` and ` 's` for some vocabularies: the programs that show answers as they are
    /// made do not do that either.
    pub fn decode(&self, ids: &[u32], special: bool) -> Vec<u8> {
        let mut stream = StreamDecoder::new(self, special);
        ids.iter().flat_map(|&id| stream.bytes(id).into_owned()).collect()
    }

    /// The text in the vocabulary: with ▁ for spaces or in the alphabet of bytes.
    pub fn text(&self, id: u32) -> Option<&BStr> {
        self.vocab.text(id)
    }

    /// What the token is for; [`TokenKind::Undefined`] out of range.
    pub fn kind(&self, id: u32) -> TokenKind {
        self.vocab.kind(id)
    }

    /// The token with this text in the vocabulary.
    pub fn find(&self, text: &[u8]) -> Option<u32> {
        self.vocab.find(text)
    }

    /// The beginning of a text.
    pub fn bos(&self) -> Option<u32> {
        self.named.bos
    }

    /// The end of a text.
    pub fn eos(&self) -> Option<u32> {
        self.named.eos
    }

    /// The end of a turn. Of several tokens that are known as one by their text, llama.cpp's choice
    /// depends on a hash table; all of them end an answer.
    pub fn eot(&self) -> Option<u32> {
        self.named.eot
    }

    /// The end of a message that calls a tool.
    pub fn eom(&self) -> Option<u32> {
        self.named.eom
    }

    /// Whether texts begin with [`Tokenizer::bos`].
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// Whether texts end with [`Tokenizer::eos`].
    pub fn adds_eos(&self) -> bool {
        self.adds_eos
    }

    /// Whether a generation ends with this token (`llama_vocab_is_eog`).
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }

    /// All tokens that end a generation, in order of their ids.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("n_tokens", &self.n_tokens()).field("pre", &self.pre).finish_non_exhaustive()
    }
}

/// Whether byte-pair encoding puts ▁ before a text. What llama.cpp refuses is refused;
/// SentencePiece goes by `tokenizer.ggml.add_space_prefix` alone, there too.
fn begins_with_space(metadata: &Metadata, bpe: bool) -> Result<bool, Error> {
    match text(metadata, PREPEND)?.map(|scheme| scheme.as_bytes()) {
        None | Some(b"never") => Ok(false),
        Some(b"first") => Ok(bpe),
        Some(b"always") if !bpe => Ok(false),
        Some(other) => Err(Error::UnknownPrepend { found: shown(BStr::new(other)) }),
    }
}

/// A part as text: every byte that is of no whole character is U+FFFD (src/unicode.cpp,
/// `unicode_cpts_from_utf8`), where others put one for several.
fn text_of(part: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = part.to_str() {
        return text.into();
    }
    let mut out = String::with_capacity(part.len());
    for chunk in part.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    out.into()
}
