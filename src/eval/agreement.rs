//! Whether two engines say the same of the same tokens.

use serde::Serialize;

use super::kl::Distribution;
use super::scorer::Scorer;
use crate::ggml::GgmlType;
use crate::infer::{self, Engine, Fed};

/// Rows of one engine that wait for the other's.
const PIECE: usize = 16;

/// How far apart two engines may be that both compute right.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct AgreementBounds {
    /// The largest difference of log-probabilities.
    pub largest: f64,
    /// Their mean difference.
    pub mean: f64,
}

impl AgreementBounds {
    /// Those of a model with weights of these types. Activations are rounded as the weights are, and
    /// what is rounded to another neighbour grows from layer to layer.
    pub fn of(types: impl IntoIterator<Item = GgmlType>) -> Self {
        let bound = |ty| match ty {
            GgmlType::F32 => 1e-4,
            GgmlType::F16 | GgmlType::BF16 => 0.04,
            _ => 0.5,
        };
        let largest = types.into_iter().map(bound).fold(1e-4, f64::max);
        AgreementBounds { largest, mean: largest.min(2e-2) }
    }
}

/// How far two engines are apart in the log-probabilities of the tokens that come next.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Agreement {
    /// Tokens.
    pub n: usize,
    /// The largest difference; infinite where one engine gives what is no number.
    pub largest: f64,
    /// The mean difference.
    pub mean: f64,
    /// Tokens before which the most probable one is another.
    pub n_other_best: usize,
    /// The first of them.
    pub first_other_best: Option<Place>,
    /// What they should be within.
    pub bounds: AgreementBounds,
}

/// A token of one of several texts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Place {
    /// The text, from 0.
    pub text: usize,
    /// The token that comes next, from 0.
    pub token: usize,
}

impl Agreement {
    fn new(bounds: AgreementBounds) -> Self {
        Agreement { n: 0, largest: 0.0, mean: 0.0, n_other_best: 0, first_other_best: None, bounds }
    }

    /// Whether both engines compute the same, as far as rounding lets them.
    pub fn holds(&self) -> bool {
        self.largest <= self.bounds.largest && self.mean <= self.bounds.mean
    }

    fn add(&mut self, logits: [&[f32]; 2], next: u32, place: Place) {
        let [a, b] = logits.map(|logits| Distribution::new(logits).ln_p(next as usize));
        let difference = if (a - b).is_nan() { f64::INFINITY } else { (a - b).abs() };
        self.n += 1;
        self.largest = self.largest.max(difference);
        self.mean += (difference - self.mean) / self.n as f64;
        let [a, b] = logits.map(most_probable);
        if a != b {
            self.n_other_best += 1;
            self.first_other_best.get_or_insert(place);
        }
    }
}

fn most_probable(logits: &[f32]) -> usize {
    let best = |best, i| if logits[i] > logits[best] { i } else { best };
    (0..logits.len()).fold(0, best)
}

/// An engine that reads texts from their beginnings, and maybe another one beside it, which is held
/// against it.
pub struct Reader<'h> {
    first: Box<dyn Engine + 'h>,
    second: Option<Box<dyn Engine + 'h>>,
    agreement: Agreement,
    n_texts: usize,
}

impl<'h> Reader<'h> {
    /// By the first sequence of each engine.
    pub fn new(first: Box<dyn Engine + 'h>, second: Option<Box<dyn Engine + 'h>>, bounds: AgreementBounds) -> Self {
        Reader { first, second, agreement: Agreement::new(bounds), n_texts: 0 }
    }

    /// How far the second engine is from the first by now; none without one.
    pub fn agreement(&self) -> Option<&Agreement> {
        self.second.as_ref().map(|_| &self.agreement)
    }

