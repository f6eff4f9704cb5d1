//! What of a vector reaches the output: nothing where its ratio is 0, nothing at all where that is
//! everywhere, and of special tokens only what the chat learnt and the model did not. Expected
//! bytes are the model's own, or sums in f32 made here.

use std::path::Path;

use chatvec::plan::PRESETS;

use crate::support::{Draft, Val};
use crate::trio::{
    F16, F32, Noise, Paths, Q4_K, Q8_0, Ran, TEMPLATE, Trio, assert_same_tensors, change, chatvec, drifted, encode,
    get, name, read, requantise, store, weights,
};
use crate::vocabulary::{BY_TOKEN, lacking};

/// IQ4_NL and IQ4_XS, which need no importance.
const TYPES: [u32; 5] = [F16, Q8_0, Q4_K, 20, 23];

/// `<|im_start|>` and `<|im_end|>`.
const SPECIAL: [usize; 2] = [6, 7];

const OTHER_TEMPLATE: &str = "{% for m in messages %}<|im_start|>other{{ m.content }}<|im_end|>{% endfor %}";

/// A small trio whose cp nobody trained on the two tokens of the template, in this type.
fn untrained(ty: u32) -> Trio {
    let mut trio = Trio::small();
    for name in BY_TOKEN {
        let base = weights(trio.base.tensor(name));
        let rows = SPECIAL[0] * 256..(SPECIAL[1] + 1) * 256;
        change(trio.cp.tensor(name), |cp| cp[rows.clone()].copy_from_slice(&base[rows.clone()]));
    }
    requantise(&mut trio.cp, ty);
    trio
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// The vector as an f32 patch.
fn extract(paths: &Paths, patch: &Path) {
    let args = ["--base", &text(&paths.base), "--chat", &text(&paths.chat), "-o", &text(patch), "-e", "f32"];
    chatvec([&["extract", "--overwrite"], &args[..]].concat()).says(0, &[]);
}

/// Merges, applies the patch, and merges by a recipe, all with these options; what came of each.
/// `ratio` is the patch's.
fn three_ways(paths: &Paths, ratio: &str, options: &[&str], code: i32) -> Vec<(Ran, Option<Draft>)> {
    let folder = paths.cp.parent().unwrap();
    let at = |name: &str| text(&folder.join(name));
    let (patch, out) = (at("patch.gguf"), at("out.gguf"));
    let vector = format!("{patch}@{ratio}");
    let recipe = format!(
        "model = \"cp.gguf\"\n[[vector]]\nbase = \"base.gguf\"\nchat = \"chat.gguf\"\nratio = [{{ filter = \"*\", value = {ratio} }}]\n"
    );
    std::fs::write(at("recipe.toml"), recipe).unwrap();
    let (base, chat, cp) = (text(&paths.base), text(&paths.chat), text(&paths.cp));
    let merge = ["merge", "--base", &base, "--chat", &chat, "--model", &cp, "--ratio", ratio];
    let apply = ["apply", "--model", &cp, &vector];
    let by_recipe = ["merge", "--recipe", &at("recipe.toml")];
    let ways: [&[&str]; 3] = [&merge, &apply, &by_recipe];
    let run = |way: &&[&str]| {
        let ran = chatvec([*way, &["-o", &out, "--overwrite"][..], options].concat());
        ran.says(code, &[]);
        let draft = (code == 0).then(|| read(Path::new(&out)));
        (ran, draft)
    };
    ways.iter().map(run).collect()
}

/// Keys but those that say how the output was made.
fn own_keys(draft: &Draft) -> Vec<(String, Val)> {
    // Those of the types follow from these.
    let of_types = ["general.file_type", "general.quantization_version"];
    let is_own =
        |key: &str| !key.starts_with("chatvec.") && !key.starts_with("general.base_model.") && !of_types.contains(&key);
    let keys = draft.keys.iter().map(|(key, value)| (String::from_utf8(key.clone()).unwrap(), value.clone()));
    keys.filter(|(key, _)| is_own(key)).collect()
}

#[test]
fn nothing_of_a_vector_with_a_ratio_of_0_reaches_the_output() {
    let zero: [(&str, &[&str]); 8] = [
        ("0", &[]),
        ("-0.0", &["--method", "ties"]),
        ("0", &["--method", "dare_ties", "--density", "0.5"]),
        ("0", &["--add-missing-tokens"]),
        ("1", &["--ratio-for", ".=0"]),
        ("1", &["--ratio-gradient", "0"]),
        ("1", &["--lambda", "0"]),
        ("1", &["--method", "dare_linear", "--density", "0"]),
    ];
    for ty in TYPES {
        let folder = tempfile::tempdir().unwrap();
        let paths = untrained(ty).write(folder.path());
        extract(&paths, &folder.path().join("patch.gguf"));
        let cp = read(&paths.cp);
        for (ratio, options) in zero {
            for (way, (ran, out)) in three_ways(&paths, ratio, options, 0).into_iter().enumerate() {
                let out = out.unwrap();
                assert_same_tensors(&out, &cp);
                assert_eq!(own_keys(&out), own_keys(&cp), "type {ty}, way {way}, {options:?}");
                ran.says(0, &["note: the ratio of", "is 0 in every tensor", "nothing of it reaches the output"]);
                assert_eq!(get(&out, "chatvec.special_tokens"), None);
            }
        }
    }
}

#[test]
fn a_tensor_whose_ratio_is_0_keeps_the_models_bytes_under_every_preset() {
    let is_embedding = |name: &str| BY_TOKEN.contains(&name);
    let is_zero = |preset: &str, name: &str| match preset {
        // The small model has one layer, which is the first and the last.
        "keep-language-ends" => name != "output_norm.weight",
        "attention-only" => !["attn_q", "attn_k", "attn_v", "attn_output"].iter().any(|part| name.contains(part)),
        "skip-norms" => name.contains("norm"),
        "skip-embeddings" => is_embedding(name),
        "elchat-ends" => !name.starts_with("blk."),
        other => panic!("what does {other} leave out?"),
    };
    for ty in [F16, Q4_K, 20] {
        let folder = tempfile::tempdir().unwrap();
        let paths = untrained(ty).write(folder.path());
        extract(&paths, &folder.path().join("patch.gguf"));
        let (cp, chat) = (read(&paths.cp), read(&paths.chat));
        for preset in PRESETS.map(|preset| preset.name) {
            for (ran, out) in three_ways(&paths, "0.5", &["--preset", preset, "--on-loss", "warn"], 0) {
                let out = out.unwrap();
                for (found, own) in
                    out.tensors.iter().zip(&cp.tensors).filter(|(_, own)| own.name != b"rope_freqs.weight")
                {
                    let is_same = found.data() == own.data();
                    assert_eq!(is_same, is_zero(preset, name(own)), "type {ty}, {preset}: {}", name(own));
                }
                // The vector reaches other tensors, and the chat comes with it.
                assert_eq!(get(&out, "tokenizer.chat_template"), Some(&Val::str(TEMPLATE)), "{preset}");
                assert_eq!(get(&out, "tokenizer.ggml.eos_token_id"), Some(&Val::U32(7)), "{preset}");
                let is_kept = BY_TOKEN.iter().all(|name| is_zero(preset, name));
                let listed = get(&out, "chatvec.special_tokens");
                assert_eq!(listed.is_none(), is_kept, "{preset}");
                if is_kept {
                    ran.says(0, &["note: the ratio is 0 in token_embd.weight and output.weight"]);
                    ran.says(0, &["--special-tokens '<|im_start|>,<|im_end|>'"]);
                } else if ty == F16 {
                    assert_special_rows(&out, &chat, &SPECIAL);
                }
            }
        }
    }
}

/// Panics unless these rows of the embeddings are chat's, byte for byte, in files of halves.
#[track_caller]
fn assert_special_rows(out: &Draft, chat: &Draft, rows: &[usize]) {
    for name in BY_TOKEN {
        let data = |draft: &Draft| draft.clone().tensor(name).data();
        for row in rows {
            assert_eq!(
                data(out)[row * 512..(row + 1) * 512],
                data(chat)[row * 512..(row + 1) * 512],
                "{name}: row {row}"
            );
        }
    }
}

#[test]
fn tokens_that_are_asked_for_by_their_texts_come_from_chat_also_where_the_ratio_is_0() {
    let folder = tempfile::tempdir().unwrap();
    let paths = untrained(F16).write(folder.path());
    extract(&paths, &folder.path().join("patch.gguf"));
    let (cp, chat) = (read(&paths.cp), read(&paths.chat));
    let options = ["--preset", "skip-embeddings", "--special-tokens", "<|im_end|>"];
    for (_, out) in three_ways(&paths, "0.5", &options, 0) {
        let out = out.unwrap();
        assert_special_rows(&out, &chat, &[7]);
        for name in BY_TOKEN {
            let data = |draft: &Draft| draft.clone().tensor(name).data();
            assert_eq!(data(&out)[..7 * 512], data(&cp)[..7 * 512], "{name}: all other rows are the model's");
        }
        assert_eq!(get(&out, "chatvec.special_tokens"), Some(&Val::strs(["<|im_end|>"])));
    }
    // Of a vector of which nothing is to reach the output, no rows can be asked for.
    for (ran, _) in three_ways(&paths, "0", &["--special-tokens", "<|im_end|>"], 2) {
        ran.says(2, &["--special-tokens", "ratio of every vector is 0"]);
    }
}

#[test]
fn embeddings_that_are_skipped_still_get_the_rows_of_special_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let paths = untrained(F16).write(folder.path());
    extract(&paths, &folder.path().join("patch.gguf"));
    let (cp, chat) = (read(&paths.cp), read(&paths.chat));
    for (_, out) in three_ways(&paths, "1", &["--embeddings", "skip"], 0) {
        assert_special_rows(&out.unwrap(), &chat, &SPECIAL);
    }
    // But for those whose ratio is 0.
    for (_, out) in three_ways(&paths, "1", &["--embeddings", "skip", "--preset", "skip-embeddings"], 0) {
        assert_special_rows(&out.unwrap(), &cp, &[0, 1, 2, 3, 4, 5, 6, 7]);
    }
}

