//! What is changed in a template's source before the engine parses it.
//!
//! - `{% generation %}` … `{% endgeneration %}`, by which transformers finds the model's own words,
//!   becomes a `with` block: a scope that does nothing (`AssistantTracker` in
//!   utils/chat_template_utils.py).
//! - In `{% set space.name = value %}` the value goes through [`HELD`], because a namespace is the
//!   only thing that can come to hold itself, and printing that would not end.
//!
//! Only tags are looked at, not comments, raw blocks or strings; no line is added or taken away.

/// The function that a value passes on its way into a namespace.
pub(super) const HELD: &str = "__held";

/// The most code a tag may have, in bytes without the insides of strings: the engine's parser folds
/// constants in time that grows with the square of it. In 70 templates the longest has 293.
pub(super) const MAX_TAG_BYTES: usize = 2048;

/// The source with its tags rewritten, and with line breaks as jinja2's lexer makes them.
///
/// # Errors
///
/// The line of a tag with more than [`MAX_TAG_BYTES`] of code.
pub(super) fn rewrite(source: &str) -> Result<String, usize> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len() + source.len() / 8);
    let mut rest = source.as_str();
    let mut raw = false;
    while let Some(open) = rest.find('{') {
        let (text, from) = rest.split_at(open);
        out.push_str(text);
        let code = match from.as_bytes().get(1) {
            Some(b'#') if !raw => {
                // In `{#}` the comment has begun, not ended.
                Code { len: from[2..].find("#}").map_or(from.len(), |end| end + 4), in_strings: usize::MAX }
            }
            Some(b'{') if !raw => Code::until("}}", from),
            Some(b'%') => Code::until("%}", from),
            _ => Code { len: 1, in_strings: 0 },
        };
        let Code { len, in_strings } = code;
        if !raw && len.saturating_sub(in_strings) > MAX_TAG_BYTES {
            return Err(1 + source[..source.len() - from.len()].matches('\n').count());
        }
        let (code, after) = from.split_at(len);
        rest = after;
        match code.strip_prefix("{%").and_then(|c| c.strip_suffix("%}")).map(Tag::of) {
            Some(Tag { word: "endraw", .. }) => raw = false,
            Some(Tag { word: "raw", .. }) => raw = true,
            Some(tag) if !raw => {
                tag.write(&mut out);
                continue;
            }
            // In a raw block a `{%` means nothing, unless it ends the block.
            Some(_) | None if raw => {
                out.push('{');
                rest = &from[1..];
                continue;
            }
            _ => {}
        }
        out.push_str(code);
    }
    out.push_str(rest);
    Ok(out)
}

/// How long a piece of source is, in bytes.
struct Code {
    len: usize,
    /// How much of it is inside strings.
    in_strings: usize,
}

impl Code {
    /// From the opening of a tag to its end, which is looked for outside strings and braces.
    fn until(end: &str, tag: &str) -> Self {
        let bytes = tag.as_bytes();
        let (mut at, mut braces, mut in_strings) = (2, 0usize, 0);
        while at < bytes.len() {
            if braces == 0 && bytes[at..].starts_with(end.as_bytes()) {
                return Self { len: at + end.len(), in_strings };
            }
            match bytes[at] {
                quote @ (b'"' | b'\'') => {
                    let len = string_len(&bytes[at + 1..], quote);
                    at += len;
                    in_strings += len.saturating_sub(1);
                }
                b'{' => braces += 1,
                b'}' => braces = braces.saturating_sub(1),
                _ => {}
            }
            at += 1;
        }
        Self { len: bytes.len(), in_strings }
    }
}

/// Bytes of a string with its closing quote, from after the opening one.
fn string_len(bytes: &[u8], quote: u8) -> usize {
    let mut escaped = false;
    for (at, &byte) in bytes.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            _ if byte == quote => return at + 1,
            _ => {}
        }
    }
    bytes.len()
}

/// What stands between `{%` and `%}`.
struct Tag<'a> {
    /// Whitespace and its control (`-` or `+`) before the first word.
    before: &'a str,
    word: &'a str,
    /// What follows the word.
    body: &'a str,
    /// Whitespace and its control after that.
    after: &'a str,
}

