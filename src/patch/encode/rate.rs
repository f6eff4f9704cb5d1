//! What a step costs and what it leaves, from singular values alone.

use super::codes::{Direction, Metric, directions};
use crate::patch::low_rank::LowRank;

/// What is expected of a matrix before anything is rounded.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Expected {
    /// Entropy of its numbers, and its scales.
    pub bits: f64,
    /// Σ error²
    pub error2: f64,
}

/// What `step` would make of a matrix.
pub fn expected(low: &LowRank, (row_len, n_rows): (usize, usize), metric: &Metric, step: f64) -> Expected {
    let (n_in, n_out) = (row_len as f64, n_rows as f64);
    let mut expected = Expected { bits: 0.0, error2: low.norm2 };
    for Direction { sigma, weighted, step_b, .. } in directions(low, (row_len, n_rows), metric, step) {
        // Numbers of a singular vector are much like normal ones.
        let (a, b) = (sigma / n_in.sqrt() / step, weighted / n_out.sqrt() / step_b);
        expected.bits += n_in * entropy(a) + n_out * entropy(b) + 32.0;
        let error_b = (sigma / weighted * step_b).powi(2) / 12.0 * n_out;
        expected.error2 += n_in * step * step / 12.0 + error_b - sigma * sigma;
    }
    expected
}

/// Whether so many bits are spent on all directions that were found: then shorter ones would have
/// some, too.
pub fn is_spent_on_all(low: &LowRank, shape: (usize, usize), metric: &Metric, bits: f64) -> bool {
    let step = bisect(|step| expected(low, shape, metric, step).bits, bits);
    directions(low, shape, metric, step).len() == low.rank
}

/// The least step, to one part in a thousand, of which `size` is no more than `most`.
pub fn bisect(size: impl Fn(f64) -> f64, most: f64) -> f64 {
    // In powers of two.
    let (mut low, mut high) = (-80.0, 80.0);
    while high - low > 1e-3 {
        let middle: f64 = (low + high) / 2.0;
        if size(middle.exp2()) <= most { high = middle } else { low = middle }
    }
    high.exp2()
}

/// Bits of a normal number of this standard deviation, rounded to a whole one.
fn entropy(deviation: f64) -> f64 {
    if deviation.is_nan() || deviation <= 0.05 {
        return 0.0;
    }
    if deviation > 4.0 {
        // That of the density, ½·log2(2πe·σ²).
        return deviation.log2() + 2.047_095_585;
    }
    let below = |x: f64| normal_below(x / deviation);
    let bits = |p: f64| if p > 0.0 { -p * p.log2() } else { 0.0 };
    let zero = bits(1.0 - 2.0 * below(-0.5));
    zero + 2.0 * (1..40).map(|i| bits(below(0.5 - f64::from(i)) - below(-0.5 - f64::from(i)))).sum::<f64>()
}

/// The share of normal numbers below −|x|, to 10⁻⁷ (Abramowitz and Stegun, Handbook of Mathematical
/// Functions, 26.2.17).
fn normal_below(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * x.abs());
    let terms = [1.330_274_429, -1.821_255_978, 1.781_477_937, -0.356_563_782, 0.319_381_530];
    terms.iter().fold(0.0, |sum, c| (sum + c) * t) * (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt()
}

#[cfg(test)]
mod tests {
    use super::{bisect, entropy, normal_below};

    #[test]
    fn bisection_finds_the_step() {
        let step = bisect(|step| 1000.0 / step, 250.0);
        assert!((4.0..4.01).contains(&step), "{step}");
    }

    /// By Python's math.erfc.
    #[test]
    fn entropies_are_those_of_rounded_normal_numbers() {
        for (deviation, bits) in [(0.25, 0.3125), (0.5, 1.2412), (1.0, 2.1048), (3.0, 3.6387), (8.0, 5.0480)] {
            assert!((entropy(deviation) - bits).abs() < 2e-3, "{deviation}: {}, expected {bits}", entropy(deviation));
        }
        assert_eq!(entropy(0.0), 0.0);
        assert!((normal_below(-1.96) - 0.024_998).abs() < 1e-6);
    }
}
