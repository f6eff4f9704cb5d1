//! Patch files: a vector by itself gives what the merge gives, in every encoding, and carries what an apply needs.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use chatvec::ggml::GgmlType;
use chatvec::quants;

use crate::support::Val;
use crate::trio::{
    F32, Paths, Ran, TEMPLATE, Trio, assert_same_tensors, chatvec, drifted, get, name, names, read, weights,
};

fn extract(paths: &Paths, encoding: &str, patch: &Path) -> Ran {
    let mut args: Vec<OsString> = vec!["extract".into(), "--json".into(), "-e".into(), encoding.into()];
    for (flag, path) in [("--base", &*paths.base), ("--chat", &*paths.chat), ("-o", patch)] {
        args.extend([flag.into(), path.into()]);
    }
    chatvec(args)
}

fn apply(model: &Path, patches: &[&str], out: &Path, options: &[&str]) -> Ran {
    let mut args: Vec<OsString> = vec!["apply".into(), "--model".into(), model.into(), "-o".into(), out.into()];
    args.extend(patches.iter().chain(options).map(OsString::from));
    chatvec(args)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_f32_patch_gives_the_tensors_of_the_merge() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (trio, paths) in [("bundled", Paths::bundled()), ("small", Trio::small().write(folder.path()))] {
        let patch = at(&format!("{trio}-patch.gguf"));
        extract(&paths, "f32", &patch).says(0, &[]);
        for (ty, ratio) in [("keep", "1"), ("Q4_K", "1"), ("F32", "0.37"), ("keep", "-0.5"), ("Q8_0", "-0.5")] {
            let (applied, merged) = (at("applied.gguf"), at("merged.gguf"));
            // A patch has no rows of its own to take.
            let options = ["--type", ty, "--pure", "--overwrite", "--force", "--special-tokens", "none"];
            apply(&paths.cp, &[&format!("{}@{ratio}", text(&patch))], &applied, &options).says(0, &[]);
            paths.command(&merged, &[&options[..], &["--ratio", ratio]].concat()).says(0, &[]);
            assert_same_tensors(&read(&applied), &read(&merged));
        }
    }
}

#[test]
fn every_encoding_can_be_applied_and_holds_most_of_the_vector() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Paths::bundled();
    // A vector is no more than noise in less than 2.5 bits, and its weights are below the range of NVFP4's scales, which is
    // said when such a patch is made.
    let holds = |ty: &GgmlType| ty.bits_per_weight() >= 2.5 && *ty != GgmlType::NVFP4;
    for ty in quants::supported().filter(holds) {
        let patch = folder.path().join(format!("{ty}.gguf"));
        let ran = extract(&paths, ty.name(), &patch);
        let total = &ran.says(0, &[]).json()["total"];
        let (gain, error) = (total["survival"].as_f64().unwrap(), total["noise"].as_f64().unwrap());
        // By numpy and ggml on this trio: Q4_K .06, Q3_K .13, Q2_K .24, MXFP4 .11.
        let bits = ty.bits_per_weight();
        let (off, most) = match bits {
            16.0.. => (1e-4, 0.003),
            8.0.. => (1e-3, 0.01),
            5.5.. => (0.005, 0.05),
            4.5.. => (0.01, 0.10),
            4.0.. => (0.03, 0.12),
            _ => (0.04, 0.27),
        };
        assert!((gain - 1.0).abs() <= off, "{ty}: gain {gain}");
        assert!(error <= most, "{ty}: error {error}");
        let found = read(&patch);
        let embedding = found.tensors.iter().find(|t| name(t) == "token_embd.weight").unwrap();
        assert_eq!(embedding.ty, ty.id());
        assert!(found.tensors.iter().filter(|t| name(t).contains("norm")).all(|t| t.ty == F32));
        let out = folder.path().join("out.gguf");
        apply(&paths.cp, &[text(&patch)], &out, &["--type", "F32", "--overwrite"]).says(0, &[]);
    }
    let ran = extract(&paths, "iq2_xs", &folder.path().join("x.gguf"));
    ran.says(5, &["IQ2_XS", "importance matrix", "IQ2_S"]);
    extract(&paths, "q8_k", &folder.path().join("x.gguf")).says(5, &["Q8_K", "no encoder"]);
    extract(&paths, "q9_k", &folder.path().join("x.gguf")).says(2, &["--encoding", "q9_k"]);
    assert!(!folder.path().join("x.gguf").exists());
}

