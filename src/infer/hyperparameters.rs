//! What the metadata say about the shape of the network.

use super::Error;
use super::architecture::*;
use super::keys::Keys;
use crate::chat;
use crate::gguf::Model;
use crate::gguf::names::TOKEN_EMBEDDINGS;
use crate::vector::fold_key;

/// `LLAMA_MAX_LAYERS` (src/llama-hparams.h).
const MAX_LAYERS: u64 = 512;

/// `LLAMA_MAX_EXPERTS` (src/llama-hparams.h).
const MAX_EXPERTS: u64 = 1024;

/// No network is wider; keeps products of two widths within 64 bits.
const MAX_WIDTH: u64 = 1 << 24;

/// The shape of the network and its constants, named as in llama.cpp (src/llama-hparams.h).
#[derive(Clone, PartialEq, Debug)]
pub struct Hyperparameters {
    /// `general.architecture`.
    pub architecture: String,
    /// Tokens the model was trained on at once.
    pub n_ctx_train: usize,
    /// Width of the network.
    pub n_embd: usize,
    /// Layers.
    pub n_layer: usize,
    /// Width of the feed-forward network; of one expert, where experts are in its place.
    pub n_ff: usize,
    /// Experts; 0 without any.
    pub n_expert: usize,
    /// Experts that a token goes through.
    pub n_expert_used: usize,
    /// Width of the expert that every token goes through; 0 without one.
    pub n_ff_shared: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads; divides `n_head`.
    pub n_head_kv: usize,
    /// Width of a head.
    pub n_embd_head: usize,
    /// Tokens of the vocabulary.
    pub n_vocab: usize,
    /// What is added to the mean square before its root.
    pub rms_eps: f32,
    /// How positions turn queries and keys.
    pub rope: RopeParameters,
    /// How they do so in layers with a window.
    pub window_rope: RopeParameters,
    /// For each layer how many of the last tokens it sees; none for all of them.
    pub windows: Vec<Option<usize>>,
    /// For each layer whether positions turn its queries and keys.
    pub turned: Vec<bool>,
    /// What is multiplied, and what is limited.
    pub scales: Scales,
}

/// Constants of a network that its activations are multiplied with, and limits that they are kept
/// within. Where a family has none, 1 and no limit.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Scales {
    /// What embeddings are multiplied with.
    pub embedding: f32,
    /// What scores of attention are multiplied with.
    pub attention: f32,
    /// What scores of attention do not go beyond.
    pub attention_cap: Option<f32>,
    /// How queries grow with their position.
    pub temperature: Option<Temperature>,
    /// What a layer's parts are multiplied with before they are added.
    pub residual: f32,
    /// What logits are multiplied with.
    pub logit: f32,
    /// What logits do not go beyond.
    pub logit_cap: Option<f32>,
}

/// Constants of the rotary position embedding.
#[derive(Clone, PartialEq, Debug)]
pub struct RopeParameters {
    /// Whether a pair is (i, i + half) as in NeoX, or (2i, 2i + 1).
    pub is_neox: bool,
    /// Values of a head that are turned; even, the rest stays as it is.
    pub n_rot: usize,
    /// The base of frequencies.
    pub freq_base: f32,
    /// What positions are multiplied with.
    pub freq_scale: f32,
    /// Whether the file may bring factors for short and for long contexts, instead of one list of
    /// them.
    pub is_longrope: bool,
    /// Whether low frequencies alone are scaled (YaRN), and between which numbers of turns within
    /// the original context a frequency is neither low nor high.
    pub yarn_turns: Option<[f32; 2]>,
    /// What cosines and sines are multiplied with.
    pub attn_factor: f32,
    /// Tokens of the context before it was extended.
    pub n_ctx_orig: usize,
}

/// Queries at a position are multiplied with 1 + `scale` · ln(⌊position / `n_floor`⌋ + 1).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Temperature {
    /// How much they grow.
    pub scale: f32,
    /// Tokens of a step.
    pub n_floor: usize,
}

impl Hyperparameters {
    /// Reads and checks the metadata (`llama_model_base::load_hparams`, src/llama-model.cpp).
    ///
    /// # Errors
    /// [`Error::Architecture`], [`Error::Folded`], [`Error::Key`].
    pub fn read(model: &Model) -> Result<Self, Error> {
        Self::read_as(model, architecture(model)?)
    }

