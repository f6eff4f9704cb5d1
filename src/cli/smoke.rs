//! `chatvec smoke FILE`, and what `merge --smoke` has in common with it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use super::progress::Asked;
use super::template_process::templates;
use super::{Exit, Global, output};
use crate::chat::Template;
use crate::eval::{Asking, Chatter, Conversations, Judgement, Language, PromptSet, Thresholds, Verdict, judge};
use crate::gguf::{self, Limits, Metadata, Model};
use crate::infer::{self, Hyperparameters, Sampler, Sampling, Session, Transformer};
use crate::plan;
use crate::report;

/// Tokens of a conversation, if memory and model allow and nothing else is said: two pages.
const CONTEXT: usize = 2048;

/// Bytes of a template that are read. Real ones have some ten thousand.
const LONGEST_TEMPLATE: u64 = 16 << 20;

#[derive(Args, Debug)]
pub(super) struct SmokeArgs {
    /// The model to talk to; of a split one, any of its files
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Show every prompt with its answer
    #[arg(long)]
    answers: bool,
    #[command(flatten, next_help_heading = "Asking")]
    asking: AskingArgs,
}

/// What is asked, how, and what is expected.
#[derive(Args, Clone, Debug)]
pub(super) struct AskingArgs {
    /// Prompts to ask, one JSON object a line (docs/PROMPTS.md) [default: a built-in set in the
    /// languages asked for]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Languages the model should speak, such as de or de,fr [default: those of the prompts; of the
    /// built-in ones, those of the file's general.languages, or English]
    #[arg(long, value_name = "CODES", value_delimiter = ',')]
    language: Vec<String>,
    /// Ask at most this many prompts, spread evenly over the set
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Tokens of an answer at most
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    max_tokens: u32,
    /// Tokens of a conversation at most [default: 2048, or what the model or --memory allow]
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    ctx_size: Option<u32>,
    /// A chat template instead of the file's own: a Jinja file, or a GGUF file that has one
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// A bound of a check, by its name in the report, such as ends=0.9, language=0.8:0.95
    /// (fail:warn) or refusal=off
    #[arg(long = "threshold", value_name = "NAME=VALUE")]
    thresholds: Vec<String>,
    /// Choose tokens by chance at this temperature; 0, as without it, is always the most probable
    /// one
    #[arg(long, value_name = "T", value_parser = number)]
    temp: Option<f32>,
    /// With --temp: choose among the N most probable tokens
    #[arg(long, value_name = "N", default_value_t = 40, requires = "temp")]
    top_k: u32,
    /// With --temp: choose among the most probable tokens that have this share of probability
    /// together
    #[arg(long, value_name = "P", default_value_t = 0.95, value_parser = number, requires = "temp")]
    top_p: f32,
    /// With --temp: leave out tokens below this share of the largest probability
    #[arg(long, value_name = "P", default_value_t = 0.05, value_parser = number, requires = "temp")]
    min_p: f32,
    /// With --temp: the same seed gives the same answers
    #[arg(long, value_name = "N", default_value_t = 0, requires = "temp")]
    seed: u64,
}

/// A number as it is computed with. One that would become 0 or infinite by that is none: a
/// temperature of 0 means something else.
fn number(text: &str) -> Result<f32, String> {
    let value: f64 = text.parse().map_err(|e: std::num::ParseFloatError| e.to_string())?;
    plan::in_f32(value).ok_or_else(|| format!("{value:e} is beyond what f32 can hold"))
}

/// [`AskingArgs`], read and checked.
pub(super) struct Questions {
    set: PromptSet,
    /// The file they are from; none for the built-in ones.
    prompts: Option<PathBuf>,
    languages: Vec<Language>,
    thresholds: Thresholds,
    template: Option<Template>,
    max_tokens: usize,
    n_ctx: Option<usize>,
    sampling: Sampling,
}

/// A model that was asked, and what it said. Holds nothing of its file, which may get another name.
pub(super) struct Talk {
    hyperparameters: Hyperparameters,
    set: PromptSet,
    prompts: Option<PathBuf>,
    said: Conversations,
    judgement: Judgement,
    max_tokens: usize,
    n_ctx: usize,
}

