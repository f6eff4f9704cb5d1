//! Means with their errors, and percentiles, as `llama-perplexity` prints them.

/// A value and the standard error of it.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// One standard error; none where there is only one observation.
    pub error: Option<f64>,
}

impl Estimate {
    /// The mean of `values`: √(variance / (n − 1)), the variance over n, is its error
    /// (`mean_and_uncertainty` in tools/perplexity/perplexity.cpp, which however says 0 for up to
    /// ten values). Neighbouring tokens are taken as independent, so the true error is somewhat
    /// larger. None without values.
    pub fn mean(values: &[f64]) -> Option<Self> {
        let mean = mean(values)?;
        Some(Estimate { value: mean, error: covariance_of_means(values, values).map(f64::sqrt) })
    }

    /// How often something was so in `n` cases: a mean of zeros and ones. None for no cases.
    pub fn share(hits: usize, n: usize) -> Option<Self> {
        let value = (n > 0).then(|| hits as f64 / n as f64)?;
        Some(Estimate { value, error: (n > 1).then(|| (value * (1.0 - value) / (n - 1) as f64).sqrt()) })
    }

    /// The root mean square of `values`; its error to first order is that of the mean square / (2 ·
    /// value).
    pub fn root_mean_square(values: &[f64]) -> Option<Self> {
        let squares: Vec<f64> = values.iter().map(|v| v * v).collect();
        let square = Estimate::mean(&squares)?;
        let value = square.value.sqrt();
        let slope = if value > 0.0 { 0.5 / value } else { 0.0 };
        Some(Estimate { value, error: square.error.map(|e| e * slope) })
    }

    /// e to this: perplexity from a mean negative log-likelihood. The error is carried over to
    /// first order, times e^value.
    pub fn exp(self) -> Self {
        let value = self.value.exp();
        Estimate { value, error: self.error.map(|e| e * value) }
    }
}

/// The arithmetic mean. None without values.
pub(super) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Covariance of the means of two series of equal length that were observed together: their
/// covariance over n, / (n − 1). None for fewer than two observations.
pub(super) fn covariance_of_means(a: &[f64], b: &[f64]) -> Option<f64> {
    let (mean_a, mean_b) = (mean(a)?, mean(b)?);
    let n = a.len() as f64;
    // Deviations, not squares less the square of the mean, which loses digits.
    let sum: f64 = a.iter().zip(b).map(|(a, b)| (a - mean_a) * (b - mean_b)).sum();
    (n > 1.0).then(|| sum / n / (n - 1.0))
}

/// Correlation of two series that were observed together. None where one of them is constant.
pub(super) fn correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let norms = (covariance_of_means(a, a)? * covariance_of_means(b, b)?).sqrt();
    (norms > 0.0).then(|| covariance_of_means(a, b).map(|c| c / norms))?
}

/// A percentile of values in ascending order, `fraction` from 0 to 1, on the line between the two
/// nearest ones (position fraction · (n − 1)): also the median at 0.5. None without values.
pub(super) fn percentile(sorted: &[f64], fraction: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = fraction.clamp(0.0, 1.0) * last as f64;
    let (below, share) = (at as usize, at.fract());
    let above = (below + 1).min(last);
    Some((1.0 - share) * sorted[below] + share * sorted[above])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_observation_has_no_error_and_none_has_no_mean() {
        assert_eq!(Estimate::mean(&[]), None);
        assert_eq!(Estimate::share(0, 0), None);
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(Estimate::mean(&[3.0]), Some(Estimate { value: 3.0, error: None }));
        assert_eq!(Estimate::share(1, 1), Some(Estimate { value: 1.0, error: None }));
        assert_eq!(correlation(&[1.0, 1.0], &[1.0, 2.0]), None);
    }

    #[test]
    fn the_error_of_a_share_is_that_of_a_mean_of_zeros_and_ones() {
        let (share, mean) =
            (Estimate::share(3, 8).unwrap(), Estimate::mean(&[1., 1., 1., 0., 0., 0., 0., 0.]).unwrap());
        assert_eq!(share.value, mean.value);
        assert!((share.error.unwrap() - mean.error.unwrap()).abs() < 1e-15);
    }

    #[test]
    fn percentiles_lie_on_the_line_between_neighbours() {
        let sorted = [0.0, 1.0, 4.0, 9.0];
        let found = [0.0, 0.25, 0.5, 0.9, 1.0].map(|f| percentile(&sorted, f).unwrap());
        for (found, expected) in found.into_iter().zip([0.0, 0.75, 2.5, 7.5, 9.0]) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
    }

    #[test]
    fn a_large_mean_takes_no_digits_from_the_error() {
        let values = [1e8, 1e8 + 1.0, 1e8 + 2.0];
        assert!((Estimate::mean(&values).unwrap().error.unwrap() - (1.0f64 / 3.0).sqrt()).abs() < 1e-9);
    }
}
