//! `chatvec merge --base B --chat C --model M -o OUT`

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use super::asking_args::SmokeArgs;
use super::imatrix_args::ImatrixArgs;
use super::lora_args::ResidualArgs;
use super::loss_args::{LOSS_HEADING, LossArgs};
use super::merging;
use super::output_args::OutputArgs;
use super::recipe_args::{Prepared, RecipeArgs, parse_vector, prepare, presets, read};
use super::template_process::TemplateArgs;
use super::types::TypeArgs;
use super::{Exit, Global};
use crate::plan::{RecipeFile, VectorFile};
use crate::vector::Method;

#[derive(Args, Debug)]
#[command(after_help = presets())]
pub(super) struct MergeArgs {
    /// The base model that chat and model were both trained from
    #[arg(long, value_name = "FILE", requires = "chat")]
    base: Option<PathBuf>,
    /// The chat model that was made from the base
    #[arg(long, value_name = "FILE", requires = "base", required_unless_present_any = ["vector", "recipe"])]
    chat: Option<PathBuf>,
    /// A vector: base and chat, or a patch; can be given several times. They part where both are
    /// files, else at the last colon that is no drive's
    #[arg(long, value_name = "BASE:CHAT[@R] | PATCH[@R]")]
    vector: Vec<PathBuf>,
    /// The continual-pretrained model that is to chat
    #[arg(long, value_name = "FILE", required_unless_present = "recipe")]
    model: Option<PathBuf>,
    /// How much of the vector of --base and --chat, or of a recipe's one vector, to add [default:
    /// 1]
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    ratio: Option<f64>,
    /// A recipe: TOML of chatvec's, mergekit's YAML, or an output to be made again. Options given
    /// beside it win
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    #[command(flatten)]
    types: TypeArgs,
    #[command(flatten)]
    how: RecipeArgs,
    #[command(flatten, next_help_heading = LOSS_HEADING)]
    loss: LossArgs,
    #[command(flatten)]
    imatrix: ImatrixArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten, next_help_heading = LOSS_HEADING)]
    residual: ResidualArgs,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    smoke: SmokeArgs,
}

impl MergeArgs {
    /// The recipe file, with the files that were given in place of its own.
    fn file(&self, global: &Global) -> Result<RecipeFile> {
        let mut file = match &self.recipe {
            Some(path) => read(path, global)?,
            None => RecipeFile::default(),
        };
        file.model = self.model.clone().unwrap_or(file.model);
        let mut vectors = Vec::new();
        if let (Some(base), Some(chat)) = (&self.base, &self.chat) {
            vectors.push(VectorFile::pair(base.clone(), chat.clone(), 1.0));
        }
        for arg in &self.vector {
            let mut vector = parse_vector(arg)?;
            // What would be a patch elsewhere is a model where models are averaged.
            if self.how.method().unwrap_or(file.method) == Method::Linear && vector.patch.is_some() {
                vector.chat = vector.patch.take();
            }
            vectors.push(vector);
        }
        if !vectors.is_empty() {
            file.vectors = vectors;
        }
        if let Some(ratio) = self.ratio {
            match &mut file.vectors[..] {
                [first, ..] if self.base.is_some() => first.ratio = ratio.into(),
                [one] => one.ratio = ratio.into(),
                _ => bail!("--ratio is for one vector; write BASE:CHAT@R for each of several"),
            }
        }
        Ok(file)
    }
}

pub(super) fn run(args: &MergeArgs, global: &Global) -> Result<Exit> {
    let file = args.file(global)?;
    let Prepared { inputs, recipe } =
        prepare(file, &args.how, &args.loss, &args.types, &args.imatrix, &args.output, global)?;
    let MergeArgs { output, smoke, residual, template, .. } = args;
    merging::run(inputs, &recipe, &merging::Options { output, smoke, residual, template }, global)
}
