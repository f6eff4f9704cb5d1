//! What a header says.

use std::collections::BTreeMap;

use bstr::ByteSlice;
use serde_json::{Value as Json, json};

use super::{Report, Table, bytes, number, percent, shape};
use crate::chat;
use crate::eval::ChatAudit;
use crate::gguf::{Array, ByteOrder, Model, Value, printable};
use crate::patch::{self, TensorSummary};
use crate::plan::RECIPE_KEY;
use crate::quants;
use crate::vector::part_of;

/// Elements of a long array that JSON has.
const SHOWN: usize = 8;

/// A model's header.
pub struct Inspect<'a> {
    /// The model.
    pub model: &'a Model,
    /// Whether the text lists every tensor.
    pub tensors: bool,
    /// What was found of its chat, if that was asked for.
    pub chat: Option<&'a ChatAudit>,
}

impl Inspect<'_> {
    /// What a user of the file should know.
    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.model.byte_order() == ByteOrder::Big {
            warnings.push("big-endian: the weights cannot be computed with".to_owned());
        }
        let unreadable: std::collections::BTreeSet<_> = self
            .model
            .tensors()
            .map(|t| t.ty())
            .filter(|ty| ty.is_weight_type() && !quants::is_supported(*ty))
            .collect();
        if !unreadable.is_empty() {
            let names: Vec<String> = unreadable.iter().map(ToString::to_string).collect();
            warnings.push(format!("tensors of types that cannot be computed with yet: {}", names.join(", ")));
        }
        if self.model.metadata().get_strings(chat::TOKENS).is_some() && !chat::has_template(self.model.metadata()) {
            warnings.push("no chat template: llama.cpp would talk to it in its built-in ChatML".to_owned());
        }
        warnings
    }

    /// Tensors and bytes by type.
    fn by_type(&self) -> BTreeMap<crate::ggml::GgmlType, (u64, u64, u64)> {
        let mut by_type = BTreeMap::new();
        for t in self.model.tensors() {
            let entry = by_type.entry(t.ty()).or_insert((0, 0, 0));
            *entry = (entry.0 + 1, entry.1 + t.n_weights(), entry.2 + t.size());
        }
        by_type
    }
}

impl Report for Inspect<'_> {
    fn text(&self) -> String {
        let mut text = String::new();
        for file in self.model.files() {
            let h = file.header();
            text += &format!(
                "{}: GGUF v{}, {}-endian, {} keys, {} tensors, header {}, alignment {}\n",
                super::shown(file.path()),
                h.version(),
                if h.byte_order() == ByteOrder::Big { "big" } else { "little" },
                h.metadata().len(),
                h.tensors().len(),
                bytes(h.len()),
                h.alignment()
            );
        }
        text += "\n";
        let mut keys = Table::new(&["key", "type", "value"]);
        for (key, value) in self.model.metadata().iter() {
            keys.row([printable(key), type_name(value), value.summary()]);
        }
        text += &keys.text();
        text += "\n";
        let mut types = Table::new(&["type", ">tensors", ">weights", ">size", ">bits"]);
        for (ty, (n, weights, size)) in self.by_type() {
            let bits = format!("{:.4}", ty.bits_per_weight());
            types.row([ty.to_string(), n.to_string(), weights.to_string(), bytes(size), bits]);
        }
        text += &types.text();
        if self.tensors {
            text += "\n";
            let mut tensors = Table::new(&["tensor", "shape", "type", ">size"]);
            for t in self.model.tensors() {
                tensors.row([printable(t.name()), shape(t.ne()), t.ty().to_string(), bytes(t.size())]);
            }
            text += &tensors.text();
        }
        text += &patch_text(self.model, self.tensors);
        if let Some(recipe) = self.model.metadata().get_str(RECIPE_KEY) {
            text += "\nmade by this recipe (chatvec merge --recipe FILE makes it again):\n\n";
            recipe.to_str_lossy().lines().for_each(|line| text += &format!("    {}\n", printable(line)));
        }
        for warning in self.warnings() {
            text += &format!("\nwarning: {warning}\n");
        }
        text += &self.chat.map_or_else(String::new, Report::text);
        text
    }

    fn json(&self) -> Json {
        let files: Vec<Json> = self
            .model
            .files()
            .iter()
            .map(|file| {
                let h = file.header();
                json!({
                    "path": file.path().to_string_lossy(),
                    "version": h.version(),
                    "big_endian": h.byte_order() == ByteOrder::Big,
                    "alignment": h.alignment(),
                    "header_bytes": h.len(),
                    "data_offset": h.data_offset(),
                })
            })
            .collect();
        let metadata: serde_json::Map<String, Json> =
            self.model.metadata().iter().map(|(k, v)| (k.to_owned(), value_json(v))).collect();
        let tensors: Vec<Json> = (0..self.model.n_tensors())
            .map(|id| {
                let t = self.model.tensor(id);
                json!({
                    "name": t.name(),
                    "ne": t.ne(),
                    "type": t.ty(),
                    "bytes": t.size(),
                    "offset": t.offset(),
                    "file": self.model.path_of(id).to_string_lossy(),
                })
            })
            .collect();
        let mut json = json!({ "files": files, "metadata": metadata, "tensors": tensors, "warnings": self.warnings() });
        if let Some(chat) = self.chat {
            json["chat"] = chat.json();
        }
        if patch::is_patch(self.model.metadata()) {
            json["patch"] = json!({
                "tensors": patch::summary(self.model),
                "bytes_beside": patch::bytes_beside(self.model),
            });
        }
        json
    }
}

