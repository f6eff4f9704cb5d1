//! The type of each tensor for each file type, against what llama-quantize says of the same headers
//! (fixtures/mixtures/types.json, made by tests/peers/type_mixtures.py).

use std::collections::HashMap;

use chatvec::ggml::GgmlType;
use chatvec::gguf::{Array, Metadata, Value};
use chatvec::plan::mixture::{self, Options, Override, Tensor};
use chatvec::plan::{Error, FileType};
use serde_json::Value as Json;

/// A recorded model.
struct Recorded<'a> {
    name: &'a str,
    metadata: Metadata,
    /// Name, shape, type, in the order of the file.
    tensors: Vec<(String, Vec<u64>, GgmlType)>,
    /// Types and the arguments that gave them.
    types: Vec<(&'a str, Vec<&'a str>)>,
}

fn text(json: &Json) -> &str {
    json.as_str().expect("a string")
}

fn list(json: &Json) -> &[Json] {
    json.as_array().expect("a list")
}

/// What a header holds of a recorded value; the types of integers do not matter.
fn value(json: &Json) -> Value {
    match json {
        Json::Bool(b) => Value::Bool((*b).into()),
        Json::Array(numbers) => {
            let numbers: Vec<i32> = numbers.iter().map(|n| n.as_i64().unwrap() as i32).collect();
            Value::Array(Array::from_i32s(&numbers))
        }
        Json::Number(n) => match n.as_u64() {
            Some(n) => Value::U32(n as u32),
            None => Value::F32(n.as_f64().unwrap() as f32),
        },
        other => panic!("{other}"),
    }
}

fn recorded(json: &Json) -> Recorded<'_> {
    let architecture = text(&json["architecture"]);
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", architecture);
    for (key, json) in json["keys"].as_object().unwrap() {
        metadata.set(&format!("{architecture}.{key}"), value(json));
    }
    let mut tensors = Vec::new();
    for tensor in list(&json["tensors"]) {
        let tensor = list(tensor);
        let ne: Vec<u64> = list(&tensor[1]).iter().map(|n| n.as_u64().unwrap()).collect();
        let ty: GgmlType = text(&tensor[2]).parse().unwrap();
        let layers = match tensor.get(3..5) {
            Some(layers) => layers[0].as_u64().unwrap()..layers[1].as_u64().unwrap(),
            None => 0..1,
        };
        for layer in layers {
            tensors.push((text(&tensor[0]).replace("{}", &layer.to_string()), ne.clone(), ty));
        }
    }
    let types = json["types"].as_object().unwrap();
    let types = types.iter().map(|(types, cases)| (types.as_str(), list(cases).iter().map(text).collect())).collect();
    Recorded { name: text(&json["name"]), metadata, tensors, types }
}

/// Arguments of llama-quantize: file type, options, whether there is an importance matrix.
fn arguments(line: &str) -> (&'static FileType, Options, bool) {
    let mut options = Options::default();
    let mut has_importance = false;
    let mut words = line.split(' ');
    loop {
        let word = words.next().expect("the file type comes last");
        let mut next = || words.next().expect("a value behind the option");
        match word {
            "--pure" => options.pure = true,
            "--imatrix" => has_importance = true,
            "--leave-output-tensor" => options.leave_output = true,
            "--output-tensor-type" => options.output = Some(next().parse().unwrap()),
            "--token-embedding-type" => options.embeddings = Some(next().parse().unwrap()),
            "--tensor-type" => options.overrides.push(Override::parse(next()).unwrap()),
            name => return (FileType::from_name(name).expect(name), options, has_importance),
        }
    }
}

/// By part and then by layer, the order in which types are recorded.
fn layer_last(name: &str) -> (&str, &str, u64) {
    let layer = name.split_once("blk.").and_then(|(before, rest)| {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        (!before.contains(|c: char| c.is_ascii_digit())).then_some(())?;
        Some((&rest[digits..], &name[..name.len() - rest.len()], rest[..digits].parse().ok()?))
    });
    layer.unwrap_or(("", name, 0))
}

/// The recorded form of types: a letter, and a count if it is more than one.
fn expand(runs: &str, letters: &HashMap<char, GgmlType>) -> Vec<GgmlType> {
    let mut types = Vec::new();
    let mut rest = runs;
    while let Some(letter) = rest.chars().next() {
        rest = &rest[1..];
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let count = if end == 0 { 1 } else { rest[..end].parse().unwrap() };
        types.extend(std::iter::repeat_n(letters[&letter], count));
        rest = &rest[end..];
    }
    types
}

