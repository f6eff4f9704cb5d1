//! Chat templates in a process of their own.
//!
//! A template is code from a stranger, and the engine cannot bound all of what it costs
//! ([`crate::chat`]). So it is rendered by a second process of this program, which is ended at a
//! bound of wall-clock time and, on Linux, has a bound of memory. Requests and answers are JSON in
//! frames of a stated length, over pipes. The process has no environment, opens no files, gets no
//! signals of the terminal, and ends when its pipe does, whatever became of the command at the
//! other end.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{Exit, progress};
use crate::chat::{Conversation, TemplateError, TemplateRequest, TemplateRunner, Templates, max_output_bytes};

/// What a user may say about it.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct TemplateArgs {
    /// Do not render the chat template, which is code from a stranger; what needed it is unchecked
    /// then, and said to be
    #[arg(long)]
    no_template: bool,
}

/// What the hidden command is told.
#[derive(Args, Debug)]
pub(super) struct ServeArgs {
    /// Bytes of memory
    #[arg(long)]
    memory_limit: u64,
}

/// The name of the hidden command.
pub(super) const COMMAND: &str = "render-templates";

/// What templates may cost. All 70 templates of llama.cpp take less than 10 ms for a conversation,
/// and a few megabytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TemplateLimits {
    /// For one conversation, by the clock on the wall.
    pub render: Duration,
    /// For all of them together, not counting the first [`TemplateLimits::free`] of each.
    pub together: Duration,
    /// See there.
    pub free: Duration,
    /// Bytes of memory, the 64 MiB of its stack among them.
    pub memory: u64,
}

impl Default for TemplateLimits {
    /// 5 s for one, 10 s for all together beyond half a second of each, and 512 MiB.
    fn default() -> Self {
        TemplateLimits {
            render: Duration::from_secs(5),
            together: Duration::from_secs(10),
            free: Duration::from_millis(500),
            memory: 512 << 20,
        }
    }
}

/// How often a wish to stop is looked for while a template is rendered.
const LOOK: Duration = Duration::from_millis(50);

/// Bytes of an answer beside the prompt, in which a byte may be written with six.
const ANSWER_BYTES: usize = 64 << 10;

/// Bytes of what the process may say as it ends.
const LAST_WORDS: u64 = 4096;

impl TemplateArgs {
    /// Who renders templates for this command.
    pub(super) fn templates(self) -> Templates {
        if self.no_template { Templates::by(Arc::new(Skipping)) } else { templates() }
    }
}

/// The process of this command, which is started when it is first needed.
fn of_command() -> &'static Arc<TemplateProcess> {
    static PROCESS: OnceLock<Arc<TemplateProcess>> = OnceLock::new();
    PROCESS.get_or_init(|| Arc::new(TemplateProcess::new(this_program(), TemplateLimits::default())))
}

/// This program, to be started again.
pub(super) fn this_program() -> PathBuf {
    // As long as it runs, the program can be found by this name, though it may have been replaced on
    // the disk.
    let program = if cfg!(target_os = "linux") { Ok("/proc/self/exe".into()) } else { std::env::current_exe() };
    program.unwrap_or_default()
}

/// Templates are rendered by the process of this command.
pub(super) fn templates() -> Templates {
    Templates::by(of_command().clone())
}

/// Ends the process until it is needed again: a long run follows.
pub(super) fn rest() {
    of_command().rest();
}

/// Renders nothing.
#[derive(Debug)]
struct Skipping;

impl TemplateRunner for Skipping {
    fn run(&self, _: &TemplateRequest) -> Result<String, TemplateError> {
        Err(TemplateError::Skipped)
    }
}

/// A process that renders templates, one after the other. One that was ended, or ended itself, is
/// started again for the next template, but never for one that ended it.
#[derive(Debug)]
pub struct TemplateProcess {
    program: PathBuf,
    limits: TemplateLimits,
    state: Mutex<State>,
}

#[derive(Default, Debug)]
struct State {
    running: Option<Running>,
    /// Of [`TemplateLimits::together`].
    spent: Duration,
    /// Templates that met a bound.
    given_up: HashMap<String, Bound>,
}

#[derive(Clone, Copy, Debug)]
enum Bound {
    Time(Duration),
    Memory(u64),
}

impl From<Bound> for TemplateError {
    fn from(bound: Bound) -> Self {
        match bound {
            Bound::Time(limit) => TemplateError::Time { limit },
            Bound::Memory(limit) => TemplateError::Memory { limit },
        }
    }
}

/// Why there is no answer.
enum Lost {
    Bound(Bound),
    Interrupted,
    Process(String),
}

impl TemplateProcess {
    /// By this program, which has to be chatvec. Nothing is started before there is something to
    /// render.
    pub fn new(program: PathBuf, limits: TemplateLimits) -> Self {
        TemplateProcess { program, limits, state: Mutex::default() }
    }

