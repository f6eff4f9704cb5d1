//! Which files belong together: what is refused by its header, with both values and both files, and
//! what is only said.

use crate::support::{Draft, Tensor, Val, kind};
use crate::trio::{Q4_K, Ran, Trio, chatvec, names, read, requantise};

/// Merges a small trio that is changed first; the folder with its files, and what the command said.
fn merge(spoil: impl FnOnce(&mut Trio), options: &[&str]) -> (tempfile::TempDir, Ran) {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    spoil(&mut trio);
    let ran = trio.write(folder.path()).command(&folder.path().join("out.gguf"), options);
    (folder, ran)
}

/// Panics unless the merge of the changed trio ends with this code, says all of this and writes
/// nothing.
#[track_caller]
fn refused(code: i32, words: &[&str], spoil: impl FnOnce(&mut Trio)) {
    refused_with(&[], code, words, spoil);
}

#[track_caller]
fn refused_with(options: &[&str], code: i32, words: &[&str], spoil: impl FnOnce(&mut Trio)) {
    let (folder, ran) = merge(spoil, options);
    ran.says(code, words);
    assert_eq!(names(folder.path()), ["base.gguf", "chat.gguf", "cp.gguf"]);
}

const NUMBERS: [(&str, u32); 6] = [
    ("block_count", 1),
    ("embedding_length", 256),
    ("feed_forward_length", 256),
    ("attention.head_count", 4),
    ("attention.head_count_kv", 1),
    ("rope.dimension_count", 64),
];

#[test]
fn hyperparameters_that_give_weights_their_meaning_must_be_equal() {
    for (suffix, value) in NUMBERS {
        let key = format!("llama.{suffix}");
        let (own, other) = (format!("is {} in", value * 2), format!("but {value} in"));
        let words = [key.as_str(), &own, &other, "base.gguf", "cp.gguf", "no siblings"];
        refused(4, &words, |trio| trio.base.set(&key, Val::U32(value * 2)));
        let words = [key.as_str(), &own, &other, "chat.gguf", "cp.gguf", "no siblings"];
        // Whatever integer type the converter chose, and also when forced.
        refused_with(&["--force"], 4, &words, |trio| trio.chat.set(&key, Val::U64(u64::from(value) * 2)));
    }
    let words = ["general.architecture", "qwen2", "llama", "chat.gguf", "cp.gguf"];
    refused(4, &words, |trio| trio.chat.set("general.architecture", Val::str("qwen2")));
    refused(4, &["base.gguf", "general.architecture is missing"], |trio| {
        trio.base.keys.retain(|(key, _)| key != b"general.architecture");
    });
}

#[test]
fn an_absent_head_count_is_what_llama_cpp_takes_it_for() {
    let drop = |draft: &mut Draft, key: &str| draft.keys.retain(|(k, _)| k != key.as_bytes());
    // Key-value heads: as many as heads. Rope dimensions: the width of a head.
    let (_folder, ran) = merge(
        |trio| {
            trio.each(|draft| draft.set("llama.attention.head_count_kv", Val::U32(4)));
            drop(&mut trio.base, "llama.attention.head_count_kv");
            drop(&mut trio.chat, "llama.rope.dimension_count");
            trio.chat.set("llama.attention.key_length", Val::U32(64));
        },
        &[],
    );
    ran.is_quiet();
    let words = ["llama.attention.head_count_kv is 4 in", "base.gguf but 1 in", "cp.gguf"];
    refused(4, &words, |trio| drop(&mut trio.base, "llama.attention.head_count_kv"));
    refused(4, &["llama.attention.value_length is 32 in", "chat.gguf but 64 in", "cp.gguf"], |trio| {
        trio.chat.set("llama.attention.value_length", Val::U32(32));
    });
}

#[test]
fn one_number_stands_for_every_layer() {
    let list = |values: &[i32]| Val::Array(kind::I32, values.iter().copied().map(Val::I32).collect());
    let two_layers = |trio: &mut Trio| trio.each(|draft| draft.set("llama.block_count", Val::U32(2)));
    let (_folder, ran) = merge(
        |trio| {
            two_layers(trio);
            trio.base.set("llama.attention.head_count_kv", list(&[1, 1]));
            trio.chat.set("llama.feed_forward_length", list(&[256, 256]));
        },
        &[],
    );
    ran.says(0, &["promises 2 layers"]);
    assert!(!ran.err.contains("head_count_kv") && !ran.err.contains("feed_forward_length"), "{ran:#?}");
    refused(4, &["llama.attention.head_count_kv is [1, 2] in", "base.gguf but 1 in", "cp.gguf"], |trio| {
        two_layers(trio);
        trio.base.set("llama.attention.head_count_kv", list(&[1, 2]));
    });
    refused(4, &["llama.feed_forward_length is [256, 512] in", "but [512, 256] in"], |trio| {
        trio.each(|draft| draft.set("llama.feed_forward_length", list(&[512, 256])));
        trio.chat.set("llama.feed_forward_length", list(&[256, 512]));
    });
}

