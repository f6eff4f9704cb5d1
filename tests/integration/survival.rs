//! How much of the vector an output holds: measured, forecast, and said aloud when it is little.

use std::collections::BTreeMap;

use chatvec::ggml::GgmlType;
use chatvec::pipeline::Budget;
use chatvec::survey::{SampleSettings, survey};
use chatvec::vector::{Moments, pair};

use crate::support::{Draft, Val};
use crate::trio::{
    F16, Noise, Paths, Q4_K, Q8_0, Ran, Trio, change, chatvec, get, name, names, read, requantise, store, weights,
};

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
fn a_vector_that_rounding_erases_is_written_if_a_warning_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let paths = quantised_model(folder.path(), Q4_K);
    let out = folder.path().join("out.gguf");
    let ran = paths.command(&out, &["--on-loss", "warn", "--json"]);
    ran.says(
        0,
        &["rounding is expected to take the vector from token_embd.weight", "warning: rounding took the vector"],
    );
    // .58 when it was first measured, by numpy and ggml.
    let survival = ran.json()["total"]["survival"].as_f64().unwrap();
    assert!((0.55..0.61).contains(&survival), "{survival}");
    assert_eq!(read(&out).tensors.len(), 30, "the output is whole all the same");
    let lost = ran.json()["lost"].as_array().unwrap().clone();
    assert!(
        lost.iter().any(|l| l["tensor"] == "blk.0.attn_q.weight" && l["survival"].as_f64().unwrap() < 0.2),
        "{lost:?}"
    );
    assert!(lost.iter().any(|l| l["tensor"].is_null()), "all together are lost too: {lost:?}");
    assert!(!lost.iter().any(|l| l["tensor"] == "output.weight"), "{lost:?}");
}

/// Types and bytes of the tensors of an output.
fn types(path: &std::path::Path) -> Vec<(String, u32)> {
    read(path).tensors.iter().map(|t| (name(t).to_owned(), t.ty)).collect()
}

/// Survival of each tensor with a vector, by what the run reports.
fn survivals(ran: &Ran) -> Vec<(String, f64)> {
    let json = ran.json();
    let of = |t: &serde_json::Value| (t["name"].as_str().unwrap().to_owned(), t["survival"].as_f64().unwrap());
    json["tensors"].as_array().unwrap().iter().map(of).collect()
}

/// What was done about tensors that would have lost the vector.
fn changes(ran: &Ran) -> Vec<serde_json::Value> {
    let json = ran.json();
    let protected = json["warnings"].as_array().unwrap().iter().find(|w| w["kind"] == "protected");
    protected.map_or(Vec::new(), |w| w["changes"].as_array().unwrap().clone())
}

#[test]
fn by_default_the_vector_stays_and_so_does_the_size() {
    let folder = tempfile::tempdir().unwrap();
    let paths = quantised_model(folder.path(), Q4_K);
    let (out, nearest) = (folder.path().join("out.gguf"), folder.path().join("nearest.gguf"));
    let ran = paths.command(&out, &["--json"]);
    ran.says(0, &["rounding to the nearest would take the vector from", "dithered, at the same size"]);
    assert!(!ran.err.contains("rounding took"), "{}", ran.err);
    for (tensor, survival) in survivals(&ran) {
        assert!((0.9..1.2).contains(&survival), "{tensor}: {survival}");
    }
    paths.command(&nearest, &["--on-loss", "warn"]);
    assert_eq!(types(&out), types(&nearest));
    // The vector survives in the output by itself.
    let rounding = |of: &str| {
        let tensors = ran.json()["tensors"].as_array().unwrap().clone();
        tensors.iter().find(|t| t["name"] == of).unwrap()["rounding"].clone()
    };
    assert!(rounding("blk.0.attn_q.weight")["dithered"]["amplitude"].as_f64().unwrap() > 0.0);
    assert_eq!(rounding("output.weight"), "encoder");
    let Some(Val::Array(_, dithered)) = get(&read(&out), "chatvec.dithered").cloned() else { panic!("no list") };
    assert_eq!(dithered.len(), changes(&ran).len());
}

