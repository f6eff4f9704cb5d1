//! gguf-rs 0.1.8 reads the same files, and what both say is compared.
//!
//! Where it is known to be wrong, by ggml's own numbers, a list says so and a test asserts that it
//! still is: an entry that fails is good news, and is to be removed with the exception it stands
//! for.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use chatvec::gguf::{File, Limits, Value};
use gguf_rs::{ByteOrder, GGUFContainer, GGUFModel};

use crate::support::{Draft, TYPES, Tensor, Val, kind, valid};
use crate::trio::{Paths, bundled};

/// gguf-rs' view of a file; `Err` for a refusal, and `None` for a panic.
fn theirs(draft: &Draft) -> Option<Result<GGUFModel, String>> {
    theirs_of(&draft.bytes())
}

fn theirs_of(bytes: &[u8]) -> Option<Result<GGUFModel, String>> {
    catch_unwind(AssertUnwindSafe(|| {
        // It expects the magic to be read already, as its own function for paths does.
        let mut container = GGUFContainer::new(ByteOrder::LE, Box::new(Cursor::new(bytes[4..].to_vec())), u64::MAX);
        container.decode().map_err(|e| e.to_string())
    }))
    .ok()
}

fn accepted(draft: &Draft) -> GGUFModel {
    theirs(draft).expect("no panic").expect("a file gguf-rs reads")
}

fn ours(draft: &Draft) -> Result<File, chatvec::gguf::Error> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    File::open(&draft.write(folder.path(), "a.gguf"), &Limits::default())
}

/// A file with two rows of four blocks of this type.
fn of_type(ty: u32, block_len: u64) -> Draft {
    Draft { tensors: vec![Tensor::new("x", &[block_len * 4, 2], ty)], ..Draft::default() }
}

/// Types whose size in bytes gguf-rs gets wrong, and the size it gives for [`of_type`].
const WRONG_SIZES: [(&str, u64); 9] = [
    ("q8_1", 320),
    ("iq4_nl", 18),
    ("i8", 0),
    ("i16", 0),
    ("i32", 0),
    ("i64", 0),
    ("f64", 0),
    ("bf16", 0),
    ("mxfp4", 273),
];
/// Types it does not know, though the panic of the first is not what its author meant.
const PANICS: [&str; 1] = ["nvfp4"];
const REFUSED: [&str; 2] = ["q1_0", "q2_0"];

fn same_value(ours: &Value, theirs: &serde_json::Value) -> bool {
    match ours {
        Value::Bool(v) => theirs.as_bool() == Some(*v != 0),
        Value::F32(v) => theirs.as_f64().is_some_and(|t| t as f32 == *v),
        Value::F64(v) => theirs.as_f64() == Some(*v),
        Value::String(s) => theirs.as_str().is_some_and(|t| s == t),
        Value::Array(array) => theirs.as_array().is_some_and(|values| {
            values.len() == array.len() && array.iter().zip(values).all(|(o, t)| same_value(&o, t))
        }),
        integer => match integer.as_u64() {
            Some(v) => theirs.as_u64() == Some(v),
            None => integer.as_f64().is_some_and(|v| theirs.as_i64() == Some(v as i64)),
        },
    }
}

fn assert_same(draft: &Draft) {
    assert_same_views(&ours(draft).expect("a valid file"), &accepted(draft));
}

fn assert_same_views(file: &File, model: &GGUFModel) {
    let header = file.header();
    assert_eq!(model.get_version(), format!("v{}", header.version()));
    assert_eq!(model.alignment(), header.alignment());
    assert_eq!(model.data_offset(), header.data_offset());
    assert_eq!(model.num_kv(), header.metadata().len() as u64);
    for (key, value) in header.metadata().iter() {
        assert!(same_value(value, &model.metadata()[key]), "{key}: {}", value.summary());
    }
    assert_eq!(model.tensors().len(), header.tensors().len());
    for (tensor, info) in model.tensors().iter().zip(header.tensors()) {
        assert_eq!((tensor.name.as_str(), &tensor.shape[..]), (info.name(), info.ne()));
        assert_eq!((tensor.kind, tensor.offset), (info.ty().id(), info.offset()));
        if !WRONG_SIZES.iter().any(|(name, _)| *name == info.ty().name()) {
            assert_eq!(tensor.size, info.size(), "{}", info.ty());
        }
    }
}

#[test]
fn agrees_on_small_models() {
    for (version, alignment) in [(3, 32), (2, 32), (3, 8), (3, 16), (3, 64), (2, 128)] {
        let mut draft = Draft { version, ..valid() };
        draft.align(alignment);
        assert_same(&draft);
    }
    assert_same(&Draft::default());
}

#[test]
fn agrees_on_the_bundled_models_and_on_what_is_written() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let merged = folder.path().join("merged.gguf");
    Paths::bundled().merge(&merged, "Q4_K", 1.0);
    for path in [bundled("base"), bundled("chat"), bundled("cp-de"), merged] {
        let file = File::open(&path, &Limits::default()).expect("a valid file");
        let model = theirs_of(&std::fs::read(&path).expect("the same file"));
        assert_same_views(&file, &model.expect("no panic").expect("a file gguf-rs reads"));
    }
}

