//! The arithmetic of a merge on some weights of one tensor.

use super::combine::{Combination, Method, Selection};
use super::moments::Weights;
use super::term::{Operand, TensorRef, Term};
use crate::quants::{self, Loops};

/// f32 buffers for `wanted = model + Σ ratio · (plus − minus)`, used again for every piece of work.
#[derive(Default, Debug)]
pub struct Sum {
    model: Vec<f32>,
    base: Vec<f32>,
    plus: Vec<f32>,
    minus: Vec<f32>,
    delta: Vec<f32>,
    wanted: Vec<f32>,
    /// Where terms are combined by more than a sum: all of them, and scratch for twice a strip.
    taus: Vec<f32>,
    sums: Vec<f32>,
    has_model: bool,
    has_base: bool,
}

impl Sum {
    /// Buffers of a [`Sum`]: bytes for each weight.
    pub const BYTES_PER_WEIGHT: u64 = 6 * 4;

    /// Bytes for each weight that the buffers take where terms are combined in this way.
    pub fn bytes_per_weight(n_terms: usize, combination: &Combination) -> u64 {
        match combination.is_plain() || n_terms == 0 {
            true => Self::BYTES_PER_WEIGHT,
            false => Self::BYTES_PER_WEIGHT + 4 * (n_terms as u64 + 2),
        }
    }

    /// Loads `n` weights of each source and adds them up, in f32: the first term, then + each in
    /// order, then the model + that. With `keep_zeros` a weight that nothing is added to keeps the
    /// sign of its zero, as a copy would; else −0 + 0 is +0.
    ///
    /// # Errors
    /// Those of `load`, which fills a buffer with the weights of a tensor.
    pub fn compute<E>(
        &mut self,
        n: usize,
        model: Option<TensorRef>,
        terms: &[Term],
        keep_zeros: bool,
        mut load: impl FnMut(Operand, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Sum { model: own, base, plus, minus, delta, wanted, .. } = self;
        [&mut *own, base, plus, minus, delta, wanted].into_iter().for_each(|buffer| resize(buffer, n));
        if let Some(at) = model {
            load(Operand::whole(at), own)?;
        }
        for (i, term) in terms.iter().enumerate() {
            let (of_plus, of_minus) = term.operands();
            load(of_plus, plus)?;
            if let Some(part) = of_minus {
                load(part, minus)?;
            }
            quants::vectorized(AddTerm {
                delta,
                first: i == 0,
                ratio: term.ratio,
                plus,
                minus: term.minus.map(|_| &**minus),
            });
            if i == 0 {
                // The first vector's base says how far the model has come.
                std::mem::swap(base, minus);
            }
        }
        if terms.is_empty() {
            delta.fill(0.0);
        }
        self.has_model = model.is_some();
        self.has_base = terms.first().is_some_and(|term| term.minus.is_some());
        self.finish(terms.is_empty(), keep_zeros);
        Ok(())
    }

    /// Computes the sum as [`Sum::compute`] does, with the terms combined in this way. `selections`
    /// has what is selected of each term, and `first` is the index in the tensor of the first
    /// weight.
    ///
    /// # Errors
    /// Those of `load`.
    #[expect(clippy::too_many_arguments, reason = "what a sum is made of")]
    pub fn combine<E>(
        &mut self,
        n: usize,
        first: u64,
        model: Option<TensorRef>,
        terms: &[Term],
        (combination, selections): (&Combination, &[Selection]),
        keep_zeros: bool,
        mut load: impl FnMut(Operand, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        if combination.is_plain() || terms.is_empty() {
            return self.compute(n, model, terms, keep_zeros, load);
        }
        let Sum { model: own, base, minus, delta, wanted, taus, sums, .. } = self;
        [&mut *own, base, minus, delta, wanted].into_iter().for_each(|buffer| resize(buffer, n));
        resize(taus, n * terms.len());
        resize(sums, 2 * n);
        if let Some(at) = model {
            load(Operand::whole(at), own)?;
        }
        for ((i, term), tau) in terms.iter().enumerate().zip(taus.chunks_exact_mut(n.max(1))) {
            let (plus, of_minus) = term.operands();
            load(plus, tau)?;
            if let Some(part) = of_minus {
                load(part, minus)?;
                tau.iter_mut().zip(&*minus).for_each(|(t, m)| *t -= m);
            }
            if let Some(selection) = selections.get(i) {
                selection.apply(first, tau);
            }
            if i == 0 {
                std::mem::swap(base, minus);
            }
        }
        self.has_model = model.is_some();
        self.has_base = terms[0].minus.is_some();
        let ratios: Vec<f32> = terms.iter().map(|term| term.ratio).collect();
        let Sum { model: own, delta, wanted, taus, sums, .. } = self;
        if combination.method == Method::Linear {
            combination.average(&ratios, taus, wanted);
            delta.copy_from_slice(wanted);
            if self.has_model {
                delta.iter_mut().zip(&*own).for_each(|(d, m)| *d -= m);
            }
            return Ok(());
        }
        combination.add_up(&ratios, taus, sums, delta);
        self.finish(false, keep_zeros);
        Ok(())
    }

    /// `wanted` from the model and what is added.
    fn finish(&mut self, is_copy: bool, keep_zeros: bool) {
        let Sum { model: own, delta, wanted, has_model, .. } = self;
        match (*has_model, is_copy) {
            (true, true) => wanted.copy_from_slice(own),
            (false, _) => wanted.copy_from_slice(delta),
            (true, false) => {
                quants::vectorized(AddDelta { wanted, model: own, delta, keep_zeros });
            }
        }
    }

    /// Whether something is added to a model.
    pub fn has_model(&self) -> bool {
        self.has_model
    }

    /// The sum.
    pub fn wanted(&self) -> &[f32] {
        &self.wanted
    }

    /// What is added to the model.
    pub fn delta(&self) -> &[f32] {
        &self.delta
    }

    /// The weights to be measured, where `got` is what the blocks of the sum decode to.
    pub fn weights<'a>(&'a self, got: &'a [f32]) -> Weights<'a> {
        Weights {
            delta: &self.delta,
            model: self.has_model.then_some(&self.model),
            base: self.has_base.then_some(&self.base),
            wanted: &self.wanted,
            got,
        }
    }
}

/// Gives a buffer this length, and no more memory than that: a vector that grows by itself takes up
/// to twice as much. What it held is of no use.
pub fn resize(buffer: &mut Vec<f32>, n: usize) {
    if buffer.capacity() < n {
        // The old memory goes before the new is taken.
        *buffer = Vec::new();
        buffer.reserve_exact(n);
    }
    buffer.resize(n, 0.0);
}

/// `delta = ratio·(plus − minus)` if `first`, else `delta += ratio·(plus − minus)`; without
/// `minus`, `plus` is a difference already.
struct AddTerm<'a> {
    delta: &'a mut [f32],
    first: bool,
    ratio: f32,
    plus: &'a [f32],
    minus: Option<&'a [f32]>,
}

impl Loops for AddTerm<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let AddTerm { delta, first, ratio, plus, minus } = self;
        match (minus, first) {
            (Some(minus), true) => {
                delta.iter_mut().zip(plus).zip(minus).for_each(|((d, p), m)| *d = ratio * (p - m));
            }
            (Some(minus), false) => {
                delta.iter_mut().zip(plus).zip(minus).for_each(|((d, p), m)| *d += ratio * (p - m));
            }
            (None, true) => delta.iter_mut().zip(plus).for_each(|(d, p)| *d = ratio * p),
            (None, false) => delta.iter_mut().zip(plus).for_each(|(d, p)| *d += ratio * p),
        }
    }
}

