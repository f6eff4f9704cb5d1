//! What engines make of a file's chat template, in sentences.

use crate::chat::dialect::{self, Dialects, Engine, Finding, Verdict};
use crate::chat::{RenderAs, TEMPLATE};
use crate::gguf::Metadata;

/// Finds where engines read a file's template otherwise than it was written. None without one that is
/// text.
pub fn dialects(metadata: &Metadata) -> Option<Dialects> {
    let source = metadata.get_str(TEMPLATE).filter(|source| !source.trim_ascii().is_empty())?;
    Some(dialect::check(std::str::from_utf8(source).ok()?))
}

/// What llama.cpp makes of a template.
pub(super) struct InLlamaCpp {
    /// As whom it is rendered here.
    pub(super) render_as: RenderAs,
    /// Why llama.cpp does not talk by it.
    pub(super) refusal: Option<String>,
    /// Where its prompts are others than transformers'.
    pub(super) note: Option<String>,
}

impl InLlamaCpp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let nothing = InLlamaCpp { render_as: RenderAs::default(), refusal: None, note: None };
        let Some(found) = dialects(metadata) else { return nothing };
        // An error with a conversation is no refusal: the server hands some texts over in parts, where
        // the engine by itself ends with an error.
        let is_refused = |f: &Finding| f.verdict == Verdict::RefusesToParse && f.mended.is_none();
        let refusal = said(&found, Engine::LlamaCpp, is_refused);
        let Some(note) = said(&found, Engine::LlamaCpp, |f| !is_refused(f)) else {
            return InLlamaCpp { refusal, ..nothing };
        };
        let is_whole = found.of(Engine::LlamaCpp).all(Finding::is_emulated);
        let are = if is_whole { "llama.cpp's" } else { "near to llama.cpp's, and may not be the same" };
        let note = Some(format!("{note}; prompts here are {are}"));
        InLlamaCpp { render_as: RenderAs::LlamaCpp, refusal, note }
    }
}

/// What an engine does with a template by these findings, and where it does so first.
pub fn said(found: &Dialects, engine: Engine, is_meant: impl Fn(&Finding) -> bool) -> Option<String> {
    let meant: Vec<&Finding> = found.of(engine).filter(|finding| is_meant(finding)).collect();
    let first =
        meant.iter().max_by_key(|finding| (finding.verdict, std::cmp::Reverse((finding.line, finding.column))))?;
    let what = match first.verdict {
        Verdict::RefusesToParse => "cannot parse the template",
        Verdict::RefusesToRender => "ends with an error where the template meets a conversation",
        Verdict::RendersOtherwise => "renders the template to another text than transformers",
    };
    let more = if meant.len() > 1 { format!(", and {} places more", meant.len() - 1) } else { String::new() };
    let mended = first.mended.map_or(String::new(), |build| format!(" (no longer from {build} on)"));
    let Finding { line, column, construct, advice, .. } = first;
    Some(format!("{engine} {what}{mended}: line {line}, column {column}{more}: {construct}: {advice}"))
}
