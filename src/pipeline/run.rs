//! Carrying out a plan: workers take chunks until none is left.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::chunk::{Chunk, Worker};
use super::feedbacks::Feedbacks;
use super::layout::Layout;
use super::lock::lock;
use super::observer::Nowhere;
use super::tally::Tally;
use super::{Budget, Error, Observer, TensorSink, prepare};
use crate::plan::MergePlan;
use crate::pool;
use crate::vector::{self, Inputs, Moments, Selection};

/// What a run measured of one tensor.
#[derive(Clone, PartialEq, Debug)]
pub struct TensorResult {
    /// The tensor.
    pub name: String,
    /// Its sums; all zero where the vector is.
    pub moments: Moments,
}

/// What a run measured.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Measured {
    /// One entry for each tensor that something was added to, in the order of the plan.
    pub tensors: Vec<TensorResult>,
    /// Sums over all of them.
    pub total: Moments,
}

/// Carries out a plan. Bytes and measurements are the same for any budget.
///
/// # Errors
/// The first error in the order of the plan among those met; other workers stop at their next
/// chunk.
///
/// # Panics
/// If `inputs` are not those the plan was made for.
pub fn run(
    plan: &MergePlan,
    inputs: &Inputs,
    sink: &dyn TensorSink,
    observer: &dyn Observer,
    budget: &Budget,
) -> Result<Measured, Error> {
    let layout = budget.lay_out(plan, inputs)?;
    let selections = prepare::select(plan, inputs, observer, budget)?;
    let tallies = work_off(plan, inputs, sink, observer, &layout, &selections, layout.chunks(plan))?;
    let mut measured = Measured::default();
    for (tensor, tally) in plan.tensors().iter().zip(tallies) {
        if tensor.is_sum() {
            let moments = tally.total();
            measured.total += moments;
            measured.tensors.push(TensorResult { name: tensor.name.clone(), moments });
        }
    }
    Ok(measured)
}

/// Measures what a run would write, and writes nothing.
///
/// # Errors
/// Those of [`run`].
///
/// # Panics
/// If `inputs` are not those the plan was made for.
pub fn measure(plan: &MergePlan, inputs: &Inputs, observer: &dyn Observer, budget: &Budget) -> Result<Measured, Error> {
    run(plan, inputs, &Nowhere, observer, budget)
}

/// Works chunks off, in any order. Returns what was added up of each tensor.
fn work_off(
    plan: &MergePlan,
    inputs: &Inputs,
    sink: &dyn TensorSink,
    observer: &dyn Observer,
    layout: &Layout,
    selections: &[Vec<Selection>],
    chunks: impl Iterator<Item = Chunk> + Send,
) -> Result<Vec<Tally>, Error> {
    let queue = Mutex::new(chunks);
    let tallies: Vec<Mutex<Tally>> = plan.tensors().iter().map(|_| Mutex::default()).collect();
    let feedbacks = Feedbacks::default();
    let stopped = AtomicBool::new(false);
    let first_error: Mutex<Option<((usize, u64), Error)>> = Mutex::new(None);
    let fail = |at: (usize, u64), error: Error| {
        stopped.store(true, Ordering::Relaxed);
        let mut first = lock(&first_error);
        if first.as_ref().is_none_or(|(earlier, _)| at < *earlier) {
            *first = Some((at, error));
        }
    };

    pool::each_worker(layout.n_workers, || {
        let mut worker = Worker::new(inputs, sink, &feedbacks, layout.largest_chunk());
        while !stopped.load(Ordering::Relaxed) {
            let Some(chunk): Option<Chunk> = lock(&queue).next() else { return };
            let at = (chunk.tensor, chunk.first_row);
            if observer.is_cancelled() {
                return fail(at, Error::Cancelled);
            }
            let tensor = &plan.tensors()[chunk.tensor];
            match worker.work(tensor, &chunk, &selections[chunk.tensor]) {
                Ok(sums) => {
                    lock(&tallies[chunk.tensor]).add(chunk.first_segment, sums);
                    observer.written(chunk.n_bytes());
                }
                Err(error) => return fail(at, error),
            }
        }
    })?;
    if let Some((_, error)) = first_error.into_inner().unwrap_or_else(|e| e.into_inner()) {
        return Err(error);
    }

    Ok(tallies.into_iter().map(|tally| tally.into_inner().unwrap_or_else(|e| e.into_inner())).collect())
}

/// Chunks that a rehearsal works off: about a second of work.
const REHEARSED: usize = 32;

/// How long a run will take, but for writing: some chunks, spread over the whole, are read and
/// computed as in a run, and the time they take is that of their share of the output. Small plans
/// are run whole.
///
/// # Errors
/// Those of [`run`], in the chunks that were tried.
///
/// # Panics
/// If `inputs` are not those the plan was made for.
pub fn rehearse(
    plan: &MergePlan,
    inputs: &Inputs,
    observer: &dyn Observer,
    budget: &Budget,
) -> Result<Duration, Error> {
    let layout = budget.lay_out(plan, inputs)?;
    let (n, all) = layout.chunks(plan).fold((0, 0), |(n, bytes): (usize, u64), chunk| (n + 1, bytes + chunk.n_bytes()));
    let tried = n.min(REHEARSED);
    let is_tried = |i: usize| (0..tried).any(|part| vector::middle(part as u64, tried as u64, n as u64) == i as u64);
    let chunks: Vec<Chunk> = layout.chunks(plan).enumerate().filter(|(i, _)| is_tried(*i)).map(|(_, c)| c).collect();
    let bytes: u64 = chunks.iter().map(Chunk::n_bytes).sum();
    let selections: Vec<Vec<Selection>> = plan.tensors().iter().map(prepare::unread).collect();
    let started = Instant::now();
    work_off(plan, inputs, &Nowhere, observer, &layout, &selections, chunks.into_iter())?;
    // A pass that only reads takes about as long as one that writes.
    Ok(started.elapsed().mul_f64(all as f64 / bytes.max(1) as f64) * plan.n_passes())
}
