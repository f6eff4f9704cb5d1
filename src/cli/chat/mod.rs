//! `chatvec chat MODEL`

mod command;
mod editor;
mod lines;
mod merged;
mod sampling;
mod talk;
mod terminal;

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Args;

use self::merged::{Merged, VectorArgs};
use self::sampling::SamplingArgs;
use self::talk::Talk;
use self::terminal::{Room, Speaker};
use crate::chat::Template;
use crate::cli::asking_args::read_template;
use crate::cli::engine_arg::EngineArg;
use crate::cli::smoke::{read_loras, require_model, tell_context_size};
use crate::cli::template_process::templates;
use crate::cli::{Exit, Global, Usage, output};
use crate::eval::Chatter;
use crate::gguf::Model;
use crate::job::{Blend, WithAdapters, talk_context};

#[derive(Args, Debug)]
pub(super) struct ChatArgs {
    /// The model to talk to; of a split one, any of its files
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Add a LoRA adapter to the model while it answers, with @RATIO behind it unless the ratio is 1;
    /// several times for several
    #[arg(long, value_name = "FILE[@RATIO]")]
    lora: Vec<PathBuf>,
    #[command(flatten)]
    vectors: VectorArgs,
    /// A second model, which /compare asks beside the first [default: the model without adapters and
    /// vectors]
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens of an answer at most [default: as many as the context holds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    max_tokens: Option<u32>,
    /// Tokens of a conversation at most [default: 2048, or what the model or --memory allow]
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    ctx_size: Option<u32>,
    /// What computes the answers; auto takes llama.cpp for architectures that are not built in
    #[arg(long, value_enum, default_value_t = EngineArg::Auto)]
    engine: EngineArg,
    /// A chat template instead of the file's own: a Jinja file, or a GGUF file that has one
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Sampling")]
    sampling: SamplingArgs,
}

/// A model that nothing says how to talk to.
#[derive(Debug)]
pub(super) struct NoTemplate(PathBuf);

impl std::fmt::Display for NoTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = "it has no chat template, so nothing says how to talk to it; give --chat-template FILE (a Jinja file, or a \
                    chat model's GGUF file), or merge a chat vector into it first";
        write!(f, "{}: {text}", self.0.display())
    }
}

impl std::error::Error for NoTemplate {}

pub(super) fn run(args: &ChatArgs, global: &Global) -> Result<Exit> {
    if args.engine == EngineArg::Both {
        return Err(Usage("--engine both is for smoke and compare; a chat has one engine".to_owned()).into());
    }
    let given = args.chat_template.as_deref().map(read_template).transpose().context("--chat-template")?;
    let (model, first) = blend(args, global)?;
    let chatter = chatter(&first, given.clone())?;
    let other = args.against.as_deref().map(|path| open(path, args, global)).transpose().context("--against")?;
    let other = other.map(|other| {
        // One that was not trained to chat is asked as the first is.
        let template = given.or_else(|| (!has_template(&other.model)).then(|| chatter.template().clone()));
        self::chatter(&other.model, template).map(|chatter| (other, chatter))
    });
    let other = other.transpose().context("--against")?;

    let sampling = args.sampling.of(first.metadata())?;
    drop(first);
    let system = args.system.clone().filter(|text| !text.trim().is_empty());
    let mut talk = Talk::new(system, args.max_tokens.map(|n| n as usize), sampling.clone());
    let room = Room { n_ctx: args.ctx_size.map(|n| n as usize), memory: global.budget().memory };
    let speaker = |blend, path: &Path, chatter| Speaker { blend, chatter, name: path.display().to_string() };
    if !global.json && io::stdin().is_terminal() && io::stdout().is_terminal() {
        let against = other.as_ref().zip(args.against.as_deref());
        let against = against.map(|((model, chatter), path)| speaker(model as &dyn Blend, path, chatter));
        return terminal::talk(&speaker(&*model, &args.model, &chatter), against.as_ref(), talk, &sampling, room);
    }
    let host = model.host(&model.ratios())?;
    let n_ctx = talk_context(&*host, room.n_ctx, room.memory);
    let mut engine = host.sequences(1, n_ctx, n_ctx, room.memory)?;
    tell_context_size(n_ctx, host.n_ctx_train());
    lines::answer(&mut talk, &chatter, &mut *engine, global.json)
}

/// The model with its adapters, or with vectors in memory, and the model that says how to talk to it.
fn blend(args: &ChatArgs, global: &Global) -> Result<(Box<dyn Blend>, Arc<Model>)> {
    if let Some(merged) = Merged::new(&args.model, &args.vectors, global)? {
        if !args.lora.is_empty() {
            return Err(Usage("--lora is for a model in a file; give a vector or an adapter".to_owned()).into());
        }
        let first = merged.model(&merged.ratios())?;
        return Ok((Box::new(merged), first));
    }
    let mut model = open(&args.model, args, global)?;
    model.loras = read_loras(&args.lora, global)?;
    let first = Arc::clone(&model.model);
    Ok((Box::new(model), first))
}

fn open(path: &Path, args: &ChatArgs, global: &Global) -> Result<WithAdapters> {
    let model = Arc::new(Model::open(path, &global.limits())?);
    require_model(&model)?;
    let (engines, threads) = (args.engine.engines(), global.budget().threads);
    Ok(WithAdapters { model, loras: Vec::new(), engines, threads })
}

fn has_template(model: &Model) -> bool {
    crate::chat::has_template(model.metadata())
}

/// How a model is talked to. What is odd about it is said.
fn chatter(model: &Model, template: Option<Template>) -> Result<Chatter> {
    let name = || model.path().display().to_string();
    if template.is_none() {
        match templates().of(model.metadata()) {
            Ok(Some(_)) => {}
            Ok(None) => return Err(NoTemplate(model.path().to_owned()).into()),
            Err(e) => return Err(e).with_context(name),
        }
    }
    let chatter = Chatter::load(model, template, &templates())?;
    let loaded = chatter.loaded();
    let odd = [&loaded.template_error, &loaded.refused_by_llama_cpp].into_iter().flatten();
    odd.for_each(|text| output::complain("warning", &format!("{}: {text}", name())));
    loaded.warnings.iter().for_each(|text| output::complain("note", &format!("{}: {text}", name())));
    Ok(chatter)
}