pub(super) fn run(args: &SmokeArgs, global: &Global) -> Result<Exit> {
    let model = Model::open(&args.file, &global.limits())?;
    require_model(&model)?;
    let questions = args.asking.read(model.metadata())?;
    let talk = questions.ask(&model, global)?;
    output::print(&talk.report(model.path(), args.answers), global)?;
    Ok(talk.exit())
}

impl AskingArgs {
    /// Reads the prompts and everything else that is asked for. `metadata` are those of the model,
    /// which may say which languages it speaks.
    pub(super) fn read(&self, metadata: &Metadata) -> Result<Questions> {
        let mut languages = Vec::new();
        for code in &self.language {
            let language = Language::parse(code).context("--language")?;
            if !languages.contains(&language) {
                languages.push(language);
            }
        }
        let mut thresholds = Thresholds::default();
        for text in &self.thresholds {
            thresholds.set(text).context("--threshold")?;
        }
        let mut set = match &self.prompts {
            Some(path) => PromptSet::load(path).context("--prompts")?,
            None => {
                if languages.is_empty() {
                    languages = languages_of(metadata);
                }
                PromptSet::builtin(Some(&languages))
            }
        };
        if let Some(limit) = self.limit {
            thin_out(&mut set, limit as usize);
        }
        let sampling = match self.temp {
            None | Some(0.0) => Sampling::Greedy,
            Some(temperature) => Sampling::Random {
                temperature,
                top_k: self.top_k as usize,
                top_p: self.top_p,
                min_p: self.min_p,
                seed: self.seed,
            },
        };
        // What makes no sense is said before a model is loaded, or written.
        Sampler::new(sampling.clone())?;
        Ok(Questions {
            set,
            prompts: self.prompts.clone(),
            languages,
            thresholds,
            template: self.chat_template.as_deref().map(read_template).transpose().context("--chat-template")?,
            max_tokens: self.max_tokens as usize,
            n_ctx: self.ctx_size.map(|n| n as usize),
            sampling,
        })
    }
}

impl Questions {
    /// Prompts for models that are talked to in a given template, with nothing said of languages
    /// and bounds.
    pub(super) fn new(set: PromptSet, template: Option<Template>, max_tokens: usize) -> Self {
        Questions {
            set,
            prompts: None,
            languages: Vec::new(),
            thresholds: Thresholds::default(),
            template,
            max_tokens,
            n_ctx: None,
            sampling: Sampling::Greedy,
        }
    }

    /// Whether a model of this shape can be asked at all.
    pub(super) fn check(&self, model: &Model, global: &Global) -> Result<(), infer::Error> {
        require_runnable(model, self.n_ctx, global.budget().memory).map(drop)
    }

    pub(super) fn n_prompts(&self) -> usize {
        self.set.prompts.len()
    }

    /// Asks a model all of it.
    pub(super) fn ask(self, model: &Model, global: &Global) -> Result<Talk> {
        let budget = global.budget();
        let chatter = Chatter::load(model, self.template, &templates(), budget.threads)?;
        let n_ctx = context_size(chatter.transformer(), self.n_ctx, budget.memory);
        let n_ctx_train = chatter.transformer().hyperparameters().n_ctx_train;
        if n_ctx > n_ctx_train {
            let text = format!("--ctx-size {n_ctx} is more than the {n_ctx_train} tokens the model was trained on");
            output::complain("warning", &text);
        }
        let asking = Asking { max_tokens: self.max_tokens, n_ctx, memory: budget.memory, sampling: self.sampling };
        let asked = Asked::new("prompts", self.set.prompts.len());
        let said = chatter.ask(&self.set, &asking, &|n| asked.go_on(n))?;
        drop(asked);
        Ok(Talk {
            judgement: judge(&self.set, &said.answers, &self.languages, &self.thresholds, &said.loaded)?,
            hyperparameters: chatter.transformer().hyperparameters().clone(),
            set: self.set,
            prompts: self.prompts,
            said,
            max_tokens: self.max_tokens,
            n_ctx,
        })
    }
}

