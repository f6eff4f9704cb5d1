//! Each part of each family, done wrong: the comparison with llama.cpp must not pass.
//!
//! A mutant is a model of fixtures/infer/families.json that is changed after it was loaded. Its
//! log-probabilities have to be a hundred times the bound of the comparison away from llama.cpp's.

use std::path::Path;

use serde_json::Value as Json;

use super::architecture::{Activation, ExpertWeights};
use super::feed_forward::Kind;
use super::*;
use crate::ggml::GgmlType;
use crate::gguf::{Array, Header, Limits, Metadata, Model, StringArray, TensorSpec, Value, WriteOptions, Writer};

/// The context that llama.cpp had.
const N_CTX: usize = 512;

/// A hundred times the largest distance that F32 may have: the mean distance of a mutant at least.
const LEAST: f64 = 5e-3;

type Mutate = fn(&mut Transformer);

/// Variants, and what is taken from them.
const MUTANTS: &[(&str, &[(&str, Mutate)])] = &[
    ("llama-experts", &[ROPE, FEED_FORWARD, ACTIVATION, EXPERT_WEIGHTS, ONE_EXPERT_LESS]),
    ("llama-longrope", &[ROPE, LENGTH_OF_ROPE]),
    ("qwen2moe", &[ROPE, FEED_FORWARD, ACTIVATION, EXPERT_WEIGHTS, SHARED_EXPERT, SHARED_GATE, BIASES]),
    ("qwen3", &[ROPE, QK_NORM, FEED_FORWARD, ACTIVATION, PAIRS]),
    ("qwen3-yarn", &[SCALING]),
    ("qwen3moe", &[ROPE, QK_NORM, FEED_FORWARD, ACTIVATION, EXPERT_WEIGHTS]),
    ("gemma", &[ROPE, FEED_FORWARD, ACTIVATION, EMBEDDING_SCALE]),
    (
        "gemma2",
        &[
            ROPE,
            WINDOW,
            FEED_FORWARD,
            ACTIVATION,
            EMBEDDING_SCALE,
            POST_ATTENTION_NORM,
            POST_NORM,
            ATTENTION_CAP,
            LOGIT_CAP,
        ],
    ),
    ("gemma2-27b", &[ATTENTION_SCALE]),
    (
        "gemma3",
        &[
            ROPE,
            WINDOW,
            WINDOW_ROPE,
            QK_NORM,
            FEED_FORWARD,
            ACTIVATION,
            EMBEDDING_SCALE,
            POST_ATTENTION_NORM,
            POST_NORM,
        ],
    ),
    ("gemma3-27b", &[ATTENTION_SCALE]),
    ("mistral3", &[ROPE, FEED_FORWARD, ACTIVATION, PAIRS]),
    ("mistral3-temperature", &[TEMPERATURE]),
    ("phi3", &[ROPE, FEED_FORWARD, ACTIVATION]),
    ("phi3-long", &[LENGTH_OF_ROPE]),
    ("gpt-oss", &[ROPE, WINDOW, FEED_FORWARD, ACTIVATION, EXPERT_WEIGHTS, SINKS, BIASES]),
    ("olmo2", &[ROPE, QK_NORM, POST_ATTENTION_NORM, POST_NORM, FEED_FORWARD, ACTIVATION]),
    ("olmo2-window", &[WINDOW]),
    ("granite", &[ROPE, FEED_FORWARD, ACTIVATION, EMBEDDING_SCALE, ATTENTION_SCALE, RESIDUAL_SCALE, LOGIT_SCALE]),
    ("granitemoe", &[EXPERT_WEIGHTS, SHARED_EXPERT]),
    ("smollm3", &[ROPE, ROPE_EVERYWHERE, FEED_FORWARD, ACTIVATION]),
];

const ROPE: (&str, Mutate) = ("no rope", |t| each_attention(t, |a| a.is_turned = false));
const ROPE_EVERYWHERE: (&str, Mutate) = ("rope in every layer", |t| each_attention(t, |a| a.is_turned = true));
const PAIRS: (&str, Mutate) = ("rope with other pairs", |t| {
    let neox = t.hyperparameters.rope.is_neox;
    t.hyperparameters.rope.is_neox = !neox;
    t.ropes = transformer::Ropes::plain(&t.hyperparameters);
});
const SCALING: (&str, Mutate) = ("no scaling of positions", |t| {
    (t.hyperparameters.rope.freq_scale, t.hyperparameters.rope.yarn_turns) = (1.0, None);
    t.ropes = transformer::Ropes::plain(&t.hyperparameters);
});
const LENGTH_OF_ROPE: (&str, Mutate) =
    ("factors of the other length", |t| t.hyperparameters.rope.n_ctx_orig = N_CTX + 1);
