//! Importance matrices: files of both forms and damaged ones, what is gathered against
//! llama-imatrix, and what an encoder gets of one, against llama-quantize (fixtures/imatrix).
#![allow(clippy::print_stdout, reason = "`--nocapture` shows the figures that the bounds come from")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use chatvec::chat::Tokenizer;
use chatvec::ggml::GgmlType;
use chatvec::gguf::{WriteOptions, Writer};
use chatvec::imatrix::{Error, Form, ImportanceMatrix, Sums};
use chatvec::infer::{self, Gathering, Transformer, gather_importance};
use chatvec::pipeline::{self, Budget};
use chatvec::plan::{self, MergePlan, OutputType};
use chatvec::quants;
use chatvec::vector::Inputs;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::infer::synthetic;
use crate::support::{Draft, Tensor, Val, kind, write};
use crate::trio::{F16, F32, Noise, Paths, Ran, bundled, chatvec, command, drifted, names, open, read, recipe};
use crate::trio::{get, requantise, store};

const MEMORY: u64 = 64 << 20;
const Q4_0: u32 = 2;

/// How far a sum may be from llama-imatrix's, relative to it, at most and in the mean: twice what
/// was seen. The types are those of the model; `default` is F16, read by llama.cpp with its cache
/// in halves, and the greater part of that.
const BOUNDS: [(&str, f64, f64); 11] = [
    ("F16.gguf", 6e-4, 1.6e-5),
    ("F16.dat", 6e-4, 1.6e-5),
    ("default.gguf", 8e-4, 6.4e-5),
    ("bos.gguf", 9.5e-4, 1.6e-5),
    ("F32.gguf", 2.6e-6, 1.8e-7),
    ("Q8_0.gguf", 3.8e-3, 9e-5),
    ("Q4_K.gguf", 6.3e-3, 1.6e-4),
    ("qwen2.gguf", 1.7e-6, 2.8e-7),
    ("qwen2-tied.gguf", 1.7e-6, 2.8e-7),
    ("qwen3moe.gguf", 5e-6, 3.3e-7),
    ("gemma3.gguf", 2.9e-4, 4.7e-6),
];

fn fixture(name: &str) -> PathBuf {
    Path::new("fixtures/imatrix").join(name)
}

fn expected() -> Json {
    serde_json::from_str(&fs::read_to_string(fixture("expected.json")).unwrap()).unwrap()
}

