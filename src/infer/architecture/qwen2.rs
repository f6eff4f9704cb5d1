//! Qwen 2 and 2.5, also with experts.

use super::*;

/// Queries, keys and values have biases; so may the output.
pub(super) const QWEN2: Architecture = Architecture {
    name: "qwen2",
    source: "src/models/qwen2.cpp",
    output: OutputRules { bias: Presence::Optional, ..PLAIN.output },
    ..PLAIN
};

/// An expert for all tokens, let through by a gate, beside those that are chosen.
pub(super) const QWEN2MOE: Architecture = Architecture {
    name: "qwen2moe",
    source: "src/models/qwen2moe.cpp",
    experts: Some(ExpertRules {
        is_required: true,
        weights: ExpertWeights::Softmax,
        width: ExpertWidth::KeyOrShare,
        biases: Presence::Absent,
        shared: SharedExpert::Gated,
    }),
    output: OutputRules { matrix: Presence::Required, ..PLAIN.output },
    ..PLAIN
};
