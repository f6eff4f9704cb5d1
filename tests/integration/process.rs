//! What a process takes of the system and what it leaves to its parent, by the system's own
//! figures.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Draft, Tensor, Val};
use crate::trio::{F16, Noise, Ran, bundled, chatvec, command, encode, names, read, requantise};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs a command and gives the calls by which it read (`syscr` of `/proc/PID/io`: files, and the
/// loader's own).
#[track_caller]
fn reads(args: &[&str]) -> u64 {
    let mut child = command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let of = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", child.id())).unwrap();
    // It has ended, and is not yet reaped.
    while !of("stat").rsplit(')').next().unwrap().trim_start().starts_with('Z') {
        std::thread::sleep(Duration::from_millis(1));
    }
    let io = of("io");
    assert!(child.wait().unwrap().success(), "{args:?}: {said}");
    io.lines().find_map(|line| line.strip_prefix("syscr: ")).unwrap().parse().unwrap()
}

/// Bytes and tensors of a file.
fn size_of(path: &Path) -> (u64, u64) {
    (fs::metadata(path).unwrap().len(), read(path).tensors.len() as u64)
}

/// Reads of files from their beginnings to their ends, so often: of each tensor a few until they
/// are long, then 64 KiB or more each. Headers, the program and its libraries come on top.
fn bound(files: &[&Path], times: u64) -> u64 {
    let of = |path: &&Path| {
        let (bytes, n_tensors) = size_of(path);
        times * (bytes / (64 << 10) + 3 * n_tensors) + bytes / (256 << 10)
    };
    200 + files.iter().map(of).sum::<u64>()
}

/// A model of which the rows of tokens are turned around in groups: as another converter might
/// order them.
fn reordered(draft: &mut Draft, group: usize) {
    let turn = |all: &mut dyn FnMut(usize, usize), n: usize| {
        let starts: Vec<usize> = (0..n).step_by(group).collect();
        starts.iter().rev().for_each(|start| all(*start, group.min(n - start)));
    };
    let by_token = ["tokens", "scores", "token_type"].map(|key| format!("tokenizer.ggml.{key}").into_bytes());
    let mut places = Vec::new();
    for (_, value) in draft.keys.iter_mut().filter(|(key, _)| by_token.contains(key)) {
        let Val::Array(_, all) = value else { continue };
        let mut out = Vec::new();
        turn(&mut |start, n| out.extend_from_slice(&all[start..start + n]), all.len());
        places = Vec::new();
        turn(&mut |start, n| places.extend(start..start + n), all.len());
        *all = out;
    }
    for (_, value) in draft.keys.iter_mut().filter(|(key, _)| key.ends_with(b"_token_id")) {
        let Val::U32(id) = value else { continue };
        *id = places.iter().position(|place| *place == *id as usize).unwrap() as u32;
    }
    for tensor in draft.tensors.iter_mut().filter(|t| t.name.starts_with(b"token_embd") || t.name == b"output.weight") {
        let data = tensor.data();
        let (row, mut out) = (data.len() / tensor.ne[1] as usize, Vec::new());
        turn(&mut |start, n| out.extend_from_slice(&data[start * row..(start + n) * row]), tensor.ne[1] as usize);
        tensor.data = Some(out);
    }
}

#[test]
fn reads_are_as_long_as_what_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (base, chat, cp) = (bundled("base"), bundled("chat"), bundled("cp-de"));
    let trio: [&Path; 3] = [&base, &chat, &cp];
    let of_chat = ["--base", text(&base), "--chat", text(&chat)];
    let out = at("out.gguf");
    let merge = |model: &Path, more: &[&str]| {
        reads(&[&["merge", "--overwrite", "-o", text(&out), "--model", text(model)][..], &of_chat, more].concat())
    };
    let check = |what: &str, n: u64, bound: u64| assert!(n <= bound, "{what}: {n} reads, more than {bound}");

    // A survey and the run.
    check("merge", merge(&cp, &[]), bound(&trio, 2));
    check("merge in little memory", merge(&cp, &["--memory", "3MiB", "--threads", "1"]), bound(&trio, 2));
    check("a dry run", merge(&cp, &["--dry-run"]), bound(&trio, 3));

    // Where tokens lie in other places, each run of neighbours is read by itself.
    let mut draft = read(&cp);
    let group = 64;
    let n_rows: u64 = draft.tensors.iter().filter(|t| t.name.starts_with(b"token_embd")).map(|t| t.ne[1]).sum();
    reordered(&mut draft, group);
    let model = draft.write(folder.path(), "reordered.gguf");
    let runs = n_rows.div_ceil(group as u64) + 64;
    check("merge of other places", merge(&model, &[]), bound(&trio, 2) + 2 * 3 * 3 * runs);

    // Onto a grid: two surveys, the errors of each tensor twice, and the run.
    let mut draft = read(&cp);
    requantise(&mut draft, crate::trio::Q4_K);
    let model = draft.write(folder.path(), "q4.gguf");
    check("merge onto Q4_K", merge(&model, &[]), bound(&trio, 5));

    for (name, how) in [("q8.gguf", &["--encoding", "q8_0"][..]), ("lora.gguf", &["--encoding", "lora:16"])] {
        let patch = at(name);
        let n = reads(&[&["extract", "-o", text(&patch)][..], &of_chat, how].concat());
        // Hashes, rows that moved, survey, and the patch read back; a decomposition goes over its
        // matrix four times in sixteenths.
        let tasks = if name == "lora.gguf" { 2 * 4 * 16 * size_of(&chat).1 } else { 0 };
        check(name, n, bound(&trio[..2], 4) + bound(&[&patch], 2) + tasks);
        let apply = ["apply", "--overwrite", "-o", text(&out), "--model", text(&cp), text(&patch)];
        // Parts of a matrix of the patch are read for as many weights as are computed at a time.
        check(&format!("apply {name}"), reads(&apply), bound(&[&cp], 2) + 8 * bound(&[&patch], 2));
        check(&format!("verify {name}"), reads(&["verify", text(&patch)]), bound(&[&patch], 4));
    }
    let to = at("q.gguf");
    let quantize = ["quantize", text(&cp), "-o", text(&to), "--type", "Q4_K_M"];
    check("quantize", reads(&quantize), bound(&[&cp], 1));
    check("inspect", reads(&["inspect", "--chat", text(&cp)]), bound(&[&cp], 1));
    check("compare", reads(&["compare", text(&cp), text(&chat)]), bound(&[&cp, &chat], 1));
}

