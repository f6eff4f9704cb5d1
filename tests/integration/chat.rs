//! Talking to a model: line by line through pipes, and in a real terminal, which tmux is.
//!
//! What is answered is held against what `smoke` says to the same conversation, greedily: it asks
//! whole sets, in another way.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value as Json, json};

use crate::support::Val;
use crate::trio::{Paths, Ran, bundled, chatvec, command, read};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The bundled trio merged, as F32.
fn merged(folder: &Path) -> PathBuf {
    let path = folder.join("merged.gguf");
    Paths::bundled().merge(&path, "F32", 1.0);
    path
}

/// `chatvec chat` with this on its standard input.
fn chat(options: &[&str], input: impl AsRef<[u8]>) -> Ran {
    let mut command = command([&["chat"], options].concat());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Who refuses the arguments reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input.as_ref());
    Ran::new(child.wait_with_output().unwrap())
}

/// What `smoke` hears to messages of one conversation.
fn by_smoke(folder: &Path, options: &[&str], system: Option<&str>, messages: &[&str]) -> Vec<String> {
    let system = system.map(|text| json!({"role": "system", "content": text}));
    let users = messages.iter().map(|text| json!({"role": "user", "content": text}));
    let messages: Vec<Json> = system.into_iter().chain(users).collect();
    let prompts = folder.join("prompts.jsonl");
    fs::write(&prompts, json!({"id": "a", "kind": "talk", "messages": messages}).to_string()).unwrap();
    let report = chatvec([&["smoke", "--json", "--prompts", text(&prompts)], options].concat()).json();
    let replies = report["answers"][0]["replies"].as_array().unwrap().iter();
    replies.map(|reply| reply["text"].as_str().unwrap().trim().to_owned()).collect()
}

const TALK: [&str; 4] = ["In welcher Stadt wohnt Anna?", "Und wo wohnt Tom?", "Nenne drei Tiere.", "Danke!"];

#[test]
fn lines_of_a_pipe_are_answered_as_a_set_of_prompts_is() {
    let folder = tempfile::tempdir().unwrap();
    let model = merged(folder.path());
    let asking = [text(&model), "--max-tokens", "40"];
    let expected = by_smoke(folder.path(), &asking, None, &TALK);
    assert!(expected.len() == 4 && expected.iter().all(|answer| answer.len() > 3), "{expected:?}");
    let greedy = [&asking[..], &["--greedy"]].concat();
    let input = TALK.join("\n\r\n");
    let ran = chat(&greedy, &input);
    assert_eq!((ran.code, ran.out.as_str()), (0, (expected.join("\n") + "\n").as_str()), "{}", ran.err);

    // As JSON, and with what is kept: each question begins with all that was said before it.
    let ran = chat(&[&greedy[..], &["--json"]].concat(), &input);
    let answers: Vec<Json> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.iter().map(|a| a["content"].as_str().unwrap()).collect::<Vec<_>>(), expected);
    for pair in answers.windows(2) {
        let (kept, before) = (pair[1]["n_kept"].as_u64().unwrap(), pair[0]["n_asked"].as_u64().unwrap());
        assert!(kept >= before && pair[0]["role"] == "assistant", "{pair:#?}");
    }

    // A system text, threads and the engine by name change nothing about that.
    let system = "Antworte kurz.";
    let expected = by_smoke(folder.path(), &asking, Some(system), &TALK[..2]);
    let options = [&greedy[..], &["--system", system, "--threads", "1", "--engine", "built-in", "-c", "250"]].concat();
    assert_eq!(chat(&options, TALK[..2].join("\n")).out, expected.join("\n") + "\n");
}

