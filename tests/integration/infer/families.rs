//! Every family of networks, against llama.cpp (fixtures/infer/families.json).

use std::collections::BTreeMap;

use super::synthetic::{draft, mean_difference, run};
use super::*;

/// How far a quantised model may be, at most and in the mean. An activation that is rounded to the
/// other side moves all that follows; who does not round as llama.cpp does is 1e-3 (F16) and 3e-2
/// (others) away in the mean (fixtures/infer/README.md).
const QUANTISED: [(&str, f64, f64); 4] =
    [("F16", 5e-3, 9e-4), ("Q8_0", 0.1, 1.2e-2), ("Q4_K_M", 0.2, 1.2e-2), ("MXFP4_MOE", 0.1, 1.2e-2)];

/// The bounds of a variant.
fn bounds_of(entry: &Json) -> (f64, f64) {
    if let Some(ty) = entry["type"].as_str() {
        let (_, largest, mean) = QUANTISED.iter().find(|(name, ..)| *name == ty).unwrap_or_else(|| panic!("{ty}"));
        return (*largest, *mean);
    }
    let bounds = floats(&entry["bounds"]);
    (bounds[0], bounds[1])
}

#[test]
fn every_family_is_computed_as_llama_cpp_does() {
    let goldens = fixture("families.json");
    let folder = tempfile::tempdir().expect("a folder");
    let shared = ids(&goldens["tokens"]);
    let variants = goldens["variants"].as_object().expect("variants");
    assert_eq!(variants.len(), 95);
    let mut found: BTreeMap<&str, Vec<Vec<f32>>> = BTreeMap::new();
    let mut failures = Vec::new();
    let mut families = std::collections::BTreeSet::new();
    for (name, entry) in variants {
        let n_tokens = entry["n_tokens"].as_u64().expect("a number") as usize;
        let fed = entry.get("tokens").map_or_else(|| shared[..n_tokens].to_vec(), ids);
        families.insert(entry["metadata"]["general.architecture"].as_str().expect("a name"));
        let logits = run(&draft(&goldens, name).write(folder.path(), "model.gguf"), &fed);
        let rows: Vec<Vec<f64>> = logits.iter().map(|row| log_softmax(row)).collect();
        let mut spread = Spread::default();
        compare(&mut spread, &rows, &fed, entry);
        let (largest, mean) = bounds_of(entry);
        println!("{name:<36} {:.1e} {:.1e} of {largest:.0e} {mean:.0e}", spread.largest, spread.mean());
        if !(spread.largest < largest && spread.mean() < mean) {
            failures.push(format!("{name}: {spread:?}"));
        }
        found.insert(name, logits);
    }
    for (name, entry) in variants {
        let logits = &found[name.as_str()];
        if let Some(other) = entry["same_as"].as_str()
            && *logits != found[other]
        {
            failures.push(format!("{name} differs from {other}"));
        }
        if let Some(other) = entry["differs_from"].as_str() {
            let apart = mean_difference(logits, &found[other]);
            if apart < 5e-3 {
                failures.push(format!("{name} is {apart} from {other}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let known: std::collections::BTreeSet<&str> = chatvec::infer::architectures().map(|(name, _)| name).collect();
    // The last one is in synthetic.json.
    assert_eq!(known, &families | &["qwen2"].into());
}
