//! What a file says of chatting, held against what llama.cpp does with it and against its own
//! weights.

use std::collections::{BTreeSet, HashMap};

use super::chatter::{TurnEnd, no_special_end, text_of, turn_end};
use crate::chat::dialect::Dialects;
use crate::chat::{self, Message, RenderOptions, Template, TemplateError, Templates, TokenKind, Tokenizer};
use crate::gguf::Model;
use crate::gguf::names::{OUTPUT, TOKEN_EMBEDDINGS};
use crate::vector::{self, RowReader, read_row};

/// A row whose norm is below this share of the usual was never trained, as where it was left at
/// zero or next to it. A row that began at the size of others cannot be told by its norm: the
/// bundled base has .27 in tokens that it never met.
const LEAST_NORM: f64 = 0.02;

/// Special tokens that are looked at one by one. Published files have some tens that a chat needs;
/// a file may list millions.
const MOST_TOKENS: usize = 4096;

/// Bytes of what looks like a special token at most.
const LONGEST_MARKER: usize = 80;

/// What is found of one special token.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct AuditedToken {
    /// Its place in the vocabulary.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// What it is for.
    pub kind: TokenKind,
    /// Whether the template writes it, or a key names it as an end.
    pub is_needed: bool,
    /// Whether llama.cpp ends an answer at it.
    pub is_end: bool,
    /// The norm of its row in `token_embd`, in units of what is usual there; none if there is no
    /// such row.
    pub norm: Option<f64>,
    /// The norm of its row in `output`, in units of what is usual there; none if there is no such
    /// row.
    pub output_norm: Option<f64>,
    /// Whether its row looks as if nobody had trained it: next to nothing, or the very row of
    /// another special token.
    pub looks_untrained: bool,
}

/// What is found of a file.
#[derive(Clone, PartialEq, Default, Debug, serde::Serialize)]
pub struct ChatAudit {
    /// Names of its templates: `default`, and those after `tokenizer.chat_template.`.
    pub templates: Vec<String>,
    /// A conversation as the default template writes it.
    pub prompt: Option<String>,
    /// What the template writes behind an answer.
    pub turn_end: Option<String>,
    /// Its special tokens: those that are needed, and the control tokens that end an answer.
    pub tokens: Vec<AuditedToken>,
    /// Control tokens besides.
    pub n_other_control: usize,
    /// Special tokens that were not looked at, since there are too many.
    pub n_not_shown: usize,
    /// Where engines read the default template otherwise than it was written; none without one.
    pub dialects: Option<Dialects>,
    /// What is wrong, in sentences.
    pub problems: Vec<String>,
}

/// Looks at a file's template, at the tokens it writes, and at their rows. `by` renders the
/// template.
///
/// # Errors
/// [`vector::Error`] if a row cannot be read.
pub fn audit_chat(model: &Model, by: &Templates) -> Result<ChatAudit, vector::Error> {
    let metadata = model.metadata();
    let names = chat::templates(metadata).map(|(name, _)| name.unwrap_or("default").to_owned());
    let dialects = super::dialects(metadata);
    let mut audit = ChatAudit { templates: names.collect(), dialects, ..ChatAudit::default() };
    let tokenizer = match Tokenizer::from_metadata(metadata) {
        Ok(tokenizer) => tokenizer,
        Err(e) => {
            audit.problems.push(format!("the tokenizer cannot be used here: {e}"));
            return Ok(audit);
        }
    };
    match by.of(metadata) {
        Ok(None) => audit.problems.push(
            "there is no chat template: llama.cpp talks to the file in its built-in ChatML, whatever it was trained on"
                .to_owned(),
        ),
        Ok(Some(template)) => {
            if let Err(e) = audit.render(&template, &tokenizer) {
                audit.problems.push(unrendered(chat::TEMPLATE, &e));
            }
        }
        Err(e) if e.is_given_up() => audit.problems.push(unrendered(chat::TEMPLATE, &e)),
        Err(e) => audit.problems.push(e.to_string()),
    }
    let named = chat::templates(metadata).filter_map(|(name, source)| Some((name?, source)));
    // Of those beyond, `special_ids` says that they are not rendered.
    for (name, source) in named.take(chat::MAX_RENDERED) {
        let rendered =
            by.parse(&source.to_string()).and_then(|template| ChatAudit::default().render(&template, &tokenizer));
        if let Err(e) = rendered {
            audit.problems.push(unrendered(&format!("{}.{name}", chat::TEMPLATE), &e));
        }
    }
    audit.look_at_tokens(model, &tokenizer, by)?;
    Ok(audit)
}

