//! Names of tensors that the code must know.

use crate::chat::TOKENS;
use crate::gguf::names::{OUTPUT, PER_LAYER_EMBEDDINGS, TOKEN_EMBEDDINGS};
use crate::gguf::{Model, TensorId};

/// Tensors with a row for each token (src/llama-model.cpp: those made with `n_vocab` rows).
const BY_TOKEN: [&str; 3] = [TOKEN_EMBEDDINGS, OUTPUT, PER_LAYER_EMBEDDINGS];

/// Ends of the names of those that layers for further tokens have of their own.
const BY_TOKEN_OF_LAYERS: [&str; 2] = [".nextn.embed_tokens.weight", ".nextn.shared_head_head.weight"];

/// Whether a tensor has this name, which is one of those with a row for each token.
pub fn has_row_per_token(name: &str) -> bool {
    BY_TOKEN.contains(&name) || BY_TOKEN_OF_LAYERS.iter().any(|end| name.ends_with(end))
}

/// The name of the tensor with a row for each token that this name is, or that it begins with.
pub(crate) fn row_per_token_name(name: &str) -> Option<&str> {
    let of_model = BY_TOKEN.iter().filter(|whole| name.starts_with(**whole)).map(|whole| whole.len());
    let of_layer = BY_TOKEN_OF_LAYERS.iter().filter_map(|end| Some(name.find(end)? + end.len()));
    let (whole, rest) = name.split_at(of_model.chain(of_layer).next()?);
    (rest.is_empty() || rest.starts_with('.')).then_some(whole)
}

/// Whether the rows of a tensor belong to the tokens of its file, one to each.
///
/// # Panics
/// If there is no such tensor.
pub fn is_by_token(model: &Model, id: TensorId) -> bool {
    let info = model.tensor(id);
    let n_tokens = model.metadata().get_strings(TOKENS).map(|tokens| tokens.len() as u64);
    has_row_per_token(info.name()) && n_tokens == Some(info.n_rows())
}

/// The part of a model that a tensor belongs to, for tables: the last word of its name, norms and
/// biases together.
pub fn part_of(name: &str) -> &str {
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    match stem.rsplit('.').next().unwrap_or(stem) {
        _ if name.ends_with(".bias") => "biases",
        word if word.contains("norm") => "norms",
        word => word,
    }
}

/// What the name of every key of a fold begins with.
pub const FOLD_KEYS: &str = "prism.hadamard.";

#[cfg(test)]
mod tests {
    use super::{part_of, row_per_token_name};

    #[test]
    fn rows_of_tokens_are_those_of_the_tensor_that_a_name_begins_with() {
        for whole in ["token_embd.weight", "output.weight", "blk.3.nextn.embed_tokens.weight"] {
            assert_eq!(row_per_token_name(whole), Some(whole));
            assert_eq!(row_per_token_name(&format!("{whole}.some")), Some(whole));
        }
        assert_eq!(row_per_token_name("output.weights"), None);
        assert_eq!(row_per_token_name("blk.3.attn_q.weight"), None);
    }

    #[test]
    fn parts_are_the_last_word_of_a_name() {
        assert_eq!(part_of("blk.3.attn_q.weight"), "attn_q");
        assert_eq!(part_of("blk.3.attn_q.bias"), "biases");
        assert_eq!(part_of("blk.3.attn_q_norm.weight"), "norms");
        assert_eq!(part_of("output_norm.weight"), "norms");
        assert_eq!(part_of("token_embd.weight"), "token_embd");
    }
}
