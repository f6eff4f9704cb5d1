//! Base, chat and continual-pretrained models as drafts, and the crate run on them: as a library
//! and as a process.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use chatvec::ggml::GgmlType;
use chatvec::gguf::{Limits, Model, Value, WriteOptions};
use chatvec::pipeline::{self, Budget, WrittenFile};
use chatvec::plan::{self, MergePlan, OutputType, Recipe, SpecialTokens};
use chatvec::quants;
use chatvec::vector::{self, Inputs};
use half::{bf16, f16};

use crate::support::{Draft, Tensor, Val, kind};

/// Writes in place of what is there.
pub(crate) fn overwrite() -> WriteOptions {
    WriteOptions { overwrite: true, ..WriteOptions::default() }
}

pub(crate) const F32: u32 = 0;
pub(crate) const F16: u32 = 1;
pub(crate) const Q8_0: u32 = 8;
pub(crate) const Q4_K: u32 = 12;
pub(crate) const BF16: u32 = 30;

/// One of the bundled files.
pub(crate) fn bundled(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/models").join(format!("tinyworld-A-{name}-F16.gguf"))
}

/// Reads a file into a draft, to be looked at or to be changed and written again.
pub(crate) fn read(path: &Path) -> Draft {
    let model = Model::open(path, &Limits::default()).unwrap_or_else(|e| panic!("{e}"));
    let mut draft = Draft { alignment: model.alignment(), ..Draft::default() };
    draft.keys = model.metadata().iter().map(|(k, v)| (k.as_bytes().to_vec(), val(v))).collect();
    draft.tensors = (0..model.n_tensors())
        .map(|id| {
            let info = model.tensor(id);
            let mut data = vec![0; info.size() as usize];
            model.read(id, 0, &mut data).unwrap();
            Tensor { data: Some(data), ..Tensor::new(info.name(), info.ne(), info.ty().id()) }
        })
        .collect();
    draft
}

fn val(value: &Value) -> Val {
    match value {
        Value::U8(v) => Val::U8(*v),
        Value::I8(v) => Val::I8(*v),
        Value::U16(v) => Val::U16(*v),
        Value::I16(v) => Val::I16(*v),
        Value::U32(v) => Val::U32(*v),
        Value::I32(v) => Val::I32(*v),
        Value::F32(v) => Val::F32(*v),
        Value::Bool(v) => Val::Bool(*v),
        Value::String(v) => Val::Str(v.to_vec()),
        Value::Array(a) => Val::Array(a.element_type() as u32, a.iter().map(|v| val(&v)).collect()),
        Value::U64(v) => Val::U64(*v),
        Value::I64(v) => Val::I64(*v),
        Value::F64(v) => Val::F64(*v),
    }
}

/// The value of a key.
pub(crate) fn get<'a>(draft: &'a Draft, key: &str) -> Option<&'a Val> {
    draft.keys.iter().find(|(k, _)| k == key.as_bytes()).map(|(_, v)| v)
}

/// A tensor's name as text.
pub(crate) fn name(tensor: &Tensor) -> &str {
    std::str::from_utf8(&tensor.name).unwrap()
}

/// The weights of a tensor. Floats are converted here, other types by the codec, which `quants.rs`
/// holds to ggml.
pub(crate) fn weights(tensor: &Tensor) -> Vec<f32> {
    decode(tensor.ty, &tensor.data())
}

pub(crate) fn decode(ty: u32, data: &[u8]) -> Vec<f32> {
    let halves = || data.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b));
    match ty {
        F32 => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        F16 => halves().map(|bits| f16::from_bits(bits).to_f32()).collect(),
        BF16 => halves().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
        _ => {
            let ty = GgmlType::from_id(ty).unwrap();
            let mut weights = vec![0.0; data.len() / ty.block_size() * ty.block_len()];
            quants::dequantize_row(ty, data, &mut weights).unwrap();
            weights
        }
    }
}

