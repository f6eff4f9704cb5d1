//! The type table: every ggml type by id, name, block length and block size.
//!
//! No I/O and no arithmetic on weights. The ids are those of `enum ggml_type` (ggml/include/ggml.h)
//! and the sizes those of the block structs (ggml/src/ggml-common.h) at ggml 0.26; they never
//! change once published, because they are what a GGUF file stores. A *block* is the smallest unit
//! that can be decoded alone; a row is a whole number of blocks.

use std::fmt;
use std::str::FromStr;

/// A ggml tensor type that files may hold today.
#[allow(non_camel_case_types, reason = "ggml's own spelling; Q4K and Q4_K would be two names for one thing")]
#[allow(missing_docs, reason = "the table below says all there is to say of each")]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum GgmlType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q8_1 = 9,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    Q8_K = 15,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    I8 = 24,
    I16 = 25,
    I32 = 26,
    I64 = 27,
    F64 = 28,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
    Q1_0 = 41,
    Q2_0 = 42,
}

use GgmlType::*;

/// One line of the type table.
struct Traits {
    ty: GgmlType,
    /// ggml's own name (`ggml_type_name`).
    name: &'static str,
    /// Weights in a block.
    block_len: usize,
    /// Bytes in a block.
    block_size: usize,
}

const fn t(ty: GgmlType, name: &'static str, block_len: usize, block_size: usize) -> Traits {
    Traits { ty, name, block_len, block_size }
}

/// All types that have a block, in the order of their ids.
#[rustfmt::skip]
const TABLE: [Traits; 35] = [
    //  type     name       weights bytes
    t(F32,     "f32",       1,   4),
    t(F16,     "f16",       1,   2),
    t(Q4_0,    "q4_0",     32,  18),
    t(Q4_1,    "q4_1",     32,  20),
    t(Q5_0,    "q5_0",     32,  22),
    t(Q5_1,    "q5_1",     32,  24),
    t(Q8_0,    "q8_0",     32,  34),
    t(Q8_1,    "q8_1",     32,  36),
    t(Q2_K,    "q2_K",    256,  84),
    t(Q3_K,    "q3_K",    256, 110),
    t(Q4_K,    "q4_K",    256, 144),
    t(Q5_K,    "q5_K",    256, 176),
    t(Q6_K,    "q6_K",    256, 210),
    t(Q8_K,    "q8_K",    256, 292),
    t(IQ2_XXS, "iq2_xxs", 256,  66),
    t(IQ2_XS,  "iq2_xs",  256,  74),
    t(IQ3_XXS, "iq3_xxs", 256,  98),
    t(IQ1_S,   "iq1_s",   256,  50),
    t(IQ4_NL,  "iq4_nl",   32,  18),
    t(IQ3_S,   "iq3_s",   256, 110),
    t(IQ2_S,   "iq2_s",   256,  82),
    t(IQ4_XS,  "iq4_xs",  256, 136),
    t(I8,      "i8",        1,   1),
    t(I16,     "i16",       1,   2),
    t(I32,     "i32",       1,   4),
    t(I64,     "i64",       1,   8),
    t(F64,     "f64",       1,   8),
    t(IQ1_M,   "iq1_m",   256,  56),
    t(BF16,    "bf16",      1,   2),
    t(TQ1_0,   "tq1_0",   256,  54),
    t(TQ2_0,   "tq2_0",   256,  66),
    t(MXFP4,   "mxfp4",    32,  17),
    t(NVFP4,   "nvfp4",    64,  36),
    t(Q1_0,    "q1_0",    128,  18),
    t(Q2_0,    "q2_0",     64,  18),
];

/// Ids that once named a type and never will again, with the way out for who still has such a file.
#[rustfmt::skip]
const REMOVED: [(u32, &str, &str); 8] = [
    ( 4, "q4_2",         "the type was dropped before GGUF existed; convert the model again"),
    ( 5, "q4_3",         "the type was dropped before GGUF existed; convert the model again"),
    (31, "q4_0_4_4",     "llama.cpp repacks Q4_0 when it loads; quantise to Q4_0 instead"),
    (32, "q4_0_4_8",     "llama.cpp repacks Q4_0 when it loads; quantise to Q4_0 instead"),
    (33, "q4_0_8_8",     "llama.cpp repacks Q4_0 when it loads; quantise to Q4_0 instead"),
    (36, "iq4_nl_4_4",   "llama.cpp repacks IQ4_NL when it loads; quantise to IQ4_NL instead"),
    (37, "iq4_nl_4_8",   "llama.cpp repacks IQ4_NL when it loads; quantise to IQ4_NL instead"),
    (38, "iq4_nl_8_8",   "llama.cpp repacks IQ4_NL when it loads; quantise to IQ4_NL instead"),
];

