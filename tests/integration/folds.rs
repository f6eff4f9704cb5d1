//! Folded weights: rows are turned wherever files, or a patch and a file, fold a tensor differently.
//! All is held against the definition, in float64.

use std::fs;
use std::path::Path;

use chatvec::chat::Tokenizer;
use chatvec::gguf::{Limits, Model};
use chatvec::infer::{Session, Transformer};
use tempfile::tempdir;

use crate::support::{Draft, Tensor, Val, kind};
use crate::trio::{F16, F32, Noise, Paths, Q8_0, Ran, Trio, bundled, chatvec, get, name, read, store, weights};

fn tensor<'a>(draft: &'a Draft, wanted: &str) -> &'a Tensor {
    draft.tensors.iter().find(|t| name(t) == wanted).unwrap_or_else(|| panic!("no {wanted}"))
}

fn shown(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn extract(paths: &Paths, out: &Path, options: &[&str]) -> Ran {
    let args = ["extract", "--base", &shown(&paths.base), "--chat", &shown(&paths.chat), "-o", &shown(out)];
    chatvec([&args[..], options].concat())
}

fn apply(model: &Path, patch: &Path, out: &Path, options: &[&str]) -> Ran {
    let patch = format!("{}@0.7", shown(patch));
    chatvec([&["apply", "--model", &shown(model), &patch, "-o", &shown(out)], options].concat())
}

const BLOCK: usize = 64;

/// Σ of a row's blocks with the normalised Hadamard matrix: its own inverse.
fn hadamard(row: &[f64], block: usize) -> Vec<f64> {
    let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    let of_block = |x: &[f64]| -> Vec<f64> {
        (0..block)
            .map(|j| x.iter().enumerate().map(|(i, x)| x * sign(i, j)).sum::<f64>() / (block as f64).sqrt())
            .collect()
    };
    row.chunks(block).flat_map(of_block).collect()
}

/// How a test folds a file.
#[derive(Clone)]
struct Fold {
    block: usize,
    /// By the number of weights in a row, those of them that some tensor has.
    signs: Vec<Vec<i32>>,
    is_folded: fn(&str) -> bool,
    is_tied: bool,
}

impl Fold {
    fn of_matrices() -> Fold {
        let is_folded = |name: &str| name.starts_with("blk.") || name == "output.weight";
        Fold { block: BLOCK, signs: Vec::new(), is_folded, is_tied: false }
    }

    fn signed(seed: u64) -> Fold {
        let mut noise = Noise(seed);
        let mut signs = |n: usize| (0..n).map(|_| if noise.next() < 0.5 { 1 } else { -1 }).collect();
        Fold { signs: [256, 512, 768].map(&mut signs).to_vec(), ..Fold::of_matrices() }
    }

    /// Of all matrices, embeddings too.
    fn of_everything() -> Fold {
        Fold { is_folded: |name| name.ends_with(".weight"), ..Fold::signed(4) }
    }

    fn signs_of(&self, len: usize) -> Vec<f64> {
        let signs = self.signs.iter().find(|signs| signs.len() == len);
        signs.map_or(vec![1.0; len], |signs| signs.iter().map(|s| f64::from(*s)).collect())
    }

    fn row(&self, row: &[f64]) -> Vec<f64> {
        let signed: Vec<f64> = row.iter().zip(self.signs_of(row.len())).map(|(x, s)| x * s).collect();
        hadamard(&signed, self.block)
    }

    fn inverse(&self, row: &[f64]) -> Vec<f64> {
        hadamard(row, self.block).iter().zip(self.signs_of(row.len())).map(|(x, s)| x * s).collect()
    }

    fn names(&self, draft: &Draft) -> Vec<String> {
        let is_matrix = |t: &&Tensor| t.ne.len() == 2 && (self.is_folded)(name(t));
        draft.tensors.iter().filter(is_matrix).map(|t| name(t).to_owned()).collect()
    }

    /// The keys of a fold, and weights that are folded, in this type.
    fn fold(&self, draft: &Draft, ty: u32) -> Draft {
        let mut folded = draft.clone();
        let names = self.names(draft);
        for name in &names {
            let tensor = folded.tensor(name);
            let (values, n) = (weights(tensor), tensor.ne[0] as usize);
            let values: Vec<f64> = values.into_iter().map(f64::from).collect();
            let rows: Vec<f32> = values.chunks(n).flat_map(|row| self.row(row)).map(|x| x as f32).collect();
            store(tensor, ty, &rows);
        }
        self.describe(&mut folded, &names);
        folded
    }

    fn describe(&self, draft: &mut Draft, names: &[String]) {
        let mut set = |key: &str, val| draft.set(&format!("prism.hadamard.{key}"), val);
        set("version", Val::U32(if self.is_tied { 2 } else { 1 }));
        set("block_size", Val::U32(self.block as u32));
        set("transform", Val::str("normalized-sylvester-walsh-hadamard"));
        set("axis", Val::str("input-last-dimension"));
        set("sign_mode", Val::str(if self.signs.is_empty() { "identity" } else { "explicit" }));
        if !self.signs.is_empty() {
            let widths = self.signs.iter().map(|signs| Val::I32(signs.len() as i32)).collect();
            set("sign_widths", Val::Array(kind::I32, widths));
            let values = self.signs.iter().flatten().map(|s| Val::I32(*s)).collect();
            set("sign_values", Val::Array(kind::I32, values));
        }
        if self.is_tied {
            set("tied_output", Val::Bool(1));
        }
        let (inverse, plain): (Vec<&String>, Vec<_>) = names.iter().partition(|name| *name == "token_embd.weight");
        set("weight_names", Val::strs(plain));
        if !inverse.is_empty() {
            set("inverse_weight_names", Val::strs(inverse));
        }
    }
}

/// The small trio as F32, so that a fold costs nothing.
fn plain() -> Trio {
    let mut trio = Trio::small();
    trio.each(|draft| {
        for tensor in &mut draft.tensors {
            let values = weights(tensor);
            store(tensor, F32, &values);
        }
    });
    trio
}

fn folded(trio: &Trio, folds: [Option<&Fold>; 3]) -> Trio {
    let [base, chat, cp] = folds;
    let fold = |draft: &Draft, fold: Option<&Fold>| fold.map_or_else(|| draft.clone(), |fold| fold.fold(draft, F32));
    Trio { base: fold(&trio.base, base), chat: fold(&trio.chat, chat), cp: fold(&trio.cp, cp) }
}

/// The weights of a tensor in true coordinates.
fn unfolded(t: &Tensor, fold: Option<&Fold>) -> Vec<f64> {
    let stored: Vec<f64> = weights(t).into_iter().map(f64::from).collect();
    match fold.filter(|fold| t.ne.len() == 2 && (fold.is_folded)(name(t))) {
        Some(fold) => stored.chunks(t.ne[0] as usize).flat_map(|row| fold.inverse(row)).collect(),
        None => stored,
    }
}

/// The output is folded as it should be, and in true coordinates it is the sum.
#[track_caller]
fn is_the_sum(what: &str, merged: &Draft, trio: &Trio, fold: Option<&Fold>, ratio: f64) {
    for t in &merged.tensors {
        let of = |draft: &Draft| unfolded(tensor(draft, name(t)), None);
        let (base, chat, cp) = (of(&trio.base), of(&trio.chat), of(&trio.cp));
        let sums = cp.iter().zip(base.iter().zip(chat));
        for (i, (found, (m, (b, c)))) in unfolded(t, fold).into_iter().zip(sums).enumerate() {
            let expected = if name(t) == "rope_freqs.weight" { *m } else { m + ratio * (c - b) };
            assert!((found - expected).abs() < 1e-6, "{what}: {} {i}: {found} for {expected}", name(t));
        }
    }
}

fn keys(draft: &Draft) -> Vec<(Vec<u8>, Val)> {
    draft.keys.iter().filter(|(key, _)| key.starts_with(b"prism.")).cloned().collect()
}

/// A trio whose embeddings are tied.
fn tied(mut trio: Trio) -> Trio {
    trio.each(|draft| draft.tensors.retain(|t| name(t) != "output.weight"));
    trio
}

/// Merges files that are folded in these ways, by way of a patch, too.
#[track_caller]
fn merge_and_apply(what: &str, trio: &Trio, folds: [Option<&Fold>; 3]) {
    let folder = tempdir().unwrap();
    let [out, patch] = ["out.gguf", "p.gguf"].map(|name| folder.path().join(name));
    let all = folded(trio, folds);
    let paths = all.write(folder.path());
    let options = ["--special-tokens", "none", "--overwrite"];
    paths.command(&out, &[&["--ratio", "0.7"], &options[..]].concat()).says(0, &[]);
    let merged = read(&out);
    is_the_sum(what, &merged, trio, folds[2], 0.7);
    assert_eq!(keys(&merged), keys(&all.cp), "{what}");

    // The patch is folded as the chat is, and says so.
    extract(&paths, &patch, &["--encoding", "f32"]).says(0, &[]);
    let found = read(&patch);
    let version = if folds[1].is_some() { 2 } else { 1 };
    assert_eq!(get(&found, "chatvec.patch.version"), Some(&Val::U32(version)), "{what}");
    assert_eq!(keys(&found), keys(&all.chat), "{what}");
    apply(&paths.cp, &patch, &out, &options).says(0, &[]);
    is_the_sum(&format!("{what}, patch"), &read(&out), trio, folds[2], 0.7);
}

#[test]
fn files_are_added_in_true_coordinates_whichever_of_them_are_folded() {
    let trio = plain();
    let down = Fold { is_folded: |name| name == "blk.0.ffn_down.weight", ..Fold::of_matrices() };
    let two = Fold { is_tied: true, ..Fold::of_everything() };
    for (what, fold) in [
        ("matrices", Fold::of_matrices()),
        ("one matrix", down),
        ("signs", Fold::signed(3)),
        ("everything", Fold::of_everything()),
        ("tied", two),
    ] {
        let trio = if fold.is_tied { tied(trio.clone()) } else { trio.clone() };
        for which in 0..8 {
            let folds = [0, 1, 2].map(|i| (which >> i & 1 == 1).then_some(&fold));
            merge_and_apply(&format!("{what} {which:03b}"), &trio, folds);
        }
    }
}

#[test]
fn files_are_added_in_true_coordinates_however_each_is_folded() {
    let trio = plain();
    let (all, coarse) = (Fold::of_matrices(), Fold { block: 256, ..Fold::of_matrices() });
    let (signs, others, everything) = (Fold::signed(1), Fold::signed(2), Fold::of_everything());
    for (what, folds) in [
        ("blocks", [&coarse, &coarse, &all]),
        ("signs of the model", [&signs, &signs, &others]),
        ("signs of the chat", [&signs, &all, &signs]),
        ("names", [&all, &all, &everything]),
        ("all", [&everything, &signs, &coarse]),
    ] {
        merge_and_apply(what, &trio, folds.map(Some));
    }
}

#[test]
fn a_patch_in_any_encoding_and_a_selection_of_weights_are_turned_too() {
    let folder = tempdir().unwrap();
    let (trio, fold) = (plain(), Fold::signed(1));
    let [patch, plain_out, out] = ["p.gguf", "plain.gguf", "out.gguf"].map(|name| folder.path().join(name));
    let plain = trio.write(folder.path());
    let model = fold.fold(&trio.cp, F32).write(folder.path(), "folded.gguf");
    let options = ["--special-tokens", "none", "--overwrite", "--force", "--on-loss", "warn"];
    let is_near = |what: &str| {
        for t in &read(&out).tensors {
            let expected = unfolded(tensor(&read(&plain_out), name(t)), None);
            for (found, expected) in unfolded(t, Some(&fold)).into_iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "{what}: {}: {found} for {expected}", name(t));
            }
        }
    };
    for encoding in ["q4_k", "lora:8", "svd:2"] {
        extract(&plain, &patch, &["--encoding", encoding, "--overwrite", "--force"]);
        apply(&plain.cp, &patch, &plain_out, &options).says(0, &[]);
        apply(&model, &patch, &out, &options).says(0, &[]);
        is_near(encoding);
    }
    // What is selected are weights of the output's coordinates, so that a fold selects others.
    let paths = Paths { cp: model, ..plain };
    let ties = ["--method", "ties", "--density", "0.5"];
    paths.command(&out, &[&options[..], &ties].concat()).says(0, &[]);
    let all = folded(&trio, [Some(&fold); 3]);
    let folder = tempdir().unwrap();
    let other = folder.path().join("out.gguf");
    all.write(folder.path()).command(&other, &[&options[..], &ties].concat()).says(0, &[]);
    let (found, expected) = (read(&out), read(&other));
    for t in &found.tensors {
        let pairs = || unfolded(t, None).into_iter().zip(unfolded(tensor(&expected, name(t)), None));
        // Weights at the edge of the selection fall on either side.
        let n_other = pairs().filter(|(f, e)| (f - e).abs() > 1e-6).count();
        assert!(n_other * 1000 <= pairs().count(), "{}: {n_other} others", name(t));
    }
}

