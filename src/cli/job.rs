//! What merge, extract and apply have in common: check, plan, survey, then write or tell.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;

use super::progress::Progress;
use super::{Exit, Global, output};
use crate::ggml::GgmlType;
use crate::gguf::WriteOptions;
use crate::pipeline;
use crate::plan::{self, MergePlan, OutputType, Warning};
use crate::report;
use crate::survey::{self, Inputs, Pair, SampleSettings, Survey};

/// Below this share of the vector an output is not called a success.
const LEAST_SURVIVAL: f64 = 0.9;

/// Types that a dry run forecasts besides the plan's own.
const FORECAST: [GgmlType; 7] = {
    use GgmlType::*;
    [F16, Q8_0, Q6_K, Q5_K, Q4_K, Q3_K, Q2_K]
};

/// Where an output goes, and how far the user lets a run go.
#[derive(Args, Clone, Debug)]
pub(super) struct OutputArgs {
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: PathBuf,
    /// Replace the output if it exists
    #[arg(long)]
    overwrite: bool,
    /// Print the plan and what to expect of it; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Go on although the inputs look wrong
    #[arg(long)]
    force: bool,
}

/// The types of a model that is written.
#[derive(Args, Clone, Debug)]
pub(super) struct TypeArgs {
    /// keep (the model's own type for every tensor), F32, F16, BF16, or a name of llama-quantize
    #[arg(short = 't', long = "type", value_name = "TYPE", default_value = "keep")]
    name: String,
    /// One type for every tensor, as llama-quantize --pure
    #[arg(long)]
    pure: bool,
}

impl TypeArgs {
    pub(super) fn parse(&self) -> Result<OutputType> {
        OutputType::parse(&self.name, self.pure).context("--type")
    }
}

/// What the survey found, and the user did not go past.
#[derive(Debug)]
pub(super) struct Refused {
    reasons: Vec<String>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; nothing is written (--force goes on all the same)", self.reasons.join("; "))
    }
}

impl std::error::Error for Refused {}

/// A run that writes one file.
pub(super) struct Job<'a> {
    pub(super) inputs: Inputs,
    pub(super) output: &'a OutputArgs,
    pub(super) global: &'a Global,
    /// Whether the output is a patch.
    pub(super) is_patch: bool,
    /// Makes the plan once the inputs are known to be siblings.
    pub(super) plan: &'a dyn Fn(&Inputs, Vec<Pair>) -> Result<MergePlan>,
}

impl Job<'_> {
    /// Runs it and prints what came of it.
    pub(super) fn run(self) -> Result<Exit> {
        let Job { inputs, output, global, is_patch, .. } = &self;
        let budget = global.budget();
        let started = Instant::now();
        let (mut plan, survey) = self.look(budget.threads)?;
        let reasons: Vec<String> = survey.findings.iter().filter(|f| f.is_refusal()).map(ToString::to_string).collect();
        if output.force {
            plan.warnings.extend(reasons.iter().cloned().map(|finding| Warning::Forced { finding }));
        }
        plan.warnings.iter().for_each(|w| output::complain("warning", &w.to_string()));
        for finding in survey.findings.iter().filter(|f| !f.is_refusal()) {
            output::complain("warning", &finding.to_string());
        }
        let refused = || Refused { reasons: reasons.clone() };

        if output.dry_run {
            let (memory, threads) = budget.needed(&plan, inputs)?;
            let folder = output.output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let disk_free = fs4::available_space(folder).ok();
            let types = &FORECAST;
            output::print(
                &report::Plan { inputs, plan: &plan, survey: &survey, types, memory, threads, disk_free },
                global,
            )?;
            return if reasons.is_empty() || output.force { Ok(Exit::Success) } else { Err(refused().into()) };
        }
        if !reasons.is_empty() && !output.force {
            return Err(refused().into());
        }

        output::complain("note", &report::Plan::expectation(&plan, &survey));
        let progress = Progress::new(plan.tensors.iter().map(|t| t.size()).sum());
        let written = pipeline::write(&plan, inputs, &output.output, output.overwrite, &progress, &budget)?;
        drop(progress);
        let (findings, took) = (&survey.findings[..], started.elapsed());
        output::print(&report::Run { plan: &plan, written: &written, findings, is_patch: *is_patch, took }, global)?;
        Ok(judge(written.measured.total.survival(), *is_patch))
    }

    /// Everything that can be known without writing.
    fn look(&self, threads: usize) -> Result<(MergePlan, Survey)> {
        let inputs = &self.inputs;
        inputs.require_little_endian()?;
        let mut warnings = plan::check(inputs)?;
        let pairs = survey::pair(inputs)?;
        let mut plan = (self.plan)(inputs, pairs.clone())?;
        warnings.append(&mut plan.warnings);
        plan.warnings = warnings;

        if !self.output.dry_run {
            let inputs = inputs.paths().map(Path::to_owned).collect();
            let options = WriteOptions { overwrite: self.output.overwrite, inputs };
            options.check(&self.output.output, plan.header().file_len())?;
        }

        let mut types: Vec<GgmlType> = plan.tensors.iter().map(|t| t.ty).collect();
        if self.output.dry_run {
            types.extend(FORECAST);
        }
        types.sort();
        types.dedup();
        let settings = SampleSettings { types, ..SampleSettings::default() };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let survey = pool.install(|| survey::survey(inputs, &pairs, &settings))?;
        Ok((plan, survey))
    }
}

/// The exit for a share of the vector, with a plain sentence if it is too small.
pub(super) fn judge(survival: Option<f64>, is_patch: bool) -> Exit {
    let Some(survival) = survival.filter(|s| *s < LEAST_SURVIVAL) else { return Exit::Success };
    let (what, advice) = match is_patch {
        true => ("the patch holds", "choose a finer --encoding"),
        false => {
            ("the output holds", "write a finer --type than the model's own, or start from the model as F16 or Q8_0")
        }
    };
    let text = format!("{what} only {:.0} % of the vector, rounding took the rest: {advice}", survival * 100.0);
    output::complain("warning", &text);
    Exit::Lost
}
