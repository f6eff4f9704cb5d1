//! What a tensor is, by its name: a weight that a vector can be added to, or something else.
//!
//! What a file holds follows from its converter. Of all that the converters of llama.cpp write for
//! text models (`conversion/` of llama-cpp-python 0.3.36 from PyPI, which is ggml 0.25.3, each
//! `modify_tensors` read; for what came later the graphs in src/models of llama.cpp 0.8) most is a
//! parameter of training, permuted, split, joined or plus a constant that is the same in all files
//! of an architecture: a difference of such numbers is a difference of parameters. The table has the
//! rest. [`Space`](super::Space) has what is added in another form.

/// What a tensor is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nature {
    /// A parameter of training, which is added.
    Weight,
    /// Computed from settings, or statistics of data: the model's stays.
    NoWeight,
    /// Which of some things belong together. Numbers that depend on it are additive only between
    /// files with the same table.
    Table,
    /// Added like a weight, though that is an approximation, or not known to be right: why.
    Unsure(&'static str),
    /// A name that no converter wrote when this was made.
    Unknown,
}

/// A row of the table.
struct Row {
    /// The name, or its end behind a dot, without `.weight`.
    end: &'static str,
    /// The architectures that it is so in; all if none.
    architectures: &'static [&'static str],
    nature: Nature,
}

const fn row(end: &'static str, architectures: &'static [&'static str], nature: Nature) -> Row {
    Row { end, architectures, nature }
}

/// The matrices of BitNet.
const TERNARY: Nature =
    Nature::Unsure("the converter rounded these weights to three values, and a sum of such has more");
const TANH: Nature = Nature::Unsure("the file holds tanh(x) of a parameter x, and sums of that are no tanh");
const SCALED: Nature = Nature::Unsure("the file holds a matrix times a scale that was trained, too");
const PRODUCT: Nature = Nature::Unsure("these are factors of a product, and a product of sums is no sum of products");
const NORMALISED: Nature =
    Nature::Unsure("with norm_head the converter normalises the columns, by the weights of each file");
const FOLDED_MLP: Nature = Nature::Unsure("the file holds what a network makes of embeddings");
const UNVERIFIED: Nature = Nature::Unsure("how the file's numbers follow from parameters is not known");

const ROWS: [Row; 32] = [
    // Divisors of rope, of the model's own context (base.py and others, `generate_extra_tensors`).
    row("rope_freqs", &[], Nature::NoWeight),
    row("rope_factors_long", &[], Nature::NoWeight),
    row("rope_factors_short", &[], Nature::NoWeight),
    // In files of 2023.
    row("attn_rot_embd", &[], Nature::NoWeight),
    // Divisors of AWQ (mpt.py).
    row("ffn.act.scales", &["mpt"], Nature::NoWeight),
    // Constants from the settings (muse_glimmer.py; src/models/muse-spark.cpp).
    row("attn_q_norm", &["muse-glimmer", "muse-spark"], Nature::NoWeight),
    row("attn_k_norm", &["muse-glimmer", "muse-spark"], Nature::NoWeight),
    // Two exponentials and a sigmoid in one tensor.
    row("decision.scales", &[], Nature::NoWeight),
    // From tokens to experts (deepseek.py), from a draft's tokens to the model's (llama.py, qwen.py), the
    // order of tokens (gemma.py).
    row("ffn_gate_tid2eid", &[], Nature::Table),
    row("d2t", &[], Nature::Table),
    row("masked_embd_ordering", &[], Nature::Table),
    // bitnet.py, `weight_quant`.
    row("attn_q", &["bitnet"], TERNARY),
    row("attn_k", &["bitnet"], TERNARY),
    row("attn_v", &["bitnet"], TERNARY),
    row("attn_output", &["bitnet"], TERNARY),
    row("ffn_gate", &["bitnet"], TERNARY),
    row("ffn_up", &["bitnet"], TERNARY),
    row("ffn_down", &["bitnet"], TERNARY),
    // bailingmoe.py, `modify_tensors`. No key tells whether it was done.
    row("output", &["bailingmoe"], NORMALISED),
    row("token_embd", &["qwen3tts"], FOLDED_MLP),
    row("attn_xsa_alpha", &["limite"], TANH),
    row("attn_q", &["limite"], SCALED),
    row("attn_k", &["limite"], SCALED),
    row("attn_v", &["limite"], SCALED),
    row("attn_output", &["limite"], SCALED),
    row("ffn_down", &["limite"], SCALED),
    row("value_embd", &["limite"], SCALED),
    // granite.py.
    row("lora_a", &["graniteswitch"], PRODUCT),
    row("lora_b", &["graniteswitch"], PRODUCT),
    row("engram_gate", &["deepseek41"], UNVERIFIED),
    row("attn_resid_alpha", &["muse-spark"], UNVERIFIED),
    row("ffn_resid_alpha", &["muse-spark"], UNVERIFIED),
];

/// What follows `blk.N.` in the names of tensors, and other names, without `.weight` and `.bias`
/// (gguf-py/gguf/constants.py, `TENSOR_NAMES`; src/llama-arch.cpp of llama.cpp 0.8). `N` and `X` are
/// numbers.
const STEMS: &str = include_str!("stems.txt");

/// What the tensor of this name and of so many dimensions is in this architecture.
pub fn nature(architecture: &str, name: &str, n_dims: usize) -> Nature {
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    let is_it = |row: &&Row| {
        let begin = stem.strip_suffix(row.end);
        let is_named = begin.is_some_and(|begin| begin.is_empty() || begin.ends_with('.'));
        is_named && (row.architectures.is_empty() || row.architectures.contains(&architecture))
    };
    match ROWS.iter().find(is_it) {
        Some(row) => row.nature,
        // A matrix is a matrix, whatever it is called.
        None if n_dims > 1 || name.ends_with(".bias") || is_known(stem) => Nature::Weight,
        None => Nature::Unknown,
    }
}

/// The architectures in which some tensors are added though that may not be right: each tensor by
/// its name, or its end, and why.
pub fn doubts() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    ROWS.iter().flat_map(|row| {
        let why = match row.nature {
            Nature::Unsure(why) => Some(why),
            Nature::Weight | Nature::NoWeight | Nature::Table | Nature::Unknown => None,
        };
        row.architectures.iter().filter_map(move |&architecture| Some((architecture, row.end, why?)))
    })
}

