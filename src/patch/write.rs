//! Writing a planned patch, and what its header says only then: what was measured, and hashes.

use std::collections::HashMap;
use std::path::Path;

use bstr::{BStr, ByteSlice};

use super::seal;
use crate::gguf::{Array, Complete, Metadata, Value, WriteOptions, Writer};
use crate::pipeline::{self, Budget, Error, Measured, Observer};
use crate::plan::{self, MergePlan};
use crate::vector::{Inputs, Moments, PATCH_TENSORS, whole_name};

/// Keys of a patch with a number (float32) for each of [`PATCH_TENSORS`], in their order; NaN where
/// there is none, as of the gain of a τ that is zero.
pub(super) const PER_TENSOR_KEYS: [&str; 5] = [
    "chatvec.patch.base_norm",
    "chatvec.patch.norm",
    "chatvec.patch.gain",
    "chatvec.patch.error",
    "chatvec.patch.cosine",
];

/// What they hold, of the rows that are stored: ‖base‖, ‖τ‖, ⟨stored, τ⟩ / ⟨τ, τ⟩, ‖stored − τ‖ /
/// ‖τ‖ and the cosine of stored and τ.
const PER_TENSOR: [fn(&Moments) -> Option<f64>; 5] = [
    |m| Some(m.model2.sqrt()),
    |m| Some(m.delta2.sqrt()),
    Moments::survival,
    Moments::noise,
    |m| {
        // ‖stored‖² = ‖τ‖² + 2⟨stored − τ, τ⟩ + ‖stored − τ‖²
        let stored2 = 2.0 * m.kept - m.delta2 + m.error2;
        (m.delta2 > 0.0 && stored2 > 0.0).then(|| m.kept / (m.delta2 * stored2).sqrt())
    },
];

/// Carries out a plan of [`super::plan_extract`] as [`pipeline::write_unnamed`] does, and seals the
/// file with its hashes.
///
/// # Errors
/// Those of [`pipeline::write_unnamed`]; no file is left then.
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

/// Gives [`PER_TENSOR_KEYS`] their values.
fn fill_per_tensor(metadata: &mut Metadata, measured: &Measured) {
    let Some(names) = metadata.get_strings(PATCH_TENSORS) else { return };
    let by_name: HashMap<&str, &Moments> =
        measured.tensors.iter().map(|tensor| (whole_name(&tensor.name), &tensor.moments)).collect();
    let values_of = |of: fn(&Moments) -> Option<f64>| -> Vec<f32> {
        let value = |name: &BStr| by_name.get(name.to_str().ok()?).and_then(|moments| of(moments));
        names.iter().map(|name| value(name).unwrap_or(f64::NAN) as f32).collect()
    };
    let values = PER_TENSOR.map(values_of);
    for (key, values) in PER_TENSOR_KEYS.iter().zip(values) {
        metadata.set(key, Value::Array(Array::from_f32s(&values)));
    }
}