#[test]
fn adapters_and_templates_are_those_of_smoke() {
    let folder = tempfile::tempdir().unwrap();
    let lora = folder.path().join("vector.gguf");
    let of_chat = ["--base", text(&bundled("base")), "--chat", text(&bundled("chat"))].map(str::to_owned);
    let of_chat = of_chat.each_ref().map(String::as_str);
    chatvec([&["extract", "--lora", text(&lora), "--rank", "64"], &of_chat[..]].concat()).says(0, &[]);
    let cp = bundled("cp-de");
    let chat_model = bundled("chat");
    let part = format!("{}@0.3", text(&lora));
    let mut answers = Vec::new();
    for lora in [text(&lora), &part] {
        let asking = [text(&cp), "--lora", lora, "--chat-template", text(&chat_model), "--max-tokens", "24"];
        let expected = by_smoke(folder.path(), &asking, None, &TALK[..2]);
        let ran = chat(&[&asking[..], &["--greedy"]].concat(), TALK[..2].join("\n"));
        assert_eq!((ran.code, &ran.out), (0, &(expected.join("\n") + "\n")), "{}", ran.err);
        answers.push(ran.out);
    }
    assert_ne!(answers[0], answers[1]);
}

#[test]
fn vectors_are_added_in_memory_and_answer_as_the_merged_file_does() {
    let folder = tempfile::tempdir().unwrap();
    let (paths, file) = (Paths::bundled(), folder.path().join("merged.gguf"));
    let pair = ["--base", text(&paths.base), "--chat", text(&paths.chat)];
    let of = |options: &[&str]| {
        let ran = chat(&[&[text(&paths.cp), "--max-tokens", "24", "--greedy"], options].concat(), TALK[..2].join("\n"));
        ran.says(0, &["the merged model is held in memory: 5.3 MiB"]).out.clone()
    };
    let by_file = |ratio: &str| {
        paths.command(&file, &["--ratio", ratio, "--overwrite"]).says(0, &[]);
        chat(&[text(&file), "--max-tokens", "24", "--greedy"], TALK[..2].join("\n")).out
    };
    let (whole, part) = (by_file("1"), by_file("0.4"));
    assert_ne!(whole, part);
    assert_eq!(of(&pair), whole);
    let vector = |ratio: &str| format!("{}:{}@{ratio}", text(&paths.base), text(&paths.chat));
    assert_eq!(of(&["--vector", &vector("0.4")]), part);
    // Two halves of a vector are the vector.
    assert_eq!(of(&["--vector", &vector("0.5"), "--vector", &vector("0.5")]), whole);
    let both = [text(&paths.cp), "--base", text(&paths.base), "--chat", text(&paths.chat), "--lora", text(&paths.chat)];
    chat(&both, "").says(2, &["--lora"]);
    chat(&[text(&paths.cp), "--base", text(&paths.base)], "").says(2, &["--chat"]);
}

#[test]
fn a_seed_gives_the_same_answers_and_the_file_says_how_tokens_are_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let model = merged(folder.path());
    let ask = |path: &Path, options: &[&str]| {
        let options = [&[text(path), "--max-tokens", "40"], options].concat();
        let ran = chat(&options, TALK[..3].join("\n"));
        assert_eq!(ran.code, 0, "{ran:#?}");
        ran
    };
    let drawn = |seed| ask(&model, &["--temp", "2", "--top-k", "0", "--min-p", "0", "--seed", seed]).out;
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
    assert_ne!(ask(&model, &["--temp", "5"]).out, ask(&model, &["--temp", "5"]).out, "another seed each time");
    let greedy = ask(&model, &["--greedy"]).out;
    assert_eq!(ask(&model, &["--temp", "0"]).out, greedy);
    assert_eq!(ask(&model, &["--temp", "5", "--top-k", "1"]).out, greedy);

    // The file recommends, and options go before it.
    let mut draft = read(&model);
    draft.set("general.sampling.temp", Val::F32(9.0));
    draft.set("general.sampling.top_k", Val::I32(1));
    draft.set("general.sampling.penalty_repeat", Val::F32(1.5));
    let path = draft.write(folder.path(), "recommends.gguf");
    let ran = ask(&path, &[]);
    assert_eq!(ran.out, greedy);
    ran.says(0, &["general.sampling.penalty_repeat = 1.5, which is not followed"]);
    assert_ne!(ask(&path, &["--top-k", "0", "--seed", "1"]).out, greedy);
}

