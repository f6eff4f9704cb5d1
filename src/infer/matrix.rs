//! Matrices as they are stored, and multiplying activations with them.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use crate::ggml::GgmlType;
use crate::gguf::Mapped;
use crate::pool;
use crate::quants::{self, Block8};
use crate::vector::{Fold, Folding, Turn};
use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4K, BlockQ5K, BlockQ6K, BlockQ8_0, BlockQ8K, GgmlType as Stored,
};

/// Multiplications that are worth another thread: some ten microseconds of work.
const TASK: usize = 1 << 17;

/// A matrix in the blocks of its type: `n_rows` outputs of `row_len` inputs each.
#[derive(Debug)]
pub(super) struct Matrix {
    ty: GgmlType,
    row_len: usize,
    n_rows: usize,
    row_size: usize,
    blocks: Mapped,
    kernel: DotProducts,
    /// What every product is multiplied by.
    scale: Option<f32>,
    /// Whether and how its rows are folded: by its name.
    folding: Option<(Arc<Folding>, String)>,
}

/// What multiplies a stored row with activations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DotProducts {
    /// candle's dot product on blocks where they lie.
    Candle,
    /// The codec's own dot product.
    Codec,
    /// The row is decoded, then multiplied in f32.
    Decoded,
}

/// Rows of activations as a kernel wants them: each row rounded as ggml rounds it for the type of
/// the matrix (`vec_dot_type`, ggml-cpu/ggml-cpu.c).
enum Activations<'a> {
    F32(&'a [f32]),
    /// Rounded to the halves of the matrix.
    Halves(Vec<f32>),
    Q8_0(Vec<BlockQ8_0>),
    Q8K(Vec<BlockQ8K>),
    Block8(Vec<Block8>),
}

impl Matrix {
    /// `blocks` are those of `n_rows` rows of `row_len` weights; none if this type cannot be
    /// multiplied with.
    pub(super) fn new(ty: GgmlType, row_len: usize, n_rows: usize, blocks: Mapped) -> Option<Self> {
        use GgmlType::*;
        if !quants::is_supported(ty) || n_rows == 0 || !blocks.len().is_multiple_of(n_rows) {
            return None;
        }
        let row_size = blocks.len() / n_rows;
        if row_size as u64 != ty.size_of(row_len as u64)? {
            return None;
        }
        // Blocks of halves and floats: the container may align tensors to fewer bytes.
        let is_aligned = (blocks.as_ptr() as usize).is_multiple_of(4);
        let kernel = match ty {
            _ if quants::has_dot(ty) || quants::has_dot_halves(ty) => DotProducts::Codec,
            F32 | Q4_0 | Q8_0 | Q2_K | Q3_K | Q4_K | Q5_K | Q6_K if is_aligned && cfg!(target_endian = "little") => {
                DotProducts::Candle
            }
            _ => DotProducts::Decoded,
        };
        Some(Matrix { ty, row_len, n_rows, row_size, blocks, kernel, scale: None, folding: None })
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
        (self.ty, self.kernel, self.fold()) == (other.ty, other.kernel, other.fold())
    }

    fn prepare<'a>(&self, x: &'a [f32]) -> Activations<'a> {
        match (self.kernel, self.ty) {
            (DotProducts::Codec, ty) if quants::has_dot_halves(ty) => {
                let mut rounded = x.to_vec();
                quants::round_activations(ty, &mut rounded);
                Activations::Halves(rounded)
            }
            (DotProducts::Codec, _) => {
                let mut blocks = Vec::new();
                x.chunks_exact(self.row_len).for_each(|row| quants::quantize_activations(row, &mut blocks));
                Activations::Block8(blocks)
            }
            (DotProducts::Decoded, _) | (_, GgmlType::F32) => Activations::F32(x),
            (_, GgmlType::Q4_0 | GgmlType::Q8_0) => Activations::Q8_0(round_rows(x, self.row_len)),
            _ => Activations::Q8K(round_rows(x, self.row_len)),
        }
    }

    /// Multiplies rows of the matrix with all rows of activations: `out` is `rows.len() ×
    /// n_tokens`, tokens first.
    fn multiply_rows(&self, x: &Activations<'_>, n_tokens: usize, rows: Range<usize>, out: &mut [f32]) {
        use Activations as A;
        let bytes = &self.blocks[rows.start * self.row_size..rows.end * self.row_size];
        let n = self.row_len;
        match (self.ty, x) {
            (GgmlType::F32, A::F32(x)) if self.kernel == DotProducts::Candle => dots::<f32>(bytes, n, x, n_tokens, out),
            (GgmlType::Q4_0, A::Q8_0(x)) => dots::<BlockQ4_0>(bytes, n, x, n_tokens, out),
            (GgmlType::Q8_0, A::Q8_0(x)) => dots::<BlockQ8_0>(bytes, n, x, n_tokens, out),
            (GgmlType::Q2_K, A::Q8K(x)) => dots::<BlockQ2K>(bytes, n, x, n_tokens, out),
            (GgmlType::Q3_K, A::Q8K(x)) => dots::<BlockQ3K>(bytes, n, x, n_tokens, out),
            (GgmlType::Q4_K, A::Q8K(x)) => dots::<BlockQ4K>(bytes, n, x, n_tokens, out),
            (GgmlType::Q5_K, A::Q8K(x)) => dots::<BlockQ5K>(bytes, n, x, n_tokens, out),
            (GgmlType::Q6_K, A::Q8K(x)) => dots::<BlockQ6K>(bytes, n, x, n_tokens, out),
            (ty, A::Halves(x)) => {
                let dot = |row: &[u8], x: &[f32]| quants::dot_halves(ty, row, x);
                each(bytes, self.row_size, x, n_tokens, out, dot);
            }
            (ty, A::Block8(x)) => {
                for (row, out) in bytes.chunks_exact(self.row_size).zip(out.chunks_exact_mut(n_tokens)) {
                    quants::dot(ty, row, x, out);
                }
            }
            (_, A::F32(x)) => {
                let mut decoded = vec![0.0; n];
                for (row, out) in rows.zip(out.chunks_exact_mut(n_tokens)) {
                    self.decode_row(row, &mut decoded);
                    dots_of_row(&decoded, x, out);
                }
            }
            // `prepare` makes what this function takes.
            _ => debug_assert!(false, "activations of another type"),
        }
    }
}

