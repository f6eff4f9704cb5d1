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
    /// Not as good as it should be, or not to be told from so few answers.
    Warn,
    /// Not as good as it must be.
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
    /// Whether the answers suffice for the verdict. If not, it is [`Verdict::Warn`].
    pub decided: bool,
    /// Why they do not, if they do not.
    pub reason: Option<String>,
    /// What was measured, `hits` of `n`.
    pub value: Option<f64>,
    /// Answers that it was found in.
    pub hits: usize,
    /// Answers it was measured on.
    pub n: usize,
    /// The least and the largest true share that the answers do not rule out, with an error of 5 % on
    /// each side.
    pub interval: Option<(f64, f64)>,
    /// Which way the value is good.
    pub good: Good,
    /// What the true share must be: the bound of failing.
    pub fail: Option<f64>,
    /// What the true share should be: the bound of warning.
    pub warn: Option<f64>,
    /// The true share at which so many answers fail the check with a probability of 80 % (for a check
    /// that only warns: warn). None if so few answers cannot.
    pub power: Option<f64>,
    /// What was found; unless it is good, also what that usually means and what to do.
    pub message: String,
    /// Answers to look at.
    pub examples: Vec<Example>,
}
