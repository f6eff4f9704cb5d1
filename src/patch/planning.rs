//! Planning the patch of base and chat.

use super::error::Error;
use super::format::{self, ENCODING, FOLDS, LOGARITHMS, PLAIN_VERSION, TYPE, TYPE_KEY, VERSION, VERSION_KEY};
use super::{provenance, seal, token_rows};
use crate::chat;
use crate::ggml::GgmlType;
use crate::gguf::{self, Array, Metadata, Model, Value};
use crate::pipeline::Budget;
use crate::plan::{self, MergePlan, TensorPlan, Warning};
use crate::quants;
use crate::vector::{Inputs, Pair, Rounding, Space, fold_key};

/// Bytes of a model's file with its matrices as F16 and its vectors as F32, as
/// convert_hf_to_gguf.py writes it.
pub fn f16_bytes(model: &Model) -> u64 {
    let size = |info: &gguf::TensorInfo| info.n_weights().saturating_mul(if info.n_dims() > 1 { 2 } else { 4 });
    let padded = |info| size(info).next_multiple_of(model.alignment());
    model.files().first().map_or(0, |file| file.header().data_offset()) + model.tensors().map(padded).sum::<u64>()
}

/// How a patch is made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Extraction {
    /// The type of the patch's matrices. Another stands in for it where a row does not divide into
    /// its blocks.
    pub encoding: GgmlType,
    /// Whether the planner reads base and chat, for their hashes, and leaves out what they have in
    /// common. A dry run does neither.
    pub looks: bool,
}

/// Plans the patch `chat − base`. It has matrices in the encoding, everything else as F32, and what
/// an apply takes from the chat model besides. `inputs` are those of [`Inputs::extract`], and
/// `pairs` what [`pair`](crate::vector::pair) found of them. Weights are read within the budget.
///
/// # Errors
/// [`Error::Encoding`], [`Error::Plan`], [`Error::Survey`], [`Error::Container`].
pub fn plan_extract(
    inputs: &Inputs,
    pairs: Vec<Pair>,
    extraction: &Extraction,
    budget: &Budget,
) -> Result<MergePlan, Error> {
    let encoding = extraction.encoding;
    if !quants::is_supported(encoding) || quants::requires_importance(encoding) {
        return Err(Error::Encoding { ty: encoding });
    }
    let architecture = inputs.source(inputs.skeleton()).metadata().architecture().unwrap_or_default();
    let mut warnings = plan::pairing_warnings(inputs, &pairs);
    let mut metadata = metadata(inputs, encoding);
    let origins = extraction.looks.then(|| provenance::Origins::read(inputs, &pairs, budget)).transpose()?;
    provenance::describe(&mut metadata, &pairs, origins.as_ref());
    let mut tensors = Vec::new();
    for pair in pairs {
        if let Some(origins) = &origins
            && origins.is_zero(inputs, &pair)?
        {
            continue;
        }
        let info = pair.info(inputs);
        let ty = match plan::is_quantizable(architecture, &pair.name, info.n_dims()) {
            true => plan::fallback(encoding, info.row_len()).unwrap_or(GgmlType::F16),
            false => GgmlType::F32,
        };
        let mut tensor = TensorPlan::new(inputs, pair, ty)?;
        if quants::has_few_values(ty) {
            tensor.rounding = Rounding::UnitGain;
        }
        if extraction.looks {
            token_rows::leave_out_unmoved(inputs, &mut tensor, &mut metadata, budget)?;
        }
        tensors.push(tensor);
    }
    let (rows, unrendered) = token_rows::plan(inputs, &mut metadata)?;
    tensors.extend(rows);
    warnings.extend(unrendered);
    describe_space(&mut metadata, &tensors);
    if !chat::has_template(&metadata) {
        warnings.push(Warning::NoTemplate);
    }
    seal::reserve(&mut metadata, tensors.len());
    Ok(MergePlan::from_parts(metadata, tensors, warnings, Vec::new())?)
}

/// Says of which numbers τ is a difference, where those are not the weights themselves. The version
/// of the format follows from that.
fn describe_space(metadata: &mut Metadata, tensors: &[TensorPlan]) {
    let names: gguf::StringArray =
        tensors.iter().filter(|t| t.space() == Space::Logarithm).map(|t| t.name.as_str()).collect();
    // gguf-py cannot write an empty array.
    if !names.is_empty() {
        metadata.set(LOGARITHMS, Value::Array(Array::Strings(names)));
    }
    let is_plain = metadata.get(LOGARITHMS).is_none() && fold_key(metadata).is_none();
    metadata.set(VERSION_KEY, Value::U32(if is_plain { PLAIN_VERSION } else { VERSION }));
}

/// What a patch says of itself. Hyperparameters are the base's, and everything about tokens is the
/// chat model's.
fn metadata(inputs: &Inputs, encoding: GgmlType) -> Metadata {
    let vector = inputs.vectors()[0];
    let chat = inputs.source(vector.plus).metadata();
    let base = vector.minus.map_or(chat, |id| inputs.source(id).metadata());
    let architecture = base.architecture().unwrap_or_default();

    let mut patch = Metadata::default();
    patch.set(format::ARCHITECTURE, architecture);
    patch.set(TYPE_KEY, TYPE);
    for key in format::OF_CHAT {
        if let Some(value) = chat.get(key) {
            patch.set(key, value.clone());
        }
    }
    // `describe_space` puts the right one here, once the tensors are known.
    patch.set(VERSION_KEY, Value::U32(VERSION));
    patch.set(ENCODING, encoding.to_string().as_str());
    for key in format::MEASURED {
        patch.set(key, Value::F64(f64::NAN));
    }
    plan::base_models(&mut patch, inputs);
    let hyperparameters = format!("{architecture}.");
    for (key, value) in base.iter().filter(|(key, _)| key.starts_with(&hyperparameters)) {
        patch.set(key, value.clone());
    }
    // τ is in the coordinates of the chat model's tensors.
    let of_chat = [FOLDS, format::TOKENIZER, format::SAMPLING];
    for (key, value) in chat.iter().filter(|(key, _)| of_chat.iter().any(|start| key.starts_with(start))) {
        patch.set(key, value.clone());
    }
    describe_renames(&mut patch, base);
    patch.set(format::QUANTIZATION, Value::U32(plan::QUANTIZATION_VERSION));
    patch
}

/// Says which tokens were placeholders in the base, and how it calls them.
fn describe_renames(patch: &mut Metadata, base: &Metadata) {
    let renames = chat::renames(base, patch);
    let Some(texts) = patch.get_strings(chat::TOKENS).filter(|_| !renames.is_empty()) else { return };
    // In the order of their ids.
    let mut next = renames.iter().peekable();
    let mut ids = Vec::new();
    for (id, text) in (0..).zip(texts.iter()) {
        if next.next_if(|rename| rename.to == *text).is_some() {
            ids.push(id);
        }
    }
    patch.set(format::RENAMED_TOKENS, Value::Array(Array::from_u32s(&ids)));
    patch.set(format::RENAMED_FROM, Value::Array(Array::Strings(renames.iter().map(|r| &r.from).collect())));
}
