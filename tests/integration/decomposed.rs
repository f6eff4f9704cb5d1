//! Patches whose matrices are quantised decompositions: what they hold, how large they are, and
//! what damage does to them.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use chatvec::gguf::{Limits, Model};
use chatvec::patch::{self, encode, low_rank};
use serde_json::Value as Json;

use crate::support::{Draft, Val};
use crate::trio::{F32, Noise, Paths, Ran, Trio, bundled, change, chatvec, decode, name, read, store, weights};

fn extract(paths: &Paths, patch: &Path, options: &[&str]) -> Ran {
    let mut args: Vec<OsString> = vec!["extract".into(), "--json".into(), "--overwrite".into()];
    for (flag, path) in [("--base", &*paths.base), ("--chat", &*paths.chat), ("-o", patch)] {
        args.extend([flag.into(), path.into()]);
    }
    args.extend(options.iter().map(OsString::from));
    chatvec(args)
}

fn apply(paths: &Paths, patch: &Path, out: &Path) -> Ran {
    let files: [&Path; 5] = ["--model".as_ref(), &paths.cp, patch, "-o".as_ref(), out];
    let args = ["apply"].map(OsString::from).into_iter().chain(files.map(OsString::from));
    let options = ["--type", "F32", "--overwrite", "--force", "--special-tokens", "none"].map(OsString::from);
    chatvec(args.chain(options))
}

/// τ of a tensor, in f32, with its row length.
fn tau(base: &Draft, chat: &Draft, tensor: &str) -> (Vec<f32>, usize) {
    let [base, chat] = [base, chat].map(|draft| {
        let found = draft.tensors.iter().find(|t| name(t) == tensor).unwrap();
        (weights(found), found.ne[0] as usize)
    });
    (chat.0.iter().zip(&base.0).map(|(c, b)| c - b).collect(), chat.1)
}

/// ⟨got, τ⟩ / ⟨τ, τ⟩ and ‖got − τ‖ / ‖τ‖.
fn gain_and_error(got: &[f32], tau: &[f32]) -> (f64, f64) {
    let pairs = || got.iter().zip(tau).map(|(g, t)| (f64::from(*g), f64::from(*t)));
    let square: f64 = pairs().map(|(_, t)| t * t).sum();
    let kept: f64 = pairs().map(|(g, t)| g * t).sum();
    (kept / square, (pairs().map(|(g, t)| (g - t).powi(2)).sum::<f64>() / square).sqrt())
}

/// Tensors of τ as a patch is read, by name.
fn stored(patch: &Path, tensor: &str) -> Vec<f32> {
    let model = patch::open(patch, &Limits::default()).unwrap();
    let id = model.find(tensor).unwrap();
    let mut data = vec![0; model.tensor(id).size() as usize];
    model.read(id, 0, &mut data).unwrap();
    decode(model.tensor(id).ty().id(), &data)
}

/// numpy, with an exact decomposition: `tests/peers/frontier.py --fixture`.
#[test]
fn matrices_keep_what_numpy_keeps_of_them() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/decomposed/expected.json");
    let expected: Json = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let [base, chat] = ["base", "chat"].map(|file| read(&bundled(file)));
    for entry in expected.as_array().unwrap() {
        let number = |key: &str| entry[key].as_f64().unwrap();
        let tensor = entry["tensor"].as_str().unwrap();
        let (tau, row_len) = tau(&base, &chat, tensor);
        let n_rows = tau.len() / row_len;
        let whole = low_rank::Settings::new(row_len.min(n_rows));
        let found = low_rank::decompose(&(&tau[..], row_len), &whole).unwrap();
        let metric = encode::Metric::of::<Infallible>(&found, row_len, None).unwrap();
        let codes = encode::encode(&found, (row_len, n_rows), &metric, number("step"));
        // A direction at the edge may fall on either side of it.
        assert!((codes.rank() as f64 - number("rank")).abs() <= 1.0, "{entry}: {}", codes.rank());
        let mut got = vec![0.0; tau.len()];
        codes.multiply(&codes.scaled_a(row_len), n_rows, 0..n_rows, &mut got);
        let (gain, error) = gain_and_error(&got, &tau);
        assert!((gain - number("gain")).abs() < 0.004, "{entry}: {gain}");
        assert!((error / number("error") - 1.0).abs() < 0.01, "{entry}: {error}");
    }
}

