//! Files that lie about themselves: an error that names what is wrong, and never a panic.

use chatvec::ggml::GgmlType;
use chatvec::infer::{Sampler, Sampling, generate};
use chatvec::quants;
use proptest::prelude::*;

use super::properties::chat_in;
use super::*;
use crate::support::{Draft, Tensor, Val, kind};
use crate::trio::{F32, name};

/// A small model with nothing wrong.
fn fine(variant: &str) -> Draft {
    static GOLDENS: OnceLock<Json> = OnceLock::new();
    synthetic::draft(GOLDENS.get_or_init(|| fixture("synthetic.json")), variant)
}

/// What is said of a file, or nothing if it runs.
fn verdict(draft: &Draft) -> Option<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = draft.write(folder.path(), "model.gguf");
    let model = match Model::open(&path, &Limits::default()) {
        Ok(model) => model,
        Err(e) => return Some(e.to_string()),
    };
    match Transformer::load(&model, 1) {
        Ok(model) => {
            let mut session = Session::new(&model, 8, MEMORY).expect("memory");
            session.feed(&[1, 2, 3], 0, &mut |_, _| ()).expect("fits");
            None
        }
        Err(e) => Some(e.to_string()),
    }
}

#[track_caller]
fn refused(what: &str, draft: &Draft, words: &[&str]) {
    let Some(text) = verdict(draft) else { panic!("{what}: it runs") };
    for word in words {
        assert!(text.contains(word), "{what}: {text}\nwithout {word}");
    }
}

fn set(key: &str, val: Val) -> Draft {
    let mut draft = fine("llama");
    draft.set(key, val);
    draft
}

fn unset(key: &str) -> Draft {
    let mut draft = fine("llama");
    draft.keys.retain(|(k, _)| k != key.as_bytes());
    draft
}

#[test]
fn tensors_are_all_there_in_their_shape_and_no_others() {
    let whole = fine("llama-biases");
    assert_eq!(verdict(&whole), None);
    for i in 0..whole.tensors.len() {
        let mut draft = whole.clone();
        let lost = draft.tensors.remove(i);
        let lost = name(&lost);
        match lost == "output.weight" || lost.ends_with("bias") {
            // What is optional.
            true => assert_eq!(verdict(&draft), None, "{lost}"),
            false => refused(lost, &draft, &[lost, "no such tensor"]),
        }
        let mut draft = whole.clone();
        let tensor = &mut draft.tensors[i];
        let expected = tensor.ne.iter().map(u64::to_string).collect::<Vec<_>>().join(" × ");
        tensor.ne.insert(0, 1);
        let other = tensor.ne.iter().map(u64::to_string).collect::<Vec<_>>().join(" × ");
        let words = [name(&draft.tensors[i]), &expected, &other].map(str::to_owned);
        // The container knows how many rows a vocabulary has.
        let n_words = if draft.tensors[i].ne.last() == Some(&260) { 1 } else { 3 };
        refused("another shape", &draft, &words.each_ref().map(String::as_str)[..n_words]);
    }
    let extras = [
        ("llama", "blk.0.attn_q_norm.weight", 128),
        ("llama", "blk.2.ffn_norm.weight", 128),
        ("llama", "blk.00.ffn_norm.weight", 128),
        ("llama", "output.bias", 260),
        ("llama", "rope_factors_short.weight", 16),
        ("qwen2", "rope_freqs.weight", 16),
        ("qwen2", "blk.0.attn_output.bias", 128),
        ("qwen2", "blk.0.ffn_down.bias", 128),
    ];
    for (architecture, extra, len) in extras {
        let mut draft = fine(architecture);
        draft.tensors.push(Tensor::new(extra, &[len], F32));
        refused(extra, &draft, &[extra, "no place", architecture]);
    }
}

#[test]
fn types_without_a_codec_are_refused() {
    for (ty, shown) in [(15, "Q8_K"), (26, "I32"), (28, "F64")] {
        for tensor in ["blk.1.ffn_up.weight", "output_norm.weight"] {
            let mut draft = fine("llama");
            (draft.tensor(tensor).ty, draft.tensor(tensor).data) = (ty, None);
            refused(shown, &draft, &[tensor, shown]);
        }
    }
}

