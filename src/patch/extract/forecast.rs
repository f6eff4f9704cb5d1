//! What a patch of decomposed matrices will take.

use std::path::Path;

use super::error::Error;
use super::kinds::{HEADER_BYTES, of_tensors};
use super::matrix::Matrix;
use super::parts::Parts;
use super::target::Target;
use crate::ggml::GgmlType;
use crate::gguf;
use crate::patch::format::{LOW_RANK, SVD};
use crate::patch::spill::Spill;
use crate::patch::{low_rank, rows};
use crate::pipeline::Budget;
use crate::plan::MergePlan;
use crate::vector::Inputs;

/// What a patch of decomposed matrices will take, as far as it is known before one is decomposed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forecast {
    /// Positions in the plan of the matrices that are decomposed, ascending.
    pub matrices: Vec<usize>,
    /// The encoding of these matrices: `svd`, or `lora` if the target is a rank.
    pub form: &'static str,
    /// Bytes that the patch will have at most.
    pub largest: u64,
    /// Bytes of the temporary files beside the patch, at most.
    pub temporary: u64,
    /// Bytes of buffers.
    pub memory: u64,
    /// Threads that the budget has room for.
    pub threads: usize,
    /// Bytes of f32 and of the output that an [`Observer`](crate::pipeline::Observer) is told of;
    /// more where the rank of a matrix has to be looked for again.
    pub observed: u64,
}

/// What [`super::write_unnamed`] will take, and whether it can be done at all.
///
/// # Errors
/// [`Error::Size`], [`Error::Importance`], and [`Budget`](crate::pipeline::Error::Budget) where the
/// budget does not hold the largest matrix.
pub fn forecast(plan: &MergePlan, inputs: &Inputs, target: Target, budget: &Budget) -> Result<Forecast, Error> {
    forecast_of(&Parts::new(plan, inputs, target)?, plan, inputs, budget)
}

/// The forecast of a plan whose parts are known.
///
/// # Errors
/// Those of [`forecast`].
pub(super) fn forecast_of(
    parts: &Parts<'_>,
    plan: &MergePlan,
    inputs: &Inputs,
    budget: &Budget,
) -> Result<Forecast, Error> {
    let Parts { target, limit, least, matrices, rest } = parts;
    if let Some(importance) = inputs.importance() {
        matrices
            .iter()
            .try_for_each(|m| importance.of_tensor(m.name, &plan.tensors()[m.tensor].ne, GgmlType::F32).map(|_| ()))?;
    }
    if least > limit {
        return Err(Error::Size { asked: *limit, least: *least });
    }
    let (of_rest, _) = budget.needed(rest, inputs)?;
    let importance = inputs.importance().map_or(0, |importance| importance.n_bytes());
    let left = Budget { memory: budget.memory.saturating_sub(importance), ..budget.clone() };
    let (memory, threads) = rows::n_workers(matrices.iter().map(Matrix::need), &left)?;
    let numbers = matrices.iter().fold(0, |n: u64, m| n.saturating_add(m.n_numbers()));
    // A matrix has up to three tensors for one, each with a name and a hash.
    let header = plan.header().len() + (matrices.len() as u64).saturating_mul(HEADER_BYTES);
    let beside = plan.tensors().iter().filter(|t| t.n_dims() < 2 || !t.is_sum()).map(|t| t.size()).sum::<u64>();
    // A number of a factor is a byte before it is compressed, which may add a little.
    let most = numbers.saturating_add(numbers / 64).saturating_add(header + of_tensors(rest));
    let (form, largest) = match *target {
        Target::Bytes(bytes) => (SVD, bytes.min(most)),
        Target::Bits(_) => (SVD, limit.saturating_add(header + beside).min(most)),
        Target::Rank(_) => (LOW_RANK, numbers.saturating_mul(2).saturating_add(header + of_tensors(rest))),
    };
    let n_decomposed = matrices.iter().map(|m| plan.tensors()[m.tensor].n_weights()).sum::<u64>();
    Ok(Forecast {
        matrices: matrices.iter().map(|m| m.tensor).collect(),
        form,
        largest,
        // The vectors; the best of what they were encoded as, and one more.
        temporary: numbers.saturating_mul(4).saturating_add(if form == SVD { largest.saturating_mul(2) } else { 0 }),
        memory: of_rest.max(memory.saturating_add(importance)),
        threads,
        observed: of_tensors(rest).saturating_add(n_decomposed.saturating_mul(4 * (low_rank::N_PASSES + 1))),
    })
}

impl Forecast {
    /// Refuses a disk without room for the patch and the temporary file beside it.
    ///
    /// # Errors
    /// [`gguf::Error::NoSpace`].
    pub fn check_disk(&self, path: &Path) -> Result<(), gguf::Error> {
        let &Forecast { largest, temporary, .. } = self;
        match fs4::available_space(Spill::folder(path)) {
            Ok(available) if available < temporary.saturating_add(largest) => {
                Err(gguf::Error::NoSpace { path: path.to_owned(), needed: largest, temporary, available })
            }
            // Writing will tell.
            _ => Ok(()),
        }
    }
}
