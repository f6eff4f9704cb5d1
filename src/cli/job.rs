//! What merge, extract and apply have in common: check, plan, survey, then write or tell.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;

use super::lora_args::Beside;
use super::progress::Progress;
use super::smoke::{AskingArgs, Questions, Talk};
use super::{Exit, Global, output, template_process};
use crate::chat::Tokenizer;
use crate::ggml::GgmlType;
use crate::gguf::{self, WriteOptions};
use crate::patch::extract::{self, Target};
use crate::patch::{self, Extraction, lora};
use crate::pipeline::{self, Measured, Mended, Written};
use crate::plan::{self, Change, Loss, MergePlan, OnLoss, OutputType, Recipe, TensorPlan, Verdict, Warning};
use crate::report;
use crate::survey::{self, Estimate, Look, SampleSettings, Survey, Trial};
use crate::vector::{self, Encoding, Inputs, Moments, Pair, Rounding, whole_name};

/// Below this share of the vector an output is not called a success.
const LEAST_SURVIVAL: f64 = 0.9;

/// Below this share a decomposition holds so little that it is not called a success. What it leaves
/// out are directions: at a gain of .85 the bundled trio's merge still chats (docs/PATCH.md).
const LEAST_DECOMPOSED: f64 = 0.5;

/// Below this cosine with the true vector, half of what is added is rounding error of base and
/// chat.
const LEAST_COSINE: f64 = 0.7;

/// Behind the name of an output that was asked and does not chat.
pub(super) const REJECTED: &str = ".rejected";

/// Types that a dry run forecasts besides the plan's own.
static FORECAST: [&str; 7] = ["F16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K"];

/// The name of a type, and the types that the output's tensors would have.
type TypesAs = (&'static str, Vec<GgmlType>);

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

/// What the survey found, and the user did not go past.
#[derive(Debug)]
pub(super) struct Refused {
    reasons: Vec<String>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; nothing is written (--force goes on all the same)", self.reasons.join("; "))
    }
}

impl std::error::Error for Refused {}

/// What rounding would take, where it must not.
#[derive(Debug)]
pub(super) struct Lost {
    lost: Vec<Loss>,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rounding would take the vector from {}; nothing is written", listed(&self.lost))
    }
}

impl std::error::Error for Lost {}

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

/// The tensors, as far as they can be read at a glance.
fn listed(lost: &[Loss]) -> String {
    let (named, more) = lost.split_at(lost.len().min(LISTED));
    let mut words: Vec<String> = named.iter().map(ToString::to_string).collect();
    words.extend((!more.is_empty()).then(|| format!("{} more", more.len())));
    words.join(", ")
}

/// A run that writes one file.
pub(super) struct Job<'a> {
    pub(super) inputs: Inputs,
    pub(super) output: &'a OutputArgs,
    pub(super) global: &'a Global,
    /// What is wanted of a model; none if the output is a patch.
    pub(super) recipe: Option<&'a Recipe>,
    /// Makes the plan once the inputs are known to be siblings.
    pub(super) plan: &'a dyn Fn(&Inputs, Vec<Pair>) -> Result<MergePlan>,
    /// What the output is asked before it takes its name.
    pub(super) smoke: Option<&'a SmokeTest>,
    /// How large a patch may be whose matrices are decomposed; none if every tensor has the plan's
    /// type.
    pub(super) target: Option<Target>,
    /// The adapter that is written beside it, or alone.
    pub(super) beside: Option<Beside<'a>>,
}

/// Asking an output before it takes its name.
#[derive(Args, Clone, Debug)]
#[command(mut_group("AskingArgs", |asking| asking.requires("smoke")))]
pub(super) struct SmokeTest {
    /// Ask the output some prompts before it takes its name; if a check of the answers fails, it is
    /// kept as OUTPUT.rejected
    #[arg(long, conflicts_with = "no_template")]
    smoke: bool,
    /// With --smoke: give the output its name although a check failed
    #[arg(long, requires = "smoke")]
    keep: bool,
    #[command(flatten, next_help_heading = "Asking, with --smoke")]
    asking: AskingArgs,
}

