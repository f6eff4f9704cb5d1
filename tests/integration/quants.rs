//! The codec against golden vectors of the real ggml (`fixtures/quants`), and what it promises on
//! any input.

use std::fs;
use std::path::PathBuf;

use chatvec::ggml::GgmlType;
use chatvec::quants::{
    Error, Level, dequantize_row, dequantize_row_at, is_supported, quantize_row, quantize_rows, quantize_rows_at,
    requires_importance, supported,
};
use sha2::{Digest, Sha256};

/// What `fixtures/quants/make.py` wrote.
struct Golden {
    /// Weights of each distribution.
    n_weights: usize,
    distributions: Vec<String>,
    input: Vec<f32>,
    /// Of a row of `n_weights`.
    importance: Vec<f32>,
    types: Vec<GoldenType>,
}

struct GoldenType {
    ty: GgmlType,
    /// By distribution: of the blocks without importance, if there are any.
    decoded_sha256: Vec<String>,
    /// By distribution, one after the other; none if the type requires importance.
    blocks: Option<Vec<u8>>,
    /// The same with importance; none if the type does not heed it.
    weighted_blocks: Option<Vec<u8>>,
    random_blocks: Vec<u8>,
    random_weights: Vec<f32>,
}

fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/quants").join(name);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

impl Golden {
    fn read() -> Self {
        let manifest: serde_json::Value = serde_json::from_slice(&fixture("manifest.json")).unwrap();
        let distributions: Vec<String> =
            manifest["distributions"].as_array().unwrap().iter().map(|d| d.as_str().unwrap().to_owned()).collect();
        let golden_type = |entry: &serde_json::Value| {
            let name = entry["name"].as_str().unwrap();
            let sha256 = |d: &String| entry["decoded_sha256"][d].as_str().unwrap().to_owned();
            let is = |key: &str| entry[key].as_bool().unwrap();
            GoldenType {
                ty: name.parse().unwrap(),
                decoded_sha256: distributions.iter().map(sha256).collect(),
                blocks: (!is("requires_importance")).then(|| fixture(&format!("{name}.blocks"))),
                weighted_blocks: is("heeds_importance").then(|| fixture(&format!("{name}.imatrix.blocks"))),
                random_blocks: fixture(&format!("{name}.random.blocks")),
                random_weights: floats(&fixture(&format!("{name}.random.f32"))),
            }
        };
        Golden {
            n_weights: manifest["n_weights"].as_u64().unwrap() as usize,
            types: manifest["types"].as_array().unwrap().iter().map(golden_type).collect(),
            input: floats(&fixture("input.f32")),
            importance: floats(&fixture("importance.f32")),
            distributions,
        }
    }

    /// Each distribution's name, weights and number.
    fn rows(&self) -> impl Iterator<Item = (&str, &[f32], usize)> {
        let names = self.distributions.iter().map(String::as_str);
        names.zip(self.input.chunks_exact(self.n_weights)).enumerate().map(|(i, (name, row))| (name, row, i))
    }
}

fn row_size(ty: GgmlType, n_weights: usize) -> usize {
    ty.size_of(n_weights as u64).unwrap() as usize
}

/// Encodes without importance, or, where there must be one, with the same for each weight.
fn encode(ty: GgmlType, weights: &[f32]) -> Vec<u8> {
    let same = vec![1.0; weights.len()];
    encode_at(Level::current(), ty, weights, requires_importance(ty).then_some(&same[..]))
}

fn encode_at(level: Level, ty: GgmlType, weights: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    // Not zeroed: the encoder must write every byte.
    let mut blocks = vec![0xa5; row_size(ty, weights.len())];
    quantize_rows_at(level, ty, weights, importance, &mut blocks).unwrap();
    blocks
}

fn decode(ty: GgmlType, blocks: &[u8]) -> Vec<f32> {
    let mut weights = vec![f32::NAN; blocks.len() / ty.block_size() * ty.block_len()];
    dequantize_row(ty, blocks, &mut weights).unwrap();
    weights
}

