//! Small models of fixed weights, as files.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::support::{Draft, Tensor, Val, kind};

const F32: u32 = 0;

/// A file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// The models of fixtures/infer/families.json.
pub(crate) fn families() -> Json {
    let text = std::fs::read_to_string(repository("fixtures/infer/families.json")).expect("the fixture");
    serde_json::from_str(&text).expect("JSON")
}

/// Numbers in [-1, 1) that the name of a tensor gives (fixtures/infer/README.md).
fn uniform(name: &str) -> impl Iterator<Item = f32> {
    let fnv = |h: u64, byte: u8| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    (1u64..).map(move |i| {
        let z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let z = z ^ (z >> 31);
        (z >> 40) as f32 * 2f32.powi(-23) - 1.0
    })
}

fn of_weights(name: &str, ne: &[u64], weights: impl Iterator<Item = f32>) -> Tensor {
    let n = ne.iter().product::<u64>() as usize;
    let data = weights.take(n).flat_map(f32::to_le_bytes).collect();
    Tensor { data: Some(data), ..Tensor::new(name, ne, F32) }
}

fn tensor(entry: &Json) -> Tensor {
    let name = entry["name"].as_str().expect("a name");
    let numbers = |list: &Json| -> Vec<f64> { serde_json::from_value(list.clone()).expect("numbers") };
    let ne: Vec<u64> = numbers(&entry["shape"]).into_iter().rev().map(|n| n as u64).collect();
    let scaled = |addend: f32| {
        let scale = entry["scale"].as_f64().expect("a scale") as f32;
        uniform(name).map(move |u| scale * u + addend)
    };
    match entry["rule"].as_str() {
        Some("uniform") => of_weights(name, &ne, scaled(0.0)),
        Some("one_plus_uniform") => of_weights(name, &ne, scaled(1.0)),
        Some("values") => of_weights(name, &ne, numbers(&entry["values"]).into_iter().map(|v| v as f32)),
        rule => panic!("{rule:?}"),
    }
}

fn value(json: &Json) -> Val {
    match json {
        Json::String(text) => Val::str(text),
        Json::Bool(is) => Val::Bool(u8::from(*is)),
        Json::Number(n) => n.as_u64().map_or_else(|| Val::F32(n.as_f64().expect("f32") as f32), |n| Val::U32(n as u32)),
        Json::Array(list) => {
            let list: Vec<Val> = list.iter().map(value).collect();
            Val::Array(list.first().map_or(kind::U32, Val::kind), list)
        }
        other => panic!("{other}"),
    }
}

/// The byte symbols of a byte-level vocabulary, in the order of bytes.
fn byte_symbols() -> Vec<String> {
    let mut others = (256..).map_while(char::from_u32);
    let is_shown = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut symbol = |byte: u8| if is_shown(&byte) { byte.into() } else { others.next().expect("enough") };
    (0..=255).map(|byte| symbol(byte).to_string()).collect()
}

