//! A conversation with a model: its keys and values so far.

use std::collections::TryReserveError;

use super::Error;
use super::matrix::{dot, multiply};
use super::ops;
use super::rope::Rope;
use super::transformer::{Layer, Linear, Transformer};
use crate::gguf;
use crate::gguf::names::OUTPUT;
use crate::pool;

/// Tokens that go through the network together.
const BATCH: usize = 128;

/// Rows of logits that are computed together: a row of a large vocabulary takes half a megabyte.
const LOGIT_ROWS: usize = 16;

/// Multiplications of attention that are worth more threads.
const ATTENTION_TASK: usize = 1 << 17;

/// Keys and values of the tokens that a model was fed, in f32 as llama.cpp's with `--cache-type-k
/// f32`.
pub struct Session<'m> {
    model: &'m Transformer,
    n_ctx: usize,
    rope: &'m Rope,
    tokens: Vec<u32>,
    /// A layer's keys and values, a row a token.
    cache: Vec<KeysAndValues>,
}

/// Someone who sees what goes into matrices: the name of the matrix, and rows of its inputs, a row
/// a token.
pub(super) type Watch<'a> = Option<&'a mut (dyn FnMut(&str, &[f32]) + Send)>;

struct KeysAndValues {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KeysAndValues {
    /// Room for all that will come: growing would take up to three times as much.
    fn with_capacity(len: usize) -> Result<Self, TryReserveError> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        keys.try_reserve_exact(len)?;
        values.try_reserve_exact(len)?;
        Ok(KeysAndValues { keys, values })
    }
}

impl<'m> Session<'m> {
    /// A session for at most `n_ctx` tokens that takes at most `memory` bytes; weights are not
    /// counted, they are pages of the system's cache.
    ///
    /// # Errors
    /// [`Error::Memory`]; [`Error::Setting`] for a context of no tokens; [`Error::Container`] if
    /// the system gives less memory than was allowed.
    pub fn new(model: &'m Transformer, n_ctx: usize, memory: u64) -> Result<Self, Error> {
        if n_ctx == 0 {
            let found = n_ctx.to_string();
            return Err(Error::Setting { what: "the context", expected: "at least one token", found });
        }
        let needed = bytes_needed(model, n_ctx);
        if needed > memory {
            return Err(Error::Memory { path: model.path().to_owned(), n_ctx, needed, allowed: memory });
        }
        let parameters = model.hyperparameters();
        // llama_model::get_rope_factors: by the size of the context, not by the tokens in it.
        let rope = &model.ropes[usize::from(n_ctx > parameters.rope.n_ctx_orig)];
        let len = n_ctx.saturating_mul(parameters.n_embd_kv());
        let fault = |e: TryReserveError| {
            let (path, action) = (model.path().to_owned(), "take the memory of its context");
            gguf::Error::Io { path, action, source: e.into() }
        };
        let layers = (0..parameters.n_layer).map(|_| KeysAndValues::with_capacity(len));
        let cache = layers.collect::<Result<_, _>>().map_err(fault)?;
        Ok(Session { model, n_ctx, rope, tokens: Vec::new(), cache })
    }

    /// The largest context, of at most `most` tokens, that a session has room for in `memory`
    /// bytes; 0 if there is none.
    pub fn largest_context(model: &Transformer, most: usize, memory: u64) -> usize {
        let n_ctx = memory.saturating_sub(bytes_needed(model, 0)) / (bytes_needed(model, 1) - bytes_needed(model, 0));
        most.min(usize::try_from(n_ctx).unwrap_or(usize::MAX))
    }

    /// Bytes that it takes at most, of those that [`Session::new`] was allowed.
    pub fn n_bytes(&self) -> u64 {
        bytes_needed(self.model, self.n_ctx)
    }

