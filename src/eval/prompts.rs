//! Prompts and what is expected of their answers: the set that comes with the crate, and files of
//! JSON lines.
//!
//! The format is described in `docs/PROMPTS.md`.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Language, UnknownLanguage};
use crate::chat::Message;

/// The largest prompt file, in bytes.
pub const MAX_FILE: u64 = 64 << 20;
/// The longest line of one, in bytes.
pub const MAX_LINE: usize = 1 << 20;
/// The most prompts a set has.
pub const MAX_PROMPTS: usize = 100_000;
/// The most turns a prompt has: each costs an answer of the model.
pub const MAX_TURNS: usize = 64;

/// The fields of one line. `sub` and `held_out` are read past: files of training data have them.
const FIELDS: [&str; 14] = [
    "id", "language", "lang", "kind", "messages", "prompt", "rendered", "chatml", "exact", "answer", "keywords", "key",
    "refusal", "note",
];
const READ_PAST: [&str; 2] = ["sub", "held_out"];

/// What a prompt asks for, which decides how its answer is judged.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// Something to do or to explain: any sensible answer is right.
    Instruction,
    /// Something that has a right answer.
    Knowledge,
    /// Something said in an earlier turn.
    Memory,
    /// Something that a chat model refuses.
    Unsafe,
    /// Another kind, counted by its own name and judged like [`Kind::Knowledge`].
    Other(String),
}

impl Kind {
    fn parse(name: &str) -> Self {
        match name {
            "instruction" => Self::Instruction,
            "knowledge" => Self::Knowledge,
            "memory" => Self::Memory,
            "unsafe" => Self::Unsafe,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Its name in files and reports.
    pub fn name(&self) -> &str {
        match self {
            Self::Instruction => "instruction",
            Self::Knowledge => "knowledge",
            Self::Memory => "memory",
            Self::Unsafe => "unsafe",
            Self::Other(name) => name,
        }
    }
}

impl Serialize for Kind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// One prompt and what is expected of the answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Prompt {
    /// Its name, one of its kind in a set.
    pub id: String,
    /// The language it is written in and to be answered in.
    pub language: Option<Language>,
    /// What it asks for.
    pub kind: Kind,
    /// The conversation. The model answers each user message that no assistant message follows; the
    /// last is one.
    pub messages: Vec<Message>,
    /// The conversation as tokens are to be made of it, for models without a chat template. Only
    /// with a single answer.
    pub rendered: Option<String>,
    /// Whole answers that are right, any one of them.
    pub exact: Vec<String>,
    /// Words of a right answer, any one of them. At the end of one, `*` stands for any ending of a
    /// word.
    pub keywords: Vec<String>,
    /// Phrases that refuse, besides those known for every language. Only of [`Kind::Unsafe`].
    pub refusal: Vec<String>,
}

impl Prompt {
    /// Places of the messages that the model answers, in order; never empty in a set.
    pub fn answered(&self) -> impl Iterator<Item = usize> + '_ {
        let is_given = |at: usize| self.messages.get(at + 1).is_some_and(|next| next.role == "assistant");
        (0..self.messages.len()).filter(move |&at| self.messages[at].role == "user" && !is_given(at))
    }
}

/// Prompts in the order of their file.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct PromptSet {
    /// The prompts.
    pub prompts: Vec<Prompt>,
}

/// Why a prompt file is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PromptError {
    /// The file cannot be read.
    #[error("{}: cannot read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// More than a set may be.
    #[error("{name}: {what} exceeds the limit of {limit}")]
    TooLarge {
        /// The file.
        name: String,
        /// What exceeds.
        what: String,
        /// What there may be.
        limit: u64,
    },
    /// No prompt in it.
    #[error("{name}: no prompts")]
    Empty {
        /// The file.
        name: String,
    },
    /// A line that is no prompt.
    #[error("{name}, line {line}: {problem}")]
    Line {
        /// The file.
        name: String,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: LineProblem,
    },
}

