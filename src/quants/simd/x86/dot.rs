//! Dot products by AVX2.

use std::arch::x86_64::*;

use crate::quants::operands::{Block, Block8, Half, scale_and_minimum};

/// Whether the processor has what the functions of this module use.
pub(in crate::quants::simd) fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// The dot products of a row of blocks with the activations of some tokens.
pub(in crate::quants::simd) fn dot<B: Block<SIZE>, const SIZE: usize, const N: usize>(
    blocks: &[[u8; SIZE]],
    x: [&[Block8]; N],
) -> [f32; N] {
    debug_assert!(is_available());
    // SAFETY: every caller asks `is_available` first.
    unsafe { dot_avx2::<B, SIZE, N>(blocks, x) }
}

/// The dot product of a row of halves with activations.
pub(in crate::quants::simd) fn dot_halves<H: Half>(row: &[u8], x: &[f32]) -> f32 {
    debug_assert!(is_available());
    // SAFETY: every caller asks `is_available` first.
    unsafe { dot_halves_avx2::<H>(row, x) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dot_halves_avx2<H: Half>(row: &[u8], x: &[f32]) -> f32 {
    const STEP: usize = 32;
    let (halves, _) = row.as_chunks::<2>();
    let n = halves.len().min(x.len());
    let (halves, x) = (&halves[..n], &x[..n]);
    let ((long, rest), (long_x, rest_x)) = (halves.as_chunks::<STEP>(), x.as_chunks::<STEP>());
    let mut sums = [_mm256_setzero_ps(); 4];
    for (halves, x) in long.iter().zip(long_x) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: `i` is below 4: eight halves and eight floats from `8 i` on are within the 32
            // of the chunk. Neither load asks for alignment.
            let (w, x) = unsafe {
                let bytes = _mm_loadu_si128(halves.as_ptr().add(8 * i).cast());
                (eight::<H>(bytes), _mm256_loadu_ps(x.as_ptr().add(8 * i)))
            };
            *sum = _mm256_fmadd_ps(w, x, *sum);
        }
    }
    let total = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    lanes(total).iter().sum::<f32>() + rest.iter().zip(rest_x).map(|(&half, x)| H::to_f32(half) * x).sum::<f32>()
}

/// Eight halves as f32.
#[target_feature(enable = "avx2,f16c")]
fn eight<H: Half>(bytes: __m128i) -> __m256 {
    match H::IS_BRAIN {
        true => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bytes))),
        false => _mm256_cvtph_ps(bytes),
    }
}

#[target_feature(enable = "avx2")]
fn lanes(v: __m256) -> [f32; 8] {
    let mut lanes = [0f32; 8];
    // SAFETY: eight lanes of four bytes; the store asks for no alignment.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), v) };
    lanes
}

/// The sum of products of one block.
#[cfg(test)]
pub(in crate::quants::simd) fn products<B: Block<SIZE>, const SIZE: usize>(block: &[u8; SIZE], x: &Block8) -> i32 {
    // SAFETY: every caller asks `is_available` first.
    unsafe { sum(multiply(signed::<B, SIZE>(codes::<B, SIZE>(block)), x)) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dot_avx2<B: Block<SIZE>, const SIZE: usize, const N: usize>(blocks: &[[u8; SIZE]], x: [&[Block8]; N]) -> [f32; N] {
    let n = x.iter().fold(blocks.len(), |n, x| n.min(x.len()));
    let x = x.map(|x| &x[..n]);
    let mut totals = [_mm256_setzero_ps(); N];
    let mut rests = [0f32; N];
    for (i, block) in blocks[..n].iter().enumerate() {
        let (scale, minimum) = scale_and_minimum::<B, SIZE>(block, |bytes| half(bytes));
        let weights = signed::<B, SIZE>(codes::<B, SIZE>(block));
        for k in 0..N {
            let x = &x[k][i];
            let products = _mm256_cvtepi32_ps(multiply(weights, x));
            totals[k] = _mm256_fmadd_ps(products, _mm256_set1_ps(scale * x.d), totals[k]);
            rests[k] += minimum * x.s;
        }
    }
    std::array::from_fn(|k| lanes(totals[k]).iter().sum::<f32>() + rests[k])
}

#[target_feature(enable = "f16c")]
fn half(bytes: [u8; 2]) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes(bytes)))))
}

/// The 32 codes of a block, a byte each.
#[target_feature(enable = "avx2")]
fn codes<B: Block<SIZE>, const SIZE: usize>(block: &[u8; SIZE]) -> __m256i {
    let nibbles: &[u8; 16] = block[B::NIBBLES..].first_chunk().unwrap_or(&[0; 16]);
    // SAFETY: the pointer is of an array of the 16 bytes that are loaded; the load asks for no
    // alignment.
    let bytes = unsafe { _mm_loadu_si128(nibbles.as_ptr().cast()) };
    let both = _mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes);
    let lower = _mm256_and_si256(both, _mm256_set1_epi8(15));
    let Some(at) = B::FIFTH else { return lower };
    let bits = i32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    _mm256_or_si256(lower, fifths(bits))
}

/// The codes less their offset.
#[target_feature(enable = "avx2")]
fn signed<B: Block<SIZE>, const SIZE: usize>(codes: __m256i) -> __m256i {
    _mm256_sub_epi8(codes, _mm256_set1_epi8(B::OFFSET as i8))
}

/// Eight partial sums of `Σ weight · x.code`; `maddubs` wants one factor without a sign. Weights
/// have at most five bits, so that a pair of products, at most 2 · 31 · 127, fits in the 16 bits of
/// `maddubs`.
#[target_feature(enable = "avx2")]
fn multiply(weights: __m256i, x: &Block8) -> __m256i {
    // SAFETY: the pointer is of an array of the 32 bytes that are loaded; the load asks for no
    // alignment.
    let codes = unsafe { _mm256_loadu_si256(x.codes.as_ptr().cast()) };
    let products = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(codes, weights));
    _mm256_madd_epi16(products, _mm256_set1_epi16(1))
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

#[cfg(test)]
#[target_feature(enable = "avx2")]
fn sum(v: __m256i) -> i32 {
    let mut lanes = [0i32; 8];
    // SAFETY: eight lanes of four bytes; the store asks for no alignment.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), v) };
    lanes.iter().sum()
}
