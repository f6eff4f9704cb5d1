//! Products of stored rows with activations.
//!
//! The arithmetic is ggml's (ggml-cpu, `ggml_vec_dot_q4_K_q8_K` and its like): products of codes
//! are summed as integers, and scales are applied per block. Only the order of the sums of floats
//! is this module's own. It is the same for a token whatever tokens are beside it, so a token gets
//! the same bits alone and among others; between processors it may differ, as in ggml.
//!
//! Some rows are unpacked together, a part at a time, and multiplied with all tokens while both are
//! in the nearest cache. Rows of types without a kernel are decoded to f32, and activations are
//! then f32 that have been rounded (`activations`).

use super::activations::Activations;
use super::operands::{Block8, Block8K, LEN, Packed, SUPER_LEN, Small, Sums, Super};
use super::simd::{self, Level};
use super::unpack;
use crate::ggml::GgmlType;


/// Rows that are unpacked together, where there is more than one token.
const ROWS: usize = 4;

/// Whether rows of this type are multiplied as integers.
pub(super) fn has_kernel(ty: GgmlType) -> bool {
    SmallKernel::of(ty).is_some() || SuperKernel::of(ty).is_some()
}

/// Multiplies rows of `row_len` weights of `ty` with as many rows of activations as `out` has
/// slices: each holds a product for each row.
///
/// `x` are the activations that [`round`](super::activations::round) gives for this type; others
/// give zeros.
pub(crate) fn multiply(ty: GgmlType, row_len: usize, rows: &[u8], x: &Activations<'_>, out: &mut [&mut [f32]]) {
    let rows = Rows { bytes: rows, row_len, block_len: ty.block_len(), block_size: ty.block_size() };
    match (x, SmallKernel::of(ty), SuperKernel::of(ty)) {
        (Activations::Small(x), Some(kernel), _) => rows.multiply(&kernel, x, out),
        (Activations::Super(x), _, Some(kernel)) => rows.multiply(&kernel, x, out),
        (Activations::Floats(x), ..) => rows.multiply(&FloatKernel(ty), x, out),
        _ => out.iter_mut().for_each(|out| out.fill(0.0)),
    }
}

/// The dot product of two rows of f32; the shorter counts.
pub(crate) fn dot_floats(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let mut sums = Sums::ZERO;
    simd::dot::add_floats(&a[..n], [&b[..n]], std::array::from_mut(&mut sums));
    sums.total()
}

/// How blocks of some types are unpacked and multiplied.
trait Kernel {
    /// Weights of a block.
    const LEN: usize;
    /// Blocks of a row that are unpacked together: what stays in the nearest cache.
    const PART: usize;
    /// A block of weights, unpacked.
    type Weights: Copy;
    const ZERO: Self::Weights;
    /// A block of activations.
    type X;
    /// What is summed for a row and a token.
    type Sums: Copy;
    const NOTHING: Self::Sums;

    /// Unpacks whole blocks.
    fn unpack(&self, level: Level, blocks: &[u8], to: &mut [Self::Weights]);

    /// Adds the products of blocks with the same blocks of some tokens, a few tokens at a time.
    fn add(&self, weights: &[Self::Weights], x: Tokens<'_, Self::X>, sums: &mut [Self::Sums]);

    /// The product that sums come to.
    fn total(sums: &Self::Sums) -> f32;
}

/// The same blocks of all tokens.
struct Tokens<'a, X> {
    x: &'a [X],
    /// Blocks of a token.
    per_token: usize,
    start: usize,
    n: usize,
}

impl<'a, X> Tokens<'a, X> {
    /// Those of `N` tokens.
    fn some<const N: usize>(&self, first: usize) -> [&'a [X]; N] {
        std::array::from_fn(|k| &self.x[(first + k) * self.per_token + self.start..][..self.n])
    }

