//! Rotary position embedding (ggml-cpu/ops.cpp, `ggml_compute_forward_rope`), in the order of
//! ggml's operations.

use super::hyperparameters::RopeParameters;

/// Turns queries and keys by their position.
#[derive(Debug)]
pub(super) struct Rope {
    is_neox: bool,
    n_embd_head: usize,
    freq_scale: f32,
    magnitude: f32,
    theta_scale: f32,
    /// For each pair what its angle is divided by (`rope_freqs.weight`); empty for 1.
    factors: Vec<f32>,
    /// For each pair how much of its angle is not scaled; empty without YaRN.
    unscaled: Vec<f32>,
    n_pairs: usize,
}

impl Rope {
    /// `n_embd_head` is the width of a head; `factors` are empty or one a pair.
    pub(super) fn new(parameters: &RopeParameters, n_embd_head: usize, factors: Vec<f32>) -> Self {
        let (unscaled, magnitude) = match parameters.yarn_turns {
            Some(turns) => (yarn_ramp(parameters, turns), 1.0 + 0.1 * (1.0 / parameters.freq_scale).ln()),
            None => (Vec::new(), 1.0),
        };
        Rope {
            is_neox: parameters.is_neox,
            n_embd_head,
            freq_scale: parameters.freq_scale,
            magnitude: parameters.attn_factor * magnitude,
            theta_scale: parameters.freq_base.powf(-2.0 / parameters.n_rot as f32),
            factors,
            unscaled,
            n_pairs: parameters.n_rot / 2,
        }
    }

    /// Cosine and sine of each pair at a position.
    pub(super) fn at(&self, position: usize) -> Vec<(f32, f32)> {
        let mut theta = position as f32;
        let angle = |pair: usize| {
            let extrapolated = theta / self.factors.get(pair).copied().unwrap_or(1.0);
            let interpolated = self.freq_scale * extrapolated;
            let angle = match self.unscaled.get(pair) {
                Some(share) => interpolated * (1.0 - share) + extrapolated * share,
                None => interpolated,
            };
            theta *= self.theta_scale;
            (angle.cos() * self.magnitude, angle.sin() * self.magnitude)
        };
        (0..self.n_pairs).map(angle).collect()
    }

    /// Turns every head of `row`, a whole number of heads.
    pub(super) fn rotate(&self, row: &mut [f32], turns: &[(f32, f32)]) {
        let half = self.n_pairs;
        for head in row.chunks_exact_mut(self.n_embd_head) {
            for (i, (cos, sin)) in turns.iter().enumerate() {
                let (a, b) = if self.is_neox { (i, i + half) } else { (2 * i, 2 * i + 1) };
                let (x, y) = (head[a], head[b]);
                head[a] = x * cos - y * sin;
                head[b] = x * sin + y * cos;
            }
        }
    }
}

/// 1 for pairs that turn often within the original context, 0 for those that hardly turn, a ramp
/// between (`ggml_rope_yarn_corr_dims`, `rope_yarn_ramp`).
fn yarn_ramp(parameters: &RopeParameters, [fast, slow]: [f32; 2]) -> Vec<f32> {
    let n_dims = parameters.n_rot as f32;
    let dimension = |turns: f32| {
        let tokens_a_turn = parameters.n_ctx_orig as f32 / (turns * 2.0 * std::f32::consts::PI);
        n_dims * tokens_a_turn.ln() / (2.0 * parameters.freq_base.ln())
    };
    let low = dimension(fast).floor().max(0.0);
    let high = dimension(slow).ceil().min(n_dims - 1.0);
    let share = |pair: usize| 1.0 - ((pair as f32 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
    (0..parameters.n_rot / 2).map(share).collect()
}
