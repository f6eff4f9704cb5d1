//! Lines from a terminal, edited and remembered, and the terminal given back as it was.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Helper};

use crate::cli::progress;

/// What a user enters. Earlier lines are kept in memory alone: what was said may be private.
pub(super) struct Editor {
    editor: rustyline::Editor<Continued, DefaultHistory>,
}

/// What came of asking for a line.
pub(super) enum Entered {
    Line(String),
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-D in an empty line, or the end of the terminal.
    End,
}

/// Whether a line is being edited, in which the terminal has other settings.
static IS_EDITING: AtomicBool = AtomicBool::new(false);

impl Editor {
    pub(super) fn new() -> Result<Self> {
        terminal::remember();
        progress::before_exit(give_back);
        let config = Config::builder().auto_add_history(true).build();
        let mut editor = rustyline::Editor::with_config(config).context("cannot set up the terminal")?;
        editor.set_helper(Some(Continued));
        Ok(Editor { editor })
    }

    /// Asks for a line. One that ends with `\` goes on in the next.
    pub(super) fn read(&mut self, prompt: &str, styled: &str) -> Result<Entered> {
        IS_EDITING.store(true, Ordering::SeqCst);
        let read = self.editor.readline(&(prompt, styled));
        IS_EDITING.store(false, Ordering::SeqCst);
        match read {
            Ok(line) => Ok(Entered::Line(line.replace("\\\n", "\n"))),
            Err(ReadlineError::Interrupted) => Ok(Entered::Interrupt),
            Err(ReadlineError::Eof) => Ok(Entered::End),
            Err(e) => Err(e).context("cannot read from the terminal"),
        }
    }
}

/// Gives the terminal back before the process ends in the middle of a line.
fn give_back() {
    if IS_EDITING.load(Ordering::SeqCst) {
        terminal::restore();
    }
}

#[cfg(unix)]
mod terminal {
    use std::io::{self, Write as _};
    use std::sync::{Mutex, PoisonError};

    use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};

    static SETTINGS: Mutex<Option<Termios>> = Mutex::new(None);

    pub(super) fn remember() {
        *SETTINGS.lock().unwrap_or_else(PoisonError::into_inner) = tcgetattr(io::stdin()).ok();
    }

    pub(super) fn restore() {
        if let Some(settings) = &*SETTINGS.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, settings);
        }
        // What is pasted is no longer marked; and whatever comes next begins a line.
        let _ = io::stdout().write_all(b"\x1b[?2004l\r\n");
    }
}

/// A console gets its settings back from the system.
#[cfg(not(unix))]
mod terminal {
    pub(super) fn remember() {}
    pub(super) fn restore() {}
}

/// Lines that end with `\` go on.
struct Continued;

impl Validator for Continued {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match context.input().ends_with('\\') {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

impl Completer for Continued {
    type Candidate = String;
}

impl Hinter for Continued {
    type Hint = String;
}

impl Highlighter for Continued {}

impl Helper for Continued {}
