//! `chatvec imatrix MODEL --text FILE -o OUT`

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use super::compare::read_text;
use super::progress::Asked;
use super::smoke::require_model;
use super::{Exit, Global, output};
use crate::chat::Tokenizer;
use crate::gguf::{Model, WriteOptions};
use crate::imatrix::Form;
use crate::infer::{Gathering, Transformer, gather_importance};
use crate::report;

#[derive(Args, Debug)]
pub(super) struct MatrixArgs {
    /// The model, best in F16 or more
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// A text (UTF-8) like those the model is for, some 100,000 tokens long
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace the output if it exists
    #[arg(long)]
    overwrite: bool,
    /// Tokens of a chunk of the text; each is read from an empty context
    #[arg(short = 'c', long, value_name = "N", default_value_t = 512,
        value_parser = clap::value_parser!(u32).range(4..=1_048_576))]
    ctx_size: u32,
    /// Take only the first N chunks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
    /// Gather for output.weight, too
    #[arg(long)]
    process_output: bool,
    /// Take text such as <|im_end|> for the special tokens they name
    #[arg(long)]
    parse_special: bool,
    /// The form of the file
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Gguf)]
    output_format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum Format {
    /// The form of today
    Gguf,
    /// The older form, for older tools
    Dat,
}

pub(super) fn run(args: &MatrixArgs, global: &Global) -> Result<Exit> {
    let started = Instant::now();
    let budget = global.budget();
    let model = Model::open(&args.model, &global.limits())?;
    require_model(&model)?;
    let text = read_text(&args.text).with_context(|| args.text.display().to_string())?;
    let tokenizer = Tokenizer::from_metadata(model.metadata()).with_context(|| model.path().display().to_string())?;
    // As llama-imatrix reads a text (common/arg.cpp, --file): chunks at its end may hang on one
    // line feed.
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let tokens = tokenizer.encode(text, true, args.parse_special);
    let gathering = Gathering {
        n_ctx: args.ctx_size as usize,
        n_chunks: args.chunks.map(|n| n as usize),
        bos: tokenizer.bos().filter(|_| tokenizer.adds_bos()),
        process_output: args.process_output,
    };
    let n_chunks = gathering.n_chunks_of(tokens.len()).context("--text")?;

    let transformer = Transformer::load(&model, budget.threads)?;
    let name = args.text.file_name().unwrap_or_default().to_string_lossy();
    let mut sums = gathering.sums(&transformer, &name);
    let form = match args.output_format {
        Format::Gguf => Form::Gguf,
        Format::Dat => Form::Legacy,
    };
    // A long run must not end for a reason that was there before it.
    let inputs = model.paths().chain([args.text.as_path()]).map(Path::to_owned).collect();
    let options = WriteOptions { overwrite: args.overwrite, inputs, ..WriteOptions::default() };
    options.check_name(&args.output, sums.file_len())?;
    warn(args, &transformer);

    let asked = Asked::new("chunks", n_chunks);
    let memory = budget.memory.saturating_sub(sums.file_len());
    gather_importance(&transformer, &tokens, &gathering, &mut sums, memory, &mut |done| asked.go_on(done))?;
    drop(asked);
    let file = sums.write(form, &args.output, &options)?;
    let (n_tokens, took) = (n_chunks * gathering.n_ctx, started.elapsed());
    output::print(&report::Imatrix { sums: &sums, file: &file, form, n_tokens, took }, global)?;
    Ok(Exit::Success)
}

fn warn(args: &MatrixArgs, transformer: &Transformer) {
    let n_ctx_train = transformer.hyperparameters().n_ctx_train;
    if args.ctx_size as usize > n_ctx_train {
        let text = format!("chunks of {} tokens, but the model was trained on {n_ctx_train} at once", args.ctx_size);
        output::complain("warning", &text);
    }
    if args.output_format == Format::Gguf && args.output.extension().is_some_and(|e| e == "dat") {
        output::complain(
            "warning",
            "the file will be GGUF whatever its name; --output-format dat writes the older form",
        );
    }
}
