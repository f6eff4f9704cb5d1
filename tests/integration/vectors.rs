//! The vectors of two patches against each other: as plain subtraction of base and chat has them,
//! by the texts of tokens.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value as Json;

use crate::support::{Draft, Val};
use crate::trio::{Paths, Ran, Trio, chatvec, drifted, name, read, tau_by_text, text_of, weights};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn extract(base: &Path, chat: &Path, encoding: &str, patch: &Path) {
    let files = ["--base", text(base), "--chat", text(chat), "-o", text(patch)];
    chatvec(["extract", "--force", "-e", encoding].into_iter().chain(files)).says(0, &[]);
}

fn compare(a: &Path, b: &Path, options: &[&str]) -> Ran {
    chatvec([&["compare", text(a), text(b)], options].concat())
}

/// The base with the weights of `from` in these rows of its embeddings, and nothing else of it.
fn with_rows(base: &Draft, from: &Draft, rows: &[usize]) -> Draft {
    let mut chat = from.clone();
    for (to, base) in chat.tensors.iter_mut().zip(&base.tensors) {
        let moved = to.data();
        let mut data = base.data();
        if name(to) == "token_embd.weight" {
            let size = moved.len() / 8;
            rows.iter().for_each(|row| data[row * size..][..size].copy_from_slice(&moved[row * size..][..size]));
        }
        to.data = Some(data);
    }
    chat
}

/// The model with its tokens in this order.
fn reordered(draft: &Draft, order: &[usize]) -> Draft {
    let mut draft = draft.clone();
    let texts: Vec<Vec<u8>> = order.iter().map(|id| text_of(&draft, *id)).collect();
    draft.set("tokenizer.ggml.tokens", Val::strs(texts));
    let Some((_, Val::Array(_, types))) = draft.keys.iter_mut().find(|(k, _)| k == b"tokenizer.ggml.token_type") else {
        panic!("no types")
    };
    *types = order.iter().map(|id| types[*id].clone()).collect();
    for (key, value) in &mut draft.keys {
        if let (true, Val::U32(id)) = (key.ends_with(b"_token_id"), value) {
            *id = order.iter().position(|old| *old == *id as usize).unwrap() as u32;
        }
    }
    for name in ["token_embd.weight", "output.weight"] {
        let tensor = draft.tensor(name);
        let (old, size) = (tensor.data(), tensor.data().len() / order.len());
        tensor.data = Some(order.iter().flat_map(|id| old[id * size..][..size].to_vec()).collect());
    }
    draft
}

/// Σ a², Σ b² and Σ (b − a)² of vectors by tokens, none being zero.
fn sums(a: &BTreeMap<Vec<u8>, Vec<f32>>, b: &BTreeMap<Vec<u8>, Vec<f32>>) -> [f64; 3] {
    let mut sums = [0.0; 3];
    let texts: std::collections::BTreeSet<&Vec<u8>> = a.keys().chain(b.keys()).collect();
    for text in texts {
        let row = |of: &BTreeMap<Vec<u8>, Vec<f32>>| of.get(text).cloned().unwrap_or(vec![0.0; 256]);
        for (a, b) in row(a).into_iter().zip(row(b)) {
            let (a, b) = (f64::from(a), f64::from(b));
            [a * a, b * b, (b - a) * (b - a)].into_iter().zip(&mut sums).for_each(|(x, sum)| *sum += x);
        }
    }
    sums
}

#[track_caller]
fn assert_figures(found: &Json, [a2, b2, difference2]: [f64; 3]) {
    let norm = |x: f64| x.sqrt();
    for (key, expected) in [("norm_a", norm(a2)), ("norm_b", norm(b2)), ("relative", norm(difference2 / a2))] {
        let value = found[key].as_f64().unwrap_or_else(|| panic!("no {key} in {found}"));
        assert!((value - expected).abs() <= 1e-9 * expected.max(1e-3), "{key}: {value}, expected {expected}");
    }
}

