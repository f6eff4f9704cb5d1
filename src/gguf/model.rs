//! A model as people have it: in one file, or in the shards of a split set.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use super::computed::{Computed, ComputedTensors};
use super::error::{Check, Error, Fault, place_of};
use super::header::{ByteOrder, TensorInfo};
use super::names::{OUTPUT, TOKEN_EMBEDDINGS};
use super::place::{TensorId, TensorPlace};
use super::read::Limits;
use super::scale::{Scales, is_scale};
use super::split::{parse_shard_name, shard_path};
use super::value::ValueType;
use super::{File, MAX_DIMS, Metadata};

/// A model: the metadata of its first file and the tensors of all of them, shard by shard in their
/// order.
#[derive(Debug)]
pub struct Model {
    files: Vec<File>,
    /// Where each tensor is, by its [`TensorId`].
    places: Vec<TensorPlace>,
    by_name: HashMap<String, TensorId>,
    scales: Scales,
    computed: Option<Computed>,
}

impl Model {
    /// Opens a model. `path` is its file, or any shard of a split set, whose others are found by
    /// name (`PREFIX-00001-of-00003.gguf`; llama.cpp src/llama.cpp, `llama_split_path`).
    ///
    /// # Errors
    /// As [`File::open`], and [`Error::Malformed`] with [`Check::Split`] or [`Check::Vocabulary`].
    pub fn open(path: &Path, limits: &Limits) -> Result<Self, Error> {
        let first = File::open(path, limits)?;
        // gguf-split leaves a 0 when it merges.
        let files = match split_key(&first, "split.count", ValueType::U16)? {
            None | Some(0 | 1) => vec![first],
            Some(n) => open_shards(first, n, limits)?,
        };
        Self::of_files(files)
    }

    /// The model in these files, at least one.
    pub(super) fn of_files(files: Vec<File>) -> Result<Self, Error> {
        let tensors = |(f, file): (usize, &File)| {
            (0..file.header().tensors().len()).map(move |t| TensorPlace::Stored(f as u32, t as u32))
        };
        let places = files.iter().enumerate().flat_map(tensors).collect();
        let mut model = Model { files, places, by_name: HashMap::new(), scales: Scales::default(), computed: None };
        model.index()?;
        model.check_split_tensor_count()?;
        model.check_vocabulary()?;
        Ok(model)
    }

    /// Finds names and scales anew.
    fn index(&mut self) -> Result<(), Error> {
        self.by_name.clear();
        for id in 0..self.places.len() {
            let name = self.tensor(id).name().to_owned();
            if self.by_name.insert(name.clone(), id).is_some() {
                let file = &self.files[self.file_of(id)];
                return Err(split_fault(file, place_of("tensor", &name), "each tensor in one shard", "it in two"));
            }
        }
        let is_stored = |id: TensorId| matches!(self.places[id], TensorPlace::Stored(..));
        let tensors = self.tensors().enumerate().map(|(id, info)| (id, info, is_stored(id)));
        self.scales = Scales::new(tensors, |name| self.find_info(name));
        Ok(())
    }

    /// The model with tensors of f32 of these names and shapes, which `tensors` computes, in place
    /// of those stored ones whose names `is_part` knows as parts.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a shape that no tensor can have, or a name that a tensor has
    /// already.
    pub fn with_computed(
        mut self,
        is_part: impl Fn(&str) -> bool,
        shapes: Vec<(String, [u64; MAX_DIMS])>,
        tensors: Box<dyn ComputedTensors>,
    ) -> Result<Model, Error> {
        let stored: Vec<TensorPlace> =
            (0..self.n_tensors()).filter(|id| !is_part(self.tensor(*id).name())).map(|id| self.places[id]).collect();
        let computed = Computed::new(self.path(), shapes, tensors)?;
        self.places = stored;
        self.places.extend((0..computed.infos.len()).map(|index| TensorPlace::Computed(index as u32)));
        self.computed = Some(computed);
        self.index()?;
        Ok(self)
    }

    /// The path of the first file.
    pub fn path(&self) -> &Path {
        self.files[0].path()
    }

