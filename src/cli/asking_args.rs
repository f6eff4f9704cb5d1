//! What a model is asked, how, and what is expected.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use super::Usage;
use super::engine_arg::EngineArg;
use super::template_process::templates;
use crate::chat::Template;
use crate::eval::{Language, PromptSet, Thresholds};
use crate::gguf::{self, Limits, Model};
use crate::infer::{Sampler, Sampling};
use crate::job::{Questions, SmokeTest};
use crate::plan;

/// Bytes of a template that are read. Real ones have some ten thousand.
const LONGEST_TEMPLATE: u64 = 16 << 20;

/// What is asked, how, and what is expected.
#[derive(Args, Clone, Debug)]
pub(super) struct AskingArgs {
    /// Prompts to ask: plain text, one a line, or JSON, one object a line (docs/PROMPTS.md); - is
    /// standard input [default: a built-in set in the languages asked for]
    #[arg(long, value_name = "FILE", conflicts_with = "texts")]
    prompts: Option<PathBuf>,
    /// A prompt to ask; several times for several
    #[arg(short = 'p', long = "prompt", id = "texts", value_name = "TEXT")]
    texts: Vec<String>,
    /// Languages the model should speak, such as de or German,fr; `chatvec languages` lists them
    /// [default: those of the prompts; of the built-in ones, those of the file's general.languages,
    /// or English]
    #[arg(long, value_name = "LANGUAGES", value_delimiter = ',')]
    language: Vec<String>,
    /// Ask a quarter of the prompts, spread evenly over kinds and languages
    #[arg(long, conflicts_with = "limit")]
    quick: bool,
    /// Ask at most this many prompts, spread evenly over the set
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Tokens of an answer at most
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    max_tokens: u32,
    /// Tokens of a conversation at most [default: 2048, or what the model or --memory allow]
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    ctx_size: Option<u32>,
    /// What computes the answers; auto takes llama.cpp for architectures that are not built in
    #[arg(long, value_enum, default_value_t = EngineArg::Auto)]
    engine: EngineArg,
    /// A chat template instead of the file's own: a Jinja file, or a GGUF file that has one
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// Take a warning for a failure: also what cannot be told from so few answers
    #[arg(long)]
    strict: bool,
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
pub(super) fn number(text: &str) -> Result<f32, String> {
    let value: f64 = text.parse().map_err(|e: std::num::ParseFloatError| e.to_string())?;
    plan::in_f32(value).ok_or_else(|| format!("{value:e} is beyond what f32 can hold"))
}

/// Asking an output before it takes its name.
#[derive(Args, Clone, Debug)]
#[command(mut_group("AskingArgs", |asking| asking.requires("smoke")))]
pub(super) struct SmokeArgs {
    /// Ask the output some prompts before it takes its name; if a check of the answers fails, it is
    /// kept as OUTPUT.rejected
    #[arg(long, conflicts_with = "no_template")]
    smoke: bool,
    /// With --smoke: give the output its name although a check failed
    #[arg(long, requires = "smoke")]
    keep: bool,
    #[command(flatten, next_help_heading = "Asking, with --smoke")]
    asking: AskingArgs,
}

impl SmokeArgs {
    /// The smoke test, if one is asked for.
    pub(super) fn test(&self) -> Result<Option<SmokeTest>> {
        if !self.smoke {
            return Ok(None);
        }
        let questions = self.asking.read().context("--smoke")?;
        Ok(Some(SmokeTest { questions, is_kept: self.keep }))
    }
}

impl AskingArgs {
    /// Reads the prompts and everything else that is asked for.
    pub(super) fn read(&self) -> Result<Questions> {
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
        let (set, prompts) = self.set()?;
        if set.is_none() {
            languages.iter().try_for_each(|language| require_prompts(*language)).context("--language")?;
        }
        Ok(Questions {
            set,
            prompts,
            languages,
            is_quick: self.quick,
            limit: self.limit.map(|n| n as usize),
            thresholds,
            is_strict: self.strict,
            template: self.chat_template.as_deref().map(read_template).transpose().context("--chat-template")?,
            max_tokens: self.max_tokens as usize,
            n_ctx: self.ctx_size.map(|n| n as usize),
            sampling,
            loras: Vec::new(),
            engines: self.engine.engines(),
        })
    }
}

impl AskingArgs {
    /// The prompts that are given, and what to call where they are from.
    fn set(&self) -> Result<(Option<PromptSet>, Option<PathBuf>)> {
        if !self.texts.is_empty() {
            let set = PromptSet::plain(self.texts.iter().map(String::as_str), "-p").context("--prompt")?;
            return Ok((Some(set), Some("-p".into())));
        }
        let Some(path) = &self.prompts else { return Ok((None, None)) };
        if path.as_os_str() == "-" {
            const NAME: &str = "standard input";
            let set = PromptSet::load_from(io::stdin().lock(), NAME).context("--prompts")?;
            return Ok((Some(set), Some(NAME.into())));
        }
        Ok((Some(PromptSet::load(path).context("--prompts")?), Some(path.clone())))
    }
}

/// Refuses a language that nothing can be asked in.
fn require_prompts(language: Language) -> Result<(), Usage> {
    let known = PromptSet::builtin_languages();
    if known.contains(&language) {
        return Ok(());
    }
    let known: Vec<String> = known.iter().map(ToString::to_string).collect();
    let name = language.name();
    Err(Usage(format!("no built-in prompts are in {name}, only in {}; give some with --prompts", known.join(", "))))
}

/// A template from a Jinja file or from the metadata of a GGUF file.
pub(super) fn read_template(path: &Path) -> Result<Template> {
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
