//! Importance matrices: how much the inputs of each weight weigh, which tells an encoder whose
//! errors matter.
//!
//! A matrix has an *entry* for each tensor that activations are multiplied with, by the tensor's
//! name: the mean square of each input, a number a column. A stack of experts has the columns of
//! every expert, one expert after the other. There are two forms of file
//! (tools/imatrix/imatrix.cpp, common/imatrix-loader.cpp):
//!
//! | form | an entry | besides |
//! |---|---|---|
//! | GGUF, `general.type = "imatrix"` | F32 tensors `NAME.in_sum2` (sums of squares, `[row_len, n_mat]`) and `NAME.counts` (`[1, n_mat]`) | `imatrix.datasets`, `imatrix.chunk_count`, `imatrix.chunk_size` |
//! | legacy `.dat` | name, i32 calls, i32 values, f32 each: means times calls | i32 chunks, name of the text |
//!
//! [`ImportanceMatrix`] is what encoders want: means, computed from a file by the arithmetic of
//! `load_imatrix` (tools/quantize/quantize.cpp), so that encoded bytes are llama-quantize's.
//! [`Sums`] is what is gathered while a model reads a text, and writes either form.

use crate::ggml::GgmlType;
use crate::gguf::names::TOKEN_EMBEDDINGS;
mod error;
mod gguf;
mod legacy;
mod sums;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use error::Error;
pub use sums::{Form, Sums};

/// The value of `general.type` in a matrix of the GGUF form.
pub const TYPE: &str = "imatrix";

const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// The importance of every weight of a model, by tensor.
#[derive(Clone, PartialEq, Debug)]
pub struct ImportanceMatrix {
    path: PathBuf,
    datasets: Vec<String>,
    n_chunks: u32,
    /// The importance of each weight, by the name of the tensor; finite numbers from 0 on.
    entries: BTreeMap<String, Vec<f32>>,
    /// Where every weight of a tensor is as important as any other: a row of ones, the longest.
    flat: Option<(FlatFor, Vec<f32>)>,
}

/// Which tensors a flat importance is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlatFor {
    /// Those of every type.
    All,
    /// Those of the types that it was seen to gain by on every model, and to lose by on none.
    Gaining,
}

/// [`FlatFor::Gaining`]: squared error × .68 to .82, KL × .5 to .97 on four models
/// (docs/QUANTISING.md).
const GAINING: [GgmlType; 4] = [GgmlType::IQ3_S, GgmlType::Q2_K, GgmlType::Q4_1, GgmlType::Q5_1];

/// What is known of a matrix before its values are looked at.
struct Unchecked {
    datasets: Vec<String>,
    n_chunks: u32,
    entries: BTreeMap<String, Vec<f32>>,
}

impl ImportanceMatrix {
    /// The importance 1 of every weight, for rows of at most this length. ggml's encoders then look
    /// for the least squared error, where they look for less without any importance
    /// (`docs/QUANTISING.md`).
    pub fn flat(longest_row: usize, which: FlatFor) -> Self {
        let (path, entries) = (PathBuf::new(), BTreeMap::new());
        let flat = Some((which, vec![1.0; longest_row]));
        ImportanceMatrix { path, datasets: Vec::new(), n_chunks: 0, entries, flat }
    }

    /// Whether every weight is as important as any other.
    pub fn is_flat(&self) -> bool {
        self.flat.is_some()
    }

    /// Whether it says more than what is done by itself where nothing is asked for
    /// ([`FlatFor::Gaining`]).
    pub fn is_asked_for(&self) -> bool {
        !matches!(self.flat, Some((FlatFor::Gaining, _)))
    }

