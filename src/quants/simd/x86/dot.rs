//! Dot products by AVX2.

use std::arch::x86_64::*;

use crate::quants::field;
use crate::quants::operands::{Block8, Block8K, Form, Format, Number, Packed, PackedSuper, Small, Sums, Super};
use crate::quants::unpack::{nibbles_of, scale_and_minimum};

/// Whether the processor has what the functions of this module use.
pub(in crate::quants::simd) fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Unpacks small blocks.
pub(in crate::quants::simd) fn unpack_small<B: Packed<SIZE>, const SIZE: usize>(
    blocks: &[[u8; SIZE]],
    to: &mut [Small],
) {
    debug_assert!(is_available());
    // SAFETY: every caller asks `is_available` first.
    unsafe { unpack_small_avx2::<B, SIZE>(blocks, to) }
}

/// Unpacks super-blocks.
pub(in crate::quants::simd) fn unpack_super<B: PackedSuper<SIZE>, const SIZE: usize>(
    blocks: &[[u8; SIZE]],
    to: &mut [Super],
) {
    debug_assert!(is_available());
    // SAFETY: every caller asks `is_available` first.
    unsafe { unpack_super_avx2::<B, SIZE>(blocks, to) }
}

/// Adds the products of small blocks.
pub(in crate::quants::simd) fn add_small<const N: usize, const HAS_MINIMUM: bool>(
    weights: &[Small],
    x: [&[Block8]; N],
    sums: &mut [Sums; N],
) {
    debug_assert!(is_available());
    // SAFETY: every caller asks `is_available` first.
    unsafe { add_small_avx2::<N, HAS_MINIMUM>(weights, x, sums) }
}

/// Adds the products of super-blocks.
pub(in crate::quants::simd) fn add_super<const N: usize, const IS_CENTERED: bool>(
    weights: &[Super],
    x: [&[Block8K]; N],
    sums: &mut [Sums; N],
) {
    debug_assert!(is_available());
    // SAFETY: every caller asks `is_available` first.
    unsafe { add_super_avx2::<N, IS_CENTERED>(weights, x, sums) }
}

/// The products of rows of numbers and the activations of some tokens.
pub(in crate::quants::simd) fn numbers<W: Number, const M: usize, const N: usize>(
    rows: [&[W::Stored]; M],
    x: [&[f32]; N],
) -> [[f32; N]; M] {
    debug_assert!(is_available());
    // SAFETY: every caller asks `is_available` first.
    unsafe { numbers_avx2::<W, M, N>(rows, x) }
}

#[target_feature(enable = "avx2,f16c")]
fn unpack_small_avx2<B: Packed<SIZE>, const SIZE: usize>(blocks: &[[u8; SIZE]], to: &mut [Small]) {
    for (block, to) in blocks.iter().zip(to) {
        (to.d, to.minimum) = scale_and_minimum::<B, SIZE>(block, |bytes| half(bytes));
        let codes = small_codes::<B, SIZE>(block);
        // SAFETY: a store of a whole reference, without alignment.
        unsafe { _mm256_storeu_si256(to.codes.as_mut_ptr().cast(), codes) };
    }
}

#[target_feature(enable = "f16c")]
fn half(bytes: &[u8; 2]) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes(*bytes)))))
}

/// The 32 codes of a block, a byte each.
#[target_feature(enable = "avx2")]
fn small_codes<B: Packed<SIZE>, const SIZE: usize>(block: &[u8; SIZE]) -> __m256i {
    match B::FORM {
        Form::Bytes => unsigned(field(block, B::CODES)),
        Form::Above(offset) => {
            let codes = nibbles(field(block, B::CODES));
            let codes = B::FIFTH.map_or(codes, |at| {
                let bits = i32::from_le_bytes(*field(block, at));
                _mm256_or_si256(codes, fifths(bits))
            });
            _mm256_sub_epi8(codes, _mm256_set1_epi8(offset as i8))
        }
        Form::Of(values) => {
            // SAFETY: a load of a whole reference, without alignment.
            let values = unsafe { _mm_loadu_si128(values.as_ptr().cast()) };
            _mm256_shuffle_epi8(_mm256_set_m128i(values, values), nibbles(field(block, B::CODES)))
        }
    }
}

/// The low four bits of 16 bytes, then the high ones.
#[target_feature(enable = "avx2")]
fn nibbles(bytes: &[u8; 16]) -> __m256i {
    // SAFETY: a load of a whole reference, without alignment.
    let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    let both = _mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes);
    _mm256_and_si256(both, _mm256_set1_epi8(15))
}