/// Panics with the first block that differs.
fn assert_same_blocks(ty: GgmlType, what: &str, found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len(), "{ty} {what}: length");
    let size = ty.block_size();
    let differ: Vec<usize> =
        (0..found.len() / size).filter(|i| found[i * size..][..size] != expected[i * size..][..size]).collect();
    if let Some(&i) = differ.first() {
        let (found, expected) = (&found[i * size..][..size], &expected[i * size..][..size]);
        panic!(
            "{ty} {what}: {} blocks differ, first block {i}\nfound    {found:02x?}\nexpected {expected:02x?}",
            differ.len()
        );
    }
}

/// Panics with the first weight whose bits differ.
fn assert_same_bits(ty: GgmlType, what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{ty} {what}: length");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            found.to_bits() == expected.to_bits(),
            "{ty} {what}: block {} weight {}: found {found:e} ({:08x}), expected {expected:e} ({:08x})",
            i / ty.block_len(),
            i % ty.block_len(),
            found.to_bits(),
            expected.to_bits(),
        );
    }
}

/// A small generator, so that random bytes are the same on every run (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }
}

#[test]
fn golden_vectors_cover_every_supported_type() {
    let mut covered: Vec<GgmlType> = Golden::read().types.iter().map(|golden| golden.ty).collect();
    covered.push(GgmlType::F32); // its blocks are the weights
    covered.sort();
    assert_eq!(covered, supported().collect::<Vec<_>>());
}

#[test]
fn encodes_to_the_bytes_of_ggml() {
    let golden = Golden::read();
    for reference in &golden.types {
        let ty = reference.ty;
        assert_eq!(reference.blocks.is_none(), requires_importance(ty), "{ty}");
        let size = row_size(ty, golden.n_weights);
        for (name, row, i) in golden.rows() {
            for level in Level::available() {
                if let Some(blocks) = &reference.blocks {
                    let found = encode_at(level, ty, row, None);
                    assert_same_blocks(ty, &format!("{name} {level}"), &found, &blocks[i * size..][..size]);
                }
                // A type that does not heed it encodes as without.
                let weighted = reference.weighted_blocks.as_ref().or(reference.blocks.as_ref()).unwrap();
                let found = encode_at(level, ty, row, Some(&golden.importance));
                assert_same_blocks(ty, &format!("{name} {level} imatrix"), &found, &weighted[i * size..][..size]);
            }
        }
    }
}

#[test]
fn each_row_is_encoded_with_the_same_importance() {
    let golden = Golden::read();
    let n_rows = golden.distributions.len();
    for reference in &golden.types {
        let Some(expected) = &reference.weighted_blocks else { continue };
        let found = encode_at(Level::current(), reference.ty, &golden.input, Some(&golden.importance));
        assert_same_blocks(reference.ty, &format!("{n_rows} rows"), &found, expected);
    }
}

#[test]
fn decodes_to_the_bits_of_ggml() {
    let golden = Golden::read();
    for reference in &golden.types {
        let size = row_size(reference.ty, golden.n_weights);
        let blocks = reference.blocks.as_ref().or(reference.weighted_blocks.as_ref()).unwrap();
        for (name, _, i) in golden.rows() {
            for level in Level::available() {
                let mut row = vec![f32::NAN; golden.n_weights];
                dequantize_row_at(level, reference.ty, &blocks[i * size..][..size], &mut row).unwrap();
                let mut sha256 = Sha256::new();
                row.iter().for_each(|weight| sha256.update(weight.to_le_bytes()));
                let found: String = sha256.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
                let expected = &reference.decoded_sha256[i];
                assert_eq!(found, *expected, "{} {name} {level}: SHA-256 of the decoded row", reference.ty);
            }
        }
    }
}

#[test]
fn decodes_codes_that_no_encoder_emits() {
    for reference in Golden::read().types {
        let found = decode(reference.ty, &reference.random_blocks);
        assert_same_bits(reference.ty, "random blocks", &found, &reference.random_weights);
    }
}

