//! Trying ways to encode a tensor, where a first look has shown that rounding would take the vector.

use super::combine::Combination;
use super::moments::Moments;
use super::pairing::{Inputs, Pair, Term};
use super::piece::{PIECE_WEIGHTS, Pieces, Spread, middle, share_out};
use super::sample::{SampleSettings, n_operands};
use super::source::{Error, divide_scale, multiply_scale};
use super::sum::{Sum, resize};
use crate::ggml::GgmlType;
use crate::pool;
use crate::quants::{self, Dither, Feedback, Gram, Place};

/// How weights become codes.
#[derive(Clone, Copy, PartialEq, Default, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// As ggml's encoder does it.
    #[default]
    Encoder,
    /// Codes are chosen anew on a grid ([`quants::round_to_grid`]): the model's own where the type stays, else the one that
    /// the encoder has found.
    Dithered {
        /// Of [`Dither`].
        amplitude: f32,
    },
    /// Scales so that each block holds as much of the weights as there is ([`quants::quantize_to_unit_gain`]).
    UnitGain,
}

/// A type, and how its codes are found.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Encoding {
    /// The type.
    pub ty: GgmlType,
    /// How its codes are found.
    pub rounding: Rounding,
}

/// What became of a tensor's sample in each encoding that was tried, in their order; sums are estimates for all of it.
#[derive(Clone, PartialEq, Debug)]
pub struct Trial {
    /// The tensor.
    pub name: String,
    /// Each encoding and its sums.
    pub tried: Vec<(Encoding, Moments)>,
    /// Whether all of the tensor was looked at.
    pub is_whole: bool,
}

/// Rows that H is summed over at most ([`Feedback`]); twice as many as a group has weights. The bundled trio's tensors have
/// 128 to 768 rows; a quarter of them gave the same KL divergence.
const GRAM_ROWS: u64 = 512;

/// Bytes that rows are read ahead with while H is summed.
const AHEAD: u64 = 128 << 10;

/// The feedback for what `terms` add to a tensor of this shape, from evenly spaced rows. It allocates
/// [`feedback_bytes`].
///
/// # Errors
/// Those of the sources.
pub fn feedback(inputs: &Inputs, ne: &[u64], terms: &[Term], combination: &Combination) -> Result<Feedback, Error> {
    let row_len = ne.first().copied().unwrap_or(1);
    let n_rows: u64 = ne.iter().skip(1).product();
    let n_sampled = n_rows.min(GRAM_ROWS);
    let mut gram = Gram::new(row_len as usize);
    let (mut sum, mut pieces) = (Sum::default(), Pieces::new(inputs, None, terms, combination, &[], row_len, AHEAD));
    for i in 0..n_sampled {
        pieces.compute(&mut sum, (middle(i, n_sampled, n_rows), 0, row_len))?;
        gram.add_row(sum.delta());
    }
    Ok(gram.feedback())
}

/// Bytes that [`feedback`] takes for rows of this length, and what it gives back.
pub fn feedback_bytes(row_len: u64) -> u64 {
    let rows = row_len.saturating_mul(Sum::BYTES_PER_WEIGHT + 4);
    Feedback::bytes_to_make(row_len).saturating_add(rows).saturating_add(AHEAD)
}

/// Tries encodings of tensors on a sample of their rows, as [`super::survey`] takes it. Encodings that the codec cannot do, or
/// that do not divide the rows, are left out.
///
/// # Errors
/// Those of the sources, [`Error::Threads`].
pub fn try_encodings(
    inputs: &Inputs,
    tensors: &[(Pair, Vec<Encoding>)],
    settings: &SampleSettings,
) -> Result<Vec<Trial>, Error> {
    let n_weights: u64 = tensors.iter().map(|(pair, _)| pair.info(inputs).n_weights()).sum();
    let share = settings.n_weights as f64 / n_weights.max(1) as f64;
    let longest = tensors.iter().map(|(pair, _)| pair.info(inputs).row_len()).max().unwrap_or(0);
    let thread_bytes = feedback_bytes(longest) + PIECE_WEIGHTS * (Sum::BYTES_PER_WEIGHT + 16);
    let n_operands = tensors.iter().map(|(pair, _)| n_operands(pair)).max().unwrap_or(0);
    let (threads, ahead) = share_out(settings.memory, settings.threads, thread_bytes, n_operands);
    let one = |(pair, encodings): &(Pair, Vec<Encoding>)| try_tensor(inputs, pair, encodings, (share, ahead));
    pool::try_map_on(threads, tensors.iter().collect(), one)
}

