//! Metadata values: the 13 types of the format, each kept as the file has it.

use bstr::{BStr, BString, ByteSlice};

use super::printable::printable;

/// The type of a metadata value, by its id in the file (`enum gguf_type`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    const ALL: [ValueType; 13] = {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64]
    };

    /// The type with this id.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(id as usize).copied()
    }

    /// The id in the file.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// Bytes of one value; `None` for strings and arrays, which have none of their own.
    pub const fn size(self) -> Option<usize> {
        use ValueType::*;
        match self {
            U8 | I8 | Bool => Some(1),
            U16 | I16 => Some(2),
            U32 | I32 | F32 => Some(4),
            U64 | I64 | F64 => Some(8),
            String | Array => None,
        }
    }

    /// The name used by `gguf-dump` and the specification, lower case.
    pub const fn name(self) -> &'static str {
        use ValueType::*;
        match self {
            U8 => "uint8",
            I8 => "int8",
            U16 => "uint16",
            I16 => "int16",
            U32 => "uint32",
            I32 => "int32",
            F32 => "float32",
            Bool => "bool",
            String => "string",
            Array => "array",
            U64 => "uint64",
            I64 => "int64",
            F64 => "float64",
        }
    }
}

/// One metadata value.
///
/// Strings are bytes: llama.cpp does not check them for UTF-8 and real vocabularies hold tokens
/// that are not.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    /// The byte of the file: any other than 0 is true, and is written back as it was.
    Bool(u8),
    String(BString),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    /// The type id this value is stored under.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// Bytes of the value in a file, its type aside.
    pub(super) fn encoded_len(&self) -> u64 {
        match self {
            Value::String(s) => 8 + s.len() as u64,
            Value::Array(Array::Strings(a)) => 4 + 8 + 8 * a.len() as u64 + a.bytes.len() as u64,
            Value::Array(Array::Fixed(a)) => 4 + 8 + a.bytes.len() as u64,
            fixed => fixed.value_type().size().unwrap_or(0) as u64,
        }
    }

    /// The value in one line for people, [`printable`]: at most 100 characters of a string, and 8
    /// elements of an array or 200 characters of them.
    pub fn summary(&self) -> String {
        const CHARS: usize = 100;
        const ELEMENTS: usize = 8;
        match self {
            Value::String(s) => {
                // Four bytes hold any character, so that no more than needed is looked at of what
                // may be megabytes.
                let head = s[..s.len().min(4 * CHARS)].to_str_lossy();
                let shown = printable(&head.chars().take(CHARS).collect::<String>());
                if head.chars().count() > CHARS || s.len() > 4 * CHARS {
                    return format!("{shown}… ({} bytes)", s.len());
                }
                shown
            }
            Value::Array(a) => {
                let mut head: Vec<String> = a.iter().take(ELEMENTS).map(|v| v.summary()).collect();
                while head.len() > 1 && head.iter().map(|element| element.len() + 2).sum::<usize>() > 2 * CHARS {
                    head.pop();
                }
                match a.len() {
                    n if n > head.len() => format!("[{}, … {n} in all]", head.join(", ")),
                    _ => format!("[{}]", head.join(", ")),
                }
            }
            Value::Bool(v) => (*v != 0).to_string(),
            Value::U8(v) => v.to_string(),
            Value::I8(v) => v.to_string(),
            Value::U16(v) => v.to_string(),
            Value::I16(v) => v.to_string(),
            Value::U32(v) => v.to_string(),
            Value::I32(v) => v.to_string(),
            Value::F32(v) => v.to_string(),
            Value::U64(v) => v.to_string(),
            Value::I64(v) => v.to_string(),
            Value::F64(v) => v.to_string(),
        }
    }

    /// The value of any integer type, if it is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// The value of any numeric type.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            Value::I8(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::I64(v) => Some(v as f64),
            _ => self.as_u64().map(|v| v as f64),
        }
    }

    /// The value of a bool.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(v) => Some(v != 0),
            _ => None,
        }
    }

    /// The value of a string.
    pub fn as_str(&self) -> Option<&BStr> {
        match self {
            Value::String(s) => Some(s.as_ref()),
            _ => None,
        }
    }

    /// The value of an array.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Value::Array(a) => Some(a),
            _ => None,
        }
    }
}

