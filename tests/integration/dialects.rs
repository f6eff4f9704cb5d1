//! The dialect check against what the engines were measured to do (fixtures/templates/dialects.json, made by
//! tests/peers/dialects.py).

use std::fs;

use chatvec::chat::dialect::{Dialects, Engine, Finding, MAX_SOURCE_BYTES, Verdict, check};
use serde_json::Value as Json;

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
