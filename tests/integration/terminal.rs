//! What files, paths and arguments say cannot act on the terminal, nor hide there, nor pass for a
//! line of ours.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use chatvec::cli::Exit;

use crate::support::{Draft, Tensor, Val, kind, valid};
use crate::trio::{Ran, Trio, bundled, chatvec, read};

/// Of each kind of what must not come out, one: C0 with a whole sequence, DEL, C1, an override of
/// the direction, a mark and an isolate, zero width, byte order mark, the separators of lines and
/// paragraphs, a tag, and a line that is not ours.
const HOSTILE: [&str; 14] = [
    "\u{1b}[31m",
    "\u{7}",
    "\r",
    "\t",
    "\u{7f}",
    "\u{9b}5m",
    "\u{202e}",
    "\u{200f}",
    "\u{2066}",
    "\u{200b}",
    "\u{feff}",
    "\u{2028}",
    "\u{2029}",
    "\u{e0041}",
];

/// By which a line that is not ours would begin.
const FORGED: &str = "FORGED";

/// All of it, in 52 bytes.
fn hostile() -> String {
    HOSTILE.concat() + "\n" + FORGED
}

/// A name that a tensor can have with some of it.
fn name(part: &[&str]) -> String {
    format!("blk.0.{}\n{FORGED}", part.concat())
}

#[track_caller]
fn is_harmless(what: &str, ran: &Ran) {
    for (stream, text) in [("stdout", &ran.out), ("stderr", &ran.err)] {
        for c in text.chars().filter(|c| *c != '\n') {
            let is_control = u32::from(c) < 0x20 || (0x7f..0xa0).contains(&u32::from(c));
            let is_listed = HOSTILE.concat().chars().any(|bad| bad == c && !bad.is_ascii_graphic());
            assert!(!is_control && !is_listed, "{what}: {} on {stream}:\n{}", c.escape_unicode(), text.escape_debug());
        }
        let is_forged = text.lines().any(|line| line.trim_start().starts_with(FORGED));
        assert!(!is_forged, "{what}: a forged line on {stream}:\n{text}");
    }
    let known: Vec<i32> = Exit::all().map(|(code, _)| code.into()).collect();
    assert!(known.contains(&ran.code), "{what}: {ran:#?}");
}

/// Puts it into every string: a key, values and arrays, tensors, a token, the template.
fn spoil(draft: &mut Draft, role: &str) {
    let text = hostile();
    draft.set(&format!("general.{text}"), Val::str(&text));
    draft.set("general.name", Val::Str([text.as_bytes(), b"\xff\x9b\x80", role.as_bytes()].concat()));
    draft.set("general.languages", Val::strs([&text]));
    draft.set("general.license", Val::str(&text));
    draft.set("llama.rope.scaling.type", Val::Str([role.as_bytes(), text.as_bytes()].concat()));
    draft.set("tokenizer.chat_template", Val::str(&format!("{text}{{{{ messages[0].content }}}}{role}{{% {text} %}}")));
    for (key, value) in &mut draft.keys {
        if key == b"tokenizer.ggml.tokens"
            && let Val::Array(kind::STRING, tokens) = value
            && let Some(last) = tokens.last_mut()
        {
            *last = Val::str(&text);
        }
    }
    for (i, part) in HOSTILE.chunks(7).enumerate() {
        let data = (0..2).flat_map(|j| (0.5f32 + (i + j) as f32 + role.len() as f32).to_le_bytes()).collect();
        draft.tensors.push(Tensor { data: Some(data), ..Tensor::new(&name(part), &[2], 0) });
    }
}

/// Runs a command, also with `--json`, and counts where something of the text was shown.
struct Tried {
    n_shown: usize,
}

impl Tried {
    #[track_caller]
    fn run<S: Into<OsString> + Clone>(&mut self, args: &[S]) {
        let args: Vec<OsString> = args.iter().cloned().map(Into::into).collect();
        let what = format!("{args:?}");
        let ran = chatvec(&args);
        is_harmless(&what, &ran);
        self.n_shown += usize::from((ran.out + &ran.err).contains(FORGED));
        let ran = chatvec(args.iter().cloned().chain(["--json".into()]));
        is_harmless(&what, &ran);
        if !ran.out.is_empty() {
            let json: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
            assert!(json.is_object(), "{what}");
        }
    }
}

