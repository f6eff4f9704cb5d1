//! The order of the crate's modules (each may use only those above it), read from the sources
//! themselves.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

/// Each module with what it may use, in the order in which data walk through them.
const ORDER: [(&str, &[&str]); 16] = [
    ("ggml", &[]),
    ("pool", &[]),
    ("gguf", &["ggml"]),
    ("quants", &["ggml"]),
    ("imatrix", &["ggml", "gguf"]),
    ("chat", &["gguf"]),
    ("vector", &["ggml", "pool", "gguf", "quants", "imatrix", "chat"]),
    ("survey", &["ggml", "pool", "gguf", "quants", "imatrix", "chat", "vector"]),
    ("plan", &["ggml", "pool", "gguf", "quants", "imatrix", "chat", "vector", "survey"]),
    // What a survey found is in the plan: who carries it out looks at nothing again.
    ("pipeline", &["ggml", "pool", "gguf", "quants", "imatrix", "chat", "vector", "plan"]),
    ("patch", &["ggml", "pool", "gguf", "quants", "imatrix", "chat", "vector", "plan", "pipeline"]),
    ("infer", &["ggml", "pool", "gguf", "quants", "imatrix", "chat", "vector", "plan", "pipeline", "patch"]),
    ("eval", &["ggml", "pool", "gguf", "quants", "imatrix", "chat", "vector", "plan", "pipeline", "patch", "infer"]),
    (
        "job",
        &[
            "ggml", "pool", "gguf", "quants", "imatrix", "chat", "vector", "survey", "plan", "pipeline", "patch",
            "infer", "eval",
        ],
    ),
    (
        "report",
        &[
            "ggml", "pool", "gguf", "quants", "imatrix", "chat", "vector", "survey", "plan", "pipeline", "patch",
            "infer", "eval", "job",
        ],
    ),
    (
        "cli",
        &[
            "ggml", "pool", "gguf", "quants", "imatrix", "chat", "vector", "survey", "plan", "pipeline", "patch",
            "infer", "eval", "job", "report",
        ],
    ),
];

/// Crates that only the command may use.
const OF_THE_COMMAND: [&str; 8] = ["clap", "indicatif", "anyhow", "ctrlc", "nix", "rustyline", "anstream", "anstyle"];

/// What the library leaves to the command.
const NEITHER_PRINTS_NOR_EXITS: [&str; 5] = ["println!", "eprintln!", "print!(", "dbg!(", "process::exit"];

/// One source file: its path below src, and its text without comments and the contents of strings.
struct Source {
    path: PathBuf,
    code: String,
}

impl Source {
    /// The module of the crate it belongs to; none for lib.rs and main.rs.
    fn module(&self) -> Option<&str> {
        let first = self.path.iter().next()?.to_str()?;
        let name = first.strip_suffix(".rs").unwrap_or(first);
        (name != "lib" && name != "main").then_some(name)
    }

    /// The file or folder of this module that it is, or is in; none for other modules and `mod.rs`.
    fn unit_of(&self, module: &str) -> Option<&str> {
        let mut parts = self.path.iter().map(|part| part.to_str().unwrap());
        let unit = parts.next().filter(|first| *first == module).and(parts.next())?;
        Some(unit.strip_suffix(".rs").unwrap_or(unit)).filter(|unit| *unit != "mod")
    }

    fn is_of_the_command(&self) -> bool {
        self.path == Path::new("main.rs") || self.module() == Some("cli")
    }

    /// File and line of a byte of the code.
    fn place(&self, at: usize) -> String {
        format!("src/{}:{}", self.path.display(), self.code[..at].matches('\n').count() + 1)
    }
}

fn sources() -> Vec<Source> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let code = without_text(&fs::read_to_string(&path).unwrap());
                sources.push(Source { path: path.strip_prefix(&root).unwrap().to_owned(), code });
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(sources.len() > 20, "the sources are not there");
    sources
}

/// Source code with comments and the contents of strings and characters as spaces; lines stay where
/// they are.
fn without_text(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let blank = |text: &str| -> String { text.chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect() };
    while let Some(c) = rest.chars().next() {
        let len = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            'r' if rest.starts_with("r\"") => rest[2..].find('"').map_or(rest.len(), |end| end + 3),
            'r' if rest.starts_with("r#\"") => rest.find("\"#").map_or(rest.len(), |end| end + 2),
            '"' => string_len(rest),
            // A character, not a lifetime.
            '\'' if rest[1..].starts_with('\\') => 2 + rest[3..].find('\'').map_or(rest.len() - 2, |end| end + 2),
            '\'' if rest[1..].chars().nth(1) == Some('\'') => 2 + rest[1..].chars().next().map_or(0, char::len_utf8),
            _ => {
                out.push(c);
                rest = &rest[c.len_utf8()..];
                continue;
            }
        };
        out += &blank(&rest[..len]);
        rest = &rest[len..];
    }
    out
}

/// Bytes of the string literal that begins here.
fn string_len(text: &str) -> usize {
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return i + 1,
            _ => {}
        }
    }
    text.len()
}

