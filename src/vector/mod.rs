//! The algebra: what is added to what, and its rows.
//!
//! [`Inputs`] says which models take part and what each is for. [`pair`] finds for every output
//! tensor what is added to it. [`Sum`] adds up weights of one tensor as a [`Combination`] says, in
//! the [`Space`] in which training adds to them, and [`Moments`] are what is measured of that. It
//! reads weights only where it is asked to, decides nothing and writes nothing.
//!
//! From the ground up: [names and terms](Term), [sources of weights](TensorSource), [rows](Rows),
//! [sums](Sum), [pieces of rows](middle), and [pairs](Pair), which put all of them together.

mod ahead;
mod combine;
mod encoder;
mod encoding;
mod error;
mod fold;
mod hadamard;
mod inputs;
mod moments;
mod moved;
mod names;
mod nature;
mod pairing;
mod piece;
mod row_blocks;
mod rows;
mod source;
mod space;
mod stored;
mod sum;
mod tables;
mod term;
mod token_rows;

pub use ahead::RowReader;
pub use combine::{Combination, Mask, Method, Part, Selection, Selector};
pub use encoder::{Encoder, ToEncode};
pub use encoding::{Encoding, Rounding, feedback, feedback_bytes};
pub use error::Error;
pub use fold::{Fold, FoldedTensor, Folding, Turn, fold_key};
pub use inputs::{Inputs, Role, Vector, find_or_tied};
pub use moments::{Moments, Weights};
pub use moved::{is_zero, moved_rows};
pub(crate) use names::row_per_token_name;
pub use names::{FOLD_KEYS, has_row_per_token, is_by_token, part_of};
pub use nature::{Nature, doubts, nature};
pub use pairing::{Kept, Pair, pair};
pub use piece::middle;
pub(crate) use piece::{PIECE_WEIGHTS, Piece, Pieces, Spread, share_out};
pub use row_blocks::{DecodeFn, RowBlocks};
pub use rows::{Absent, Rows};
pub use source::{
    TensorSource, check_finite, decode, decode_unscaled, divide_scale, minimum_rows, multiply_scale, read_row,
};
pub use space::{Coordinates, Space};
pub use stored::{StoredRows, StoredVector, require_space};
pub use sum::{Sum, resize};
pub use tables::{OtherTable, other_table};
pub use term::{Operand, SourceId, TensorRef, Term, operands};
pub use token_rows::{TokenRows, is_readable_row, median_of_rows};
pub(crate) use token_rows::{median, place, read_token_row};
