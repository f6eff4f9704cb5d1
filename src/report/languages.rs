//! Which languages are recognised in answers, and which have prompts.

use serde_json::{Value as Json, json};

use super::{Report, Table};
use crate::eval::{Language, PromptSet};

/// The table of languages, as the code has it.
pub struct Languages;

impl Report for Languages {
    fn text(&self) -> String {
        let with_prompts = PromptSet::builtin_languages();
        let mut table = Table::new(&["code", "language", "built-in prompts", "not told apart from it"]);
        for language in Language::all() {
            let prompts = if with_prompts.contains(&language) { "yes" } else { "–" };
            let others: Vec<String> = others(language).into_iter().map(Language::name).collect();
            table.row([language.code(), language.name(), prompts.to_owned(), others.join(", ")]);
        }
        table.text()
    }

    fn json(&self) -> Json {
        let with_prompts = PromptSet::builtin_languages();
        let row = |language: Language| {
            json!({
                "code": language,
                "name": language.name(),
                "prompts": with_prompts.contains(&language),
                "not_told_apart": others(language),
            })
        };
        json!({ "languages": Language::all().into_iter().map(row).collect::<Vec<_>>() })
    }
}

/// Those that short texts do not tell from one.
fn others(language: Language) -> Vec<Language> {
    language.group().into_iter().filter(|other| *other != language).collect()
}
