//! Text of the chat template in an answer: control tokens, and a conversation that the model goes
//! on with by itself.

use super::repetition::without_code;

/// What templates write around turns, besides everything of the form `<|name|>`. Found anywhere.
const MARKERS: [&str; 24] = [
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<</SYS>>",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[AVAILABLE_TOOLS]",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|turn>",
    "<turn|>",
    "<start_of_image>",
    "</s>",
    "<s>",
    "<bos>",
    "<eos>",
    "<pad>",
    "<unk>",
    "[PAD]",
    "[UNK]",
    "[EOS]",
    "[gMASK]",
    "<reserved_",
    "<unused",
];
/// What begins a line of a conversation, after any number of `#`.
const SPEAKERS: [&str; 24] = [
    "assistant:",
    "user:",
    "human:",
    "system:",
    "ai:",
    "instruction:",
    "response:",
    "assistent:",
    "benutzer:",
    "nutzer:",
    "utilisateur:",
    "usuario:",
    "usuário:",
    "utente:",
    "gebruiker:",
    "пользователь:",
    "користувач:",
    "kullanıcı:",
    "用户：",
    "ユーザー：",
    "사용자:",
    "người dùng:",
    "المستخدم:",
    "pengguna:",
];
/// Roles that stand alone in a line.
const ROLES: [&str; 4] = ["assistant", "user", "system", "model"];
/// The longest name between `<|` and `|>`, in bytes.
const MAX_NAME: usize = 40;

/// What of a template an answer shows, if it does. `raw` is the answer with control tokens as text,
/// without the one that ended it; what `prompt` says itself is not counted, nor is code.
pub(super) fn leaked(raw: &str, prompt: &str) -> Option<String> {
    let raw = without_code(raw);
    let is_new = |marker: &&str| !prompt.contains(*marker);
    control_token(&raw)
        .filter(is_new)
        .or_else(|| MARKERS.iter().copied().filter(is_new).find(|marker| raw.contains(marker)))
        .map(str::to_owned)
        .or_else(|| speaker(&raw, prompt))
}

/// The first `<|name|>`, also with the wide bars of DeepSeek's.
fn control_token(text: &str) -> Option<&str> {
    for (open, close) in [("<|", "|>"), ("<｜", "｜>")] {
        for (at, _) in text.match_indices(open) {
            let Some(len) = text[at + open.len()..].find(close) else { break };
            let name = &text[at + open.len()..at + open.len() + len];
            if !name.is_empty() && name.len() <= MAX_NAME && !name.contains(char::is_whitespace) {
                return Some(&text[at..at + open.len() + len + close.len()]);
            }
        }
    }
    None
}

/// A line that begins another turn, or the model's own with its role.
fn speaker(text: &str, prompt: &str) -> Option<String> {
    let prompt = prompt.to_lowercase();
    for (at, line) in text.trim_start().lines().enumerate() {
        let line = line.trim();
        let bare = line.trim_start_matches(['#', '*', ' ']).to_lowercase();
        let is_role_alone = ROLES.contains(&bare.as_str()) && (at == 0 || bare != "model" && bare != "system");
        let speaker = SPEAKERS.iter().find(|s| bare.starts_with(**s) && !prompt.contains(**s));
        if is_role_alone || speaker.is_some() {
            return Some(speaker.map_or(bare.as_str(), |s| s).to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_of_every_family_are_found() {
        for (raw, found) in [
            ("Hello<|im_start|>user\nMore", "<|im_start|>"),
            ("Sure. [INST] And then?", "[INST]"),
            ("Sure.<end_of_turn>\n<start_of_turn>user", "<start_of_turn>"),
            ("<｜User｜>hello", "<｜User｜>"),
            ("assistant\n\nHello", "assistant"),
            ("Assistant: Hello", "assistant:"),
            ("Yes.\n### Instruction:\nMore", "instruction:"),
            ("Yes.\nUser: and you?\nAssistant: fine", "user:"),
            ("Yes.\n\n**Human:** and you?", "human:"),
            ("是的。\n用户：你好", "用户："),
        ] {
            assert_eq!(leaked(raw, "How are you?").as_deref(), Some(found), "{raw}");
        }
    }

    #[test]
    fn code_the_prompt_and_common_words_are_none() {
        for (raw, prompt) in [
            ("Use `a <| b |> c` in Elm.", "How?"),
            ("```\n<|im_start|>user\n```", "How?"),
            ("The token [INST] begins it.", "What is [INST]?"),
            ("The user of the system asks the assistant: help!", "How?"),
            ("Sure:\nmodel\n- user", "Name words."),
            ("a < b and b > c, x | y", "How?"),
            ("", ""),
        ] {
            assert_eq!(leaked(raw, prompt), None, "{raw}");
        }
    }
}
