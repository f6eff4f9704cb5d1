//! Hashes of a file in its own header, by which damage is found.
//!
//! There is one of the bytes of each tensor, and one of the header, taken with zeros in its place.
//! All are BLAKE3.

use super::format::{HASHES, HEADER_HASH};
use crate::gguf::{self, Array, Header, Metadata, Model, TensorId, Value, Writer};
use crate::pipeline::{Budget, Error};
use crate::pool;

/// Stands among the names of damaged tensors for bytes that belong to none.
const BEHIND: &str = "what is behind the last tensor";

/// Digits of a hash.
const N_DIGITS: usize = 64;

/// Bytes that a thread reads at a time, which are all that it takes.
const PIECE: usize = 1 << 20;

/// Takes places in `metadata` for the hashes of so many tensors. [`super::write_unnamed`] fills
/// them.
pub fn reserve(metadata: &mut Metadata, n_tensors: usize) {
    let none = "0".repeat(N_DIGITS);
    metadata.set(HEADER_HASH, none.as_str());
    metadata.set(HASHES, Value::Array(Array::Strings(std::iter::repeat_n(&none, n_tensors).collect())));
}

/// Fills in the hashes of what was written. Nothing else of the header may change afterwards.
///
/// # Errors
/// [`gguf::Error::Io`]; [`gguf::Error::Layout`] for an output of several files, none of which has
/// the whole header; [`Error::Threads`].
pub(super) fn seal(writer: &Writer, mut metadata: Metadata, budget: &Budget) -> Result<Metadata, Error> {
    if writer.n_files() > 1 {
        let (check, place) = (gguf::Check::Split, "a file with hashes of itself".to_owned());
        let (expected, found) = ("one file".to_owned(), format!("{} files", writer.n_files()));
        return Err(gguf::Error::Layout { check, place, expected, found }.into());
    }
    let tensors = writer.header().tensors();
    let of = |id: usize| Ok::<_, Error>(hash(tensors[id].size(), |at, piece| writer.read(id, at, piece))?);
    let hashes = pool::try_map_on(n_threads(budget), (0..tensors.len()).collect(), of)?;
    metadata.set(HASHES, Value::Array(Array::Strings(hashes.iter().collect())));
    let digest = header_hash(writer.header(), &metadata);
    metadata.set(HEADER_HASH, digest.as_str());
    Ok(metadata)
}

/// Threads that hash at once within a budget.
pub(super) fn n_threads(budget: &Budget) -> usize {
    budget.threads.clamp(1, usize::try_from(budget.memory / PIECE as u64).unwrap_or(usize::MAX).max(1))
}

/// The hash of a header with this metadata.
fn header_hash(header: &Header, metadata: &Metadata) -> String {
    let mut metadata = metadata.clone();
    metadata.set(HEADER_HASH, "0".repeat(N_DIGITS).as_str());
    let bytes = header.encode_with(&metadata);
    blake3::hash(&bytes).to_hex().to_string()
}

/// The hash of a tensor of a file.
///
/// # Errors
/// [`gguf::Error::Io`].
pub fn tensor_hash(model: &Model, id: TensorId) -> Result<String, gguf::Error> {
    hash(model.tensor(id).size(), |at, piece| model.read(id, at, piece))
}

fn hash(size: u64, mut read: impl FnMut(u64, &mut [u8]) -> Result<(), gguf::Error>) -> Result<String, gguf::Error> {
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE.min(usize::try_from(size).unwrap_or(PIECE))];
    let mut at = 0;
    while at < size {
        let n = (size - at).min(PIECE as u64) as usize;
        read(at, &mut piece[..n])?;
        hasher.update(&piece[..n]);
        at += n as u64;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// What a file's own hashes say of it.
#[derive(Clone, PartialEq, Eq, Default, Debug, serde::Serialize)]
pub struct Checked {
    /// Whether the file has hashes. Without them nothing was looked at.
    pub has_hashes: bool,
    /// Whether the header is as it was written.
    pub is_header_whole: bool,
    /// Tensors whose bytes are not those that were written.
    pub damaged: Vec<String>,
}

impl Checked {
    /// What is wrong with the file, in words. None if it is what was written.
    pub fn damage(&self) -> Option<String> {
        match (self.has_hashes, self.is_header_whole, self.damaged.as_slice()) {
            (true, true, []) => None,
            (false, ..) => Some("no hashes that could tell".to_owned()),
            (true, false, []) => Some("another header".to_owned()),
            (true, _, [place]) if place == BEHIND => Some("others behind the last tensor".to_owned()),
            (true, _, [tensor]) => Some(format!("others in tensor {tensor}")),
            (true, _, [first, more @ ..]) => Some(format!("others in tensor {first} and {} more", more.len())),
        }
    }
}

/// Holds a file of one piece against its own hashes.
///
/// # Errors
/// [`gguf::Error::Io`].
pub fn check(model: &Model) -> Result<Checked, gguf::Error> {
    let metadata = model.metadata();
    let (Some(tensors), Some(header)) = (metadata.get_strings(HASHES), metadata.get_str(HEADER_HASH)) else {
        return Ok(Checked::default());
    };
    let is_header_whole = match model.files() {
        [file] => *header == header_hash(file.header(), metadata),
        _ => false,
    };
    let mut damaged = Vec::new();
    for (id, info) in model.tensors().enumerate() {
        let hash = tensor_hash(model, id)?;
        if tensors.get(id).is_none_or(|stated| *stated != hash) {
            damaged.push(info.name().to_owned());
        }
    }
    let expected: u64 = model.files().iter().map(|file| file.header().file_len()).sum();
    if model.files().iter().map(|file| file.n_bytes()).sum::<u64>() != expected {
        damaged.push(BEHIND.to_owned());
    }
    Ok(Checked { has_hashes: true, is_header_whole, damaged })
}
