//! `chatvec merge --base B --chat C --model M -o OUT`

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use super::imatrix_args::ImatrixArgs;
use super::job::{Job, OutputArgs, SmokeTest};
use super::types::TypeArgs;
use super::{Exit, Global};
use crate::gguf::{Limits, Model};
use crate::plan::{self, LossPolicy, MergePlan, Recipe};
use crate::survey::Inputs;

#[derive(Args, Debug)]
pub(super) struct MergeArgs {
    /// The base model that chat and model were both trained from
    #[arg(long, value_name = "FILE")]
    base: PathBuf,
    /// The chat model that was made from the base
    #[arg(long, value_name = "FILE")]
    chat: PathBuf,
    /// The continual-pretrained model that is to chat
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// How much of the vector to add
    #[arg(long, value_name = "R", default_value_t = 1.0, allow_negative_numbers = true)]
    ratio: f64,
    #[command(flatten)]
    types: TypeArgs,
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten, next_help_heading = LOSS_HEADING)]
    loss: LossArgs,
    #[command(flatten)]
    imatrix: ImatrixArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    smoke: SmokeTest,
}

/// Which parts of a model take part.
#[derive(Args, Clone, Debug)]
pub(super) struct RecipeArgs {
    /// Whether token embeddings and output take part
    #[arg(long, value_name = "WHICH", value_enum, default_value_t = Embeddings::All)]
    embeddings: Embeddings,
    /// Tokens whose rows are taken from the chat model
    #[arg(long, value_name = "WHICH", value_enum, default_value_t = SpecialTokens::None)]
    special_tokens: SpecialTokens,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum Embeddings {
    /// Every row takes part
    All,
    /// They stay the model's
    Skip,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum SpecialTokens {
    /// No row is treated specially
    None,
}

/// What the help calls the options of [`LossArgs`].
pub(super) const LOSS_HEADING: &str = "Where rounding would take the vector";

/// What is done where rounding would take the vector.
#[derive(Args, Clone, Debug)]
pub(super) struct LossArgs {
    /// What to do about tensors that would lose the vector
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = OnLoss::Dither)]
    on_loss: OnLoss,
    /// The least share of the vector that a tensor, and all together, must hold
    #[arg(long, value_name = "SHARE", default_value_t = LossPolicy::default().min_survival, value_parser = bound)]
    min_survival: f64,
    /// The most rounding error they may have, in units of the vector
    #[arg(long, value_name = "RATIO", default_value_t = LossPolicy::default().max_noise, value_parser = bound)]
    max_noise: f64,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum OnLoss {
    /// Choose their codes anew on the same grid, at the same size; a finer type where that does not help
    Dither,
    /// Give them the next finer type that keeps it
    Promote,
    /// Write them all the same, and say so
    Warn,
    /// End with an error
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
    fn policy(&self) -> LossPolicy {
        let on_loss = match self.on_loss {
            OnLoss::Dither => plan::OnLoss::Dither,
            OnLoss::Promote => plan::OnLoss::Promote,
            OnLoss::Warn => plan::OnLoss::Warn,
            OnLoss::Fail => plan::OnLoss::Fail,
        };
        LossPolicy { on_loss, min_survival: self.min_survival, max_noise: self.max_noise }
    }
}

impl RecipeArgs {
    pub(super) fn recipe(&self, types: &TypeArgs, loss: &LossArgs) -> Result<Recipe> {
        let SpecialTokens::None = self.special_tokens;
        let embeddings = match self.embeddings {
            Embeddings::All => plan::Embeddings::All,
            Embeddings::Skip => plan::Embeddings::Skip,
        };
        Ok(Recipe { output: types.parse()?, embeddings, loss: loss.policy() })
    }
}

pub(super) fn run(args: &MergeArgs, global: &Global) -> Result<Exit> {
    let recipe = args.recipe.recipe(&args.types, &args.loss)?;
    let open = |path: &PathBuf, role| Model::open(path, &Limits::default()).context(role);
    let (base, chat) = (open(&args.base, "--base")?, open(&args.chat, "--chat")?);
    let inputs = Inputs::merge(open(&args.model, "--model")?, base, chat, args.ratio);
    let inputs = args.imatrix.add_to(inputs, global)?;
    let plan = |inputs: &Inputs, pairs| Ok(MergePlan::merge(inputs, pairs, &recipe)?);
    Job { inputs, output: &args.output, global, recipe: Some(&recipe), plan: &plan, smoke: Some(&args.smoke) }.run()
}
