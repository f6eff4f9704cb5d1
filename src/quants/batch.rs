//! Rows cut into what vectors take at a time.

use std::marker::PhantomData;

use super::simd::{Floats, Ints, Kernel, LANES, Level, Simd, run};

/// Rows of one tensor, to be encoded.
#[derive(Clone, Copy)]
pub(super) struct WeightRows<'a> {
    /// Their weights, one row after the other.
    pub(super) weights: &'a [f32],
    /// How much the error of each weight of a row counts; has the length of a row.
    pub(super) importance: Option<&'a [f32]>,
}

/// Up to [`LANES`] neighbouring blocks of `LEN` weights.
#[derive(Clone, Copy)]
pub(super) struct Batch<'a, const LEN: usize> {
    /// The weights of each block; never empty.
    pub(super) x: &'a [[f32; LEN]],
    /// How much the error of each weight counts; of as many blocks.
    pub(super) importance: Option<&'a [[f32; LEN]]>,
    /// The mean square of the row of each block, for encoders that ask for it.
    pub(super) mean_squares: [f32; LANES],
}

impl<'a, const LEN: usize> Batch<'a, LEN> {
    /// The weights of each block, and how much their errors count, for encoders that take one block
    /// at a time.
    #[inline(always)]
    pub(super) fn each_block(self) -> impl Iterator<Item = (&'a [f32; LEN], Option<&'a [f32; LEN]>)> {
        self.x.iter().enumerate().map(move |(k, x)| (x, self.importance.map(|importance| &importance[k])))
    }
}

/// An encoder of blocks of `LEN` weights and `SIZE` bytes.
pub(super) trait Encoder<const LEN: usize, const SIZE: usize> {
    /// Whether it has to know the mean square of each row, where there is an importance matrix.
    const ASKS_FOR_MEAN_SQUARES: bool = false;

    /// Encodes as many blocks as there are in the batch; every byte is written. Implementations are
    /// `#[inline(always)]`.
    fn encode<S: Simd>(simd: S, batch: Batch<'_, LEN>, blocks: &mut [[u8; SIZE]]);
}

/// Encodes rows with `E`.
pub(super) fn encode<E: Encoder<LEN, SIZE>, const LEN: usize, const SIZE: usize>(
    level: Level,
    rows: WeightRows<'_>,
    dst: &mut [u8],
) {
    run(level, Encode::<E, LEN, SIZE> { rows, dst, encoder: PhantomData });
}

struct Encode<'a, E, const LEN: usize, const SIZE: usize> {
    rows: WeightRows<'a>,
    dst: &'a mut [u8],
    encoder: PhantomData<E>,
}

impl<E: Encoder<LEN, SIZE>, const LEN: usize, const SIZE: usize> Kernel for Encode<'_, E, LEN, SIZE> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut importance = self.rows.importance.map(|row| row.as_chunks::<LEN>().0.iter().cycle());
        let mut mean_squares = MeanSquares::of(self.rows);
        let x = self.rows.weights.as_chunks().0.chunks(LANES);
        let blocks = self.dst.as_chunks_mut().0.chunks_mut(LANES);
        let mut buffer = [[0.0; LEN]; LANES];
        for (i, (x, blocks)) in x.zip(blocks).enumerate() {
            let mut batch = Batch { x, importance: None, mean_squares: [0.0; LANES] };
            if let Some(row) = &mut importance {
                for (block, row) in buffer.iter_mut().zip(row.take(x.len())) {
                    *block = *row;
                }
                batch.importance = Some(&buffer[..x.len()]);
                if E::ASKS_FOR_MEAN_SQUARES {
                    for (k, mean_square) in batch.mean_squares.iter_mut().enumerate().take(x.len()) {
                        *mean_square = mean_squares.at(simd, (i * LANES + k) * LEN);
                    }
                }
            }
            E::encode(simd, batch, blocks);
        }
    }
}

/// The mean square of each row, computed for [`LANES`] rows at a time.
struct MeanSquares<'a> {
    rows: &'a [f32],
    row_len: usize,
    /// The first row of those that are computed.
    first: Option<usize>,
    computed: [f32; LANES],
}

impl<'a> MeanSquares<'a> {
    fn of(rows: WeightRows<'a>) -> Self {
        let row_len = rows.importance.map_or(1, <[f32]>::len);
        Self { rows: rows.weights, row_len, first: None, computed: [0.0; LANES] }
    }