fn digest<B: AsRef<[u8]>>(parts: impl IntoIterator<Item = B>) -> String {
    let digest = parts.into_iter().fold(Sha256::new(), |digest, part| digest.chain_update(part));
    digest.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn matrix(path: &Path) -> ImportanceMatrix {
    ImportanceMatrix::read(path, MEMORY).unwrap_or_else(|e| panic!("{e}"))
}

/// A matrix in the GGUF form: entries of sums and counts.
fn draft(entries: &[(&str, &[f32], &[f32])]) -> Draft {
    let mut draft = Draft::default();
    draft.set("general.type", Val::str("imatrix"));
    draft.set("imatrix.datasets", Val::strs(["text.txt"]));
    draft.set("imatrix.chunk_count", Val::U32(3));
    draft.set("imatrix.chunk_size", Val::U32(128));
    let tensor = |name: String, ne: &[u64], values: &[f32]| Tensor {
        data: Some(bytes_of(values)),
        ..Tensor::new(&name, ne, F32)
    };
    for (name, sums, counts) in entries {
        let n = counts.len() as u64;
        draft.tensors.push(tensor(format!("{name}.in_sum2"), &[sums.len() as u64 / n, n], sums));
        draft.tensors.push(tensor(format!("{name}.counts"), &[1, n], counts));
    }
    draft
}

/// Random means for every matrix of a model, of one number more or less if `off_by` says so.
fn matrix_for(model: &Draft, folder: &Path, name: &str, off_by: i64) -> PathBuf {
    let mut noise = Noise(7);
    let mut entries: Vec<(String, Vec<f32>)> = Vec::new();
    for tensor in model.tensors.iter().filter(|t| t.ne.len() >= 2) {
        let name = String::from_utf8(tensor.name.clone()).unwrap();
        let n = tensor.ne[0] * tensor.ne[2..].iter().product::<u64>();
        let n = n.checked_add_signed(if name == "token_embd.weight" { 0 } else { off_by }).unwrap();
        entries.push((name, noise.normals(n as usize, 1.0).iter().map(|v| v * v).collect()));
    }
    let entries: Vec<(&str, &[f32], &[f32])> =
        entries.iter().map(|(n, v)| (n.as_str(), &v[..], &[1.0f32][..])).collect();
    draft(&entries).write(folder, name)
}

#[test]
fn means_are_llama_cpps_in_both_forms_and_for_stacks_of_experts() {
    for (form, entry) in expected()["means"].as_object().unwrap() {
        let m = matrix(&fixture(&format!("experts.imatrix.{form}")));
        assert_eq!(entry["n_chunks"], m.n_chunks(), "{form}");
        assert_eq!(entry["datasets"], serde_json::json!(m.datasets()), "{form}");
        let digest_of = |name: &str| Json::from(digest([bytes_of(m.get(name).unwrap())]));
        let found: Json = m.names().map(|name| (name.to_owned(), digest_of(name))).collect();
        assert_eq!(entry["means"], found, "{form}");
    }
}

#[test]
fn a_matrix_without_a_text_is_read_and_of_two_entries_the_last_counts() {
    let folder = tempfile::tempdir().unwrap();
    let entry = |value: f32| [&b"\x01\0\0\0a\x02\0\0\0\x01\0\0\0"[..], &value.to_le_bytes()].concat();
    let bytes = [&b"\x02\0\0\0"[..], &entry(2.0), &entry(6.0)].concat();
    let m = matrix(&write(folder.path(), "m.dat", &bytes));
    assert_eq!((m.get("a"), m.n_chunks(), m.datasets()), (Some(&[3.0][..]), 0, &[][..]));
}

#[test]
fn what_is_no_matrix_is_refused_with_the_evidence() {
    let folder = tempfile::tempdir().unwrap();
    let good = || draft(&[("a", &[1.0, 2.0], &[1.0]), ("b", &[1.0, 2.0, 3.0, 4.0], &[1.0, 2.0])]);
    let spoilt = |spoil: &dyn Fn(&mut Draft)| {
        let mut draft = good();
        spoil(&mut draft);
        draft.bytes()
    };
    let tensor = |d: &mut Draft, name: &str, values: &[f32]| {
        let data = bytes_of(values);
        *d.tensor(name) = Tensor { data: Some(data), ..Tensor::new(name, &[values.len() as u64], F32) };
    };
    let dat = fs::read(fixture("F16.dat")).unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut dat = dat.clone();
        dat[at..at + bytes.len()].copy_from_slice(bytes);
        dat
    };
    // A name of 19 bytes, calls, values: the first entry is blk.0.attn_k.weight.
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("nothing", vec![], &["neither", "0 bytes", "chatvec imatrix"]),
        ("three bytes", b"abc".to_vec(), &["neither"]),
        ("a text", b"Es war einmal, und das ist lange her.".to_vec(), &["neither"]),
        ("no entries", vec![0; 64], &["neither"]),
        ("a model", fs::read(bundled("cp-de")).unwrap(), &["imatrix.datasets"]),
        (
            "a type",
            spoilt(&|d| d.set("general.type", Val::str("adapter"))),
            &["general.type", "\"imatrix\"", "adapter"],
        ),
        ("no chunks", spoilt(&|d| d.keys.retain(|k| k.0 != b"imatrix.chunk_count")), &["no key imatrix.chunk_count"]),
        ("chunks", spoilt(&|d| d.set("imatrix.chunk_count", Val::str("3"))), &["imatrix.chunk_count", "integer"]),
        ("no tensors", spoilt(&|d| d.tensors.clear()), &["0 other tensors", ".in_sum2"]),
        ("no counts", spoilt(&|d| d.tensors.truncate(3)), &["entry b", "no .counts"]),
        ("no sums", spoilt(&|d| drop(d.tensors.remove(0))), &["entry a", "no .in_sum2"]),
        ("halves", spoilt(&|d| requantise(d, F16)), &["tensor a", "F32", "F16"]),
        ("uneven", spoilt(&|d| tensor(d, "b.counts", &[1.0; 3])), &["entry b", "4 sums and 3 counts"]),
        ("no values", spoilt(&|d| tensor(d, "b.in_sum2", &[])), &["entry b", "0 sums"]),
        ("half a count", spoilt(&|d| tensor(d, "a.counts", &[-1.0])), &["entry a", "count 0", "-1"]),
        ("no count", spoilt(&|d| tensor(d, "a.counts", &[f32::NAN])), &["entry a", "count 0", "NaN"]),
        (
            "NaN",
            spoilt(&|d| tensor(d, "a.in_sum2", &[1.0, f32::NAN])),
            &["entry a", "value 1", "NaN", "--exclude-weights a"],
        ),
        ("infinite", spoilt(&|d| tensor(d, "a.in_sum2", &[f32::INFINITY, 1.0])), &["entry a", "value 0", "inf"]),
        ("negative", spoilt(&|d| tensor(d, "a.in_sum2", &[1.0, -2.0])), &["entry a", "value 1", "-2"]),
        ("big-endian", spoilt(&|d| d.big_endian = true), &["big-endian"]),
        ("too many entries", with(0, &[0xff, 0xff, 0xff, 0x7f]), &["neither"]),
        ("more entries", with(0, &23i32.to_le_bytes()), &["--memory"]),
        ("a long name", with(4, &[0xff, 0xff, 0xff, 0x7f]), &["entry 1 of 22", "at most 4096 bytes"]),
        ("a negative name", with(4, &(-1i32).to_le_bytes()), &["entry 1 of 22", "-1"]),
        ("no text", with(8, b"\xff\xff\xff"), &["entry 1 of 22", "UTF-8"]),
        ("many values", with(31, &[0x01, 0x00, 0x00, 0x01]), &["64.0 MiB", "--memory"]),
        ("more values", with(31, &[0xff, 0xff, 0x0f, 0x00]), &["entry 1 of 22", "4194300 bytes", "end of the file"]),
        ("negative values", with(31, &(-4i32).to_le_bytes()), &["entry 1 of 22", "at least one value", "-4"]),
        ("dat with NaN", with(35, &f32::NAN.to_le_bytes()), &["entry blk.0.attn_k.weight", "value 0", "NaN"]),
    ];
    for (case, bytes, words) in cases {
        let path = write(folder.path(), "m", &bytes);
        let e = ImportanceMatrix::read(&path, MEMORY).expect_err(case);
        let text = e.to_string();
        assert!(text.contains("/m: "), "{case}: the file is not named: {text}");
        words.iter().for_each(|word| assert!(text.contains(word), "{case}: no {word:?} in: {text}"));
    }
    let e = ImportanceMatrix::read(&fixture("F16.gguf"), 1 << 10).unwrap_err();
    assert!(matches!(e, Error::Memory { needed: 28672, .. }), "{e}");
}

