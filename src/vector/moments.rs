//! The sums that everything measured is made of.

use std::ops::AddAssign;

use crate::quants::{self, Loops};

/// Sums in f64 over some weights of a tensor, from which norms, cosines, survival and noise follow.
///
/// *m* is the continual-pretrained weight, *b* the base's, *δ* what is added (Σ ratio·τ), *o* = *m*
/// + *δ* the weight wanted and *q* the weight that the output holds after encoding.
#[derive(Clone, Copy, PartialEq, Default, Debug, serde::Serialize)]
pub struct Moments {
    /// Σ δ²
    pub delta2: f64,
    /// Σ m², or Σ b² where there is no model: what the vector is compared with.
    pub model2: f64,
    /// Σ (m − b)²
    pub drift2: f64,
    /// Σ δ·(m − b)
    pub delta_drift: f64,
    /// Σ (q − m)·δ
    pub kept: f64,
    /// Σ (q − o)²
    pub error2: f64,
}

impl Moments {
    /// ‖δ‖ / ‖m‖: how large the vector is as it is applied. None without weights to compare with.
    pub fn delta_ratio(&self) -> Option<f64> {
        (self.model2 > 0.0).then(|| (self.delta2 / self.model2).sqrt())
    }

    /// ‖m − b‖ / ‖m‖: how far continual pre-training went. None without a base, and where model and
    /// base are the same.
    pub fn drift_ratio(&self) -> Option<f64> {
        (self.model2 > 0.0 && self.drift2 > 0.0).then(|| (self.drift2 / self.model2).sqrt())
    }

    /// cos(δ, m − b). None where either is zero.
    pub fn drift_cosine(&self) -> Option<f64> {
        let norms = (self.delta2 * self.drift2).sqrt();
        (norms > 0.0).then(|| self.delta_drift / norms)
    }

    /// ⟨q − m, δ⟩ / ⟨δ, δ⟩: the share of the vector that the output has. None where the vector is
    /// zero.
    pub fn survival(&self) -> Option<f64> {
        (self.delta2 > 0.0).then(|| self.kept / self.delta2)
    }

    /// ‖q − o‖ / ‖δ‖: rounding error in units of the vector. None where the vector is zero.
    pub fn noise(&self) -> Option<f64> {
        (self.delta2 > 0.0).then(|| (self.error2 / self.delta2).sqrt())
    }

    /// All sums times `factor`: the estimate for `factor` times as many weights.
    pub fn scaled(self, factor: f64) -> Self {
        Moments {
            delta2: self.delta2 * factor,
            model2: self.model2 * factor,
            drift2: self.drift2 * factor,
            delta_drift: self.delta_drift * factor,
            kept: self.kept * factor,
            error2: self.error2 * factor,
        }
    }

    /// Adds weights, all slices of one length. `wanted` is what was encoded and `got` what the
    /// blocks decode to. Without a model the output is the vector itself; without a model or a base
    /// there is no drift.
    ///
    /// The order of the additions follows from the length alone.
    pub fn add(&mut self, weights: &Weights<'_>) {
        *self += quants::vectorized(*weights);
    }
}

/// Weights to be added up, of one length.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// δ
    pub delta: &'a [f32],
    /// *m*, if there is a model.
    pub model: Option<&'a [f32]>,
    /// *b*, if there is a base.
    pub base: Option<&'a [f32]>,
    /// *o*
    pub wanted: &'a [f32],
    /// *q*
    pub got: &'a [f32],
}

/// Running sums side by side, as many f64 as a register of AVX2 holds: with twice as many the
/// compiler runs out of registers.
const LANES: usize = 4;

type Lanes = [f64; LANES];

impl Loops for Weights<'_> {
    type Output = Moments;

    #[inline(always)]
    fn run(self) -> Moments {
        match (self.model.is_some(), self.base.is_some()) {
            (true, true) => self.sums::<true, true>(),
            (true, false) => self.sums::<true, false>(),
            (false, true) => self.sums::<false, true>(),
            (false, false) => self.sums::<false, false>(),
        }
    }
}

impl Weights<'_> {
    /// All sums in one pass: every weight is widened to f64 once.
    #[inline(always)]
    fn sums<const MODEL: bool, const BASE: bool>(&self) -> Moments {
        // What is absent is not looked at; any slice of the right length will do.
        let model = self.model.unwrap_or(self.delta);
        let base = self.base.unwrap_or(self.delta);
        let mut sums = LaneSums::default();
        let parts = [self.delta, model, base, self.wanted, self.got].map(<[f32]>::as_chunks::<LANES>);
        let [(delta, _), (model, _), (base, _), (wanted, _), (got, _)] = parts;
        for ((((delta, model), base), wanted), got) in delta.iter().zip(model).zip(base).zip(wanted).zip(got) {
            sums.add::<MODEL, BASE>(delta, model, base, wanted, got);
        }
        // Zeros add nothing to any sum.
        let [delta, model, base, wanted, got] = parts.map(|(_, rest)| {
            let mut padded = [0.0; LANES];
            padded[..rest.len()].copy_from_slice(rest);
            padded
        });
        sums.add::<MODEL, BASE>(&delta, &model, &base, &wanted, &got);
        let total = |lanes: Lanes| lanes.iter().sum();
        Moments {
            delta2: total(sums.delta2),
            model2: total(sums.model2),
            drift2: total(sums.drift2),
            delta_drift: total(sums.delta_drift),
            kept: total(sums.kept),
            error2: total(sums.error2),
        }
    }
}