#[test]
fn promotion_takes_the_next_type_that_keeps_the_vector_and_says_what_it_costs() {
    let folder = tempfile::tempdir().unwrap();
    let paths = quantised_model(folder.path(), Q4_K);
    let (out, nearest) = (folder.path().join("out.gguf"), folder.path().join("nearest.gguf"));
    paths.command(&nearest, &["--on-loss", "warn"]);
    let ran = paths.command(&out, &["--on-loss", "promote", "--json"]);
    ran.says(0, &["they get finer types, "]);
    for (tensor, survival) in survivals(&ran) {
        assert!((0.9..1.2).contains(&survival), "{tensor}: {survival}");
    }
    let more: u64 = std::fs::metadata(&out).unwrap().len() - std::fs::metadata(&nearest).unwrap().len();
    let changes = changes(&ran);
    let said: u64 = changes.iter().map(|c| c["more_bytes"].as_u64().unwrap()).sum();
    assert!(more.abs_diff(said) < 8192, "{more} bytes more, said {said}; names of tensors in the header come on top");
    let promoted: Vec<&str> = changes.iter().map(|c| c["tensor"].as_str().unwrap()).collect();
    for ((tensor, ty), (_, before)) in types(&out).iter().zip(types(&nearest)) {
        let expected = if promoted.contains(&tensor.as_str()) { [13, 14].contains(ty) } else { *ty == before };
        assert!(expected, "{tensor} is {ty}, was {before}");
    }
    assert!(promoted.contains(&"blk.1.ffn_up.weight") && !promoted.contains(&"output.weight"));
}

#[test]
fn fail_begins_nothing_and_a_forecast_is_printed_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let paths = quantised_model(folder.path(), Q4_K);
    let out = folder.path().join("out.gguf");
    paths.command(&out, &["--on-loss", "fail"]).says(10, &["token_embd.weight (", "more; nothing is written"]);
    let dry = paths.command(&out, &["--on-loss", "fail", "--dry-run", "--json"]);
    assert!(dry.says(10, &[]).json()["forecast"]["output"]["survival"].as_f64().unwrap() < 0.61);
    assert_eq!(names(folder.path()), ["cp.gguf"]);
    paths.command(&out, &["--on-loss", "fail", "--type", "Q8_0"]).is_quiet();
}

#[test]
fn what_is_lost_after_encoding_does_not_take_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    // No type holds more of the vector than all of it.
    for on_loss in ["dither", "promote"] {
        let options = ["--on-loss", on_loss, "--min-survival", "1.2", "--overwrite"];
        let ran = Paths::bundled().command(&out, &options);
        ran.says(10, &["warning: rounding took the vector from ", "out.gguf.rejected", "--on-loss"]);
        assert_eq!(names(folder.path()), ["out.gguf.rejected"]);
    }
    let ran = Paths::bundled().command(&out, &["--on-loss", "warn", "--min-survival", "1.2"]);
    ran.says(0, &["rounding took the vector from "]);
    assert_eq!(names(folder.path()), ["out.gguf", "out.gguf.rejected"]);
}

