//! What the metadata say about the shape of the network.

use std::path::Path;

use super::Error;
use crate::chat;
use crate::gguf::names::TOKEN_EMBEDDINGS;
use crate::gguf::{Metadata, Model, Value};
use crate::vector::fold_key;

/// The architectures with a forward pass in this crate. Mistral and SmolLM files say `llama`.
pub const ARCHITECTURES: [&str; 2] = ["llama", "qwen2"];

/// Those of them in which llama.cpp reads folded weights (`load_hparams_hadamard`,
/// src/llama-model.cpp).
const FOLDABLE: [&str; 1] = ["llama"];

/// `LLAMA_MAX_LAYERS` (src/llama-hparams.h).
const MAX_LAYERS: u64 = 512;

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
    /// Width of the feed-forward network.
    pub n_ff: usize,
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
}

/// Constants of the rotary position embedding.
#[derive(Clone, PartialEq, Debug)]
pub struct RopeParameters {
    /// Whether a pair is (i, i + half) as in NeoX, or (2i, 2i + 1).
    pub is_neox: bool,
    /// The base of frequencies.
    pub freq_base: f32,
    /// What positions are multiplied with.
    pub freq_scale: f32,
    /// Whether the file may bring factors for short and for long contexts, instead of one list of
    /// them.
    pub is_longrope: bool,
    /// Whether low frequencies alone are scaled (YaRN).
    pub is_yarn: bool,
    /// What cosines and sines are multiplied with.
    pub attn_factor: f32,
    /// Tokens of the context before it was extended.
    pub n_ctx_orig: usize,
}

