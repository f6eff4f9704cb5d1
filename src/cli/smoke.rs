//! `chatvec smoke FILE`, and what `merge --smoke` has in common with it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;

use super::asking_args::AskingArgs;
use super::progress::Asked;
use super::recipe_args::parse_ratio;
use super::template_process::templates;
use super::{Exit, Global, output};
use crate::eval::Agreement;
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
    for lora in &args.lora {
        let (path, ratio) = parse_ratio(lora).context("--lora")?;
        let ratio = plan::in_f32(ratio).ok_or(plan::Error::RatioText { text: ratio.to_string() }).context("--lora")?;
        questions.loras.push((Arc::new(Model::open(&path, &global.limits())?), ratio));
    }
    let talk = ask(&questions, &model, global)?;
    output::print(&report::Smoke::new(&talk, model.path(), args.answers), global)?;
    Ok(exit(&talk))
}

/// Asks a model, and shows how far it has come.
pub(super) fn ask(questions: &Questions, model: &Model, global: &Global) -> Result<Talk> {
    let asked = Asked::new("prompts", questions.n_prompts(model.metadata()));
    let talk = questions.ask(model, &templates(), &global.budget(), &|n| asked.go_on(n))?;
    drop(asked);
    tell_context(&talk);
    Ok(talk)
}

/// Says if a model was talked to beyond what it was trained on.
pub(super) fn tell_context(talk: &Talk) {
    let (n_ctx, n_ctx_train) = (talk.n_ctx, talk.n_ctx_train);
    if n_ctx > n_ctx_train {
        let text = format!("--ctx-size {n_ctx} is more than the {n_ctx_train} tokens the model was trained on");
        output::complain("warning", &text);
    }
    talk.agreement.iter().for_each(|agreement| tell_agreement("", agreement));
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
pub(super) fn exit(talk: &Talk) -> Exit {
    if talk.chats() { Exit::Success } else { Exit::NoChat }
}

/// Refuses files that are no models though they may look like one, such as patches and adapters.
pub(super) fn require_model(model: &Model) -> Result<(), plan::Error> {
    match model.metadata().get_str("general.type").filter(|kind| *kind != "model") {
        None => Ok(()),
        Some(kind) => Err(plan::Error::NotAModel { path: model.path().to_owned(), found: kind.to_string() }),
    }
}
