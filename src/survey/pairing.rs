//! Which tensor of which file is subtracted from which, and added to which.

use std::path::Path;

use super::combine::Combination;
use super::source::Error;
use crate::ggml::GgmlType;
use crate::gguf::{self, Model, TensorId, TensorInfo};
use crate::imatrix::{ImportanceMatrix, RowImportance};

/// A model among the [`Inputs`], by its position.
pub type SourceId = usize;

/// What a model is for in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The continual-pretrained model that the vector is added to.
    Model,
    /// The base that chat and model have in common.
    Base,
    /// The chat model.
    Chat,
    /// A patch file, which holds a vector.
    Patch,
}

impl Role {
    /// The role's name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Role::Model => "model",
            Role::Base => "base",
            Role::Chat => "chat",
            Role::Patch => "patch",
        }
    }
}

/// A vector: `ratio · (plus − minus)`, or `ratio · plus` where `plus` is a patch.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Vector {
    /// The factor.
    pub ratio: f64,
    /// The chat model, or the patch.
    pub plus: SourceId,
    /// The base model.
    pub minus: Option<SourceId>,
}

/// The models of a run: at most one that is added to, and the vectors in the order in which they are added. There is at
/// least one of either.
#[derive(Debug)]
pub struct Inputs {
    sources: Vec<(Role, Model)>,
    model: Option<SourceId>,
    vectors: Vec<Vector>,
    importance: Option<ImportanceMatrix>,
}

impl Inputs {
    /// A model and nothing that is added to it: to be quantised, or given sources and vectors by [`Inputs::add_source`] and
    /// [`Inputs::add_vector`].
    pub fn new(model: Model) -> Self {
        Inputs { sources: vec![(Role::Model, model)], model: Some(0), vectors: Vec::new(), importance: None }
    }

    /// Takes a model that vectors can be made of. The one that is added to is source 0 already.
    pub fn add_source(&mut self, role: Role, model: Model) -> SourceId {
        self.sources.push((role, model));
        self.sources.len() - 1
    }

    /// Adds a vector behind those there are. Vectors may have models in common, with each other and with what is added to.
    ///
    /// # Panics
    /// If it names a source that there is not.
    pub fn add_vector(&mut self, vector: Vector) {
        assert!([Some(vector.plus), vector.minus].into_iter().flatten().all(|id| id < self.sources.len()), "a source");
        self.vectors.push(vector);
    }

    /// `model + ratio · (chat − base)`.
    pub fn merge(model: Model, base: Model, chat: Model, ratio: f64) -> Self {
        let mut inputs = Inputs::new(model);
        let minus = Some(inputs.add_source(Role::Base, base));
        let plus = inputs.add_source(Role::Chat, chat);
        inputs.add_vector(Vector { ratio, plus, minus });
        inputs
    }

    /// `chat − base`.
    pub fn extract(base: Model, chat: Model) -> Self {
        Inputs {
            sources: vec![(Role::Base, base), (Role::Chat, chat)],
            model: None,
            vectors: vec![Vector { ratio: 1.0, plus: 1, minus: Some(0) }],
            importance: None,
        }
    }

    /// A model that nothing is added to.
    pub fn quantize(model: Model) -> Self {
        Inputs::new(model)
    }

    /// `model + Σ ratio · patch`: the first patch and any further ones, each with its ratio.
    pub fn apply(model: Model, first: (Model, f64), more: impl IntoIterator<Item = (Model, f64)>) -> Self {
        let mut inputs = Inputs::new(model);
        for (patch, ratio) in std::iter::once(first).chain(more) {
            let plus = inputs.add_source(Role::Patch, patch);
            inputs.add_vector(Vector { ratio, plus, minus: None });
        }
        inputs
    }

    /// With a matrix that says how much the errors of the output's weights count.
    #[must_use]
    pub fn with_importance(mut self, matrix: ImportanceMatrix) -> Self {
        self.importance = Some(matrix);
        self
    }

    /// The importance matrix.
    pub fn importance(&self) -> Option<&ImportanceMatrix> {
        self.importance.as_ref()
    }

