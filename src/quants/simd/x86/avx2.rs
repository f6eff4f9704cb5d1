//! AVX2: a vector is two registers, which hides the latency of one behind the other.

use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Neg, Not, Sub};

use crate::quants::simd::{Floats, Ints, Kernel, LANES, Mask, Simd, convert_each};

/// Proof that the processor has AVX2 and F16C.
#[derive(Clone, Copy)]
pub(in crate::quants::simd) struct Avx2(());

#[derive(Clone, Copy)]
pub(in crate::quants::simd) struct F(__m256, __m256);

#[derive(Clone, Copy)]
pub(in crate::quants::simd) struct I(__m256i, __m256i);

/// All bits of a lane, or none.
#[derive(Clone, Copy)]
pub(in crate::quants::simd) struct M(__m256, __m256);

impl Avx2 {
    pub(in crate::quants::simd) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")).then_some(Self(()))
    }

    pub(in crate::quants::simd) fn enter<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token is the proof that the processor has these features.
        unsafe { enter(self, kernel) }
    }

    pub(in crate::quants::simd) fn convert<A, B>(self, from: &[A], to: &mut [B], f: impl Fn(&A, &mut B)) {
        // SAFETY: the token is the proof that the processor has these features.
        unsafe { convert(from, to, f) }
    }

    pub(in crate::quants::simd) fn decode_f16(self, from: &[[[u8; 2]; 8]], to: &mut [[[f32; 1]; 8]]) {
        // SAFETY: the token is the proof that the processor has these features.
        unsafe { decode_f16(from, to) }
    }

    pub(in crate::quants::simd) fn encode_f16(self, from: &[[[f32; 1]; 8]], to: &mut [[[u8; 2]; 8]]) {
        // SAFETY: the token is the proof that the processor has these features.
        unsafe { encode_f16(from, to) }
    }
}

// Not `fma`, although such processors have it: nothing here may be fused.
#[target_feature(enable = "avx2,f16c")]
fn enter<K: Kernel>(token: Avx2, kernel: K) -> K::Output {
    kernel.run(token)
}

#[target_feature(enable = "avx2,f16c")]
fn convert<A, B>(from: &[A], to: &mut [B], f: impl Fn(&A, &mut B)) {
    convert_each(from, to, f);
}

#[target_feature(enable = "avx2,f16c")]
fn decode_f16(from: &[[[u8; 2]; 8]], to: &mut [[[f32; 1]; 8]]) {
    for (from, to) in from.iter().zip(to) {
        // SAFETY: a load and a store of whole references, without alignment.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr().cast(), _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast()))) };
    }
}

/// Encodes F16. The processor would keep the payload of a NaN; the codec has one NaN for each sign.
#[target_feature(enable = "avx2,f16c")]
fn encode_f16(from: &[[[f32; 1]; 8]], to: &mut [[[u8; 2]; 8]]) {
    let (sign, nan) = (_mm256_set1_ps(-0.0), _mm256_set1_ps(f32::from_bits(0x7fc0_0000)));
    for (from, to) in from.iter().zip(to) {
        // SAFETY: a load of a whole reference, without alignment.
        let x = unsafe { _mm256_loadu_ps(from.as_ptr().cast()) };
        let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x);
        let x = _mm256_blendv_ps(x, _mm256_or_ps(_mm256_and_ps(x, sign), nan), is_nan);
        let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x);
        // SAFETY: a store of a whole reference, without alignment.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), halves) };
    }
}

/// An expression of intrinsics, on what only a token makes.
macro_rules! avx2 {
    ($($intrinsics:tt)*) => {
        // SAFETY: the operands are a token or vectors, which come from a token: the processor has
        // AVX2. No intrinsic touches memory, but for loads and stores of whole references without
        // alignment.
        unsafe { $($intrinsics)* }
    };
}

impl Simd for Avx2 {
    type F = F;
    type I = I;
    type M = M;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        avx2!(F(_mm256_set1_ps(x), _mm256_set1_ps(x)))
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> F {
        let [low, high]: [&[f32; 8]; 2] = [&x[..8], &x[8..]].map(|half| half.try_into().expect("half of 16"));
        avx2!(F(_mm256_loadu_ps(low.as_ptr()), _mm256_loadu_ps(high.as_ptr())))
    }

    #[inline(always)]
    fn load_quads(self, [a, b, c, d]: [&[f32; 4]; 4]) -> F {
        avx2!(F(
            _mm256_loadu2_m128(b.as_ptr(), a.as_ptr()), //
            _mm256_loadu2_m128(d.as_ptr(), c.as_ptr()),
        ))
    }

    #[inline(always)]
    fn splat_int(self, x: i32) -> I {
        avx2!(I(_mm256_set1_epi32(x), _mm256_set1_epi32(x)))
    }

