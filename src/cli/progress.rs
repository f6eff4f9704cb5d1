//! A bar on standard error, and the wish to stop.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

use super::Exit;
use crate::eval::{Listener, Phase};
use crate::pipeline::Observer;

/// Set once a signal asked the process to end.
static STOP: AtomicBool = AtomicBool::new(false);
/// Whether an output is being written, which has to be tidied up.
static WRITING: AtomicBool = AtomicBool::new(false);
/// Whether somebody is being answered, who may not want to hear more.
static ANSWERING: AtomicBool = AtomicBool::new(false);
/// What is done before the process ends by a signal.
static BEFORE_EXIT: OnceLock<fn()> = OnceLock::new();

/// Asks the process to end: at once, or while an output is being written at the next chunk; the
/// second time at once. While somebody is being answered, an interrupt only ends the answer.
pub(super) fn stop(is_interrupt: bool) {
    let is_second = STOP.swap(true, Ordering::SeqCst);
    let waits = WRITING.load(Ordering::SeqCst) || is_interrupt && ANSWERING.load(Ordering::SeqCst);
    if is_second || !waits {
        if let Some(tidy_up) = BEFORE_EXIT.get() {
            tidy_up();
        }
        #[allow(clippy::exit, reason = "the main thread may be waiting for a disk, a pipe or a template")]
        std::process::exit(Exit::Interrupted.code().into());
    }
}

/// Has something done before a signal ends the process, such as giving back the terminal.
pub(super) fn before_exit(tidy_up: fn()) {
    let _ = BEFORE_EXIT.set(tidy_up);
}

/// As long as this lives, an interrupt is a wish to hear no more, and ends nothing else.
pub(super) struct Answering(());

impl Answering {
    pub(super) fn begin() -> Self {
        ANSWERING.store(true, Ordering::SeqCst);
        Answering(())
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        ANSWERING.store(false, Ordering::SeqCst);
        STOP.store(false, Ordering::SeqCst);
    }
}

/// Whether a signal asked the process to end.
pub(super) fn is_stopping() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Shows bytes written, rate and time left while a run goes on; nothing if standard error is no
/// terminal.
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub(super) fn new(total_bytes: u64) -> Self {
        WRITING.store(true, Ordering::SeqCst);
        Self::before(total_bytes)
    }

    /// The same while nothing with a name is on the disk yet: a signal ends the process at once.
    pub(super) fn before(total_bytes: u64) -> Self {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(total_bytes) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Progress { bar }
    }

    /// Shows no more, though what was written is not done with.
    pub(super) fn hide(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        WRITING.store(false, Ordering::SeqCst);
        self.bar.finish_and_clear();
    }
}

impl Observer for Progress {
    fn written(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn is_cancelled(&self) -> bool {
        STOP.load(Ordering::Relaxed)
    }

    fn has_begun(&self) {
        WRITING.store(true, Ordering::SeqCst);
    }
}

/// As long as this lives, the first wish to stop waits for what is being done, which has a result
/// in any case.
pub(super) struct Patient(());

impl Patient {
    pub(super) fn begin() -> Self {
        WRITING.store(true, Ordering::SeqCst);
        Patient(())
    }
}

impl Drop for Patient {
    fn drop(&mut self) {
        WRITING.store(false, Ordering::SeqCst);
    }
}

/// Shows prompts answered, or chunks scored, while a model is asked.
pub(super) struct Asked {
    bar: ProgressBar,
}

impl Asked {
    /// `what` there are `n` of.
    pub(super) fn new(what: &str, n: usize) -> Self {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(n as u64) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template(&format!("{{wide_bar}} {{pos}}/{{len}} {what} ETA {{eta}}"));
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Asked { bar }
    }

    /// Prints something while the bar is away.
    pub(super) fn beside<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    /// Told how many are done, says whether to go on.
    pub(super) fn go_on(&self, done: usize) -> bool {
        self.bar.set_position(done as u64);
        !STOP.load(Ordering::Relaxed)
    }
}

impl Listener for Asked {
    fn go_on(&self, n_answered: usize) -> bool {
        Asked::go_on(self, n_answered)
    }

    fn begins(&self, phase: Phase) {
        let template = match phase {
            Phase::Reading => "{wide_bar} reading the model",
            Phase::Asking => "{wide_bar} asking: {pos} of {len} answered, ETA {eta}",
            Phase::Judging => "{wide_bar} judging {pos} answers",
        };
        self.bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.bar.tick();
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