/// The sums of [`Moments`], lane by lane.
#[derive(Default)]
struct LaneSums {
    delta2: Lanes,
    model2: Lanes,
    drift2: Lanes,
    delta_drift: Lanes,
    kept: Lanes,
    error2: Lanes,
}

impl LaneSums {
    /// One operation on all lanes after the other: of a loop over lanes that does them all the
    /// compiler makes no vectors.
    #[inline(always)]
    fn add<const MODEL: bool, const BASE: bool>(
        &mut self,
        delta: &[f32; LANES],
        model: &[f32; LANES],
        base: &[f32; LANES],
        wanted: &[f32; LANES],
        got: &[f32; LANES],
    ) {
        let (d, o, q) = (widen(delta), widen(wanted), widen(got));
        let m = if MODEL { widen(model) } else { [0.0; LANES] };
        let b = if BASE { widen(base) } else { m };
        let drift = if MODEL && BASE { subtract(m, b) } else { [0.0; LANES] };
        let reference = if MODEL { m } else { b };
        let error = subtract(q, o);
        add_product(&mut self.delta2, d, d);
        add_product(&mut self.model2, reference, reference);
        add_product(&mut self.drift2, drift, drift);
        add_product(&mut self.delta_drift, d, drift);
        add_product(&mut self.kept, subtract(q, m), d);
        add_product(&mut self.error2, error, error);
    }
}

#[inline(always)]
fn widen(x: &[f32; LANES]) -> Lanes {
    let mut wide = [0.0; LANES];
    wide.iter_mut().zip(x).for_each(|(wide, x)| *wide = f64::from(*x));
    wide
}

#[inline(always)]
fn subtract(mut a: Lanes, b: Lanes) -> Lanes {
    a.iter_mut().zip(b).for_each(|(a, b)| *a -= b);
    a
}

#[inline(always)]
fn add_product(sum: &mut Lanes, a: Lanes, b: Lanes) {
    sum.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
}

impl AddAssign for Moments {
    fn add_assign(&mut self, other: Self) {
        self.delta2 += other.delta2;
        self.model2 += other.model2;
        self.drift2 += other.drift2;
        self.delta_drift += other.delta_drift;
        self.kept += other.kept;
        self.error2 += other.error2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quants::Level;

    #[test]
    fn sums_are_the_same_bits_at_every_level() {
        let weights = |seed: f32| -> Vec<f32> { (0..4099).map(|i| (i as f32 * seed).sin()).collect() };
        let [delta, model, base, wanted, got] = [0.3, 0.7, 1.1, 1.9, 2.3].map(weights);
        for (has_model, has_base) in [(true, true), (true, false), (false, true), (false, false)] {
            for n in [0, 1, 4, 7, 4096, 4099] {
                let weights = Weights {
                    delta: &delta[..n],
                    model: has_model.then_some(&model[..n]),
                    base: has_base.then_some(&base[..n]),
                    wanted: &wanted[..n],
                    got: &got[..n],
                };
                let bits =
                    |m: Moments| [m.delta2, m.model2, m.drift2, m.delta_drift, m.kept, m.error2].map(f64::to_bits);
                let expected = bits(weights.run());
                for level in Level::available() {
                    assert_eq!(bits(quants::vectorized_at(level, weights)), expected, "{n} weights at {level}");
                }
            }
        }
    }

    #[test]
    fn sums_are_those_of_a_plain_loop_for_every_length() {
        let weights = |seed: f32| -> Vec<f32> { (0..11).map(|i| (i as f32 * seed).sin()).collect() };
        let [delta, model, base, wanted, got] = [0.3, 0.7, 1.1, 1.9, 2.3].map(weights);
        for n in 0..=11 {
            for (has_model, has_base) in [(true, true), (true, false), (false, true), (false, false)] {
                let mut found = Moments::default();
                found.add(&Weights {
                    delta: &delta[..n],
                    model: has_model.then_some(&model[..n]),
                    base: has_base.then_some(&base[..n]),
                    wanted: &wanted[..n],
                    got: &got[..n],
                });
                let mut plain = Moments::default();
                for i in 0..n {
                    let [d, m, b, o, q] = [&delta, &model, &base, &wanted, &got].map(|w| f64::from(w[i]));
                    let m = if has_model { m } else { 0.0 };
                    let reference = if has_model || !has_base { m } else { b };
                    let drift = if has_model && has_base { m - b } else { 0.0 };
                    plain += Moments {
                        delta2: d * d,
                        model2: reference * reference,
                        drift2: drift * drift,
                        delta_drift: d * drift,
                        kept: (q - m) * d,
                        error2: (q - o) * (q - o),
                    };
                }
                let near = |a: f64, b: f64| (a - b).abs() < 1e-12;
                assert!(
                    near(found.delta2, plain.delta2) && near(found.model2, plain.model2),
                    "{n} {found:?} {plain:?}"
                );
                assert!(near(found.drift2, plain.drift2) && near(found.delta_drift, plain.delta_drift), "{n}");
                assert!(near(found.kept, plain.kept) && near(found.error2, plain.error2), "{n}");
            }
        }
    }
}
