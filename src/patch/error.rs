//! Why a file is no usable patch, or none could be planned.

use std::path::PathBuf;

use super::format::{TYPE, TYPE_KEY, VERSION, VERSION_KEY};
use crate::ggml::GgmlType;
use crate::gguf::{self, Model};
use crate::plan;
use crate::quants;
use crate::vector;

/// Why a file is no usable patch, or none could be planned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The container.
    #[error(transparent)]
    Container(#[from] gguf::Error),
    /// The planner.
    #[error(transparent)]
    Plan(#[from] plan::Error),
    /// The file is something else.
    #[error(
        "{}: key {TYPE_KEY}: expected \"{TYPE}\", found {found}; make a patch with chatvec extract", path.display()
    )]
    NotAPatch {
        /// The file.
        path: PathBuf,
        /// Its `general.type`.
        found: String,
    },
    /// The patch is of a format this version does not know.
    #[error("{}: key {VERSION_KEY}: expected at most {VERSION}, found {found}; {}", path.display(), newer_or_damaged(found))]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// What the file has of a matrix does not fit together.
    #[error("{}: tensor {tensor}: expected {expected}, found {found}; the patch is damaged", path.display())]
    Stored {
        /// The file.
        path: PathBuf,
        /// The tensor or the matrix it is a part of.
        tensor: String,
        /// What there should be.
        expected: String,
        /// What there is.
        found: String,
    },
    /// Tensors that would take more memory to compute than there is.
    #[error(
        "{}: tensor {tensor}: computing it from what is stored takes {needed} bytes of memory, allowed are {allowed}; give more --memory",
        path.display()
    )]
    Memory {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that are allowed.
        allowed: u64,
    },
    /// Tensors that would take more work to compute than a file of this size is worth.
    #[error(
        "{}: tensor {tensor}: expected at most {allowed} operations to compute all tensors of a file of {n_bytes} bytes, found {found}, \
         most of them for this one; no vector needs so many (--force goes on all the same)",
        path.display()
    )]
    Work {
        /// The file.
        path: PathBuf,
        /// The tensor that takes most.
        tensor: String,
        /// Bytes of the file.
        n_bytes: u64,
        /// Operations that are allowed: [`gguf::Limits::max_work_per_byte`] for each byte.
        allowed: u64,
        /// Operations that the file claims.
        found: u64,
    },
    /// A patch that is not what was written.
    #[error(
        "{}: expected the bytes that were written, found {found}; get the file again (chatvec verify says more, --force goes on all the \
         same)",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What its hashes say.
        found: String,
    },
    /// A key of a patch that cannot be used.
    #[error("{}: key {key}: expected {expected}; the patch is damaged", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it should be.
        expected: String,
    },
    /// Base or chat cannot be read.
    #[error(transparent)]
    Survey(#[from] vector::Error),
    /// A type that cannot be written.
    #[error(
        "a patch cannot be encoded as {ty}: {}",
        match quants::requires_importance(*.ty) {
            true => "that takes an importance matrix, and a vector has none; IQ2_S and Q2_K are near in size",
            false => "there is no encoder for it",
        }
    )]
    Encoding {
        /// The type.
        ty: GgmlType,
    },
}

impl Error {
    /// What is wrong with a tensor of a file.
    pub(super) fn stored(model: &Model, tensor: &str, expected: &str, found: &str) -> Self {
        let (path, tensor) = (model.path().to_owned(), tensor.to_owned());
        Error::Stored { path, tensor, expected: expected.to_owned(), found: found.to_owned() }
    }
}

/// What a version that is not known says of the file.
fn newer_or_damaged(found: &str) -> &'static str {
    let is_newer = found.parse::<u64>().is_ok_and(|version| version > VERSION.into());
    if is_newer { "a newer chatvec made it" } else { "the file is damaged: no patch has such a version" }
}