#[test]
fn rows_of_special_tokens_are_turned_and_judged_in_true_coordinates() {
    let folder = tempdir().unwrap();
    let (trio, fold) = (Trio::bundled(), Fold::of_everything());
    let [plain, out] = ["plain.gguf", "out.gguf"].map(|name| folder.path().join(name));
    let options = ["--json", "--type", "F32", "--overwrite"];
    let tokens = |ran: &Ran| ran.says(0, &[]).json()["special_tokens"].clone();
    let ran = trio.write(folder.path()).command(&plain, &options);
    let (expected, special) = (read(&plain), tokens(&ran));
    assert!(special["taken"].as_array().or(special.as_array()).is_some_and(|list| !list.is_empty()), "{special}");
    for which in 1..8 {
        let folds = [0, 1, 2].map(|i| (which >> i & 1 == 1).then_some(&fold));
        let ran = folded(&trio, folds).write(folder.path()).command(&out, &options);
        let found = read(&out);
        assert_eq!(texts(&tokens(&ran)), texts(&special), "{which:03b}");
        let survival = ran.json()["total"]["survival"].as_f64().unwrap();
        assert!((survival - 1.0).abs() < 1e-3, "{which:03b}: {survival}");
        for t in &found.tensors {
            let expected = unfolded(tensor(&expected, name(t)), None);
            for (i, (found, expected)) in unfolded(t, folds[2]).into_iter().zip(expected).enumerate() {
                assert!((found - expected).abs() < 2e-6, "{which:03b} {} {i}: {found} for {expected}", name(t));
            }
        }
    }
}