    /// Reads what an architecture asks for.
    pub(super) fn read_as(model: &Model, architecture: &Architecture) -> Result<Self, Error> {
        let (metadata, path) = (model.metadata(), model.path());
        if let Some(key) = fold_key(metadata).filter(|_| !architecture.is_foldable) {
            let (path, key, architecture) = (path.to_owned(), key.to_owned(), architecture.name.to_owned());
            return Err(Error::Folded { path, key, architecture });
        }
        let keys = Keys { metadata, path, architecture: architecture.name };
        let n_ctx_train = keys.required("context_length", i32::MAX as u64)?;
        let n_embd = keys.required("embedding_length", MAX_WIDTH)?;
        let n_layer = keys.required("block_count", MAX_LAYERS)?;
        if keys.integer("nextn_predict_layers")?.is_some_and(|n| n > 0) {
            return Err(keys.not_built_in("nextn_predict_layers", "0", "a layer that predicts further tokens"));
        }
        if keys.flag("attention.causal")? == Some(false) {
            return Err(keys.not_built_in("attention.causal", "true", "false"));
        }
        let heads = Heads::read(&keys, n_embd)?;
        let experts = Experts::read(&keys, architecture)?;
        let rms_eps = keys.float("attention.layer_norm_rms_epsilon")?;
        let Some(rms_eps) = rms_eps.filter(|eps| *eps >= 0.0) else {
            return Err(keys.fault("attention.layer_norm_rms_epsilon", "a small number", "none or a negative one"));
        };
        let rope = RopeParameters::read(&keys, &architecture.rope, heads.width, n_ctx_train)?;
        Ok(Hyperparameters {
            architecture: architecture.name.to_owned(),
            n_ctx_train,
            n_embd,
            n_layer,
            n_ff: experts.n_ff,
            n_expert: experts.n,
            n_expert_used: experts.n_used,
            n_ff_shared: experts.n_ff_shared,
            n_head: heads.n,
            n_head_kv: heads.n_kv,
            n_embd_head: heads.width,
            n_vocab: n_vocab(model)?,
            rms_eps,
            window_rope: window_rope(&keys, architecture, &rope)?,
            windows: windows(&keys, architecture, n_layer)?,
            turned: turned(&keys, &architecture.rope, n_layer)?,
            scales: Scales::read(&keys, architecture, [n_embd, n_layer, heads.n, heads.width], &rope)?,
            rope,
        })
    }

    /// Values of a layer's keys, or values, for a token.
    pub(super) fn n_embd_kv(&self) -> usize {
        self.n_embd_head * self.n_head_kv
    }

    /// Values of a layer's queries for a token.
    pub(super) fn n_embd_q(&self) -> usize {
        self.n_embd_head * self.n_head
    }
}

/// The description of a model's architecture.
pub(super) fn architecture(model: &Model) -> Result<&'static Architecture, Error> {
    let found = match model.metadata().get("general.architecture") {
        None => "a file without general.architecture".to_owned(),
        Some(value) => value.as_str().map_or_else(|| value.summary(), ToString::to_string),
    };
    Architecture::find(&found).ok_or_else(|| Error::Architecture { path: model.path().to_owned(), found })
}

/// Heads of attention.
struct Heads {
    n: usize,
    n_kv: usize,
    width: usize,
}

impl Heads {
    fn read(keys: &Keys<'_>, n_embd: usize) -> Result<Self, Error> {
        let n = keys.required_layered("attention.head_count", MAX_WIDTH)?;
        let n_kv = keys.layered("attention.head_count_kv")?.unwrap_or(n as u64);
        if n_kv == 0 || !(n as u64).is_multiple_of(n_kv) {
            let expected = format!("a divisor of the {n} query heads");
            return Err(keys.fault("attention.head_count_kv", &expected, &n_kv.to_string()));
        }
        let width = Self::width(keys, "attention.key_length", n_embd, n)?;
        for key in ["attention.value_length", "attention.key_length_swa", "attention.value_length_swa"] {
            if let Some(n) = keys.integer(key)?.filter(|&n| n != width as u64) {
                return Err(keys.fault(key, &format!("{width}, the width of a head"), &n.to_string()));
            }
        }
        Ok(Heads { n, n_kv: n_kv as usize, width })
    }

