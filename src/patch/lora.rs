//! LoRA adapters: the low-rank part of a vector, or of what rounding took from one, as a file that
//! llama.cpp adds to a model while it runs (`--lora`, `--lora-scaled`).
//!
//! For a matrix NAME of [in, out] the file has `NAME.lora_a` [in, r] and `NAME.lora_b` [r, out],
//! and llama.cpp computes `y = W x + s · alpha/r · B (A x)` (src/llama-adapter.cpp,
//! `llama_adapter_lora_init_impl`; src/llama-graph.cpp, `build_lora_mm`). `alpha` is the adapter's
//! largest rank; a matrix with less has it in its `lora_b`, so that every scale is 1.
//!
//! What it has no way to add is left out, and said to be ([`Left`]): norms and biases, matrices
//! that do not go through `build_lora_mm`, and both tables of tokens where the output is tied to
//! the embeddings: llama.cpp finds the adapter by the tensor's name, which is the same in both
//! uses, and the shapes fit but one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::low_rank::{self, LowRank, Rows};
use super::product::AddProduct;
use super::rows;
use super::stored::{LOW_RANK_A, LOW_RANK_B};
use crate::ggml::GgmlType;
use crate::gguf::{self, Finished, Header, Metadata, Model, TensorSpec, Value, WriteOptions};
use crate::imatrix;
use crate::pipeline::{self, Budget, Observer, PlannedSums};
use crate::plan::{self, MergePlan, TensorPlan};
use crate::pool::{self, Pool};
use crate::quants;
use crate::vector::{self, Folding, Inputs, fold_key};

/// The value of `general.type` in an adapter.
pub const TYPE: &str = "adapter";

/// Types that factors can have: those that llama.cpp multiplies with and takes rows from on every
/// backend.
pub const FACTOR_TYPES: [GgmlType; 4] = [GgmlType::F16, GgmlType::Q8_0, GgmlType::BF16, GgmlType::F32];

/// Why there is no adapter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The container.
    #[error(transparent)]
    Container(#[from] gguf::Error),
    /// The sums, or memory for them.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    /// An importance matrix that is not this model's.
    #[error(transparent)]
    Importance(#[from] imatrix::Error),
    /// A matrix that cannot be decomposed.
    #[error("tensor {tensor} has no low-rank part")]
    Decomposition {
        /// The tensor.
        tensor: String,
        /// Why.
        source: low_rank::Error<pipeline::Error>,
    },
    /// A factor that its type cannot hold.
    #[error("the factors of tensor {tensor} are beyond the range of {ty}; write them as F32")]
    Range {
        /// The tensor.
        tensor: String,
        /// The type of the factors.
        ty: GgmlType,
    },
    /// A type that factors cannot have.
    #[error("the factors of an adapter cannot be {ty}; known are {}", FACTOR_TYPES.map(GgmlType::name).join(", "))]
    Type {
        /// The type.
        ty: GgmlType,
    },
    /// A matrix that is folded: llama.cpp multiplies factors with activations as they are, before
    /// it folds those.
    #[error(
        "{}: tensor {tensor} is folded (key {key}), but an adapter multiplies with plain activations; make the adapter from \
         files with plain weights, or a patch", path.display()
    )]
    Folded {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The first of the file's keys that say so.
        key: String,
    },
    /// Nothing that an adapter could hold.
    #[error("an adapter would be empty: {reason}")]
    Empty {
        /// Why.
        reason: &'static str,
    },
}

/// How an adapter is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The rank of every matrix; that of a smaller matrix is its own.
    pub rank: u32,
    /// The type of the factors, F16 where rows are no whole blocks of it.
    pub ty: GgmlType,
}

/// Why a tensor is not in an adapter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It is no matrix: llama.cpp adds to nothing else.
    NotAMatrix,
    /// llama.cpp does not look for an adapter where it multiplies with this tensor.
    NotAdapted,
    /// The output is tied to it.
    Tied,
    /// Its name leaves no room for `.lora_a`.
    Name,
}

