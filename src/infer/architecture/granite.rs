//! Granite, also with experts.

use super::*;

/// Llama with scales: of embeddings, of scores, of what layers add, of logits.
pub(super) const GRANITE: Architecture = Architecture {
    name: "granite",
    source: "src/models/granite.cpp",
    is_foldable: false,
    embeddings: EmbeddingScale::Key,
    attention: Attention { scale: AttentionScale::Key, ..llama::LLAMA.attention },
    rope: RopeRules { is_switched: true, ..llama::LLAMA.rope },
    experts: Some(ExpertRules { shared: SharedExpert::ByKey, ..llama::MIXTRAL }),
    scales_residuals: true,
    output: OutputRules { is_divided: true, ..llama::LLAMA.output },
    ..llama::LLAMA
};

/// The same with experts, and always with a rotation.
pub(super) const GRANITE_MOE: Architecture =
    Architecture { name: "granitemoe", source: "src/models/granite-moe.cpp", rope: llama::LLAMA.rope, ..GRANITE };
