//! The output's metadata: what is dropped, and where it comes from.
//!
//! Nothing here depends on the time or the place, and only the recipe on the names of files, so
//! that the same inputs give the same bytes.

use super::{Embeddings, Recipe, SpecialRow};
use crate::gguf::{Array, Metadata, Value};
use crate::vector::{Inputs, Moments};

/// Keys whose values are known only when the run ends. They are float64 from the start, so that the
/// header keeps its size; NaN says that there is no such number, as with the survival of a zero
/// vector.
pub const MEASURED_KEYS: [&str; 4] =
    ["chatvec.delta_ratio", "chatvec.drift_cosine", "chatvec.survival", "chatvec.noise"];

/// The recipe in words, which can be run again.
pub const RECIPE_KEY: &str = "chatvec.recipe";

/// The layout of the `chatvec.*` keys.
const PROVENANCE_VERSION: u32 = 1;

/// What `general.base_model.N.*` may say of a source (gguf-py/gguf/constants.py, `Keys.General`).
const ABOUT: [&str; 9] = ["name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url"];

/// The least alignment of an output, in bytes. llama.cpp takes a file of 16 or 8 but computes on
/// the mapped tensors in place, and its CPU backend aborts on a buffer that does not begin at a
/// multiple of 32 (`TENSOR_ALIGNMENT`, ggml/src/ggml-impl.h): such files load only by luck, when
/// the header happens to end right.
const LEAST_ALIGNMENT: u32 = 32;

/// What names or describes the model that was added to and nothing else. It is kept in
/// `general.base_model.0.*`.
const IDENTITY: [&str; 7] = [
    "general.description",
    "general.url",
    "general.doi",
    "general.uuid",
    "general.repo_url",
    "general.quantized_by",
    "general.version",
];

/// Drops what is true of the input file only: its place in a split set, its ancestors, its
/// identity. One that something is added to gets a name that says so.
pub(super) fn clean(metadata: &mut Metadata, is_changed: bool) {
    let stale = ["split.", "general.base_model.", "general.source.", "chatvec."];
    metadata.retain(|key| !IDENTITY.contains(&key) && !stale.iter().any(|prefix| key.starts_with(prefix)));
    if let Some(name) = metadata.get_str("general.name").filter(|_| is_changed) {
        let name = format!("{name} + chat vector");
        metadata.set("general.name", name.as_str());
    }
    raise_alignment(metadata);
}

/// Drops what is true of a shard only. llama-quantize copies everything else too.
pub(super) fn make_whole(metadata: &mut Metadata) {
    metadata.retain(|key| !["split.no", "split.count", "split.tensors.count"].contains(&key));
    raise_alignment(metadata);
}

fn raise_alignment(metadata: &mut Metadata) {
    if metadata.get_u64("general.alignment").is_some_and(|n| n < LEAST_ALIGNMENT.into()) {
        metadata.set("general.alignment", Value::U32(LEAST_ALIGNMENT));
    }
}

/// Adds `general.base_model.*`, one entry for each input in their order, and `chatvec.*`.
pub(super) fn provenance(
    metadata: &mut Metadata,
    inputs: &Inputs,
    recipe: &Recipe,
    embeddings: Embeddings,
    special: &[SpecialRow],
) {
    base_models(metadata, inputs);
    metadata.set("chatvec.version", Value::U32(PROVENANCE_VERSION));
    let roles = inputs.sources().map(|(role, _)| role.name()).collect();
    metadata.set("chatvec.sources", Value::Array(Array::Strings(roles)));
    let ratios: Vec<f32> = inputs.vectors().iter().map(|v| v.ratio as f32).collect();
    metadata.set("chatvec.ratios", Value::Array(Array::from_f32s(&ratios)));
    metadata.set("chatvec.method", recipe.merging.method.name());
    metadata.set("chatvec.output_type", recipe.output.name().as_str());
    metadata.set("chatvec.embeddings", embeddings.name());
    // By their texts: whoever has the file sees whose rows are not sums.
    let texts = special.iter().map(|row| row.text.as_str()).collect();
    // gguf-py cannot write an empty array.
    if !special.is_empty() {
        metadata.set("chatvec.special_tokens", Value::Array(Array::Strings(texts)));
    }
    if let Some(text) = &recipe.text {
        metadata.set(RECIPE_KEY, text.as_str());
    }
    for key in MEASURED_KEYS {
        metadata.set(key, Value::F64(f64::NAN));
    }
}

/// Adds `general.base_model.*` for every input.
pub fn base_models(metadata: &mut Metadata, inputs: &Inputs) {
    metadata.set("general.base_model.count", Value::U32(inputs.sources().len() as u32));
    for (i, (_, source)) in inputs.sources().enumerate() {
        let about = source.metadata();
        for field in ABOUT {
            let value = about.get_str(&format!("general.{field}")).or_else(|| {
                // A nameless file still has to be told apart from the next one.
                (field == "name").then(|| about.get_str("general.basename")).flatten()
            });
            if let Some(value) = value {
                metadata.set(&format!("general.base_model.{i}.{field}"), Value::String(value.to_owned()));
            }
        }
    }
}

/// The metadata with the values of [`MEASURED_KEYS`]. A key that is absent stays absent.
pub fn fill_measured(metadata: &Metadata, total: &Moments) -> Metadata {
    let mut filled = metadata.clone();
    let values = [total.delta_ratio(), total.drift_cosine(), total.survival(), total.noise()];
    for (key, value) in MEASURED_KEYS.iter().zip(values) {
        if filled.get(key).is_some() {
            filled.set(key, Value::F64(value.unwrap_or(f64::NAN)));
        }
    }
    filled
}