/// Rounds each row of activations to the blocks that a dot product takes.
fn round_rows<T: Stored>(x: &[f32], row_len: usize) -> Vec<T> {
    let per_row = row_len / T::BLCK_SIZE;
    let mut blocks = vec![T::zeros(); x.len() / row_len * per_row];
    for (row, blocks) in x.chunks_exact(row_len).zip(blocks.chunks_exact_mut(per_row)) {
        T::from_float(row, blocks);
    }
    blocks
}

/// Dot products of the rows in `bytes` with all rows of activations.
fn dots<T: Stored>(bytes: &[u8], row_len: usize, x: &[T::VecDotType], n_tokens: usize, out: &mut [f32]) {
    let dot = |row: &[T], x: &[T::VecDotType]| T::vec_dot(row_len, row, x);
    each(blocks_of::<T>(bytes), row_len / T::BLCK_SIZE, x, n_tokens, out, dot);
}

/// Multiplies each row of `stored`, `per_row` long, with each of the `n_tokens` rows of
/// activations.
fn each<S, X>(
    stored: &[S],
    per_row: usize,
    x: &[X],
    n_tokens: usize,
    out: &mut [f32],
    dot: impl Fn(&[S], &[X]) -> f32,
) {
    let per_token = x.len() / n_tokens;
    for (row, out) in stored.chunks_exact(per_row).zip(out.chunks_exact_mut(n_tokens)) {
        for (x, out) in x.chunks_exact(per_token).zip(out) {
            *out = dot(row, x);
        }
    }
}

fn dots_of_row(row: &[f32], x: &[f32], out: &mut [f32]) {
    for (x, out) in x.chunks_exact(row.len()).zip(out) {
        *out = dot(row, x);
    }
}

/// The dot product of two rows of f32.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    f32::vec_dot(n, &a[..n], &b[..n])
}

/// Reads bytes of a file as candle's blocks.
#[allow(unsafe_code)]
fn blocks_of<T: Stored>(bytes: &[u8]) -> &[T] {
    assert!((bytes.as_ptr() as usize).is_multiple_of(align_of::<T>()), "checked when the matrix was made");
    // SAFETY: the pointer is aligned, and the length counts whole blocks within the slice. The
    // types are `f32` and candle's `#[repr(C)]` blocks of halves and bytes, for which every pattern
    // of bits is a value and which candle itself reads from files in this way (`as_t_slice`,
    // candle-core/src/quantized/mod.rs).
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>()) }
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
        let rows = (TASK / (matrix.row_len * n_tokens)).max(1);
        for (i, out) in output.chunks_mut(rows * n_tokens).enumerate() {
            let start = i * rows;
            tasks.push((matrix, x, n_tokens, start..start + out.len() / n_tokens, out));
        }
    }
    pool::for_each(tasks, |(matrix, x, n_tokens, rows, out)| matrix.multiply_rows(x, n_tokens, rows, out));
    for (product, output) in products.iter().zip(&mut outputs) {
        product.finish(n_tokens(product), output);
    }
    outputs
}

impl Product<'_> {
    /// Scales a product, and turns its columns into rows.
    fn finish(&self, n_tokens: usize, output: &mut Vec<f32>) {
        if let Some(scale) = self.matrix.scale {
            output.iter_mut().for_each(|v| *v *= scale);
        }
        // Rounded to 8 bits, what is no number would become a zero.
        for (token, row) in self.x.chunks_exact(self.matrix.row_len).enumerate() {
            if !row.iter().all(|v| v.is_finite()) {
                output[token..].iter_mut().step_by(n_tokens).for_each(|v| *v = f32::NAN);
            }
        }
        if n_tokens > 1 {
            *output = transposed(output, n_tokens);
        }
    }
}

/// Rows of `n` become columns.
fn transposed(rows: &[f32], n: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows.len());
    for column in 0..n {
        out.extend(rows[column..].iter().step_by(n));
    }
    out
}