    fn width(keys: &Keys<'_>, key: &str, n_embd: usize, n_head: usize) -> Result<usize, Error> {
        let is_fine = |&width: &u64| (1..=MAX_WIDTH).contains(&width) && width.is_multiple_of(2);
        match keys.integer(key)? {
            None if is_fine(&((n_embd / n_head) as u64)) => Ok(n_embd / n_head),
            None => {
                let expected = format!("heads of an even width that make up {n_embd}");
                Err(keys.fault("attention.head_count", &expected, &n_head.to_string()))
            }
            Some(width) if is_fine(&width) => Ok(width as usize),
            Some(width) => Err(keys.fault(key, "a head of even width", &width.to_string())),
        }
    }
}

/// The feed-forward network, or the experts in its place.
struct Experts {
    n: usize,
    n_used: usize,
    n_ff: usize,
    n_ff_shared: usize,
}

impl Experts {
    fn read(keys: &Keys<'_>, architecture: &Architecture) -> Result<Self, Error> {
        let n = keys.integer("expert_count")?.unwrap_or(0);
        let Some(rules) = architecture.experts.filter(|rules| n > 0 || rules.is_required) else {
            if n > 0 {
                let found = format!("{} with {n} experts", architecture.name);
                return Err(Error::Architecture { path: keys.path.to_owned(), found });
            }
            let n_ff = keys.required_layered("feed_forward_length", MAX_WIDTH)?;
            return Ok(Experts { n: 0, n_used: 0, n_ff, n_ff_shared: 0 });
        };
        let n = keys.within("expert_count", MAX_EXPERTS, Some(n))?;
        let n_used = keys.required_layered("expert_used_count", n as u64)?;
        if let Some(groups) = keys.integer("expert_group_count")?.filter(|&n| n > 1) {
            return Err(keys.not_built_in("expert_group_count", "0", &groups.to_string()));
        }
        let n_ff = || keys.required_layered("feed_forward_length", MAX_WIDTH);
        let key = "expert_feed_forward_length";
        let own = keys.layered(key)?.filter(|&n| n > 0);
        let width = match (rules.width, own) {
            (ExpertWidth::FeedForward, _) => n_ff()?,
            (ExpertWidth::KeyOrShare, None) => {
                keys.within("feed_forward_length", MAX_WIDTH, Some((n_ff()? / n_used) as u64))?
            }
            (ExpertWidth::Key | ExpertWidth::KeyOrShare, own) => keys.within(key, MAX_WIDTH, own)?,
        };
        let key = "expert_shared_feed_forward_length";
        let own = keys.integer(key)?.filter(|&n| n > 0);
        let own = own.map(|n| keys.within(key, MAX_WIDTH, Some(n))).transpose()?;
        let n_ff_shared = match (rules.shared, own) {
            (SharedExpert::None, _) | (SharedExpert::ByKey, None) => 0,
            (SharedExpert::ByKey | SharedExpert::Gated, Some(own)) => own,
            (SharedExpert::Gated, None) => n_ff()?,
        };
        Ok(Experts { n, n_used, n_ff: width, n_ff_shared })
    }
}

