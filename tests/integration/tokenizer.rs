//! Text to tokens and back, against what llama.cpp said of the same vocabularies
//! (tests/peers/tokenizer_goldens.py).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use chatvec::chat::{Error, TokenKind, Tokenizer};
use chatvec::gguf::{Array, Limits, Metadata, Model, StringArray, Value};
use proptest::prelude::*;
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// What llama.cpp said of one vocabulary.
#[derive(Deserialize)]
struct Golden {
    file: PathBuf,
    n_tokens: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    adds_bos: bool,
    adds_eos: bool,
    ends: Vec<u32>,
    /// SHA-256 of a letter a token.
    kinds: String,
    /// SHA-256 of all pieces, without special tokens' text and with it.
    pieces: String,
    /// Text, `add_special`, `parse_special`, ids.
    encode: Vec<(String, bool, bool, Vec<u32>)>,
    /// Ids, `special`, bytes in hex.
    decode: Vec<(Vec<u32>, bool, String)>,
    /// Unit, how often, [`digest`] of the ids with `parse_special`.
    long: Vec<(String, usize, String)>,
}

/// What llama.cpp said with each pre-tokenizer.
#[derive(Deserialize)]
struct Pres {
    file: PathBuf,
    /// Text, and every answer that one of them gives.
    texts: Vec<(String, Vec<Vec<u32>>)>,
    /// Unit and how often.
    long: Vec<(String, usize)>,
    pre: Vec<PreGroup>,
}

#[derive(Deserialize)]
struct PreGroup {
    names: Vec<String>,
    /// The id, -1 if there is none, and whether texts begin with it.
    bos: (i64, bool),
    /// Which of a text's answers.
    ids: Vec<usize>,
    /// [`digest`] of the ids of each long text.
    long: Vec<String>,
}

/// What llama.cpp said of vocabularies with a twist.
#[derive(Deserialize)]
struct Odds {
    /// Tokens and merges, by their place.
    lists: Vec<serde_json::Value>,
    vocabularies: Vec<OddCase>,
}

#[derive(Deserialize)]
struct OddCase {
    name: String,
    model: String,
    pre: String,
    keys: Vec<(String, serde_json::Value)>,
    tokens: usize,
    merges: usize,
    /// In bits.
    scores: Option<Vec<u32>>,
    #[serde(default)]
    refused: bool,
    #[serde(flatten)]
    said: Option<OddSaid>,
}

#[derive(Deserialize)]
struct OddSaid {
    bos: Option<u32>,
    eos: Option<u32>,
    adds_bos: bool,
    adds_eos: bool,
    ends: Vec<u32>,
    kinds: String,
    encode: Vec<(String, bool, bool, Vec<u32>)>,
    decode: Vec<(Vec<u32>, bool, String)>,
}

/// What llama.cpp said of vocabularies of a few tokens.
#[derive(Deserialize)]
struct Roles {
    vocabularies: Vec<RoleCase>,
}

#[derive(Deserialize)]
struct RoleCase {
    name: String,
    model: String,
    /// Texts and types.
    tokens: Vec<(String, i32)>,
    keys: Vec<(String, u32)>,
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    ends: Vec<u32>,
    /// A letter a token.
    kinds: String,
    /// In hex, with special tokens' text.
    pieces: Vec<String>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizers")
}

fn metadata(path: &Path) -> Metadata {
    Model::open(path, &Limits::default()).unwrap().metadata().clone()
}

