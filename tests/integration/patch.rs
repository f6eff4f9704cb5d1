//! Patch files: a vector by itself gives what the merge gives, in every encoding, and carries what
//! an apply needs.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use chatvec::ggml::GgmlType;
use chatvec::quants;

use crate::support::{Draft, Tensor, Val, kind};
use crate::trio::{
    F32, Noise, Paths, Ran, TEMPLATE, Trio, assert_same_tensors, chatvec, drifted, get, name, names, read, store,
    weights,
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
            let options = ["--type", ty, "--pure", "--overwrite", "--force"];
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
    // A vector is no more than noise in less than 2.5 bits, and its weights are below the range of
    // NVFP4's scales, which is said when such a patch is made.
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
        // Not all rows of the bundled embeddings moved.
        let embedding = found.tensors.iter().find(|t| name(t) == "token_embd.weight.rows").unwrap();
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
fn types_of_few_values_hold_all_of_the_vector() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Paths::bundled();
    let patch = folder.path().join("patch.gguf");
    // With one factor for a whole tensor, by numpy on this trio: 1 bit .55, three values .37; a
    // factor for each block costs little.
    for (ty, most) in [("q1_0", 0.57), ("tq1_0", 0.39), ("tq2_0", 0.39), ("q2_0", 0.38)] {
        let mut args: Vec<OsString> =
            vec!["extract".into(), "--json".into(), "--dry-run".into(), "-e".into(), ty.into()];
        for (flag, path) in [("--base", &*paths.base), ("--chat", &*paths.chat), ("-o", &patch)] {
            args.extend([flag.into(), path.into()]);
        }
        let forecast = chatvec(args).says(0, &[]).json();
        let total = extract(&paths, ty, &patch).says(0, &[]).json()["total"].clone();
        let (gain, error) = (total["survival"].as_f64().unwrap(), total["noise"].as_f64().unwrap());
        assert!((gain - 1.0).abs() < 2e-3, "{ty}: gain {gain}");
        assert!(error < most, "{ty}: error {error}");
        assert!(
            (forecast["forecast"]["output"]["survival"].as_f64().unwrap() - gain).abs() < 2e-3,
            "{ty}: {}",
            forecast["forecast"]
        );
        let out = folder.path().join("out.gguf");
        apply(&paths.cp, &[text(&patch)], &out, &["--type", "F32", "--overwrite"]).says(0, &[]);
        fs::remove_file(&patch).unwrap();
    }
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
    let is_beside = |name: &&str| name.ends_with("_rows");
    let vector: Vec<&str> = found.tensors.iter().map(name).filter(|n| !is_beside(n)).collect();
    assert_eq!(vector, all, "rope factors are no weights");
    for tensor in found.tensors.iter().filter(|t| !is_beside(&name(t))) {
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
        (Some(Val::U32(3)), "found 3; a newer chatvec made it"),
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
        apply(&paths.cp, &[text(&patch)], &out, &["--force"]).says(0, &[]);
        assert_eq!(read(&out).tensors.len(), merged.tensors.len());
        for (applied, merged) in read(&out).tensors.iter().zip(&merged.tensors) {
            assert_eq!(applied.name, merged.name);
            assert_eq!(applied.data(), merged.data(), "{tied:03b} {}", name(merged));
        }
    }
}

/// A tensor of f32.
fn tensor(name: &str, ne: &[u64], weights: &[f32]) -> Tensor {
    let data = Some(weights.iter().flat_map(|w| w.to_le_bytes()).collect());
    Tensor { data, ..Tensor::new(name, ne, F32) }
}

