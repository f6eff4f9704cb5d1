//! `chatvec extract --base B --chat C -o PATCH`

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;

use super::imatrix_args::ImatrixArgs;
use super::job::{Job, OutputArgs};
use super::lora_args::LoraArgs;
use super::{Exit, Global};
use crate::ggml::GgmlType;
use crate::gguf::{Limits, Model};
use crate::patch::extract::Target;
use crate::patch::{self, Extraction};
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
    /// The type of the patch's matrices, such as f32, f16, q8_0 or q4_k, svd:BITS for a decomposition that takes as many bits
    /// for each weight, such as svd:0.6, or lora:RANK for factors in F16
    #[arg(short, long, value_name = "ENCODING", default_value = "q8_0", conflicts_with = "size")]
    encoding: String,
    /// A decomposition of this size instead: bytes of the patch, such as 300MB, a share of the chat model as F16, such as 1/16,
    /// or bits for each weight of its matrices, such as 0.6bpw
    #[arg(long, value_name = "SIZE", value_parser = Size::parse)]
    size: Option<Size>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    lora: LoraArgs,
    #[command(flatten)]
    imatrix: ImatrixArgs,
}

/// A size as it is asked for.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Size {
    Bytes(u64),
    Share(f64),
    Bits(f64),
    /// Of factors.
    Rank(usize),
}

impl Size {
    fn parse(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0);
        let size = match (text.strip_suffix("bpw"), text.split_once('/')) {
            (Some(bits), _) => number(bits).map(Size::Bits),
            (None, Some((over, under))) => number(over).zip(number(under)).map(|(a, b)| Size::Share(a / b)),
            (None, None) => text.parse::<bytesize::ByteSize>().ok().map(|size| Size::Bytes(size.as_u64())),
        };
        size.ok_or_else(|| "write bytes (300MB), a share of the chat model (1/16) or bits (0.6bpw)".to_owned())
    }

    fn target(self, chat: &Model) -> Target {
        match self {
            Size::Bits(bits) => Target::Bits(bits),
            Size::Bytes(bytes) => Target::Bytes(bytes),
            Size::Rank(rank) => Target::Rank(rank),
            Size::Share(share) => Target::Bytes((patch::f16_bytes(chat) as f64 * share) as u64),
        }
    }
}

/// Before the rank of plain factors.
const LOW_RANK: &str = "lora:";

fn parse_rank(text: &str) -> Result<usize> {
    let rank = text.parse::<u32>().ok().filter(|rank| *rank > 0);
    rank.map(|rank| rank as usize).ok_or_else(|| anyhow!("--encoding: a rank is a number from 1 up, not {text:?}"))
}

/// Before the bits of a decomposition.
const DECOMPOSED: &str = "svd:";

pub(super) fn run(args: &ExtractArgs, global: &Global) -> Result<Exit> {
    if args.output.is_split() {
        bail!("--split-max-size: a patch is one file, so that it can be held against its hashes");
    }
    let open = |path: &PathBuf, role| Model::open(path, &Limits::default()).context(role);
    let inputs = Inputs::extract(open(&args.base, "--base")?, open(&args.chat, "--chat")?);
    let inputs = args.imatrix.add_to(inputs, global)?;
    let size = match (args.encoding.strip_prefix(DECOMPOSED), args.encoding.strip_prefix(LOW_RANK)) {
        (Some(bits), _) => Some(Size::parse(&format!("{bits}bpw")).map_err(|e| anyhow!("--encoding: {e}"))?),
        (_, Some(rank)) => Some(Size::Rank(parse_rank(rank)?)),
        _ => args.size,
    };
    // An adapter by itself is of the exact vector.
    let is_alone = args.output.output.is_none();
    let target = size.filter(|_| !is_alone).map(|size| size.target(inputs.source(inputs.template())));
    let encoding: GgmlType = match target {
        Some(target) => target.dense_type(&inputs)?,
        None if is_alone => GgmlType::F32,
        None => args.encoding.parse().map_err(plan::Error::from).with_context(|| {
            let known: Vec<&str> = quants::supported().map(GgmlType::name).collect();
            format!("--encoding ({DECOMPOSED}BITS, {LOW_RANK}RANK or one of {})", known.join(", "))
        })?,
    };
    let extraction = Extraction { encoding, looks: !args.output.is_dry_run() && !is_alone };
    let plan = |inputs: &Inputs, pairs| Ok(patch::plan_extract(inputs, pairs, &extraction)?);
    let (output, beside) = (&args.output, args.lora.beside());
    Job { inputs, output, global, recipe: None, plan: &plan, smoke: None, target, beside }.run()
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
