//! Which tensor of which file is subtracted from which, and added to which.

use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use super::combine::Combination;
use super::fold::Foldings;
use super::source::Error;
use super::space::require_space;
use super::special::{BASE_ROWS, SPECIAL_ROWS, is_zero_in, whole_name};
use crate::chat::{TOKENS, Templates, TokenMap};
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

/// The models of a run: at most one that is added to, and the vectors in the order in which they
/// are added. There is at least one of either.
#[derive(Debug)]
pub struct Inputs {
    sources: Vec<(Role, Model)>,
    model: Option<SourceId>,
    vectors: Vec<Vector>,
    importance: Option<ImportanceMatrix>,
    /// Where chat templates are rendered.
    templates: Templates,
    /// For each source, where it has the tokens of the output; made when first asked for.
    token_maps: OnceLock<Vec<Option<TokenMap>>>,
}

impl Inputs {
    /// A model and nothing that is added to it: to be quantised, or given sources and vectors by
    /// [`Inputs::add_source`] and [`Inputs::add_vector`].
    pub fn new(model: Model) -> Self {
        Inputs {
            sources: vec![(Role::Model, model)],
            model: Some(0),
            vectors: Vec::new(),
            importance: None,
            templates: Templates::default(),
            token_maps: OnceLock::new(),
        }
    }

    /// Takes a model that vectors can be made of. The one that is added to is source 0 already.
    pub fn add_source(&mut self, role: Role, model: Model) -> SourceId {
        self.sources.push((role, model));
        self.token_maps = OnceLock::new();
        self.sources.len() - 1
    }

    /// Adds a vector behind those there are. Vectors may have models in common, with each other and
    /// with what is added to.
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
            templates: Templates::default(),
            token_maps: OnceLock::new(),
        }
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

    /// With chat templates rendered elsewhere than in this process.
    #[must_use]
    pub fn with_templates(mut self, templates: Templates) -> Self {
        self.templates = templates;
        self
    }

    /// Where chat templates are rendered.
    pub fn templates(&self) -> &Templates {
        &self.templates
    }

    /// The importance matrix.
    pub fn importance(&self) -> Option<&ImportanceMatrix> {
        self.importance.as_ref()
    }

    /// The importance of the rows of an output tensor, row length first. An entry that does not fit
    /// is none here; the plan has refused it. Some rows of a matrix (`NAME.rows` of a patch) have
    /// the entry of the whole, since all rows of a matrix have one.
    pub fn importance_of(&self, tensor: &str, ne: &[u64]) -> Option<RowImportance<'_>> {
        self.importance.as_ref()?.of_tensor(whole_name(tensor), ne).ok().flatten()
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

    /// Where a source has the tokens of the output's vocabulary, before any is added to that. None
    /// if one of the two files has no tokens: rows then belong together by their number.
    ///
    /// # Panics
    /// If there is no such source.
    pub fn token_map(&self, source: SourceId) -> Option<&TokenMap> {
        let own = self.source(self.template()).metadata();
        let maps = self
            .token_maps
            .get_or_init(|| self.sources.iter().map(|(_, other)| TokenMap::new(own, other.metadata())).collect());
        maps[source].as_ref()
    }

    /// Whether any input has other tokens than the output, or has them in another order.
    pub fn vocabularies_differ(&self) -> bool {
        (0..self.sources.len()).any(|id| self.token_map(id).is_some_and(|map| !map.is_identity()))
    }

    /// Whether rows of this tensor belong to tokens, and the output has those in another order or
    /// others.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn has_moved_rows(&self, at: TensorRef) -> bool {
        let differ = self.token_map(at.source).is_some_and(|map| !map.is_identity());
        differ && is_by_token(self.source(at.source), at.tensor)
    }

    /// Where a tensor of an input has the rows of the output tensor it is a part of. Rows that its
    /// partner lacks are absent from it too, since the difference of the two is what counts; so are
    /// those of the tokens in `except`, sorted.
    ///
    /// # Panics
    /// If there are no such tensors.
    pub fn rows<'a>(&'a self, operand: &Operand, except: &'a [u32]) -> Rows<'a> {
        let map = |at: TensorRef| self.token_map(at.source).filter(|_| self.has_moved_rows(at));
        let tensor = self.source(operand.at.source).tensor(operand.at.tensor);
        let is_difference = self.role(operand.at.source) == Role::Patch;
        Rows {
            n_rows: tensor.n_rows(),
            map: map(operand.at),
            partner: operand.partner.and_then(map),
            except,
            selected: None,
            is_difference,
        }
    }

    /// Refuses inputs whose weights cannot be read on this machine. [`pair`] asks it, so no weight
    /// is read without.
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

