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
        let refusal = said(&found, Engine::LlamaCpp, |verdict| verdict > Verdict::RendersOtherwise);
        let Some(note) = said(&found, Engine::LlamaCpp, |verdict| verdict == Verdict::RendersOtherwise) else {
            return InLlamaCpp { refusal, ..nothing };
        };
        let others = found.of(Engine::LlamaCpp).filter(|finding| finding.verdict == Verdict::RendersOtherwise);
        let is_whole = others.into_iter().all(Finding::is_emulated);
        let asked = if is_whole {
            "prompts here are llama.cpp's"
        } else {
            "prompts here are near to llama.cpp's, not the same"
        };
        InLlamaCpp { render_as: RenderAs::LlamaCpp, refusal, note: Some(format!("{note}; {asked}")) }
    }
}

/// What an engine does with a template, where its verdict is one of these, and where it does so first.
pub fn said(found: &Dialects, engine: Engine, is_meant: impl Fn(Verdict) -> bool) -> Option<String> {
    let meant: Vec<&Finding> = found.of(engine).filter(|finding| is_meant(finding.verdict)).collect();
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
