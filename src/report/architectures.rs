//! What can be done with models of which architecture.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::{Report, Table};
use crate::{infer, vector};

/// What every architecture has in common that has no row of its own.
const OTHERS: &str = "any other";

/// The table of architectures, as the code has it.
pub struct Architectures;

/// What is known of one.
struct Known {
    /// Tensors that are added though that may not be right, and why.
    doubts: Vec<(&'static str, &'static str)>,
    /// The file of llama.cpp that its forward pass here is held to.
    source: Option<&'static str>,
}

impl Architectures {
    fn known() -> BTreeMap<&'static str, Known> {
        let mut known: BTreeMap<&str, Known> = BTreeMap::new();
        for (name, source) in infer::architectures() {
            known.insert(name, Known { doubts: Vec::new(), source: Some(source) });
        }
        for (name, tensor, why) in vector::doubts() {
            known.entry(name).or_insert(Known { doubts: Vec::new(), source: None }).doubts.push((tensor, why));
        }
        known
    }
}

impl Report for Architectures {
    fn text(&self) -> String {
        let mut table = Table::new(&["architecture", "merge, patch", "quantize", "ask, imatrix", "held to llama.cpp's"]);
        let merge = |known: &Known| if known.doubts.is_empty() { "yes" } else { "with a warning" };
        let ask = |known: &Known| if known.source.is_some() { "yes" } else { "no" };
        for (name, known) in Self::known() {
            table.row([name, merge(&known), "yes", ask(&known), known.source.unwrap_or("–")]);
        }
        table.row([OTHERS, "yes", "yes", "no", "–"]);
        table.text()
    }

    fn json(&self) -> Json {
        let row = |(name, known): (&str, Known)| {
            let doubts = known.doubts.iter().map(|(tensor, why)| json!({ "tensor": tensor, "why": why }));
            json!({
                "name": name,
                "merge": true,
                "doubts": doubts.collect::<Vec<_>>(),
                "quantize": true,
                "ask": known.source.is_some(),
                "source": known.source,
            })
        };
        let all: Vec<Json> = Self::known().into_iter().map(row).collect();
        let others = json!({ "merge": true, "quantize": true, "ask": false });
        json!({ "architectures": all, "others": others })
    }
}
