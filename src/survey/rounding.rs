//! How much of a difference between quantised files is rounding error.
//!
//! τ̂ = Q(chat) − Q(base) is measured, τ is wanted. Were the two rounding errors independent, ‖τ̂‖²
//! would be ‖τ‖² and both errors' squares. But where τ is smaller than a step, chat mostly rounds
//! as base does, and the errors go together: with steps of width Δ a weight that moves by t moves
//! by floor(t/Δ) or one step more, the latter with the probability of the remainder f, which is
//! right on average and has the variance Δ²·f·(1 − f). For normal t of deviation σ the mean of f·(1
//! − f) has a closed form (a Fourier series in σ/Δ), so that σ follows from what is measured.
//!
//! On the bundled trio (‖τ‖/‖W‖ 4.7 %) this gives .989 .894 .716 .543 .371 for Q8_0, Q6_K, Q5_K,
//! Q4_K and Q3_K; the true cosines are .989 .895 .708 .483 .343. Independent errors would give .989
//! .893 .694 .347 0.

use std::f64::consts::PI;

use crate::ggml::GgmlType::{self, *};

/// Root mean square rounding error of normally distributed weights, relative to theirs (a test
/// holds these to the codec). The types of one bit and of three values are left out: they do not
/// round to the nearest step.
const RELATIVE_ERROR: [(GgmlType, f64); 22] = [
    (F32, 0.0),
    (F16, 0.000_207),
    (BF16, 0.001_657),
    (Q8_0, 0.005_354),
    (Q6_K, 0.017_78),
    (Q5_K, 0.036_13),
    (Q5_1, 0.037_85),
    (Q5_0, 0.042_70),
    (Q4_K, 0.071_37),
    (IQ4_NL, 0.076_17),
    (IQ4_XS, 0.076_78),
    (Q4_1, 0.078_26),
    (Q4_0, 0.086_00),
    (NVFP4, 0.103_2),
    (MXFP4, 0.114_1),
    (Q3_K, 0.150_98),
    (IQ3_S, 0.166_2),
    (IQ3_XXS, 0.213_2),
    (IQ2_S, 0.264_8),
    (Q2_K, 0.296_70),
    (IQ2_XS, 0.299_8),
    (IQ2_XXS, 0.343_7),
];

/// What ‖τ‖² was before rounding, from the ‖τ̂‖² that is found between base and chat of these
/// types. All are means over weights; `base2` is the mean square of the base's weights. None for a
/// type whose error is not known.
pub(super) fn true_square(found2: f64, base2: f64, base: GgmlType, chat: GgmlType) -> Option<f64> {
    let error = |ty| RELATIVE_ERROR.iter().find(|e| e.0 == ty).map(|e| e.1);
    let (base_error, chat_error) = (error(base)?, error(chat)?);
    if base != chat {
        let noise2 = (base_error * base_error + chat_error * chat_error) * base2;
        return Some((found2 - noise2).max(0.0));
    }
    // The error of rounding to steps of width Δ is Δ/√12.
    let step = 12f64.sqrt() * base_error * base2.sqrt();
    if step == 0.0 || found2 == 0.0 {
        return Some(found2);
    }
    let (mut low, mut high) = (0.0, found2.sqrt());
    for _ in 0..60 {
        let sigma = (low + high) / 2.0;
        if sigma * sigma + step * step * mean_remainder(sigma / step) > found2 { high = sigma } else { low = sigma }
    }
    Some(low * low)
}

/// The mean of f·(1 − f), where f is the fractional part of a normal number of deviation `x`.
fn mean_remainder(x: f64) -> f64 {
    if x < 0.05 {
        // Hardly ever beyond one step: the mean of |t| − t².
        return x * (2.0 / PI).sqrt() - x * x;
    }
    let terms = (1..40).map(|k| f64::from(k * k)).map(|k2| (-2.0 * PI * PI * k2 * x * x).exp() / k2);
    // Terms that are lost in 1/6 take longest: `exp` is slow where it vanishes.
    1.0 / 6.0 - terms.take_while(|term| *term > 1e-20).sum::<f64>() / (PI * PI)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quants;

    #[test]
    fn relative_errors_are_those_of_the_codec() {
        // Sums of twelve uniform numbers are normal enough.
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        let weights: Vec<f32> = (0..1 << 17).map(|_| ((0..12).map(|_| uniform()).sum::<f32>() - 6.0) * 0.02).collect();
        let square = |w: &[f32]| w.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
        let ones = [1.0; 1024];
        for (ty, expected) in RELATIVE_ERROR {
            let mut blocks = vec![0; ty.size_of(weights.len() as u64).unwrap() as usize];
            let mut decoded = vec![0.0; weights.len()];
            let importance = quants::requires_importance(ty).then_some(&ones[..]);
            quants::quantize_rows(ty, &weights, importance, &mut blocks).unwrap();
            quants::dequantize_row(ty, &blocks, &mut decoded).unwrap();
            let errors: Vec<f32> = decoded.iter().zip(&weights).map(|(d, w)| d - w).collect();
            let found = (square(&errors) / square(&weights)).sqrt();
            assert!((found - expected).abs() <= 0.03 * expected, "{ty}: {found}, expected {expected}");
        }
    }

    #[test]
    fn steps_far_below_and_far_above_a_vector_are_the_known_cases() {
        assert!((mean_remainder(3.0) - 1.0 / 6.0).abs() < 1e-9, "independent errors");
        assert!((mean_remainder(0.05) - mean_remainder(0.049_999)).abs() < 1e-5, "the two forms meet");
        assert_eq!(true_square(4.0, 1.0, F32, F32), Some(4.0));
        assert_eq!(true_square(1e-9, 1.0, Q4_0, Q8_0), Some(0.0));
        assert_eq!(true_square(1.0, 1.0, TQ1_0, F32), None);
    }
}
