//! Recipes: several vectors, ratios by tensor, mergekit's methods against mergekit's own results
//! (`fixtures/recipe`), and files that reproduce a run.

use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::support::{Draft, Tensor, Val};
use crate::trio::{
    F32, Paths, Ran, TEMPLATE, Trio, bundled, change, chatvec, command, drifted, encode, get, name, plus_zero, read,
    requantise, store, weights,
};

/// Runs `chatvec merge`.
fn merge(args: &[&str], out: &Path) -> Ran {
    let out = out.to_str().unwrap();
    chatvec(["merge", "-o", out, "--overwrite"].iter().chain(args))
}

fn digest(tensor: &Tensor) -> String {
    let digest = Sha256::digest(plus_zero(tensor.ty, tensor.data()));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The recipes that `tests/peers/mergekit.py --goldens` ran with mergekit, and what came of them.
fn goldens() -> serde_json::Map<String, serde_json::Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/recipe/expected.json");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// Writes a golden recipe for the bundled models, in float32.
fn write_golden(golden: &serde_json::Value, folder: &Path) -> String {
    let mut text = golden["recipe"].as_str().unwrap().to_owned();
    for (name, file) in [("base.gguf", "base"), ("chat.gguf", "chat"), ("cp.gguf", "cp-de")] {
        text = text.replace(name, bundled(file).to_str().unwrap());
    }
    let path = folder.join("recipe.yml");
    fs::write(&path, text + "dtype: float32\n").unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn recipes_of_mergekit_give_mergekits_weights() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let goldens = goldens();
    assert!(goldens.len() > 8);
    for (i, (what, golden)) in goldens.iter().enumerate() {
        let recipe = write_golden(golden, folder.path());
        // Another number of threads and another budget for each.
        let (threads, memory) = ([1, 2, 4][i % 3].to_string(), ["4MiB", "64MiB", "8MiB", "1GiB"][i % 4]);
        merge(&["--recipe", &recipe, "--threads", &threads, "--memory", memory], &out).says(0, &[]);
        let found = read(&out);
        let expected = golden["sha256"].as_object().unwrap();
        assert_eq!(found.tensors.len(), expected.len(), "{what}");
        let differ: Vec<&str> = found.tensors.iter().filter(|t| expected[name(t)] != *digest(t)).map(name).collect();
        assert!(differ.is_empty(), "{what}: {differ:?}");
    }
}

#[test]
fn files_are_the_same_for_any_threads_and_memory() {
    let folder = tempfile::tempdir().unwrap();
    let goldens = goldens();
    for what in ["ties-rescaled", "dare-ties", "linear"] {
        let recipe = write_golden(&goldens[what], folder.path());
        let files = [("1", "4MiB"), ("2", "1GiB"), ("4", "10MiB")].map(|(threads, memory)| {
            let out = folder.path().join("out.gguf");
            let args = ["--recipe", &recipe, "--type", "Q4_K_M", "--threads", threads, "--memory", memory];
            let ran = merge(&args, &out);
            assert!([0, 10].contains(&ran.code), "{ran:#?}");
            fs::read(out).unwrap()
        });
        assert!(files[0] == files[1] && files[0] == files[2], "{what}");
    }
}

/// Two vectors on the small model: the trio's own, and another chat model of another base.
struct Several {
    trio: Trio,
    base: Draft,
    chat: Draft,
}

impl Several {
    fn new() -> Several {
        let trio = Trio::small();
        let base = drifted(&trio.base, "other base", 11, 0.001);
        let mut chat = drifted(&base, "other chat", 12, 0.002);
        chat.set("tokenizer.chat_template", Val::str(TEMPLATE));
        Several { trio, base, chat }
    }

    fn write(&self, folder: &Path) -> Paths {
        self.base.write(folder, "base-2.gguf");
        self.chat.write(folder, "chat-2.gguf");
        self.trio.write(folder)
    }

    /// The output, where ratios depend on the tensor's name.
    fn expected(&self, ratios: impl Fn(&str) -> (f32, f32)) -> Draft {
        let mut expected = self.trio.cp.clone();
        for (i, tensor) in expected.tensors.iter_mut().enumerate().filter(|(_, t)| t.name != b"rope_freqs.weight") {
            let of = |draft: &Draft| weights(&draft.tensors[i]);
            let (one, two) = ratios(name(tensor));
            let cp = of(&self.trio.cp);
            let (chat, base) = (of(&self.trio.chat), of(&self.trio.base));
            let (chat_2, base_2) = (of(&self.chat), of(&self.base));
            let delta = |k: usize| match (one, two) {
                (one, 0.0) => one * (chat[k] - base[k]),
                (0.0, two) => two * (chat_2[k] - base_2[k]),
                _ => one * (chat[k] - base[k]) + two * (chat_2[k] - base_2[k]),
            };
            let sums: Vec<f32> = (0..cp.len()).map(|k| cp[k] + delta(k)).collect();
            if (one, two) != (0.0, 0.0) {
                let ty = tensor.ty;
                store(tensor, ty, &sums);
            }
        }
        expected
    }
}

#[track_caller]
fn assert_tensors(found: &Draft, expected: &Draft) {
    assert_eq!(found.tensors.len(), expected.tensors.len());
    for (found, expected) in found.tensors.iter().zip(&expected.tensors) {
        assert_eq!(digest(found), digest(expected), "{}", name(expected));
    }
}

/// `--vector`, for files of this folder.
fn vector(folder: &Path, base: &str, chat: &str, ratio: &str) -> String {
    format!("{}:{}@{ratio}", folder.join(base).display(), folder.join(chat).display())
}

#[test]
fn several_vectors_are_added_in_their_order_each_from_its_own_base() {
    let folder = tempfile::tempdir().unwrap();
    let (several, at) = (Several::new(), folder.path());
    let paths = several.write(at);
    let out = at.join("out.gguf");
    let (one, two) = (vector(at, "base.gguf", "chat.gguf", "0.7"), vector(at, "base-2.gguf", "chat-2.gguf", "-0.3"));
    let model = paths.cp.to_str().unwrap();
    merge(&["--model", model, "--vector", &one, "--vector", &two], &out).says(0, &[]);
    assert_tensors(&read(&out), &several.expected(|_| (0.7, -0.3)));

    // The same from patches, of which the first has lost nothing.
    for (base, chat, patch) in [("base", "chat", "one"), ("base-2", "chat-2", "two")] {
        let path = |name: &str| at.join(format!("{name}.gguf")).display().to_string();
        let args = ["extract", "--base", &path(base), "--chat", &path(chat), "-o", &path(patch), "--encoding", "f32"];
        chatvec(args).says(0, &[]);
    }
    let patches =
        [at.join("one.gguf").display().to_string() + "@0.7", at.join("two.gguf").display().to_string() + "@-0.3"];
    let both = at.join("both.gguf");
    merge(&["--model", model, "--vector", &patches[0], "--vector", &patches[1]], &both).says(0, &[]);
    assert_tensors(&read(&both), &read(&out));
    let applied =
        chatvec(["apply", "--model", model, &patches[0], &patches[1], "-o", both.to_str().unwrap(), "--overwrite"]);
    applied.says(0, &[]);
    assert_tensors(&read(&both), &read(&out));
}

#[test]
fn ratios_depend_on_the_tensor_and_one_of_0_keeps_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (several, at) = (Several::new(), folder.path());
    let paths = several.write(at);
    let out = at.join("out.gguf");
    let (one, two) = (vector(at, "base.gguf", "chat.gguf", "0.5"), vector(at, "base-2.gguf", "chat-2.gguf", "2"));
    let model = paths.cp.to_str().unwrap();
    let vectors = ["--model", model, "--vector", &one, "--vector", &two];
    let rules =
        ["--preset", "skip-norms", "--ratio-for", "ffn_up=0", "--ratio-for", "ffn=0.5", "--ratio-for", "output_norm=1"];
    merge(&[&vectors[..], &rules[..]].concat(), &out).says(0, &[]);
    let factor = |name: &str| match name {
        "blk.0.ffn_up.weight" => 0.0,
        // A rule stands before the preset that would leave norms out.
        "output_norm.weight" => 1.0,
        _ if name.contains("ffn") => 0.5,
        _ if name.contains("norm") => 0.0,
        _ => 1.0,
    };
    assert_tensors(&read(&out), &several.expected(|name| (0.5 * factor(name), 2.0 * factor(name))));

    let ran = merge(&[&vectors[..], &rules[..], &["--dry-run", "--json"]].concat(), &out);
    let plan = ran.says(0, &[]).json();
    let of = |name: &str| plan["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap().clone();
    assert_eq!(of("blk.0.ffn_up.weight")["kept"], "ratio_zero");
    assert_eq!(of("blk.0.ffn_norm.weight")["ratios"][1]["ratio"], 1.0);
    assert_eq!((&plan["method"]["name"], &plan["method"]["passes"]), (&"task_arithmetic".into(), &1.into()));
    let parts = plan["method"]["ratios"].as_array().unwrap();
    let norms = parts.iter().find(|part| part["part"] == "norms").unwrap();
    assert_eq!(norms["ratios"], serde_json::json!([[0.0, 0.5], [0.0, 2.0]]));

    let ran = merge(&[&vectors[..], &["--ratio-for", "ffn_upp=0.5"]].concat(), &out);
    ran.says(2, &["ffn_upp", "ffn_up", "attn_q"]);
    merge(&[&vectors[..], &["--ratio-for", "(=1"]].concat(), &out).says(2, &["(=1", "REGEX=R"]);
    merge(&[&vectors[..], &["--preset", "all"]].concat(), &out).says(2, &["attention-only", "elchat-ends"]);
    merge(&[&vectors[..], &["--ratio", "0.5"]].concat(), &out).says(1, &["--ratio", "BASE:CHAT@R"]);
}

#[test]
fn a_ratio_of_0_everywhere_is_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Trio::small().write(folder.path());
    let out = folder.path().join("out.gguf");
    for options in [&["--ratio", "0"][..], &["--ratio-gradient", "0,0"], &["--ratio-for", ".=0", "--method", "ties"]] {
        paths.command(&out, &[options, &["--overwrite"]].concat()).says(0, &["nothing was added"]);
        assert_tensors(&read(&out), &read(&paths.cp));
    }
}

