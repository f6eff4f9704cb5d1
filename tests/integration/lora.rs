//! LoRA adapters: what llama.cpp asks of the file, and that it holds what it says it holds.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use chatvec::patch::low_rank::{Settings, decompose};
use serde_json::Value as Json;

use crate::support::{Draft, Tensor, Val};
use crate::trio::{F16, F32, Noise, Paths, Q8_0, Ran, Trio, chatvec, get, name, names, read, store, weights};

fn extract(paths: &Paths, lora: &Path, options: &[&str]) -> Ran {
    let mut args: Vec<OsString> = vec!["extract".into(), "--json".into()];
    for (flag, path) in [("--base", &*paths.base), ("--chat", &*paths.chat), ("--lora", lora)] {
        args.extend([flag.into(), path.into()]);
    }
    args.extend(options.iter().map(OsString::from));
    chatvec(args)
}

fn find<'a>(draft: &'a Draft, wanted: &str) -> &'a Tensor {
    draft.tensors.iter().find(|t| name(t) == wanted).unwrap_or_else(|| panic!("no {wanted}"))
}

/// `scale · lora_b · lora_a` as llama.cpp multiplies it out, in rows of the matrix, for each matrix
/// of a stack.
fn product(adapter: &Draft, tensor: &str) -> Vec<f32> {
    let Some(Val::F32(alpha)) = get(adapter, "adapter.lora.alpha") else { panic!("no alpha") };
    let [a, b] = ["lora_a", "lora_b"].map(|suffix| find(adapter, &format!("{tensor}.{suffix}")));
    let rank = b.ne[0] as usize;
    let scale = alpha / rank as f32;
    let stack = a.ne.get(2).copied().unwrap_or(1) as usize;
    let (a_rows, b_rows) = (a.ne[1] as usize, b.ne[1] as usize);
    let [a, b] = [weights(a), weights(b)];
    // Token embeddings take rows of the first factor.
    let flipped = tensor == "token_embd.weight";
    let (row_len, n_rows) = if flipped { (b_rows, a_rows) } else { (a.len() / stack / a_rows, b_rows) };
    let mut out = Vec::new();
    for (a, b) in a.chunks(a.len() / stack).zip(b.chunks(b.len() / stack)) {
        for row in 0..n_rows {
            for column in 0..row_len {
                let products = (0..rank).map(|j| match flipped {
                    true => a[row * rank + j] * b[column * rank + j],
                    false => a[j * row_len + column] * b[row * rank + j],
                });
                out.push(scale * products.sum::<f32>());
            }
        }
    }
    out
}

/// chat · gain − base, where the gain is that of the norm before.
fn folded(base: &Draft, chat: &Draft, tensor: &str, norm: Option<&str>) -> Vec<f32> {
    let [w_base, w_chat] = [base, chat].map(|draft| weights(find(draft, tensor)));
    let gain: Vec<f32> = match norm {
        Some(norm) => {
            let [base, chat] = [base, chat].map(|draft| weights(find(draft, norm)));
            chat.iter().zip(base).map(|(c, b)| c / b).collect()
        }
        None => vec![1.0; find(base, tensor).ne[0] as usize],
    };
    w_chat.iter().zip(w_base).enumerate().map(|(i, (c, b))| c * gain[i % gain.len()] - b).collect()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

fn norm(a: &[f32]) -> f64 {
    distance(a, &vec![0.0; a.len()])
}

fn entry<'a>(lora: &'a Json, tensor: &str) -> &'a Json {
    let all = lora["tensors"].as_array().unwrap();
    all.iter().find(|t| t["name"] == tensor).unwrap_or_else(|| panic!("no {tensor} in {lora}"))
}

