//! Rounding a decomposition to whole numbers.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use super::triangular::Triangular;
use crate::patch::low_rank::{self, LowRank};
use crate::patch::product::AddProduct;
use crate::pool;
use crate::quants::{self, Gram};

/// A matrix as Σ_k scale_k · b_k · a_kᵀ.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Codes {
    /// d: one number for each direction.
    pub scales: Vec<f32>,
    /// A row of as many numbers as the matrix' own for each direction.
    pub a: Vec<i8>,
    /// A row with a number for each row of the matrix, for each direction.
    pub b: Vec<i8>,
}

/// The largest whole number.
const MOST: f64 = 127.0;

/// How much inputs count that τ does not know of, against the mean of those it knows; as in
/// `quants::feedback`. 0.3 is no worse.
const RIDGE: f64 = 0.1;

/// What is added to importances, against their mean.
const FLOOR: f64 = 0.25;

/// Directions are kept down to this length, in steps in each weight. On the bundled trio, from 0.4
/// to 0.8 bits per weight, 0.5 is no better and 1 is worse.
const SHORTEST: f64 = 0.7;

/// Steps of b in those of a. 0.75 and 1 are worse, 1.8 is no better.
const STEP_B: f64 = 1.3;

/// Numbers that one task rounds or multiplies; sums within it have one order.
const TASK_ROWS: usize = 32;

/// A direction that is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Direction {
    /// Which it is.
    k: usize,
    /// Its singular value.
    pub(super) sigma: f64,
    /// That times the root of its share in H: its length as errors are weighed.
    pub(super) weighted: f64,
    /// The step of b, in units in which b_k is `weighted` long.
    pub(super) step_b: f64,
}

/// H = share·AᵀA + ridge·diag(w), A being the rows that were found: how errors of a matrix count. w
/// are the importances of its inputs against their mean, or 1.
#[derive(Clone, Debug)]
pub struct Metric {
    share: f64,
    ridge: f64,
    weights: Option<Weighted>,
}

/// Inputs that do not all count the same.
#[derive(Clone, Debug)]
struct Weighted {
    /// w: of each input.
    inputs: Vec<f64>,
    /// ⟨v_k, w ∘ v_k⟩ of each direction.
    directions: Vec<f64>,
}

impl Metric {
    /// With 1 + 0.1 on the diagonal in the mean. What of τ is in no direction that was found may be
    /// in any other. `importance` is that of each input, in any unit.
    ///
    /// # Errors
    /// [`low_rank::Error::Weights`], [`low_rank::Error::Weight`].
    pub fn of<E>(low: &LowRank, row_len: usize, importance: Option<&[f32]>) -> Result<Self, low_rank::Error<E>> {
        let found = low.singular_values.iter().map(|s| s * s).sum::<f64>();
        let lost = (1.0 - found / low.norm2).clamp(0.0, 1.0);
        let inputs = importance.map(|weights| low_rank::relative_weights(weights, row_len)).transpose()?;
        // What one text did not feed another may.
        let floored = |weights: Vec<f64>| weights.into_iter().map(|w| (w + FLOOR) / (1.0 + FLOOR)).collect::<Vec<_>>();
        let inputs = inputs.map(floored);
        let weighted = |inputs: Vec<f64>| {
            let directions = low.a.chunks_exact(row_len.max(1)).map(|row| {
                let squares = || row.iter().map(|x| f64::from(*x).powi(2));
                let all = squares().sum::<f64>();
                if all > 0.0 { squares().zip(&inputs).map(|(x, w)| x * w).sum::<f64>() / all } else { 1.0 }
            });
            Weighted { directions: directions.collect(), inputs }
        };
        Ok(Metric { share: row_len as f64 / low.norm2, ridge: RIDGE + lost, weights: inputs.map(weighted) })
    }

    /// The square of the length under H of a unit vector along a direction.
    fn weigh(&self, k: usize, sigma: f64) -> f64 {
        let weight = self.weights.as_ref().map_or(1.0, |weights| weights.directions[k]);
        self.share * sigma * sigma + self.ridge * weight
    }

