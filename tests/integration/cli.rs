//! The command: exit codes, messages, JSON, places of the output, signals, and what is left behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use chatvec::cli::Exit;
use serde_json::Value as Json;

use crate::gguf_malformed;
use crate::support::{Draft, Tensor, Val, valid, write};
use crate::trio::{
    F16, Noise, Paths, Q4_K, Ran, Trio, bundled, chatvec, command, interruptible, names, read, requantise, store,
};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A folder with the small trio.
fn small() -> (tempfile::TempDir, Paths) {
    let folder = tempfile::tempdir().unwrap();
    let paths = Trio::small().write(folder.path());
    (folder, paths)
}

const TRIO: [&str; 3] = ["base.gguf", "chat.gguf", "cp.gguf"];

#[test]
fn every_exit_code_is_reached_and_in_the_help() {
    let (folder, paths) = small();
    let at = |name: &str| folder.path().join(name);
    let mut reached: Vec<Ran> = Vec::new();
    reached.push(paths.command(&at("out.gguf"), &[]));
    reached.push(Ran::new(command(["demo"]).current_dir(folder.path()).output().unwrap()));
    reached.push(paths.command(&at("out.gguf"), &["--ratio", "half"]));
    let bad = write(folder.path(), "bad.gguf", b"GGUF");
    reached.push(chatvec(["inspect", text(&bad)]));
    let swapped = Paths { base: paths.chat.clone(), chat: paths.base.clone(), cp: paths.cp.clone() };
    reached.push(swapped.command(&at("other.gguf"), &[]));
    reached.push(paths.command(&at("other.gguf"), &["--type", "Q2_K_S"]));
    reached.push(paths.command(&at("out.gguf"), &[]));
    reached.push(chatvec(["inspect", text(&at("missing.gguf"))]));
    let mut trio = Trio::small();
    requantise(&mut trio.cp, Q4_K);
    let quantised = Paths { cp: trio.cp.write(folder.path(), "q4.gguf"), ..swapped };
    reached.push(
        Paths { base: paths.base, chat: paths.chat, ..quantised }.command(&at("lost.gguf"), &["--on-loss", "fail"]),
    );
    // It only continues text.
    let (cp, few) = (bundled("cp-de"), ["--language", "en", "--limit", "2", "--max-tokens", "4"]);
    reached.push(chatvec([&["smoke", text(&cp)], &few[..]].concat()));
    let codes: Vec<i32> = reached.iter().map(|ran| ran.code).collect();
    // 130 has a test of its own below.
    assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7, 10, 11], "{reached:#?}");
    for ran in &reached[1..8] {
        // Warnings may come before it.
        assert!(ran.err.lines().any(|l| l.starts_with("error: ")) && ran.out.is_empty(), "{ran:#?}");
    }
    let reached: BTreeSet<u8> = codes.iter().map(|&code| code as u8).chain([130]).collect();
    assert_eq!(reached, Exit::all().map(|(code, _)| code).collect());

    let help = chatvec(["--help"]).out;
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    for (code, meaning) in Exit::all() {
        assert!(words(&help).contains(&format!("{code} {meaning}")), "{code} is not in the help:\n{help}");
    }
}

#[test]
fn each_bad_file_is_refused_by_every_command_and_leaves_nothing_behind() {
    let limit = Instant::now() + Duration::from_secs(60);
    for (i, case) in gguf_malformed::cases().into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in &case.files {
            write(folder.path(), name, bytes);
        }
        for name in TRIO {
            valid().write(folder.path(), name);
        }
        let before = names(folder.path());
        let bad = folder.path().join(&case.files[0].0);
        let out = folder.path().join("out.gguf");
        let [base, chat, cp] = TRIO.map(|name| folder.path().join(name));
        // In turns as each of the three inputs.
        let (role, paths) = match i % 3 {
            0 => ("--base", Paths { base: bad.clone(), chat, cp }),
            1 => ("--chat", Paths { base, chat: bad.clone(), cp }),
            _ => ("--model", Paths { base, chat, cp: bad.clone() }),
        };
        let merged = paths.command(&out, &[]);
        assert!(merged.err.starts_with(&format!("error: {role}: ")), "{}: {merged:#?}", case.name);
        for ran in [chatvec(["inspect", text(&bad)]), chatvec(["inspect", "--json", text(&bad)]), merged] {
            assert_eq!(ran.code, 3, "{}: {ran:#?}", case.name);
            assert!(ran.out.is_empty() && ran.err.contains(&case.culprit), "{}: {ran:#?}", case.name);
            assert_eq!(ran.err.lines().count(), 1, "{}: {ran:#?}", case.name);
        }
        assert_eq!(names(folder.path()), before, "{}", case.name);
    }
    assert!(Instant::now() < limit, "a minute for files of a few kilobytes");
}

