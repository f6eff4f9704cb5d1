//! The best approximation of a matrix by one of low rank, where the matrix is only read by rows.
//!
//! A randomised range finder (Halko, Martinsson, Tropp, SIAM Review 53, 2011, algorithms 4.4 and
//! 5.1, on the side of the rows' inputs): from random signs Ω, each pass over the matrix T makes `V
//! = orth(Tᵀ T V)`, and the last one `Y = T V`; the best approximation within V comes from the
//! small matrix `Yᵀ Y`. Each pass reads a row once, so T may be many times larger than memory:
//!
//! ```text
//! V = signs [in × k]                                   k = rank + oversampling
//! twice:   Z = Σ over rows t of T:  tᵀ (t V)           one pass
//!          V = orth(Z)
//! Y = T V                                              one pass, [out × k]
//! Yᵀ Y = W σ² Wᵀ                                       k × k, in f64
//! lora_b = Y W / σ,  lora_a = σ (V W)ᵀ                 the first `rank` columns of W
//! ```
//!
//! A matrix with no more than k rows or columns is decomposed exactly. The form `Tᵀ T` squares what
//! lies between the largest and the smallest singular value, so in f32 those below 3·10⁻⁴ of the
//! largest are not told apart; differences of models that were rounded to 16 bits end far above
//! that.
//!
//! Sums are taken in fixed blocks: the same bits for any number of threads. The products are by
//! faer, whose order of adding up depends on the processor's vector instructions, so another
//! processor may give other last bits.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par, Side};
use rand::RngCore as _;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use crate::pool;

/// A matrix that is read by rows, from any thread.
pub trait Rows: Sync {
    /// Why a row could not be had.
    type Error: Send;

    /// Its rows: outputs of the weight matrix.
    fn n_rows(&self) -> u64;

    /// Numbers in a row: inputs of the weight matrix.
    fn row_len(&self) -> usize;

    /// Fills `out`, whole rows, beginning with row `first`. Read several times; the same each time.
    ///
    /// # Errors
    /// Whatever the source reports.
    fn read(&self, first: u64, out: &mut [f32]) -> Result<(), Self::Error>;
}

/// Rows in memory.
impl Rows for (&[f32], usize) {
    type Error = std::convert::Infallible;

    fn n_rows(&self) -> u64 {
        self.0.len().checked_div(self.1).unwrap_or(0) as u64
    }

    fn row_len(&self) -> usize {
        self.1
    }

    fn read(&self, first: u64, out: &mut [f32]) -> Result<(), Self::Error> {
        let start = first as usize * self.1;
        out.copy_from_slice(&self.0[start..start + out.len()]);
        Ok(())
    }
}

/// Why there is no decomposition.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error<E> {
    /// A row could not be had.
    #[error(transparent)]
    Rows(E),
    /// A number that is none.
    #[error("row {row}, column {column} is {value}")]
    NotFinite {
        /// The row.
        row: u64,
        /// The place in it.
        column: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// An importance that is none.
    #[error("the weight of column {column} is {value}; it must be finite and not negative")]
    Weight {
        /// The column.
        column: usize,
        /// Its weight.
        value: f32,
    },
    /// Importances for another matrix.
    #[error("there are {found} weights for {expected} columns")]
    Weights {
        /// Columns of the matrix.
        expected: usize,
        /// Weights given.
        found: usize,
    },
    /// Numbers whose squares, added up, are beyond f32.
    #[error("the matrix is too large in size for f32 (its norm is {norm:e})")]
    Overflow {
        /// The root of the sum of all squares.
        norm: f64,
    },
    /// More numbers than memory has addresses for.
    #[error("{n_rows} rows of {row_len} at rank {rank} do not fit in memory")]
    Size {
        /// Rows of the matrix.
        n_rows: u64,
        /// Columns.
        row_len: usize,
        /// The rank asked for.
        rank: usize,
    },
}

