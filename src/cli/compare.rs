//! `chatvec compare A B`

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use super::engine_arg::EngineArg;
use super::progress::Asked;
use super::smoke::{require_model, tell_agreement};
use super::{Exit, Global, Usage, output, recipe_args};
use crate::chat::Tokenizer;
use crate::eval::{self, Keep, Reader, Reference, Tau, Text, compare_tensors, same_vocabulary};
use crate::gguf::{Limits, Model};
use crate::patch;
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
    /// A text (UTF-8), to compare what both say of it: KL divergence, most probable tokens,
    /// perplexities
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens of a chunk of the text, of which the second half is scored, as llama-perplexity does
    #[arg(short = 'c', long, value_name = "N", default_value_t = 512, requires = "text",
        value_parser = clap::value_parser!(u32).range(4..=1_048_576))]
    ctx_size: u32,
    /// Take only the first N chunks
    #[arg(long, value_name = "N", requires = "text", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
    /// Take text such as <|im_end|> for the special tokens they name
    #[arg(long, requires = "text")]
    parse_special: bool,
    /// Probabilities of A that are kept at each token, the largest; fewer take less memory and
    /// leave wider bounds
    #[arg(long, value_name = "K", default_value_t = 256, requires = "text",
        value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    /// What reads the text; auto takes llama.cpp for architectures that are not built in
    #[arg(long, value_enum, default_value_t = EngineArg::Auto, requires = "text")]
    engine: EngineArg,
    /// With --chat: how much of the vector chat − base there is in B − A
    #[arg(long, value_name = "FILE", requires = "chat")]
    base: Option<PathBuf>,
    /// The chat model of --base
    #[arg(long, value_name = "FILE", requires = "base")]
    chat: Option<PathBuf>,
}

pub(super) fn run(args: &CompareArgs, global: &Global) -> Result<Exit> {
    let open = |path: &Path| Model::open(path, &global.limits());
    let (a, b) = (open(&args.a)?, open(&args.b)?);
    match [&a, &b].map(|model| patch::is_patch(model.metadata())) {
        [true, true] => return vectors(args, global),
        [true, false] => return Err(eval::Error::PatchAndModel { patch: args.a.clone(), model: args.b.clone() }.into()),
        [false, true] => return Err(eval::Error::PatchAndModel { patch: args.b.clone(), model: args.a.clone() }.into()),
        [false, false] => {}
    }
    let vector = match (&args.chat, &args.base) {
        (Some(chat), Some(base)) => Some((open(chat).context("--chat")?, open(base).context("--base")?)),
        _ => None,
    };
    // What cannot be compared is said before minutes are spent on what can.
    if args.text.is_some() {
        [&a, &b].into_iter().try_for_each(require_model)?;
    }
    let texts = match &args.text {
        Some(path) => {
            same_vocabulary(&a, &b)?;
            let text = read_text(path).with_context(|| path.display().to_string())?;
            let texts = [tokenize(args, &text, &a)?, tokenize(args, &text, &b)?];
            let memory = global.budget().memory;
            for model in [&a, &b] {
                let hosts = args.engine.engines().load(model, &[], 1)?;
                let taken = hosts.require_room(model, texts[0].n_ctx(), memory)?;
                Reference::require_memory(&texts[0], &keep(args), hosts.first.n_vocab(), memory - taken)?;
            }
            Some(texts)
        }
        None => None,
    };
    let tau = vector.as_ref().map(|(chat, base)| Tau { plus: chat, minus: Some(base) });
    let tensors = compare_tensors(&a, &b, tau, &global.budget())?;
    if tensors.tensors.is_empty() && texts.is_none() {
        return Err(eval::Error::NothingShared { a: args.a.clone(), b: args.b.clone() }.into());
    }
    let said = texts.map(|texts| logits(args, &texts, [&a, &b], global)).transpose()?;
    let name = |path: &Path| path.display().to_string();
    let (a, b) = (name(&args.a), name(&args.b));
    let report = report::Compare { a, b, are_patches: false, tensors: &tensors, said: said.as_ref() };
    output::print(&report, global)?;
    for (of, agreement) in said.iter().flat_map(|said| said.agreements()) {
        tell_agreement(&format!("of {of} "), agreement);
    }
    Ok(Exit::Success)
}

