//! `chatvec quantize`: what it writes, what it refuses, and the options it shares with merge.

use std::fs;
use std::path::{Path, PathBuf};

use chatvec::ggml::GgmlType;
use chatvec::plan::{FileType, mixture};
use serde_json::Value as Json;

use crate::support::{Draft, Val, split, write_split};
use crate::trio::{
    F16, F32, Paths, Q4_K, Q8_0, Ran, Trio, assert_same_tensors, bundled, change, chatvec, encode, get, name, names,
    open, read, requantise, store, weights,
};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A folder with one model.
struct Folder {
    folder: tempfile::TempDir,
    model: PathBuf,
    out: PathBuf,
}

fn folder(model: &Draft) -> Folder {
    let folder = tempfile::tempdir().unwrap();
    let model = model.write(folder.path(), "model.gguf");
    let out = folder.path().join("out.gguf");
    Folder { folder, model, out }
}

impl Folder {
    fn quantize(&self, options: &[&str]) -> Ran {
        chatvec([&["quantize", text(&self.model), "-o", text(&self.out)], options].concat())
    }

    /// The output of a run that must succeed.
    #[track_caller]
    fn output(&self, options: &[&str]) -> Draft {
        self.quantize(&[options, &["--overwrite"]].concat()).says(0, &[]);
        read(&self.out)
    }

    #[track_caller]
    fn wrote_nothing(&self) {
        assert_eq!(names(self.folder.path()), ["model.gguf"]);
    }
}

fn cp() -> Draft {
    Trio::small().cp
}

fn type_of(draft: &Draft, name: &str) -> GgmlType {
    let tensor = draft.tensors.iter().find(|t| t.name == name.as_bytes()).expect(name);
    GgmlType::from_id(tensor.ty).unwrap()
}

#[test]
fn each_tensor_is_encoded_in_the_type_of_the_mixture_and_keeps_its_place() {
    let model = read(&bundled("cp-de"));
    for file_type in ["Q4_K_M", "Q5_K_S", "Q3_K_L", "Q4_0", "Q6_K", "Q8_0", "BF16", "F32"] {
        let at = folder(&model);
        let found = at.output(&["--type", file_type]);
        let file_type = FileType::from_name(file_type).unwrap();
        let header = open(&at.model);
        let tensors: Vec<mixture::Tensor<'_>> =
            header.tensors().map(|t| mixture::Tensor { name: t.name(), ne: t.ne(), ty: t.ty() }).collect();
        let options = mixture::Options::default();
        let choices = mixture::choose(header.metadata(), &tensors, file_type, &options, false).unwrap();
        let mut expected = model.clone();
        for (tensor, choice) in expected.tensors.iter_mut().zip(choices) {
            if choice.ty.id() != tensor.ty {
                tensor.data = Some(encode(choice.ty.id(), &weights(tensor)));
                tensor.ty = choice.ty.id();
            }
        }
        assert_same_tensors(&found, &expected);
        expected.set("general.file_type", Val::U32(file_type.id));
        expected.set("general.quantization_version", Val::U32(2));
        assert_eq!(found.keys, expected.keys);
    }
}

#[test]
fn the_same_type_is_a_copy_of_the_bytes() {
    let mut model = cp();
    // Encoding what was decoded would give other bytes.
    requantise(&mut model, Q4_K);
    let at = folder(&model);
    for options in [["--type", "Q4_K", "--pure"], ["--type", "COPY", "--pure"], ["--type", "keep", "--json"]] {
        assert_same_tensors(&at.output(&options), &model);
    }
}

#[test]
fn numbers_and_llama_quantizes_order_will_do() {
    let at = folder(&cp());
    let expected = at.output(&["--type", "Q4_K_M"]);
    assert_same_tensors(&at.output(&["-t", "15"]), &expected);
    fs::remove_file(&at.out).unwrap();
    chatvec(["quantize", text(&at.model), text(&at.out), "q4_k"]).is_quiet();
    assert_same_tensors(&read(&at.out), &expected);
    for args in [&["out.gguf"][..], &["out.gguf", "Q8_0", "4"], &["out.gguf", "Q8_0", "-t", "Q8_0"], &["-t", "Q8_0"]] {
        chatvec([&["quantize", text(&at.model)], args].concat()).says(2, &[]);
    }
}

