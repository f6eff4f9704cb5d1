//! The network: its weights, and one step through it (src/models/llama.cpp and qwen2.cpp of
//! llama.cpp).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Error;
use super::hyperparameters::Hyperparameters;
use super::matrix::Matrix;
use super::rope::Rope;
use crate::gguf::names::{OUTPUT, OUTPUT_BIAS, TOKEN_EMBEDDINGS};
use crate::gguf::{Mapping, Model, TensorId};
use crate::pool::Pool;
use crate::quants;
use crate::vector::{FoldedTensor, Folding};

/// A model that can be run: weights mapped from its files, norms and biases in memory.
#[derive(Debug)]
pub struct Transformer {
    pub(super) path: PathBuf,
    pub(super) hyperparameters: Hyperparameters,
    pub(super) embedding: Matrix,
    pub(super) layers: Vec<Layer>,
    pub(super) output_norm: Vec<f32>,
    /// The output matrix; none if the embedding stands for it.
    pub(super) output: Option<Matrix>,
    pub(super) output_bias: Option<Vec<f32>>,
    /// The rotation for contexts within the original one, and for longer ones. They differ for
    /// `longrope` alone.
    pub(super) ropes: [Rope; 2],
    pub(super) pool: Pool,
}

/// One layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attn_norm: Vec<f32>,
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) attn_output: Linear,
    pub(super) ffn_norm: Vec<f32>,
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// A matrix with a bias that is added to its product.
#[derive(Debug)]
pub(super) struct Linear {
    /// The name of the weight's tensor.
    pub(super) name: String,
    pub(super) weight: Matrix,
    pub(super) bias: Option<Vec<f32>>,
}

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
        model.require_little_endian()?;
        let hyperparameters = Hyperparameters::read(model)?;
        let folding = Folding::read(model)?.map(Arc::new);
        let mut tensors = Tensors { model, mapping: model.map()?, is_used: vec![false; model.n_tensors()], folding };
        let h = &hyperparameters;
        let (n_embd, n_vocab) = (h.n_embd, h.n_vocab);
        let embedding = tensors.matrix(TOKEN_EMBEDDINGS, n_embd, n_vocab)?;
        let output_norm = tensors.vector("output_norm.weight", n_embd)?;
        let output = match model.find(OUTPUT) {
            Some(_) => Some(tensors.matrix(OUTPUT, n_embd, n_vocab)?),
            None => None,
        };
        let output_bias = match h.architecture.as_str() {
            "qwen2" => tensors.optional_vector(OUTPUT_BIAS, n_vocab)?,
            _ => None,
        };
        let n_pairs = h.n_embd_head / 2;
        let mut ropes = Vec::new();
        for longrope in ["rope_factors_short.weight", "rope_factors_long.weight"] {
            let name = if h.rope.is_longrope { longrope } else { "rope_freqs.weight" };
            let factors = match h.architecture.as_str() {
                "llama" => tensors.optional_vector(name, n_pairs)?,
                _ => None,
            };
            ropes.push(Rope::new(&h.rope, h.n_embd_head, factors.unwrap_or_default()));
        }
        let layers = (0..h.n_layer).map(|i| Layer::load(&mut tensors, h, i)).collect::<Result<_, _>>()?;
        tensors.check_all_used(&h.architecture)?;
        let [short, long] = <[Rope; 2]>::try_from(ropes).unwrap_or_else(|_| unreachable!("two names"));
        Ok(Transformer {
            path: model.path().to_owned(),
            embedding,
            layers,
            output_norm,
            output,
            output_bias,
            ropes: [short, long],
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

    /// The matrix that gives the logits.
    pub(super) fn head(&self) -> &Matrix {
        self.output.as_ref().unwrap_or(&self.embedding)
    }
}

impl Layer {
    /// Its matrices, in the order of the forward pass.
    pub(super) fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.attn_output, &self.gate, &self.up, &self.down]
    }

    fn load(tensors: &mut Tensors<'_>, h: &Hyperparameters, i: usize) -> Result<Self, Error> {
        let (n_embd, n_q, n_kv, n_ff) = (h.n_embd, h.n_embd_q(), h.n_embd_kv(), h.n_ff);
        // What else may have a bias than queries, keys and values.
        let is_biased = h.architecture == "llama";
        Ok(Layer {
            attn_norm: tensors.vector(&format!("blk.{i}.attn_norm.weight"), n_embd)?,
            q: tensors.linear(&format!("blk.{i}.attn_q"), n_embd, n_q, true)?,
            k: tensors.linear(&format!("blk.{i}.attn_k"), n_embd, n_kv, true)?,
            v: tensors.linear(&format!("blk.{i}.attn_v"), n_embd, n_kv, true)?,
            attn_output: tensors.linear(&format!("blk.{i}.attn_output"), n_q, n_embd, is_biased)?,
            ffn_norm: tensors.vector(&format!("blk.{i}.ffn_norm.weight"), n_embd)?,
            gate: tensors.linear(&format!("blk.{i}.ffn_gate"), n_embd, n_ff, is_biased)?,
            up: tensors.linear(&format!("blk.{i}.ffn_up"), n_embd, n_ff, is_biased)?,
            down: tensors.linear(&format!("blk.{i}.ffn_down"), n_ff, n_embd, is_biased)?,
        })
    }
}

