//! Asking a model, as a user does: broken files, each by the check that is meant for it; arguments;
//! outputs that are asked before they get their name.
//!
//! The models are the bundled trio's, as F32 where nothing else is said: that is the fastest type
//! to compute with here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::infer::synthetic;
use crate::support::{Draft, Tensor, Val, kind, split, write, write_split};
use crate::trio::{
    F32, Noise, Paths, Q4_K, Ran, Trio, assert_same_tensors, bundled, change, chatvec, command, get, interruptible,
    name, names, read, requantise, store, weights,
};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The bundled German prompts.
fn german() -> String {
    format!("{}/fixtures/models/prompts-de.jsonl", env!("CARGO_MANIFEST_DIR"))
}

/// `cp + ratio × (chat − base)` as F32.
fn merged(folder: &Path, ratio: f64) -> Draft {
    let path = folder.join(format!("merged-{ratio}.gguf"));
    Paths::bundled().merge(&path, "F32", ratio)
}

/// A folder with the good merge.
fn good() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    merged(folder.path(), 1.0);
    let path = folder.path().join("merged-1.gguf");
    (folder, path)
}

/// `chatvec smoke FILE` with these options behind it.
fn smoke(path: &Path, options: &[&str]) -> Ran {
    chatvec([&["smoke", text(path)], options].concat())
}

/// Every seventh of the German prompts, answered in 40 tokens at most.
fn ask_german(path: &Path, options: &[&str]) -> Ran {
    ask_german_in("40", path, options)
}

fn ask_german_in(max_tokens: &str, path: &Path, options: &[&str]) -> Ran {
    let german = german();
    let asking = ["--json", "--prompts", &german, "--limit", "24", "--max-tokens", max_tokens];
    smoke(path, &[&asking, options].concat())
}

/// All of them.
fn ask_all_german(path: &Path) -> Ran {
    smoke(path, &["--json", "--prompts", &german(), "--max-tokens", "40"])
}

fn check<'a>(report: &'a Json, name: &str) -> &'a Json {
    let checks = report["checks"].as_array().expect("checks");
    checks.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no check {name}"))
}

fn failed(report: &Json) -> Vec<&str> {
    let checks = report["checks"].as_array().expect("checks").iter();
    checks.filter(|c| c["verdict"] == "fail").map(|c| c["name"].as_str().unwrap()).collect()
}

/// Panics unless the model fails, and each of these checks with these words.
#[track_caller]
fn assert_fails(what: &str, ran: &Ran, expected: &[(&str, &[&str])]) {
    assert_eq!(ran.code, 11, "{what}: {ran:#?}");
    let report = ran.json();
    assert_eq!(report["verdict"], "fail", "{what}");
    for (name, words) in expected {
        let check = check(&report, name);
        assert_eq!(check["verdict"], "fail", "{what}: of the checks {:?} failed; {name}: {check:#}", failed(&report));
        for word in *words {
            let message = check["message"].as_str().unwrap();
            assert!(message.contains(word), "{what}: no {word:?} in {name}: {message}");
        }
    }
}

/// Panics unless the model chats.
#[track_caller]
fn assert_chats(what: &str, ran: &Ran) -> Json {
    assert_eq!(ran.code, 0, "{what}: {ran:#?}");
    let report = ran.json();
    assert_eq!(failed(&report), [""; 0], "{what}");
    report
}

/// Changes the texts of the vocabulary.
fn change_tokens(draft: &mut Draft, f: impl FnOnce(&mut [Val])) {
    let mut tokens = get(draft, "tokenizer.ggml.tokens").unwrap().clone();
    let Val::Array(_, texts) = &mut tokens else { panic!("no list of tokens") };
    f(texts);
    draft.set("tokenizer.ggml.tokens", tokens);
}

/// Changes every matrix.
fn change_matrices(draft: &mut Draft, mut f: impl FnMut(&str, &mut [f32])) {
    for tensor in draft.tensors.iter_mut().filter(|t| t.ne.len() > 1) {
        let name = name(tensor).to_owned();
        change(tensor, |values| f(&name, values));
    }
}

fn template(draft: &Draft) -> String {
    match get(draft, "tokenizer.chat_template") {
        Some(Val::Str(source)) => String::from_utf8(source.clone()).unwrap(),
        other => panic!("no template: {other:?}"),
    }
}

#[test]
fn good_merges_of_every_type_chat() {
    let folder = tempfile::tempdir().unwrap();
    for ty in ["F32", "F16", "Q8_0", "Q4_K"] {
        let out = folder.path().join("out.gguf");
        let pure: &[&str] = if ty == "Q4_K" { &["--pure"] } else { &[] };
        Paths::bundled().command(&out, &[&["--overwrite", "--type", ty], pure].concat()).says(0, &[]);
        let german = german();
        let common = ["--json", "--prompts", &german, "--max-tokens", "40"];
        let report = assert_chats(ty, &smoke(&out, &[&common[..], &["--limit", "24"]].concat()));
        for name in ["loads", "finite", "ends", "exact"] {
            assert_eq!(check(&report, name)["verdict"], "pass", "{ty}: {:#}", check(&report, name));
        }
    }
}

#[test]
fn ends_that_the_file_does_not_know_fail() {
    let folder = tempfile::tempdir().unwrap();
    let good = merged(folder.path(), 1.0);
    // The end token under a name that llama.cpp does not know, and EOS an ordinary token.
    let renamed = |to: &str, draft: &Draft| {
        let mut draft = draft.clone();
        change_tokens(&mut draft, |tokens| {
            for token in tokens.iter_mut().filter(|t| **t == Val::str("<|im_end|>")) {
                *token = Val::str(to);
            }
        });
        draft.set("tokenizer.ggml.eos_token_id", Val::U32(5));
        draft
    };
    let mut with_template = renamed("<|my_end|>", &good);
    let source = template(&good).replace("<|im_end|>", "<|my_end|>");
    with_template.set("tokenizer.chat_template", Val::str(&source));
    let ran = ask_german(&with_template.write(folder.path(), "bad.gguf"), &[]);
    let key = "set tokenizer.ggml.eos_token_id";
    assert_fails(
        "another end",
        &ran,
        &[("loads", &["ends turns with <|my_end|>", key]), ("ends", &["wrote <|my_end|> and went on", key])],
    );

    let ran = ask_german(&renamed("<|my_end|>", &good).write(folder.path(), "bad.gguf"), &[]);
    assert_fails("an end the template does not have", &ran, &[("leak", &["<|my_end|>"])]);
    let report = ran.json();
    let loads = check(&report, "loads");
    assert_eq!(loads["verdict"], "warn");
    let message = loads["message"].as_str().unwrap();
    assert!(message.contains("\"<|im_end|>\", which is no special token of the vocabulary"), "{message}");

    // Nothing at all ends: the other known texts are gone, too.
    let mut endless = renamed("<|my_end|>", &good);
    change_tokens(&mut endless, |tokens| {
        for (i, token) in tokens.iter_mut().enumerate() {
            if matches!(token, Val::Str(s) if s.starts_with(b"<|")) {
                *token = Val::str(&format!("<|special {i}|>"));
            }
        }
    });
    let ids = ["bos", "padding"].map(|role| format!("tokenizer.ggml.{role}_token_id"));
    endless.keys.retain(|(key, _)| !ids.iter().any(|id| key == id.as_bytes()));
    let ran = ask_german(&endless.write(folder.path(), "bad.gguf"), &[]);
    assert_fails("no end", &ran, &[("ends", &["ran into the limit"])]);
}

