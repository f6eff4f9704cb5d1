//! Making a patch whose matrices are quantised decompositions ([`super::encode`]), of a size that
//! is asked for.
//!
//! ```text
//! for each matrix:   singular vectors, from passes over rows of base and chat; kept in a temporary file
//! for the file:      the least step with which it is no larger than asked for: first by entropies that follow from singular
//!                    values, then by encoding all of it; the best attempt is kept in another
//! the header, whose sizes are now known; then for each matrix: write that, measure it against τ in one more pass
//! ```
//!
//! Tensors with a row for each token, stacks of experts and vectors are not decomposed: they are
//! written as the plan says, after [`Target::allot`] has given them a type.

use std::io;
use std::path::{Path, PathBuf};

use super::encode::{self, Codes, Metric};
use super::low_rank::{self, LowRank, Settings as RankSettings};
use super::product::AddProduct;
use super::rows::{self, Tau};
use super::spill::Spill;
use super::stored::{LOW_RANK_A, LOW_RANK_B};
use super::{SVD_A, SVD_B, SVD_SCALES, SVD_SHAPES, SVD_TENSORS};
use crate::ggml::GgmlType;
use crate::gguf::{self, Array, Complete, Header, Metadata, TensorSpec, Value, WriteOptions, Writer};
use crate::imatrix;
use crate::pipeline::{self, Budget, Measured, Observer, PlannedSums, TensorResult, TensorSink, seal};
use crate::plan::{self, MergePlan, TensorPlan};
use crate::pool::{self, Pool};
use crate::quants;
use crate::vector::{Inputs, Moments, Rounding, Weights, check_finite, has_row_per_token};

