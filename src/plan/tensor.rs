//! The plan of one tensor.

use super::Error;
use crate::ggml::GgmlType;
use crate::gguf::names::OUTPUT;
use crate::quants;
use crate::vector::{
    self, Combination, Encoding, Inputs, Kept, Method, Operand, Pair, Rounding, Space, TensorRef, Term,
    has_row_per_token,
};

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
    /// What its weights are.
    pub content: Content,
}

/// What the weights of an output tensor are.
#[derive(Clone, PartialEq, Debug)]
pub enum Content {
    /// Those of the model.
    Copied {
        /// The model's tensor.
        from: TensorRef,
        /// Why nothing is added.
        why: Kept,
        /// Rows that are another model's all the same.
        taken: Option<Taken>,
    },
    /// A sum.
    Sum {
        /// What is added, and to what.
        sum: PlannedSum,
        /// Rows that are no sum, but another model's.
        taken: Option<Taken>,
    },
    /// Rows of one tensor, and nothing else.
    Rows(Taken),
}

/// A sum of tensors.
#[derive(Clone, PartialEq, Debug)]
pub struct PlannedSum {
    /// The tensor that is added to; none when a vector is extracted.
    pub model: Option<TensorRef>,
    /// What is added, in order; one at least.
    pub terms: Vec<Term>,
    /// How the terms are combined.
    pub combination: Combination,
    /// The rows of the sources that the output has, in ascending order; none if it has all.
    pub selected: Option<Vec<u32>>,
}

/// How terms are combined where there are none.
static NO_TERMS: Combination =
    Combination { method: Method::TaskArithmetic, parts: Vec::new(), normalize: false, rescale: false, lambda: 1.0 };

/// Rows of an output tensor that are those of another model, unscaled: special tokens that nobody
/// trained the model on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Taken {
    /// The tensor with these rows.
    pub at: TensorRef,
    /// The tensor as whose rows they are folded.
    pub own: TensorRef,
    /// The row in the output and the one there, by the first.
    pub rows: Vec<(u32, u32)>,
}

impl TensorPlan {
    /// The plan of one tensor in this type.
    ///
    /// # Errors
    /// [`Error::CannotDecode`], [`Error::CannotEncode`] if the codec cannot do what that takes.
    pub fn new(inputs: &Inputs, pair: Pair, ty: GgmlType) -> Result<Self, Error> {
        let ne = pair.info(inputs).ne().to_vec();
        let Pair { name, model, terms, combination, kept, .. } = pair;
        let content = match kept {
            Some(why) => Content::Copied { from: model.expect("only a model is kept"), why, taken: None },
            None => Content::Sum { sum: PlannedSum { model, terms, combination, selected: None }, taken: None },
        };
        let plan = TensorPlan { name, ne, ty, rounding: Rounding::Encoder, content };
        plan.check_types(inputs)?;
        Ok(plan)
    }

    /// The sum, where something is added.
    pub fn sum(&self) -> Option<&PlannedSum> {
        match &self.content {
            Content::Sum { sum, .. } => Some(sum),
            Content::Copied { .. } | Content::Rows(_) => None,
        }
    }

    /// Whether something is added.
    pub fn is_sum(&self) -> bool {
        self.sum().is_some()
    }

    /// Why nothing is added, where nothing is.
    pub fn kept(&self) -> Option<Kept> {
        match &self.content {
            Content::Copied { why, .. } => Some(*why),
            Content::Sum { .. } => None,
            Content::Rows(_) => Some(Kept::NotAWeight),
        }
    }

    /// The model's tensor, which is copied or added to.
    pub fn model(&self) -> Option<TensorRef> {
        match &self.content {
            Content::Copied { from, .. } => Some(*from),
            Content::Sum { sum, .. } => sum.model,
            Content::Rows(_) => None,
        }
    }

    /// The tensor in whose coordinates a sum is: the model's, or the first that is added.
    ///
    /// # Panics
    /// If it is no sum and has no model.
    pub fn own(&self) -> TensorRef {
        self.model().unwrap_or_else(|| self.terms()[0].plus)
    }

    /// What is added, in order.
    pub fn terms(&self) -> &[Term] {
        self.sum().map_or(&[], |sum| &sum.terms)
    }

    /// How that is combined.
    pub fn combination(&self) -> &Combination {
        self.sum().map_or(&NO_TERMS, |sum| &sum.combination)
    }

    /// The rows of the sources that the output has, in ascending order; none if it has all.
    pub fn selected(&self) -> Option<&[u32]> {
        self.sum()?.selected.as_deref()
    }

    /// The rows that are another model's, unscaled.
    pub fn taken(&self) -> Option<&Taken> {
        match &self.content {
            Content::Copied { taken, .. } | Content::Sum { taken, .. } => taken.as_ref(),
            Content::Rows(taken) => Some(taken),
        }
    }

    /// Takes rows of another model in place of those that the tensor would have.
    pub(super) fn take(&mut self, rows: Taken) {
        match &mut self.content {
            Content::Copied { taken, .. } | Content::Sum { taken, .. } => *taken = Some(rows),
            Content::Rows(taken) => *taken = rows,
        }
    }

    /// Leaves out all rows of a sum but these, in ascending order.
    pub fn select(&mut self, rows: Vec<u32>) {
        if let Content::Sum { sum, .. } = &mut self.content {
            sum.selected = Some(rows);
        }
    }

    /// Whether the codec can do what this tensor takes.
    pub(super) fn check_types(&self, inputs: &Inputs) -> Result<(), Error> {
        if self.is_copy(inputs) {
            return Ok(());
        }
        for at in self.sources().chain(self.taken().map(|taken| taken.at)) {
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

    /// Every tensor that is read for this one, once, with the difference that it is half of.
    pub fn operands(&self) -> Vec<Operand> {
        let mut operands: Vec<Operand> = Vec::new();
        for operand in vector::operands(self.model(), self.terms()).map(|operand| self.operand(operand)) {
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
        if self.is_sum() { Space::of(&self.name) } else { Space::AsStored }
    }

    /// The rows of [`TensorPlan::taken`] in the output.
    pub fn taken_rows(&self) -> Vec<u32> {
        self.taken().into_iter().flat_map(|taken| taken.rows.iter().map(|(row, _)| *row)).collect()
    }

    /// Whether nothing is read but the model's blocks, which are taken as they are.
    pub fn is_copy(&self, inputs: &Inputs) -> bool {
        self.takes_blocks(inputs) && self.taken().is_none()
    }

    /// Whether the model's blocks are taken as they are, [`TensorPlan::taken`] rows aside.
    pub fn takes_blocks(&self, inputs: &Inputs) -> bool {
        let same_type = |at: TensorRef| inputs.source(at.source).tensor(at.tensor).ty() == self.ty;
        !self.is_sum() && self.model().is_some_and(same_type)
    }

    /// Whether the model's scales of these weights are beside them in the output, too
    /// ([`scale_of`](crate::gguf::Model::scale_of)): the blocks then hold weight / scale.
    pub fn keeps_scale(&self, inputs: &Inputs) -> bool {
        let is_dropped = self.name == OUTPUT && self.ty != GgmlType::NVFP4;
        !is_dropped && self.model().is_some_and(|at| inputs.source(at.source).scale_of(at.tensor).is_some())
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