    /// The importance of the rows of an output tensor, row length first. An entry that does not fit is none here; the
    /// plan has refused it.
    pub fn importance_of(&self, tensor: &str, ne: &[u64]) -> Option<RowImportance<'_>> {
        self.importance.as_ref()?.of_tensor(tensor, ne).ok().flatten()
    }

    /// Every model with its role.
    pub fn sources(&self) -> impl ExactSizeIterator<Item = (Role, &Model)> {
        self.sources.iter().map(|(role, model)| (*role, model))
    }

    /// The model at this position.
    ///
    /// # Panics
    /// If there is none.
    pub fn source(&self, id: SourceId) -> &Model {
        &self.sources[id].1
    }

    /// What the model at this position is for.
    ///
    /// # Panics
    /// If there is none.
    pub fn role(&self, id: SourceId) -> Role {
        self.sources[id].0
    }

    /// The model that is added to.
    pub fn model(&self) -> Option<SourceId> {
        self.model
    }

    /// The vectors, in the order of addition.
    pub fn vectors(&self) -> &[Vector] {
        &self.vectors
    }

    /// The model whose tensors the output has, in their order: the one added to, or the chat model.
    pub fn template(&self) -> SourceId {
        self.model.unwrap_or_else(|| self.vectors[0].plus)
    }

    /// Every file of every input: what the output must not be.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let matrix = self.importance.iter().map(ImportanceMatrix::path);
        self.sources.iter().flat_map(|(_, model)| model.paths()).chain(matrix)
    }

    /// Refuses inputs whose weights cannot be read on this machine. [`pair`] asks it, so no weight is read without.
    ///
    /// # Errors
    /// [`gguf::Error::BigEndian`].
    pub fn require_little_endian(&self) -> Result<(), gguf::Error> {
        self.sources.iter().try_for_each(|(_, model)| model.require_little_endian())
    }
}

/// A tensor of an input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TensorRef {
    /// The input.
    pub source: SourceId,
    /// The tensor in it.
    pub tensor: TensorId,
}

/// One term of a sum: `ratio · (plus − minus)`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Term {
    /// The vector it belongs to, by its position among those of the [`Inputs`].
    pub vector: usize,
    /// The factor, as it is multiplied with.
    pub ratio: f32,
    /// What is added.
    pub plus: TensorRef,
    /// What is subtracted first, unless `plus` is a difference already.
    pub minus: Option<TensorRef>,
}

/// Why a tensor takes no part in the arithmetic.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// It is no weight: rope frequencies and factors belong to the model's own context length, and scales of weights that
    /// lie beside them say what those weights are, in one file.
    NotAWeight,
    /// Its type has no arithmetic.
    NoArithmetic,
    /// There is no vector.
    NoVector,
    /// No vector has a tensor of this name.
    NoPartner,
    /// The recipe leaves it out.
    Skipped,
    /// The recipe gives it of every vector a ratio of 0.
    RatioZero,
}

/// An output tensor and what it is made of.
#[derive(Clone, PartialEq, Debug)]
pub struct Pair {
    /// Its name.
    pub name: String,
    /// The tensor that is added to; none when a vector is extracted.
    pub model: Option<TensorRef>,
    /// What is added, in order; empty exactly if `kept` says why.
    pub terms: Vec<Term>,
    /// How the terms are combined.
    pub combination: Combination,
    /// Why nothing is added.
    pub kept: Option<Kept>,
    /// Whether an `output.weight` of its own meets the tied `token_embd.weight` of another file.
    pub tied: bool,
}

/// Finds for every tensor of the output what it is made of: by name, and `output.weight` from `token_embd.weight` in
/// files whose embeddings are tied. A vector that is extracted has an `output.weight` if either side has one.
///
/// # Errors
/// [`Error::Shape`], [`Error::OneSided`], [`Error::NoPlace`], and [`Error::Container`] for a big-endian file.
pub fn pair(inputs: &Inputs) -> Result<Vec<Pair>, Error> {
    inputs.require_little_endian()?;
    let template = inputs.template();
    let mut own: Vec<TensorRef> =
        (0..inputs.source(template).n_tensors()).map(|tensor| TensorRef { source: template, tensor }).collect();
    if inputs.model().is_none() && inputs.source(template).find(OUTPUT).is_none() {
        let untied = inputs.vectors()[0].minus;
        own.extend(untied.and_then(|source| Some(TensorRef { source, tensor: inputs.source(source).find(OUTPUT)? })));
    }
    let mut pairs = Vec::new();
    for own in own {
        let info = inputs.source(own.source).tensor(own.tensor);
        let mut pair = Pair {
            name: info.name().to_owned(),
            model: inputs.model().map(|_| own),
            terms: Vec::new(),
            combination: Combination::default(),
            kept: kept_by_nature(inputs.source(own.source), own.tensor),
            tied: false,
        };
        if pair.kept.is_none() {
            for (number, vector) in inputs.vectors().iter().enumerate() {
                add_vector(inputs, info, own, (number, vector), &mut pair)?;
            }
            if pair.terms.is_empty() {
                pair.kept = Some(if inputs.vectors().is_empty() { Kept::NoVector } else { Kept::NoPartner });
            }
        }
        // What is no weight has no place in a vector either.
        if pair.model.is_some() || pair.kept.is_none() {
            pairs.push(pair);
        }
    }
    for vector in inputs.vectors() {
        check_places(inputs, vector)?;
    }
    Ok(pairs)
}

/// The tensor that tied files do without.
const OUTPUT: &str = "output.weight";

fn kept_by_nature(model: &Model, id: TensorId) -> Option<Kept> {
    let info = model.tensor(id);
    let stem = info.name().strip_suffix(".weight").unwrap_or(info.name());
    match stem.rsplit('.').next() {
        Some("rope_freqs" | "rope_factors_long" | "rope_factors_short") => Some(Kept::NotAWeight),
        _ if model.is_scale(id) => Some(Kept::NotAWeight),
        _ if !info.ty().is_weight_type() => Some(Kept::NoArithmetic),
        _ => None,
    }
}