impl RopeParameters {
    /// Reads the parameters as `load_hparams` does, and completes them as `llama_context` does
    /// (src/llama-context.cpp).
    fn read(keys: &Keys<'_>, rules: &RopeRules, n_embd_head: usize, n_ctx_train: usize) -> Result<Self, Error> {
        let n_rot = keys.integer("rope.dimension_count")?.unwrap_or(n_embd_head as u64);
        let is_fine = match rules.is_partial {
            true => n_rot.is_multiple_of(2) && (2..=n_embd_head as u64).contains(&n_rot),
            false => n_rot == n_embd_head as u64,
        };
        if !is_fine {
            let most = if rules.is_partial { "an even number of at most " } else { "" };
            let expected = format!("{most}{n_embd_head}, the width of a head");
            return Err(keys.fault("rope.dimension_count", &expected, &n_rot.to_string()));
        }
        if let Some(n) = keys.integer("rope.dimension_count_swa")?.filter(|&n| n != n_rot) {
            return Err(keys.not_built_in("rope.dimension_count_swa", &n_rot.to_string(), &n.to_string()));
        }
        let scaling = match keys.value("rope.scaling.type") {
            None => "linear".to_owned(),
            Some(value) => value.as_str().map_or_else(|| value.summary(), ToString::to_string),
        };
        if !["none", "linear", "yarn", "longrope"].contains(&scaling.as_str()) {
            return Err(keys.fault("rope.scaling.type", "none, linear, yarn or longrope", &scaling));
        }
        let factor = match keys.float("rope.scaling.factor")? {
            None => keys.float("rope.scale_linear")?,
            found => found,
        };
        let freq_scale = match factor.filter(|f| *f != 0.0) {
            Some(_) if scaling == "none" => 1.0,
            Some(factor) if factor >= f32::MIN_POSITIVE => 1.0 / factor,
            Some(factor) => return Err(keys.fault("rope.scaling.factor", "a positive number", &factor.to_string())),
            None => 1.0,
        };
        let n_ctx_orig = keys.integer("rope.scaling.original_context_length")?.filter(|&n| n > 0);
        let mut parameters = RopeParameters {
            is_neox: rules.is_neox,
            n_rot: n_rot as usize,
            freq_base: base(keys, "rope.freq_base")?.unwrap_or(10_000.0),
            freq_scale,
            is_longrope: scaling == "longrope",
            yarn_turns: None,
            attn_factor: keys.float("rope.scaling.attn_factor")?.unwrap_or(1.0),
            n_ctx_orig: n_ctx_orig.map_or(n_ctx_train, |n| n.min(i32::MAX as u64) as usize),
        };
        if scaling == "yarn" {
            parameters.stretch(keys, rules)?;
        }
        Ok(parameters)
    }

