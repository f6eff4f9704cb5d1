//! What files mean beside their numbers: names of placeholders, tokenizers of another kind, tokens
//! that no plain conversation shows, prompts, tables, and tensors that may not be additive. A list
//! of situations is in docs/FILES.md.

use std::path::Path;

use tempfile::tempdir;

use crate::support::{Draft, Tensor, Val, kind};
use crate::trio::{F16, F32, Paths, Ran, TEMPLATE, Trio, chatvec, get, name, read, store, weights};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";

fn tensor<'a>(draft: &'a Draft, wanted: &str) -> &'a Tensor {
    draft.tensors.iter().find(|t| name(t) == wanted).unwrap_or_else(|| panic!("no {wanted}"))
}

fn texts(draft: &Draft) -> Vec<String> {
    let Some(Val::Array(_, values)) = get(draft, TOKENS) else { panic!("no tokens") };
    let text = |v: &Val| if let Val::Str(s) = v { String::from_utf8(s.clone()).unwrap() } else { panic!("{v:?}") };
    values.iter().map(text).collect()
}

fn shown(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn apply(paths: &Paths, out: &Path, options: &[&str]) -> Ran {
    let patch = shown(&paths.base.with_file_name("patch.gguf"));
    let (base, chat, model) = (shown(&paths.base), shown(&paths.chat), shown(&paths.cp));
    chatvec(["extract", "--base", &base, "--chat", &chat, "-o", &patch, "--encoding", "f32", "--overwrite"]);
    chatvec([&["apply", "--model", &model, &patch, "-o", &shown(out)], options].concat())
}

/// Rows of an embedding of the output are sums by id, or the chat's.
#[track_caller]
fn are_sums_by_id(what: &str, output: &Draft, trio: &Trio) {
    for by_token in ["token_embd.weight", "output.weight"] {
        let [out, base, chat, cp] =
            [output, &trio.base, &trio.chat, &trio.cp].map(|draft| weights(tensor(draft, by_token)));
        for (i, row) in out.chunks(256).enumerate() {
            let of = |all: &[f32]| all[i * 256..(i + 1) * 256].to_vec();
            let (base, chat, cp) = (of(&base), of(&chat), of(&cp));
            let is_near = |expected: &[f32]| row.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
            let sum: Vec<f32> = cp.iter().zip(chat.iter().zip(&base)).map(|(m, (c, b))| m + (c - b)).collect();
            assert!(is_near(&sum) || is_near(&chat), "{what}: row {i} of {by_token}");
        }
    }
}

/// A base with two placeholders for the marks of its chat, which nobody trained but the chat.
fn with_placeholders() -> Trio {
    let mut trio = Trio::small();
    for draft in [&mut trio.base, &mut trio.cp] {
        draft.set(TOKENS, Val::strs(["a", "b", "c", "d", "e", "<eos>", "<|res0|>", "<|res1|>"]));
    }
    let base = trio.base.clone();
    for by_token in ["token_embd.weight", "output.weight"] {
        let row = weights(tensor(&base, by_token))[6 * 256..].to_vec();
        let cp = trio.cp.tensor(by_token);
        let mut values = weights(cp);
        values[6 * 256..].copy_from_slice(&row);
        store(cp, F16, &values);
    }
    trio
}

#[test]
fn placeholders_that_the_chat_gave_names_are_renamed_in_place() {
    let folder = tempdir().unwrap();
    let trio = with_placeholders();
    let paths = trio.write(folder.path());
    let out = folder.path().join("out.gguf");
    for options in [&["--type", "F32"][..], &["--type", "F32", "--special-tokens", "none"]] {
        for by_patch in [false, true] {
            let options = [options, &["--overwrite"]].concat();
            let ran = if by_patch { apply(&paths, &out, &options) } else { paths.command(&out, &options) };
            ran.says(0, &[]);
            let output = read(&out);
            assert_eq!(texts(&output), texts(&trio.chat), "patch: {by_patch}");
            assert_eq!(get(&output, "tokenizer.ggml.eos_token_id"), Some(&Val::U32(7)));
            are_sums_by_id(&format!("patch: {by_patch}"), &output, &trio);
        }
    }
    let patch = read(&folder.path().join("patch.gguf"));
    assert_eq!(get(&patch, "chatvec.patch.renamed_from"), Some(&Val::strs(["<|res0|>", "<|res1|>"])));
    let json = paths.command(&out, &["--json", "--dry-run", "--overwrite"]).says(0, &[]).json();
    let change = &json["plumbing"][0];
    assert_eq!((change["key"].as_str(), change["to"].as_str()), (Some(TOKENS), Some("<|im_start|> <|im_end|>")));

    // A model that has the names already and was trained on them: sums, by merge and by patch alike.
    let mut trained = trio.clone();
    let marks: Vec<String> = texts(&trio.chat);
    trained.cp.set(TOKENS, Val::strs(&marks));
    for by_token in ["token_embd.weight", "output.weight"] {
        let tensor = trained.cp.tensor(by_token);
        let values: Vec<f32> =
            weights(tensor).iter().enumerate().map(|(i, w)| w + ((i % 7) as f32 - 3.0) * 0.01).collect();
        store(tensor, F16, &values);
    }
    let paths = trained.write(folder.path());
    let mut outputs = Vec::new();
    for by_patch in [false, true] {
        let options = ["--type", "F32", "--overwrite", "--special-tokens", "none"];
        let ran = if by_patch { apply(&paths, &out, &options) } else { paths.command(&out, &options) };
        ran.says(0, &[]);
        let output = read(&out);
        are_sums_by_id("trained names", &output, &trained);
        outputs.push(weights(tensor(&output, "token_embd.weight")));
    }
    assert_eq!(outputs[0], outputs[1]);

    // A further vector between two chats with the names reaches their rows too, in either order.
    let further = crate::trio::drifted(&trio.chat, "further", 31, 0.002);
    let paths = trio.write(folder.path());
    let further_path = shown(&further.write(folder.path(), "further.gguf"));
    let (base, chat, model) = (shown(&paths.base), shown(&paths.chat), shown(&paths.cp));
    let vectors = [format!("{base}:{chat}@0.5"), format!("{chat}:{further_path}@0.5")];
    for order in [[0, 1], [1, 0]] {
        let [one, two] = order.map(|i| vectors[i].as_str());
        let options = ["--type", "F32", "--overwrite", "--special-tokens", "none", "--force"];
        let args = ["merge", "--model", &model, "-o", out.to_str().unwrap(), "--vector", one, "--vector", two];
        chatvec([&args[..], &options].concat()).says(0, &[]);
        let output = read(&out);
        assert_eq!(texts(&output), marks, "{order:?}");
        let of = |draft: &Draft| weights(tensor(draft, "token_embd.weight"))[6 * 256..].to_vec();
        let (b, c, f, m) = (of(&trio.base), of(&trio.chat), of(&further), of(&trio.cp));
        for (i, found) in of(&output).into_iter().enumerate() {
            let expected = m[i] + 0.5 * (c[i] - b[i]) + 0.5 * (f[i] - c[i]);
            assert!((found - expected).abs() < 1e-6, "{order:?} {i}: {found} for {expected}");
        }
    }

    // A model that has other tokens there lacks the chat's.
    let mut other = trio;
    other.cp.set(TOKENS, Val::strs(["a", "b", "c", "d", "e", "<eos>", "<|mine0|>", "<|mine1|>"]));
    other.write(folder.path()).command(&out, &["--overwrite"]).says(4, &["lacks tokens", "<|im_start|>"]);
}

#[test]
fn without_embeddings_a_tokenizer_may_be_any() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let mut trio = Trio::small();
    trio.cp.set(TOKENS, Val::strs(["ru0", "ru1", "ru2", "ru3", "ru4", "<eos>", "<|im_start|>", "<|im_end|>"]));
    let mut spm = trio.clone();
    spm.cp.set("tokenizer.ggml.model", Val::str("llama"));
    spm.cp.set("tokenizer.ggml.scores", Val::Array(kind::F32, vec![Val::F32(0.0); 8]));
    for trio in [trio, spm] {
        let paths = trio.write(folder.path());
        paths.command(&out, &["--overwrite"]).says(4, &["tokens"]);
        let options = ["--embeddings", "skip", "--type", "F32", "--overwrite", "--special-tokens", "none"];
        paths.command(&out, &options).says(0, &["rows of embeddings stay the model's"]);
        let output = read(&out);
        for t in &output.tensors {
            let of = |draft: &Draft| weights(tensor(draft, name(t)));
            let (base, chat, cp) = (of(&trio.base), of(&trio.chat), of(&trio.cp));
            let is_kept = ["token_embd.weight", "output.weight", "rope_freqs.weight"].contains(&name(t));
            for ((found, m), (b, c)) in weights(t).iter().zip(&cp).zip(base.iter().zip(&chat)) {
                let expected = if is_kept { *m } else { m + (c - b) };
                assert!((found - expected).abs() < 1e-6, "{}", name(t));
            }
        }
        assert_eq!(texts(&output), texts(&trio.cp));
    }
    // The template's tokens are needed all the same.
    let mut lacking = Trio::small();
    lacking.cp.set(TOKENS, Val::strs(["ru0", "ru1", "ru2", "ru3", "ru4", "<eos>", "<x>", "<y>"]));
    let ran = lacking.write(folder.path()).command(&out, &["--embeddings", "skip", "--overwrite"]);
    ran.says(4, &["lacks tokens", "<|im_start|>"]);
}