/// Why no patch was made; nothing is left of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The container.
    #[error(transparent)]
    Container(#[from] gguf::Error),
    /// The planner.
    #[error(transparent)]
    Plan(#[from] plan::Error),
    /// Reading base and chat, or memory for it.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    /// An importance matrix that is not these models'.
    #[error(transparent)]
    Importance(#[from] imatrix::Error),
    /// A matrix that cannot be decomposed.
    #[error("tensor {tensor} cannot be decomposed")]
    Decomposition {
        /// The tensor.
        tensor: String,
        /// Why.
        source: low_rank::Error<pipeline::Error>,
    },
    /// Factors that F16 cannot hold.
    #[error("the factors of tensor {tensor} are beyond the range of F16; give --encoding svd:BITS")]
    Range {
        /// The tensor.
        tensor: String,
    },
    /// The temporary file for singular vectors, or the compressor.
    #[error("cannot keep singular vectors beside {}", path.display())]
    Spill {
        /// The output.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A size that not even the rest of the file fits in.
    #[error("a patch of {asked} bytes is impossible: without any decomposed matrix it takes {least}; ask for more")]
    Size {
        /// Bytes asked for: of the file, or of its matrices.
        asked: u64,
        /// Bytes that it takes at least.
        least: u64,
    },
    /// A size that is none.
    #[error("{} bits per weight make no patch; ask for more than 0 and at most 16", if *bits < 1e6 { bits.to_string() } else { format!("{bits:.1e}") })]
    Bits {
        /// The bits asked for.
        bits: f64,
    },
}

/// How large a patch may be.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Target {
    /// Bits for each weight of all matrices, embeddings among them; the header and vectors come on
    /// top.
    Bits(f64),
    /// Bytes of the file.
    Bytes(u64),
    /// No size, but factors of this rank in F16, for those who read no compressed ones.
    Rank(usize),
}

/// Types for matrices that are not decomposed, as they are asked for.
const DENSE_TYPES: [GgmlType; 9] = [
    GgmlType::F16,
    GgmlType::Q8_0,
    GgmlType::Q6_K,
    GgmlType::Q5_K,
    GgmlType::Q4_K,
    GgmlType::Q3_K,
    GgmlType::Q2_K,
    GgmlType::TQ1_0,
    GgmlType::Q1_0,
];

/// The relative error that a type leaves of a vector, on the bundled trio.
fn error_of(ty: GgmlType) -> f64 {
    match ty {
        GgmlType::Q1_0 => 0.56,
        GgmlType::TQ1_0 => 0.36,
        GgmlType::Q2_K => 0.24,
        GgmlType::Q3_K => 0.13,
        GgmlType::Q4_0 => 0.08,
        GgmlType::Q4_K => 0.06,
        GgmlType::Q5_0 | GgmlType::Q5_1 => 0.04,
        GgmlType::Q5_K => 0.03,
        GgmlType::Q6_K => 0.02,
        GgmlType::Q8_0 => 0.004,
        _ => 0.0,
    }
}

/// Nats that a relative error of 1 in the embeddings would cost: on the bundled trio Q2_K costs
/// 0.0006 and Q3_K 0.0002.
const DENSE_LOSS: f64 = 0.011;

/// Nats that so many bits for each weight of the decomposed matrices cost: 0.0018 · bits^−2.3, as
/// from 0.3 to 2.7 bits on the bundled trio (docs/PATCH.md).
fn loss_of_matrices(bits: f64) -> f64 {
    0.0018 * bits.powf(-2.3)
}

impl Target {
    /// Gives the matrices of a plan of [`super::plan_extract`] that are not decomposed (embeddings,
    /// stacks of experts) the type with which the whole should lose least: what they take, the
    /// others lack. Where none fits, the smallest: [`forecast`] says what that takes.
    ///
    /// # Errors
    /// [`Error::Bits`] of a target that is none, [`Error::Plan`].
    pub fn allot(self, plan: MergePlan, inputs: &Inputs) -> Result<MergePlan, Error> {
        let n_weights = n_weights(inputs);
        match self {
            Target::Bits(bits) if !(bits > 0.0 && bits <= 16.0) => return Err(Error::Bits { bits }),
            _ => {}
        }
        if matches!(self, Target::Rank(_)) {
            return Ok(with_dense(plan, GgmlType::Q6_K)?);
        }
        let dense: Vec<&TensorPlan> = plan.tensors().iter().filter(|t| is_dense(t)).collect();
        let n_dense = dense.iter().map(|t| t.n_weights()).sum::<u64>();
        let error2 = |ty| {
            let of_tensor = |t: &&TensorPlan| t.n_weights() as f64 * error_of(dense_type(t, ty)).powi(2);
            if n_dense == 0 { 0.0 } else { dense.iter().map(of_tensor).sum::<f64>() / n_dense as f64 }
        };
        let loss = |ty| {
            let bits = bits_of_matrices(self, &plan, n_weights, Some(ty))?;
            Some((ty, DENSE_LOSS * error2(ty) + loss_of_matrices(bits)))
        };
        let least = DENSE_TYPES.into_iter().filter_map(loss).min_by(|(_, a), (_, b)| a.total_cmp(b));
        // Where nothing fits, how large the least is will be said when everything is known.
        let (ty, _) = least.unwrap_or((GgmlType::Q1_0, f64::INFINITY));
        Ok(with_dense(plan, ty)?)
    }

    /// Bytes of the file, or of its matrices.
    fn limit(self, n_weights: u64) -> u64 {
        match self {
            Target::Bytes(bytes) => bytes,
            Target::Bits(bits) => (bits * n_weights as f64 / 8.0) as u64,
            Target::Rank(_) => u64::MAX,
        }
    }
}

/// Weights of all matrices of the chat model, also of rows that did not move.
fn n_weights(inputs: &Inputs) -> u64 {
    inputs.source(inputs.skeleton()).tensors().filter(|t| t.n_dims() > 1).map(|t| t.n_weights()).sum()
}

/// A matrix that is decomposed.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    /// Its position in the plan.
    tensor: usize,
    name: &'a str,
    row_len: usize,
    n_rows: usize,
    /// That is looked for, at most.
    rank: usize,
    /// Bits that it will hardly have more of.
    most_bits: f64,
}

impl Matrix<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.row_len, self.n_rows)
    }

    /// Numbers of both factors.
    fn n_numbers(&self) -> u64 {
        ((self.n_rows + self.row_len) as u64).saturating_mul(self.rank as u64)
    }

    /// Bytes that finding and encoding it takes: factors in f32 and f64, its products, and H.
    fn need(&self) -> rows::Need<'_> {
        let found = low_rank::needed_bytes(self.n_rows as u64, self.row_len, self.rank).unwrap_or(u64::MAX);
        let products = (self.rank as u64).pow(2).saturating_mul(32);
        let feedback = quants::Feedback::bytes_to_make(self.row_len as u64);
        // Of the inputs' side more, where they are weighed by an importance matrix.
        let encoded = self.n_numbers().saturating_mul(4 + 24 + 2).saturating_add(products).saturating_add(feedback);
        let n_weights = (self.n_rows as u64).saturating_mul(self.row_len as u64);
        rows::Need { tensor: self.name, n_weights, bytes: found.max(encoded) }
    }
}

/// A matrix whose singular vectors are known.
struct Found<'a> {
    matrix: Matrix<'a>,
    /// Without its factors.
    low: LowRank,
    metric: Metric,
    /// Where those are in the temporary file.
    at: u64,
}

/// All matrices as they are encoded with one step.
struct Trial {
    /// Of each: its rank, and bytes of both factors.
    sizes: Vec<[u64; 3]>,
    /// Scales and factors, one matrix behind the other.
    bytes: Spill,
}