const WINDOW: (&str, Mutate) = ("no window", |t| each_attention(t, |a| a.window = a.window.map(|_| N_CTX)));
const WINDOW_ROPE: (&str, Mutate) = ("no rope of its own in windows", |t| {
    t.hyperparameters.window_rope = t.hyperparameters.rope.clone();
    t.ropes = transformer::Ropes::plain(&t.hyperparameters);
});
const QK_NORM: (&str, Mutate) = ("no norms of queries and keys", |t| {
    each_attention(t, |a| (a.q_norm, a.k_norm) = (None, None));
});
const SINKS: (&str, Mutate) = ("no sinks", |t| each_attention(t, |a| a.sinks = None));
const POST_ATTENTION_NORM: (&str, Mutate) = ("no norm after attention", |t| each_attention(t, |a| a.post_norm = None));
const POST_NORM: (&str, Mutate) =
    ("no norm after the feed-forward network", |t| each_feed_forward(t, |f| f.post_norm = None));
const FEED_FORWARD: (&str, Mutate) = ("no feed-forward network", |t| {
    let n_embd = t.hyperparameters.n_embd;
    // What is multiplied with nothing is nothing, but for biases.
    each_feed_forward(t, |f| match &mut f.post_norm {
        Some(norm) => norm.fill(0.0),
        None => f.norm = Some(vec![0.0; n_embd]),
    });
});
const ACTIVATION: (&str, Mutate) = ("another activation", |t| {
    each_feed_forward(t, |f| {
        f.activation = match f.activation {
            Activation::Silu => Activation::Gelu,
            Activation::Gelu | Activation::SwigluOai => Activation::Silu,
        };
    });
});
const EXPERT_WEIGHTS: (&str, Mutate) = ("experts weighted otherwise", |t| {
    each_feed_forward(t, |f| {
        let Kind::Experts(experts) = &mut f.kind else { return };
        experts.weights = match experts.weights {
            ExpertWeights::Softmax => ExpertWeights::Normalized,
            ExpertWeights::Normalized | ExpertWeights::SoftmaxOfChosen => ExpertWeights::Softmax,
        };
    });
});
const ONE_EXPERT_LESS: (&str, Mutate) = ("an expert less", |t| t.hyperparameters.n_expert_used -= 1);
const SHARED_EXPERT: (&str, Mutate) = ("no shared expert", |t| {
    each_feed_forward(t, |f| {
        if let Kind::Experts(experts) = &mut f.kind {
            experts.shared = None;
        }
    });
});
const SHARED_GATE: (&str, Mutate) = ("a shared expert without its gate", |t| {
    each_feed_forward(t, |f| {
        if let Kind::Experts(experts) = &mut f.kind
            && let Some(shared) = &mut experts.shared
        {
            shared.router = None;
        }
    });
});
const BIASES: (&str, Mutate) = ("no biases of queries, keys and values", |t| {
    each_attention(t, |a| match &mut a.qkv {
        attention::Qkv::Apart(parts) => parts.iter_mut().for_each(|part| part.bias = None),
        attention::Qkv::Fused(all) => all.bias = None,
    });
});
const EMBEDDING_SCALE: (&str, Mutate) = ("embeddings not scaled", |t| t.hyperparameters.scales.embedding = 1.0);
const ATTENTION_SCALE: (&str, Mutate) = ("scores scaled by the width of a head", |t| {
    t.hyperparameters.scales.attention = 1.0 / (t.hyperparameters.n_embd_head as f32).sqrt();
});
const ATTENTION_CAP: (&str, Mutate) = ("no cap on scores", |t| t.hyperparameters.scales.attention_cap = None);
const LOGIT_CAP: (&str, Mutate) = ("no cap on logits", |t| t.hyperparameters.scales.logit_cap = None);
const RESIDUAL_SCALE: (&str, Mutate) = ("residuals not scaled", |t| t.hyperparameters.scales.residual = 1.0);
const LOGIT_SCALE: (&str, Mutate) = ("logits not scaled", |t| t.hyperparameters.scales.logit = 1.0);
const TEMPERATURE: (&str, Mutate) = ("queries that do not grow", |t| t.hyperparameters.scales.temperature = None);

fn each_attention(t: &mut Transformer, change: impl Fn(&mut attention::Attention)) {
    t.layers.iter_mut().for_each(|layer| change(&mut layer.attention));
}

fn each_feed_forward(t: &mut Transformer, change: impl Fn(&mut feed_forward::FeedForward)) {
    t.layers.iter_mut().for_each(|layer| change(&mut layer.feed_forward));
}

