//! The language of an answer, by lingua's n-gram models.
//!
//! The languages are those that Cargo.toml chooses. Short texts are lingua's strength, but two
//! words of a name belong to no language: what is too short or too close is undecided, and counts
//! neither as right nor as wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Serialize, Serializer};

/// Letters that a text needs before its language is asked for, where a letter is about a sound.
/// Measured on the bundled models' German answers: shorter ones ("Tom.", "Anna?") are names, which
/// lingua gives to any language.
const MIN_LETTERS: usize = 8;
/// Characters that a text needs before its language is asked for, where one is a syllable or a word
/// (Chinese, Japanese, Korean).
const MIN_SYLLABLES: usize = 3;
/// How far the best language's confidence must be above the second's, as a multiple. A bound on the
/// confidence itself would leave more undecided the more candidates there are.
const MIN_LEAD: f64 = 2.0;
/// Characters that are looked at: enough for certainty, and a bound on the work.
const LOOKED_AT: usize = 2000;
/// Words that are looked at together, at most. A model that falls back into English often repeats
/// the question in its own language first, and a few German words outweigh many English ones where
/// all are looked at together ("The Hauptstadt von Frankreich is a medieval city in the heart of
/// ..." is German then). Ten words are enough for lingua.
const PASSAGE: usize = 10;

/// Languages written in Latin letters, which only n-grams tell apart. The others cost nothing until
/// their script appears.
const LATIN: [lingua::Language; 11] = {
    use lingua::Language::*;
    [Dutch, English, French, German, Indonesian, Italian, Polish, Portuguese, Spanish, Turkish, Vietnamese]
};

/// A language that can be recognised.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Language(lingua::Language);

/// A code that names no language that can be recognised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{code}` is no language that can be recognised; these are: {}", known())]
pub struct UnknownLanguage {
    /// The code as given.
    pub code: String,
}

fn known() -> String {
    Language::all().iter().map(|l| format!("{l} ({})", l.name())).collect::<Vec<_>>().join(", ")
}

impl Language {
    /// English, the language that chat vectors fall back to.
    pub const ENGLISH: Self = Self(lingua::Language::English);

    /// All of them, in the order of their codes.
    pub fn all() -> Vec<Self> {
        let mut all: Vec<Self> = lingua::Language::all().into_iter().map(Self).collect();
        all.sort_by_key(|l| l.code());
        all
    }

    /// One by its ISO 639-1 code (`de`), in either case.
    pub fn parse(code: &str) -> Result<Self, UnknownLanguage> {
        let wanted = code.trim().to_lowercase();
        let found = Self::all().into_iter().find(|l| l.code() == wanted);
        found.ok_or_else(|| UnknownLanguage { code: code.trim().to_owned() })
    }

    /// Its ISO 639-1 code.
    pub fn code(self) -> String {
        self.0.iso_code_639_1().to_string()
    }

    /// Its English name.
    pub fn name(self) -> String {
        self.0.to_string()
    }

    /// Whether it is written in Latin letters.
    fn is_latin(self) -> bool {
        LATIN.contains(&self.0)
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.code())
    }
}

impl Serialize for Language {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.code())
    }
}

/// Tells the candidates apart.
///
/// Models of n-grams are loaded when a text first needs them and stay loaded: some 7 MB a language.
pub struct Detector {
    lingua: lingua::LanguageDetector,
    candidates: Vec<Language>,
}

impl Detector {
    /// Candidates are these, English, and all languages of other scripts than the Latin one:
    /// whoever expects German must hear of Chinese. Other languages of the Latin script are not,
    /// since each more makes short texts less certain: an answer in one of them counts as whichever
    /// candidate is nearest.
    pub fn new(languages: &[Language]) -> Self {
        let others = Language::all().into_iter().filter(|l| !l.is_latin());
        let candidates: BTreeSet<Language> =
            languages.iter().copied().chain([Language::ENGLISH]).chain(others).collect();
        let candidates: Vec<Language> = candidates.into_iter().collect();
        let chosen: Vec<lingua::Language> = candidates.iter().map(|l| l.0).collect();
        Self { lingua: lingua::LanguageDetectorBuilder::from_languages(&chosen).build(), candidates }
    }

    /// What it chooses from.
    pub fn candidates(&self) -> &[Language] {
        &self.candidates
    }

    /// The language that most letters of a text are in, or none if there is too little text or too
    /// little certainty.
    pub fn detect(&self, text: &str) -> Option<Language> {
        let end = text.char_indices().nth(LOOKED_AT).map_or(text.len(), |(at, _)| at);
        let text = &text[..end];
        let mut letters: BTreeMap<Language, usize> = BTreeMap::new();
        for passage in passages(text) {
            if let Some(language) = self.nearest(&passage) {
                *letters.entry(language).or_default() += passage.chars().filter(|c| c.is_alphabetic()).count();
            }
        }
        let most = letters.into_iter().max_by_key(|(_, n)| *n);
        // Lists of single words say something only together.
        most.map(|(language, _)| language).or_else(|| self.nearest(text))
    }

    /// The language that a text as a whole is nearest to.
    fn nearest(&self, text: &str) -> Option<Language> {
        let syllables = text.chars().filter(|c| is_syllable(*c)).count();
        let letters = text.chars().filter(|c| c.is_alphabetic()).count();
        if syllables < MIN_SYLLABLES && letters < MIN_LETTERS {
            return None;
        }
        let values = self.lingua.compute_language_confidence_values(text);
        let (best, rest) = values.split_first()?;
        let second = rest.first().map_or(0.0, |second| second.1);
        (best.1 > 0.0 && best.1 >= MIN_LEAD * second).then_some(Language(best.0))
    }
}

/// A text cut at the ends of sentences and lines, and these into parts of up to [`PASSAGE`] words.
fn passages(text: &str) -> impl Iterator<Item = String> {
    text.split_inclusive(['.', '!', '?', '\n', '。', '！', '？', '।', '؟', '۔']).flat_map(|sentence| {
        let words: Vec<&str> = sentence.split_whitespace().collect();
        let n_parts = words.len().div_ceil(PASSAGE).max(1);
        let len = words.len().div_ceil(n_parts).max(1);
        words.chunks(len).map(|part| part.join(" ")).collect::<Vec<_>>()
    })
}

/// Whether a character stands for a syllable or a word: kana, Hangul and Han.
pub(super) fn is_syllable(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}' | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{3ffff}')
}
