//! The dialect check against what the engines were measured to do (fixtures/templates/dialects.json, made by
//! tests/peers/dialects.py).

use std::fs;

use chatvec::chat::dialect::{Dialects, Engine, Finding, MAX_SOURCE_BYTES, Verdict, check};
use chatvec::chat::{Message, RenderAs, RenderOptions, Template};
use serde_json::Value as Json;

use crate::support::Val;
use crate::trio::{Paths, Trio, bundled, chatvec, get};

const ENGINES: [(Engine, &str); 3] = [
    (Engine::Transformers, "transformers"),
    (Engine::LlamaCpp, "llama.cpp"),
    (Engine::HuggingfaceJs, "huggingface.js"),
];

fn truth() -> Json {
    serde_json::from_slice(&fs::read("fixtures/templates/dialects.json").unwrap()).unwrap()
}

fn verdict(measured: &Json) -> Option<Verdict> {
    match measured.as_str() {
        Some("parse") => Some(Verdict::RefusesToParse),
        Some("render") => Some(Verdict::RefusesToRender),
        Some("otherwise") => Some(Verdict::RendersOtherwise),
        _ => None,
    }
}

/// A line for each engine of which the check says something else than was measured.
fn wrong(name: &str, source: &str, measured: &Json) -> Vec<String> {
    let found = check(source);
    let mut out = Vec::new();
    // Where jinja2 cannot parse, nothing is said of the others.
    let checked = if found.findings.iter().any(|f| f.construct == "syntax") { &ENGINES[..1] } else { &ENGINES[..] };
    for &(engine, key) in checked {
        let (said, is) = (found.worst(engine), verdict(&measured[key]));
        if said != is {
            let constructs: Vec<_> =
                found.findings.iter().filter(|f| f.engine == engine).map(|f| &f.construct).collect();
            out.push(format!("{name}: {engine}: said {said:?} by {constructs:?}, is {is:?}"));
        }
    }
    // Of the newer llama.cpp the check says which differences are no more.
    let lasting = |found: &Dialects| {
        let lasting = |f: &&Finding| f.engine == Engine::LlamaCpp && f.mended.is_none();
        found.findings.iter().filter(lasting).map(|f| f.verdict).max()
    };
    let (said, is) = (lasting(&found), verdict(&measured["llama.cpp newer"]));
    if said != is && checked.len() > 1 {
        out.push(format!("{name}: newer llama.cpp: said {said:?}, is {is:?}"));
    }
    out
}

#[test]
fn small_templates_get_the_verdicts_that_were_measured() {
    let truth = truth();
    let snippets = truth["snippets"].as_object().unwrap();
    assert!(snippets.len() >= 60);
    let wrong: Vec<_> =
        snippets.iter().flat_map(|(name, it)| wrong(name, it["source"].as_str().unwrap(), it)).collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), snippets.len(), wrong.join("\n"));
}

/// With `CHATVEC_TEMPLATES=.../llama.cpp/models/templates`.
#[test]
#[ignore = "reads llama.cpp's folder of templates, which have many owners"]
fn templates_of_llama_cpp_get_the_verdicts_that_were_measured() {
    let folder = std::env::var("CHATVEC_TEMPLATES").expect("CHATVEC_TEMPLATES names the folder");
    let truth = truth();
    let mut wrong_ones = Vec::new();
    for (name, it) in truth["templates"].as_object().unwrap() {
        let source = fs::read_to_string(format!("{folder}/{name}.jinja")).unwrap();
        wrong_ones.extend(wrong(name, &source, it));
        if !check(&source).is_complete {
            wrong_ones.push(format!("{name}: not looked at to its end"));
        }
    }
    assert!(wrong_ones.is_empty(), "{}:\n{}", wrong_ones.len(), wrong_ones.join("\n"));
}