fn try_tensor(
    inputs: &Inputs,
    pair: &Pair,
    encodings: &[Encoding],
    (share, ahead): (f64, u64),
) -> Result<Trial, Error> {
    let info = pair.info(inputs);
    let row_len = info.row_len();
    let importance = inputs.importance_of(&pair.name, info.ne());
    let is_possible = |e: &&Encoding| {
        quants::is_supported(e.ty)
            && row_len.is_multiple_of(e.ty.block_len() as u64)
            && (importance.is_some() || !quants::requires_importance(e.ty))
            && match e.rounding {
                Rounding::Encoder => true,
                Rounding::Dithered { .. } => quants::has_grid(e.ty),
                Rounding::UnitGain => quants::has_few_values(e.ty),
            }
    };
    let mut tried: Vec<(Encoding, Moments)> =
        encodings.iter().filter(is_possible).map(|e| (*e, Moments::default())).collect();
    let is_dithered = tried.iter().any(|(e, _)| matches!(e.rounding, Rounding::Dithered { .. }));
    let feedback = is_dithered.then(|| feedback(inputs, info.ne(), &pair.terms, &pair.combination)).transpose()?;

    let spread = Spread::new(info, share);
    let (mut sum, mut blocks) = (Sum::default(), Vec::new());
    let (mut stored, mut got) = (Vec::new(), Vec::new());
    let mut pieces = Pieces::new(inputs, pair.model, &pair.terms, &pair.combination, &pair.except, row_len, ahead);
    pieces.select(spread, (&mut stored, &mut got))?;
    let model = pair.model.map(|at| (inputs.source(at.source), at.tensor, pair.model_type(inputs)));
    for (row, start, len) in spread.pieces() {
        let first = row * row_len + start;
        pieces.compute(&mut sum, (row, start, len))?;
        resize(&mut stored, len as usize);
        resize(&mut got, len as usize);
        stored.copy_from_slice(sum.wanted());
        if let Some((source, id, _)) = model {
            divide_scale(source, id, first, &mut stored)?;
        }
        let importance = importance.map(|all| &all.of_row(row)[start as usize..][..len as usize]);
        for (encoding, moments) in &mut tried {
            let ty = encoding.ty;
            let size = |n: u64| ty.size_of(n).expect("only types that divide the row are tried");
            blocks.resize(size(len) as usize, 0);
            match model {
                Some((_, _, Some(own))) if own == ty && encoding.rounding != Rounding::Encoder => {
                    blocks.copy_from_slice(pieces.blocks_of_model((row, start, len))?);
                }
                _ if encoding.rounding == Rounding::UnitGain => {
                    quants::quantize_to_unit_gain(ty, &stored, &mut blocks).expect("checked above");
                }
                _ => quants::quantize_rows(ty, &stored, importance, &mut blocks).expect("checked above"),
            }
            if let (Rounding::Dithered { amplitude }, Some(feedback)) = (encoding.rounding, &feedback) {
                let dither = Dither { seed: Dither::seed_of(&pair.name), amplitude };
                let place = Place { row_len: row_len as usize, first_weight: first };
                let rounded = quants::round_to_grid(ty, &mut blocks, &stored, sum.delta(), place, feedback, dither);
                rounded.expect("checked above");
            }
            quants::dequantize_row(ty, &blocks, &mut got).expect("checked above");
            if let Some((source, id, _)) = model {
                multiply_scale(source, id, first, &mut got)?;
            }
            moments.add(&sum.weights(&got));
        }
    }
    let n_seen = spread.n_weights();
    let factor = if n_seen > 0 { info.n_weights() as f64 / n_seen as f64 } else { 1.0 };
    tried.iter_mut().for_each(|(_, moments)| *moments = moments.scaled(factor));
    Ok(Trial { name: pair.name.clone(), tried, is_whole: spread.n_sampled == spread.n_pieces })
}
