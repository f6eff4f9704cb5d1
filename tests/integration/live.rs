//! A model that is asked, seen while it is: answers as they come, the bar, and what an interrupt
//! leaves.

use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::support::write;
use crate::tmux::Terminal;
use crate::trio::{Paths, Ran, chatvec, endless_model, interruptible};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn merged(folder: &Path) -> PathBuf {
    let path = folder.join("merged.gguf");
    Paths::bundled().merge(&path, "F32", 1.0);
    path
}

/// The bundled German prompts.
fn german() -> String {
    format!("{}/fixtures/models/prompts-de.jsonl", env!("CARGO_MANIFEST_DIR"))
}

/// More prompts than are answered in minutes: the German ones again and again.
fn endless(folder: &Path) -> PathBuf {
    let text = std::fs::read_to_string(german()).unwrap();
    let prompts: Vec<Json> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = |i: usize| {
        let mut prompt = prompts[i % prompts.len()].clone();
        prompt["id"] = format!("q{i}").into();
        prompt.to_string() + "\n"
    };
    write(folder, "endless.jsonl", (0..50_000).map(line).collect::<String>().as_bytes())
}

/// The names of the conversations in a text, in its order.
fn conversations(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix('[')?.strip_suffix(']')).collect()
}

#[test]
fn answers_come_in_the_order_of_the_set_with_their_questions() {
    let folder = tempfile::tempdir().unwrap();
    let (model, german) = (merged(folder.path()), german());
    let asking = ["smoke", text(&model), "--prompts", &german, "--limit", "40", "--max-tokens", "40"];
    let run = |more: &[&str]| chatvec([&asking, more].concat());
    let (live, after) = (run(&["-v"]), run(&["--answers"]));
    // The conclusion comes before all that the report says, so behind answers that were shown live.
    let (name, is_rate) = (format!("{}: ", text(&model)), |line: &&str| line.contains("tokens read at"));
    let without_rates = |text: &str| {
        let lines = text.lines().filter(|line| !is_rate(line) && !line.starts_with(&name) && !line.is_empty());
        lines.map(|line| line.to_owned() + "\n").collect::<String>()
    };
    assert_eq!(without_rates(&live.out), without_rates(&after.out));
    assert!(after.out.starts_with(&name) && live.out.lines().filter(|line| line.starts_with(&name)).count() == 2);
    assert_eq!(conversations(&live.out).len(), 40);
    assert_eq!(without_rates(&run(&["-v", "--answers"]).out), without_rates(&live.out), "once");

    let ran = run(&["-v", "--json"]);
    assert_eq!(conversations(&ran.err), conversations(&live.out));
    let report = ran.json();
    assert_eq!(report["partial"], false);
    let prompts: Vec<Json> =
        std::fs::read_to_string(&german).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for answer in report["answers"].as_array().unwrap() {
        let prompt = prompts.iter().find(|prompt| prompt["id"] == answer["id"]).unwrap();
        let messages = answer["messages"].as_array().unwrap();
        match prompt.get("prompt") {
            Some(question) => assert_eq!(messages[0]["content"], *question),
            None => assert_eq!(prompt["messages"], answer["messages"]),
        }
        assert!(messages.len() >= answer["replies"].as_array().unwrap().len());
    }
}