#[test]
fn an_adapter_holds_the_best_of_its_rank_with_the_norms_in_the_matrices() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Paths::bundled();
    let Trio { base, chat, .. } = Trio::bundled();
    for (ty, slack) in [("f32", 1.0), ("f16", 1.001), ("q8_0", 1.02)] {
        let lora = folder.path().join(format!("{ty}.gguf"));
        let ran = extract(&paths, &lora, &["--rank", "32", "--lora-type", ty]);
        let json = ran.says(0, &["rank 32 leaves"]).json();
        let adapter = read(&lora);
        for (key, value) in [("general.type", "adapter"), ("adapter.type", "lora"), ("general.architecture", "llama")] {
            assert_eq!(get(&adapter, key), Some(&Val::str(value)), "{key}");
        }
        for (tensor, norm_before) in [
            ("blk.0.attn_q.weight", Some("blk.0.attn_norm.weight")),
            ("blk.1.attn_v.weight", Some("blk.1.attn_norm.weight")),
            ("blk.1.attn_output.weight", None),
            ("blk.2.ffn_gate.weight", Some("blk.2.ffn_norm.weight")),
            ("blk.2.ffn_down.weight", None),
            ("output.weight", Some("output_norm.weight")),
            ("token_embd.weight", None),
        ] {
            let target = folded(&base, &chat, tensor, norm_before);
            let row_len = find(&base, tensor).ne[0] as usize;
            let best = decompose(&(&target[..], row_len), &Settings::new(32)).unwrap();
            let least = (1.0 - best.energy()).sqrt() * norm(&target);
            let error = distance(&target, &product(&adapter, tensor));
            assert!(error < least * slack + 1e-5 * norm(&target), "{tensor} {ty}: {error}, best {least}");
            let said = entry(&json, tensor)["error"].as_f64().unwrap();
            assert!((said - error / norm(&target)).abs() < 1e-4, "{tensor} {ty}: {said}");
        }
        // Norms are in the matrices; there is nothing else in a llama that an adapter could not
        // hold.
        assert_eq!(json["folded_norms"].as_array().unwrap().len(), 7);
        assert_eq!(json["left_out"], serde_json::json!([]));
    }
}

#[test]
fn a_rank_beyond_a_matrix_is_its_own_and_every_scale_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Trio::small().write(folder.path());
    let lora = folder.path().join("lora.gguf");
    extract(&paths, &lora, &["--rank", "100", "--lora-type", "f32"]).says(0, &["the change of biases (1 tensors"]);
    let (adapter, Trio { base, chat, .. }) = (read(&lora), Trio::small());
    assert_eq!(get(&adapter, "adapter.lora.alpha"), Some(&Val::F32(100.0)));
    for (tensor, norm_before, rank) in
        [("token_embd.weight", None, 8), ("blk.0.attn_k.weight", Some("blk.0.attn_norm.weight"), 64)]
    {
        assert_eq!(find(&adapter, &format!("{tensor}.lora_b")).ne[0], rank);
        let target = folded(&base, &chat, tensor, norm_before);
        let error = distance(&target, &product(&adapter, tensor));
        assert!(error < 1e-5 * norm(&target), "{tensor}: {error}");
    }
    assert_eq!(find(&adapter, "token_embd.weight.lora_a").ne, [8, 8], "a row for each token");
    assert_eq!(find(&adapter, "token_embd.weight.lora_b").ne, [8, 256]);
    assert_eq!(find(&adapter, "blk.0.attn_k.weight.lora_a").ne, [256, 64]);
}

#[test]
fn what_an_adapter_cannot_hold_is_named_with_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    // Tied, and of an architecture whose norms are not known to be plain.
    trio.each(|draft| {
        draft.tensors.retain(|t| name(t) != "output.weight");
        draft.keys.iter_mut().for_each(|(key, _)| {
            *key = String::from_utf8(key.clone()).unwrap().replace("llama.", "starcoder2.").into_bytes();
        });
        draft.set("general.architecture", Val::str("starcoder2"));
    });
    let paths = trio.write(folder.path());
    let lora = folder.path().join("lora.gguf");
    let ran = extract(&paths, &lora, &[]);
    let json =
        ran.says(0, &["the change of token_embd", "the change of norms (3 tensors", "the change of biases"]).json();
    let left = json["left_out"].as_array().unwrap();
    let reason = |tensor: &str| left.iter().find(|l| l["name"] == tensor).unwrap_or_else(|| panic!("{tensor}"));
    assert_eq!(reason("token_embd.weight")["reason"], "tied");
    assert_eq!(reason("blk.0.attn_q.bias")["reason"], "not_a_matrix");
    assert_eq!(reason("output_norm.weight")["reason"], "not_a_matrix");
    let total: f64 = trio
        .base
        .tensors
        .iter()
        .zip(&trio.chat.tensors)
        .map(|(base, chat)| distance(&weights(chat), &weights(base)).powi(2))
        .sum();
    let [base, chat] = [&trio.base, &trio.chat].map(|draft| weights(find(draft, "blk.0.attn_q.bias")));
    let bias = reason("blk.0.attn_q.bias");
    assert!((bias["share"].as_f64().unwrap() - distance(&chat, &base).powi(2) / total).abs() < 1e-9);
    assert!((bias["change"].as_f64().unwrap() - distance(&chat, &base) / norm(&base)).abs() < 1e-6);
    assert!(read(&lora).tensors.iter().all(|t| !name(t).starts_with("token_embd")));
}

