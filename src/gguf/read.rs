//! Parsing a header, with every check before the memory it would cost.

use std::collections::HashSet;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::path::Path;

use bstr::BString;
use byteorder::{BE, LE};

use super::error::{Check, Error, Fault, place_of, shown};
use super::header::{ByteOrder, Header, TensorInfo, alignment_of, swap_elements};
use super::value::{Array, FixedArray, StringArray, Value, ValueType};
use super::{MAGIC, MAX_DIMS, MAX_NAME_BYTES, Metadata, VERSION, padded};
use crate::ggml::GgmlType;

/// What a header may cost. The defaults are far above any real model and bound the memory of
/// reading a hostile one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of the header; memory while reading stays below twice this, and some 300 bytes for
    /// each key and tensor. Default 512 MiB: a vocabulary of a million tokens with merges takes 50
    /// MB.
    pub max_header_bytes: u64,
    /// Bytes of one string. Default 64 MiB; llama.cpp allows 1 GiB.
    pub max_string_bytes: u64,
    /// Elements of one array. Default 2^26; llama.cpp allows 2^30.
    pub max_array_len: u64,
    /// Tensors. Default 2^20: the largest mixtures of experts have some thousands.
    pub max_tensors: u64,
    /// Keys. Default 2^16.
    pub max_keys: u64,
    /// Shards of a split set. Default 1000.
    pub max_shards: u64,
    /// Bytes of memory for the headers of a file or a split set, and for what is made of them:
    /// tables of tensors, a tokenizer, places of tokens. They are counted by what each part takes
    /// at most, before it is read. Default 1 GiB.
    pub max_header_memory: u64,
    /// Bytes of memory for computing part of a tensor from what is stored of it, as in a patch.
    /// Default 1 GiB.
    pub max_tensor_memory: u64,
    /// Operations for each byte of a file that computing all of its tensors may take: a weight is
    /// one, and each number that is multiplied for it is one more. Default 2^17: one decomposed
    /// matrix of 262,144 rows of 5,376 weights, of rank 1 and half a bit for each number of its
    /// factors, takes 84,000 for each of its own bytes. `u64::MAX` is no bound.
    pub max_work_per_byte: u64,
}

/// Memory that a header may take however little there is for everything else: the largest
/// vocabularies of published models, of 262,144 tokens and 514,906 merges, are counted as 350 MB.
const LEAST_HEADER_MEMORY: u64 = 512 << 20;

impl Limits {
    /// The defaults for a command that has so many bytes of memory.
    #[must_use]
    pub fn within(memory: u64) -> Self {
        Limits { max_header_memory: memory.max(LEAST_HEADER_MEMORY), max_tensor_memory: memory, ..Limits::default() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_header_bytes: 512 << 20,
            max_string_bytes: 64 << 20,
            max_array_len: 1 << 26,
            max_tensors: 1 << 20,
            max_keys: 1 << 16,
            max_shards: 1000,
            max_header_memory: 1 << 30,
            max_tensor_memory: 1 << 30,
            max_work_per_byte: 1 << 17,
        }
    }
}

/// The fewest bytes of a key–value pair: an empty name, a type, one byte.
const MIN_KEY_BYTES: u64 = 8 + 4 + 1;
/// Keys whose strings become tables.
const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";

/// The fewest bytes of a tensor info: an empty name, no dimensions, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 4 + 8;

/// Bytes of memory that each part of a header may take, with all that is made of it anywhere in the
/// crate. Measured with headers of nothing but that part, in `tests/memory.rs`.
mod cost {
    /// A key, its name aside.
    pub(super) const KEY: u64 = 1024;
    /// A tensor info: names in two tables, plans, lines of a report.
    pub(super) const TENSOR: u64 = 1024;
    /// A byte of a string: a vector that grows, and copies for another header.
    pub(super) const STRING_BYTE: u64 = 4;
    /// A string of an array: where it ends, and a string of its own.
    pub(super) const STRING: u64 = 64;
    /// A token: a tokenizer's table, places in two vocabularies.
    pub(super) const TOKEN: u64 = 320;
    /// A merge: its two halves and their sum, all unknown so far, and the table.
    pub(super) const MERGE: u64 = 448;
    /// A number of an array: one of 8 bytes beside its own.
    pub(super) const NUMBER: u64 = 8;
}

