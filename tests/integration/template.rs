//! Chat templates against Python's jinja2 as transformers sets it up, and what a hostile one may cost.
//!
//! What Python says is in fixtures/templates, made by tests/peers/template_goldens.py.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use chatvec::chat::{MAX_SOURCE_BYTES, Message, RenderOptions, Template, TemplateError};
use chatvec::gguf::{Metadata, Value};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

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
    let name = key.trim_end_matches('+');
    Template::parse(source)?.render_at(&conversation(name), &options(name != key), now())
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

#[test]
fn what_would_take_memory_or_time_ends_in_an_error() {
    let out_of_fuel = [
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
    for source in out_of_fuel {
        let error = hostile(source);
        assert!(matches!(error, TemplateError::OutOfFuel { line: 1 | 2 }), "{source}: {error:?}");
    }
    let refused = [
        "{{ '{:1000000000}'.format('x') }}",
        "{{ range(10 ** 9)|list }}",
        "{{ 'x'|center(10 ** 9) }}",
        "{{ 'x'.ljust(10 ** 9) }}",
        "{{ lipsum(n=10 ** 9) }}",
        "{{ debug() }}",
    ];
    for source in refused {
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
