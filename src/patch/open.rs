//! Opening a patch: as the tensors that are in the file, and as the tensors of τ.

use std::path::Path;

use super::error::Error;
use super::format::{TYPE_KEY, VERSION, VERSION_KEY, is_patch};
use super::seal::{self, Checked};
use super::source::Patch;
use super::{stored, tokens};
use crate::gguf::{Limits, Model};

/// Opens a patch as tensors of τ, whatever they are stored as. It does not look whether their bytes
/// are those that were written: [`open_whole`] does.
///
/// # Errors
/// [`Error::Container`], [`Error::NotAPatch`], [`Error::Version`], [`Error::Stored`],
/// [`Error::Key`], [`Error::Memory`], [`Error::Work`].
pub fn open(path: &Path, limits: &Limits) -> Result<Patch, Error> {
    assembled(open_stored(path, limits)?, limits)
}

/// Opens a patch, and reads all of it to hold it against its own hashes.
///
/// # Errors
/// Whatever [`open`] says.
pub fn open_checked(path: &Path, limits: &Limits) -> Result<(Patch, Checked), Error> {
    let stored = open_stored(path, limits)?;
    let checked = seal::check(&stored)?;
    Ok((assembled(stored, limits)?, checked))
}

/// Opens a patch that is to be applied. One that is not what was written is refused.
///
/// # Errors
/// [`Error::Damaged`], and whatever [`open`] says.
pub fn open_whole(path: &Path, limits: &Limits) -> Result<Patch, Error> {
    let (patch, checked) = open_checked(path, limits)?;
    match checked.damage() {
        None => Ok(patch),
        Some(found) => Err(Error::Damaged { path: path.to_owned(), found }),
    }
}

/// Makes tensors of τ of those that are in the file.
///
/// # Errors
/// [`Error::Stored`], [`Error::Key`], [`Error::Memory`], [`Error::Work`].
pub(super) fn assembled(stored: Model, limits: &Limits) -> Result<Patch, Error> {
    tokens::check(&stored)?;
    Ok(Patch(stored::assembled(stored, limits)?))
}

/// Opens a patch as the tensors that are in the file.
///
/// # Errors
/// [`Error::Container`], [`Error::NotAPatch`], [`Error::Version`].
pub fn open_stored(path: &Path, limits: &Limits) -> Result<Model, Error> {
    let model = Model::open(path, limits)?;
    let metadata = model.metadata();
    if !is_patch(metadata) {
        let found = metadata.get_str(TYPE_KEY).map_or("nothing".to_owned(), |t| format!("{t:?}"));
        return Err(Error::NotAPatch { path: path.to_owned(), found });
    }
    match metadata.get_u64(VERSION_KEY) {
        Some(version) if (1..=u64::from(VERSION)).contains(&version) => Ok(model),
        found => {
            let found = found.map_or("no number".to_owned(), |n| n.to_string());
            Err(Error::Version { path: path.to_owned(), found })
        }
    }
}
