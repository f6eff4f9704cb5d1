//! What is stored of each matrix, and how near to τ it is.

use std::io;

use super::decompose::Found;
use super::error::Error;
use super::extractor::Extractor;
use super::matrix::Matrix;
use crate::ggml::GgmlType;
use crate::patch::encode::{self, Codes};
use crate::patch::low_rank::LowRank;
use crate::patch::product::AddProduct;
use crate::patch::rows;
use crate::patch::spill::Spill;
use crate::pipeline;
use crate::pool;
use crate::quants;
use crate::vector::{Moments, Weights, check_finite};

/// What a reader has of a matrix.
pub(super) enum Stored {
    Codes(Codes),
    /// Rows of both factors.
    Factors {
        a: Vec<f32>,
        b: Vec<f32>,
        rank: usize,
    },
}

impl Extractor<'_> {
    /// The bytes of the tensors of a matrix, which come next in `encoded`, and what they are
    /// decoded to.
    pub(super) fn codes(
        &self,
        matrix: &Matrix<'_>,
        sizes: [u64; 3],
        encoded: &mut Spill,
    ) -> Result<(Vec<Vec<u8>>, Stored), Error> {
        let [rank, len_of_a, len_of_b] = sizes;
        if rank == 0 {
            return Ok((Vec::new(), Stored::Codes(Codes::default())));
        }
        let mut next = |n| encoded.next_bytes(n).map_err(|e| self.spill_error(e));
        let (scales, a, b) = (next(4 * rank)?, next(len_of_a)?, next(len_of_b)?);
        let decoded = |bytes: &[u8], row_len| {
            let codes = encode::decompress(bytes, rank as usize * row_len);
            codes.map_err(|e| self.spill_error(io::Error::new(io::ErrorKind::InvalidData, e)))
        };
        let codes = Codes {
            scales: scales.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            a: decoded(&a, matrix.row_len)?,
            b: decoded(&b, matrix.n_rows)?,
        };
        Ok((vec![scales, a, b], Stored::Codes(codes)))
    }

    /// Both factors in F16, by which their numbers are rounded.
    pub(super) fn factors(&self, found: &Found<'_>, spill: &mut Spill) -> Result<(Vec<Vec<u8>>, Stored), Error> {
        let LowRank { a, b, rank, .. } = self.unspill(found, spill)?;
        let mut parts = Vec::new();
        let mut halves = |mut factor: Vec<f32>| {
            let mut bytes = vec![0; factor.len() * 2];
            quants::quantize_row(GgmlType::F16, &factor, &mut bytes)
                .and_then(|()| quants::dequantize_row(GgmlType::F16, &bytes, &mut factor))
                .expect("F16 can be written and has no blocks");
            parts.push(bytes);
            match check_finite(&factor) {
                None => Ok(factor),
                Some(_) => Err(Error::Range { tensor: found.matrix.name.to_owned() }),
            }
        };
        let (a, b) = (halves(a)?, halves(b)?);
        Ok((parts, Stored::Factors { a, b, rank }))
    }

    /// Compares what is stored with τ.
    pub(super) fn measure(&self, matrix: &Matrix<'_>, stored: &Stored) -> Result<Moments, pipeline::Error> {
        let row_len = matrix.row_len;
        let rows_of_task = rows::rows_of_task(row_len);
        let firsts: Vec<usize> = (0..matrix.n_rows).step_by(rows_of_task).collect();
        let scaled = match stored {
            Stored::Codes(codes) => codes.scaled_a(row_len),
            Stored::Factors { .. } => Vec::new(),
        };
        let sums = pool::map(firsts, |first| -> Result<Moments, pipeline::Error> {
            self.check_cancelled()?;
            let rows = first..(first + rows_of_task).min(matrix.n_rows);
            self.observer.written(4 * (rows.len() * row_len) as u64);
            let sum = self.sums.rows(matrix.tensor, first as u64, rows.len() as u64)?;
            let mut got = vec![0.0; rows.len() * row_len];
            match stored {
                Stored::Codes(codes) => codes.multiply(&scaled, matrix.n_rows, rows, &mut got),
                Stored::Factors { a, b, rank } => {
                    let left = &b[rows.start * rank..rows.end * rank];
                    quants::vectorized(AddProduct { out: &mut got, left, right: a, rank: *rank });
                }
            }
            let mut moments = Moments::default();
            moments.add(&Weights { wanted: sum.delta(), ..sum.weights(&got) });
            Ok(moments)
        });
        let mut total = Moments::default();
        for sum in sums {
            total += sum?;
        }
        Ok(total)
    }
}
