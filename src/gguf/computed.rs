//! Tensors that stand in no file, but are computed from what does.

use std::fmt::Debug;
use std::path::Path;

use super::error::{Error, Fault, place_of};
use super::header::TensorInfo;
use super::{File, MAX_DIMS};
use crate::ggml::GgmlType;

/// Who computes tensors of a model from its files.
pub trait ComputedTensors: Debug + Send + Sync {
    /// Writes weights of the `index`-th computed tensor, from the `first`-th on, counted through
    /// the tensor with the row's direction fastest.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Malformed`] if what is stored cannot be decoded.
    fn read(&self, files: &[File], index: usize, first: u64, out: &mut [f32]) -> Result<(), Error>;

    /// Bytes that [`read`](Self::read) takes for as many weights of this tensor.
    fn scratch(&self, index: usize, n_weights: u64) -> u64;
}

/// Weights that are computed at a time, if a row is no longer: 2 MiB.
const PIECE: u64 = 1 << 19;

/// The computed tensors of a model.
#[derive(Debug)]
pub(super) struct Computed {
    pub(super) infos: Vec<TensorInfo>,
    tensors: Box<dyn ComputedTensors>,
}

impl Computed {
    /// Tensors of f32 of these names and shapes. `path` is the model's, for errors.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a shape that no tensor can have.
    pub(super) fn new(
        path: &Path,
        shapes: Vec<(String, [u64; MAX_DIMS])>,
        tensors: Box<dyn ComputedTensors>,
    ) -> Result<Self, Error> {
        let mut infos = Vec::new();
        for (name, ne) in shapes {
            let fault = |(check, expected, found)| {
                Fault { check, place: place_of("tensor", &name), offset: 0, expected, found }.at(path)
            };
            TensorInfo::checked_size(&ne, GgmlType::F32).map_err(fault)?;
            let n_dims = ne.iter().rposition(|&n| n > 1).map_or(1, |i| i as u32 + 1);
            infos.push(TensorInfo { name, ne, n_dims, ty: GgmlType::F32, offset: 0 });
        }
        Ok(Computed { infos, tensors })
    }

    /// Reads bytes of a tensor of f32, from `offset` bytes after its start.
    pub(super) fn read(&self, files: &[File], index: usize, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.infos[index].assert_range(offset, buf.len());
        let row_len = self.infos[index].row_len();
        let piece = self.piece(index);
        let (mut weights, mut at) = (Vec::new(), offset / 4);
        let mut rest = buf.as_chunks_mut().0;
        while !rest.is_empty() {
            // Pieces end with rows.
            let n = (piece - at % row_len).min(rest.len() as u64);
            let (now, after) = rest.split_at_mut(n as usize);
            weights.resize(n as usize, 0.0);
            self.tensors.read(files, index, at, &mut weights)?;
            now.iter_mut().zip(&weights).for_each(|(bytes, w)| *bytes = w.to_le_bytes());
            (rest, at) = (after, at + n);
        }
        Ok(())
    }

    /// Weights of a tensor that are computed at a time: whole rows.
    fn piece(&self, index: usize) -> u64 {
        let info = &self.infos[index];
        (PIECE / info.row_len()).clamp(1, info.n_rows().max(1)) * info.row_len()
    }

    /// Bytes that reading a tensor takes, besides the buffer.
    pub(super) fn scratch(&self, index: usize) -> u64 {
        let piece = self.piece(index);
        self.tensors.scratch(index, piece).saturating_add(piece.saturating_mul(4))
    }
}
