//! Adapters that are added while a model runs say what their sums with its weights say.

use chatvec::infer::LoraFile;

use super::synthetic::{draft, run};
use super::*;
use crate::support::{Draft, Tensor, Val};
use crate::trio::{F16, F32, Noise, encode, name, weights};

/// Rank of the factors.
const RANK: usize = 4;

/// An adapter of some tensors of a model, its factors in a type, and the model with it added.
fn adapter(model: &Draft, tensors: &[&str], alpha: Option<f32>, factor: f32, ty: u32) -> (Draft, Draft) {
    let mut adapter = Draft::default();
    adapter.set("general.type", Val::str("adapter"));
    adapter.set("adapter.type", Val::str("lora"));
    let architecture = model.keys.iter().find(|(key, _)| key == b"general.architecture").expect("an architecture");
    adapter.set("general.architecture", architecture.1.clone());
    if let Some(alpha) = alpha {
        adapter.set("adapter.lora.alpha", Val::F32(alpha));
    }
    let own = alpha.filter(|alpha| *alpha != 0.0).map_or(1.0, |alpha| alpha / RANK as f32);
    let scale = f64::from(factor * own);
    let mut sum = model.clone();
    let mut numbers = Noise(7);
    for tensor in tensors {
        let target = sum.tensor(tensor);
        let ne: Vec<usize> = target.ne.iter().map(|&n| n as usize).collect();
        let (row_len, n_rows, n) = (ne[0], ne[1], ne.get(2).copied().unwrap_or(1));
        let is_embedding = *tensor == "token_embd.weight";
        let a_ne = if is_embedding { [RANK, n_rows] } else { [row_len, RANK] };
        let b_ne = if is_embedding { [RANK, row_len] } else { [RANK, n_rows] };
        let mut factor = |suffix: &str, [len, rows]: [usize; 2]| {
            let data = encode(ty, &numbers.normals(len * rows * n, 0.15));
            let ne: Vec<u64> = [len, rows, n].map(|n| n as u64)[..ne.len()].to_vec();
            let tensor = Tensor { data: Some(data), ..Tensor::new(&format!("{tensor}{suffix}"), &ne, ty) };
            let values = weights(&tensor);
            adapter.tensors.push(tensor);
            values
        };
        let (a, b) = (factor(".lora_a", a_ne), factor(".lora_b", b_ne));
        let mut all = weights(target);
        for (k, w) in all.chunks_exact_mut(row_len * n_rows).enumerate() {
            let (a, b) = (&a[k * a_ne[0] * a_ne[1]..], &b[k * b_ne[0] * b_ne[1]..]);
            for (o, row) in w.chunks_exact_mut(row_len).enumerate() {
                for (i, w) in row.iter_mut().enumerate() {
                    let product = |r: usize| match is_embedding {
                        true => f64::from(a[o * RANK + r]) * f64::from(b[i * RANK + r]),
                        false => f64::from(b[o * RANK + r]) * f64::from(a[r * row_len + i]),
                    };
                    *w = (f64::from(*w) + scale * (0..RANK).map(product).sum::<f64>()) as f32;
                }
            }
        }
        target.data = Some(encode(F32, &all));
    }
    (adapter, sum)
}

fn run_with(model: &Path, adapters: &[(&Path, f32)], tokens: &[u32]) -> Vec<Vec<f32>> {
    let (model, files) = (open(model), adapters.iter().map(|(path, f)| (open(path), *f)).collect::<Vec<_>>());
    let loras: Vec<LoraFile<'_>> = files.iter().map(|(model, factor)| LoraFile { model, factor: *factor }).collect();
    let transformer = Transformer::load_with(&model, &loras, 2).unwrap_or_else(|e| panic!("{e}"));
    let mut rows = Vec::new();
    let mut session = Session::new(&transformer, 512, MEMORY).expect("memory");
    session.feed(tokens, 0, &mut |_, logits| rows.push(logits.to_vec())).expect("fits");
    rows
}

fn largest(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let mut spread = Spread::default();
    for (a, b) in a.iter().zip(b) {
        log_softmax(a).into_iter().zip(log_softmax(b)).for_each(|(a, b)| spread.add(a, b));
    }
    spread.largest
}

