//! Numbers that are not added as they are stored: state-space decays, added as logarithms, and
//! folded weights, which are added only to weights that are folded alike. Decays are held against
//! numpy (`fixtures/spaces`), folds against the definition.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tempfile::tempdir;

use crate::support::{Draft, Tensor, Val, kind};
use crate::trio::{
    F16, F32, Noise, Paths, Q8_0, Ran, Trio, bundled, change, chatvec, drifted, get, name, read, store, weights,
};

const DECAY: [&str; 2] = ["blk.0.ssm_a", "blk.1.ssm_a"];

#[derive(Deserialize)]
struct Decay {
    given: BTreeMap<String, Given>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Given {
    ne: Vec<u64>,
    base: Vec<f32>,
    chat: Vec<f32>,
    style: Vec<f32>,
    cp: Vec<f32>,
}

#[derive(Deserialize)]
struct Case {
    method: String,
    ratios: BTreeMap<String, f64>,
    density: Option<f64>,
    out: BTreeMap<String, Vec<f64>>,
}

/// What numpy made.
fn goldens() -> Decay {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/spaces/decay.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The small trio and a second chat model, each with the decays that numpy drew.
struct Files {
    trio: Trio,
    style: Draft,
}

impl Files {
    fn new() -> Files {
        let mut files = Files { style: drifted(&Trio::small().base, "small style", 9, 0.002), trio: Trio::small() };
        for (name, given) in goldens().given {
            let Files { trio: Trio { base, chat, cp }, style } = &mut files;
            let all = [(base, &given.base), (chat, &given.chat), (cp, &given.cp), (style, &given.style)];
            for (draft, values) in all {
                let mut tensor = Tensor::new(&name, &given.ne, F32);
                store(&mut tensor, F32, values);
                draft.tensors.push(tensor);
            }
        }
        files
    }

    fn write(&self, folder: &Path) -> (Paths, PathBuf) {
        (self.trio.write(folder), self.style.write(folder, "style.gguf"))
    }
}

fn tensor<'a>(draft: &'a Draft, wanted: &str) -> &'a Tensor {
    draft.tensors.iter().find(|t| name(t) == wanted).unwrap_or_else(|| panic!("no {wanted}"))
}

/// `chatvec merge` onto the model with these vectors.
fn merge(paths: &Paths, vectors: &[String], out: &Path, options: &[&str]) -> Ran {
    let mut args = vec!["merge".to_owned(), "--model".to_owned(), shown(&paths.cp), "-o".to_owned(), shown(out)];
    vectors.iter().for_each(|vector| args.extend(["--vector".to_owned(), vector.clone()]));
    let always = ["--overwrite", "--force", "--special-tokens", "none"];
    args.extend(options.iter().chain(&always).map(|option| (*option).to_owned()));
    chatvec(args)
}

