//! The chat-vector patch file: a vector on its own, to be applied to any sibling of the base.
//!
//! A patch is a GGUF file with `general.type = "chat-vector"`. Its tensors have the names and
//! shapes of the model's and hold τ = chat − base in any type the codec can read. It carries what
//! an apply needs and the chat model would have provided: hyperparameters, the vocabulary as text,
//! the chat plumbing. `docs/PATCH.md` has the format.
//!
//! This module opens patches and plans their making; both are carried out by [`crate::pipeline`],
//! and applying one is an ordinary [`MergePlan::merge`] whose vectors are patches.

pub mod encode;
pub mod extract;
pub mod lora;
pub mod low_rank;

mod decomposed;
mod product;
mod provenance;
mod rows;
mod spill;
mod stored;
mod summary;
mod tokens;
mod verify;

use std::path::{Path, PathBuf};

use crate::chat;
use crate::ggml::GgmlType;
use crate::gguf::{self, Array, Limits, Metadata, Model, Value};
use crate::pipeline::Budget;
use crate::pipeline::seal::{self, Checked};
use crate::plan::{self, MergePlan, TensorPlan, Warning};
use crate::quants;
use crate::vector::{self, FOLD_KEYS, Inputs, LOGARITHMS, Pair, Rounding, Space, fold_key};

pub use summary::{TensorSummary, bits_per_weight, bytes_beside, summary};
pub use verify::{Origin, Verification, verify};

/// The value of `general.type` in a patch.
pub const TYPE: &str = "chat-vector";
/// The newest version of the format that is read.
///
/// Version 2 is written where a reader of version 1 would compute something else: where τ of a
/// tensor is a difference of logarithms ([`LOGARITHMS`]), and where it is of folded weights
/// ([`FOLD_KEYS`]). All other files are of version 1.
pub const VERSION: u32 = 2;

const VERSION_KEY: &str = "chatvec.patch.version";
const ENCODING_KEY: &str = "chatvec.patch.encoding";

/// Ends of the names of a decomposed matrix's parts: one scale for each direction, and the codes of
/// both factors.
const SVD_SCALES: &str = ".svd_d";
/// A row of codes, as long as the matrix' own, for each direction, in zstd frames.
const SVD_A: &str = ".svd_a.zstd";
/// A row of codes, one for each row of the matrix, for each direction, in zstd frames.
const SVD_B: &str = ".svd_b.zstd";
/// Key: the matrices that are decomposed.
const SVD_TENSORS: &str = "chatvec.patch.svd.tensors";
/// Key: their weights in a row and rows, in that order, one after the other.
const SVD_SHAPES: &str = "chatvec.patch.svd.shapes";

/// Why a file is no usable patch, or none could be planned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The container.
    #[error(transparent)]
    Container(#[from] gguf::Error),
    /// The planner.
    #[error(transparent)]
    Plan(#[from] plan::Error),
    /// The file is something else.
    #[error(
        "{}: key general.type: expected \"{TYPE}\", found {found}; make a patch with chatvec extract", path.display()
    )]
    NotAPatch {
        /// The file.
        path: PathBuf,
        /// Its `general.type`.
        found: String,
    },
    /// The patch is of a format this version does not know.
    #[error("{}: key {VERSION_KEY}: expected at most {VERSION}, found {found}; a newer chatvec made it", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// What the file has of a matrix does not fit together.
    #[error("{}: tensor {tensor}: expected {expected}, found {found}; the patch is damaged", path.display())]
    Stored {
        /// The file.
        path: PathBuf,
        /// The tensor or the matrix it is a part of.
        tensor: String,
        /// What there should be.
        expected: String,
        /// What there is.
        found: String,
    },
    /// Tensors that would take more memory to compute than there is.
    #[error(
        "{}: tensor {tensor}: computing it from what is stored takes {needed} bytes of memory, allowed are {allowed}; give more --memory",
        path.display()
    )]
    Memory {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that are allowed.
        allowed: u64,
    },
    /// Tensors that would take more work to compute than a file of this size is worth.
    #[error(
        "{}: tensor {tensor}: expected at most {allowed} operations to compute all tensors of a file of {n_bytes} bytes, found {found}, \
         most of them for this one; no vector needs so many (--force goes on all the same)",
        path.display()
    )]
    Work {
        /// The file.
        path: PathBuf,
        /// The tensor that takes most.
        tensor: String,
        /// Bytes of the file.
        n_bytes: u64,
        /// Operations that are allowed: [`Limits::max_work_per_byte`] for each byte.
        allowed: u64,
        /// Operations that the file claims.
        found: u64,
    },
    /// A patch that is not what was written.
    #[error(
        "{}: expected the bytes that were written, found {found}; get the file again (chatvec verify says more, --force goes on all the \
         same)",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What its hashes say.
        found: String,
    },
    /// A key of a patch that cannot be used.
    #[error("{}: key {key}: expected {expected}; the patch is damaged", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it should be.
        expected: String,
    },
    /// Base or chat cannot be read.
    #[error(transparent)]
    Survey(#[from] vector::Error),
    /// A type that cannot be written.
    #[error(
        "a patch cannot be encoded as {ty}: {}",
        match quants::requires_importance(*.ty) {
            true => "that takes an importance matrix, and a vector has none; IQ2_S and Q2_K are near in size",
            false => "there is no encoder for it",
        }
    )]
    Encoding {
        /// The type.
        ty: GgmlType,
    },
}

/// Whether the metadata are those of a patch.
pub fn is_patch(metadata: &Metadata) -> bool {
    metadata.get_str("general.type").is_some_and(|t| t == TYPE)
}