#[test]
fn a_chat_that_is_its_base_gives_the_models_tensors_whatever_their_type() {
    let methods: [&[&str]; 4] = [
        &[],
        &["--method", "ties", "--density", "0.4"],
        &["--method", "dare_linear", "--density", "0.5"],
        &["--special-tokens", "auto", "--on-loss", "promote"],
    ];
    for ty in TYPES.into_iter().chain([F32, 21]) {
        let folder = tempfile::tempdir().unwrap();
        let mut trio = untrained(ty);
        trio.chat.tensors.clone_from(&trio.base.tensors);
        let paths = trio.write(folder.path());
        extract(&paths, &folder.path().join("patch.gguf"));
        for options in methods {
            for (_, out) in three_ways(&paths, "1", options, 0) {
                let out = out.unwrap();
                assert_same_tensors(&out, &trio.cp);
                assert_eq!(get(&out, "tokenizer.chat_template"), Some(&Val::str(TEMPLATE)), "its ratio is not 0");
                assert_eq!(get(&out, "chatvec.special_tokens"), None);
            }
        }
    }
}

#[test]
fn the_chat_is_that_of_the_first_vector_whose_ratio_is_not_0() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = untrained(F16);
    trio.chat.set("general.name", Val::str("first"));
    let paths = trio.write(folder.path());
    let mut second = drifted(&trio.base, "second", 41, 0.002);
    second.set("tokenizer.chat_template", Val::str(OTHER_TEMPLATE));
    second.set("tokenizer.ggml.eos_token_id", Val::U32(6));
    let second = second.write(folder.path(), "second.gguf");
    let patches = ["one.gguf", "two.gguf"].map(|name| folder.path().join(name));
    for (chat, patch) in [&paths.chat, &second].into_iter().zip(&patches) {
        let paths = Paths { base: paths.base.clone(), chat: chat.clone(), cp: paths.cp.clone() };
        extract(&paths, patch);
    }
    let (out, cp) = (text(&folder.path().join("out.gguf")), text(&paths.cp));
    let vectors = [&paths.chat, &second].map(|chat| format!("{}:{}", text(&paths.base), text(chat)));
    let patches = patches.map(|patch| text(&patch));
    for (ratios, template, eos, taken_from) in [
        (["0", "0.5"], Some(OTHER_TEMPLATE), 6, Some(&second)),
        (["0.5", "0"], Some(TEMPLATE), 7, Some(&paths.chat)),
        (["0.5", "0.5"], Some(TEMPLATE), 7, Some(&paths.chat)),
        (["0", "0"], None, 5, None),
    ] {
        let merged = std::iter::zip(&vectors, ratios).map(|(v, r)| format!("{v}@{r}")).collect::<Vec<_>>();
        let applied = std::iter::zip(&patches, ratios).map(|(v, r)| format!("{v}@{r}")).collect::<Vec<_>>();
        let merge =
            ["merge", "--model", &cp, "--vector", &merged[0], "--vector", &merged[1], "-o", &out, "--overwrite"];
        let apply = ["apply", "--model", &cp, &applied[0], &applied[1], "-o", &out, "--overwrite"];
        for args in [&merge[..], &apply] {
            chatvec(args).says(0, &[]);
            let found = read(Path::new(&out));
            assert_eq!(get(&found, "tokenizer.chat_template").cloned(), template.map(Val::str), "{ratios:?}");
            assert_eq!(get(&found, "tokenizer.ggml.eos_token_id"), Some(&Val::U32(eos)), "{ratios:?}");
            let rows_of = taken_from.unwrap_or(&paths.cp);
            assert_special_rows(&found, &read(rows_of), &SPECIAL);
        }
    }
}