#[test]
fn nothing_that_a_file_says_acts_on_the_terminal() {
    let outer = tempfile::tempdir().unwrap();
    // A path has no NUL and no slash; some systems have no line feed or no control in it either.
    let mut folder = outer.path().join(hostile());
    if fs::create_dir(&folder).is_err() {
        folder = outer.path().to_owned();
    }
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let mut trio = Trio::small();
    for (draft, role) in [(&mut trio.base, "base"), (&mut trio.chat, "a chat"), (&mut trio.cp, "the cp")] {
        spoil(draft, role);
    }
    trio.write(&folder);
    let mut tried = Tried { n_shown: 0 };
    let (base, chat, cp) = (at("base.gguf"), at("chat.gguf"), at("cp.gguf"));
    let (out, patch) = (at("out.gguf"), at("patch.gguf"));
    for file in [&base, &chat, &cp] {
        tried.run(&["inspect", "--tensors", file]);
        tried.run(&["inspect", "--chat", file]);
        tried.run(&["smoke", file]);
    }
    let merge = ["merge", "--force", "--base", &base, "--chat", &chat, "--model", &cp, "-o", &out, "--overwrite"];
    tried.run(&merge);
    tried.run(&[&merge[..], &["--dry-run"]].concat());
    tried.run(&[&merge[..], &["--special-tokens", "<none>"]].concat());
    tried.run(&["merge", "--recipe", &out, "-o", &at("again.gguf"), "--overwrite"]);
    tried.run(&["extract", "--base", &base, "--chat", &chat, "-o", &patch, "--overwrite"]);
    tried.run(&["extract", "--base", &base, "--chat", &chat, "-o", &at("svd.gguf"), "--size", "0.5bpw", "--overwrite"]);
    tried.run(&["extract", "--base", &base, "--chat", &chat, "--lora", &at("lora.gguf"), "--overwrite"]);
    tried.run(&["apply", "--model", &cp, &patch, "-o", &out, "--overwrite"]);
    tried.run(&["inspect", "--tensors", &patch]);
    tried.run(&["inspect", "--tensors", &at("lora.gguf")]);
    tried.run(&["compare", &cp, &chat, "--base", &base, "--chat", &chat]);
    tried.run(&["quantize", &cp, "-o", &out, "--overwrite", "--type", "Q8_0"]);
    tried.run(&["quantize", &cp, "--dry-run", "--type", "Q8_0"]);
    // What is not the base names what differs; so does damage.
    tried.run(&["verify", &patch, "--base", &cp, "--chat", &base]);
    let mut bytes = fs::read(&patch).unwrap();
    bytes.iter_mut().rev().take(4000).step_by(5).for_each(|byte| *byte ^= 1);
    fs::write(at("damaged.gguf"), bytes).unwrap();
    tried.run(&["verify", &at("damaged.gguf")]);
    tried.run(&["apply", "--model", &cp, &at("damaged.gguf"), "-o", &out, "--overwrite"]);
    assert!(tried.n_shown > 20, "only {} commands showed anything", tried.n_shown);
}

