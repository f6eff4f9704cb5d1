//! What holds of every model that runs: the same bits however tokens come and threads are, errors,
//! and every type.

use chatvec::ggml::GgmlType;
use chatvec::infer::{End, Engine, Error, Fed, Generated, Sampler, Sampling, Sequences, generate};
use chatvec::quants;

use super::*;
use crate::support::{Draft, Val, split, write_split};
use crate::trio::{BF16, F16, F32, Q4_K, Q8_0, bundled, read, requantise, store, weights};

const Q6_K: u32 = 14;

/// Tokens for more than one batch: the texts of logprobs.json one after the other.
fn tokens(n: usize) -> Vec<u32> {
    let prompts = fixture("logprobs.json");
    let all = prompts["prompts"].as_array().expect("prompts").iter().flat_map(|p| ids(&p["tokens"]));
    let tokens: Vec<u32> = all.take(n).collect();
    assert_eq!(tokens.len(), n);
    tokens
}

/// The bundled chat model with its matrices in a type.
pub(super) fn chat_in(ty: u32) -> Draft {
    let mut draft = read(&bundled("chat"));
    requantise(&mut draft, ty);
    draft
}

/// The model with the weights that the codec, which `quants.rs` holds to ggml, reads from it, as
/// F32.
fn decoded(draft: &Draft) -> Draft {
    let mut draft = draft.clone();
    for tensor in &mut draft.tensors {
        let values = weights(tensor);
        store(tensor, F32, &values);
    }
    draft
}

fn in_folder<T>(draft: &Draft, run: impl FnOnce(&Path) -> T) -> T {
    let folder = tempfile::tempdir().expect("a folder");
    run(&draft.write(folder.path(), "model.gguf"))
}

fn logits_of(draft: &Draft, tokens: &[u32]) -> Vec<Vec<f32>> {
    in_folder(draft, |path| logits(&load(path, 2), tokens))
}

/// Differences of the eight likeliest tokens of each row.
fn spread_of_likeliest(reference: &[Vec<f32>], rows: &[Vec<f32>]) -> Spread {
    let mut spread = Spread::default();
    for (reference, row) in reference.iter().zip(rows) {
        let (reference, row) = (log_softmax(reference), log_softmax(row));
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| reference[*b].total_cmp(&reference[*a]));
        order[..8].iter().for_each(|&i| spread.add(row[i], reference[i]));
    }
    spread
}

/// Σ p·ln(p/q) of rows of logits, in the mean.
fn mean_kl(reference: &[Vec<f32>], rows: &[Vec<f32>]) -> f64 {
    let kl = |(p, q): (&Vec<f32>, &Vec<f32>)| -> f64 {
        log_softmax(p).iter().zip(log_softmax(q)).map(|(p, q)| p.exp() * (p - q)).sum()
    };
    reference.iter().zip(rows).map(kl).sum::<f64>() / rows.len() as f64
}

fn greedy() -> Sampler {
    Sampler::new(Sampling::Greedy).expect("no settings")
}

fn continued(session: &mut Session<'_>, prompt: &[u32], n: usize) -> Result<Generated, Error> {
    generate(session, prompt, n, &mut greedy(), &|_| false, &|_| true)
}

#[test]
fn tokens_give_the_same_bits_however_they_come() {
    let tokens = tokens(150);
    for ty in quants::supported() {
        let bits = |rows: &[Vec<f32>]| -> Vec<Vec<u32>> {
            rows.iter().map(|row| row.iter().map(|l| l.to_bits()).collect()).collect()
        };
        in_folder(&chat_in(ty.id()), |path| {
            let model = load(path, 1);
            let at_once = bits(&logits(&model, &tokens));
            for threads in [2, 5] {
                assert_eq!(bits(&logits(&load(path, threads), &tokens)), at_once, "{ty}: {threads} threads");
            }
            let mut session = session(&model);
            let single: Vec<_> = tokens.iter().map(|&t| session.feed_and_predict(&[t]).expect("fits")).collect();
            assert_eq!(bits(&single), at_once, "{ty}: one by one");
        });
    }
}