#[test]
fn stacked_experts_have_factors_each() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    let mut noise = Noise(9);
    let mut ups = Vec::new();
    trio.each(|draft| {
        let mut tensor = Tensor::new("blk.0.ffn_up_exps.weight", &[256, 32, 3], F32);
        let values = match ups.first() {
            None => noise.normals(256 * 32 * 3, 0.05),
            Some(first) => {
                let first: &Vec<f32> = first;
                // Differences of rank 4, others for each expert.
                let change: Vec<f32> = (0..3)
                    .flat_map(|_| {
                        let (u, v) = (noise.normals(32 * 4, 0.1), noise.normals(256 * 4, 0.01));
                        let at = move |i: usize| (0..4).map(|j| u[i / 256 * 4 + j] * v[i % 256 * 4 + j]).sum::<f32>();
                        (0..256 * 32).map(at).collect::<Vec<f32>>()
                    })
                    .collect();
                first.iter().zip(change).map(|(w, c)| w + c).collect()
            }
        };
        store(&mut tensor, F32, &values);
        ups.push(values);
        draft.tensors.push(tensor);
    });
    let paths = trio.write(folder.path());
    let lora = folder.path().join("lora.gguf");
    extract(&paths, &lora, &["--rank", "20", "--lora-type", "f32"]).says(0, &[]);
    let adapter = read(&lora);
    let tensor = "blk.0.ffn_up_exps.weight";
    assert_eq!(find(&adapter, &format!("{tensor}.lora_a")).ne, [256, 20, 3]);
    assert_eq!(find(&adapter, &format!("{tensor}.lora_b")).ne, [20, 32, 3]);
    // The norm before adds what is not of rank 4.
    let target = folded(&trio.base, &trio.chat, tensor, Some("blk.0.ffn_norm.weight"));
    for (target, found) in target.chunks(256 * 32).zip(product(&adapter, tensor).chunks(256 * 32)) {
        let best = decompose(&(target, 256), &Settings::new(20)).unwrap();
        let least = (1.0 - best.energy()).sqrt() * norm(target);
        let error = distance(target, found);
        assert!(error < least * 1.001 && error > 0.0, "{error}, best {least}");
    }
}

#[test]
fn rows_of_an_adapter_belong_to_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let trio = Trio::small();
    let mut moved = trio.clone();
    // The base has the rows of its tokens in another order.
    let order = [3, 0, 1, 2, 4, 5, 6, 7];
    let texts = ["a", "b", "c", "d", "e", "<eos>", "<|im_start|>", "<|im_end|>"];
    moved.base.set("tokenizer.ggml.tokens", Val::strs(order.map(|i| texts[i])));
    for tensor in ["token_embd.weight", "output.weight"] {
        let rows = weights(find(&trio.base, tensor));
        let rows: Vec<f32> = order.iter().flat_map(|i| rows[i * 256..(i + 1) * 256].to_vec()).collect();
        store(moved.base.tensor(tensor), F16, &rows);
    }
    let products = [&trio, &moved].map(|trio| {
        let folder = tempfile::tempdir_in(folder.path()).unwrap();
        let paths = trio.write(folder.path());
        let lora = folder.path().join("lora.gguf");
        extract(&paths, &lora, &["--lora-type", "f32"]).says(0, &[]);
        product(&read(&lora), "token_embd.weight")
    });
    assert!(distance(&products[0], &products[1]) < 1e-6 * norm(&products[0]));
}

