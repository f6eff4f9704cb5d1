//! `--imatrix` and which of its entries count, of every command that encodes.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use super::Global;
use crate::imatrix::ImportanceMatrix;
use crate::plan::RecipeFile;
use crate::vector::Inputs;

#[derive(Args, Clone, Debug)]
pub(super) struct ImatrixArgs {
    /// An importance matrix of the model (GGUF or .dat), which says whose rounding errors matter;
    /// see chatvec imatrix
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// With --imatrix: use it only for tensors with this in their name; can be given several times
    #[arg(long, value_name = "NAME", requires = "imatrix", conflicts_with = "exclude_weights")]
    include_weights: Vec<String>,
    /// With --imatrix: do not use it for tensors with this in their name; can be given several
    /// times
    #[arg(long, value_name = "NAME", requires = "imatrix")]
    exclude_weights: Vec<String>,
}

impl ImatrixArgs {
    /// Puts what was given in place of what a recipe says.
    pub(super) fn overlay(&self, file: &mut RecipeFile) {
        if let ImatrixArgs { imatrix: Some(path), include_weights, exclude_weights } = self.clone() {
            file.imatrix = Some(path);
            (file.include_weights, file.exclude_weights) = (include_weights, exclude_weights);
        }
    }

    /// What a recipe says.
    pub(super) fn of(file: &RecipeFile) -> Self {
        let RecipeFile { imatrix, include_weights, exclude_weights, .. } = file.clone();
        ImatrixArgs { imatrix, include_weights, exclude_weights }
    }

    /// The inputs with the matrix, if one is asked for.
    pub(super) fn add_to(&self, inputs: Inputs, global: &Global) -> Result<Inputs> {
        let Some(path) = &self.imatrix else { return Ok(inputs) };
        let mut matrix = ImportanceMatrix::read(path, global.memory.as_u64()).context("--imatrix")?;
        if !self.include_weights.is_empty() {
            matrix = matrix.include(&self.include_weights)?;
        }
        if !self.exclude_weights.is_empty() {
            matrix = matrix.exclude(&self.exclude_weights)?;
        }
        Ok(inputs.with_importance(matrix))
    }
}
