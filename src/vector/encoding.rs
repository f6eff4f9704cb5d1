//! How the weights of a tensor become blocks.

use super::combine::Combination;
use super::error::Error;
use super::inputs::Inputs;
use super::piece::{Pieces, middle};
use super::sum::Sum;
use super::term::Term;
use crate::ggml::GgmlType;
use crate::quants::{Feedback, Gram};

/// How weights become codes.
#[derive(Clone, Copy, PartialEq, Default, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// ggml's encoder finds scales and codes.
    #[default]
    Encoder,
    /// Codes are chosen anew on a grid ([`round_to_grid`](crate::quants::round_to_grid)): the model's own where the type
    /// stays, else the one that the encoder has found.
    Dithered {
        /// The amplitude of the [`Dither`](crate::quants::Dither).
        amplitude: f32,
    },
    /// Scales so that each block holds as much of the weights as there is
    /// ([`quantize_to_unit_gain`](crate::quants::quantize_to_unit_gain)).
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

/// Rows that H is summed over at most ([`Feedback`]); twice as many as a group has weights. The
/// bundled trio's tensors have 128 to 768 rows; a quarter of them gave the same KL divergence.
const GRAM_ROWS: u64 = 512;

/// Bytes that rows are read ahead with while H is summed.
const AHEAD: u64 = 128 << 10;

/// The feedback for what `terms` add to a tensor of this shape, from evenly spaced rows. It
/// allocates [`feedback_bytes`].
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
