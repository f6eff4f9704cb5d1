//! Smoke inference against llama.cpp: log-probabilities of given tokens and greedy answers
//! (fixtures/infer).
#![allow(clippy::print_stdout, reason = "`--nocapture` shows the figures that the bounds come from")]

mod families;
mod greedy;
mod hostile;
mod lora;
mod peers;
mod properties;
pub(crate) mod synthetic;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use chatvec::gguf::{Limits, Model};
use chatvec::infer::{Session, Transformer};
use chatvec::pipeline::{self, Budget};
use chatvec::plan::{MergePlan, OutputType, Recipe, SpecialTokens};
use chatvec::vector::{self, Inputs};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::trio::overwrite;

/// Memory for a session of a tiny model.
const MEMORY: u64 = 64 << 20;

/// How far a log-probability may be from llama.cpp's, at most and in the mean: the one table of
/// bounds, twice what was seen.
///
/// That is as far as llama.cpp is from itself, between two builds of it and between one token at a
/// time and many (fixtures/infer/README.md): activations are rounded, and a rounding that falls on
/// the other side moves all that follows, the more the more layers there are. Who does not round
/// alike is ten times as far in the mean. The bound of F32 is the goldens' six digits.
const BOUNDS: [(&str, f64, f64); 11] = [
    ("F32", 1e-4, 2e-5),
    ("F16", 0.012, 1e-3),
    ("BF16", 0.04, 2e-3),
    ("Q8_0", 0.18, 3e-3),
    ("Q4_1", 0.2, 6e-3),
    ("Q5_0", 0.25, 4e-3),
    ("Q5_1", 0.25, 0.022),
    ("Q4_K", 0.35, 6e-3),
    ("SmolLM2 Q4_1", 2.7, 0.24),
    ("Qwen2.5 Q4_K_M", 0.9, 0.14),
    ("Gemma 3 Q4_K_M", 2.3, 0.33),
];

fn fixture(name: &str) -> Json {
    let path = Path::new("fixtures/infer").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).expect("a fixture")).expect("JSON")
}

/// A bundled model, or the merge of the trio in a type, as a file. Merges are made once for all
/// tests.
fn model_file(entry: &Json) -> PathBuf {
    if let Some(file) = entry["file"].as_str() {
        return Path::new("fixtures/models").join(file);
    }
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    static MERGES: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().expect("a folder"));
    let name = entry["merge_type"].as_str().expect("a type");
    let path = folder.path().join(format!("{name}.gguf"));
    let _one_at_a_time = MERGES.lock();
    if !path.exists() {
        merge(name, entry["pure"] == true, &path);
    }
    let header_len = open(&path).files()[0].header().data_offset() as usize;
    let bytes = std::fs::read(&path).expect("the merge");
    assert_eq!(
        Some(sha256(&bytes[header_len..]).as_str()),
        entry["data_sha256"].as_str(),
        "{name}: not the file that llama.cpp ran"
    );
    path
}

/// In hexadecimal digits.
fn sha256(mut reader: impl Read) -> String {
    let (mut digest, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match reader.read(&mut buffer).expect("bytes") {
            0 => return digest.finalize().iter().map(|b| format!("{b:02x}")).collect(),
            n => digest.update(&buffer[..n]),
        }
    }
}

fn open(path: &Path) -> Model {
    Model::open(path, &Limits::default()).expect("a model")
}

fn merge(name: &str, pure: bool, path: &Path) {
    let part = |name: &str| open(&Path::new("fixtures/models").join(format!("tinyworld-A-{name}-F16.gguf")));
    let inputs = Inputs::merge(part("cp-de"), part("base"), part("chat"), 1.0);
    let pairs = vector::pair(&inputs).expect("siblings");
    let recipe = Recipe {
        output: OutputType::parse(name, pure).expect("a type"),
        special_tokens: SpecialTokens::None,
        ..Recipe::default()
    };
    let plan = MergePlan::merge(&inputs, pairs, &recipe, None).expect("a plan");
    pipeline::write(&plan, &inputs, path, &overwrite(), &(), &Budget::default()).expect("a merge");
}

fn ids(tokens: &Json) -> Vec<u32> {
    tokens.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn floats(values: &Json) -> Vec<f64> {
    values.as_array().expect("numbers").iter().map(|v| v.as_f64().expect("a number")).collect()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().fold(f64::NEG_INFINITY, |m, &l| m.max(f64::from(l)));
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - largest).exp()).sum();
    logits.iter().map(|&l| f64::from(l) - largest - sum.ln()).collect()
}

