//! What a merge writes: tensors as numpy and ggml say (`fixtures/merge`), and the metadata around
//! them.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use chatvec::chat::is_plumbing_key;
use chatvec::ggml::GgmlType;
use chatvec::gguf::{Model, WriteOptions};
use chatvec::pipeline::{self, Budget};
use chatvec::plan::MEASURED_KEYS;
use chatvec::vector;
use sha2::{Digest, Sha256};

use crate::support::{Draft, Tensor, Val, kind, shard_name, split, write_split};
use crate::trio::{
    BF16, F16, F32, Paths, Q4_K, Q8_0, Ran, Trio, assert_same_tensors, change, decode, drifted, encode, get, name,
    names, open, plus_zero, read, requantise, store, sum, weights,
};

/// SHA-256 of a tensor's bytes, −0 as +0.
fn digest(tensor: &Tensor) -> String {
    let digest = Sha256::digest(plus_zero(tensor.ty, tensor.data()));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `fixtures/merge/make.py` wrote.
struct Expected {
    json: serde_json::Value,
}

impl Expected {
    fn read() -> Expected {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/merge/expected.json");
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Expected { json: serde_json::from_str(&text).unwrap() }
    }

    /// The merges of a model of this kind with this chat model.
    fn merges(&self, cp: &str, chat: &str) -> Vec<&serde_json::Value> {
        let all = self.json["merges"].as_array().unwrap().iter();
        all.filter(|merge| merge["cp"] == cp && merge["chat"] == chat).collect()
    }

    /// Panics with the names of the tensors whose hash is another one.
    #[track_caller]
    fn compare(&self, what: &str, found: &Draft, sha256: &serde_json::Value) {
        let expected: Vec<&str> =
            self.json["tensors"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
        assert_eq!(found.tensors.iter().map(name).collect::<Vec<_>>(), expected, "{what}: names");
        let differ: Vec<String> = (found.tensors.iter().enumerate())
            .filter(|(i, tensor)| sha256[i] != *digest(tensor))
            .map(|(_, t)| format!("{} as {}", name(t), GgmlType::from_id(t.ty).unwrap()))
            .collect();
        assert!(differ.is_empty(), "{what}: not what numpy and ggml say: {}", differ.join(", "));
    }
}

/// The bundled trio with every F16 tensor as F32.
fn widened() -> Trio {
    let mut trio = Trio::bundled();
    trio.each(|draft| requantise(draft, F32));
    trio
}

fn compare_float_merges(paths: &Paths, wanted: impl Fn(&str, f64) -> bool) {
    let folder = tempfile::tempdir().unwrap();
    let expected = Expected::read();
    let mut n = 0;
    for merge in expected.merges("float", "chat") {
        let (ty, ratio) = (merge["type"].as_str().unwrap(), merge["ratio"].as_f64().unwrap());
        if wanted(ty, ratio) {
            let found = paths.merge(&folder.path().join("out.gguf"), ty, ratio);
            expected.compare(&format!("{ty} at {ratio}"), &found, &merge["sha256"]);
            n += 1;
        }
    }
    assert!(n > 0, "no merge was compared");
}

#[test]
fn merges_of_the_f16_trio_are_those_of_numpy_and_ggml_in_every_type() {
    compare_float_merges(&Paths::bundled(), |_, _| true);
}

#[test]
fn merges_of_the_trio_widened_to_f32_are_those_of_numpy_and_ggml() {
    let folder = tempfile::tempdir().unwrap();
    let paths = widened().write(folder.path());
    compare_float_merges(&paths, |ty, ratio| ratio == 0.37 || ["F32", "F16", "BF16"].contains(&ty));
}

#[test]
fn a_quantised_model_gets_the_vector_in_blocks_of_ggml_and_keeps_those_without_delta() {
    let expected = Expected::read();
    let folder = tempfile::tempdir().unwrap();
    let wide = widened();
    // Every third run of 256 weights is the base's, as in tests/peers/merge_oracle.py.
    let mut partly = wide.clone();
    for (chat, base) in partly.chat.tensors.iter_mut().zip(&wide.base.tensors) {
        let base = weights(base);
        change(chat, |weights| {
            for (i, (chat, base)) in weights.chunks_mut(256).zip(base.chunks(256)).enumerate() {
                if i % 3 == 0 {
                    chat.copy_from_slice(base);
                }
            }
        });
    }
    for (id, ty) in [(Q4_K, "Q4_K"), (Q8_0, "Q8_0")] {
        for (chat, trio) in [("chat", &wide), ("partly equal", &partly)] {
            let mut trio = trio.clone();
            requantise(&mut trio.cp, id);
            expected.compare(&format!("the model as {ty}"), &trio.cp, &expected.json["cp"][ty]);
            let found = trio.write(folder.path()).merge(&folder.path().join("out.gguf"), "keep", 1.0);
            for merge in expected.merges(ty, chat) {
                expected.compare(&format!("{ty} kept, {chat}"), &found, &merge["sha256"]);
            }
            let copied = (found.tensors.iter().zip(&trio.cp.tensors))
                .filter(|(a, _)| a.ty == id)
                .flat_map(|(a, b)| {
                    let block = GgmlType::from_id(id).unwrap().block_size();
                    let (a, b) = (a.data(), b.data());
                    a.chunks(block).zip(b.chunks(block)).map(|(a, b)| a == b).collect::<Vec<_>>()
                })
                .filter(|same| *same)
                .count();
            if chat == "partly equal" {
                assert!(copied > 1000, "{ty}: {copied} blocks were copied");
            }
        }
    }
}

#[test]
fn base_as_chat_gives_the_model_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    for ty in [F16, Q4_K] {
        let mut trio = Trio::small();
        requantise(&mut trio.cp, ty);
        trio.chat = trio.base.clone();
        trio.cp.set("general.file_type", Val::U32(if ty == F16 { 1 } else { 15 }));
        trio.cp.set("x.of_the_model", Val::strs(["kept", "in order"]));
        trio.cp.set("general.quantization_version", Val::U32(2));
        // Signs of zeros too.
        store(trio.cp.tensor("blk.0.attn_q.bias"), F32, &[-0.0; 256]);
        let found = trio.write(folder.path()).merge(&folder.path().join("out.gguf"), "keep", 1.0);
        assert_same_tensors(&found, &trio.cp);
        assert_eq!(own_keys(&found), own_keys(&trio.cp));
    }
}

/// Keys that are neither chat plumbing nor provenance, with their values, in order.
fn own_keys(draft: &Draft) -> Vec<(String, Val)> {
    let text = |key: &[u8]| String::from_utf8(key.to_vec()).unwrap();
    let keys = draft.keys.iter().map(|(key, val)| (text(key), val.clone()));
    keys.filter(|(key, _)| {
        let of_the_merge = ["chatvec.", "general.base_model.", "general.name"].iter().any(|own| key.starts_with(own));
        !is_plumbing_key(key) && !of_the_merge
    })
    .collect()
}

#[test]
fn base_as_model_gives_the_chat_models_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let mut paths = Paths::bundled();
    paths.cp = paths.base.clone();
    let mut found = paths.merge(&folder.path().join("out.gguf"), "keep", 1.0);
    let mut chat = read(&paths.chat);
    for draft in [&mut found, &mut chat] {
        draft.tensors.iter_mut().for_each(|t| t.data = Some(plus_zero(t.ty, t.data())));
    }
    assert_same_tensors(&found, &chat);
}

