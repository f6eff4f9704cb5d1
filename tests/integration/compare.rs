//! Two models against each other: what llama-perplexity prints and numpy computes of the same
//! logits, and the table of tensors.
//!
//! The logits in fixtures/compare are llama.cpp's. Its `--kl-divergence` saves the reference's
//! log-probabilities in 16 bits; numpy with the same rounding gives its figures to the last digit,
//! so what differs from exact ones beyond the tolerances here is ours.

use std::error::Error as StdError;
use std::fs;
use std::path::PathBuf;

use chatvec::eval::{
    self, Comparison, Error, Estimate, Keep, Reason, Reference, Scorer, Side, Tau, Text, compare, compare_tensors,
    perplexity, same_vocabulary,
};
use chatvec::gguf::{Limits, Model};
use chatvec::pipeline::Budget;
use serde_json::Value;

use crate::support::{Tensor, Val, valid};
use crate::trio::{F32, Q4_K, bundled, change, read, requantise};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/compare").join(name)
}

fn goldens() -> Value {
    serde_json::from_slice(&fs::read(fixture("goldens.json")).unwrap()).unwrap()
}

fn tokens(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect()
}

/// Takes a position and its logits.
type Row<'a> = dyn FnMut(usize, &[f32]) + 'a;
type Boxed = Box<dyn StdError + Send + Sync>;

/// Says given rows, chunk after chunk.
#[derive(Clone)]
struct Rows {
    n_vocab: usize,
    rows: Vec<Vec<f32>>,
    next: usize,
    asked: Vec<(Vec<u32>, usize)>,
}

impl Rows {
    fn new(rows: Vec<Vec<f32>>) -> Self {
        Rows { n_vocab: rows[0].len(), rows, next: 0, asked: Vec::new() }
    }

    /// The logits of a model in the fixtures.
    fn of(model: &str, n_vocab: usize) -> Self {
        let bytes = fs::read(fixture(&format!("logits-{model}.f32"))).unwrap();
        let logits: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Rows::new(logits.chunks(n_vocab).map(<[f32]>::to_vec).collect())
    }
}

impl Scorer for Rows {
    fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    fn logits(&mut self, tokens: &[u32], first: usize, row: &mut Row<'_>) -> Result<(), Boxed> {
        self.asked.push((tokens.to_vec(), first));
        for position in first..tokens.len() {
            row(position, &self.rows[self.next]);
            self.next += 1;
        }
        Ok(())
    }
}

/// A scorer that is a function of tokens and the row it is to say.
struct With<F>(F);

impl<F: FnMut(&[u32], usize, &mut Row<'_>) -> Result<(), Boxed>> Scorer for With<F> {
    fn n_vocab(&self) -> usize {
        4
    }

    fn logits(&mut self, tokens: &[u32], first: usize, row: &mut Row<'_>) -> Result<(), Boxed> {
        (self.0)(tokens, first, row)
    }
}

/// Every row the same.
fn constant(logits: [f32; 4]) -> impl Scorer {
    With(move |tokens: &[u32], first: usize, row: &mut Row<'_>| {
        (first..tokens.len()).for_each(|position| row(position, &logits));
        Ok(())
    })
}

fn short_text(goldens: &Value) -> Text {
    Text::new(tokens(&goldens["short"]["tokens"]), 64, None).unwrap()
}

/// Each comparison of the goldens with the scorers it is made of.
fn short_runs(goldens: &Value) -> Vec<(&Value, Rows, Rows)> {
    let n_vocab = goldens["short"]["n_vocab"].as_u64().unwrap() as usize;
    let rows = |name: &Value| Rows::of(name.as_str().unwrap(), n_vocab);
    let runs = goldens["short"]["runs"].as_array().unwrap();
    runs.iter().map(|run| (run, rows(&run["reference"]), rows(&run["other"]))).collect()
}

