//! Tables that say what belongs together, held against each other.

use super::error::Error;
use super::inputs::Inputs;
use super::nature::{Nature, nature};
use super::source::TensorSource;
use super::term::SourceId;
use crate::gguf::{Model, TensorId};

/// Bytes that are compared at a time.
const PIECE_BYTES: u64 = 1 << 16;

/// A table that two inputs have, each its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OtherTable {
    /// Its name.
    pub tensor: String,
    /// The input that others are held against.
    pub own: SourceId,
    /// The one whose table differs.
    pub other: SourceId,
}

/// Looks for a [table](Nature::Table) of the output in which another input differs. What is added to
/// the model is then of other experts, or rows of other tokens.
///
/// # Errors
/// Those of the container.
pub fn other_table(inputs: &Inputs) -> Result<Option<OtherTable>, Error> {
    let own = inputs.skeleton();
    let model = inputs.source(own);
    let architecture = model.metadata().architecture().unwrap_or_default();
    for (id, info) in model.tensors().enumerate() {
        if nature(architecture, info.name(), info.n_dims()) != Nature::Table {
            continue;
        }
        for (other, (_, source)) in inputs.sources().enumerate() {
            let Some(other_id) = source.find(info.name()).filter(|_| other != own) else { continue };
            if !are_same((model, id), (source, other_id))? {
                return Ok(Some(OtherTable { tensor: info.name().to_owned(), own, other }));
            }
        }
    }
    Ok(None)
}

fn are_same((a, id_a): (&Model, TensorId), (b, id_b): (&Model, TensorId)) -> Result<bool, Error> {
    let (info_a, info_b) = (a.tensor(id_a), b.tensor(id_b));
    if info_a.ty() != info_b.ty() || !info_a.same_shape(info_b) {
        return Ok(false);
    }
    let (mut bytes_a, mut bytes_b) = (Vec::new(), Vec::new());
    for offset in (0..info_a.size()).step_by(PIECE_BYTES as usize) {
        let n = PIECE_BYTES.min(info_a.size() - offset) as usize;
        bytes_a.resize(n, 0);
        bytes_b.resize(n, 0);
        TensorSource::read(a, id_a, offset, &mut bytes_a)?;
        TensorSource::read(b, id_b, offset, &mut bytes_b)?;
        if bytes_a != bytes_b {
            return Ok(false);
        }
    }
    Ok(true)
}
