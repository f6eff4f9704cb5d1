//! The command with the real llama.cpp as its engine: what it answers, and how it ends where
//! llama.cpp does not survive.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::support::{Draft, Val};
use crate::synthetic::{mamba, repository, starcoder2};

fn bundled(name: &str) -> PathBuf {
    repository(&format!("fixtures/models/tinyworld-A-{name}-F16.gguf"))
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatvec-command"));
    command.args(args).args(["--threads", "2"]);
    command
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of the test's")
}

/// Asks some of the German prompts, by an engine.
fn smoke(path: &Path, engine: &str, options: &[&str]) -> Output {
    let prompts = repository("fixtures/models/prompts-de.jsonl");
    let asking = ["smoke", text(path), "--json", "--prompts", text(&prompts), "--limit", "24", "--max-tokens", "32"];
    command(&[&asking[..], &["--engine", engine], options].concat()).output().expect("the command")
}

fn json(output: &Output) -> Json {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(output)))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn fails(output: &Output, code: i32, words: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    words.iter().for_each(|word| assert!(said.contains(word), "{word}: {said}"));
    assert!(!said.contains("panicked"), "{said}");
}

fn raw_answers(report: &Json) -> Vec<String> {
    let answers = report["answers"].as_array().expect("answers").iter();
    let replies = answers.flat_map(|answer| answer["replies"].as_array().expect("replies").clone());
    replies.map(|reply| reply["raw"].as_str().expect("text").to_owned()).collect()
}

#[test]
fn bundled_models_answer_the_same() {
    for name in ["chat", "cp-de"] {
        let [ours, theirs] = ["built-in", "llama-cpp"].map(|engine| smoke(&bundled(name), engine, &[]));
        assert_eq!(ours.status.code(), theirs.status.code(), "{}", said(&theirs));
        let (ours, theirs) = (json(&ours), json(&theirs));
        assert_eq!(ours["engine"], "built-in");
        assert!(theirs["engine"].as_str().expect("a name").starts_with("llama.cpp "), "{}", theirs["engine"]);
        let (ours, theirs) = (raw_answers(&ours), raw_answers(&theirs));
        assert!(ours.len() == theirs.len() && ours.len() >= 24, "{} and {}", ours.len(), theirs.len());
        // Where two tokens are as good as equally probable, another one is as right.
        let n_same = ours.iter().zip(&theirs).filter(|(a, b)| a == b).count();
        assert!(n_same * 10 >= ours.len() * 9, "{name}: {n_same} of {}: {ours:#?} {theirs:#?}", ours.len());
    }
}

#[test]
fn both_engines_say_how_near_they_are() {
    let alone = smoke(&bundled("chat"), "built-in", &[]);
    let both = smoke(&bundled("chat"), "both", &[]);
    assert_eq!(both.status.code(), alone.status.code(), "{}", said(&both));
    assert!(!said(&both).contains("warning"), "{}", said(&both));
    let (alone, both) = (json(&alone), json(&both));
    assert_eq!(raw_answers(&both), raw_answers(&alone));
    let found = &both["agreement"];
    assert!(found["n"].as_u64().is_some_and(|n| n > 24), "{found}");
    assert!(found["largest"].as_f64().is_some_and(|d| d > 0.0 && d < 0.04), "{found}");
    assert!(found["mean"].as_f64().is_some_and(|d| d < 0.002), "{found}");
    assert_eq!(alone["agreement"], Json::Null);
}

#[test]
fn texts_are_read_the_same() {
    let text_file = repository("fixtures/compare/plain-de.txt");
    let compare = |engine| {
        let (a, b) = (bundled("cp-de"), bundled("chat"));
        let args = ["compare", text(&a), text(&b), "--text", text(&text_file), "-c", "128", "--chunks", "3", "--json"];
        let output = command(&[&args[..], &["--engine", engine]].concat()).output().expect("the command");
        assert!(output.status.success(), "{}", said(&output));
        json(&output)
    };
    let [ours, theirs, both] = ["built-in", "llama-cpp", "both"].map(compare);
    for key in ["perplexity_a", "perplexity_b"] {
        let value = |report: &Json| report["logits"][key]["value"].as_f64().expect("a number");
        assert!((value(&ours) / value(&theirs) - 1.0).abs() < 1e-3, "{key}: {} {}", value(&ours), value(&theirs));
        assert_eq!(value(&ours), value(&both), "{key}");
    }
    assert_eq!(ours["engines"], serde_json::json!(["built-in", "built-in"]));
    for i in 0..2 {
        let found = &both["agreements"][i];
        assert!(found["largest"].as_f64().is_some_and(|d| d < 0.04), "{found}");
        assert!(found["n"].as_u64() == Some(3 * 62), "{found}");
    }
}

#[test]
fn adapters_are_added_as_here() {
    let folder = tempfile::tempdir().expect("a folder");
    let (base, chat, adapter) = (bundled("base"), bundled("chat"), folder.path().join("adapter.gguf"));
    let args = ["extract", "--base", text(&base), "--chat", text(&chat), "--lora", text(&adapter), "--rank", "16"];
    let output = command(&args).output().expect("the command");
    assert!(output.status.success(), "{}", said(&output));
    let with = format!("{}@0.8", text(&adapter));
    let both = smoke(&bundled("cp-de"), "both", &["--lora", &with]);
    let report = json(&both);
    let found = &report["agreement"];
    assert!(found["largest"].as_f64().is_some_and(|d| d < 0.04), "{found}");
    // It is there at all.
    let without = json(&smoke(&bundled("cp-de"), "llama-cpp", &[]));
    let with = json(&smoke(&bundled("cp-de"), "llama-cpp", &["--lora", &with]));
    assert_ne!(raw_answers(&with), raw_answers(&without));
}