    #[inline(always)]
    fn load_bytes(self, x: &[u8; LANES]) -> I {
        avx2!({
            let x = _mm_loadu_si128(x.as_ptr().cast());
            I(_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(x)))
        })
    }

    #[inline(always)]
    fn load_halves(self, [a, b]: [&[f32; 8]; 2]) -> F {
        avx2!(F(_mm256_loadu_ps(a.as_ptr()), _mm256_loadu_ps(b.as_ptr())))
    }

    #[inline(always)]
    fn splat_quads(self, [a, b, c, d]: &[f32; 4]) -> F {
        avx2!(F(
            _mm256_set_m128(_mm_set1_ps(*b), _mm_set1_ps(*a)), //
            _mm256_set_m128(_mm_set1_ps(*d), _mm_set1_ps(*c)),
        ))
    }

    #[inline(always)]
    fn splat_halves(self, [a, b]: &[f32; 2]) -> F {
        avx2!(F(_mm256_set1_ps(*a), _mm256_set1_ps(*b)))
    }

    #[inline(always)]
    fn widen_quads(self, [a, b, c, d]: [&[u16; 4]; 4]) -> I {
        avx2!(I(widen_quads(a, b), widen_quads(c, d)))
    }

    #[inline(always)]
    fn widen_halves(self, [a, b]: [&[u16; 8]; 2]) -> I {
        avx2!(I(
            _mm256_cvtepu16_epi32(_mm_loadu_si128(a.as_ptr().cast())),
            _mm256_cvtepu16_epi32(_mm_loadu_si128(b.as_ptr().cast())),
        ))
    }
}

/// An operator, register by register.
macro_rules! operator {
    ($type:ident, $trait:ident, $method:ident, $intrinsic:ident) => {
        impl $trait for $type {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                avx2!($type($intrinsic(self.0, other.0), $intrinsic(self.1, other.1)))
            }
        }
    };
}

operator!(F, Add, add, _mm256_add_ps);
operator!(F, Sub, sub, _mm256_sub_ps);
operator!(F, Mul, mul, _mm256_mul_ps);
operator!(F, Div, div, _mm256_div_ps);
operator!(I, Add, add, _mm256_add_epi32);
operator!(I, Sub, sub, _mm256_sub_epi32);
operator!(I, BitAnd, bitand, _mm256_and_si256);
operator!(I, BitOr, bitor, _mm256_or_si256);
operator!(M, BitAnd, bitand, _mm256_and_ps);
operator!(M, BitOr, bitor, _mm256_or_ps);

impl Neg for F {
    type Output = Self;

    #[inline(always)]
    fn neg(self) -> Self {
        avx2!({
            let sign = _mm256_set1_ps(-0.0);
            F(_mm256_xor_ps(self.0, sign), _mm256_xor_ps(self.1, sign))
        })
    }
}

impl Not for M {
    type Output = Self;

    #[inline(always)]
    fn not(self) -> Self {
        avx2!({
            let all = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
            M(_mm256_xor_ps(self.0, all), _mm256_xor_ps(self.1, all))
        })
    }
}

impl Floats for F {
    type I = I;
    type M = M;

    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut lanes = [[0.0; 8]; 2];
        avx2!({
            _mm256_storeu_ps(lanes[0].as_mut_ptr(), self.0);
            _mm256_storeu_ps(lanes[1].as_mut_ptr(), self.1);
        });
        *lanes.as_flattened().first_chunk().expect("twice 8")
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        avx2!(F(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        avx2!(F(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        avx2!({
            let sign = _mm256_set1_ps(-0.0);
            F(_mm256_andnot_ps(sign, self.0), _mm256_andnot_ps(sign, self.1))
        })
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        avx2!(F(_mm256_sqrt_ps(self.0), _mm256_sqrt_ps(self.1)))
    }

    #[inline(always)]
    fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        avx2!(F(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1)))
    }

    #[inline(always)]
    fn less(self, other: Self) -> M {
        avx2!(M(_mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0), _mm256_cmp_ps::<_CMP_LT_OQ>(self.1, other.1)))
    }

