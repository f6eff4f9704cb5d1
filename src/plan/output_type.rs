//! What types an output has: those of the model, or those of a file type.

use std::collections::BTreeMap;

use super::Error;
use super::file_type::{FILE_TYPES, FileType, QUANTIZATION_VERSION};
use super::mixture::{self, Options};
use crate::ggml::GgmlType;
use crate::gguf::{Metadata, Value};

/// The types of an output's tensors.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum OutputType {
    /// Each tensor keeps the model's own type.
    #[default]
    Keep,
    /// The types that llama-quantize would choose.
    Mixture {
        /// The file type.
        file_type: &'static FileType,
        /// What is asked for besides.
        options: Options,
    },
}

impl OutputType {
    /// Reads a name or a number that llama-quantize takes (`try_parse_ftype`), or `keep`, or its
    /// `COPY`, which is the same. `pure` is its `--pure`.
    ///
    /// # Errors
    /// As [`OutputType::new`].
    pub fn parse(name: &str, pure: bool) -> Result<Self, Error> {
        Self::new(name, Options { pure, ..Options::default() })
    }

    /// Reads the name of a type as [`OutputType::parse`] does, with everything else that can be
    /// asked for.
    ///
    /// # Errors
    /// [`Error::NoRules`] for NVFP4 without `pure`, [`Error::UnknownType`] for anything that is no
    /// type, [`Error::NoMixture`] for options that have nothing to change.
    pub fn new(name: &str, options: Options) -> Result<Self, Error> {
        if name.eq_ignore_ascii_case("keep") || name.eq_ignore_ascii_case("copy") {
            return match options == (Options { pure: options.pure, ..Options::default() }) {
                true => Ok(OutputType::Keep),
                false => Err(Error::NoMixture),
            };
        }
        let by_id = || FileType::from_id(name.parse().ok()?);
        let Some(file_type) = FileType::from_name(name).or_else(by_id) else {
            let known: Vec<&str> = FILE_TYPES.iter().map(|f| f.name).collect();
            return Err(Error::UnknownType { name: name.to_owned(), known: known.join(", ") });
        };
        if file_type.name == "NVFP4" && !options.pure {
            return Err(Error::NoRules { name: file_type.name });
        }
        Ok(OutputType::Mixture { file_type, options })
    }

    /// The file type that is written, if one is asked for.
    pub fn file_type(&self) -> Option<&'static FileType> {
        match self {
            OutputType::Keep => None,
            OutputType::Mixture { file_type, .. } => Some(file_type),
        }
    }

    /// The words for it in provenance, as on the command line of llama-quantize.
    pub fn name(&self) -> String {
        let OutputType::Mixture { file_type, options } = self else { return "keep".to_owned() };
        let mut words = vec![file_type.name.to_owned()];
        if options.pure && !file_type.is_uniform {
            words.push("pure".to_owned());
        }
        if options.leave_output {
            words.push("output=keep".to_owned());
        }
        words.extend(options.output.map(|ty| format!("output={ty}")));
        words.extend(options.embeddings.map(|ty| format!("token_embd={ty}")));
        words.extend(options.overrides.iter().map(ToString::to_string));
        words.join(" ")
    }

    /// The type of every tensor of a model, in the order of `tensors`, which are all of it.
    ///
    /// # Errors
    /// Those of [`mixture::choose`].
    pub fn choose(
        &self,
        metadata: &Metadata,
        tensors: &[mixture::Tensor<'_>],
        has_importance: bool,
    ) -> Result<Vec<mixture::Choice>, Error> {
        match self {
            OutputType::Keep => Ok(tensors.iter().map(|t| mixture::Choice { ty: t.ty, wanted: t.ty }).collect()),
            OutputType::Mixture { file_type, options } => {
                mixture::choose(metadata, tensors, file_type, options, has_importance)
            }
        }
    }

    /// Writes `general.file_type` and `general.quantization_version`. `types` has the type and the
    /// number of dimensions (trailing ones left out) of every tensor.
    ///
    /// With [`OutputType::Keep`] the model's own claim stays if its type is among the tensors'; a
    /// claim that was wrong (a tool forgot to change it) gives way to the type that most tensors
    /// have, as llama.cpp guesses it.
    pub(super) fn describe(&self, metadata: &mut Metadata, types: &[(GgmlType, usize)]) {
        let matrices = || types.iter().filter(|t| t.1 > 1).map(|t| t.0);
        let file_type = match self {
            OutputType::Mixture { file_type, .. } => Some(*file_type),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ggml::GgmlType::*;

    #[test]
    fn names_of_llama_quantize_are_understood_in_any_case() {
        assert_eq!(FileType::from_name("q4_k").map(|f| f.id), Some(15));
        assert_eq!(FileType::from_name("Q4_K_S").map(|f| f.id), Some(14));
        assert_eq!(OutputType::parse("KEEP", false).unwrap(), OutputType::Keep);
        assert_eq!(OutputType::parse("copy", false).unwrap(), OutputType::Keep);
        for (name, id) in [("f16", 1), ("15", 15), ("q4_k", 15), ("2", 2), ("7", 7)] {
            assert_eq!(OutputType::parse(name, false).unwrap().file_type().map(|f| f.id), Some(id), "{name}");
        }
    }

    #[test]
    fn what_is_no_type_is_refused_by_name() {
        for name in ["Q9_X", "4", "1024", "-1", "Q4_K_X", ""] {
            let e = OutputType::parse(name, true).unwrap_err();
            assert!(matches!(e, Error::UnknownType { .. }) && e.to_string().contains("Q4_K_M"), "{e}");
        }
        let leave = Options { leave_output: true, ..Options::default() };
        assert!(matches!(OutputType::new("keep", leave), Err(Error::NoMixture)));
    }

    #[test]
    fn provenance_says_what_was_asked_for() {
        let options = Options {
            pure: true,
            output: Some(Q8_0),
            overrides: mixture::Override::parse_list("attn_Q=f16").unwrap(),
            ..Options::default()
        };
        assert_eq!(OutputType::new("q4_k", options).unwrap().name(), "Q4_K_M pure output=Q8_0 attn_q=F16");
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
