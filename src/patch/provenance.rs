//! What a patch says of the models it was made from, and of what became of each tensor.

use std::collections::HashMap;

use super::error::Error;
use super::format::{BASE_HASHES, CHAT_HASHES, TENSORS};
use super::seal;
use super::write::reserve_per_tensor;
use crate::gguf::{Array, Metadata, TensorId, Value};
use crate::pipeline::Budget;
use crate::pool;
use crate::vector::{self, Inputs, Pair, TensorRef, Term};

/// BLAKE3 of the bytes of each tensor of base and chat.
pub(super) struct Origins(HashMap<(usize, TensorId), String>);

impl Origins {
    /// Reads everything that the vector is made of.
    pub(super) fn read(inputs: &Inputs, pairs: &[Pair], budget: &Budget) -> Result<Self, Error> {
        let terms = pairs.iter().flat_map(|pair| &pair.terms);
        let mut tensors: Vec<(usize, TensorId)> =
            terms.flat_map(|term| [Some(term.plus), term.minus]).flatten().map(|at| (at.source, at.tensor)).collect();
        tensors.sort_unstable();
        tensors.dedup();
        let hash = |(source, tensor)| {
            Ok::<_, vector::Error>(((source, tensor), seal::tensor_hash(inputs.source(source), tensor)?))
        };
        Ok(Origins(pool::try_map_on(seal::n_threads(budget), tensors, hash)?.into_iter().collect()))
    }

    fn of(&self, at: TensorRef) -> &str {
        self.0.get(&(at.source, at.tensor)).map_or("", String::as_str)
    }

    /// Whether τ is zero. Hashes tell it where base and chat have one type, and rows at the same
    /// places. Elsewhere weights are read up to the first that differs. Rows of tokens that only
    /// one of the two has are zero.
    ///
    /// # Errors
    /// [`Error::Survey`], from reading weights.
    pub(super) fn is_zero(&self, inputs: &Inputs, pair: &Pair) -> Result<bool, Error> {
        for term in &pair.terms {
            if !self.is_same(inputs, term) && !vector::is_zero(inputs, term)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether both halves of a difference are the same bytes, and mean the same.
    fn is_same(&self, inputs: &Inputs, term: &Term) -> bool {
        let Some(minus) = term.minus else { return false };
        let info = |at: TensorRef| inputs.source(at.source).tensor(at.tensor);
        let is_scaled = |at: TensorRef| inputs.source(at.source).scale_of(at.tensor).is_some();
        let is_plain = !inputs.has_moved_rows(minus)
            && ![minus, term.plus].into_iter().any(is_scaled)
            && inputs.turn(minus, term.plus).is_none();
        is_plain && info(minus).ty() == info(term.plus).ty() && self.of(minus) == self.of(term.plus)
    }
}

/// Says which tensors the vector has, and of which bytes they were made. What is measured of them
/// comes with the run.
pub(super) fn describe(metadata: &mut Metadata, pairs: &[Pair], origins: Option<&Origins>) {
    let pairs: Vec<&Pair> = pairs.iter().filter(|pair| pair.kept.is_none()).collect();
    if pairs.is_empty() {
        return;
    }
    let names = pairs.iter().map(|pair| &pair.name).collect();
    metadata.set(TENSORS, Value::Array(Array::Strings(names)));
    reserve_per_tensor(metadata, pairs.len());
    let Some(origins) = origins else { return };
    let of = |at: Option<TensorRef>| at.map_or("", |at| origins.of(at));
    let base = pairs.iter().map(|pair| of(pair.terms[0].minus)).collect();
    let chat = pairs.iter().map(|pair| of(Some(pair.terms[0].plus))).collect();
    metadata.set(BASE_HASHES, Value::Array(Array::Strings(base)));
    metadata.set(CHAT_HASHES, Value::Array(Array::Strings(chat)));
}
