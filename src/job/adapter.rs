//! LoRA adapters: of the vector, alone or beside a patch, and of what rounding takes, beside an
//! output.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::look::{self, Looked, TypesAs, cautions, refusals, rounding_error};
use super::{Caution, Error, Settings, rejected};
use crate::ggml::GgmlType;
use crate::gguf::{Model, WriteOptions};
use crate::patch::lora::{self, Written};
use crate::patch::{self, Extraction};
use crate::pipeline::{self, Budget, Measured, Observer};
use crate::plan::{self, MergePlan};
use crate::survey::Survey;
use crate::vector::{self, Inputs};

/// An adapter that is wanted, and where.
#[derive(Clone, Debug)]
pub struct AdapterFile {
    /// The file.
    pub path: PathBuf,
    /// Its rank and type.
    pub settings: lora::Settings,
}

impl AdapterFile {
    /// Refuses an adapter of the vector that cannot be written, before anything is.
    pub(super) fn check_vector(
        &self,
        (plan, inputs): (&MergePlan, &Inputs),
        output: Option<&Path>,
        settings: &Settings,
    ) -> Result<(), Error> {
        let check = || {
            let adapter = lora::Adapter::largest(plan, inputs, self.settings)?;
            self.check(&adapter, inputs, output, settings).map(drop)
        };
        check().map_err(|e| Error::Adapter(Box::new(e)))
    }

    /// Refuses an adapter of what rounding takes that cannot be written, before anything is. Of the
    /// output is known whether it may be rejected; the adapter then takes no name either.
    pub(super) fn check_residual(
        &self,
        plan: &MergePlan,
        inputs: &Inputs,
        (output, may_be_rejected): (&Path, bool),
        settings: &Settings,
    ) -> Result<(), Error> {
        let check = || {
            let adapter = lora::Adapter::of_residual(plan, inputs, self.settings)?;
            let options = self.check(&adapter, inputs, Some(output), settings)?;
            if may_be_rejected {
                // As with the output: an earlier one is replaced, an input never.
                let options = WriteOptions { overwrite: true, ..options };
                options.check_name(&rejected(&self.path), adapter.header().file_len())?;
            }
            Ok(())
        };
        check().map_err(|e| Error::Adapter(Box::new(e)))
    }

    fn check(
        &self,
        adapter: &lora::Adapter,
        inputs: &Inputs,
        output: Option<&Path>,
        settings: &Settings,
    ) -> Result<WriteOptions, Error> {
        let absolute = |path: &Path| std::path::absolute(path).ok();
        if output.and_then(absolute).is_some_and(|output| absolute(&self.path) == Some(output)) {
            return Err(Error::SameFile { path: self.path.clone() });
        }
        adapter.check_budget(&settings.budget)?;
        let options = settings.write_beside(inputs.paths());
        options.check_name(&self.path, adapter.header().file_len())?;
        Ok(options)
    }

    /// The adapter of what an output lacks, ready to be written. Of the output is known whether it
    /// was rejected.
    pub(super) fn beside_output<'a>(
        &'a self,
        plan: &'a MergePlan,
        inputs: &'a Inputs,
        (output, is_rejected): (&Path, bool),
        settings: &'a Settings,
    ) -> Result<ReadyAdapter<'a>, Error> {
        let adapter = lora::Adapter::of_residual(plan, inputs, self.settings);
        let adapter = adapter.map_err(|e| Error::Adapter(Box::new(e.into())))?;
        let (mut path, mut options) = (Cow::Borrowed(&*self.path), settings.write_beside(inputs.paths()));
        if is_rejected {
            (path, options.overwrite) = (Cow::Owned(rejected(&self.path)), true);
        }
        // The output took its name just now.
        options.inputs.push(output.to_owned());
        let (output, plan, is_residual) = (Some(output.to_owned()), Cow::Borrowed(plan), true);
        Ok(ReadyAdapter { adapter, plan, inputs, path, options, output, is_residual, is_rejected, settings })
    }

    /// The adapter of the vector, ready to be written. `plan` leaves nothing out, `measured` is of
    /// it or of the patch that is the `output`.
    pub(super) fn of_vector<'a>(
        &'a self,
        plan: MergePlan,
        inputs: &'a Inputs,
        measured: &Measured,
        output: Option<&Path>,
        settings: &'a Settings,
    ) -> Result<ReadyAdapter<'a>, Error> {
        let adapter = lora::Adapter::of_vector(&plan, inputs, measured, self.settings, &settings.budget);
        let adapter = adapter.map_err(|e| Error::Adapter(Box::new(e.into())))?;
        let mut options = settings.write_beside(inputs.paths());
        options.inputs.extend(output.map(Path::to_owned));
        let (path, plan, output) = (Cow::Borrowed(&*self.path), Cow::Owned(plan), output.map(Path::to_owned));
        let (is_residual, is_rejected) = (false, false);
        Ok(ReadyAdapter { adapter, plan, inputs, path, options, output, is_residual, is_rejected, settings })
    }
}

