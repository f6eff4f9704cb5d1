//! A chat without a terminal: each line is a message, and only answers are printed.
//!
//! A line that begins with a slash is a message, too. What comes through a pipe may be anybody's
//! text, and should not write files.

use std::io::{self, BufRead, Read as _};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::talk::Talk;
use crate::cli::{Exit, output};
use crate::eval::{Chatter, MAX_LINE, Turn};
use crate::infer::Engine;

/// Answers every line of standard input.
pub(super) fn answer(talk: &mut Talk, chatter: &Chatter, engine: &mut dyn Engine, is_json: bool) -> Result<Exit> {
    let mut stdin = io::stdin().lock();
    let mut n_lines = 0;
    while let Some(line) = next_line(&mut stdin, n_lines + 1).context("standard input")? {
        n_lines += 1;
        if line.trim().is_empty() {
            continue;
        }
        talk.ask(line.trim());
        let mut heard = Ok(true);
        let turn = talk.answer(chatter, engine, None, &mut |text| {
            if !is_json && !text.is_empty() {
                heard = output::print_part(text);
            }
            matches!(heard, Ok(true))
        });
        let is_heard = heard?;
        let turn = turn.with_context(|| format!("line {n_lines}"))?;
        if !is_heard {
            break;
        }
        let is_heard = if is_json { output::print_json_line(&json(&turn))? } else { output::print_part("\n")? };
        if !is_heard {
            break;
        }
        if let Some((kind, text)) = talk.remark(&turn, engine.room()) {
            output::complain(kind, &format!("line {n_lines}: {text}"));
        }
        talk.hear(&turn);
    }
    Ok(Exit::Success)
}

fn json(turn: &Turn) -> serde_json::Value {
    json!({
        "role": "assistant",
        "content": turn.reply.text.trim(),
        "end": turn.reply.end,
        "n_tokens": turn.reply.n_tokens,
        "n_asked": turn.n_asked,
        "n_kept": turn.n_kept,
    })
}

/// The next line, without what ends it; none at the end.
fn next_line(from: &mut impl BufRead, number: usize) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    from.take(MAX_LINE as u64 + 1).read_until(b'\n', &mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    if bytes.len() > MAX_LINE && !bytes.ends_with(b"\n") {
        let text = format!("line {number} has more than {MAX_LINE} bytes; a message is one line");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    if bytes.ends_with(b"\n") {
        bytes.pop();
    }
    let fault = |e: std::string::FromUtf8Error| {
        let text = format!("line {number} is not UTF-8 from byte {} on", e.utf8_error().valid_up_to());
        io::Error::new(io::ErrorKind::InvalidData, text)
    };
    String::from_utf8(bytes).map(Some).map_err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_one_by_one_and_none_is_too_long() {
        let mut from = &b"a\r\n\nb"[..];
        let lines: Vec<String> = std::iter::from_fn(|| next_line(&mut from, 1).unwrap()).collect();
        assert_eq!(lines, ["a\r", "", "b"]);
        let (fits, too_long) = ("x".repeat(MAX_LINE) + "\n", "x".repeat(MAX_LINE + 1));
        assert_eq!(next_line(&mut fits.as_bytes(), 1).unwrap().map(|line| line.len()), Some(MAX_LINE));
        assert!(next_line(&mut too_long.as_bytes(), 7).unwrap_err().to_string().contains("line 7"));
        let error = next_line(&mut &b"ab\xff\n"[..], 3).unwrap_err();
        assert!(error.to_string().contains("line 3 is not UTF-8 from byte 2 on"), "{error}");
    }
}
