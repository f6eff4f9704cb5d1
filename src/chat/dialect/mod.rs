//! Where engines read a chat template otherwise than the one that it was written for.
//!
//! A chat template is Jinja for Python: transformers renders it with jinja2. llama.cpp and
//! transformers.js have engines of their own, which refuse some constructs and render others to
//! other text, without a word. [`check`] finds such constructs in a template's source. It renders
//! nothing, and what it says is measured, engine by engine and construct by construct
//! (`rules`), over conversations of a system message, users and an assistant, with texts in ASCII
//! and beyond.
//!
//! A construct is reported where some such conversation surely meets it: what is told apart by the
//! type of a value is reported only where the type is known, and nothing is said of branches for
//! tools or pictures, which no such conversation takes.
//!
//! The work grows with the source. It is bounded in depth; where the bound ends it, or where jinja2
//! itself cannot parse on, [`Dialects::is_complete`] is false.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::Serialize;

mod calls;
mod eval;
mod names;
mod rules;
mod source;
mod syntax;
mod values;
mod walk;

use names::Peer;
use syntax::{Parsed, Stop};
use values::Kind;
use walk::{Caller, Met, Walk};

/// Sources that are longer are not looked at.
pub const MAX_SOURCE_BYTES: usize = 64 << 10;

/// Who renders a template.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Engine {
    /// jinja2 3.1.6 as transformers 5.24 sets it up.
    Transformers,
    /// llama.cpp's own engine (common/jinja), build b11549.
    LlamaCpp,
    /// @huggingface/jinja 0.5.11, which transformers.js uses.
    HuggingfaceJs,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Transformers => "transformers",
            Self::LlamaCpp => "llama.cpp",
            Self::HuggingfaceJs => "huggingface.js",
        })
    }
}

/// What an engine does with a construct.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Its prompt has other text than jinja2's, or is there where jinja2 makes none.
    RendersOtherwise,
    /// It parses the template, and ends with an error when a conversation meets the construct.
    /// llama.cpp's server tries a conversation at its start, and mostly does not start either.
    RefusesToRender,
    /// It cannot parse the template. llama.cpp's server does not start with it.
    RefusesToParse,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::RendersOtherwise => "renders otherwise",
            Self::RefusesToRender => "refuses to render",
            Self::RefusesToParse => "refuses to parse",
        })
    }
}

/// A construct that an engine takes otherwise.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// Which engine.
    pub engine: Engine,
    /// What it does.
    pub verdict: Verdict,
    /// A short name of the construct that stays the same, such as `floor-division` or
    /// `missing-filter sum`.
    pub construct: Cow<'static, str>,
    /// Where it is, from 1.
    pub line: usize,
    /// Where in the line, in characters from 1.
    pub column: usize,
    /// What to write instead.
    pub advice: &'static str,
    /// The build of llama.cpp from which on it is no difference any more, if one is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mended: Option<&'static str>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { engine, verdict, construct, line, column, advice, .. } = self;
        write!(f, "{line}:{column}: {engine} {verdict}: {construct}: {advice}")?;
        match self.mended {
            Some(build) => write!(f, " (no longer from {build} on)"),
            None => Ok(()),
        }
    }
}

impl Finding {
    /// Whether a template that is rendered as llama.cpp does it
    /// ([`RenderAs::LlamaCpp`](crate::chat::RenderAs::LlamaCpp)) has the text of llama.cpp here.
    pub fn is_emulated(&self) -> bool {
        self.engine == Engine::LlamaCpp && crate::chat::template::is_emulated(&self.construct)
    }
}

/// What was found in a template.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Dialects {
    /// By place in the template, then by engine; each construct once per place and engine.
    pub findings: Vec<Finding>,
    /// Whether all of the template was looked at.
    pub is_complete: bool,
}

impl Dialects {
    /// What was found of an engine.
    pub fn of(&self, engine: Engine) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.engine == engine)
    }

    /// The worst that an engine does; nothing if it renders as jinja2.
    pub fn worst(&self, engine: Engine) -> Option<Verdict> {
        self.of(engine).map(|finding| finding.verdict).max()
    }
}

impl fmt::Display for Dialects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))?;
        if self.is_complete { Ok(()) } else { writeln!(f, "the template was not looked at to its end") }
    }
}

/// Looks through a template.
pub fn check(source: &str) -> Dialects {
    if source.len() > MAX_SOURCE_BYTES {
        return Dialects { findings: Vec::new(), is_complete: false };
    }
    let (parsed, stop) = syntax::parse(source);
    let mut report = Report { findings: Vec::new(), lines: Lines::of(source) };
    for (construct, at) in &parsed.notes {
        report.rule(construct, *at, &[Engine::Transformers, Engine::LlamaCpp, Engine::HuggingfaceJs]);
    }
    let mut is_complete = stop.is_none();
    match stop {
        Some(Stop::Syntax(at)) => report.rule("syntax", at, &[Engine::Transformers]),
        Some(Stop::Unknown(at)) => {
            report.rule("unknown-statement", at, &[Engine::Transformers, Engine::LlamaCpp, Engine::HuggingfaceJs]);
        }
        Some(Stop::Depth) => {}
        None => is_complete = walk(&parsed, &mut report),
    }
    Dialects { findings: report.sorted(), is_complete }
}

