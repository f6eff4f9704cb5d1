//! How an adapter is made.

use crate::ggml::GgmlType;

/// Types that factors can have: those that llama.cpp multiplies with and takes rows from on every
/// backend.
pub const FACTOR_TYPES: [GgmlType; 4] = [GgmlType::F16, GgmlType::Q8_0, GgmlType::BF16, GgmlType::F32];

/// How an adapter is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The rank of every matrix; that of a smaller matrix is its own.
    pub rank: u32,
    /// The type of the factors, F16 where rows are no whole blocks of it.
    pub ty: GgmlType,
}