#[test]
fn every_part_done_wrong_is_seen() {
    let goldens = std::fs::read_to_string("fixtures/infer/families.json").unwrap();
    let goldens: Json = serde_json::from_str(&goldens).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut failures = Vec::new();
    let mut families = std::collections::BTreeSet::new();
    for (variant, mutants) in MUTANTS {
        let entry = &goldens["variants"][variant];
        let path = folder.path().join(format!("{variant}.gguf"));
        write(entry, &path);
        let model = Model::open(&path, &Limits::default()).unwrap();
        let load = || Transformer::load(&model, 1).unwrap();
        families.insert(load().hyperparameters().architecture.clone());
        let bound = entry["bounds"][1].as_f64().unwrap();
        let distance = distance(&load(), &goldens, entry);
        if distance.is_nan() || distance > bound {
            failures.push(format!("{variant} itself is {distance:.1e} from llama.cpp"));
        }
        // GELU by a table has a bound that is larger.
        let least = LEAST.max(100.0 * bound);
        for (what, mutate) in *mutants {
            let mut mutant = load();
            mutate(&mut mutant);
            let distance = self::distance(&mutant, &goldens, entry);
            if distance.is_nan() || distance < least {
                failures.push(format!("{variant}, {what}: {distance:.1e}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(families.len() + 1, architectures().count(), "qwen2 has its own");
}

/// The mean distance of next tokens' log-probabilities from llama.cpp's.
fn distance(model: &Transformer, goldens: &Json, entry: &Json) -> f64 {
    let n_tokens = entry["n_tokens"].as_u64().unwrap() as usize;
    let tokens: Vec<u32> = serde_json::from_value(goldens["tokens"].clone()).unwrap();
    let tokens = &tokens[..n_tokens];
    let next: Vec<f64> = serde_json::from_value(entry["next"].clone()).unwrap();
    let mut sum = 0.0;
    let mut session = Session::new(model, N_CTX, 64 << 20).unwrap();
    let logits = &mut |i: usize, logits: &[f32]| {
        let Some(&next_id) = tokens.get(i + 1) else { return };
        let log_sum = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
        sum += (f64::from(logits[next_id as usize]) - log_sum - next[i]).abs();
    };
    session.feed(tokens, 0, logits).unwrap();
    sum / next.len() as f64
}

/// A model of the fixture as a file, with a vocabulary of nothing but its size.
fn write(entry: &Json, path: &Path) {
    let mut metadata = Metadata::default();
    for (key, value) in entry["metadata"].as_object().unwrap() {
        match value {
            Json::String(text) => metadata.set(key, text.as_str()),
            Json::Bool(flag) => metadata.set(key, Value::Bool(u8::from(*flag))),
            Json::Number(n) if n.is_u64() => metadata.set(key, Value::U32(n.as_u64().unwrap() as u32)),
            Json::Number(n) => metadata.set(key, Value::F32(n.as_f64().unwrap() as f32)),
            other => panic!("{other}"),
        }
    }
    let tensors = entry["tensors"].as_array().unwrap();
    let shape = |tensor: &Json| -> Vec<u64> {
        tensor["shape"].as_array().unwrap().iter().rev().map(|n| n.as_u64().unwrap()).collect()
    };
    let mut words = StringArray::default();
    (0..shape(&tensors[0])[1]).for_each(|i| words.push(i.to_string().as_bytes()));
    metadata.set("tokenizer.ggml.tokens", Value::Array(Array::Strings(words)));
    let name = |tensor: &Json| tensor["name"].as_str().unwrap().to_owned();
    let specs = tensors.iter().map(|t| TensorSpec { name: name(t), ne: shape(t), ty: GgmlType::F32 });
    let writer = Writer::create(Header::new(metadata, specs).unwrap(), path, &WriteOptions::default()).unwrap();
    for (i, tensor) in tensors.iter().enumerate() {
        let n = shape(tensor).iter().product::<u64>() as usize;
        let bytes: Vec<u8> = weights(tensor, &name(tensor), n).into_iter().flat_map(f32::to_le_bytes).collect();
        writer.write(i, 0, &bytes).unwrap();
    }
    writer.finish(None).unwrap();
}

/// Weights by their rule (fixtures/infer/README.md).
fn weights(tensor: &Json, name: &str, n: usize) -> Vec<f32> {
    let fnv = |h: u64, byte: u8| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    let uniform = |i: usize| {
        let z = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 * 2f32.powi(-23) - 1.0
    };
    let scale = tensor["scale"].as_f64().unwrap_or(0.0) as f32;
    match tensor["rule"].as_str() {
        Some("uniform") => (0..n).map(|i| scale * uniform(i)).collect(),
        Some("one_plus_uniform") => (0..n).map(|i| scale * uniform(i) + 1.0).collect(),
        Some("values") => serde_json::from_value(tensor["values"].clone()).unwrap(),
        rule => panic!("{rule:?}"),
    }
}