#[test]
fn a_matrix_that_is_cut_short_is_refused_wherever_it_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["experts.imatrix.dat", "experts.imatrix.gguf"] {
        let bytes = fs::read(fixture(name)).unwrap();
        // The legacy form may do without chunks and the text, the other without the padding at its
        // end.
        let is_whole = |n: usize| match name.ends_with("dat") {
            true => [bytes.len() - 9, bytes.len() - 13].contains(&n),
            false => n >= bytes.len() - 16,
        };
        for n in 0..bytes.len() {
            let cut = ImportanceMatrix::read(&write(folder.path(), "m", &bytes[..n]), MEMORY);
            assert_eq!(cut.is_ok(), is_whole(n), "{name}: {n} of {} bytes", bytes.len());
        }
    }
}

#[test]
#[cfg(unix)]
fn a_pipe_is_no_matrix_and_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(matches!(ImportanceMatrix::read(&pipe, MEMORY), Err(Error::Io { .. })));
}

/// A model that llama-imatrix read for a fixture.
fn model_of(name: &str, folder: &Path) -> PathBuf {
    let (stem, _) = name.split_once('.').unwrap();
    match stem {
        "F16" | "default" => bundled("cp-de"),
        "bos" => {
            let mut draft = read(&bundled("cp-de"));
            draft.set("tokenizer.ggml.add_bos_token", Val::Bool(1));
            draft.write(folder, "bos.gguf")
        }
        "qwen2" | "qwen2-tied" | "qwen3moe" | "gemma3" => {
            let of = if stem.starts_with("qwen2") { "synthetic" } else { "families" };
            let text = fs::read_to_string(format!("fixtures/infer/{of}.json")).unwrap();
            synthetic::draft(&serde_json::from_str(&text).unwrap(), stem).write(folder, "qwen2.gguf")
        }
        ty => {
            let path = folder.join(format!("{ty}.gguf"));
            Paths::bundled().try_merge(&path, ty, 1.0, &Budget::default()).unwrap();
            path
        }
    }
}

fn gather(path: &Path, n_ctx: usize, n_chunks: Option<usize>, threads: usize) -> Result<Sums, infer::Error> {
    let model = open(path);
    let tokenizer = Tokenizer::from_metadata(model.metadata()).unwrap();
    let text = fs::read_to_string("fixtures/compare/plain-de.txt").unwrap();
    let tokens = tokenizer.encode(text.trim_end_matches('\n'), true, false);
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let gathering = Gathering { n_ctx, n_chunks, bos, process_output: n_chunks.is_some() };
    let transformer = Transformer::load(&model, threads)?;
    let mut sums = gathering.sums(&transformer, "plain-de.txt");
    gather_importance(&transformer, &tokens, &gathering, &mut sums, MEMORY, &mut |_| true)?;
    Ok(sums)
}

