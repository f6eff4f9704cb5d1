//! Planning an adapter.

use std::collections::HashMap;

use super::error::Error;
use super::matrix::Matrix;
use super::norms::fold_norms;
use super::place::{Left, place_of};
use super::settings::{FACTOR_TYPES, Settings};
use crate::ggml::GgmlType;
use crate::gguf::names::OUTPUT;
use crate::gguf::{Header, Metadata, Value};
use crate::patch::format::whole_name;
use crate::patch::{low_rank, rows};
use crate::pipeline::{self, Budget};
use crate::plan::{self, MergePlan, TensorPlan};
use crate::vector::{Folding, Inputs, fold_key};

/// The value of `general.type` in an adapter.
pub const TYPE: &str = "adapter";

/// Everything about an adapter that is known before its numbers are.
#[derive(Debug)]
pub struct Adapter {
    pub(super) header: Header,
    pub(super) matrices: Vec<Matrix>,
    pub(super) settings: Settings,
    pub(super) folded: Vec<String>,
    pub(super) left: Vec<Left>,
}

impl Adapter {
    /// Plans the adapter of the vector of base and chat. `plan` is one of
    /// [`plan_extract`](crate::patch::plan_extract) that has not looked, so that all tensors are in
    /// it. `measured` is what was measured when such a plan was carried out.
    ///
    /// Changes of norms are moved into the matrices behind them, where that can be. It is exact for
    /// the base. A model whose norms came away from the base's gets the change in proportion.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::Type`], [`Error::Container`], [`Error::Pipeline`].
    pub fn of_vector(
        plan: &MergePlan,
        inputs: &Inputs,
        measured: &pipeline::Measured,
        settings: Settings,
        budget: &Budget,
    ) -> Result<Self, Error> {
        let changed: HashMap<&str, _> = measured.tensors.iter().map(|t| (whole_name(&t.name), t.moments)).collect();
        let has_vector = |t: &TensorPlan| changed.get(t.name.as_str()).is_some_and(|m| m.delta2 > 0.0);
        let mut adapter = Adapter::plan(plan, inputs, settings, has_vector)?;
        adapter.folded = fold_norms(&mut adapter.matrices, &adapter.left, plan, inputs, budget)?;
        let all = measured.total.delta2;
        for left in &mut adapter.left {
            let moments = changed[left.name.as_str()];
            (left.share, left.change) = (moments.delta2 / all, moments.delta_ratio());
        }
        adapter.left.retain(|left| !adapter.folded.contains(&left.name));
        Ok(adapter)
    }

    /// Plans an adapter as large as that of the vector can be, before anything was measured.
    ///
    /// # Errors
    /// As [`Adapter::of_vector`].
    pub fn largest(plan: &MergePlan, inputs: &Inputs, settings: Settings) -> Result<Self, Error> {
        Adapter::plan(plan, inputs, settings, |t| t.is_sum())
    }

    /// Plans the adapter of what rounding took: of the tensors with a vector that are quantised in
    /// the output.
    ///
    /// # Errors
    /// As [`Adapter::of_vector`].
    pub fn of_residual(plan: &MergePlan, inputs: &Inputs, settings: Settings) -> Result<Self, Error> {
        let is_rounded = |t: &TensorPlan| t.is_sum() && t.ty.is_quantized();
        if !plan.tensors().iter().any(is_rounded) {
            return Err(Error::Empty {
                reason: "no tensor with a vector is quantised, so rounding takes nothing worth one",
            });
        }
        Adapter::plan(plan, inputs, settings, is_rounded)
    }