fn add_vector(
    inputs: &Inputs,
    info: &TensorInfo,
    own: TensorRef,
    (number, vector): (usize, &Vector),
    pair: &mut Pair,
) -> Result<(), Error> {
    let name = info.name();
    let (plus, plus_tied) = find(inputs, vector.plus, name);
    let (minus, minus_tied) = match vector.minus {
        Some(minus) => find(inputs, minus, name),
        None => (None, false),
    };
    if let Some(minus_id) = vector.minus {
        let one_sided = |has: SourceId, lacks: SourceId| Error::OneSided {
            tensor: name.to_owned(),
            has: inputs.source(has).path().to_owned(),
            lacks: inputs.source(lacks).path().to_owned(),
        };
        match (plus, minus) {
            (Some(_), None) => return Err(one_sided(vector.plus, minus_id)),
            (None, Some(_)) => return Err(one_sided(minus_id, vector.plus)),
            _ => {}
        }
    }
    let Some(plus) = plus else { return Ok(()) };
    for other in [Some(plus), minus].into_iter().flatten() {
        let found = inputs.source(other.source).tensor(other.tensor);
        if !found.same_shape(info) {
            return Err(Error::Shape {
                tensor: name.to_owned(),
                expected: info.ne().to_vec(),
                expected_in: inputs.source(own.source).path().to_owned(),
                found: found.ne().to_vec(),
                found_in: inputs.source(other.source).path().to_owned(),
            });
        }
    }
    pair.tied |= plus_tied || minus_tied;
    pair.terms.push(Term { vector: number, ratio: vector.ratio as f32, plus, minus });
    Ok(())
}

/// The tensor of this name, or the tied embedding that stands for the output.
fn find(inputs: &Inputs, source: SourceId, name: &str) -> (Option<TensorRef>, bool) {
    let model = inputs.source(source);
    let at = |tensor| TensorRef { source, tensor };
    match model.find(name) {
        Some(tensor) => (Some(at(tensor)), false),
        None if name == OUTPUT => {
            let tied = model.find("token_embd.weight").map(at);
            (tied, tied.is_some())
        }
        None => (None, false),
    }
}

/// Refuses a vector with tensors that the output lacks, an untied `output.weight` aside, which the plan reports.
fn check_places(inputs: &Inputs, vector: &Vector) -> Result<(), Error> {
    let (plus, own) = (inputs.source(vector.plus), inputs.source(inputs.template()));
    let names = |model: &Model| -> Vec<String> {
        let has_no_place = |(id, t): &(TensorId, &TensorInfo)| {
            kept_by_nature(model, *id).is_none() && t.name() != OUTPUT && own.find(t.name()).is_none()
        };
        model.tensors().enumerate().filter(has_no_place).map(|(_, t)| t.name().to_owned()).collect()
    };
    let tensors = names(plus);
    if !tensors.is_empty() {
        return Err(Error::NoPlace { tensors, vector: plus.path().to_owned(), model: own.path().to_owned() });
    }
    let Some(minus) = vector.minus.map(|id| inputs.source(id)) else { return Ok(()) };
    match names(minus).into_iter().next() {
        None => Ok(()),
        Some(tensor) => Err(Error::OneSided { tensor, has: minus.path().to_owned(), lacks: plus.path().to_owned() }),
    }
}

/// The part of a model that a tensor belongs to, for tables: the last word of its name, norms and biases together.
pub fn part_of(name: &str) -> &str {
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    match stem.rsplit('.').next().unwrap_or(stem) {
        _ if name.ends_with(".bias") => "biases",
        word if word.contains("norm") => "norms",
        word => word,
    }
}

impl Pair {
    /// The type of the tensor that is added to.
    pub fn model_type(&self, inputs: &Inputs) -> Option<GgmlType> {
        self.model.map(|r| inputs.source(r.source).tensor(r.tensor).ty())
    }

    /// What is known of the tensor's shape: that of the model, or of what is extracted.
    ///
    /// # Panics
    /// If the pair was not made for these inputs.
    pub fn info<'a>(&self, inputs: &'a Inputs) -> &'a TensorInfo {
        let at = self.model.unwrap_or_else(|| self.terms[0].plus);
        inputs.source(at.source).tensor(at.tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::part_of;

    #[test]
    fn parts_are_the_last_word_of_a_name() {
        assert_eq!(part_of("blk.3.attn_q.weight"), "attn_q");
        assert_eq!(part_of("blk.3.attn_q.bias"), "biases");
        assert_eq!(part_of("blk.3.attn_q_norm.weight"), "norms");
        assert_eq!(part_of("output_norm.weight"), "norms");
        assert_eq!(part_of("token_embd.weight"), "token_embd");
    }
}