#[test]
fn ratio_0_gives_the_models_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    requantise(&mut trio.cp, Q4_K);
    let found = trio.write(folder.path()).merge(&folder.path().join("out.gguf"), "keep", 0.0);
    assert_same_tensors(&found, &trio.cp);
}

#[test]
fn the_file_is_the_same_for_any_threads_and_budget() {
    let folder = tempfile::tempdir().unwrap();
    for (ty, paths) in [("keep", Paths::bundled()), ("Q4_K", Trio::small().write(folder.path()))] {
        let inputs = paths.inputs(1.0);
        let plan = paths.plan(&inputs, ty);
        let Err(pipeline::Error::Budget { needed, .. }) = (Budget { memory: 1, threads: 1 }).needed(&plan, &inputs)
        else {
            panic!("one byte is enough");
        };
        let mut first: Option<(Vec<u8>, pipeline::Measured)> = None;
        for memory in [needed, needed + 1, 3 * needed, 16 << 20, 1 << 30] {
            for threads in [1, 2, 5] {
                let out = folder.path().join("out.gguf");
                let written = paths.try_merge(&out, ty, 1.0, &Budget { memory, threads }).unwrap();
                let file = fs::read(&out).unwrap();
                let (bytes, measured) = first.get_or_insert_with(|| (file.clone(), written.measured.clone()));
                assert!(*bytes == file, "{ty}: {threads} threads, {memory} bytes: another file");
                assert_eq!(*measured, written.measured, "{ty}: {threads} threads, {memory} bytes");
            }
        }
    }
}