#[test]
fn tokens_are_added_with_chats_rows_also_where_the_ratio_is_0_and_the_others_keep_their_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let trio = lacking();
    let paths = trio.write(folder.path());
    extract(&paths, &folder.path().join("patch.gguf"));
    let (mut cp, mut chat) = (read(&paths.cp), read(&paths.chat));
    for (_, out) in three_ways(&paths, "0.5", &["--preset", "skip-embeddings", "--add-missing-tokens"], 0) {
        let mut out = out.unwrap();
        for name in BY_TOKEN {
            assert_eq!(out.tensor(name).ne, [256, 8]);
            assert_eq!(out.tensor(name).data()[..7 * 512], cp.tensor(name).data(), "{name}");
            assert_eq!(out.tensor(name).data()[7 * 512..], chat.tensor(name).data()[7 * 512..], "{name}");
        }
    }
}

#[test]
fn a_vector_from_the_model_itself_is_a_blend_of_all_rows_by_the_ratio() {
    let folder = tempfile::tempdir().unwrap();
    let trio = Trio::small();
    let paths = trio.write(folder.path());
    // The same bytes under another name are the model too.
    let copy = folder.path().join("copy.gguf");
    std::fs::copy(&paths.cp, &copy).unwrap();
    let (out, cp) = (text(&folder.path().join("out.gguf")), text(&paths.cp));
    for base in [&paths.cp, &copy] {
        let vector = format!("{}:{}@0.3", text(base), text(&paths.chat));
        let ran = chatvec(["merge", "--vector", &vector, "--model", &cp, "-o", &out, "--overwrite", "--json"]);
        ran.says(0, &["note: the base of the vector is the model itself", "a blend of the model and chat"]);
        assert!(!ran.err.contains("the result is chat itself"), "{}", ran.err);
        assert_eq!(ran.json()["special_tokens"], serde_json::json!([]));
        let found = read(Path::new(&out));
        for (i, found) in found.tensors.iter().enumerate().filter(|(_, t)| t.name != b"rope_freqs.weight") {
            let (cp, chat) = (weights(&trio.cp.tensors[i]), weights(&trio.chat.tensors[i]));
            let blend: Vec<f32> = cp.iter().zip(&chat).map(|(m, c)| m + 0.3f32 * (c - m)).collect();
            assert_eq!(weights(found), crate::trio::decode(found.ty, &encode(found.ty, &blend)), "{}", name(found));
        }
    }
}

