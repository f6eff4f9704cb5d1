//! The network: its weights, and one step through it.

use std::path::{Path, PathBuf};

use super::Error;
use super::architecture::{Architecture, Presence, RopeFactors};
use super::attention::{Attention, Rows};
use super::cache::{KeysAndValues, Place};
use super::feed_forward::FeedForward;
use super::hyperparameters::{Hyperparameters, architecture};
use super::linear::{Adapter, Linear, Stack, Watch, project};
use super::lora::{Lora, LoraFile};
use super::matrix::{Matrix, multiply};
use super::ops;
use super::rope::Rope;
use super::weights::Tensors;
use crate::gguf::Model;
use crate::gguf::names::{OUTPUT, TOKEN_EMBEDDINGS};
use crate::pool::Pool;

/// A model that can be run: weights mapped from its files, norms and biases in memory.
#[derive(Debug)]
pub struct Transformer {
    pub(super) path: PathBuf,
    pub(super) hyperparameters: Hyperparameters,
    pub(super) embedding: Linear,
    pub(super) layers: Vec<Layer>,
    pub(super) output_norm: Vec<f32>,
    /// The output matrix; none if the embedding stands for it.
    pub(super) output: Option<Linear>,
    pub(super) ropes: Ropes,
    pub(super) pool: Pool,
}

/// One layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attention: Attention,
    pub(super) feed_forward: FeedForward,
}

/// The rotations of a model.
#[derive(Debug)]
pub(super) struct Ropes {
    /// For contexts within the original one, and for longer ones. They differ where the file has
    /// factors for both.
    whole: [Rope; 2],
    /// In layers with a window.
    window: Rope,
}

/// Cosines and sines of rows, in layers that see everything and in those with a window.
struct Turns([Vec<Vec<(f32, f32)>>; 2]);

impl Transformer {
    /// Maps the weights of a model and checks that every tensor is there in its shape, and no other
    /// (`llama_model_loader::done_getting_tensors`). `threads` is what its sessions compute with,
    /// at least 1.
    ///
    /// # Errors
    /// [`Error::Architecture`], [`Error::Folded`], [`Error::Fold`], [`Error::Key`],
    /// [`Error::Tensor`], [`Error::Extra`], [`Error::Type`], [`Error::Container`],
    /// [`Error::Threads`].
    pub fn load(model: &Model, threads: usize) -> Result<Self, Error> {
        Self::load_with(model, &[], threads)
    }

