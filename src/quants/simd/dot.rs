//! Dot products, whose sums may be taken in any order: by AVX2 with fused multiply-add, or as they
//! are written.

#[cfg(target_arch = "x86_64")]
use super::x86::dot as x86;
use crate::quants::operands::{Block8, Block8K, N_SUB, Packed, Small, Sums, Super};
use crate::quants::unpack;

/// Unpacks small blocks.
pub(in crate::quants) fn unpack_small<B: Packed<SIZE>, const SIZE: usize>(blocks: &[[u8; SIZE]], to: &mut [Small]) {
    #[cfg(target_arch = "x86_64")]
    if x86::is_available() {
        return x86::unpack_small::<B, SIZE>(blocks, to);
    }
    for (block, to) in blocks.iter().zip(to) {
        *to = unpack::small::<B, SIZE>(block);
    }
}

/// Adds the products of small blocks with those of some tokens, which are as many.
pub(in crate::quants) fn add_small<const N: usize, const HAS_MINIMUM: bool>(
    weights: &[Small],
    x: [&[Block8]; N],
    sums: &mut [Sums<1>; N],
) {
    #[cfg(target_arch = "x86_64")]
    if x86::is_available() {
        return x86::add_small::<N, HAS_MINIMUM>(weights, x, sums);
    }
    for (x, sums) in x.iter().zip(sums) {
        for (w, x) in weights.iter().zip(*x) {
            sums.lanes[0][0] += w.d * x.d * small_products(w, x) as f32;
            if HAS_MINIMUM {
                sums.rest += w.minimum * x.s;
            }
        }
    }
}

/// Adds the products of super-blocks with those of some tokens, which are as many.
pub(in crate::quants) fn add_super<const N: usize, const IS_CENTERED: bool>(
    weights: &[Super],
    x: [&[Block8K]; N],
    sums: &mut [Sums<1>; N],
) {
    #[cfg(target_arch = "x86_64")]
    if x86::is_available() {
        return x86::add_super::<N, IS_CENTERED>(weights, x, sums);
    }
    for (x, sums) in x.iter().zip(sums) {
        for (w, x) in weights.iter().zip(*x) {
            let (products, minimums) = super_products(w, x);
            sums.lanes[0][0] += if IS_CENTERED {
                w.d * x.d * (products - minimums) as f32
            } else {
                w.d * x.d * products as f32 - w.dmin * x.d * minimums as f32
            };
        }
    }
}

/// Adds the products of weights with the activations of some tokens, which are as many.
pub(in crate::quants) fn add_floats<const N: usize>(weights: &[f32], x: [&[f32]; N], sums: &mut [Sums<4>; N]) {
    #[cfg(target_arch = "x86_64")]
    if x86::is_available() {
        return x86::add_floats::<N>(weights, x, sums);
    }
    for (x, sums) in x.iter().zip(sums) {
        let ((w, w_rest), (x, x_rest)) = (weights.as_chunks::<32>(), x.as_chunks::<32>());
        let lanes = sums.lanes.as_flattened_mut();
        for (w, x) in w.iter().zip(x) {
            for ((lane, w), x) in lanes.iter_mut().zip(w).zip(x) {
                *lane += w * x;
            }
        }
        sums.rest += w_rest.iter().zip(x_rest).map(|(w, x)| w * x).sum::<f32>();
    }
}

/// `Σ w.code · x.code` of a block.
fn small_products(w: &Small, x: &Block8) -> i32 {
    w.codes.iter().zip(&x.codes).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum()
}

/// `Σ scale · w.code · x.code` and `Σ minimum · x.code` of a super-block.
fn super_products(w: &Super, x: &Block8K) -> (i32, i32) {
    let (mut products, mut minimums) = (0, 0);
    let subs = w.codes.as_chunks::<16>().0.iter().zip(x.codes.as_chunks::<16>().0);
    for (i, (w_codes, x_codes)) in (0..N_SUB).zip(subs) {
        let sum: i32 = w_codes.iter().zip(x_codes).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum();
        products += i32::from(w.scale(i)) * sum;
        minimums += i32::from(w.minimums[i]) * i32::from(x.sums[i]);
    }
    (products, minimums)
}
