//! What a prompt becomes in a file: the text that is tokenised, and the special tokens in it.

use super::shown::shown_token;
use super::template::{Message, RenderOptions, Template, Templates};
use super::tokenizer::{TokenKind, Tokenizer};
use crate::gguf::{Metadata, Value};

/// A prompt of one file, and the same conversation's in another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PromptsDiffer {
    /// The first file's, from shortly before the first difference on.
    pub own: String,
    /// The other's.
    pub other: String,
}

/// The prompts of some conversations, with special tokens marked, as a file makes them.
struct Prompts(Vec<String>);

/// Looks for a conversation that two files write differently, or read back as other special tokens:
/// each by its own template, begin and end. None where they agree, and where one of them cannot be
/// asked: it has no template or no tokenizer that is known, or the template is not rendered.
pub fn prompts_differ(own: &Metadata, other: &Metadata, templates: &Templates) -> Option<PromptsDiffer> {
    // Most files have one tokenizer, and then nothing has to be built of it.
    if are_one_tokenizer(own, other) {
        return None;
    }
    let (own, other) = (Prompts::of(own, templates)?, Prompts::of(other, templates)?);
    let (own, other) = own.0.into_iter().zip(other.0).find(|(own, other)| own != other)?;
    let at = own.chars().zip(other.chars()).take_while(|(a, b)| a == b).count();
    let excerpt = |text: &str| {
        let (from, shown) = (at.saturating_sub(BEFORE), text.chars().skip(at.saturating_sub(BEFORE)).take(SHOWN));
        let (before, behind) =
            (if from > 0 { "…" } else { "" }, if text.chars().count() > from + SHOWN { "…" } else { "" });
        format!("{before}{}{behind}", shown.collect::<String>())
    };
    Some(PromptsDiffer { own: excerpt(&own), other: excerpt(&other) })
}

/// Whether all keys about tokens and templates say the same.
fn are_one_tokenizer(own: &Metadata, other: &Metadata) -> bool {
    let about = |metadata: &Metadata| metadata.iter().filter(|(key, _)| key.starts_with("tokenizer.")).count();
    let is_same = |(key, value): (&str, &Value)| !key.starts_with("tokenizer.") || other.get(key) == Some(value);
    about(own) == about(other) && own.iter().all(is_same)
}

/// Characters of a prompt that are shown before the first difference, and in all.
const BEFORE: usize = 30;
const SHOWN: usize = 120;

impl Prompts {
    fn of(metadata: &Metadata, templates: &Templates) -> Option<Self> {
        let template = templates.of(metadata).ok()??;
        let tokenizer = Tokenizer::from_metadata(metadata).ok()?;
        let said = |role: &str| Message { role: role.to_owned(), content: format!("What the {role} says.") };
        let talks = [vec!["user"], vec!["user", "assistant", "user"], vec!["system", "user"]];
        let prompt = |roles: Vec<&str>| {
            let messages: Vec<Message> = roles.into_iter().map(said).collect();
            prompt(&template, &tokenizer, &messages)
        };
        Some(Prompts(talks.into_iter().map(prompt).collect()))
    }
}

/// A prompt with its begin, in which special tokens are told from text; or that there is none.
fn prompt(template: &Template, tokenizer: &Tokenizer, messages: &[Message]) -> String {
    let options = RenderOptions::new(Some(tokenizer), true);
    let Ok(text) = template.render(messages, &options) else { return "(no prompt)".to_owned() };
    // llama.cpp leaves out of a text what its tokenizer adds itself (common/chat.cpp,
    // `common_chat_template_direct_apply`).
    let added = |adds: bool, id: Option<u32>| {
        let text = tokenizer.text(id.filter(|_| adds)?)?;
        std::str::from_utf8(text).ok().filter(|text| !text.is_empty())
    };
    let begin = added(tokenizer.adds_bos(), tokenizer.bos());
    let text = begin.and_then(|begin| text.strip_prefix(begin)).unwrap_or(&text);
    let end = added(tokenizer.adds_eos(), tokenizer.eos());
    let ids = tokenizer.encode(end.and_then(|end| text.strip_suffix(end)).unwrap_or(text), true, true);
    let is_special = |id: &u32| matches!(tokenizer.kind(*id), TokenKind::Control | TokenKind::UserDefined);
    let mut marked = String::new();
    for run in ids.chunk_by(|a, b| !is_special(a) && !is_special(b)) {
        match run {
            [id] if is_special(id) => {
                let name = shown_token(tokenizer.text(*id).unwrap_or_default());
                marked += &format!("[{name}]");
            }
            text => marked += &String::from_utf8_lossy(&tokenizer.decode(text, true)),
        }
    }
    marked
}
