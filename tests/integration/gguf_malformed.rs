//! Files that break one rule each, in a list by name, and damage that no list foresees.

use std::collections::HashSet;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use chatvec::gguf::{Check, Error, File, Limits, Model};

use crate::support::{Draft, Tensor, Val, kind, shard_name, split, valid, write, write_split};

/// A bad file, or a set of which one file is bad.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    check: Check,
    /// The file the message is about.
    pub(crate) culprit: String,
    /// What else the message says: the place, what was expected, what was found.
    says: &'static [&'static str],
    /// The first is opened.
    pub(crate) files: Vec<(String, Vec<u8>)>,
}

const FILE: &str = "bad.gguf";

/// Long enough for a busy machine, too short to read or fill a terabyte.
const AT_ONCE: Duration = Duration::from_secs(10);

/// A valid model with one thing spoiled in what it says.
fn spoil(name: &'static str, check: Check, says: &'static [&'static str], spoil: impl FnOnce(&mut Draft)) -> Case {
    let mut draft = valid();
    spoil(&mut draft);
    Case { name, check, culprit: FILE.to_owned(), says, files: vec![(FILE.to_owned(), draft.bytes())] }
}

/// A valid model with one thing spoiled in its bytes.
fn bytes(name: &'static str, check: Check, says: &'static [&'static str], spoil: impl FnOnce(&mut Vec<u8>)) -> Case {
    let mut bytes = valid().bytes();
    spoil(&mut bytes);
    Case { name, check, culprit: FILE.to_owned(), says, files: vec![(FILE.to_owned(), bytes)] }
}

/// A valid set of three shards with one thing spoiled; `culprit` counts from 0.
fn set(
    name: &'static str,
    culprit: usize,
    says: &'static [&'static str],
    spoil: impl FnOnce(&mut Vec<(String, Draft)>),
) -> Case {
    let mut shards = split(&valid(), 3);
    let culprit_name = shards[culprit].0.clone();
    spoil(&mut shards);
    let culprit = shards.get(culprit).map_or(culprit_name, |(name, _)| name.clone());
    let files = shards.into_iter().map(|(name, draft)| (name, draft.bytes())).collect();
    Case { name, check: Check::Split, culprit, says, files }
}

/// Replaces the length that stands before a string.
fn claim_length(bytes: &mut [u8], string: &str, len: u64) {
    let at = bytes.windows(string.len()).position(|w| w == string.as_bytes()).expect("a string of the file");
    bytes[at - 8..at].copy_from_slice(&len.to_le_bytes());
}

/// A key whose array says it has this many elements and has none.
fn claim_array(draft: &mut Draft, kind: u32, len: u64) {
    let raw = [&kind.to_le_bytes()[..], &len.to_le_bytes()].concat();
    draft.set("x.claim", Val::Raw(kind::ARRAY, raw));
}

fn one_tensor(draft: &mut Draft, ne: &[u64], ty: u32) {
    draft.tensors.push(Tensor::new("x.spoiled", ne, ty));
}

const I8: u32 = 24;
const F64: u32 = 28;
const Q4_K: u32 = 12;

pub(crate) fn cases() -> Vec<Case> {
    use Check::*;
    vec![
        // Row 1 of the loader's checks: the magic.
        bytes("an empty file", Magic, &["magic", "GGUF", "0 bytes"], Vec::clear),
        bytes("a file of seven bytes", Magic, &["magic", "GGUF", "7 bytes"], |b| b.truncate(7)),
        spoil("an old magic", Magic, &["magic", "'GGUF'", "'ggjt'"], |d| d.magic = *b"ggjt"),
        spoil("a reversed magic", Magic, &["magic", "'GGUF'", "'FUGG'"], |d| d.magic = *b"FUGG"),
        // Row 2: the version.
        spoil("version 0", Version, &["version", "2 or 3", "found 0"], |d| d.version = 0),
        spoil("version 1", Version, &["version", "2 or 3", "found 1"], |d| d.version = 1),
        spoil("version 4", Version, &["version", "2 or 3", "found 4"], |d| d.version = 4),
        spoil("version 1, big-endian", Version, &["version", "2 or 3", "found 1"], |d| {
            d.version = 1;
            d.big_endian = true;
        }),
        spoil("version 65536", Version, &["version", "2 or 3"], |d| d.version = 0x1_0000),
        // Row 3: the counts.
        spoil("-1 tensors", Counts, &["tensor count", "at most", "found -1"], |d| d.n_tensors = Some(u64::MAX)),
        spoil("2^60 tensors", Counts, &["tensor count", "at most", "1152921504606846976"], |d| {
            d.n_tensors = Some(1 << 60);
        }),
        spoil("-1 keys", Counts, &["key count", "at most", "found -1"], |d| d.n_keys = Some(u64::MAX)),
        spoil("2^60 keys", Counts, &["key count", "at most", "1152921504606846976"], |d| d.n_keys = Some(1 << 60)),
        // Row 4: everything is read inside the file; every prefix of a file has a test of its own
        // below.
        spoil("one key too many", Key, &["name of key 10", "found an empty string"], |d| {
            // What follows the last key is read as one more: here a tensor's name of no bytes.
            d.n_keys = Some(11);
            d.tensors[0].name.clear();
        }),
        bytes("a key of 2^40 bytes", Bounds, &["name of key 1", "1099511627776 bytes", "before the end"], |b| {
            claim_length(b, "general.name", 1 << 40);
        }),
        bytes("a string of -1 bytes", Bounds, &["key general.name", "18446744073709551615 bytes"], |b| {
            claim_length(b, "small", u64::MAX);
        }),
        bytes("a tensor name of 2^40 bytes", Bounds, &["name of tensor 2", "1099511627776 bytes"], |b| {
            claim_length(b, "blk.0.attn_q.weight", 1 << 40);
        }),
        bytes("a token of 2^40 bytes", Bounds, &["key tokenizer.ggml.tokens", "1099511627776 bytes"], |b| {
            claim_length(b, "<unk>", 1 << 40);
        }),
        spoil("an array of 2^60 bytes", Bounds, &["key x.claim", "1152921504606846976 bytes"], |d| {
            claim_array(d, kind::U8, 1 << 60);
        }),
        spoil("an array of 2^62 numbers", Bounds, &["key x.claim", "bytes"], |d| claim_array(d, kind::F64, 1 << 62)),
        spoil("an array of 2^60 strings", Bounds, &["key x.claim", "bytes"], |d| {
            claim_array(d, kind::STRING, 1 << 60);
        }),
        spoil("an array of -1 strings", Bounds, &["key x.claim", "bytes"], |d| {
            claim_array(d, kind::STRING, u64::MAX);
        }),
        // Row 5: keys.
        spoil("an empty key", Key, &["name of key 10", "expected a name", "an empty string"], |d| {
            d.keys.push((Vec::new(), Val::U8(0)));
        }),
        spoil("a key twice", Key, &["key general.name", "each key once", "a second time"], |d| {
            d.keys.push((b"general.name".to_vec(), Val::U8(0)));
        }),
        spoil("a key that is not UTF-8", Key, &["name of key 10", "UTF-8", r"'x\xff'"], |d| {
            d.keys.push((b"x\xff".to_vec(), Val::U8(0)));
        }),
        // Row 6: value types.
        spoil("value type 13", ValueType, &["key x.type", "from 0 to 12", "found 13"], |d| {
            d.set("x.type", Val::Raw(13, vec![0; 8]));
        }),
        spoil("value type -1", ValueType, &["key x.type", "from 0 to 12", "found 4294967295"], |d| {
            d.set("x.type", Val::Raw(u32::MAX, vec![0; 8]));
        }),
        spoil("element type 13", ValueType, &["key x.type", "from 0 to 12", "found 13"], |d| {
            d.set("x.type", Val::Array(13, vec![]));
        }),
        spoil("an array of arrays", ValueType, &["key x.type", "array of values", "array of arrays"], |d| {
            let inner = Val::Array(kind::U8, vec![Val::U8(1)]);
            d.set("x.type", Val::Array(kind::ARRAY, vec![inner]));
        }),
        // Row 7: the alignment.
        spoil("an alignment in u64", Alignment, &["key general.alignment", "uint32 power of two", "a uint64"], |d| {
            d.set("general.alignment", Val::U64(32));
        }),
        spoil("an alignment in a string", Alignment, &["key general.alignment", "a string"], |d| {
            d.set("general.alignment", Val::str("32"));
        }),
        spoil("alignment 0", Alignment, &["key general.alignment", "power of two", "found 0"], |d| {
            d.set("general.alignment", Val::U32(0));
        }),
        spoil("alignment 48", Alignment, &["key general.alignment", "power of two", "found 48"], |d| d.align(48)),
        // Row 8: tensor names.
        spoil("a tensor name of 64 bytes", TensorName, &["name of tensor 0", "at most 63 bytes", "64 bytes"], |d| {
            d.tensors[0].name = vec![b'n'; 64];
        }),
        spoil("a tensor name twice", TensorName, &["tensor output.weight", "each name once", "a second"], |d| {
            d.tensors.push(Tensor::new("output.weight", &[1], I8));
        }),
        spoil("a tensor name that is not UTF-8", TensorName, &["name of tensor 0", "UTF-8", r"'\xc3('"], |d| {
            d.tensors[0].name = vec![0xc3, 0x28];
        }),
        spoil("a tensor name with a NUL", TensorName, &["name of tensor 0", "no NUL", r"'a\x00b'"], |d| {
            d.tensors[0].name = b"a\0b".to_vec();
        }),
        // Row 9: shapes.
        spoil("five dimensions", Shape, &["tensor x.spoiled", "at most 4 dimensions", "found 5"], |d| {
            one_tensor(d, &[1; 5], I8);
        }),
        spoil("a negative dimension", Shape, &["tensor x.spoiled", "no negative dimension", "found -8"], |d| {
            one_tensor(d, &[4, -8i64 as u64], I8);
        }),
        spoil("a negative dimension of no rows", Shape, &["tensor x.spoiled", "no negative", "found -1"], |d| {
            one_tensor(d, &[0, u64::MAX], I8);
        }),
        spoil("a product of 2^64", Shape, &["tensor x.spoiled", "below 2^63", "4294967296"], |d| {
            one_tensor(d, &[1 << 32, 1 << 32], I8);
        }),
        spoil("a product of 2^63", Shape, &["tensor x.spoiled", "below 2^63"], |d| one_tensor(d, &[1 << 62, 2], I8)),
        spoil("a product of 2^63, then 0", Shape, &["tensor x.spoiled", "below 2^63"], |d| {
            one_tensor(d, &[1 << 62, 2, 0], I8);
        }),
        // Row 10: types and sizes.
        spoil("type 4", TensorType, &["tensor x.spoiled", "q4_2", "id 4", "removed"], |d| one_tensor(d, &[32], 4)),
        spoil("type 31", TensorType, &["tensor x.spoiled", "q4_0_4_4", "Q4_0 instead"], |d| {
            one_tensor(d, &[32], 31);
        }),
        spoil("type 43", TensorType, &["tensor x.spoiled", "43", "0 to 42"], |d| one_tensor(d, &[32], 43)),
        spoil("type 99", TensorType, &["tensor x.spoiled", "99", "0 to 42"], |d| one_tensor(d, &[32], 99)),
        spoil("type -1", TensorType, &["tensor x.spoiled", "4294967295"], |d| one_tensor(d, &[32], u32::MAX)),
        spoil("a row of 250 in Q4_K", TensorType, &["tensor x.spoiled", "Q4_K blocks of 256", "250 weights"], |d| {
            one_tensor(d, &[250, 256], Q4_K);
        }),
        spoil("a size of 2^65", Size, &["tensor x.spoiled", "below 2^64 bytes", "F64"], |d| {
            one_tensor(d, &[1 << 62], F64);
        }),
        spoil("rows of 2^65 bytes, none of them", Size, &["tensor x.spoiled", "below 2^64 bytes", "F64"], |d| {
            one_tensor(d, &[1 << 62, 0], F64);
        }),
        // Row 11: where the data begin.
        bytes("no padding after the header", DataStart, &["data section", "multiple of 32", "a file of"], |b| {
            b.truncate(valid().header().len());
        }),
        spoil("an alignment beyond the file", DataStart, &["data section", "multiple of 2147483648"], |d| {
            d.set("general.alignment", Val::U32(1 << 31));
            d.tensors = vec![Tensor::new("x", &[1], I8)];
        }),
        // Row 12: offsets.
        spoil("offset + 1", Offset, &["tensor blk.0.attn_q.weight", "1600", "found 1601"], |d| {
            d.tensor("blk.0.attn_q.weight").offset = Some(1601);
        }),
        spoil("offset + 32, a gap", Offset, &["tensor blk.0.attn_q.weight", "1600", "found 1632"], |d| {
            d.tensor("blk.0.attn_q.weight").offset = Some(1632);
        }),
        spoil("a shared offset", Offset, &["tensor blk.0.attn_norm.weight", "576", "found 0"], |d| {
            d.tensor("blk.0.attn_norm.weight").offset = Some(0);
        }),
        spoil(
            "a first tensor that is not first",
            Offset,
            &["tensor token_embd.weight", "data at 0", "found 32"],
            |d| {
                d.tensor("token_embd.weight").offset = Some(32);
            },
        ),
        spoil("offset 2^63", Offset, &["tensor output.weight", "9223372036854775808"], |d| {
            d.tensor("output.weight").offset = Some(1 << 63);
        }),
        spoil("offset -32", Offset, &["tensor output.weight", "18446744073709551584"], |d| {
            d.tensor("output.weight").offset = Some(-32i64 as u64);
        }),
        // Row 13: sums.
        spoil("sizes that add up to 2^64", Size, &["tensor x.b", "add up", "9223372036854775807 bytes"], |d| {
            d.tensors = vec![
                Tensor::new("x.a", &[i64::MAX as u64], I8),
                Tensor { offset: Some(1 << 63), ..Tensor::new("x.b", &[i64::MAX as u64], I8) },
            ];
        }),
        spoil("a size that overflows when padded", Size, &["tensor x.a", "add up to less than 2^64"], |d| {
            // 2^61 - 1 blocks of 8 bytes, the last multiple of 8 below 2^64.
            d.tensors = vec![Tensor::new("x.a", &[(1 << 61) - 1], F64)];
        }),
        // Row 14: where the data end.
        bytes(
            "data short of one byte",
            DataEnd,
            &["tensor output_norm.weight", "12 bytes of data", "a file of"],
            |b| {
                b.truncate(valid().bytes().len() - (32 - 12) - 1);
            },
        ),
        bytes("no data", DataEnd, &["tensor token_embd.weight", "576 bytes of data", "a file of"], |b| {
            b.truncate(valid().data_offset() as usize);
        }),
        spoil("a tensor of 2^62 bytes", DataEnd, &["tensor x.spoiled", "4611686018427387904 bytes of data"], |d| {
            one_tensor(d, &[1 << 62], I8);
        }),
        // Split sets (llama-model-loader.cpp).
        set("the second shard is missing", 0, &["shard 2 of 3", "small-00002-of-00003.gguf", "no such file"], |s| {
            s.remove(1);
        }),
        set("a shard's number is wrong", 1, &["key split.no", "expected 1", "found 2"], |s| {
            s[1].1.set("split.no", Val::U16(2));
        }),
        set("a shard has no number", 2, &["key split.no", "expected 2", "no such number"], |s| {
            s[2].1.keys.retain(|(k, _)| k != b"split.no");
        }),
        set("a shard's number is a u32", 1, &["key split.no", "uint16", "found uint32"], |s| {
            s[1].1.set("split.no", Val::U32(1));
        }),
        set("a shard counts others", 2, &["key split.count", "expected 3", "found 4"], |s| {
            s[2].1.set("split.count", Val::U16(4));
        }),
        set("the count is a string", 0, &["key split.count", "uint16", "found string"], |s| {
            s[0].1.set("split.count", Val::str("3"));
        }),
        set("the count is not that of the name", 0, &["file name", "shard of 2 (split.count)"], |s| {
            s[0].1.set("split.count", Val::U16(2));
        }),
        set("a wrong number of tensors", 0, &["key split.tensors.count", "expected 6", "found 7"], |s| {
            s[0].1.set("split.tensors.count", Val::I32(7));
        }),
        set("a negative number of tensors", 0, &["key split.tensors.count", "int32", "a negative number"], |s| {
            s[0].1.set("split.tensors.count", Val::I32(-1));
        }),
        set("a tensor in two shards", 2, &["tensor output_norm.weight", "in one shard", "in two"], |s| {
            let tensor = s[2].1.tensors[1].clone();
            s[1].1.tensors[1] = tensor;
        }),
        set("a shard by another name", 0, &["file name", "-00001-of-00003.gguf", "found renamed.gguf"], |s| {
            s[0].0 = "renamed.gguf".to_owned();
        }),
        set("shard 4 of 3", 0, &["file name", "shard of 3", "small-00004-of-00003.gguf"], |s| {
            s[0].0 = shard_name("small", 4, 3);
        }),
        set("shards of both byte orders", 1, &["byte order", "little-endian", "big-endian"], |s| {
            s[1].1.big_endian = true;
        }),
        // The vocabulary (llama-vocab.cpp, llama-model.h).
        spoil("tokens that are numbers", Vocabulary, &["key tokenizer.ggml.tokens", "array of strings"], |d| {
            d.set("tokenizer.ggml.tokens", Val::Array(kind::I32, vec![Val::I32(0); 4]));
        }),
        spoil("tokens that are one string", Vocabulary, &["key tokenizer.ggml.tokens", "array of strings"], |d| {
            d.set("tokenizer.ggml.tokens", Val::str("<unk>"));
        }),
        spoil("three scores", Vocabulary, &["key tokenizer.ggml.scores", "each of 4 tokens", "found 3"], |d| {
            d.set("tokenizer.ggml.scores", Val::Array(kind::F32, vec![Val::F32(0.0); 3]));
        }),
        spoil("scores in f64", Vocabulary, &["key tokenizer.ggml.scores", "float32 or int32", "float64"], |d| {
            d.set("tokenizer.ggml.scores", Val::Array(kind::F64, vec![Val::F64(0.0); 4]));
        }),
        spoil("three token types", Vocabulary, &["key tokenizer.ggml.token_type", "4 tokens", "found 3"], |d| {
            d.set("tokenizer.ggml.token_type", Val::Array(kind::I32, vec![Val::I32(1); 3]));
        }),
        spoil("token types in u32", Vocabulary, &["key tokenizer.ggml.token_type", "int32", "array of uint32"], |d| {
            d.set("tokenizer.ggml.token_type", Val::Array(kind::U32, vec![Val::U32(1); 4]));
        }),
        spoil("token types in no array", Vocabulary, &["key tokenizer.ggml.token_type", "array", "a uint32"], |d| {
            d.set("tokenizer.ggml.token_type", Val::U32(1));
        }),
        spoil("five rows of embedding", Vocabulary, &["tensor token_embd.weight", "4 rows", "found 5"], |d| {
            d.tensor("token_embd.weight").ne[1] = 5;
        }),
        spoil("three rows of output", Vocabulary, &["tensor output.weight", "4 rows", "found 3"], |d| {
            d.tensor("output.weight").ne[1] = 3;
        }),
    ]
}

fn open(path: &Path) -> Result<Model, Error> {
    Model::open(path, &Limits::default())
}

#[test]
fn accepts_what_the_bad_files_are_made_from() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = open(&valid().write(folder.path(), "good.gguf")).expect("a valid file");
    assert_eq!(model.n_tensors(), 6);
    let first = write_split(folder.path(), &split(&valid(), 3));
    let second = folder.path().join(shard_name("small", 2, 3));
    for path in [first, second] {
        let set = open(&path).expect("a valid set");
        assert_eq!(set.files().len(), 3);
        assert!(set.tensors().map(|t| t.name()).eq(model.tensors().map(|t| t.name())));
        for id in 0..6 {
            let [mut a, mut b] = [0; 2].map(|_| vec![0; model.tensor(id).size() as usize]);
            model.read(id, 0, &mut a).expect("data");
            set.read(id, 0, &mut b).expect("data");
            assert_eq!(a, b);
        }
    }
}

