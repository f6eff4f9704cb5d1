//! How tokens look at those before them (`build_qkv`, `build_attn_mha`, src/llama-graph.cpp).

use super::Error;
use super::architecture::{Architecture, Presence, QkNorm};
use super::cache::{KeysAndValues, Place};
use super::hyperparameters::{Hyperparameters, Temperature};
use super::linear::{Linear, Watch, project};
use super::matrix::dot;
use super::ops;
use super::rope::Rope;
use super::weights::Tensors;
use crate::pool;

/// Multiplications of attention that are worth more threads.
const TASK: usize = 1 << 17;

/// Attention of a layer.
#[derive(Debug)]
pub(super) struct Attention {
    pub(super) norm: Option<Vec<f32>>,
    pub(super) qkv: Qkv,
    /// Norms of queries and keys, as long as what they norm at once.
    pub(super) q_norm: Option<Vec<f32>>,
    pub(super) k_norm: Option<Vec<f32>>,
    /// A score for each head that nothing answers to.
    pub(super) sinks: Option<Vec<f32>>,
    pub(super) output: Linear,
    pub(super) post_norm: Option<Vec<f32>>,
    /// How many of the last tokens it sees; none for all of them.
    pub(super) window: Option<usize>,
    /// Whether positions turn queries and keys.
    pub(super) is_turned: bool,
}

/// The matrices of queries, keys and values.
#[derive(Debug)]
pub(super) enum Qkv {
    Apart(Box<[Linear; 3]>),
    Fused(Box<Linear>),
}

/// The rows that go through a layer together, and where they are in their sequences.
pub(super) struct Rows<'a> {
    pub(super) places: &'a [Place],
    /// Cosines and sines of each row.
    pub(super) turns: &'a [Vec<(f32, f32)>],
}

impl Attention {
    pub(super) fn load(
        tensors: &mut Tensors<'_>,
        architecture: &Architecture,
        h: &Hyperparameters,
        i: usize,
    ) -> Result<Self, Error> {
        let (n_embd, n_q, n_kv) = (h.n_embd, h.n_embd_q(), h.n_embd_kv());
        let (rules, norms) = (&architecture.attention, &architecture.norms);
        let mut vector = |name: &str, len: usize, is_there: bool| match is_there {
            true => tensors.vector(&format!("blk.{i}.{name}.weight"), len).map(Some),
            false => Ok(None),
        };
        let (q_len, k_len) = match rules.qk_norm {
            QkNorm::Rows => (n_q, n_kv),
            QkNorm::Heads | QkNorm::None => (h.n_embd_head, h.n_embd_head),
        };
        let has_qk_norm = rules.qk_norm != QkNorm::None;
        let norm = vector("attn_norm", n_embd, norms.attention)?;
        let q_norm = vector("attn_q_norm", q_len, has_qk_norm)?;
        let k_norm = vector("attn_k_norm", k_len, has_qk_norm)?;
        let post_norm = vector("post_attention_norm", n_embd, norms.after_attention)?;
        let sinks = vector("attn_sinks", h.n_head, rules.has_sinks)?;
        let fused = format!("blk.{i}.attn_qkv");
        let qkv = match tensors.has(&format!("{fused}.weight")) {
            true => Qkv::Fused(Box::new(Self::fused(tensors, h, i, &fused)?)),
            false => {
                let mut part = |name: &str, n: usize| {
                    tensors.linear(&format!("blk.{i}.attn_{name}"), n_embd, n, Presence::Optional)
                };
                Qkv::Apart(Box::new([part("q", n_q)?, part("k", n_kv)?, part("v", n_kv)?]))
            }
        };
        Ok(Attention {
            norm,
            q_norm,
            k_norm,
            post_norm,
            sinks,
            output: tensors.linear(&format!("blk.{i}.attn_output"), n_q, n_embd, rules.output_bias)?,
            qkv,
            window: h.windows[i],
            is_turned: h.turned[i],
        })
    }

    /// One matrix for all; its bias may lie in three tensors.
    fn fused(tensors: &mut Tensors<'_>, h: &Hyperparameters, i: usize, name: &str) -> Result<Linear, Error> {
        let (n_q, n_kv) = (h.n_embd_q(), h.n_embd_kv());
        let mut linear = tensors.linear(name, h.n_embd, n_q + 2 * n_kv, Presence::Optional)?;
        if linear.bias.is_none() {
            let mut part =
                |name: &str, n: usize| tensors.present(&format!("blk.{i}.attn_{name}.bias"), &[n], Presence::Optional);
            let parts = [part("q", n_q)?, part("k", n_kv)?, part("v", n_kv)?];
            linear.bias = match parts {
                [Some(q), Some(k), Some(v)] => Some([q, k, v].concat()),
                _ => None,
            };
        }
        Ok(linear)
    }

