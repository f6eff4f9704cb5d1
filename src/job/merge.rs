//! A merge: a model and what is added to it, be it differences of models or patches.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::adapter::{AdapterFile, ReadyAdapter};
use super::asking::{Questions, Talk};
use super::look::{self, Looked, TypesAs, cautions, expected, refusals, rounding_error};
use super::{Caution, Error, REJECTED, Settings, check_rejected};
use crate::chat::Tokenizer;
use crate::chat::dialect::{self, Engine, Finding};
use crate::eval::{self, Listener};
use crate::gguf::{Complete, Finished, MemoryWriter, Metadata, Model};
use crate::pipeline::{self, Measured, Mended, Observer};
use crate::plan::{self, Change, MergePlan, OnLoss, Recipe, SpecialTokens, Verdict, Warning};
use crate::survey::{self, Estimate, Survey, Trial};
use crate::vector::{self, Inputs, Pair};

/// A merge by a recipe, and what is done beside it.
#[derive(Clone, Copy, Debug)]
pub struct Merge<'a> {
    /// The model, and what is added to it.
    pub inputs: &'a Inputs,
    /// How.
    pub recipe: &'a Recipe,
    /// What the output is asked before it takes its name.
    pub smoke: Option<&'a SmokeTest>,
    /// The adapter of what rounding takes, that is written beside the output.
    pub residual: Option<&'a AdapterFile>,
}

/// Asking an output before it takes its name.
#[derive(Clone, Debug)]
pub struct SmokeTest {
    /// What is asked.
    pub questions: Questions,
    /// Whether the output gets its name whatever it answers.
    pub is_kept: bool,
}

/// A merge that can begin.
#[derive(Debug)]
pub struct Prepared<'a> {
    merge: Merge<'a>,
    settings: &'a Settings,
    path: PathBuf,
    plan: MergePlan,
    survey: Survey,
    types: Vec<TypesAs>,
    expected: Verdict,
    refusals: Vec<String>,
    cautions: Vec<Caution>,
    started: Instant,
}

/// Says which engines will not talk by the output's template, or talk otherwise in llama.cpp.
fn template_warnings(output: &Metadata) -> Vec<Warning> {
    let Some(found) = eval::dialects(output) else { return Vec::new() };
    let is_told =
        |finding: &Finding| finding.engine == Engine::LlamaCpp || finding.verdict == dialect::Verdict::RefusesToParse;
    let engines = [Engine::LlamaCpp, Engine::Transformers, Engine::HuggingfaceJs];
    let said = engines.into_iter().filter_map(|engine| eval::said(&found, engine, is_told));
    said.map(|said| Warning::Template { said }).collect()
}

impl<'a> Merge<'a> {
    /// A merge and nothing beside it.
    pub fn new(inputs: &'a Inputs, recipe: &'a Recipe) -> Self {
        Merge { inputs, recipe, smoke: None, residual: None }
    }

