//! How much of the vector an output holds: measured, forecast, and said aloud when it is little.

use chatvec::ggml::GgmlType;
use chatvec::pipeline::Budget;
use chatvec::survey::{Moments, SampleSettings, pair, survey};

use crate::support::{Draft, Val};
use crate::trio::{F16, Noise, Paths, Q4_K, Q8_0, Trio, name, read, requantise, store, weights};

/// The bundled trio with the model in a type of its own, every matrix.
fn quantised_model(folder: &std::path::Path, ty: u32) -> Paths {
    let mut trio = Trio::bundled();
    requantise(&mut trio.cp, ty);
    trio.cp.set("general.file_type", Val::U32(if ty == Q4_K { 15 } else { 7 }));
    let mut paths = Paths::bundled();
    paths.cp = trio.cp.write(folder, "cp.gguf");
    paths
}

#[test]
fn a_vector_that_rounding_erases_ends_with_a_code_of_its_own_and_a_plain_warning() {
    let folder = tempfile::tempdir().unwrap();
    let paths = quantised_model(folder.path(), Q4_K);
    let out = folder.path().join("out.gguf");
    let ran = paths.command(&out, &["--json"]);
    ran.says(10, &["warning: the output holds only ", " % of the vector, rounding took the rest", "--type"]);
    // .58 when it was first measured, by numpy and ggml.
    let survival = ran.json()["total"]["survival"].as_f64().unwrap();
    assert!((0.55..0.61).contains(&survival), "{survival}");
    assert_eq!(read(&out).tensors.len(), 30, "the output is whole all the same");
}

#[test]
fn a_vector_survives_on_a_finer_grid_or_in_a_finer_type() {
    let folder = tempfile::tempdir().unwrap();
    let paths = quantised_model(folder.path(), Q4_K);
    for (ty, least) in [("Q8_0", 0.97), ("Q6_K", 0.97), ("Q5_K", 0.95), ("F16", 0.9999)] {
        let out = folder.path().join(format!("{ty}.gguf"));
        let ran = paths.command(&out, &["--type", ty, "--pure", "--json"]);
        ran.says(0, &[]);
        assert!(!ran.err.contains("of the vector"), "{}", ran.err);
        let survival = ran.json()["total"]["survival"].as_f64().unwrap();
        assert!((least..1.03).contains(&survival), "{ty}: {survival}");
    }
    let ran = quantised_model(folder.path(), Q8_0).command(&folder.path().join("keep.gguf"), &["--json"]);
    let survival = ran.says(0, &[]).json()["total"]["survival"].as_f64().unwrap();
    assert!((0.97..1.03).contains(&survival), "Q8_0 kept: {survival}");
}

/// The sums over one tensor as their documentation has them, one weight after the other in f64.
fn by_hand(cp: &[f32], base: &[f32], chat: &[f32], ratio: f32, got: &[f32]) -> Moments {
    let mut moments = Moments::default();
    for (((&m, &b), &c), &q) in cp.iter().zip(base).zip(chat).zip(got) {
        // What is added and what is wanted are f32 by the rule of the merge.
        let delta = f64::from(ratio * (c - b));
        let wanted = f64::from(m + ratio * (c - b));
        let (m, b, q) = (f64::from(m), f64::from(b), f64::from(q));
        moments.delta2 += delta * delta;
        moments.model2 += m * m;
        moments.drift2 += (m - b) * (m - b);
        moments.delta_drift += delta * (m - b);
        moments.kept += (q - m) * delta;
        moments.error2 += (q - wanted) * (q - wanted);
    }
    moments
}

#[test]
fn moments_are_those_of_a_plain_loop() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let mut trio = Trio::small();
    let paths = trio.write(folder.path());
    for (ty, ratio) in [("F32", 1.0), ("keep", 0.37), ("Q8_0", -0.5), ("Q4_K", 1.0), ("Q2_K", 2.0)] {
        let measured = paths.try_merge(&out, ty, ratio, &Budget::default()).unwrap().measured;
        let mut found: Draft = read(&out);
        assert_eq!(measured.tensors.len(), 13, "all but the rope factors");
        let mut total = Moments::default();
        for t in &measured.tensors {
            let [cp, base, chat] =
                [&mut trio.cp, &mut trio.base, &mut trio.chat].map(|draft| weights(draft.tensor(&t.name)));
            let expected = by_hand(&cp, &base, &chat, ratio as f32, &weights(found.tensor(&t.name)));
            total += expected;
            assert_near(&format!("{ty} {}", t.name), &t.moments, &expected);
        }
        assert_near(&format!("{ty} in all"), &measured.total, &total);
    }
}

