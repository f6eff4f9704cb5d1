//! A process that runs llama.cpp, as the one that asks it sees it.

use std::collections::VecDeque;
use std::io::{self, BufReader, BufWriter, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::protocol::{Answer, Request};
use crate::infer::Error;

/// Bytes of the process's log that are kept, the last ones.
const LOG_BYTES: usize = 8 << 10;

/// Lines of it that an error shows.
const LOG_LINES: usize = 6;

/// How long a process that has closed its pipe may take to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a process ends with that was interrupted as this one.
const INTERRUPTED: i32 = 130;

/// A process that runs llama.cpp with one model. It ends with its pipe, at the latest when this is
/// dropped.
#[derive(Debug)]
pub(super) struct Process {
    path: PathBuf,
    child: Child,
    /// None once it was stopped.
    requests: Option<BufWriter<ChildStdin>>,
    answers: BufReader<ChildStdout>,
    log: Arc<Mutex<VecDeque<u8>>>,
    listening: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts `program`, which is chatvec. `path` is the model, for errors.
    pub(super) fn start(program: &Path, path: &Path) -> Result<Self, Error> {
        let fault = |e: io::Error| ended(path, format!("cannot be started: {e}"), "");
        let mut command = Command::new(program);
        // Where llama.cpp gives up, it would start a debugger to show where.
        command.arg(super::COMMAND).env_clear().env("GGML_NO_BACKTRACE", "1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[cfg(unix)]
        {
            use std::os::unix::process::CommandExt;
            // Ctrl-C is for the command: it decides whether this ends, too.
            command.process_group(0).arg0("chatvec");
        }
        let mut child = command.spawn().map_err(fault)?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(fault(io::Error::other("it has no pipes")));
        };
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let kept = log.clone();
        let listening = std::thread::Builder::new().name("llama.cpp".to_owned()).spawn(move || listen(stderr, &kept));
        let mut process = Process {
            path: path.to_owned(),
            child,
            requests: Some(BufWriter::new(stdin)),
            answers: BufReader::with_capacity(1 << 20, stdout),
            log,
            listening: None,
        };
        process.listening = Some(listening.map_err(fault)?);
        Ok(process)
    }

    /// What the process answers next.
    pub(super) fn next(&mut self, n_vocab: usize) -> Result<Answer, Error> {
        match Answer::read(&mut self.answers, n_vocab) {
            Ok(Answer::Refused(what)) => {
                Err(Error::LlamaCppRefuses { path: self.path.clone(), what, log: self.stop() })
            }
            Ok(answer) => Ok(answer),
            Err(e) => Err(self.lost(&e)),
        }
    }

    /// Asks for something that is answered by one message.
    pub(super) fn ask(&mut self, request: &Request) -> Result<Answer, Error> {
        self.send(request)?;
        self.next(0)
    }

    /// Asks for something that is done or not.
    pub(super) fn order(&mut self, request: &Request) -> Result<(), Error> {
        match self.ask(request)? {
            Answer::Done => Ok(()),
            _ => Err(self.confused()),
        }
    }

    pub(super) fn send(&mut self, request: &Request) -> Result<(), Error> {
        let sent = match &mut self.requests {
            Some(requests) => request.write(requests),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        sent.map_err(|e| self.lost(&e))
    }

    /// The error of an answer to something else.
    pub(super) fn confused(&mut self) -> Error {
        let log = self.stop();
        ended(&self.path, "gives an answer to something else".to_owned(), &log)
    }

    /// Why a process that answers no more has ended.
    fn lost(&mut self, e: &io::Error) -> Error {
        let has_closed = matches!(e.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe);
        let started = Instant::now();
        let mut status = None;
        while has_closed && status.is_none() && started.elapsed() < PATIENCE {
            status = self.child.try_wait().ok().flatten();
            std::thread::sleep(Duration::from_millis(if status.is_none() { 2 } else { 0 }));
        }
        let log = self.stop();
        match status {
            Some(status) if was_interrupted(status) => Error::Cancelled,
            Some(status) => ended(&self.path, format!("ended before it had answered ({status})"), &log),
            None => ended(&self.path, format!("gives no answer: {e}"), &log),
        }
    }

    /// Ends the process, and gives the last lines of its log.
    fn stop(&mut self) -> String {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // What is left in the buffer has nobody to read it.
        self.requests.take().map(|requests| requests.into_parts().0);
        // Another process may have the log open, and go on.
        let started = Instant::now();
        while self.listening.as_ref().is_some_and(|thread| !thread.is_finished()) && started.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        last_lines(log.make_contiguous())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

fn ended(path: &Path, what: String, log: &str) -> Error {
    Error::LlamaCppEnded { path: path.to_owned(), what, log: log.to_owned() }
}

/// Reads to the end and keeps the last bytes.
fn listen(mut stderr: ChildStderr, log: &Mutex<VecDeque<u8>>) {
    let mut bytes = [0; 4096];
    loop {
        match stderr.read(&mut bytes) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
            Ok(n) => {
                let mut kept = log.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(&bytes[..n]);
                let n_left_over = kept.len().saturating_sub(LOG_BYTES);
                kept.drain(..n_left_over);
            }
        }
    }
}

/// The last lines of a log in one: where a line ends is a slash.
fn last_lines(log: &[u8]) -> String {
    let log = String::from_utf8_lossy(log);
    let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join(" / ")
}

/// Whether a signal ended it that is a wish to stop.
fn was_interrupted(status: ExitStatus) -> bool {
    #[cfg(unix)]
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    #[cfg(not(unix))]
    let signal = None;
    // SIGHUP, SIGINT and SIGTERM have these numbers everywhere.
    status.code() == Some(INTERRUPTED) || matches!(signal, Some(1 | 2 | 15))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_shown_in_one() {
        let log: String = (0..20).map(|i| format!("line {i}\r\n\n")).collect();
        assert_eq!(last_lines(log.as_bytes()), "line 14 / line 15 / line 16 / line 17 / line 18 / line 19");
        assert_eq!(last_lines(b"\xff"), "\u{fffd}");
        assert_eq!(last_lines(b""), "");
    }
}
