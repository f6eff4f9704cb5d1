//! The searches of the K encoders: for each sub-block the scale (and minimum) that leaves the least
//! error.
//!
//! ggml takes one sub-block at a time (`make_qkx2_quants` and its like in ggml-quants.c), and for
//! each candidate sums over its weights:
//!
//! ```text
//! for each sub-block
//!     for each candidate scale
//!         for each weight: round to a code, add to the sums        one chain of dependent additions
//!         if the candidate is better: keep it                      and the next candidate may start from it
//! ```
//!
//! The additions may not be reordered, since f32 sums depend on order and the bytes on the sums.
//! But sub-blocks know nothing of each other. So here the outer loop is the innermost:
//! [`LANES`](super::simd::LANES) sub-blocks are searched side by side, weight i of each in the
//! lanes of `x[i]`, every lane doing the operations of ggml in its order. Lanes differ only where
//! ggml branches; there both ways are computed and each lane selects. A candidate that ggml would
//! skip costs its time, and nothing else: what it computes, often NaN, is dropped.
//!
//! The codes of the best candidate are not kept, but what they can be computed from once more: they
//! are only wanted where the stored scale is zero.

use super::simd::{Floats, Ints, Mask, Simd};

/// Scales below this count as zero (`GROUP_MAX_EPS`).
pub(super) const GROUP_MAX_EPS: f32 = 1e-15;

/// 1.5·2²³: a number of a few digits added to this is rounded to an integer, which is then in the
/// low bits of the sum.
const MAGIC: f32 = 12_582_912.0;

/// The nearest integer of any number, as ggml's `nearest_int` has it: without meaning beyond 2²²
/// and for NaN, but the same.
#[inline(always)]
fn nearest<S: Simd>(simd: S, x: S::F) -> S::F {
    let bits = (x + simd.splat(MAGIC)).bits() & simd.splat_int(0x007f_ffff) | simd.splat_int(0x4b00_0000);
    bits.float_of_bits() - simd.splat(MAGIC)
}

/// The low eight bits of [`nearest`]: what is left of it in a `uint8_t`.
#[inline(always)]
fn nearest_u8<S: Simd>(simd: S, x: S::F) -> S::F {
    let bits = (x + simd.splat(MAGIC)).bits() & simd.splat_int(0xff) | simd.splat_int(0x4b00_0000);
    bits.float_of_bits() - simd.splat(8_388_608.0)
}

/// What a search for scale and minimum tries (`rmin`, `rdelta`, `nstep`, `use_mad` of
/// `make_qkx2_quants`).
#[derive(Clone, Copy)]
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
    /// Whether what a candidate rounds is first brought into the range of codes, as
    /// `make_qkx3_quants` does since ggml 0.26. Elsewhere numbers beyond 2²² become any code.
    pub(super) is_bounded: bool,
}

impl Candidates {
    /// What is tried for a type with codes up to `nmax` when there is an importance matrix.
    pub(super) const fn with_importance(nmax: f32) -> Self {
        Self { nmax, rmin: -0.9, rdelta: 0.05, nstep: 36, use_mad: false, is_bounded: true }
    }
}

/// What [`scale_and_min`] finds.
#[derive(Clone, Copy)]
pub(super) struct ScaleAndMin<S: Simd> {
    /// w ≈ scale·code − min.
    pub(super) scale: S::F,
    /// Not negative.
    pub(super) min: S::F,
    /// The codes are the integers nearest to `iscale·(w − start)`.
    iscale: S::F,
    start: S::F,
    /// All weights are the same, and not positive: there is no scale, and all codes are 0.
    is_flat: S::M,
    /// The codes are brought into range before they are rounded.
    is_bounded: S::M,
}