/// Values and errors by the names of the goldens, shares in percent as they have them.
fn figures(c: &Comparison) -> Vec<(&'static str, f64, Option<f64>)> {
    let both = |name, e: Estimate| (name, e.value, e.error);
    let percent = |name, e: Estimate| (name, e.value * 100.0, e.error.map(|e| e * 100.0));
    vec![
        both("ppl", c.perplexity_b),
        both("ppl_reference", c.perplexity_a),
        both("ln_ratio", c.ln_ratio),
        both("ratio", c.ratio),
        ("correlation_percent", c.correlation.unwrap() * 100.0, None),
        both("kl_mean", c.kl.mean),
        ("kl_median", c.kl.median, None),
        ("kl_p90", c.kl.p90, None),
        ("kl_p95", c.kl.p95, None),
        ("kl_p99", c.kl.p99, None),
        ("kl_p999", c.kl.p999, None),
        ("kl_max", c.kl.max, None),
        percent("same_top_percent", c.same_top),
        percent("delta_p_mean_percent", c.delta_p),
        percent("delta_p_rms_percent", c.delta_p_rms),
    ]
}

#[track_caller]
fn assert_near(name: &str, found: f64, expected: &Value, tolerance: f64) {
    let expected = expected.as_f64().unwrap();
    assert!((found - expected).abs() <= tolerance, "{name}: {found}, expected {expected}");
}

#[test]
fn a_comparison_has_the_figures_of_numpy_in_f64() {
    let goldens = goldens();
    for (run, mut a, mut b) in short_runs(&goldens) {
        let found = compare(&mut a, &mut b, &short_text(&goldens)).unwrap();
        assert_eq!((found.n_ctx, found.n_chunks, found.n_scored, found.is_short), (64, 4, 124, false));
        for (name, value, error) in figures(&found) {
            let expected = &run["exact"][name];
            assert_near(name, value, &expected[0], 1e-9 * value.abs());
            assert_eq!(error.is_some(), !expected[1].is_null(), "{name}");
            if let Some(error) = error {
                assert_near(name, error, &expected[1], 1e-9 * error);
            }
        }
    }
}

/// Digits of llama-perplexity's figures that do not depend on the 16 bits of its file, and the rest
/// within what these change. Its perplexity of the reference is taken from the run that computes
/// logits, see `eval::compare`.
#[test]
fn a_comparison_has_the_figures_that_llama_perplexity_prints() {
    let goldens = goldens();
    for (run, mut a, mut b) in short_runs(&goldens) {
        let found = compare(&mut a, &mut b, &short_text(&goldens)).unwrap();
        let printed = &run["figures"];
        assert_near("ppl", found.perplexity_b.value, &printed["ppl"][0], 1e-4);
        assert_near("ppl ±", found.perplexity_b.error.unwrap(), &printed["ppl"][1], 1e-4);
        assert_near("ppl of the reference", found.perplexity_a.value, &printed["ppl_reference_exact"][0], 2e-4);
        assert_near(
            "ppl of the reference ±",
            found.perplexity_a.error.unwrap(),
            &printed["ppl_reference_exact"][1],
            2e-4,
        );
        assert_near("same top", found.same_top.value * 100.0, &printed["same_top_percent"][0], 5e-4);
        assert_near("same top ±", found.same_top.error.unwrap() * 100.0, &printed["same_top_percent"][1], 5e-4);
        assert_near("Δp", found.delta_p.value * 100.0, &printed["delta_p_mean_percent"][0], 1e-3);
        assert_near("Δp ±", found.delta_p.error.unwrap() * 100.0, &printed["delta_p_mean_percent"][1], 1e-3);
        assert_near("RMS Δp", found.delta_p_rms.value * 100.0, &printed["delta_p_rms_percent"][0], 1e-3);
        assert_near("RMS Δp ±", found.delta_p_rms.error.unwrap() * 100.0, &printed["delta_p_rms_percent"][1], 1e-3);
        assert_near("KL ±", found.kl.mean.error.unwrap(), &printed["kl_mean"][1], 1e-5);
        assert_near("mean KL", found.kl.mean.value, &printed["kl_mean"][0], 5e-5);
        // A position's log-probabilities are off by up to half a step of 16 / 65535.
        let one = 16.0 / 65535.0 / 2.0 * 2.0;
        for (name, value) in [
            ("kl_median", found.kl.median),
            ("kl_p90", found.kl.p90),
            ("kl_p95", found.kl.p95),
            ("kl_p99", found.kl.p99),
            ("kl_p999", found.kl.p999),
            ("kl_max", found.kl.max),
        ] {
            assert_near(name, value, &printed[name][0], one);
        }
    }
}

