//! `chatvec quantize` against `llama_model_quantize`: the same type for every tensor, and the same
//! bytes.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use chatvec::ggml::GgmlType;
use chatvec::gguf::{Array, Header, Limits, Metadata, Model, StringArray, TensorSpec, Value, WriteOptions, Writer};
use chatvec::plan::FileType;
use chatvec::quants::quantize_row;

use crate::distributions::{Random, importance};
use crate::ggml::{self, Matrix, Quantize};

/// A model that llama-quantize takes: it looks at hyperparameters and tensors, not at a vocabulary.
struct Shape {
    name: &'static str,
    architecture: &'static str,
    n_layer: u32,
    n_embd: u64,
    n_head: u32,
    n_head_kv: u32,
    n_ff: u64,
    n_expert: u64,
    n_vocab: u64,
    is_tied: bool,
}

const LLAMA: Shape = Shape {
    name: "",
    architecture: "llama",
    n_layer: 8,
    n_embd: 512,
    n_head: 8,
    n_head_kv: 8,
    n_ff: 1280,
    n_expert: 0,
    n_vocab: 1024,
    is_tied: false,
};

/// Of about 20 million weights each. GQA of 4, as in 70B models; 8 experts, as Mixtral; 4 experts;
/// one matrix for embedding and output; rows that divide by 32 but not by 256, and by neither.
const SHAPES: [Shape; 6] = [
    Shape { name: "gqa", n_head_kv: 2, ..LLAMA },
    Shape { name: "moe8", n_layer: 4, n_embd: 256, n_head_kv: 2, n_ff: 768, n_expert: 8, ..LLAMA },
    Shape { name: "moe4", n_layer: 4, n_embd: 256, n_ff: 1536, n_expert: 4, ..LLAMA },
    Shape { name: "tied", architecture: "qwen2", is_tied: true, ..LLAMA },
    Shape { name: "odd", n_embd: 480, n_ff: 1376, n_head_kv: 4, ..LLAMA },
    Shape { name: "odder", n_embd: 400, n_ff: 1000, n_head_kv: 4, ..LLAMA },
];

impl Shape {
    /// A sixteenth of the weights: every width halved, a quarter of the layers (but enough for a
    /// mixture to show).
    fn small(&self) -> Shape {
        let Shape { n_embd, n_ff, .. } = *self;
        // A width keeps what it divides by.
        let half = |n: u64| if n.is_multiple_of(512) { n / 2 } else { n };
        Shape {
            n_layer: 8.min(self.n_layer),
            n_embd: half(n_embd),
            n_ff: 256.max(half(n_ff) / 2 / 8 * 8),
            n_vocab: 256,
            ..*self
        }
    }

    fn metadata(&self) -> Metadata {
        let mut m = Metadata::default();
        let key = |name: &str| format!("{}.{name}", self.architecture);
        m.set("general.architecture", self.architecture);
        m.set("general.file_type", Value::U32(1));
        m.set("tokenizer.ggml.model", "no_vocab");
        for (name, value) in [
            ("block_count", self.n_layer),
            ("context_length", 256),
            ("embedding_length", self.n_embd as u32),
            ("feed_forward_length", self.n_ff as u32),
            ("attention.head_count", self.n_head),
            ("attention.head_count_kv", self.n_head_kv),
            ("vocab_size", self.n_vocab as u32),
            ("rope.dimension_count", self.n_embd as u32 / self.n_head),
        ] {
            m.set(&key(name), Value::U32(value));
        }
        if self.n_expert > 0 {
            m.set(&key("expert_count"), Value::U32(self.n_expert as u32));
            m.set(&key("expert_used_count"), Value::U32(2));
        }
        m.set(&key("attention.layer_norm_rms_epsilon"), Value::F32(1e-5));
        m
    }

    fn tensors(&self) -> Vec<TensorSpec> {
        let &Shape { n_embd, n_ff, n_expert, n_vocab, .. } = self;
        let n_kv = n_embd / u64::from(self.n_head) * u64::from(self.n_head_kv);
        let mut specs = Vec::new();
        let mut add = |name: String, ne: &[u64]| {
            let ty = if ne.len() == 1 || name.contains("gate_inp") { GgmlType::F32 } else { GgmlType::F16 };
            specs.push(TensorSpec { name, ne: ne.to_vec(), ty });
        };
        add("token_embd.weight".to_owned(), &[n_embd, n_vocab]);
        for layer in 0..self.n_layer {
            let mut add = |name: &str, ne: &[u64]| add(format!("blk.{layer}.{name}.weight"), ne);
            add("attn_norm", &[n_embd]);
            add("attn_q", &[n_embd, n_embd]);
            add("attn_k", &[n_embd, n_kv]);
            add("attn_v", &[n_embd, n_kv]);
            add("attn_output", &[n_embd, n_embd]);
            add("ffn_norm", &[n_embd]);
            if n_expert > 0 {
                add("ffn_gate_inp", &[n_embd, n_expert]);
                add("ffn_gate_exps", &[n_embd, n_ff, n_expert]);
                add("ffn_down_exps", &[n_ff, n_embd, n_expert]);
                add("ffn_up_exps", &[n_embd, n_ff, n_expert]);
            } else {
                add("ffn_gate", &[n_embd, n_ff]);
                add("ffn_down", &[n_ff, n_embd]);
                add("ffn_up", &[n_embd, n_ff]);
            }
        }
        add("output_norm.weight".to_owned(), &[n_embd]);
        if !self.is_tied {
            add("output.weight".to_owned(), &[n_embd, n_vocab]);
        }
        specs
    }

    fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join(format!("{}.gguf", self.name));
        let mut random = Random::new(self.n_ff);
        write(&path, self.metadata(), self.tensors(), |spec| {
            let n = spec.ne.iter().product::<u64>() as usize;
            (0..n).map(|_| random.normal() * 0.02).collect()
        });
        path
    }
}

/// Writes a file of these tensors with the weights that `make` gives.
fn write(path: &Path, metadata: Metadata, specs: Vec<TensorSpec>, mut make: impl FnMut(&TensorSpec) -> Vec<f32>) {
    let header = Header::new(metadata, specs.clone()).expect("a header");
    let writer = Writer::create(header, path, &WriteOptions::default()).expect("a writer");
    for (i, spec) in specs.iter().enumerate() {
        let weights = make(spec);
        let mut blocks = vec![0; spec.ty.size_of(weights.len() as u64).expect("whole blocks") as usize];
        quantize_row(spec.ty, &weights, &mut blocks).expect("an ordinary type");
        writer.write(i, 0, &blocks).expect("room");
    }
    writer.finish(None).expect("a file");
}

/// An importance for each matrix of a model, by name: what `llama_model_quantize` takes.
fn matrix(model: &Model) -> Matrix {
    let weights = model.tensors().filter(|t| t.n_dims() > 1).enumerate();
    weights
        .map(|(i, t)| {
            let n = t.row_len() * t.ne().get(2).copied().unwrap_or(1);
            (t.name().to_owned(), importance(n as usize, i as u64 + 1))
        })
        .collect()
}

/// Writes it as a file that `--imatrix` takes.
fn write_matrix(path: &Path, model: &Model, matrix: &Matrix) {
    let mut metadata = Metadata::default();
    metadata.set("general.type", "imatrix");
    let mut datasets = StringArray::default();
    datasets.push(b"none");
    metadata.set("imatrix.datasets", Value::Array(Array::Strings(datasets)));
    metadata.set("imatrix.chunk_count", Value::U32(1));
    metadata.set("imatrix.chunk_size", Value::U32(512));
    let mut specs = Vec::new();
    for (name, values) in matrix {
        let row_len = model.tensor(model.find(name).expect("a tensor")).row_len();
        let n_mat = values.len() as u64 / row_len;
        let spec = |suffix: &str, ne: [u64; 2]| TensorSpec {
            name: format!("{name}.{suffix}"),
            ne: ne.to_vec(),
            ty: GgmlType::F32,
        };
        specs.push(spec("counts", [1, n_mat]));
        specs.push(spec("in_sum2", [row_len, n_mat]));
    }
    write(path, metadata, specs, |spec| match spec.name.strip_suffix(".in_sum2") {
        Some(name) => matrix.iter().find(|(n, _)| n == name).expect("an entry").1.clone(),
        None => vec![1.0; spec.ne[1] as usize],
    });
}

fn open(path: &Path) -> Model {
    Model::open(path, &Limits::default()).expect("a model")
}

/// Runs `chatvec quantize`; what it said if it failed.
fn chatvec(input: &Path, output: &Path, options: &[&OsStr]) -> Result<(), String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatvec-command"));
    command.arg("quantize").arg(input).arg("-o").arg(output).args(["--threads", "2"]).args(options);
    let ran = command.output().expect("the command");
    if ran.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&ran.stderr).into_owned()) }
}

/// Panics unless both have the same tensors, in the types and bytes of the other.
fn assert_same_tensors(what: &str, ours: &Model, theirs: &Model) {
    assert_eq!(ours.n_tensors(), theirs.n_tensors(), "{what}");
    let data = |model: &Model, id| {
        let mut data = vec![0; model.tensor(id).size() as usize];
        model.read(id, 0, &mut data).expect("the data");
        data
    };
    for (id, tensor) in ours.tensors().enumerate() {
        let other = theirs.find(tensor.name()).expect("the same tensors");
        assert_eq!(tensor.ty(), theirs.tensor(other).ty(), "{what}: {}", tensor.name());
        assert!(data(ours, id) == data(theirs, other), "{what}: {} {}: bytes", tensor.name(), tensor.ty());
    }
}

