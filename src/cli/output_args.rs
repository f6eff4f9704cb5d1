//! Where an output goes, and how it is written.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use crate::gguf::WriteOptions;
use crate::job::Settings;

/// Types that a dry run forecasts besides the plan's own.
const FORECAST: &[&str] = &["F16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K"];

/// Where an output goes, and how far the user lets a run go.
#[derive(Args, Clone, Debug)]
pub(super) struct OutputArgs {
    /// The file to write
    #[arg(short, long, value_name = "FILE", required = true)]
    pub(super) output: Option<PathBuf>,
    #[command(flatten)]
    write: WriteArgs,
    /// Print the plan and what to expect of it; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Go on although the inputs look wrong
    #[arg(long)]
    force: bool,
}

/// How an output is written.
#[derive(Args, Clone, Debug)]
pub(super) struct WriteArgs {
    /// Replace the output if it exists
    #[arg(long)]
    overwrite: bool,
    /// Split an output whose tensors take more than this, such as 2GB, into shards:
    /// NAME-00001-of-00003.gguf
    #[arg(long, value_name = "SIZE", value_parser = shard_size)]
    split_max_size: Option<u64>,
}

impl OutputArgs {
    /// Whether nothing is to be written.
    pub(super) fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Whether to go on although inputs look wrong.
    pub(super) fn is_forced(&self) -> bool {
        self.force
    }

    /// What a run may use, and how far it goes.
    pub(super) fn settings(&self, global: &Global) -> Settings {
        Settings {
            write: self.write.options(),
            limits: global.limits(),
            is_forced: self.force,
            is_dry_run: self.dry_run,
            forecast: if self.dry_run { FORECAST } else { &[] },
            ..Settings::new(global.budget())
        }
    }

    /// Whether the output may be several files.
    pub(super) fn is_split(&self) -> bool {
        self.write.split_max_size.is_some()
    }
}

impl WriteArgs {
    pub(super) fn options(&self) -> WriteOptions {
        let &WriteArgs { overwrite, split_max_size } = self;
        WriteOptions { overwrite, split_max_size, ..WriteOptions::default() }
    }
}

/// A size as gguf-split takes it (`300M`, `2G`, in powers of ten), or with a unit spelled out.
fn shard_size(text: &str) -> Result<u64, String> {
    match text.parse::<bytesize::ByteSize>()?.as_u64() {
        0 => Err("a shard must be allowed to hold something".to_owned()),
        size => Ok(size),
    }
}
