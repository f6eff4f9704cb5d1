//! `chatvec apply --model M PATCH@RATIO… -o OUT`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::asking_args::SmokeArgs;
use super::imatrix_args::ImatrixArgs;
use super::lora_args::ResidualArgs;
use super::loss_args::{LOSS_HEADING, LossArgs};
use super::merging;
use super::output_args::OutputArgs;
use super::recipe_args::{Prepared, RecipeArgs, parse_vector, prepare, presets};
use super::template_process::TemplateArgs;
use super::types::TypeArgs;
use super::{Exit, Global};
use crate::plan::{RecipeFile, VectorFile};

#[derive(Args, Debug)]
#[command(after_help = presets())]
pub(super) struct ApplyArgs {
    /// The model that is to chat
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Patch files, each with @RATIO behind it unless the ratio is 1
    #[arg(required = true, value_name = "PATCH[@RATIO]")]
    patches: Vec<PathBuf>,
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

pub(super) fn run(args: &ApplyArgs, global: &Global) -> Result<Exit> {
    let vectors = args.patches.iter().map(|arg| parse_vector(arg)).collect::<Result<Vec<VectorFile>, _>>()?;
    let file = RecipeFile { model: args.model.clone(), vectors, ..RecipeFile::default() };
    let Prepared { inputs, recipe } =
        prepare(file, &args.how, &args.loss, &args.types, &args.imatrix, args.output.is_forced(), global)?;
    let ApplyArgs { output, smoke, residual, template, .. } = args;
    merging::run(inputs, &recipe, &merging::Options { output, smoke, residual, template }, global)
}