/// What a patch of decomposed matrices will take, as far as it is known before one is decomposed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forecast {
    /// Positions in the plan of the matrices that are decomposed, ascending.
    pub matrices: Vec<usize>,
    /// `svd`, or `lora` if the target is a rank.
    pub form: &'static str,
    /// Bytes that the patch will have at most.
    pub largest: u64,
    /// Bytes of the temporary files beside the patch, at most.
    pub temporary: u64,
    /// Bytes of buffers.
    pub memory: u64,
    /// Threads.
    pub threads: usize,
    /// Bytes of f32 and of the output that an [`Observer`] is told of; more where the rank of a
    /// matrix has to be looked for again.
    pub observed: u64,
}

/// What a reader has of a matrix.
enum Stored {
    Codes(Codes),
    /// Rows of one and of the other factor.
    Factors {
        a: Vec<f32>,
        b: Vec<f32>,
        rank: usize,
    },
}

/// What [`write_unnamed`] will take, and whether it can be done at all.
///
/// # Errors
/// [`Error::Size`], [`Error::Importance`], and [`pipeline::Error::Budget`] where the budget does
/// not hold the largest matrix.
pub fn forecast(plan: &MergePlan, inputs: &Inputs, target: Target, budget: &Budget) -> Result<Forecast, Error> {
    let n_weights = n_weights(inputs);
    let matrices = matrices(plan, target, n_weights);
    if let Some(importance) = inputs.importance() {
        matrices.iter().try_for_each(|m| importance.of_tensor(m.name, &plan.tensors()[m.tensor].ne).map(|_| ()))?;
    }
    let rest = rest(plan, &matrices)?;
    let (asked, least) = (target.limit(n_weights), least_size(target, &rest)?);
    if least > asked {
        return Err(Error::Size { asked, least });
    }
    let (of_rest, _) = budget.needed(&rest, inputs)?;
    let importance = inputs.importance().map_or(0, |importance| importance.n_bytes());
    let left = Budget { memory: budget.memory.saturating_sub(importance), ..budget.clone() };
    let (memory, threads) = rows::n_workers(matrices.iter().map(Matrix::need), &left)?;
    let numbers = matrices.iter().fold(0, |n: u64, m| n.saturating_add(m.n_numbers()));
    // A matrix has up to three tensors for one, each with a name and a hash.
    let header = plan.header().len() + (matrices.len() as u64).saturating_mul(HEADER_BYTES);
    let beside = plan.tensors().iter().filter(|t| t.n_dims() < 2 || t.kept.is_some()).map(|t| t.size()).sum::<u64>();
    // A number of a factor is a byte before it is compressed, which may add a little.
    let most = numbers.saturating_add(numbers / 64).saturating_add(header + of_tensors(&rest));
    let (form, largest) = match target {
        Target::Bytes(bytes) => ("svd", bytes.min(most)),
        Target::Bits(_) => ("svd", target.limit(n_weights).saturating_add(header + beside).min(most)),
        Target::Rank(_) => ("lora", numbers.saturating_mul(2).saturating_add(header + of_tensors(&rest))),
    };
    let n_decomposed = matrices.iter().map(|m| plan.tensors()[m.tensor].n_weights()).sum::<u64>();
    Ok(Forecast {
        matrices: matrices.iter().map(|m| m.tensor).collect(),
        form,
        largest,
        // The vectors; the best of what they were encoded as, and one more.
        temporary: numbers.saturating_mul(4).saturating_add(if form == "svd" { largest.saturating_mul(2) } else { 0 }),
        memory: of_rest.max(memory.saturating_add(importance)),
        threads,
        observed: of_tensors(&rest).saturating_add(n_decomposed.saturating_mul(4 * (low_rank::N_PASSES + 1))),
    })
}

/// What counts against the target of everything that is not decomposed: the file without matrices,
/// or matrices that are dense.
fn least_size(target: Target, rest: &MergePlan) -> Result<u64, Error> {
    match target {
        Target::Bytes(_) => {
            let mut metadata = rest.header().metadata().clone();
            metadata.set(SVD_TENSORS, Value::Array(Array::Strings(gguf::StringArray::default())));
            metadata.set(SVD_SHAPES, Value::Array(Array::from_u32s(&[])));
            Ok(header(rest, metadata, "svd", std::iter::empty())?.file_len())
        }
        Target::Bits(_) | Target::Rank(_) => Ok(rest.tensors().iter().filter(|t| is_dense(t)).map(|t| t.size()).sum()),
    }
}

/// Bytes of a matrix in the header, at most: names and infos of three tensors, and their hashes.
const HEADER_BYTES: u64 = 1024;

