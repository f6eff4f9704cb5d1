//! What the workers on one tensor pass errors on with: found once, by whoever comes first.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Error;
use crate::plan::TensorPlan;
use crate::quants::Feedback;
use crate::vector::{self, Inputs};

/// The feedback of one tensor, once it is found; who looks for it holds the lock.
type Slot = Arc<Mutex<Option<Arc<Feedback>>>>;

/// The feedback of tensors in work, by their position in the plan.
#[derive(Default)]
pub(super) struct Feedbacks {
    slots: Mutex<BTreeMap<usize, Slot>>,
}

impl Feedbacks {
    /// The feedback of a tensor. Chunks are handed out in the order of the plan, so that what
    /// belongs to earlier tensors goes as soon as those who work on them are done; one who comes
    /// late finds it again, and it is the same.
    pub(super) fn of(&self, index: usize, plan: &TensorPlan, inputs: &Inputs) -> Result<Arc<Feedback>, Error> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.retain(|other, _| *other >= index);
            slots.entry(index).or_default().clone()
        };
        let mut found = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(feedback) = &*found {
            return Ok(feedback.clone());
        }
        let feedback = Arc::new(vector::feedback(inputs, &plan.ne, plan.terms(), plan.combination())?);
        *found = Some(feedback.clone());
        Ok(feedback)
    }
}