/// A tensor with a vector that an adapter does not hold.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Left {
    /// The tensor.
    pub name: String,
    /// Why.
    pub reason: Reason,
    /// Its share of Σ δ² over all tensors.
    pub share: f64,
    /// ‖δ‖ / ‖W‖ of the tensor.
    pub change: Option<f64>,
}

/// What an adapter holds of a tensor. *t* is what was to be held, *a* what is; *δ* the vector.
#[derive(Clone, PartialEq, Default, Debug, serde::Serialize)]
pub struct Fit {
    /// The tensor.
    pub name: String,
    /// Its rank.
    pub rank: u32,
    /// Σ δ²
    pub delta2: f64,
    /// Σ t²
    pub target2: f64,
    /// Σ (t − a)²
    pub error2: f64,
    /// Σ t·δ
    pub target_delta: f64,
    /// Σ (t − a)·δ
    pub error_delta: f64,
}

impl Fit {
    /// ‖t − a‖ / ‖t‖: the relative error. None where there was nothing to be held.
    pub fn error(&self) -> Option<f64> {
        (self.target2 > 0.0).then(|| (self.error2 / self.target2).sqrt())
    }

    /// The share of the vector that model and adapter have together, and that the model has alone,
    /// where *t* is what the model lacks of it.
    pub fn survival(&self) -> Option<(f64, f64)> {
        (self.delta2 > 0.0).then(|| (1.0 - self.error_delta / self.delta2, 1.0 - self.target_delta / self.delta2))
    }

    /// ‖error‖ / ‖δ‖ of both together, and of the model alone.
    pub fn noise(&self) -> Option<(f64, f64)> {
        (self.delta2 > 0.0).then(|| ((self.error2 / self.delta2).sqrt(), (self.target2 / self.delta2).sqrt()))
    }

    fn add(&mut self, other: &Fit) {
        self.delta2 += other.delta2;
        self.target2 += other.target2;
        self.error2 += other.error2;
        self.target_delta += other.target_delta;
        self.error_delta += other.error_delta;
    }

    /// The sums of many.
    pub fn total(fits: &[Fit]) -> Fit {
        let rank = fits.iter().map(|fit| fit.rank).max().unwrap_or(0);
        let mut total = Fit { name: "all".to_owned(), rank, ..Fit::default() };
        fits.iter().for_each(|fit| total.add(fit));
        total
    }
}

/// An adapter that is written.
#[derive(Clone, PartialEq, Debug)]
pub struct Written {
    /// Where it is.
    pub file: Finished,
    /// The type of the factors.
    pub ty: GgmlType,
    /// The largest rank.
    pub rank: u32,
    /// What it holds of each tensor.
    pub fits: Vec<Fit>,
    /// Norms whose change is in the matrices behind them.
    pub folded: Vec<String>,
    /// What it does not hold.
    pub left: Vec<Left>,
}

/// Everything about an adapter that is known before its numbers are.
#[derive(Debug)]
pub struct Adapter {
    header: Header,
    matrices: Vec<Matrix>,
    settings: Settings,
    folded: Vec<String>,
    left: Vec<Left>,
}

/// A tensor of an adapter: a matrix, or several in a stack.
#[derive(Debug)]
struct Matrix {
    /// Its position in the plan.
    tensor: usize,
    name: String,
    rank: usize,
    row_len: u64,
    /// Rows of one matrix of the stack.
    n_rows: u64,
    n_matrices: u64,
    /// Factors change places, and one is turned over: llama.cpp takes rows of the first from token
    /// embeddings (src/llama-graph.cpp, `build_inp_embd`).
    is_flipped: bool,
    /// Factors of the columns, from the change of the norm before.
    gain: Option<Vec<f32>>,
}