/// How a matrix is decomposed.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// The rank of the result, or that of the matrix if that is less.
    pub rank: usize,
    /// Of the random signs.
    pub seed: u64,
    /// An importance of each column (input): what is least is then `Σ importance · error²`, a
    /// column without importance counting 10⁻⁶ of the mean. The factors are those of the matrix
    /// itself all the same.
    pub weights: Option<&'a [f32]>,
}

impl Settings<'_> {
    /// Without importances.
    pub fn new(rank: usize) -> Self {
        Settings { rank, seed: 0, weights: None }
    }
}

/// `lora_b · lora_a`, about a matrix.
#[derive(Clone, PartialEq, Debug)]
pub struct LowRank {
    /// Rows of `a`, numbers in a row of `b`.
    pub rank: usize,
    /// The first factor, [in, rank] in ggml's order: `rank` rows of as many numbers as the matrix'
    /// own. They hold the singular values.
    pub a: Vec<f32>,
    /// The second factor, [rank, out] in ggml's order: a row of `rank` numbers for each row of the
    /// matrix. Columns have one length, a power of two that gives both factors numbers of about one
    /// size; the first so many are the factor of a lower rank, too.
    pub b: Vec<f32>,
    /// The `rank` largest singular values, of the matrix with its columns weighted if there are
    /// weights, falling.
    pub singular_values: Vec<f64>,
    /// Σ of all squares of the matrix.
    pub norm2: f64,
    /// The same, weighted; equal to `norm2` without weights.
    pub weighted_norm2: f64,
}

impl LowRank {
    /// The share of the (weighted) squares that is in the approximation, 0 to 1; 1 for a zero
    /// matrix.
    pub fn energy(&self) -> f64 {
        energy(&self.singular_values, self.weighted_norm2)
    }

    /// The least rank whose share of the squares is `share`; all if there is none.
    pub fn rank_for(&self, share: f64) -> usize {
        let reaches = |rank: &usize| energy(&self.singular_values[..*rank], self.weighted_norm2) >= share;
        (0..self.rank).find(reaches).unwrap_or(self.rank)
    }

    /// The approximation of a lower rank, which is the best one, too.
    #[must_use]
    pub fn truncated(mut self, rank: usize) -> Self {
        if rank < self.rank {
            let row_len = self.a.len() / self.rank;
            self.a.truncate(rank * row_len);
            keep_columns(&mut self.b, self.rank, rank);
            self.singular_values.truncate(rank);
            self.rank = rank;
        }
        self
    }
}

fn energy(singular_values: &[f64], norm2: f64) -> f64 {
    if norm2 == 0.0 { 1.0 } else { (singular_values.iter().map(|s| s * s).sum::<f64>() / norm2).min(1.0) }
}

/// Passes of `V = orth(Tᵀ T V)`. On the bundled trio's vectors, and matrices of 1000 × 800 whose
/// singular values fall as j⁰, j^-½ and j⁻¹, two passes with this oversampling give at most 1.01 of
/// the least error at ranks 8 to 64; one gives 1.15.
const N_POWER_PASSES: u64 = 2;

/// How often a row is read at most.
pub const N_PASSES: u64 = N_POWER_PASSES + 1;

/// Further columns of V; see [`N_POWER_PASSES`].
fn oversampling(rank: usize) -> usize {
    8 + rank / 2
}

/// Numbers of T in memory, and tasks that they are computed on in.
const BLOCK: usize = 1 << 22;
const TASKS: usize = 16;

/// Columns of T that one task adds up for.
const TILE: usize = 64;

