//! Choosing codes anew on the grid that blocks already have.
//!
//! A block says which values its weights may have: its scales and minimums are a *grid*, its codes
//! pick from it. An encoder looks for both. Here the grid stays and only codes change, which is
//! what weights need that lie on a grid and are moved by less than half a step: rounding to the
//! nearest value puts each of them back where it was, on any grid that an encoder finds again.
//!
//! [`round_to_grid`] takes the weights of a row in their order and passes the error of each on to
//! those that come after it, as [`Feedback`] says, with a [`Dither`] if a weight's own fraction of
//! a step is to count too.
//!
//! Types whose blocks have no value for each weight by itself, but points on a lattice for several
//! (IQ1, IQ2, IQ3), and those of two or three values have no grid in this sense: [`has_grid`].

use super::feedback::Feedback;
use super::operands::IQ4_VALUES;
use super::planes::{self, Codes};
use super::{Error, QK_K, check_lengths, dequantize_row, field, field_mut, legacy, q6_k};
use crate::ggml::GgmlType;

/// Bytes of the largest block with a grid (Q6_K), rounded up.
const LARGEST_BLOCK: usize = 256;

/// How codes lie in a block, and what they stand for.
struct CodeLayout {
    /// Reads the rank of each weight's value among the values of its grid.
    read: fn(&[u8], &mut Codes),
    /// Writes codes by their rank; everything else in the block stays.
    write: fn(&Codes, &mut [u8]),
    values: GridValues,
}

/// The values of a grid in ascending order, in units of their own.
#[derive(Clone, Copy)]
enum GridValues {
    /// 0, 1, 2 … up to one less than this.
    Even(u16),
    /// The values of a list.
    Listed(&'static [f32]),
}

/// E2M1 without the second zero, in halves (`kvalues_fp4`).
const FP4: [f32; 15] = [-12.0, -8.0, -6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];

impl GridValues {
    fn count(self) -> usize {
        match self {
            GridValues::Even(n) => usize::from(n),
            GridValues::Listed(values) => values.len(),
        }
    }

    fn at(self, rank: usize) -> f32 {
        match self {
            GridValues::Even(_) => rank as f32,
            GridValues::Listed(values) => values[rank],
        }
    }

