//! File types by the names of llama-quantize.
//!
//! Ids are `enum llama_ftype` (include/llama.h), names and default types those of
//! tools/quantize/quantize.cpp and src/llama-quant.cpp. Most names mean a mixture: llama-quantize
//! gives some tensors a finer type than the name says, unless `--pure` is given;
//! [`mixture`](super::mixture) has the rules.

use crate::ggml::GgmlType::{self, *};

/// A file type: what `general.file_type` holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileType {
    /// The id that `general.file_type` holds.
    pub id: u32,
    /// The name of llama-quantize.
    pub name: &'static str,
    /// Another name for it.
    alias: Option<&'static str>,
    /// The type of every tensor that no rule of the mixture names.
    pub default_type: GgmlType,
    /// Whether llama-quantize, without `--pure`, never gives a tensor another type than that.
    pub(super) is_uniform: bool,
}

const fn uniform(id: u32, name: &'static str, default_type: GgmlType) -> FileType {
    FileType { id, name, alias: None, default_type, is_uniform: true }
}

const fn mixture(id: u32, name: &'static str, default_type: GgmlType) -> FileType {
    FileType { id, name, alias: None, default_type, is_uniform: false }
}

const fn alias(id: u32, name: &'static str, alias: &'static str, default_type: GgmlType) -> FileType {
    FileType { id, name, alias: Some(alias), default_type, is_uniform: false }
}

#[rustfmt::skip]
pub(super) const FILE_TYPES: [FileType; 36] = [
    uniform( 0, "F32",     F32),
    uniform( 1, "F16",     F16),
    mixture( 2, "Q4_0",    Q4_0),
    mixture( 3, "Q4_1",    Q4_1),
    uniform( 7, "Q8_0",    Q8_0),
    mixture( 8, "Q5_0",    Q5_0),
    mixture( 9, "Q5_1",    Q5_1),
    mixture(10, "Q2_K",    Q2_K),
    mixture(11, "Q3_K_S",  Q3_K),
    alias(  12, "Q3_K_M",  "Q3_K", Q3_K),
    mixture(13, "Q3_K_L",  Q3_K),
    mixture(14, "Q4_K_S",  Q4_K),
    alias(  15, "Q4_K_M",  "Q4_K", Q4_K),
    mixture(16, "Q5_K_S",  Q5_K),
    alias(  17, "Q5_K_M",  "Q5_K", Q5_K),
    mixture(18, "Q6_K",    Q6_K),
    mixture(19, "IQ2_XXS", IQ2_XXS),
    mixture(20, "IQ2_XS",  IQ2_XS),
    mixture(21, "Q2_K_S",  Q2_K),
    mixture(22, "IQ3_XS",  IQ3_S),
    mixture(23, "IQ3_XXS", IQ3_XXS),
    mixture(24, "IQ1_S",   IQ1_S),
    mixture(25, "IQ4_NL",  IQ4_NL),
    mixture(26, "IQ3_S",   IQ3_S),
    mixture(27, "IQ3_M",   IQ3_S),
    mixture(28, "IQ2_S",   IQ2_XS),
    mixture(29, "IQ2_M",   IQ2_S),
    mixture(30, "IQ4_XS",  IQ4_XS),
    mixture(31, "IQ1_M",   IQ1_M),
    uniform(32, "BF16",    BF16),
    mixture(36, "TQ1_0",   TQ1_0),
    mixture(37, "TQ2_0",   TQ2_0),
    mixture(38, "MXFP4_MOE", MXFP4),
    mixture(39, "NVFP4",   NVFP4),
    mixture(40, "Q1_0",    Q1_0),
    mixture(41, "Q2_0",    Q2_0),
];

impl FileType {
    /// The file type with this id.
    pub fn from_id(id: u64) -> Option<&'static FileType> {
        FILE_TYPES.iter().find(|f| u64::from(f.id) == id)
    }

    /// The file type of this name, in any case.
    pub fn from_name(name: &str) -> Option<&'static FileType> {
        let is = |n: &str| n.eq_ignore_ascii_case(name);
        FILE_TYPES.iter().find(|f| is(f.name) || f.alias.is_some_and(is))
    }
}

/// `GGML_QNT_VERSION`: changes when the meaning of a quantised block does.
pub const QUANTIZATION_VERSION: u32 = 2;
