//! A model in other types.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::{Report, Table, bytes, shape};
use crate::ggml::GgmlType;
use crate::gguf::{Finished, printable};
use crate::plan::{MergePlan, TensorPlan};
use crate::vector::Inputs;

/// What becomes, or became, of each tensor of a model that is written in other types.
pub struct Quantize<'a> {
    /// The model.
    pub inputs: &'a Inputs,
    /// Its plan.
    pub plan: &'a MergePlan,
    /// The output and how long it took, if it was written.
    pub written: Option<(&'a Finished, Duration)>,
}

impl Quantize<'_> {
    /// A tensor's type and bytes in the model.
    fn before(&self, tensor: &TensorPlan) -> (GgmlType, u64) {
        let info = tensor.model().map(|at| self.inputs.source(at.source).tensor(at.tensor));
        info.map_or((tensor.ty, tensor.size()), |info| (info.ty(), info.size()))
    }

    /// Tensors and bytes by type.
    fn by_type(&self) -> BTreeMap<GgmlType, (usize, u64)> {
        let mut by_type = BTreeMap::new();
        for tensor in self.plan.tensors() {
            let entry = by_type.entry(tensor.ty).or_insert((0, 0));
            *entry = (entry.0 + 1, entry.1 + tensor.size());
        }
        by_type
    }

    /// Bytes of all tensors and bits per weight, in the model and in the output.
    fn sizes(&self) -> [(u64, f64); 2] {
        let tensors = self.plan.tensors();
        let n_weights: u64 = tensors.iter().map(TensorPlan::n_weights).sum();
        let before = tensors.iter().map(|t| self.before(t).1).sum();
        let after = tensors.iter().map(TensorPlan::size).sum();
        [before, after].map(|size: u64| (size, size as f64 * 8.0 / n_weights.max(1) as f64))
    }
}

impl Report for Quantize<'_> {
    fn text(&self) -> String {
        let mut text = String::new();
        if self.written.is_none() {
            let mut tensors = Table::new(&["tensor", "shape", "model", "output", ">model", ">output"]);
            for t in self.plan.tensors() {
                let (ty, size) = self.before(t);
                let cells = [ty.to_string(), t.ty.to_string(), bytes(size), bytes(t.size())];
                tensors.row([printable(&t.name), shape(&t.ne)].into_iter().chain(cells));
            }
            text += &(tensors.text() + "\n");
        }
        let mut types = Table::new(&["type", ">tensors", ">size"]);
        for (ty, (n, size)) in self.by_type() {
            types.row([ty.to_string(), n.to_string(), bytes(size)]);
        }
        text += &types.text();
        let [(before, bits_before), (after, bits_after)] = self.sizes();
        text += &format!(
            "\nmodel {} ({bits_before:.2} bits per weight), output {} ({bits_after:.2})\n",
            bytes(before),
            bytes(after)
        );
        if let Some((file, took)) = self.written {
            let (n, seconds) = (self.plan.tensors().len(), took.as_secs_f64());
            text += &format!(
                "{}: {}{n} tensors, {} in {seconds:.2} s ({}/s)\n",
                super::shown(&file.path),
                super::run::shards(file),
                bytes(file.len),
                bytes((before as f64 / seconds.max(1e-9)) as u64)
            );
        }
        text
    }

    fn json(&self) -> Json {
        let tensor = |t: &TensorPlan| {
            let (ty, size) = self.before(t);
            json!({"name": t.name, "ne": t.ne, "from": ty, "type": t.ty, "bytes_before": size, "bytes": t.size()})
        };
        let tensors: Vec<Json> = self.plan.tensors().iter().map(tensor).collect();
        let by_type = self.by_type().into_iter();
        let types: serde_json::Map<String, Json> =
            by_type.map(|(ty, (n, size))| (ty.to_string(), json!({"tensors": n, "bytes": size}))).collect();
        let [(before, bits_before), (after, bits_after)] = self.sizes();
        json!({
            "output": self.written.map(|(file, _)| file.path.to_string_lossy()),
            "output_bytes": self.written.map_or(self.plan.header().file_len(), |(file, _)| file.len),
            "output_files": self.written.map(|(file, _)| file.n_files),
            "n_tensors": self.plan.tensors().len(),
            "tensor_bytes_before": before,
            "tensor_bytes": after,
            "bits_per_weight_before": bits_before,
            "bits_per_weight": bits_after,
            "types": types,
            "tensors": tensors,
            "warnings": self.plan.warnings,
            "seconds": self.written.map(|(_, took)| took.as_secs_f64()),
        })
    }
}
