//! The type of each tensor in a file of a given type: the rules of llama-quantize.
//!
//! Most file types are mixtures. Which tensors get a finer type than the name says depends on the
//! tensor's part in the model, on the layer, on hyperparameters, and on whether there is an
//! importance matrix. The rules are those of src/llama-quant.cpp (`llama_tensor_get_type`,
//! `llama_tensor_get_type_impl`, `tensor_type_fallback`); where they count tensors, they count in
//! the order of `weight_name_comparer` (src/llama-model-loader.h) and not in that of the file.
//!
//! Everything here is a function of the header: a test compares it with what llama-quantize says of
//! the same headers.

use std::fmt;
use std::sync::Arc;

use tokenizers::utils::SysRegex;

use super::Error;
use super::file_type::FileType;
use super::types::{fallback, is_quantizable};
use crate::ggml::GgmlType::{self, *};
use crate::gguf::names::{OUTPUT, PER_LAYER_EMBEDDINGS, TOKEN_EMBEDDINGS};
use crate::gguf::{Metadata, Value};

/// A tensor as the rules see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Weights along each dimension, row length first.
    pub ne: &'a [u64],
    /// Its type in the model.
    pub ty: GgmlType,
}

/// The type of a tensor in the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The type.
    pub ty: GgmlType,
    /// What the rules gave it; another one where a row is no whole number of its blocks.
    pub wanted: GgmlType,
}

/// What can be asked of llama-quantize besides a file type.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Options {
    /// `--pure`: no mixture, one type for all.
    pub pure: bool,
    /// `--leave-output-tensor`: `output.weight` keeps its type.
    pub leave_output: bool,
    /// `--output-tensor-type`: the type of `output.weight`, or of what stands for it.
    pub output: Option<GgmlType>,
    /// `--token-embedding-type`: the type of the token embeddings.
    pub embeddings: Option<GgmlType>,
    /// `--tensor-type`: types of tensors by name. The first that matches counts.
    pub overrides: Vec<Override>,
}

/// A type for the tensors whose name contains a match of a regular expression.
#[derive(Clone)]
pub struct Override {
    pattern: String,
    regex: Arc<SysRegex>,
    ty: GgmlType,
}

impl Override {
    /// Reads `REGEX=TYPE`. As in llama-quantize (`parse_tensor_type` of
    /// tools/quantize/quantize.cpp) the expression is made lower-case, and matches anywhere in a
    /// name.
    ///
    /// # Errors
    /// [`Error::Override`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        let error = |reason: String| Error::Override { text: text.to_owned(), reason };
        // No type has an equals sign in its name, but an expression may.
        let (pattern, ty) = text.rsplit_once('=').ok_or_else(|| error("there is no =".to_owned()))?;
        if pattern.is_empty() {
            return Err(error("there is nothing before the =".to_owned()));
        }
        let ty = ty.parse().map_err(|e: crate::ggml::TypeError| error(e.to_string()))?;
        let pattern = pattern.to_ascii_lowercase();
        let regex = SysRegex::new(&pattern).map_err(|e| error(e.to_string()))?;
        Ok(Override { pattern, regex: Arc::new(regex), ty })
    }

    /// Reads a list of them with white space between (`--tensor-type-file`).
    ///
    /// # Errors
    /// [`Error::Override`].
    pub fn parse_list(text: &str) -> Result<Vec<Self>, Error> {
        text.split_ascii_whitespace().map(Self::parse).collect()
    }

    fn matches(&self, name: &str) -> bool {
        self.regex.find_iter(name).next().is_some()
    }
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.pattern, self.ty)
    }
}

impl fmt::Debug for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Override({self})")
    }
}

impl PartialEq for Override {
    fn eq(&self, other: &Self) -> bool {
        (&self.pattern, self.ty) == (&other.pattern, other.ty)
    }
}

/// The part of a tensor in the model, as far as the rules care (`tensor_get_category`).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Category {
    Output,
    Embeddings,
    /// Values, alone or together with queries and keys.
    Value,
    Key,
    Query,
    AttentionOutput,
    Up,
    Gate,
    Down,
    Other,
}