    /// The model.
    pub fn model(&self) -> &'m Transformer {
        self.model
    }

    /// Tokens that fit in all.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Forgets all tokens but the first `n`.
    pub fn truncate(&mut self, n: usize) {
        self.tokens.truncate(n);
        let (n, width) = (self.tokens.len(), self.model.hyperparameters().n_embd_kv());
        for layer in &mut self.cache {
            layer.keys.truncate(n * width);
            layer.values.truncate(n * width);
        }
    }

    /// Feeds tokens, and calls `logits` for each of them from position `first` on (counted from the
    /// first of `tokens`) with the `n_vocab` logits of what comes after it, in order.
    ///
    /// # Errors
    /// [`Error::Context`], [`Error::Token`]; nothing is fed then.
    pub fn feed(&mut self, tokens: &[u32], first: usize, logits: &mut dyn FnMut(usize, &[f32])) -> Result<(), Error> {
        self.feed_watched(tokens, first, logits, &mut None)
    }

    /// Feeds tokens as [`Session::feed`] does, and shows `watch` what goes into each matrix.
    pub(super) fn feed_watched(
        &mut self,
        tokens: &[u32],
        first: usize,
        logits: &mut dyn FnMut(usize, &[f32]),
        watch: &mut Watch<'_>,
    ) -> Result<(), Error> {
        let (n_tokens, n_ctx) = (self.tokens.len() + tokens.len(), self.n_ctx);
        if n_tokens > n_ctx {
            return Err(Error::Context { n_tokens, n_ctx });
        }
        let n_vocab = self.model.hyperparameters().n_vocab;
        if let Some(&id) = tokens.iter().find(|&&id| id as usize >= n_vocab) {
            return Err(Error::Token { id, n_vocab });
        }
        let pool = &self.model.pool;
        for (i, batch) in tokens.chunks(BATCH).enumerate() {
            let start = i * BATCH;
            let states = pool.install(|| self.step(batch, watch));
            let wanted = first.saturating_sub(start).min(batch.len())..batch.len();
            for position in wanted.clone().step_by(LOGIT_ROWS) {
                let rows = position..wanted.end.min(position + LOGIT_ROWS);
                let all = pool.install(|| self.logits(&states, rows.clone(), watch));
                rows.zip(all.chunks_exact(n_vocab)).for_each(|(row, values)| logits(start + row, values));
            }
        }
        Ok(())
    }

    /// Feeds tokens and gives the `n_vocab` logits after the last of them.
    ///
    /// # Errors
    /// As [`Session::feed`], and [`Error::Setting`] for no tokens.
    pub fn feed_and_predict(&mut self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        if tokens.is_empty() {
            let found = "empty".to_owned();
            return Err(Error::Setting { what: "the prompt", expected: "at least one token", found });
        }
        let mut last = Vec::new();
        self.feed(tokens, tokens.len() - 1, &mut |_, logits| last.extend_from_slice(logits))?;
        Ok(last)
    }

    /// Takes tokens through all layers: `n_tokens × n_embd`.
    fn step(&mut self, tokens: &[u32], watch: &mut Watch<'_>) -> Vec<f32> {
        let h = self.model.hyperparameters();
        let start = self.tokens.len();
        let mut x = vec![0.0; tokens.len() * h.n_embd];
        for (&token, row) in tokens.iter().zip(x.chunks_exact_mut(h.n_embd)) {
            self.model.embedding.look_up(token as usize, row);
        }
        let turns: Vec<_> = (0..tokens.len()).map(|i| self.rope.at(start + i)).collect();
        for (layer, cache) in self.model.layers.iter().zip(&mut self.cache) {
            attend(self.model, layer, cache, self.rope, &turns, &mut x, watch);
            feed_forward(self.model, layer, &mut x, tokens.len(), watch);
        }
        self.tokens.extend_from_slice(tokens);
        x
    }

    /// The logits after some of the tokens of a step.
    fn logits(&self, states: &[f32], rows: std::ops::Range<usize>, watch: &mut Watch<'_>) -> Vec<f32> {
        let n_embd = self.model.hyperparameters().n_embd;
        let normed = norm_rows(self.model, &states[rows.start * n_embd..rows.end * n_embd], &self.model.output_norm);
        if let (Some(watch), Some(output)) = (watch, &self.model.output) {
            watch(OUTPUT, &output.turned(&normed));
        }
        let mut logits = multiply(&[self.model.head()], &normed, rows.len()).pop().unwrap_or_default();
        if let Some(bias) = &self.model.output_bias {
            ops::add_to_rows(&mut logits, bias);
        }
        logits
    }
}

/// Bytes of keys and values of a full context, and of the activations of a batch.
fn bytes_needed(model: &Transformer, n_ctx: usize) -> u64 {
    let h = model.hyperparameters();
    let (n_ctx, width) = (n_ctx as u64, |n: usize| n as u64);
    let cache = width(h.n_layer).saturating_mul(n_ctx).saturating_mul(2 * width(h.n_embd_kv()));
    // Twice, as products are turned around after the matrices; scores are a row a head and thread.
    let activations = 2 * width(BATCH) * (4 * width(h.n_embd) + 2 * width(h.n_embd_q()) + 3 * width(h.n_ff));
    let scores = n_ctx.saturating_mul(width(model.pool.n_threads()));
    let logits = 2 * width(LOGIT_ROWS) * width(h.n_vocab);
    cache.saturating_add(activations).saturating_add(scores).saturating_add(logits).saturating_mul(4)
}

