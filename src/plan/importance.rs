//! What an importance matrix means for a plan: which tensors it is for, and what the output says of
//! it.

use super::types::requires_importance;
use super::{Error, OutputType, TensorPlan, Warning};
use crate::gguf::{Metadata, Value};
use crate::imatrix::RowImportance;
use crate::quants;
use crate::vector::{Inputs, row_per_token_name};

/// What every key about the matrix begins with.
const PREFIX: &str = "quantize.imatrix.";

/// Says that every weight was as important as any other.
const FLAT_KEY: &str = "chatvec.importance";

/// Bytes of a string that llama-quantize writes at most (`llama_model_kv_override::val_str`).
const LONGEST: usize = 127;

impl TensorPlan {
    /// The importance of the rows of this tensor. Some rows of a matrix have the entry of the whole,
    /// since all rows of a matrix have one.
    pub fn importance<'a>(&self, inputs: &'a Inputs) -> Option<RowImportance<'a>> {
        let whole = self.selected().and_then(|_| row_per_token_name(&self.name));
        inputs.importance_of(whole.unwrap_or(&self.name), &self.ne, self.ty)
    }
}

/// Whether types are chosen as llama-quantize chooses them with a matrix. A flat one is no reason to
/// choose others, but for types that are refused without any.
pub(super) fn counts(inputs: &Inputs, output: &OutputType) -> bool {
    inputs.importance().filter(|matrix| matrix.is_asked_for()).is_some_and(|matrix| {
        let is_refused = |ty| requires_importance("a matrix", ty, output);
        !matrix.is_flat() || output.file_type().is_some_and(|file_type| is_refused(file_type.default_type))
    })
}

/// Refuses a matrix that does not fit, and says which tensors it does nothing for.
///
/// llama-quantize encodes a tensor without an entry as if there were no matrix, too.
///
/// # Errors
/// [`Error::Importance`] for an entry of another length than its tensor asks for.
pub(super) fn check(inputs: &Inputs, tensors: &[TensorPlan]) -> Result<Vec<Warning>, Error> {
    let Some(matrix) = inputs.importance() else { return Ok(Vec::new()) };
    let (mut n_encoded, mut missing) = (0, Vec::new());
    for tensor in tensors {
        let found = matrix.of_tensor(&tensor.name, &tensor.ne, tensor.ty)?;
        if quants::uses_importance(tensor.ty) && !tensor.is_copy(inputs) {
            n_encoded += 1;
            if found.is_none() && !matrix.is_flat() {
                missing.push(tensor.name.clone());
            }
        }
    }
    let mut names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    let has_no_tensor = |name: &&str| names.binary_search(name).is_err();
    let entries: Vec<String> = matrix.names().filter(has_no_tensor).map(str::to_owned).collect();

    let mut warnings = Vec::new();
    if n_encoded == 0 && !matrix.is_flat() {
        warnings.push(Warning::ImportanceIdle);
    }
    if !missing.is_empty() {
        warnings.push(Warning::ImportanceMissing { tensors: missing, of: n_encoded });
    }
    if !entries.is_empty() {
        warnings.push(Warning::ImportanceUnmatched { entries, of: matrix.names().len() });
    }
    Ok(warnings)
}

/// Writes the keys that llama-quantize writes of its matrix (tools/quantize/quantize.cpp), in place
/// of those of an earlier one: file, text, entries and chunks. Without a matrix there are none.
///
/// llama-quantize writes the path of the matrix as it was given; here it is the file's name, and a
/// text by its absolute path is its name too, so that an output does not depend on where its inputs
/// lie.
pub(super) fn describe(metadata: &mut Metadata, inputs: &Inputs, tensors: &[TensorPlan]) {
    metadata.retain(|key| !key.starts_with(PREFIX) && key != FLAT_KEY);
    let Some(matrix) = inputs.importance() else { return };
    let Some(path) = matrix.path() else {
        let is_encoded = |t: &&TensorPlan| quants::uses_importance(t.ty) && !t.is_copy(inputs);
        let is_of_use = tensors.iter().filter(is_encoded).any(|t| t.importance(inputs).is_some());
        if is_of_use {
            metadata.set(FLAT_KEY, "flat");
        }
        return;
    };
    let mut set = |key: &str, value: Value| metadata.set(&format!("{PREFIX}{key}"), value);
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    set("file", Value::String(cut(&file).into()));
    if let Some(dataset) = matrix.datasets().first() {
        set("dataset", Value::String(cut(without_place(dataset)).into()));
    }
    set("entries_count", Value::U32(matrix.names().len() as u32));
    if matrix.n_chunks() > 0 {
        set("chunks_count", Value::U32(matrix.n_chunks()));
    }
}

/// The last part of an absolute path of any system; anything else as it is.
fn without_place(text: &str) -> &str {
    let is_separator = |c| matches!(c, '/' | '\\');
    match text.starts_with(is_separator) || text.get(1..).is_some_and(|rest| rest.starts_with(":\\")) {
        true => text.rsplit(is_separator).next().unwrap_or(text),
        false => text,
    }
}

/// The beginning of a string that llama-quantize would write, cut between characters.
fn cut(text: &str) -> &str {
    let end = (0..=LONGEST.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_left_out_and_names_are_not() {
        for (text, kept) in [
            ("/home/me/text.txt", "text.txt"),
            ("C:\\texts\\text.txt", "text.txt"),
            ("wikitext/train", "wikitext/train"),
            ("text.txt", "text.txt"),
            ("é:\\", "é:\\"),
            ("", ""),
        ] {
            assert_eq!(without_place(text), kept);
        }
        assert_eq!(cut(&"é".repeat(100)).len(), 126);
    }
}