impl Category {
    fn of(name: &str) -> Self {
        /// In the order in which llama-quantize looks for them.
        const INSIDE: [(&str, Category); 9] = [
            ("attn_qkv.weight", Category::Value),
            ("attn_kv_b.weight", Category::Value),
            ("attn_v.weight", Category::Value),
            ("attn_k.weight", Category::Key),
            ("attn_q.weight", Category::Query),
            ("attn_output.weight", Category::AttentionOutput),
            ("ffn_up", Category::Up),
            ("ffn_gate", Category::Gate),
            ("ffn_down", Category::Down),
        ];
        match name {
            OUTPUT => Category::Output,
            TOKEN_EMBEDDINGS | PER_LAYER_EMBEDDINGS => Category::Embeddings,
            _ => INSIDE
                .iter()
                .find(|(inside, _)| name.contains(inside))
                .map_or(Category::Other, |(_, category)| *category),
        }
    }
}

/// File types of less than three bits, which share rules.
const LOWEST: [&str; 6] = ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"];

/// File types that give the attention's output five bits when there are eight experts.
const FINER_OUTPUT_OF_EIGHT: [&str; 11] =
    ["Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M", "IQ4_XS"];

/// What the rules want to know of a model (`load_hparams` of src/llama-model.cpp and
/// `load_arch_hparams` of src/models).
struct RuleInputs<'a> {
    architecture: &'a str,
    n_layers: i64,
    n_experts: u64,
    /// Queries for each key, 0 if there are no keys.
    n_queries: u64,
    /// Whether llama.cpp calls the model's size 70B.
    is_70b: bool,
}

impl<'a> RuleInputs<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self, Error> {
        let architecture = metadata.architecture().unwrap_or_default();
        // Multimodal projectors: llama.cpp reads no hyperparameters of them.
        if architecture == "clip" {
            return Ok(RuleInputs { architecture, n_layers: 0, n_experts: 0, n_queries: 0, is_70b: false });
        }
        // One number, or one for each layer.
        let number = |suffix: &str| match metadata.get(&format!("{architecture}.{suffix}"))? {
            Value::Array(array) => array.get(0)?.as_u64(),
            value => value.as_u64(),
        };
        let key = || format!("{architecture}.block_count");
        let n_blocks = number("block_count").filter(|n| *n <= 1 << 16).ok_or_else(|| Error::NoNumber { key: key() })?;
        // Layers that predict tokens further ahead do not count for the size.
        let n_proper = n_blocks.saturating_sub(number("nextn_predict_layers").unwrap_or(0));
        let n_layers = match architecture {
            "nanbeige" => n_proper.saturating_mul(number("num_loops").unwrap_or(1).clamp(1, 1 << 16)),
            "graniteswitch" => n_proper + 1,
            _ => n_blocks,
        };
        let n_experts = number("expert_count").unwrap_or(0);
        let n_heads = number("attention.head_count").unwrap_or(0);
        let n_kv_heads = number("attention.head_count_kv").unwrap_or(n_heads);
        let is_70b = match (architecture, n_proper) {
            ("llama" | "llama-embed", 80) => n_experts != 8 && n_heads != n_kv_heads,
            ("qwen2" | "deci" | "olmo", 80) | ("jais2", 68) => true,
            _ => false,
        };
        let n_queries = n_heads.checked_div(n_kv_heads).unwrap_or(0);
        Ok(RuleInputs { architecture, n_layers: n_layers as i64, n_experts, n_queries, is_70b })
    }
}

/// The type of every tensor in a file of this type, in the order of `tensors`, which are all of the
/// model.
///
/// # Errors
/// [`Error::NoNumber`] if the model does not say how many layers it has, [`Error::NoLayer`] for a
/// tensor of a mixture of experts that is in none of them, [`Error::Rows`] where llama.cpp has no
/// type for rows of such a length.
pub fn choose(
    metadata: &Metadata,
    tensors: &[Tensor<'_>],
    file_type: &FileType,
    options: &Options,
    has_importance: bool,
) -> Result<Vec<Choice>, Error> {
    let default = file_type.default_type;
    let is_mixed = default.is_quantized() && !options.pure;
    let mut rules = match is_mixed {
        true => Some(Rules::new(RuleInputs::read(metadata)?, tensors, file_type, options, has_importance)),
        false => None,
    };
    let architecture = metadata.architecture().unwrap_or_default();
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| (layer_of(tensors[i].name).unwrap_or(-1), tensors[i].name));
    let mut choices: Vec<Choice> = tensors.iter().map(|t| Choice { ty: t.ty, wanted: t.ty }).collect();
    for i in order {
        let tensor = &tensors[i];
        let n_dims = tensor.ne.iter().rposition(|&n| n > 1).map_or(1, |i| i + 1);
        let is_left = options.leave_output && tensor.name == OUTPUT;
        if is_left || !tensor.ty.is_weight_type() || !is_quantizable(architecture, tensor.name, n_dims) {
            continue;
        }
        choices[i] = choose_one(tensor, default, options, rules.as_mut())?;
    }
    Ok(choices)
}

