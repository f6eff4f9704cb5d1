//! What was seen of one reply.

use serde::Serialize;

use super::answer::Reply;
use super::{Language, Prompt};

/// The language of an answer against the one of its prompt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Spoken {
    /// The prompt's.
    pub expected: Language,
    /// The answer's, of what is its own; none if that is too short, too uncertain, garbled, or a loop in
    /// the prompt's language.
    pub found: Option<Language>,
}

impl Spoken {
    pub(super) fn is_right(self) -> bool {
        self.found == Some(self.expected)
    }

    pub(super) fn is_wrong(self) -> bool {
        self.found.is_some() && !self.is_right()
    }
}

/// What was seen of one reply.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Marks {
    /// The prompt's place in the set.
    pub prompt: usize,
    /// The reply's place among the prompt's.
    pub turn: usize,
    /// Whether it was computed without NaN and infinity.
    pub is_finite: bool,
    /// Whether it ended by itself, and with the token that ends a turn if that is known.
    pub is_ended: bool,
    /// Whether it has no letter and no digit, though the prompt had room.
    pub is_empty: bool,
    /// Whether it says nothing but what the prompt says.
    pub is_echo: bool,
    /// Text of the template in it.
    pub leak: Option<String>,
    /// The passage it repeats.
    pub repetition: Option<String>,
    /// Why it is no text.
    pub garbled: Option<&'static str>,
    /// The language of what is its own, if the prompt's is known.
    pub language: Option<Spoken>,
    /// Whether it refuses in its own words; of the last reply only.
    pub is_refusal: Option<bool>,
    /// Whether it is right to the letter; of the last reply, if the prompt says what is.
    pub is_exact: Option<bool>,
    /// Whether its own words have one of a right answer; of the last reply, if the prompt names any.
    pub has_keyword: Option<bool>,
}

/// One reply and what was seen of it.
pub(super) struct Seen<'a> {
    pub(super) prompt: &'a Prompt,
    pub(super) reply: &'a Reply,
    pub(super) marks: Marks,
}
