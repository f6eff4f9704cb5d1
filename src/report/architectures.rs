//! What can be done with models of which architecture.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::{Report, Table};
use crate::{infer, vector};

/// What every architecture has in common that has no row of its own.
const OTHERS: &str = "any other";

/// Characters of a line of names.
const NAMES: usize = 56;

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
        let mut groups: BTreeMap<(bool, bool), Vec<&str>> = BTreeMap::new();
        for (name, known) in Self::known() {
            groups.entry((!known.doubts.is_empty(), known.source.is_none())).or_default().push(name);
        }
        groups.entry((false, true)).or_default().push(OTHERS);
        let mut table = Table::new(&["merge, patch", "quantize", "ask", "architecture"]);
        for ((is_doubtful, is_silent), names) in groups {
            let merge = if is_doubtful { "with a warning" } else { "yes" };
            let ask = if is_silent { "by llama.cpp" } else { "yes" };
            let mut cells = [merge, "yes", ask];
            for line in lines(&names) {
                let [merge, quantize, ask] = std::mem::take(&mut cells);
                table.row([merge.to_owned(), quantize.to_owned(), ask.to_owned(), line]);
            }
        }
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
        let others = json!({ "merge": true, "quantize": true, "ask": false, "ask_by_llama_cpp": true });
        json!({ "architectures": all, "others": others })
    }
}

/// Names in lines that fit beside the other columns.
fn lines(names: &[&str]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for name in names {
        match lines.last_mut() {
            Some(line) if line.len() + name.len() < NAMES => *line += &format!(" {name}"),
            _ => lines.push((*name).to_owned()),
        }
    }
    lines
}