/// The type of a tensor that may be changed (`llama_tensor_get_type`).
fn choose_one(
    tensor: &Tensor<'_>,
    default: GgmlType,
    options: &Options,
    rules: Option<&mut Rules<'_>>,
) -> Result<Choice, Error> {
    let category = Category::of(tensor.name);
    let named = options.overrides.iter().find(|o| o.matches(tensor.name)).map(|o| o.ty);
    let asked = match category {
        // The table of each layer follows that of the model unless it is named itself.
        Category::Embeddings if tensor.name == PER_LAYER_EMBEDDINGS && named.is_some() => None,
        Category::Embeddings => options.embeddings,
        Category::Output => options.output,
        _ => None,
    };
    let row_len = tensor.ne.first().copied().unwrap_or(1);
    let no_type = |ty| Error::Rows { tensor: tensor.name.to_owned(), ty, row_len };
    if let Some(ty) = asked {
        // llama-quantize aborts in the middle of its work where this does not fit.
        let fits = row_len.is_multiple_of(ty.block_len() as u64);
        return if fits { Ok(Choice { ty, wanted: ty }) } else { Err(no_type(ty)) };
    }
    if !default.is_quantized() {
        return Ok(Choice { ty: default, wanted: default });
    }
    let wanted = match (named, rules) {
        (Some(ty), _) => ty,
        (None, Some(rules)) => rules.mixed(tensor, category, default)?,
        (None, None) => default,
    };
    let ty = fallback(wanted, row_len).ok_or_else(|| no_type(wanted))?;
    Ok(Choice { ty, wanted })
}

/// The number after `blk.`, as `sscanf` reads it.
fn layer_of(name: &str) -> Option<i64> {
    let rest = name.strip_prefix("blk.")?.trim_ascii_start();
    let (sign, digits) = match rest.as_bytes().first()? {
        b'-' => (-1, &rest[1..]),
        b'+' => (1, &rest[1..]),
        _ => (1, rest),
    };
    let end = digits.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse::<u32>().ok().map(|n| sign * i64::from(n))
}

/// Layers that are worth more bits: the first and the last eighth, and every third between.
fn is_worth_more(layer: i64, n_layers: i64) -> bool {
    layer < n_layers / 8 || layer >= 7 * n_layers / 8 || (layer - n_layers / 8) % 3 == 2
}

/// The rules of a mixture, with what they count.
struct Rules<'a> {
    model: RuleInputs<'a>,
    name: &'a str,
    output: Option<GgmlType>,
    has_importance: bool,
    /// Whether the token embeddings are the output too.
    is_tied: bool,
    n_values: i64,
    values_seen: i64,
    down_seen: i64,
    gate_seen: i64,
    up_seen: i64,
}

