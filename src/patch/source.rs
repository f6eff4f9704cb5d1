//! A patch as a file that holds a vector: what its header says of the vector.

use std::ops::Deref;

use bstr::BStr;

use super::format::{
    self, BASE_ROWS, BASE_TOKENS, LOGARITHMS, RENAMED_FROM, RENAMED_TOKENS, SPECIAL_ROWS, SPECIAL_TOKENS, TENSORS,
};
use super::tokens::token_list;
use crate::chat::{Rename, TOKENS};
use crate::gguf::Model;
use crate::vector::{Error, Space, StoredRows, StoredVector, require_space};

/// A patch that is open: the tensors of τ by the names of the model's, whatever they are stored as.
#[derive(Debug)]
pub struct Patch(pub(super) Model);

impl Deref for Patch {
    type Target = Model;

    fn deref(&self) -> &Model {
        &self.0
    }
}

impl StoredVector for Patch {
    fn model(&self) -> &Model {
        &self.0
    }

    fn lists(&self, name: &str) -> bool {
        is_in_list(&self.0, TENSORS, name)
    }

    fn space(&self, name: &str) -> Space {
        space_of(&self.0, name)
    }

    fn is_beside(&self, name: &str) -> bool {
        format::is_beside(name)
    }

    fn chat_rows(&self, name: &str) -> Option<StoredRows> {
        rows(&self.0, &format!("{name}{SPECIAL_ROWS}"), SPECIAL_TOKENS)
    }

    fn base_rows(&self, name: &str) -> Option<StoredRows> {
        rows(&self.0, &format!("{name}{BASE_ROWS}"), BASE_TOKENS)
    }

    fn renames(&self) -> Vec<Rename> {
        let metadata = self.0.metadata();
        let (Some(texts), Some(from)) = (metadata.get_strings(TOKENS), metadata.get_strings(RENAMED_FROM)) else {
            return Vec::new();
        };
        let ids = token_list(metadata, RENAMED_TOKENS).unwrap_or_default();
        let rename =
            |(id, from): (u32, &BStr)| Some(Rename { from: from.to_owned(), to: texts.get(id as usize)?.to_owned() });
        ids.into_iter().zip(from.iter()).filter_map(rename).collect()
    }

    fn special_tokens(&self) -> Vec<u32> {
        token_list(self.0.metadata(), SPECIAL_TOKENS).unwrap_or_default()
    }
}

fn is_in_list(patch: &Model, key: &str, name: &str) -> bool {
    let names = patch.metadata().get_strings(key);
    names.is_some_and(|names| names.iter().any(|other| other == name))
}

fn space_of(patch: &Model, name: &str) -> Space {
    if is_in_list(patch, LOGARITHMS, name) { Space::Logarithm } else { Space::AsStored }
}

/// The rows of a tensor that lie beside the vector; none where they and the list of their tokens
/// are not of one length.
fn rows(patch: &Model, tensor: &str, key: &str) -> Option<StoredRows> {
    let tensor = patch.find(tensor)?;
    let tokens = token_list(patch.metadata(), key)?;
    let fits = tokens.len() as u64 == patch.tensor(tensor).n_rows();
    fits.then_some(StoredRows { tensor, tokens })
}

/// Refuses a tensor of a patch whose difference is in another space than the one in which the
/// tensor is added. Earlier versions of chatvec wrote such differences.
///
/// # Errors
/// [`Error::PatchSpace`].
pub fn require_patch_space(patch: &Model, tensor: &str) -> Result<(), Error> {
    require_space(patch.path(), tensor, space_of(patch, tensor))
}