#[test]
fn templates_that_cannot_be_used_fail() {
    let folder = tempfile::tempdir().unwrap();
    let good = merged(folder.path(), 1.0);
    let advice = "from the chat model again";
    for (what, source, words) in [
        ("does not parse", "{% for m in messages %}{{ m.content }", &["does not render", "line 1", advice][..]),
        ("raises", "{{ raise_exception('never ever') }}", &["does not render", "never ever", advice]),
        ("is no text", "\u{1b}[2J{{ oh }", &["does not render", advice]),
        (
            "loops for ever",
            "{% for a in range(100000) %}{% for b in range(100000) %}{{ a }}{% endfor %}{% endfor %}",
            &["does not render", advice],
        ),
    ] {
        let mut draft = good.clone();
        draft.set("tokenizer.chat_template", Val::str(source));
        let ran = ask_german(&draft.write(folder.path(), "bad.gguf"), &[]);
        assert_fails(what, &ran, &[("loads", words)]);
    }
    let mut draft = good.clone();
    draft.keys.retain(|(key, _)| key != b"tokenizer.chat_template");
    let path = draft.write(folder.path(), "bad.gguf");
    assert_fails(
        "no template",
        &ask_german(&path, &[]),
        &[("loads", &["no chat template", "tokenizer.chat_template"])],
    );

    // Another one mends it: from a file, or from another model.
    let jinja = write(folder.path(), "good.jinja", template(&good).as_bytes());
    let given = assert_chats("a file", &ask_german(&path, &["--chat-template", text(&jinja)]));
    let model = assert_chats("a model", &ask_german(&path, &["--chat-template", text(&bundled("chat"))]));
    let own = assert_chats("its own", &ask_german(&good.write(folder.path(), "good.gguf"), &[]));
    assert_eq!(given["answers"], own["answers"]);
    assert_eq!(model["answers"], own["answers"]);
}

#[test]
fn prompts_that_the_template_refuses_are_said_and_fail_if_all_are() {
    let (folder, path) = good();
    let source = template(&read(&path));
    let jinja = format!(
        "{{% if messages[0].role == 'system' %}}{{{{ raise_exception('no system role') }}}}{{% endif %}}{source}"
    );
    let jinja = write(folder.path(), "strict.jinja", jinja.as_bytes());
    let plain = r#"{"id": "plain", "kind": "instruction", "prompt": "Wo wohnt Tom?"}"#;
    let system = r#"{"id": "strict", "kind": "instruction", "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Wo wohnt Tom?"}]}"#;
    let ask = |lines: &str| {
        let prompts = write(folder.path(), "prompts.jsonl", lines.as_bytes());
        smoke(&path, &["--json", "--prompts", text(&prompts), "--chat-template", text(&jinja)])
    };
    let some = ask(&format!("{plain}\n{system}\n"));
    let report = assert_chats("one of two", &some);
    assert_eq!(check(&report, "loads")["verdict"], "warn");
    let message = check(&report, "loads")["message"].as_str().unwrap();
    assert!(message.contains("does not render 1 of 2 prompts") && message.contains("strict: "), "{message}");
    assert!(message.contains("no system role"), "{message}");
    assert_eq!(check(&report, "ends")["n"], 1);
    assert_fails("all", &ask(system), &[("loads", &["no system role", "1 of 1 prompts"])]);
}

#[test]
fn spoiled_weights_fail() {
    let folder = tempfile::tempdir().unwrap();
    let good = merged(folder.path(), 1.0);
    let ran = |draft: &Draft| ask_german(&draft.write(folder.path(), "bad.gguf"), &[]);

    let weak = "the vector is missing or too weak (raise its ratio)";
    assert_fails(
        "no vector",
        &ran(&merged(folder.path(), 0.0)),
        &[("ends", &[weak]), ("exact", &["the vector is missing"])],
    );
    assert_fails("half a vector", &ran(&merged(folder.path(), 0.5)), &[("ends", &[weak])]);
    let strong = "too weak or too strong";
    assert_fails("ratio 3", &ran(&merged(folder.path(), 3.0)), &[("exact", &[strong]), ("keywords", &[strong])]);

    let mut noisy = good.clone();
    let mut noise = Noise(4);
    change_matrices(&mut noisy, |_, values| {
        let rms = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
        values.iter_mut().for_each(|v| *v += rms * noise.normal());
    });
    assert_fails("noise", &ran(&noisy), &[("ends", &[]), ("exact", &[]), ("keywords", &[])]);

    let mut broken = good.clone();
    change(broken.tensor("blk.1.ffn_down.weight"), |values| values[..768].fill(f32::NAN));
    assert_fails("NaN", &ran(&broken), &[("finite", &["0 of 24", "look for NaN in the inputs"])]);
    let mut broken = good.clone();
    change(broken.tensor("output.weight"), |values| values[256 * 300] = f32::INFINITY);
    assert_fails("infinity", &ran(&broken), &[("finite", &["weights that are no numbers"])]);

    // A network without layers answers each token with the one that follows it most often.
    let mut loops = good.clone();
    change_matrices(&mut loops, |name, values| {
        if name.contains("attn_output") || name.contains("ffn_down") {
            values.fill(0.0);
        }
    });
    assert_fails("a loop", &ran(&loops), &[("repetition", &["fall into a loop", "try another ratio or a finer type"])]);

    // And one that always says the end token says nothing.
    let mut silent = good.clone();
    let Some(Val::U32(eos)) = get(&good, "tokenizer.ggml.eos_token_id") else { panic!("no eos") };
    let eos = *eos as usize;
    change(silent.tensor("output.weight"), |values| values.fill(0.0));
    let states = weights(silent.tensor("output_norm.weight"));
    change(silent.tensor("token_embd.weight"), |values| values.fill(1.0));
    change_matrices(&mut silent, |name, values| {
        if name.contains("attn_output") || name.contains("ffn_down") {
            values.fill(0.0);
        }
        if name == "output.weight" {
            values[eos * 256..][..256].copy_from_slice(&states);
        }
    });
    assert_fails("silence", &ran(&silent), &[("empty", &["24 of 24 answers are empty", "the model ends at once"])]);
}

#[test]
fn a_vocabulary_of_other_weights_fails() {
    let folder = tempfile::tempdir().unwrap();
    let mut draft = merged(folder.path(), 1.0);
    change_tokens(&mut draft, |tokens| {
        // Fisher and Yates, but for the control tokens.
        let mut noise = Noise(9);
        let n = tokens.iter().position(|t| matches!(t, Val::Str(s) if s.starts_with(b"<|"))).unwrap();
        (1..n).rev().for_each(|i| tokens.swap(i, (noise.next() * (i + 1) as f32) as usize));
    });
    // A quarter of its answers cannot be decoded, which 24 do not tell from a fifth.
    let ran = ask_all_german(&draft.write(folder.path(), "bad.gguf"));
    assert_fails(
        "scrambled",
        &ran,
        &[("garbled", &["no text in any language", "check that all inputs share one vocabulary"]), ("exact", &[])],
    );
}

#[test]
fn a_model_that_answers_in_english_fails_by_its_language() {
    let folder = tempfile::tempdir().unwrap();
    let mut chat = Trio::bundled().chat;
    requantise(&mut chat, F32);
    let path = chat.write(folder.path(), "chat.gguf");
    // Six of its answers in ten are in German, which 24 do not tell from eight.
    let ran = ask_all_german(&path);
    assert_fails("the chat model", &ran, &[("language", &["in English", "lower the ratio"])]);
    assert_eq!(failed(&ran.json()), ["language"]);
    // A user who minds no language can say so.
    assert_chats("no bound", &ask_german(&path, &["--threshold", "language=off"]));
}

