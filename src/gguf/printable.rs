//! What may be shown of texts that others wrote.

/// Text from a file, or a path, in one line that shows what it is: whatever could write to a
/// terminal, move or turn around what stands beside it, or hide, is escaped (`\n`, `\u{1b}`,
/// `\u{202e}`).
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_printable(c) { shown.push(c) } else { shown.extend(c.escape_default()) }
    }
    shown
}

/// Whether a character shows as itself, and leaves alone what stands beside it. These do not:
///
/// - controls: C0 with the line feed and escape, DEL, C1;
/// - line and paragraph separators;
/// - marks, embeddings, overrides and isolates of the direction of writing, and the older formats
///   beside them;
/// - what takes no room: zero-width space, word joiner, invisible operators, byte order mark, soft
///   hyphen, the fillers of Hangul, anchors of annotations, tags.
///
/// Letters of every script show, with what combines with them. So do the two joiners (U+200C,
/// U+200D), which Persian, Hindi and emoji are spelled with, and variation selectors. The sets are
/// those of Unicode 16: `Cc`, `Zl`, `Zp`, `Bidi_Control`, and of `Default_Ignorable_Code_Point`
/// what is named here.
pub fn is_printable(c: char) -> bool {
    let is_hidden = matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180e}' | '\u{200b}'
        | '\u{2060}'..='\u{2065}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e00ff}');
    let is_direction = matches!(c,
        '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{206f}');
    !(c.is_control() || is_hidden || is_direction || matches!(c, '\u{2028}' | '\u{2029}'))
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn texts_of_all_scripts_show_as_they_are() {
        for text in [
            "naïve Straße",
            "日本語 한국어",
            "שלום עולם",
            "می\u{200c}خواهم",
            "क्\u{200d}ष",
            "👩\u{200d}🚀 ❤\u{fe0f}",
            "e\u{301}",
        ] {
            assert_eq!(printable(text), text);
        }
    }

    #[test]
    fn what_would_act_or_hide_is_escaped() {
        for (text, shown) in [
            ("a\nb\tc\r", "a\\nb\\tc\\r"),
            ("\u{1b}[2J\u{9b}31m\u{7f}", "\\u{1b}[2J\\u{9b}31m\\u{7f}"),
            ("x\u{202e}gpj.exe", "x\\u{202e}gpj.exe"),
            ("a\u{200b}b\u{feff}\u{2028}", "a\\u{200b}b\\u{feff}\\u{2028}"),
            ("\u{e0041}", "\\u{e0041}"),
        ] {
            assert_eq!(printable(text), shown);
        }
    }
}
