//! When a vector counts as lost: one bound, for what is expected and for what is measured.
//!
//! A tensor *misses* 1 − survival of its vector, or nothing if it holds all. What an output misses
//! is the root of the mean square of that over its matrices, weighed by ‖δ‖²/‖W‖² or by ‖δ‖²,
//! whichever mean is larger. The first counts what the vector changes in a matrix relative to
//! itself, so that a small matrix has its say; the second lets embeddings have theirs, which are
//! one matrix among hundreds but in every token. An output is *rejected* if it misses more than 1 −
//! [`LossPolicy::min_survival`], if all of its weights together hold less than `min_survival`, or
//! if the same means of rounding error are more than [`LossPolicy::max_noise`]. An output of which
//! every tensor holds `min_survival` is never rejected for what it misses.
//!
//! A tensor is *lost* if it alone is beyond these bounds. Lost tensors are dithered or get finer
//! types where the policy has that; they are no reason to reject an output by themselves.
//!
//! docs/SURVIVAL.md has the study behind the measure and the defaults.

use std::collections::HashMap;
use std::fmt;

use super::MergePlan;
use crate::survey::{Estimate, Look, Survey};
use crate::vector::Moments;

/// What is done about tensors that would lose the vector.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLoss {
    /// Codes are chosen anew on the grid, so that the size stays; where that cannot be or does not
    /// help, a finer type.
    #[default]
    Dither,
    /// The next finer type that keeps the vector.
    Promote,
    /// Nothing; it is said.
    Warn,
    /// Nothing; the run fails if the output would be rejected, before anything is written where it
    /// can be known.
    Fail,
}

impl OnLoss {
    /// The word for it on the command line and in provenance.
    pub fn name(self) -> &'static str {
        match self {
            OnLoss::Dither => "dither",
            OnLoss::Promote => "promote",
            OnLoss::Warn => "warn",
            OnLoss::Fail => "fail",
        }
    }
}

/// When a vector counts as lost, and what is done then.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct LossPolicy {
    /// What is done.
    pub on_loss: OnLoss,
    /// The least share of the vector that a tensor, and an output, has to hold.
    pub min_survival: f64,
    /// The most rounding error that a tensor, and an output, may have, in units of the vector.
    pub max_noise: f64,
}

impl Default for LossPolicy {
    /// Dither below 0.9 of the vector, or above 8 times as much noise as vector.
    fn default() -> Self {
        LossPolicy { on_loss: OnLoss::Dither, min_survival: 0.9, max_noise: 8.0 }
    }
}

/// Standard errors of a sample within which what it says is not taken for sure.
const ERRORS: f64 = 3.0;

/// No matrix counts more than this many times the median one: one that was replaced altogether must
/// not hide the rest. In the bundled trio the largest is 4 times the median.
const LARGEST: f64 = 16.0;

/// What is known of one tensor of an output, or expected.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Held<'a> {
    /// The tensor.
    pub name: &'a str,
    /// Whether it has rows and columns: other tensors, which are never quantised, have no part in
    /// what an output misses.
    pub is_matrix: bool,
    /// Its sums.
    pub estimate: Estimate,
}

/// A tensor that lost the vector, or all of them.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Loss {
    /// The tensor; none for all together.
    pub tensor: Option<String>,
    /// ⟨q − m, δ⟩ / ⟨δ, δ⟩
    pub survival: f64,
    /// ‖q − o‖ / ‖δ‖
    pub noise: f64,
    /// What the output misses, of a tensor only by what is missing in that.
    pub missing: f64,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (held, missing) = (self.survival * 100.0, self.missing * 100.0);
        match &self.tensor {
            Some(tensor) => write!(f, "{tensor} ({held:.0} % of the vector, noise {:.1})", self.noise),
            None => write!(
                f,
                "all tensors together ({held:.0} % of the vector, {missing:.0} % missing, noise {:.1})",
                self.noise
            ),
        }
    }
}

/// How many tensors are named at most.
const LISTED: usize = 3;

/// Losses, as far as they can be read at a glance.
pub fn listed(lost: &[Loss]) -> String {
    let (named, more) = lost.split_at(lost.len().min(LISTED));
    let mut words: Vec<String> = named.iter().map(ToString::to_string).collect();
    words.extend((!more.is_empty()).then(|| format!("{} more", more.len())));
    words.join(", ")
}

/// What is to be said of an output.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Verdict {
    /// The tensors that are lost, and all together if the output is rejected.
    pub lost: Vec<Loss>,
    /// What the output misses, 0 for nothing to 1 for all; 0 where there is no vector.
    pub missing: f64,
    /// Whether it is beyond the bounds.
    pub is_rejected: bool,
}

