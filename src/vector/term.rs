//! The parts of a sum: `model + ratio · (plus − minus) + …`.

use crate::gguf::TensorId;

/// A model among the [`Inputs`](super::Inputs), by its position.
pub type SourceId = usize;

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
    /// The vector it belongs to, by its position among those of the [`Inputs`](super::Inputs).
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
    /// The other half of the difference, if the tensor is half of one.
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
