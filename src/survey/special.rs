//! Special tokens of the chat model, and whether anyone trained the model on them.
//!
//! Continual pre-training sees plain text: the rows of `<|im_start|>` and its like get no gradient
//! in `token_embd`, and in `output` only the one that makes them rarer. A row that nobody trained
//! lies where the base has it, and then the chat model's own is the better one, whatever the ratio.
//! `docs/DECISIONS.md` has what this was tried on.

use std::cell::RefCell;

use bstr::BString;

use crate::chat::{self, TOKENS, TokenMap, Unrendered};
use crate::gguf::TensorInfo;
use crate::gguf::names::{OUTPUT, TOKEN_EMBEDDINGS};
use crate::quants;
use crate::vector::{
    Error, Inputs, RowReader, SourceId, TensorRef, TokenRows, has_row_per_token, is_readable_row, median,
    median_of_rows, place, read_token_row,
};

/// A row that went less far from the base than this share of what an ordinary row did is untrained.
/// The trio's: 0 for the tokens of its template, .7 for its end of text, which it was trained on; a
/// tenth of its ordinary tokens, too rare to have been met, has 0 too.
const UNTRAINED: f64 = 0.1;

/// The share below which a row is untrained where a file is quantised: rows that were rounded
/// twice, by different encoders, seem to have moved. The trio as Q4_K from Q8_0 files has .14 at
/// most in its two untrained tokens, and .8 in the one that was trained.
const UNTRAINED_QUANTIZED: f64 = 0.3;

/// A special token of a chat model.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct SpecialToken {
    /// Its text.
    #[serde(serialize_with = "lossy")]
    pub text: BString,
    /// Its place in the chat model.
    pub chat: u32,
    /// Its place in the model, if it is there.
    pub id: Option<u32>,
    /// Whether a conversation cannot do without it.
    pub is_needed: bool,
    /// Whether the chat's template writes it elsewhere, such as around calls of tools.
    pub is_written: bool,
    /// How far its row in the model's `token_embd` is from the base's, in units of what is usual;
    /// none where one of them has no such row.
    pub drift: Option<f64>,
    /// How far its row in the model's `output` is from the base's, in units of what is usual; none
    /// where one of them has no such row.
    pub output_drift: Option<f64>,
    /// Whether the model has the token and nobody trained it on that. Where the base has no row for
    /// it, or the files have none that can be compared, it is so for tokens that a conversation
    /// needs.
    pub is_untrained: bool,
    /// Whether its row in `output` holds what the model learnt, as it does where text without the
    /// token made it rarer.
    pub is_output_trained: bool,
    /// The tensors in which the chat model's row is the base's: the chat learnt nothing there that
    /// could be taken.
    pub unmoved: Vec<String>,
}

fn lossy<S: serde::Serializer>(text: &BString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(text)
}

/// The special tokens of the model that the chat comes from.
#[derive(Clone, PartialEq, Debug)]
pub struct SpecialTokens {
    /// The chat model or the patch.
    pub source: SourceId,
    /// Needed ones first, each in the order of the chat model.
    pub tokens: Vec<SpecialToken>,
    /// Templates that were not rendered to find them.
    pub unrendered: Vec<Unrendered>,
    /// Whether the base of the vector is the model itself, so that nothing says what the model was
    /// trained on: every token of it then counts as trained.
    pub is_base_model: bool,
}

