//! What every step of making a patch needs.

use std::io;
use std::path::Path;

use super::error::Error;
use super::parts::Parts;
use crate::pipeline::{self, Observer, PlannedSums};
use crate::plan::MergePlan;
use crate::vector::Inputs;

/// The making of one patch.
pub(super) struct Extractor<'a> {
    pub(super) plan: &'a MergePlan,
    pub(super) inputs: &'a Inputs,
    pub(super) sums: PlannedSums<'a>,
    pub(super) parts: Parts<'a>,
    pub(super) path: &'a Path,
    pub(super) observer: &'a dyn Observer,
}

impl Extractor<'_> {
    pub(super) fn check_cancelled(&self) -> Result<(), pipeline::Error> {
        if self.observer.is_cancelled() { Err(pipeline::Error::Cancelled) } else { Ok(()) }
    }

    pub(super) fn spill_error(&self, source: io::Error) -> Error {
        Error::Spill { path: self.path.to_owned(), source }
    }
}