#[test]
fn patches_are_compared_token_by_token_and_not_row_by_row() {
    let folder = tempfile::tempdir().unwrap();
    let trio = Trio::small();
    let moved = drifted(&trio.chat, "chat", 9, 0.004);
    let base = trio.base.write(folder.path(), "base.gguf");
    // As many rows of each, so that they have one shape; of the second all tokens have other ids.
    let first = with_rows(&trio.base, &trio.chat, &[2, 5]);
    let order = [3, 0, 7, 1, 6, 2, 5, 4];
    for (i, second, base_b) in [
        (0, with_rows(&trio.base, &moved, &[1, 4]), trio.base.clone()),
        (1, with_rows(&trio.base, &trio.chat, &[1, 2]), trio.base.clone()),
        (2, reordered(&with_rows(&trio.base, &moved, &[5, 6]), &order), reordered(&trio.base, &order)),
        (3, reordered(&first, &order), reordered(&trio.base, &order)),
    ] {
        let at = |name: &str| folder.path().join(format!("{i}-{name}.gguf"));
        let [chat_a, chat_b, base_of_b] =
            [&first, &second, &base_b].map(|draft| draft.write(folder.path(), &format!("{i}-{}.gguf", name_of(draft))));
        let (a, b) = (at("a"), at("b"));
        extract(&base, &chat_a, "f32", &a);
        extract(&base_of_b, &chat_b, "f32", &b);
        let tau_a = tau_by_text(&trio.base, &first, "token_embd.weight");
        let tau_b = tau_by_text(&base_b, &second, "token_embd.weight");
        let expected = sums(&tau_a, &tau_b);
        assert_eq!(expected[2] == 0.0, i == 3);
        let json = compare(&a, &b, &["--json"]).says(0, &[]).json();
        assert_eq!((&json["whole"], &json["not_compared"]), (&true.into(), &Json::Array(Vec::new())), "{json}");
        let tensors = json["tensors"].as_array().unwrap();
        assert_eq!(tensors.iter().map(|t| t["name"].as_str().unwrap()).collect::<Vec<_>>(), ["token_embd.weight"]);
        assert_figures(&tensors[0], expected);
        assert_figures(&json["total"], expected);
        for options in [["--threads", "1"], ["--memory", "1MiB"]] {
            let again = compare(&a, &b, &[&["--json"], &options[..]].concat());
            assert_eq!(again.says(0, &[]).json(), json, "{options:?}");
        }
    }
}

/// A name for the file of a draft: its weights tell it apart.
fn name_of(draft: &Draft) -> String {
    blake3::hash(&draft.bytes()).to_hex().to_string()
}

/// τ of a matrix that a patch stores as two factors, in f64.
fn product(patch: &mut Draft, tensor: &str) -> Vec<f64> {
    let [a, b] = ["a", "b"].map(|factor| patch.tensor(&format!("{tensor}.lora_{factor}")).clone());
    let (n_in, rank) = (a.ne[0] as usize, a.ne[1] as usize);
    let (a, b) = (weights(&a), weights(&b));
    let mut tau = vec![0.0; n_in * b.len() / rank];
    for (row, b) in tau.chunks_exact_mut(n_in).zip(b.chunks_exact(rank)) {
        for (a, b) in a.chunks_exact(n_in).zip(b) {
            row.iter_mut().zip(a).for_each(|(tau, a)| *tau += f64::from(*a) * f64::from(*b));
        }
    }
    tau
}

#[test]
fn a_vector_is_compared_whatever_it_is_stored_as() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    let paths = trio.write(folder.path());
    let at = |name: &str| folder.path().join(name);
    let (exact, factors, svd) = (at("exact.gguf"), at("factors.gguf"), at("svd.gguf"));
    extract(&paths.base, &paths.chat, "f32", &exact);
    extract(&paths.base, &paths.chat, "lora:8", &factors);
    extract(&paths.base, &paths.chat, "svd:2", &svd);
    let n_tensors = read(&exact).tensors.iter().filter(|t| !name(t).ends_with("_rows")).count();
    for other in [&factors, &svd] {
        let json = compare(&exact, other, &["--json"]).says(0, &[]).json();
        assert_eq!((&json["whole"], json["tensors"].as_array().unwrap().len()), (&true.into(), n_tensors));
    }
    let json = compare(&exact, &factors, &["--json"]).json();
    let mut stored = read(&factors);
    for tensor in ["blk.0.attn_q.weight", "blk.0.ffn_down.weight", "blk.0.attn_k.weight"] {
        let [base, chat] = [&mut trio.base, &mut trio.chat].map(|draft| weights(draft.tensor(tensor)));
        let tau: Vec<f64> = chat.iter().zip(&base).map(|(c, b)| f64::from(c - b)).collect();
        let got = product(&mut stored, tensor);
        let square = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>();
        let (tau2, error2) = (square(&mut tau.iter().copied()), square(&mut tau.iter().zip(&got).map(|(t, g)| g - t)));
        let found = json["tensors"].as_array().unwrap().iter().find(|t| t["name"] == tensor).unwrap();
        let relative = found["relative"].as_f64().unwrap();
        let expected = (error2 / tau2).sqrt();
        assert!((relative - expected).abs() < 1e-5, "{tensor}: {relative}, expected {expected}");
    }
    // What inspect says of the decomposition is the same distance.
    let said = chatvec(["inspect", "--json", text(&svd)]).json();
    let json = compare(&exact, &svd, &["--json"]).json();
    for tensor in said["patch"]["tensors"].as_array().unwrap() {
        let found = json["tensors"].as_array().unwrap().iter().find(|t| t["name"] == tensor["name"]).unwrap();
        let (found, expected) = (found["relative"].as_f64().unwrap(), tensor["error"].as_f64().unwrap());
        assert!((found - expected).abs() < 1e-5, "{tensor}: {found}");
    }
}

