//! Merges go by rule: whatever architecture the files name, tensors of equal names and shapes are
//! summed. And files of other kinds in place of a model are refused by what they are.
//!
//! The lists of tensors are those of llama.cpp's loader (src/models/*.cpp, `load_arch_tensors`), in
//! small; tests/peers/architectures.py has llama.cpp itself load and run such merges.

use std::path::{Path, PathBuf};

use crate::support::{Draft, Tensor, Val, kind};
use crate::trio::{
    F16, F32, Noise, Paths, Q8_0, Trio, chatvec, drifted, encode, get, name, names, plus_zero, read, store, weights,
};

/// Names and shapes of tensors, row length first.
type List = &'static [(&'static str, &'static [u64])];

/// What an architecture has: tensors of the whole model besides embeddings, norm and output, and
/// those of each layer.
struct Architecture {
    name: &'static str,
    is_tied: bool,
    once: List,
    layer: List,
}

const LAYERS: usize = 2;
/// As in the small trio, whose metadata the models have.
const N_VOCAB: u64 = 8;
const WIDTH: u64 = 256;

const LLAMA: List = &[
    ("attn_norm.weight", &[WIDTH]),
    ("attn_q.weight", &[WIDTH, 64]),
    ("attn_k.weight", &[WIDTH, 32]),
    ("attn_v.weight", &[WIDTH, 32]),
    ("attn_output.weight", &[64, WIDTH]),
    ("ffn_norm.weight", &[WIDTH]),
    ("ffn_gate.weight", &[WIDTH, 96]),
    ("ffn_up.weight", &[WIDTH, 96]),
    ("ffn_down.weight", &[96, WIDTH]),
];
const QWEN2: List = &[
    ("attn_q.weight", &[WIDTH, 64]),
    ("attn_q.bias", &[64]),
    ("attn_k.weight", &[WIDTH, 32]),
    ("attn_k.bias", &[32]),
    ("attn_v.weight", &[WIDTH, 32]),
    ("attn_v.bias", &[32]),
    ("attn_output.weight", &[64, WIDTH]),
    ("ffn_down.weight", &[96, WIDTH]),
];
const QWEN3: List = &[
    ("attn_q.weight", &[WIDTH, 64]),
    ("attn_q_norm.weight", &[16]),
    ("attn_k.weight", &[WIDTH, 32]),
    ("attn_k_norm.weight", &[16]),
    ("attn_v.weight", &[WIDTH, 32]),
    ("attn_output.weight", &[64, WIDTH]),
];
const GEMMA3: List = &[
    ("attn_q.weight", &[WIDTH, 64]),
    ("attn_q_norm.weight", &[16]),
    ("attn_k_norm.weight", &[16]),
    ("post_attention_norm.weight", &[WIDTH]),
    ("ffn_down.weight", &[96, WIDTH]),
    ("post_ffw_norm.weight", &[WIDTH]),
];
const PHI3: List = &[
    ("attn_norm.weight", &[WIDTH]),
    ("attn_qkv.weight", &[WIDTH, 128]),
    ("attn_output.weight", &[64, WIDTH]),
    ("ffn_up.weight", &[WIDTH, 192]),
    ("ffn_down.weight", &[96, WIDTH]),
];
/// Mixtral's and Qwen3's experts, one matrix behind the other.
const EXPERTS: List = &[
    ("attn_q.weight", &[WIDTH, 64]),
    ("ffn_gate_inp.weight", &[WIDTH, 4]),
    ("ffn_gate_exps.weight", &[WIDTH, 32, 4]),
    ("ffn_up_exps.weight", &[WIDTH, 32, 4]),
    ("ffn_down_exps.weight", &[32, WIDTH, 4]),
];
const DEEPSEEK2: List = &[
    ("attn_q_a.weight", &[WIDTH, 32]),
    ("attn_q_a_norm.weight", &[32]),
    ("attn_q_b.weight", &[32, 96]),
    ("attn_kv_a_mqa.weight", &[WIDTH, 48]),
    ("attn_k_b.weight", &[32, 32, 4]),
    ("attn_v_b.weight", &[32, 32, 4]),
    ("ffn_gate_inp.weight", &[WIDTH, 4]),
    ("exp_probs_b.bias", &[4]),
    ("ffn_down_exps.weight", &[32, WIDTH, 4]),
    ("ffn_down_shexp.weight", &[32, WIDTH]),
];

const fn architecture(name: &'static str, is_tied: bool, once: List, layer: List) -> Architecture {
    Architecture { name, is_tied, once, layer }
}

