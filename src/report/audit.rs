//! What a file says of chatting.

use serde_json::{Value as Json, json};

use super::{Report, Table};
use crate::chat::dialect::{Dialects, Engine};
use crate::eval::ChatAudit;
use crate::gguf::printable;

/// What each engine makes of a template, and where.
fn engines(dialects: &Dialects) -> String {
    let mut table = Table::new(&["engine", "template", ">line", ">column", "construct", "instead"]);
    for engine in [Engine::Transformers, Engine::LlamaCpp, Engine::HuggingfaceJs] {
        let mut first = dialects.of(engine).peekable();
        if first.peek().is_none() {
            table.row([
                engine.to_string(),
                "the same".to_owned(),
                String::new(),
                String::new(),
                String::new(),
                String::new(),
            ]);
        }
        for finding in first.take(MOST_FINDINGS) {
            let mended = finding.mended.map_or(String::new(), |build| format!(" (not from {build} on)"));
            table.row([
                engine.to_string(),
                finding.verdict.to_string() + &mended,
                finding.line.to_string(),
                finding.column.to_string(),
                printable(&finding.construct),
                finding.advice.to_owned(),
            ]);
        }
        let n = dialects.of(engine).count();
        if n > MOST_FINDINGS {
            let more = format!("{} places more", n - MOST_FINDINGS);
            table.row([engine.to_string(), more, String::new(), String::new(), String::new(), String::new()]);
        }
    }
    let rest = if dialects.is_complete { "" } else { "the template was not looked at to its end\n" };
    format!("{}{rest}", table.text())
}

/// Findings of an engine that are shown.
const MOST_FINDINGS: usize = 8;

impl Report for ChatAudit {
    fn text(&self) -> String {
        let mut text = format!(
            "\nchat templates: {}\n",
            if self.templates.is_empty() { "none".to_owned() } else { printable(&self.templates.join(", ")) }
        );
        if let Some(prompt) = &self.prompt {
            text += &format!("a question becomes: {}\n", printable(prompt));
        }
        if let Some(end) = &self.turn_end {
            text += &format!("an answer ends with: {}\n", printable(end));
        }
        if let Some(dialects) = &self.dialects {
            text += &format!("\n{}", engines(dialects));
        }
        let mut table = Table::new(&["special token", ">id", "kind", "needed", "ends", ">norm", ">in output", ""]);
        let yes = |is: bool| if is { "yes" } else { "" };
        let share = |norm: Option<f64>| norm.map_or("–".to_owned(), |norm| format!("{norm:.2}"));
        for token in &self.tokens {
            table.row([
                printable(&token.text),
                token.id.to_string(),
                format!("{:?}", token.kind).to_lowercase(),
                yes(token.is_needed).to_owned(),
                yes(token.is_end).to_owned(),
                share(token.norm),
                share(token.output_norm),
                if token.looks_untrained { "looks untrained" } else { "" }.to_owned(),
            ]);
        }
        text += &format!("\n{}", table.text());
        if self.n_other_control > 0 {
            text += &format!(
                "and {} control tokens that neither template nor end of an answer uses\n",
                self.n_other_control
            );
        }
        if self.n_not_shown > 0 {
            text +=
                &format!("and {} special tokens that are not listed here, since they are so many\n", self.n_not_shown);
        }
        text += "norms are those of rows, in units of the median row\n";
        for problem in &self.problems {
            text += &format!("\nwarning: {}\n", printable(problem));
        }
        text
    }

    fn json(&self) -> Json {
        json!(self)
    }
}