    /// Its matrices, in the order of the forward pass.
    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        let (apart, fused) = match &self.qkv {
            Qkv::Apart(parts) => (&parts[..], None),
            Qkv::Fused(all) => (&[][..], Some(&**all)),
        };
        apart.iter().chain(fused).chain([&self.output])
    }

    /// What each of `rows` finds in the tokens before it. `x` has a row of the network's width for
    /// each.
    pub(super) fn run(
        &self,
        h: &Hyperparameters,
        rope: &Rope,
        rows: &Rows<'_>,
        caches: &mut [KeysAndValues],
        x: &[f32],
        watch: &mut Watch<'_>,
    ) -> Vec<f32> {
        let normed = ops::normed(x, self.norm.as_deref(), h.rms_eps);
        let [mut q, mut k, v] = self.queries_keys_values(h, &normed, watch);
        ops::norm_in_place(&mut q, self.q_norm.as_deref(), h.rms_eps);
        ops::norm_in_place(&mut k, self.k_norm.as_deref(), h.rms_eps);
        let (n_q, n_kv) = (h.n_embd_q(), h.n_embd_kv());
        if self.is_turned {
            for ((q, k), turns) in q.chunks_exact_mut(n_q).zip(k.chunks_exact_mut(n_kv)).zip(rows.turns) {
                rope.rotate(q, turns);
                rope.rotate(k, turns);
            }
        }
        if let Some(temperature) = &h.scales.temperature {
            for (q, place) in q.chunks_exact_mut(n_q).zip(rows.places) {
                let factor = temperature.at(place.position);
                q.iter_mut().for_each(|v| *v *= factor);
            }
        }
        for ((k, v), place) in k.chunks_exact(n_kv).zip(v.chunks_exact(n_kv)).zip(rows.places) {
            caches[place.sequence].push(k, v);
        }
        let found = self.look(h, rows.places, caches, &q);
        let [output] = project([&self.output], &found, watch);
        ops::normed_or_same(output, self.post_norm.as_deref(), h.rms_eps)
    }

    fn queries_keys_values(&self, h: &Hyperparameters, x: &[f32], watch: &mut Watch<'_>) -> [Vec<f32>; 3] {
        match &self.qkv {
            Qkv::Apart(parts) => project([&parts[0], &parts[1], &parts[2]], x, watch),
            Qkv::Fused(all) => {
                let [rows] = project([&**all], x, watch);
                let (n_q, n_kv) = (h.n_embd_q(), h.n_embd_kv());
                let mut parts = [Vec::new(), Vec::new(), Vec::new()];
                for row in rows.chunks_exact(n_q + 2 * n_kv) {
                    let (q, rest) = row.split_at(n_q);
                    let (k, v) = rest.split_at(n_kv);
                    parts.iter_mut().zip([q, k, v]).for_each(|(part, row)| part.extend_from_slice(row));
                }
                parts
            }
        }
    }

    /// All heads of all rows.
    fn look(&self, h: &Hyperparameters, places: &[Place], caches: &[KeysAndValues], q: &[f32]) -> Vec<f32> {
        let head_size = h.n_embd_head;
        let mut found = vec![0.0; q.len()];
        let one_head = |i: usize, query: &[f32], out: &mut [f32]| {
            let (place, head) = (places[i / h.n_head], i % h.n_head);
            let seen = Seen {
                cache: &caches[place.sequence],
                width: h.n_embd_kv(),
                offset: head / (h.n_head / h.n_head_kv) * head_size,
                first: self.window.map_or(0, |window| (place.position + 1).saturating_sub(window)),
                end: place.position + 1,
                sink: self.sinks.as_ref().map(|sinks| sinks[head]),
            };
            seen.look(h, query, out);
        };
        // A token's heads are little work while the context is short.
        let longest = places.iter().map(|place| place.position + 1).max().unwrap_or(1);
        let heads_a_task = (TASK / (longest * head_size * 2)).max(1);
        let tasks = q.chunks(heads_a_task * head_size).zip(found.chunks_mut(heads_a_task * head_size)).enumerate();
        pool::for_each(tasks.collect(), |(task, (queries, outs))| {
            let heads = queries.chunks_exact(head_size).zip(outs.chunks_exact_mut(head_size)).enumerate();
            heads.for_each(|(i, (query, out))| one_head(task * heads_a_task + i, query, out));
        });
        found
    }
}

/// What one head of one token sees.
struct Seen<'a> {
    cache: &'a KeysAndValues,
    /// The length of the cache's rows.
    width: usize,
    /// Where this head's part of them begins.
    offset: usize,
    first: usize,
    end: usize,
    sink: Option<f32>,
}

impl Seen<'_> {
    fn look(&self, h: &Hyperparameters, query: &[f32], out: &mut [f32]) {
        let row = |i: usize| i * self.width + self.offset..i * self.width + self.offset + query.len();
        let score = |i: usize| {
            let score = dot(query, &self.cache.keys[row(i)]) * h.scales.attention;
            h.scales.attention_cap.map_or(score, |cap| ops::capped(score, cap))
        };
        let mut scores: Vec<f32> = (self.first..self.end).map(score).collect();
        ops::softmax(&mut scores, self.sink);
        for (i, score) in (self.first..self.end).zip(scores) {
            for (out, value) in out.iter_mut().zip(&self.cache.values[row(i)]) {
                *out += score * value;
            }
        }
    }
}

impl Temperature {
    /// What queries at a position are multiplied with (`llm_graph_input_attn_temp`).
    fn at(&self, position: usize) -> f32 {
        ((position / self.n_floor) as f64 + 1.0).ln() as f32 * self.scale + 1.0
    }
}
