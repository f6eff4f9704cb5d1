//! `chatvec extract --base B --chat C -o PATCH`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use super::imatrix_args::ImatrixArgs;
use super::lora_args::{self, LoraArgs};
use super::merging::{disk_free, tell, tell_expectation};
use super::output_args::OutputArgs;
use super::progress::Progress;
use super::template_process::{self, TemplateArgs};
use super::{Exit, Global, Usage, output};
use crate::ggml::GgmlType;
use crate::gguf::Model;
use crate::job::{Adapter, AdapterFile, Extract, Extracted, Form, Holds, PreparedExtract, Settings};
use crate::patch;
use crate::patch::extract::Target;
use crate::pipeline;
use crate::plan::Verdict;
use crate::quants;
use crate::report;
use crate::vector::Inputs;

#[derive(Args, Debug)]
#[command(mut_arg("output", |arg| arg.required(false).required_unless_present("lora")))]
pub(super) struct ExtractArgs {
    /// The base model
    #[arg(long, value_name = "FILE")]
    base: PathBuf,
    /// The chat model that was made from it
    #[arg(long, value_name = "FILE")]
    chat: PathBuf,
    /// The type of the patch's matrices, such as f32, f16, q8_0 or q4_k, svd:BITS for a
    /// decomposition that takes as many bits for each weight, such as svd:0.6 (also mixed:BITS:
    /// long directions have many bits, short ones few), or lora:RANK for factors in F16
    #[arg(short, long, value_name = "ENCODING", default_value = "q8_0", conflicts_with = "size", value_parser = Encoding::parse)]
    encoding: Encoding,
    /// A decomposition of this size instead: bytes of the patch, such as 300MB, a share of the chat
    /// model as F16, such as 1/16, or bits for each weight of its matrices, such as 0.6bpw
    #[arg(long, value_name = "SIZE", value_parser = Size::parse, requires = "output")]
    size: Option<Size>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    lora: LoraArgs,
    #[command(flatten)]
    imatrix: ImatrixArgs,
    #[command(flatten)]
    template: TemplateArgs,
}

/// A size as it is asked for.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Size {
    Bytes(u64),
    Share(f64),
    Bits(f64),
}

impl Size {
    fn parse(text: &str) -> Result<Self, String> {
        let size = match (text.strip_suffix("bpw"), text.split_once('/')) {
            (Some(bits), _) => positive(bits).map(Size::Bits),
            (None, Some((over, under))) => positive(over).zip(positive(under)).map(|(a, b)| Size::Share(a / b)),
            (None, None) => text.parse::<bytesize::ByteSize>().ok().map(|size| Size::Bytes(size.as_u64())),
        };
        size.ok_or_else(|| "write bytes (300MB), a share of the chat model (1/16) or bits (0.6bpw)".to_owned())
    }

    fn target(self, chat: &Model) -> Target {
        match self {
            Size::Bits(bits) => Target::Bits(bits),
            Size::Bytes(bytes) => Target::Bytes(bytes),
            Size::Share(share) => Target::Bytes((patch::f16_bytes(chat) as f64 * share) as u64),
        }
    }
}

/// How matrices are stored.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Encoding {
    Type(GgmlType),
    /// A decomposition of so many bits for each weight.
    Bits(f64),
    /// Factors of this rank.
    Rank(usize),
}

impl Encoding {
    fn parse(text: &str) -> Result<Self, String> {
        if let Some(bits) = text.strip_prefix("svd:").or_else(|| text.strip_prefix("mixed:")) {
            return positive(bits).map(Encoding::Bits).ok_or_else(|| "write svd: and bits for each weight".to_owned());
        }
        if let Some(rank) = text.strip_prefix("lora:") {
            let rank = rank.parse::<u32>().ok().filter(|rank| *rank > 0).map(|rank| Encoding::Rank(rank as usize));
            return rank.ok_or_else(|| "write lora: and a rank from 1 up".to_owned());
        }
        text.parse().map(Encoding::Type).map_err(|_| {
            let known: Vec<&str> = quants::supported().map(GgmlType::name).collect();
            format!("known are svd:BITS, lora:RANK, {}", known.join(", "))
        })
    }
}

fn positive(text: &str) -> Option<f64> {
    text.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0)
}

pub(super) fn run(args: &ExtractArgs, global: &Global) -> Result<Exit> {
    if args.output.is_split() {
        let text = "--split-max-size: a patch is one file, so that it can be held against its hashes";
        return Err(Usage(text.to_owned()).into());
    }
    let open = |path: &PathBuf, role| Model::open(path, &global.limits()).context(role);
    let inputs = Inputs::extract(open(&args.base, "--base")?, open(&args.chat, "--chat")?);
    let inputs = args.imatrix.add_to(inputs, global)?.with_templates(args.template.templates());
    let (settings, adapter) = (args.output.settings(global), args.lora.file());
    let Some(path) = &args.output.output else {
        let file = adapter.as_ref().context("-o FILE is missing")?;
        return run_adapter(Adapter { inputs: &inputs, file }, &settings, global);
    };
    let form = match (args.size, args.encoding) {
        (Some(size), _) => Form::Decomposed(size.target(inputs.source(inputs.skeleton()))),
        (None, Encoding::Bits(bits)) => Form::Decomposed(Target::Bits(bits)),
        (None, Encoding::Rank(rank)) => Form::Decomposed(Target::Rank(rank)),
        (None, Encoding::Type(ty)) => Form::Type(ty),
    };
    run_extract(&Extract { inputs: &inputs, form, adapter: adapter.as_ref() }, path, &settings, global)
}

