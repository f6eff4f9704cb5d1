//! What a run would do.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::{Report, Table, bytes, number, percent, shape};
use crate::ggml::GgmlType;
use crate::gguf::printable;
use crate::job::expected;
use crate::patch::{extract, whole_name};
use crate::plan::{MergePlan, TensorPlan};
use crate::survey::{Survey, TensorSurvey, TypeForecast};
use crate::vector::{Inputs, Kept, Method, Rounding, part_of};

/// A plan with what the survey expects of it.
pub struct Plan<'a> {
    /// The models.
    pub inputs: &'a Inputs,
    /// The plan.
    pub plan: &'a MergePlan,
    /// What was seen of the weights.
    pub survey: &'a Survey,
    /// Types to forecast, besides the plan's own, by name: those that the tensors would have. The
    /// survey has tried them.
    pub types: &'a [(&'a str, Vec<GgmlType>)],
    /// Whether the output is a patch: then survival is its gain and noise its relative error.
    pub is_patch: bool,
    /// What is known of a patch whose matrices are decomposed.
    pub decomposed: Option<&'a extract::Forecast>,
    /// Bytes of buffers the run would use.
    pub memory: u64,
    /// Threads it would use.
    pub threads: usize,
    /// Bytes free on the disk of the output.
    pub disk_free: Option<u64>,
    /// How long it would take, writing aside.
    pub time: Option<Duration>,
}

/// Bytes of a process that holds nothing yet: code, libraries, stacks. Measured
/// (docs/PERFORMANCE.md, forecasts).
const PROCESS: u64 = 8 << 20;

/// Bytes for each token of two vocabularies while one is found in the other.
const MAP: u64 = 72;

/// Bytes of memory for each byte of a header: as it is held, and as it is read or written.
const HEADER_FACTOR: u64 = 2;

