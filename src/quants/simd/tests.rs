//! Every level gives the bytes and bits of the scalar one.

use super::Level;
use crate::ggml::GgmlType;
use crate::quants::{dequantize_row_at, quantize_rows_at, supported};

/// A small generator (xorshift64*).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// From −1 to 1, mostly near 0.
    fn weight(&mut self) -> f32 {
        let x = self.bits() as f32 / 2f32.powi(31) - 1.0;
        x * x * x
    }
}

/// Kinds of rows, many of them made to have ties, zeros and sums that overflow or vanish.
const KINDS: usize = 12;

fn weight(kind: usize, i: usize, random: &mut Random) -> f32 {
    match kind {
        0 => random.weight(),
        1 => (random.bits() % 15) as f32 * 0.125 - 0.875,
        2 => (i / 16 % 7) as f32 * 0.1 - 0.3,
        3 => [0.0, -0.0, random.weight()][random.bits() as usize % 3],
        4 => [0.5, -0.5][random.bits() as usize % 2],
        5 => f32::from_bits(random.bits() & 0x807f_ffff),
        6 => random.weight() * [1e37, 1e18, 1e-16, 1e-22][i / 256 % 4],
        7 => [0.0, random.weight()][usize::from(i % 32 == i / 32 % 32)],
        8 => random.weight() - 10.0,
        9 => random.weight() + 10.0,
        10 => random.weight() * [0.01, 100.0][usize::from(i.is_multiple_of(97))],
        _ => 0.7,
    }
}

#[test]
fn every_level_gives_the_bytes_of_the_scalar_one() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    // An odd number of super-blocks in a row, and more blocks than a batch, with a part of one at
    // the end.
    let row_len = 3 * 256;
    let n_rows = 11;
    for kind in 0..KINDS {
        let weights: Vec<f32> = (0..n_rows * row_len).map(|i| weight(kind, i, &mut random)).collect();
        let importance: Vec<f32> =
            (0..row_len).map(|i| [0.0, random.weight().abs()][usize::from(i % 61 != 0)]).collect();
        for (ty, importance) in supported().flat_map(|ty| [(ty, None), (ty, Some(&importance[..]))]) {
            let n_bytes = weights.len() / ty.block_len() * ty.block_size();
            let encode = |level| {
                let mut blocks = vec![0xa5; n_bytes];
                quantize_rows_at(level, ty, &weights, importance, &mut blocks).map(|()| blocks)
            };
            let Ok(expected) = encode(Level::Scalar) else {
                assert!(importance.is_none(), "{ty} kind {kind}");
                continue;
            };
            for level in Level::available() {
                let found = encode(level).expect("as the scalar level");
                let same =
                    found.chunks(ty.block_size()).zip(expected.chunks(ty.block_size())).position(|(a, b)| a != b);
                assert_eq!(same, None, "{ty} at {level}, kind {kind}, importance {}", importance.is_some());
            }
        }
    }
}

#[test]
fn every_level_decodes_to_the_bits_of_the_scalar_one() {
    let mut random = Random(0xfeed);
    for ty in supported() {
        let blocks: Vec<u8> = (0..64 * ty.block_size()).map(|_| random.bits() as u8).collect();
        let decode = |level| {
            let mut weights = vec![0.0; 64 * ty.block_len()];
            dequantize_row_at(level, ty, &blocks, &mut weights).expect("whole blocks");
            // Which NaN it is depends on the compiler.
            weights.iter().map(|w| if w.is_nan() { 0x7fc0_0000 } else { w.to_bits() }).collect::<Vec<_>>()
        };
        let expected = decode(Level::Scalar);
        for level in Level::available() {
            assert!(decode(level) == expected, "{ty} at {level}");
        }
    }
}

/// Rows of F16 of every length around a vector's, NaN included: there, too, the bytes of all levels
/// are the same.
#[test]
fn every_level_gives_the_halves_of_the_scalar_one() {
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let decode = |level| {
        let mut weights = vec![0.0; 1 << 16];
        dequantize_row_at(level, GgmlType::F16, &halves, &mut weights).expect("whole blocks");
        weights
    };
    let encode = |level, weights: &[f32]| {
        let mut blocks = vec![0xa5; 2 * weights.len()];
        quantize_rows_at(level, GgmlType::F16, weights, None, &mut blocks).expect("whole blocks");
        blocks
    };
    let bits = |w: &f32| if w.is_nan() { w.to_bits() | 1 << 22 } else { w.to_bits() };
    let weights = decode(Level::Scalar);
    // Around every number and every middle between two, where rounding changes, and NaN that say
    // something.
    let near = weights.iter().zip(&weights[1..]).flat_map(|(a, b)| [*a, f32::midpoint(*a, *b)]);
    let near: Vec<f32> = near.flat_map(|x| [x.next_down(), x, x.next_up(), f32::from_bits(x.to_bits() | 1)]).collect();
    for level in Level::available() {
        let found = decode(level);
        assert!(found.iter().map(bits).eq(weights.iter().map(bits)), "{level}");
        assert!(encode(level, &near) == encode(Level::Scalar, &near), "{level}");
        for (start, n) in (0..40).map(|n| (near.len() - 7 * n, n)) {
            let weights = &near[start..start + n];
            assert_eq!(encode(level, weights), encode(Level::Scalar, weights), "{n} at {level}");
        }
    }
}

#[test]
fn a_level_that_the_processor_lacks_is_an_error() {
    for level in ["avx2", "avx512"].map(|name| name.parse::<Level>().expect("a level")) {
        let result = quantize_rows_at(level, GgmlType::F32, &[], None, &mut []);
        assert_eq!(result.is_ok(), level.is_available(), "{level}");
    }
}
