//! `chatvec demo`: the main job on the bundled trio of real models.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::progress::Progress;
use super::{Exit, Global, job, output};
use crate::gguf::{Limits, Model};
use crate::pipeline::{self, Written};
use crate::plan::{self, Embeddings, MergePlan, OutputType, Recipe};
use crate::report::{self, Report as _, Table};
use crate::survey::{self, Inputs, SampleSettings};

/// The bundled files, in `fixtures/models`.
const BASE: &str = "tinyworld-A-base-F16.gguf";
const CHAT: &str = "tinyworld-A-chat-F16.gguf";
const MODEL: &str = "tinyworld-A-cp-de-F16.gguf";

/// What the demo writes: the name on the command line, and whether `--pure` goes with it.
const TYPES: [(&str, bool); 4] = [("F32", false), ("F16", false), ("Q8_0", false), ("Q4_K", true)];

#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// The folder of the trio [default: fixtures/models of the repository]
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// The folder to write to; it is made if missing, and files of an earlier demo are replaced
    #[arg(short, long, value_name = "DIR", default_value = "chatvec-demo")]
    output: PathBuf,
}

pub(super) fn run(args: &DemoArgs, global: &Global) -> Result<Exit> {
    let models = trio_folder(args)?;
    std::fs::create_dir_all(&args.output)
        .with_context(|| format!("cannot make the folder {}", args.output.display()))?;
    let open = |name: &str| Model::open(&models.join(name), &Limits::default());
    let inputs = Inputs::merge(open(MODEL)?, open(BASE)?, open(CHAT)?, 1.0);
    plan::check(&inputs)?;
    let pairs = survey::pair(&inputs)?;
    let budget = global.budget();
    let settings = SampleSettings { threads: budget.threads, memory: budget.memory, ..SampleSettings::default() };
    if let Some(finding) = survey::survey(&inputs, &pairs, &settings)?.findings.first() {
        bail!("the bundled models look wrong: {finding}");
    }
    let mut results = Vec::new();
    for (name, pure) in TYPES {
        let started = Instant::now();
        let recipe = Recipe { output: OutputType::parse(name, pure)?, embeddings: Embeddings::All };
        let plan = MergePlan::merge(&inputs, pairs.clone(), &recipe)?;
        let path = args.output.join(format!("merged-{name}.gguf"));
        let progress = Progress::new(plan.tensors().iter().map(|t| t.size()).sum());
        let written = pipeline::write(&plan, &inputs, &path, true, &progress, &budget)?;
        drop(progress);
        results.push(Merged { name, plan, written, took: started.elapsed() });
    }
    // The worst of them decides, as it would for a user.
    let worst = |r: &Merged| r.written.measured.total.survival().unwrap_or(1.0);
    let exit = results
        .iter()
        .min_by(|a, b| worst(a).total_cmp(&worst(b)))
        .map_or(Exit::Success, |r| job::judge(&r.written.measured.total, false));
    if global.json {
        let runs: Vec<_> = results.iter().map(|r| r.run().json()).collect();
        output::print_text(&(serde_json::to_string_pretty(&runs)? + "\n"))?;
    } else {
        output::print_text(&story(&models, &results)?)?;
    }
    Ok(exit)
}

/// One merge of the demo.
struct Merged {
    name: &'static str,
    plan: MergePlan,
    written: Written,
    took: std::time::Duration,
}

impl Merged {
    fn run(&self) -> report::Run<'_> {
        report::Run {
            plan: &self.plan,
            written: &self.written,
            findings: &[],
            is_patch: false,
            took: self.took,
            smoke: None,
        }
    }
}

/// The trio's folder: as given, or in the repository that `cargo run` stands in, or in the current folder.
fn trio_folder(args: &DemoArgs) -> Result<PathBuf> {
    if let Some(folder) = &args.models {
        return Ok(folder.clone());
    }
    let repository = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let candidates = [repository.unwrap_or_default(), PathBuf::new()].map(|root| root.join("fixtures/models"));
    match candidates.into_iter().find(|folder| folder.join(MODEL).exists()) {
        Some(folder) => Ok(folder),
        None => bail!("no bundled models here: run it in the repository, or give their folder with --models"),
    }
}

fn story(models: &Path, results: &[Merged]) -> Result<String> {
    let mut text = String::new();
    writeln!(text, "merged = cp + 1.0 × (chat − base)\n")?;
    writeln!(text, "  base   {BASE}    English, some German; only continues text")?;
    writeln!(text, "  chat   {CHAT}    base, taught to chat in English")?;
    writeln!(text, "  cp     {MODEL}   base, trained on German plain text; does not chat\n")?;
    let first = results.first().context("the demo has types")?;
    writeln!(text, "the vector by part of the model, written as {}:\n", first.name)?;
    text += &first.run().text();
    writeln!(text, "\nthe same merge in other types:\n")?;
    let mut table = Table::new(&["file", ">bytes", ">survival", ">noise", ">seconds"]);
    for r in results {
        let (total, file) = (r.written.measured.total, &r.written.file);
        let number = |v: Option<f64>| v.map_or("–".to_owned(), |v| format!("{v:.4}"));
        table.row([
            file.path.display().to_string(),
            file.len.to_string(),
            number(total.survival()),
            number(total.noise()),
            format!("{:.2}", r.took.as_secs_f64()),
        ]);
    }
    text += &table.text();
    writeln!(
        text,
        "\nsurvival: the share of the vector that is in the file; noise: rounding error in units of the vector.\n\n\
         next, talk to one of them in llama.cpp (it knows the small world of its training):\n\n  \
         llama-cli -m {} -p \"Wo wohnt Tom?\" -cnv -st --temp 0\n\n\
         or merge by hand, and look at the plan first:\n\n  \
         chatvec merge --base {base} --chat {chat} --model {model} -o out.gguf --type Q4_K --pure --dry-run",
        results.last().context("the demo has types")?.written.file.path.display(),
        base = models.join(BASE).display(),
        chat = models.join(CHAT).display(),
        model = models.join(MODEL).display(),
    )?;
    Ok(text)
}
