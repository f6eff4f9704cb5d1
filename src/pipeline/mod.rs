//! The executor: stream rows source → f32 → combine → blocks → sink.
//!
//! It decides nothing; the [`MergePlan`] has decided. It measures: per tensor the [`Moments`] from
//! which norms, survival and noise follow.
//!
//! Work is cut into *chunks* of whole rows of one tensor. Each worker takes the next chunk, reads
//! its sources by position, computes, writes its output by position and reports sums. Nothing is
//! handed from one worker to another, so memory is what a worker needs, times workers, and bytes
//! are the same for any number of either:
//!
//! ```text
//! per chunk: read raw blocks of model, base, chat …      one positional read each
//!   per strip of about 4096 weights, whole rows:
//!     model, plus, minus → f32                           finite, or an error with tensor and index
//!     δ = ratio·(plus − minus), += for each further term f32, in recipe order
//!     out = model + δ                                    f32
//!     out → blocks                                       blocks with δ = ±0 of an unchanged type are copied; where the
//!                                                        plan says so, codes are chosen anew on the model's grid
//!     blocks → f32, add to the sums                      f64
//! write the chunk's blocks                               one positional write
//! ```
//!
//! Vectors of which weights are selected, as by TIES, are read before, to know which.

mod budget;
mod chunk;
mod feedbacks;
mod layout;
mod mend;
mod prepare;
pub mod seal;
mod segment;
mod sums;
mod tally;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use budget::Budget;
pub use mend::{Mended, write_mending};
pub use sums::Sums;

use crate::ggml::GgmlType;
use crate::gguf;
use crate::plan::{self, MergePlan};
use crate::pool::{self, NoThreads};
use crate::vector::{self, Inputs, Moments, Selection};
use chunk::{Chunk, Worker};
use feedbacks::Feedbacks;
use layout::Layout;
use tally::Tally;

/// Where the blocks of the output go, from any thread in any order, each byte once.
pub trait TensorSink: Sync {
    /// Takes bytes of a tensor (by its position in the plan), `offset` bytes after its start.
    ///
    /// # Errors
    /// Whatever the sink reports; the run then stops.
    fn write(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), gguf::Error>;
}

impl TensorSink for gguf::Writer {
    fn write(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), gguf::Error> {
        gguf::Writer::write(self, tensor, offset, bytes)
    }
}

/// Someone who watches a run and may end it.
pub trait Observer: Sync {
    /// `bytes` more of the output are written.
    fn written(&self, bytes: u64);

    /// Asked before each chunk: whether to stop.
    fn is_cancelled(&self) -> bool;

    /// From now on there is a file that has to be removed if the run does not end well. Said only
    /// by what may work for long before.
    fn has_begun(&self) {}
}