fn of_tensors(plan: &MergePlan) -> u64 {
    plan.tensors().iter().map(|t| t.size()).sum()
}

/// The type of a matrix that is not decomposed, where others have `ty`.
fn dense_type(tensor: &TensorPlan, ty: GgmlType) -> GgmlType {
    let fallback = |ty| plan::fallback(ty, tensor.ne[0]);
    // A type of fewer bits than it has no fallback of its own.
    fallback(ty).or_else(|| fallback(GgmlType::Q2_K)).unwrap_or(GgmlType::F16)
}

/// The plan with this type for the matrices that are not decomposed.
fn with_dense(plan: MergePlan, ty: GgmlType) -> Result<MergePlan, plan::Error> {
    let mut tensors = plan.tensors().to_vec();
    for tensor in tensors.iter_mut().filter(|t| is_dense(t)) {
        tensor.ty = dense_type(tensor, ty);
        let has_few_values = quants::has_few_values(tensor.ty);
        tensor.rounding = if has_few_values { Rounding::UnitGain } else { Rounding::Encoder };
    }
    MergePlan::from_parts(plan.header().metadata().clone(), tensors, plan.warnings, plan.plumbing)
}

/// Bits for each weight of the decomposed matrices, with a type for the others or with those
/// planned; none if the others alone are too large.
fn bits_of_matrices(target: Target, plan: &MergePlan, n_weights: u64, ty: Option<GgmlType>) -> Option<f64> {
    let size = |t: &TensorPlan| match ty.filter(|_| is_dense(t)) {
        Some(ty) => dense_type(t, ty).size_of(t.n_weights()).unwrap_or(u64::MAX),
        None => t.size(),
    };
    let (decomposed, others): (Vec<&TensorPlan>, _) = plan.tensors().iter().partition(|t| is_decomposed(t));
    let counted = others.into_iter().filter(|t| matches!(target, Target::Bytes(_)) || is_dense(t));
    let header = match target {
        Target::Bytes(_) => plan.header().len() + decomposed.len() as u64 * HEADER_BYTES,
        _ => 0,
    };
    let taken = counted.map(size).fold(header, u64::saturating_add);
    let room = target.limit(n_weights).checked_sub(taken)?;
    let n = decomposed.iter().map(|t| t.n_weights()).sum::<u64>();
    // More is of no use to anything that is read as f32.
    if n == 0 { Some(f64::INFINITY) } else { Some((room as f64 * 8.0 / n as f64).min(16.0)) }
}

/// The matrices of a plan that are decomposed.
fn matrices(plan: &MergePlan, target: Target, n_weights: u64) -> Vec<Matrix<'_>> {
    let bits = bits_of_matrices(target, plan, n_weights, None).unwrap_or(0.0);
    let decomposed = plan.tensors().iter().enumerate().filter(|(_, t)| is_decomposed(t));
    let matrix = |(tensor, planned): (usize, &'_ TensorPlan)| {
        let (row_len, n_rows) = (planned.ne[0] as usize, planned.ne[1] as usize);
        let least = row_len.min(n_rows);
        let (rank, most_bits) = match target {
            Target::Rank(rank) => (rank.min(least), 0.0),
            // A number of a factor takes one bit at least.
            _ => (rank_for(bits, row_len, n_rows), MOST_BITS * bits * planned.n_weights() as f64),
        };
        (tensor, row_len, n_rows, rank, most_bits)
    };
    let named = |(tensor, row_len, n_rows, rank, most_bits): (usize, usize, usize, usize, f64)| {
        let name = &plan.tensors()[tensor].name;
        Matrix { tensor, name, row_len, n_rows, rank, most_bits }
    };
    decomposed.map(matrix).map(named).collect()
}

