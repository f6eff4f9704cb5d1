//! The chat-vector patch file: a vector on its own, to be applied to any sibling of the base.
//!
//! A patch is a GGUF file with `general.type = "chat-vector"`. Its tensors have the names and
//! shapes of the model's and hold τ = chat − base in any type the codec can read. It carries what
//! an apply needs and the chat model would have provided: hyperparameters, the vocabulary as text,
//! the chat plumbing. [`mod@format`] has its keys and names, `docs/PATCH.md` says what they mean.
//!
//! [`open()`] gives a [`Patch`], which [`Inputs::add_patch`](crate::vector::Inputs::add_patch)
//! takes: applying a patch is an ordinary merge. [`plan_extract`] plans the patch of base and chat,
//! and [`write_unnamed`] or [`extract`] writes it. [`verify()`] holds a file against its hashes.
//! [`lora`] makes adapters.

// From the ground up: a file uses only those above it.
pub mod format;
mod error;
pub mod seal;
mod tokens;
pub mod encode;
mod product;
mod decomposed;
mod stored;
mod source;
mod open;
mod verify;
mod summary;
mod write;
mod provenance;
mod token_rows;
mod planning;
pub mod low_rank;
mod rows;
mod spill;
pub mod extract;
pub mod lora;

pub use error::Error;
pub use format::{TYPE, VERSION, is_patch, whole_name};
pub use open::{open, open_checked, open_stored, open_whole};
pub use planning::{Extraction, f16_bytes, plan_extract};
pub use seal::Checked;
pub use source::{Patch, require_patch_space};
pub use summary::{TensorSummary, bits_per_weight, bytes_beside, summary};
pub use verify::{Origin, Verification, verify};
pub use write::write_unnamed;
