//! What an answer only copies from its prompt.
//!
//! A model that does not follow a conversation often repeats it: the key word of a memory prompt then
//! stands in the answer, and the answer is in the right language, though the model has said nothing.
//! So copies are taken out before an answer is looked at. A right answer shares words with the prompt
//! too ("Your dog is called Bruno. He is four years old"), hence a copy is
//!
//! - a whole message of the prompt, of two words at least, or
//! - a run of eight words that begins where a sentence of the prompt does. What a model says in its
//!   own person begins otherwise ("You live in Lisbon with my sister").
//!
//! Words are compared without regard to case, space and punctuation. In scripts without spaces, twelve
//! characters stand for eight words, or 32 in those with several signs for a syllable (Thai).

use std::collections::HashMap;
use std::ops::Range;

use super::units::{MAX_UNITS, is_of_many_signs, is_unspaced, ranges};
use crate::chat::Message;

/// Weight of a word; characters of scripts without spaces weigh less.
const WORD: usize = 12;
/// Weight of a run that is a copy: eight words.
const RUN: usize = 8 * WORD;
/// Weight of a whole message that can be told from chance: two words.
const MESSAGE: usize = 2 * WORD;

/// What is an answer's own.
#[derive(Debug)]
pub(super) struct Own {
    /// Its text without copies.
    pub(super) text: String,
    /// Whether it says nothing but copies.
    pub(super) is_echo: bool,
}

/// Takes out of an answer what it copies from these messages.
pub(super) fn own(answer: &str, messages: &[Message]) -> Own {
    let units = ranges(answer);
    let mut ids = HashMap::new();
    let said: Vec<Word> = units.iter().map(|range| Word::of(&answer[range.clone()], &mut ids)).collect();
    let copies = copies(&said, &told(messages, &mut ids));
    let mut text = String::with_capacity(answer.len());
    let mut end = 0;
    for copy in &copies {
        text += &answer[end..units[copy.start].start];
        text.push(' ');
        end = units[copy.end - 1].end;
    }
    text += &answer[end..];
    let is_echo = !copies.is_empty() && !text.chars().any(char::is_alphanumeric);
    Own { text, is_echo }
}

/// A word by a number that stands for its text.
#[derive(Clone, Copy)]
struct Word {
    id: usize,
    weight: usize,
}

impl Word {
    fn of(text: &str, ids: &mut HashMap<String, usize>) -> Self {
        let weight = match text.chars().next() {
            Some(c) if is_of_many_signs(c) => WORD / 4,
            Some(c) if is_unspaced(c) => WORD * 2 / 3,
            _ => WORD,
        };
        let next = ids.len();
        let id = *ids.entry(text.to_lowercase().replace('’', "'")).or_insert(next);
        Self { id, weight }
    }
}

/// A word of the prompt, and what begins and ends with it.
struct Told {
    id: usize,
    begins_message: bool,
    begins_sentence: bool,
    ends_message: bool,
}

fn told(messages: &[Message], ids: &mut HashMap<String, usize>) -> Vec<Told> {
    let mut told = Vec::new();
    for message in messages {
        let text = &message.content;
        let units = ranges(text);
        let mut end = 0;
        for (i, range) in units.iter().enumerate() {
            let begins_message = i == 0;
            told.push(Told {
                id: Word::of(&text[range.clone()], ids).id,
                begins_message,
                begins_sentence: begins_message || text[end..range.start].contains(ENDS),
                ends_message: i + 1 == units.len(),
            });
            end = range.end;
        }
        if told.len() >= MAX_UNITS {
            break;
        }
    }
    told.truncate(MAX_UNITS);
    told
}

/// What stands between sentences.
const ENDS: [char; 12] = ['.', '!', '?', ':', '\n', '。', '！', '？', '：', '।', '؟', '۔'];

/// A run of equal words that ends at a word of the prompt.
#[derive(Clone, Copy, Default)]
struct Run {
    /// Words from the first that begins a sentence.
    len: usize,
    weight: usize,
    /// Whether it begins with the message.
    is_from_start: bool,
}

