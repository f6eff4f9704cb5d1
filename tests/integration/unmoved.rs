//! What base and chat have in common is in no patch, whatever their vocabularies and types are.

use std::fs;
use std::path::Path;

use crate::support::{Draft, Val, kind};
use crate::trio::{
    BASE_NAMES, F32, Paths, Trio, assert_same_tensors, chatvec, get, name, read, store, tau_by_text, text_of, weights,
};

const TOKENS: &str = "tokenizer.ggml.tokens";
const EMBEDDINGS: [&str; 2] = ["token_embd.weight", "output.weight"];

/// The small trio whose chat is its base, but for `attn_q` and two rows of the embeddings.
fn barely_moved() -> Trio {
    let mut trio = Trio::small();
    for (to, from) in trio.chat.tensors.iter_mut().zip(&trio.base.tensors) {
        let moved = to.data();
        match name(to) {
            "blk.0.attn_q.weight" => {}
            "token_embd.weight" => {
                let (mut data, size) = (from.data(), moved.len() / 8);
                [2, 5]
                    .into_iter()
                    .for_each(|row| data[row * size..][..size].copy_from_slice(&moved[row * size..][..size]));
                to.data = Some(data);
            }
            _ => to.data = Some(from.data()),
        }
    }
    trio
}

/// Puts a token of this text before those from `at` on, with rows of its own.
fn insert_token(draft: &mut Draft, at: usize, text: &str) {
    let mut list = |key: &str, value: Val| {
        let Some(Val::Array(_, values)) = draft.keys.iter_mut().find(|(k, _)| k == key.as_bytes()).map(|(_, v)| v)
        else {
            panic!("no {key}")
        };
        values.insert(at, value);
    };
    list(TOKENS, Val::str(text));
    list("tokenizer.ggml.token_type", Val::I32(1));
    for (key, value) in &mut draft.keys {
        if let (true, Val::U32(id)) = (key.ends_with(b"_token_id"), value) {
            *id += u32::from(*id as usize >= at);
        }
    }
    for name in EMBEDDINGS {
        let tensor = draft.tensor(name);
        let (row_len, ty) = (tensor.ne[0] as usize, tensor.ty);
        let mut values = weights(tensor);
        values.splice(at * row_len..at * row_len, (0..row_len).map(|i| 0.01 + i as f32 / 1024.0));
        tensor.ne[1] += 1;
        store(tensor, ty, &values);
    }
}

fn extract(paths: &Paths, patch: &Path) -> Draft {
    let files: [&Path; 3] = [&paths.base, &paths.chat, patch];
    let named = ["--base", "--chat", "-o"].into_iter().zip(files.map(|path| path.to_str().unwrap()));
    let args = named.flat_map(|(flag, path)| [flag, path]);
    chatvec(["extract", "-e", "f32", "--overwrite"].into_iter().chain(args)).says(0, &[]);
    read(patch)
}

/// Names of the tensors that hold τ.
fn vector(patch: &Draft) -> Vec<&str> {
    patch.tensors.iter().map(name).filter(|name| BASE_NAMES.iter().all(|end| !name.ends_with(end))).collect()
}

#[test]
fn what_did_not_move_is_left_out_where_chat_has_other_tokens() {
    for at in [8, 3, 0] {
        let folder = tempfile::tempdir().unwrap();
        let mut trio = barely_moved();
        insert_token(&mut trio.chat, at, "<new>");
        let paths = trio.write(folder.path());
        let patch = extract(&paths, &folder.path().join("patch.gguf"));
        assert_eq!(vector(&patch), ["token_embd.weight.rows", "blk.0.attn_q.weight"], "a token before {at}");
        // Two rows of eight, by the ids of the chat's own vocabulary.
        let ids = [2, 5].map(|id: u32| id + u32::from(id as usize >= at));
        let listed = Val::Array(kind::U32, ids.map(Val::U32).to_vec());
        assert_eq!(get(&patch, "chatvec.patch.rows.token_embd.weight"), Some(&listed));
        let rows = patch.tensors.iter().find(|t| name(t) == "token_embd.weight.rows").unwrap();
        let tau = tau_by_text(&trio.base, &trio.chat, "token_embd.weight");
        let expected: Vec<f32> = ids.iter().flat_map(|id| tau[&text_of(&trio.chat, *id as usize)].clone()).collect();
        assert_eq!(weights(rows), expected);
        let (applied, merged) = (folder.path().join("applied.gguf"), folder.path().join("merged.gguf"));
        let args = ["apply", "--model", paths.cp.to_str().unwrap(), "--special-tokens", "none", "-o"];
        let files = [applied.to_str().unwrap(), folder.path().join("patch.gguf").to_str().unwrap()].map(str::to_owned);
        chatvec(args.into_iter().map(str::to_owned).chain(files)).says(0, &[]);
        paths.command(&merged, &["--special-tokens", "none"]).says(0, &[]);
        assert_same_tensors(&read(&applied), &read(&merged));
    }
}

#[test]
fn embeddings_in_which_no_shared_token_moved_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = barely_moved();
    for name in EMBEDDINGS {
        trio.chat.tensor(name).data = Some(trio.base.tensor(name).data());
    }
    insert_token(&mut trio.chat, 4, "<new>");
    let patch = extract(&trio.write(folder.path()), &folder.path().join("patch.gguf"));
    assert_eq!(vector(&patch), ["blk.0.attn_q.weight"]);
}

#[test]
fn the_same_weights_in_another_type_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = barely_moved();
    for tensor in &mut trio.chat.tensors {
        let values = weights(tensor);
        store(tensor, F32, &values);
    }
    let (paths, patch) = (trio.write(folder.path()), folder.path().join("patch.gguf"));
    assert_eq!(vector(&extract(&paths, &patch)), ["token_embd.weight.rows", "blk.0.attn_q.weight"]);
    assert!(fs::metadata(&patch).unwrap().len() < 300_000, "a matrix of 256 KB, and two rows");
}
