//! A whole header as a value: what a file says before its data.

use bstr::ByteSlice;

use super::error::{Check, Error, shown};
use super::value::{Array, Value, ValueType};
use super::{DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, MAX_NAME_BYTES, Metadata, VERSION, padded};
use crate::ggml::GgmlType;

/// The order of the bytes of every number in a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum ByteOrder {
    Little,
    Big,
}

/// What a file says of one tensor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorInfo {
    pub(super) name: String,
    pub(super) ne: [u64; MAX_DIMS],
    pub(super) n_dims: u32,
    pub(super) ty: GgmlType,
    pub(super) offset: u64,
}

impl TensorInfo {
    /// The tensor's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Weights along each dimension, row length first, as many as the file lists.
    pub fn ne(&self) -> &[u64] {
        &self.ne[..self.n_dims as usize]
    }

    /// Dimensions without trailing ones and zeros, at least 1 (`ggml_n_dims`).
    pub fn n_dims(&self) -> usize {
        self.ne.iter().rposition(|&n| n > 1).map_or(1, |i| i + 1)
    }

    /// The type of its weights.
    pub fn ty(&self) -> GgmlType {
        self.ty
    }

    /// Where its data begin, in bytes from the start of the data section.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Weights in a row.
    pub fn row_len(&self) -> u64 {
        self.ne[0]
    }

    /// Rows, over all dimensions but the first; none if a row has no weights.
    pub fn n_rows(&self) -> u64 {
        // With empty rows the other dimensions may be anything, even a product beyond 64 bits.
        if self.ne[0] == 0 { 0 } else { self.ne[1..].iter().product() }
    }

    /// Weights in all.
    pub fn n_weights(&self) -> u64 {
        self.row_len() * self.n_rows()
    }

    /// Bytes of a row.
    pub fn row_size(&self) -> u64 {
        self.ty.size_of(self.ne[0]).expect("checked when the info was made")
    }

    /// Bytes in all.
    pub fn size(&self) -> u64 {
        self.ty.size_of(self.n_weights()).expect("checked when the info was made")
    }

    /// Whether both have the same shape, trailing ones aside.
    pub fn same_shape(&self, other: &TensorInfo) -> bool {
        self.ne == other.ne
    }

    /// Panics if `len` bytes from `offset` are not all in the tensor, also where their sum wraps.
    #[track_caller]
    pub(super) fn assert_range(&self, offset: u64, len: usize) {
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= self.size());
        assert!(inside, "range beyond tensor {}", self.name);
    }

    /// Checks a shape and type by the rules of gguf.cpp; `Err` holds the check, what was expected
    /// and what was found.
    pub(super) fn checked_size(ne: &[u64; MAX_DIMS], ty: GgmlType) -> Result<u64, (Check, String, String)> {
        if let Some(&n) = ne.iter().find(|&&n| n > i64::MAX as u64) {
            return Err((Check::Shape, "no negative dimension".to_owned(), (n as i64).to_string()));
        }
        // The bound holds for each step: a zero further on does not excuse the dimensions before
        // it.
        let n_weights = ne
            .iter()
            .try_fold(1u64, |product, &n| product.checked_mul(n).filter(|&n| n <= i64::MAX as u64))
            .ok_or_else(|| (Check::Shape, "a product of dimensions below 2^63".to_owned(), format!("{ne:?}")))?;
        let block_len = ty.block_len() as u64;
        if !ne[0].is_multiple_of(block_len) {
            let expected = format!("rows of whole {ty} blocks of {block_len} weights");
            return Err((Check::TensorType, expected, format!("a row of {} weights", ne[0])));
        }
        // A row has a size of its own, also where there are no rows.
        ty.size_of(ne[0])
            .and(ty.size_of(n_weights))
            .ok_or_else(|| (Check::Size, "a size below 2^64 bytes".to_owned(), format!("{ne:?} {ty}")))
    }
}

/// A tensor that is to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorSpec {
    /// Its name, at most 63 bytes.
    pub name: String,
    /// Weights along each dimension, row length first.
    pub ne: Vec<u64>,
    /// The type of its weights.
    pub ty: GgmlType,
}