#[test]
fn architectures_without_a_forward_pass_are_refused() {
    let mut experts = fine("qwen2");
    experts.set("qwen2.expert_count", Val::U32(8));
    refused("experts", &experts, &["qwen2 with 8 experts", "llama, qwen2, qwen2moe, qwen3"]);
    refused("none used", &set("llama.expert_count", Val::U32(8)), &["llama.expert_used_count", "no such key"]);
    assert_eq!(verdict(&set("llama.expert_count", Val::U32(0))), None);
    refused("mamba", &set("general.architecture", Val::str("mamba")), &["mamba", "llama, qwen2, qwen2moe, qwen3"]);
    refused("case", &set("general.architecture", Val::str("LLAMA")), &["LLAMA"]);
    refused("none", &unset("general.architecture"), &["general.architecture"]);
    refused("a number", &set("general.architecture", Val::U32(7)), &["7"]);
    refused("of another", &set("general.architecture", Val::str("qwen2")), &["qwen2.context_length", "no such key"]);
    refused("big-endian", &Draft { big_endian: true, ..fine("llama") }, &[]);
}

/// The keys that must be there.
const REQUIRED: [&str; 6] = [
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
];

/// The keys that may be there.
const OPTIONAL: [&str; 11] = [
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "expert_count",
];

#[test]
fn keys_without_sense_are_refused_by_name() {
    for key in REQUIRED {
        let key = format!("llama.{key}");
        refused("a missing key", &unset(&key), &[&key]);
        for val in [Val::U64(0), Val::I32(-1), Val::F32(f32::NAN), Val::F64(f64::INFINITY), Val::U64(1 << 40)] {
            if key.ends_with("epsilon") && matches!(val, Val::U64(_)) {
                continue;
            }
            refused(&format!("{key} {val:?}"), &set(&key, val), &[&key]);
        }
    }
    for key in REQUIRED.into_iter().chain(OPTIONAL) {
        let key = format!("llama.{key}");
        // Where llama.cpp takes a number for each layer, those of all layers are one here.
        let numbers = Val::Array(kind::U32, vec![Val::U32(4), Val::U32(5)]);
        for val in [numbers, Val::str("128"), Val::Array(kind::F32, vec![]), Val::str(""), Val::strs(["a"])] {
            refused(&format!("{key} {val:?}"), &set(&key, val), &[&key]);
        }
    }
    let cases = [
        ("attention.head_count", Val::U32(3), "attention.head_count_kv"),
        ("attention.head_count", Val::U32(8), "rope.dimension_count"),
        ("attention.head_count", Val::U32(129), "attention.head_count"),
        ("attention.head_count", Val::U32(1 << 20), "attention.head_count"),
        ("attention.head_count_kv", Val::U32(0), "attention.head_count_kv"),
        ("attention.head_count_kv", Val::U32(3), "attention.head_count_kv"),
        ("attention.head_count_kv", Val::U32(8), "attention.head_count_kv"),
        ("attention.head_count_kv", Val::U64(1 << 40), "attention.head_count_kv"),
        ("attention.key_length", Val::U32(33), "attention.key_length"),
        ("attention.key_length", Val::U32(0), "attention.key_length"),
        ("attention.key_length", Val::U64(1 << 40), "attention.key_length"),
        ("attention.value_length", Val::U32(16), "attention.value_length"),
        ("rope.dimension_count", Val::U32(16), "rope.dimension_count"),
        ("attention.causal", Val::Bool(0), "attention.causal"),
        ("rope.dimension_count_swa", Val::U32(8), "rope.dimension_count_swa"),
        ("nextn_predict_layers", Val::U32(1), "not built in"),
        ("block_count", Val::U32(513), "block_count"),
        ("block_count", Val::U32(3), "blk.2.attn_norm.weight"),
        ("block_count", Val::U32(1), "blk.1."),
        ("feed_forward_length", Val::U32(1 << 24), "ffn_gate"),
        ("embedding_length", Val::U32(64), ""),
        ("attention.layer_norm_rms_epsilon", Val::F32(-1e-5), "epsilon"),
        ("rope.freq_base", Val::F32(0.0), "rope.freq_base"),
        ("rope.freq_base", Val::F32(1.0), "rope.freq_base"),
        ("rope.freq_base", Val::F32(-1e4), "rope.freq_base"),
        ("rope.freq_base", Val::F32(f32::NAN), "rope.freq_base"),
        ("rope.freq_base", Val::F64(1e300), "rope.freq_base"),
        ("rope.scaling.factor", Val::F32(-2.0), "rope.scaling.factor"),
        ("rope.scaling.factor", Val::F32(f32::NAN), "rope.scaling.factor"),
        ("rope.scaling.factor", Val::F32(f32::INFINITY), "rope.scaling.factor"),
        ("rope.scaling.factor", Val::F32(1e-40), "rope.scaling.factor"),
        ("rope.scaling.attn_factor", Val::F32(f32::NAN), "rope.scaling.attn_factor"),
        ("rope.scaling.type", Val::str("dynamic"), "dynamic"),
        ("rope.scaling.type", Val::U32(2), "rope.scaling.type"),
    ];
    for (key, val, word) in cases {
        refused(&format!("{key} {val:?}"), &set(&format!("llama.{key}"), val), &[word]);
    }
}

