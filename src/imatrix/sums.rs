//! Sums of squared activations, and writing them.

use std::collections::BTreeMap;
use std::path::Path;

use super::{CHUNK_COUNT, CHUNK_SIZE, COUNTS, DATASETS, SUMS, TYPE};
use crate::ggml::GgmlType;
use crate::gguf::{Array, Complete, Error, Finished, Header, Metadata, StringArray, TensorSpec};
use crate::gguf::{Value, WriteOptions, Writer};

/// A form of file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// A GGUF file of sums and counts.
    Gguf,
    /// The older `.dat`, of means.
    Legacy,
}

/// What is gathered while a model reads a text: for each tensor the sum of squares of each of its
/// inputs, and how many tokens came by.
///
/// Sums are f32, added in the order of tokens, as llama-imatrix adds them
/// (`IMatrixCollector::collect_imatrix`, tools/imatrix/imatrix.cpp); its own order depends on how
/// it batches chunks (docs in fixtures/imatrix have the effect).
#[derive(Clone, PartialEq, Debug)]
pub struct Sums {
    dataset: String,
    chunk_size: u32,
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, PartialEq, Debug)]
struct Entry {
    /// A row of sums for each matrix of a stack.
    sums: Vec<f32>,
    /// Tokens, for each matrix of a stack.
    counts: Vec<u64>,
}

impl Sums {
    /// None yet. `dataset` names the text, `chunk_size` is how many tokens of it are read at once,
    /// at least 1.
    pub fn new(dataset: &str, chunk_size: u32) -> Self {
        Sums { dataset: dataset.to_owned(), chunk_size: chunk_size.max(1), entries: BTreeMap::new() }
    }

    /// Makes room for a tensor of `n_matrices` matrices with rows of `row_len`, at least 1 of each.
    pub fn add_tensor(&mut self, tensor: &str, row_len: usize, n_matrices: usize) {
        let (row_len, n_matrices) = (row_len.max(1), n_matrices.max(1));
        let entry = Entry { sums: vec![0.0; row_len * n_matrices], counts: vec![0; n_matrices] };
        self.entries.insert(tensor.to_owned(), entry);
    }

