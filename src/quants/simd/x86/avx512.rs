//! AVX-512: a vector is one register, a mask sixteen bits.

use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Neg, Not, Sub};

use crate::quants::simd::{Floats, Ints, Kernel, LANES, Mask, Simd};

/// Proof that the processor has AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub(in crate::quants::simd) struct Avx512(());

#[derive(Clone, Copy)]
pub(in crate::quants::simd) struct F(__m512);

#[derive(Clone, Copy)]
pub(in crate::quants::simd) struct I(__m512i);

#[derive(Clone, Copy)]
pub(in crate::quants::simd) struct M(__mmask16);

impl Avx512 {
    pub(in crate::quants::simd) fn new() -> Option<Self> {
        let is_available = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        is_available.then_some(Self(()))
    }

    pub(in crate::quants::simd) fn enter<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token is the proof that the processor has these features.
        unsafe { enter(self, kernel) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn enter<K: Kernel>(token: Avx512, kernel: K) -> K::Output {
    kernel.run(token)
}

/// An expression of intrinsics, on what only a token makes.
macro_rules! avx512 {
    ($($intrinsics:tt)*) => {
        // SAFETY: the operands are a token or vectors, which come from a token: the processor has
        // AVX-512 F, BW, DQ and VL. No intrinsic touches memory, but for loads and stores of whole
        // references without alignment.
        unsafe { $($intrinsics)* }
    };
}

impl Simd for Avx512 {
    type F = F;
    type I = I;
    type M = M;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        avx512!(F(_mm512_set1_ps(x)))
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> F {
        avx512!(F(_mm512_loadu_ps(x.as_ptr())))
    }

    #[inline(always)]
    fn load_quads(self, [a, b, c, d]: [&[f32; 4]; 4]) -> F {
        avx512!({
            let low = _mm256_loadu2_m128(b.as_ptr(), a.as_ptr());
            let high = _mm256_loadu2_m128(d.as_ptr(), c.as_ptr());
            F(_mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high))
        })
    }

    #[inline(always)]
    fn splat_int(self, x: i32) -> I {
        avx512!(I(_mm512_set1_epi32(x)))
    }

    #[inline(always)]
    fn load_bytes(self, x: &[u8; LANES]) -> I {
        avx512!(I(_mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast()))))
    }

    #[inline(always)]
    fn load_halves(self, [a, b]: [&[f32; 8]; 2]) -> F {
        avx512!({
            let low = _mm512_castps256_ps512(_mm256_loadu_ps(a.as_ptr()));
            F(_mm512_insertf32x8::<1>(low, _mm256_loadu_ps(b.as_ptr())))
        })
    }

    #[inline(always)]
    fn splat_quads(self, x: &[f32; 4]) -> F {
        avx512!({
            let quads = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
            F(_mm512_permutexvar_ps(quads, _mm512_castps128_ps512(_mm_loadu_ps(x.as_ptr()))))
        })
    }

    #[inline(always)]
    fn splat_halves(self, [a, b]: &[f32; 2]) -> F {
        avx512!(F(_mm512_insertf32x8::<1>(_mm512_set1_ps(*a), _mm256_set1_ps(*b))))
    }

    #[inline(always)]
    fn widen_quads(self, [a, b, c, d]: [&[u16; 4]; 4]) -> I {
        avx512!({
            let ab = _mm_unpacklo_epi64(_mm_loadl_epi64(a.as_ptr().cast()), _mm_loadl_epi64(b.as_ptr().cast()));
            let cd = _mm_unpacklo_epi64(_mm_loadl_epi64(c.as_ptr().cast()), _mm_loadl_epi64(d.as_ptr().cast()));
            I(_mm512_cvtepu16_epi32(_mm256_set_m128i(cd, ab)))
        })
    }

    #[inline(always)]
    fn widen_halves(self, [a, b]: [&[u16; 8]; 2]) -> I {
        avx512!(I(_mm512_cvtepu16_epi32(_mm256_loadu2_m128i(b.as_ptr().cast(), a.as_ptr().cast()))))
    }
}

/// An operator by one instruction.
macro_rules! operator {
    ($type:ident, $trait:ident, $method:ident, $intrinsic:ident) => {
        impl $trait for $type {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                avx512!($type($intrinsic(self.0, other.0)))
            }
        }
    };
}

operator!(F, Add, add, _mm512_add_ps);
operator!(F, Sub, sub, _mm512_sub_ps);
operator!(F, Mul, mul, _mm512_mul_ps);
operator!(F, Div, div, _mm512_div_ps);
operator!(I, Add, add, _mm512_add_epi32);
operator!(I, Sub, sub, _mm512_sub_epi32);
operator!(I, BitAnd, bitand, _mm512_and_si512);
operator!(I, BitOr, bitor, _mm512_or_si512);

impl BitAnd for M {
    type Output = Self;

    #[inline(always)]
    fn bitand(self, other: Self) -> Self {
        M(self.0 & other.0)
    }
}

impl BitOr for M {
    type Output = Self;

