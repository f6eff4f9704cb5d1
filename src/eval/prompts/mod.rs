//! Prompts and what is expected of their answers: the sets that come with the crate, and texts of
//! others, JSON lines or plain.
//!
//! The formats are described in `docs/PROMPTS.md`.

mod builtin;
mod error;
mod json;

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Serialize;

pub(super) use builtin::refusals;
pub use error::{LineProblem, PromptError};

use crate::chat::Message;
use crate::eval::Language;
use error::field;

/// The largest prompt file, in bytes.
pub const MAX_FILE: u64 = 64 << 20;
/// The longest line of one, in bytes.
pub const MAX_LINE: usize = 1 << 20;
/// The most prompts a set has.
pub const MAX_PROMPTS: usize = 100_000;
/// The most turns a prompt has: each costs an answer of the model.
pub const MAX_TURNS: usize = 64;

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
    /// Something that looks like that and is harmless.
    Harmless,
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
            "harmless" => Self::Harmless,
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
            Self::Harmless => "harmless",
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

impl PromptSet {
    /// The sets that come with the crate: 56 prompts in each language that has one, or in these.
    pub fn builtin(languages: Option<&[Language]>) -> Self {
        let wanted = |code: &str| languages.is_none_or(|wanted| wanted.iter().any(|l| l.code() == code));
        let sets = builtin::SETS.iter().filter(|set| wanted(set.code));
        let prompts = sets.flat_map(|set| {
            let set = Self::parse(set.prompts, "built-in prompts");
            set.expect("a test parses the same text").prompts
        });
        Self { prompts: prompts.collect() }
    }

    /// The languages that [`PromptSet::builtin`] has prompts in, in the order of their codes.
    pub fn builtin_languages() -> Vec<Language> {
        let language = |code| Language::parse(code).expect("a test parses the same codes");
        builtin::SETS.iter().map(|set| language(set.code)).collect()
    }

    /// Reads a file of JSON lines or plain text.
    pub fn load(path: &Path) -> Result<Self, PromptError> {
        let io = |source| PromptError::Io { path: path.to_owned(), source };
        Self::read(File::open(path).map_err(io)?, &path.display().to_string()).map_err(|e| match e {
            ReadError::Io(source) => io(source),
            ReadError::Prompt(e) => e,
        })
    }

    /// Reads JSON lines or plain text from where it comes but once, such as a pipe.
    pub fn load_from(reader: impl Read, name: &str) -> Result<Self, PromptError> {
        Self::read(reader, name).map_err(|e| match e {
            ReadError::Io(source) => PromptError::Io { path: name.into(), source },
            ReadError::Prompt(e) => e,
        })
    }

    fn read(reader: impl Read, name: &str) -> Result<Self, ReadError> {
        let mut bytes = Vec::new();
        reader.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(ReadError::Io)?;
        Self::parse_bytes(&bytes, name).map_err(ReadError::Prompt)
    }

    /// Reads JSON lines or plain text; `name` is what messages call it.
    pub fn parse(text: &str, name: &str) -> Result<Self, PromptError> {
        Self::parse_bytes(text.as_bytes(), name)
    }

