//! What has to be known of whole vectors before their first row can be written: which weights are selected.
//!
//! A worker takes a vector of a tensor and reads it from beginning to end, as often as its selector asks. So nothing is shared
//! between workers, and sums and ties are settled in the order of the weights, whatever the number of threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::budget::{Budget, segment_rows};
use super::{Error, Observer, lock, rows_of};
use crate::plan::{MergePlan, TensorPlan};
use crate::survey::{Inputs, Selection, Selector, Term, decode, minimum_rows, resize};

/// A term of a tensor, by positions in the plan, that has to be read before.
type Task = (usize, usize);

/// Finds the selections of every term; empty for tensors whose terms are plainly added up.
///
/// # Errors
/// [`Error::Budget`] if one worker does not fit, [`Error::Source`], [`Error::Cancelled`], [`Error::Threads`].
pub(super) fn select(
    plan: &MergePlan,
    inputs: &Inputs,
    observer: &dyn Observer,
    budget: &Budget,
) -> Result<Vec<Vec<Selection>>, Error> {
    let mut selections: Vec<Vec<Selection>> = Vec::new();
    let mut tasks: Vec<Task> = Vec::new();
    for (i, tensor) in plan.tensors().iter().enumerate() {
        let combination = &tensor.combination;
        let n_terms = if combination.is_plain() { 0 } else { tensor.terms.len() };
        let selectors = (0..n_terms).map(|term| combination.selector(term, tensor.n_weights()));
        selections.push(
            selectors
                .enumerate()
                .map(|(term, selector)| {
                    if !selector.is_done() {
                        tasks.push((i, term));
                    }
                    // What is not done is replaced below.
                    selector.selection()
                })
                .collect(),
        );
    }
    let (_, n_workers) = needed(plan, inputs, budget)?;
    if tasks.is_empty() {
        return Ok(selections);
    }
    // The largest first, so that no worker is left alone with it. What is found does not depend on the order.
    tasks.sort_by_key(|(tensor, _)| std::cmp::Reverse(plan.tensors()[*tensor].n_weights()));

    let queue = Mutex::new(tasks.into_iter());
    let stopped = AtomicBool::new(false);
    let first_error: Mutex<Option<(Task, Error)>> = Mutex::new(None);
    let found = Mutex::new(selections);
    let pool = super::pool(n_workers)?;
    pool.broadcast(|_| {
        let mut reader = Reader::default();
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
    });
    match first_error.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some((_, error)) => Err(error),
        None => Ok(found.into_inner().unwrap_or_else(|e| e.into_inner())),
    }
}

/// Bytes that finding the selections of a plan takes, and in how many workers.
///
/// # Errors
/// [`Error::Budget`].
pub(super) fn needed(plan: &MergePlan, inputs: &Inputs, budget: &Budget) -> Result<(u64, usize), Error> {
    let readers = plan.tensors().iter().filter(|t| t.combination.n_passes() > 1).map(|t| (reader_bytes(t, inputs), t));
    let Some((worker, tensor)) = readers.max_by_key(|(bytes, _)| *bytes) else { return Ok((0, 1)) };
    let memory = budget.memory_for_buffers(inputs);
    if worker > memory {
        let needed = worker.saturating_add(budget.memory - memory);
        return Err(Error::Budget { tensor: tensor.name.clone(), needed, budget: budget.memory });
    }
    let n_terms: usize = plan.tensors().iter().map(|t| t.terms.len()).sum();
    let n_workers = (memory / worker).min(budget.threads.max(1) as u64).min(n_terms.max(1) as u64);
    Ok((worker * n_workers, n_workers as usize))
}

/// Bytes of a [`Reader`] for a tensor: blocks of a segment, f32 of a strip, and what a selector counts in.
fn reader_bytes(tensor: &TensorPlan, inputs: &Inputs) -> u64 {
    let (row_len, n_rows) = rows_of(tensor);
    let segment = segment_rows(row_len).min(n_rows).saturating_mul(row_len);
    let bytes = |at: crate::survey::TensorRef| {
        inputs.source(at.source).tensor(at.tensor).ty().size_of(segment).unwrap_or(u64::MAX)
    };
    let of_term = |term: &Term| bytes(term.plus).saturating_add(term.minus.map_or(0, bytes));
    let blocks = tensor.terms.iter().map(of_term).max().unwrap_or(0);
    let strip = minimum_rows(row_len).min(n_rows).saturating_mul(row_len);
    blocks.saturating_add(strip.saturating_mul(2 * 4)).saturating_add(Selector::N_BYTES)
}

/// A thread's buffers.
#[derive(Default)]
struct Reader {
    blocks: [Vec<u8>; 2],
    weights: [Vec<f32>; 2],
}

impl Reader {
    /// Reads a vector of a tensor until it is known what is selected of it.
    fn read(
        &mut self,
        tensor: &TensorPlan,
        term: usize,
        inputs: &Inputs,
        is_cancelled: impl Fn() -> bool,
    ) -> Result<Selection, Error> {
        let mut selector = tensor.combination.selector(term, tensor.n_weights());
        let (plus, minus) = tensor.terms[term].operands();
        let taken = tensor.taken_rows();
        let sources = [Some(plus), minus].map(|part| part.map(|part| (part.at, inputs.rows(&part, &taken))));
        let (row_len, n_rows) = rows_of(tensor);
        let (segment, strip) = (segment_rows(row_len), minimum_rows(row_len));
        while !selector.is_done() {
            for first_row in (0..n_rows).step_by(segment as usize) {
                if is_cancelled() {
                    return Err(Error::Cancelled);
                }
                let end = (first_row + segment).min(n_rows);
                for ((at, rows), blocks) in sources.iter().flatten().zip(&mut self.blocks) {
                    let source = inputs.source(at.source);
                    let row_size = source.tensor(at.tensor).row_size();
                    let n_bytes = ((end - first_row) * row_size) as usize;
                    if blocks.capacity() < n_bytes {
                        *blocks = Vec::new();
                        blocks.reserve_exact(n_bytes);
                    }
                    blocks.resize(n_bytes, 0);
                    for (run, from) in rows.runs(first_row..end) {
                        let bytes = (run.start - first_row) * row_size..(run.end - first_row) * row_size;
                        if let Some(from) = from {
                            let blocks = &mut blocks[bytes.start as usize..bytes.end as usize];
                            source.read(at.tensor, from * row_size, blocks)?;
                        }
                    }
                }
                for row in (first_row..end).step_by(strip as usize) {
                    let n = strip.min(end - row);
                    for (((at, rows), blocks), weights) in
                        sources.iter().flatten().zip(&self.blocks).zip(&mut self.weights)
                    {
                        let source = inputs.source(at.source);
                        let row_size = source.tensor(at.tensor).row_size();
                        resize(weights, (n * row_len) as usize);
                        for (run, from) in rows.runs(row..row + n) {
                            let (first, end) = (run.start - row, run.end - row);
                            let out = &mut weights[(first * row_len) as usize..(end * row_len) as usize];
                            let bytes = (run.start - first_row) * row_size..(run.end - first_row) * row_size;
                            match from {
                                Some(from) => {
                                    let blocks = &blocks[bytes.start as usize..bytes.end as usize];
                                    decode(source, at.tensor, from * row_len, blocks, out)?;
                                }
                                // Absent from both, so that there is no difference.
                                None => out.fill(0.0),
                            }
                        }
                    }
                    let [tau, base] = &mut self.weights;
                    if minus.is_some() {
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
