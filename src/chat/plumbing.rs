//! The keys that make llama.cpp talk like a chat model, and moving them.
//!
//! llama.cpp ends a generation at `eos`, `eot` and `eom` and at tokens with well-known texts,
//! renders the prompt with `tokenizer.chat_template`, and parses a special token in the prompt only
//! if its type says it is one (src/llama-vocab.cpp, common/chat.cpp).

use std::ops::Range;

use bstr::{BStr, ByteSlice};

use super::{TEMPLATE, TOKEN_TYPE, TOKENS, TokenMap};
use crate::gguf::{Array, Metadata, Value};

/// What ends an answer.
pub(super) const ENDS: [&str; 3] =
    ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// Keys taken from the chat model, besides the templates and those of tokens.
const KEYS: [&str; 2] = ["tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"];

/// Ends the names of keys with the id of a token, which begin with [`VOCABULARY`].
const ID: &str = "_token_id";
const VOCABULARY: &str = "tokenizer.ggml.";

const PADDING: &str = "tokenizer.ggml.padding_token_id";

/// Tokens that are never written, as a list of their ids.
const SUPPRESSED: &str = "tokenizer.ggml.suppress_tokens";

/// Tokens by which texts are read, whatever is said in them: these stay the model's.
const OF_TEXTS: [&str; 5] = [
    BEGIN,
    "tokenizer.ggml.unknown_token_id",
    "tokenizer.ggml.seperator_token_id",
    "tokenizer.ggml.cls_token_id",
    "tokenizer.ggml.mask_token_id",
];

/// Begins the keys of the sampling that the makers of a model recommend. llama.cpp's tools take them
/// as defaults (common/common.cpp), and its converter writes them from generation_config.json.
pub const SAMPLING: &str = "general.sampling.";

/// The token that texts begin with: `bos_token` in a template.
const BEGIN: &str = "tokenizer.ggml.bos_token_id";

const SCORES: &str = "tokenizer.ggml.scores";

/// `LLAMA_TOKEN_TYPE_CONTROL` and `LLAMA_TOKEN_TYPE_USER_DEFINED`: what a template is made of.
const SPECIAL_TYPES: [i32; 2] = [3, 4];
/// `LLAMA_TOKEN_TYPE_NORMAL`.
const NORMAL: i32 = 1;

/// Whether a key is chat plumbing that [`transplant`] takes from the chat model.
pub fn is_plumbing_key(key: &str) -> bool {
    is_exactly_the_chats(key) || is_template_key(key) || is_id_key(key) && !OF_TEXTS.contains(&key)
}

/// Whether a key is the chat model's also where that has none.
fn is_exactly_the_chats(key: &str) -> bool {
    ENDS.contains(&key) || KEYS.contains(&key) || key == SUPPRESSED || key.starts_with(SAMPLING)
}

/// Whether a key names a token by its id.
fn is_id_key(key: &str) -> bool {
    key.starts_with(VOCABULARY) && key.ends_with(ID)
}

/// The template, its variants (`tokenizer.chat_template.NAME`) and the list of their names.
fn is_template_key(key: &str) -> bool {
    key == TEMPLATE
        || key == "tokenizer.chat_templates"
        || key.strip_prefix(TEMPLATE).is_some_and(|rest| rest.starts_with('.'))
}

/// The templates: their names, none for the one that is used where none is named, and their
/// sources.
pub fn templates(metadata: &Metadata) -> impl Iterator<Item = (Option<&str>, &BStr)> {
    metadata.iter().filter_map(|(key, value)| {
        let name = key.strip_prefix(TEMPLATE)?;
        let name = if name.is_empty() { None } else { Some(name.strip_prefix('.')?) };
        Some((name, value.as_str()?))
    })
}

/// Whether the metadata carry a chat template that says something.
pub fn has_template(metadata: &Metadata) -> bool {
    metadata.get_str(TEMPLATE).is_some_and(|t| !t.trim_ascii().is_empty())
}

/// The tokens that end an answer, or a text.
pub fn end_ids(metadata: &Metadata) -> Vec<u32> {
    ENDS.iter().filter_map(|key| u32::try_from(metadata.get_u64(key)?).ok()).collect()
}

