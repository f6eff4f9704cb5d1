//! Numbers that depend on the tensor, as mergekit's recipes have them.
//!
//! The rules are those of mergekit 0.1.5 (`evaluate_setting` of mergekit/config.py, `plan_slice`
//! and `plan_module` of mergekit/plan.py): one value; a list of values spread over the layers, in
//! between interpolated; or a list of values with filters, of which the first that is part of the
//! tensor's name counts. Tensors in no layer are where the first layer is.

use serde::{Deserialize, Serialize, Serializer};

/// A number as sums are made with it, in f32. None where it is none, or becomes infinite, or
/// becomes 0 though it was not: then it would do something else than was asked for.
pub fn in_f32(value: f64) -> Option<f32> {
    let rounded = value as f32;
    (rounded.is_finite() && (rounded != 0.0 || value == 0.0)).then_some(rounded)
}

/// Where a tensor is, for settings and rules.
#[derive(Clone, PartialEq, Debug)]
pub struct Place {
    /// Its name, in GGUF and as mergekit knows it.
    names: Vec<String>,
    /// Its name with the layer counted from the end: `blk.-1.` is the last.
    from_end: Option<String>,
    /// 0 in the first layer and outside of layers, 1 in the last.
    t: f64,
}

impl Place {
    /// The place of a tensor in a model of so many layers.
    pub fn new(architecture: &str, name: &str, n_layers: u64) -> Self {
        let mut names = vec![name.to_owned()];
        names.extend(transformers_name(architecture, name));
        let layer = layer_of(name).filter(|(layer, _)| *layer < n_layers);
        let t = match (layer, n_layers) {
            (None, _) => 0.0,
            (Some(_), 1) => 1.0,
            (Some((layer, _)), n) => layer as f64 / (n - 1) as f64,
        };
        let from_end = layer.map(|(layer, rest)| format!("blk.-{}.{rest}", n_layers - layer));
        Place { names, from_end, t }
    }

    /// The tensor's name in GGUF, and with the layer counted from the end.
    pub(super) fn names_for_rules(&self) -> impl Iterator<Item = &str> {
        self.names.first().into_iter().chain(&self.from_end).map(String::as_str)
    }

    fn has(&self, part: &str) -> bool {
        self.names.iter().any(|name| name.contains(part))
    }
}

/// The layer that a tensor's name puts it in, and the rest of the name.
fn layer_of(name: &str) -> Option<(u64, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}

/// How many layers the names speak of.
pub(super) fn n_layers<'a>(names: impl Iterator<Item = &'a str>) -> u64 {
    names.filter_map(layer_of).map(|(layer, _)| layer.saturating_add(1)).max().unwrap_or(0)
}