/// What a result says of special tokens, without numbers, which rounding moves.
fn texts(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Number(_) => String::new(),
        serde_json::Value::Array(list) => list.iter().map(texts).collect(),
        serde_json::Value::Object(map) => map.iter().map(|(key, value)| format!("{key} {}", texts(value))).collect(),
        other => other.to_string(),
    }
}

/// Log-probabilities of each token of a text after those before it, all of the vocabulary. The text
/// is of prompts that the model knows.
fn log_probabilities(path: &Path) -> Vec<f32> {
    let file = Model::open(path, &Limits::default()).unwrap();
    let model = Transformer::load(&file, 1).unwrap();
    let text = fs::read_to_string(bundled("chat").with_file_name("prompts-en.jsonl")).unwrap();
    let tokens = Tokenizer::from_metadata(file.metadata()).unwrap().encode(&text, false, true);
    let tokens = &tokens[..128];
    let mut session = Session::new(&model, tokens.len(), 1 << 26).unwrap();
    let mut all = Vec::new();
    let mut add = |_: usize, logits: &[f32]| {
        let largest = logits.iter().copied().fold(f32::MIN, f32::max);
        let sum: f32 = logits.iter().map(|l| (l - largest).exp()).sum();
        all.extend(logits.iter().map(|l| l - largest - sum.ln()));
    };
    session.feed(tokens, 0, &mut add).unwrap();
    all
}