#[test]
fn a_session_goes_back_and_gives_the_rows_that_are_asked_for() {
    let tokens = tokens(150);
    let model = load(&bundled("chat"), 2);
    let all = logits(&model, &tokens);
    let mut session = session(&model);
    for (first, kept) in [(0, 0), (1, 149), (17, 128), (127, 5), (128, 40), (149, 129), (150, 100), (usize::MAX, 77)] {
        // From position `kept` on again.
        session.truncate(kept);
        assert_eq!(session.tokens(), &tokens[..kept.min(session.tokens().len())]);
        let kept = session.tokens().len();
        let mut seen = Vec::new();
        session.feed(&tokens[kept..], first, &mut |i, row| seen.push((i, row.to_vec()))).expect("fits");
        let expected: Vec<_> = (first..tokens.len() - kept).map(|i| (i, all[kept + i].clone())).collect();
        assert_eq!(seen, expected, "{kept} kept, from {first}");
        assert_eq!(session.tokens(), tokens);
    }
    session.truncate(usize::MAX);
    assert_eq!(session.tokens(), tokens);
    session.truncate(0);
    session.feed(&[], 0, &mut |_, _| panic!("no token, no row")).expect("nothing to do");
    assert_eq!(session.feed_and_predict(&tokens[..9]).expect("fits"), all[8]);
}

#[test]
fn what_a_session_cannot_do_is_an_error_and_changes_nothing() {
    let model = load(&bundled("chat"), 1);
    assert!(matches!(Session::new(&model, 0, MEMORY), Err(Error::Setting { what: "the context", .. })));
    let mut session = Session::new(&model, 10, MEMORY).expect("memory");
    let feed = |session: &mut Session<'_>, tokens: &[u32]| session.feed(tokens, 0, &mut |_, _| ());
    feed(&mut session, &[1, 2, 3, 4]).expect("fits");
    assert!(matches!(feed(&mut session, &[1; 7]), Err(Error::Context { n_tokens: 11, n_ctx: 10 })));
    assert!(matches!(feed(&mut session, &[5, 768]), Err(Error::Token { id: 768, n_vocab: 768 })));
    assert!(matches!(feed(&mut session, &[u32::MAX]), Err(Error::Token { .. })));
    assert!(matches!(continued(&mut session, &[], 5), Err(Error::Setting { what: "the prompt", .. })));
    assert_eq!(session.tokens(), [1, 2, 3, 4]);
    feed(&mut session, &[767; 6]).expect("exactly full");
    assert!(matches!(feed(&mut session, &[1]), Err(Error::Context { .. })));
    feed(&mut session, &[]).expect("nothing");
}

#[test]
fn a_generation_ends_at_the_limit_at_an_end_and_where_the_context_does() {
    let (model, prompt) = (load(&bundled("chat"), 1), tokens(6));
    let mut session = Session::new(&model, 10, MEMORY).expect("memory");
    let full = continued(&mut session, &prompt, 99).expect("fits");
    // The last one is not fed.
    assert_eq!((full.end, full.tokens.len(), session.tokens().len()), (End::Context, 5, 10));
    assert_eq!(session.tokens(), [&prompt[..], &full.tokens[..4]].concat());
    for n in 0..5 {
        session.truncate(0);
        let some = continued(&mut session, &prompt, n).expect("fits");
        assert_eq!((some.end, &some.tokens[..], some.is_finite), (End::Limit, &full.tokens[..n], true));
    }
    session.truncate(0);
    let third = full.tokens[2];
    let n_before = full.tokens.iter().position(|t| *t == third).expect("it is there");
    let ended = generate(&mut session, &prompt, 99, &mut greedy(), &|id| id == third, &|_| true).expect("fits");
    assert_eq!((ended.end, &ended.tokens[..]), (End::Token(third), &full.tokens[..n_before]));
    session.truncate(0);
    let seen = std::cell::RefCell::new(Vec::new());
    let go_on = |tokens: &[u32]| {
        seen.borrow_mut().push(tokens.to_vec());
        tokens.len() < 2
    };
    let stopped = generate(&mut session, &prompt, 99, &mut greedy(), &|_| false, &go_on);
    assert!(matches!(stopped, Err(Error::Cancelled)));
    assert_eq!(seen.into_inner(), [0, 1, 2].map(|n| full.tokens[..n].to_vec()));
}