    /// Finds out everything that can be known without writing: whether the inputs belong together,
    /// the plan, what a sample of weights says, what rounding will take and what is done about that,
    /// whether memory, disk and place will do, and whether the output can be asked.
    ///
    /// # Errors
    /// [`Error`]. What only looks wrong is no error here: [`Prepared::refusal`] has it.
    pub fn prepare(self, path: &Path, settings: &'a Settings) -> Result<Prepared<'a>, Error> {
        self.look_at(Some(path), settings)
    }

    /// Finds out as [`Merge::prepare`] does, for an output that stays in memory and is lost with it.
    ///
    /// # Errors
    /// As [`Merge::prepare`].
    pub fn prepare_in_memory(self, settings: &'a Settings) -> Result<PreparedInMemory<'a>, Error> {
        Ok(PreparedInMemory(self.look_at(None, settings)?))
    }

    /// `path` is none for an output that has no place.
    fn look_at(self, path: Option<&Path>, settings: &'a Settings) -> Result<Prepared<'a>, Error> {
        let started = Instant::now();
        let Merge { inputs, recipe, .. } = self;
        let mut warnings = plan::check(inputs, recipe.embeddings)?;
        let pairs = vector::pair(inputs)?;
        let mut plan = plan_merge(inputs, pairs.clone(), recipe)?;
        warnings.append(&mut plan.warnings);
        warnings.extend(template_warnings(plan.header().metadata()));
        plan.warnings = warnings;

        // A long run must not end for a reason that was there before it.
        let (_, threads) = settings.budget.needed(&plan, inputs)?;
        let mut place = None;
        if let Some(Err(e)) = path.map(|path| self.check_place(&plan, path, settings)) {
            match settings.is_dry_run {
                true => place = Some(Caution::Place(e)),
                false => return Err(e),
            }
        }
        if let (Some(residual), Some(path)) = (self.residual, path) {
            let output = (path, self.may_be_rejected());
            residual.check_residual(&plan, inputs, output, settings)?;
        }
        let looked = look::look(inputs, &plan, pairs, threads, settings)?;
        let (mut plan, looked) = self.protect(plan, looked, path, settings)?;
        let Looked { survey, types, .. } = looked;
        let refusals = refusals(&survey);
        let expected_loss = recipe.loss.judge_expected(&plan, &survey);
        let mut said: Vec<Caution> = place.into_iter().collect();
        said.extend(cautions(&mut plan, &survey, &refusals, settings.is_forced));
        let survival = expected(&plan, &survey).survival;
        said.extend(survival.filter(|s| *s < recipe.loss.min_survival).map(Caution::Survival));
        let is_forbidden = expected_loss.is_rejected && recipe.loss.on_loss == OnLoss::Fail;
        if !expected_loss.lost.is_empty() && !is_forbidden {
            said.push(Caution::Loss(expected_loss.lost.clone()));
        }
        said.extend(rounding_error(&survey));
        self.check_questions(&plan, settings)?;
        Ok(Prepared {
            merge: self,
            settings,
            path: path.unwrap_or(inputs.source(inputs.skeleton()).path()).to_owned(),
            plan,
            survey,
            types,
            expected: expected_loss,
            refusals,
            cautions: said,
            started,
        })
    }

    /// What the recipe has done about tensors that the survey expects to be lost.
    fn protect(
        self,
        plan: MergePlan,
        mut looked: Looked,
        path: Option<&Path>,
        settings: &Settings,
    ) -> Result<(MergePlan, Looked), Error> {
        let Merge { inputs, recipe, .. } = self;
        let at_risk = recipe.loss.at_risk(&plan, &looked.survey);
        let remedies = recipe.loss.remedies(&plan, &looked.pairs, &at_risk);
        if remedies.is_empty() {
            return Ok((plan, looked));
        }
        let look = |estimate: &Estimate| recipe.loss.look(estimate);
        let trials = survey::try_encodings(inputs, &remedies, &looked.sample, look)?;
        let plan = plan.protect(&recipe.output, &recipe.loss, &at_risk, &trials)?;
        let chosen = |trial: &Trial| Some((trial.name.clone(), recipe.loss.choose(trial)?.1));
        let mut chosen: HashMap<String, Estimate> = trials.iter().filter_map(chosen).collect();
        looked.survey.tensors.iter_mut().for_each(|tensor| tensor.chosen = chosen.remove(&tensor.name));
        settings.budget.needed(&plan, inputs)?;
        match path.map(|path| self.check_place(&plan, path, settings)) {
            Some(Err(e)) if !settings.is_dry_run => Err(e),
            _ => Ok((plan, looked)),
        }
    }

    fn check_place(self, plan: &MergePlan, path: &Path, settings: &Settings) -> Result<(), Error> {
        let options = settings.write_beside(self.inputs.paths());
        let targets = options.check(path, plan.header())?;
        if self.may_be_rejected() {
            let target = if let [target] = &targets[..] { target } else { path };
            check_rejected(target, &options, plan.header())?;
        }
        Ok(())
    }

    /// Refuses a smoke test that is impossible. What a model answers depends on its weights; that it
    /// has a known architecture and tokenizer, and a context that fits, does not.
    fn check_questions(self, plan: &MergePlan, settings: &Settings) -> Result<(), Error> {
        let Some(smoke) = self.smoke else { return Ok(()) };
        // The output has the tensors of the model that is added to, in types that can be computed
        // with.
        let model = self.inputs.source(self.inputs.skeleton());
        let check = smoke.questions.check(model, settings.budget.memory).map_err(Error::from);
        check
            .and_then(|()| Ok(Tokenizer::from_metadata(plan.header().metadata()).map(drop)?))
            .map_err(|e| Error::SmokeTest(Box::new(e)))
    }

    /// Whether what is measured or answered may keep the output from its name.
    fn may_be_rejected(self) -> bool {
        self.recipe.loss.on_loss != OnLoss::Warn || self.smoke.is_some()
    }
}

/// The plan of a merge by a recipe, with the rows of special tokens that nobody trained the model
/// on.
fn plan_merge(inputs: &Inputs, pairs: Vec<Pair>, recipe: &Recipe) -> Result<MergePlan, Error> {
    let special = match recipe.special_tokens {
        SpecialTokens::None => None,
        _ => survey::special_tokens(inputs, recipe.talker(inputs, &pairs))?,
    };
    Ok(MergePlan::merge(inputs, pairs, recipe, special.as_ref())?)
}

impl<'a> Prepared<'a> {
    /// The plan.
    pub fn plan(&self) -> &MergePlan {
        &self.plan
    }

    /// What a sample of weights said.
    pub fn survey(&self) -> &Survey {
        &self.survey
    }

    /// The types that [`Settings::forecast`] names.
    pub fn types(&self) -> &[TypesAs] {
        &self.types
    }

    /// What the user should hear before the run begins, in the order of messages.
    pub fn cautions(&self) -> &[Caution] {
        &self.cautions
    }

    /// Prompts that the output will be asked, if it is asked at all.
    pub fn n_prompts(&self) -> Option<usize> {
        Some(self.merge.smoke?.questions.n_prompts(self.plan.header().metadata()))
    }

    /// Why the run should not begin: the inputs look wrong, or what rounding would take is
    /// forbidden.
    pub fn refusal(&self) -> Option<Error> {
        if !self.refusals.is_empty() && !self.settings.is_forced {
            return Some(Error::Refused { reasons: self.refusals.clone() });
        }
        let is_forbidden = self.expected.is_rejected && self.merge.recipe.loss.on_loss == OnLoss::Fail;
        is_forbidden.then(|| Error::Lost { lost: self.expected.lost.clone() })
    }

    /// Writes the output, measures it, and encodes again what a sample had promised too much of. The
    /// file has no name yet.
    ///
    /// # Errors
    /// [`Prepared::refusal`], and whatever ends the run; no file is left then.
    pub fn write(self, observer: &dyn Observer) -> Result<Written<'a>, Error> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        let Prepared { merge, settings, path, plan, survey, started, .. } = self;
        let rule = (&merge.recipe.output, &merge.recipe.loss);
        let Mended { file, plan, measured, changes } =
            pipeline::write_mending(plan, merge.inputs, rule, &path, &settings.write, observer, &settings.budget)?;
        Ok(Written { merge, settings, file, plan, survey, measured, changes, took: started.elapsed() })
    }
}

/// A merge that can begin, whose output stays in memory.
#[derive(Debug)]
pub struct PreparedInMemory<'a>(Prepared<'a>);

impl PreparedInMemory<'_> {
    /// The plan.
    pub fn plan(&self) -> &MergePlan {
        self.0.plan()
    }