#[test]
fn f32_rows_pass_unchanged() {
    let golden = Golden::read();
    let blocks = encode(GgmlType::F32, &golden.input);
    assert_eq!(blocks, fixture("input.f32"));
    assert_same_bits(GgmlType::F32, "all", &decode(GgmlType::F32, &blocks), &golden.input);
}

#[test]
fn a_row_cut_anywhere_between_blocks_gives_the_same_bytes() {
    let golden = Golden::read();
    for ty in supported() {
        let len = ty.block_len();
        for (name, row, _) in golden.rows() {
            let whole = encode(ty, row);
            for n_blocks in [1, 2, 3, 7] {
                let pieces: Vec<u8> = row.chunks(n_blocks * len).flat_map(|piece| encode(ty, piece)).collect();
                assert_same_blocks(ty, &format!("{name} cut into {n_blocks}"), &pieces, &whole);
                let decoded: Vec<f32> =
                    whole.chunks(n_blocks * ty.block_size()).flat_map(|piece| decode(ty, piece)).collect();
                assert_same_bits(ty, &format!("{name} cut into {n_blocks}"), &decoded, &decode(ty, &whole));
            }
        }
    }
}

#[test]
fn blocks_need_no_alignment() {
    let golden = Golden::read();
    for ty in supported() {
        let row = &golden.input[..golden.n_weights];
        let blocks = encode(ty, row);
        let mut shifted = vec![0; blocks.len() + 1];
        let same = vec![1.0; row.len()];
        let importance = requires_importance(ty).then_some(&same[..]);
        quantize_rows(ty, row, importance, &mut shifted[1..]).unwrap();
        assert_same_blocks(ty, "shifted by a byte", &shifted[1..], &blocks);
        assert_same_bits(ty, "shifted by a byte", &decode(ty, &shifted[1..]), &decode(ty, &blocks));
    }
}

#[test]
fn says_which_length_does_not_fit() {
    for ty in supported() {
        let (n_weights, expected_bytes) = (ty.block_len() * 2, ty.block_size() * 2);
        let ones = vec![1.0; n_weights];
        let importance = requires_importance(ty).then_some(&ones[..]);
        let encode = |n_weights: usize, n_bytes: usize| {
            quantize_rows(ty, &vec![0.0; n_weights], importance, &mut vec![0; n_bytes])
        };
        for found_bytes in [0, expected_bytes - 1, expected_bytes + 1] {
            let error = Error::Length { ty, n_weights, expected_bytes, found_bytes };
            assert_eq!(encode(n_weights, found_bytes), Err(error.clone()));
            assert_eq!(dequantize_row(ty, &vec![0; found_bytes], &mut vec![0.0; n_weights]), Err(error));
        }
        if ty.is_quantized() {
            let n_weights = n_weights + 1;
            let error = Error::PartialBlock { ty, n_weights };
            assert_eq!(encode(n_weights, expected_bytes), Err(error.clone()));
            assert_eq!(dequantize_row(ty, &vec![0; expected_bytes], &mut vec![0.0; n_weights]), Err(error));
        }
        assert_eq!(encode(0, 0), Ok(()));
        assert_eq!(dequantize_row(ty, &[], &mut []), Ok(()));
    }
}

#[test]
fn says_which_importance_does_not_fit() {
    for ty in supported() {
        let (len, size) = (ty.block_len(), ty.block_size());
        let encode = |n_blocks: usize, importance: Option<&[f32]>| {
            quantize_rows(ty, &vec![1.0; n_blocks * len], importance, &mut vec![0; n_blocks * size])
        };
        match requires_importance(ty) {
            true => assert_eq!(encode(2, None), Err(Error::ImportanceMissing { ty })),
            false => assert_eq!(encode(2, None), Ok(())),
        }
        let ones = vec![1.0; 4 * len];
        for (n_blocks, row_blocks) in [(2, 1), (2, 2), (4, 2), (0, 2)] {
            assert_eq!(encode(n_blocks, Some(&ones[..row_blocks * len])), Ok(()), "{ty}");
        }
        for (n_blocks, row_len) in [(2, 0), (2, 4 * len), (3, 2 * len), (2, len / 2 + 2 * len)] {
            let n_weights = n_blocks * len;
            if row_len > 0 && n_weights.is_multiple_of(row_len) {
                continue;
            }
            let error = Error::ImportanceLength { ty, n_weights, row_len };
            assert_eq!(encode(n_blocks, Some(&ones[..row_len])), Err(error), "{ty}");
        }
    }
}