fn run_extract(extract: &Extract<'_>, path: &Path, settings: &Settings, global: &Global) -> Result<Exit> {
    let named = |e| lora_args::named(e, LoraArgs::OPTION);
    let prepared = extract.prepare(path, settings).map_err(named)?;
    template_process::rest();
    tell(&prepared.cautions);
    if settings.is_dry_run {
        rehearse(extract.inputs, &prepared, path, settings, global)?;
    }
    if let Some(refusal) = prepared.refusal() {
        return Err(refusal.into());
    }
    if settings.is_dry_run {
        return Ok(Exit::Success);
    }
    let progress = match &prepared.forecast {
        // Nothing with a name is on the disk before matrices are decomposed.
        Some(forecast) => Progress::before(forecast.observed),
        None => {
            tell_expectation(&prepared.plan, &prepared.survey, true);
            Progress::new(prepared.plan.tensors().iter().map(|t| t.size()).sum())
        }
    };
    let extracted = prepared.write(&progress).map_err(named)?;
    drop(progress);
    let exit = say(&extracted);
    let adapter = extracted.adapter().map_err(named)?;
    let lora = adapter.map(|adapter| lora_args::write(adapter, LoraArgs::OPTION)).transpose()?;
    output::print(
        &report::Run {
            plan: &extracted.plan,
            written: &extracted.written,
            findings: &extracted.survey.findings,
            verdict: Verdict::default(),
            mended: &[],
            is_patch: true,
            stored: &extracted.stored()?,
            took: extracted.took,
            smoke: None,
            lora: lora.as_ref().map(|written| report::Lora { written, is_residual: false }),
        },
        global,
    )?;
    Ok(exit)
}

/// Prints what an extraction would do.
fn rehearse(
    inputs: &Inputs,
    prepared: &PreparedExtract<'_>,
    path: &Path,
    settings: &Settings,
    global: &Global,
) -> Result<()> {
    let PreparedExtract { plan, survey, types, forecast, .. } = prepared;
    let decomposed = forecast.as_ref();
    let (memory, threads) = match decomposed {
        Some(forecast) => (forecast.memory, forecast.threads),
        None => settings.budget.needed(plan, inputs)?,
    };
    // Decomposing takes many times as long as what can be rehearsed.
    let time = match decomposed {
        Some(_) => None,
        None => Some(pipeline::rehearse(plan, inputs, &(), &settings.budget)?),
    };
    let (disk_free, is_patch) = (disk_free(path), true);
    output::print(
        &report::Plan { inputs, plan, survey, types, is_patch, decomposed, memory, threads, disk_free, time },
        global,
    )
}

/// Runs an adapter of the exact vector, without a patch.
fn run_adapter(adapter: Adapter<'_>, settings: &Settings, global: &Global) -> Result<Exit> {
    let named = |e| lora_args::named(e, LoraArgs::OPTION);
    let (inputs, AdapterFile { path, .. }) = (adapter.inputs, adapter.file);
    let prepared = adapter.prepare(settings).map_err(named)?;
    template_process::rest();
    tell(&prepared.cautions);
    let (plan, survey, types) = (&prepared.plan, &prepared.survey, &prepared.types);
    if settings.is_dry_run {
        let (memory, threads) = settings.budget.needed(plan, inputs)?;
        let time = Some(pipeline::rehearse(plan, inputs, &(), &settings.budget)?);
        let (disk_free, is_patch, decomposed) = (disk_free(path), true, None);
        output::print(
            &report::Plan { inputs, plan, survey, types, is_patch, decomposed, memory, threads, disk_free, time },
            global,
        )?;
    }
    if let Some(refusal) = prepared.refusal() {
        return Err(refusal.into());
    }
    if settings.is_dry_run {
        return Ok(Exit::Success);
    }
    tell_expectation(plan, survey, true);
    let progress = Progress::new(plan.tensors().iter().map(|t| t.size()).sum());
    let adapter = prepared.measure(&progress).map_err(named)?;
    drop(progress);
    let written = lora_args::write(adapter, LoraArgs::OPTION)?;
    output::print(&report::Lora { written: &written, is_residual: false }, global)?;
    Ok(Exit::Success)
}

/// The exit for what a patch holds, with a plain sentence if it is no success.
fn say(extracted: &Extracted<'_>) -> Exit {
    let holds = extracted.holds();
    let text = match &holds {
        Holds::Enough => None,
        Holds::Nothing => Some("the vector is zero: nothing was added to any weight".to_owned()),
        Holds::TooLittle(survival) => Some(format!(
            "the patch holds only {:.0} % of the vector, rounding took the rest: choose a finer --encoding",
            survival * 100.0
        )),
        Holds::Part { poor, .. } => poor.first().map(|first| {
            format!(
                "of {} tensors the patch holds less than half of the vector, or as much error, among them {first}: \
                 their directions are all alike, or the size is too small; ask for more, or give --encoding",
                poor.len()
            )
        }),
    };
    text.into_iter().for_each(|text| output::complain("warning", &text));
    if holds.is_lost() { Exit::Lost } else { Exit::Success }
}

#[cfg(test)]
mod tests {
    use super::Size;

    #[test]
    fn sizes_are_bytes_shares_or_bits() {
        assert_eq!(Size::parse("300MB"), Ok(Size::Bytes(300_000_000)));
        assert_eq!(Size::parse("1/16"), Ok(Size::Share(0.0625)));
        assert_eq!(Size::parse("0.6bpw"), Ok(Size::Bits(0.6)));
        assert_eq!(Size::parse("2 bpw"), Ok(Size::Bits(2.0)));
        for wrong in ["", "0bpw", "-1bpw", "1/0", "0/3", "x/2", "bpw", "nanbpw", "12 parsecs"] {
            assert!(Size::parse(wrong).is_err(), "{wrong}");
        }
    }
}
