//! Text to tokens and back, against what llama.cpp said of the same vocabularies (tests/peers/tokenizer_goldens.py).

use std::path::{Path, PathBuf};

use chatvec::chat::{TokenKind, Tokenizer};
use chatvec::gguf::{Limits, Metadata, Model};
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
}

/// What llama.cpp said with each pre-tokenizer.
#[derive(Deserialize)]
struct Pres {
    file: PathBuf,
    texts: Vec<(String,)>,
    pre: Vec<PreGroup>,
}

#[derive(Deserialize)]
struct PreGroup {
    names: Vec<String>,
    ids: Vec<Vec<u32>>,
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
            for ((text,), ids) in golden.texts.iter().zip(&group.ids) {
                assert_eq!(&tokenizer.encode(text, false, false), ids, "{name}: {text:?}");
            }
        }
    }
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
