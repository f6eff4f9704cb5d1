//! What a patch says of the vector that it holds.

use super::error::Error;
use super::space::Space;
use crate::gguf::{Metadata, Model};

/// Behind the name of a tensor of a patch: its rows in the chat model, of the tokens that
/// [`SPECIAL_TOKENS`] lists.
pub const SPECIAL_ROWS: &str = ".special_rows";

/// Behind the name of a tensor of a patch: its rows in the base, of the tokens that [`BASE_TOKENS`]
/// lists.
pub const BASE_ROWS: &str = ".base_rows";

/// Key of a patch: ids of the chat's special tokens, in ascending order.
pub const SPECIAL_TOKENS: &str = "chatvec.patch.special_tokens";

/// Key of a patch: ids of the special tokens that the base has, and of some ordinary ones, in
/// ascending order.
pub const BASE_TOKENS: &str = "chatvec.patch.base_tokens";

/// Key of a patch: the names of all tensors of the vector, also of those that are zero and left
/// out.
pub const PATCH_TENSORS: &str = "chatvec.patch.tensors";

/// Key of a patch: the tensors whose τ is ln(chat / base). Files of version 1 have none.
pub const LOGARITHMS: &str = "chatvec.patch.logarithms";

/// Whether a patch has this tensor of the vector, and it is zero.
pub(crate) fn is_zero_in(patch: &Model, name: &str) -> bool {
    patch.find(name).is_none() && is_listed(patch, name)
}

/// Whether a patch has this tensor of the vector, be it zero.
pub(crate) fn is_listed(patch: &Model, name: &str) -> bool {
    let names = patch.metadata().get_strings(PATCH_TENSORS);
    names.is_some_and(|names| names.iter().any(|other| other == name))
}

/// Ids of tokens, if these are some, in ascending order.
pub fn token_list(metadata: &Metadata, key: &str) -> Option<Vec<u32>> {
    let array = metadata.get(key)?.as_array()?;
    let tokens: Vec<u32> = array.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect::<Option<_>>()?;
    tokens.is_sorted_by(|a, b| a < b).then_some(tokens)
}

/// Refuses a tensor of a patch whose differences are of other numbers than those that are added.
/// What an earlier version made of base and chat cannot be told from c − b alone.
///
/// # Errors
/// [`Error::PatchSpace`].
pub fn require_space(patch: &Model, tensor: &str) -> Result<(), Error> {
    let words = |is_logarithm| if is_logarithm { "ln(chat / base)" } else { "chat - base" };
    let listed = patch.metadata().get_strings(LOGARITHMS);
    let found = listed.is_some_and(|names| names.iter().any(|name| name == tensor));
    let expected = Space::of(tensor) == Space::Logarithm;
    match expected == found {
        true => Ok(()),
        false => Err(Error::PatchSpace {
            path: patch.path().to_owned(),
            tensor: tensor.to_owned(),
            expected: words(expected),
            found: words(found),
        }),
    }
}