/// The bytes of weights in a type.
pub(crate) fn encode(ty: u32, weights: &[f32]) -> Vec<u8> {
    match ty {
        F32 => weights.iter().flat_map(|w| w.to_le_bytes()).collect(),
        F16 => weights.iter().flat_map(|w| f16::from_f32(*w).to_le_bytes()).collect(),
        BF16 => weights.iter().flat_map(|w| bf16::from_f32(*w).to_le_bytes()).collect(),
        _ => {
            let ty = GgmlType::from_id(ty).unwrap();
            let mut blocks = vec![0; ty.size_of(weights.len() as u64).unwrap() as usize];
            let same = vec![1.0; weights.len()];
            let importance = quants::requires_importance(ty).then_some(&same[..]);
            quants::quantize_rows(ty, weights, importance, &mut blocks).unwrap();
            blocks
        }
    }
}

/// Gives a tensor these weights in a type.
pub(crate) fn store(tensor: &mut Tensor, ty: u32, weights: &[f32]) {
    (tensor.ty, tensor.data) = (ty, Some(encode(ty, weights)));
}

/// Changes the weights of a tensor.
pub(crate) fn change(tensor: &mut Tensor, f: impl FnOnce(&mut [f32])) {
    let mut values = weights(tensor);
    f(&mut values);
    store(tensor, tensor.ty, &values);
}

/// Writes every matrix that llama-quantize would touch in another type.
pub(crate) fn requantise(draft: &mut Draft, ty: u32) {
    for tensor in &mut draft.tensors {
        if tensor.ne.len() > 1 && !name(tensor).contains("_norm") {
            let values = weights(tensor);
            store(tensor, ty, &values);
        }
    }
}

/// Bytes with −0 as +0, for types that are one number a weight.
pub(crate) fn plus_zero(ty: u32, mut data: Vec<u8>) -> Vec<u8> {
    match ty {
        F32 => data.as_chunks_mut::<4>().0.iter_mut().for_each(|b| {
            if *b == [0, 0, 0, 0x80] {
                b[3] = 0;
            }
        }),
        F16 | BF16 => data.as_chunks_mut::<2>().0.iter_mut().for_each(|b| {
            if *b == [0, 0x80] {
                b[1] = 0;
            }
        }),
        _ => {}
    }
    data
}

/// `cp + ratio·(chat − base)` in f32.
pub(crate) fn sum(cp: &Tensor, base: &Tensor, chat: &Tensor, ratio: f32) -> Vec<f32> {
    let (base, chat) = (weights(base), weights(chat));
    weights(cp).iter().zip(base.iter().zip(chat)).map(|(m, (b, c))| m + ratio * (c - b)).collect()
}

/// Random numbers that are the same on every run (xorshift64*).
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn next(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1 << 24) as f32
    }

    /// About normal, with deviation 1: a sum of four uniform numbers.
    pub(crate) fn normal(&mut self) -> f32 {
        ((0..4).map(|_| self.next()).sum::<f32>() - 2.0) * 3f32.sqrt()
    }

    pub(crate) fn normals(&mut self, n: usize, deviation: f32) -> Vec<f32> {
        (0..n).map(|_| self.normal() * deviation).collect()
    }
}

/// The three models of a merge.
#[derive(Clone)]
pub(crate) struct Trio {
    pub(crate) base: Draft,
    pub(crate) chat: Draft,
    pub(crate) cp: Draft,
}

/// Where the three models are.
pub(crate) struct Paths {
    pub(crate) base: PathBuf,
    pub(crate) chat: PathBuf,
    pub(crate) cp: PathBuf,
}

/// Tensors of the small model: name, row length first, type.
#[rustfmt::skip]
const SMALL: [(&str, &[u64], u32); 14] = [
    ("token_embd.weight", &[256, 8], F16), ("output_norm.weight", &[256], F32), ("output.weight", &[256, 8], F16),
    ("rope_freqs.weight", &[32], F32),
    ("blk.0.attn_norm.weight", &[256], F32), ("blk.0.attn_q.weight", &[256, 256], F16),
    ("blk.0.attn_q.bias", &[256], F32), ("blk.0.attn_k.weight", &[256, 64], F16),
    ("blk.0.attn_v.weight", &[256, 64], F16), ("blk.0.attn_output.weight", &[256, 256], F16),
    ("blk.0.ffn_norm.weight", &[256], F32), ("blk.0.ffn_gate.weight", &[256, 256], F16),
    ("blk.0.ffn_up.weight", &[256, 256], F16), ("blk.0.ffn_down.weight", &[256, 256], F16),
];

