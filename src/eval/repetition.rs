//! Endless loops in an answer.
//!
//! A loop is the same words over and over *in a row*: that is what a model falls into, and what
//! lists, refrains between verses and tables do not do. Three repetitions are asked for, and 24
//! words in all, so that "no, no, no" and a chorus pass. Loops that vary a little (a running number
//! in each sentence) are caught by the second rule: most groups of eight words occur before.

use std::collections::HashSet;

use super::units::{self, is_unspaced};

/// Repetitions in a row that make a loop.
const REPEATS: usize = 3;
/// Weight of what is repeated, in all: 24 words, or 48 characters of a script without spaces.
const LOOP_WEIGHT: usize = 48;
/// Weight of the longest repeated passage that is looked for: 250 words.
const MAX_PERIOD: usize = 250;
/// Words in a group of the second rule; characters are twice as many.
const GROUP: usize = 8;
/// Weight from which the second rule applies: 64 words.
const GROUPS_WEIGHT: usize = 128;
/// Characters in a row without a word between them, such as `!!!!!!` or `hahaha`; lines of tables
/// are shorter than the second.
const RUN: usize = 40;
const RULER: usize = 200;
/// Line feeds in a row.
const BLANK_LINES: usize = 20;
/// Times that a line of code or of a table stands in a row.
const LINES: usize = 12;

/// A word in lower case, or a character of a script without spaces.
#[derive(PartialEq, Eq, Hash, Clone, Copy)]
struct Unit<'a>(&'a str);

impl Unit<'_> {
    fn weight(self) -> usize {
        if self.0.chars().next().is_some_and(is_unspaced) { 1 } else { 2 }
    }
}

/// The passage that an answer repeats without end, if it does.
pub(super) fn looped(text: &str) -> Option<String> {
    let prose: String = text.lines().filter(|line| !is_table(line)).flat_map(|line| [line, "\n"]).collect();
    run_of_characters(text)
        .or_else(|| run_of_lines(text))
        .or_else(|| {
            let prose = without_code(&prose).to_lowercase();
            let units = units(&prose);
            passage_in_a_row(&units).or_else(|| groups_seen_before(&units))
        })
        .map(|passage| passage.trim().to_owned())
}

/// A text without what stands between lines of three backticks; the last may be missing.
pub(super) fn without_code(text: &str) -> String {
    text.split("```").step_by(2).collect::<Vec<_>>().join("\n")
}

fn is_table(line: &str) -> bool {
    line.matches('|').count() >= 2
}

fn units(text: &str) -> Vec<Unit<'_>> {
    units::ranges(text).into_iter().map(|range| Unit(&text[range])).collect()
}

