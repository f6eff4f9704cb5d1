//! Keys and values of the tokens so far.

use std::collections::TryReserveError;

/// A row of activations: the token at a position of a sequence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) sequence: usize,
    pub(super) position: usize,
}

/// Keys and values of a layer for one sequence, a row a token, in f32 as llama.cpp's with
/// `--cache-type-k f32`.
pub(super) struct KeysAndValues {
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
}

impl KeysAndValues {
    /// Room for all that will come: growing would take up to three times as much.
    pub(super) fn with_capacity(len: usize) -> Result<Self, TryReserveError> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        keys.try_reserve_exact(len)?;
        values.try_reserve_exact(len)?;
        Ok(KeysAndValues { keys, values })
    }

    pub(super) fn push(&mut self, key: &[f32], value: &[f32]) {
        self.keys.extend_from_slice(key);
        self.values.extend_from_slice(value);
    }

    /// Becomes the first `len` values of another one, which is no longer than there is room for.
    pub(super) fn copy(&mut self, other: &KeysAndValues, len: usize) {
        self.truncate(0);
        self.push(&other.keys[..len], &other.values[..len]);
    }

    /// Forgets all but the first `len` values of each.
    pub(super) fn truncate(&mut self, len: usize) {
        self.keys.truncate(len);
        self.values.truncate(len);
    }
}