/// Paths that begin with this word, and where each ends in the code: `crate::{a, b::{C, d}}` is
/// `crate::a`, `crate::b::C` and `crate::b::d`.
fn paths<'a>(code: &'a str, first: &'a str) -> Vec<(usize, Vec<&'a str>)> {
    let mut paths = Vec::new();
    for at in words(code, first) {
        let end = at + first.len();
        if !code[..at].ends_with("::") && code[end..].starts_with("::") {
            spread(code, end + 2, vec![first], &mut paths);
        }
    }
    paths
}

/// Adds the paths that go on from here, behind `::` or in braces. Returns where they end.
fn spread<'a>(code: &'a str, at: usize, mut path: Vec<&'a str>, paths: &mut Vec<(usize, Vec<&'a str>)>) -> usize {
    let at = code.len() - code[at..].trim_start().len();
    if code[at..].starts_with('{') {
        let mut at = at + 1;
        loop {
            at = spread(code, at, path.clone(), paths);
            // Another name for the entry may stand between.
            let Some(len) = code[at..].find([',', '}']) else { return code.len() };
            let is_end = code[at + len..].starts_with('}');
            at += len + 1;
            let next = code.len() - code[at..].trim_start().len();
            if is_end {
                return at;
            }
            // A comma behind the last entry.
            if code[next..].starts_with('}') {
                return next + 1;
            }
        }
    }
    let len = code[at..].find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len() - at);
    if len == 0 {
        paths.push((at, path));
        return at;
    }
    path.push(&code[at..at + len]);
    if code[at + len..].starts_with("::") {
        return spread(code, at + len + 2, path, paths);
    }
    paths.push((at, path));
    at + len
}

/// Modules that a piece of code names behind `crate::`, and where.
fn named(code: &str) -> Vec<(usize, &str)> {
    paths(code, "crate").into_iter().filter_map(|(at, path)| Some((at, *path.get(1)?))).collect()
}

/// What uses what, by names.
type Uses = BTreeMap<String, BTreeSet<String>>;

/// What the units of a module use of each other. A unit is a file of the module's folder, or a
/// folder in it with all its files; `mod.rs` is none.
fn uses(module: &str, sources: &[Source]) -> Uses {
    let files: Vec<(&str, &Source)> = sources.iter().filter_map(|s| Some((s.unit_of(module)?, s))).collect();
    let mut uses: Uses = files.iter().map(|(unit, _)| ((*unit).to_owned(), BTreeSet::new())).collect();
    for (unit, source) in files {
        let depth = source.path.iter().count() - usize::from(source.path.ends_with("mod.rs")) - 1;
        let through_super = paths(&source.code, "super").into_iter().filter_map(|(_, path)| {
            // More of them, in tests within the file.
            let n_supers = path.iter().take_while(|word| **word == "super").count();
            path.get(n_supers).copied().filter(|_| n_supers >= depth)
        });
        let through_crate = paths(&source.code, "crate")
            .into_iter()
            .filter_map(|(_, path)| path.get(2).copied().filter(|_| path[1] == module));
        let used: BTreeSet<String> = through_super
            .chain(through_crate)
            .filter(|name| *name != unit && uses.contains_key(*name))
            .map(str::to_owned)
            .collect();
        uses.entry(unit.to_owned()).or_default().extend(used);
    }
    uses
}

/// The shortest way from each name back to itself; of names that share a circle, only the first's.
fn circles(uses: &Uses) -> Vec<String> {
    let mut circles: Vec<Vec<&str>> = Vec::new();
    for start in uses.keys().map(String::as_str) {
        if circles.iter().any(|circle| circle.contains(&start)) {
            continue;
        }
        let mut ways = VecDeque::from([vec![start]]);
        let mut reached = BTreeSet::new();
        'search: while let Some(way) = ways.pop_front() {
            for next in &uses[way[way.len() - 1]] {
                let mut longer = way.clone();
                longer.push(next);
                if next == start {
                    circles.push(longer);
                    break 'search;
                }
                if reached.insert(next) {
                    ways.push_back(longer);
                }
            }
        }
    }
    circles.into_iter().map(|circle| circle.join(" → ")).collect()
}

/// Places where a word stands by itself.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let is_whole = move |at: usize| {
        let before = code[..at].ends_with(is_part);
        let after = word.ends_with(is_part) && code[at + word.len()..].starts_with(is_part);
        !before && !after
    };
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| is_whole(at))
}