    /// The mean square of the row that weight `at` is in.
    #[inline(always)]
    fn at<S: Simd>(&mut self, simd: S, at: usize) -> f32 {
        let row = at / self.row_len;
        let first = row / LANES * LANES;
        if self.first != Some(first) {
            let rows = &self.rows[first * self.row_len..];
            let rows = &rows[..rows.len().min(LANES * self.row_len)];
            let sums = sums_of_squares(simd, rows, self.row_len);
            (self.first, self.computed) = (Some(first), (sums / simd.splat(self.row_len as f32)).to_array());
        }
        self.computed[row - first]
    }
}

/// Up to [`LANES`] runs of `N` numbers side by side: number i of each in vector i. Lanes without a
/// run repeat the last.
#[inline(always)]
pub(super) fn group<S: Simd, const N: usize>(simd: S, runs: &[[f32; N]]) -> [S::F; N] {
    let last = runs.len() - 1;
    let mut group = [simd.splat(0.0); N];
    for (i, group) in group.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let quad = |lane: usize| -> &[f32; 4] { &runs[lane.min(last)].as_chunks().0[i] };
        *group = S::F::transpose_quads([
            simd.load_quads([quad(0), quad(4), quad(8), quad(12)]),
            simd.load_quads([quad(1), quad(5), quad(9), quad(13)]),
            simd.load_quads([quad(2), quad(6), quad(10), quad(14)]),
            simd.load_quads([quad(3), quad(7), quad(11), quad(15)]),
        ]);
    }
    group
}

/// The inverse of [`group`], for codes from 0 to 255, to bytes. `N` is a multiple of 4.
#[inline(always)]
pub(super) fn ungroup<S: Simd, const N: usize>(simd: S, codes: &[S::F; N]) -> [[u8; N]; LANES] {
    let mut bytes = [[0; N]; LANES];
    for (i, codes) in codes.chunks(16).enumerate() {
        let mut words = [simd.splat(0.0); 4];
        for (word, codes) in words.iter_mut().zip(codes.as_chunks::<4>().0) {
            let low = codes[0].int() | codes[1].int().shl(8);
            let high = codes[2].int().shl(16) | codes[3].int().shl(24);
            *word = (low | high).float_of_bits();
        }
        for (j, words) in S::F::transpose_quads(words).into_iter().enumerate() {
            let words = words.bits().to_array();
            for (k, words) in words.as_chunks::<4>().0.iter().enumerate() {
                let bytes = bytes[4 * k + j].as_chunks_mut::<4>().0[4 * i..].iter_mut();
                for (bytes, word) in bytes.zip(words) {
                    *bytes = word.to_le_bytes();
                }
            }
        }
    }
    bytes
}

/// The sum of squares of each of up to [`LANES`] runs of `len` numbers, from the first to the last;
/// `len` is a multiple of 16.
#[inline(always)]
pub(super) fn sums_of_squares<S: Simd>(simd: S, runs: &[f32], len: usize) -> S::F {
    let last = runs.len() / len - 1;
    let mut sum = simd.splat(0.0);
    for at in (0..len).step_by(16) {
        let mut pieces = [[0.0; 16]; LANES];
        for (lane, piece) in pieces.iter_mut().enumerate() {
            piece.copy_from_slice(&runs[lane.min(last) * len + at..][..16]);
        }
        for x in group(simd, &pieces) {
            sum = sum + x * x;
        }
    }
    sum
}

/// A decoder of blocks of `LEN` weights and `SIZE` bytes.
pub(super) trait Decoder<const LEN: usize, const SIZE: usize> {
    /// Decodes a block. Implementations are `#[inline(always)]`.
    fn decode<S: Simd>(simd: S, block: &[u8; SIZE], w: &mut [f32; LEN]);
}

/// Decodes rows with `D`.
pub(super) fn decode<D: Decoder<LEN, SIZE>, const LEN: usize, const SIZE: usize>(
    level: Level,
    src: &[u8],
    dst: &mut [f32],
) {
    run(level, Decode::<D, LEN, SIZE> { src, dst, decoder: PhantomData });
}

struct Decode<'a, D, const LEN: usize, const SIZE: usize> {
    src: &'a [u8],
    dst: &'a mut [f32],
    decoder: PhantomData<D>,
}

impl<D: Decoder<LEN, SIZE>, const LEN: usize, const SIZE: usize> Kernel for Decode<'_, D, LEN, SIZE> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (block, w) in self.src.as_chunks().0.iter().zip(self.dst.as_chunks_mut().0) {
            D::decode(simd, block, w);
        }
    }
}