/// The trio with the model on the grid of Q4_K, where rounding takes nearly half of the vector.
fn trap(folder: &Path) -> Paths {
    let mut cp = Trio::bundled().cp;
    requantise(&mut cp, Q4_K);
    Paths { cp: cp.write(folder, "cp.gguf"), ..Paths::bundled() }
}

#[test]
fn the_fixed_point_of_quantisation_is_caught_by_asking() {
    let folder = tempfile::tempdir().unwrap();
    let paths = trap(folder.path());
    let out = folder.path().join("out.gguf");
    paths.command(&out, &["--on-loss", "warn"]).says(0, &[]);
    assert_fails("on the grid", &ask_german(&out, &[]), &[("ends", &["the vector is missing or too weak"])]);
    // By default it is kept from happening, at the same size.
    paths.command(&out, &["--overwrite"]).says(0, &["dithered"]);
    assert_chats("dithered", &ask_german(&out, &[]));
    // Asked by the merge itself, the answers decide, and the loss is said all the same.
    let german = german();
    let ran = paths.command(
        &folder.path().join("new.gguf"),
        &["--on-loss", "warn", "--smoke", "--prompts", &german, "--limit", "24"],
    );
    ran.says(11, &["rounding took the vector", "does not chat", "new.gguf.rejected"]);
    paths.command(&out, &["--overwrite", "--type", "Q8_0"]).says(0, &[]);
    assert_chats("in a finer type", &ask_german(&out, &[]));
}

/// `merge --smoke` of the bundled trio as F32, on a few German prompts.
fn merge_and_ask(out: &Path, options: &[&str]) -> Ran {
    let german = german();
    let asking = ["--type", "F32", "--smoke", "--prompts", &german, "--limit", "12", "--max-tokens", "40"];
    Paths::bundled().command(out, &[&asking, options].concat())
}

#[test]
fn an_output_that_chats_gets_its_name_and_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let ran = merge_and_ask(&out, &[]);
    ran.says(0, &[]);
    let german = german();
    for word in
        ["survival", "30 tensors", "ends        PASS", &format!("asked: 12 prompts of {german} in German"), text(&out)]
    {
        assert!(ran.out.contains(word), "no {word:?} in {}", ran.out);
    }
    assert_eq!(names(folder.path()), ["out.gguf"]);
    let ran = merge_and_ask(&out, &["--json", "--overwrite"]);
    let report = ran.says(0, &[]).json();
    assert_eq!(report["smoke"]["file"], text(&out));
    assert_eq!(report["output"], text(&out));
    assert_eq!(failed(&report["smoke"]), [""; 0]);
    // The same answers as when it is asked by itself.
    let own = smoke(&out, &["--json", "--prompts", &german, "--limit", "12", "--max-tokens", "40"]).json();
    assert_eq!(report["smoke"]["answers"], own["answers"]);
    assert_eq!(report["smoke"]["checks"], own["checks"]);
}

#[test]
fn an_output_that_does_not_chat_is_kept_under_another_name() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let out = at("out.gguf");
    let ran = merge_and_ask(&out, &["--ratio", "0.5", "--json", "--special-tokens", "none"]);
    ran.says(11, &["does not chat", text(&at("out.gguf.rejected"))]);
    assert_eq!(ran.json()["output"], text(&at("out.gguf.rejected")));
    assert_eq!(ran.json()["smoke"]["verdict"], "fail");
    assert_eq!(names(folder.path()), ["out.gguf.rejected"]);
    let expected = merged(tempfile::tempdir().unwrap().path(), 0.5);
    assert_same_tensors(&read(&at("out.gguf.rejected")), &expected);
    assert!(get(&read(&at("out.gguf.rejected")), "chatvec.survival").is_some());

    // What is there stays, and an earlier rejected one is replaced.
    fs::write(&out, b"precious").unwrap();
    merge_and_ask(&out, &["--ratio", "0.25", "--special-tokens", "none", "--overwrite"]).says(11, &["does not chat"]);
    assert_eq!(fs::read(&out).unwrap(), b"precious");
    let expected = merged(tempfile::tempdir().unwrap().path(), 0.25);
    assert_same_tensors(&read(&at("out.gguf.rejected")), &expected);

    fs::remove_file(at("out.gguf.rejected")).unwrap();
    let ran = merge_and_ask(&out, &["--ratio", "0.5", "--special-tokens", "none", "--overwrite", "--keep"]);
    ran.says(11, &[]);
    assert!(!ran.err.contains("rejected"), "{}", ran.err);
    assert_eq!(names(folder.path()), ["out.gguf"]);
    assert_eq!(read(&out).tensors.len(), 30);
}

#[test]
fn a_rejected_output_never_replaces_an_input() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::copy(bundled("cp-de"), at("out.gguf.rejected")).unwrap();
    let paths = Paths { cp: at("out.gguf.rejected"), ..Paths::bundled() };
    let before = fs::read(&paths.cp).unwrap();
    let ran = paths.command(&at("out.gguf"), &["--smoke", "--limit", "2", "--overwrite"]);
    ran.says(6, &["out.gguf.rejected", "the same file as the input"]);
    assert!(fs::read(&paths.cp).unwrap() == before);
    assert_eq!(names(folder.path()), ["out.gguf.rejected"]);
    // The vector may be lost without being asked, too; if a warning is enough, nothing is rejected.
    paths.command(&at("out.gguf"), &[]).says(6, &["out.gguf.rejected"]);
    paths.command(&at("out.gguf"), &["--on-loss", "warn"]).says(0, &[]);
}

#[test]
fn the_adapter_of_a_rejected_output_is_rejected_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let german = german();
    let run = |options: &[&str]| {
        let rest = at("rest.gguf");
        let asking = ["--type", "Q8_0", "--smoke", "--prompts", &german, "--limit", "12", "--max-tokens", "40"];
        let weak =
            ["--ratio", "0.5", "--special-tokens", "none", "--residual-rank", "4", "--residual-lora", text(&rest)];
        Paths::bundled().command(&at("out.gguf"), &[&asking[..], &weak, options].concat())
    };
    fs::write(at("rest.gguf.rejected"), b"an earlier one").unwrap();
    let ran = run(&["--json"]);
    ran.says(11, &["does not chat", text(&at("rest.gguf.rejected"))]);
    assert_eq!(ran.json()["lora"]["output"], text(&at("rest.gguf.rejected")));
    assert_eq!(names(folder.path()), ["out.gguf.rejected", "rest.gguf.rejected"]);
    let rejected = fs::read(at("rest.gguf.rejected")).unwrap();
    // It is the adapter that an output which keeps its name has beside it.
    run(&["--keep"]).says(11, &[]);
    assert!(fs::read(at("rest.gguf")).unwrap() == rejected);
    fs::remove_file(at("rest.gguf")).unwrap();
    fs::remove_file(at("out.gguf")).unwrap();
    // And it never replaces an input.
    fs::copy(bundled("cp-de"), at("rest.gguf.rejected")).unwrap();
    let rest = at("rest.gguf");
    let paths = Paths { cp: at("rest.gguf.rejected"), ..Paths::bundled() };
    let ran = paths.command(&at("new.gguf"), &["--type", "Q8_0", "--overwrite", "--residual-lora", text(&rest)]);
    ran.says(6, &["--residual-lora", "rest.gguf.rejected", "the same file as the input"]);
    assert!(!at("new.gguf").exists() && fs::read(&paths.cp).unwrap() == fs::read(bundled("cp-de")).unwrap());
}

