//! Which engine runs a model, and the hidden command in which llama.cpp does.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use clap::ValueEnum;

use super::{Exit, template_process};
use crate::infer::{HAS_LLAMA_CPP, LLAMA_CPP_COMMAND, serve_llama_cpp};
use crate::job::{EngineChoice, Engines};

/// The name of the hidden command.
pub(super) const COMMAND: &str = LLAMA_CPP_COMMAND;

/// Bytes of requests that are read at a time.
const PIECE: usize = 64 << 10;

/// Which engine is asked for.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EngineArg {
    /// The built-in one, or llama.cpp for architectures that it does not know
    Auto,
    /// The one of this program
    BuiltIn,
    /// The real llama.cpp, if it is built in
    LlamaCpp,
    /// The built-in one, and llama.cpp is held against it
    Both,
}

impl EngineArg {
    /// The engines of this program, and this choice among them.
    pub(super) fn engines(self) -> Engines {
        let choice = match self {
            EngineArg::Auto => EngineChoice::Auto,
            EngineArg::BuiltIn => EngineChoice::BuiltIn,
            EngineArg::LlamaCpp => EngineChoice::LlamaCpp,
            EngineArg::Both => EngineChoice::Both,
        };
        let program: Option<PathBuf> = HAS_LLAMA_CPP.then(template_process::this_program);
        Engines { choice, program }
    }
}

/// Runs llama.cpp for the command that started this one, and ends with it: whatever is being
/// computed.
pub(super) fn serve() -> Exit {
    // Before anyone listens: the end of the pipe is a success.
    if !HAS_LLAMA_CPP {
        return Exit::Failure;
    }
    without_core_dumps();
    let (sender, requests) = sync_channel(1);
    if std::thread::Builder::new().name("requests".to_owned()).spawn(move || listen(&sender)).is_err() {
        return Exit::Failure;
    }
    let mut requests = Requests { pieces: requests, piece: Vec::new(), n_read: 0 };
    match serve_llama_cpp(&mut requests, &mut io::BufWriter::with_capacity(1 << 20, io::stdout().lock())) {
        Ok(()) => Exit::Success,
        Err(_) => Exit::Failure,
    }
}

/// Hands over what comes, until it ends.
fn listen(sender: &SyncSender<Vec<u8>>) {
    let mut stdin = io::stdin().lock();
    loop {
        let mut piece = vec![0; PIECE];
        match stdin.read(&mut piece) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(n) if n > 0 => {
                piece.truncate(n);
                if sender.send(piece).is_err() {
                    return;
                }
            }
            _ => {
                #[allow(clippy::exit, reason = "whoever asked is gone, and a long computation may be going on")]
                std::process::exit(Exit::Success.code().into());
            }
        }
    }
}

/// What was handed over.
struct Requests {
    pieces: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    n_read: usize,
}

impl Read for Requests {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.n_read == self.piece.len() {
            let Ok(piece) = self.pieces.recv() else { return Ok(0) };
            (self.piece, self.n_read) = (piece, 0);
        }
        let n = out.len().min(self.piece.len() - self.n_read);
        out[..n].copy_from_slice(&self.piece[self.n_read..self.n_read + n]);
        self.n_read += n;
        Ok(n)
    }
}

/// What llama.cpp does not survive would otherwise leave a file as large as the model.
fn without_core_dumps() {
    #[cfg(unix)]
    {
        use nix::sys::resource::{Resource, setrlimit};
        let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_across_pieces() {
        let (sender, pieces) = sync_channel(3);
        [&b"ab"[..], b"cde", b"f"].iter().for_each(|piece| sender.send(piece.to_vec()).unwrap());
        drop(sender);
        let mut requests = Requests { pieces, piece: Vec::new(), n_read: 0 };
        let mut four = [0; 4];
        requests.read_exact(&mut four).unwrap();
        assert_eq!(&four, b"abcd");
        let mut rest = Vec::new();
        requests.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"ef");
    }
}
