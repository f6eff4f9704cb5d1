//! The language of an answer: an open set of 139 languages, told apart by frequent strings of bytes.
//!
//! An open set, because a closed one gives each foreign text to whichever of its languages is
//! nearest: among German, English and other scripts, a quarter of what is written in other languages
//! counts as German. What each step of the rule is worth is in docs/LANGUAGES.md, with the script
//! that measures it. Two words of a name belong to no language: what is too short or too close is
//! undecided, and counts neither as right nor as wrong.

mod names;
mod table;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use unicode_normalization_alignments::UnicodeNormalization;

use names::GROUPS;
pub use names::{Language, UnknownLanguage};
use table::Table;

/// The table, as tests/peers/language_table.py writes it.
static PACKED: &[u8] = include_bytes!("table.zst");

/// How many times as probable as any other language the ones that are expected are beforehand, and
/// English, which is what chat vectors fall back to.
const EXPECTED: f64 = 10.0;
/// How many times as probable as the second the best must be.
const MIN_LEAD: f64 = 2.0;
/// How probable the best must be, without [`EXPECTED`]: in a language that the table does not have,
/// a text is a little like several.
const MIN_CONFIDENCE: f64 = 0.1;
/// Bytes from which a whole text needs that; shorter ones need less, in proportion. Nothing is very
/// probable in three words: to ask as much of them would leave 3 % of right ones undecided.
const CONFIDENT_FROM: usize = 200;
/// Letters that a text needs, where a letter is about a sound. Shorter ones ("Tom.", "Anna?") are
/// names, which any language may have.
const MIN_LETTERS: usize = 8;
/// Characters that are looked at: enough for certainty, and a bound on the work.
const LOOKED_AT: usize = 2000;
/// Words that are looked at together, at most. A model that falls back into English often repeats
/// the question in its own language first, and a few Russian or Turkish words outweigh many English
/// ones where all are looked at together.
const PASSAGE: usize = 10;

/// What tells languages apart: the table, and what each of its classes is.
struct Identifier {
    table: Table,
    /// The language of each class; none for what is no language.
    languages: Vec<Option<Language>>,
    /// Groups with their members.
    groups: Vec<(Language, Vec<Language>)>,
}

/// Read when a text first needs it: some 30 ms, and 20 MB at most.
static IDENTIFIER: LazyLock<Identifier> = LazyLock::new(|| {
    let table = Table::read(PACKED).expect("the table is a part of the program, and a test reads it");
    let languages = table.codes().iter().map(|code| Language::of_code(code)).collect();
    let of_code = |code: &str| Language::of_code(code);
    let groups = GROUPS.iter().filter_map(|(group, members)| {
        Some((of_code(group)?, members.iter().filter_map(|code| of_code(code)).collect()))
    });
    Identifier { table, languages, groups: groups.collect() }
});

/// Says which language a text is in, knowing which ones are expected.
///
/// It is small: the table is one for all.
#[derive(Clone, Debug)]
pub struct Detector {
    expected: Vec<Language>,
}

impl Detector {
    /// Expects these languages and English, and recognises all others.
    pub fn new(expected: &[Language]) -> Self {
        Self { expected: expected.to_vec() }
    }

    /// The language that most letters of a text are in, or none if there is too little text or too
    /// little certainty. Languages that short texts do not tell apart are the expected one of them,
    /// or their group.
    ///
    /// Of a long text, the first 2000 characters are looked at.
    pub fn detect(&self, text: &str) -> Option<Language> {
        let end = text.char_indices().nth(LOOKED_AT).map_or(text.len(), |(at, _)| at);
        let text = &text[..end];
        let mut votes: BTreeMap<Language, usize> = BTreeMap::new();
        let mut all = 0;
        for passage in passages(text) {
            let n_letters = letters(&passage);
            all += n_letters;
            if let Some(language) = self.nearest(&passage, MIN_CONFIDENCE) {
                *votes.entry(language).or_default() += n_letters;
            }
        }
        let most = votes.into_iter().max_by_key(|(_, n)| *n).filter(|(_, n)| 2 * n > all);
        // What no language has most of, and lists of single words, say something only together.
        let needed = MIN_CONFIDENCE * (text.len() as f64 / CONFIDENT_FROM as f64).min(1.0);
        most.map(|(language, _)| language).or_else(|| self.nearest(text, needed))
    }

