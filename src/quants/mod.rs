//! The codec: rows of f32 to blocks and back, to ggml's bits.
//!
//! A *row* is what ggml stores as `ne[0]` neighbouring weights; it is a whole number of blocks, and
//! no block knows of its neighbours. So everything here works on any whole number of blocks: a part
//! of a row, a row, or many rows that lie one after the other. Encoding with an importance matrix
//! is the exception: it takes whole rows, because some types weigh a block by the variance of its
//! row. Blocks are little-endian byte slices of no particular alignment, as a file holds them.
//!
//! Decoding gives the bits of ggml's `to_float`; encoding gives the bytes of `ggml_quantize_chunk`,
//! with or without an importance matrix, for finite weights at any [`Level`] of vector
//! instructions. That is a promise about the order of f32 operations: no fused multiply-add, no
//! reassociated sum. The rules are those of ggml/src/ggml-quants.c at ggml 0.26, cited by function
//! name beside the code.
//!
//! The codec refuses types whose blocks it does not know ([`Error::Unsupported`]). It does not look
//! for NaN or infinity: such weights give blocks without meaning, but never a panic. Nothing here
//! allocates, but for the neighbours in a grid (`grids`), which are found once, a [`Gram`] and its
//! [`Feedback`], and products of rows (`dot`).
//!
//! | part | types |
//! |---|---|
//! | `float` | F32, F16, BF16 |
//! | `legacy`, `legacy_importance` | Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: 32 weights and one scale |
//! | `q2_k` to `q6_k` | the K types: super-blocks of 256 weights, whose sub-blocks have small scales of their own |
//! | `iq1`, `iq2`, `iq3` | IQ1_S, IQ1_M; IQ2_XXS, IQ2_XS, IQ2_S; IQ3_XXS, IQ3_S: super-blocks of points on a grid |
//! | `iq4` | IQ4_NL and IQ4_XS |
//! | `super_block` | what the K encoders have in common |
//! | `search`, `weighting` | searches for scales, and how much the error of a weight counts in them |
//! | `lattice`, `grids` | the search of the IQ2 and IQ3 encoders, and the grids |
//! | `ternary` | TQ1_0, TQ2_0: super-blocks of 256 weights of three values |
//! | `fp4` | MXFP4, NVFP4: floats of 4 bits and one scale |
//! | `bits` | Q1_0, Q2_0: one scale for 128 or 64 weights |
//! | `planes`, `scales` | how codes and 6-bit scales share bytes in a super-block |
//! | `rounding` | from floats to codes |
//! | `grid`, `feedback` | codes chosen anew on the grid that blocks have, with errors passed on along the row |
//! | `gain` | blocks of few values that hold as much of a vector as there is |
//! | `dot`, `unpack`, `operands`, `activations` | products of stored rows with rounded activations |
//! | `simd`, `batch` | vector instructions, also for loops of other modules, and rows cut into what they take |

mod activations;
mod batch;
mod bits;
mod dot;
mod feedback;
mod float;
mod fp4;
mod gain;
mod grid;
mod grids;
mod iq1;
mod iq2;
mod iq3;
mod iq4;
mod lattice;
mod legacy;
mod legacy_importance;
mod operands;
mod planes;
mod q2_k;
mod q3_k;
mod q4_k;
mod q5_k;
mod q6_k;
mod rounding;
mod scales;
mod search;
mod simd;
mod super_block;
mod ternary;
mod unpack;
mod weighting;

pub(crate) use activations::Activations;
pub(crate) use dot::{dot_floats, multiply, round_activations};

pub use feedback::{Feedback, Gram};
pub use gain::{has_few_values, quantize_to_unit_gain};
pub use grid::{Dither, Placement, has_grid, round_to_grid};
#[cfg(test)]
pub(crate) use simd::vectorized_at;
pub use simd::{Level, UnknownLevel, limit_level};
pub(crate) use simd::{Loops, vectorized};

use crate::ggml::GgmlType;
use batch::WeightRows;

