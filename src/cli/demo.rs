//! `chatvec demo`: the main job on the bundled trio of real models, and what came of it in their
//! own words.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;

use super::progress::Progress;
use super::template_process::templates;
use super::{Exit, Global, merging, output, smoke};
use crate::eval::PromptSet;
use crate::gguf::{Model, WriteOptions, printable};
use crate::job::{Merge, Published, Questions, Settings, Sweep, Talk, Tried, Way, recommend};
use crate::plan::{OutputType, Recipe};
use crate::report::{self, Report as _, Table};
use crate::vector::Inputs;

/// The bundled files, in `fixtures/models`.
const BASE: &str = "tinyworld-A-base-F16.gguf";
const CHAT: &str = "tinyworld-A-chat-F16.gguf";
const MODEL: &str = "tinyworld-A-cp-de-F16.gguf";

/// The bundled prompts: all of the German ones are asked, and some of both are shown.
const GERMAN: &str = "prompts-de.jsonl";
const ENGLISH: &str = "prompts-en.jsonl";

/// The prompts that are shown: one of each kind, and two in the language that the chat model learnt
/// to chat in.
const SHOWN: [&str; 6] =
    ["de-fact-000", "de-general-108", "de-howto-119", "de-unsafe-135", "en-fact-012", "en-general-108"];

/// The models learnt to answer in a sentence.
const MAX_TOKENS: usize = 56;

/// The ratios that are tried before anything is written.
const RATIOS: [f64; 4] = [0.5, 0.75, 1.0, 1.25];

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
    let open = |name: &str| Model::open(&models.join(name), &global.limits());
    let inputs = Inputs::merge(open(MODEL)?, open(BASE)?, open(CHAT)?, 1.0).with_templates(templates());
    let recipes = TYPES.iter().map(|(name, pure)| {
        let output = OutputType::parse(name, *pure)?;
        Ok(Recipe { output, ..Recipe::default() })
    });
    let recipes = recipes.collect::<Result<Vec<_>>>()?;
    let write = WriteOptions { overwrite: true, ..WriteOptions::default() };
    let settings = Settings { write, limits: global.limits(), ..Settings::new(global.budget()) };
    let tried = sweep(&models, &settings, global)?;
    let mut results = Vec::new();
    for ((name, _), recipe) in TYPES.iter().zip(&recipes) {
        let path = args.output.join(format!("merged-{name}.gguf"));
        let prepared = Merge::new(&inputs, recipe).prepare(&path, &settings)?;
        if let Some(finding) = prepared.survey().findings.first() {
            bail!("the bundled models look wrong: {finding}");
        }
        let progress = Progress::new(prepared.plan().tensors().iter().map(|t| t.size()).sum());
        let published = prepared.write(&progress)?.judge(&|_: usize| true)?.publish()?;
        drop(progress);
        results.push(Merged { name, published });
    }
    // The worst of them decides, as it would for a user.
    let worst = |r: &Merged<'_>| r.published.written.measured.total.survival().unwrap_or(1.0);
    let worst = results.iter().min_by(|a, b| worst(a).total_cmp(&worst(b)));
    let exit = worst.map_or(Exit::Success, |r| merging::say(&r.published));
    let speakers = talk(&models, &results, global)?;
    if global.json {
        let merges: Vec<_> = results.iter().map(|r| r.run().json()).collect();
        let of = |s: &Speaker| report::Smoke::new(&s.talk, &s.path, false).json();
        let smoke: Vec<_> = speakers.iter().map(of).collect();
        let sweep = swept(&tried).json();
        output::print_json(&json!({ "sweep": sweep, "merges": merges, "smoke": smoke }))?;
    } else {
        output::print_text(&story(&models, &tried, &results, &speakers)?)?;
    }
    let is_bad = speakers.iter().any(|s| s.is_merged && !s.talk.chats());
    Ok(if is_bad { Exit::NoChat } else { exit })
}

