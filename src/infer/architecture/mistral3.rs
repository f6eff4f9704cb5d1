//! Ministral 3 and Mistral Small 3.

use super::*;

/// Llama, with the keys of YaRN and with queries that grow with their position.
pub(super) const MISTRAL3: Architecture = Architecture {
    name: "mistral3",
    source: "src/models/mistral3.cpp",
    is_foldable: false,
    attention: Attention { has_temperature: true, ..llama::LLAMA.attention },
    rope: RopeRules { reads_yarn: true, ..llama::LLAMA.rope },
    ..llama::LLAMA
};