    #[inline(always)]
    fn equal(self, other: Self) -> M {
        avx2!(M(_mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, other.0), _mm256_cmp_ps::<_CMP_EQ_OQ>(self.1, other.1)))
    }

    #[inline(always)]
    fn bits(self) -> I {
        avx2!(I(_mm256_castps_si256(self.0), _mm256_castps_si256(self.1)))
    }

    #[inline(always)]
    fn int(self) -> I {
        avx2!(I(_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1)))
    }

    #[inline(always)]
    fn transpose_quads([a, b, c, d]: [Self; 4]) -> [Self; 4] {
        let [a0, b0, c0, d0] = avx2!(transpose_quads(a.0, b.0, c.0, d.0));
        let [a1, b1, c1, d1] = avx2!(transpose_quads(a.1, b.1, c.1, d.1));
        [F(a0, a1), F(b0, b1), F(c0, c1), F(d0, d1)]
    }

    #[inline(always)]
    fn least_of_quads(self) -> Self {
        avx2!(F(least_of_quads(self.0), least_of_quads(self.1)))
    }

    #[inline(always)]
    fn least_of_halves(self) -> Self {
        avx2!(F(least_of_all(self.0), least_of_all(self.1)))
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn transpose_quads(a: __m256, b: __m256, c: __m256, d: __m256) -> [__m256; 4] {
    let pairs = |low, high| (_mm256_castps_pd(low), _mm256_castps_pd(high));
    let (ab0, cd0) = pairs(_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
    let (ab1, cd1) = pairs(_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
    [
        _mm256_castpd_ps(_mm256_unpacklo_pd(ab0, cd0)),
        _mm256_castpd_ps(_mm256_unpackhi_pd(ab0, cd0)),
        _mm256_castpd_ps(_mm256_unpacklo_pd(ab1, cd1)),
        _mm256_castpd_ps(_mm256_unpackhi_pd(ab1, cd1)),
    ]
}

#[inline]
#[target_feature(enable = "avx2")]
fn widen_quads(a: &[u16; 4], b: &[u16; 4]) -> __m256i {
    // SAFETY: both loads are of the eight bytes of an array; they ask for no alignment.
    let (a, b) = unsafe { (_mm_loadl_epi64(a.as_ptr().cast()), _mm_loadl_epi64(b.as_ptr().cast())) };
    _mm256_cvtepu16_epi32(_mm_unpacklo_epi64(a, b))
}

#[inline]
#[target_feature(enable = "avx2")]
fn least_of_quads(x: __m256) -> __m256 {
    let x = _mm256_min_ps(x, _mm256_permute_ps::<0b01_00_11_10>(x));
    _mm256_min_ps(x, _mm256_permute_ps::<0b10_11_00_01>(x))
}

#[inline]
#[target_feature(enable = "avx2")]
fn least_of_all(x: __m256) -> __m256 {
    least_of_quads(_mm256_min_ps(x, _mm256_permute2f128_ps::<1>(x, x)))
}

impl Ints for I {
    type F = F;

    #[inline(always)]
    fn to_array(self) -> [i32; LANES] {
        let mut lanes = [[0; 8]; 2];
        avx2!({
            _mm256_storeu_si256(lanes[0].as_mut_ptr().cast(), self.0);
            _mm256_storeu_si256(lanes[1].as_mut_ptr().cast(), self.1);
        });
        *lanes.as_flattened().first_chunk().expect("twice 8")
    }

    #[inline(always)]
    fn shl(self, bits: u32) -> Self {
        avx2!({
            let bits = _mm_cvtsi32_si128(bits.cast_signed());
            I(_mm256_sll_epi32(self.0, bits), _mm256_sll_epi32(self.1, bits))
        })
    }

    #[inline(always)]
    fn shr(self, bits: u32) -> Self {
        avx2!({
            let bits = _mm_cvtsi32_si128(bits.cast_signed());
            I(_mm256_srl_epi32(self.0, bits), _mm256_srl_epi32(self.1, bits))
        })
    }

    #[inline(always)]
    fn float_of_bits(self) -> F {
        avx2!(F(_mm256_castsi256_ps(self.0), _mm256_castsi256_ps(self.1)))
    }

    #[inline(always)]
    fn lookup(self, table: F) -> F {
        avx2!(F(lookup(self.0, table), lookup(self.1, table)))
    }

    #[inline(always)]
    fn lookup_8(self, table: F) -> F {
        avx2!(F(_mm256_permutevar8x32_ps(table.0, self.0), _mm256_permutevar8x32_ps(table.0, self.1)))
    }

    #[inline(always)]
    fn lookup_in_quads(self, table: F) -> F {
        avx2!(F(_mm256_permutevar_ps(table.0, self.0), _mm256_permutevar_ps(table.1, self.1)))
    }

    #[inline(always)]
    fn lookup_in_halves(self, table: F) -> F {
        avx2!(F(_mm256_permutevar8x32_ps(table.0, self.0), _mm256_permutevar8x32_ps(table.1, self.1)))
    }
}

/// Looks in both halves of the table by three bits, and takes what the fourth says.
#[inline]
#[target_feature(enable = "avx2")]
fn lookup(index: __m256i, table: F) -> __m256 {
    let (low, high) = (_mm256_permutevar8x32_ps(table.0, index), _mm256_permutevar8x32_ps(table.1, index));
    _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index)))
}

impl Mask<F> for M {
    #[inline(always)]
    fn select(self, yes: F, no: F) -> F {
        avx2!(F(_mm256_blendv_ps(no.0, yes.0, self.0), _mm256_blendv_ps(no.1, yes.1, self.1)))
    }

    #[inline(always)]
    fn any(self) -> bool {
        avx2!(_mm256_movemask_ps(_mm256_or_ps(self.0, self.1)) != 0)
    }
    #[inline(always)]
    fn bits(self) -> u32 {
        avx2!((_mm256_movemask_ps(self.0) | _mm256_movemask_ps(self.1) << 8).cast_unsigned())
    }
}
