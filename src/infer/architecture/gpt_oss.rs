//! gpt-oss.

use super::*;

/// Experts with biases, heads that may look at nothing, every other layer with a window. The norm
/// before the experts goes by the name of one after attention.
pub(super) const GPT_OSS: Architecture = Architecture {
    name: "gpt-oss",
    source: "src/models/openai-moe.cpp",
    norms: Norms { feed_forward: Some("post_attention_norm"), ..PLAIN.norms },
    attention: Attention { output_bias: Presence::Required, has_sinks: true, ..PLAIN.attention },
    window: Some(WindowRules { width: WindowWidth::Required, period: 2, rope: WindowRope::Alike }),
    feed_forward: FeedForwardRules { activation: Activation::SwigluOai, ..PLAIN.feed_forward },
    experts: Some(ExpertRules {
        is_required: true,
        weights: ExpertWeights::SoftmaxOfChosen,
        width: ExpertWidth::Key,
        biases: Presence::Required,
        shared: SharedExpert::None,
    }),
    output: OutputRules { matrix: Presence::Required, ..PLAIN.output },
    ..PLAIN
};
