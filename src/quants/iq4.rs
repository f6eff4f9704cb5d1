//! IQ4_NL and IQ4_XS: codes of 4 bits that stand for sixteen values, closer together near zero.
//!
//! | type | bytes | field | meaning |
//! |---|---|---|---|
//! | IQ4_NL | 0..2 | `d` | f16 scale; w = d·value\[q\], in blocks of 32 |
//! |        | 2..18 | `qs` | q of weights j and j + 16 in the low and high half of byte j |
//! | IQ4_XS | 0..2 | `d` | f16: what the scales count; w = (d·(scale − 32))·value\[q\], in 8 sub-blocks of 32 |
//! |        | 2..4 | `scales_h` | bits 2·j and 2·j + 1: bits 4 and 5 of scale j |
//! |        | 4..8 | `scales_l` | low four bits of scales 2·j and 2·j + 1 in the low and high half of byte j |
//! |        | 8..136 | `qs` | 16 bytes for each sub-block, as IQ4_NL |
//!
//! Encoder `quantize_row_iq4_nl_impl`, decoders `dequantize_row_iq4_nl` and `dequantize_row_iq4_xs`
//! of ggml-quants.c.

use super::batch::{Batch, Decoder, Encoder, group, ungroup};
use super::float::{read_f16, write_f16};
use super::operands::IQ4_VALUES as VALUES;
use super::rounding::nearest_int;
use super::search::{GROUP_MAX_EPS, farthest};
use super::simd::{Floats, Ints, LANES, Mask, Simd};
use super::weighting::{ErrorWeights, Weighting};
use super::{QK_K, field, field_mut};

/// Weights in a block of IQ4_NL, or in a sub-block of IQ4_XS.
const SUB: usize = 32;
/// Sub-blocks in a super-block of IQ4_XS.
const N_SUB: usize = QK_K / SUB;

pub(super) struct Iq4Nl;

impl Decoder<SUB, 18> for Iq4Nl {
    #[inline(always)]
    fn decode<S: Simd>(simd: S, block: &[u8; 18], w: &mut [f32; SUB]) {
        decode_codes(simd, read_f16(field(block, 0)), field(block, 2), w);
    }
}

impl Encoder<SUB, 18> for Iq4Nl {
    #[inline(always)]
    fn encode<S: Simd>(simd: S, batch: Batch<'_, SUB>, blocks: &mut [[u8; 18]]) {
        let x = group(simd, batch.x);
        let weights = ErrorWeights::<SUB, SUB>::new(simd, batch, weighting::<SUB>(batch.importance.is_some()));
        let scale = find_scale(simd, &x, &weights.of(simd, &x, 0));
        let codes = codes(simd, &x, inverse(simd, scale));
        for ((block, codes), scale) in blocks.iter_mut().zip(codes).zip(scale.to_array()) {
            write_f16(scale, field_mut(block, 0));
            pack(&codes, field_mut(block, 2));
        }
    }
}

pub(super) struct Iq4Xs;

impl Decoder<QK_K, 136> for Iq4Xs {
    #[inline(always)]
    fn decode<S: Simd>(simd: S, block: &[u8; 136], w: &mut [f32; QK_K]) {
        let d = read_f16(field(block, 0));
        let high = u16::from_le_bytes(*field(block, 2));
        let low: &[u8; 4] = field(block, 4);
        let codes: &[u8; 128] = field(block, 8);
        for (j, (w, codes)) in w.as_chunks_mut().0.iter_mut().zip(codes.as_chunks().0).enumerate() {
            let scale = u16::from(low[j / 2] >> (4 * (j % 2)) & 0xf) | (high >> (2 * j) & 3) << 4;
            decode_codes(simd, d * (i32::from(scale) - 32) as f32, codes, w);
        }
    }
}

