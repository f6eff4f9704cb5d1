//! The planner: headers and a recipe → a [`MergePlan`] that says everything about the output before
//! a weight is read.
//!
//! It is pure: it looks at headers and nothing else, opens nothing and writes nothing. The same
//! plan is printed by a dry run and carried out by [`crate::pipeline`].

mod compat;
mod file_type;
mod importance;
mod mergekit;
mod merging;
mod metadata;
pub mod mixture;
mod output_type;
mod protect;
mod ratios;
mod recipe_file;
mod setting;
mod special;
mod survival;
mod types;

use std::path::PathBuf;

pub use compat::{Warning, check, pairing_warnings, unrendered};
pub use file_type::{FileType, QUANTIZATION_VERSION};
pub use merging::{Masks, Merging, VectorSettings};
pub use metadata::{MEASURED_KEYS, PER_TENSOR_KEYS, RECIPE_KEY, base_models, fill_measured};
pub use output_type::OutputType;
pub use protect::{Change, Protected, finer};
pub use ratios::{PRESETS, Preset, Ratios, Rule};
pub use recipe_file::{MAX_BYTES as MAX_RECIPE_BYTES, RecipeFile, VectorFile};
pub use setting::{Place, Scalar, Setting, in_f32};
pub use special::{SpecialRow, SpecialTokens};
pub use survival::{Held, Loss, LossPolicy, OnLoss, Verdict, listed};
pub use types::{fallback, is_quantizable, requires_importance};

use crate::chat;
use crate::ggml::{GgmlType, TypeError};
use crate::gguf::{self, Header, Metadata, Model, TensorSpec};
use crate::imatrix;
use crate::quants;
use crate::survey;
use crate::vector::{
    self, Combination, Encoding, Inputs, Kept, Operand, Pair, Rounding, SourceId, Space, TensorRef, Term,
    has_row_per_token,
};

