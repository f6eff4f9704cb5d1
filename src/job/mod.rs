//! What a run is, for the library and for the command alike.
//!
//! A run goes through stages, and each stage is a type. Who has one can read what was found out so
//! far, and decides whether to go on:
//!
//! ```text
//! Merge ── prepare ──> Prepared ── write ──> Written ── judge ──> Judged ── publish ──> Published
//! inputs, recipe       plan, survey,         a file without       kept or rejected,     the file under
//!                      cautions, refusals,   its name, what       what was answered     its name
//!                      memory, place         was measured
//! ```
//!
//! One file a kind of run: [`Merge`] (also of patches), [`Extract`], [`Quantize`], [`Adapter`] and
//! [`Sweep`], which tries several merges in memory. [`Questions`] ask a model, and a [`Blend`] is one
//! that is talked to. Nothing here prints; what a user should hear before a run is a [`Caution`],
//! and what ends one is an [`Error`].

mod adapter;
mod asking;
mod engines;
mod caution;
mod error;
mod extract;
mod look;
mod merge;
mod quantize;
mod sweep;
mod talking;

use std::path::{Path, PathBuf};

pub use adapter::{Adapter, AdapterFile, PreparedAdapter, ReadyAdapter};
pub use asking::{Questions, Talk};
pub use caution::{Caution, LEAST_COSINE};
pub use engines::{EngineChoice, Engines, Hosts};
pub use error::Error;
pub use extract::{Extract, Extracted, Form, Holds, PreparedExtract};
pub use look::{TypesAs, expected};
pub use merge::{Held, Judged, Merge, Outcome, Prepared, PreparedInMemory, Published, SmokeTest, Written};
pub use quantize::{PreparedQuantize, Quantize};
pub use sweep::{References, SaidOf, Sweep, Tried, Way, recommend};
pub use talking::{Blend, WithAdapters, talk_context};

use crate::gguf::{self, Limits, WriteOptions};
use crate::pipeline::Budget;

/// Behind the name of an output that is rejected.
pub const REJECTED: &str = ".rejected";

/// Below this share of the vector a patch, or an expectation, is not called a success.
pub const LEAST_SURVIVAL: f64 = 0.9;

/// What a run may use, and how far it goes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How the output is written. The inputs of the run are never overwritten, whether they are
    /// named here or not.
    pub write: WriteOptions,
    /// Memory and threads.
    pub budget: Budget,
    /// What a file that is opened may cost.
    pub limits: Limits,
    /// Whether to go on although the inputs look wrong.
    pub is_forced: bool,
    /// Whether nothing is to be written: a place that will not do is then a caution and no error.
    pub is_dry_run: bool,
    /// File types to forecast beside those of the plan, each for all tensors.
    pub forecast: &'static [&'static str],
}

impl Settings {
    /// A run within a budget, with everything else as it is by default.
    pub fn new(budget: Budget) -> Self {
        let limits = Limits::within(budget.memory);
        Settings { write: WriteOptions::default(), budget, limits, is_forced: false, is_dry_run: false, forecast: &[] }
    }

    /// How an output is written that none of these files may be.
    fn write_beside<'a>(&self, inputs: impl Iterator<Item = &'a Path>) -> WriteOptions {
        let mut options = self.write.clone();
        options.inputs.extend(inputs.map(Path::to_owned));
        options
    }
}

/// The name of an output that is rejected.
fn rejected(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    path.as_mut_os_string().push(REJECTED);
    path
}

/// Refuses a place where a file may be rejected and its other name cannot be had. An earlier
/// rejected one is replaced, an input never.
fn check_rejected(path: &Path, options: &WriteOptions, header: &gguf::Header) -> Result<(), gguf::Error> {
    let options = WriteOptions { overwrite: true, ..options.clone() };
    options.check(&rejected(path), header).map(drop)
}