#[test]
fn refuses_each_bad_file_by_its_check_with_evidence() {
    for case in cases() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, bytes) in &case.files {
            write(folder.path(), name, bytes);
        }
        let error = match open(&folder.path().join(&case.files[0].0)) {
            Ok(_) => panic!("{}: accepted", case.name),
            Err(error) => error,
        };
        let message = error.to_string();
        assert_eq!(error.check(), Some(case.check), "{}: {message}", case.name);
        let Error::Malformed { path, expected, found, .. } = &error else { panic!("{}: {error:?}", case.name) };
        assert!(path.ends_with(&case.culprit), "{}: {message}", case.name);
        assert!(!expected.is_empty() && !found.is_empty(), "{}: {message}", case.name);
        for says in [case.culprit.as_str(), "expected", "found"].iter().chain(case.says) {
            assert!(message.contains(says), "{}: no {says:?} in: {message}", case.name);
        }
        assert!(!message.ends_with('.') && !message.contains('\n'), "{}: {message}", case.name);
    }
}

#[test]
fn every_check_has_a_bad_file() {
    let covered: HashSet<Check> = cases().iter().map(|case| case.check).collect();
    for check in Check::ALL {
        assert!(covered.contains(&check), "no bad file for {check:?}");
    }
    let names: HashSet<&str> = cases().iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases().len(), "a name is used twice");
}

