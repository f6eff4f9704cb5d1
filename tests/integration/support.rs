//! A GGUF writer that checks nothing, so that a test can say anything a file may say.
//!
//! It shares no code with the crate: a header the crate reads and encodes again is compared with
//! bytes made here. To make a bad file, take [`valid`] and spoil one thing; to make a file that no
//! list of keys and tensors describes, change the bytes.

use std::fs;
use std::path::{Path, PathBuf};

/// Type ids of metadata values (`enum gguf_type`).
#[allow(dead_code, reason = "the list is that of the format, used or not")]
pub(crate) mod kind {
    pub(crate) const U8: u32 = 0;
    pub(crate) const I8: u32 = 1;
    pub(crate) const U16: u32 = 2;
    pub(crate) const I16: u32 = 3;
    pub(crate) const U32: u32 = 4;
    pub(crate) const I32: u32 = 5;
    pub(crate) const F32: u32 = 6;
    pub(crate) const BOOL: u32 = 7;
    pub(crate) const STRING: u32 = 8;
    pub(crate) const ARRAY: u32 = 9;
    pub(crate) const U64: u32 = 10;
    pub(crate) const I64: u32 = 11;
    pub(crate) const F64: u32 = 12;
}

/// Every tensor type as a program linked to ggml prints it: id, name, weights and bytes of a block.
#[rustfmt::skip]
pub(crate) const TYPES: [(u32, &str, u64, u64); 35] = [
    (0, "f32", 1, 4), (1, "f16", 1, 2), (2, "q4_0", 32, 18), (3, "q4_1", 32, 20), (6, "q5_0", 32, 22),
    (7, "q5_1", 32, 24), (8, "q8_0", 32, 34), (9, "q8_1", 32, 36), (10, "q2_K", 256, 84), (11, "q3_K", 256, 110),
    (12, "q4_K", 256, 144), (13, "q5_K", 256, 176), (14, "q6_K", 256, 210), (15, "q8_K", 256, 292),
    (16, "iq2_xxs", 256, 66), (17, "iq2_xs", 256, 74), (18, "iq3_xxs", 256, 98), (19, "iq1_s", 256, 50),
    (20, "iq4_nl", 32, 18), (21, "iq3_s", 256, 110), (22, "iq2_s", 256, 82), (23, "iq4_xs", 256, 136),
    (24, "i8", 1, 1), (25, "i16", 1, 2), (26, "i32", 1, 4), (27, "i64", 1, 8), (28, "f64", 1, 8),
    (29, "iq1_m", 256, 56), (30, "bf16", 1, 2), (34, "tq1_0", 256, 54), (35, "tq2_0", 256, 66),
    (39, "mxfp4", 32, 17), (40, "nvfp4", 64, 36), (41, "q1_0", 128, 18), (42, "q2_0", 64, 18),
];

/// A metadata value.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Val {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(u8),
    Str(Vec<u8>),
    /// Type of the elements, then the elements, whose own types nobody checks.
    Array(u32, Vec<Val>),
    U64(u64),
    I64(i64),
    F64(f64),
    /// A type id and the bytes after it, as they are to stand in the file.
    Raw(u32, Vec<u8>),
}

impl Val {
    /// A string.
    pub(crate) fn str(s: &str) -> Val {
        Val::Str(s.as_bytes().to_vec())
    }

    /// An array of strings.
    pub(crate) fn strs<S: AsRef<[u8]>>(strings: impl IntoIterator<Item = S>) -> Val {
        Val::Array(kind::STRING, strings.into_iter().map(|s| Val::Str(s.as_ref().to_vec())).collect())
    }

    /// The type id it is stored under.
    pub(crate) fn kind(&self) -> u32 {
        match self {
            Val::U8(_) => kind::U8,
            Val::I8(_) => kind::I8,
            Val::U16(_) => kind::U16,
            Val::I16(_) => kind::I16,
            Val::U32(_) => kind::U32,
            Val::I32(_) => kind::I32,
            Val::F32(_) => kind::F32,
            Val::Bool(_) => kind::BOOL,
            Val::Str(_) => kind::STRING,
            Val::Array(..) => kind::ARRAY,
            Val::U64(_) => kind::U64,
            Val::I64(_) => kind::I64,
            Val::F64(_) => kind::F64,
            Val::Raw(kind, _) => *kind,
        }
    }
}

/// What a file says of a tensor, and its data.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: Vec<u8>,
    /// Row length first.
    pub(crate) ne: Vec<u64>,
    /// Type id.
    pub(crate) ty: u32,
    /// Instead of the end of the tensor before.
    pub(crate) offset: Option<u64>,
    /// Instead of bytes that no other tensor has.
    pub(crate) data: Option<Vec<u8>>,
}

impl Tensor {
    pub(crate) fn new(name: &str, ne: &[u64], ty: u32) -> Tensor {
        Tensor { name: name.as_bytes().to_vec(), ne: ne.to_vec(), ty, offset: None, data: None }
    }

