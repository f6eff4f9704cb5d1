//! `chatvec languages`

use anyhow::Result;
use clap::Args;

use super::{Exit, Global, output};
use crate::report;

#[derive(Args, Debug)]
pub(super) struct LanguagesArgs {}

pub(super) fn run(_: &LanguagesArgs, global: &Global) -> Result<Exit> {
    output::print(&report::Languages, global)?;
    Ok(Exit::Success)
}