#[test]
fn what_is_gathered_is_what_llama_imatrix_gathers() {
    let folder = tempfile::tempdir().unwrap();
    let mut failures = Vec::new();
    for (name, most, mean) in BOUNDS {
        let model = model_of(name, folder.path());
        let (n_ctx, n_chunks) = if name == "default.gguf" { (256, None) } else { (128, Some(8)) };
        let sums = gather(&model, n_ctx, n_chunks, 2).unwrap();
        let form = if name.ends_with("dat") { Form::Legacy } else { Form::Gguf };
        let path = folder.path().join(name);
        sums.write(form, &path, &overwrite()).unwrap();

        // The file is theirs to the byte but for the sums; so names, counts and chunks are.
        assert_eq!(fs::metadata(&path).unwrap().len(), fs::metadata(fixture(name)).unwrap().len(), "{name}");
        if form == Form::Gguf {
            let (ours, theirs) = (open(&path), open(&fixture(name)));
            let header = |model: &chatvec::gguf::Model| model.files()[0].header().encode();
            assert!(header(&ours) == header(&theirs), "{name}: another header");
            for (id, tensor) in theirs.tensors().enumerate().filter(|(_, t)| t.name().ends_with(".counts")) {
                let mut counts = [vec![0; tensor.size() as usize], vec![0; tensor.size() as usize]];
                ours.read(id, 0, &mut counts[0]).unwrap();
                theirs.read(id, 0, &mut counts[1]).unwrap();
                assert_eq!(counts[0], counts[1], "{name}: {}", tensor.name());
            }
        }
        let (ours, theirs) = (matrix(&path), matrix(&fixture(name)));
        assert_eq!((ours.n_chunks(), ours.datasets()), (theirs.n_chunks(), theirs.datasets()), "{name}");
        assert_eq!(ours.names().collect::<Vec<_>>(), theirs.names().collect::<Vec<_>>(), "{name}");
        let (mut largest, mut total, mut n) = (0f64, 0.0, 0);
        for entry in theirs.names() {
            for (a, b) in ours.get(entry).unwrap().iter().zip(theirs.get(entry).unwrap()) {
                let apart = f64::from((a - b).abs() / b.abs().max(f32::MIN_POSITIVE));
                (largest, total, n) = (largest.max(apart), total + apart, n + 1);
            }
        }
        let found = (largest, total / f64::from(n));
        println!("{name}: largest {:.2e}, mean {:.2e}", found.0, found.1);
        if found.0 >= most || found.1 >= mean {
            failures.push(format!("{name}: {found:?}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn what_is_gathered_does_not_depend_on_threads() {
    let gather = |threads| gather(&bundled("cp-de"), 100, Some(3), threads).unwrap();
    let one = gather(1);
    assert_eq!((one, 300), (gather(3), one_count(&gather(1))));
}

/// Tokens that came by the first tensor.
fn one_count(sums: &Sums) -> u64 {
    sums.entries().next().unwrap().2[0]
}

#[test]
fn weights_that_overflow_are_named_and_a_short_text_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut draft = read(&bundled("cp-de"));
    let norm = draft.tensor("blk.1.ffn_norm.weight");
    store(norm, F32, &[3e19; 256]);
    let e = gather(&draft.write(folder.path(), "m.gguf"), 64, Some(2), 1).unwrap_err();
    assert!(matches!(&e, infer::Error::NotFinite { tensor, chunk: 1 } if tensor.starts_with("blk.1.ffn")), "{e}");
    let e = gather(&bundled("cp-de"), 1 << 20, None, 1).unwrap_err();
    assert!(matches!(e, infer::Error::TooShort { needed: 2_097_152, .. }), "{e}");
}

/// A merge by the library with a matrix: plan and pipeline, no survey.
fn merge_with(paths: &Paths, matrix: &Path, out: &Path, ty: &str, ratio: f64, budget: &Budget) -> Draft {
    let inputs = paths.inputs(ratio).with_importance(self::matrix(matrix));
    let plan = paths.plan(&inputs, ty);
    carry_out(&plan, &inputs, out, budget).unwrap_or_else(|e| panic!("{e}"))
}

fn carry_out(plan: &MergePlan, inputs: &Inputs, out: &Path, budget: &Budget) -> Result<Draft, pipeline::Error> {
    let writer = Writer::create(plan.header().clone(), out, &overwrite())?;
    pipeline::run(plan, inputs, &writer, &(), budget)?;
    writer.finish(None)?;
    Ok(read(out))
}

fn overwrite() -> WriteOptions {
    WriteOptions { overwrite: true, ..WriteOptions::default() }
}

#[test]
fn encoding_with_a_matrix_gives_llama_quantizes_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let mut failures = Vec::new();
    let mut n_compared = 0;
    for (run, by_type) in expected()["quantized"].as_object().unwrap() {
        let (model, matrix) = match run.as_str() {
            "experts" => (fixture("experts-F16.gguf"), fixture("experts.imatrix.gguf")),
            "F16" => (bundled("cp-de"), fixture("F16.gguf")),
            dat => (bundled("cp-de"), fixture(dat)),
        };
        // Nothing is added, so the model itself is encoded.
        let paths = Paths { base: model.clone(), chat: model.clone(), cp: model };
        for (ty, entry) in by_type.as_object().unwrap() {
            let out = merge_with(&paths, &matrix, &folder.path().join("out.gguf"), ty, 0.0, &Budget::default());
            let mut encoded: Vec<&Tensor> = out.tensors.iter().filter(|t| ![F32, F16].contains(&t.ty)).collect();
            encoded.sort_by(|a, b| a.name.cmp(&b.name));
            assert_eq!(entry["n_tensors"], encoded.len(), "{run} {ty}");
            if entry["sha256"] != digest(encoded.iter().map(|t| t.data())) {
                failures.push(format!("{run} {ty}"));
            }
            for (key, value) in entry["keys"].as_object().unwrap() {
                let found = match get(&out, key) {
                    Some(Val::Str(text)) => Json::from(std::str::from_utf8(text).unwrap()),
                    Some(Val::U32(n)) => Json::from(*n),
                    other => panic!("{run} {ty}: {key} is {other:?}"),
                };
                // Of a path there is the name.
                let value = value.as_str().map_or(value.clone(), |v| v.rsplit('/').next().unwrap().into());
                assert_eq!(found, value, "{run} {ty}: {key}");
            }
            n_compared += 1;
        }
    }
    assert!(failures.is_empty(), "other bytes than llama-quantize's: {failures:?}");
    assert_eq!(n_compared, 33);
}

#[test]
fn bytes_do_not_depend_on_how_rows_of_experts_are_cut_up() {
    let folder = tempfile::tempdir().unwrap();
    let model = read(&fixture("experts-F16.gguf"));
    let chat = drifted(&model, "chat", 3, 0.01).write(folder.path(), "chat.gguf");
    let model = model.write(folder.path(), "model.gguf");
    let paths = Paths { base: model.clone(), chat, cp: model };
    let merge = |memory, threads| {
        let out = folder.path().join("out.gguf");
        merge_with(&paths, &fixture("experts.imatrix.gguf"), &out, "Q4_K", 1.0, &Budget { memory, threads }).bytes()
    };
    let whole = merge(1 << 30, 1);
    for (memory, threads) in [(1 << 30, 5), (400 << 10, 1), (400 << 10, 3)] {
        assert_eq!(merge(memory, threads), whole, "{memory} bytes, {threads} threads");
    }
    // Each row by itself, with the importance of its expert.
    let (merged, sum) = (folder.path().join("out.gguf"), merge_f32(&paths, &folder.path().join("f32.gguf")));
    let (mut merged, m) = (read(&merged), matrix(&fixture("experts.imatrix.gguf")));
    let name = "blk.0.ffn_up_exps.weight";
    let mut row = vec![0; 144];
    for (i, (weights, found)) in sum.chunks_exact(256).zip(merged.tensor(name).data().chunks_exact(144)).enumerate() {
        let importance = &m.get(name).unwrap()[i / 10 * 256..][..256];
        quants::quantize_rows(GgmlType::Q4_K, weights, Some(importance), &mut row).unwrap();
        assert_eq!(found, row, "row {i}");
    }
}

/// The experts of a merge in F32.
fn merge_f32(paths: &Paths, out: &Path) -> Vec<f32> {
    let mut merged = paths.merge(out, "F32", 1.0);
    crate::trio::weights(merged.tensor("blk.0.ffn_up_exps.weight"))
}

#[test]
fn a_row_that_changes_is_encoded_as_a_whole_and_keeps_its_other_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = read(&fixture("experts-F16.gguf"));
    requantise(&mut model, Q4_0);
    let mut base = model.clone();
    requantise(&mut base, F32);
    let mut chat = base.clone();
    let name = "blk.0.ffn_up_exps.weight";
    // Some blocks of the second row, none of the third, all of the 25th, which is the third
    // expert's.
    let changed = |i: usize| matches!((i / 256, i % 256), (1, 64..96 | 200..201) | (24, _));
    crate::trio::change(chat.tensor(name), |weights| {
        weights.iter_mut().enumerate().filter(|(i, _)| changed(*i)).for_each(|(_, w)| *w += 0.013);
    });
    let paths = Paths {
        base: base.write(folder.path(), "base.gguf"),
        chat: chat.write(folder.path(), "chat.gguf"),
        cp: model.write(folder.path(), "model.gguf"),
    };
    let matrix_path = fixture("experts.imatrix.gguf");
    let mut merged = merge_with(&paths, &matrix_path, &folder.path().join("out.gguf"), "keep", 1.0, &Budget::default());
    let sum = merge_f32(&paths, &folder.path().join("f32.gguf"));
    let (m, found, own) = (matrix(&matrix_path), merged.tensor(name).data(), model.tensor(name).data());
    let (row_size, block) = (144, 18);
    let mut n_changed = 0;
    for row in 0..40 {
        let mut wanted = vec![0; row_size];
        let importance = &m.get(name).unwrap()[row / 10 * 256..][..256];
        quants::quantize_rows(GgmlType::Q4_0, &sum[row * 256..][..256], Some(importance), &mut wanted).unwrap();
        for b in 0..8 {
            let at = row * row_size + b * block;
            let is_changed = (0..32).any(|i| changed(row * 256 + b * 32 + i));
            n_changed += usize::from(is_changed);
            let expected = if is_changed { &wanted[b * block..][..block] } else { &own[at..at + block] };
            assert_eq!(&found[at..at + block], expected, "row {row}, block {b}");
        }
    }
    assert_eq!(n_changed, 10);
}

#[test]
fn keys_of_an_earlier_matrix_give_way_to_those_of_this_one_and_places_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = read(&fixture("experts-F16.gguf"));
    model.set("quantize.imatrix.file", Val::str("/old/place/old.dat"));
    model.set("quantize.imatrix.chunks_count", Val::I32(99));
    model.set("quantize.imatrix.other", Val::str("old"));
    let path = model.write(folder.path(), "model.gguf");
    let paths = Paths { base: path.clone(), chat: path.clone(), cp: path };
    let keys = |draft: &Draft| -> Vec<String> {
        let keys = draft.keys.iter().map(|(key, _)| String::from_utf8(key.clone()).unwrap());
        keys.filter(|key| key.starts_with("quantize.")).collect()
    };
    let out = folder.path().join("out.gguf");
    assert_eq!(keys(&paths.merge(&out, "Q4_K", 1.0)), [""; 0]);
    let merged = merge_with(&paths, &fixture("experts.imatrix.gguf"), &out, "Q4_K", 1.0, &Budget::default());
    let about = ["file", "dataset", "entries_count", "chunks_count"];
    assert_eq!(keys(&merged), about.map(|key| format!("quantize.imatrix.{key}")));
    for (key, text) in [("file", "experts.imatrix.gguf"), ("dataset", "a.txt")] {
        assert!(matches!(get(&merged, &format!("quantize.imatrix.{key}")), Some(Val::Str(t)) if t == text.as_bytes()));
    }
}

