//! Which engine runs a model.

use std::path::PathBuf;

use crate::eval::{Agreement, AgreementBounds, Reader, Transcript};
use crate::gguf::Model;
use crate::infer::{self, Host, LlamaCpp, LoraFile, Transformer};

/// Which engine is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum EngineChoice {
    /// The built-in one, and llama.cpp for architectures that it does not know.
    #[default]
    Auto,
    /// The built-in one.
    BuiltIn,
    /// llama.cpp.
    LlamaCpp,
    /// The built-in one, and llama.cpp is held against it.
    Both,
}

/// The engines that there are, and which is asked for.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Engines {
    /// Which.
    pub choice: EngineChoice,
    /// The program that runs llama.cpp: chatvec, built with the feature `llama-cpp`. None where there
    /// is none.
    pub program: Option<PathBuf>,
}

/// A model in one engine, or in two.
pub struct Hosts {
    /// The engine that answers.
    pub first: Box<dyn Host>,
    /// The one that is held against it.
    pub second: Option<Box<dyn Host>>,
    bounds: AgreementBounds,
}

impl Engines {
    /// A model, and adapters that are added to it while it runs, which computes with so many
    /// threads.
    ///
    /// # Errors
    /// Those of [`Transformer::load_with`] and [`LlamaCpp::load`]; [`infer::Error::NoLlamaCpp`],
    /// [`infer::Error::OtherEngine`].
    pub fn load(&self, model: &Model, loras: &[LoraFile<'_>], threads: usize) -> Result<Hosts, infer::Error> {
        let built_in = || Ok(Box::new(Transformer::load_with(model, loras, threads)?) as Box<dyn Host>);
        let llama_cpp = || -> Result<Box<dyn Host>, infer::Error> {
            let program = self.program.as_deref().ok_or(infer::Error::NoLlamaCpp)?;
            Ok(Box::new(LlamaCpp::load(program, model, loras, threads)?))
        };
        let (first, second) = match self.choice {
            EngineChoice::BuiltIn => (built_in().map_err(with_other)?, None),
            EngineChoice::LlamaCpp => (llama_cpp()?, None),
            EngineChoice::Both => {
                let second = llama_cpp()?;
                (built_in()?, Some(second))
            }
            EngineChoice::Auto => match built_in() {
                Err(infer::Error::Architecture { .. } | infer::Error::NotBuiltIn { .. }) if self.program.is_some() => {
                    (llama_cpp()?, None)
                }
                loaded => (loaded.map_err(with_other)?, None),
            },
        };
        let matrices = std::iter::once(model).chain(loras.iter().map(|lora| lora.model));
        let types = matrices.flat_map(|model| model.tensors().filter(|t| t.n_dims() > 1).map(|t| t.ty()));
        Ok(Hosts { first, second, bounds: AgreementBounds::of(types) })
    }
}

/// Says of an unknown architecture who would know it.
fn with_other(error: infer::Error) -> infer::Error {
    match error {
        infer::Error::Architecture { path, found } => infer::Error::OtherEngine { path, found },
        error => error,
    }
}

impl Hosts {
    fn all(&self) -> impl Iterator<Item = &dyn Host> {
        std::iter::once(&*self.first).chain(self.second.as_deref())
    }

    /// What answers, and what is held against it.
    pub fn names(&self) -> String {
        self.all().map(Host::name).collect::<Vec<_>>().join(" and ")
    }

    /// The largest context, of at most `most` tokens, that a sequence of each engine has room for in
    /// `memory` bytes; 0 if there is none.
    pub fn largest_context(&self, most: usize, memory: u64) -> usize {
        match &self.second {
            None => self.first.largest_context(most, memory),
            Some(second) => {
                let half = memory / 2;
                self.first.largest_context(most, half).min(second.largest_context(most, half))
            }
        }
    }

    /// Bytes that a sequence of so many tokens takes in all engines.
    ///
    /// # Errors
    /// [`infer::Error::Memory`] if these are more than `memory`.
    pub fn require_room(&self, model: &Model, n_ctx: usize, memory: u64) -> Result<u64, infer::Error> {
        let needed = self.all().fold(0, |sum: u64, host| sum.saturating_add(host.bytes_needed(1, n_ctx)));
        match needed <= memory {
            true => Ok(needed),
            false => Err(infer::Error::Memory { path: model.path().to_owned(), n_ctx, needed, allowed: memory }),
        }
    }

    /// A reader of texts of at most so many tokens, for which each engine takes at most `memory`
    /// bytes.
    ///
    /// # Errors
    /// Those of [`Host::sequences`].
    pub fn reader(&self, n_ctx: usize, memory: u64) -> Result<Reader<'_>, infer::Error> {
        let first = self.first.sequences(1, n_ctx, n_ctx, memory)?;
        let second = self.second.as_ref().map(|host| host.sequences(1, n_ctx, n_ctx, memory)).transpose()?;
        Ok(Reader::new(first, second, self.bounds))
    }

    /// How far the second engine is from the first along what the first said; none without one.
    /// `go_on` is asked before each answer.
    ///
    /// # Errors
    /// Those of the engines; [`infer::Error::Cancelled`] if `go_on` says no.
    pub fn agreement(
        &self,
        transcripts: &[Transcript],
        n_ctx: usize,
        memory: u64,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<Agreement>, infer::Error> {
        if self.second.is_none() {
            return Ok(None);
        }
        let mut reader = self.reader(n_ctx, memory)?;
        for transcript in transcripts {
            if !go_on() {
                return Err(infer::Error::Cancelled);
            }
            let Some((last, tokens)) = transcript.tokens.split_last() else { continue };
            reader.read(tokens, Some(*last), transcript.n_asked.saturating_sub(1), &mut |_, _| {})?;
        }
        Ok(reader.agreement().cloned())
    }
}
