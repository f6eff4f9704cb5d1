//! Looking at weights before deciding.
//!
//! [`Inputs`] says which models take part and what each is for, [`pair`] finds for every output
//! tensor what is added to it, and [`survey`] reads a sample of rows and measures: how large the
//! vector is against the model, how much of it will survive each type, and what looks wrong. It
//! writes nothing and decides nothing; [`crate::plan`] does.

mod ahead;
mod combine;
mod estimate;
mod findings;
mod fold;
mod moments;
mod pairing;
mod piece;
mod roles;
mod rounding;
mod sample;
mod source;
mod space;
mod special;
mod sum;
mod trial;

pub use ahead::RowReader;
pub use combine::{Combination, Mask, Method, Part, Selection, Selector};
pub use estimate::Estimate;
pub use findings::Finding;
pub use fold::{FOLD_KEYS, Fold, FoldedTensor, Folding, fold_key, require_one_fold};
pub use moments::{Moments, Weights};
pub use pairing::{
    Inputs, Kept, Operand, Pair, Role, Rows, SourceId, TensorRef, Term, Vector, find_or_tied, has_row_per_token,
    is_by_token, operands, pair, part_of,
};
pub use piece::middle;
pub use sample::{SampleSettings, Survey, TensorSurvey, TypeForecast, survey};
pub use source::{
    Error, TensorSource, check_finite, decode, decode_unscaled, divide_scale, minimum_rows, multiply_scale, read_row,
};
pub use space::{Coordinates, LOGARITHMS, Space, require_space};
pub use special::{
    BASE_ROWS, BASE_TOKENS, MOVED_ROWS, PATCH_TENSORS, SPECIAL_ROWS, SPECIAL_TOKENS, SpecialToken, SpecialTokens,
    TokenRows, is_readable_row, is_zero, median_of_rows, moved_rows, special_tokens, token_list, whole_name,
};
pub use sum::{Sum, resize};
pub use trial::{Encoding, Look, Rounding, Trial, feedback, feedback_bytes, try_encodings};
