//! What a small file may cost that claims much: memory and work of every command that opens it.
//!
//! The files are harmless: what they claim is zeros, and no program is hurt by refusing it.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use chatvec::patch::encode;

use crate::support::{Draft, Tensor, Val, kind, valid};
use crate::trio::{F32, Paths, Ran, Trio, chatvec};

const I8: u32 = 24;
const MATRIX: &str = "blk.0.attn_q.weight";

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A patch of one decomposed matrix of zeros, and a tensor of no meaning to make the file as long
/// as this.
fn decomposed(row_len: usize, n_rows: usize, rank: usize, padding: u64) -> Draft {
    let mut draft = Draft::default();
    draft.set("general.architecture", Val::str("llama"));
    draft.set("general.type", Val::str("chat-vector"));
    draft.set("chatvec.patch.version", Val::U32(1));
    draft.set("chatvec.patch.tensors", Val::strs([MATRIX]));
    draft.set("chatvec.patch.svd.tensors", Val::strs([MATRIX]));
    let shape = [row_len, n_rows].map(|n| Val::U32(n as u32)).to_vec();
    draft.set("chatvec.patch.svd.shapes", Val::Array(kind::U32, shape));
    // Frames of 32 Ki zeros, of 11 bytes at least.
    let frames = |n: usize| encode::compress(&vec![0; n], 1 << 15).unwrap();
    let mut push = |end: &str, ty, n: usize, data: Vec<u8>| {
        draft.tensors.push(Tensor { data: Some(data), ..Tensor::new(&format!("{MATRIX}{end}"), &[n as u64], ty) });
    };
    push(".svd_d", F32, rank, vec![0; 4 * rank]);
    for (end, len) in [(".svd_a.zstd", row_len), (".svd_b.zstd", n_rows)] {
        let bytes = frames(rank * len);
        push(end, I8, bytes.len(), bytes);
    }
    if padding > 0 {
        draft.tensors.push(Tensor { data: Some(vec![0; padding as usize]), ..Tensor::new("padding", &[padding], I8) });
    }
    draft.seal();
    draft
}

/// Runs the command with so little address space that it cannot take more memory.
fn within(bytes: u64, args: &[&str]) -> Ran {
    let mut command = Command::new("sh");
    let script = format!("ulimit -v {} && exec \"$@\"", bytes >> 10);
    command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_chatvec")]).args(args).args(["--threads", "1"]);
    Ran::new(command.output().unwrap())
}

/// Every command that reads a patch, with the one that is to be refused.
fn readers(paths: &Paths, patch: &Path, out: &Path) -> Vec<Vec<String>> {
    let (cp, patch, out) = (text(&paths.cp), text(patch), text(out));
    let recipe = paths.cp.with_file_name("recipe.toml");
    fs::write(&recipe, format!("model = {cp:?}\n\n[[vector]]\npatch = {patch:?}\n")).unwrap();
    let commands: [&[&str]; 6] = [
        &["verify", patch],
        &["apply", "--model", cp, patch, "-o", out],
        &["apply", "--model", cp, patch, "-o", out, "--dry-run"],
        &["merge", "--model", cp, "--vector", patch, "-o", out],
        &["merge", "--recipe", text(&recipe), "-o", out],
        &["compare", patch, patch],
    ];
    commands.iter().map(|args| args.iter().map(|arg| (*arg).to_owned()).collect()).collect()
}

#[test]
fn a_small_patch_that_claims_much_work_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Trio::small().write(folder.path());
    // 2^40 weights, of which the file has nothing but two numbers for each row and column.
    let claims = decomposed(1 << 20, 1 << 20, 1, 0).write(folder.path(), "claims.gguf");
    let n_bytes = fs::metadata(&claims).unwrap().len();
    assert!(n_bytes < 4096, "{n_bytes} bytes");
    let out = folder.path().join("out.gguf");
    for args in readers(&paths, &claims, &out) {
        let allowed = (n_bytes << 17).to_string();
        let words =
            ["claims.gguf", MATRIX, &format!("{n_bytes} bytes"), &allowed, &(2u64 << 40).to_string(), "--force"];
        chatvec(&args).says(3, &words);
        assert!(!out.exists(), "{args:?}");
    }
    // Rows of the embeddings that are listed and absent: a width that no byte stands for.
    let mut wide = decomposed(256, 256, 1, 0);
    wide.set("tokenizer.ggml.tokens", Val::strs((0..4096).map(|i| format!("t{i}"))));
    wide.set("chatvec.patch.rows.token_embd.weight", Val::Array(kind::U32, Vec::new()));
    wide.tensors.push(Tensor { data: Some(Vec::new()), ..Tensor::new("token_embd.weight.rows", &[1 << 40, 0], F32) });
    wide.seal();
    let wide = wide.write(folder.path(), "wide.gguf");
    for args in readers(&paths, &wide, &out) {
        chatvec(&args).says(3, &["wide.gguf", "token_embd.weight"]);
    }
    // What a file of its size is worth is read.
    let honest = decomposed(512, 512, 8, 0).write(folder.path(), "honest.gguf");
    chatvec(["verify", text(&honest)]).says(0, &[]);
}

