//! What an adapter holds of each tensor.

/// What an adapter holds of a tensor. *t* is what was to be held, *a* what is; *δ* the vector.
#[derive(Clone, PartialEq, Default, Debug, serde::Serialize)]
pub struct Fit {
    /// The name of the tensor.
    pub name: String,
    /// The rank of its factors.
    pub rank: u32,
    /// Σ δ²
    pub delta2: f64,
    /// Σ t²
    pub target2: f64,
    /// Σ (t − a)²
    pub error2: f64,
    /// Σ t·δ
    pub target_delta: f64,
    /// Σ (t − a)·δ
    pub error_delta: f64,
}

impl Fit {
    /// ‖t − a‖ / ‖t‖: the relative error. None where there was nothing to be held.
    pub fn error(&self) -> Option<f64> {
        (self.target2 > 0.0).then(|| (self.error2 / self.target2).sqrt())
    }

    /// The share of the vector that model and adapter have together, and that the model has alone,
    /// where *t* is what the model lacks of it.
    pub fn survival(&self) -> Option<(f64, f64)> {
        (self.delta2 > 0.0).then(|| (1.0 - self.error_delta / self.delta2, 1.0 - self.target_delta / self.delta2))
    }

    /// ‖error‖ / ‖δ‖ of both together, and of the model alone.
    pub fn noise(&self) -> Option<(f64, f64)> {
        (self.delta2 > 0.0).then(|| ((self.error2 / self.delta2).sqrt(), (self.target2 / self.delta2).sqrt()))
    }

    pub(super) fn add(&mut self, other: &Fit) {
        self.delta2 += other.delta2;
        self.target2 += other.target2;
        self.error2 += other.error2;
        self.target_delta += other.target_delta;
        self.error_delta += other.error_delta;
    }

    /// The sums of many.
    pub fn total(fits: &[Fit]) -> Fit {
        let rank = fits.iter().map(|fit| fit.rank).max().unwrap_or(0);
        let mut total = Fit { name: "all".to_owned(), rank, ..Fit::default() };
        fits.iter().for_each(|fit| total.add(fit));
        total
    }
}