/// The recipe that an output holds.
fn stored(path: &Path) -> String {
    match get(&read(path), "chatvec.recipe") {
        Some(Val::Str(text)) => String::from_utf8(text.clone()).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_an_output_says_of_itself_makes_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let paths = Several::new().write(at);
    let (out, again) = (at.join("out.gguf"), at.join("again.gguf"));
    let (one, two) = (vector(at, "base.gguf", "chat.gguf", "0.5"), vector(at, "base-2.gguf", "chat-2.gguf", "2"));
    let model = paths.cp.to_str().unwrap();
    let options = [
        "--model",
        model,
        "--vector",
        &one,
        "--vector",
        &two,
        "--method",
        "dare_ties",
        "--density",
        "0.4",
        "--dare-seed",
        "3",
        "--normalize",
        "true",
        "--lambda",
        "0.9",
        "--ratio-for",
        "attn_v=0.5",
        "--ratio-gradient",
        "0.5,1",
        "--preset",
        "skip-norms",
        "--embeddings",
        "skip",
        "--type",
        "Q8_0",
        "--tensor-type",
        "attn_q=Q6_K",
    ];
    merge(&options, &out).says(0, &[]);
    let text = stored(&out);
    assert!(!text.contains(at.to_str().unwrap()), "a path: {text}");
    let recipe = at.join("recipe.toml");
    fs::write(&recipe, &text).unwrap();
    for recipe in [&recipe, &out] {
        merge(&["--recipe", recipe.to_str().unwrap()], &again).says(0, &[]);
        assert!(fs::read(&again).unwrap() == fs::read(&out).unwrap(), "{text}");
    }
    let inspected = chatvec(["inspect", out.to_str().unwrap()]);
    assert!(inspected.out.contains("method = \"dare_ties\""), "{}", inspected.out);

    // Another seed draws other weights; what is given beside a recipe wins.
    merge(&["--recipe", recipe.to_str().unwrap(), "--dare-seed", "4"], &again).says(0, &[]);
    assert!(fs::read(&again).unwrap() != fs::read(&out).unwrap());
    merge(&["--recipe", recipe.to_str().unwrap(), "--type", "F16", "--ratio-for", "attn_v=0"], &again).says(0, &[]);
    let (again, cp) = (read(&again), read(&paths.cp));
    let bytes = |draft: &Draft, of: &str| draft.tensors.iter().find(|t| name(t) == of).unwrap().data();
    assert_eq!(bytes(&again, "blk.0.attn_v.weight"), bytes(&cp, "blk.0.attn_v.weight"));
    assert!(again.tensors.iter().all(|t| t.ty <= 1), "the recipe's --tensor-type went with its type");
}

/// Merges in a folder, by paths as they are spelled there, and by what the output says of itself.
/// Gives that.
#[track_caller]
fn repeated(folder: &Path, args: &[&str]) -> String {
    let run = |args: &[&str]| Ran::new(command(args).current_dir(folder).output().unwrap());
    run(&[&["merge", "-o", "out.gguf", "--overwrite"], args].concat()).says(0, &[]);
    let text = stored(&folder.join("out.gguf"));
    assert!(!text.contains(folder.file_name().unwrap().to_str().unwrap()), "a place: {text}");
    run(&["merge", "--recipe", "out.gguf", "-o", "again.gguf", "--overwrite"]).says(0, &[]);
    assert!(fs::read(folder.join("out.gguf")).unwrap() == fs::read(folder.join("again.gguf")).unwrap(), "{text}");
    text
}

#[test]
fn a_file_has_one_name_in_the_stored_recipe_however_it_is_spelled() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    Several::new().write(at);
    fs::create_dir(at.join("sub")).unwrap();
    fs::hard_link(at.join("base.gguf"), at.join("hard.gguf")).unwrap();
    let mut others = vec!["./base.gguf", "sub/../base.gguf", "hard.gguf"];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("base.gguf", at.join("soft.gguf")).unwrap();
        std::os::unix::fs::symlink(".", at.join("here")).unwrap();
        others.extend(["soft.gguf", "here/base.gguf"]);
    }
    let absolute = at.join("base.gguf");
    others.push(absolute.to_str().unwrap());
    for other in others {
        let (one, two) = ("base.gguf:chat.gguf@0.5", format!("{other}:chat-2.gguf@0.25"));
        let text = repeated(at, &["--model", "cp.gguf", "--vector", one, "--vector", &two]);
        assert_eq!(text.matches("base = \"base.gguf\"").count(), 2, "{other}: {text}");
        assert!(text.contains("model = \"cp.gguf\"") && text.contains("chat = \"chat-2.gguf\""), "{other}: {text}");
    }
}