/// Why no plan could be made. Nothing has been written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The output's header cannot be laid out.
    #[error(transparent)]
    Container(#[from] gguf::Error),
    /// An importance matrix that is not this model's.
    #[error(transparent)]
    Importance(#[from] imatrix::Error),
    /// Two files that must agree do not.
    #[error("{key} is {found} in {} but {expected} in {}; {hint}", found_in.display(), expected_in.display())]
    Mismatch {
        /// The metadata key.
        key: String,
        /// Its value in the model.
        expected: String,
        /// The model's file.
        expected_in: PathBuf,
        /// Its value in the other file.
        found: String,
        /// The other file.
        found_in: PathBuf,
        /// What that means.
        hint: &'static str,
    },
    /// A file without `general.architecture`.
    #[error("{}: the key general.architecture is missing; this is no model", path.display())]
    NoArchitecture {
        /// The file.
        path: PathBuf,
    },
    /// A file of another kind in place of a model.
    #[error(
        "{}: key general.type: expected \"model\", found {found:?}; {}", path.display(), advice_for(found)
    )]
    NotAModel {
        /// The file.
        path: PathBuf,
        /// Its `general.type`.
        found: String,
    },
    /// A file with metadata alone, such as the vocabularies that convert_hf_to_gguf.py makes with
    /// --vocab-only.
    #[error("{}: the file has no tensors, only metadata such as a vocabulary; give the model's own file", path.display())]
    NoTensors {
        /// The file.
        path: PathBuf,
    },
    /// A file type for which llama.cpp has no rules which tensor gets which type.
    #[error("llama.cpp has no mixture for the output type {name}; give --pure for this one type in every tensor")]
    NoRules {
        /// The type as asked for.
        name: &'static str,
    },
    /// An output type that does not exist.
    #[error("no output type is called {name:?}; known are keep, {known}")]
    UnknownType {
        /// The type as asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// Options that choose types, where every tensor keeps its own.
    #[error("with keep every tensor has its own type; give a --type for the others")]
    NoMixture,
    /// A type for some tensors that cannot be read.
    #[error("the type {text:?} for some tensors: {reason}; write REGEX=TYPE, such as attn_v=Q8_0")]
    Override {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A model that does not say how many layers it has, which the rules of a mixture need.
    #[error("the key {key} is missing or no number: without it there is no choosing types; --pure needs none")]
    NoNumber {
        /// The metadata key.
        key: String,
    },
    /// A tensor of a mixture of experts that is in no layer.
    #[error(
        "tensor {tensor} is in none of the {n_layers} layers, so its type cannot be chosen; --pure needs no layers"
    )]
    NoLayer {
        /// The tensor.
        tensor: String,
        /// How many layers the model has.
        n_layers: u64,
    },
    /// A tensor whose rows do not divide into blocks, and for which no other type stands in.
    #[error(
        "tensor {tensor} cannot be {ty}: its rows of {row_len} weights are no whole number of blocks of {}; ask for another \
         type for it with --tensor-type",
        .ty.block_len()
    )]
    Rows {
        /// The tensor.
        tensor: String,
        /// The type asked for.
        ty: GgmlType,
        /// Weights in a row.
        row_len: u64,
    },
    /// A tensor would be quantised a second time.
    #[error(
        "tensor {tensor} is {from} already; making it {to} loses more than from F16 or F32: start from such a model, or give \
         --allow-requantize"
    )]
    Requantize {
        /// The tensor.
        tensor: String,
        /// Its type in the model.
        from: GgmlType,
        /// Its type in the output.
        to: GgmlType,
    },
    /// A tensor would be written in a type that is worthless without an importance matrix.
    #[error(
        "tensor {tensor} would be {ty}, worthless without an importance matrix: give --imatrix FILE or a finer --type"
    )]
    ImportanceMissing {
        /// The tensor.
        tensor: String,
        /// Its type in the output.
        ty: GgmlType,
    },
    /// A ggml type that does not exist.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// A tensor that the recipe changes has a type that cannot be written.
    #[error("tensor {tensor} would have to be written as {ty}, for which ggml has no encoder; ask for another --type")]
    CannotEncode {
        /// The tensor.
        tensor: String,
        /// Its type in the output.
        ty: GgmlType,
    },
    /// A tensor that takes part in the sum has a type that cannot be read.
    #[error(
        "{}: tensor {tensor} is {ty}, for which ggml has no decoder; get this model as F16, Q8_0 or a K-quant",
        path.display()
    )]
    CannotDecode {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type there.
        ty: GgmlType,
    },
    /// A token of the model that another file lacks, where all were to take part.
    #[error(
        "{} of the {of} tokens of {} are not in {}, among them {example:?}: not every row can take part; --embeddings shared \
         leaves those out", n, model.display(), other.display()
    )]
    Unshared {
        /// How many.
        n: usize,
        /// How many tokens the model has.
        of: usize,
        /// One of them.
        example: String,
        /// The model's file.
        model: PathBuf,
        /// The other file.
        other: PathBuf,
    },
    /// Vocabularies that have little in common.
    #[error(
        "only {shared} of the {of} tokens of {} are in {}: the files are no siblings", model.display(), other.display()
    )]
    Vocabulary {
        /// Tokens in both.
        shared: usize,
        /// Tokens of the smaller vocabulary.
        of: usize,
        /// The model's file.
        model: PathBuf,
        /// The other file.
        other: PathBuf,
    },
    /// Tokens that a conversation needs and the model lacks.
    #[error(
        "{} lacks tokens that the chat of {} needs: {}; {}", model.display(), chat.display(), tokens.join(", "),
        if *can_be_added {
            "--add-missing-tokens gives it them with the chat model's rows, --special-tokens none goes on without"
        } else {
            "a patch has no rows for them; merge with base and chat themselves, or go on without by --special-tokens none"
        }
    )]
    MissingTokens {
        /// Their texts.
        tokens: Vec<String>,
        /// The model's file.
        model: PathBuf,
        /// The chat model's.
        chat: PathBuf,
        /// Whether there are rows for them.
        can_be_added: bool,
    },
    /// A special token that the chat model does not have.
    #[error(
        "--special-tokens: {} has no special token {text:?}: none of type control, and none that its templates write", path.display()
    )]
    UnknownToken {
        /// The text.
        text: String,
        /// The chat model's file.
        path: PathBuf,
    },
    /// Rows of special tokens are asked for, and there are none.
    #[error("--special-tokens: {} is a patch, which has no rows of its own; use auto or none", path.display())]
    NoRows {
        /// The patch.
        path: PathBuf,
    },
    /// Rows of a vector of which nothing is to reach the output.
    #[error(
        "--special-tokens names tokens whose rows are the chat model's, but the ratio of every vector is 0 everywhere, so that \
         nothing of a chat model reaches the output: give a ratio, or leave --special-tokens out"
    )]
    SilentTokens,
    /// A model whose tensors cannot grow by a token.
    #[error("{}: no tokens can be added, since chat has nothing for them in tensor {tensor}", model.display())]
    CannotAddTokens {
        /// The tensor.
        tensor: String,
        /// The model's file.
        model: PathBuf,
    },
    /// A ratio that cannot be read.
    #[error("a ratio must be a number, found {text:?}; write PATCH@0.5")]
    RatioText {
        /// The text.
        text: String,
    },
    /// A vector that cannot be read.
    #[error("the vector {text:?}: {reason}; write BASE:CHAT@0.5 or PATCH@0.5")]
    VectorText {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A ratio for some tensors that cannot be read.
    #[error("the ratio {text:?} for some tensors: {reason}; write REGEX=R, such as attn_v=0.5")]
    RatioRule {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A name of no preset.
    #[error("no preset is called {name:?}; known are {known}")]
    UnknownPreset {
        /// The name.
        name: String,
        /// What there is.
        known: String,
    },
    /// A gradient with something that is no number.
    #[error("a gradient over the layers must be of finite numbers, found {value}")]
    Gradient {
        /// What was found.
        value: f64,
    },
    /// A rule for tensors that there are not.
    #[error("no tensor's name has a match of {pattern:?}; the parts of this model are {known}")]
    NothingMatches {
        /// The expression.
        pattern: String,
        /// The last words of the tensors' names.
        known: String,
    },
    /// A recipe for models of another depth.
    #[error("the recipe is for models of {expected} layers, and these have {found}: layers cannot be left out")]
    Layers {
        /// What the recipe says.
        expected: u64,
        /// What the model says.
        found: u64,
    },
    /// A tensor for which a recipe gives a vector no weight.
    #[error(
        "vector {vector} has no weight for tensor {tensor}: none of its filters is part of the name, and none is for all"
    )]
    NoWeight {
        /// The tensor.
        tensor: String,
        /// The vector, counted from 1.
        vector: usize,
    },
    /// A tensor that not every model of a linear merge has.
    #[error("tensor {tensor} is not in every model with the same rows; a linear merge needs it there")]
    LinearGap {
        /// The tensor.
        tensor: String,
    },
    /// A mean of nothing.
    #[error("the ratios of tensor {tensor} add up to 0; a linear merge divides by their sum")]
    LinearZero {
        /// The tensor.
        tensor: String,
    },
    /// A recipe that is not what its name says.
    #[error("the recipe is no {format} that is understood: {reason}")]
    RecipeSyntax {
        /// TOML or YAML.
        format: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// A recipe that is too long to be one.
    #[error("the recipe has more than {limit} bytes")]
    RecipeTooLong {
        /// The most it may have.
        limit: u64,
    },
    /// A value of a recipe that cannot be meant, or done.
    #[error("the recipe's {key}: {reason}")]
    RecipeKey {
        /// The key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A ratio that is no number, or too large or too small to be one in f32; also a product of
    /// such, or a sum that is divided by.
    #[error("a ratio must be a finite number that f32 can hold and that does not become 0 in it, found {ratio:e}")]
    Ratio {
        /// The ratio.
        ratio: f64,
    },
}

/// What to do with a file of this kind (gguf-py/gguf/constants.py, `GGUFType`, and this crate's
/// own).
fn advice_for(kind: &str) -> &'static str {
    match kind {
        "chat-vector" => "it is a patch, which goes to chatvec apply",
        "adapter" => "it is a LoRA adapter: put it into its model first, with llama-export-lora, and give that",
        "mmproj" => "it is the part of a model that sees or hears: give the language model's own file",
        "imatrix" => "it is an importance matrix, which goes to --imatrix",
        _ => "give the model's own file",
    }
}