impl ChatAudit {
    fn render(&mut self, template: &Template, tokenizer: &Tokenizer) -> Result<(), TemplateError> {
        let said = |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
        let options = RenderOptions::new(Some(tokenizer), true);
        let render = |messages: &[Message]| template.render(messages, &options);
        let question = || said("user", "A question?");
        let prompt = render(&[question()])?;
        let whole = render(&[question(), said("assistant", "An answer."), question()])?;
        let is_special = |id: u32| matches!(tokenizer.kind(id), TokenKind::Control | TokenKind::UserDefined);

        let mut split = BTreeSet::new();
        for marker in markers(&prompt).chain(markers(&whole)) {
            match tokenizer.encode(marker, false, true).as_slice() {
                [id] if is_special(*id) => {}
                pieces => {
                    split.insert((marker.to_owned(), pieces.len()));
                }
            }
        }
        for (marker, n) in split {
            self.problems.push(format!(
                "the template writes {marker:?}, which looks like a special token and is read as {n} pieces of text: the \
                 vocabulary lacks it, or has it as ordinary text"
            ));
        }
        match turn_end(template, tokenizer)? {
            TurnEnd::Nothing => {}
            TurnEnd::Text(text) => self.problems.push(no_special_end(&text)),
            TurnEnd::Token(id) => {
                let end = text_of(tokenizer, id);
                if !tokenizer.is_end(id) {
                    let ends: Vec<String> = tokenizer.ends().iter().map(|id| text_of(tokenizer, *id)).collect();
                    self.problems.push(format!(
                        "the template ends an answer with {end:?}, at which llama.cpp does not stop; it stops at {}: set \
                         tokenizer.ggml.eot_token_id to {id}",
                        ends.join(" ")
                    ));
                }
                self.turn_end = Some(end);
            }
        }
        self.prompt = Some(prompt);
        Ok(())
    }

    fn look_at_tokens(&mut self, model: &Model, tokenizer: &Tokenizer, by: &Templates) -> Result<(), vector::Error> {
        let ids = chat::special_ids(model.metadata(), by);
        for chat::Unrendered { key, reason } in &ids.unrendered {
            if self.problems.iter().any(|problem| problem.starts_with(&unrendered_is(key))) {
                continue;
            }
            self.problems.push(format!("{key}: {reason}: the tokens that it needs are known by its text alone"));
        }
        let (ends, others): (Vec<u32>, Vec<u32>) = ids.others.iter().partition(|id| tokenizer.is_end(**id));
        self.n_other_control = others.len();
        let embeddings = NormedRows::new(model, TOKEN_EMBEDDINGS)?;
        let outputs = NormedRows::new(model, OUTPUT)?;
        let mut seen: HashMap<blake3::Hash, u32> = HashMap::new();
        self.n_not_shown = (ids.needed.len() + ids.written.len() + ends.len()).saturating_sub(MOST_TOKENS);
        let besides = ids.written.into_iter().chain(ends).map(|id| (id, false));
        let shown = ids.needed.iter().map(|id| (*id, true)).chain(besides);
        for (id, is_needed) in shown.take(MOST_TOKENS) {
            let of = |rows: &Option<NormedRows<'_>>| rows.as_ref().map_or(Ok(None), |rows| rows.of(id));
            let (row, norm) = of(&embeddings)?.unzip();
            let output_norm = of(&outputs)?.map(|(_, norm)| norm);
            let twin = row.and_then(|row| seen.insert(digest(&row), id));
            let token = AuditedToken {
                id,
                text: text_of(tokenizer, id),
                kind: tokenizer.kind(id),
                is_needed,
                is_end: tokenizer.is_end(id),
                norm,
                output_norm,
                looks_untrained: twin.is_some() || norm.is_some_and(|norm| norm < LEAST_NORM),
            };
            if is_needed && token.looks_untrained {
                self.problems.push(format!(
                    "the chat needs {:?}, and its row in token_embd looks untrained ({}): merge with --special-tokens auto",
                    token.text,
                    match twin {
                        Some(twin) => format!("it is the row of {:?}", text_of(tokenizer, twin)),
                        None => format!("{:.3} of the usual norm", norm.unwrap_or(0.0)),
                    }
                ));
            }
            self.tokens.push(token);
        }
        if self.n_not_shown == 0 && !self.tokens.iter().any(|token| token.is_end) {
            self.problems
                .push("nothing ends an answer: no end token is named, and none is known by its text".to_owned());
        }
        Ok(())
    }
}

