//! Carrying out a plan into a file.

use std::path::Path;

use super::{Budget, Error, Measured, Observer, run};
use crate::gguf;
use crate::plan::{self, MergePlan};
use crate::vector::Inputs;

/// An output that is done.
#[derive(Clone, PartialEq, Debug)]
pub struct WrittenFile {
    /// Where it is.
    pub file: gguf::Finished,
    /// What was measured on the way.
    pub measured: Measured,
}

/// Carries out a plan into a file: checks the place, takes the disk space, runs, writes the header
/// with what was measured, and gives the file its name. The inputs are never overwritten.
///
/// # Errors
/// Those of [`run()`] and of [`gguf::Writer`]; no file is left then.
pub fn write(
    plan: &MergePlan,
    inputs: &Inputs,
    path: &Path,
    options: &gguf::WriteOptions,
    observer: &dyn Observer,
    budget: &Budget,
) -> Result<WrittenFile, Error> {
    let (file, measured) = write_unnamed(plan, inputs, path, options, observer, budget)?;
    Ok(WrittenFile { file: file.publish()?, measured })
}

/// Carries out a plan into a file as [`write()`] does, but leaves it to the caller to give the file
/// its name, once it was looked at.
///
/// # Errors
/// Those of [`write()`].
pub fn write_unnamed(
    plan: &MergePlan,
    inputs: &Inputs,
    path: &Path,
    options: &gguf::WriteOptions,
    observer: &dyn Observer,
    budget: &Budget,
) -> Result<(gguf::Complete, Measured), Error> {
    let mut options = options.clone();
    options.inputs.extend(inputs.paths().map(Path::to_owned));
    let writer = gguf::Writer::create(plan.header().clone(), path, &options)?;
    let measured = run(plan, inputs, &writer, observer, budget)?;
    if observer.is_cancelled() {
        return Err(Error::Cancelled);
    }
    // What a file says of an earlier merge stays true of it.
    let metadata = match inputs.vectors().is_empty() {
        true => None,
        false => Some(plan::fill_measured(plan.header().metadata(), &measured.total)),
    };
    Ok((writer.complete(metadata)?, measured))
}
