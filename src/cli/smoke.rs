//! `chatvec smoke FILE`, and what `merge --smoke` has in common with it.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::asking_args::AskingArgs;
use super::progress::Asked;
use super::template_process::templates;
use super::{Exit, Global, output};
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
    #[command(flatten, next_help_heading = "Asking")]
    asking: AskingArgs,
}

pub(super) fn run(args: &SmokeArgs, global: &Global) -> Result<Exit> {
    let model = Model::open(&args.file, &global.limits())?;
    require_model(&model)?;
    let talk = ask(&args.asking.read()?, &model, global)?;
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
    let (n_ctx, n_ctx_train) = (talk.n_ctx, talk.hyperparameters.n_ctx_train);
    if n_ctx > n_ctx_train {
        let text = format!("--ctx-size {n_ctx} is more than the {n_ctx_train} tokens the model was trained on");
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
