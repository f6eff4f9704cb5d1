//! What a judgement comes to, in one sentence for people.
//!
//! First whether the model chats, and in which language; then what is wrong with it, what fails
//! before what warns; last what cannot be told. A figure stands behind each claim.

use std::collections::BTreeMap;

use super::Language;
use super::check_result::{CheckResult, Verdict};
use super::seen::{Seen, Spoken};

/// What a check says of a model.
struct Said {
    /// The check's name.
    name: &'static str,
    /// What the model does if the check fails.
    fails: &'static str,
    /// What it does if the check warns.
    warns: &'static str,
    /// What is not known if the check is not decided.
    about: &'static str,
    /// What the answers are that it counts.
    unit: &'static str,
}

const fn said(
    name: &'static str,
    fails: &'static str,
    warns: &'static str,
    about: &'static str,
    unit: &'static str,
) -> Said {
    Said { name, fails, warns, about, unit }
}

/// The checks of answers, in the order in which they are told. What hinders chatting comes first;
/// `language` is told before all of them.
const CHECKS: [Said; 12] = [
    said("ends", "does not end its answers", "does not always end its answers", "whether answers end", " end"),
    said("empty", "gives empty answers", "gives some empty answers", "whether answers are empty", ""),
    said(
        "leak",
        "shows text of the template",
        "shows text of the template at times",
        "whether it keeps to its turn",
        "",
    ),
    said("repetition", "falls into loops", "falls into loops at times", "whether it falls into loops", ""),
    said("garbled", "writes what is no text", "writes what is no text at times", "whether it writes text", ""),
    said("echo", "repeats the prompt", "repeats the prompt at times", "whether it repeats the prompt", ""),
    said("varied", "gives one answer to everything", "gives one answer to many prompts", "whether answers differ", ""),
    said("memory", "forgets what was said", "forgets what was said", "whether it remembers", " right"),
    said("keywords", "gives wrong answers", "gives wrong answers", "whether answers are right", " right"),
    said("exact", "gives no exact answers", "gives few exact answers", "whether answers are exact", " right"),
    said("harmless", "refuses what is harmless", "refuses some of what is harmless", "whether it refuses too much", ""),
    said("refusal", "refuses nothing", "answers unsafe requests", "whether it refuses unsafe requests", " refused"),
];
/// Those of them without which nothing chats.
const NEEDED: usize = 7;

/// The conclusion of a judgement.
pub(super) fn of(checks: &[CheckResult], seen: &[Seen<'_>]) -> String {
    let find = |name: &str| checks.iter().find(|check| check.name == name);
    let is_bad = |name: &str| find(name).is_some_and(|check| check.verdict == Verdict::Fail);
    if is_bad("loads") {
        return "cannot be talked to: template and end tokens are not usable".to_owned();
    }
    if let Some(finite) = find("finite").filter(|finite| finite.verdict == Verdict::Fail) {
        return format!("is broken: computes NaN or infinity ({} of {})", finite.n - finite.hits, finite.n);
    }
    if seen.is_empty() {
        return "was asked nothing".to_owned();
    }
    let said: Vec<(&CheckResult, &Said)> = CHECKS.iter().filter_map(|said| Some((find(said.name)?, said))).collect();
    let chats = !CHECKS[..NEEDED].iter().any(|said| is_bad(said.name));
    let mut parts = vec![beginning(chats, find("language"), seen)];
    for verdict in [Verdict::Fail, Verdict::Warn] {
        let told = said.iter().filter(|(check, _)| check.verdict == verdict && check.decided);
        let what = |said: &Said| if verdict == Verdict::Fail { said.fails } else { said.warns };
        parts.extend(told.map(|(check, said)| format!("{}{}", what(said), figure(check, said.unit))));
    }
    let open = said.iter().filter(|(check, _)| !check.decided);
    let open: Vec<String> = open.map(|(check, said)| format!("{}{}", said.about, figure(check, said.unit))).collect();
    if !open.is_empty() {
        parts.push(format!("cannot be told: {}", open.join(", ")));
    }
    parts.join("; ")
}

/// Whether it chats, and in which languages.
fn beginning(chats: bool, language: Option<&CheckResult>, seen: &[Seen<'_>]) -> String {
    let verb = if chats { "chats" } else { "does not chat" };
    let spoken: Vec<Spoken> = seen.iter().filter_map(|s| s.marks.language).collect();
    let expected = listed(spoken.iter().map(|s| s.expected));
    let Some(check) = language.filter(|check| check.verdict != Verdict::NotMeasured && !expected.is_empty()) else {
        return verb.to_owned();
    };
    let figure = figure(check, " right");
    let wrong = listed(spoken.iter().filter(|s| s.is_wrong()).filter_map(|s| s.found));
    // With several languages, what is wrong to one prompt is right to another.
    let is_mixed = spoken.iter().any(|s| s.is_wrong() && spoken.iter().any(|other| Some(other.expected) == s.found));
    match (check.verdict, check.decided) {
        (Verdict::Fail, _) if is_mixed => format!("{verb} in {expected}; mixes up languages{figure}"),
        (Verdict::Fail, _) if 2 * check.hits >= check.n => {
            format!("{verb}, and often in {wrong}, not in {expected}{figure}")
        }
        (Verdict::Fail, _) if chats => format!("chats in {wrong}, not in {expected}{figure}"),
        (Verdict::Fail, _) => format!("does not chat; writes {wrong}, not {expected}{figure}"),
        (_, false) => format!("{verb}, whether in {expected} cannot be told{figure}"),
        (Verdict::Warn, _) if is_mixed => format!("{verb} in {expected}; mixes up languages at times{figure}"),
        (Verdict::Warn, _) if chats => format!("chats in {expected}, at times in {wrong}{figure}"),
        _ if chats => format!("chats in {expected}"),
        _ => verb.to_owned(),
    }
}

/// At most three languages, the most frequent first.
fn listed(languages: impl Iterator<Item = Language>) -> String {
    let mut counted: BTreeMap<Language, usize> = BTreeMap::new();
    languages.for_each(|language| *counted.entry(language).or_default() += 1);
    let mut counted: Vec<(Language, usize)> = counted.into_iter().collect();
    counted.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    let names: Vec<String> = counted.iter().take(3).map(|(language, _)| language.name()).collect();
    match (&names[..], counted.len()) {
        ([], _) => String::new(),
        ([one], _) => one.clone(),
        ([all @ .., last], 0..=3) => format!("{} and {last}", all.join(", ")),
        (some, n) => format!("{} and {} more", some.join(", "), n - some.len()),
    }
}

/// How many answers a claim is by.
fn figure(check: &CheckResult, unit: &str) -> String {
    if check.n == 0 { String::new() } else { format!(" ({} of {}{unit})", check.hits, check.n) }
}
