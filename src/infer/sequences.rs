//! Several conversations with one model, whose tokens go through the network together.

use std::collections::TryReserveError;

use super::Error;
use super::cache::{KeysAndValues, Place};
use super::engine::{self, Engine, Fed, Host};
use super::linear::Watch;
use super::transformer::Transformer;
use crate::gguf;

/// Tokens that go through the network together.
const BATCH: usize = 128;

/// Rows of logits that are computed together: a row of a large vocabulary takes half a megabyte.
const LOGIT_ROWS: usize = 16;

/// Keys and values of the tokens that a model was fed, for each of several sequences. They know
/// nothing of each other: what one gets does not depend on which others are fed beside it.
pub struct Sequences<'m> {
    model: &'m Transformer,
    n_ctx: usize,
    room: usize,
    /// Those of each sequence.
    tokens: Vec<Vec<u32>>,
    /// For each layer those of each sequence.
    caches: Vec<Vec<KeysAndValues>>,
}

/// A row of a step: which of what is fed, and which of its tokens.
#[derive(Clone, Copy)]
struct Source {
    fed: usize,
    index: usize,
}

impl<'m> Sequences<'m> {
    /// Room for `n` sequences of at most `room` tokens each, which take at most `memory` bytes;
    /// weights are not counted, they are pages of the system's cache. Each is a part of a context of
    /// `n_ctx` tokens: where positions turn in another way in longer contexts, this decides.
    ///
    /// # Errors
    /// [`Error::Memory`]; [`Error::Setting`] for no tokens; [`Error::Container`] if the system gives
    /// less memory than was allowed.
    pub fn new(model: &'m Transformer, n: usize, n_ctx: usize, room: usize, memory: u64) -> Result<Self, Error> {
        if room == 0 {
            let found = room.to_string();
            return Err(Error::Setting { what: "the context", expected: "at least one token", found });
        }
        let needed = bytes_needed(model, n, room);
        if needed > memory {
            return Err(Error::Memory { path: model.path().to_owned(), n_ctx: room, needed, allowed: memory });
        }
        let h = model.hyperparameters();
        let len = room.saturating_mul(h.n_embd_kv());
        let fault = |e: TryReserveError| {
            let (path, action) = (model.path().to_owned(), "take the memory of its context");
            gguf::Error::Io { path, action, source: e.into() }
        };
        let layer = || (0..n).map(|_| KeysAndValues::with_capacity(len)).collect::<Result<Vec<_>, _>>();
        let caches = (0..h.n_layer).map(|_| layer()).collect::<Result<_, _>>().map_err(fault)?;
        Ok(Sequences { model, n_ctx, room, tokens: vec![Vec::new(); n], caches })
    }

    /// The largest context, of at most `most` tokens, that one sequence has room for in `memory`
    /// bytes; 0 if there is none.
    pub(super) fn largest_context(model: &Transformer, most: usize, memory: u64) -> usize {
        let alone = bytes_needed(model, 1, 0);
        let n_ctx = memory.saturating_sub(alone) / (bytes_needed(model, 1, 1) - alone);
        most.min(usize::try_from(n_ctx).unwrap_or(usize::MAX))
    }

    /// Bytes that they take at most, of those that [`Sequences::new`] was allowed.
    pub fn n_bytes(&self) -> u64 {
        bytes_needed(self.model, self.tokens.len(), self.room)
    }