impl Adapter {
    /// Plans the adapter of the vector of base and chat. `plan` is one of [`super::plan_extract`]
    /// that has not looked, so that all tensors are in it, and `measured` what was measured when
    /// one of them was carried out.
    ///
    /// Where a norm's change can be moved into the matrices behind it, it is. That is exact for the
    /// base; a model whose norms came away from the base's gets it in proportion.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::Type`], [`Error::Container`], [`Error::Pipeline`].
    pub fn of_vector(
        plan: &MergePlan,
        inputs: &Inputs,
        measured: &pipeline::Measured,
        settings: Settings,
        budget: &Budget,
    ) -> Result<Self, Error> {
        let whole = vector::whole_name;
        let changed: HashMap<&str, _> = measured.tensors.iter().map(|t| (whole(&t.name), t.moments)).collect();
        let has_vector = |t: &TensorPlan| changed.get(t.name.as_str()).is_some_and(|m| m.delta2 > 0.0);
        let mut adapter = Adapter::plan(plan, inputs, settings, has_vector)?;
        adapter.fold_norms(plan, inputs, budget)?;
        let all = measured.total.delta2;
        for left in &mut adapter.left {
            let moments = changed[left.name.as_str()];
            (left.share, left.change) = (moments.delta2 / all, moments.delta_ratio());
        }
        adapter.left.retain(|left| !adapter.folded.contains(&left.name));
        Ok(adapter)
    }

    /// Plans an adapter as large as that of the vector can be, before anything was measured.
    ///
    /// # Errors
    /// As [`Adapter::of_vector`].
    pub fn largest(plan: &MergePlan, inputs: &Inputs, settings: Settings) -> Result<Self, Error> {
        Adapter::plan(plan, inputs, settings, |t| t.kept.is_none())
    }

    /// Plans the adapter of what rounding took: of the tensors with a vector that are quantised in
    /// the output.
    ///
    /// # Errors
    /// As [`Adapter::of_vector`].
    pub fn of_residual(plan: &MergePlan, inputs: &Inputs, settings: Settings) -> Result<Self, Error> {
        let is_rounded = |t: &TensorPlan| t.kept.is_none() && t.ty.is_quantized();
        if !plan.tensors().iter().any(is_rounded) {
            return Err(Error::Empty {
                reason: "no tensor with a vector is quantised, so rounding takes nothing worth one",
            });
        }
        Adapter::plan(plan, inputs, settings, is_rounded)
    }

    fn plan(
        plan: &MergePlan,
        inputs: &Inputs,
        settings: Settings,
        wanted: impl Fn(&TensorPlan) -> bool,
    ) -> Result<Self, Error> {
        if !FACTOR_TYPES.contains(&settings.ty) {
            return Err(Error::Type { ty: settings.ty });
        }
        let is_untied = plan.tensors().iter().any(|t| t.name == "output.weight");
        let (mut matrices, mut left) = (Vec::new(), Vec::new());
        for (tensor, planned) in plan.tensors().iter().enumerate().filter(|(_, t)| wanted(t)) {
            match place_of(planned, is_untied) {
                Ok(()) => matrices.push(Matrix::new(tensor, planned, settings.rank)),
                Err(reason) => left.push(Left { name: planned.name.clone(), reason, share: 0.0, change: None }),
            }
        }
        if let Some(importance) = inputs.importance() {
            matrices.iter().try_for_each(|m| importance.of_tensor(&m.name, &m.ne()).map(|_| ()))?;
        }
        refuse_folded(inputs, &matrices)?;
        if matrices.is_empty() {
            return Err(Error::Empty { reason: "no matrix has a vector that llama.cpp could add to it" });
        }
        let specs = matrices.iter().flat_map(|m| m.specs(settings.ty));
        let rank = matrices.iter().map(|m| m.rank).max().unwrap_or(0);
        let header = Header::new(metadata(inputs, rank, settings.ty), specs)?;
        Ok(Adapter { header, matrices, settings, folded: Vec::new(), left })
    }