#[test]
fn every_check_has_its_row_in_the_document() {
    let document = include_str!("../../docs/GGUF_CHECKS.md");
    let rows: Vec<&str> =
        document.lines().filter(|l| l.starts_with("| ") && l.as_bytes()[2].is_ascii_digit()).collect();
    assert_eq!(rows.len(), Check::ALL.len());
    for (check, row) in Check::ALL.iter().zip(rows) {
        let start = format!("| {} | `{check:?}` |", check.number());
        assert!(row.starts_with(&start), "expected a row that begins {start}, found {row}");
    }
}

#[test]
fn refuses_a_file_cut_at_any_byte() {
    let draft = valid();
    let (bytes, header_len, data_offset) = (draft.bytes(), draft.header().len(), draft.data_offset() as usize);
    let data_end = bytes.len() - (32 - 12);
    let folder = tempfile::tempdir().expect("a temporary folder");
    for len in 0..=bytes.len() {
        let path = write(folder.path(), "cut.gguf", &bytes[..len]);
        let allowed: &[Check] = match len {
            _ if len < 8 => &[Check::Magic],
            _ if len < header_len => &[Check::Bounds, Check::Counts],
            _ if len < data_offset => &[Check::DataStart],
            _ if len < data_end => &[Check::DataEnd],
            _ => &[],
        };
        match open(&path) {
            Ok(_) => assert!(allowed.is_empty(), "accepted {len} bytes of {data_end}"),
            Err(e) => assert!(e.check().is_some_and(|c| allowed.contains(&c)), "{len} bytes: {e}"),
        }
    }
}

