//! What a run did.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::plan::{encoding, method_json, words};
use super::{Lora, Report, Smoke, Table, bytes, number, percent};
use crate::gguf::{self, printable};
use crate::patch::{TensorSummary, bits_per_weight, whole_name};
use crate::pipeline::{TensorResult, WrittenFile};
use crate::plan::{Change, MergePlan, TensorPlan, Verdict};
use crate::survey::Finding;
use crate::vector::{Moments, part_of};

/// An output with what was measured while it was made.
pub struct Run<'a> {
    /// The plan that was carried out.
    pub plan: &'a MergePlan,
    /// The output.
    pub written: &'a WrittenFile,
    /// What the survey said before.
    pub findings: &'a [Finding],
    /// Whether the output is a patch: then survival is its gain and noise its relative error.
    pub is_patch: bool,
    /// What is to be said of it by the bounds that were asked for.
    pub verdict: Verdict,
    /// The tensors that were encoded again after they had been measured.
    pub mended: &'a [Change],
    /// How each tensor of a patch is stored; empty for a model.
    pub stored: &'a [TensorSummary],
    /// How long it took.
    pub took: Duration,
    /// What the output answered, if it was asked.
    pub smoke: Option<Smoke<'a>>,
    /// The adapter beside it.
    pub lora: Option<Lora<'a>>,
}

impl Run<'_> {
    /// Sums, tensors and types by part of the model, in the order of the output.
    fn parts(&self) -> Vec<PartSummary<'_>> {
        let mut parts: Vec<PartSummary<'_>> = Vec::new();
        let mut positions = HashMap::new();
        let (types, stored) = (self.types(), self.stored());
        for tensor in &self.written.measured.tensors {
            let whole = whole_name(&tensor.name);
            let (name, stored) = (part_of(whole), stored.get(whole));
            let position = *positions.entry(name).or_insert(parts.len());
            if position == parts.len() {
                let moments = Moments::default();
                parts.push(PartSummary { name, types: Vec::new(), n_tensors: 0, bytes: 0, n_weights: 0, moments });
            }
            let part = &mut parts[position];
            let ty = match stored.and_then(|stored| stored.factors) {
                Some(factors) => Some(factors.to_owned()),
                None => types.get(tensor.name.as_str()).map(|tensor| encoding(tensor)),
            };
            part.types.extend(ty.filter(|ty| !part.types.contains(ty)));
            part.n_tensors += 1;
            part.bytes += stored.map_or(0, |stored| stored.bytes);
            part.n_weights += stored.map_or(0, |stored| stored.n_weights);
            part.moments += tensor.moments;
        }
        parts
    }

    fn stored(&self) -> HashMap<&str, &TensorSummary> {
        self.stored.iter().map(|stored| (stored.name.as_str(), stored)).collect()
    }

    fn mended(&self, change: &Change) -> Json {
        json!({
            "tensor": self.plan.tensors()[change.tensor].name,
            "type": change.encoding.ty,
            "rounding": change.encoding.rounding,
            "survival_before": change.survival_before,
            "survival": change.survival,
        })
    }

    /// What was measured of each tensor, and how it is stored.
    fn tensors(&self) -> Vec<Json> {
        let (types, stored) = (self.types(), self.stored());
        let tensor = |t: &TensorResult| {
            let mut json = measured(&t.moments);
            json["name"] = json!(t.name);
            if let Some(stored) = stored.get(whole_name(&t.name)) {
                json["stored"] = json!(stored.stored);
                json["bytes"] = json!(stored.bytes);
                json["bits_per_weight"] = json!(stored.bits_per_weight());
                if stored.factors.is_some() {
                    return json;
                }
            }
            let tensor = types.get(t.name.as_str());
            json["type"] = json!(tensor.map(|tensor| tensor.ty));
            json["rounding"] = json!(tensor.map(|tensor| tensor.rounding));
            json
        };
        self.written.measured.tensors.iter().map(tensor).collect()
    }

    fn types(&self) -> HashMap<&str, &TensorPlan> {
        self.plan.tensors().iter().map(|t| (t.name.as_str(), t)).collect()
    }
}