#[test]
fn a_matrix_that_does_not_fit_in_memory_is_refused_with_what_it_takes() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Trio::small().write(folder.path());
    let large = decomposed(65_536, 256, 256, 64 << 10).write(folder.path(), "large.gguf");
    let out = folder.path().join("out.gguf");
    // The longer factor, in codes of a byte and as f32.
    let least = 65_536 * 256 * 5;
    for args in readers(&paths, &large, &out) {
        let args: Vec<&str> = args.iter().map(String::as_str).chain(["--memory", "32MiB"]).collect();
        // The program itself takes some tens of megabytes of addresses.
        let ran = within(250 << 20, &args);
        ran.says(5, &["large.gguf", MATRIX, "--memory"]);
        let needed = ran.err.split(' ').filter_map(|word| word.parse::<u64>().ok()).max().unwrap();
        assert!((least..least * 5 / 4).contains(&needed), "{needed} for {least}");
    }
    assert_eq!(within(1 << 30, &["verify", text(&large)]).code, 0);
}

/// A file with this many tokens without a text, which are holes in it.
fn empty_tokens(folder: &Path, n: u64) -> PathBuf {
    let mut draft = Draft::default();
    draft.set("general.architecture", Val::str("llama"));
    draft.set("tokenizer.ggml.model", Val::str("llama"));
    let mut list = kind::STRING.to_le_bytes().to_vec();
    list.extend(n.to_le_bytes());
    draft.set("tokenizer.ggml.tokens", Val::Raw(kind::ARRAY, list));
    let (path, header) = (folder.join("tokens.gguf"), draft.header());
    let mut file = File::create(&path).unwrap();
    file.write_all(&header).unwrap();
    file.seek(SeekFrom::Start(header.len() as u64 + 8 * n - 1)).unwrap();
    file.write_all(&[0]).unwrap();
    path
}

#[test]
fn a_vocabulary_beyond_all_memory_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = empty_tokens(folder.path(), (1 << 26) - 1024);
    let path = text(&tokens);
    for args in [
        &["inspect", path][..],
        &["inspect", "--chat", path],
        &["smoke", path],
        &["verify", path],
        &["compare", path, path],
        &["merge", "--base", path, "--chat", path, "--model", path, "-o", "out.gguf"],
        &["extract", "--base", path, "--chat", path, "-o", "out.gguf"],
        &["quantize", path, "out.gguf", "Q8_0"],
        &["imatrix", path, "--text", path, "-o", "out.gguf"],
        &["merge", "--recipe", path, "-o", "out.gguf"],
    ] {
        within(200 << 20, args).says(3, &["tokens.gguf", "memory", "--memory"]);
    }
    // One of a million is read: what it takes is within what is said of it.
    let million = empty_tokens(folder.path(), 1_000_000);
    within((1 << 30) + (100 << 20), &["inspect", "--chat", text(&million)]).says(0, &[]);
    within((1 << 30) + (100 << 20), &["inspect", "--chat", text(&million), "--memory", "1MiB"]).says(0, &[]);
}

#[test]
fn a_list_of_special_tokens_without_end_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let mut draft = valid();
    let n = 70_000;
    draft.tensors.clear();
    draft.set("tokenizer.ggml.tokens", Val::strs((0..n).map(|i| format!("<{i}>"))));
    draft.set("tokenizer.ggml.scores", Val::Array(kind::F32, vec![Val::F32(0.0); n]));
    draft.set("tokenizer.ggml.token_type", Val::Array(kind::I32, vec![Val::I32(3); n]));
    let many = draft.write(folder.path(), "many.gguf");
    let ran = chatvec(["inspect", "--chat", text(&many)]);
    assert!(ran.says(0, &[]).out.contains("special tokens, more than 65536"), "{}", ran.out);
    // Each of 8000 is written by the template, and half of them are listed.
    let few: Vec<String> = (0..8000).map(|i| format!("<{i}>")).collect();
    draft.set("tokenizer.ggml.tokens", Val::strs(&few));
    draft.set("tokenizer.chat_template", Val::str(&few.concat()));
    let many = draft.write(folder.path(), "many.gguf");
    let ran = chatvec(["inspect", "--chat", text(&many)]);
    assert!(ran.says(0, &[]).out.contains("special tokens that are not listed here"), "{}", &ran.out[..2000]);
}