impl Encoder<QK_K, 136> for Iq4Xs {
    #[inline(always)]
    fn encode<S: Simd>(simd: S, batch: Batch<'_, QK_K>, blocks: &mut [[u8; 136]]) {
        let weights = ErrorWeights::<QK_K, SUB>::new(simd, batch, weighting::<QK_K>(batch.importance.is_some()));
        let groups = batch.x.as_flattened().as_chunks().0.chunks(LANES);
        for (i, (sub_blocks, blocks)) in groups.zip(blocks.chunks_mut(LANES / N_SUB)).enumerate() {
            let x = group(simd, sub_blocks);
            let found = find_scale(simd, &x, &weights.of(simd, &x, i)).to_array();
            let mut stored = [0.0; LANES];
            for ((block, scales), stored) in
                blocks.iter_mut().zip(found.as_chunks().0).zip(stored.as_chunks_mut().0.iter_mut())
            {
                *stored = store_scales(scales, block);
            }
            let codes = codes(simd, &x, inverse(simd, simd.load(&stored)));
            for (block, codes) in blocks.iter_mut().zip(codes.as_chunks::<N_SUB>().0) {
                let bytes: &mut [u8; 128] = field_mut(block, 8);
                for (codes, bytes) in codes.iter().zip(bytes.as_chunks_mut().0) {
                    pack(codes, bytes);
                }
            }
        }
    }
}

/// How much errors count in blocks of `LEN` weights.
const fn weighting<const LEN: usize>(has_importance: bool) -> Weighting {
    if has_importance { Weighting::Importance { times: 1.0, over: (LEN / 2) as f32 } } else { Weighting::Square }
}

/// 1/x, or 0 for 0.
#[inline(always)]
fn inverse<S: Simd>(simd: S, x: S::F) -> S::F {
    let zero = simd.splat(0.0);
    x.equal(zero).select(zero, simd.splat(1.0) / x)
}

/// Stores the scales of a super-block of IQ4_XS: the one farthest from zero becomes −32. Gives back
/// what codes are to be computed with, which is not what a decoder will read: ggml does not round
/// `d` to f16 before.
fn store_scales(scales: &[f32; N_SUB], block: &mut [u8; 136]) -> [f32; N_SUB] {
    let d = -super::super_block::farthest(scales) / 32.0;
    write_f16(d, field_mut(block, 0));
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let codes = scales.map(|scale| nearest_int(inverse * scale).clamp(-32, 31));
    let (mut high, mut low) = (0, [0; 4]);
    for (j, code) in codes.iter().enumerate() {
        let code = code + 32;
        high |= ((code >> 4) as u16) << (2 * j);
        low[j / 2] |= (code as u8 & 0xf) << (4 * (j % 2));
    }
    *field_mut(block, 2) = high.to_le_bytes();
    *field_mut(block, 4) = low;
    codes.map(|code| d * code as f32)
}

/// The scale that leaves the least error, of a few that give the weight farthest from zero about
/// the least value.
#[inline(always)]
fn find_scale<S: Simd>(simd: S, x: &[S::F; SUB], weights: &[S::F; SUB]) -> S::F {
    let zero = simd.splat(0.0);
    let nearest = Nearest::new(simd);
    let (max, amax) = farthest(simd, x);

    let mut scale = zero;
    let mut best_gain = zero;
    // At first the weight farthest from zero has about the least value with the sign turned.
    let first = simd.splat(1.0) / (-max / simd.splat(VALUES[0]));
    for candidate in -8i8..=7 {
        let is_first = candidate == -8;
        let iscale = if is_first { first } else { simd.splat(f32::from(candidate) + VALUES[0]) / max };
        let (mut sumqx, mut sumq2) = (zero, zero);
        for (&x, &w) in x.iter().zip(weights) {
            let q = nearest.value(simd, iscale * x);
            let wq = w * q;
            sumqx = sumqx + wq * x;
            sumq2 = sumq2 + wq * q;
        }
        let this_scale = sumqx / sumq2;
        let is_some = zero.less(sumq2);
        if is_first {
            scale = is_some.select(this_scale, zero);
            best_gain = scale * sumqx;
        } else {
            let is_better = is_some & (best_gain * sumq2).less(sumqx * sumqx);
            scale = is_better.select(this_scale, scale);
            best_gain = is_better.select(this_scale * sumqx, best_gain);
        }
    }
    amax.less(simd.splat(GROUP_MAX_EPS)).select(zero, scale)
}

/// The codes of weights times `iscale`.
#[inline(always)]
fn codes<S: Simd>(simd: S, x: &[S::F; SUB], iscale: S::F) -> [[u8; SUB]; LANES] {
    let nearest = Nearest::new(simd);
    let mut codes = *x;
    for code in &mut codes {
        *code = nearest.code(simd, iscale * *code);
    }
    ungroup(simd, &codes)
}

