//! Making a patch whose matrices are quantised decompositions ([`super::encode`]), of a size that is asked for.
//!
//! ```text
//! for each matrix:   singular vectors, from passes over rows of base and chat; kept in a temporary file
//! for the file:      the least step with which it is no larger than asked for: first by entropies that follow from singular
//!                    values, then by encoding all of it
//! the header, whose sizes are now known; then for each matrix: encode, write, measure against τ in one more pass
//! ```
//!
//! Tensors with a row for each token, stacks of experts and vectors are not decomposed: they are written as the plan says.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::encode::{self, Codes};
use super::low_rank::{self, LowRank, Rows as _, Settings as RankSettings};
use super::product::AddProduct;
use super::stored::{LOW_RANK_A, LOW_RANK_B};
use super::tau::Tau;
use super::{SVD_A, SVD_B, SVD_SCALES, SVD_SHAPES, SVD_TENSORS};
use crate::ggml::GgmlType;
use crate::gguf::{self, Array, Complete, Header, Metadata, TensorSpec, Value, WriteOptions, Writer};
use crate::pipeline::{self, Budget, Measured, Observer, TensorResult, TensorSink, seal};
use crate::plan::{self, MergePlan, TensorPlan};
use crate::quants;
use crate::survey::{Inputs, Moments, Weights, check_finite, has_row_per_token};

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
    #[error("a patch of {asked} bytes is impossible: without any matrix it takes {least}; ask for more")]
    Size {
        /// Bytes asked for.
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
    /// Bits for each weight of all matrices, embeddings among them; the header and vectors come on top.
    Bits(f64),
    /// Bytes of the file.
    Bytes(u64),
    /// No size, but factors of this rank in F16, for those who read no compressed ones.
    Rank(usize),
}

impl Target {
    /// About as many bits for each weight of these matrices.
    fn bits(self, n_weights: u64) -> f64 {
        match self {
            Target::Bits(bits) => bits,
            Target::Bytes(bytes) => bytes as f64 * 8.0 / n_weights.max(1) as f64,
            Target::Rank(_) => 16.0,
        }
    }

    /// The rank of the factors that are looked for.
    fn rank(self, n_weights: u64, row_len: usize, n_rows: usize) -> usize {
        match self {
            Target::Rank(rank) => rank.min(row_len).min(n_rows),
            _ => rank_for(self.bits(n_weights), row_len, n_rows),
        }
    }

    /// The type of tensors that are not decomposed, at a target for `n_weights` weights. Their errors go through all layers: on
    /// the bundled trio Q2_K embeddings cost 0.0006 nats and Q3_K ones 0.0002, where the rest costs 0.005 and 0.002.
    ///
    /// # Errors
    /// [`Error::Bits`].
    pub fn dense_type(self, inputs: &Inputs) -> Result<GgmlType, Error> {
        match self.bits(n_weights(inputs)) {
            bits if !(bits > 0.0 && bits <= 16.0) => Err(Error::Bits { bits }),
            bits if bits < 0.75 => Ok(GgmlType::Q2_K),
            bits if bits < 1.5 => Ok(GgmlType::Q3_K),
            bits if bits < 3.0 => Ok(GgmlType::Q4_K),
            _ => Ok(GgmlType::Q6_K),
        }
    }
}

/// Weights of all matrices of the chat model, also of rows that did not move.
fn n_weights(inputs: &Inputs) -> u64 {
    inputs.source(inputs.template()).tensors().filter(|t| t.n_dims() > 1).map(|t| t.n_weights()).sum()
}

/// A matrix whose singular vectors are known.
struct Found {
    /// Its position in the plan.
    tensor: usize,
    row_len: usize,
    n_rows: usize,
    /// Without its factors.
    low: LowRank,
    /// Where those are in the temporary file.
    at: u64,
}

impl Found {
    fn shape(&self) -> (usize, usize) {
        (self.row_len, self.n_rows)
    }
}

/// What stands in the file of a matrix.
struct Encoded {
    codes: Codes,
    a: Vec<u8>,
    b: Vec<u8>,
}

impl Encoded {
    /// The bytes of its tensors, and what they are decoded to.
    fn parts(self) -> (Vec<Vec<u8>>, Stored) {
        let scales: Vec<u8> = self.codes.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        let parts = if self.codes.rank() > 0 { vec![scales, self.a, self.b] } else { Vec::new() };
        (parts, Stored::Codes(self.codes))
    }
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

/// Writes a patch of the vector of `plan`, which is one of [`super::plan_extract`]. Also gives the plan of what was written
/// as it says.
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
    let extractor = Extractor { plan, inputs, target, n_weights: n_weights(inputs), path, observer };
    pipeline::pool(budget.threads.max(1))?.install(|| extractor.write(&options, budget))
}