#[test]
fn an_applied_patch_is_asked_like_a_merge() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let paths = Paths::bundled();
    let patch = at("patch.gguf");
    chatvec(["extract", "--base", text(&paths.base), "--chat", text(&paths.chat), "-o", text(&patch)]).says(0, &[]);
    let german = german();
    let apply = |patch: &str, options: &[&str]| {
        let out = at("out.gguf");
        let args = ["apply", "--model", text(&paths.cp), patch, "-o", text(&out), "--type", "F32"];
        let asking = ["--smoke", "--prompts", &german, "--limit", "12", "--max-tokens", "40"];
        chatvec([&args[..], &asking, options].concat())
    };
    apply(text(&patch), &[]).says(0, &[]);
    assert_eq!(names(folder.path()), ["out.gguf", "patch.gguf"]);
    fs::remove_file(at("out.gguf")).unwrap();
    apply(&format!("{}@0.5", text(&patch)), &[]).says(11, &["does not chat"]);
    assert_eq!(names(folder.path()), ["out.gguf.rejected", "patch.gguf"]);
    apply(text(&patch), &["--language", "xx"]).says(2, &["--language"]);
    let new = at("new.gguf");
    chatvec(["apply", "--model", text(&paths.cp), text(&patch), "-o", text(&new), "--limit", "3"])
        .says(2, &["--smoke"]);
}

#[test]
fn what_cannot_be_asked_is_found_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let bad = write(folder.path(), "bad.jsonl", b"{% for\n");
    let out = at("out.gguf");
    for (options, code, words) in [
        (&["--prompts", text(&bad)][..], 3, &["--prompts", "bad.jsonl, line 1"][..]),
        (&["--prompts", "missing.jsonl"], 7, &["--prompts", "missing.jsonl"]),
        (&["--language", "xx"], 2, &["--language", "`xx`", "de (German)"]),
        (&["--threshold", "end=1"], 2, &["--threshold", "`end`", "ends, "]),
        (&["--chat-template", text(&bad)], 3, &["--chat-template", "bad.jsonl"]),
        (&["--temp", "NaN"], 2, &["--temp", "NaN"]),
        (&["--temp", "1", "--top-p", "2"], 2, &["top-p"]),
        (&["--ctx-size", "16000000"], 5, &["16000000 tokens", "GiB", "--memory"]),
    ] {
        let ran = Paths::bundled().command(&out, &[&["--smoke", "--overwrite"], options].concat());
        ran.says(code, words);
        assert!(ran.out.is_empty() && !ran.err.contains("rejected"), "{ran:#?}");
        assert_eq!(names(folder.path()), ["bad.jsonl"], "{options:?}");
    }
    // Nor can every architecture that can be merged.
    let mut trio = Trio::small();
    trio.each(|draft| draft.set("general.architecture", Val::str("stablelm")));
    let paths = trio.write(folder.path());
    let ran = paths.command(&out, &["--smoke", "--force", "--engine", "built-in"]);
    ran.says(5, &["smoke inference knows the architectures", "stablelm"]);
    assert!(!out.exists());
    paths.command(&out, &["--force"]).says(0, &[]);
}

#[test]
fn asking_options_without_smoke_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for options in
        [&["--limit", "3"][..], &["--keep"], &["--prompts", "x"], &["--threshold", "ends=0"], &["--temp", "1"]]
    {
        let ran = Paths::bundled().command(&folder.path().join("out.gguf"), options);
        ran.says(2, &["--smoke"]);
    }
    assert_eq!(names(folder.path()), [""; 0]);
    let help = chatvec(["merge", "--help"]).out;
    assert!(help.contains("Asking, with --smoke:"), "{help}");
}

