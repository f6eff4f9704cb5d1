//! Verdicts: what answers show of a model, held to thresholds.
//!
//! Pure: it reads answers and facts that someone else has taken from a model, and the same ones
//! give the same judgement.

use std::collections::BTreeMap;

use serde::Serialize;

use super::answer::{Answer, End, Loaded, Reply, is_asked, without_end};
use super::check_result::{CheckResult, Verdict};
use super::seen::{Marks, Seen, Spoken};
use super::{
    Detector, Language, Prompt, PromptSet, Thresholds, checks, conclusion, copied, expected, garbled, leak, refusal,
    repetition,
};

/// Numbers of replies.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Counts {
    /// All replies.
    pub replies: usize,
    /// Replies that ended by themselves.
    pub ended: usize,
    /// Replies in the language of their prompt.
    pub right_language: usize,
    /// Replies in another language.
    pub wrong_language: usize,
    /// Replies whose language cannot be told.
    pub undecided_language: usize,
    /// Replies that refuse.
    pub refused: usize,
    /// Replies whose prompt says what is right.
    pub expected: usize,
    /// Replies that are right, by a whole answer or a key word.
    pub right: usize,
}

/// Counts of one kind or language of prompts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Group {
    /// The kind's name or the language's code.
    pub name: String,
    /// Its counts.
    pub counts: Counts,
}

/// Replies of one language to prompts of one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct SpokenCount {
    /// The languages.
    #[serde(flatten)]
    pub spoken: Spoken,
    /// How many.
    pub n: usize,
}

/// Everything that answers show of a model.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Judgement {
    /// The worst of all checks.
    pub verdict: Verdict,
    /// What it comes to, in a sentence: "chats in German; forgets what was said (2 of 12)".
    pub conclusion: String,
    /// All checks, in a fixed order.
    pub checks: Vec<CheckResult>,
    /// Counts of all replies.
    pub total: Counts,
    /// Counts by kind of prompt, in the order of [`super::Kind`].
    pub kinds: Vec<Group>,
    /// Counts by language of prompt, in the order of names.
    pub languages: Vec<Group>,
    /// Which language was answered in which.
    pub spoken: Vec<SpokenCount>,
    /// What was seen of each reply, in the order of the answers.
    pub replies: Vec<Marks>,
}

impl Judgement {
    /// One check by its name.
    pub fn check(&self, name: &str) -> Option<&CheckResult> {
        self.checks.iter().find(|c| c.name == name)
    }
}

/// Answers that are not of this set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JudgeError {
    /// No such prompt.
    #[error("answer {answer} is to prompt {prompt}, and the set has {n_prompts}")]
    NoSuchPrompt {
        /// The answer's place.
        answer: usize,
        /// The prompt's place as given.
        prompt: usize,
        /// Prompts in the set.
        n_prompts: usize,
    },
    /// More replies than the prompt asks for.
    #[error("prompt `{id}` asks for {expected} replies, and answer {answer} has {found}")]
    TooManyReplies {
        /// The answer's place.
        answer: usize,
        /// The prompt's id.
        id: String,
        /// Replies that the prompt asks for.
        expected: usize,
        /// Replies that there are.
        found: usize,
    },
}

/// Judges a model by its answers to a set.
///
/// `languages` are those that the model is to speak: if there is just one, it is that of prompts
/// without a language. A prompt without an answer is left out.
pub fn judge(
    set: &PromptSet,
    answers: &[Answer],
    languages: &[Language],
    thresholds: &Thresholds,
    loaded: &Loaded,
) -> Result<Judgement, JudgeError> {
    let seen = look(set, answers, languages, loaded)?;
    let checks = checks::all(thresholds, loaded, &seen);
    let mut spoken: BTreeMap<Spoken, usize> = BTreeMap::new();
    for one in seen.iter().filter_map(|s| s.marks.language) {
        *spoken.entry(one).or_default() += 1;
    }
    Ok(Judgement {
        verdict: checks.iter().map(|c| c.verdict).max().unwrap_or_default(),
        conclusion: conclusion::of(&checks, &seen),
        total: counts(seen.iter()),
        kinds: groups(&seen, |s| Some(s.prompt.kind.clone()), |kind| kind.name().to_owned()),
        languages: groups(&seen, |s| s.marks.language.map(|l| l.expected), |language| language.code()),
        spoken: spoken.into_iter().map(|(spoken, n)| SpokenCount { spoken, n }).collect(),
        checks,
        replies: seen.into_iter().map(|s| s.marks).collect(),
    })
}