fn shown(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// The largest |found / expected − 1|, in units of what f32 may cost of each weight: 2⁻²⁴ of 6·|ln|
/// for every vector, and 2.
fn worst(found: &[f32], expected: &[f64], given: &Given, ratios: f64) -> f64 {
    assert_eq!(found.len(), expected.len());
    let all = [&given.base, &given.chat, &given.style, &given.cp];
    let of_weight = |i: usize| {
        let largest = all.iter().map(|weights| f64::from(weights[i].abs()).ln().abs()).fold(0.0, f64::max);
        let bound = (6.0 * largest * ratios.max(1.0) + 2.0) * 2f64.powi(-24);
        (f64::from(found[i]) / expected[i] - 1.0).abs() / bound
    };
    (0..found.len()).map(of_weight).fold(0.0, f64::max)
}

#[test]
fn decays_are_multiplied_as_numpy_does_whatever_the_method() {
    let folder = tempdir().unwrap();
    let (paths, style) = Files::new().write(folder.path());
    let out = folder.path().join("out.gguf");
    let goldens = goldens();
    for case in &goldens.cases {
        let is_linear = case.method == "linear";
        let vector = |(of, ratio): (&String, &f64)| {
            let file = match of.as_str() {
                "cp" => &paths.cp,
                "chat" => &paths.chat,
                _ => &style,
            };
            if is_linear {
                format!("{}@{ratio}", shown(file))
            } else {
                format!("{}:{}@{ratio}", shown(&paths.base), shown(file))
            }
        };
        let vectors: Vec<String> = case.ratios.iter().map(vector).collect();
        let density = case.density.map(|density| density.to_string());
        let mut options = vec!["--method", &case.method[..]];
        options.extend(density.iter().flat_map(|density| ["--density", density]));
        let ran = merge(&paths, &vectors, &out, &options);
        assert_eq!(ran.code, 0, "{ran:#?}");
        let merged = read(&out);
        for (name, expected) in &case.out {
            let ratios = case.ratios.values().map(|ratio| ratio.abs()).sum();
            let found = weights(tensor(&merged, name));
            let worst = worst(&found, expected, &goldens.given[name], ratios);
            assert!(worst <= 1.0, "{} {:?} {name}: {worst} of what f32 costs", case.method, case.ratios);
        }
    }
}

#[test]
fn an_equal_base_and_chat_or_a_ratio_of_zero_leave_the_bytes_of_decays() {
    let folder = tempdir().unwrap();
    let mut files = Files::new();
    files.trio.chat.tensors.clone_from(&files.trio.base.tensors);
    let (paths, style) = files.write(folder.path());
    let out = folder.path().join("out.gguf");
    let equal = format!("{}:{}@3", shown(&paths.base), shown(&paths.chat));
    let nothing = format!("{}:{}@0", shown(&paths.base), shown(&style));
    for vectors in [vec![equal.clone()], vec![nothing.clone()], vec![equal, nothing]] {
        let ran = merge(&paths, &vectors, &out, &[]);
        assert_eq!(ran.code, 0, "{ran:#?}");
        let merged = read(&out);
        for name in DECAY {
            assert_eq!(tensor(&merged, name).data, tensor(&files.trio.cp, name).data, "{name} by {vectors:?}");
        }
    }
}

#[test]
fn decays_are_the_same_bytes_for_any_threads_and_memory() {
    let folder = tempdir().unwrap();
    let (paths, style) = Files::new().write(folder.path());
    let vectors = [&paths.chat, &style].map(|chat| format!("{}:{}@0.6", shown(&paths.base), shown(chat)));
    let bytes = |options: &[&str]| {
        let out = folder.path().join("out.gguf");
        let ran = merge(&paths, &vectors, &out, &[&["--method", "ties", "--density", "0.3"], options].concat());
        assert_eq!(ran.code, 0, "{ran:#?}");
        fs::read(out).unwrap()
    };
    assert!(bytes(&["--threads", "1"]) == bytes(&["--threads", "3", "--memory", "4MiB"]));
}

#[test]
fn a_decay_of_another_sign_or_of_zero_is_refused_with_tensor_and_weight() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    for (which, value, code) in
        [("base", 0.5, 4), ("chat", 0.5, 4), ("cp", 0.5, 4), ("base", 0.0, 3), ("chat", -0.0, 3), ("cp", 0.0, 3)]
    {
        let mut files = Files::new();
        let Trio { base, chat, cp } = &mut files.trio;
        let draft =
            [("base", base), ("chat", chat), ("cp", cp)].into_iter().find(|(name, _)| *name == which).unwrap().1;
        change(draft.tensor("blk.0.ssm_a"), |weights| weights[11] = value);
        let (paths, _) = files.write(folder.path());
        for dry in [&["--dry-run"][..], &[]] {
            let ran = paths.command(&out, &[&["--force"], dry].concat());
            ran.says(code, &["blk.0.ssm_a", "weight 11", "A_log"]);
            assert!(!out.exists(), "{which} {value}");
        }
        if which != "cp" {
            extract(&paths, &out, &["--force"]).says(code, &["blk.0.ssm_a", "weight 11"]);
            assert!(!out.exists());
        }
    }
}

