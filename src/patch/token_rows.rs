//! Planning what a patch has by tokens: the rows of the embeddings that moved, those of special
//! tokens in the chat model, and those of some tokens in the base. The latter tell whether a model
//! was trained on the special ones.

use super::error::Error;
use super::format::{BASE_ROWS, BASE_TOKENS, MOVED_ROWS, SPECIAL_ROWS, SPECIAL_TOKENS, row_tokens_key};
use super::tokens::n_tokens;
use crate::chat;
use crate::ggml::GgmlType;
use crate::gguf::names::{OUTPUT, TOKEN_EMBEDDINGS};
use crate::gguf::{self, Array, Metadata, Value};
use crate::pipeline::Budget;
use crate::plan::{self, Content, Taken, TensorPlan, Warning};
use crate::quants;
use crate::vector::{self, Inputs, Rounding, SourceId, TensorRef, has_row_per_token};

/// One ordinary token of so many has its row in the base kept. What is usual is a median, so few
/// rows tell it, and a row of an 8B model is 8 KB.
const ORDINARY_OF: u64 = 64;

/// Rows that did not move are left out if no more than this share of all rows moved.
const FEW: f64 = 0.9;

/// Tensors that have a row for each token in every model.
const EMBEDDINGS: [&str; 2] = [TOKEN_EMBEDDINGS, OUTPUT];

/// Plans the rows of special tokens, as they are in chat and in base, and the rows of some ordinary
/// tokens in base. Gives warnings, too: which templates of chat were not rendered to find the
/// special tokens.
pub(super) fn plan(inputs: &Inputs, metadata: &mut Metadata) -> Result<(Vec<TensorPlan>, Vec<Warning>), Error> {
    let vector = inputs.vectors()[0];
    let chat = inputs.source(vector.plus);
    let n_tokens = n_tokens(chat.metadata());
    let ids = chat::special_ids(chat.metadata(), inputs.templates());
    let warnings = plan::unrendered(chat, &ids.unrendered).collect();
    let mut special = [ids.needed, ids.written, ids.others].concat();
    special.sort_unstable();
    let mut tensors = Vec::new();
    if special.is_empty() {
        return Ok((tensors, warnings));
    }
    let n_ordinary = (n_tokens / ORDINARY_OF).clamp(16, 256).min(n_tokens);
    let mut of_base = special.clone();
    of_base.extend((0..n_ordinary).map(|i| vector::middle(i, n_ordinary, n_tokens) as u32));
    of_base.sort_unstable();
    of_base.dedup();
    // The base may lack some; the order of its own rows is of no use here.
    let in_base = |id: u32| match vector.minus.and_then(|base| inputs.token_map(base)) {
        Some(map) => map.find(id),
        None => Some(id),
    };
    of_base.retain(|id| in_base(*id).is_some());
    for name in EMBEDDINGS {
        let Some(at) = chat.find(name).map(|tensor| TensorRef { source: vector.plus, tensor }) else { continue };
        let places = special.iter().map(|id| Some(*id)).collect::<Vec<_>>();
        tensors.extend(taken(inputs, (name, SPECIAL_ROWS), (at, at), &places));
        let of_base_model = |source: SourceId| Some(TensorRef { source, tensor: inputs.source(source).find(name)? });
        let base = vector.minus.and_then(of_base_model);
        let places: Vec<_> = of_base.iter().map(|id| in_base(*id)).collect();
        tensors.extend(base.and_then(|base| taken(inputs, (name, BASE_ROWS), (base, at), &places)));
    }
    let lists = [(SPECIAL_ROWS, SPECIAL_TOKENS, special), (BASE_ROWS, BASE_TOKENS, of_base)];
    for (end, key, tokens) in lists {
        if tensors.iter().any(|tensor: &TensorPlan| tensor.name.ends_with(end)) {
            metadata.set(key, Value::Array(Array::from_u32s(&tokens)));
        }
    }
    Ok((tensors, warnings))
}

/// The plan of some rows of the tensor `at` in its own type, folded as those of `own`. None if the
/// tensor lacks one of them, or if its rows cannot be read one by one.
fn taken(
    inputs: &Inputs,
    (name, end): (&str, &str),
    (at, own): (TensorRef, TensorRef),
    places: &[Option<u32>],
) -> Option<TensorPlan> {
    let source = inputs.source(at.source);
    let info = source.tensor(at.tensor);
    let places: Vec<u32> = places.iter().copied().collect::<Option<_>>()?;
    let is_there = places.iter().all(|row| u64::from(*row) < info.n_rows());
    if places.is_empty() || !is_there || !vector::is_readable_row(info) {
        return None;
    }
    // A row in other coordinates is no longer on the grid of its type.
    let is_new = source.scale_of(at.tensor).is_some() || inputs.turn(at, own).is_some();
    Some(TensorPlan {
        name: format!("{name}{end}"),
        ne: vec![info.row_len(), places.len() as u64],
        ty: if is_new || quants::requires_importance(info.ty()) { GgmlType::F32 } else { info.ty() },
        rounding: Rounding::Encoder,
        content: Content::Rows(Taken { at, own, rows: (0..).zip(places).collect() }),
    })
}

/// Plans the rows that moved alone, and lists their tokens, where few rows of an embedding moved.
pub(super) fn leave_out_unmoved(
    inputs: &Inputs,
    tensor: &mut TensorPlan,
    metadata: &mut Metadata,
    budget: &Budget,
) -> Result<(), Error> {
    let n_rows = tensor.ne.get(1).copied().unwrap_or(1);
    let is_by_token = has_row_per_token(&tensor.name) && tensor.ne.len() == 2 && n_rows == n_tokens(metadata);
    let [term] = tensor.terms() else { return Ok(()) };
    if !is_by_token || tensor.name.len() + MOVED_ROWS.len() > gguf::MAX_NAME_BYTES {
        return Ok(());
    }
    let moved = vector::moved_rows(inputs, term, budget.threads, budget.memory)?;
    if moved.is_empty() || moved.len() as f64 > FEW * n_rows as f64 {
        return Ok(());
    }
    metadata.set(&row_tokens_key(&tensor.name), Value::Array(Array::from_u32s(&moved)));
    tensor.name += MOVED_ROWS;
    tensor.ne[1] = moved.len() as u64;
    tensor.select(moved);
    Ok(())
}