impl Plan<'_> {
    fn source_types(&self, t: &TensorPlan) -> Vec<GgmlType> {
        t.sources().map(|at| self.inputs.source(at.source).tensor(at.tensor).ty()).collect()
    }

    /// How a matrix that is decomposed is stored, by its position.
    fn form(&self, tensor: usize) -> Option<&'static str> {
        let forecast = self.decomposed?;
        forecast.matrices.binary_search(&tensor).is_ok().then_some(forecast.form)
    }

    /// Bytes of the output; at most, where matrices are decomposed.
    fn output_bytes(&self) -> u64 {
        self.decomposed.map_or_else(|| self.plan.header().file_len(), |forecast| forecast.largest)
    }

    /// The most memory that the process would have at a time, about.
    fn peak_memory(&self) -> u64 {
        let headers = self.inputs.sources().flat_map(|(_, model)| model.files()).map(|file| file.header().len());
        let own = self.plan.header().len();
        let maps = (0..self.inputs.sources().len()).filter_map(|id| self.inputs.token_map(id));
        let maps = maps.filter(|map| !map.is_identity()).map(|map| (map.n_own() + map.n_other()) as u64 * MAP);
        self.memory + PROCESS + HEADER_FACTOR * (headers.sum::<u64>() + own) + maps.max().unwrap_or(0)
    }

    fn surveyed(&self) -> BTreeMap<&str, &TensorSurvey> {
        self.survey.tensors.iter().map(|t| (t.name.as_str(), t)).collect()
    }

    /// What the survey expects of a plan, in one line.
    pub fn expectation(plan: &MergePlan, survey: &Survey, is_patch: bool) -> String {
        let forecast = expected(plan, survey);
        let (survival, noise) = words(is_patch);
        let cosine = survey.cosine.map_or_else(String::new, |cosine| {
            format!("; the vector that is read has a cosine of about {cosine:.3} with the true one")
        });
        format!(
            "{} of {} tensors take part; expected ‖δ‖/‖W‖ {}, {survival} {}, {noise} {}{cosine}",
            plan.n_changed(),
            plan.tensors().len(),
            percent(survey.total().delta_ratio()),
            number(forecast.survival),
            number(forecast.noise),
        )
    }

    fn tensors(&self) -> Table {
        let surveyed = self.surveyed();
        let survival = format!(">{}", words(self.is_patch).0);
        let mut tensors = Table::new(&["tensor", "shape", "sources", "output", ">size", ">‖δ‖/‖W‖", &survival, ""]);
        for (i, t) in self.plan.tensors().iter().enumerate() {
            let sources: Vec<String> = self.source_types(t).iter().map(ToString::to_string).collect();
            let survey = surveyed.get(t.name.as_str());
            let form = self.form(i);
            let output = survey.and_then(|s| s.expected(t.ty)).map(|e| &e.moments).filter(|_| form.is_none());
            tensors.row([
                printable(&t.name),
                shape(&t.ne),
                sources.join(" "),
                form.map_or_else(|| encoding(t), str::to_owned),
                if form.is_none() { bytes(t.size()) } else { String::new() },
                percent(survey.and_then(|s| s.moments.delta_ratio())),
                number(output.and_then(|m| m.survival())),
                kept_name(t.kept()).to_owned(),
            ]);
        }
        tensors
    }

    fn tensor_json(&self, i: usize, t: &TensorPlan, surveyed: &BTreeMap<&str, &TensorSurvey>) -> Json {
        let survey = surveyed.get(t.name.as_str());
        let form = self.form(i);
        let output = survey.and_then(|s| s.expected(t.ty)).map(|e| &e.moments).filter(|_| form.is_none());
        json!({
            "name": t.name,
            "ne": t.ne,
            "sources": self.source_types(t),
            "type": form.map_or_else(|| json!(t.ty), |form| json!(form)),
            "rounding": t.rounding,
            "bytes": form.is_none().then(|| t.size()),
            "kept": t.kept(),
            "ratios": t.terms().iter().map(|term| json!({ "vector": term.vector, "ratio": term.ratio })).collect::<Vec<_>>(),
            "densities": t.combination().parts.iter().map(|part| part.density).collect::<Vec<_>>(),
            "pieces": survey.map(|s| s.n_pieces),
            "pieces_sampled": survey.map(|s| s.n_sampled),
            "delta_ratio": survey.and_then(|s| s.moments.delta_ratio()),
            "drift_ratio": survey.and_then(|s| s.moments.drift_ratio()),
            "drift_cosine": survey.and_then(|s| s.moments.drift_cosine()),
            "survival": output.and_then(|m| m.survival()),
            "noise": output.and_then(|m| m.noise()),
        })
    }

    /// What would be expected of other types.
    fn types_text(&self) -> String {
        let (survival, noise) = words(self.is_patch);
        let head = if self.is_patch {
            "\nexpected of other encodings:\n"
        } else {
            "\nexpected of other types (with --pure):\n"
        };
        let mut types = Table::new(&["type", ">size", &format!(">{survival}"), &format!(">{noise}")]);
        for (name, tensors) in self.types {
            let f = forecast(self.plan, self.survey, tensors);
            let bytes: u64 =
                self.plan.tensors().iter().zip(tensors).filter_map(|(t, ty)| ty.size_of(t.n_weights())).sum();
            types.row([(*name).to_owned(), super::bytes(bytes), number(f.survival), number(f.noise)]);
        }
        head.to_owned() + &types.text()
    }
}

/// The least and the greatest ratio of a vector in a part of the model.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Range {
    least: f32,
    greatest: f32,
}

impl Range {
    fn text(self) -> String {
        match self.least == self.greatest {
            true => self.least.to_string(),
            false => format!("{} to {}", self.least, self.greatest),
        }
    }
}

