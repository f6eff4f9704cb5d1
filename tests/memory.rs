//! A merge and a session stay within their memory, counted by the allocator: for the whole process,
//! so one after the other.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Mutex;

use chatvec::chat::{Templates, TokenMap};
use chatvec::eval;
use chatvec::ggml::GgmlType;
use chatvec::gguf::{Array, Error, Header, Limits, Metadata, Model, StringArray, TensorSpec, Value};
use chatvec::infer::{self, Session, Transformer};
use chatvec::patch::{self, Extraction, encode};
use chatvec::pipeline::{self, Budget, TensorSink};
use chatvec::plan::{MergePlan, Merging, OutputType, Recipe, SpecialTokens, VectorSettings};
use chatvec::survey::{self, SampleSettings};
use chatvec::vector::{self, Inputs, Method};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Held by the test that runs.
static COUNTING: Mutex<()> = Mutex::new(());

/// What a run takes besides its buffers: the plan's chunks, threads, sums.
const BESIDES: u64 = 256 << 10;

/// Takes everything and keeps nothing.
struct Nowhere;

impl TensorSink for Nowhere {
    fn write(&self, _tensor: usize, _offset: u64, _bytes: &[u8]) -> Result<(), Error> {
        Ok(())
    }
}

/// Writes a model of F32 tensors with rows of these lengths, three each, all weights zero: a file
/// of holes.
fn write(path: &Path, row_lens: &[u64]) {
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", "llama");
    let tensors = row_lens.iter().enumerate().map(|(i, &row_len)| TensorSpec {
        name: format!("blk.{i}.ffn_up.weight"),
        ne: vec![row_len, 3],
        ty: GgmlType::F32,
    });
    write_holes(path, &Header::new(metadata, tensors).expect("a valid header"), 0);
}

fn write_holes(path: &Path, header: &Header, last: u8) {
    let mut file = std::fs::File::create(path).expect("a file");
    file.write_all(&header.encode()).expect("the header");
    file.seek(SeekFrom::Start(header.file_len() - 1)).expect("the end");
    file.write_all(&[last]).expect("the last byte");
}

fn peak_above(before: usize) -> u64 {
    ALLOCATOR.peak_usage().saturating_sub(before) as u64
}

