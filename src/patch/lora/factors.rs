//! The factors of one matrix: found, encoded, and measured.

use super::error::Error;
use super::fit::Fit;
use super::matrix::{Matrix, type_for};
use crate::ggml::GgmlType;
use crate::gguf;
use crate::patch::low_rank::{self, LowRank, Rows};
use crate::patch::product::AddProduct;
use crate::patch::rows;
use crate::pipeline::{self, Observer};
use crate::pool;
use crate::quants;
use crate::vector;

/// Fills rows of a tensor with what is to be held, and with the vector if that buffer is not empty.
pub(super) type Read<'a> = dyn Fn(&Matrix, u64, &mut [f32], &mut [f32]) -> Result<(), pipeline::Error> + Sync + 'a;

/// One matrix of the stack in a tensor.
pub(super) struct Stacked<'a> {
    pub(super) matrix: &'a Matrix,
    /// The row of the tensor with which the matrix begins.
    pub(super) first: u64,
    pub(super) read: &'a Read<'a>,
    pub(super) observer: &'a dyn Observer,
}

impl Rows for Stacked<'_> {
    type Error = pipeline::Error;

    fn n_rows(&self) -> u64 {
        self.matrix.n_rows
    }

    fn row_len(&self) -> usize {
        self.matrix.row_len as usize
    }

    fn read(&self, first: u64, out: &mut [f32]) -> Result<(), pipeline::Error> {
        if self.observer.is_cancelled() {
            return Err(pipeline::Error::Cancelled);
        }
        (self.read)(self.matrix, self.first + first, out, &mut [])?;
        self.observer.written(4 * out.len() as u64);
        Ok(())
    }
}

impl Stacked<'_> {
    /// Decomposes the matrix and writes its factors as tensors `slot` and the one behind it. Gives
    /// what they hold.
    pub(super) fn write(
        &self,
        ty: GgmlType,
        alpha: u32,
        weights: Option<&[f32]>,
        (writer, slot, stacked): (&gguf::Writer, usize, u64),
    ) -> Result<Fit, Error> {
        let matrix = self.matrix;
        let settings = low_rank::Settings { weights, ..low_rank::Settings::new(matrix.rank) };
        let found = low_rank::decompose(self, &settings);
        let found = found.map_err(|source| match source {
            low_rank::Error::Rows(error) => Error::Pipeline(error),
            source => Error::Decomposition { tensor: matrix.name.clone(), source },
        })?;
        let LowRank { rank, mut a, mut b, .. } = found;
        let scale = rank as f32 / alpha as f32;
        b.iter_mut().for_each(|x| *x *= scale);
        if matrix.is_flipped {
            a = transposed(&a, matrix.row_len as usize);
        }
        let mut parts = [a, b];
        if matrix.is_flipped {
            parts.swap(0, 1);
        }
        for ((i, part), (row_len, _)) in parts.iter_mut().enumerate().zip(matrix.shapes()) {
            let ty = type_for(ty, row_len);
            let size = ty.size_of(part.len() as u64).expect("rows are whole blocks");
            let mut blocks = vec![0; size as usize];
            quants::quantize_rows(ty, part, None, &mut blocks).expect("the header was laid out with this type");
            writer.write(slot + i, stacked * size, &blocks)?;
            // What is measured is what the file holds.
            quants::dequantize_row(ty, &blocks, part).expect("it was encoded as this type");
            if vector::check_finite(part).is_some() {
                return Err(Error::Range { tensor: matrix.name.clone(), ty });
            }
        }
        let [mut a, mut b] = parts;
        if matrix.is_flipped {
            std::mem::swap(&mut a, &mut b);
            a = transposed(&a, rank);
        }
        b.iter_mut().for_each(|x| *x /= scale);
        Ok(self.fit(rank, &a, &b)?)
    }

    /// Reads the matrix once more and measures what the factors hold of it.
    fn fit(&self, rank: usize, a: &[f32], b: &[f32]) -> Result<Fit, pipeline::Error> {
        let row_len = self.matrix.row_len as usize;
        let rows_of_task = rows::rows_of_task(row_len);
        let tasks = b.chunks(rows_of_task * rank).enumerate().collect();
        let parts = pool::try_map(tasks, |(task, b): (usize, &[f32])| {
            if self.observer.is_cancelled() {
                return Err(pipeline::Error::Cancelled);
            }
            let n = b.len() / rank * row_len;
            let (mut target, mut delta, mut held) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
            let first = self.first + (task * rows_of_task) as u64;
            (self.read)(self.matrix, first, &mut target, &mut delta)?;
            quants::vectorized(AddProduct { out: &mut held, left: b, right: a, rank });
            let mut fit = Fit::default();
            for ((t, d), h) in target.iter().zip(&delta).zip(&held) {
                let [t, d, h] = [t, d, h].map(|x| f64::from(*x));
                fit.delta2 += d * d;
                fit.target2 += t * t;
                fit.error2 += (t - h) * (t - h);
                fit.target_delta += t * d;
                fit.error_delta += (t - h) * d;
            }
            self.observer.written(4 * n as u64);
            Ok(fit)
        })?;
        let mut total = Fit::default();
        parts.iter().for_each(|fit| total.add(fit));
        Ok(total)
    }
}

/// A matrix in rows of `row_len`, turned over.
fn transposed(m: &[f32], row_len: usize) -> Vec<f32> {
    let n_rows = m.len().checked_div(row_len).unwrap_or(0);
    (0..row_len).flat_map(|column| (0..n_rows).map(move |row| m[row * row_len + column])).collect()
}
