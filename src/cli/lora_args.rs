//! `--lora` and `--residual-lora`: adapters beside an output.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use super::job::{REJECTED, WriteArgs};
use super::output::complain;
use super::progress::Progress;
use super::{Global, Usage};
use crate::ggml::GgmlType;
use crate::gguf::{Model, WriteOptions};
use crate::patch::lora::{Adapter, FACTOR_TYPES, Fit, Left, Settings, Written};
use crate::pipeline::{Budget, Measured};
use crate::plan::MergePlan;
use crate::vector::{Inputs, part_of};

/// An adapter of the vector.
#[derive(Args, Clone, Debug)]
pub(super) struct LoraArgs {
    /// Write the low-rank part of the vector as a LoRA adapter, which llama.cpp adds to the model
    /// as it runs (--lora FILE)
    #[arg(long, value_name = "FILE")]
    lora: Option<PathBuf>,
    /// With --lora: the rank; the file grows with it
    #[arg(long, value_name = "R", default_value_t = VECTOR_RANK, value_parser = rank(), requires = "lora")]
    rank: u32,
    /// With --lora: the type of its numbers: f16, q8_0, bf16 or f32
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = factor_type, requires = "lora")]
    lora_type: GgmlType,
}

/// An adapter of what rounding takes.
#[derive(Args, Clone, Debug)]
pub(super) struct ResidualArgs {
    /// Write what the output lacks of the exact sum, as far as it is of low rank, as a LoRA adapter
    /// for the output alone; where that is rejected, as FILE.rejected
    #[arg(long, value_name = "FILE")]
    residual_lora: Option<PathBuf>,
    /// With --residual-lora: the rank; the file grows with it
    #[arg(long, value_name = "R", default_value_t = RESIDUAL_RANK, value_parser = rank(), requires = "residual_lora")]
    residual_rank: u32,
}

/// See docs/PATCH.md, "LoRA", for what was measured.
const VECTOR_RANK: u32 = 128;
const RESIDUAL_RANK: u32 = 32;

fn rank() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=4096)
}

fn factor_type(text: &str) -> Result<GgmlType, String> {
    let ty = text.parse::<GgmlType>().ok().filter(|ty| FACTOR_TYPES.contains(ty));
    ty.ok_or_else(|| format!("known are {}", FACTOR_TYPES.map(GgmlType::name).join(", ").to_lowercase()))
}

/// An adapter that is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beside<'a> {
    pub(super) path: &'a Path,
    settings: Settings,
    /// Whether it holds what the output lacks, or the vector.
    pub(super) is_residual: bool,
}

impl LoraArgs {
    pub(super) fn beside(&self) -> Option<Beside<'_>> {
        let settings = Settings { rank: self.rank, ty: self.lora_type };
        Some(Beside { path: self.lora.as_deref()?, settings, is_residual: false })
    }
}

impl ResidualArgs {
    pub(super) fn beside(&self) -> Option<Beside<'_>> {
        // Half of F16's size, and no difference that could be measured.
        let settings = Settings { rank: self.residual_rank, ty: GgmlType::Q8_0 };
        Some(Beside { path: self.residual_lora.as_deref()?, settings, is_residual: true })
    }
}