/// Why a type id or name means no usable type.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TypeError {
    /// The id is outside the table.
    #[error("type id {id} is unknown; ids 0 to 42 are known")]
    UnknownId {
        /// The id found.
        id: u32,
    },
    /// The id belongs to a type that ggml removed.
    #[error("type {name} (id {id}) was removed from ggml: {hint}")]
    Removed {
        /// The id found.
        id: u32,
        /// The name it once had.
        name: &'static str,
        /// What to do instead.
        hint: &'static str,
    },
    /// No type has this name.
    #[error("no ggml type is called {name:?}")]
    UnknownName {
        /// The name as given.
        name: String,
    },
}

impl GgmlType {
    /// Every type, in the order of ids.
    pub fn all() -> impl Iterator<Item = GgmlType> {
        TABLE.iter().map(|row| row.ty)
    }

    /// The type with this id, as stored in a GGUF tensor info.
    ///
    /// # Errors
    /// [`TypeError::Removed`] for ids ggml gave up, by name; [`TypeError::UnknownId`] for any
    /// other.
    pub fn from_id(id: u32) -> Result<Self, TypeError> {
        if let Some(row) = TABLE.iter().find(|row| row.ty as u32 == id) {
            return Ok(row.ty);
        }
        match REMOVED.iter().find(|r| r.0 == id) {
            Some(&(id, name, hint)) => Err(TypeError::Removed { id, name, hint }),
            None => Err(TypeError::UnknownId { id }),
        }
    }

    /// The id a GGUF file stores.
    pub const fn id(self) -> u32 {
        self as u32
    }

    fn traits(self) -> &'static Traits {
        // A search of 35 entries would do, but this runs per row: the position is a constant per
        // type.
        let position = match self as u32 {
            id @ 0..=3 => id,
            id @ 6..=30 => id - 2,
            id @ 34..=35 => id - 5,
            id => id - 8,
        };
        &TABLE[position as usize]
    }

    /// ggml's own name, such as `q4_K`. [`Display`](fmt::Display) writes the upper-case form users
    /// type.
    pub fn name(self) -> &'static str {
        self.traits().name
    }

    /// Weights in one block.
    pub fn block_len(self) -> usize {
        self.traits().block_len
    }

    /// Bytes in one block.
    pub fn block_size(self) -> usize {
        self.traits().block_size
    }

    /// Bytes of `n_weights` weights that lie in one row (or in whole rows): `None` if they are no
    /// whole number of blocks, or if the size does not fit in 64 bits.
    pub fn size_of(self, n_weights: u64) -> Option<u64> {
        let row = self.traits();
        if !n_weights.is_multiple_of(row.block_len as u64) {
            return None;
        }
        (n_weights / row.block_len as u64).checked_mul(row.block_size as u64)
    }

    /// Average storage in bits per weight.
    pub fn bits_per_weight(self) -> f64 {
        let row = self.traits();
        row.block_size as f64 * 8.0 / row.block_len as f64
    }

    /// Whether several weights share a block with a common scale (`ggml_is_quantized`).
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Whether values of this type take part in arithmetic on weights. Integers index things and
    /// F64 appears in no model that llama.cpp computes with; ggml has no conversion for either
    /// (`to_float` is empty).
    pub fn is_weight_type(self) -> bool {
        !matches!(self, I8 | I16 | I32 | I64 | F64 | Q8_1 | Q8_K)
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name().to_ascii_uppercase())
    }
}

impl serde::Serialize for GgmlType {
    /// Writes the type as its name in upper case.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for GgmlType {
    type Err = TypeError;

    /// The type of this name, in any case.
    fn from_str(s: &str) -> Result<Self, TypeError> {
        if let Some(row) = TABLE.iter().find(|row| row.name.eq_ignore_ascii_case(s)) {
            return Ok(row.ty);
        }
        match REMOVED.iter().find(|r| r.1.eq_ignore_ascii_case(s)) {
            Some(&(id, name, hint)) => Err(TypeError::Removed { id, name, hint }),
            None => Err(TypeError::UnknownName { name: s.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_finds_its_own_line_of_the_table() {
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.ty.traits().ty, row.ty);
            assert!(i == 0 || TABLE[i - 1].ty.id() < row.ty.id(), "{} is out of order", row.name);
            assert_eq!(row.name.parse(), Ok(row.ty));
            assert_eq!(row.ty.to_string().parse(), Ok(row.ty));
        }
    }

    #[test]
    fn every_id_from_0_to_42_is_a_type_or_removed_by_name() {
        for id in 0..=42 {
            match GgmlType::from_id(id) {
                Ok(ty) => assert_eq!(ty.id(), id),
                Err(e) => assert!(matches!(e, TypeError::Removed { .. }), "{id}: {e}"),
            }
        }
        assert_eq!(GgmlType::from_id(43), Err(TypeError::UnknownId { id: 43 }));
    }

    #[test]
    fn sizes_are_whole_blocks_or_nothing() {
        assert_eq!(Q4_K.size_of(512), Some(288));
        assert_eq!(Q4_K.size_of(500), None);
        assert_eq!(F64.size_of(u64::MAX), None);
        assert_eq!(F32.size_of(0), Some(0));
    }
}