#[test]
fn a_weight_that_is_no_number_is_refused_by_file_tensor_and_index() {
    for (role, file) in [("base", "base.gguf"), ("chat", "chat.gguf"), ("cp", "cp.gguf")] {
        for (tensor, index, value) in [
            ("blk.0.attn_q.weight", 256 * 7 + 3, f32::NAN),
            ("blk.0.ffn_norm.weight", 255, f32::INFINITY),
            ("blk.0.ffn_down.weight", 256 * 256 - 1, f32::NEG_INFINITY),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let mut trio = Trio::small();
            let draft = match role {
                "base" => &mut trio.base,
                "chat" => &mut trio.chat,
                _ => &mut trio.cp,
            };
            change(draft.tensor(tensor), |weights| weights[index] = value);
            let paths = trio.write(folder.path());
            let out = folder.path().join("out.gguf");
            let error = paths.try_merge(&out, "keep", 1.0, &Budget::default()).unwrap_err();
            let pipeline::Error::Source(vector::Error::NotFinite { path, tensor: t, index: i, .. }) = &error else {
                panic!("{error}");
            };
            assert!(path.ends_with(file) && t == tensor && *i == index as u64, "{error}");
            paths.command(&out, &[]).says(3, &[file, tensor, &format!("weight {index} is ")]);
            assert_eq!(names(folder.path()), ["base.gguf", "chat.gguf", "cp.gguf"]);
        }
    }
}

#[test]
fn a_block_whose_scale_is_no_number_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    requantise(&mut trio.cp, Q8_0);
    let tensor = trio.cp.tensor("blk.0.attn_v.weight");
    tensor.data.as_mut().unwrap()[34..36].copy_from_slice(&half::f16::NAN.to_le_bytes());
    let paths = trio.write(folder.path());
    paths.command(&folder.path().join("out.gguf"), &[]).says(3, &["cp.gguf", "blk.0.attn_v.weight", "weight 32 is"]);
    assert_eq!(names(folder.path()), ["base.gguf", "chat.gguf", "cp.gguf"]);
}

#[test]
fn a_sum_beyond_f16_is_refused_with_the_types_that_can_hold_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    change(trio.cp.tensor("blk.0.attn_k.weight"), |weights| weights[300] = 60000.0);
    change(trio.chat.tensor("blk.0.attn_k.weight"), |weights| weights[300] = 6000.0);
    let paths = trio.write(folder.path());
    let out = folder.path().join("out.gguf");
    let error = paths.try_merge(&out, "keep", 1.0, &Budget::default()).unwrap_err();
    let pipeline::Error::Range { tensor, index: 300, value, ty: GgmlType::F16 } = &error else { panic!("{error}") };
    assert!(tensor == "blk.0.attn_k.weight" && (65000.0..67000.0).contains(value), "{error}");
    let ran = paths.command(&out, &["--force"]);
    ran.says(5, &["blk.0.attn_k.weight", "weight 300", "F16 cannot hold", "BF16"]);
    assert_eq!(names(folder.path()), ["base.gguf", "chat.gguf", "cp.gguf"]);
    paths.merge(&out, "BF16", 1.0);
}

#[test]
fn rope_factors_and_types_without_arithmetic_stay_the_models() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    let mut seed = 0;
    trio.each(|draft| {
        seed += 1;
        store(draft.tensor("rope_freqs.weight"), F32, &[seed as f32; 32]);
        // Their data are other bytes in each file.
        for (name, ty) in [("blk.0.index.weight", 26), ("blk.0.counts.weight", 28)] {
            let mut tensor = Tensor::new(name, &[6, 2], ty);
            tensor.data = Some(vec![seed; tensor.size() as usize]);
            draft.tensors.push(tensor);
        }
    });
    let paths = trio.write(folder.path());
    for ty in ["keep", "Q4_K", "F32"] {
        let mut found = paths.merge(&folder.path().join("out.gguf"), ty, 1.0);
        for name in ["rope_freqs.weight", "blk.0.index.weight", "blk.0.counts.weight"] {
            assert_eq!(found.tensor(name), trio.cp.tensor(name), "{ty}");
        }
    }
}