#[test]
fn what_pre_training_may_change_is_said_and_stays_the_models() {
    let (folder, ran) = merge(
        |trio| {
            trio.cp.set("llama.rope.freq_base", Val::F32(500000.0));
            trio.cp.set("llama.context_length", Val::U32(8192));
            trio.cp.set("llama.rope.scaling.type", Val::str("yarn"));
            trio.base.set("llama.rope.scaling.factor", Val::F32(4.0));
        },
        &[],
    );
    ran.says(
        0,
        &[
            "warning: llama.rope.freq_base is 500000 in the model and 10000 in base; the output has the model's",
            "warning: llama.rope.freq_base is 500000 in the model and 10000 in chat",
            "warning: llama.context_length is 8192 in the model and 64 in base",
            "warning: llama.rope.scaling.type is yarn in the model and absent in chat",
            "warning: llama.rope.scaling.factor is absent in the model and 4 in base",
        ],
    );
    let out = read(&folder.path().join("out.gguf"));
    assert_eq!(crate::trio::get(&out, "llama.rope.freq_base"), Some(&Val::F32(500000.0)));
    assert_eq!(crate::trio::get(&out, "llama.rope.scaling.factor"), None);
}

#[test]
fn tokenizers_must_be_of_one_kind() {
    refused(4, &["tokenizer.ggml.model", "llama", "gpt2", "base.gguf"], |trio| {
        trio.base.set("tokenizer.ggml.model", Val::str("llama"));
    });
    let (_folder, ran) = merge(|trio| trio.chat.set("tokenizer.ggml.pre", Val::str("qwen2")), &[]);
    ran.says(0, &[]);
    let (_folder, ran) =
        merge(|trio| trio.base.keys.retain(|(k, _)| k.starts_with(b"general.") || k.starts_with(b"llama.")), &[]);
    ran.says(0, &["warning: base has no token list"]);
}

#[test]
fn tensors_that_only_some_files_have_are_refused_or_said() {
    let bias = Tensor::new("blk.0.attn_k.bias", &[64], 0);
    let bias = Tensor { data: Some(vec![0; 256]), ..bias };
    refused(4, &["blk.0.attn_k.bias", "is in", "chat.gguf", "but not in", "base.gguf"], |trio| {
        trio.chat.tensors.push(bias.clone());
        trio.cp.tensors.push(bias.clone());
    });
    refused(4, &["blk.0.attn_k.bias", "is in", "base.gguf", "but not in", "chat.gguf"], |trio| {
        trio.base.tensors.push(bias.clone());
        trio.cp.tensors.push(bias.clone());
    });
    refused(4, &["blk.0.attn_k.bias", "no place in", "cp.gguf", "chat.gguf"], |trio| {
        trio.base.tensors.push(bias.clone());
        trio.chat.tensors.push(bias.clone());
    });
    refused(4, &["blk.0.attn_k.bias is in", "base.gguf but not in", "chat.gguf"], |trio| {
        trio.base.tensors.push(bias.clone());
    });
    let (folder, ran) = merge(|trio| trio.cp.tensors.push(bias.clone()), &[]);
    ran.says(0, &["warning: 1 tensors have no partner", "blk.0.attn_k.bias"]);
    assert_eq!(read(&folder.path().join("out.gguf")).tensor("blk.0.attn_k.bias"), &bias);
}

#[test]
fn shapes_must_be_equal() {
    refused(4, &["blk.0.attn_k.weight", "[256, 32]", "[256, 64]", "base.gguf", "cp.gguf"], |trio| {
        let tensor = trio.base.tensor("blk.0.attn_k.weight");
        (tensor.ne, tensor.data) = (vec![256, 32], None);
    });
    refused(4, &["blk.0.attn_k.weight", "[64, 256]", "[256, 64]", "chat.gguf"], |trio| {
        trio.chat.tensor("blk.0.attn_k.weight").ne = vec![64, 256];
    });
    // Trailing ones say nothing.
    let (_folder, ran) = merge(|trio| trio.chat.tensor("blk.0.attn_k.weight").ne = vec![256, 64, 1], &[]);
    ran.says(0, &[]);
}

