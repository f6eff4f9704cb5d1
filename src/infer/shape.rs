//! Tensors by name, each in the shape that is expected.

use super::Error;
use crate::gguf::{Model, TensorId};
use crate::quants;

/// The tensor of a name, in its shape and of a type that can be decoded.
pub(super) fn require(model: &Model, name: &str, shape: &[usize]) -> Result<TensorId, Error> {
    let expected = || shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" × ");
    let fault = |found: String| Error::Tensor {
        path: model.path().to_owned(),
        tensor: name.to_owned(),
        expected: expected(),
        found,
    };
    let Some(id) = model.find(name) else { return Err(fault("no such tensor".to_owned())) };
    let info = model.tensor(id);
    let has_shape = (0..4).all(|d| {
        let expected = shape.get(d).map_or(1, |&n| n as u64);
        info.ne().get(d).copied().unwrap_or(1) == expected
    });
    if !has_shape {
        let found: Vec<String> = info.ne().iter().map(u64::to_string).collect();
        return Err(fault(found.join(" × ")));
    }
    if !quants::is_supported(info.ty()) {
        let path = model.path_of(id).to_owned();
        return Err(Error::Type { path, tensor: name.to_owned(), ty: info.ty() });
    }
    Ok(id)
}