/// The merge in f32, tensor by tensor, with matrices in one type.
fn formula(trio: &Trio, ratio: f32, ty: u32) -> Draft {
    let mut expected = trio.cp.clone();
    let partners = trio.base.tensors.iter().zip(&trio.chat.tensors);
    for (tensor, (base, chat)) in expected.tensors.iter_mut().zip(partners) {
        if tensor.name != b"rope_freqs.weight" {
            let values = sum(tensor, base, chat, ratio);
            let is_matrix = tensor.ne.len() > 1 && !name(tensor).contains("_norm");
            store(tensor, if is_matrix { ty } else { tensor.ty }, &values);
        }
    }
    expected
}

#[test]
fn norms_and_biases_take_part() {
    let folder = tempfile::tempdir().unwrap();
    let trio = Trio::small();
    let mut found = trio.write(folder.path()).merge(&folder.path().join("out.gguf"), "keep", 0.7);
    let mut expected = formula(&trio, 0.7, F16);
    for name in ["output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "blk.0.attn_q.bias"] {
        assert_eq!(found.tensor(name), expected.tensor(name));
        assert_ne!(found.tensor(name), trio.clone().cp.tensor(name), "{name} did not change");
    }
}

#[test]
fn float_inputs_of_any_mixture_add_up_in_f32() {
    let folder = tempfile::tempdir().unwrap();
    let types = [F32, F16, BF16];
    for (base, chat, cp) in types.iter().flat_map(|b| types.iter().flat_map(|c| types.map(|m| (*b, *c, m)))) {
        let mut trio = Trio::small();
        requantise(&mut trio.base, base);
        requantise(&mut trio.chat, chat);
        requantise(&mut trio.cp, cp);
        let paths = trio.write(folder.path());
        let mut found = paths.merge(&folder.path().join("out.gguf"), "F32", 0.37);
        let mut expected = formula(&trio, 0.37, F32);
        for draft in [&mut found, &mut expected] {
            draft.tensors.iter_mut().for_each(|t| t.data = Some(plus_zero(t.ty, t.data())));
        }
        assert_same_tensors(&found, &expected);
    }
}

#[test]
fn a_tied_embedding_stands_for_the_output_it_lacks() {
    let untie = |draft: &mut Draft| draft.tensors.retain(|t| t.name != b"output.weight");
    // Which of base, chat and cp have no output.weight, and what is said.
    for (tied, says) in [
        ([false, false, true], "left out"),
        ([true, true, false], "stands for it"),
        ([true, false, false], "stands for it"),
        ([false, true, false], "stands for it"),
        ([true, true, true], ""),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut trio = Trio::small();
        let [base, chat, cp] = tied;
        let pick = |draft: &Draft, tied: bool| {
            let wanted: &[u8] = if tied { b"token_embd.weight" } else { b"output.weight" };
            draft.tensors.iter().find(|t| t.name == wanted).unwrap().clone()
        };
        let output = sum(&pick(&trio.cp, false), &pick(&trio.base, base), &pick(&trio.chat, chat), 1.0);
        let embedding = sum(&pick(&trio.cp, true), &pick(&trio.base, true), &pick(&trio.chat, true), 1.0);
        for (draft, is_tied) in [(&mut trio.base, base), (&mut trio.chat, chat), (&mut trio.cp, cp)] {
            if is_tied {
                untie(draft);
            }
        }
        let out = folder.path().join("out.gguf");
        let ran = trio.write(folder.path()).command(&out, &["--type", "F32", "--force"]);
        ran.says(0, &[says]);
        let mut found = read(&out);
        assert_eq!(weights(found.tensor("token_embd.weight")), embedding, "{tied:?}");
        let has_output = found.tensors.iter().any(|t| t.name == b"output.weight");
        assert_eq!(has_output, !cp, "{tied:?}");
        if has_output {
            assert_eq!(weights(found.tensor("output.weight")), output, "{tied:?}");
        }
    }
}

/// The small trio with one more tensor of this shape.
fn with_tensor(tensor: &str, ne: &[u64]) -> Trio {
    let mut trio = Trio::small();
    let n = ne.iter().product::<u64>() as usize;
    let mut noise = crate::trio::Noise(9);
    let base = noise.normals(n, 0.05);
    let mut deviation = 0.0;
    trio.each(|draft| {
        let mut tensor = Tensor::new(tensor, ne, F16);
        let values: Vec<f32> = base.iter().map(|b| b + noise.normal() * deviation).collect();
        store(&mut tensor, F16, &values);
        draft.tensors.push(tensor);
        deviation += 0.002;
    });
    trio
}

