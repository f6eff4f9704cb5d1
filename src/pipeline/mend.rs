//! Writing a plan whose tensors were chosen by a forecast, and encoding again those in which the
//! forecast was wrong.
//!
//! A sample of rows may not be like the rest of them. So what was measured of a whole tensor is
//! held against the bounds that it was chosen by; a tensor that misses them gets the next encoding
//! of its [ladder](LossPolicy::ladder), and the next, until one holds. Only then is the output laid
//! out anew, once, if sizes have changed. Every other tensor keeps its bytes.
//!
//! What is chosen depends on measurements alone, which are the same for any number of threads and
//! any budget.

use std::path::Path;

use super::observer::Nowhere;
use super::{Budget, Error, Measured, Observer, TensorSink, run};
use crate::gguf::{self, Header, MemoryWriter, Metadata, Model, WriteOptions, Writer};
use crate::plan::{self, Change, LossPolicy, MergePlan, OutputType, TensorPlan};
use crate::quants;
use crate::vector::{Encoding, Inputs, Moments, Rounding};

/// An output as [`write_mending`] and [`hold_mending`] leave it.
#[derive(Debug)]
pub struct Mended<F = gguf::Complete> {
    /// The output: a file that has no name yet, or a model in memory.
    pub file: F,
    /// The plan that it was written by in the end.
    pub plan: MergePlan,
    /// What was measured of it.
    pub measured: Measured,
    /// The tensors that were encoded again, with what was measured of them before and after.
    pub changes: Vec<Change>,
}

/// Carries out a plan into a file as [`super::write_unnamed`] does. Tensors that then are beyond
/// the bounds of `policy` are encoded again, where it says how.
///
/// It takes no more memory than the budget and a buffer of 1 MiB. A larger output is moved within
/// its file; a set of shards of which any begins at another tensor than before is copied, and takes
/// its space twice meanwhile.
///
/// # Errors
/// Those of [`super::write_unnamed`]; [`gguf::Error::NoSpace`] also where the disk does not hold
/// the larger output.
pub fn write_mending(
    plan: MergePlan,
    inputs: &Inputs,
    (output, policy): (&OutputType, &LossPolicy),
    path: &Path,
    options: &WriteOptions,
    observer: &dyn Observer,
    budget: &Budget,
) -> Result<Mended, Error> {
    let mut options = options.clone();
    options.inputs.extend(inputs.paths().map(Path::to_owned));
    let writer = Writer::create(plan.header().clone(), path, &options)?;
    let output_file = OnDisk { writer, path, options: &options };
    let (Mended { file, plan, measured, changes }, metadata) =
        run_mending(plan, inputs, (output, policy), output_file, observer, budget)?;
    Ok(Mended { file: file.writer.complete(metadata)?, plan, measured, changes })
}

/// Carries out a plan as [`write_mending`] does, in memory: the model is the one that would be read
/// from its file, byte for byte. `path` is what messages call it.
///
/// It takes [`MemoryWriter::n_bytes`] of the plan's header beside the budget, and what tensors that
/// are encoded again are larger by.
///
/// # Errors
/// Those of [`run()`]; [`gguf::Error::Io`] if the system does not give the memory.
pub fn hold_mending(
    plan: MergePlan,
    inputs: &Inputs,
    rule: (&OutputType, &LossPolicy),
    path: &Path,
    observer: &dyn Observer,
    budget: &Budget,
) -> Result<Mended<Model>, Error> {
    let writer = MemoryWriter::create(plan.header().clone(), path)?;
    let (Mended { file, plan, measured, changes }, metadata) =
        run_mending(plan, inputs, rule, writer, observer, budget)?;
    Ok(Mended { file: file.complete(metadata)?, plan, measured, changes })
}