/// Finds the special tokens of the talking model (a chat model or a patch) in the model that is
/// added to, and reads their rows of the embeddings.
///
/// # Errors
/// [`Error::Container`], [`Error::Type`], [`Error::NotFinite`].
pub fn special_tokens(inputs: &Inputs, talker: Option<SourceId>) -> Result<Option<SpecialTokens>, Error> {
    let (Some(source), Some(model)) = (talker, inputs.model()) else { return Ok(None) };
    let metadata = inputs.source(source).metadata();
    let Some(tokens) = metadata.get_strings(TOKENS) else { return Ok(None) };
    let to_own = inputs.token_map(source).map(TokenMap::inverted);
    // For a model without tokens of its own they are at the same places.
    let own = |chat: u32| to_own.as_ref().map_or(Some(chat), |map| map.find(chat));
    let ids = chat::special_ids(metadata, inputs.templates());
    let needed = ids.needed.into_iter().map(|id| (id, true, false));
    let besides = ids.written.into_iter().map(|id| (id, false, true));
    let all = needed.chain(besides).chain(ids.others.into_iter().map(|id| (id, false, false)));
    let base = inputs.vectors().iter().find(|vector| vector.plus == source).and_then(|vector| vector.minus);
    let is_base_model = match base {
        Some(base) => base == model || has_same_bytes(inputs, model, base)?,
        None => false,
    };
    let drift_of = |name| if is_base_model { Ok(None) } else { Drift::new(inputs, model, source, name) };
    let [drift, output_drift] = [drift_of(TOKEN_EMBEDDINGS)?, drift_of(OUTPUT)?];
    let moves = Moves::all(inputs, model, source);
    let is_quantized = |drift: &Option<Drift<'_>>| drift.as_ref().is_some_and(Drift::is_quantized);
    let bound = if is_quantized(&drift) || is_quantized(&output_drift) { UNTRAINED_QUANTIZED } else { UNTRAINED };
    let mut found = Vec::new();
    for (chat, is_needed, is_written) in all {
        let id = own(chat);
        let of = |drift: &Option<Drift<'_>>| match (id, drift) {
            (Some(id), Some(drift)) => drift.of(id),
            _ => Ok(None),
        };
        let (drift, output_drift) = (of(&drift)?, of(&output_drift)?);
        let text = tokens.get(chat as usize).unwrap_or_default().to_owned();
        let is_untrained = id.is_some() && drift.map_or(is_needed && !is_base_model, |drift| drift <= bound);
        let is_output_trained = output_drift.is_some_and(|drift| drift > bound);
        let mut unmoved = Vec::new();
        for moves in moves.iter().filter(|_| is_untrained) {
            unmoved.extend(moves.is_still(chat, id)?.then(|| moves.name.clone()));
        }
        found.push(SpecialToken {
            text,
            chat,
            id,
            is_needed,
            is_written,
            drift,
            output_drift,
            is_untrained,
            is_output_trained,
            unmoved,
        });
    }
    Ok(Some(SpecialTokens { source, tokens: found, unrendered: ids.unrendered, is_base_model }))
}

/// Pieces of a tensor that are compared to tell whether two files hold the same bytes, and their
/// length.
const PIECES: u64 = 16;
const PIECE_BYTES: u64 = 4096;