/// Scale and minimum for w ≈ scale·code − min, with codes from 0 to `nmax` (`make_qkx2_quants`;
/// `make_qkx3_quants` is the same for weights that are given). `weights` says how much each
/// weight's error counts.
#[inline(always)]
pub(super) fn scale_and_min<S: Simd, const N: usize>(
    simd: S,
    x: &[S::F; N],
    weights: &[S::F; N],
    candidates: &Candidates,
) -> ScaleAndMin<S> {
    let &Candidates { nmax, rmin, rdelta, nstep, use_mad, is_bounded } = candidates;
    let zero = simd.splat(0.0);

    let mut least = x[0];
    let mut max = x[0];
    let mut sum_w = weights[0];
    let mut sum_x = weights[0] * x[0];
    for (&x, &w) in x.iter().zip(weights).skip(1) {
        least = x.min(least);
        max = x.max(max);
        sum_w = sum_w + w;
        sum_x = sum_x + w * x;
    }
    let first_min = zero.less(least).select(zero, least);
    let is_flat = max.equal(first_min);
    let mut min = first_min;
    let iscale = simd.splat(nmax) / (max - min);
    // Which lanes have found a candidate that is brought into range.
    let is_bounded_lane = zero.less(zero);
    let mut best = ScaleAndMin { scale: zero, min, iscale, start: min, is_flat, is_bounded: is_bounded_lane };
    best.scale = simd.splat(1.0) / best.iscale;
    let mut codes = [zero; N];
    trial_codes(simd, x, (least, max, is_flat), best.iscale, min, nmax, &mut codes);
    let mut best_error = line_error(simd, x, weights, &codes, best.scale, min, use_mad);

    for step in 0..=nstep {
        let iscale = simd.splat(rmin + rdelta * step as f32 + nmax) / (max - min);
        if is_bounded {
            bounded_codes(simd, x, iscale, min, nmax, &mut codes);
        } else {
            trial_codes(simd, x, (least, max, is_flat), iscale, min, nmax, &mut codes);
        }
        let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
        for ((&x, &w), &l) in x.iter().zip(weights).zip(&codes) {
            let wl = w * l;
            sum_l = sum_l + wl;
            sum_l2 = sum_l2 + wl * l;
            sum_xl = sum_xl + wl * x;
        }

        // The least-squares line through the codes; if its minimum has the wrong sign, the best
        // line through 0.
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        let is_wrong = zero.less(this_min);
        if is_wrong.any() {
            this_scale = is_wrong.select(sum_xl / sum_l2, this_scale);
            this_min = is_wrong.select(zero, this_min);
        }

        let error = line_error(simd, x, weights, &codes, this_scale, this_min, use_mad);
        let is_better = zero.less(determinant) & error.less(best_error);
        best_error = is_better.select(error, best_error);
        best.iscale = is_better.select(iscale, best.iscale);
        best.start = is_better.select(min, best.start);
        if is_bounded {
            best.is_bounded = best.is_bounded | is_better;
        }
        best.scale = is_better.select(this_scale, best.scale);
        min = is_better.select(this_min, min);
    }

    best.scale = is_flat.select(zero, best.scale);
    best.min = -is_flat.select(first_min, min);
    best
}

/// The codes at `iscale` from `min` up, for weights between `least` and `max`. Those of flat lanes
/// do not matter.
#[inline(always)]
fn trial_codes<S: Simd, const N: usize>(
    simd: S,
    x: &[S::F; N],
    (least, max, is_flat): (S::F, S::F, S::M),
    iscale: S::F,
    min: S::F,
    nmax: f32,
    codes: &mut [S::F; N],
) {
    let (limit, zero, nmax) = (simd.splat(4_194_304.0), simd.splat(0.0), simd.splat(nmax));
    // Rounding keeps the order of numbers: where both ends are small, all between are.
    let is_small = (iscale * (max - min)).abs().less(limit) & (iscale * (least - min)).abs().less(limit);
    if (!(is_small | is_flat)).any() {
        for (&x, code) in x.iter().zip(codes) {
            *code = nearest(simd, iscale * (x - min)).max(zero).min(nmax);
        }
        return;
    }
    for (&x, code) in x.iter().zip(codes) {
        *code = (iscale * (x - min)).round().max(zero).min(nmax);
    }
}

/// The codes at `iscale` from `min` up, of products that are brought into range before they are
/// rounded.
#[inline(always)]
fn bounded_codes<S: Simd, const N: usize>(
    simd: S,
    x: &[S::F; N],
    iscale: S::F,
    min: S::F,
    nmax: f32,
    codes: &mut [S::F; N],
) {
    let (zero, nmax) = (simd.splat(0.0), simd.splat(nmax));
    for (&x, code) in x.iter().zip(codes) {
        // What is no number becomes 0.
        *code = (iscale * (x - min)).max(zero).min(nmax).round();
    }
}

