//! How several vectors become one: task arithmetic, linear, TIES and DARE, as mergekit defines
//! them.
//!
//! The definitions are those of mergekit 0.1.5 (`GeneralizedTaskArithmeticMerge`, `linear_merge`,
//! and the functions of `mergekit/sparsify.py`), in f32 and in its order of operations. With *τᵢ*
//! the i-th vector of a tensor and *wᵢ* its ratio:
//!
//! ```text
//! τᵢ ← selected τᵢ · scaleᵢ          ties: the ⌊density·n⌋ largest; dare: each weight with the probability density
//! dᵢ = wᵢ·τᵢ
//! δ  = Σ dᵢ                          ties: of those dᵢ alone that have the sign of Σ dᵢ (zero counts as positive)
//! δ  ← δ / Σ wᵢ                      if normalised; ties: of the wᵢ of those dᵢ; a sum of zero divides by 1
//! δ  ← λ·δ
//! ```
//!
//! scaleᵢ is 1, or with `rescale` Σ|τᵢ| before the selection over Σ|τᵢ| after it. `linear` has no
//! vectors but models xᵢ: Σ wᵢ·xᵢ, over Σ wᵢ if normalised. Its products are not rounded before
//! they are added (`addcmul_` of torch, which fuses the two on every processor that can).
//!
//! What is selected depends on all of a tensor, so that its rows are read more than once:
//! [`Combination::n_passes`] says how often, and a [`Selector`] is shown all weights in their
//! order, pass by pass, in memory that does not grow with the tensor.

use std::sync::Arc;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::quants::Dither;

/// How vectors are added up.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The sum of ratio · vector.
    #[default]
    #[serde(alias = "sum")]
    TaskArithmetic,
    /// A weighted mean of models, without vectors.
    Linear,
    /// The largest weights of each vector, where vectors agree on the sign (arXiv 2306.01708).
    Ties,
    /// Weights drawn by chance from each vector, and the rest made up for (arXiv 2311.03099).
    DareLinear,
    /// Both: drawn by chance, and added where vectors agree on the sign.
    DareTies,
}

/// How weights of a vector are selected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sparsity {
    Largest,
    Random,
}

impl Method {
    /// Every method, in the order of messages.
    pub const ALL: [Method; 5] =
        [Method::TaskArithmetic, Method::Linear, Method::Ties, Method::DareLinear, Method::DareTies];

    /// mergekit's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Method::TaskArithmetic => "task_arithmetic",
            Method::Linear => "linear",
            Method::Ties => "ties",
            Method::DareLinear => "dare_linear",
            Method::DareTies => "dare_ties",
        }
    }

    /// Whether ratios are divided by their sum unless something else is asked for.
    pub fn normalizes(self) -> bool {
        matches!(self, Method::Linear | Method::Ties)
    }

    /// Whether what is selected is scaled up to the sum of magnitudes of all, unless something else
    /// is asked for.
    pub fn rescales(self) -> bool {
        matches!(self, Method::DareLinear | Method::DareTies)
    }

    /// Whether a density means anything.
    pub fn is_sparse(self) -> bool {
        self.sparsity().is_some()
    }

    /// The least density, beside 0, with which a weight can be selected at all. Chances are whole
    /// numbers of 2⁻³²; of the largest weights one is selected always.
    pub fn least_density(self) -> f64 {
        match self.sparsity() {
            Some(Sparsity::Random) => 1.0 / DRAWS,
            Some(Sparsity::Largest) | None => 0.0,
        }
    }

    fn sparsity(self) -> Option<Sparsity> {
        match self {
            Method::TaskArithmetic | Method::Linear => None,
            Method::Ties => Some(Sparsity::Largest),
            Method::DareLinear | Method::DareTies => Some(Sparsity::Random),
        }
    }

    fn elects_sign(self) -> bool {
        matches!(self, Method::Ties | Method::DareTies)
    }
}

/// What is selected of one vector in one tensor.
#[derive(Clone, PartialEq, Debug)]
pub struct Part {
    /// The share of weights that is selected; from 1 on, all of them, and nothing is scaled.
    pub density: f64,
    /// Who decides where weights are drawn by chance.
    pub mask: Mask,
}

