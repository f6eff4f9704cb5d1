//! The keys of an architecture.

use std::path::Path;

use super::Error;
use crate::gguf::{Metadata, Value};

/// Reads the keys that begin with an architecture's name.
pub(super) struct Keys<'a> {
    pub(super) metadata: &'a Metadata,
    pub(super) path: &'a Path,
    pub(super) architecture: &'a str,
}

impl Keys<'_> {
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(&format!("{}.{key}", self.architecture))
    }

    pub(super) fn fault(&self, key: &str, expected: &str, found: &str) -> Error {
        Error::key(self.path, &format!("{}.{key}", self.architecture), expected, found)
    }

    /// The error of what the forward pass has not.
    pub(super) fn not_built_in(&self, key: &str, expected: &str, found: &str) -> Error {
        let (path, key) = (self.path.to_owned(), format!("{}.{key}", self.architecture));
        Error::NotBuiltIn { path, key, expected: expected.to_owned(), found: found.to_owned() }
    }

    pub(super) fn integer(&self, key: &str) -> Result<Option<u64>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) => Ok(Some(n)),
            None => Err(self.fault(key, "one non-negative integer", &value.summary())),
        }
    }

    /// One integer, or an array with the same one for every layer (`get_key_or_arr`): networks
    /// whose layers differ are none of those here.
    pub(super) fn layered(&self, key: &str) -> Result<Option<u64>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let one = match value.as_array() {
            None => value.as_u64(),
            Some(array) => {
                let mut all = (0..array.len()).map(|i| array.get(i).and_then(|v| v.as_u64()));
                all.next().flatten().filter(|&first| all.all(|n| n == Some(first)))
            }
        };
        match one {
            Some(n) => Ok(Some(n)),
            None => Err(self.fault(key, "one non-negative integer, the same for every layer", &value.summary())),
        }
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f32>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_f64().map(|v| v as f32).filter(|v| v.is_finite()) {
            Some(v) => Ok(Some(v)),
            None => Err(self.fault(key, "a number", &value.summary())),
        }
    }

    /// A number that is not 0.
    pub(super) fn scale(&self, key: &str) -> Result<Option<f32>, Error> {
        Ok(self.float(key)?.filter(|scale| *scale != 0.0))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_bool() {
            Some(flag) => Ok(Some(flag)),
            None => Err(self.fault(key, "true or false", &value.summary())),
        }
    }

    /// An integer from 1 to `most`: `found`, which is that of a key.
    pub(super) fn within(&self, key: &str, most: u64, found: Option<u64>) -> Result<usize, Error> {
        match found.filter(|n| (1..=most).contains(n)) {
            Some(n) => Ok(n as usize),
            None => {
                let found = found.map_or("no such key".to_owned(), |n| n.to_string());
                Err(self.fault(key, &format!("an integer from 1 to {most}"), &found))
            }
        }
    }

    /// An integer from 1 to `most`, which must be there.
    pub(super) fn required(&self, key: &str, most: u64) -> Result<usize, Error> {
        self.within(key, most, self.integer(key)?)
    }

    /// The same, which may be an array of one number.
    pub(super) fn required_layered(&self, key: &str, most: u64) -> Result<usize, Error> {
        self.within(key, most, self.layered(key)?)
    }
}