impl Talk {
    /// `path` is where the model is by now.
    pub(super) fn report(&self, path: &Path, shows_answers: bool) -> report::Smoke<'_> {
        report::Smoke {
            file: path.display().to_string(),
            hyperparameters: &self.hyperparameters,
            set: &self.set,
            prompts: self.prompts.as_deref(),
            said: &self.said,
            judgement: &self.judgement,
            max_tokens: self.max_tokens,
            n_ctx: self.n_ctx,
            shows_answers,
        }
    }

    pub(super) fn exit(&self) -> Exit {
        match self.judgement.verdict {
            Verdict::Fail => Exit::NoChat,
            _ => Exit::Success,
        }
    }

    /// The last message of a prompt, and what was answered to it, with special tokens.
    pub(super) fn reply_to(&self, id: &str) -> Option<(&str, &str)> {
        let i = self.set.prompts.iter().position(|p| p.id == id)?;
        let reply = self.said.answers.iter().find(|a| a.prompt == i)?.replies.last()?;
        Some((&self.set.prompts[i].messages.last()?.content, &reply.raw))
    }

    pub(super) fn judgement(&self) -> &Judgement {
        &self.judgement
    }
}

/// Refuses files that are no models though they may look like one, such as patches and adapters.
pub(super) fn require_model(model: &Model) -> Result<(), plan::Error> {
    match model.metadata().get_str("general.type").filter(|kind| *kind != "model") {
        None => Ok(()),
        Some(kind) => Err(plan::Error::NotAModel { path: model.path().to_owned(), found: kind.to_string() }),
    }
}

/// Whether the model runs in such a context, found out without running it, and the bytes that it
/// then takes.
pub(super) fn require_runnable(model: &Model, n_ctx: Option<usize>, memory: u64) -> Result<u64, infer::Error> {
    let transformer = Transformer::load(model, 1)?;
    Ok(Session::new(&transformer, context_size(&transformer, n_ctx, memory), memory)?.n_bytes())
}

/// The context asked for, or one of a size that most conversations fit in.
fn context_size(transformer: &Transformer, asked: Option<usize>, memory: u64) -> usize {
    let most = transformer.hyperparameters().n_ctx_train.min(CONTEXT);
    // If not even a short one fits, the error says what it would take.
    asked.unwrap_or_else(|| Session::largest_context(transformer, most, memory).max(most.min(256)))
}

/// Those of `general.languages` that can be recognised, or English.
fn languages_of(metadata: &Metadata) -> Vec<Language> {
    let codes = metadata.get_strings("general.languages").into_iter().flat_map(|codes| codes.iter());
    let known: Vec<Language> = codes.filter_map(|code| Language::parse(&code.to_string()).ok()).collect();
    if known.is_empty() { vec![Language::ENGLISH] } else { known }
}

/// Leaves `n` prompts, evenly spread.
fn thin_out(set: &mut PromptSet, n: usize) {
    let all = set.prompts.len();
    let mut i = 0;
    set.prompts.retain(|_| {
        i += 1;
        i * n / all > (i - 1) * n / all || n >= all
    });
}

/// A template from a Jinja file or from the metadata of a GGUF file.
fn read_template(path: &Path) -> Result<Template> {
    // Read once, from its beginning to its end: it may be a pipe.
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| {
        let mut file = file.take(LONGEST_TEMPLATE + 1);
        file.by_ref().take(gguf::MAGIC.len() as u64).read_to_end(&mut bytes)?;
        if bytes != gguf::MAGIC {
            file.read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    });
    let name = || path.display().to_string();
    let bytes = read.with_context(name)?;
    if bytes == gguf::MAGIC {
        let model = Model::open(path, &Limits::default())?;
        return match templates().of(model.metadata()).with_context(name)? {
            Some(template) => Ok(template),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, "it has no chat template")).with_context(name),
        };
    }
    if bytes.len() as u64 > LONGEST_TEMPLATE {
        let text = format!("more than {LONGEST_TEMPLATE} bytes are no template");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text)).with_context(name);
    }
    let source = String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.utf8_error()));
    templates().parse(&source.with_context(name)?).with_context(name)
}