    /// Bytes by ggml's table; nothing if there is no such type. Wraps like the arithmetic of a
    /// careless reader.
    pub(crate) fn size(&self) -> u64 {
        let weights = self.ne.iter().fold(1, |product: u64, &n| product.wrapping_mul(n));
        TYPES.iter().find(|t| t.0 == self.ty).map_or(0, |t| (weights / t.2).wrapping_mul(t.3))
    }

    /// The bytes of its data: those given, or others for each name. None for sizes no test can
    /// want.
    pub(crate) fn data(&self) -> Vec<u8> {
        let seed = self.name.iter().fold(7, |seed: u64, &b| seed.wrapping_mul(31).wrapping_add(b.into()));
        match (&self.data, self.size()) {
            (Some(data), _) => data.clone(),
            (None, size @ 0..=0x10_0000) => (0..size).map(|i| (seed.wrapping_add(i * 13) >> 1) as u8).collect(),
            (None, _) => Vec::new(),
        }
    }
}

/// A file as the list of what it says. Every field may lie.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Draft {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) big_endian: bool,
    /// Instead of how many there are.
    pub(crate) n_tensors: Option<u64>,
    /// Instead of how many there are.
    pub(crate) n_keys: Option<u64>,
    pub(crate) keys: Vec<(Vec<u8>, Val)>,
    pub(crate) tensors: Vec<Tensor>,
    /// What the data are padded to, whatever `general.alignment` says.
    pub(crate) alignment: u64,
}

impl Default for Draft {
    /// Version 3, little-endian, no keys, no tensors.
    fn default() -> Draft {
        Draft {
            magic: *b"GGUF",
            version: 3,
            big_endian: false,
            n_tensors: None,
            n_keys: None,
            keys: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
        }
    }
}

impl Draft {
    /// Gives a key a value: in its place if it is there, at the end if not.
    pub(crate) fn set(&mut self, key: &str, val: Val) {
        match self.keys.iter_mut().find(|(k, _)| k == key.as_bytes()) {
            Some(entry) => entry.1 = val,
            None => self.keys.push((key.as_bytes().to_vec(), val)),
        }
    }

    /// `general.alignment`, and the padding it asks for.
    pub(crate) fn align(&mut self, alignment: u32) {
        self.set("general.alignment", Val::U32(alignment));
        self.alignment = alignment.into();
    }

    /// The tensor of this name.
    pub(crate) fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name.as_bytes()).expect("a tensor of the draft")
    }

    /// The header, without padding.
    pub(crate) fn header(&self) -> Vec<u8> {
        let mut out = Out { bytes: self.magic.to_vec(), big_endian: self.big_endian, version: self.version };
        out.num(self.version);
        out.size(self.n_tensors.unwrap_or(self.tensors.len() as u64));
        out.size(self.n_keys.unwrap_or(self.keys.len() as u64));
        for (key, val) in &self.keys {
            out.str(key);
            out.num(val.kind());
            out.val(val);
        }
        let mut end = 0u64;
        for tensor in &self.tensors {
            out.str(&tensor.name);
            out.num(tensor.ne.len() as u32);
            tensor.ne.iter().for_each(|&n| out.size(n));
            out.num(tensor.ty);
            out.long(tensor.offset.unwrap_or(end));
            end = end.wrapping_add(self.pad(tensor.size()));
        }
        out.bytes
    }

    /// Where the data begin.
    pub(crate) fn data_offset(&self) -> u64 {
        self.pad(self.header().len() as u64)
    }

    /// The whole file, each tensor padded.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header();
        for tensor in &self.tensors {
            bytes.resize(self.pad(bytes.len() as u64) as usize, 0);
            bytes.extend(tensor.data());
        }
        bytes.resize(self.pad(bytes.len() as u64) as usize, 0);
        bytes
    }

    /// Gives a patch the hashes of what it is now (docs/PATCH.md): of each tensor, and of the
    /// header with zeros for its own.
    pub(crate) fn seal(&mut self) {
        let digits = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
        let tensors: Vec<String> = self.tensors.iter().map(|tensor| digits(&tensor.data())).collect();
        self.set("chatvec.header_blake3", Val::str(&"0".repeat(64)));
        self.set("chatvec.blake3", Val::strs(tensors));
        let header = digits(&self.header());
        self.set("chatvec.header_blake3", Val::str(&header));
    }

    /// Writes the whole file.
    pub(crate) fn write(&self, folder: &Path, name: &str) -> PathBuf {
        write(folder, name, &self.bytes())
    }

    /// The next multiple of the alignment; of 1 where it is no power of two.
    pub(crate) fn pad(&self, n: u64) -> u64 {
        n.checked_next_multiple_of(self.alignment.max(1)).unwrap_or(0)
    }
}