/// Two patches: the vectors alone, since neither says anything of a text.
fn vectors(args: &CompareArgs, global: &Global) -> Result<Exit> {
    if args.text.is_some() || args.base.is_some() {
        let text = "--text, --base and --chat are for models; of patches the vectors are compared";
        return Err(Usage(text.to_owned()).into());
    }
    // Rows of both are computed at a time.
    let limits = Limits { max_tensor_memory: global.memory.as_u64() / 2, ..global.limits() };
    let open = |path: &Path| -> Result<patch::Patch, patch::Error> {
        let (patch, checked) = patch::open_checked(path, &limits)?;
        recipe_args::complain_of_damage(path, &checked);
        Ok(patch)
    };
    let (a, b) = (open(&args.a)?, open(&args.b)?);
    let tensors = eval::compare_vectors(&a, &b, &global.budget())?;
    if tensors.tensors.is_empty() && !tensors.is_whole() {
        return Err(eval::Error::NothingShared { a: args.a.clone(), b: args.b.clone() }.into());
    }
    let name = |path: &Path| path.display().to_string();
    let (a, b) = (name(&args.a), name(&args.b));
    output::print(&report::Compare { a, b, are_patches: true, tensors: &tensors, said: None }, global)?;
    Ok(Exit::Success)
}

/// A text of UTF-8. One that was cut within its last character is taken without it.
pub(super) fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST_TEXT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST_TEXT {
        let text = format!("a text of more than {LONGEST_TEXT} bytes; take a part of it");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    let (n_valid, is_text) = match std::str::from_utf8(&bytes) {
        Ok(text) => (text.len(), true),
        Err(e) => (e.valid_up_to(), e.error_len().is_none()),
    };
    if !is_text {
        let text = format!("byte {n_valid} is not UTF-8; convert the text first");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    bytes.truncate(n_valid);
    String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// The text as a model's tokens, in chunks.
fn tokenize(args: &CompareArgs, text: &str, model: &Model) -> Result<Text> {
    let tokenizer = Tokenizer::from_metadata(model.metadata()).with_context(|| model.path().display().to_string())?;
    let tokens = tokenizer.encode(text, true, args.parse_special);
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let text = Text::new(tokens, args.ctx_size as usize, bos).context("--text")?;
    Ok(match args.chunks {
        Some(n) => text.first_chunks(n as usize),
        None => text,
    })
}

/// What is kept of A at each token.
fn keep(args: &CompareArgs) -> Keep {
    Keep { n_top: args.top as usize, ..Keep::default() }
}

/// One model after the other, so that only one has to be in memory.
fn logits(args: &CompareArgs, texts: &[Text; 2], models: [&Model; 2], global: &Global) -> Result<report::SaidOfText> {
    let (budget, n_ctx, n_chunks) = (global.budget(), texts[0].n_ctx(), texts[0].n_chunks());
    let asked = Asked::new("chunks", 2 * n_chunks);
    let load = |model: &Model| args.engine.engines().load(model, &[], budget.threads);
    let (reference, engine_a, agreement_a) = {
        let hosts = load(models[0])?;
        let mut a = Watched { reader: hosts.reader(n_ctx, budget.memory)?, asked: &asked, done: 0 };
        let reference = Reference::new(&mut a, texts[0].clone(), keep(args))?;
        (reference, hosts.first.name(), a.reader.agreement().cloned())
    };
    let hosts = load(models[1])?;
    let mut b = Watched { reader: hosts.reader(n_ctx, budget.memory)?, asked: &asked, done: n_chunks };
    let comparison = reference.compare(&mut b, &texts[1])?;
    let (engines, agreements) = ([engine_a, hosts.first.name()], [agreement_a, b.reader.agreement().cloned()]);
    Ok(report::SaidOfText { comparison, engines, agreements })
}

/// A reader that shows how far it is. A signal ends the process, since nothing is being written.
struct Watched<'a> {
    reader: Reader<'a>,
    asked: &'a Asked,
    done: usize,
}

impl eval::Scorer for Watched<'_> {
    fn n_vocab(&self) -> usize {
        self.reader.n_vocab()
    }

    fn logits(
        &mut self,
        tokens: &[u32],
        first: usize,
        row: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.asked.go_on(self.done);
        self.done += 1;
        self.reader.logits(tokens, first, row)
    }
}