fn look<'a>(
    set: &'a PromptSet,
    answers: &'a [Answer],
    languages: &[Language],
    loaded: &Loaded,
) -> Result<Vec<Seen<'a>>, JudgeError> {
    let only = if let [only] = languages { Some(*only) } else { None };
    let mut seen = Vec::new();
    for (at, answer) in answers.iter().enumerate() {
        let n_prompts = set.prompts.len();
        let no_such = JudgeError::NoSuchPrompt { answer: at, prompt: answer.prompt, n_prompts };
        let prompt = set.prompts.get(answer.prompt).ok_or(no_such)?;
        let (expected, found) = (prompt.answered().count(), answer.replies.len());
        if found > expected {
            return Err(JudgeError::TooManyReplies { answer: at, id: prompt.id.clone(), expected, found });
        }
        for (turn, reply) in answer.replies.iter().enumerate() {
            let is_last = turn + 1 == expected;
            // A run that was given up has not answered the last turn: nothing it said before can be
            // right.
            let is_judged = is_last || turn + 1 == found;
            let answers = Turn { place: turn, is_judged, is_last };
            let marks = marks(prompt, reply, &answers, prompt.language.or(only), loaded);
            seen.push(Seen { prompt, reply, marks: Marks { prompt: answer.prompt, ..marks } });
        }
    }
    Ok(seen)
}

/// Which of a prompt's turns a reply is to.
struct Turn {
    place: usize,
    /// Whether it is held to what the prompt expects.
    is_judged: bool,
    /// Whether it is the one that the prompt expects it of.
    is_last: bool,
}

/// What is seen of one reply. What is expected of it, and its language, is looked for in what is its
/// own; whether it is whole, ends and so on, in all of it.
fn marks(prompt: &Prompt, reply: &Reply, turn: &Turn, expected: Option<Language>, loaded: &Loaded) -> Marks {
    let said = said(&reply.text);
    let own = copied::own(said, &prompt.messages);
    let (repetition, garbled) = (repetition::looped(said), garbled::garbled(said));
    let answers_with = |is_right: bool| turn.is_judged.then_some(turn.is_last && is_right);
    // To the letter is to the letter: a prompt that wants its own words said again says so by that.
    let is_exact = is_ended(&reply.end, loaded) && expected::is_one_of(said, &prompt.exact);
    let has_keyword = expected::has_one_of(&own.text, &prompt.keywords);
    Marks {
        prompt: 0,
        turn: turn.place,
        is_finite: reply.finite,
        is_ended: is_ended(&reply.end, loaded),
        is_empty: is_asked(reply) && !said.chars().any(char::is_alphanumeric),
        is_echo: own.is_echo,
        leak: leak::leaked(without_end(reply), &asked(prompt)),
        language: expected.map(|expected| {
            let found = spoken_in(expected, &own.text).filter(|_| garbled.is_none());
            // A loop may be in another language; that it is in the right one says nothing.
            Spoken { expected, found: found.filter(|found| repetition.is_none() || *found != expected) }
        }),
        repetition,
        garbled,
        is_refusal: answers_with(refusal::refuses(&own.text, &prompt.refusal)),
        is_exact: answers_with(is_exact).filter(|_| !prompt.exact.is_empty()),
        has_keyword: answers_with(has_keyword).filter(|_| !prompt.keywords.is_empty()),
    }
}

/// Code has no language of its own: its words are English.
fn spoken_in(expected: Language, said: &str) -> Option<Language> {
    Detector::new(&[expected]).detect(&repetition::without_code(said))
}

/// What a reply says after thinking. One that is still thinking says nothing.
fn said(text: &str) -> &str {
    let start = text.trim_start();
    if let Some((_, said)) = start.split_once("</think>") {
        return said;
    }
    if start.starts_with("<think>") { "" } else { text }
}

/// All that the prompt says itself.
fn asked(prompt: &Prompt) -> String {
    prompt.messages.iter().map(|turn| turn.content.as_str()).collect::<Vec<_>>().join("\n")
}

/// A base model stops too, at the token between documents: where the token that ends a turn is
/// known, only that counts.
fn is_ended(end: &End, loaded: &Loaded) -> bool {
    match (end, &loaded.turn_end) {
        (End::Token(token), Some(turn_end)) => token == turn_end,
        (End::Token(_), None) => true,
        (End::Limit | End::Context, _) => false,
    }
}

fn counts<'a>(seen: impl Iterator<Item = &'a Seen<'a>>) -> Counts {
    seen.fold(Counts::default(), |mut counts, Seen { marks, .. }| {
        counts.replies += 1;
        counts.ended += usize::from(marks.is_ended);
        if let Some(spoken) = marks.language {
            counts.right_language += usize::from(spoken.is_right());
            counts.wrong_language += usize::from(spoken.is_wrong());
            counts.undecided_language += usize::from(spoken.found.is_none());
        }
        counts.refused += usize::from(marks.is_refusal == Some(true));
        counts.expected += usize::from(marks.is_exact.is_some() || marks.has_keyword.is_some());
        counts.right += usize::from(marks.is_exact == Some(true) || marks.has_keyword == Some(true));
        counts
    })
}

fn groups<K: Ord>(seen: &[Seen<'_>], key: impl Fn(&Seen<'_>) -> Option<K>, name: impl Fn(&K) -> String) -> Vec<Group> {
    let mut groups: BTreeMap<K, Vec<&Seen<'_>>> = BTreeMap::new();
    for one in seen {
        if let Some(key) = key(one) {
            groups.entry(key).or_default().push(one);
        }
    }
    groups.iter().map(|(key, seen)| Group { name: name(key), counts: counts(seen.iter().copied()) }).collect()
}
