//! How a check went.

use serde::Serialize;

use super::Good;

/// How a check went. The worst is the greatest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing to measure it on, or turned off.
    #[default]
    NotMeasured,
    /// Good.
    Pass,
    /// Worth a look.
    Warn,
    /// Not good enough.
    Fail,
}

/// An answer that a check found fault with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Example {
    /// The prompt's id.
    pub prompt: String,
    /// The beginning of the answer in one line, control tokens included and control characters
    /// escaped.
    pub excerpt: String,
}

/// The result of one check.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct CheckResult {
    /// Its name.
    pub name: &'static str,
    /// How it went.
    pub verdict: Verdict,
    /// What was measured, a share of `n`.
    pub value: Option<f64>,
    /// Answers it was measured on.
    pub n: usize,
    /// Which way the value is good.
    pub good: Good,
    /// The bound of failing.
    pub fail: Option<f64>,
    /// The bound of warning.
    pub warn: Option<f64>,
    /// What was found; unless it is good, also what that usually means and what to do.
    pub message: String,
    /// Answers to look at.
    pub examples: Vec<Example>,
}