/// The problem of a template that writes no conversation.
fn unrendered(key: &str, error: &TemplateError) -> String {
    let advice = if error.is_given_up() { "; what it writes is unchecked" } else { "" };
    format!("{}: {error}{advice}", unrendered_is(key))
}

fn unrendered_is(key: &str) -> String {
    format!("{key} does not render a conversation")
}

/// What looks like a special token in a prompt: `<|…|>`, `<…>` and `[…]` in letters, digits, `_`,
/// `/` and their like.
fn markers(prompt: &str) -> impl Iterator<Item = &str> {
    let is_name = |name: &str| {
        let name = name.trim_matches('|').trim_start_matches('/');
        !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '▁' | '｜'))
    };
    let closed = move |(at, open): (usize, char)| {
        let close = if open == '<' { '>' } else { ']' };
        let near = prompt.as_bytes()[at..].iter().take(LONGEST_MARKER).position(|b| *b == close as u8)?;
        let end = at + near;
        let name = &prompt[at + 1..end];
        // Names in brackets are in capitals, as in [INST]; others are text.
        let is_marker = is_name(name) && (open == '<' || !name.chars().any(char::is_lowercase));
        is_marker.then(|| &prompt[at..=end])
    };
    prompt.char_indices().filter(|(_, c)| matches!(c, '<' | '[')).filter_map(closed)
}

/// Rows of a tensor that has one for each token.
struct NormedRows<'a> {
    model: &'a Model,
    id: usize,
    /// The median norm.
    usual: f64,
}

impl<'a> NormedRows<'a> {
    /// The rows of the tensor with this name; none if there is no such tensor, or it cannot be
    /// read.
    fn new(model: &'a Model, name: &str) -> Result<Option<Self>, vector::Error> {
        let is_usable = |id: &usize| vector::is_readable_row(model.tensor(*id));
        let Some(id) = model.find(name).filter(is_usable) else { return Ok(None) };
        let mut rows = RowReader::new(model, id);
        let of_row = |row| Ok(Some(norm(&rows.read(row)?)));
        let usual = vector::median_of_rows(model.tensor(id).n_rows(), of_row)?;
        Ok(Some(NormedRows { model, id, usual: usual.filter(|norm| *norm > 0.0).unwrap_or(1.0) }))
    }

    /// A token's row, and its norm in units of what is usual.
    fn of(&self, token: u32) -> Result<Option<(Vec<f32>, f64)>, vector::Error> {
        if u64::from(token) >= self.model.tensor(self.id).n_rows() {
            return Ok(None);
        }
        let row = read_row(self.model, self.id, token.into())?;
        let norm = norm(&row) / self.usual;
        Ok(Some((row, norm)))
    }
}

/// What two rows have in common only if they are the same.
fn digest(row: &[f32]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    row.iter().for_each(|weight| {
        hasher.update(&weight.to_bits().to_le_bytes());
    });
    hasher.finalize()
}

fn norm(row: &[f32]) -> f64 {
    row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::markers;

    #[test]
    fn what_looks_like_a_special_token_is_found() {
        let found = |prompt| markers(prompt).collect::<Vec<_>>();
        assert_eq!(found("<|im_start|>user\na < b> [see]<|im_end|>"), ["<|im_start|>", "<|im_end|>"]);
        assert_eq!(found("[INST] x [/INST]</s> 3 < 4, [1, 2] <a b>"), ["[INST]", "[/INST]", "</s>"]);
        assert_eq!(found("<｜User｜>x<start_of_turn"), ["<｜User｜>"]);
    }
}