/// Bytes that [`decompose`] takes at most: both factors with oversampling, a block of rows, and the
/// small matrices.
pub fn needed_bytes(n_rows: u64, row_len: usize, rank: usize) -> Option<u64> {
    let k = n_columns(n_rows, row_len, rank) as u64;
    let row_len = row_len as u64;
    let block_rows = block_rows(row_len).min(n_rows);
    // V and Z, or V and Y; then lora_a turned over. A block of rows, and its product with V.
    let factors = n_rows.checked_add(row_len)?.max(row_len.checked_mul(2)?).checked_add(row_len)?.checked_mul(k)?;
    let block = block_rows.checked_mul(row_len.checked_add(k)?)?;
    // Yᵀ Y, its eigenvectors, and what finding them takes.
    let spectrum = k.checked_mul(k)?.checked_mul(12)?.checked_add(2 * GRAM_ROWS as u64 * k)?;
    factors.checked_add(block)?.checked_add(spectrum)?.checked_mul(4)
}

fn n_columns(n_rows: u64, row_len: usize, rank: usize) -> usize {
    let least = usize::try_from(n_rows).unwrap_or(usize::MAX).min(row_len);
    rank.min(least).saturating_add(oversampling(rank.min(least))).min(least)
}

fn block_rows(row_len: u64) -> u64 {
    let rows = BLOCK as u64 / row_len.max(1);
    rows.next_multiple_of(TASKS as u64).max(TASKS as u64)
}

/// The approximation of a matrix with the least Σ error² among those of a rank.
///
/// Takes (in + out)·(1.5·rank + 8) numbers of f32 and a block of rows ([`needed_bytes`]); runs on
/// the threads of the pool that it is called in ([`crate::pool`]).
///
/// # Errors
/// [`Error::Rows`], [`Error::NotFinite`], [`Error::Weight`], [`Error::Weights`],
/// [`Error::Overflow`], [`Error::Size`].
pub fn decompose<R: Rows>(rows: &R, settings: &Settings<'_>) -> Result<LowRank, Error<R::Error>> {
    let (n_rows, row_len) = (rows.n_rows(), rows.row_len());
    let k = n_columns(n_rows, row_len, settings.rank);
    let rank = settings.rank.min(k);
    let fits = needed_bytes(n_rows, row_len, settings.rank).is_some_and(|bytes| isize::try_from(bytes).is_ok());
    if !fits {
        return Err(Error::Size { n_rows, row_len, rank: settings.rank });
    }
    let scales = settings.weights.map(|weights| column_scales(weights, row_len)).transpose()?;
    let mut matrix = Matrix { rows, scales: scales.as_deref(), norm2: 0.0, weighted_norm2: 0.0 };

    let mut v = match k {
        _ if k == row_len => identity(k),
        _ if k as u64 == n_rows => {
            // All rows, as the columns of V: what they span is known, not sought.
            let mut v = vec![0.0; row_len * k];
            matrix.visit(|first, block, _| {
                for (row, weights) in block.chunks_exact(row_len).enumerate() {
                    weights.iter().enumerate().for_each(|(i, w)| v[i * k + first as usize + row] = *w);
                }
            })?;
            orthonormalize(&mut v, k);
            v
        }
        _ => {
            let mut v = signs(row_len * k, settings.seed);
            let mut z = vec![0.0; row_len * k];
            for _ in 0..N_POWER_PASSES {
                z.fill(0.0);
                matrix.visit_products(&v, k, |_, block, y| add_products(block, row_len, y, k, &mut z))?;
                orthonormalize(&mut z, k);
                std::mem::swap(&mut v, &mut z);
            }
            v
        }
    };
    let mut y = vec![0.0; n_rows as usize * k];
    matrix.visit_products(&v, k, |first, _, product| {
        let first = first as usize * k;
        y[first..first + product.len()].copy_from_slice(product);
    })?;
    let Matrix { norm2, weighted_norm2, .. } = matrix;
    if v.iter().chain(&y).any(|x| !x.is_finite()) {
        return Err(Error::Overflow { norm: norm2.sqrt() });
    }

    let spectrum = Spectrum::of(&y, k);
    let singular_values = spectrum.sigma[..rank].to_vec();
    let size = common_size(&singular_values, n_rows, row_len);
    rotate(&mut y, k, rank, &spectrum.scaled(|sigma| size * inverse(sigma)));
    rotate(&mut v, k, rank, &spectrum.scaled(|sigma| sigma / size));
    let mut a = vec![0.0; row_len * rank];
    for (column, row) in v.chunks_exact(rank.max(1)).enumerate() {
        let scale = scales.as_ref().map_or(1.0, |scales| scales[column]);
        row.iter().enumerate().for_each(|(j, x)| a[j * row_len + column] = x / scale);
    }
    Ok(LowRank { rank, a, b: y, singular_values, norm2, weighted_norm2 })
}

