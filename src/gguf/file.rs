//! One open GGUF file.

use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::header::{Header, TensorInfo};
use super::memory::Tensors;
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
    data: Data,
    header: Header,
    header_memory: u64,
    n_bytes: u64,
}

/// Where the data of a file are.
#[derive(Debug)]
pub(super) enum Data {
    Disk(fs::File),
    Memory(Tensors),
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
        Ok(File { path: path.to_owned(), data: Data::Disk(file), header, header_memory, n_bytes: about.len() })
    }

    /// A file whose data are in memory.
    pub(super) fn in_memory(path: PathBuf, header: Header, tensors: Tensors) -> Self {
        let n_bytes = header.file_len();
        File { path, data: Data::Memory(tensors), header_memory: header.len(), header, n_bytes }
    }

    /// The path it was opened under.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where its data are.
    pub(super) fn data(&self) -> &Data {
        &self.data
    }

    /// Whether it is in memory alone: then there is no such file on the disk.
    pub fn is_in_memory(&self) -> bool {
        matches!(self.data, Data::Memory(_))
    }

    /// The position in the header of a tensor of this file.
    pub(super) fn index_of(&self, tensor: &TensorInfo) -> usize {
        let tensors = self.header.tensors();
        let first = tensors.partition_point(|t| t.offset() < tensor.offset());
        // Tensors without weights begin where the next one does.
        let among = tensors[first..].iter().position(|t| t.name() == tensor.name());
        first + among.expect("a tensor of this file")
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
        match &self.data {
            Data::Disk(file) => positional::read_exact_at(file, buf, at).map_err(Error::io(&self.path, "read")),
            Data::Memory(tensors) => {
                buf.copy_from_slice(&tensors[self.index_of(tensor)][offset as usize..][..buf.len()]);
                Ok(())
            }
        }
    }
}
