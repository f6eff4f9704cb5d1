//! `chatvec sweep --base B --chat C --model M`: which ratio?

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::Args;

use super::asking_args::AskingArgs;
use super::imatrix_args::ImatrixArgs;
use super::loss_args::{LOSS_HEADING, LossArgs};
use super::output_args::WriteArgs;
use super::progress::{Asked, Progress};
use super::recipe_args::{self, RecipeArgs, presets};
use super::recipe_files::RecipeFiles;
use super::template_process::{self, TemplateArgs};
use super::types::TypeArgs;
use super::{Exit, Global, Usage, compare, merging, output};
use crate::job::{Merge, References, Settings, Sweep, Tried, Way, recommend};
use crate::plan::{Preset, RecipeFile};
use crate::report;
use crate::vector::Method;

/// Ways that are tried at most: each is a merge, and a conversation for each prompt.
const MOST_WAYS: usize = 100;

#[derive(Args, Debug)]
#[command(after_help = presets())]
pub(super) struct SweepArgs {
    #[command(flatten)]
    files: RecipeFiles,
    /// The ratios to try, such as 0.5,1 or 0.25:1.5:0.25 (from, to, step); each multiplies the
    /// ratio of every vector
    #[arg(long, value_name = "LIST", default_value = "0.25:1.5:0.25", allow_hyphen_values = true, value_parser = ratios)]
    ratios: Ratios,
    /// Presets to try each ratio with, such as none,keep-language-ends [default: none, and where no
    /// ratio passes also skip-embeddings and keep-language-ends]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = preset)]
    presets: Option<Vec<String>>,
    /// A text (UTF-8) of which KL divergences are taken, 2048 tokens at most [default: the prompts]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Write the merge that is recommended
    #[arg(long, value_name = "OUT")]
    write: Option<PathBuf>,
    #[command(flatten)]
    output: WriteArgs,
    /// Go on although the inputs look wrong
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    types: TypeArgs,
    #[command(flatten)]
    how: RecipeArgs,
    #[command(flatten, next_help_heading = LOSS_HEADING)]
    loss: LossArgs,
    #[command(flatten)]
    imatrix: ImatrixArgs,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten, next_help_heading = "Asking")]
    asking: AskingArgs,
}

/// Ratios in the order given.
#[derive(Clone, PartialEq, Debug)]
struct Ratios(Vec<f64>);

/// Reads `A,B,C`, of which each may be `FROM:TO:STEP`.
fn ratios(text: &str) -> Result<Ratios, String> {
    let number = |text: &str| {
        let value = text.trim().parse::<f64>().ok().filter(|v| v.is_finite());
        value.ok_or_else(|| format!("{text:?} is no number"))
    };
    let mut all = Vec::new();
    for part in text.split(',') {
        match part.split(':').collect::<Vec<_>>()[..] {
            [one] => all.push(number(one)?),
            [from, to, step] => {
                let (from, to, step) = (number(from)?, number(to)?, number(step)?);
                let steps = (to - from) / step;
                if !(0.0..MOST_WAYS as f64).contains(&steps) {
                    return Err(format!("{part:?}: expected FROM:TO:STEP of at most {MOST_WAYS} ratios"));
                }
                // A step of 0.1 is no binary fraction: the last ratio is the end itself.
                let n = (steps + 1e-9) as usize;
                let round = |x: f64| (x * 1e9).round() / 1e9;
                all.extend((0..=n).map(|i| round(from + i as f64 * step)));
            }
            _ => return Err(format!("{part:?}: expected a number or FROM:TO:STEP")),
        }
    }
    let mut once = Vec::new();
    all.into_iter().for_each(|ratio| {
        if !once.contains(&ratio) {
            once.push(ratio);
        }
    });
    Ok(Ratios(once))
}

fn preset(name: &str) -> Result<String, String> {
    if name != "none" {
        Preset::named(name).map_err(|e| e.to_string())?;
    }
    Ok(name.to_owned())
}