/// The text of the token that ends an answer by `eos`, or its id where the file has no tokens.
pub fn end_text(metadata: &Metadata) -> Option<String> {
    let id = metadata.get_u64(ENDS[0])?;
    let text = metadata.get_strings(TOKENS).and_then(|tokens| tokens.get(usize::try_from(id).ok()?));
    Some(text.map_or_else(|| id.to_string(), ToString::to_string))
}

/// One thing that [`transplant`] did.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Change {
    /// The key, or the key with a count of entries.
    pub key: String,
    /// What the model had, shortened; none if nothing.
    pub from: Option<String>,
    /// What it has now, shortened; none if nothing.
    pub to: Option<String>,
}

/// What [`transplant`] did.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Transplant {
    /// What changed.
    pub changes: Vec<Change>,
    /// Keys of the chat model that were left alone, because llama.cpp would refuse them or take
    /// them for nothing.
    pub unusable: Vec<String>,
}

impl Transplant {
    fn set(&mut self, model: &mut Metadata, key: &str, value: Value) {
        if model.get(key) != Some(&value) {
            let (from, to) = (model.get(key).map(Value::summary), Some(value.summary()));
            self.changes.push(Change { key: key.to_owned(), from, to });
            model.set(key, value);
        }
    }
}

/// Gives `model` the chat plumbing of `chat`. A token is the one with its text ([`TokenMap`]),
/// whatever its id.
///
/// Where the chat model has no end, sampling or list of tokens that are never written, `model` has
/// none either: llama.cpp then falls back to the same defaults as it does for the chat model. Not so
/// if the chat model has no tokens at all, nor for templates and other tokens, such as those around
/// gaps to be filled: if the chat model has none, the model keeps its own. Token types are taken where
/// the chat model says *control* or *user-defined*; a token that is special in `model` alone stays
/// so. What texts begin with stays the model's, unless a template of the chat model writes it: a
/// prompt then begins as the chat's does.
pub fn transplant(model: &mut Metadata, chat: &Metadata) -> Transplant {
    let mut done = Transplant::default();
    let map = TokenMap::new(model, chat);
    let to_own = map.as_ref().map(TokenMap::inverted);
    let n_tokens = model.get_strings(TOKENS).map(|t| t.len());
    let chat_has_template = has_template(chat);
    let is_taken = |key: &str| is_plumbing_key(key) && (chat_has_template || !is_template_key(key));
    // A file that says nothing of tokens says nothing of their ends either.
    let chat_has_tokens = chat.get(TOKENS).is_some();
    let is_owned = |key: &str| is_exactly_the_chats(key) || is_template_key(key);
    let is_dropped = |key: &str| is_taken(key) && is_owned(key) && chat_has_tokens && chat.get(key).is_none();
    for (key, value) in model.iter().filter(|(key, _)| is_dropped(key)) {
        done.changes.push(Change { key: key.to_owned(), from: Some(value.summary()), to: None });
    }
    model.retain(|key| !is_dropped(key));
    for (key, value) in chat.iter().filter(|(key, _)| is_taken(key)) {
        let Some(value) = usable(key, value, to_own.as_ref(), n_tokens) else {
            // What batches of training were filled up with says nothing about a conversation.
            done.unusable.extend((key != PADDING).then(|| key.to_owned()));
            continue;
        };
        done.set(model, key, value);
    }
    if templates(chat).any(|(_, source)| source.contains_str("bos_token"))
        && let Some(begin) = chat.get(BEGIN)
    {
        match usable(BEGIN, begin, to_own.as_ref(), n_tokens) {
            Some(begin) => done.set(model, BEGIN, begin),
            None => done.unusable.push(BEGIN.to_owned()),
        }
    }
    // Without tokens of its own the model has no types either.
    if let (Some(types), Some(n)) = (chat.get(TOKEN_TYPE), n_tokens) {
        let n_chat = map.as_ref().map_or(n, TokenMap::n_other);
        match i32s(types).filter(|types| types.len() >= n_chat) {
            Some(types) => {
                let place = |id: usize| match &map {
                    Some(map) => map.find(id as u32).map(|place| place as usize),
                    None => Some(id),
                };
                let types: Vec<Option<i32>> = (0..n).map(|id| types.get(place(id)?).copied()).collect();
                done.changes.extend(transplant_token_types(model, &types));
            }
            None => done.unusable.push(TOKEN_TYPE.to_owned()),
        }
    }
    done
}