#[test]
fn a_model_with_an_adapter_is_the_sum_of_both() {
    let (synthetic, families) = (fixture("synthetic.json"), fixture("families.json"));
    let tokens: Vec<u32> = ids(&synthetic["tokens"])[..24].to_vec();
    let folder = tempfile::tempdir().expect("a folder");
    let dense: &[&str] = &["blk.0.attn_q.weight", "blk.1.ffn_down.weight", "output.weight", "token_embd.weight"];
    let experts: &[&str] = &["blk.0.ffn_gate_exps.weight", "blk.1.ffn_down_exps.weight", "blk.1.ffn_gate_inp.weight"];
    let fused: &[&str] = &["blk.0.attn_qkv.weight", "blk.1.ffn_up.weight"];
    let cases = [
        (&synthetic, "llama-gqa", dense, None, 1.0, F32),
        (&synthetic, "llama-gqa", dense, Some(8.0), 0.5, F16),
        (&synthetic, "qwen2", dense, Some(0.0), -1.0, F32),
        (&families, "llama-experts", experts, Some(6.0), 1.0, F32),
        (&families, "qwen3", dense, Some(6.0), 1.0, F32),
        (&families, "phi3", fused, None, 1.0, F32),
        (&families, "gemma3-untied", &dense[..3], None, 0.7, F32),
    ];
    for (goldens, variant, tensors, alpha, factor, ty) in cases {
        let whole = draft(goldens, variant);
        let (adapter, sum) = adapter(&whole, tensors, alpha, factor, ty);
        let path = whole.write(folder.path(), "model.gguf");
        let adapter = adapter.write(folder.path(), "adapter.gguf");
        let expected = run(&sum.write(folder.path(), "sum.gguf"), &tokens);
        let found = run_with(&path, &[(&adapter, factor)], &tokens);
        // F16 factors round what they are multiplied with; so does GELU.
        let bound = if ty == F16 || variant.starts_with("gemma") { 2e-2 } else { 2e-4 };
        let apart = largest(&found, &expected);
        assert!(apart < bound, "{variant}: {apart}");
        let without = largest(&run(&path, &tokens), &expected);
        assert!(without > 10.0 * bound, "{variant}: the adapter changes {without}");
        // Half of it twice is all of it.
        let halves = run_with(&path, &[(&adapter, factor / 2.0), (&adapter, factor / 2.0)], &tokens);
        assert!(largest(&halves, &found) < bound, "{variant}");
    }
}

#[test]
fn what_is_no_adapter_of_a_model_is_refused() {
    let goldens = fixture("synthetic.json");
    let folder = tempfile::tempdir().expect("a folder");
    let model = draft(&goldens, "llama").write(folder.path(), "model.gguf");
    let tied = draft(&goldens, "llama-tied").write(folder.path(), "tied.gguf");
    let (fine, _) = adapter(&draft(&goldens, "llama"), &["blk.0.attn_q.weight"], None, 1.0, F32);
    let refused = |model: &Path, adapter: &Draft, words: &[&str]| {
        let file = open(&adapter.write(folder.path(), "adapter.gguf"));
        let lora = LoraFile { model: &file, factor: 1.0 };
        let e = Transformer::load_with(&open(model), &[lora], 1).expect_err("no adapter").to_string();
        words.iter().for_each(|word| assert!(e.contains(word), "{e}\nwithout {word}"));
    };
    let changed = |key: &str, val: Val| {
        let mut draft = fine.clone();
        draft.set(key, val);
        draft
    };
    refused(&model, &changed("general.type", Val::str("model")), &["adapter.gguf", "general.type", "adapter"]);
    refused(&model, &changed("adapter.type", Val::str("ia3")), &["adapter.type", "lora", "ia3"]);
    refused(&model, &changed("general.architecture", Val::str("qwen2")), &["general.architecture", "llama"]);
    refused(&model, &changed("adapter.lora.alpha", Val::str("8")), &["adapter.lora.alpha", "a number"]);
    refused(&model, &changed("adapter.lora.alpha", Val::F32(f32::INFINITY)), &["adapter.lora.alpha", "a number"]);
    refused(&model, &changed("adapter.lora.alpha", Val::F64(1e300)), &["adapter.lora.alpha", "a number"]);
    let mut empty = fine.clone();
    empty.tensors.clear();
    refused(&model, &empty, &["at least one pair"]);
    refused(&model, &changed("adapter.alora.invocation_tokens", Val::U32(1)), &["adapter.alora.invocation_tokens"]);
    for i in 0..2 {
        let mut draft = fine.clone();
        let lost = draft.tensors.remove(i);
        refused(&model, &draft, &[name(&lost), "no such tensor"]);
    }
    let mut draft = fine.clone();
    draft.tensors[0].ne[0] /= 2;
    draft.tensors[0].data = None;
    refused(&model, &draft, &["blk.0.attn_q.weight.lora_a", "expected"]);
    let mut draft = fine.clone();
    draft.tensors.iter_mut().for_each(|t| t.name = name(t).replace("attn_q", "attn_x").into_bytes());
    refused(&model, &draft, &["blk.0.attn_x.weight.lora_a", "none of this name"]);
    let mut draft = fine.clone();
    draft.tensors.push(Tensor::new("blk.0.attn_q.weight", &[4], F32));
    refused(&model, &draft, &["blk.0.attn_q.weight", ".lora_a"]);
    let (rows, _) = adapter(&self::draft(&goldens, "llama-tied"), &["token_embd.weight"], None, 1.0, F32);
    refused(&tied, &rows, &["token_embd.weight", "gives the logits"]);
}