/// How much each tensor counts.
struct TensorShares {
    /// ‖δ‖²/‖W‖² of each tensor, cut at [`LARGEST`] times the median; 0 for what is no matrix.
    each: Vec<f64>,
    sum: f64,
    mean: f64,
    /// ‖δ‖² of each tensor; 0 for what is no matrix.
    lengths: Vec<f64>,
}

impl TensorShares {
    fn of(tensors: &[Held<'_>]) -> Self {
        let has_matrix = tensors.iter().any(|t| t.is_matrix && t.estimate.moments.delta2 > 0.0);
        let counts = |t: &Held<'_>| (t.is_matrix || !has_matrix) && t.estimate.moments.delta2 > 0.0;
        let square = |t: &Held<'_>| {
            let Moments { delta2, model2, .. } = t.estimate.moments;
            // What is added to nothing is large against it.
            if !counts(t) {
                0.0
            } else if model2 > 0.0 {
                delta2 / model2
            } else {
                f64::INFINITY
            }
        };
        let mut each: Vec<f64> = tensors.iter().map(square).collect();
        let mut known: Vec<f64> = each.iter().copied().filter(|w| *w > 0.0 && w.is_finite()).collect();
        known.sort_by(f64::total_cmp);
        let largest = known.get(known.len() / 2).map_or(1.0, |median| LARGEST * median);
        each.iter_mut().for_each(|w| *w = w.min(largest));
        let n = each.iter().filter(|w| **w > 0.0).count().max(1);
        let sum: f64 = each.iter().sum();
        let lengths = tensors.iter().map(|t| if counts(t) { t.estimate.moments.delta2 } else { 0.0 }).collect();
        TensorShares { each, sum, mean: sum / n as f64, lengths }
    }
}

/// The root of the mean of squares.
fn root_mean(weights: &[f64], squares: impl Iterator<Item = f64>) -> f64 {
    let sum: f64 = weights.iter().sum();
    let squares = weights.iter().zip(squares).filter(|(weight, _)| **weight > 0.0);
    if sum > 0.0 { (squares.map(|(weight, square)| weight * square).sum::<f64>() / sum).sqrt() } else { 0.0 }
}

