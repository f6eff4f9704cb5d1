//! `chatvec apply --model M PATCH@RATIO… -o OUT`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use super::imatrix_args::ImatrixArgs;
use super::job::{Job, OutputArgs, SmokeTest};
use super::merge::{LOSS_HEADING, LossArgs, RecipeArgs};
use super::types::TypeArgs;
use super::{Exit, Global};
use crate::gguf::{Limits, Model};
use crate::patch;
use crate::plan;
use crate::survey::Inputs;

#[derive(Args, Debug)]
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

pub(super) fn run(args: &ApplyArgs, global: &Global) -> Result<Exit> {
    let recipe = args.recipe.recipe(&args.types, &args.loss)?;
    let model = Model::open(&args.model, &Limits::default()).context("--model")?;
    let open = |arg: &PathBuf| -> Result<(Model, f64)> {
        let (path, ratio) = split_ratio(arg)?;
        Ok((patch::open(path, &Limits::default())?, ratio))
    };
    let (first, more) = args.patches.split_first().context("PATCH")?;
    let more: Vec<(Model, f64)> = more.iter().map(open).collect::<Result<_>>()?;
    let inputs = Inputs::apply(model, open(first)?, more);
    let inputs = args.imatrix.add_to(inputs, global)?;
    let plan = |inputs: &Inputs, pairs| RecipeArgs::plan(inputs, pairs, &recipe);
    Job { inputs, output: &args.output, global, recipe: Some(&recipe), plan: &plan, smoke: Some(&args.smoke) }.run()
}

/// A path and the ratio behind its last `@`. A file that has such a name as a whole is that file.
fn split_ratio(arg: &Path) -> Result<(&Path, f64), plan::Error> {
    let split = arg.to_str().and_then(|arg| arg.rsplit_once('@'));
    match split {
        Some((path, ratio)) if !arg.exists() => match ratio.parse() {
            Ok(ratio) => Ok((Path::new(path), ratio)),
            Err(_) if Path::new(path).exists() => Err(plan::Error::RatioText { text: ratio.to_owned() }),
            Err(_) => Ok((arg, 1.0)),
        },
        _ => Ok((arg, 1.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_stands_behind_the_last_at() {
        let split = |arg| split_ratio(Path::new(arg)).unwrap();
        assert_eq!(split("no/such@dir/p.gguf@0.5"), (Path::new("no/such@dir/p.gguf"), 0.5));
        assert_eq!(split("no/such/p.gguf@-1"), (Path::new("no/such/p.gguf"), -1.0));
        assert_eq!(split("no/such@dir/p.gguf"), (Path::new("no/such@dir/p.gguf"), 1.0));
        assert!(matches!(split_ratio(Path::new("Cargo.toml@half")), Err(plan::Error::RatioText { .. })));
    }
}