#[test]
fn a_matrix_of_another_model_is_refused_and_gaps_are_said() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Paths::bundled();
    let run = |matrix: &Path, more: &[&str]| -> Ran {
        let matrix = matrix.to_str().unwrap();
        let options = [&["--type", "Q4_K", "--pure", "--dry-run", "--imatrix", matrix][..], more].concat();
        paths.command(&folder.path().join("out.gguf"), &options)
    };
    let model = read(&paths.cp);
    let fits = matrix_for(&model, folder.path(), "fits.gguf", 0);
    run(&fits, &[]).is_quiet();
    let other = matrix_for(&model, folder.path(), "other.gguf", 1);
    run(&other, &[]).says(4, &["other.gguf", "entry output.weight", "expected 256", "found 257", "another model"]);

    let json = run(&fixture("F16.gguf"), &["--json"]).json();
    let missing = &json["warnings"].as_array().unwrap().iter().find(|w| w["kind"] == "importance_missing").unwrap();
    assert_eq!((&missing["tensors"], &missing["of"]), (&serde_json::json!(["token_embd.weight"]), &Json::from(23)));
    run(&fixture("F16.gguf"), &[]).says(0, &["no entry for 1 of the 23 tensors it could change", "token_embd.weight"]);
    run(&fixture("experts.imatrix.gguf"), &["--include-weights", "ffn_up_exps"])
        .says(0, &["1 of the 1 entries of the importance matrix belong to no tensor", "another model"]);
    let include = ["--include-weights", "attn_q", "--include-weights", "attn_k"];
    run(&fits, &include).says(0, &["no entry for 17 of the 23 tensors"]);
    run(&fits, &["--exclude-weights", "attn_q"]).says(0, &["no entry for 3 of the 23 tensors", "attn_q"]);
    run(&fits, &["--exclude-weights", "weight"]).says(2, &["fits.gguf", "--exclude-weights weight", "no entry"]);
    run(&fits, &["--include-weights", "a", "--exclude-weights", "b"]).says(2, &["--exclude-weights"]);
    let idle = ["--type", "F16", "--dry-run", "--imatrix", fits.to_str().unwrap()];
    paths.command(&folder.path().join("out.gguf"), &idle).says(0, &["the importance matrix changes nothing"]);

    let no_matrix = ["--include-weights", "attn_q", "--dry-run"];
    paths.command(&folder.path().join("out.gguf"), &no_matrix).says(2, &["--imatrix"]);
    run(&paths.cp, &[]).says(4, &["--imatrix", "cp-de-F16.gguf", "no importance matrix", "chatvec imatrix"]);
    run(&folder.path().join("missing"), &[]).says(7, &["missing", "cannot read"]);
    let cut = write(folder.path(), "cut.dat", &fs::read(fixture("F16.dat")).unwrap()[..20_000]);
    run(&cut, &[]).says(3, &["cut.dat", "until the end of the file"]);
    run(&fits, &["--memory", "10KiB"]).says(5, &["fits.gguf", "--memory"]);
    assert_eq!(names(folder.path()), ["cut.dat", "fits.gguf", "other.gguf"]);
}

