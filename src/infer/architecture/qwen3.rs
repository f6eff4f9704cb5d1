//! Qwen 3, also with experts.

use super::*;

/// The heads of queries and keys are normed.
pub(super) const QWEN3: Architecture = Architecture {
    name: "qwen3",
    source: "src/models/qwen3.cpp",
    is_foldable: true,
    attention: Attention { qk_norm: QkNorm::Heads, ..PLAIN.attention },
    ..PLAIN
};

/// The same with narrow experts.
pub(super) const QWEN3MOE: Architecture = Architecture {
    name: "qwen3moe",
    source: "src/models/qwen3moe.cpp",
    experts: Some(ExpertRules {
        is_required: true,
        weights: ExpertWeights::Normalized,
        width: ExpertWidth::KeyOrShare,
        biases: Presence::Absent,
        shared: SharedExpert::None,
    }),
    ..QWEN3
};
