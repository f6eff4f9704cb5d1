//! Writing to the terminal, or to whoever listens: all that is printed passes here.
//!
//! Keys, values and names of a file, paths and answers of a model are in it. Here whatever could
//! write to the terminal or hide from the reader ([`is_printable`]) is escaped; a line feed of a
//! file, which would pass for one of ours, is where the report is made ([`printable`]).

use std::fmt::Write as _;
use std::io::{self, Write};

use anyhow::{Context, Result};
use serde_json::Value as Json;

use super::Global;
use crate::gguf::{is_printable, printable};
use crate::report::Report;

/// Prints a result on standard output, as text or as JSON.
pub(super) fn print(report: &dyn Report, global: &Global) -> Result<()> {
    match global.json {
        true => print_json(&report.json()),
        false => print_text(&report.text()),
    }
}

/// Prints text on standard output. That nobody reads it any more is no failure: they have seen
/// enough.
pub(super) fn print_text(text: &str) -> Result<()> {
    write(&in_lines(text))
}

/// Prints JSON on standard output.
pub(super) fn print_json(json: &Json) -> Result<()> {
    let text = serde_json::to_string_pretty(json)? + "\n";
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
    write(&shown)
}

fn write(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write the result to standard output"),
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
