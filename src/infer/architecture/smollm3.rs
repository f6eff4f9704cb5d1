//! SmolLM 3.

use super::*;

/// Every fourth layer does not know positions.
pub(super) const SMOLLM3: Architecture = Architecture {
    name: "smollm3",
    source: "src/models/smollm3.cpp",
    rope: RopeRules { is_neox: false, period_without: Some(4), ..PLAIN.rope },
    ..PLAIN
};