impl LossPolicy {
    /// What is to be said of an output with these tensors.
    pub fn judge<'a>(&self, tensors: impl IntoIterator<Item = Held<'a>>) -> Verdict {
        let tensors: Vec<Held<'_>> = tensors.into_iter().collect();
        let weights = TensorShares::of(&tensors);
        let mut lost = self.lost(&tensors, &weights, |e, s, n| (e.moments.delta2 > 0.0).then_some((s, n)));
        let mut total = Moments::default();
        tensors.iter().for_each(|t| total += t.estimate.moments);
        let (Some(survival), Some(noise)) = (total.survival(), total.noise()) else { return Verdict::default() };
        let of =
            |t: &Held<'_>| (t.estimate.moments.survival().unwrap_or(1.0), t.estimate.moments.noise().unwrap_or(0.0));
        let missing_by = |weights: &[f64]| root_mean(weights, tensors.iter().map(|t| missing(of(t).0).powi(2)));
        let (relative, length) = (missing_by(&weights.each), missing_by(&weights.lengths));
        // What is no number stays none.
        let missing = if relative < length { length } else { relative };
        let noise_in_mean = root_mean(&weights.each, tensors.iter().map(|t| of(t).1.powi(2)));
        // What is no number is no success.
        let is_rejected =
            self.is_lost(survival, noise) || !(missing <= 1.0 - self.min_survival && noise_in_mean <= self.max_noise);
        lost.extend(is_rejected.then_some(Loss { tensor: None, survival, noise, missing }));
        Verdict { lost, missing, is_rejected }
    }

    /// Holds what was measured of a plan's tensors to the bounds.
    pub fn judge_measured<'a>(
        &self,
        plan: &MergePlan,
        tensors: impl IntoIterator<Item = (&'a str, Moments)>,
    ) -> Verdict {
        let matrices: HashMap<&str, bool> = plan.tensors().iter().map(|t| (t.name.as_str(), t.n_dims() > 1)).collect();
        let is_matrix = |name: &str| matrices.get(name).copied().unwrap_or(true);
        self.judge(tensors.into_iter().map(|(name, m)| Held { name, is_matrix: is_matrix(name), estimate: m.into() }))
    }

    /// Holds what a survey expects of a plan's tensors to the bounds.
    pub fn judge_expected(&self, plan: &MergePlan, survey: &Survey) -> Verdict {
        self.judge(held(plan, survey))
    }

    /// The tensors of a plan that may be lost: a survey expects that, or is not sure of the
    /// contrary.
    pub fn at_risk(&self, plan: &MergePlan, survey: &Survey) -> Vec<Loss> {
        let tensors: Vec<Held<'_>> = held(plan, survey).collect();
        let cautious = |e: &Estimate, survival: f64, noise: f64| {
            Some((survival - ERRORS * e.survival_error, noise + ERRORS * e.noise_error))
        };
        self.lost(&tensors, &TensorShares::of(&tensors), cautious)
    }

    /// What is made of an estimate for an encoding that is tried.
    pub fn look(&self, estimate: &Estimate) -> Look {
        let Estimate { moments, survival_error, noise_error } = estimate;
        let (Some(survival), Some(noise)) = (moments.survival(), moments.noise()) else { return Look::Enough };
        let (survival_error, noise_error) = (ERRORS * survival_error, ERRORS * noise_error);
        if !self.is_lost(survival - survival_error, noise + noise_error) {
            Look::Enough
        } else if self.is_lost(survival + survival_error, noise - noise_error) {
            Look::Short
        } else {
            Look::Unsure
        }
    }

    /// Whether any encoding may hold enough: none holds more of the vector than all of it, but for
    /// chance.
    pub fn can_be_met(&self) -> bool {
        self.min_survival <= 1.0
    }

    /// Whether a tensor by itself is beyond the bounds.
    pub fn is_lost(&self, survival: f64, noise: f64) -> bool {
        !(survival >= self.min_survival && noise <= self.max_noise)
    }

    /// Tensors whose vector is smaller than this, relative to the weights, against the root of the
    /// mean square of all, have no verdict of their own: all of them together miss at most half of
    /// what an output may miss, and to keep what is nearly nothing would take noise that is
    /// something.
    fn negligible(&self) -> f64 {
        (1.0 - self.min_survival).max(0.0) / 2.0
    }

    /// The tensors that are lost by their survival and noise, as `numbers` make them of an estimate
    /// and its own.
    fn lost(
        &self,
        tensors: &[Held<'_>],
        weights: &TensorShares,
        numbers: impl Fn(&Estimate, f64, f64) -> Option<(f64, f64)>,
    ) -> Vec<Loss> {
        let least = self.negligible().powi(2) * weights.mean;
        let of_tensor = |tensor: &Held<'_>| {
            let Moments { delta2, model2, .. } = tensor.estimate.moments;
            let (survival, noise) = (tensor.estimate.moments.survival()?, tensor.estimate.moments.noise()?);
            if delta2 < least * model2 {
                return None;
            }
            let (least_survival, most_noise) = numbers(&tensor.estimate, survival, noise)?;
            let share = if weights.sum > 0.0 { (delta2 / model2).min(weights.sum) / weights.sum } else { 0.0 };
            let missing = share.sqrt() * missing(survival);
            let loss = Loss { tensor: Some(tensor.name.to_owned()), survival, noise, missing };
            self.is_lost(least_survival, most_noise).then_some(loss)
        };
        tensors.iter().filter_map(of_tensor).collect()
    }
}

/// What is missing of a vector of which this share is there; no number of what is none.
fn missing(survival: f64) -> f64 {
    if survival >= 1.0 { 0.0 } else { 1.0 - survival }
}