/// The bytes of one tensor of the trio in this type.
fn merged(trio: &Trio, tensor: &str, ty: u32) -> Vec<u8> {
    let mut trio = trio.clone();
    let [base, chat] = [&mut trio.base, &mut trio.chat].map(|draft| draft.tensor(tensor).clone());
    encode(ty, &sum(trio.cp.tensor(tensor), &base, &chat, 1.0))
}

#[test]
fn experts_in_three_dimensions_are_rows_as_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let name = "blk.0.ffn_up_exps.weight";
    let trio = with_tensor(name, &[256, 5, 3]);
    let paths = trio.write(folder.path());
    for (ty, id) in [("Q4_K", Q4_K), ("Q8_0", Q8_0), ("F32", F32)] {
        let mut found = paths.merge(&folder.path().join("out.gguf"), ty, 1.0);
        let tensor = found.tensor(name);
        assert_eq!((&tensor.ne[..], tensor.ty), (&[256, 5, 3][..], id));
        assert_eq!(tensor.data(), merged(&trio, name, id), "{ty}");
    }
}

#[test]
fn rows_that_no_block_divides_fall_back_to_a_type_that_does() {
    let folder = tempfile::tempdir().unwrap();
    let name = "blk.0.odd.weight";
    // The last column is ggml's id of what llama-quantize writes instead.
    for (row_len, ty, id) in [
        (96, "Q4_K", 6),
        (96, "Q5_K", 7),
        (96, "Q6_K", Q8_0),
        (96, "Q2_K", 2),
        (96, "Q3_K", 2),
        (100, "Q4_K", F16),
        (100, "Q8_0", F16),
        (3, "Q4_0", F16),
    ] {
        let trio = with_tensor(name, &[row_len, 7]);
        let mut found = trio.write(folder.path()).merge(&folder.path().join("out.gguf"), ty, 1.0);
        assert_eq!(found.tensor(name).ty, id, "{row_len} as {ty}");
        assert_eq!(found.tensor(name).data(), merged(&trio, name, id), "{row_len} as {ty}");
    }
}

#[test]
fn the_models_alignment_stays_unless_llama_cpp_cannot_use_it() {
    for (own, kept) in [(8, 32), (16, 32), (32, 32), (64, 64), (128, 128)] {
        let folder = tempfile::tempdir().unwrap();
        let mut trio = Trio::small();
        let expected = formula(&trio, 1.0, F16);
        trio.each(|draft| draft.align(own));
        let out = folder.path().join("out.gguf");
        let found = trio.write(folder.path()).merge(&out, "keep", 1.0);
        assert_same_tensors(&found, &expected);
        assert_eq!(get(&found, "general.alignment"), Some(&Val::U32(kept)));
        assert_eq!(found.alignment, u64::from(kept));
        assert_eq!(fs::metadata(&out).unwrap().len() % u64::from(kept), 0);
    }
}

#[test]
fn a_model_in_shards_gives_the_file_that_the_whole_one_gives() {
    let folder = tempfile::tempdir().unwrap();
    let trio = Trio::small();
    let mut paths = trio.write(folder.path());
    let whole = folder.path().join("whole.gguf");
    paths.merge(&whole, "keep", 1.0);
    paths.cp = write_split(folder.path(), &split(&trio.cp, 3));
    let (first, other) = (folder.path().join("first.gguf"), folder.path().join("other.gguf"));
    let found = paths.merge(&first, "keep", 1.0);
    assert!(found.keys.iter().all(|(key, _)| !key.starts_with(b"split.")));
    assert!(fs::read(&whole).unwrap() == fs::read(&first).unwrap(), "another file than from the whole model");
    // Any shard names the set.
    paths.cp = folder.path().join("small-00003-of-00003.gguf");
    paths.merge(&other, "keep", 1.0);
    assert!(fs::read(&first).unwrap() == fs::read(&other).unwrap(), "another file by the last shard");
}

#[test]
fn what_is_true_of_the_input_alone_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    let stale = [
        "quantize.imatrix.file",
        "quantize.imatrix.dataset",
        "quantize.imatrix.entries_count",
        "general.base_model.7.name",
        "general.base_model.0.organization",
        "chatvec.of_an_earlier_run",
    ];
    stale.iter().for_each(|key| trio.cp.set(key, Val::str("stale")));
    trio.cp.set("split.count", Val::U16(0));
    let found = trio.write(folder.path()).merge(&folder.path().join("out.gguf"), "keep", 1.0);
    for key in stale.iter().chain(&["split.count"]) {
        assert_eq!(get(&found, key), None, "{key}");
    }
}