impl Hyperparameters {
    /// Reads and checks the metadata (`llama_model_base::load_hparams`, src/llama-model.cpp).
    ///
    /// # Errors
    /// [`Error::Architecture`], [`Error::Folded`], [`Error::Key`].
    pub fn read(model: &Model) -> Result<Self, Error> {
        let (metadata, path) = (model.metadata(), model.path());
        let found = match metadata.get("general.architecture") {
            None => "a file without general.architecture".to_owned(),
            Some(value) => value.as_str().map_or_else(|| value.summary(), ToString::to_string),
        };
        let Some(&architecture) = ARCHITECTURES.iter().find(|&&a| a == found) else {
            return Err(Error::Architecture { path: path.to_owned(), found });
        };
        if let Some(key) = fold_key(metadata).filter(|_| !FOLDABLE.contains(&architecture)) {
            let (path, key, architecture) = (path.to_owned(), key.to_owned(), architecture.to_owned());
            return Err(Error::Folded { path, key, architecture });
        }
        let keys = Keys { metadata, path, architecture };
        if let Some(n_expert) = keys.integer("expert_count")?.filter(|&n| n > 0) {
            let found = format!("{architecture} with {n_expert} experts");
            return Err(Error::Architecture { path: path.to_owned(), found });
        }
        let n_ctx_train = keys.required("context_length", i32::MAX as u64)?;
        let n_embd = keys.required("embedding_length", MAX_WIDTH)?;
        let n_layer = keys.required("block_count", MAX_LAYERS)?;
        let n_ff = keys.required("feed_forward_length", MAX_WIDTH)?;
        let n_head = keys.required("attention.head_count", MAX_WIDTH)?;
        let n_head_kv = keys.integer("attention.head_count_kv")?.unwrap_or(n_head as u64);
        if n_head_kv == 0 || !(n_head as u64).is_multiple_of(n_head_kv) {
            let expected = format!("a divisor of the {n_head} query heads");
            return Err(keys.fault("attention.head_count_kv", &expected, &n_head_kv.to_string()));
        }
        let n_embd_head = keys.head_width("attention.key_length", n_embd, n_head)?;
        for key in ["attention.value_length", "rope.dimension_count"] {
            if let Some(n) = keys.integer(key)?.filter(|&n| n != n_embd_head as u64) {
                return Err(keys.fault(key, &format!("{n_embd_head}, the width of a head"), &n.to_string()));
            }
        }
        let rms_eps = keys.float("attention.layer_norm_rms_epsilon")?;
        let Some(rms_eps) = rms_eps.filter(|eps| *eps >= 0.0) else {
            return Err(keys.fault("attention.layer_norm_rms_epsilon", "a small number", "none or a negative one"));
        };
        Ok(Hyperparameters {
            architecture: architecture.to_owned(),
            n_ctx_train,
            n_embd,
            n_layer,
            n_ff,
            n_head,
            n_head_kv: n_head_kv as usize,
            n_embd_head,
            n_vocab: n_vocab(model)?,
            rms_eps,
            rope: RopeParameters::read(&keys, n_ctx_train)?,
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

impl RopeParameters {
    /// Reads the parameters as `load_hparams` does, and completes them as `llama_context` does
    /// (src/llama-context.cpp).
    fn read(keys: &Keys<'_>, n_ctx_train: usize) -> Result<Self, Error> {
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
        let freq_base = keys.float("rope.freq_base")?.unwrap_or(10_000.0);
        if freq_base.is_nan() || freq_base <= 1.0 {
            return Err(keys.fault("rope.freq_base", "a number above 1", &freq_base.to_string()));
        }
        let freq_scale = match factor.filter(|f| *f != 0.0) {
            Some(_) if scaling == "none" => 1.0,
            Some(factor) if factor >= f32::MIN_POSITIVE => 1.0 / factor,
            Some(factor) => return Err(keys.fault("rope.scaling.factor", "a positive number", &factor.to_string())),
            None => 1.0,
        };
        let is_yarn = scaling == "yarn";
        let mut attn_factor = keys.float("rope.scaling.attn_factor")?.unwrap_or(1.0);
        if is_yarn {
            // llama_context takes out what the rotation puts in again (rope_yarn,
            // ggml-cpu/ops.cpp).
            let ln_factor = (1.0 / freq_scale).ln();
            let magnitude = if freq_scale >= 1.0 { 1.0 } else { 0.1 * ln_factor + 1.0 };
            attn_factor *= magnitude / (1.0 + 0.1 * ln_factor) * (1.0 + 0.1 * ln_factor);
        }
        let n_ctx_orig = keys.integer("rope.scaling.original_context_length")?.filter(|&n| n > 0);
        let n_ctx_orig = n_ctx_orig.map_or(n_ctx_train, |n| n.min(i32::MAX as u64) as usize);
        Ok(RopeParameters {
            is_neox: keys.architecture == "qwen2",
            freq_base,
            freq_scale,
            is_longrope: scaling == "longrope",
            is_yarn,
            attn_factor,
            n_ctx_orig,
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

/// The keys of an architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    path: &'a Path,
    architecture: &'a str,
}

impl Keys<'_> {
    fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(&format!("{}.{key}", self.architecture))
    }

    fn fault(&self, key: &str, expected: &str, found: &str) -> Error {
        Error::key(self.path, &format!("{}.{key}", self.architecture), expected, found)
    }

    fn integer(&self, key: &str) -> Result<Option<u64>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) => Ok(Some(n)),
            None => Err(self.fault(key, "one non-negative integer", &value.summary())),
        }
    }

    fn float(&self, key: &str) -> Result<Option<f32>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_f64().map(|v| v as f32).filter(|v| v.is_finite()) {
            Some(v) => Ok(Some(v)),
            None => Err(self.fault(key, "a number", &value.summary())),
        }
    }

    fn required(&self, key: &str, most: u64) -> Result<usize, Error> {
        let found = self.integer(key)?;
        match found.filter(|n| (1..=most).contains(n)) {
            Some(n) => Ok(n as usize),
            None => {
                let found = found.map_or("no such key".to_owned(), |n| n.to_string());
                Err(self.fault(key, &format!("an integer from 1 to {most}"), &found))
            }
        }
    }

    fn head_width(&self, key: &str, n_embd: usize, n_head: usize) -> Result<usize, Error> {
        let is_fine = |&width: &u64| (1..=MAX_WIDTH).contains(&width) && width.is_multiple_of(2);
        match self.integer(key)? {
            None if is_fine(&((n_embd / n_head) as u64)) => Ok(n_embd / n_head),
            None => {
                let expected = format!("heads of an even width that make up {n_embd}");
                Err(self.fault("attention.head_count", &expected, &n_head.to_string()))
            }
            Some(width) if is_fine(&width) => Ok(width as usize),
            Some(width) => Err(self.fault(key, "a head of even width", &width.to_string())),
        }
    }
}