#[test]
fn tied_embeddings_get_the_type_of_the_output() {
    let mut tied = cp();
    tied.tensors.retain(|t| t.name != b"output.weight");
    let found = folder(&tied).output(&["--type", "Q4_K_M"]);
    assert_eq!(type_of(&found, "token_embd.weight"), GgmlType::Q6_K);
    let untied = folder(&cp()).output(&["--type", "Q4_K_M"]);
    assert_eq!(type_of(&untied, "token_embd.weight"), GgmlType::Q4_K);
    assert_eq!(type_of(&untied, "output.weight"), GgmlType::Q6_K);
}

#[test]
fn types_of_some_tensors_can_be_asked_for() {
    let at = folder(&cp());
    let list = at.folder.path().join("types.txt");
    fs::write(&list, "ffn_down=q5_1\nffn_.*=q4_1  attn_q=q2_k\n").unwrap();
    let found = at.output(&[
        "--type",
        "Q4_K_S",
        "--tensor-type",
        r"blk\.\d+\.ATTN_[qk]\.=q8_0",
        "--tensor-type-file",
        text(&list),
        "--token-embedding-type",
        "q3_K",
        "--leave-output-tensor",
    ]);
    for (name, ty) in [
        ("blk.0.attn_q.weight", GgmlType::Q8_0),
        ("blk.0.attn_k.weight", GgmlType::Q8_0),
        ("blk.0.attn_v.weight", GgmlType::Q5_K),
        ("blk.0.ffn_down.weight", GgmlType::Q5_1),
        ("blk.0.ffn_up.weight", GgmlType::Q4_1),
        ("token_embd.weight", GgmlType::Q3_K),
        ("output.weight", GgmlType::F16),
        ("blk.0.attn_norm.weight", GgmlType::F32),
    ] {
        assert_eq!(type_of(&found, name), ty, "{name}");
    }
    let found = at.output(&["--type", "Q4_K_S", "--output-tensor-type", "bf16"]);
    assert_eq!(type_of(&found, "output.weight"), GgmlType::BF16);
    at.quantize(&["--type", "F16", "--tensor-type", "attn_q=q8_0", "--overwrite"])
        .says(0, &["changes nothing with F16"]);
}

#[test]
fn arguments_that_make_no_sense_say_what_would() {
    let at = folder(&cp());
    for (options, words) in [
        (&["--type", "Q4_X"][..], &["--type", "\"Q4_X\"", "Q4_K_M", "Q8_0", "BF16"][..]),
        (&["--type", "5"], &["--type", "\"5\""]),
        (&["--type", "Q4_K", "--tensor-type", "attn_q"], &["--tensor-type", "attn_q", "REGEX=TYPE"]),
        (&["--type", "Q4_K", "--tensor-type", "attn_q=q9"], &["--tensor-type", "q9", "no ggml type"]),
        (&["--type", "Q4_K", "--tensor-type", "attn_[q=q8_0"], &["--tensor-type", "attn_[q"]),
        (&["--type", "Q4_K", "--output-tensor-type", "q9"], &["--output-tensor-type", "one of", "q8_0", "q9"]),
        (&["--type", "COPY", "--leave-output-tensor"], &["--type", "keep"]),
    ] {
        at.quantize(options).says(2, words);
    }
    at.quantize(&["--type", "Q4_K", "--tensor-type-file", "missing.txt"])
        .says(7, &["--tensor-type-file", "missing.txt"]);
    at.quantize(&["--type", "Q4_K", "--tensor-type", "attn_q=i32"]).says(5, &["blk.0.attn_q.weight", "I32"]);
    at.wrote_nothing();
}

#[test]
fn quantised_tensors_are_quantised_again_only_when_asked() {
    let mut model = cp();
    requantise(&mut model, Q8_0);
    let at = folder(&model);
    for file_type in ["Q4_K_M", "F16"] {
        let refused = at.quantize(&["--type", file_type]);
        refused.says(5, &["token_embd.weight", "Q8_0", "--allow-requantize"]);
        at.wrote_nothing();
    }
    // Nothing but copies.
    assert_same_tensors(&at.output(&["--type", "Q8_0"]), &model);
    let found = at.output(&["--type", "Q4_K", "--pure", "--allow-requantize"]);
    assert_eq!(type_of(&found, "blk.0.ffn_up.weight"), GgmlType::Q4_K);
}

#[test]
fn types_that_need_an_importance_matrix_name_the_tensor() {
    let at = folder(&cp());
    at.quantize(&["--type", "Q2_K_S"]).says(5, &["blk.0.", "Q2_K", "importance matrix"]);
    at.wrote_nothing();
    // Sizes can be known without.
    let ran = at.quantize(&["--type", "Q2_K_S", "--dry-run"]);
    ran.says(0, &["warning: ", "importance matrix"]);
    at.wrote_nothing();
}

