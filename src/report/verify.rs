//! Whether a patch is whole, and of what it was made.

use serde_json::{Value as Json, json};

use super::Report;
use crate::gguf::printable;
use crate::patch::{Origin, Verification};

/// How many tensors are named at most.
const NAMED: usize = 5;

/// What was found of a patch.
pub struct Verify<'a> {
    /// The result.
    pub found: &'a Verification,
}

impl Report for Verify<'_> {
    fn text(&self) -> String {
        let found = self.found;
        let hashes = &found.hashes;
        let mut text = match (hashes.has_hashes, hashes.is_header_whole) {
            (false, _) => "the patch has no hashes of its own: whether it is whole cannot be told\n".to_owned(),
            (true, true) => "header: as it was written\n".to_owned(),
            (true, false) => "header: damaged, or changed by another program\n".to_owned(),
        };
        if hashes.has_hashes {
            text += &match hashes.damaged.len() {
                0 => "tensors: as they were written, and all of them can be read\n".to_owned(),
                n => format!("tensors: {n} damaged: {}\n", named(&hashes.damaged)),
            };
        }
        for (role, origin) in [("base", &found.base), ("chat", &found.chat)] {
            text += &origin.as_ref().map_or_else(String::new, |origin| format!("{role}: {}\n", words(origin)));
        }
        text
    }

    fn json(&self) -> Json {
        json!({ "whole": self.found.is_whole(), "same_origin": self.found.is_of(), "found": self.found })
    }
}

fn words(origin: &Origin) -> String {
    let Origin { n_same, different, missing } = origin;
    if different.is_empty() && missing.is_empty() {
        return format!("the one that the patch was made from ({n_same} tensors are the same)");
    }
    let mut words = format!("another one than the patch was made from: {n_same} tensors are the same");
    for (tensors, what) in [(different, "are different"), (missing, "are missing")] {
        if !tensors.is_empty() {
            words += &format!("; {} {what}: {}", tensors.len(), named(tensors));
        }
    }
    words
}

fn named(tensors: &[String]) -> String {
    let (first, more) = tensors.split_at(tensors.len().min(NAMED));
    let rest = if more.is_empty() { String::new() } else { format!(", {} more", more.len()) };
    let first: Vec<String> = first.iter().map(|name| printable(name)).collect();
    first.join(", ") + &rest
}