/// Whether a converter writes this name; norms and towers of what sees or hears are known by theirs.
fn is_known(stem: &str) -> bool {
    let stem = match stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((number, word)) if number.bytes().all(|b| b.is_ascii_digit()) => word,
        _ => stem,
    };
    let is_of_tower = ["v.", "a.", "mm.", "s.", "resampler."].iter().any(|begin| stem.starts_with(begin));
    let is_numbered = || {
        let named: Vec<&str> = stem.split('.').map(|part| if is_number(part) { "N" } else { part }).collect();
        let last: Vec<&str> = stem.split('.').map(|part| if is_number(part) { "X" } else { part }).collect();
        let (named, last) = (named.join("."), last.join("."));
        STEMS.split_ascii_whitespace().any(|known| known == named || known == last)
    };
    stem.contains("norm") || is_of_tower || stem.ends_with("scale") || is_numbered()
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_tensors_are_weights_and_the_table_has_the_rest() {
        for (architecture, name, n_dims, expected) in [
            ("llama", "blk.3.attn_q.weight", 2, Nature::Weight),
            ("llama", "rope_freqs.weight", 1, Nature::NoWeight),
            ("phi3", "rope_factors_long.weight", 1, Nature::NoWeight),
            ("bitnet", "blk.3.attn_q.weight", 2, TERNARY),
            ("bitnet", "blk.3.attn_q_norm.weight", 1, Nature::Weight),
            ("muse-spark", "blk.3.attn_q_norm.weight", 1, Nature::NoWeight),
            ("deepseek4", "blk.0.ffn_gate_tid2eid.weight", 2, Nature::Table),
            ("bailingmoe", "output.weight", 2, NORMALISED),
            ("bailingmoe2", "output.weight", 2, Nature::Weight),
            ("graniteswitch", "blk.1.attn_q.lora_a", 3, PRODUCT),
            ("mpt", "blk.1.ffn.act.scales", 1, Nature::NoWeight),
        ] {
            assert_eq!(nature(architecture, name, n_dims), expected, "{architecture} {name}");
        }
    }

    #[test]
    fn only_vectors_of_names_that_nobody_writes_are_unknown() {
        for name in [
            "blk.0.ssm_a",
            "blk.0.ssm_dt.bias",
            "blk.0.attn_sinks.weight",
            "blk.7.exp_probs_b.bias",
            "output_norm.weight",
            "blk.1.my_norm.weight",
            "convnext.3.gamma.weight",
            "blk.0.time_mix_w0.weight",
        ] {
            assert_eq!(nature("any", name, 1), Nature::Weight, "{name}");
        }
        assert_eq!(nature("any", "blk.0.mystery.weight", 1), Nature::Unknown);
        assert_eq!(nature("any", "blk.0.mystery.weight", 2), Nature::Weight, "a matrix");
        assert_eq!(nature("any", "blk.0.mystery.bias", 1), Nature::Weight, "a bias");
    }
}
