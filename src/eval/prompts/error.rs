//! Why prompts are refused.

use std::path::PathBuf;

use super::json::FIELDS;
use crate::eval::UnknownLanguage;

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
    /// JSON, but not one object a line.
    #[error("{name}: a JSON array; expected one object a line, as in JSON Lines (`jq -c '.[]'` writes them)")]
    Array {
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
    /// No plain text.
    #[error("column {column}: {reason}; expected plain text in UTF-8, one prompt a line, or JSON, one object a line")]
    NotText {
        /// Where, in bytes counted from 1.
        column: usize,
        /// What is there.
        reason: &'static str,
    },
    /// Not an object.
    #[error("expected a JSON object")]
    NotAnObject,
    /// An object, though the first line is plain text.
    #[error("a JSON object in a file whose first line is plain text; expected all lines to be JSON, or none")]
    Mixed,
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

pub(super) fn field(field: &'static str, reason: impl Into<String>) -> LineProblem {
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
