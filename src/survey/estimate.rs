//! What a sample says of a whole tensor, and how far it may be off.

use crate::vector::Moments;

/// Sums of a tensor as a sample has them, scaled to all of it, with the standard error of what
/// follows from them.
#[derive(Clone, Copy, PartialEq, Default, Debug, serde::Serialize)]
pub struct Estimate {
    /// The sums.
    #[serde(flatten)]
    pub moments: Moments,
    /// Standard error of [`Moments::survival`]; 0 where all of the tensor was looked at.
    pub survival_error: f64,
    /// Standard error of [`Moments::noise`].
    pub noise_error: f64,
}

/// The pieces of a sample as they are added up.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Tried {
    sums: Moments,
    n_pieces: u64,
    kept: PieceProducts,
    error: PieceProducts,
    delta4: f64,
}

/// Σ y² and Σ x·y over pieces, where x is a piece's Σ δ² and y another of its sums.
#[derive(Clone, Copy, Default, Debug)]
struct PieceProducts {
    square: f64,
    product: f64,
}

impl PieceProducts {
    fn add(&mut self, x: f64, y: f64) {
        self.square += y * y;
        self.product += x * y;
    }

    /// Σ (y − ratio·x)², of which rounding may leave less than nothing.
    fn residual(self, ratio: f64, x2: f64) -> f64 {
        (self.square - 2.0 * ratio * self.product + ratio * ratio * x2).max(0.0)
    }
}

impl Tried {
    /// Adds the sums of a piece.
    pub(super) fn add(&mut self, piece: Moments) {
        self.sums += piece;
        self.n_pieces += 1;
        self.kept.add(piece.delta2, piece.kept);
        self.error.add(piece.delta2, piece.error2);
        self.delta4 += piece.delta2 * piece.delta2;
    }

    /// The estimate for a tensor of `n_in_all` pieces, in which there are `factor` times as many
    /// weights.
    ///
    /// Survival is a ratio of two sums over pieces, R = Σ y / Σ x. Its variance, for pieces drawn
    /// without putting them back, is about (1 − n/N)·n/(n − 1)·Σ (y − R·x)² / (Σ x)² (Cochran,
    /// Sampling Techniques, 1977, section 6.3). Pieces are not drawn but evenly spread, which makes
    /// the error no larger where neighbours are alike. Of one piece nothing is known.
    pub(super) fn estimate(&self, n_in_all: u64, factor: f64) -> Estimate {
        let moments = self.sums.scaled(factor);
        let (Some(survival), Some(noise)) = (moments.survival(), moments.noise()) else {
            return Estimate { moments, ..Estimate::default() };
        };
        if self.n_pieces >= n_in_all {
            return Estimate { moments, ..Estimate::default() };
        }
        let n = self.n_pieces as f64;
        let among = if self.n_pieces > 1 { n / (n - 1.0) } else { f64::INFINITY };
        let share = (1.0 - n / n_in_all as f64) * among;
        let error = |of: PieceProducts, ratio: f64| (share * of.residual(ratio, self.delta4)).sqrt() / self.sums.delta2;
        // The error of a root is that of its square over twice the root.
        let noise_error = if noise > 0.0 { error(self.error, noise * noise) / (2.0 * noise) } else { 0.0 };
        let known = |error: f64| if error.is_nan() { f64::INFINITY } else { error };
        Estimate { moments, survival_error: known(error(self.kept, survival)), noise_error: known(noise_error) }
    }
}

impl From<Moments> for Estimate {
    /// Sums over all of a tensor.
    fn from(moments: Moments) -> Self {
        Estimate { moments, ..Estimate::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(delta2: f64, kept: f64) -> Moments {
        Moments { delta2, kept, error2: 2.0 * delta2, ..Moments::default() }
    }

    #[test]
    fn the_error_is_that_of_a_ratio_of_sums() {
        let pieces = [(1.0, 0.8), (2.0, 2.1), (1.5, 1.2), (0.5, 0.6)];
        let mut tried = Tried::default();
        pieces.iter().for_each(|(x, y)| tried.add(piece(*x, *y)));
        let found = tried.estimate(40, 10.0);
        let ratio = 4.7 / 5.0;
        let residual: f64 = pieces.iter().map(|(x, y)| (y - ratio * x) * (y - ratio * x)).sum();
        let expected = (0.9 * 4.0 / 3.0 * residual).sqrt() / 5.0;
        assert!((found.survival_error - expected).abs() < 1e-12, "{found:?}, expected {expected}");
        assert!(found.noise_error < 1e-7, "every piece has the same noise: {found:?}");
        assert!((found.moments.delta2 - 50.0).abs() < 1e-12);
    }

    #[test]
    fn all_pieces_have_no_error_and_one_has_any() {
        let mut tried = Tried::default();
        tried.add(piece(1.0, 0.8));
        assert_eq!(tried.estimate(1, 1.0).survival_error, 0.0);
        assert_eq!(tried.estimate(2, 2.0).survival_error, f64::INFINITY);
        tried.add(piece(1.0, 0.4));
        assert!(tried.estimate(4, 2.0).survival_error > 0.1);
        let nothing = Tried::default().estimate(4, 1.0);
        assert_eq!(nothing, Estimate::default());
    }
}