    /// Reads a text, behind which `next` comes if that is known, and calls `row` for each token from
    /// `first` on with the first engine's logits of what comes after it.
    ///
    /// # Errors
    /// Those of the engines.
    pub fn read(
        &mut self,
        tokens: &[u32],
        next: Option<u32>,
        first: usize,
        row: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), infer::Error> {
        self.first.truncate(0, 0)?;
        let Some(second) = &mut self.second else {
            return self.first.feed(&[Fed { sequence: 0, tokens, first }], &mut |_, i, logits| row(i, logits));
        };
        second.truncate(0, 0)?;
        let (silent, scored) = tokens.split_at(first.min(tokens.len()));
        if !silent.is_empty() {
            let fed = [Fed { sequence: 0, tokens: silent, first: silent.len() }];
            self.first.feed(&fed, &mut |_, _, _| {})?;
            second.feed(&fed, &mut |_, _, _| {})?;
        }
        let text = self.n_texts;
        self.n_texts += 1;
        let mut rows: Vec<Vec<f32>> = Vec::with_capacity(PIECE);
        for (n, piece) in scored.chunks(PIECE).enumerate() {
            let start = silent.len() + n * PIECE;
            let fed = [Fed { sequence: 0, tokens: piece, first: 0 }];
            rows.clear();
            self.first.feed(&fed, &mut |_, i, logits| {
                row(start + i, logits);
                rows.push(logits.to_vec());
            })?;
            let agreement = &mut self.agreement;
            second.feed(&fed, &mut |_, i, logits| {
                let token = start + i + 1;
                if let Some(next) = tokens.get(token).copied().or(next) {
                    agreement.add([&rows[i], logits], next, Place { text, token });
                }
            })?;
        }
        Ok(())
    }
}

impl Scorer for Reader<'_> {
    fn n_vocab(&self) -> usize {
        self.first.n_vocab()
    }

    fn logits(
        &mut self,
        tokens: &[u32],
        first: usize,
        row: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.read(tokens, None, first, row)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After each token the most probable one is the next, by `lead`.
    struct Counting {
        tokens: Vec<u32>,
        lead: f32,
        odd_at: Option<usize>,
    }

    impl Engine for Counting {
        fn n_sequences(&self) -> usize {
            1
        }
        fn room(&self) -> usize {
            100
        }
        fn n_vocab(&self) -> usize {
            64
        }
        fn tokens(&self, _: usize) -> &[u32] {
            &self.tokens
        }
        fn truncate(&mut self, _: usize, n: usize) -> Result<(), infer::Error> {
            self.tokens.truncate(n);
            Ok(())
        }
        fn share(&mut self, _: usize, _: usize, _: usize) -> Result<(), infer::Error> {
            Ok(())
        }
        fn feed(&mut self, fed: &[Fed<'_>], logits: &mut dyn FnMut(usize, usize, &[f32])) -> Result<(), infer::Error> {
            for (i, &token) in fed[0].tokens.iter().enumerate() {
                self.tokens.push(token);
                let is_odd = self.odd_at == Some(self.tokens.len());
                let mut row = [0.0; 64];
                row[(token as usize + if is_odd { 2 } else { 1 }) % 64] = self.lead;
                if i >= fed[0].first {
                    logits(0, i, &row);
                }
            }
            Ok(())
        }
    }

    fn read(second: Counting) -> Agreement {
        let first = Box::new(Counting { tokens: Vec::new(), lead: 1.0, odd_at: None });
        let mut reader = Reader::new(first, Some(Box::new(second)), AgreementBounds::of([GgmlType::F32]));
        let tokens: Vec<u32> = (0..40).collect();
        for _ in 0..2 {
            let mut seen = Vec::new();
            reader.read(&tokens, Some(40), 3, &mut |i, logits| seen.push((i, most_probable(logits)))).unwrap();
            assert_eq!(seen, (3..40).map(|i| (i, i + 1)).collect::<Vec<_>>());
        }
        reader.agreement().expect("two engines").clone()
    }

    #[test]
    fn equal_engines_agree() {
        let found = read(Counting { tokens: Vec::new(), lead: 1.0, odd_at: None });
        assert!(found.holds(), "{found:?}");
        assert_eq!((found.n, found.largest, found.n_other_best), (2 * 37, 0.0, 0));
    }

    #[test]
    fn one_that_is_other_at_one_place_is_found_there() {
        let found = read(Counting { tokens: Vec::new(), lead: 1.0, odd_at: Some(21) });
        assert!(!found.holds());
        assert_eq!((found.n_other_best, found.first_other_best), (2, Some(Place { text: 0, token: 21 })));
        assert!((found.largest - 1.0).abs() < 1e-6 && (found.mean - 1.0 / 37.0).abs() < 1e-6, "{found:?}");
        let found = read(Counting { tokens: Vec::new(), lead: f32::NAN, odd_at: None });
        assert!(!found.holds() && found.largest.is_infinite());
    }

    #[test]
    fn bounds_are_those_of_the_roughest_type() {
        let largest = |types: &[GgmlType]| AgreementBounds::of(types.iter().copied()).largest;
        assert_eq!(largest(&[GgmlType::F32]), 1e-4);
        assert_eq!(largest(&[GgmlType::F32, GgmlType::BF16]), 0.04);
        assert_eq!(largest(&[GgmlType::Q8_0, GgmlType::F16]), 0.5);
    }
}
