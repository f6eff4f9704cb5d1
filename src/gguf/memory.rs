//! A file that is in memory alone: written in any order as one on the disk is, then read as a model.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::error::Error;
use super::header::{Header, TensorInfo};
use super::{File, Metadata, Model};

/// The bytes of each tensor of a header, in its order.
pub(super) type Tensors = Vec<Arc<Vec<u8>>>;

/// A model on its way in memory. Bytes may come from any thread in any order.
#[derive(Debug)]
pub struct MemoryWriter {
    header: Header,
    /// What messages call it.
    path: PathBuf,
    /// Empty until the first byte comes, so that nothing is touched that is not used.
    tensors: Vec<Mutex<Vec<u8>>>,
}

impl MemoryWriter {
    /// Takes memory for every tensor of a header. `path` is what messages call the model; there
    /// need not be such a file.
    ///
    /// # Errors
    /// [`Error::Io`] if the system does not give the memory.
    pub fn create(header: Header, path: &Path) -> Result<Self, Error> {
        let mut tensors = Vec::with_capacity(header.tensors().len());
        for tensor in header.tensors() {
            tensors.push(Mutex::new(reserved(tensor, path)?));
        }
        Ok(MemoryWriter { header, path: path.to_owned(), tensors })
    }

    /// Bytes of memory that the tensors of a header take.
    pub fn n_bytes(header: &Header) -> u64 {
        header.tensors().iter().map(TensorInfo::size).fold(0, u64::saturating_add)
    }

    /// Writes bytes of a tensor, `offset` bytes after its start.
    ///
    /// # Panics
    /// If there is no such tensor or the range reaches beyond it.
    pub fn write(&self, tensor: usize, offset: u64, bytes: &[u8]) {
        let info = &self.header.tensors()[tensor];
        info.assert_range(offset, bytes.len());
        let mut held = self.tensors[tensor].lock().unwrap_or_else(|e| e.into_inner());
        if held.is_empty() {
            held.resize(info.size() as usize, 0);
        }
        held[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Lays the model out under another header. The tensors `open` may have other types there: all
    /// of their bytes are to be written again. Every other tensor keeps its own.
    ///
    /// # Errors
    /// [`Error::Io`] if the system does not give the memory.
    ///
    /// # Panics
    /// If the header has another number of tensors.
    pub fn lay_out_anew(mut self, header: Header, open: &[usize]) -> Result<Self, Error> {
        assert_eq!(header.tensors().len(), self.tensors.len(), "tensors stay");
        for &tensor in open {
            self.tensors[tensor] = Mutex::default();
            self.tensors[tensor] = Mutex::new(reserved(&header.tensors()[tensor], &self.path)?);
        }
        self.header = header;
        Ok(self)
    }

    /// The model as it would be read from a file: with these metadata, if given, in place of the
    /// planned ones. What was not written is zero.
    ///
    /// # Errors
    /// Those of [`Model::open`] that concern tensors and vocabulary, and [`Error::Layout`].
    pub fn complete(self, metadata: Option<Metadata>) -> Result<Model, Error> {
        let MemoryWriter { mut header, path, tensors } = self;
        if let Some(metadata) = metadata {
            header.metadata = metadata;
        }
        let sizes = header.tensors().iter().map(TensorInfo::size);
        let held = tensors.into_iter().zip(sizes).map(|(bytes, size)| {
            let mut bytes = bytes.into_inner().unwrap_or_else(|e| e.into_inner());
            bytes.resize(size as usize, 0);
            Arc::new(bytes)
        });
        let held = held.collect();
        Model::of_files(vec![File::in_memory(path, header, held)])
    }
}

/// Room for the bytes of a tensor.
fn reserved(tensor: &TensorInfo, path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let is_there = usize::try_from(tensor.size()).is_ok_and(|size| bytes.try_reserve_exact(size).is_ok());
    match is_there {
        true => Ok(bytes),
        false => {
            let why = format!("no memory for the {} bytes of tensor {}", tensor.size(), tensor.name());
            Err(Error::io(path, "hold in memory")(io::Error::new(io::ErrorKind::OutOfMemory, why)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ggml::GgmlType;
    use crate::gguf::TensorSpec;

    fn header(types: [GgmlType; 2]) -> Header {
        let spec = |(name, ty): (&str, GgmlType)| TensorSpec { name: name.to_owned(), ne: vec![32, 2], ty };
        Header::new(Metadata::default(), ["a", "b"].into_iter().zip(types).map(spec)).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn what_was_written_is_read_and_mapped() {
        let writer = MemoryWriter::create(header([GgmlType::F16, GgmlType::F32]), Path::new("held")).unwrap();
        writer.write(1, 4, &[1, 2, 3, 4]);
        writer.write(0, 0, &[9; 128]);
        let writer = writer.lay_out_anew(header([GgmlType::F32, GgmlType::F32]), &[0]).unwrap();
        writer.write(0, 252, &[7; 4]);
        let model = writer.complete(None).unwrap();
        let mut bytes = [0; 12];
        model.read(1, 0, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0]);
        let mapped = model.mapped(&model.map().unwrap(), 0).unwrap();
        assert_eq!((mapped.len(), &mapped.part(250..256)[..]), (256, &[0, 0, 7, 7, 7, 7][..]));
        assert_eq!(model.path(), Path::new("held"));
    }
}