#[test]
fn names_the_type_it_cannot_convert() {
    for ty in GgmlType::all().filter(|&ty| !is_supported(ty)) {
        let n_weights = ty.block_len();
        let mut blocks = vec![0; ty.block_size()];
        assert_eq!(quantize_row(ty, &vec![0.0; n_weights], &mut blocks), Err(Error::Unsupported { ty }));
        assert_eq!(dequantize_row(ty, &blocks, &mut vec![0.0; n_weights]), Err(Error::Unsupported { ty }));
    }
    let message = Error::Unsupported { ty: GgmlType::I32 }.to_string();
    assert_eq!(message, "no conversion between I32 and f32");
}

#[test]
fn meaningless_weights_do_not_panic() {
    let nan = [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff)];
    let edge = [f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::MIN_POSITIVE, f32::from_bits(1), 0.0, -0.0];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for ty in supported() {
        for x in nan.iter().chain(&edge) {
            decode(ty, &encode(ty, &[*x; 256]));
        }
        for _ in 0..64 {
            // Any bits; then edges among weights that mean something.
            let bits: Vec<f32> = (0..256).map(|_| f32::from_bits(random.next())).collect();
            decode(ty, &encode(ty, &bits));
            let mut mixed: Vec<f32> = (0..256).map(|_| random.next() as f32 / u32::MAX as f32 - 0.5).collect();
            for _ in 0..random.next() % 32 {
                let i = random.next() as usize % 256;
                mixed[i] = *nan.iter().chain(&edge).nth(random.next() as usize % 12).unwrap();
            }
            decode(ty, &encode(ty, &mixed));
        }
    }
}

#[test]
fn any_bytes_decode() {
    let mut random = Random(1);
    for ty in supported() {
        for _ in 0..256 {
            let blocks: Vec<u8> = (0..8 * ty.block_size()).map(|_| random.next() as u8).collect();
            decode(ty, &blocks);
        }
        for byte in [0x00, 0x7f, 0x80, 0xff] {
            decode(ty, &vec![byte; 8 * ty.block_size()]);
        }
    }
}

#[test]
fn every_f16_value_survives_decoding_and_encoding() {
    let blocks: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for ty in [GgmlType::F16, GgmlType::BF16] {
        let weights = decode(ty, &blocks);
        let again = encode(ty, &weights);
        for ((weight, found), expected) in weights.iter().zip(again.as_chunks::<2>().0).zip(blocks.as_chunks::<2>().0) {
            assert!(found == expected || weight.is_nan(), "{ty}: {weight:e} from {expected:02x?} became {found:02x?}");
        }
    }
}

#[test]
fn f16_rounds_to_nearest_even_and_has_one_nan() {
    for (weight, half) in [
        (65519.996, 0x7bff),
        (65520.0, 0x7c00),
        (1.0 + 2f32.powi(-11), 0x3c00),
        (1.0 + 3.0 * 2f32.powi(-11), 0x3c02),
        (2f32.powi(-25), 0x0000),
        (1.5 * 2f32.powi(-25), 0x0001),
        (-1e-30, 0x8000),
        (f32::from_bits(0x7f80_0001), 0x7e00),
        (f32::from_bits(0xffff_ffff), 0xfe00_u16),
    ] {
        assert_eq!(encode(GgmlType::F16, &[weight]), half.to_le_bytes(), "{weight:e}");
    }
}
