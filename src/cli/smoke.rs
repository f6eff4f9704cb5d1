//! `chatvec smoke FILE`, and what `merge --smoke` has in common with it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;

use super::asking_args::AskingArgs;
use super::progress::{Asked, Patient};
use super::recipe_args::parse_ratio;
use super::template_process::templates;
use super::{Exit, Global, output};
use crate::eval::{Agreement, Answer, Listener, Phase, Prompt};
use crate::gguf::Model;
use crate::job::{Questions, Talk};
use crate::plan;
use crate::report;

#[derive(Args, Debug)]
pub(super) struct SmokeArgs {
    /// The model to talk to; of a split one, any of its files
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Show every prompt with its answer
    #[arg(long)]
    answers: bool,
    /// Show every prompt with its answer as soon as it is complete, in the order of the set; with
    /// --json on standard error
    #[arg(short, long)]
    verbose: bool,
    /// Add a LoRA adapter to the model while it answers, with @RATIO behind it unless the ratio is 1;
    /// several times for several
    #[arg(long, value_name = "FILE[@RATIO]")]
    lora: Vec<PathBuf>,
    #[command(flatten, next_help_heading = "Asking")]
    asking: AskingArgs,
}

pub(super) fn run(args: &SmokeArgs, global: &Global) -> Result<Exit> {
    let model = Model::open(&args.file, &global.limits())?;
    require_model(&model)?;
    let mut questions = args.asking.read()?;
    questions.loras = read_loras(&args.lora, global)?;
    let talk = {
        let _patient = Patient::begin();
        let asked = Asked::new("prompts", questions.n_prompts(model.metadata()));
        let live = Live { asked, shows: args.verbose, is_json: global.json, waiting: RefCell::default() };
        questions.ask(&model, &templates(), &global.budget(), &live)?
    };
    tell_context(&talk);
    output::print(&report::Smoke::new(&talk, model.path(), args.answers && !args.verbose), global)?;
    Ok(exit(&talk))
}

/// Shows how far the asking has come, and what was answered.
struct Live {
    asked: Asked,
    /// Whether conversations are shown.
    shows: bool,
    is_json: bool,
    /// The prompt that is shown next, and conversations that were complete before it.
    waiting: RefCell<(usize, BTreeMap<usize, String>)>,
}

impl Listener for Live {
    fn go_on(&self, n_answered: usize) -> bool {
        self.asked.go_on(n_answered)
    }

    fn begins(&self, phase: Phase) {
        self.asked.begins(phase);
        if phase == Phase::Judging {
            // After an interrupt some are missing between those that are complete.
            let (_, left) = std::mem::take(&mut *self.waiting.borrow_mut());
            left.values().for_each(|text| self.show(text));
        }
    }

    fn hears(&self, prompt: &Prompt, answer: &Answer) {
        if !self.shows {
            return;
        }
        let (next, waiting) = &mut *self.waiting.borrow_mut();
        waiting.insert(answer.prompt, report::conversation(prompt, answer));
        while let Some(text) = waiting.remove(next) {
            self.show(&text);
            *next += 1;
        }
    }

    fn takes_a_part(&self) -> bool {
        true
    }
}

impl Live {
    fn show(&self, text: &str) {
        // Who does not read answers may still read the result.
        self.asked.beside(|| match self.is_json {
            true => output::complain_in_lines(text),
            false => drop(output::print_text(text)),
        });
    }
}

/// Adapters of `--lora FILE[@RATIO]`, each with its ratio.
pub(super) fn read_loras(loras: &[PathBuf], global: &Global) -> Result<Vec<(Arc<Model>, f32)>> {
    let read = |lora: &PathBuf| {
        let (path, ratio) = parse_ratio(lora).context("--lora")?;
        let ratio = plan::in_f32(ratio).ok_or(plan::Error::RatioText { text: ratio.to_string() }).context("--lora")?;
        Ok((Arc::new(Model::open(&path, &global.limits())?), ratio))
    };
    loras.iter().map(read).collect()
}

/// Asks a model, and shows how far it has come.
pub(super) fn ask(questions: &Questions, model: &Model, global: &Global) -> Result<Talk> {
    let asked = Asked::new("prompts", questions.n_prompts(model.metadata()));
    let talk = questions.ask(model, &templates(), &global.budget(), &asked)?;
    drop(asked);
    tell_context(&talk);
    Ok(talk)
}

/// Says if a model was talked to beyond what it was trained on.
pub(super) fn tell_context(talk: &Talk) {
    tell_context_size(talk.n_ctx, talk.n_ctx_train);
    talk.agreement.iter().for_each(|agreement| tell_agreement("", agreement));
}

/// Says if a context is larger than what a model was trained on.
pub(super) fn tell_context_size(n_ctx: usize, n_ctx_train: usize) {
    if n_ctx > n_ctx_train {
        let text = format!("--ctx-size {n_ctx} is more than the {n_ctx_train} tokens the model was trained on");
        output::complain("warning", &text);
    }
}

/// Says if two engines are not as near to each other as they should be.
pub(super) fn tell_agreement(of: &str, agreement: &Agreement) {
    if !agreement.holds() {
        let (largest, mean, bounds) = (agreement.largest, agreement.mean, agreement.bounds);
        let text = format!(
            "{of}llama.cpp says otherwise than the built-in engine: log-probabilities differ by {largest:.2e} at most and \
             {mean:.2e} on the mean, where {:.0e} and {:.0e} are expected for weights of these types; please report it",
            bounds.largest, bounds.mean
        );
        output::complain("warning", &text);
    }
}

/// The exit for what was answered.
fn exit(talk: &Talk) -> Exit {
    if talk.said.is_partial {
        Exit::Interrupted
    } else if talk.chats() {
        Exit::Success
    } else {
        Exit::NoChat
    }
}

/// Refuses files that are no models though they may look like one, such as patches and adapters.
pub(super) fn require_model(model: &Model) -> Result<(), plan::Error> {
    match model.metadata().get_str("general.type").filter(|kind| *kind != "model") {
        None => Ok(()),
        Some(kind) => Err(plan::Error::NotAModel { path: model.path().to_owned(), found: kind.to_string() }),
    }
}