/// How the terms of one tensor are combined.
#[derive(Clone, PartialEq, Debug)]
pub struct Combination {
    /// The method.
    pub method: Method,
    /// One for each term; may be empty for methods that select nothing.
    pub parts: Vec<Part>,
    /// Whether the sum is divided by the sum of ratios.
    pub normalize: bool,
    /// Whether what is selected is scaled up.
    pub rescale: bool,
    /// What the sum is multiplied by.
    pub lambda: f32,
}

impl Default for Combination {
    /// The plain sum.
    fn default() -> Self {
        Combination { method: Method::TaskArithmetic, parts: Vec::new(), normalize: false, rescale: false, lambda: 1.0 }
    }
}

impl Combination {
    /// Whether it is nothing but Σ ratio · vector.
    pub fn is_plain(&self) -> bool {
        self.method == Method::TaskArithmetic && !self.normalize && self.lambda == 1.0
    }

    /// How often the rows of the vectors are read at most, the writing pass included.
    pub fn n_passes(&self) -> u32 {
        let is_partial = |part: &Part| part.density > 0.0 && part.density < 1.0;
        1 + match self.method.sparsity() {
            Some(Sparsity::Largest) if self.parts.iter().any(is_partial) => 3,
            Some(Sparsity::Random) if self.rescale && self.parts.iter().any(is_partial) => 1,
            _ => 0,
        }
    }

    /// What selects the weights of a term in a tensor of so many of them.
    pub fn selector(&self, term: usize, n_weights: u64) -> Selector {
        let done = |chosen| Selector::new(Stage::Done, chosen, self.rescale);
        let (Some(sparsity), Some(part)) = (self.method.sparsity(), self.parts.get(term)) else {
            return done(Chosen::All);
        };
        match sparsity {
            _ if part.density >= 1.0 => done(Chosen::All),
            _ if part.density <= 0.0 => done(Chosen::Nothing),
            Sparsity::Random => {
                let stage = if self.rescale { Stage::Drawn } else { Stage::Done };
                let threshold = (part.density * DRAWS) as u64;
                Selector::new(stage, Chosen::Drawn { mask: part.mask.clone(), threshold }, self.rescale)
            }
            Sparsity::Largest => {
                let left = ((part.density * n_weights as f64) as u64).max(1);
                let mut selector = Selector::new(Stage::High, Chosen::All, self.rescale);
                (selector.left, selector.counts) = (left, vec![0; 1 << HIGH_BITS]);
                selector
            }
        }
    }

    /// Adds up. `taus` has `delta.len()` weights for each of the `ratios`, selected already, and is
    /// used up; `sums` is scratch for twice as many as `delta`.
    pub(crate) fn add_up(&self, ratios: &[f32], taus: &mut [f32], sums: &mut [f32], delta: &mut [f32]) {
        let n = delta.len();
        for (tau, ratio) in taus.chunks_exact_mut(n.max(1)).zip(ratios) {
            tau.iter_mut().for_each(|t| *t *= ratio);
        }
        delta.fill(0.0);
        for tau in taus.chunks_exact(n.max(1)) {
            delta.iter_mut().zip(tau).for_each(|(d, t)| *d += t);
        }
        if self.method.elects_sign() {
            let (sum, divisor) = sums.split_at_mut(n);
            sum.fill(0.0);
            divisor.fill(0.0);
            for (tau, ratio) in taus.chunks_exact(n.max(1)).zip(ratios) {
                for (((s, v), t), d) in sum.iter_mut().zip(&mut *divisor).zip(tau).zip(&*delta) {
                    let agrees = if *d >= 0.0 { *t > 0.0 } else { *t < 0.0 };
                    *s += if agrees { *t } else { 0.0 };
                    *v += if agrees { *ratio } else { 0.0 };
                }
            }
            delta.copy_from_slice(sum);
            if self.normalize {
                delta.iter_mut().zip(divisor).for_each(|(d, v)| *d /= if *v == 0.0 { 1.0 } else { *v });
            }
        } else if self.normalize {
            let divisor: f32 = ratios.iter().sum();
            let divisor = if divisor.abs() < LEAST_DIVISOR { 1.0 } else { divisor };
            delta.iter_mut().for_each(|d| *d /= divisor);
        }
        if self.lambda != 1.0 {
            delta.iter_mut().for_each(|d| *d *= self.lambda);
        }
    }

