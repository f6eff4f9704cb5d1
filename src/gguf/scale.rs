//! Tensors that are factors of another tensor.
//!
//! Beside `STEM.weight`, a file may have `STEM.scale`: one f32 that llama.cpp multiplies the
//! product with the weights by, or one for each matrix of a stack of experts. Blocks of NVFP4 have
//! scales of a small range and need it. A weight, as the model computes with it, is thus scale ·
//! decoded. `STEM.input_scale` is there for engines that round activations, too; llama.cpp loads it
//! and leaves it alone.
//!
//! The rules are those of src/llama-model.cpp (`load_tensors`: after the architecture's own
//! tensors, for any type but that of the output) and src/llama-graph.cpp (`build_lora_mm`,
//! `build_lora_mm_id`).

use std::collections::HashMap;
use std::sync::OnceLock;

use super::error::Error;
use super::model::Place;
use super::{Model, TensorId, TensorInfo};
use crate::ggml::GgmlType;

/// What the factors of a model belong to.
#[derive(Default, Debug)]
pub(super) struct Scales {
    /// By tensor of weights.
    of: HashMap<TensorId, TensorId>,
    /// Bytes of factors, by their tensor, from the first time that one is asked for: every piece of
    /// their weights needs one.
    bytes: HashMap<TensorId, OnceLock<Box<[u8]>>>,
}

/// Factors that are kept at most: those of a stack of 4096 matrices.
const KEPT_BYTES: u64 = 16 << 10;

impl Scales {
    /// Those of a model whose tensors are known.
    pub(super) fn new(model: &Model) -> Self {
        let mut of = HashMap::new();
        for (id, info) in model.tensors().enumerate() {
            if let Some(weights) = weights_of(model, info, ".scale")
                && (info.name() != "output.scale" || model.tensor(weights).ty() == GgmlType::NVFP4)
            {
                of.insert(weights, id);
            }
        }
        let is_stored = |id: &TensorId| matches!(model.places[*id], Place::Stored(..));
        let is_kept = |id: &TensorId| is_stored(id) && model.tensor(*id).size() <= KEPT_BYTES;
        let bytes = of.values().copied().filter(is_kept).map(|id| (id, OnceLock::new())).collect();
        Scales { of, bytes }
    }
}

/// The weights that this tensor, `STEM` and `suffix`, is a factor of, if it has their shape: one
/// number, or one for each matrix of the stack. A router's `ffn_gate_inp.scale`, of one number for
/// each input, is a weight in its own right.
fn weights_of(model: &Model, info: &TensorInfo, suffix: &str) -> Option<TensorId> {
    let stem = info.name().strip_suffix(suffix)?;
    let id = model.find(&format!("{stem}.weight"))?;
    let weights = model.tensor(id);
    let fits = info.ty() == GgmlType::F32 && info.ne == [weights.ne[2], 1, 1, 1];
    (fits && weights.n_dims() >= 2 && weights.ne[3] == 1).then_some(id)
}

impl Model {
    /// Bytes of a tensor of factors that is read once and kept; none of any other tensor.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn kept_scale(&self, id: TensorId) -> Result<Option<&[u8]>, Error> {
        let Some(kept) = self.scales.bytes.get(&id) else { return Ok(None) };
        if kept.get().is_none() {
            let mut bytes = vec![0; self.tensor(id).size() as usize];
            self.files()[self.file_of(id)].read(self.tensor(id), 0, &mut bytes)?;
            // Whoever was faster has read the same.
            let _ = kept.set(bytes.into());
        }
        Ok(kept.get().map(|bytes| &**bytes))
    }

    /// The tensor of f32 that the decoded weights of this one have to be multiplied by: as many
    /// numbers as there are matrices in it (`ne[2]`).
    pub fn scale_of(&self, id: TensorId) -> Option<TensorId> {
        self.scales.of.get(&id).copied()
    }

    /// Whether a tensor is a factor of other weights, or of their inputs, rather than weights.
    ///
    /// # Panics
    /// If `id` is not below [`Model::n_tensors`].
    pub fn is_scale(&self, id: TensorId) -> bool {
        let info = self.tensor(id);
        [".scale", ".input_scale"].iter().any(|suffix| weights_of(self, info, suffix).is_some())
    }
}
