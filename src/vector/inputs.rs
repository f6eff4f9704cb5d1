//! The models of a run, and what each is for.

use std::path::Path;
use std::sync::OnceLock;

use super::error::Error;
use super::fold::{FoldedTensor, Folding, Turn};
use super::names::{has_row_per_token, is_by_token};
use super::rows::Rows;
use super::stored::StoredVector;
use super::term::{Operand, SourceId, TensorRef};
use crate::chat::{self, Rename, Templates, TokenMap};
use crate::ggml::GgmlType;
use crate::gguf::names::{OUTPUT, TOKEN_EMBEDDINGS};
use crate::gguf::{self, Model, TensorInfo};
use crate::imatrix::{FlatFor, ImportanceMatrix, RowImportance};

/// The longest rows that a flat importance is for, in weights: 64 MiB of ones. The longest in use have
/// some hundred thousand.
const LONGEST_FLAT: u64 = 1 << 24;

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
    /// A file that holds a vector by itself.
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

/// A file of a run.
#[derive(Debug)]
enum Source {
    Model(Role, Box<Model>),
    Vector(Box<dyn StoredVector>),
}

impl Source {
    fn role(&self) -> Role {
        match self {
            Source::Model(role, _) => *role,
            Source::Vector(_) => Role::Patch,
        }
    }

    fn model(&self) -> &Model {
        match self {
            Source::Model(_, model) => model,
            Source::Vector(stored) => stored.model(),
        }
    }

    fn stored(&self) -> Option<&dyn StoredVector> {
        match self {
            Source::Model(..) => None,
            Source::Vector(stored) => Some(&**stored),
        }
    }
}

/// The models of a run: at most one that is added to, and the vectors in the order in which they
/// are added. There is at least one of either.
#[derive(Debug)]
pub struct Inputs {
    sources: Vec<Source>,
    model: Option<SourceId>,
    vectors: Vec<Vector>,
    importance: Option<ImportanceMatrix>,
    /// Where chat templates are rendered.
    templates: Templates,
    /// For each source, where it has the tokens of the output; made when first asked for.
    token_maps: OnceLock<Vec<Option<TokenMap>>>,
    /// How each source is folded; read when first asked for.
    foldings: OnceLock<Vec<Option<Folding>>>,
}

impl Inputs {
    /// A model and nothing that is added to it: to be quantised, or given sources and vectors by
    /// [`Inputs::add_source`], [`Inputs::add_patch`] and [`Inputs::add_vector`].
    pub fn new(model: Model) -> Self {
        Inputs {
            sources: vec![Source::Model(Role::Model, Box::new(model))],
            model: Some(0),
            vectors: Vec::new(),
            importance: None,
            templates: Templates::default(),
            token_maps: OnceLock::new(),
            foldings: OnceLock::new(),
        }
    }

    /// Takes a model that vectors can be made of. The one that is added to is source 0 already.
    ///
    /// # Panics
    /// If the role is that of a patch: [`Inputs::add_patch`] takes those.
    pub fn add_source(&mut self, role: Role, model: Model) -> SourceId {
        assert_ne!(role, Role::Patch, "a patch says more than a model: see add_patch");
        self.add(Source::Model(role, Box::new(model)))
    }

    /// Takes a file that holds a vector by itself.
    pub fn add_patch(&mut self, patch: impl StoredVector + 'static) -> SourceId {
        self.add(Source::Vector(Box::new(patch)))
    }

    fn add(&mut self, source: Source) -> SourceId {
        self.sources.push(source);
        self.token_maps = OnceLock::new();
        self.foldings = OnceLock::new();
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
        let source = |role, model| Source::Model(role, Box::new(model));
        Inputs {
            sources: vec![source(Role::Base, base), source(Role::Chat, chat)],
            model: None,
            vectors: vec![Vector { ratio: 1.0, plus: 1, minus: Some(0) }],
            importance: None,
            templates: Templates::default(),
            token_maps: OnceLock::new(),
            foldings: OnceLock::new(),
        }
    }

