//! What a user should hear before a run.

use std::error::Error as StdError;
use std::fmt;

use super::Error;
use crate::plan::{self, Loss, Warning};
use crate::survey::Finding;

/// Below this cosine with the true vector, half of what is added is rounding error of base and chat.
pub const LEAST_COSINE: f64 = 0.7;

/// Something about a run that its user should know before it begins.
#[derive(Debug)]
#[non_exhaustive]
pub enum Caution {
    /// In a dry run: the output cannot be where it was asked for.
    Place(Error),
    /// The planner's.
    Plan(Warning),
    /// The survey's.
    Finding(Finding),
    /// Rounding is expected to leave this share of the vector.
    Survival(f64),
    /// Rounding is expected to take the vector from these.
    Loss(Vec<Loss>),
    /// The cosine of the vector that is read from the files with the true one is this low.
    RoundingError(f64),
}

impl Caution {
    /// Whether it is no warning: nothing may be wrong.
    pub fn is_note(&self) -> bool {
        matches!(self, Caution::Plan(warning) if warning.is_note())
    }
}

impl fmt::Display for Caution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Caution::Place(error) => {
                write!(f, "{error}")?;
                let mut cause = error.source();
                while let Some(error) = cause {
                    write!(f, ": {error}")?;
                    cause = error.source();
                }
                Ok(())
            }
            Caution::Plan(warning) => write!(f, "{warning}"),
            Caution::Finding(finding) => write!(f, "{finding}"),
            Caution::Survival(survival) => {
                write!(f, "rounding is expected to leave only {:.0} % of the vector", survival * 100.0)
            }
            Caution::Loss(lost) => write!(f, "rounding is expected to take the vector from {}", plan::listed(lost)),
            Caution::RoundingError(cosine) => write!(
                f,
                "the vector read from these files is about {:.0} % rounding error (cosine {cosine:.2}): take base \
                 and chat as F16 or Q8_0 where you can",
                (1.0 - cosine * cosine) * 100.0
            ),
        }
    }
}
