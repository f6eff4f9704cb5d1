//! What is made of each token by itself (`build_ffn`, `build_moe_ffn`, src/llama-graph.cpp).

use super::Error;
use super::architecture::{Activation, Architecture, ExpertWeights, Presence, SharedExpert};
use super::hyperparameters::Hyperparameters;
use super::linear::{Linear, Stack, Watch, project, project_each};
use super::ops;
use super::weights::Tensors;

/// The feed-forward network of a layer, or the experts in its place.
#[derive(Debug)]
pub(super) struct FeedForward {
    pub(super) norm: Option<Vec<f32>>,
    pub(super) kind: Kind,
    pub(super) activation: Activation,
    pub(super) post_norm: Option<Vec<f32>>,
}

/// Its matrices.
#[derive(Debug)]
pub(super) enum Kind {
    /// Gate, up, down.
    Gated(Box<[Linear; 3]>),
    /// Gate and up in one, down.
    Fused(Box<[Linear; 2]>),
    Experts(Box<Experts>),
}

/// Experts, of which a router chooses some for each token.
#[derive(Debug)]
pub(super) struct Experts {
    pub(super) router: Linear,
    pub(super) gate: Stack,
    pub(super) up: Stack,
    pub(super) down: Stack,
    pub(super) weights: ExpertWeights,
    pub(super) shared: Option<Shared>,
}

/// An expert that every token has: gate, up and down, and what lets it through.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) matrices: [Linear; 3],
    pub(super) router: Option<Linear>,
}

impl FeedForward {
    pub(super) fn load(
        tensors: &mut Tensors<'_>,
        architecture: &Architecture,
        h: &Hyperparameters,
        i: usize,
    ) -> Result<Self, Error> {
        let (norms, rules) = (&architecture.norms, &architecture.feed_forward);
        let (n_embd, n_ff) = (h.n_embd, h.n_ff);
        let name = |part: &str| format!("blk.{i}.ffn_{part}");
        let norm = match norms.feed_forward {
            Some(norm) => Some(tensors.vector(&format!("blk.{i}.{norm}.weight"), n_embd)?),
            None => None,
        };
        let kind = match &architecture.experts {
            Some(experts) if h.n_expert > 0 => {
                let n = h.n_expert;
                Kind::Experts(Box::new(Experts {
                    router: tensors.linear(&name("gate_inp"), n_embd, n, experts.biases)?,
                    gate: tensors.stack(&name("gate_exps"), [n_embd, n_ff, n], experts.biases)?,
                    up: tensors.stack(&name("up_exps"), [n_embd, n_ff, n], experts.biases)?,
                    down: tensors.stack(&name("down_exps"), [n_ff, n_embd, n], experts.biases)?,
                    weights: experts.weights,
                    shared: Shared::load(tensors, experts.shared, h, i)?,
                }))
            }
            _ if rules.is_fused => Kind::Fused(Box::new([
                tensors.linear(&name("up"), n_embd, 2 * n_ff, rules.biases)?,
                tensors.linear(&name("down"), n_ff, n_embd, rules.biases)?,
            ])),
            _ => Kind::Gated(Box::new([
                tensors.linear(&name("gate"), n_embd, n_ff, rules.biases)?,
                tensors.linear(&name("up"), n_embd, n_ff, rules.biases)?,
                tensors.linear(&name("down"), n_ff, n_embd, rules.biases)?,
            ])),
        };
        let post_norm = match norms.after_feed_forward {
            true => Some(tensors.vector(&format!("blk.{i}.post_ffw_norm.weight"), n_embd)?),
            false => None,
        };
        Ok(FeedForward { norm, kind, activation: rules.activation, post_norm })
    }

    /// Its matrices but for stacks, in the order of the forward pass.
    pub(super) fn linears(&self) -> Vec<&Linear> {
        match &self.kind {
            Kind::Gated(matrices) => matrices.iter().collect(),
            Kind::Fused(matrices) => matrices.iter().collect(),
            Kind::Experts(experts) => {
                let shared = experts.shared.iter().flat_map(|s| s.matrices.iter().chain(&s.router));
                [&experts.router].into_iter().chain(shared).collect()
            }
        }
    }

    /// Its stacks of matrices.
    pub(super) fn stacks(&self) -> Vec<&Stack> {
        match &self.kind {
            Kind::Gated(_) | Kind::Fused(_) => Vec::new(),
            Kind::Experts(experts) => vec![&experts.gate, &experts.up, &experts.down],
        }
    }

    /// What it makes of each row of `x`.
    pub(super) fn run(&self, h: &Hyperparameters, x: &[f32], watch: &mut Watch<'_>) -> Vec<f32> {
        let normed = ops::normed(x, self.norm.as_deref(), h.rms_eps);
        let out = match &self.kind {
            Kind::Gated(matrices) => gated(matrices, self.activation, &normed, watch),
            Kind::Fused(matrices) => {
                let [both] = project([&matrices[0]], &normed, watch);
                let (mut gate, mut up) = (Vec::new(), Vec::new());
                for row in both.chunks_exact(2 * h.n_ff) {
                    gate.extend_from_slice(&row[..h.n_ff]);
                    up.extend_from_slice(&row[h.n_ff..]);
                }
                self.activation.apply(&mut gate, &up);
                let [down] = project([&matrices[1]], &gate, watch);
                down
            }
            Kind::Experts(experts) => experts.run(h, self.activation, &normed, watch),
        };
        ops::normed_or_same(out, self.post_norm.as_deref(), h.rms_eps)
    }
}

fn gated([gate, up, down]: &[Linear; 3], activation: Activation, x: &[f32], watch: &mut Watch<'_>) -> Vec<f32> {
    let [mut gate, up] = project([gate, up], x, watch);
    activation.apply(&mut gate, &up);
    let [down] = project([down], &gate, watch);
    down
}