#[test]
fn nothing_that_texts_and_arguments_say_acts_on_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let text = hostile();
    let mut tried = Tried { n_shown: 0 };
    let chat = bundled("chat");
    let chat = chat.to_str().unwrap();

    // Prompts, recipes, types, templates, texts: right ones and broken ones.
    let quoted = serde_json::to_string(&text).unwrap();
    let prompt = format!(
        "{{\"id\": {quoted}, \"kind\": {quoted}, \"language\": \"de\", \"messages\": [{{\"role\": \"user\", \"content\": {quoted}}}]}}\n"
    );
    fs::write(at("prompts.jsonl"), &prompt).unwrap();
    fs::write(at("broken.jsonl"), prompt.replacen('{', &format!("{{\"{FORGED}\u{202e}\": "), 1)).unwrap();
    for prompts in ["prompts.jsonl", "broken.jsonl"] {
        tried.run(&["smoke", chat, "--answers", "--max-tokens", "8", "--prompts", &at(prompts)]);
    }
    for (name, recipe) in [
        ("a.toml", format!("model = {quoted}\n[[vectors]]\npatch = {quoted}\n")),
        ("b.toml", format!("{text} = 1\n")),
        ("c.toml", format!("model = \"x\"\n\"{FORGED}\\u202e\\u001b\" = 1\n")),
        ("a.yml", format!("merge_method: {quoted}\nmodels: [{{model: {quoted}}}]\n")),
        ("b.yml", format!("merge_method: ties\nmodels:\n  - {{model: \"x\n{text}\n")),
    ] {
        fs::write(at(name), recipe).unwrap();
        tried.run(&["merge", "--recipe", &at(name), "-o", &at("out.gguf")]);
    }
    fs::write(at("types.txt"), &text).unwrap();
    tried.run(&["quantize", chat, "--dry-run", "--type", "Q8_0", "--tensor-type-file", &at("types.txt")]);
    fs::write(at("template.jinja"), format!("{{{{ raise_exception({quoted}) }}}}")).unwrap();
    tried.run(&["smoke", chat, "--limit", "1", "--max-tokens", "4", "--chat-template", &at("template.jinja")]);
    fs::write(at("template.jinja"), format!("{{% if\n{text}")).unwrap();
    tried.run(&["smoke", chat, "--limit", "1", "--chat-template", &at("template.jinja")]);
    let mut matrix = valid();
    matrix.set("general.type", Val::str(&text));
    let matrix = matrix.write(folder.path(), "imatrix.gguf");
    tried.run(&["quantize", chat, "--dry-run", "--type", "Q4_K", "--imatrix", matrix.to_str().unwrap()]);
    let mut draft = read(Path::new(chat));
    draft.keys.retain(|(key, _)| key != b"general.architecture");
    draft.set("general.architecture", Val::str(&text));
    let odd = draft.write(folder.path(), "odd.gguf");
    tried.run(&["smoke", odd.to_str().unwrap()]);

    // Arguments that are wrong, and files that are not there.
    for args in [
        &["inspect", &text][..],
        &["inspect", chat, &text],
        &[&text],
        &["merge", &format!("--{text}")],
        &["merge", "--threads", &text],
        &["merge", "--memory", &text],
        &["merge", &format!("--memory={text}")],
        &["quantize", chat, "-o", &text, "--type", &text],
        &["quantize", chat, "--dry-run", "--type", "Q8_0", "--tensor-type", &text],
        &["extract", "--base", chat, "--chat", chat, "-o", "x", "--encoding", &text],
        &["smoke", chat, "--threshold", &text],
        &["smoke", chat, "--language", &text],
        &["apply", "--model", chat, &text, "-o", "x"],
        &["merge", "--model", chat, "--vector", &text, "-o", "x"],
        &["verify", &text],
    ] {
        tried.run(args);
    }
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStringExt as _;
        let odd = OsString::from_vec(b"\xff\x1b[2J\xc2\x9b\nFORGED".to_vec());
        tried.run(&["inspect".into(), odd.clone()]);
        tried.run(&["quantize".into(), chat.into(), "--type".into(), odd.clone(), "-o".into(), odd]);
    }
    assert!(tried.n_shown > 20, "only {} commands showed anything", tried.n_shown);
}

#[test]
fn answers_and_names_in_every_script_show_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let texts = ["Grüße naïve", "日本語 한국어", "שלום", "می\u{200c}خواهم", "क्\u{200d}ष", "👩\u{200d}🚀"];
    let mut draft = valid();
    draft.set("general.name", Val::str(&texts.join(" ")));
    let path = draft.write(folder.path(), "many.gguf");
    for json in [&[][..], &["--json"]] {
        let ran = chatvec([&["inspect", path.to_str().unwrap()], json].concat());
        assert!(texts.iter().all(|text| ran.out.contains(text)), "{ran:#?}");
    }
}