/// What each vector is multiplied by, part by part in the order of the output; none where nothing
/// could be added.
pub(super) fn ratios(plan: &MergePlan) -> Vec<(&str, Vec<Range>)> {
    let n_vectors = plan.tensors().iter().flat_map(|t| t.terms()).map(|term| term.vector + 1).max().unwrap_or(0);
    let mut parts: Vec<(&str, Vec<Range>)> = Vec::new();
    let mut positions = HashMap::new();
    for tensor in plan.tensors().iter().filter(|t| matches!(t.kept(), None | Some(Kept::RatioZero))) {
        let mut of_tensor = vec![0.0; n_vectors];
        tensor.terms().iter().for_each(|term| of_tensor[term.vector] = term.ratio);
        let part = part_of(whole_name(&tensor.name));
        let position = *positions.entry(part).or_insert(parts.len());
        if position == parts.len() {
            parts.push((part, of_tensor.iter().map(|&r| Range { least: r, greatest: r }).collect()));
        }
        for (range, &ratio) in parts[position].1.iter_mut().zip(&of_tensor) {
            *range = Range { least: range.least.min(ratio), greatest: range.greatest.max(ratio) };
        }
    }
    parts
}

/// The method, and how often the vectors are read.
pub(super) fn method(plan: &MergePlan) -> (Method, u32) {
    // One of tensors that are combined by more than a sum, if there is any.
    let combined = plan.tensors().iter().filter(|t| t.is_sum()).map(|t| t.combination().method);
    (combined.max_by_key(|method| *method != Method::TaskArithmetic).unwrap_or_default(), plan.n_passes())
}

/// The method, and the ratios of each part of the model.
fn method_text(plan: &MergePlan) -> String {
    let (method, n_passes) = method(plan);
    let times = if n_passes == 1 { "once".to_owned() } else { format!("up to {n_passes} times") };
    let text = format!("\nmethod {}; the vectors are read {times}\n", method.name());
    let parts = ratios(plan);
    let n_vectors = parts.iter().map(|(_, ranges)| ranges.len()).max().unwrap_or(0);
    let heads: Vec<String> = (1..=n_vectors).map(|i| format!(">ratio of vector {i}")).collect();
    let heads: Vec<&str> = std::iter::once("part").chain(heads.iter().map(String::as_str)).collect();
    let mut table = Table::new(&heads);
    for (part, ranges) in parts {
        let cells = ranges.into_iter().map(Range::text);
        table.row(std::iter::once(printable(part)).chain(cells).collect::<Vec<_>>());
    }
    text + &table.text()
}

/// The method, how often the vectors are read, and the ratios of each part of the model.
pub(super) fn method_json(plan: &MergePlan) -> Json {
    let (method, n_passes) = method(plan);
    let ratios: Vec<Json> = ratios(plan)
        .into_iter()
        .map(|(part, ranges)| {
            let ranges: Vec<_> = ranges.iter().map(|range| [range.least, range.greatest]).collect();
            json!({ "part": part, "ratios": ranges })
        })
        .collect();
    json!({ "name": method, "passes": n_passes, "ratios": ratios })
}

/// What survival and noise are called.
pub(super) fn words(is_patch: bool) -> (&'static str, &'static str) {
    if is_patch { ("gain", "error") } else { ("survival", "noise") }
}

/// A tensor's type, and how its codes are found if that is unusual.
pub fn encoding(tensor: &TensorPlan) -> String {
    match tensor.rounding {
        Rounding::Encoder => tensor.ty.to_string(),
        Rounding::Dithered { .. } => format!("{} dithered", tensor.ty),
        Rounding::UnitGain => format!("{} at unit gain", tensor.ty),
    }
}

/// The tokens whose rows are the chat model's, in a line; nothing if there are none.
pub(super) fn special_rows(plan: &MergePlan) -> String {
    const SHOWN: usize = 8;
    let texts = |is_added: bool| {
        let rows = plan.special_rows.iter().filter(|row| row.is_added == is_added);
        let texts: Vec<String> = rows.map(|row| printable(&row.text)).collect();
        match texts.len() {
            0 => None,
            n if n > SHOWN => Some(format!("{} … {n} in all", texts[..SHOWN].join(" "))),
            _ => Some(texts.join(" ")),
        }
    };
    let line = |what: &str, texts: Option<String>| texts.map_or_else(String::new, |texts| format!("{what}: {texts}\n"));
    line("special tokens with the chat model's rows", texts(false)) + &line("tokens added", texts(true))
}