struct Extractor<'a> {
    plan: &'a MergePlan,
    inputs: &'a Inputs,
    target: Target,
    /// Of all matrices.
    n_weights: u64,
    path: &'a Path,
    observer: &'a dyn Observer,
}

/// Whether a tensor is decomposed.
fn is_decomposed(tensor: &TensorPlan) -> bool {
    let is_matrix = tensor.ne.len() == 2 && tensor.ty != GgmlType::F32 && tensor.kept.is_none();
    // An untied output is a matrix like others, unless only some rows of it moved.
    let is_by_token = has_row_per_token(&tensor.name) && tensor.name != "output.weight";
    is_matrix && tensor.selected.is_none() && !is_by_token && tensor.name.len() + SVD_A.len() <= gguf::MAX_NAME_BYTES
}

/// How near to the size asked for is near enough.
const NEAR: f64 = 0.98;

/// Encodings of everything on the way there.
const TRIALS: usize = 9;

/// Bytes of zstd for those of entropies.
const OVERHEAD: f64 = 1.2;

/// Weights of τ that are measured at a time.
const MEASURED_WEIGHTS: usize = 1 << 18;

impl Extractor<'_> {
    fn write(&self, options: &WriteOptions, budget: &Budget) -> Result<(Complete, Measured), Error> {
        let mut spill = Spill::beside(self.path)?;
        let found = self.decompose(&mut spill, budget)?;
        let decomposed: Vec<usize> = found.iter().map(|found| found.tensor).collect();
        let rest = self.rest(&decomposed)?;
        let (step, header) = match self.target {
            Target::Rank(_) => (0.0, self.header_of_factors(&rest, &found)?),
            _ => {
                let (step, sizes) = self.search(&rest, &found, &mut spill)?;
                (step, self.header(&rest, &found, &sizes)?)
            }
        };
        let n_rest = rest.tensors().len();
        let writer = Writer::create(header, self.path, options)?;
        let mut measured = match n_rest {
            0 => Measured::default(),
            _ => pipeline::run(&rest, self.inputs, &FirstTensors(&writer), self.observer, budget)?,
        };
        let mut next = n_rest;
        for found in &found {
            let name = self.plan.tensors()[found.tensor].name.clone();
            let (parts, stored) = match self.target {
                Target::Rank(_) => self.factors(found, &mut spill)?,
                _ => self.encode(found, step, &mut spill)?.parts(),
            };
            for bytes in &parts {
                writer.write(next, 0, bytes)?;
                self.observer.written(bytes.len() as u64);
                next += 1;
            }
            let moments = self.measure(found, &stored)?;
            measured.total += moments;
            measured.tensors.push(TensorResult { name, moments });
        }
        if self.observer.is_cancelled() {
            return Err(pipeline::Error::Cancelled.into());
        }
        let metadata = pipeline::describe(&writer, writer.header().metadata(), &measured)?;
        Ok((writer.complete(Some(metadata))?, measured))
    }

    /// The plan without these tensors.
    fn rest(&self, decomposed: &[usize]) -> Result<MergePlan, Error> {
        let tensors = self.plan.tensors().iter().enumerate().filter(|(i, _)| !decomposed.contains(i));
        let tensors = tensors.map(|(_, tensor)| tensor.clone()).collect();
        Ok(MergePlan::from_parts(self.plan.header().metadata().clone(), tensors, Vec::new(), Vec::new())?)
    }

    fn decompose(&self, spill: &mut Spill, budget: &Budget) -> Result<Vec<Found>, Error> {
        let mut all = Vec::new();
        for (tensor, planned) in self.plan.tensors().iter().enumerate().filter(|(_, t)| is_decomposed(t)) {
            if self.observer.is_cancelled() {
                return Err(pipeline::Error::Cancelled.into());
            }
            let tau = Tau::new(self.inputs, planned);
            let (row_len, n_rows) = (tau.row_len(), tau.n_rows() as usize);
            let rank = self.target.rank(self.n_weights, row_len, n_rows);
            let name = || planned.name.clone();
            let needed = needed_bytes(n_rows, row_len, rank);
            if needed > budget.memory {
                return Err(pipeline::Error::Budget { tensor: name(), needed, budget: budget.memory }.into());
            }
            let settings = RankSettings::new(rank);
            let mut low = low_rank::decompose(&tau, &settings).map_err(|source| match source {
                low_rank::Error::Rows(e) => Error::Pipeline(e),
                source => Error::Decomposition { tensor: name(), source },
            })?;
            let at = spill.push(&low)?;
            (low.a, low.b) = (Vec::new(), Vec::new());
            all.push(Found { tensor, row_len, n_rows, low, at });
        }
        Ok(all)
    }

    fn encode(&self, found: &Found, step: f64, spill: &mut Spill) -> Result<Encoded, Error> {
        if self.observer.is_cancelled() {
            return Err(pipeline::Error::Cancelled.into());
        }
        let low = spill.read(found)?;
        let codes = encode::encode(&low, found.shape(), step);
        let compress = |rows: &[i8], row_len| encode::compress(rows, row_len).map_err(|e| spill.error(e));
        let (a, b) = (compress(&codes.a, found.row_len)?, compress(&codes.b, found.n_rows)?);
        Ok(Encoded { codes, a, b })
    }

    /// Both factors in F16, by which their numbers are rounded.
    fn factors(&self, found: &Found, spill: &mut Spill) -> Result<(Vec<Vec<u8>>, Stored), Error> {
        let LowRank { a, b, rank, .. } = spill.read(found)?;
        let mut parts = Vec::new();
        let mut halves = |mut factor: Vec<f32>| {
            let mut bytes = vec![0; factor.len() * 2];
            quants::quantize_row(GgmlType::F16, &factor, &mut bytes)
                .and_then(|()| quants::dequantize_row(GgmlType::F16, &bytes, &mut factor))
                .expect("F16 can be written and has no blocks");
            parts.push(bytes);
            match check_finite(&factor) {
                None => Ok(factor),
                Some(_) => Err(Error::Range { tensor: self.plan.tensors()[found.tensor].name.clone() }),
            }
        };
        let (a, b) = (halves(a)?, halves(b)?);
        Ok((parts, Stored::Factors { a, b, rank }))
    }

    /// Bytes of the three tensors of each matrix at a step; none where nothing is left of it.
    fn sizes(&self, found: &[Found], step: f64, spill: &mut Spill) -> Result<Vec<[u64; 3]>, Error> {
        let size = |found: &Found| {
            let encoded = self.encode(found, step, spill)?;
            Ok([encoded.codes.rank() as u64, encoded.a.len() as u64, encoded.b.len() as u64])
        };
        found.iter().map(size).collect()
    }

    /// The header of the patch with all factors of the rank that was looked for.
    fn header_of_factors(&self, rest: &MergePlan, found: &[Found]) -> Result<Header, Error> {
        let factors = |found: &Found| {
            let spec = |end: &str, ne: [usize; 2]| TensorSpec {
                name: self.plan.tensors()[found.tensor].name.clone() + end,
                ne: ne.map(|n| n as u64).to_vec(),
                ty: GgmlType::F16,
            };
            let rank = found.low.rank;
            [spec(LOW_RANK_A, [found.row_len, rank]), spec(LOW_RANK_B, [rank, found.n_rows])]
        };
        let rest_specs = rest.tensors().iter().map(|t| TensorSpec { name: t.name.clone(), ne: t.ne.clone(), ty: t.ty });
        let specs: Vec<TensorSpec> = rest_specs.chain(found.iter().flat_map(factors)).collect();
        let mut metadata: Metadata = rest.header().metadata().clone();
        metadata.set(super::ENCODING_KEY, "lora");
        seal::reserve(&mut metadata, specs.len());
        Ok(Header::new(metadata, specs)?)
    }

    /// The header of the patch with matrices of these sizes.
    fn header(&self, rest: &MergePlan, found: &[Found], sizes: &[[u64; 3]]) -> Result<Header, Error> {
        let stored = || found.iter().zip(sizes).filter(|(_, [rank, ..])| *rank > 0);
        let name = |found: &Found| &self.plan.tensors()[found.tensor].name;
        let spec =
            |found: &Found, end: &str, n: u64, ty| TensorSpec { name: name(found).clone() + end, ne: vec![n], ty };
        let specs = rest.tensors().iter().map(|t| TensorSpec { name: t.name.clone(), ne: t.ne.clone(), ty: t.ty });
        let svd = stored().flat_map(|(found, [rank, a, b])| {
            let bytes = |end, n: &u64| spec(found, end, *n, GgmlType::I8);
            [spec(found, SVD_SCALES, *rank, GgmlType::F32), bytes(SVD_A, a), bytes(SVD_B, b)]
        });
        let specs: Vec<TensorSpec> = specs.chain(svd).collect();
        let mut metadata: Metadata = rest.header().metadata().clone();
        let names: gguf::StringArray = stored().map(|(found, _)| name(found)).collect();
        let shapes: Vec<u32> = stored().flat_map(|(found, _)| [found.row_len as u32, found.n_rows as u32]).collect();
        metadata.set(SVD_TENSORS, Value::Array(Array::Strings(names)));
        metadata.set(SVD_SHAPES, Value::Array(Array::from_u32s(&shapes)));
        metadata.set(super::ENCODING_KEY, "svd");
        seal::reserve(&mut metadata, specs.len());
        Ok(Header::new(metadata, specs)?)
    }

    /// What counts against the target.
    fn size(&self, rest: &MergePlan, found: &[Found], sizes: &[[u64; 3]]) -> Result<u64, Error> {
        match self.target {
            Target::Bytes(_) => Ok(self.header(rest, found, sizes)?.file_len()),
            Target::Bits(_) | Target::Rank(_) => {
                let dense: u64 =
                    rest.tensors().iter().filter(|t| t.n_dims() > 1 && t.kept.is_none()).map(|t| t.size()).sum();
                Ok(dense + sizes.iter().map(|[rank, a, b]| rank * 4 + a + b).sum::<u64>())
            }
        }
    }

    /// The step whose patch is as large as asked for and no larger, and the sizes with it.
    fn search(&self, rest: &MergePlan, found: &[Found], spill: &mut Spill) -> Result<(f64, Vec<[u64; 3]>), Error> {
        let limit = match self.target {
            Target::Bytes(bytes) => bytes,
            Target::Bits(bits) => (bits * self.n_weights as f64 / 8.0) as u64,
            Target::Rank(_) => u64::MAX,
        };
        let nothing = vec![[0; 3]; found.len()];
        let least = self.size(rest, found, &nothing)?;
        if least > limit {
            return Err(Error::Size { asked: limit, least });
        }
        let room = (limit - least) as f64;
        let expected =
            |step: f64| found.iter().map(|f| encode::expected(&f.low, f.shape(), step).bits).sum::<f64>() / 8.0;
        let mut best = None;
        let (mut too_large, mut small_enough) = (None, None);
        // Bytes of the file for those expected, by the last trial.
        let mut overhead = OVERHEAD;
        for _ in 0..TRIALS {
            let guess = bisect(|step| expected(step) * overhead, room * (1.0 + NEAR) / 2.0);
            // What was too large and what was not are on both sides of it.
            let step = match (too_large, small_enough) {
                (Some(low), Some(high)) if guess <= low || guess >= high => f64::sqrt(low * high),
                (Some(low), None) if guess <= low => low * 2.0,
                (None, Some(high)) if guess >= high => high / 2.0,
                _ => guess,
            };
            let sizes = self.sizes(found, step, spill)?;
            let size = self.size(rest, found, &sizes)?;
            if size <= limit && best.as_ref().is_none_or(|(_, _, largest)| size > *largest) {
                best = Some((step, sizes, size));
            }
            let is_near = |size: u64| (size - least) as f64 >= NEAR * room;
            if best.as_ref().is_some_and(|(_, _, size)| is_near(*size)) || (size == least && expected(step) == 0.0) {
                break;
            }
            match size > limit {
                true => too_large = Some(too_large.map_or(step, |low: f64| low.max(step))),
                false => small_enough = Some(small_enough.map_or(step, |high: f64| high.min(step))),
            }
            let of_step = expected(step);
            overhead = if of_step > 0.0 && size > least { (size - least) as f64 / of_step } else { overhead };
        }
        Ok(best.map_or((f64::INFINITY, nothing), |(step, sizes, _)| (step, sizes)))
    }

    /// Compares what is stored with τ.
    fn measure(&self, found: &Found, stored: &Stored) -> Result<Moments, Error> {
        let tau = Tau::new(self.inputs, &self.plan.tensors()[found.tensor]);
        let row_len = found.row_len.max(1);
        let block_rows = (MEASURED_WEIGHTS / row_len).max(1);
        let firsts: Vec<usize> = (0..found.n_rows).step_by(block_rows).collect();
        let scaled = match stored {
            Stored::Codes(codes) => codes.scaled_a(row_len),
            Stored::Factors { .. } => Vec::new(),
        };
        let sums = firsts.into_par_iter().map(|first| {
            let rows = first..(first + block_rows).min(found.n_rows);
            let n = rows.len() * row_len;
            let (mut delta, mut base, mut got) = (vec![0.0; n], Vec::new(), vec![0.0; n]);
            tau.read(first as u64, &mut delta, &mut base)?;
            match stored {
                Stored::Codes(codes) => codes.multiply(&scaled, found.n_rows, rows, &mut got),
                Stored::Factors { a, b, rank } => {
                    let left = &b[rows.start * rank..rows.end * rank];
                    quants::vectorized(AddProduct { out: &mut got, left, right: a, rank: *rank });
                }
            }
            let base = (!base.is_empty()).then_some(&base[..]);
            let mut moments = Moments::default();
            moments.add(&Weights { delta: &delta, model: None, base, wanted: &delta, got: &got });
            Ok(moments)
        });
        let sums: Vec<Result<Moments, pipeline::Error>> = sums.collect();
        let mut total = Moments::default();
        for sum in sums {
            total += sum?;
        }
        Ok(total)
    }
}

