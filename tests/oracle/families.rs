//! The built-in engine beside llama.cpp, live: models of every family that differ in one thing
//! each, and sequences that are cut, shared and gone on with.

use std::path::Path;

use chatvec::gguf::{Limits, Model};
use chatvec::infer::{Engine, Fed, Host, LlamaCpp, Transformer};

use crate::support::Draft;
use crate::synthetic::{families, mamba, starcoder2, variant};

/// The context that the fixture's log-probabilities are of.
const N_CTX: usize = 512;

const MEMORY: u64 = 1 << 30;

fn open(draft: &Draft, folder: &Path) -> Model {
    Model::open(&draft.write(folder, "model.gguf"), &Limits::default()).expect("a model")
}

fn llama_cpp(model: &Model) -> LlamaCpp {
    let program = Path::new(env!("CARGO_BIN_EXE_chatvec-command"));
    LlamaCpp::load(program, model, &[], 2).unwrap_or_else(|e| panic!("{e}"))
}

/// Feeds a sequence, and gives the logits after each token.
fn rows(engine: &mut dyn Engine, sequence: usize, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    let fed = [Fed { sequence, tokens, first: 0 }];
    engine.feed(&fed, &mut |_, _, logits| rows.push(logits.to_vec())).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(rows.len(), tokens.len());
    rows
}

fn log_softmax(logits: &[f32]) -> impl Iterator<Item = f64> {
    let largest = logits.iter().fold(f64::NEG_INFINITY, |m, &l| m.max(f64::from(l)));
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - largest).exp()).sum();
    logits.iter().map(move |&l| f64::from(l) - largest - sum.ln())
}

/// The largest and the mean difference of log-probabilities of all tokens.
fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> [f64; 2] {
    assert_eq!(a.len(), b.len());
    let of_rows = |(a, b): (&Vec<f32>, &Vec<f32>)| log_softmax(a).zip(log_softmax(b)).collect::<Vec<_>>();
    let all: Vec<f64> = a.iter().zip(b).flat_map(of_rows).map(|(a, b)| (a - b).abs()).collect();
    assert!(all.iter().all(|d| d.is_finite()));
    [all.iter().copied().fold(0.0, f64::max), all.iter().sum::<f64>() / all.len() as f64]
}

#[test]
fn every_f32_model_is_computed_as_llama_cpp_does() {
    let (goldens, folder) = (families(), tempfile::tempdir().expect("a folder"));
    let all: Vec<u32> = serde_json::from_value(goldens["tokens"].clone()).expect("tokens");
    let (mut failures, mut n) = (Vec::new(), 0);
    for (name, entry) in goldens["variants"].as_object().expect("variants") {
        let Ok([largest, mean]) = serde_json::from_value::<[f64; 2]>(entry["bounds"].clone()) else { continue };
        let own = serde_json::from_value(entry["tokens"].clone());
        let tokens = &own.unwrap_or(all.clone())[..entry["n_tokens"].as_u64().expect("a number") as usize];
        let model = open(&variant(&goldens, name), folder.path());
        n += 1;
        // Built in or not: an architecture that is not can still be told from a wrong one.
        let built_in = match Transformer::load(&model, 2) {
            Ok(built_in) => built_in,
            Err(e) => {
                failures.push(format!("{name}: {e}"));
                continue;
            }
        };
        let ours = rows(&mut *built_in.sequences(1, N_CTX, N_CTX, MEMORY).expect("memory"), 0, tokens);
        let theirs = rows(&mut *llama_cpp(&model).sequences(1, N_CTX, N_CTX, MEMORY).expect("memory"), 0, tokens);
        let found = difference(&ours, &theirs);
        // Of all tokens, where the fixture has the likeliest ones.
        if found[0] > 2.0 * largest || found[1] > 2.0 * mean {
            failures.push(format!("{name}: {found:?}, beyond {largest:e} and {mean:e}"));
        }
    }
    assert!(n > 70, "{n}");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What sequences say that are cut and shared in all ways, and what they would say from the start.
fn cut_and_shared(host: &dyn Host, tokens: &[u32]) -> [f64; 2] {
    let mut engine = host.sequences(3, N_CTX, 64, MEMORY).unwrap_or_else(|e| panic!("{e}"));
    rows(&mut *engine, 0, &tokens[..30]);
    engine.share(0, 2, 21).expect("shared");
    engine.truncate(0, 13).expect("cut");
    engine.share(2, 1, 21).expect("shared whole");
    engine.truncate(1, 0).expect("emptied");
    let other: Vec<u32> = tokens.iter().rev().copied().collect();
    // All of them at once, as conversations go.
    let fed = [
        Fed { sequence: 0, tokens: &tokens[13..40], first: 0 },
        Fed { sequence: 1, tokens: &other[..20], first: 20 },
        Fed { sequence: 2, tokens: &other[21..33], first: 0 },
    ];
    let mut found = [Vec::new(), Vec::new(), Vec::new()];
    engine.feed(&fed, &mut |i, _, logits| found[i].push(logits.to_vec())).unwrap_or_else(|e| panic!("{e}"));
    assert!(found[1].is_empty());
    let mixed = [&tokens[..21], &other[21..33]].concat();
    assert_eq!((engine.tokens(0), engine.tokens(1), engine.tokens(2)), (&tokens[..40], &other[..20], &mixed[..]));
    drop(engine);
    let mut alone = host.sequences(1, N_CTX, 64, MEMORY).unwrap_or_else(|e| panic!("{e}"));
    let first = rows(&mut *alone, 0, &tokens[..40]).split_off(13);
    alone.truncate(0, 0).expect("emptied");
    let second = rows(&mut *alone, 0, &mixed).split_off(21);
    let [a, b] = [difference(&found[0], &first), difference(&found[2], &second)];
    [a[0].max(b[0]), a[1].max(b[1])]
}

#[test]
fn sequences_are_cut_and_shared_as_if_they_began_anew() {
    let (goldens, folder) = (families(), tempfile::tempdir().expect("a folder"));
    let tokens: Vec<u32> = serde_json::from_value(goldens["tokens"].clone()).expect("tokens");
    // A cache, one with windows of twelve tokens, one of an architecture that is not built in, and a
    // state that has no past.
    let drafts = [variant(&goldens, "qwen3"), variant(&goldens, "gemma3-pattern"), starcoder2(), mamba()];
    for draft in drafts {
        let model = open(&draft, folder.path());
        let [largest, mean] = cut_and_shared(&llama_cpp(&model), &tokens);
        let name = model.metadata().get_str("general.architecture").map(ToString::to_string);
        assert!(largest < 1e-4 && mean < 1e-5, "{name:?}: {largest:e}, {mean:e}");
        if let Ok(built_in) = Transformer::load(&model, 2) {
            let [largest, mean] = cut_and_shared(&built_in, &tokens);
            assert!(largest < 1e-4 && mean < 1e-5, "built-in {name:?}: {largest:e}, {mean:e}");
        }
    }
}