/// Which rows of the tensors with a row for each token take part: `token_embd`, `output`,
/// `per_layer_token_embd`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Embeddings {
    /// [`Embeddings::All`] where every token of the model is in all other files, else
    /// [`Embeddings::Shared`].
    #[default]
    Auto,
    /// Every row; a token of the model that another file lacks is an error.
    All,
    /// The rows of tokens that base and chat have too; others stay the model's.
    Shared,
    /// None: they stay the model's.
    Skip,
}

impl Embeddings {
    /// The word for it on the command line and in provenance.
    pub fn name(self) -> &'static str {
        match self {
            Embeddings::Auto => "auto",
            Embeddings::All => "all",
            Embeddings::Shared => "shared",
            Embeddings::Skip => "skip",
        }
    }
}

/// What is wanted of an output.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Recipe {
    /// The types of its tensors.
    pub output: OutputType,
    /// What becomes of the embeddings.
    pub embeddings: Embeddings,
    /// Whose rows are taken from the chat model.
    pub special_tokens: SpecialTokens,
    /// Whether the model gets tokens that the chat needs and it lacks.
    pub add_missing_tokens: bool,
    /// What is done where rounding would take the vector.
    pub loss: LossPolicy,
    /// How vectors are combined, and how much of each every tensor gets.
    pub merging: Merging,
    /// The recipe in words, for the output's metadata ([`RecipeFile::recipe`]).
    pub text: Option<String>,
}