#[test]
fn a_dry_run_says_what_a_run_does() {
    let at = folder(&cp());
    let ran = at.quantize(&["--type", "Q4_K_M", "--dry-run", "--json"]);
    at.wrote_nothing();
    let planned = ran.is_quiet().json();
    // Without a place, too.
    let ran = chatvec(["quantize", text(&at.model), "-t", "Q4_K_M", "--dry-run"]);
    for tensor in &cp().tensors {
        assert!(ran.is_quiet().out.contains(name(tensor)), "{}", ran.out);
    }
    let done = at.quantize(&["--type", "Q4_K_M", "--json"]).is_quiet().json();
    for key in ["output_bytes", "tensor_bytes_before", "tensor_bytes", "bits_per_weight", "types", "tensors"] {
        assert_eq!(planned[key], done[key], "{key}");
    }
    assert_eq!(done["output_bytes"].as_u64(), Some(fs::metadata(&at.out).unwrap().len()));
    let written = read(&at.out);
    for (tensor, json) in written.tensors.iter().zip(done["tensors"].as_array().unwrap()) {
        assert_eq!(json["name"].as_str(), Some(name(tensor)));
        assert_eq!(json["type"].as_str(), Some(&*type_of(&written, name(tensor)).to_string()));
    }
}

#[test]
fn rows_that_do_not_divide_fall_back_and_that_is_said() {
    let mut model = cp();
    for tensor in model.tensors.iter_mut().filter(|t| t.ne == [256, 256]) {
        tensor.ne = vec![96, 256];
        store(tensor, F16, &vec![0.5; 96 * 256]);
    }
    let at = folder(&model);
    let ran = at.quantize(&["--type", "Q4_K_M", "--json"]);
    ran.says(0, &["warning: 4 tensors are Q5_0 instead of Q4_K", "warning: 1 tensors are Q8_0 instead of Q6_K"]);
    let found = read(&at.out);
    assert_eq!(type_of(&found, "blk.0.attn_q.weight"), GgmlType::Q5_0);
    assert_eq!(type_of(&found, "blk.0.ffn_down.weight"), GgmlType::Q8_0);
    let warnings = ran.json()["warnings"].as_array().unwrap().clone();
    let fell = |w: &&Json| w["wanted"] == "Q4_K" && w["type"] == "Q5_0" && w["tensors"].as_array().unwrap().len() == 4;
    assert!(warnings.iter().any(|w| fell(&w)), "{warnings:?}");
    let list = ["--type", "Q4_K_M", "--token-embedding-type", "q4_K", "--output-tensor-type", "q4_K"];
    let mut odd = cp();
    for tensor in odd.tensors.iter_mut().filter(|t| t.name.ends_with(b"embd.weight")) {
        tensor.ne = vec![96, 8];
        store(tensor, F16, &[0.5; 96 * 8]);
    }
    folder(&odd).quantize(&list).says(5, &["token_embd.weight", "Q4_K", "96"]);
}

#[test]
fn weights_that_are_no_numbers_are_refused_by_tensor_and_index() {
    for (which, file_type) in
        [("blk.0.ffn_up.weight", "Q4_K"), ("blk.0.attn_norm.weight", "Q4_K"), ("output.weight", "COPY")]
    {
        for bad in [f32::NAN, f32::NEG_INFINITY] {
            let mut model = cp();
            change(model.tensor(which), |values| values[131] = bad);
            let at = folder(&model);
            at.quantize(&["--type", file_type]).says(3, &["model.gguf", which, "weight 131", &bad.to_string()]);
            at.wrote_nothing();
        }
    }
    let mut model = cp();
    store(model.tensor("output.weight"), F32, &[1e20; 256 * 8]);
    let at = folder(&model);
    at.quantize(&["--type", "F16"]).says(5, &["output.weight", "F16", "cannot hold"]);
    at.wrote_nothing();
}

#[test]
fn the_model_is_never_overwritten() {
    let at = folder(&cp());
    let before = fs::read(&at.model).unwrap();
    let ran = chatvec(["quantize", text(&at.model), "-o", text(&at.model), "-t", "Q8_0", "--overwrite"]);
    ran.says(6, &["model.gguf"]);
    assert_eq!(fs::read(&at.model).unwrap(), before);
    fs::write(&at.out, b"precious").unwrap();
    at.quantize(&["-t", "Q8_0"]).says(6, &["out.gguf", "--overwrite"]);
    assert_eq!(fs::read(&at.out).unwrap(), b"precious");
}

