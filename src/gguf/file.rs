//! One open GGUF file.

use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::header::{Header, TensorInfo};
use super::positional;
use super::read::{Limits, read_header};

/// Bytes read at once while parsing a header. A vocabulary is some megabytes of short strings.
const HEADER_BUFFER: usize = 256 << 10;

/// An open GGUF file: its header in memory, its data read by position from any thread.
///
/// Positional reads rather than a memory map: they are as fast, the memory they use is the caller's
/// buffer, and a file that is cut short while in use is an error instead of a signal.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    file: fs::File,
    header: Header,
    header_memory: u64,
    n_bytes: u64,
}

impl File {
    /// Opens a file and reads its header; no tensor data is touched.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`] or [`Error::Limit`].
    pub fn open(path: &Path, limits: &Limits) -> Result<Self, Error> {
        // Asked before opening: a pipe without a writer would be waited for.
        let about = fs::metadata(path).map_err(Error::io(path, "open"))?;
        if !about.is_file() {
            let what =
                if about.is_dir() { "it is a folder" } else { "it is a device or pipe, and data are read by position" };
            return Err(Error::io(path, "read")(std::io::Error::other(what)));
        }
        let file = fs::File::open(path).map_err(Error::io(path, "open"))?;
        let about = file.metadata().map_err(Error::io(path, "look at"))?;
        let (header, header_memory) =
            read_header(BufReader::with_capacity(HEADER_BUFFER, &file), about.len(), path, limits)?;
        Ok(File { path: path.to_owned(), file, header, header_memory, n_bytes: about.len() })
    }

    /// The path it was opened under.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file itself.
    pub(super) fn as_fs_file(&self) -> &fs::File {
        &self.file
    }

    /// Bytes in it when it was opened.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Bytes of memory that its header takes at most, as [`Limits::max_header_memory`] counts them.
    pub(super) fn header_memory(&self) -> u64 {
        self.header_memory
    }

    /// The header of the file.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads `buf.len()` bytes of a tensor's data, from `offset` bytes after its start.
    ///
    /// # Errors
    /// [`Error::Io`], also when the file became shorter since it was opened.
    ///
    /// # Panics
    /// If the range reaches beyond the tensor.
    pub fn read(&self, tensor: &TensorInfo, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        tensor.assert_range(offset, buf.len());
        let at = self.header.data_offset() + tensor.offset() + offset;
        positional::read_exact_at(&self.file, buf, at).map_err(Error::io(&self.path, "read"))
    }
}
