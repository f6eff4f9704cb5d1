//! Models with different vocabularies: rows go with their tokens, as numpy says
//! (`fixtures/merge/vocabulary.json`), and special tokens come from the chat model.

use std::path::Path;

use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::support::{Draft, Tensor, Val, kind};
use crate::trio::{
    F16, F32, Q4_K, Ran, Trio, assert_same_tensors, change, chatvec, get, name, names, plus_zero, read, requantise,
    store, weights,
};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
pub(crate) const BY_TOKEN: [&str; 2] = ["token_embd.weight", "output.weight"];

fn texts(draft: &Draft) -> Vec<Vec<u8>> {
    let Some(Val::Array(_, values)) = get(draft, TOKENS) else { panic!("no tokens") };
    values.iter().map(|v| if let Val::Str(s) = v { s.clone() } else { panic!("{v:?}") }).collect()
}

fn types(draft: &Draft) -> Vec<i32> {
    let Some(Val::Array(_, values)) = get(draft, TYPES) else { panic!("no types") };
    values.iter().map(|v| if let Val::I32(n) = v { *n } else { panic!("{v:?}") }).collect()
}

fn set_tokens(draft: &mut Draft, texts: &[Vec<u8>], types: &[i32]) {
    draft.set(TOKENS, Val::strs(texts));
    draft.set(TYPES, Val::Array(kind::I32, types.iter().copied().map(Val::I32).collect()));
}

/// The model with these of its tokens in this order, and others behind them: rows halved of its
/// first ones, rows of zeros.
fn vary(draft: &mut Draft, order: &[usize], new: usize, padding: usize) {
    let (old_texts, old_types) = (texts(draft), types(draft));
    let mut texts: Vec<Vec<u8>> = order.iter().map(|&i| old_texts[i].clone()).collect();
    let mut types: Vec<i32> = order.iter().map(|&i| old_types[i]).collect();
    texts.extend((0..new).map(|k| format!("<neu_{k}>").into_bytes()));
    texts.extend((0..padding).map(|k| format!("[PAD{k}]").into_bytes()));
    types.extend([1].repeat(new));
    types.extend([5].repeat(padding));
    set_tokens(draft, &texts, &types);
    draft.keys.retain_mut(|(key, value)| match value {
        Val::U32(id) if key.ends_with(b"_token_id") => {
            let place = order.iter().position(|&i| i == *id as usize);
            place.is_some_and(|place| {
                *id = place as u32;
                true
            })
        }
        _ => true,
    });
    if get(draft, "llama.vocab_size").is_some() {
        draft.set("llama.vocab_size", Val::U32(texts.len() as u32));
    }
    for name in BY_TOKEN {
        let tensor = draft.tensor(name);
        let row_len = tensor.ne[0] as usize;
        let old = weights(tensor);
        let row = |i: usize| &old[i * row_len..(i + 1) * row_len];
        let mut rows: Vec<f32> = order.iter().flat_map(|&i| row(i).to_vec()).collect();
        let halves: Vec<f32> = rows[..new * row_len].iter().map(|w| w * 0.5).collect();
        rows.extend(halves);
        rows.resize(texts.len() * row_len, 0.0);
        tensor.ne[1] = texts.len() as u64;
        let ty = tensor.ty;
        store(tensor, ty, &rows);
    }
}

/// The tokens of the trio in the order of a file, by the rule of tests/peers/vocabulary.py.
fn places(rule: &Json, n: usize) -> Vec<usize> {
    let number = |i: usize| rule[i].as_u64().unwrap() as usize;
    match (rule.as_str(), rule[0].as_str()) {
        (Some("same"), _) => (0..n).collect(),
        (_, Some("without")) => (0..n).filter(|i| i % number(1) != number(2)).collect(),
        _ => (0..n).map(|i| (number(0) * i + number(1)) % n).collect(),
    }
}

fn variant(rules: &Json) -> Trio {
    let mut trio = Trio::bundled();
    for (draft, role) in [(&mut trio.base, "base"), (&mut trio.chat, "chat"), (&mut trio.cp, "cp")] {
        let order = places(&rules[role], 768);
        let count = |key: &str| if role == "cp" { rules[key].as_u64().unwrap() as usize } else { 0 };
        vary(draft, &order, count("new"), count("padding"));
    }
    trio
}

