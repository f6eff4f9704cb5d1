//! Judging models: whether one chats, and how far two are from each other.
//!
//! [`Chatter`] asks a model the prompts of a [`PromptSet`]; [`judge`] looks at each answer
//! ([`Marks`]) and holds their shares to [`Thresholds`] by exact binomial tests:
//!
//! | what is wrong with a file | checks that fail |
//! |---|---|
//! | no template, one that does not render, end tokens that are not the template's | `loads`, `ends` |
//! | NaN or infinity in the weights | `finite` |
//! | the vector is missing or too weak: it goes on with the text | `ends`, `exact`, `keywords` |
//! | the vector outweighs the language: it answers in English | `language` |
//! | too high a ratio, too few bits, noise | `repetition`, `ends`, `varied`, `exact`, `keywords` |
//! | tokens that mean others than the weights do | `garbled`, `varied`, `ends`, `language` |
//! | a conversation is repeated, not answered | `echo`, `memory` |
//!
//! [`compare()`] and [`Reference`] hold what two models say of a text against each other,
//! [`compare_tensors`] their weights, [`compare_vectors`] the vectors of two patches.

mod agreement;
mod answer;
mod asking;
mod audit;
mod binomial;
mod chatter;
mod check_result;
mod checks;
mod choice;
mod compare;
mod comparison;
mod conclusion;
mod copied;
mod decision;
mod engine;
mod error;
mod expected;
mod garbled;
mod judge;
mod kl;
mod language;
mod leak;
mod listener;
mod prompts;
mod reference;
mod refusal;
mod repetition;
mod saved;
mod scorer;
mod seen;
mod statistics;
mod tensors;
mod text;
mod thresholds;
mod turn;
mod units;
mod vectors;

pub use agreement::{Agreement, AgreementBounds, Place, Reader};
pub use answer::{Answer, End, Loaded, Reply};
pub use audit::{AuditedToken, ChatAudit, audit_chat};
pub use chatter::{Asking, Chatter, ChatterError, Conversations, Speed, Transcript};
pub use check_result::{CheckResult, Example, Verdict};
pub use choice::{Choice, choose, good_conversations};
pub use compare::{compare, same_vocabulary};
pub use comparison::{Comparison, Divergence};
pub use decision::{ALPHA, POWER};
pub use decision::{CONFIDENCE, share_interval};
pub use engine::{dialects, said};
pub use error::{Error, Side};
pub use judge::{Counts, Group, JudgeError, Judgement, SpokenCount, judge};
pub use kl::Keep;
pub use language::{Detector, Language, UnknownLanguage};
pub use listener::{Listener, Phase};
pub use prompts::{Kind, LineProblem, MAX_FILE, MAX_LINE, MAX_PROMPTS, MAX_TURNS, Prompt, PromptError, PromptSet};
pub use reference::Reference;
pub use saved::{read_conversation, write_conversation};
pub use scorer::{Scorer, perplexity};
pub use seen::{Marks, Spoken};
pub use statistics::Estimate;
pub use tensors::{
    Difference, NotCompared, PartDifference, Reason, Tau, TensorDifference, TensorTable, compare_tensors,
};
pub use text::Text;
pub use thresholds::{CHECKS, Check, Good, ThresholdError, Thresholds};
pub use turn::{Turn, TurnError};
pub use vectors::compare_vectors;