/// A vocabulary of bytes, one pair and three special tokens.
fn set_vocabulary(draft: &mut Draft) {
    let mut tokens = byte_symbols();
    tokens.push("Ġt".to_owned());
    let n_normal = tokens.len();
    tokens.extend(["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned));
    let types = (0..tokens.len()).map(|i| Val::I32(if i < n_normal { 1 } else { 3 })).collect();
    draft.set("tokenizer.ggml.model", Val::str("gpt2"));
    draft.set("tokenizer.ggml.pre", Val::str("gpt-2"));
    draft.set("tokenizer.ggml.tokens", Val::strs(&tokens));
    draft.set("tokenizer.ggml.token_type", Val::Array(kind::I32, types));
    draft.set("tokenizer.ggml.merges", Val::strs(["Ġ t"]));
    draft.set("tokenizer.ggml.eos_token_id", Val::U32(tokens.len() as u32 - 1));
}

/// The model of a variant of [`families`].
pub(crate) fn variant(goldens: &Json, name: &str) -> Draft {
    let entry = &goldens["variants"][name];
    let mut draft = Draft::default();
    entry["metadata"].as_object().expect("keys").iter().for_each(|(key, json)| draft.set(key, value(json)));
    set_vocabulary(&mut draft);
    draft.tensors = entry["tensors"].as_array().expect("tensors").iter().map(tensor).collect();
    draft
}

/// Tokens of the vocabulary above.
const N_VOCAB: u64 = 260;

fn model(architecture: &str, numbers: &[(&str, u32)], epsilon: &str) -> Draft {
    let mut draft = Draft::default();
    let key = |name: &str| format!("{architecture}.{name}");
    draft.set("general.architecture", Val::str(architecture));
    draft.set(&key("context_length"), Val::U32(512));
    draft.set(&key("embedding_length"), Val::U32(64));
    draft.set(&key("block_count"), Val::U32(2));
    numbers.iter().for_each(|(name, n)| draft.set(&key(name), Val::U32(*n)));
    draft.set(&key(epsilon), Val::F32(1e-5));
    set_vocabulary(&mut draft);
    draft
}

fn add(draft: &mut Draft, name: &str, ne: &[u64], of: impl Fn(f32) -> f32) {
    draft.tensors.push(of_weights(name, ne, uniform(name).map(of)));
}

/// A starcoder2 model, which the built-in engine does not know: norms with biases, no gates.
pub(crate) fn starcoder2() -> Draft {
    let numbers = [("feed_forward_length", 96), ("attention.head_count", 4), ("attention.head_count_kv", 2)];
    let mut draft = model("starcoder2", &numbers, "attention.layer_norm_epsilon");
    let (weight, norm) = (|u| 0.3 * u, |u| 1.0 + 0.3 * u);
    add(&mut draft, "token_embd.weight", &[64, N_VOCAB], |u| 0.4 * u);
    add(&mut draft, "output_norm.weight", &[64], norm);
    add(&mut draft, "output_norm.bias", &[64], weight);
    add(&mut draft, "output.weight", &[64, N_VOCAB], weight);
    for i in 0..2 {
        let name = |part: &str| format!("blk.{i}.{part}");
        for part in ["attn_norm", "ffn_norm"] {
            add(&mut draft, &name(&format!("{part}.weight")), &[64], norm);
            add(&mut draft, &name(&format!("{part}.bias")), &[64], weight);
        }
        let shapes = [("attn_q", 64, 64), ("attn_k", 64, 32), ("attn_v", 64, 32), ("attn_output", 64, 64)];
        for (part, n_in, n_out) in shapes.into_iter().chain([("ffn_up", 64, 96), ("ffn_down", 96, 64)]) {
            add(&mut draft, &name(&format!("{part}.weight")), &[n_in, n_out], weight);
            add(&mut draft, &name(&format!("{part}.bias")), &[n_out], |u| 0.1 * u);
        }
    }
    draft
}

/// A mamba model: its state has no past to go back to.
pub(crate) fn mamba() -> Draft {
    let numbers = [
        ("ssm.conv_kernel", 4),
        ("ssm.inner_size", 128),
        ("ssm.state_size", 16),
        ("ssm.time_step_rank", 4),
        ("feed_forward_length", 0),
        ("attention.head_count", 0),
    ];
    let mut draft = model("mamba", &numbers, "attention.layer_norm_rms_epsilon");
    let (weight, norm) = (|u| 0.3 * u, |u| 1.0 + 0.3 * u);
    add(&mut draft, "token_embd.weight", &[64, N_VOCAB], |u| 0.4 * u);
    add(&mut draft, "output_norm.weight", &[64], norm);
    add(&mut draft, "output.weight", &[64, N_VOCAB], weight);
    for i in 0..2 {
        let name = |part: &str| format!("blk.{i}.{part}");
        add(&mut draft, &name("attn_norm.weight"), &[64], norm);
        add(&mut draft, &name("ssm_in.weight"), &[64, 256], weight);
        add(&mut draft, &name("ssm_conv1d.weight"), &[4, 128], weight);
        add(&mut draft, &name("ssm_conv1d.bias"), &[128], weight);
        add(&mut draft, &name("ssm_x.weight"), &[128, 36], weight);
        add(&mut draft, &name("ssm_dt.weight"), &[4, 128], weight);
        add(&mut draft, &name("ssm_dt.bias"), &[128], weight);
        add(&mut draft, &name("ssm_a"), &[16, 128], |u| -1.0 + 0.5 * u);
        add(&mut draft, &name("ssm_d"), &[128], norm);
        add(&mut draft, &name("ssm_out.weight"), &[128, 64], weight);
    }
    draft
}