impl Job<'_> {
    /// Runs it and prints what came of it.
    pub(super) fn run(self) -> Result<Exit> {
        let Job { inputs, output, global, recipe, .. } = &self;
        let is_patch = recipe.is_none();
        let budget = global.budget();
        let started = Instant::now();
        let (mut plan, survey, others) = self.look(if output.dry_run { &FORECAST } else { &[] })?;
        template_process::rest();
        let expected = recipe.map(|recipe| recipe.loss.judge_expected(&plan, &survey)).unwrap_or_default();
        let is_forbidden = expected.is_rejected && recipe.is_some_and(|recipe| recipe.loss.on_loss == OnLoss::Fail);
        let reasons: Vec<String> = survey.findings.iter().filter(|f| f.is_refusal()).map(ToString::to_string).collect();
        if output.force {
            plan.warnings.extend(reasons.iter().cloned().map(|finding| Warning::Forced { finding }));
        }
        for warning in &plan.warnings {
            output::complain(if warning.is_note() { "note" } else { "warning" }, &warning.to_string());
        }
        for finding in survey.findings.iter().filter(|f| !f.is_refusal()) {
            output::complain("warning", &finding.to_string());
        }
        let survival = report::Plan::expected(&plan, &survey).survival;
        let least = recipe.map_or(LEAST_SURVIVAL, |recipe| recipe.loss.min_survival);
        if let Some(survival) = survival.filter(|s| *s < least && self.target.is_none()) {
            let text = format!("rounding is expected to leave only {:.0} % of the vector", survival * 100.0);
            output::complain("warning", &text);
        }
        if !expected.lost.is_empty() && !is_forbidden {
            let text = format!("rounding is expected to take the vector from {}", listed(&expected.lost));
            output::complain("warning", &text);
        }
        if let Some(cosine) = survey.cosine.filter(|c| *c < LEAST_COSINE) {
            let text = format!(
                "the vector read from these files is about {:.0} % rounding error (cosine {cosine:.2}): take base and chat \
                 as F16 or Q8_0 where you can",
                (1.0 - cosine * cosine) * 100.0
            );
            output::complain("warning", &text);
        }
        let questions = self.questions(&plan).context("--smoke")?;
        let is_refused = !reasons.is_empty() && !output.force;

        if output.dry_run {
            self.tell(&plan, &survey, &others)?;
        }
        if is_refused {
            return Err(Refused { reasons }.into());
        }
        if is_forbidden {
            return Err(Lost { lost: expected.lost }.into());
        }
        if output.dry_run {
            if let Some((questions, _)) = &questions {
                let n = questions.n_prompts();
                output::complain("note", &format!("a dry run asks nothing; the output would be asked {n} prompts"));
            }
            return Ok(Exit::Success);
        }
        if self.target.is_none() {
            output::complain("note", &report::Plan::expectation(&plan, &survey, is_patch));
        }
        if plan.n_passes() > 1 {
            let n = plan.n_passes() - 1;
            output::complain("note", &format!("the vectors are read up to {n} times before the first byte is written"));
        }

        let progress = match self.decomposed(&plan)? {
            Some(forecast) => Progress::before(forecast.observed),
            None => Progress::new(plan.tensors().iter().map(|t| t.size()).sum()),
        };
        let Some(path) = &output.output else {
            let measured = pipeline::measure(&plan, inputs, &progress, &budget)?;
            drop(progress);
            let Some(written) = self.write_beside(&plan, &measured, None)? else { return Ok(Exit::Success) };
            output::print(&report::Lora { written: &written, is_residual: false }, global)?;
            return Ok(Exit::Success);
        };
        let options = output.write.options();
        let (file, measured, mended) = match (self.target, recipe) {
            (None, Some(recipe)) => {
                let rule = (&recipe.output, &recipe.loss);
                let Mended { file, plan: mended, measured, changes } =
                    pipeline::write_mending(plan, inputs, rule, path, &options, &progress, &budget)?;
                plan = mended;
                (file, measured, changes)
            }
            (None, None) => {
                let (file, measured) = pipeline::write_unnamed(&plan, inputs, path, &options, &progress, &budget)?;
                (file, measured, Vec::new())
            }
            (Some(target), _) => {
                let (file, measured) =
                    extract::write_unnamed(&plan, inputs, target, path, &options, &progress, &budget)?;
                (file, measured, Vec::new())
            }
        };
        let took = started.elapsed();
        progress.hide();
        tell_mended(&plan, &mended);
        let by_name = measured.tensors.iter().map(|t| (t.name.as_str(), t.moments));
        let verdict = recipe.map(|recipe| recipe.loss.judge_measured(&plan, by_name)).unwrap_or_default();
        let is_lost = verdict.is_rejected && recipe.is_some_and(|recipe| recipe.loss.on_loss != OnLoss::Warn);
        // Nothing that it might say would give it its name.
        let questions = questions.filter(|_| !is_lost);
        let (talk, is_kept) = match questions {
            None => (None, !is_lost),
            Some((questions, keep)) => match self.ask(questions, &file) {
                Ok(talk) => {
                    let is_kept = keep || talk.exit() == Exit::Success;
                    (Some(talk), is_kept)
                }
                Err(e) if Exit::of(&e) == Exit::Interrupted => return Err(pipeline::Error::Cancelled.into()),
                // Hours of work may be in it, and nothing is known against it.
                Err(e) => {
                    let kept = file.publish_with_suffix(REJECTED)?;
                    let path = kept.path.display();
                    return Err(e.context(format!("the output could not be asked; it is kept as {path}")));
                }
            },
        };
        let file = if is_kept { file.publish() } else { file.publish_with_suffix(REJECTED) }?;
        drop(progress);
        let written = Written { file, measured };
        let exit = match is_patch {
            // What a decomposition leaves out is chosen to matter least: the user sees how much it
            // is.
            _ if self.target.is_some() && written.measured.total.delta2 > 0.0 => {
                judge_decomposed(&written.measured, matches!(self.target, Some(Target::Rank(_))))
            }
            true => judge(&written.measured.total, true),
            false => self.say(&written, &verdict, is_lost),
        };
        let findings = &survey.findings[..];
        let smoke = talk.as_ref().map(|talk| talk.report(&written.file.path, false));
        let lora = self.write_beside(&plan, &written.measured, Some((&written.file.path, !is_kept)))?;
        let lora = lora.as_ref().map(|written| report::Lora { written, is_residual: !is_patch });
        let stored = match is_patch {
            true => patch::summary(&patch::open_stored(&written.file.path, &global.limits())?),
            false => Vec::new(),
        };
        let (plan, written, stored, mended) = (&plan, &written, &stored[..], &mended[..]);
        let run = report::Run { plan, written, findings, verdict, mended, is_patch, stored, took, smoke, lora };
        output::print(&run, global)?;
        if !is_kept && !is_lost {
            let text = format!("the output does not chat; it is kept as {}", written.file.path.display());
            output::complain("warning", &text);
        }
        Ok(talk.map(|talk| talk.exit()).filter(|exit| *exit != Exit::Success).unwrap_or(exit))
    }

    fn write_beside(
        &self,
        plan: &MergePlan,
        measured: &Measured,
        output: Option<(&Path, bool)>,
    ) -> Result<Option<lora::Written>> {
        let Some(beside) = self.beside else { return Ok(None) };
        let plan = self.adapter_plan(plan)?;
        let written = beside.write((&plan, &self.inputs), measured, output, &self.output.write, self.global)?;
        Ok(Some(written))
    }

    /// The plan that an adapter is made by: that of an output, or of a patch from which nothing is
    /// left out.
    fn adapter_plan<'a>(&self, plan: &'a MergePlan) -> Result<Cow<'a, MergePlan>> {
        if self.recipe.is_some() {
            return Ok(Cow::Borrowed(plan));
        }
        let extraction = Extraction { encoding: GgmlType::F32, looks: false };
        Ok(Cow::Owned(patch::plan_extract(
            &self.inputs,
            vector::pair(&self.inputs)?,
            &extraction,
            &self.global.budget(),
        )?))
    }

    /// The exit for what a model lost, said in plain words.
    fn say(&self, written: &Written, verdict: &Verdict, is_lost: bool) -> Exit {
        if written.measured.total.delta2 == 0.0 {
            output::complain("warning", "the vector is zero: nothing was added to any weight");
        }
        if verdict.lost.is_empty() {
            return Exit::Success;
        }
        let text = format!("rounding took the vector from {}", listed(&verdict.lost));
        if !verdict.is_rejected {
            let missing = verdict.missing * 100.0;
            let text = format!("{text}; the output misses {missing:.1} % by that, which is within --min-survival");
            output::complain("warning", &text);
            return Exit::Success;
        }
        if !is_lost {
            output::complain("warning", &text);
            return Exit::Success;
        }
        let path = written.file.path.display();
        let advice = "give --on-loss promote, or a finer --type, or start from the model as F16 or Q8_0";
        output::complain("warning", &format!("{text}; the output is kept as {path}: {advice}"));
        Exit::Lost
    }

    /// What is asked, and whether the output is kept whatever it answers. That it can be asked at
    /// all is found out before anything is written.
    fn questions(&self, plan: &MergePlan) -> Result<Option<(Questions, bool)>> {
        let Some(smoke) = self.smoke.filter(|smoke| smoke.smoke) else { return Ok(None) };
        let metadata = plan.header().metadata();
        let questions = smoke.asking.read(metadata)?;
        // The output has the tensors of the model that is added to, in types that can be computed
        // with.
        questions.check(self.inputs.source(self.inputs.template()), self.global)?;
        Tokenizer::from_metadata(metadata)?;
        Ok(Some((questions, smoke.keep)))
    }

    fn ask(&self, questions: Questions, file: &gguf::Complete) -> Result<Talk> {
        let model = gguf::Model::open(file.path(), &self.global.limits())?;
        questions.ask(&model, self.global).context("--smoke")
    }

    /// Everything that can be known without writing. The survey also tries the types that `others`
    /// would give, pure.
    fn look(&self, others: &'static [&'static str]) -> Result<(MergePlan, Survey, Vec<TypesAs>)> {
        let inputs = &self.inputs;
        let mut warnings = plan::check(inputs)?;
        let pairs = vector::pair(inputs)?;
        let mut plan = (self.plan)(inputs, pairs.clone())?;
        warnings.append(&mut plan.warnings);
        plan.warnings = warnings;

        // A long run must not end for a reason that was there before it.
        let budget = self.global.budget();
        let threads = match self.decomposed(&plan)? {
            Some(forecast) => forecast.threads,
            None => budget.needed(&plan, inputs)?.1,
        };
        match self.check_place(&plan) {
            Err(e) if self.output.dry_run => output::complain("warning", &format!("{e:#}")),
            checked => checked?,
        }
        if let Some(beside) = &self.beside {
            beside.check(
                &*self.adapter_plan(&plan)?,
                inputs,
                (self.output.output.as_deref(), self.may_be_rejected()),
                &self.output.write,
                &budget,
            )?;
        }

        let mut types: Vec<GgmlType> = plan.tensors().iter().map(|t| t.ty).collect();
        let types_as = |name| plan.types_as(inputs, &OutputType::parse(name, true)?);
        let others = others.iter().map(|name| Ok((*name, types_as(name)?))).collect::<Result<Vec<_>, plan::Error>>()?;
        types.extend(others.iter().flat_map(|(_, types)| types));
        types.sort();
        types.dedup();
        let matrix = inputs.importance().map_or(0, |matrix| matrix.n_bytes());
        let memory = budget.memory.saturating_sub(matrix);
        let settings = SampleSettings { types, threads, memory, ..SampleSettings::default() };
        // What the recipe leaves out is not looked at: its types may be unreadable, and its size
        // says nothing.
        let taken = pairs.into_iter().zip(plan.tensors()).filter(|(_, tensor)| tensor.kept.is_none());
        let pairs: Vec<Pair> = taken
            .map(|(pair, planned)| Pair {
                terms: planned.terms.clone(),
                combination: planned.combination.clone(),
                except: planned.taken_rows(),
                ..pair
            })
            .collect();
        let survey = survey::survey(inputs, &pairs, &settings)?;
        match self.recipe {
            Some(recipe) => {
                let (plan, survey) = self.protect(recipe, plan, survey, &pairs, &settings)?;
                Ok((plan, survey, others))
            }
            None => {
                let survey = self.try_unit_gain(&plan, survey, &pairs, &settings)?;
                Ok((plan, survey, others))
            }
        }
    }

    /// The survey with what is expected of tensors that are not encoded as ggml does it.
    fn try_unit_gain(
        &self,
        plan: &MergePlan,
        mut survey: Survey,
        pairs: &[Pair],
        settings: &SampleSettings,
    ) -> Result<Survey> {
        let encoding = |t: &TensorPlan| Encoding { ty: t.ty, rounding: t.rounding };
        let planned: HashMap<&str, Encoding> =
            plan.tensors().iter().map(|t| (whole_name(&t.name), encoding(t))).collect();
        let of_pair = |pair: &Pair| Some((pair.clone(), vec![*planned.get(pair.name.as_str())?]));
        let is_tried = |(_, encodings): &(Pair, Vec<Encoding>)| encodings[0].rounding == Rounding::UnitGain;
        let tried: Vec<_> = pairs.iter().filter_map(of_pair).filter(is_tried).collect();
        for trial in survey::try_encodings(&self.inputs, &tried, settings, |_| Look::Enough)? {
            let tensor = survey.tensors.iter_mut().find(|tensor| tensor.name == trial.name);
            if let (Some(tensor), Some((_, estimate))) = (tensor, trial.tried.first()) {
                tensor.chosen = Some(*estimate);
            }
        }
        Ok(survey)
    }

    /// What the recipe has done about tensors that the survey expects to be lost.
    fn protect(
        &self,
        recipe: &Recipe,
        plan: MergePlan,
        mut survey: Survey,
        pairs: &[Pair],
        settings: &SampleSettings,
    ) -> Result<(MergePlan, Survey)> {
        let at_risk = recipe.loss.at_risk(&plan, &survey);
        let remedies = recipe.loss.remedies(&plan, pairs, &at_risk);
        if remedies.is_empty() {
            return Ok((plan, survey));
        }
        let look = |estimate: &Estimate| recipe.loss.look(estimate);
        let trials = survey::try_encodings(&self.inputs, &remedies, settings, look)?;
        let plan = plan.protect(&recipe.output, &recipe.loss, &at_risk, &trials)?;
        let chosen = |trial: &Trial| Some((trial.name.clone(), recipe.loss.choose(trial)?.1));
        let mut chosen: HashMap<String, Estimate> = trials.iter().filter_map(chosen).collect();
        survey.tensors.iter_mut().for_each(|tensor| tensor.chosen = chosen.remove(&tensor.name));
        self.global.budget().needed(&plan, &self.inputs)?;
        self.check_place(&plan).or_else(|e| if self.output.dry_run { Ok(()) } else { Err(e) })?;
        Ok((plan, survey))
    }

    /// What decomposing matrices will take, if that is asked for.
    fn decomposed(&self, plan: &MergePlan) -> Result<Option<extract::Forecast>, extract::Error> {
        let forecast = |target| extract::forecast(plan, &self.inputs, target, &self.global.budget());
        self.target.map(forecast).transpose()
    }

    fn check_place(&self, plan: &MergePlan) -> Result<()> {
        let inputs = self.inputs.paths().map(Path::to_owned).collect();
        let mut options = WriteOptions { inputs, ..self.output.write.options() };
        if let (Some(forecast), Some(path)) = (self.decomposed(plan)?, &self.output.output) {
            // Its size is that asked for, not the plan's.
            options.check_name(path, 0)?;
            return Ok(forecast.check_disk(path)?);
        }
        let Some(path) = &self.output.output else { return Ok(()) };
        let targets = options.check(path, plan.header())?;
        if self.may_be_rejected() {
            // What is rejected replaces an earlier one, but never an input.
            options.overwrite = true;
            let mut rejected = if let [target] = &targets[..] { target.clone() } else { path.clone() };
            rejected.as_mut_os_string().push(REJECTED);
            options.check(&rejected, plan.header())?;
        }
        Ok(())
    }

    /// Whether what is measured or asked may keep the output from its name.
    fn may_be_rejected(&self) -> bool {
        self.recipe.is_some_and(|recipe| recipe.loss.on_loss != OnLoss::Warn)
            || self.smoke.is_some_and(|smoke| smoke.smoke)
    }

    /// Prints the plan.
    fn tell(&self, plan: &MergePlan, survey: &Survey, types: &[TypesAs]) -> Result<()> {
        let inputs = &self.inputs;
        let decomposed = self.decomposed(plan)?;
        let (memory, threads) = match &decomposed {
            Some(forecast) => (forecast.memory, forecast.threads),
            None => self.global.budget().needed(plan, inputs)?,
        };
        let path = self.output.output.as_deref().or(self.beside.map(|beside| beside.path)).unwrap_or(Path::new(""));
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let disk_free = fs4::available_space(folder).ok();
        let is_patch = self.recipe.is_none();
        // Decomposing takes many times as long as what can be rehearsed.
        let time = match decomposed {
            Some(_) => None,
            None => Some(pipeline::rehearse(plan, inputs, &(), &self.global.budget())?),
        };
        let decomposed = decomposed.as_ref();
        let report =
            report::Plan { inputs, plan, survey, types, is_patch, decomposed, memory, threads, disk_free, time };
        output::print(&report, self.global)
    }
}