/// What is tried where no ratio passes by itself: these keep the rows and layers that are nearest to
/// the language.
const WAYS_OUT: [&str; 2] = ["skip-embeddings", "keep-language-ends"];

/// Each ratio with each of these presets.
fn ways<S: AsRef<str>>(ratios: &Ratios, presets: &[S]) -> Vec<Way> {
    let presets = presets.iter().map(|name| match name.as_ref() {
        "none" => Vec::new(),
        name => vec![name.to_owned()],
    });
    let way = |presets: Vec<String>| ratios.0.iter().map(move |ratio| Way { ratio: *ratio, presets: presets.clone() });
    presets.flat_map(way).collect()
}

/// The recipe of one way.
fn recipe_of(file: &RecipeFile, way: &Way) -> RecipeFile {
    let mut file = file.clone();
    file.vectors.iter_mut().for_each(|vector| vector.ratio = vector.ratio.times(way.ratio));
    file.preset.extend(way.presets.iter().cloned());
    file
}

/// What all ways have in common.
struct Common<'a> {
    args: &'a SweepArgs,
    file: RecipeFile,
    /// Without presets, which each way adds to.
    how: RecipeArgs,
    settings: Settings,
    global: &'a Global,
}

impl Common<'_> {
    fn prepare(&self, way: &Way) -> Result<recipe_args::Prepared> {
        let SweepArgs { loss, types, imatrix, force, template, .. } = self.args;
        let file = recipe_of(&self.file, way);
        let mut prepared = recipe_args::prepare(file, &self.how, loss, types, imatrix, *force, self.global)?;
        prepared.inputs = prepared.inputs.with_templates(template.templates());
        Ok(prepared)
    }
}

pub(super) fn run(args: &SweepArgs, global: &Global) -> Result<Exit> {
    let ways = match &args.presets {
        Some(presets) => ways(&args.ratios, presets),
        None => ways(&args.ratios, &["none"]),
    };
    if ways.len() > MOST_WAYS {
        return Err(Usage(format!("{} ways are too many; try at most {MOST_WAYS}", ways.len())).into());
    }
    let mut file = args.files.file(&args.how, global)?;
    let mut how = args.how.clone();
    how.move_presets(&mut file);
    if args.how.method().unwrap_or(file.method) == Method::Linear {
        let text = "linear averages models, and its ratios are shares: there is no ratio to look for";
        return Err(Usage(text.to_owned()).into());
    }
    let text = args.text.as_deref().map(|path| compare::read_text(path).with_context(|| path.display().to_string()));
    let settings = Settings {
        write: args.output.options(),
        limits: global.limits(),
        is_forced: args.force,
        ..Settings::new(global.budget())
    };
    let sweep = Sweep::new(args.asking.read()?, text.transpose()?);
    let common = Common { args, file, how, settings, global };
    let (references, model) = begin(&common, &sweep, &ways)?;
    let try_all = |ways: &[Way]| -> Result<Vec<Tried>> {
        ways.iter().map(|way| try_way(&common, &sweep, way, &references)).collect()
    };
    let mut tried = try_all(&ways)?;
    if args.presets.is_none() && !tried.iter().any(Tried::is_accepted) {
        output::complain("note", &format!("no ratio passes by itself; now with {}", WAYS_OUT.join(" and ")));
        tried.extend(try_all(&self::ways(&args.ratios, &WAYS_OUT))?);
    }
    let choice = recommend(&tried);
    let report = report::Sweep { model, tried: &tried, choice, notes: notes(&references) };
    output::print(&report, global)?;
    let accepted = choice.map(|choice| &tried[choice.chosen]).filter(|chosen| chosen.is_accepted());
    match (accepted, &args.write) {
        (Some(chosen), Some(path)) => write(&common, &chosen.way, path),
        (Some(_), None) => Ok(Exit::Success),
        (None, path) => {
            if path.is_some() {
                output::complain("warning", "no way passes, so nothing is written");
            }
            Ok(Exit::NoChat)
        }
    }
}

