//! In which numbers a tensor is added.
//!
//! A vector is a difference of what training adds to: the parameters of the checkpoint. Nearly
//! every tensor of a GGUF file is such a parameter, in another order or with a constant added, so
//! that differences are the same numbers. Where the converter stores another function of a
//! parameter, weights become parameters again when they are loaded, everything between is computed
//! on those (ratios, selections, means, survival, noise), and the sum is stored as that function.
//!
//! | tensor | what a file holds | added as | source |
//! |---|---|---|---|
//! | `blk.N.ssm_a` | −exp(A_log), +exp(A_log) in bailingmoe3: how fast a state decays | ln of the magnitude, which is A_log | llama.cpp: `modify_tensors` in conversion/mamba.py (Mamba, Mamba 2, Falcon-H1, Granite, Nemotron-H), jamba, plamo, qwen (Qwen3-Next, Qwen 3.5), qwen4exp, glm (GLM-5), kimi_linear and kimi_k3; names in src/llama-arch.cpp (`LLM_TENSOR_SSM_A`, `LLM_TENSOR_SSM_A_NOSCAN`) |
//! | all others | the parameter itself, permuted or plus a constant (+1 in norms of Gemma) | as it is stored | the same files |
//!
//! A weight that is 0 in every file stays 0: where a checkpoint is F16, so is the exponential
//! (conversion/base.py), and one below 6e-8 is none. [`nature`](super::nature) has what is no weight
//! at all.
//!
//! With *m*, *b* and *c* the model's, the base's and the chat's weight, a ratio r gives m · (c /
//! b)^r, and several vectors give the product. A sum of the weights themselves may have the other
//! sign, at which a state grows without bound.
//!
//! **Precision.** Logarithms and powers are computed in f64 and rounded to f32 once, by the same
//! code on every machine (`libm`); the system's own differ in the last bit from one to the next.
//! What is stored is `m · exp(δ)`, so that δ = 0 gives the model's weight, bit for bit. Between
//! them is f32: rounding ln b, ln c, their difference and its product with r moves the result by at
//! most r · 2⁻²⁴ · (|ln b| + |ln c| + 2·|ln(c / b)|) of its size, and storing it by 2⁻²⁴.

use std::path::{Path, PathBuf};

use super::error::Error;
use super::source::TensorSource;
use super::sum::{Sum, resize};

/// What numbers of a tensor are added.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Space {
    /// The weights.
    #[default]
    AsStored,
    /// ln of their magnitudes; signs stay.
    Logarithm,
}

impl Space {
    /// The space of the tensor with this name, in any architecture.
    pub fn of(name: &str) -> Self {
        match name.trim_end_matches(".weight").rsplit('.').next() {
            Some("ssm_a") => Space::Logarithm,
            _ => Space::AsStored,
        }
    }
}

/// The way of some weights of one tensor into its space, and back.
///
/// A sum is computed on one piece of a tensor after the other: [`begin`](Coordinates::begin) one,
/// then let [`enter`](Coordinates::enter) see the weights of every source, the model's first.
#[derive(Default, Debug)]
pub struct Coordinates {
    space: Space,
    /// The weights of the first source, as they are stored.
    first: Vec<f32>,
    /// Its file, the tensor's name there, and the index of the first weight.
    path: PathBuf,
    tensor: String,
    index: u64,
}

impl Coordinates {
    /// Bytes for each weight.
    pub fn bytes_per_weight(space: Space) -> u64 {
        match space {
            Space::AsStored => 0,
            Space::Logarithm => 4,
        }
    }

    /// Begins with other weights.
    pub fn begin(&mut self, space: Space) {
        self.space = space;
        self.first.clear();
    }