/// A header: version, byte order, metadata and tensor infos, with the layout of the data that
/// follows.
#[derive(Clone, PartialEq, Debug)]
pub struct Header {
    pub(super) version: u32,
    pub(super) byte_order: ByteOrder,
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<TensorInfo>,
    pub(super) alignment: u64,
    pub(super) len: u64,
}

impl Header {
    /// Lays out a new file: offsets in the given order, each tensor padded to the metadata's
    /// `general.alignment`.
    ///
    /// # Errors
    /// [`Error::Layout`] for what the reader would refuse: keys, names, shapes, types, alignment,
    /// sizes.
    pub fn new(metadata: Metadata, specs: impl IntoIterator<Item = TensorSpec>) -> Result<Self, Error> {
        let fail = |place: &str, (check, expected, found): (Check, String, String)| Error::Layout {
            check,
            place: place.to_owned(),
            expected,
            found,
        };
        check_keys(&metadata)?;
        let alignment = alignment_of(&metadata).map_err(|e| fail("general.alignment", e))?;
        let mut tensors: Vec<TensorInfo> = Vec::new();
        let mut names = std::collections::HashSet::new();
        let mut end = 0u64;
        for TensorSpec { name, ne, ty } in specs {
            let broken = if name.len() > MAX_NAME_BYTES {
                Some((format!("at most {MAX_NAME_BYTES} bytes"), format!("{} bytes", name.len())))
            } else if name.contains('\0') {
                Some(("no NUL".to_owned(), shown(name.as_bytes()).to_string()))
            } else if !names.insert(name.clone()) {
                Some(("each name once".to_owned(), "it a second time".to_owned()))
            } else {
                None
            };
            if let Some((expected, found)) = broken {
                return Err(fail(&name, (Check::TensorName, expected, found)));
            }
            if ne.len() > MAX_DIMS {
                let e = (Check::Shape, format!("at most {MAX_DIMS} dimensions"), ne.len().to_string());
                return Err(fail(&name, e));
            }
            let mut full = [1; MAX_DIMS];
            full[..ne.len()].copy_from_slice(&ne);
            let size = TensorInfo::checked_size(&full, ty).map_err(|e| fail(&name, e))?;
            let next = padded(size, alignment).and_then(|s| end.checked_add(s)).ok_or_else(|| {
                fail(&name, (Check::Size, "a file below 2^64 bytes".to_owned(), format!("{size} bytes more")))
            })?;
            tensors.push(TensorInfo { name, ne: full, n_dims: ne.len() as u32, ty, offset: end });
            end = next;
        }
        let mut header =
            Header { version: VERSION, byte_order: ByteOrder::Little, metadata, tensors, alignment, len: 0 };
        header.len = header.encode().len() as u64;
        match padded(header.len, alignment).and_then(|start| start.checked_add(end)) {
            Some(_) => Ok(header),
            None => {
                Err(fail("data section", (Check::Size, "a file below 2^64 bytes".to_owned(), format!("{end} of data"))))
            }
        }
    }

    /// The format version.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The order of bytes.
    pub fn byte_order(&self) -> ByteOrder {
        self.byte_order
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Bytes that the start of the data and of every tensor are a multiple of.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Bytes of the header itself, without padding.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// A header has at least 24 bytes.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Where the data section begins, in bytes from the start of the file.
    pub fn data_offset(&self) -> u64 {
        padded(self.len, self.alignment).expect("checked when the header was made")
    }

    /// Bytes of the whole file, the last tensor's padding included as every writer has it.
    pub fn file_len(&self) -> u64 {
        let end = self
            .tensors
            .last()
            .map_or(0, |t| t.offset + padded(t.size(), self.alignment).expect("checked when the header was made"));
        self.data_offset() + end
    }

    /// Where the value of a key begins, in bytes from the start of the file.
    pub fn value_offset(&self, key: &str) -> Option<u64> {
        let mut pos = 4 + 4 + 8 + 8;
        for (k, value) in self.metadata.iter() {
            pos += 8 + k.len() as u64 + 4;
            if k == key {
                return Some(pos);
            }
            pos += value.encoded_len();
        }
        None
    }

    /// The bytes of the header, as they stand at the start of the file.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_with(&self.metadata)
    }

