//! `chatvec extract --base B --chat C -o PATCH`

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use super::imatrix_args::ImatrixArgs;
use super::job::{Job, OutputArgs};
use super::lora_args::LoraArgs;
use super::{Exit, Global};
use crate::ggml::GgmlType;
use crate::gguf::{Limits, Model};
use crate::patch;
use crate::plan;
use crate::quants;
use crate::survey::Inputs;

#[derive(Args, Debug)]
#[command(mut_arg("output", |arg| arg.required(false).required_unless_present("lora")))]
pub(super) struct ExtractArgs {
    /// The base model
    #[arg(long, value_name = "FILE")]
    base: PathBuf,
    /// The chat model that was made from it
    #[arg(long, value_name = "FILE")]
    chat: PathBuf,
    /// The type of the patch's matrices, such as f32, f16, q8_0 or q4_k
    #[arg(short, long, value_name = "TYPE", default_value = "q8_0")]
    encoding: String,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    lora: LoraArgs,
    #[command(flatten)]
    imatrix: ImatrixArgs,
}

pub(super) fn run(args: &ExtractArgs, global: &Global) -> Result<Exit> {
    let encoding: GgmlType = args.encoding.parse().map_err(plan::Error::from).with_context(|| {
        let known: Vec<&str> = quants::supported().map(GgmlType::name).collect();
        format!("--encoding (one of {})", known.join(", "))
    })?;
    let open = |path: &PathBuf, role| Model::open(path, &Limits::default()).context(role);
    let inputs = Inputs::extract(open(&args.base, "--base")?, open(&args.chat, "--chat")?);
    let inputs = args.imatrix.add_to(inputs, global)?;
    // An adapter by itself is of the exact vector.
    let encoding = if args.output.output.is_some() { encoding } else { GgmlType::F32 };
    let plan = |inputs: &Inputs, pairs| Ok(patch::plan_extract(inputs, pairs, encoding)?);
    Job { inputs, output: &args.output, global, recipe: None, plan: &plan, smoke: None, beside: args.lora.beside() }
        .run()
}