#[test]
fn places_are_lines_and_characters_of_the_template_as_it_is() {
    let places = |source: &str, construct: &str| -> Vec<(usize, usize)> {
        let found = check(source);
        let of = found.findings.iter().filter(|f| f.engine == Engine::LlamaCpp && f.construct == construct);
        of.map(|f| (f.line, f.column)).collect()
    };
    assert_eq!(places("<x>{{ 7 // 2 }}", "floor-division"), [(1, 9)]);
    assert_eq!(places("äöü\n{{ 'ß' }}{{ 7 // 2 }}\n{{ 7\n// 2 }}", "floor-division"), [(2, 15), (4, 1)]);
    assert_eq!(places("a\r\nb\rc{{ 7 // 2 }}", "floor-division"), [(3, 7)]);
    assert_eq!(places("{# {{ 7 // 2 }} #}{% raw %}{{ 7 // 2 }}{% endraw %}{{ '7 // 2' }}", "floor-division"), []);
    assert_eq!(places("<x>{{ messages[0].content | wordcount }}", "missing-filter wordcount"), [(1, 29)]);
    assert_eq!(places("<x>{{ messages[0].content.zfill(3) }}", "missing-method zfill"), [(1, 27)]);
}

#[test]
fn findings_are_said_in_words_and_as_json() {
    let found = check("<x>{{ 7 // 2 }}{% set a = 0 %}{% for i in [1, 2] %}{{ a }}{% set a = i %}{% endfor %}");
    let said = found.to_string();
    let first =
        "1:9: llama.cpp refuses to parse: floor-division: use `(a / b) | int` for numbers that are not negative\n";
    assert!(said.starts_with(first), "{said}");
    assert!(said.contains(
        "set-in-loop: set it at the top of the loop's body, or keep it in a `namespace` (no longer from b12032 on)"
    ));
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["findings"][0]["verdict"], "refuses-to-parse");
    assert_eq!(json["findings"][0]["engine"], "llama-cpp");
    assert_eq!(json["is_complete"], true);
}
fn fill(begin: &str, part: &str, end: &str) -> String {
    let times = (MAX_SOURCE_BYTES - begin.len() - end.len()) / part.len();
    format!("{begin}{}{end}", part.repeat(times))
}

fn nested(open: &str, middle: &str, close: &str) -> String {
    let times = (MAX_SOURCE_BYTES - middle.len()) / (open.len() + close.len());
    format!("{}{middle}{}", open.repeat(times), close.repeat(times))
}

#[test]
fn nesting_and_length_are_bounded() {
    let deep = |open, middle, close| format!("{{{{ {} }}}}", nested(open, middle, close).split_at(30_000).0);
    let sources = [
        ("parentheses", format!("{{{{ {} }}}}", &nested("(", "1", ")")[100..65_000])),
        ("lists", deep("[", "1", "]")),
        ("dictionaries", deep("{'a':", "1", "}")),
        ("not", fill("{{ ", "not ", "x }}")),
        ("signs", fill("{{ ", "-", "1 }}")),
        ("attributes", fill("{{ a", ".b", " }}")),
        ("items", fill("{{ a", "[0]", " }}")),
        ("calls", fill("{{ a", "()", " }}")),
        ("concatenation", fill("{{ a", "~b", " }}")),
        ("sums", fill("{{ 1", "+1", " }}")),
        ("filters", fill("{{ a", "|trim", " }}")),
        ("tests", fill("{{ a", " is defined", " }}")),
        ("comparisons", fill("{{ a", "==b", " }}")),
        ("and", fill("{{ a", " and b", " }}")),
        ("ternaries", fill("{{ a", " if b else c", " }}")),
        ("texts", fill("{{ 'a'", "'b'", " }}")),
        ("targets", fill("{% set ", "(", "a = 1 %}")),
        ("blocks", nested("{%if a%}", "x", "{%endif%}")),
        ("loops", nested("{%for a in b%}", "x", "{%endfor%}")),
        ("branches", fill("{% if a %}", "{%elif a%}{%set b=c%}", "{% endif %}")),
        ("sets in branches", fill("", "{%if add_generation_prompt%}{%set a=b%}{%endif%}", "")),
        ("namespaces", fill("", "{%set n=namespace(a=1)%}{%for m in messages%}{%set n.a=2%}{%endfor%}", "")),
        ("reads in a loop", fill("{% for m in messages %}", "{{a}}{%set a=m%}", "{% endfor %}")),
        ("long lists", fill("{{ [", "1,", "] }}")),
        ("added lists", fill("{% set a = [1] %}", "{%set a=a+a%}", "{{ a }}")),
        ("added texts", fill("{% set a = 'a' %}", "{%set a=a~a%}", "{{ a }}")),
        ("paired texts", fill("{% set a = ['a'] %}", "{%set a=[a,a]%}", "{{ a }}")),
        ("macro calls", fill("{% macro f(x) %}{{ x }}{% endmacro %}", "{{f(f(1))}}", "")),
        ("data", fill("", "a{", "")),
        ("openings", fill("", "{{", "")),
        ("comments", fill("", "{##}", "")),
        ("raw", fill("{% raw %}", "{%", "{% endraw %}")),
    ];
    for (what, source) in sources {
        assert!(source.len() <= MAX_SOURCE_BYTES, "{what}: {}", source.len());
        // It comes to an end; what it may cost is a number of steps.
        let found = check(&source);
        assert!(found.findings.len() <= source.len(), "{what}");
    }
}

