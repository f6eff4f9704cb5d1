//! Q4_0, Q4_1, Q5_0 and Q5_1 with an importance matrix: searches in place of the formulas of
//! `legacy`.

use super::batch::{Batch, Encoder, group, ungroup};
use super::field_mut;
use super::float::write_f16;
use super::legacy::{QK, pack};
use super::search::{Candidates, scale_and_min, symmetric_scale};
use super::simd::{Floats, Simd};
use super::weighting::{ErrorWeights, Weighting};

/// Q4_0 (`BITS` 4, `SIZE` 18) and Q5_0 (5, 22) with an importance matrix (`quantize_row_q4_0_impl`,
/// `quantize_row_q5_0_impl`).
pub(super) struct Symmetric<const BITS: u32>;

impl<const BITS: u32, const SIZE: usize> Encoder<QK, SIZE> for Symmetric<BITS> {
    const ASKS_FOR_MEAN_SQUARES: bool = true;

    #[inline(always)]
    fn encode<S: Simd>(simd: S, batch: Batch<'_, QK>, blocks: &mut [[u8; SIZE]]) {
        let nmax = (1 << (BITS - 1)) as f32;
        let x = group(simd, batch.x);
        let weights = ErrorWeights::<QK, QK>::new(simd, batch, Weighting::ImportanceInRow).of(simd, &x, 0);
        let found = symmetric_scale(simd, &x, &weights, nmax);
        let codes = ungroup(simd, &found.found_codes(simd, nmax));
        for ((block, codes), scale) in blocks.iter_mut().zip(codes).zip(found.scale.to_array()) {
            write_f16(scale, field_mut(block, 0));
            pack::<BITS>(&codes, &mut block[2..]);
        }
    }
}

/// Q4_1 (`BITS` 4, `SIZE` 20) and Q5_1 (5, 24) with an importance matrix (`quantize_row_q4_1_impl`,
/// `quantize_row_q5_1_impl`).
pub(super) struct WithMin<const BITS: u32>;

impl<const BITS: u32, const SIZE: usize> Encoder<QK, SIZE> for WithMin<BITS> {
    const ASKS_FOR_MEAN_SQUARES: bool = true;

    #[inline(always)]
    fn encode<S: Simd>(simd: S, batch: Batch<'_, QK>, blocks: &mut [[u8; SIZE]]) {
        let nmax = ((1 << BITS) - 1) as f32;
        let x = group(simd, batch.x);
        let weights = ErrorWeights::<QK, QK>::new(simd, batch, Weighting::ImportanceInRow).of(simd, &x, 0);
        let found = scale_and_min(simd, &x, &weights, &Candidates::with_importance(nmax));
        let codes = ungroup(simd, &found.found_codes(simd, &x, simd.splat(nmax)));
        let scales = found.scale.to_array().into_iter().zip(found.min.to_array());
        for ((block, codes), (scale, min)) in blocks.iter_mut().zip(codes).zip(scales) {
            write_f16(scale, field_mut(block, 0));
            write_f16(-min, field_mut(block, 2));
            pack::<BITS>(&codes, &mut block[4..]);
        }
    }
}