/// The name that a tensor has in the files mergekit reads, where it is one of the usual
/// (gguf-py/gguf/tensor_mapping.py, `TensorNameMap`): filters are written for it.
fn transformers_name(architecture: &str, name: &str) -> Option<String> {
    #[rustfmt::skip]
    const WHOLE: [(&str, &str); 3] =
        [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];
    #[rustfmt::skip]
    const IN_LAYER: [(&str, &str); 20] = [
        ("attn_norm", "input_layernorm"), ("attn_q", "self_attn.q_proj"), ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"), ("attn_qkv", "self_attn.qkv_proj"), ("attn_output", "self_attn.o_proj"),
        ("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm"),
        ("ffn_gate", "mlp.gate_proj"), ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj"),
        ("ffn_gate_inp", "mlp.gate"), ("ffn_gate_exps", "mlp.experts.gate_proj"), ("ffn_up_exps", "mlp.experts.up_proj"),
        ("ffn_down_exps", "mlp.experts.down_proj"), ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
        ("ffn_up_shexp", "mlp.shared_expert.up_proj"), ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
        ("post_attention_norm", "post_attention_layernorm"), ("post_ffw_norm", "post_feedforward_layernorm"),
    ];
    let (stem, kind) = name.rsplit_once('.')?;
    let find = |list: &[(&str, &'static str)], part: &str| list.iter().find(|(own, _)| *own == part).map(|(_, hf)| *hf);
    match layer_of(stem) {
        None => Some(format!("{}.{kind}", find(&WHOLE, stem)?)),
        Some((layer, "ffn_norm")) => {
            let norm = if architecture.starts_with("gemma") { "pre_feedforward" } else { "post_attention" };
            Some(format!("model.layers.{layer}.{norm}_layernorm.{kind}"))
        }
        Some((layer, part)) => Some(format!("model.layers.{layer}.{}.{kind}", find(&IN_LAYER, part)?)),
    }
}

/// What a setting has for values: numbers, or yes and no.
pub trait Scalar: Copy {
    /// The value at `t` (0 to 1) of values evenly spread; there is at least one.
    fn between(values: &[Self], t: f64) -> Self;
}

impl Scalar for f64 {
    fn between(values: &[f64], t: f64) -> f64 {
        let scaled = t * (values.len() - 1) as f64;
        let i = (scaled as usize).min(values.len() - 1);
        let fraction = scaled - i as f64;
        (1.0 - fraction) * values[i] + fraction * values[(i + 1).min(values.len() - 1)]
    }
}

impl Scalar for bool {
    fn between(values: &[bool], t: f64) -> bool {
        values[((t * (values.len() - 1) as f64) as usize).min(values.len() - 1)]
    }
}

/// A value for each tensor.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(from = "SettingForm<T>", bound = "T: Deserialize<'de>")]
pub struct Setting<T> {
    cases: Vec<Case<T>>,
}

/// Values for tensors whose name has this in it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound(serialize = "T: Serialize + Copy", deserialize = "T: Deserialize<'de>"))]
struct Case<T> {
    /// What a tensor's name has to contain; none and `*` are for all tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    filter: Option<String>,
    value: Values<T>,
}

/// One, or some over the layers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a value, or a list of values over the layers")]
enum Values<T> {
    One(T),
    Many(Vec<T>),
}

/// A setting as files have it.
#[derive(Deserialize)]
#[serde(
    untagged,
    bound = "T: Deserialize<'de>",
    expecting = "expected a value, a list of values over the layers, or a list of {filter, value}"
)]
enum SettingForm<T> {
    Plain(Values<T>),
    Case(Case<T>),
    Cases(Vec<Case<T>>),
}

impl<T> From<SettingForm<T>> for Setting<T> {
    fn from(written: SettingForm<T>) -> Self {
        let cases = match written {
            SettingForm::Plain(value) => vec![Case { filter: None, value }],
            SettingForm::Case(case) => vec![case],
            SettingForm::Cases(cases) => cases,
        };
        Setting { cases }
    }
}

impl<T: Serialize + Copy> Serialize for Setting<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.cases[..] {
            [Case { filter: None, value }] => value.serialize(serializer),
            cases => cases.serialize(serializer),
        }
    }
}

impl<T> From<T> for Setting<T> {
    fn from(value: T) -> Self {
        Setting { cases: vec![Case { filter: None, value: Values::One(value) }] }
    }
}

impl<T> Setting<T> {
    /// What `other` says where this says nothing.
    #[must_use]
    pub fn or(mut self, other: Option<Self>) -> Self {
        self.cases.extend(other.into_iter().flat_map(|other| other.cases));
        self
    }

    /// Its filters.
    pub fn filters(&self) -> impl Iterator<Item = &str> {
        self.cases.iter().filter_map(|case| case.filter.as_deref()).filter(|filter| *filter != "*")
    }

    fn values(&self) -> impl Iterator<Item = &T> {
        self.cases.iter().flat_map(|case| match &case.value {
            Values::One(value) => std::slice::from_ref(value),
            Values::Many(values) => &values[..],
        })
    }
}

impl<T: Scalar> Setting<T> {
    /// The value, if it is one for all tensors.
    pub fn as_value(&self) -> Option<T> {
        match &self.cases[..] {
            [Case { filter: None, value: Values::One(value) }] => Some(*value),
            _ => None,
        }
    }