/// A tensor and its weights.
type Matrix = (&'static str, Vec<f64>);

/// A small patch of f32, and one in which some of its matrices lie in parts, with what they are the
/// sum of.
fn in_parts(folder: &Path) -> (Trio, Paths, Draft, Vec<Matrix>) {
    let trio = Trio::small();
    let paths = trio.write(folder);
    let patch = folder.join("whole.gguf");
    extract(&paths, "f32", &patch).says(0, &[]);
    let mut draft = read(&patch);
    let mut noise = Noise(11);
    let mut sums = Vec::new();
    for (name, has_dense, rank) in
        [("blk.0.attn_q.weight", false, 3), ("blk.0.ffn_up.weight", true, 40), ("output.weight", true, 0)]
    {
        let at = draft.tensors.iter().position(|t| t.name == name.as_bytes()).unwrap();
        let whole = draft.tensors.remove(at);
        let (n_in, n_out) = (whole.ne[0] as usize, whole.ne[1] as usize);
        let mut sum: Vec<f64> = vec![0.0; n_in * n_out];
        if has_dense {
            weights(&whole).iter().zip(&mut sum).for_each(|(w, sum)| *sum = f64::from(*w));
        }
        if rank > 0 {
            let (a, b) = (noise.normals(n_in * rank, 0.01), noise.normals(rank * n_out, 0.1));
            for (row, b) in sum.chunks_exact_mut(n_in).zip(b.chunks_exact(rank)) {
                for (a, b) in a.chunks_exact(n_in).zip(b) {
                    row.iter_mut().zip(a).for_each(|(sum, a)| *sum += f64::from(*a) * f64::from(*b));
                }
            }
            draft.tensors.push(tensor(&format!("{name}.lora_a"), &[n_in as u64, rank as u64], &a));
            draft.tensors.push(tensor(&format!("{name}.lora_b"), &[rank as u64, n_out as u64], &b));
        } else {
            let rows = noise.normals(n_in * 2, 0.01);
            for (row, id) in rows.chunks_exact(n_in).zip([1, 6]) {
                sum[id * n_in..(id + 1) * n_in].iter_mut().zip(row).for_each(|(sum, w)| *sum += f64::from(*w));
            }
            draft.tensors.push(tensor(&format!("{name}.rows"), &[n_in as u64, 2], &rows));
            draft.set(&format!("chatvec.patch.rows.{name}"), Val::Array(kind::U32, vec![Val::U32(1), Val::U32(6)]));
        }
        if has_dense {
            draft.tensors.push(whole);
        }
        sums.push((name, sum));
    }
    (trio, paths, draft, sums)
}

#[test]
fn a_matrix_is_the_sum_of_its_parts_whatever_the_memory_and_the_threads() {
    let folder = tempfile::tempdir().unwrap();
    let (mut trio, paths, draft, sums) = in_parts(folder.path());
    let mut draft = draft;
    draft.seal();
    let patch = draft.write(folder.path(), "parts.gguf");
    let out = folder.path().join("out.gguf");
    let mut first = None;
    for options in [&["--threads", "1"][..], &["--threads", "2"], &["--memory", "3MiB"]] {
        apply(&paths.cp, &[text(&patch)], &out, &[&["--type", "F32", "--overwrite"], options].concat()).says(0, &[]);
        let found = read(&out);
        assert_same_tensors(&found, first.get_or_insert_with(|| found.clone()));
    }
    let mut found = first.unwrap();
    for (name, sum) in sums {
        let cp = weights(trio.cp.tensor(name));
        for (i, (found, (cp, tau))) in weights(found.tensor(name)).iter().zip(cp.iter().zip(sum)).enumerate() {
            let wanted = f64::from(*cp) + tau;
            assert!(
                (f64::from(*found) - wanted).abs() <= 3e-7 * wanted.abs().max(0.05),
                "{name}: weight {i}: {found} {wanted}"
            );
        }
    }
}

#[test]
fn parts_that_do_not_fit_together_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (_, paths, draft, _) = in_parts(folder.path());
    let out = folder.path().join("out.gguf");
    let (q, rows) = ("blk.0.attn_q.weight", "chatvec.patch.rows.output.weight");
    let u32s = |ids: &[u32]| Val::Array(kind::U32, ids.iter().copied().map(Val::U32).collect());
    type Spoil<'a> = Box<dyn Fn(&mut Draft) + 'a>;
    let drop = |name: String| -> Spoil<'_> { Box::new(move |d| d.tensors.retain(|t| t.name != name.as_bytes())) };
    let shape = |name: String, ne: Vec<u64>| -> Spoil<'_> {
        Box::new(move |d| {
            let n = ne.iter().product::<u64>() as usize;
            *d.tensor(&name) = tensor(&name, &ne, &vec![0.5; n]);
        })
    };
    let set = |key: &'static str, val: Val| -> Spoil<'_> { Box::new(move |d| d.set(key, val.clone())) };
    let cases: Vec<(Spoil<'_>, u8, Vec<&str>)> = vec![
        (drop(format!("{q}.lora_a")), 3, vec![q, "also", "lora_a", "damaged"]),
        (drop(format!("{q}.lora_b")), 3, vec![q, "also", "lora_b"]),
        (shape(format!("{q}.lora_b"), vec![5, 256]), 3, vec![q, "ranks"]),
        (shape(format!("{q}.lora_a"), vec![128, 3]), 4, vec![q, "128", "256"]),
        (shape("output.weight.rows".to_owned(), vec![256, 3]), 3, vec!["output.weight.rows", "2 rows"]),
        (shape("output.weight.rows".to_owned(), vec![128, 2]), 3, vec!["output.weight", "one shape"]),
        (set(rows, u32s(&[6, 1])), 3, vec![rows, "ascending"]),
        (set(rows, u32s(&[1, 8])), 3, vec![rows, "below 8"]),
        (set(rows, Val::U32(1)), 3, vec![rows]),
        (Box::new(|d| d.keys.retain(|(key, _)| key != rows.as_bytes())), 3, vec![rows]),
        (set("chatvec.patch.special_tokens", u32s(&[1])), 3, vec!["special_rows", "chatvec.patch.special_tokens"]),
        (set("chatvec.patch.base_tokens", u32s(&[u32::MAX])), 3, vec!["chatvec.patch.base_tokens", "below 8"]),
        (
            Box::new(|d| {
                let name = format!("{q}.lora_a");
                d.tensor(&name).ne = vec![1 << 40, 3];
                d.tensor(&name).ty = 24;
            }),
            3,
            vec![q],
        ),
        (
            Box::new(|d| {
                let a = d.tensor(&format!("{q}.lora_a"));
                a.data.as_mut().unwrap()[..4].copy_from_slice(&f32::NAN.to_le_bytes());
            }),
            3,
            vec!["spoiled.gguf", q, "NaN"],
        ),
    ];
    for (i, (spoil, code, says)) in cases.into_iter().enumerate() {
        let mut spoiled = draft.clone();
        spoil(&mut spoiled);
        spoiled.seal();
        let spoiled = spoiled.write(folder.path(), "spoiled.gguf");
        let ran = apply(&paths.cp, &[text(&spoiled)], &out, &[]);
        assert!(!out.exists(), "case {i}");
        ran.says(code.into(), &[&["spoiled.gguf"], &says[..]].concat());
    }
}

