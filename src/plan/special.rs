//! Which rows of the output are the chat model's, and which tokens it gets.

use std::collections::HashMap;

use bstr::{BString, ByteSlice};

use super::merging::Reach;
use super::{Error, Recipe, Taken, TensorPlan};
use crate::chat;
use crate::gguf::Metadata;
use crate::gguf::names::{OUTPUT, OUTPUT_BIAS, TOKEN_EMBEDDINGS};
use crate::survey::{self, SpecialToken};
use crate::vector::{Inputs, Role, TokenRows, has_row_per_token};

/// Tokens whose rows are the chat model's, as they are.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum SpecialTokens {
    /// The tokens that the chat needs or that control it, where nobody trained the model on them.
    #[default]
    Auto,
    /// The tokens with these texts.
    List(Vec<String>),
    /// No token: the rows of special tokens are sums, as all others are.
    None,
}

impl SpecialTokens {
    /// Reads the words of the command line: `auto`, `none`, or texts with commas between.
    pub fn parse(text: &str) -> Self {
        match text {
            "auto" => SpecialTokens::Auto,
            "none" => SpecialTokens::None,
            texts => SpecialTokens::List(texts.split(',').map(str::to_owned).collect()),
        }
    }

    /// The words for it on the command line.
    pub fn name(&self) -> String {
        match self {
            SpecialTokens::Auto => "auto".to_owned(),
            SpecialTokens::List(texts) => texts.join(","),
            SpecialTokens::None => "none".to_owned(),
        }
    }
}

/// A special token of the output.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct SpecialRow {
    /// The token's text.
    pub text: String,
    /// Its place in the output.
    pub id: u32,
    /// Its place in the chat model.
    pub chat: u32,
    /// Whether the model did not have it.
    pub is_added: bool,
    /// How far the model's row had gone from the base's, in units of what is usual.
    pub drift: Option<f64>,
    /// Whether its row in `output` is a sum all the same, where it can be one: the model had learnt
    /// something there.
    pub is_output_sum: bool,
}

/// A token whose rows are to be the chat model's.
pub(super) struct Wanted {
    row: SpecialRow,
    is_needed: bool,
    /// The tensors in which the vector leaves its row where it is.
    unmoved: Vec<String>,
}

/// What was taken, and what was not.
#[derive(Default)]
pub(super) struct TakenRows {
    /// The tokens whose rows are the chat model's in one tensor at least.
    pub(super) rows: Vec<SpecialRow>,
    /// Tokens that a conversation needs and nobody trained the model on, which keep the model's
    /// rows all the same, and the tensors in which they do, since the ratio there is 0.
    pub(super) kept: Vec<String>,
    pub(super) kept_in: Vec<String>,
}

/// Decides which rows are taken, and gives `metadata` the tokens that are missing if that is asked
/// for. `found` are the special tokens of the chat model; without a talker there is none whose rows
/// could be taken.
pub(super) fn decide(
    inputs: &Inputs,
    recipe: &Recipe,
    talker: Option<usize>,
    found: Option<&survey::SpecialTokens>,
    metadata: &mut Metadata,
) -> Result<Vec<Wanted>, Error> {
    let Some(found) = found else {
        return match (&recipe.special_tokens, talker) {
            (SpecialTokens::List(texts), Some(id)) => Err(Error::UnknownToken {
                text: texts.first().cloned().unwrap_or_default(),
                path: inputs.source(id).path().to_owned(),
            }),
            (SpecialTokens::List(_), None) => Err(Error::SilentTokens),
            _ => Ok(Vec::new()),
        };
    };
    let source = inputs.source(found.source);
    // Of a patch those that it brings along; a mean of models has none to take from.
    let has_rows = match inputs.role(found.source) {
        Role::Patch => TokenRows::of_chat(inputs, found.source, TOKEN_EMBEDDINGS).is_some(),
        _ => inputs.vectors().iter().any(|v| v.plus == found.source && v.minus.is_some()),
    };
    let path = source.path().to_owned();
    let wanted: Vec<&SpecialToken> = match &recipe.special_tokens {
        SpecialTokens::None => return Ok(Vec::new()),
        SpecialTokens::Auto if !has_rows => Vec::new(),
        SpecialTokens::Auto => found.tokens.iter().filter(|token| token.is_untrained).collect(),
        SpecialTokens::List(_) if !has_rows => return Err(Error::NoRows { path }),
        SpecialTokens::List(texts) => {
            listed(found, texts).map_err(|text| Error::UnknownToken { text, path: path.clone() })?
        }
    };
    let is_added = |token: &SpecialToken| token.is_written && recipe.add_missing_tokens;
    let is_missing =
        |token: &&SpecialToken| token.id.is_none() && (token.is_needed || is_added(token) || wanted.contains(token));
    let mut missing: Vec<&SpecialToken> = found.tokens.iter().filter(is_missing).collect();
    missing.sort_by_key(|token| token.chat);
    let mut rows: Vec<Wanted> = wanted.into_iter().filter_map(|token| Some(row(token, token.id?, recipe))).collect();
    if !missing.is_empty() {
        let model = inputs.model().map(|id| inputs.source(id).path().to_owned()).unwrap_or_default();
        if !recipe.add_missing_tokens || !has_rows {
            let tokens = missing.iter().map(|token| chat::shown_token(token.text.as_bstr())).collect();
            return Err(Error::MissingTokens { tokens, model, chat: path, can_be_added: has_rows });
        }
        if let Some(id) = inputs.model()
            && inputs.source(id).find(OUTPUT_BIAS).is_some()
        {
            return Err(Error::CannotAddTokens { tensor: OUTPUT_BIAS.to_owned(), model });
        }
        let ids: Vec<u32> = missing.iter().map(|token| token.chat).collect();
        let added = missing.iter().zip(chat::add_tokens(metadata, source.metadata(), &ids));
        rows.extend(added.map(|(token, id)| {
            let mut wanted = row(token, id, recipe);
            wanted.row.is_added = true;
            wanted
        }));
    }
    rows.sort_by_key(|wanted| wanted.row.id);
    rows.dedup_by_key(|wanted| wanted.row.id);
    Ok(rows)
}