    /// The bytes of the header with `metadata` in place of its own.
    pub fn encode_with(&self, metadata: &Metadata) -> Vec<u8> {
        match self.byte_order {
            ByteOrder::Little => encode::<byteorder::LE>(self, metadata, false),
            ByteOrder::Big => encode::<byteorder::BE>(self, metadata, true),
        }
    }
}

/// Checks that a reader will take the keys; that they are unique and UTF-8 follows from their type.
pub(super) fn check_keys(metadata: &Metadata) -> Result<(), Error> {
    match metadata.iter().position(|(key, _)| key.is_empty()) {
        None => Ok(()),
        Some(i) => Err(Error::Layout {
            check: Check::Key,
            place: format!("name of key {i}"),
            expected: "a name".to_owned(),
            found: "an empty string".to_owned(),
        }),
    }
}

/// `general.alignment` by the rule of gguf.cpp, in bytes.
pub(super) fn alignment_of(metadata: &Metadata) -> Result<u64, (Check, String, String)> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(n)) if n.is_power_of_two() => Ok((*n).into()),
        Some(value) => {
            let found = match value {
                Value::U32(n) => n.to_string(),
                other => format!("a {}", other.value_type().name()),
            };
            Err((Check::Alignment, "a uint32 power of two".to_owned(), found))
        }
    }
}

fn encode<B: byteorder::ByteOrder>(header: &Header, metadata: &Metadata, swap: bool) -> Vec<u8> {
    let mut out = Out::<B> { bytes: Vec::new(), swap, order: std::marker::PhantomData };
    out.bytes.extend_from_slice(&MAGIC);
    out.u32(header.version);
    out.u64(header.tensors.len() as u64);
    out.u64(metadata.len() as u64);
    for (key, value) in metadata.iter() {
        out.string(key.as_bytes());
        out.u32(value.value_type().id());
        out.value(value);
    }
    for tensor in &header.tensors {
        out.string(tensor.name.as_bytes());
        out.u32(tensor.n_dims);
        for &n in tensor.ne() {
            out.u64(n);
        }
        out.u32(tensor.ty.id());
        out.u64(tensor.offset);
    }
    out.bytes
}

struct Out<B> {
    bytes: Vec<u8>,
    swap: bool,
    order: std::marker::PhantomData<B>,
}

impl<B: byteorder::ByteOrder> Out<B> {
    fn u32(&mut self, v: u32) {
        let mut b = [0; 4];
        B::write_u32(&mut b, v);
        self.bytes.extend_from_slice(&b);
    }

    fn u64(&mut self, v: u64) {
        let mut b = [0; 8];
        B::write_u64(&mut b, v);
        self.bytes.extend_from_slice(&b);
    }

    fn u16(&mut self, v: u16) {
        let mut b = [0; 2];
        B::write_u16(&mut b, v);
        self.bytes.extend_from_slice(&b);
    }

    fn string(&mut self, s: &[u8]) {
        self.u64(s.len() as u64);
        self.bytes.extend_from_slice(s);
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::U8(v) | Value::Bool(v) => self.bytes.push(*v),
            Value::I8(v) => self.bytes.push(*v as u8),
            Value::U16(v) => self.u16(*v),
            Value::I16(v) => self.u16(*v as u16),
            Value::U32(v) => self.u32(*v),
            Value::I32(v) => self.u32(*v as u32),
            Value::F32(v) => self.u32(v.to_bits()),
            Value::U64(v) => self.u64(*v),
            Value::I64(v) => self.u64(*v as u64),
            Value::F64(v) => self.u64(v.to_bits()),
            Value::String(s) => self.string(s.as_bytes()),
            Value::Array(array) => {
                self.u32(array.element_type().id());
                self.u64(array.len() as u64);
                match array {
                    Array::Strings(strings) => strings.iter().for_each(|s| self.string(s)),
                    Array::Fixed(fixed) => {
                        let start = self.bytes.len();
                        self.bytes.extend_from_slice(&fixed.bytes);
                        if self.swap {
                            swap_elements(&mut self.bytes[start..], fixed.ty);
                        }
                    }
                }
            }
        }
    }
}

/// Reverses the bytes of every element in place.
pub(super) fn swap_elements(bytes: &mut [u8], ty: ValueType) {
    let size = ty.size().unwrap_or(1);
    if size > 1 {
        bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
    }
}
