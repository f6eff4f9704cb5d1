//! Cutting the work so that it fits in memory.

use super::budget::{Budget, importance_bytes};
use super::chunk::{Chunk, must_be_finite, strip_bytes_per_weight};
use super::segment::{rows_of, segment_rows};
use super::{Error, prepare};
use crate::plan::{MergePlan, TensorPlan};
use crate::vector::{Inputs, Rounding, TensorRef, feedback_bytes, minimum_rows};

/// Bytes that a chunk reads and writes at most when memory allows. From 1 MiB on, size made no
/// difference that could be measured (docs/PERFORMANCE.md).
const CHUNK_BYTES: u64 = 8 << 20;

/// How a plan is cut: chunks for each tensor, and workers.
pub(super) struct Layout {
    pub(super) n_workers: usize,
    /// Bytes of blocks a worker may have.
    block_bytes: u64,
    /// Bytes of f32 scratch of a worker: those of the longest row, and of what errors are passed on
    /// with.
    scratch: u64,
    /// Bytes of one segment of each tensor: the blocks of all sources and of the output.
    segments: Vec<u64>,
}

/// What the smallest chunk of a tensor takes.
#[derive(Clone, Copy)]
struct SmallestChunk {
    segment: u64,
    scratch: u64,
}

impl Budget {
    /// Bytes of buffers that a run of this plan uses, and its workers.
    ///
    /// # Errors
    /// [`Error::Budget`] if even one worker does not fit.
    pub fn needed(&self, plan: &MergePlan, inputs: &Inputs) -> Result<(u64, usize), Error> {
        let layout = self.lay_out(plan, inputs)?;
        let worker = layout.largest_chunk() as u64 + layout.scratch;
        let (before, _) = prepare::needed(plan, inputs, self);
        Ok(((worker * layout.n_workers as u64).max(before) + importance_bytes(inputs), layout.n_workers))
    }

    pub(super) fn lay_out(&self, plan: &MergePlan, inputs: &Inputs) -> Result<Layout, Error> {
        let needs: Vec<SmallestChunk> = plan.tensors().iter().map(|t| SmallestChunk::of(t, inputs)).collect();
        let scratch = needs.iter().map(|n| n.scratch).max().unwrap_or(0);
        let largest = needs.iter().zip(plan.tensors()).max_by_key(|(need, _)| need.segment);
        let (segment, name) = largest.map_or((0, ""), |(need, tensor)| (need.segment, tensor.name.as_str()));
        let worker = segment.saturating_add(scratch).max(1);
        let memory = self.memory_for_buffers(inputs);
        let before = prepare::largest(plan, inputs).filter(|(bytes, _)| *bytes > worker);
        let (least, name) = before.unwrap_or((worker, name));
        if least > memory {
            let needed = least.saturating_add(importance_bytes(inputs));
            return Err(Error::Budget { tensor: name.to_owned(), needed, budget: self.memory });
        }
        // No more than there are segments: a thread without work costs its start.
        let n_segments = plan.tensors().iter().map(n_segments).sum::<u64>().max(1);
        let n_workers = (memory / worker).min(self.threads.max(1) as u64).min(n_segments) as usize;
        let block_bytes = memory / n_workers as u64 - scratch;
        Ok(Layout { n_workers, block_bytes, scratch, segments: needs.into_iter().map(|n| n.segment).collect() })
    }
}

impl SmallestChunk {
    fn of(tensor: &TensorPlan, inputs: &Inputs) -> Self {
        let (row_len, n_rows) = rows_of(tensor);
        let rows = segment_rows(row_len).min(n_rows);
        let weights = rows.saturating_mul(row_len);
        let bytes = |ty: crate::ggml::GgmlType| ty.size_of(weights).unwrap_or(u64::MAX);
        let sources = tensor.sources().map(|at| bytes(inputs.source(at.source).tensor(at.tensor).ty()));
        let segment = sources.fold(bytes(tensor.ty), u64::saturating_add);
        let strip = minimum_rows(row_len).min(n_rows).saturating_mul(row_len);
        let scratch = match tensor.is_copy(inputs) && !must_be_finite(tensor) {
            true => 0,
            false => strip.saturating_mul(strip_bytes_per_weight(tensor)),
        };
        // At worst each worker has a tensor of its own.
        let feedback = match tensor.rounding {
            Rounding::Dithered { .. } => feedback_bytes(row_len),
            Rounding::Encoder | Rounding::UnitGain => 0,
        };
        let scratch_of = |at: TensorRef| inputs.source(at.source).scratch_of(at.tensor);
        let computed = tensor.sources().map(scratch_of).fold(0, u64::saturating_add);
        SmallestChunk { segment, scratch: scratch.saturating_add(feedback).saturating_add(computed) }
    }
}

fn n_segments(tensor: &TensorPlan) -> u64 {
    let (row_len, n_rows) = rows_of(tensor);
    n_rows.div_ceil(segment_rows(row_len))
}

impl Layout {
    fn segments_per_chunk(&self, segment: u64) -> u64 {
        (self.block_bytes.min(CHUNK_BYTES) / segment.max(1)).max(1)
    }

    /// Bytes of blocks of the largest chunk.
    pub(super) fn largest_chunk(&self) -> usize {
        self.segments.iter().map(|s| self.segments_per_chunk(*s) * s).max().unwrap_or(0) as usize
    }

    /// All chunks, in the order of the output.
    pub(super) fn chunks<'a>(&'a self, plan: &'a MergePlan) -> impl Iterator<Item = Chunk> + Send + 'a {
        plan.tensors().iter().zip(&self.segments).enumerate().flat_map(move |(index, (tensor, segment_bytes))| {
            let (row_len, n_rows) = rows_of(tensor);
            let segment = segment_rows(row_len);
            let per_chunk = segment * self.segments_per_chunk(*segment_bytes);
            let row_size = tensor.ty.size_of(row_len).expect("the header was laid out with it");
            (0..n_rows.div_ceil(per_chunk)).map(move |i| Chunk {
                tensor: index,
                first_row: i * per_chunk,
                n_rows: per_chunk.min(n_rows - i * per_chunk),
                first_segment: i * per_chunk / segment,
                segment_rows: segment,
                row_len,
                row_size,
            })
        })
    }
}
