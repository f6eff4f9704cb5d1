//! What the header of a model of today costs: 150,000 tokens with scores, types and as many merges,
//! 400 tensors.
//!
//! Reading it should take less than 50 ms, so that every command can open its files before it plans
//! anything.

use std::fs;
use std::hint::black_box;
use std::path::Path;

use chatvec::ggml::GgmlType;
use chatvec::gguf::{Array, Header, Limits, Metadata, Model, TensorSpec, Value, WriteOptions, Writer};
use criterion::{Criterion, Throughput};

const N_TOKENS: usize = 150_000;
const N_TENSORS: usize = 400;

fn metadata() -> Metadata {
    // As long as those of a byte-level vocabulary: from one byte to a dozen, seven in the middle.
    let token = |i: usize| format!("{i:x}").repeat(1 + i % 3);
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", "llama");
    metadata.set("tokenizer.ggml.model", "gpt2");
    metadata.set("tokenizer.ggml.tokens", Value::Array(Array::Strings((0..N_TOKENS).map(token).collect())));
    metadata.set("tokenizer.ggml.scores", Value::Array(Array::from_f32s(&vec![0.0; N_TOKENS])));
    metadata.set("tokenizer.ggml.token_type", Value::Array(Array::from_i32s(&vec![1; N_TOKENS])));
    let merges = (0..N_TOKENS).map(|i| format!("{} {}", token(i), token(i / 2))).collect();
    metadata.set("tokenizer.ggml.merges", Value::Array(Array::Strings(merges)));
    metadata
}

/// A header whose tensors have rows of this length.
fn header(row_len: u64) -> Header {
    let embedding =
        TensorSpec { name: "token_embd.weight".to_owned(), ne: vec![row_len, N_TOKENS as u64], ty: GgmlType::F16 };
    let others = (1..N_TENSORS).map(|i| TensorSpec {
        name: format!("blk.{}.ffn_{}.weight", i / 10, i % 10),
        ne: vec![row_len, 4096],
        ty: GgmlType::Q4_K,
    });
    Header::new(metadata(), [embedding].into_iter().chain(others)).expect("a plan")
}

fn write_empty(header: &Header, path: &Path) {
    let options = WriteOptions { overwrite: true, ..WriteOptions::default() };
    let writer = Writer::create(header.clone(), path, &options).expect("a writer");
    writer.finish(None).expect("a finished file");
}

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.gguf");
    let planned = header(4096);
    fs::write(&path, planned.encode()).expect("a header");
    // The data are a hole: nothing here reads them.
    let file = fs::File::options().write(true).open(&path).expect("the file just written");
    file.set_len(planned.file_len()).expect("a sparse file");

    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("header");
    group.throughput(Throughput::Bytes(planned.len()));
    group.bench_function("open", |b| b.iter(|| Model::open(black_box(&path), &Limits::default()).expect("a model")));
    group.bench_function("encode", |b| b.iter(|| black_box(&planned).encode()));
    // Rows of no weights: the header is all there is to write. The time is that of the disk's sync.
    let (empty, output) = (header(0), folder.path().join("out.gguf"));
    group.bench_function("write", |b| b.iter(|| write_empty(black_box(&empty), &output)));
    group.finish();
    criterion.final_summary();
}
