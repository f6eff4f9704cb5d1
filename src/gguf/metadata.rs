//! Key–value pairs in the order of the file.

use bstr::BStr;

use super::value::{StringArray, Value};

/// Ordered metadata. Keys are unique.
///
/// A list, not a map: files have tens of keys, order must survive, and a search through them costs
/// less than the bookkeeping of an index would.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
}

impl Metadata {
    /// Adds a key that the caller knows to be new.
    pub(super) fn push_unique(&mut self, key: String, value: Value) {
        self.entries.push((key, value));
    }

    /// How many keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All pairs in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// The value of a key that should be a non-negative integer of any width.
    pub fn get_u64(&self, key: &str) -> Option<u64> {
        self.get(key)?.as_u64()
    }

    /// The value of a key that should be a string.
    pub fn get_str(&self, key: &str) -> Option<&BStr> {
        self.get(key)?.as_str()
    }

    /// The value of a key that should be an array of strings.
    pub fn get_strings(&self, key: &str) -> Option<&StringArray> {
        self.get(key)?.as_array()?.as_strings()
    }

    /// `general.architecture`, if it is a UTF-8 string.
    pub fn architecture(&self) -> Option<&str> {
        std::str::from_utf8(self.get_str("general.architecture")?).ok()
    }

    /// Gives a key a value: in its place if it is there, at the end if not.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        match self.entries.iter_mut().find(|(k, _)| k == key) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((key.to_owned(), value)),
        }
    }

    /// Drops every pair whose key does not pass.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.entries.retain(|(k, _)| keep(k));
    }
}