impl Beside<'_> {
    /// What stands on the command line.
    fn flag(&self) -> &'static str {
        if self.is_residual { "--residual-lora" } else { "--lora" }
    }

    /// Where it goes. What is written for an output that is rejected is of no use without it, and
    /// takes no name either.
    fn target(&self, is_rejected: bool) -> Cow<'_, Path> {
        if !is_rejected || !self.is_residual {
            return Cow::Borrowed(self.path);
        }
        let mut path = self.path.to_owned();
        path.as_mut_os_string().push(REJECTED);
        Cow::Owned(path)
    }

    /// Finds out what would keep the adapter from being written, before anything is.
    pub(super) fn check(
        &self,
        plan: &MergePlan,
        inputs: &Inputs,
        (output, may_be_rejected): (Option<&Path>, bool),
        write: &WriteArgs,
        budget: &Budget,
    ) -> Result<()> {
        let flag = self.flag();
        let absolute = |path: &Path| std::path::absolute(path).ok();
        if output.and_then(absolute).is_some_and(|output| absolute(self.path) == Some(output)) {
            return Err(Usage(format!("{flag} and -o name the same file")).into());
        }
        let adapter = match self.is_residual {
            true => Adapter::of_residual(plan, inputs, self.settings),
            false => Adapter::largest(plan, inputs, self.settings),
        }
        .context(flag)?;
        adapter.check_budget(budget).context(flag)?;
        let options = WriteOptions { inputs: inputs.paths().map(Path::to_owned).collect(), ..write.options() };
        options.check_name(self.path, adapter.header().file_len()).context(flag)?;
        if may_be_rejected && self.is_residual {
            // As with the output: an earlier one is replaced, an input never.
            let options = WriteOptions { overwrite: true, ..options };
            options.check_name(&self.target(true), adapter.header().file_len()).context(flag)?;
        }
        Ok(())
    }

    /// Writes it. `output` is the first file of the output, if there is one, and whether that is
    /// rejected.
    pub(super) fn write(
        &self,
        (plan, inputs): (&MergePlan, &Inputs),
        measured: &Measured,
        output: Option<(&Path, bool)>,
        write: &WriteArgs,
        global: &Global,
    ) -> Result<Written> {
        let (budget, mut options) = (global.budget(), write.options());
        let is_rejected = output.is_some_and(|(_, is_rejected)| is_rejected) && self.is_residual;
        let path = self.target(is_rejected);
        options.overwrite |= is_rejected;
        // The output took its name just now.
        let output = output.map(|(path, _)| path);
        options.inputs.extend(output.map(Path::to_owned));
        let adapter = match self.is_residual {
            true => Adapter::of_residual(plan, inputs, self.settings),
            false => Adapter::of_vector(plan, inputs, measured, self.settings, &budget),
        }
        .context(self.flag())?;
        let progress = Progress::new(adapter.n_read_bytes());
        let written = match output.filter(|_| self.is_residual) {
            Some(output) => {
                let model = Model::open(output, &global.limits())?;
                adapter.write_residual(plan, inputs, &model, &path, &options, &progress, &budget)
            }
            None => adapter.write_vector(plan, inputs, &path, &options, &progress, &budget),
        }
        .context(self.flag())?;
        drop(progress);
        if is_rejected {
            let text =
                format!("the adapter is of no use without the rejected output; it is kept as {}", path.display());
            complain("warning", &text);
        }
        tell(&written, self.is_residual);
        Ok(written)
    }
}

/// Says what an adapter does not hold.
fn tell(written: &Written, is_residual: bool) {
    let mut parts: Vec<(&str, Vec<&Left>)> = Vec::new();
    for left in &written.left {
        let part = part_of(&left.name);
        match parts.iter_mut().find(|(name, _)| *name == part) {
            Some((_, all)) => all.push(left),
            None => parts.push((part, vec![left])),
        }
    }
    for (part, all) in parts {
        let share: f64 = all.iter().map(|left| left.share).sum();
        let change = all.iter().filter_map(|left| left.change).fold(0.0, f64::max);
        let text = format!(
            "an adapter cannot hold the change of {part} ({} tensors, by up to {:.2} %): {:.2} % of the vector is left out",
            all.len(),
            change * 100.0,
            share.sqrt() * 100.0,
        );
        complain("warning", &text);
    }
    let error = Fit::total(&written.fits).error();
    if let Some(error) = error.filter(|error| !is_residual && *error > LARGEST_ERROR) {
        let text = format!(
            "rank {} leaves {:.0} % of the vector out: give a higher --rank, or a patch (-o) where that is too large",
            written.rank,
            error * 100.0
        );
        complain("warning", &text);
    }
}

/// Above this relative error most answers are others than the merge's (docs/PATCH.md, "LoRA").
const LARGEST_ERROR: f64 = 0.15;