fn digest(tensor: &Tensor) -> String {
    let digest = Sha256::digest(plus_zero(tensor.ty, tensor.data()));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn goldens() -> Json {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/merge/vocabulary.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn rows_go_with_their_tokens_as_numpy_says_under_every_policy() {
    let goldens = goldens();
    for (variant_name, rules) in goldens["variants"].as_object().unwrap() {
        let folder = tempfile::tempdir().unwrap();
        let paths = variant(rules).write(folder.path());
        let out = folder.path().join("out.gguf");
        let merges: Vec<&Json> =
            goldens["merges"].as_array().unwrap().iter().filter(|merge| merge["variant"] == **variant_name).collect();
        assert!(merges.len() > 2);
        for merge in merges {
            let mut options = vec!["--overwrite", "--type", merge["type"].as_str().unwrap()];
            options.extend(merge["options"].as_array().unwrap().iter().map(|option| option.as_str().unwrap()));
            paths.command(&out, &options).says(0, &[]);
            let mut merged = read(&out);
            for (tensor, sha256) in merge["sha256"].as_object().unwrap() {
                assert_eq!(digest(merged.tensor(tensor)), *sha256, "{variant_name} {options:?}: {tensor}");
            }
        }
    }
}

/// A small trio whose cp has a token more and another order, and whose chat has another order
/// still.
fn shuffled() -> Trio {
    let mut trio = Trio::small();
    vary(&mut trio.chat, &[7, 6, 5, 4, 3, 2, 1, 0], 0, 0);
    vary(&mut trio.cp, &[3, 0, 6, 1, 7, 2, 5, 4], 1, 0);
    trio
}

fn merge(trio: &Trio, options: &[&str]) -> (tempfile::TempDir, Ran) {
    let folder = tempfile::tempdir().unwrap();
    let ran = trio.write(folder.path()).command(&folder.path().join("out.gguf"), options);
    (folder, ran)
}

#[test]
fn ids_of_the_chat_become_those_of_the_same_tokens() {
    let mut trio = shuffled();
    trio.chat.set("tokenizer.ggml.padding_token_id", Val::U32(2));
    let (folder, ran) = merge(&trio, &[]);
    ran.says(0, &["model has 9 tokens, base 8: 8 are in both", "rows are matched by their tokens, and the 1 without"]);
    let out = read(&folder.path().join("out.gguf"));
    let id = |key: &str| get(&out, &format!("tokenizer.ggml.{key}_token_id")).cloned();
    let at = |text: &[u8]| Some(Val::U32(texts(&out).iter().position(|t| t == text).unwrap() as u32));
    assert_eq!((id("eos"), id("padding")), (at(b"<|im_end|>"), at(b"<eos>")));
    assert_eq!(texts(&out), texts(&trio.cp), "the text vocabulary is the model's");
}

#[test]
fn a_token_that_is_special_in_chat_is_special_in_the_output() {
    let mut trio = shuffled();
    let tokens = texts(&trio.cp);
    set_tokens(&mut trio.cp, &tokens, &[1; 9]);
    let (folder, ran) = merge(&trio, &[]);
    ran.says(0, &[]);
    let out = read(&folder.path().join("out.gguf"));
    let special: Vec<Vec<u8>> =
        texts(&out).into_iter().zip(types(&out)).filter(|(_, ty)| *ty == 3).map(|t| t.0).collect();
    assert_eq!(special, [&b"<|im_start|>"[..], b"<|im_end|>", b"<eos>"]);
}

#[test]
fn a_chat_that_is_its_base_gives_the_model_back_whatever_the_order_of_tokens() {
    for ty in [F16, Q4_K] {
        let mut trio = shuffled();
        trio.chat = trio.base.clone();
        vary(&mut trio.chat, &[7, 6, 5, 4, 3, 2, 1, 0], 0, 0);
        trio.chat.set("tokenizer.chat_template", Val::str(crate::trio::TEMPLATE));
        requantise(&mut trio.cp, ty);
        let (folder, ran) = merge(&trio, &[]);
        ran.says(0, &["warning: the vector is zero"]);
        let (out, cp) = (read(&folder.path().join("out.gguf")), read(&folder.path().join("cp.gguf")));
        for (found, own) in out.tensors.iter().zip(&cp.tensors) {
            assert_eq!(found.data(), own.data(), "{}: the very bytes, −0 too", name(own));
        }
    }
}

#[test]
fn a_vector_and_its_negative_give_the_model_back_whatever_the_order_of_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = shuffled();
    requantise(&mut trio.cp, Q4_K);
    let paths = trio.write(folder.path());
    let patch = folder.path().join("patch.gguf");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (base, chat) = (text(&paths.base), text(&paths.chat));
    chatvec(["extract", "--base", &base, "--chat", &chat, "-o", &text(&patch), "--encoding", "f32"]).says(0, &[]);
    let out = text(&folder.path().join("out.gguf"));
    let (plus, minus) = (format!("{}@1", text(&patch)), format!("{}@-1", text(&patch)));
    let args = ["apply", "--model", &text(&paths.cp), &plus, &minus, "-o", &out, "--special-tokens", "none", "--force"];
    chatvec(args).says(0, &[]);
    assert_same_tensors(&read(Path::new(&out)), &read(&paths.cp));
}

#[test]
fn all_embeddings_are_refused_where_a_token_is_missing() {
    let (folder, ran) = merge(&shuffled(), &["--embeddings", "all"]);
    ran.says(4, &["1 of the 9 tokens of", "cp.gguf", "base.gguf", "\"<neu_0>\"", "--embeddings shared"]);
    assert_eq!(names(folder.path()), ["base.gguf", "chat.gguf", "cp.gguf"]);
    let mut trio = Trio::small();
    vary(&mut trio.cp, &[3, 0, 6, 1, 7, 2, 5, 4], 0, 0);
    merge(&trio, &["--embeddings", "all"]).1.says(0, &["8 of them at other places"]);
}

#[test]
fn vocabularies_of_another_family_are_refused() {
    let mut trio = Trio::small();
    let words = ["ha", "he", "hi", "ho", "hu", "<eos>", "<|im_start|>", "<|im_end|>"].map(|t| t.as_bytes().to_vec());
    set_tokens(&mut trio.cp, &words, &[1, 1, 1, 1, 1, 3, 3, 3]);
    let (folder, ran) = merge(&trio, &["--force"]);
    ran.says(4, &["only 3 of the 8 tokens of", "cp.gguf", "base.gguf", "no siblings"]);
    assert_eq!(names(folder.path()), ["base.gguf", "chat.gguf", "cp.gguf"]);
}

#[test]
fn a_tensor_that_has_not_a_row_for_each_token_is_refused() {
    let mut trio = Trio::small();
    let more = [&["a", "b", "c", "d", "e", "<eos>", "<|im_start|>", "<|im_end|>", "f"][..]].concat();
    trio.cp.set(TOKENS, Val::strs(more));
    trio.cp.set(TYPES, Val::Array(kind::I32, vec![Val::I32(1); 9]));
    let (_folder, ran) = merge(&trio, &[]);
    ran.says(3, &["cp.gguf", "token_embd.weight", "expected 9 rows, one for each token"]);
}

/// The trio without one of the chat's tokens in cp.
pub(crate) fn lacking() -> Trio {
    let mut trio = Trio::small();
    vary(&mut trio.cp, &[0, 1, 2, 3, 4, 5, 6], 0, 0);
    trio
}

#[test]
fn a_token_that_the_chat_needs_is_missed_or_added() {
    let (folder, ran) = merge(&lacking(), &[]);
    ran.says(4, &["cp.gguf lacks tokens that the chat of", "chat.gguf", "<|im_end|>", "--add-missing-tokens"]);
    assert_eq!(names(folder.path()), ["base.gguf", "chat.gguf", "cp.gguf"]);
    // Without special tokens it goes on, and says which key has no token.
    let (folder, ran) = merge(&lacking(), &["--special-tokens", "none"]);
    ran.says(0, &["tokenizer.ggml.eos_token_id"]);
    assert_eq!(texts(&read(&folder.path().join("out.gguf"))).len(), 7);

    let mut trio = lacking();
    trio.cp.set("llama.vocab_size", Val::U32(7));
    let scores = [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5];
    trio.cp.set("tokenizer.ggml.scores", Val::Array(kind::F32, scores.map(Val::F32).to_vec()));
    for ty in ["keep", "Q8_0"] {
        let (folder, ran) = merge(&trio, &["--add-missing-tokens", "--type", ty, "--json"]);
        let json = ran.says(0, &[]).json();
        let added: Vec<&Json> =
            json["special_tokens"].as_array().unwrap().iter().filter(|t| t["is_added"] == true).collect();
        assert_eq!((added.len(), &added[0]["text"], &added[0]["id"]), (1, &"<|im_end|>".into(), &7.into()));
        let mut out = read(&folder.path().join("out.gguf"));
        assert_eq!(texts(&out)[7], b"<|im_end|>");
        assert_eq!(types(&out)[7], 3);
        assert_eq!(get(&out, "llama.vocab_size"), Some(&Val::U32(8)));
        assert_eq!(get(&out, "tokenizer.ggml.eos_token_id"), Some(&Val::U32(7)));
        let Some(Val::Array(_, scores)) = get(&out, "tokenizer.ggml.scores") else { panic!("no scores") };
        assert_eq!((scores.len(), &scores[6], &scores[7]), (8, &Val::F32(6.5), &Val::F32(0.0)));
        let mut chat = read(&folder.path().join("chat.gguf"));
        for name in BY_TOKEN {
            assert_eq!(out.tensor(name).ne, [256, 8]);
            if ty == "keep" {
                let size = out.tensor(name).data().len() / 8;
                assert_eq!(out.tensor(name).data()[7 * size..], chat.tensor(name).data()[7 * size..]);
            }
        }
        chatvec(["inspect", folder.path().join("out.gguf").to_str().unwrap()]).says(0, &[]);
    }
}

#[test]
fn listed_tokens_are_taken_as_they_are_whatever_the_ratio() {
    let mut trio = shuffled();
    let (folder, ran) = merge(&trio, &["--special-tokens", "<|im_end|>,<eos>", "--ratio", "0.25"]);
    ran.says(0, &[]);
    let (mut out, mut chat) = (read(&folder.path().join("out.gguf")), read(&folder.path().join("chat.gguf")));
    let row = |draft: &mut Draft, tensor: &str, text: &[u8]| {
        let id = texts(draft).iter().position(|t| t == text).unwrap();
        draft.tensor(tensor).data()[id * 512..(id + 1) * 512].to_vec()
    };
    for tensor in BY_TOKEN {
        for text in [&b"<|im_end|>"[..], b"<eos>"] {
            assert_eq!(row(&mut out, tensor, text), row(&mut chat, tensor, text));
        }
        assert_ne!(row(&mut out, tensor, b"<|im_start|>"), row(&mut chat, tensor, b"<|im_start|>"));
    }
    let listed = get(&out, "chatvec.special_tokens");
    assert_eq!(listed, Some(&Val::strs(["<|im_end|>", "<eos>"])), "in the order of their ids");
    for (text, words) in [("nonsense", "\"nonsense\""), ("a", "no special token \"a\"")] {
        merge(&trio, &["--special-tokens", text]).1.says(2, &[words, "chat.gguf"]);
    }
    trio.chat.keys.retain(|(key, _)| !key.starts_with(b"tokenizer."));
    merge(&trio, &["--special-tokens", "auto"]).1.says(4, &["token_embd.weight"]);
}

#[test]
fn a_row_that_was_trained_is_a_sum_and_one_that_was_not_is_the_chat_models() {
    // Drift of every row is of one size; the row of <|im_end|> is the base's still.
    let mut trio = Trio::small();
    for name in BY_TOKEN {
        let base = weights(trio.base.tensor(name));
        change(trio.cp.tensor(name), |weights| weights[7 * 256..8 * 256].copy_from_slice(&base[7 * 256..8 * 256]));
    }
    let (folder, ran) = merge(&trio, &["--ratio", "0.5", "--json"]);
    let json = ran.says(0, &[]).json();
    let taken = &json["special_tokens"];
    assert_eq!((taken.as_array().unwrap().len(), &taken[0]["text"]), (1, &"<|im_end|>".into()));
    let (mut out, mut chat) = (read(&folder.path().join("out.gguf")), read(&folder.path().join("chat.gguf")));
    for name in BY_TOKEN {
        assert_eq!(out.tensor(name).data()[7 * 512..], chat.tensor(name).data()[7 * 512..]);
        assert_ne!(out.tensor(name).data()[6 * 512..7 * 512], chat.tensor(name).data()[6 * 512..7 * 512]);
    }
    // A tenth of what is usual is the bound.
    for (share, n) in [(0.05, 1), (0.2, 0)] {
        let mut trio = Trio::small();
        let base = weights(trio.base.tensor("token_embd.weight"));
        change(trio.cp.tensor("token_embd.weight"), |weights| {
            for (w, b) in weights[7 * 256..].iter_mut().zip(&base[7 * 256..]) {
                *w = b + (*w - b) * share;
            }
        });
        requantise(&mut trio.cp, F32);
        let json = merge(&trio, &["--json"]).1.json();
        assert_eq!(json["special_tokens"].as_array().unwrap().len(), n, "{share}");
    }
}

/// What an audit of a changed chat model says.
fn audit(spoil: impl FnOnce(&mut Draft)) -> Json {
    let folder = tempfile::tempdir().unwrap();
    let mut chat = Trio::bundled().chat;
    spoil(&mut chat);
    let path = chat.write(folder.path(), "chat.gguf");
    let args = ["inspect", "--chat", "--json", path.to_str().unwrap()];
    chatvec(args).says(0, &[]).json()["chat"].clone()
}

#[track_caller]
fn has_problem(audit: &Json, words: &[&str]) {
    let problems = audit["problems"].as_array().unwrap();
    let is_it = |problem: &&Json| words.iter().all(|word| problem.as_str().unwrap().contains(word));
    assert!(problems.iter().any(|problem| is_it(&problem)), "{words:?} in {problems:#?}");
}

#[test]
fn an_audit_says_what_the_chat_is_made_of() {
    let good = audit(|_| {});
    assert_eq!(good["problems"], serde_json::json!([]));
    assert_eq!((&good["templates"], &good["turn_end"]), (&serde_json::json!(["default"]), &"<|im_end|>".into()));
    assert!(good["prompt"].as_str().unwrap().ends_with("<|im_start|>assistant\n"));
    let needed: Vec<&Json> =
        good["tokens"].as_array().unwrap().iter().filter(|t| t["is_needed"] == true).map(|t| &t["text"]).collect();
    assert_eq!(needed, ["<|im_start|>", "<|im_end|>"]);

    has_problem(&audit(|d| d.keys.retain(|(k, _)| k != b"tokenizer.chat_template")), &["no chat template", "ChatML"]);
    let set = |template: &'static str| move |d: &mut Draft| d.set("tokenizer.chat_template", Val::str(template));
    has_problem(&audit(set("{{ messages | nothing }}")), &["nothing"]);
    has_problem(&audit(set("<|user|>{{ messages[0].content }}")), &["\"<|user|>\"", "looks like a special token"]);
    has_problem(
        &audit(|d| {
            let tokens = texts(d);
            let renamed: Vec<Vec<u8>> =
                tokens.into_iter().map(|t| if t == b"<|im_end|>" { b"<|fin|>".to_vec() } else { t }).collect();
            d.set(TOKENS, Val::strs(renamed));
            d.set("tokenizer.ggml.eos_token_id", Val::U32(765));
            let template = "{% for m in messages %}<|im_start|>{{ m.content }}<|fin|>{% endfor %}";
            d.set("tokenizer.chat_template", Val::str(template));
        }),
        &["ends an answer with \"<|fin|>\"", "does not stop", "eot_token_id to 767"],
    );
    has_problem(
        &audit(|d| change(d.tensor("token_embd.weight"), |weights| weights[767 * 256..].fill(0.0))),
        &["\"<|im_end|>\"", "looks untrained", "0.000 of the usual norm"],
    );
    let twin = |d: &mut Draft| {
        change(d.tensor("token_embd.weight"), |weights| weights.copy_within(766 * 256..767 * 256, 767 * 256));
    };
    has_problem(&audit(twin), &["\"<|im_end|>\"", "the row of \"<|im_start|>\""]);
}

#[test]
fn layers_for_further_tokens_have_rows_by_token_too() {
    let names = ["blk.0.nextn.embed_tokens.weight", "blk.0.nextn.shared_head_head.weight"];
    let mut trio = Trio::small();
    trio.each(|draft| {
        let like = draft.tensor("token_embd.weight").clone();
        for name in names {
            draft.tensors.push(Tensor { name: name.into(), ..like.clone() });
        }
    });
    // vary() moves rows of the embeddings alone; the others are copies of them.
    for (draft, order) in [(&mut trio.chat, [7, 6, 5, 4, 3, 2, 1, 0]), (&mut trio.cp, [3, 0, 6, 1, 7, 2, 5, 4])] {
        vary(draft, &order, 0, 0);
        let like = draft.tensor("token_embd.weight").clone();
        for name in names {
            *draft.tensor(name) = Tensor { name: name.into(), ..like.clone() };
        }
    }
    let (folder, ran) = merge(&trio, &[]);
    ran.says(0, &[]);
    let mut out = read(&folder.path().join("out.gguf"));
    let expected = out.tensor("token_embd.weight").data();
    for name in names {
        assert!(out.tensor(name).data() == expected, "{name}");
    }
}

#[test]
fn untrained_tokens_are_found_in_quantised_models_too() {
    for (ty, others) in [(12, F16), (12, 8), (12, 12), (13, 8), (14, F16), (8, 8), (10, F16)] {
        let mut trio = Trio::bundled();
        requantise(&mut trio.cp, ty);
        if others != F16 {
            requantise(&mut trio.base, others);
            requantise(&mut trio.chat, others);
        }
        let (_folder, ran) = merge(&trio, &["--dry-run", "--json"]);
        let json = ran.says(0, &[]).json();
        let taken: Vec<&Json> = json["special_tokens"].as_array().unwrap().iter().map(|t| &t["text"]).collect();
        assert_eq!(
            taken,
            ["<|im_start|>", "<|im_end|>"],
            "cp of type {ty}, others {others}: {}",
            json["special_tokens"]
        );
    }
}

#[test]
fn tokens_that_only_a_named_template_writes_are_needed_too() {
    let mut trio = lacking();
    trio.chat.set(
        "tokenizer.chat_template",
        Val::str("{% for m in messages %}<|im_start|>{{ m.content }}<eos>{% endfor %}"),
    );
    trio.chat.set("tokenizer.ggml.eos_token_id", Val::U32(5));
    merge(&trio, &[]).1.says(0, &[]);
    let with = |template: &str| {
        let mut trio = trio.clone();
        trio.chat.set("tokenizer.chat_template.tool_use", Val::str(template));
        merge(&trio, &[]).1
    };
    let shown = with("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}");
    shown.says(4, &["cp.gguf lacks tokens", "<|im_end|>"]);
    // No conversation without tools comes there.
    with("{% if tools %}<|im_end|>{% endif %}").says(0, &["lacks <|im_end|>", "around calls of tools"]);
    let broken = |d: &mut Draft| d.set("tokenizer.chat_template.tool_use", Val::str("{% if %}"));
    has_problem(&audit(broken), &["tokenizer.chat_template.tool_use", "does not render"]);
}

#[test]
fn an_untied_base_and_a_tied_chat_with_a_token_more_make_a_vector() {
    let mut trio = Trio::small();
    vary(&mut trio.chat, &[7, 6, 5, 4, 3, 2, 1, 0], 1, 0);
    trio.chat.tensors.retain(|t| t.name != b"output.weight");
    let folder = tempfile::tempdir().unwrap();
    let paths = trio.write(folder.path());
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let patch = text(&folder.path().join("patch.gguf"));
    let (base, chat) = (text(&paths.base), text(&paths.chat));
    chatvec(["extract", "--base", &base, "--chat", &chat, "-o", &patch, "--encoding", "f32"]).says(0, &[]);
    let mut patch = read(Path::new(&patch));
    // Base has no row for the ninth token.
    assert_eq!(patch.tensor("output.weight.rows").ne, [256, 8]);
    assert_eq!(get(&patch, "chatvec.patch.rows.output.weight"), Some(&Val::Array(4, (0..8).map(Val::U32).collect())));
    // Row 0 of chat is <|im_end|>, row 7 of base.
    let (chat, base) = (weights(trio.chat.tensor("token_embd.weight")), weights(trio.base.tensor("output.weight")));
    let found = weights(patch.tensor("output.weight.rows"));
    let expected: Vec<f32> = chat[..256].iter().zip(&base[7 * 256..]).map(|(c, b)| c - b).collect();
    assert_eq!(found[..256], expected[..]);
}

#[test]
fn tokens_cannot_be_added_where_a_tensor_would_lack_their_rows() {
    let mut trio = lacking();
    let like = trio.cp.tensor("token_embd.weight").clone();
    trio.cp.tensors.push(Tensor { name: "per_layer_token_embd.weight".into(), ..like });
    let (folder, ran) = merge(&trio, &["--add-missing-tokens"]);
    ran.says(5, &["cp.gguf", "per_layer_token_embd.weight"]);
    assert_eq!(names(folder.path()), ["base.gguf", "chat.gguf", "cp.gguf"]);
    merge(&lacking(), &["--add-missing-tokens", "--special-tokens", "none"]).1.says(2, &["add-missing-tokens"]);
}

#[test]
fn a_patch_gives_what_the_merge_gives_whatever_the_order_of_tokens() {
    let mut untrained = shuffled();
    // The row of <|im_end|> is the base's still, in cp at another place.
    for name in BY_TOKEN {
        let base = weights(untrained.base.tensor(name));
        change(untrained.cp.tensor(name), |cp| cp[4 * 256..5 * 256].copy_from_slice(&base[7 * 256..]));
    }
    let trios = [("shuffled", shuffled(), &[][..], 0), ("untrained", untrained, &[], 1)];
    let lacking = ("lacking", lacking(), &["--add-missing-tokens"][..], 1);
    for (what, trio, options, n_special) in trios.into_iter().chain([lacking]) {
        let folder = tempfile::tempdir().unwrap();
        let paths = trio.write(folder.path());
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let (patch, applied, merged) = (at("patch.gguf"), at("applied.gguf"), at("merged.gguf"));
        let sources = ["--base".to_owned(), text(&paths.base), "--chat".to_owned(), text(&paths.chat)];
        let extract = ["extract", "-e", "f32", "-o", &patch].into_iter().chain(sources.iter().map(String::as_str));
        chatvec(extract).says(0, &[]);
        for ratio in ["1", "0.3"] {
            let all = [&["--type", "Q8_0", "--overwrite", "--json"], options].concat();
            let patch = format!("{patch}@{ratio}");
            let cp = text(&paths.cp);
            let apply = ["apply", "--model", &cp, &patch, "-o", &applied].into_iter().chain(all.iter().copied());
            let ran = chatvec(apply);
            let json = ran.says(0, &[]).json();
            paths.command(Path::new(&merged), &[&all[..], &["--ratio", ratio]].concat()).says(0, &[]);
            assert_eq!(json["special_tokens"].as_array().unwrap().len(), n_special, "{what}");
            let (applied, merged) = (read(Path::new(&applied)), read(Path::new(&merged)));
            assert_same_tensors(&applied, &merged);
            let own =
                |(key, _): &&(Vec<u8>, Val)| !key.starts_with(b"chatvec.") && !key.starts_with(b"general.base_model.");
            let keys = |draft: &Draft| draft.keys.iter().filter(own).cloned().collect::<Vec<_>>();
            assert_eq!(keys(&applied), keys(&merged), "{what}");
        }
    }
}
