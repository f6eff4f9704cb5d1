//! Taking the tensors of a model, so that none is left over.

use std::sync::Arc;

use super::Error;
use super::architecture::Presence;
use super::linear::{Adapter, Linear, Stack};
use super::lora::Lora;
use super::matrix::Matrix;
use super::shape::require;
use crate::gguf::{Mapped, Mapping, Model, TensorId};
use crate::quants;
use crate::vector::{FoldedTensor, Folding};

/// The tensors of a model, of which each has its place.
pub(super) struct Tensors<'a> {
    model: &'a Model,
    mapping: Mapping,
    is_used: Vec<bool>,
    folding: Option<Arc<Folding>>,
    loras: &'a mut [Lora<'a>],
}

impl<'a> Tensors<'a> {
    /// All of them, and the adapters that are added to them.
    pub(super) fn new(model: &'a Model, loras: &'a mut [Lora<'a>]) -> Result<Self, Error> {
        let folding = Folding::read(model)?.map(Arc::new);
        Ok(Tensors { model, mapping: model.map()?, is_used: vec![false; model.n_tensors()], folding, loras })
    }

    /// Whether there is a tensor of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.model.find(name).is_some()
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<TensorId, Error> {
        let id = require(self.model, name, shape)?;
        self.is_used[id] = true;
        Ok(id)
    }

    /// A matrix of `n_rows` rows.
    pub(super) fn matrix(&mut self, name: &str, row_len: usize, n_rows: usize) -> Result<Matrix, Error> {
        let id = self.take(name, &[row_len, n_rows])?;
        let blocks = self.model.mapped(&self.mapping, id)?;
        let scales = self.scales_of(name, id, 1)?;
        self.made(id, name, [row_len, n_rows], blocks, scales.map(|s| s[0]))
    }

    /// A matrix of blocks that lie in a tensor.
    fn made(
        &self,
        id: TensorId,
        name: &str,
        [row_len, n_rows]: [usize; 2],
        blocks: Mapped,
        scale: Option<f32>,
    ) -> Result<Matrix, Error> {
        let ty = self.model.tensor(id).ty();
        let unfit = || Error::Type { path: self.model.path_of(id).to_owned(), tensor: name.to_owned(), ty };
        let matrix = Matrix::new(ty, row_len, n_rows, blocks).ok_or_else(unfit)?;
        let matrix = match scale {
            Some(scale) => matrix.scaled(scale),
            None => matrix,
        };
        let is_folded = FoldedTensor::new(self.model, self.folding.as_deref(), id).fold()?.is_some();
        Ok(match self.folding.as_ref().filter(|_| is_folded) {
            Some(folding) => matrix.folded(Arc::clone(folding), name),
            None => matrix,
        })
    }

    /// The numbers that lie beside a tensor of `n` matrices, whose products they multiply. Those
    /// for its inputs may lie there, too, and have no meaning here, where activations are rounded
    /// in another way or not at all.
    fn scales_of(&mut self, name: &str, id: TensorId, n: usize) -> Result<Option<Vec<f32>>, Error> {
        let input_scale = name.strip_suffix(".weight").and_then(|stem| self.model.find(&format!("{stem}.input_scale")));
        if let Some(id) = input_scale.filter(|&id| self.model.is_scale(id)) {
            self.is_used[id] = true;
        }
        let Some(id) = self.model.scale_of(id) else { return Ok(None) };
        let found = self.model.tensor(id);
        if found.size() != 4 * n as u64 {
            let (path, tensor) = (self.model.path().to_owned(), found.name().to_owned());
            return Err(Error::Tensor {
                path,
                tensor,
                expected: n.to_string(),
                found: format!("{} bytes", found.size()),
            });
        }
        self.is_used[id] = true;
        let mut bytes = vec![0; 4 * n];
        self.model.read(id, 0, &mut bytes)?;
        Ok(Some(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()))
    }

    /// A tensor of norms, biases or factors, decoded.
    pub(super) fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        self.decoded(name, &[len])
    }