impl Recipe {
    /// The source whose chat the output has: that of the first vector with a template, or else of
    /// the first. Vectors whose ratio is 0 in every tensor do not count; none if there is no other.
    /// `pairs` are as [`vector::pair`] found them.
    pub fn talker(&self, inputs: &Inputs, pairs: &[Pair]) -> Option<SourceId> {
        self.merging.reach(inputs, pairs).talker(inputs)
    }
}

/// One tensor of the output.
#[derive(Clone, PartialEq, Debug)]
pub struct TensorPlan {
    /// Its name.
    pub name: String,
    /// Weights along each dimension, row length first.
    pub ne: Vec<u64>,
    /// Its type in the output.
    pub ty: GgmlType,
    /// How its codes are found.
    pub rounding: Rounding,
    /// The tensor that is added to; none when a vector is extracted.
    pub model: Option<TensorRef>,
    /// What is added, in order.
    pub terms: Vec<Term>,
    /// How the terms are combined.
    pub combination: Combination,
    /// Why nothing is added, where nothing is.
    pub kept: Option<Kept>,
    /// The rows of the sources that the output has, in ascending order; none if it has all.
    pub selected: Option<Vec<u32>>,
    /// Rows that are not a sum.
    pub taken: Option<Taken>,
}

/// Rows of an output tensor that are those of another model, unscaled: special tokens that nobody
/// trained the model on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Taken {
    /// The tensor with these rows.
    pub at: TensorRef,
    /// The row in the output and the one there, by the first.
    pub rows: Vec<(u32, u32)>,
}

/// Everything about an output that can be known before reading weights.
#[derive(Clone, PartialEq, Debug)]
pub struct MergePlan {
    tensors: Vec<TensorPlan>,
    /// Odd but legal things, for the user.
    pub warnings: Vec<Warning>,
    /// What was taken over from the chat model's metadata.
    pub plumbing: Vec<chat::Change>,
    /// Tokens whose rows are the chat model's, by their ids.
    pub special_rows: Vec<SpecialRow>,
    header: Header,
}

