//! Why a run ended, or was not begun.

use std::path::PathBuf;

use crate::eval::{ChatterError, JudgeError};
use crate::patch::{extract, lora};
use crate::plan::Loss;
use crate::{chat, gguf, infer, patch, pipeline, plan, vector};

/// Why there is no output under its name. Unless an error names a file, nothing is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Files, and places for them.
    #[error(transparent)]
    Container(#[from] gguf::Error),
    /// Weights that do not fit together, or could not be had.
    #[error(transparent)]
    Vector(#[from] vector::Error),
    /// No plan.
    #[error(transparent)]
    Plan(#[from] plan::Error),
    /// The run itself.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    /// A patch.
    #[error(transparent)]
    Patch(#[from] patch::Error),
    /// A decomposition.
    #[error(transparent)]
    Extraction(#[from] extract::Error),
    /// An adapter.
    #[error(transparent)]
    Lora(#[from] lora::Error),
    /// A model that cannot run.
    #[error(transparent)]
    Infer(#[from] infer::Error),
    /// A model that cannot be asked.
    #[error(transparent)]
    Chatter(#[from] ChatterError),
    /// A vocabulary that is not known.
    #[error(transparent)]
    Tokenizer(#[from] chat::Error),
    /// Answers that could not be judged.
    #[error(transparent)]
    Judge(#[from] JudgeError),
    /// The inputs look wrong.
    #[error("{}; nothing is written (--force goes on all the same)", reasons.join("; "))]
    Refused {
        /// What looks wrong, at least one thing.
        reasons: Vec<String>,
    },
    /// Rounding would take the vector, and the recipe forbids that.
    #[error("rounding would take the vector from {}; nothing is written", plan::listed(lost))]
    Lost {
        /// From what.
        lost: Vec<Loss>,
    },
    /// The adapter has the output's name.
    #[error("the adapter and the output are the same file: {}", path.display())]
    SameFile {
        /// The name.
        path: PathBuf,
    },
    /// The smoke test that was asked for is impossible. Nothing is written.
    #[error("the smoke test")]
    SmokeTest(#[source] Box<Error>),
    /// The adapter that was asked for is impossible, or was not written.
    #[error("the adapter")]
    Adapter(#[source] Box<Error>),
    /// The run was ended while the adapter was written. The output is whole, and has its name.
    #[error("interrupted; {} is complete, its adapter is not written", output.display())]
    Interrupted {
        /// The output.
        output: PathBuf,
    },
    /// The adapter could not be written. The output is whole, and has its name.
    #[error("{} is complete, but its adapter is not written", output.display())]
    NoAdapter {
        /// The output.
        output: PathBuf,
        /// Why.
        source: Box<Error>,
    },
    /// The output is whole, but could not be asked. Hours of work may be in it, and nothing is known
    /// against it.
    #[error("the output could not be asked; it is kept as {}", kept.display())]
    NotAsked {
        /// Where it is.
        kept: PathBuf,
        /// Why.
        source: Box<Error>,
    },
}

impl Error {
    /// Whether a signal or an observer ended the run.
    pub fn is_interruption(&self) -> bool {
        match self {
            Error::Pipeline(pipeline::Error::Cancelled) | Error::Infer(infer::Error::Cancelled) => true,
            Error::Interrupted { .. } => true,
            Error::SmokeTest(source)
            | Error::Adapter(source)
            | Error::NoAdapter { source, .. }
            | Error::NotAsked { source, .. } => source.is_interruption(),
            _ => false,
        }
    }
}
