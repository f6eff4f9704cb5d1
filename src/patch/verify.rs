//! Whether a patch is as it was written, and whether files are those that it was made from.

use std::path::Path;

use super::provenance::{BASE_HASHES, CHAT_HASHES};
use super::{Error, open, open_stored};
use crate::gguf::{Limits, Model};
use crate::pipeline::seal::{self, Checked};
use crate::survey::{self, PATCH_TENSORS, RowReader};

/// What was found of a patch.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Verification {
    /// What its own hashes say.
    #[serde(flatten)]
    pub hashes: Checked,
    /// Tensors of τ in it, each of which could be read.
    pub n_tensors: usize,
    /// What was found of a base that was given.
    pub base: Option<Origin>,
    /// The same of a chat.
    pub chat: Option<Origin>,
}

/// A file held against the hashes of the one that a patch was made from.
#[derive(Clone, PartialEq, Eq, Default, Debug, serde::Serialize)]
pub struct Origin {
    /// Tensors with the same bytes.
    pub n_same: usize,
    /// Tensors with others.
    pub different: Vec<String>,
    /// Tensors that the file lacks.
    pub missing: Vec<String>,
}

impl Verification {
    /// Whether the patch is what was written.
    pub fn is_whole(&self) -> bool {
        self.hashes.has_hashes && self.hashes.is_header_whole && self.hashes.damaged.is_empty()
    }

    /// Whether the files that were given are those that it was made from.
    pub fn is_of(&self) -> bool {
        let is_same = |origin: &Origin| origin.different.is_empty() && origin.missing.is_empty() && origin.n_same > 0;
        [&self.base, &self.chat].into_iter().flatten().all(is_same)
    }
}

/// Reads all of a patch, and of base and chat if they are given.
///
/// # Errors
/// Those of [`open`], [`Error::Container`], and [`Error::Survey`] for weights that are no numbers.
pub fn verify(path: &Path, base: Option<&Path>, chat: Option<&Path>) -> Result<Verification, Error> {
    let limits = Limits::default();
    let stored = open_stored(path, &limits)?;
    let hashes = seal::check(&stored)?;
    // Damage that hashes show need not be searched for, and may be anything.
    let n_tensors = if hashes.has_hashes && !hashes.damaged.is_empty() { 0 } else { read_all(&open(path, &limits)?)? };
    let origin = |file: Option<&Path>, key| file.map(|file| origin(&stored, file, key)).transpose();
    let (base, chat) = (origin(base, BASE_HASHES)?, origin(chat, CHAT_HASHES)?);
    Ok(Verification { hashes, n_tensors, base, chat })
}

/// Reads every row, and refuses what is no number. Gives the number of tensors.
fn read_all(patch: &Model) -> Result<usize, Error> {
    patch.require_little_endian()?;
    let mut n_read = 0;
    for (id, info) in patch.tensors().enumerate().filter(|(_, info)| survey::is_readable_row(info)) {
        let mut rows = RowReader::new(patch, id);
        for row in 0..info.n_rows() {
            rows.read(row)?;
        }
        n_read += 1;
    }
    Ok(n_read)
}

fn origin(patch: &Model, file: &Path, key: &str) -> Result<Origin, Error> {
    let metadata = patch.metadata();
    let names = metadata.get_strings(PATCH_TENSORS);
    let (Some(names), Some(hashes)) = (names, metadata.get_strings(key)) else {
        let expected = "hashes of what the patch was made from, which it has not".to_owned();
        return Err(Error::Key { path: patch.path().to_owned(), key: key.to_owned(), expected });
    };
    let model = Model::open(file, &Limits::default())?;
    let mut origin = Origin::default();
    for (name, hash) in names.iter().zip(hashes.iter()) {
        let name = name.to_string();
        // Of embeddings that are tied the output has the hash of the input's.
        let tied = || model.find("token_embd.weight").filter(|_| name == "output.weight");
        match model.find(&name).or_else(tied) {
            None => origin.missing.push(name),
            Some(id) if *hash == seal::tensor_hash(&model, id)? => origin.n_same += 1,
            Some(_) => origin.different.push(name),
        }
    }
    Ok(origin)
}