/// What a line leaves of the weights, summed.
#[inline(always)]
fn line_error<S: Simd, const N: usize>(
    simd: S,
    x: &[S::F; N],
    weights: &[S::F; N],
    codes: &[S::F; N],
    scale: S::F,
    min: S::F,
    use_mad: bool,
) -> S::F {
    let mut sum = simd.splat(0.0);
    for ((&x, &w), &code) in x.iter().zip(weights).zip(codes) {
        let difference = scale * code + min - x;
        sum = sum + w * if use_mad { difference.abs() } else { difference * difference };
    }
    sum
}

impl<S: Simd> ScaleAndMin<S> {
    /// What is found where all weights are 0.
    #[inline(always)]
    pub(super) fn none(simd: S) -> Self {
        let zero = simd.splat(0.0);
        Self {
            scale: zero,
            min: zero,
            iscale: zero,
            start: zero,
            is_flat: zero.equal(zero),
            is_bounded: zero.less(zero),
        }
    }

    /// The codes for the scale and minimum that were stored, from 0 to `nmax`. A scale of zero
    /// leaves the codes of the search in place, as ggml does.
    #[inline(always)]
    pub(super) fn codes<const N: usize>(self, simd: S, x: &[S::F; N], scale: S::F, min: S::F, nmax: f32) -> [S::F; N] {
        let (zero, nmax) = (simd.splat(0.0), simd.splat(nmax));
        let mut codes = [zero; N];
        for (&x, code) in x.iter().zip(&mut codes) {
            *code = nearest(simd, (x + min) / scale).max(zero).min(nmax);
        }
        let is_zero = scale.equal(zero);
        if is_zero.any() {
            for (found, code) in self.found_codes(simd, x, nmax).into_iter().zip(&mut codes) {
                *code = is_zero.select(found, *code);
            }
        }
        codes
    }

    /// The codes of the search, from 0 to `nmax`.
    #[inline(always)]
    pub(super) fn found_codes<const N: usize>(self, simd: S, x: &[S::F; N], nmax: S::F) -> [S::F; N] {
        let zero = simd.splat(0.0);
        let mut codes = [zero; N];
        for (&x, code) in x.iter().zip(&mut codes) {
            let steps = self.iscale * (x - self.start);
            let steps = self.is_bounded.select(steps.max(zero).min(nmax), steps);
            let l = nearest(simd, steps).max(zero).min(nmax);
            *code = self.is_flat.select(zero, l);
        }
        codes
    }
}

/// What a search for a symmetric scale finds.
#[derive(Clone, Copy)]
pub(super) struct Symmetric<S: Simd, const N: usize> {
    /// w ≈ scale·(code − nmax).
    pub(super) scale: S::F,
    /// Codes less nmax.
    codes: [S::F; N],
    /// No weight is worth the name: all codes are 0, not the code that stands for 0, for ggml
    /// leaves the search before it adds nmax.
    is_empty: S::M,
}

/// The value farthest from zero in each lane, of two with both signs the first, and its distance.
#[inline(always)]
pub(super) fn farthest<S: Simd, const N: usize>(simd: S, x: &[S::F; N]) -> (S::F, S::F) {
    let (mut max, mut amax) = (simd.splat(0.0), simd.splat(0.0));
    for &x in x {
        max = amax.less(x.abs()).select(x, max);
        amax = x.abs().max(amax);
    }
    (max, amax)
}

