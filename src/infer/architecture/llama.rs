//! Llama, and what goes by its name: Mistral, SmolLM, Yi; with experts Mixtral.

use super::*;

/// Biases of the output and of the feed-forward network are taken where they are; frequencies may
/// have factors (Llama 3.1).
pub(super) const LLAMA: Architecture = Architecture {
    name: "llama",
    source: "src/models/llama.cpp",
    is_foldable: true,
    attention: Attention { output_bias: Presence::Optional, ..PLAIN.attention },
    rope: RopeRules { is_neox: false, factors: RopeFactors::ByScaling, ..PLAIN.rope },
    feed_forward: FeedForwardRules { biases: Presence::Optional, ..PLAIN.feed_forward },
    experts: Some(MIXTRAL),
    ..PLAIN
};

/// As wide as the feed-forward network that they replace.
pub(super) const MIXTRAL: ExpertRules = ExpertRules {
    is_required: false,
    weights: ExpertWeights::Normalized,
    width: ExpertWidth::FeedForward,
    biases: Presence::Absent,
    shared: SharedExpert::None,
};
