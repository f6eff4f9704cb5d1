//! Phi 3, 3.5 and 4 without experts.

use super::*;

/// Queries, keys and values are one matrix, gate and up another; long contexts have factors of
/// their own. llama.cpp leaves out the window that the file may name.
pub(super) const PHI3: Architecture = Architecture {
    name: "phi3",
    source: "src/models/phi3.cpp",
    rope: RopeRules { is_partial: true, factors: RopeFactors::ByLength, ..PLAIN.rope },
    feed_forward: FeedForwardRules { is_fused: true, ..PLAIN.feed_forward },
    ..PLAIN
};
