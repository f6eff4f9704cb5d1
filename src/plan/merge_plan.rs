//! The plan of a whole output.

use super::{
    Embeddings, Error, OutputType, Recipe, SpecialRow, TensorPlan, Warning, compat, importance, in_f32, loads,
    metadata, mixture, requires_importance, special,
};
use crate::ggml::GgmlType;
use crate::gguf::names::{OUTPUT, OUTPUT_INPUT_SCALE, OUTPUT_SCALE};
use crate::gguf::{Header, Metadata, Model, TensorSpec};
use crate::vector::{Inputs, Kept, Pair, has_row_per_token};
use crate::{chat, survey};

/// Everything about an output that can be known before reading weights.
#[derive(Clone, PartialEq, Debug)]
pub struct MergePlan {
    pub(super) tensors: Vec<TensorPlan>,
    /// Odd but legal things, for the user.
    pub warnings: Vec<Warning>,
    /// What was taken over from the chat model's metadata.
    pub plumbing: Vec<chat::Change>,
    /// Tokens whose rows are the chat model's, by their ids.
    pub special_rows: Vec<SpecialRow>,
    pub(super) header: Header,
}

impl MergePlan {
    /// Plans `model + Σ ratio · vector`. `pairs` are those of `inputs`, and
    /// [`check`](super::check) has passed.
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
        let renamed = talker.and_then(|talker| chat::rename(&mut metadata, &inputs.renames(talker)));
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
        let chat::Transplant { mut changes, unusable } = transplanted.unwrap_or_default();
        changes.splice(0..0, renamed);
        if !unusable.is_empty() {
            warnings.push(Warning::Unusable { keys: unusable });
        }
        warnings.extend(compat::pre_tokenizer_warning(&metadata, talker));
        warnings.extend(compat::prompt_warning(&metadata, talker, inputs.templates()));
        warnings.extend(loads::warnings(&metadata, tensors.iter().map(|tensor| &*tensor.name)));
        if talker.is_some_and(|talker| !chat::has_template(talker)) {
            warnings.push(Warning::NoTemplate);
        }
        let types: Vec<_> = tensors.iter().map(|t| (t.ty, t.n_dims())).collect();
        recipe.output.describe(&mut metadata, &types);
        importance::describe(&mut metadata, inputs, &tensors);
        metadata::provenance(&mut metadata, inputs, recipe, embeddings, &special_rows);
        let plan = Self::from_parts(metadata, tensors, warnings, changes)?;
        Ok(MergePlan { special_rows, ..plan })
    }

    /// Plans the model itself in other types, as llama-quantize does it: nothing is added, and of
    /// the metadata only what follows from the types changes. `inputs` are those of
    /// [`Inputs::new`], `pairs` theirs, and
    /// [`check`](super::check) has passed.
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
        if inputs.importance().is_some() {
            // Without one, the keys of an earlier quantisation stay, as in llama-quantize.
            importance::describe(&mut metadata, inputs, &tensors);
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
            let from = tensor.model().map(|at| inputs.source(at.source).tensor(at.tensor).ty());
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
        let own_type = |tensor: &TensorPlan| match tensor.model() {
            Some(at) => inputs.source(at.source).tensor(at.tensor).ty(),
            // A vector that is extracted has no type to keep but the one it is planned in.
            None => tensor.ty,
        };
        let tensors: Vec<mixture::Tensor<'_>> =
            self.tensors.iter().map(|t| mixture::Tensor { name: &t.name, ne: &t.ne, ty: own_type(t) }).collect();
        let metadata = inputs.source(inputs.skeleton()).metadata();
        let choices = output.choose(metadata, &tensors, importance::counts(inputs, output))?;
        Ok(choices.into_iter().map(|choice| choice.ty).collect())
    }

    /// The output's header; [`MEASURED_KEYS`](super::MEASURED_KEYS) hold no values yet.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// How often the rows of the vectors are read at most, the writing pass included.
    pub fn n_passes(&self) -> u32 {
        self.tensors.iter().map(|tensor| tensor.combination().n_passes()).max().unwrap_or(1)
    }

    /// The tensors that something is added to.
    pub fn n_changed(&self) -> usize {
        self.tensors.iter().filter(|t| t.is_sum()).count()
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
    let choices = recipe.output.choose(
        inputs.source(inputs.skeleton()).metadata(),
        &tensors,
        importance::counts(inputs, &recipe.output),
    )?;
    warnings.extend(compat::fallback_warnings(&tensors, &choices));
    pairs.into_iter().zip(choices).map(|(pair, choice)| TensorPlan::new(inputs, pair, choice.ty)).collect()
}

/// Refuses types that are worthless without an importance matrix.
fn check_importance(tensors: &[TensorPlan], inputs: &Inputs, recipe: &Recipe) -> Result<(), Error> {
    let is_asked_for = inputs.importance().is_some_and(|matrix| matrix.is_asked_for());
    let lacks = |t: &&TensorPlan| {
        !t.is_copy(inputs)
            && requires_importance(&t.name, t.ty, &recipe.output)
            && (!is_asked_for || inputs.importance_of(&t.name, &t.ne, t.ty).is_none())
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
    let was = model.find(OUTPUT).is_some_and(|id| is_nvfp4(model.tensor(id).ty()));
    let is = tensors.iter().any(|t| t.name == OUTPUT && is_nvfp4(t.ty));
    if was && !is {
        tensors.retain(|t| !matches!(t.name.as_str(), OUTPUT_SCALE | OUTPUT_INPUT_SCALE));
    }
}

/// Refuses ratios that would make every weight NaN, or nothing of a vector that was asked for.
fn check_ratios(inputs: &Inputs) -> Result<(), Error> {
    match inputs.vectors().iter().map(|v| v.ratio).find(|ratio| in_f32(*ratio).is_none()) {
        Some(ratio) => Err(Error::Ratio { ratio }),
        None => Ok(()),
    }
}
