//! A file that holds a vector by itself, and what the algebra asks of it.

use std::fmt::Debug;
use std::path::Path;

use super::error::Error;
use super::space::Space;
use crate::chat::Rename;
use crate::gguf::{Model, TensorId};

/// A file that holds a vector by itself, where other vectors are differences of two models.
///
/// The algebra asks by names of the model's tensors. How the file says what it holds is known to
/// whoever opened it.
pub trait StoredVector: Debug + Send + Sync {
    /// The file as a model: the tensors of the vector, and those that lie beside it.
    fn model(&self) -> &Model;

    /// Whether the vector has a tensor of this name. The file may leave it out where it is zero.
    fn lists(&self, name: &str) -> bool;

    /// The space in which the tensor of this name is a difference.
    fn space(&self, name: &str) -> Space;

    /// Whether the file's tensor of this name lies beside the vector, and is no part of it.
    fn is_beside(&self, name: &str) -> bool;

    /// Rows of the chat model's tensor of this name: those of its special tokens.
    fn chat_rows(&self, name: &str) -> Option<StoredRows>;

    /// Rows of the base's tensor of this name: those of special tokens and of some ordinary ones.
    fn base_rows(&self, name: &str) -> Option<StoredRows>;

    /// The ids of the chat's special tokens, in ascending order.
    fn special_tokens(&self) -> Vec<u32>;

    /// The placeholders of the base that the chat gave names to.
    fn renames(&self) -> Vec<Rename>;

    /// Whether the vector has a tensor of this name, which is zero and left out.
    fn is_zero(&self, name: &str) -> bool {
        self.model().find(name).is_none() && self.lists(name)
    }
}

/// Rows of some tokens that lie beside a vector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredRows {
    /// The file's tensor that has them, one after the other.
    pub tensor: TensorId,
    /// The ids of their tokens, in ascending order.
    pub tokens: Vec<u32>,
}

/// Refuses a tensor whose stored difference is in another space than the one in which the tensor is
/// added. `c − b` alone does not tell the ratio of `c` and `b`.
///
/// # Errors
/// [`Error::PatchSpace`].
pub fn require_space(path: &Path, tensor: &str, found: Space) -> Result<(), Error> {
    let words = |space| match space {
        Space::Logarithm => "ln(chat / base)",
        Space::AsStored => "chat - base",
    };
    let expected = Space::of(tensor);
    match expected == found {
        true => Ok(()),
        false => Err(Error::PatchSpace {
            path: path.to_owned(),
            tensor: tensor.to_owned(),
            expected: words(expected),
            found: words(found),
        }),
    }
}