    /// Moves changes of norms into the matrices behind them, where all of those are in the adapter.
    fn fold_norms(&mut self, plan: &MergePlan, inputs: &Inputs, budget: &Budget) -> Result<(), Error> {
        let architecture = inputs.source(inputs.skeleton()).metadata().architecture().unwrap_or_default();
        if !PLAIN_RMS_NORMS.contains(&architecture) {
            return Ok(());
        }
        let sums = PlannedSums::new(plan, inputs, &(), budget)?;
        let positions: HashMap<&str, usize> =
            plan.tensors().iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
        let held: HashMap<&str, usize> = self.matrices.iter().enumerate().map(|(i, m)| (m.name.as_str(), i)).collect();
        let mut behind: HashMap<String, Vec<&str>> = HashMap::new();
        for tensor in plan.tensors() {
            if let Some(norm) = norm_before(&tensor.name) {
                behind.entry(norm).or_default().push(&tensor.name);
            }
        }
        let mut gains = Vec::new();
        for left in self.left.iter().filter(|left| left.reason == Reason::NotAMatrix) {
            let Some(matrices) = behind.get(&left.name) else { continue };
            let bias = left.name.replace("_norm.weight", "_norm.bias");
            let places: Option<Vec<usize>> = matrices.iter().map(|name| held.get(name).copied()).collect();
            let (Some(places), false) = (places, positions.contains_key(bias.as_str())) else { continue };
            let sum = sums.rows(positions[left.name.as_str()], 0, 1)?;
            let weights = sum.weights(&[]);
            let Some(base) = weights.base else { continue };
            let gain: Vec<f32> = weights.delta.iter().zip(base).map(|(d, b)| 1.0 + d / b).collect();
            let fits = places.iter().all(|place| self.matrices[*place].row_len == gain.len() as u64);
            if fits && vector::check_finite(&gain).is_none() {
                gains.push((left.name.clone(), places, gain));
            }
        }
        for (norm, places, gain) in gains {
            places.into_iter().for_each(|place| self.matrices[place].gain = Some(gain.clone()));
            self.folded.push(norm);
        }
        Ok(())
    }

    /// The adapter's header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What it will not hold.
    pub fn left(&self) -> &[Left] {
        &self.left
    }

    /// Refuses a budget that does not hold the factors of the largest matrix. Gives how many
    /// workers it has room for beside them.
    ///
    /// # Errors
    /// [`pipeline::Error::Budget`].
    pub fn check_budget(&self, budget: &Budget) -> Result<usize, Error> {
        let (_, n_workers) = rows::n_workers(self.matrices.iter().map(Matrix::need), budget)?;
        Ok(n_workers)
    }

    /// Bytes of f32 that are read while it is written, as an [`Observer`] is told of them.
    pub fn n_read_bytes(&self) -> u64 {
        let n_weights: u64 = self.matrices.iter().map(|m| m.row_len * m.n_rows * m.n_matrices).sum();
        (low_rank::N_PASSES + 1) * 4 * n_weights
    }

    /// Writes the adapter of a vector.
    ///
    /// # Errors
    /// [`Error::Pipeline`], [`Error::Decomposition`], [`Error::Range`], and those of
    /// [`gguf::Writer`]; no file is left then.
    pub fn write_vector(
        self,
        plan: &MergePlan,
        inputs: &Inputs,
        path: &Path,
        options: &WriteOptions,
        observer: &dyn Observer,
        budget: &Budget,
    ) -> Result<Written, Error> {
        let sums = PlannedSums::new(plan, inputs, observer, budget)?;
        let read = |m: &Matrix, first: u64, target: &mut [f32], delta: &mut [f32]| {
            let sum = sums.rows(m.tensor, first, target.len() as u64 / m.row_len)?;
            let weights = sum.weights(&[]);
            target.copy_from_slice(weights.delta);
            if let (Some(gain), Some(base)) = (&m.gain, weights.base) {
                let rows = target.chunks_exact_mut(gain.len()).zip(base.chunks_exact(gain.len()));
                for (target, base) in rows {
                    // chat · gain − base, from the difference of the two.
                    target.iter_mut().zip(base).zip(gain).for_each(|((t, b), g)| *t = *t * g + b * (g - 1.0));
                }
            }
            if !delta.is_empty() {
                delta.copy_from_slice(target);
            }
            Ok(())
        };
        self.write(inputs, &[], path, options, observer, budget, &read)
    }

