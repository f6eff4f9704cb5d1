//! Segments: the whole rows over which measurements are added up before they are added to others.

use crate::plan::TensorPlan;
use crate::vector::minimum_rows;

/// Weights of a segment, about. Partial sums are kept for each, so it bounds what a tally may hold:
/// 16 of them a million.
const SEGMENT_WEIGHTS: u64 = 1 << 16;

/// Rows of a segment: the unit of adding up. It depends on the row's length alone; chunks are whole
/// segments.
pub(super) fn segment_rows(row_len: u64) -> u64 {
    let strip = minimum_rows(row_len);
    (SEGMENT_WEIGHTS / (strip * row_len.max(1))).max(1) * strip
}

/// Weights in a row of a planned tensor, and rows.
pub(super) fn rows_of(tensor: &TensorPlan) -> (u64, u64) {
    let row_len = tensor.ne.first().copied().unwrap_or(1);
    (row_len, if row_len == 0 { 0 } else { tensor.ne[1.min(tensor.ne.len())..].iter().product() })
}