#[test]
fn a_matrix_is_never_written_over_and_counts_to_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    fs::copy(fixture("F16.gguf"), &path).unwrap();
    let options = ["--type", "Q8_0", "--overwrite", "--imatrix", path.to_str().unwrap()];
    Paths::bundled().command(&path, &options).says(6, &["m.gguf", "the same file as the input"]);

    let paths = Paths::bundled();
    let inputs = paths.inputs(1.0);
    let plan = paths.plan(&inputs, "Q8_0");
    let budget = Budget { memory: 1 << 30, threads: 2 };
    let (without, _) = budget.needed(&plan, &inputs).unwrap();
    let inputs = inputs.with_importance(matrix(&path));
    let (with, _) = budget.needed(&plan, &inputs).unwrap();
    assert_eq!(with - without, 28672);
    let least = (1..).map(|kib| kib << 10).find(|&memory| Budget { memory, threads: 1 }.needed(&plan, &inputs).is_ok());
    let e = Budget { memory: least.unwrap() - 1024, threads: 1 }.needed(&plan, &inputs).unwrap_err();
    let pipeline::Error::Budget { needed, budget, .. } = e else { panic!("{e}") };
    assert!(needed > budget && needed <= least.unwrap(), "{needed}");
}

#[test]
fn a_block_of_no_importance_at_all_is_never_written_as_nonsense() {
    let folder = tempfile::tempdir().unwrap();
    let path = fixture("experts-F16.gguf");
    let paths = Paths { base: path.clone(), chat: path.clone(), cp: path };
    let zero = draft(&[("blk.0.attn_v.weight", &[0.0; 256], &[1.0])]).write(folder.path(), "zero.gguf");
    for ty in ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K_S", "Q4_K_S", "Q5_K_S", "Q6_K"] {
        let inputs = paths.inputs(1.0).with_importance(matrix(&zero));
        let plan = MergePlan::merge(&inputs, chatvec::vector::pair(&inputs).unwrap(), &pure(ty), None).unwrap();
        let out = folder.path().join("out.gguf");
        match carry_out(&plan, &inputs, &out, &Budget::default()) {
            Ok(mut merged) => {
                let weights = crate::trio::weights(merged.tensor("blk.0.attn_v.weight"));
                assert!(weights.iter().all(|w| w.is_finite()), "{ty}");
            }
            Err(pipeline::Error::Importance { tensor, .. }) => assert_eq!(tensor, "blk.0.attn_v.weight", "{ty}"),
            Err(e) => panic!("{ty}: {e}"),
        }
    }
}

fn pure(ty: &str) -> plan::Recipe {
    plan::Recipe { output: OutputType::parse(ty, true).unwrap(), ..recipe("keep") }
}

fn imatrix(folder: &Path, more: &[&str]) -> Ran {
    let (model, out) = (bundled("cp-de"), folder.join("out.gguf"));
    let args =
        ["imatrix", model.to_str().unwrap(), "--text", "fixtures/compare/plain-de.txt", "-o", out.to_str().unwrap()];
    chatvec([&args[..], more].concat())
}