/// What a survey expects of the tensors of a plan.
fn held<'a>(plan: &'a MergePlan, survey: &'a Survey) -> impl Iterator<Item = Held<'a>> {
    let surveyed: HashMap<&str, _> = survey.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    plan.tensors().iter().filter_map(move |t| {
        let estimate = *surveyed.get(t.name.as_str())?.expected(t.ty)?;
        // A type that cannot hold the sum is another matter: the run says which weight it is.
        let is_finite = estimate.moments.kept.is_finite() && estimate.moments.error2.is_finite();
        is_finite.then_some(Held { name: &t.name, is_matrix: t.n_dims() > 1, estimate })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &'static str, survival: f64, noise: f64, delta: f64) -> Held<'static> {
        let delta2 = delta * delta;
        let (kept, error2) = (survival * delta2, noise * noise * delta2);
        let moments = Moments { delta2, model2: 1.0, kept, error2, ..Moments::default() };
        Held { name, is_matrix: true, estimate: moments.into() }
    }

    #[track_caller]
    fn lost(tensors: &[Held<'static>], expected: &[&str], is_rejected: bool) {
        let verdict = LossPolicy::default().judge(tensors.iter().copied());
        let found: Vec<&str> = verdict.lost.iter().filter_map(|loss| loss.tensor.as_deref()).collect();
        assert_eq!((&found[..], verdict.is_rejected), (expected, is_rejected), "{verdict:?}");
        assert_eq!(verdict.lost.iter().any(|loss| loss.tensor.is_none()), is_rejected);
    }

    #[test]
    fn a_tensor_is_lost_by_survival_or_noise_unless_its_vector_is_negligible() {
        let good = tensor("good", 0.95, 2.0, 0.05);
        lost(&[good], &[], false);
        lost(&[good, good, tensor("drowned", 1.0, 9.0, 0.05)], &["drowned"], false);
        lost(&[good, good, tensor("below", 0.88, 1.0, 0.05)], &["below"], false);
        lost(&[good, tensor("worse", 0.1, 1.0, 0.05)], &["worse"], true);
        lost(&[good, tensor("negligible", 0.1, 1.0, 0.001)], &[], false);
        lost(&[tensor("zero", 0.0, 0.0, 0.0)], &[], false);
        lost(&[tensor("alone", 0.1, 1.0, 0.001)], &["alone"], true);
        lost(&[tensor("no number", f64::NAN, 1.0, 0.05)], &["no number"], true);
    }

    #[test]
    fn an_output_is_rejected_for_what_tensors_miss_by_their_share() {
        // A whole tensor of 100 alike is a tenth of the vector's length; of 99 it is more.
        let with_one_lost = |n: usize| {
            let mut tensors = vec![tensor("held", 1.0, 1.0, 0.05); n];
            tensors[0] = tensor("lost", 0.0, 1.0, 0.05);
            tensors
        };
        lost(&with_one_lost(101), &["lost"], false);
        lost(&with_one_lost(99), &["lost"], true);
        // Ten tensors lost outright are worse than a tenth of each, although both leave nine
        // tenths.
        lost(&vec![tensor("tenth", 0.9001, 1.0, 0.05); 100], &[], false);
        let mut ten = vec![tensor("held", 1.0, 1.0, 0.05); 100];
        ten[..9].fill(tensor("lost", 0.0, 1.0, 0.05));
        lost(&ten, &["lost"; 9], true);
    }

    #[test]
    fn one_large_matrix_among_many_counts_by_its_length() {
        // Embeddings of 30 times the weights of each other matrix.
        let embeddings = |survival: f64| {
            let Held { mut estimate, .. } = tensor("token_embd", survival, 1.0, 0.05);
            estimate.moments = estimate.moments.scaled(30.0);
            Held { name: "token_embd", is_matrix: true, estimate }
        };
        let others = vec![tensor("held", 1.0, 1.0, 0.05); 150];
        lost(&[&[embeddings(0.0)][..], &others].concat(), &["token_embd"], true);
        lost(&[&[embeddings(0.85)][..], &others].concat(), &["token_embd"], false);
    }

    #[test]
    fn neither_norms_nor_a_matrix_that_was_replaced_hide_the_rest() {
        let erased = tensor("erased", 0.0, 1.0, 0.01);
        let norm = Held { is_matrix: false, ..tensor("norm", 1.0, 0.0, 10.0) };
        let replaced = tensor("replaced", 1.0, 0.0, 1.4);
        let verdict = |tensors: &[Held<'static>]| LossPolicy::default().judge(tensors.iter().copied());
        let found = verdict(&[&[norm, replaced][..], &[erased; 100]].concat());
        assert!(found.is_rejected && found.missing > 0.9, "{found:?}");
    }

    #[test]
    fn all_tensors_at_the_bound_are_never_rejected_for_what_they_miss() {
        for min_survival in [0.5, 0.8, 0.9, 0.99] {
            let policy = LossPolicy { min_survival, ..LossPolicy::default() };
            let tensors = (0..50).map(|i| tensor("held", min_survival + 1e-9, 1.0, 0.001 * f64::from(i + 1)));
            let verdict = policy.judge(tensors);
            assert!(!verdict.is_rejected && verdict.lost.is_empty(), "{verdict:?}");
            assert!((verdict.missing - (1.0 - min_survival)).abs() < 1e-6, "{verdict:?}");
        }
    }

    #[test]
    fn a_sample_is_believed_beyond_three_of_its_errors() {
        let policy = LossPolicy::default();
        let look = |survival, survival_error| {
            policy.look(&Estimate { survival_error, ..tensor("x", survival, 1.0, 0.05).estimate })
        };
        assert_eq!(look(0.94, 0.01), Look::Enough);
        assert_eq!(look(0.92, 0.01), Look::Unsure);
        assert_eq!(look(0.88, 0.01), Look::Unsure);
        assert_eq!(look(0.86, 0.01), Look::Short);
        assert_eq!(look(0.9, 0.0), Look::Enough);
        assert_eq!(look(0.5, f64::INFINITY), Look::Unsure);
    }
}