#[test]
fn a_patch_is_as_large_as_asked_for_and_no_larger() {
    let folder = tempfile::tempdir().unwrap();
    let (paths, patch) = (Paths::bundled(), folder.path().join("patch.gguf"));
    let f16 = fs::metadata(&paths.chat).unwrap().len();
    for (size, most) in [("1/16", f16 / 16), ("1/10", f16 / 10), ("450kB", 450_000)] {
        extract(&paths, &patch, &["--size", size]).says(0, &[]);
        let len = fs::metadata(&patch).unwrap().len();
        assert!(len <= most && len as f64 > 0.95 * most as f64, "{size}: {len} for {most}");
    }
    let n_weights: u64 =
        read(&paths.chat).tensors.iter().filter(|t| t.ne.len() > 1).map(|t| t.ne.iter().product::<u64>()).sum();
    for bits in ["0.3", "0.9", "2.5"] {
        extract(&paths, &patch, &["--encoding", &format!("svd:{bits}")]).says(0, &[]);
        let is_matrix = |name: &str| {
            name.starts_with("token_embd.weight.rows")
                || name.contains(".svd_")
                || name.starts_with("output.weight.rows")
        };
        let found = read(&patch);
        let bytes: u64 = found.tensors.iter().filter(|t| is_matrix(name(t))).map(|t| t.size()).sum();
        let got = bytes as f64 * 8.0 / n_weights as f64;
        let bits: f64 = bits.parse().unwrap();
        assert!(got <= bits && got > 0.95 * bits, "{bits}: {got}");
    }
    // A size that is too small for anything is refused before anything is read, one that holds next
    // to nothing is no success.
    let ran = extract(&paths, &patch, &["--size", "3kB"]);
    let least: u64 = ran
        .says(5, &["3000 bytes is impossible", "it takes"])
        .err
        .split(' ')
        .find_map(|word| word.trim_end_matches(';').parse().ok().filter(|n| *n != 3000))
        .unwrap();
    extract(&paths, &patch, &["--size", "3kB", "--dry-run"]).says(5, &["it takes"]);
    extract(&paths, &patch, &["--size", &format!("{}B", least - 1)]).says(5, &["it takes"]);
    extract(&paths, &patch, &["--size", &format!("{}B", least + 500)]).says(10, &["less than half of the vector"]);
    // More than there is to be held.
    extract(&paths, &patch, &["--size", "99999TB"]).says(0, &[]);
    assert!(fs::metadata(&patch).unwrap().len() <= 2 * f16);
    extract(&paths, &patch, &["--encoding", "svd:0"]).says(2, &["--encoding"]);
    extract(&paths, &patch, &["--encoding", "svd:99"]).says(2, &["99 bits"]);
}

/// Σ (got − τ)² of the first and the second half of the inputs, and bytes of both factors.
fn errors_of_halves(tau: &[f32], row_len: usize, importance: Option<&[f32]>) -> ([f64; 2], usize) {
    let n_rows = tau.len() / row_len;
    let whole = low_rank::Settings::new(row_len.min(n_rows));
    let found = low_rank::decompose(&(tau, row_len), &whole).unwrap();
    let metric = encode::Metric::of::<Infallible>(&found, row_len, importance).unwrap();
    let step = (found.norm2 / tau.len() as f64).sqrt();
    let codes = encode::encode(&found, (row_len, n_rows), &metric, step);
    let mut got = vec![0.0; tau.len()];
    codes.multiply(&codes.scaled_a(row_len), n_rows, 0..n_rows, &mut got);
    let mut halves = [0.0; 2];
    for (i, (got, tau)) in got.iter().zip(tau).enumerate() {
        halves[i % row_len * 2 / row_len] += f64::from(got - tau).powi(2);
    }
    let len = |rows: &[i8], n| encode::compress(rows, n).unwrap().len();
    (halves, len(&codes.a, row_len) + len(&codes.b, n_rows))
}

