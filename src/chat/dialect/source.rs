//! A template cut into data, tags and their tokens, as jinja2's lexer does, each with its place.

/// What a tag is made of.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Token<'a> {
    Name(&'a str),
    /// Digits with whatever Python allows between them.
    Int(&'a str),
    Float(&'a str),
    /// What stands between the quotes.
    Text(&'a str),
    Op(&'static str),
}

/// A token with its first byte.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed<'a> {
    pub(super) token: Token<'a>,
    pub(super) at: usize,
}

/// A stretch of the template.
#[derive(Debug)]
pub(super) enum Piece<'a> {
    /// Text as it is printed, whitespace control applied.
    Data(Data<'a>),
    /// `{{ }}`.
    Print(Tag<'a>),
    /// `{% %}`.
    Block(Tag<'a>),
    /// A raw block, whose text follows as data.
    Raw(usize),
    /// `{%+` or the like; the place of the sign.
    Plus(usize),
}

#[derive(Debug)]
pub(super) struct Data<'a> {
    pub(super) text: &'a str,
    pub(super) at: usize,
    /// It is the first character, alone before the first block or comment.
    pub(super) is_lone_first: bool,
    /// A hyphen took whitespace away that is not ASCII.
    pub(super) lost_wide_space: bool,
    /// The first carriage return that a hyphen does not take away.
    pub(super) carriage_return: Option<usize>,
}

#[derive(Debug)]
pub(super) struct Tag<'a> {
    pub(super) tokens: Vec<Placed<'a>>,
    pub(super) at: usize,
    /// The place after the last token.
    pub(super) end: usize,
}

/// Where the text is no Jinja.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) at: usize,
}

/// Longest first.
const OPERATORS: [&str; 28] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";", "!", "?",
];

/// Cuts the whole template.
pub(super) fn cut(source: &str) -> Result<Vec<Piece<'_>>, Broken> {
    let mut lexer = Lexer { source, at: 0, pieces: Vec::new(), after: After::Nothing };
    // A single trailing newline is dropped.
    let stop = ["\r\n", "\n", "\r"].iter().find_map(|end| source.strip_suffix(end)).unwrap_or(source).len();
    while lexer.at < source.len() {
        let open = lexer.next_opening();
        lexer.data(open.min(stop.max(lexer.at)), open);
        if open == source.len() {
            break;
        }
        lexer.at = open;
        match &source[open..open + 2] {
            "{#" => lexer.comment()?,
            "{{" => lexer.print()?,
            _ => lexer.block()?,
        }
    }
    Ok(lexer.pieces)
}

/// What the data that follows a tag loses at its beginning.
#[derive(Clone, Copy, PartialEq)]
enum After {
    Nothing,
    Newline,
    Space,
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    pieces: Vec<Piece<'a>>,
    after: After,
}

impl<'a> Lexer<'a> {
    fn next_opening(&self) -> usize {
        let bytes = self.source.as_bytes();
        (self.at..bytes.len().saturating_sub(1))
            .find(|&i| bytes[i] == b'{' && matches!(bytes[i + 1], b'{' | b'%' | b'#'))
            .unwrap_or(bytes.len())
    }

    /// Data from here to `stop`; the next tag opens at `open`.
    fn data(&mut self, stop: usize, open: usize) {
        let mut text = &self.source[self.at..stop];
        let mut at = self.at;
        let mut wide = false;
        let start = match self.after {
            After::Nothing => text,
            After::Newline => ["\r\n", "\n", "\r"].iter().find_map(|n| text.strip_prefix(n)).unwrap_or(text),
            After::Space => text.trim_start(),
        };
        wide |= !text[..text.len() - start.len()].is_ascii();
        at += text.len() - start.len();
        text = start;
        let opening = &self.source.as_bytes()[open..];
        let is_block = matches!(opening.get(1), Some(b'%' | b'#'));
        if opening.get(2) == Some(&b'-') {
            let kept = text.trim_end();
            wide |= !text[kept.len()..].is_ascii();
            text = kept;
        } else if is_block && opening.get(2) != Some(&b'+') {
            text = without_indent(text, at == 0 || self.line_begins(at));
        }
        let from = if self.after == After::Space { at } else { self.at };
        let carriage_return = self.source[from..at + text.len()].find('\r').map(|i| from + i);
        self.after = After::Nothing;
        if !text.is_empty() || wide || carriage_return.is_some() {
            let lost_wide_space = wide;
            let is_lone_first = is_block && self.at == 0 && !text.is_empty() && is_lone(&self.source[..open]);
            self.pieces.push(Piece::Data(Data { text, at, is_lone_first, lost_wide_space, carriage_return }));
        }
    }

    /// Whether a line begins here.
    fn line_begins(&self, at: usize) -> bool {
        matches!(self.source.as_bytes().get(at.wrapping_sub(1)), Some(b'\n' | b'\r'))
    }

    fn comment(&mut self) -> Result<(), Broken> {
        let at = self.at;
        self.plus(at + 2);
        let len = self.source[at + 2..].find("#}").ok_or(Broken { at })?;
        self.at = at + 2 + len + 2;
        let body = &self.source[at + 2..at + 2 + len];
        self.after = if body.ends_with('-') { After::Space } else { After::Newline };
        Ok(())
    }

    fn plus(&mut self, at: usize) {
        if self.source.as_bytes().get(at) == Some(&b'+') {
            self.pieces.push(Piece::Plus(at));
        }
    }

    fn print(&mut self) -> Result<(), Broken> {
        let tag = self.tag("}}")?;
        if self.after == After::Newline {
            self.after = After::Nothing;
        }
        self.pieces.push(Piece::Print(tag));
        Ok(())
    }