#[test]
fn a_patch_is_no_model_and_a_model_no_patch() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Trio::small().write(folder.path());
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (base, chat, cp, patch, out) =
        (at("base.gguf"), at("chat.gguf"), at("cp.gguf"), at("patch.gguf"), at("out.gguf"));
    chatvec(["extract", "--base", &base, "--chat", &chat, "-o", &patch]).says(0, &[]);
    for [b, c, m] in [[&patch, &chat, &cp], [&base, &patch, &cp], [&base, &chat, &patch]] {
        let ran = chatvec(["merge", "--base", b, "--chat", c, "--model", m, "-o", &out]);
        ran.says(4, &["patch.gguf", "general.type", "chat-vector", "chatvec apply"]);
    }
    let ran = chatvec(["apply", "--model", &cp, &chat, "-o", &out]);
    ran.says(4, &["chat.gguf", "general.type", "found nothing", "chatvec extract"]);
    chatvec(["apply", "--model", &patch, &patch, "-o", &out]).says(4, &["patch.gguf", "general.type"]);
    chatvec(["extract", "--base", &base, "--chat", &patch, "-o", &out]).says(4, &["patch.gguf", "general.type"]);
    let ran = {
        let mut adapter = Trio::small().chat;
        adapter.set("general.type", Val::str("adapter"));
        let adapter = adapter.write(folder.path(), "adapter.gguf");
        crate::trio::Paths { chat: adapter, ..paths }.command(out.as_ref(), &[])
    };
    ran.says(4, &["adapter.gguf", "general.type", "\"adapter\""]);
    assert!(!folder.path().join("out.gguf").exists());
}

#[test]
fn a_big_endian_file_is_refused_by_name() {
    let words = ["the file is big-endian", "convert it"];
    refused(5, &[&words[..], &["base.gguf"]].concat(), |trio| trio.base.big_endian = true);
    refused(5, &[&words[..], &["chat.gguf"]].concat(), |trio| trio.chat.big_endian = true);
    refused(5, &[&words[..], &["cp.gguf"]].concat(), |trio| trio.cp.big_endian = true);
}

#[test]
fn types_that_are_worthless_without_an_importance_matrix_are_refused_by_name() {
    for name in ["iq2_xxs", "IQ2_XS", "IQ2_M", "IQ1_S", "IQ1_M", "Q2_K_S"] {
        refused_with(&["--type", name], 5, &["blk.", "--imatrix"], |_| {});
        refused_with(&["--type", name, "--pure"], 5, &["--imatrix"], |_| {});
    }
}

#[test]
fn what_is_no_type_is_refused_with_those_that_are() {
    for name in ["Q9_K", "", "f33", "Q4_K_XL"] {
        refused_with(&["--type", name], 2, &["--type", &format!("{name:?}"), "known are keep", "Q8_0"], |_| {});
    }
}

#[test]
fn a_model_on_a_coarse_grid_is_no_reason_to_refuse() {
    let (_folder, ran) = merge(|trio| trio.each(|draft| requantise(draft, Q4_K)), &["--type", "F16"]);
    ran.says(0, &[]);
}

#[test]
fn recommended_sampling_and_the_begin_of_prompts_are_the_chats_also_by_way_of_a_patch() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    trio.cp.set("general.sampling.temp", Val::F32(1.0));
    trio.cp.set("general.sampling.penalty_repeat", Val::F32(1.1));
    trio.each(|draft| draft.set("tokenizer.ggml.bos_token_id", Val::U32(5)));
    let chat = [
        ("general.sampling.temp", Val::F32(0.6)),
        ("general.sampling.top_k", Val::I32(20)),
        ("tokenizer.ggml.bos_token_id", Val::U32(6)),
    ];
    chat.iter().for_each(|(key, value)| trio.chat.set(key, value.clone()));
    let template = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}";
    trio.chat.set("tokenizer.chat_template", Val::str(template));
    let paths = trio.write(folder.path());
    let [merged, patch, applied] = ["merged.gguf", "patch.gguf", "applied.gguf"].map(|name| folder.path().join(name));
    paths.command(&merged, &["--type", "F16"]).says(0, &[]);
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let extract = ["extract", "--base", &text(&paths.base), "--chat", &text(&paths.chat), "-o", &text(&patch)];
    chatvec(extract).says(0, &[]);
    chatvec(["apply", "--model", &text(&paths.cp), &text(&patch), "-o", &text(&applied)]).says(0, &[]);
    for output in [&merged, &applied] {
        let output = read(output);
        for (key, value) in &chat {
            assert_eq!(crate::trio::get(&output, key), Some(value), "{key}");
        }
        assert_eq!(crate::trio::get(&output, "general.sampling.penalty_repeat"), None, "chat recommends none");
    }
}

#[test]
fn a_model_that_does_not_say_how_text_is_split_is_said() {
    let pre = |trio: &mut Trio| trio.each(|draft| draft.set("tokenizer.ggml.pre", Val::str("qwen2")));
    let (_folder, ran) = merge(pre, &[]);
    assert!(ran.code == 0 && !ran.err.contains("tokenizer.ggml.pre"), "{}", ran.err);
    let (_folder, ran) = merge(
        |trio| {
            pre(trio);
            trio.cp.keys.retain(|(key, _)| key != b"tokenizer.ggml.pre");
        },
        &[],
    );
    ran.says(0, &["the model has no key tokenizer.ggml.pre, and chat has \"qwen2\""]);
}
