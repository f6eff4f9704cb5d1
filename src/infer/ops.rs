//! The few operations between the matrices, in ggml's order of operations (ggml-cpu/ops.cpp).

/// Root mean square norm of a row, with weights (`ggml_compute_forward_rms_norm_f32`: squares are
/// summed in f64).
pub(super) fn rms_norm(row: &[f32], weights: &[f32], eps: f32, out: &mut Vec<f32>) {
    let sum: f64 = row.iter().map(|x| f64::from(x * x)).sum();
    let mean = (sum / row.len() as f64) as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    out.extend(row.iter().zip(weights).map(|(x, w)| x * scale * w));
}

/// `gate · sigmoid(gate) · up`, into `gate`.
pub(super) fn swiglu(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + (-*g).exp()) * u;
    }
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

/// Softmax in place; the sum is in f64 as ggml's. A score that is no number makes all of them none.
pub(super) fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().fold(f32::NEG_INFINITY, |m, s| m.max(*s));
    let mut sum = 0f64;
    for s in scores.iter_mut() {
        *s = (*s - largest).exp();
        sum += f64::from(*s);
    }
    let scale = (1.0 / sum) as f32;
    scores.iter_mut().for_each(|s| *s *= scale);
}
