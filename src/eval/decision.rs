//! Verdicts on shares, by exact one-sided binomial tests against the bounds.
//!
//! A check has two bounds of the true share, which the answers are a sample of: *must be* and *should
//! be*. An error of [`ALPHA`] is allowed on each side.
//!
//! | the answers | verdict |
//! |---|---|
//! | rule out that the share is what it must be | FAIL |
//! | rule out that it is what it should be | WARN |
//! | rule out neither, and do not show that it is what it must be | WARN, not decided |
//! | show that it is what it must be | PASS |
//!
//! Between FAIL and PASS lie always the counts that decide nothing: a model whose answers differ a
//! little in another type does not jump from one to the other. That it is what it *should* be need
//! not be shown: twelve answers could not, and a good model would warn for ever.

use super::binomial;
use super::check_result::Verdict;
use super::{Check, Good};

/// The error that a verdict of FAIL or PASS may have, as a probability.
pub const ALPHA: f64 = 0.05;
/// The probability with which a check finds what its power promises.
pub const POWER: f64 = 0.8;

/// A share as a check sees it: `good` of `n` answers are as they should be, and the true share of
/// those is to be at least a bound.
#[derive(Clone, Copy)]
struct Sample {
    good: usize,
    n: usize,
}

impl Sample {
    /// Whether the answers rule out that the true share is at least this. If all have to be good, one
    /// that is not is enough.
    fn rules_out(self, bound: f64) -> bool {
        self.good < self.n && binomial::at_most(self.good, self.n, bound) <= ALPHA
    }

    /// Whether they show that it is. That all are good is taken as shown if these are.
    fn shows(self, bound: f64) -> bool {
        bound <= 0.0 || bound >= 1.0 && self.good == self.n || binomial::at_least(self.good, self.n, bound) <= ALPHA
    }
}

/// How sure the intervals of shares are: neither end has an error of more than [`ALPHA`].
pub const CONFIDENCE: f64 = 1.0 - 2.0 * ALPHA;

/// The true shares that `hits` of `n` do not rule out, at [`CONFIDENCE`] (Clopper and Pearson,
/// Biometrika 26, 1934). From 0 to 1 for no cases.
///
/// # Panics
/// If there are more hits than cases.
pub fn share_interval(hits: usize, n: usize) -> (f64, f64) {
    assert!(hits <= n, "no more hits than cases");
    binomial::interval(hits, n, ALPHA).unwrap_or((0.0, 1.0))
}

/// What answers say of a share.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Decision {
    pub(super) verdict: Verdict,
    /// Why they do not decide, if they do not.
    pub(super) undecided: Option<String>,
    /// The true share at which the check fails with a probability of [`POWER`].
    pub(super) power: Option<f64>,
    /// Where the true share is.
    pub(super) interval: Option<(f64, f64)>,
}

/// Holds a share of answers to a check.
pub(super) fn decide(check: &Check, hits: usize, n: usize) -> Decision {
    let interval = binomial::interval(hits, n, ALPHA);
    let bad_side = |bound: f64| if check.good == Good::AtLeast { bound } else { 1.0 - bound };
    let sample = Sample { good: if check.good == Good::AtLeast { hits } else { n - hits }, n };
    let (fail, warn) = (check.fail.map(bad_side), check.warn.map(bad_side));
    // A check that only warns has to show what it should be.
    let Some(must) = fail.or(warn).filter(|_| n > 0) else {
        return Decision { verdict: Verdict::NotMeasured, undecided: None, power: None, interval };
    };
    let power = power(n, must).map(bad_side);
    let is_open = !sample.shows(must);
    let (verdict, undecided) = if fail.is_some_and(|fail| sample.rules_out(fail)) {
        (Verdict::Fail, None)
    } else if warn.is_some_and(|warn| sample.rules_out(warn)) {
        (Verdict::Warn, None)
    } else if is_open {
        (Verdict::Warn, Some(why(check, hits, n, must, interval)))
    } else {
        (Verdict::Pass, None)
    };
    Decision { verdict, undecided, power, interval }
}

/// The true share of good ones at which a check against `bound` finds it out with [`POWER`]. None if
/// even n bad answers rule nothing out.
fn power(n: usize, bound: f64) -> Option<f64> {
    let rules_out = |good: usize| Sample { good, n }.rules_out(bound);
    if !rules_out(0) {
        return None;
    }
    // The most good ones with which it does.
    let (mut most, mut too_many) = (0, n);
    while too_many - most > 1 {
        let middle = most + (too_many - most) / 2;
        if rules_out(middle) { most = middle } else { too_many = middle }
    }
    Some(binomial::share_where(|p| binomial::at_most(most, n, p) <= POWER))
}