    /// Writes the adapter of what the output of `plan` lacks. With an importance matrix the errors
    /// that matter less are larger.
    ///
    /// # Errors
    /// As [`Adapter::write_vector`].
    #[expect(clippy::too_many_arguments, reason = "a plan, its output, and a place")]
    pub fn write_residual(
        self,
        plan: &MergePlan,
        inputs: &Inputs,
        output: &Model,
        path: &Path,
        options: &WriteOptions,
        observer: &dyn Observer,
        budget: &Budget,
    ) -> Result<Written, Error> {
        let sums = PlannedSums::new(plan, inputs, observer, budget)?;
        let read = |m: &Matrix, first: u64, target: &mut [f32], delta: &mut [f32]| {
            let n_rows = target.len() as u64 / m.row_len;
            let sum = sums.rows(m.tensor, first, n_rows)?;
            let id = output.find(&m.name).expect("the output has the plan's tensors");
            let row_size = output.tensor(id).row_size();
            let mut blocks = vec![0; (n_rows * row_size) as usize];
            output.read(id, first * row_size, &mut blocks)?;
            vector::decode(output, id, first * m.row_len, &blocks, target)?;
            target.iter_mut().zip(sum.wanted()).for_each(|(stored, wanted)| *stored = wanted - *stored);
            let planned = &plan.tensors()[m.tensor];
            for row in planned.taken_rows() {
                // These are another model's rows, not sums.
                if let Some(row) = u64::from(row).checked_sub(first).filter(|row| *row < n_rows) {
                    target[(row * m.row_len) as usize..][..m.row_len as usize].fill(0.0);
                }
            }
            if !delta.is_empty() {
                delta.copy_from_slice(sum.delta());
            }
            Ok(())
        };
        let outputs: Vec<_> = output.paths().map(Path::to_owned).collect();
        self.write(inputs, &outputs, path, options, observer, budget, &read)
    }

    #[expect(clippy::too_many_arguments, reason = "what both kinds of adapter have in common")]
    fn write(
        self,
        inputs: &Inputs,
        outputs: &[std::path::PathBuf],
        path: &Path,
        options: &WriteOptions,
        observer: &dyn Observer,
        budget: &Budget,
        read: &Read<'_>,
    ) -> Result<Written, Error> {
        let threads = self.check_budget(budget)?;
        let pool = Pool::new(threads).map_err(pipeline::Error::from)?;
        let mut options = options.clone();
        options.inputs.extend(inputs.paths().map(Path::to_owned).chain(outputs.iter().cloned()));
        options.split_max_size = None;
        let Adapter { header, matrices, settings, folded, left } = self;
        let rank = matrices.iter().map(|m| m.rank).max().unwrap_or(0) as u32;
        let writer = gguf::Writer::create(header, path, &options)?;
        let mut fits = Vec::new();
        for (i, matrix) in matrices.iter().enumerate() {
            let weights = inputs.importance_of(&matrix.name, &matrix.ne());
            let mut fit = Fit { name: matrix.name.clone(), rank: matrix.rank as u32, ..Fit::default() };
            for stacked in 0..matrix.n_matrices {
                let first = stacked * matrix.n_rows;
                let rows = Stacked { matrix, first, read, observer };
                let weights = weights.map(|w| w.of_row(first));
                let work = || rows.write(settings.ty, rank, weights, (&writer, 2 * i, stacked));
                fit.add(&pool.install(work)?);
            }
            fits.push(fit);
        }
        let file = writer.finish(None)?;
        Ok(Written { file, ty: settings.ty, rank, fits, folded, left })
    }
}