/// Opens a patch as tensors of τ, whatever they are stored as. Whether their bytes are those that
/// were written is not looked at: [`open_whole`] does.
///
/// # Errors
/// [`Error::Container`], [`Error::NotAPatch`], [`Error::Version`], [`Error::Stored`],
/// [`Error::Key`], [`Error::Memory`], [`Error::Work`].
pub fn open(path: &Path, limits: &Limits) -> Result<Model, Error> {
    assembled(open_stored(path, limits)?, limits)
}

/// Opens a patch as [`open`] does, and reads all of it to hold it against its own hashes.
///
/// # Errors
/// As [`open`].
pub fn open_checked(path: &Path, limits: &Limits) -> Result<(Model, Checked), Error> {
    let stored = open_stored(path, limits)?;
    let checked = seal::check(&stored)?;
    Ok((assembled(stored, limits)?, checked))
}

/// Opens a patch that is to be applied: refuses one that is not what was written.
///
/// # Errors
/// As [`open`], and [`Error::Damaged`].
pub fn open_whole(path: &Path, limits: &Limits) -> Result<Model, Error> {
    let (model, checked) = open_checked(path, limits)?;
    match checked.damage() {
        None => Ok(model),
        Some(found) => Err(Error::Damaged { path: path.to_owned(), found }),
    }
}

fn assembled(stored: Model, limits: &Limits) -> Result<Model, Error> {
    tokens::check(&stored)?;
    stored::assembled(stored, limits)
}

/// Opens a patch as the tensors that are in the file.
///
/// # Errors
/// [`Error::Container`], [`Error::NotAPatch`], [`Error::Version`].
pub fn open_stored(path: &Path, limits: &Limits) -> Result<Model, Error> {
    let model = Model::open(path, limits)?;
    let metadata = model.metadata();
    if !is_patch(metadata) {
        let found = metadata.get_str("general.type").map_or("nothing".to_owned(), |t| format!("{t:?}"));
        return Err(Error::NotAPatch { path: path.to_owned(), found });
    }
    match metadata.get_u64(VERSION_KEY) {
        Some(version) if (1..=u64::from(VERSION)).contains(&version) => Ok(model),
        found => {
            let found = found.map_or("no number".to_owned(), |n| n.to_string());
            Err(Error::Version { path: path.to_owned(), found })
        }
    }
}

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
    /// The type of its matrices, or what stands in for it where a row does not divide into its
    /// blocks.
    pub encoding: GgmlType,
    /// Whether to read base and chat, for their hashes, and to leave out what they have in common.
    /// Without, the plan is that of a dry run.
    pub looks: bool,
}

/// Plans the patch `chat − base`: matrices in the encoding, everything else as F32, and what an
/// apply takes from the chat model besides. `inputs` are those of [`Inputs::extract`], `pairs`
/// theirs; what is looked at is read within the budget.
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
            tokens::leave_out_unmoved(inputs, &mut tensor, &mut metadata, budget)?;
        }
        tensors.push(tensor);
    }
    let (rows, unrendered) = tokens::rows(inputs, &mut metadata)?;
    tensors.extend(rows);
    warnings.extend(unrendered);
    describe_space(&mut metadata, &tensors);
    if !chat::has_template(&metadata) {
        warnings.push(Warning::NoTemplate);
    }
    seal::reserve(&mut metadata, tensors.len());
    Ok(MergePlan::from_parts(metadata, tensors, warnings, Vec::new())?)
}

/// Says in which numbers τ is, where they are not the weights themselves.
fn describe_space(metadata: &mut Metadata, tensors: &[TensorPlan]) {
    let names: gguf::StringArray =
        tensors.iter().filter(|t| t.space() == Space::Logarithm).map(|t| t.name.as_str()).collect();
    // gguf-py cannot write an empty array.
    if !names.is_empty() {
        metadata.set(LOGARITHMS, Value::Array(Array::Strings(names)));
    }
    let is_plain = metadata.get(LOGARITHMS).is_none() && fold_key(metadata).is_none();
    metadata.set(VERSION_KEY, Value::U32(if is_plain { 1 } else { VERSION }));
}

/// What a patch says of itself: hyperparameters of the base, everything about tokens of the chat
/// model.
fn metadata(inputs: &Inputs, encoding: GgmlType) -> Metadata {
    let vector = inputs.vectors()[0];
    let chat = inputs.source(vector.plus).metadata();
    let base = vector.minus.map_or(chat, |id| inputs.source(id).metadata());
    let architecture = base.architecture().unwrap_or_default();

    let mut patch = Metadata::default();
    patch.set("general.architecture", architecture);
    patch.set("general.type", TYPE);
    for key in ["general.name", "general.license", "general.license.name", "general.license.link", "general.languages"]
    {
        if let Some(value) = chat.get(key) {
            patch.set(key, value.clone());
        }
    }
    // Known when the tensors are.
    patch.set(VERSION_KEY, Value::U32(VERSION));
    patch.set(ENCODING_KEY, encoding.to_string().as_str());
    for key in plan::MEASURED_KEYS {
        patch.set(key, Value::F64(f64::NAN));
    }
    plan::base_models(&mut patch, inputs);
    let hyperparameters = format!("{architecture}.");
    for (key, value) in base.iter().filter(|(key, _)| key.starts_with(&hyperparameters) || key.starts_with(FOLD_KEYS)) {
        patch.set(key, value.clone());
    }
    for (key, value) in chat.iter().filter(|(key, _)| key.starts_with("tokenizer.")) {
        patch.set(key, value.clone());
    }
    patch.set("general.quantization_version", Value::U32(plan::QUANTIZATION_VERSION));
    patch
}
