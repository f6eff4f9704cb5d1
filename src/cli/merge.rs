//! `chatvec merge --base B --chat C --model M -o OUT`

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use super::imatrix_args::ImatrixArgs;
use super::job::{Job, OutputArgs, SmokeTest};
use super::types::TypeArgs;
use super::{Exit, Global};
use crate::gguf::{Limits, Model};
use crate::plan::{self, LossPolicy, MergePlan, Recipe, SpecialTokens};
use crate::survey::{self, Inputs, Pair};

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
    /// Which rows of token embeddings and output take part
    #[arg(long, value_name = "WHICH", value_enum, default_value_t = Embeddings::Auto)]
    embeddings: Embeddings,
    /// Tokens whose rows are taken from the chat model as they are: auto, none, or their texts with commas between
    #[arg(long, value_name = "auto|none|TOKENS", default_value = "auto")]
    special_tokens: String,
    /// Give the model the tokens that the chat needs and it lacks, with the chat model's rows
    #[arg(long)]
    add_missing_tokens: bool,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum Embeddings {
    /// all if base and chat have every token of the model, else shared
    Auto,
    /// Every row; refused if a token is missing somewhere
    All,
    /// Rows of the tokens that base and chat have too
    Shared,
    /// They stay the model's
    Skip,
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
        let embeddings = match self.embeddings {
            Embeddings::Auto => plan::Embeddings::Auto,
            Embeddings::All => plan::Embeddings::All,
            Embeddings::Shared => plan::Embeddings::Shared,
            Embeddings::Skip => plan::Embeddings::Skip,
        };
        let special_tokens = match self.special_tokens.as_str() {
            "auto" => SpecialTokens::Auto,
            "none" => SpecialTokens::None,
            texts => SpecialTokens::List(texts.split(',').map(str::to_owned).collect()),
        };
        let add_missing_tokens = self.add_missing_tokens;
        Ok(Recipe { output: types.parse()?, embeddings, special_tokens, add_missing_tokens, loss: loss.policy() })
    }

    /// The plan of a merge by this recipe.
    pub(super) fn plan(inputs: &Inputs, pairs: Vec<Pair>, recipe: &Recipe) -> Result<MergePlan> {
        let special = match recipe.special_tokens {
            SpecialTokens::None => None,
            _ => survey::special_tokens(inputs)?,
        };
        Ok(MergePlan::merge(inputs, pairs, recipe, special.as_ref())?)
    }
}

pub(super) fn run(args: &MergeArgs, global: &Global) -> Result<Exit> {
    let recipe = args.recipe.recipe(&args.types, &args.loss)?;
    let open = |path: &PathBuf, role| Model::open(path, &Limits::default()).context(role);
    let (base, chat) = (open(&args.base, "--base")?, open(&args.chat, "--chat")?);
    let inputs = Inputs::merge(open(&args.model, "--model")?, base, chat, args.ratio);
    let inputs = args.imatrix.add_to(inputs, global)?;
    let plan = |inputs: &Inputs, pairs| RecipeArgs::plan(inputs, pairs, &recipe);
    Job { inputs, output: &args.output, global, recipe: Some(&recipe), plan: &plan, smoke: Some(&args.smoke) }.run()
}