#[test]
fn macros_that_call_macros_are_bounded() {
    let mut source = "{% macro m0(x) %}{{ x }}{% endmacro %}".to_owned();
    for i in 1..1000 {
        source += &format!("{{% macro m{i}(x) %}}{{{{ m{}(m{}(x)) }}}}{{% endmacro %}}", i - 1, i - 1);
    }
    source += "{{ m999(1) }}{% for m in messages %}{{ m998(m) }}{% endfor %}";
    assert!(check(&source).findings.is_empty(), "and an end");
}

#[test]
fn longer_sources_are_not_looked_at() {
    assert!(!check(&"a".repeat(MAX_SOURCE_BYTES + 1)).is_complete);
}

#[test]
fn no_mutation_of_a_template_makes_it_panic() {
    let truth: Json = serde_json::from_slice(&fs::read("fixtures/templates/dialects.json").unwrap()).unwrap();
    let sources: Vec<&str> =
        truth["snippets"].as_object().unwrap().values().map(|it| it["source"].as_str().unwrap()).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    for _ in 0..20_000 {
        let (a, b) = (sources[next(sources.len())], sources[next(sources.len())]);
        let mut chars: Vec<char> = a.chars().collect();
        for _ in 0..=next(3) {
            let other: Vec<char> = b.chars().collect();
            let at = next(chars.len() + 1);
            match next(3) {
                0 => chars.truncate(at),
                1 => chars.insert(at, other[next(other.len())]),
                _ => {
                    let from = next(other.len());
                    chars.splice(at..at, other[from..].iter().copied());
                }
            }
        }
        let source: String = chars.into_iter().collect();
        let lines = source.lines().count().max(1) + 1;
        for finding in check(&source).findings {
            assert!((1..=lines).contains(&finding.line) && finding.column >= 1, "{source:?}: {finding}");
        }
    }
}

/// What llama.cpp's engine makes of a template and one message (`Grüße`, of the user), in the builds
/// b11549 and b12032 alike, by tests/peers/jinja_driver.cpp.
const IN_LLAMA_CPP: [(&str, &str); 7] = [
    ("<x>{{ none }}|{{ [1,'a',none,true,2.5,[3,'b'],{'k':1}] }}|{{ {'a':1} }}|{{ (1,2) }}", "<x>|1aTrue2.53b||12"),
    ("<x>{{ messages[0].nope.more }}|{{ messages[0].nope }}|", "<x>||"),
    (
        "<x>{{ messages[0].content | length }}|{{ messages | length }}|{{ {'a':1,'b':2} | length }}|{{ 'äö' | count }}",
        "<x>7|1|2|4",
    ),
    (
        "<x>{{ 'Äpfel äöü' | upper }}|{{ 'Äpfel ÄÖÜ' | lower }}|{{ 'äB' | capitalize }}|{{ 'ÄB'.lower() }}|\
         {{ 'äb'.upper() }}|{{ 'bÄ'.capitalize() }}|{{ 'xY' | capitalize }}",
        "<x>ÄPFEL äöü|Äpfel ÄÖÜ|äb|Äb|äB|BÄ|Xy",
    ),
    (
        "<x>{{ none | default('d') }}|{{ nothing | default('e') }}|{{ '' | default('f') }}|{{ '' | default('g', true) }}|\
         {{ 0 | default('h', true) }}|{{ none | d('i') }}",
        "<x>d|e||g|h|i",
    ),
    (
        "<x>{{ 1/3 }}|{{ 2.0 }}|{{ 1.5 }}|{{ 10/4 }}|{{ 100000.0*3 }}|{{ 0.1+0.2 }}|{{ true }}|{{ 3 }}|{{ 1000000.0 }}",
        "<x>0.333333|2.0|1.5|2.5|300000.0|0.3|True|3|1000000.0",
    ),
    (
        "<x>{{ [1.5, 2.0, 'x'] }}|{{ ['a','b'] }}|{{ [[1],[2]] }}|{{ [true,false] }}|{{ messages }}",
        "<x>1.52.0x|ab|12|TrueFalse|",
    ),
];