#[test]
fn inputs_that_matter_more_have_smaller_errors() {
    let [base, chat] = ["base", "chat"].map(|file| read(&bundled(file)));
    for tensor in ["blk.0.attn_q.weight", "blk.2.ffn_down.weight"] {
        let (tau, row_len) = tau(&base, &chat, tensor);
        let ([first, second], bytes) = errors_of_halves(&tau, row_len, None);
        let importance: Vec<f32> = (0..row_len).map(|i| if i < row_len / 2 { 40.0 } else { 0.4 }).collect();
        let ([important, other], weighted_bytes) = errors_of_halves(&tau, row_len, Some(&importance));
        let (share, weighted_share) = (first / second, important / other);
        assert!(important < first && weighted_share < 0.95 * share, "{tensor}: {share} to {weighted_share}");
        assert!(weighted_bytes < bytes * 11 / 10, "{tensor}: {weighted_bytes} bytes for {bytes}");
        // What a text did not feed is not free.
        let halved: Vec<f32> = (0..row_len).map(|i| (i % 2) as f32).collect();
        let (halves, _) = errors_of_halves(&tau, row_len, Some(&halved));
        assert!(halves.iter().sum::<f64>() < 1.3 * (first + second), "{tensor}: {halves:?} for {first} {second}");
        // All the same is none at all.
        let ([of_first, of_second], _) = errors_of_halves(&tau, row_len, Some(&vec![7.0; row_len]));
        assert!((of_first / first - 1.0).abs() < 1e-3 && (of_second / second - 1.0).abs() < 1e-3, "{tensor}");
    }
}

#[test]
fn importance_matrices_are_used_and_have_to_fit() {
    let folder = tempfile::tempdir().unwrap();
    let (paths, patch) = (Paths::bundled(), folder.path().join("patch.gguf"));
    let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/imatrix").join(name);
    let matrix = |name: &str| fixture(name).to_str().unwrap().to_owned();
    let bytes = |options: &[&str]| {
        extract(&paths, &patch, &[&["--size", "1/16"], options].concat()).says(0, &[]);
        fs::read(&patch).unwrap()
    };
    let (without, with) = (bytes(&[]), bytes(&["--imatrix", &matrix("F32.gguf")]));
    assert!(without != with && with.len() as u64 <= fs::metadata(&paths.chat).unwrap().len() / 16);
    fs::remove_file(&patch).unwrap();
    let ran = extract(&paths, &patch, &["--size", "1/16", "--imatrix", &matrix("qwen2.gguf")]);
    assert!(ran.code != 0 && !patch.exists(), "{}", ran.err);
}

#[test]
fn a_dry_run_says_what_a_size_takes() {
    let (folder, paths) = (tempfile::tempdir().unwrap(), Paths::bundled());
    let patch = folder.path().join("patch.gguf");
    for encoding in [["--size", "1/16"], ["--encoding", "svd:0.6"], ["--encoding", "lora:16"]] {
        let planned = extract(&paths, &patch, &[&encoding[..], &["--dry-run"]].concat());
        let planned = planned.says(0, &[]).json();
        assert!(crate::trio::names(folder.path()).is_empty());
        let written = extract(&paths, &patch, &encoding).says(0, &[]).json();
        let [most, len] = [&planned, &written].map(|json| json["output_bytes"].as_u64().unwrap());
        assert!(len <= most && len * 2 > most, "{encoding:?}: {len} of {most}");
        assert!(planned["temporary_bytes"].as_u64().unwrap() > 0);
        assert_eq!(planned["forecast"]["output"], Json::Null);
        let form = if encoding[1].starts_with("lora") { "lora" } else { "svd" };
        let planned = planned["tensors"].as_array().unwrap();
        let of = |tensor: &str| planned.iter().find(|t| t["name"] == tensor).unwrap();
        assert_eq!(
            (&of("blk.0.attn_q.weight")["type"], &of("blk.0.attn_q.weight")["bytes"]),
            (&form.into(), &Json::Null)
        );
        assert_eq!(of("output_norm.weight")["type"], "F32");
        fs::remove_file(&patch).unwrap();
    }
}