    /// What the user should hear before the run begins, in the order of messages.
    pub fn cautions(&self) -> &[Caution] {
        self.0.cautions()
    }

    /// Why the run should not begin.
    pub fn refusal(&self) -> Option<Error> {
        self.0.refusal()
    }

    /// Bytes that the output takes in memory, beside the budget.
    pub fn n_bytes(&self) -> u64 {
        MemoryWriter::n_bytes(self.plan().header())
    }

    /// Makes the output: the model that would be read from its file, byte for byte.
    ///
    /// # Errors
    /// [`PreparedInMemory::refusal`], and whatever ends the run.
    pub fn hold(self, observer: &dyn Observer) -> Result<Held, Error> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        let Prepared { merge, settings, path, plan, .. } = self.0;
        let loss = &merge.recipe.loss;
        let rule = (&merge.recipe.output, loss);
        let Mended { file: model, plan, measured, .. } =
            pipeline::hold_mending(plan, merge.inputs, rule, &path, observer, &settings.budget)?;
        let by_name = measured.tensors.iter().map(|t| (t.name.as_str(), t.moments));
        let verdict = loss.judge_measured(&plan, by_name);
        Ok(Held { model, measured, verdict })
    }
}

/// An output in memory.
#[derive(Debug)]
pub struct Held {
    /// The model.
    pub model: Model,
    /// What was measured of it.
    pub measured: Measured,
    /// What rounding took, by the bounds of the recipe.
    pub verdict: Verdict,
}

/// An output that is whole and has no name yet.
#[derive(Debug)]
pub struct Written<'a> {
    merge: Merge<'a>,
    settings: &'a Settings,
    file: Complete,
    plan: MergePlan,
    survey: Survey,
    measured: Measured,
    changes: Vec<Change>,
    took: Duration,
}

impl<'a> Written<'a> {
    /// The plan that it was written by in the end.
    pub fn plan(&self) -> &MergePlan {
        &self.plan
    }

    /// What was measured of it.
    pub fn measured(&self) -> &Measured {
        &self.measured
    }