/// The plan without these matrices.
fn rest(plan: &MergePlan, matrices: &[Matrix<'_>]) -> Result<MergePlan, Error> {
    let is_decomposed = |i| matrices.binary_search_by_key(&i, |m| m.tensor).is_ok();
    let tensors = plan.tensors().iter().enumerate().filter(|(i, _)| !is_decomposed(*i));
    let tensors = tensors.map(|(_, tensor)| tensor.clone()).collect();
    Ok(MergePlan::from_parts(plan.header().metadata().clone(), tensors, Vec::new(), Vec::new())?)
}

/// Writes a patch of the vector of `plan`, which is one of [`super::plan_extract`]. Gives what was
/// measured of each tensor.
///
/// # Errors
/// [`Error`]; no file is left then.
pub fn write_unnamed(
    plan: &MergePlan,
    inputs: &Inputs,
    target: Target,
    path: &Path,
    options: &WriteOptions,
    observer: &dyn Observer,
    budget: &Budget,
) -> Result<(Complete, Measured), Error> {
    let mut options = options.clone();
    options.inputs.extend(inputs.paths().map(Path::to_owned));
    options.check_name(path, 0)?;
    let forecast = forecast(plan, inputs, target, budget)?;
    forecast.check_disk(path)?;
    let sums = PlannedSums::new(plan, inputs, observer, budget)?;
    let extractor = Extractor { plan, inputs, sums, target, n_weights: n_weights(inputs), path, observer };
    let pool = Pool::new(forecast.threads).map_err(pipeline::Error::from)?;
    pool.install(|| extractor.write(&options, budget))
}

impl Forecast {
    /// Refuses a disk without room for the patch and the temporary file beside it.
    ///
    /// # Errors
    /// [`gguf::Error::NoSpace`].
    pub fn check_disk(&self, path: &Path) -> Result<(), gguf::Error> {
        let &Forecast { largest, temporary, .. } = self;
        match fs4::available_space(Spill::folder(path)) {
            Ok(available) if available < temporary.saturating_add(largest) => {
                Err(gguf::Error::NoSpace { path: path.to_owned(), needed: largest, temporary, available })
            }
            // Writing will tell.
            _ => Ok(()),
        }
    }
}

struct Extractor<'a> {
    plan: &'a MergePlan,
    inputs: &'a Inputs,
    sums: PlannedSums<'a>,
    target: Target,
    /// Of all matrices.
    n_weights: u64,
    path: &'a Path,
    observer: &'a dyn Observer,
}

/// Whether a tensor is a matrix that is not decomposed.
fn is_dense(tensor: &TensorPlan) -> bool {
    tensor.n_dims() > 1 && tensor.kept.is_none() && tensor.ty != GgmlType::F32 && !is_decomposed(tensor)
}

/// Whether a tensor is decomposed.
fn is_decomposed(tensor: &TensorPlan) -> bool {
    let is_matrix = tensor.ne.len() == 2 && tensor.ty != GgmlType::F32 && tensor.kept.is_none();
    // An untied output is a matrix like others, unless only some rows of it moved.
    let is_by_token = has_row_per_token(&tensor.name) && tensor.name != "output.weight";
    is_matrix && tensor.selected.is_none() && !is_by_token && tensor.name.len() + SVD_A.len() <= gguf::MAX_NAME_BYTES
}

/// A matrix has its rank looked for in steps: from this part of the largest that its bits could be
/// spent on.
const FIRST_RANK: usize = 3;

/// And from this one.
const LEAST_RANK: usize = 16;

/// The most bits that a matrix is taken to have, in those that it would have if all had as many for
/// each weight. On the bundled trio 1.35.
const MOST_BITS: f64 = 1.6;

/// How near to the size asked for is near enough.
const NEAR: f64 = 0.98;

/// Encodings of everything on the way there.
const TRIALS: usize = 9;

/// Bytes of zstd for those of entropies.
const OVERHEAD: f64 = 1.2;

impl<'a> Extractor<'a> {
    fn write(&self, options: &WriteOptions, budget: &Budget) -> Result<(Complete, Measured), Error> {
        let mut spill = Spill::beside(self.path).map_err(|e| self.spill_error(e))?;
        let matrices = matrices(self.plan, self.target, self.n_weights);
        let rest = rest(self.plan, &matrices)?;
        let found = matrices.into_iter().map(|m| self.decompose(m, &mut spill)).collect::<Result<Vec<_>, _>>()?;
        let (mut encoded, header) = match self.target {
            Target::Rank(_) => (None, self.header_of_factors(&rest, &found)?),
            _ => {
                let trial = self.search(&rest, &found, &mut spill)?;
                let header = self.header(&rest, &found, &trial.sizes)?;
                (Some(trial), header)
            }
        };
        let n_rest = rest.tensors().len();
        self.observer.has_begun();
        let writer = Writer::create(header, self.path, options)?;
        let mut measured = match n_rest {
            0 => Measured::default(),
            _ => pipeline::run(&rest, self.inputs, &FirstTensors(&writer), self.observer, budget)?,
        };
        let mut next = n_rest;
        if let Some(encoded) = &mut encoded {
            encoded.bytes.rewind().map_err(|e| self.spill_error(e))?;
        }
        for (i, found) in found.iter().enumerate() {
            let (parts, stored) = match &mut encoded {
                None => self.factors(found, &mut spill)?,
                Some(encoded) => self.codes(&found.matrix, encoded.sizes[i], &mut encoded.bytes)?,
            };
            for bytes in &parts {
                writer.write(next, 0, bytes)?;
                next += 1;
            }
            let moments = self.measure(&found.matrix, &stored)?;
            measured.total += moments;
            measured.tensors.push(TensorResult { name: found.matrix.name.to_owned(), moments });
        }
        self.check_cancelled()?;
        let metadata = pipeline::describe(&writer, writer.header().metadata(), &measured, budget)?;
        Ok((writer.complete(Some(metadata))?, measured))
    }