/// A stretch in which each unit equals the one a period before it.
fn passage_in_a_row(units: &[Unit<'_>]) -> Option<String> {
    for period in 1..=MAX_PERIOD.min(units.len() / REPEATS) {
        let mut start = 0;
        for at in period..=units.len() {
            if at < units.len() && units[at] == units[at - period] {
                continue;
            }
            // The stretch is start..at: its first period and the repetitions.
            let stretch = &units[start..at];
            let weight: usize = stretch.iter().map(|u| u.weight()).sum();
            let passage = &stretch[..period.min(stretch.len())];
            let says_something = passage.iter().any(|u| u.0.chars().any(char::is_alphabetic));
            if stretch.len() >= REPEATS * period && weight >= LOOP_WEIGHT && says_something {
                return Some(words(passage));
            }
            start = at + 1 - period;
        }
    }
    None
}

/// Groups of units of which more than half occur earlier in the text. Numbers are passed over, so
/// that they may run.
fn groups_seen_before(units: &[Unit<'_>]) -> Option<String> {
    let units: Vec<Unit<'_>> = units.iter().copied().filter(|u| u.0.chars().any(char::is_alphabetic)).collect();
    let weight: usize = units.iter().map(|u| u.weight()).sum();
    if weight < GROUPS_WEIGHT {
        return None;
    }
    let is_words = weight > units.len() + units.len() / 2;
    let len = if is_words { GROUP } else { 2 * GROUP };
    let mut seen = HashSet::new();
    let mut again: Vec<&[Unit<'_>]> = units.windows(len).filter(|group| !seen.insert(*group)).collect();
    let is_loop = 2 * again.len() > units.len().saturating_sub(len);
    again.truncate(1);
    again.first().filter(|_| is_loop).map(|group| words(group))
}

fn words(units: &[Unit<'_>]) -> String {
    let is_unspaced = units.iter().all(|u| u.weight() == 1);
    units.iter().map(|u| u.0).collect::<Vec<_>>().join(if is_unspaced { "" } else { " " })
}

/// Up to four characters over and over without a space, or line feed after line feed.
fn run_of_characters(text: &str) -> Option<String> {
    let chars: Vec<char> = text.chars().filter(|c| *c != '\r').collect();
    for period in 1..=4 {
        let mut start = 0;
        for at in period..=chars.len() {
            if at < chars.len() && chars[at] == chars[at - period] {
                continue;
            }
            let passage = &chars[start..(start + period).min(at)];
            let bound = match passage {
                p if p.iter().all(|c| *c == '\n') => BLANK_LINES,
                p if p.iter().any(|c| c.is_whitespace()) => usize::MAX,
                p if p.iter().any(|c| c.is_alphabetic() || matches!(c, '!' | '?' | '\u{fffd}')) => RUN,
                _ => RULER,
            };
            if at - start >= bound {
                return Some(passage.iter().map(|c| if *c == '\n' { '⏎' } else { *c }).collect());
            }
            start = at + 1 - period;
        }
    }
    None
}

/// A line that comes over and over, as in code or a table. Lines without letters do not count: they
/// are rows of numbers, or rulers.
fn run_of_lines(text: &str) -> Option<String> {
    let mut last = "";
    let mut times = 0;
    for line in text.lines().map(str::trim).filter(|line| line.chars().any(char::is_alphabetic)) {
        times = if line == last { times + 1 } else { 1 };
        last = line;
        if times >= LINES {
            return Some(line.to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_found_in_every_script() {
        for (text, passage) in [
            ("Der Hund ist ein Tier. ".repeat(8), "der hund ist ein tier"),
            ("Well. ".to_owned() + &"I do not know ".repeat(7) + "and so", "i do not know"),
            ("这是一个句子。".repeat(9), "这是一个句子"),
            ("เขาไปตลาด".repeat(8), "เขาไปตลาด"),
            ("나는 학교에 갑니다. ".repeat(8), "나는 학교에 갑니다"),
            ("आकाश नीला है। ".repeat(9), "आकाश नीला है"),
            ("!".repeat(60), "!"),
            ("ha".repeat(40), "ha"),
            ("Yes.".to_owned() + &"\n".repeat(30), "⏎"),
            ("```\n".to_owned() + &"x = f(x)\n".repeat(14), "x = f(x)"),
            ("| a | b |\n".repeat(14), "| a | b |"),
        ] {
            assert_eq!(looped(&text).as_deref(), Some(passage), "{text}");
        }
    }

    #[test]
    fn a_loop_with_a_running_number_is_found() {
        let text: String = (1..20).map(|i| format!("{i}. The dog is an animal and it likes to eat bread. ")).collect();
        assert!(looped(&text).is_some());
    }

    #[test]
    fn the_bounds_are_24_words_and_three_times() {
        assert_eq!(looped(&"a b c ".repeat(7)), None);
        assert_eq!(looped(&"a b c ".repeat(8)).as_deref(), Some("a b c"));
        let sentence = "one two three four five six seven eight nine ten eleven twelve ";
        assert_eq!(looped(&sentence.repeat(2)), None);
        assert!(looped(&sentence.repeat(3)).is_some());
    }

    #[test]
    fn what_people_write_is_no_loop() {
        let list: String = (1..40).map(|i| format!("- item {i}\n")).collect();
        let numbers: String = (1..90).map(|i| format!("{i}, ")).collect();
        let table: String = (1..30).map(|i| format!("| {i} | yes | no |\n")).collect();
        let verse = |a: &str| format!("{a}\nAnd the river runs down to the sea,\nand the river runs on.\n\n");
        let poem = ["The morning is grey", "A child walks alone", "The lamps are all out", "The winter has come"]
            .map(verse)
            .concat();
        let zeros = "0 0 0 0 0 0 0 0\n".repeat(8);
        let code = "```\n".to_owned() + &"    push(0);\n".repeat(9) + "```";
        for text in [
            &list,
            &numbers,
            &table,
            &poem,
            &zeros,
            &code,
            "No, no, no, no, no!",
            "Paris.",
            "",
            "-".repeat(120).as_str(),
        ] {
            assert_eq!(looped(text), None, "{text}");
        }
    }
}