#[test]
fn what_was_answered_before_an_interrupt_is_judged() {
    let folder = tempfile::tempdir().unwrap();
    let (model, prompts) = (merged(folder.path()), endless(folder.path()));
    for (signal, more) in [("INT", &[][..]), ("TERM", &["--json"])] {
        let args = ["smoke", text(&model), "-v", "--prompts", text(&prompts), "--max-tokens", "40"];
        let mut child =
            interruptible([&args, more].concat()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut out, mut err) =
            (BufReader::new(child.stdout.take().unwrap()), BufReader::new(child.stderr.take().unwrap()));
        // Answers come while it goes on.
        let (mut shown, mut n_shown) = (String::new(), 0);
        while n_shown < 50 {
            let from: &mut dyn BufRead = if more.is_empty() { &mut out } else { &mut err };
            let mut line = String::new();
            assert!(from.read_line(&mut line).unwrap() > 0, "it ended after\n{shown}");
            n_shown += conversations(&line).len();
            shown += &line;
        }
        let kill = format!("kill -{signal} {}", child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        let rest = std::thread::spawn(move || {
            let mut rest = String::new();
            err.read_to_string(&mut rest).unwrap();
            rest
        });
        let mut left = String::new();
        out.read_to_string(&mut left).unwrap();
        let rest = rest.join().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{left}\n{rest}");
        let n_answered = if more.is_empty() {
            let all = shown + &left;
            let n = conversations(&all).len();
            assert!(
                all.contains(&format!("interrupted: {n} of 50000 prompts were answered, and only these are judged\n")),
                "{left}"
            );
            let verdict = left.trim_end().rsplit_once("merged.gguf: ").unwrap().1;
            assert!(["PASS", "WARN"].contains(&verdict), "{left}");
            n
        } else {
            let report: Json = serde_json::from_str(&left).unwrap();
            assert_eq!((&report["partial"], &report["asked"]["n_prompts"]), (&Json::from(true), &Json::from(50_000)));
            let all = shown + &rest;
            let answers = report["answers"].as_array().unwrap();
            let mut ids: Vec<&str> = answers.iter().map(|answer| answer["id"].as_str().unwrap()).collect();
            assert_eq!(conversations(&all), ids);
            assert!(answers.iter().all(|answer| answer["replies"].as_array().unwrap().len() == 1));
            ids.dedup();
            ids.len()
        };
        assert!((50..45_000).contains(&n_answered));
    }
}

#[test]
fn an_interrupt_before_the_first_answer_leaves_nothing_to_judge() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = write(folder.path(), "one.jsonl", br#"{"id":"a","kind":"talk","prompt":"Was ist ein Hund?"}"#);
    let model = endless_model(folder.path());
    let mut args = vec!["smoke", text(&model), "--prompts", text(&prompts)];
    args.extend(["-c", "66000", "--max-tokens", "65000", "--memory", "8GiB"]);
    let child = interruptible(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let kill = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let ran = Ran::new(child.wait_with_output().unwrap());
    // Before it asks, the process ends at once and says nothing.
    ran.says(130, &[]);
    assert_eq!(ran.out, "");
}

#[test]
fn an_interrupt_does_not_wait_for_a_long_question() {
    let folder = tempfile::tempdir().unwrap();
    let question = serde_json::json!({"id": "a", "kind": "talk", "prompt": "Was ist ein Hund? ".repeat(6000)});
    let prompts = write(folder.path(), "long.jsonl", question.to_string().as_bytes());
    let model = merged(folder.path());
    let mut args = vec!["smoke", text(&model), "--prompts", text(&prompts)];
    // Reading all of it takes minutes.
    args.extend(["-c", "66000", "--max-tokens", "8", "--memory", "8GiB"]);
    let child = interruptible(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let sent = Instant::now();
    let kill = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let ran = Ran::new(child.wait_with_output().unwrap());
    ran.says(130, &[]);
    assert!(sent.elapsed() < Duration::from_secs(30), "{:?}", sent.elapsed());
}

#[test]
fn a_terminal_shows_the_phases_and_verdicts_in_colour() {
    let folder = tempfile::tempdir().unwrap();
    let (model, prompts, german) = (merged(folder.path()), endless(folder.path()), german());
    let args = ["smoke", text(&model), "--prompts", text(&prompts), "--max-tokens", "40"];
    let Some(terminal) = Terminal::start(&args, "A=B") else { return };
    terminal.shows(&["asking: ", " of 50000 answered, ETA"]);
    while terminal.screen().contains("asking: 0 of") {
        std::thread::sleep(Duration::from_millis(50));
    }
    terminal.presses("C-c");
    terminal.shows(&["interrupted: ", " of 50000 prompts", "ended with 130"]);
    for (environment, has_colours) in [("A=B", true), ("NO_COLOR=1", false)] {
        let args = ["smoke", text(&model), "--prompts", &german, "--limit", "12", "--max-tokens", "40"];
        let Some(terminal) = Terminal::start(&args, environment) else { return };
        terminal.shows(&["ends", "PASS", "ended with 0"]);
        let screen = terminal.tmux(&["capture-pane", "-p", "-e"]);
        let green = screen.contains("\u{1b}[1m\u{1b}[32mPASS") || screen.contains("\u{1b}[32m\u{1b}[1mPASS");
        assert_eq!(green, has_colours, "{}", screen.escape_debug());
    }
    // Through a pipe there are none.
    let args = ["smoke", text(&model), "--prompts", &german, "--limit", "12", "--max-tokens", "40"];
    assert!(!chatvec(args).out.contains('\u{1b}'));
}