#[test]
fn files_of_one_name_keep_the_folders_that_tell_them_apart() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let paths = Trio::small().write(at);
    for (from, to) in [(&paths.base, "base/model.gguf"), (&paths.chat, "chat/model.gguf"), (&paths.cp, "model.gguf")] {
        fs::create_dir_all(at.join(to).parent().unwrap()).unwrap();
        fs::rename(from, at.join(to)).unwrap();
    }
    let text =
        repeated(at, &["--model", "./model.gguf", "--base", "base/model.gguf", "--chat", "chat/../chat/model.gguf"]);
    for word in ["model = \"model.gguf\"", "base = \"base/model.gguf\"", "chat = \"chat/model.gguf\""] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn numbers_that_come_to_nothing_in_f32_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Trio::small().write(folder.path());
    let out = folder.path().join("out.gguf");
    let cases: [(&[&str], &str); 13] = [
        (&["--ratio", "1e-60"], "1e-60"),
        (&["--ratio", "1e60"], "1e60"),
        (&["--lambda", "1e-60"], "lambda"),
        (&["--lambda=-1e-60"], "lambda"),
        (&["--lambda", "1e60"], "lambda"),
        (&["--ratio-for", ".=1e-60"], "1e-60"),
        (&["--ratio-gradient", "1e-60,1e-60"], "1e-60"),
        // Each by itself is a number, and their product is none.
        (&["--ratio", "1e-30", "--ratio-for", ".=1e-30"], "ratio"),
        (&["--ratio", "1e-30", "--ratio-gradient", "1e-300,1e-300"], "e-300"),
        (&["--ratio", "1e30", "--ratio-for", ".=1e30"], "ratio"),
        (&["--method", "dare_linear", "--density", "1e-60"], "density"),
        (&["--method", "dare_ties", "--density", "2e-10"], "density"),
        (&["--smoke", "--temp", "1e-60"], "--temp"),
    ];
    for (options, word) in cases {
        let ran = paths.command(&out, options);
        assert!(ran.code == 2 && ran.err.contains(word) && !out.exists(), "{options:?}: {ran:#?}");
    }
    for (key, value) in [("weight", "1.0e-60"), ("weight", "1.0e+60"), ("density", "1.0e-60"), ("lambda", "1.0e-60")] {
        let (weight, density) = if key == "weight" { (value, "0.5") } else { ("1", value) };
        let parameters = match key {
            "lambda" => format!("{{weight: 1}}}}]\nparameters: {{lambda: {value}}}\n"),
            _ => format!("{{weight: {weight}, density: {density}}}}}]\n"),
        };
        let yaml = format!(
            "merge_method: dare_linear\nbase_model: base.gguf\nmodels: [{{model: chat.gguf, parameters: {parameters}"
        );
        let recipe = folder.path().join("r.yml");
        fs::write(&recipe, &yaml).unwrap();
        let ran = merge(&["--recipe", recipe.to_str().unwrap()], &out);
        assert!(ran.code == 2 && !out.exists(), "{yaml}: {ran:#?}");
    }
    // What is small and still a number is one.
    for options in [&["--ratio", "1e-30"][..], &["--lambda", "1e-30"], &["--method", "ties", "--density", "1e-60"]] {
        let ran = paths.command(&out, &[options, &["--on-loss", "warn", "--overwrite", "--dry-run"]].concat());
        assert_eq!(ran.code, 0, "{options:?}: {ran:#?}");
    }
}