/// What finds the nearest of [`VALUES`] (`best_index_int8`): four comparisons, each with the middle
/// between two values that halves what is left. Of two values that are as near it is the larger
/// one, for NaN the largest.
///
/// ggml compares the distances from both neighbours. These are exact where they are nearly the
/// same, so that the comparison with their middle says the same.
#[derive(Clone, Copy)]
struct Nearest<S: Simd> {
    first: S::F,
    second: [S::F; 2],
    third: S::F,
    fourth: S::F,
    /// The values of even and of odd codes.
    values: [S::F; 2],
    /// The codes of these values.
    codes: [S::F; 2],
}

impl<S: Simd> Nearest<S> {
    #[inline(always)]
    fn new(simd: S) -> Self {
        /// Entries i·step + start of a table for i below 8.
        const fn every(table: [f32; 16], step: usize, start: usize) -> [f32; LANES] {
            let mut entries = [0.0; LANES];
            let mut i = 0;
            while i < 8 && i * step + start < 16 {
                entries[i] = table[i * step + start];
                i += 1;
            }
            entries
        }
        /// Between each code and the next.
        const MIDDLES: [f32; 16] = {
            let mut middles = [0.0; 16];
            let mut i = 0;
            while i < 15 {
                middles[i] = (VALUES[i] + VALUES[i + 1]) / 2.0;
                i += 1;
            }
            middles
        };
        const CODES: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];
        Self {
            first: simd.splat(MIDDLES[7]),
            second: [simd.splat(MIDDLES[3]), simd.splat(MIDDLES[11])],
            third: simd.load(&const { every(MIDDLES, 4, 1) }),
            fourth: simd.load(&const { every(MIDDLES, 2, 0) }),
            values: [simd.load(&const { every(VALUES, 2, 0) }), simd.load(&const { every(VALUES, 2, 1) })],
            codes: [simd.load(&const { every(CODES, 2, 0) }), simd.load(&const { every(CODES, 2, 1) })],
        }
    }

    /// Half the code, and whether the code is even.
    #[inline(always)]
    fn find(self, simd: S, x: S::F) -> (S::I, S::M) {
        let is_below = x.less(self.first);
        let second = is_below.select(self.second[0], self.second[1]);
        let quarter = bit(simd, is_below, 2) | bit(simd, x.less(second), 1);
        let eighth = quarter.shl(1) | bit(simd, x.less(quarter.lookup_8(self.third)), 1);
        (eighth, x.less(eighth.lookup_8(self.fourth)))
    }

    #[inline(always)]
    fn value(self, simd: S, x: S::F) -> S::F {
        let (half, is_even) = self.find(simd, x);
        is_even.select(half.lookup_8(self.values[0]), half.lookup_8(self.values[1]))
    }

    #[inline(always)]
    fn code(self, simd: S, x: S::F) -> S::F {
        let (half, is_even) = self.find(simd, x);
        is_even.select(half.lookup_8(self.codes[0]), half.lookup_8(self.codes[1]))
    }
}

/// No bits, or those of `bit`.
#[inline(always)]
fn bit<S: Simd>(simd: S, is_below: S::M, bit: i32) -> S::I {
    is_below.select(simd.splat(0.0), simd.splat_int(bit).float_of_bits()).bits()
}

#[inline(always)]
fn decode_codes<S: Simd>(simd: S, d: f32, codes: &[u8; 16], w: &mut [f32; SUB]) {
    let (d, values) = (simd.splat(d), simd.load(&VALUES));
    let codes = simd.load_bytes(codes);
    let (low, high) = w.as_mut_slice().split_at_mut(16);
    low.copy_from_slice(&(d * codes.lookup(values)).to_array());
    high.copy_from_slice(&(d * codes.shr(4).lookup(values)).to_array());
}

#[inline(always)]
fn pack(codes: &[u8; SUB], bytes: &mut [u8; 16]) {
    for (j, byte) in bytes.iter_mut().enumerate() {
        *byte = codes[j] | codes[j + 16] << 4;
    }
}