#[test]
fn gain_and_error_are_those_of_what_is_read_and_applied() {
    let folder = tempfile::tempdir().unwrap();
    let (paths, patch) = (Paths::bundled(), folder.path().join("patch.gguf"));
    let ran = extract(&paths, &patch, &["--encoding", "svd:0.6"]);
    let said = ran.says(0, &[]).json();
    let [base, chat, cp] = [&paths.base, &paths.chat, &paths.cp].map(|path| read(path));
    let out = folder.path().join("out.gguf");
    apply(&paths, &patch, &out).says(0, &[]);
    let applied = read(&out);
    let summaries = patch::summary(&patch::open_stored(&patch, &Limits::default()).unwrap());
    for tensor in ["output.weight", "blk.0.attn_k.weight", "blk.2.ffn_down.weight"] {
        let (tau, _) = tau(&base, &chat, tensor);
        let got = stored(&patch, tensor);
        let (gain, error) = gain_and_error(&got, &tau);
        assert!((0.8..1.0).contains(&gain) && error < 0.5, "{tensor}: {gain} {error}");
        let said = said["tensors"].as_array().unwrap().iter().find(|t| t["name"] == tensor).unwrap();
        assert!((said["survival"].as_f64().unwrap() - gain).abs() < 1e-5, "{tensor}: {said} {gain}");
        assert!((said["noise"].as_f64().unwrap() - error).abs() < 1e-5, "{tensor}: {said} {error}");
        let summary = summaries.iter().find(|s| s.name == tensor).unwrap();
        assert!((summary.gain.unwrap() - gain).abs() < 1e-5 && (summary.error.unwrap() - error).abs() < 1e-5);
        assert_eq!(summary.n_weights, tau.len() as u64);
        assert!(summary.stored.starts_with("svd of rank "), "{summary:?}");

        let weights = |draft: &Draft| weights(draft.tensors.iter().find(|t| name(t) == tensor).unwrap());
        for ((out, cp), tau) in weights(&applied).iter().zip(weights(&cp)).zip(got) {
            assert_eq!(*out, cp + tau, "{tensor}");
        }
    }
}

#[test]
fn bytes_do_not_depend_on_threads_and_memory() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Paths::bundled();
    let bytes = |options: &[&str]| {
        let patch = folder.path().join("patch.gguf");
        extract(&paths, &patch, &[&["--encoding", "svd:0.6"], options].concat()).says(0, &[]);
        fs::read(patch).unwrap()
    };
    let expected = bytes(&["--threads", "1"]);
    for options in [["--threads", "2", "--memory", "1GiB"], ["--threads", "3", "--memory", "16MiB"]] {
        assert!(bytes(&options) == expected, "{options:?}");
    }
    let patch = folder.path().join("small.gguf");
    extract(&paths, &patch, &["--encoding", "svd:0.6", "--memory", "64KiB"]).says(5, &["--memory"]);
}

#[test]
fn as_many_bits_as_a_matrix_has_give_the_matrix() {
    let folder = tempfile::tempdir().unwrap();
    let (paths, patch) = (Paths::bundled(), folder.path().join("patch.gguf"));
    extract(&paths, &patch, &["--encoding", "svd:16"]).says(0, &[]);
    let [base, chat] = [&paths.base, &paths.chat].map(|path| read(path));
    for tensor in ["blk.0.attn_k.weight", "blk.2.ffn_down.weight", "output.weight"] {
        let (tau, _) = tau(&base, &chat, tensor);
        let (gain, error) = gain_and_error(&stored(&patch, tensor), &tau);
        assert!((gain - 1.0).abs() < 0.001 && error < 0.03, "{tensor}: {gain} {error}");
    }
}

/// The small trio with these changes of every matrix of chat.
fn trio_with(folder: &Path, of_base: impl Fn(&[f32]) -> Vec<f32>) -> Paths {
    let mut trio = Trio::bundled();
    for (chat, base) in trio.chat.tensors.iter_mut().zip(&trio.base.tensors) {
        let base = weights(base);
        store(chat, F32, &of_base(&base));
    }
    trio.write(folder)
}

#[test]
fn odd_vectors_are_extracted() {
    let folder = tempfile::tempdir().unwrap();
    let patch = folder.path().join("patch.gguf");
    // All of it in one direction.
    let paths = trio_with(folder.path(), |base| base.iter().map(|b| b + 0.001).collect());
    extract(&paths, &patch, &["--encoding", "svd:0.5", "--force"]).says(0, &[]);
    let (_, error) = gain_and_error(&stored(&patch, "blk.1.ffn_up.weight"), &[0.001; 256 * 768]);
    assert!(error < 0.05, "{error}");
    // None at all.
    let paths = trio_with(folder.path(), <[f32]>::to_vec);
    extract(&paths, &patch, &["--encoding", "svd:0.5", "--force"]).says(0, &["zero"]);
    // All directions alike: most of it is lost, and said to be.
    let tau = Noise(7).normals(768 * 768, 0.01);
    let paths = trio_with(folder.path(), |base| base.iter().zip(&tau).map(|(b, t)| b + t).collect());
    let ran = extract(&paths, &patch, &["--encoding", "svd:1", "--force"]);
    let error = ran.says(0, &[]).json()["total"]["noise"].as_f64().unwrap();
    assert!((0.5..1.0).contains(&error), "{error}");
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::bundled();
    change(trio.chat.tensor("blk.1.ffn_up.weight"), |w| w[1000] = f32::NAN);
    let paths = trio.write(folder.path());
    let patch = folder.path().join("patch.gguf");
    extract(&paths, &patch, &["--encoding", "svd:0.5", "--force"]).says(3, &["blk.1.ffn_up.weight", "1000"]);
    assert!(!patch.exists());
}