#[test]
fn a_blend_that_leaves_the_embeddings_out_says_how_to_get_the_chats_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Trio::small().write(folder.path());
    let (out, cp) = (text(&folder.path().join("out.gguf")), text(&paths.cp));
    let vector = format!("{cp}:{}", text(&paths.chat));
    let args = ["merge", "--vector", &vector, "--model", &cp, "--preset", "elchat-ends", "-o", &out, "--overwrite"];
    let ran = chatvec(args);
    ran.says(
        0,
        &["note: the ratio is 0 in token_embd.weight and output.weight", "--special-tokens '<|im_start|>,<|im_end|>'"],
    );
    assert!(!ran.err.contains("nobody trained") && !ran.err.contains("warning: the ratio"), "{}", ran.err);
    let (found, own, chat) = (read(Path::new(&out)), read(&paths.cp), read(&paths.chat));
    assert_special_rows(&found, &own, &[0, 1, 2, 3, 4, 5, 6, 7]);
    chatvec([&args[..], &["--special-tokens", "<|im_start|>,<|im_end|>"]].concat()).says(0, &[]);
    let found = read(Path::new(&out));
    assert_special_rows(&found, &own, &[0, 1, 2, 3, 4, 5]);
    assert_special_rows(&found, &chat, &SPECIAL);
}