#[test]
fn a_patch_holds_the_difference_in_f32() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    let paths = trio.write(folder.path());
    let patch = folder.path().join("patch.gguf");
    extract(&paths, "f32", &patch).says(0, &[]);
    let found = read(&patch);
    let all: Vec<&str> = trio.chat.tensors.iter().map(name).filter(|n| *n != "rope_freqs.weight").collect();
    assert_eq!(found.tensors.iter().map(name).collect::<Vec<_>>(), all, "rope factors are no weights");
    for tensor in &found.tensors {
        let [chat, base] = [&mut trio.chat, &mut trio.base].map(|draft| weights(draft.tensor(name(tensor))));
        let expected: Vec<f32> = chat.iter().zip(&base).map(|(c, b)| c - b).collect();
        assert_eq!(weights(tensor), expected, "{}", name(tensor));
    }
}

#[test]
fn a_patch_carries_vocabulary_template_and_hyperparameters() {
    let folder = tempfile::tempdir().unwrap();
    let trio = Trio::small();
    let paths = trio.write(folder.path());
    let patch = folder.path().join("patch.gguf");
    extract(&paths, "q8_0", &patch).says(0, &[]);
    let found = read(&patch);
    assert_eq!(get(&found, "general.type"), Some(&Val::str("chat-vector")));
    assert_eq!(get(&found, "chatvec.patch.version"), Some(&Val::U32(1)));
    assert_eq!(get(&found, "chatvec.patch.encoding"), Some(&Val::str("Q8_0")));
    assert_eq!(get(&found, "general.base_model.count"), Some(&Val::U32(2)));
    assert!(matches!(get(&found, "chatvec.survival"), Some(Val::F64(v)) if (v - 1.0).abs() < 0.01));
    for (key, value) in &trio.chat.keys {
        let key = std::str::from_utf8(key).unwrap();
        if key.starts_with("tokenizer.") || key.starts_with("llama.") || key == "general.architecture" {
            assert_eq!(get(&found, key), Some(value), "{key}");
        }
    }
    // And the model that it is applied to has them then, without the chat model at hand.
    let out = folder.path().join("out.gguf");
    fs::remove_file(&paths.chat).unwrap();
    apply(&paths.cp, &[text(&patch)], &out, &[]).says(0, &[]);
    let out = read(&out);
    assert_eq!(get(&out, "tokenizer.chat_template"), Some(&Val::str(TEMPLATE)));
    assert_eq!(get(&out, "tokenizer.ggml.eos_token_id"), Some(&Val::U32(7)));
    assert_eq!(get(&out, "general.name"), Some(&Val::str("small cp + chat vector")));
    assert_eq!(get(&out, "chatvec.sources"), Some(&Val::strs(["model", "patch"])));
    assert_eq!(get(&out, "general.type"), None, "a merged model is no patch");
}

#[test]
fn a_patch_of_another_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Trio::small().write(folder.path());
    let patch = folder.path().join("patch.gguf");
    extract(&paths, "q8_0", &patch).says(0, &[]);
    let out = folder.path().join("out.gguf");
    for (version, says) in [
        (Some(Val::U32(2)), "found 2; a newer chatvec made it"),
        (Some(Val::U32(0)), "found 0"),
        (Some(Val::str("1")), "found no number"),
        (None, "found no number"),
    ] {
        let mut draft = read(&patch);
        draft.keys.retain(|(key, _)| key != b"chatvec.patch.version");
        if let Some(version) = version {
            draft.set("chatvec.patch.version", version);
        }
        let spoiled = draft.write(folder.path(), "spoiled.gguf");
        let ran = apply(&paths.cp, &[text(&spoiled)], &out, &[]);
        ran.says(5, &["spoiled.gguf", "chatvec.patch.version", says]);
        assert!(!out.exists());
    }
}

/// A patch, the ratio it is applied at, and the weights of its tensors.
type Applied = (PathBuf, f32, Vec<Vec<f32>>);

/// Three patches of the small base, in f32.
fn three(folder: &Path) -> (Trio, Paths, Vec<Applied>) {
    let trio = Trio::small();
    let mut paths = trio.write(folder);
    let mut patches = Vec::new();
    for (i, ratio) in [0.8f32, -0.3, 1.7].into_iter().enumerate() {
        let mut chat = drifted(&trio.base, "chat", 40 + i as u64, 0.003);
        chat.set("tokenizer.chat_template", Val::str(&format!("template {i}")));
        paths.chat = chat.write(folder, &format!("chat-{i}.gguf"));
        let patch = folder.join(format!("patch-{i}.gguf"));
        extract(&paths, "f32", &patch).says(0, &[]);
        patches.push((patch.clone(), ratio, read(&patch).tensors.iter().map(weights).collect()));
    }
    (trio, paths, patches)
}