/// Reads the header of a file of `file_len` bytes, and says what memory it takes, by [`cost`].
/// `reader` stands at its start and should be buffered.
///
/// # Errors
/// [`Error::Malformed`], [`Error::Limit`] or [`Error::Io`]; `path` is named in each and used for
/// nothing else.
pub(super) fn read_header(
    reader: impl Read,
    file_len: u64,
    path: &Path,
    limits: &Limits,
) -> Result<(Header, u64), Error> {
    let mut magic_and_version = [0; 8];
    let mut reader = reader;
    if file_len < 8 {
        let found = format!("a file of {file_len} bytes");
        return Err(fault(Check::Magic, "magic", 0, "GGUF and a version", found).at(path));
    }
    reader.read_exact(&mut magic_and_version).map_err(Error::io(path, "read"))?;
    let (magic, version) = magic_and_version.split_at(4);
    if magic != MAGIC {
        let found = format!("{}", shown(magic));
        return Err(fault(Check::Magic, "magic", 0, "'GGUF'", found).at(path));
    }
    let little = u32::from_le_bytes(version.try_into().expect("the other half of 8 bytes"));
    // As in gguf.cpp: a version whose low half is 0 was written in the other byte order.
    let (version, byte_order) =
        if little & 0xffff == 0 { (little.swap_bytes(), ByteOrder::Big) } else { (little, ByteOrder::Little) };
    if !(2..=VERSION).contains(&version) {
        return Err(fault(Check::Version, "version", 4, "2 or 3", version.to_string()).at(path));
    }
    let input = Input { reader, pos: 8, file_len, path, limits, taken: 0 };
    match byte_order {
        ByteOrder::Little => Parser { input, order: PhantomData::<LE> }.header(version, byte_order),
        ByteOrder::Big => Parser { input, order: PhantomData::<BE> }.header(version, byte_order),
    }
}

fn fault(check: Check, place: &str, offset: u64, expected: impl Into<String>, found: impl Into<String>) -> Fault {
    Fault { check, place: place.to_owned(), offset, expected: expected.into(), found: found.into() }
}

/// A reader that knows how much is left.
struct Input<'a, R> {
    reader: R,
    pos: u64,
    file_len: u64,
    path: &'a Path,
    limits: &'a Limits,
    /// Bytes of memory that were taken so far.
    taken: u64,
}

impl<R: Read> Input<'_, R> {
    /// Announces that `n` more bytes will be read: they must lie in the file and in the header
    /// limit.
    fn need(&self, n: u64, place: &str) -> Result<(), Error> {
        if n > self.file_len - self.pos {
            let found = format!("{} before the end of the file", self.file_len - self.pos);
            return Err(fault(Check::Bounds, place, self.pos, format!("{n} bytes"), found).at(self.path));
        }
        self.limit("the header's length in bytes", self.limits.max_header_bytes, self.pos + n)
    }

    /// Announces that so much memory will be taken.
    fn take(&mut self, n_bytes: u64) -> Result<(), Error> {
        self.taken = self.taken.saturating_add(n_bytes);
        let what = "the memory in bytes that its header and tokens may take (--memory raises the limit)";
        self.limit(what, self.limits.max_header_memory, self.taken)
    }

    fn limit(&self, what: &'static str, limit: u64, found: u64) -> Result<(), Error> {
        match found > limit {
            true => Err(Error::Limit { path: self.path.to_owned(), what, limit, found }),
            false => Ok(()),
        }
    }

    fn read(&mut self, buf: &mut [u8], place: &str) -> Result<(), Error> {
        self.need(buf.len() as u64, place)?;
        self.reader.read_exact(buf).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => {
                let found = "the end: the file shrank while it was read";
                fault(Check::Bounds, place, self.pos, format!("{} bytes", buf.len()), found).at(self.path)
            }
            _ => Error::io(self.path, "read")(e),
        })?;
        self.pos += buf.len() as u64;
        Ok(())
    }
}

