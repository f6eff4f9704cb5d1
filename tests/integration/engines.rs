//! Engines: which one is taken, what is said where there is none, and how a process of llama.cpp
//! that does not do its part is an error. The real llama.cpp is in tests/oracle.

use std::path::Path;

use chatvec::gguf::{Limits, Model};
use chatvec::infer::{self, HAS_LLAMA_CPP, LlamaCpp};
use chatvec::job::{EngineChoice, Engines};

use crate::support::Val;
use crate::trio::{Trio, bundled, chatvec};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn without_llama_cpp_it_is_said_how_to_get_it() {
    if HAS_LLAMA_CPP {
        return;
    }
    let chat = bundled("chat");
    let words = ["--features llama-cpp", "cmake", "libclang", "--engine built-in"];
    for engine in ["llama-cpp", "both"] {
        chatvec(["smoke", text(&chat), "--engine", engine]).says(5, &words);
    }
    let prompts = "fixtures/compare/plain-de.txt";
    let compare = ["compare", text(&chat), text(&chat), "--text", prompts, "-c", "64", "--engine"];
    chatvec([&compare[..], &["llama-cpp"]].concat()).says(5, &words);
    chatvec([&compare[..], &["built-in", "--chunks", "1"]].concat()).says(0, &[]);
    // The process of llama.cpp is nothing without it.
    chatvec(["run-llama-cpp"]).says(1, &[]);
}

#[test]
fn of_an_unknown_architecture_it_is_said_who_knows_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut draft = Trio::small().cp;
    draft.set("general.architecture", Val::str("starcoder2"));
    let path = draft.write(folder.path(), "other.gguf");
    let words = ["other.gguf", "knows the architectures llama", "starcoder2", "--engine llama-cpp asks llama.cpp"];
    chatvec(["smoke", text(&path), "--engine", "built-in"]).says(5, &words);
    if !HAS_LLAMA_CPP {
        chatvec(["smoke", text(&path)]).says(5, &words);
        chatvec(["smoke", text(&path), "--engine", "auto"]).says(5, &words);
    }
}

#[test]
fn senseless_engines_are_refused() {
    let chat = bundled("chat");
    chatvec(["smoke", text(&chat), "--engine", "other"]).says(2, &["--engine", "other", "built-in, llama-cpp, both"]);
    chatvec(["compare", text(&chat), text(&chat), "--engine", "both"]).says(2, &["--text"]);
}

#[test]
fn the_engine_that_answered_is_reported() {
    let prompts = "fixtures/models/prompts-de.jsonl";
    let asking =
        ["smoke", text(&bundled("chat")), "--prompts", prompts, "--limit", "2", "--max-tokens", "4"].map(str::to_owned);
    let ran = chatvec(asking.iter().map(String::as_str));
    assert!(ran.out.contains("engine: built-in"), "{}", ran.out);
    let ran = chatvec(asking.iter().map(String::as_str).chain(["--json"]));
    let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&report["engine"], &report["agreement"]), (&"built-in".into(), &serde_json::Value::Null));
}

/// What loading says if this shell script is in the place of the program.
#[cfg(unix)]
fn load_by(script: &str) -> infer::Error {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let model = Model::open(&bundled("chat"), &Limits::default()).unwrap();
    let engines = Engines { choice: EngineChoice::LlamaCpp, program: Some(program.clone()) };
    // Another thread may be starting a process, which has the file open for writing until then.
    for _ in 0..50 {
        match LlamaCpp::load(&program, &model, &[], 1) {
            Err(e) if e.to_string().contains("Text file busy") => {
                std::thread::sleep(std::time::Duration::from_millis(20))
            }
            Err(_) => break,
            Ok(_) => panic!("{script}: no llama.cpp"),
        }
    }
    match engines.load(&model, &[], 1) {
        Err(e) => e,
        Ok(_) => panic!("{script}: no llama.cpp"),
    }
}

#[test]
#[cfg(unix)]
fn a_process_that_does_not_do_its_part_is_an_error() {
    let refused = r"head -c 1 >/dev/null; printf '\204\005\000\000\000hates'";
    for (script, words) in [
        ("exit 3", &["ended before it had answered", "3", "nothing"][..]),
        (
            "echo first >&2; echo 'GGML_ASSERT(x) failed' >&2; kill -ABRT $$",
            &["signal: 6", "first / GGML_ASSERT(x) failed"],
        ),
        // Text where an answer should be, by a program that goes on waiting.
        ("echo llama; cat >/dev/null", &["gives no answer", "0x6c"]),
        (r"printf '\203\377\377\377\377'; cat >/dev/null", &["gives no answer", "4294967295"]),
        // "Done", where a model should be opened.
        (r"printf '\202\000\000\000\000'; cat >/dev/null", &["gives an answer to something else"]),
        (refused, &["llama.cpp hates"]),
        // What it says without end is not kept.
        ("yes 'a long line' | head -c 4000000 >&2; exit 1", &["a long line / a long line"]),
    ] {
        let said = load_by(script).to_string();
        assert!(said.contains("tinyworld-A-chat-F16.gguf"), "{script}: {said}");
        words.iter().for_each(|word| assert!(said.contains(word), "{script}: {word}: {said}"));
        assert!(said.len() < 12 << 10, "{} bytes", said.len());
    }
    // Whoever stops the process stops the run.
    assert!(matches!(load_by("kill -TERM $$"), infer::Error::Cancelled));
    let engines = Engines { choice: EngineChoice::LlamaCpp, program: Some("/no/such/program".into()) };
    let model = Model::open(&bundled("chat"), &Limits::default()).unwrap();
    let Err(e) = engines.load(&model, &[], 1) else { panic!("no program") };
    assert!(e.to_string().contains("cannot be started"), "{e}");
}
