//! Rows of some tokens: which tensor of which file has them.

use super::error::Error;
use super::inputs::{Inputs, find_or_tied};
use super::source::read_row;
use super::stored::StoredRows;
use super::term::{SourceId, TensorRef};
use crate::gguf::TensorInfo;
use crate::gguf::names::{OUTPUT, TOKEN_EMBEDDINGS};
use crate::quants;

/// Rows of some tokens of a model, or of all.
#[derive(Clone, PartialEq, Debug)]
pub struct TokenRows {
    /// The tensor that has them.
    pub at: TensorRef,
    /// The tokens whose rows they are, in ascending order. None for a row of each token.
    pub(crate) tokens: Option<Vec<u32>>,
}

impl TokenRows {
    /// The rows of a tensor in the chat model of a source, by the ids of that model. A stored
    /// vector has those of special tokens.
    pub fn of_chat(inputs: &Inputs, source: SourceId, name: &str) -> Option<Self> {
        let Some(stored) = inputs.stored(source) else {
            return Some(TokenRows { at: find_or_tied(inputs, source, name)?, tokens: None });
        };
        // The embeddings of the chat model are tied if the vector has no output of its own.
        let is_tied = name == OUTPUT && !stored.lists(name);
        Some(Self::stored(source, stored.chat_rows(if is_tied { TOKEN_EMBEDDINGS } else { name })?))
    }

    /// The rows of a tensor in the base of the vector that ends in a source, by the ids of that
    /// base. Where its embeddings are tied, the rows of `token_embd` are those of its output. A
    /// stored vector has some.
    pub(crate) fn of_base(inputs: &Inputs, plus: SourceId, name: &str) -> Option<Self> {
        let vector = inputs.vectors().iter().find(|vector| vector.plus == plus)?;
        if let Some(base) = vector.minus {
            return Some(TokenRows { at: find_or_tied(inputs, base, name)?, tokens: None });
        }
        let stored = inputs.stored(plus)?;
        // The base is tied if the vector has no output of its own, or if chat alone brought rows of
        // one.
        let is_tied = name == OUTPUT && (!stored.lists(OUTPUT) || stored.chat_rows(OUTPUT).is_some());
        let rows = stored.base_rows(name).or_else(|| stored.base_rows(TOKEN_EMBEDDINGS).filter(|_| is_tied));
        Some(Self::stored(plus, rows?))
    }

    fn stored(source: SourceId, rows: StoredRows) -> Self {
        TokenRows { at: TensorRef { source, tensor: rows.tensor }, tokens: Some(rows.tokens) }
    }

    /// The row of a token.
    pub fn find(&self, token: u32) -> Option<u32> {
        match &self.tokens {
            None => Some(token),
            Some(tokens) => tokens.binary_search(&token).ok().map(|row| row as u32),
        }
    }
}

/// The row of a token of the model among those of another file.
pub(crate) fn place(inputs: &Inputs, rows: &TokenRows, id: u32) -> Option<u32> {
    let there = match inputs.token_map(rows.at.source) {
        Some(map) => map.find(id),
        None => Some(id),
    };
    rows.find(there?)
}

/// A row, if the tensor has it, folded as those of `own` are.
pub(crate) fn read_token_row(
    inputs: &Inputs,
    at: TensorRef,
    own: TensorRef,
    row: u32,
) -> Result<Option<Vec<f32>>, Error> {
    let source = inputs.source(at.source);
    if u64::from(row) >= source.tensor(at.tensor).n_rows() {
        return Ok(None);
    }
    let mut weights = read_row(source, at.tensor, row.into())?;
    if let Some(turn) = inputs.turn(at, own) {
        turn.apply(0, &mut weights);
    }
    Ok(Some(weights))
}

/// Bytes of a row at most that are read for this: a row of 16 million weights of 4 bytes is no
/// token's.
const LONGEST_ROW: u64 = 64 << 20;

/// Whether rows of a tensor can be looked at one by one.
pub fn is_readable_row(info: &TensorInfo) -> bool {
    quants::is_supported(info.ty()) && info.row_len() * 4 <= LONGEST_ROW && info.row_size() <= LONGEST_ROW
}

/// Rows that are looked at for what is usual.
const ORDINARY: u64 = 1024;

/// The median of a number of rows, of those that have one, over a thousand rows that are evenly
/// spread.
///
/// # Errors
/// Whatever `of` says.
pub fn median_of_rows(n_rows: u64, of: impl FnMut(u64) -> Result<Option<f64>, Error>) -> Result<Option<f64>, Error> {
    median((0..n_rows).step_by((n_rows / ORDINARY).max(1) as usize), of)
}

pub(crate) fn median(
    rows: impl Iterator<Item = u64>,
    mut of: impl FnMut(u64) -> Result<Option<f64>, Error>,
) -> Result<Option<f64>, Error> {
    let mut numbers = Vec::new();
    for row in rows {
        numbers.extend(of(row)?);
    }
    numbers.sort_by(f64::total_cmp);
    Ok(numbers.get(numbers.len() / 2).copied())
}