#[test]
fn what_cannot_be_talked_to_is_an_error_that_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let model = merged(folder.path());
    let (model, cp) = (text(&model), bundled("cp-de"));
    let cp = text(&cp);
    for (options, input, code, words) in [
        (&[cp][..], "x", 5, &["cp-de", "no chat template", "--chat-template"][..]),
        (&[model, "--against", "missing.gguf"], "x", 7, &["--against", "missing.gguf"]),
        (&[model, "--lora", cp], "x", 4, &["general.type"]),
        (&[model, "--engine", "both"], "x", 2, &["one engine"]),
        (&[model, "--greedy", "--temp", "1"], "x", 2, &["--greedy", "--temp"]),
        (&[model, "--top-p", "2"], "x", 2, &["top-p is 2"]),
        (&[model, "-c", "16000000"], "x", 5, &["16000000 tokens", "--memory"]),
        (
            &[model, "-c", "20"],
            "Wo wohnt Anna, und wo wohnen Tom, Eva, Max, Paul und Lisa in dieser Stadt?",
            5,
            &["line 1", "the context has 20; nothing was left out", "--ctx-size"],
        ),
        (&[model, "--max-tokens", "2", "--greedy"], "x", 0, &["line 1: the answer is cut at 2 tokens"]),
        (&[model, "-c", "300", "--max-tokens", "1"], "x", 0, &["300 is more than the 256 tokens"]),
        (&[model], "", 0, &[]),
        (&[model], "\n  \n", 0, &[]),
    ] {
        let ran = chat(options, input);
        ran.says(code, words);
        assert!(code == 0 || ran.out.is_empty(), "{ran:#?}");
    }
    chat(&[model, "--max-tokens", "1"], b"a\n\xff\n").says(3, &["standard input", "line 2 is not UTF-8"]);
    let refuses = folder.path().join("refuses.jinja");
    fs::write(&refuses, "{{ raise_exception('no talk') if messages | length > 1 }}{{ messages[0].content }}").unwrap();
    let ran = chat(&[model, "--chat-template", text(&refuses), "--max-tokens", "2"], "a\nb\n");
    ran.says(3, &["line 2", "no talk"]);
    assert_eq!(ran.out.lines().count(), 1, "{ran:#?}");
}

#[test]
fn a_line_of_a_pipe_is_no_command_and_nothing_of_it_acts() {
    let folder = tempfile::tempdir().unwrap();
    let model = merged(folder.path());
    let file = folder.path().join("saved.jsonl");
    let ran = chat(&[text(&model), "--greedy", "--max-tokens", "8"], format!("/save {}\n/quit\nHallo\n", text(&file)));
    assert_eq!((ran.code, ran.out.lines().count()), (0, 3), "{ran:#?}");
    assert!(!file.exists());
}

/// A chat in a terminal.
#[cfg(unix)]
mod terminal {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::tmux::Terminal;
    use crate::trio::endless_model;

    fn start(options: &[&str], environment: &str) -> Option<Terminal> {
        Terminal::start(&[&["chat"], options].concat(), environment)
    }

    #[test]
    fn a_chat_in_a_terminal_is_edited_saved_and_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let model = merged(folder.path());
        let asking = [text(&model), "--max-tokens", "40"];
        let said = by_smoke(folder.path(), &asking, None, &TALK[..2]);
        let Some(terminal) = start(&[&asking[..], &["--greedy"]].concat(), "A=B") else { return };
        terminal.shows(&["engine: built-in", "--greedy", "/help", "\n>\n"]);
        // A letter too many, and one that was left out.
        terminal.types("In welchher Stadt wohnt Ana?");
        for key in ["BSpace", "BSpace"] {
            terminal.presses(key);
        }
        terminal.types("na?");
        (0.."er Stadt wohnt Anna?".len()).for_each(|_| terminal.presses("Left"));
        terminal.presses("BSpace");
        terminal.presses("Enter");
        terminal.shows(&["> In welcher Stadt wohnt Anna?\n", &said[0], "\n>\n"]);
        terminal.enters(TALK[1]);
        terminal.shows(&[TALK[1], &said[1], "\n>\n"]);