    /// The rank of the value below `x`, of the last but one at most, and how far `x` is from it
    /// towards the next.
    fn place(self, x: f32) -> (usize, f32) {
        let last = self.count() - 2;
        match self {
            GridValues::Even(_) => {
                let below = x.floor().clamp(0.0, last as f32);
                (below as usize, x - below)
            }
            GridValues::Listed(values) => {
                let below = values.partition_point(|v| *v <= x).saturating_sub(1).min(last);
                (below, (x - values[below]) / (values[below + 1] - values[below]))
            }
        }
    }
}

#[expect(clippy::too_many_lines, reason = "a table: one arm a type")]
fn layout(ty: GgmlType) -> Option<CodeLayout> {
    use GgmlType::*;
    use GridValues::*;
    fn read_nibbles(qs: &[u8], codes: &mut Codes) {
        codes[..32].copy_from_slice(&legacy::unpack_nibbles(field(qs, 0)));
    }
    fn write_nibbles(codes: &Codes, qs: &mut [u8]) {
        legacy::pack_nibbles(field(codes, 0), field_mut(qs, 0));
    }
    fn read_5_bits(qh: &[u8], codes: &mut Codes) {
        codes[..32].copy_from_slice(&legacy::unpack_5_bits(field(qh, 0), field(qh, 4)));
    }
    fn write_5_bits(codes: &Codes, qh: &mut [u8]) {
        legacy::pack_fifth_bits(field(codes, 0), field_mut(qh, 0));
        legacy::pack_nibbles(field(codes, 0), field_mut(qh, 4));
    }
    /// Ranks of 4-bit floats: code 0 to 7 are 7 to 14, and 8 to 15 count down from 7.
    fn rank_of_fp4(code: u8) -> u8 {
        if code < 8 { 7 + code } else { 15 - code }
    }
    fn fp4_of_rank(rank: u8) -> u8 {
        if rank < 7 { 15 - rank } else { rank - 7 }
    }
    fn made(read: fn(&[u8], &mut Codes), write: fn(&Codes, &mut [u8]), values: GridValues) -> CodeLayout {
        CodeLayout { read, write, values }
    }
    Some(match ty {
        Q4_0 => made(|b, c| read_nibbles(&b[2..], c), |c, b| write_nibbles(c, &mut b[2..]), Even(16)),
        Q4_1 => made(|b, c| read_nibbles(&b[4..], c), |c, b| write_nibbles(c, &mut b[4..]), Even(16)),
        Q5_0 => made(|b, c| read_5_bits(&b[2..], c), |c, b| write_5_bits(c, &mut b[2..]), Even(32)),
        Q5_1 => made(|b, c| read_5_bits(&b[4..], c), |c, b| write_5_bits(c, &mut b[4..]), Even(32)),
        Q8_0 => made(
            |b, c| c.iter_mut().zip(&b[2..]).for_each(|(rank, q)| *rank = q ^ 0x80),
            |c, b| b[2..].iter_mut().zip(c).for_each(|(q, rank)| *q = rank ^ 0x80),
            Even(256),
        ),
        Q2_K => made(
            |b, c| planes::unpack_pairs(field(b, 16), 0, c),
            |c, b| planes::pack_pairs(c, 0, field_mut(b, 16)),
            Even(4),
        ),
        Q3_K => made(
            |b, c| {
                planes::unpack_pairs(field(b, 32), 0, c);
                planes::unpack_bits(field(b, 0), 2, c);
            },
            |c, b| {
                planes::pack_bits(c, 2, field_mut(b, 0));
                planes::pack_pairs(c, 0, field_mut(b, 32));
            },
            Even(8),
        ),
        Q4_K => made(
            |b, c| planes::unpack_nibbles(field(b, 16), c),
            |c, b| planes::pack_nibbles(c, field_mut(b, 16)),
            Even(16),
        ),
        Q5_K => made(
            |b, c| {
                planes::unpack_nibbles(field(b, 48), c);
                planes::unpack_bits(field(b, 16), 4, c);
            },
            |c, b| {
                planes::pack_bits(c, 4, field_mut(b, 16));
                planes::pack_nibbles(c, field_mut(b, 48));
            },
            Even(32),
        ),
        Q6_K => made(
            |b, c| {
                *c = q6_k::unpack_ql(field(b, 0));
                planes::unpack_pairs(field(b, 128), 4, c);
            },
            |c, b| {
                q6_k::pack_ql(c, field_mut(b, 0));
                planes::pack_pairs(c, 4, field_mut(b, 128));
            },
            Even(64),
        ),
        IQ4_NL => made(|b, c| read_nibbles(&b[2..], c), |c, b| write_nibbles(c, &mut b[2..]), Listed(&IQ4_VALUES)),
        IQ4_XS => made(
            |b, c| {
                for (qs, codes) in b[8..].as_chunks::<16>().0.iter().zip(c.as_chunks_mut::<32>().0) {
                    *codes = legacy::unpack_nibbles(qs);
                }
            },
            |c, b| {
                for (qs, codes) in b[8..].as_chunks_mut::<16>().0.iter_mut().zip(c.as_chunks::<32>().0) {
                    legacy::pack_nibbles(codes, qs);
                }
            },
            Listed(&IQ4_VALUES),
        ),
        MXFP4 => made(
            |b, c| {
                read_nibbles(&b[1..], c);
                c[..32].iter_mut().for_each(|q| *q = rank_of_fp4(*q));
            },
            |c, b| write_nibbles(&c.map(fp4_of_rank), &mut b[1..]),
            Listed(&FP4),
        ),
        NVFP4 => made(
            |b, c| {
                for (qs, codes) in b[4..].as_chunks::<8>().0.iter().zip(c.as_chunks_mut::<16>().0) {
                    for (j, q) in qs.iter().enumerate() {
                        (codes[j], codes[j + 8]) = (rank_of_fp4(q & 0xf), rank_of_fp4(q >> 4));
                    }
                }
            },
            |c, b| {
                for (qs, codes) in b[4..].as_chunks_mut::<8>().0.iter_mut().zip(c.as_chunks::<16>().0) {
                    for (j, q) in qs.iter_mut().enumerate() {
                        *q = fp4_of_rank(codes[j]) | fp4_of_rank(codes[j + 8]) << 4;
                    }
                }
            },
            Listed(&FP4),
        ),
        _ => return None,
    })
}

/// Whether blocks of this type have a value of its own for each code of each weight, so that
/// [`round_to_grid`] can choose among them.
pub fn has_grid(ty: GgmlType) -> bool {
    layout(ty).is_some()
}

/// Random numbers by position, so that they do not depend on who asks for them, in which order.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Dither {
    /// Which numbers; a tensor has its own.
    pub seed: u64,
    /// From 0, where every weight is rounded to the nearest value, to 1, where it is rounded up
    /// with the probability of its fraction of a step.
    pub amplitude: f32,
}

