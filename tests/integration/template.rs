//! Chat templates against Python's jinja2 as transformers sets it up, and what a hostile one may
//! cost.
//!
//! What Python says is in fixtures/templates, made by tests/peers/template_goldens.py.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use chatvec::chat::{
    MAX_SOURCE_BYTES, Message, RenderOptions, Template, TemplateError, TemplateRequest, TemplateRunner, Templates,
};
use chatvec::cli::{TemplateLimits, TemplateProcess};
use chatvec::gguf::{Metadata, Value};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::support::Val;
use crate::trio::{Paths, Ran, Trio, bundled, chatvec, command, get, interruptible, names, read};

const FIXTURES: &str = "fixtures/templates";

/// 2026-07-05 09:03:07 UTC, the date of the goldens.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_783_242_187)
}

fn json(name: &str) -> Json {
    serde_json::from_slice(&fs::read(Path::new(FIXTURES).join(name)).unwrap()).unwrap()
}

fn conversation(name: &str) -> Vec<Message> {
    serde_json::from_value(json("rendered.json")["conversations"][name].clone()).unwrap()
}

fn options(add_generation_prompt: bool) -> RenderOptions<'static> {
    RenderOptions { add_generation_prompt, bos_token: "<s>", eos_token: "</s>" }
}

/// A key of the goldens is a conversation, with `+` if the prompt begins the answer.
fn render(source: &str, key: &str) -> Result<String, TemplateError> {
    render_by(&Templates::default(), source, key)
}

fn render_by(templates: &Templates, source: &str, key: &str) -> Result<String, TemplateError> {
    let name = key.trim_end_matches('+');
    templates.parse(source)?.render_at(&conversation(name), &options(name != key), now())
}

fn hostile(source: &str) -> TemplateError {
    match render(source, "turns+") {
        Ok(text) => panic!("{source} gives {} bytes", text.len()),
        Err(error) => error,
    }
}

#[test]
fn known_templates_give_pythons_prompts() {
    for (name, prompts) in json("rendered.json")["rendered"].as_object().unwrap() {
        let source = fs::read_to_string(Path::new(FIXTURES).join(name).with_added_extension("jinja")).unwrap();
        for (key, expected) in prompts.as_object().unwrap() {
            match expected.as_str() {
                Some(expected) => assert_eq!(render(&source, key).unwrap(), expected, "{name}, {key}"),
                None => assert!(matches!(render(&source, key), Err(TemplateError::Raised { .. })), "{name}, {key}"),
            }
        }
    }
}

/// With `CHATVEC_TEMPLATES=.../llama.cpp/models/templates`.
#[test]
#[ignore = "reads llama.cpp's folder of templates, which have many owners"]
fn all_templates_of_llama_cpp_give_pythons_prompts() {
    let folder = std::env::var("CHATVEC_TEMPLATES").expect("CHATVEC_TEMPLATES names the folder");
    let hash = |text: &str| Sha256::digest(text).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let mut differ = Vec::new();
    for (name, hashes) in json("hashes.json").as_object().unwrap() {
        let source = fs::read_to_string(Path::new(&folder).join(name).with_added_extension("jinja")).unwrap();
        assert_eq!(hash(&source), hashes["source"], "{name} is another version");
        for (key, expected) in hashes.as_object().unwrap().iter().filter(|(key, _)| *key != "source") {
            let same = match render(&source, key) {
                Ok(text) => expected.as_str() == Some(&hash(&text)),
                Err(_) => expected.is_null(),
            };
            if !same {
                let got = render(&source, key).map(|text| if text.len() < 9000 { text } else { String::new() });
                differ.push(format!("{name}, {key}: {got:?}"));
            }
        }
    }
    assert!(differ.is_empty(), "{} differ:\n{}", differ.len(), differ.join("\n"));
}