#[test]
fn any_alignment_is_kept_or_raised_to_what_loads() {
    let expected = folder(&cp()).output(&["--type", "Q4_K_M"]);
    for (given, kept) in [(128, 128), (8, 32), (32, 32)] {
        let mut model = cp();
        model.align(given);
        let at = folder(&model);
        let found = at.output(&["--type", "Q4_K_M"]);
        assert_same_tensors(&found, &expected);
        assert_eq!(get(&found, "general.alignment"), Some(&Val::U32(kept)));
        assert_eq!(found.alignment, u64::from(kept));
        assert!(open(&at.out).tensors().all(|t| t.offset().is_multiple_of(kept.into())));
    }
}

#[test]
fn a_split_model_becomes_one_file() {
    let expected = folder(&cp()).output(&["--type", "Q5_K_M"]);
    let folder = tempfile::tempdir().unwrap();
    let shards = split(&cp(), 3);
    write_split(folder.path(), &shards);
    let out = folder.path().join("out.gguf");
    // By any of its shards.
    for (shard, _) in &shards {
        let shard = folder.path().join(shard);
        chatvec(["quantize", text(&shard), "-o", text(&out), "-t", "Q5_K_M", "--overwrite"]).is_quiet();
        let found = read(&out);
        assert_same_tensors(&found, &expected);
        assert_eq!(found.keys, expected.keys);
    }
}

#[test]
fn threads_and_memory_change_no_byte() {
    let at = folder(&read(&bundled("cp-de")));
    at.output(&["--type", "Q4_K_M"]);
    let expected = fs::read(&at.out).unwrap();
    for options in [["--threads", "1", "--memory", "1MiB"], ["--threads", "7", "--memory", "64MiB"]] {
        at.output(&[&["--type", "Q4_K_M"], &options[..]].concat());
        assert!(fs::read(&at.out).unwrap() == expected, "{options:?}");
    }
    at.quantize(&["--type", "Q4_K_M", "--memory", "1KiB", "--overwrite"]).says(5, &["--memory"]);
}

#[test]
fn a_merge_takes_the_same_types() {
    let paths = Paths::bundled();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    paths.command(&at("f32.gguf"), &["--type", "F32"]).is_quiet();
    let options = ["--type", "Q4_K_M", "--tensor-type", "attn_k=q5_0", "--output-tensor-type", "q5_K"];
    paths.command(&at("merged.gguf"), &options).says(0, &[]);
    chatvec([&["quantize", text(&at("f32.gguf")), "-o", text(&at("two.gguf"))], &options[..]].concat()).is_quiet();
    let (merged, two) = (read(&at("merged.gguf")), read(&at("two.gguf")));
    assert_same_tensors(&merged, &two);
    assert_eq!(type_of(&merged, "blk.0.attn_k.weight"), GgmlType::Q5_0);
    assert_eq!(get(&merged, "general.file_type"), get(&two, "general.file_type"));
    // What was measured of the merge stays in the file that is made of it.
    let f32 = read(&at("f32.gguf"));
    for key in ["chatvec.survival", "chatvec.noise", "chatvec.ratios", "tokenizer.chat_template"] {
        assert!(get(&f32, key).is_some() && get(&f32, key) == get(&two, key), "{key}");
    }
    let asked = "Q4_K_M output=Q5_K attn_k=Q5_0";
    assert_eq!(get(&merged, "chatvec.output_type"), Some(&Val::str(asked)));
}

#[test]
fn only_models_are_quantised() {
    for (key, value, code, word) in [
        ("general.type", "imatrix", 4, "imatrix"),
        ("general.type", "chat-vector", 4, "chatvec apply"),
        ("general.type", "mmproj", 0, ""),
    ] {
        let mut model = cp();
        model.set(key, Val::str(value));
        folder(&model).quantize(&["--type", "Q8_0"]).says(code, &[word]);
    }
    let mut nameless = cp();
    nameless.keys.retain(|(key, _)| key != b"general.architecture");
    folder(&nameless).quantize(&["--type", "Q8_0"]).says(4, &["general.architecture"]);
    let mut layerless = cp();
    layerless.keys.retain(|(key, _)| key != b"llama.block_count");
    folder(&layerless).quantize(&["--type", "Q4_K_M"]).says(5, &["llama.block_count", "--pure"]);
    folder(&layerless).quantize(&["--type", "Q4_K_M", "--pure"]).says(0, &[]);
}
