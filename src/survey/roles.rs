//! Which of two files that left the same base is the one that chats.
//!
//! Distances tell which file is the base: chat and pre-training go nearly orthogonal ways, so that
//! the two models they lead to are further from each other than each is from the base
//! ([`super::findings`]). They say nothing of which of the two is which. That is told by who has a
//! chat template, and else by the rows of special tokens in `token_embd`: whoever trained on
//! conversations moved them, and plain text leaves them where they were.

use std::collections::BTreeSet;

use super::findings::{Finding, Untold};
use super::special::{Drift, Stay};
use crate::chat::{self, TokenMap};
use crate::gguf::names::TOKEN_EMBEDDINGS;
use crate::vector::{Error, Inputs, SourceId, Vector};

/// A token's row that went at least this share of the usual way was trained.
const TRAINED: f64 = 0.5;

/// Says if chat and model look swapped, or if nothing tells them apart. Only of vectors that are a
/// difference.
///
/// # Errors
/// [`Error::Container`], [`Error::Type`], [`Error::NotFinite`].
pub(super) fn tell(inputs: &Inputs, vector: &Vector) -> Result<Option<Finding>, Error> {
    let (Some(base), Some(model)) = (vector.minus, inputs.model()) else { return Ok(None) };
    let has_template = |id| chat::has_template(inputs.source(id).metadata());
    let templates = (has_template(vector.plus), has_template(model));
    if templates.0 != templates.1 {
        // A template in chat alone says that all is well; one in the model alone is refused by
        // another finding.
        return Ok(None);
    }
    // Embeddings that the recipe leaves out may hold anything.
    let rows = |own| match trained(inputs, own, vector) {
        Err(Error::NotFinite { .. }) => Ok(None),
        rows => rows,
    };
    if let (Some(by_chat), Some(by_model)) = (rows(vector.plus)?, rows(model)?) {
        let only = |these: &ByTraining, others: &ByTraining| -> Vec<u32> {
            these.trained.intersection(&others.untrained).copied().collect()
        };
        match (&only(&by_chat, &by_model)[..], &only(&by_model, &by_chat)[..]) {
            ([_, ..], []) => return Ok(None),
            ([], tokens @ [_, ..]) => {
                let tokens = tokens.iter().map(|id| text(inputs, model, *id)).collect();
                return Ok(Some(Finding::SwappedChatAndModel { tokens }));
            }
            _ => {}
        }
    }
    let ends = [base, vector.plus, model].map(|id| chat::end_text(inputs.source(id).metadata()));
    let is_new = |end: &Option<String>| end.is_some() && *end != ends[0];
    match (is_new(&ends[1]), is_new(&ends[2])) {
        (true, false) => Ok(None),
        (false, true) => Ok(Some(Finding::Untold { why: Untold::EndOnlyInModel })),
        _ if templates.0 => Ok(Some(Finding::Untold { why: Untold::BothTemplates })),
        _ => Ok(Some(Finding::Untold { why: Untold::NoTemplate })),
    }
}

/// Special tokens by what a file did to their rows, as ids of the model.
#[derive(Default)]
struct ByTraining {
    trained: BTreeSet<u32>,
    untrained: BTreeSet<u32>,
}

/// What a file did to the rows of the tokens that chat or model need for a conversation. None if
/// the file's ordinary rows did not move, or cannot be compared: then nothing is learnt from
/// special ones.
fn trained(inputs: &Inputs, own: SourceId, vector: &Vector) -> Result<Option<ByTraining>, Error> {
    let Some(drift) = Drift::new(inputs, own, vector.plus, TOKEN_EMBEDDINGS)?.filter(Drift::is_any) else {
        return Ok(None);
    };
    let mut rows = ByTraining::default();
    for id in needed(inputs, vector) {
        match drift.stay(id)? {
            Some(Stay::Untrained) => rows.untrained.insert(id),
            Some(Stay::Moved(distance)) if distance >= TRAINED => rows.trained.insert(id),
            _ => false,
        };
    }
    Ok(Some(rows))
}

/// The tokens that chat or model need for a conversation, as ids of the model. What ends a text in
/// the base is none of them: plain text trains it too.
fn needed(inputs: &Inputs, vector: &Vector) -> BTreeSet<u32> {
    let own = |source: SourceId, ids: Vec<u32>| -> BTreeSet<u32> {
        let to_own = inputs.token_map(source).map(TokenMap::inverted);
        ids.into_iter().filter_map(|id| to_own.as_ref().map_or(Some(id), |map| map.find(id))).collect()
    };
    let metadata = |source: SourceId| inputs.source(source).metadata();
    let of_base = vector.minus.map(|base| own(base, chat::end_ids(metadata(base)))).unwrap_or_default();
    let sources = [Some(vector.plus), inputs.model()].into_iter().flatten();
    let ids = |source| chat::special_ids(metadata(source), inputs.templates());
    let needed = sources.flat_map(|source| own(source, ids(source).needed));
    needed.filter(|id| !of_base.contains(id)).collect()
}

fn text(inputs: &Inputs, source: SourceId, id: u32) -> String {
    let tokens = inputs.source(source).metadata().get_strings(chat::TOKENS);
    tokens.and_then(|tokens| tokens.get(id as usize)).map_or_else(|| format!("token {id}"), chat::shown_token)
}
