//! Vectors of [`LANES`] numbers, by the instructions that the processor has. All `unsafe` of the
//! codec is here.
//!
//! A kernel is written once, generic over a *token* ([`Simd`]), and compiled once for each
//! instruction set:
//!
//! | token | [`Level`] | a vector is |
//! |---|---|---|
//! | [`scalar::Scalar`] | `scalar` | an array; any processor. The fallback, and the oracle of the others |
//! | `x86::avx2::Avx2` | `avx2` | two registers of 256 bits |
//! | `x86::avx512::Avx512` | `avx512` | one register of 512 bits |
//!
//! A token of an instruction set is only to be had where the processor has it, and a vector only
//! from a token, so that neither can be misused and kernels are safe code. All lanes of all tokens
//! do the same IEEE operations: none fuses a product with a sum. A kernel therefore gives the same
//! bits at every level, and a test that it does is worth having.
//!
//! Two rules keep kernels fast. Every function from [`Kernel::run`] down to the vectors is
//! `#[inline(always)]`, because what is compiled by itself is compiled without the instruction set.
//! And vectors do not pass through closures, which cannot be marked so.

use std::ops::{Add, BitAnd, BitOr, Div, Mul, Neg, Not, Sub};

use crate::quants::float;

pub(super) mod dot;
mod level;
mod scalar;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "instructions that not every processor has")]
mod x86;

pub use level::{Level, UnknownLevel, limit_level};

/// Numbers in a vector, at every level: sub-blocks of a super-block of Q2_K, Q3_K and Q6_K, or of
/// two of Q4_K.
pub(super) const LANES: usize = 16;

/// Work that is done by vectors.
pub(super) trait Kernel {
    /// What the work gives.
    type Output;