#[test]
fn what_is_emulated_is_rendered_as_llama_cpp_does() {
    let messages = [Message { role: "user".to_owned(), content: "Grüße".to_owned() }];
    let options = RenderOptions { add_generation_prompt: true, bos_token: "<s>", eos_token: "</s>" };
    for (source, expected) in IN_LLAMA_CPP {
        let template = Template::parse_as(source, RenderAs::LlamaCpp).unwrap();
        assert_eq!(template.render(&messages, &options).unwrap(), expected, "{source}");
    }
    // And as jinja2 does else.
    let template = Template::parse("<x>{{ none }}{{ [1] }}{{ 'ä' | length }}").unwrap();
    assert_eq!(template.render(&messages, &options).unwrap(), "<x>None[1]1");
}

fn with_template(template: &str) -> Trio {
    let mut trio = Trio::bundled();
    trio.chat.set("tokenizer.chat_template", Val::str(template));
    trio
}

#[test]
fn merge_smoke_and_inspect_say_which_engine_takes_a_template_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let Some(Val::Str(usual)) = get(&Trio::bundled().chat, "tokenizer.chat_template").cloned() else { panic!() };
    let usual = String::from_utf8(usual).unwrap();
    let audit = |paths: &Paths| chatvec(["inspect", paths.chat.to_str().unwrap(), "--chat"]);
    let smoke = |paths: &Paths| {
        let prompts = bundled("chat").with_file_name("prompts-de.jsonl");
        let options = ["--prompts", prompts.to_str().unwrap(), "--limit", "2", "--max-tokens", "4"];
        chatvec([&["smoke", paths.chat.to_str().unwrap()][..], &options].concat())
    };

    let paths = with_template(&usual).write(folder.path());
    let ran = audit(&paths);
    assert_eq!(ran.says(0, &[]).out.matches("the same").count(), 3, "{}", ran.out);
    assert!(!paths.command(&out, &["--dry-run"]).err.contains("llama.cpp"));

    // llama.cpp cannot parse it.
    let paths = with_template(&format!("{usual}{{# #}}\n{{% set a = 7 // 2 %}}")).write(folder.path());
    let ran = audit(&paths);
    assert!(ran.out.contains("floor-division") && ran.out.contains("refuses to parse"), "{}", ran.out);
    let words = ["llama.cpp cannot parse the template", "column 14", "floor-division"];
    paths.command(&out, &["--dry-run"]).says(0, &words);
    let ran = smoke(&paths);
    assert!(ran.code == 11 && words.iter().all(|word| ran.out.contains(word)), "{ran:#?}");

    // llama.cpp renders it to another text, and so does smoke.
    let paths = with_template(&format!("{{{{ none }}}}{usual}")).write(folder.path());
    paths.command(&out, &["--dry-run"]).says(0, &["llama.cpp renders the template to another text", "print-none"]);
    let ran = smoke(&paths);
    assert!(ran.out.contains("prompts here are llama.cpp's"), "{ran:#?}");
}
