//! Dot products, whose sums may be taken in any order: by AVX2 with fused multiply-add, or as they
//! are written.

#[cfg(target_arch = "x86_64")]
use super::x86::dot as x86;
use crate::quants::operands::{Block8, Block8K, N_SUB, Number, Packed, PackedSuper, Small, Sums, Super};
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

/// Unpacks super-blocks.
pub(in crate::quants) fn unpack_super<B: PackedSuper<SIZE>, const SIZE: usize>(
    blocks: &[[u8; SIZE]],
    to: &mut [Super],
) {
    #[cfg(target_arch = "x86_64")]
    if x86::is_available() {
        return x86::unpack_super::<B, SIZE>(blocks, to);
    }
    for (block, to) in blocks.iter().zip(to) {
        unpack::super_block::<B, SIZE>(block, to);
    }
}

/// Adds the products of small blocks with those of some tokens, which are as many.
pub(in crate::quants) fn add_small<const N: usize, const HAS_MINIMUM: bool>(
    weights: &[Small],
    x: [&[Block8]; N],
    sums: &mut [Sums; N],
) {
    #[cfg(target_arch = "x86_64")]
    if x86::is_available() {
        return x86::add_small::<N, HAS_MINIMUM>(weights, x, sums);
    }
    for (x, sums) in x.iter().zip(sums) {
        for (w, x) in weights.iter().zip(*x) {
            sums.lanes[0] += w.d * x.d * small_products(w, x) as f32;
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
    sums: &mut [Sums; N],
) {
    #[cfg(target_arch = "x86_64")]
    if x86::is_available() {
        return x86::add_super::<N, IS_CENTERED>(weights, x, sums);
    }
    for (x, sums) in x.iter().zip(sums) {
        for (w, x) in weights.iter().zip(*x) {
            let (products, minimums) = super_products(w, x);
            sums.lanes[0] += if IS_CENTERED {
                w.d * x.d * (products - minimums) as f32
            } else {
                w.d * x.d * products as f32 - w.dmin * x.d * minimums as f32
            };
        }
    }
}

/// The products of `M` rows of numbers and the activations of `N` tokens, for each row those of all
/// tokens. The shortest of all counts.
pub(in crate::quants) fn numbers<W: Number, const M: usize, const N: usize>(
    rows: [&[W::Stored]; M],
    x: [&[f32]; N],
) -> [[f32; N]; M] {
    #[cfg(target_arch = "x86_64")]
    if x86::is_available() {
        return x86::numbers::<W, M, N>(rows, x);
    }
    rows.map(|row| x.map(|x| numbers_of_row::<W>(row, x)))
}

fn numbers_of_row<W: Number>(row: &[W::Stored], x: &[f32]) -> f32 {
    let n = row.len().min(x.len());
    let ((long, rest), (long_x, rest_x)) = (row[..n].as_chunks::<16>(), x[..n].as_chunks::<16>());
    let mut lanes = [0.0; 16];
    for (row, x) in long.iter().zip(long_x) {
        for ((lane, w), x) in lanes.iter_mut().zip(row).zip(x) {
            *lane += W::read(*w) * x;
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().zip(rest_x).map(|(w, x)| W::read(*w) * x).sum::<f32>()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quants::unpack::{Iq4Nl, Mxfp4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};

    /// Bytes from a small linear congruence.
    fn bytes<const SIZE: usize>(seed: usize) -> [u8; SIZE] {
        let mut state = seed as u32;
        std::array::from_fn(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
    }

    /// −127 to 127.
    fn codes<const LEN: usize>(seed: usize) -> [i8; LEN] {
        bytes(seed).map(|byte| byte.cast_signed().max(-127))
    }

    /// The sum of lanes, each of them an integer below 2²⁴.
    fn sum(sums: &Sums) -> i32 {
        sums.lanes.iter().map(|&lane| lane as i32).sum()
    }

    fn bits(numbers: [f32; 2]) -> [u32; 2] {
        numbers.map(f32::to_bits)
    }

    fn check_small<B: Packed<SIZE>, const SIZE: usize>() {
        for seed in 0..300 {
            let mut block: [u8; SIZE] = bytes(seed);
            if seed < 2 {
                block.fill([0, 0x80][seed]);
            }
            let mut found = [Small::ZERO];
            unpack_small::<B, SIZE>(&[block], &mut found);
            let [mut found] = found;
            let expected = unpack::small::<B, SIZE>(&block);
            assert_eq!(found.codes, expected.codes);
            if !(expected.d.is_nan() || expected.minimum.is_nan()) {
                assert_eq!(bits([found.d, found.minimum]), bits([expected.d, expected.minimum]));
            }
            let x = Block8 { d: 1.0, s: 0.0, codes: if seed < 4 { [-127; 32] } else { codes(seed + 1000) } };
            found.d = 1.0;
            let mut sums = [Sums::ZERO];
            add_small::<1, false>(&[found], [&[x]], &mut sums);
            assert_eq!(sum(&sums[0]), small_products(&found, &x));
        }
    }

    #[test]
    fn vector_instructions_find_the_integers_of_small_blocks() {
        check_small::<Q4_0, 18>();
        check_small::<Q4_1, 20>();
        check_small::<Q5_0, 22>();
        check_small::<Q5_1, 24>();
        check_small::<Q8_0, 34>();
        check_small::<Mxfp4, 17>();
        check_small::<Iq4Nl, 18>();
    }

    fn check_super<B: PackedSuper<SIZE>, const SIZE: usize>() {
        for seed in 0..300 {
            let block: [u8; SIZE] = bytes(seed);
            let (mut w, mut expected) = ([Super::ZERO], Super::ZERO);
            unpack_super::<B, SIZE>(&[block], &mut w);
            let [mut w] = w;
            unpack::super_block::<B, SIZE>(&block, &mut expected);
            assert_eq!((w.codes, w.scales, w.minimums), (expected.codes, expected.scales, expected.minimums));
            if !(expected.d.is_nan() || expected.dmin.is_nan()) {
                assert_eq!(bits([w.d, w.dmin]), bits([expected.d, expected.dmin]));
            }
            let mut x = Block8K { codes: codes(seed + 1000), d: 1.0, ..Block8K::ZERO };
            for (sum, codes) in x.sums.iter_mut().zip(x.codes.as_chunks::<16>().0) {
                *sum = codes.iter().map(|&code| i16::from(code)).sum();
            }
            let (products, minimums) = super_products(&w, &x);
            let mut all = [Sums::ZERO; 3];
            (w.d, w.dmin) = (1.0, 0.0);
            add_super::<1, true>(&[w], [&[x]], std::array::from_mut(&mut all[0]));
            add_super::<1, false>(&[w], [&[x]], std::array::from_mut(&mut all[1]));
            (w.d, w.dmin) = (0.0, 1.0);
            add_super::<1, false>(&[w], [&[x]], std::array::from_mut(&mut all[2]));
            assert_eq!(all.map(|sums| sum(&sums)), [products - minimums, products, -minimums]);
        }
    }

    #[test]
    fn vector_instructions_find_the_integers_of_super_blocks() {
        check_super::<Q2K, 84>();
        check_super::<Q3K, 110>();
        check_super::<Q4K, 144>();
        check_super::<Q5K, 176>();
        check_super::<Q6K, 210>();
    }

    /// Codes are where decoders find them: by the definition of the planes.
    #[test]
    fn scalar_sums_are_those_of_numbers() {
        let (row, x): (Vec<f32>, Vec<f32>) = (0..40).map(|i| (i as f32, (i % 7) as f32)).unzip();
        let expected: f32 = row.iter().zip(&x).map(|(a, b)| a * b).sum();
        assert_eq!(numbers_of_row::<f32>(&row, &x), expected);
        assert_eq!(numbers::<f32, 1, 1>([&row], [&x]), [[expected]]);
    }
}