static ARCHITECTURES: [Architecture; 11] = [
    architecture("llama", false, &[("rope_freqs.weight", &[8])], LLAMA),
    architecture("llama", false, &[], EXPERTS),
    architecture("qwen2", true, &[], QWEN2),
    architecture("qwen2vl", false, &[], QWEN2),
    architecture("qwen3", true, &[], QWEN3),
    architecture("qwen3moe", false, &[], EXPERTS),
    architecture("gemma3", true, &[], GEMMA3),
    architecture("phi3", false, &[("rope_factors_long.weight", &[8]), ("rope_factors_short.weight", &[8])], PHI3),
    architecture("granite", true, &[], LLAMA),
    architecture("deepseek2", false, &[], DEEPSEEK2),
    // What nobody has heard of.
    architecture("unheard-of", false, &[("some.thing", &[5, 4, 3, 2])], &[("new_kind.weight", &[32, 4, 3])]),
];

impl Architecture {
    fn tensors(&self) -> Vec<(String, &'static [u64])> {
        let mut found = vec![("token_embd.weight".to_owned(), &[WIDTH, N_VOCAB] as &[u64])];
        found.extend(self.once.iter().map(|(name, ne)| (name.to_string(), *ne)));
        for i in 0..LAYERS {
            found.extend(self.layer.iter().map(|(name, ne)| (format!("blk.{i}.{name}"), *ne)));
        }
        found.push(("output_norm.weight".to_owned(), &[WIDTH]));
        if !self.is_tied {
            found.push(("output.weight".to_owned(), &[WIDTH, N_VOCAB]));
        }
        found
    }

    /// A trio with these tensors and the small trio's metadata. Matrices are F16, routers and the
    /// rest F32, as converters write them.
    fn trio(&self) -> Trio {
        let mut base = Trio::small().base;
        let mut noise = Noise(11);
        base.tensors.clear();
        for (name, ne) in self.tensors() {
            let mut tensor = Tensor::new(&name, ne, F32);
            let values = noise.normals(ne.iter().product::<u64>() as usize, 0.05);
            let is_matrix = ne.len() > 1 && !name.contains("ffn_gate_inp");
            store(&mut tensor, if is_matrix { F16 } else { F32 }, &values);
            base.tensors.push(tensor);
        }
        let chat = drifted(&base, "chat", 12, 0.002);
        let cp = drifted(&base, "cp", 13, 0.005);
        let Trio { chat: talker, .. } = Trio::small();
        let mut trio = Trio { base, chat: Draft { tensors: chat.tensors, ..talker }, cp };
        trio.each(|draft| rename(draft, self.name));
        // Other frequencies in each file: their sum is not the model's own.
        for (draft, value) in [(&mut trio.base, 1.0), (&mut trio.chat, 3.0), (&mut trio.cp, 8.0)] {
            for tensor in draft.tensors.iter_mut().filter(|t| is_rope(name(t))) {
                let n = tensor.ne[0] as usize;
                store(tensor, F32, &vec![value; n]);
            }
        }
        trio
    }
}

/// Gives a model of the small trio another architecture.
fn rename(draft: &mut Draft, architecture: &str) {
    for (key, _) in &mut draft.keys {
        if let Some(suffix) = key.strip_prefix(b"llama.") {
            *key = [architecture.as_bytes(), b".", suffix].concat();
        }
    }
    draft.set("general.architecture", Val::str(architecture));
    draft.set(&format!("{architecture}.block_count"), Val::U32(LAYERS as u32));
}

fn is_rope(name: &str) -> bool {
    ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"].contains(&name)
}

/// What the merge of a tensor is, in a type.
fn expected(cp: &Tensor, base: &Tensor, chat: &Tensor, ty: u32) -> Vec<u8> {
    let mut values = weights(cp);
    if !is_rope(name(cp)) {
        let (base, chat) = (weights(base), weights(chat));
        for (i, value) in values.iter_mut().enumerate() {
            *value += chat[i] - base[i];
        }
    }
    encode(ty, &values)
}

#[test]
fn every_architecture_is_merged_by_names_and_shapes() {
    for made in &ARCHITECTURES {
        let (trio, folder) = (made.trio(), tempfile::tempdir().unwrap());
        let paths = trio.write(folder.path());
        for ty in ["F32", "keep", "Q8_0"] {
            let path = folder.path().join(format!("{ty}.gguf"));
            let options: &[&str] = if ty == "keep" { &[] } else { &["--type", ty, "--pure"] };
            // That rope frequencies take no part is no reason to warn.
            paths.command(&path, options).is_quiet();
            let out = read(&path);
            assert_eq!(list(&out), list(&trio.cp), "{} {ty}: tensors and their order", made.name);
            for (i, found) in out.tensors.iter().enumerate() {
                let what = format!("{} {ty}: {}", made.name, name(found));
                let [base, chat, cp] = [&trio.base, &trio.chat, &trio.cp].map(|draft| &draft.tensors[i]);
                // What llama-quantize would not touch stays what it is.
                let id = match ty {
                    _ if cp.ty == F32 || !name(cp).ends_with(".weight") => cp.ty,
                    "F32" => F32,
                    "Q8_0" => Q8_0,
                    _ => cp.ty,
                };
                assert_eq!((&found.ne, found.ty), (&cp.ne, id), "{what}");
                let expected = plus_zero(id, expected(cp, base, chat, id));
                assert!(plus_zero(id, found.data()) == expected, "{what} is not the sum");
            }
            assert_eq!(get(&out, "general.architecture"), Some(&Val::str(made.name)));
        }
    }
}