fn extract(paths: &Paths, out: &Path, options: &[&str]) -> Ran {
    let mut args = ["extract".to_owned(), "--base".to_owned(), shown(&paths.base)].to_vec();
    args.extend(["--chat".to_owned(), shown(&paths.chat), "-o".to_owned(), shown(out)]);
    args.extend(options.iter().map(|option| (*option).to_owned()));
    chatvec(args)
}

fn apply(paths: &Paths, patch: &Path, out: &Path, options: &[&str]) -> Ran {
    let mut args =
        ["apply".to_owned(), "--model".to_owned(), shown(&paths.cp), shown(patch), "-o".to_owned(), shown(out)];
    args[3].push_str("@0.7");
    let args = args.into_iter().chain(options.iter().map(|option| (*option).to_owned()));
    chatvec(args)
}

#[test]
fn a_patch_says_which_differences_are_of_logarithms_and_applies_as_the_merge() {
    let folder = tempdir().unwrap();
    let files = Files::new();
    let (paths, _) = files.write(folder.path());
    let [patch, applied, merged] = ["p.gguf", "a.gguf", "m.gguf"].map(|name| folder.path().join(name));
    for encoding in ["f32", "q8_0", "lora:4", "svd:1.5"] {
        extract(&paths, &patch, &["--encoding", encoding, "--overwrite", "--force"]);
        let found = read(&patch);
        assert_eq!(get(&found, "chatvec.patch.version"), Some(&Val::U32(2)), "{encoding}");
        assert_eq!(get(&found, "chatvec.patch.logarithms"), Some(&Val::strs(DECAY)), "{encoding}");
        // τ is ln(chat / base), in float64 from the definition.
        for name in DECAY {
            let of = |draft: &Draft| weights(tensor(draft, name));
            for ((t, c), b) in of(&found).iter().zip(of(&files.trio.chat)).zip(of(&files.trio.base)) {
                let exact = (f64::from(c) / f64::from(b)).ln();
                assert!((f64::from(*t) - exact).abs() < 1e-6, "{encoding} {name}: {t} for {exact}");
            }
        }
    }
    extract(&paths, &patch, &["--encoding", "f32", "--overwrite", "--force"]).says(0, &[]);
    apply(&paths, &patch, &applied, &["--force"]).says(0, &[]);
    paths.command(&merged, &["--ratio", "0.7", "--force"]).says(0, &[]);
    let [applied, merged] = [applied, merged].map(|path| read(&path));
    for (a, m) in applied.tensors.iter().zip(&merged.tensors) {
        assert!(a.data == m.data, "{}", name(a));
    }
    let args = ["--base".to_owned(), shown(&paths.base), "--chat".to_owned(), shown(&paths.chat)];
    chatvec([&["verify".to_owned(), shown(&patch)][..], &args].concat()).says(0, &[]);

    // Without such a tensor, or where it is the same in both, a patch is of version 1, which every
    // reader knows.
    let mut plain = files.trio.clone();
    for name in DECAY {
        plain.chat.tensor(name).data = tensor(&plain.base, name).data.clone();
    }
    extract(&plain.write(folder.path()), &patch, &["--encoding", "f32", "--overwrite", "--force"]).says(0, &[]);
    let found = read(&patch);
    assert_eq!(get(&found, "chatvec.patch.version"), Some(&Val::U32(1)));
    assert_eq!(get(&found, "chatvec.patch.logarithms"), None);
}