    /// `model + Σ ratio · patch`: the first patch and any further ones, each with its ratio.
    pub fn apply<P: StoredVector + 'static>(
        model: Model,
        first: (P, f64),
        more: impl IntoIterator<Item = (P, f64)>,
    ) -> Self {
        let mut inputs = Inputs::new(model);
        for (patch, ratio) in std::iter::once(first).chain(more) {
            let plus = inputs.add_patch(patch);
            inputs.add_vector(Vector { ratio, plus, minus: None });
        }
        inputs
    }

    /// Changes the ratios of the vectors, in their order.
    pub fn set_ratios(&mut self, ratios: impl IntoIterator<Item = f64>) {
        self.vectors.iter_mut().zip(ratios).for_each(|(vector, ratio)| vector.ratio = ratio);
    }

    /// With a matrix that says how much the errors of the output's weights count.
    #[must_use]
    pub fn with_importance(mut self, matrix: ImportanceMatrix) -> Self {
        self.importance = Some(matrix);
        self
    }

    /// With every weight of these tensors as important as any other ([`ImportanceMatrix::flat`]).
    #[must_use]
    pub fn with_flat_importance(self, which: FlatFor) -> Self {
        let tensors = self.sources.iter().flat_map(|source| source.model().tensors());
        let rows = tensors.filter(|info| info.n_weights() > 0).map(TensorInfo::row_len);
        let longest = rows.max().unwrap_or(0).min(LONGEST_FLAT);
        self.with_importance(ImportanceMatrix::flat(longest as usize, which))
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

    /// The importance of the rows of an output tensor in this type, row length first. An entry that
    /// does not fit
    /// is none here; the plan has refused it.
    pub fn importance_of(&self, tensor: &str, ne: &[u64], ty: GgmlType) -> Option<RowImportance<'_>> {
        self.importance.as_ref()?.of_tensor(tensor, ne, ty).ok().flatten()
    }

    /// Every model with its role.
    pub fn sources(&self) -> impl ExactSizeIterator<Item = (Role, &Model)> {
        self.sources.iter().map(|source| (source.role(), source.model()))
    }

    /// The model at this position.
    ///
    /// # Panics
    /// If there is none.
    pub fn source(&self, id: SourceId) -> &Model {
        self.sources[id].model()
    }

    /// What the model at this position is for.
    ///
    /// # Panics
    /// If there is none.
    pub fn role(&self, id: SourceId) -> Role {
        self.sources[id].role()
    }

    /// What the source at this position says of the vector that it holds; none if it is a model.
    ///
    /// # Panics
    /// If there is no such source.
    pub fn stored(&self, id: SourceId) -> Option<&dyn StoredVector> {
        self.sources[id].stored()
    }

    /// Whether the source at this position holds a vector with a tensor of this name.
    pub(super) fn lists(&self, id: SourceId, name: &str) -> bool {
        self.stored(id).is_some_and(|stored| stored.lists(name))
    }

    /// Whether the source at this position holds a vector with a tensor of this name, which is
    /// zero.
    pub(super) fn is_zero(&self, id: SourceId, name: &str) -> bool {
        self.stored(id).is_some_and(|stored| stored.is_zero(name))
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
    pub fn skeleton(&self) -> SourceId {
        self.model.unwrap_or_else(|| self.vectors[0].plus)
    }

    /// Every file of every input: what the output must not be.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let matrix = self.importance.iter().filter_map(ImportanceMatrix::path);
        self.sources.iter().flat_map(|source| source.model().paths()).chain(matrix)
    }

    /// Where a source has the tokens of the output's vocabulary, before any is added to that. None
    /// if one of the two files has no tokens: rows then belong together by their number.
    ///
    /// # Panics
    /// If there is no such source.
    pub fn token_map(&self, source: SourceId) -> Option<&TokenMap> {
        let maps = self.token_maps.get_or_init(|| {
            let renames = self.all_renames();
            (0..self.sources.len()).map(|id| self.new_token_map(id, &renames)).collect()
        });
        maps[source].as_ref()
    }

    fn new_token_map(&self, source: SourceId, renames: &[Rename]) -> Option<TokenMap> {
        let (own, other) = (self.source(self.skeleton()).metadata(), self.source(source).metadata());
        match chat::renamed_vocabulary(own, &chat::renames_between(own, other, renames)) {
            Some(renamed) => TokenMap::new(&renamed, other),
            None => TokenMap::new(own, other),
        }
    }

    /// The placeholders of the output's vocabulary that a source has names for. Names that the output
    /// has already stay.
    ///
    /// # Panics
    /// If there is no such source.
    pub fn renames(&self, source: SourceId) -> Vec<Rename> {
        let (own, other) = (self.source(self.skeleton()).metadata(), self.source(source).metadata());
        let all = self.all_renames();
        let mut renames = chat::renames_between(own, other, &all);
        renames.retain(|rename| all.contains(rename));
        renames
    }

    /// The placeholders that chats have given names to: of each vector, and those that patches list.
    fn all_renames(&self) -> Vec<Rename> {
        let of_vector = |vector: &Vector| match (self.stored(vector.plus), vector.minus) {
            (Some(stored), _) => stored.renames(),
            (None, Some(base)) => chat::renames(self.source(base).metadata(), self.source(vector.plus).metadata()),
            (None, None) => Vec::new(),
        };
        self.vectors.iter().flat_map(of_vector).collect()
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
    /// those of the tokens in `except`, sorted. `own` is the tensor in whose coordinates the output
    /// has them: what it is added to, or the first that is added.
    ///
    /// # Panics
    /// If there are no such tensors.
    pub fn rows<'a>(&'a self, operand: &Operand, own: TensorRef, except: &'a [u32]) -> Rows<'a> {
        let map = |at: TensorRef| self.token_map(at.source).filter(|_| self.has_moved_rows(at));
        let tensor = self.source(operand.at.source).tensor(operand.at.tensor);
        let is_difference = self.stored(operand.at.source).is_some();
        Rows {
            n_rows: tensor.n_rows(),
            map: map(operand.at),
            partner: operand.partner.and_then(map),
            except,
            selected: None,
            is_difference,
            turn: self.turn(operand.at, own),
        }
    }

    /// How rows of a tensor become rows that are folded as those of `own`; none if they are so
    /// already. What cannot be turned is refused by [`pair`](super::pair), before a weight is read.
    ///
    /// # Panics
    /// If there are no such tensors.
    pub fn turn(&self, at: TensorRef, own: TensorRef) -> Option<Turn<'_>> {
        let foldings = self.foldings().ok().filter(|foldings| foldings.iter().any(Option::is_some))?;
        let folded = |at: TensorRef| FoldedTensor::new(self.source(at.source), foldings[at.source].as_ref(), at.tensor);
        folded(at).turn(folded(own)).ok().flatten()
    }

    /// Refuses inputs of which no way is known into the coordinates of the tensor `own`: the
    /// tensors of a sum, and the rows of tokens, which may be taken from any input that has them.
    ///
    /// # Errors
    /// [`Error::FoldKey`], [`Error::Folded`].
    pub(super) fn check_turns(&self, own: TensorRef, parts: impl IntoIterator<Item = TensorRef>) -> Result<(), Error> {
        let foldings = self.foldings()?;
        let folded = |at: TensorRef| FoldedTensor::new(self.source(at.source), foldings[at.source].as_ref(), at.tensor);
        parts.into_iter().try_for_each(|at| folded(at).turn(folded(own)).map(drop))?;
        let own = folded(own);
        if !has_row_per_token(own.name) {
            return Ok(());
        }
        for (id, (_, model)) in self.sources().enumerate() {
            let is_tied = own.name == OUTPUT && model.find(OUTPUT).is_none() && !self.lists(id, OUTPUT);
            let name = if is_tied { TOKEN_EMBEDDINGS } else { own.name };
            FoldedTensor { model, folding: foldings[id].as_ref(), name, row_len: own.row_len }.turn(own)?;
        }
        Ok(())
    }

    /// How each source is folded.
    ///
    /// # Errors
    /// [`Error::FoldKey`].
    pub(super) fn foldings(&self) -> Result<&[Option<Folding>], Error> {
        if let Some(foldings) = self.foldings.get() {
            return Ok(foldings);
        }
        let read: Vec<_> = self.sources().map(|(_, model)| Folding::read(model)).collect::<Result<_, _>>()?;
        Ok(self.foldings.get_or_init(|| read))
    }

    /// Refuses inputs whose weights cannot be read on this machine. [`pair`](super::pair) asks it,
    /// so no weight is read without.
    ///
    /// # Errors
    /// [`gguf::Error::BigEndian`].
    pub fn require_little_endian(&self) -> Result<(), gguf::Error> {
        self.sources.iter().try_for_each(|source| source.model().require_little_endian())
    }
}

/// The tensor of this name, or the tied embedding that stands for the output.
pub(super) fn find(inputs: &Inputs, source: SourceId, name: &str) -> (Option<TensorRef>, bool) {
    let model = inputs.source(source);
    let at = |tensor| TensorRef { source, tensor };
    match model.find(name) {
        Some(tensor) => (Some(at(tensor)), false),
        None if name == OUTPUT && !inputs.is_zero(source, name) => {
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