/// A power of two for the columns of `b`, with which the numbers of both factors are about as
/// large: F16 has the range for neither alone.
fn common_size(sigma: &[f64], n_rows: u64, row_len: usize) -> f64 {
    let rms = (sigma.iter().map(|s| s * s).sum::<f64>() / sigma.len().max(1) as f64).sqrt();
    let size = (rms * (n_rows as f64 / row_len as f64).sqrt()).sqrt();
    if size > 0.0 && size.is_finite() { size.log2().round().exp2() } else { 1.0 }
}

/// √importance of each column, none of them 0.
fn column_scales<E>(weights: &[f32], row_len: usize) -> Result<Vec<f32>, Error<E>> {
    Ok(relative_weights(weights, row_len)?.into_iter().map(|w| w.sqrt() as f32).collect())
}

/// The importance of each column against the mean, since an importance matrix may be in any unit;
/// none of them is 0.
///
/// # Errors
/// [`Error::Weight`], [`Error::Weights`].
pub(super) fn relative_weights<E>(weights: &[f32], row_len: usize) -> Result<Vec<f64>, Error<E>> {
    if weights.len() != row_len {
        return Err(Error::Weights { expected: row_len, found: weights.len() });
    }
    if let Some(column) = weights.iter().position(|w| !(w.is_finite() && *w >= 0.0)) {
        return Err(Error::Weight { column, value: weights[column] });
    }
    let mean = weights.iter().map(|w| f64::from(*w)).sum::<f64>() / weights.len().max(1) as f64;
    if mean == 0.0 {
        return Ok(vec![1.0; row_len]);
    }
    Ok(weights.iter().map(|w| (f64::from(*w) / mean).max(1e-6)).collect())
}

/// The matrix with its columns scaled, and what was added up of it.
struct Matrix<'a, R> {
    rows: &'a R,
    scales: Option<&'a [f32]>,
    norm2: f64,
    weighted_norm2: f64,
}