#[test]
fn the_file_type_says_what_the_tensors_are() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let trio = Trio::small();
    let paths = trio.write(folder.path());
    // Ids of enum llama_ftype.
    for (ty, id) in [
        ("keep", 1),
        ("F32", 0),
        ("F16", 1),
        ("BF16", 32),
        ("Q4_0", 2),
        ("Q8_0", 7),
        ("Q2_K", 10),
        ("Q3_K", 12),
        ("Q4_K", 15),
        ("Q4_K_S", 14),
        ("Q5_K", 17),
        ("Q6_K", 18),
    ] {
        let found = paths.merge(&out, ty, 1.0);
        assert_eq!(get(&found, "general.file_type"), Some(&Val::U32(id)), "{ty}");
        assert_eq!(get(&found, "general.quantization_version"), Some(&Val::U32(2)), "{ty}");
    }
    // A wrong or missing claim gives way to what most tensors are; a right one stays.
    for (claim, id) in [(Some(1), 15), (None, 15), (Some(14), 14), (Some(999), 15)] {
        let mut trio = trio.clone();
        requantise(&mut trio.cp, Q4_K);
        trio.cp.keys.retain(|(key, _)| key != b"general.file_type");
        if let Some(claim) = claim {
            trio.cp.set("general.file_type", Val::U32(claim));
        }
        let found = trio.write(folder.path()).merge(&out, "keep", 1.0);
        assert_eq!(get(&found, "general.file_type"), Some(&Val::U32(id)), "{claim:?}");
    }
}

#[test]
fn provenance_says_from_what_but_not_where_or_when() {
    let trio = Trio::small();
    let mut files = Vec::new();
    for prefix in ["one-place-", "another-"] {
        let folder = tempfile::Builder::new().prefix(prefix).tempdir().unwrap();
        let out = folder.path().join(format!("{prefix}out.gguf"));
        let found = trio.write(folder.path()).merge(&out, "Q8_0", 0.5);
        assert_eq!(get(&found, "general.base_model.count"), Some(&Val::U32(3)));
        for (i, name) in ["small cp", "small base", "small chat"].iter().enumerate() {
            assert_eq!(get(&found, &format!("general.base_model.{i}.name")), Some(&Val::str(name)));
        }
        assert_eq!(get(&found, "chatvec.sources"), Some(&Val::strs(["model", "base", "chat"])));
        assert_eq!(get(&found, "chatvec.ratios"), Some(&Val::Array(crate::support::kind::F32, vec![Val::F32(0.5)])));
        assert_eq!(get(&found, "chatvec.output_type"), Some(&Val::str("Q8_0")));
        let keys: HashSet<&[u8]> =
            found.keys.iter().map(|(k, _)| &k[..]).filter(|k| k.starts_with(b"chatvec.")).collect();
        assert_eq!(keys.len(), 6 + MEASURED_KEYS.len());
        let bytes = fs::read(&out).unwrap();
        let place = folder.path().file_name().unwrap().as_encoded_bytes();
        assert!(!bytes.windows(place.len()).any(|w| w == place), "the folder's name is in the file");
        files.push(bytes);
    }
    assert!(files[0] == files[1], "the same merge from another place is another file");
}

#[test]
fn the_same_merge_twice_is_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Trio::small().write(folder.path());
    let [a, b] = ["a.gguf", "b.gguf"].map(|name| {
        let out = folder.path().join(name);
        paths.command(&out, &["--type", "Q6_K", "--pure"]).says(0, &[]);
        fs::read(out).unwrap()
    });
    assert!(a == b);
}

#[test]
fn what_was_measured_is_in_the_header_as_in_the_report() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let ran: Ran = Trio::small().write(folder.path()).command(&out, &["--type", "Q4_K", "--pure", "--json"]);
    let (json, found) = (ran.json(), read(&out));
    for key in MEASURED_KEYS {
        let reported = json["total"][key.strip_prefix("chatvec.").unwrap()].as_f64().unwrap();
        let Some(Val::F64(stored)) = get(&found, key) else { panic!("no {key}") };
        assert_eq!(stored.to_bits(), reported.to_bits(), "{key}: {stored} and {reported}");
    }
    // A zero vector has no survival.
    let mut trio = Trio::small();
    trio.chat = trio.base.clone();
    let found = trio.write(folder.path()).merge(&folder.path().join("zero.gguf"), "keep", 1.0);
    assert!(matches!(get(&found, "chatvec.survival"), Some(Val::F64(v)) if v.is_nan()));
}