impl Dither {
    /// A seed for a tensor, by its name (FNV-1a).
    pub fn seed_of(name: &str) -> u64 {
        name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    /// What is added to the fraction of a step of the `index`-th weight before it is cut off: 0.5,
    /// and up to half the amplitude more or less. The mixing is that of SplitMix64.
    fn at(&self, index: u64) -> f32 {
        let mut x = self.seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        let uniform = (x >> 40) as f32 / (1 << 24) as f32;
        0.5 + self.amplitude * (uniform - 0.5)
    }
}

/// Where weights lie in their tensor.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// Weights in a row.
    pub row_len: usize,
    /// The number of the first weight in the tensor: at the beginning of a row, or a multiple of
    /// [`Feedback::GROUP`] after it.
    pub first_weight: u64,
}

/// Chooses the codes of blocks anew, so that they come near the `wanted` weights; scales and
/// minimums stay.
///
/// In the order of the row, each weight is moved by what `feedback` says of the errors before it
/// and rounded as `dither` says. A block with nothing to add, whose `delta` is ±0 throughout, stays
/// as it is, and no error is passed on to it.
///
/// Every operation is f32 in a fixed order; what comes out depends on the arguments alone, and for
/// a row on no other row.
///
/// # Errors
/// [`Error::Unsupported`] for types without a grid, and lengths that do not fit.
///
/// # Panics
/// If `delta` is not as long as `wanted`, or `feedback` is for rows of another length.
pub fn round_to_grid(
    ty: GgmlType,
    blocks: &mut [u8],
    wanted: &[f32],
    delta: &[f32],
    place: Placement,
    feedback: &Feedback,
    dither: Dither,
) -> Result<(), Error> {
    let Some(layout) = layout(ty) else { return Err(Error::Unsupported { ty }) };
    check_lengths(ty, wanted.len(), blocks.len())?;
    assert_eq!((wanted.len(), feedback.row_len()), (delta.len(), place.row_len), "one row length");
    let (len, size) = (ty.block_len(), ty.block_size());
    let mut start = 0;
    while start < wanted.len() {
        let column = ((place.first_weight + start as u64) % place.row_len as u64) as usize;
        let group = (Feedback::GROUP - column % Feedback::GROUP).min(place.row_len - column);
        let part = start..(start + group).min(wanted.len());
        let mut strip = FeedbackGroup {
            layout: &layout,
            ty,
            first: place.first_weight + start as u64,
            feedback: feedback.group(column / Feedback::GROUP),
            dither,
            moved: [0.0; Feedback::GROUP],
        };
        strip.moved[..part.len()].copy_from_slice(&wanted[part.clone()]);
        let blocks = blocks[part.start / len * size..part.end / len * size].chunks_exact_mut(size);
        for ((i, block), delta) in blocks.enumerate().zip(delta[part.clone()].chunks_exact(len)) {
            if delta.iter().any(|d| *d != 0.0) {
                strip.round(block, i * len, &wanted[part.clone()]);
            }
        }
        start = part.end;
    }
    Ok(())
}

