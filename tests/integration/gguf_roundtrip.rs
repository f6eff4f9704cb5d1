//! A header that was read is encoded to the bytes it was read from.

use chatvec::gguf::{ByteOrder, File, Limits, Value, ValueType};
use proptest::prelude::*;

use crate::support::{Draft, TYPES, Tensor, Val, kind, valid, write};

/// Writes the draft, reads it, and compares the header byte for byte, and the layout and data with
/// the draft's.
fn assert_round_trip(draft: &Draft) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = draft.write(folder.path(), "a.gguf");
    let file = File::open(&path, &Limits::default()).unwrap_or_else(|e| panic!("{e}\n{draft:?}"));
    let header = file.header();
    let expected = draft.header();
    assert!(header.encode() == expected, "the header differs: {draft:?}");
    assert_eq!(header.len(), expected.len() as u64);
    assert_eq!(header.version(), draft.version);
    assert_eq!(header.byte_order() == ByteOrder::Big, draft.big_endian);
    assert_eq!(header.metadata().len(), draft.keys.len());
    assert_eq!(header.data_offset(), draft.data_offset());
    assert_eq!(header.file_len(), draft.bytes().len() as u64);
    for (key, _) in header.metadata().iter() {
        // The position of a value is right after its key and type.
        let at = header.value_offset(key).expect("a key of the file") as usize;
        assert_eq!(&expected[at - 4 - key.len()..at - 4], key.as_bytes());
    }
    assert_eq!(header.tensors().len(), draft.tensors.len());
    for (info, tensor) in header.tensors().iter().zip(&draft.tensors) {
        assert_eq!((info.ne(), info.ty().id(), info.size()), (&tensor.ne[..], tensor.ty, tensor.size()));
        let mut data = vec![0; info.size() as usize];
        file.read(info, 0, &mut data).expect("data inside the file");
        assert!(data == tensor.data(), "the data of {} differ", info.name());
    }
}

/// In both versions and byte orders.
fn assert_all_round_trips(draft: &Draft) {
    for (version, big_endian) in [(3, false), (2, false), (3, true), (2, true)] {
        assert_round_trip(&Draft { version, big_endian, ..draft.clone() });
    }
}

/// One value of each scalar type, at the ends of its range or with bits a conversion would lose.
fn scalars() -> Vec<Val> {
    vec![
        Val::U8(u8::MAX),
        Val::I8(i8::MIN),
        Val::U16(0x1234),
        Val::I16(i16::MIN),
        Val::U32(0x1234_5678),
        Val::I32(i32::MIN),
        Val::F32(-0.0),
        Val::F32(f32::from_bits(0x7fc0_1234)),
        Val::F32(f32::from_bits(0xff80_0001)), // a signalling NaN
        Val::F32(f32::NEG_INFINITY),
        Val::Bool(0),
        Val::Bool(1),
        Val::Bool(2),
        Val::Bool(0xff),
        Val::Str(Vec::new()),
        Val::str("Grüße, 世界"),
        Val::Str(b"\xff\xfe not UTF-8 \xc3(".to_vec()),
        Val::Str(b"a NUL\0 in the middle and at the end\0".to_vec()),
        Val::U64(u64::MAX - 1),
        Val::I64(i64::MIN),
        Val::F64(f64::from_bits(0x7ff8_0000_dead_beef)),
        Val::F64(f64::from_bits(0x7ff0_0000_0000_0001)),
        Val::F64(5e-324),
    ]
}

#[test]
fn keeps_a_small_model() {
    assert_all_round_trips(&valid());
}

#[test]
fn keeps_a_file_with_nothing_in_it() {
    assert_all_round_trips(&Draft::default());
}

#[test]
fn keeps_every_scalar_bit_for_bit() {
    let mut draft = Draft::default();
    for (i, val) in scalars().into_iter().enumerate() {
        draft.set(&format!("x.{i}"), val);
    }
    assert_all_round_trips(&draft);
}