#[test]
fn two_vectors_are_added_one_after_the_other_in_f32() {
    let folder = tempfile::tempdir().unwrap();
    let trio = Trio::small();
    let mut second = drifted(&trio.base, "another chat", 11, 0.004);
    second.set("tokenizer.chat_template", Val::str(crate::trio::TEMPLATE));
    let paths = trio.write(folder.path());
    let chats = [paths.chat.clone(), second.write(folder.path(), "second.gguf")];
    let mut args = vec!["apply".into(), "--model".into(), paths.cp.clone().into_os_string()];
    for (chat, (patch, ratio)) in chats.iter().zip([("a.gguf", "0.8"), ("b.gguf", "-0.3")]) {
        let patch = folder.path().join(patch);
        let (base, chat) = (paths.base.as_os_str(), chat.as_os_str());
        let extract = [
            "extract".as_ref(),
            "--base".as_ref(),
            base,
            "--chat".as_ref(),
            chat,
            "-e".as_ref(),
            "f32".as_ref(),
            "-o".as_ref(),
            patch.as_os_str(),
        ];
        crate::trio::chatvec(extract).says(0, &[]);
        args.push(format!("{}@{ratio}", patch.display()).into());
    }
    let out = folder.path().join("out.gguf");
    args.extend(["-o".into(), out.clone().into_os_string(), "--type".into(), "F32".into()]);
    crate::trio::chatvec(args).says(0, &[]);
    for (i, found) in read(&out).tensors.iter().enumerate() {
        let [base, chat, cp] = [&trio.base, &trio.chat, &trio.cp].map(|draft| weights(&draft.tensors[i]));
        let second = weights(&second.tensors[i]);
        let expected: Vec<f32> = (0..cp.len())
            .map(|j| match name(found) {
                "rope_freqs.weight" => cp[j],
                _ => cp[j] + (0.8f32 * (chat[j] - base[j]) + -0.3f32 * (second[j] - base[j])),
            })
            .collect();
        assert_eq!(decode(found.ty, &found.data()), expected, "{}", name(found));
    }
}

/// Asks for the end of the run once something is written, and counts.
#[derive(Default)]
struct Impatient {
    chunks: AtomicU64,
}

impl pipeline::Observer for Impatient {
    fn written(&self, _bytes: u64) {
        self.chunks.fetch_add(1, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.chunks.load(Ordering::Relaxed) > 0
    }
}

#[test]
fn a_cancelled_run_ends_at_the_next_chunk_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Paths::bundled();
    let inputs = paths.inputs(1.0);
    let plan = paths.plan(&inputs, "keep");
    let observer = Impatient::default();
    let budget = Budget { memory: 64 << 20, threads: 1 };
    let out = folder.path().join("out.gguf");
    let error = pipeline::write(&plan, &inputs, &out, &WriteOptions::default(), &observer, &budget).unwrap_err();
    assert!(matches!(error, pipeline::Error::Cancelled), "{error}");
    assert_eq!(observer.chunks.into_inner(), 1, "chunks of 30 tensors that were written");
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

#[test]
fn a_tensor_without_rows_costs_nothing_however_long_they_would_be() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    trio.each(|draft| {
        for ne in [&[1 << 34, 0][..], &[0, 3], &[0]] {
            let name = format!("empty.{}.weight", draft.tensors.len());
            draft.tensors.push(Tensor { data: Some(Vec::new()), ..Tensor::new(&name, ne, F32) });
        }
    });
    let paths = trio.write(folder.path());
    paths.command(&folder.path().join("out.gguf"), &[]).is_quiet();
    let plain = ["--type", "Q8_0", "--overwrite"];
    paths.command(&folder.path().join("out.gguf"), &plain).is_quiet();
}

#[test]
fn the_weight_that_spoils_a_block_is_the_one_that_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    trio.each(|draft| requantise(draft, F32));
    change(trio.chat.tensor("blk.0.attn_k.weight"), |weights| weights[300] = 3e8);
    let paths = trio.write(folder.path());
    let out = folder.path().join("out.gguf");
    for ty in ["F16", "Q8_0", "Q4_0"] {
        let error = paths.try_merge(&out, ty, 1.0, &Budget::default()).unwrap_err();
        assert!(matches!(error, pipeline::Error::Range { index: 300, .. }), "{ty}: {error}");
    }
    // Beyond f32 itself no type helps.
    change(trio.chat.tensor("blk.0.attn_k.weight"), |weights| weights[300] = 3e38);
    let error = trio.write(folder.path()).try_merge(&out, "F32", 10.0, &Budget::default()).unwrap_err();
    assert!(error.to_string().contains("use a smaller ratio"), "{error}");
}

