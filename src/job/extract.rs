//! A patch: a vector on its own, in a file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::adapter::{AdapterFile, ReadyAdapter, plan_whole};
use super::look::{self, Looked, TypesAs, cautions, expected, refusals, rounding_error};
use super::{Caution, Error, LEAST_SURVIVAL, Settings};
use crate::ggml::GgmlType;
use crate::patch::extract::{self, Forecast, Target};
use crate::patch::{self, Extraction, whole_name};
use crate::pipeline::{Measured, Observer, WrittenFile};
use crate::plan::{self, MergePlan};
use crate::survey::{self, Look, Survey};
use crate::vector::{self, Encoding, Inputs, Moments, Pair, Rounding};

/// Below this share a decomposition holds so little that it is not called a success. What it leaves
/// out are directions: at a gain of .85 the bundled trio's merge still chats (docs/PATCH.md).
const LEAST_DECOMPOSED: f64 = 0.5;

/// How the matrices of a patch are stored.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Form {
    /// In this type, or what stands in for it where a row does not divide into its blocks.
    Type(GgmlType),
    /// Decomposed.
    Decomposed(Target),
}

/// An extraction, and what is done beside it.
#[derive(Clone, Copy, Debug)]
pub struct Extract<'a> {
    /// Base and chat.
    pub inputs: &'a Inputs,
    /// How the vector is stored.
    pub form: Form,
    /// The adapter of the vector that is written beside the patch.
    pub adapter: Option<&'a AdapterFile>,
}

/// An extraction that can begin.
#[derive(Debug)]
pub struct PreparedExtract<'a> {
    extract: Extract<'a>,
    settings: &'a Settings,
    path: PathBuf,
    /// The plan.
    pub plan: MergePlan,
    /// What a sample of weights says.
    pub survey: Survey,
    /// The types that [`Settings::forecast`] names.
    pub types: Vec<TypesAs>,
    /// What decomposing will take, where matrices are.
    pub forecast: Option<Forecast>,
    /// What the user should hear before the run begins.
    pub cautions: Vec<Caution>,
    refusals: Vec<String>,
    started: Instant,
}

impl<'a> Extract<'a> {
    fn target(self) -> Option<Target> {
        match self.form {
            Form::Type(_) => None,
            Form::Decomposed(target) => Some(target),
        }
    }

    /// Finds out everything that can be known without writing: whether the inputs belong together,
    /// which rows moved, the plan, what a sample of weights says, and whether memory, disk and place
    /// will do.
    ///
    /// # Errors
    /// [`Error`]. What only looks wrong is no error here: [`PreparedExtract::refusal`] has it.
    pub fn prepare(self, path: &Path, settings: &'a Settings) -> Result<PreparedExtract<'a>, Error> {
        let started = Instant::now();
        let inputs = self.inputs;
        let mut warnings = plan::check(inputs, plan::Embeddings::Auto)?;
        let pairs = vector::pair(inputs)?;
        let mut plan = self.plan(pairs.clone(), settings)?;
        warnings.append(&mut plan.warnings);
        plan.warnings = warnings;

        // A long run must not end for a reason that was there before it.
        let forecast = self.target().map(|target| extract::forecast(&plan, inputs, target, &settings.budget));
        let forecast = forecast.transpose()?;
        let threads = match &forecast {
            Some(forecast) => forecast.threads,
            None => settings.budget.needed(&plan, inputs)?.1,
        };
        let mut said = Vec::new();
        match self.check_place(&plan, forecast.as_ref(), path, settings) {
            Err(e) if settings.is_dry_run => said.push(Caution::Place(e)),
            checked => checked?,
        }
        if let Some(adapter) = self.adapter {
            adapter.check_vector((&plan_whole(inputs, &settings.budget)?, inputs), Some(path), settings)?;
        }
        let mut looked = look::look(inputs, &plan, pairs, threads, settings)?;
        self.try_unit_gain(&plan, &mut looked)?;
        let Looked { survey, types, .. } = looked;
        let refusals = refusals(&survey);
        said.extend(cautions(&mut plan, &survey, &refusals, settings.is_forced));
        let survival = expected(&plan, &survey).survival.filter(|_| forecast.is_none());
        said.extend(survival.filter(|s| *s < LEAST_SURVIVAL).map(Caution::Survival));
        said.extend(rounding_error(&survey));
        let (extract, path, cautions) = (self, path.to_owned(), said);
        Ok(PreparedExtract { extract, settings, path, plan, survey, types, forecast, cautions, refusals, started })
    }

    fn plan(self, pairs: Vec<Pair>, settings: &Settings) -> Result<MergePlan, Error> {
        // What a decomposition takes depends on the rows that moved: then a dry run looks, too.
        let looks = self.target().is_some() || !settings.is_dry_run;
        let encoding = match self.form {
            Form::Type(ty) => ty,
            // What is not decomposed is given a type when the rest is known.
            Form::Decomposed(_) => GgmlType::Q6_K,
        };
        let plan = patch::plan_extract(self.inputs, pairs, &Extraction { encoding, looks }, &settings.budget)?;
        match self.form {
            Form::Type(_) => Ok(plan),
            Form::Decomposed(target) => Ok(target.allot(plan, self.inputs)?),
        }
    }

    fn check_place(
        self,
        plan: &MergePlan,
        forecast: Option<&Forecast>,
        path: &Path,
        settings: &Settings,
    ) -> Result<(), Error> {
        let options = settings.write_beside(self.inputs.paths());
        match forecast {
            // Its size is that asked for, not the plan's.
            Some(forecast) => {
                options.check_name(path, 0)?;
                forecast.check_disk(path)?;
            }
            None => {
                options.check(path, plan.header())?;
            }
        }
        Ok(())
    }

    /// Gives the survey what is expected of tensors that are not encoded as ggml does it.
    fn try_unit_gain(self, plan: &MergePlan, looked: &mut Looked) -> Result<(), Error> {
        let planned: HashMap<&str, Encoding> =
            plan.tensors().iter().map(|t| (whole_name(&t.name), t.encoding())).collect();
        let of_pair = |pair: &Pair| Some((pair.clone(), vec![*planned.get(pair.name.as_str())?]));
        let is_tried = |(_, encodings): &(Pair, Vec<Encoding>)| encodings[0].rounding == Rounding::UnitGain;
        let tried: Vec<_> = looked.pairs.iter().filter_map(of_pair).filter(is_tried).collect();
        for trial in survey::try_encodings(self.inputs, &tried, &looked.sample, |_| Look::Enough)? {
            let tensor = looked.survey.tensors.iter_mut().find(|tensor| tensor.name == trial.name);
            if let (Some(tensor), Some((_, estimate))) = (tensor, trial.tried.first()) {
                tensor.chosen = Some(*estimate);
            }
        }
        Ok(())
    }
}

impl<'a> PreparedExtract<'a> {
    /// Why the run should not begin: the inputs look wrong.
    pub fn refusal(&self) -> Option<Error> {
        let is_refused = !self.refusals.is_empty() && !self.settings.is_forced;
        is_refused.then(|| Error::Refused { reasons: self.refusals.clone() })
    }