/// The value of this key for the model, if llama.cpp takes it: it throws on another type, and
/// ignores an id beyond the vocabulary. `to_own` says where the model has the tokens of the chat
/// model.
fn usable(key: &str, value: &Value, to_own: Option<&TokenMap>, n_tokens: Option<usize>) -> Option<Value> {
    let own = |id: u32| match to_own {
        Some(map) => map.find(id),
        None => n_tokens.is_none_or(|n| (id as usize) < n).then_some(id),
    };
    let is_usable = match (key, value) {
        ("tokenizer.chat_templates", Value::Array(names)) => names.as_strings().is_some(),
        ("tokenizer.chat_templates", _) => false,
        (key, value) if is_template_key(key) => value.as_str().is_some(),
        (key, value) if key.starts_with(SAMPLING) => value.as_array().is_none(),
        (_, Value::U32(id)) if is_id_key(key) => return own(*id).map(Value::U32),
        (SUPPRESSED, Value::Array(ids)) => {
            // llama.cpp reads i32 and ignores what is no token.
            let ids: Option<Vec<u32>> = ids.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect();
            let ids: Vec<i32> = ids?.into_iter().filter_map(own).map(|id| id as i32).collect();
            return (!ids.is_empty()).then(|| Value::Array(Array::from_i32s(&ids)));
        }
        (_, Value::Bool(_)) => !is_id_key(key),
        _ => false,
    };
    is_usable.then(|| value.clone())
}

/// Gives `model` tokens of the chat model, by their ids there, behind its own: texts, types,
/// scores, and the number of tokens where a key says it. They need no merges: llama.cpp finds
/// special tokens by their texts. Returns their new ids, in the order of `ids`; none where a file
/// has no tokens.
pub fn add_tokens(model: &mut Metadata, chat: &Metadata, ids: &[u32]) -> Range<u32> {
    let (Some(own), Some(others)) = (model.get_strings(TOKENS), chat.get_strings(TOKENS)) else { return 0..0 };
    let n_own = own.len();
    let mut texts = own.clone();
    ids.iter().for_each(|&id| texts.push(others.get(id as usize).unwrap_or_default()));
    let n = texts.len();
    model.set(TOKENS, Value::Array(Array::Strings(texts)));

    let number = |key: &str, id: u32| chat.get(key).and_then(|v| v.as_array()?.get(id as usize)?.as_f64());
    let types = model.get(TOKEN_TYPE).and_then(i32s).or_else(|| chat.get(TOKEN_TYPE).map(|_| vec![NORMAL; n_own]));
    if let Some(mut types) = types.filter(|types| types.len() >= n_own) {
        types.truncate(n_own);
        types.extend(ids.iter().map(|&id| number(TOKEN_TYPE, id).map_or(SPECIAL_TYPES[0], |ty| ty as i32)));
        model.set(TOKEN_TYPE, Value::Array(Array::from_i32s(&types)));
    }
    let scores = model.get(SCORES).and_then(|scores| scores.as_array()).filter(|scores| scores.len() >= n_own);
    if let Some(scores) = scores {
        let mut scores: Vec<f32> = scores.iter().take(n_own).map(|v| v.as_f64().unwrap_or(0.0) as f32).collect();
        scores.extend(ids.iter().map(|&id| number(SCORES, id).unwrap_or(0.0) as f32));
        model.set(SCORES, Value::Array(Array::from_f32s(&scores)));
    }
    if let Some(key) = model.architecture().map(|name| format!("{name}.vocab_size"))
        && model.get(&key).is_some()
    {
        model.set(&key, Value::U32(n as u32));
    }
    n_own as u32..n as u32
}

fn i32s(value: &Value) -> Option<Vec<i32>> {
    let number = |v: Value| if let Value::I32(v) = v { Some(v) } else { None };
    value.as_array()?.iter().map(number).collect()
}

