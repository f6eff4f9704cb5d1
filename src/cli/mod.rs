//! The command: arguments, progress, exit codes. One file a command; no model logic.

mod apply;
mod architectures;
mod asking_args;
mod chat;
mod compare;
mod demo;
mod engine_arg;
mod exit;
mod extract;
mod imatrix;
mod imatrix_args;
mod inspect;
mod languages;
mod lora_args;
mod loss_args;
mod merge;
mod merging;
mod output;
mod output_args;
mod progress;
mod quantize;
mod recipe_args;
mod recipe_files;
mod signals;
mod smoke;
mod sweep;
mod template_process;
mod types;
mod verify;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub use exit::Exit;
pub use template_process::{TemplateLimits, TemplateProcess};

use crate::gguf::printable;
use crate::quants;

/// Chat vectors on GGUF files: model + ratio × (chat − base), streamed.
#[derive(Parser)]
#[command(name = "chatvec", bin_name = "chatvec", version, after_help = exit::table(), max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

/// Arguments that make no sense together.
#[derive(Debug)]
struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// What every command takes.
#[derive(Args, Clone, Debug)]
#[command(next_display_order = 100)]
struct Global {
    /// Print the result as JSON on standard output
    #[arg(long, global = true)]
    json: bool,
    /// Threads to compute with, at most 1024 [default: one for each processor]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Memory for buffers, such as 64MiB or 2GB; headers come on top, each at most as much again,
    /// or 512MiB if that is more
    #[arg(long, global = true, value_name = "SIZE", default_value = "1GiB")]
    memory: bytesize::ByteSize,
    /// Encode and decode with no higher level of vector instructions than this (scalar, avx2,
    /// avx512); the bytes are the same
    #[arg(long, global = true, hide = true, value_name = "LEVEL")]
    simd: Option<quants::Level>,
}

#[derive(Subcommand)]
enum Command {
    /// Show a file's header: metadata, tensor types, warnings
    Inspect(inspect::InspectArgs),
    /// Write model + ratio × (chat − base)
    Merge(merge::MergeArgs),
    /// Write chat − base as a patch file
    Extract(extract::ExtractArgs),
    /// Write model + Σ ratio × patch
    Apply(apply::ApplyArgs),
    /// Hold a patch against its own hashes, and base and chat against those it was made from
    Verify(verify::VerifyArgs),
    /// Write a model in other types, as llama-quantize does
    Quantize(quantize::QuantizeArgs),
    /// Ask a model the prompts of a set, and judge whether it chats
    Smoke(smoke::SmokeArgs),
    /// Find the ratio: merge in memory at several, ask each, and recommend one
    Sweep(sweep::SweepArgs),
    /// Talk to a model in the terminal, or answer each line of a pipe
    Chat(chat::ChatArgs),
    /// Hold one model against another: weights, and what they say on a text
    Compare(compare::CompareArgs),
    /// Find out from a text which weights matter: an importance matrix, for --imatrix
    Imatrix(imatrix::MatrixArgs),
    /// List what can be done with models of which architecture
    Architectures(architectures::ArchitecturesArgs),
    /// List the languages that are recognised in answers, and those with built-in prompts
    Languages(languages::LanguagesArgs),
    /// Merge the bundled trio of real models and say what came of it
    Demo(demo::DemoArgs),
    /// Render chat templates for the command that started this one
    #[command(name = template_process::COMMAND, hide = true)]
    RenderTemplates(template_process::ServeArgs),
    /// Run llama.cpp for the command that started this one
    #[command(name = engine_arg::COMMAND, hide = true)]
    RunLlamaCpp,
}

/// Parses the arguments, runs the command and turns its result into an exit code.
pub fn main() -> ExitCode {
    signals::look_after();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are a success and go to standard output; clap knows which is which.
        Err(e) if !e.use_stderr() => {
            let _ = e.print();
            return Exit::Success.into();
        }
        Err(e) => {
            refuse(&e);
            return Exit::Usage.into();
        }
    };
    if let Command::RenderTemplates(args) = &cli.command {
        return template_process::serve(args).into();
    }
    if let Command::RunLlamaCpp = &cli.command {
        return engine_arg::serve().into();
    }
    let global = &cli.global;
    if let Some(level) = global.simd {
        quants::limit_level(level);
    }
    let result = match &cli.command {
        Command::Inspect(args) => inspect::run(args, global),
        Command::Merge(args) => merge::run(args, global),
        Command::Extract(args) => extract::run(args, global),
        Command::Apply(args) => apply::run(args, global),
        Command::Verify(args) => verify::run(args, global),
        Command::Quantize(args) => quantize::run(args, global),
        Command::Smoke(args) => smoke::run(args, global),
        Command::Sweep(args) => sweep::run(args, global),
        Command::Chat(args) => chat::run(args, global),
        Command::Compare(args) => compare::run(args, global),
        Command::Imatrix(args) => imatrix::run(args, global),
        Command::Architectures(args) => architectures::run(args, global),
        Command::Languages(args) => languages::run(args, global),
        Command::Demo(args) => demo::run(args, global),
        Command::RenderTemplates(args) => Ok(template_process::serve(args)),
        Command::RunLlamaCpp => Ok(engine_arg::serve()),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(e) => {
            output::complain("error", &format!("{e:#}"));
            Exit::of(&e).into()
        }
    }
}

/// Says what is wrong with the arguments. They are repeated in that: if one cannot be shown as it
/// is, as they are shown.
fn refuse(error: &clap::Error) {
    let shown = |arg: std::ffi::OsString| printable(&arg.to_string_lossy());
    let again = Cli::try_parse_from(std::env::args_os().map(shown)).err().filter(|again| again.kind() == error.kind());
    match again {
        Some(again) => output::complain_in_lines(&again.to_string()),
        None => output::complain("error", &error.to_string()),
    }
}

impl Global {
    /// What a file may cost that is opened.
    fn limits(&self) -> crate::gguf::Limits {
        crate::gguf::Limits::within(self.memory.as_u64())
    }

    /// The same for a user who goes on whatever work a file claims.
    fn limits_if(&self, is_forced: bool) -> crate::gguf::Limits {
        let limits = self.limits();
        let max_work_per_byte = if is_forced { u64::MAX } else { limits.max_work_per_byte };
        crate::gguf::Limits { max_work_per_byte, ..limits }
    }

    fn budget(&self) -> crate::pipeline::Budget {
        let default = crate::pipeline::Budget::default();
        let threads = self.threads.map_or(default.threads, usize::from);
        crate::pipeline::Budget { memory: self.memory.as_u64(), threads }
    }
}