    fn block(&mut self) -> Result<(), Broken> {
        let at = self.at;
        self.plus(at + 2);
        let tag = self.tag("%}")?;
        if let [Placed { token: Token::Name("raw"), .. }] = tag.tokens[..] {
            return self.raw(at);
        }
        self.pieces.push(Piece::Block(tag));
        Ok(())
    }

    /// A raw block, whose opening tag has been read.
    fn raw(&mut self, at: usize) -> Result<(), Broken> {
        self.pieces.push(Piece::Raw(at));
        let start = self.at;
        let mut from = start;
        loop {
            let open = from + self.source[from..].find("{%").ok_or(Broken { at })?;
            let inner = self.source[open + 2..].trim_start_matches(['-', '+']).trim_start();
            if let Some(rest) = inner.strip_prefix("endraw") {
                let close = rest.find("%}").ok_or(Broken { at: open })?;
                self.data(open, open);
                self.at = self.source.len() - rest.len() + close + 2;
                self.after = if rest[..close].ends_with('-') { After::Space } else { After::Newline };
                return Ok(());
            }
            from = open + 2;
        }
    }

    /// The tag that opens here, to its `end`.
    fn tag(&mut self, end: &str) -> Result<Tag<'a>, Broken> {
        let at = self.at;
        let bytes = self.source.as_bytes();
        let mut i = at + 2;
        i += usize::from(matches!(bytes.get(i), Some(b'-'))) + usize::from(end == "%}" && bytes.get(i) == Some(&b'+'));
        let (mut tokens, mut braces) = (Vec::<Placed<'a>>::new(), 0usize);
        loop {
            let rest = &self.source[i..];
            i += rest.len() - rest.trim_start().len();
            let rest = rest.trim_start();
            if rest.is_empty() {
                return Err(Broken { at });
            }
            if braces == 0 {
                let (sign, closing) = match rest.as_bytes()[0] {
                    b'-' => (b'-', &rest[1..]),
                    b'+' if end == "%}" => (b'+', &rest[1..]),
                    _ => (0, rest),
                };
                if closing.starts_with(end) {
                    self.after = match sign {
                        b'-' => After::Space,
                        b'+' => After::Nothing,
                        _ => After::Newline,
                    };
                    if sign == b'+' {
                        self.pieces.push(Piece::Plus(i));
                    }
                    self.at = self.source.len() - closing.len() + end.len();
                    return Ok(Tag { tokens, at, end: i });
                }
            }
            let dotted = matches!(tokens.last(), Some(Placed { token: Token::Op("."), .. }));
            let (token, len) = token(rest, dotted).ok_or(Broken { at: i })?;
            match token {
                Token::Op("{" | "[" | "(") => braces += 1,
                Token::Op("}" | "]" | ")") => braces = braces.saturating_sub(1),
                _ => {}
            }
            tokens.push(Placed { token, at: i });
            i += len;
        }
    }
}

/// Whether a text is one byte and then spaces.
fn is_lone(text: &str) -> bool {
    let bytes = text.as_bytes();
    !bytes.is_empty() && bytes[1..].iter().all(|b| b.is_ascii_whitespace() && *b != b'\n')
}

/// Text without the spaces between the beginning of its last line and a block.
fn without_indent(text: &str, whole: bool) -> &str {
    let line = text.rfind(['\n', '\r']).map_or(0, |i| i + 1);
    let is_indent = text[line..].chars().all(char::is_whitespace) && (line > 0 || whole);
    if is_indent { &text[..line] } else { text }
}

/// The first token and its length in bytes.
fn token(rest: &str, dotted: bool) -> Option<(Token<'_>, usize)> {
    let first = rest.chars().next()?;
    if first == '"' || first == '\'' {
        let (mut escaped, mut len) = (false, None);
        for (i, c) in rest.char_indices().skip(1) {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                c if c == first => {
                    len = Some(i);
                    break;
                }
                _ => {}
            }
        }
        let len = len?;
        return Some((Token::Text(&rest[1..len]), len + 1));
    }
    if first.is_alphabetic() || first == '_' {
        let len = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        return Some((Token::Name(&rest[..len]), len));
    }
    if first.is_ascii_digit() {
        return Some(number(rest, dotted));
    }
    let op = OPERATORS.iter().find(|op| rest.starts_with(**op))?;
    Some((Token::Op(op), op.len()))
}

fn number(rest: &str, dotted: bool) -> (Token<'_>, usize) {
    let bytes = rest.as_bytes();
    let digits = |mut i: usize, is_digit: fn(&u8) -> bool| {
        while bytes.get(i).is_some_and(is_digit)
            || (bytes.get(i) == Some(&b'_') && bytes.get(i + 1).is_some_and(is_digit))
        {
            i += 1;
        }
        i
    };
    if bytes[0] == b'0' && matches!(bytes.get(1), Some(b'x' | b'X' | b'o' | b'O' | b'b' | b'B')) {
        let end = digits(2, u8::is_ascii_hexdigit);
        return (Token::Int(&rest[..end]), end);
    }
    let whole = digits(0, u8::is_ascii_digit);
    let mut end = whole;
    if !dotted && bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
        end = digits(end + 1, u8::is_ascii_digit);
    }
    if !dotted && matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        if bytes.get(end + 1 + sign).is_some_and(u8::is_ascii_digit) {
            end = digits(end + 1 + sign, u8::is_ascii_digit);
        }
    }
    let token = if end == whole { Token::Int(&rest[..end]) } else { Token::Float(&rest[..end]) };
    (token, end)
}
