//! The container: bytes ↔ ordered metadata and tensor infos.
//!
//! A GGUF file is a header (magic, version, counts, key–value pairs, tensor infos) followed by the
//! tensors' data:
//!
//! | field | bytes | |
//! |---|---|---|
//! | magic | 4 | `GGUF` |
//! | version | u32 | 2 and 3 are read; they differ in nothing but this number |
//! | tensor count, key count | u64 each | |
//! | key–value pairs | | name (u64 length, bytes), value type u32, value |
//! | tensor infos | | name, dimension count u32, `ne` u64 each (row length first), type id u32, offset u64 |
//! | padding | | to `general.alignment`, 32 unless the key says otherwise |
//! | data | | tensor by tensor in the order of the infos, each padded to the alignment |
//!
//! The reader insists on what llama.cpp insists on to open a file and find its tensors
//! (ggml/src/gguf.cpp and src/llama-model-loader.cpp); each refusal carries its [`Check`]. It never
//! touches tensor data while it reads a header, and it never interprets weights: that is
//! [`crate::quants`].
//!
//! - [`Header`], [`Metadata`], [`Value`], [`TensorInfo`]: the header, kept typed, ordered and
//!   byte-exact.
//! - [`File`]: one open file, its data read by position.
//! - [`Model`]: a model in one file or in the shards of a split set, as one list of tensors.
//! - [`Writer`]: two-phase and atomic; every size and offset is known before the first byte is
//!   written.

mod computed;
mod error;
mod file;
mod header;
mod map;
mod memory;
mod metadata;
pub mod names;
mod model;
mod place;
mod positional;
mod printable;
mod read;
mod scale;
mod split;
mod value;
mod write;

pub use computed::ComputedTensors;
pub use error::{Check, Error};
pub use file::File;
pub use header::{ByteOrder, Header, TensorInfo, TensorSpec};
pub use map::{Mapped, Mapping};
pub use memory::MemoryWriter;
pub use metadata::Metadata;
pub use model::Model;
pub use place::TensorId;
pub use printable::{is_printable, printable};
pub use read::Limits;
pub use value::{Array, FixedArray, StringArray, Value, ValueType};
pub use write::{Complete, Finished, WriteOptions, Writer};

/// The first four bytes of every GGUF file, in either byte order.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The version written by this crate.
pub const VERSION: u32 = 3;
/// `GGUF_DEFAULT_ALIGNMENT`: bytes, used when `general.alignment` is absent.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// `GGML_MAX_DIMS`.
pub const MAX_DIMS: usize = 4;
/// `GGML_MAX_NAME` less the terminating zero: bytes of the longest tensor name.
pub const MAX_NAME_BYTES: usize = 63;

/// `n` rounded up to a multiple of `alignment` (a power of two): `None` beyond 64 bits.
fn padded(n: u64, alignment: u64) -> Option<u64> {
    Some(n.checked_add(alignment - 1)? & !(alignment - 1))
}