#[test]
fn each_module_uses_only_those_above_it() {
    let mut broken = Vec::new();
    for source in sources() {
        let Some(module) = source.module() else { continue };
        let Some((_, allowed)) = ORDER.iter().find(|(name, _)| *name == module) else {
            broken.push(format!("src/{}: {module} has no place in the order", source.path.display()));
            continue;
        };
        for (at, used) in named(&source.code) {
            if used != module && !allowed.contains(&used) {
                broken.push(format!("{}: {module} may not use {used}", source.place(at)));
            }
        }
        // `super` in the file of a module itself is the crate: what it names there is a module too.
        let is_root = source.path.iter().count() == 1 || source.path.ends_with("mod.rs");
        for (at, _) in source.code.match_indices("super::").filter(|_| is_root) {
            if !source.code[..at].contains("mod tests") {
                broken.push(format!("{}: super is the crate here; say crate::", source.place(at)));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn no_files_of_a_module_use_each_other_in_a_circle() {
    let sources = sources();
    let mut broken = Vec::new();
    for (module, _) in ORDER {
        broken.extend(circles(&uses(module, &sources)).into_iter().map(|circle| format!("src/{module}: {circle}")));
    }
    assert!(broken.is_empty(), "what both need belongs into a file below both:\n{}", broken.join("\n"));
}

#[test]
fn the_map_lists_the_modules_in_their_order() {
    let sources = sources();
    let lib = sources.iter().find(|s| s.path == Path::new("lib.rs")).unwrap();
    let listed: Vec<&str> = lib.code.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let expected: Vec<&str> = ORDER.iter().map(|(name, _)| *name).filter(|name| listed.contains(name)).collect();
    assert_eq!(listed, expected, "src/lib.rs: the order of modules");
    for module in sources.iter().filter_map(Source::module) {
        assert!(listed.contains(&module), "src/lib.rs does not list {module}");
    }
}

#[test]
fn only_the_command_parses_arguments_shows_progress_and_adds_context() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|s| !s.is_of_the_command()) {
        for name in OF_THE_COMMAND {
            broken.extend(words(&source.code, name).map(|at| format!("{}: {name}", source.place(at))));
        }
    }
    assert!(broken.is_empty(), "of the command alone:\n{}", broken.join("\n"));
}

#[test]
fn loops_on_several_threads_run_in_pools_of_ours() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|s| s.path != Path::new("pool.rs")) {
        for word in ["rayon", "into_par_iter", "par_iter", "par_chunks"] {
            broken.extend(words(&source.code, word).map(|at| format!("{}: {word}", source.place(at))));
        }
    }
    assert!(broken.is_empty(), "loops of crate::pool alone stay within the threads asked for:\n{}", broken.join("\n"));
}

#[test]
fn the_library_neither_prints_nor_exits() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|s| !s.is_of_the_command()) {
        for word in NEITHER_PRINTS_NOR_EXITS {
            broken.extend(words(&source.code, word).map(|at| format!("{}: {word}", source.place(at))));
        }
    }
    assert!(broken.is_empty(), "only the command speaks:\n{}", broken.join("\n"));
}

/// A default stands where the command fills in what was not said, and in examples.
#[test]
fn every_budget_is_the_callers() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|s| s.path != Path::new("cli/mod.rs")) {
        broken.extend(words(&source.code, "Budget::default()").map(|at| source.place(at)));
    }
    assert!(broken.is_empty(), "--threads and --memory are passed by in {}", broken.join(", "));
}

#[test]
fn the_reader_of_sources_sees_paths_and_not_text() {
    let code = without_text(
        "use crate::{chat, plan::{self, Error}, cli::Exit};\n// crate::eval\nlet a = \"crate::infer \\\" x\"; /* crate::a */\n\
         fn f<'a>(c: char) -> crate::gguf::Error { c == '\"' || c == '\\'' || c == 'x' } crate::report::X",
    );
    let found: Vec<String> = paths(&code, "crate").into_iter().map(|(_, path)| path[1..].join("::")).collect();
    assert_eq!(found, ["chat", "plan::self", "plan::Error", "cli::Exit", "gguf::Error", "report::X"]);
    assert_eq!(code.matches('\n').count(), 3);
    assert_eq!(words("clap a_clap clapped (clap::x", "clap").count(), 2);
}

#[test]
fn circles_are_found_through_super_and_crate_and_folders() {
    let source = |path: &str, code: &str| Source { path: path.into(), code: code.to_owned() };
    let sources = [
        source("m/mod.rs", "mod a; pub use a::A; use crate::m::b::B;"),
        source("m/a.rs", "use super::{B as Other, b::{self,\n C,\n},\n};"),
        source("m/b.rs", "fn f() -> crate::m::c::X {}"),
        source("m/c/mod.rs", "use super::b; mod inner;"),
        source("m/c/inner.rs", "use super::a; use super::super::{d::D, nothing};"),
        source("m/d.rs", "use crate::{n, m::{a::A, d::D}};"),
        source("n/a.rs", "use crate::m::b;"),
    ];
    let uses = uses("m", &sources);
    assert_eq!(uses["c"].iter().collect::<Vec<_>>(), ["b", "d"]);
    assert_eq!(circles(&uses), ["a → b → c → d → a"]);
    let without_d: Uses = uses.into_iter().filter(|(unit, _)| unit != "d").collect();
    let uses: Uses =
        without_d.into_iter().map(|(unit, used)| (unit, &used - &BTreeSet::from(["d".to_owned()]))).collect();
    assert_eq!(circles(&uses), ["b → c → b"]);
}
