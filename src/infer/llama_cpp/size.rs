//! What a context of llama.cpp takes of memory, by the metadata of a model.

use crate::gguf::{Model, Value};

/// Cells are given out in blocks of so many (`GGML_PAD` in src/llama-context.cpp).
const BLOCK: usize = 256;

/// What a context takes. It is an estimate: llama.cpp lays out its own memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// Bytes of a token's keys and values.
    cell: u64,
    /// Bytes of a sequence's state in layers without keys and values.
    sequence: u64,
    /// Bytes of activations and logits of a batch.
    batch: u64,
    /// Bytes of a batch's scores for each token of a context.
    scores: u64,
    /// Whether positions turn in another way in contexts longer than the original one.
    pub(super) has_two_rotations: bool,
}

impl Size {
    pub(super) fn of(model: &Model, threads: usize, n_vocab: usize) -> Self {
        let metadata = model.metadata();
        let architecture = metadata.get_str("general.architecture").map(ToString::to_string).unwrap_or_default();
        let value = |key: &str| metadata.get(&format!("{architecture}.{key}"));
        let number = |key: &str| value(key).and_then(Value::as_u64);
        let n_layer = number("block_count").unwrap_or(0).min(1 << 16);
        // A number for each layer, or one for all of them.
        let of_layers = |key: &str, default: u64| -> Vec<u64> {
            let list = value(key).and_then(Value::as_array);
            let of_list = |i: u64| list.and_then(|list| list.get(i as usize)?.as_u64());
            (0..n_layer).map(|i| of_list(i).or_else(|| number(key)).unwrap_or(default)).collect()
        };
        let n_embd = number("embedding_length").unwrap_or(0);
        let heads = of_layers("attention.head_count", 1);
        let most_heads = heads.iter().copied().max().unwrap_or(1).max(1);
        let width = |key: &str| number(key).unwrap_or(n_embd / most_heads);
        let head = width("attention.key_length").saturating_add(width("attention.value_length"));
        let n_kv: u64 = match value("attention.head_count_kv") {
            Some(_) => of_layers("attention.head_count_kv", 0).iter().fold(0, |sum, n| sum.saturating_add(*n)),
            None => heads.iter().fold(0, |sum, n| sum.saturating_add(*n)),
        };
        let inner = number("ssm.inner_size").unwrap_or(0);
        let state = number("ssm.state_size").unwrap_or(0).saturating_add(number("ssm.conv_kernel").unwrap_or(0));
        let wkv = number("wkv.head_size").map_or(0, |n| n.saturating_add(2)).saturating_mul(n_embd);
        let n_ff = of_layers("feed_forward_length", 0).into_iter().max().unwrap_or(0);
        let (batch, outputs) = (super::BATCH as u64, super::OUTPUTS as u64);
        let widths = n_embd.saturating_mul(8).saturating_add(n_ff.saturating_mul(4));
        let logits = outputs.saturating_mul(n_vocab as u64).saturating_mul(2);
        Size {
            cell: n_kv.saturating_mul(head).saturating_mul(4),
            sequence: inner.saturating_mul(state).saturating_add(wkv).saturating_mul(n_layer).saturating_mul(4),
            batch: batch.saturating_mul(widths).saturating_add(logits).saturating_mul(4),
            scores: batch.saturating_mul(most_heads).saturating_mul(8).saturating_add(threads as u64 * 4),
            has_two_rotations: model.find("rope_factors_long.weight").is_some(),
        }
    }

    /// Bytes of `n` sequences of so many tokens.
    pub(super) fn bytes(&self, n: usize, room: usize) -> u64 {
        let (n, room) = (n as u64, room.next_multiple_of(BLOCK) as u64);
        let cells = self.cell.saturating_mul(room).saturating_add(self.sequence).saturating_mul(n);
        cells.saturating_add(self.batch).saturating_add(self.scores.saturating_mul(room))
    }
}