/// How far log-probabilities are apart, in the mean and at most.
fn apart(found: &[f32], expected: &[f32]) -> (f32, f32) {
    assert_eq!(found.len(), expected.len());
    let differences = found.iter().zip(expected).map(|(f, e)| (f - e).abs());
    let (sum, largest) = differences.fold((0.0, 0f32), |(sum, largest), d| (sum + d, largest.max(d)));
    (sum / found.len() as f32, largest)
}

#[test]
fn a_folded_model_answers_as_the_plain_one() {
    let folder = tempdir().unwrap();
    let answers = |draft: &Draft| log_probabilities(&draft.write(folder.path(), "model.gguf"));
    let in_type = |draft: &Draft, ty: u32| {
        let mut draft = draft.clone();
        for tensor in draft.tensors.iter_mut().filter(|t| t.ne.len() == 2) {
            let values = weights(tensor);
            store(tensor, ty, &values);
        }
        draft
    };
    for is_tied in [false, true] {
        let mut plain = read(&bundled("chat"));
        if is_tied {
            plain.tensors.retain(|t| name(t) != "output.weight");
        }
        let exact = answers(&in_type(&plain, F32));
        // What F16 costs by itself: activations are rounded for it.
        let (usual, _) = apart(&answers(&plain), &exact);
        let part = Fold { is_folded: |name| name.contains("ffn_"), ..Fold::signed(7) };
        let everything = Fold { is_tied, ..Fold::of_everything() };
        for fold in [Fold::of_matrices(), Fold::signed(5), part.clone(), everything] {
            // A tied output is folded with its embeddings, or not at all.
            let fold = if is_tied && !fold.is_tied { part.clone() } else { fold };
            let (_, largest) = apart(&answers(&fold.fold(&in_type(&plain, F32), F32)), &exact);
            assert!(largest <= 1e-4, "{largest}");
            // In F16 a fold rounds other weights, so that they are held against those.
            let folded = fold.fold(&plain, F16);
            let mut same = in_type(&plain, F32);
            for t in folded.tensors.iter().filter(|t| t.ne.len() == 2) {
                let values: Vec<f32> = unfolded(t, Some(&fold)).into_iter().map(|w| w as f32).collect();
                store(same.tensor(name(t)), F32, &values);
            }
            let (mean, _) = apart(&answers(&folded), &answers(&same));
            assert!(mean <= 1.5 * usual && usual < 2e-3, "{mean}, and {usual} without a fold");
        }
    }
}

