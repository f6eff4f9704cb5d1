//! Which tensors an adapter can hold.

use crate::gguf;
use crate::patch::format::LOW_RANK_A;
use crate::plan::TensorPlan;

/// Why a tensor is not in an adapter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It is no matrix: llama.cpp adds to nothing else.
    NotAMatrix,
    /// llama.cpp does not look for an adapter where it multiplies with this tensor.
    NotAdapted,
    /// The output is tied to it.
    Tied,
    /// Its name leaves no room for `.lora_a`.
    Name,
}

/// A tensor with a vector that an adapter does not hold.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Left {
    /// The name of the tensor.
    pub name: String,
    /// Why an adapter does not hold it.
    pub reason: Reason,
    /// The tensor's share of Σ δ² over all tensors.
    pub share: f64,
    /// ‖δ‖ / ‖W‖ of the tensor.
    pub change: Option<f64>,
}

/// Words for what llama.cpp multiplies with by `build_lora_mm` or `build_lora_mm_id` in every
/// architecture that has it.
const ADAPTED: [&str; 15] = [
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "ffn_gate_inp",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
    "ffn_gate_shexp",
    "ffn_up_shexp",
    "ffn_down_shexp",
];

/// Whether an adapter can hold a tensor, and why it cannot.
pub(super) fn place_of(planned: &TensorPlan, is_untied: bool) -> Result<(), Reason> {
    let Some(stem) = planned.name.strip_suffix(".weight").filter(|_| planned.n_dims() > 1) else {
        return Err(Reason::NotAMatrix);
    };
    let word = stem.rsplit('.').next().unwrap_or(stem);
    let is_in_layer = stem.starts_with("blk.");
    match word {
        _ if planned.name.len() + LOW_RANK_A.len() > gguf::MAX_NAME_BYTES => Err(Reason::Name),
        "token_embd" if !is_untied => Err(Reason::Tied),
        "token_embd" | "output" if !is_in_layer => Ok(()),
        _ if is_in_layer && ADAPTED.contains(&word) => Ok(()),
        _ => Err(Reason::NotAdapted),
    }
}