impl MergePlan {
    /// Plans `model + Σ ratio · vector`. `pairs` are those of `inputs`, and [`check`] has passed.
    /// `special` are the chat model's special tokens, as [`survey::special_tokens`] finds them for
    /// [`Recipe::talker`]; without them no row is special.
    ///
    /// # Errors
    /// [`Error::CannotDecode`], [`Error::CannotEncode`], [`Error::Container`], [`Error::Ratio`],
    /// [`Error::Importance`], [`Error::ImportanceMissing`], [`Error::NothingMatches`],
    /// [`Error::NoWeight`], [`Error::Layers`], [`Error::LinearGap`], [`Error::LinearZero`], those
    /// of [`mixture::choose`]; and where vocabularies differ [`Error::Unshared`],
    /// [`Error::MissingTokens`], [`Error::UnknownToken`], [`Error::NoRows`],
    /// [`Error::CannotAddTokens`], [`Error::SilentTokens`].
    ///
    /// # Panics
    /// If the inputs have no model to add to, or no vector.
    pub fn merge(
        inputs: &Inputs,
        mut pairs: Vec<Pair>,
        recipe: &Recipe,
        special: Option<&survey::SpecialTokens>,
    ) -> Result<Self, Error> {
        let model = inputs.source(inputs.model().expect("a merge has a model"));
        check_ratios(inputs)?;
        let embeddings = compat::embeddings(inputs, recipe.embeddings)?;
        let mut warnings = compat::pairing_warnings(inputs, &pairs);
        let reach = recipe.merging.reach(inputs, &pairs);
        let talker = reach.talker(inputs);
        warnings.extend(compat::silent_warnings(inputs, &reach));
        for pair in pairs.iter_mut().filter(|pair| pair.kept.is_none()) {
            if recipe.embeddings == Embeddings::Skip && has_row_per_token(&pair.name) {
                pair.terms.clear();
                pair.kept = Some(Kept::Skipped);
            }
        }
        recipe.merging.apply(inputs, &mut pairs, &mut warnings)?;
        let mut tensors = plan_tensors(inputs, pairs, recipe, &mut warnings)?;
        let mut metadata = model.metadata().clone();
        let special = special.filter(|special| Some(special.source) == talker);
        let wanted = special::decide(inputs, recipe, talker, special, &mut metadata)?;
        let taken = special::take(inputs, recipe, (talker, &reach), wanted, &mut tensors)?;
        warnings.extend(compat::row_warnings(special, recipe, &taken, &tensors));
        let special_rows = taken.rows;
        drop_lost_scales(&mut tensors, model);
        warnings.extend(importance::check(inputs, &tensors)?);
        if let Some(special) = special {
            warnings.extend(compat::unrendered(inputs.source(special.source), &special.unrendered));
        }
        check_importance(&tensors, inputs, recipe)?;

        metadata::clean(&mut metadata, talker.is_some());
        // The first vector with a template is the main one; a second vector adds to it.
        let talker = talker.map(|id| inputs.source(id).metadata());
        let transplanted = talker.map(|talker| chat::transplant(&mut metadata, talker));
        let chat::Transplant { changes, unusable } = transplanted.unwrap_or_default();
        if !unusable.is_empty() {
            warnings.push(Warning::Unusable { keys: unusable });
        }
        if talker.is_some_and(|talker| !chat::has_template(talker)) {
            warnings.push(Warning::NoTemplate);
        }
        let types: Vec<_> = tensors.iter().map(|t| (t.ty, t.n_dims())).collect();
        recipe.output.describe(&mut metadata, &types);
        importance::describe(&mut metadata, inputs.importance());
        metadata::provenance(&mut metadata, inputs, recipe, embeddings, &special_rows);
        let plan = Self::from_parts(metadata, tensors, warnings, changes)?;
        Ok(MergePlan { special_rows, ..plan })
    }

