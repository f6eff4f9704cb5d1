//! Output types by the names of llama-quantize.
//!
//! Ids are `enum llama_ftype` (include/llama.h), names and default types those of tools/quantize/quantize.cpp and
//! src/llama-quant.cpp. Most names mean a mixture: llama-quantize gives some tensors a finer type than the name says,
//! unless `--pure` is given.

use super::Error;
use std::collections::BTreeMap;

use super::types::{fallback, is_quantizable};
use crate::ggml::GgmlType::{self, *};
use crate::gguf::{Metadata, TensorInfo, Value};
use crate::quants;

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
    is_uniform: bool,
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
const FILE_TYPES: [FileType; 36] = [
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

/// The types of an output's tensors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OutputType {
    /// Each tensor keeps the model's own type.
    Keep,
    /// One type for every tensor that llama-quantize may touch; the others keep the model's own.
    Pure(&'static FileType),
}

impl OutputType {
    /// From a name: `keep`, a float type, or a name of llama-quantize. `pure` is its `--pure`.
    ///
    /// # Errors
    /// [`Error::NotYet`] for a mixture asked for without `pure` and for types without an encoder,
    /// [`Error::UnknownType`] for anything else.
    pub fn parse(name: &str, pure: bool) -> Result<Self, Error> {
        if name.eq_ignore_ascii_case("keep") {
            return Ok(OutputType::Keep);
        }
        let writable = |f: &&FileType| quants::is_supported(f.default_type);
        let Some(file_type) = FileType::from_name(name) else {
            let known: Vec<&str> = FILE_TYPES.iter().filter(writable).map(|f| f.name).collect();
            return Err(Error::UnknownType { name: name.to_owned(), known: known.join(", ") });
        };
        if !writable(&file_type) {
            let reason = "there is no encoder for it; Q4_K with --pure is near in size";
            return Err(Error::NotYet { name: name.to_owned(), reason });
        }
        if !file_type.is_uniform && !pure {
            let reason = "it is a mixture of types; give --pure for this one type in every tensor, or write F16 and run \
                          llama-quantize";
            return Err(Error::NotYet { name: name.to_owned(), reason });
        }
        Ok(OutputType::Pure(file_type))
    }

    /// The word for it in provenance.
    pub fn name(&self) -> String {
        match self {
            OutputType::Keep => "keep".to_owned(),
            OutputType::Pure(f) if f.is_uniform => f.name.to_owned(),
            OutputType::Pure(f) => format!("{} pure", f.name),
        }
    }

    /// The type of a planned tensor, whose type in the model is `own`.
    pub(super) fn type_for(&self, architecture: &str, info: &TensorInfo, own: GgmlType) -> GgmlType {
        match self {
            OutputType::Pure(f) if is_quantizable(architecture, info.name(), info.n_dims()) && own.is_weight_type() => {
                fallback(f.default_type, info.row_len())
            }
            _ => own,
        }
    }

    /// Writes `general.file_type` and `general.quantization_version`. `types` has the type and the number of dimensions
    /// (trailing ones left out) of every tensor.
    ///
    /// With [`OutputType::Keep`] the model's own claim stays if its type is among the tensors'; a claim that was wrong (a
    /// tool forgot to change it) gives way to the type that most tensors have, as llama.cpp guesses it.
    pub(super) fn describe(&self, metadata: &mut Metadata, types: &[(GgmlType, usize)]) {
        let matrices = || types.iter().filter(|t| t.1 > 1).map(|t| t.0);
        let file_type = match self {
            OutputType::Pure(f) => Some(*f),
            OutputType::Keep => {
                let claim = metadata.get_u64("general.file_type").and_then(FileType::from_id);
                claim.filter(|f| matrices().any(|ty| ty == f.default_type)).or_else(|| {
                    let mut counts = BTreeMap::new();
                    matrices().for_each(|ty| *counts.entry(ty).or_insert(0) += 1);
                    let commonest = counts.into_iter().max_by_key(|(_, count)| *count)?.0;
                    FileType::from_name(commonest.name())
                })
            }
        };
        if let Some(file_type) = file_type {
            metadata.set("general.file_type", Value::U32(file_type.id));
        }
        metadata.set("general.quantization_version", Value::U32(QUANTIZATION_VERSION));
    }
}

/// `GGML_QNT_VERSION`: changes when the meaning of a quantised block does.
pub const QUANTIZATION_VERSION: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_llama_quantize_are_understood_in_any_case() {
        assert_eq!(FileType::from_name("q4_k").map(|f| f.id), Some(15));
        assert_eq!(FileType::from_name("Q4_K_S").map(|f| f.id), Some(14));
        assert_eq!(OutputType::parse("KEEP", false).unwrap(), OutputType::Keep);
        assert!(matches!(OutputType::parse("f16", false), Ok(OutputType::Pure(f)) if f.id == 1));
    }

    #[test]
    fn mixtures_and_types_without_encoder_are_refused_by_name() {
        for (name, pure) in [("Q4_K_M", false), ("q4_0", false), ("IQ4_XS", true)] {
            let e = OutputType::parse(name, pure).unwrap_err();
            assert!(matches!(e, Error::NotYet { .. }) && e.to_string().contains(name), "{e}");
        }
        assert!(matches!(OutputType::parse("Q9_X", true), Err(Error::UnknownType { .. })));
    }

    #[test]
    fn a_true_claim_of_file_type_stays_and_a_false_one_goes() {
        let described = |claim: u32, types: &[(GgmlType, usize)]| {
            let mut m = Metadata::default();
            m.set("general.file_type", Value::U32(claim));
            OutputType::Keep.describe(&mut m, types);
            m.get_u64("general.file_type")
        };
        assert_eq!(described(14, &[(Q4_K, 2), (Q4_K, 2), (Q6_K, 2), (F32, 1)]), Some(14));
        assert_eq!(described(1, &[(Q4_K, 2), (Q4_K, 2), (Q6_K, 2), (F32, 1)]), Some(15));
        assert_eq!(described(15, &[(F16, 2), (F32, 1)]), Some(1));
        assert_eq!(described(0, &[(Q6_K, 2)]), Some(18));
    }
}