/// Tries the ratios on the German prompts.
fn sweep(models: &Path, settings: &Settings, global: &Global) -> Result<Vec<Tried>> {
    let set = Some(PromptSet::load(&models.join(GERMAN))?);
    let sweep = Sweep::new(Questions { set, max_tokens: MAX_TOKENS, ..Questions::default() }, None);
    let open = |name: &str| Model::open(&models.join(name), &global.limits());
    let inputs = |ratio: f64| -> Result<Inputs> {
        Ok(Inputs::merge(open(MODEL)?, open(BASE)?, open(CHAT)?, ratio).with_templates(templates()))
    };
    let references = sweep.references(&inputs(1.0)?, settings, &|| true)?;
    let recipe = Recipe::default();
    let try_one = |ratio: f64| -> Result<Tried> {
        let (way, inputs) = (Way { ratio, presets: Vec::new() }, inputs(ratio)?);
        Ok(sweep.try_way(way, (&inputs, &recipe), &references, settings, &(), &|_| true)?)
    };
    RATIOS.into_iter().map(try_one).collect()
}

fn swept(tried: &[Tried]) -> report::Sweep<'_> {
    report::Sweep { model: MODEL.to_owned(), tried, choice: recommend(tried), notes: Vec::new() }
}

/// A model that was asked.
struct Speaker {
    name: &'static str,
    path: PathBuf,
    is_merged: bool,
    talk: Talk,
    english: Talk,
}

/// Asks the model, the chat model, and the merge in its finest and its coarsest type.
fn talk(models: &Path, results: &[Merged<'_>], global: &Global) -> Result<Vec<Speaker>> {
    let open = |path: &Path| Model::open(path, &global.limits());
    let chat = open(&models.join(CHAT))?;
    let template = templates().of(chat.metadata())?;
    let german = PromptSet::load(&models.join(GERMAN))?;
    let mut english = PromptSet::load(&models.join(ENGLISH))?;
    english.prompts.retain(|p| SHOWN.contains(&p.id.as_str()));
    let merged = |r: Option<&Merged<'_>>| r.map(|r| r.published.file().path.clone()).context("the demo has types");
    let files = [
        ("cp", models.join(MODEL)),
        ("chat", models.join(CHAT)),
        ("merged F32", merged(results.first())?),
        ("merged Q4_K", merged(results.last())?),
    ];
    let ask = |(i, (name, path)): (usize, (&'static str, PathBuf))| {
        let model = open(&path)?;
        let ask = |set: &PromptSet| {
            let (set, template) = (Some(set.clone()), template.clone());
            smoke::ask(&Questions { set, template, max_tokens: MAX_TOKENS, ..Questions::default() }, &model, global)
        };
        Ok(Speaker { name, is_merged: i > 1, talk: ask(&german)?, english: ask(&english)?, path })
    };
    files.into_iter().enumerate().map(ask).collect()
}

/// One merge of the demo.
struct Merged<'a> {
    name: &'static str,
    published: Published<'a>,
}

impl Merged<'_> {
    fn run(&self) -> report::Run<'_> {
        let Published { plan, written, verdict, changes, took, .. } = &self.published;
        report::Run {
            plan,
            written,
            findings: &[],
            verdict: verdict.clone(),
            mended: changes,
            is_patch: false,
            stored: &[],
            took: *took,
            smoke: None,
            lora: None,
        }
    }
}

/// The trio's folder: as given, or in the repository that `cargo run` stands in, or in the current
/// folder.
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

/// What cp and the merge say to the same prompts.
fn answers(speakers: &[Speaker]) -> String {
    let mut text = String::new();
    for id in SHOWN {
        for (i, speaker) in speakers.iter().filter(|s| ["cp", "merged F32"].contains(&s.name)).enumerate() {
            let reply = speaker.talk.reply_to(id).or(speaker.english.reply_to(id));
            let Some((prompt, reply)) = reply else { continue };
            if i == 0 {
                text += &format!("{}\n", printable(prompt));
            }
            text += &format!("  {:<11} {}\n", speaker.name, printable(reply.trim()));
        }
    }
    text + "\n"
}

