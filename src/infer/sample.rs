//! Choosing the next token.

use rand::distr::{Distribution, weighted::WeightedIndex};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::Error;

/// How the next token is chosen. The defaults of the sampled kind are llama.cpp's
/// (common/common.h).
#[derive(Clone, PartialEq, Debug)]
pub enum Sampling {
    /// The most probable token; of several the first.
    Greedy,
    /// A token drawn by chance among the most probable.
    Random {
        /// Logits are divided by this, above 0.
        temperature: f32,
        /// Tokens that are considered at most; 0 for all.
        top_k: usize,
        /// The least share of probability that the tokens considered have together.
        top_p: f32,
        /// Tokens are dropped whose probability is below this share of the largest.
        min_p: f32,
        /// The seed of chance: an equal seed gives equal tokens.
        seed: u64,
    },
}

/// Chooses tokens one after the other.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at its beginning.
    ///
    /// # Errors
    /// [`Error::Setting`] for a temperature that is not above 0, and shares that are not from 0 to
    /// 1.
    pub fn new(sampling: Sampling) -> Result<Self, Error> {
        let mut seed = 0;
        if let Sampling::Random { temperature, top_p, min_p, seed: s, .. } = sampling {
            let fault = |what, expected, found: f32| Error::Setting { what, expected, found: found.to_string() };
            if !(temperature.is_finite() && temperature > 0.0) {
                return Err(fault("the temperature", "a number above 0", temperature));
            }
            for (what, share) in [("top-p", top_p), ("min-p", min_p)] {
                if !(0.0..=1.0).contains(&share) {
                    return Err(fault(what, "a share from 0 to 1", share));
                }
            }
            seed = s;
        }
        Ok(Sampler { sampling, rng: ChaCha8Rng::seed_from_u64(seed) })
    }

    /// The same, with a chance of its own: as many of them as one likes are independent of each other.
    pub fn of_stream(mut self, stream: u64) -> Self {
        self.rng.set_stream(stream);
        self
    }

    /// The next token, an index into `logits`; 0 if there are none.
    pub fn choose(&mut self, logits: &[f32]) -> u32 {
        let Sampling::Random { temperature, top_k, top_p, min_p, .. } = self.sampling else {
            return most_probable(logits);
        };
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if top_k > 0 && top_k < order.len() {
            order.select_nth_unstable_by(top_k - 1, by_logit);
            order.truncate(top_k);
        }
        order.sort_unstable_by(by_logit);
        // llama.cpp's order of samplers: top-k, top-p, min-p, temperature.
        let mut shares = shares(logits, &order, 1.0);
        let mut sum = 0.0;
        let enough = shares.iter().position(|share| {
            sum += share;
            sum >= f64::from(top_p)
        });
        let n_top_p = enough.map_or(order.len(), |i| i + 1);
        let largest = shares.first().copied().unwrap_or(0.0);
        let n_min_p = shares.iter().take_while(|share| **share >= f64::from(min_p) * largest).count();
        order.truncate(n_top_p.min(n_min_p).max(1));
        shares = self::shares(logits, &order, temperature);
        match WeightedIndex::new(&shares) {
            Ok(weights) => order[weights.sample(&mut self.rng)],
            // Logits that are no numbers.
            Err(_) => most_probable(logits),
        }
    }
}

/// The first of the largest logits, as `llama_sampler_greedy_apply`.
fn most_probable(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// Probabilities of some tokens among themselves; the first is the most probable.
fn shares(logits: &[f32], tokens: &[u32], temperature: f32) -> Vec<f64> {
    let logit = |token: u32| f64::from(logits[token as usize]) / f64::from(temperature);
    let largest = tokens.first().map_or(0.0, |&t| logit(t));
    let weights: Vec<f64> = tokens.iter().map(|&t| (logit(t) - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(top_k: usize, top_p: f32, min_p: f32, seed: u64) -> Sampler {
        Sampler::new(Sampling::Random { temperature: 1.0, top_k, top_p, min_p, seed }).expect("sensible settings")
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut greedy = Sampler::new(Sampling::Greedy).expect("no settings");
        assert_eq!(greedy.choose(&[0.0, 3.0, -1.0, 3.0]), 1);
        assert_eq!(greedy.choose(&[f32::NAN, f32::NAN]), 0);
    }

    #[test]
    fn each_limit_cuts_off_the_improbable() {
        // Probabilities 0.5, 0.3, 0.15, 0.05.
        let logits = [0.5f32, 0.3, 0.15, 0.05].map(f32::ln);
        let seen = |mut sampler: Sampler| {
            let mut counts = [0; 4];
            (0..4000).for_each(|_| counts[sampler.choose(&logits) as usize] += 1);
            counts
        };
        let all = seen(random(0, 1.0, 0.0, 7));
        assert!(
            all.iter().zip([2000, 1200, 600, 200]).all(|(n, expected): (&i32, i32)| n.abs_diff(expected) < 150),
            "{all:?}"
        );
        assert_eq!(seen(random(2, 1.0, 0.0, 7))[2..], [0, 0]);
        assert_eq!(seen(random(0, 0.7, 0.0, 7))[2..], [0, 0], "0.5 + 0.3 is enough");
        assert_eq!(seen(random(0, 1.0, 0.2, 7))[3], 0, "0.05 is below a fifth of 0.5");
        assert_eq!(seen(random(0, 1.0, 0.0, 7)), all, "the same seed");
        assert_ne!(seen(random(0, 1.0, 0.0, 8)), all, "another seed");
    }

    #[test]
    fn senseless_settings_are_refused() {
        for (temperature, top_p, min_p) in [(0.0, 1.0, 0.0), (f32::NAN, 1.0, 0.0), (1.0, 1.5, 0.0), (1.0, 1.0, -0.1)] {
            let sampling = Sampling::Random { temperature, top_k: 0, top_p, min_p, seed: 0 };
            assert!(Sampler::new(sampling).is_err());
        }
    }
}
