//! The keys that make llama.cpp talk like a chat model, and moving them.
//!
//! llama.cpp ends a generation at `eos`, `eot` and `eom` and at tokens with well-known texts, renders the prompt with
//! `tokenizer.chat_template`, and parses a special token in the prompt only if its type says it is one
//! (src/llama-vocab.cpp, common/chat.cpp).

use bstr::ByteSlice;

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
const SPECIAL_TYPES: [i64; 2] = [3, 4];

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

/// Gives `model` the chat plumbing of `chat`; both have the same tokens in the same order.
///
/// A key the chat model does not have is dropped from `model` too: llama.cpp then falls back to the same defaults as it
/// does for the chat model. Templates are the exception: if the chat model has none, the model keeps its own. Token types are taken where the chat model says *control* or *user-defined*; a token that is
/// special in `model` alone stays so.
pub fn transplant(model: &mut Metadata, chat: &Metadata) -> Vec<Change> {
    let mut changes = Vec::new();
    let chat_has_template = has_template(chat);
    let is_taken = |key: &str| is_plumbing_key(key) && (chat_has_template || !is_template_key(key));
    let is_dropped = |key: &str| is_taken(key) && chat.get(key).is_none();
    for (key, value) in model.iter().filter(|(key, _)| is_dropped(key)) {
        changes.push(Change { key: key.to_owned(), from: Some(shorten(value)), to: None });
    }
    model.retain(|key| !is_dropped(key));
    for (key, value) in chat.iter().filter(|(key, _)| is_taken(key)) {
        if model.get(key) != Some(value) {
            changes.push(Change { key: key.to_owned(), from: model.get(key).map(shorten), to: Some(shorten(value)) });
            model.set(key, value.clone());
        }
    }
    changes.extend(transplant_token_types(model, chat));
    changes
}

fn transplant_token_types(model: &mut Metadata, chat: &Metadata) -> Option<Change> {
    let chat_types = chat.get(TOKEN_TYPE)?.as_array()?;
    let Some(model_types) = model.get(TOKEN_TYPE).and_then(Value::as_array) else {
        // llama.cpp takes every token of a file without types for a normal one.
        model.get(TOKENS)?;
        model.set(TOKEN_TYPE, Value::Array(chat_types.clone()));
        return Some(Change { key: TOKEN_TYPE.to_owned(), from: None, to: Some("those of the chat model".to_owned()) });
    };
    let as_i64 = |v: Option<Value>| v.and_then(|v| v.as_f64()).map(|v| v as i64);
    let mut types: Vec<i32> = Vec::with_capacity(model_types.len());
    let mut changed = 0;
    for i in 0..model_types.len() {
        let own = as_i64(model_types.get(i)).unwrap_or(1);
        let wanted = as_i64(chat_types.get(i)).filter(|t| SPECIAL_TYPES.contains(t)).unwrap_or(own);
        changed += usize::from(own != wanted);
        types.push(wanted as i32);
    }
    if changed == 0 {
        return None;
    }
    model.set(TOKEN_TYPE, Value::Array(Array::from_i32s(&types)));
    let (key, to) = (TOKEN_TYPE.to_owned(), Some(format!("{changed} tokens made special")));
    Some(Change { key, from: Some("other types".to_owned()), to })
}

fn shorten(value: &Value) -> String {
    match value {
        Value::String(s) => {
            let text: String = s.to_str_lossy().chars().take(40).collect();
            if text.len() < s.len() { format!("{text:?}… ({} bytes)", s.len()) } else { format!("{text:?}") }
        }
        Value::Array(a) => format!("{} entries", a.len()),
        Value::Bool(b) => (*b != 0).to_string(),
        other => other.as_f64().map_or_else(String::new, |v| v.to_string()),
    }
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
            (TOKENS, Value::Array(Array::Strings(["a", "b"].into_iter().collect()))),
            (TOKEN_TYPE, Value::Array(Array::from_i32s(&[1, 3]))),
        ]);
        let chat = metadata(&[
            (TEMPLATE, "{{ messages }}".into()),
            ("tokenizer.chat_template.tool_use", "{{ tools }}".into()),
            ("tokenizer.ggml.eos_token_id", Value::U32(2)),
            ("tokenizer.ggml.bos_token_id", Value::U32(6)),
            (TOKEN_TYPE, Value::Array(Array::from_i32s(&[4, 1]))),
        ]);
        let changes = transplant(&mut model, &chat);
        assert_eq!(model.get_u64("tokenizer.ggml.eos_token_id"), Some(2));
        assert_eq!(model.get("tokenizer.ggml.eot_token_id"), None);
        assert_eq!(model.get_u64("tokenizer.ggml.bos_token_id"), Some(5), "the text vocabulary stays the model's");
        assert!(has_template(&model) && model.get("tokenizer.chat_template.tool_use").is_some());
        assert_eq!(model.get(TOKEN_TYPE), Some(&Value::Array(Array::from_i32s(&[4, 3]))));
        assert_eq!(changes.len(), 5);
        assert_eq!(transplant(&mut model, &chat), [], "a second time changes nothing");
    }

    #[test]
    fn a_model_keeps_its_template_if_chat_has_none() {
        let mut model = metadata(&[(TEMPLATE, "{{ messages }}".into())]);
        assert_eq!(transplant(&mut model, &Metadata::default()), []);
        assert!(has_template(&model));
    }
}