/// `wanted = model + delta`; with `keep_zeros` the model itself where `delta` is ±0.
struct AddDelta<'a> {
    wanted: &'a mut [f32],
    model: &'a [f32],
    delta: &'a [f32],
    keep_zeros: bool,
}

impl Loops for AddDelta<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let weights = self.wanted.iter_mut().zip(self.model.iter().zip(self.delta));
        if self.keep_zeros {
            weights.for_each(|(w, (m, d))| *w = if *d == 0.0 { *m } else { m + d });
        } else {
            weights.for_each(|(w, (m, d))| *w = m + d);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quants::{Level, vectorized_at};

    #[test]
    fn every_level_adds_to_the_same_bits() {
        // Numbers of all sizes, among them zeros of both signs, and some that are equal in plus and
        // minus.
        let numbers = |seed: u32| -> Vec<f32> {
            let bits = (0..1003u32).map(|i| (i ^ seed).wrapping_mul(0x9e37_79b1).wrapping_mul((i / 3) | 1));
            bits.map(|bits| if bits % 5 == 0 { f32::from_bits(bits & 1 << 31) } else { f32::from_bits(bits >> 2) })
                .collect()
        };
        let [plus, minus, model] = [numbers(1), numbers(2), numbers(3)];
        let minus: Vec<f32> =
            minus.iter().zip(&plus).enumerate().map(|(i, (m, p))| if i % 4 == 0 { *p } else { *m }).collect();
        for n in [0, 1, 7, 8, 31, 1003] {
            let added = |level| {
                let mut bits = Vec::new();
                for (has_minus, first) in [(true, true), (true, false), (false, true), (false, false)] {
                    let (mut delta, minus) = (model[..n].to_vec(), has_minus.then_some(&minus[..n]));
                    vectorized_at(level, AddTerm { delta: &mut delta, first, ratio: 0.7, plus: &plus[..n], minus });
                    bits.extend(delta.iter().map(|d| d.to_bits()));
                    for keep_zeros in [true, false] {
                        let mut wanted = vec![f32::NAN; n];
                        let (wanted_now, model, delta) = (&mut wanted[..], &model[..n], &delta[..]);
                        vectorized_at(level, AddDelta { wanted: wanted_now, model, delta, keep_zeros });
                        bits.extend(wanted.iter().map(|w| w.to_bits()));
                    }
                }
                bits
            };
            let expected = added(Level::Scalar);
            for level in Level::available() {
                assert!(added(level) == expected, "{n} at {level}");
            }
        }
    }

    #[test]
    fn terms_are_added_in_f32_and_in_their_order() {
        let at = |tensor| TensorRef { source: 0, tensor };
        let weights = [1.0f32, 1e8, -1e8, 0.5];
        let load = |part: Operand, out: &mut [f32]| -> Result<(), ()> {
            out.fill(weights[part.at.tensor]);
            Ok(())
        };
        let term = |plus, minus: Option<usize>| Term { vector: 0, ratio: 1.0, plus: at(plus), minus: minus.map(at) };
        let mut sum = Sum::default();
        sum.compute(1, Some(at(0)), &[term(1, None), term(3, None), term(2, None)], true, load).unwrap();
        assert_eq!(sum.delta(), [0.0], "(1e8 + 0.5) − 1e8 in f32");
        sum.compute(1, Some(at(0)), &[term(1, None), term(2, None), term(3, None)], true, load).unwrap();
        assert_eq!((sum.delta(), sum.wanted()), (&[0.5][..], &[1.5][..]));
        sum.compute(1, None, &[term(0, Some(3))], true, load).unwrap();
        assert_eq!((sum.wanted(), sum.weights(&[]).base), (&[0.5][..], Some(&[0.5][..])));
    }
}