/// Whether another file has every tensor of the model, with the same bytes in pieces that are
/// evenly spread over it. Whatever is trained, there is a matrix that changes nearly everywhere.
fn has_same_bytes(inputs: &Inputs, model: SourceId, other: SourceId) -> Result<bool, Error> {
    let (model, other) = (inputs.source(model), inputs.source(other));
    let (mut own_bytes, mut other_bytes) = (Vec::new(), Vec::new());
    for (id, info) in model.tensors().enumerate() {
        let Some(other_id) = other.find(info.name()) else { return Ok(false) };
        let other_info = other.tensor(other_id);
        if other_info.ty() != info.ty() || !other_info.same_shape(info) {
            return Ok(false);
        }
        let len = PIECE_BYTES.min(info.size());
        own_bytes.resize(len as usize, 0);
        other_bytes.resize(len as usize, 0);
        let n_pieces = info.size().div_ceil(PIECE_BYTES).min(PIECES);
        for piece in 0..n_pieces {
            // The first at the start, the last at the end.
            let offset = (info.size() - len) * piece / (n_pieces - 1).max(1);
            model.read(id, offset, &mut own_bytes)?;
            other.read(other_id, offset, &mut other_bytes)?;
            if own_bytes != other_bytes {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// What a vector does to the rows of one tensor.
struct Moves<'a> {
    inputs: &'a Inputs,
    name: String,
    chat: TokenRows,
    base: TokenRows,
}

impl<'a> Moves<'a> {
    /// One for each tensor of the model with a row for each token of which chat and base are known.
    fn all(inputs: &'a Inputs, model: SourceId, talker: SourceId) -> Vec<Self> {
        let names = inputs.source(model).tensors().map(TensorInfo::name).filter(|name| has_row_per_token(name));
        let of = |name: &str| {
            let chat = TokenRows::of_chat(inputs, talker, name)?;
            let base = TokenRows::of_base(inputs, talker, name)?;
            let info = |rows: &TokenRows| inputs.source(rows.at.source).tensor(rows.at.tensor);
            let fits = info(&chat).row_len() == info(&base).row_len();
            let is_usable = fits && [&chat, &base].into_iter().all(|rows| is_readable_row(info(rows)));
            is_usable.then(|| Moves { inputs, name: name.to_owned(), chat, base })
        };
        names.filter_map(of).collect()
    }

    /// Whether the chat model has the base's row of a token, whose place in the chat model and in
    /// the model are given.
    fn is_still(&self, chat: u32, id: Option<u32>) -> Result<bool, Error> {
        let in_base = id.and_then(|id| place(self.inputs, &self.base, id));
        let (Some(in_chat), Some(in_base)) = (self.chat.find(chat), in_base) else { return Ok(false) };
        let row = |rows: &TokenRows, row: u32| read_token_row(self.inputs, rows.at, self.chat.at, row);
        let rows = row(&self.chat, in_chat)?.zip(row(&self.base, in_base)?);
        Ok(rows.is_some_and(|(chat, base)| chat == base))
    }
}

/// A file's row and the base's.
type TwoRows = (Vec<f32>, Vec<f32>);

/// What became of a row since the base.
pub(super) enum Stay {
    /// It is where the base has it, or so near that nobody trained it.
    Untrained,
    /// It went this far, in units of what is usual.
    Moved(f64),
}

/// How far rows of a tensor of a file went from the base. Rows are asked for by the ids of the
/// model.
pub(super) struct Drift<'a> {
    inputs: &'a Inputs,
    own: TokenRows,
    base: TokenRows,
    own_rows: RefCell<RowReader<'a>>,
    base_rows: RefCell<RowReader<'a>>,
    /// What is usual: the median of ordinary tokens.
    usual: f64,
    /// Whether any of them moved. A short training on conversations meets few tokens, so that the
    /// median may be 0.
    is_any: bool,
}

impl<'a> Drift<'a> {
    /// From the base of the vector that ends in `talker`. None if there is no base, or rows that
    /// cannot be compared.
    pub(super) fn new(inputs: &'a Inputs, own: SourceId, talker: SourceId, name: &str) -> Result<Option<Self>, Error> {
        let Some(mut drift) = Self::between(inputs, own, talker, name) else { return Ok(None) };
        let mut is_any = false;
        let distance = |row: u64| {
            let distance = drift.distance(row as u32)?;
            is_any |= distance.is_some_and(|distance| distance > 0.0);
            Ok(distance)
        };
        let usual = match drift.ordinary() {
            Some(tokens) => median(tokens.into_iter().map(u64::from), distance)?,
            None => median_of_rows(drift.info(drift.own.at).n_rows().min(u32::MAX.into()), distance)?,
        };
        (drift.usual, drift.is_any) = (usual.unwrap_or(0.0), is_any);
        Ok(Some(drift))
    }

    fn between(inputs: &'a Inputs, own: SourceId, talker: SourceId, name: &str) -> Option<Self> {
        let at = TensorRef { source: own, tensor: inputs.source(own).find(name)? };
        let own = TokenRows { at, tokens: None };
        let base = TokenRows::of_base(inputs, talker, name)?;
        let info = |at: TensorRef| inputs.source(at.source).tensor(at.tensor);
        let fits = info(own.at).row_len() == info(base.at).row_len();
        let is_usable = fits && [own.at, base.at].into_iter().all(|at| is_readable_row(info(at)));
        let rows = |at: TensorRef| RowReader::new(inputs.source(at.source), at.tensor).turned(inputs.turn(at, own.at));
        let [own_rows, base_rows] = [own.at, base.at].map(|at| RefCell::new(rows(at)));
        is_usable.then_some(Drift { inputs, own, base, own_rows, base_rows, usual: 0.0, is_any: false })
    }

    /// The tokens of the model among those that the base's rows are known of, special ones aside;
    /// none if they are of all.
    fn ordinary(&self) -> Option<Vec<u32>> {
        let (source, tokens) = (self.base.at.source, self.base.tokens.as_ref()?);
        let special = self.inputs.stored(source).map(|stored| stored.special_tokens()).unwrap_or_default();
        let to_own = self.inputs.token_map(source).map(TokenMap::inverted);
        let own = |id: u32| to_own.as_ref().map_or(Some(id), |map| map.find(id));
        Some(tokens.iter().filter(|id| special.binary_search(id).is_err()).filter_map(|id| own(*id)).collect())
    }

    fn of(&self, id: u32) -> Result<Option<f64>, Error> {
        let distance = self.distance(id)?;
        if self.usual == 0.0 && self.base.tokens.is_some() {
            // Of a few tokens that all stayed where they were nothing is learnt.
            return Ok(None);
        }
        // Where nothing was trained, nothing was trained on this either.
        Ok(distance.map(|distance| if distance == 0.0 { 0.0 } else { distance / self.usual }))
    }

    /// Whether any row of those that were looked at moved.
    pub(super) fn is_any(&self) -> bool {
        self.is_any
    }

    /// What became of the row of a token; none where one of the files has no such row.
    pub(super) fn stay(&self, id: u32) -> Result<Option<Stay>, Error> {
        let bound = if self.is_quantized() { UNTRAINED_QUANTIZED } else { UNTRAINED };
        let distance = self.of(id)?;
        Ok(distance.map(|distance| if distance <= bound { Stay::Untrained } else { Stay::Moved(distance) }))
    }

    fn is_quantized(&self) -> bool {
        [self.own.at, self.base.at].iter().any(|at| self.info(*at).ty().is_quantized())
    }

    fn info(&self, at: TensorRef) -> &TensorInfo {
        self.inputs.source(at.source).tensor(at.tensor)
    }

    /// The file's and the base's row of one token; none where one of them has no such row.
    fn rows(&self, id: u32) -> Result<Option<TwoRows>, Error> {
        let places = place(self.inputs, &self.own, id).zip(place(self.inputs, &self.base, id));
        let Some((own, base)) = places else { return Ok(None) };
        let own = self.row(self.own.at, &self.own_rows, own)?;
        Ok(own.zip(self.row(self.base.at, &self.base_rows, base)?))
    }

    /// ‖own − base‖ of one row. Where the file is quantised and the base is finer, the base as it
    /// would be in that type is the nearer of two to an untrained row.
    fn distance(&self, id: u32) -> Result<Option<f64>, Error> {
        let Some((own, base)) = self.rows(id)? else { return Ok(None) };
        let (ty, plain) = (self.info(self.own.at).ty(), distance(&own, &base));
        if plain == 0.0 || !ty.is_quantized() || ty == self.info(self.base.at).ty() || quants::requires_importance(ty) {
            return Ok(Some(plain));
        }
        let mut blocks = vec![0; self.info(self.own.at).row_size() as usize];
        let mut rounded = base.clone();
        let coded = quants::quantize_rows(ty, &base, None, &mut blocks)
            .and_then(|()| quants::dequantize_row(ty, &blocks, &mut rounded));
        Ok(Some(if coded.is_ok() { plain.min(distance(&own, &rounded)) } else { plain }))
    }

    fn row(&self, at: TensorRef, rows: &RefCell<RowReader<'a>>, row: u32) -> Result<Option<Vec<f32>>, Error> {
        let is_there = u64::from(row) < self.info(at).n_rows();
        is_there.then(|| rows.borrow_mut().read(row.into())).transpose()
    }
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
}

/// What the rows that a patch has of its base say of the model: sums over the weights of ordinary
/// tokens, in embeddings and output.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Seen {
    /// ‖model − base‖ / ‖base‖ in the embeddings: the median over rows; none where there are none.
    pub(super) ratio: Option<f64>,
    /// Σ τ², Σ (model − base)² and Σ τ·(model − base), over the rows that the vector moves.
    pub(super) tau2: f64,
    pub(super) drift2: f64,
    pub(super) inner: f64,
    /// Weights in these sums.
    pub(super) n: u64,
}

/// Looks at the rows that a patch has of its base in embeddings and output, at the model's, and at
/// what the patch adds to them.
///
/// # Errors
/// [`Error::Container`], [`Error::Type`], [`Error::NotFinite`].
pub(super) fn seen_by_patch(inputs: &Inputs, patch: SourceId) -> Result<Seen, Error> {
    let mut seen = Seen::default();
    let Some(model) = inputs.model() else { return Ok(seen) };
    for name in [TOKEN_EMBEDDINGS, OUTPUT] {
        let Some(drift) = Drift::between(inputs, model, patch, name) else { continue };
        let ratio = seen.look(inputs, patch, name, &drift)?;
        seen.ratio = seen.ratio.or(ratio.filter(|_| name == TOKEN_EMBEDDINGS));
    }
    Ok(seen)
}

impl Seen {
    /// Adds the rows of one tensor. Gives how far they are from the base's, relative to those: the
    /// median.
    fn look(&mut self, inputs: &Inputs, patch: SourceId, name: &str, drift: &Drift<'_>) -> Result<Option<f64>, Error> {
        let source = inputs.source(patch);
        let tau = source.find(name).filter(|id| is_readable_row(source.tensor(*id)));
        let turn = |tensor| inputs.turn(TensorRef { source: patch, tensor }, drift.own.at);
        let mut tau = tau.map(|id| (RowReader::new(source, id).turned(turn(id)), source.tensor(id).n_rows()));
        let relative = |row: u64| {
            let Some((own, base)) = drift.rows(row as u32)? else { return Ok(None) };
            let in_patch = inputs.token_map(patch).map_or(Some(row as u32), |map| map.find(row as u32)).map(u64::from);
            if let (Some((rows, n_rows)), Some(at)) = (&mut tau, in_patch)
                && at < *n_rows
            {
                self.add(&rows.read(at)?, &own, &base);
            }
            let norm = distance(&base, &vec![0.0; base.len()]);
            Ok((norm > 0.0).then(|| distance(&own, &base) / norm))
        };
        median(drift.ordinary().unwrap_or_default().into_iter().map(u64::from), relative)
    }

    fn add(&mut self, tau: &[f32], own: &[f32], base: &[f32]) {
        if tau.len() != own.len() || tau.iter().all(|t| *t == 0.0) {
            return;
        }
        for ((t, m), b) in tau.iter().zip(own).zip(base) {
            let (t, d) = (f64::from(*t), f64::from(*m) - f64::from(*b));
            self.tau2 += t * t;
            self.drift2 += d * d;
            self.inner += t * d;
        }
        self.n += tau.len() as u64;
    }
}
