//! Rows of a plan's sums, as they are read for a decomposition and measured against one, and how
//! many workers do that.

use super::low_rank::Rows;
use crate::pipeline::{Budget, Error, Observer, PlannedSums};

/// Weights that one task measures.
const TASK_WEIGHTS: usize = 1 << 18;

/// Bytes of a worker for each weight of a task: blocks, sums and products.
const WORKER_BYTES_PER_WEIGHT: u64 = 48;

/// Rows that a task measures, of as many weights each.
pub(super) fn rows_of_task(row_len: usize) -> usize {
    (TASK_WEIGHTS / row_len.max(1)).max(1)
}

/// What a matrix takes while it is decomposed and measured, whatever the number of workers.
pub(super) struct Need<'a> {
    pub(super) tensor: &'a str,
    pub(super) n_weights: u64,
    pub(super) bytes: u64,
}

/// Bytes that the largest of these matrices takes, and how many workers a budget has room for then.
///
/// # Errors
/// [`Error::Budget`] if it has for none.
pub(super) fn n_workers<'a>(matrices: impl Iterator<Item = Need<'a>>, budget: &Budget) -> Result<(u64, usize), Error> {
    let worker = |need: &Need<'_>| need.n_weights.min(TASK_WEIGHTS as u64) * WORKER_BYTES_PER_WEIGHT;
    let with_one = |need: &Need<'_>| need.bytes.saturating_add(worker(need));
    let Some(largest) = matrices.max_by_key(with_one) else { return Ok((0, budget.threads.max(1))) };
    let needed = with_one(&largest);
    if needed > budget.memory {
        return Err(Error::Budget { tensor: largest.tensor.to_owned(), needed, budget: budget.memory });
    }
    let room = (budget.memory - largest.bytes) / worker(&largest).max(1);
    let n = budget.threads.clamp(1, usize::try_from(room).unwrap_or(usize::MAX));
    Ok((largest.bytes + n as u64 * worker(&largest), n))
}

/// τ of one tensor of a plan of [`super::plan_extract`].
pub(super) struct Tau<'a> {
    pub(super) sums: &'a PlannedSums<'a>,
    pub(super) tensor: usize,
    pub(super) observer: &'a dyn Observer,
}

impl Rows for Tau<'_> {
    type Error = Error;

    fn n_rows(&self) -> u64 {
        self.sums.shape(self.tensor).1
    }

    fn row_len(&self) -> usize {
        self.sums.shape(self.tensor).0 as usize
    }

    fn read(&self, first: u64, out: &mut [f32]) -> Result<(), Error> {
        if self.observer.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let n_rows = out.len() as u64 / self.sums.shape(self.tensor).0;
        out.copy_from_slice(self.sums.rows(self.tensor, first, n_rows)?.delta());
        self.observer.written(4 * out.len() as u64);
        Ok(())
    }
}
