//! Writing an adapter.

use std::path::Path;

use super::adapter::Adapter;
use super::error::Error;
use super::factors::{Read, Stacked};
use super::fit::Fit;
use super::matrix::Matrix;
use super::place::Left;
use crate::ggml::GgmlType;
use crate::gguf::{self, Finished, Model, WriteOptions};
use crate::pipeline::{self, Budget, Observer, PlannedSums};
use crate::plan::MergePlan;
use crate::pool::Pool;
use crate::vector::{self, Inputs};

/// An adapter that is written.
#[derive(Clone, PartialEq, Debug)]
pub struct Written {
    /// The file.
    pub file: Finished,
    /// The type of the factors.
    pub ty: GgmlType,
    /// The largest rank.
    pub rank: u32,
    /// What the adapter holds of each tensor.
    pub fits: Vec<Fit>,
    /// Norms whose change is in the matrices behind them.
    pub folded: Vec<String>,
    /// Tensors that the adapter does not hold.
    pub left: Vec<Left>,
}

impl Adapter {
    /// Writes the adapter of a vector.
    ///
    /// # Errors
    /// [`Error::Pipeline`], [`Error::Decomposition`], [`Error::Range`], and those of
    /// [`gguf::Writer`]; no file is left then.
    pub fn write_vector(
        self,
        plan: &MergePlan,
        inputs: &Inputs,
        path: &Path,
        options: &WriteOptions,
        observer: &dyn Observer,
        budget: &Budget,
    ) -> Result<Written, Error> {
        let sums = PlannedSums::new(plan, inputs, observer, budget)?;
        let read = |m: &Matrix, first: u64, target: &mut [f32], delta: &mut [f32]| {
            let sum = sums.rows(m.tensor, first, target.len() as u64 / m.row_len)?;
            let weights = sum.weights(&[]);
            target.copy_from_slice(weights.delta);
            if let (Some(gain), Some(base)) = (&m.gain, weights.base) {
                let rows = target.chunks_exact_mut(gain.len()).zip(base.chunks_exact(gain.len()));
                for (target, base) in rows {
                    // chat · gain − base, from the difference of the two.
                    target.iter_mut().zip(base).zip(gain).for_each(|((t, b), g)| *t = *t * g + b * (g - 1.0));
                }
            }
            if !delta.is_empty() {
                delta.copy_from_slice(target);
            }
            Ok(())
        };
        self.write(inputs, &[], path, options, observer, budget, &read)
    }

    /// Writes the adapter of what the output of `plan` lacks. With an importance matrix the errors
    /// that matter less are larger.
    ///
    /// # Errors
    /// As [`Adapter::write_vector`].
    #[expect(clippy::too_many_arguments, reason = "a plan, its output, and a place")]
    pub fn write_residual(
        self,
        plan: &MergePlan,
        inputs: &Inputs,
        output: &Model,
        path: &Path,
        options: &WriteOptions,
        observer: &dyn Observer,
        budget: &Budget,
    ) -> Result<Written, Error> {
        let sums = PlannedSums::new(plan, inputs, observer, budget)?;
        let read = |m: &Matrix, first: u64, target: &mut [f32], delta: &mut [f32]| {
            let n_rows = target.len() as u64 / m.row_len;
            let sum = sums.rows(m.tensor, first, n_rows)?;
            let id = output.find(&m.name).expect("the output has the plan's tensors");
            let row_size = output.tensor(id).row_size();
            let mut blocks = vec![0; (n_rows * row_size) as usize];
            output.read(id, first * row_size, &mut blocks)?;
            vector::decode(output, id, first * m.row_len, &blocks, target)?;
            target.iter_mut().zip(sum.wanted()).for_each(|(stored, wanted)| *stored = wanted - *stored);
            let planned = &plan.tensors()[m.tensor];
            for row in planned.taken_rows() {
                // These are another model's rows, not sums.
                if let Some(row) = u64::from(row).checked_sub(first).filter(|row| *row < n_rows) {
                    target[(row * m.row_len) as usize..][..m.row_len as usize].fill(0.0);
                }
            }
            if !delta.is_empty() {
                delta.copy_from_slice(sum.delta());
            }
            Ok(())
        };
        let outputs: Vec<_> = output.paths().map(Path::to_owned).collect();
        self.write(inputs, &outputs, path, options, observer, budget, &read)
    }

    #[expect(clippy::too_many_arguments, reason = "what both kinds of adapter have in common")]
    fn write(
        self,
        inputs: &Inputs,
        outputs: &[std::path::PathBuf],
        path: &Path,
        options: &WriteOptions,
        observer: &dyn Observer,
        budget: &Budget,
        read: &Read<'_>,
    ) -> Result<Written, Error> {
        let threads = self.check_budget(budget)?;
        let pool = Pool::new(threads).map_err(pipeline::Error::from)?;
        let mut options = options.clone();
        options.inputs.extend(inputs.paths().map(Path::to_owned).chain(outputs.iter().cloned()));
        options.split_max_size = None;
        let Adapter { header, matrices, settings, folded, left } = self;
        let rank = matrices.iter().map(|m| m.rank).max().unwrap_or(0) as u32;
        let writer = gguf::Writer::create(header, path, &options)?;
        let mut fits = Vec::new();
        for (i, matrix) in matrices.iter().enumerate() {
            let weights = inputs.importance_of(&matrix.name, &matrix.ne(), GgmlType::F32);
            let mut fit = Fit { name: matrix.name.clone(), rank: matrix.rank as u32, ..Fit::default() };
            for stacked in 0..matrix.n_matrices {
                let first = stacked * matrix.n_rows;
                let rows = Stacked { matrix, first, read, observer };
                let weights = weights.map(|w| w.of_row(first));
                let work = || rows.write(settings.ty, rank, weights, (&writer, 2 * i, stacked));
                fit.add(&pool.install(work)?);
            }
            fits.push(fit);
        }
        let file = writer.finish(None)?;
        Ok(Written { file, ty: settings.ty, rank, fits, folded, left })
    }
}