#[test]
fn plain_factors_hold_what_is_said_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    let paths = trio.write(folder.path());
    let (patch, out) = (folder.path().join("patch.gguf"), folder.path().join("out.gguf"));
    // Noise has no low rank: what is left out falls with the rank, to nothing at that of the
    // matrix.
    let mut last = f64::INFINITY;
    for (rank, most) in [("4", 1.0), ("64", 0.8), ("999", 2e-3)] {
        extract(&paths, &format!("lora:{rank}"), &patch).says(0, &[]);
        let (mut stored, name) = (read(&patch), "blk.0.ffn_up.weight");
        let (a, b) =
            (stored.tensor(&format!("{name}.lora_a")).clone(), stored.tensor(&format!("{name}.lora_b")).clone());
        let [n_in, n_out] = trio.base.tensor(name).ne[..] else { panic!("a matrix") };
        let r = rank.parse::<u64>().unwrap().min(n_in).min(n_out);
        assert_eq!((a.ne, b.ne), (vec![n_in, r], vec![r, n_out]));
        apply(&paths.cp, &[text(&patch)], &out, &["--type", "F32", "--overwrite"]).says(0, &[]);
        let [cp, base, chat, got] =
            [&mut trio.cp, &mut trio.base, &mut trio.chat, &mut read(&out)].map(|draft| weights(draft.tensor(name)));
        let (mut error2, mut tau2) = (0.0, 0.0);
        for (i, got) in got.iter().enumerate() {
            let tau = f64::from(chat[i] - base[i]);
            error2 += (f64::from(*got) - f64::from(cp[i]) - tau).powi(2);
            tau2 += tau * tau;
        }
        let error = (error2 / tau2).sqrt();
        let json = chatvec(["inspect", "--json", text(&patch)]).json();
        let said = json["patch"]["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap();
        assert!((said["error"].as_f64().unwrap() - error).abs() < 1e-3, "rank {rank}: {error} {said}");
        assert!(error < most && error < last, "rank {rank}: {error}");
        last = error;
        fs::remove_file(&patch).unwrap();
    }
    for encoding in ["lora:0", "lora:x", "svd:0", "svd:-1", "q9_k"] {
        extract(&paths, encoding, &patch).says(2, &["--encoding", encoding]);
    }
}

