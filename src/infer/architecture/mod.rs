//! Architectures as data: what makes a family's network other than the next one's.
//!
//! A description says which tensors a layer has and what is done with them, in words of the blocks
//! beside this module; none of it is code. The facts are those of llama.cpp 0.8 (b12032), where
//! [`Architecture::source`] says; what all families share is in src/llama-model.cpp and
//! src/llama-graph.cpp.

mod gemma;
mod gpt_oss;
mod granite;
mod llama;
mod mistral3;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod smollm3;

/// Every family with a forward pass in this crate.
const ALL: [&Architecture; 15] = [
    &llama::LLAMA,
    &qwen2::QWEN2,
    &qwen2::QWEN2MOE,
    &qwen3::QWEN3,
    &qwen3::QWEN3MOE,
    &gemma::GEMMA,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &mistral3::MISTRAL3,
    &phi3::PHI3,
    &gpt_oss::GPT_OSS,
    &olmo2::OLMO2,
    &granite::GRANITE,
    &granite::GRANITE_MOE,
    &smollm3::SMOLLM3,
];

/// The architectures with a forward pass in this crate: as `general.architecture` has them, and the
/// file of llama.cpp 0.8 that builds them there.
pub fn architectures() -> impl Iterator<Item = (&'static str, &'static str)> {
    ALL.iter().map(|a| (a.name, a.source))
}

/// A family of networks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Architecture {
    /// `general.architecture`.
    pub(super) name: &'static str,
    /// The file of llama.cpp that builds it.
    pub(super) source: &'static str,
    /// Whether llama.cpp reads folded weights in it (`load_hparams_hadamard`).
    pub(super) is_foldable: bool,
    /// What embeddings are multiplied with.
    pub(super) embeddings: EmbeddingScale,
    /// Which norms stand around the two parts of a layer.
    pub(super) norms: Norms,
    /// How tokens look at tokens.
    pub(super) attention: Attention,
    /// How positions turn queries and keys.
    pub(super) rope: RopeRules,
    /// Layers that see the last tokens only.
    pub(super) window: Option<WindowRules>,
    /// What follows attention.
    pub(super) feed_forward: FeedForwardRules,
    /// The experts in its place.
    pub(super) experts: Option<ExpertRules>,
    /// Whether what a layer's parts add is multiplied with `residual_scale`.
    pub(super) scales_residuals: bool,
    /// How logits are made.
    pub(super) output: OutputRules,
}

/// What the other descriptions are told apart from: a layer of norms, attention and a gated
/// feed-forward network with SiLU, no biases but of queries, keys and values, and an output of its
/// own if the file has one.
pub(super) const PLAIN: Architecture = Architecture {
    name: "",
    source: "",
    is_foldable: false,
    embeddings: EmbeddingScale::One,
    norms: Norms { attention: true, after_attention: false, feed_forward: Some("ffn_norm"), after_feed_forward: false },
    attention: Attention {
        qk_norm: QkNorm::None,
        output_bias: Presence::Absent,
        has_sinks: false,
        scale: AttentionScale::HeadWidth,
        soft_cap: None,
        has_temperature: false,
    },
    rope: RopeRules {
        is_neox: true,
        is_partial: false,
        factors: RopeFactors::None,
        period_without: None,
        is_switched: false,
        reads_yarn: false,
    },
    window: None,
    feed_forward: FeedForwardRules { activation: Activation::Silu, is_fused: false, biases: Presence::Absent },
    experts: None,
    scales_residuals: false,
    output: OutputRules { matrix: Presence::Optional, bias: Presence::Absent, soft_cap: None, is_divided: false },
};

/// Whether something may, must or must not be there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Presence {
    Absent,
    Optional,
    Required,
}

/// What embeddings are multiplied with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EmbeddingScale {
    One,
    /// The root of the width.
    RootOfWidth,
    /// `embedding_scale`, if it is there and not 0.
    Key,
}

/// Root mean square norms of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norms {
    /// `attn_norm`, before attention.
    pub(super) attention: bool,
    /// `post_attention_norm`, of what attention adds.
    pub(super) after_attention: bool,
    /// The norm before the feed-forward network, by its name.
    pub(super) feed_forward: Option<&'static str>,
    /// `post_ffw_norm`, of what the feed-forward network adds.
    pub(super) after_feed_forward: bool,
}

/// Attention.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attention {
    pub(super) qk_norm: QkNorm,
    /// `attn_output.bias`.
    pub(super) output_bias: Presence,
    /// `attn_sinks`: a score for each head that nothing answers to.
    pub(super) has_sinks: bool,
    pub(super) scale: AttentionScale,
    /// Scores go no further than `attn_logit_softcapping`; this is what stands for the key.
    pub(super) soft_cap: Option<f32>,
    /// Queries grow with their position, by `attention.temperature_scale`.
    pub(super) has_temperature: bool,
}

/// The norm of queries and keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum QkNorm {
    None,
    /// Of each head.
    Heads,
    /// Of all heads together.
    Rows,
}