#[test]
fn a_patch_of_other_differences_than_are_added_is_refused_by_name() {
    let folder = tempdir().unwrap();
    let (paths, _) = Files::new().write(folder.path());
    let [path, out] = ["p.gguf", "out.gguf"].map(|name| folder.path().join(name));
    extract(&paths, &path, &["--encoding", "f32", "--force"]).says(0, &[]);
    let patch = read(&path);
    let words = ["blk.0.ssm_a", "ln(chat / base)", "chat - base", "chatvec extract"];

    // As the version before wrote it.
    let mut older = patch.clone();
    older.set("chatvec.patch.version", Val::U32(1));
    older.keys.retain(|(key, _)| key != b"chatvec.patch.logarithms");
    older.write(folder.path(), "p.gguf");
    apply(&paths, &path, &out, &["--force"]).says(4, &words);

    // As one that knows more of such tensors might.
    let mut newer = patch.clone();
    newer.set("chatvec.patch.logarithms", Val::strs([&DECAY[..], &["blk.0.attn_norm.weight"]].concat()));
    newer.write(folder.path(), "p.gguf");
    apply(&paths, &path, &out, &["--force"]).says(4, &["blk.0.attn_norm.weight", "ln(chat / base)", "chat - base"]);

    let mut later = patch;
    later.set("chatvec.patch.version", Val::U32(3));
    later.write(folder.path(), "p.gguf");
    apply(&paths, &path, &out, &["--force"]).says(5, &["chatvec.patch.version", "at most 2"]);
    assert!(!out.exists());
}