/// 16 in each byte whose bit is set.
#[target_feature(enable = "avx2")]
fn fifths(bits: i32) -> __m256i {
    const EIGHT: [i64; 4] = [0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303];
    let spread = _mm256_set_epi64x(EIGHT[3], EIGHT[2], EIGHT[1], EIGHT[0]);
    let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let byte = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), spread);
    let is_set = _mm256_cmpeq_epi8(_mm256_and_si256(byte, own), own);
    _mm256_and_si256(is_set, _mm256_set1_epi8(16))
}

#[target_feature(enable = "avx2,f16c")]
fn unpack_super_avx2<B: PackedSuper<SIZE>, const SIZE: usize>(blocks: &[[u8; SIZE]], to: &mut [Super]) {
    for (block, to) in blocks.iter().zip(to) {
        B::scales(block, to);
        for (k, codes) in to.codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let mut sum = _mm256_setzero_si256();
            if let Some((at, apart)) = B::NIBBLES {
                let (start, shift) = nibbles_of(apart, k);
                sum = bits(unsigned(field(block, at + start)), shift, 15);
            }
            if let Some((at, bit)) = B::PAIRS {
                let pairs = bits(unsigned(field(block, at + k / 4 * 32)), 2 * (k as u32 % 4), 3);
                sum = _mm256_or_si256(sum, up(pairs, bit));
            }
            if let Some((at, bit)) = B::BITS {
                sum = _mm256_or_si256(sum, up(bits(unsigned(field(block, at)), k as u32, 1), bit));
            }
            // SAFETY: a store of a whole reference, without alignment.
            unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), sum) };
        }
    }
}

/// Some bits of each byte, as the lowest.
#[target_feature(enable = "avx2")]
fn bits(bytes: __m256i, shift: u32, mask: i8) -> __m256i {
    let shifted = _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(shift.cast_signed()));
    _mm256_and_si256(shifted, _mm256_set1_epi8(mask))
}

/// Bits of each byte farther up, where they stay within it.
#[target_feature(enable = "avx2")]
fn up(bytes: __m256i, shift: u32) -> __m256i {
    _mm256_sll_epi16(bytes, _mm_cvtsi32_si128(shift.cast_signed()))
}

#[target_feature(enable = "avx2,fma")]
fn add_small_avx2<const N: usize, const HAS_MINIMUM: bool>(weights: &[Small], x: [&[Block8]; N], sums: &mut [Sums; N]) {
    let n = x.iter().fold(weights.len(), |n, x| n.min(x.len()));
    let x = x.map(|x| &x[..n]);
    let mut totals: [__m256; N] = std::array::from_fn(|k| floats(&sums[k].lanes));
    let mut rests: [f32; N] = std::array::from_fn(|k| sums[k].rest);
    for (i, w) in weights[..n].iter().enumerate() {
        let codes = bytes(&w.codes);
        let sizes = _mm256_abs_epi8(codes);
        let d = _mm256_set1_ps(w.d);
        for k in 0..N {
            let x = &x[k][i];
            let products = _mm256_cvtepi32_ps(multiply(sizes, codes, bytes(&x.codes)));
            totals[k] = _mm256_fmadd_ps(products, _mm256_mul_ps(d, _mm256_set1_ps(x.d)), totals[k]);
            if HAS_MINIMUM {
                rests[k] = w.minimum.mul_add(x.s, rests[k]);
            }
        }
    }
    for ((sums, total), rest) in sums.iter_mut().zip(totals).zip(rests) {
        store(total, &mut sums.lanes);
        sums.rest = rest;
    }
}

/// Eight partial sums of `Σ w.code · x.code`: `maddubs` wants one factor without a sign. The other
/// gets the sign of both. A pair of products, at most 2 · 128 · 127, fits in the 16 bits of
/// `maddubs`.
#[target_feature(enable = "avx2")]
fn multiply(sizes: __m256i, codes: __m256i, x: __m256i) -> __m256i {
    let products = _mm256_maddubs_epi16(sizes, _mm256_sign_epi8(x, codes));
    _mm256_madd_epi16(products, _mm256_set1_epi16(1))
}

/// Where the two bytes of a sub-block's scale are, for each 16 codes.
static PICK: [[u8; 32]; 8] = {
    let mut pick = [[0; 32]; 8];
    let mut i = 0;
    while i < 8 * 32 {
        pick[i / 32][i % 32] = (2 * (i / 32) + i % 2) as u8;
        i += 1;
    }
    pick
};