#[test]
fn a_reference_that_keeps_everything_is_exact() {
    let goldens = goldens();
    let text = short_text(&goldens);
    for (_, a, b) in short_runs(&goldens) {
        let exact = compare(&mut a.clone(), &mut b.clone(), &text).unwrap();
        let keep = Keep { n_top: 768, n_draws: 64 };
        let reference = Reference::new(&mut a.clone(), text.clone(), keep).unwrap();
        let found = reference.compare(&mut b.clone(), &text).unwrap();
        assert_eq!(found.kl.drawing_error, 0.0);
        for ((name, found, _), (_, exact, _)) in figures(&found).into_iter().zip(figures(&exact)) {
            assert!((found - exact).abs() <= 1e-12 * exact.abs(), "{name}");
        }
    }
}

#[test]
fn a_reference_says_how_far_off_it_may_be() {
    let goldens = goldens();
    let text = short_text(&goldens);
    for (_, a, b) in short_runs(&goldens) {
        let exact = compare(&mut a.clone(), &mut b.clone(), &text).unwrap();
        for keep in [(4, 16), (16, 64), (64, 256), (1, 8)].map(|(n_top, n_draws)| Keep { n_top, n_draws }) {
            let reference = Reference::new(&mut a.clone(), text.clone(), keep).unwrap();
            assert_eq!(reference.n_bytes(), 124 * keep.bytes_per_position(768));
            assert_eq!(reference.perplexity(), exact.perplexity_a);
            let found = reference.compare(&mut b.clone(), &text).unwrap();
            let (kl, expected) = (&found.kl, exact.kl.mean.value);
            assert!(kl.mean_lower <= expected && expected <= kl.mean_upper, "{keep:?} {kl:?}");
            assert!((kl.mean.value - expected).abs() <= 3.0 * kl.drawing_error, "{keep:?} {kl:?} {expected}");
            assert!(kl.drawing_error > 0.0 && kl.drawing_error < kl.mean_upper - kl.mean_lower);
            // All but the divergence is known exactly.
            assert_eq!(eval::Comparison { kl: exact.kl.clone(), ..found }, exact);
        }
    }
}

#[test]
fn a_model_does_not_differ_from_itself() {
    let goldens = goldens();
    let text = short_text(&goldens);
    let (_, a, _) = short_runs(&goldens).remove(0);
    let reference = Reference::new(&mut a.clone(), text.clone(), Keep { n_top: 16, n_draws: 8 }).unwrap();
    let direct = compare(&mut a.clone(), &mut a.clone(), &text).unwrap();
    for found in [direct, reference.compare(&mut a.clone(), &text).unwrap()] {
        assert!(found.kl.max.abs() < 1e-9 && found.kl.mean_lower.abs() < 1e-9, "{:?}", found.kl);
        assert_eq!((found.ln_ratio.value, found.same_top.value, found.delta_p_rms.value), (0.0, 1.0, 0.0));
        assert!((found.correlation.unwrap() - 1.0).abs() < 1e-12);
    }
}

#[test]
fn chunks_begin_with_bos_and_their_second_half_is_scored() {
    let rows = || Rows::new(vec![vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]; 100]);
    let text = Text::new((0..9).chain(0..9).collect(), 8, Some(7)).unwrap();
    assert_eq!((text.n_chunks(), text.n_scored(), text.is_short()), (2, 6, false));
    let mut scorer = rows();
    let found = perplexity(&mut scorer, &text).unwrap();
    // The last token of a chunk is only scored.
    assert_eq!(scorer.asked, [(vec![7, 1, 2, 3, 4, 5, 6], 4), (vec![7, 0, 1, 2, 3, 4, 5], 4)]);
    // Scored are 5, 6, 7 of the first and 4, 5, 6 of the second, each by its own logit.
    let sum: f64 = (0..9).map(|l| f64::from(l).exp()).sum();
    assert!((found.value - (sum.ln() - 33.0 / 6.0).exp()).abs() < 1e-9);

    let mut scorer = rows();
    perplexity(&mut scorer, &Text::new((0..9).collect(), 8, None).unwrap()).unwrap();
    assert_eq!(scorer.asked, [(vec![0, 1, 2, 3, 4, 5, 6], 4)]);
}