#[test]
fn a_recipe_without_options_is_the_merge_it_describes() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Trio::small().write(folder.path());
    let (out, by_recipe) = (folder.path().join("out.gguf"), folder.path().join("by-recipe.gguf"));
    paths.command(&out, &["--ratio", "0.7"]).says(0, &[]);
    let recipe = folder.path().join("recipe.toml");
    let text = "model = \"cp.gguf\"\n[[vector]]\nbase = \"base.gguf\"\nchat = \"chat.gguf\"\nratio = 0.7\n";
    fs::write(&recipe, text).unwrap();
    merge(&["--recipe", recipe.to_str().unwrap()], &by_recipe).says(0, &[]);
    assert!(fs::read(out).unwrap() == fs::read(by_recipe).unwrap());
}

#[test]
fn recipes_that_cannot_be_meant_are_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    Trio::small().write(folder.path());
    let out = folder.path().join("out.gguf");
    let vector = "[[vector]]\nbase = \"base.gguf\"\nchat = \"chat.gguf\"\n";
    let toml = |text: &str| format!("model = \"cp.gguf\"\n{text}\n{vector}");
    let yaml = |text: &str| {
        format!("base_model: base.gguf\nmodels: [{{model: chat.gguf, parameters: {{weight: 1}}}}]\n{text}\n")
    };
    let deep = "[".repeat(100_000);
    let cases: Vec<(&str, String, i32, &[&str])> = vec![
        ("r.toml", toml("metod = \"ties\""), 3, &["metod", "method"]),
        ("r.toml", toml("method = \"slerp\""), 3, &["slerp", "dare_ties"]),
        ("r.toml", toml("density = 0.5"), 3, &["density"]),
        ("r.toml", toml("method = \"ties\"") + "density = 2", 2, &["vector 1", "density"]),
        ("r.toml", vector.to_owned(), 2, &["model"]),
        ("r.toml", "model = \"cp.gguf\"".to_owned(), 2, &["vector"]),
        ("r.toml", toml("") + "patch = \"x\"", 2, &["vector 1"]),
        ("r.toml", format!("model = {deep}"), 3, &["TOML"]),
        ("r.toml", "\u{0}\u{1}".to_owned(), 3, &["TOML"]),
        ("r.toml", toml("type = \"Q9\""), 2, &["Q9"]),
        ("r.toml", toml("").replace("cp.gguf", "gone.gguf"), 7, &["--model", "gone.gguf"]),
        ("r.yml", yaml("merge_method: slerp"), 2, &["merge_method", "slerp", "ties"]),
        ("r.yml", yaml("merge_method: ties\ndtpye: float32"), 3, &["dtpye", "dtype"]),
        ("r.yml", yaml("merge_method: ties\ntokenizer_source: union"), 2, &["tokenizer_source"]),
        ("r.yml", format!("merge_method: {deep}"), 3, &["YAML"]),
        ("r.yml", "merge_method: ties\nslices: []\nbase_model: x".to_owned(), 2, &["slices"]),
        ("r.yaml", yaml("merge_method: ties").replace("chat.gguf", "gone.gguf"), 7, &["gone.gguf"]),
        ("r.json", String::new(), 1, &[".toml", ".yml"]),
    ];
    for (file, text, code, words) in cases {
        let path = folder.path().join(file);
        fs::write(&path, &text).unwrap();
        merge(&["--recipe", path.to_str().unwrap()], &out).says(code, words);
        assert!(!out.exists(), "{text:.200}");
    }
    let path = folder.path().join("long.toml");
    fs::write(&path, vec![b'#'; 3 << 20]).unwrap();
    merge(&["--recipe", path.to_str().unwrap()], &out).says(3, &["bytes"]);
    merge(&["--recipe", folder.path().join("cp.gguf").to_str().unwrap()], &out).says(2, &["chatvec.recipe"]);
    merge(&["--model", "x"], &out).says(2, &["--chat"]);
}

