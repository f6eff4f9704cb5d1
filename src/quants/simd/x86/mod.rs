//! The vector instructions of x86-64.
//!
//! Vectors of `avx2` and `avx512` are values of their own types, which only the token of the same
//! module makes; and the token is only made after the processor was asked. Whoever holds a vector
//! may therefore use the instructions, and that is the reason that each `unsafe` there has.

pub(super) mod avx2;
pub(super) mod avx512;
pub(super) mod dot;
