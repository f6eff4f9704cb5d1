//! How far two models are from each other on one text.

use super::kl::Known;
use super::scorer::Scored;
use super::statistics::{Estimate, correlation, percentile};
use super::text::Text;

/// What a model says of each scored token, whatever another one says.
#[derive(Default, Debug)]
pub(super) struct Said {
    /// −ln p of the token that comes
    nll: Vec<f64>,
    /// The most probable token, and whether there is another one as probable.
    top: Vec<(usize, bool)>,
}

impl Said {
    pub(super) fn add(&mut self, scored: &Scored<'_>) {
        self.nll.push(-scored.distribution.ln_p(scored.next));
        self.top.push((scored.distribution.argmax, scored.distribution.is_tied));
    }

    pub(super) fn perplexity(&self) -> Estimate {
        Estimate::mean(&self.nll).expect("a text has something to score").exp()
    }
}

/// Two models on one text. Errors are one standard error, as if the tokens were independent.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Comparison {
    /// Tokens in a chunk.
    pub n_ctx: usize,
    /// Chunks.
    pub n_chunks: usize,
    /// Tokens scored.
    pub n_scored: usize,
    /// Whether the text is one chunk only.
    pub is_short: bool,
    /// e to the mean negative log-likelihood, in A.
    pub perplexity_a: Estimate,
    /// e to the mean negative log-likelihood, in B.
    pub perplexity_b: Estimate,
    /// ln(perplexity of B / perplexity of A). Its error is far smaller than those of the two, which
    /// go up and down together.
    pub ln_ratio: Estimate,
    /// Perplexity of B / perplexity of A.
    pub ratio: Estimate,
    /// Correlation of the two models' negative log-likelihoods. None where one of them is constant.
    pub correlation: Option<f64>,
    /// KL(A‖B).
    pub kl: Divergence,
    /// How often A and B hold the same token for the most probable; of equal ones the first counts.
    pub same_top: Estimate,
    /// Positions where A or B has more than one most probable token, so that which one counts is a
    /// matter of convention.
    pub n_tied_tops: usize,
    /// Mean of p(B) − p(A) of the token that comes.
    pub delta_p: Estimate,
    /// Root mean square of p(B) − p(A) of the token that comes.
    pub delta_p_rms: Estimate,
}

/// KL divergence over the scored positions, in nats.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Divergence {
    /// The mean.
    pub mean: Estimate,
    /// How much of [`Divergence::mean`]'s error comes from what was left out of a
    /// [`Reference`](super::Reference): zero if nothing was.
    pub drawing_error: f64,
    /// The mean is no less than this, whatever was left out.
    pub mean_lower: f64,
    /// The mean is no more than this, whatever was left out.
    pub mean_upper: f64,
    /// Half of the positions are below.
    pub median: f64,
    /// Nine tenths are below.
    pub p90: f64,
    /// 95 % are below.
    pub p95: f64,
    /// 99 % are below.
    pub p99: f64,
    /// 99.9 % are below.
    pub p999: f64,
    /// The largest.
    pub max: f64,
}

impl Comparison {
    /// The comparison by what was said at each position, of which there is at least one.
    pub(super) fn new(text: &Text, a: &Said, b: &Said, kl: &[Known]) -> Self {
        let pairs = || a.nll.iter().zip(&b.nll);
        let mean = |values: &[f64]| Estimate::mean(values).expect("a text has something to score");
        let ln_ratio = mean(&pairs().map(|(a, b)| b - a).collect::<Vec<f64>>());
        let delta_p: Vec<f64> = pairs().map(|(a, b)| (-b).exp() - (-a).exp()).collect();
        let count =
            |f: fn((usize, bool), (usize, bool)) -> bool| a.top.iter().zip(&b.top).filter(|(a, b)| f(**a, **b)).count();
        Comparison {
            n_ctx: text.n_ctx(),
            n_chunks: text.n_chunks(),
            n_scored: kl.len(),
            is_short: text.is_short(),
            perplexity_a: a.perplexity(),
            perplexity_b: b.perplexity(),
            ln_ratio,
            ratio: ln_ratio.exp(),
            correlation: correlation(&a.nll, &b.nll),
            kl: Divergence::new(kl),
            same_top: Estimate::share(count(|a, b| a.0 == b.0), kl.len()).expect("a text has something to score"),
            n_tied_tops: count(|a, b| a.1 || b.1),
            delta_p: mean(&delta_p),
            delta_p_rms: Estimate::root_mean_square(&delta_p).expect("a text has something to score"),
        }
    }
}

impl Divergence {
    fn new(kl: &[Known]) -> Self {
        let all = |f: fn(&Known) -> f64| kl.iter().map(f).collect::<Vec<f64>>();
        let mean = |values: &[f64]| Estimate::mean(values).expect("a text has something to score");
        let mut sorted = all(|k| k.value);
        let mean_value = mean(&sorted);
        sorted.sort_unstable_by(f64::total_cmp);
        let percentile = |fraction| percentile(&sorted, fraction).expect("a text has something to score");
        Divergence {
            mean: mean_value,
            drawing_error: kl.iter().map(|k| k.drawing_error * k.drawing_error).sum::<f64>().sqrt() / kl.len() as f64,
            mean_lower: mean(&all(|k| k.lower)).value,
            mean_upper: mean(&all(|k| k.upper)).value,
            median: percentile(0.5),
            p90: percentile(0.9),
            p95: percentile(0.95),
            p99: percentile(0.99),
            p999: percentile(0.999),
            max: percentile(1.0),
        }
    }
}