/// What is wrong with one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LineProblem {
    /// Not UTF-8, not JSON, or a value of another type than the field's.
    #[error("column {column}: {reason}")]
    Json {
        /// Where, in bytes counted from 1.
        column: usize,
        /// What the JSON reader says.
        reason: String,
    },
    /// Not an object.
    #[error("expected a JSON object")]
    NotAnObject,
    /// A field that the format does not have, so that a misspelt one is not lost.
    #[error("unknown field `{field}`; known are {}", FIELDS.join(", "))]
    UnknownField {
        /// Its name.
        field: String,
    },
    /// A field or its value is wrong.
    #[error("field `{field}`: {reason}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What is expected.
        reason: String,
    },
}

fn field(field: &'static str, reason: impl Into<String>) -> LineProblem {
    LineProblem::Field { field, reason: reason.into() }
}

impl From<serde_json::Error> for LineProblem {
    fn from(error: serde_json::Error) -> Self {
        let reason = error.to_string();
        // Its line is that of the JSON text, always the first.
        let reason = reason.rsplit_once(" at line ").map_or(reason.as_str(), |(reason, _)| reason).to_owned();
        Self::Json { column: error.column(), reason }
    }
}

impl From<UnknownLanguage> for LineProblem {
    fn from(error: UnknownLanguage) -> Self {
        field("language", format!("{error}; without the field, the answers' language is not judged"))
    }
}

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

impl PromptSet {
    /// The set that comes with the crate: instruction, knowledge, memory and an unsafe request in
    /// each of its languages, or in those of them that are among these.
    pub fn builtin(languages: Option<&[Language]>) -> Self {
        let set = Self::parse(include_str!("builtin.jsonl"), "built-in prompts");
        let mut set = set.expect("a test parses the same text");
        if let Some(languages) = languages {
            set.prompts.retain(|p| p.language.is_some_and(|l| languages.contains(&l)));
        }
        set
    }

    /// Reads a file of JSON lines.
    pub fn load(path: &Path) -> Result<Self, PromptError> {
        let io = |source| PromptError::Io { path: path.to_owned(), source };
        let name = path.display().to_string();
        let mut bytes = Vec::new();
        File::open(path).map_err(io)?.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(io)?;
        Self::parse_bytes(&bytes, &name)
    }

    /// Reads JSON lines; `name` is what messages call them.
    pub fn parse(jsonl: &str, name: &str) -> Result<Self, PromptError> {
        Self::parse_bytes(jsonl.as_bytes(), name)
    }

    fn parse_bytes(bytes: &[u8], name: &str) -> Result<Self, PromptError> {
        let too_large = |what: String, limit: u64| PromptError::TooLarge { name: name.to_owned(), what, limit };
        if bytes.len() as u64 > MAX_FILE {
            return Err(too_large("its size in bytes".to_owned(), MAX_FILE));
        }
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut prompts: Vec<Prompt> = Vec::new();
        let mut ids = HashSet::new();
        for (at, line) in bytes.split(|b| *b == b'\n').enumerate() {
            if line.len() > MAX_LINE {
                return Err(too_large(format!("the length of line {}", at + 1), MAX_LINE as u64));
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            if prompts.len() == MAX_PROMPTS {
                return Err(too_large("the number of prompts".to_owned(), MAX_PROMPTS as u64));
            }
            let prompt = parse_line(line).and_then(|prompt| match ids.insert(prompt.id.clone()) {
                true => Ok(prompt),
                false => Err(field("id", format!("`{}` is an earlier line's too", prompt.id))),
            });
            let problem = |problem| PromptError::Line { name: name.to_owned(), line: at + 1, problem };
            prompts.push(prompt.map_err(problem)?);
        }
        if prompts.is_empty() {
            return Err(PromptError::Empty { name: name.to_owned() });
        }
        Ok(Self { prompts })
    }

    /// Languages that its prompts are in, in the order of their codes.
    pub fn languages(&self) -> Vec<Language> {
        let mut languages: Vec<Language> = self.prompts.iter().filter_map(|p| p.language).collect();
        languages.sort_by_key(|l| l.code());
        languages.dedup();
        languages
    }
}

fn parse_line(line: &[u8]) -> Result<Prompt, LineProblem> {
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
