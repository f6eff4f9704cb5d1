//! Models that differ in one thing each, against llama.cpp. Their weights are a rule
//! (fixtures/infer/README.md).

use std::collections::BTreeMap;

use super::*;
use crate::support::TYPES;
use crate::support::{Draft, Tensor, Val, kind};
use crate::trio::{F32, encode};

/// The context that llama.cpp had.
const N_CTX: usize = 512;

/// Numbers in [-1, 1) that the name of a tensor gives.
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

/// A tensor, checked against the elements that the fixture has of it.
fn tensor(entry: &Json) -> Tensor {
    let name = entry["name"].as_str().expect("a name");
    let mut ne: Vec<u64> = ids(&entry["shape"]).into_iter().map(u64::from).collect();
    ne.reverse();
    let n = ne.iter().product::<u64>() as usize;
    let scaled = |addend: f32| {
        let scale = entry["scale"].as_f64().expect("a scale") as f32;
        uniform(name).take(n).map(|u| scale * u + addend).collect()
    };
    let weights: Vec<f32> = match entry["rule"].as_str() {
        Some("uniform") => scaled(0.0),
        Some("one_plus_uniform") => scaled(1.0),
        Some("values") => floats(&entry["values"]).iter().map(|v| *v as f32).collect(),
        rule => panic!("{rule:?}"),
    };
    for (at, is) in ids(&entry["at"]).into_iter().zip(floats(&entry["is"])) {
        assert_eq!(weights[at as usize], is as f32, "{name}[{at}]");
    }
    let ty = entry["type"].as_str().map_or(F32, |name| {
        TYPES.iter().find(|(_, other, ..)| other.eq_ignore_ascii_case(name)).unwrap_or_else(|| panic!("{name}")).0
    });
    Tensor { data: Some(encode(ty, &weights)), ..Tensor::new(name, &ne, ty) }
}

fn value(json: &Json) -> Val {
    match json {
        Json::String(text) => Val::str(text),
        Json::Bool(flag) => Val::Bool(u8::from(*flag)),
        Json::Number(n) => n.as_u64().map_or_else(|| Val::F32(n.as_f64().unwrap() as f32), |n| Val::U32(n as u32)),
        Json::Array(flags) => Val::Array(kind::BOOL, flags.iter().map(value).collect()),
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

/// The model of a variant.
pub(crate) fn draft(goldens: &Json, variant: &str) -> Draft {
    let (entry, tokenizer) = (&goldens["variants"][variant], &goldens["tokenizer"]);
    let mut draft = Draft::default();
    for (key, value) in entry["metadata"].as_object().expect("keys") {
        draft.set(key, self::value(value));
    }
    let strings = |list: &Json| -> Vec<String> { serde_json::from_value(list.clone()).expect("strings") };
    let merges: Vec<String> = tokenizer["merges"]
        .as_array()
        .expect("pairs")
        .iter()
        .map(|m| m.as_str().map_or_else(|| strings(m).join(" "), str::to_owned))
        .collect();
    let specials = strings(&tokenizer["special_tokens"]);
    let mut tokens = byte_symbols();
    tokens.extend(merges.iter().map(|m| m.replace(' ', "")));
    let n_normal = tokens.len();
    tokens.extend(specials);
    assert_eq!(Some(tokens.len() as u64), tokenizer["n_vocab"].as_u64());
    let types = (0..tokens.len()).map(|i| Val::I32(if i < n_normal { 1 } else { 3 })).collect();
    draft.set("tokenizer.ggml.model", Val::str("gpt2"));
    draft.set("tokenizer.ggml.pre", Val::str("gpt-2"));
    draft.set("tokenizer.ggml.tokens", Val::strs(&tokens));
    draft.set("tokenizer.ggml.token_type", Val::Array(kind::I32, types));
    draft.set("tokenizer.ggml.merges", Val::strs(&merges));
    draft.set("tokenizer.ggml.eos_token_id", Val::U32(tokens.len() as u32 - 1));
    draft.tensors = entry["tensors"].as_array().expect("tensors").iter().map(tensor).collect();
    let mut data: Vec<u8> = Vec::new();
    // The weights by themselves, or encoded as they lie in a file.
    let (expected, alignment) = match entry["data_sha256"].as_str() {
        Some(hash) => (hash, 32),
        None => (entry["weights_sha256"].as_str().expect("a hash"), 1),
    };
    for tensor in &draft.tensors {
        data.extend(tensor.data());
        data.resize(data.len().next_multiple_of(alignment), 0);
    }
    assert_eq!(sha256(data.as_slice()), expected, "{variant}");
    draft
}

pub(super) fn run(path: &Path, tokens: &[u32]) -> Vec<Vec<f32>> {
    let model = load(path, 2);
    let mut rows = Vec::new();
    let mut session = Session::new(&model, N_CTX, MEMORY).expect("memory");
    session.feed(tokens, 0, &mut |_, logits| rows.push(logits.to_vec())).expect("fits");
    rows
}

pub(super) fn mean_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let mut spread = Spread::default();
    for (a, b) in a.iter().zip(b) {
        log_softmax(a).into_iter().zip(log_softmax(b)).for_each(|(a, b)| spread.add(a, b));
    }
    spread.mean()
}

#[test]
fn every_variant_is_computed_as_llama_cpp_does() {
    let goldens = fixture("synthetic.json");
    let folder = tempfile::tempdir().expect("a folder");
    let tokens = ids(&goldens["tokens"]);
    let variants = goldens["variants"].as_object().expect("variants");
    assert_eq!(variants.len(), 30);
    let mut found: BTreeMap<&str, Vec<Vec<f32>>> = BTreeMap::new();
    let mut failures = Vec::new();
    let mut all = Spread::default();
    for (name, entry) in variants {
        let fed = &tokens[..entry["n_tokens"].as_u64().expect("a number") as usize];
        let logits = run(&draft(&goldens, name).write(folder.path(), "model.gguf"), fed);
        let rows: Vec<Vec<f64>> = logits.iter().map(|row| log_softmax(row)).collect();
        let mut spread = Spread::default();
        compare(&mut spread, &rows, fed, entry);
        let (largest, mean) = bounds("F32");
        if spread.largest >= largest || spread.mean() >= mean {
            failures.push(format!("{name}: {spread:?}"));
        }
        all.merge(&spread);
        found.insert(name, logits);
    }
    for (name, entry) in variants {
        let logits = &found[name.as_str()];
        if let Some(other) = entry["same_as"].as_str()
            && *logits != found[other]
        {
            failures.push(format!("{name} differs from {other}"));
        }
        if let Some(other) = entry["differs_from"].as_str() {
            let apart = mean_difference(logits, &found[other]);
            if apart < 0.01 {
                failures.push(format!("{name} is {apart} from {other}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    check_bounds("all variants", "F32", &all);
}
