//! Signals: which of them end a run, and when.
//!
//! Ctrl-C, SIGTERM and SIGHUP end the process at once, or while an output is being written at the
//! next chunk, so that the temporary file is removed. While a chat answers, Ctrl-C ends the answer
//! alone. The second one ends it at once in any case: a
//! chat template or a long prompt may keep the output from ever coming to the next chunk.

use super::progress;

/// From now on signals are looked after. Called before any thread is started.
///
/// They are blocked and waited for by a thread, rather than handled: a handler would take the place
/// of what the parent has chosen, and who starts a command by nohup wants SIGHUP to be ignored.
/// Ignored ones stay so.
///
/// SIGXFSZ, by which the system ends who writes beyond `ulimit -f`, is blocked as well: the write
/// fails, and the run as any other that cannot write. The programs that are started by
/// [`std::process::Command`] have no signals blocked.
#[cfg(unix)]
pub(super) fn look_after() {
    use nix::sys::signal::{SigSet, Signal};

    let (ignored, blocked) = (ignored(), SigSet::thread_get_mask().unwrap_or_else(|_| SigSet::empty()));
    let is_ours = |signal: &Signal| ignored >> (*signal as i32 - 1) & 1 == 0 && !blocked.contains(*signal);
    let mut ending = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().filter(is_ours).for_each(|s| ending.add(s));
    let mut all = ending;
    all.add(Signal::SIGXFSZ);
    // Without any of this the process would still end, only less tidily.
    if all.thread_block().is_err() || ending == SigSet::empty() {
        return;
    }
    let wait = move || {
        while let Ok(signal) = ending.wait() {
            progress::stop(signal == Signal::SIGINT);
        }
    };
    if std::thread::Builder::new().name("signals".to_owned()).spawn(wait).is_err() {
        let _ = ending.thread_unblock();
    }
}

/// The signals that the parent has set to be ignored: bit n − 1 for signal n. Linux says so;
/// elsewhere an ignored signal is thrown away before anyone can wait for it (POSIX leaves both to
/// the system).
#[cfg(unix)]
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
}

/// From now on Ctrl-C and the closing of the console are looked after.
#[cfg(not(unix))]
pub(super) fn look_after() {
    // Without a handler the process would still end, only less tidily.
    let _ = ctrlc::set_handler(|| progress::stop(true));
}