impl<'a> Rules<'a> {
    fn new(
        model: RuleInputs<'a>,
        tensors: &[Tensor<'_>],
        file_type: &FileType,
        options: &Options,
        has_importance: bool,
    ) -> Self {
        let categories = || tensors.iter().map(|t| Category::of(t.name));
        Rules {
            model,
            name: file_type.name,
            output: options.output,
            has_importance,
            is_tied: !categories().any(|category| category == Category::Output),
            n_values: categories().filter(|category| *category == Category::Value).count() as i64,
            values_seen: 0,
            down_seen: 0,
            gate_seen: 0,
            up_seen: 0,
        }
    }

    /// The type of a tensor by the rules of the mixture (`llama_tensor_get_type_impl`). To be asked
    /// for each tensor once, in llama-quantize's order.
    fn mixed(&mut self, tensor: &Tensor<'_>, category: Category, default: GgmlType) -> Result<GgmlType, Error> {
        let inside = |words: [&str; 3]| words.iter().any(|word| tensor.name.contains(word));
        if self.model.architecture == "glm5-next" && inside(["attn_q_a", "attn_q_b", "nextn.eh_proj"]) {
            return Ok(Q8_0);
        }
        if category == Category::Output || (self.is_tied && category == Category::Embeddings) {
            let divides = tensor.ne.first().is_none_or(|n| n.is_multiple_of(default.block_len() as u64));
            return Ok(self.output.unwrap_or_else(|| self.of_output(default, divides)));
        }
        if self.name == "MXFP4_MOE" {
            let is_stack = tensor.ne.get(2).is_some_and(|&n| n > 1);
            // The projections of latent attention are stacks too.
            let is_expert = matches!(category, Category::Up | Category::Gate | Category::Down)
                || self.model.architecture != "bailingmoe3";
            return Ok(if is_stack && is_expert { MXFP4 } else { Q8_0 });
        }
        if category == Category::Embeddings {
            return Ok(match self.name {
                "IQ2_XXS" | "IQ2_XS" | "IQ1_S" | "IQ1_M" => Q2_K,
                "IQ2_S" | "IQ2_M" | "IQ3_XXS" => IQ3_S,
                "TQ1_0" | "TQ2_0" | "Q2_0" => Q4_K,
                _ => default,
            });
        }
        if LOWEST.contains(&self.name) {
            return Ok(self.of_lowest(category).unwrap_or(default));
        }
        let finer = match category {
            Category::Value => Some(self.of_value(default)),
            Category::Key if self.model.n_experts == 8 => Some(Q8_0),
            Category::Key | Category::Query => match self.name {
                "IQ3_XS" => Some(IQ3_XXS),
                "IQ3_XXS" => Some(IQ2_S),
                _ => None,
            },
            Category::AttentionOutput => self.of_attention_output(),
            Category::Down => {
                let layer = self.layer(self.down_seen, tensor.name)?;
                self.down_seen += 1;
                self.of_down(layer)
            }
            Category::Gate | Category::Up => {
                let seen = if category == Category::Gate { &mut self.gate_seen } else { &mut self.up_seen };
                *seen += 1;
                let before = *seen - 1;
                let (layer, n) = (self.layer(before, tensor.name)?, self.model.n_layers);
                (self.name == "IQ3_XS" && layer >= n / 8 && layer < 7 * n / 8).then_some(IQ3_XXS)
            }
            Category::Output | Category::Embeddings | Category::Other => None,
        };
        Ok(finer.unwrap_or(default))
    }

    /// The layer of a tensor: how many of its kind came before, unless experts make more than one
    /// of them in a layer.
    fn layer(&self, seen: i64, name: &str) -> Result<i64, Error> {
        if self.model.n_experts <= 1 {
            return Ok(seen);
        }
        let n_layers = self.model.n_layers;
        let layer = layer_of(name).filter(|layer| (0..n_layers).contains(layer));
        layer.ok_or_else(|| Error::NoLayer { tensor: name.to_owned(), n_layers: n_layers as u64 })
    }

    fn of_output(&self, default: GgmlType, divides: bool) -> GgmlType {
        match self.name {
            "MXFP4_MOE" => Q8_0,
            _ if self.model.architecture == "falcon" || !divides => Q8_0,
            "IQ3_XXS" => Q5_K,
            name if LOWEST.contains(&name) => Q5_K,
            _ if default == Q8_0 => Q8_0,
            _ => Q6_K,
        }
    }

    fn of_lowest(&mut self, category: Category) -> Option<GgmlType> {
        let is_iq2_s = matches!(self.name, "IQ2_S" | "IQ2_M");
        let finer = if is_iq2_s { IQ3_S } else { Q2_K };
        match category {
            Category::Value if self.model.n_queries >= 4 || self.model.n_experts >= 4 => Some(Q4_K),
            Category::Value => Some(finer),
            Category::Key if self.model.n_experts == 8 => Some(Q4_K),
            Category::Down => {
                self.down_seen += 1;
                (self.down_seen <= self.model.n_layers / 8).then_some(finer)
            }
            Category::AttentionOutput if self.model.n_experts == 8 => Some(Q5_K),
            Category::AttentionOutput if is_iq2_s => Some(IQ3_S),
            Category::AttentionOutput if matches!(self.name, "IQ1_S" | "IQ1_M") => Some(IQ2_XXS),
            _ => None,
        }
    }

    fn of_value(&mut self, default: GgmlType) -> GgmlType {
        let seen = self.values_seen;
        self.values_seen += 1;
        let is_grouped = self.model.n_queries >= 4;
        let ty = match self.name {
            "Q2_K" => {
                if is_grouped {
                    Q4_K
                } else {
                    Q3_K
                }
            }
            "IQ3_XXS" if !is_grouped => {
                if self.has_importance {
                    IQ3_XXS
                } else {
                    IQ3_S
                }
            }
            "Q2_K_S" | "IQ3_XXS" | "IQ3_XS" | "IQ3_S" if is_grouped => Q4_K,
            "IQ3_M" => Q4_K,
            "Q3_K_M" => {
                if seen < 2 {
                    Q5_K
                } else {
                    Q4_K
                }
            }
            "Q3_K_L" => Q5_K,
            "IQ4_NL" | "IQ4_XS" if is_grouped => Q5_K,
            "Q4_K_M" | "Q5_K_M" if is_worth_more(seen, self.n_values) => Q6_K,
            "Q4_K_S" if seen < 4 => Q5_K,
            _ => default,
        };
        match ty {
            // A small share of such a model, because eight queries share a key.
            _ if self.model.n_experts == 8 => Q8_0,
            Q3_K | Q4_K if self.model.is_70b => Q5_K,
            ty => ty,
        }
    }

    fn of_down(&self, layer: i64) -> Option<GgmlType> {
        let n = self.model.n_layers;
        let is_falcon = self.model.architecture == "falcon";
        let is_early = layer < n / 8;
        let is_worth_more = is_worth_more(layer, n);
        match self.name {
            "Q2_K" => Some(Q3_K),
            "Q2_K_S" if is_early => Some(Q4_K),
            "IQ3_XXS" if !self.has_importance => Some(if is_early { Q4_K } else { Q3_K }),
            "Q3_K_M" if layer < n / 16 => Some(Q5_K),
            "Q3_K_M" if !is_falcon || is_worth_more => Some(Q4_K),
            "IQ3_M" if is_early || (self.model.n_experts == 8 && is_worth_more) => Some(Q4_K),
            "Q3_K_L" => Some(if is_falcon { Q4_K } else { Q5_K }),
            "Q4_K_M" if is_falcon && layer < n / 16 => Some(Q6_K),
            "Q4_K_M" if is_worth_more => Some(if is_falcon { Q5_K } else { Q6_K }),
            "IQ4_NL" | "IQ4_XS" if is_early && !self.has_importance => Some(Q5_K),
            "Q5_K_M" if is_worth_more => Some(Q6_K),
            "Q4_K_S" if is_early && !is_falcon => Some(Q5_K),
            "Q4_0" if is_early && self.has_importance => Some(Q4_1),
            "Q5_0" if is_early && self.has_importance => Some(Q5_1),
            _ => None,
        }
    }

    fn of_attention_output(&self) -> Option<GgmlType> {
        match self.name {
            "Q3_K_L" if self.model.architecture == "falcon" => Some(Q4_K),
            _ if self.model.architecture == "falcon" => None,
            name if self.model.n_experts == 8 => FINER_OUTPUT_OF_EIGHT.contains(&name).then_some(Q5_K),
            "Q2_K" => Some(Q3_K),
            "IQ3_XXS" => Some(IQ3_S),
            "Q3_K_M" | "IQ3_M" => Some(Q4_K),
            "Q3_K_L" => Some(Q5_K),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layer_is_the_number_that_sscanf_reads() {
        for (name, layer) in [
            ("blk.7.attn_q.weight", Some(7)),
            ("blk.12x", Some(12)),
            ("blk. -3.x", Some(-3)),
            ("blk..x", None),
            ("output.weight", None),
            ("blk.99999999999.x", None),
        ] {
            assert_eq!(layer_of(name), layer, "{name}");
        }
    }

    #[test]
    fn an_override_matches_inside_names_in_lower_case() {
        let given = Override::parse(r"BLK\.[0-3]\.attn_(q|k)(?=\.weight)=q8_0").unwrap();
        assert_eq!(given.ty, Q8_0);
        assert!(given.matches("blk.2.attn_k.weight") && !given.matches("blk.4.attn_k.weight"));
        for (text, reason) in [
            ("attn_q", "no ="),
            ("=q8_0", "before the ="),
            ("attn_q=", "no ggml type"),
            ("attn_q=q4_k_m", "no ggml type"),
            ("attn_(=q8_0", "attn_("),
        ] {
            let e = Override::parse(text).unwrap_err().to_string();
            assert!(e.contains(reason) && e.contains(text), "{e}");
        }
        assert_eq!(Override::parse_list("a=q4_0 b=q5_0\n\tc=f16\n").unwrap().len(), 3);
    }
}
