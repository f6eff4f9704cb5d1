//! `chatvec inspect FILE`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::template_process::TemplateArgs;
use super::{Exit, Global, output};
use crate::eval::audit_chat;
use crate::gguf::Model;
use crate::report;

#[derive(Args, Debug)]
pub(super) struct InspectArgs {
    /// A GGUF file, or any shard of a split set
    file: PathBuf,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Look at the chat: the template, what ends an answer, and whether the tokens for that were
    /// trained
    #[arg(long)]
    chat: bool,
    #[command(flatten)]
    template: TemplateArgs,
}

pub(super) fn run(args: &InspectArgs, global: &Global) -> Result<Exit> {
    let model = Model::open(&args.file, &global.limits())?;
    let chat = if args.chat { Some(audit_chat(&model, &args.template.templates())?) } else { None };
    output::print(&report::Inspect { model: &model, tensors: args.tensors, chat: chat.as_ref() }, global)?;
    Ok(Exit::Success)
}