#[test]
fn keeps_arrays_of_every_type_also_empty_ones() {
    let mut draft = Draft::default();
    for element in 0..13 {
        let values: Vec<Val> = scalars().into_iter().filter(|v| v.kind() == element).collect();
        if element != kind::ARRAY {
            draft.set(&format!("x.empty.{element}"), Val::Array(element, Vec::new()));
            draft.set(&format!("x.one.{element}"), Val::Array(element, values[..1].to_vec()));
            draft.set(&format!("x.many.{element}"), Val::Array(element, vec![values; 5].concat()));
        }
    }
    assert_eq!(draft.keys.len(), 36);
    assert_all_round_trips(&draft);
}

#[test]
fn gives_values_with_their_types() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for big_endian in [false, true] {
        let mut draft = Draft { big_endian, ..Draft::default() };
        draft.set("x.scalar", Val::I16(-300));
        draft.set("x.nan", Val::F32(f32::from_bits(0x7fc0_1234)));
        draft.set("x.array", Val::Array(kind::U64, vec![Val::U64(1), Val::U64(1 << 40)]));
        draft.set("x.empty", Val::Array(kind::I16, vec![]));
        draft.set("x.strings", Val::strs([&b"a"[..], b"", b"\xff\0"]));
        draft.set("x.bools", Val::Array(kind::BOOL, vec![Val::Bool(0), Val::Bool(7)]));
        let file = File::open(&draft.write(folder.path(), "a.gguf"), &Limits::default()).expect("a valid file");
        let metadata = file.header().metadata();
        assert_eq!(metadata.get("x.scalar"), Some(&Value::I16(-300)));
        assert!(matches!(metadata.get("x.nan"), Some(Value::F32(v)) if v.to_bits() == 0x7fc0_1234));
        let array = |key: &str| metadata.get(key).and_then(|v| v.as_array()).expect("an array");
        assert!(array("x.array").iter().eq([Value::U64(1), Value::U64(1 << 40)]));
        assert_eq!((array("x.empty").element_type(), array("x.empty").len()), (ValueType::I16, 0));
        assert!(array("x.bools").iter().map(|v| v.as_bool()).eq([Some(false), Some(true)]));
        let strings = metadata.get_strings("x.strings").expect("strings");
        assert!(strings.iter().map(|s| s.to_vec()).eq([b"a".to_vec(), vec![], b"\xff\0".to_vec()]));
    }
}

#[test]
fn keeps_any_alignment() {
    for alignment in [1, 2, 8, 16, 32, 64, 128, 4096] {
        let mut draft = valid();
        draft.align(alignment);
        assert_all_round_trips(&draft);
    }
}

#[test]
fn keeps_tensors_of_every_type() {
    let mut draft = Draft::default();
    for (id, name, block_len, block_size) in TYPES {
        let ty = chatvec::ggml::GgmlType::from_id(id).expect("a type of ggml");
        assert_eq!((ty.name(), ty.block_len() as u64, ty.block_size() as u64), (name, block_len, block_size));
        draft.tensors.push(Tensor::new(name, &[block_len * 3, 2, 1, 3], id));
    }
    assert_eq!(chatvec::ggml::GgmlType::all().count(), TYPES.len());
    assert_all_round_trips(&draft);
}