#[test]
fn damaged_parts_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    let (paths, patch, spoilt) = (Paths::bundled(), at("patch.gguf"), at("spoilt.gguf"));
    extract(&paths, &patch, &["--encoding", "svd:0.4"]).says(0, &[]);
    let whole = read(&patch);
    let (shapes, names) = ("chatvec.patch.svd.shapes", "chatvec.patch.svd.tensors");
    let first = "blk.0.attn_q.weight";
    let part =
        |draft: &Draft, end: &str| draft.tensors.iter().position(|t| name(t) == format!("{first}{end}")).unwrap();
    type Spoil<'a> = &'a dyn Fn(&mut Draft);
    let list = |numbers: &[u32]| Val::Array(crate::support::kind::U32, numbers.iter().map(|n| Val::U32(*n)).collect());
    let cases: [(&str, Spoil<'_>); 9] = [
        ("no shapes", &|d| d.keys.retain(|(key, _)| key != shapes.as_bytes())),
        ("too few shapes", &|d| d.set(shapes, list(&[256, 256]))),
        ("a shape of zero", &|d| {
            let Some((_, Val::Array(_, values))) = d.keys.iter_mut().find(|(key, _)| key == shapes.as_bytes()) else {
                panic!()
            };
            values[0] = Val::U32(0);
        }),
        ("shapes that are too large", &|d| {
            let Some((_, Val::Array(_, values))) = d.keys.iter_mut().find(|(key, _)| key == shapes.as_bytes()) else {
                panic!()
            };
            values.iter_mut().for_each(|v| *v = Val::U32(u32::MAX));
        }),
        ("no list", &|d| d.keys.retain(|(key, _)| key != names.as_bytes())),
        ("a part that is missing", &|d| {
            let i = part(d, ".svd_b.zstd");
            d.tensors.remove(i);
        }),
        ("more directions than rows", &|d| {
            let i = part(d, ".svd_d");
            d.tensors[i].ne = vec![300];
            d.tensors[i].data = Some(vec![0; 1200]);
        }),
        ("scales that are no numbers", &|d| {
            let i = part(d, ".svd_d");
            let n = d.tensors[i].ne[0] as usize;
            d.tensors[i].data = Some(f32::NAN.to_le_bytes().repeat(n));
        }),
        ("frames that end early", &|d| {
            let i = part(d, ".svd_a.zstd");
            let mut data = d.tensors[i].data();
            data.pop();
            d.tensors[i].ne = vec![data.len() as u64];
            d.tensors[i].data = Some(data);
        }),
    ];
    for (what, spoil) in cases {
        let mut draft = whole.clone();
        spoil(&mut draft);
        draft.seal();
        fs::write(&spoilt, draft.bytes()).unwrap();
        let ran = apply(&paths, &spoilt, &at("out.gguf"));
        assert_eq!(ran.code, 3, "{what}: {}", ran.err);
        assert!(!at("out.gguf").exists(), "{what}");
    }
    // Bytes in the frames: any answer but a panic or a file that is not whole.
    let i = part(&whole, ".svd_a.zstd");
    let data = whole.tensors[i].data();
    for byte in (0..data.len()).step_by(data.len() / 12) {
        let mut draft = whole.clone();
        let mut data = data.clone();
        data[byte] ^= 0x55;
        draft.tensors[i].data = Some(data);
        draft.seal();
        fs::write(&spoilt, draft.bytes()).unwrap();
        let ran = apply(&paths, &spoilt, &at("out.gguf"));
        assert!([0, 3].contains(&ran.code), "byte {byte}: {}", ran.err);
    }
    assert!(Model::open(&patch, &Limits::default()).is_ok());
}