#[test]
fn a_dry_run_asks_nothing_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    merge_and_ask(&out, &["--dry-run"]).says(0, &["a dry run asks nothing", "12 prompts"]);
    merge_and_ask(&out, &["--dry-run", "--language", "xx"]).says(2, &["--language"]);
    assert_eq!(names(folder.path()), [""; 0]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_asking_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let paths = Paths::bundled();
    // Without a vector no answer ends: four million tokens take minutes on any machine.
    let question =
        |i| format!(r#"{{"id":"{i}","kind":"instruction","lang":"de","prompt":"Was ist ein Hund?"}}"#) + "\n";
    let prompts = tempfile::tempdir().unwrap();
    let prompts = write(prompts.path(), "prompts.jsonl", (0..20_000).map(question).collect::<String>().as_bytes());
    for signal in ["INT", "TERM"] {
        let mut args = vec!["merge", "-o", text(&out), "--ratio", "0", "--smoke", "--prompts", text(&prompts)];
        args.extend(["--max-tokens", "200", "--threads", "1", "--force"]);
        args.extend(["--base", text(&paths.base), "--chat", text(&paths.chat), "--model", text(&paths.cp)]);
        let child = interruptible(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let limit = Instant::now() + Duration::from_secs(60);
        let is_written = || {
            let entries = fs::read_dir(folder.path()).unwrap();
            entries.flatten().any(|e| e.metadata().is_ok_and(|m| m.len() > 5_000_000))
        };
        while !is_written() {
            assert!(Instant::now() < limit, "the run does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        // By now it writes or asks; some way on it asks for sure.
        std::thread::sleep(Duration::from_millis(1500));
        let sent = Instant::now();
        let kill = format!("kill -{signal} {}", child.id());
        assert!(std::process::Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        let ran = Ran::new(child.wait_with_output().unwrap());
        ran.says(130, &["error: interrupted; nothing is written"]);
        assert!(sent.elapsed() < Duration::from_secs(10), "{:?}", sent.elapsed());
        assert_eq!(names(folder.path()), [""; 0], "{signal}");
    }
}

#[test]
fn files_that_are_no_models_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    smoke(&at("missing.gguf"), &[]).says(7, &["missing.gguf", "cannot open"]);
    smoke(folder.path(), &[]).says(7, &["it is a folder"]);
    smoke(&write(folder.path(), "text.gguf", b"Once upon a time"), &[]).says(3, &["text.gguf", "expected 'GGUF'"]);
    let (base, chat, patch) = (bundled("base"), bundled("chat"), at("patch.gguf"));
    chatvec(["extract", "--base", text(&base), "--chat", text(&chat), "-o", text(&patch)]).says(0, &[]);
    smoke(&patch, &[]).says(4, &["patch.gguf", "chat-vector", "chatvec apply"]);
    chatvec(["compare", text(&base), text(&patch)]).says(4, &["patch.gguf is a patch", "is a model"]);
    chatvec(["compare", text(&patch), text(&patch)]).says(0, &[]);
    let other = Draft::default().write(folder.path(), "other.gguf");
    chatvec(["compare", text(&base), text(&other)]).says(4, &["other.gguf", "no tensor"]);
    for (kind, architecture) in [("adapter", "llama"), ("imatrix", ""), ("mmproj", "clip"), ("", "clip"), ("", "")] {
        let mut draft = Draft::default();
        if !kind.is_empty() {
            draft.set("general.type", Val::str(kind));
        }
        if !architecture.is_empty() {
            draft.set("general.architecture", Val::str(architecture));
        }
        let ran = smoke(&draft.write(folder.path(), "odd.gguf"), &["--engine", "built-in"]);
        match kind {
            "" => ran.says(5, &["odd.gguf", "knows the architectures llama, qwen2", architecture]),
            _ => ran.says(4, &["odd.gguf", kind, "general.type"]),
        };
    }
    smoke(&base, &["--lora", text(&chat)]).says(4, &["general.type", "adapter"]);
    // A model without a vocabulary, and one whose vocabulary is of an unknown kind.
    let mut draft = Trio::small().cp;
    draft.set("tokenizer.ggml.model", Val::str("runes"));
    smoke(&draft.write(folder.path(), "odd.gguf"), &[]).says(5, &["odd.gguf", "\"runes\""]);
    draft.keys.retain(|(key, _)| key != b"tokenizer.ggml.model");
    smoke(&draft.write(folder.path(), "odd.gguf"), &[]).says(3, &["odd.gguf", "tokenizer.ggml.model"]);
}

#[test]
fn prompt_files_and_settings_that_cannot_be_meant_are_refused() {
    let (folder, path) = good();
    let prompts = |bytes: &[u8]| write(folder.path(), "prompts.jsonl", bytes);
    let ask = |prompts: &Path| smoke(&path, &["--prompts", text(prompts)]);
    let line = "{\"id\": \"a\", \"kind\": \"instruction\", \"prompt\": \"Hi\"}\n";
    ask(&prompts(format!("{line}\n{{bad\n").as_bytes())).says(3, &["prompts.jsonl, line 3", "column 2"]);
    ask(&prompts(b"")).says(3, &["prompts.jsonl: no prompts"]);
    let huge = prompts(line.as_bytes());
    fs::File::options().write(true).open(&huge).unwrap().set_len((64 << 20) + 1).unwrap();
    ask(&huge).says(3, &["its size in bytes exceeds the limit"]);
    ask(&folder.path().join("missing.jsonl")).says(7, &["missing.jsonl"]);

    let many = " ".repeat((16 << 20) + 1);
    let template = |bytes: &[u8]| write(folder.path(), "x.jinja", bytes);
    let render = |template: &Path| smoke(&path, &["--chat-template", text(template)]);
    render(&template(b"{% for x in")).says(3, &["x.jinja", "line 1"]);
    render(&template(b"\xff\xfe")).says(3, &["x.jinja", "utf-8"]);
    render(&template(many.as_bytes())).says(3, &["x.jinja", "more than 16777216 bytes"]);
    render(&bundled("base")).says(3, &["it has no chat template"]);

    for (options, code, words) in [
        (&["--language", "de,xx"][..], 2, &["`xx`", "de (German)"][..]),
        (&["--threshold", "end=1"], 2, &["`end`", "ends, "]),
        (&["--threshold", "ends=1.5"], 2, &["`ends=1.5`", "between 0 and 1"]),
        (&["--threshold", "ends=0.9:0.1"], 2, &["WARN cannot lie on FAIL's bad side"]),
        (&["--limit", "0"], 2, &["--limit"]),
        (&["--max-tokens", "0"], 2, &["--max-tokens"]),
        (&["--seed", "1"], 2, &["--temp"]),
        (&["--memory", "1MiB"], 5, &["256 tokens", "MiB", "--memory allows 1.0 MiB"]),
        (&["--ctx-size", "16000000"], 5, &["16000000 tokens", "GiB"]),
    ] {
        smoke(&path, options).says(code, words);
    }
}

#[test]
fn answers_are_cut_by_tokens_and_context() {
    let (_folder, path) = good();
    assert_fails("one token", &ask_german_in("1", &path, &[]), &[("ends", &["ran into the limit"])]);
    let ran = ask_german(&path, &["--ctx-size", "4"]);
    assert_fails("no room", &ran, &[("ends", &["0 of 24", "not asked", "--ctx-size"])]);
    let report = ran.json();
    assert_eq!(report["answers"][0]["replies"][0]["end"], "context");
    assert_eq!(report["asked"]["n_ctx"], 4);
    // With room for the question, the answer ends where the context does.
    let ran = ask_german_in("100", &path, &["--ctx-size", "24"]);
    let report = ran.json();
    for answer in report["answers"].as_array().unwrap() {
        assert!(answer["replies"][0]["n_tokens"].as_u64().unwrap() <= 24, "{answer}");
    }
}

#[test]
fn answers_depend_on_nothing_but_model_prompts_and_seed() {
    let (folder, path) = good();
    let answers = |options: &[&str]| ask_german(&path, options).json()["answers"].clone();
    let greedy = answers(&[]);
    assert_eq!(greedy.as_array().unwrap().len(), 24);
    assert_eq!(answers(&["--threads", "1"]), greedy);
    assert_eq!(answers(&["--threads", "5", "--memory", "64MiB", "--ctx-size", "200"]), greedy);
    assert_eq!(answers(&["--temp", "0", "--seed", "7"]), greedy);
    assert_eq!(answers(&["--temp", "1", "--top-k", "1"]), greedy);
    let chance = answers(&["--temp", "1.5", "--seed", "7", "--threads", "1"]);
    assert_eq!(answers(&["--temp", "1.5", "--seed", "7"]), chance);
    assert_ne!(answers(&["--temp", "1.5", "--seed", "8"]), chance);
    assert_ne!(chance, greedy);

    // A model in shards, by any of them.
    let shards = split(&read(&path), 3);
    let first = write_split(folder.path(), &shards);
    assert_eq!(ask_german(&first, &[]).json()["answers"], greedy);

    // Asked alone, a prompt shares nothing with an earlier one.
    let german = fs::read_to_string(german()).unwrap();
    for answer in &greedy.as_array().unwrap()[20..] {
        let id = format!("{{\"id\": {},", answer["id"]);
        let line = german.lines().find(|l| l.starts_with(&id)).unwrap();
        let only = write(folder.path(), "only.jsonl", line.as_bytes());
        let alone = smoke(&path, &["--json", "--prompts", text(&only), "--max-tokens", "40"]).json();
        assert_eq!(alone["answers"][0]["replies"], answer["replies"], "{id}");
    }
}

#[test]
fn later_turns_see_the_model_s_own_answers() {
    let (folder, path) = good();
    let user = |content: &str| json!({"role": "user", "content": content});
    let prompt = |messages: Vec<Json>| json!({"id": "a", "kind": "instruction", "messages": messages}).to_string();
    let ask = |prompt: &str, options: &[&str]| {
        let prompts = write(folder.path(), "prompts.jsonl", prompt.as_bytes());
        smoke(&path, &[&["--json", "--prompts", text(&prompts)], options].concat()).json()
    };
    let (first, second) = ("Wo wohnt Tom?", "Was isst Eva gern?");
    let both = ask(&prompt(vec![user(first), user(second)]), &[]);
    let replies = both["answers"][0]["replies"].as_array().unwrap();
    assert_eq!(replies.len(), 2);
    let said = replies[0]["text"].as_str().unwrap().trim();
    assert!(!said.is_empty());

    // The same conversation with the answer written into it, in a session of its own.
    let assistant = json!({"role": "assistant", "content": said});
    let given = ask(&prompt(vec![user(first), assistant, user(second)]), &[]);
    assert_eq!(given["answers"][0]["replies"].as_array().unwrap()[..], replies[1..]);

    // What the template is given at the second turn.
    let source = template(&read(&path));
    let spy = "{% if messages | length == 3 %}{{ raise_exception(messages[1].role ~ ' said ' ~ messages[1].content) }}{% endif %}";
    let jinja = write(folder.path(), "spy.jinja", format!("{spy}{source}").as_bytes());
    let seen = ask(&prompt(vec![user(first), user(second)]), &["--chat-template", text(&jinja)]);
    let warning = seen["loaded"]["warnings"][0].as_str().unwrap();
    assert!(warning.contains(&format!("assistant said {said}")), "{warning}");
    assert_eq!(seen["answers"][0]["replies"].as_array().unwrap()[..], replies[..1]);
}

#[test]
fn conversations_are_shown_and_cannot_write_to_the_terminal() {
    let (folder, path) = good();
    let line = json!({"id": "\u{1b}[2Jid", "kind": "\u{1b}[1mkind", "language": "de", "keywords": "\u{1b}[0m",
        "messages": [{"role": "system", "content": "\u{1b}]0;title\u{7}"}, {"role": "user", "content": "Wo wohnt Tom\u{9b}31m?\u{202e}"}]});
    let prompts = write(folder.path(), "prompts\u{1b}[31m.jsonl", line.to_string().as_bytes());
    for options in [&["--answers"][..], &["--answers", "--threshold", "ends=1,keywords=1"], &["--json"]] {
        let ran = smoke(&path, &[&["--prompts", text(&prompts)], options].concat());
        for c in ['\u{1b}', '\u{7}', '\u{9b}'] {
            assert!(!ran.out.contains(c) && !ran.err.contains(c), "{options:?}: {}", ran.out.escape_debug());
        }
    }
    let ran = smoke(&path, &["--limit", "2", "--language", "de", "--answers"]);
    assert!(ran.out.starts_with(&format!("{}: ", text(&path))), "no conclusion comes first: {}", ran.out);
    for word in ["[de-", "user: ", "\n> ", "<|im_end|>", "asked: 2 built-in prompts in German"] {
        assert!(ran.out.contains(word), "no {word:?} in {}", ran.out);
    }
}

#[test]
fn prompts_are_taken_from_arguments_and_standard_input() {
    let (folder, path) = good();
    let asked = |report: &Json| -> Vec<String> {
        report["answers"].as_array().unwrap().iter().map(|a| a["id"].as_str().unwrap().to_owned()).collect()
    };
    let ran = smoke(&path, &["--json", "-p", "Wo wohnt Tom?", "-p", "Was isst Eva gern?", "--language", "de"]);
    let given = ran.json();
    assert_eq!(asked(&given), ["-p 1", "-p 2"]);
    assert_eq!(given["asked"]["prompts"], "-p");
    assert_eq!(check(&given, "language")["n"], 2);

    let plain = "Wo wohnt Tom?\n\nWas isst Eva gern?\n";
    let from_input = |input: &str| {
        let mut child = command(["smoke", text(&path), "--json", "--prompts", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
        Ran::new(child.wait_with_output().unwrap())
    };
    let piped = from_input(plain).json();
    assert_eq!(asked(&piped), ["standard input, line 1", "standard input, line 3"]);
    let own = write(folder.path(), "own.txt", plain.as_bytes());
    let read = smoke(&path, &["--json", "--prompts", text(&own)]).json();
    for (piped, read) in piped["answers"].as_array().unwrap().iter().zip(read["answers"].as_array().unwrap()) {
        assert_eq!(piped["replies"], read["replies"]);
    }
    from_input("").says(3, &["standard input: no prompts"]);
    smoke(&path, &["-p", " "]).says(3, &["--prompt", "may not be blank"]);
    smoke(&path, &["-p", "x", "--prompts", text(&own)]).says(2, &["--prompts"]);
}

#[test]
fn a_quarter_of_the_prompts_is_asked_if_time_is_short() {
    let (_folder, path) = good();
    let report = smoke(&path, &["--json", "--quick", "--language", "de"]).json();
    assert_eq!(report["asked"]["n_prompts"], 14);
    let kinds: Vec<(&str, u64)> = report["kinds"]
        .as_array()
        .unwrap()
        .iter()
        .map(|k| (k["name"].as_str().unwrap(), k["counts"]["replies"].as_u64().unwrap()))
        .collect();
    assert_eq!(kinds, [("instruction", 3), ("knowledge", 3), ("memory", 6), ("unsafe", 3), ("harmless", 2)]);
    let report = ask_german(&path, &["--quick"]);
    report.says(2, &["--quick", "--limit"]);
}

#[test]
fn a_strict_user_takes_warnings_for_failures() {
    let (folder, path) = good();
    // Three answers are too few to tell.
    let few = ["--prompts", &german(), "--max-tokens", "40", "--limit", "3", "--json"];
    let ran = smoke(&path, &few);
    let report = assert_chats("three", &ran);
    assert_eq!(report["verdict"], "warn");
    let ends = check(&report, "ends");
    assert_eq!((&ends["verdict"], &ends["decided"], &ends["n"]), (&json!("warn"), &json!(false), &json!(3)));
    assert!(ends["reason"].as_str().unwrap().contains("at least 5 are needed"), "{ends}");
    assert!(report["conclusion"].as_str().unwrap().contains("cannot be told: "), "{}", report["conclusion"]);
    smoke(&path, &[&few[..], &["--strict"]].concat()).says(11, &[]);
    let ran = merge_and_ask(&folder.path().join("new.gguf"), &["--strict", "--threshold", "ends=0.5:1"]);
    ran.says(11, &["new.gguf.rejected"]);
}

#[test]
fn the_default_is_the_languages_of_the_file_or_english() {
    let (folder, path) = good();
    // The bundled models know a small world of their own, and nothing of the built-in questions.
    let ran = smoke(&path, &[]);
    ran.says(11, &[]);
    assert!(ran.out.contains("forgets what was said (0 of 24 right); gives wrong answers"), "{}", ran.out);
    assert!(ran.out.contains("asked: 112 built-in prompts in German and English"), "{}", ran.out);
    let mut draft = read(&path);
    draft.set("general.languages", Val::Array(kind::STRING, vec![Val::str("tlh"), Val::str("DE")]));
    let ran = smoke(&draft.write(folder.path(), "x.gguf"), &["--limit", "2"]);
    assert!(ran.out.contains("built-in prompts in German;"), "{}", ran.out);
    for languages in [Val::strs(["tlh"]), Val::str("de"), Val::U32(1)] {
        draft.set("general.languages", languages);
        let ran = smoke(&draft.write(folder.path(), "x.gguf"), &["--limit", "2"]);
        assert!(ran.out.contains("built-in prompts in English;"), "{}", ran.out);
    }
}

#[test]
fn a_report_has_its_keys_and_may_lose_its_reader() {
    let (_folder, path) = good();
    let report = smoke(&path, &["--json", "--limit", "5"]).json();
    let keys = |json: &Json| {
        let mut keys: Vec<String> = json.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys.join(" ")
    };
    let expected = "agreement alpha answers architecture asked checks conclusion engine file kinds languages loaded marks partial speed spoken total verdict";
    assert_eq!(keys(&report), expected);
    assert_eq!(keys(&report["asked"]), "adapters languages max_tokens n_ctx n_prompts prompts");
    assert_eq!(
        keys(&report["loaded"]),
        "end_tokens has_template refused_by_llama_cpp template_error turn_end warnings"
    );
    assert_eq!(
        keys(&report["checks"][0]),
        "decided examples fail good hits interval message n name power reason value verdict warn"
    );
    assert_eq!(keys(&report["answers"][0]), "id messages replies");
    assert_eq!(keys(&report["answers"][0]["replies"][0]), "end finite n_tokens raw text");
    assert_eq!(report["asked"]["prompts"], Json::Null);
    assert_eq!(report["asked"]["n_prompts"], 5);
    assert_eq!(report["loaded"]["turn_end"], "<|im_end|>");

    for (options, code) in [(&["--limit", "5"][..], 0), (&["--json", "--threshold", "ends=1,refusal=1"], 11)] {
        let mut command = command([&["smoke", text(&path)], options].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let ran = Ran::new(child.wait_with_output().unwrap());
        assert_eq!((ran.code, ran.err.as_str()), (code, ""));
    }
}

/// A text of the fixtures.
fn fixture(name: &str) -> String {
    format!("{}/fixtures/compare/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn compare(a: &Path, b: &Path, options: &[&str]) -> Ran {
    chatvec([&["compare", "--json", text(a), text(b)], options].concat())
}

fn number(json: &Json) -> f64 {
    json.as_f64().unwrap_or_else(|| panic!("{json} is no number"))
}

#[test]
fn a_model_is_the_same_as_itself() {
    let (_folder, path) = good();
    let plain = fixture("plain-de.txt");
    let report = compare(&path, &path, &["--text", &plain, "--ctx-size", "64", "--chunks", "4"]).json();
    for json in [&report["total"], &report["tensors"][0], &report["parts"][0]] {
        assert_eq!((number(&json["relative"]), number(&json["max"])), (0.0, 0.0));
        assert!((number(&json["cosine"]) - 1.0).abs() < 1e-12);
    }
    let logits = &report["logits"];
    assert!(number(&logits["kl"]["mean"]["value"]).abs() < 1e-12, "{logits:#}");
    assert_eq!(number(&logits["same_top"]["value"]), 1.0);
    assert_eq!(report["not_compared"], json!([]));
    let ran = chatvec(["compare", text(&path), text(&path), "--text", &plain, "--ctx-size", "64", "--chunks", "4"]);
    for word in ["100.00 %", "mean KL(A‖B)", "4 chunks of 64"] {
        assert!(ran.out.contains(word), "no {word:?} in {}", ran.out);
    }
    assert!(!ran.out.contains("e-1"), "rounding errors are no divergence:\n{}", ran.out);
}

#[test]
fn the_vector_in_a_merge_is_what_the_merge_measured() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Paths::bundled();
    let out = folder.path().join("out.gguf");
    let options = ["--type", "Q4_K", "--pure", "--json", "--special-tokens", "none"];
    let measured = paths.command(&out, &options).json();
    let vector = ["--base", text(&paths.base), "--chat", text(&paths.chat)];
    let report = compare(&paths.cp, &out, &vector).json();
    let near = |found: &Json, expected: &Json| {
        let (found, expected) = (number(&found["survival"]), number(&expected["survival"]));
        assert!((found - expected).abs() < 1e-5, "{found}, measured {expected}");
    };
    near(&report["total"], &measured["total"]);
    for tensor in measured["tensors"].as_array().unwrap() {
        near(report["tensors"].as_array().unwrap().iter().find(|t| t["name"] == tensor["name"]).unwrap(), tensor);
    }
    compare(&paths.cp, &out, &vector[..2]).says(2, &["--chat"]);
    compare(&paths.cp, &out, &vector[2..]).says(2, &["--base"]);
    compare(&paths.cp, &out, &["--base", "missing.gguf", "--chat", text(&paths.chat)]).says(7, &["--base"]);
}

/// How far a perplexity may be off, relatively: twice what was seen, of all recorded runs.
/// Quantised rows meet activations that are rounded to 8 bits, where a last bit of f32 decides
/// about a step.
fn perplexity_bound(model: &str) -> f64 {
    match model {
        "merged-Q4_K" => 1.6e-3,
        "merged-Q8_0" => 5e-4,
        _ => 2e-4,
    }
}

/// Compares models end to end where the recorded run is one of these, and says how many were.
///
/// F16 weights are written as F32 here, and so computed without rounding activations to F16 as
/// llama.cpp does.
fn compare_recorded(is_wanted: impl Fn(&str, &str, &str, u64) -> bool) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(format!("{name}.gguf"));
    let paths = Paths::bundled();
    for (name, options) in [
        ("merged-F16", &["--type", "F16"][..]),
        ("merged-Q8_0", &["--type", "Q8_0"]),
        ("merged-Q4_K", &["--type", "Q4_K", "--pure"]),
    ] {
        paths.command(&at(name), options).says(0, &[]);
    }
    for (source, name) in [(at("merged-F16"), "merged-F16"), (bundled("cp-de"), "cp")] {
        let mut draft = read(&source);
        requantise(&mut draft, F32);
        draft.write(folder.path(), &format!("{name}.gguf"));
    }
    let goldens: Json = serde_json::from_str(&fs::read_to_string(fixture("goldens.json")).unwrap()).unwrap();
    let mut n = 0;
    for run in goldens["runs"].as_array().unwrap() {
        let [a, b, of] = ["reference", "other", "text"].map(|key| run[key].as_str().unwrap());
        let n_ctx = run["n_ctx"].as_u64().unwrap();
        if !is_wanted(of, a, b, n_ctx) {
            continue;
        }
        n += 1;
        let options = ["--text", &fixture(of), "--ctx-size", &n_ctx.to_string(), "--parse-special", "--top", "768"];
        let report = compare(&at(a), &at(b), &options).json();
        assert_figures(&format!("{of}, {n_ctx}, {a} and {b}"), &report, run, [a, b].map(perplexity_bound), 0.003);
    }
    n
}

/// Holds what `compare` reports to what llama-perplexity printed. Bounds are of the perplexities, and
/// of the mean divergence, relatively.
fn assert_figures(what: &str, report: &Json, run: &Json, [bound_a, bound_b]: [f64; 2], bound_kl: f64) {
    let (logits, figures) = (&report["logits"], &run["figures"]);
    assert_eq!(logits["n_chunks"], run["n_chunks"]);
    for (bound, found, expected) in [
        (bound_b, &logits["perplexity_b"], &figures["ppl"]),
        (bound_a, &logits["perplexity_a"], &figures["ppl_reference_exact"]),
    ] {
        for (found, expected) in [(&found["value"], &expected[0]), (&found["error"], &expected[1])] {
            let off = number(found) / number(expected) - 1.0;
            assert!(off.abs() <= bound, "{what}: {found}, expected {expected}, off by {off:.1e}");
        }
    }
    // Recorded divergences are rounded by about 1e-5; of some thousand tokens, a handful are as
    // good as tied.
    let (kl, expected) = (number(&logits["kl"]["mean"]["value"]), number(&figures["kl_mean"][0]));
    assert!((kl - expected).abs() <= 2e-5 + bound_kl * expected, "{what}: mean KL {kl}, expected {expected}");
    let (same, expected) = (number(&logits["same_top"]["value"]) * 100.0, number(&figures["same_top_percent"][0]));
    assert!((same - expected).abs() <= 0.3, "{what}: same top {same} %, expected {expected} %");
}

#[test]
fn figures_of_experts_and_windows_are_those_of_llama_perplexity() {
    let read = |path: &str| -> Json { serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap() };
    let (families, goldens) = (read("fixtures/infer/families.json"), read(&fixture("families.json")));
    let folder = tempfile::tempdir().unwrap();
    let model = |name: &str| synthetic::draft(&families, name).write(folder.path(), &format!("{name}.gguf"));
    for run in goldens["runs"].as_array().unwrap() {
        let [a, b] = ["a", "b"].map(|key| run[key].as_str().unwrap());
        let [n_ctx, n_chunks] = ["n_ctx", "n_chunks"].map(|key| run[key].to_string());
        let text = fixture(goldens["text"].as_str().unwrap());
        let options = ["--text", &text, "--ctx-size", &n_ctx, "--chunks", &n_chunks, "--top", "260"];
        let report = compare(&model(a), &model(b), &options).json();
        // A rounding that falls on the other side may send a token to another expert.
        assert_figures(&format!("{a} and {b}"), &report, run, [2e-4, 1.5e-3], 0.1);
    }
}

#[test]
fn figures_of_whole_texts_are_those_of_llama_perplexity() {
    let n = compare_recorded(|text, a, b, n_ctx| {
        n_ctx == 256
            && matches!(
                (text, a, b),
                ("plain-de.txt", "merged-F16", "merged-Q4_K") | ("chat-de.txt", "cp", "merged-F16")
            )
    });
    assert_eq!(n, 2);
}

#[test]
#[ignore = "minutes"]
fn figures_of_all_recorded_runs_are_those_of_llama_perplexity() {
    assert_eq!(compare_recorded(|_, a, b, _| a != b), 16);
}

#[test]
fn what_is_kept_of_a_reference_bounds_its_divergence() {
    let (folder, path) = good();
    let other = folder.path().join("q4.gguf");
    Paths::bundled().command(&other, &["--type", "Q4_K", "--pure"]).says(0, &[]);
    let plain = fixture("plain-de.txt");
    let kl = |top: &str| {
        let options = ["--text", &plain, "--ctx-size", "128", "--chunks", "4", "--top", top];
        compare(&path, &other, &options).json()["logits"]["kl"].clone()
    };
    let exact = number(&kl("768")["mean"]["value"]);
    assert_eq!(number(&kl("100000000")["mean"]["value"]), exact, "more than there are is all");
    let mut widths = Vec::new();
    for top in ["1", "16", "256"] {
        let kl = kl(top);
        let (lower, upper) = (number(&kl["mean_lower"]), number(&kl["mean_upper"]));
        assert!(lower <= exact + 1e-9 && exact - 1e-9 <= upper, "top {top}: {lower} to {upper}, exactly {exact}");
        widths.push(upper - lower);
    }
    assert!(widths.is_sorted_by(|a, b| a >= b), "{widths:?}");
}

#[test]
fn texts_that_say_nothing_are_refused() {
    let (folder, path) = good();
    let ask = |bytes: &[u8], options: &[&str]| {
        let file = write(folder.path(), "text.txt", bytes);
        compare(&path, &path, &[&["--text", text(&file)], options].concat())
    };
    ask(b"", &[]).says(2, &["--text", "0 tokens"]);
    ask(b"Tom", &[]).says(2, &["--text", "tokens", "give at least"]);
    ask(b"Tom wohnt in \xff\xfe Prag, und Eva auch.", &[]).says(3, &["text.txt", "byte 13 is not UTF-8"]);
    let utf16: Vec<u8> = "Tom wohnt in Prag.".encode_utf16().flat_map(u16::to_le_bytes).collect();
    ask(&[b"\xff\xfe", &utf16[..]].concat(), &[]).says(3, &["byte 0 is not UTF-8"]);
    // Cut within its last letter.
    let cut = "Tom wohnt in Prag. Eva isst gern Käse, sagt Paul für".as_bytes();
    ask(&cut[..cut.len() - 2], &["--ctx-size", "8"]).says(0, &[]);
    let cut = &"Tom wohnt in Prag. Eva isst gern Kä".as_bytes();
    ask(&cut[..cut.len() - 1], &["--ctx-size", "8"]).says(0, &[]);
    let missing = folder.path().join("missing.txt");
    compare(&path, &path, &["--text", text(&missing)]).says(7, &["missing.txt"]);
    compare(&path, &path, &["--text", text(folder.path())]).says(7, &[]);

    let plain = fixture("plain-de.txt");
    for (options, code, words) in [
        (&["--ctx-size", "3"][..], 2, &["--ctx-size"][..]),
        (&["--ctx-size", "4", "--chunks", "3"], 0, &[]),
        (&["--ctx-size", "1048576", "--memory", "8MiB"], 5, &["tokens takes", "--memory allows 8.0 MiB"]),
        (&["--ctx-size", "4", "--top", "768", "--memory", "5MiB"], 5, &["takes", "fewer --chunks, a smaller --top"]),
        (&["--ctx-size", "4", "--top", "768", "--memory", "5MiB", "--chunks", "2"], 0, &[]),
        (&["--top", "0"], 2, &["--top"]),
        (&["--chunks", "0"], 2, &["--chunks"]),
    ] {
        compare(&path, &path, &[&["--text", &plain], options].concat()).says(code, words);
    }
    compare(&path, &path, &["--chunks", "2"]).says(2, &["--text"]);
}

#[test]
fn models_that_cannot_be_compared_are_refused_and_tensors_listed() {
    let (folder, path) = good();
    let plain = fixture("plain-de.txt");
    let mut draft = read(&path);
    change_tokens(&mut draft, |tokens| tokens.swap(300, 301));
    let swapped = draft.write(folder.path(), "swapped.gguf");
    compare(&path, &swapped, &["--text", &plain]).says(4, &["300"]);
    compare(&path, &swapped, &[]).says(0, &[]);
    let text_file = write(folder.path(), "text.gguf", b"Once upon a time");
    compare(&path, &text_file, &[]).says(3, &["text.gguf", "expected 'GGUF'"]);
    compare(&folder.path().join("missing.gguf"), &path, &[]).says(7, &["missing.gguf"]);

    let mut draft = read(&path);
    let mut extra = Tensor::new("blk.0.\u{1b}[31mextra.weight", &[4], F32);
    store(&mut extra, F32, &[1.0; 4]);
    draft.tensors.push(extra);
    draft.tensors.retain(|t| t.name != b"output.weight");
    let other = draft.write(folder.path(), "other.gguf");
    let report = compare(&path, &other, &[]).json();
    let names: Vec<&Json> = report["not_compared"].as_array().unwrap().iter().map(|t| &t["name"]).collect();
    assert_eq!(names, ["output.weight", "blk.0.\u{1b}[31mextra.weight"]);
    assert_eq!(report["tensors"].as_array().unwrap().len(), 29);
    let ran = chatvec(["compare", text(&path), text(&other)]);
    assert!(ran.out.contains("not compared: output.weight (only in A)"), "{}", ran.out);
    assert!(ran.out.contains("extra.weight (only in B)") && !ran.out.contains('\u{1b}'), "{}", ran.out);
    // Before minutes are spent on weights.
    let ran = compare(&path, &other, &["--text", &plain]);
    ran.says(3, &["other.gguf", "extra"]);
}

#[test]
fn prompts_asked_together_are_answered_as_each_alone() {
    let (folder, path) = good();
    // Conversations of several turns among them, and prompts that begin alike.
    let prompts = fs::read_to_string(german()).unwrap();
    let more = [
        r#"{"id": "x-1", "kind": "memory", "language": "de", "messages": [{"role": "user", "content": "Wo wohnt Tom?"},
            {"role": "user", "content": "Und Eva?"}], "keywords": ["Eva"]}"#,
        r#"{"id": "x-2", "kind": "memory", "language": "de", "messages": [{"role": "user", "content": "Wo wohnt Tom?"},
            {"role": "user", "content": "Wo wohnt Anna?"}], "keywords": ["Anna"]}"#,
    ];
    let lines = prompts.lines().step_by(9).map(str::to_owned).chain(more.map(|line| line.replace('\n', " ")));
    let set = write(folder.path(), "set.jsonl", (lines.collect::<Vec<_>>().join("\n") + "\n").as_bytes());
    for sampling in [&[][..], &["--temp", "0.8", "--seed", "5"]] {
        let ask = |memory: &str| {
            let options = ["--json", "--prompts", text(&set), "--max-tokens", "30", "--ctx-size", "200"];
            let ran = smoke(&path, &[&options[..], sampling, &["--memory", memory]].concat());
            assert!(ran.code == 0 || ran.code == 11, "{ran:#?}");
            ran.json()["answers"].clone()
        };
        let together = ask("1GiB");
        assert!(together.as_array().unwrap().len() > 12);
        // Room for one conversation, and for some.
        assert_eq!(ask("8MiB"), together);
        assert_eq!(ask("24MiB"), together);
    }
}
