//! The keys that make llama.cpp talk like a chat model, and moving them.
//!
//! llama.cpp ends a generation at `eos`, `eot` and `eom` and at tokens with well-known texts, renders the prompt with
//! `tokenizer.chat_template`, and parses a special token in the prompt only if its type says it is one
//! (src/llama-vocab.cpp, common/chat.cpp).

use super::{TOKEN_TYPE, TOKENS};
use crate::gguf::{Array, Metadata, Value};

const TEMPLATE: &str = "tokenizer.chat_template";

/// Keys taken from the chat model as they are, besides the templates.
const KEYS: [&str; 5] = [
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
];

/// `LLAMA_TOKEN_TYPE_CONTROL` and `LLAMA_TOKEN_TYPE_USER_DEFINED`: what a template is made of.
const SPECIAL_TYPES: [i32; 2] = [3, 4];

/// Whether a key is chat plumbing that [`transplant`] takes from the chat model.
pub fn is_plumbing_key(key: &str) -> bool {
    KEYS.contains(&key) || is_template_key(key)
}

/// The template, its variants (`tokenizer.chat_template.NAME`) and the list of their names.
fn is_template_key(key: &str) -> bool {
    key == TEMPLATE
        || key == "tokenizer.chat_templates"
        || key.strip_prefix(TEMPLATE).is_some_and(|rest| rest.starts_with('.'))
}

/// Whether the metadata carry a chat template that says something.
pub fn has_template(metadata: &Metadata) -> bool {
    metadata.get_str(TEMPLATE).is_some_and(|t| !t.trim_ascii().is_empty())
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
    /// Keys of the chat model that were left alone, because llama.cpp would refuse them or take them for nothing.
    pub unusable: Vec<String>,
}

/// Gives `model` the chat plumbing of `chat`; both have the same tokens in the same order.
///
/// A key the chat model does not have is dropped from `model` too: llama.cpp then falls back to the same defaults as it
/// does for the chat model. Not so if the chat model has no tokens at all, nor for templates: if the chat model has none,
/// the model keeps its own. Token types
/// are taken where the chat model says *control* or *user-defined*; a token that is special in `model` alone stays so.
pub fn transplant(model: &mut Metadata, chat: &Metadata) -> Transplant {
    let mut done = Transplant::default();
    let n_tokens = model.get_strings(TOKENS).map(|t| t.len());
    let chat_has_template = has_template(chat);
    let is_taken = |key: &str| is_plumbing_key(key) && (chat_has_template || !is_template_key(key));
    // A file that says nothing of tokens says nothing of their ends either.
    let chat_has_tokens = chat.get(TOKENS).is_some();
    let is_dropped = |key: &str| is_taken(key) && chat_has_tokens && chat.get(key).is_none();
    for (key, value) in model.iter().filter(|(key, _)| is_dropped(key)) {
        done.changes.push(Change { key: key.to_owned(), from: Some(value.summary()), to: None });
    }
    model.retain(|key| !is_dropped(key));
    for (key, value) in chat.iter().filter(|(key, _)| is_taken(key)) {
        if !is_usable(key, value, n_tokens) {
            done.unusable.push(key.to_owned());
        } else if model.get(key) != Some(value) {
            let (from, to) = (model.get(key).map(Value::summary), Some(value.summary()));
            done.changes.push(Change { key: key.to_owned(), from, to });
            model.set(key, value.clone());
        }
    }
    // Without tokens of its own the model has no types either.
    if let (Some(types), Some(n)) = (chat.get(TOKEN_TYPE), n_tokens) {
        match i32s(types).filter(|types| types.len() >= n) {
            Some(types) => done.changes.extend(transplant_token_types(model, &types[..n])),
            None => done.unusable.push(TOKEN_TYPE.to_owned()),
        }
    }
    done
}

/// Whether llama.cpp takes this value for this key: it throws on another type, and ignores an id beyond the vocabulary.
fn is_usable(key: &str, value: &Value, n_tokens: Option<usize>) -> bool {
    match (key, value) {
        ("tokenizer.chat_templates", Value::Array(names)) => names.as_strings().is_some(),
        ("tokenizer.chat_templates", _) => false,
        (key, value) if is_template_key(key) => value.as_str().is_some(),
        (_, Value::U32(id)) if key.ends_with("_id") => n_tokens.is_none_or(|n| (*id as usize) < n),
        (_, Value::Bool(_)) => !key.ends_with("_id"),
        _ => false,
    }
}

fn i32s(value: &Value) -> Option<Vec<i32>> {
    let number = |v: Value| if let Value::I32(v) = v { Some(v) } else { None };
    value.as_array()?.iter().map(number).collect()
}

fn transplant_token_types(model: &mut Metadata, chat_types: &[i32]) -> Option<Change> {
    let Some(mut types) = model.get(TOKEN_TYPE).and_then(i32s) else {
        // llama.cpp takes every token of a file without types for a normal one.
        model.set(TOKEN_TYPE, Value::Array(Array::from_i32s(chat_types)));
        return Some(Change { key: TOKEN_TYPE.to_owned(), from: None, to: Some("those of the chat model".to_owned()) });
    };
    let mut changed = 0;
    for (own, chat) in types.iter_mut().zip(chat_types) {
        if SPECIAL_TYPES.contains(chat) && own != chat {
            *own = *chat;
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