#[test]
fn every_tensor_has_the_type_that_llama_quantize_gives_it() {
    let goldens: Json = serde_json::from_str(include_str!("../../fixtures/mixtures/types.json")).unwrap();
    let letters = goldens["letters"].as_object().unwrap().iter();
    let letters: HashMap<char, GgmlType> =
        letters.map(|(letter, ty)| (letter.chars().next().unwrap(), text(ty).parse().unwrap())).collect();
    let (mut n_cases, mut n_types) = (0, 0);
    for json in list(&goldens["models"]) {
        let Recorded { name: model, metadata, tensors, types } = recorded(json);
        let views: Vec<Tensor<'_>> = tensors.iter().map(|(name, ne, ty)| Tensor { name, ne, ty: *ty }).collect();
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|&i| layer_last(&tensors[i].0));
        for (expected, case) in types.iter().flat_map(|(types, cases)| cases.iter().map(move |case| (types, case))) {
            n_cases += 1;
            let (file_type, options, has_importance) = arguments(case);
            let found = mixture::choose(&metadata, &views, file_type, &options, has_importance);
            if let Some(reason) = expected.strip_prefix("error: ") {
                assert!(reason.starts_with("no tensor type fallback"), "{model}: {case}: {reason}");
                assert!(matches!(found, Err(Error::Rows { .. })), "{model}: {case}: {found:?}");
                continue;
            }
            let found = found.unwrap_or_else(|e| panic!("{model}: {case}: {e}"));
            let expected = expand(expected, &letters);
            assert_eq!(found.len(), expected.len(), "{model}: {case}");
            for (&i, expected) in order.iter().zip(&expected) {
                n_types += 1;
                assert_eq!(found[i].ty, *expected, "{model}: {case}: {}", tensors[i].0);
            }
        }
    }
    assert!(n_cases > 3500 && n_types > 500_000, "{n_cases} cases and {n_types} types are fewer than were recorded");
}

/// Every file type of llama-quantize is known by name, and by the number that general.file_type
/// holds.
#[test]
fn file_types_are_known_by_name_and_number() {
    let goldens: Json = serde_json::from_str(include_str!("../../fixtures/mixtures/types.json")).unwrap();
    let mut names: Vec<&str> = Vec::new();
    for (_, cases) in goldens["models"][0]["types"].as_object().unwrap() {
        names.extend(list(cases).iter().map(|case| text(case).rsplit(' ').next().unwrap()));
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 35);
    for name in names {
        let file_type = FileType::from_name(name).expect(name);
        assert_eq!(FileType::from_id(file_type.id.into()), Some(file_type));
    }
}

#[test]
fn what_llama_quantize_would_stumble_over_is_an_error_with_the_tensor() {
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", "llama");
    let q4_k_m = FileType::from_name("Q4_K_M").unwrap();
    let tensor = |name, ne| Tensor { name, ne, ty: GgmlType::F16 };
    let choose = |metadata: &Metadata, tensor: Tensor<'_>, options: &Options| {
        mixture::choose(metadata, &[tensor], q4_k_m, options, false).map(|choices| choices[0].ty)
    };
    let down = tensor("blk.7.ffn_down.weight", &[256, 4]);

    let e = choose(&metadata, down, &Options::default()).unwrap_err();
    assert!(matches!(&e, Error::NoNumber { key } if key == "llama.block_count"), "{e}");
    let pure = Options { pure: true, ..Options::default() };
    assert_eq!(choose(&metadata, down, &pure).unwrap(), GgmlType::Q4_K, "no mixture needs no layers");

    metadata.set("llama.block_count", Value::U32(7));
    metadata.set("llama.expert_count", Value::U32(8));
    let e = choose(&metadata, down, &Options::default()).unwrap_err();
    assert!(matches!(&e, Error::NoLayer { tensor, n_layers: 7 } if tensor == down.name), "{e}");
    for hostile in [u32::MAX, 0] {
        metadata.set("llama.expert_count", Value::U32(hostile));
        metadata.set("llama.attention.head_count", Value::U32(hostile));
        metadata.set("llama.attention.head_count_kv", Value::U32(0));
        metadata.set("llama.block_count", Value::U32(hostile));
        let _ = choose(&metadata, down, &Options::default());
    }

    let embeddings = Options { embeddings: Some(GgmlType::Q8_0), ..Options::default() };
    metadata.set("llama.block_count", Value::U32(7));
    let e = choose(&metadata, tensor("token_embd.weight", &[100, 4]), &embeddings).unwrap_err();
    assert!(matches!(&e, Error::Rows { tensor, row_len: 100, .. } if tensor == "token_embd.weight"), "{e}");
}
