//! Whether llama.cpp will load an output, as far as its header tells.

use std::collections::BTreeSet;

use super::Warning;
use crate::gguf::{Metadata, Value};

/// Most keys that a message names.
const SHOWN: usize = 4;

/// What llama.cpp will not load: layers that are promised and absent, and hyperparameters of a type
/// that it does not read (src/llama-model-loader.cpp: `get_key` is there for uint32, float32, bool and
/// string, and throws for another).
pub(super) fn warnings<'a>(metadata: &Metadata, tensors: impl Iterator<Item = &'a str>) -> Vec<Warning> {
    let Some(architecture) = metadata.architecture() else { return Vec::new() };
    let key = format!("{architecture}.block_count");
    let number = |name: &str| name.strip_prefix("blk.")?.split('.').next()?.parse::<u64>().ok();
    let blocks: BTreeSet<u64> = tensors.filter_map(number).collect();
    let mut warnings = Vec::new();
    // Layers that are nothing but a way through have no tensors.
    let has_empty = |word: &str| {
        let list = metadata.get(&format!("{architecture}.{word}")).and_then(|value| value.as_array());
        list.is_some_and(|list| list.iter().any(|n| n.as_f64() == Some(0.0)))
    };
    let may_be_empty = has_empty("feed_forward_length") || has_empty("attention.head_count");
    if let Some(promised) = metadata.get_u64(&key).filter(|_| !blocks.is_empty() && !may_be_empty)
        && let Some(block) = (0..promised).take(blocks.len() + 1).find(|block| !blocks.contains(block))
    {
        warnings.push(Warning::LacksBlocks { key, promised, block });
    }
    let prefix = format!("{architecture}.");
    let is_read = |value: &Value| {
        matches!(value, Value::U32(_) | Value::F32(_) | Value::Bool(_) | Value::String(_) | Value::Array(_))
    };
    let odd = || metadata.iter().filter(|(key, value)| key.starts_with(&prefix) && !is_read(value));
    let mut keys: Vec<String> =
        odd().take(SHOWN).map(|(key, value)| format!("{key} ({})", value.value_type().name())).collect();
    match odd().count() {
        0 => {}
        n => {
            keys.extend((n > SHOWN).then(|| format!("and {} more", n - SHOWN)));
            warnings.push(Warning::ScalarTypes { keys });
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(n_blocks: Value) -> Metadata {
        let mut metadata = Metadata::default();
        metadata.set("general.architecture", "llama");
        metadata.set("llama.block_count", n_blocks);
        metadata
    }

    #[test]
    fn a_layer_that_is_promised_and_absent_is_told() {
        let found = |names: &[&str]| warnings(&metadata(Value::U32(3)), names.iter().copied());
        assert_eq!(found(&["blk.0.a", "blk.1.a", "blk.2.a"]), []);
        assert_eq!(found(&["token_embd.weight"]), [], "a vocabulary alone");
        for (names, block) in [(&["blk.0.a", "blk.1.a"][..], 2), (&["blk.0.a", "blk.2.a"], 1), (&["blk.7.a"], 0)] {
            let key = "llama.block_count".to_owned();
            assert_eq!(found(names), [Warning::LacksBlocks { key, promised: 3, block }]);
        }
    }

    #[test]
    fn types_that_llama_cpp_does_not_read_are_told() {
        let mut odd = metadata(Value::U64(1));
        odd.set("llama.rope.freq_base", Value::F64(1e4));
        odd.set("llama.context_length", Value::U32(1));
        odd.set("other.context_length", Value::U64(1));
        let [Warning::ScalarTypes { keys }] = &warnings(&odd, ["blk.0.a"].into_iter())[..] else { panic!() };
        assert_eq!(keys, &["llama.block_count (uint64)", "llama.rope.freq_base (float64)"]);
    }
}
