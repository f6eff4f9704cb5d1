//! What a patch says of its tensors.

use super::decomposed;
use super::format::{
    self, BASE_NORM, COSINE, ERROR, GAIN, LOW_RANK, LOW_RANK_A, LOW_RANK_B, MOVED_ROWS, NORM, SVD, SVD_A, SVD_B,
    SVD_SCALES,
};
use crate::gguf::{Metadata, Model, TensorInfo};

/// What a patch says of one tensor of the vector.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct TensorSummary {
    /// The tensor of the model.
    pub name: String,
    /// How the tensor is stored, such as `q4_k`, `lora_a:q8_0 + lora_b:q8_0` or `svd of rank 40`.
    /// Nothing if it is zero.
    pub stored: String,
    /// `svd` for a quantised decomposition, `lora` for a product of factors. None where weights are
    /// stored.
    pub factors: Option<&'static str>,
    /// Bytes of what is stored.
    pub bytes: u64,
    /// Weights of τ that these bytes stand for.
    pub n_weights: u64,
    /// ‖base‖
    pub base_norm: Option<f64>,
    /// ‖τ‖
    pub norm: Option<f64>,
    /// ⟨stored, τ⟩ / ⟨τ, τ⟩
    pub gain: Option<f64>,
    /// ‖stored − τ‖ / ‖τ‖
    pub error: Option<f64>,
    /// The cosine of stored and τ.
    pub cosine: Option<f64>,
}

impl TensorSummary {
    /// Bits for each weight of τ. None if the tensor is left out.
    pub fn bits_per_weight(&self) -> Option<f64> {
        bits_per_weight(self.bytes, self.n_weights)
    }
}

/// Bits for each of so many weights that take so many bytes. None if there are no weights.
pub fn bits_per_weight(bytes: u64, n_weights: u64) -> Option<f64> {
    (n_weights > 0).then(|| bytes as f64 * 8.0 / n_weights as f64)
}

/// The tensors of the vector in a patch, in the patch's order. The patch is one of
/// [`super::open_stored`].
pub fn summary(patch: &Model) -> Vec<TensorSummary> {
    let metadata = patch.metadata();
    let Some(names) = metadata.get_strings(format::TENSORS) else { return Vec::new() };
    let decomposed = decomposed::shapes(patch).unwrap_or_default();
    let numbers = [BASE_NORM, NORM, GAIN, ERROR, COSINE].map(|key| numbers(metadata, key));
    let of = |i: usize, name: &str| {
        let ends = ["", MOVED_ROWS, LOW_RANK_A, LOW_RANK_B, SVD_SCALES, SVD_A, SVD_B];
        let part = |end: &'static str| Some((end, patch.tensor(patch.find(&format!("{name}{end}"))?)));
        let parts: Vec<(&str, &TensorInfo)> = ends.into_iter().filter_map(part).collect();
        let words = parts.iter().filter_map(|(end, info)| match (*end, end.strip_prefix('.')) {
            (SVD_A | SVD_B, _) => None,
            (SVD_SCALES, _) => Some(format!("svd of rank {}", info.n_weights())),
            (_, None) => Some(info.ty().to_string()),
            (_, Some(end)) => Some(format!("{end}:{}", info.ty())),
        });
        let number = |which: usize| numbers[which].get(i).copied().flatten();
        TensorSummary {
            name: name.to_owned(),
            stored: words.collect::<Vec<_>>().join(" + "),
            factors: [(SVD_SCALES, SVD), (LOW_RANK_A, LOW_RANK)]
                .into_iter()
                .find_map(|(of, word)| parts.iter().any(|(end, _)| *end == of).then_some(word)),
            bytes: parts.iter().map(|(_, info)| info.size()).sum(),
            n_weights: decomposed.get(name).map_or_else(|| n_weights(&parts), |svd| svd.0.saturating_mul(svd.1)),
            base_norm: number(0),
            norm: number(1),
            gain: number(2),
            error: number(3),
            cosine: number(4),
        }
    };
    names.iter().enumerate().map(|(i, name)| of(i, &name.to_string())).collect()
}

/// Weights of the matrix that these are parts of. Rows that are left out do not count.
fn n_weights(parts: &[(&str, &TensorInfo)]) -> u64 {
    let find = |end: &str| parts.iter().find(|(other, _)| *other == end).map(|(_, info)| *info);
    match (find("").or(find(MOVED_ROWS)), find(LOW_RANK_A), find(LOW_RANK_B)) {
        (Some(dense), ..) => dense.n_weights(),
        (None, Some(a), Some(b)) => a.row_len().saturating_mul(b.n_rows()),
        _ => 0,
    }
}

fn numbers(metadata: &Metadata, key: &str) -> Vec<Option<f64>> {
    let array = metadata.get(key).and_then(|value| value.as_array());
    let number = |value: crate::gguf::Value| value.as_f64().filter(|n| n.is_finite());
    array.map_or_else(Vec::new, |array| array.iter().map(number).collect())
}

/// Bytes of a patch that lie beside the vector: rows of special tokens in chat, and of some tokens
/// in base.
pub fn bytes_beside(patch: &Model) -> u64 {
    patch.tensors().filter(|info| format::is_beside(info.name())).map(TensorInfo::size).sum()
}