/// The largest rank that the bits could be spent on: a number of a factor takes one at least.
fn rank_for(bits: f64, row_len: usize, n_rows: usize) -> usize {
    let numbers = (row_len + n_rows).max(1) as f64;
    let rank = bits * row_len as f64 * n_rows as f64 / numbers;
    (rank.ceil() as usize).max(8).min(row_len).min(n_rows)
}

/// Bytes that finding and encoding a matrix takes: factors in f32 and f64, and its products.
fn needed_bytes(n_rows: usize, row_len: usize, rank: usize) -> u64 {
    let found = low_rank::needed_bytes(n_rows as u64, row_len, rank).unwrap_or(u64::MAX);
    let numbers = ((n_rows + row_len) as u64).saturating_mul(rank as u64);
    let encoded = numbers.saturating_mul(4 + 16 + 2).saturating_add((rank as u64).pow(2).saturating_mul(32));
    found.max(encoded)
}

/// The least step, to one part in a thousand, of which `size` is no more than `most`.
fn bisect(size: impl Fn(f64) -> f64, most: f64) -> f64 {
    // In powers of two.
    let (mut low, mut high) = (-80.0, 80.0);
    while high - low > 1e-3 {
        let middle: f64 = (low + high) / 2.0;
        if size(middle.exp2()) <= most { high = middle } else { low = middle }
    }
    high.exp2()
}