#[test]
fn an_adapter_takes_no_place_that_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Trio::small().write(folder.path());
    let at = |name: &str| folder.path().join(name);
    extract(&paths, &paths.base, &["--overwrite"]).says(6, &["--lora", "input"]);
    fs::write(at("taken.gguf"), "mine").unwrap();
    extract(&paths, &at("taken.gguf"), &[]).says(6, &["--lora", "taken.gguf"]);
    assert_eq!(fs::read(at("taken.gguf")).unwrap(), b"mine");
    let both = at("both.gguf");
    extract(&paths, &both, &["-o", both.to_str().unwrap()]).says(2, &["the same file"]);
    extract(&paths, &at("lora.gguf"), &["--memory", "100KB"]).says(5, &["--memory"]);
    extract(&paths, &at("lora.gguf"), &["--lora-type", "q4_k"]).says(2, &["--lora-type"]);
    assert_eq!(names(folder.path()), ["base.gguf", "chat.gguf", "cp.gguf", "taken.gguf"]);
    // Both at once.
    let ran = extract(&paths, &at("lora.gguf"), &["-o", at("patch.gguf").to_str().unwrap()]);
    let json = ran.says(0, &[]).json();
    assert!(at("patch.gguf").exists() && json["lora"]["output"].as_str().unwrap().ends_with("lora.gguf"));
    assert_eq!(get(&read(&at("patch.gguf")), "general.type"), Some(&Val::str("chat-vector")));
}

#[test]
fn nothing_is_no_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    trio.chat.tensors = trio.base.tensors.clone();
    let paths = trio.write(folder.path());
    extract(&paths, &folder.path().join("lora.gguf"), &["--force"]).says(5, &["an adapter would be empty"]);
    assert_eq!(names(folder.path()), ["base.gguf", "chat.gguf", "cp.gguf"]);
}

#[test]
fn a_residual_adapter_gives_back_some_of_what_rounding_took() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let paths = Paths::bundled();
    let trio = Trio::bundled();
    let residual = at("residual.gguf");
    let options = ["--type", "Q4_K", "--pure", "--json", "--special-tokens", "none", "--on-loss", "warn"];
    let with = ["--residual-lora", residual.to_str().unwrap(), "--residual-rank", "64"];
    let json = paths.command(&at("merged.gguf"), &[&options[..], &with].concat()).says(0, &[]).json();
    paths.command(&at("plain.gguf"), &options).says(0, &[]);
    assert_eq!(fs::read(at("merged.gguf")).unwrap(), fs::read(at("plain.gguf")).unwrap(), "the output is the same");
    let (stored, adapter) = (read(&at("merged.gguf")), read(&residual));
    let mut sums = [0.0f64; 5];
    for tensor in &stored.tensors {
        let label = name(tensor);
        if tensor.ty == F32 {
            assert!(adapter.tensors.iter().all(|t| !name(t).starts_with(label)), "{label}");
            continue;
        }
        let [cp, base, chat] = [&trio.cp, &trio.base, &trio.chat].map(|draft| weights(find(draft, label)));
        let (stored, held) = (weights(tensor), product(&adapter, label));
        let row_len = tensor.ne[0] as usize;
        let delta: Vec<f32> = chat.iter().zip(&base).map(|(c, b)| c - b).collect();
        let lacks: Vec<f32> = cp.iter().zip(&delta).zip(&stored).map(|((m, d), s)| m + d - s).collect();
        let (before, after) = (norm(&lacks), distance(&lacks, &held));
        let best = decompose(&(&lacks[..], row_len), &Settings::new(64)).unwrap();
        assert!(
            after < (1.0 - best.energy()).sqrt() * before * 1.01 && after < 0.8 * before,
            "{label}: {after} {before}"
        );
        let of = &entry(&json["lora"], label);
        assert!((of["error"].as_f64().unwrap() - after / before).abs() < 1e-3, "{label}");
        for i in 0..delta.len() {
            let [d, l, h] = [delta[i], lacks[i], held[i]].map(f64::from);
            let terms = [d * d, l * d, (l - h) * d, l * l, (l - h) * (l - h)];
            sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
        }
    }
    let total = &json["lora"]["total"];
    for (key, expected) in [
        ("survival", 1.0 - sums[2] / sums[0]),
        ("survival_without", 1.0 - sums[1] / sums[0]),
        ("noise", (sums[4] / sums[0]).sqrt()),
        ("noise_without", (sums[3] / sums[0]).sqrt()),
    ] {
        let found = total[key].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-3, "{key}: {found}, expected {expected}");
    }
    // What apply lacks is the same.
    let (patch, applied) = (at("patch.gguf"), at("applied.gguf"));
    extract(&paths, &at("lora.gguf"), &["-e", "f32", "-o", patch.to_str().unwrap()]).says(0, &[]);
    let mut args: Vec<OsString> = vec!["apply".into(), "--model".into(), paths.cp.clone().into(), patch.into()];
    args.extend(["-o".into(), applied.into()]);
    args.extend(options.iter().map(OsString::from));
    let other = at("other.gguf");
    args.extend(["--residual-lora".into(), other.clone().into(), "--residual-rank".into(), "64".into()]);
    chatvec(args).says(0, &[]);
    let found = read(&other);
    for tensor in &adapter.tensors {
        assert_eq!(weights(tensor), weights(find(&found, name(tensor))), "{}", name(tensor));
    }
}

