//! Making a patch whose matrices are quantised decompositions ([`crate::patch::encode`]), of a size
//! that is asked for.
//!
//! ```text
//! for each matrix:   singular vectors, from passes over rows of base and chat;
//!                    kept in a temporary file
//! for the file:      the least step with which it is no larger than asked for: first by
//!                    entropies that follow from singular values, then by encoding all of it;
//!                    the best attempt is kept in another
//! the header, whose sizes are now known
//! for each matrix:   write that, measure it against τ in one more pass
//! ```
//!
//! Tensors with a row for each token, stacks of experts and vectors are not decomposed: they are
//! written as the plan says, after [`Target::allot`] has given them a type.

// From the ground up: a file uses only those above it.
mod error;
mod target;
mod kinds;
mod allot;
mod matrix;
mod header;
mod parts;
mod forecast;
mod extractor;
mod decompose;
mod layout;
mod trial;
mod stored;
mod write;

pub use error::Error;
pub use forecast::{Forecast, forecast};
pub use target::Target;
pub use write::write_unnamed;
