//! What the library takes texts for. `language_id.py` measures by it.
//!
//! A line of input is `{"text": "Das Wetter ist schön.", "asked": ["de", "en"]}`; the line for it on
//! standard output has the language found for each that is asked for, or null: `["de","de"]`.
#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints")]

use std::io::{BufRead, BufWriter, Write, stdin, stdout};

use chatvec::eval::{Detector, Language};

#[derive(serde::Deserialize)]
struct Line {
    text: String,
    asked: Vec<String>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = BufWriter::new(stdout().lock());
    for line in stdin().lock().lines() {
        let line: Line = serde_json::from_str(&line?)?;
        let mut found = Vec::new();
        for asked in &line.asked {
            found.push(Detector::new(&[Language::parse(asked)?]).detect(&line.text));
        }
        writeln!(out, "{}", serde_json::to_string(&found)?)?;
    }
    Ok(out.flush()?)
}