/// Runs of the answer that are copies, in order and apart from each other.
fn copies(said: &[Word], told: &[Told]) -> Vec<Range<usize>> {
    let mut copies: Vec<Range<usize>> = Vec::new();
    let mut before = vec![Run::default(); told.len() + 1];
    let mut runs = before.clone();
    for (at, word) in said.iter().enumerate() {
        runs.fill(Run::default());
        let mut longest = 0;
        for (i, other) in told.iter().enumerate().filter(|(_, other)| other.id == word.id) {
            let run = match before[i] {
                // Goes on with one in the same message.
                Run { len, weight, is_from_start } if len > 0 && !other.begins_message => {
                    Run { len: len + 1, weight: weight + word.weight, is_from_start }
                }
                _ if other.begins_sentence => Run { len: 1, weight: word.weight, is_from_start: other.begins_message },
                _ => continue,
            };
            let is_message = other.ends_message && run.is_from_start && run.weight >= MESSAGE;
            if run.weight >= RUN || is_message {
                longest = longest.max(run.len);
            }
            runs[i + 1] = run;
        }
        std::mem::swap(&mut before, &mut runs);
        if longest > 0 {
            add(&mut copies, at + 1 - longest..at + 1);
        }
    }
    copies
}

/// Adds a run that ends behind all others, and joins those that it overlaps.
fn add(copies: &mut Vec<Range<usize>>, mut copy: Range<usize>) {
    while let Some(last) = copies.pop_if(|last| last.end >= copy.start) {
        copy.start = copy.start.min(last.start);
    }
    copies.push(copy);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(messages: &[&str]) -> Vec<Message> {
        messages.iter().map(|content| Message { role: "user".to_owned(), content: (*content).to_owned() }).collect()
    }

    fn rest(answer: &str, messages: &[&str]) -> String {
        own(answer, &told(messages)).text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    const NUMBER: [&str; 2] =
        ["My favourite number is 47 and I have two cats. Please remember that.", "What is my favourite number?"];

    #[test]
    fn a_right_answer_keeps_the_words_that_it_shares_with_the_prompt() {
        for answer in [
            "Your favourite number is 47.",
            "My favourite number is 47.",
            "Your favourite number is 47 and you have two cats.",
            "It is 47, and I remember that you have two cats.",
        ] {
            assert_eq!(rest(answer, &NUMBER), answer);
        }
        let dog = "My dog is called Bruno. He is four years old and likes to swim.";
        let answer = "Your dog is called Bruno. He is four years old and likes to swim.";
        assert_eq!(rest(answer, &[dog]), "Your dog is called Bruno. .");
        let lisbon = "I live in Lisbon with my sister, and we like music.";
        let answer = "You live in Lisbon with my sister, and we like music.";
        assert_eq!(rest(answer, &[lisbon]), answer);
        assert_eq!(rest("你的幸运数字是47。", &["我的幸运数字是47，我有两只猫。请记住。"]), "你的幸运数字是47。");
    }

    #[test]
    fn copies_are_taken_out_whatever_is_around_them() {
        assert_eq!(rest("What is my favourite number? It is 47.", &NUMBER), "? It is 47.");
        assert_eq!(rest("my FAVOURITE number is 47 -- and I\nhave two cats. OK", &NUMBER), ". OK");
        let both = format!("User: {} Assistant: Sure. User: {}", NUMBER[0], NUMBER[1]);
        assert_eq!(rest(&both, &NUMBER), "User: . Assistant: Sure. User: ?");
        let chinese = ["我最喜欢的数字是47，我有两只猫。请记住。", "我最喜欢的数字是什么？"];
        assert_eq!(rest("我最喜欢的数字是47，我有两只猫。好的", &chinese), "。好的");
        assert_eq!(rest("我最喜欢的数字是什么？是47。", &chinese), "？是47。");
    }

    #[test]
    fn nothing_but_copies_is_an_echo() {
        let echo = |answer: &str| own(answer, &told(&NUMBER)).is_echo;
        assert!(echo(NUMBER[1]) && echo(&NUMBER.join("\n")) && echo("what is my favourite number"));
        assert!(echo(&format!("{0} {0} {0}", NUMBER[1])));
        for answer in ["", "...", "47", "What is my number?", "What is my favourite number? 47"] {
            assert!(!echo(answer), "{answer}");
        }
        // A message of one word is met by chance.
        assert!(!own("Paris", &told(&["Paris?"])).is_echo);
        assert!(own("Wie heiße ich?", &told(&["Wie heiße ich?"])).is_echo);
    }

    #[test]
    fn runs_do_not_go_on_from_one_message_to_the_next() {
        let messages = ["one two three four five six", "seven eight nine ten eleven twelve"];
        assert_eq!(rest("one two three four five six seven eight nine", &messages), "seven eight nine");
        assert_eq!(rest("five six seven eight nine ten eleven", &messages), "five six seven eight nine ten eleven");
    }

    #[test]
    fn long_texts_are_looked_at_up_to_a_bound() {
        let long = "a b ".repeat(MAX_UNITS);
        let own = own(&long, &told(&[&long]));
        assert!(own.text.len() > MAX_UNITS && own.text.len() < long.len());
    }
}