    /// Ends the process until it is needed again.
    pub fn rest(&self) {
        drop(self.state.lock().unwrap_or_else(PoisonError::into_inner).running.take());
    }

    /// The answer of the process, which is then kept for the next request.
    fn ask(&self, state: &mut State, request: &TemplateRequest) -> Result<Answer, Lost> {
        let limits = &self.limits;
        let left = limits.together.saturating_sub(state.spent);
        if left.is_zero() {
            return Err(Lost::Bound(Bound::Time(limits.together)));
        }
        let limit = limits.render.min(left + limits.free);
        let started = Instant::now();
        let running = match state.running.take() {
            Some(running) => running,
            None => Running::start(&self.program, limits.memory)
                .map_err(|e| Lost::Process(format!("cannot be started: {e}")))?,
        };
        let answer = running.ask(request, started + limit);
        state.spent += started.elapsed().saturating_sub(limits.free);
        match answer {
            Ok(answer) => {
                state.running = Some(running);
                Ok(answer)
            }
            Err(Ended::Late) => Err(Lost::Bound(Bound::Time(limit))),
            Err(Ended::Interrupted) => Err(Lost::Interrupted),
            Err(Ended::Lost(reason)) => Err(running.last_words(limits.memory, reason)),
        }
    }
}

impl TemplateRunner for TemplateProcess {
    fn run(&self, request: &TemplateRequest) -> Result<String, TemplateError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bound) = state.given_up.get(&request.source) {
            return Err((*bound).into());
        }
        match self.ask(&mut state, request) {
            Ok(answer) => answer.into(),
            Err(Lost::Bound(bound)) => {
                state.given_up.insert(request.source.clone(), bound);
                Err(bound.into())
            }
            Err(Lost::Interrupted) => Err(TemplateError::Interrupted),
            Err(Lost::Process(reason)) => Err(TemplateError::Process { reason }),
        }
    }
}

/// What the process says.
#[derive(Serialize, Deserialize)]
enum Answer {
    Prompt(String),
    Error(TemplateError),
}

impl From<Answer> for Result<String, TemplateError> {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Prompt(prompt) => Ok(prompt),
            Answer::Error(error) => Err(error),
        }
    }
}

impl From<Result<String, TemplateError>> for Answer {
    fn from(result: Result<String, TemplateError>) -> Self {
        match result {
            Ok(prompt) => Answer::Prompt(prompt),
            Err(error) => Answer::Error(error),
        }
    }
}

/// A process, and the thread that talks with it: pipes cannot be waited for with a clock.
#[derive(Debug)]
struct Running {
    child: Mutex<Child>,
    requests: Sender<(Vec<u8>, usize)>,
    answers: Receiver<io::Result<Vec<u8>>>,
}

/// Why there is no answer of a process.
enum Ended {
    Late,
    Interrupted,
    Lost(String),
}

impl Running {
    fn start(program: &std::path::Path, memory: u64) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.arg(COMMAND).arg("--memory-limit").arg(memory.to_string()).env_clear();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[cfg(unix)]
        {
            use std::os::unix::process::CommandExt;
            // Ctrl-C is for the command, with which the process ends.
            command.process_group(0).arg0("chatvec");
        }
        let mut child = command.spawn()?;
        let (Some(mut stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("it has no pipes"));
        };
        let (requests, to_send) = mpsc::channel::<(Vec<u8>, usize)>();
        let (to_give, answers) = mpsc::channel();
        let talk = move || {
            for (request, limit) in to_send {
                let answer = write_frame(&mut stdin, &request)
                    .and_then(|()| read_frame(&mut stdout, limit)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()));
                if to_give.send(answer).is_err() {
                    return;
                }
            }
        };
        let running = Running { child: Mutex::new(child), requests, answers };
        std::thread::Builder::new().name("chat template".to_owned()).stack_size(256 << 10).spawn(talk)?;
        Ok(running)
    }

    fn ask(&self, request: &TemplateRequest, deadline: Instant) -> Result<Answer, Ended> {
        let lost = |e: &dyn std::fmt::Display| Ended::Lost(format!("gives no answer: {e}"));
        let bytes = serde_json::to_vec(request).map_err(|e| lost(&e))?;
        let len = request.conversation.as_ref().map_or(0, Conversation::len);
        let limit = max_output_bytes(len).saturating_mul(6).saturating_add(ANSWER_BYTES);
        self.requests.send((bytes, limit)).map_err(|e| lost(&e))?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left.min(LOOK)) {
                Ok(Ok(answer)) => return serde_json::from_slice(&answer).map_err(|e| lost(&e)),
                Ok(Err(e)) => return Err(lost(&e)),
                Err(RecvTimeoutError::Timeout) if progress::is_stopping() => return Err(Ended::Interrupted),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Err(Ended::Late),
                Err(RecvTimeoutError::Timeout) => {}
                Err(e @ RecvTimeoutError::Disconnected) => return Err(lost(&e)),
            }
        }
    }

    /// Why a process that answers no more has ended. Where memory is refused, Rust says so on
    /// standard error and aborts.
    fn last_words(&self, memory: u64, reason: String) -> Lost {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let status = child.wait();
        let mut words = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            let _ = stderr.take(LAST_WORDS).read_to_end(&mut words);
        }
        match status {
            Ok(status) if !was_killed(status) && String::from_utf8_lossy(&words).contains("memory allocation") => {
                Lost::Bound(Bound::Memory(memory))
            }
            Ok(status) if !was_killed(status) => Lost::Process(format!("ended before it had rendered ({status})")),
            _ => Lost::Process(reason),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }
}

