//! Base, chat and model in every order: the right one is merged, wrong ones are refused, and where
//! nothing tells chat and model apart, that is said.

use std::path::{Path, PathBuf};

use crate::support::{Draft, Val};
use crate::trio::{F16, Paths, Q4_K, Q8_0, Ran, TEMPLATE, Trio, change, chatvec, drifted, get, requantise, weights};

const KEY: &str = "tokenizer.chat_template";

/// Which of base, chat and cp stands for base, chat and model, the right order first.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// Who has the chat's template.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Templates {
    Chat,
    All,
    None,
}

/// The trio with templates in these files, and the same end token in all where that does not tell.
fn with_templates(mut trio: Trio, templates: Templates, same_end: bool) -> Trio {
    let template = get(&trio.chat, KEY).cloned().unwrap();
    let end = get(&trio.chat, "tokenizer.ggml.eos_token_id").cloned().unwrap();
    match templates {
        Templates::Chat => {}
        Templates::All => trio.each(|draft| draft.set(KEY, template.clone())),
        Templates::None => trio.chat.keys.retain(|(key, _)| key != KEY.as_bytes()),
    }
    if same_end {
        trio.each(|draft| draft.set("tokenizer.ggml.eos_token_id", end.clone()));
    }
    trio
}

/// A merge with the files in this order.
fn tried(paths: &Paths, order: [usize; 3]) -> Ran {
    let files = [&paths.base, &paths.chat, &paths.cp];
    let [base, chat, cp] = order.map(|i| -> PathBuf { files[i].clone() });
    let out = paths.base.with_file_name("out.gguf");
    Paths { base, chat, cp }.command(&out, &["--type", "F32", "--overwrite"])
}

const UNTOLD: &str = "which of chat and model is which could not be checked";

/// Panics unless the right order passes and the others are refused; with `is_untold`, chat and
/// model in each other's place pass too, and both that and the right order say that nothing tells
/// them apart.
#[track_caller]
fn assert_roles(what: &str, trio: &Trio, is_untold: bool) {
    let folder = tempfile::tempdir().unwrap();
    let paths = trio.write(folder.path());
    for (i, order) in ORDERS.into_iter().enumerate() {
        let ran = tried(&paths, order);
        let expected = if i == 0 || (is_untold && i == 1) { 0 } else { 4 };
        assert_eq!(ran.code, expected, "{what}, {order:?}: {}", ran.err);
        assert_eq!(ran.err.contains(UNTOLD), is_untold && i <= 1, "{what}, {order:?}: {}", ran.err);
    }
}

#[test]
fn every_wrong_order_of_the_bundled_models_is_refused_whoever_has_a_template() {
    for templates in [Templates::Chat, Templates::All, Templates::None] {
        for same_end in [false, true] {
            let trio = with_templates(Trio::bundled(), templates, same_end);
            // Without templates and with one end token nothing is left that a conversation alone
            // needs.
            let is_untold = templates == Templates::None && same_end;
            assert_roles(&format!("{templates:?}, same end: {same_end}"), &trio, is_untold);
        }
    }
}

#[test]
fn every_wrong_order_of_quantised_models_is_refused() {
    for ty in [Q8_0, Q4_K] {
        for templates in [Templates::Chat, Templates::All, Templates::None] {
            let mut trio = with_templates(Trio::bundled(), templates, false);
            trio.each(|draft| requantise(draft, ty));
            assert_roles(&format!("type {ty}, {templates:?}"), &trio, false);
        }
    }
}

#[test]
fn rounding_of_one_file_is_not_taken_for_what_it_learnt() {
    // The error of a base of four bits is in τ and in what the model learnt alike, and larger than
    // either.
    for types in [[Q4_K, F16, F16], [F16, Q4_K, F16], [F16, F16, Q4_K], [Q4_K, Q8_0, F16], [Q8_0, Q4_K, Q4_K]] {
        let mut trio = Trio::bundled();
        for (draft, ty) in [(&mut trio.base, types[0]), (&mut trio.chat, types[1]), (&mut trio.cp, types[2])] {
            requantise(draft, ty);
        }
        assert_roles(&format!("types {types:?}"), &trio, false);
    }
}

/// A trio whose chat and cp went these ways from the base, with templates everywhere.
fn apart(chat: f32, cp: f32, seed: u64) -> Trio {
    let base = Trio::small().base;
    let (chat, cp) = (drifted(&base, "chat", seed, chat), drifted(&base, "cp", seed + 1, cp));
    let mut trio = Trio { base, chat, cp };
    trio.each(|draft| draft.set(KEY, Val::str(TEMPLATE)));
    trio
}

#[test]
fn the_base_is_found_however_far_the_others_went_and_the_others_are_not_told_apart_by_it() {
    for (i, (chat, cp)) in
        [(0.002, 0.002), (0.002, 0.02), (0.0006, 0.0004), (0.006, 0.001), (0.01, 0.0012)].iter().enumerate()
    {
        assert_roles(&format!("chat {chat}, cp {cp}"), &apart(*chat, *cp, 60 + 2 * i as u64), true);
    }
}

/// Makes the rows of the tokens of the template those of the base again.
fn untrain(draft: &mut Draft, base: &mut Draft) {
    let base = weights(base.tensor("token_embd.weight"));
    change(draft.tensor("token_embd.weight"), |rows| rows[6 * 256..].copy_from_slice(&base[6 * 256..]));
}

