//! Tensors as memory, for those who read every weight again and again.
//!
//! The pages belong to the system's cache, not to the process: a model larger than the memory can
//! be mapped, and two processes share it. In return, a file that is cut short while it is mapped
//! ends the process with SIGBUS, which is why nothing but inference maps files (see
//! [`super::File`]).

use std::ops::{Deref, Range};
use std::sync::Arc;

use memmap2::Mmap;

use super::error::Error;
use super::file::Data;
use super::model::Model;
use super::place::TensorId;

/// All files of a [`Model`], mapped.
#[derive(Debug)]
pub struct Mapping {
    /// None for what is in memory anyway.
    files: Vec<Option<Arc<Mmap>>>,
}

/// The bytes of one tensor, which keep its file mapped.
#[derive(Clone, Debug)]
pub struct Mapped {
    bytes: Bytes,
    range: Range<usize>,
}

#[derive(Clone, Debug)]
enum Bytes {
    File(Arc<Mmap>),
    Tensor(Arc<Vec<u8>>),
}

impl Model {
    /// Maps the files of the model.
    ///
    /// # Errors
    /// [`Error::Io`].
    #[allow(unsafe_code)]
    pub fn map(&self) -> Result<Mapping, Error> {
        let map = |file: &super::File| {
            let Data::Disk(disk) = file.data() else { return Ok(None) };
            // SAFETY: the map is read only, and of plain bytes. That nobody writes to the file
            // meanwhile cannot be promised by anyone: whoever does changes weights under a
            // computation or, by cutting the file short, ends the process by a signal. Both are
            // said in the documentation of this module.
            let map = unsafe { Mmap::map(disk) };
            map.map(Arc::new).map(Some).map_err(Error::io(file.path(), "map"))
        };
        Ok(Mapping { files: self.files().iter().map(map).collect::<Result<_, _>>()? })
    }

    /// The bytes of a tensor. `mapping` is that of this model.
    ///
    /// # Errors
    /// [`Error::Io`] if the file became shorter since it was opened.
    ///
    /// # Panics
    /// If `id` is not below [`Model::n_tensors`].
    pub fn mapped(&self, mapping: &Mapping, id: TensorId) -> Result<Mapped, Error> {
        let (tensor, index) = (self.tensor(id), self.file_of(id));
        let file = &self.files()[index];
        if let Data::Memory(tensors) = file.data() {
            let bytes = &tensors[file.index_of(tensor)];
            return Ok(Mapped { bytes: Bytes::Tensor(Arc::clone(bytes)), range: 0..bytes.len() });
        }
        let map = mapping.files[index].as_ref().expect("the mapping of this model");
        let start = file.header().data_offset() + tensor.offset();
        let end = start + tensor.size();
        if end > map.len() as u64 {
            let why = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "it became shorter since it was opened");
            return Err(Error::io(file.path(), "map")(why));
        }
        Ok(Mapped { bytes: Bytes::File(Arc::clone(map)), range: start as usize..end as usize })
    }
}

impl Mapped {
    /// A part of it.
    ///
    /// # Panics
    /// If it has no such part.
    pub fn part(&self, part: Range<usize>) -> Mapped {
        assert!(part.start <= part.end && part.end <= self.range.len(), "a part of what is mapped");
        let range = self.range.start + part.start..self.range.start + part.end;
        Mapped { bytes: self.bytes.clone(), range }
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.bytes {
            Bytes::File(map) => &map[self.range.clone()],
            Bytes::Tensor(tensor) => &tensor[self.range.clone()],
        }
    }
}