/// The scale for w ≈ scale·(code − nmax), with codes from 0 to 2·nmax − 1, where `weights` says how
/// much each weight's error counts (`make_qx_quants` with `rmse_type` 1, for which the weights are
/// the squares if none are given).
#[inline(always)]
pub(super) fn symmetric_scale<S: Simd, const N: usize>(
    simd: S,
    x: &[S::F; N],
    weights: &[S::F; N],
    nmax: f32,
) -> Symmetric<S, N> {
    let zero = simd.splat(0.0);
    let (lowest, highest) = (simd.splat(-nmax), simd.splat(nmax - 1.0));
    let (max, amax) = farthest(simd, x);
    let is_empty = amax.less(simd.splat(GROUP_MAX_EPS));
    // What is no number, as scales of scales can be, is rounded to 0.
    let (mut wx, mut finite) = (*x, *x);
    for ((wx, finite), &w) in wx.iter_mut().zip(&mut finite).zip(weights) {
        *finite = wx.abs().less(simd.splat(f32::INFINITY)).select(*wx, zero);
        *wx = w * *wx;
    }

    let mut best_iscale = simd.splat(-nmax) / max;
    let (mut scale, mut best_gain) = (zero, zero);
    for candidate in [0i8, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9] {
        let iscale = simd.splat(-(nmax + 0.1 * f32::from(candidate))) / max;
        let (mut sumlx, mut suml2) = (zero, zero);
        for ((&x, &w), &wx) in finite.iter().zip(weights).zip(&wx) {
            // No product is larger than nmax + 1.
            let l = (iscale * x).round().max(lowest).min(highest);
            sumlx = sumlx + wx * l;
            suml2 = suml2 + w * l * l;
        }
        let this_scale = sumlx / suml2;
        if candidate == 0 {
            scale = suml2.equal(zero).select(zero, this_scale);
            best_gain = scale * sumlx;
        } else {
            let is_better = zero.less(suml2) & (best_gain * suml2).less(sumlx * sumlx);
            best_iscale = is_better.select(iscale, best_iscale);
            best_gain = is_better.select(this_scale * sumlx, best_gain);
            scale = is_better.select(this_scale, scale);
        }
    }

    let mut codes = [zero; N];
    for (&x, code) in x.iter().zip(&mut codes) {
        *code = nearest(simd, best_iscale * x).max(lowest).min(highest);
    }
    Symmetric { scale: is_empty.select(zero, scale), codes, is_empty }
}

/// The scale for w ≈ scale·(code − nmax) as [`symmetric_scale`] has it, errors counted by the
/// square of the weight, found by changing one code at a time while that helps, in at most five
/// rounds (`make_q3_quants` with `do_rmse`).
#[inline(always)]
pub(super) fn symmetric_scale_by_rounds<S: Simd, const N: usize>(simd: S, x: &[S::F; N], nmax: f32) -> Symmetric<S, N> {
    let zero = simd.splat(0.0);
    let (lowest, highest) = (simd.splat(-nmax), simd.splat(nmax - 1.0));
    let (max, amax) = farthest(simd, x);
    let is_empty = amax.less(simd.splat(GROUP_MAX_EPS));

    let iscale = simd.splat(-nmax) / max;
    // What each weight adds to the sums is kept: rounds are most of the work.
    let (mut codes, mut lx, mut l2) = ([zero; N], [zero; N], [zero; N]);
    let (mut sumlx, mut suml2) = (zero, zero);
    for (i, &x) in x.iter().enumerate() {
        let l = (iscale * x).round().max(lowest).min(highest);
        let w = x * x;
        (codes[i], lx[i], l2[i]) = (l, w * x * l, w * l * l);
        sumlx = sumlx + lx[i];
        suml2 = suml2 + l2[i];
    }
    // ggml stops a sub-block after a round without a change. Another round would change nothing
    // either, as it starts from the same sums: a lane that is done may run along.
    for _ in 0..5 {
        let mut is_changed = false;
        for (i, &x) in x.iter().enumerate() {
            let l = codes[i];
            let w = x * x;
            let slx = sumlx - lx[i];
            let sl2 = suml2 - l2[i];
            let new_l = nearest(simd, x * sl2 / slx).max(lowest).min(highest);
            let (new_lx, new_l2) = (w * x * new_l, w * new_l * new_l);
            let (new_slx, new_sl2) = (slx + new_lx, sl2 + new_l2);
            let is_better = zero.less(slx)
                & !new_l.equal(l)
                & zero.less(new_sl2)
                & (sumlx * sumlx * new_sl2).less(new_slx * new_slx * suml2);
            if is_better.any() {
                is_changed = true;
                // Not a select, which would become a masked store, and that is slow.
                codes[i] = l + is_better.select(new_l - l, zero);
                let l = codes[i];
                (lx[i], l2[i]) = (w * x * l, w * l * l);
                sumlx = is_better.select(new_slx, sumlx);
                suml2 = is_better.select(new_sl2, suml2);
            }
        }
        if !is_changed {
            break;
        }
    }
    let scale = zero.less(suml2).select(sumlx / suml2, zero);
    Symmetric { scale: is_empty.select(zero, scale), codes, is_empty }
}

impl<S: Simd, const N: usize> Symmetric<S, N> {
    /// What is found where all weights are 0.
    #[inline(always)]
    pub(super) fn none(simd: S) -> Self {
        let zero = simd.splat(0.0);
        Self { scale: zero, codes: [zero; N], is_empty: zero.equal(zero) }
    }