/// The tokens with these texts, or a text that the chat model has not.
fn listed<'a>(found: &'a survey::SpecialTokens, texts: &[String]) -> Result<Vec<&'a SpecialToken>, String> {
    let by_text: HashMap<&[u8], &SpecialToken> = found.tokens.iter().map(|t| (t.text.as_slice(), t)).collect();
    texts.iter().map(|text| by_text.get(text.as_bytes()).copied().ok_or_else(|| text.clone())).collect()
}

fn row(token: &SpecialToken, id: u32, recipe: &Recipe) -> Wanted {
    let is_auto = recipe.special_tokens == SpecialTokens::Auto;
    let is_output_sum = is_auto && token.is_output_trained;
    let (text, chat, drift) = (shown(&token.text), token.chat, token.drift);
    let row = SpecialRow { text, id, chat, is_added: false, drift, is_output_sum };
    let unmoved = if is_auto { token.unmoved.clone() } else { Vec::new() };
    Wanted { row, is_needed: token.is_needed, unmoved }
}

fn shown(text: &BString) -> String {
    text.to_str_lossy().into_owned()
}

/// Gives the tensors that have a row for each token the rows of special ones. Where the ratio of
/// the talker's vector is 0, those alone that were asked for by their texts, and those of tokens
/// that are added.
pub(super) fn take(
    inputs: &Inputs,
    recipe: &Recipe,
    (talker, reach): (Option<usize>, &Reach),
    wanted: Vec<Wanted>,
    tensors: &mut [TensorPlan],
) -> Result<TakenRows, Error> {
    let mut done = TakenRows::default();
    let Some(source) = talker.filter(|_| !wanted.is_empty()) else { return Ok(done) };
    let is_listed = matches!(recipe.special_tokens, SpecialTokens::List(_));
    let chat = inputs.source(source);
    let n_added = wanted.iter().filter(|wanted| wanted.row.is_added).count() as u64;
    let (mut used, mut kept) = (vec![false; wanted.len()], vec![false; wanted.len()]);
    for tensor in tensors.iter_mut().filter(|tensor| has_row_per_token(&tensor.name) && tensor.model().is_some()) {
        let chat_rows = TokenRows::of_chat(inputs, source, &tensor.name);
        let chat_rows = chat_rows.filter(|rows| tensor.ne.first() == Some(&chat.tensor(rows.at.tensor).row_len()));
        let Some(chat_rows) = chat_rows else {
            match inputs.model().filter(|_| n_added > 0) {
                None => continue,
                Some(id) => {
                    let (tensor, model) = (tensor.name.clone(), inputs.source(id).path().to_owned());
                    return Err(Error::CannotAddTokens { tensor, model });
                }
            }
        };
        let at = chat_rows.at;
        let n_rows = chat.tensor(at.tensor).n_rows();
        let is_sum = |row: &SpecialRow| row.is_output_sum && tensor.name == OUTPUT && tensor.is_sum();
        let is_reached = is_listed || reach.reaches(inputs, source, &tensor.name);
        let mut rows = Vec::new();
        for (i, Wanted { row, unmoved, .. }) in wanted.iter().enumerate() {
            let from = chat_rows.find(row.chat).filter(|from| u64::from(*from) < n_rows);
            let is_moved = row.is_added || !(is_sum(row) || unmoved.contains(&tensor.name));
            let Some(from) = from.filter(|_| is_moved) else { continue };
            if row.is_added || is_reached {
                rows.push((row.id, from));
                used[i] = true;
            } else if wanted[i].is_needed && !(row.is_output_sum && tensor.name == OUTPUT) {
                kept[i] = true;
                done.kept_in.push(tensor.name.clone());
            }
        }
        if let Some(n) = tensor.ne.get_mut(1) {
            *n += n_added;
        }
        if !rows.is_empty() {
            tensor.take(Taken { at, own: tensor.own(), rows });
            tensor.check_types(inputs)?;
        }
    }
    done.kept_in.dedup();
    let texts = wanted.iter().zip(kept).filter(|(_, kept)| *kept);
    done.kept = texts.map(|(wanted, _)| wanted.row.text.clone()).collect();
    done.rows = wanted.into_iter().zip(used).filter(|(_, used)| *used).map(|(wanted, _)| wanted.row).collect();
    Ok(done)
}