#[test]
fn survives_any_byte_being_another() {
    for big_endian in [false, true] {
        let mut draft = valid();
        draft.big_endian = big_endian;
        let (bytes, header_len) = (draft.bytes(), draft.header().len());
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = write(folder.path(), "damaged.gguf", &bytes);
        let mut file = fs::File::options().write(true).open(&path).expect("the file just written");
        let mut put = |at: usize, byte: u8| {
            file.seek(SeekFrom::Start(at as u64)).and_then(|_| file.write_all(&[byte])).expect("a write");
        };
        let mut accepted = 0;
        for (at, &right) in bytes[..header_len].iter().enumerate() {
            for wrong in [0, 1, 7, 8, 9, 0x20, 0x7f, 0x80, 0xff, right ^ 1, right ^ 0x80, right.wrapping_add(1)] {
                put(at, wrong);
                if let Ok(model) = open(&path) {
                    // What was accepted can be used: no size or offset panics, every byte of data
                    // is there.
                    accepted += 1;
                    for id in 0..model.n_tensors() {
                        let tensor = model.tensor(id);
                        assert!(tensor.row_size() * tensor.n_rows() == tensor.size());
                        model.read(id, 0, &mut vec![0; tensor.size() as usize]).expect("data inside the file");
                    }
                    let header = model.files()[0].header();
                    assert_eq!(header.encode().len() as u64, header.len());
                }
            }
            put(at, right);
        }
        assert!(accepted > 0, "bytes of strings may be anything");
    }
}

