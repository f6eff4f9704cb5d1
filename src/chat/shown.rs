//! Tokens in messages.

use bstr::{BStr, ByteSlice};

use crate::gguf::printable;

/// A token as messages show it: one that would not be seen as it stands, such as a run of spaces, in
/// quotes and with its characters named.
pub fn shown_token(text: &BStr) -> String {
    let text = text.to_str_lossy();
    let is_blank = |c: char| c.is_whitespace() || c == '\u{2581}';
    if !text.is_empty() && !text.chars().any(is_blank) {
        return printable(&text);
    }
    let shown =
        |c: char| if is_blank(c) && c != ' ' { c.escape_unicode().to_string() } else { printable(&c.to_string()) };
    format!("'{}'", text.chars().map(shown).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::shown_token;

    #[test]
    fn what_is_not_seen_is_quoted_and_named() {
        for (text, shown) in [
            ("<|user|>", "<|user|>"),
            ("<｜User｜>", "<｜User｜>"),
            ("", "''"),
            ("  ", "'  '"),
            ("\u{2581}\u{2581}", "'\\u{2581}\\u{2581}'"),
            ("a\tb", "'a\\u{9}b'"),
            ("\u{200b}", "\\u{200b}"),
        ] {
            assert_eq!(shown_token(text.into()), shown);
        }
    }
}
