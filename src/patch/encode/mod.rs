//! A matrix of the vector as a product of small whole numbers: a singular value decomposition,
//! quantised and entropy-coded.
//!
//! τ ≈ Σ_k d_k · b_k · a_kᵀ, where d is a number, and a_k and b_k are whole numbers from −127 to
//! 127, one for each input and each output. Training moves a matrix in few directions, so a short
//! sum holds most of τ, and what is left out are its smallest parts rather than parts of every
//! weight.
//!
//! One *step* rules all matrices of a file. Factors are rounded to multiples of it, in units in
//! which an error of a step is equally bad everywhere, so that directions get as many bits as they
//! are long; those that would be shorter than a step are left out. This is reverse water-filling:
//! the least error for the bits (Cover and Thomas, Elements of Information Theory, 2006, section
//! 10.3.3). The entropy coder makes small numbers cheap.
//!
//! Errors are weighed as `quants::feedback` does: by H = c·τᵀτ + ridge, which stands for the inputs
//! that a chat will feed the matrix ([`Metric`]). An importance matrix, if there is one, says which
//! inputs the ridge is for.
//!
//! | step | how |
//! |---|---|
//! | a | the rows σ_k·v_k, rounded with feedback along the row by H |
//! | b | least squares for the rounded a under H, then rounded with feedback from one direction to the next |
//! | bytes | rows of a, and of b, in zstd frames of a few kilobytes |
//!
//! `docs/PATCH.md` has the layout and what it is worth; `tests/peers/frontier.py` is the same in
//! numpy.

mod codes;
mod frames;
mod rate;
mod triangular;

pub use codes::{Codes, Metric, encode};
pub use frames::{Error as FrameError, compress, decompress};
pub use rate::{Expected, bisect, expected, is_spent_on_all};