    /// Calls `several` for `N` tokens at a time, and `one` for each that is left over.
    fn each<S, const N: usize>(
        &self,
        sums: &mut [S],
        several: impl Fn([&'a [X]; N], &mut [S; N]),
        one: impl Fn([&'a [X]; 1], &mut [S; 1]),
    ) {
        let (tiles, rest) = sums.as_chunks_mut::<N>();
        for (i, sums) in tiles.iter_mut().enumerate() {
            several(self.some(N * i), sums);
        }
        for (i, sum) in rest.iter_mut().enumerate() {
            one(self.some(N * tiles.len() + i), std::array::from_mut(sum));
        }
    }
}

/// Rows as they are stored.
struct Rows<'a> {
    bytes: &'a [u8],
    row_len: usize,
    block_len: usize,
    block_size: usize,
}

impl Rows<'_> {
    fn multiply<K: Kernel>(&self, kernel: &K, x: &[K::X], out: &mut [&mut [f32]]) {
        let n_tokens = out.len();
        let level = Level::current();
        let per_token = self.row_len / K::LEN;
        let part = K::PART.min(per_token);
        let row_size = self.row_len / self.block_len * self.block_size;
        let n_rows = if n_tokens == 1 { 1 } else { ROWS };
        let mut weights = vec![K::ZERO; n_rows * part];
        let mut sums = vec![K::NOTHING; n_rows * n_tokens];
        for (tile, rows) in self.bytes.chunks(n_rows * row_size).enumerate() {
            sums.fill(K::NOTHING);
            for start in (0..per_token).step_by(part) {
                let n = part.min(per_token - start);
                let bytes = |i: usize| i * K::LEN / self.block_len * self.block_size;
                let (from, to) = (bytes(start), bytes(start + n));
                for (row, weights) in rows.chunks_exact(row_size).zip(weights.chunks_exact_mut(part)) {
                    kernel.unpack(level, &row[from..to], &mut weights[..n]);
                }
                let n_rows = rows.len() / row_size;
                for (weights, sums) in weights.chunks_exact(part).zip(sums.chunks_exact_mut(n_tokens)).take(n_rows) {
                    kernel.add(&weights[..n], Tokens { x, per_token, start, n }, sums);
                }
            }
            for (i, sums) in sums.chunks_exact(n_tokens).take(rows.len() / row_size).enumerate() {
                for (sums, out) in sums.iter().zip(out.iter_mut()) {
                    out[tile * n_rows + i] = K::total(sums);
                }
            }
        }
    }
}

/// Types of 32 weights and one scale.
#[derive(Clone, Copy)]
struct SmallKernel {
    unpack: fn(&[u8], &mut [Small]),
    has_minimum: bool,
}

impl SmallKernel {
    fn of(ty: GgmlType) -> Option<Self> {
        let unpack: fn(&[u8], &mut [Small]) = match ty {
            GgmlType::Q4_0 => unpack_small::<unpack::Q4_0, _>,
            GgmlType::Q4_1 => unpack_small::<unpack::Q4_1, _>,
            GgmlType::Q5_0 => unpack_small::<unpack::Q5_0, _>,
            GgmlType::Q5_1 => unpack_small::<unpack::Q5_1, _>,
            GgmlType::Q8_0 => unpack_small::<unpack::Q8_0, _>,
            GgmlType::MXFP4 => unpack_small::<unpack::Mxfp4, _>,
            GgmlType::IQ4_NL => unpack_small::<unpack::Iq4Nl, _>,
            _ => return None,
        };
        Some(Self { unpack, has_minimum: matches!(ty, GgmlType::Q4_1 | GgmlType::Q5_1) })
    }
}

fn unpack_small<B: Packed<SIZE>, const SIZE: usize>(blocks: &[u8], to: &mut [Small]) {
    simd::dot::unpack_small::<B, SIZE>(blocks.as_chunks().0, to);
}

impl Kernel for SmallKernel {
    const LEN: usize = LEN;
    const PART: usize = 4096 / LEN;
    type Weights = Small;
    const ZERO: Small = Small::ZERO;
    type X = Block8;
    type Sums = Sums<1>;
    const NOTHING: Sums<1> = Sums::ZERO;

    fn unpack(&self, _: Level, blocks: &[u8], to: &mut [Small]) {
        (self.unpack)(blocks, to);
    }

    fn add(&self, weights: &[Small], x: Tokens<'_, Block8>, sums: &mut [Sums<1>]) {
        use simd::dot::add_small as add;
        if self.has_minimum {
            x.each(sums, |x, sums| add::<4, true>(weights, x, sums), |x, sums| add::<1, true>(weights, x, sums));
        } else {
            x.each(sums, |x, sums| add::<4, false>(weights, x, sums), |x, sums| add::<1, false>(weights, x, sums));
        }
    }

    fn total(sums: &Sums<1>) -> f32 {
        sums.total()
    }
}

/// Types of super-blocks.
#[derive(Clone, Copy)]
struct SuperKernel {
    unpack: fn(Level, &[u8], &mut [Super]),
    /// Whether the minimums count as the scales do: they are integers, then, to the end.
    is_centered: bool,
}

impl SuperKernel {
    fn of(ty: GgmlType) -> Option<Self> {
        let unpack: fn(Level, &[u8], &mut [Super]) = match ty {
            GgmlType::Q2_K => |level, from, to| simd::convert(level, from.as_chunks().0, to, unpack::q2_k),
            GgmlType::Q3_K => |level, from, to| simd::convert(level, from.as_chunks().0, to, unpack::q3_k),
            GgmlType::Q4_K => |level, from, to| simd::convert(level, from.as_chunks().0, to, unpack::q4_k),
            GgmlType::Q5_K => |level, from, to| simd::convert(level, from.as_chunks().0, to, unpack::q5_k),
            GgmlType::Q6_K => |level, from, to| simd::convert(level, from.as_chunks().0, to, unpack::q6_k),
            _ => return None,
        };
        Some(Self { unpack, is_centered: matches!(ty, GgmlType::Q3_K | GgmlType::Q6_K) })
    }
}

impl Kernel for SuperKernel {
    const LEN: usize = SUPER_LEN;
    const PART: usize = 4096 / SUPER_LEN;
    type Weights = Super;
    const ZERO: Super = Super::ZERO;
    type X = Block8K;
    type Sums = Sums<1>;
    const NOTHING: Sums<1> = Sums::ZERO;

    fn unpack(&self, level: Level, blocks: &[u8], to: &mut [Super]) {
        (self.unpack)(level, blocks, to);
    }

    fn add(&self, weights: &[Super], x: Tokens<'_, Block8K>, sums: &mut [Sums<1>]) {
        use simd::dot::add_super as add;
        if self.is_centered {
            x.each(sums, |x, sums| add::<4, true>(weights, x, sums), |x, sums| add::<1, true>(weights, x, sums));
        } else {
            x.each(sums, |x, sums| add::<4, false>(weights, x, sums), |x, sums| add::<1, false>(weights, x, sums));
        }
    }

    fn total(sums: &Sums<1>) -> f32 {
        sums.total()
    }
}

/// Any type, decoded.
struct FloatKernel(GgmlType);

impl Kernel for FloatKernel {
    const LEN: usize = 1;
    // Whole blocks of every type.
    const PART: usize = 1024;
    type Weights = f32;
    const ZERO: f32 = 0.0;
    type X = f32;
    type Sums = Sums<4>;
    const NOTHING: Sums<4> = Sums::ZERO;

    fn unpack(&self, level: Level, blocks: &[u8], to: &mut [f32]) {
        let decoded = super::dequantize_row_at(level, self.0, blocks, to);
        debug_assert!(decoded.is_ok(), "the rows are whole blocks");
    }

    fn add(&self, weights: &[f32], x: Tokens<'_, f32>, sums: &mut [Sums<4>]) {
        use simd::dot::add_floats as add;
        x.each(sums, |x, sums| add::<FT>(weights, x, sums), |x, sums| add::<1>(weights, x, sums));
    }

    fn total(sums: &Sums<4>) -> f32 {
        sums.total()
    }
}
const FT: usize = 2;