    /// Adds rows of activations that one matrix of a tensor is multiplied with. A tensor without
    /// room is passed over.
    ///
    /// # Panics
    /// If the tensor has no such matrix.
    pub fn add(&mut self, tensor: &str, matrix: usize, rows: &[f32]) {
        let Some(entry) = self.entries.get_mut(tensor) else { return };
        let row_len = entry.sums.len() / entry.counts.len();
        let sums = &mut entry.sums[matrix * row_len..][..row_len];
        for row in rows.chunks_exact(row_len) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * x);
            entry.counts[matrix] += 1;
        }
    }

    /// The first tensor with a sum that is no number, or beyond f32.
    pub fn first_not_finite(&self) -> Option<&str> {
        let is_finite = |entry: &Entry| entry.sums.iter().all(|sum| sum.is_finite());
        self.entries.iter().find(|(_, entry)| !is_finite(entry)).map(|(name, _)| name.as_str())
    }

    /// The tensors, in the order of their names, each with its sums and counts.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&str, &[f32], &[u64])> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), &entry.sums[..], &entry.counts[..]))
    }

    /// Tokens that are read at once.
    pub fn chunk_size(&self) -> u32 {
        self.chunk_size
    }

    /// Whole chunks that were read.
    pub fn n_chunks(&self) -> u32 {
        let tokens = self.entries.values().flat_map(|e| &e.counts).max().copied().unwrap_or(0);
        (tokens / u64::from(self.chunk_size)).min(u32::MAX.into()) as u32
    }

    /// Bytes that a file of them has at most: both forms hold each sum once.
    pub fn file_len(&self) -> u64 {
        let entry =
            |(name, e): (&String, &Entry)| 4 * (e.sums.len() + e.counts.len()) as u64 + 2 * name.len() as u64 + 256;
        self.entries.iter().map(entry).sum::<u64>() + self.dataset.len() as u64 + 512
    }

    /// Writes them, complete or not at all.
    ///
    /// Other than llama-imatrix, which writes the name of the text as it was given, callers should
    /// leave its folder out.
    ///
    /// # Errors
    /// Those of [`Writer`].
    pub fn write(&self, form: Form, path: &Path, options: &WriteOptions) -> Result<Finished, Error> {
        match form {
            Form::Gguf => self.write_gguf(path, options),
            Form::Legacy => Complete::from_bytes(&self.legacy(), path, options)?.publish(),
        }
    }

    /// `IMatrixCollector::save_imatrix`: tensors by name, sums before counts.
    fn write_gguf(&self, path: &Path, options: &WriteOptions) -> Result<Finished, Error> {
        let mut metadata = Metadata::default();
        metadata.set("general.type", TYPE);
        let mut datasets = StringArray::default();
        datasets.push(self.dataset.as_bytes());
        metadata.set(DATASETS, Value::Array(Array::Strings(datasets)));
        metadata.set(CHUNK_COUNT, Value::U32(self.n_chunks()));
        metadata.set(CHUNK_SIZE, Value::U32(self.chunk_size));
        let spec = |name: &str, suffix, row_len: usize, n_matrices: usize| {
            let (row_len, n_matrices) = (row_len as u64, n_matrices as u64);
            // llama.cpp writes no trailing dimension of 1.
            let ne = if n_matrices == 1 { vec![row_len] } else { vec![row_len, n_matrices] };
            TensorSpec { name: format!("{name}{suffix}"), ne, ty: GgmlType::F32 }
        };
        let specs = self.entries().flat_map(|(name, sums, counts)| {
            let n = counts.len();
            [spec(name, SUMS, sums.len() / n, n), spec(name, COUNTS, 1, n)]
        });
        let writer = Writer::create(Header::new(metadata, specs)?, path, options)?;
        for (i, entry) in self.entries.values().enumerate() {
            let floats =
                |values: &mut dyn Iterator<Item = f32>| -> Vec<u8> { values.flat_map(f32::to_le_bytes).collect() };
            writer.write(2 * i, 0, &floats(&mut entry.sums.iter().copied()))?;
            writer.write(2 * i + 1, 0, &floats(&mut entry.counts.iter().map(|&n| n as f32)))?;
        }
        writer.finish(None)
    }

    /// `IMatrixCollector::save_imatrix_legacy`: entries without a token are left out, a matrix of a
    /// stack without one gets means of 1.
    fn legacy(&self) -> Vec<u8> {
        let entries: Vec<_> = self.entries.iter().filter(|(_, e)| e.counts.iter().any(|n| *n > 0)).collect();
        let mut bytes = Vec::new();
        let integer = |bytes: &mut Vec<u8>, n: u64| bytes.extend((n.min(i32::MAX as u64) as i32).to_le_bytes());
        let text = |bytes: &mut Vec<u8>, text: &str| {
            integer(bytes, text.len() as u64);
            bytes.extend(text.as_bytes());
        };
        integer(&mut bytes, entries.len() as u64);
        for (name, entry) in entries {
            let most = entry.counts.iter().max().copied().unwrap_or(0);
            let n_calls = most.div_ceil(self.chunk_size.into());
            text(&mut bytes, name);
            integer(&mut bytes, n_calls);
            integer(&mut bytes, entry.sums.len() as u64);
            let row_len = entry.sums.len() / entry.counts.len();
            for (sums, &count) in entry.sums.chunks_exact(row_len).zip(&entry.counts) {
                let mean = |sum: f32| if count == 0 { 1.0 } else { sum / count as f32 };
                bytes.extend(sums.iter().flat_map(|&sum| (mean(sum) * n_calls as f32).to_le_bytes()));
            }
        }
        integer(&mut bytes, self.n_chunks().into());
        text(&mut bytes, &self.dataset);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::super::ImportanceMatrix;
    use super::*;

    #[test]
    fn both_forms_are_read_as_means_and_untouched_experts_as_ones() {
        let mut sums = Sums::new("text.txt", 2);
        sums.add_tensor("blk.0.ffn_up_exps.weight", 2, 2);
        sums.add_tensor("blk.0.attn_q.weight", 2, 1);
        sums.add("blk.0.ffn_up_exps.weight", 1, &[1.0, 2.0, 3.0, 4.0]);
        sums.add("blk.0.attn_q.weight", 0, &[1.0, 0.0, 0.0, 2.0, 1.0, 2.0]);
        sums.add("output.weight", 0, &[1.0]);
        let folder = tempfile::tempdir().unwrap();
        for form in [Form::Gguf, Form::Legacy] {
            let path = folder.path().join("m");
            let options = WriteOptions { overwrite: true, ..WriteOptions::default() };
            let len = sums.write(form, &path, &options).unwrap().len;
            assert!(len <= sums.file_len(), "{form:?}: {len} bytes");
            let m = ImportanceMatrix::read(&path, 1 << 20).unwrap();
            assert_eq!((m.n_chunks(), m.datasets()), (1, &["text.txt".to_owned()][..]));
            assert_eq!(m.names().collect::<Vec<_>>(), ["blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"]);
            assert_eq!(m.get("blk.0.ffn_up_exps.weight"), Some(&[1.0, 1.0, 5.0, 10.0][..]));
            assert_eq!(m.get("blk.0.attn_q.weight"), Some(&[2.0f32 / 3.0, 8.0 / 3.0][..]));
        }
    }
}
