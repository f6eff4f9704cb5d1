//! `chatvec merge --base B --chat C --model M -o OUT`

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use super::imatrix_args::ImatrixArgs;
use super::job::{Job, OutputArgs, SmokeTest};
use super::types::TypeArgs;
use super::{Exit, Global};
use crate::gguf::{Limits, Model};
use crate::plan::{self, MergePlan, Recipe};
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

impl RecipeArgs {
    pub(super) fn recipe(&self, types: &TypeArgs) -> Result<Recipe> {
        let SpecialTokens::None = self.special_tokens;
        let embeddings = match self.embeddings {
            Embeddings::All => plan::Embeddings::All,
            Embeddings::Skip => plan::Embeddings::Skip,
        };
        Ok(Recipe { output: types.parse()?, embeddings })
    }
}

pub(super) fn run(args: &MergeArgs, global: &Global) -> Result<Exit> {
    let recipe = args.recipe.recipe(&args.types)?;
    let open = |path: &PathBuf, role| Model::open(path, &Limits::default()).context(role);
    let (base, chat) = (open(&args.base, "--base")?, open(&args.chat, "--chat")?);
    let inputs = Inputs::merge(open(&args.model, "--model")?, base, chat, args.ratio);
    let inputs = args.imatrix.add_to(inputs, global)?;
    let plan = |inputs: &Inputs, pairs| Ok(MergePlan::merge(inputs, pairs, &recipe)?);
    Job { inputs, output: &args.output, global, is_patch: false, plan: &plan, smoke: Some(&args.smoke) }.run()
}