#[test]
fn a_text_shorter_than_a_chunk_is_one_and_says_so() {
    let text = Text::new(vec![0, 1, 2, 3, 0], 512, None).unwrap();
    assert_eq!((text.n_ctx(), text.n_chunks(), text.n_scored(), text.is_short()), (5, 1, 2, true));
    let found = compare(&mut constant([0.0; 4]), &mut constant([0.0, 0.0, 0.0, 1.0]), &text).unwrap();
    assert!(found.is_short && found.n_scored == 2);
    assert_eq!(found.perplexity_a.value.round(), 4.0);
    assert_eq!(found.n_tied_tops, 2);

    let long = Text::new(vec![0; 100], 10, None).unwrap();
    assert_eq!(
        (long.n_chunks(), long.clone().first_chunks(3).n_chunks(), long.first_chunks(99).n_chunks()),
        (10, 3, 10)
    );
    assert!(matches!(Text::new(vec![0, 1], 512, None), Err(Error::TooShort { n_tokens: 2 })));
    assert!(matches!(Text::new(vec![0; 9], 2, None), Err(Error::Context { n_ctx: 2 })));
    assert_eq!(Text::new(vec![0; 3], 3, None).unwrap().n_scored(), 1);
}

#[test]
fn results_are_values_for_programs() {
    let text = Text::new(vec![0, 1, 2, 3, 0], 512, None).unwrap();
    // p is e^-3e38: the perplexity is beyond f64.
    let mut absurd = constant([3e38, -3e38, -3e38, -3e38]);
    let found = compare(&mut constant([0.0; 4]), &mut absurd, &text).unwrap();
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!((&json["n_scored"], &json["perplexity_b"]["value"]), (&Value::from(2), &Value::Null));
    assert!(json["kl"]["mean"]["value"].as_f64().unwrap() > 1e38);
}

#[test]
fn what_a_model_must_not_say_is_named() {
    let text = Text::new(vec![0, 1, 2, 3, 0, 1, 2, 3], 4, None).unwrap();
    let said = |mut b: Box<dyn Scorer>| compare(&mut constant([0.0; 4]), b.as_mut(), &text).unwrap_err().to_string();
    let with = |f: fn(&mut Row<'_>)| -> Box<dyn Scorer> {
        Box::new(With(move |_: &[u32], _: usize, row: &mut Row<'_>| {
            f(row);
            Ok(())
        }))
    };
    let message = said(with(|row| row(2, &[0.0, f32::NAN, 0.0, 0.0])));
    assert!(message.starts_with("model B: chunk 0, position 2: the logit of token 1 is NaN"), "{message}");
    let message = said(with(|row| row(2, &[0.0, 0.0, 0.0, f32::NEG_INFINITY])));
    assert!(message.contains("the logit of token 3 is -inf"), "{message}");
    let message = said(with(|row| row(2, &[0.0; 5])));
    assert_eq!(message, "model B: chunk 0: expected 4 logits for position 2, found 5");
    let message = said(with(|row| row(1, &[0.0; 4])));
    assert_eq!(message, "model B: chunk 0: expected 4 logits for position 2, found a row for position 1");
    let message = said(with(|_| ()));
    assert_eq!(message, "model B: chunk 0: expected 4 logits for position 2, found the end");
    let message = said(with(|row| (2..4).for_each(|position| row(position, &[0.0; 4]))));
    assert_eq!(message, "model B: chunk 0: expected 4 logits for position 3, found a row for position 3");

    let failing = |_: &[u32], _: usize, _: &mut Row<'_>| Err("out of memory".into());
    let error = compare(&mut constant([0.0; 4]), &mut With(failing), &text).unwrap_err();
    assert_eq!(error.source().unwrap().to_string(), "out of memory");
    assert!(matches!(error, Error::Scorer { side: Side::B, chunk: 0, .. }));
}

