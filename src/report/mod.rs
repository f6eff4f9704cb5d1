//! Result values as text for people and as JSON for programs. Computes nothing.

mod architectures;
mod audit;
mod compare;
mod imatrix;
mod inspect;
mod languages;
mod lora;
mod plan;
mod quantize;
mod run;
mod smoke;
mod sweep;
mod table;
mod verify;

pub use architectures::Architectures;
pub use compare::{Compare, SaidOfText};
pub use imatrix::Imatrix;
pub use inspect::Inspect;
pub use languages::Languages;
pub use lora::Lora;
pub use plan::{Plan, encoding};
pub use quantize::Quantize;
pub use run::Run;
pub use smoke::{Smoke, conversation};
pub use sweep::{Sweep, way};
pub use table::Table;
pub use verify::Verify;

use crate::eval::{Agreement, Place};

/// A result that can be shown.
pub trait Report {
    /// The result as text for people, with a line feed at the end.
    fn text(&self) -> String;

    /// The result as JSON for programs. Keys are stable within a version of this crate.
    fn json(&self) -> serde_json::Value;

    /// Whether words of the text are verdicts: PASS, WARN and FAIL at the beginning of a line, behind
    /// the first word of one, or at the end of all.
    fn has_verdicts(&self) -> bool {
        false
    }
}

/// A share as a percentage with two digits after the point, or a dash.
fn percent(share: Option<f64>) -> String {
    share.filter(|s| s.is_finite()).map_or("–".to_owned(), |s| format!("{:.2} %", s * 100.0))
}

/// A number with three digits after the point, or a dash.
fn number(value: Option<f64>) -> String {
    value.filter(|v| v.is_finite()).map_or("–".to_owned(), |v| format!("{v:.3}"))
}

/// Bytes with a binary unit.
fn bytes(n: u64) -> String {
    bytesize::ByteSize::b(n).display().iec().to_string()
}

/// A path in one line.
pub fn shown(path: &std::path::Path) -> String {
    crate::gguf::printable(&path.display().to_string())
}

/// How far llama.cpp is from the built-in engine.
fn agreement(found: &Agreement) -> String {
    let (n, largest, mean) = (found.n, found.largest, found.mean);
    let best = match found.first_other_best {
        None => "the most probable token is always the same".to_owned(),
        Some(Place { text, token }) => {
            let n = found.n_other_best;
            format!("the most probable token is another at {n}, first at token {token} of text {text} (both from 0)")
        }
    };
    format!(
        "llama.cpp beside the built-in engine: log-probabilities of {n} next tokens differ by {largest:.2e} at most \
         ({:.0e} expected) and {mean:.2e} on the mean ({:.0e}); {best}",
        found.bounds.largest, found.bounds.mean
    )
}

/// A shape, row length first.
fn shape(ne: &[u64]) -> String {
    let lengths: Vec<String> = ne.iter().map(u64::to_string).collect();
    lengths.join(" × ")
}