        let file = folder.path().join("a b.jsonl");
        terminal.enters(&format!("/save {}", text(&file)));
        terminal.shows(&["4 messages are in ", "\n>\n"]);
        let saved = fs::read_to_string(&file).unwrap();
        let messages: Vec<Json> = saved.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let message = |role, content: &str| json!({"role": role, "content": content});
        let talk = [("user", TALK[0]), ("assistant", &said[0]), ("user", TALK[1]), ("assistant", &said[1])];
        assert_eq!(messages, talk.map(|(role, content)| message(role, content)));

        // Each waits for what the one before says: a terminal forgets keys while the editor takes it over.
        for (line, said) in [
            ("/clear", "begins anew"),
            ("/system Antworte kurz.", "next answer"),
            ("/ratio 2", "--lora FILE"),
            ("/compare", "say something first"),
            ("/nothing", "/nothing is no command"),
        ] {
            terminal.enters(line);
            terminal.shows(&[line, said, "\n>\n"]);
        }
        // The line before the five, again.
        (0..7).for_each(|_| terminal.presses("Up"));
        terminal.presses("Enter");
        let with_system = by_smoke(folder.path(), &asking, Some("Antworte kurz."), &TALK[1..2]);
        terminal.shows(&["/nothing is no command", TALK[1], &with_system[0], "\n>\n"]);