/// Fills rows of a tensor with what is to be held, and with the vector if that buffer is not empty.
type Read<'a> = dyn Fn(&Matrix, u64, &mut [f32], &mut [f32]) -> Result<(), pipeline::Error> + Sync + 'a;

impl Matrix {
    fn new(tensor: usize, planned: &TensorPlan, rank: u32) -> Self {
        let at = |i: usize| planned.ne.get(i).copied().unwrap_or(1);
        let least = at(0).min(at(1)).min(rank.into());
        Matrix {
            tensor,
            name: planned.name.clone(),
            rank: least as usize,
            row_len: at(0),
            n_rows: at(1),
            n_matrices: at(2) * at(3),
            is_flipped: planned.name == TOKEN_EMBEDDINGS,
            gain: None,
        }
    }

    fn need(&self) -> rows::Need<'_> {
        let factors = low_rank::needed_bytes(self.n_rows, self.row_len as usize, self.rank).unwrap_or(u64::MAX);
        // Their blocks, and a factor that is turned over.
        let blocks = (self.n_rows + self.row_len).saturating_mul(8 * self.rank as u64);
        let n_weights = self.row_len.saturating_mul(self.n_rows);
        rows::Need { tensor: &self.name, n_weights, bytes: factors.saturating_add(blocks) }
    }

    fn ne(&self) -> Vec<u64> {
        let all = [self.row_len, self.n_rows, self.n_matrices];
        all[..if self.n_matrices > 1 { 3 } else { 2 }].to_vec()
    }

    /// Numbers in a row and rows of the first and the second factor, as they are stored.
    fn shapes(&self) -> [(u64, u64); 2] {
        let rank = self.rank as u64;
        match self.is_flipped {
            true => [(rank, self.n_rows), (rank, self.row_len)],
            false => [(self.row_len, rank), (rank, self.n_rows)],
        }
    }

    fn specs(&self, ty: GgmlType) -> [TensorSpec; 2] {
        let of = |suffix: &str, (row_len, n_rows): (u64, u64)| {
            let mut ne = vec![row_len, n_rows];
            ne.extend((self.n_matrices > 1).then_some(self.n_matrices));
            TensorSpec { name: format!("{}{suffix}", self.name), ne, ty: type_for(ty, row_len) }
        };
        let [a, b] = self.shapes();
        [of(LOW_RANK_A, a), of(LOW_RANK_B, b)]
    }
}

/// The type for rows of this length.
fn type_for(ty: GgmlType, row_len: u64) -> GgmlType {
    if row_len.is_multiple_of(ty.block_len() as u64) { ty } else { GgmlType::F16 }
}

/// One matrix of a tensor.
struct Stacked<'a> {
    matrix: &'a Matrix,
    /// The tensor's row that is its first.
    first: u64,
    read: &'a Read<'a>,
    observer: &'a dyn Observer,
}

impl Rows for Stacked<'_> {
    type Error = pipeline::Error;

    fn n_rows(&self) -> u64 {
        self.matrix.n_rows
    }

    fn row_len(&self) -> usize {
        self.matrix.row_len as usize
    }

    fn read(&self, first: u64, out: &mut [f32]) -> Result<(), pipeline::Error> {
        if self.observer.is_cancelled() {
            return Err(pipeline::Error::Cancelled);
        }
        (self.read)(self.matrix, self.first + first, out, &mut [])?;
        self.observer.written(4 * out.len() as u64);
        Ok(())
    }
}