/// Writes a file of a temporary folder.
pub(crate) fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).expect("a temporary file");
    path
}

struct Out {
    bytes: Vec<u8>,
    big_endian: bool,
    version: u32,
}

impl Out {
    fn raw<const N: usize>(&mut self, little: [u8; N]) {
        let mut bytes = little;
        if self.big_endian {
            bytes.reverse();
        }
        self.bytes.extend(bytes);
    }

    fn num(&mut self, n: u32) {
        self.raw(n.to_le_bytes());
    }

    fn long(&mut self, n: u64) {
        self.raw(n.to_le_bytes());
    }

    /// A count, a length or a dimension: version 1 had 32 bits for them.
    fn size(&mut self, n: u64) {
        match self.version {
            1 => self.num(n as u32),
            _ => self.long(n),
        }
    }

    fn str(&mut self, s: &[u8]) {
        self.size(s.len() as u64);
        self.bytes.extend(s);
    }

    fn val(&mut self, val: &Val) {
        match val {
            Val::U8(v) | Val::Bool(v) => self.bytes.push(*v),
            Val::I8(v) => self.raw(v.to_le_bytes()),
            Val::U16(v) => self.raw(v.to_le_bytes()),
            Val::I16(v) => self.raw(v.to_le_bytes()),
            Val::U32(v) => self.raw(v.to_le_bytes()),
            Val::I32(v) => self.raw(v.to_le_bytes()),
            Val::F32(v) => self.raw(v.to_bits().to_le_bytes()),
            Val::U64(v) => self.raw(v.to_le_bytes()),
            Val::I64(v) => self.raw(v.to_le_bytes()),
            Val::F64(v) => self.raw(v.to_bits().to_le_bytes()),
            Val::Str(s) => self.str(s),
            Val::Array(kind, elements) => {
                self.num(*kind);
                self.size(elements.len() as u64);
                elements.iter().for_each(|v| self.val(v));
            }
            Val::Raw(_, bytes) => self.bytes.extend(bytes),
        }
    }
}

/// A small model of one layer that is right in all that a reader can know: four tokens, tensors of
/// five types, one of them no multiple of the alignment and the last one too.
pub(crate) fn valid() -> Draft {
    let mut draft = Draft::default();
    draft.set("general.architecture", Val::str("llama"));
    draft.set("general.name", Val::str("small"));
    draft.set("llama.block_count", Val::U32(1));
    draft.set("llama.context_length", Val::U32(64));
    draft.set("llama.embedding_length", Val::U32(256));
    draft.set("llama.attention.layer_norm_rms_epsilon", Val::F32(1e-5));
    draft.set("tokenizer.ggml.model", Val::str("llama"));
    draft.set("tokenizer.ggml.tokens", Val::strs(["<unk>", "<s>", "</s>", "ab"]));
    draft.set("tokenizer.ggml.scores", Val::Array(kind::F32, [0.0, 0.0, 0.0, -1.5].map(Val::F32).to_vec()));
    draft.set("tokenizer.ggml.token_type", Val::Array(kind::I32, [2, 3, 3, 1].map(Val::I32).to_vec()));
    draft.tensors = vec![
        Tensor::new("token_embd.weight", &[256, 4], 12),
        Tensor::new("blk.0.attn_norm.weight", &[256], 0),
        Tensor::new("blk.0.attn_q.weight", &[256, 2], 1),
        Tensor::new("blk.0.ffn_up.weight", &[32, 3], 8),
        Tensor::new("output.weight", &[256, 4], 14),
        Tensor::new("output_norm.weight", &[3], 0),
    ];
    draft
}

/// The name of a shard, counted from 1 (`llama_split_path`).
pub(crate) fn shard_name(prefix: &str, no: usize, count: usize) -> String {
    format!("{prefix}-{no:05}-of-{count:05}.gguf")
}

/// A model in `count` shards as gguf-split makes them: all metadata in the first, the split keys in
/// each.
pub(crate) fn split(whole: &Draft, count: usize) -> Vec<(String, Draft)> {
    let per_shard = whole.tensors.len().div_ceil(count);
    let mut chunks = whole.tensors.chunks(per_shard);
    (0..count)
        .map(|no| {
            let mut shard = Draft { tensors: chunks.next().unwrap_or(&[]).to_vec(), ..whole.clone() };
            if no > 0 {
                shard.keys.clear();
            }
            shard.set("split.no", Val::U16(no as u16));
            shard.set("split.count", Val::U16(count as u16));
            shard.set("split.tensors.count", Val::I32(whole.tensors.len() as i32));
            (shard_name("small", no + 1, count), shard)
        })
        .collect()
}

/// Writes every shard; the path of the first.
pub(crate) fn write_split(folder: &Path, shards: &[(String, Draft)]) -> PathBuf {
    for (name, shard) in shards {
        shard.write(folder, name);
    }
    folder.join(&shards[0].0)
}
