//! Every type: bits of `to_float`, bytes of `ggml_quantize_chunk`, with and without an importance
//! matrix, at every level of vector instructions that the processor has.

use chatvec::ggml::GgmlType::{self, *};
use chatvec::quants::{Level, dequantize_row_at, is_supported, quantize_rows_at, requires_importance, supported};

use crate::distributions::{DISTRIBUTIONS, Random, importance, overflows, weights};
use crate::ggml;

/// Lengths of rows: an odd and an even number of super-blocks.
const ROW_LENS: [usize; 2] = [768, 2048];

/// Weights of each distribution, if the environment does not say: in all of them together, 4
/// million, and 256 thousand for the types whose encoders are slow in ggml.
fn n_weights(ty: GgmlType) -> usize {
    let asked = std::env::var("CHATVEC_ORACLE_WEIGHTS").ok();
    let asked = asked.map(|n| n.parse().expect("CHATVEC_ORACLE_WEIGHTS is a number"));
    let total = if is_on_grid(ty) { 1 << 18 } else { 1 << 22 };
    asked.unwrap_or(total / DISTRIBUTIONS.len())
}

/// The types whose codes are points of a grid.
fn is_on_grid(ty: GgmlType) -> bool {
    matches!(ty, IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S)
}

fn encode(level: Level, ty: GgmlType, x: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    // Not zeroed: the encoder must write every byte.
    let mut blocks = vec![0xa5; x.len() / ty.block_len() * ty.block_size()];
    quantize_rows_at(level, ty, x, importance, &mut blocks).expect("a type and a level that there is");
    blocks
}

fn decode(level: Level, ty: GgmlType, blocks: &[u8]) -> Vec<f32> {
    let mut weights = vec![f32::NAN; blocks.len() / ty.block_size() * ty.block_len()];
    dequantize_row_at(level, ty, blocks, &mut weights).expect("a type and a level that there is");
    weights
}

/// Panics with the first block that differs.
fn assert_same_blocks(ty: GgmlType, what: &str, found: &[u8], expected: &[u8]) {
    let size = ty.block_size();
    let differs = |i: &usize| found[i * size..][..size] != expected[i * size..][..size];
    let differ: Vec<usize> = (0..expected.len() / size).filter(differs).collect();
    if let Some(&i) = differ.first() {
        let (found, expected) = (&found[i * size..][..size], &expected[i * size..][..size]);
        panic!("{ty}, {what}: {} blocks differ; block {i}\nfound {found:02x?}\nggml  {expected:02x?}", differ.len());
    }
}

/// Panics with the first weight whose bits differ. What is no number may be another one.
fn assert_same_bits(ty: GgmlType, what: &str, found: &[f32], expected: &[f32]) {
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let is_same = found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan());
        assert!(is_same, "{ty}, {what}: weight {i}: found {found:e}, ggml {expected:e}");
    }
}

fn encodes_and_decodes_as_ggml(ty: GgmlType) {
    assert!(is_supported(ty), "{ty}");
    for (d, (name, next)) in DISTRIBUTIONS.into_iter().enumerate() {
        // Where sums overflow, ggml finds no point of the grid and ends the process.
        if is_on_grid(ty) && overflows(name) {
            continue;
        }
        let row_len = ROW_LENS[d % 2];
        let x = weights(next, n_weights(ty).next_multiple_of(row_len));
        let matrix = importance(row_len, d as u64 + 1);
        let given = [None, Some(&matrix[..])];
        for importance in given.into_iter().skip(requires_importance(ty).into()) {
            let expected = ggml::quantize(ty, &x, row_len, importance);
            let decoded = ggml::dequantize(ty, &expected);
            for level in Level::available() {
                let what = format!("{name}, {level}, importance: {}", importance.is_some());
                assert_same_blocks(ty, &what, &encode(level, ty, &x, importance), &expected);
                assert_same_bits(ty, &what, &decode(level, ty, &expected), &decoded);
            }
        }
    }
    // Any bytes are a block.
    let mut random = Random::new(ty.id().into());
    let blocks: Vec<u8> = (0..1000 * ty.block_size()).map(|_| random.bits() as u8).collect();
    let decoded = ggml::dequantize(ty, &blocks);
    for level in Level::available() {
        assert_same_bits(ty, &format!("random bytes, {level}"), &decode(level, ty, &blocks), &decoded);
    }
}

/// A test for each type, so that they run side by side.
macro_rules! types {
    ($($name:ident $ty:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            encodes_and_decodes_as_ggml($ty);
        })*

        #[test]
        fn every_type_has_a_test() {
            let mut tested = vec![$($ty),*];
            tested.push(F32); // copied
            tested.sort();
            assert_eq!(tested, supported().collect::<Vec<_>>());
        }
    };
}

types! {
    f16 F16, bf16 BF16, q4_0 Q4_0, q4_1 Q4_1, q5_0 Q5_0, q5_1 Q5_1, q8_0 Q8_0,
    q2_k Q2_K, q3_k Q3_K, q4_k Q4_K, q5_k Q5_K, q6_k Q6_K, iq4_nl IQ4_NL, iq4_xs IQ4_XS,
    iq1_s IQ1_S, iq1_m IQ1_M, iq2_xxs IQ2_XXS, iq2_xs IQ2_XS, iq2_s IQ2_S, iq3_xxs IQ3_XXS, iq3_s IQ3_S,
    tq1_0 TQ1_0, tq2_0 TQ2_0, mxfp4 MXFP4, nvfp4 NVFP4, q1_0 Q1_0, q2_0 Q2_0,
}
