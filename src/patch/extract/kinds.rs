//! Which tensors of a plan are decomposed, which are matrices of another type, and what the latter
//! leave to the former.

use super::target::Target;
use crate::ggml::GgmlType;
use crate::gguf;
use crate::gguf::names::OUTPUT;
use crate::patch::format::SVD_A;
use crate::plan::{self, MergePlan, TensorPlan};
use crate::vector::has_row_per_token;

/// Whether a tensor is a matrix that is not decomposed.
pub(super) fn is_dense(tensor: &TensorPlan) -> bool {
    tensor.n_dims() > 1 && tensor.is_sum() && tensor.ty != GgmlType::F32 && !is_decomposed(tensor)
}

/// Whether a tensor is decomposed.
pub(super) fn is_decomposed(tensor: &TensorPlan) -> bool {
    let is_matrix = tensor.ne.len() == 2 && tensor.ty != GgmlType::F32 && tensor.is_sum();
    // An untied output is a matrix like others, unless only some rows of it moved.
    let is_by_token = has_row_per_token(&tensor.name) && tensor.name != OUTPUT;
    is_matrix && tensor.selected().is_none() && !is_by_token && tensor.name.len() + SVD_A.len() <= gguf::MAX_NAME_BYTES
}

/// The type of a matrix that is not decomposed, where others have `ty`.
pub(super) fn dense_type(tensor: &TensorPlan, ty: GgmlType) -> GgmlType {
    let fallback = |ty| plan::fallback(ty, tensor.ne[0]);
    // A type of fewer bits than it has no fallback of its own.
    fallback(ty).or_else(|| fallback(GgmlType::Q2_K)).unwrap_or(GgmlType::F16)
}

/// The most bytes that a decomposed matrix has in the header: names and infos of three tensors, and
/// their hashes.
pub(super) const HEADER_BYTES: u64 = 1024;

/// Bytes of the tensors of a plan.
pub(super) fn of_tensors(plan: &MergePlan) -> u64 {
    plan.tensors().iter().map(|t| t.size()).sum()
}

/// Bits for each weight of the decomposed matrices, where other matrices have this type, or the one
/// that is planned. None if everything else is too large by itself.
pub(super) fn bits_of_matrices(target: Target, plan: &MergePlan, n_weights: u64, ty: Option<GgmlType>) -> Option<f64> {
    let size = |t: &TensorPlan| match ty.filter(|_| is_dense(t)) {
        Some(ty) => dense_type(t, ty).size_of(t.n_weights()).unwrap_or(u64::MAX),
        None => t.size(),
    };
    let (decomposed, others): (Vec<&TensorPlan>, _) = plan.tensors().iter().partition(|t| is_decomposed(t));
    let counted = others.into_iter().filter(|t| matches!(target, Target::Bytes(_)) || is_dense(t));
    let header = match target {
        Target::Bytes(_) => plan.header().len() + decomposed.len() as u64 * HEADER_BYTES,
        _ => 0,
    };
    let taken = counted.map(size).fold(header, u64::saturating_add);
    let room = target.limit(n_weights).checked_sub(taken)?;
    let n = decomposed.iter().map(|t| t.n_weights()).sum::<u64>();
    // More is of no use to anything that is read as f32.
    if n == 0 { Some(f64::INFINITY) } else { Some((room as f64 * 8.0 / n as f64).min(16.0)) }
}