impl Stacked<'_> {
    /// Decomposes the matrix and writes its factors as tensors `slot` and the one behind it. Gives
    /// what they hold.
    fn write(
        &self,
        ty: GgmlType,
        alpha: u32,
        weights: Option<&[f32]>,
        (writer, slot, stacked): (&gguf::Writer, usize, u64),
    ) -> Result<Fit, Error> {
        let matrix = self.matrix;
        let settings = low_rank::Settings { weights, ..low_rank::Settings::new(matrix.rank) };
        let found = low_rank::decompose(self, &settings);
        let found = found.map_err(|source| match source {
            low_rank::Error::Rows(error) => Error::Pipeline(error),
            source => Error::Decomposition { tensor: matrix.name.clone(), source },
        })?;
        let LowRank { rank, mut a, mut b, .. } = found;
        let scale = rank as f32 / alpha as f32;
        b.iter_mut().for_each(|x| *x *= scale);
        if matrix.is_flipped {
            a = transposed(&a, matrix.row_len as usize);
        }
        let mut parts = [a, b];
        if matrix.is_flipped {
            parts.swap(0, 1);
        }
        for ((i, part), (row_len, _)) in parts.iter_mut().enumerate().zip(matrix.shapes()) {
            let ty = type_for(ty, row_len);
            let size = ty.size_of(part.len() as u64).expect("rows are whole blocks");
            let mut blocks = vec![0; size as usize];
            quants::quantize_rows(ty, part, None, &mut blocks).expect("the header was laid out with this type");
            writer.write(slot + i, stacked * size, &blocks)?;
            // What is measured is what the file holds.
            quants::dequantize_row(ty, &blocks, part).expect("it was encoded as this type");
            if vector::check_finite(part).is_some() {
                return Err(Error::Range { tensor: matrix.name.clone(), ty });
            }
        }
        let [mut a, mut b] = parts;
        if matrix.is_flipped {
            std::mem::swap(&mut a, &mut b);
            a = transposed(&a, rank);
        }
        b.iter_mut().for_each(|x| *x /= scale);
        Ok(self.fit(rank, &a, &b)?)
    }

    /// Reads the matrix once more and measures what the factors hold of it.
    fn fit(&self, rank: usize, a: &[f32], b: &[f32]) -> Result<Fit, pipeline::Error> {
        let row_len = self.matrix.row_len as usize;
        let rows_of_task = rows::rows_of_task(row_len);
        let tasks = b.chunks(rows_of_task * rank).enumerate().collect();
        let parts = pool::try_map(tasks, |(task, b): (usize, &[f32])| {
            if self.observer.is_cancelled() {
                return Err(pipeline::Error::Cancelled);
            }
            let n = b.len() / rank * row_len;
            let (mut target, mut delta, mut held) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
            let first = self.first + (task * rows_of_task) as u64;
            (self.read)(self.matrix, first, &mut target, &mut delta)?;
            quants::vectorized(AddProduct { out: &mut held, left: b, right: a, rank });
            let mut fit = Fit::default();
            for ((t, d), h) in target.iter().zip(&delta).zip(&held) {
                let [t, d, h] = [t, d, h].map(|x| f64::from(*x));
                fit.delta2 += d * d;
                fit.target2 += t * t;
                fit.error2 += (t - h) * (t - h);
                fit.target_delta += t * d;
                fit.error_delta += (t - h) * d;
            }
            self.observer.written(4 * n as u64);
            Ok(fit)
        })?;
        let mut total = Fit::default();
        parts.iter().for_each(|fit| total.add(fit));
        Ok(total)
    }
}

/// Refuses matrices that a file folds: llama.cpp hands the factors activations that are not folded
/// (`build_lora_mm`), and refuses them for a folded `token_embd` (src/llama-adapter.cpp).
fn refuse_folded(inputs: &Inputs, matrices: &[Matrix]) -> Result<(), Error> {
    for (_, source) in inputs.sources() {
        let Some(folding) = Folding::read(source).map_err(pipeline::Error::from)? else { continue };
        if let Some(matrix) = matrices.iter().find(|matrix| folding.has(&matrix.name)) {
            let (path, tensor) = (source.path().to_owned(), matrix.name.clone());
            return Err(Error::Folded {
                path,
                tensor,
                key: fold_key(source.metadata()).unwrap_or_default().to_owned(),
            });
        }
    }
    Ok(())
}