#[test]
fn one_fold_may_be_said_in_several_ways() {
    let folder = tempdir().unwrap();
    let (trio, fold) = (plain(), Fold::of_matrices());
    let mut all = folded(&trio, [Some(&fold); 3]);
    // Names in another order and of tensors that are not there, integers of another width, and
    // signs that are all +.
    let Some(Val::Array(_, mut names)) = get(&all.base, "prism.hadamard.weight_names").cloned() else { panic!() };
    names.reverse();
    names.push(Val::str("blk.7.ffn_up.weight"));
    all.base.set("prism.hadamard.weight_names", Val::Array(kind::STRING, names));
    all.base.set("prism.hadamard.block_size", Val::U64(BLOCK as u64));
    all.base.set("prism.hadamard.gdn_v_grouped", Val::Bool(0));
    all.base.set("prism.hadamard.sign_mode", Val::str("explicit"));
    let widths = [256, 512, 768].map(Val::I32).to_vec();
    all.base.set("prism.hadamard.sign_widths", Val::Array(kind::I32, widths));
    all.base.set("prism.hadamard.sign_values", Val::Array(kind::I8, vec![Val::I8(1); 1536]));
    let paths = all.write(folder.path());
    let out = folder.path().join("out.gguf");
    paths.command(&out, &["--special-tokens", "none"]).says(0, &[]);
    is_the_sum("said otherwise", &read(&out), &trio, Some(&fold), 1.0);
}

#[test]
fn a_fold_that_is_not_known_is_refused_even_if_all_files_agree() {
    let folder = tempdir().unwrap();
    let (trio, fold) = (plain(), Fold::signed(1));
    let all = folded(&trio, [Some(&fold); 3]);
    let out = folder.path().join("out.gguf");
    let ones = |n: usize| Val::Array(kind::I32, vec![Val::I32(1); n]);
    for (key, value) in [
        ("version", Val::U32(3)),
        ("version", Val::str("1")),
        ("block_size", Val::U32(48)),
        ("block_size", Val::U32(512)),
        ("transform", Val::str("fourier")),
        ("axis", Val::str("output")),
        ("sign_mode", Val::str("learnt")),
        ("weight_names", Val::U32(1)),
        ("inverse_weight_names", Val::str("token_embd.weight")),
        ("gdn_v_grouped", Val::U32(1)),
        ("tied_output", Val::Bool(1)),
        ("sign_values", Val::Array(kind::I32, vec![Val::I32(2); 1536])),
        ("sign_widths", ones(0)),
        ("sign_widths", Val::Array(kind::I64, vec![Val::I64(-64), Val::I64(i64::MAX)])),
        ("sign_widths", Val::Array(kind::I32, vec![Val::I32(64); 4])),
    ] {
        let mut spoilt = all.clone();
        spoilt.each(|draft| draft.set(&format!("prism.hadamard.{key}"), value.clone()));
        let ran = spoilt.write(folder.path()).command(&out, &["--force"]);
        let named = if key == "block_size" { "prism.hadamard." } else { &format!("prism.hadamard.{key}") };
        ran.says(5, &[named, "expected"]);
        assert!(!out.exists(), "{key}");
    }
    for (key, value, words) in [
        ("row_permutation", Val::U32(1), "no key of this name"),
        ("weight_names", Val::strs(["output_norm.weight"]), "output_norm.weight"),
        ("inverse_weight_names", Val::strs(["output.weight"]), "token_embd.weight"),
    ] {
        let mut spoilt = all.clone();
        spoilt.cp.set(&format!("prism.hadamard.{key}"), value);
        let ran = spoilt.write(folder.path()).command(&out, &["--force"]);
        ran.says(5, &[&format!("prism.hadamard.{key}"), words]);
        assert!(!out.exists(), "{key}");
    }
    let mut lacking = all;
    lacking.each(|draft| draft.keys.retain(|(key, _)| key != b"prism.hadamard.version"));
    lacking.write(folder.path()).command(&out, &["--force"]).says(5, &["prism.hadamard.version", "no such key"]);
}

