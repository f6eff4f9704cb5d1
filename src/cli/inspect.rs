//! `chatvec inspect FILE`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::{Exit, Global, output};
use crate::gguf::{Limits, Model};
use crate::report;

#[derive(Args, Debug)]
pub(super) struct InspectArgs {
    /// A GGUF file, or any shard of a split set
    file: PathBuf,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
}

pub(super) fn run(args: &InspectArgs, global: &Global) -> Result<Exit> {
    let model = Model::open(&args.file, &Limits::default())?;
    output::print(&report::Inspect { model: &model, tensors: args.tensors }, global)?;
    Ok(Exit::Success)
}
