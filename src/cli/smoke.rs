//! `chatvec smoke FILE`, and what `merge --smoke` has in common with it.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::progress::Asked;
use super::{Exit, Global, output};
use crate::chat::Template;
use crate::eval::{Answer, Asking, Chatter, Judgement, Language, PromptSet, Speed, Thresholds, Verdict, judge};
use crate::gguf::{Limits, Metadata, Model};
use crate::infer::{Sampling, Session};
use crate::report;

/// Tokens of a conversation, if memory and model allow and nothing else is said: two pages.
const CONTEXT: usize = 2048;

#[derive(Args, Debug)]
pub(super) struct SmokeArgs {
    /// The model to talk to; of a split one, any of its files
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    asking: AskingArgs,
    /// Show every prompt with its answer
    #[arg(long)]
    answers: bool,
}

/// What is asked, how, and what is expected.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Asking")]
pub(super) struct AskingArgs {
    /// Prompts to ask, one JSON object a line (docs/PROMPTS.md) [default: a built-in set in the languages asked for]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Languages the model should speak, such as de or de,fr [default: those of the prompts; of the built-in ones, those of
    /// the file's general.languages, or English]
    #[arg(long, value_name = "CODES", value_delimiter = ',')]
    language: Vec<String>,
    /// Ask at most this many prompts, spread evenly over the set
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Tokens of an answer at most
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65536))]
    max_tokens: u32,
    /// Tokens of a conversation at most [default: 2048, or what the model or --memory allow]
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    ctx_size: Option<u32>,
    /// A chat template instead of the file's own: a Jinja file, or a GGUF file that has one
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// A bound of a check, such as ends=0.9, language=0.8:0.95 (fail:warn) or refusal=off
    #[arg(long = "threshold", value_name = "NAME=VALUE")]
    thresholds: Vec<String>,
    /// Choose tokens by chance at this temperature instead of always the most probable
    #[arg(long, value_name = "T")]
    temp: Option<f32>,
    /// With --temp: choose among the N most probable tokens
    #[arg(long, value_name = "N", default_value_t = 40, requires = "temp")]
    top_k: u32,
    /// With --temp: choose among the most probable tokens that have this share of probability together
    #[arg(long, value_name = "P", default_value_t = 0.95, requires = "temp")]
    top_p: f32,
    /// With --temp: leave out tokens below this share of the largest probability
    #[arg(long, value_name = "P", default_value_t = 0.05, requires = "temp")]
    min_p: f32,
    /// With --temp: the same seed gives the same answers
    #[arg(long, value_name = "N", default_value_t = 0, requires = "temp")]
    seed: u64,
}

/// [`AskingArgs`], read and checked.
pub(super) struct Questions {
    set: PromptSet,
    languages: Vec<Language>,
    thresholds: Thresholds,
    template: Option<Template>,
    max_tokens: usize,
    n_ctx: Option<usize>,
    sampling: Sampling,
}

/// A model that was asked, and what it said.
pub(super) struct Talk {
    file: String,
    chatter: Chatter,
    set: PromptSet,
    answers: Vec<Answer>,
    judgement: Judgement,
    speed: Speed,
}

pub(super) fn run(args: &SmokeArgs, global: &Global) -> Result<Exit> {
    let model = Model::open(&args.file, &Limits::default())?;
    let questions = args.asking.read(model.metadata())?;
    let talk = questions.ask(&model, global)?;
    output::print(&talk.report(args.answers), global)?;
    Ok(talk.exit())
}

impl AskingArgs {
    /// Reads the prompts and everything else that is asked for. `metadata` are those of the model, which may say which
    /// languages it speaks.
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
        if set.prompts.is_empty() {
            bail!("--prompts: the file has no prompts");
        }
        let sampling = match self.temp {
            None => Sampling::Greedy,
            Some(temperature) => Sampling::Random {
                temperature,
                top_k: self.top_k as usize,
                top_p: self.top_p,
                min_p: self.min_p,
                seed: self.seed,
            },
        };
        Ok(Questions {
            set,
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
    /// Prompts for models that are talked to in a given template, with nothing said of languages and bounds.
    pub(super) fn new(set: PromptSet, template: Option<Template>, max_tokens: usize) -> Self {
        Questions {
            set,
            languages: Vec::new(),
            thresholds: Thresholds::default(),
            template,
            max_tokens,
            n_ctx: None,
            sampling: Sampling::Greedy,
        }
    }

    /// Asks a model all of it.
    pub(super) fn ask(self, model: &Model, global: &Global) -> Result<Talk> {
        let budget = global.budget();
        let chatter = Chatter::load(model, self.template, budget.threads)?;
        let n_ctx = context_size(&chatter, self.n_ctx, budget.memory);
        let asking = Asking { max_tokens: self.max_tokens, n_ctx, memory: budget.memory, sampling: self.sampling };
        let asked = Asked::new(self.set.prompts.len());
        let (answers, speed) = chatter.ask(&self.set, &asking, &|n| asked.go_on(n))?;
        drop(asked);
        let judgement = judge(&self.set, &answers, &self.languages, &self.thresholds, chatter.loaded())?;
        let file = model.path().display().to_string();
        Ok(Talk { file, chatter, set: self.set, answers, judgement, speed })
    }
}

impl Talk {
    pub(super) fn report(&self, shows_answers: bool) -> report::Smoke<'_> {
        report::Smoke {
            file: self.file.clone(),
            hyperparameters: self.chatter.transformer().hyperparameters(),
            loaded: self.chatter.loaded(),
            set: &self.set,
            answers: &self.answers,
            judgement: &self.judgement,
            speed: self.speed,
            shows_answers,
        }
    }

    pub(super) fn exit(&self) -> Exit {
        match self.judgement.verdict {
            Verdict::Fail => Exit::NoChat,
            _ => Exit::Success,
        }
    }

    /// Calls the file by another name than the one it was opened under.
    pub(super) fn name(&mut self, path: &Path) {
        self.file = path.display().to_string();
    }

    /// The last message of a prompt, and what was answered to it, with special tokens.
    pub(super) fn reply_to(&self, id: &str) -> Option<(&str, &str)> {
        let i = self.set.prompts.iter().position(|p| p.id == id)?;
        let reply = self.answers.iter().find(|a| a.prompt == i)?.replies.last()?;
        Some((&self.set.prompts[i].messages.last()?.content, &reply.raw))
    }

    pub(super) fn judgement(&self) -> &Judgement {
        &self.judgement
    }
}

/// The context asked for, or one of a size that most conversations fit in.
fn context_size(chatter: &Chatter, asked: Option<usize>, memory: u64) -> usize {
    let most = chatter.transformer().hyperparameters().n_ctx_train.min(CONTEXT);
    // If not even a short one fits, the error says what it would take.
    asked.unwrap_or_else(|| Session::largest_context(chatter.transformer(), most, memory).max(most.min(256)))
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
    const MOST: u64 = 16 << 20;
    let begins = std::fs::File::open(path).and_then(|file| {
        let mut magic = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, 4), &mut magic)?;
        Ok(magic)
    });
    if begins.with_context(|| path.display().to_string())? == crate::gguf::MAGIC {
        let model = Model::open(path, &Limits::default())?;
        return match Template::from_metadata(model.metadata()).with_context(|| path.display().to_string())? {
            Some(template) => Ok(template),
            None => bail!("{} has no chat template", path.display()),
        };
    }
    let mut source = String::new();
    let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    io::Read::read_to_string(&mut io::Read::take(file, MOST), &mut source)
        .with_context(|| path.display().to_string())?;
    Template::parse(&source).with_context(|| path.display().to_string())
}
