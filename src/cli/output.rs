//! Writing to the terminal, or to whoever listens.

use std::io::{self, Write};

use anyhow::{Context, Result};

use super::Global;
use crate::gguf::printable;
use crate::report::Report;

/// Prints a result on standard output, as text or as JSON.
pub(super) fn print(report: &dyn Report, global: &Global) -> Result<()> {
    let text = match global.json {
        true => serde_json::to_string_pretty(&report.json())? + "\n",
        false => report.text(),
    };
    print_text(&text)
}

/// Prints text on standard output. That nobody reads it any more is no failure: they have seen enough.
pub(super) fn print_text(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write the result to standard output"),
    }
}

/// Says something on standard error, in one line. If even that is closed, there is nobody to tell.
///
/// Keys, values and names of a file are in the text as they are; escaped here, none can write to the terminal.
pub(super) fn complain(kind: &str, text: &str) {
    let line = printable(text);
    let _ = writeln!(io::stderr(), "{kind}: {line}");
}