    /// Maps the weights of a model, and of adapters that are added to them while it runs.
    ///
    /// # Errors
    /// As [`Transformer::load`]; [`Error::Key`] and [`Error::Tensor`] for a file that is no adapter
    /// of this model.
    pub fn load_with(model: &Model, loras: &[LoraFile<'_>], threads: usize) -> Result<Self, Error> {
        model.require_little_endian()?;
        let architecture = architecture(model)?;
        let loras = loras.iter().map(|file| Lora::open(*file, architecture.name).map_err(Error::of_adapter));
        let mut loras = loras.collect::<Result<Vec<_>, _>>()?;
        let mut tensors = Tensors::new(model, &mut loras)?;
        let transformer = Self::from_tensors(model, &mut tensors, architecture, threads)?;
        tensors.check_all_used(architecture.name)?;
        Ok(transformer)
    }

    fn from_tensors(
        model: &Model,
        tensors: &mut Tensors<'_>,
        architecture: &Architecture,
        threads: usize,
    ) -> Result<Self, Error> {
        let hyperparameters = Hyperparameters::read_as(model, architecture)?;
        let h = &hyperparameters;
        let shape = [h.n_embd, h.n_vocab];
        let weight = tensors.matrix(TOKEN_EMBEDDINGS, h.n_embd, h.n_vocab)?;
        let adapters = tensors.row_adapters(TOKEN_EMBEDDINGS, shape)?;
        let has_output = match architecture.output.matrix {
            Presence::Required => true,
            Presence::Optional => tensors.has(OUTPUT),
            Presence::Absent => false,
        };
        if !has_output && !adapters.is_empty() {
            let expected = "no adapter, as this embedding gives the logits, too".to_owned();
            let (path, tensor) = (model.path().to_owned(), TOKEN_EMBEDDINGS.to_owned());
            return Err(Error::Tensor { path, tensor, expected, found: "one".to_owned() });
        }
        let bias = match has_output {
            true => None,
            false => tensors.present("output.bias", &[h.n_vocab], architecture.output.bias)?,
        };
        let embedding = Linear { name: TOKEN_EMBEDDINGS.to_owned(), weight, bias, adapters };
        let output_norm = tensors.vector("output_norm.weight", h.n_embd)?;
        let output = match has_output {
            true => Some(tensors.linear("output", h.n_embd, h.n_vocab, architecture.output.bias)?),
            false => None,
        };
        let ropes = Ropes::load(tensors, architecture, h)?;
        let layers = (0..h.n_layer).map(|i| Layer::load(tensors, architecture, h, i)).collect::<Result<_, _>>()?;
        Ok(Transformer {
            path: model.path().to_owned(),
            embedding,
            layers,
            output_norm,
            output,
            ropes,
            pool: Pool::new(threads)?,
            hyperparameters,
        })
    }

    /// The shape of the network.
    pub fn hyperparameters(&self) -> &Hyperparameters {
        &self.hyperparameters
    }

    /// The first file of the model.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The matrices of its layers that all tokens go through.
    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.layers.iter().flat_map(|layer| layer.attention.linears().chain(layer.feed_forward.linears()))
    }

    /// The stacks of matrices of its layers.
    pub(super) fn stacks(&self) -> impl Iterator<Item = &Stack> {
        self.layers.iter().flat_map(|layer| layer.feed_forward.stacks())
    }

    /// All adapters.
    pub(super) fn adapters(&self) -> impl Iterator<Item = &Adapter> {
        let linears = self.linears().chain(&self.output).chain([&self.embedding]);
        linears
            .flat_map(|linear| &linear.adapters)
            .chain(self.stacks().flat_map(|stack| stack.adapters.iter().flatten()))
    }

    /// Takes tokens through all layers: `n_tokens × n_embd`. `caches` are a layer's, for each
    /// sequence; `is_long` says whether the context is longer than the original one.
    pub(super) fn step(
        &self,
        tokens: &[u32],
        places: &[Place],
        caches: &mut [Vec<KeysAndValues>],
        is_long: bool,
        watch: &mut Watch<'_>,
    ) -> Vec<f32> {
        let h = &self.hyperparameters;
        let mut x = self.embed(tokens);
        let turns = self.ropes.turns(places, is_long, h.windows.iter().any(Option::is_some));
        for (layer, caches) in self.layers.iter().zip(caches) {
            let has_window = layer.attention.window.is_some();
            let rows = Rows { places, turns: &turns.0[usize::from(has_window)] };
            let rope = self.ropes.of(has_window, is_long);
            let mut found = layer.attention.run(h, rope, &rows, caches, &x, watch);
            ops::scale(&mut found, h.scales.residual);
            ops::add(&mut x, &found);
            let mut made = layer.feed_forward.run(h, &x, watch);
            ops::scale(&mut made, h.scales.residual);
            ops::add(&mut x, &made);
        }
        x
    }

    /// The embeddings of tokens (`build_inp_embd`).
    fn embed(&self, tokens: &[u32]) -> Vec<f32> {
        let h = &self.hyperparameters;
        let mut x = vec![0.0; tokens.len() * h.n_embd];
        for (&token, row) in tokens.iter().zip(x.chunks_exact_mut(h.n_embd)) {
            self.embedding.weight.look_up(token as usize, row);
        }
        for adapter in &self.embedding.adapters {
            let rank = adapter.a.row_len();
            let mut narrow = vec![0.0; tokens.len() * rank];
            for (&token, row) in tokens.iter().zip(narrow.chunks_exact_mut(rank)) {
                adapter.a.look_up(token as usize, row);
            }
            let mut wide = multiply(&[&adapter.b], &narrow).pop().unwrap_or_default();
            ops::scale(&mut wide, adapter.scale);
            ops::add(&mut x, &wide);
        }
        ops::scale(&mut x, h.scales.embedding);
        x
    }

