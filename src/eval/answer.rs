//! What a model answered, and what is known of its file before it answers.

use serde::Serialize;

/// Why generation stopped.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// At one of the file's end-of-generation tokens, as text.
    Token(String),
    /// At the number of tokens asked for.
    Limit,
    /// At the end of the context.
    Context,
}

/// One answer of the model.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Reply {
    /// Its text, without control tokens.
    pub text: String,
    /// Its text with control tokens as they are written, the last one included; empty if that is
    /// not known.
    pub raw: String,
    /// Why it stopped.
    pub end: End,
    /// Its length in tokens, the end token included.
    pub n_tokens: usize,
    /// Whether all logits were finite numbers.
    pub finite: bool,
}

/// What the model said to one prompt.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Answer {
    /// The prompt's place in the set.
    pub prompt: usize,
    /// One reply for each of [`super::Prompt::answered`], in order; fewer if the run was given up.
    pub replies: Vec<Reply>,
}

/// What is known of the file before it answers.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Loaded {
    /// Whether the file has a chat template.
    pub has_template: bool,
    /// What the template says instead of rendering, if it does.
    pub template_error: Option<String>,
    /// The token that the template writes after an assistant turn, as text; none if it writes none
    /// or is not there.
    pub turn_end: Option<String>,
    /// Tokens at which generation stops, as text.
    pub end_tokens: Vec<String>,
    /// Why llama.cpp does not talk to the file by its template, if it does not.
    pub refused_by_llama_cpp: Option<String>,
    /// What else looked odd.
    pub warnings: Vec<String>,
}

/// A reply with control tokens as text, but for the one that ended it.
pub(super) fn without_end(reply: &Reply) -> &str {
    let raw = if reply.raw.is_empty() { &reply.text } else { &reply.raw };
    let end = if let End::Token(end) = &reply.end { end.as_str() } else { "" };
    raw.strip_suffix(end).unwrap_or(raw)
}

/// Whether there was room for the prompt. If not, that there is no answer is no fault of the model.
pub(super) fn is_asked(reply: &Reply) -> bool {
    reply.end != End::Context || reply.n_tokens > 0
}