    fn plan(
        plan: &MergePlan,
        inputs: &Inputs,
        settings: Settings,
        wanted: impl Fn(&TensorPlan) -> bool,
    ) -> Result<Self, Error> {
        if !FACTOR_TYPES.contains(&settings.ty) {
            return Err(Error::Type { ty: settings.ty });
        }
        let is_untied = plan.tensors().iter().any(|t| t.name == OUTPUT);
        let (mut matrices, mut left) = (Vec::new(), Vec::new());
        for (tensor, planned) in plan.tensors().iter().enumerate().filter(|(_, t)| wanted(t)) {
            match place_of(planned, is_untied) {
                Ok(()) => matrices.push(Matrix::new(tensor, planned, settings.rank)),
                Err(reason) => left.push(Left { name: planned.name.clone(), reason, share: 0.0, change: None }),
            }
        }
        if let Some(importance) = inputs.importance() {
            matrices.iter().try_for_each(|m| importance.of_tensor(&m.name, &m.ne(), GgmlType::F32).map(|_| ()))?;
        }
        refuse_folded(inputs, &matrices)?;
        if matrices.is_empty() {
            return Err(Error::Empty { reason: "no matrix has a vector that llama.cpp could add to it" });
        }
        let specs = matrices.iter().flat_map(|m| m.specs(settings.ty));
        let rank = matrices.iter().map(|m| m.rank).max().unwrap_or(0);
        let header = Header::new(metadata(inputs, rank, settings.ty), specs)?;
        Ok(Adapter { header, matrices, settings, folded: Vec::new(), left })
    }

    /// The adapter's header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What it will not hold.
    pub fn left(&self) -> &[Left] {
        &self.left
    }

    /// Refuses a budget that does not hold the factors of the largest matrix. Gives how many
    /// workers it has room for beside them.
    ///
    /// # Errors
    /// [`pipeline::Error::Budget`].
    pub fn check_budget(&self, budget: &Budget) -> Result<usize, Error> {
        let (_, n_workers) = rows::n_workers(self.matrices.iter().map(Matrix::need), budget)?;
        Ok(n_workers)
    }

    /// Bytes of f32 that are read while it is written, as an [`Observer`](pipeline::Observer) is
    /// told of them.
    pub fn n_read_bytes(&self) -> u64 {
        let n_weights: u64 = self.matrices.iter().map(|m| m.row_len * m.n_rows * m.n_matrices).sum();
        (low_rank::N_PASSES + 1) * 4 * n_weights
    }
}

/// Refuses matrices that a file folds: llama.cpp hands the factors activations that are not folded
/// (`build_lora_mm`), and refuses them for a folded `token_embd` (src/llama-adapter.cpp).
fn refuse_folded(inputs: &Inputs, matrices: &[Matrix]) -> Result<(), Error> {
    for (_, source) in inputs.sources() {
        let Some(folding) = Folding::read(source).map_err(pipeline::Error::from)? else { continue };
        if let Some(matrix) = matrices.iter().find(|matrix| folding.has(&matrix.name)) {
            let (path, tensor) = (source.path().to_owned(), matrix.name.clone());
            return Err(Error::Folded {
                path,
                tensor,
                key: fold_key(source.metadata()).unwrap_or_default().to_owned(),
            });
        }
    }
    Ok(())
}

fn metadata(inputs: &Inputs, rank: usize, ty: GgmlType) -> Metadata {
    let template = inputs.source(inputs.skeleton()).metadata();
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", template.architecture().unwrap_or_default());
    metadata.set("general.type", TYPE);
    metadata.set("adapter.type", "lora");
    metadata.set("adapter.lora.alpha", Value::F32(rank as f32));
    for key in ["general.license", "general.license.name", "general.license.link"] {
        if let Some(value) = template.get(key) {
            metadata.set(key, value.clone());
        }
    }
    if let Some(name) = template.get_str("general.name") {
        metadata.set("general.name", format!("{name} LoRA").as_str());
    }
    plan::base_models(&mut metadata, inputs);
    // The numbers of `llama_ftype` (llama.h) that gguf-py gives an adapter.
    let file_type = match ty {
        GgmlType::F32 => 0,
        GgmlType::Q8_0 => 7,
        GgmlType::BF16 => 32,
        _ => 1,
    };
    metadata.set("general.file_type", Value::U32(file_type));
    metadata.set("general.quantization_version", Value::U32(plan::QUANTIZATION_VERSION));
    metadata
}
