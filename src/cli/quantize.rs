//! `chatvec quantize IN -o OUT --type T`

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;

use super::imatrix_args::ImatrixArgs;
use super::output_args::WriteArgs;
use super::progress::Progress;
use super::types::{HEADING, MixtureArgs};
use super::{Exit, Global, output};
use crate::gguf::Model;
use crate::job::{Quantize, Settings};
use crate::plan::Recipe;
use crate::report;
use crate::vector::Inputs;

#[derive(Args, Debug)]
#[command(after_help = "IN OUT TYPE, as llama-quantize takes them, will do too.")]
pub(super) struct QuantizeArgs {
    /// The model, or any shard of a split one
    #[arg(value_name = "IN")]
    model: PathBuf,
    /// The output and its type, in llama-quantize's order
    #[arg(value_names = ["OUT", "TYPE"], num_args = 2, conflicts_with_all = ["output", "type_name"], hide = true)]
    in_order: Vec<OsString>,
    /// The file to write
    #[arg(short, long, value_name = "FILE", required_unless_present_any = ["in_order", "dry_run"])]
    output: Option<PathBuf>,
    /// A file type of llama-quantize, such as Q8_0 or Q4_K_M, by name or number; COPY for no change
    #[arg(short = 't', long = "type", id = "type_name", value_name = "TYPE", required_unless_present = "in_order")]
    name: Option<String>,
    #[command(flatten)]
    write: WriteArgs,
    /// Print the type and the size of each tensor; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Quantise tensors that are quantised already; their error adds up
    #[arg(long)]
    allow_requantize: bool,
    #[command(flatten, next_help_heading = HEADING)]
    mixture: MixtureArgs,
    #[command(flatten)]
    imatrix: ImatrixArgs,
}

impl QuantizeArgs {
    fn output_and_type(&self) -> (Option<&Path>, String) {
        match &self.in_order[..] {
            [output, name] => (Some(Path::new(output)), name.to_string_lossy().into_owned()),
            _ => (self.output.as_deref(), self.name.clone().unwrap_or_default()),
        }
    }
}

pub(super) fn run(args: &QuantizeArgs, global: &Global) -> Result<Exit> {
    let started = Instant::now();
    let (path, name) = args.output_and_type();
    let recipe = Recipe { output: args.mixture.output(&name)?, ..Recipe::default() };
    let inputs = Inputs::new(Model::open(&args.model, &global.limits())?);
    let inputs = args.imatrix.add_to(inputs, global)?;
    let settings = Settings { write: args.write.options(), ..Settings::new(global.budget()) };
    let quantize = Quantize { inputs: &inputs, recipe: &recipe, allows_requantize: args.allow_requantize };
    let prepared = quantize.prepare(&settings)?;
    prepared.plan().warnings.iter().for_each(|w| output::complain("warning", &w.to_string()));

    if args.dry_run {
        // Sizes are of use also to who has no importance matrix yet.
        if let Some(e) = prepared.refusal() {
            output::complain("warning", &format!("without --dry-run this is refused: {e}"));
        }
        output::print(&report::Quantize { inputs: &inputs, plan: prepared.plan(), written: None }, global)?;
        return Ok(Exit::Success);
    }
    let path = path.context("-o FILE is missing")?;
    let progress = Progress::new(prepared.plan().tensors().iter().map(|t| t.size()).sum());
    let (plan, written) = prepared.write(path, &progress)?;
    drop(progress);
    let written = Some((&written.file, started.elapsed()));
    output::print(&report::Quantize { inputs: &inputs, plan: &plan, written }, global)?;
    Ok(Exit::Success)
}