/// Carries out a plan, and encodes again what is beyond the bounds. Returns the metadata with what
/// was measured, if something was added.
fn run_mending<O: Output>(
    plan: MergePlan,
    inputs: &Inputs,
    (output, policy): (&OutputType, &LossPolicy),
    file: O,
    observer: &dyn Observer,
    budget: &Budget,
) -> Result<(Mended<O>, Option<Metadata>), Error> {
    let measured = run(&plan, inputs, &file, observer, budget)?;
    let mender = Mender { inputs, policy, observer: &Quiet(observer), budget };
    let found = mender.find(&plan, &measured, &file)?;
    let (plan, measured, file, changes) = match found.is_empty() {
        true => (plan, measured, file, Vec::new()),
        false => mender.write(plan, measured, found, output, file)?,
    };
    if observer.is_cancelled() {
        return Err(Error::Cancelled);
    }
    let metadata = match inputs.vectors().is_empty() {
        true => None,
        false => Some(plan::fill_measured(plan.header().metadata(), &measured.total)),
    };
    Ok((Mended { file, plan, measured, changes }, metadata))
}

/// An output that may be laid out anew while it is on its way.
trait Output: TensorSink + Sized {
    /// All bytes of a tensor are to be written again.
    fn forget(&self, tensor: usize);

    /// The output under another header, with the tensors `open` to be written again; none if
    /// `go_on` says to stop.
    fn lay_out_anew(
        self,
        header: Header,
        open: &[usize],
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<Self>, gguf::Error>;
}

/// An output on the disk.
struct OnDisk<'a> {
    writer: Writer,
    path: &'a Path,
    options: &'a WriteOptions,
}

impl TensorSink for OnDisk<'_> {
    fn write(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), gguf::Error> {
        self.writer.write(tensor, offset, bytes)
    }
}

impl Output for OnDisk<'_> {
    fn forget(&self, tensor: usize) {
        self.writer.forget(tensor);
    }

    fn lay_out_anew(
        self,
        header: Header,
        open: &[usize],
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<Self>, gguf::Error> {
        let OnDisk { writer, path, options } = self;
        let writer = writer.lay_out_anew(header, open, (path, options), go_on)?;
        Ok(writer.map(|writer| OnDisk { writer, path, options }))
    }
}

impl TensorSink for MemoryWriter {
    fn write(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), gguf::Error> {
        MemoryWriter::write(self, tensor, offset, bytes);
        Ok(())
    }
}

impl Output for MemoryWriter {
    fn forget(&self, _tensor: usize) {}

    fn lay_out_anew(
        self,
        header: Header,
        open: &[usize],
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<Self>, gguf::Error> {
        if !go_on() {
            return Ok(None);
        }
        MemoryWriter::lay_out_anew(self, header, open).map(Some)
    }
}

/// What is done about one tensor.
struct Remedy {
    change: Change,
    moments: Moments,
    /// Whether its bytes are to be written.
    is_open: bool,
}

/// What encoding tensors again takes.
struct Mender<'a> {
    inputs: &'a Inputs,
    policy: &'a LossPolicy,
    observer: &'a dyn Observer,
    budget: &'a Budget,
}

