//! A model in other types, as llama-quantize makes it.

use std::path::Path;

use super::{Error, Settings};
use crate::pipeline::{self, Observer, WrittenFile};
use crate::plan::{self, MergePlan, Recipe};
use crate::vector::{self, Inputs};

/// A model that is quantised.
#[derive(Clone, Copy, Debug)]
pub struct Quantize<'a> {
    /// The model; there are no vectors.
    pub inputs: &'a Inputs,
    /// Its types.
    pub recipe: &'a Recipe,
    /// Whether tensors that are quantised already may be quantised again.
    pub allows_requantize: bool,
}

/// A quantisation that can begin.
#[derive(Debug)]
pub struct PreparedQuantize<'a> {
    inputs: &'a Inputs,
    settings: &'a Settings,
    plan: MergePlan,
    refusal: Option<Error>,
}

impl<'a> Quantize<'a> {
    /// Makes the plan, and finds out whether memory will do.
    ///
    /// # Errors
    /// [`Error`]. What is only unwise is no error here: [`PreparedQuantize::refusal`] has it.
    pub fn prepare(self, settings: &'a Settings) -> Result<PreparedQuantize<'a>, Error> {
        let Quantize { inputs, recipe, allows_requantize } = self;
        plan::check(inputs, plan::Embeddings::Auto)?;
        let plan = MergePlan::quantize(inputs, vector::pair(inputs)?, recipe)?;
        let refusal = plan.check_quantize(inputs, recipe, allows_requantize).err().map(Error::from);
        settings.budget.needed(&plan, inputs)?;
        Ok(PreparedQuantize { inputs, settings, plan, refusal })
    }
}

impl PreparedQuantize<'_> {
    /// The plan.
    pub fn plan(&self) -> &MergePlan {
        &self.plan
    }

    /// Why the run should not begin: it would spoil the model.
    pub fn refusal(&self) -> Option<&Error> {
        self.refusal.as_ref()
    }

    /// Writes the model.
    ///
    /// # Errors
    /// [`PreparedQuantize::refusal`], and whatever ends the run; no file is left then.
    pub fn write(self, path: &Path, observer: &dyn Observer) -> Result<(MergePlan, WrittenFile), Error> {
        let PreparedQuantize { inputs, settings, plan, refusal } = self;
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        let written = pipeline::write(&plan, inputs, path, &settings.write, observer, &settings.budget)?;
        Ok((plan, written))
    }
}