fn json<T: for<'de> Deserialize<'de>>(path: &Path) -> T {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// Eight bytes of the SHA-256 of ids, in hex.
fn digest(ids: &[u32]) -> String {
    hex(&Sha256::digest(ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>())[..8])
}

fn letter(kind: TokenKind) -> char {
    match kind {
        TokenKind::Control => 'C',
        TokenKind::Unknown => '?',
        TokenKind::Unused => 'U',
        TokenKind::Normal => 'N',
        TokenKind::UserDefined => 'D',
        TokenKind::Byte => 'B',
        TokenKind::Undefined => '_',
    }
}

/// Holds a tokenizer against a golden; what differs, a line each.
fn differences(golden: &Golden, tokenizer: &Tokenizer) -> Vec<String> {
    let mut found = Vec::new();
    let mut same = |what: &str, ours: String, theirs: String| {
        if ours != theirs {
            found.push(format!("{}: {what}: {ours}, llama.cpp {theirs}", golden.file.display()));
        }
    };
    let n = golden.n_tokens as u32;
    same("tokens", tokenizer.n_tokens().to_string(), golden.n_tokens.to_string());
    same("bos", format!("{:?}", tokenizer.bos()), format!("{:?}", golden.bos));
    same("eos", format!("{:?}", tokenizer.eos()), format!("{:?}", golden.eos));
    same("adds_bos", tokenizer.adds_bos().to_string(), golden.adds_bos.to_string());
    same("adds_eos", tokenizer.adds_eos().to_string(), golden.adds_eos.to_string());
    same("ends", format!("{:?}", tokenizer.ends()), format!("{:?}", golden.ends));
    // Which of several texts is the end of a turn is left to a hash table there.
    same("has eot", tokenizer.eot().is_some().to_string(), golden.eot.is_some().to_string());
    let kinds: String = (0..n).map(|id| letter(tokenizer.kind(id))).collect();
    same("kinds", hex(Sha256::digest(kinds)), golden.kinds.clone());
    let mut pieces = Sha256::new();
    for special in [false, true] {
        for id in 0..n {
            let piece = tokenizer.piece(id, special);
            pieces.update((piece.len() as u32).to_le_bytes());
            pieces.update(piece);
        }
    }
    same("pieces", hex(pieces.finalize()), golden.pieces.clone());
    for (text, add, parse, ids) in &golden.encode {
        let ours = tokenizer.encode(text, *add, *parse);
        same(&format!("encode {text:?}, {add}, {parse}"), format!("{ours:?}"), format!("{ids:?}"));
    }
    for (unit, times, ids) in &golden.long {
        let ours = digest(&tokenizer.encode(&unit.repeat(*times), false, true));
        same(&format!("encode {unit:?}, {times} times"), ours, ids.clone());
    }
    for (ids, special, bytes) in &golden.decode {
        same(&format!("decode {ids:?}, {special}"), hex(tokenizer.decode(ids, *special)), bytes.clone());
    }
    for id in 0..n {
        same("is_end", tokenizer.is_end(id).to_string(), golden.ends.contains(&id).to_string());
    }
    found
}

fn holds(name: &str) {
    let golden: Golden = json(&fixtures().join(format!("{name}.json")));
    let tokenizer = Tokenizer::from_metadata(&metadata(&fixtures().join(&golden.file))).unwrap();
    let found = differences(&golden, &tokenizer);
    assert!(found.is_empty(), "{} differences:\n{}", found.len(), found.join("\n"));
}

#[test]
fn sentencepiece_gives_what_llama_cpp_gives() {
    holds("llama-spm");
    // White space after special tokens goes with them.
    holds("phi-3");
}

#[test]
fn byte_pairs_give_what_llama_cpp_gives() {
    for name in ["gpt-2", "llama-bpe", "qwen2", "deepseek-llm", "falcon"] {
        holds(name);
    }
}

#[test]
fn byte_pairs_of_text_give_what_llama_cpp_gives() {
    holds("gemma-4");
}

#[test]
fn every_pre_tokenizer_splits_as_llama_cpp_does() {
    let golden: Pres = json(&fixtures().join("pre.json"));
    let mut metadata = metadata(&fixtures().join(&golden.file));
    for group in &golden.pre {
        for name in &group.names {
            metadata.set("tokenizer.ggml.pre", name.as_str());
            let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
            assert_eq!((tokenizer.bos().map_or(-1, i64::from), tokenizer.adds_bos()), group.bos, "{name}");
            for ((text, answers), &ids) in golden.texts.iter().zip(&group.ids) {
                let ours = tokenizer.encode(text, false, false);
                assert_eq!(ours, answers[ids], "{name}: {text:?}");
            }
            for ((unit, times), ids) in golden.long.iter().zip(&group.long) {
                let ours = digest(&tokenizer.encode(&unit.repeat(*times), false, false));
                assert_eq!(&ours, ids, "{name}: {unit:?}, {times} times");
            }
        }
    }
}

/// The names that the error lists are those of llama.cpp, which the script has read in its source.
#[test]
fn every_pre_tokenizer_of_llama_cpp_is_built_in_and_no_other() {
    let golden: Pres = json(&fixtures().join("pre.json"));
    let mut theirs: Vec<_> = golden.pre.iter().flat_map(|group| &group.names).filter(|name| !name.is_empty()).collect();
    theirs.sort();
    let Error::UnknownPre { known, .. } = refusal("gpt2", "tokenizer.ggml.pre", "no such") else { panic!() };
    let mut ours: Vec<_> = known.split(", ").collect();
    ours.sort();
    assert_eq!(ours, theirs);
}

#[test]
fn vocabularies_with_a_twist_give_what_llama_cpp_gives() {
    let golden: Odds = json(&fixtures().join("odd.json"));
    let lists = |i: usize| golden.lists[i].clone();
    for case in &golden.vocabularies {
        let name = &case.name;
        let tokens: Vec<(String, i32)> = serde_json::from_value(lists(case.tokens)).unwrap();
        let tokens: Vec<_> = tokens.iter().map(|(text, kind)| (unhex(text), *kind)).collect();
        let mut metadata = vocabulary(&case.model, &tokens.iter().map(|t| (t.0.as_slice(), t.1)).collect::<Vec<_>>());
        match serde_json::from_value::<Option<Vec<String>>>(lists(case.merges)).unwrap() {
            Some(merges) => {
                metadata.set("tokenizer.ggml.merges", Value::Array(Array::Strings(merges.iter().collect())))
            }
            None => metadata.retain(|key| key != "tokenizer.ggml.merges"),
        };
        if let Some(scores) = &case.scores {
            let scores: Vec<_> = scores.iter().copied().map(f32::from_bits).collect();
            metadata.set("tokenizer.ggml.scores", Value::Array(Array::from_f32s(&scores)));
        }
        metadata.set("tokenizer.ggml.pre", case.pre.as_str());
        for (key, value) in &case.keys {
            let value = match value {
                serde_json::Value::Bool(v) => Value::Bool((*v).into()),
                serde_json::Value::String(v) => Value::from(v.as_str()),
                v => Value::U32(v.as_u64().unwrap() as u32),
            };
            metadata.set(key, value);
        }
        let t = Tokenizer::from_metadata(&metadata);
        assert_eq!(t.is_err(), case.refused, "{name}");
        assert_eq!(case.said.is_none(), case.refused, "{name}");
        let (Ok(t), Some(said)) = (t, &case.said) else { continue };
        assert_eq!((t.bos(), t.eos(), t.adds_bos(), t.adds_eos()), (said.bos, said.eos, said.adds_bos, said.adds_eos));
        assert_eq!(t.ends(), said.ends, "{name}");
        let kinds: String = (0..t.n_tokens() as u32).map(|id| letter(t.kind(id))).collect();
        assert_eq!(hex(Sha256::digest(kinds)), said.kinds, "{name}");
        for (text, add, parse, ids) in &said.encode {
            assert_eq!(&t.encode(text, *add, *parse), ids, "{name}: {text:?}, {add}, {parse}");
        }
        for (ids, special, bytes) in &said.decode {
            assert_eq!(&hex(t.decode(ids, *special)), bytes, "{name}: {ids:?}, {special}");
        }
    }
    assert_eq!(golden.vocabularies.len(), 66);
}

/// Without an unknown token, llama.cpp gives the id -1 for a text that `soprano` has no token for.
#[test]
fn soprano_without_an_unknown_token_leaves_out_what_has_none() {
    let mut metadata = vocabulary("gpt2", &[(b"a", 1)]);
    metadata.set("tokenizer.ggml.pre", "soprano");
    assert_eq!(Tokenizer::from_metadata(&metadata).unwrap().encode("A?a", false, false), [0, 0]);
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn models_of_this_repository_give_what_llama_cpp_gives() {
    for name in ["base", "chat", "cp-de"] {
        holds(&format!("tinyworld-A-{name}-F16"));
    }
}

#[test]
fn roles_and_kinds_of_tokens_are_llama_cpps() {
    let golden: Roles = json(&fixtures().join("roles.json"));
    for case in golden.vocabularies {
        let name = &case.name;
        let tokens: Vec<_> = case.tokens.iter().map(|(text, kind)| (text.as_bytes(), *kind)).collect();
        let mut metadata = vocabulary(&case.model, &tokens);
        for (key, id) in &case.keys {
            metadata.set(key, Value::U32(*id));
        }
        let t = Tokenizer::from_metadata(&metadata).unwrap();
        let ids = 0..tokens.len() as u32;
        assert_eq!((t.bos(), t.eos()), (case.bos, case.eos), "{name}");
        assert_eq!(t.ends(), case.ends, "{name}");
        assert_eq!(ids.clone().map(|id| letter(t.kind(id))).collect::<String>(), case.kinds, "{name}");
        assert_eq!(ids.map(|id| hex(t.piece(id, true))).collect::<Vec<_>>(), case.pieces, "{name}");
        match case.eot {
            // Of several, its hash table chooses: any end will do.
            Some(_) if name == "every text that ends" => assert!(t.is_end(t.eot().unwrap())),
            eot => assert_eq!(t.eot(), eot, "{name}"),
        }
    }
}

/// Metadata of a vocabulary of texts and types, with one merge.
fn vocabulary(model: &str, tokens: &[(&[u8], i32)]) -> Metadata {
    let mut metadata = Metadata::default();
    let strings = |s: StringArray| Value::Array(Array::Strings(s));
    metadata.set("tokenizer.ggml.model", model);
    metadata.set("tokenizer.ggml.tokens", strings(tokens.iter().map(|t| t.0).collect()));
    metadata.set("tokenizer.ggml.merges", strings(["a b"].into_iter().collect()));
    let types: Vec<i32> = tokens.iter().map(|t| t.1).collect();
    metadata.set("tokenizer.ggml.token_type", Value::Array(Array::from_i32s(&types)));
    metadata
}

/// What is said to a vocabulary with one thing changed.
fn refusal(model: &str, key: &str, value: impl Into<Value>) -> Error {
    let mut metadata = vocabulary(model, &[(b"a", 1), (b"b", 1), (b"<0", 1)]);
    metadata.set(key, value);
    Tokenizer::from_metadata(&metadata).expect_err(key)
}

#[test]
fn refuses_what_llama_cpp_refuses_and_says_what_and_where() {
    let strings = |list: &[&str]| Value::Array(Array::Strings(list.iter().collect()));
    let short = || Value::Array(Array::from_f32s(&[1.0]));
    for (model, key, value, said) in [
        ("gpt2", "tokenizer.ggml.model", Value::from("bert"), "\"bert\", which is not built in; known are gpt2, llama"),
        ("gpt2", "tokenizer.ggml.model", Value::U32(1), "tokenizer.ggml.model is of type uint32, expected string"),
        ("gpt2", "tokenizer.ggml.pre", "gpt-5".into(), "\"gpt-5\", which is not built in; known are default, gpt-2"),
        ("gpt2", "tokenizer.ggml.pre", Value::Bool(1), "tokenizer.ggml.pre is of type bool, expected string"),
        (
            "gpt2",
            "tokenizer.ggml.tokens",
            Value::U8(0),
            "tokenizer.ggml.tokens is of type uint8, expected array of string",
        ),
        ("gpt2", "tokenizer.ggml.tokens", short(), "array of float32, expected array of string"),
        ("llama", "tokenizer.ggml.tokens", strings(&["a", "x", "a"]), "tokens 0 and 2 both have the text \"a\""),
        ("llama", "tokenizer.ggml.tokens", strings(&["a", "[EMPTY_2]", ""]), "tokens 1 and 2 both"),
        (
            "llama",
            "tokenizer.ggml.token_type",
            Value::Array(Array::from_i32s(&[1, 1, 6])),
            "token 2 is a byte token, but its text is \"<0\"",
        ),
        ("gpt2", "tokenizer.ggml.merges", short(), "tokenizer.ggml.merges is of type array of float32"),
        ("llama", "tokenizer.ggml.token_type", Value::Array(Array::from_i32s(&[1])), "has 1 entries for 3 tokens"),
        ("llama", "tokenizer.ggml.token_type", short(), "is of type array of float32, expected int32"),
        ("llama", "tokenizer.ggml.scores", short(), "has 1 entries for 3 tokens"),
        ("llama", "tokenizer.ggml.scores", strings(&["1"]), "is of type array of string, expected float32"),
        ("gpt2", "tokenizer.ggml.eos_token_id", Value::I32(1), "is of type int32, expected uint32"),
        ("gpt2", "tokenizer.ggml.add_bos_token", Value::U32(1), "is of type uint32, expected bool"),
        ("gpt2", "tokenizer.ggml.clean_spaces", Value::U32(1), "is of type uint32, expected bool"),
        ("llama", "tokenizer.ggml.normalizer.nfc", Value::U32(1), "is of type uint32, expected bool"),
        ("gpt2", "tokenizer.ggml.dna_auto_tags", Value::I32(1), "is of type int32, expected bool"),
        ("gpt2", "tokenizer.ggml.metaspace.prepend_scheme", Value::Bool(1), "is of type bool, expected string"),
        ("gpt2", "tokenizer.ggml.metaspace.prepend_scheme", "always".into(), "prepend_scheme is \"always\", expected"),
        ("llama", "tokenizer.ggml.metaspace.prepend_scheme", "last".into(), "prepend_scheme is \"last\", expected"),
        ("llama", "general.name", "Phi-3 mini".into(), "is called \"Phi-3 mini\""),
    ] {
        let error = refusal(model, key, value).to_string();
        assert!(error.contains(said), "{key}: {error}");
    }
    for model in ["bert", "t5", "rwkv", "plamo2", "plamo3", "hybriddna", "whitespace", "none", "no_vocab", "test"] {
        let error = refusal("gpt2", "tokenizer.ggml.model", model).to_string();
        assert!(error.contains(&format!("{model:?}, which is not built in")), "{error}");
    }
    for key in ["tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.merges"] {
        let mut metadata = vocabulary("gpt2", &[(b"a", 1)]);
        metadata.retain(|k| k != key);
        assert_eq!(Tokenizer::from_metadata(&metadata).unwrap_err(), Error::MissingKey { key });
    }
    let long = "x".repeat(1 << 20);
    assert!(refusal("gpt2", "tokenizer.ggml.pre", long.as_str()).to_string().len() < 2000);
}

#[test]
fn a_missing_pre_tokenizer_is_default() {
    let tokenizer = Tokenizer::from_metadata(&vocabulary("gpt2", &[(b"a", 1)])).unwrap();
    assert_eq!(tokenizer.pre(), None);
    // What `default` splits is in pre.json, under its name and under none.
    let golden: Pres = json(&fixtures().join("pre.json"));
    assert!(golden.pre.iter().any(|group| group.names == ["default", ""]));
}

#[test]
fn long_texts_without_spaces_come_back() {
    for name in ["llama-spm", "llama-bpe", "qwen2", "gemma-4"] {
        let tokenizer = Tokenizer::from_metadata(&metadata(&fixtures().join(format!("{name}.gguf")))).unwrap();
        for unit in ["a", " ", "\n", " \n", "1", "'", "<", "<|im_end|>", "</s>", "ab1", "\u{4f60}"] {
            let text = unit.repeat((1 << 18) / unit.len());
            let ids = tokenizer.encode(&text, false, true);
            assert!(tokenizer.decode(&ids, true) == text.as_bytes(), "{name}: {unit:?}");
        }
    }
}

#[test]
fn ids_out_of_range_are_nothing() {
    let tokenizer = Tokenizer::from_metadata(&vocabulary("llama", &[(b"a", 1)])).unwrap();
    for id in [1, u32::MAX] {
        assert_eq!(tokenizer.piece(id, true).len(), 0);
        assert_eq!(tokenizer.text(id), None);
        assert_eq!(tokenizer.kind(id), TokenKind::Undefined);
        assert!(!tokenizer.is_end(id));
    }
    assert_eq!(tokenizer.find(b"a"), Some(0));
    assert_eq!(tokenizer.find(b"b"), None);
}

#[test]
fn strings_that_only_merges_know_are_no_tokens() {
    let mut metadata = vocabulary("gpt2", &[(b"a", 1), (b"b", 1), (b"c", 1), (b"abc", 1)]);
    let merges: StringArray = ["a b", "ab c", "a", "", " ", "  ", "a b c", "c d"].into_iter().collect();
    metadata.set("tokenizer.ggml.merges", Value::Array(Array::Strings(merges)));
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    assert_eq!(tokenizer.encode("abc", false, false), [3]);
    // What ends as no token falls apart; characters without a token are lost. So it is in
    // llama.cpp.
    assert_eq!(tokenizer.encode("ab", false, false), [0, 1]);
    assert_eq!(tokenizer.encode("cd", false, false), [2]);
    assert_eq!(tokenizer.find(b"ab"), None);
    assert_eq!(tokenizer.n_tokens(), 4);
}

/// Vocabularies without sense: short texts of few characters, bytes that are no characters, any
/// types and scores.
fn any_vocabulary() -> impl Strategy<Value = Metadata> {
    let text = prop_oneof![
        "[ab \u{2581}\u{0120}]{0,4}".prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..4),
        "<0x[0-9A-F]{2}>".prop_map(String::into_bytes),
        proptest::sample::select(vec!["<|im_end|>", "<s>", "</s>", "<unk>", "<|endoftext|>"])
            .prop_map(|s| s.as_bytes().to_vec()),
    ];
    let tokens = proptest::collection::btree_set(text, 0..40);
    let merges = proptest::collection::vec("[ab \u{2581}\u{0120}]{0,5}", 0..40);
    let score = prop_oneof![any::<f32>(), Just(f32::NAN), Just(-0.0), Just(0.0)];
    let numbers = proptest::collection::vec((-1i32..8, score), 40);
    let names = (
        proptest::sample::select(vec!["gpt2", "llama", "gemma4"]),
        proptest::sample::select(vec![
            "default",
            "llama-bpe",
            "tekken-num3",
            "deepseek-llm",
            "sarvam-moe",
            "mmbert",
            "soprano",
            "jais-2",
            "superbpe",
            "afmoe",
            "nemotron-3.5-embed",
        ]),
        proptest::sample::select(vec!["", "phi-3", "modern-bert"]),
    );
    (tokens, merges, numbers, names, any::<[u8; 4]>()).prop_map(|(tokens, merges, numbers, (model, pre, name), b)| {
        let tokens: Vec<_> = tokens.iter().zip(&numbers).map(|(t, n)| (t.as_slice(), n.0)).collect();
        let mut metadata = vocabulary(model, &tokens);
        let scores: Vec<f32> = numbers.iter().map(|n| n.1).collect();
        metadata.set("tokenizer.ggml.scores", Value::Array(Array::from_f32s(&scores)));
        metadata.set("tokenizer.ggml.merges", Value::Array(Array::Strings(merges.iter().collect())));
        metadata.set("tokenizer.ggml.pre", pre);
        metadata.set("general.name", name);
        for (key, byte) in ["bos", "eos", "eot", "unknown"].into_iter().zip(b) {
            metadata.set(&format!("tokenizer.ggml.{key}_token_id"), Value::U32(byte.into()));
        }
        metadata.set("tokenizer.ggml.add_bos_token", Value::Bool(b[0] & 1));
        metadata.set("tokenizer.ggml.add_eos_token", Value::Bool(b[1] & 1));
        if b[2] & 1 == 1 {
            metadata.set("tokenizer.ggml.metaspace.prepend_scheme", "first");
        }
        metadata
    })
}

proptest! {
    #[test]
    fn no_vocabulary_and_no_text_makes_it_panic(
        metadata in any_vocabulary(),
        text in "([ab \n]|<s>|</s>|<\\|im_end\\|>|\\PC){0,30}",
        ids in proptest::collection::vec(0u32..50, 0..20),
    ) {
        if let Ok(tokenizer) = Tokenizer::from_metadata(&metadata) {
            for (add, parse) in [(false, false), (true, true)] {
                let encoded = tokenizer.encode(&text, add, parse);
                prop_assert!(encoded.iter().all(|&id| (id as usize) < tokenizer.n_tokens()));
                tokenizer.decode(&encoded, parse);
            }
            tokenizer.decode(&ids, true);
            prop_assert!(tokenizer.ends().iter().all(|&id| (id as usize) < tokenizer.n_tokens()));
        }
    }

    #[test]
    fn any_text_comes_back(text in "([ -~]|\\s|\\PC|\\pL|\\pN){0,60}") {
        for name in ["llama-spm.gguf", "llama-bpe.gguf", "qwen2.gguf", "gemma-4.gguf"] {
            let tokenizer = &*shared(name);
            let back = tokenizer.decode(&tokenizer.encode(&text, false, false), true);
            prop_assert_eq!(String::from_utf8_lossy(&back), text.as_str(), "{}", name);
        }
    }
}

/// A tokenizer of the fixtures, built once.
fn shared(name: &'static str) -> Arc<Tokenizer> {
    static BUILT: Mutex<BTreeMap<&str, Arc<Tokenizer>>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap();
    let load = || Arc::new(Tokenizer::from_metadata(&metadata(&fixtures().join(name))).unwrap());
    built.entry(name).or_insert_with(load).clone()
}

#[test]
#[ignore = "needs whole vocabularies, which are too large to keep: run by tests/peers/tokenizer_goldens.py --full"]
fn whole_vocabularies_give_what_llama_cpp_gives() {
    let folder = std::env::var("CHATVEC_VOCABS").expect("CHATVEC_VOCABS names the folder that the script made");
    let mut found = Vec::new();
    let mut goldens: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    goldens.retain(|path| path.extension().is_some_and(|e| e == "json"));
    goldens.sort();
    for path in goldens {
        let golden: Golden = json(&path);
        let tokenizer = Tokenizer::from_metadata(&metadata(&golden.file)).unwrap();
        let differ = differences(&golden, &tokenizer);
        #[allow(clippy::print_stdout, reason = "the result of a comparison that a person asked for")]
        {
            let cases = golden.encode.len() + golden.decode.len();
            println!("{}: {cases} cases, {} differences", path.display(), differ.len());
            for line in differ.iter().take(5) {
                println!("  {}", &line.chars().take(600).collect::<String>());
            }
        }
        found.extend(differ);
    }
    assert!(found.is_empty(), "{} differences", found.len());
}