#[test]
fn what_a_patch_leaves_out_is_zero_and_what_it_never_had_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let trio = Trio::small();
    let paths = trio.write(folder.path());
    let at = |name: &str| folder.path().join(name);
    let (all, rows, zero) = (at("all.gguf"), at("rows.gguf"), at("zero.gguf"));
    extract(&paths.base, &paths.chat, "f32", &all);
    let few = with_rows(&trio.base, &trio.chat, &[2, 5]).write(folder.path(), "few.gguf");
    extract(&paths.base, &few, "f32", &rows);
    extract(&paths.base, &paths.base, "f32", &zero);
    let json = compare(&all, &rows, &["--json"]).says(0, &[]).json();
    assert_eq!(json["whole"], true);
    let found = |json: &Json, name: &str| {
        json["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap().clone()
    };
    let of_zero = found(&json, "blk.0.attn_q.weight");
    assert_eq!((&of_zero["norm_b"], &of_zero["relative"]), (&0.0.into(), &1.0.into()));
    let tau = tau_by_text(&trio.base, &trio.chat, "token_embd.weight");
    let moved = [2, 5].map(|id| text_of(&trio.base, id));
    let tau_of_rows =
        tau.iter().filter(|(text, _)| moved.contains(text)).map(|(t, r)| (t.clone(), r.clone())).collect();
    assert_figures(&found(&json, "token_embd.weight"), sums(&tau, &tau_of_rows));
    // Two vectors of zero are no different, and are no others.
    compare(&zero, &zero, &[]).says(0, &[]);

    // A vector of a model without this tensor.
    let mut lacks = read(&all);
    lacks.tensors.retain(|t| name(t) != "blk.0.attn_q.bias");
    let Some((_, Val::Array(_, listed))) = lacks.keys.iter_mut().find(|(k, _)| k == b"chatvec.patch.tensors") else {
        panic!("no list")
    };
    listed.retain(|name| *name != Val::str("blk.0.attn_q.bias"));
    let lacks = lacks.write(folder.path(), "lacks.gguf");
    for (a, b, side) in [(&all, &lacks, "only in A"), (&lacks, &all, "only in B")] {
        let json = compare(a, b, &["--json"]).says(0, &[]).json();
        assert_eq!((&json["whole"], &json["total"]), (&false.into(), &Json::Null));
        assert_eq!(json["not_compared"][0]["name"], "blk.0.attn_q.bias");
        let ran = compare(a, b, &[]);
        assert!(ran.out.contains(&format!("not compared: blk.0.attn_q.bias ({side})")), "{}", ran.out);
        assert!(ran.out.contains("what was compared") && !ran.out.contains("\nall "), "{}", ran.out);
    }
}

#[test]
fn a_vector_is_not_compared_with_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let Paths { base, chat, .. } = Trio::small().write(folder.path());
    let patch = folder.path().join("patch.gguf");
    extract(&base, &chat, "q8_0", &patch);
    compare(&patch, &chat, &[]).says(4, &["patch.gguf is a patch", "chat.gguf is a model", "two patches"]);
    compare(&chat, &patch, &[]).says(4, &["patch.gguf is a patch", "chat.gguf is a model"]);
    compare(&patch, &patch, &["--base", text(&base), "--chat", text(&chat)]).says(2, &["--base"]);
}

#[test]
fn a_damaged_patch_is_not_compared_without_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Trio::small().write(folder.path());
    let [whole, damaged] = ["whole.gguf", "damaged.gguf"].map(|name| folder.path().join(name));
    extract(&paths.base, &paths.chat, "q8_0", &whole);
    let mut bytes = std::fs::read(&whole).unwrap();
    let at = bytes.len() - 100;
    bytes[at] ^= 4;
    std::fs::write(&damaged, bytes).unwrap();
    for files in [[&whole, &damaged], [&damaged, &whole]] {
        compare(files[0], files[1], &[]).says(0, &["warning", "damaged.gguf: expected the bytes that were written"]);
    }
    assert!(!compare(&whole, &whole, &[]).err.contains("warning"));
}