#[test]
fn agrees_on_values_of_every_type() {
    let mut draft = Draft::default();
    let values = [
        Val::U8(200),
        Val::I8(-100),
        Val::U16(60_000),
        Val::I16(-30_000),
        Val::U32(4_000_000_000),
        Val::I32(-2_000_000_000),
        Val::F32(0.1),
        Val::Bool(2),
        Val::str("Grüße, 世界"),
        Val::U64(1 << 62),
        Val::I64(-(1 << 50)),
        Val::F64(0.1),
    ];
    for val in values {
        draft.set(&format!("x.{}", val.kind()), val.clone());
        draft.set(&format!("x.array.{}", val.kind()), Val::Array(val.kind(), vec![val.clone(), val.clone()]));
        draft.set(&format!("x.empty.{}", val.kind()), Val::Array(val.kind(), vec![]));
    }
    assert_same(&draft);
}

#[test]
fn agrees_on_types_but_those_of_the_lists() {
    let draft = Draft {
        tensors: TYPES
            .iter()
            .filter(|t| !PANICS.contains(&t.1) && !REFUSED.contains(&t.1))
            .map(|&(ty, name, block_len, _)| Tensor::new(name, &[block_len * 4, 2], ty))
            .collect(),
        ..Draft::default()
    };
    assert_eq!(draft.tensors.len(), 32);
    assert_same(&draft);
}

#[test]
fn its_sizes_are_still_wrong() {
    for (name, wrong) in WRONG_SIZES {
        let &(ty, _, block_len, block_size) = TYPES.iter().find(|t| t.1 == name).expect("a type of the table");
        let draft = of_type(ty, block_len);
        let size = accepted(&draft).tensors()[0].size;
        assert_eq!(ours(&draft).expect("a valid file").header().tensors()[0].size(), block_size * 8, "{name}");
        assert_eq!(size, wrong, "{name}");
    }
}

#[test]
fn it_still_does_not_know_the_newest_types() {
    for &(ty, name, block_len, _) in TYPES.iter().filter(|t| PANICS.contains(&t.1) || REFUSED.contains(&t.1)) {
        let draft = of_type(ty, block_len);
        ours(&draft).expect("a valid file");
        match theirs(&draft) {
            None => assert!(PANICS.contains(&name), "{name} panics"),
            Some(Err(_)) => assert!(REFUSED.contains(&name), "{name} is refused"),
            Some(Ok(_)) => panic!("{name} is read now"),
        }
    }
}

/// What else it reads otherwise: the file, whether the crate accepts it, and gguf-rs' answer.
#[test]
fn it_still_reads_otherwise() {
    type Case = (&'static str, fn(&mut Draft), bool, fn(Option<Result<GGUFModel, String>>) -> bool);
    fn read(model: Option<Result<GGUFModel, String>>) -> Option<GGUFModel> {
        model?.ok()
    }
    let cases: [Case; 16] = [
        (
            "big-endian files are no version",
            |d| d.big_endian = true,
            true,
            |m| m.is_some_and(|r| r.is_err_and(|e| e.contains("invalid version 50331648"))),
        ),
        (
            "version 1 is read",
            |d| d.version = 1,
            false,
            |m| {
                // With dimensions and offsets of 64 bits, which version 1 had not: the rest of the
                // header is garbage.
                m.is_some_and(|r| r.is_err())
            },
        ),
        (
            "alignment 0 is 32",
            |d| d.set("general.alignment", Val::U32(0)),
            false,
            |m| read(m).is_some_and(|m| m.alignment() == 32),
        ),
        ("alignment 48 is taken", |d| d.align(48), false, |m| read(m).is_some_and(|m| m.alignment() == 48)),
        ("alignment 4 is 32", |d| d.align(4), true, |m| read(m).is_some_and(|m| m.alignment() == 32)),
        (
            "an alignment in u64 is taken",
            |d| d.set("general.alignment", Val::U64(64)),
            false,
            |m| read(m).is_some_and(|m| m.alignment() == 64),
        ),
        (
            "NaN is null",
            |d| d.set("x", Val::F32(f32::NAN)),
            true,
            |m| read(m).is_some_and(|m| m.metadata()["x"].is_null()),
        ),
        (
            "bytes of a string are replaced",
            |d| d.set("x", Val::Str(b"\xff".to_vec())),
            true,
            |m| read(m).is_some_and(|m| m.metadata()["x"].as_str() == Some("\u{fffd}")),
        ),
        ("empty keys are taken", |d| d.set("", Val::U8(1)), false, |m| read(m).is_some()),
        (
            "keys may repeat",
            |d| d.keys.push((b"general.name".to_vec(), Val::str("b"))),
            false,
            |m| read(m).is_some_and(|m| m.metadata()["general.name"].as_str() == Some("b")),
        ),
        ("tensor names may repeat", |d| d.tensors[1].name = d.tensors[0].name.clone(), false, |m| read(m).is_some()),
        ("tensor names have no end", |d| d.tensors[1].name = vec![b'n'; 64], false, |m| read(m).is_some()),
        ("tensors may overlap", |d| d.tensors[1].offset = Some(0), false, |m| read(m).is_some()),
        ("data may be outside", |d| d.tensors[5].ne = vec![1 << 40], false, |m| read(m).is_some()),
        ("rows may end in a block", |d| d.tensors[0].ne = vec![250, 4], false, |m| read(m).is_some()),
        (
            "an array of arrays is taken if empty",
            |d| d.set("x", Val::Array(kind::ARRAY, vec![])),
            false,
            |m| read(m).is_some(),
        ),
    ];
    for (name, change, accepted, answer) in cases {
        let mut draft = valid();
        change(&mut draft);
        assert_eq!(ours(&draft).is_ok(), accepted, "{name}: the crate's answer");
        assert!(answer(theirs(&draft)), "{name}: no longer");
    }
}