/// `chat_types` are those of the model's tokens in the chat model, as far as they are there.
fn transplant_token_types(model: &mut Metadata, chat_types: &[Option<i32>]) -> Option<Change> {
    let Some(mut types) = model.get(TOKEN_TYPE).and_then(i32s) else {
        // llama.cpp takes every token of a file without types for a normal one.
        let types: Vec<i32> = chat_types.iter().map(|ty| ty.unwrap_or(NORMAL)).collect();
        model.set(TOKEN_TYPE, Value::Array(Array::from_i32s(&types)));
        return Some(Change { key: TOKEN_TYPE.to_owned(), from: None, to: Some("those of the chat model".to_owned()) });
    };
    let mut changed = 0;
    for (own, chat) in types.iter_mut().zip(chat_types) {
        if let Some(chat) = chat.filter(|chat| SPECIAL_TYPES.contains(chat) && own != chat) {
            *own = chat;
            changed += 1;
        }
    }
    if changed == 0 {
        return None;
    }
    model.set(TOKEN_TYPE, Value::Array(Array::from_i32s(&types)));
    let (key, to) = (TOKEN_TYPE.to_owned(), Some(format!("{changed} tokens made special")));
    Some(Change { key, from: Some("other types".to_owned()), to })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(pairs: &[(&str, Value)]) -> Metadata {
        let mut m = Metadata::default();
        pairs.iter().for_each(|(k, v)| m.set(k, v.clone()));
        m
    }

    #[test]
    fn takes_what_the_chat_model_has_and_drops_what_it_lacks() {
        let mut model = metadata(&[
            ("tokenizer.ggml.eos_token_id", Value::U32(1)),
            ("tokenizer.ggml.eot_token_id", Value::U32(7)),
            ("tokenizer.ggml.bos_token_id", Value::U32(5)),
            (TOKENS, Value::Array(Array::Strings(["a", "b", "c"].into_iter().collect()))),
            (TOKEN_TYPE, Value::Array(Array::from_i32s(&[1, 3, 1]))),
        ]);
        let chat = metadata(&[
            (TOKENS, Value::Array(Array::Strings(["a", "b", "c"].into_iter().collect()))),
            (TEMPLATE, "{{ messages }}".into()),
            ("tokenizer.chat_template.tool_use", "{{ tools }}".into()),
            ("tokenizer.ggml.eos_token_id", Value::U32(2)),
            ("tokenizer.ggml.bos_token_id", Value::U32(6)),
            (TOKEN_TYPE, Value::Array(Array::from_i32s(&[4, 1, 1]))),
        ]);
        let changes = transplant(&mut model, &chat).changes;
        assert_eq!(model.get_u64("tokenizer.ggml.eos_token_id"), Some(2));
        assert_eq!(model.get("tokenizer.ggml.eot_token_id"), None);
        assert_eq!(model.get_u64("tokenizer.ggml.bos_token_id"), Some(5), "the text vocabulary stays the model's");
        assert!(has_template(&model) && model.get("tokenizer.chat_template.tool_use").is_some());
        assert_eq!(model.get(TOKEN_TYPE), Some(&Value::Array(Array::from_i32s(&[4, 3, 1]))));
        assert_eq!(changes.len(), 5);
        assert_eq!(transplant(&mut model, &chat), Transplant::default(), "a second time changes nothing");
    }

    #[test]
    fn a_prompt_begins_as_the_chats_if_its_template_says_how() {
        let tokens = |texts: [&str; 3]| Value::Array(Array::Strings(texts.into_iter().collect()));
        let model = metadata(&[(TOKENS, tokens(["a", "<s>", "<bos>"])), (BEGIN, Value::U32(1))]);
        for (template, texts, expected) in [
            ("{{ bos_token }}{{ messages }}", ["<bos>", "a", "<s>"], 2),
            ("{{ messages }}", ["<bos>", "a", "<s>"], 1),
            // A token that the model lacks.
            ("{{ bos_token }}", ["<other>", "a", "<s>"], 1),
        ] {
            let chat = metadata(&[(TOKENS, tokens(texts)), (TEMPLATE, template.into()), (BEGIN, Value::U32(0))]);
            let mut model = model.clone();
            let done = transplant(&mut model, &chat);
            assert_eq!(model.get_u64(BEGIN), Some(expected), "{template}");
            assert_eq!(done.unusable.is_empty(), texts[0] != "<other>");
        }
    }

    #[test]
    fn every_key_of_tokens_is_the_chats_by_token_but_those_of_texts() {
        let tokens = |texts: [&str; 3]| Value::Array(Array::Strings(texts.into_iter().collect()));
        let mut model = metadata(&[
            (TOKENS, tokens(["a", "b", "c"])),
            ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
            ("tokenizer.ggml.fim_pre_token_id", Value::U32(0)),
            ("tokenizer.ggml.fim_sep_token_id", Value::U32(2)),
            (SUPPRESSED, Value::Array(Array::from_i32s(&[0]))),
        ]);
        let mut chat = metadata(&[
            (TOKENS, tokens(["c", "a", "new"])),
            ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
            ("tokenizer.ggml.fim_pre_token_id", Value::U32(0)),
            ("tokenizer.ggml.later_token_id", Value::U32(1)),
            ("tokenizer.ggml.mask_token_id", Value::U32(1)),
            (SUPPRESSED, Value::Array(Array::from_i32s(&[1, 2, 0]))),
        ]);
        assert_eq!(transplant(&mut model, &chat).unusable, Vec::<String>::new());
        let id = |model: &Metadata, word: &str| model.get_u64(&format!("tokenizer.ggml.{word}_token_id"));
        assert_eq!(
            ["unknown", "fim_pre", "fim_sep", "later", "mask"].map(|word| id(&model, word)),
            [Some(0), Some(2), Some(2), Some(0), None]
        );
        assert_eq!(model.get(SUPPRESSED), Some(&Value::Array(Array::from_i32s(&[0, 2]))));
        chat.retain(|key| key != SUPPRESSED);
        transplant(&mut model, &chat);
        assert_eq!(model.get(SUPPRESSED), None);
    }

    #[test]
    fn recommended_sampling_is_the_chats() {
        let tokens = Value::Array(Array::Strings(["a"].into_iter().collect()));
        let mut model = metadata(&[
            (TOKENS, tokens.clone()),
            ("general.sampling.temp", Value::F32(1.0)),
            ("general.sampling.top_k", Value::I32(40)),
        ]);
        let chat = metadata(&[
            (TOKENS, tokens),
            ("general.sampling.temp", Value::F32(0.6)),
            ("general.sampling.min_p", Value::F32(0.0)),
        ]);
        transplant(&mut model, &chat);
        let found: Vec<&str> = model.iter().map(|(key, _)| key).filter(|key| key.starts_with(SAMPLING)).collect();
        assert_eq!(found, ["general.sampling.temp", "general.sampling.min_p"]);
        assert_eq!(model.get("general.sampling.temp"), Some(&Value::F32(0.6)));
    }

    #[test]
    fn a_model_keeps_its_template_if_chat_has_none() {
        let mut model = metadata(&[(TEMPLATE, "{{ messages }}".into())]);
        assert_eq!(transplant(&mut model, &Metadata::default()), Transplant::default());
        assert!(has_template(&model));
    }

    #[test]
    fn values_that_llama_cpp_would_refuse_are_left_alone() {
        let tokens = Value::Array(Array::Strings(["a", "b"].into_iter().collect()));
        let mut model = metadata(&[(TOKENS, tokens), ("tokenizer.ggml.eos_token_id", Value::U32(1))]);
        let chat = metadata(&[
            ("tokenizer.ggml.eos_token_id", "b".into()),
            ("tokenizer.ggml.eot_token_id", Value::U32(2)),
            ("tokenizer.ggml.add_bos_token", Value::U32(1)),
            (TOKEN_TYPE, Value::Array(Array::from_i32s(&[3]))),
        ]);
        let before = model.clone();
        let done = transplant(&mut model, &chat);
        assert_eq!((done.changes.len(), done.unusable.len()), (0, 4));
        assert_eq!(model, before);
    }
}