    /// The language that a text as a whole is nearest to.
    fn nearest(&self, text: &str, min_confidence: f64) -> Option<Language> {
        if letters(text) < MIN_LETTERS {
            return None;
        }
        let found = self.grouped(probabilities(text)?);
        let weighted = |(language, probability): (&Option<Language>, &f64)| {
            let is_expected = language.is_some_and(|l| l == Language::ENGLISH || self.expected.contains(&l));
            (if is_expected { EXPECTED * probability } else { *probability }, *probability, *language)
        };
        let mut ranked: Vec<(f64, f64, Option<Language>)> = found.iter().map(weighted).collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (best, second) = (ranked.first()?, ranked.get(1).map_or(0.0, |second| second.0));
        let is_certain = best.0 >= MIN_LEAD * second && best.1 >= min_confidence;
        best.2.filter(|_| is_certain)
    }

    /// Probabilities with each group as one: the most probable of its members that are expected, or
    /// the group itself.
    fn grouped(&self, mut found: BTreeMap<Option<Language>, f64>) -> BTreeMap<Option<Language>, f64> {
        for (group, members) in &IDENTIFIER.groups {
            let of = |member: &Language| found.get(&Some(*member)).copied().unwrap_or(0.0);
            let sum: f64 = members.iter().map(of).sum();
            let expected = members.iter().filter(|member| self.expected.contains(member));
            let counts_as = *expected.max_by(|a, b| of(a).total_cmp(&of(b))).unwrap_or(group);
            found.retain(|language, _| language.is_none_or(|l| !members.contains(&l)));
            found.insert(Some(counts_as), sum);
        }
        found
    }
}

/// How probable each language is for a text; none if nothing in it is known.
fn probabilities(text: &str) -> Option<BTreeMap<Option<Language>, f64>> {
    // As py3langid does: capitals only are read as small letters, and marks are joined with theirs.
    let is_upper = text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase);
    let lower = if is_upper { Some(text.to_lowercase()) } else { None };
    let composed: String = lower.as_deref().unwrap_or(text).nfc().map(|(c, _)| c).collect();
    let shares = IDENTIFIER.table.probabilities(composed.as_bytes())?;
    let mut found = BTreeMap::new();
    for (language, share) in IDENTIFIER.languages.iter().zip(shares) {
        *found.entry(*language).or_default() += share;
    }
    Some(found)
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

/// How much a text says, in letters of an alphabet: a sign for a consonant with its vowel counts
/// twice, one for a syllable or a word three times.
fn letters(text: &str) -> usize {
    let weight = |c: char| match c {
        _ if !c.is_alphabetic() => 0,
        _ if is_syllable(c) => 3,
        // The scripts of India and of South-East Asia, and Ethiopic.
        '\u{900}'..='\u{109f}' | '\u{1200}'..='\u{137f}' | '\u{1780}'..='\u{17ff}' => 2,
        _ => 1,
    };
    text.chars().map(weight).sum()
}

/// Whether a character stands for a syllable or a word: kana, Hangul and Han.
pub(super) fn is_syllable(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}' | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{3ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The highest share of labels in which six bits may differ from the model itself, and how far a
    /// probability may be off.
    const OTHER_LABELS: f64 = 0.01;
    const OFF: f64 = 0.05;

    #[derive(serde::Deserialize)]
    struct Golden {
        text: String,
        label: String,
        probabilities: BTreeMap<String, f64>,
    }

    #[test]
    fn every_language_of_the_table_has_a_name_and_the_other_way_round() {
        let mut codes: Vec<String> = IDENTIFIER.table.codes().to_vec();
        codes.sort();
        codes.dedup();
        codes.retain(|code| code != "zxx");
        let all: Vec<String> = Language::all().into_iter().map(Language::code).collect();
        assert_eq!(codes, all);
        assert_eq!(all.len(), 139);
    }

    #[test]
    fn texts_get_the_labels_and_probabilities_of_py3langid() {
        let goldens = std::fs::read_to_string("fixtures/language/py3langid.jsonl").unwrap();
        let goldens: Vec<Golden> = goldens.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(goldens.len() > 400, "{}", goldens.len());
        let code = |language: &Option<Language>| language.map_or("zxx".to_owned(), Language::code);
        let mut others = 0;
        for golden in &goldens {
            let found = probabilities(&golden.text).unwrap();
            let found: BTreeMap<String, f64> = found.iter().map(|(language, p)| (code(language), *p)).collect();
            let best = found.iter().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
            others += usize::from(*best.0 != golden.label);
            for (code, p) in &golden.probabilities {
                assert!((found[code] - p).abs() <= OFF, "{code}: {} and {p}: {}", found[code], golden.text);
            }
        }
        assert!(others as f64 <= OTHER_LABELS * goldens.len() as f64, "{others} of {}", goldens.len());
    }

    #[test]
    fn how_much_a_text_says_depends_on_its_script() {
        for (text, n) in [("Tom. 47", 3), ("ё", 1), ("ใช่ครับ", 12), ("法国", 6), ("はい", 6), ("한국", 6), ("नहीं", 8)]
        {
            assert_eq!(letters(text), n, "{text}");
        }
    }
}