/// Where the rows of an output tensor are in a tensor of an input.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Rows that the input's tensor has.
    n_rows: u64,
    /// None if they are in the order of the output.
    map: Option<&'a TokenMap>,
    partner: Option<&'a TokenMap>,
    except: &'a [u32],
    /// The rows that the output has, if it has not all.
    selected: Option<&'a [u32]>,
    is_difference: bool,
}

impl<'a> Rows<'a> {
    /// The same where the output has these rows alone.
    #[must_use]
    pub fn select(self, selected: Option<&'a [u32]>) -> Self {
        Rows { selected, ..self }
    }

    /// Whether the tensor holds differences: rows that it lacks are then zero. Others are those of
    /// the output's own tensor, so that the difference of two is zero and the mean of many is not
    /// drawn anywhere.
    pub fn is_difference(&self) -> bool {
        self.is_difference
    }

    /// The row of the input's tensor that belongs to this row of the output's, if there is one.
    pub fn find(&self, row: u64) -> Option<u64> {
        let row = match self.selected {
            Some(selected) => selected.get(usize::try_from(row).ok()?).copied()?.into(),
            None => row,
        };
        let id = u32::try_from(row).ok();
        let in_map = |map: &TokenMap| id.and_then(|id| map.find(id)).map(u64::from);
        if id.is_some_and(|id| self.except.binary_search(&id).is_ok())
            || self.partner.is_some_and(|p| in_map(p).is_none())
        {
            return None;
        }
        self.map.map_or(Some(row), in_map).filter(|row| *row < self.n_rows)
    }

    /// Rows of the output in groups that lie one behind the other in the input too, with the first
    /// of them there; none for a group that is absent.
    pub fn runs(self, rows: Range<u64>) -> impl Iterator<Item = (Range<u64>, Option<u64>)> {
        let is_plain =
            self.map.is_none() && self.partner.is_none() && self.except.is_empty() && self.selected.is_none();
        let mut start = rows.start;
        std::iter::from_fn(move || {
            let first = start;
            if first >= rows.end {
                return None;
            }
            let found = self.find(first);
            let mut end = first + 1;
            if is_plain && found.is_some() {
                end = rows.end.min(self.n_rows);
            }
            while end < rows.end && self.find(end) == found.map(|row| row + (end - first)) {
                end += 1;
            }
            start = end;
            Some((first..end, found))
        })
    }
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

/// A tensor that a sum is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operand {
    /// The tensor.
    pub at: TensorRef,
    /// The other half of the difference that it is half of.
    pub partner: Option<TensorRef>,
}

impl Operand {
    /// A tensor by itself.
    pub fn whole(at: TensorRef) -> Self {
        Operand { at, partner: None }
    }
}

impl Term {
    /// Plus, and minus if there is one.
    pub fn operands(&self) -> (Operand, Option<Operand>) {
        let plus = Operand { at: self.plus, partner: self.minus };
        (plus, self.minus.map(|at| Operand { at, partner: Some(self.plus) }))
    }
}

/// The tensors of a sum in the order in which they are read: the model's, then plus and minus of
/// each term.
pub fn operands(model: Option<TensorRef>, terms: &[Term]) -> impl Iterator<Item = Operand> {
    let terms = terms.iter().flat_map(|term| {
        let (plus, minus) = term.operands();
        [Some(plus), minus].into_iter().flatten()
    });
    model.map(Operand::whole).into_iter().chain(terms)
}

