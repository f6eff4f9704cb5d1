//! The searches of the K encoders: for each sub-block the scale (and minimum) that leaves the least error.
//!
//! ggml takes one sub-block at a time (`make_qkx2_quants`, `make_q3_quants`, `make_qx_quants` in ggml-quants.c), and for
//! each candidate sums over its weights:
//!
//! ```text
//! for each sub-block
//!     for each candidate scale
//!         for each weight: round to a code, add to the sums        one chain of dependent additions
//!         if the candidate is better: keep it                      and the next candidate may start from it
//! ```
//!
//! The additions may not be reordered, since f32 sums depend on order and the bytes on the sums. But sub-blocks know
//! nothing of each other. So here the outer loop is the innermost: [`LANES`] sub-blocks are searched side by side, weight
//! i of each in `x[i][lane]`, every lane doing the operations of ggml in its order. Lanes differ only where ggml branches;
//! there both ways are computed and each lane selects. A candidate that ggml would skip costs its time, and nothing else:
//! what it computes, often NaN, is dropped.

use super::QK_K;

/// Sub-blocks searched side by side: all of a type with sub-blocks of 32, half of one with 16.
pub(super) const LANES: usize = 8;

/// One value for each sub-block of a group.
pub(super) type Lanes<T> = [T; LANES];

/// Scales below this count as zero (`GROUP_MAX_EPS`).
pub(super) const GROUP_MAX_EPS: f32 = 1e-15;

/// `LANES` sub-blocks of `N` weights, weight by weight.
pub(super) type Group<const N: usize> = [Lanes<f32>; N];

/// Lays `LANES` consecutive sub-blocks side by side.
#[inline(always)]
pub(super) fn group<const N: usize>(x: &[f32]) -> Group<N> {
    let mut group = [[0.0; LANES]; N];
    for (lane, sub_block) in x.as_chunks::<N>().0.iter().take(LANES).enumerate() {
        for (row, &x) in group.iter_mut().zip(sub_block) {
            row[lane] = x;
        }
    }
    group
}

/// Writes the codes of a group where its sub-blocks are, one after the other.
#[inline(always)]
fn ungroup<const N: usize>(codes: &[Lanes<u8>; N], out: &mut [u8]) {
    for (lane, sub_block) in out.as_chunks_mut::<N>().0.iter_mut().take(LANES).enumerate() {
        for (code, row) in sub_block.iter_mut().zip(codes) {
            *code = row[lane];
        }
    }
}

/// The nearest integer, ties to even (`nearest_int`): adding 1.5·2²³ leaves it in the low bits of the sum. Beyond 2²² and
/// for NaN the result is without meaning but the same as in ggml, which callers rely on when they clamp it.
#[inline(always)]
pub(super) fn nearest_int(x: f32) -> i32 {
    ((x + 12_582_912.0).to_bits() & 0x007f_ffff).cast_signed() - 0x0040_0000
}

/// The codes of one sub-block for the scale and minimum that were stored, which replace those of the search. A scale of
/// zero leaves the search's codes in place, as ggml does.
#[inline(always)]
pub(super) fn requantize(x: &[f32], scale: f32, min: f32, lowest: i32, highest: i32, codes: &mut [u8]) {
    if scale == 0.0 {
        return;
    }
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (nearest_int((x + min) / scale).clamp(lowest, highest) - lowest) as u8;
    }
}

/// What a search for scale and minimum tries (`rmin`, `rdelta`, `nstep`, `use_mad` of `make_qkx2_quants`).
pub(super) struct Candidates {
    /// Largest code.
    pub(super) nmax: f32,
    /// The first candidate has `nmax + rmin` steps between least and largest weight.
    pub(super) rmin: f32,
    /// Each candidate has this many steps more than the one before.
    pub(super) rdelta: f32,
    /// Candidates after the first.
    pub(super) nstep: usize,
    /// Whether the error is the mean absolute difference rather than the mean square.
    pub(super) use_mad: bool,
}