#[test]
fn buffers_stay_within_the_budget_however_rows_grow() {
    let _counting = COUNTING.lock();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    // Each a little longer than the one before: buffers that grow by themselves would double.
    for row_lens in [&[700_000, 999_936, 1_000_192][..], &[256, 4096, 300_032, 320_000, 65_536], &[256; 40]] {
        write(&path, row_lens);
        let open = || Model::open(&path, &Limits::default()).expect("a valid file");
        let inputs = Inputs::merge(open(), open(), open(), 1.0);
        let pairs = vector::pair(&inputs).expect("siblings");
        for (name, threads, method) in [
            ("keep", 1, Method::TaskArithmetic),
            ("keep", 2, Method::TaskArithmetic),
            ("Q8_0", 1, Method::TaskArithmetic),
            ("Q8_0", 3, Method::TaskArithmetic),
            ("keep", 1, Method::Ties),
            ("Q8_0", 2, Method::DareTies),
        ] {
            let density = method.is_sparse().then(|| 0.5.into());
            let vectors = vec![VectorSettings { weight: None, density }];
            let merging = Merging { method, vectors, ..Merging::default() };
            let output = OutputType::parse(name, true).expect("a type");
            let recipe = Recipe { output, merging, special_tokens: SpecialTokens::None, ..Recipe::default() };
            let plan = MergePlan::merge(&inputs, pairs.clone(), &recipe, None).expect("a plan");
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
                // And it is no idle figure; of several workers, one may have done all before
                // another began.
                assert!(
                    threads > 1 || peak + BESIDES >= needed / 2,
                    "{row_lens:?} {name} {threads}: {peak} far below {needed}"
                );
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

/// Writes a model with a row for each of 4000 tokens, and matrices; all weights are zero, but for
/// the last one.
fn write_with_tokens(path: &Path, last: u8) {
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", "llama");
    let tokens: StringArray = (0..4000).map(|i| format!("t{i}")).collect();
    metadata.set("tokenizer.ggml.tokens", Value::Array(Array::Strings(tokens)));
    let spec = |name: String, ne: &[u64]| TensorSpec { name, ne: ne.to_vec(), ty: GgmlType::F32 };
    let matrices = (0..24).map(|i| spec(format!("blk.{i}.ffn_up.weight"), &[1024, 600]));
    let tensors = matrices.chain([spec("token_embd.weight".to_owned(), &[1024, 4000])]);
    write_holes(path, &Header::new(metadata, tensors).expect("a valid header"), last);
}

#[test]
fn a_patch_is_planned_within_its_memory_for_any_number_of_threads() {
    let _counting = COUNTING.lock();
    let folder = tempfile::tempdir().expect("a folder");
    let [base, chat] = [0, 1].map(|last| {
        let path = folder.path().join(format!("{last}.gguf"));
        write_with_tokens(&path, last);
        Model::open(&path, &Limits::default()).expect("a valid file")
    });
    let inputs = Inputs::extract(base, chat);
    let extraction = Extraction { encoding: GgmlType::Q8_0, looks: true };
    for (threads, memory) in [(1, 2 << 20), (64, 4 << 20), (64, 16 << 20)] {
        let pairs = vector::pair(&inputs).expect("siblings");
        ALLOCATOR.reset_peak_usage();
        let before = ALLOCATOR.current_usage();
        let plan = patch::plan_extract(&inputs, pairs, &extraction, &Budget { memory, threads }).expect("a plan");
        let peak = peak_above(before);
        // The plan has a header with the tokens; each thread has what it begins with.
        assert!(peak <= memory + BESIDES + (512 << 10) + (threads as u64) * 4096, "{threads}: {peak} of {memory}");
        assert_eq!(plan.tensors()[0].ne, [1024, 1], "of the rows of tokens one moved");
    }
}

/// Writes a llama of two layers, 4000 tokens and weights of zero.
fn write_llama(path: &Path, ty: GgmlType) {
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", "llama");
    let keys = [("context_length", 4096), ("embedding_length", 256), ("block_count", 2), ("feed_forward_length", 1024)];
    for (key, value) in keys.into_iter().chain([("attention.head_count", 4), ("attention.head_count_kv", 2)]) {
        metadata.set(&format!("llama.{key}"), Value::U32(value));
    }
    metadata.set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    let spec = |name: String, ne: &[u64], ty| TensorSpec { name, ne: ne.to_vec(), ty };
    let mut tensors = vec![spec("token_embd.weight".into(), &[256, 4000], ty)];
    for i in 0..2 {
        let norms = ["attn_norm", "ffn_norm"].map(|n| spec(format!("blk.{i}.{n}.weight"), &[256], GgmlType::F32));
        let (kv, up) = ([256, 128], [256, 1024]);
        let matrices = [
            ("attn_q", [256, 256]),
            ("attn_k", kv),
            ("attn_v", kv),
            ("attn_output", [256, 256]),
            ("ffn_gate", up),
            ("ffn_up", up),
            ("ffn_down", [1024, 256]),
        ];
        tensors.extend(norms);
        tensors.extend(matrices.map(|(n, ne)| spec(format!("blk.{i}.{n}.weight"), &ne, ty)));
    }
    tensors.push(spec("output_norm.weight".into(), &[256], GgmlType::F32));
    write_holes(path, &Header::new(metadata, tensors).expect("a valid header"), 0);
}

#[test]
fn a_session_takes_no_more_than_it_says() {
    let _counting = COUNTING.lock();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    for ty in [GgmlType::F32, GgmlType::Q8_0, GgmlType::Q4_1, GgmlType::Q4_K] {
        write_llama(&path, ty);
        let model = Model::open(&path, &Limits::default()).expect("a valid file");
        for (threads, n_ctx) in [(1, 40), (3, 40), (1, 300), (2, 2000)] {
            let model = Transformer::load(&model, threads).expect("a llama");
            let needed = match Session::new(&model, n_ctx, 1) {
                Err(infer::Error::Memory { needed, .. }) => needed,
                _ => panic!("a byte is enough"),
            };
            ALLOCATOR.reset_peak_usage();
            let before = ALLOCATOR.current_usage();
            let mut session = Session::new(&model, n_ctx, needed).expect("as much as it said");
            // All logits of a few tokens, and no others, which take long.
            let n_tokens = n_ctx.min(400) - 3;
            session.feed(&vec![7; n_tokens], n_tokens - 20, &mut |_, _| ()).expect("fits");
            (0..3).for_each(|_| session.feed(&[9], 0, &mut |_, _| ()).expect("fits"));
            let peak = peak_above(before);
            assert!(peak <= needed, "{ty} {threads} {n_ctx}: {peak} above {needed}");
            assert!(n_ctx < 128 || peak >= needed / 3, "{ty} {threads} {n_ctx}: {peak} far below {needed}");
        }
    }
}

/// The least memory for headers with which a file is opened.
fn least_header_memory(path: &Path) -> u64 {
    let opens = |memory| {
        let limits = Limits { max_header_memory: memory, ..Limits::default() };
        Model::open(path, &limits).is_ok()
    };
    let (mut low, mut high) = (0, 1 << 30);
    assert!(opens(high));
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if opens(middle) { high = middle } else { low = middle }
    }
    high
}

#[test]
fn a_header_and_what_is_made_of_it_take_no_more_than_is_counted() {
    let _counting = COUNTING.lock();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    let n = 100_000;
    let strings = |text: &dyn Fn(usize) -> String| Value::Array(Array::Strings((0..n).map(text).collect()));
    let short = |i: usize| format!("{}{}{}", letter(i / 676), letter(i / 26 % 26), letter(i % 26));
    let mut kinds: Vec<(&str, Metadata, usize)> = Vec::new();
    let with = |pairs: Vec<(&str, Value)>| {
        let mut metadata = Metadata::default();
        metadata.set("general.architecture", "llama");
        metadata.set("tokenizer.ggml.model", "gpt2");
        pairs.into_iter().for_each(|(key, value)| metadata.set(key, value));
        metadata
    };
    const TOKENS: &str = "tokenizer.ggml.tokens";
    const MERGES: &str = "tokenizer.ggml.merges";
    let no_merges = || (MERGES, Value::Array(Array::Strings(Default::default())));
    let normal = || ("tokenizer.ggml.token_type", Value::Array(Array::from_i32s(&vec![1; n])));
    kinds.push(("empty tokens", with(vec![(TOKENS, strings(&|_| String::new())), no_merges()]), 0));
    kinds.push(("short tokens", with(vec![(TOKENS, strings(&short)), no_merges(), normal()]), 0));
    kinds.push(("long tokens", with(vec![(TOKENS, strings(&|i| format!("{i:0100}"))), no_merges(), normal()]), 0));
    let one = || (TOKENS, Value::Array(Array::Strings(["a"].into_iter().collect())));
    kinds.push(("merges", with(vec![one(), (MERGES, strings(&|i| format!("{i} x{i}")))]), 0));
    kinds.push(("strings", with(vec![("general.tags", strings(&short))]), 0));
    kinds.push(("tensors", with(vec![]), n));
    for (what, metadata, n_tensors) in kinds {
        let tensors = (0..n_tensors).map(|i| TensorSpec {
            name: format!("blk.{i}.a.name.that.is.as.long.as.a.name.may.be.{i:08}"),
            ne: vec![0],
            ty: GgmlType::F32,
        });
        let mut bytes = Header::new(metadata, tensors).expect("a valid header").encode();
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        std::fs::write(&path, bytes).expect("a file");
        let counted = least_header_memory(&path);
        ALLOCATOR.reset_peak_usage();
        let before = ALLOCATOR.current_usage();
        let model = Model::open(&path, &Limits::default()).expect("a valid file");
        eval::audit_chat(&model, &Templates::default()).expect("rows that are not there");
        let maps = TokenMap::new(model.metadata(), model.metadata()).map(|map| map.inverted());
        let peak = peak_above(before);
        drop((model, maps));
        assert!(peak <= counted + BESIDES, "{what}: {peak} above {counted}");
        assert!(peak >= counted / 8, "{what}: {peak} far below {counted}");
    }
}

fn letter(i: usize) -> char {
    char::from_u32(0x100 + i as u32).expect("a letter")
}

/// Writes a patch of one decomposed matrix of zeros.
fn write_decomposed(path: &Path, row_len: usize, n_rows: usize, rank: usize) {
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", "llama");
    metadata.set("general.type", "chat-vector");
    metadata.set("chatvec.patch.version", Value::U32(1));
    let name = "blk.0.attn_q.weight";
    metadata.set("chatvec.patch.svd.tensors", Value::Array(Array::Strings([name].into_iter().collect())));
    metadata.set("chatvec.patch.svd.shapes", Value::Array(Array::from_u32s(&[row_len as u32, n_rows as u32])));
    let frames = |len: usize| encode::compress(&vec![0; rank * len], 1 << 12).expect("frames");
    let parts = [
        (".svd_d", GgmlType::F32, vec![0; 4 * rank]),
        (".svd_a.zstd", GgmlType::I8, frames(row_len)),
        (".svd_b.zstd", GgmlType::I8, frames(n_rows)),
    ];
    let spec = |(end, ty, bytes): &(&str, GgmlType, Vec<u8>)| TensorSpec {
        name: format!("{name}{end}"),
        ne: vec![(bytes.len() / ty.block_size()) as u64],
        ty: *ty,
    };
    let header = Header::new(metadata, parts.iter().map(spec)).expect("a valid header");
    let mut bytes = header.encode();
    for (_, _, part) in &parts {
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(part);
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    std::fs::write(path, bytes).expect("a file");
}

#[test]
fn verifying_a_patch_takes_no_more_than_its_budget() {
    let _counting = COUNTING.lock();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("patch.gguf");
    for (row_len, n_rows, rank) in [(512, 2048, 512), (4096, 256, 256), (300_000, 4, 4), (256, 256, 1)] {
        write_decomposed(&path, row_len, n_rows, rank);
        let verify = |memory| {
            patch::verify(&path, None, None, &Limits { max_work_per_byte: u64::MAX, ..Limits::within(memory) })
        };
        let needed = match verify(1) {
            Err(patch::Error::Memory { needed, .. }) => needed,
            other => panic!("{other:?}"),
        };
        ALLOCATOR.reset_peak_usage();
        let before = ALLOCATOR.current_usage();
        verify(needed).expect("as much as it said");
        let peak = peak_above(before);
        // Besides, pieces of weights and of the file.
        let pieces = 4 << 20;
        assert!(peak <= needed + pieces, "{row_len} {n_rows} {rank}: {peak} above {needed}");
        assert!(peak + pieces >= needed / 2, "{row_len} {n_rows} {rank}: {peak} far below {needed}");
    }
}
