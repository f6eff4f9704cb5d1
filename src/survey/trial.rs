//! Trying ways to encode a tensor, where a first look has shown that rounding would take the
//! vector.

use super::bench::Bench;
use super::estimate::{Estimate, Tried};
use super::sample::{SampleSettings, n_operands};
use crate::pool;
use crate::quants::{self, Dither, Feedback};
use crate::vector::{
    Encoder, Encoding, Error, Inputs, Moments, PIECE_WEIGHTS, Pair, Piece, Pieces, Rounding, Space, Spread, Sum,
    check_finite, feedback as feedback_of, feedback_bytes, share_out,
};

/// What became of a tensor's sample in each encoding that was tried, in their order.
#[derive(Clone, PartialEq, Debug)]
pub struct Trial {
    /// The tensor.
    pub name: String,
    /// Each encoding and what it is expected to hold; none after the first that was
    /// [`Look::Enough`].
    pub tried: Vec<(Encoding, Estimate)>,
}

/// What is made of an estimate while its sample grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// It will do: no other encoding is tried.
    Enough,
    /// It will not do: the next encoding is tried.
    Short,
    /// The sample does not say: more of the tensor is looked at, if there is more, and the next
    /// encoding is tried if not.
    Unsure,
}

/// Weights of a tensor that a sample grows to at most while it does not say enough; smaller tensors
/// are looked at whole. It bounds what a tensor may cost to about 20 ms for each encoding.
const MOST_WEIGHTS: u64 = 1 << 19;

/// Tries encodings of tensors on a sample of their rows, one after the other until `look` says that
/// one will do. Encodings that the codec cannot do, or that do not divide the rows, are left out. A
/// sample begins as large as that of [`super::survey`] and doubles while `look` is unsure, to half
/// a million weights.
///
/// # Errors
/// Those of the sources, [`Error::Threads`].
pub fn try_encodings(
    inputs: &Inputs,
    tensors: &[(Pair, Vec<Encoding>)],
    settings: &SampleSettings,
    look: impl Fn(&Estimate) -> Look + Sync,
) -> Result<Vec<Trial>, Error> {
    let n_weights: u64 = tensors.iter().map(|(pair, _)| pair.info(inputs).n_weights()).sum();
    let share = settings.n_weights as f64 / n_weights.max(1) as f64;
    let longest = tensors.iter().map(|(pair, _)| pair.info(inputs).row_len()).max().unwrap_or(0);
    let thread_bytes = feedback_bytes(longest) + PIECE_WEIGHTS * (Sum::BYTES_PER_WEIGHT + 16);
    let n_operands = tensors.iter().map(|(pair, _)| n_operands(pair)).max().unwrap_or(0);
    let (threads, ahead) = share_out(settings.memory, settings.threads, thread_bytes, n_operands);
    let one = |(pair, encodings): &(Pair, Vec<Encoding>)| try_tensor(inputs, pair, encodings, (share, ahead), &look);
    pool::try_map_on(threads, tensors.iter().collect(), one)
}

