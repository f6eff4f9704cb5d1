//! Weights from somewhere, as f32, and the arithmetic of the vector on them.

use std::path::{Path, PathBuf};

use super::fold::FOLD_KEYS;
use crate::gguf::{self, Model, TensorId, TensorInfo};
use crate::pool::NoThreads;
use crate::quants::{self, Loops};

/// Tensors that can be read in any order from any thread.
pub trait TensorSource: Sync {
    /// What is known of a tensor.
    fn tensor(&self, id: TensorId) -> &TensorInfo;

    /// The file to name when something is wrong with a tensor.
    fn path_of(&self, id: TensorId) -> &Path;

    /// The tensor of f32 that decoded weights of a tensor have to be multiplied by, one for each of
    /// its matrices.
    fn scale_of(&self, id: TensorId) -> Option<TensorId>;

    /// Reads `buf.len()` bytes of a tensor's blocks, from `offset` bytes after its start.
    ///
    /// # Errors
    /// Whatever the container reports.
    fn read(&self, id: TensorId, offset: u64, buf: &mut [u8]) -> Result<(), gguf::Error>;
}

impl TensorSource for Model {
    fn tensor(&self, id: TensorId) -> &TensorInfo {
        Model::tensor(self, id)
    }

    fn path_of(&self, id: TensorId) -> &Path {
        Model::path_of(self, id)
    }

    fn scale_of(&self, id: TensorId) -> Option<TensorId> {
        Model::scale_of(self, id)
    }

    fn read(&self, id: TensorId, offset: u64, buf: &mut [u8]) -> Result<(), gguf::Error> {
        Model::read(self, id, offset, buf)
    }
}

