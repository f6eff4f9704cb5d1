//! `--imatrix` and which of its entries count, of every command that encodes.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use super::Global;
use crate::imatrix::{FlatFor, ImportanceMatrix};
use crate::plan::{self, RecipeFile};
use crate::vector::Inputs;

/// [`plan::Importance`] as an option.
#[derive(Clone, Copy, ValueEnum, Debug)]
enum Importance {
    /// flat for the types that gain by it on every model that was tried, none for others
    Auto,
    /// Every weight counts as much as any other
    Flat,
    /// As llama-quantize without a matrix
    None,
}

#[derive(Args, Clone, Debug)]
pub(super) struct ImatrixArgs {
    /// An importance matrix of the model (GGUF or .dat), which says whose rounding errors matter;
    /// see chatvec imatrix
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Without --imatrix, how much errors of weights count [default: auto for a merge, none for all
    /// else]
    #[arg(long, value_name = "HOW", conflicts_with = "imatrix")]
    importance: Option<Importance>,
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
        if let ImatrixArgs { imatrix: Some(path), include_weights, exclude_weights, .. } = self.clone() {
            (file.imatrix, file.importance) = (Some(path), None);
            (file.include_weights, file.exclude_weights) = (include_weights, exclude_weights);
        }
        if let Some(importance) = self.importance {
            let importance = match importance {
                Importance::Auto => plan::Importance::Auto,
                Importance::Flat => plan::Importance::Flat,
                Importance::None => plan::Importance::None,
            };
            (file.imatrix, file.importance) = (None, Some(importance));
            (file.include_weights, file.exclude_weights) = (Vec::new(), Vec::new());
        }
    }

    /// What a recipe says; by default what is best for a merge.
    pub(super) fn of(file: &RecipeFile) -> Self {
        let RecipeFile { imatrix, importance, include_weights, exclude_weights, .. } = file.clone();
        let importance = Some(importance.unwrap_or(plan::Importance::Auto)).map(|importance| match importance {
            plan::Importance::Auto => Importance::Auto,
            plan::Importance::Flat => Importance::Flat,
            plan::Importance::None => Importance::None,
        });
        ImatrixArgs { imatrix, importance, include_weights, exclude_weights }
    }

    /// The inputs with the matrix, if one is asked for, or a flat one.
    pub(super) fn add_to(&self, inputs: Inputs, global: &Global) -> Result<Inputs> {
        let Some(path) = &self.imatrix else {
            return Ok(match self.importance {
                Some(Importance::Flat) => inputs.with_flat_importance(FlatFor::All),
                Some(Importance::Auto) => inputs.with_flat_importance(FlatFor::Gaining),
                Some(Importance::None) | None => inputs,
            });
        };
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