/// Bytes of the stack of each thread, so large that the limit on addresses counts threads.
const STACK: u64 = 512 << 20;

/// Addresses of everything else.
const BESIDES: u64 = 448 << 20;

/// A command in a process that cannot have more than so many threads besides the first, where
/// everyone who asks the machine would start 64.
fn with_threads(n: u64, args: &[&str]) -> Ran {
    let limit = (n * STACK + BESIDES) >> 10;
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit -v {limit} && exec \"$@\""), "sh", env!("CARGO_BIN_EXE_chatvec")]);
    shell.args(args).env("RUST_MIN_STACK", STACK.to_string()).env("MALLOC_ARENA_MAX", "1");
    Ran::new(shell.env("RAYON_NUM_THREADS", "64").output().unwrap())
}

#[test]
fn no_command_starts_more_threads_than_it_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let [base, chat, cp] = ["base", "chat", "cp-de"].map(|name| text(&bundled(name)).to_owned());
    let of_chat = ["--base", &base, "--chat", &chat];
    let calibration = at("text.txt");
    fs::write(&calibration, "Die Hauptstadt von Frankreich ist Paris. ".repeat(300)).unwrap();
    let prompts = bundled("base").parent().unwrap().join("prompts-de.jsonl");
    let mut draft = read(&bundled("cp-de"));
    requantise(&mut draft, crate::trio::Q4_K);
    let q4 = draft.write(folder.path(), "q4.gguf");
    let [patch, svd, out] = ["patch.gguf", "svd.gguf", "out.gguf"].map(at);
    let (lora, imatrix) = (at("lora.gguf"), at("imatrix.gguf"));
    let commands: Vec<Vec<&str>> = vec![
        [&["merge", "--model", &cp, "-o", &out, "--overwrite"][..], &of_chat].concat(),
        [&["merge", "--model", &cp, "-o", &out, "--dry-run"][..], &of_chat].concat(),
        [&["merge", "--model", text(&q4), "-o", &out, "--overwrite", "--method", "ties"][..], &of_chat].concat(),
        [&["extract", "-o", &patch, "--overwrite"][..], &of_chat].concat(),
        [&["extract", "-o", &svd, "--overwrite", "--size", "1/16"][..], &of_chat].concat(),
        [&["extract", "--lora", &lora, "--overwrite"][..], &of_chat].concat(),
        vec!["apply", "--model", &cp, &patch, &svd, "-o", &out, "--overwrite"],
        vec!["verify", &patch, "--base", &base, "--chat", &chat],
        vec!["verify", &svd],
        vec!["compare", &cp, &chat, "--text", &calibration],
        vec!["quantize", &cp, "-o", &out, "--overwrite", "--type", "Q4_K_M"],
        vec!["inspect", "--chat", &chat],
        vec!["smoke", &chat, "--limit", "3", "--max-tokens", "8", "--prompts", text(&prompts)],
        vec!["imatrix", &cp, "--text", &calibration, "-o", &imatrix, "--overwrite"],
    ];
    for n in [1, 2] {
        for args in &commands {
            let threads = n.to_string();
            // Besides: one that waits for signals, and one that renders a template or waits for the
            // disk.
            let ran = with_threads(n + 2, &[&args[..], &["--threads", &threads]].concat());
            let is_done = [0, 10, 11].contains(&ran.code);
            assert!(is_done && !ran.err.contains("panicked"), "{n} {args:?}: {ran:#?}");
        }
    }
    // And where there are fewer than asked for, that is an error.
    for args in commands.iter().filter(|args| !["verify", "inspect"].contains(&args[0])) {
        let ran = with_threads(3, &[&args[..], &["--threads", "8"]].concat());
        ran.says(7, &["cannot start 8 threads", "give fewer --threads"]);
        assert!(!ran.err.contains("panicked"), "{args:?}: {ran:#?}");
    }
}