/// Why a row was not converted. Each is a mistake of the caller; no content of a row or a block is
/// an error.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The codec has no conversion for this type.
    #[error("no conversion between {ty} and f32")]
    Unsupported {
        /// The type asked for.
        ty: GgmlType,
    },
    /// The weights are no whole number of blocks.
    #[error("{n_weights} weights are no whole number of {ty} blocks of {}", .ty.block_len())]
    PartialBlock {
        /// The type asked for.
        ty: GgmlType,
        /// Length of the f32 slice.
        n_weights: usize,
    },
    /// The byte slice has not the size that the weights need.
    #[error("{n_weights} weights of {ty} take {expected_bytes} bytes, found {found_bytes}")]
    Length {
        /// The type asked for.
        ty: GgmlType,
        /// Length of the f32 slice.
        n_weights: usize,
        /// Bytes that many weights take.
        expected_bytes: usize,
        /// Length of the byte slice.
        found_bytes: usize,
    },
    /// The type is worthless without an importance matrix, and ggml refuses to write it so.
    #[error("{ty} cannot be encoded without an importance matrix")]
    ImportanceMissing {
        /// The type asked for.
        ty: GgmlType,
    },
    /// The weights are no whole number of the rows that the importance is for.
    #[error("the importance is for rows of {row_len} weights; {n_weights} weights of {ty} are no whole number of them")]
    ImportanceLength {
        /// The type asked for.
        ty: GgmlType,
        /// Length of the f32 slice.
        n_weights: usize,
        /// Length of the importance.
        row_len: usize,
    },
    /// The processor has not got the instructions asked for.
    #[error("this processor has no {level}; the best it has is {}", Level::best())]
    LevelMissing {
        /// The level asked for.
        level: Level,
    },
}

/// Whether rows of this type can be converted, in both directions.
pub fn is_supported(ty: GgmlType) -> bool {
    ty.is_weight_type()
}

/// Every type that [`is_supported`], in the order of ids.
pub fn supported() -> impl Iterator<Item = GgmlType> {
    GgmlType::all().filter(|&ty| is_supported(ty))
}

/// Decodes whole blocks of `ty` to f32, bit for bit as ggml's `to_float`.
///
/// `src` holds exactly the blocks of `dst.len()` weights. Any bytes are legal; what they mean may
/// be NaN.
///
/// # Errors
/// [`Error::Unsupported`], or a length that does not fit; `dst` is then untouched.
///
/// # Example
/// ```
/// use chatvec::ggml::GgmlType;
///
/// let block = [[0x00, 0x3c].as_slice(), &[0x98; 16]].concat(); // d = 1, codes 8 and 9
/// let mut weights = [0.0; 32];
/// chatvec::quants::dequantize_row(GgmlType::Q4_0, &block, &mut weights)?;
/// assert_eq!((weights[0], weights[16]), (0.0, 1.0));
/// # Ok::<(), chatvec::quants::Error>(())
/// ```
pub fn dequantize_row(ty: GgmlType, src: &[u8], dst: &mut [f32]) -> Result<(), Error> {
    dequantize_row_at(Level::current(), ty, src, dst)
}