#[test]
fn what_an_output_misses_is_a_mean_over_its_matrices() {
    let folder = tempfile::tempdir().unwrap();
    let paths = quantised_model(folder.path(), Q4_K);
    let out = folder.path().join("out.gguf");
    let said = paths.command(&out, &["--on-loss", "warn", "--special-tokens", "none", "--json"]).json();
    let [mut cp, mut base, mut chat, mut got] = [&paths.cp, &paths.base, &paths.chat, &out].map(|path| read(path));
    let names: Vec<String> = cp.tensors.iter().filter(|t| t.ne.len() > 1).map(|t| name(t).to_owned()).collect();
    let mut of_each = Vec::new();
    for name in &names {
        let [cp, base, chat, got] = [&mut cp, &mut base, &mut chat, &mut got].map(|draft| weights(draft.tensor(name)));
        let moments = by_hand(&cp, &base, &chat, 1.0, &got);
        of_each.push((moments.delta2 / moments.model2, moments.delta2, moments.kept / moments.delta2));
    }
    let mut sorted: Vec<f64> = of_each.iter().map(|(weight, ..)| *weight).collect();
    sorted.sort_by(f64::total_cmp);
    assert!(sorted.last().unwrap() / sorted[sorted.len() / 2] < 16.0, "no matrix is cut");
    let mean = |weight: fn(&(f64, f64, f64)) -> f64| {
        let square: f64 = of_each.iter().map(|t| weight(t) * (1.0 - t.2).max(0.0).powi(2)).sum();
        (square / of_each.iter().map(weight).sum::<f64>()).sqrt()
    };
    let expected = mean(|t| t.0).max(mean(|t| t.1));
    let missing = said["missing"].as_f64().unwrap();
    assert!((missing - expected).abs() < 1e-5, "{missing}, expected {expected}");
    assert!(missing > 0.5, "the trap: {missing}");
}

#[test]
fn one_matrix_that_costs_little_is_said_and_rejects_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (out, tensor) = (folder.path().join("out.gguf"), "blk.2.attn_v.weight");
    let mut trio = Trio::bundled();
    let values = weights(trio.cp.tensor(tensor));
    store(trio.cp.tensor(tensor), Q4_K, &values);
    let mut paths = Paths::bundled();
    paths.cp = trio.cp.write(folder.path(), "cp.gguf");
    let fail =
        |least: &str| paths.command(&out, &["--on-loss", "fail", "--min-survival", least, "--overwrite", "--json"]);
    let ran = fail("0.8");
    ran.says(0, &[&format!("rounding took the vector from {tensor}"), "the output misses", "within --min-survival"]);
    let missing = ran.json()["missing"].as_f64().unwrap();
    assert!((0.05..0.2).contains(&missing), "{missing}");
    std::fs::remove_file(&out).unwrap();
    // The same bound decides before the run.
    fail("0.95").says(10, &[tensor, "all tensors together", "nothing is written"]);
    assert!(!out.exists());
    // What can be mended is.
    let ran = paths.command(&out, &["--json"]);
    ran.says(0, &["dithered"]);
    assert!(ran.json()["lost"].as_array().unwrap().is_empty());
}

#[test]
fn what_is_expected_is_held_against_the_bound_that_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let paths = quantised_model(folder.path(), Q4_K);
    let out = folder.path().join("out.gguf");
    let ran =
        |least: &str| paths.command(&out, &["--on-loss", "warn", "--min-survival", least, "--overwrite", "--json"]);
    ran("0.9").says(0, &["is expected to leave only", "is expected to take the vector", "rounding took the vector"]);
    let little = ran("0.01");
    assert!(!little.err.contains("rounding"), "{}", little.err);
    assert!(little.json()["lost"].as_array().unwrap().is_empty());
    // Twentieths of the mean are no longer left out by a rule of their own: the bound says what is
    // small.
    assert!(
        ran("0.999").json()["lost"].as_array().unwrap().len() >= ran("0.9").json()["lost"].as_array().unwrap().len()
    );
}

#[test]
fn noise_is_judged_too() {
    // Q2_K holds all of the vector, and six times as much noise.
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let q2_k = |options: &[&str]| Paths::bundled().command(&out, &[&["--type", "Q2_K", "--pure"], options].concat());
    q2_k(&["--max-noise", "3", "--on-loss", "fail"]).says(10, &["noise ", "nothing is written"]);
    q2_k(&["--max-noise", "3", "--on-loss", "warn"]).says(0, &["noise "]);
    let ran = q2_k(&["--max-noise", "3", "--on-loss", "promote", "--overwrite", "--json"]);
    let json = ran.says(0, &["finer types"]).json();
    assert!(json["tensors"].as_array().unwrap().iter().all(|t| t["noise"].as_f64().unwrap() <= 3.0));
    for bad in ["-1", "nan", "much"] {
        q2_k(&[&format!("--max-noise={bad}")]).says(2, &["--max-noise"]);
    }
}

