//! Writing to the terminal, or to whoever listens: all that is printed passes here.
//!
//! Keys, values and names of a file, paths and answers of a model are in it. Here whatever could
//! write to the terminal or hide from the reader ([`is_printable`]) is escaped; a line feed of a
//! file, which would pass for one of ours, is where the report is made ([`printable`]).

use std::fmt::Write as _;
use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result};
use serde_json::Value as Json;

use super::Global;
use crate::gguf::{is_printable, printable};
use crate::report::Report;

/// Prints a result on standard output, as text or as JSON.
pub(super) fn print(report: &dyn Report, global: &Global) -> Result<()> {
    match global.json {
        true => print_json(&report.json()),
        false if report.has_verdicts() => print_judged(&in_lines(&report.text())),
        false => print_text(&report.text()),
    }
}

/// Prints text on standard output. That nobody reads it any more is no failure: they have seen
/// enough.
pub(super) fn print_text(text: &str) -> Result<()> {
    write(&in_lines(text))
}

/// Prints a report whose verdicts are coloured, where the terminal has colours and its user wants
/// them.
fn print_judged(text: &str) -> Result<()> {
    let n_lines = text.lines().count();
    let mut shown = String::with_capacity(text.len());
    for (i, line) in text.lines().enumerate() {
        match verdict_in(line, i + 1 == n_lines) {
            Some((at, word, style)) => {
                let (before, behind) = (&line[..at], &line[at + word.len()..]);
                let _ = writeln!(shown, "{before}{style}{word}{style:#}{behind}");
            }
            None => shown = shown + line + "\n",
        }
    }
    match anstream::stdout().lock().write_all(shown.as_bytes()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write the result to standard output"),
    }
}

/// Where a line of a report has its verdict: at its beginning, behind its first word, or at the end
/// of the last. Answers are in lines that begin otherwise.
fn verdict_in(line: &str, is_last: bool) -> Option<(usize, &'static str, Style)> {
    let is_name = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let first = line.split(' ').next().unwrap_or_default();
    let rest = line[first.len()..].trim_start();
    let words = [("PASS", AnsiColor::Green), ("WARN", AnsiColor::Yellow), ("FAIL", AnsiColor::Red)];
    words.into_iter().find_map(|(word, colour)| {
        let at = if first == word {
            0
        } else if is_name(first) && rest.split(' ').next() == Some(word) {
            line.len() - rest.len()
        } else if is_last && line.ends_with(&format!(": {word}")) {
            line.len() - word.len()
        } else {
            return None;
        };
        Some((at, word, Style::new().fg_color(Some(colour.into())).bold()))
    })
}

/// Prints JSON on standard output.
pub(super) fn print_json(json: &Json) -> Result<()> {
    write(&shown_json(&(serde_json::to_string_pretty(json)? + "\n")))
}

/// Prints JSON on standard output, in one line. False once nobody reads it any more.
pub(super) fn print_json_line(json: &Json) -> Result<bool> {
    write_to_reader(&shown_json(&(json.to_string() + "\n")))
}

/// JSON text in which what is not printable is escaped.
fn shown_json(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        // Between strings there are spaces and line feeds alone.
        if c == '\n' || is_printable(c) {
            shown.push(c);
        } else {
            let mut units = [0; 2];
            c.encode_utf16(&mut units).iter().for_each(|unit| {
                let _ = write!(shown, "\\u{unit:04x}");
            });
        }
    }
    shown
}

/// Prints a part of what a model says, whose line feeds and tabs are its own. False once nobody
/// reads it any more.
pub(super) fn print_part(text: &str) -> Result<bool> {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' || c == '\t' || is_printable(c) { shown.push(c) } else { shown.extend(c.escape_default()) }
    }
    write_to_reader(&shown)
}

/// Prints a line in a style, where the terminal has styles and its user wants them.
pub(super) fn print_styled(style: Style, line: &str) -> Result<()> {
    let mut out = anstream::stdout().lock();
    match writeln!(out, "{style}{}{style:#}", printable(line)).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// Text of ours in a style, if standard output has styles and its user wants them.
pub(super) fn styled(style: Style, text: &str) -> String {
    match anstream::AutoStream::choice(&io::stdout()) {
        anstream::ColorChoice::Never => text.to_owned(),
        _ => format!("{style}{text}{style:#}"),
    }
}

fn write(text: &str) -> Result<()> {
    write_to_reader(text).map(drop)
}

/// False once nobody reads any more.
fn write_to_reader(text: &str) -> Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        result => result.map(|()| true).context("cannot write the result to standard output"),
    }
}

/// Text whose line feeds are ours.
fn in_lines(text: &str) -> String {
    text.split_inclusive('\n').fold(String::with_capacity(text.len()), |shown, line| match line.strip_suffix('\n') {
        Some(line) => shown + &printable(line) + "\n",
        None => shown + &printable(line),
    })
}

/// Says something on standard error, in one line. If even that is closed, there is nobody to tell.
pub(super) fn complain(kind: &str, text: &str) {
    let line = printable(text);
    let _ = writeln!(io::stderr(), "{}: {line}", printable(kind));
}

/// Says something on standard error whose line feeds are ours.
pub(super) fn complain_in_lines(text: &str) {
    let _ = write!(io::stderr(), "{}", in_lines(text));
}

#[cfg(test)]
mod tests {
    use super::verdict_in;

    #[test]
    fn verdicts_are_told_from_answers_that_have_their_words() {
        for (line, is_last, found) in [
            ("ends        PASS  1.000       12", false, Some((12, "PASS"))),
            ("FAIL language: 3 of 12", false, Some((0, "FAIL"))),
            ("a FAIL.gguf: WARN", true, Some((13, "WARN"))),
            ("a FAIL.gguf: WARN", false, None),
            ("> FAIL", false, None),
            ("user: FAIL", false, None),
            ("  id: FAIL", false, None),
            ("[FAIL]", false, None),
            ("check        value  answers", false, None),
        ] {
            let verdict = verdict_in(line, is_last).map(|(at, word, _)| (at, word));
            assert_eq!(verdict, found, "{line}");
        }
    }
}