#[test]
fn slices_of_another_depth_are_refused_and_idle_filters_are_said() {
    let folder = tempfile::tempdir().unwrap();
    Trio::small().write(folder.path());
    let out = folder.path().join("out.gguf");
    let path = folder.path().join("r.yml");
    let slice = |n: u64| {
        format!(
            "merge_method: task_arithmetic\nbase_model: base.gguf\nslices:\n  - sources:\n      - {{model: base.gguf, \
             layer_range: [0, {n}]}}\n      - model: chat.gguf\n        layer_range: [0, {n}]\n        parameters:\n          \
             weight: [{{filter: mpl, value: 0.3}}, {{value: 0.5}}]\n"
        )
    };
    fs::write(&path, slice(2)).unwrap();
    merge(&["--recipe", path.to_str().unwrap()], &out).says(4, &["2 layers", "have 1"]);
    fs::write(&path, slice(1)).unwrap();
    merge(&["--recipe", path.to_str().unwrap()], &out).says(0, &["\"mpl\"", "ffn_up"]);
}

#[test]
fn a_second_vector_that_is_swapped_is_refused_by_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    // Swapping shows where the model has come further than the vector is long.
    let mut several = Several::new();
    several.trio.cp = drifted(&several.base, "cp", 5, 0.0005);
    let paths = several.write(at);
    let out = at.join("out.gguf");
    let (one, two) = (vector(at, "base.gguf", "chat.gguf", "1"), vector(at, "chat-2.gguf", "base-2.gguf", "1"));
    let ran = merge(&["--model", paths.cp.to_str().unwrap(), "--vector", &one, "--vector", &two], &out);
    ran.says(4, &["vector 2"]);
    let gone = vector(at, "base.gguf", "gone.gguf", "1");
    let ran = merge(&["--model", paths.cp.to_str().unwrap(), "--vector", &one, "--vector", &gone], &out);
    ran.says(7, &["vector 2: chat", "gone.gguf"]);
}

