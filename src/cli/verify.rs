//! `chatvec verify PATCH`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::{Exit, Global, output};
use crate::{patch, report};

#[derive(Args, Debug)]
pub(super) struct VerifyArgs {
    /// A patch file
    patch: PathBuf,
    /// A model that may be the base the patch was made from
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// A model that may be the chat model the patch was made from
    #[arg(long, value_name = "FILE")]
    chat: Option<PathBuf>,
    /// Read all of the patch although it claims more work than a file of its size is worth
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &VerifyArgs, global: &Global) -> Result<Exit> {
    let found = patch::verify(&args.patch, args.base.as_deref(), args.chat.as_deref(), &global.limits_if(args.force))?;
    output::print(&report::Verify { found: &found }, global)?;
    Ok(match (found.is_whole(), found.is_of()) {
        (false, _) => Exit::Malformed,
        (true, false) => Exit::Refused,
        (true, true) => Exit::Success,
    })
}