#[test]
fn models_and_texts_that_do_not_fit_are_refused() {
    let text = |tokens: &[u32], bos| Text::new(tokens.to_vec(), 4, bos).unwrap();
    let plain = text(&[0, 1, 2, 3], None);
    let mut four = constant([0.0; 4]);
    let mut five = Rows::new(vec![vec![0.0; 5]; 9]);
    let error = compare(&mut four, &mut five, &plain).unwrap_err();
    assert!(matches!(error, Error::VocabularySize { a: 4, b: 5 }));
    let error = perplexity(&mut four, &text(&[0, 1, 4, 3], None)).unwrap_err();
    assert!(matches!(error, Error::NoSuchToken { index: 2, token: 4, n_vocab: 4, .. }));
    let error = perplexity(&mut four, &text(&[0, 1, 2, 3], Some(9))).unwrap_err();
    assert!(matches!(error, Error::NoSuchToken { token: 9, .. }));

    let reference = Reference::new(&mut four, plain.clone(), Keep::default()).unwrap();
    assert!(matches!(reference.compare(&mut five, &plain), Err(Error::VocabularySize { a: 4, b: 5 })));
    let error = reference.compare(&mut four, &text(&[0, 1, 3, 3], None)).unwrap_err();
    assert!(matches!(error, Error::Text { index: 2, a: Some(2), b: Some(3), .. }), "{error}");
    let error = reference.compare(&mut four, &text(&[0, 1, 2, 3, 0, 1, 2, 3], None)).unwrap_err();
    assert!(error.to_string().contains("token 4 of 4 is absent for model A, of 8 0 for model B"), "{error}");
    let error = reference.compare(&mut four, &text(&[0, 1, 2, 3], Some(0))).unwrap_err();
    assert!(matches!(error, Error::Chunks { key: "the BOS token", .. }), "{error}");
    let error = reference.compare(&mut four, &Text::new(vec![0, 1, 2, 3], 3, None).unwrap()).unwrap_err();
    assert!(matches!(error, Error::Chunks { key: "n_ctx", .. }), "{error}");
}