impl Activation {
    /// Lets `up` through `gate`, into `gate`.
    fn apply(self, gate: &mut [f32], up: &[f32]) {
        match self {
            Activation::Silu => ops::swiglu(gate, up),
            Activation::Gelu => ops::geglu(gate, up),
            Activation::SwigluOai => ops::swiglu_oai(gate, up),
        }
    }
}

impl Shared {
    fn load(
        tensors: &mut Tensors<'_>,
        rule: SharedExpert,
        h: &Hyperparameters,
        i: usize,
    ) -> Result<Option<Self>, Error> {
        let (n_embd, n_ff) = (h.n_embd, h.n_ff_shared);
        if n_ff == 0 {
            return Ok(None);
        }
        let mut part = |part: &str, row_len: usize, n_rows: usize| {
            tensors.linear(&format!("blk.{i}.ffn_{part}_shexp"), row_len, n_rows, Presence::Absent)
        };
        let router = match rule {
            SharedExpert::Gated => Some(part("gate_inp", n_embd, 1)?),
            SharedExpert::ByKey | SharedExpert::None => None,
        };
        let matrices = [part("gate", n_embd, n_ff)?, part("up", n_embd, n_ff)?, part("down", n_ff, n_embd)?];
        Ok(Some(Shared { matrices, router }))
    }

    /// Adds what it makes of each row of `x`.
    fn add(&self, activation: Activation, x: &[f32], out: &mut [f32], watch: &mut Watch<'_>) {
        let open = self.router.as_ref().map(|router| project([router], x, watch));
        let mut made = gated(&self.matrices, activation, x, watch);
        if let Some([open]) = open {
            let width = made.len() / open.len().max(1);
            for (row, open) in made.chunks_exact_mut(width.max(1)).zip(open) {
                let open = 1.0 / (1.0 + (-open).exp());
                row.iter_mut().for_each(|v| *v *= open);
            }
        }
        ops::add(out, &made);
    }
}

/// A token and one of the experts that it goes through.
#[derive(Clone, Copy)]
struct Chosen {
    token: usize,
    /// Which of the token's experts it is, the best first.
    rank: usize,
    expert: usize,
    weight: f32,
}

impl Experts {
    fn run(&self, h: &Hyperparameters, activation: Activation, x: &[f32], watch: &mut Watch<'_>) -> Vec<f32> {
        let n_used = h.n_expert_used;
        let [scores] = project([&self.router], x, watch);
        let mut chosen: Vec<Chosen> = Vec::new();
        for (token, scores) in scores.chunks_exact(h.n_expert).enumerate() {
            let experts = choose(scores, n_used, self.weights);
            let experts = experts.into_iter().enumerate();
            chosen.extend(experts.map(|(rank, (expert, weight))| Chosen { token, rank, expert, weight }));
        }
        // An expert's rows go through it together.
        chosen.sort_by_key(|c| (c.expert, c.token));
        let groups: Vec<&[Chosen]> = chosen.chunk_by(|a, b| a.expert == b.expert).collect();
        let row = |c: &Chosen| &x[c.token * h.n_embd..][..h.n_embd];
        let inputs: Vec<(usize, Vec<f32>)> =
            groups.iter().map(|group| (group[0].expert, group.iter().flat_map(row).copied().collect())).collect();
        let mut products = project_each(&[&self.gate, &self.up], &inputs, watch);
        let up = products.split_off(groups.len());
        let gated = products.into_iter().zip(up).zip(&groups).map(|((mut gate, up), group)| {
            activation.apply(&mut gate, &up);
            (group[0].expert, gate)
        });
        let down = project_each(&[&self.down], &gated.collect::<Vec<_>>(), watch);
        // Each token's experts are added in the order of their ranks, however they were grouped.
        let mut parts = vec![0.0; chosen.len() * h.n_embd];
        for (group, down) in groups.iter().zip(&down) {
            for (c, row) in group.iter().zip(down.chunks_exact(h.n_embd)) {
                let part = &mut parts[(c.token * n_used + c.rank) * h.n_embd..][..h.n_embd];
                part.iter_mut().zip(row).for_each(|(part, v)| *part = v * c.weight);
            }
        }
        let mut out = vec![0.0; x.len()];
        for (out, parts) in out.chunks_exact_mut(h.n_embd).zip(parts.chunks_exact(n_used * h.n_embd)) {
            let mut parts = parts.chunks_exact(h.n_embd);
            out.copy_from_slice(parts.next().unwrap_or_default());
            parts.for_each(|part| ops::add(out, part));
        }
        if let Some(shared) = &self.shared {
            shared.add(activation, x, &mut out, watch);
        }
        out
    }
}

/// The experts of a token, the best first, with their weights.
fn choose(scores: &[f32], n_used: usize, weights: ExpertWeights) -> Vec<(usize, f32)> {
    let mut probabilities = scores.to_vec();
    if weights != ExpertWeights::SoftmaxOfChosen {
        ops::softmax(&mut probabilities, None);
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
    order.truncate(n_used);
    let mut weighted: Vec<f32> = order.iter().map(|&i| probabilities[i]).collect();
    match weights {
        ExpertWeights::Softmax => {}
        ExpertWeights::Normalized => {
            // The smallest normal number of F16.
            let sum = weighted.iter().sum::<f32>().max(6.103_515_6e-5);
            weighted.iter_mut().for_each(|w| *w /= sum);
        }
        ExpertWeights::SoftmaxOfChosen => ops::softmax(&mut weighted, None),
    }
    order.into_iter().zip(weighted).collect()
}
