//! `chatvec extract --base B --chat C -o PATCH`

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::job::{Job, OutputArgs};
use super::{Exit, Global};
use crate::ggml::GgmlType;
use crate::gguf::{Limits, Model};
use crate::patch::{self, Extraction};
use crate::plan;
use crate::quants;
use crate::survey::Inputs;

#[derive(Args, Debug)]
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
}

pub(super) fn run(args: &ExtractArgs, global: &Global) -> Result<Exit> {
    let encoding: GgmlType = args.encoding.parse().map_err(plan::Error::from).with_context(|| {
        let known: Vec<&str> = quants::supported().map(GgmlType::name).collect();
        format!("--encoding (one of {})", known.join(", "))
    })?;
    if args.output.is_split() {
        bail!("--split-max-size: a patch is one file, so that it can be held against its hashes");
    }
    let open = |path: &PathBuf, role| Model::open(path, &Limits::default()).context(role);
    let inputs = Inputs::extract(open(&args.base, "--base")?, open(&args.chat, "--chat")?);
    let extraction = Extraction { encoding, looks: !args.output.is_dry_run() };
    let plan = |inputs: &Inputs, pairs| Ok(patch::plan_extract(inputs, pairs, &extraction)?);
    Job { inputs, output: &args.output, global, recipe: None, plan: &plan, smoke: None }.run()
}