/// The plan of a patch from which nothing is left out.
pub(super) fn plan_whole(inputs: &Inputs, budget: &Budget) -> Result<MergePlan, Error> {
    let extraction = Extraction { encoding: GgmlType::F32, looks: false };
    Ok(patch::plan_extract(inputs, vector::pair(inputs)?, &extraction, budget)?)
}

/// An adapter that is ready to be written.
#[derive(Debug)]
pub struct ReadyAdapter<'a> {
    adapter: lora::Adapter,
    plan: Cow<'a, MergePlan>,
    inputs: &'a Inputs,
    path: Cow<'a, Path>,
    options: WriteOptions,
    /// The output that it is beside; none if it is alone.
    output: Option<PathBuf>,
    /// Whether it holds what the output lacks, or the vector.
    is_residual: bool,
    is_rejected: bool,
    settings: &'a Settings,
}

impl ReadyAdapter<'_> {
    /// Where it goes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it takes no name because the output took none.
    pub fn is_rejected(&self) -> bool {
        self.is_rejected
    }

    /// Bytes of f32 that are read while it is written, as an [`Observer`] is told of them.
    pub fn n_read_bytes(&self) -> u64 {
        self.adapter.n_read_bytes()
    }

    /// Writes it.
    ///
    /// # Errors
    /// [`Error::Adapter`]; beside an output, which is complete, [`Error::NoAdapter`] or
    /// [`Error::Interrupted`]. Of the adapter no file is left then.
    pub fn write(self, observer: &dyn Observer) -> Result<Written, Error> {
        let ReadyAdapter { adapter, plan, inputs, path, options, output, is_residual, settings, .. } = self;
        let (limits, budget) = (&settings.limits, &settings.budget);
        let write = || match output.as_ref().filter(|_| is_residual) {
            Some(output) => {
                let output = Model::open(output, limits)?;
                Ok(adapter.write_residual(&plan, inputs, &output, &path, &options, observer, budget)?)
            }
            None => Ok(adapter.write_vector(&plan, inputs, &path, &options, observer, budget)?),
        };
        write().map_err(|e: Error| match output.clone() {
            None => Error::Adapter(Box::new(e)),
            Some(output) if e.is_interruption() => Error::Interrupted { output },
            Some(output) => Error::NoAdapter { output, source: Box::new(e) },
        })
    }
}

/// An adapter of the vector, and no patch.
#[derive(Clone, Copy, Debug)]
pub struct Adapter<'a> {
    /// Base and chat.
    pub inputs: &'a Inputs,
    /// What is wanted.
    pub file: &'a AdapterFile,
}

/// An adapter that can begin.
#[derive(Debug)]
pub struct PreparedAdapter<'a> {
    adapter: Adapter<'a>,
    settings: &'a Settings,
    /// The plan of a patch from which nothing is left out.
    pub plan: MergePlan,
    /// What a sample of weights says.
    pub survey: Survey,
    /// The types that [`Settings::forecast`] names.
    pub types: Vec<TypesAs>,
    /// What the user should hear before the run begins.
    pub cautions: Vec<Caution>,
    refusals: Vec<String>,
}

impl<'a> Adapter<'a> {
    /// Finds out everything that can be known without writing.
    ///
    /// # Errors
    /// [`Error`]. What only looks wrong is no error here: [`PreparedAdapter::refusal`] has it.
    pub fn prepare(self, settings: &'a Settings) -> Result<PreparedAdapter<'a>, Error> {
        let inputs = self.inputs;
        let mut warnings = plan::check(inputs, plan::Embeddings::Auto)?;
        let pairs = vector::pair(inputs)?;
        let extraction = Extraction { encoding: GgmlType::F32, looks: false };
        let mut plan = patch::plan_extract(inputs, pairs.clone(), &extraction, &settings.budget)?;
        warnings.append(&mut plan.warnings);
        plan.warnings = warnings;
        let (_, threads) = settings.budget.needed(&plan, inputs)?;
        self.file.check_vector((&plan, inputs), None, settings)?;
        let Looked { survey, types, .. } = look::look(inputs, &plan, pairs, threads, settings)?;
        let refusals = refusals(&survey);
        let mut cautions = cautions(&mut plan, &survey, &refusals, settings.is_forced);
        cautions.extend(rounding_error(&survey));
        Ok(PreparedAdapter { adapter: self, settings, plan, survey, types, cautions, refusals })
    }
}

impl<'a> PreparedAdapter<'a> {
    /// Why the run should not begin: the inputs look wrong.
    pub fn refusal(&self) -> Option<Error> {
        let is_refused = !self.refusals.is_empty() && !self.settings.is_forced;
        is_refused.then(|| Error::Refused { reasons: self.refusals.clone() })
    }

    /// Measures the vector, after which the adapter is ready to be written.
    ///
    /// # Errors
    /// [`PreparedAdapter::refusal`], and whatever ends the run.
    pub fn measure(&self, observer: &dyn Observer) -> Result<ReadyAdapter<'a>, Error> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        let PreparedAdapter { adapter: Adapter { inputs, file }, settings, plan, .. } = self;
        let measured = pipeline::measure(plan, inputs, observer, &settings.budget)?;
        file.of_vector(plan.clone(), inputs, &measured, None, settings)
    }
}
