//! Writing a patch of decomposed matrices, one after the other.

use std::path::Path;

use super::error::Error;
use super::extractor::Extractor;
use super::forecast::forecast_of;
use super::parts::Parts;
use super::target::Target;
use crate::gguf::{self, Complete, WriteOptions, Writer};
use crate::patch::spill::Spill;
use crate::patch::write;
use crate::pipeline::{self, Budget, Measured, Observer, PlannedSums, TensorResult, TensorSink};
use crate::plan::MergePlan;
use crate::pool::Pool;
use crate::vector::Inputs;

/// Writes a patch of the vector of `plan`, which is one of
/// [`plan_extract`](crate::patch::plan_extract). Gives what was measured of each tensor.
///
/// # Errors
/// [`Error`]; no file is left then.
pub fn write_unnamed(
    plan: &MergePlan,
    inputs: &Inputs,
    target: Target,
    path: &Path,
    options: &WriteOptions,
    observer: &dyn Observer,
    budget: &Budget,
) -> Result<(Complete, Measured), Error> {
    let mut options = options.clone();
    options.inputs.extend(inputs.paths().map(Path::to_owned));
    options.check_name(path, 0)?;
    let parts = Parts::new(plan, inputs, target)?;
    let forecast = forecast_of(&parts, plan, inputs, budget)?;
    forecast.check_disk(path)?;
    let sums = PlannedSums::new(plan, inputs, observer, budget)?;
    let extractor = Extractor { plan, inputs, sums, parts, path, observer };
    let pool = Pool::new(forecast.threads).map_err(pipeline::Error::from)?;
    pool.install(|| extractor.write(&options, budget))
}

impl Extractor<'_> {
    fn write(&self, options: &WriteOptions, budget: &Budget) -> Result<(Complete, Measured), Error> {
        let mut spill = Spill::beside(self.path).map_err(|e| self.spill_error(e))?;
        let Parts { target, matrices, rest, .. } = &self.parts;
        let found = matrices.iter().map(|m| self.decompose(*m, &mut spill)).collect::<Result<Vec<_>, _>>()?;
        let (mut encoded, header) = match target {
            Target::Rank(_) => (None, self.header_of_factors(&found)?),
            _ => {
                let trial = self.search(&found, &mut spill)?;
                let header = self.header(&found, &trial.sizes)?;
                (Some(trial), header)
            }
        };
        let n_rest = rest.tensors().len();
        self.observer.has_begun();
        let writer = Writer::create(header, self.path, options)?;
        let mut measured = match n_rest {
            0 => Measured::default(),
            _ => pipeline::run(rest, self.inputs, &FirstTensors(&writer), self.observer, budget)?,
        };
        let mut next = n_rest;
        if let Some(encoded) = &mut encoded {
            encoded.bytes.rewind().map_err(|e| self.spill_error(e))?;
        }
        for (i, found) in found.iter().enumerate() {
            let (parts, stored) = match &mut encoded {
                None => self.factors(found, &mut spill)?,
                Some(encoded) => self.codes(&found.matrix, encoded.sizes[i], &mut encoded.bytes)?,
            };
            for bytes in &parts {
                writer.write(next, 0, bytes)?;
                next += 1;
            }
            let moments = self.measure(&found.matrix, &stored)?;
            measured.total += moments;
            measured.tensors.push(TensorResult { name: found.matrix.name.to_owned(), moments });
        }
        self.check_cancelled()?;
        let metadata = write::describe(&writer, writer.header().metadata(), &measured, budget)?;
        Ok((writer.complete(Some(metadata))?, measured))
    }
}

/// A writer whose first tensors are those of a plan.
struct FirstTensors<'a>(&'a Writer);

impl TensorSink for FirstTensors<'_> {
    fn write(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), gguf::Error> {
        self.0.write(tensor, offset, bytes)
    }
}