    /// The value for a tensor, if any of the cases is for it.
    pub fn at(&self, place: &Place) -> Option<T> {
        let is_for = |case: &&Case<T>| case.filter.as_deref().is_none_or(|filter| filter == "*" || place.has(filter));
        match &self.cases.iter().find(is_for)?.value {
            Values::One(value) => Some(*value),
            Values::Many(values) => (!values.is_empty()).then(|| T::between(values, place.t)),
        }
    }

    /// Whether all of it is so.
    pub(super) fn all(&self, is_so: impl Fn(T) -> bool) -> bool {
        self.values().all(|value| is_so(*value))
    }
}

impl Setting<f64> {
    /// All of its values, multiplied by a factor.
    #[must_use]
    pub fn times(&self, factor: f64) -> Self {
        let value = |values: &Values<f64>| match values {
            Values::One(value) => Values::One(value * factor),
            Values::Many(values) => Values::Many(values.iter().map(|value| value * factor).collect()),
        };
        let cases = self.cases.iter().map(|case| Case { filter: case.filter.clone(), value: value(&case.value) });
        Setting { cases: cases.collect() }
    }
}

/// Whether any tensor has this in its name.
pub(super) fn is_filter_of(filter: &str, places: &[Place]) -> bool {
    places.iter().any(|place| place.has(filter))
}

/// The value at a place of values evenly spread over the layers.
pub(super) fn gradient(values: &[f64], place: &Place) -> f64 {
    if values.is_empty() { 1.0 } else { f64::between(values, place.t) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, name: &str, n_layers: u64) -> Option<f64> {
        #[derive(Deserialize)]
        struct Holder {
            x: Setting<f64>,
        }
        let holder: Holder = toml::from_str(&format!("x = {text}")).unwrap_or_else(|e| panic!("{e}"));
        holder.x.at(&Place::new("llama", name, n_layers))
    }

    #[test]
    fn gradients_run_over_the_layers() {
        let text = "[0, 0.5, 1]";
        for (layer, expected) in [(0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)] {
            assert_eq!(at(text, &format!("blk.{layer}.ffn_up.weight"), 5), Some(expected));
        }
        assert_eq!(at(text, "blk.0.ffn_up.weight", 1), Some(1.0));
        assert_eq!(at(text, "output.weight", 5), Some(0.0));
        assert_eq!(at("[]", "output.weight", 5), None);
        assert_eq!(at("7", "output.weight", 5), Some(7.0));
    }

    #[test]
    fn the_first_filter_that_is_part_of_a_name_counts() {
        let text = r#"[{ filter = "self_attn", value = [0, 1] }, { filter = "ffn_", value = 0.25 }, { value = 3 }]"#;
        assert_eq!(at(text, "blk.1.attn_q.weight", 2), Some(1.0), "by mergekit's name");
        assert_eq!(at(text, "blk.1.ffn_up.weight", 2), Some(0.25), "by its own");
        assert_eq!(at(text, "output.weight", 2), Some(3.0));
        assert_eq!(at(r#"[{ filter = "lm_head", value = 2 }]"#, "token_embd.weight", 2), None);
        assert_eq!(at(r#"{ filter = "*", value = 2 }"#, "token_embd.weight", 2), Some(2.0));
    }

    #[test]
    fn names_are_those_of_the_converter() {
        let name = |architecture: &str, name: &str| transformers_name(architecture, name).unwrap_or_default();
        assert_eq!(name("llama", "blk.3.attn_output.weight"), "model.layers.3.self_attn.o_proj.weight");
        assert_eq!(name("qwen2", "blk.3.attn_k.bias"), "model.layers.3.self_attn.k_proj.bias");
        assert_eq!(name("llama", "blk.0.ffn_norm.weight"), "model.layers.0.post_attention_layernorm.weight");
        assert_eq!(name("gemma2", "blk.0.ffn_norm.weight"), "model.layers.0.pre_feedforward_layernorm.weight");
        assert_eq!(name("llama", "output.weight"), "lm_head.weight");
        assert_eq!(name("llama", "rope_freqs.weight"), "");
    }
}