#[target_feature(enable = "avx2,fma")]
fn add_super_avx2<const N: usize, const IS_CENTERED: bool>(
    weights: &[Super],
    x: [&[Block8K]; N],
    sums: &mut [Sums; N],
) {
    let n = x.iter().fold(weights.len(), |n, x| n.min(x.len()));
    let x = x.map(|x| &x[..n]);
    let mut totals: [__m256; N] = std::array::from_fn(|k| floats(&sums[k].lanes));
    for (i, w) in weights[..n].iter().enumerate() {
        let x: [&Block8K; N] = std::array::from_fn(|k| &x[k][i]);
        let products = super_products(w, x);
        let minimums = shorts(&w.minimums);
        for k in 0..N {
            let minimums = _mm256_madd_epi16(minimums, shorts(&x[k].sums));
            let d = _mm256_set1_ps(w.d * x[k].d);
            if IS_CENTERED {
                let products = _mm256_sub_epi32(products[k], minimums);
                totals[k] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), d, totals[k]);
            } else {
                let dmin = _mm256_set1_ps(w.dmin * x[k].d);
                totals[k] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products[k]), d, totals[k]);
                totals[k] = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(minimums), dmin, totals[k]);
            }
        }
    }
    for (sums, total) in sums.iter_mut().zip(totals) {
        store(total, &mut sums.lanes);
    }
}

/// Eight partial sums of `Σ scale · w.code · x.code` for each token. A pair of products of codes,
/// at most 2 · 63 · 127, fits in the 16 bits of `maddubs`.
#[target_feature(enable = "avx2")]
#[inline]
fn super_products<const N: usize>(w: &Super, x: [&Block8K; N]) -> [__m256i; N] {
    let scales = shorts(&w.scales);
    let mut sums = [_mm256_setzero_si256(); N];
    for (j, (codes, pick)) in w.codes.as_chunks().0.iter().zip(&PICK).enumerate() {
        let codes = unsigned(codes);
        let scale = _mm256_shuffle_epi8(scales, unsigned(pick));
        for k in 0..N {
            let products = _mm256_maddubs_epi16(codes, bytes(&x[k].codes.as_chunks().0[j]));
            sums[k] = _mm256_add_epi32(sums[k], _mm256_madd_epi16(scale, products));
        }
    }
    sums
}

#[target_feature(enable = "avx2,fma,f16c")]
fn numbers_avx2<W: Number, const M: usize, const N: usize>(rows: [&[W::Stored]; M], x: [&[f32]; N]) -> [[f32; N]; M] {
    let n = rows.iter().map(|row| row.len()).chain(x.iter().map(|x| x.len())).min().unwrap_or(0);
    let rows = rows.map(|row| row[..n].as_chunks::<16>());
    let x = x.map(|x| x[..n].as_chunks::<16>());
    let mut sums = [[[_mm256_setzero_ps(); N]; M]; 2];
    for i in 0..n / 16 {
        for (half, sums) in sums.iter_mut().enumerate() {
            let w: [__m256; M] = std::array::from_fn(|m| eight::<W>(&rows[m].0[i].as_chunks().0[half]));
            for k in 0..N {
                let x = floats(&x[k].0[i].as_chunks().0[half]);
                for m in 0..M {
                    sums[m][k] = _mm256_fmadd_ps(w[m], x, sums[m][k]);
                }
            }
        }
    }
    std::array::from_fn(|m| {
        std::array::from_fn(|k| {
            let mut lanes = [0.0; 8];
            store(_mm256_add_ps(sums[0][m][k], sums[1][m][k]), &mut lanes);
            let rest = rows[m].1.iter().zip(x[k].1).map(|(w, x)| W::read(*w) * x).sum::<f32>();
            lanes.iter().sum::<f32>() + rest
        })
    })
}

/// Eight numbers.
#[target_feature(enable = "avx2,f16c")]
fn eight<W: Number>(stored: &[W::Stored; 8]) -> __m256 {
    // SAFETY: a load of a whole reference, without alignment: eight numbers of four bytes, or of
    // two, as the format says.
    unsafe {
        match W::FORMAT {
            Format::F32 => _mm256_loadu_ps(stored.as_ptr().cast()),
            Format::F16 => _mm256_cvtph_ps(_mm_loadu_si128(stored.as_ptr().cast())),
            Format::BF16 => {
                let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(stored.as_ptr().cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
            }
        }
    }
}

#[target_feature(enable = "avx2")]
fn floats(v: &[f32; 8]) -> __m256 {
    // SAFETY: a load of a whole reference, without alignment.
    unsafe { _mm256_loadu_ps(v.as_ptr()) }
}

#[target_feature(enable = "avx2")]
fn store(v: __m256, to: &mut [f32; 8]) {
    // SAFETY: a store of a whole reference, without alignment.
    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), v) };
}

#[target_feature(enable = "avx2")]
fn bytes(v: &[i8; 32]) -> __m256i {
    // SAFETY: a load of a whole reference, without alignment.
    unsafe { _mm256_loadu_si256(v.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn unsigned(v: &[u8; 32]) -> __m256i {
    // SAFETY: a load of a whole reference, without alignment.
    unsafe { _mm256_loadu_si256(v.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn shorts(v: &[i16; 16]) -> __m256i {
    // SAFETY: a load of a whole reference, without alignment.
    unsafe { _mm256_loadu_si256(v.as_ptr().cast()) }
}
