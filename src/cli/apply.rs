//! `chatvec apply --model M PATCH@RATIO… -o OUT`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::imatrix_args::ImatrixArgs;
use super::job::{Job, OutputArgs, SmokeTest};
use super::lora_args::ResidualArgs;
use super::loss_args::{LOSS_HEADING, LossArgs};
use super::recipe_args::{Prepared, RecipeArgs, parse_vector, plan, prepare, presets};
use super::template_process::TemplateArgs;
use super::types::TypeArgs;
use super::{Exit, Global};
use crate::plan::{RecipeFile, VectorFile};
use crate::vector::Inputs;

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
    smoke: SmokeTest,
}

pub(super) fn run(args: &ApplyArgs, global: &Global) -> Result<Exit> {
    let vectors = args.patches.iter().map(|arg| parse_vector(arg)).collect::<Result<Vec<VectorFile>, _>>()?;
    let file = RecipeFile { model: args.model.clone(), vectors, ..RecipeFile::default() };
    let Prepared { inputs, recipe } =
        prepare(file, &args.how, &args.loss, &args.types, &args.imatrix, &args.output, global)?;
    let inputs = inputs.with_templates(args.template.templates());
    let plan = |inputs: &Inputs, pairs| plan(inputs, pairs, &recipe);
    let (output, recipe, smoke) = (&args.output, Some(&recipe), Some(&args.smoke));
    Job { inputs, output, global, recipe, plan: &plan, smoke, target: None, beside: args.residual.beside() }.run()
}