    /// Plans the model itself in other types, as llama-quantize does it: nothing is added, and of
    /// the metadata only what follows from the types changes. `inputs` are those of
    /// [`Inputs::new`], `pairs` theirs, and [`check`] has passed.
    ///
    /// Whether that should be done is another question: [`MergePlan::check_quantize`].
    ///
    /// # Errors
    /// [`Error::CannotDecode`], [`Error::CannotEncode`], [`Error::Container`], and those of
    /// [`mixture::choose`].
    ///
    /// # Panics
    /// If the inputs have no model.
    pub fn quantize(inputs: &Inputs, pairs: Vec<Pair>, recipe: &Recipe) -> Result<Self, Error> {
        let model = inputs.source(inputs.model().expect("there is a model to quantise"));
        let mut warnings: Vec<Warning> = compat::importance_warning(inputs).into_iter().collect();
        let mut tensors = plan_tensors(inputs, pairs, recipe, &mut warnings)?;
        drop_lost_scales(&mut tensors, model);
        warnings.extend(importance::check(inputs, &tensors)?);
        let mut metadata = model.metadata().clone();
        metadata::make_whole(&mut metadata);
        if let Some(matrix) = inputs.importance() {
            // Without one, the keys of an earlier quantisation stay, as in llama-quantize.
            importance::describe(&mut metadata, Some(matrix));
        }
        let types: Vec<_> = tensors.iter().map(|t| (t.ty, t.n_dims())).collect();
        recipe.output.describe(&mut metadata, &types);
        Self::from_parts(metadata, tensors, warnings, Vec::new())
    }

    /// Refuses to do what would spoil a model, as llama-quantize does: quantised tensors quantised
    /// once more, unless that is allowed, and types that are worthless without an importance
    /// matrix.
    ///
    /// # Errors
    /// [`Error::Requantize`], [`Error::ImportanceMissing`].
    ///
    /// # Panics
    /// If `inputs` are not those the plan was made for.
    pub fn check_quantize(&self, inputs: &Inputs, recipe: &Recipe, allow_requantize: bool) -> Result<(), Error> {
        for tensor in self.tensors.iter().filter(|t| !allow_requantize && !t.is_copy(inputs)) {
            let from = tensor.model.map(|at| inputs.source(at.source).tensor(at.tensor).ty());
            if let Some(from) = from.filter(|ty| ty.is_quantized()) {
                return Err(Error::Requantize { tensor: tensor.name.clone(), from, to: tensor.ty });
            }
        }
        check_importance(&self.tensors, inputs, recipe)
    }

    /// A plan of which everything is decided.
    ///
    /// # Errors
    /// [`Error::Container`] if no header can be laid out.
    pub fn from_parts(
        metadata: Metadata,
        tensors: Vec<TensorPlan>,
        warnings: Vec<Warning>,
        plumbing: Vec<chat::Change>,
    ) -> Result<Self, Error> {
        let specs = tensors.iter().map(|t| TensorSpec { name: t.name.clone(), ne: t.ne.clone(), ty: t.ty });
        let header = Header::new(metadata, specs)?;
        Ok(MergePlan { tensors, warnings, plumbing, special_rows: Vec::new(), header })
    }

    /// The tensors, in the order of the output.
    pub fn tensors(&self) -> &[TensorPlan] {
        &self.tensors
    }

    /// The types its tensors would have if they were asked for as `output`, in their order.
    ///
    /// # Errors
    /// Those of [`mixture::choose`].
    ///
    /// # Panics
    /// If `inputs` are not those the plan was made for.
    pub fn types_as(&self, inputs: &Inputs, output: &OutputType) -> Result<Vec<GgmlType>, Error> {
        let own_type = |tensor: &TensorPlan| match tensor.model {
            Some(at) => inputs.source(at.source).tensor(at.tensor).ty(),
            // A vector that is extracted has no type to keep but the one it is planned in.
            None => tensor.ty,
        };
        let tensors: Vec<mixture::Tensor<'_>> =
            self.tensors.iter().map(|t| mixture::Tensor { name: &t.name, ne: &t.ne, ty: own_type(t) }).collect();
        let metadata = inputs.source(inputs.template()).metadata();
        let choices = output.choose(metadata, &tensors, inputs.importance().is_some())?;
        Ok(choices.into_iter().map(|choice| choice.ty).collect())
    }

