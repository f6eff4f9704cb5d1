//! What is done where rounding would take the vector.

use clap::{Args, ValueEnum};

use crate::plan::{self, RecipeFile};

/// What the help calls the options of [`LossArgs`].
pub(super) const LOSS_HEADING: &str = "Where rounding would take the vector";

/// What is done where rounding would take the vector.
#[derive(Args, Clone, Debug)]
pub(super) struct LossArgs {
    /// What to do about tensors that would lose the vector [default: dither]
    #[arg(long, value_name = "WHAT", value_enum)]
    on_loss: Option<OnLoss>,
    /// The share of the vector that the output must hold, by a mean over its matrices in which a
    /// lost one counts most; tensors that hold less are dithered or promoted [default: 0.9]
    #[arg(long, value_name = "SHARE", value_parser = bound, allow_negative_numbers = true)]
    min_survival: Option<f64>,
    /// The most rounding error that the output may have, by the same mean, in units of the vector;
    /// likewise for tensors [default: 8]
    #[arg(long, value_name = "RATIO", value_parser = bound, allow_negative_numbers = true)]
    max_noise: Option<f64>,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum OnLoss {
    /// Choose their codes anew on the same grid, at the same size; a finer type where that does not
    /// help
    Dither,
    /// Give them the next finer type that keeps it
    Promote,
    /// Write them all the same, and say so
    Warn,
    /// End with an error if the output would be rejected
    Fail,
}

fn bound(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(bound) if bound >= 0.0 => Ok(bound),
        Ok(_) => Err("a bound is 0 or more".to_owned()),
        Err(e) => Err(format!("{e}")),
    }
}

impl LossArgs {
    /// Puts what was given in place of what the file says.
    pub(super) fn overlay(&self, file: &mut RecipeFile) {
        if let Some(on_loss) = self.on_loss {
            file.on_loss = match on_loss {
                OnLoss::Dither => plan::OnLoss::Dither,
                OnLoss::Promote => plan::OnLoss::Promote,
                OnLoss::Warn => plan::OnLoss::Warn,
                OnLoss::Fail => plan::OnLoss::Fail,
            };
        }
        file.min_survival = self.min_survival.or(file.min_survival);
        file.max_noise = self.max_noise.or(file.max_noise);
    }
}