#[test]
fn what_llama_cpp_would_refuse_is_not_taken_from_chat() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    let out = folder.path().join("out.gguf");
    trio.chat.set("tokenizer.ggml.eos_token_id", Val::str("seven"));
    trio.chat.set("tokenizer.ggml.eot_token_id", Val::U32(8));
    trio.chat.keys.retain(|(key, _)| key != b"tokenizer.ggml.tokens");
    trio.chat.set("tokenizer.ggml.token_type", Val::Array(kind::I32, vec![Val::I32(3); 2]));
    let ran = trio.write(folder.path()).command(&out, &[]);
    ran.says(0, &["left out: tokenizer.ggml.eos_token_id, tokenizer.ggml.eot_token_id, tokenizer.ggml.token_type"]);
    let found = read(&out);
    assert_eq!(get(&found, "tokenizer.ggml.eos_token_id"), Some(&Val::U32(5)));
    assert_eq!(get(&found, "tokenizer.ggml.token_type"), get(&trio.cp, "tokenizer.ggml.token_type"));
}

#[test]
fn the_identity_of_the_model_is_that_of_an_ancestor() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    trio.cp.set("general.uuid", Val::str("1234"));
    trio.cp.set("general.description", Val::str("plain text only"));
    let found = trio.write(folder.path()).merge(&folder.path().join("out.gguf"), "keep", 1.0);
    assert_eq!(get(&found, "general.uuid"), None);
    assert_eq!(get(&found, "general.description"), None);
    assert_eq!(get(&found, "general.name"), Some(&Val::str("small cp + chat vector")));
    assert_eq!(get(&found, "general.base_model.0.name"), Some(&Val::str("small cp")));
    assert_eq!(get(&found, "general.base_model.0.uuid"), Some(&Val::str("1234")));
}

#[test]
fn a_tensor_that_is_left_out_is_looked_at_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    change(trio.cp.tensor("token_embd.weight"), |weights| weights[700] = f32::NAN);
    let out = folder.path().join("out.gguf");
    let ran = trio.write(folder.path()).command(&out, &["--embeddings", "skip"]);
    ran.says(3, &["cp.gguf", "token_embd.weight", "weight 700 is NaN"]);
    assert!(!out.exists());
    // What is no weight may hold what it likes.
    let mut trio = Trio::small();
    change(trio.cp.tensor("rope_freqs.weight"), |weights| weights[3] = f32::INFINITY);
    trio.write(folder.path()).command(&out, &[]).is_quiet();
}

#[test]
fn a_merge_in_shards_has_the_tensors_of_one_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let paths = Paths::bundled();
    paths.command(&at("whole.gguf"), &[]).says(0, &[]);
    let ran = paths.command(&at("out.gguf"), &["--split-max-size", "500K", "--json"]);
    ran.says(0, &[]);
    let json = ran.json();
    let n = json["output_files"].as_u64().unwrap() as usize;
    assert!(n > 1);
    let first = at(&shard_name("out", 1, n));
    assert_eq!(json["output"], first.to_str().unwrap());
    let (set, whole) = (open(&first), open(&at("whole.gguf")));
    assert_eq!(set.files().len(), n);
    assert!(set.tensors().map(|t| (t.name(), t.ty(), t.ne())).eq(whole.tensors().map(|t| (t.name(), t.ty(), t.ne()))));
    for id in 0..whole.n_tensors() {
        let data = |model: &Model| {
            let mut data = vec![0; model.tensor(id).size() as usize];
            model.read(id, 0, &mut data).unwrap();
            data
        };
        assert!(data(&set) == data(&whole), "{}", whole.tensor(id).name());
    }
    // What was measured is in the header of the first.
    assert_eq!(set.metadata().get("chatvec.survival"), whole.metadata().get("chatvec.survival"));

    paths.command(&at("out.gguf"), &["--split-max-size", "500K"]).says(6, &["exists"]);
    paths.command(&at("other.gguf"), &["--split-max-size", "0"]).says(2, &["--split-max-size"]);
    paths.command(&at("other.gguf"), &["--split-max-size", "1"]).says(0, &[]);
}