fn measured(m: &Moments) -> Json {
    json!({
        "delta_ratio": m.delta_ratio(),
        "drift_ratio": m.drift_ratio(),
        "drift_cosine": m.drift_cosine(),
        "survival": m.survival(),
        "noise": m.noise(),
    })
}

/// A part of the model, over all layers.
struct PartSummary<'a> {
    name: &'a str,
    types: Vec<String>,
    n_tensors: usize,
    bytes: u64,
    n_weights: u64,
    moments: Moments,
}

impl Report for Run<'_> {
    fn has_verdicts(&self) -> bool {
        self.smoke.is_some()
    }

    fn text(&self) -> String {
        let (survival, noise) = words(self.is_patch);
        let [survival, noise] = [survival, noise].map(|word| format!(">{word}"));
        let mut heads = vec!["part", ">tensors", "type", ">‖δ‖/‖W‖", ">cos(δ, cp − base)", &survival, &noise];
        // A patch has no model to have come from anywhere.
        if self.is_patch {
            heads[4] = ">bits";
        }
        let mut table = Table::new(&heads);
        let mut row = |name: &str, n: usize, types: &[String], bits: Option<f64>, m: &Moments| {
            let mut cells = vec![printable(name), n.to_string(), types.join(" "), percent(m.delta_ratio())];
            cells.push(if self.is_patch { number(bits) } else { number(m.drift_cosine()) });
            cells.extend([number(m.survival()), number(m.noise())]);
            table.row(cells);
        };
        for part in self.parts() {
            row(part.name, part.n_tensors, &part.types, bits_per_weight(part.bytes, part.n_weights), &part.moments);
        }
        let (bytes_of_all, n_weights) =
            self.stored.iter().fold((0, 0), |(bytes, n), stored| (bytes + stored.bytes, n + stored.n_weights));
        let bits_of_all = bits_per_weight(bytes_of_all, n_weights);
        row("all", self.written.measured.tensors.len(), &[], bits_of_all, &self.written.measured.total);
        let file = &self.written.file;
        let seconds = self.took.as_secs_f64();
        let smoke = self.smoke.as_ref().map_or(String::new(), |smoke| format!("\n{}", smoke.text()));
        let lora = self.lora.map_or(String::new(), |lora| format!("\n{}", lora.text()));
        format!(
            "{}\n{}{}: {}{} tensors, {} with a vector, {} in {seconds:.2} s ({}/s)\n{smoke}{lora}",
            table.text(),
            super::plan::special_rows(self.plan),
            super::shown(&file.path),
            shards(file),
            self.plan.tensors().len(),
            self.plan.n_changed(),
            bytes(file.len),
            bytes((file.len as f64 / seconds.max(1e-9)) as u64),
        )
    }

    fn json(&self) -> Json {
        let tensors = self.tensors();
        let parts: Vec<Json> = self
            .parts()
            .iter()
            .map(|part| {
                let mut json = measured(&part.moments);
                json["part"] = json!(part.name);
                json["types"] = json!(part.types);
                json["tensors"] = json!(part.n_tensors);
                json
            })
            .collect();
        json!({
            "output": self.written.file.path.to_string_lossy(),
            "output_bytes": self.written.file.len,
            "output_files": self.written.file.n_files,
            "n_tensors": self.plan.tensors().len(),
            "n_changed": self.plan.n_changed(),
            "method": method_json(self.plan),
            "total": measured(&self.written.measured.total),
            "parts": parts,
            "tensors": tensors,
            "plumbing": self.plan.plumbing,
            "special_tokens": self.plan.special_rows,
            "warnings": self.plan.warnings,
            "findings": self.findings,
            "lost": self.verdict.lost,
            "missing": (!self.is_patch).then_some(self.verdict.missing),
            "mended": self.mended.iter().map(|change| self.mended(change)).collect::<Vec<_>>(),
            "seconds": self.took.as_secs_f64(),
            "smoke": self.smoke.as_ref().map(Report::json),
            "lora": self.lora.as_ref().map(Report::json),
        })
    }
}

/// How many files the first one stands for, if it is not alone.
pub(super) fn shards(file: &gguf::Finished) -> String {
    if file.n_files == 1 { String::new() } else { format!("{} files, ", file.n_files) }
}