#[test]
fn snippets_give_pythons_text() {
    let mut differ = Vec::new();
    for (name, snippet) in json("snippets.json").as_object().unwrap() {
        let got = render(snippet["source"].as_str().unwrap(), "turns+");
        if got.as_deref().ok() != snippet["text"].as_str() {
            differ.push(format!("{name}:\n  {got:?}\n  {}", snippet["text"]));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

/// More work than a conversation can need.
const OUT_OF_FUEL: [&str; 27] = [
    "{{ 'a' * 10 ** 9 }}",
    "{% set x = 'a' * 10 ** 9 %}",
    "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s='aa') %}{% for i in range(60) %}{% set ns.s = ns.s.replace('a', 'aa') %}{% endfor %}",
    "{% set s = 'a' * 1000000 %}{{ s.replace('a', s) }}",
    "{% set s = 'a' * 1000000 %}{{ s.replace('a', s, 99999999) }}",
    "{% set s = 'a' * 1000000 %}{{ s|replace('a', s) }}",
    "{% set s = 'a' * 1000000 %}{{ s.join([1] * 100000) }}",
    "{% set s = 'a' * 1000000 %}{{ ([s] * 100000)|join }}",
    "{% set s = 'a' * 1000000 %}{{ ''.join([s] * 100000) }}",
    "{% set s = 'a' * 1000000 %}{{ ([s] * 100000)|string }}",
    "{% set s = 'a' * 1000000 %}{{ ([s] * 100000)|tojson }}",
    "{% set s = 'a' * 1000000 %}{{ ('{0}' * 10000).format(s) }}",
    "{% set s = 'a' * 1000000 %}{% set x %}{{ [s] * 100000 }}{% endset %}",
    "{% set s = 'a' * 2000000 %}{{ s.strip(s) }}",
    "{% set s = 'a ' * 1000000 %}{{ s.split()|length }}",
    "{% set s = 'a' * 1000000 %}{% for i in range(9999) %}{% if s.count('b') %}{% endif %}{% endfor %}",
    "{{ 'x\ny'|indent(10 ** 9) }}",
    "{{ [1]|tojson(indent=10 ** 9) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ [1]|batch(10 ** 9, 'x')|list }}",
    "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "{% for a in [0] * 10 ** 8 %}{% endfor %}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% macro f(n) %}{% for i in range(9) %}{% if n %}{{ f(n - 1) }}{% endif %}{% endfor %}{% endmacro %}{{ f(9) }}",
];

/// What the engine does not do at all.
const REFUSED: [&str; 6] = [
    "{{ '{:1000000000}'.format('x') }}",
    "{{ range(10 ** 9)|list }}",
    "{{ 'x'|center(10 ** 9) }}",
    "{{ 'x'.ljust(10 ** 9) }}",
    "{{ lipsum(n=10 ** 9) }}",
    "{{ debug() }}",
];

#[test]
fn what_would_take_memory_or_time_ends_in_an_error() {
    for source in OUT_OF_FUEL {
        let error = hostile(source);
        assert!(matches!(error, TemplateError::OutOfFuel { line: 1 | 2 }), "{source}: {error:?}");
    }
    for source in REFUSED {
        let error = hostile(source);
        assert!(matches!(error, TemplateError::Render { line: 1, .. }), "{source}: {error:?}");
    }
    let loops = "{% for i in range(99999) %}{{ 'a' * 99 }}{% endfor %}";
    assert!(matches!(hostile(loops), TemplateError::OutputTooLong { .. } | TemplateError::OutOfFuel { .. }));
    assert!(matches!(hostile("{{ 'a' * 3000000 }}"), TemplateError::OutputTooLong { limit } if limit < 3_000_000));
}

#[test]
fn a_namespace_cannot_come_to_hold_itself() {
    for source in [
        "{% set ns.a = ns %}",
        "{% set ns.a = [{'b': (ns,)}] %}",
        "{% set x = 1, ns %}{% set ns.a = x %}",
        "{%- set ns.a, ns.b = 1, ns -%}",
        "{% for x in [ns, ns] %}{% set ns.a = loop %}{% endfor %}",
    ] {
        let source = format!("{{% set ns = namespace() %}}{source}{{{{ ns }}}}{{{{ ns ~ ns }}}}");
        assert!(matches!(hostile(&source), TemplateError::Render { line: 1, .. }), "{source}");
    }
    let view = "{% set ns = namespace(b=1) %}{% set ns.a = ns.items() %}{% set ns.a = ns|items %}{{ ns ~ ns.a }}";
    assert!(render(view, "plain").unwrap().contains("('b', 1)"));
}

/// Also on the 2 MiB that threads have, tests among them.
#[test]
fn no_depth_overflows_the_stack() {
    let fill = |open: &str, middle: &str| open.repeat((MAX_SOURCE_BYTES - 400) / open.len()) + middle;
    for (open, close) in [("{{ ", ""), ("{{ {", ""), ("{% if 1 %}", ""), ("{% for a in [1] %}", ""), ("{% with %}", "")]
    {
        let error = hostile(&fill(open, close));
        assert!(matches!(error, TemplateError::Syntax { line: 1, .. }), "{open}: {error:?}");
    }
    for open in ["(", "[", "{1:", "not ", "-", "1 if ", "x(", "1+", "1~", "2**", "1<", "1 or ", "1 if 1 else ", "x|"] {
        let error = hostile(&format!("{{{{ {} }}}}", fill(open, "1")));
        assert!(matches!(error, TemplateError::Syntax { line: 1, .. }), "{open}: {error:?}");
    }
    let deep = format!("{{%set x={}x{}%}}", "[".repeat(70), "]".repeat(70));
    for last in ["{{ x }}", "{{ x ~ 1 }}", "{{ x == [x] }}", "{{ x < [x] }}", "{{ x in [[x]] }}", "{{ {x: 1} }}"] {
        assert!(!render(&fill(&deep, last), "turns").unwrap().is_empty(), "{last}");
    }
    for last in ["{{ x|tojson }}", "{% set ns = namespace() %}{% set ns.a = x %}"] {
        let error = hostile(&fill(&deep, last));
        assert!(matches!(&error, TemplateError::Render { message, .. } if message.contains("64 levels")), "{error:?}");
    }
    assert_eq!(render(&(fill("{% if 0 %}{% else %}{% endif %}", "") + "a"), "plain").unwrap(), "a");
    let branches = fill("{% elif 1 %}", "{% endif %}");
    assert_eq!(render(&format!("{{% if 0 %}}{branches}a"), "plain").unwrap(), "a");
    for endless in [
        "{% macro f(x) %}{{ f([x]) }}{% endmacro %}{{ f(1) }}",
        "{% for x in [1] recursive %}{{ loop([[x]]) }}{% endfor %}",
        "{% include 'chat_template' %}",
        "{% import 'chat_template' as t %}",
        "{% block a %}{{ self.a() }}{% endblock %}",
    ] {
        assert!(matches!(hostile(endless), TemplateError::Recursion { line: 1 }), "{endless}");
    }
}

#[test]
fn what_the_engine_panics_over_is_an_error() {
    for source in ["{{ '%(é'|format(1) }}", "{{ '{0[é]}'.format('a') }}"] {
        assert!(matches!(hostile(source), TemplateError::Broken | TemplateError::Render { .. }), "{source}");
    }
}

#[test]
fn no_file_is_read() {
    for source in ["{% include '/etc/hostname' %}", "{% import 'Cargo.toml' as c %}", "{% extends 'Cargo.toml' %}"] {
        let error = hostile(source);
        assert!(matches!(&error, TemplateError::Render { message, .. } if message.contains("not")), "{error:?}");
    }
}

#[test]
fn errors_say_where_and_what() {
    let syntax = Template::parse("a\n\n{% if %}").unwrap_err();
    assert!(matches!(syntax, TemplateError::Syntax { line: 3, .. }), "{syntax}");
    let raised = hostile("{% if messages|length > 1 %}\n{{ raise_exception('Only ' ~ 1) }}{% endif %}");
    assert!(matches!(&raised, TemplateError::Raised { message } if message == "Only 1"), "{raised}");
    let inside =
        hostile("{% macro f() %}{{ raise_exception('no') }}{% endmacro %}{% filter upper %}{{ f() }}{% endfilter %}");
    assert!(matches!(&inside, TemplateError::Raised { message } if message == "no"), "{inside}");
    let undefined = hostile("a\n{{ x.y.z }}");
    assert!(matches!(undefined, TemplateError::Render { line: 2, .. }), "{undefined}");
    let unknown = hostile("\n\n{{ 'a'|nothing }}");
    assert_eq!(unknown.to_string(), "line 3 of the chat template: unknown filter: filter nothing is unknown");
    let long = Template::parse(&" ".repeat(MAX_SOURCE_BYTES + 1)).unwrap_err();
    assert!(matches!(long, TemplateError::TooLong { len } if len == MAX_SOURCE_BYTES + 1), "{long}");
}

#[test]
fn chatml_is_what_models_without_a_template_get() {
    let turn = |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
    let messages = [turn("system", "S"), turn("user", "  a\n")];
    let prompt = Template::chatml().render(&messages, &options(true)).unwrap();
    assert_eq!(prompt, "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n  a\n<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(
        Template::chatml().render(&messages[..1], &options(false)).unwrap(),
        "<|im_start|>system\nS<|im_end|>\n"
    );
}

#[test]
fn metadata_without_a_template_have_none() {
    let mut metadata = Metadata::default();
    assert!(Template::from_metadata(&metadata).unwrap().is_none());
    let mut set = |value: &[u8]| {
        metadata.set("tokenizer.chat_template", Value::String(value.into()));
        Template::from_metadata(&metadata)
    };
    assert!(set(b" \n").unwrap().is_none());
    assert_eq!(set(b"{{ bos_token }}a").unwrap().unwrap().render(&[], &options(false)).unwrap(), "<s>a");
    assert!(matches!(set(b"{{ '\xff' }}"), Err(TemplateError::NotUtf8 { offset: 4, .. })));
    assert!(matches!(set(b"{{"), Err(TemplateError::Syntax { line: 1, .. })));
}

#[test]
fn long_conversations_have_fuel_for_known_templates() {
    let mut messages = Vec::new();
    for i in 0..301 {
        let role = ["user", "assistant"][i % 2].to_owned();
        messages.push(Message { role, content: format!("{i} ").repeat(200) });
    }
    for name in json("rendered.json")["rendered"].as_object().unwrap().keys() {
        let source = fs::read_to_string(Path::new(FIXTURES).join(name).with_added_extension("jinja")).unwrap();
        let prompt = Template::parse(&source).unwrap().render_at(&messages, &options(true), now()).unwrap();
        assert!(prompt.contains(messages[300].content.trim()), "{name}");
    }
}

/// A process of the command that renders, within these limits.
fn process(limits: TemplateLimits) -> Templates {
    Templates::by(Arc::new(TemplateProcess::new(env!("CARGO_BIN_EXE_chatvec").into(), limits)))
}

/// Limits that a slow machine does not meet.
fn wide() -> TemplateLimits {
    let [render, together, free] = [60, 600, 60].map(Duration::from_secs);
    TemplateLimits { render, together, free, ..TemplateLimits::default() }
}

#[test]
fn another_process_gives_what_this_one_gives() {
    let templates = process(wide());
    let mut asked: Vec<(String, String)> = Vec::new();
    for (name, prompts) in json("rendered.json")["rendered"].as_object().unwrap() {
        let source = fs::read_to_string(Path::new(FIXTURES).join(name).with_added_extension("jinja")).unwrap();
        asked.extend(prompts.as_object().unwrap().keys().map(|key| (source.clone(), key.clone())));
    }
    let turns = |source: &str| (source.to_owned(), "turns+".to_owned());
    asked.extend(json("snippets.json").as_object().unwrap().values().map(|s| turns(s["source"].as_str().unwrap())));
    asked.extend(OUT_OF_FUEL.iter().chain(&REFUSED).map(|source| turns(source)));
    let deep = |open: &str, close: &str| turns(&(open.repeat((MAX_SOURCE_BYTES - 400) / open.len()) + close));
    asked.extend([deep("{% if 1 %}", ""), deep("{{ (", ""), deep("{%set x=[[[x]]]%}", "{{ x }}{{ x == [x] }}")]);
    asked.extend([
        turns("{{ 'a' * 3000000 }}"),
        turns("{{ '%(é'|format(1) }}"),
        turns("\u{0}\u{1}\"\\é\u{2028}"),
        turns(""),
    ]);
    asked.extend([turns("{{ f"), turns("{{ raise_exception('no\\n') }}"), turns(&" ".repeat(MAX_SOURCE_BYTES + 1))]);
    assert!(asked.len() > 150, "{}", asked.len());
    for (source, key) in &asked {
        let (here, there) = (render(source, key), render_by(&templates, source, key));
        assert_eq!(format!("{there:?}"), format!("{here:?}"), "{key}: {source:.200}");
    }
}

/// Lists that each hold the one before eight times, and the text of the last, which is eight times
/// as long for each: the engine does not count what that takes. Other engines need a second or two
/// for eight of them, and 200 MB.
fn lists_of_lists(n: usize) -> String {
    let name = |i: usize| char::from(b'a' + i as u8);
    let list = |i| format!("{{% set {}=[{}] %}}", name(i + 1), vec![name(i).to_string(); 8].join(","));
    let lists: String = (0..n).map(list).collect();
    format!("{{% set a='aaaaaaaa' %}}{lists}{{{{ ({} ~ '')|length }}}}", name(n))
}

#[test]
fn another_process_is_ended_at_its_bound_of_time() {
    let limits = TemplateLimits { render: Duration::from_millis(100), ..wide() };
    let templates = process(limits);
    let slow = lists_of_lists(8);
    assert!(slow.len() < 350);
    let rendered = |template: &Template| template.render(&conversation("turns"), &options(true));
    // A machine that is slow to start a process finds it late before it renders.
    let error = templates.parse(&slow).and_then(|template| rendered(&template)).unwrap_err();
    assert!(matches!(error, TemplateError::Time { limit } if limit == limits.render), "{error}");
    assert!(error.to_string().contains("0.1 s"), "{error}");
    // It is not tried again, and others are.
    assert!(templates.parse(&slow).unwrap_err().is_given_up());
    let plain = process(wide()).parse("{{ messages|length }}").unwrap();
    assert_eq!(rendered(&plain).unwrap(), conversation("turns").len().to_string());
    // Many that each keep to the bound of one have a bound together.
    let [render, together, free] = [60_000, 300, 0].map(Duration::from_millis);
    let templates = process(TemplateLimits { render, together, free, ..wide() });
    let errors = (0..100).map(|i| {
        let template = templates.parse(&format!("{{# {i} #}}{}", lists_of_lists(6)))?;
        rendered(&template).map(drop)
    });
    assert!(errors.into_iter().any(|e| matches!(e, Err(TemplateError::Time { .. }))));
}

#[cfg(target_os = "linux")]
#[test]
fn another_process_is_ended_at_its_bound_of_memory() {
    let templates = process(TemplateLimits { memory: 92 << 20, ..wide() });
    let rendered = |source: &str| templates.parse(source)?.render(&conversation("turns"), &options(true));
    let error = rendered(&lists_of_lists(7)).unwrap_err();
    assert!(matches!(error, TemplateError::Memory { limit } if limit == 92 << 20), "{error:?}");
    assert!(error.to_string().contains("92 MiB"), "{error}");
    assert_eq!(rendered("{{ messages|length }}").unwrap(), conversation("turns").len().to_string());
    // A limit that leaves no room for the process itself is no fault of the template.
    let templates = process(TemplateLimits { memory: 1 << 20, ..wide() });
    let error = templates.parse("{{ messages|length }}").unwrap_err();
    assert!(error.is_bound(), "{error:?}");
}

#[test]
fn a_process_that_cannot_be_had_is_said_and_waits_for_nobody() {
    let gone = Templates::by(Arc::new(TemplateProcess::new(PathBuf::from("no/such/program"), wide())));
    let error = gone.parse("{{ 1 }}").unwrap_err();
    assert!(matches!(&error, TemplateError::Process { reason } if reason.contains("cannot be started")), "{error}");
    // A program that ends without an answer.
    let other = Templates::by(Arc::new(TemplateProcess::new(std::env::current_exe().unwrap(), wide())));
    let error = other.parse("{{ 1 }}").unwrap_err();
    assert!(matches!(&error, TemplateError::Process { .. }), "{error}");
}

#[test]
fn a_library_can_render_where_it_likes() {
    #[derive(Debug)]
    struct Loud;
    impl TemplateRunner for Loud {
        fn run(&self, request: &TemplateRequest) -> Result<String, TemplateError> {
            Ok(request.run(&mut None)?.to_uppercase())
        }
    }
    let template = Templates::by(Arc::new(Loud)).parse("{{ messages[0].content }}").unwrap();
    let messages = [Message { role: "user".to_owned(), content: "hello".to_owned() }];
    assert_eq!(template.render(&messages, &options(true)).unwrap(), "HELLO");
}

/// The chat model of the small trio with a template that takes too much, and the bundled one.
fn hostile_chats(folder: &Path) -> (Paths, PathBuf) {
    let mut trio = Trio::small();
    let mut chat = read(&bundled("chat"));
    let slow = Val::str(&(lists_of_lists(8) + "<|im_end|>"));
    for draft in [&mut trio.chat, &mut chat] {
        draft.set("tokenizer.chat_template", slow.clone());
    }
    (trio.write(folder), chat.write(folder, "talker.gguf"))
}

/// The words by which a user finds the template that took too much: of time on a slow machine, of
/// memory on a fast one.
const STOPPED: [&str; 3] = ["tokenizer.chat_template", "the chat template takes more than ", "was stopped"];

#[test]
fn a_template_that_takes_too_much_is_stopped_by_every_command_and_said() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (paths, talker) = hostile_chats(folder.path());
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    // Inspect says so and goes on, and tokens in the template's text are found.
    let ran = chatvec(["inspect", "--chat", "--json", &text(&talker)]);
    let report = ran.says(0, &[]).json();
    let audit = &report["chat"];
    let problems = audit["problems"].to_string();
    assert!(STOPPED.iter().all(|word| problems.contains(word)) && problems.contains("unchecked"), "{problems}");
    let needed = audit["tokens"].as_array().unwrap().iter().find(|t| t["text"] == "<|im_end|>").unwrap();
    assert_eq!(needed["is_needed"], true);
    // A merge and a patch are made.
    paths.command(&at("out.gguf"), &[]).says(0, &STOPPED).says(0, &[&text(&paths.chat), "--special-tokens"]);
    let [base, chat, patch] = [&paths.base, &paths.chat, &at("patch.gguf")].map(|path| text(path));
    chatvec(["extract", "--base", &base, "--chat", &chat, "-o", &patch]).says(0, &STOPPED).says(0, &[&chat]);
    // What has to talk does not.
    let ran = chatvec(["smoke", "--json", "--limit", "1", "--max-tokens", "4", &text(&talker)]);
    let checks = ran.says(11, &[]).json()["checks"].to_string();
    assert!(STOPPED.iter().all(|word| checks.contains(word)) && checks.contains("--chat-template"), "{checks}");
    let jinja = at("slow.jinja");
    fs::write(&jinja, lists_of_lists(8)).unwrap();
    let ran = chatvec([
        "smoke",
        "--json",
        "--limit",
        "1",
        "--max-tokens",
        "4",
        "--chat-template",
        &text(&jinja),
        &text(&bundled("chat")),
    ]);
    ran.says(11, &[]);
}

#[test]
fn no_template_renders_nothing_and_says_what_is_unchecked() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (paths, talker) = hostile_chats(folder.path());
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let [base, chat, cp, patch, out] =
        [&paths.base, &paths.chat, &paths.cp, &at("p.gguf"), &at("o.gguf")].map(|p| text(p));
    let skipped = ["tokenizer.chat_template", "is not rendered (--no-template)", &chat];
    paths.command(&at("out.gguf"), &["--no-template"]).says(0, &skipped);
    chatvec(["extract", "--base", &base, "--chat", &chat, "-o", &patch, "--no-template"]).says(0, &skipped);
    let skipped = ["tokenizer.chat_template", "is not rendered (--no-template)", &patch];
    chatvec(["apply", "--model", &cp, &patch, "-o", &out, "--no-template"]).says(0, &skipped);
    let ran = chatvec(["inspect", "--chat", "--no-template", &text(&talker)]);
    assert!(ran.says(0, &[]).out.contains("not rendered (--no-template)"), "{}", ran.out);
    // An output cannot be asked without.
    paths.command(&at("new.gguf"), &["--no-template", "--smoke"]).says(2, &["--no-template", "--smoke"]);
    assert_eq!(
        names(folder.path()),
        ["base.gguf", "chat.gguf", "cp.gguf", "o.gguf", "out.gguf", "p.gguf", "talker.gguf"]
    );
    // Tokens that the template names are found without rendering it: the output is that of a merge
    // that renders.
    let mut trio = Trio::small();
    trio.chat.set("tokenizer.chat_template", Val::str(crate::trio::TEMPLATE));
    let paths = trio.write(folder.path());
    let special = |options: &[&str]| {
        paths.command(&at("out.gguf"), &[&["--overwrite"], options].concat()).says(0, &[]);
        get(&read(&at("out.gguf")), "chatvec.special_tokens").cloned()
    };
    assert_eq!(special(&["--no-template"]), special(&[]));
}