#[test]
fn a_residual_of_unrounded_weights_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Trio::small().write(folder.path());
    let residual = folder.path().join("residual.gguf");
    let options = ["--type", "F16", "--residual-lora", residual.to_str().unwrap()];
    paths.command(&folder.path().join("out.gguf"), &options).says(5, &["--residual-lora", "an adapter would be empty"]);
    assert_eq!(names(folder.path()), ["base.gguf", "chat.gguf", "cp.gguf"]);
}

#[test]
fn errors_of_inputs_that_matter_are_smaller() {
    let folder = tempfile::tempdir().unwrap();
    let trio = Trio::small();
    let paths = trio.write(folder.path());
    // Only the first 32 inputs of attn_output matter.
    let tensor = "blk.0.attn_output.weight";
    let mut matrix = Draft::default();
    matrix.set("general.type", Val::str("imatrix"));
    matrix.set("imatrix.datasets", Val::strs(["none"]));
    matrix.set("imatrix.chunk_count", Val::U32(1));
    matrix.set("imatrix.chunk_size", Val::U32(1));
    for (suffix, values) in
        [("in_sum2", (0..256).map(|i| if i < 32 { 1.0 } else { 1e-3 }).collect::<Vec<f32>>()), ("counts", vec![1.0])]
    {
        let mut t = Tensor::new(&format!("{tensor}.{suffix}"), &[values.len() as u64, 1], F32);
        store(&mut t, F32, &values);
        matrix.tensors.push(t);
    }
    let imatrix = matrix.write(folder.path(), "imatrix.gguf");
    let target = folded(&trio.base, &trio.chat, tensor, None);
    let of = |options: &[&str]| {
        let lora = folder.path().join("lora.gguf");
        extract(&paths, &lora, &[&["--rank", "28", "--overwrite"], options].concat()).says(0, &[]);
        let held = product(&read(&lora), tensor);
        let first = |m: &[f32]| m.chunks(256).flat_map(|row| row[..32].to_vec()).collect::<Vec<f32>>();
        distance(&first(&target), &first(&held)) / norm(&first(&target))
    };
    let (without, with) = (of(&[]), of(&["--imatrix", imatrix.to_str().unwrap()]));
    assert!(with < 0.5 * without, "{with} {without}");
}

#[test]
fn factors_whose_rows_are_no_blocks_are_f16() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Trio::small().write(folder.path());
    let lora = folder.path().join("lora.gguf");
    extract(&paths, &lora, &["--rank", "20", "--lora-type", "q8_0"]).says(0, &[]);
    let adapter = read(&lora);
    let types = |tensor: &str| ["lora_a", "lora_b"].map(|part| find(&adapter, &format!("{tensor}.{part}")).ty);
    assert_eq!(types("blk.0.attn_q.weight"), [Q8_0, F16]);
    assert_eq!(types("token_embd.weight"), [F16, F16]);
}