struct Parser<'a, R, B> {
    input: Input<'a, R>,
    order: PhantomData<B>,
}

impl<R: Read, B: byteorder::ByteOrder> Parser<'_, R, B> {
    fn fail<T>(
        &self,
        check: Check,
        place: &str,
        offset: u64,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Result<T, Error> {
        Err(fault(check, place, offset, expected, found).at(self.input.path))
    }

    fn header(mut self, version: u32, byte_order: ByteOrder) -> Result<(Header, u64), Error> {
        let n_tensors = self.count("tensor count", MIN_TENSOR_BYTES)?;
        let n_keys = self.count("key count", MIN_KEY_BYTES)?;
        self.input.limit("the number of tensors", self.input.limits.max_tensors, n_tensors)?;
        self.input.limit("the number of keys", self.input.limits.max_keys, n_keys)?;
        self.input.take(n_tensors * cost::TENSOR + n_keys * cost::KEY)?;

        let mut metadata = Metadata::default();
        let mut alignment_offset = 0;
        let mut keys = HashSet::new();
        for i in 0..n_keys {
            let offset = self.input.pos;
            let key = self.key(i)?;
            if !keys.insert(key.clone()) {
                return self.fail(Check::Key, &place_of("key", &key), offset, "each key once", "it a second time");
            }
            if key == "general.alignment" {
                alignment_offset = self.input.pos;
            }
            let value = self.typed_value(&key)?;
            metadata.push_unique(key, value);
        }
        drop(keys);
        let alignment = match alignment_of(&metadata) {
            Ok(alignment) => alignment,
            Err((check, expected, found)) => {
                return self.fail(check, "key general.alignment", alignment_offset, expected, found);
            }
        };

        let mut tensors = Vec::new();
        let mut names = HashSet::new();
        let mut next_offset = 0;
        for i in 0..n_tensors {
            let tensor = self.tensor(i, &mut names, &mut next_offset, alignment)?;
            tensors.push(tensor);
        }

        let len = self.input.pos;
        let header = Header { version, byte_order, metadata, tensors, alignment, len };
        self.check_data(&header)?;
        Ok((header, self.input.taken))
    }

    /// Checks where the data lie, which takes the whole header to know.
    fn check_data(&self, header: &Header) -> Result<(), Error> {
        if header.tensors.is_empty() {
            return Ok(());
        }
        let file_len = self.input.file_len;
        let found = || format!("a file of {file_len} bytes");
        let start = match padded(header.len, header.alignment) {
            Some(start) if start <= file_len => start,
            _ => {
                let expected = format!("its start, the next multiple of {}, inside the file", header.alignment);
                return self.fail(Check::DataStart, "data section", header.len, expected, found());
            }
        };
        for t in &header.tensors {
            let end = start.checked_add(t.offset).and_then(|begin| begin.checked_add(t.size()));
            if end.is_none_or(|end| end > file_len) {
                let expected = match end {
                    Some(end) => format!("{} bytes of data, up to byte {end}", t.size()),
                    None => "an end below 2^64".to_owned(),
                };
                let place = place_of("tensor", &t.name);
                return self.fail(Check::DataEnd, &place, start.saturating_add(t.offset), expected, found());
            }
        }
        Ok(())
    }

    fn count(&mut self, place: &str, min_bytes: u64) -> Result<u64, Error> {
        let offset = self.input.pos;
        let n = self.u64(place)?;
        let most = (self.input.file_len - self.input.pos) / min_bytes;
        if n > most {
            let found = if n > i64::MAX as u64 { format!("{}", n as i64) } else { n.to_string() };
            return self.fail(Check::Counts, place, offset, format!("at most {most} in a file of this size"), found);
        }
        Ok(n)
    }

    fn key(&mut self, index: u64) -> Result<String, Error> {
        let offset = self.input.pos;
        let place = format!("name of key {index}");
        let bytes = self.string(&place)?;
        if bytes.is_empty() {
            return self.fail(Check::Key, &place, offset, "a name", "an empty string");
        }
        match String::from_utf8(bytes) {
            Ok(key) => Ok(key),
            Err(e) => self.fail(Check::Key, &place, offset, "UTF-8", shown(e.as_bytes()).to_string()),
        }
    }

    fn value_type(&mut self, place: &str) -> Result<ValueType, Error> {
        let offset = self.input.pos;
        let id = self.u32(place)?;
        match ValueType::from_id(id) {
            Some(ty) => Ok(ty),
            None => self.fail(Check::ValueType, place, offset, "a value type from 0 to 12", id.to_string()),
        }
    }

    fn typed_value(&mut self, key: &str) -> Result<Value, Error> {
        let place = place_of("key", key);
        let ty = self.value_type(&place)?;
        Ok(match ty {
            ValueType::U8 => Value::U8(self.array::<1>(&place)?[0]),
            ValueType::Bool => Value::Bool(self.array::<1>(&place)?[0]),
            ValueType::I8 => Value::I8(self.array::<1>(&place)?[0] as i8),
            ValueType::U16 => Value::U16(B::read_u16(&self.array::<2>(&place)?)),
            ValueType::I16 => Value::I16(B::read_i16(&self.array::<2>(&place)?)),
            ValueType::U32 => Value::U32(self.u32(&place)?),
            ValueType::I32 => Value::I32(B::read_i32(&self.array::<4>(&place)?)),
            ValueType::F32 => Value::F32(f32::from_bits(self.u32(&place)?)),
            ValueType::U64 => Value::U64(self.u64(&place)?),
            ValueType::I64 => Value::I64(B::read_i64(&self.array::<8>(&place)?)),
            ValueType::F64 => Value::F64(f64::from_bits(self.u64(&place)?)),
            ValueType::String => Value::String(BString::from(self.string(&place)?)),
            ValueType::Array => Value::Array(self.value_array(key, &place)?),
        })
    }

    fn value_array(&mut self, key: &str, place: &str) -> Result<Array, Error> {
        let offset = self.input.pos;
        let ty = self.value_type(place)?;
        if ty == ValueType::Array {
            return self.fail(Check::ValueType, place, offset, "an array of values", "an array of arrays");
        }
        let n = self.u64(place)?;
        // A string takes at least its length field.
        let element_bytes = ty.size().unwrap_or(8) as u64;
        let n_bytes = n.saturating_mul(element_bytes);
        self.input.need(n_bytes, place)?;
        self.input.limit("the length of an array", self.input.limits.max_array_len, n)?;
        let each = match (ty, key) {
            (ValueType::String, TOKENS) => cost::TOKEN,
            (ValueType::String, MERGES) => cost::MERGE,
            (ValueType::String, _) => cost::STRING,
            _ => cost::NUMBER + element_bytes,
        };
        self.input.take(n.saturating_mul(each))?;
        if ty == ValueType::String {
            let mut strings = StringArray::default();
            strings.ends.reserve_exact(n as usize);
            for _ in 0..n {
                self.string_into(&mut strings.bytes, place)?;
                strings.ends.push(strings.bytes.len());
            }
            strings.bytes.shrink_to_fit();
            return Ok(Array::Strings(strings));
        }
        let mut bytes = vec![0; n_bytes as usize];
        self.input.read(&mut bytes, place)?;
        if B::read_u16(&[0, 1]) == 1 {
            swap_elements(&mut bytes, ty);
        }
        Ok(Array::Fixed(FixedArray { ty, bytes }))
    }

    fn tensor(
        &mut self,
        index: u64,
        names: &mut HashSet<String>,
        next_offset: &mut u64,
        alignment: u64,
    ) -> Result<TensorInfo, Error> {
        let at = self.input.pos;
        let place = format!("name of tensor {index}");
        let bytes = self.string(&place)?;
        if bytes.len() > MAX_NAME_BYTES {
            let expected = format!("at most {MAX_NAME_BYTES} bytes");
            let found = format!("{} bytes, {}", bytes.len(), shown(&bytes));
            return self.fail(Check::TensorName, &place, at, expected, found);
        }
        let name = match String::from_utf8(bytes) {
            Ok(name) => name,
            Err(e) => return self.fail(Check::TensorName, &place, at, "UTF-8", shown(e.as_bytes()).to_string()),
        };
        if name.contains('\0') {
            return self.fail(Check::TensorName, &place, at, "no NUL", shown(name.as_bytes()).to_string());
        }
        let place = place_of("tensor", &name);
        if !names.insert(name.clone()) {
            return self.fail(Check::TensorName, &place, at, "each name once", "it a second time");
        }

        let at = self.input.pos;
        let n_dims = self.u32(&place)?;
        if n_dims as usize > MAX_DIMS {
            return self.fail(Check::Shape, &place, at, format!("at most {MAX_DIMS} dimensions"), n_dims.to_string());
        }
        let mut ne = [1; MAX_DIMS];
        for n in &mut ne[..n_dims as usize] {
            *n = self.u64(&place)?;
        }

        let at_type = self.input.pos;
        let ty = match GgmlType::from_id(self.u32(&place)?) {
            Ok(ty) => ty,
            Err(e) => return self.fail(Check::TensorType, &place, at_type, "a type of ggml", e.to_string()),
        };
        let size = match TensorInfo::checked_size(&ne, ty) {
            Ok(size) => size,
            Err((check, expected, found)) => return self.fail(check, &place, at, expected, found),
        };

        let at_offset = self.input.pos;
        let offset = self.u64(&place)?;
        if offset != *next_offset {
            let expected = format!("its data at {next_offset}, right after those of the tensor before");
            return self.fail(Check::Offset, &place, at_offset, expected, offset.to_string());
        }
        *next_offset = match padded(size, alignment).and_then(|s| offset.checked_add(s)) {
            Some(next) => next,
            None => {
                let found = format!("{size} bytes at {offset}");
                return self.fail(Check::Size, &place, at, "sizes that add up to less than 2^64", found);
            }
        };
        Ok(TensorInfo { name, ne, n_dims, ty, offset })
    }

    fn array<const N: usize>(&mut self, place: &str) -> Result<[u8; N], Error> {
        let mut b = [0; N];
        self.input.read(&mut b, place)?;
        Ok(b)
    }

    fn u32(&mut self, place: &str) -> Result<u32, Error> {
        Ok(B::read_u32(&self.array::<4>(place)?))
    }

    fn u64(&mut self, place: &str) -> Result<u64, Error> {
        Ok(B::read_u64(&self.array::<8>(place)?))
    }

    fn string(&mut self, place: &str) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.string_into(&mut bytes, place)?;
        Ok(bytes)
    }

    /// Appends a string to `out`.
    fn string_into(&mut self, out: &mut Vec<u8>, place: &str) -> Result<(), Error> {
        let n = self.u64(place)?;
        self.input.need(n, place)?;
        self.input.limit("the length of a string in bytes", self.input.limits.max_string_bytes, n)?;
        self.input.take(n.saturating_mul(cost::STRING_BYTE))?;
        let start = out.len();
        out.resize(start + n as usize, 0);
        self.input.read(&mut out[start..], place)
    }
}