fn load(path: &Path, threads: usize) -> Transformer {
    Transformer::load(&open(path), threads).unwrap_or_else(|e| panic!("{e}"))
}

/// A session of a tiny model.
fn session(model: &Transformer) -> Session<'_> {
    Session::new(model, 256, MEMORY).expect("memory")
}

/// The logits after each token.
fn logits(model: &Transformer, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    session(model).feed(tokens, 0, &mut |_, logits| rows.push(logits.to_vec())).expect("fits");
    rows
}

/// Log-probabilities after each token.
fn teacher_forced(model: &Transformer, tokens: &[u32], n_ctx: usize) -> Vec<Vec<f64>> {
    let mut session = Session::new(model, n_ctx, MEMORY).expect("memory");
    let mut rows = Vec::new();
    session.feed(tokens, 0, &mut |_, logits| rows.push(log_softmax(logits))).expect("fits");
    rows
}

/// Differences from llama.cpp's: the largest, and the mean of absolute ones.
#[derive(Default, Debug)]
struct Spread {
    largest: f64,
    sum: f64,
    n: usize,
}

impl Spread {
    fn add(&mut self, ours: f64, theirs: f64) {
        let difference = (ours - theirs).abs();
        assert!(difference.is_finite(), "{ours} and {theirs}");
        self.largest = self.largest.max(difference);
        self.sum += difference;
        self.n += 1;
    }

    fn merge(&mut self, other: &Spread) {
        self.largest = self.largest.max(other.largest);
        self.sum += other.sum;
        self.n += other.n;
    }

    fn mean(&self) -> f64 {
        self.sum / self.n as f64
    }
}

/// Every log-probability that the entry of a prompt has; `top_ids` are at `positions`, or
/// everywhere.
fn compare(spread: &mut Spread, rows: &[Vec<f64>], tokens: &[u32], entry: &Json) {
    for ((row, &next), theirs) in rows.iter().zip(&tokens[1..]).zip(floats(&entry["next"])) {
        spread.add(row[next as usize], theirs);
    }
    let positions = match entry["positions"].as_array() {
        Some(_) => ids(&entry["positions"]),
        None => (0..rows.len() as u32).collect(),
    };
    let tops = entry["top_ids"].as_array().expect("ids").iter().zip(entry["top_logprobs"].as_array().expect("numbers"));
    assert_eq!(tops.len(), positions.len());
    for (position, (top, theirs)) in positions.into_iter().zip(tops) {
        let row = &rows[position as usize];
        ids(top).iter().zip(floats(theirs)).for_each(|(&id, theirs)| spread.add(row[id as usize], theirs));
    }
}

fn bounds(ty: &str) -> (f64, f64) {
    let (_, largest, mean) = BOUNDS.into_iter().find(|b| b.0 == ty).expect("a bound for each type");
    (largest, mean)
}

fn check_bounds(what: &str, ty: &str, spread: &Spread) {
    let (largest, mean) = bounds(ty);
    assert!(spread.n > 50, "{what}");
    println!("{what}: {} values, largest {:.2e}, mean {:.2e}", spread.n, spread.largest, spread.mean());
    assert!(spread.largest < largest && spread.mean() < mean, "{what}: {spread:?}, mean {}", spread.mean());
}

#[test]
fn log_probabilities_are_those_of_llama_cpp() {
    let goldens = fixture("logprobs.json");
    let prompts = goldens["prompts"].as_array().expect("prompts");
    for (name, entry) in goldens["models"].as_object().expect("models") {
        let model = load(&model_file(entry), 2);
        let mut spread = Spread::default();
        for (prompt, theirs) in prompts.iter().zip(entry["prompts"].as_array().expect("prompts")) {
            let tokens = ids(&prompt["tokens"]);
            compare(&mut spread, &teacher_forced(&model, &tokens, 256), &tokens, theirs);
        }
        for full in entry["full"].as_array().expect("rows") {
            let tokens = ids(&prompts[full["prompt"].as_u64().expect("a prompt") as usize]["tokens"]);
            let rows = teacher_forced(&model, &tokens, 256);
            let position = full["position"].as_u64().expect("a position") as usize;
            rows[position].iter().zip(floats(&full["logprobs"])).for_each(|(ours, theirs)| spread.add(*ours, theirs));
        }
        check_bounds(name, entry["merge_type"].as_str().unwrap_or("F16"), &spread);
    }
}