/// Sums of a few ten thousand products agree to 1e-6 of the vector's or the model's norm: the differences that go in
/// are f32 in one and f64 in the other.
#[track_caller]
fn assert_near(what: &str, found: &Moments, expected: &Moments) {
    let scale = (expected.delta2 * expected.drift2).sqrt();
    for (field, found, expected, scale) in [
        ("delta2", found.delta2, expected.delta2, expected.delta2),
        ("model2", found.model2, expected.model2, expected.model2),
        ("drift2", found.drift2, expected.drift2, expected.drift2),
        ("delta_drift", found.delta_drift, expected.delta_drift, scale),
        ("kept", found.kept, expected.kept, expected.delta2),
        ("error2", found.error2, expected.error2, expected.delta2),
    ] {
        assert!((found - expected).abs() <= 1e-6 * scale, "{what}: {field} is {found:e}, expected {expected:e}");
    }
}

#[test]
fn shares_follow_from_moments_by_their_definitions() {
    // Four weights, and what an output might hold of them.
    let (m, b, c, q) = ([3.0, 4.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0], [3.0, 1.0, 2.0, 0.0], [3.0, 4.5, 2.0, 0.0]);
    let moments = by_hand(&m, &b, &c, 1.0, &q);
    for (found, expected) in [
        (moments.delta_ratio(), 5f64.sqrt() / 5.0),
        (moments.drift_ratio(), 4.0 / 5.0),
        (moments.drift_cosine(), 4.0 / (5f64.sqrt() * 4.0)),
        (moments.survival(), (0.5 + 4.0) / 5.0),
        (moments.noise(), 0.5 / 5f64.sqrt()),
    ] {
        assert!(found.is_some_and(|found| (found - expected).abs() < 1e-15), "{found:?}, expected {expected}");
    }
    let zero = by_hand(&m, &b, &b, 1.0, &m);
    assert_eq!((zero.survival(), zero.noise(), zero.drift_cosine()), (None, None, None));
}

#[test]
fn a_dry_run_forecasts_the_survival_that_is_measured_then() {
    let folder = tempfile::tempdir().unwrap();
    let quantised = quantised_model(folder.path(), Q4_K);
    // The survey reads all rows of models below four million weights, so that only blocks without delta, which the run
    // copies and the survey encodes, make a difference.
    for (paths, options) in [
        (&quantised, &["--type", "keep"][..]),
        (&quantised, &["--type", "Q8_0"]),
        (&Paths::bundled(), &["--type", "Q4_K", "--pure"]),
        (&Paths::bundled(), &["--type", "Q2_K", "--pure", "--ratio", "0.5"]),
    ] {
        let out = folder.path().join("out.gguf");
        let dry = paths.command(&out, &[options, &["--json", "--dry-run"]].concat());
        let forecast = dry.says(0, &[]).json()["forecast"]["output"].clone();
        assert!(!out.exists());
        let measured = paths.command(&out, &[options, &["--json", "--overwrite"]].concat()).json()["total"].clone();
        std::fs::remove_file(&out).unwrap();
        for number in ["survival", "noise"] {
            let (forecast, measured) = (forecast[number].as_f64().unwrap(), measured[number].as_f64().unwrap());
            assert!(
                (forecast - measured).abs() <= 0.005 * measured,
                "{options:?}: {number} {forecast}, measured {measured}"
            );
        }
    }
}

#[test]
fn a_sample_of_a_twentieth_forecasts_within_a_tenth() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = quantised_model(folder.path(), Q4_K).inputs(1.0);
    let pairs = pair(&inputs).unwrap();
    let types = vec![GgmlType::Q4_K, GgmlType::Q8_0];
    let looked = |n_weights| {
        survey(&inputs, &pairs, &SampleSettings { n_weights, types: types.clone(), ..SampleSettings::default() })
            .unwrap()
    };
    let (sampled, whole) = (looked(137_000), looked(u64::MAX));
    assert!(whole.tensors.iter().all(|t| t.n_sampled == t.n_pieces));
    for ty in types.clone() {
        let (sampled, whole) =
            (sampled.forecast(|_| Some(ty)).survival.unwrap(), whole.forecast(|_| Some(ty)).survival.unwrap());
        assert!((sampled - whole).abs() <= 0.1 * whole, "{ty}: {sampled}, of all rows {whole}");
    }
}

#[test]
fn the_warning_is_about_the_vector_and_not_about_the_noise() {
    // A vector far below the step of Q4_K, on weights that are on its grid: nothing of it can survive.
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    requantise(&mut trio.cp, Q4_K);
    trio.chat.tensors = trio.base.tensors.clone();
    let mut noise = Noise(5);
    for tensor in trio.chat.tensors.iter_mut().filter(|t| t.ty == F16) {
        let values: Vec<f32> = weights(tensor).iter().map(|w| w + 2e-4 * noise.normal()).collect();
        assert!(!name(tensor).contains("norm"));
        store(tensor, F16, &values);
    }
    let ran = trio.write(folder.path()).command(&folder.path().join("out.gguf"), &["--json"]);
    let survival = ran.says(10, &["of the vector"]).json()["total"]["survival"].as_f64().unwrap();
    assert!(survival < 0.5, "{survival}");
}