/// The small model: base, and what chat and cp add to it in the same order.
fn small_base() -> Draft {
    let mut draft = Draft::default();
    draft.set("general.architecture", Val::str("llama"));
    draft.set("general.name", Val::str("small base"));
    draft.set("general.file_type", Val::U32(1));
    for (key, value) in [
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", 256),
        ("feed_forward_length", 256),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 1),
        ("rope.dimension_count", 64),
    ] {
        draft.set(&format!("llama.{key}"), Val::U32(value));
    }
    draft.set("llama.rope.freq_base", Val::F32(10000.0));
    draft.set("llama.attention.layer_norm_rms_epsilon", Val::F32(1e-5));
    draft.set("tokenizer.ggml.model", Val::str("gpt2"));
    draft.set("tokenizer.ggml.tokens", Val::strs(["a", "b", "c", "d", "e", "<eos>", "<|im_start|>", "<|im_end|>"]));
    draft.set("tokenizer.ggml.token_type", Val::Array(kind::I32, [1, 1, 1, 1, 1, 3, 3, 3].map(Val::I32).to_vec()));
    draft.set("tokenizer.ggml.eos_token_id", Val::U32(5));
    let mut noise = Noise(1);
    for (name, ne, ty) in SMALL {
        let n = ne.iter().product::<u64>() as usize;
        let mut values = noise.normals(n, 0.05);
        if name.contains("norm") {
            values.iter_mut().for_each(|v| *v += 1.0);
        } else if name == "rope_freqs.weight" {
            values.fill(1.0);
        }
        let mut tensor = Tensor::new(name, ne, F32);
        store(&mut tensor, ty, &values);
        draft.tensors.push(tensor);
    }
    draft
}

/// A copy with noise of this deviation on every weight.
pub(crate) fn drifted(draft: &Draft, name_of: &str, seed: u64, deviation: f32) -> Draft {
    let mut drifted = draft.clone();
    drifted.set("general.name", Val::str(name_of));
    let mut noise = Noise(seed);
    for tensor in drifted.tensors.iter_mut().filter(|t| t.name != b"rope_freqs.weight") {
        change(tensor, |values| values.iter_mut().for_each(|v| *v += noise.normal() * deviation));
    }
    drifted
}

/// The chat template of the small model.
pub(crate) const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}";

impl Trio {
    /// The bundled models.
    pub(crate) fn bundled() -> Trio {
        let [base, chat, cp] = ["base", "chat", "cp-de"].map(|name| read(&bundled(name)));
        Trio { base, chat, cp }
    }

    /// A model of one layer with a vector of 4 % and pre-training of 10 % of its weights' norm.
    pub(crate) fn small() -> Trio {
        let base = small_base();
        let mut chat = drifted(&base, "small chat", 2, 0.002);
        chat.set("tokenizer.chat_template", Val::str(TEMPLATE));
        chat.set("tokenizer.ggml.eos_token_id", Val::U32(7));
        let cp = drifted(&base, "small cp", 3, 0.005);
        Trio { base, chat, cp }
    }

    /// Changes all three.
    pub(crate) fn each(&mut self, mut f: impl FnMut(&mut Draft)) {
        [&mut self.base, &mut self.chat, &mut self.cp].into_iter().for_each(&mut f);
    }

    /// Writes base.gguf, chat.gguf and cp.gguf.
    pub(crate) fn write(&self, folder: &Path) -> Paths {
        let write = |draft: &Draft, name| draft.write(folder, name);
        Paths {
            base: write(&self.base, "base.gguf"),
            chat: write(&self.chat, "chat.gguf"),
            cp: write(&self.cp, "cp.gguf"),
        }
    }
}

