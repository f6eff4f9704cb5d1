//! Gemma 1, 2 and 3 with text alone.

use super::*;

/// Embeddings grow by the root of the width, gates go through GELU, and the embedding gives the
/// logits.
pub(super) const GEMMA: Architecture = Architecture {
    name: "gemma",
    source: "src/models/gemma.cpp",
    embeddings: EmbeddingScale::RootOfWidth,
    rope: RopeRules { is_partial: true, ..PLAIN.rope },
    feed_forward: FeedForwardRules { activation: Activation::Gelu, ..PLAIN.feed_forward },
    output: OutputRules { matrix: Presence::Absent, ..PLAIN.output },
    ..PLAIN
};

/// Norms before and after, every other layer with a window, caps on scores and logits.
pub(super) const GEMMA2: Architecture = Architecture {
    name: "gemma2",
    source: "src/models/gemma2.cpp",
    norms: AROUND,
    attention: Attention {
        // 27B alone.
        scale: AttentionScale::NetworkWidthAt { n_layer: 46 },
        soft_cap: Some(50.0),
        ..PLAIN.attention
    },
    window: Some(WindowRules { width: WindowWidth::Default(4096), period: 2, rope: WindowRope::Alike }),
    output: OutputRules { soft_cap: Some(30.0), ..GEMMA.output },
    ..GEMMA
};

/// Norms of queries and keys in place of the caps; five of six layers have a window and a base of
/// their own.
pub(super) const GEMMA3: Architecture = Architecture {
    name: "gemma3",
    source: "src/models/gemma3.cpp",
    norms: AROUND,
    attention: Attention {
        qk_norm: QkNorm::Heads,
        // 27B alone.
        scale: AttentionScale::NetworkWidthAt { n_layer: 62 },
        ..PLAIN.attention
    },
    window: Some(WindowRules { width: WindowWidth::NoWindow, period: 6, rope: WindowRope::Own(10_000.0) }),
    output: OutputRules { soft_cap: Some(0.0), ..PLAIN.output },
    ..GEMMA
};

const AROUND: Norms = Norms { after_attention: true, after_feed_forward: true, ..PLAIN.norms };
