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
    /// Σ m²
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

    /// ‖m − b‖ / ‖m‖: how far continual pre-training went. None without a base or without weights.
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

    /// Adds the sums that do not depend on the output. `model` and `drift` (= m − b) may be absent.
    pub fn add_inputs(&mut self, delta: &[f32], model: Option<&[f32]>, drift: Option<&[f32]>) {
        self.delta2 += dot(delta, delta);
        if let Some(model) = model {
            self.model2 += dot(model, model);
        }
        if let Some(drift) = drift {
            self.drift2 += dot(drift, drift);
            self.delta_drift += dot(delta, drift);
        }
    }

    /// Adds what became of the vector: `wanted` is what was encoded, `got` what the encoded blocks decode to. Without a
    /// model the output is the vector itself.
    pub fn add_output(&mut self, delta: &[f32], model: Option<&[f32]>, wanted: &[f32], got: &[f32]) {
        self.kept += match model {
            Some(model) => sum(delta.len(), |i| f64::from(got[i] - model[i]) * f64::from(delta[i])),
            None => dot(got, delta),
        };
        self.error2 += sum(wanted.len(), |i| {
            let e = f64::from(got[i] - wanted[i]);
            e * e
        });
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

fn dot(a: &[f32], b: &[f32]) -> f64 {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    sum(n, |i| f64::from(a[i]) * f64::from(b[i]))
}

/// Σ f(i) for i below `n`, in an order fixed by `n`: eight running sums, so that the compiler may use vectors, added up
/// in turn at the end.
#[inline(always)]
fn sum(n: usize, f: impl Fn(usize) -> f64) -> f64 {
    let mut lanes = [0.0; 8];
    let whole = n - n % 8;
    for start in (0..whole).step_by(8) {
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total += f(start + lane);
        }
    }
    (whole..n).fold(lanes.iter().sum(), |total, i| total + f(i))
}