#[test]
fn keeps_shapes_as_the_file_lists_them() {
    let shapes: [&[u64]; 12] = [
        &[],
        &[1],
        &[7],
        &[7, 1],
        &[7, 1, 1, 1],
        &[1, 1, 1, 7],
        &[0],
        &[0, 0],
        &[7, 0],
        &[0, 7, 7],
        &[0, 1 << 40, 1 << 40],
        &[i64::MAX as u64, 0],
    ];
    let mut draft = Draft::default();
    for (i, ne) in shapes.iter().enumerate() {
        draft.tensors.push(Tensor::new(&format!("x.{i}"), ne, 24));
    }
    assert_all_round_trips(&draft);

    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = File::open(&draft.write(folder.path(), "a.gguf"), &Limits::default()).expect("a valid file");
    let tensors = file.header().tensors();
    // As ggml_n_dims counts them.
    assert!(tensors.iter().map(|t| t.n_dims()).eq([1, 1, 1, 1, 1, 4, 1, 1, 1, 3, 3, 1]));
    assert!(tensors.iter().map(|t| t.n_weights()).eq([1, 1, 7, 7, 7, 7, 0, 0, 0, 0, 0, 0]));
    assert!(tensors[2].same_shape(&tensors[3]) && !tensors[4].same_shape(&tensors[5]));
}

#[test]
fn keeps_the_header_before_trailing_bytes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let draft = valid();
    let bytes = [draft.bytes(), vec![0xaa; 100]].concat();
    let file = File::open(&write(folder.path(), "a.gguf", &bytes), &Limits::default()).expect("a valid file");
    assert!(file.header().encode() == draft.header());
}

fn scalar(element: u32) -> BoxedStrategy<Val> {
    match element {
        kind::U8 => any::<u8>().prop_map(Val::U8).boxed(),
        kind::I8 => any::<i8>().prop_map(Val::I8).boxed(),
        kind::U16 => any::<u16>().prop_map(Val::U16).boxed(),
        kind::I16 => any::<i16>().prop_map(Val::I16).boxed(),
        kind::U32 => any::<u32>().prop_map(Val::U32).boxed(),
        kind::I32 => any::<i32>().prop_map(Val::I32).boxed(),
        kind::F32 => any::<u32>().prop_map(|bits| Val::F32(f32::from_bits(bits))).boxed(),
        kind::BOOL => any::<u8>().prop_map(Val::Bool).boxed(),
        kind::U64 => any::<u64>().prop_map(Val::U64).boxed(),
        kind::I64 => any::<i64>().prop_map(Val::I64).boxed(),
        kind::F64 => any::<u64>().prop_map(|bits| Val::F64(f64::from_bits(bits))).boxed(),
        _ => prop::collection::vec(any::<u8>(), 0..40).prop_map(Val::Str).boxed(),
    }
}

fn value() -> impl Strategy<Value = Val> {
    let element = (0u32..12).prop_map(|i| if i < kind::ARRAY { i } else { i + 1 });
    (element, any::<bool>()).prop_flat_map(|(element, array)| match array {
        false => scalar(element),
        true => prop::collection::vec(scalar(element), 0..20).prop_map(move |v| Val::Array(element, v)).boxed(),
    })
}

fn tensor() -> impl Strategy<Value = Tensor> {
    (0..TYPES.len(), prop::collection::vec(0u64..4, 0..=4)).prop_map(|(i, mut ne)| {
        let (ty, _, block_len, _) = TYPES[i];
        match ne.first_mut() {
            Some(n) => *n *= block_len,
            None => ne.push(block_len),
        }
        Tensor::new("", &ne, ty)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn keeps_random_headers(
        keys in prop::collection::btree_map("\\PC{1,20}", value(), 0..20),
        tensors in prop::collection::vec(tensor(), 0..10),
        version in 2u32..=3,
        big_endian in any::<bool>(),
        alignment in prop::option::of((0u32..8).prop_map(|shift| 1 << shift)),
    ) {
        let mut draft = Draft { version, big_endian, ..Draft::default() };
        draft.keys = keys.into_iter().map(|(key, val)| (key.into_bytes(), val)).collect();
        draft.tensors = tensors;
        for (i, tensor) in draft.tensors.iter_mut().enumerate() {
            tensor.name = format!("x.{i}").into_bytes();
        }
        if let Some(alignment) = alignment {
            draft.align(alignment);
        }
        assert_round_trip(&draft);
    }
}
