//! The header of a patch whose matrices are decomposed.

use super::decompose::Found;
use super::error::Error;
use super::extractor::Extractor;
use super::kinds::is_dense;
use super::matrix::Matrix;
use super::target::Target;
use crate::ggml::GgmlType;
use crate::gguf::{self, Array, Header, Metadata, TensorSpec, Value};
use crate::patch::format::{
    ENCODING, LOW_RANK, LOW_RANK_A, LOW_RANK_B, SVD, SVD_A, SVD_B, SVD_SCALES, SVD_SHAPES, SVD_TENSORS,
};
use crate::patch::seal;
use crate::plan::{MergePlan, TensorPlan};

/// A header with the tensors of a plan and these behind them.
fn header(
    rest: &MergePlan,
    mut metadata: Metadata,
    encoding: &str,
    more: impl Iterator<Item = TensorSpec>,
) -> Result<Header, Error> {
    let planned = |t: &TensorPlan| TensorSpec { name: t.name.clone(), ne: t.ne.clone(), ty: t.ty };
    let specs: Vec<TensorSpec> = rest.tensors().iter().map(planned).chain(more).collect();
    metadata.set(ENCODING, encoding);
    seal::reserve(&mut metadata, specs.len());
    Ok(Header::new(metadata, specs)?)
}

/// What counts against the target of everything that is not decomposed: the file without matrices,
/// or matrices that are dense.
pub(super) fn least_size(target: Target, rest: &MergePlan) -> Result<u64, Error> {
    match target {
        Target::Bytes(_) => {
            let mut metadata = rest.header().metadata().clone();
            metadata.set(SVD_TENSORS, Value::Array(Array::Strings(gguf::StringArray::default())));
            metadata.set(SVD_SHAPES, Value::Array(Array::from_u32s(&[])));
            Ok(header(rest, metadata, SVD, std::iter::empty())?.file_len())
        }
        Target::Bits(_) | Target::Rank(_) => Ok(rest.tensors().iter().filter(|t| is_dense(t)).map(|t| t.size()).sum()),
    }
}

impl Extractor<'_> {
    /// The header of the patch with all factors of the rank that was looked for.
    pub(super) fn header_of_factors(&self, rest: &MergePlan, found: &[Found<'_>]) -> Result<Header, Error> {
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
    pub(super) fn header(&self, rest: &MergePlan, found: &[Found<'_>], sizes: &[[u64; 3]]) -> Result<Header, Error> {
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
        header(rest, metadata, SVD, svd)
    }
}