    /// Every file, in order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(File::path)
    }

    /// The files, in order; at least one.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// The metadata of the first file: shards after it repeat nothing but the split keys.
    pub fn metadata(&self) -> &Metadata {
        self.files[0].header().metadata()
    }

    /// The order of bytes in all files.
    pub fn byte_order(&self) -> ByteOrder {
        self.files[0].header().byte_order()
    }

    /// Bytes that tensors are aligned to in the first file.
    pub fn alignment(&self) -> u64 {
        self.files[0].header().alignment()
    }

    /// How many tensors there are.
    pub fn n_tensors(&self) -> usize {
        self.places.len()
    }

    /// What is known of a tensor.
    ///
    /// # Panics
    /// If `id` is not below [`Model::n_tensors`].
    pub fn tensor(&self, id: TensorId) -> &TensorInfo {
        match self.places[id] {
            TensorPlace::Stored(file, index) => &self.files[file as usize].header().tensors()[index as usize],
            TensorPlace::Computed(index) => {
                &self.computed.as_ref().expect("it has its place from there").infos[index as usize]
            }
        }
    }

    /// All tensors in order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        (0..self.places.len()).map(|id| self.tensor(id))
    }

    /// The tensor of this name.
    pub fn find(&self, name: &str) -> Option<TensorId> {
        self.by_name.get(name).copied()
    }

    fn find_info(&self, name: &str) -> Option<(TensorId, &TensorInfo)> {
        self.find(name).map(|id| (id, self.tensor(id)))
    }

    /// The tensor of f32 that the decoded weights of this one have to be multiplied by: as many
    /// numbers as there are matrices in it (`ne[2]`).
    pub fn scale_of(&self, id: TensorId) -> Option<TensorId> {
        self.scales.of(id)
    }

    /// Whether a tensor is a factor of other weights, or of their inputs, rather than weights.
    ///
    /// # Panics
    /// If `id` is not below [`Model::n_tensors`].
    pub fn is_scale(&self, id: TensorId) -> bool {
        is_scale(self.tensor(id), |name| self.find_info(name))
    }

    /// Bytes that reading a tensor takes besides the buffer it is read into: for a computed one
    /// what it is computed in.
    ///
    /// # Panics
    /// If `id` is not below [`Model::n_tensors`].
    pub fn scratch_of(&self, id: TensorId) -> u64 {
        match (self.places[id], &self.computed) {
            (TensorPlace::Computed(index), Some(computed)) => computed.scratch(index as usize),
            _ => 0,
        }
    }

    /// The file that holds a tensor; the first, if it is computed.
    ///
    /// # Panics
    /// If `id` is not below [`Model::n_tensors`].
    pub fn path_of(&self, id: TensorId) -> &Path {
        self.files[self.file_of(id)].path()
    }

    /// The position in [`Model::files`] of the file that holds a tensor.
    pub(super) fn file_of(&self, id: TensorId) -> usize {
        match self.places[id] {
            TensorPlace::Stored(file, _) => file as usize,
            TensorPlace::Computed(_) => 0,
        }
    }

    /// Reads `buf.len()` bytes of a tensor's data, from `offset` bytes after its start. Takes no
    /// lock.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// If `id` is not below [`Model::n_tensors`], or the range reaches beyond the tensor.
    pub fn read(&self, id: TensorId, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let whole = || {
            let mut bytes = vec![0; self.tensor(id).size() as usize];
            self.files[self.file_of(id)].read(self.tensor(id), 0, &mut bytes)?;
            Ok(bytes)
        };
        if let Some(kept) = self.scales.kept(id, whole)? {
            self.tensor(id).assert_range(offset, buf.len());
            buf.copy_from_slice(&kept[offset as usize..][..buf.len()]);
            return Ok(());
        }
        match (self.places[id], &self.computed) {
            (TensorPlace::Computed(index), Some(computed)) => computed.read(&self.files, index as usize, offset, buf),
            _ => self.files[self.file_of(id)].read(self.tensor(id), offset, buf),
        }
    }

    /// Refuses files whose numbers this machine would have to turn around.
    ///
    /// # Errors
    /// [`Error::BigEndian`].
    pub fn require_little_endian(&self) -> Result<(), Error> {
        match self.files.iter().find(|f| f.header().byte_order() == ByteOrder::Big) {
            Some(file) => Err(Error::BigEndian { path: file.path().to_owned() }),
            None => Ok(()),
        }
    }

    /// `split.tensors.count` is that of all shards together.
    fn check_split_tensor_count(&self) -> Result<(), Error> {
        if self.files.len() < 2 {
            return Ok(());
        }
        for file in &self.files {
            let found = split_key(file, "split.tensors.count", ValueType::I32)?;
            if found != Some(self.places.len() as u64) {
                let expected = format!("{}, the tensors of all shards", self.places.len());
                let found = found.map_or("no such number".to_owned(), |n| n.to_string());
                return Err(split_fault(file, "key split.tensors.count".to_owned(), &expected, &found));
            }
        }
        Ok(())
    }

    /// One length for everything that is counted in tokens (llama-vocab.cpp and llama-model.h):
    /// `scores` and `token_type` may be absent; the rows of `token_embd` and `output` must be the
    /// tokens, no more and no fewer.
    fn check_vocabulary(&self) -> Result<(), Error> {
        let Some(tokens) = self.metadata().get("tokenizer.ggml.tokens") else { return Ok(()) };
        let fault = |key: &str, expected: String, found: String| {
            let (place, offset) = (format!("key {key}"), self.files[0].header().value_offset(key).unwrap_or(0));
            Fault { check: Check::Vocabulary, place, offset, expected, found }.at(self.path())
        };
        let Some(n_tokens) = tokens.as_array().and_then(|a| a.as_strings()).map(|s| s.len()) else {
            let found = format!("a {}", tokens.value_type().name());
            return Err(fault("tokenizer.ggml.tokens", "an array of strings".to_owned(), found));
        };
        let (scores, token_type) = ("tokenizer.ggml.scores", "tokenizer.ggml.token_type");
        for (key, types) in [(scores, &[ValueType::F32, ValueType::I32][..]), (token_type, &[ValueType::I32])] {
            let Some(value) = self.metadata().get(key) else { continue };
            let array = value.as_array().filter(|a| types.contains(&a.element_type()));
            let Some(n) = array.map(|a| a.len()) else {
                let names: Vec<_> = types.iter().map(|ty| ty.name()).collect();
                let found = match value.as_array() {
                    Some(a) => format!("an array of {}", a.element_type().name()),
                    None => format!("a {}", value.value_type().name()),
                };
                return Err(fault(key, format!("an array of {}", names.join(" or ")), found));
            };
            if n < n_tokens {
                return Err(fault(key, format!("one entry for each of {n_tokens} tokens"), n.to_string()));
            }
        }
        for name in [TOKEN_EMBEDDINGS, OUTPUT] {
            let Some(id) = self.find(name) else { continue };
            let (tensor, file) = (self.tensor(id), &self.files[self.file_of(id)]);
            if tensor.ne[1] != n_tokens as u64 {
                let place = format!("tensor {name}");
                let offset = file.header().data_offset() + tensor.offset();
                let expected = format!("{n_tokens} rows, one for each token of tokenizer.ggml.tokens");
                let found = tensor.ne[1].to_string();
                return Err(Fault { check: Check::Vocabulary, place, offset, expected, found }.at(file.path()));
            }
        }
        Ok(())
    }
}

