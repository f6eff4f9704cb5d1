//! Exact tails of the binomial distribution, and what they say of a share.
//!
//! Held against scipy's `binomtest` by recorded values (`tests/peers/binomial.py`). A crate for this
//! (statrs, puruspe) would bring special functions by the dozen; a tail is a sum of at most n terms,
//! each a multiple of the one before.

/// Halvings of an interval of shares: the last is narrower than f64 tells near 1.
const HALVINGS: usize = 60;
/// A term that is smaller than this part of the sum changes no digit of it.
const NEGLIGIBLE: f64 = 1e-18;

/// P(X ≤ k) of n trials that each succeed with probability p.
pub(super) fn at_most(k: usize, n: usize, p: f64) -> f64 {
    if k >= n || p <= 0.0 {
        return 1.0;
    }
    if p >= 1.0 {
        return 0.0;
    }
    // The tail that has no terms larger than its first, so that the sum loses no digits and ends soon.
    let is_lower = (k as f64) < p * (n as f64 + 1.0);
    if is_lower { sum_below(k, n, p) } else { 1.0 - sum_below(n - k - 1, n, 1.0 - p) }
}

/// P(X ≥ k) of n trials that each succeed with probability p.
pub(super) fn at_least(k: usize, n: usize, p: f64) -> f64 {
    if k == 0 { 1.0 } else { at_most(n.saturating_sub(k), n, 1.0 - p) }
}

/// P(X ≤ k), k below the most probable value, by terms that fall from k on.
fn sum_below(k: usize, n: usize, p: f64) -> f64 {
    let odds = (1.0 - p) / p;
    let mut term = probability(k, n, p);
    let mut sum = term;
    for i in (1..=k).rev() {
        term *= i as f64 / (n - i + 1) as f64 * odds;
        sum += term;
        if term < NEGLIGIBLE * sum {
            break;
        }
    }
    sum.min(1.0)
}

/// P(X = k), by the same steps on every machine.
fn probability(k: usize, n: usize, p: f64) -> f64 {
    let (k, n) = (k as f64, n as f64);
    let choose = libm::lgamma(n + 1.0) - libm::lgamma(k + 1.0) - libm::lgamma(n - k + 1.0);
    libm::exp(choose + k * libm::log(p) + (n - k) * libm::log1p(-p))
}

/// The true shares that `hits` of `n` do not rule out with an error of `alpha` on each side (Clopper
/// and Pearson). None for no trials.
pub(super) fn interval(hits: usize, n: usize, alpha: f64) -> Option<(f64, f64)> {
    if n == 0 {
        return None;
    }
    let lowest = if hits == 0 { 0.0 } else { share_where(|p| at_least(hits, n, p) >= alpha) };
    let highest = if hits >= n { 1.0 } else { share_where(|p| at_most(hits, n, p) < alpha) };
    Some((lowest, highest))
}

/// The smallest share at which a claim holds that holds from some share on.
pub(super) fn share_where(holds: impl Fn(f64) -> bool) -> f64 {
    let (mut below, mut above) = (0.0, 1.0);
    for _ in 0..HALVINGS {
        let middle = 0.5 * (below + above);
        if holds(middle) { above = middle } else { below = middle }
    }
    above
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_and_intervals_are_those_of_scipy() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/eval/binomial.json");
        let recorded: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).expect("a fixture")).expect("JSON");
        let rows = |name: &str| recorded[name].as_array().expect("rows").clone();
        let count = |value: &serde_json::Value| value.as_u64().expect("a count") as usize;
        let number = |value: &serde_json::Value| value.as_f64().expect("a number");
        // lgamma gives 1e-16 of some ten thousand for n = 5 000; scipy's incomplete beta function is no better.
        let is_near = |found: f64, expected: f64| (found - expected).abs() <= 1e-10 * expected.abs() + 1e-280;
        let (tests, intervals) = (rows("tests"), rows("intervals"));
        assert!(tests.len() > 500 && intervals.len() > 50);
        for row in &tests {
            let (hits, n, bound) = (count(&row[0]), count(&row[1]), number(&row[2]));
            let (less, greater) = (at_most(hits, n, bound), at_least(hits, n, bound));
            assert!(is_near(less, number(&row[3])) && is_near(greater, number(&row[4])), "{row}: {less} {greater}");
        }
        for row in &intervals {
            let (lowest, highest) = interval(count(&row[0]), count(&row[1]), 0.05).expect("there are trials");
            assert!(
                (lowest - number(&row[2])).abs() < 1e-9 && (highest - number(&row[3])).abs() < 1e-9,
                "{row}: {lowest} {highest}"
            );
        }
    }

    #[test]
    fn a_certain_and_an_impossible_success() {
        for (k, n, p, lower, upper) in [
            (0, 5, 0.0, 1.0, 1.0),
            (1, 5, 0.0, 1.0, 0.0),
            (4, 5, 1.0, 0.0, 1.0),
            (5, 5, 1.0, 1.0, 1.0),
            (0, 0, 0.5, 1.0, 1.0),
        ] {
            assert_eq!((at_most(k, n, p), at_least(k, n, p)), (lower, upper), "{k} of {n} at {p}");
        }
        assert_eq!(interval(0, 0, 0.05), None);
    }

    #[test]
    fn both_tails_share_one_value() {
        for n in [1, 7, 12, 68, 1000] {
            for p in [0.001, 0.02, 0.3, 0.5, 0.9] {
                for k in 1..=n {
                    let sum = at_most(k - 1, n, p) + at_least(k, n, p);
                    assert!((sum - 1.0).abs() < 1e-11, "{k} of {n} at {p}: {sum}");
                }
            }
        }
    }

    #[test]
    fn an_interval_ends_where_the_tails_are_alpha() {
        let (lowest, highest) = interval(5, 12, 0.05).expect("there are trials");
        assert!((at_least(5, 12, lowest) - 0.05).abs() < 1e-12 && (at_most(5, 12, highest) - 0.05).abs() < 1e-12);
        assert_eq!(interval(0, 3, 0.05).map(|i| i.0), Some(0.0));
        assert_eq!(interval(3, 3, 0.05).map(|i| i.1), Some(1.0));
    }

    #[test]
    fn millions_of_trials_take_no_longer() {
        let n = 6_400_000;
        assert!((at_most(n / 2, n, 0.5) - 0.5).abs() < 1e-3);
        assert_eq!(at_most(n / 3, n, 0.5), 0.0);
    }
}