#[test]
fn tokens_of_branches_that_no_conversation_reaches_are_told_and_not_demanded() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let mut trio = Trio::small();
    let template = format!("{{% if tools %}}<|call|>{{{{ tools }}}}{{% endif %}}{TEMPLATE}");
    let with = |last: &str| Val::strs(["a", "b", "c", "d", last, "<eos>", "<|im_start|>", "<|im_end|>"]);
    trio.chat.set("tokenizer.chat_template", Val::str(&template));
    trio.chat.set(TOKENS, with("<|call|>"));
    trio.chat.set(TYPES, Val::Array(kind::I32, [1, 1, 1, 1, 4, 3, 3, 3].map(Val::I32).to_vec()));
    let paths = trio.write(folder.path());
    paths.command(&out, &["--overwrite"]).says(0, &["lacks <|call|>", "around calls of tools", "--add-missing-tokens"]);
    assert_eq!(texts(&read(&out)), texts(&trio.cp));
    paths.command(&out, &["--overwrite", "--add-missing-tokens"]).says(0, &[]);
    assert_eq!(texts(&read(&out))[8], "<|call|>");

    // Of a template that is not rendered all that it writes is needed.
    trio.chat.set("tokenizer.chat_template", Val::str(&format!("{template}{{{{ 1 | no_such_filter }}}}")));
    let ran = trio.write(folder.path()).command(&out, &["--overwrite"]);
    ran.says(4, &["lacks tokens", "<|call|>"]);
}

