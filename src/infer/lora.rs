//! Adapters of low rank that are added while a model runs (src/llama-adapter.cpp).

use super::Error;
use super::linear::Adapter;
use super::matrix::Matrix;
use super::shape::require;
use crate::gguf::{Mapping, Model};

/// What the names of an adapter's tensors end with: factors of `rank` outputs and of `rank` inputs.
const SUFFIXES: [&str; 2] = [".lora_a", ".lora_b"];

/// An adapter file, and how much of it is added.
#[derive(Clone, Copy, Debug)]
pub struct LoraFile<'a> {
    /// The file.
    pub model: &'a Model,
    /// What its products are multiplied with, besides its own `adapter.lora.alpha`.
    pub factor: f32,
}

/// An adapter file whose tensors are taken one by one.
pub(super) struct Lora<'a> {
    file: LoraFile<'a>,
    mapping: Mapping,
    alpha: f32,
    is_used: Vec<bool>,
}

impl<'a> Lora<'a> {
    /// Checks that a file is an adapter for an architecture.
    pub(super) fn open(file: LoraFile<'a>, architecture: &str) -> Result<Self, Error> {
        let (model, metadata) = (file.model, file.model.metadata());
        model.require_little_endian()?;
        let expected = [("general.type", "adapter"), ("adapter.type", "lora"), ("general.architecture", architecture)];
        for (key, expected) in expected {
            let found = metadata.get(key).map_or("no such key".to_owned(), |v| v.summary());
            if metadata.get_str(key).is_none_or(|value| value != expected) {
                return Err(Error::key(model.path(), key, expected, found));
            }
        }
        let alora = "adapter.alora.invocation_tokens";
        if metadata.get(alora).is_some() {
            return Err(Error::key(model.path(), alora, "an adapter that is always there", "tokens that call it"));
        }
        let key = "adapter.lora.alpha";
        let alpha = match metadata.get(key).map(|value| (value.as_f64(), value.summary())) {
            None => 0.0,
            Some((Some(alpha), _)) if (alpha as f32).is_finite() => alpha as f32,
            Some((_, found)) => return Err(Error::key(model.path(), key, "a number", found)),
        };
        if model.n_tensors() == 0 {
            let (path, tensor) = (model.path().to_owned(), SUFFIXES[0].to_owned());
            return Err(Error::Tensor {
                path,
                tensor,
                expected: "at least one pair".to_owned(),
                found: "none".to_owned(),
            });
        }
        let odd = model.tensors().find(|t| !SUFFIXES.iter().any(|suffix| t.name().ends_with(suffix)));
        if let Some(odd) = odd {
            let (path, tensor) = (model.path().to_owned(), odd.name().to_owned());
            return Err(Error::Tensor {
                path,
                tensor,
                expected: "names in .lora_a and .lora_b".to_owned(),
                found: "another".to_owned(),
            });
        }
        Ok(Lora { file, mapping: model.map()?, alpha, is_used: vec![false; model.n_tensors()] })
    }

    /// What it adds to a tensor of one matrix, or of a stack of `n`: a product for each of them.
    pub(super) fn adapters(
        &mut self,
        name: &str,
        [row_len, n_rows]: [usize; 2],
        n: Option<usize>,
    ) -> Result<Option<Vec<Adapter>>, Error> {
        let Some(rank) = self.rank(name, 1)? else { return Ok(None) };
        let a = self.factor(name, 0, [row_len, rank], n)?;
        let b = self.factor(name, 1, [rank, n_rows], n)?;
        let scale = self.scale(rank);
        Ok(Some(a.into_iter().zip(b).map(|(a, b)| Adapter { a, b, scale }).collect()))
    }

    /// What it adds to the rows of the token embedding: A has a row a token.
    pub(super) fn row_adapter(&mut self, name: &str, [row_len, n_rows]: [usize; 2]) -> Result<Option<Adapter>, Error> {
        let Some(rank) = self.rank(name, 0)? else { return Ok(None) };
        let a = self.factor(name, 0, [rank, n_rows], None)?;
        let b = self.factor(name, 1, [rank, row_len], None)?;
        let scale = self.scale(rank);
        Ok(a.into_iter().zip(b).map(|(a, b)| Adapter { a, b, scale }).next())
    }

    /// The rank of a tensor's factors, which A has in this dimension and B in the first.
    fn rank(&self, name: &str, dimension: usize) -> Result<Option<usize>, Error> {
        let model = self.file.model;
        let find = |suffix: &str| model.find(&format!("{name}{suffix}"));
        let (id, dimension) = match (find(SUFFIXES[0]), find(SUFFIXES[1])) {
            (Some(a), _) => (a, dimension),
            (None, Some(b)) => (b, 0),
            (None, None) => return Ok(None),
        };
        let rank = model.tensor(id).ne().get(dimension).copied().unwrap_or(1);
        match usize::try_from(rank).ok().filter(|&rank| rank > 0) {
            Some(rank) => Ok(Some(rank)),
            None => {
                let (path, tensor) = (model.path().to_owned(), model.tensor(id).name().to_owned());
                let (expected, found) = ("a rank of at least 1".to_owned(), rank.to_string());
                Err(Error::Tensor { path, tensor, expected, found })
            }
        }
    }

    fn scale(&self, rank: usize) -> f32 {
        let own = if self.alpha == 0.0 { 1.0 } else { self.alpha / rank as f32 };
        self.file.factor * own
    }

    fn factor(
        &mut self,
        name: &str,
        which: usize,
        [row_len, n_rows]: [usize; 2],
        n: Option<usize>,
    ) -> Result<Vec<Matrix>, Error> {
        let (model, name) = (self.file.model, format!("{name}{}", SUFFIXES[which]));
        let id = require(model, &name, &[row_len, n_rows, n.unwrap_or(1)])?;
        self.is_used[id] = true;
        let (ty, blocks) = (model.tensor(id).ty(), model.mapped(&self.mapping, id)?);
        let len = blocks.len() / n.unwrap_or(1);
        let matrices = (0..n.unwrap_or(1)).map(|i| {
            let part = blocks.part(i * len..(i + 1) * len);
            let unfit = || Error::Type { path: model.path_of(id).to_owned(), tensor: name.clone(), ty };
            Matrix::new(ty, row_len, n_rows, part).ok_or_else(unfit)
        });
        matrices.collect()
    }

    /// Refuses an adapter of tensors that the model has not.
    pub(super) fn check_all_used(&self) -> Result<(), Error> {
        let mut unused = self.file.model.tensors().zip(&self.is_used).filter(|(_, is_used)| !**is_used);
        match unused.next() {
            None => Ok(()),
            Some((tensor, _)) => Err(Error::Tensor {
                path: self.file.model.path().to_owned(),
                tensor: tensor.name().to_owned(),
                expected: "a matrix of the model that it is added to".to_owned(),
                found: "none of this name that takes adapters".to_owned(),
            }),
        }
    }
}