    /// The model.
    pub fn model(&self) -> &'m Transformer {
        self.model
    }

    /// Feeds tokens as [`Sequences::feed`] does, and shows `watch` what goes into each matrix.
    pub(super) fn feed_watched(
        &mut self,
        fed: &[Fed<'_>],
        logits: &mut dyn FnMut(usize, usize, &[f32]),
        watch: &mut Watch<'_>,
    ) -> Result<(), Error> {
        engine::check(self, fed)?;
        let (model, n_embd) = (self.model, self.model.hyperparameters().n_embd);
        let n_vocab = model.hyperparameters().n_vocab;
        let sources =
            fed.iter().enumerate().flat_map(|(i, f)| (0..f.tokens.len()).map(move |index| Source { fed: i, index }));
        let sources: Vec<Source> = sources.collect();
        for batch in sources.chunks(BATCH) {
            let states = model.pool.install(|| self.step(fed, batch, watch));
            let wanted: Vec<usize> = (0..batch.len()).filter(|&i| batch[i].index >= fed[batch[i].fed].first).collect();
            for rows in wanted.chunks(LOGIT_ROWS) {
                let states: Vec<f32> =
                    rows.iter().flat_map(|&row| &states[row * n_embd..][..n_embd]).copied().collect();
                let all = model.pool.install(|| model.logits(&states, watch));
                for (&row, values) in rows.iter().zip(all.chunks_exact(n_vocab)) {
                    logits(batch[row].fed, batch[row].index, values);
                }
            }
        }
        Ok(())
    }

    /// Takes a batch through all layers.
    fn step(&mut self, fed: &[Fed<'_>], batch: &[Source], watch: &mut Watch<'_>) -> Vec<f32> {
        let tokens: Vec<u32> = batch.iter().map(|s| fed[s.fed].tokens[s.index]).collect();
        let mut places = Vec::with_capacity(batch.len());
        for (source, &token) in batch.iter().zip(&tokens) {
            let sequence = fed[source.fed].sequence;
            places.push(Place { sequence, position: self.tokens[sequence].len() });
            self.tokens[sequence].push(token);
        }
        // llama_model::get_rope_factors: by the size of the context, not by the tokens in it.
        let is_long = self.n_ctx > self.model.hyperparameters().rope.n_ctx_orig;
        self.model.step(&tokens, &places, &mut self.caches, is_long, watch)
    }
}

impl Engine for Sequences<'_> {
    fn n_sequences(&self) -> usize {
        self.tokens.len()
    }

    fn room(&self) -> usize {
        self.room
    }

    fn n_vocab(&self) -> usize {
        self.model.hyperparameters().n_vocab
    }

    fn tokens(&self, sequence: usize) -> &[u32] {
        &self.tokens[sequence]
    }

    fn truncate(&mut self, sequence: usize, n: usize) -> Result<(), Error> {
        self.tokens[sequence].truncate(n);
        let len = self.tokens[sequence].len() * self.model.hyperparameters().n_embd_kv();
        self.caches.iter_mut().for_each(|caches| caches[sequence].truncate(len));
        Ok(())
    }

    fn share(&mut self, from: usize, to: usize, n: usize) -> Result<(), Error> {
        if from == to {
            return self.truncate(to, n);
        }
        let tokens = self.tokens[from][..n].to_vec();
        self.tokens[to] = tokens;
        let len = n * self.model.hyperparameters().n_embd_kv();
        for caches in &mut self.caches {
            if let Ok([from, to]) = caches.get_disjoint_mut([from, to]) {
                to.copy(from, len);
            }
        }
        Ok(())
    }

    fn feed(&mut self, fed: &[Fed<'_>], logits: &mut dyn FnMut(usize, usize, &[f32])) -> Result<(), Error> {
        self.feed_watched(fed, logits, &mut None)
    }
}

impl Host for Transformer {
    fn name(&self) -> String {
        "built-in".to_owned()
    }

    fn n_vocab(&self) -> usize {
        self.hyperparameters().n_vocab
    }

    fn n_ctx_train(&self) -> usize {
        self.hyperparameters().n_ctx_train
    }

    fn bytes_needed(&self, n: usize, room: usize) -> u64 {
        bytes_needed(self, n, room)
    }

    fn sequences(&self, n: usize, n_ctx: usize, room: usize, memory: u64) -> Result<Box<dyn Engine + '_>, Error> {
        Ok(Box::new(Sequences::new(self, n, n_ctx, room, memory)?))
    }
}

/// Bytes of keys and values of `n` full contexts, and of the activations of a batch.
fn bytes_needed(model: &Transformer, n: usize, n_ctx: usize) -> u64 {
    let h = model.hyperparameters();
    let width = |n: usize| n as u64;
    let (n, n_ctx) = (width(n), width(n_ctx));
    let cache = width(h.n_layer).saturating_mul(n_ctx).saturating_mul(2 * width(h.n_embd_kv())).saturating_mul(n);
    // A token goes through its experts one beside the other, and their inputs are put together.
    let experts = width(h.n_expert_used) * (3 * width(h.n_ff) + 3 * width(h.n_embd)) + width(h.n_expert);
    let dense = if h.n_expert == 0 { 3 * width(h.n_ff) } else { 3 * width(h.n_ff_shared) };
    let attention = 2 * width(h.n_embd_q()) + 2 * width(h.n_embd_kv());
    // Twice, as products are turned around after the matrices; scores are a row a head and thread.
    let adapters = model.adapters().map(|a| width(a.b.row_len()) + width(a.b.n_rows())).max().unwrap_or(0);
    let activations = 2 * width(BATCH) * (4 * width(h.n_embd) + attention.max(dense + experts) + adapters);
    // Not by the threads that there are, so that answers do not depend on them.
    let scores = n_ctx.saturating_mul(width(model.pool.n_threads().next_multiple_of(64)));
    let logits = 2 * width(LOGIT_ROWS) * width(h.n_vocab);
    cache.saturating_add(activations).saturating_add(scores).saturating_add(logits).saturating_mul(4)
}