    /// Importances of the inputs, if they are not all 1.
    fn inputs(&self) -> Option<&[f64]> {
        self.weights.as_ref().map(|weights| &weights.inputs[..])
    }
}

/// The directions that are not too short for a step.
pub(super) fn directions(
    low: &LowRank,
    (row_len, n_rows): (usize, usize),
    metric: &Metric,
    step: f64,
) -> Vec<Direction> {
    let shortest = SHORTEST * step * (row_len.min(n_rows) as f64).sqrt();
    let weigh = |(k, &sigma): (usize, &f64)| Direction {
        k,
        sigma,
        weighted: sigma * metric.weigh(k, sigma).sqrt(),
        step_b: STEP_B * step,
    };
    low.singular_values.iter().enumerate().map(weigh).filter(|d| d.weighted > shortest).collect()
}

/// Rounds a decomposition of a matrix of `n_rows` rows of `row_len` weights. The same numbers for
/// any number of threads.
pub fn encode(low: &LowRank, (row_len, n_rows): (usize, usize), metric: &Metric, step: f64) -> Codes {
    let kept = directions(low, (row_len, n_rows), metric, step);
    if kept.is_empty() || row_len == 0 || n_rows == 0 {
        return Codes::default();
    }
    let mut a = Inputs::round(low, &kept, (row_len, metric), step);
    let kept: Vec<Direction> = a.retain(&kept);
    if kept.is_empty() {
        return Codes::default();
    }
    let Some(products) = Products::of(low, &a, &kept, metric) else { return Codes::default() };
    let b = products.outputs(low, n_rows);
    let steps: Vec<f64> = (0..kept.len())
        .map(|k| {
            let largest = b.iter().skip(k).step_by(kept.len()).fold(0.0, |most: f64, x| most.max(x.abs()));
            kept[k].step_b.max(largest / MOST)
        })
        .collect();
    let rows = products.round(&b, &steps);
    let mut codes = Codes { a: a.codes, ..Codes::default() };
    codes.scales = (0..kept.len()).map(|k| (a.steps[k] * steps[k] / kept[k].weighted) as f32).collect();
    codes.b = (0..kept.len()).flat_map(|k| rows.iter().skip(k).step_by(kept.len()).copied()).collect();
    codes.without_zeros(row_len, n_rows)
}

/// The rounded rows σ_k·v_k.
struct Inputs {
    row_len: usize,
    codes: Vec<i8>,
    steps: Vec<f64>,
}

/// The k-th row of `a` in the length of its singular value, and what the column of `b` is
/// multiplied with for a length of 1.
fn unscaled(low: &LowRank, k: usize) -> f64 {
    let row_len = low.a.len() / low.rank;
    let norm2: f64 = low.a[k * row_len..(k + 1) * row_len].iter().map(|x| f64::from(*x).powi(2)).sum();
    if norm2 > 0.0 { low.singular_values[k] / norm2.sqrt() } else { 0.0 }
}

impl Inputs {
    fn round(low: &LowRank, kept: &[Direction], (row_len, metric): (usize, &Metric), step: f64) -> Self {
        let row = |k: usize| {
            let factor = unscaled(low, k);
            low.a[k * row_len..(k + 1) * row_len].iter().map(move |x| (f64::from(*x) * factor) as f32)
        };
        let mut gram = Gram::new(row_len);
        (0..low.rank).for_each(|k| gram.add_row(&row(k).collect::<Vec<f32>>()));
        let feedback = gram.feedback_with(metric.inputs());
        let mut codes = vec![0; kept.len() * row_len];
        let steps = pool::map(codes.chunks_mut(row_len).zip(kept).collect(), |(codes, direction)| {
            let row: Vec<f32> = row(direction.k).collect();
            let largest = row.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
            let step = step.max(f64::from(largest) / MOST) as f32;
            feedback.round(&row, step, codes);
            f64::from(step)
        });
        Inputs { row_len, codes, steps }
    }