    /// The mean of models: `mean` gets Σ ratio · model, over the sum of ratios if normalised.
    pub(crate) fn average(&self, ratios: &[f32], models: &[f32], mean: &mut [f32]) {
        mean.fill(0.0);
        for (model, ratio) in models.chunks_exact(mean.len().max(1)).zip(ratios) {
            mean.iter_mut().zip(model).for_each(|(m, x)| *m = x.mul_add(*ratio, *m));
        }
        if self.normalize {
            let divisor: f32 = ratios.iter().sum();
            mean.iter_mut().for_each(|m| *m /= divisor);
        }
    }
}

/// What a draw is one of: 2³².
const DRAWS: f64 = (1u64 << 32) as f64;

/// Below this, a sum of ratios divides by 1.
const LEAST_DIVISOR: f32 = 1e-8;

/// Below this, sums of magnitudes scale nothing.
const LEAST_SUM: f32 = 1e-7;

/// Who decides which weights are drawn.
#[derive(Clone, PartialEq, Debug)]
pub enum Mask {
    /// A generator that is a function of the weight's index: word *i* of the ChaCha8 stream of this
    /// key, drawn if it is less than density · 2³².
    Key([u8; 32]),
    /// A list, one byte a weight: drawn if it is not 0. What lies beyond its end is not drawn.
    List(Arc<[u8]>),
}

impl Mask {
    /// The mask of a seed for one tensor of one vector. The key is four little-endian words: the
    /// seed, FNV-1a of the tensor's name, the vector's number, and `chatvec1` in ASCII.
    pub fn seeded(seed: u64, tensor: &str, vector: usize) -> Self {
        let words = [seed, Dither::seed_of(tensor), vector as u64, u64::from_le_bytes(*b"chatvec1")];
        let mut key = [0; 32];
        key.as_chunks_mut::<8>().0.iter_mut().zip(words).for_each(|(bytes, word)| *bytes = word.to_le_bytes());
        Mask::Key(key)
    }

    /// Calls `drop` with every position that is not drawn, of those of `tau` whose first has the
    /// index `first`.
    fn drop_others(&self, threshold: u64, first: u64, tau: &mut [f32]) {
        match self {
            Mask::Key(key) => {
                let mut words = ChaCha8Rng::from_seed(*key);
                words.set_word_pos(first.into());
                for t in tau {
                    if u64::from(words.next_u32()) >= threshold {
                        *t = 0.0;
                    }
                }
            }
            Mask::List(list) => {
                let start = usize::try_from(first).map_or(list.len(), |first| first.min(list.len()));
                let drawn = list[start..].iter().copied().chain(std::iter::repeat(0));
                tau.iter_mut().zip(drawn).filter(|(_, drawn)| *drawn == 0).for_each(|(t, _)| *t = 0.0);
            }
        }
    }
}

#[derive(Clone, PartialEq, Debug)]
enum Chosen {
    All,
    Nothing,
    /// Magnitudes above that of these bits, and those equal to it whose index is below `before`.
    Largest {
        least: u32,
        before: u64,
    },
    Drawn {
        mask: Mask,
        threshold: u64,
    },
}

/// Which weights of a vector in one tensor take part, and what they are multiplied by.
#[derive(Clone, PartialEq, Debug)]
pub struct Selection {
    chosen: Chosen,
    scale: f32,
}

impl Selection {
    /// Makes the others zero. `first` is the index in the tensor of `tau[0]`.
    pub fn apply(&self, first: u64, tau: &mut [f32]) {
        match &self.chosen {
            Chosen::All => return,
            Chosen::Nothing => return tau.fill(0.0),
            Chosen::Largest { least, before } => {
                for (i, t) in tau.iter_mut().enumerate() {
                    let magnitude = magnitude(*t);
                    let is_chosen = magnitude > *least || (magnitude == *least && first + (i as u64) < *before);
                    *t = if is_chosen { *t } else { 0.0 };
                }
            }
            Chosen::Drawn { mask, threshold } => mask.drop_others(*threshold, first, tau),
        }
        if self.scale != 1.0 {
            tau.iter_mut().for_each(|t| *t *= self.scale);
        }
    }
}

/// |t| as an integer that is larger where the magnitude is.
fn magnitude(t: f32) -> u32 {
    t.to_bits() & 0x7fff_ffff
}