impl From<&str> for Value {
    fn from(s: &str) -> Self {
        Value::String(s.into())
    }
}

/// An array of values of one type. Arrays of arrays do not exist: llama.cpp refuses them.
#[derive(Clone, PartialEq, Debug)]
pub enum Array {
    /// Numbers or bools.
    Fixed(FixedArray),
    /// Strings.
    Strings(StringArray),
}

/// Numbers or bools, packed little-endian whatever the file's byte order.
#[derive(Clone, PartialEq, Debug)]
pub struct FixedArray {
    pub(super) ty: ValueType,
    pub(super) bytes: Vec<u8>,
}

/// Strings, end to end in one allocation: a vocabulary of 150,000 tokens is two, not 150,000.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct StringArray {
    pub(super) bytes: Vec<u8>,
    pub(super) ends: Vec<usize>,
}

impl StringArray {
    /// How many strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The string at this position.
    pub fn get(&self, i: usize) -> Option<&BStr> {
        let end = *self.ends.get(i)?;
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        Some(BStr::new(&self.bytes[start..end]))
    }

    /// All strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &BStr> {
        (0..self.len()).map(|i| self.get(i).expect("i is below len"))
    }

    /// Adds one at the end.
    pub fn push(&mut self, s: &[u8]) {
        self.bytes.extend_from_slice(s);
        self.ends.push(self.bytes.len());
    }
}

impl<S: AsRef<[u8]>> FromIterator<S> for StringArray {
    fn from_iter<I: IntoIterator<Item = S>>(iter: I) -> Self {
        let mut array = StringArray::default();
        for s in iter {
            array.push(s.as_ref());
        }
        array
    }
}

impl Array {
    /// The type of the elements; an empty array has one too.
    pub fn element_type(&self) -> ValueType {
        match self {
            Array::Fixed(a) => a.ty,
            Array::Strings(_) => ValueType::String,
        }
    }

    /// How many elements.
    pub fn len(&self) -> usize {
        match self {
            Array::Fixed(a) => a.bytes.len() / a.ty.size().unwrap_or(1),
            Array::Strings(a) => a.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element at this position, as a value of its own.
    pub fn get(&self, i: usize) -> Option<Value> {
        let a = match self {
            Array::Strings(a) => return a.get(i).map(|s| Value::String(s.to_owned())),
            Array::Fixed(a) => a,
        };
        fn take<const N: usize>(bytes: &[u8], i: usize) -> Option<[u8; N]> {
            bytes.chunks_exact(N).nth(i)?.try_into().ok()
        }
        let b = &a.bytes;
        Some(match a.ty {
            ValueType::U8 => Value::U8(*b.get(i)?),
            ValueType::Bool => Value::Bool(*b.get(i)?),
            ValueType::I8 => Value::I8(*b.get(i)? as i8),
            ValueType::U16 => Value::U16(u16::from_le_bytes(take(b, i)?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(take(b, i)?)),
            ValueType::U32 => Value::U32(u32::from_le_bytes(take(b, i)?)),
            ValueType::I32 => Value::I32(i32::from_le_bytes(take(b, i)?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(take(b, i)?)),
            ValueType::U64 => Value::U64(u64::from_le_bytes(take(b, i)?)),
            ValueType::I64 => Value::I64(i64::from_le_bytes(take(b, i)?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(take(b, i)?)),
            ValueType::String | ValueType::Array => return None,
        })
    }

    /// All elements in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Value> + '_ {
        (0..self.len()).map(|i| self.get(i).expect("i is below len"))
    }

    /// The strings of an array of strings.
    pub fn as_strings(&self) -> Option<&StringArray> {
        match self {
            Array::Strings(a) => Some(a),
            Array::Fixed(_) => None,
        }
    }

    /// An array of 32-bit signed integers, as token types are.
    pub fn from_i32s(values: &[i32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Array::Fixed(FixedArray { ty: ValueType::I32, bytes })
    }

    /// An array of 32-bit unsigned integers, as ids of tokens are.
    pub fn from_u32s(values: &[u32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Array::Fixed(FixedArray { ty: ValueType::U32, bytes })
    }

    /// An array of 32-bit floats.
    pub fn from_f32s(values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Array::Fixed(FixedArray { ty: ValueType::F32, bytes })
    }
}