/// Says what it will take, and asks model and chat.
fn begin(common: &Common<'_>, sweep: &Sweep, ways: &[Way]) -> Result<(References, String)> {
    let first = common.prepare(ways.first().context("there is no way to try")?)?;
    let (prepared, settings) = (Merge::new(&first.inputs, &first.recipe), &common.settings);
    if let Some(path) = &common.args.write {
        // A long run must not end for a reason that was there before it.
        prepared.prepare(path, settings)?;
    }
    let prepared = prepared.prepare_in_memory(settings)?;
    merging::tell(prepared.cautions());
    if let Some(refusal) = prepared.refusal() {
        return Err(refusal.into());
    }
    let model = first.inputs.source(first.inputs.skeleton());
    sweep.questions.check(model, settings.budget.memory)?;
    let (held, memory) = (bytesize::ByteSize::b(prepared.n_bytes()), bytesize::ByteSize::b(settings.budget.memory));
    let n = ways.len();
    let n_prompts = sweep.questions.n_prompts(model.metadata());
    output::complain(
        "note",
        &format!(
            "{n} {} to merge, {n_prompts} prompts each; a merged model is held in memory at a time: {} beside the {} of \
             --memory",
            if n == 1 { "way" } else { "ways" },
            held.display().iec(),
            memory.display().iec(),
        ),
    );
    template_process::rest();
    let asked = Asked::new("models of the text", 2);
    let references = sweep.references(&first.inputs, settings, &|| asked.go_on(0))?;
    Ok((references, report::shown(model.path())))
}

fn try_way(common: &Common<'_>, sweep: &Sweep, way: &Way, references: &References) -> Result<Tried> {
    let recipe_args::Prepared { inputs, recipe } = common.prepare(way)?;
    let model = inputs.source(inputs.skeleton());
    let n_bytes = model.tensors().map(|t| t.size()).sum();
    let progress = Progress::before(n_bytes);
    let is_merged = AtomicBool::new(false);
    let asked = Asked::new(&format!("prompts at {}", report::way(way)), sweep.questions.n_prompts(model.metadata()));
    let go_on = |n: usize| {
        if !is_merged.swap(true, Ordering::Relaxed) {
            progress.hide();
        }
        asked.go_on(n)
    };
    Ok(sweep.try_way(way.clone(), (&inputs, &recipe), references, &common.settings, &progress, &go_on)?)
}

/// Why a column of KL divergences is empty.
fn notes(references: &References) -> Vec<String> {
    let model = references.model.as_ref().err().map(|e| format!("no KL divergence: {e}"));
    let chat = match &references.chat {
        None => Some("no KL divergence from the chat model: a patch stands for it".to_owned()),
        Some(Err(e)) => Some(format!("no KL divergence from the chat model: {e}")),
        Some(Ok(_)) => None,
    };
    model.into_iter().chain(chat).collect()
}

/// Writes one way.
fn write(common: &Common<'_>, way: &Way, path: &Path) -> Result<Exit> {
    let recipe_args::Prepared { inputs, recipe } = common.prepare(way)?;
    let prepared = Merge::new(&inputs, &recipe).prepare(path, &common.settings)?;
    let published = merging::publish(prepared, None, &anyhow::Error::new)?;
    let exit = merging::say(&published);
    output::complain("note", &format!("written: {} ({})", published.file().path.display(), report::way(way)));
    Ok(exit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_lists_and_ranges() {
        let of = |text: &str| ratios(text).map(|r| r.0);
        assert_eq!(of("0.5,1"), Ok(vec![0.5, 1.0]));
        assert_eq!(of("0:0.3:0.1,1,0.2"), Ok(vec![0.0, 0.1, 0.2, 0.3, 1.0]));
        assert_eq!(of("1:0.5:-0.25"), Ok(vec![1.0, 0.75, 0.5]));
        assert_eq!(of("-0.5"), Ok(vec![-0.5]));
        for text in ["", "a", "1:2", "1:2:0", "1:2:-1", "0:1:0.001", "nan", "1:inf:1", "1,,2"] {
            assert!(of(text).is_err(), "{text}");
        }
    }
}