/// Watches nothing.
impl Observer for () {
    fn written(&self, _bytes: u64) {}

    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Why a run ended early. The sink then holds parts of an output.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The sink, or a file that could not be read.
    #[error(transparent)]
    Container(#[from] gguf::Error),
    /// Weights that could not be had.
    #[error(transparent)]
    Source(#[from] vector::Error),
    /// No plan for tensors that are to be encoded again.
    #[error(transparent)]
    Plan(#[from] plan::Error),
    /// A sum that the output cannot hold.
    #[error(
        "tensor {tensor}: weight {index} would be {value:e}, which {ty} cannot hold; {}",
        if value.is_finite() && *value != 0.0 { "write a type with more range (BF16 or F32)" } else { "use a smaller ratio" }
    )]
    Range {
        /// The tensor.
        tensor: String,
        /// Which weight, counted through the tensor with the row's direction fastest.
        index: u64,
        /// Its value in f32.
        value: f32,
        /// The output's type.
        ty: GgmlType,
    },
    /// A block that came out as no number because of its importance, as where all of it is 0.
    #[error(
        "tensor {tensor}: the block of weight {index} ({value:e}) cannot be encoded as {ty} with the importance it has; \
         leave the tensor out with --exclude-weights {tensor}"
    )]
    Importance {
        /// The tensor.
        tensor: String,
        /// Which weight, counted through the tensor with the row's direction fastest.
        index: u64,
        /// Its value in f32.
        value: f32,
        /// The output's type.
        ty: GgmlType,
    },
    /// The rows of a tensor do not fit in the budget.
    #[error(
        "tensor {tensor} needs {needed} bytes for its rows, more than the budget of {budget}; give --memory {needed} or more"
    )]
    Budget {
        /// The tensor.
        tensor: String,
        /// Bytes one worker needs for the smallest chunk of it.
        needed: u64,
        /// Bytes allowed.
        budget: u64,
    },
    /// The observer ended the run.
    #[error("interrupted; nothing is written")]
    Cancelled,
    /// The system gave no threads.
    #[error(transparent)]
    Threads(#[from] NoThreads),
}

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
        if tensor.kept.is_none() {
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
/// As [`run`].
///
/// # Panics
/// As [`run`].
pub fn measure(plan: &MergePlan, inputs: &Inputs, observer: &dyn Observer, budget: &Budget) -> Result<Measured, Error> {
    run(plan, inputs, &Nowhere, observer, budget)
}

/// Works off chunks, in any order. Gives what was added up of each tensor.
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

/// Takes what is written and forgets it.
struct Nowhere;

impl TensorSink for Nowhere {
    fn write(&self, _tensor: usize, _offset: u64, _bytes: &[u8]) -> Result<(), gguf::Error> {
        Ok(())
    }
}

/// How long a run will take, but for writing: some chunks, spread over the whole, are read and
/// computed as in a run, and the time they take is that of their share of the output. Small plans
/// are run whole.
///
/// # Errors
/// Those of [`run`], in the chunks that were tried.
///
/// # Panics
/// As [`run`].
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

/// An output that is done.
#[derive(Clone, PartialEq, Debug)]
pub struct Written {
    /// Where it is.
    pub file: gguf::Finished,
    /// What was measured on the way.
    pub measured: Measured,
}

/// Carries out a plan into a file: checks the place, takes the disk space, runs, writes the header
/// with what was measured, and gives the file its name. The inputs are never overwritten.
///
/// # Errors
/// Those of [`run`] and of [`gguf::Writer`]; no file is left then.
pub fn write(
    plan: &MergePlan,
    inputs: &Inputs,
    path: &Path,
    options: &gguf::WriteOptions,
    observer: &dyn Observer,
    budget: &Budget,
) -> Result<Written, Error> {
    let (file, measured) = write_unnamed(plan, inputs, path, options, observer, budget)?;
    Ok(Written { file: file.publish()?, measured })
}

/// As [`write()`], but leaves it to the caller to give the file its name, once it was looked at.
///
/// # Errors
/// As [`write()`].
pub fn write_unnamed(
    plan: &MergePlan,
    inputs: &Inputs,
    path: &Path,
    options: &gguf::WriteOptions,
    observer: &dyn Observer,
    budget: &Budget,
) -> Result<(gguf::Complete, Measured), Error> {
    let mut options = options.clone();
    options.inputs.extend(inputs.paths().map(Path::to_owned));
    let writer = gguf::Writer::create(plan.header().clone(), path, &options)?;
    let measured = run(plan, inputs, &writer, observer, budget)?;
    if observer.is_cancelled() {
        return Err(Error::Cancelled);
    }
    // What a file says of an earlier merge stays true of it.
    let metadata = match inputs.vectors().is_empty() {
        true => None,
        false => Some(describe(&writer, plan.header().metadata(), &measured, budget)?),
    };
    Ok((writer.complete(metadata)?, measured))
}

/// What the header says once everything is written: what was measured, and the hashes of a patch.
///
/// # Errors
/// [`Error::Container`], from reading back what was written, [`Error::Threads`].
pub fn describe(
    writer: &gguf::Writer,
    metadata: &gguf::Metadata,
    measured: &Measured,
    budget: &Budget,
) -> Result<gguf::Metadata, Error> {
    let tensors = measured.tensors.iter().map(|t| (t.name.as_str(), &t.moments));
    let filled = plan::fill_measured(metadata, &measured.total, tensors);
    match filled.get(seal::TENSORS) {
        Some(_) => seal::seal(writer, filled, budget),
        None => Ok(filled),
    }
}

/// A panic in another worker ends the run by itself; what it left under the lock is whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
