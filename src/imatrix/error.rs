//! What can be wrong with an importance matrix.

use std::path::PathBuf;

use crate::gguf;

/// Why an importance matrix cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The container, of the GGUF form.
    #[error(transparent)]
    Container(#[from] gguf::Error),
    /// The disk or the system refused.
    #[error("{}: cannot read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file is something else.
    #[error(
        "{}: {place}: expected {expected}, found {found}; this is no importance matrix: make one with chatvec imatrix",
        path.display()
    )]
    NotAMatrix {
        /// The file.
        path: PathBuf,
        /// The key or field that shows it.
        place: &'static str,
        /// What a matrix has there.
        expected: &'static str,
        /// What the file has.
        found: String,
    },
    /// The file is a matrix, but damaged or unfinished.
    #[error("{}: {place}: expected {expected}, found {found}; download or make the matrix again", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The key, entry or field.
        place: String,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A value that no sum of squares has.
    #[error(
        "{}: entry {entry}: value {index} is {value}, expected a number from 0 on; leave the entry out with \
         --exclude-weights {entry}, or make the matrix again",
        path.display()
    )]
    Value {
        /// The file.
        path: PathBuf,
        /// The entry.
        entry: String,
        /// Which of its values.
        index: usize,
        /// The importance computed from it.
        value: f32,
    },
    /// An entry that does not fit the tensor of its name: the matrix of another model.
    #[error(
        "{}: entry {tensor}: expected {expected} values for a tensor of {}, found {found}; this is the matrix of \
         another model",
        path.display(), ne.iter().map(u64::to_string).collect::<Vec<_>>().join(" × ")
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape, row length first.
        ne: Vec<u64>,
        /// Values that would fit.
        expected: u64,
        /// Values of the entry.
        found: u64,
    },
    /// The choice of entries leaves none.
    #[error("{}: {option} {parts} leaves no entry of the matrix", path.display())]
    NoneLeft {
        /// The file.
        path: PathBuf,
        /// The option.
        option: &'static str,
        /// What it was given.
        parts: String,
    },
    /// The values take more memory than is allowed.
    #[error(
        "{}: its values take {}, but --memory allows {}; give more memory",
        path.display(), bytesize::ByteSize::b(*needed).display().iec(), bytesize::ByteSize::b(*allowed).display().iec()
    )]
    Memory {
        /// The file.
        path: PathBuf,
        /// Bytes of values, at least.
        needed: u64,
        /// Bytes that were allowed.
        allowed: u64,
    },
}
