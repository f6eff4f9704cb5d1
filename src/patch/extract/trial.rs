//! Looking for the step with which a patch is as large as asked for.

use super::decompose::Found;
use super::error::Error;
use super::extractor::Extractor;
use super::parts::Parts;
use super::target::Target;
use crate::patch::encode;
use crate::patch::spill::Spill;

/// All matrices as they are encoded with one step.
pub(super) struct Trial {
    /// The rank of each matrix, and bytes of both of its factors.
    pub(super) sizes: Vec<[u64; 3]>,
    /// Scales and factors, one matrix behind the other.
    pub(super) bytes: Spill,
}

/// The share of the room that is near enough to all of it.
const NEAR: f64 = 0.98;

/// The most encodings of everything on the way to the size.
const TRIALS: usize = 9;

/// Bytes of zstd frames for each byte that entropies expect, before a trial tells.
const OVERHEAD: f64 = 1.2;

impl Extractor<'_> {
    /// Encodes a matrix and writes the bytes of its three tensors behind those of other matrices.
    /// Gives its rank and the bytes of both factors, and zeros if nothing is left of it.
    fn encode(&self, found: &Found<'_>, step: f64, spill: &mut Spill, encoded: &mut Spill) -> Result<[u64; 3], Error> {
        self.check_cancelled()?;
        let low = self.unspill(found, spill)?;
        let codes = encode::encode(&low, found.matrix.shape(), &found.metric, step);
        if codes.rank() == 0 {
            return Ok([0; 3]);
        }
        let (row_len, n_rows) = found.matrix.shape();
        let scales: Vec<u8> = codes.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        let parts = encode::compress(&codes.a, row_len).and_then(|a| {
            let b = encode::compress(&codes.b, n_rows)?;
            [&scales, &a, &b].into_iter().try_for_each(|part| encoded.push_bytes(part))?;
            Ok([a.len() as u64, b.len() as u64])
        });
        let [a, b] = parts.map_err(|e| self.spill_error(e))?;
        Ok([codes.rank() as u64, a, b])
    }

    /// Encodes all matrices with a step.
    fn attempt(&self, found: &[Found<'_>], step: f64, spill: &mut Spill) -> Result<Trial, Error> {
        let mut bytes = Spill::beside(self.path).map_err(|e| self.spill_error(e))?;
        let sizes = found.iter().map(|found| self.encode(found, step, spill, &mut bytes)).collect::<Result<_, _>>()?;
        Ok(Trial { sizes, bytes })
    }

    /// Bytes that count against the target.
    fn size(&self, found: &[Found<'_>], sizes: &[[u64; 3]]) -> Result<u64, Error> {
        match self.parts.target {
            Target::Bytes(_) => Ok(self.header(found, sizes)?.file_len()),
            Target::Bits(_) | Target::Rank(_) => {
                Ok(self.parts.least + sizes.iter().map(|[rank, a, b]| rank * 4 + a + b).sum::<u64>())
            }
        }
    }

    /// Encodes all matrices with the step whose patch is as large as asked for and no larger.
    pub(super) fn search(&self, found: &[Found<'_>], spill: &mut Spill) -> Result<Trial, Error> {
        let &Parts { limit, least, .. } = &self.parts;
        let room = limit.saturating_sub(least) as f64;
        let bits = |step, f: &Found<'_>| encode::expected(&f.low, f.matrix.shape(), &f.metric, step).bits;
        let expected = |step: f64| found.iter().map(|f| bits(step, f)).sum::<f64>() / 8.0;
        let mut best = None;
        let (mut too_large, mut small_enough) = (None, None);
        // Bytes of the file for those expected, by the last trial.
        let mut overhead = OVERHEAD;
        for _ in 0..TRIALS {
            let guess = encode::bisect(|step| expected(step) * overhead, room * (1.0 + NEAR) / 2.0);
            // What was too large and what was not are on both sides of it.
            let step = match (too_large, small_enough) {
                (Some(low), Some(high)) if guess <= low || guess >= high => f64::sqrt(low * high),
                (Some(low), None) if guess <= low => low * 2.0,
                (None, Some(high)) if guess >= high => high / 2.0,
                _ => guess,
            };
            let trial = self.attempt(found, step, spill)?;
            let size = self.size(found, &trial.sizes)?;
            if size <= limit && best.as_ref().is_none_or(|(_, largest)| size > *largest) {
                best = Some((trial, size));
            }
            let is_near = |size: u64| (size - least) as f64 >= NEAR * room;
            if best.as_ref().is_some_and(|(_, size)| is_near(*size)) || (size == least && expected(step) == 0.0) {
                break;
            }
            match size > limit {
                true => too_large = Some(too_large.map_or(step, |low: f64| low.max(step))),
                false => small_enough = Some(small_enough.map_or(step, |high: f64| high.min(step))),
            }
            let of_step = expected(step);
            overhead = if of_step > 0.0 && size > least { (size - least) as f64 / of_step } else { overhead };
        }
        match best {
            Some((trial, _)) => Ok(trial),
            None => self.attempt(found, f64::INFINITY, spill),
        }
    }
}