    /// Does it. Implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs `kernel` by the instructions of `level`, or without any if the processor has not got them.
pub(super) fn run<K: Kernel>(level: Level, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    match level {
        Level::Avx512 => {
            if let Some(token) = x86::avx512::Avx512::new() {
                return token.enter(kernel);
            }
        }
        Level::Avx2 => {
            if let Some(token) = x86::avx2::Avx2::new() {
                return token.enter(kernel);
            }
        }
        Level::Scalar => {}
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = level;
    kernel.run(scalar::Scalar)
}

/// Plain loops over slices, of which the compiler makes vectors: arithmetic that is not the
/// codec's, but takes its rows.
///
/// What is promised of kernels is promised of them: the same bits at every [`Level`], because
/// nothing is fused or reassociated. A sum is as many running sums, side by side in an array, as
/// the code says.
pub(crate) trait Loops {
    /// What they give.
    type Output;

    /// Runs them. Implementations and all that they call are `#[inline(always)]`.
    fn run(self) -> Self::Output;
}

/// Runs `loops` by the vector instructions that the codec uses, up to AVX2: for AVX-512 the
/// compiler makes no faster code.
pub(crate) fn vectorized<L: Loops>(loops: L) -> L::Output {
    vectorized_at(Level::current(), loops)
}

/// Runs `loops` by the instructions of `level`, up to AVX2.
pub(crate) fn vectorized_at<L: Loops>(level: Level, loops: L) -> L::Output {
    run(level.min(Level::Avx2), Plain(loops))
}

/// Loops as a kernel without vectors of its own.
struct Plain<L>(L);

impl<L: Loops> Kernel for Plain<L> {
    type Output = L::Output;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> L::Output {
        self.0.run()
    }
}

/// Decodes F16 by the processor's own instructions where `level` has them.
pub(super) fn decode_f16(level: Level, from: &[[u8; 2]], to: &mut [[f32; 1]]) {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx2
        && let Some(token) = x86::avx2::Avx2::new()
    {
        let ((from, from_rest), (to, to_rest)) = (from.as_chunks(), to.as_chunks_mut());
        token.decode_f16(from, to);
        return convert_scalar(from_rest, to_rest, float::decode_f16);
    }
    convert_scalar(from, to, float::decode_f16);
}

/// Encodes F16 by the processor's own instructions where `level` has them.
pub(super) fn encode_f16(level: Level, from: &[[f32; 1]], to: &mut [[u8; 2]]) {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx2
        && let Some(token) = x86::avx2::Avx2::new()
    {
        let ((from, from_rest), (to, to_rest)) = (from.as_chunks(), to.as_chunks_mut());
        token.encode_f16(from, to);
        return convert_scalar(from_rest, to_rest, float::encode_f16);
    }
    convert_scalar(from, to, float::encode_f16);
}

/// Converts block by block, with `convert` compiled for the instructions of `level`; it is
/// `#[inline(always)]`.
///
/// The blocks are arguments here, and not parts of a [`Kernel`], because only of arguments does the
/// compiler know that what is written is not what is read; without that, few loops become vectors.
pub(super) fn convert<A, B>(level: Level, from: &[A], to: &mut [B], convert: impl Fn(&A, &mut B)) {
    // For AVX-512 the compiler makes slower code, up to eight times; and with AVX2 the memory is
    // the limit already.
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx2
        && let Some(token) = x86::avx2::Avx2::new()
    {
        return token.convert(from, to, convert);
    }
    convert_scalar(from, to, convert);
}

#[inline(never)]
fn convert_scalar<A, B>(from: &[A], to: &mut [B], convert: impl Fn(&A, &mut B)) {
    convert_each(from, to, convert);
}

#[inline(always)]
fn convert_each<A, B>(from: &[A], to: &mut [B], convert: impl Fn(&A, &mut B)) {
    for (from, to) in from.iter().zip(to) {
        convert(from, to);
    }
}

/// An instruction set: what makes vectors.
pub(super) trait Simd: Copy {
    /// A vector of f32.
    type F: Floats<I = Self::I, M = Self::M>;
    /// A vector of i32.
    type I: Ints<F = Self::F>;
    /// A yes or no for each lane.
    type M: Mask<Self::F>;

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::F;
    /// The numbers of an array.
    fn load(self, x: &[f32; LANES]) -> Self::F;
    /// Four times four numbers, one after the other.
    fn load_quads(self, quads: [&[f32; 4]; 4]) -> Self::F;
    /// `x` in every lane.
    fn splat_int(self, x: i32) -> Self::I;
    /// The bytes of an array, from 0 to 255.
    fn load_bytes(self, x: &[u8; LANES]) -> Self::I;
    /// Twice eight numbers, one after the other.
    fn load_halves(self, halves: [&[f32; 8]; 2]) -> Self::F;
    /// Each of the numbers in four lanes, one after the other.
    fn splat_quads(self, x: &[f32; 4]) -> Self::F;
    /// Each of the numbers in eight lanes, one after the other.
    fn splat_halves(self, x: &[f32; 2]) -> Self::F;
    /// Four times four integers, one after the other.
    fn widen_quads(self, quads: [&[u16; 4]; 4]) -> Self::I;
    /// Twice eight integers, one after the other.
    fn widen_halves(self, halves: [&[u16; 8]; 2]) -> Self::I;
}

/// Lanes of f32, which `+`, `-`, `*` and `/` take one by one.
pub(super) trait Floats:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> + Neg<Output = Self>
{
    /// A vector of as many i32.
    type I: Ints<F = Self>;
    /// A yes or no for each lane.
    type M: Mask<Self>;

    /// The lanes.
    fn to_array(self) -> [f32; LANES];
    /// `self` if it is less than `other`, else `other`, which may be NaN.
    fn min(self, other: Self) -> Self;
    /// `self` if it is more than `other`, else `other`, which may be NaN.
    fn max(self, other: Self) -> Self;
    /// The magnitude.
    fn abs(self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
    /// The nearest integer, ties to even, for numbers below 2²² in size. Zero may have either sign.
    fn round(self) -> Self;
    /// Whether it is less; no for NaN.
    fn less(self, other: Self) -> Self::M;
    /// Whether it is equal; no for NaN.
    fn equal(self, other: Self) -> Self::M;
    /// The bits of each f32.
    fn bits(self) -> Self::I;
    /// An integer as integer, for integers below 2²² in size.
    fn int(self) -> Self::I;
    /// Transposes four vectors in groups of four lanes that begin at multiples of four: lane j of
    /// vector i becomes lane i of vector j.
    fn transpose_quads(vectors: [Self; 4]) -> [Self; 4];
    /// The least of each four lanes that begin at a multiple of four, in all four of them; without
    /// meaning where one is NaN.
    fn least_of_quads(self) -> Self;
    /// The least of each eight lanes, in all eight of them; without meaning where one is NaN.
    fn least_of_halves(self) -> Self;
}

/// Lanes of i32, which `+`, `-`, `&` and `|` take one by one.
pub(super) trait Ints:
    Copy + Add<Output = Self> + Sub<Output = Self> + BitAnd<Output = Self> + BitOr<Output = Self>
{
    /// A vector of as many f32.
    type F;

    /// The lanes.
    fn to_array(self) -> [i32; LANES];
    /// Shifted towards the high bits.
    fn shl(self, bits: u32) -> Self;
    /// Shifted towards the low bits; zeros follow.
    fn shr(self, bits: u32) -> Self;
    /// The f32 of these bits.
    fn float_of_bits(self) -> Self::F;
    /// The lane of `table` that each lane says; of its bits only the low four count.
    fn lookup(self, table: Self::F) -> Self::F;
    /// The lane of `table` that each lane says, which is from 0 to 7.
    fn lookup_8(self, table: Self::F) -> Self::F;
    /// The lane of `table` that the low two bits of each lane say, among the four lanes from the
    /// same multiple of four on.
    fn lookup_in_quads(self, table: Self::F) -> Self::F;
    /// The lane of `table` that the low three bits of each lane say, among the eight lanes of the
    /// same half.
    fn lookup_in_halves(self, table: Self::F) -> Self::F;
}

/// A yes or no for each lane.
pub(super) trait Mask<F>: Copy + BitAnd<Output = Self> + BitOr<Output = Self> + Not<Output = Self> {
    /// `yes` or `no`, lane by lane.
    fn select(self, yes: F, no: F) -> F;
    /// Whether it is yes anywhere.
    fn any(self) -> bool;
    /// A set bit for each yes, the first lane's lowest.
    fn bits(self) -> u32;
}