    fn check_cancelled(&self) -> Result<(), pipeline::Error> {
        if self.observer.is_cancelled() { Err(pipeline::Error::Cancelled) } else { Ok(()) }
    }

    fn spill_error(&self, source: io::Error) -> Error {
        Error::Spill { path: self.path.to_owned(), source }
    }

    fn decompose<'m>(&self, matrix: Matrix<'m>, spill: &mut Spill) -> Result<Found<'m>, Error> {
        let tau = Tau { sums: &self.sums, tensor: matrix.tensor, observer: self.observer };
        let importance = self.inputs.importance_of(matrix.name, &self.plan.tensors()[matrix.tensor].ne);
        let failed = |source| match source {
            low_rank::Error::Rows(e) => Error::Pipeline(e),
            source => Error::Decomposition { tensor: matrix.name.to_owned(), source },
        };
        let find = |rank| {
            let weights = importance.map(|i| i.of_row(0)).filter(|_| matches!(self.target, Target::Rank(_)));
            let settings = RankSettings { weights, ..RankSettings::new(rank) };
            let low = low_rank::decompose(&tau, &settings).map_err(failed)?;
            let metric = Metric::of(&low, matrix.row_len, importance.map(|i| i.of_row(0))).map_err(failed)?;
            Ok::<_, Error>((low, metric))
        };
        let mut rank = match self.target {
            Target::Rank(rank) => rank.min(matrix.rank),
            _ => (matrix.rank / FIRST_RANK).max(LEAST_RANK).min(matrix.rank),
        };
        let (mut low, mut metric) = find(rank)?;
        while rank < matrix.rank && encode::is_spent_on_all(&low, matrix.shape(), &metric, matrix.most_bits) {
            rank = (2 * rank).min(matrix.rank);
            (low.a, low.b) = (Vec::new(), Vec::new());
            (low, metric) = find(rank)?;
        }
        let at = spill.push(&mut low).map_err(|e| self.spill_error(e))?;
        Ok(Found { matrix, low, metric, at })
    }

    fn unspill(&self, found: &Found<'_>, spill: &mut Spill) -> Result<LowRank, Error> {
        spill.read(&found.low, found.matrix.shape(), found.at).map_err(|e| self.spill_error(e))
    }

    /// Encodes a matrix and writes the bytes of its three tensors behind those of others. Gives its
    /// rank and the lengths of both factors; zeros if nothing is left of it.
    fn encode(&self, found: &Found<'_>, step: f64, spill: &mut Spill, encoded: &mut Spill) -> Result<[u64; 3], Error> {
        self.check_cancelled()?;
        let low = self.unspill(found, spill)?;
        let codes = encode::encode(&low, found.matrix.shape(), &found.metric, step);
        if codes.rank() == 0 {
            return Ok([0; 3]);
        }
        let (row_len, n_rows) = found.matrix.shape();
        let scales: Vec<u8> = codes.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        let parts = encode::compress(&codes.a, row_len).and_then(|a| {
            let b = encode::compress(&codes.b, n_rows)?;
            [&scales, &a, &b].into_iter().try_for_each(|part| encoded.push_bytes(part))?;
            Ok([a.len() as u64, b.len() as u64])
        });
        let [a, b] = parts.map_err(|e| self.spill_error(e))?;
        Ok([codes.rank() as u64, a, b])
    }

    /// The bytes of the tensors of a matrix, which come next in `encoded`, and what they are
    /// decoded to.
    fn codes(
        &self,
        matrix: &Matrix<'_>,
        sizes: [u64; 3],
        encoded: &mut Spill,
    ) -> Result<(Vec<Vec<u8>>, Stored), Error> {
        let [rank, len_of_a, len_of_b] = sizes;
        if rank == 0 {
            return Ok((Vec::new(), Stored::Codes(Codes::default())));
        }
        let mut next = |n| encoded.next_bytes(n).map_err(|e| self.spill_error(e));
        let (scales, a, b) = (next(4 * rank)?, next(len_of_a)?, next(len_of_b)?);
        let decoded = |bytes: &[u8], row_len| {
            let codes = encode::decompress(bytes, rank as usize * row_len);
            codes.map_err(|e| self.spill_error(io::Error::new(io::ErrorKind::InvalidData, e)))
        };
        let codes = Codes {
            scales: scales.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            a: decoded(&a, matrix.row_len)?,
            b: decoded(&b, matrix.n_rows)?,
        };
        Ok((vec![scales, a, b], Stored::Codes(codes)))
    }

    /// Both factors in F16, by which their numbers are rounded.
    fn factors(&self, found: &Found<'_>, spill: &mut Spill) -> Result<(Vec<Vec<u8>>, Stored), Error> {
        let LowRank { a, b, rank, .. } = self.unspill(found, spill)?;
        let mut parts = Vec::new();
        let mut halves = |mut factor: Vec<f32>| {
            let mut bytes = vec![0; factor.len() * 2];
            quants::quantize_row(GgmlType::F16, &factor, &mut bytes)
                .and_then(|()| quants::dequantize_row(GgmlType::F16, &bytes, &mut factor))
                .expect("F16 can be written and has no blocks");
            parts.push(bytes);
            match check_finite(&factor) {
                None => Ok(factor),
                Some(_) => Err(Error::Range { tensor: found.matrix.name.to_owned() }),
            }
        };
        let (a, b) = (halves(a)?, halves(b)?);
        Ok((parts, Stored::Factors { a, b, rank }))
    }

    /// Encodes all matrices with a step.
    fn attempt(&self, found: &[Found<'_>], step: f64, spill: &mut Spill) -> Result<Trial, Error> {
        let mut bytes = Spill::beside(self.path).map_err(|e| self.spill_error(e))?;
        let sizes = found.iter().map(|found| self.encode(found, step, spill, &mut bytes)).collect::<Result<_, _>>()?;
        Ok(Trial { sizes, bytes })
    }

    /// The header of the patch with all factors of the rank that was looked for.
    fn header_of_factors(&self, rest: &MergePlan, found: &[Found<'_>]) -> Result<Header, Error> {
        let factors = found.iter().flat_map(|Found { matrix, low, .. }| {
            let spec = |end: &str, ne: [usize; 2]| TensorSpec {
                name: matrix.name.to_owned() + end,
                ne: ne.map(|n| n as u64).to_vec(),
                ty: GgmlType::F16,
            };
            [spec(LOW_RANK_A, [matrix.row_len, low.rank]), spec(LOW_RANK_B, [low.rank, matrix.n_rows])]
        });
        header(rest, rest.header().metadata().clone(), "lora", factors)
    }

    /// The header of the patch with matrices of these sizes.
    fn header(&self, rest: &MergePlan, found: &[Found<'_>], sizes: &[[u64; 3]]) -> Result<Header, Error> {
        let stored = || found.iter().map(|found| found.matrix).zip(sizes).filter(|(_, [rank, ..])| *rank > 0);
        let spec =
            |matrix: &Matrix<'_>, end: &str, n, ty| TensorSpec { name: matrix.name.to_owned() + end, ne: vec![n], ty };
        let svd = stored().flat_map(|(matrix, &[rank, a, b])| {
            let bytes = |end, n| spec(&matrix, end, n, GgmlType::I8);
            [spec(&matrix, SVD_SCALES, rank, GgmlType::F32), bytes(SVD_A, a), bytes(SVD_B, b)]
        });
        let mut metadata: Metadata = rest.header().metadata().clone();
        let names: gguf::StringArray = stored().map(|(matrix, _)| matrix.name).collect();
        let shapes: Vec<u32> = stored().flat_map(|(matrix, _)| [matrix.row_len as u32, matrix.n_rows as u32]).collect();
        metadata.set(SVD_TENSORS, Value::Array(Array::Strings(names)));
        metadata.set(SVD_SHAPES, Value::Array(Array::from_u32s(&shapes)));
        header(rest, metadata, "svd", svd)
    }

    /// What counts against the target.
    fn size(&self, rest: &MergePlan, found: &[Found<'_>], sizes: &[[u64; 3]]) -> Result<u64, Error> {
        match self.target {
            Target::Bytes(_) => Ok(self.header(rest, found, sizes)?.file_len()),
            Target::Bits(_) | Target::Rank(_) => {
                let dense: u64 = rest.tensors().iter().filter(|t| is_dense(t)).map(|t| t.size()).sum();
                Ok(dense + sizes.iter().map(|[rank, a, b]| rank * 4 + a + b).sum::<u64>())
            }
        }
    }

    /// Encodes all matrices with the step whose patch is as large as asked for and no larger.
    fn search(&self, rest: &MergePlan, found: &[Found<'_>], spill: &mut Spill) -> Result<Trial, Error> {
        let limit = self.target.limit(self.n_weights);
        let least = least_size(self.target, rest)?;
        let room = limit.saturating_sub(least) as f64;
        let bits = |step, f: &Found<'_>| encode::expected(&f.low, f.matrix.shape(), &f.metric, step).bits;
        let expected = |step: f64| found.iter().map(|f| bits(step, f)).sum::<f64>() / 8.0;
        let mut best = None;
        let (mut too_large, mut small_enough) = (None, None);
        // Bytes of the file for those expected, by the last trial.
        let mut overhead = OVERHEAD;
        for _ in 0..TRIALS {
            let guess = encode::bisect(|step| expected(step) * overhead, room * (1.0 + NEAR) / 2.0);
            // What was too large and what was not are on both sides of it.
            let step = match (too_large, small_enough) {
                (Some(low), Some(high)) if guess <= low || guess >= high => f64::sqrt(low * high),
                (Some(low), None) if guess <= low => low * 2.0,
                (None, Some(high)) if guess >= high => high / 2.0,
                _ => guess,
            };
            let trial = self.attempt(found, step, spill)?;
            let size = self.size(rest, found, &trial.sizes)?;
            if size <= limit && best.as_ref().is_none_or(|(_, largest)| size > *largest) {
                best = Some((trial, size));
            }
            let is_near = |size: u64| (size - least) as f64 >= NEAR * room;
            if best.as_ref().is_some_and(|(_, size)| is_near(*size)) || (size == least && expected(step) == 0.0) {
                break;
            }
            match size > limit {
                true => too_large = Some(too_large.map_or(step, |low: f64| low.max(step))),
                false => small_enough = Some(small_enough.map_or(step, |high: f64| high.min(step))),
            }
            let of_step = expected(step);
            overhead = if of_step > 0.0 && size > least { (size - least) as f64 / of_step } else { overhead };
        }
        match best {
            Some((trial, _)) => Ok(trial),
            None => self.attempt(found, f64::INFINITY, spill),
        }
    }

    /// Compares what is stored with τ.
    fn measure(&self, matrix: &Matrix<'_>, stored: &Stored) -> Result<Moments, pipeline::Error> {
        let row_len = matrix.row_len;
        let rows_of_task = rows::rows_of_task(row_len);
        let firsts: Vec<usize> = (0..matrix.n_rows).step_by(rows_of_task).collect();
        let scaled = match stored {
            Stored::Codes(codes) => codes.scaled_a(row_len),
            Stored::Factors { .. } => Vec::new(),
        };
        let sums = pool::map(firsts, |first| -> Result<Moments, pipeline::Error> {
            self.check_cancelled()?;
            let rows = first..(first + rows_of_task).min(matrix.n_rows);
            self.observer.written(4 * (rows.len() * row_len) as u64);
            let sum = self.sums.rows(matrix.tensor, first as u64, rows.len() as u64)?;
            let mut got = vec![0.0; rows.len() * row_len];
            match stored {
                Stored::Codes(codes) => codes.multiply(&scaled, matrix.n_rows, rows, &mut got),
                Stored::Factors { a, b, rank } => {
                    let left = &b[rows.start * rank..rows.end * rank];
                    quants::vectorized(AddProduct { out: &mut got, left, right: a, rank: *rank });
                }
            }
            let mut moments = Moments::default();
            moments.add(&Weights { wanted: sum.delta(), ..sum.weights(&got) });
            Ok(moments)
        });
        let mut total = Moments::default();
        for sum in sums {
            total += sum?;
        }
        Ok(total)
    }
}

/// A header with the tensors of a plan and these behind them.
fn header(
    rest: &MergePlan,
    mut metadata: Metadata,
    encoding: &str,
    more: impl Iterator<Item = TensorSpec>,
) -> Result<Header, Error> {
    let planned = |t: &TensorPlan| TensorSpec { name: t.name.clone(), ne: t.ne.clone(), ty: t.ty };
    let specs: Vec<TensorSpec> = rest.tensors().iter().map(planned).chain(more).collect();
    metadata.set(super::ENCODING_KEY, encoding);
    seal::reserve(&mut metadata, specs.len());
    Ok(Header::new(metadata, specs)?)
}

/// The largest rank that the bits could be spent on: a number of a factor takes one at least.
fn rank_for(bits: f64, row_len: usize, n_rows: usize) -> usize {
    let numbers = (row_len + n_rows).max(1) as f64;
    let rank = bits.max(0.0) * row_len as f64 * n_rows as f64 / numbers;
    (rank.ceil() as usize).max(8).min(row_len).min(n_rows)
}

/// A writer whose first tensors are those of a plan.
struct FirstTensors<'a>(&'a Writer);

impl TensorSink for FirstTensors<'_> {
    fn write(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), gguf::Error> {
        self.0.write(tensor, offset, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::rank_for;

    #[test]
    fn ranks_are_as_large_as_bits_could_be_spent_on() {
        assert_eq!(rank_for(1.0, 256, 768), 192);
        assert_eq!(rank_for(16.0, 256, 768), 256);
        assert_eq!(rank_for(0.001, 4, 768), 4);
    }
}
