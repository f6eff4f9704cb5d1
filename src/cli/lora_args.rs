//! `--lora` and `--residual-lora`: adapters beside an output.

use std::path::PathBuf;

use anyhow::{Error, Result};
use clap::Args;

use super::output::complain;
use super::progress::Progress;
use crate::ggml::GgmlType;
use crate::job::{self, AdapterFile, ReadyAdapter};
use crate::patch::lora::{FACTOR_TYPES, Fit, Left, Settings, Written};
use crate::vector::part_of;

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

impl LoraArgs {
    /// The option that asks for it.
    pub(super) const OPTION: &'static str = "--lora";

    /// The adapter, if one is asked for.
    pub(super) fn file(&self) -> Option<AdapterFile> {
        let settings = Settings { rank: self.rank, ty: self.lora_type };
        Some(AdapterFile { path: self.lora.clone()?, settings })
    }
}

impl ResidualArgs {
    /// The option that asks for it.
    pub(super) const OPTION: &'static str = "--residual-lora";

    /// The adapter, if one is asked for.
    pub(super) fn file(&self) -> Option<AdapterFile> {
        // Half of F16's size, and no difference that could be measured.
        let settings = Settings { rank: self.residual_rank, ty: GgmlType::Q8_0 };
        Some(AdapterFile { path: self.residual_lora.clone()?, settings })
    }
}

/// An error of a run, with the options in whose name it speaks.
pub(super) fn named(error: job::Error, adapter: &'static str) -> Error {
    match error {
        job::Error::SmokeTest(source) => Error::new(*source).context("--smoke"),
        job::Error::Adapter(source) => Error::new(*source).context(adapter),
        other => other.into(),
    }
}

/// Writes an adapter and says what it does not hold.
pub(super) fn write(adapter: ReadyAdapter<'_>, option: &'static str) -> Result<Written> {
    let progress = Progress::new(adapter.n_read_bytes());
    let rejected = adapter.is_rejected().then(|| adapter.path().to_owned());
    let written = adapter.write(&progress).map_err(|e| named(e, option))?;
    drop(progress);
    if let Some(path) = rejected {
        let text = format!("the adapter is of no use without the rejected output; it is kept as {}", path.display());
        complain("warning", &text);
    }
    tell(&written, option == ResidualArgs::OPTION);
    Ok(written)
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