impl<'a> Tag<'a> {
    fn of(code: &'a str) -> Self {
        let start = code.strip_prefix(['-', '+']).unwrap_or(code).trim_start();
        let (before, code) = code.split_at(code.len() - start.len());
        let stop = code.strip_suffix(['-', '+']).unwrap_or(code).trim_end().len();
        let (code, after) = code.split_at(stop);
        let word = code.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(code.len());
        let (word, body) = code.split_at(word);
        Self { before, word, body, after }
    }

    fn write(&self, out: &mut String) {
        let Self { before, word, body, after } = self;
        let write = |out: &mut String, parts: &[&str]| parts.iter().for_each(|part| out.push_str(part));
        write(out, &["{%", before]);
        match *word {
            "generation" if body.is_empty() => write(out, &["with"]),
            "endgeneration" if body.is_empty() => write(out, &["endwith"]),
            "set" => match body.split_once('=') {
                // Two pairs of parentheses, because the value may be a tuple without any.
                Some((target, value)) if is_attribute(target) => {
                    write(out, &[word, target, "=", HELD, "((", value, "))"]);
                }
                _ => write(out, &[word, body]),
            },
            _ => write(out, &[word, body]),
        }
        write(out, &[after, "%}"]);
    }
}

/// Whether an attribute is among the targets of an assignment. If not only names are, the `=` is no
/// assignment's.
fn is_attribute(target: &str) -> bool {
    target.contains('.') && target.chars().all(|c| c.is_alphanumeric() || " _.,()\t\r\n".contains(c))
}

#[cfg(test)]
mod tests {
    use super::{MAX_TAG_BYTES, rewrite};

    #[test]
    fn counts_the_code_of_a_tag_without_its_strings() {
        let long = "a".repeat(MAX_TAG_BYTES);
        for fine in [
            format!("{{{{ '{long}{long}' }}}}"),
            format!("{{# {long} #}}"),
            format!("{{% raw %}}{{{{ {long}{{% endraw %}}"),
        ] {
            assert_eq!(rewrite(&fine).unwrap(), fine);
        }
        assert_eq!(rewrite(&format!("a\n{{{{ b }}}}\n{{{{ '' ~ {long} }}}}")), Err(3));
    }

    #[test]
    fn rewrites_tags_and_nothing_else() {
        for (from, to) in [
            ("a{%- generation -%}b{% endgeneration +%}", "a{%- with -%}b{% endwith +%}"),
            ("{%generation%}{%endgeneration%}", "{%with%}{%endwith%}"),
            ("{%- set ns.a = 1, 2 -%}", "{%- set ns.a =__held(( 1, 2)) -%}"),
            ("{% set ns.a = '%}' ~ {'a': {}}%}b", "{% set ns.a =__held(( '%}' ~ {'a': {}}))%}b"),
            ("{%set\nns.a\n=\n1\n%}", "{%set\nns.a\n=__held((\n1))\n%}"),
        ] {
            assert_eq!(rewrite(from).unwrap(), to);
        }
        for same in [
            "{{ '{% generation %}' }}",
            "{# {% generation %} #}",
            "{#} {% generation %} #}",
            "{#}",
            "{% raw %}{% generation %}{{ '{% endraw %}",
            "{%- raw -%}{{{%{# ' {%- endraw -%}",
            "{% if generation == 'a' %}",
            "{% set a = ns.b == 1 %}",
            "{% set a | replace(ns.b, c=1) %}",
            "{% set ns.a %}b = c{% endset %}",
            "{{ {'a': {'b': '}}'}} }} { {",
            "{% generation",
            "{{ 'a",
            "{",
            "ä{% set ä = 'ß' %}ß",
        ] {
            assert_eq!(rewrite(same).unwrap(), same);
        }
        assert_eq!(rewrite("{% raw %}{% endraw %}{% generation %}").unwrap(), "{% raw %}{% endraw %}{% with %}");
        assert_eq!(rewrite("{{ \"'\" }}{% generation %}'").unwrap(), "{{ \"'\" }}{% with %}'");
        assert_eq!(rewrite("a\r\nb\rc").unwrap(), "a\nb\nc");
    }
}
