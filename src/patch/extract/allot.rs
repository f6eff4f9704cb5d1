//! The type of matrices that are not decomposed.

use super::error::Error;
use super::kinds::{bits_of_matrices, dense_type, is_dense};
use super::target::{Target, n_weights};
use crate::ggml::GgmlType;
use crate::plan::{self, MergePlan, TensorPlan};
use crate::quants;
use crate::vector::{Inputs, Rounding};

/// Types for matrices that are not decomposed, as they are asked for.
const DENSE_TYPES: [GgmlType; 9] = [
    GgmlType::F16,
    GgmlType::Q8_0,
    GgmlType::Q6_K,
    GgmlType::Q5_K,
    GgmlType::Q4_K,
    GgmlType::Q3_K,
    GgmlType::Q2_K,
    GgmlType::TQ1_0,
    GgmlType::Q1_0,
];

/// The relative error that a type leaves of a vector, on the bundled trio.
fn error_of(ty: GgmlType) -> f64 {
    match ty {
        GgmlType::Q1_0 => 0.56,
        GgmlType::TQ1_0 => 0.36,
        GgmlType::Q2_K => 0.24,
        GgmlType::Q3_K => 0.13,
        GgmlType::Q4_0 => 0.08,
        GgmlType::Q4_K => 0.06,
        GgmlType::Q5_0 | GgmlType::Q5_1 => 0.04,
        GgmlType::Q5_K => 0.03,
        GgmlType::Q6_K => 0.02,
        GgmlType::Q8_0 => 0.004,
        _ => 0.0,
    }
}

/// Nats that a relative error of 1 in the embeddings would cost: on the bundled trio Q2_K costs
/// 0.0006 and Q3_K 0.0002.
const DENSE_LOSS: f64 = 0.011;

/// Nats that so many bits for each weight of the decomposed matrices cost: 0.0018 · bits^−2.3, as
/// from 0.3 to 2.7 bits on the bundled trio (docs/PATCH.md).
fn loss_of_matrices(bits: f64) -> f64 {
    0.0018 * bits.powf(-2.3)
}

impl Target {
    /// Gives the matrices of a plan that are not decomposed (embeddings, stacks of experts) the
    /// type with which the whole should lose least: what they take, the others lack. The plan is
    /// one of [`plan_extract`](crate::patch::plan_extract). Where no type fits, they get the
    /// smallest: [`forecast`](super::forecast()) says what that takes.
    ///
    /// # Errors
    /// [`Error::Bits`] of a target that is none, [`Error::Plan`].
    pub fn allot(self, plan: MergePlan, inputs: &Inputs) -> Result<MergePlan, Error> {
        let n_weights = n_weights(inputs);
        match self {
            Target::Bits(bits) if !(bits > 0.0 && bits <= 16.0) => return Err(Error::Bits { bits }),
            _ => {}
        }
        if matches!(self, Target::Rank(_)) {
            return Ok(with_dense(plan, GgmlType::Q6_K)?);
        }
        let dense: Vec<&TensorPlan> = plan.tensors().iter().filter(|t| is_dense(t)).collect();
        let n_dense = dense.iter().map(|t| t.n_weights()).sum::<u64>();
        let error2 = |ty| {
            let of_tensor = |t: &&TensorPlan| t.n_weights() as f64 * error_of(dense_type(t, ty)).powi(2);
            if n_dense == 0 { 0.0 } else { dense.iter().map(of_tensor).sum::<f64>() / n_dense as f64 }
        };
        let loss = |ty| {
            let bits = bits_of_matrices(self, &plan, n_weights, Some(ty))?;
            Some((ty, DENSE_LOSS * error2(ty) + loss_of_matrices(bits)))
        };
        let least = DENSE_TYPES.into_iter().filter_map(loss).min_by(|(_, a), (_, b)| a.total_cmp(b));
        // Where nothing fits, how large the least is will be said when everything is known.
        let (ty, _) = least.unwrap_or((GgmlType::Q1_0, f64::INFINITY));
        Ok(with_dense(plan, ty)?)
    }
}

/// The plan with this type for the matrices that are not decomposed.
fn with_dense(plan: MergePlan, ty: GgmlType) -> Result<MergePlan, plan::Error> {
    let mut tensors = plan.tensors().to_vec();
    for tensor in tensors.iter_mut().filter(|t| is_dense(t)) {
        tensor.ty = dense_type(tensor, ty);
        let has_few_values = quants::has_few_values(tensor.ty);
        tensor.rounding = if has_few_values { Rounding::UnitGain } else { Rounding::Encoder };
    }
    MergePlan::from_parts(plan.header().metadata().clone(), tensors, plan.warnings, plan.plumbing)
}