fn norm_rows(model: &Transformer, rows: &[f32], weights: &[f32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows.len());
    for row in rows.chunks_exact(weights.len()) {
        ops::rms_norm(row, weights, model.hyperparameters().rms_eps, &mut out);
    }
    out
}

/// Products with matrices of the same input, biases added.
fn project<const N: usize>(linears: [&Linear; N], x: &[f32], n_tokens: usize, watch: &mut Watch<'_>) -> [Vec<f32>; N] {
    if let Some(watch) = watch {
        linears.iter().for_each(|linear| watch(&linear.name, &linear.weight.turned(x)));
    }
    let mut products = multiply(&linears.map(|l| &l.weight), x, n_tokens);
    for (product, linear) in products.iter_mut().zip(linears) {
        if let Some(bias) = &linear.bias {
            ops::add_to_rows(product, bias);
        }
    }
    products.try_into().unwrap_or_else(|_| unreachable!("a product for each matrix"))
}

/// Adds to `x` what each token finds in those before it.
fn attend(
    model: &Transformer,
    layer: &Layer,
    cache: &mut KeysAndValues,
    rope: &Rope,
    turns: &[Vec<(f32, f32)>],
    x: &mut [f32],
    watch: &mut Watch<'_>,
) {
    let h = model.hyperparameters();
    let (n_tokens, width) = (turns.len(), h.n_embd_kv());
    let normed = norm_rows(model, x, &layer.attn_norm);
    let [mut q, mut k, v] = project([&layer.q, &layer.k, &layer.v], &normed, n_tokens, watch);
    for ((q, k), turns) in q.chunks_exact_mut(h.n_embd_q()).zip(k.chunks_exact_mut(width)).zip(turns) {
        rope.rotate(q, turns);
        rope.rotate(k, turns);
    }
    let start = cache.keys.len() / width;
    cache.keys.extend_from_slice(&k);
    cache.values.extend_from_slice(&v);
    let head_size = h.n_embd_head;
    let mut found = vec![0.0; q.len()];
    let one_head = |(i, (query, out)): (usize, (&[f32], &mut [f32]))| {
        let (token, head) = (i / h.n_head, i % h.n_head);
        let offset = head / (h.n_head / h.n_head_kv) * head_size;
        attend_head(cache, width, offset, start + token + 1, query, out);
    };
    // A token's heads are little work while the context is short.
    let heads_a_task = (ATTENTION_TASK / ((start + n_tokens) * head_size * 2)).max(1);
    let tasks = q.chunks(heads_a_task * head_size).zip(found.chunks_mut(heads_a_task * head_size)).enumerate();
    pool::for_each(tasks.collect(), |(task, (queries, outs))| {
        let heads = queries.chunks_exact(head_size).zip(outs.chunks_exact_mut(head_size)).enumerate();
        heads.for_each(|(i, (query, out))| one_head((task * heads_a_task + i, (query, out))));
    });
    let [o] = project([&layer.attn_output], &found, n_tokens, watch);
    ops::add(x, &o);
}

/// One head of one token: attention over the first `n` tokens of the cache, whose rows are `width`
/// long with this head's part at `offset`.
fn attend_head(cache: &KeysAndValues, width: usize, offset: usize, n: usize, query: &[f32], out: &mut [f32]) {
    let scale = 1.0 / (query.len() as f32).sqrt();
    let row = |i: usize| i * width + offset..i * width + offset + query.len();
    let mut scores: Vec<f32> = (0..n).map(|i| dot(query, &cache.keys[row(i)]) * scale).collect();
    ops::softmax(&mut scores);
    for (i, score) in scores.iter().enumerate() {
        for (out, value) in out.iter_mut().zip(&cache.values[row(i)]) {
            *out += score * value;
        }
    }
}

/// Adds to `x` what the feed-forward network makes of each token.
fn feed_forward(model: &Transformer, layer: &Layer, x: &mut [f32], n_tokens: usize, watch: &mut Watch<'_>) {
    let normed = norm_rows(model, x, &layer.ffn_norm);
    let [mut gate, up] = project([&layer.gate, &layer.up], &normed, n_tokens, watch);
    ops::swiglu(&mut gate, &up);
    let [down] = project([&layer.down], &gate, n_tokens, watch);
    ops::add(x, &down);
}