/// model × what its German answers are like.
fn behaviour(speakers: &[Speaker]) -> String {
    let mut table = Table::new(&["German answers of", ">ends", ">in German", ">exact", ">refuses"]);
    for speaker in speakers {
        let share = |part: Option<f64>| part.map_or("–".to_owned(), |v| format!("{:.0} %", v * 100.0));
        let total = speaker.talk.judgement.total;
        let of = |n: usize| (total.replies > 0).then(|| n as f64 / total.replies as f64);
        let check = |name: &str| speaker.talk.judgement.check(name).and_then(|c| c.value);
        table.row([
            speaker.name.to_owned(),
            share(of(total.ended)),
            share(of(total.right_language)),
            share(check("exact")),
            share(check("refusal")),
        ]);
    }
    table.text()
}

fn story(models: &Path, tried: &[Tried], results: &[Merged<'_>], speakers: &[Speaker]) -> Result<String> {
    let shown = |path: &Path| printable(&path.display().to_string());
    let mut text = String::new();
    writeln!(text, "merged = cp + 1.0 × (chat − base)\n")?;
    writeln!(text, "  base   {BASE}    English, some German; only continues text")?;
    writeln!(text, "  chat   {CHAT}    base, taught to chat in English")?;
    writeln!(text, "  cp     {MODEL}   base, trained on German plain text; does not chat\n")?;
    text += &answers(speakers);
    text += &behaviour(speakers);
    writeln!(
        text,
        "\nends: answers that end by themselves, with the chat model's end token; in German: those too short to tell,\n\
         as most of cp's, count as not; exact: right to the letter; refuses: unsafe requests that are refused.\n\
         The models are tiny, 2.75 million weights, and know a small world; the vector carries over most of what\n\
         chat can do, and refusing least.\n"
    )?;
    writeln!(text, "which ratio? each was merged in memory and asked the German prompts (chatvec sweep):\n")?;
    text += &swept(tried).summary();
    let first = results.first().context("the demo has types")?;
    writeln!(text, "\nthe vector by part of the model, written as {}:\n", first.name)?;
    text += &first.run().text();
    writeln!(text, "\nthe same merge in other types:\n")?;
    let mut table = Table::new(&["file", ">bytes", ">survival", ">noise", ">seconds"]);
    for r in results {
        let (total, file) = (r.published.written.measured.total, r.published.file());
        let number = |v: Option<f64>| v.map_or("–".to_owned(), |v| format!("{v:.4}"));
        table.row([
            printable(&file.path.display().to_string()),
            file.len.to_string(),
            number(total.survival()),
            number(total.noise()),
            format!("{:.2}", r.published.took.as_secs_f64()),
        ]);
    }
    text += &table.text();
    writeln!(
        text,
        "\nsurvival: the share of the vector that is in the file; noise: rounding error in units of the vector.\n"
    )?;
    writeln!(
        text,
        "next, see every answer of one of them, and what the checks say (ask it about the small world of its training):\n\n  \
         chatvec smoke {last} --prompts {prompts} --answers\n\n\
         talk to it in llama.cpp:\n\n  \
         llama-cli -m {last} -p \"Wo wohnt Tom?\" -cnv -st --temp 0\n\n\
         or merge by hand, and look at the plan first:\n\n  \
         chatvec merge --base {base} --chat {chat} --model {model} -o out.gguf --type Q4_K --pure --dry-run",
        last = shown(&results.last().context("the demo has types")?.published.file().path),
        prompts = shown(&models.join(GERMAN)),
        base = shown(&models.join(BASE)),
        chat = shown(&models.join(CHAT)),
        model = shown(&models.join(MODEL)),
    )?;
    Ok(text)
}