/// A model whose encoding in one thread takes seconds.
fn large(folder: &Path) -> PathBuf {
    let mut draft: Draft = crate::trio::Trio::small().cp;
    let data = encode(F16, &Noise(3).normals(1 << 20, 0.02)).repeat(16);
    draft.tensors.push(Tensor { data: Some(data), ..Tensor::new("blk.0.big.weight", &[4096, 4096], F16) });
    draft.write(folder, "big.gguf")
}

#[test]
fn what_the_parent_ignores_stays_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let path = large(folder.path());
    let out = folder.path().join("out.gguf");
    for (ignored, sent, code) in [("HUP", "HUP", 0), ("INT", "INT", 0), ("TERM", "TERM", 0), ("HUP", "TERM", 130)] {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("trap '' {ignored}; exec \"$@\""), "sh", env!("CARGO_BIN_EXE_chatvec"), "quantize"]);
        shell.arg(&path).arg("-o").arg(&out).args(["--type", "Q3_K_S", "--pure", "--threads", "1", "--overwrite"]);
        let child = shell.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let limit = Instant::now() + Duration::from_secs(120);
        while !names(folder.path()).iter().any(|name| name.starts_with(".chatvec-")) {
            assert!(Instant::now() < limit, "the run does not begin");
            std::thread::sleep(Duration::from_millis(2));
        }
        let kill = format!("kill -{sent} {}", child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        let ran = Ran::new(child.wait_with_output().unwrap());
        assert_eq!(ran.code, code, "{ignored} {sent}: {ran:#?}");
        assert_eq!(out.exists(), code == 0, "{ignored} {sent}");
        let _ = fs::remove_file(&out);
        assert_eq!(names(folder.path()), ["big.gguf"], "{ignored} {sent}");
    }
}

#[test]
fn a_limit_on_the_length_of_files_is_an_error_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (base, chat, cp) = (bundled("base"), bundled("chat"), bundled("cp-de"));
    let of_chat = ["--base", text(&base), "--chat", text(&chat)];
    let out = folder.path().join("out.gguf");
    let commands = [
        [&["merge", "--model", text(&cp), "-o", text(&out)][..], &of_chat].concat(),
        vec!["quantize", text(&cp), "-o", text(&out), "--type", "Q8_0"],
        [&["extract", "-o", text(&out)][..], &of_chat].concat(),
        // Its singular vectors are in a file of their own before.
        [&["extract", "-o", text(&out), "--size", "1/16"][..], &of_chat].concat(),
    ];
    for args in commands {
        // In blocks of 512 bytes, or of 1024 in some shells: 50 or 100 KiB.
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -f 100 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_chatvec")]);
        let ran = Ran::new(shell.args(&args).output().unwrap());
        ran.says(7, &["File too large"]);
        assert_eq!(names(folder.path()), [""; 0], "{args:?}");
    }
    let quantize = ["quantize", text(&cp), "-o", text(&out), "--type", "Q8_0"];
    chatvec(quantize).says(0, &[]);
}
