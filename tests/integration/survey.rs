//! What looks wrong with the inputs, and what is done about it: refused, forced, or said.

use std::path::Path;

use chatvec::pipeline::Budget;
use chatvec::survey::{SampleSettings, survey};
use chatvec::vector::pair;

use crate::support::{Draft, Tensor, Val};
use crate::trio::{
    F16, F32, Noise, Paths, Q4_K, Q8_0, Ran, TEMPLATE, Trio, bundled, change, drifted, get, names, read, requantise,
    store, weights,
};

/// Merges the trio, which must be refused with these words; forced, it must go on.
#[track_caller]
fn refused_unless_forced(trio: &Trio, words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let paths = trio.write(folder.path());
    let out = folder.path().join("out.gguf");
    for options in [&[][..], &["--dry-run"], &["--overwrite"], &["--json"]] {
        let ran = paths.command(&out, options);
        ran.says(4, words).says(4, &["nothing is written", "--force"]);
        assert_eq!(names(folder.path()), ["base.gguf", "chat.gguf", "cp.gguf"], "{options:?}");
    }
    let ran = paths.command(&out, &["--force"]);
    assert!([0, 10].contains(&ran.code), "{ran:#?}");
    ran.says(ran.code, words).says(ran.code, &["warning: forced: "]);
    assert_eq!(read(&out).tensors.len(), trio.cp.tensors.len());
}

/// Weights of no relation to the draft's, of the same size.
fn unrelated(draft: &Draft, seed: u64) -> Draft {
    let mut other = draft.clone();
    let mut noise = Noise(seed);
    for tensor in other.tensors.iter_mut().filter(|t| t.ne.len() > 1) {
        change(tensor, |weights| weights.fill_with(|| noise.normal() * 0.05));
    }
    other
}

#[test]
fn swapped_base_and_chat_are_refused() {
    let Trio { base, mut chat, cp } = Trio::small();
    // By the weights alone, as when the base's file has been given the template by hand.
    chat.keys.retain(|(key, _)| key != b"tokenizer.chat_template");
    let mut swapped = Trio { base: chat, chat: base, cp };
    swapped.chat.set("tokenizer.chat_template", Val::str(TEMPLATE));
    refused_unless_forced(&swapped, &["the model is nearer to chat than to base", "may be swapped"]);
}

#[test]
fn the_bundled_base_and_chat_are_refused_when_swapped() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Paths { base: bundled("chat"), chat: bundled("base"), cp: bundled("cp-de") };
    let ran = paths.command(&folder.path().join("out.gguf"), &[]);
    ran.says(4, &["nearer to chat than to base", "base has a chat template and chat has none"]);
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

#[test]
fn a_base_that_chat_was_not_made_from_is_refused() {
    let mut trio = Trio::small();
    trio.base = unrelated(&trio.base, 21);
    refused_unless_forced(&trio, &["of the weights' norm away from base", "not made from this base"]);
}

#[test]
fn a_model_that_was_not_made_from_the_base_is_refused() {
    let mut trio = Trio::small();
    trio.cp = unrelated(&trio.cp, 22);
    refused_unless_forced(&trio, &["the model is 1", "not made from this base"]);
}

/// Reorders the rows of the query and key weights as one of the converters does for rope: the
/// halves of each head interleaved.
fn permute(draft: &mut Draft) {
    for name in ["blk.0.attn_q.weight", "blk.0.attn_k.weight"] {
        change(draft.tensor(name), |weights| {
            for head in weights.chunks_mut(64 * 256) {
                let rows: Vec<Vec<f32>> = head.chunks(256).map(<[f32]>::to_vec).collect();
                for (i, row) in head.chunks_mut(256).enumerate() {
                    row.copy_from_slice(&rows[i / 2 + i % 2 * 32]);
                }
            }
        });
    }
}

#[test]
fn query_and_key_rows_in_another_order_are_refused() {
    let mut trio = Trio::small();
    permute(&mut trio.chat);
    refused_unless_forced(&trio, &["chat and base differ by", "attn_q and attn_k", "different converters"]);
    let mut trio = Trio::small();
    permute(&mut trio.cp);
    refused_unless_forced(&trio, &["model and base differ by", "attn_q and attn_k", "different converters"]);
}

