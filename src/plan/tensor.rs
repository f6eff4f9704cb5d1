//! The plan of one tensor.

use super::Error;
use crate::ggml::GgmlType;
use crate::quants;
use crate::vector::{
    self, Combination, Encoding, Inputs, Kept, Operand, Pair, Rounding, Space, TensorRef, Term, has_row_per_token,
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
    pub(super) fn check_types(&self, inputs: &Inputs) -> Result<(), Error> {
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

    /// Every tensor that is read for this one, once, with the difference that it is half of.
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

    /// Whether the model's scales of these weights are beside them in the output, too
    /// ([`scale_of`](crate::gguf::Model::scale_of)): the blocks then hold weight / scale.
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