/// Why a share is not decided.
fn why(check: &Check, hits: usize, n: usize, must: f64, interval: Option<(f64, f64)>) -> String {
    let bound = check.fail.or(check.warn).unwrap_or_default();
    let least = if check.good == Good::AtLeast { "least" } else { "most" };
    let answers = if n == 1 { "1 answer" } else { &format!("{n} answers") };
    let needed = needed(must);
    if n < needed {
        return format!(
            "cannot be told from {answers}: at least {needed} are needed to show a share of at {least} {bound}"
        );
    }
    let (lowest, highest) = interval.unwrap_or((0.0, 1.0));
    format!(
        "cannot be told from {answers}: {hits} of {n} come from true shares of {lowest:.2} to {highest:.2}, and the bound is {bound}"
    )
}

/// The fewest answers that show a share of at least `bound`, if all are good.
fn needed(bound: f64) -> usize {
    (1..).find(|&n| Sample { good: n, n }.shows(bound) || n >= MOST_NEEDED).unwrap_or(MOST_NEEDED)
}

/// A bound that takes more answers is as good as 1.
const MOST_NEEDED: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn check(good: Good, fail: Option<f64>, warn: Option<f64>) -> Check {
        Check { name: "x", good, fail, warn, about: "" }
    }

    /// P, W, U (not decided) and F for 0, 1, … hits.
    fn verdicts(check: &Check, n: usize) -> String {
        let letter = |hits| match decide(check, hits, n) {
            Decision { verdict: Verdict::Fail, undecided: None, .. } => 'F',
            Decision { verdict: Verdict::Warn, undecided: None, .. } => 'W',
            Decision { verdict: Verdict::Warn, undecided: Some(_), .. } => 'U',
            Decision { verdict: Verdict::Pass, undecided: None, .. } => 'P',
            other => panic!("{other:?}"),
        };
        (0..=n).map(letter).collect()
    }

    #[test]
    fn counts_of_twelve_fall_into_their_verdicts() {
        let at_least = |fail, warn| check(Good::AtLeast, fail, warn);
        // P(X ≤ 0 | 12, 0.3) = 0.0138, P(X ≤ 1) = 0.085; P(X ≤ 2 | 12, 0.5) = 0.0193; P(X ≥ 7 | 12, 0.3) = 0.0386.
        assert_eq!(verdicts(&at_least(Some(0.3), Some(0.5)), 12), "FWWUUUUPPPPPP");
        assert_eq!(verdicts(&at_least(None, Some(0.3)), 12), "WUUUUUUPPPPPP");
        let at_most = check(Good::AtMost, Some(0.5), Some(0.1));
        assert_eq!(verdicts(&at_most, 8), "PPUWWWWFF");
    }

    #[test]
    fn few_answers_decide_nothing_and_say_how_many_would() {
        let check = check(Good::AtLeast, Some(0.5), Some(0.8));
        assert_eq!(verdicts(&check, 3), "WUUU");
        let decision = decide(&check, 3, 3);
        assert!(decision.undecided.expect("a reason").contains("at least 5 are needed"));
        assert_eq!(decision.power, None);
        let decision = decide(&check, 8, 12).undecided.expect("a reason");
        assert!(decision.contains("8 of 12 come from true shares of 0.39 to 0.88, and the bound is 0.5"), "{decision}");
        assert_eq!(decide(&check, 0, 0).verdict, Verdict::NotMeasured);
    }

    #[test]
    fn bounds_that_allow_nothing_or_everything_are_decided_by_each_answer() {
        assert_eq!(verdicts(&check(Good::AtLeast, Some(1.0), Some(1.0)), 3), "FFFP");
        assert_eq!(verdicts(&check(Good::AtMost, Some(0.0), Some(0.0)), 3), "PFFF");
        assert_eq!(verdicts(&check(Good::AtLeast, Some(0.0), Some(0.0)), 3), "PPPP");
        assert_eq!(decide(&check(Good::AtLeast, None, None), 1, 3).verdict, Verdict::NotMeasured);
    }

    #[test]
    fn power_is_the_share_that_fails_four_times_in_five() {
        let check = check(Good::AtLeast, Some(0.7), Some(0.9));
        let power = decide(&check, 60, 60).power.expect("sixty can fail");
        let most = (0..60).rev().find(|&hits| decide(&check, hits, 60).verdict == Verdict::Fail).expect("some fail");
        assert!((binomial::at_most(most, 60, power) - POWER).abs() < 1e-9);
        assert!((0.5..0.6).contains(&power), "{power}");
    }

    #[test]
    fn no_count_lies_between_pass_and_fail_without_a_warning() {
        for n in 1..80 {
            for bound in [0.05, 0.2, 0.3, 0.5, 0.7, 0.9] {
                let all = verdicts(&check(Good::AtLeast, Some(bound), None), n);
                assert!(!all.contains("FP"), "{n} at {bound}: {all}");
                assert_eq!(all.matches("PU").count() + all.matches("UF").count(), 0, "{n} at {bound}: {all}");
            }
        }
    }
}