/// Magnitudes have 31 bits. The upper ones are counted first, the lower ones of the bucket in
/// question next.
const HIGH_BITS: u32 = 16;
const LOW_BITS: u32 = 31 - HIGH_BITS;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Counting magnitudes by their upper bits.
    High,
    /// Counting those of one bucket by their lower bits.
    Low {
        bucket: u32,
    },
    /// Looking for the last one to be kept of those that equal the least.
    Equal {
        least: u32,
    },
    /// Adding up what a mask leaves.
    Drawn,
    Done,
}

/// Finds a [`Selection`]: [`see`](Selector::see) takes all weights of the vector in their order,
/// then [`end_pass`](Selector::end_pass), until it [is done](Selector::is_done).
///
/// The largest are found by counting bits of magnitudes, exactly and in half a megabyte. Of equal
/// ones those of lower index are kept, as by a stable sort.
#[derive(Debug)]
pub struct Selector {
    stage: Stage,
    chosen: Chosen,
    rescale: bool,
    /// How many are still to be found.
    left: u64,
    counts: Vec<u64>,
    /// Σ|τ|, and that of what is selected.
    sum: f64,
    selected: f64,
}

impl Selector {
    /// Bytes that one takes besides the weights it is shown.
    pub const N_BYTES: u64 = 8 << HIGH_BITS;

    fn new(stage: Stage, chosen: Chosen, rescale: bool) -> Self {
        Selector { stage, chosen, rescale, left: 0, counts: Vec::new(), sum: 0.0, selected: 0.0 }
    }

    /// Whether nothing more has to be seen.
    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Takes the next weights of a pass; `first` is the index in the tensor of `tau[0]`. They are
    /// used up.
    pub fn see(&mut self, first: u64, tau: &mut [f32]) {
        let size = |t: f32| f64::from(t.abs());
        match self.stage {
            Stage::Done => {}
            Stage::High => {
                for t in tau {
                    self.counts[(magnitude(*t) >> LOW_BITS) as usize] += 1;
                    self.sum += size(*t);
                }
            }
            Stage::Low { bucket } => {
                for t in tau {
                    let (high, low) = (magnitude(*t) >> LOW_BITS, magnitude(*t) & ((1 << LOW_BITS) - 1));
                    if high == bucket {
                        self.counts[low as usize] += 1;
                    } else if high > bucket {
                        self.selected += size(*t);
                    }
                }
            }
            Stage::Equal { least } => {
                for (i, _) in tau.iter().enumerate().filter(|(_, t)| magnitude(**t) == least) {
                    self.left -= 1;
                    if self.left == 0 {
                        self.finish(Chosen::Largest { least, before: first + i as u64 + 1 });
                        return;
                    }
                }
            }
            Stage::Drawn => {
                self.sum += tau.iter().map(|t| size(*t)).sum::<f64>();
                if let Chosen::Drawn { mask, threshold } = &self.chosen {
                    mask.drop_others(*threshold, first, tau);
                }
                self.selected += tau.iter().map(|t| size(*t)).sum::<f64>();
            }
        }
    }

    /// Says that all weights were seen.
    pub fn end_pass(&mut self) {
        match self.stage {
            Stage::Done => {}
            Stage::High => {
                let bucket = self.take_from_above();
                self.counts.clear();
                self.counts.resize(1 << LOW_BITS, 0);
                self.stage = Stage::Low { bucket };
            }
            Stage::Low { bucket } => {
                let value = |low: u32| f64::from(f32::from_bits(bucket << LOW_BITS | low));
                let low = self.take_from_above();
                let above = (low + 1..1 << LOW_BITS).map(|low| self.counts[low as usize] as f64 * value(low));
                self.selected += above.sum::<f64>() + self.left as f64 * value(low);
                let least = bucket << LOW_BITS | low;
                // Zeros are as good as dropped.
                if self.left >= self.counts[low as usize] || least == 0 {
                    self.finish(Chosen::Largest { least, before: u64::MAX });
                } else {
                    self.stage = Stage::Equal { least };
                }
            }
            // Fewer than were counted: other weights than before, and then any answer will do.
            Stage::Equal { least } => self.finish(Chosen::Largest { least, before: u64::MAX }),
            Stage::Drawn => self.stage = Stage::Done,
        }
    }

    /// What was found; all weights, if it is not done.
    pub fn selection(self) -> Selection {
        let (sum, selected) = (self.sum as f32, self.selected as f32);
        let is_scaled = self.rescale && sum >= LEAST_SUM && selected >= LEAST_SUM;
        Selection { chosen: self.chosen, scale: if is_scaled { sum / selected } else { 1.0 } }
    }