/// A matrix in rows of `row_len`, turned over.
fn transposed(m: &[f32], row_len: usize) -> Vec<f32> {
    let n_rows = m.len().checked_div(row_len).unwrap_or(0);
    (0..row_len).flat_map(|column| (0..n_rows).map(move |row| m[row * row_len + column])).collect()
}

const TOKEN_EMBEDDINGS: &str = "token_embd.weight";

/// What llama.cpp multiplies with by `build_lora_mm` or `build_lora_mm_id` in every architecture
/// that has it.
const ADAPTED: [&str; 15] = [
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "ffn_gate_inp",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
    "ffn_gate_shexp",
    "ffn_up_shexp",
    "ffn_down_shexp",
];

/// Whether an adapter can hold a tensor, and why it cannot.
fn place_of(planned: &TensorPlan, is_untied: bool) -> Result<(), Reason> {
    let Some(stem) = planned.name.strip_suffix(".weight").filter(|_| planned.n_dims() > 1) else {
        return Err(Reason::NotAMatrix);
    };
    let word = stem.rsplit('.').next().unwrap_or(stem);
    let is_in_layer = stem.starts_with("blk.");
    match word {
        _ if planned.name.len() + LOW_RANK_A.len() > gguf::MAX_NAME_BYTES => Err(Reason::Name),
        "token_embd" if !is_untied => Err(Reason::Tied),
        "token_embd" | "output" if !is_in_layer => Ok(()),
        _ if is_in_layer && ADAPTED.contains(&word) => Ok(()),
        _ => Err(Reason::NotAdapted),
    }
}

/// Architectures whose layers have RMS norms right before the matrices that `norm_before` says, and
/// for nothing else (src/models of llama.cpp).
const PLAIN_RMS_NORMS: [&str; 14] = [
    "llama",
    "mistral3",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "granite",
    "internlm2",
    "exaone",
    "smollm3",
];

/// The norm whose output a matrix multiplies with, and nothing between. `W (γ ∘ x)` is `(W · diag
/// γ) x`: so what chat changed of γ can be written as a change of W, `W_chat · diag(γ_chat /
/// γ_base) − W_base`.
fn norm_before(name: &str) -> Option<String> {
    if name == "output.weight" {
        return Some("output_norm.weight".to_owned());
    }
    let (layer, word) = name.strip_suffix(".weight")?.rsplit_once('.')?;
    let norm = match word {
        "attn_q" | "attn_k" | "attn_v" | "attn_qkv" => "attn_norm",
        "ffn_gate" | "ffn_up" | "ffn_gate_inp" | "ffn_gate_exps" | "ffn_up_exps" | "ffn_gate_shexp"
        | "ffn_up_shexp" | "ffn_gate_inp_shexp" => "ffn_norm",
        _ => return None,
    };
    Some(format!("{layer}.{norm}.weight"))
}

fn metadata(inputs: &Inputs, rank: usize, ty: GgmlType) -> Metadata {
    let template = inputs.source(inputs.skeleton()).metadata();
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", template.architecture().unwrap_or_default());
    metadata.set("general.type", TYPE);
    metadata.set("adapter.type", "lora");
    metadata.set("adapter.lora.alpha", Value::F32(rank as f32));
    for key in ["general.license", "general.license.name", "general.license.link"] {
        if let Some(value) = template.get(key) {
            metadata.set(key, value.clone());
        }
    }
    if let Some(name) = template.get_str("general.name") {
        metadata.set("general.name", format!("{name} LoRA").as_str());
    }
    plan::base_models(&mut metadata, inputs);
    // The numbers of `llama_ftype` (llama.h) that gguf-py gives an adapter.
    let file_type = match ty {
        GgmlType::F32 => 0,
        GgmlType::Q8_0 => 7,
        GgmlType::BF16 => 32,
        _ => 1,
    };
    metadata.set("general.file_type", Value::U32(file_type));
    metadata.set("general.quantization_version", Value::U32(plan::QUANTIZATION_VERSION));
    metadata
}