#[test]
fn a_context_takes_the_memory_it_says() {
    let model = load(&bundled("chat"), 3);
    for n_ctx in [1, 64, 256, 4096, 1 << 20, 1 << 40, usize::MAX] {
        let Err(error) = Session::new(&model, n_ctx, 1) else { panic!("a byte is enough") };
        let text = error.to_string();
        let Error::Memory { needed, allowed: 1, .. } = error else { panic!("{error}") };
        // Keys and values of three layers, two heads of 64 each.
        let cache = (n_ctx as u64).saturating_mul(3 * 2 * 2 * 64 * 4);
        let figure = bytesize::ByteSize::b(needed).display().iec().to_string();
        assert!(
            needed >= cache && text.contains(&figure) && text.contains("1 B") && text.contains("--memory"),
            "{text}"
        );
        if n_ctx <= 4096 {
            assert!(needed < cache + (64 << 20), "{needed}");
            assert!(Session::new(&model, n_ctx, needed).is_ok());
            assert_eq!(Session::largest_context(&model, usize::MAX, needed), n_ctx);
            assert_eq!(Session::largest_context(&model, n_ctx / 2, needed), n_ctx / 2);
        }
        assert!(matches!(Session::new(&model, n_ctx, needed - 1), Err(Error::Memory { .. })));
        assert!(Session::largest_context(&model, usize::MAX, needed - 1) < n_ctx);
    }
    assert_eq!(Session::largest_context(&model, 99, 0), 0);
    // Allowed, but not to be had.
    assert!(matches!(Session::new(&model, usize::MAX, u64::MAX), Err(Error::Container(_))));
}

#[test]
fn shards_are_one_model() {
    let (draft, tokens) = (read(&bundled("chat")), tokens(40));
    let whole = logits_of(&draft, &tokens);
    for count in [2, 5] {
        let folder = tempfile::tempdir().expect("a folder");
        let first = write_split(folder.path(), &split(&draft, count));
        assert_eq!(logits(&load(&first, 2), &tokens), whole, "{count} shards");
    }
}

#[test]
fn files_run_whatever_they_are_aligned_to() {
    let tokens = tokens(40);
    for ty in [F32, F16, BF16, Q8_0, Q4_K, Q6_K] {
        let mut draft = chat_in(ty);
        let usual = logits_of(&draft, &tokens);
        for alignment in [8, 16, 64, 4096] {
            draft.align(alignment);
            assert_eq!(logits_of(&draft, &tokens), usual, "type {ty} aligned to {alignment}");
        }
        for alignment in [1, 2] {
            draft.align(alignment);
            let name = |n| Val::str(&"x".repeat(n));
            let n = (1..9).find(|&n| {
                draft.set("general.name", name(n));
                draft.data_offset() % 4 == u64::from(alignment)
            });
            assert!(n.is_some());
            assert_eq!(logits_of(&draft, &tokens), usual, "type {ty} aligned to {alignment}");
        }
    }
}