    /// Writes the patch and measures what it holds.
    ///
    /// # Errors
    /// [`PreparedExtract::refusal`], and whatever ends the run; no file is left then.
    pub fn write(self, observer: &dyn Observer) -> Result<Extracted<'a>, Error> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        let PreparedExtract { extract, settings, path, plan, survey, started, .. } = self;
        let (inputs, options, budget) = (extract.inputs, &settings.write, &settings.budget);
        let (file, measured) = match extract.form {
            Form::Type(_) => patch::write_unnamed(&plan, inputs, &path, options, observer, budget)?,
            Form::Decomposed(target) => {
                extract::write_unnamed(&plan, inputs, target, &path, options, observer, budget)?
            }
        };
        let took = started.elapsed();
        let written = WrittenFile { file: file.publish()?, measured };
        Ok(Extracted { extract, settings, plan, survey, written, took })
    }
}

/// A patch that has its name.
#[derive(Debug)]
pub struct Extracted<'a> {
    extract: Extract<'a>,
    settings: &'a Settings,
    /// The plan that was carried out.
    pub plan: MergePlan,
    /// What a sample of weights had said.
    pub survey: Survey,
    /// The patch, and what it holds.
    pub written: WrittenFile,
    /// From the beginning to the end of writing.
    pub took: Duration,
}

/// What a patch holds of the vector. A patch is written whatever it holds.
#[derive(Clone, PartialEq, Debug)]
pub enum Holds {
    /// The vector is zero.
    Nothing,
    /// Enough of the vector.
    Enough,
    /// This share, because rounding took the rest.
    TooLittle(f64),
    /// Of matrices that are decomposed, some hold less than half of the vector, or as much error.
    /// What a decomposition leaves out is chosen to matter least: the user sees how much it is.
    Part {
        /// These.
        poor: Vec<String>,
        /// Whether all together do, though a size was asked for and no rank.
        is_lost: bool,
    },
}

impl Holds {
    /// Whether so much of the vector is missing that the run was no success.
    pub fn is_lost(&self) -> bool {
        matches!(self, Holds::TooLittle(_) | Holds::Part { is_lost: true, .. })
    }
}

impl Extracted<'_> {
    /// What the patch holds.
    pub fn holds(&self) -> Holds {
        let Measured { total, tensors } = &self.written.measured;
        match self.extract.form {
            _ if total.delta2 == 0.0 => Holds::Nothing,
            Form::Type(_) => match total.survival().filter(|s| *s < LEAST_SURVIVAL) {
                Some(survival) => Holds::TooLittle(survival),
                None => Holds::Enough,
            },
            Form::Decomposed(target) => {
                let holds_little = |moments: &Moments| {
                    let survival = moments.survival().is_some_and(|survival| survival < LEAST_DECOMPOSED);
                    survival || moments.noise().is_some_and(|noise| noise >= 1.0)
                };
                let poor = tensors.iter().filter(|t| holds_little(&t.moments)).map(|t| t.name.clone()).collect();
                let is_lost = holds_little(total) && !matches!(target, Target::Rank(_));
                Holds::Part { poor, is_lost }
            }
        }
    }

    /// How each tensor is stored.
    ///
    /// # Errors
    /// [`Error::Patch`].
    pub fn stored(&self) -> Result<Vec<patch::TensorSummary>, Error> {
        Ok(patch::summary(&patch::open_stored(&self.written.file.path, &self.settings.limits)?))
    }

    /// The adapter of the vector, ready to be written beside the patch; none if none was asked for.
    ///
    /// # Errors
    /// [`Error::Adapter`], and those of planning it.
    pub fn adapter(&self) -> Result<Option<ReadyAdapter<'_>>, Error> {
        let Extract { inputs, adapter: Some(adapter), .. } = self.extract else { return Ok(None) };
        let plan = plan_whole(inputs, &self.settings.budget)?;
        let output = Some(&*self.written.file.path);
        Ok(Some(adapter.of_vector(plan, inputs, &self.written.measured, output, self.settings)?))
    }
}