/// Scale and minimum for w ≈ scale·code − min, with codes from 0 to `nmax` written to `codes` (`make_qkx2_quants`).
/// `weights` says how much each weight's error counts. The minimum is not negative.
#[inline(always)]
pub(super) fn scale_and_min<const N: usize>(
    x: &Group<N>,
    weights: &Group<N>,
    candidates: &Candidates,
    codes: &mut [u8],
) -> (Lanes<f32>, Lanes<f32>) {
    let &Candidates { nmax, rmin, rdelta, nstep, use_mad } = candidates;
    let highest = nmax as i32;

    let mut min = x[0];
    let mut max = x[0];
    let mut sum_w = weights[0];
    let mut sum_x: Lanes<f32> = std::array::from_fn(|k| weights[0][k] * x[0][k]);
    for (x, w) in x.iter().zip(weights).skip(1) {
        for k in 0..LANES {
            min[k] = if x[k] < min[k] { x[k] } else { min[k] };
            max[k] = if x[k] > max[k] { x[k] } else { max[k] };
            sum_w[k] += w[k];
            sum_x[k] += w[k] * x[k];
        }
    }
    for min in &mut min {
        *min = if *min > 0.0 { 0.0 } else { *min };
    }
    // Such a lane ends here in ggml: no scale, codes 0. It runs along, and is set right at the end.
    let is_flat: Lanes<bool> = std::array::from_fn(|k| max[k] == min[k]);
    let flat_min = min;

    let mut best = [[0; LANES]; N];
    let mut best_error = [0.0; LANES];
    let mut iscale: Lanes<f32> = std::array::from_fn(|k| nmax / (max[k] - min[k]));
    let mut scale = iscale.map(|iscale| 1.0 / iscale);
    for ((x, w), best) in x.iter().zip(weights).zip(&mut best) {
        for k in 0..LANES {
            let l = nearest_int(iscale[k] * (x[k] - min[k])).clamp(0, highest);
            best[k] = l as u8;
            best_error[k] += w[k] * error(scale[k] * l as f32 + min[k] - x[k], use_mad);
        }
    }

    let mut trial = [[0.0f32; LANES]; N];
    for step in 0..=nstep {
        for k in 0..LANES {
            iscale[k] = (rmin + rdelta * step as f32 + nmax) / (max[k] - min[k]);
        }
        let (mut sum_l, mut sum_l2, mut sum_xl) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for ((x, w), trial) in x.iter().zip(weights).zip(&mut trial) {
            for k in 0..LANES {
                let l = nearest_int(iscale[k] * (x[k] - min[k])).clamp(0, highest) as f32;
                trial[k] = l;
                let wl = w[k] * l;
                sum_l[k] += wl;
                sum_l2[k] += wl * l;
                sum_xl[k] += wl * x[k];
            }
        }

        // The least-squares line through these codes; if its minimum has the wrong sign, the best line through 0.
        let (mut determinant, mut this_scale, mut this_min) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for k in 0..LANES {
            let det = sum_w[k] * sum_l2[k] - sum_l[k] * sum_l[k];
            let slope = (sum_w[k] * sum_xl[k] - sum_x[k] * sum_l[k]) / det;
            let offset = (sum_l2[k] * sum_x[k] - sum_l[k] * sum_xl[k]) / det;
            determinant[k] = det;
            this_scale[k] = if offset > 0.0 { sum_xl[k] / sum_l2[k] } else { slope };
            this_min[k] = if offset > 0.0 { 0.0 } else { offset };
        }

        let mut this_error = [0.0; LANES];
        for ((x, w), trial) in x.iter().zip(weights).zip(&trial) {
            for k in 0..LANES {
                this_error[k] += w[k] * error(this_scale[k] * trial[k] + this_min[k] - x[k], use_mad);
            }
        }

        let is_better: Lanes<bool> = std::array::from_fn(|k| determinant[k] > 0.0 && this_error[k] < best_error[k]);
        if is_better.contains(&true) {
            for k in 0..LANES {
                best_error[k] = if is_better[k] { this_error[k] } else { best_error[k] };
                scale[k] = if is_better[k] { this_scale[k] } else { scale[k] };
                min[k] = if is_better[k] { this_min[k] } else { min[k] };
            }
            for (best, trial) in best.iter_mut().zip(&trial) {
                for k in 0..LANES {
                    best[k] = if is_better[k] { trial[k] as u8 } else { best[k] };
                }
            }
        }
    }

    for k in 0..LANES {
        if is_flat[k] {
            (scale[k], min[k]) = (0.0, flat_min[k]);
            best.iter_mut().for_each(|best| best[k] = 0);
        }
    }
    ungroup(&best, codes);
    (scale, min.map(|min| -min))
}