/// The weights of a row whose errors are passed on among them.
struct FeedbackGroup<'a> {
    layout: &'a CodeLayout,
    ty: GgmlType,
    /// Position of the first in the tensor.
    first: u64,
    feedback: super::feedback::UpperTriangle<'a>,
    dither: Dither,
    /// The weights wanted, with what the errors so far move them by.
    moved: [f32; Feedback::GROUP],
}

impl FeedbackGroup<'_> {
    /// Rounds the weights of one block, of which the first is the `start`-th of the strip.
    fn round(&mut self, block: &mut [u8], start: usize, wanted: &[f32]) {
        let len = self.ty.block_len();
        let values = self.layout.values;
        let n = values.count();
        let first = self.decoded(block, 0);
        let last = self.decoded(block, (n - 1) as u8);
        let width = values.at(n - 1) - values.at(0);

        let mut codes: Codes = [0; QK_K];
        (self.layout.read)(block, &mut codes);
        for j in 0..len {
            let unit = (last[j] - first[j]) / width;
            let i = start + j;
            // Where all codes mean the same, or nothing, there is no choice.
            let steps = (self.moved[i] - first[j]) / unit;
            let mut value = first[j];
            if steps.is_finite() {
                let (below, fraction) = values.place(steps + values.at(0));
                let rank = below + usize::from(fraction + self.dither.at(self.first + i as u64) >= 1.0);
                codes[j] = rank as u8;
                value = first[j] + (values.at(rank) - values.at(0)) * unit;
            }
            let error = wanted[i] - value;
            if error.is_finite() {
                self.feedback.pass_on(i, error, &mut self.moved);
            }
        }
        (self.layout.write)(&codes, block);
    }

    /// What the block's weights would be if all had the value of this rank.
    fn decoded(&self, block: &[u8], rank: u8) -> [f32; QK_K] {
        let mut copy = [0; LARGEST_BLOCK];
        let copy = &mut copy[..block.len()];
        copy.copy_from_slice(block);
        (self.layout.write)(&[rank; QK_K], copy);
        let mut weights = [0.0; QK_K];
        dequantize_row(self.ty, copy, &mut weights[..self.ty.block_len()]).expect("one whole block");
        weights
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Gram, quantize_row, supported};
    use super::*;

    fn with_grid() -> impl Iterator<Item = GgmlType> {
        supported().filter(|ty| has_grid(*ty))
    }

    /// Numbers that look random, about normal.
    fn numbers(seed: u64, n: usize) -> Vec<f32> {
        let dither = Dither { seed, amplitude: 1.0 };
        (0..n as u64).map(|i| (0..4).map(|k| dither.at(i * 4 + k) - 0.5).sum::<f32>() * 0.05).collect()
    }

    fn encoded(ty: GgmlType, weights: &[f32]) -> Vec<u8> {
        let mut blocks = vec![0; ty.size_of(weights.len() as u64).unwrap() as usize];
        quantize_row(ty, weights, &mut blocks).unwrap();
        blocks
    }

    fn decoded(ty: GgmlType, blocks: &[u8]) -> Vec<f32> {
        let mut weights = vec![0.0; blocks.len() / ty.block_size() * ty.block_len()];
        dequantize_row(ty, blocks, &mut weights).unwrap();
        weights
    }

    const NEAREST: Dither = Dither { seed: 0, amplitude: 0.0 };

    fn rounded(ty: GgmlType, blocks: &[u8], wanted: &[f32], feedback: &Feedback, dither: Dither) -> Vec<u8> {
        let mut out = blocks.to_vec();
        let place = Placement { row_len: feedback.row_len(), first_weight: 0 };
        round_to_grid(ty, &mut out, wanted, &vec![1.0; wanted.len()], place, feedback, dither).unwrap();
        out
    }

    #[test]
    fn weights_on_the_grid_stay() {
        for ty in with_grid() {
            let blocks = encoded(ty, &numbers(1, 512));
            let weights = decoded(ty, &blocks);
            let out = rounded(ty, &blocks, &weights, &Feedback::none(512), NEAREST);
            assert_eq!(decoded(ty, &out), weights, "{ty}");
            if !matches!(ty, GgmlType::MXFP4 | GgmlType::NVFP4) {
                assert_eq!(out, blocks, "{ty}: there are no two codes for zero");
            }
        }
    }

    /// The least distance from each weight to any value that a decoder can make of its block.
    #[test]
    fn without_feedback_each_weight_gets_the_nearest_of_all_codes() {
        for ty in with_grid() {
            let (len, size) = (ty.block_len(), ty.block_size());
            let blocks = encoded(ty, &numbers(2, 512));
            let wanted: Vec<f32> = numbers(3, 512).iter().map(|w| w * 1.3).collect();
            let found = decoded(ty, &rounded(ty, &blocks, &wanted, &Feedback::none(512), NEAREST));
            let layout = layout(ty).unwrap();
            let mut best = vec![f32::INFINITY; 512];
            for rank in 0..layout.values.count() {
                let mut all = blocks.clone();
                all.chunks_mut(size).for_each(|block| (layout.write)(&[rank as u8; QK_K], block));
                let values = decoded(ty, &all);
                best.iter_mut().zip(&wanted).zip(values).for_each(|((b, w), v)| *b = b.min((w - v).abs()));
            }
            assert_eq!(best.len() % len, 0);
            for ((found, wanted), best) in found.iter().zip(&wanted).zip(best) {
                let distance = (found - wanted).abs();
                assert!(distance <= best + 1e-5 * wanted.abs().max(0.01), "{ty}: {wanted} became {found}: {best}");
            }
        }
    }

    #[test]
    fn everything_but_codes_stays() {
        for ty in with_grid() {
            let blocks = encoded(ty, &numbers(4, 256));
            let mut out = rounded(ty, &blocks, &numbers(5, 256), &Feedback::none(256), NEAREST);
            let mut same = blocks.clone();
            let layout = layout(ty).unwrap();
            for bytes in [&mut out, &mut same] {
                bytes.chunks_mut(ty.block_size()).for_each(|block| (layout.write)(&[1; QK_K], block));
            }
            assert_eq!(out, same, "{ty}");
        }
    }

    #[test]
    fn full_dither_is_right_on_average() {
        let ty = GgmlType::Q4_K;
        let blocks = encoded(ty, &numbers(6, 256));
        let wanted: Vec<f32> = decoded(ty, &blocks).iter().zip(numbers(7, 256)).map(|(w, d)| w + d * 0.05).collect();
        let mut mean = vec![0.0; 256];
        for seed in 0..400 {
            let dither = Dither { seed, amplitude: 1.0 };
            let found = decoded(ty, &rounded(ty, &blocks, &wanted, &Feedback::none(256), dither));
            mean.iter_mut().zip(found).for_each(|(m, f)| *m += f / 400.0);
        }
        // A step is about 0.02; weights at the end of their range cannot go beyond it.
        let n_far = mean.iter().zip(&wanted).filter(|(m, w)| (*m - *w).abs() > 0.002).count();
        assert!(n_far < 30, "{n_far}");
    }

    #[test]
    fn feedback_makes_outputs_for_the_inputs_it_knows_less_wrong() {
        // Rows of a vector that are mixtures of eight.
        let n = 512;
        let sources: Vec<Vec<f32>> = (0..8).map(|i| numbers(20 + i, n)).collect();
        let mix = |seed| -> Vec<f32> {
            let shares = numbers(seed, 8);
            (0..n).map(|j| sources.iter().zip(&shares).map(|(s, a)| s[j] * a * 8.0).sum()).collect()
        };
        let mut gram = Gram::new(n);
        (0..64).for_each(|i| gram.add_row(&mix(100 + i)));
        for ty in with_grid() {
            let error = |feedback: &Feedback| -> f32 {
                let mut sum = 0.0;
                for row in 0..16 {
                    let blocks = encoded(ty, &numbers(300 + row, n));
                    let wanted: Vec<f32> =
                        decoded(ty, &blocks).iter().zip(mix(100 + row)).map(|(w, d)| w + d).collect();
                    let found = decoded(ty, &rounded(ty, &blocks, &wanted, feedback, NEAREST));
                    let errors: Vec<f32> = found.iter().zip(&wanted).map(|(f, w)| f - w).collect();
                    let outputs = sources.iter().map(|s| s.iter().zip(&errors).map(|(s, e)| s * e).sum::<f32>());
                    sum += outputs.map(|o| o * o).sum::<f32>();
                }
                sum
            };
            let (with, without) = (error(&gram.feedback()), error(&Feedback::none(n)));
            assert!(with < 0.3 * without, "{ty}: {with} with, {without} without");
        }
    }

    #[test]
    fn pieces_of_a_row_and_rows_by_themselves_give_the_same_bytes() {
        let (ty, n) = (GgmlType::Q4_0, 576);
        let wanted = numbers(9, 3 * n);
        let blocks = encoded(ty, &numbers(8, 3 * n));
        let mut gram = Gram::new(n);
        wanted.chunks(n).for_each(|row| gram.add_row(row));
        let (feedback, dither) = (gram.feedback(), Dither { seed: 3, amplitude: 0.7 });
        let whole = rounded(ty, &blocks, &wanted, &feedback, dither);
        let mut out = blocks.clone();
        for (row, start, end) in [(2, 256, 576), (0, 0, 512), (1, 0, 256), (1, 256, 512), (2, 0, 256), (1, 512, 576)] {
            let part = row * n + start..row * n + end;
            let bytes = part.start / 32 * 18..part.end / 32 * 18;
            let place = Placement { row_len: n, first_weight: part.start as u64 };
            let (wanted, delta) = (&wanted[part.clone()], vec![1.0; part.len()]);
            round_to_grid(ty, &mut out[bytes], wanted, &delta, place, &feedback, dither).unwrap();
        }
        let part = 512..576;
        let place = Placement { row_len: n, first_weight: 512 };
        let bytes = &mut out[512 / 32 * 18..576 / 32 * 18];
        round_to_grid(ty, bytes, &wanted[part], &[1.0; 64], place, &feedback, dither).unwrap();
        assert!(out == whole);
    }

    #[test]
    fn blocks_without_a_delta_stay_and_any_bytes_are_rounded_without_panic() {
        for ty in with_grid() {
            for byte in [0, 0x3c, 0x7f, 0x80, 0xff] {
                let blocks = vec![byte; 512 / ty.block_len() * ty.block_size()];
                for wanted in [0.0, 1e30, f32::NAN, f32::NEG_INFINITY] {
                    rounded(ty, &blocks, &[wanted; 512], &Feedback::none(256), Dither { seed: 1, amplitude: 1.0 });
                }
                let mut out = blocks.clone();
                let place = Placement { row_len: 512, first_weight: 0 };
                let feedback = Feedback::none(512);
                round_to_grid(ty, &mut out, &[1.0; 512], &[-0.0; 512], place, &feedback, NEAREST).unwrap();
                assert_eq!(out, blocks, "{ty}");
            }
        }
        let place = Placement { row_len: 256, first_weight: 0 };
        for ty in supported().filter(|ty| !has_grid(*ty)) {
            let mut blocks = vec![0; ty.size_of(256).unwrap() as usize];
            let found = round_to_grid(ty, &mut blocks, &[0.0; 256], &[1.0; 256], place, &Feedback::none(256), NEAREST);
            assert_eq!(found, Err(Error::Unsupported { ty }));
        }
    }
}