    #[inline(always)]
    fn bitor(self, other: Self) -> Self {
        M(self.0 | other.0)
    }
}

impl Not for M {
    type Output = Self;

    #[inline(always)]
    fn not(self) -> Self {
        M(!self.0)
    }
}

impl Neg for F {
    type Output = Self;

    #[inline(always)]
    fn neg(self) -> Self {
        avx512!(F(_mm512_xor_ps(self.0, _mm512_set1_ps(-0.0))))
    }
}

impl Floats for F {
    type I = I;
    type M = M;

    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        avx512!(_mm512_storeu_ps(lanes.as_mut_ptr(), self.0));
        lanes
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        avx512!(F(_mm512_min_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        avx512!(F(_mm512_max_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        avx512!(F(_mm512_abs_ps(self.0)))
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        avx512!(F(_mm512_sqrt_ps(self.0)))
    }

    #[inline(always)]
    fn round(self) -> Self {
        avx512!(F(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)))
    }

    #[inline(always)]
    fn less(self, other: Self) -> M {
        avx512!(M(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0)))
    }

    #[inline(always)]
    fn equal(self, other: Self) -> M {
        avx512!(M(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, other.0)))
    }

    #[inline(always)]
    fn bits(self) -> I {
        avx512!(I(_mm512_castps_si512(self.0)))
    }

    #[inline(always)]
    fn int(self) -> I {
        avx512!(I(_mm512_cvtps_epi32(self.0)))
    }

    #[inline(always)]
    fn transpose_quads([a, b, c, d]: [Self; 4]) -> [Self; 4] {
        avx512!(transpose_quads(a.0, b.0, c.0, d.0).map(F))
    }

    #[inline(always)]
    fn least_of_quads(self) -> Self {
        avx512!({
            let x = _mm512_min_ps(self.0, _mm512_permute_ps::<0b01_00_11_10>(self.0));
            F(_mm512_min_ps(x, _mm512_permute_ps::<0b10_11_00_01>(x)))
        })
    }

    #[inline(always)]
    fn least_of_halves(self) -> Self {
        avx512!(F(_mm512_min_ps(self.0, _mm512_shuffle_f32x4::<0b10_11_00_01>(self.0, self.0)))).least_of_quads()
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_quads(a: __m512, b: __m512, c: __m512, d: __m512) -> [__m512; 4] {
    let pairs = |low, high| (_mm512_castps_pd(low), _mm512_castps_pd(high));
    let (ab0, cd0) = pairs(_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
    let (ab1, cd1) = pairs(_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
    [
        _mm512_castpd_ps(_mm512_unpacklo_pd(ab0, cd0)),
        _mm512_castpd_ps(_mm512_unpackhi_pd(ab0, cd0)),
        _mm512_castpd_ps(_mm512_unpacklo_pd(ab1, cd1)),
        _mm512_castpd_ps(_mm512_unpackhi_pd(ab1, cd1)),
    ]
}

impl Ints for I {
    type F = F;

    #[inline(always)]
    fn to_array(self) -> [i32; LANES] {
        let mut lanes = [0; LANES];
        avx512!(_mm512_storeu_si512(lanes.as_mut_ptr().cast(), self.0));
        lanes
    }

    #[inline(always)]
    fn shl(self, bits: u32) -> Self {
        avx512!(I(_mm512_sll_epi32(self.0, _mm_cvtsi32_si128(bits.cast_signed()))))
    }

    #[inline(always)]
    fn shr(self, bits: u32) -> Self {
        avx512!(I(_mm512_srl_epi32(self.0, _mm_cvtsi32_si128(bits.cast_signed()))))
    }

    #[inline(always)]
    fn float_of_bits(self) -> F {
        avx512!(F(_mm512_castsi512_ps(self.0)))
    }

    #[inline(always)]
    fn lookup(self, table: F) -> F {
        avx512!(F(_mm512_permutexvar_ps(self.0, table.0)))
    }

    #[inline(always)]
    fn lookup_8(self, table: F) -> F {
        self.lookup(table)
    }

    #[inline(always)]
    fn lookup_in_quads(self, table: F) -> F {
        avx512!(F(_mm512_permutevar_ps(table.0, self.0)))
    }

    #[inline(always)]
    fn lookup_in_halves(self, table: F) -> F {
        avx512!({
            let half = _mm512_set_epi32(8, 8, 8, 8, 8, 8, 8, 8, 0, 0, 0, 0, 0, 0, 0, 0);
            // Three bits of the index, the fourth of the half.
            let index = _mm512_ternarylogic_epi32::<0xe4>(self.0, half, _mm512_set1_epi32(7));
            F(_mm512_permutexvar_ps(index, table.0))
        })
    }
}

impl Mask<F> for M {
    #[inline(always)]
    fn select(self, yes: F, no: F) -> F {
        avx512!(F(_mm512_mask_blend_ps(self.0, no.0, yes.0)))
    }

    #[inline(always)]
    fn any(self) -> bool {
        self.0 != 0
    }
    #[inline(always)]
    fn bits(self) -> u32 {
        u32::from(self.0)
    }
}
