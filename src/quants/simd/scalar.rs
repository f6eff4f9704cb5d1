//! Vectors as arrays: the fallback, and what the others have to agree with.

use std::array::from_fn;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Neg, Not, Sub};

use super::{Floats, Ints, LANES, Mask, Simd};

/// 1.5·2²³: a small number added to this is rounded to an integer.
const MAGIC: f32 = 12_582_912.0;

#[derive(Clone, Copy)]
pub(in crate::quants) struct Scalar;

#[derive(Clone, Copy)]
pub(in crate::quants) struct F([f32; LANES]);

#[derive(Clone, Copy)]
pub(in crate::quants) struct I([i32; LANES]);

/// All bits of a lane, or none.
#[derive(Clone, Copy)]
pub(in crate::quants) struct M([u32; LANES]);

impl Simd for Scalar {
    type F = F;
    type I = I;
    type M = M;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        F([x; LANES])
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> F {
        F(*x)
    }

    #[inline(always)]
    fn load_quads(self, quads: [&[f32; 4]; 4]) -> F {
        F(from_fn(|k| quads[k / 4][k % 4]))
    }

    #[inline(always)]
    fn splat_int(self, x: i32) -> I {
        I([x; LANES])
    }

    #[inline(always)]
    fn load_halves(self, halves: [&[f32; 8]; 2]) -> F {
        F(from_fn(|k| halves[k / 8][k % 8]))
    }

    #[inline(always)]
    fn splat_quads(self, x: &[f32; 4]) -> F {
        F(from_fn(|k| x[k / 4]))
    }

    #[inline(always)]
    fn splat_halves(self, x: &[f32; 2]) -> F {
        F(from_fn(|k| x[k / 8]))
    }

    #[inline(always)]
    fn widen_quads(self, quads: [&[u16; 4]; 4]) -> I {
        I(from_fn(|k| i32::from(quads[k / 4][k % 4])))
    }

    #[inline(always)]
    fn widen_halves(self, halves: [&[u16; 8]; 2]) -> I {
        I(from_fn(|k| i32::from(halves[k / 8][k % 8])))
    }

    #[inline(always)]
    fn load_bytes(self, x: &[u8; LANES]) -> I {
        I(x.map(i32::from))
    }
}

/// An operator, lane by lane.
macro_rules! lane_by_lane {
    ($type:ident, $trait:ident, $method:ident, $op:expr) => {
        impl $trait for $type {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                $type(from_fn(|k| $op(self.0[k], other.0[k])))
            }
        }
    };
}

lane_by_lane!(F, Add, add, |a: f32, b: f32| a + b);
lane_by_lane!(F, Sub, sub, |a: f32, b: f32| a - b);
lane_by_lane!(F, Mul, mul, |a: f32, b: f32| a * b);
lane_by_lane!(F, Div, div, |a: f32, b: f32| a / b);
lane_by_lane!(I, Add, add, i32::wrapping_add);
lane_by_lane!(I, Sub, sub, i32::wrapping_sub);
lane_by_lane!(I, BitAnd, bitand, |a: i32, b: i32| a & b);
lane_by_lane!(I, BitOr, bitor, |a: i32, b: i32| a | b);
lane_by_lane!(M, BitAnd, bitand, |a: u32, b: u32| a & b);
lane_by_lane!(M, BitOr, bitor, |a: u32, b: u32| a | b);

impl Neg for F {
    type Output = Self;

    #[inline(always)]
    fn neg(self) -> Self {
        F(self.0.map(|x| -x))
    }
}

impl Not for M {
    type Output = Self;

    #[inline(always)]
    fn not(self) -> Self {
        M(self.0.map(|m| !m))
    }
}

#[inline(always)]
fn mask(is_so: bool) -> u32 {
    if is_so { u32::MAX } else { 0 }
}

impl Floats for F {
    type I = I;
    type M = M;

    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        self.0
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        F(from_fn(|k| if self.0[k] < other.0[k] { self.0[k] } else { other.0[k] }))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        F(from_fn(|k| if self.0[k] > other.0[k] { self.0[k] } else { other.0[k] }))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        F(self.0.map(f32::abs))
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        F(self.0.map(f32::sqrt))
    }

    #[inline(always)]
    fn round(self) -> Self {
        F(self.0.map(|x| x + MAGIC - MAGIC))
    }

    #[inline(always)]
    fn less(self, other: Self) -> M {
        M(from_fn(|k| mask(self.0[k] < other.0[k])))
    }

    #[inline(always)]
    fn equal(self, other: Self) -> M {
        M(from_fn(|k| mask(self.0[k] == other.0[k])))
    }

    #[inline(always)]
    fn bits(self) -> I {
        I(self.0.map(|x| x.to_bits().cast_signed()))
    }

    #[inline(always)]
    fn int(self) -> I {
        I(self.0.map(|x| ((x + MAGIC).to_bits() & 0x007f_ffff).cast_signed() - 0x0040_0000))
    }

    #[inline(always)]
    fn transpose_quads(vectors: [Self; 4]) -> [Self; 4] {
        from_fn(|j| F(from_fn(|k| vectors[k % 4].0[k / 4 * 4 + j])))
    }

    #[inline(always)]
    fn least_of_quads(self) -> Self {
        F(from_fn(|k| least(&self.0[k / 4 * 4..][..4])))
    }

    #[inline(always)]
    fn least_of_halves(self) -> Self {
        F(from_fn(|k| least(&self.0[k / 8 * 8..][..8])))
    }
}

#[inline(always)]
fn least(x: &[f32]) -> f32 {
    x.iter().fold(f32::INFINITY, |least, &x| if x < least { x } else { least })
}

impl Ints for I {
    type F = F;

    #[inline(always)]
    fn to_array(self) -> [i32; LANES] {
        self.0
    }

    #[inline(always)]
    fn shl(self, bits: u32) -> Self {
        I(self.0.map(|x| x << bits))
    }

    #[inline(always)]
    fn shr(self, bits: u32) -> Self {
        I(self.0.map(|x| (x.cast_unsigned() >> bits).cast_signed()))
    }

    #[inline(always)]
    fn float_of_bits(self) -> F {
        F(self.0.map(|x| f32::from_bits(x.cast_unsigned())))
    }

    #[inline(always)]
    fn lookup(self, table: F) -> F {
        F(self.0.map(|x| table.0[(x & 15) as usize]))
    }

    #[inline(always)]
    fn lookup_in_quads(self, table: F) -> F {
        F(from_fn(|k| table.0[k / 4 * 4 + (self.0[k] & 3) as usize]))
    }

    #[inline(always)]
    fn lookup_in_halves(self, table: F) -> F {
        F(from_fn(|k| table.0[k / 8 * 8 + (self.0[k] & 7) as usize]))
    }

    #[inline(always)]
    fn lookup_8(self, table: F) -> F {
        self.lookup(table)
    }
}

impl Mask<F> for M {
    #[inline(always)]
    fn select(self, yes: F, no: F) -> F {
        F(from_fn(|k| f32::from_bits(yes.0[k].to_bits() & self.0[k] | no.0[k].to_bits() & !self.0[k])))
    }

    #[inline(always)]
    fn any(self) -> bool {
        self.0.iter().fold(0, |any, m| any | m) != 0
    }
    #[inline(always)]
    fn bits(self) -> u32 {
        self.0.iter().enumerate().fold(0, |bits, (k, m)| bits | (m & 1) << k)
    }
}