#[test]
fn a_template_in_base_alone_is_refused() {
    let mut trio = Trio::small();
    trio.base.set("tokenizer.chat_template", Val::str(TEMPLATE));
    trio.chat.keys.retain(|(key, _)| key != b"tokenizer.chat_template");
    refused_unless_forced(&trio, &["base has a chat template and chat has none"]);
}

#[test]
fn a_template_in_the_model_alone_is_refused() {
    let mut trio = Trio::small();
    trio.cp.set("tokenizer.chat_template", Val::str(TEMPLATE));
    trio.chat.keys.retain(|(key, _)| key != b"tokenizer.chat_template");
    refused_unless_forced(&trio, &["the model has a chat template and chat has none"]);
}

/// Merges the trio, which must succeed with this warning.
#[track_caller]
fn warned(folder: &Path, trio: &Trio, words: &[&str]) -> Ran {
    let out = folder.join("out.gguf");
    let ran = trio.write(folder).command(&out, &["--overwrite"]);
    ran.says(0, words).says(0, &["warning: "]);
    assert!(out.exists());
    ran
}

#[test]
fn a_zero_vector_and_odd_templates_are_said_and_merged() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    trio.chat.tensors = trio.base.tensors.clone();
    warned(folder.path(), &trio, &["chat and base hold the same weights"]);

    let mut trio = Trio::small();
    trio.base.set("tokenizer.chat_template", Val::str(TEMPLATE));
    warned(folder.path(), &trio, &["base has a chat template too"]);

    let mut trio = Trio::small();
    trio.cp.tensors = trio.base.tensors.clone();
    warned(folder.path(), &trio, &["model and base hold the same weights"]);

    let mut trio = Trio::small();
    trio.chat.keys.retain(|(key, _)| key != b"tokenizer.chat_template");
    warned(folder.path(), &trio, &["chat has no chat template"]);
}

#[test]
fn a_plausible_trio_is_merged_without_a_word() {
    let folder = tempfile::tempdir().unwrap();
    for (name, paths) in [("small", Trio::small().write(folder.path())), ("bundled", Paths::bundled())] {
        let ran = paths.command(&folder.path().join(format!("{name}-out.gguf")), &[]);
        println!("{name}");
        ran.is_quiet();
    }
}

#[test]
fn a_model_may_go_far_in_pre_training_and_ratios_may_be_any() {
    // 40 % of the weights' norm, and vectors of 12 %: the most that is seen in practice.
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    trio.cp = drifted(&trio.base, "far", 31, 0.02);
    let mut chat = drifted(&trio.base, "far chat", 32, 0.006);
    chat.set("tokenizer.chat_template", Val::str(TEMPLATE));
    trio.chat = chat;
    let paths = trio.write(folder.path());
    for ratio in ["1", "-1", "3", "0.01"] {
        let ran = paths.command(&folder.path().join("out.gguf"), &["--ratio", ratio, "--overwrite", "--type", "F32"]);
        println!("{ratio}");
        ran.is_quiet();
    }
}

#[test]
fn norms_of_a_sample_are_near_those_of_all_rows() {
    let inputs = Paths::bundled().inputs(1.0);
    let pairs = pair(&inputs).unwrap();
    let looked =
        |n_weights| survey(&inputs, &pairs, &SampleSettings { n_weights, ..SampleSettings::default() }).unwrap();
    let (sampled, whole) = (looked(270_000), looked(u64::MAX));
    assert!(sampled.tensors.iter().any(|t| t.n_sampled < t.n_pieces));
    let (sampled, whole) = (sampled.total(), whole.total());
    for (what, sampled, whole) in [
        ("the vector", sampled.delta2.sqrt(), whole.delta2.sqrt()),
        ("the model", sampled.model2.sqrt(), whole.model2.sqrt()),
        ("pre-training", sampled.drift2.sqrt(), whole.drift2.sqrt()),
    ] {
        assert!((sampled - whole).abs() <= 0.05 * whole, "norm of {what}: {sampled}, of all rows {whole}");
    }
    let (sampled, whole) = (sampled.drift_cosine().unwrap(), whole.drift_cosine().unwrap());
    assert!((sampled - whole).abs() <= 0.03, "cosine {sampled}, of all rows {whole}");
}