#[test]
fn ties_select_what_a_stable_sort_would() {
    let folder = tempfile::tempdir().unwrap();
    let trio = Trio::small();
    let paths = trio.write(folder.path());
    let out = folder.path().join("out.gguf");
    paths.command(&out, &["--method", "ties", "--density", "0.3", "--type", "F32"]).says(0, &[]);
    for (i, found) in read(&out).tensors.iter().enumerate().filter(|(_, t)| t.name != b"rope_freqs.weight") {
        let of = |draft: &Draft| weights(&draft.tensors[i]);
        let tau: Vec<f32> = of(&trio.chat).iter().zip(of(&trio.base)).map(|(c, b)| c - b).collect();
        let mut order: Vec<usize> = (0..tau.len()).collect();
        order.sort_by(|a, b| tau[*b].abs().total_cmp(&tau[*a].abs()));
        let mut expected = of(&trio.cp);
        for &k in &order[..((0.3 * tau.len() as f64) as usize).max(1)] {
            expected[k] += tau[k];
        }
        assert_eq!(plus_zero(F32, found.data()), plus_zero(F32, encode(F32, &expected)), "{}", name(found));
    }
}

#[test]
fn weights_are_selected_by_token_whatever_the_order_of_rows() {
    let folder = tempfile::tempdir().unwrap();
    let mut trio = Trio::small();
    // Floats without equal differences, so that no order of rows decides between equals.
    trio.each(|draft| requantise(draft, F32));
    trio.chat = drifted(&trio.chat, "small chat", 21, 1e-4);
    let by_token = ["token_embd.weight", "output.weight"];
    // Five rows change places with their tokens; special tokens stay where their ids say.
    let turned = |row: usize| if row < 5 { 4 - row } else { row };
    let turn = |draft: &Draft| {
        let mut found = draft.clone();
        found.set("tokenizer.ggml.tokens", Val::strs(["e", "d", "c", "b", "a", "<eos>", "<|im_start|>", "<|im_end|>"]));
        for tensor in found.tensors.iter_mut().filter(|t| by_token.contains(&name(t))) {
            change(tensor, |values| {
                let old = values.to_vec();
                values
                    .chunks_mut(256)
                    .enumerate()
                    .for_each(|(row, v)| v.copy_from_slice(&old[turned(row) * 256..][..256]));
            });
        }
        found
    };
    let merged = |trio: &Trio, method: &str| {
        let paths = trio.write(folder.path());
        let out = folder.path().join("out.gguf");
        paths.command(&out, &["--overwrite", "--method", method, "--density", "0.4", "--rescale", "true"]).says(0, &[]);
        read(&out)
    };
    let (straight, expected) = (merged(&trio, "ties"), turn(&trio.cp));
    let found = merged(&Trio { cp: expected, ..trio.clone() }, "ties");
    assert_tensors(&found, &turn(&straight));
}