/// The forecast for the plan's tensors in these types, in their order.
fn forecast(plan: &MergePlan, survey: &Survey, types: &[GgmlType]) -> TypeForecast {
    let by_name: HashMap<&str, GgmlType> =
        plan.tensors().iter().map(|t| t.name.as_str()).zip(types.iter().copied()).collect();
    survey.forecast(|name| by_name.get(name).copied())
}

/// Why a tensor is kept, in words.
fn kept_name(kept: Option<Kept>) -> &'static str {
    match kept {
        None => "",
        Some(Kept::NotAWeight) => "kept: no weight",
        Some(Kept::NoArithmetic) => "kept: type without arithmetic",
        Some(Kept::NoVector) => "kept: no vector",
        Some(Kept::NoPartner) => "kept: no partner",
        Some(Kept::Zero) => "kept: the vector is zero",
        Some(Kept::Skipped) => "kept: left out",
        Some(Kept::ByToken) => "kept: tokens differ",
        Some(Kept::RatioZero) => "kept: ratio 0",
    }
}

impl Report for Plan<'_> {
    fn text(&self) -> String {
        let mut text = self.tensors().text();
        if !self.is_patch {
            text += &method_text(self.plan);
        }
        match self.decomposed {
            None => text += &format!("\n{}\n", Self::expectation(self.plan, self.survey, self.is_patch)),
            Some(forecast) => {
                text += &format!(
                    "\n{} matrices as {}: singular vectors take {} beside the output meanwhile; what the patch holds of the vector \
                     is known when it is made\n",
                    forecast.matrices.len(),
                    forecast.form,
                    bytes(forecast.temporary)
                );
            }
        }
        text += &special_rows(self.plan);
        if !self.types.is_empty() {
            text += &self.types_text();
        }
        text += &format!(
            "\noutput {}{}{}; buffers {} in {} threads, about {} of memory in all{}\n",
            if self.decomposed.is_some() { "at most " } else { "" },
            bytes(self.output_bytes()),
            self.disk_free.map_or_else(String::new, |free| format!(" (the disk has {} free)", bytes(free))),
            bytes(self.memory),
            self.threads,
            bytes(self.peak_memory()),
            self.time.map_or_else(String::new, |time| {
                format!("; about {:.1} s, and what the disk takes to write", time.as_secs_f64())
            }),
        );
        text
    }

    fn json(&self) -> Json {
        let surveyed = self.surveyed();
        let tensors: Vec<Json> =
            self.plan.tensors().iter().enumerate().map(|(i, t)| self.tensor_json(i, t, &surveyed)).collect();
        let by_type: serde_json::Map<String, Json> = self
            .types
            .iter()
            .map(|(name, types)| ((*name).to_owned(), json!(forecast(self.plan, self.survey, types))))
            .collect();
        let total = self.survey.total();
        let mut json = json!({
            "method": method_json(self.plan),
            "tensors": tensors,
            "forecast": {
                "delta_ratio": total.delta_ratio(),
                "drift_ratio": total.drift_ratio(),
                "drift_cosine": total.drift_cosine(),
                "cosine": self.survey.cosine,
                "output": self.decomposed.is_none().then(|| expected(self.plan, self.survey)),
                "by_type": by_type,
            },
            "findings": self.survey.findings,
            "warnings": self.plan.warnings,
            "plumbing": self.plan.plumbing,
            "special_tokens": self.plan.special_rows,
            "output_bytes": self.output_bytes(),
            "disk_free_bytes": self.disk_free,
            "memory_bytes": self.memory,
            "peak_memory_bytes": self.peak_memory(),
            "seconds": self.time.map(|time| time.as_secs_f64()),
            "threads": self.threads,
        });
        if let Some(forecast) = self.decomposed {
            json["temporary_bytes"] = json!(forecast.temporary);
        }
        json
    }
}
