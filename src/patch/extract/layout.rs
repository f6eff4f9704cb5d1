//! The header of a patch whose matrices are of known rank or size.

use super::decompose::Found;
use super::error::Error;
use super::extractor::Extractor;
use super::header::header;
use super::matrix::Matrix;
use crate::ggml::GgmlType;
use crate::gguf::{self, Array, Header, Metadata, TensorSpec, Value};
use crate::patch::format::{LOW_RANK, LOW_RANK_A, LOW_RANK_B, SVD, SVD_A, SVD_B, SVD_SCALES, SVD_SHAPES, SVD_TENSORS};

impl Extractor<'_> {
    /// The header of the patch with all factors of the rank that was looked for.
    pub(super) fn header_of_factors(&self, found: &[Found<'_>]) -> Result<Header, Error> {
        let rest = &self.parts.rest;
        let factors = found.iter().flat_map(|Found { matrix, low, .. }| {
            let spec = |end: &str, ne: [usize; 2]| TensorSpec {
                name: matrix.name.to_owned() + end,
                ne: ne.map(|n| n as u64).to_vec(),
                ty: GgmlType::F16,
            };
            [spec(LOW_RANK_A, [matrix.row_len, low.rank]), spec(LOW_RANK_B, [low.rank, matrix.n_rows])]
        });
        header(rest, rest.header().metadata().clone(), LOW_RANK, factors)
    }

    /// The header of the patch with matrices of these sizes.
    pub(super) fn header(&self, found: &[Found<'_>], sizes: &[[u64; 3]]) -> Result<Header, Error> {
        let stored = || found.iter().map(|found| found.matrix).zip(sizes).filter(|(_, [rank, ..])| *rank > 0);
        let spec =
            |matrix: &Matrix<'_>, end: &str, n, ty| TensorSpec { name: matrix.name.to_owned() + end, ne: vec![n], ty };
        let svd = stored().flat_map(|(matrix, &[rank, a, b])| {
            let bytes = |end, n| spec(&matrix, end, n, GgmlType::I8);
            [spec(&matrix, SVD_SCALES, rank, GgmlType::F32), bytes(SVD_A, a), bytes(SVD_B, b)]
        });
        let rest = &self.parts.rest;
        let mut metadata: Metadata = rest.header().metadata().clone();
        let names: gguf::StringArray = stored().map(|(matrix, _)| matrix.name).collect();
        let shapes: Vec<u32> = stored().flat_map(|(matrix, _)| [matrix.row_len as u32, matrix.n_rows as u32]).collect();
        metadata.set(SVD_TENSORS, Value::Array(Array::Strings(names)));
        metadata.set(SVD_SHAPES, Value::Array(Array::from_u32s(&shapes)));
        header(rest, metadata, SVD, svd)
    }
}