#[test]
fn the_command_writes_a_matrix_that_a_merge_takes() {
    let folder = tempfile::tempdir().unwrap();
    let ran = imatrix(folder.path(), &["-c", "64", "--chunks", "3", "--json"]);
    let json = ran.is_quiet().json();
    let (entries, chunks, size) = (json["entries"].as_array().unwrap().len(), &json["chunks"], &json["chunk_size"]);
    assert_eq!((entries, chunks, size, &json["tokens"]), (21, &Json::from(3), &Json::from(64), &Json::from(192)));
    let out = folder.path().join("out.gguf");
    assert_eq!(json["output_bytes"], fs::metadata(&out).unwrap().len());
    let m = matrix(&out);
    assert_eq!((m.n_chunks(), m.datasets()), (3, &["plain-de.txt".to_owned()][..]));
    let merged = folder.path().join("merged.gguf");
    let options = ["--type", "Q6_K", "--pure", "--imatrix", out.to_str().unwrap()];
    Paths::bundled().command(&merged, &options).says(0, &["no entry for 2 of the 23", "token_embd.weight"]);
    assert_eq!(names(folder.path()), ["merged.gguf", "out.gguf"]);

    imatrix(folder.path(), &["-c", "64", "--chunks", "1"]).says(6, &["out.gguf", "exists", "--overwrite"]);
    imatrix(folder.path(), &["-c", "64", "--chunks", "2", "--overwrite", "--process-output"]).is_quiet();
    assert_eq!(matrix(&out).names().len(), 22);
    imatrix(folder.path(), &["-c", "64", "--chunks", "2", "--overwrite", "--output-format", "dat"]).is_quiet();
    assert_eq!(&fs::read(&out).unwrap()[..4], 21i32.to_le_bytes());
    assert_eq!(matrix(&out).n_chunks(), 2);
}

#[test]
fn the_command_says_what_keeps_it_from_starting() {
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let model = bundled("cp-de").to_str().unwrap().to_owned();
    let text = |bytes: &[u8]| write(folder.path(), "text.txt", bytes).to_str().unwrap().to_owned();
    let run = |model: &str, text: &str, out: &str, more: &[&str]| {
        chatvec([&["imatrix", model, "--text", text, "-o", out][..], more].concat())
    };
    let plain = "fixtures/compare/plain-de.txt";
    let short = text(b"Es war einmal.");
    run(&model, &short, &here("m"), &[]).says(2, &["--text", "1024", "two chunks of 512", "--ctx-size"]);
    run(&model, &text(b""), &here("m"), &[]).says(2, &["0 tokens"]);
    run(&model, &text(b"\xff\xfe"), &here("m"), &[]).says(3, &["text.txt", "UTF-8"]);
    run(&model, &here("none.txt"), &here("m"), &[]).says(7, &["none.txt"]);
    run("fixtures/imatrix/F16.gguf", plain, &here("m"), &[]).says(4, &["F16.gguf", "\"imatrix\""]);
    run(&model, plain, &here("no/m"), &["-c", "64"]).says(6, &["no folder"]);
    run(&model, &text(&fs::read(plain).unwrap()), &here("text.txt"), &["--overwrite", "-c", "64"])
        .says(6, &["text.txt", "the same file as the input"]);
    run(&model, plain, &here("m"), &["-c", "64", "--memory", "100KiB"]).says(5, &["--memory"]);
    run(&model, plain, &here("m"), &["-c", "3"]).says(2, &["--ctx-size"]);
    let mut other = read(&bundled("cp-de"));
    other.set("general.architecture", Val::str("stablelm"));
    let other = other.write(folder.path(), "other.gguf");
    run(other.to_str().unwrap(), plain, &here("m"), &["-c", "64"]).says(5, &["llama, qwen2", "stablelm"]);
    assert_eq!(names(folder.path()), ["other.gguf", "text.txt"]);
    run(&model, plain, &here("m.dat"), &["-c", "300", "--chunks", "1"])
        .says(0, &["trained on 256", "--output-format dat"]);
}

#[test]
fn a_closed_pipe_is_a_normal_end_of_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m.gguf");
    let model = bundled("cp-de");
    let args =
        ["imatrix", model.to_str().unwrap(), "--text", "fixtures/compare/plain-de.txt", "-c", "64", "--chunks", "1"];
    let mut child = command(args).arg("-o").arg(&out).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ran = Ran::new(child.wait_with_output().unwrap());
    ran.is_quiet();
    assert_eq!(matrix(&out).names().len(), 21);
}

#[test]
fn a_list_of_texts_that_are_no_strings_is_an_empty_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut draft = draft(&[("a", &[1.0], &[1.0])]);
    draft.set("imatrix.datasets", Val::Array(kind::I32, vec![Val::I32(1)]));
    assert_eq!(matrix(&draft.write(folder.path(), "m.gguf")).datasets(), [""; 0]);
}

/// A matrix of ones for every matrix of a model.
fn ones(model: &Draft, folder: &Path) -> PathBuf {
    let matrices = model.tensors.iter().filter(|t| t.ne.len() > 1);
    let entries: Vec<(String, Vec<f32>, Vec<f32>)> = matrices
        .map(|t| {
            let n_matrices = t.ne.get(2).copied().unwrap_or(1) as usize;
            let name = String::from_utf8(t.name.clone()).unwrap();
            (name, vec![1.0; t.ne[0] as usize * n_matrices], vec![1.0; n_matrices])
        })
        .collect();
    let entries: Vec<(&str, &[f32], &[f32])> = entries.iter().map(|(n, s, c)| (n.as_str(), &s[..], &c[..])).collect();
    draft(&entries).write(folder, "ones.gguf")
}

