//! `chatvec merge --base B --chat C --model M -o OUT`

use anyhow::{Result, bail};
use clap::Args;

use super::asking_args::SmokeArgs;
use super::imatrix_args::ImatrixArgs;
use super::lora_args::ResidualArgs;
use super::loss_args::{LOSS_HEADING, LossArgs};
use super::merging;
use super::output_args::OutputArgs;
use super::recipe_args::{Prepared, RecipeArgs, prepare, presets};
use super::recipe_files::RecipeFiles;
use super::template_process::TemplateArgs;
use super::types::TypeArgs;
use super::{Exit, Global};
use crate::plan::RecipeFile;

#[derive(Args, Debug)]
#[command(after_help = presets())]
pub(super) struct MergeArgs {
    #[command(flatten)]
    files: RecipeFiles,
    /// How much of the vector of --base and --chat, or of a recipe's one vector, to add [default:
    /// 1]
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    ratio: Option<f64>,
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
    /// The recipe file, with what was given in place of its own.
    fn file(&self, global: &Global) -> Result<RecipeFile> {
        let mut file = self.files.file(&self.how, global)?;
        if let Some(ratio) = self.ratio {
            match &mut file.vectors[..] {
                [first, ..] if self.files.base.is_some() => first.ratio = ratio.into(),
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
        prepare(file, &args.how, &args.loss, &args.types, &args.imatrix, args.output.is_forced(), global)?;
    let MergeArgs { output, smoke, residual, template, .. } = args;
    merging::run(inputs, &recipe, &merging::Options { output, smoke, residual, template }, global)
}