#[test]
fn patches_are_added_in_the_order_they_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (trio, paths, patches) = three(folder.path());
    let models: Vec<Vec<f32>> =
        trio.cp.tensors.iter().filter(|t| name(t) != "rope_freqs.weight").map(weights).collect();
    let mut outputs = Vec::new();
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let args: Vec<String> = order.iter().map(|&i| format!("{}@{}", text(&patches[i].0), patches[i].1)).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let out = folder.path().join("out.gguf");
        apply(&paths.cp, &args, &out, &["--type", "F32", "--overwrite"]).says(0, &[]);
        let found = read(&out);
        assert_eq!(get(&found, "tokenizer.chat_template"), Some(&Val::str(&format!("template {}", order[0]))));
        let tensors = found.tensors.iter().filter(|t| name(t) != "rope_freqs.weight");
        let mut bits = Vec::new();
        for (t, tensor) in tensors.enumerate() {
            for (j, &found) in weights(tensor).iter().enumerate() {
                let mut delta = patches[order[0]].1 * patches[order[0]].2[t][j];
                for &i in &order[1..] {
                    delta += patches[i].1 * patches[i].2[t][j];
                }
                assert_eq!(found, models[t][j] + delta, "{order:?} {}: weight {j}", name(tensor));
                bits.push(found.to_bits());
            }
        }
        outputs.push(bits);
    }
    assert_ne!(outputs[0], outputs[1], "sums of floating-point numbers depend on their order");
}

#[test]
fn the_ratio_is_behind_the_last_at_sign_unless_a_file_has_that_name() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Trio::small().write(folder.path());
    let patch = folder.path().join("patch.gguf");
    extract(&paths, "f32", &patch).says(0, &[]);
    let out = folder.path().join("out.gguf");
    for (file, suffix, ratio) in [
        ("plain.gguf", "", 1.0),
        ("plain.gguf", "@0.5", 0.5),
        ("plain.gguf", "@-2e-1", -0.2),
        ("me@home.gguf", "", 1.0),
        ("me@home.gguf", "@0.25", 0.25),
        ("a@0.5", "", 1.0),
        ("a@0.5", "@0.75", 0.75),
    ] {
        let named = folder.path().join(file);
        fs::copy(&patch, &named).unwrap();
        let arg = format!("{}{suffix}", text(&named));
        apply(&paths.cp, &[&arg], &out, &["--overwrite"]).says(0, &[]);
        let ratios = Val::Array(crate::support::kind::F32, vec![Val::F32(ratio)]);
        assert_eq!(get(&read(&out), "chatvec.ratios"), Some(&ratios), "{file}{suffix}");
        fs::remove_file(named).unwrap();
    }
    fs::remove_file(&out).unwrap();
    for (arg, code) in [("@inf", 2), ("@nan", 2), ("@1e39", 2), ("@half", 2), ("@", 2)] {
        let ran = apply(&paths.cp, &[&format!("{}{arg}", text(&patch))], &out, &[]);
        assert_eq!(ran.code, code, "{arg}: {ran:#?}");
    }
    assert_eq!(names(folder.path()), ["base.gguf", "chat.gguf", "cp.gguf", "patch.gguf"]);
}

#[test]
fn a_patch_for_another_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Trio::small().write(folder.path());
    let patch = folder.path().join("patch.gguf");
    extract(&paths, "q4_k", &patch).says(0, &[]);
    let out = folder.path().join("out.gguf");
    let ran = apply(&Paths::bundled().cp, &[text(&patch)], &out, &[]);
    ran.says(4, &["llama.block_count", "patch.gguf", "no siblings"]);
    assert!(!out.exists());
    let types: Vec<u32> = read(&patch).tensors.iter().map(|t| t.ty).collect();
    assert!(types.contains(&GgmlType::Q4_K.id()));
}

#[test]
fn extract_and_apply_are_the_merge_whichever_files_are_tied() {
    for tied in 0..8 {
        let folder = tempfile::tempdir().unwrap();
        let mut trio = Trio::small();
        for (bit, draft) in [&mut trio.base, &mut trio.chat, &mut trio.cp].into_iter().enumerate() {
            if tied >> bit & 1 == 1 {
                draft.tensors.retain(|t| t.name != b"output.weight");
            }
        }
        // A tied output next to an untied one is far from it; here only the bytes matter.
        let paths = trio.write(folder.path());
        let merged = paths.merge(&folder.path().join("merged.gguf"), "keep", 1.0);
        let (patch, out) = (folder.path().join("patch.gguf"), folder.path().join("out.gguf"));
        let extract = ["extract", "--base", text(&paths.base), "--chat", text(&paths.chat), "-e", "f32", "--force"];
        chatvec(extract.into_iter().chain(["-o", text(&patch)])).says(0, &[]);
        apply(&paths.cp, &[text(&patch)], &out, &[]).says(0, &[]);
        assert_eq!(read(&out).tensors.len(), merged.tensors.len());
        for (applied, merged) in read(&out).tensors.iter().zip(&merged.tensors) {
            assert_eq!(applied.name, merged.name);
            assert_eq!(applied.data(), merged.data(), "{tied:03b} {}", name(merged));
        }
    }
}
