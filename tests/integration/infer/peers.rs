//! Models that people run, against llama.cpp: prompts, tokens, log-probabilities, answers. Their
//! files are not committed.

use chatvec::chat::{Message, RenderOptions, Template, Tokenizer};

use super::greedy::{answer, is_equal};
use super::*;

/// Where `tests/peers/fetch_models.py` writes by default.
const FOLDER: &str = "target/peer-models";

/// A file of `fetch_models.py`.
fn peer_file(goldens: &Json) -> PathBuf {
    let named = std::env::var_os("CHATVEC_PEER_MODELS").map(PathBuf::from);
    let folder = named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER));
    let path = folder.join(goldens["file"].as_str().expect("a name"));
    let file = std::fs::File::open(&path);
    let file = file.unwrap_or_else(|e| {
        let path = path.display();
        panic!("{path}: {e}; run tests/peers/fetch_models.py, or set CHATVEC_PEER_MODELS to the folder it wrote to")
    });
    assert_eq!(Some(sha256(file).as_str()), goldens["sha256"].as_str(), "{}: another file", path.display());
    path
}

/// A token's text, for the template.
fn text_of(tokenizer: &Tokenizer, id: Option<u32>) -> String {
    id.map_or_else(String::new, |id| String::from_utf8(tokenizer.piece(id, true).into_owned()).expect("UTF-8"))
}

fn check(goldens: &str, ty: &str) {
    let goldens = fixture(goldens);
    let path = peer_file(&goldens);
    let (file, model) = (open(&path), load(&path, 2));
    let tokenizer = Tokenizer::from_metadata(file.metadata()).expect("a vocabulary");
    // A base model has none, and goes on with texts.
    let template = Template::from_metadata(file.metadata()).expect("it parses");
    let (bos, eos) = (text_of(&tokenizer, tokenizer.bos()), text_of(&tokenizer, tokenizer.eos()));
    let options = RenderOptions { add_generation_prompt: true, bos_token: &bos, eos_token: &eos };
    let max_new_tokens = goldens["max_new_tokens"].as_u64().expect("a number") as usize;
    let (mut spread, mut n_equal) = (Spread::default(), 0);
    let prompts = goldens["prompts"].as_array().expect("prompts");
    for prompt in prompts {
        let messages: Vec<Message> = serde_json::from_value(prompt["messages"].clone()).expect("messages");
        let text = match &template {
            Some(template) => template.render(&messages, &options).expect("a prompt"),
            None => prompt["text"].as_str().expect("a text").to_owned(),
        };
        assert_eq!(Some(text.as_str()), prompt["text"].as_str());
        let tokens = tokenizer.encode(&text, true, true);
        assert_eq!(tokens, ids(&prompt["tokens"]), "{text}");
        let mut session = session(&model);
        let ours = answer(&mut session, &tokenizer, &tokens, max_new_tokens);
        n_equal +=
            usize::from(is_equal(&format!("{messages:?}"), ty, &mut session, tokens.len(), &ours, &prompt["answer"]));
        let all = [tokens, ids(&prompt["answer"]["tokens"])].concat();
        compare(&mut spread, &teacher_forced(&model, &all, 256), &all, prompt);
    }
    println!("{ty}: {n_equal} of {} answers equal", prompts.len());
    check_bounds(ty, ty, &spread);
}

#[test]
#[ignore = "needs the models of tests/peers/fetch_models.py"]
fn smollm2_is_computed_as_llama_cpp_does() {
    check("smollm2.json", "SmolLM2 Q4_1");
}

#[test]
#[ignore = "needs the models of tests/peers/fetch_models.py"]
fn qwen2_is_computed_as_llama_cpp_does() {
    check("qwen2.json", "Qwen2.5 Q4_K_M");
}

#[test]
#[ignore = "needs the models of tests/peers/fetch_models.py"]
fn gemma3_is_computed_as_llama_cpp_does() {
    check("gemma3.json", "Gemma 3 Q4_K_M");
}