fn split_fault(file: &File, place: String, expected: &str, found: &str) -> Error {
    let (expected, found) = (expected.to_owned(), found.to_owned());
    let offset = place.strip_prefix("key ").and_then(|key| file.header().value_offset(key)).unwrap_or(0);
    Fault { check: Check::Split, place, offset, expected, found }.at(file.path())
}

/// The value of one of the split keys, which llama.cpp takes in one type only
/// (`GGUFMeta::GKV::get_kv`).
fn split_key(file: &File, key: &str, ty: ValueType) -> Result<Option<u64>, Error> {
    match file.header().metadata().get(key) {
        None => Ok(None),
        Some(value) if value.value_type() == ty && value.as_u64().is_some() => Ok(value.as_u64()),
        Some(value) => {
            let expected = format!("a non-negative {}", ty.name());
            let found = match value.value_type() == ty {
                true => "a negative number",
                false => value.value_type().name(),
            };
            Err(split_fault(file, format!("key {key}"), &expected, found))
        }
    }
}

/// Opens the set that `found` is a shard of, and checks that each file is the shard its name says.
fn open_shards(found: File, count: u64, limits: &Limits) -> Result<Vec<File>, Error> {
    if count > limits.max_shards {
        let (path, limit) = (found.path().to_owned(), limits.max_shards);
        return Err(Error::Limit { path, what: "the number of shards", limit, found: count });
    }
    let path = found.path().to_owned();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let place = "file name".to_owned();
    let Some((prefix, found_no, name_count)) = parse_shard_name(&path) else {
        let expected = format!("PREFIX-00001-of-{count:05}.gguf, since it is one of {count} shards");
        return Err(split_fault(&found, place, &expected, &name));
    };
    if name_count != count || found_no == 0 || found_no > count {
        return Err(split_fault(&found, place, &format!("a shard of {count} (split.count)"), &name));
    }
    let mut left = Limits { max_header_memory: limits.max_header_memory - found.header_memory(), ..limits.clone() };
    let mut found = Some(found);
    let mut files = Vec::new();
    for no in 1..=count {
        let file = match found.take_if(|_| no == found_no) {
            Some(file) => file,
            None => {
                let file = open_shard(&path, &shard_path(&path, prefix, no, count), no, count, &left)?;
                left.max_header_memory -= file.header_memory();
                file
            }
        };
        for (key, expected) in [("split.no", no - 1), ("split.count", count)] {
            let value = split_key(&file, key, ValueType::U16)?;
            if value != Some(expected) {
                let found = value.map_or("no such number".to_owned(), |n| n.to_string());
                return Err(split_fault(&file, format!("key {key}"), &expected.to_string(), &found));
            }
        }
        files.push(file);
    }
    let order = files[0].header().byte_order();
    if let Some(other) = files.iter().find(|f| f.header().byte_order() != order) {
        let found = format!("{:?}-endian", other.header().byte_order()).to_lowercase();
        let expected = format!("{order:?}-endian like the first shard").to_lowercase();
        return Err(split_fault(other, "byte order".to_owned(), &expected, &found));
    }
    Ok(files)
}

/// Opens a shard by the name it must have; that it is not there is a fault of the set that `found`
/// belongs to.
fn open_shard(found: &Path, shard: &Path, no: u64, count: u64, limits: &Limits) -> Result<File, Error> {
    File::open(shard, limits).map_err(|e| match e {
        Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            let place = format!("shard {no} of {count}");
            let expected = format!("the file {}", shard.display());
            let found_there = "no such file".to_owned();
            Fault { check: Check::Split, place, offset: 0, expected, found: found_there }.at(found)
        }
        e => e,
    })
}