#[test]
fn dithered_bytes_do_not_depend_on_threads_or_memory() {
    let folder = tempfile::tempdir().unwrap();
    let paths = quantised_model(folder.path(), Q4_K);
    let written = |name: &str, options: &[&str]| {
        let out = folder.path().join(name);
        paths.command(&out, options).says(0, &["dithered"]);
        std::fs::read(&out).unwrap()
    };
    let one = written("one.gguf", &["--threads", "1"]);
    assert!(one == written("four.gguf", &["--threads", "4"]), "threads");
    assert!(one == written("little.gguf", &["--threads", "3", "--memory", "3MiB"]), "memory");
    let ran = paths.command(&folder.path().join("none.gguf"), &["--memory", "600KiB"]);
    ran.says(5, &["more than the budget"]);
}

#[test]
fn every_type_with_a_grid_keeps_the_vector_at_its_size_and_others_are_promoted() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    // Ids of Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, IQ4_NL, IQ4_XS, MXFP4. Of the four codes of Q2_K
    // half are the first or the last, and cannot go farther.
    for ty in [2, 3, 6, 7, Q4_K, 13, 20, 23, 39] {
        let mut trio = Trio::small();
        requantise(&mut trio.cp, ty);
        let ran = trio.write(folder.path()).command(&out, &["--overwrite", "--json", "--max-noise", "100"]);
        assert!(ran.says(0, &[]).json()["lost"].as_array().unwrap().is_empty(), "type {ty}");
        let by_type = |draft: &Draft| draft.tensors.iter().map(|t| t.ty).collect::<Vec<_>>();
        assert_eq!(by_type(&read(&out)), by_type(&trio.cp), "type {ty}");
    }
    // IQ3_S
    let mut trio = Trio::small();
    requantise(&mut trio.cp, 21);
    let ran = trio.write(folder.path()).command(&out, &["--overwrite", "--json", "--max-noise", "100"]);
    let json = ran.says(0, &["finer types"]).json();
    assert!(json["lost"].as_array().unwrap().is_empty());
    assert!(read(&out).tensors.iter().all(|t| t.ty != 21 || !name(t).contains("attn_q")), "no grid, so promoted");
}

#[test]
fn blocks_without_a_delta_are_copied_from_a_dithered_tensor_too() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let mut trio = Trio::bundled();
    requantise(&mut trio.cp, Q4_K);
    // Every second block of 256 weights, of which a row of this tensor has three.
    let tensor = "blk.0.ffn_down.weight";
    let base = weights(trio.base.tensor(tensor));
    change(trio.chat.tensor(tensor), |chat| {
        let blocks = chat.chunks_mut(256).zip(base.chunks(256));
        blocks.step_by(2).for_each(|(chat, base)| chat.copy_from_slice(base));
    });
    let ran = trio.write(folder.path()).command(&out, &["--json"]);
    let dithered = changes(ran.says(0, &["dithered"]));
    assert!(dithered.iter().any(|c| c["tensor"] == tensor && c["type"] == "Q4_K"), "{dithered:?}");
    let (found, model) = (read(&out).tensor(tensor).data(), trio.cp.tensor(tensor).data());
    let mut n_changed = 0;
    for (i, (found, model)) in found.chunks(144).zip(model.chunks(144)).enumerate() {
        if i % 2 == 0 {
            assert_eq!(found, model, "block {i}");
        }
        n_changed += usize::from(found != model);
    }
    assert!(n_changed > 300, "{n_changed}");
}