#[test]
fn what_is_compared_of_decays_are_their_logarithms() {
    let folder = tempdir().unwrap();
    let files = Files::new();
    let (paths, _) = files.write(folder.path());
    let merged = folder.path().join("m.gguf");
    paths.command(&merged, &["--force"]).says(0, &[]);
    let flags = ["--base", "--chat"].into_iter().zip([&paths.base, &paths.chat]);
    let args = flags.flat_map(|(flag, path)| [flag.to_owned(), shown(path)]);
    let ran =
        chatvec(["compare", &shown(&paths.cp), &shown(&merged), "--json"].map(str::to_owned).into_iter().chain(args));
    ran.says(0, &[]);
    let json = ran.json();
    for name in DECAY {
        let found = json["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name);
        let found = found.unwrap_or_else(|| panic!("no {name} in {json}"));
        let number = |key: &str| found[key].as_f64().unwrap_or_else(|| panic!("no {key} in {found}"));
        assert!((number("survival") - 1.0).abs() < 1e-4, "{name}: {found}");
        let a2: f64 = weights(tensor(&files.trio.cp, name)).iter().map(|w| f64::from(w.abs()).ln().powi(2)).sum();
        assert!((number("norm_a") / a2.sqrt() - 1.0).abs() < 1e-5, "{name}: {found}");
    }
}

#[test]
fn a_decay_that_its_type_cannot_hold_is_an_error() {
    let folder = tempdir().unwrap();
    let mut files = Files::new();
    files.trio.each(|draft| {
        let tensor = draft.tensor("blk.0.ssm_a");
        let values = weights(tensor);
        store(tensor, F16, &values);
    });
    let set = |draft: &mut Draft, value: f32| change(draft.tensor("blk.0.ssm_a"), |weights| weights[5] = value);
    set(&mut files.trio.base, -1.0);
    set(&mut files.trio.chat, -1e-5);
    set(&mut files.trio.cp, -1e-3);
    let (paths, _) = files.write(folder.path());
    let out = folder.path().join("out.gguf");
    // 1e-8 is nothing in F16.
    let ran = paths.command(&out, &["--force"]);
    ran.says(5, &["blk.0.ssm_a", "weight 5", "F16", "e-8"]);
    assert!(!out.exists());
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
    signs: Vec<i32>,
    is_folded: fn(&str) -> bool,
}

impl Fold {
    fn of_matrices() -> Fold {
        Fold {
            block: BLOCK,
            signs: vec![1; 256],
            is_folded: |name| name.starts_with("blk.") || name == "output.weight",
        }
    }

    fn signed(seed: u64) -> Fold {
        let mut noise = Noise(seed);
        let signs = (0..256).map(|_| if noise.next() < 0.5 { 1 } else { -1 }).collect();
        Fold { signs, ..Fold::of_matrices() }
    }

    fn row(&self, row: &[f64]) -> Vec<f64> {
        let signed: Vec<f64> = row.iter().zip(&self.signs).map(|(x, s)| x * f64::from(*s)).collect();
        hadamard(&signed, self.block)
    }

    fn inverse(&self, row: &[f64]) -> Vec<f64> {
        hadamard(row, self.block).iter().zip(&self.signs).map(|(x, s)| x * f64::from(*s)).collect()
    }

    fn names(&self, draft: &Draft) -> Vec<String> {
        let is_matrix = |t: &&Tensor| t.ne.len() == 2 && (self.is_folded)(name(t));
        draft.tensors.iter().filter(is_matrix).map(|t| name(t).to_owned()).collect()
    }

    /// The keys of a fold, and weights that are folded, in F32.
    fn fold(&self, draft: &Draft) -> Draft {
        let mut folded = draft.clone();
        let names = self.names(draft);
        for name in &names {
            let tensor = folded.tensor(name);
            let values: Vec<f64> = weights(tensor).into_iter().map(f64::from).collect();
            let rows: Vec<f32> = values.chunks(256).flat_map(|row| self.row(row)).map(|x| x as f32).collect();
            store(tensor, F32, &rows);
        }
        self.describe(&mut folded, &names);
        folded
    }

    fn describe(&self, draft: &mut Draft, names: &[String]) {
        let mut set = |key: &str, val| draft.set(&format!("prism.hadamard.{key}"), val);
        set("version", Val::U32(1));
        set("block_size", Val::U32(self.block as u32));
        set("transform", Val::str("normalized-sylvester-walsh-hadamard"));
        set("axis", Val::str("input-last-dimension"));
        let is_identity = self.signs.iter().all(|s| *s == 1);
        set("sign_mode", Val::str(if is_identity { "identity" } else { "explicit" }));
        if !is_identity {
            set("sign_widths", Val::Array(kind::I32, vec![Val::I32(256)]));
            set("sign_values", Val::Array(kind::I32, self.signs.iter().map(|s| Val::I32(*s)).collect()));
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
    let fold = |draft: &Draft, fold: Option<&Fold>| fold.map_or_else(|| draft.clone(), |fold| fold.fold(draft));
    Trio { base: fold(&trio.base, base), chat: fold(&trio.chat, chat), cp: fold(&trio.cp, cp) }
}

/// The output is folded like the inputs, and in true coordinates it is the sum.
#[track_caller]
fn is_the_sum(merged: &Draft, trio: &Trio, fold: &Fold, ratio: f64) {
    let names = fold.names(&trio.cp);
    for t in &merged.tensors {
        let of = |draft: &Draft| -> Vec<f64> { weights(tensor(draft, name(t))).into_iter().map(f64::from).collect() };
        let (base, chat, cp) = (of(&trio.base), of(&trio.chat), of(&trio.cp));
        let stored: Vec<f64> = weights(t).into_iter().map(f64::from).collect();
        let found: Vec<f64> = match names.iter().any(|folded| folded == name(t)) {
            true => stored.chunks(256).flat_map(|row| fold.inverse(row)).collect(),
            false => stored,
        };
        for (i, ((found, m), (b, c))) in found.iter().zip(cp).zip(base.iter().zip(chat)).enumerate() {
            let expected = if name(t) == "rope_freqs.weight" { m } else { m + ratio * (c - b) };
            assert!((found - expected).abs() < 1e-6, "{} {i}: {found} for {expected}", name(t));
        }
    }
}

#[test]
fn files_that_are_folded_alike_are_added_in_true_coordinates() {
    let folder = tempdir().unwrap();
    let trio = plain();
    let [out, patch] = ["out.gguf", "p.gguf"].map(|name| folder.path().join(name));
    let everything = Fold { is_folded: |name| name.ends_with(".weight"), ..Fold::signed(4) };
    for fold in [Fold::of_matrices(), Fold::signed(3), everything] {
        let all = folded(&trio, [Some(&fold); 3]);
        let paths = all.write(folder.path());
        paths.command(&out, &["--ratio", "0.7", "--overwrite", "--special-tokens", "none"]).says(0, &[]);
        let merged = read(&out);
        is_the_sum(&merged, &trio, &fold, 0.7);
        let keys = |draft: &Draft| {
            draft.keys.iter().filter(|(key, _)| key.starts_with(b"prism.")).cloned().collect::<Vec<_>>()
        };
        assert_eq!(keys(&merged), keys(&all.cp));

        // And by way of a patch, which says how it is folded.
        extract(&paths, &patch, &["--encoding", "f32", "--overwrite"]).says(0, &[]);
        let found = read(&patch);
        assert_eq!(get(&found, "chatvec.patch.version"), Some(&Val::U32(2)));
        assert_eq!(keys(&found), keys(&all.base));
        apply(&paths, &patch, &out, &["--overwrite", "--special-tokens", "none"]).says(0, &[]);
        is_the_sum(&read(&out), &trio, &fold, 0.7);
    }
}

#[test]
fn files_that_fold_a_tensor_differently_are_refused_by_key_and_file_before_anything_is_written() {
    let folder = tempdir().unwrap();
    let trio = plain();
    let out = folder.path().join("out.gguf");
    let all = Fold::of_matrices();
    let down = Fold { is_folded: |name| name == "blk.0.ffn_down.weight", ..all.clone() };
    let embeddings = Fold { is_folded: |name| name.ends_with(".weight"), ..all.clone() };
    let coarse = Fold { block: 128, ..all.clone() };
    let (signs, others) = (Fold::signed(1), Fold::signed(2));
    let cases: [(&str, [Option<&Fold>; 3]); 9] = [
        ("weight_names", [None, None, Some(&all)]),
        ("weight_names", [Some(&all), Some(&all), None]),
        ("weight_names", [Some(&all), None, Some(&all)]),
        ("weight_names", [None, Some(&all), None]),
        ("weight_names", [None, None, Some(&down)]),
        ("weight_names", [Some(&all), Some(&all), Some(&embeddings)]),
        ("block_size", [Some(&coarse), Some(&coarse), Some(&all)]),
        ("sign_values", [Some(&signs), Some(&signs), Some(&others)]),
        ("sign_values", [Some(&signs), Some(&all), Some(&signs)]),
    ];
    for (key, folds) in cases {
        let paths = folded(&trio, folds).write(folder.path());
        for options in
            [&["--force"][..], &["--force", "--dry-run"], &["--force", "--method", "ties", "--density", "0.5"]]
        {
            let ran = paths.command(&out, options);
            ran.says(4, &[&format!("prism.hadamard.{key}"), ".weight", ".gguf", "plain"]);
            assert!(!out.exists(), "{key}");
        }
        let is_pair_mixed = folds[0].map(|f| f.block) != folds[1].map(|f| f.block)
            || folds[0].map(|f| &f.signs) != folds[1].map(|f| &f.signs);
        if is_pair_mixed {
            extract(&paths, &out, &["--force"]).says(4, &[&format!("prism.hadamard.{key}")]);
            assert!(!out.exists());
        }
    }
}

#[test]
fn a_patch_goes_only_onto_models_that_are_folded_as_it_is() {
    let folder = tempdir().unwrap();
    let trio = plain();
    let [patch, out] = ["p.gguf", "out.gguf"].map(|name| folder.path().join(name));
    let (all, signs) = (Fold::of_matrices(), Fold::signed(1));
    for (of_patch, of_model) in [(None, Some(&all)), (Some(&all), None), (Some(&all), Some(&signs))] {
        let paths = folded(&trio, [of_patch, of_patch, of_model]).write(folder.path());
        for encoding in ["f32", "q4_k", "lora:8"] {
            extract(&paths, &patch, &["--overwrite", "--encoding", encoding]);
            apply(&paths, &patch, &out, &["--force"]).says(4, &["prism.hadamard.", "p.gguf", "cp.gguf"]);
            assert!(!out.exists());
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
    all.base.set("prism.hadamard.sign_widths", Val::Array(kind::I32, vec![Val::I32(256)]));
    all.base.set("prism.hadamard.sign_values", Val::Array(kind::I8, vec![Val::I8(1); 256]));
    let paths = all.write(folder.path());
    let out = folder.path().join("out.gguf");
    paths.command(&out, &["--special-tokens", "none"]).says(0, &[]);
    is_the_sum(&read(&out), &trio, &fold, 1.0);
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
        ("sign_values", Val::Array(kind::I32, vec![Val::I32(2); 256])),
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
    let mut lacking = all;
    lacking.each(|draft| draft.keys.retain(|(key, _)| key != b"prism.hadamard.version"));
    lacking.write(folder.path()).command(&out, &["--force"]).says(5, &["prism.hadamard.version", "no such key"]);
}

#[test]
fn a_folded_model_is_not_asked_nor_read_through() {
    let folder = tempdir().unwrap();
    let text = folder.path().join("text.txt");
    fs::write(&text, "Ein Text. ".repeat(400)).unwrap();
    let fold = Fold { signs: vec![1; 256], ..Fold::of_matrices() };
    let draft = read(&bundled("chat"));
    let mut folded = draft;
    fold.describe(&mut folded, &["blk.0.attn_q.weight".to_owned()]);
    let model = shown(&folded.write(folder.path(), "folded.gguf"));
    let [plain, out] = [bundled("chat"), folder.path().join("out.gguf")].map(|path| shown(&path));
    let text = shown(&text);
    for args in [
        vec!["smoke", &model],
        vec!["compare", &plain, &model, "--text", &text],
        vec!["compare", &model, &model, "--text", &text],
        vec!["imatrix", &model, "--text", &text, "-o", &out],
    ] {
        let ran = chatvec(&args);
        assert!(ran.code == 5 || ran.code == 4 && args[0] == "compare", "{ran:#?}");
        assert!(ran.err.contains("prism.hadamard."), "{ran:#?}");
    }
    let paths = Paths { base: bundled("base"), chat: bundled("chat"), cp: bundled("cp-de") };
    let trio = [&paths.base, &paths.chat, &paths.cp].map(|path| {
        let mut draft = read(path);
        fold.describe(&mut draft, &["blk.0.attn_q.weight".to_owned()]);
        draft
    });
    let [base, chat, cp] = trio;
    let paths = Trio { base, chat, cp }.write(folder.path());
    paths.command(Path::new(&out), &["--smoke"]).says(5, &["--smoke", "prism.hadamard."]);
    assert!(!Path::new(&out).exists());
}

#[test]
fn files_that_are_folded_differently_are_not_compared_weight_by_weight() {
    let folder = tempdir().unwrap();
    let (trio, fold) = (plain(), Fold::of_matrices());
    let paths = folded(&trio, [None, Some(&fold), Some(&fold)]).write(folder.path());
    let [base, chat, cp] = [&paths.base, &paths.chat, &paths.cp].map(|path| shown(path));
    chatvec(["compare", &base, &chat]).says(4, &["prism.hadamard.weight_names", "base.gguf", "chat.gguf"]);
    chatvec(["compare", &chat, &cp, "--base", &base, "--chat", &chat]).says(4, &["prism.hadamard.weight_names"]);
    chatvec(["compare", &chat, &cp]).says(0, &[]);
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
