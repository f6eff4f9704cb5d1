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

use super::activations::{self, Activations};
use super::operands::{
    BF16, Block8, Block8K, F16, F32, LEN, Number, Packed, PackedSuper, SUPER_LEN, Small, Sums, Super,
};
use super::simd;
use super::unpack;
use crate::ggml::GgmlType;

/// Tokens for which codes are loaded once.
const TOKENS: usize = 4;

/// Rows that are unpacked together, where there is more than one token.
const ROWS: usize = 4;

/// Rounds whole rows of activations as ggml does for rows of `ty` (`vec_dot_type`,
/// ggml-cpu/ggml-cpu.c).
pub(crate) fn round_activations(ty: GgmlType, x: &[f32]) -> Activations<'_> {
    activations::round(ty, x, has_kernel(ty))
}

/// Whether rows of this type are multiplied as integers.
fn has_kernel(ty: GgmlType) -> bool {
    SmallKernel::of(ty).is_some() || SuperKernel::of(ty).is_some()
}

/// Multiplies rows of `row_len` weights of `ty` with as many rows of activations as `out` has
/// slices: each holds a product for each row.
///
/// `x` are the activations that [`round_activations`] gives for this type; others
/// give zeros.
pub(crate) fn multiply(ty: GgmlType, row_len: usize, rows: &[u8], x: &Activations<'_>, out: &mut [&mut [f32]]) {
    if out.is_empty() {
        return;
    }
    let rows = Rows { bytes: rows, row_len, block_len: ty.block_len(), block_size: ty.block_size() };
    match (x, SmallKernel::of(ty), SuperKernel::of(ty)) {
        (Activations::Small(x), Some(kernel), _) => rows.multiply(&kernel, x, out),
        (Activations::Super(x), _, Some(kernel)) => rows.multiply(&kernel, x, out),
        (Activations::Floats(x), ..) => match ty {
            GgmlType::F32 => multiply_numbers::<F32>(rows.bytes.as_chunks().0, row_len, x, 0, out),
            GgmlType::F16 => multiply_numbers::<F16>(rows.bytes.as_chunks().0, row_len, x, 0, out),
            GgmlType::BF16 => multiply_numbers::<BF16>(rows.bytes.as_chunks().0, row_len, x, 0, out),
            _ => multiply_decoded(ty, &rows, x, out),
        },
        _ => out.iter_mut().for_each(|out| out.fill(0.0)),
    }
}