/// Both callers' ways through the template.
fn walk(parsed: &Parsed<'_>, report: &mut Report) -> bool {
    let mut is_complete = true;
    for caller in [Caller::Transformers, Caller::Server] {
        let engines: &[Engine] = match caller {
            Caller::Transformers => &[Engine::Transformers, Engine::HuggingfaceJs],
            Caller::Server => &[Engine::LlamaCpp],
        };
        let mut walk = Walk::new(parsed, caller);
        walk.run();
        is_complete &= walk.is_complete;
        let peer = walk.peer();
        for (met, at) in walk.met {
            match met {
                Met::Rule(construct) => report.rule(construct, at, engines),
                Met::Unseen(construct) => report.refusals(construct, at, engines),
                Met::Missing(what, name, kind) => report.missing(peer, what, &name, kind, at),
            }
        }
    }
    is_complete
}

struct Report {
    findings: Vec<(usize, Finding)>,
    lines: Lines,
}

impl Report {
    fn add(&mut self, at: usize, engine: Engine, verdict: Verdict, construct: Cow<'static, str>, advice: &'static str) {
        let mended =
            if engine == Engine::LlamaCpp { rules::rule(&construct).and_then(|rule| rule.mended) } else { None };
        let (line, column) = (0, 0);
        self.findings.push((at, Finding { engine, verdict, construct, line, column, advice, mended }));
    }

    fn rule(&mut self, construct: &'static str, at: usize, engines: &[Engine]) {
        self.verdicts(construct, at, engines, Verdict::RendersOtherwise);
    }

    fn refusals(&mut self, construct: &'static str, at: usize, engines: &[Engine]) {
        self.verdicts(construct, at, engines, Verdict::RefusesToRender);
    }

    fn verdicts(&mut self, construct: &'static str, at: usize, engines: &[Engine], least: Verdict) {
        let Some(rule) = rules::rule(construct) else {
            debug_assert!(false, "no rule {construct}");
            return;
        };
        for engine in engines {
            let verdict = match engine {
                Engine::Transformers => rule.transformers,
                Engine::LlamaCpp => rule.llama_cpp,
                Engine::HuggingfaceJs => rule.javascript,
            };
            if let Some(verdict) = verdict.filter(|verdict| *verdict >= least) {
                self.add(at, *engine, verdict, Cow::Borrowed(construct), rule.advice);
            }
        }
    }

    fn missing(&mut self, peer: Peer, what: &str, name: &str, kind: Kind, at: usize) {
        let engine = match peer {
            Peer::LlamaCpp => Engine::LlamaCpp,
            Peer::Javascript => Engine::HuggingfaceJs,
        };
        let construct = format!("missing-{what} {name}");
        self.add(at, engine, Verdict::RefusesToRender, Cow::Owned(construct), rules::substitute(name));
        let mended = matches!((what, name, kind), ("filter", "unique", Kind::List) | ("filter", "list", Kind::Dict));
        if let (true, Some((_, finding))) = (mended && engine == Engine::LlamaCpp, self.findings.last_mut()) {
            finding.mended = Some("b12032");
        }
    }

    fn sorted(self) -> Vec<Finding> {
        let Self { mut findings, lines } = self;
        findings.sort_by(|(a, x), (b, y)| (a, x.engine, &x.construct).cmp(&(b, y.engine, &y.construct)));
        let mut seen = HashSet::new();
        findings.retain(|(at, f)| seen.insert((*at, f.engine, f.construct.clone())));
        let place = |(at, finding): (usize, Finding)| {
            let (line, column) = lines.place(at);
            Finding { line, column, ..finding }
        };
        findings.into_iter().map(place).collect()
    }
}

/// Where lines begin, and the text.
struct Lines {
    source: String,
    starts: Vec<usize>,
}

impl Lines {
    fn of(source: &str) -> Self {
        let bytes = source.as_bytes();
        let ends =
            (0..bytes.len()).filter(|&i| bytes[i] == b'\n' || bytes[i] == b'\r' && bytes.get(i + 1) != Some(&b'\n'));
        Self { source: source.to_owned(), starts: std::iter::once(0).chain(ends.map(|i| i + 1)).collect() }
    }

    fn place(&self, at: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= at);
        let start = self.starts[line.saturating_sub(1)];
        let column = self.source.get(start..at).map_or(0, |text| text.chars().count());
        (line.max(1), column + 1)
    }
}