fn list(draft: &Draft) -> Vec<&str> {
    draft.tensors.iter().map(name).collect()
}

/// Numbers of experts, and which parts of a head turn: siblings cannot differ in them.
#[test]
fn what_gives_experts_and_rope_their_meaning_must_be_equal() {
    let made = ARCHITECTURES.iter().find(|made| made.name == "qwen3moe").unwrap();
    for suffix in ["expert_count", "expert_used_count", "expert_feed_forward_length"] {
        let (mut trio, folder) = (made.trio(), tempfile::tempdir().unwrap());
        let key = format!("qwen3moe.{suffix}");
        trio.each(|draft| draft.set(&key, Val::U32(4)));
        trio.chat.set(&key, Val::U32(2));
        let ran = trio.write(folder.path()).command(&folder.path().join("out.gguf"), &[]);
        ran.says(4, &[&key, "is 2 in", "chat.gguf but 4 in", "cp.gguf"]);
    }
    let made = ARCHITECTURES.iter().find(|made| made.name == "qwen2vl").unwrap();
    let sections = |values: [i32; 4]| Val::Array(kind::I32, values.map(Val::I32).to_vec());
    let (mut trio, folder) = (made.trio(), tempfile::tempdir().unwrap());
    let key = "qwen2vl.rope.dimension_sections";
    trio.each(|draft| draft.set(key, sections([16, 24, 24, 0])));
    trio.base.set(key, sections([24, 20, 20, 0]));
    let ran = trio.write(folder.path()).command(&folder.path().join("out.gguf"), &[]);
    ran.says(4, &[key, "[24, 20, 20, 0]", "base.gguf but [16, 24, 24, 0]", "cp.gguf"]);
}

/// A file of F32 tensors with these texts as metadata.
fn other_kind(folder: &Path, file: &str, keys: &[(&str, &str)], tensors: List) -> PathBuf {
    let mut draft = Draft::default();
    for (key, value) in keys {
        draft.set(key, Val::str(value));
    }
    draft.tensors = tensors.iter().map(|(name, ne)| Tensor::new(name, ne, F32)).collect();
    draft.write(folder, file)
}

#[test]
fn files_of_other_kinds_are_refused_by_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let (at, trio) = (folder.path(), Trio::small());
    let paths = trio.write(at);
    let patch = at.join("patch.gguf");
    let extract = ["extract", "--base", text(&paths.base), "--chat", text(&paths.chat), "-o", text(&patch)];
    chatvec(extract).says(0, &[]);
    let lora: List = &[("blk.0.attn_q.weight.lora_a", &[256, 8]), ("blk.0.attn_q.weight.lora_b", &[8, 256])];
    let sight: List = &[("v.blk.0.attn_q.weight", &[64, 64]), ("mm.0.weight", &[64, 256])];
    let vocabulary = Draft { tensors: Vec::new(), ..trio.base.clone() };
    let mut other = trio.chat.clone();
    rename(&mut other, "qwen3");
    let llama = ("general.architecture", "llama");
    let clip = ("general.architecture", "clip");
    // Written by llama-imatrix.
    let importance = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/imatrix/default.gguf");
    let others: [(PathBuf, &[&str]); 7] = [
        (other_kind(at, "lora.gguf", &[llama, ("general.type", "adapter"), ("adapter.type", "lora")], lora), &["LoRA"]),
        (other_kind(at, "mmproj.gguf", &[clip, ("general.type", "mmproj")], sight), &["mmproj", "sees"]),
        // Before there was a type.
        (other_kind(at, "clip.gguf", &[clip], sight), &["mmproj", "sees"]),
        (vocabulary.write(at, "vocabulary.gguf"), &["no tensors", "vocabulary"]),
        (importance, &["importance matrix", "--imatrix"]),
        (patch, &["patch", "chatvec apply"]),
        (other.write(at, "other.gguf"), &["general.architecture", "qwen3", "llama"]),
    ];
    let before = names(at);
    for (other, words) in &others {
        let path = || other.clone();
        let trio = || Paths { base: paths.base.clone(), chat: paths.chat.clone(), cp: paths.cp.clone() };
        for given in
            [Paths { base: path(), ..trio() }, Paths { chat: path(), ..trio() }, Paths { cp: path(), ..trio() }]
        {
            let file = other.file_name().unwrap().to_str().unwrap();
            given.command(&at.join("out.gguf"), &[]).says(4, &[words, &[file][..]].concat());
        }
    }
    assert_eq!(names(at), before, "nothing is written");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