#[test]
fn rows_of_special_tokens_tell_chat_from_model_where_templates_do_not() {
    let mut trio = apart(0.002, 0.005, 80);
    trio.each(|draft| draft.set("tokenizer.ggml.eos_token_id", Val::U32(7)));
    untrain(&mut trio.cp, &mut trio.base);
    assert_roles("untrained in cp", &trio, false);
    let folder = tempfile::tempdir().unwrap();
    let ran = tried(&trio.write(folder.path()), ORDERS[1]);
    ran.says(
        4,
        &["the model was trained on", "<|im_start|>", "on which chat was not", "model and chat may be swapped"],
    );
    // Of a chat whose embeddings were left as they are nothing is learnt.
    let base = trio.base.tensor("token_embd.weight").clone();
    *trio.chat.tensor("token_embd.weight") = base;
    assert_roles("frozen in chat", &trio, true);
}

#[test]
fn an_end_token_of_the_models_own_is_said() {
    let mut trio = apart(0.002, 0.005, 90);
    trio.chat.set("tokenizer.ggml.eos_token_id", Val::U32(7));
    let folder = tempfile::tempdir().unwrap();
    let paths = trio.write(folder.path());
    let ran = tried(&paths, ORDERS[0]);
    ran.says(0, &[]);
    assert!(!ran.err.contains(UNTOLD), "{}", ran.err);
    tried(&paths, ORDERS[1]).says(0, &[UNTOLD, "the model alone ends its answers with another token than base"]);
}

#[test]
fn a_model_that_has_the_vector_already_is_told_so() {
    let mut trio = Trio::small();
    let (base, chat) = (trio.base.clone(), trio.chat.clone());
    for (cp, (base, chat)) in trio.cp.tensors.iter_mut().zip(base.tensors.iter().zip(&chat.tensors)) {
        let (base, chat) = (weights(base), weights(chat));
        change(cp, |cp| cp.iter_mut().zip(base.iter().zip(&chat)).for_each(|(m, (b, c))| *m += c - b));
    }
    let folder = tempfile::tempdir().unwrap();
    let paths = trio.write(folder.path());
    tried(&paths, ORDERS[0]).says(4, &["nearer to chat than to base", "the model already has this vector"]);
    let out = folder.path().join("out.gguf");
    paths.command(&out, &["--force"]).says(0, &["warning: forced: "]);
    // A small part of it is no reason to refuse.
    let mut trio = Trio::small();
    for (cp, (base, chat)) in trio.cp.tensors.iter_mut().zip(base.tensors.iter().zip(&chat.tensors)) {
        let (base, chat) = (weights(base), weights(chat));
        change(cp, |cp| cp.iter_mut().zip(base.iter().zip(&chat)).for_each(|(m, (b, c))| *m += 0.3 * (c - b)));
    }
    tried(&trio.write(folder.path()), ORDERS[0]).is_quiet();
}

#[test]
fn chat_and_base_in_one_file_are_a_vector_of_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Trio::small().write(folder.path());
    let same = Paths { base: paths.base.clone(), chat: paths.base.clone(), cp: paths.cp.clone() };
    let ran = same.command(&folder.path().join("out.gguf"), &[]);
    ran.says(0, &["warning: chat and base hold the same weights", "warning: the vector is zero"]);
}

/// A patch of these two files, made whatever they are.
fn patch_of(folder: &Path, base: &Path, chat: &Path) -> PathBuf {
    let patch = folder.join("patch.gguf");
    let files = ["--base", base.to_str().unwrap(), "--chat", chat.to_str().unwrap(), "-o", patch.to_str().unwrap()];
    chatvec(["extract", "--force", "--overwrite", "-e", "f32"].into_iter().chain(files)).says(0, &[]);
    patch
}

/// Applies a patch.
fn applied(patch: &Path, model: &Path, out: &Path) -> Ran {
    let [patch, model, out] = [patch, model, out].map(|path| path.to_str().unwrap());
    chatvec(["apply", "--overwrite", "--type", "F32", "--model", model, patch, "-o", out])
}

#[test]
fn a_patch_in_a_wrong_role_is_refused_by_what_it_brings_of_its_base() {
    let folder = tempfile::tempdir().unwrap();
    let (paths, out) = (Trio::bundled().write(folder.path()), folder.path().join("out.gguf"));
    let files = [&paths.base, &paths.chat, &paths.cp];
    for [base, chat, model] in ORDERS {
        let patch = patch_of(folder.path(), files[base], files[chat]);
        let ran = applied(&patch, files[model], &out);
        let expected = if [base, chat, model] == ORDERS[0] { 0 } else { 4 };
        assert_eq!(ran.code, expected, "{base} {chat} {model}: {}", ran.err);
    }
}

#[test]
fn a_patch_is_not_applied_where_its_vector_is_already() {
    let folder = tempfile::tempdir().unwrap();
    let (paths, out) = (Trio::bundled().write(folder.path()), folder.path().join("out.gguf"));
    let patch = patch_of(folder.path(), &paths.base, &paths.chat);
    applied(&patch, &paths.chat, &out).says(4, &["the model already has this vector"]);
    applied(&patch, &paths.cp, &out).says(0, &[]);
    let twice = folder.path().join("twice.gguf");
    applied(&patch, &out, &twice).says(4, &["the model already has this vector"]);
    // Two patches, of which the second is one that the model has: named by its number.
    let [patch, model, twice] = [&patch, &out, &twice].map(|path| path.to_str().unwrap());
    let ran = chatvec(["apply", "--model", model, patch, &format!("{patch}@0.5"), "-o", twice]);
    ran.says(4, &["vector 2: the model is nearer to chat"]);
}
