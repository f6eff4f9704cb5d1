//! What the metadata says about talking: template, end-of-generation tokens, special tokens.
//!
//! A merge moves these from the chat model into the continual-pretrained one, because that is what
//! they belong to: the vector teaches the model to end its answers with the chat model's end token,
//! inside the chat model's template. Everything about the text vocabulary stays the
//! continual-pretrained model's.

pub mod dialect;
mod error;
mod needed;
mod plumbing;
mod prompt;
mod renames;
mod shown;
mod template;
mod token_map;
mod tokenizer;

pub use error::Error;
pub use needed::{MAX_RENDERED, SpecialIds, Unrendered, special_ids};
pub use plumbing::{
    Change, SAMPLING, Transplant, add_tokens, end_ids, end_text, has_template, is_plumbing_key, templates, transplant,
};
pub use prompt::{PromptsDiffer, prompts_differ};
pub use renames::{Rename, rename, renamed_vocabulary, renames, renames_between};
pub use shown::shown_token;
pub use template::{
    Conversation, MAX_SOURCE_BYTES, Message, RenderAs, RenderOptions, Template, TemplateError, TemplateRequest,
    TemplateRunner, Templates, max_output_bytes,
};
pub use token_map::TokenMap;
pub use tokenizer::{StreamDecoder, TokenKind, Tokenizer};

/// `tokenizer.chat_template`: the template that is used where none is named; others have `.NAME`
/// behind it.
pub const TEMPLATE: &str = "tokenizer.chat_template";
/// `tokenizer.ggml.tokens`: the vocabulary as text.
pub const TOKENS: &str = "tokenizer.ggml.tokens";
/// `tokenizer.ggml.token_type`: one number a token (llama.h, `llama_token_type`).
pub const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