    /// Reads a matrix of either form. Its values take at most `memory` bytes.
    ///
    /// A column that no token reached has importance 1 in the GGUF form, as llama-quantize reads
    /// it. What llama-quantize refuses is refused: a file without entries or without the
    /// `imatrix.*` keys, sums without counts, values that are no numbers. So are negative values,
    /// which no sum of squares has and which llama-quantize would encode with.
    ///
    /// # Errors
    /// All but [`Error::Length`] and [`Error::NoneLeft`].
    pub fn read(path: &Path, memory: u64) -> Result<Self, Error> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        // Asked before opening: a pipe without a writer would be waited for.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(io(std::io::Error::other("it is no regular file")));
        }
        let mut magic = [0; 4];
        let mut file = File::open(path).map_err(io)?;
        // Shorter files have no magic and are no matrix: the legacy reader says so.
        let n = file.by_ref().take(4).read(&mut magic).map_err(io)?;
        let unchecked = match &magic[..n] {
            magic if magic == crate::gguf::MAGIC => gguf::read(path, memory)?,
            _ => legacy::read(path, file, memory)?,
        };
        let Unchecked { datasets, n_chunks, entries } = unchecked;
        for (name, values) in &entries {
            if let Some((index, &value)) = values.iter().enumerate().find(|(_, v)| !v.is_finite() || **v < 0.0) {
                return Err(Error::Value { path: path.to_owned(), entry: name.clone(), index, value });
            }
        }
        Ok(ImportanceMatrix { path: path.to_owned(), datasets, n_chunks, entries, flat: None })
    }

    /// Leaves only entries whose name contains one of these, as `llama-quantize --include-weights`.
    ///
    /// # Errors
    /// [`Error::NoneLeft`].
    pub fn include(mut self, parts: &[String]) -> Result<Self, Error> {
        self.entries.retain(|name, _| parts.iter().any(|part| name.contains(part)));
        self.not_empty("--include-weights", parts)
    }

    /// Drops entries whose name contains one of these, as `llama-quantize --exclude-weights`.
    ///
    /// # Errors
    /// [`Error::NoneLeft`].
    pub fn exclude(mut self, parts: &[String]) -> Result<Self, Error> {
        self.entries.retain(|name, _| !parts.iter().any(|part| name.contains(part)));
        self.not_empty("--exclude-weights", parts)
    }

    fn not_empty(self, option: &'static str, parts: &[String]) -> Result<Self, Error> {
        match self.entries.is_empty() {
            true => Err(Error::NoneLeft { path: self.path, option, parts: parts.join(", ") }),
            false => Ok(self),
        }
    }

    /// The file; none if it was not read from one.
    pub fn path(&self) -> Option<&Path> {
        (!self.is_flat()).then_some(&*self.path)
    }

    /// Names of the texts it was computed on.
    pub fn datasets(&self) -> &[String] {
        &self.datasets
    }

    /// Chunks of text it was computed on; 0 if the file does not say.
    pub fn n_chunks(&self) -> u32 {
        self.n_chunks
    }

    /// The names of its entries, in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The values of an entry.
    pub fn get(&self, tensor: &str) -> Option<&[f32]> {
        self.entries.get(tensor).map(Vec::as_slice)
    }

    /// Bytes of all values.
    pub fn n_bytes(&self) -> u64 {
        let ones = self.flat.iter().map(|(_, ones)| ones);
        self.entries.values().chain(ones).map(|values| 4 * values.len() as u64).sum()
    }

    /// The importance of a tensor of this shape (row length first) that is encoded in this type, none
    /// if there is no entry for it.
    ///
    /// An entry of `token_embd.weight` that does not fit is passed over, as in llama-quantize: it
    /// has no meaning, since rows of the embedding are looked up and not multiplied.
    ///
    /// # Errors
    /// [`Error::Length`] for an entry that is not `ne[0]` values for each matrix of a stack.
    pub fn of_tensor(&self, tensor: &str, ne: &[u64], ty: GgmlType) -> Result<Option<RowImportance<'_>>, Error> {
        if let Some((which, ones)) = &self.flat {
            if *which == FlatFor::Gaining && !GAINING.contains(&ty) {
                return Ok(None);
            }
            let values = ones.get(..usize::try_from(ne.first().copied().unwrap_or(1)).unwrap_or(usize::MAX));
            // One matrix without an end.
            return Ok(values.map(|ones| RowImportance {
                values: ones,
                row_len: ones.len(),
                rows_per_matrix: u64::MAX,
            }));
        }
        let Some(values) = self.get(tensor) else { return Ok(None) };
        let (row_len, rows_per_matrix) = (ne.first().copied().unwrap_or(1), ne.get(1).copied().unwrap_or(1));
        let n_matrices = ne.iter().skip(2).try_fold(1u64, |n, m| n.checked_mul(*m));
        let expected = n_matrices.and_then(|n| n.checked_mul(row_len)).unwrap_or(u64::MAX);
        match values.len() as u64 == expected {
            true => Ok(Some(RowImportance { values, row_len: row_len as usize, rows_per_matrix })),
            false if tensor == TOKEN_EMBEDDINGS => Ok(None),
            false => {
                let (path, ne, found) = (self.path.clone(), ne.to_vec(), values.len() as u64);
                Err(Error::Length { path, tensor: tensor.to_owned(), ne, expected, found })
            }
        }
    }
}

/// The importance of one tensor's rows: the same for every row of a matrix, another for each matrix
/// of a stack.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RowImportance<'a> {
    values: &'a [f32],
    row_len: usize,
    rows_per_matrix: u64,
}