fn try_tensor(
    inputs: &Inputs,
    pair: &Pair,
    encodings: &[Encoding],
    (share, ahead): (f64, u64),
    look: &(impl Fn(&Estimate) -> Look + Sync),
) -> Result<Trial, Error> {
    let info = pair.info(inputs);
    let row_len = info.row_len();
    let has_importance = |ty| inputs.importance_of(&pair.name, info.ne(), ty).is_some();
    // Codes are chosen by errors of weights, which are not those of logarithms.
    let is_plain = Space::of(&pair.name) == Space::AsStored;
    let is_possible = |e: &&Encoding| {
        quants::is_supported(e.ty)
            && (is_plain || e.rounding == Rounding::Encoder)
            && row_len.is_multiple_of(e.ty.block_len() as u64)
            && (!quants::requires_importance(e.ty) || has_importance(e.ty))
            && match e.rounding {
                Rounding::Encoder => true,
                Rounding::Dithered { .. } => quants::has_grid(e.ty),
                Rounding::UnitGain => quants::has_few_values(e.ty),
            }
    };
    let spread = Spread::new(info, share);
    let most = MOST_WEIGHTS.div_ceil(row_len.clamp(1, PIECE_WEIGHTS)).max(spread.n_sampled).min(spread.n_pieces);
    let mut pieces = Pieces::new(inputs, pair.model, &pair.terms, &pair.combination, &pair.except, row_len, ahead);
    let (mut tau, mut got) = (Vec::new(), Vec::new());
    pieces.select(spread.of(most), (&mut tau, &mut got))?;
    drop(tau);
    let (sum, feedback, bench) = (Sum::default(), None, Bench::new(inputs));
    let mut trying = Trying { inputs, pair, row_len, pieces, feedback, sum, got, bench };
    let mut tried = Vec::new();
    for encoding in encodings.iter().filter(is_possible) {
        let (mut sums, mut n_seen, mut next) = (Tried::default(), 0, spread.n_sampled);
        let mut estimate = Estimate::default();
        let (mut found, mut is_useful, mut n_pieces) = (Look::Unsure, true, 0);
        let mut steps = spread.in_steps().take(most as usize);
        while found == Look::Unsure && is_useful && n_pieces < most {
            // In the order of the file, so that many are read at a time.
            let mut batch: Vec<Piece> = steps.by_ref().take((next - n_pieces) as usize).collect();
            if batch.is_empty() {
                break;
            }
            batch.sort_unstable();
            n_pieces += batch.len() as u64;
            for piece in batch {
                let Some(moments) = trying.encode(piece, *encoding)? else {
                    // It has no number for a weight.
                    is_useful = false;
                    break;
                };
                sums.add(moments);
                n_seen += piece.2;
            }
            estimate = sums.estimate(spread.n_pieces, info.n_weights() as f64 / n_seen.max(1) as f64);
            found = look(&estimate);
            next = (2 * next).min(most);
        }
        if is_useful {
            tried.push((*encoding, estimate));
        }
        if found == Look::Enough {
            break;
        }
    }
    Ok(Trial { name: pair.name.clone(), tried })
}

/// One tensor while encodings of it are tried, with the buffers for that.
struct Trying<'a> {
    inputs: &'a Inputs,
    pair: &'a Pair,
    row_len: u64,
    pieces: Pieces<'a>,
    /// Found when an encoding first asks for it.
    feedback: Option<Feedback>,
    sum: Sum,
    got: Vec<f32>,
    bench: Bench<'a>,
}

impl Trying<'_> {
    /// The sums of a piece in one encoding; none if it has no number for a weight.
    fn encode(&mut self, piece: Piece, encoding: Encoding) -> Result<Option<Moments>, Error> {
        let Trying { inputs, pair, row_len, pieces, feedback, sum, got, bench } = self;
        pieces.compute(sum, piece)?;
        let grid = match encoding.rounding {
            Rounding::Encoder | Rounding::UnitGain => None,
            Rounding::Dithered { amplitude } => {
                if feedback.is_none() {
                    let ne = pair.info(inputs).ne();
                    *feedback = Some(feedback_of(inputs, ne, &pair.terms, &pair.combination)?);
                }
                let dither = Dither { seed: Dither::seed_of(&pair.name), amplitude };
                feedback.as_ref().map(|feedback| (feedback, dither))
            }
        };
        let importance = inputs.importance_of(&pair.name, pair.info(inputs).ne(), encoding.ty);
        let importance = importance.filter(|_| quants::uses_importance(encoding.ty));
        let encoder = Encoder { encoding, row_len: *row_len, importance, grid };
        bench.encode(pair, &encoder, piece, pieces, sum, got)?;
        if check_finite(got).is_some() {
            return Ok(None);
        }
        let mut moments = Moments::default();
        moments.add(&sum.weights(got));
        Ok(Some(moments))
    }
}