/// The process that a command renders in, once there is one.
#[cfg(target_os = "linux")]
fn child_of(pid: u32) -> u32 {
    for _ in 0..600 {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        if let Some(child) = children.split_whitespace().next() {
            return child.parse().unwrap();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{pid} started no process");
}

/// Whether a process that is no child of this one goes away.
#[cfg(target_os = "linux")]
fn ends(pid: u32) -> bool {
    let is_there = || {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // A zombie waits for whoever inherited it.
        !state.is_empty() && !state.rsplit(')').next().unwrap_or_default().starts_with(" Z")
    };
    (0..600).any(|_| {
        let is_there = is_there();
        if is_there {
            std::thread::sleep(Duration::from_millis(50));
        }
        !is_there
    })
}

#[cfg(target_os = "linux")]
#[test]
fn the_process_ends_with_the_command_however_that_ends() {
    let folder = tempfile::tempdir().unwrap();
    let (_, talker) = hostile_chats(folder.path());
    for (signal, code) in [("INT", Some(130)), ("TERM", Some(130)), ("KILL", None)] {
        let mut inspect = interruptible(["inspect", "--chat", talker.to_str().unwrap()]);
        inspect.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut inspect = inspect.spawn().unwrap();
        let child = child_of(inspect.id());
        // The shell's own: a bare machine has no program of that name.
        let kill = format!("kill -{signal} {}", inspect.id());
        assert!(std::process::Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        assert_eq!(inspect.wait().unwrap().code(), code, "{signal}");
        assert!(ends(child), "{signal}: process {child} is left");
    }
    // A command that comes to its end leaves none either.
    let ran = Ran::new(command(["inspect", "--chat", bundled("chat").to_str().unwrap()]).output().unwrap());
    ran.says(0, &[]);
}

#[test]
fn a_template_that_cannot_be_used_is_said_by_who_hands_it_on() {
    let folder = tempfile::tempdir().unwrap();
    for (source, word) in [("{% for m in %}{{ m }}{% endfor %}", "syntax"), ("{{ missing.of.nothing }}", "undefined")] {
        let mut trio = crate::trio::Trio::small();
        trio.chat.set("tokenizer.chat_template", Val::str(source));
        let (paths, out) = (trio.write(folder.path()), folder.path().join("out.gguf"));
        let ran = paths.command(&out, &["--type", "F16", "--overwrite"]);
        ran.says(0, &["warning", "chat.gguf: tokenizer.chat_template", word]);
        let [base, chat, out] = [&paths.base, &paths.chat, &out].map(|path| path.to_str().unwrap());
        let ran = chatvec(["extract", "--overwrite", "--base", base, "--chat", chat, "-o", out]);
        ran.says(0, &["warning", "chat.gguf: tokenizer.chat_template", word]);
    }
    // One that refuses a conversation or another, as many do, is not said.
    let mut trio = crate::trio::Trio::small();
    let refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for m in messages %}\
                   <|im_start|>{{ m.content }}<|im_end|>{% endfor %}";
    trio.chat.set("tokenizer.chat_template", Val::str(refuses));
    let ran = trio.write(folder.path()).command(&folder.path().join("out.gguf"), &["--type", "F16", "--overwrite"]);
    assert!(ran.code == 0 && !ran.err.contains("chat_template"), "{}", ran.err);
}