/// Decodes a row by the instructions of `level`, to measure or test them. The bits are those of
/// [`dequantize_row`] at any level.
///
/// # Errors
/// As [`dequantize_row`], and [`Error::LevelMissing`].
pub fn dequantize_row_at(level: Level, ty: GgmlType, src: &[u8], dst: &mut [f32]) -> Result<(), Error> {
    check_level(level)?;
    check_lengths(ty, dst.len(), src.len())?;
    match ty {
        GgmlType::F32 => decode_blocks(level, src, dst, float::decode_f32),
        GgmlType::F16 => simd::decode_f16(level, src.as_chunks().0, dst.as_chunks_mut().0),
        GgmlType::Q4_0 => decode_blocks(level, src, dst, legacy::decode_q4_0),
        GgmlType::Q4_1 => decode_blocks(level, src, dst, legacy::decode_q4_1),
        GgmlType::Q5_0 => decode_blocks(level, src, dst, legacy::decode_q5_0),
        GgmlType::Q5_1 => decode_blocks(level, src, dst, legacy::decode_q5_1),
        GgmlType::Q8_0 => decode_blocks(level, src, dst, legacy::decode_q8_0),
        GgmlType::Q2_K => decode_blocks(level, src, dst, q2_k::decode),
        GgmlType::Q3_K => decode_blocks(level, src, dst, q3_k::decode),
        GgmlType::Q4_K => decode_blocks(level, src, dst, q4_k::decode),
        GgmlType::Q5_K => decode_blocks(level, src, dst, q5_k::decode),
        GgmlType::Q6_K => decode_blocks(level, src, dst, q6_k::decode),
        GgmlType::IQ2_XXS => decode_blocks(level, src, dst, iq2::decode_xxs),
        GgmlType::IQ2_XS => decode_blocks(level, src, dst, iq2::decode_xs),
        GgmlType::IQ3_XXS => decode_blocks(level, src, dst, iq3::decode_xxs),
        GgmlType::IQ1_S => decode_blocks(level, src, dst, iq1::decode_s),
        GgmlType::IQ4_NL => batch::decode::<iq4::Iq4Nl, _, _>(level, src, dst),
        GgmlType::IQ3_S => decode_blocks(level, src, dst, iq3::decode_s),
        GgmlType::IQ2_S => decode_blocks(level, src, dst, iq2::decode_s),
        GgmlType::IQ4_XS => batch::decode::<iq4::Iq4Xs, _, _>(level, src, dst),
        GgmlType::IQ1_M => decode_blocks(level, src, dst, iq1::decode_m),
        GgmlType::BF16 => decode_blocks(level, src, dst, float::decode_bf16),
        GgmlType::TQ1_0 => decode_blocks(level, src, dst, ternary::decode_tq1_0),
        GgmlType::TQ2_0 => decode_blocks(level, src, dst, ternary::decode_tq2_0),
        GgmlType::MXFP4 => decode_blocks(level, src, dst, fp4::decode_mxfp4),
        GgmlType::NVFP4 => decode_blocks(level, src, dst, fp4::decode_nvfp4),
        GgmlType::Q1_0 => decode_blocks(level, src, dst, bits::decode_q1_0),
        GgmlType::Q2_0 => decode_blocks(level, src, dst, bits::decode_q2_0),
        _ => return Err(Error::Unsupported { ty }),
    }
    Ok(())
}

/// Encodes f32 weights as whole blocks of `ty`, byte for byte as `ggml_quantize_chunk` without an
/// importance matrix.
///
/// `dst` holds exactly the blocks of `src.len()` weights, and every byte of it is written. Decoding
/// the result does not encode to the same bytes again for the K types.
///
/// # Errors
/// [`Error::Unsupported`], or a length that does not fit; `dst` is then untouched.
pub fn quantize_row(ty: GgmlType, src: &[f32], dst: &mut [u8]) -> Result<(), Error> {
    quantize_rows(ty, src, None, dst)
}

