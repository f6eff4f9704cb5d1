//! Which rows of a vector are not zero.

use super::combine::Combination;
use super::error::Error;
use super::inputs::Inputs;
use super::piece::{PIECE_WEIGHTS, Pieces, share_out};
use super::term::Term;
use crate::pool;

/// Bytes that rows of both sides of a vector are read ahead with.
const AHEAD: u64 = 256 << 10;

/// Weights of the rows that a thread looks at one after the other.
const ROWS_OF_TASK: u64 = 1 << 20;

/// The rows of a vector that are not zero, in ascending order. `threads` look, or as many as the
/// buffers of are no more than `memory`; one at least, in 192 KiB.
///
/// # Errors
/// [`Error::Container`], [`Error::Type`], [`Error::NotFinite`], [`Error::Threads`].
pub fn moved_rows(inputs: &Inputs, term: &Term, threads: usize, memory: u64) -> Result<Vec<u32>, Error> {
    let info = inputs.source(term.plus.source).tensor(term.plus.tensor);
    let (row_len, n_rows) = (info.row_len(), info.n_rows().min(u32::MAX.into()));
    let combination = Combination::default();
    // Both sides of τ, and blocks of one of them.
    let (threads, ahead) = share_out(memory, threads, 3 * 4 * PIECE_WEIGHTS, 2);
    let moved = |first: u64, n_rows: u64| {
        let mut pieces = Pieces::new(inputs, None, std::slice::from_ref(term), &combination, &[], row_len, ahead);
        let mut moved = Vec::new();
        for row in first..first + n_rows {
            if has_moved(&mut pieces, term, row, row_len)? {
                moved.push(row as u32);
            }
        }
        Ok::<_, Error>(moved)
    };
    let rows_of_task = (ROWS_OF_TASK / row_len.max(1)).max(1);
    let tasks: Vec<u64> = (0..n_rows).step_by(rows_of_task as usize).collect();
    let of_task = |first: u64| moved(first, rows_of_task.min(n_rows - first));
    Ok(pool::try_map_on(threads, tasks, of_task)?.concat())
}

/// Whether all weights of a vector are zero. Reads up to the first that is not.
///
/// # Errors
/// [`Error::Container`], [`Error::Type`], [`Error::NotFinite`].
pub fn is_zero(inputs: &Inputs, term: &Term) -> Result<bool, Error> {
    let info = inputs.source(term.plus.source).tensor(term.plus.tensor);
    let combination = Combination::default();
    let term_alone = std::slice::from_ref(term);
    let mut pieces = Pieces::new(inputs, None, term_alone, &combination, &[], info.row_len(), AHEAD);
    for row in 0..info.n_rows() {
        if has_moved(&mut pieces, term, row, info.row_len())? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether any weight of a row of a vector is not zero.
fn has_moved(pieces: &mut Pieces<'_>, term: &Term, row: u64, row_len: u64) -> Result<bool, Error> {
    let (mut tau, mut minus) = (Vec::new(), Vec::new());
    for start in (0..row_len).step_by(PIECE_WEIGHTS as usize) {
        pieces.tau(term, (row, start, PIECE_WEIGHTS.min(row_len - start)), (&mut tau, &mut minus))?;
        if tau.iter().any(|t| *t != 0.0) {
            return Ok(true);
        }
    }
    Ok(false)
}