#[test]
fn vocabularies_are_compared_token_by_token() {
    let open = |name: &str| Model::open(&bundled(name), &Limits::default()).unwrap();
    same_vocabulary(&open("base"), &open("cp-de")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let draft = |tokens: Option<&[&str]>| {
        let mut draft = valid();
        // Without embeddings, any number of tokens will do.
        draft.tensors.clear();
        match tokens {
            Some(tokens) => draft.set("tokenizer.ggml.tokens", Val::strs(tokens)),
            None => draft.keys.retain(|(key, _)| key != b"tokenizer.ggml.tokens"),
        }
        Model::open(&draft.write(folder.path(), "model.gguf"), &Limits::default()).unwrap()
    };
    let own = draft(Some(&["a", "b", "c", "d"]));
    let error = same_vocabulary(&own, &draft(Some(&["a", "b", "x", "y"]))).unwrap_err();
    assert!(error.to_string().starts_with("token 2 is \"c\" in model A but \"x\" in model B"), "{error}");
    let error = same_vocabulary(&own, &draft(Some(&["a", "b"]))).unwrap_err();
    assert!(matches!(error, Error::VocabularySize { a: 4, b: 2 }));
    assert!(matches!(same_vocabulary(&own, &draft(None)), Err(Error::NoVocabulary { .. })));
}

#[test]
fn the_table_of_tensors_has_the_figures_of_numpy() {
    let goldens = goldens();
    let open = |name: &str| Model::open(&bundled(name), &Limits::default()).unwrap();
    let (base, chat, cp) = (open("base"), open("chat"), open("cp-de"));
    let tau = Tau { plus: &chat, minus: Some(&base) };
    let budget = |memory, threads| Budget { memory, threads };
    let found = compare_tensors(&base, &cp, Some(tau), &budget(1 << 30, 3)).unwrap();
    assert_eq!((found.tensors.len(), found.not_compared.len()), (30, 0));
    let rows = found.tensors.iter().map(|t| (t.name.as_str(), &t.difference)).chain([("total", &found.total)]);
    for (name, sums) in rows {
        let expected = &goldens["tensors"][name];
        let figures = [
            ("norm_a", Some(sums.norm_a())),
            ("norm_b", Some(sums.norm_b())),
            ("relative", sums.relative()),
            ("cosine", sums.cosine()),
            ("max", Some(sums.max)),
            ("survival", sums.survival()),
        ];
        for (key, value) in figures {
            let value = value.unwrap();
            assert_near(&format!("{name}: {key}"), value, &expected[key], 1e-9 * value.abs().max(1e-3));
        }
    }
    let norms = found.parts.iter().find(|p| p.part == "norms").unwrap();
    assert_eq!(norms.n_tensors, 7);
    assert_eq!(found.parts.iter().map(|p| p.n_tensors).sum::<usize>(), 30);
    // Neither threads nor memory change a bit, and no memory is one thread's.
    assert_eq!(found, compare_tensors(&base, &cp, Some(tau), &budget(0, 1)).unwrap());
}

#[test]
fn a_vector_survives_where_it_was_added() {
    let open = |name: &str| Model::open(&bundled(name), &Limits::default()).unwrap();
    let (base, chat) = (open("base"), open("chat"));
    let tau = Tau { plus: &chat, minus: Some(&base) };
    let found = compare_tensors(&base, &chat, Some(tau), &Budget::default()).unwrap();
    assert_eq!(found.total.survival(), Some(1.0));
    let same = compare_tensors(&base, &base, Some(tau), &Budget::default()).unwrap();
    assert_eq!((same.total.survival(), same.total.relative(), same.total.cosine()), (Some(0.0), Some(0.0), Some(1.0)));
    assert_eq!(
        (same.total.max, compare_tensors(&base, &chat, None, &Budget::default()).unwrap().total.survival()),
        (0.0, None)
    );

    // Types may differ: the difference is then rounding.
    let folder = tempfile::tempdir().unwrap();
    let mut draft = read(&bundled("base"));
    requantise(&mut draft, Q4_K);
    let rounded = Model::open(&draft.write(folder.path(), "rounded.gguf"), &Limits::default()).unwrap();
    let found = compare_tensors(&base, &rounded, Some(tau), &Budget::default()).unwrap();
    assert!((0.05..0.1).contains(&found.total.relative().unwrap()), "{:?}", found.total.relative());
    let json = serde_json::to_value(&found.tensors[0]).unwrap();
    assert_eq!((json["type_a"].as_str(), json["type_b"].as_str()), (Some("f16"), Some("q4_K")));
}

#[test]
fn tensors_without_a_counterpart_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let open = |draft: &crate::support::Draft, name: &str| {
        Model::open(&draft.write(folder.path(), name), &Limits::default()).unwrap()
    };
    let weights = |name: &str, ne: &[u64]| {
        let n: u64 = ne.iter().product();
        Tensor { data: Some(crate::trio::encode(F32, &vec![0.5; n as usize])), ..Tensor::new(name, ne, F32) }
    };
    let (mut a, mut b) = (valid(), valid());
    a.tensors = vec![
        weights("output_norm.weight", &[3]),
        weights("only_a.weight", &[2]),
        weights("wide.weight", &[4, 2]),
        Tensor { data: Some(vec![1; 32]), ..Tensor::new("counts", &[32], 24) },
    ];
    b.tensors = vec![
        weights("wide.weight", &[2, 4]),
        weights("only_b.weight", &[2]),
        Tensor { data: Some(vec![2; 32]), ..Tensor::new("counts", &[32], 24) },
        weights("output_norm.weight", &[3]),
    ];
    let (a_model, b_model) = (open(&a, "a.gguf"), open(&b, "b.gguf"));
    let found = compare_tensors(&a_model, &b_model, None, &Budget::default()).unwrap();
    assert_eq!(found.tensors.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["output_norm.weight"]);
    assert!(found.tensors[0].difference.cosine() == Some(1.0) && !found.tensors[0].has_tau);
    let left_out: Vec<(&str, bool)> = found
        .not_compared
        .iter()
        .map(|n| {
            let is_right = match n.name.as_str() {
                "only_a.weight" => n.reason == Reason::OnlyInA,
                "wide.weight" => n.reason == Reason::Shape { a: vec![4, 2], b: vec![2, 4] },
                "counts" => matches!(n.reason, Reason::Type(ty) if ty.name() == "i8"),
                _ => n.reason == Reason::OnlyInB,
            };
            (n.name.as_str(), is_right)
        })
        .collect();
    assert_eq!(left_out, [("only_a.weight", true), ("wide.weight", true), ("counts", true), ("only_b.weight", true)]);
    let json = serde_json::to_string(&found.not_compared).unwrap();
    assert!(json.contains(r#"{"name":"counts","reason":{"type":"i8"}}"#), "{json}");

    // τ has the tensor in another shape, so nothing can survive.
    let tau = Tau { plus: &b_model, minus: None };
    let found = compare_tensors(&a_model, &a_model, Some(tau), &Budget::default()).unwrap();
    let has_tau: Vec<(&str, bool)> = found.tensors.iter().map(|t| (t.name.as_str(), t.has_tau)).collect();
    assert_eq!(has_tau, [("output_norm.weight", true), ("only_a.weight", false), ("wide.weight", false)]);

    change(a.tensor("output_norm.weight"), |weights| weights[2] = f32::NAN);
    let error = compare_tensors(&b_model, &open(&a, "nan.gguf"), None, &Budget::default()).unwrap_err();
    assert!(error.to_string().contains("tensor output_norm.weight: weight 2 is NaN"), "{error}");
}