/// Why a tensor takes no part in the arithmetic.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// It is no weight: rope frequencies and factors belong to the model's own context length, and
    /// scales of weights that lie beside them say what those weights are, in one file.
    NotAWeight,
    /// Its type has no arithmetic.
    NoArithmetic,
    /// There is no vector.
    NoVector,
    /// No vector has a tensor of this name.
    NoPartner,
    /// A patch says that its vector is zero there.
    Zero,
    /// The recipe leaves it out.
    Skipped,
    /// It has a number for each token, and the vocabularies differ.
    ByToken,
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
    /// Rows that are no sums, sorted: the plan takes them from elsewhere. None before there is a
    /// plan.
    pub except: Vec<u32>,
}

/// Finds for every tensor of the output what it is made of: by name, and `output.weight` from
/// `token_embd.weight` in files whose embeddings are tied. A vector that is extracted has an
/// `output.weight` if either side has one.
///
/// # Errors
/// [`Error::Shape`], [`Error::OneSided`], [`Error::NoPlace`], [`Error::Folded`],
/// [`Error::FoldKey`], [`Error::PatchSpace`], and [`Error::Container`] for a big-endian file.
pub fn pair(inputs: &Inputs) -> Result<Vec<Pair>, Error> {
    inputs.require_little_endian()?;
    let template = inputs.template();
    let chat = inputs.source(template);
    let mut own: Vec<(&str, TensorRef)> = Vec::new();
    for (tensor, info) in chat.tensors().enumerate() {
        own.push((info.name(), TensorRef { source: template, tensor }));
    }
    if inputs.model().is_none() && chat.find(OUTPUT).is_none() {
        // The rows are chat's, whose embeddings are tied, also where base alone has the tensor.
        let is_untied = inputs.vectors()[0].minus.is_some_and(|base| inputs.source(base).find(OUTPUT).is_some());
        let tied = chat.find(TOKEN_EMBEDDINGS).filter(|_| is_untied);
        own.extend(tied.map(|tensor| (OUTPUT, TensorRef { source: template, tensor })));
    }
    let mut pairs = Vec::new();
    for (name, own) in own {
        let mut pair = Pair {
            name: name.to_owned(),
            model: inputs.model().map(|_| own),
            terms: Vec::new(),
            combination: Combination::default(),
            kept: kept_by_nature(inputs.source(own.source), own.tensor),
            tied: false,
            except: Vec::new(),
        };
        if name == "output.bias" && inputs.vocabularies_differ() {
            pair.kept = Some(Kept::ByToken);
        }
        if pair.kept.is_none() {
            for (number, vector) in inputs.vectors().iter().enumerate() {
                add_vector(inputs, name, own, (number, vector), &mut pair)?;
            }
            if pair.terms.is_empty() {
                let is_zero = |vector: &Vector| is_zero_in(inputs.source(vector.plus), name);
                pair.kept = Some(match inputs.vectors() {
                    [] => Kept::NoVector,
                    vectors if vectors.iter().any(is_zero) => Kept::Zero,
                    _ => Kept::NoPartner,
                });
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
    if !inputs.vectors().is_empty() {
        check_coordinates(inputs, &pairs)?;
    }
    Ok(pairs)
}

/// Refuses sums of numbers that do not belong together: tensors that are folded differently, and
/// differences in a patch that are of other numbers than those that are added.
fn check_coordinates(inputs: &Inputs, pairs: &[Pair]) -> Result<(), Error> {
    for (pair, term) in pairs.iter().flat_map(|pair| pair.terms.iter().map(move |term| (pair, term))) {
        if inputs.role(term.plus.source) == Role::Patch {
            require_space(inputs.source(term.plus.source), &pair.name)?;
        }
    }
    let Some(foldings) = Foldings::read(inputs)? else { return Ok(()) };
    for pair in pairs.iter().filter(|pair| pair.kept.is_none()) {
        foldings.check(inputs, operands(pair.model, &pair.terms).map(|operand| operand.at))?;
    }
    let template = inputs.template();
    for tensor in [TOKEN_EMBEDDINGS, OUTPUT].into_iter().filter_map(|name| inputs.source(template).find(name)) {
        foldings.check_rows(inputs, TensorRef { source: template, tensor })?;
    }
    Ok(())
}

/// The tensor that tied files do without.
pub(super) const OUTPUT: &str = "output.weight";

/// What stands for it there.
pub(super) const TOKEN_EMBEDDINGS: &str = "token_embd.weight";

fn kept_by_nature(model: &Model, id: TensorId) -> Option<Kept> {
    let info = model.tensor(id);
    let stem = info.name().strip_suffix(".weight").unwrap_or(info.name());
    match stem.rsplit('.').next() {
        Some("rope_freqs" | "rope_factors_long" | "rope_factors_short") => Some(Kept::NotAWeight),
        // What a patch has of its base and chat, beside the vector.
        _ if [SPECIAL_ROWS, BASE_ROWS].iter().any(|end| info.name().ends_with(end)) => Some(Kept::NotAWeight),
        _ if model.is_scale(id) => Some(Kept::NotAWeight),
        _ if !info.ty().is_weight_type() => Some(Kept::NoArithmetic),
        _ => None,
    }
}

fn add_vector(
    inputs: &Inputs,
    name: &str,
    own: TensorRef,
    (number, vector): (usize, &Vector),
    pair: &mut Pair,
) -> Result<(), Error> {
    let info = inputs.source(own.source).tensor(own.tensor);
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
        if !fits(inputs, own, other) {
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

/// Tensors with a row for each token (src/llama-model.cpp: those made with `n_vocab` rows).
const BY_TOKEN: [&str; 3] = [TOKEN_EMBEDDINGS, OUTPUT, "per_layer_token_embd.weight"];

/// Ends of the names of those that layers for further tokens have of their own.
const BY_TOKEN_OF_LAYERS: [&str; 2] = [".nextn.embed_tokens.weight", ".nextn.shared_head_head.weight"];

/// Whether a tensor has this name, which is one of those with a row for each token.
pub fn has_row_per_token(name: &str) -> bool {
    BY_TOKEN.contains(&name) || BY_TOKEN_OF_LAYERS.iter().any(|end| name.ends_with(end))
}

/// Whether the rows of a tensor belong to the tokens of its file, one to each.
///
/// # Panics
/// If there is no such tensor.
pub fn is_by_token(model: &Model, id: TensorId) -> bool {
    let info = model.tensor(id);
    let n_tokens = model.metadata().get_strings(TOKENS).map(|tokens| tokens.len() as u64);
    has_row_per_token(info.name()) && n_tokens == Some(info.n_rows())
}

/// Whether the rows of two tensors belong together: by their tokens where those differ, else by
/// their shape.
fn fits(inputs: &Inputs, own: TensorRef, other: TensorRef) -> bool {
    let info = |at: TensorRef| inputs.source(at.source).tensor(at.tensor);
    let is_mapped = |at: TensorRef| is_by_token(inputs.source(at.source), at.tensor);
    let differ = inputs.token_map(other.source).is_some_and(|map| !map.is_identity());
    match differ && has_row_per_token(info(own).name()) {
        true => info(own).row_len() == info(other).row_len() && is_mapped(own) && is_mapped(other),
        false => info(own).same_shape(info(other)),
    }
}

/// The tensor of this name, or the tied embedding that stands for the output.
fn find(inputs: &Inputs, source: SourceId, name: &str) -> (Option<TensorRef>, bool) {
    let model = inputs.source(source);
    let at = |tensor| TensorRef { source, tensor };
    match model.find(name) {
        Some(tensor) => (Some(at(tensor)), false),
        None if name == OUTPUT && !is_zero_in(model, name) => {
            let tied = model.find(TOKEN_EMBEDDINGS).map(at);
            (tied, tied.is_some())
        }
        None => (None, false),
    }
}

/// The tensor of this name in a source, or the tied embedding that stands for the output.
pub fn find_or_tied(inputs: &Inputs, source: SourceId, name: &str) -> Option<TensorRef> {
    find(inputs, source, name).0
}

/// Refuses a vector with tensors that the output lacks, an untied `output.weight` aside, which the
/// plan reports.
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

/// The part of a model that a tensor belongs to, for tables: the last word of its name, norms and
/// biases together.
pub fn part_of(name: &str) -> &str {
    let name = whole_name(name);
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