#[test]
fn a_folded_model_is_read_through_and_gives_a_matrix_of_its_own_activations() {
    let folder = tempdir().unwrap();
    let text = folder.path().join("text.txt");
    fs::write(&text, "Ein Text. ".repeat(400)).unwrap();
    let fold = Fold::signed(8);
    let plain = read(&bundled("chat"));
    let model = shown(&fold.fold(&plain, F32).write(folder.path(), "folded.gguf"));
    let (unfolded_model, text) = (shown(&plain.write(folder.path(), "plain.gguf")), shown(&text));
    let ran = chatvec(["compare", &unfolded_model, &model, "--text", &text, "--json"]);
    let kl = ran.says(0, &[]).json()["logits"]["kl"]["mean"]["value"].as_f64().unwrap();
    assert!(kl.abs() < 1e-5, "{kl}");

    // Of activations that are turned as the weights are: the sum of their squares stays.
    let matrix = |model: &str, name: &str| {
        let out = folder.path().join(name);
        let ran = chatvec(["imatrix", model, "--text", &text, "-o", &shown(&out), "--chunks", "2"]);
        assert_eq!(ran.code, 0, "{ran:#?}");
        let found = read(&out);
        weights(tensor(&found, "blk.0.ffn_down.weight.in_sum2"))
    };
    let (of_plain, of_folded) = (matrix(&unfolded_model, "a.gguf"), matrix(&model, "b.gguf"));
    let sum = |numbers: &[f32]| numbers.iter().map(|n| f64::from(*n)).sum::<f64>();
    assert!((sum(&of_plain) / sum(&of_folded) - 1.0).abs() < 1e-4);
    let spread = |numbers: &[f32]| numbers.iter().copied().fold(0f32, f32::max) / sum(numbers) as f32;
    assert!(spread(&of_folded) < 0.9 * spread(&of_plain), "{} {}", spread(&of_folded), spread(&of_plain));
}

#[test]
fn where_llama_cpp_reads_no_folds_none_are_asked() {
    let folder = tempdir().unwrap();
    let mut draft = read(&bundled("chat"));
    for (key, _) in &mut draft.keys {
        if let Some(rest) = key.strip_prefix(b"llama.") {
            *key = [b"qwen2.", rest].concat();
        }
    }
    draft.set("general.architecture", Val::str("qwen2"));
    Fold::of_matrices().describe(&mut draft, &["blk.0.attn_q.weight".to_owned()]);
    let model = shown(&draft.write(folder.path(), "folded.gguf"));
    chatvec(["smoke", &model]).says(5, &["prism.hadamard.", "qwen2", "plain weights"]);
}

#[test]
fn what_is_compared_are_true_weights() {
    let folder = tempdir().unwrap();
    let (trio, fold, other) = (plain(), Fold::of_matrices(), Fold::signed(2));
    let all = Trio { base: trio.base.clone(), chat: fold.fold(&trio.chat, F32), cp: other.fold(&trio.cp, F32) };
    let distances = |paths: &Paths| -> Vec<(String, f64)> {
        let [base, chat, cp] = [&paths.base, &paths.chat, &paths.cp].map(|path| shown(path));
        let ran = chatvec(["compare", &cp, &chat, "--base", &base, "--chat", &chat, "--json"]);
        let json = ran.says(0, &[]).json();
        let of = |t: &serde_json::Value| (t["name"].as_str().unwrap().to_owned(), t["relative"].as_f64().unwrap());
        json["tensors"].as_array().unwrap().iter().map(of).collect()
    };
    let expected = distances(&trio.write(folder.path()));
    let found = distances(&all.write(folder.path()));
    assert_eq!(found.len(), expected.len());
    for ((name, found), (_, expected)) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-5, "{name}: {found} for {expected}");
    }

    // And so are vectors.
    let paths = trio.write(folder.path());
    let [one, two] = ["one.gguf", "two.gguf"].map(|name| folder.path().join(name));
    extract(&paths, &one, &["--encoding", "f32"]).says(0, &[]);
    extract(&folded(&trio, [None, Some(&other), None]).write(folder.path()), &two, &["--encoding", "f32"]);
    let json = chatvec(["compare", &shown(&one), &shown(&two), "--json"]).says(0, &[]).json();
    for t in json["tensors"].as_array().unwrap() {
        assert!(t["relative"].as_f64().unwrap() < 1e-4, "{t}");
    }
}