#[test]
fn what_did_not_move_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    // Of the embedding two rows, of the layer nothing.
    for (to, from) in trio.chat.tensors.iter_mut().zip(&trio.base.tensors) {
        let moved = to.data();
        to.data = Some(from.data());
        if name(to) == "token_embd.weight" {
            let (data, size) = (to.data.as_mut().unwrap(), moved.len() / 8);
            [2, 5].into_iter().for_each(|row| data[row * size..][..size].copy_from_slice(&moved[row * size..][..size]));
        }
    }
    let paths = trio.write(folder.path());
    let (patch, applied, merged) =
        (folder.path().join("patch.gguf"), folder.path().join("applied.gguf"), folder.path().join("merged.gguf"));
    extract(&paths, "f32", &patch).says(0, &[]);
    let found = read(&patch);
    let vector: Vec<&str> =
        found.tensors.iter().map(name).filter(|n| !n.contains("special") && !n.contains("base")).collect();
    assert_eq!(vector, ["token_embd.weight.rows"]);
    assert_eq!(
        get(&found, "chatvec.patch.rows.token_embd.weight"),
        Some(&Val::Array(kind::U32, vec![Val::U32(2), Val::U32(5)]))
    );
    apply(&paths.cp, &[text(&patch)], &applied, &["--type", "Q8_0"]).says(0, &[]);
    paths.command(&merged, &["--type", "Q8_0"]).says(0, &[]);
    assert_same_tensors(&read(&applied), &read(&merged));
    // And the patch of a chat that is its base changes nothing.
    let nothing = Paths { chat: paths.base.clone(), ..trio.write(folder.path()) };
    let zero = folder.path().join("zero.gguf");
    extract(&nothing, "f32", &zero).says(0, &["zero"]);
    apply(&paths.cp, &[text(&zero)], &applied, &["--overwrite"]).says(0, &["zero"]);
    assert_same_tensors(&read(&applied), &read(&paths.cp));
}

/// An importance matrix in the GGUF form, of one entry.
fn write_imatrix(folder: &Path, tensor: &str, values: &[f32]) -> PathBuf {
    let mut matrix = Draft::default();
    matrix.set("general.type", Val::str("imatrix"));
    matrix.set("imatrix.datasets", Val::strs(["none"]));
    matrix.set("imatrix.chunk_count", Val::U32(1));
    matrix.set("imatrix.chunk_size", Val::U32(1));
    for (suffix, values) in [("in_sum2", values), ("counts", &[1.0][..])] {
        let mut part = Tensor::new(&format!("{tensor}.{suffix}"), &[values.len() as u64, 1], F32);
        store(&mut part, F32, values);
        matrix.tensors.push(part);
    }
    matrix.write(folder, "imatrix.gguf")
}

#[test]
fn rows_that_moved_are_encoded_by_the_importance_of_their_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    // Of the output's eight rows three moved, so that they are stored by themselves.
    const MOVED: [usize; 3] = [1, 4, 6];
    for (to, from) in trio.chat.tensors.iter_mut().zip(&trio.base.tensors) {
        let moved = to.data();
        to.data = Some(from.data());
        if name(to) == "output.weight" {
            let (data, size) = (to.data.as_mut().unwrap(), moved.len() / 8);
            MOVED.into_iter().for_each(|row| data[row * size..][..size].copy_from_slice(&moved[row * size..][..size]));
        }
    }
    let paths = trio.write(folder.path());
    let importance: Vec<f32> = (0..256).map(|i| if i % 8 == 0 { 1.0 } else { 1e-4 }).collect();
    let imatrix = write_imatrix(folder.path(), "output.weight", &importance);
    let of = |draft: &Draft| weights(draft.tensors.iter().find(|t| name(t) == "output.weight").unwrap());
    let (chat, base) = (of(&trio.chat), of(&trio.base));
    let tau: Vec<f32> = MOVED.iter().flat_map(|row| row * 256..(row + 1) * 256).map(|i| chat[i] - base[i]).collect();
    let stored = |options: &[&str]| {
        let patch = folder.path().join("patch.gguf");
        let mut args = vec!["extract", "-e", "q4_k", "--base", text(&paths.base), "--chat", text(&paths.chat)];
        args.extend(["-o", text(&patch), "--overwrite"].iter().chain(options));
        chatvec(args).says(0, &[]);
        let found = read(&patch);
        let rows = found.tensors.iter().find(|t| name(t) == "output.weight.rows").unwrap();
        (rows.data(), weights(rows))
    };
    let (with, without) = (stored(&["--imatrix", text(&imatrix)]), stored(&[]));
    // The bytes of the encoder, which other tests hold to ggml's.
    let ty = GgmlType::Q4_K;
    let mut blocks = vec![0; ty.size_of(tau.len() as u64).unwrap() as usize];
    quants::quantize_rows(ty, &tau, Some(&importance), &mut blocks).unwrap();
    assert!(with.0 == blocks, "not the bytes of these rows with the importance of output.weight");
    let error = |held: &[f32]| -> f64 {
        let of = |i: usize| f64::from(held[i] - tau[i]).powi(2) * f64::from(importance[i % 256]);
        (0..tau.len()).map(of).sum()
    };
    assert!(error(&with.1) < 0.8 * error(&without.1), "{} {}", error(&with.1), error(&without.1));
}

