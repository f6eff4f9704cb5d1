//! Numbers that are not added as they are stored: state-space decays, added as logarithms. They are
//! held against numpy (`fixtures/spaces`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tempfile::tempdir;

use crate::support::{Draft, Tensor, Val};
use crate::trio::{F16, F32, Paths, Ran, Trio, change, chatvec, drifted, get, name, read, store, weights};

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