#[test]
fn refuses_claims_beyond_any_disk_at_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let start = Instant::now();
    for name in
        ["a key of 2^40 bytes", "an array of 2^60 bytes", "an array of 2^60 strings", "2^60 tensors", "2^60 keys"]
    {
        let case = cases().into_iter().find(|case| case.name == name).expect("a case of the list");
        let error = open(&write(folder.path(), FILE, &case.files[0].1)).expect_err(name);
        assert_eq!(error.check(), Some(case.check));
    }
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
}

/// With a terabyte of zeros after it, a claim lies inside the file: then the limits answer.
#[test]
fn refuses_claims_that_a_sparse_file_backs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let start = Instant::now();
    for name in ["a key of 2^40 bytes", "a token of 2^40 bytes", "one claim"] {
        let bytes = match cases().into_iter().find(|case| case.name == name) {
            Some(case) => case.files[0].1.clone(),
            None => {
                let mut draft = valid();
                claim_array(&mut draft, kind::F64, 1 << 37);
                draft.bytes()
            }
        };
        let path = write(folder.path(), "sparse.gguf", &bytes);
        let file = fs::File::options().write(true).open(&path).expect("the file just written");
        if file.set_len(1 << 41).is_err() {
            return; // not every file system has files this large
        }
        let error = open(&path).expect_err(name);
        assert!(matches!(error, Error::Limit { .. }), "{error}");
    }
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
}