#[test]
fn tokens_that_are_not_seen_are_quoted() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let mut trio = Trio::small();
    trio.chat.set(TOKENS, Val::strs(["a", "b", "c", "d", "    ", "<eos>", "<|im_start|>", "<|im_end|>"]));
    trio.chat.set(TYPES, Val::Array(kind::I32, [1, 1, 1, 1, 4, 3, 3, 3].map(Val::I32).to_vec()));
    trio.chat.set("tokenizer.chat_template", Val::str(&format!("x    y{TEMPLATE}")));
    trio.write(folder.path()).command(&out, &[]).says(4, &["lacks tokens", "'    '"]);
    assert!(!out.exists());
    // The same run of spaces as another converter writes it is the same token.
    trio.cp.set(TOKENS, Val::strs(["a", "b", "c", "d", "▁▁▁▁", "<eos>", "<|im_start|>", "<|im_end|>"]));
    trio.cp.set(TYPES, Val::Array(kind::I32, [1, 1, 1, 1, 4, 3, 3, 3].map(Val::I32).to_vec()));
    trio.base.set(TOKENS, get(&trio.cp, TOKENS).unwrap().clone());
    trio.base.set(TYPES, get(&trio.cp, TYPES).unwrap().clone());
    trio.write(folder.path()).command(&out, &["--type", "F32"]).says(0, &[]);
    are_sums_by_id("spaces", &read(&out), &trio);
}

#[test]
fn a_prompt_that_is_not_the_chats_is_shown() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let mut trio = Trio::bundled();
    let paths = trio.write(folder.path());
    let ran = paths.command(&out, &["--dry-run"]);
    assert!(!ran.says(0, &[]).err.contains("a prompt of the output"), "{ran:#?}");
    // The engine puts another token before the chat's prompts than before the model's.
    trio.chat.set("tokenizer.ggml.add_bos_token", Val::Bool(1));
    trio.chat.set("tokenizer.ggml.bos_token_id", Val::U32(765));
    trio.cp.set("tokenizer.ggml.bos_token_id", Val::U32(766));
    let begin = texts(&trio.chat)[765].clone();
    let ran = trio.write(folder.path()).command(&out, &["--dry-run"]);
    ran.says(0, &["a prompt of the output is not the chat's", &format!("[{begin}]"), "special tokens in brackets"]);
}