    fn decoded(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let id = self.take(name, shape)?;
        let blocks = self.model.mapped(&self.mapping, id)?;
        let mut weights = vec![0.0; shape.iter().product()];
        let ty = self.model.tensor(id).ty();
        quants::dequantize_row(ty, &blocks, &mut weights).map_err(|_| Error::Type {
            path: self.model.path_of(id).to_owned(),
            tensor: name.to_owned(),
            ty,
        })?;
        Ok(weights)
    }

    /// A tensor that may, must or must not be there.
    pub(super) fn present(
        &mut self,
        name: &str,
        shape: &[usize],
        presence: Presence,
    ) -> Result<Option<Vec<f32>>, Error> {
        match presence {
            Presence::Required => self.decoded(name, shape).map(Some),
            Presence::Optional if self.has(name) => self.decoded(name, shape).map(Some),
            Presence::Optional | Presence::Absent => Ok(None),
        }
    }

    /// `NAME.weight`, its adapters, and `NAME.bias`.
    pub(super) fn linear(
        &mut self,
        name: &str,
        row_len: usize,
        n_rows: usize,
        bias: Presence,
    ) -> Result<Linear, Error> {
        let weight_name = format!("{name}.weight");
        let weight = self.matrix(&weight_name, row_len, n_rows)?;
        let bias = self.present(&format!("{name}.bias"), &[n_rows], bias)?;
        let adapters = self.adapters(&weight_name, [row_len, n_rows])?;
        Ok(Linear { name: weight_name, weight, bias, adapters })
    }

    /// The adapters of a matrix.
    pub(super) fn adapters(&mut self, name: &str, shape: [usize; 2]) -> Result<Vec<Adapter>, Error> {
        let all = self.loras.iter_mut().map(|lora| lora.adapters(name, shape, None).map_err(Error::of_adapter));
        Ok(all.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().flatten().collect())
    }

    /// What adapters add to the rows of the token embedding.
    pub(super) fn row_adapters(&mut self, name: &str, shape: [usize; 2]) -> Result<Vec<Adapter>, Error> {
        let all = self.loras.iter_mut().map(|lora| lora.row_adapter(name, shape).map_err(Error::of_adapter));
        Ok(all.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    /// `n` matrices in `NAME.weight`, and a bias for each in `NAME.bias`.
    pub(super) fn stack(
        &mut self,
        name: &str,
        [row_len, n_rows, n]: [usize; 3],
        biases: Presence,
    ) -> Result<Stack, Error> {
        let weight_name = format!("{name}.weight");
        let id = self.take(&weight_name, &[row_len, n_rows, n])?;
        let blocks = self.model.mapped(&self.mapping, id)?;
        let scales = self.scales_of(&weight_name, id, n)?;
        let len = blocks.len() / n;
        let weights = (0..n).map(|i| {
            let scale = scales.as_ref().map(|s| s[i]);
            self.made(id, &weight_name, [row_len, n_rows], blocks.part(i * len..(i + 1) * len), scale)
        });
        let weights = weights.collect::<Result<_, _>>()?;
        let biases = self.present(&format!("{name}.bias"), &[n_rows, n], biases)?;
        let all = self
            .loras
            .iter_mut()
            .map(|lora| lora.adapters(&weight_name, [row_len, n_rows], Some(n)).map_err(Error::of_adapter));
        let adapters = all.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
        Ok(Stack { name: weight_name, weights, biases, adapters })
    }

    /// Refuses what has no place in the network.
    pub(super) fn check_all_used(&self, architecture: &str) -> Result<(), Error> {
        let unused = self.model.tensors().zip(&self.is_used).filter(|(_, is_used)| !**is_used);
        let tensors: Vec<String> = unused.map(|(tensor, _)| tensor.name().to_owned()).collect();
        match tensors.is_empty() {
            true => self.loras.iter().try_for_each(Lora::check_all_used).map_err(Error::of_adapter),
            false => {
                let (path, architecture) = (self.model.path().to_owned(), architecture.to_owned());
                Err(Error::Extra { path, architecture, tensors })
            }
        }
    }
}
