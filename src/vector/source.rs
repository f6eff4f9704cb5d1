//! Weights from somewhere, as f32, and the arithmetic of the vector on them.

use std::path::Path;

use super::error::Error;
use crate::gguf::{self, Model, TensorId, TensorInfo};
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

/// Decodes weights as [`decode`] does, but leaves the factors out that a tensor may have.
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
/// Those of [`decode`], and whatever the container reports, as of a row that is not there.
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

/// Divides weights by the factors of their tensor, if it has any. `first` is the index in the
/// tensor of `weights[0]`.
///
/// # Errors
/// [`Error::Scale`], [`Error::Container`].
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
