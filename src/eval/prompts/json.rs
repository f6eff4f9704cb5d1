//! Prompts as JSON, one object a line.

use serde::Deserialize;

use super::error::{LineProblem, field};
use super::{Kind, MAX_TURNS, Prompt};
use crate::chat::Message;
use crate::eval::Language;

/// The fields of one line. `sub` and `held_out` are read past: files of training data have them.
pub(super) const FIELDS: [&str; 14] = [
    "id", "language", "lang", "kind", "messages", "prompt", "rendered", "chatml", "exact", "answer", "keywords", "key",
    "refusal", "note",
];
const READ_PAST: [&str; 2] = ["sub", "held_out"];

/// One text or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Several(Vec<String>),
}

impl Texts {
    fn list(texts: Option<Self>) -> Vec<String> {
        match texts {
            None => Vec::new(),
            Some(Self::One(text)) => vec![text],
            Some(Self::Several(texts)) => texts,
        }
    }
}

/// One line as it is written. Two names of one field are two spellings of it; serde refuses both at
/// once.
#[derive(Deserialize)]
struct Line {
    id: String,
    #[serde(alias = "lang")]
    language: Option<String>,
    kind: String,
    messages: Option<Vec<Message>>,
    prompt: Option<String>,
    #[serde(alias = "chatml")]
    rendered: Option<String>,
    #[serde(alias = "answer")]
    exact: Option<Texts>,
    #[serde(alias = "key")]
    keywords: Option<Texts>,
    refusal: Option<Texts>,
}

/// Reads one line.
pub(super) fn parse(line: &[u8]) -> Result<Prompt, LineProblem> {
    let json: serde_json::Value = serde_json::from_slice(line)?;
    let object = json.as_object().ok_or(LineProblem::NotAnObject)?;
    let is_known = |name: &str| FIELDS.contains(&name) || READ_PAST.contains(&name);
    if let Some(unknown) = object.keys().find(|name| !is_known(name)) {
        return Err(LineProblem::UnknownField { field: unknown.clone() });
    }
    // From the text again: a value has already lost a field that occurs twice.
    let line: Line = serde_json::from_slice(line)?;
    let language = line.language.as_deref().map(Language::parse).transpose()?;
    if line.id.is_empty() || line.kind.is_empty() {
        return Err(field(if line.id.is_empty() { "id" } else { "kind" }, "may not be empty"));
    }
    let messages = match (line.messages, line.prompt) {
        (Some(messages), None) => messages,
        (None, Some(content)) => vec![Message { role: "user".to_owned(), content }],
        _ => return Err(field("messages", "expected either `messages` or `prompt`")),
    };
    let mut prompt = Prompt {
        id: line.id,
        language,
        kind: Kind::parse(&line.kind),
        messages,
        rendered: line.rendered,
        exact: Texts::list(line.exact),
        keywords: Texts::list(line.keywords),
        refusal: Texts::list(line.refusal),
    };
    check_messages(&prompt)?;
    check_expected(&mut prompt)?;
    Ok(prompt)
}

fn check_messages(prompt: &Prompt) -> Result<(), LineProblem> {
    let messages = &prompt.messages;
    if messages.len() > MAX_TURNS {
        return Err(field("messages", format!("{} of them, of {MAX_TURNS} at most", messages.len())));
    }
    for (at, turn) in messages.iter().enumerate() {
        let follows_user = at > 0 && messages[at - 1].role == "user";
        match turn.role.as_str() {
            "user" => {}
            "system" if at == 0 => {}
            "assistant" if follows_user => {}
            "system" => return Err(field("messages", "`system` may only be the first")),
            "assistant" => return Err(field("messages", "`assistant` may only follow `user`")),
            role => return Err(field("messages", format!("role `{role}`: expected system, user or assistant"))),
        }
    }
    if messages.last().is_none_or(|last| last.role != "user") {
        return Err(field("messages", "the last must be the user's"));
    }
    if messages.iter().any(|turn| turn.content.trim().is_empty()) {
        return Err(field("messages", "`content` may not be blank"));
    }
    let n_answers = prompt.answered().count();
    if prompt.rendered.is_some() && n_answers > 1 {
        return Err(field("rendered", format!("stands for one answer, and there are {n_answers}")));
    }
    Ok(())
}

fn check_expected(prompt: &mut Prompt) -> Result<(), LineProblem> {
    let is_blank = |texts: &[String]| texts.iter().any(|text| text.trim_matches(['*', ' ']).is_empty());
    for (name, texts) in [("exact", &prompt.exact), ("keywords", &prompt.keywords), ("refusal", &prompt.refusal)] {
        if is_blank(texts) {
            return Err(field(name, "an empty text would be found in every answer"));
        }
    }
    if prompt.kind == Kind::Unsafe {
        // The right answer to these is a refusal, and its key words are the phrase that tells one.
        prompt.exact.clear();
        prompt.refusal.append(&mut prompt.keywords);
    } else if !prompt.refusal.is_empty() {
        return Err(field("refusal", "only of the kind `unsafe`"));
    }
    if prompt.kind == Kind::Memory && prompt.keywords.is_empty() {
        return Err(field("keywords", "the kind `memory` needs them"));
    }
    Ok(())
}
