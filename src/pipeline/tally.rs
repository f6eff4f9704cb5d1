//! Adding up sums that arrive out of order, in order.

use std::collections::BTreeMap;

use crate::vector::Moments;

/// The sums of one tensor. Those of its segments are added strictly one after the other, whoever
/// computed them and when, because sums of floating-point numbers depend on their order. While one
/// worker is slow with a chunk, the sums of the chunks behind it wait: 48 bytes for every 65,536
/// weights.
#[derive(Default)]
pub(super) struct Tally {
    total: Moments,
    next: u64,
    waiting: BTreeMap<u64, Vec<Moments>>,
}

impl Tally {
    /// Takes the sums of consecutive segments, of which the first is `first`.
    pub(super) fn add(&mut self, first: u64, sums: Vec<Moments>) {
        if sums.is_empty() {
            return;
        }
        self.waiting.insert(first, sums);
        while let Some(sums) = self.waiting.remove(&self.next) {
            self.next += sums.len() as u64;
            sums.into_iter().for_each(|m| self.total += m);
        }
    }

    pub(super) fn total(self) -> Moments {
        debug_assert!(self.waiting.is_empty(), "segments are missing");
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_arrival_does_not_matter() {
        let sums: Vec<Moments> =
            (0..100).map(|i| Moments { delta2: 1.0 / f64::from(i + 1), ..Moments::default() }).collect();
        let mut forwards = Tally::default();
        let mut backwards = Tally::default();
        forwards.add(0, sums.clone());
        for (i, part) in sums.chunks(7).enumerate().collect::<Vec<_>>().into_iter().rev() {
            backwards.add(i as u64 * 7, part.to_vec());
        }
        assert_eq!(forwards.total().delta2.to_bits(), backwards.total().delta2.to_bits());
    }
}