/// A writer whose first tensors are those of a plan.
struct FirstTensors<'a>(&'a Writer);

impl TensorSink for FirstTensors<'_> {
    fn write(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), gguf::Error> {
        self.0.write(tensor, offset, bytes)
    }
}

/// Singular vectors in a nameless temporary file.
struct Spill {
    file: File,
    len: u64,
    path: PathBuf,
}

impl Spill {
    fn beside(path: &Path) -> Result<Self, Error> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::tempfile_in(folder).map_err(|source| Error::Spill { path: path.to_owned(), source })?;
        Ok(Spill { file, len: 0, path: path.to_owned() })
    }

    fn error(&self, source: io::Error) -> Error {
        Error::Spill { path: self.path.clone(), source }
    }

    /// Gives the position of the factors.
    fn push(&mut self, low: &LowRank) -> Result<u64, Error> {
        let at = self.len;
        for factor in [&low.a, &low.b] {
            for piece in factor.chunks(1 << 16) {
                let bytes: Vec<u8> = piece.iter().flat_map(|x| x.to_le_bytes()).collect();
                self.file.write_all(&bytes).map_err(|e| self.error(e))?;
                self.len += bytes.len() as u64;
            }
        }
        Ok(at)
    }

    fn read(&mut self, found: &Found) -> Result<LowRank, Error> {
        let mut low = found.low.clone();
        self.file.seek(SeekFrom::Start(found.at)).map_err(|e| self.error(e))?;
        low.a = self.numbers(low.rank * found.row_len)?;
        low.b = self.numbers(low.rank * found.n_rows)?;
        Ok(low)
    }

    fn numbers(&mut self, n: usize) -> Result<Vec<f32>, Error> {
        let mut numbers = Vec::with_capacity(n);
        let mut bytes = vec![0; 4 << 16];
        while numbers.len() < n {
            let piece = &mut bytes[..4 * (n - numbers.len()).min(1 << 16)];
            self.file.read_exact(piece).map_err(|source| Error::Spill { path: self.path.clone(), source })?;
            numbers.extend(piece.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        }
        Ok(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bisection_finds_the_step() {
        let step = bisect(|step| 1000.0 / step, 250.0);
        assert!((4.0..4.01).contains(&step), "{step}");
        assert_eq!(rank_for(1.0, 256, 768), 192);
        assert_eq!(rank_for(16.0, 256, 768), 256);
        assert_eq!(rank_for(0.001, 4, 768), 4);
    }
}