    /// The output's header; [`MEASURED_KEYS`] hold no values yet.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// How often the rows of the vectors are read at most, the writing pass included.
    pub fn n_passes(&self) -> u32 {
        self.tensors.iter().map(|tensor| tensor.combination.n_passes()).max().unwrap_or(1)
    }

    /// The tensors that something is added to.
    pub fn n_changed(&self) -> usize {
        self.tensors.iter().filter(|t| t.kept.is_none()).count()
    }
}

/// The plan of every tensor, with what fell back on another type among the warnings.
fn plan_tensors(
    inputs: &Inputs,
    pairs: Vec<Pair>,
    recipe: &Recipe,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<TensorPlan>, Error> {
    let infos = pairs.iter().map(|pair| pair.info(inputs));
    let tensors: Vec<_> = infos.map(|t| mixture::Tensor { name: t.name(), ne: t.ne(), ty: t.ty() }).collect();
    let choices =
        recipe.output.choose(inputs.source(inputs.template()).metadata(), &tensors, inputs.importance().is_some())?;
    warnings.extend(compat::fallback_warnings(&tensors, &choices));
    pairs.into_iter().zip(choices).map(|(pair, choice)| TensorPlan::new(inputs, pair, choice.ty)).collect()
}

/// Refuses types that are worthless without an importance matrix.
fn check_importance(tensors: &[TensorPlan], inputs: &Inputs, recipe: &Recipe) -> Result<(), Error> {
    let lacks = |t: &&TensorPlan| {
        !t.is_copy(inputs)
            && requires_importance(&t.name, t.ty, &recipe.output)
            && inputs.importance_of(&t.name, &t.ne).is_none()
    };
    match tensors.iter().find(lacks) {
        Some(t) => Err(Error::ImportanceMissing { tensor: t.name.clone(), ty: t.ty }),
        None => Ok(()),
    }
}

/// Removes the scales of an `output.weight` that is NVFP4 no more: llama.cpp looks for them beside
/// that type alone, and refuses files with tensors it does not look for (src/llama-model.cpp,
/// `load_tensors`). The weights are then written as they are; see [`TensorPlan::keeps_scale`].
fn drop_lost_scales(tensors: &mut Vec<TensorPlan>, model: &Model) {
    let is_nvfp4 = |ty| ty == GgmlType::NVFP4;
    let was = model.find("output.weight").is_some_and(|id| is_nvfp4(model.tensor(id).ty()));
    let is = tensors.iter().any(|t| t.name == "output.weight" && is_nvfp4(t.ty));
    if was && !is {
        tensors.retain(|t| !matches!(t.name.as_str(), "output.scale" | "output.input_scale"));
    }
}

/// Refuses ratios that would make every weight NaN, or nothing of a vector that was asked for.
fn check_ratios(inputs: &Inputs) -> Result<(), Error> {
    match inputs.vectors().iter().map(|v| v.ratio).find(|ratio| in_f32(*ratio).is_none()) {
        Some(ratio) => Err(Error::Ratio { ratio }),
        None => Ok(()),
    }
}

impl TensorPlan {
    /// The plan of one tensor in this type.
    ///
    /// # Errors
    /// [`Error::CannotDecode`], [`Error::CannotEncode`] if the codec cannot do what that takes.
    pub fn new(inputs: &Inputs, pair: Pair, ty: GgmlType) -> Result<Self, Error> {
        let ne = pair.info(inputs).ne().to_vec();
        let Pair { name, model, terms, combination, kept, .. } = pair;
        let rounding = Rounding::Encoder;
        let plan = TensorPlan { name, ne, ty, rounding, model, terms, combination, kept, selected: None, taken: None };
        plan.check_types(inputs)?;
        Ok(plan)
    }

    /// Whether the codec can do what this tensor takes.
    fn check_types(&self, inputs: &Inputs) -> Result<(), Error> {
        if self.is_copy(inputs) {
            return Ok(());
        }
        for at in self.sources().chain(self.taken.iter().map(|taken| taken.at)) {
            let (source, info) = (inputs.source(at.source), inputs.source(at.source).tensor(at.tensor));
            if !quants::is_supported(info.ty()) {
                let (path, tensor) = (source.path_of(at.tensor).to_owned(), info.name().to_owned());
                return Err(Error::CannotDecode { path, tensor, ty: info.ty() });
            }
        }
        if !quants::is_supported(self.ty) {
            return Err(Error::CannotEncode { tensor: self.name.clone(), ty: self.ty });
        }
        Ok(())
    }

    /// Every tensor that is read for this one, once: the model's, then those of the terms in their
    /// order.
    pub fn sources(&self) -> impl Iterator<Item = TensorRef> {
        self.operands().into_iter().map(|operand| operand.at)
    }

    /// The same, with what each is half of.
    pub fn operands(&self) -> Vec<Operand> {
        let mut operands: Vec<Operand> = Vec::new();
        for operand in vector::operands(self.model, &self.terms).map(|operand| self.operand(operand)) {
            if !operands.contains(&operand) {
                operands.push(operand);
            }
        }
        operands
    }

    /// An operand as [`TensorPlan::operands`] has it: what it is half of matters only where rows
    /// belong to tokens.
    pub fn operand(&self, operand: Operand) -> Operand {
        if has_row_per_token(&self.name) { operand } else { Operand { partner: None, ..operand } }
    }

    /// What numbers of it are added; weights that nothing is added to stay as they are.
    pub fn space(&self) -> Space {
        if self.terms.is_empty() { Space::AsStored } else { Space::of(&self.name) }
    }

    /// The rows of [`TensorPlan::taken`] in the output.
    pub fn taken_rows(&self) -> Vec<u32> {
        self.taken.iter().flat_map(|taken| taken.rows.iter().map(|(row, _)| *row)).collect()
    }

    /// Whether nothing is read but the model's blocks, which are taken as they are.
    pub fn is_copy(&self, inputs: &Inputs) -> bool {
        self.takes_blocks(inputs) && self.taken.is_none()
    }

    /// Whether the model's blocks are taken as they are, [`TensorPlan::taken`] rows aside.
    pub fn takes_blocks(&self, inputs: &Inputs) -> bool {
        let same_type = |at: TensorRef| inputs.source(at.source).tensor(at.tensor).ty() == self.ty;
        self.terms.is_empty() && self.model.is_some_and(same_type)
    }

    /// Whether the model's scales of these weights ([`Model::scale_of`]) are beside them in the
    /// output, too: the blocks then hold weight / scale.
    pub fn keeps_scale(&self, inputs: &Inputs) -> bool {
        let is_dropped = self.name == "output.weight" && self.ty != GgmlType::NVFP4;
        !is_dropped && self.model.is_some_and(|at| inputs.source(at.source).scale_of(at.tensor).is_some())
    }

    /// Its type, and how its codes are found.
    pub fn encoding(&self) -> Encoding {
        Encoding { ty: self.ty, rounding: self.rounding }
    }

    /// Weights in all.
    pub fn n_weights(&self) -> u64 {
        if self.ne.first() == Some(&0) { 0 } else { self.ne.iter().product() }
    }

    /// Dimensions without trailing ones, at least 1 (`ggml_n_dims`).
    pub fn n_dims(&self) -> usize {
        self.ne.iter().rposition(|&n| n > 1).map_or(1, |i| i + 1)
    }

    /// Bytes in the output.
    ///
    /// # Panics
    /// If the type or the shape was changed to a pair that does not fit.
    pub fn size(&self) -> u64 {
        self.ty.size_of(self.n_weights()).expect("the header was laid out with it")
    }
}