fn verify(patch: &Path, options: &[&str]) -> Ran {
    chatvec(["verify", "--json", text(patch)].into_iter().chain(options.iter().copied()))
}

#[test]
fn damage_is_found_wherever_it_is_and_other_origins_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let trio = Trio::small();
    let paths = trio.write(folder.path());
    let patch = folder.path().join("patch.gguf");
    extract(&paths, "q8_0", &patch).says(0, &[]);
    let origin = ["--base", text(&paths.base), "--chat", text(&paths.chat)];
    let json = verify(&patch, &origin).says(0, &[]).json();
    assert_eq!((&json["whole"], &json["same_origin"]), (&true.into(), &true.into()));

    let bytes = fs::read(&patch).unwrap();
    let data = read(&patch).data_offset() as usize;
    let spoiled = folder.path().join("spoiled.gguf");
    let template = bytes.windows(TEMPLATE.len()).position(|w| w == TEMPLATE.as_bytes()).unwrap();
    for at in [template + 3, data + 100, bytes.len() - 600] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        fs::write(&spoiled, bytes).unwrap();
        let json = verify(&spoiled, &[]).says(3, &[]).json();
        assert_eq!(json["whole"], false);
        assert_eq!(json["found"]["is_header_whole"], at != template + 3);
        assert_eq!(json["found"]["damaged"].as_array().unwrap().len(), usize::from(at != template + 3));
    }
    fs::write(&spoiled, &bytes[..bytes.len() - 700]).unwrap();
    verify(&spoiled, &[]).says(3, &["spoiled.gguf"]);

    // Swapped, or another model.
    let json = verify(&patch, &["--base", text(&paths.chat)]).says(4, &[]).json();
    assert_eq!((&json["whole"], &json["same_origin"]), (&true.into(), &false.into()));
    verify(&patch, &["--chat", text(&paths.cp)]).says(4, &[]);
    verify(&paths.cp, &[]).says(4, &["cp.gguf", "general.type", "chatvec extract"]);
    verify(&folder.path().join("none.gguf"), &[]).says(7, &["none.gguf"]);
}