/// Opens with a limit at its exact value and one below.
fn at_the_limit(path: &Path, found: u64, what: &str, set: fn(&mut Limits, u64)) {
    let mut limits = Limits::default();
    set(&mut limits, found);
    Model::open(path, &limits).unwrap_or_else(|e| panic!("{what} at its limit: {e}"));
    set(&mut limits, found - 1);
    match Model::open(path, &limits) {
        Err(Error::Limit { path: about, what: which, limit, found: is }) => {
            assert_eq!((which, limit, is), (what, found - 1, found));
            assert_eq!(about, path);
        }
        other => panic!("{what} beyond its limit: {other:?}"),
    }
}

#[test]
fn each_limit_is_the_largest_value_that_passes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut draft = valid();
    draft.set("x.long", Val::Str(vec![b'x'; 100]));
    draft.set("x.many", Val::Array(kind::U8, vec![Val::U8(0); 50]));
    let path = draft.write(folder.path(), "limits.gguf");
    at_the_limit(&path, draft.header().len() as u64, "the header's length in bytes", |l, n| l.max_header_bytes = n);
    at_the_limit(&path, 100, "the length of a string in bytes", |l, n| l.max_string_bytes = n);
    at_the_limit(&path, 50, "the length of an array", |l, n| l.max_array_len = n);
    at_the_limit(&path, 6, "the number of tensors", |l, n| l.max_tensors = n);
    at_the_limit(&path, 12, "the number of keys", |l, n| l.max_keys = n);
    let first = write_split(folder.path(), &split(&draft, 3));
    at_the_limit(&first, 3, "the number of shards", |l, n| l.max_shards = n);
}

