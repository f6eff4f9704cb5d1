//! Why weights could not be had, or do not fit together.

use std::path::PathBuf;

use super::names::FOLD_KEYS;
use crate::gguf;
use crate::pool::NoThreads;
use crate::quants;

/// Why weights could not be had, or do not fit together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The container.
    #[error(transparent)]
    Container(#[from] gguf::Error),
    /// A tensor of a type that cannot be computed with.
    #[error("{}: tensor {tensor} cannot be read; get this model as F16, Q8_0 or a K-quant", path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The codec's answer.
        source: quants::Error,
    },
    /// A weight that is no number.
    #[error("{}: tensor {tensor}: weight {index} is {value}; the file is damaged or its training diverged", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Which weight, counted through the tensor with the row's direction fastest.
        index: u64,
        /// NaN or an infinity.
        value: f32,
    },
    /// A factor of weights that makes them all zero, or no numbers.
    #[error(
        "{}: tensor {tensor}: number {index} is {value}, but weights are multiplied by it; the file is damaged", path.display()
    )]
    Scale {
        /// The file.
        path: PathBuf,
        /// The tensor of factors.
        tensor: String,
        /// Which one.
        index: u64,
        /// Its value.
        value: f32,
    },
    /// A weight without a logarithm, where weights are added as logarithms.
    #[error(
        "{}: tensor {tensor}: weight {index} is 0, expected another number: the tensor holds -exp(A_log) and is added as its \
         logarithm; the file is damaged, or made by a program that adds these weights as they are stored", path.display()
    )]
    Zero {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Which weight, counted through the tensor with the row's direction fastest.
        index: u64,
    },
    /// A weight with another sign in another file, where weights are added as logarithms.
    #[error(
        "tensor {tensor}: weight {index} is {found} in {} but {expected} in {}: the tensor holds -exp(A_log) and is added as its \
         logarithm, so all files must have one sign there; one of them is damaged, or made by a program that adds these \
         weights as they are stored",
        found_in.display(), expected_in.display()
    )]
    Sign {
        /// The tensor.
        tensor: String,
        /// Which weight, counted through the tensor with the row's direction fastest.
        index: u64,
        /// The weight in the first of the files.
        expected: f32,
        /// The first of the files.
        expected_in: PathBuf,
        /// The weight in the other file.
        found: f32,
        /// The other file.
        found_in: PathBuf,
    },
    /// A patch holds a tensor in other numbers than those that are added.
    #[error(
        "{}: tensor {tensor}: expected {expected}, found {found}; make the patch again with chatvec extract, from base and chat",
        path.display()
    )]
    PatchSpace {
        /// The patch.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What its numbers should be.
        expected: &'static str,
        /// What the patch says they are.
        found: &'static str,
    },
    /// A tensor that is folded differently in different files.
    #[error(
        "tensor {tensor} is {found} in {} but {expected} in {} (key {key}): numbers in different coordinates have no sum and no \
         distance; take files that are all plain, or all folded by the same {FOLD_KEYS}* keys (a patch is folded as the files \
         that it was made from)",
        found_in.display(), expected_in.display()
    )]
    Folded {
        /// The tensor, as the first file calls it.
        tensor: String,
        /// The key that says so.
        key: String,
        /// How the first file folds it.
        expected: String,
        /// The first file.
        expected_in: PathBuf,
        /// How the other file folds it.
        found: String,
        /// The other file.
        found_in: PathBuf,
    },
    /// A fold that is not understood.
    #[error(
        "{}: key {key}: expected {expected}, found {found}: how the weights of this file are folded is not known, so nothing can be \
         added to them; get the model with plain weights", path.display()
    )]
    FoldKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The system gave no threads.
    #[error(transparent)]
    Threads(#[from] NoThreads),
    /// A tensor has another shape in another file.
    #[error(
        "tensor {tensor} is {found:?} in {} but {expected:?} in {}; the files are no siblings",
        found_in.display(), expected_in.display()
    )]
    Shape {
        /// The tensor.
        tensor: String,
        /// Shape in the model, row length first.
        expected: Vec<u64>,
        /// The model's file.
        expected_in: PathBuf,
        /// Shape in the other file.
        found: Vec<u64>,
        /// The other file.
        found_in: PathBuf,
    },
    /// A tensor that only one of base and chat has.
    #[error("tensor {tensor} is in {} but not in {}; the files are no siblings", has.display(), lacks.display())]
    OneSided {
        /// The tensor.
        tensor: String,
        /// The file that has it.
        has: PathBuf,
        /// The file that lacks it.
        lacks: PathBuf,
    },
    /// The vector changes tensors that the model does not have.
    #[error(
        "{} tensors of {} have no place in {}, among them {}; the files are no siblings",
        tensors.len(), vector.display(), model.display(), tensors[0]
    )]
    NoPlace {
        /// Names of the tensors, at least one.
        tensors: Vec<String>,
        /// The vector's file.
        vector: PathBuf,
        /// The model.
        model: PathBuf,
    },
}
