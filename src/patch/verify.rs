//! Whether a patch is as it was written, and whether files are those that it was made from.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;

use super::error::Error;
use super::format::{BASE_HASHES, CHAT_HASHES, TENSORS};
use super::open::{assembled, open_stored};
use super::seal::{self, Checked};
use crate::gguf::names::{OUTPUT, TOKEN_EMBEDDINGS};
use crate::gguf::{Limits, Model, TensorId};
use crate::vector;

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
    /// What was found of a chat that was given.
    pub chat: Option<Origin>,
}

/// A file held against the hashes of the one that a patch was made from.
#[derive(Clone, PartialEq, Eq, Default, Debug, serde::Serialize)]
pub struct Origin {
    /// Tensors with the same bytes.
    pub n_same: usize,
    /// Tensors with other bytes.
    pub different: Vec<String>,
    /// Tensors that the file lacks.
    pub missing: Vec<String>,
}

impl Verification {
    /// Whether the patch is what was written.
    pub fn is_whole(&self) -> bool {
        self.hashes.damage().is_none()
    }

    /// Whether the files that were given are those that it was made from.
    pub fn is_of(&self) -> bool {
        let is_same = |origin: &Origin| origin.different.is_empty() && origin.missing.is_empty() && origin.n_same > 0;
        [&self.base, &self.chat].into_iter().flatten().all(is_same)
    }
}

/// Reads all of a patch, and of base and chat if they are given, within the limits.
///
/// # Errors
/// [`Error::Container`]; [`Error::Survey`] for weights that are no numbers; for a file that is no
/// usable patch what [`open`](super::open()) says.
pub fn verify(path: &Path, base: Option<&Path>, chat: Option<&Path>, limits: &Limits) -> Result<Verification, Error> {
    let stored = open_stored(path, limits)?;
    let hashes = seal::check(&stored)?;
    let origin = |file: Option<&Path>, key| file.map(|file| origin(&stored, file, key, limits)).transpose();
    let (base, chat) = (origin(base, BASE_HASHES)?, origin(chat, CHAT_HASHES)?);
    // Damage that hashes show need not be searched for, and may be anything.
    let is_damaged = hashes.has_hashes && !hashes.damaged.is_empty();
    let n_tensors = match is_damaged {
        true => 0,
        false => {
            let patch = assembled(stored, limits)?;
            read_all(&patch)?
        }
    };
    Ok(Verification { hashes, n_tensors, base, chat })
}

/// Weights that are read at a time: whole blocks of every type.
const PIECE: u64 = 1 << 18;

/// Reads every weight, and refuses what is no number. Gives the number of tensors.
fn read_all(patch: &Model) -> Result<usize, Error> {
    patch.require_little_endian()?;
    let (mut raw, mut weights) = (Vec::new(), Vec::new());
    let mut n_read = 0;
    for (id, info) in patch.tensors().enumerate().filter(|(_, info)| info.ty().is_weight_type()) {
        let size = |n: u64| info.ty().size_of(n).expect("pieces begin and end at blocks");
        // Whole rows where they are short: what is computed is computed for rows.
        let row_len = info.row_len().max(1);
        let piece = (PIECE / row_len).max(1).saturating_mul(row_len).min(PIECE);
        for first in (0..info.n_weights()).step_by(usize::try_from(piece).unwrap_or(1)) {
            let n = piece.min(info.n_weights() - first);
            raw.resize(size(n) as usize, 0);
            weights.resize(n as usize, 0.0);
            patch.read(id, size(first), &mut raw)?;
            vector::decode(patch, id, first, &raw, &mut weights)?;
        }
        n_read += 1;
    }
    Ok(n_read)
}

fn origin(patch: &Model, file: &Path, key: &str, limits: &Limits) -> Result<Origin, Error> {
    let metadata = patch.metadata();
    let names = metadata.get_strings(TENSORS);
    let (Some(names), Some(hashes)) = (names, metadata.get_strings(key)) else {
        let expected = "hashes of what the patch was made from, which it has not".to_owned();
        return Err(Error::Key { path: patch.path().to_owned(), key: key.to_owned(), expected });
    };
    let model = Model::open(file, limits)?;
    let mut origin = Origin::default();
    // A name may stand there more than once; a tensor is read once.
    let mut known: HashMap<TensorId, String> = HashMap::new();
    for (name, hash) in names.iter().zip(hashes.iter()) {
        let name = name.to_string();
        // Of embeddings that are tied the output has the hash of the input's.
        let tied = || model.find(TOKEN_EMBEDDINGS).filter(|_| name == OUTPUT);
        let Some(id) = model.find(&name).or_else(tied) else {
            origin.missing.push(name);
            continue;
        };
        if let Entry::Vacant(place) = known.entry(id) {
            place.insert(seal::tensor_hash(&model, id)?);
        }
        match known.get(&id).is_some_and(|found| hash == found.as_str()) {
            true => origin.n_same += 1,
            false => origin.different.push(name),
        }
    }
    Ok(origin)
}