#[test]
fn output_rows_of_an_untied_model_are_held_against_the_tied_embeddings_of_its_base() {
    let mut trio = untrained(F16);
    // The output began as the embeddings, and all of its rows were trained, those of the template
    // too.
    let start = weights(trio.base.tensor("token_embd.weight"));
    let mut noise = Noise(51);
    let trained: Vec<f32> = start.iter().map(|w| w + noise.normal() * 0.005).collect();
    store(trio.cp.tensor("output.weight"), F16, &trained);
    for draft in [&mut trio.base, &mut trio.chat] {
        draft.tensors.retain(|t| t.name != b"output.weight");
    }
    let folder = tempfile::tempdir().unwrap();
    let paths = trio.write(folder.path());
    extract(&paths, &folder.path().join("patch.gguf"));
    let chat = weights(trio.chat.tensor("token_embd.weight"));
    let cp = weights(trio.cp.tensor("output.weight"));
    let sums: Vec<f32> = (0..cp.len()).map(|i| cp[i] + 0.5f32 * (chat[i] - start[i])).collect();
    for (_, out) in three_ways(&paths, "0.5", &[], 0) {
        let mut out = out.unwrap();
        let rows = SPECIAL[0] * 512..(SPECIAL[1] + 1) * 512;
        assert_eq!(out.tensor("output.weight").data()[rows.clone()], encode(F16, &sums)[rows.clone()]);
        let chats = trio.chat.tensor("token_embd.weight").data();
        assert_eq!(out.tensor("token_embd.weight").data()[rows.clone()], chats[rows]);
    }
}

#[test]
fn a_ratio_far_beyond_what_is_usual_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Trio::small().write(folder.path());
    let out = folder.path().join("out.gguf");
    for (options, is_said) in [
        (&["--ratio", "100"][..], true),
        (&["--ratio", "-3.5"], true),
        (&["--ratio-for", "attn_q=40"], true),
        (&["--ratio", "2", "--lambda", "2"], true),
        (&["--ratio", "3"], false),
        (&["--ratio", "10", "--method", "ties"], false),
    ] {
        let ran = paths.command(&out, &[options, &["--overwrite", "--type", "F32"]].concat());
        ran.says(0, &[]);
        assert_eq!(ran.err.contains("far beyond what is usual"), is_said, "{options:?}: {}", ran.err);
    }
}

#[test]
fn tokens_that_a_silent_chat_would_need_are_not_missed() {
    // The end token of a silent chat is not in the model: nothing is missing.
    let folder = tempfile::tempdir().unwrap();
    let trio = lacking();
    let paths = trio.write(folder.path());
    extract(&paths, &folder.path().join("patch.gguf"));
    let cp = read(&paths.cp);
    for (_, out) in three_ways(&paths, "0", &[], 0) {
        let out = out.unwrap();
        assert_same_tensors(&out, &cp);
        assert_eq!(own_keys(&out), own_keys(&cp));
    }
}
