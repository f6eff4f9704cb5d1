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
//!
//! The loops are functions of their own, and kept so: inlined into one body, the compiler mixed their lanes, turned selects
//! into branches and took half as long again.

use super::QK_K;
use super::rounding::{code_byte, nearest_code};

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

/// Writes the codes of a group, each plus `offset`, where its sub-blocks are, one after the other.
#[inline(always)]
fn ungroup<const N: usize>(codes: &Group<N>, offset: f32, out: &mut [u8]) {
    for (lane, sub_block) in out.as_chunks_mut::<N>().0.iter_mut().take(LANES).enumerate() {
        for (code, row) in sub_block.iter_mut().zip(codes) {
            *code = code_byte(row[lane] + offset);
        }
    }
}

/// The codes of one sub-block for the scale and minimum that were stored, which replace those of the search. A scale of
/// zero leaves the search's codes in place, as ggml does.
#[inline(always)]
pub(super) fn requantize<const N: usize>(
    x: &[f32; N],
    scale: f32,
    min: f32,
    lowest: f32,
    highest: f32,
    codes: &mut [u8; N],
) {
    if scale == 0.0 {
        return;
    }
    for (code, x) in codes.iter_mut().zip(x) {
        *code = code_byte(nearest_code((x + min) / scale, lowest, highest) - lowest);
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
    // Where max and min are now the same, ggml ends here: no scale, codes 0. Such a lane runs along and is set right at
    // the end.
    let first_min = min;

    // The codes of the best candidate are not kept, but what they can be computed from once more.
    let mut iscale = [0.0; LANES];
    for k in 0..LANES {
        iscale[k] = nmax / (max[k] - min[k]);
    }
    let (mut best_iscale, mut best_start) = (iscale, min);
    let mut scale = iscale.map(|iscale| 1.0 / iscale);
    let mut best_error = [0.0; LANES];
    for (x, w) in x.iter().zip(weights) {
        for k in 0..LANES {
            let l = nearest_code(iscale[k] * (x[k] - min[k]), 0.0, nmax);
            best_error[k] += w[k] * error(scale[k] * l + min[k] - x[k], use_mad);
        }
    }

    let mut trial = [[0.0f32; LANES]; N];
    for step in 0..=nstep {
        let n_steps = rmin + rdelta * step as f32 + nmax;
        for k in 0..LANES {
            iscale[k] = n_steps / (max[k] - min[k]);
        }
        let sums = trial_sums(x, weights, &iscale, &min, nmax, &mut trial);
        let line = fit_line(&sum_w, &sum_x, &sums);
        let this_error = line_error(x, weights, &trial, &line, use_mad);
        for k in 0..LANES {
            let is_better = (line.determinant[k] > 0.0) & (this_error[k] < best_error[k]);
            best_error[k] = if is_better { this_error[k] } else { best_error[k] };
            best_iscale[k] = if is_better { iscale[k] } else { best_iscale[k] };
            best_start[k] = if is_better { min[k] } else { best_start[k] };
            scale[k] = if is_better { line.scale[k] } else { scale[k] };
            min[k] = if is_better { line.min[k] } else { min[k] };
        }
    }

    for (x, best) in x.iter().zip(&mut trial) {
        for k in 0..LANES {
            let l = nearest_code(best_iscale[k] * (x[k] - best_start[k]), 0.0, nmax);
            best[k] = if max[k] == first_min[k] { 0.0 } else { l };
        }
    }
    ungroup(&trial, 0.0, codes);
    for k in 0..LANES {
        let is_flat = max[k] == first_min[k];
        scale[k] = if is_flat { 0.0 } else { scale[k] };
        min[k] = -if is_flat { first_min[k] } else { min[k] };
    }
    (scale, min)
}

/// Sums over the codes of a candidate: of l, l² and l·x, each times the weight.
struct Sums {
    l: Lanes<f32>,
    l2: Lanes<f32>,
    xl: Lanes<f32>,
}

/// A least-squares line: scale, minimum, and what was divided by to get them.
struct Line {
    determinant: Lanes<f32>,
    scale: Lanes<f32>,
    min: Lanes<f32>,
}

/// The sums for codes at `iscale` from `min` up, which are written to `trial`.
#[inline(never)]
fn trial_sums<const N: usize>(
    x: &Group<N>,
    weights: &Group<N>,
    iscale: &Lanes<f32>,
    min: &Lanes<f32>,
    nmax: f32,
    trial: &mut Group<N>,
) -> Sums {
    let (mut sum_l, mut sum_l2, mut sum_xl) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    for ((x, w), trial) in x.iter().zip(weights).zip(trial) {
        for k in 0..LANES {
            let l = nearest_code(iscale[k] * (x[k] - min[k]), 0.0, nmax);
            trial[k] = l;
            let wl = w[k] * l;
            sum_l[k] += wl;
            sum_l2[k] += wl * l;
            sum_xl[k] += wl * x[k];
        }
    }
    Sums { l: sum_l, l2: sum_l2, xl: sum_xl }
}

/// The least-squares line through the codes of a candidate; if its minimum has the wrong sign, the best line through 0.
#[inline(never)]
fn fit_line(sum_w: &Lanes<f32>, sum_x: &Lanes<f32>, sums: &Sums) -> Line {
    let (mut determinant, mut scale, mut min) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    let mut through_0 = [0.0; LANES];
    let Sums { l, l2, xl } = sums;
    for k in 0..LANES {
        through_0[k] = xl[k] / l2[k];
        determinant[k] = sum_w[k] * l2[k] - l[k] * l[k];
        scale[k] = (sum_w[k] * xl[k] - sum_x[k] * l[k]) / determinant[k];
        min[k] = (l2[k] * sum_x[k] - l[k] * xl[k]) / determinant[k];
    }
    // Not in the loop above, where the selects became branches around the divisions.
    for ((scale, min), through_0) in scale.iter_mut().zip(&mut min).zip(through_0) {
        *scale = if *min > 0.0 { through_0 } else { *scale };
        *min = if *min > 0.0 { 0.0 } else { *min };
    }
    Line { determinant, scale, min }
}

/// What a line leaves of the weights, summed.
#[inline(never)]
fn line_error<const N: usize>(
    x: &Group<N>,
    weights: &Group<N>,
    trial: &Group<N>,
    line: &Line,
    use_mad: bool,
) -> Lanes<f32> {
    let mut sum = [0.0; LANES];
    for ((x, w), trial) in x.iter().zip(weights).zip(trial) {
        for k in 0..LANES {
            sum[k] += w[k] * error(line.scale[k] * trial[k] + line.min[k] - x[k], use_mad);
        }
    }
    sum
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
    let (lowest, highest) = (-nmax, nmax - 1.0);
    let (max, amax) = farthest(x);

    // The sums over the codes of one candidate.
    let sums = |iscale: &Lanes<f32>| {
        let (mut sumlx, mut suml2) = ([0.0f32; LANES], [0.0f32; LANES]);
        for x in x {
            for k in 0..LANES {
                let l = nearest_code(iscale[k] * x[k], lowest, highest);
                let w = x[k] * x[k];
                sumlx[k] += w * x[k] * l;
                suml2[k] += w * l * l;
            }
        }
        (sumlx, suml2)
    };

    let mut best_iscale = max.map(|max| -nmax / max);
    let (sumlx, suml2) = sums(&best_iscale);
    let (mut scale, mut best_gain) = ([0.0; LANES], [0.0; LANES]);
    for k in 0..LANES {
        scale[k] = if suml2[k] != 0.0 { sumlx[k] / suml2[k] } else { 0.0 };
        best_gain[k] = scale[k] * sumlx[k];
    }
    for candidate in (-9i8..=9).filter(|&candidate| candidate != 0) {
        let n_steps = -(nmax + 0.1 * f32::from(candidate));
        let iscale = max.map(|max| n_steps / max);
        let (sumlx, suml2) = sums(&iscale);
        for k in 0..LANES {
            let is_better = (suml2[k] > 0.0) & (sumlx[k] * sumlx[k] > best_gain[k] * suml2[k]);
            let this_scale = sumlx[k] / suml2[k];
            best_iscale[k] = if is_better { iscale[k] } else { best_iscale[k] };
            best_gain[k] = if is_better { this_scale * sumlx[k] } else { best_gain[k] };
            scale[k] = if is_better { this_scale } else { scale[k] };
        }
    }

    let mut best = [[0.0f32; LANES]; N];
    for (x, best) in x.iter().zip(&mut best) {
        for k in 0..LANES {
            best[k] = nearest_code(best_iscale[k] * x[k], lowest, highest);
        }
    }
    finish_symmetric(best, nmax, &amax, scale, codes)
}

/// The scale for w ≈ scale·(code − nmax) as [`symmetric_scale`] has it, found by changing one code at a time while that
/// helps, in at most five rounds (`make_q3_quants` with `do_rmse`).
#[inline(always)]
pub(super) fn symmetric_scale_by_rounds<const N: usize>(x: &Group<N>, nmax: f32, codes: &mut [u8]) -> Lanes<f32> {
    let (lowest, highest) = (-nmax, nmax - 1.0);
    let (max, amax) = farthest(x);

    let mut best = [[0.0f32; LANES]; N];
    let iscale = max.map(|max| -nmax / max);
    let (mut sumlx, mut suml2) = ([0.0f32; LANES], [0.0f32; LANES]);
    for (x, best) in x.iter().zip(&mut best) {
        for k in 0..LANES {
            let l = nearest_code(iscale[k] * x[k], lowest, highest);
            best[k] = l;
            let w = x[k] * x[k];
            sumlx[k] += w * x[k] * l;
            suml2[k] += w * l * l;
        }
    }
    for part in 0..LANES / PART {
        // ggml stops a sub-block after a round without a change. Another round would change nothing either, as it
        // starts from the same sums: a lane that is done may run along.
        for _ in 0..5 {
            if improve_codes(part, x, &mut best, &mut sumlx, &mut suml2, lowest, highest) == [0; PART] {
                break;
            }
        }
    }
    let scale = std::array::from_fn(|k| if suml2[k] > 0.0 { sumlx[k] / suml2[k] } else { 0.0 });
    finish_symmetric(best, nmax, &amax, scale, codes)
}

/// Lanes of one call of [`improve_codes`]. Fewer lanes need fewer rounds until all are done, which more than pays: a
/// third faster than with all eight.
const PART: usize = 4;

/// One round of [`symmetric_scale_by_rounds`] for a part of the lanes: each code in turn becomes the best one for the
/// scale that the others give, if that is a gain. Lanes with a change are not 0 in the result.
#[inline(never)]
fn improve_codes<const N: usize>(
    part: usize,
    x: &Group<N>,
    codes: &mut Group<N>,
    sumlx: &mut Lanes<f32>,
    suml2: &mut Lanes<f32>,
    lowest: f32,
    highest: f32,
) -> [u32; PART] {
    let sumlx = &mut sumlx.as_chunks_mut::<PART>().0[part];
    let suml2 = &mut suml2.as_chunks_mut::<PART>().0[part];
    let mut is_changed = [0; PART];
    for (x, codes) in x.iter().zip(codes) {
        let (x, codes) = (&x.as_chunks::<PART>().0[part], &mut codes.as_chunks_mut::<PART>().0[part]);
        for k in 0..PART {
            let l = codes[k];
            let w = x[k] * x[k];
            let slx = sumlx[k] - w * x[k] * l;
            let sl2 = suml2[k] - w * l * l;
            let new_l = nearest_code(x[k] * sl2 / slx, lowest, highest);
            let new_slx = slx + w * x[k] * new_l;
            let new_sl2 = sl2 + w * new_l * new_l;
            let is_better = (slx > 0.0)
                & (new_l != l)
                & (new_sl2 > 0.0)
                & (new_slx * new_slx * suml2[k] > sumlx[k] * sumlx[k] * new_sl2);
            codes[k] = if is_better { new_l } else { l };
            sumlx[k] = if is_better { new_slx } else { sumlx[k] };
            suml2[k] = if is_better { new_sl2 } else { suml2[k] };
            is_changed[k] |= if is_better { u32::MAX } else { 0 };
        }
    }
    is_changed
}

/// Ends a symmetric search with the codes `best`. Lanes without a weight worth the name get scale 0 and codes 0, not the
/// code that stands for 0: ggml leaves the search before it adds `nmax`.
#[inline(always)]
fn finish_symmetric<const N: usize>(
    mut best: Group<N>,
    nmax: f32,
    amax: &Lanes<f32>,
    mut scale: Lanes<f32>,
    codes: &mut [u8],
) -> Lanes<f32> {
    for best in &mut best {
        for k in 0..LANES {
            best[k] = if amax[k] < GROUP_MAX_EPS { -nmax } else { best[k] };
        }
    }
    ungroup(&best, nmax, codes);
    for k in 0..LANES {
        scale[k] = if amax[k] < GROUP_MAX_EPS { 0.0 } else { scale[k] };
    }
    scale
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
