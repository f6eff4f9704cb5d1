//! The codec against ggml, one thread: `cargo bench -p oracle --bench codec`, with a filter such as
//! `encode/q4_K` behind `--` if wanted. Ends with a table: how many times faster than ggml each
//! type is, at each level of vector instructions that the processor has, by the CPU time of the
//! thread.
#![allow(unsafe_code, missing_docs, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::path::Path;
use std::ptr;
use std::time::Duration;

use chatvec::ggml::GgmlType;
use chatvec::quants::{Level, dequantize_row_at, quantize_rows_at, requires_importance, supported};
use cpu_time::ThreadTime;
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkId, Criterion, Throughput};
use llama_cpp_sys_4 as sys;

/// CPU time of this thread: other programs on the machine do not count.
struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = ThreadTime;
    type Value = Duration;

    fn start(&self) -> ThreadTime {
        ThreadTime::now()
    }

    fn end(&self, start: ThreadTime) -> Duration {
        start.elapsed()
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

const ROW_LEN: usize = 4096;

/// Normal weights, as many as need some milliseconds.
fn weights(n: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 + 0.5) / (1 << 24) as f32
    };
    (0..n).map(|_| 0.02 * (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos()).collect()
}

fn ggml_encode(ty: GgmlType, x: &[f32], importance: Option<&[f32]>, blocks: &mut [u8]) {
    let importance = importance.map_or(ptr::null(), <[f32]>::as_ptr);
    // SAFETY: `x` holds whole rows, `blocks` their size, `importance` a row or nothing.
    unsafe {
        let n_rows = x.len() / ROW_LEN;
        let dst = blocks.as_mut_ptr().cast();
        sys::ggml_quantize_chunk(ty.id(), x.as_ptr(), dst, 0, n_rows as i64, ROW_LEN as i64, importance);
    }
}

fn ggml_decode(ty: GgmlType, blocks: &[u8], x: &mut [f32]) {
    // SAFETY: the table has an entry for every id; `x` holds what `blocks` decode to.
    unsafe {
        let to_float = (*sys::ggml_get_type_traits(ty.id())).to_float.expect("a type that can be read");
        to_float(blocks.as_ptr().cast(), x.as_mut_ptr(), x.len() as i64);
    }
}

fn bench(c: &mut Criterion<CpuTime>) {
    for ty in supported().filter(|ty| *ty != GgmlType::F32) {
        let is_slow = ["iq1", "iq2", "iq3"].iter().any(|slow| ty.name().starts_with(slow));
        let x = weights(if is_slow { 2 * ROW_LEN } else { 32 * ROW_LEN });
        let importance: Vec<f32> = weights(ROW_LEN).iter().map(|x| x * x).collect();
        let mut blocks = vec![0; x.len() / ty.block_len() * ty.block_size()];
        for (kind, importance) in [("encode", None), ("encode-imatrix", Some(&importance[..]))] {
            if importance.is_none() && requires_importance(ty) {
                continue;
            }
            let mut group = c.benchmark_group(format!("{kind}/{}", ty.name()));
            group.throughput(Throughput::Elements(x.len() as u64));
            group.bench_function(BenchmarkId::from_parameter("ggml"), |b| {
                b.iter(|| ggml_encode(ty, &x, importance, &mut blocks));
            });
            for level in Level::available() {
                group.bench_function(BenchmarkId::from_parameter(level), |b| {
                    b.iter(|| quantize_rows_at(level, ty, &x, importance, &mut blocks).expect("a level there is"));
                });
            }
        }
        ggml_encode(ty, &x, Some(&importance), &mut blocks);
        let mut y = vec![0.0; x.len()];
        let mut group = c.benchmark_group(format!("decode/{}", ty.name()));
        group.throughput(Throughput::Elements(x.len() as u64));
        group.bench_function(BenchmarkId::from_parameter("ggml"), |b| b.iter(|| ggml_decode(ty, &blocks, &mut y)));
        for level in Level::available() {
            group.bench_function(BenchmarkId::from_parameter(level), |b| {
                b.iter(|| dequantize_row_at(level, ty, &blocks, &mut y).expect("a level there is"));
            });
        }
    }
}

/// What criterion left on the disk, as a table. Rows that this run filtered out are those of the
/// run before.
fn table(folder: &Path) {
    let mut medians: BTreeMap<(String, String), BTreeMap<String, f64>> = BTreeMap::new();
    let read = |path: &Path| -> Option<f64> {
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        json["median"]["point_estimate"].as_f64()
    };
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((kind @ ("decode" | "encode" | "encode-imatrix"), ty)) = name.split_once('_') else { continue };
        for level in std::fs::read_dir(entry.path()).into_iter().flatten().flatten() {
            if let Some(median) = read(&level.path().join("new/estimates.json")) {
                let level = level.file_name().to_string_lossy().into_owned();
                medians.entry((kind.to_owned(), ty.to_owned())).or_default().insert(level, median);
            }
        }
    }
    println!("\nTimes faster than ggml (CPU time of one thread, medians):\n");
    let levels: Vec<String> = Level::available().map(|level| level.to_string()).collect();
    println!("| | type | {} |", levels.join(" | "));
    println!("|---|---|{}", "---|".repeat(levels.len()));
    for ((kind, ty), medians) in medians {
        let Some(ggml) = medians.get("ggml") else { continue };
        let cell = |level| medians.get(level).map_or(String::new(), |ours| format!("{:.1}", ggml / ours));
        let cells: Vec<String> = levels.iter().map(cell).collect();
        println!("| {kind} | {ty} | {} |", cells.join(" | "));
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .with_measurement(CpuTime)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(700))
        .configure_from_args();
    bench(&mut criterion);
    criterion.final_summary();
    table(Path::new("target/criterion"));
}
