//! The lists of tokens in a patch's header, and whether they fit the rows that are there.

use super::error::Error;
use super::format::{BASE_ROWS, BASE_TOKENS, SPECIAL_ROWS, SPECIAL_TOKENS, row_tokens_key};
use crate::chat::TOKENS;
use crate::gguf::{Metadata, Model};

/// The number of tokens of a patch, and those whose rows it has of this matrix.
pub(super) fn of_rows(model: &Model, name: &str) -> Result<(u64, Vec<u32>), Error> {
    let key = row_tokens_key(name);
    let n_tokens = n_tokens(model.metadata());
    let tokens = token_list(model.metadata(), &key).filter(|tokens| is_below(tokens, n_tokens));
    let expected = || format!("ids below {n_tokens}, the number of tokens, in ascending order");
    let tokens = tokens.ok_or_else(|| Error::Key { path: model.path().to_owned(), key, expected: expected() })?;
    Ok((n_tokens, tokens))
}

/// Ids of tokens, if the key holds some, in ascending order.
pub(super) fn token_list(metadata: &Metadata, key: &str) -> Option<Vec<u32>> {
    let array = metadata.get(key)?.as_array()?;
    let tokens: Vec<u32> = array.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect::<Option<_>>()?;
    tokens.is_sorted_by(|a, b| a < b).then_some(tokens)
}

/// The number of tokens of a file.
pub(super) fn n_tokens(metadata: &Metadata) -> u64 {
    metadata.get_strings(TOKENS).map_or(0, |tokens| tokens.len() as u64)
}

fn is_below(tokens: &[u32], n_tokens: u64) -> bool {
    tokens.last().is_none_or(|last| u64::from(*last) < n_tokens)
}

/// Refuses lists of tokens that do not fit the rows that are there.
pub(super) fn check(model: &Model) -> Result<(), Error> {
    let n_tokens = n_tokens(model.metadata());
    for (end, key) in [(SPECIAL_ROWS, SPECIAL_TOKENS), (BASE_ROWS, BASE_TOKENS)] {
        // Read once: there may be as many tensors as tokens.
        let tokens = token_list(model.metadata(), key).filter(|tokens| is_below(tokens, n_tokens));
        for info in model.tensors().filter(|info| info.name().ends_with(end)) {
            let tokens = tokens.as_ref().ok_or_else(|| Error::Key {
                path: model.path().to_owned(),
                key: key.to_owned(),
                expected: format!("ids below {n_tokens}, the number of tokens, in ascending order"),
            })?;
            if tokens.len() as u64 != info.n_rows() {
                let expected = format!("{} rows, one for each token of {key}", tokens.len());
                return Err(Error::stored(model, info.name(), &expected, &format!("{:?}", info.ne())));
            }
        }
    }
    Ok(())
}