    /// Leaves out rows of zeros.
    fn retain(&mut self, kept: &[Direction]) -> Vec<Direction> {
        let is_some: Vec<bool> = self.codes.chunks_exact(self.row_len).map(|row| row.iter().any(|x| *x != 0)).collect();
        retain_rows(&mut self.codes, self.row_len, &is_some);
        let mut k = 0..;
        self.steps.retain(|_| k.next().is_some_and(|k| is_some[k]));
        kept.iter().zip(is_some).filter(|(_, is_some)| *is_some).map(|(d, _)| *d).collect()
    }

    /// Rows in f64, each divided by its weighted length, as columns of b are multiplied with it.
    fn values(&self, kept: &[Direction]) -> Vec<f64> {
        let rows = self.codes.chunks_exact(self.row_len).zip(&self.steps).zip(kept);
        rows.flat_map(|((row, step), d)| row.iter().map(move |x| f64::from(*x) * (step / d.weighted))).collect()
    }
}

fn retain_rows(rows: &mut Vec<i8>, row_len: usize, is_kept: &[bool]) {
    let mut n = 0;
    for (k, _) in is_kept.iter().enumerate().filter(|(_, is_kept)| **is_kept) {
        rows.copy_within(k * row_len..(k + 1) * row_len, n * row_len);
        n += 1;
    }
    rows.truncate(n * row_len);
}

/// What least squares under H is made of, for columns b in the order of the rounded rows â.
struct Products {
    n: usize,
    /// â·H·âᵀ
    factors: Triangular,
    /// u = Σ_r u_r·M_rk over all directions r that were found: the best columns b_k.
    best: Vec<f64>,
}

impl Products {
    fn of(low: &LowRank, a: &Inputs, kept: &[Direction], metric: &Metric) -> Option<Self> {
        let (row_len, n, rank) = (a.row_len, kept.len(), low.rank);
        let mut values = a.values(kept);
        let exact: Vec<f64> = (0..rank)
            .flat_map(|r| {
                let factor = unscaled(low, r);
                low.a[r * row_len..(r + 1) * row_len].iter().map(move |x| f64::from(*x) * factor)
            })
            .collect();
        let mut products = vec![0.0; n * rank];
        multiply_transposed(&values, &exact, row_len, &mut products);
        let mut h = vec![0.0; n * n];
        // The same products, with the inputs as important as they are.
        let weighted = metric.inputs().map(|inputs| {
            let plain = values.clone();
            let rows = values.chunks_exact_mut(row_len);
            rows.for_each(|row| row.iter_mut().zip(inputs).for_each(|(x, w)| *x *= w));
            multiply_transposed(&plain, &values, row_len, &mut h);
            let mut weighted = vec![0.0; n * rank];
            multiply_transposed(&values, &exact, row_len, &mut weighted);
            weighted
        });
        if weighted.is_none() {
            multiply_transposed(&values, &values, row_len, &mut h);
        }
        let mut known = vec![0.0; n * n];
        multiply_transposed(&products, &products, rank, &mut known);
        h.iter_mut().zip(known).for_each(|(h, known)| *h = metric.ridge * *h + metric.share * known);
        let factors = positive(h, n)?;

        let of_ridge = weighted.as_ref().unwrap_or(&products);
        let mut best = vec![0.0; rank * n];
        pool::for_each(best.chunks_mut(n).enumerate().collect(), |(r, row)| {
            let share = metric.share * low.singular_values[r].powi(2);
            let at = |k: usize| k * rank + r;
            let wanted = |k| share * products[at(k)] + metric.ridge * of_ridge[at(k)];
            row.iter_mut().enumerate().for_each(|(k, x)| *x = wanted(k));
            factors.solve(row);
        });
        Some(Products { n, factors, best })
    }

    /// The best b, a row for each row of the matrix.
    fn outputs(&self, low: &LowRank, n_rows: usize) -> Vec<f64> {
        let factors: Vec<f64> = (0..low.rank).map(|r| unscaled(low, r)).collect();
        let mut out = vec![0.0; n_rows * self.n];
        let tasks = out.chunks_mut(TASK_ROWS * self.n).zip(low.b.chunks(TASK_ROWS * low.rank));
        pool::for_each(tasks.collect(), |(out, b)| {
            let unit = |(x, f): (&f32, &f64)| if *f > 0.0 { f64::from(*x) / f } else { 0.0 };
            let b: Vec<f64> = b.chunks_exact(low.rank).flat_map(|row| row.iter().zip(&factors).map(unit)).collect();
            let n_rows = out.len() / self.n;
            let b = MatRef::from_row_major_slice(&b, n_rows, low.rank);
            let best = MatRef::from_row_major_slice(&self.best, low.rank, self.n);
            matmul(MatMut::from_row_major_slice_mut(out, n_rows, self.n), Accum::Replace, b, best, 1.0, Par::Seq);
        });
        out
    }

