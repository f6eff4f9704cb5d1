//! Which tensors a file type may touch, and what stands in where a row does not divide into blocks.
//!
//! The rules of src/llama-quant.cpp: `tensor_allows_quantization` `tensor_type_fallback` and
//! `tensor_requires_imatrix`.

use super::OutputType;
use crate::ggml::GgmlType::{self, *};
use crate::gguf::names::{OUTPUT, PER_LAYER_EMBEDDINGS, TOKEN_EMBEDDINGS};
use crate::quants;

/// Parts of names that llama-quantize never touches: small, or of great effect.
#[rustfmt::skip]
const NEVER: [&str; 36] = [
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "attn_rel_b.weight",
    "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight",
    "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight",
    "time_mix_g1.weight", "time_mix_g2.weight",
    "time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight",
    ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger",
    "a.rvq.codebook", "mm.a.code_embd",
    // Not in llama.cpp's list because its loader hands it no such tensor as a matrix: rope factors
    // are no weights.
    "rope_f",
];

/// Whole names that llama-quantize never touches.
const NEVER_WHOLE: [&str; 2] = ["position_embd.weight", "token_types.weight"];

/// Parts of names that llama-quantize never touches in one architecture.
#[rustfmt::skip]
const NEVER_IN_GLM5_NEXT: [&str; 14] = [
    "hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate", "indexer_compressor_ape",
    "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight", "ssm_beta.weight",
    "attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight",
];

/// Whether llama-quantize would give this tensor the type asked for. `n_dims` leaves trailing ones
/// out; `architecture` is the value of `general.architecture`.
pub fn is_quantizable(architecture: &str, name: &str, n_dims: usize) -> bool {
    let never = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    n_dims >= 2
        && name.ends_with("weight")
        && !NEVER_WHOLE.contains(&name)
        && !never(&NEVER)
        && !(architecture == "glm5-next" && never(&NEVER_IN_GLM5_NEXT))
}

/// The type that stands in for `ty` where rows of `row_len` weights are no whole number of its
/// blocks (`tensor_type_fallback`); none for types for which llama.cpp has no rule.
pub fn fallback(ty: GgmlType, row_len: u64) -> Option<GgmlType> {
    let divides = |ty: GgmlType| row_len.is_multiple_of(ty.block_len() as u64);
    if divides(ty) {
        return Some(ty);
    }
    let finer = match ty {
        IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_XS => IQ4_NL,
        Q2_0 | Q2_K | Q3_K | TQ1_0 | TQ2_0 => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        small if small.block_len() <= 32 => small,
        _ => return None,
    };
    Some(if divides(finer) { finer } else { F16 })
}

/// Whether llama-quantize refuses to write a tensor in this type without an importance matrix,
/// because the result would be worthless (`tensor_requires_imatrix`). Embeddings and output are
/// rough at worst.
pub fn requires_importance(name: &str, ty: GgmlType, output: &OutputType) -> bool {
    match ty {
        _ if quants::requires_importance(ty) => true,
        _ if [TOKEN_EMBEDDINGS, OUTPUT, PER_LAYER_EMBEDDINGS].contains(&name) => false,
        IQ3_XXS | IQ2_S | IQ1_M => true,
        Q2_K => output.file_type().is_some_and(|f| f.name == "Q2_K_S"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_biases_and_routers_keep_their_type() {
        for name in ["blk.0.attn_q.weight", "token_embd.weight", "output.weight", "blk.1.ffn_down_exps.weight"] {
            assert!(is_quantizable("llama", name, 2), "{name}");
        }
        for name in ["blk.0.attn_q_norm.weight", "blk.0.attn_q.bias", "blk.0.ffn_gate_inp.weight", "rope_freqs.weight"]
        {
            assert!(!is_quantizable("llama", name, 2), "{name}");
        }
        assert!(!is_quantizable("llama", "output_norm.weight", 1));
        assert!(is_quantizable("deepseek2", "blk.0.attn_k_b.weight", 3));
        assert!(!is_quantizable("glm5-next", "blk.0.attn_k_b.weight", 3));
    }

    #[test]
    fn odd_rows_fall_back_as_in_llama_quantize() {
        for (ty, row_len, stands_in) in [
            (Q4_K, 512, Q4_K),
            (Q4_K, 96, Q5_0),
            (Q5_K, 96, Q5_1),
            (Q6_K, 96, Q8_0),
            (Q2_K, 96, Q4_0),
            (Q3_K, 100, F16),
            (Q8_0, 100, F16),
        ] {
            assert_eq!(fallback(ty, row_len), Some(stands_in), "{ty} in rows of {row_len}");
        }
        assert_eq!(fallback(Q1_0, 96), None);
    }
}