#[test]
fn a_vocabulary_is_the_rows_of_the_embedding_where_the_file_names_none() {
    assert_eq!(verdict(&unset("tokenizer.ggml.tokens")), None);
    refused("no tokens", &set("tokenizer.ggml.tokens", Val::strs::<&str>([])), &[]);
    let mut draft = unset("tokenizer.ggml.tokens");
    draft.tensors.retain(|t| name(t) != "token_embd.weight");
    refused("no vocabulary", &draft, &["tokenizer.ggml.tokens"]);
}

#[test]
fn a_file_cut_short_after_it_was_opened_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = fine("llama").write(folder.path(), "model.gguf");
    let len = path.metadata().expect("a file").len();
    for kept in [len - 200, len / 2, 5000, 1, 0] {
        fine("llama").write(folder.path(), "model.gguf");
        let model = open(&path);
        std::fs::OpenOptions::new().write(true).open(&path).expect("a file").set_len(kept).expect("shorter");
        let error = Transformer::load(&model, 1).expect_err("bytes are missing");
        let source = std::error::Error::source(&error).expect("the system's answer").to_string();
        assert!(source.contains("shorter"), "{kept}: {error}: {source}");
    }
}

/// Where a block of a type has its scale, or a weight.
fn scale_at(ty: u32) -> usize {
    match ty {
        10 => 80,
        11 => 108,
        14 => 208,
        34 => 52,
        35 => 64,
        _ => 0,
    }
}

#[test]
fn weights_that_are_no_numbers_are_seen_in_the_logits() {
    let folder = tempfile::tempdir().expect("a folder");
    let token = 300;
    let spoilt = [
        "token_embd.weight",
        "blk.0.attn_norm.weight",
        "blk.0.attn_q.weight",
        "blk.0.attn_k.weight",
        "blk.0.attn_v.weight",
        "blk.1.attn_output.weight",
        "blk.1.ffn_gate.weight",
        "blk.1.ffn_up.weight",
        "blk.2.ffn_down.weight",
        "output_norm.weight",
        "output.weight",
    ];
    // The scales of these say numbers, whatever their bits are.
    let is_never_nan = |ty: &GgmlType| matches!(ty, GgmlType::MXFP4 | GgmlType::NVFP4);
    for ty in quants::supported().filter(|ty| !is_never_nan(ty)) {
        let whole = chat_in(ty.id());
        for (tensor, is_infinite) in spoilt.into_iter().flat_map(|t| [(t, false), (t, true)]) {
            let mut draft = whole.clone();
            let tensor_ty = draft.tensor(tensor).ty;
            let bits: &[u8] = match (tensor_ty, is_infinite) {
                (0, false) => &[0, 0, 0xc0, 0x7f],
                (0, true) => &[0, 0, 0x80, 0x7f],
                (30, false) => &[0xc0, 0x7f],
                (30, true) => &[0x80, 0x7f],
                (_, false) => &[0, 0x7e],
                (_, true) => &[0, 0x7c],
            };
            let tensor_ref = draft.tensor(tensor);
            let row = if tensor == "token_embd.weight" { token } else { 5 };
            let n_rows = tensor_ref.ne.get(1).copied().unwrap_or(1) as usize;
            let data = tensor_ref.data.as_mut().expect("it was read");
            let at = data.len() / n_rows * (row % n_rows) + scale_at(tensor_ty);
            if tensor_ty == GgmlType::IQ1_M.id() {
                // Its f16 is in the upper four bits of four numbers.
                let half = u16::from_le_bytes([bits[0], bits[1]]);
                for (k, byte) in data[at + 48..at + 56].iter_mut().skip(1).step_by(2).enumerate() {
                    *byte = *byte & 0xf | ((half >> (4 * k) & 0xf) as u8) << 4;
                }
            } else {
                data[at..at + bits.len()].copy_from_slice(bits);
            }
            let model = load(&draft.write(folder.path(), "model.gguf"), 1);
            let prompt = [1, token as u32, 7];
            let mut greedy = Sampler::new(Sampling::Greedy).expect("no settings");
            let said = generate(&mut session(&model), &prompt, 4, &mut greedy, &|_| false, &|_| true).expect("fits");
            assert!(!said.is_finite && said.tokens.is_empty(), "{ty} {tensor} {is_infinite}: {said:?}");
        }
    }
}