#[test]
fn a_big_endian_file_can_be_looked_at_and_not_merged() {
    let (folder, mut paths) = small();
    let mut big = valid();
    big.big_endian = true;
    paths.cp = big.write(folder.path(), "big.gguf");
    let ran = chatvec(["inspect", text(&paths.cp)]);
    ran.says(0, &[]);
    assert!(ran.out.contains("big-endian: the weights cannot be computed with"), "{ran:#?}");
    paths.command(&folder.path().join("out.gguf"), &[]).says(5, &["big.gguf", "big-endian"]);
    assert!(!folder.path().join("out.gguf").exists());
}

#[test]
fn an_existing_output_is_replaced_only_when_asked() {
    let (folder, paths) = small();
    let out = write(folder.path(), "out.gguf", b"precious");
    let ran = paths.command(&out, &[]);
    ran.says(6, &["out.gguf", "the file exists", "--overwrite"]);
    assert_eq!(fs::read(&out).unwrap(), b"precious");
    paths.command(&out, &["--overwrite"]).says(0, &[]);
    assert_eq!(read(&out).tensors.len(), 14);
    assert_eq!(names(folder.path()), ["base.gguf", "chat.gguf", "cp.gguf", "out.gguf"]);
}

#[test]
fn the_output_is_never_an_input_by_whatever_name() {
    let (folder, paths) = small();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("sub")).unwrap();
    fs::hard_link(&paths.cp, at("hard.gguf")).unwrap();
    let mut places = vec![at("base.gguf"), at("chat.gguf"), at("cp.gguf"), at("sub/../cp.gguf"), at("hard.gguf")];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("cp.gguf", at("soft.gguf")).unwrap();
        std::os::unix::fs::symlink(folder.path(), at("here")).unwrap();
        places.extend([at("soft.gguf"), at("here/cp.gguf")]);
    }
    let before = (names(folder.path()), TRIO.map(|name| fs::read(at(name)).unwrap()));
    for out in places {
        let ran = paths.command(&out, &["--overwrite"]);
        ran.says(6, &["the output is the same file as the input", text(&out)]);
    }
    let after = (names(folder.path()), TRIO.map(|name| fs::read(at(name)).unwrap()));
    assert!(before == after, "an input changed");
}

#[test]
fn an_output_that_cannot_be_is_refused_before_the_run() {
    let (folder, paths) = small();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("folder")).unwrap();
    paths.command(&at("folder"), &["--overwrite"]).says(6, &["regular file", "a folder"]);
    paths.command(&at("name/"), &[]).says(6, &["regular file", "the name of a folder"]);
    paths.command(&at("missing/out.gguf"), &[]).says(6, &["there is no folder", "missing"]);
    paths.command(&at("cp.gguf/out.gguf"), &[]).says(6, &["there is no folder", "cp.gguf"]);
    assert_eq!(names(folder.path()), ["base.gguf", "chat.gguf", "cp.gguf", "folder"]);
}

#[test]
fn a_reader_that_goes_away_is_a_normal_ending() {
    for args in [&["inspect", "--tensors"][..], &["inspect", "--json"]] {
        let mut command = command(args);
        command.arg(bundled("cp-de")).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let ran = Ran::new(child.wait_with_output().unwrap());
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{args:?}");
    }
}

#[test]
fn a_reader_that_goes_away_hides_no_loss() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    requantise(&mut trio.cp, Q4_K);
    let paths = trio.write(folder.path());
    let mut command = command(["merge", "--min-survival", "1.2", "-o"]);
    command.arg(folder.path().join("out.gguf"));
    for (flag, path) in [("--base", &paths.base), ("--chat", &paths.chat), ("--model", &paths.cp)] {
        command.arg(flag).arg(path);
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ran = Ran::new(child.wait_with_output().unwrap());
    ran.says(10, &["rounding is expected to take the vector", "rounding took the vector"]);
}

#[test]
#[cfg(unix)]
fn a_pipe_or_a_folder_is_no_input_and_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.gguf");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    chatvec(["inspect", text(&pipe)]).says(7, &["pipe.gguf", "it is a device or pipe"]);
    chatvec(["inspect", text(folder.path())]).says(7, &["it is a folder"]);
}

