//! The real llama.cpp, in a process of its own.
//!
//! It runs every architecture that it knows, and it ends the process where something is not as it
//! expects. So it is in a second process of this program, which is asked over pipes
//! ([`protocol`]): one that ends is an error with the last lines of its log. The process has no
//! environment, and ends when its pipe does, whatever became of the one that asked. What is in it
//! is compiled with the feature `llama-cpp` only.

#[cfg(feature = "llama-cpp")]
mod child;
mod process;
mod protocol;
mod size;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use self::process::Process;
use self::protocol::{Answer, Opened, Opening, Portion, Request};
use self::size::Size;
use crate::gguf::Model;
use crate::infer::engine::{self, Engine, Fed, Host};
use crate::infer::{Error, LoraFile};

/// The argument by which the program becomes such a process.
pub const COMMAND: &str = "run-llama-cpp";

/// Sequences at most (`LLAMA_MAX_SEQ`).
const MOST_SEQUENCES: usize = 256;

/// Tokens that go through the network together.
const BATCH: usize = 128;

/// Rows of logits that are computed together.
const OUTPUTS: usize = 32;

/// Whether llama.cpp is compiled into this crate.
pub const HAS_LLAMA_CPP: bool = cfg!(feature = "llama-cpp");

/// Answers requests until there are no more: what the program does with the argument [`COMMAND`].
/// llama.cpp's log goes to standard error.
///
/// # Errors
/// Of the pipes; [`io::ErrorKind::Unsupported`] without the feature `llama-cpp`.
pub fn serve_llama_cpp(requests: &mut dyn Read, answers: &mut dyn Write) -> io::Result<()> {
    #[cfg(feature = "llama-cpp")]
    return child::serve(requests, answers);
    #[cfg(not(feature = "llama-cpp"))]
    {
        let _ = (requests, answers);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A model that llama.cpp runs, with an F32 cache and without flash attention.
#[derive(Debug)]
pub struct LlamaCpp {
    program: PathBuf,
    opening: Opening,
    opened: Opened,
    size: Size,
}

impl LlamaCpp {
    /// Finds out whether llama.cpp takes metadata and tensors of a model as the header has them.
    /// `program` is chatvec, built with the feature `llama-cpp`; weights are loaded with each
    /// [`Host::sequences`], and computed with by `threads` threads.
    ///
    /// # Errors
    /// [`Error::LlamaCppRefuses`], [`Error::LlamaCppEnded`]; [`Error::Container`] for a big-endian
    /// file.
    pub fn load(program: &Path, model: &Model, loras: &[LoraFile<'_>], threads: usize) -> Result<Self, Error> {
        model.require_little_endian()?;
        let first_file = |model: &Model| model.paths().next().unwrap_or(model.path()).to_owned();
        let opening = Opening {
            path: first_file(model),
            threads: u32::try_from(threads).unwrap_or(u32::MAX),
            is_header_only: true,
            loras: loras.iter().map(|lora| (first_file(lora.model), lora.factor)).collect(),
        };
        let (_, opened) = open(program, &opening)?;
        let opening = Opening { is_header_only: false, ..opening };
        let size = Size::of(model, threads, opened.n_vocab as usize);
        Ok(LlamaCpp { program: program.to_owned(), opening, opened, size })
    }
}

/// Starts a process with a model.
fn open(program: &Path, opening: &Opening) -> Result<(Process, Opened), Error> {
    let mut process = Process::start(program, &opening.path)?;
    match process.ask(&Request::Open(opening.clone()))? {
        Answer::Opened(opened) => Ok((process, opened)),
        _ => Err(process.confused()),
    }
}

impl Host for LlamaCpp {
    fn name(&self) -> String {
        format!("llama.cpp {}", self.opened.version)
    }

    fn n_vocab(&self) -> usize {
        self.opened.n_vocab as usize
    }

    fn n_ctx_train(&self) -> usize {
        self.opened.n_ctx_train.max(1) as usize
    }

    fn bytes_needed(&self, n: usize, room: usize) -> u64 {
        self.size.bytes(n, room)
    }

    fn largest_number(&self, most: usize, room: usize, memory: u64) -> usize {
        // How positions turn depends on the context of a sequence, which has to be all of it then.
        let most = if self.size.has_two_rotations { 1 } else { most.min(MOST_SEQUENCES) };
        engine::largest(most, |n| self.bytes_needed(n, room) <= memory)
    }

    fn sequences(&self, n: usize, _n_ctx: usize, room: usize, memory: u64) -> Result<Box<dyn Engine + '_>, Error> {
        let expected = "at least one sequence of one token, and at most 256 of 16,777,216";
        let what = "the context";
        let found = || format!("{n} sequences of {room} tokens");
        if n == 0 || room == 0 || n > MOST_SEQUENCES || room > 1 << 24 {
            return Err(Error::Setting { what, expected, found: found() });
        }
        let needed = self.bytes_needed(n, room);
        if needed > memory {
            return Err(Error::Memory { path: self.opening.path.clone(), n_ctx: room, needed, allowed: memory });
        }
        let (mut process, opened) = open(&self.program, &self.opening)?;
        if opened != self.opened {
            return Err(process.confused());
        }
        process.order(&Request::Context { n_sequences: n as u32, room: room as u32 })?;
        Ok(Box::new(Sequences { process, tokens: vec![Vec::new(); n], room, n_vocab: self.n_vocab() }))
    }
}

/// Sequences of a process.
struct Sequences {
    process: Process,
    /// Those of each.
    tokens: Vec<Vec<u32>>,
    room: usize,
    n_vocab: usize,
}

impl Engine for Sequences {
    fn n_sequences(&self) -> usize {
        self.tokens.len()
    }

    fn room(&self) -> usize {
        self.room
    }

    fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    fn tokens(&self, sequence: usize) -> &[u32] {
        &self.tokens[sequence]
    }

    fn truncate(&mut self, sequence: usize, n: usize) -> Result<(), Error> {
        if n < self.tokens[sequence].len() {
            self.process.order(&Request::Truncate { sequence: sequence as u32, n: n as u32 })?;
            self.tokens[sequence].truncate(n);
        }
        Ok(())
    }

    fn share(&mut self, from: usize, to: usize, n: usize) -> Result<(), Error> {
        if from == to {
            return self.truncate(to, n);
        }
        let tokens = self.tokens[from][..n].to_vec();
        self.process.order(&Request::Share { from: from as u32, to: to as u32, n: n as u32 })?;
        self.tokens[to] = tokens;
        Ok(())
    }

    fn feed(&mut self, fed: &[Fed<'_>], logits: &mut dyn FnMut(usize, usize, &[f32])) -> Result<(), Error> {
        engine::check(self, fed)?;
        let portion = |f: &Fed<'_>| {
            let (sequence, first) = (f.sequence as u32, f.first.min(f.tokens.len()) as u32);
            Portion { sequence, first, tokens: f.tokens.to_vec() }
        };
        self.process.send(&Request::Feed(fed.iter().map(portion).collect()))?;
        // The token of each whose row comes next.
        let mut due: Vec<usize> = fed.iter().map(|f| f.first).collect();
        loop {
            match self.process.next(self.n_vocab)? {
                Answer::Row { portion, index, logits: row } => {
                    let (i, index) = (portion as usize, index as usize);
                    let is_due = fed.get(i).is_some_and(|f| due[i] == index && index < f.tokens.len());
                    if !is_due || row.len() != self.n_vocab {
                        return Err(self.process.confused());
                    }
                    due[i] += 1;
                    logits(i, index, &row);
                }
                Answer::Done if fed.iter().zip(&due).all(|(f, &due)| due >= f.tokens.len()) => break,
                _ => return Err(self.process.confused()),
            }
        }
        fed.iter().for_each(|f| self.tokens[f.sequence].extend(f.tokens));
        Ok(())
    }
}