fn any_val() -> impl Strategy<Value = Val> {
    let number = prop_oneof![
        any::<u8>().prop_map(Val::U8),
        any::<i8>().prop_map(Val::I8),
        any::<u16>().prop_map(Val::U16),
        any::<i32>().prop_map(Val::I32),
        (0u32..600).prop_map(Val::U32),
        any::<u32>().prop_map(Val::U32),
        any::<f32>().prop_map(Val::F32),
        prop::num::f32::ANY.prop_map(Val::F32),
        any::<u64>().prop_map(Val::U64),
        (0u32..64).prop_map(|shift| Val::U64(1 << shift)),
        any::<i64>().prop_map(Val::I64),
        prop::num::f64::ANY.prop_map(Val::F64),
        (0u8..3).prop_map(Val::Bool),
    ];
    let text = prop_oneof![Just("yarn"), Just("longrope"), Just("none"), Just("linear"), Just("llama"), Just("")];
    prop_oneof![
        6 => number,
        2 => text.prop_map(Val::str),
        1 => prop::collection::vec(any::<f32>().prop_map(Val::F32), 0..4).prop_map(|v| Val::Array(kind::F32, v)),
        1 => prop::collection::vec("[a-z]{0,3}", 0..4).prop_map(Val::strs),
    ]
}

fn any_key() -> impl Strategy<Value = String> {
    let own = REQUIRED.into_iter().chain(OPTIONAL).map(|key| format!("llama.{key}"));
    let keys = own.chain(["general.architecture", "tokenizer.ggml.tokens"].map(str::to_owned));
    prop::sample::select(keys.collect::<Vec<_>>())
}

proptest! {
    #[test]
    fn no_metadata_makes_it_panic(changes in prop::collection::vec((any_key(), any_val()), 1..5)) {
        let mut draft = fine("llama");
        for (key, val) in changes {
            draft.set(&key, val);
        }
        verdict(&draft);
    }

    #[test]
    fn no_metadata_of_a_family_makes_it_panic(
        (family, changes) in any_family_and_changes(),
    ) {
        let mut draft = family_draft(family);
        for (key, val) in changes {
            draft.set(&key, val);
        }
        verdict(&draft);
    }
}

/// Variants that read the most keys.
const FAMILIES: [&str; 8] =
    ["gemma3", "gpt-oss", "granitemoe", "mistral3-temperature", "olmo2-window", "phi3-long", "qwen2moe", "smollm3"];

/// Keys of families that their variants may not have.
const MORE: [&str; 14] = [
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.scale",
    "attention.temperature_scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "embedding_scale",
    "expert_used_count",
    "expert_group_count",
    "expert_shared_feed_forward_length",
    "logit_scale",
    "nextn_predict_layers",
    "rope.freq_base_swa",
    "rope.scaling.finetuned",
];

fn family_draft(variant: &str) -> Draft {
    static GOLDENS: OnceLock<Json> = OnceLock::new();
    synthetic::draft(GOLDENS.get_or_init(|| fixture("families.json")), variant)
}

fn any_family_and_changes() -> impl Strategy<Value = (&'static str, Vec<(String, Val)>)> {
    prop::sample::select(&FAMILIES[..]).prop_flat_map(|family| {
        let draft = family_draft(family);
        let own = draft.keys.iter().map(|(key, _)| String::from_utf8_lossy(key).into_owned());
        let own: Vec<String> = own.filter(|key| !key.starts_with("tokenizer.")).collect();
        let architecture = own.iter().find_map(|key| key.split_once('.').filter(|(a, _)| *a != "general"));
        let architecture = architecture.expect("keys of the architecture").0.to_owned();
        let more = MORE.map(|key| format!("{architecture}.{key}"));
        let keys: Vec<String> = own.into_iter().chain(more).collect();
        (Just(family), prop::collection::vec((prop::sample::select(keys), any_val()), 1..5))
    })
}

#[test]
fn parts_of_families_are_all_there_in_their_shape() {
    for family in FAMILIES {
        let whole = family_draft(family);
        assert_eq!(verdict(&whole), None, "{family}");
        for i in 0..whole.tensors.len() {
            let mut draft = whole.clone();
            let lost = draft.tensors.remove(i);
            let lost = name(&lost);
            let is_optional = (lost == "output.weight" && !["gpt-oss", "olmo2-window", "qwen2moe"].contains(&family))
                || (lost.ends_with(".bias") && ["attn_q", "attn_k", "attn_v"].iter().any(|part| lost.contains(part)))
                || lost.starts_with("rope_factors");
            match is_optional {
                true => assert_eq!(verdict(&draft), None, "{family} {lost}"),
                // Three matrices may stand for one.
                false => refused(lost, &draft, &[&lost.replace("attn_qkv", "attn_q"), "no such tensor"]),
            }
        }
    }
}
