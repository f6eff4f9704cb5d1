//! What the encoders of the K types have in common: super-blocks of 256 weights, whose sub-blocks
//! of 16 or 32 have scales that are themselves stored as codes.
//!
//! [`LANES`] super-blocks are encoded together: first the sub-blocks are searched, as many at a
//! time; then the scales that were found become codes; then the weights. With an importance matrix
//! the second step is a search as well, and takes all super-blocks side by side.

use super::QK_K;
use super::batch::{Batch, group, ungroup};
use super::planes::Codes;
use super::search::{
    Candidates, ScaleAndMin, Symmetric, positive_scale, scale_and_min, symmetric_scale, symmetric_scale_by_rounds,
};
use super::simd::{Floats, LANES, Simd};
use super::weighting::{ErrorWeights, Weighting, sum};

/// One number for each sub-block of [`LANES`] super-blocks, at most.
pub(super) type OfSubBlocks<T> = [T; QK_K];

/// A type whose sub-blocks of `SUB` weights, `N_SUB` in a super-block, have a scale and a minimum.
pub(super) trait WithMin<const SUB: usize, const N_SUB: usize, const SIZE: usize> {
    /// What is tried without an importance matrix.
    const CANDIDATES: Candidates;
    /// How much a weight's error counts without an importance matrix.
    const PLAIN: Weighting;
    /// How much a weight's error counts with an importance matrix.
    const IMPORTANCE: Weighting;
    /// The largest code of a scale or minimum.
    const MAX_SCALE: f32;

    /// Stores scales and minimums, and gives back those of each sub-block as a decoder will compute
    /// them.
    fn store(scales: &[f32; N_SUB], mins: &[f32; N_SUB], block: &mut [u8; SIZE]) -> [(f32, f32); N_SUB];

    /// Stores codes of scales and minimums with their scales, and gives back what
    /// [`store`](Self::store) does.
    fn store_codes(
        scales: (f32, &[u8; N_SUB]),
        mins: (f32, &[u8; N_SUB]),
        block: &mut [u8; SIZE],
    ) -> [(f32, f32); N_SUB];

    /// Stores the codes of the weights.
    fn pack(codes: &Codes, block: &mut [u8; SIZE]);
}

/// Encodes super-blocks of a type with minimums.
#[inline(always)]
pub(super) fn encode_with_min<S, T, const SUB: usize, const N_SUB: usize, const SIZE: usize>(
    simd: S,
    batch: Batch<'_, QK_K>,
    blocks: &mut [[u8; SIZE]],
) where
    S: Simd,
    T: WithMin<SUB, N_SUB, SIZE>,
{
    let n = blocks.len();
    let nmax = T::CANDIDATES.nmax;
    let (mut stored_scales, mut stored_mins) = ([0.0; QK_K], [0.0; QK_K]);
    let each_stored = stored_scales.as_chunks_mut::<N_SUB>().0.iter_mut().zip(stored_mins.as_chunks_mut::<N_SUB>().0);
    let found = if batch.importance.is_none() {
        let searched = search::<S, SUB>(simd, batch, &T::CANDIDATES, T::PLAIN);
        let each_found = searched.scales.as_chunks().0.iter().zip(searched.mins.as_chunks().0);
        for ((block, (scales, mins)), stored) in blocks.iter_mut().zip(each_found).zip(each_stored) {
            (*stored.0, *stored.1) = unzip(T::store(scales, mins, block));
        }
        searched.found
    } else {
        let searched = search::<S, SUB>(simd, batch, &Candidates::with_importance(nmax), T::IMPORTANCE);
        let weights = group::<S, N_SUB>(simd, &searched.sums.as_chunks().0[..n]);
        let code = |(scale, codes): (S::F, [S::F; N_SUB])| (scale.to_array(), ungroup(simd, &codes));
        let (d, scales) =
            code(positive_scale(simd, &group(simd, &searched.scales.as_chunks().0[..n]), &weights, T::MAX_SCALE));
        let (dmin, mins) =
            code(positive_scale(simd, &group(simd, &searched.mins.as_chunks().0[..n]), &weights, T::MAX_SCALE));
        for (i, (block, stored)) in blocks.iter_mut().zip(each_stored).enumerate() {
            (*stored.0, *stored.1) = unzip(T::store_codes((d[i], &scales[i]), (dmin[i], &mins[i]), block));
        }
        searched.found
    };

    let sub_blocks: &[[f32; SUB]] = batch.x.as_flattened().as_chunks().0;
    let blocks = blocks.chunks_mut(SUB * LANES / QK_K);
    let stored = stored_scales.as_chunks().0.iter().zip(stored_mins.as_chunks().0);
    for (((sub_blocks, blocks), found), (scales, mins)) in sub_blocks.chunks(LANES).zip(blocks).zip(found).zip(stored) {
        let x = group(simd, sub_blocks);
        let codes = ungroup(simd, &found.codes(simd, &x, simd.load(scales), simd.load(mins), nmax));
        for (codes, block) in codes.as_flattened().as_chunks().0.iter().zip(blocks) {
            T::pack(codes, block);
        }
    }
}

fn unzip<const N: usize>(pairs: [(f32, f32); N]) -> ([f32; N], [f32; N]) {
    (pairs.map(|pair| pair.0), pairs.map(|pair| pair.1))
}

/// What the search of each sub-block finds, by groups of [`LANES`] sub-blocks.
struct Searched<S: Simd> {
    found: [ScaleAndMin<S>; LANES],
    scales: OfSubBlocks<f32>,
    mins: OfSubBlocks<f32>,
    /// Sums of the factors of errors.
    sums: OfSubBlocks<f32>,
}