/// Why weights could not be had, or do not fit together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The container.
    #[error(transparent)]
    Container(#[from] gguf::Error),
    /// A tensor of a type that cannot be computed with.
    #[error("{}: tensor {tensor} cannot be read; get this model as F16, Q8_0 or a K-quant", path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The codec's answer.
        source: quants::Error,
    },
    /// A weight that is no number.
    #[error("{}: tensor {tensor}: weight {index} is {value}; the file is damaged or its training diverged", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Which weight, counted through the tensor with the row's direction fastest.
        index: u64,
        /// NaN or an infinity.
        value: f32,
    },
    /// A factor of weights that makes them all zero, or no numbers.
    #[error(
        "{}: tensor {tensor}: number {index} is {value}, but weights are multiplied by it; the file is damaged", path.display()
    )]
    Scale {
        /// The file.
        path: PathBuf,
        /// The tensor of factors.
        tensor: String,
        /// Which one.
        index: u64,
        /// Its value.
        value: f32,
    },
    /// A weight without a logarithm, where weights are added as logarithms.
    #[error(
        "{}: tensor {tensor}: weight {index} is 0, expected another number: the tensor holds -exp(A_log) and is added as its \
         logarithm; the file is damaged, or made by a program that adds these weights as they are stored", path.display()
    )]
    Zero {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Which weight, counted through the tensor with the row's direction fastest.
        index: u64,
    },
    /// A weight with another sign in another file, where weights are added as logarithms.
    #[error(
        "tensor {tensor}: weight {index} is {found} in {} but {expected} in {}: the tensor holds -exp(A_log) and is added as its \
         logarithm, so all files must have one sign there; one of them is damaged, or made by a program that adds these \
         weights as they are stored",
        found_in.display(), expected_in.display()
    )]
    Sign {
        /// The tensor.
        tensor: String,
        /// Which weight, counted through the tensor with the row's direction fastest.
        index: u64,
        /// The weight in the first of the files.
        expected: f32,
        /// That file.
        expected_in: PathBuf,
        /// The weight in the other file.
        found: f32,
        /// The other file.
        found_in: PathBuf,
    },
    /// A patch holds a tensor in other numbers than those that are added.
    #[error(
        "{}: tensor {tensor}: expected {expected}, found {found}; make the patch again with chatvec extract, from base and chat",
        path.display()
    )]
    PatchSpace {
        /// The patch.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What its numbers should be.
        expected: &'static str,
        /// What the patch says they are.
        found: &'static str,
    },
    /// A tensor that is folded differently in different files.
    #[error(
        "tensor {tensor} is {found} in {} but {expected} in {} (key {key}): numbers in different coordinates have no sum and no \
         distance; take files that are all plain, or all folded by the same {FOLD_KEYS}* keys (a patch is folded as the files \
         that it was made from)",
        found_in.display(), expected_in.display()
    )]
    Folded {
        /// The tensor, as the first file calls it.
        tensor: String,
        /// The key that says so.
        key: String,
        /// How the first file folds it.
        expected: String,
        /// The first file.
        expected_in: PathBuf,
        /// How the other file folds it.
        found: String,
        /// The other file.
        found_in: PathBuf,
    },
    /// A fold that is not understood.
    #[error(
        "{}: key {key}: expected {expected}, found {found}: how the weights of this file are folded is not known, so nothing can be \
         added to them; get the model with plain weights", path.display()
    )]
    FoldKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The system gave no threads.
    #[error(transparent)]
    Threads(#[from] NoThreads),
    /// A tensor has another shape in another file.
    #[error(
        "tensor {tensor} is {found:?} in {} but {expected:?} in {}; the files are no siblings",
        found_in.display(), expected_in.display()
    )]
    Shape {
        /// The tensor.
        tensor: String,
        /// Shape in the model, row length first.
        expected: Vec<u64>,
        /// The model's file.
        expected_in: PathBuf,
        /// Shape in the other file.
        found: Vec<u64>,
        /// The other file.
        found_in: PathBuf,
    },
    /// A tensor that only one of base and chat has.
    #[error("tensor {tensor} is in {} but not in {}; the files are no siblings", has.display(), lacks.display())]
    OneSided {
        /// The tensor.
        tensor: String,
        /// The file that has it.
        has: PathBuf,
        /// The file that lacks it.
        lacks: PathBuf,
    },
    /// The vector changes tensors that the model does not have.
    #[error(
        "{} tensors of {} have no place in {}, among them {}; the files are no siblings",
        tensors.len(), vector.display(), model.display(), tensors[0]
    )]
    NoPlace {
        /// Names of the tensors, at least one.
        tensors: Vec<String>,
        /// The vector's file.
        vector: PathBuf,
        /// The model.
        model: PathBuf,
    },
}

/// Decodes whole blocks of a tensor to weights as its model computes with them, and refuses what is
/// no number. `first` is the index in the tensor of `out[0]`.
///
/// # Errors
/// [`Error::Type`], [`Error::NotFinite`]; for a tensor with factors of its own also
/// [`Error::Scale`], [`Error::Container`].
pub fn decode(source: &dyn TensorSource, id: TensorId, first: u64, raw: &[u8], out: &mut [f32]) -> Result<(), Error> {
    decode_stored(source, id, raw, out)?;
    multiply_scale(source, id, first, out)?;
    refuse_not_finite(source, id, first, out)
}

/// As [`decode`], but without the factors that a tensor may have.
///
/// # Errors
/// [`Error::Type`], [`Error::NotFinite`].
pub fn decode_unscaled(
    source: &dyn TensorSource,
    id: TensorId,
    first: u64,
    raw: &[u8],
    out: &mut [f32],
) -> Result<(), Error> {
    decode_stored(source, id, raw, out)?;
    refuse_not_finite(source, id, first, out)
}

fn decode_stored(source: &dyn TensorSource, id: TensorId, raw: &[u8], out: &mut [f32]) -> Result<(), Error> {
    let info = source.tensor(id);
    quants::dequantize_row(info.ty(), raw, out).map_err(|e| Error::Type {
        path: source.path_of(id).to_owned(),
        tensor: info.name().to_owned(),
        source: e,
    })
}

