//! Changes of norms, moved into the matrices behind them.

use std::collections::HashMap;

use super::error::Error;
use super::matrix::Matrix;
use super::place::{Left, Reason};
use crate::gguf::names::OUTPUT;
use crate::pipeline::{Budget, PlannedSums};
use crate::plan::MergePlan;
use crate::vector::{self, Inputs};

/// Architectures whose layers have RMS norms right before the matrices that `norm_before` says, and
/// for nothing else (src/models of llama.cpp).
const PLAIN_RMS_NORMS: [&str; 14] = [
    "llama",
    "mistral3",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "granite",
    "internlm2",
    "exaone",
    "smollm3",
];

/// The norm whose output a matrix multiplies with, and nothing between. `W (γ ∘ x)` is `(W · diag
/// γ) x`: so what chat changed of γ can be written as a change of W, `W_chat · diag(γ_chat /
/// γ_base) − W_base`.
fn norm_before(name: &str) -> Option<String> {
    if name == OUTPUT {
        return Some("output_norm.weight".to_owned());
    }
    let (layer, word) = name.strip_suffix(".weight")?.rsplit_once('.')?;
    let norm = match word {
        "attn_q" | "attn_k" | "attn_v" | "attn_qkv" => "attn_norm",
        "ffn_gate" | "ffn_up" | "ffn_gate_inp" | "ffn_gate_exps" | "ffn_up_exps" | "ffn_gate_shexp"
        | "ffn_up_shexp" | "ffn_gate_inp_shexp" => "ffn_norm",
        _ => return None,
    };
    Some(format!("{layer}.{norm}.weight"))
}

/// Moves changes of norms into the matrices behind them, where all of those are in the adapter.
/// Gives the names of these norms, which are among those that are `left`.
pub(super) fn fold_norms(
    matrices: &mut [Matrix],
    left: &[Left],
    plan: &MergePlan,
    inputs: &Inputs,
    budget: &Budget,
) -> Result<Vec<String>, Error> {
    let architecture = inputs.source(inputs.skeleton()).metadata().architecture().unwrap_or_default();
    if !PLAIN_RMS_NORMS.contains(&architecture) {
        return Ok(Vec::new());
    }
    let sums = PlannedSums::new(plan, inputs, &(), budget)?;
    let positions: HashMap<&str, usize> =
        plan.tensors().iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
    let held: HashMap<&str, usize> = matrices.iter().enumerate().map(|(i, m)| (m.name.as_str(), i)).collect();
    let mut behind: HashMap<String, Vec<&str>> = HashMap::new();
    for tensor in plan.tensors() {
        if let Some(norm) = norm_before(&tensor.name) {
            behind.entry(norm).or_default().push(&tensor.name);
        }
    }
    let mut gains = Vec::new();
    for left in left.iter().filter(|left| left.reason == Reason::NotAMatrix) {
        let Some(names) = behind.get(&left.name) else { continue };
        let bias = left.name.replace("_norm.weight", "_norm.bias");
        let places: Option<Vec<usize>> = names.iter().map(|name| held.get(name).copied()).collect();
        let (Some(places), false) = (places, positions.contains_key(bias.as_str())) else { continue };
        let sum = sums.rows(positions[left.name.as_str()], 0, 1)?;
        let weights = sum.weights(&[]);
        let Some(base) = weights.base else { continue };
        let gain: Vec<f32> = weights.delta.iter().zip(base).map(|(d, b)| 1.0 + d / b).collect();
        let fits = places.iter().all(|place| matrices[*place].row_len == gain.len() as u64);
        if fits && vector::check_finite(&gain).is_none() {
            gains.push((left.name.clone(), places, gain));
        }
    }
    let mut folded = Vec::new();
    for (norm, places, gain) in gains {
        places.into_iter().for_each(|place| matrices[place].gain = Some(gain.clone()));
        folded.push(norm);
    }
    Ok(folded)
}
