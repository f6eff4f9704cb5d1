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

use super::TensorInfo;
use super::error::Error;
use super::names::OUTPUT_SCALE;
use super::place::TensorId;
use crate::ggml::GgmlType;

/// What the factors of a model belong to.
#[derive(Default, Debug)]
pub(super) struct Scales {
    /// The tensor of factors, by the tensor of the weights that it multiplies.
    of: HashMap<TensorId, TensorId>,
    /// Bytes of factors, by their tensor, from the first time that one is asked for: every piece of
    /// their weights needs one.
    bytes: HashMap<TensorId, OnceLock<Box<[u8]>>>,
}

/// Factors that are kept at most: those of a stack of 4096 matrices.
const KEPT_BYTES: u64 = 16 << 10;

impl Scales {
    /// The factors among `tensors`, each with its position and whether its bytes stand in a file.
    /// `find` knows all tensors by their names.
    pub(super) fn new<'a>(
        tensors: impl Iterator<Item = (TensorId, &'a TensorInfo, bool)>,
        find: impl Fn(&str) -> Option<(TensorId, &'a TensorInfo)>,
    ) -> Self {
        let mut scales = Scales::default();
        for (id, info, is_stored) in tensors {
            if let Some((weights, of)) = weights_of(info, ".scale", &find)
                && (info.name() != OUTPUT_SCALE || of.ty() == GgmlType::NVFP4)
            {
                scales.of.insert(weights, id);
                if is_stored && info.size() <= KEPT_BYTES {
                    scales.bytes.insert(id, OnceLock::new());
                }
            }
        }
        scales
    }

    /// The factors of these weights.
    pub(super) fn of(&self, weights: TensorId) -> Option<TensorId> {
        self.of.get(&weights).copied()
    }

    /// Bytes of a tensor of factors that is read once, by `read`, and kept; none of any other
    /// tensor.
    ///
    /// # Errors
    /// Those of `read`.
    pub(super) fn kept(
        &self,
        id: TensorId,
        read: impl FnOnce() -> Result<Vec<u8>, Error>,
    ) -> Result<Option<&[u8]>, Error> {
        let Some(kept) = self.bytes.get(&id) else { return Ok(None) };
        if kept.get().is_none() {
            // Whoever was faster has read the same.
            let _ = kept.set(read()?.into());
        }
        Ok(kept.get().map(|bytes| &**bytes))
    }
}

/// Whether a tensor is a factor of other weights, or of their inputs, rather than weights. `find`
/// knows all tensors by their names.
pub(super) fn is_scale<'a>(info: &TensorInfo, find: impl Fn(&str) -> Option<(TensorId, &'a TensorInfo)>) -> bool {
    [".scale", ".input_scale"].iter().any(|suffix| weights_of(info, suffix, &find).is_some())
}

/// The weights that this tensor, `STEM` and `suffix`, is a factor of, if it has their shape: one
/// number, or one for each matrix of the stack. A router's `ffn_gate_inp.scale`, of one number for
/// each input, is a weight in its own right.
fn weights_of<'a>(
    info: &TensorInfo,
    suffix: &str,
    find: impl Fn(&str) -> Option<(TensorId, &'a TensorInfo)>,
) -> Option<(TensorId, &'a TensorInfo)> {
    let stem = info.name().strip_suffix(suffix)?;
    let (id, weights) = find(&format!("{stem}.weight"))?;
    let fits = info.ty() == GgmlType::F32 && info.ne == [weights.ne[2], 1, 1, 1];
    (fits && weights.n_dims() >= 2 && weights.ne[3] == 1).then_some((id, weights))
}