    /// YaRN: frequencies between, and the magnitude, which llama_context takes out and the rotation
    /// puts in again (`rope_yarn`, ggml-cpu/ops.cpp). A window's own frequencies have a magnitude
    /// of their own.
    fn stretch(&mut self, keys: &Keys<'_>, rules: &RopeRules) -> Result<(), Error> {
        let read = |key: &str| if rules.reads_yarn { keys.float(key) } else { Ok(None) };
        let fast = read("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0);
        let slow = read("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0);
        for (key, turns) in [("rope.scaling.yarn_beta_fast", fast), ("rope.scaling.yarn_beta_slow", slow)] {
            if turns <= 0.0 {
                return Err(keys.fault(key, "a positive number", &turns.to_string()));
            }
        }
        let log_multiplier = read("rope.scaling.yarn_log_multiplier")?.filter(|m| *m != 0.0);
        let factor = 1.0 / self.freq_scale;
        let magnitude = |multiplier: f32| if factor <= 1.0 { 1.0 } else { 0.1 * multiplier * factor.ln() + 1.0 };
        let wanted = log_multiplier.map_or(magnitude(1.0), |all| magnitude(1.0) / magnitude(all));
        self.attn_factor *= wanted * (1.0 / (1.0 + 0.1 * factor.ln()));
        self.yarn_turns = Some([fast, slow]);
        Ok(())
    }
}

fn base(keys: &Keys<'_>, key: &str) -> Result<Option<f32>, Error> {
    match keys.float(key)? {
        Some(base) if base <= 1.0 => Err(keys.fault(key, "a number above 1", &base.to_string())),
        found => Ok(found),
    }
}

/// The rotation of layers with a window.
fn window_rope(keys: &Keys<'_>, architecture: &Architecture, rope: &RopeParameters) -> Result<RopeParameters, Error> {
    let own = || base(keys, "rope.freq_base_swa");
    let Some(rules) = architecture.window else { return Ok(rope.clone()) };
    Ok(match rules.rope {
        WindowRope::Alike => RopeParameters { freq_base: own()?.unwrap_or(rope.freq_base), ..rope.clone() },
        WindowRope::Own(base) => RopeParameters { freq_base: own()?.unwrap_or(base), freq_scale: 1.0, ..rope.clone() },
        WindowRope::Unscaled => RopeParameters { freq_scale: 1.0, yarn_turns: None, attn_factor: 1.0, ..rope.clone() },
    })
}

/// For each layer how many of the last tokens it sees (`load_swa_pattern`, `set_swa_pattern`).
fn windows(keys: &Keys<'_>, architecture: &Architecture, n_layer: usize) -> Result<Vec<Option<usize>>, Error> {
    let none = vec![None; n_layer];
    let Some(rules) = architecture.window else { return Ok(none) };
    let key = "attention.sliding_window";
    let width = match (keys.integer(key)?, rules.width) {
        (None, WindowWidth::NoWindow) | (Some(0), WindowWidth::NoWindow) => return Ok(none),
        (None, WindowWidth::Default(width)) => width,
        (found, _) => keys.within(key, i32::MAX as u64, found)?,
    };
    let key = "attention.sliding_window_pattern";
    let has_window: Vec<bool> = match keys.value(key).and_then(|value| value.as_array()) {
        Some(pattern) => {
            let flags = (0..n_layer).map(|i| pattern.get(i).and_then(|v| v.as_bool().or(v.as_u64().map(|n| n != 0))));
            let expected = format!("true or false for each of {n_layer} layers");
            flags.collect::<Option<_>>().ok_or_else(|| keys.fault(key, &expected, "fewer, or others"))?
        }
        None => {
            let period = keys.integer(key)?.unwrap_or(rules.period as u64);
            (0..n_layer as u64).map(|i| period == 0 || i % period < period - 1).collect()
        }
    };
    Ok(has_window.into_iter().map(|has_window| has_window.then_some(width)).collect())
}

/// For each layer whether it knows positions.
fn turned(keys: &Keys<'_>, rules: &RopeRules, n_layer: usize) -> Result<Vec<bool>, Error> {
    if rules.is_switched && keys.flag("rope.scaling.finetuned")? == Some(false) {
        return Ok(vec![false; n_layer]);
    }
    Ok((1..=n_layer).map(|i| rules.period_without.is_none_or(|period| !i.is_multiple_of(period))).collect())
}

impl Scales {
    fn read(
        keys: &Keys<'_>,
        architecture: &Architecture,
        [n_embd, n_layer, n_head, head_width]: [usize; 4],
        rope: &RopeParameters,
    ) -> Result<Self, Error> {
        let (attention, output) = (&architecture.attention, &architecture.output);
        let cap = |key: &str, default: Option<f32>| match default {
            Some(default) => Ok(Some(keys.float(key)?.unwrap_or(default)).filter(|cap| *cap != 0.0)),
            None => Ok::<_, Error>(None),
        };
        let by_head = 1.0 / (head_width as f32).sqrt();
        let temperature = match attention.has_temperature {
            true => keys.scale("attention.temperature_scale")?,
            false => None,
        };
        Ok(Scales {
            embedding: match architecture.embeddings {
                EmbeddingScale::One => 1.0,
                EmbeddingScale::RootOfWidth => (n_embd as f32).sqrt(),
                EmbeddingScale::Key => keys.scale("embedding_scale")?.unwrap_or(1.0),
            },
            attention: match attention.scale {
                AttentionScale::HeadWidth => by_head,
                AttentionScale::Key => keys.scale("attention.scale")?.unwrap_or(by_head),
                AttentionScale::NetworkWidthAt { n_layer: n } if n == n_layer => {
                    1.0 / ((n_embd / n_head) as f32).sqrt()
                }
                AttentionScale::NetworkWidthAt { .. } => by_head,
            },
            attention_cap: cap("attn_logit_softcapping", attention.soft_cap)?,
            temperature: temperature.map(|scale| Temperature { scale, n_floor: rope.n_ctx_orig }),
            residual: match architecture.scales_residuals {
                true => keys.scale("residual_scale")?.unwrap_or(1.0),
                false => 1.0,
            },
            logit: match output.is_divided {
                true => match keys.scale("logit_scale")? {
                    Some(scale) => 1.0 / scale,
                    None => return Err(keys.fault("logit_scale", "a number that is not 0", "none, or 0")),
                },
                false => 1.0,
            },
            logit_cap: cap("final_logit_softcapping", output.soft_cap)?,
        })
    }
}

fn n_vocab(model: &Model) -> Result<usize, Error> {
    let rows = model.find(TOKEN_EMBEDDINGS).map(|id| model.tensor(id).n_rows());
    let tokens = model.metadata().get_strings(chat::TOKENS).map(|t| t.len() as u64);
    match tokens.or(rows).filter(|&n| n > 0 && n <= u64::from(u32::MAX)) {
        Some(n) => Ok(n as usize),
        None => Err(Error::key(model.path(), chat::TOKENS, "the vocabulary", "no tokens")),
    }
}