impl<R: Rows> Matrix<'_, R> {
    /// Shows every block of rows with its first row and an empty buffer.
    fn visit(&mut self, mut see: impl FnMut(u64, &[f32], &[f32])) -> Result<(), Error<R::Error>> {
        self.visit_products(&[], 0, &mut see)
    }

    /// Shows every block of rows T with its first row and `T · v`.
    fn visit_products(
        &mut self,
        v: &[f32],
        k: usize,
        mut see: impl FnMut(u64, &[f32], &[f32]),
    ) -> Result<(), Error<R::Error>> {
        let (n_rows, row_len) = (self.rows.n_rows(), self.rows.row_len());
        (self.norm2, self.weighted_norm2) = (0.0, 0.0);
        if row_len == 0 {
            return Ok(());
        }
        let block_rows = block_rows(row_len as u64).min(n_rows) as usize;
        let task_rows = block_rows.div_ceil(TASKS).max(1);
        let mut block = vec![0.0; block_rows * row_len];
        let mut product = vec![0.0; block_rows * k];
        for first in (0..n_rows).step_by(block_rows.max(1)) {
            let n = (block_rows as u64).min(n_rows - first) as usize;
            let (block, product) = (&mut block[..n * row_len], &mut product[..n * k]);
            let matrix = &*self;
            let tasks = block.chunks_mut(task_rows * row_len).enumerate();
            let load = |i: usize, rows: &mut [f32]| matrix.load(first + (i * task_rows) as u64, rows);
            let norms: Vec<_> = match k {
                0 => pool::map(tasks.collect(), |(i, rows)| load(i, rows)),
                _ => pool::map(tasks.zip(product.chunks_mut(task_rows * k)).collect(), |((i, rows), product)| {
                    let norms = load(i, rows)?;
                    let n = rows.len() / row_len;
                    let t = MatRef::from_row_major_slice(&*rows, n, row_len);
                    let v = MatRef::from_row_major_slice(v, row_len, k);
                    let product = MatMut::from_row_major_slice_mut(product, n, k);
                    matmul(product, Accum::Replace, t, v, 1.0, Par::Seq);
                    Ok(norms)
                }),
            };
            for norms in norms {
                let (norm2, weighted) = norms?;
                self.norm2 += norm2;
                self.weighted_norm2 += weighted;
            }
            see(first, block, product);
        }
        Ok(())
    }

    /// Reads rows and scales them. Gives Σ of their squares, before and after.
    fn load(&self, first: u64, rows: &mut [f32]) -> Result<(f64, f64), Error<R::Error>> {
        self.rows.read(first, rows).map_err(Error::Rows)?;
        let row_len = self.rows.row_len();
        if let Some(i) = rows.iter().position(|x| !x.is_finite()) {
            let (row, column) = (first + (i / row_len) as u64, i % row_len);
            return Err(Error::NotFinite { row, column, value: rows[i] });
        }
        let sum = |rows: &[f32]| rows.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
        let norm2 = sum(rows);
        let Some(scales) = self.scales else { return Ok((norm2, norm2)) };
        rows.chunks_exact_mut(row_len).for_each(|row| row.iter_mut().zip(scales).for_each(|(x, s)| *x *= s));
        Ok((norm2, sum(rows)))
    }
}

/// `z += blockᵀ · y`, each part of `z` in the order of the rows.
fn add_products(block: &[f32], row_len: usize, y: &[f32], k: usize, z: &mut [f32]) {
    let n = block.len() / row_len;
    let t = MatRef::from_row_major_slice(block, n, row_len);
    let y = MatRef::from_row_major_slice(y, n, k);
    pool::for_each(z.chunks_mut(TILE * k).enumerate().collect(), |(i, z)| {
        let n_columns = z.len() / k;
        let t = t.submatrix(0, i * TILE, n, n_columns).transpose();
        matmul(MatMut::from_row_major_slice_mut(z, n_columns, k), Accum::Add, t, y, 1.0, Par::Seq);
    });
}

/// n signs.
fn signs(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut signs = Vec::with_capacity(n);
    while signs.len() < n {
        let bits = rng.next_u64();
        let left = (n - signs.len()).min(64);
        signs.extend((0..left).map(|i| if bits >> i & 1 == 0 { 1.0 } else { -1.0 }));
    }
    signs
}

fn identity(k: usize) -> Vec<f32> {
    let mut v = vec![0.0; k * k];
    v.iter_mut().step_by(k + 1).for_each(|x| *x = 1.0);
    v
}

/// Makes the columns of a matrix of rows of `k` orthonormal; what they span already without one is
/// 0. Twice, because the first time leaves in weak directions what the strong ones are rounded by.
fn orthonormalize(m: &mut Vec<f32>, k: usize) {
    for _ in 0..2 {
        let w = Spectrum::of(m, k).scaled(inverse);
        rotate(m, k, k, &w);
    }
}

fn inverse(sigma: f64) -> f64 {
    if sigma == 0.0 { 0.0 } else { sigma.recip() }
}

/// Singular values of a matrix, falling, and its right singular vectors, as columns of k × k rows.
struct Spectrum {
    sigma: Vec<f64>,
    w: Vec<f64>,
}