impl<'a> RowImportance<'a> {
    /// Cuts rows, counted through the whole tensor, where another matrix begins: each part with the
    /// importance of its rows.
    ///
    /// # Panics
    /// While a part is taken that reaches beyond the tensor.
    pub fn parts(self, rows: Range<u64>) -> impl Iterator<Item = (Range<u64>, &'a [f32])> {
        let mut start = rows.start;
        std::iter::from_fn(move || {
            if start >= rows.end {
                return None;
            }
            let matrix = start / self.rows_per_matrix;
            let part = start..((matrix + 1) * self.rows_per_matrix).min(rows.end);
            start = part.end;
            Some((part, &self.values[matrix as usize * self.row_len..][..self.row_len]))
        })
    }

    /// The importance of the row with this number, counted through the whole tensor.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn of_row(self, row: u64) -> &'a [f32] {
        &self.values[(row / self.rows_per_matrix) as usize * self.row_len..][..self.row_len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(entries: &[(&str, &[f32])]) -> ImportanceMatrix {
        let entries = entries.iter().map(|(name, values)| ((*name).to_owned(), values.to_vec())).collect();
        ImportanceMatrix { path: "m.gguf".into(), datasets: Vec::new(), n_chunks: 1, entries, flat: None }
    }

    #[test]
    fn rows_are_cut_where_another_expert_begins() {
        let m = matrix(&[("blk.0.ffn_up_exps.weight", &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])]);
        let rows = m.of_tensor("blk.0.ffn_up_exps.weight", &[2, 5, 3], GgmlType::Q4_0).unwrap().unwrap();
        let parts: Vec<_> = rows.parts(3..12).collect();
        assert_eq!(parts, [(3..5, &[1.0, 2.0][..]), (5..10, &[3.0, 4.0]), (10..12, &[5.0, 6.0])]);
        assert_eq!(rows.of_row(14), [5.0, 6.0]);
        assert_eq!(rows.parts(7..7).count(), 0);
    }

    #[test]
    fn a_flat_matrix_has_ones_for_every_row() {
        let gaining = ImportanceMatrix::flat(8, FlatFor::Gaining);
        assert_eq!(gaining.of_tensor("any", &[4, 5], GgmlType::Q4_0).unwrap(), None);
        assert!(gaining.of_tensor("any", &[4, 5], GgmlType::IQ3_S).unwrap().is_some());
        let flat = ImportanceMatrix::flat(8, FlatFor::All);
        let rows = flat.of_tensor("any", &[4, 5, 3], GgmlType::Q4_0).unwrap().unwrap();
        assert_eq!(rows.parts(3..12).collect::<Vec<_>>(), [(3..12, &[1.0; 4][..])]);
        assert_eq!(rows.of_row(14), [1.0; 4]);
        assert_eq!((flat.path(), flat.names().len(), flat.n_bytes()), (None, 0, 32));
        assert_eq!(flat.of_tensor("longer", &[9, 1], GgmlType::Q4_0).unwrap(), None);
    }

    #[test]
    fn an_entry_of_another_length_is_refused_unless_it_is_the_embedding() {
        let m = matrix(&[("blk.0.attn_q.weight", &[1.0; 8]), ("token_embd.weight", &[1.0; 8])]);
        let e = m.of_tensor("blk.0.attn_q.weight", &[4, 4], GgmlType::Q4_0).unwrap_err().to_string();
        assert!(e.contains("blk.0.attn_q.weight") && e.contains('4') && e.contains('8'), "{e}");
        assert_eq!(m.of_tensor("token_embd.weight", &[4, 4], GgmlType::Q4_0).unwrap(), None);
        assert_eq!(m.of_tensor("blk.0.attn_k.weight", &[4, 4], GgmlType::Q4_0).unwrap(), None);
    }

    #[test]
    fn entries_are_chosen_by_parts_of_their_names() {
        let m = || matrix(&[("blk.0.attn_q.weight", &[1.0]), ("blk.0.ffn_up.weight", &[1.0])]);
        let part = |text: &str| [text.to_owned()];
        assert_eq!(m().include(&part("attn")).unwrap().names().collect::<Vec<_>>(), ["blk.0.attn_q.weight"]);
        assert_eq!(m().exclude(&part("attn")).unwrap().names().collect::<Vec<_>>(), ["blk.0.ffn_up.weight"]);
        assert!(matches!(m().include(&part("ssm")), Err(Error::NoneLeft { .. })));
        assert!(matches!(m().exclude(&part("blk")), Err(Error::NoneLeft { .. })));
    }
}