#[test]
fn a_damaged_patch_is_applied_by_no_command() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let paths = Trio::small().write(folder.path());
    let (patch, out) = (at("patch.gguf"), at("out.gguf"));
    extract(&paths, "q8_0", &patch).says(0, &[]);
    let (bytes, data) = (fs::read(&patch).unwrap(), read(&patch).data_offset() as usize);
    let first = name(&read(&patch).tensors[0]).to_owned();
    let template = bytes.windows(TEMPLATE.len()).position(|w| w == TEMPLATE.as_bytes()).unwrap();
    let spoilt = at("spoilt.gguf");
    fs::write(at("recipe.toml"), "model = \"cp.gguf\"\n\n[[vector]]\npatch = \"spoilt.gguf\"\nratio = 1.0\n").unwrap();
    for (places, says) in [
        ([data + 70, data + 71], &[&*first][..]),
        ([template + 28, template + 29], &["another header"]),
        ([template + 28, data + 70], &[&*first]),
    ] {
        let mut bytes = bytes.clone();
        places.into_iter().for_each(|at| bytes[at] ^= 1);
        fs::write(&spoilt, bytes).unwrap();
        verify(&spoilt, &[]).says(3, &[]);
        let words = [&["spoilt.gguf", "expected the bytes that were written", "--force"], says].concat();
        apply(&paths.cp, &[text(&spoilt)], &out, &[]).says(3, &words);
        apply(&paths.cp, &[text(&patch), text(&spoilt)], &out, &["--dry-run"]).says(3, &words);
        let model = ["merge", "--model", text(&paths.cp), "-o", text(&out), "--vector", text(&spoilt)];
        chatvec(model).says(3, &words);
        chatvec(["merge", "--recipe", text(&at("recipe.toml")), "-o", text(&out)]).says(3, &words);
        assert!(!out.exists());
        // Who knows better may go on, and is told.
        apply(&paths.cp, &[text(&spoilt)], &out, &["--force"])
            .says(0, &["warning: ", "expected the bytes that were written"]);
        fs::remove_file(&out).unwrap();
    }
    // Without hashes nothing can be told.
    let mut draft = read(&patch);
    draft.keys.retain(|(key, _)| key != b"chatvec.blake3" && key != b"chatvec.header_blake3");
    let bare = draft.write(folder.path(), "bare.gguf");
    apply(&paths.cp, &[text(&bare)], &out, &[]).says(3, &["bare.gguf", "no hashes", "--force"]);
    apply(&paths.cp, &[text(&bare)], &out, &["--force"]).says(0, &["no hashes"]);
}

#[test]
fn a_patch_says_of_each_tensor_how_it_is_stored_and_what_that_costs() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    let paths = trio.write(folder.path());
    let patch = folder.path().join("patch.gguf");
    extract(&paths, "q4_0", &patch).says(0, &[]);
    let stored = read(&patch);
    let ran = chatvec(["inspect", "--json", text(&patch)]);
    let json = ran.says(0, &[]).json();
    let tensors = json["patch"]["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), stored.tensors.iter().filter(|t| !name(t).ends_with("_rows")).count());
    for tensor in tensors {
        let name = tensor["name"].as_str().unwrap();
        let [base, chat] = [&mut trio.base, &mut trio.chat].map(|draft| weights(draft.tensor(name)));
        let tau: Vec<f64> = chat.iter().zip(&base).map(|(c, b)| f64::from(c - b)).collect();
        let found: Vec<f64> = stored
            .tensors
            .iter()
            .find(|t| self::name(t) == name)
            .map(weights)
            .unwrap()
            .iter()
            .map(|w| f64::from(*w))
            .collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let error: Vec<f64> = found.iter().zip(&tau).map(|(f, t)| f - t).collect();
        let base: Vec<f64> = base.iter().map(|w| f64::from(*w)).collect();
        let tau2 = dot(&tau, &tau);
        for (key, wanted) in [
            ("base_norm", dot(&base, &base).sqrt()),
            ("norm", tau2.sqrt()),
            ("gain", dot(&found, &tau) / tau2),
            ("error", (dot(&error, &error) / tau2).sqrt()),
            ("cosine", dot(&found, &tau) / (tau2 * dot(&found, &found)).sqrt()),
        ] {
            let said = tensor[key].as_f64().unwrap();
            assert!((said - wanted).abs() <= 1e-5 * wanted.abs() + 1e-6, "{name} {key}: {said} {wanted}");
        }
    }
    chatvec(["inspect", "--tensors", text(&patch)]).says(0, &[]);
}

#[test]
fn a_model_of_another_base_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    let paths = trio.write(folder.path());
    let patch = folder.path().join("patch.gguf");
    extract(&paths, "q8_0", &patch).says(0, &[]);
    let out = folder.path().join("out.gguf");
    let far = "away from those of the patch's base";
    let plain = apply(&paths.cp, &[text(&patch)], &out, &[]);
    assert!(!plain.says(0, &[]).err.contains(far));
    let mut noise = Noise(5);
    for tensor in trio.cp.tensors.iter_mut().filter(|t| t.ne.len() > 1) {
        let n = tensor.ne.iter().product::<u64>() as usize;
        let others = noise.normals(n, 0.05);
        store(tensor, tensor.ty, &others);
    }
    let paths = trio.write(folder.path());
    apply(&paths.cp, &[text(&patch)], &out, &["--overwrite"]).says(0, &[far]);
}