    /// Rounds rows, errors passed on from one direction to the next.
    fn round(&self, b: &[f64], steps: &[f64]) -> Vec<i8> {
        let mut codes = vec![0; b.len()];
        let rows = codes.chunks_mut(self.n).zip(b.chunks(self.n));
        pool::for_each(rows.collect(), |(codes, row)| {
            let mut moved = row.to_vec();
            for j in 0..self.n {
                let code = (moved[j] / steps[j]).round().clamp(-MOST, MOST);
                codes[j] = code as i8;
                let error = row[j] - code * steps[j];
                moved[j + 1..].iter_mut().zip(self.factors.passed_on(j)).for_each(|(w, u)| *w += error * u);
            }
        });
        codes
    }
}

/// The factors of H, with as little added to its diagonal as makes it positive definite: rounded
/// rows may depend on each other.
fn positive(h: Vec<f64>, n: usize) -> Option<Triangular> {
    let mean = (0..n).map(|j| h[j * n + j]).sum::<f64>() / n as f64;
    [0.0, 1e-9, 1e-6, 1e-3].into_iter().find_map(|part| {
        let mut h = h.clone();
        h.iter_mut().step_by(n + 1).for_each(|x| *x += part * mean);
        Triangular::of(h, n)
    })
}

/// out = left · rightᵀ, rows of `len` numbers.
fn multiply_transposed(left: &[f64], right: &[f64], len: usize, out: &mut [f64]) {
    let n = right.len() / len;
    let right = MatRef::from_row_major_slice(right, n, len).transpose();
    let tasks = out.chunks_mut(TASK_ROWS * n).zip(left.chunks(TASK_ROWS * len));
    pool::for_each(tasks.collect(), |(out, left)| {
        let rows = left.len() / len;
        let left = MatRef::from_row_major_slice(left, rows, len);
        matmul(MatMut::from_row_major_slice_mut(out, rows, n), Accum::Replace, left, right, 1.0, Par::Seq);
    });
}

impl Codes {
    /// How many directions there are.
    pub fn rank(&self) -> usize {
        self.scales.len()
    }

    fn without_zeros(mut self, row_len: usize, n_rows: usize) -> Self {
        let is_kept: Vec<bool> = self.b.chunks_exact(n_rows).map(|row| row.iter().any(|x| *x != 0)).collect();
        retain_rows(&mut self.a, row_len, &is_kept);
        retain_rows(&mut self.b, n_rows, &is_kept);
        let mut k = 0..;
        self.scales.retain(|_| k.next().is_some_and(|k| is_kept[k]));
        self
    }

    /// The rows of a, each times its scale.
    pub fn scaled_a(&self, row_len: usize) -> Vec<f32> {
        let rows = self.a.chunks_exact(row_len.max(1)).zip(&self.scales);
        rows.flat_map(|(row, scale)| row.iter().map(move |x| f32::from(*x) * scale)).collect()
    }

    /// Rows of the matrix, which has `n_rows`, from [`Codes::scaled_a`].
    ///
    /// # Panics
    /// If there are no such rows, or `out` has not the room of them.
    pub fn multiply(&self, a: &[f32], n_rows: usize, rows: Range<usize>, out: &mut [f32]) {
        let rank = self.rank();
        out.fill(0.0);
        if rank == 0 {
            return;
        }
        let column = |row: usize| (0..rank).map(move |k| f32::from(self.b[k * n_rows + row]));
        let b: Vec<f32> = rows.flat_map(column).collect();
        quants::vectorized(AddProduct { out, left: &b, right: a, rank });
    }
}