/// What a patch says of its tensors: of each, or of the parts of the model.
fn patch_text(model: &Model, all: bool) -> String {
    let tensors = patch::summary(model);
    if tensors.is_empty() {
        return String::new();
    }
    let mut table =
        Table::new(&["part", ">tensors", ">size", ">bits", ">‖τ‖/‖base‖", ">gain", ">error", ">cosine", "stored as"]);
    let mut row = |name: &str, tensors: &[&TensorSummary]| {
        let sum = |of: &dyn Fn(&TensorSummary) -> f64| tensors.iter().map(|t| of(t)).sum::<f64>();
        let square = |n: Option<f64>| n.unwrap_or(0.0).powi(2);
        let (base2, tau2) = (sum(&|t| square(t.base_norm)), sum(&|t| square(t.norm)));
        let kept = sum(&|t| square(t.norm) * t.gain.unwrap_or(0.0));
        let error2 = sum(&|t| square(t.norm) * square(t.error));
        let stored2 = 2.0 * kept - tau2 + error2;
        let n_bytes = tensors.iter().map(|t| t.bytes).sum::<u64>();
        let n_weights = tensors.iter().map(|t| t.n_weights).sum::<u64>();
        let known = |n: f64| (tau2 > 0.0 && n.is_finite()).then_some(n);
        let mut kinds: Vec<&str> = tensors.iter().map(|t| t.stored.as_str()).filter(|s| !s.is_empty()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        table.row([
            name.to_owned(),
            tensors.len().to_string(),
            bytes(n_bytes),
            number(patch::bits_per_weight(n_bytes, n_weights)),
            percent((base2 > 0.0).then(|| (tau2 / base2).sqrt())),
            number(known(kept / tau2)),
            number(known((error2 / tau2).sqrt())),
            number(known(kept / (tau2 * stored2).sqrt())),
            if kinds.is_empty() { "nothing: it is zero".to_owned() } else { kinds.join(", ") },
        ]);
    };
    let refs: Vec<&TensorSummary> = tensors.iter().collect();
    if all {
        refs.iter().for_each(|t| row(&printable(&t.name), &[t]));
    } else {
        let mut parts: BTreeMap<&str, Vec<&TensorSummary>> = BTreeMap::new();
        refs.iter().for_each(|t| parts.entry(part_of(&t.name)).or_default().push(t));
        parts.iter().for_each(|(part, tensors)| row(&printable(part), tensors));
    }
    row("all", &refs);
    let beside = bytes(patch::bytes_beside(model));
    format!("\nthe vector:\n\n{}\nrows of special and other tokens beside it: {beside}\n", table.text())
}

fn type_name(value: &Value) -> String {
    match value {
        Value::Array(a) => format!("{}[{}]", a.element_type().name(), a.len()),
        other => other.value_type().name().to_owned(),
    }
}

fn value_json(value: &Value) -> Json {
    match value {
        Value::String(s) => Json::from(s.to_str_lossy()),
        Value::Bool(b) => Json::from(*b != 0),
        Value::I8(v) => Json::from(*v),
        Value::I16(v) => Json::from(*v),
        Value::I32(v) => Json::from(*v),
        Value::I64(v) => Json::from(*v),
        Value::F32(v) => Json::from(*v),
        Value::F64(v) => Json::from(*v),
        Value::Array(a) => array_json(a),
        other => Json::from(other.as_u64()),
    }
}

/// Short arrays whole, long ones by length and beginning: a vocabulary is in the file for who wants
/// it.
fn array_json(array: &Array) -> Json {
    let head = |n: usize| -> Vec<Json> { array.iter().take(n).map(|v| value_json(&v)).collect() };
    match array.len() {
        n if n <= 4 * SHOWN => Json::from(head(n)),
        n => json!({ "type": array.element_type().name(), "len": n, "head": head(SHOWN) }),
    }
}
