//! How an adapter is made.

use crate::ggml::GgmlType;

/// Types that factors can have. llama.cpp multiplies with these, and takes rows from them, on every
/// backend.
pub const FACTOR_TYPES: [GgmlType; 4] = [GgmlType::F16, GgmlType::Q8_0, GgmlType::BF16, GgmlType::F32];

/// How an adapter is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The rank of every matrix. A smaller matrix has its own.
    pub rank: u32,
    /// The type of the factors. Those whose rows are no whole blocks of it are F16.
    pub ty: GgmlType,
}
