//! Which tokens end an answer, and the tokens that files name: BOS, EOS, EOT and EOM.
//!
//! All rules are those of `llama_vocab::impl::load` (src/llama-vocab.cpp), from "special tokens"
//! on.

use std::collections::BTreeSet;

use super::vocab::{TokenKind, Vocab};
use crate::chat::error::{Error, typed};
use crate::gguf::{Metadata, Value, ValueType};

/// The tokens that a file names, or that llama.cpp knows by their texts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Named {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) eot: Option<u32>,
    pub(super) eom: Option<u32>,
    pub(super) unknown: Option<u32>,
    /// Every token that ends a generation.
    pub(super) ends: BTreeSet<u32>,
}

/// What an algorithm takes for the tokens if the file says nothing.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Defaults {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) unknown: Option<u32>,
    /// Texts that end an answer with this pre-tokenizer.
    pub(super) ends: &'static [&'static str],
}

/// A role that a key gives to a token, and else the first of some texts that is a token.
///
/// Where several of the texts are tokens, llama.cpp takes the one that its hash table lists first.
/// Here it is the first of the list: which of them has the role changes nothing about the end of an
/// answer, since all texts of a role that ends one do so by themselves, but for the three roles of
/// `fim_` that do and of which no vocabulary is known to have two texts.
struct TokenRole {
    /// Later ones win.
    keys: &'static [&'static str],
    texts: &'static [&'static str],
}

const EOT: TokenRole = TokenRole {
    keys: &["tokenizer.ggml.eot_token_id"],
    texts: &[
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "<｜end▁of▁sentence｜>",
        "<end_of_utterance>",
    ],
};

const EOM: TokenRole = TokenRole { keys: &["tokenizer.ggml.eom_token_id"], texts: &["<|eom_id|>"] };

/// Parts of a text with a gap to fill: they become control tokens, no more.
const FILL: [TokenRole; 3] = [
    TokenRole {
        keys: &["tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"],
        texts: &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
            "<|plamo:fim_prefix|>",
        ],
    },
    TokenRole {
        keys: &["tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"],
        texts: &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
            "<|plamo:fim_suffix|>",
        ],
    },
    TokenRole {
        keys: &["tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"],
        texts: &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
            "<|plamo:fim_middle|>",
        ],
    },
];

/// Padding, repository and file of such texts: they end an answer.
const FILL_ENDS: [TokenRole; 3] = [
    TokenRole {
        keys: &["tokenizer.ggml.fim_pad_token_id"],
        texts: &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    },
    TokenRole {
        keys: &["tokenizer.ggml.fim_rep_token_id"],
        texts: &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    },
    TokenRole { keys: &["tokenizer.ggml.fim_sep_token_id"], texts: &["<|file_sep|>", "<|plamo:file_separator|>"] },
];

/// Texts that end an answer wherever they are a token.
const ENDS: [&str; 24] = [
    "<|eot_id|>",
    "<|eot|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|ifm|im_end|>",
];

/// gpt-oss' structure of an answer, which is always to be seen.
const SHOWN: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

impl Named {
    /// Reads what the metadata name, and puts right the kinds of tokens that llama.cpp knows better
    /// than the file.
    pub(super) fn load(metadata: &Metadata, vocab: &mut Vocab, defaults: Defaults) -> Result<Self, Error> {
        let id = |keys, default| token_id(metadata, vocab.len(), keys, default);
        let bos = id(&["tokenizer.ggml.bos_token_id"], defaults.bos)?;
        let eos = id(&["tokenizer.ggml.eos_token_id"], defaults.eos)?;
        let unknown = id(&["tokenizer.ggml.unknown_token_id"], defaults.unknown)?;
        let eot = EOT.resolve(metadata, vocab)?;
        let eom = EOM.resolve(metadata, vocab)?;
        for role in &FILL {
            role.resolve(metadata, vocab)?;
        }
        let mut ends = BTreeSet::new();
        for role in &FILL_ENDS {
            ends.extend(role.resolve(metadata, vocab)?);
        }
        for id in ENDS.iter().chain(defaults.ends).filter_map(|text| vocab.find(text.as_bytes())).collect::<Vec<_>>() {
            vocab.kinds[id as usize] = TokenKind::Control;
            ends.insert(id);
        }
        for id in SHOWN.iter().filter_map(|text| vocab.find(text.as_bytes())).collect::<Vec<_>>() {
            vocab.kinds[id as usize] = TokenKind::UserDefined;
        }
        ends.extend([eos, eot, eom].into_iter().flatten());
        let mut named = Named { bos, eos, eot, eom, unknown, ends };
        named.except(vocab);
        Ok(named)
    }

    /// Some families have a token that ends nothing there, though it does elsewhere.
    fn except(&mut self, vocab: &mut Vocab) {
        let ends = |text: &str| vocab.find(text.as_bytes()).filter(|id| self.ends.contains(id));
        let has = |text| ends(text).is_some();
        // Harmony and solar-open: <|end|> ends a message, not the turn.
        let calls = has("<|call|>") || has("<|calls|>");
        let end = ends("<|end|>").filter(|_| calls && (has("<|return|>") || has("<|flush|>")));
        // Gemma 4, PLaMo and Beam: </s> is text.
        let beam = vocab.find(b"<rfl:parameter name=\"").is_some();
        let close = ends("</s>").filter(|_| beam || has("<|tool_response>") || has("<|plamo:eos|>"));
        for (id, kind) in [(end, TokenKind::UserDefined), (close, TokenKind::Normal)] {
            if let Some(id) = id {
                self.ends.remove(&id);
                vocab.kinds[id as usize] = kind;
            }
        }
    }
}

impl TokenRole {
    fn resolve(&self, metadata: &Metadata, vocab: &mut Vocab) -> Result<Option<u32>, Error> {
        if let Some(id) = token_id(metadata, vocab.len(), self.keys, None)? {
            return Ok(Some(id));
        }
        let id = self.texts.iter().find_map(|text| vocab.find(text.as_bytes()));
        if let Some(id) = id {
            vocab.kinds[id as usize] = TokenKind::Control;
        }
        Ok(id)
    }
}

/// The token that the last of these keys names; ids out of range are ignored, also that of the
/// default.
fn token_id(
    metadata: &Metadata,
    n_tokens: usize,
    keys: &[&'static str],
    default: Option<u32>,
) -> Result<Option<u32>, Error> {
    let in_range = |id: &u32| (*id as usize) < n_tokens;
    let mut found = default.filter(in_range);
    for &key in keys {
        let value = typed(metadata, key, ValueType::U32, |v| match v {
            Value::U32(id) => Some(*id),
            _ => None,
        })?;
        found = value.filter(in_range).or(found);
    }
    Ok(found)
}