/// Ends of the names of what a patch has of base and chat beside the vector.
pub(crate) const BASE_NAMES: [&str; 2] = [".special_rows", ".base_rows"];

/// The text of a token.
pub(crate) fn text_of(draft: &Draft, id: usize) -> Vec<u8> {
    let Some(Val::Array(_, texts)) = get(draft, "tokenizer.ggml.tokens") else { panic!("no tokens") };
    let Val::Str(text) = &texts[id] else { panic!("no text") };
    text.clone()
}

/// chat − base in f32 of the rows of a tensor, by the texts of the tokens that both have.
pub(crate) fn tau_by_text(base: &Draft, chat: &Draft, tensor: &str) -> BTreeMap<Vec<u8>, Vec<f32>> {
    let rows = |draft: &Draft| -> BTreeMap<Vec<u8>, Vec<f32>> {
        let found = draft.tensors.iter().find(|t| name(t) == tensor).expect("a tensor of the draft");
        let rows = weights(found);
        let rows = rows.chunks(found.ne[0] as usize).enumerate();
        rows.map(|(id, row)| (text_of(draft, id), row.to_vec())).collect()
    };
    let base = rows(base);
    let shared = rows(chat).into_iter().filter_map(|(text, chat)| Some((chat, base.get(&text)?, text)));
    shared.map(|(chat, base, text)| (text, chat.iter().zip(base).map(|(c, b)| c - b).collect())).collect()
}

/// A recipe from the words of the command line.
pub(crate) fn recipe(ty: &str) -> Recipe {
    let output = OutputType::parse(ty, true).unwrap_or_else(|e| panic!("{e}"));
    Recipe { output, special_tokens: SpecialTokens::None, ..Recipe::default() }
}

pub(crate) fn open(path: &Path) -> Model {
    Model::open(path, &Limits::default()).unwrap_or_else(|e| panic!("{e}"))
}

impl Paths {
    /// The bundled files themselves.
    pub(crate) fn bundled() -> Paths {
        let [base, chat, cp] = ["base", "chat", "cp-de"].map(bundled);
        Paths { base, chat, cp }
    }

    pub(crate) fn inputs(&self, ratio: f64) -> Inputs {
        Inputs::merge(open(&self.cp), open(&self.base), open(&self.chat), ratio)
    }

    pub(crate) fn plan(&self, inputs: &Inputs, ty: &str) -> MergePlan {
        plan::check(inputs, plan::Embeddings::Auto).unwrap_or_else(|e| panic!("{e}"));
        let pairs = vector::pair(inputs).unwrap_or_else(|e| panic!("{e}"));
        MergePlan::merge(inputs, pairs, &recipe(ty), None).unwrap_or_else(|e| panic!("{e}"))
    }

    /// A merge by the library: plan and pipeline, no survey.
    pub(crate) fn try_merge(
        &self,
        out: &Path,
        ty: &str,
        ratio: f64,
        budget: &Budget,
    ) -> Result<WrittenFile, pipeline::Error> {
        let inputs = self.inputs(ratio);
        let plan = self.plan(&inputs, ty);
        pipeline::write(&plan, &inputs, out, &overwrite(), &(), budget)
    }

    /// A merge by the library that must succeed, read back.
    pub(crate) fn merge(&self, out: &Path, ty: &str, ratio: f64) -> Draft {
        self.try_merge(out, ty, ratio, &Budget::default()).unwrap_or_else(|e| panic!("{e}"));
        read(out)
    }

    /// `chatvec merge` with these options behind it.
    pub(crate) fn command(&self, out: &Path, options: &[&str]) -> Ran {
        let mut args: Vec<&OsStr> = vec!["merge".as_ref()];
        for (flag, path) in [("--base", &self.base), ("--chat", &self.chat), ("--model", &self.cp)] {
            args.extend([flag.as_ref(), path.as_os_str()]);
        }
        args.extend(["-o".as_ref(), out.as_os_str()]);
        args.extend(options.iter().map(OsStr::new));
        chatvec(args)
    }
}