#[test]
fn shows_no_control_characters_and_no_endless_names() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut draft = valid();
    let key = [b"\x1b[31m".as_slice(), &[b'k'; 1000]].concat();
    draft.keys.push((key, Val::Raw(77, vec![])));
    let message = open(&draft.write(folder.path(), "escape.gguf")).expect_err("value type 77").to_string();
    assert!(message.contains(r"\u{1b}[31mkkk") && !message.contains('\x1b'), "{message}");
    assert!(message.len() < 1000, "{message}");
}

#[test]
fn shows_big_endian_files_and_refuses_to_compute_with_them() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut draft = valid();
    draft.big_endian = true;
    let model = open(&draft.write(folder.path(), "big.gguf")).expect("a valid file");
    let error = model.require_little_endian().expect_err("a big-endian file");
    assert!(matches!(error, Error::BigEndian { .. }) && error.to_string().contains("big.gguf"), "{error}");
}

#[test]
fn accepts_what_is_odd_but_loads() {
    type Change = fn(&mut Draft);
    let odd: [(&str, Change); 9] = [
        ("an empty tensor name", |d| d.tensors[1].name.clear()),
        ("a tensor name of 63 bytes", |d| d.tensors[1].name = vec![b'n'; 63]),
        ("no dimensions", |d| d.tensors[5].ne.clear()),
        ("a dimension of 0", |d| d.tensors[5].ne = vec![0, 1 << 62, 1 << 62]),
        ("no tensors", |d| d.tensors.clear()),
        ("no keys", |d| d.keys.clear()),
        ("more scores than tokens", |d| {
            d.set("tokenizer.ggml.scores", Val::Array(kind::I32, vec![Val::I32(0); 9]));
        }),
        ("what gguf-split leaves when it merges", |d| {
            d.set("split.no", Val::U16(0));
            d.set("split.count", Val::U16(0));
            d.set("split.tensors.count", Val::I32(6));
        }),
        ("alignment 1", |d| d.align(1)),
    ];
    for (name, spoil) in odd {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut draft = valid();
        spoil(&mut draft);
        let mut bytes = draft.bytes();
        bytes.extend(b"trailing bytes");
        open(&write(folder.path(), "odd.gguf", &bytes)).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn a_file_that_is_cut_while_open_is_an_error() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = valid().write(folder.path(), "cut.gguf");
    let file = File::open(&path, &Limits::default()).expect("a valid file");
    fs::File::options().write(true).open(&path).and_then(|f| f.set_len(100)).expect("a shorter file");
    let error = file.read(&file.header().tensors()[0], 0, &mut [0; 8]).expect_err("no data left");
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("cut.gguf"), "{error}");
}

#[test]
fn a_range_beyond_its_tensor_panics_even_if_it_wraps() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = File::open(&valid().write(folder.path(), "a.gguf"), &Limits::default()).expect("a valid file");
    let tensor = &file.header().tensors()[0];
    for offset in [tensor.size(), tensor.size() - 1, u64::MAX] {
        let read = std::panic::AssertUnwindSafe(|| file.read(tensor, offset, &mut [0; 2]));
        assert!(std::panic::catch_unwind(read).is_err(), "read at {offset}");
    }
    file.read(tensor, tensor.size(), &mut []).expect("nothing, at the end");
}

#[test]
fn refuses_what_is_no_regular_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for path in [folder.path().to_owned(), folder.path().join("absent.gguf")] {
        let error = open(&path).expect_err("no file");
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }
}
