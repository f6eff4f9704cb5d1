//! `chatvec architectures`

use anyhow::Result;
use clap::Args;

use super::{Exit, Global, output};
use crate::report;

#[derive(Args, Debug)]
pub(super) struct ArchitecturesArgs {}

pub(super) fn run(_: &ArchitecturesArgs, global: &Global) -> Result<Exit> {
    output::print(&report::Architectures, global)?;
    Ok(Exit::Success)
}
