//! Intervals of shares.

/// The exact interval of a share (Clopper and Pearson, Biometrika 26, 1934): the shares under which
/// `hits` of `n`, or more, and as many or fewer, each have a probability of at least
/// (1 − `level`)/2. From 0 to 1 for no cases.
///
/// # Panics
/// If there are more hits than cases.
pub fn share_interval(hits: usize, n: usize, level: f64) -> (f64, f64) {
    assert!(hits <= n, "no more hits than cases");
    let tail = (1.0 - level) / 2.0;
    let lower = if hits == 0 { 0.0 } else { rises_to(tail, |share| at_least(hits, n, share)) };
    let upper = if hits == n { 1.0 } else { 1.0 - rises_to(tail, |rest| at_least(n - hits, n, rest)) };
    (lower, upper)
}

/// Where a rising function of 0 to 1 has this value.
fn rises_to(value: f64, function: impl Fn(f64) -> f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..64 {
        let middle = 0.5 * (low + high);
        if function(middle) < value { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The probability of at least `hits` of `n` where each has this probability.
fn at_least(hits: usize, n: usize, share: f64) -> f64 {
    if share <= 0.0 || share >= 1.0 {
        return if share >= 1.0 || hits == 0 { 1.0 } else { 0.0 };
    }
    let ln_factorial = |k: usize| libm::lgamma(k as f64 + 1.0);
    let term = |k: usize| {
        let ways = ln_factorial(n) - ln_factorial(k) - ln_factorial(n - k);
        libm::exp(ways + k as f64 * libm::log(share) + (n - k) as f64 * libm::log1p(-share))
    };
    (hits..=n).map(term).sum::<f64>().min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By exact fractions: `tests/peers/share_interval.py`.
    #[test]
    fn intervals_are_those_of_exact_fractions() {
        for (hits, n, expected) in [
            (0, 12, (0.0, 0.264_648_469_4)),
            (2, 12, (0.020_862_525_5, 0.484_137_748_7)),
            (5, 10, (0.187_086_028_4, 0.812_913_971_6)),
            (12, 12, (0.735_351_530_6, 1.0)),
            (131, 167, (0.714_268_177_4, 0.844_217_483_3)),
            (0, 0, (0.0, 1.0)),
        ] {
            let found = share_interval(hits, n, 0.95);
            let is_near = |a: f64, b: f64| (a - b).abs() < 1e-8;
            assert!(is_near(found.0, expected.0) && is_near(found.1, expected.1), "{hits} of {n}: {found:?}");
        }
    }
}
