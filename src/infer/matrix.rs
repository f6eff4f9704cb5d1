//! Matrices as they are stored, and multiplying activations with them.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use crate::ggml::GgmlType;
use crate::gguf::Mapped;
use crate::pool;
use crate::quants::{self, Activations};
use crate::vector::{Fold, Folding, Turn};

/// Multiplications that are worth another thread: some ten microseconds of work.
const TASK: usize = 1 << 17;

/// Rows that a thread multiplies with several tokens, at least: they are taken together while the
/// activations are near.
const TILE: usize = 16;

/// A matrix in the blocks of its type: `n_rows` outputs of `row_len` inputs each.
#[derive(Debug)]
pub(super) struct Matrix {
    ty: GgmlType,
    row_len: usize,
    n_rows: usize,
    row_size: usize,
    blocks: Mapped,
    /// What every product is multiplied by.
    scale: Option<f32>,
    /// Whether and how its rows are folded: by its name.
    folding: Option<(Arc<Folding>, String)>,
}

impl Matrix {
    /// `blocks` are those of `n_rows` rows of `row_len` weights; none if this type cannot be
    /// multiplied with.
    pub(super) fn new(ty: GgmlType, row_len: usize, n_rows: usize, blocks: Mapped) -> Option<Self> {
        if !quants::is_supported(ty) || n_rows == 0 || !blocks.len().is_multiple_of(n_rows) {
            return None;
        }
        let row_size = blocks.len() / n_rows;
        if row_size as u64 != ty.size_of(row_len as u64)? {
            return None;
        }
        Some(Matrix { ty, row_len, n_rows, row_size, blocks, scale: None, folding: None })
    }

    /// The matrix, multiplied by a number that lies beside it ([`crate::gguf::Model::scale_of`]).
    /// Rows that are decoded stay as they are.
    pub(super) fn scaled(self, scale: f32) -> Self {
        Matrix { scale: Some(scale), ..self }
    }

    /// The matrix, whose rows are folded as those of the tensor of this name.
    pub(super) fn folded(self, folding: Arc<Folding>, name: &str) -> Self {
        Matrix { folding: Some((folding, name.to_owned())), ..self }
    }

    /// How its rows are folded; none if they are not.
    fn fold(&self) -> Option<Fold<'_>> {
        let (folding, name) = self.folding.as_ref()?;
        folding.of(name, self.row_len as u64).ok().flatten()
    }

    /// Activations as the matrix wants them: turned as its rows are (`build_hadamard_input`,
    /// src/llama-graph.cpp).
    pub(super) fn turned<'a>(&self, x: &'a [f32]) -> Cow<'a, [f32]> {
        let Some(fold) = self.fold() else { return Cow::Borrowed(x) };
        let mut turned = x.to_vec();
        Turn::fold(fold).apply(0, &mut turned);
        Cow::Owned(turned)
    }

    /// Inputs of each output.
    pub(super) fn row_len(&self) -> usize {
        self.row_len
    }

    /// Its outputs.
    pub(super) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// One row, plain: the embedding of a token.
    pub(super) fn look_up(&self, row: usize, out: &mut [f32]) {
        self.decode_row(row, out);
        if let Some(fold) = self.fold() {
            Turn::unfold(fold).apply(0, out);
        }
    }

    /// Decodes one row as it is stored.
    fn decode_row(&self, row: usize, out: &mut [f32]) {
        let bytes = &self.blocks[row * self.row_size..][..self.row_size];
        // Type and lengths were checked when the matrix was made.
        let decoded = quants::dequantize_row(self.ty, bytes, out);
        debug_assert!(decoded.is_ok());
    }

    /// Whether both want the same activations.
    fn is_alike(&self, other: &Matrix) -> bool {
        (self.ty, self.fold()) == (other.ty, other.fold())
    }

    /// Activations as rows of the matrix want them.
    fn prepare<'a>(&self, x: &'a [f32]) -> Activations<'a> {
        quants::round_activations(self.ty, x)
    }

    /// Multiplies rows of the matrix with all rows of activations; `out` holds a slice for each of
    /// them, with a place for each row of the matrix.
    fn multiply_rows(&self, x: &Activations<'_>, rows: Range<usize>, out: &mut [&mut [f32]]) {
        let bytes = &self.blocks[rows.start * self.row_size..rows.end * self.row_size];
        quants::multiply(self.ty, self.row_len, bytes, x, out);
    }

    /// How many rows a thread takes at once.
    fn rows_of_task(&self, n_tokens: usize) -> usize {
        let rows = TASK / (self.row_len * n_tokens);
        if n_tokens == 1 { rows.max(1) } else { rows.next_multiple_of(TILE).max(TILE) }
    }
}

