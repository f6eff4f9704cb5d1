//! `chatvec extract --base B --chat C -o PATCH`

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use super::imatrix_args::ImatrixArgs;
use super::job::{Job, OutputArgs};
use super::lora_args::LoraArgs;
use super::template_process::TemplateArgs;
use super::{Exit, Global, Usage};
use crate::ggml::GgmlType;
use crate::gguf::Model;
use crate::patch::extract::Target;
use crate::patch::{self, Extraction};
use crate::quants;
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
    // An adapter by itself is of the exact vector.
    let is_alone = args.output.output.is_none();
    let target = match (args.size, args.encoding) {
        _ if is_alone => None,
        (Some(size), _) => Some(size.target(inputs.source(inputs.template()))),
        (None, Encoding::Bits(bits)) => Some(Target::Bits(bits)),
        (None, Encoding::Rank(rank)) => Some(Target::Rank(rank)),
        (None, Encoding::Type(_)) => None,
    };
    let encoding = match (target, args.encoding) {
        // What is not decomposed is given a type when the rest is known.
        (Some(_), _) => GgmlType::Q6_K,
        (None, Encoding::Type(ty)) if !is_alone => ty,
        _ => GgmlType::F32,
    };
    // What a decomposition takes depends on the rows that moved: then a dry run looks, too.
    let looks = !is_alone && (target.is_some() || !args.output.is_dry_run());
    let extraction = Extraction { encoding, looks };
    let plan = |inputs: &Inputs, pairs| {
        let plan = patch::plan_extract(inputs, pairs, &extraction, &global.budget())?;
        Ok(match target {
            Some(target) => target.allot(plan, inputs)?,
            None => plan,
        })
    };
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