        // A conversation whose last message is a question is answered, and two lines are one message.
        let begun = folder.path().join("begun.json");
        fs::write(&begun, json!([message("user", TALK[0])]).to_string()).unwrap();
        terminal.enters(&format!("/load {}", text(&begun)));
        terminal.shows(&["1 messages of ", &said[0], "\n>\n"]);
        terminal.enters(&format!("/save {}", text(&model)));
        terminal.shows(&["there is such a file", "\n>\n"]);
        terminal.enters("Nenne\\");
        terminal.enters("drei Tiere.");
        let lines = by_smoke(folder.path(), &asking, None, &[TALK[0], "Nenne\ndrei Tiere."]);
        terminal.shows(&["drei Tiere.", &lines[1], "\n>\n"]);
        terminal.presses("C-d");
        terminal.shows(&["ended with 0"]);
    }

    #[test]
    fn an_interrupt_stops_an_answer_and_the_next_one_ends_the_chat() {
        let folder = tempfile::tempdir().unwrap();
        let model = endless_model(folder.path());
        let options = [text(&model), "-c", "60000", "--memory", "8GiB", "--greedy"];
        let Some(terminal) = start(&options, "A=B") else { return };
        terminal.shows(&["\n>\n"]);
        // In a line it is not the end, either.
        terminal.types("abc");
        terminal.presses("C-c");
        terminal.shows(&["Ctrl-C again ends the chat", "\n>\n"]);
        terminal.enters("Wer bist du?");
        let limit = Instant::now() + Duration::from_secs(60);
        let is_answering = || terminal.screen().split_once("Wer bist du?\n").is_some_and(|(_, said)| said.len() > 200);
        while !is_answering() {
            assert!(Instant::now() < limit, "no answer in\n{}", terminal.screen());
        }
        terminal.presses("C-c");
        terminal.shows(&["Wer bist du?", "Stopped.", "\n>\n"]);
        assert!(!terminal.screen().contains("ended with"));
        terminal.presses("C-c");
        terminal.shows(&["ended with 130"]);
    }

    #[test]
    fn ratios_change_while_a_model_is_talked_to_and_both_ends_are_compared() {
        let folder = tempfile::tempdir().unwrap();
        let lora = folder.path().join("vector.gguf");
        let (base, chat, cp) = (bundled("base"), bundled("chat"), bundled("cp-de"));
        let extract = ["extract", "--lora", text(&lora), "--rank", "64", "--base", text(&base), "--chat", text(&chat)];
        chatvec(extract).says(0, &[]);
        let asking = [text(&cp), "--chat-template", text(&chat), "--max-tokens", "12"];
        let by = |ratio: &str| {
            let lora = format!("{}@{ratio}", text(&lora));
            by_smoke(folder.path(), &[&asking[..], &["--lora", &lora]].concat(), None, &TALK[..1]).remove(0)
        };
        let (whole, part, none) = (by("1"), by("0.3"), by("0"));
        assert!(whole != part && part != none, "{whole} {part} {none}");
        let options = [&asking[..], &["--greedy", "--lora", text(&lora)]].concat();
        let Some(terminal) = start(&options, "A=B") else { return };
        terminal.shows(&["vector.gguf@1;", "\n>\n"]);
        terminal.enters(TALK[0]);
        terminal.shows(&[TALK[0], &whole, "\n>\n"]);
        terminal.enters("/compare");
        terminal.shows(&["/compare", "vector.gguf@1]", &whole, "alone]", &none, "\n>\n"]);
        terminal.enters("/ratio 0.3");
        terminal.shows(&["vector.gguf@0.3", "\n>\n"]);
        terminal.enters("/compare");
        terminal.shows(&["/ratio 0.3", "vector.gguf@0.3]", &part, "alone]", &none, "\n>\n"]);
        terminal.enters("/ratio 1 2");
        terminal.shows(&["2 numbers, and 1 adapters take one each", "\n>\n"]);
        terminal.enters("/quit");
        terminal.shows(&["ended with 0"]);
    }

    #[test]
    fn another_model_answers_beside_the_first_and_colours_can_be_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (model, cp) = (merged(folder.path()), bundled("cp-de"));
        let asking = |path: &Path| [text(path).to_owned(), "--max-tokens".to_owned(), "12".to_owned()];
        let by = |path: &Path, more: &[&str]| {
            let asking = asking(path);
            let options: Vec<&str> = asking.iter().map(String::as_str).chain(more.iter().copied()).collect();
            by_smoke(folder.path(), &options, None, &TALK[..1]).remove(0)
        };
        // cp has no template, and is asked in the first one's.
        let (first, second) = (by(&model, &[]), by(&cp, &["--chat-template", text(&model)]));
        assert_ne!(first, second);
        for (environment, has_styles) in
            [("NO_COLOR=1", false), ("CLICOLOR=0", false), ("CLICOLOR_FORCE=1", true), ("A=B", true)]
        {
            let asking = asking(&model);
            let mut options: Vec<&str> = asking.iter().map(String::as_str).collect();
            options.extend(["--greedy", "--against", text(&cp)]);
            let Some(terminal) = start(&options, environment) else { return };
            terminal.shows(&["\n>\n"]);
            terminal.enters(TALK[0]);
            terminal.shows(&[TALK[0], &first, "\n>\n"]);
            terminal.enters("/compare");
            terminal.shows(&["merged.gguf]", &first, "cp-de-F16.gguf]", &second, "\n>\n"]);
            let styled = terminal.tmux(&["capture-pane", "-p", "-e"]);
            assert_eq!(styled.contains("\u{1b}[1m"), has_styles, "{environment}: {}", styled.escape_debug());
            terminal.enters("/quit");
            terminal.shows(&["ended with 0"]);
        }
    }

    #[test]
    fn a_signal_at_the_prompt_gives_the_terminal_back() {
        let folder = tempfile::tempdir().unwrap();
        let model = merged(folder.path());
        let Some(terminal) = start(&[text(&model)], "A=B") else { return };
        terminal.shows(&["\n>\n"]);
        let shell = terminal.tmux(&["display-message", "-p", "#{pane_pid}"]);
        let is_raw = || {
            let tty = terminal.tmux(&["display-message", "-p", "#{pane_tty}"]);
            let stty = Command::new("stty").args(["-F", tty.trim(), "-a"]).output().unwrap();
            String::from_utf8(stty.stdout).unwrap().contains("-icanon")
        };
        assert!(is_raw());
        let killed = Command::new("pkill").args(["-TERM", "-P", shell.trim(), "chatvec"]).status();
        assert!(killed.unwrap().success());
        terminal.shows(&["ended with 130"]);
        assert!(!is_raw());
    }
}