#[test]
fn architectures_that_are_not_built_in_run() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, draft) in [("starcoder2", starcoder2()), ("mamba", mamba())] {
        let path = draft.write(folder.path(), &format!("{name}.gguf"));
        fails(
            &smoke(&path, "built-in", &[]),
            5,
            &["knows the architectures", name, "--engine llama-cpp asks llama.cpp"],
        );
        let output = smoke(&path, "auto", &[]);
        // Random weights do not chat.
        assert_eq!(output.status.code(), Some(11), "{}", said(&output));
        let report = json(&output);
        assert!(report["engine"].as_str().is_some_and(|engine| engine.starts_with("llama.cpp ")), "{report}");
        assert_eq!(report["architecture"], name);
        let answers = raw_answers(&report);
        assert!(answers.len() >= 24 && answers.iter().any(|answer| !answer.is_empty()), "{answers:?}");
    }
    let path = Draft { keys: starcoder2().keys, ..Draft::default() };
    let mut path = path;
    path.set("general.architecture", Val::str("no-such-thing"));
    let path = path.write(folder.path(), "unknown.gguf");
    fails(&smoke(&path, "auto", &[]), 5, &["unknown.gguf", "llama.cpp does not load the file", "no-such-thing"]);
}

#[test]
fn files_that_llama_cpp_does_not_survive_are_errors() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut draft = starcoder2();
    draft.tensors.retain(|tensor| tensor.name != b"output_norm.weight");
    let path = draft.write(folder.path(), "lacking.gguf");
    fails(&smoke(&path, "auto", &[]), 5, &["lacking.gguf", "does not load the file", "output_norm.weight"]);
    // A condition of the code itself: the process aborts.
    let mut draft = starcoder2();
    draft.set("starcoder2.rope.dimension_count", Val::U32(8));
    let path = draft.write(folder.path(), "aborting.gguf");
    fails(&smoke(&path, "auto", &[]), 1, &["aborting.gguf", "ended before it had answered (signal: 6", "GGML_ASSERT"]);
    // Cut within its weights: told before anything is started.
    let path = starcoder2().write(folder.path(), "cut.gguf");
    let bytes = std::fs::read(&path).expect("the file");
    std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("a shorter file");
    fails(&smoke(&path, "auto", &[]), 3, &["cut.gguf"]);
}

/// A command that answers for long, and the number of the process that runs llama.cpp for it.
#[cfg(target_os = "linux")]
#[allow(clippy::zombie_processes, reason = "the caller ends it and waits for it")]
fn long(folder: &Path) -> (Child, u32) {
    // No special token is ever the most probable one.
    let mut draft = starcoder2();
    let output = draft.tensor("output.weight");
    let (mut rows, len) = (output.data(), 64 * 4);
    let n_normal = rows.len() / len - 3;
    rows[n_normal * len..].fill(0);
    output.data = Some(rows);
    let path = draft.write(folder, "long.gguf");
    let prompts = repository("fixtures/models/prompts-de.jsonl");
    let args = ["smoke", text(&path), "--prompts", text(&prompts), "--max-tokens", "60000", "-c", "60000"];
    let args = [&args[..], &["--engine", "llama-cpp", "--limit", "1", "--memory", "4GiB"]].concat();
    // Whoever started the tests may ignore the signal, and so would what they start.
    let mut command = Command::new("env");
    command.args(["--default-signal=INT", env!("CARGO_BIN_EXE_chatvec-command")]).args(args).args(["--threads", "2"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the command");
    let started = Instant::now();
    loop {
        assert!(started.elapsed() < Duration::from_secs(60), "no process of llama.cpp");
        // The first one reads the header only: one that has been there for a while is the second.
        if let Some(id) = llama_of(child.id()) {
            std::thread::sleep(Duration::from_millis(500));
            if llama_of(child.id()) == Some(id) {
                return (child, id);
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The process of llama.cpp whose parent this is.
#[cfg(target_os = "linux")]
fn llama_of(parent: u32) -> Option<u32> {
    let ids = std::fs::read_dir("/proc").expect("processes").flatten();
    let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_it = |id: &u32| {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default();
        let stat = read("stat");
        let of_parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        of_parent == Some(parent) && read("cmdline").contains("run-llama-cpp")
    };
    ids.into_iter().find(is_it)
}

#[cfg(target_os = "linux")]
fn kill(signal: &str, id: u32) {
    let status = Command::new("kill").arg(signal).arg(id.to_string()).status().expect("kill");
    assert!(status.success());
}

#[cfg(target_os = "linux")]
fn wait(mut child: Child) -> (Option<i32>, String) {
    let started = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        assert!(started.elapsed() < Duration::from_secs(20), "it hangs");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut said = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
    (child.wait().expect("a status").code(), said)
}

#[test]
#[cfg(target_os = "linux")]
fn a_process_that_is_killed_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let (child, id) = long(folder.path());
    kill("-KILL", id);
    let (code, said) = wait(child);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("long.gguf") && said.contains("ended before it had answered (signal: 9"), "{said}");
}

#[test]
#[cfg(target_os = "linux")]
fn the_process_ends_with_the_command() {
    let folder = tempfile::tempdir().expect("a folder");
    for (signal, code) in [("-INT", Some(130)), ("-KILL", None)] {
        let (child, id) = long(folder.path());
        kill(signal, child.id());
        assert_eq!(wait(child).0, code);
        let started = Instant::now();
        // A process that nobody has waited for yet has no command line.
        let is_there = || std::fs::read(format!("/proc/{id}/cmdline")).is_ok_and(|line| !line.is_empty());
        while is_there() {
            assert!(started.elapsed() < Duration::from_secs(10), "it outlives the command");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
