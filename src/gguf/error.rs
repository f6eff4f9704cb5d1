//! What can be wrong with a GGUF file, or with the place one is to be written to.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::printable::printable;

/// A rule of the container that a file can break.
///
/// The numbers are those of the table in `docs/GGUF_CHECKS.md`, which follows the order in which
/// llama.cpp's loader meets them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Check {
    /// The first four bytes are `GGUF`.
    Magic,
    /// The version is 2 or 3.
    Version,
    /// The counts of tensors and keys can fit in the file.
    Counts,
    /// Nothing is read past the end of the file.
    Bounds,
    /// Keys are non-empty UTF-8 and unique.
    Key,
    /// Values have a known type; arrays do not nest.
    ValueType,
    /// `general.alignment` is a u32 power of two.
    Alignment,
    /// Tensor names are UTF-8 without NUL, at most 63 bytes, and unique.
    TensorName,
    /// At most 4 dimensions, none negative, their product within 63 bits.
    Shape,
    /// The type exists and a row is a whole number of its blocks.
    TensorType,
    /// The data section begins inside the file.
    DataStart,
    /// Each tensor begins where the one before it ends, padded.
    Offset,
    /// Sizes and their sum fit in 64 bits.
    Size,
    /// The last byte of every tensor is inside the file.
    DataEnd,
    /// The shards of a split set are complete and agree.
    Split,
    /// Token lists and the rows of embedding and output have one length.
    Vocabulary,
}

impl Check {
    /// Every check, in the order of its number.
    pub const ALL: [Check; 16] = {
        use Check::*;
        [
            Magic, Version, Counts, Bounds, Key, ValueType, Alignment, TensorName, Shape, TensorType, DataStart,
            Offset, Size, DataEnd, Split, Vocabulary,
        ]
    };

    /// Its number in the table, from 1.
    pub fn number(self) -> usize {
        self as usize + 1
    }
}

/// A broken rule, without the file's name: the evidence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    pub(super) check: Check,
    pub(super) place: String,
    pub(super) offset: u64,
    pub(super) expected: String,
    pub(super) found: String,
}

impl Fault {
    pub(super) fn at(self, path: &Path) -> Error {
        let Fault { check, place, offset, expected, found } = self;
        Error::Malformed { path: path.to_owned(), check, place, offset, expected, found }
    }
}

/// Why a GGUF file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The disk or the system refused.
    #[error("{}: cannot {action}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The file breaks a rule of the format: its author's fault, or a damaged download.
    #[error("{}: {place} (byte {offset}): expected {expected}, found {found}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The rule.
        check: Check,
        /// The key, tensor or field.
        place: String,
        /// Where in the file, in bytes.
        offset: u64,
        /// What the rule asks for.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// The file is legal but larger than the caller's [`Limits`](super::Limits) allow.
    #[error("{}: {what} is {found}, more than the limit of {limit}", path.display())]
    Limit {
        /// The file.
        path: PathBuf,
        /// Which limit.
        what: &'static str,
        /// The value of the limit.
        limit: u64,
        /// What the file asks for.
        found: u64,
    },
    /// A big-endian file: its header can be shown, its weights cannot be computed with.
    #[error("{}: the file is big-endian; convert it to little-endian first (gguf_convert_endian.py of llama.cpp)", path.display())]
    BigEndian {
        /// The file.
        path: PathBuf,
    },
    /// The output exists and may not be replaced.
    #[error("{}: the file exists; give --overwrite to replace it", path.display())]
    OutputExists {
        /// The output.
        path: PathBuf,
    },
    /// The output is one of the inputs, perhaps through a link.
    #[error("{}: the output is the same file as the input {}; choose another name", path.display(), input.display())]
    OutputIsInput {
        /// The output.
        path: PathBuf,
        /// The input it is the same as.
        input: PathBuf,
    },
    /// The output's name belongs to something that is no regular file.
    #[error("{}: the output must be a regular file, found {found}", path.display())]
    OutputKind {
        /// The output.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The folder of the output is not there.
    #[error("{}: there is no folder {}; make it first", path.display(), folder.display())]
    NoFolder {
        /// The output.
        path: PathBuf,
        /// Its folder.
        folder: PathBuf,
    },
    /// The disk cannot hold the output.
    #[error(
        "{}: the output needs {needed} bytes{}, the disk has {available} free",
        path.display(),
        if *temporary > 0 { format!(" and {temporary} more for temporary files beside it") } else { String::new() }
    )]
    NoSpace {
        /// The output.
        path: PathBuf,
        /// Bytes of the output.
        needed: u64,
        /// Bytes of temporary files beside it, until it is done.
        temporary: u64,
        /// Bytes free for this user.
        available: u64,
    },
    /// A split into more shards than the format can count.
    #[error(
        "shards of {max_size} bytes would be {n_shards}, and a set has at most 65535; give a larger --split-max-size"
    )]
    TooManyShards {
        /// Shards it would take.
        n_shards: usize,
        /// Bytes asked for.
        max_size: u64,
    },
    /// The finished file could not take its final name; it is kept where it is.
    #[error("{}: cannot take its final name; the finished file is {}", path.display(), kept.display())]
    NotRenamed {
        /// The final name.
        path: PathBuf,
        /// Where the finished data are.
        kept: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A header that was to be written cannot be: the caller's fault.
    #[error("cannot lay out {place}: expected {expected}, found {found}")]
    Layout {
        /// The rule.
        check: Check,
        /// The key or tensor.
        place: String,
        /// What the rule asks for.
        expected: String,
        /// What was given.
        found: String,
    },
}

impl Error {
    pub(super) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { path, action, source }
    }

    /// The rule that was broken, if the error is about one.
    pub fn check(&self) -> Option<Check> {
        match self {
            Error::Malformed { check, .. } | Error::Layout { check, .. } => Some(*check),
            _ => None,
        }
    }
}

/// `kind` and a name from a file, as the place of an error: plain names as they are, so that they
/// can be searched for, but no control characters, and no more than 256 characters of what may be
/// megabytes.
pub(super) fn place_of(kind: &str, name: &str) -> String {
    match name.char_indices().nth(256) {
        Some((end, _)) => format!("{kind} {}…", printable(&name[..end])),
        None => format!("{kind} {}", printable(name)),
    }
}

/// Shows at most 64 bytes of a name from a file, with control characters escaped.
pub(super) fn shown(bytes: &[u8]) -> impl fmt::Display + '_ {
    let head = &bytes[..bytes.len().min(64)];
    let more = if head.len() < bytes.len() { "…" } else { "" };
    format!("'{}'{more}", head.escape_ascii())
}