/// Reads one row of a tensor.
///
/// # Errors
/// As [`decode`], and whatever the container reports, as of a row that is not there.
pub fn read_row(source: &dyn TensorSource, id: TensorId, row: u64) -> Result<Vec<f32>, Error> {
    let info = source.tensor(id);
    let (mut blocks, mut weights) = (vec![0; info.row_size() as usize], vec![0.0; info.row_len() as usize]);
    source.read(id, row * info.row_size(), &mut blocks)?;
    decode(source, id, row * info.row_len(), &blocks, &mut weights)?;
    Ok(weights)
}

/// Multiplies weights by the factors of their tensor, if it has any. `first` is the index in the
/// tensor of `weights[0]`.
///
/// # Errors
/// [`Error::Scale`], [`Error::Container`].
pub fn multiply_scale(source: &dyn TensorSource, id: TensorId, first: u64, weights: &mut [f32]) -> Result<(), Error> {
    rescale(source, id, first, weights, |w, scale| w * scale)
}

/// The inverse of [`multiply_scale`].
///
/// # Errors
/// As there.
pub fn divide_scale(source: &dyn TensorSource, id: TensorId, first: u64, weights: &mut [f32]) -> Result<(), Error> {
    rescale(source, id, first, weights, |w, scale| w / scale)
}

fn rescale(
    source: &dyn TensorSource,
    id: TensorId,
    first: u64,
    weights: &mut [f32],
    op: impl Fn(f32, f32) -> f32,
) -> Result<(), Error> {
    let Some(scale_id) = source.scale_of(id) else { return Ok(()) };
    let (scales, n_weights) = (source.tensor(scale_id), source.tensor(id).n_weights());
    // A tensor without weights has nothing that this could be asked for.
    let per_scale = (n_weights / scales.n_weights().max(1)).max(1);
    let (mut index, mut rest) = (first / per_scale, weights);
    let mut n = ((index + 1) * per_scale - first).min(rest.len() as u64) as usize;
    while !rest.is_empty() {
        let mut bytes = [0; 4];
        source.read(scale_id, 4 * index, &mut bytes)?;
        let value = f32::from_le_bytes(bytes);
        if value == 0.0 || !value.is_finite() {
            let (path, tensor) = (source.path_of(scale_id).to_owned(), scales.name().to_owned());
            return Err(Error::Scale { path, tensor, index, value });
        }
        let (these, after) = rest.split_at_mut(n);
        these.iter_mut().for_each(|w| *w = op(*w, value));
        (index, rest) = (index + 1, after);
        n = per_scale.min(rest.len() as u64) as usize;
    }
    Ok(())
}

fn refuse_not_finite(source: &dyn TensorSource, id: TensorId, first: u64, out: &[f32]) -> Result<(), Error> {
    match check_finite(out) {
        None => Ok(()),
        Some(i) => Err(Error::NotFinite {
            path: source.path_of(id).to_owned(),
            tensor: source.tensor(id).name().to_owned(),
            index: first + i as u64,
            value: out[i],
        }),
    }
}

/// The position of the first NaN or infinity, if there is one.
pub fn check_finite(weights: &[f32]) -> Option<usize> {
    // One pass without a branch is several times faster than a search, and almost always enough.
    if quants::vectorized(AllFinite(weights)) { None } else { weights.iter().position(|w| !w.is_finite()) }
}

struct AllFinite<'a>(&'a [f32]);

impl Loops for AllFinite<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let exponent = f32::INFINITY.to_bits();
        self.0.iter().fold(0, |bad, w| bad | u32::from(w.to_bits() & exponent == exponent)) == 0
    }
}

/// Rows that are computed on together: one, or as many short ones as make 4096 weights. Depends on
/// the row's length alone, so that sums over these groups are the same however a tensor is cut up.
pub fn minimum_rows(row_len: u64) -> u64 {
    (4096 / row_len.max(1)).max(1)
}