#[test]
fn headers_of_many_keys_are_compared_key_by_key() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    trio.each(|draft| (0..30_000).for_each(|i| draft.keys.push((format!("llama.x{i}").into_bytes(), Val::U32(i)))));
    let paths = trio.write(folder.path());
    paths.command(&folder.path().join("out.gguf"), &[]).is_quiet();
    trio.chat.set("llama.x29999", Val::U32(0));
    let paths = trio.write(folder.path());
    let ran = paths.command(&folder.path().join("out.gguf"), &["--overwrite"]);
    ran.says(0, &["llama.x29999 is 29999 in the model and 0 in chat"]);
}

/// Panics unless the object has exactly these keys.
#[track_caller]
fn has_keys(object: &Json, keys: &[&str]) {
    let mut found: Vec<&str> = object.as_object().expect("an object").keys().map(String::as_str).collect();
    let mut keys = keys.to_vec();
    found.sort_unstable();
    keys.sort_unstable();
    assert_eq!(found, keys);
}

const RUN: [&str; 19] = [
    "output",
    "output_bytes",
    "output_files",
    "n_tensors",
    "n_changed",
    "total",
    "parts",
    "tensors",
    "plumbing",
    "warnings",
    "findings",
    "lora",
    "lost",
    "method",
    "missing",
    "mended",
    "seconds",
    "smoke",
    "special_tokens",
];
const PLAN: [&str; 13] = [
    "tensors",
    "forecast",
    "findings",
    "warnings",
    "plumbing",
    "special_tokens",
    "method",
    "output_bytes",
    "disk_free_bytes",
    "memory_bytes",
    "peak_memory_bytes",
    "seconds",
    "threads",
];
const MEASURED: [&str; 5] = ["delta_ratio", "drift_ratio", "drift_cosine", "survival", "noise"];

#[test]
fn json_has_its_keys_on_every_command() {
    let (folder, paths) = small();
    let at = |name: &str| folder.path().join(name);
    let inspected = chatvec(["inspect", "--json", text(&paths.cp)]).json();
    has_keys(&inspected, &["files", "metadata", "tensors", "warnings"]);
    has_keys(&inspected["tensors"][0], &["name", "ne", "type", "bytes", "offset", "file"]);
    assert_eq!(inspected["metadata"]["general.name"], "small cp");

    let out = at("out.gguf");
    let merged = paths.command(&out, &["--json"]).json();
    has_keys(&merged, &RUN);
    has_keys(&merged["total"], &MEASURED);
    has_keys(&merged["tensors"][0], &[&MEASURED[..], &["name", "type", "rounding"]].concat());
    has_keys(&merged["parts"][0], &[&MEASURED[..], &["part", "types", "tensors"]].concat());
    assert_eq!(merged["output"], text(&out));
    assert_eq!(merged["output_bytes"], fs::metadata(&out).unwrap().len());
    assert_eq!((&merged["n_tensors"], &merged["n_changed"]), (&Json::from(14), &Json::from(13)));

    let planned = paths.command(&at("dry.gguf"), &["--json", "--dry-run"]).json();
    has_keys(&planned, &PLAN);
    let forecast = ["delta_ratio", "drift_ratio", "drift_cosine", "cosine", "output", "by_type"];
    has_keys(&planned["forecast"], &forecast);
    has_keys(&planned["forecast"]["output"], &["survival", "noise"]);
    let tensor = [
        "name",
        "ne",
        "sources",
        "type",
        "rounding",
        "bytes",
        "kept",
        "ratios",
        "densities",
        "pieces",
        "pieces_sampled",
    ];
    has_keys(&planned["tensors"][0], &[&tensor[..], &MEASURED[..]].concat());
    assert_eq!(planned["output_bytes"], merged["output_bytes"], "a plan knows the size to the byte");

    let patch = at("patch.gguf");
    let (base, chat, cp) = (text(&paths.base), text(&paths.chat), text(&paths.cp));
    let extract = ["extract", "--json", "--base", base, "--chat", chat, "-o", text(&patch)];
    has_keys(&chatvec(extract).json(), &RUN);
    let applied = at("applied.gguf");
    let apply = ["apply", "--json", "--model", cp, text(&patch), "-o", text(&applied)];
    has_keys(&chatvec(apply).json(), &RUN);
    let planned = chatvec([&apply[..], &["--dry-run"]].concat()).json();
    has_keys(&planned, &PLAN);
}