/// Taking tensors by name, each in the shape that is expected.
struct Tensors<'a> {
    model: &'a Model,
    mapping: Mapping,
    is_used: Vec<bool>,
    folding: Option<Arc<Folding>>,
}

impl Tensors<'_> {
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<TensorId, Error> {
        let expected = || shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" × ");
        let fault = |found: String| Error::Tensor {
            path: self.model.path().to_owned(),
            tensor: name.to_owned(),
            expected: expected(),
            found,
        };
        let Some(id) = self.model.find(name) else { return Err(fault("no such tensor".to_owned())) };
        let info = self.model.tensor(id);
        let has_shape = (0..4).all(|d| {
            let expected = shape.get(d).map_or(1, |&n| n as u64);
            info.ne().get(d).copied().unwrap_or(1) == expected
        });
        if !has_shape {
            let found: Vec<String> = info.ne().iter().map(u64::to_string).collect();
            return Err(fault(found.join(" × ")));
        }
        if !quants::is_supported(info.ty()) {
            let path = self.model.path_of(id).to_owned();
            return Err(Error::Type { path, tensor: name.to_owned(), ty: info.ty() });
        }
        self.is_used[id] = true;
        Ok(id)
    }

    /// A matrix of `n_rows` rows.
    fn matrix(&mut self, name: &str, row_len: usize, n_rows: usize) -> Result<Matrix, Error> {
        let id = self.take(name, &[row_len, n_rows])?;
        let ty = self.model.tensor(id).ty();
        let blocks = self.model.mapped(&self.mapping, id)?;
        let matrix = Matrix::new(ty, row_len, n_rows, blocks).ok_or_else(|| Error::Type {
            path: self.model.path_of(id).to_owned(),
            tensor: name.to_owned(),
            ty,
        })?;
        let matrix = match self.scale_of(name, id)? {
            Some(scale) => matrix.scaled(scale),
            None => matrix,
        };
        let is_folded = FoldedTensor::new(self.model, self.folding.as_deref(), id).fold()?.is_some();
        Ok(match self.folding.as_ref().filter(|_| is_folded) {
            Some(folding) => matrix.folded(Arc::clone(folding), name),
            None => matrix,
        })
    }

    /// The number that lies beside a matrix, whose products it multiplies. One for its inputs may
    /// lie there, too, and has no meaning here, where activations are rounded in another way or not
    /// at all.
    fn scale_of(&mut self, name: &str, id: TensorId) -> Result<Option<f32>, Error> {
        let input_scale = name.strip_suffix(".weight").and_then(|stem| self.model.find(&format!("{stem}.input_scale")));
        if let Some(id) = input_scale.filter(|&id| self.model.is_scale(id)) {
            self.is_used[id] = true;
        }
        let Some(id) = self.model.scale_of(id) else { return Ok(None) };
        self.is_used[id] = true;
        let mut bytes = [0; 4];
        self.model.read(id, 0, &mut bytes)?;
        Ok(Some(f32::from_le_bytes(bytes)))
    }

    /// A tensor of one dimension, decoded.
    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        let id = self.take(name, &[len])?;
        let blocks = self.model.mapped(&self.mapping, id)?;
        let mut weights = vec![0.0; len];
        let ty = self.model.tensor(id).ty();
        quants::dequantize_row(ty, &blocks, &mut weights).map_err(|_| Error::Type {
            path: self.model.path_of(id).to_owned(),
            tensor: name.to_owned(),
            ty,
        })?;
        Ok(weights)
    }

    fn optional_vector(&mut self, name: &str, len: usize) -> Result<Option<Vec<f32>>, Error> {
        match self.model.find(name) {
            Some(_) => self.vector(name, len).map(Some),
            None => Ok(None),
        }
    }

    /// `NAME.weight`, and `NAME.bias` if it may be there and is.
    fn linear(&mut self, name: &str, row_len: usize, n_rows: usize, is_biased: bool) -> Result<Linear, Error> {
        let weight_name = format!("{name}.weight");
        let weight = self.matrix(&weight_name, row_len, n_rows)?;
        let bias = match is_biased {
            true => self.optional_vector(&format!("{name}.bias"), n_rows)?,
            false => None,
        };
        Ok(Linear { name: weight_name, weight, bias })
    }

    fn check_all_used(&self, architecture: &str) -> Result<(), Error> {
        let unused = self.model.tensors().zip(&self.is_used).filter(|(_, is_used)| !**is_used);
        let tensors: Vec<String> = unused.map(|(tensor, _)| tensor.name().to_owned()).collect();
        match tensors.is_empty() {
            true => Ok(()),
            false => {
                let (path, architecture) = (self.model.path().to_owned(), architecture.to_owned());
                Err(Error::Extra { path, architecture, tensors })
            }
        }
    }
}
