//! The few operations between the matrices, in ggml's order of operations (ggml-cpu/ops.cpp and
//! vec.h).

use half::f16;

/// Root mean square norm of a row, with weights (`ggml_compute_forward_rms_norm_f32`: squares are
/// summed in f64).
pub(super) fn rms_norm(row: &[f32], weights: &[f32], eps: f32, out: &mut Vec<f32>) {
    let scale = rms_scale(row, eps);
    out.extend(row.iter().zip(weights).map(|(x, w)| x * scale * w));
}

fn rms_scale(row: &[f32], eps: f32) -> f32 {
    let sum: f64 = row.iter().map(|x| f64::from(x * x)).sum();
    let mean = (sum / row.len() as f64) as f32;
    1.0 / (mean + eps).sqrt()
}

/// Norms whole rows; without weights they stay as they are.
pub(super) fn normed(rows: &[f32], weights: Option<&[f32]>, eps: f32) -> Vec<f32> {
    let Some(weights) = weights else { return rows.to_vec() };
    let mut out = Vec::with_capacity(rows.len());
    rows.chunks_exact(weights.len()).for_each(|row| rms_norm(row, weights, eps, &mut out));
    out
}

/// The same of rows that are no longer needed.
pub(super) fn normed_or_same(rows: Vec<f32>, weights: Option<&[f32]>, eps: f32) -> Vec<f32> {
    if weights.is_some() { normed(&rows, weights, eps) } else { rows }
}

/// Norms rows where they are, each as long as the weights.
pub(super) fn norm_in_place(rows: &mut [f32], weights: Option<&[f32]>, eps: f32) {
    let Some(weights) = weights else { return };
    for row in rows.chunks_exact_mut(weights.len()) {
        let scale = rms_scale(row, eps);
        row.iter_mut().zip(weights).for_each(|(x, w)| *x = *x * scale * w);
    }
}

/// `gate · sigmoid(gate) · up`, into `gate`.
pub(super) fn swiglu(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + (-*g).exp()) * u;
    }
}

/// `GELU(gate) · up`, into `gate`: by tanh, from halves to halves as ggml's table has it
/// (`ggml_vec_geglu_f32`).
pub(super) fn geglu(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = gelu(*g) * u;
    }
}

fn gelu(x: f32) -> f32 {
    if x <= -10.0 {
        return 0.0;
    }
    if x >= 10.0 {
        return x;
    }
    let x = f16::from_f32(x).to_f32();
    let inner = 0.797_884_6 * x * (1.0 + 0.044_715 * x * x);
    f16::from_f32(0.5 * x * (1.0 + inner.tanh())).to_f32()
}

/// SiLU of a gate of at most 7, steeper than usual, times one more than `up` within ±7, into `gate`
/// (`ggml_compute_forward_swiglu_oai_f32`).
pub(super) fn swiglu_oai(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        // A gate that is no number stays one.
        let x = if *g > 7.0 { 7.0 } else { *g };
        *g = x / (1.0 + (-1.702 * x).exp()) * (u.clamp(-7.0, 7.0) + 1.0);
    }
}

/// A number that goes no further than `cap`.
pub(super) fn capped(x: f32, cap: f32) -> f32 {
    (x * (1.0 / cap)).tanh() * cap
}

/// Adds `other` to each row of `rows`.
pub(super) fn add_to_rows(rows: &mut [f32], other: &[f32]) {
    for row in rows.chunks_exact_mut(other.len().max(1)) {
        add(row, other);
    }
}

/// Adds element by element.
pub(super) fn add(to: &mut [f32], other: &[f32]) {
    for (a, b) in to.iter_mut().zip(other) {
        *a += b;
    }
}

/// Multiplies all of them; 1 changes nothing.
pub(super) fn scale(values: &mut [f32], factor: f32) {
    if factor != 1.0 {
        values.iter_mut().for_each(|v| *v *= factor);
    }
}

/// Softmax in place, with a score beside that is only counted; the sum is in f64 as ggml's. A score
/// that is no number makes all of them none.
pub(super) fn softmax(scores: &mut [f32], sink: Option<f32>) {
    let largest = scores.iter().chain(&sink).fold(f32::NEG_INFINITY, |m, s| m.max(*s));
    let mut sum = 0f64;
    for s in scores.iter_mut() {
        *s = (*s - largest).exp();
        sum += f64::from(*s);
    }
    sum += sink.map_or(0.0, |sink| f64::from((sink - largest).exp()));
    let scale = (1.0 / sum) as f32;
    scores.iter_mut().for_each(|s| *s *= scale);
}
