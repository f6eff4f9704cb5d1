//! A plan in two parts: the matrices that are decomposed, and everything else.

use super::error::Error;
use super::header::least_size;
use super::matrix::{Matrix, matrices, rest};
use super::target::{Target, n_weights};
use crate::plan::MergePlan;
use crate::vector::Inputs;

/// A plan in two parts, and the size that both may have together.
pub(super) struct Parts<'a> {
    /// The size that was asked for.
    pub(super) target: Target,
    /// Bytes that may count against the target.
    pub(super) limit: u64,
    /// Bytes that count against the target without any decomposed matrix.
    pub(super) least: u64,
    /// The matrices that are decomposed, in the order of the plan.
    pub(super) matrices: Vec<Matrix<'a>>,
    /// The plan of everything else.
    pub(super) rest: MergePlan,
}

impl<'a> Parts<'a> {
    pub(super) fn new(plan: &'a MergePlan, inputs: &Inputs, target: Target) -> Result<Self, Error> {
        let n_weights = n_weights(inputs);
        let matrices = matrices(plan, target, n_weights);
        let rest = rest(plan, &matrices)?;
        let (limit, least) = (target.limit(n_weights), least_size(target, &rest)?);
        Ok(Parts { target, limit, least, matrices, rest })
    }
}
