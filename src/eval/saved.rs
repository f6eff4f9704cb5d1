//! Conversations in files: messages as prompt files have them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::prompts::{LineProblem, MAX_LINE, PromptError};
use crate::chat::Message;

/// Bytes of a conversation at most: no context holds more.
const MAX_BYTES: u64 = 16 << 20;

/// Messages at most.
const MOST_MESSAGES: usize = 10_000;

/// A conversation as JSON lines, a message a line.
pub fn write_conversation(messages: &[Message]) -> String {
    let line = |message: &Message| serde_json::json!({ "role": message.role, "content": message.content }).to_string();
    messages.iter().map(|message| line(message) + "\n").collect()
}

/// Reads a conversation: messages of `{"role", "content"}`, one a line or in one JSON list. `system`
/// may be the first; `user` and `assistant` take turns, and `user` begins.
///
/// # Errors
/// [`PromptError`].
pub fn read_conversation(path: &Path) -> Result<Vec<Message>, PromptError> {
    let io = |source| PromptError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    parse(&bytes, &path.display().to_string())
}

fn parse(bytes: &[u8], name: &str) -> Result<Vec<Message>, PromptError> {
    let too_large = |what: String, limit: u64| PromptError::TooLarge { name: name.to_owned(), what, limit };
    let fault = |line: usize, problem| PromptError::Line { name: name.to_owned(), line, problem };
    if bytes.len() as u64 > MAX_BYTES {
        return Err(too_large("its size in bytes".to_owned(), MAX_BYTES));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    // Each message with the line that is named if it is wrong.
    let mut messages: Vec<(usize, Message)> = Vec::new();
    if bytes.trim_ascii_start().starts_with(b"[") {
        let list: Vec<Message> = serde_json::from_slice(bytes).map_err(|e| fault(e.line().max(1), e.into()))?;
        messages.extend(list.into_iter().map(|message| (1, message)));
    } else {
        for (at, line) in bytes.split(|b| *b == b'\n').enumerate() {
            if line.len() > MAX_LINE {
                return Err(too_large(format!("the length of line {}", at + 1), MAX_LINE as u64));
            }
            if !line.trim_ascii().is_empty() {
                messages.push((at + 1, serde_json::from_slice(line).map_err(|e| fault(at + 1, e.into()))?));
            }
        }
    }
    if messages.len() > MOST_MESSAGES {
        return Err(too_large("the number of messages".to_owned(), MOST_MESSAGES as u64));
    }
    check(&messages).map_err(|(line, problem)| fault(line, problem))?;
    Ok(messages.into_iter().map(|(_, message)| message).collect())
}

fn check(messages: &[(usize, Message)]) -> Result<(), (usize, LineProblem)> {
    let field = |field, reason: String| LineProblem::Field { field, reason };
    let talk = match messages.first() {
        None => return Err((1, field("role", "there is no message".to_owned()))),
        Some((_, first)) if first.role == "system" => &messages[1..],
        Some(_) => messages,
    };
    for (i, (line, message)) in talk.iter().enumerate() {
        let expected = if i % 2 == 0 { "user" } else { "assistant" };
        if message.role != expected {
            let reason = format!("`{}` where `{expected}` is due: user and assistant take turns", message.role);
            return Err((*line, field("role", reason)));
        }
        if message.role == "user" && message.content.trim().is_empty() {
            return Err((*line, field("content", "a user's message may not be blank".to_owned())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.to_owned(), content: content.to_owned() }
    }

    #[test]
    fn what_was_written_is_read() {
        let talk = [
            message("system", "Be \"brief\"."),
            message("user", "line\nfeed \u{1b}[2J"),
            message("assistant", ""),
            message("user", "Grüße"),
        ];
        let text = write_conversation(&talk);
        assert_eq!(text.lines().count(), 4);
        assert_eq!(parse(text.as_bytes(), "x").unwrap(), talk);
        let list = format!("\u{feff}\n [{}]", text.lines().collect::<Vec<_>>().join(","));
        assert_eq!(parse(list.trim_start_matches('\u{feff}').as_bytes(), "x").unwrap(), talk);
        assert_eq!(parse(text.replace('\n', "\r\n\n").as_bytes(), "x").unwrap(), talk);
    }

    #[test]
    fn what_is_no_conversation_is_refused_with_its_line() {
        let user = r#"{"role":"user","content":"x"}"#;
        for (text, line, words) in [
            (String::new(), 1, "no message"),
            ("[]".to_owned(), 1, "no message"),
            (format!("{user}\n{user}\n"), 2, "`user` where `assistant` is due"),
            (format!("{user}\n\n{{\"role\":\"tool\",\"content\":\"x\"}}"), 3, "`tool`"),
            (r#"{"role":"assistant","content":"x"}"#.to_owned(), 1, "`user` is due"),
            (format!("{user}\n{{\"role\":\"assistant\",\"text\":\"x\"}}"), 2, "unknown field"),
            (r#"{"role":"user","content":"  "}"#.to_owned(), 1, "blank"),
            (format!("[{user}, 3]"), 1, "column"),
            ("Hello".to_owned(), 1, "column"),
        ] {
            let error = parse(text.as_bytes(), "x.jsonl").unwrap_err().to_string();
            assert!(error.starts_with(&format!("x.jsonl, line {line}: ")) && error.contains(words), "{error}");
        }
        let long = format!("[{}]", vec![user; MOST_MESSAGES + 1].join(","));
        assert!(matches!(parse(long.as_bytes(), "x"), Err(PromptError::TooLarge { .. })));
    }
}