#[test]
fn a_dry_run_writes_nothing_and_minds_no_existing_output() {
    let (folder, paths) = small();
    let out = write(folder.path(), "out.gguf", b"precious");
    let ran = paths.command(&out, &["--dry-run", "--type", "Q4_K", "--pure"]);
    ran.says(0, &[]);
    for word in ["blk.0.ffn_down.weight", "256 × 256", "Q4_K", "kept: no weight", "survival", "disk has"] {
        assert!(ran.out.contains(word), "no {word:?} in:\n{}", ran.out);
    }
    paths.command(&folder.path().join("missing/out.gguf"), &["--dry-run"]).says(0, &[]);
    assert_eq!(fs::read(&out).unwrap(), b"precious");
    assert_eq!(names(folder.path()), ["base.gguf", "chat.gguf", "cp.gguf", "out.gguf"]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_leaves_nothing_behind() {
    use std::process::Command;

    // Sixteen million weights to Q3_K, the slowest of the encoders, in one thread: seconds.
    let folder = tempfile::tempdir().unwrap();
    let mut draft: Draft = Trio::small().cp;
    let weights = Noise(3).normals(1 << 20, 0.02);
    let data = crate::trio::encode(F16, &weights).repeat(16);
    draft.tensors.push(Tensor { data: Some(data), ..Tensor::new("blk.0.big.weight", &[4096, 4096], F16) });
    let path = draft.write(folder.path(), "big.gguf");
    let paths = Paths { base: path.clone(), chat: path.clone(), cp: path };
    for signal in ["INT", "TERM"] {
        let mut args = vec!["merge", "-o"];
        let out = folder.path().join("out.gguf");
        args.extend([text(&out), "--type", "Q3_K", "--pure", "--threads", "1", "--memory", "4MiB"]);
        args.extend(["--base", text(&paths.base), "--chat", text(&paths.chat), "--model", text(&paths.cp)]);
        let child = interruptible(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let limit = Instant::now() + Duration::from_secs(60);
        // The output under its temporary name.
        while names(folder.path()).len() < 2 {
            assert!(Instant::now() < limit, "the run does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        let sent = Instant::now();
        // The shell's own: a bare machine has no program of that name.
        let kill = format!("kill -{signal} {}", child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        let ran = Ran::new(child.wait_with_output().unwrap());
        ran.says(130, &["error: interrupted; nothing is written"]);
        assert!(sent.elapsed() < Duration::from_secs(10), "{:?}", sent.elapsed());
        assert_eq!(names(folder.path()), ["big.gguf"], "{signal}");
    }
}

#[test]
fn an_output_whose_adapter_is_not_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Paths::bundled();
    let (out, adapter) = (folder.path().join("out.gguf"), folder.path().join("lora.gguf"));
    // The output has 1.6 MB, and its adapter more than the limit of 2 MB.
    let files =
        ["--base", text(&paths.base), "--chat", text(&paths.chat), "--model", text(&paths.cp), "-o", text(&out)];
    let options = ["--type", "Q4_K_M", "--residual-lora", text(&adapter), "--residual-rank", "512"];
    let merge = ["merge"].into_iter().chain(files).chain(options);
    let program = command(["--version"]).get_program().to_owned();
    let limited = format!("ulimit -f 4000; exec \"{}\" \"$@\"", text(Path::new(&program)));
    let ran = Ran::new(std::process::Command::new("sh").arg("-c").arg(limited).arg("sh").args(merge).output().unwrap());
    ran.says(7, &["out.gguf is complete, but its adapter is not written: "]);
    assert_eq!(names(folder.path()), ["out.gguf"]);
}

#[test]
fn the_demo_merges_the_bundled_trio_and_prints_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let models = bundled("base").parent().unwrap().to_owned();
    let to = folder.path().join("demo");
    let ran = chatvec(["demo", "--models", text(&models), "-o", text(&to)]);
    ran.says(0, &[]);
    let words = [
        "merged = cp + 1.0 × (chat − base)",
        "survival",
        "attn_q",
        "merged-Q4_K.gguf",
        "chatvec merge --base",
        "chatvec smoke ",
        "Was ist die Hauptstadt von Frankreich?",
        "merged F32  Die Hauptstadt von Frankreich ist Paris.<|im_end|>",
    ];
    for word in words {
        assert!(ran.out.contains(word), "no {word:?} in:\n{}", ran.out);
    }
    // As llama.cpp answers, by fixtures/infer/greedy.json, and by the language of each answer.
    let behaviour = [
        // Where it is in German, a near-tie decides one of 167.
        "cp                  0 %       3",
        "chat               98 %       60 %   50 %     50 %",
        "merged F32         91 %       90 %   62 %     19 %",
    ];
    for line in behaviour {
        assert!(ran.out.contains(line), "no {line:?} in:\n{}", ran.out);
    }
    let files = ["merged-F16.gguf", "merged-F32.gguf", "merged-Q4_K.gguf", "merged-Q8_0.gguf"];
    assert_eq!(names(&to), files);
    let again = chatvec(["demo", "--json", "--models", text(&models), "-o", text(&to)]);
    let told = again.says(0, &[]).json();
    has_keys(&told, &["merges", "smoke", "sweep"]);
    assert_eq!((told["merges"].as_array().unwrap().len(), told["smoke"].as_array().unwrap().len()), (4, 4));
    has_keys(&told["merges"][0], &RUN);
    let merged = &told["smoke"][2];
    assert_eq!((&merged["file"], &merged["verdict"]), (&text(&to.join("merged-F32.gguf")).into(), &"warn".into()));
}

#[test]
fn a_budget_that_is_too_small_is_refused_with_the_size_that_works() {
    let (folder, paths) = small();
    let out = folder.path().join("out.gguf");
    let ran = paths.command(&out, &["--memory", "1KiB"]);
    ran.says(5, &["budget of 1024", "give --memory "]);
    assert_eq!(names(folder.path()), TRIO);
    let needed = ran.err.split("give --memory ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    paths.command(&out, &["--memory", &format!("{}", needed.parse::<u64>().unwrap() - 1)]).says(5, &[&needed]);
    paths.command(&out, &["--memory", &needed]).says(0, &[]);
    paths.command(&out, &["--memory", "much"]).says(2, &["--memory"]);
}

#[test]
fn help_and_version_go_to_standard_output() {
    for args in [&["--version"][..], &["--help"], &["-h"], &["help"], &["merge", "--help"], &["demo", "--help"]] {
        let ran = chatvec(args);
        assert!(ran.code == 0 && ran.err.is_empty() && !ran.out.is_empty(), "{args:?}: {ran:#?}");
    }
    assert!(chatvec(["--version"]).out.starts_with("chatvec "));
    for args in [&[][..], &["merge"], &["frobnicate"], &["inspect"], &["merge", "--threads", "0"]] {
        let ran = chatvec(args);
        assert!(ran.code == 2 && ran.out.is_empty() && !ran.err.is_empty(), "{args:?}: {ran:#?}");
    }
}

#[test]
fn what_a_file_says_cannot_write_to_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let mut draft = Trio::small().cp;
    draft.set("general.name", Val::str("\u{1b}[2J\u{7}name"));
    draft.set("general.\u{1b}[31mkey", Val::str("x"));
    let mut tensor = Tensor::new("\u{1b}[0mtensor", &[2], 0);
    store(&mut tensor, 0, &[1.0, 2.0]);
    draft.tensors.push(tensor);
    let path = draft.write(folder.path(), "odd.gguf");
    let ran = chatvec(["inspect", "--tensors", text(&path)]);
    assert!(!ran.says(0, &[]).out.contains(['\u{1b}', '\u{7}']), "{}", ran.out.escape_debug());
    let json = chatvec(["inspect", "--json", text(&path)]);
    assert!(!json.says(0, &[]).out.contains(['\u{1b}', '\u{7}']));

    // Warnings and errors repeat keys, values and names as well.
    let mut trio = Trio::small();
    trio.base.set("llama.rope.scaling.type", Val::str("\u{1b}[2Jyarn"));
    trio.cp.set("llama.\u{1b}[31mkey", Val::U32(1));
    let tensor = Tensor::new("blk.0.\u{1b}[31mtensor", &[2], 0);
    trio.cp.tensors.push(Tensor { data: Some(vec![0; 8]), ..tensor.clone() });
    let out = folder.path().join("out.gguf");
    let ran = trio.write(folder.path()).command(&out, &[]);
    ran.says(0, &["yarn", "mkey", "mtensor"]);
    assert!(!ran.err.contains('\u{1b}') && !ran.out.contains('\u{1b}'), "{ran:#?}");
    trio.chat.tensors.push(Tensor { data: Some(vec![0; 8]), ..tensor });
    let ran = trio.write(folder.path()).command(&out, &["--overwrite"]);
    assert!(!ran.says(4, &["mtensor", "but not in"]).err.contains('\u{1b}'), "{ran:#?}");
}

#[test]
fn a_dry_run_of_many_chunks_forecasts_time_and_memory_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    for memory in ["2MiB", "1GiB"] {
        // In two megabytes a chunk is 65,536 weights, and there are more of them than a rehearsal
        // tries.
        let ran = Paths::bundled().command(&out, &["--dry-run", "--json", "--type", "Q4_K_M", "--memory", memory]);
        let told = ran.says(0, &[]).json();
        let number = |key: &str| told[key].as_f64().unwrap();
        assert!(number("seconds") > 0.0);
        assert!(number("peak_memory_bytes") > number("memory_bytes"), "{told}");
        assert_eq!(names(folder.path()), [""; 0]);
    }
}