#[test]
fn the_cosine_with_the_true_vector_is_forecast_whatever_the_model_is_stored_in() {
    let folder = tempfile::tempdir().unwrap();
    let trio = Trio::bundled();
    let all = |draft: &Draft| -> Vec<f32> { draft.tensors.iter().flat_map(weights).collect() };
    let difference =
        |a: &[f32], b: &[f32]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect() };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let tau = difference(&all(&trio.chat), &all(&trio.base));
    for (ty, tolerance) in [(F16, 0.001), (Q8_0, 0.005), (14, 0.01), (13, 0.03), (Q4_K, 0.08), (11, 0.08)] {
        let mut rounded = trio.clone();
        rounded.each(|draft| requantise(draft, ty));
        let found = difference(&all(&rounded.chat), &all(&rounded.base));
        let truth = dot(&tau, &found) / (dot(&tau, &tau) * dot(&found, &found)).sqrt();
        for cp in [trio.cp.clone(), rounded.cp.clone()] {
            let paths = Trio { cp, ..rounded.clone() }.write(folder.path());
            let inputs = paths.inputs(1.0);
            let cosine = survey(&inputs, &pair(&inputs).unwrap(), &SampleSettings::default()).unwrap().cosine.unwrap();
            assert!((cosine - truth).abs() < tolerance, "type {ty}: {cosine}, in truth {truth}");
        }
    }
}

#[test]
fn a_vector_that_is_mostly_rounding_error_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::bundled();
    trio.each(|draft| requantise(draft, Q4_K));
    let ran = trio.write(folder.path()).command(&folder.path().join("out.gguf"), &["--type", "Q8_0"]);
    ran.says(0, &["rounding error", "take base and chat as F16 or Q8_0"]);
}

#[test]
fn pieces_of_long_rows_are_all_of_the_row() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    // Longer than two pieces, in halves of their own.
    let n = 40_000;
    let mut noise = Noise(9);
    for (draft, scale) in [(&mut trio.base, 1.0), (&mut trio.chat, 1.04), (&mut trio.cp, 1.1)] {
        let mut noise_of = |i: usize| noise.normal() * if i % n < n / 2 { 0.001 } else { 0.01 };
        let values: Vec<f32> = (0..2 * n).map(|i| (0.05 + i as f32 * 1e-6) * scale + noise_of(i)).collect();
        let mut tensor = Tensor::new("blk.0.long.weight", &[n as u64, 2], F32);
        store(&mut tensor, F32, &values);
        draft.tensors.push(tensor);
    }
    let paths = trio.write(folder.path());
    let inputs = paths.inputs(1.0);
    let all = SampleSettings { n_weights: u64::MAX, ..SampleSettings::default() };
    let surveyed = survey(&inputs, &pair(&inputs).unwrap(), &all).unwrap();
    let written = paths.try_merge(&folder.path().join("out.gguf"), "keep", 1.0, &Budget::default()).unwrap();
    for (surveyed, measured) in surveyed.tensors.iter().zip(&written.measured.tensors) {
        assert_eq!(surveyed.name, measured.name);
        let (a, b) = (surveyed.moments, measured.moments);
        for (a, b) in [(a.delta2, b.delta2), (a.model2, b.model2), (a.drift2, b.drift2), (a.delta_drift, b.delta_drift)]
        {
            assert!((a - b).abs() <= 1e-9 * b.abs(), "{}: {a} {b}", surveyed.name);
        }
    }
}

#[test]
fn what_is_left_out_is_not_surveyed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let mut trio = Trio::small();
    // IQ4_NL cannot be read, and need not be.
    trio.cp.tensor("token_embd.weight").ty = 20;
    trio.cp.tensor("token_embd.weight").data = Some(vec![0; 256 * 8 / 32 * 18]);
    change(trio.base.tensor("output.weight"), |weights| weights.fill(5.0));
    let paths = trio.write(folder.path());
    paths.command(&out, &["--embeddings", "skip"]).is_quiet();
    let found = read(&out);
    for name in ["token_embd.weight", "output.weight"] {
        let data = |draft: &Draft| draft.clone().tensor(name).data();
        assert_eq!(data(&found), data(&trio.cp), "{name}");
    }
    assert_eq!(get(&found, "chatvec.embeddings"), Some(&Val::str("skip")));
}