#[test]
fn a_flat_importance_is_a_matrix_of_ones_without_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let model = bundled("cp-de");
    let [by_file, flat, none, plain] = ["by_file", "flat", "none", "plain"].map(|name| folder.path().join(name));
    let matrix = ones(&read(&model), folder.path());
    for ty in ["Q4_0", "Q2_K", "IQ3_S", "IQ2_M"] {
        let quantize = |out: &Path, options: &[&str]| {
            let arguments = ["quantize", model.to_str().unwrap(), "-o", out.to_str().unwrap(), "--type", ty];
            chatvec([&arguments[..], &["--overwrite"], options].concat())
        };
        quantize(&by_file, &["--imatrix", matrix.to_str().unwrap()]).says(0, &[]);
        quantize(&flat, &["--importance", "flat"]).is_quiet();
        let (by_file, flat) = (read(&by_file), read(&flat));
        for (a, b) in by_file.tensors.iter().zip(&flat.tensors) {
            assert!((a.ty, &a.data) == (b.ty, &b.data), "{ty}: {}", String::from_utf8_lossy(&a.name));
        }
        assert_eq!(get(&flat, "chatvec.importance"), Some(&Val::str("flat")));
        assert_eq!(get(&flat, "quantize.imatrix.file"), None);
        // The coarsest types cannot do without.
        if ty == "IQ2_M" {
            quantize(&none, &["--importance", "none"]).says(5, &["importance"]);
            continue;
        }
        quantize(&none, &["--importance", "none"]).says(0, &[]);
        quantize(&plain, &[]).says(0, &[]);
        assert!(fs::read(&none).unwrap() == fs::read(&plain).unwrap(), "{ty}");
        assert!(read(&none).tensors.iter().zip(&flat.tensors).any(|(a, b)| a.data != b.data), "{ty}");
    }
    // Not both, and a recipe keeps it.
    let both = ["quantize", model.to_str().unwrap(), "-o", flat.to_str().unwrap(), "--importance", "flat"];
    chatvec([&both[..], &["--imatrix", matrix.to_str().unwrap()]].concat()).says(2, &["--importance", "--imatrix"]);
}

#[test]
fn a_merge_with_flat_importance_can_be_made_again_from_its_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let paths = crate::trio::Trio::small().write(folder.path());
    let [first, again] = ["first.gguf", "again.gguf"].map(|name| folder.path().join(name));
    paths.command(&first, &["--type", "Q4_0", "--importance", "flat"]).says(0, &[]);
    let arguments = ["merge", "--recipe", first.to_str().unwrap(), "-o", again.to_str().unwrap()];
    chatvec(arguments).says(0, &[]);
    assert!(fs::read(&first).unwrap() == fs::read(&again).unwrap());
    // A recipe with both is refused as the command line is.
    let recipe = folder.path().join("both.toml");
    let text = "model = \"cp.gguf\"\nimportance = \"flat\"\nimatrix = \"m.gguf\"\n[[vector]]\nbase = \"base.gguf\"\nchat = \"chat.gguf\"\n";
    fs::write(&recipe, text).unwrap();
    let arguments = ["merge", "--recipe", recipe.to_str().unwrap(), "-o", again.to_str().unwrap(), "--overwrite"];
    chatvec(arguments).says(2, &["importance", "imatrix"]);
}

#[test]
fn a_merge_weighs_errors_alike_in_the_types_that_gain_by_it() {
    let folder = tempfile::tempdir().unwrap();
    let paths = crate::trio::Trio::small().write(folder.path());
    let merged = |ty: &str, how: &[&str]| {
        let out = folder.path().join("out.gguf");
        let options = [&["--type", ty, "--pure", "--overwrite", "--on-loss", "warn"], how].concat();
        paths.command(&out, &options).says(0, &[]);
        read(&out)
    };
    let data = |draft: &Draft| draft.tensors.iter().map(|t| t.data.clone()).collect::<Vec<_>>();
    for ty in ["IQ3_S", "Q2_K", "Q4_1", "Q5_1"] {
        let found = merged(ty, &[]);
        assert!(data(&found) == data(&merged(ty, &["--importance", "flat"])), "{ty}");
        assert!(data(&found) != data(&merged(ty, &["--importance", "none"])), "{ty}");
        assert_eq!(get(&found, "chatvec.importance"), Some(&Val::str("flat")), "{ty}");
    }
    for ty in ["Q4_0", "Q4_K", "Q6_K", "IQ4_NL"] {
        let found = merged(ty, &[]);
        assert!(data(&found) == data(&merged(ty, &["--importance", "none"])), "{ty}");
        assert!(data(&found) != data(&merged(ty, &["--importance", "flat"])), "{ty}");
        assert_eq!(get(&found, "chatvec.importance"), None, "{ty}");
    }
    assert_eq!(get(&merged("F16", &[]), "chatvec.importance"), None);
}

#[test]
fn a_flat_importance_chooses_no_other_types_than_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut draft = read(&bundled("cp-de"));
    // Eight layers, so that the first eighth is one.
    draft.set("llama.block_count", Val::U32(8));
    let layer: Vec<Tensor> = draft.tensors.iter().filter(|t| t.name.starts_with(b"blk.0.")).cloned().collect();
    for i in 3..8 {
        for tensor in &layer {
            let name = String::from_utf8(tensor.name.clone()).unwrap().replace("blk.0.", &format!("blk.{i}."));
            draft.tensors.push(Tensor { name: name.into_bytes(), ..tensor.clone() });
        }
    }
    let model = draft.write(folder.path(), "model.gguf");
    let types = |ty: &str, how: &str| {
        let out = folder.path().join("out.gguf");
        let arguments = ["quantize", model.to_str().unwrap(), "-o", out.to_str().unwrap(), "--type", ty];
        chatvec([&arguments[..], &["--overwrite", "--importance", how]].concat()).says(0, &[]);
        read(&out).tensors.iter().map(|t| t.ty).collect::<Vec<_>>()
    };
    for ty in ["Q4_0", "Q5_0", "IQ4_NL", "IQ4_XS", "Q4_K_M"] {
        assert_eq!(types(ty, "flat"), types(ty, "none"), "{ty}");
    }
}