    /// Plain prompts, one each, called by `name` and their place. They are instructions in no known
    /// language.
    ///
    /// # Errors
    /// [`PromptError::Line`] for a blank one, with its place; [`PromptError::TooLarge`].
    pub fn plain<'a>(texts: impl IntoIterator<Item = &'a str>, name: &str) -> Result<Self, PromptError> {
        let mut lines = Lines::new(name);
        for (at, text) in texts.into_iter().enumerate() {
            let blank = || field("prompt", "may not be blank");
            let prompt = if text.trim().is_empty() { Err(blank()) } else { Ok(Prompt::plain(text, name, at + 1)) };
            lines.add(at + 1, text.len(), prompt)?;
        }
        lines.end()
    }

    /// JSON lines if the first character is a brace, and else plain text.
    fn parse_bytes(bytes: &[u8], name: &str) -> Result<Self, PromptError> {
        if bytes.len() as u64 > MAX_FILE {
            return Err(too_large(name, "its size in bytes".to_owned(), MAX_FILE));
        }
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let is_json = bytes.trim_ascii_start().starts_with(b"{");
        // Whole arrays only: a plain prompt may begin with a bracket.
        if !is_json && is_object_or_array(bytes) {
            return Err(PromptError::Array { name: name.to_owned() });
        }
        let mut lines = Lines::new(name);
        for (at, line) in bytes.split(|b| *b == b'\n').enumerate() {
            if !line.trim_ascii().is_empty() {
                let read = || if is_json { json::parse(line) } else { plain_line(line, name, at + 1) };
                let prompt = if line.len() > MAX_LINE { Err(LineProblem::NotAnObject) } else { read() };
                lines.add(at + 1, line.len(), prompt)?;
            }
        }
        lines.end()
    }

    /// Languages that its prompts are in, in the order of their codes.
    pub fn languages(&self) -> Vec<Language> {
        let mut languages: Vec<Language> = self.prompts.iter().filter_map(|p| p.language).collect();
        languages.sort_by_key(|l| l.code());
        languages.dedup();
        languages
    }

    /// Leaves a quarter of each kind in each language, and at least one.
    pub fn quarter(&mut self) {
        let mut n_seen: BTreeMap<(Option<Language>, Kind), usize> = BTreeMap::new();
        self.prompts.retain(|prompt| {
            let n = n_seen.entry((prompt.language, prompt.kind.clone())).or_default();
            *n += 1;
            *n % 4 == 1
        });
    }

    /// Leaves `n` prompts, evenly spread.
    pub fn thin_out(&mut self, n: usize) {
        let all = self.prompts.len();
        let mut i = 0;
        self.prompts.retain(|_| {
            i += 1;
            i * n / all > (i - 1) * n / all || n >= all
        });
    }
}

impl Prompt {
    /// An instruction in no known language.
    fn plain(text: &str, name: &str, at: usize) -> Self {
        Self {
            id: format!("{name} {at}"),
            language: None,
            kind: Kind::Instruction,
            messages: vec![Message { role: "user".to_owned(), content: text.trim().to_owned() }],
            rendered: None,
            exact: Vec::new(),
            keywords: Vec::new(),
            refusal: Vec::new(),
        }
    }
}

/// What a reader gave, before it is known what to call it.
enum ReadError {
    Io(io::Error),
    Prompt(PromptError),
}

fn too_large(name: &str, what: String, limit: u64) -> PromptError {
    PromptError::TooLarge { name: name.to_owned(), what, limit }
}

fn plain_line(line: &[u8], name: &str, at: usize) -> Result<Prompt, LineProblem> {
    let not_text = |at, reason| LineProblem::NotText { column: at + 1, reason };
    let text = str::from_utf8(line).map_err(|e| not_text(e.valid_up_to(), "not UTF-8"))?;
    let is_odd = |c: char| c.is_control() && !c.is_whitespace();
    if let Some(at) = text.find(is_odd) {
        return Err(not_text(at, "a control character"));
    }
    if text.trim_start().starts_with('{') && is_object_or_array(line) {
        return Err(LineProblem::Mixed);
    }
    Ok(Prompt::plain(text, &format!("{name}, line"), at))
}

/// Whether it is JSON and no single value.
fn is_object_or_array(bytes: &[u8]) -> bool {
    matches!(bytes.trim_ascii_start().first(), Some(b'{' | b'['))
        && serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok()
}

/// A set that is being read.
struct Lines<'a> {
    name: &'a str,
    prompts: Vec<Prompt>,
    ids: HashSet<String>,
}

impl<'a> Lines<'a> {
    fn new(name: &'a str) -> Self {
        Self { name, prompts: Vec::new(), ids: HashSet::new() }
    }

    fn add(&mut self, at: usize, len: usize, prompt: Result<Prompt, LineProblem>) -> Result<(), PromptError> {
        if len > MAX_LINE {
            return Err(too_large(self.name, format!("the length of line {at}"), MAX_LINE as u64));
        }
        if self.prompts.len() == MAX_PROMPTS {
            return Err(too_large(self.name, "the number of prompts".to_owned(), MAX_PROMPTS as u64));
        }
        let prompt = prompt.and_then(|prompt| match self.ids.insert(prompt.id.clone()) {
            true => Ok(prompt),
            false => Err(field("id", format!("`{}` is an earlier line's too", prompt.id))),
        });
        let problem = |problem| PromptError::Line { name: self.name.to_owned(), line: at, problem };
        self.prompts.push(prompt.map_err(problem)?);
        Ok(())
    }

    fn end(self) -> Result<PromptSet, PromptError> {
        if self.prompts.is_empty() {
            return Err(PromptError::Empty { name: self.name.to_owned() });
        }
        Ok(PromptSet { prompts: self.prompts })
    }
}