#[inline(always)]
fn error(difference: f32, use_mad: bool) -> f32 {
    if use_mad { difference.abs() } else { difference * difference }
}

/// The value farthest from zero in each lane, of two with both signs the first, and its distance.
#[inline(always)]
fn farthest<const N: usize>(x: &Group<N>) -> (Lanes<f32>, Lanes<f32>) {
    let (mut max, mut amax) = ([0.0; LANES], [0.0; LANES]);
    for x in x {
        for k in 0..LANES {
            let is_farther = x[k].abs() > amax[k];
            amax[k] = if is_farther { x[k].abs() } else { amax[k] };
            max[k] = if is_farther { x[k] } else { max[k] };
        }
    }
    (max, amax)
}

/// The scale for w ≈ scale·(code − nmax), with codes from 0 to 2·nmax − 1 written to `codes`, errors counted by the
/// square of the weight (`make_qx_quants` with `rmse_type` 1).
#[inline(always)]
pub(super) fn symmetric_scale<const N: usize>(x: &Group<N>, nmax: f32, codes: &mut [u8]) -> Lanes<f32> {
    let (lowest, highest) = (-nmax as i32, nmax as i32 - 1);
    let (max, amax) = farthest(x);

    let mut best = [[0.0f32; LANES]; N];
    let mut trial = best;
    let (mut scale, mut best_gain) = ([0.0; LANES], [0.0; LANES]);
    // Candidate 0 comes first and is kept whatever it gains; the others deviate from it by up to 0.9 of a code.
    for candidate in [0, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9] {
        let iscale = max.map(|max| -(nmax + 0.1 * candidate as f32) / max);
        let (mut sumlx, mut suml2) = ([0.0f32; LANES], [0.0f32; LANES]);
        for (x, trial) in x.iter().zip(&mut trial) {
            for k in 0..LANES {
                let l = nearest_int(iscale[k] * x[k]).clamp(lowest, highest) as f32;
                trial[k] = l;
                let w = x[k] * x[k];
                sumlx[k] += w * x[k] * l;
                suml2[k] += w * l * l;
            }
        }
        if candidate == 0 {
            best = trial;
            for k in 0..LANES {
                scale[k] = if suml2[k] != 0.0 { sumlx[k] / suml2[k] } else { 0.0 };
                best_gain[k] = scale[k] * sumlx[k];
            }
            continue;
        }
        let is_better: Lanes<bool> =
            std::array::from_fn(|k| suml2[k] > 0.0 && sumlx[k] * sumlx[k] > best_gain[k] * suml2[k]);
        if is_better.contains(&true) {
            for k in 0..LANES {
                let this_scale = sumlx[k] / suml2[k];
                scale[k] = if is_better[k] { this_scale } else { scale[k] };
                best_gain[k] = if is_better[k] { this_scale * sumlx[k] } else { best_gain[k] };
            }
            for (best, trial) in best.iter_mut().zip(&trial) {
                for k in 0..LANES {
                    best[k] = if is_better[k] { trial[k] } else { best[k] };
                }
            }
        }
    }
    finish_symmetric(&best, nmax, &amax, &mut scale, codes);
    scale
}

