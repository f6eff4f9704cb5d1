//! Where the rows of an output tensor are in a tensor of an input.

use std::ops::Range;

use super::fold::Turn;
use crate::chat::TokenMap;

/// Where the rows of an output tensor are in a tensor of an input.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Rows that the input's tensor has.
    pub(super) n_rows: u64,
    /// Where the input has the output's tokens; none if its rows are in the order of the output.
    pub(super) map: Option<&'a TokenMap>,
    pub(super) partner: Option<&'a TokenMap>,
    pub(super) except: &'a [u32],
    /// The rows that the output has, if it has not all.
    pub(super) selected: Option<&'a [u32]>,
    pub(super) is_difference: bool,
    /// How rows become those of the output's coordinates, if they are folded in another way.
    pub(super) turn: Option<Turn<'a>>,
}

/// What stands for a row that the tensor of an input lacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Absent {
    /// No difference at all.
    Zero,
    /// The output's own row: the difference of two is then zero, and the mean of many is not drawn
    /// anywhere.
    Own,
}

impl<'a> Rows<'a> {
    /// These rows where the output has only the `selected` ones of them.
    #[must_use]
    pub fn select(self, selected: Option<&'a [u32]>) -> Self {
        Rows { selected, ..self }
    }

    /// Whether the tensor holds differences.
    pub fn is_difference(&self) -> bool {
        self.is_difference
    }

    /// Turns weights of the tensor, whole blocks of its folds, into the coordinates of the output's.
    /// `first` is the index in the tensor of the first of them.
    pub(super) fn turn(&self, first: u64, weights: &mut [f32]) {
        if let Some(turn) = self.turn {
            turn.apply(first, weights);
        }
    }

    /// What stands for rows that the tensor lacks.
    pub fn absent(&self) -> Absent {
        if self.is_difference { Absent::Zero } else { Absent::Own }
    }

    /// The row of the input's tensor that belongs to this row of the output's, if there is one.
    pub fn find(&self, row: u64) -> Option<u64> {
        let row = match self.selected {
            Some(selected) => selected.get(usize::try_from(row).ok()?).copied()?.into(),
            None => row,
        };
        let id = u32::try_from(row).ok();
        let in_map = |map: &TokenMap| id.and_then(|id| map.find(id)).map(u64::from);
        if id.is_some_and(|id| self.except.binary_search(&id).is_ok())
            || self.partner.is_some_and(|p| in_map(p).is_none())
        {
            return None;
        }
        self.map.map_or(Some(row), in_map).filter(|row| *row < self.n_rows)
    }

    /// Rows of the output in groups that lie one behind the other in the input too, with the first
    /// of them there; none for a group that is absent.
    pub fn runs(self, rows: Range<u64>) -> impl Iterator<Item = (Range<u64>, Option<u64>)> {
        let is_plain =
            self.map.is_none() && self.partner.is_none() && self.except.is_empty() && self.selected.is_none();
        let mut start = rows.start;
        std::iter::from_fn(move || {
            let first = start;
            if first >= rows.end {
                return None;
            }
            let found = self.find(first);
            let mut end = first + 1;
            if is_plain && found.is_some() {
                end = rows.end.min(self.n_rows);
            }
            while end < rows.end && self.find(end) == found.map(|row| row + (end - first)) {
                end += 1;
            }
            start = end;
            Some((first..end, found))
        })
    }
}