/// The dot product of two rows of f32; the shorter counts.
pub(crate) fn dot_floats(a: &[f32], b: &[f32]) -> f32 {
    let [[product]] = simd::dot::numbers::<f32, 1, 1>([a], [b]);
    product
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

    /// Unpacks whole blocks.
    fn unpack(&self, blocks: &[u8], to: &mut [Self::Weights]);

    /// Adds the products of blocks with the same blocks of some tokens, a few tokens at a time.
    fn add(&self, weights: &[Self::Weights], x: Tokens<'_, Self::X>, sums: &mut [Sums]);
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
    fn each<const N: usize>(
        &self,
        sums: &mut [Sums],
        several: impl Fn([&'a [X]; N], &mut [Sums; N]),
        one: impl Fn([&'a [X]; 1], &mut [Sums; 1]),
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
    fn row_size(&self) -> usize {
        self.row_len / self.block_len * self.block_size
    }

    fn multiply<K: Kernel>(&self, kernel: &K, x: &[K::X], out: &mut [&mut [f32]]) {
        let n_tokens = out.len();
        let per_token = self.row_len / K::LEN;
        let part = K::PART.min(per_token);
        let row_size = self.row_size();
        let n_rows = if n_tokens == 1 { 1 } else { ROWS };
        let mut weights = vec![K::ZERO; n_rows * part];
        let mut sums = vec![Sums::ZERO; n_rows * n_tokens];
        for (tile, rows) in self.bytes.chunks(n_rows * row_size).enumerate() {
            sums.fill(Sums::ZERO);
            for start in (0..per_token).step_by(part) {
                let n = part.min(per_token - start);
                let bytes = |i: usize| i * K::LEN / self.block_len * self.block_size;
                let (from, to) = (bytes(start), bytes(start + n));
                for (row, weights) in rows.chunks_exact(row_size).zip(weights.chunks_exact_mut(part)) {
                    kernel.unpack(&row[from..to], &mut weights[..n]);
                }
                let n_rows = rows.len() / row_size;
                for (weights, sums) in weights.chunks_exact(part).zip(sums.chunks_exact_mut(n_tokens)).take(n_rows) {
                    kernel.add(&weights[..n], Tokens { x, per_token, start, n }, sums);
                }
            }
            for (i, sums) in sums.chunks_exact(n_tokens).take(rows.len() / row_size).enumerate() {
                for (sums, out) in sums.iter().zip(out.iter_mut()) {
                    out[tile * n_rows + i] = sums.total();
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
        Some(match ty {
            GgmlType::Q4_0 => Self::new::<unpack::Q4_0, _>(),
            GgmlType::Q4_1 => Self::new::<unpack::Q4_1, _>(),
            GgmlType::Q5_0 => Self::new::<unpack::Q5_0, _>(),
            GgmlType::Q5_1 => Self::new::<unpack::Q5_1, _>(),
            GgmlType::Q8_0 => Self::new::<unpack::Q8_0, _>(),
            GgmlType::MXFP4 => Self::new::<unpack::Mxfp4, _>(),
            GgmlType::IQ4_NL => Self::new::<unpack::Iq4Nl, _>(),
            _ => return None,
        })
    }

    fn new<B: Packed<SIZE>, const SIZE: usize>() -> Self {
        let unpack = |blocks: &[u8], to: &mut [Small]| simd::dot::unpack_small::<B, SIZE>(blocks.as_chunks().0, to);
        Self { unpack, has_minimum: B::MINIMUM.is_some() }
    }
}

impl Kernel for SmallKernel {
    const LEN: usize = LEN;
    const PART: usize = 4096 / LEN;
    type Weights = Small;
    const ZERO: Small = Small::ZERO;
    type X = Block8;

    fn unpack(&self, blocks: &[u8], to: &mut [Small]) {
        (self.unpack)(blocks, to);
    }

    fn add(&self, weights: &[Small], x: Tokens<'_, Block8>, sums: &mut [Sums]) {
        use simd::dot::add_small as add;
        if self.has_minimum {
            x.each(sums, |x, sums| add::<TOKENS, true>(weights, x, sums), |x, sums| add::<1, true>(weights, x, sums));
        } else {
            x.each(sums, |x, sums| add::<TOKENS, false>(weights, x, sums), |x, sums| add::<1, false>(weights, x, sums));
        }
    }
}

/// Types of super-blocks.
#[derive(Clone, Copy)]
struct SuperKernel {
    unpack: fn(&[u8], &mut [Super]),
    is_centered: bool,
}

impl SuperKernel {
    fn of(ty: GgmlType) -> Option<Self> {
        Some(match ty {
            GgmlType::Q2_K => Self::new::<unpack::Q2K, _>(),
            GgmlType::Q3_K => Self::new::<unpack::Q3K, _>(),
            GgmlType::Q4_K => Self::new::<unpack::Q4K, _>(),
            GgmlType::Q5_K => Self::new::<unpack::Q5K, _>(),
            GgmlType::Q6_K => Self::new::<unpack::Q6K, _>(),
            _ => return None,
        })
    }

    fn new<B: PackedSuper<SIZE>, const SIZE: usize>() -> Self {
        let unpack = |blocks: &[u8], to: &mut [Super]| simd::dot::unpack_super::<B, SIZE>(blocks.as_chunks().0, to);
        Self { unpack, is_centered: B::IS_CENTERED }
    }
}

impl Kernel for SuperKernel {
    const LEN: usize = SUPER_LEN;
    const PART: usize = 4096 / SUPER_LEN;
    type Weights = Super;
    const ZERO: Super = Super::ZERO;
    type X = Block8K;

    fn unpack(&self, blocks: &[u8], to: &mut [Super]) {
        (self.unpack)(blocks, to);
    }

    fn add(&self, weights: &[Super], x: Tokens<'_, Block8K>, sums: &mut [Sums]) {
        use simd::dot::add_super as add;
        if self.is_centered {
            x.each(sums, |x, sums| add::<TOKENS, true>(weights, x, sums), |x, sums| add::<1, true>(weights, x, sums));
        } else {
            x.each(sums, |x, sums| add::<TOKENS, false>(weights, x, sums), |x, sums| add::<1, false>(weights, x, sums));
        }
    }
}

/// Multiplies rows of numbers, three tokens and two rows at a time.
fn multiply_numbers<W: Number>(rows: &[W::Stored], row_len: usize, x: &[f32], first: usize, out: &mut [&mut [f32]]) {
    let (threes, ones) = out.as_chunks_mut::<3>();
    let (x_threes, x_ones) = x.split_at(threes.len() * 3 * row_len);
    for (x, out) in x_threes.chunks_exact(3 * row_len).zip(threes) {
        numbers_of_tokens::<W, 3>(rows, row_len, std::array::from_fn(|k| &x[k * row_len..][..row_len]), first, out);
    }
    for (x, out) in x_ones.chunks_exact(row_len).zip(ones) {
        numbers_of_tokens::<W, 1>(rows, row_len, [x], first, std::array::from_mut(out));
    }
}

fn numbers_of_tokens<W: Number, const N: usize>(
    rows: &[W::Stored],
    row_len: usize,
    x: [&[f32]; N],
    first: usize,
    out: &mut [&mut [f32]; N],
) {
    let pairs = rows.chunks_exact(2 * row_len);
    let last = pairs.remainder();
    let n_paired = rows.len() / row_len / 2 * 2;
    for (i, pair) in pairs.enumerate() {
        let (a, b) = pair.split_at(row_len);
        let products = simd::dot::numbers::<W, 2, N>([a, b], x);
        for (k, out) in out.iter_mut().enumerate() {
            (out[first + 2 * i], out[first + 2 * i + 1]) = (products[0][k], products[1][k]);
        }
    }
    if !last.is_empty() {
        let [products] = simd::dot::numbers::<W, 1, N>([last], x);
        out.iter_mut().zip(products).for_each(|(out, product)| out[first + n_paired] = product);
    }
}

/// Multiplies rows of any type, decoded.
fn multiply_decoded(ty: GgmlType, rows: &Rows<'_>, x: &[f32], out: &mut [&mut [f32]]) {
    let mut decoded = vec![0.0; ROWS * rows.row_len];
    for (tile, bytes) in rows.bytes.chunks(ROWS * rows.row_size()).enumerate() {
        let decoded = &mut decoded[..bytes.len() / rows.row_size() * rows.row_len];
        let done = super::dequantize_row(ty, bytes, decoded);
        debug_assert!(done.is_ok(), "the rows are whole blocks");
        multiply_numbers::<f32>(decoded, rows.row_len, x, tile * ROWS, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quants::{self, supported};

    /// Numbers with a spread of values, from a small linear congruence.
    fn numbers(seed: u32, n: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..n).map(|_| next() + next() * next()).collect()
    }

    /// Rows of a type, and how long one is: longer than a part where there is a kernel.
    fn rows(ty: GgmlType, n_rows: usize) -> (Vec<u8>, usize) {
        let row_len = if has_kernel(ty) { 17 * 256 } else { 512 };
        let row_len = if ty.block_len() == 1 { row_len + 13 } else { row_len };
        let weights = numbers(ty as u32 + 1, n_rows * row_len);
        let mut rows = vec![0; weights.len() / ty.block_len() * ty.block_size()];
        let importance = vec![1.0; row_len];
        let importance = quants::requires_importance(ty).then_some(&importance[..]);
        quants::quantize_rows(ty, &weights, importance, &mut rows).expect("whole rows");
        (rows, row_len)
    }

    /// The products of each token with each row.
    fn products(ty: GgmlType, row_len: usize, rows: &[u8], x: &[f32]) -> Vec<Vec<f32>> {
        let n_rows = rows.len() / (row_len / ty.block_len() * ty.block_size());
        let mut out = vec![vec![0.0; n_rows]; x.len() / row_len];
        let mut slices: Vec<&mut [f32]> = out.iter_mut().map(Vec::as_mut_slice).collect();
        multiply(ty, row_len, rows, &round_activations(ty, x), &mut slices);
        out
    }

    #[test]
    fn equals_the_product_of_the_decoded_row() {
        for ty in supported() {
            let (row, row_len) = rows(ty, 1);
            let x = numbers(ty as u32 + 100, row_len);
            let mut decoded = vec![0.0; row_len];
            quants::dequantize_row(ty, &row, &mut decoded).expect("a whole row");
            let terms = |x: &[f32]| -> Vec<f64> {
                x.iter().zip(&decoded).map(|(x, w)| f64::from(*x) * f64::from(*w)).collect()
            };
            let rounded = match round_activations(ty, &x) {
                Activations::Floats(x) => x.into_owned(),
                Activations::Small(x) => x.iter().flat_map(|b| b.codes.map(|c| b.d * f32::from(c))).collect(),
                Activations::Super(x) => x.iter().flat_map(|b| b.codes.map(|c| b.d * f32::from(c))).collect(),
            };
            let found = f64::from(products(ty, row_len, &row, &x)[0][0]);
            let size: f64 = terms(&rounded).iter().map(|t| t.abs()).sum();
            let expected: f64 = terms(&rounded).iter().sum();
            // Minimums are multiplied with sums that are rounded to F16.
            let has_rounded_sums = matches!(ty, GgmlType::Q4_1 | GgmlType::Q5_1);
            let bound = if has_rounded_sums { 1e-4 } else { 1e-6 };
            assert!((found - expected).abs() < bound * size, "{ty}: {found} instead of {expected}, of {size}");
            let exact: f64 = terms(&x).iter().sum();
            assert!((found - exact).abs() < 3e-3 * size, "{ty}: {found}, without rounding {exact}, of {size}");
        }
    }

    #[test]
    fn what_a_token_gets_does_not_depend_on_others() {
        for ty in supported() {
            let (bytes, row_len) = rows(ty, 7);
            let row_size = bytes.len() / 7;
            let x = numbers(ty as u32 + 200, 9 * row_len);
            let together = products(ty, row_len, &bytes, &x);
            for n_tokens in 1..9 {
                let some = products(ty, row_len, &bytes, &x[..n_tokens * row_len]);
                assert!(some == together[..n_tokens], "{ty}: {n_tokens} tokens");
            }
            for n_rows in 1..7 {
                let last = products(ty, row_len, &bytes[(7 - n_rows) * row_size..], &x[8 * row_len..]);
                assert_eq!(last[0], together[8][7 - n_rows..], "{ty}: {n_rows} rows");
            }
        }
    }

    #[test]
    fn rows_of_numbers_have_any_length() {
        for (seed, ty) in [GgmlType::F32, GgmlType::F16, GgmlType::BF16].into_iter().enumerate() {
            for row_len in 1..70 {
                let (weights, x) = (numbers(seed as u32 + 1, row_len), numbers(seed as u32 + 9, row_len));
                let mut row = vec![0; row_len * ty.block_size()];
                quants::quantize_row(ty, &weights, &mut row).expect("a whole row");
                let mut decoded = vec![0.0; row_len];
                quants::dequantize_row(ty, &row, &mut decoded).expect("a whole row");
                let found = products(ty, row_len, &row, &x)[0][0];
                let Activations::Floats(x) = round_activations(ty, &x) else {
                    panic!("activations of numbers are numbers")
                };
                let expected: f64 = x.iter().zip(&decoded).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                assert!((f64::from(found) - expected).abs() < 1e-5, "{ty}: {found} instead of {expected}");
                if ty == GgmlType::F32 {
                    assert_eq!(dot_floats(&decoded, &x), found);
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        for ty in supported() {
            let (row, row_len) = rows(ty, 1);
            let mut x = numbers(3, 5 * row_len);
            x[2 * row_len + 40] = f32::NAN;
            for (token, out) in products(ty, row_len, &row, &x).iter().enumerate() {
                assert_eq!(out[0].is_nan(), token == 2, "{ty}, token {token}");
            }
        }
    }

    #[test]
    fn no_tokens_are_no_work() {
        multiply(GgmlType::Q8_0, 32, &[0; 34], &round_activations(GgmlType::Q8_0, &[]), &mut []);
    }
}