/// Quantises with both and compares. `importance` is the file and the same in memory.
fn compare(input: &Path, file_type: &FileType, pure: bool, importance: Option<(&Path, &Matrix)>) {
    let what = format!("{}: {}, pure {pure}, importance {}", input.display(), file_type.name, importance.is_some());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (ours, theirs) = (folder.path().join("ours.gguf"), folder.path().join("theirs.gguf"));

    let matrix = importance.map(|(_, matrix)| matrix);
    let options = Quantize { file_type: file_type.id, pure, importance: matrix, ..Quantize::default() };
    let result = ggml::quantize_model(input, &theirs, &options);
    let mut arguments = vec![OsStr::new("--type"), OsStr::new(file_type.name)];
    if pure {
        arguments.push(OsStr::new("--pure"));
    }
    if let Some((path, _)) = importance {
        arguments.extend([OsStr::new("--imatrix"), path.as_os_str()]);
    }
    let ran = chatvec(input, &ours, &arguments);
    if result.is_err() {
        // Types that are worthless without a matrix, or for which there are no rules.
        let said = ran.expect_err(&what);
        assert!(
            ["--imatrix", "--pure", "--allow-requantize", "--tensor-type"].iter().any(|way_out| said.contains(way_out)),
            "{what}: {said}"
        );
        return;
    }
    ran.unwrap_or_else(|e| panic!("{what}: {e}"));
    let (source, ours, theirs) = (open(input), open(&ours), open(&theirs));
    assert!(ours.tensors().map(|t| t.name()).eq(source.tensors().map(|t| t.name())), "{what}: order");
    for key in ["general.file_type", "general.quantization_version"] {
        assert_eq!(ours.metadata().get(key), theirs.metadata().get(key), "{what}: {key}");
    }
    assert_same_tensors(&what, &ours, &theirs);
}

/// Every file type that llama-quantize knows, some of which it refuses.
fn file_types() -> impl Iterator<Item = &'static FileType> {
    (0..64).filter_map(FileType::from_id)
}

/// ggml takes a minute for a million weights of some of them.
fn is_slow(file_type: &FileType) -> bool {
    ["IQ1", "IQ2", "IQ3"].iter().any(|slow| file_type.name.starts_with(slow))
}

fn is_full() -> bool {
    std::env::var("CHATVEC_ORACLE_MODELS").is_ok_and(|s| s == "full")
}

fn compare_all(input: &Path, takes_slow: bool) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = open(input);
    let (path, matrix) = (folder.path().join("imatrix.gguf"), matrix(&model));
    write_matrix(&path, &model, &matrix);
    let mut names = HashSet::new();
    for file_type in file_types().filter(|f| takes_slow || !is_slow(f)) {
        assert!(names.insert(file_type.name));
        compare(input, file_type, false, None);
        compare(input, file_type, false, Some((&path, &matrix)));
    }
    // One type in every tensor.
    for name in ["Q4_K_M", "Q5_1", "IQ4_XS", "TQ2_0"] {
        compare(input, FileType::from_name(name).expect("a file type"), true, None);
    }
}

fn compare_shape(name: &str) {
    let shape = SHAPES.iter().find(|s| s.name == name).expect("a shape");
    let folder = tempfile::tempdir().expect("a temporary folder");
    match is_full() {
        true => compare_all(&shape.write(folder.path()), true),
        false => compare_all(&shape.small().write(folder.path()), false),
    }
}

#[test]
fn bundled_models() {
    for name in ["base", "chat", "cp-de"] {
        let input = format!("../../fixtures/models/tinyworld-A-{name}-F16.gguf");
        compare_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join(input), name == "base" || is_full());
    }
}

#[test]
fn grouped_queries() {
    compare_shape("gqa");
}

#[test]
fn eight_experts() {
    compare_shape("moe8");
}

#[test]
fn four_experts() {
    compare_shape("moe4");
}

#[test]
fn tied() {
    compare_shape("tied");
}

#[test]
fn rows_of_whole_small_blocks() {
    compare_shape("odd");
}

#[test]
fn rows_of_no_whole_blocks() {
    compare_shape("odder");
}

#[test]
fn quantised_input_is_quantised_again_only_if_asked() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (input, output) = (folder.path().join("q8.gguf"), folder.path().join("out.gguf"));
    let shape = SHAPES[0].small().write(folder.path());
    ggml::quantize_model(&shape, &input, &Quantize { file_type: 7, ..Quantize::default() }).expect("Q8_0");
    compare(&input, FileType::from_name("Q4_K_M").expect("a file type"), false, None);
    let options = Quantize { file_type: 15, allow_requantize: true, ..Quantize::default() };
    ggml::quantize_model(&input, &output, &options).expect("Q4_K_M");
    let ours = folder.path().join("ours.gguf");
    let arguments = ["--type", "Q4_K_M", "--allow-requantize"].map(OsStr::new);
    chatvec(&input, &ours, &arguments).unwrap_or_else(|e| panic!("{e}"));
    assert_same_tensors("from Q8_0", &open(&ours), &open(&output));
}