#[cfg(unix)]
fn was_killed(status: ExitStatus) -> bool {
    std::os::unix::process::ExitStatusExt::signal(&status) == Some(9)
}

#[cfg(not(unix))]
fn was_killed(_: ExitStatus) -> bool {
    false
}

/// The other end: answers requests until there are no more.
pub(super) fn serve(args: &ServeArgs) -> Exit {
    limit(args.memory_limit);
    // A panic of the engine is an error of the template, which the answer says.
    std::panic::set_hook(Box::new(|_| {}));
    let (sender, requests) = mpsc::channel();
    let listen = move || {
        let mut stdin = io::stdin().lock();
        while let Ok(Some(request)) = read_frame(&mut stdin, usize::MAX) {
            if sender.send(request).is_err() {
                break;
            }
        }
        #[allow(clippy::exit, reason = "whoever asked is gone, and a template may be in the middle of endless work")]
        std::process::exit(Exit::Success.code().into());
    };
    if std::thread::Builder::new().spawn(listen).is_err() {
        return Exit::Failure;
    }
    let mut parsed = None;
    for request in requests {
        let Ok(request) = serde_json::from_slice::<TemplateRequest>(&request) else { return Exit::Failure };
        let answer = Answer::from(request.run(&mut parsed));
        let Ok(answer) = serde_json::to_vec(&answer) else { return Exit::Failure };
        if write_frame(&mut io::stdout().lock(), &answer).is_err() {
            break;
        }
    }
    Exit::Success
}

/// Takes from this process what rendering does not need. The limit of memory is of what can be
/// written to (`RLIMIT_DATA`), so that neither the program itself nor address space that is
/// reserved counts; other systems than Linux count otherwise.
fn limit(memory: u64) {
    #[cfg(target_os = "linux")]
    {
        use nix::sys::resource::{Resource, setrlimit};
        let limits = [
            (Resource::RLIMIT_DATA, memory),
            (Resource::RLIMIT_CORE, 0),
            (Resource::RLIMIT_NOFILE, 0),
            (Resource::RLIMIT_FSIZE, 0),
        ];
        for (resource, limit) in limits {
            // One that is lower already cannot be raised, and need not be.
            let _ = setrlimit(resource, limit, limit);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// Writes a length in four bytes, little-endian, and so many bytes.
fn write_frame(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let len = u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    out.write_all(&len.to_le_bytes())?;
    out.write_all(bytes)?;
    out.flush()
}

/// Reads what [`write_frame`] wrote: none where the pipe has ended before it. Memory is taken as
/// bytes arrive.
fn read_frame(from: &mut impl Read, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let mut len = [0; 4];
    match from.read_exact(&mut len) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let len = u32::from_le_bytes(len) as usize;
    if len > limit {
        return Err(io::Error::other(format!("it would have {len} bytes, and at most {limit} are taken")));
    }
    let mut bytes = Vec::new();
    from.take(len as u64).read_to_end(&mut bytes)?;
    if bytes.len() < len { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(Some(bytes)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_they_were_written_and_no_further() {
        let mut pipe = Vec::new();
        write_frame(&mut pipe, b"one").unwrap();
        write_frame(&mut pipe, b"").unwrap();
        let mut from = &pipe[..];
        assert_eq!(read_frame(&mut from, 3).unwrap().as_deref(), Some(&b"one"[..]));
        assert_eq!(read_frame(&mut from, 3).unwrap().as_deref(), Some(&b""[..]));
        assert!(read_frame(&mut from, 3).unwrap().is_none());
        assert!(read_frame(&mut &pipe[..], 2).is_err(), "longer than may be");
        assert!(read_frame(&mut &pipe[..6], 3).is_err(), "cut");
        assert!(read_frame(&mut &b"\xff\xff\xff\xffx"[..], usize::MAX).is_err(), "4 GiB are not taken for a claim");
    }
}
