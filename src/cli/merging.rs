//! What merge and apply have in common: look and tell, then write, ask, and tell what came of it.

use std::path::Path;

use anyhow::{Context, Result};

use super::asking_args::SmokeArgs;
use super::lora_args::{self, ResidualArgs};
use super::output_args::OutputArgs;
use super::progress::{Asked, Progress};
use super::template_process::TemplateArgs;
use super::{Exit, Global, output, smoke, template_process};
use crate::eval::Listener;
use crate::job::{self, Caution, Merge, Outcome, Prepared, Published, Settings};
use crate::pipeline;
use crate::plan::{self, Change, MergePlan, Recipe};
use crate::report;
use crate::vector::Inputs;

/// The options of a merge that are not its recipe.
pub(super) struct Options<'a> {
    pub(super) output: &'a OutputArgs,
    pub(super) smoke: &'a SmokeArgs,
    pub(super) residual: &'a ResidualArgs,
    pub(super) template: &'a TemplateArgs,
}

/// Runs a merge and prints what came of it.
pub(super) fn run(inputs: Inputs, recipe: &Recipe, options: &Options<'_>, global: &Global) -> Result<Exit> {
    let named = |e| lora_args::named(e, ResidualArgs::OPTION);
    let inputs = inputs.with_templates(options.template.templates());
    let settings = options.output.settings(global);
    let (smoke, residual) = (options.smoke.test()?, options.residual.file());
    let merge = Merge { smoke: smoke.as_ref(), residual: residual.as_ref(), ..Merge::new(&inputs, recipe) };
    let path = options.output.output.as_deref().context("-o FILE is missing")?;
    let prepared = merge.prepare(path, &settings).map_err(named)?;
    template_process::rest();
    tell(prepared.cautions());
    if options.output.is_dry_run() {
        return rehearse(&prepared, &inputs, path, &settings, global);
    }
    if let Some(refusal) = prepared.refusal() {
        return Err(refusal.into());
    }
    tell_expectation(prepared.plan(), prepared.survey(), false);
    let n_prompts = prepared.n_prompts();
    let published = publish(prepared, n_prompts, &named)?;
    let exit = say(&published);
    let adapter = published.residual().map_err(named)?;
    let lora = adapter.map(|adapter| lora_args::write(adapter, ResidualArgs::OPTION)).transpose()?;
    output::print(
        &report::Run {
            plan: &published.plan,
            written: &published.written,
            findings: &published.survey.findings,
            verdict: published.verdict.clone(),
            mended: &published.changes,
            is_patch: false,
            stored: &[],
            took: published.took,
            smoke: published.talk.as_ref().map(|talk| report::Smoke::new(talk, &published.file().path, false)),
            lora: lora.as_ref().map(|written| report::Lora { written, is_residual: true }),
        },
        global,
    )?;
    if published.outcome == Outcome::DoesNotChat && !published.is_kept {
        let text = format!("the output does not chat; it is kept as {}", published.file().path.display());
        output::complain("warning", &text);
    }
    Ok(exit)
}

/// Writes an output, asks it, if it is to be asked so many prompts, and gives it its name.
pub(super) fn publish<'a>(
    prepared: Prepared<'a>,
    n_prompts: Option<usize>,
    named: &dyn Fn(job::Error) -> anyhow::Error,
) -> Result<Published<'a>> {
    let progress = Progress::new(prepared.plan().tensors().iter().map(|t| t.size()).sum());
    let written = prepared.write(&progress).map_err(named)?;
    progress.hide();
    tell_mended(written.plan(), written.changes());
    let asked = n_prompts.map(|n| Asked::new("prompts", n));
    let nobody = |_: usize| true;
    let judged = written.judge(asked.as_ref().map_or(&nobody as &dyn Listener, |asked| asked)).map_err(named)?;
    drop(asked);
    judged.talk().into_iter().for_each(smoke::tell_context);
    Ok(judged.publish()?)
}

/// Prints what a run would do.
fn rehearse(
    prepared: &Prepared<'_>,
    inputs: &Inputs,
    path: &Path,
    settings: &Settings,
    global: &Global,
) -> Result<Exit> {
    let (plan, survey, types) = (prepared.plan(), prepared.survey(), prepared.types());
    let (memory, threads) = settings.budget.needed(plan, inputs)?;
    let time = Some(pipeline::rehearse(plan, inputs, &(), &settings.budget)?);
    let (disk_free, is_patch, decomposed) = (disk_free(path), false, None);
    let report = report::Plan { inputs, plan, survey, types, is_patch, decomposed, memory, threads, disk_free, time };
    output::print(&report, global)?;
    if let Some(refusal) = prepared.refusal() {
        return Err(refusal.into());
    }
    if let Some(n) = prepared.n_prompts() {
        output::complain("note", &format!("a dry run asks nothing; the output would be asked {n} prompts"));
    }
    Ok(Exit::Success)
}

/// Bytes that are free where a file would be.
pub(super) fn disk_free(path: &Path) -> Option<u64> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs4::available_space(folder).ok()
}

/// Says what a user should hear before a run.
pub(super) fn tell(cautions: &[Caution]) {
    for caution in cautions {
        output::complain(if caution.is_note() { "note" } else { "warning" }, &caution.to_string());
    }
}

/// Says what to expect of a run.
pub(super) fn tell_expectation(plan: &MergePlan, survey: &crate::survey::Survey, is_patch: bool) {
    output::complain("note", &report::Plan::expectation(plan, survey, is_patch));
    if plan.n_passes() > 1 {
        let n = plan.n_passes() - 1;
        output::complain("note", &format!("the vectors are read up to {n} times before the first byte is written"));
    }
}

/// How many tensors are named at most.
const LISTED: usize = 3;

/// Says what was encoded again.
fn tell_mended(plan: &MergePlan, changes: &[Change]) {
    if changes.is_empty() {
        return;
    }
    let of = |change: &Change| {
        let tensor = &plan.tensors()[change.tensor];
        let (before, now) = (change.survival_before * 100.0, change.survival * 100.0);
        format!("{} ({before:.1} % of the vector, now {now:.1} % as {})", tensor.name, report::encoding(tensor))
    };
    let (named, more) = changes.split_at(changes.len().min(LISTED));
    let mut words: Vec<String> = named.iter().map(of).collect();
    words.extend((!more.is_empty()).then(|| format!("{} more", more.len())));
    output::complain("note", &format!("encoded again, because a sample had promised more: {}", words.join(", ")));
}

/// The exit for what came of a merge. What rounding took is said in plain words.
pub(super) fn say(published: &Published<'_>) -> Exit {
    if published.written.measured.total.delta2 == 0.0 {
        output::complain("warning", "the vector is zero: nothing was added to any weight");
    }
    let verdict = &published.verdict;
    if !verdict.lost.is_empty() {
        let text = format!("rounding took the vector from {}", plan::listed(&verdict.lost));
        let text = if !verdict.is_rejected {
            let missing = verdict.missing * 100.0;
            format!("{text}; the output misses {missing:.1} % by that, which is within --min-survival")
        } else if published.outcome == Outcome::Lost {
            let path = published.file().path.display();
            let advice = "give --on-loss promote, or a finer --type, or start from the model as F16 or Q8_0";
            format!("{text}; the output is kept as {path}: {advice}")
        } else {
            text
        };
        output::complain("warning", &text);
    }
    match published.outcome {
        Outcome::Good => Exit::Success,
        Outcome::Lost => Exit::Lost,
        Outcome::DoesNotChat => Exit::NoChat,
    }
}
