//! Special tokens of the chat model, and whether anyone trained the model on them.
//!
//! Continual pre-training sees plain text: the rows of `<|im_start|>` and its like get no gradient in `token_embd`, and in
//! `output` only the one that makes them rarer. A row that nobody trained lies where the base has it, and then the chat
//! model's own is the better one, whatever the ratio. `docs/ARCHITECTURE.md` has what this was tried on.

use bstr::BString;

use super::pairing::{Inputs, SourceId, TensorRef};
use super::source::{Error, decode};
use super::sum::resize;
use crate::chat::{self, TOKENS, TokenMap};
use crate::gguf::TensorInfo;
use crate::quants;

/// A row that went less far from the base than this share of what an ordinary row did is untrained. The trio's: 0 for the
/// tokens of its template, .7 for its end of text, which it was trained on; a tenth of its ordinary tokens, too rare to have
/// been met, has 0 too.
const UNTRAINED: f64 = 0.1;

/// The same where a file is quantised: of rows that were rounded twice, by other encoders, something is left. The trio as Q4_K from
/// Q8_0 files has .1 at most in its two, and .7 in the one that was trained.
const UNTRAINED_QUANTIZED: f64 = 0.3;

/// Bytes of a row at most that are read for this: a row of 16 million weights of 4 bytes is no token's.
const LONGEST_ROW: u64 = 64 << 20;

/// Ordinary rows that are looked at.
const ORDINARY: u32 = 1024;

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
    /// How far its row in the model's `token_embd` is from the base's, in units of what is usual; none where one of them has
    /// no such row.
    pub drift: Option<f64>,
    /// The same of its row in `output`.
    pub output_drift: Option<f64>,
    /// What is no more than that was not trained.
    #[serde(skip)]
    bound: f64,
}

fn lossy<S: serde::Serializer>(text: &BString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(text)
}

impl SpecialToken {
    /// Whether the model has the token and nobody trained it on that. Where the base has no row for it, or the model's files
    /// have none that can be compared, it is so for tokens that a conversation needs.
    pub fn is_untrained(&self) -> bool {
        self.id.is_some() && self.drift.map_or(self.is_needed, |drift| drift <= self.bound)
    }

    /// Whether its row in `output` holds what the model learnt, as it does where text without the token made it rarer.
    pub fn is_output_trained(&self) -> bool {
        self.output_drift.is_some_and(|drift| drift > self.bound)
    }
}

/// The special tokens of the model that the chat comes from.
#[derive(Clone, PartialEq, Debug)]
pub struct SpecialTokens {
    /// The chat model or the patch.
    pub source: SourceId,
    /// Needed ones first, each in the order of the chat model.
    pub tokens: Vec<SpecialToken>,
}

impl Inputs {
    /// The source whose chat the output has: that of the first vector with a template, or else of the first. None without a
    /// vector.
    pub fn talker(&self) -> Option<SourceId> {
        let mut sources = self.vectors().iter().map(|vector| vector.plus);
        let first = sources.clone().next();
        sources.find(|id| chat::has_template(self.source(*id).metadata())).or(first)
    }
}

/// Finds the special tokens of the talking model in the model that is added to, and reads their rows of `token_embd`.
///
/// # Errors
/// [`Error::Container`], [`Error::Type`], [`Error::NotFinite`].
pub fn special_tokens(inputs: &Inputs) -> Result<Option<SpecialTokens>, Error> {
    let (Some(source), Some(model)) = (inputs.talker(), inputs.model()) else { return Ok(None) };
    let metadata = inputs.source(source).metadata();
    let Some(tokens) = metadata.get_strings(TOKENS) else { return Ok(None) };
    let to_own = inputs.token_map(source).map(TokenMap::inverted);
    // For a model without tokens of its own they are at the same places.
    let own = |chat: u32| to_own.as_ref().map_or(Some(chat), |map| map.find(chat));
    let ids = chat::special_ids(metadata);
    let needed = ids.needed.into_iter().map(|id| (id, true));
    let [drift, output_drift] =
        [Drift::new(inputs, model, source, "token_embd.weight")?, Drift::new(inputs, model, source, "output.weight")?];
    let is_quantized = |drift: &Option<Drift<'_>>| drift.as_ref().is_some_and(Drift::is_quantized);
    let bound = if is_quantized(&drift) || is_quantized(&output_drift) { UNTRAINED_QUANTIZED } else { UNTRAINED };
    let mut found = Vec::new();
    for (chat, is_needed) in needed.chain(ids.others.into_iter().map(|id| (id, false))) {
        let id = own(chat);
        let of = |drift: &Option<Drift<'_>>| match (id, drift) {
            (Some(id), Some(drift)) => drift.of(id),
            _ => Ok(None),
        };
        let (drift, output_drift) = (of(&drift)?, of(&output_drift)?);
        let text = tokens.get(chat as usize).unwrap_or_default().to_owned();
        found.push(SpecialToken { text, chat, id, is_needed, drift, output_drift, bound });
    }
    Ok(Some(SpecialTokens { source, tokens: found }))
}

