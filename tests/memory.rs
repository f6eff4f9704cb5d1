//! The memory of a merge stays within its budget, counted by the allocator. One test, since it counts for the whole process.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use chatvec::ggml::GgmlType;
use chatvec::gguf::{Error, Header, Limits, Metadata, Model, TensorSpec};
use chatvec::pipeline::{self, Budget, TensorSink};
use chatvec::plan::{Embeddings, MergePlan, OutputType, Recipe};
use chatvec::survey::{self, Inputs, SampleSettings};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// What a run takes besides its buffers: the plan's chunks, threads, sums.
const BESIDES: u64 = 256 << 10;

/// Takes everything and keeps nothing.
struct Nowhere;

impl TensorSink for Nowhere {
    fn write(&self, _tensor: usize, _offset: u64, _bytes: &[u8]) -> Result<(), Error> {
        Ok(())
    }
}

/// Writes a model of F32 tensors with rows of these lengths, three each, all weights zero: a file of holes.
fn write(path: &Path, row_lens: &[u64]) {
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", "llama");
    let tensors = row_lens.iter().enumerate().map(|(i, &row_len)| TensorSpec {
        name: format!("blk.{i}.ffn_up.weight"),
        ne: vec![row_len, 3],
        ty: GgmlType::F32,
    });
    let header = Header::new(metadata, tensors).expect("a valid header");
    let mut file = std::fs::File::create(path).expect("a file");
    file.write_all(&header.encode()).expect("the header");
    file.seek(SeekFrom::Start(header.file_len() - 1)).expect("the end");
    file.write_all(&[0]).expect("the last byte");
}

fn peak_above(before: usize) -> u64 {
    ALLOCATOR.peak_usage().saturating_sub(before) as u64
}

#[test]
fn buffers_stay_within_the_budget_however_rows_grow() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    // Each a little longer than the one before: buffers that grow by themselves would double.
    for row_lens in [&[700_000, 999_936, 1_000_192][..], &[256, 4096, 300_032, 320_000, 65_536], &[256; 40]] {
        write(&path, row_lens);
        let open = || Model::open(&path, &Limits::default()).expect("a valid file");
        let inputs = Inputs::merge(open(), open(), open(), 1.0);
        let pairs = survey::pair(&inputs).expect("siblings");
        for (name, threads) in [("keep", 1), ("keep", 2), ("Q8_0", 1), ("Q8_0", 3)] {
            let recipe = Recipe { output: OutputType::parse(name, true).expect("a type"), embeddings: Embeddings::All };
            let plan = MergePlan::merge(&inputs, pairs.clone(), &recipe).expect("a plan");
            // The least that this many workers run in, found by the error's own figure.
            let least = match (Budget { memory: 1, threads }).needed(&plan, &inputs) {
                Err(pipeline::Error::Budget { needed, .. }) => needed * threads as u64,
                other => panic!("{other:?}"),
            };
            for memory in [least, least + least / 3, 64 << 20] {
                let budget = Budget { memory, threads };
                let (needed, _) = budget.needed(&plan, &inputs).expect("it fits");
                assert!(needed <= memory, "{row_lens:?} {name}: {needed} of {memory}");
                ALLOCATOR.reset_peak_usage();
                let before = ALLOCATOR.current_usage();
                pipeline::run(&plan, &inputs, &Nowhere, &(), &budget).expect("a run");
                let peak = peak_above(before);
                assert!(peak <= needed + BESIDES, "{row_lens:?} {name} {threads}: {peak} above {needed}");
                // And it is no idle figure.
                assert!(peak + BESIDES >= needed / 2, "{row_lens:?} {name} {threads}: {peak} far below {needed}");
            }
        }
        for memory in [1, 2 << 20] {
            let settings = SampleSettings { threads: 8, memory, ..SampleSettings::default() };
            ALLOCATOR.reset_peak_usage();
            let before = ALLOCATOR.current_usage();
            survey::survey(&inputs, &pairs, &settings).expect("a survey");
            let peak = peak_above(before);
            assert!(peak <= memory.max(576 << 10) + BESIDES, "{row_lens:?}: {peak} of {memory}");
        }
    }
}
