//! The sums of a plan, row by row, for those who look at them without writing them.

use super::segment::rows_of;
use super::{Budget, Error, Observer, chunk, prepare};
use crate::plan::MergePlan;
use crate::vector::{Inputs, Selection, Sum};

/// A plan whose sums can be had in any order, from any thread.
pub struct PlannedSums<'a> {
    plan: &'a MergePlan,
    inputs: &'a Inputs,
    selections: Vec<Vec<Selection>>,
}

impl<'a> PlannedSums<'a> {
    /// Reads what has to be known of whole vectors before, as where weights are selected.
    ///
    /// # Errors
    /// Those of [`super::run()`].
    pub fn new(
        plan: &'a MergePlan,
        inputs: &'a Inputs,
        observer: &dyn Observer,
        budget: &Budget,
    ) -> Result<Self, Error> {
        Ok(PlannedSums { plan, inputs, selections: prepare::select(plan, inputs, observer, budget)? })
    }

    /// Weights in a row of a tensor, and rows.
    ///
    /// # Panics
    /// If the plan has no such tensor.
    pub fn shape(&self, tensor: usize) -> (u64, u64) {
        rows_of(&self.plan.tensors()[tensor])
    }

    /// The sum of `n_rows` whole rows, beginning with `first`, in f32. Rows that are taken from
    /// another model ([`crate::plan::TensorPlan::taken`]) have nothing added to.
    ///
    /// # Errors
    /// [`Error::Source`], [`Error::Container`].
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn rows(&self, tensor: usize, first: u64, n_rows: u64) -> Result<Sum, Error> {
        let plan = &self.plan.tensors()[tensor];
        chunk::sum_of_rows(plan, self.inputs, &self.selections[tensor], first..first + n_rows)
    }
}