/// Mean KL divergence of a model from the merge in F32, on the first transcripts of German chats.
fn divergence(merged: &std::path::Path, model: &std::path::Path) -> f64 {
    let text = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/compare/chat-de.txt");
    let args = ["--text", text.to_str().unwrap(), "--parse-special", "-c", "256", "--chunks", "6", "--json"];
    let paths = [merged.to_str().unwrap(), model.to_str().unwrap()];
    chatvec([&["compare"], &paths[..], &args].concat()).json()["logits"]["kl"]["mean"]["value"].as_f64().unwrap()
}

#[test]
fn the_trap_springs_when_weights_are_rounded_to_the_nearest_and_not_by_default() {
    let folder = tempfile::tempdir().unwrap();
    let paths = quantised_model(folder.path(), Q4_K);
    let out = |name: &str| folder.path().join(name);
    Paths::bundled().command(&out("merged.gguf"), &["--type", "F32"]).is_quiet();
    paths.command(&out("nearest.gguf"), &["--on-loss", "warn"]).says(0, &[]);
    paths.command(&out("dithered.gguf"), &[]).says(0, &[]);
    paths.command(&out("exact.gguf"), &["--type", "F32"]).says(0, &[]);
    let of = |name: &str| divergence(&out("merged.gguf"), &out(name));
    let (nearest, dithered, exact) = (of("nearest.gguf"), of("dithered.gguf"), of("exact.gguf"));
    println!("nearest {nearest:.3}, dithered {dithered:.3}, all of the vector on the quantised model {exact:.3}");
    // 1.3, 0.10 and 0.06 on all transcripts, by numpy.
    assert!(nearest > 0.8 && dithered < 0.15 && exact < dithered, "{nearest} {dithered} {exact}");
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

/// Sums of a few ten thousand products agree to 1e-6 of the vector's or the model's norm: the
/// differences that go in are f32 in one and f64 in the other.
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
    // The survey reads all rows of models below four million weights, so that only blocks without
    // delta, which the run copies and the survey encodes, make a difference.
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
fn each_tensor_is_forecast_as_it_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let each = |json: &serde_json::Value| -> BTreeMap<String, [f64; 2]> {
        let shares = |t: &serde_json::Value| ["survival", "noise"].map(|share| t[share].as_f64().unwrap());
        let tensors = json["tensors"].as_array().unwrap().iter().filter(|t| t["survival"].is_number());
        tensors.map(|t| (t["name"].as_str().unwrap().to_owned(), shares(t))).collect()
    };
    // In its own type a tensor keeps blocks and rows of the model; on its grid, all others too.
    for (ty, options) in [(Q8_0, &[][..]), (Q8_0, &["--special-tokens", "none"]), (Q4_K, &[])] {
        let paths = quantised_model(folder.path(), ty);
        let out = folder.path().join("out.gguf");
        let forecast = paths.command(&out, &[options, &["--json", "--dry-run"]].concat()).says(0, &[]).json();
        let measured = paths.command(&out, &[options, &["--json", "--overwrite"]].concat()).says(0, &[]).json();
        let (forecast, measured) = (each(&forecast), each(&measured));
        assert_eq!(forecast.keys().collect::<Vec<_>>(), measured.keys().collect::<Vec<_>>());
        for (tensor, measured) in &measured {
            for (forecast, measured) in forecast[tensor].iter().zip(measured) {
                assert!(
                    (forecast - measured).abs() <= 1e-6 + 1e-4 * measured,
                    "{options:?}: {tensor} {forecast}, measured {measured}"
                );
            }
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
    // A vector far below the step of Q4_K, on weights that are on its grid: nothing of it can
    // survive.
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
    let options = ["--json", "--on-loss", "warn"];
    let ran = trio.write(folder.path()).command(&folder.path().join("out.gguf"), &options);
    let survival = ran.says(0, &["of the vector"]).json()["total"]["survival"].as_f64().unwrap();
    assert!(survival < 0.5, "{survival}");
}