/// The merge of the bundled files as one that never ends an answer: none of its tokens ends one.
pub(crate) fn endless_model(folder: &Path) -> PathBuf {
    let path = folder.join("endless.gguf");
    let mut draft = Paths::bundled().merge(&path, "F32", 1.0);
    let rename = |text: &[u8]| {
        let text = String::from_utf8_lossy(text);
        text.replace("<|im_end|>", "<|im_fin|>").replace("<|endoftext|>", "<|endoftexx|>").into_bytes()
    };
    for (key, value) in &mut draft.keys {
        match value {
            Val::Str(text) if key == b"tokenizer.chat_template" => *text = rename(text),
            Val::Array(kind::STRING, texts) if key == b"tokenizer.ggml.tokens" => {
                texts.iter_mut().for_each(|token| {
                    *token = Val::Str(rename(match token {
                        Val::Str(text) => text,
                        _ => &[],
                    }))
                });
            }
            _ => {}
        }
    }
    // The one that begins a turn, which the model never writes. Without a usable key, another one ends.
    let of_start = |token: &Val| matches!(token, Val::Str(text) if text == b"<|im_start|>");
    let Some(Val::Array(_, tokens)) = get(&draft, "tokenizer.ggml.tokens") else { panic!("no tokens") };
    let start = tokens.iter().position(of_start).unwrap();
    draft.set("tokenizer.ggml.eos_token_id", Val::U32(start as u32));
    draft.write(folder, "endless.gguf")
}

/// How a command ended and what it said.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    pub(crate) fn new(output: Output) -> Ran {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Panics unless the command ended with this code and said all of this on standard error.
    #[track_caller]
    pub(crate) fn says(&self, code: i32, words: &[&str]) -> &Ran {
        assert_eq!(self.code, code, "{self:#?}");
        for word in words {
            assert!(self.err.contains(word), "no {word:?} in: {}", self.err);
        }
        self
    }

    /// Panics unless it ended well and warned of nothing.
    #[track_caller]
    pub(crate) fn is_quiet(&self) -> &Ran {
        assert_eq!(self.code, 0, "{self:#?}");
        assert!(!self.err.contains("warning: "), "{self:#?}");
        self
    }

    /// What it printed, as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e} in {self:#?}"))
    }
}

/// The command, ready to be run.
pub(crate) fn command<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatvec"));
    // Cargo names the repository in it, which a user's shell does not.
    command.args(args).env_remove("CARGO_MANIFEST_DIR");
    command
}

/// The same with signals that end it, whatever ignores them here, as a shell does in the
/// background. It needs GNU's env, without which the command starts as it is.
pub(crate) fn interruptible<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    const DEFAULT: &str = "--default-signal=INT,TERM,HUP";
    let has_option = Command::new("env").args([DEFAULT, "true"]).output().is_ok_and(|ran| ran.status.success());
    if !has_option {
        return command(args);
    }
    let mut command = Command::new("env");
    command.args([DEFAULT, env!("CARGO_BIN_EXE_chatvec")]).args(args).env_remove("CARGO_MANIFEST_DIR");
    command
}

/// Runs the command to its end.
pub(crate) fn chatvec<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    Ran::new(command(args).output().unwrap())
}

/// The names in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Panics with the first tensor in which two files differ.
#[track_caller]
pub(crate) fn assert_same_tensors(found: &Draft, expected: &Draft) {
    let list = |draft: &Draft| draft.tensors.iter().map(|t| name(t).to_owned()).collect::<Vec<_>>();
    assert_eq!(list(found), list(expected), "tensors and their order");
    for (found, expected) in found.tensors.iter().zip(&expected.tensors) {
        let name = name(expected);
        assert_eq!((&found.ne, found.ty), (&expected.ne, expected.ty), "{name}: shape and type");
        let (found, expected) = (found.data(), expected.data());
        if let Some(i) = found.iter().zip(&expected).position(|(a, b)| a != b) {
            panic!("{name}: byte {i} is {:02x}, expected {:02x}", found[i], expected[i]);
        }
    }
}