    /// The codes of the search, from 0 to 2·nmax − 1.
    #[inline(always)]
    pub(super) fn found_codes(&self, simd: S, nmax: f32) -> [S::F; N] {
        let mut codes = self.codes;
        for code in &mut codes {
            *code = self.is_empty.select(simd.splat(0.0), *code + simd.splat(nmax));
        }
        codes
    }

    /// The codes for the scale that was stored, from 0 to 2·nmax − 1. A scale of zero leaves the
    /// codes of the search in place, as ggml does.
    #[inline(always)]
    pub(super) fn codes(&self, simd: S, x: &[S::F; N], scale: S::F, nmax: f32) -> [S::F; N] {
        let zero = simd.splat(0.0);
        let (lowest, highest) = (simd.splat(-nmax), simd.splat(nmax - 1.0));
        let mut codes = [zero; N];
        for (&x, code) in x.iter().zip(&mut codes) {
            *code = nearest(simd, x / scale).max(lowest).min(highest) - lowest;
        }
        let is_zero = scale.equal(zero);
        if is_zero.any() {
            for (found, code) in self.found_codes(simd, nmax).into_iter().zip(&mut codes) {
                *code = is_zero.select(found, *code);
            }
        }
        codes
    }
}

/// The scale for x ≈ scale·code and its codes, from 0 to `nmax`, for a few numbers that are mostly
/// positive: the scales, or minimums, of sub-blocks (`make_qp_quants`). Codes of negative numbers
/// are what is left of them in a byte.
#[inline(always)]
#[expect(clippy::too_many_lines, reason = "ggml's function, step by step in its order")]
pub(super) fn positive_scale<S: Simd, const N: usize>(
    simd: S,
    x: &[S::F; N],
    weights: &[S::F; N],
    nmax: f32,
) -> (S::F, [S::F; N]) {
    let zero = simd.splat(0.0);
    let top = simd.splat(nmax);
    let mut max = zero;
    for &x in x {
        max = max.max(x);
    }
    let is_empty = max.less(simd.splat(GROUP_MAX_EPS));

    let mut best_iscale = top / max;
    let mut least_error = zero;
    for candidate in [0i8, -4, -3, -2, -1, 1, 2, 3, 4] {
        let iscale = simd.splat(0.1 * f32::from(candidate) + nmax) / max;
        let scale = simd.splat(1.0) / iscale;
        let mut error = zero;
        for (&x, &w) in x.iter().zip(weights) {
            let l = if candidate == 0 { nearest_u8(simd, iscale * x) } else { nearest(simd, iscale * x).min(top) };
            let difference = x - scale * l;
            error = error + w * difference * difference;
        }
        let is_better = error.less(least_error);
        if candidate == 0 {
            least_error = error;
        } else {
            least_error = is_better.select(error, least_error);
            best_iscale = is_better.select(iscale, best_iscale);
        }
    }

    let mut codes = [zero; N];
    let (mut sumlx, mut suml2) = (zero, zero);
    for ((&x, &w), code) in x.iter().zip(weights).zip(&mut codes) {
        let l = nearest(simd, best_iscale * x).min(top);
        *code = nearest_u8(simd, l);
        sumlx = sumlx + w * x * l;
        suml2 = suml2 + w * l * l;
    }
    for _ in 0..5 {
        let mut is_changed = false;
        for ((&x, &w), code) in x.iter().zip(weights).zip(&mut codes) {
            let l = *code;
            let slx = sumlx - w * x * l;
            let sl2 = suml2 - w * l * l;
            let new_l = nearest(simd, x * sl2 / slx).min(top);
            let new_slx = slx + w * x * new_l;
            let new_sl2 = sl2 + w * new_l * new_l;
            let is_better = zero.less(slx)
                & zero.less(sl2)
                & !new_l.equal(l)
                & (sumlx * sumlx * new_sl2).less(new_slx * new_slx * suml2);
            if is_better.any() {
                is_changed = true;
                *code = l + is_better.select(nearest_u8(simd, new_l) - l, zero);
                sumlx = is_better.select(new_slx, sumlx);
                suml2 = is_better.select(new_sl2, suml2);
            }
        }
        if !is_changed {
            break;
        }
    }
    for code in &mut codes {
        *code = is_empty.select(zero, *code);
    }
    let scale = zero.less(suml2).select(sumlx / suml2, zero);
    (is_empty.select(zero, scale), codes)
}