    /// Takes weights of a source, as they are stored, into the space. `first_weight` is the index
    /// in the tensor of the first. A patch holds differences within the space already, and has no
    /// need of it.
    ///
    /// # Errors
    /// [`Error::Zero`]; [`Error::Sign`] if the first source has a weight with the other sign there.
    pub fn enter(
        &mut self,
        source: &dyn TensorSource,
        id: usize,
        first_weight: u64,
        weights: &mut [f32],
    ) -> Result<(), Error> {
        if self.space == Space::AsStored {
            return Ok(());
        }
        let (tensor, path) = (|| source.tensor(id).name().to_owned(), source.path_of(id));
        let index = |i: usize| first_weight + i as u64;
        if self.first.is_empty() {
            resize(&mut self.first, weights.len());
            self.first.copy_from_slice(weights);
            path.clone_into(&mut self.path);
            (self.tensor, self.index) = (tensor(), first_weight);
        }
        if let Some(i) = weights.iter().zip(&self.first).position(|(w, first)| (*w == 0.0) != (*first == 0.0)) {
            let path = if weights[i] == 0.0 { path } else { &self.path };
            return Err(Error::Zero { path: path.to_owned(), tensor: tensor(), index: index(i) });
        }
        if let Some(i) = weights.iter().zip(&self.first).position(|(w, first)| !have_one_sign(*w, *first)) {
            let (expected, found) = (self.first[i], weights[i]);
            let (expected_in, found_in) = (Path::to_owned(&self.path), path.to_owned());
            return Err(Error::Sign { tensor: tensor(), index: index(i), expected, expected_in, found, found_in });
        }
        weights.iter_mut().for_each(|w| *w = logarithm(*w));
        Ok(())
    }

    /// Refuses a sum that cannot be stored: nothing can be added to a weight that is 0 in every file
    /// but a patch.
    ///
    /// # Errors
    /// [`Error::Zero`].
    pub fn check(&self, sum: &Sum) -> Result<(), Error> {
        let is_lost = |(first, delta): (&f32, &f32)| *first == 0.0 && *delta != 0.0;
        match self.first.iter().zip(sum.delta()).position(is_lost) {
            Some(i) if !self.is_as_stored(sum) => {
                let (path, tensor, index) = (self.path.clone(), self.tensor.clone(), self.index + i as u64);
                Err(Error::Zero { path, tensor, index })
            }
            _ => Ok(()),
        }
    }

    /// Whether what an output stores is the sum itself: without a model it is a difference, which a
    /// patch stores within the space.
    pub fn is_as_stored(&self, sum: &Sum) -> bool {
        self.space == Space::AsStored || !sum.has_model()
    }

    /// The weights that an output stores for a sum.
    pub fn leave(&self, sum: &Sum, out: &mut [f32]) {
        match self.is_as_stored(sum) {
            true => out.copy_from_slice(sum.wanted()),
            false => out.iter_mut().enumerate().for_each(|(i, w)| *w = self.stored(sum, i)),
        }
    }

    /// The `i`-th of them.
    pub fn stored(&self, sum: &Sum, i: usize) -> f32 {
        match self.is_as_stored(sum) {
            true => sum.wanted()[i],
            false => power(self.first[i], sum.delta()[i]),
        }
    }

    /// Takes what an output has stored for a sum back into the space. A weight that came to be
    /// zero, or has another sign, is NaN.
    pub fn enter_stored(&self, sum: &Sum, weights: &mut [f32]) {
        if self.is_as_stored(sum) {
            return;
        }
        for (w, first) in weights.iter_mut().zip(&self.first) {
            let is_there = (*w == 0.0) == (*first == 0.0) && have_one_sign(*w, *first);
            *w = if is_there { logarithm(*w) } else { f32::NAN };
        }
    }
}

fn have_one_sign(a: f32, b: f32) -> bool {
    a.is_sign_negative() == b.is_sign_negative()
}

/// ln of a magnitude; 0 of none, which every file has there.
fn logarithm(weight: f32) -> f32 {
    if weight == 0.0 { 0.0 } else { libm::log(f64::from(weight.abs())) as f32 }
}

/// weight · exp(delta)
fn power(weight: f32, delta: f32) -> f32 {
    (f64::from(weight) * libm::exp(f64::from(delta))) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_decay_of_a_state_is_added_as_a_logarithm_and_nothing_else_is() {
        for name in ["blk.0.ssm_a", "blk.31.ssm_a", "blk.2.ssm_a.weight", "ssm_a"] {
            assert_eq!(Space::of(name), Space::Logarithm, "{name}");
        }
        for name in ["blk.0.ssm_dt.bias", "blk.0.ssm_d", "blk.0.ssm_alpha.weight", "blk.0.attn_q.weight", "ssm_a.x"] {
            assert_eq!(Space::of(name), Space::AsStored, "{name}");
        }
    }

    #[test]
    fn no_difference_is_the_weight_itself() {
        for bits in (0..=u32::MAX).step_by(65_521).filter(|bits| f32::from_bits(*bits).is_finite()) {
            assert_eq!(power(f32::from_bits(bits), 0.0).to_bits(), bits);
            assert_eq!(power(f32::from_bits(bits), -0.0).to_bits(), bits);
        }
    }
}
