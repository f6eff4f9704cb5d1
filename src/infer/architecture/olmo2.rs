//! OLMo 2 and 3.

use super::*;

/// Norms after attention and feed-forward network only, and of queries and keys as whole rows.
/// OLMo 3 has windows, in whose layers positions are not scaled.
pub(super) const OLMO2: Architecture = Architecture {
    name: "olmo2",
    source: "src/models/olmo2.cpp",
    norms: Norms { attention: false, after_attention: true, feed_forward: None, after_feed_forward: true },
    attention: Attention { qk_norm: QkNorm::Rows, ..PLAIN.attention },
    window: Some(WindowRules { width: WindowWidth::NoWindow, period: 4, rope: WindowRope::Unscaled }),
    output: OutputRules { matrix: Presence::Required, ..PLAIN.output },
    ..PLAIN
};