    /// The logits after tokens of a step: `n_tokens × n_vocab`.
    pub(super) fn logits(&self, states: &[f32], watch: &mut Watch<'_>) -> Vec<f32> {
        let h = &self.hyperparameters;
        let normed = ops::normed(states, Some(&self.output_norm), h.rms_eps);
        let mut logits = match &self.output {
            Some(output) => {
                let [logits] = project([output], &normed, watch);
                logits
            }
            // A tied embedding is no entry of an importance matrix, and its adapters are for rows.
            None => multiply(&[self.head()], &normed).pop().unwrap_or_default(),
        };
        if let (None, Some(bias)) = (&self.output, &self.embedding.bias) {
            ops::add_to_rows(&mut logits, bias);
        }
        ops::scale(&mut logits, h.scales.logit);
        if let Some(cap) = h.scales.logit_cap {
            logits.iter_mut().for_each(|logit| *logit = ops::capped(*logit, cap));
        }
        logits
    }

    /// The matrix that gives the logits.
    fn head(&self) -> &Matrix {
        &self.output.as_ref().unwrap_or(&self.embedding).weight
    }
}

impl Layer {
    fn load(
        tensors: &mut Tensors<'_>,
        architecture: &Architecture,
        h: &Hyperparameters,
        i: usize,
    ) -> Result<Self, Error> {
        Ok(Layer {
            attention: Attention::load(tensors, architecture, h, i)?,
            feed_forward: FeedForward::load(tensors, architecture, h, i)?,
        })
    }
}

impl Ropes {
    /// Reads factors of frequencies where the architecture has them (`get_rope_factors`).
    fn load(tensors: &mut Tensors<'_>, architecture: &Architecture, h: &Hyperparameters) -> Result<Self, Error> {
        let n_pairs = h.rope.n_rot / 2;
        let mut rope = |by_length: &str| {
            let name = match architecture.rope.factors {
                RopeFactors::None => None,
                RopeFactors::ByScaling if !h.rope.is_longrope => Some("rope_freqs.weight"),
                RopeFactors::ByScaling | RopeFactors::ByLength => Some(by_length),
            };
            let factors = match name {
                Some(name) => tensors.present(name, &[n_pairs], Presence::Optional)?,
                None => None,
            };
            Ok::<_, Error>(Rope::new(&h.rope, h.n_embd_head, factors.unwrap_or_default()))
        };
        Ok(Ropes {
            whole: [rope("rope_factors_short.weight")?, rope("rope_factors_long.weight")?],
            window: Rope::new(&h.window_rope, h.n_embd_head, Vec::new()),
        })
    }

    /// Those without factors.
    #[cfg(test)]
    pub(super) fn plain(h: &Hyperparameters) -> Self {
        let rope = |parameters| Rope::new(parameters, h.n_embd_head, Vec::new());
        Ropes { whole: [rope(&h.rope), rope(&h.rope)], window: rope(&h.window_rope) }
    }

    fn of(&self, has_window: bool, is_long: bool) -> &Rope {
        if has_window { &self.window } else { &self.whole[usize::from(is_long)] }
    }

    fn turns(&self, places: &[Place], is_long: bool, has_windows: bool) -> Turns {
        let of = |rope: &Rope| places.iter().map(|place| rope.at(place.position)).collect();
        let window = if has_windows { of(self.of(true, is_long)) } else { Vec::new() };
        Turns([of(self.of(false, is_long)), window])
    }
}