    fn finish(&mut self, chosen: Chosen) {
        (self.stage, self.chosen, self.counts) = (Stage::Done, chosen, Vec::new());
    }

    /// The bucket that holds the last of those to be found; `left` is how many of it they are.
    fn take_from_above(&mut self) -> u32 {
        for (bucket, count) in self.counts.iter().enumerate().rev() {
            if *count >= self.left {
                return bucket as u32;
            }
            self.left -= count;
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(combination: &Combination, tau: &[f32], cut: usize) -> Vec<f32> {
        let mut selector = combination.selector(0, tau.len() as u64);
        let mut n_passes = 1;
        while !selector.is_done() {
            for (i, part) in tau.chunks(cut).enumerate() {
                selector.see((i * cut) as u64, &mut part.to_vec());
            }
            selector.end_pass();
            n_passes += 1;
        }
        assert!(n_passes <= combination.n_passes());
        let selection = selector.selection();
        let mut selected = tau.to_vec();
        for (i, part) in selected.chunks_mut(cut).enumerate() {
            selection.apply((i * cut) as u64, part);
        }
        selected
    }

    fn part(density: f64) -> Vec<Part> {
        vec![Part { density, mask: Mask::seeded(1, "x", 0) }]
    }

    #[test]
    fn the_largest_are_those_of_a_stable_sort() {
        // Few distinct values, so that many are equal to the least.
        let tau: Vec<f32> = (0..1000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as f32 / 64.0 - 2.0).collect();
        for density in [0.001, 0.2, 0.5, 0.77, 0.999] {
            let mut order: Vec<usize> = (0..tau.len()).collect();
            order.sort_by(|a, b| tau[*b].abs().total_cmp(&tau[*a].abs()));
            let mut expected = vec![0.0; tau.len()];
            order[..((density * 1000.0) as usize).max(1)].iter().for_each(|&i| expected[i] = tau[i]);
            let combination = Combination { method: Method::Ties, parts: part(density), ..Combination::default() };
            for cut in [1, 7, 1000] {
                assert_eq!(select(&combination, &tau, cut), expected, "{density} in parts of {cut}");
            }
            let rescaled = select(&Combination { rescale: true, ..combination }, &tau, 64);
            let sum = |tau: &[f32]| tau.iter().map(|t| f64::from(t.abs())).sum::<f64>();
            assert!((sum(&rescaled) / sum(&tau) - 1.0).abs() < 1e-6, "{density}");
        }
    }

    #[test]
    fn chance_depends_on_the_index_alone() {
        let tau = vec![1.0f32; 5000];
        let combination = Combination { method: Method::DareTies, parts: part(0.3), ..Combination::default() };
        let whole = select(&combination, &tau, 5000);
        assert_eq!(select(&combination, &tau, 13), whole);
        let kept = whole.iter().filter(|t| **t != 0.0).count();
        assert!((1400..1600).contains(&kept), "{kept}");
        let other =
            Combination { parts: vec![Part { density: 0.3, mask: Mask::seeded(1, "x", 1) }], ..combination.clone() };
        assert_ne!(select(&other, &tau, 5000), whole);
        let rescaled = select(&Combination { rescale: true, ..combination }, &tau, 13);
        assert_eq!(rescaled.iter().sum::<f32>().round(), 5000.0);
    }

    #[test]
    fn signs_are_elected_by_the_sum_and_a_tie_is_positive() {
        let combination = Combination { method: Method::Ties, normalize: true, ..Combination::default() };
        let mut delta = [0.0; 4];
        //           agreed, overruled, a tie, nothing
        let mut taus = [1.0, 1.0, 1.0, 0.0, 3.0, -3.0, -1.0, 0.0];
        combination.add_up(&[1.0, 1.0], &mut taus, &mut [0.0; 8], &mut delta);
        assert_eq!(delta, [2.0, -3.0, 1.0, 0.0]);
    }

    #[test]
    fn ratios_that_cancel_divide_by_one() {
        let combination = Combination { normalize: true, lambda: 2.0, ..Combination::default() };
        let mut delta = [0.0];
        combination.add_up(&[1.0, -1.0], &mut [3.0, 1.0], &mut [0.0; 2], &mut delta);
        assert_eq!(delta, [4.0]);
    }
}