/// The scale for w ≈ scale·(code − nmax) as [`symmetric_scale`] has it, found by changing one code at a time while that
/// helps, in at most five rounds (`make_q3_quants` with `do_rmse`).
#[inline(always)]
pub(super) fn symmetric_scale_by_rounds<const N: usize>(x: &Group<N>, nmax: f32, codes: &mut [u8]) -> Lanes<f32> {
    let (lowest, highest) = (-nmax as i32, nmax as i32 - 1);
    let (max, amax) = farthest(x);

    let mut best = [[0.0f32; LANES]; N];
    let iscale = max.map(|max| -nmax / max);
    let (mut sumlx, mut suml2) = ([0.0f32; LANES], [0.0f32; LANES]);
    for (x, best) in x.iter().zip(&mut best) {
        for k in 0..LANES {
            let l = nearest_int(iscale[k] * x[k]).clamp(lowest, highest) as f32;
            best[k] = l;
            let w = x[k] * x[k];
            sumlx[k] += w * x[k] * l;
            suml2[k] += w * l * l;
        }
    }
    for _ in 0..5 {
        // ggml stops a sub-block after a round without a change. Another round would change nothing either, as it
        // starts from the same sums: a lane that is done may run along.
        let mut n_changed = [0u32; LANES];
        for (x, best) in x.iter().zip(&mut best) {
            for k in 0..LANES {
                let l = best[k];
                let w = x[k] * x[k];
                let slx = sumlx[k] - w * x[k] * l;
                let sl2 = suml2[k] - w * l * l;
                let new_l = nearest_int(x[k] * sl2 / slx).clamp(lowest, highest) as f32;
                let new_slx = slx + w * x[k] * new_l;
                let new_sl2 = sl2 + w * new_l * new_l;
                let is_better = (slx > 0.0)
                    & (new_l != l)
                    & (new_sl2 > 0.0)
                    & (new_slx * new_slx * suml2[k] > sumlx[k] * sumlx[k] * new_sl2);
                best[k] = if is_better { new_l } else { l };
                sumlx[k] = if is_better { new_slx } else { sumlx[k] };
                suml2[k] = if is_better { new_sl2 } else { suml2[k] };
                n_changed[k] += u32::from(is_better);
            }
        }
        if n_changed == [0; LANES] {
            break;
        }
    }
    let mut scale = std::array::from_fn(|k| if suml2[k] > 0.0 { sumlx[k] / suml2[k] } else { 0.0 });
    finish_symmetric(&best, nmax, &amax, &mut scale, codes);
    scale
}

/// Writes the codes of a symmetric search. Lanes without a weight worth the name get scale 0 and codes 0, not the code
/// that stands for 0: ggml leaves the search before it adds `nmax`.
#[inline(always)]
fn finish_symmetric<const N: usize>(
    best: &Group<N>,
    nmax: f32,
    amax: &Lanes<f32>,
    scale: &mut Lanes<f32>,
    codes: &mut [u8],
) {
    let is_zero = amax.map(|amax| amax < GROUP_MAX_EPS);
    let mut shifted = [[0; LANES]; N];
    for (shifted, best) in shifted.iter_mut().zip(best) {
        for k in 0..LANES {
            shifted[k] = if is_zero[k] { 0 } else { (best[k] + nmax) as u8 };
        }
    }
    for k in 0..LANES {
        scale[k] = if is_zero[k] { 0.0 } else { scale[k] };
    }
    ungroup(&shifted, codes);
}

/// Runs a search over a super-block, `LANES` sub-blocks of `N` weights at a time; `search` gets the group, its codes and
/// the number of its first sub-block.
#[inline(always)]
pub(super) fn each_group<const N: usize>(
    x: &[f32; QK_K],
    codes: &mut [u8; QK_K],
    mut search: impl FnMut(&Group<N>, &mut [u8], usize),
) {
    let groups = x.chunks_exact(N * LANES).zip(codes.chunks_exact_mut(N * LANES));
    for (i, (x, codes)) in groups.enumerate() {
        search(&group(x), codes, i * LANES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_int_rounds_ties_to_even() {
        for (x, l) in [(0.5, 0), (1.5, 2), (-0.5, 0), (-1.5, -2), (2.4999, 2), (-3.7, -4), (4_194_303.0, 4_194_303)] {
            assert_eq!(nearest_int(x), l, "{x}");
        }
    }
}