impl Spectrum {
    /// Of a matrix in rows of `k`, from the eigenvalues of `mᵀ m`. Those below 10⁻¹⁴ of the largest
    /// are rounding errors: 0. Everything is NaN if a number was, or too large.
    fn of(m: &[f32], k: usize) -> Self {
        if k == 0 {
            return Spectrum { sigma: Vec::new(), w: Vec::new() };
        }
        let gram = gram(m, k);
        let is_finite = gram.iter().all(|g| g.is_finite());
        let eigen =
            MatRef::from_row_major_slice(&gram, k, k).self_adjoint_eigen(Side::Lower).ok().filter(|_| is_finite);
        let Some(eigen) = eigen else { return Spectrum { sigma: vec![f64::NAN; k], w: vec![f64::NAN; k * k] } };
        // They come in rising order.
        let values: Vec<f64> = (0..k).rev().map(|i| eigen.S()[i]).collect();
        let least = values.first().map_or(0.0, |largest| largest * 1e-14);
        let sigma = values.into_iter().map(|l| if l <= least { 0.0 } else { l.sqrt() }).collect();
        let w = (0..k).flat_map(|i| (0..k).rev().map(move |j| (i, j))).map(|(i, j)| eigen.U()[(i, j)]).collect();
        Spectrum { sigma, w }
    }

    /// The singular vectors, each times a factor of its own.
    fn scaled(&self, factors: impl Fn(f64) -> f64) -> Vec<f32> {
        let factors: Vec<f64> = self.sigma.iter().map(|s| factors(*s)).collect();
        let rows = self.w.chunks_exact(factors.len().max(1));
        rows.flat_map(|row| row.iter().zip(&factors).map(|(w, f)| (w * f) as f32)).collect()
    }
}

/// Rows that are added up together.
const GRAM_ROWS: usize = 512;

/// `mᵀ m` of a matrix in rows of `k`, in f64.
fn gram(m: &[f32], k: usize) -> Vec<f64> {
    let mut gram = vec![0.0; k * k];
    for rows in m.chunks((GRAM_ROWS * k).max(1)) {
        let rows: Vec<f64> = rows.iter().map(|x| f64::from(*x)).collect();
        let n = rows.len() / k;
        let t = MatRef::from_row_major_slice(&rows, n, k);
        // The lower half.
        pool::for_each(gram.chunks_mut(TILE * k).enumerate().collect(), |(i, out)| {
            let n_out = out.len() / k;
            let width = i * TILE + n_out;
            let out = MatMut::from_row_major_slice_mut(out, n_out, k).subcols_mut(0, width);
            let left = t.subcols(i * TILE, n_out).transpose();
            matmul(out, Accum::Add, left, t.subcols(0, width), 1.0, Par::Seq);
        });
    }
    for i in 0..k {
        (0..i).for_each(|j| gram[j * k + i] = gram[i * k + j]);
    }
    gram
}

/// `m · w` in place, where `m` has rows of `k` and `w` is k × k; the first `n` columns of the
/// result.
fn rotate(m: &mut Vec<f32>, k: usize, n: usize, w: &[f32]) {
    pool::for_each(m.chunks_mut((GRAM_ROWS * k).max(1)).collect(), |rows| {
        let n_rows = rows.len() / k;
        let mut product = vec![0.0; n_rows * k];
        let from = MatRef::from_row_major_slice(&*rows, n_rows, k);
        let w = MatRef::from_row_major_slice(w, k, k);
        matmul(MatMut::from_row_major_slice_mut(&mut product, n_rows, k), Accum::Replace, from, w, 1.0, Par::Seq);
        rows.copy_from_slice(&product);
    });
    keep_columns(m, k, n);
}

/// Cuts rows of `k` to their first `n`.
fn keep_columns(m: &mut Vec<f32>, k: usize, n: usize) {
    let n_rows = m.len().checked_div(k).unwrap_or(0);
    (1..n_rows).for_each(|row| m.copy_within(row * k..row * k + n, row * n));
    m.truncate(n_rows * n);
}