#[test]
fn heads_that_one_file_groups_and_another_does_not_are_refused() {
    let folder = tempdir().unwrap();
    let mut trio = plain();
    trio.each(|draft| {
        let mut tensor = Tensor::new("blk.0.ssm_out.weight", &[256, 4], F32);
        store(&mut tensor, F32, &vec![0.5; 1024]);
        draft.tensors.push(tensor);
    });
    let fold = Fold { is_folded: |name| name == "blk.0.ssm_out.weight", ..Fold::of_matrices() };
    let mut all = folded(&trio, [Some(&fold); 3]);
    all.cp.set("prism.hadamard.gdn_v_grouped", Val::Bool(1));
    let out = folder.path().join("out.gguf");
    let words = ["prism.hadamard.gdn_v_grouped", "blk.0.ssm_out.weight", "cp.gguf", "plain"];
    for options in [&["--force"][..], &["--force", "--dry-run"]] {
        all.write(folder.path()).command(&out, options).says(4, &words);
        assert!(!out.exists());
    }
    all.each(|draft| draft.set("prism.hadamard.gdn_v_grouped", Val::Bool(1)));
    all.write(folder.path()).command(&out, &["--special-tokens", "none"]).says(0, &[]);
}

#[test]
fn no_adapter_is_made_of_folded_matrices_and_a_matrix_of_importance_is_warned_of() {
    let folder = tempdir().unwrap();
    let (trio, fold) = (plain(), Fold::of_matrices());
    let paths = folded(&trio, [Some(&fold); 3]).write(folder.path());
    let [lora, out] = ["lora.gguf", "out.gguf"].map(|name| folder.path().join(name));
    let args = ["extract", "--base", &shown(&paths.base), "--chat", &shown(&paths.chat), "--lora", &shown(&lora)]
        .map(str::to_owned);
    chatvec(args).says(5, &["--lora", "prism.hadamard."]);
    let options = ["--type", "Q8_0", "--residual-lora", &shown(&lora)].map(str::to_owned);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    paths.command(&out, &options).says(5, &["--residual-lora", "prism.hadamard."]);
    assert!(!lora.exists() && !out.exists());

    // What is only quantised keeps its keys; an importance matrix does not say of which activations
    // it is.
    let [model, quantized] = [&paths.cp, &out].map(|path| shown(path));
    chatvec(["quantize", &model, "-o", &quantized, "--type", "Q8_0"]).is_quiet();
    let found = read(&out);
    assert_eq!(get(&found, "prism.hadamard.weight_names"), get(&read(&paths.cp), "prism.hadamard.weight_names"));
    assert_eq!(tensor(&found, "blk.0.attn_q.weight").ty, Q8_0);
    let mut matrix = Draft::default();
    matrix.set("general.type", Val::str("imatrix"));
    matrix.set("imatrix.datasets", Val::strs(["text"]));
    matrix.set("imatrix.chunk_count", Val::U32(1));
    matrix.set("imatrix.chunk_size", Val::U32(1));
    for (end, n) in [("in_sum2", 256), ("counts", 1)] {
        let mut tensor = Tensor::new(&format!("blk.0.attn_q.weight.{end}"), &[n, 1], F32);
        store(&mut tensor, F32, &vec![1.0; n as usize]);
        matrix.tensors.push(tensor);
    }
    let matrix = shown(&matrix.write(folder.path(), "i.gguf"));
    let ran = chatvec(["quantize", &model, "-o", &quantized, "--type", "Q4_0", "--imatrix", &matrix, "--overwrite"]);
    ran.says(0, &["warning", "prism.hadamard.", "importance matrix"]);
}