impl Mender<'_> {
    /// Looks for an encoding that holds, for each tensor that is lost. What has the same size is
    /// written where it belongs.
    fn find(&self, plan: &MergePlan, measured: &Measured, file: &impl Output) -> Result<Vec<Remedy>, Error> {
        if !self.policy.can_be_met() {
            return Ok(Vec::new());
        }
        let by_name = measured.tensors.iter().map(|t| (t.name.as_str(), t.moments));
        let verdict = self.policy.judge_measured(plan, by_name);
        let mut found = Vec::new();
        for name in verdict.lost.iter().filter_map(|loss| loss.tensor.as_deref()) {
            let index = plan.tensors().iter().position(|t| t.name == name).expect("it was measured by this plan");
            let moments = measured.tensors.iter().find(|t| t.name == name).expect("it was measured").moments;
            found.extend(self.find_for(plan, index, moments, file)?);
        }
        Ok(found)
    }

    /// Looks for an encoding of one tensor that holds; none if the tensor stays as it is.
    fn find_for(
        &self,
        plan: &MergePlan,
        index: usize,
        before: Moments,
        file: &impl Output,
    ) -> Result<Option<Remedy>, Error> {
        let tensor = &plan.tensors()[index];
        let numbers = |m: &Moments| (m.survival().unwrap_or(1.0), m.noise().unwrap_or(0.0));
        let survival_before = numbers(&before).0;
        let mut best = (tensor.encoding(), before);
        let mut is_spoilt = false;
        for encoding in self.steps(plan, tensor, numbers(&before).1) {
            let is_in_place = encoding.ty == tensor.ty;
            if is_in_place {
                file.forget(index);
            }
            let sink: &dyn TensorSink = if is_in_place { &SomeTensors { file, tensors: &[index] } } else { &Nowhere };
            let measured = match self
                .encode(&[TensorPlan { ty: encoding.ty, rounding: encoding.rounding, ..tensor.clone() }], sink)
            {
                Ok(measured) => measured,
                // A type that cannot hold a weight is no way out; the one after it may be.
                Err(Error::Range { .. } | Error::Importance { .. }) if !is_in_place => continue,
                Err(e) => return Err(e),
            };
            is_spoilt |= is_in_place;
            let moments = measured.total;
            let (survival, noise) = numbers(&moments);
            let change = Change { tensor: index, encoding, survival_before, survival };
            if !self.policy.is_lost(survival, noise) {
                return Ok(Some(Remedy { change, moments, is_open: !is_in_place }));
            }
            if survival > numbers(&best.1).0 {
                best = (encoding, moments);
            }
        }
        let (encoding, moments) = best;
        if encoding == tensor.encoding() && !is_spoilt {
            return Ok(None);
        }
        let change = Change { tensor: index, encoding, survival_before, survival: numbers(&moments).0 };
        Ok(Some(Remedy { change, moments, is_open: true }))
    }

    /// The encodings after the one that a tensor has. Dither is no remedy for too much noise.
    fn steps(&self, plan: &MergePlan, tensor: &TensorPlan, noise: f64) -> Vec<Encoding> {
        let asked_for = plan.protected().iter().find(|p| p.tensor == tensor.name).map_or(tensor.ty, |p| p.from);
        let ladder = self.policy.ladder(plan, &tensor.name, asked_for);
        let next = ladder.iter().position(|e| *e == tensor.encoding()).map_or(0, |at| at + 1);
        let helps = |e: &Encoding| noise <= self.policy.max_noise || e.rounding == Rounding::Encoder;
        ladder[next..].iter().copied().filter(|e| quants::is_supported(e.ty) && helps(e)).collect()
    }

    /// Carries out the plans of some tensors by themselves.
    fn encode(&self, tensors: &[TensorPlan], sink: &dyn TensorSink) -> Result<Measured, Error> {
        let plan = MergePlan::from_parts(Metadata::default(), tensors.to_vec(), Vec::new(), Vec::new())?;
        run(&plan, self.inputs, sink, self.observer, self.budget)
    }

    /// Lays the output out with what was found and writes the tensors that are open.
    fn write<O: Output>(
        &self,
        plan: MergePlan,
        mut measured: Measured,
        found: Vec<Remedy>,
        output: &OutputType,
        file: O,
    ) -> Result<(MergePlan, Measured, O, Vec<Change>), Error> {
        for found in &found {
            let name = &plan.tensors()[found.change.tensor].name;
            let result = measured.tensors.iter_mut().find(|t| t.name == *name).expect("it was measured");
            result.moments = found.moments;
        }
        measured.total = Moments::default();
        measured.tensors.iter().for_each(|t| measured.total += t.moments);

        let open: Vec<usize> = found.iter().filter(|f| f.is_open).map(|f| f.change.tensor).collect();
        let changes: Vec<Change> = found.into_iter().map(|f| f.change).collect();
        let plan = plan.with_changes(output, self.policy, &changes)?;
        let go_on = || !self.observer.is_cancelled();
        let header = plan.header().clone();
        let file = file.lay_out_anew(header, &open, &go_on)?.ok_or(Error::Cancelled)?;
        let tensors: Vec<TensorPlan> = open.iter().map(|i| plan.tensors()[*i].clone()).collect();
        self.encode(&tensors, &SomeTensors { file: &file, tensors: &open })?;
        Ok((plan, measured, file, changes))
    }
}

/// Some tensors of an output, in their order.
struct SomeTensors<'a, S> {
    file: &'a S,
    tensors: &'a [usize],
}

impl<S: TensorSink> TensorSink for SomeTensors<'_, S> {
    fn write(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), gguf::Error> {
        self.file.write(self.tensors[tensor], offset, bytes)
    }
}

/// Passes on only whether to stop: bytes that are written again are no progress.
struct Quiet<'a>(&'a dyn Observer);

impl Observer for Quiet<'_> {
    fn written(&self, _bytes: u64) {}

    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}
