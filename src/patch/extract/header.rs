//! The header of a patch with matrices behind the tensors of a plan.

use super::error::Error;
use super::kinds::is_dense;
use super::target::Target;
use crate::gguf::{self, Array, Header, Metadata, TensorSpec, Value};
use crate::patch::format::{ENCODING, SVD, SVD_SHAPES, SVD_TENSORS};
use crate::patch::seal;
use crate::plan::{MergePlan, TensorPlan};

/// A header with the tensors of a plan and these behind them.
pub(super) fn header(
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