/// Encodes whole rows as [`quantize_row`] does, with an importance matrix if there is one: byte for
/// byte as `ggml_quantize_chunk`.
///
/// `importance` says how much the error of each weight of a row counts; it has the length of a row
/// and serves every row of `src`. Types for which ggml has no use for it are encoded as without.
///
/// # Errors
/// As [`quantize_row`]; [`Error::ImportanceMissing`] for types that [require](requires_importance)
/// one, [`Error::ImportanceLength`] if `src` is no whole number of rows, or a row no whole number
/// of blocks. `dst` is then untouched.
pub fn quantize_rows(ty: GgmlType, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> Result<(), Error> {
    quantize_rows_at(Level::current(), ty, src, importance, dst)
}

/// Encodes whole rows by the instructions of `level`, to measure or test them. The bytes are those
/// of [`quantize_rows`] at any level.
///
/// # Errors
/// As [`quantize_rows`], and [`Error::LevelMissing`].
pub fn quantize_rows_at(
    level: Level,
    ty: GgmlType,
    src: &[f32],
    importance: Option<&[f32]>,
    dst: &mut [u8],
) -> Result<(), Error> {
    check_level(level)?;
    check_lengths(ty, src.len(), dst.len())?;
    match importance.map(<[f32]>::len) {
        None if requires_importance(ty) => return Err(Error::ImportanceMissing { ty }),
        Some(row_len)
            if row_len == 0 || !src.len().is_multiple_of(row_len) || !row_len.is_multiple_of(ty.block_len()) =>
        {
            return Err(Error::ImportanceLength { ty, n_weights: src.len(), row_len });
        }
        _ => {}
    }
    let rows = WeightRows { weights: src, importance };
    match ty {
        GgmlType::F32 => encode_blocks(level, src, dst, float::encode_f32),
        GgmlType::F16 => simd::encode_f16(level, src.as_chunks().0, dst.as_chunks_mut().0),
        GgmlType::Q4_0 if importance.is_some() => {
            batch::encode::<legacy_importance::Symmetric<4>, _, 18>(level, rows, dst)
        }
        GgmlType::Q4_0 => encode_blocks(level, src, dst, legacy::encode_q4_0),
        GgmlType::Q4_1 if importance.is_some() => {
            batch::encode::<legacy_importance::WithMin<4>, _, 20>(level, rows, dst)
        }
        GgmlType::Q4_1 => encode_blocks(level, src, dst, legacy::encode_q4_1),
        GgmlType::Q5_0 if importance.is_some() => {
            batch::encode::<legacy_importance::Symmetric<5>, _, 22>(level, rows, dst)
        }
        GgmlType::Q5_0 => encode_blocks(level, src, dst, legacy::encode_q5_0),
        GgmlType::Q5_1 if importance.is_some() => {
            batch::encode::<legacy_importance::WithMin<5>, _, 24>(level, rows, dst)
        }
        GgmlType::Q5_1 => encode_blocks(level, src, dst, legacy::encode_q5_1),
        GgmlType::Q8_0 => encode_blocks(level, src, dst, legacy::encode_q8_0),
        GgmlType::Q2_K => batch::encode::<q2_k::Q2K, _, _>(level, rows, dst),
        GgmlType::Q3_K => batch::encode::<q3_k::Q3K, _, _>(level, rows, dst),
        GgmlType::Q4_K => batch::encode::<q4_k::Q4K, _, _>(level, rows, dst),
        GgmlType::Q5_K => batch::encode::<q5_k::Q5K, _, _>(level, rows, dst),
        GgmlType::Q6_K => batch::encode::<q6_k::Q6K, _, _>(level, rows, dst),
        GgmlType::IQ2_XXS => batch::encode::<iq2::Xxs, _, _>(level, rows, dst),
        GgmlType::IQ2_XS => batch::encode::<iq2::Xs, _, _>(level, rows, dst),
        GgmlType::IQ3_XXS => batch::encode::<iq3::Xxs, _, _>(level, rows, dst),
        GgmlType::IQ1_S => batch::encode::<iq1::S, _, _>(level, rows, dst),
        GgmlType::IQ4_NL => batch::encode::<iq4::Iq4Nl, _, _>(level, rows, dst),
        GgmlType::IQ3_S => batch::encode::<iq3::S, _, _>(level, rows, dst),
        GgmlType::IQ2_S => batch::encode::<iq2::S, _, _>(level, rows, dst),
        GgmlType::IQ4_XS => batch::encode::<iq4::Iq4Xs, _, _>(level, rows, dst),
        GgmlType::IQ1_M => batch::encode::<iq1::M, _, _>(level, rows, dst),
        GgmlType::BF16 => encode_blocks(level, src, dst, float::encode_bf16),
        GgmlType::TQ1_0 => encode_blocks(level, src, dst, ternary::encode_tq1_0),
        GgmlType::TQ2_0 => encode_blocks(level, src, dst, ternary::encode_tq2_0),
        GgmlType::MXFP4 => encode_blocks(level, src, dst, fp4::encode_mxfp4),
        GgmlType::NVFP4 => encode_blocks(level, src, dst, fp4::encode_nvfp4),
        GgmlType::Q1_0 => encode_q1_0(level, src, dst),
        GgmlType::Q2_0 => encode_blocks(level, src, dst, bits::encode_q2_0),
        _ => return Err(Error::Unsupported { ty }),
    }
    Ok(())
}

/// Whether ggml refuses to encode this type without an importance matrix
/// (`ggml_quantize_requires_imatrix`).
pub fn requires_importance(ty: GgmlType) -> bool {
    matches!(ty, GgmlType::IQ2_XXS | GgmlType::IQ2_XS | GgmlType::IQ1_S)
}

/// Why an encoder may expect an importance.
const REQUIRED: &str = "a type that requires importance is refused without";

/// Whether an importance matrix changes how this type is encoded (`ggml_quantize_chunk`: the other
/// types' functions do not look at it).
pub fn uses_importance(ty: GgmlType) -> bool {
    use GgmlType::*;
    let searches = matches!(ty, Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | IQ4_NL | IQ4_XS);
    searches || matches!(ty, IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S)
}

/// Weights in a super-block of the K types (`QK_K`).
const QK_K: usize = 256;

fn check_lengths(ty: GgmlType, n_weights: usize, found_bytes: usize) -> Result<(), Error> {
    if !is_supported(ty) {
        return Err(Error::Unsupported { ty });
    }
    if !n_weights.is_multiple_of(ty.block_len()) {
        return Err(Error::PartialBlock { ty, n_weights });
    }
    // No supported block takes more bytes than its weights as f32, which are in memory: the product
    // fits.
    let expected_bytes = n_weights / ty.block_len() * ty.block_size();
    if found_bytes != expected_bytes {
        return Err(Error::Length { ty, n_weights, expected_bytes, found_bytes });
    }
    Ok(())
}

fn check_level(level: Level) -> Result<(), Error> {
    if level.is_available() { Ok(()) } else { Err(Error::LevelMissing { level }) }
}

/// Runs `decode` over blocks of `SIZE` bytes and `LEN` weights. The sizes come from the signature
/// of `decode`, so a block function that disagrees with the type table leaves weights unwritten,
/// which the golden vectors would show.
///
/// A block function that is `#[inline(always)]` is compiled for the instructions of each level.
fn decode_blocks<const SIZE: usize, const LEN: usize>(
    level: Level,
    src: &[u8],
    dst: &mut [f32],
    decode: impl Fn(&[u8; SIZE], &mut [f32; LEN]),
) {
    simd::convert(level, src.as_chunks().0, dst.as_chunks_mut().0, decode);
}

/// Runs `encode` over blocks of `LEN` weights and `SIZE` bytes; see [`decode_blocks`].
fn encode_blocks<const SIZE: usize, const LEN: usize>(
    level: Level,
    src: &[f32],
    dst: &mut [u8],
    encode: impl Fn(&[f32; LEN], &mut [u8; SIZE]),
) {
    simd::convert(level, src.as_chunks().0, dst.as_chunks_mut().0, encode);
}

fn encode_q1_0(level: Level, src: &[f32], dst: &mut [u8]) {
    let (src, rest) = src.as_chunks().0.as_chunks::<{ bits::SIDE_BY_SIDE }>();
    let (dst, rest_dst) = dst.as_chunks_mut().0.as_chunks_mut();
    simd::convert(level, src, dst, bits::encode_q1_0);
    simd::convert(level, rest.as_chunks::<1>().0, rest_dst.as_chunks_mut().0, bits::encode_q1_0);
}

/// The `N` bytes of a block from `at`, a field of a layout table. Both are constants at every call,
/// so the check is made by the compiler.
#[inline(always)]
fn field<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    block[at..].first_chunk().expect("a field ends within its block: the layout tables say so")
}

/// The `N` bytes of a block from `at`, to be written: see [`field`].
#[inline(always)]
fn field_mut<const N: usize>(block: &mut [u8], at: usize) -> &mut [u8; N] {
    block[at..].first_chunk_mut().expect("a field ends within its block: the layout tables say so")
}