/// What scores are multiplied with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AttentionScale {
    /// One by the root of the width of a head.
    HeadWidth,
    /// `attention.scale`, and as above without it.
    Key,
    /// As above, but with so many layers by the root of the width of the network a head.
    NetworkWidthAt { n_layer: usize },
}

/// Rotary position embedding.
#[derive(Clone, Copy, Debug)]
pub(super) struct RopeRules {
    /// Whether a pair is (i, i + half) as in NeoX, or (2i, 2i + 1).
    pub(super) is_neox: bool,
    /// Whether `rope.dimension_count` may be less than the width of a head.
    pub(super) is_partial: bool,
    pub(super) factors: RopeFactors,
    /// Every so many layers one has no rotation, the last of them.
    pub(super) period_without: Option<usize>,
    /// Whether `rope.scaling.finetuned` = false means no rotation at all.
    pub(super) is_switched: bool,
    /// Whether `rope.scaling.yarn_beta_fast`, `_slow` and `_log_multiplier` are read.
    pub(super) reads_yarn: bool,
}

/// Tensors that angles are divided by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RopeFactors {
    None,
    /// `rope_freqs`; with longrope scaling `rope_factors_long` and `_short` in its place.
    ByScaling,
    /// `rope_factors_long` and `_short`, whatever the scaling is called.
    ByLength,
}

/// Layers that see the last `attention.sliding_window` tokens only.
#[derive(Clone, Copy, Debug)]
pub(super) struct WindowRules {
    /// What stands for the key.
    pub(super) width: WindowWidth,
    /// Of so many layers the last sees everything, unless `attention.sliding_window_pattern` says
    /// otherwise.
    pub(super) period: usize,
    /// How positions turn in these layers.
    pub(super) rope: WindowRope,
}

/// What a window is without its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WindowWidth {
    Default(usize),
    /// Every layer sees everything.
    NoWindow,
    /// The file is refused.
    Required,
}

/// The rotation of layers with a window.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum WindowRope {
    /// As elsewhere, or with `rope.freq_base_swa`.
    Alike,
    /// Without scaling of positions, and with `rope.freq_base_swa` or this base.
    Own(f32),
    /// As elsewhere, without any scaling.
    Unscaled,
}

/// The feed-forward network.
#[derive(Clone, Copy, Debug)]
pub(super) struct FeedForwardRules {
    pub(super) activation: Activation,
    /// Whether `ffn_up` holds the gate, and the rest behind it.
    pub(super) is_fused: bool,
    /// Biases of all its matrices.
    pub(super) biases: Presence,
}

/// What a gate is put through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Activation {
    Silu,
    /// By tanh, in the halves of ggml's table.
    Gelu,
    /// SiLU with a limit, and one more than what is gated (`ggml_swiglu_oai`).
    SwigluOai,
}

/// Experts in place of the feed-forward network, of which a router chooses some for each token.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpertRules {
    /// Whether a file without experts is refused.
    pub(super) is_required: bool,
    /// How the scores of the chosen ones become their weights.
    pub(super) weights: ExpertWeights,
    /// The width of an expert.
    pub(super) width: ExpertWidth,
    /// Biases of the router and of all experts.
    pub(super) biases: Presence,
    pub(super) shared: SharedExpert,
}

/// How the chosen experts are weighted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ExpertWeights {
    /// By their probabilities among all.
    Softmax,
    /// The same, made to sum to 1.
    Normalized,
    /// By their probabilities among the chosen.
    SoftmaxOfChosen,
}

/// The width of an expert.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ExpertWidth {
    /// `feed_forward_length`.
    FeedForward,
    /// `expert_feed_forward_length`, or `feed_forward_length` shared among the chosen.
    KeyOrShare,
    /// `expert_feed_forward_length`.
    Key,
}

/// An expert that every token has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SharedExpert {
    None,
    /// If `expert_shared_feed_forward_length` is there and not 0.
    ByKey,
    /// Always, `expert_shared_feed_forward_length` or `feed_forward_length` wide, and let through
    /// by `ffn_gate_inp_shexp`.
    Gated,
}

/// How logits are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct OutputRules {
    /// `output.weight`; absent means that the embedding always stands for it.
    pub(super) matrix: Presence,
    /// `output.bias`.
    pub(super) bias: Presence,
    /// Logits go no further than `final_logit_softcapping`; this is what stands for the key, and 0
    /// is no cap.
    pub(super) soft_cap: Option<f32>,
    /// Whether they are divided by `logit_scale`.
    pub(super) is_divided: bool,
}

impl Architecture {
    /// The description of a name.
    pub(super) fn find(name: &str) -> Option<&'static Architecture> {
        ALL.into_iter().find(|a| a.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_there_once_and_says_where_it_is_from() {
        let mut names: Vec<&str> = architectures().map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        assert!(ALL.iter().all(|a| a.source.starts_with("src/models/") && a.source.ends_with(".cpp")));
    }
}