/// The dot product of two rows of f32.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    quants::dot_floats(a, b)
}

/// Rows of activations, and the matrix that they are multiplied with.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub(super) matrix: &'a Matrix,
    /// Whole rows of [`Matrix::row_len`].
    pub(super) x: &'a [f32],
}

/// Multiplies rows of activations with several matrices of the same input: for each matrix
/// `n_tokens × n_rows`, a token's outputs together.
///
/// # Panics
/// If the activations are no whole rows of the matrices.
pub(super) fn multiply(matrices: &[&Matrix], x: &[f32]) -> Vec<Vec<f32>> {
    multiply_each(&matrices.iter().map(|&matrix| Product { matrix, x }).collect::<Vec<_>>())
}

/// Computes several products, which the threads share out among them however many they are: for
/// each `n_tokens × n_rows`, a token's outputs together. What a row gives does not depend on the
/// rows beside it. Activations that are not all finite give outputs that are no numbers.
///
/// # Panics
/// If the activations are no whole rows of their matrix.
pub(super) fn multiply_each(products: &[Product<'_>]) -> Vec<Vec<f32>> {
    let is_whole = |p: &Product<'_>| p.x.len().is_multiple_of(p.matrix.row_len);
    assert!(products.iter().all(is_whole), "activations of another width");
    let n_tokens = |p: &Product<'_>| p.x.len() / p.matrix.row_len;
    // Which of those before it has the same activations.
    let same = |a: &Product<'_>, b: &Product<'_>| std::ptr::eq(a.x, b.x) && a.matrix.is_alike(b.matrix);
    let first: Vec<usize> = (products.iter().enumerate())
        .map(|(i, product)| products[..i].iter().position(|other| same(product, other)).unwrap_or(i))
        .collect();
    let turned: Vec<Cow<'_, [f32]>> = (products.iter().enumerate())
        .map(|(i, p)| if first[i] == i { p.matrix.turned(p.x) } else { Cow::Borrowed(&[][..]) })
        .collect();
    let prepared: Vec<Option<Activations<'_>>> = (products.iter().zip(&turned).enumerate())
        .map(|(i, (p, x))| (first[i] == i).then(|| p.matrix.prepare(x)))
        .collect();
    let mut outputs: Vec<Vec<f32>> = products.iter().map(|p| vec![0.0; p.matrix.n_rows * n_tokens(p)]).collect();
    let mut tasks = Vec::new();
    for ((product, output), first) in products.iter().zip(&mut outputs).zip(first) {
        let (matrix, n_tokens) = (product.matrix, n_tokens(product));
        let Some(x) = prepared[first].as_ref().filter(|_| n_tokens > 0) else { continue };
        let rows = matrix.rows_of_task(n_tokens);
        let n_tasks = matrix.n_rows.div_ceil(rows);
        let mut slices: Vec<Vec<&mut [f32]>> = (0..n_tasks).map(|_| Vec::with_capacity(n_tokens)).collect();
        for row in output.chunks_mut(matrix.n_rows) {
            slices.iter_mut().zip(row.chunks_mut(rows)).for_each(|(slices, slice)| slices.push(slice));
        }
        for (i, out) in slices.into_iter().enumerate() {
            tasks.push((matrix, x, i * rows..matrix.n_rows.min((i + 1) * rows), out));
        }
    }
    pool::for_each(tasks, |(matrix, x, rows, mut out)| matrix.multiply_rows(x, rows, &mut out));
    for (product, output) in products.iter().zip(&mut outputs) {
        product.finish(output);
    }
    outputs
}

impl Product<'_> {
    /// Scales a product, and marks what is no number.
    fn finish(&self, output: &mut [f32]) {
        if let Some(scale) = self.matrix.scale {
            output.iter_mut().for_each(|v| *v *= scale);
        }
        // Rounded to 8 bits, what is no number may become a zero.
        for (row, out) in self.x.chunks_exact(self.matrix.row_len).zip(output.chunks_exact_mut(self.matrix.n_rows)) {
            if !row.iter().all(|v| v.is_finite()) {
                out.fill(f32::NAN);
            }
        }
    }
}
