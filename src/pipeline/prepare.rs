//! What has to be known of whole vectors before their first row can be written: which weights are
//! selected.
//!
//! A worker takes a vector of a tensor and reads it from beginning to end, as often as its selector
//! asks. So nothing is shared between workers, and sums and ties are settled in the order of the
//! weights, whatever the number of threads.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::budget::Budget;
use super::lock::lock;
use super::segment::{rows_of, segment_rows};
use super::{Error, Observer};
use crate::plan::{MergePlan, TensorPlan};
use crate::pool;
use crate::vector::{
    self, Coordinates, Inputs, RowBlocks, Rows, Selection, Selector, TensorRef, Term, decode, minimum_rows, resize,
};

/// A term of a tensor, by positions in the plan, that has to be read before.
type Task = (usize, usize);

/// Finds the selections of every term; empty for tensors whose terms are plainly added up.
///
/// # Errors
/// [`Error::Source`], [`Error::Cancelled`], [`Error::Threads`].
pub(super) fn select(
    plan: &MergePlan,
    inputs: &Inputs,
    observer: &dyn Observer,
    budget: &Budget,
) -> Result<Vec<Vec<Selection>>, Error> {
    // What is not done is replaced below.
    let selections: Vec<Vec<Selection>> = plan.tensors().iter().map(unread).collect();
    let mut tasks: Vec<Task> = Vec::new();
    for (i, tensor) in plan.tensors().iter().enumerate().filter(|(_, tensor)| !tensor.combination().is_plain()) {
        let is_open = |term: &usize| !tensor.combination().selector(*term, tensor.n_weights()).is_done();
        tasks.extend((0..tensor.terms().len()).filter(is_open).map(|term| (i, term)));
    }
    let (_, n_workers) = needed(plan, inputs, budget);
    if tasks.is_empty() {
        return Ok(selections);
    }
    // The largest first, so that no worker is left alone with it. What is found does not depend on
    // the order.
    tasks.sort_by_key(|(tensor, _)| std::cmp::Reverse(plan.tensors()[*tensor].n_weights()));

    let queue = Mutex::new(tasks.into_iter());
    let stopped = AtomicBool::new(false);
    let first_error: Mutex<Option<(Task, Error)>> = Mutex::new(None);
    let found = Mutex::new(selections);
    pool::each_worker(n_workers, || {
        let mut reader = VectorReader::default();
        while !stopped.load(Ordering::Relaxed) {
            let Some(task): Option<Task> = lock(&queue).next() else { return };
            let is_cancelled = || stopped.load(Ordering::Relaxed) || observer.is_cancelled();
            match reader.read(&plan.tensors()[task.0], task.1, inputs, is_cancelled) {
                Ok(selection) => lock(&found)[task.0][task.1] = selection,
                Err(error) => {
                    stopped.store(true, Ordering::Relaxed);
                    let mut first = lock(&first_error);
                    // Another worker's end is no reason of its own.
                    let is_earlier = |(at, earlier): &(Task, Error)| match (&error, earlier) {
                        (Error::Cancelled, _) => false,
                        (_, Error::Cancelled) => true,
                        _ => task < *at,
                    };
                    if first.as_ref().is_none_or(is_earlier) {
                        *first = Some((task, error));
                    }
                    return;
                }
            }
        }
    })?;
    match first_error.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some((_, error)) => Err(error),
        None => Ok(found.into_inner().unwrap_or_else(|e| e.into_inner())),
    }
}

/// What is selected of each term of a tensor as far as that is known without reading it: all, where
/// it is not.
pub(super) fn unread(tensor: &TensorPlan) -> Vec<Selection> {
    let n_terms = if tensor.combination().is_plain() { 0 } else { tensor.terms().len() };
    (0..n_terms).map(|term| tensor.combination().selector(term, tensor.n_weights()).selection()).collect()
}

/// Bytes that finding the selections of a plan takes, and in how many workers; one of them fits,
/// since the plan was laid out.
pub(super) fn needed(plan: &MergePlan, inputs: &Inputs, budget: &Budget) -> (u64, usize) {
    let Some((worker, _)) = largest(plan, inputs) else { return (0, 1) };
    let n_terms: usize = plan.tensors().iter().map(|t| t.terms().len()).sum();
    let n_workers = (budget.memory_for_buffers(inputs) / worker).clamp(1, budget.threads.max(1) as u64);
    let n_workers = n_workers.min(n_terms.max(1) as u64);
    (worker * n_workers, n_workers as usize)
}