/// Mean difference of log-probabilities that rounding activations may make, a few times what it
/// makes llama.cpp (fixtures/infer/README.md, "at once : exact"), and mean KL divergence from the
/// weights before they were rounded.
fn rounding_bounds(ty: GgmlType) -> (f64, f64) {
    match ty {
        GgmlType::F32 => (1e-6, 1e-9),
        GgmlType::F16 => (2e-3, 1e-5),
        GgmlType::BF16 => (0.02, 1e-3),
        GgmlType::Q8_0 => (0.06, 5e-3),
        GgmlType::Q2_K => (0.1, 2.0),
        GgmlType::Q3_K => (0.1, 0.5),
        GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 => (0.1, 0.2),
        GgmlType::Q4_K | GgmlType::Q5_K | GgmlType::Q6_K => (0.1, 0.2),
        // What these types leave of a model this small is not asked.
        _ => (0.1, f64::INFINITY),
    }
}

#[test]
fn every_type_says_what_its_weights_say() {
    let tokens = tokens(150);
    let original = logits_of(&chat_in(F32), &tokens);
    for ty in quants::supported() {
        let draft = chat_in(ty.id());
        let rows = logits_of(&draft, &tokens);
        let spread = spread_of_likeliest(&logits_of(&decoded(&draft), &tokens), &rows);
        let kl = mean_kl(&original, &rows);
        println!("{ty}: from its weights {:.2e} / {:.2e}, KL {kl:.2e}", spread.largest, spread.mean());
        let (mean, most_kl) = rounding_bounds(ty);
        assert!(spread.mean() < mean && kl < most_kl, "{ty}: mean {}, KL {kl}", spread.mean());
    }
}

#[test]
fn sequences_side_by_side_give_the_bits_of_each_alone() {
    let families = fixture("families.json");
    let expert = synthetic::draft(&families, "qwen3moe");
    let windows = synthetic::draft(&families, "gemma3");
    let all = tokens(200);
    let byte_tokens: Vec<u32> = all.iter().map(|token| token % 256).collect();
    let cases = [
        (chat_in(F16), &all),
        (chat_in(Q8_0), &all),
        (chat_in(Q4_K), &all),
        (chat_in(Q6_K), &all),
        (expert, &byte_tokens),
        (windows, &byte_tokens),
    ];
    for (i, (draft, tokens)) in cases.iter().enumerate() {
        in_folder(draft, |path| {
            let model = load(path, 2);
            // Three texts, of which two begin alike, each with one of the others beside it in each step.
            let texts = [&tokens[..40], &[&tokens[..25], &tokens[60..150]].concat()[..], &tokens[150..190]];
            let alone: Vec<Vec<Vec<f32>>> = texts.iter().map(|text| logits(&model, text)).collect();
            let mut together = Sequences::new(&model, 3, 256, 128, MEMORY).expect("memory");
            let mut found: Vec<Vec<Vec<f32>>> = vec![Vec::new(); 3];
            let mut feed = |together: &mut Sequences<'_>, parts: &[(usize, std::ops::Range<usize>)]| {
                let fed =
                    parts.iter().map(|(s, part)| Fed { sequence: *s, tokens: &texts[*s][part.clone()], first: 0 });
                let fed: Vec<Fed<'_>> = fed.collect();
                together.feed(&fed, &mut |k, _, row| found[fed[k].sequence].push(row.to_vec())).expect("fits");
            };
            feed(&mut together, &[(0, 0..25)]);
            // What another one has computed is taken over.
            together.share(0, 1, 20).expect("it has as many");
            assert_eq!(together.tokens(1), &texts[1][..20]);
            feed(&mut together, &[(2, 0..7), (0, 25..26), (1, 20..115)]);
            for step in 0..14 {
                feed(&mut together, &[(0, 26 + step..27 + step), (2, 7 + step..8 + step)]);
            }
            feed(&mut together, &[(2, 21..40)]);
            assert_eq!(found[0], alone[0], "case {i}");
            assert_eq!(found[1], alone[1][20..], "case {i}");
            assert_eq!(found[2], alone[2], "case {i}");
        });
    }
}