#[inline(always)]
fn search<S: Simd, const SUB: usize>(
    simd: S,
    batch: Batch<'_, QK_K>,
    candidates: &Candidates,
    weighting: Weighting,
) -> Searched<S> {
    let mut searched =
        Searched { found: [ScaleAndMin::none(simd); LANES], scales: [0.0; QK_K], mins: [0.0; QK_K], sums: [0.0; QK_K] };
    let weights = ErrorWeights::<QK_K, SUB>::new(simd, batch, weighting);
    let groups = batch.x.as_flattened().as_chunks().0.chunks(LANES);
    for (i, sub_blocks) in groups.enumerate() {
        let x = group(simd, sub_blocks);
        let weights = weights.of(simd, &x, i);
        let found = scale_and_min(simd, &x, &weights, candidates);
        searched.found[i] = found;
        searched.scales.as_chunks_mut().0[i] = found.scale.to_array();
        searched.mins.as_chunks_mut().0[i] = found.min.to_array();
        if batch.importance.is_some() {
            searched.sums.as_chunks_mut().0[i] = sum(simd, &weights).to_array();
        }
    }
    searched
}

/// A type whose sub-blocks of 16 weights have a scale only.
pub(super) trait WithoutMin<const SIZE: usize> {
    /// Codes are from 0 to 2·NMAX − 1, and NMAX stands for 0.
    const NMAX: f32;
    /// Whether codes are found in rounds, when there is no importance matrix.
    const BY_ROUNDS: bool;
    /// How much a weight's error counts with an importance matrix.
    const IMPORTANCE: Weighting;
    /// Whether an importance matrix makes a search of the scales as well.
    const SEARCHES_SCALES: bool;

    /// Stores scales, and gives back those of each sub-block as a decoder will compute them; none
    /// if the whole block is done with that.
    fn store(scales: &[f32; LANES], block: &mut [u8; SIZE]) -> Option<[f32; LANES]>;

    /// Stores codes of scales with their scale, and gives back the scale of each sub-block as a
    /// decoder will compute it.
    fn store_codes(scales: (f32, &[u8; LANES]), block: &mut [u8; SIZE]) -> [f32; LANES];

    /// Stores the codes of the weights.
    fn pack(codes: &Codes, block: &mut [u8; SIZE]);
}

/// The number farthest from zero, of two with both signs the first; 0 if there is none but NaN.
pub(super) fn farthest(x: &[f32]) -> f32 {
    x.iter().fold(0.0f32, |max, &x| if x.abs() > max.abs() { x } else { max })
}

/// Weights in a sub-block of a type without minimums; there are as many sub-blocks as lanes.
const SUB: usize = 16;

/// Encodes super-blocks of a type without minimums.
#[inline(always)]
pub(super) fn encode_symmetric<S, T, const SIZE: usize>(simd: S, batch: Batch<'_, QK_K>, blocks: &mut [[u8; SIZE]])
where
    S: Simd,
    T: WithoutMin<SIZE>,
{
    let sub_blocks: &[[f32; SUB]] = batch.x.as_flattened().as_chunks().0;
    let is_plain = batch.importance.is_none();
    let weights = ErrorWeights::<QK_K, SUB>::new(simd, batch, if is_plain { Weighting::Square } else { T::IMPORTANCE });

    if is_plain || !T::SEARCHES_SCALES {
        for (i, (sub_blocks, block)) in sub_blocks.chunks(LANES).zip(blocks).enumerate() {
            let x = group(simd, sub_blocks);
            let found = if is_plain && T::BY_ROUNDS {
                symmetric_scale_by_rounds(simd, &x, T::NMAX)
            } else {
                symmetric_scale(simd, &x, &weights.of(simd, &x, i), T::NMAX)
            };
            if let Some(stored) = T::store(&found.scale.to_array(), block) {
                pack::<S, T, SIZE>(simd, &x, &found, &stored, block);
            }
        }
        return;
    }

    let (mut scales, mut sums) = ([[0.0; LANES]; LANES], [[0.0; LANES]; LANES]);
    let mut all_found = [Symmetric::none(simd); LANES];
    for (i, sub_blocks) in sub_blocks.chunks(LANES).enumerate() {
        let x = group(simd, sub_blocks);
        let weights = weights.of(simd, &x, i);
        all_found[i] = symmetric_scale(simd, &x, &weights, T::NMAX);
        scales[i] = all_found[i].scale.to_array();
        sums[i] = sum(simd, &weights).to_array();
    }
    let n = blocks.len();
    let (scales, weights) = (group(simd, &scales[..n]), group(simd, &sums[..n]));
    // Codes of scales are from 0 to 63, and 32 stands for 0, in the only type that comes here.
    let found = symmetric_scale(simd, &scales, &weights, 32.0);
    let (d, codes) = (found.scale.to_array(), ungroup(simd, &found.found_codes(simd, 32.0)));
    for (i, (sub_blocks, block)) in sub_blocks.chunks(LANES).zip(blocks).enumerate() {
        let stored = T::store_codes((d[i], &codes[i]), block);
        pack::<S, T, SIZE>(simd, &group(simd, sub_blocks), &all_found[i], &stored, block);
    }
}

/// Stores the codes for the scales that were stored.
#[inline(always)]
fn pack<S: Simd, T: WithoutMin<SIZE>, const SIZE: usize>(
    simd: S,
    x: &[S::F; SUB],
    found: &Symmetric<S, SUB>,
    stored: &[f32; LANES],
    block: &mut [u8; SIZE],
) {
    let codes = ungroup(simd, &found.codes(simd, x, simd.load(stored), T::NMAX));
    if let Some(codes) = codes.as_flattened().first_chunk() {
        T::pack(codes, block);
    }
}