/// Bytes of one worker, and the tensor that takes them; none if there is nothing to be found.
pub(super) fn largest<'a>(plan: &'a MergePlan, inputs: &Inputs) -> Option<(u64, &'a str)> {
    let readers = plan.tensors().iter().filter(|t| t.combination().n_passes() > 1);
    readers.map(|t| (reader_bytes(t, inputs), t.name.as_str())).max_by_key(|(bytes, _)| *bytes)
}

/// Bytes of a [`VectorReader`] for a tensor: blocks of a segment, f32 of a strip, and what a
/// selector counts in.
fn reader_bytes(tensor: &TensorPlan, inputs: &Inputs) -> u64 {
    let (row_len, n_rows) = rows_of(tensor);
    let segment = segment_rows(row_len).min(n_rows).saturating_mul(row_len);
    let bytes = |at: TensorRef| inputs.source(at.source).tensor(at.tensor).ty().size_of(segment).unwrap_or(u64::MAX);
    let of_term = |term: &Term| bytes(term.plus).saturating_add(term.minus.map_or(0, bytes));
    let blocks = tensor.terms().iter().map(of_term).max().unwrap_or(0);
    let strip = minimum_rows(row_len).min(n_rows).saturating_mul(row_len);
    let scratch_of = |at: TensorRef| inputs.source(at.source).scratch_of(at.tensor);
    let computed = tensor.sources().map(scratch_of).fold(0, u64::saturating_add);
    let of_weight = 2 * 4 + Coordinates::bytes_per_weight(tensor.space());
    blocks.saturating_add(strip.saturating_mul(of_weight)).saturating_add(Selector::N_BYTES).saturating_add(computed)
}

/// A thread's buffers.
#[derive(Default)]
struct VectorReader {
    blocks: [Vec<u8>; 2],
    weights: [Vec<f32>; 2],
    coordinates: Coordinates,
}

impl VectorReader {
    /// Reads a vector of a tensor until it is known what is selected of it.
    fn read(
        &mut self,
        tensor: &TensorPlan,
        term: usize,
        inputs: &Inputs,
        is_cancelled: impl Fn() -> bool,
    ) -> Result<Selection, Error> {
        let mut selector = tensor.combination().selector(term, tensor.n_weights());
        let (row_len, n_rows) = rows_of(tensor);
        let (segment, strip) = (segment_rows(row_len), minimum_rows(row_len));
        let taken = tensor.taken_rows();
        // A row that one half of a difference lacks is absent from the other, too, and then the
        // vector has none.
        let parts: Vec<(TensorRef, Rows<'_>)> = vector::operands(None, &tensor.terms()[term..=term])
            .map(|operand| (operand.at, inputs.rows(&operand, tensor.own(), &taken)))
            .collect();
        while !selector.is_done() {
            for first in (0..n_rows).step_by(segment as usize) {
                if is_cancelled() {
                    return Err(Error::Cancelled);
                }
                let end = (first + segment).min(n_rows);
                let parts = parts.iter().zip(&mut self.blocks);
                let parts = parts.map(|((at, rows), blocks)| read(inputs, *at, *rows, first..end, blocks));
                let parts: Vec<RowBlocks<'_>> = parts.collect::<Result<_, _>>()?;
                for row in (first..end).step_by(strip as usize) {
                    let strip = row..end.min(row + strip);
                    self.coordinates.begin(tensor.space());
                    for (part, weights) in parts.iter().zip(&mut self.weights) {
                        resize(weights, ((strip.end - strip.start) * row_len) as usize);
                        part.decode(strip.clone(), None, decode, weights)?;
                        if !part.rows().is_difference() {
                            self.coordinates.enter(part.source(), part.tensor(), row * row_len, weights)?;
                        }
                    }
                    let [tau, base] = &mut self.weights;
                    if parts.len() > 1 {
                        tau.iter_mut().zip(&*base).for_each(|(t, b)| *t -= b);
                    }
                    selector.see(row * row_len, tau);
                }
                if selector.is_done() {
                    break;
                }
            }
            selector.end_pass();
        }
        Ok(selector.selection())
    }
}

/// Reads the blocks of rows of the output from the tensor that has them.
fn read<'a>(
    inputs: &'a Inputs,
    at: TensorRef,
    rows: Rows<'a>,
    wanted: Range<u64>,
    blocks: &'a mut Vec<u8>,
) -> Result<RowBlocks<'a>, Error> {
    let source = inputs.source(at.source);
    let n_bytes = ((wanted.end - wanted.start) * source.tensor(at.tensor).row_size()) as usize;
    if blocks.capacity() < n_bytes {
        *blocks = Vec::new();
        blocks.reserve_exact(n_bytes);
    }
    blocks.resize(n_bytes, 0);
    Ok(RowBlocks::read(source, at.tensor, rows, wanted, blocks)?)
}