    /// The tensors that were encoded again.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Judges the output by what was measured, and asks it, if that is wanted and it is not lost
    /// already: nothing that it might say would give it its name. `listener` is told how it goes on.
    ///
    /// # Errors
    /// [`Error::NotAsked`]; [`pipeline::Error::Cancelled`] if `listener` ends it, and no file is left
    /// then.
    pub fn judge(self, listener: &dyn Listener) -> Result<Judged<'a>, Error> {
        let loss = &self.merge.recipe.loss;
        let by_name = self.measured.tensors.iter().map(|t| (t.name.as_str(), t.moments));
        let verdict = loss.judge_measured(&self.plan, by_name);
        let is_lost = verdict.is_rejected && loss.on_loss != OnLoss::Warn;
        let Some(smoke) = self.merge.smoke.filter(|_| !is_lost) else {
            return Ok(Judged { written: self, verdict, is_lost, talk: None, is_kept: !is_lost });
        };
        match self.ask(&smoke.questions, listener) {
            // A name is for what was asked all of it.
            Ok(talk) if talk.said.is_partial => Err(pipeline::Error::Cancelled.into()),
            Ok(talk) => {
                let is_kept = smoke.is_kept || talk.chats();
                Ok(Judged { written: self, verdict, is_lost, talk: Some(talk), is_kept })
            }
            Err(e) if e.is_interruption() => Err(pipeline::Error::Cancelled.into()),
            Err(source) => {
                let kept = self.file.publish_with_suffix(REJECTED)?.path;
                Err(Error::NotAsked { kept, source: Box::new(source) })
            }
        }
    }

    fn ask(&self, questions: &Questions, listener: &dyn Listener) -> Result<Talk, Error> {
        let model = Model::open(self.file.path(), &self.settings.limits)?;
        questions.ask(&model, self.merge.inputs.templates(), &self.settings.budget, listener)
    }
}

/// How a merge ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The output has its name, and nothing is known against it.
    Good,
    /// Rounding took the vector: the output is kept beside its name.
    Lost,
    /// A check of its answers failed: the output is kept beside its name, unless it was to get it
    /// whatever it answers.
    DoesNotChat,
}

/// An output of which it is known whether it is good.
#[derive(Debug)]
pub struct Judged<'a> {
    written: Written<'a>,
    verdict: Verdict,
    is_lost: bool,
    talk: Option<Talk>,
    is_kept: bool,
}

impl<'a> Judged<'a> {
    /// What rounding took, by the bounds of the recipe.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// What was answered, if it was asked.
    pub fn talk(&self) -> Option<&Talk> {
        self.talk.as_ref()
    }

    /// How it ends.
    pub fn outcome(&self) -> Outcome {
        match &self.talk {
            _ if self.is_lost => Outcome::Lost,
            Some(talk) if !talk.chats() => Outcome::DoesNotChat,
            _ => Outcome::Good,
        }
    }

    /// Gives the output its name, or that of a rejected one: its own and [`REJECTED`].
    ///
    /// # Errors
    /// [`Error::Container`]. The file stays where the error says.
    pub fn publish(self) -> Result<Published<'a>, Error> {
        let (outcome, Judged { written, verdict, talk, is_kept, .. }) = (self.outcome(), self);
        let Written { merge, settings, file, plan, survey, measured, changes, took } = written;
        let file = if is_kept { file.publish() } else { file.publish_with_suffix(REJECTED) }?;
        let written = pipeline::WrittenFile { file, measured };
        Ok(Published { merge, settings, plan, survey, written, changes, verdict, talk, is_kept, outcome, took })
    }
}

/// An output that has its name.
#[derive(Debug)]
pub struct Published<'a> {
    merge: Merge<'a>,
    settings: &'a Settings,
    /// The plan that it was written by in the end.
    pub plan: MergePlan,
    /// What a sample of weights had said.
    pub survey: Survey,
    /// The file, and what was measured.
    pub written: pipeline::WrittenFile,
    /// The tensors that were encoded again.
    pub changes: Vec<Change>,
    /// What rounding took, by the bounds of the recipe.
    pub verdict: Verdict,
    /// What was answered, if it was asked.
    pub talk: Option<Talk>,
    /// Whether the name is the one that was asked for.
    pub is_kept: bool,
    /// How it ended.
    pub outcome: Outcome,
    /// From the beginning to the end of writing.
    pub took: Duration,
}

impl Published<'_> {
    /// The file.
    pub fn file(&self) -> &Finished {
        &self.written.file
    }

    /// The adapter of what rounding took, ready to be written beside the output; none if none was
    /// asked for.
    ///
    /// # Errors
    /// [`Error::Adapter`].
    pub fn residual(&self) -> Result<Option<ReadyAdapter<'_>>, Error> {
        let Some(residual) = self.merge.residual else { return Ok(None) };
        let output = (&*self.written.file.path, !self.is_kept);
        Ok(Some(residual.beside_output(&self.plan, self.merge.inputs, output, self.settings)?))
    }
}