#[test]
fn what_llama_cpp_would_not_load_is_told() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let mut trio = Trio::small();
    trio.each(|draft| {
        draft.set("llama.block_count", Val::U32(2));
        draft.set("llama.context_length", Val::U64(64));
    });
    let words = ["llama.block_count promises 2 layers", "blk.1", "llama.context_length (uint64)"];
    trio.write(folder.path()).command(&out, &["--dry-run"]).says(0, &words);
    // A layer without heads and without a network has no tensors.
    trio.each(|draft| draft.set("llama.feed_forward_length", Val::Array(kind::I32, vec![Val::I32(256), Val::I32(0)])));
    let ran = trio.write(folder.path()).command(&out, &["--dry-run"]);
    assert!(!ran.says(0, &[]).err.contains("promises"), "{ran:#?}");
}

#[test]
fn tables_that_differ_are_refused_and_what_may_not_be_additive_is_told() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let add = |draft: &mut Draft, name: &str, ne: &[u64], values: &[f32]| {
        let mut tensor = Tensor::new(name, ne, F32);
        store(&mut tensor, F32, values);
        draft.tensors.push(tensor);
    };
    let mut trio = Trio::small();
    trio.each(|draft| {
        add(draft, "blk.0.ffn_gate_tid2eid.weight", &[2, 8], &[1.0; 16]);
        add(draft, "blk.0.mystery.weight", &[4], &[0.5; 4]);
        add(draft, "blk.0.attn_rot_embd.weight", &[4], &[0.5; 4]);
    });
    trio.chat.tensor("blk.0.mystery.weight").data = Some(0.75f32.to_le_bytes().repeat(4));
    trio.chat.tensor("blk.0.attn_rot_embd.weight").data = Some(0.75f32.to_le_bytes().repeat(4));
    let words = ["blk.0.mystery.weight", "may not be right", "no converter"];
    trio.write(folder.path()).command(&out, &["--overwrite"]).says(0, &words);
    let output = read(&out);
    assert_eq!(weights(tensor(&output, "blk.0.mystery.weight")), [0.75; 4]);
    assert_eq!(weights(tensor(&output, "blk.0.attn_rot_embd.weight")), [0.5; 4], "no weight");

    trio.chat.tensor("blk.0.ffn_gate_tid2eid.weight").data = Some(2f32.to_le_bytes().repeat(16));
    let paths = trio.write(folder.path());
    paths
        .command(&out, &["--overwrite"])
        .says(4, &["blk.0.ffn_gate_tid2eid.weight", "another table in chat", "--force"]);
    paths.command(&out, &["--overwrite", "--force"]).says(0, &["forced", "another table"]);
    assert_eq!(weights(tensor(&read(&out), "blk.0.ffn_gate_tid2eid.weight")), [1.0; 16]);
}

#[test]
fn keys_that_give_weights_another_meaning_are_refused() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    type Change = fn(&mut Trio);
    let cases: [(&str, Change); 4] = [
        ("llama.embedding_scale", |trio| {
            trio.base.set("llama.embedding_scale", Val::F32(1.0));
            trio.chat.set("llama.embedding_scale", Val::F32(12.0));
        }),
        ("llama.attention.scale", |trio| {
            trio.each(|draft| draft.set("llama.attention.scale", Val::F32(0.1)));
            trio.base.set("llama.attention.scale", Val::F32(0.2));
        }),
        ("llama.ssm.group_count", |trio| {
            trio.each(|draft| draft.set("llama.ssm.group_count", Val::U32(8)));
            trio.cp.set("llama.ssm.group_count", Val::U32(4));
        }),
        ("glm4.rope.dimension_sections", |trio| {
            trio.each(|draft| {
                draft.set("general.architecture", Val::str("glm4"));
                for (key, _) in &mut draft.keys {
                    if let Some(rest) = key.strip_prefix(b"llama.") {
                        *key = [b"glm4.", rest].concat();
                    }
                }
            });
            let sections = Val::Array(kind::I32, [8, 12, 12, 0].map(Val::I32).to_vec());
            trio.chat.set("glm4.rope.dimension_sections", sections);
        }),
    ];
    for (key, change) in cases {
        let mut trio = Trio::small();
        change(&mut trio);
        trio.write(folder.path()).command(&out, &[]).says(4, &[key, ".gguf"]);
        assert!(!out.exists(), "{key}");
    }
    // What the model alone has is the output's, and what one of base and chat lacks may be a default.
    let mut trio = Trio::small();
    trio.cp.set("llama.logit_scale", Val::F32(2.0));
    trio.chat.set("llama.residual_scale", Val::F32(0.5));
    trio.write(folder.path()).command(&out, &[]).says(0, &["llama.logit_scale"]);
}
