//! Writing a planned patch. Its header says only then what was measured, and has its hashes.

use std::collections::HashMap;
use std::path::Path;

use bstr::{BStr, ByteSlice};

use super::format::{BASE_NORM, COSINE, ERROR, GAIN, NORM, TENSORS, whole_name};
use super::seal;
use crate::gguf::{Array, Complete, Metadata, Value, WriteOptions, Writer};
use crate::pipeline::{self, Budget, Error, Measured, Observer};
use crate::plan::{self, MergePlan};
use crate::vector::{Inputs, Moments};

/// A number that follows from the sums of a tensor; none if its divisor is 0.
type Number = fn(&Moments) -> Option<f64>;

/// Keys with a number for each of [`TENSORS`], and what that number is. It is NaN where there is
/// none.
const PER_TENSOR: [(&str, Number); 5] = [
    (BASE_NORM, |m| Some(m.model2.sqrt())),
    (NORM, |m| Some(m.delta2.sqrt())),
    (GAIN, Moments::survival),
    (ERROR, Moments::noise),
    (COSINE, |m| {
        // ‖stored‖² = ‖τ‖² + 2⟨stored − τ, τ⟩ + ‖stored − τ‖²
        let stored2 = 2.0 * m.kept - m.delta2 + m.error2;
        (m.delta2 > 0.0 && stored2 > 0.0).then(|| m.kept / (m.delta2 * stored2).sqrt())
    }),
];

/// Carries out a plan of [`super::plan_extract`] as [`pipeline::write_unnamed`] does, and seals the
/// file with its hashes.
///
/// # Errors
/// Whatever [`pipeline::write_unnamed`] says; no file is left then.
pub fn write_unnamed(
    plan: &MergePlan,
    inputs: &Inputs,
    path: &Path,
    options: &WriteOptions,
    observer: &dyn Observer,
    budget: &Budget,
) -> Result<(Complete, Measured), Error> {
    let mut options = options.clone();
    options.inputs.extend(inputs.paths().map(Path::to_owned));
    let writer = Writer::create(plan.header().clone(), path, &options)?;
    let measured = pipeline::run(plan, inputs, &writer, observer, budget)?;
    if observer.is_cancelled() {
        return Err(Error::Cancelled);
    }
    let metadata = describe(&writer, plan.header().metadata(), &measured, budget)?;
    Ok((writer.complete(Some(metadata))?, measured))
}

/// What the header says once every tensor is written: what was measured, and the hashes.
///
/// # Errors
/// [`Error::Container`], from reading back what was written; [`Error::Threads`].
pub(super) fn describe(
    writer: &Writer,
    metadata: &Metadata,
    measured: &Measured,
    budget: &Budget,
) -> Result<Metadata, Error> {
    let mut filled = plan::fill_measured(metadata, &measured.total);
    fill_per_tensor(&mut filled, measured);
    seal::seal(writer, filled, budget)
}

/// Takes place in the header for what is measured of each of so many tensors.
pub(super) fn reserve_per_tensor(metadata: &mut Metadata, n_tensors: usize) {
    let unknown = vec![f32::NAN; n_tensors];
    for (key, _) in PER_TENSOR {
        metadata.set(key, Value::Array(Array::from_f32s(&unknown)));
    }
}

/// Gives the header what was measured of each tensor.
fn fill_per_tensor(metadata: &mut Metadata, measured: &Measured) {
    let Some(names) = metadata.get_strings(TENSORS) else { return };
    let by_name: HashMap<&str, &Moments> =
        measured.tensors.iter().map(|tensor| (whole_name(&tensor.name), &tensor.moments)).collect();
    let values = PER_TENSOR.map(|(key, of)| {
        let value = |name: &BStr| by_name.get(name.to_str().ok()?).and_then(|moments| of(moments));
        let values: Vec<f32> = names.iter().map(|name| value(name).unwrap_or(f64::NAN) as f32).collect();
        (key, Value::Array(Array::from_f32s(&values)))
    });
    for (key, value) in values {
        metadata.set(key, value);
    }
}
