//! `chatvec compare A B`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::progress::Asked;
use super::{Exit, Global, output};
use crate::chat::Tokenizer;
use crate::eval::{self, Comparison, Keep, Reference, Tau, Text, compare_tensors, same_vocabulary};
use crate::gguf::{Limits, Model};
use crate::infer::{Session, Transformer};
use crate::report;

/// Texts are read into memory.
const LONGEST_TEXT: u64 = 256 << 20;

#[derive(Args, Debug)]
pub(super) struct CompareArgs {
    /// The model whose probabilities are taken for true
    #[arg(value_name = "A")]
    a: PathBuf,
    /// The model that is held against it
    #[arg(value_name = "B")]
    b: PathBuf,
    /// A text, to compare what both say of it: KL divergence, most probable tokens, perplexities
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens of a chunk of the text, of which the second half is scored
    #[arg(short = 'c', long, value_name = "N", default_value_t = 512, requires = "text",
        value_parser = clap::value_parser!(u32).range(4..=1_048_576))]
    ctx_size: u32,
    /// Take only the first N chunks
    #[arg(long, value_name = "N", requires = "text", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
    /// Take text such as <|im_end|> for the special tokens they name
    #[arg(long, requires = "text")]
    parse_special: bool,
    /// Probabilities of A that are kept at each token, the largest
    #[arg(long, value_name = "K", default_value_t = 256, requires = "text",
        value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    /// With --chat: how much of the vector chat − base there is in B − A
    #[arg(long, value_name = "FILE", requires = "chat")]
    base: Option<PathBuf>,
    /// The chat model of --base
    #[arg(long, value_name = "FILE", requires = "base")]
    chat: Option<PathBuf>,
}

pub(super) fn run(args: &CompareArgs, global: &Global) -> Result<Exit> {
    let open = |path: &Path| Model::open(path, &Limits::default());
    let (a, b) = (open(&args.a)?, open(&args.b)?);
    let vector = match (&args.chat, &args.base) {
        (Some(chat), Some(base)) => Some((open(chat).context("--chat")?, open(base).context("--base")?)),
        _ => None,
    };
    // What cannot be compared is said before minutes are spent on what can.
    let text = match &args.text {
        Some(path) => {
            same_vocabulary(&a, &b)?;
            Some([text(args, path, &a)?, text(args, path, &b)?])
        }
        None => None,
    };
    let tau = vector.as_ref().map(|(chat, base)| Tau { plus: chat, minus: Some(base) });
    let tensors = compare_tensors(&a, &b, tau, &global.budget())?;
    let logits = text.map(|texts| logits(args, &texts, [&a, &b], global)).transpose()?;
    let name = |path: &Path| path.display().to_string();
    let report = report::Compare { a: name(&args.a), b: name(&args.b), tensors: &tensors, logits: logits.as_ref() };
    output::print(&report, global)?;
    Ok(Exit::Success)
}

/// The text as a model's tokens, in chunks.
fn text(args: &CompareArgs, path: &Path, model: &Model) -> Result<Text> {
    let tokenizer = Tokenizer::from_metadata(model.metadata()).with_context(|| model.path().display().to_string())?;
    let len = std::fs::metadata(path).with_context(|| path.display().to_string())?.len();
    if len > LONGEST_TEXT {
        bail!("{}: a text of {len} bytes, at most {LONGEST_TEXT} are read; take a part of it", path.display());
    }
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let text = String::from_utf8_lossy(&bytes);
    let tokens = tokenizer.encode(&text, true, args.parse_special);
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let text = Text::new(tokens, args.ctx_size as usize, bos).with_context(|| path.display().to_string())?;
    Ok(match args.chunks {
        Some(n) => text.first_chunks(n as usize),
        None => text,
    })
}

/// One model after the other, so that only one has to be in memory.
fn logits(args: &CompareArgs, texts: &[Text; 2], models: [&Model; 2], global: &Global) -> Result<Comparison> {
    let budget = global.budget();
    let (n_ctx, n_chunks) = (texts[0].n_ctx(), texts[0].n_chunks());
    let keep = Keep { n_top: args.top as usize, ..Keep::default() };
    let asked = Asked::new(2 * n_chunks);
    let reference = {
        let model = Transformer::load(models[0], budget.threads)?;
        let session = Session::new(&model, n_ctx, budget.memory)?;
        Reference::new(&mut Watched { session, asked: &asked, done: 0 }, texts[0].clone(), keep)?
    };
    let model = Transformer::load(models[1], budget.threads)?;
    let session = Session::new(&model, n_ctx, budget.memory)?;
    Ok(reference.compare(&mut Watched { session, asked: &asked, done: n_chunks }, &texts[1])?)
}

/// A session that shows how far it is and stops when it is asked to.
struct Watched<'a> {
    session: Session<'a>,
    asked: &'a Asked,
    done: usize,
}

impl eval::Scorer for Watched<'_> {
    fn n_vocab(&self) -> usize {
        self.session.n_vocab()
    }

    fn logits(
        &mut self,
        tokens: &[u32],
        first: usize,
        row: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.asked.go_on(self.done);
        self.done += 1;
        self.session.logits(tokens, first, row)
    }
}