/// The exit for a patch of a size that was asked for, or of a rank, whose user knows that it holds
/// some directions only.
fn judge_decomposed(measured: &Measured, is_rank: bool) -> Exit {
    let holds_little = |moments: &Moments| {
        let survival = moments.survival().is_some_and(|survival| survival < LEAST_DECOMPOSED);
        survival || moments.noise().is_some_and(|noise| noise >= 1.0)
    };
    let poor: Vec<&str> =
        measured.tensors.iter().filter(|t| holds_little(&t.moments)).map(|t| t.name.as_str()).collect();
    if let [first, ..] = poor[..] {
        let text = format!(
            "of {} tensors the patch holds less than half of the vector, or as much error, among them {first}: their directions are \
             all alike, or the size is too small; ask for more, or give --encoding",
            poor.len()
        );
        output::complain("warning", &text);
    }
    let is_lost = holds_little(&measured.total) && !is_rank;
    if is_lost { Exit::Lost } else { Exit::Success }
}

/// The exit for what was measured, with a plain sentence if it is no success.
pub(super) fn judge(total: &Moments, is_patch: bool) -> Exit {
    if total.delta2 == 0.0 {
        output::complain("warning", "the vector is zero: nothing was added to any weight");
    }
    let Some(survival) = total.survival().filter(|s| *s < LEAST_SURVIVAL) else { return Exit::Success };
    let (what, advice) = match is_patch {
        true => ("the patch holds", "choose a finer --encoding"),
        false => {
            ("the output holds", "write a finer --type than the model's own, or start from the model as F16 or Q8_0")
        }
    };
    let text = format!("{what} only {:.0} % of the vector, rounding took the rest: {advice}", survival * 100.0);
    output::complain("warning", &text);
    Exit::Lost
}
