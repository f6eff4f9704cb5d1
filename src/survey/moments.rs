//! The sums that everything measured is made of.

use std::ops::AddAssign;

/// Sums in f64 over some weights of a tensor, from which norms, cosines, survival and noise follow.
///
/// *m* is the continual-pretrained weight, *b* the base's, *δ* what is added (Σ ratio·τ), *o* = *m* + *δ* the weight
/// wanted and *q* the weight that the output holds after encoding.
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

    /// ‖m − b‖ / ‖m‖: how far continual pre-training went. None without a base, and where model and base are the same.
    pub fn drift_ratio(&self) -> Option<f64> {
        (self.model2 > 0.0 && self.drift2 > 0.0).then(|| (self.drift2 / self.model2).sqrt())
    }

    /// cos(δ, m − b). None where either is zero.
    pub fn drift_cosine(&self) -> Option<f64> {
        let norms = (self.delta2 * self.drift2).sqrt();
        (norms > 0.0).then(|| self.delta_drift / norms)
    }

    /// ⟨q − m, δ⟩ / ⟨δ, δ⟩: the share of the vector that the output has. None where the vector is zero.
    pub fn survival(&self) -> Option<f64> {
        (self.delta2 > 0.0).then(|| self.kept / self.delta2)
    }

    /// ‖q − o‖ / ‖δ‖: rounding error in units of the vector. None where the vector is zero.
    pub fn noise(&self) -> Option<f64> {
        (self.delta2 > 0.0).then(|| (self.error2 / self.delta2).sqrt())
    }

    /// The same sums times `factor`, as the estimate for `factor` times as many weights.
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

    /// Adds weights, all slices of one length. `wanted` is what was encoded and `got` what the blocks decode to. Without a
    /// model the output is the vector itself; without a model or a base there is no drift.
    ///
    /// The order of the additions follows from the length alone.
    pub fn add(&mut self, weights: &Weights<'_>) {
        *self += match (weights.model.is_some(), weights.base.is_some()) {
            (true, true) => weights.sums::<true, true>(),
            (true, false) => weights.sums::<true, false>(),
            (false, true) => weights.sums::<false, true>(),
            (false, false) => weights.sums::<false, false>(),
        };
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

/// Running sums side by side, so that the compiler may use vectors.
const LANES: usize = 4;

impl Weights<'_> {
    /// All sums in one pass: every weight is widened to f64 once.
    fn sums<const MODEL: bool, const BASE: bool>(&self) -> Moments {
        // What is absent is not looked at; any slice of the right length will do.
        let model = self.model.unwrap_or(self.delta);
        let base = self.base.unwrap_or(self.delta);
        let mut sums = Sums::default();
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
        let total = |lanes: [f64; LANES]| lanes.iter().sum();
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
struct Sums {
    delta2: [f64; LANES],
    model2: [f64; LANES],
    drift2: [f64; LANES],
    delta_drift: [f64; LANES],
    kept: [f64; LANES],
    error2: [f64; LANES],
}

impl Sums {
    #[inline(always)]
    fn add<const MODEL: bool, const BASE: bool>(
        &mut self,
        delta: &[f32; LANES],
        model: &[f32; LANES],
        base: &[f32; LANES],
        wanted: &[f32; LANES],
        got: &[f32; LANES],
    ) {
        let (d, o, q) = (delta.map(f64::from), wanted.map(f64::from), got.map(f64::from));
        let m = if MODEL { model.map(f64::from) } else { [0.0; LANES] };
        let b = if BASE { base.map(f64::from) } else { m };
        for k in 0..LANES {
            let drift = if MODEL && BASE { m[k] - b[k] } else { 0.0 };
            let reference = if MODEL { m[k] } else { b[k] };
            let error = q[k] - o[k];
            self.delta2[k] += d[k] * d[k];
            self.model2[k] += reference * reference;
            self.drift2[k] += drift * drift;
            self.delta_drift[k] += d[k] * drift;
            self.kept[k] += (q[k] - m[k]) * d[k];
            self.error2[k] += error * error;
        }
    }
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