/// Whether rows of a tensor can be looked at one by one.
pub fn is_readable_row(info: &TensorInfo) -> bool {
    quants::is_supported(info.ty()) && info.row_len() * 4 <= LONGEST_ROW && info.row_size() <= LONGEST_ROW
}

/// How far rows of a tensor went from the base.
struct Drift<'a> {
    inputs: &'a Inputs,
    own: TensorRef,
    base: TensorRef,
    /// What is usual: the median of ordinary tokens.
    usual: f64,
}

impl<'a> Drift<'a> {
    /// None if there is no base, or rows that cannot be compared.
    fn new(inputs: &'a Inputs, model: SourceId, talker: SourceId, name: &str) -> Result<Option<Self>, Error> {
        let minus = inputs.vectors().iter().find(|vector| vector.plus == talker).and_then(|vector| vector.minus);
        let at = |source: SourceId| {
            let tensor = inputs.source(source).find(name)?;
            Some(TensorRef { source, tensor })
        };
        let Some((own, base)) = at(model).zip(minus.and_then(at)) else { return Ok(None) };
        let info = |at: TensorRef| inputs.source(at.source).tensor(at.tensor);
        if info(own).row_len() != info(base).row_len() || ![own, base].into_iter().all(|at| is_readable_row(info(at))) {
            return Ok(None);
        }
        let mut drift = Drift { inputs, own, base, usual: 0.0 };
        let n_tokens = u32::try_from(info(own).n_rows()).unwrap_or(u32::MAX);
        let step = (n_tokens / ORDINARY).max(1) as usize;
        let mut usual = Vec::new();
        for id in (0..n_tokens).step_by(step) {
            usual.extend(drift.distance(id)?);
        }
        usual.sort_by(f64::total_cmp);
        drift.usual = usual.get(usual.len() / 2).copied().unwrap_or(0.0);
        Ok(Some(drift))
    }

    fn of(&self, id: u32) -> Result<Option<f64>, Error> {
        let distance = self.distance(id)?;
        // Where nothing was trained, nothing was trained on this either.
        Ok(distance.map(|distance| if distance == 0.0 { 0.0 } else { distance / self.usual }))
    }

    fn is_quantized(&self) -> bool {
        [self.own, self.base].iter().any(|at| self.info(*at).ty().is_quantized())
    }

    fn info(&self, at: TensorRef) -> &TensorInfo {
        self.inputs.source(at.source).tensor(at.tensor)
    }

    /// ‖model − base‖ of one row; none where one of them has no such row. Where the model is quantised and the base is finer, the
    /// base as it would be in the model's type is the nearer of two to an untrained row.
    fn distance(&self, id: u32) -> Result<Option<f64>, Error> {
        let in_base = match self.inputs.token_map(self.base.source) {
            Some(map) => map.find(id),
            None => Some(id),
        };
        let Some(in_base) = in_base else { return Ok(None) };
        let (Some(own), Some(base)) = (self.row(self.own, id)?, self.row(self.base, in_base)?) else { return Ok(None) };
        let distance = |base: &[f32]| {
            own.iter().zip(base).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
        };
        let (ty, plain) = (self.info(self.own).ty(), distance(&base));
        if plain == 0.0 || !ty.is_quantized() || ty == self.info(self.base).ty() || quants::requires_importance(ty) {
            return Ok(Some(plain));
        }
        let mut blocks = vec![0; self.info(self.own).row_size() as usize];
        let mut rounded = base.clone();
        let coded = quants::quantize_rows(ty, &base, None, &mut blocks)
            .and_then(|()| quants::dequantize_row(ty, &blocks, &mut rounded));
        Ok(Some(if coded.is_ok() { plain.min(distance(&rounded)) } else { plain }))
    }

    fn row(&self, at: TensorRef, row: u32) -> Result<Option<Vec<f32>>, Error> {
        let source = self.inputs.source(at.source);
        let info = source.tensor(at.tensor);
        if u64::from(row) >= info.n_rows() {
            return Ok(None);
        }
        let mut blocks = vec![0; info.row_size() as usize];
        source.read(at.tensor, u64::from(row) * info.row_size(), &mut blocks)?;
        let mut weights = Vec::new();
        resize(&mut weights, info.row_len() as usize);
        decode(source, at.tensor, u64::from(row) * info.row_len(), &blocks, &mut weights)?;
        Ok(Some(weights))
    }
}
