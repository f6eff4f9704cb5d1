//! The grammar of jinja2 3.1.6 (its parser.py) with the extensions that transformers loads.
//!
//! What other engines cannot parse is noted on the way. Expressions lie in one list and name each
//! other by number, so that dropping them needs no stack; how high they are built is bounded.

use super::names;
use super::source::{self, Piece, Placed, Tag, Token};

/// Levels of blocks in blocks, and of expressions in expressions.
const MAX_LEVELS: usize = 100;

/// An expression, by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Id(usize);

#[derive(Debug)]
pub(super) enum Expr<'a> {
    Name(&'a str),
    None,
    Bool(bool),
    /// Without a value if it is beyond 64 bits.
    Int(Option<i64>),
    Float(f64),
    Text(String),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Not(Id),
    Sign(&'static str, Id),
    And(Id, Id),
    Or(Id, Id),
    Compare(Id, Vec<(&'static str, Id)>),
    /// Arithmetic.
    Binary(&'static str, Id, Id),
    Concat(Vec<Id>),
    If {
        test: Id,
        then: Id,
        other: Option<Id>,
    },
    Attribute(Id, &'a str),
    Item(Id, Id),
    Slice(Id, [Option<Id>; 3]),
    Call(Id, Args<'a>),
    /// A filter; whether it has parentheses.
    Filter {
        of: Id,
        name: &'a str,
        args: Option<Args<'a>>,
    },
    Test {
        of: Id,
        name: &'a str,
        args: Args<'a>,
        not: bool,
    },
    /// What a block prints, as a filter takes it.
    Body,
}

#[derive(Debug, Default)]
pub(super) struct Args<'a> {
    pub(super) values: Vec<Id>,
    pub(super) keywords: Vec<(&'a str, Id)>,
    /// `*` or `**` is among them.
    pub(super) unpacks: bool,
}

#[derive(Debug)]
pub(super) enum Statement<'a> {
    Data(source::Data<'a>),
    Print(Id),
    For {
        target: Target<'a>,
        of: Id,
        only: Option<Id>,
        body: Vec<Statement<'a>>,
        other: Vec<Statement<'a>>,
    },
    If {
        branches: Vec<(Id, Vec<Statement<'a>>)>,
        other: Vec<Statement<'a>>,
    },
    Set(Target<'a>, Id),
    SetBlock {
        target: Target<'a>,
        filter: Option<Id>,
        body: Vec<Statement<'a>>,
        at: usize,
    },
    Macro {
        name: &'a str,
        macro_: Macro<'a>,
    },
    Call {
        call: Id,
        body: Macro<'a>,
    },
    Filter {
        filter: Id,
        body: Vec<Statement<'a>>,
    },
    /// Its own scope in jinja2, none in the others.
    Generation(Vec<Statement<'a>>),
    With(Vec<(Target<'a>, Id)>, Vec<Statement<'a>>),
    Scope(Vec<Statement<'a>>),
    /// `break` or `continue`.
    Leave(usize),
}

#[derive(Debug)]
pub(super) struct Macro<'a> {
    /// Numbers of the first expression of the body and after the last one.
    exprs: (usize, usize),
    pub(super) params: Vec<(&'a str, Option<Id>)>,
    pub(super) body: Vec<Statement<'a>>,
}

#[derive(Clone, Debug)]
pub(super) enum Target<'a> {
    Name(&'a str),
    /// `{% set space.name = … %}`.
    Attribute(&'a str, &'a str, usize),
    Several(Vec<Target<'a>>, usize),
}

/// A template, parsed.
#[derive(Debug, Default)]
pub(super) struct Parsed<'a> {
    exprs: Vec<(Expr<'a>, usize)>,
    heights: Vec<usize>,
    pub(super) body: Vec<Statement<'a>>,
    /// Items such as `x.0.1`, in order.
    dotted: Vec<Id>,
    /// Numbers of the first expression and after the last one of each `{{ }}`.
    prints: Vec<(usize, usize)>,
    /// Blocks of `if` around what is parsed; jinja2 looks names of filters up later there.
    ifs: usize,
    /// What the grammars of engines differ in, with its place.
    pub(super) notes: Vec<(&'static str, usize)>,
}

impl<'a> Parsed<'a> {
    pub(super) fn expr(&self, id: Id) -> &Expr<'a> {
        &self.exprs[id.0].0
    }

    /// Whether the name is read anywhere.
    pub(super) fn has_name(&self, name: &str) -> bool {
        self.exprs.iter().any(|(expr, _)| matches!(expr, Expr::Name(n) if *n == name))
    }

    /// Whether an item is the second of two numbers after dots, which llama.cpp reads as one.
    pub(super) fn is_dotted_twice(&self, id: Id) -> bool {
        self.dotted.binary_search(&id).is_ok()
    }

    /// Whether a macro's body prints what a name stands for, or something made of it.
    pub(super) fn prints(&self, body: &Macro<'_>, name: &str) -> bool {
        let (from, to) = body.exprs;
        (from..to).filter(|i| matches!(self.exprs[*i].0, Expr::Name(n) if n == name)).any(|i| {
            let next = self.prints.partition_point(|(start, _)| *start <= i);
            next > 0 && i < self.prints[next - 1].1
        })
    }

    pub(super) fn at(&self, id: Id) -> usize {
        self.exprs[id.0].1
    }
}

/// Why a template was not parsed to its end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop {
    /// jinja2 cannot parse it either.
    Syntax(usize),
    /// A statement that jinja2 does not know.
    Unknown(usize),
    /// It is nested deeper than is looked at.
    Depth,
}

type Result<T> = std::result::Result<T, Stop>;

/// Parses a template as far as jinja2 would; with what was noted until then.
pub(super) fn parse(source: &str) -> (Parsed<'_>, Option<Stop>) {
    let pieces = match source::cut(source) {
        Ok(pieces) => pieces,
        Err(broken) => return (Parsed::default(), Some(Stop::Syntax(broken.at))),
    };
    let mut blocks = Blocks { pieces: pieces.into_iter().peekable(), out: Parsed::default(), levels: 0 };
    match blocks.until(&[], source.len()) {
        Ok((body, _)) => blocks.out.body = body,
        Err(stop) => return (blocks.out, Some(stop)),
    }
    (blocks.out, None)
}

/// Statements.
struct Blocks<'a> {
    pieces: std::iter::Peekable<std::vec::IntoIter<Piece<'a>>>,
    out: Parsed<'a>,
    levels: usize,
}

type Body<'a> = Vec<Statement<'a>>;

impl<'a> Blocks<'a> {
    /// Statements to a block of one of these names, which is returned.
    fn until(&mut self, ends: &[&str], opened: usize) -> Result<(Body<'a>, Option<Tag<'a>>)> {
        self.levels += 1;
        if self.levels > MAX_LEVELS {
            return Err(Stop::Depth);
        }
        let mut body = Vec::new();
        while let Some(piece) = self.pieces.next() {
            match piece {
                Piece::Data(data) => body.push(Statement::Data(data)),
                Piece::Raw(at) => self.out.notes.push(("raw", at)),
                Piece::Plus(at) => self.out.notes.push(("plus-sign", at)),
                Piece::Print(tag) => {
                    let from = self.out.exprs.len();
                    let mut line = Line::new(&tag, &mut self.out);
                    let value = line.tuple(true)?;
                    line.done()?;
                    self.out.prints.push((from, self.out.exprs.len()));
                    body.push(Statement::Print(value));
                }
                Piece::Block(tag) => {
                    let Some(Placed { token: Token::Name(word), at }) = tag.tokens.first().copied() else {
                        return Err(Stop::Syntax(tag.at));
                    };
                    if ends.contains(&word) {
                        self.levels -= 1;
                        return Ok((body, Some(tag)));
                    }
                    self.statement(word, at, &tag, &mut body)?;
                }
            }
        }
        self.levels -= 1;
        if ends.is_empty() { Ok((body, None)) } else { Err(Stop::Syntax(opened)) }
    }

    fn body(&mut self, end: &str, at: usize) -> Result<Body<'a>> {
        Ok(self.until(&[end], at)?.0)
    }

    fn statement(&mut self, word: &'a str, at: usize, tag: &Tag<'a>, body: &mut Body<'a>) -> Result<()> {
        let statement = match word {
            "for" => self.for_loop(tag)?,
            "if" => self.condition(tag)?,
            "set" => self.set(tag)?,
            "macro" => {
                let mut line = Line::after_word(tag, &mut self.out);
                let name = line.name()?;
                let params = line.params()?;
                line.done()?;
                Statement::Macro { name, macro_: self.macro_body(params, "endmacro", at)? }
            }
            "call" => {
                let mut line = Line::after_word(tag, &mut self.out);
                let params = if line.is("(") { line.params()? } else { Vec::new() };
                let call = line.expression()?;
                line.done()?;
                Statement::Call { call, body: self.macro_body(params, "endcall", at)? }
            }
            "filter" => {
                let mut line = Line::after_word(tag, &mut self.out);
                let filter = line.block_filters()?;
                line.done()?;
                Statement::Filter { filter, body: self.body("endfilter", at)? }
            }
            "generation" => Statement::Generation(self.body("endgeneration", at)?),
            "break" | "continue" => Statement::Leave(at),
            "with" => self.with(tag, at)?,
            "autoescape" | "block" => {
                self.out.notes.push((if word == "block" { "block" } else { "autoescape" }, at));
                Statement::Scope(self.body(if word == "block" { "endblock" } else { "endautoescape" }, at)?)
            }
            "include" | "import" | "extends" | "from" => {
                self.out.notes.push(("other-templates", at));
                return Ok(());
            }
            _ => return Err(Stop::Unknown(at)),
        };
        body.push(statement);
        Ok(())
    }

    fn macro_body(&mut self, params: Vec<(&'a str, Option<Id>)>, end: &str, at: usize) -> Result<Macro<'a>> {
        let from = self.out.exprs.len();
        let body = self.body(end, at)?;
        Ok(Macro { exprs: (from, self.out.exprs.len()), params, body })
    }

    fn with(&mut self, tag: &Tag<'a>, at: usize) -> Result<Statement<'a>> {
        self.out.notes.push(("with", at));
        let mut line = Line::after_word(tag, &mut self.out);
        let mut values = Vec::new();
        while line.peek().is_some() {
            let target = line.target()?;
            line.expect("=")?;
            values.push((target, line.expression()?));
            line.take(",");
        }
        Ok(Statement::With(values, self.body("endwith", at)?))
    }

    fn for_loop(&mut self, tag: &Tag<'a>) -> Result<Statement<'a>> {
        let mut line = Line::after_word(tag, &mut self.out);
        let target = line.target()?;
        line.word("in")?;
        let of = line.tuple(false)?;
        if let Expr::Tuple(_) = line.out.expr(of)
            && !line.parenthesised
        {
            let at = line.out.at(of);
            line.out.notes.push(("loop-over-bare-tuple", at));
        }
        let only = if line.take_word("if") { Some(line.expression()?) } else { None };
        if let Some(at) = line.take_word("recursive").then_some(tag.at) {
            line.out.notes.push(("recursive-loop", at));
        }
        line.done()?;
        let (body, end) = self.until(&["else", "endfor"], tag.at)?;
        let is_else = end.is_some_and(|tag| matches!(tag.tokens[0].token, Token::Name("else")));
        let other = if is_else { self.body("endfor", tag.at)? } else { Vec::new() };
        Ok(Statement::For { target, of, only, body, other })
    }

    fn condition(&mut self, tag: &Tag<'a>) -> Result<Statement<'a>> {
        self.out.ifs += 1;
        let statement = self.branches(tag)?;
        self.out.ifs -= 1;
        Ok(statement)
    }

    fn test(&mut self, tag: &Tag<'a>) -> Result<Id> {
        let mut line = Line::after_word(tag, &mut self.out);
        let test = line.tuple(false)?;
        line.done()?;
        Ok(test)
    }

    fn branches(&mut self, tag: &Tag<'a>) -> Result<Statement<'a>> {
        let mut branches = Vec::new();
        let mut test = self.test(tag)?;
        loop {
            let (body, end) = self.until(&["elif", "else", "endif"], tag.at)?;
            branches.push((test, body));
            let Some(end) = end else { return Err(Stop::Syntax(tag.at)) };
            match end.tokens[0].token {
                Token::Name("elif") => {
                    test = self.test(&end)?;
                }
                Token::Name("else") => {
                    return Ok(Statement::If { branches, other: self.body("endif", tag.at)? });
                }
                _ => return Ok(Statement::If { branches, other: Vec::new() }),
            }
        }
    }

    fn set(&mut self, tag: &Tag<'a>) -> Result<Statement<'a>> {
        let mut line = Line::after_word(tag, &mut self.out);
        let target = line.target()?;
        if line.take("=") {
            let value = line.tuple(true)?;
            line.done()?;
            return Ok(Statement::Set(target, value));
        }
        let filter = if line.is("|") { Some(line.block_filters_after_bar()?) } else { None };
        line.done()?;
        Ok(Statement::SetBlock { target, filter, body: self.body("endset", tag.at)?, at: tag.at })
    }
}

/// The tokens of one tag.
struct Line<'a, 'b> {
    tokens: &'b [Placed<'a>],
    next: usize,
    end: usize,
    out: &'b mut Parsed<'a>,
    levels: usize,
    /// The last primary stood in parentheses.
    parenthesised: bool,
}

impl<'a, 'b> Line<'a, 'b> {
    fn new(tag: &'b Tag<'a>, out: &'b mut Parsed<'a>) -> Self {
        Self { tokens: &tag.tokens, next: 0, end: tag.end, out, levels: 0, parenthesised: false }
    }

    fn after_word(tag: &'b Tag<'a>, out: &'b mut Parsed<'a>) -> Self {
        Self { next: 1, ..Self::new(tag, out) }
    }

    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.next).map(|t| t.token)
    }

    fn here(&self) -> usize {
        self.tokens.get(self.next).map_or(self.end, |t| t.at)
    }

    fn error<T>(&self) -> Result<T> {
        Err(Stop::Syntax(self.here()))
    }

    fn is(&self, op: &str) -> bool {
        matches!(self.peek(), Some(Token::Op(o)) if o == op)
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Some(Token::Name(w)) if w == word)
    }

    fn take(&mut self, op: &str) -> bool {
        let is = self.is(op);
        self.next += usize::from(is);
        is
    }

    fn take_word(&mut self, word: &str) -> bool {
        let is = self.is_word(word);
        self.next += usize::from(is);
        is
    }

    fn expect(&mut self, op: &str) -> Result<()> {
        if self.take(op) { Ok(()) } else { self.error() }
    }

    fn word(&mut self, word: &str) -> Result<()> {
        if self.take_word(word) { Ok(()) } else { self.error() }
    }

    fn done(&self) -> Result<()> {
        if self.peek().is_none() { Ok(()) } else { self.error() }
    }

    fn note(&mut self, construct: &'static str, at: usize) {
        self.out.notes.push((construct, at));
    }

    /// A name that jinja2 lacks: an error at once, but in conditions and what depends on them.
    fn unknown(&mut self, construct: &'static str, at: usize) {
        if self.out.ifs == 0 && !self.tokens.iter().any(|t| matches!(t.token, Token::Name("if"))) {
            self.note(construct, at);
        }
    }

    fn name(&mut self) -> Result<&'a str> {
        let Some(Token::Name(name)) = self.peek() else { return self.error() };
        if !name.is_ascii() {
            let at = self.here();
            self.note("name-beyond-ascii", at);
        }
        self.next += 1;
        Ok(name)
    }

    fn push(&mut self, expr: Expr<'a>, at: usize) -> Result<Id> {
        let of = |ids: &[Id]| ids.iter().map(|id| self.out.heights[id.0]).max().unwrap_or(0);
        let args = |args: &Args<'_>| {
            let named = args.keywords.iter().map(|(_, id)| self.out.heights[id.0]).max().unwrap_or(0);
            of(&args.values).max(named)
        };
        let height = match &expr {
            Expr::List(ids) | Expr::Tuple(ids) | Expr::Concat(ids) => of(ids),
            Expr::Dict(pairs) => pairs.iter().map(|(k, v)| of(&[*k, *v])).max().unwrap_or(0),
            Expr::Not(a) | Expr::Sign(_, a) | Expr::Attribute(a, _) => of(&[*a]),
            Expr::And(a, b) | Expr::Or(a, b) | Expr::Binary(_, a, b) | Expr::Item(a, b) => of(&[*a, *b]),
            Expr::Compare(a, rest) => rest.iter().map(|(_, id)| of(&[*id])).max().unwrap_or(0).max(of(&[*a])),
            Expr::If { test, then, other } => of(&[*test, *then, other.unwrap_or(*then)]),
            Expr::Slice(a, parts) => parts.iter().flatten().map(|id| of(&[*id])).max().unwrap_or(0).max(of(&[*a])),
            Expr::Call(a, given) | Expr::Test { of: a, args: given, .. } => of(&[*a]).max(args(given)),
            Expr::Filter { of: a, args: given, .. } => of(&[*a]).max(given.as_ref().map_or(0, args)),
            _ => 0,
        };
        if height >= 2 * MAX_LEVELS {
            return Err(Stop::Depth);
        }
        self.out.exprs.push((expr, at));
        self.out.heights.push(height + 1);
        Ok(Id(self.out.exprs.len() - 1))
    }

    /// What is assigned to.
    fn target(&mut self) -> Result<Target<'a>> {
        let at = self.here();
        let mut targets = vec![self.one_target()?];
        let mut is_tuple = false;
        while self.take(",") {
            is_tuple = true;
            if self.is("=") || self.is_word("in") {
                break;
            }
            targets.push(self.one_target()?);
        }
        if is_tuple {
            return Ok(Target::Several(targets, at));
        }
        Ok(targets.swap_remove(0))
    }

    fn one_target(&mut self) -> Result<Target<'a>> {
        self.levels += 1;
        if self.levels > MAX_LEVELS {
            return Err(Stop::Depth);
        }
        let at = self.here();
        if self.take("(") {
            let inner = self.target()?;
            self.expect(")")?;
            self.levels -= 1;
            return Ok(inner);
        }
        let name = self.name()?;
        self.levels -= 1;
        if self.take(".") {
            return Ok(Target::Attribute(name, self.name()?, at));
        }
        if self.is("[") {
            self.note("set-item", at);
            return self.error();
        }
        Ok(Target::Name(name))
    }

    fn params(&mut self) -> Result<Vec<(&'a str, Option<Id>)>> {
        self.expect("(")?;
        let mut params = Vec::new();
        while !self.take(")") {
            if !params.is_empty() {
                self.expect(",")?;
                if self.take(")") {
                    break;
                }
            }
            let name = self.name()?;
            let default = if self.take("=") { Some(self.expression()?) } else { None };
            params.push((name, default));
        }
        Ok(params)
    }

    /// `upper | trim` of a filter block.
    fn block_filters(&mut self) -> Result<Id> {
        let at = self.here();
        let body = self.push(Expr::Body, at)?;
        let mut of = self.one_filter(body)?;
        while self.is("|") {
            let at = self.here();
            self.note("filter-block-chain", at);
            self.next += 1;
            of = self.one_filter(of)?;
        }
        Ok(of)
    }

    /// The same in `{% set a | upper %}`, which no other engine renders.
    fn block_filters_after_bar(&mut self) -> Result<Id> {
        let at = self.here();
        let mut of = self.push(Expr::Body, at)?;
        while self.take("|") {
            of = self.one_filter(of)?;
        }
        Ok(of)
    }

    fn one_filter(&mut self, of: Id) -> Result<Id> {
        let at = self.here();
        let mut name = self.name()?;
        while self.take(".") {
            name = self.name()?;
        }
        if !names::is_filter(name) {
            self.unknown("unknown-filter", at);
        }
        let args = if self.is("(") { Some(self.args()?) } else { None };
        self.push(Expr::Filter { of, name, args }, at)
    }

    /// A value, or several with commas.
    fn tuple(&mut self, with_if: bool) -> Result<Id> {
        let at = self.here();
        let mut items = Vec::new();
        let mut is_tuple = false;
        self.parenthesised = false;
        loop {
            if !items.is_empty() && (self.peek().is_none() || self.is(")") || self.is("=") || self.is_word("in")) {
                break;
            }
            items.push(if with_if { self.expression()? } else { self.or()? });
            if !self.take(",") {
                break;
            }
            is_tuple = true;
        }
        if is_tuple {
            self.parenthesised = false;
            if items.len() == 1 {
                self.note("short-tuple", at);
            }
            return self.push(Expr::Tuple(items), at);
        }
        Ok(items[0])
    }

    fn expression(&mut self) -> Result<Id> {
        let at = self.here();
        let then = self.or()?;
        self.ternary(then, at)
    }

    fn ternary(&mut self, mut then: Id, at: usize) -> Result<Id> {
        while self.take_word("if") {
            let test = self.or()?;
            let other = if self.take_word("else") { Some(self.nested(Self::expression)?) } else { None };
            then = self.push(Expr::If { test, then, other }, at)?;
        }
        Ok(then)
    }

    /// One level deeper.
    fn nested(&mut self, parse: fn(&mut Self) -> Result<Id>) -> Result<Id> {
        self.levels += 1;
        if self.levels > MAX_LEVELS {
            return Err(Stop::Depth);
        }
        let id = parse(self)?;
        self.levels -= 1;
        Ok(id)
    }

    fn or(&mut self) -> Result<Id> {
        let at = self.here();
        let mut left = self.and()?;
        while self.take_word("or") {
            let right = self.and()?;
            left = self.push(Expr::Or(left, right), at)?;
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Id> {
        let at = self.here();
        let mut left = self.not()?;
        while self.take_word("and") {
            let right = self.not()?;
            left = self.push(Expr::And(left, right), at)?;
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Id> {
        let at = self.here();
        if self.take_word("not") {
            let of = self.nested(Self::not)?;
            return self.push(Expr::Not(of), at);
        }
        self.compare()
    }

    fn compare(&mut self) -> Result<Id> {
        let at = self.here();
        let left = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let op = match self.peek() {
                Some(Token::Op(op @ ("==" | "!=" | "<" | ">" | "<=" | ">="))) => op,
                Some(Token::Name("in")) => "in",
                Some(Token::Name("not"))
                    if matches!(self.tokens.get(self.next + 1), Some(Placed { token: Token::Name("in"), .. })) =>
                {
                    self.next += 1;
                    "not in"
                }
                _ => break,
            };
            self.next += 1;
            rest.push((op, self.sum()?));
        }
        if rest.is_empty() { Ok(left) } else { self.push(Expr::Compare(left, rest), at) }
    }

    fn sum(&mut self) -> Result<Id> {
        let at = self.here();
        let mut left = self.concat()?;
        while let Some(Token::Op(op @ ("+" | "-"))) = self.peek() {
            self.next += 1;
            let right = self.concat()?;
            left = self.push(Expr::Binary(op, left, right), at)?;
        }
        Ok(left)
    }

    fn concat(&mut self) -> Result<Id> {
        let at = self.here();
        let mut parts = vec![self.product()?];
        while self.take("~") {
            parts.push(self.product()?);
        }
        if parts.len() == 1 { Ok(parts[0]) } else { self.push(Expr::Concat(parts), at) }
    }

    fn product(&mut self) -> Result<Id> {
        let at = self.here();
        let mut left = self.power()?;
        while let Some(Token::Op(op @ ("*" | "/" | "//" | "%"))) = self.peek() {
            if op == "//" {
                let at = self.here();
                self.note("floor-division", at);
            }
            self.next += 1;
            let right = self.power()?;
            left = self.push(Expr::Binary(op, left, right), at)?;
        }
        Ok(left)
    }

    fn power(&mut self) -> Result<Id> {
        let at = self.here();
        let mut left = self.unary(true)?;
        while self.is("**") {
            let sign = self.here();
            self.note("power", sign);
            self.next += 1;
            let right = self.unary(true)?;
            left = self.push(Expr::Binary("**", left, right), at)?;
        }
        Ok(left)
    }

    fn unary(&mut self, filters: bool) -> Result<Id> {
        let at = self.here();
        self.levels += 1;
        if self.levels > MAX_LEVELS {
            return Err(Stop::Depth);
        }
        let mut id = match self.peek() {
            Some(Token::Op(sign @ ("-" | "+"))) => {
                let before = self.next.checked_sub(1).map(|i| self.tokens[i].token);
                if matches!(before, Some(Token::Name(_))) {
                    self.note("sign-after-word", at);
                }
                self.next += 1;
                let of = self.unary(false)?;
                self.push(Expr::Sign(sign, of), at)?
            }
            _ => self.primary()?,
        };
        id = self.postfix(id)?;
        if filters {
            id = self.filters(id)?;
        }
        self.levels -= 1;
        Ok(id)
    }

    fn primary(&mut self) -> Result<Id> {
        let at = self.here();
        let Some(token) = self.peek() else { return self.error() };
        self.parenthesised = false;
        let expr = match token {
            Token::Name("true" | "True") => Expr::Bool(true),
            Token::Name("false" | "False") => Expr::Bool(false),
            Token::Name("none" | "None") => Expr::None,
            Token::Name(_) => Expr::Name(self.name()?),
            Token::Text(_) => return self.text(),
            Token::Int(digits) => self.whole(digits),
            Token::Float(digits) => {
                if digits.contains(['e', 'E', '_']) {
                    self.note("number-notation", at);
                }
                Expr::Float(digits.replace('_', "").parse().unwrap_or(f64::NAN))
            }
            Token::Op("(") => return self.parentheses(),
            Token::Op("[") => return self.list(),
            Token::Op("{") => return self.dict(),
            Token::Op(_) => return self.error(),
        };
        if !matches!(token, Token::Name(name) if matches!(expr, Expr::Name(_)) && !name.is_empty()) {
            self.next += 1;
        }
        self.push(expr, at)
    }

    fn whole(&mut self, digits: &str) -> Expr<'a> {
        let at = self.here();
        if digits.contains('_') || digits.as_bytes().get(1).is_some_and(u8::is_ascii_alphabetic) {
            self.note("number-notation", at);
            return Expr::Int(None);
        }
        let value = digits.parse().ok();
        if value.is_none() {
            self.note("huge-number", at);
        }
        Expr::Int(value)
    }

    /// Adjacent strings are one.
    fn text(&mut self) -> Result<Id> {
        let at = self.here();
        let mut value = String::new();
        while let Some(Token::Text(raw)) = self.peek() {
            let place = self.here();
            if let Some(construct) = unescape(raw, &mut value) {
                self.note(construct, place);
            }
            self.next += 1;
        }
        self.push(Expr::Text(value), at)
    }

    fn parentheses(&mut self) -> Result<Id> {
        let at = self.here();
        self.expect("(")?;
        if self.take(")") {
            self.note("short-tuple", at);
            return self.push(Expr::Tuple(Vec::new()), at);
        }
        let id = self.tuple(true)?;
        self.expect(")")?;
        self.parenthesised = true;
        Ok(id)
    }

    fn list(&mut self) -> Result<Id> {
        let at = self.here();
        self.expect("[")?;
        let mut items = Vec::new();
        while !self.take("]") {
            if !items.is_empty() {
                self.expect(",")?;
                if self.take("]") {
                    break;
                }
            }
            items.push(self.expression()?);
        }
        self.push(Expr::List(items), at)
    }

    fn dict(&mut self) -> Result<Id> {
        let at = self.here();
        self.expect("{")?;
        let mut pairs = Vec::new();
        while !self.take("}") {
            if !pairs.is_empty() {
                self.expect(",")?;
                if self.take("}") {
                    break;
                }
            }
            let key = self.expression()?;
            self.expect(":")?;
            pairs.push((key, self.expression()?));
        }
        self.push(Expr::Dict(pairs), at)
    }

    fn postfix(&mut self, mut id: Id) -> Result<Id> {
        loop {
            let at = self.here();
            if self.take(".") {
                id = match self.peek() {
                    Some(Token::Int(digits)) => {
                        let dotted = self.next.checked_sub(2).map(|i| self.tokens[i].token);
                        self.next += 1;
                        let index = self.push(Expr::Int(digits.parse().ok()), at)?;
                        let item = self.push(Expr::Item(id, index), at)?;
                        if matches!(dotted, Some(Token::Int(_))) {
                            self.out.dotted.push(item);
                        }
                        item
                    }
                    _ => {
                        let at = self.here();
                        let name = self.name()?;
                        self.push(Expr::Attribute(id, name), at)?
                    }
                };
            } else if self.is("[") {
                id = self.subscript(id)?;
            } else if self.is("(") {
                // A call is where the name of the method or function is.
                let at = self.out.at(id);
                let args = self.args()?;
                id = self.push(Expr::Call(id, args), at)?;
            } else {
                return Ok(id);
            }
        }
    }

    fn subscript(&mut self, of: Id) -> Result<Id> {
        let at = self.here();
        self.expect("[")?;
        let (mut parts, mut i, mut is_slice) = ([None; 3], 0, false);
        while !self.take("]") {
            if self.take(":") {
                is_slice = true;
                i += 1;
                if i > 2 {
                    return self.error();
                }
            } else {
                if parts[i].is_some() {
                    return self.error();
                }
                parts[i] = Some(self.expression()?);
            }
        }
        match (is_slice, parts[0]) {
            (true, _) => self.push(Expr::Slice(of, parts), at),
            (false, Some(index)) => self.push(Expr::Item(of, index), at),
            (false, None) => self.error(),
        }
    }

    fn args(&mut self) -> Result<Args<'a>> {
        self.expect("(")?;
        let mut args = Args::default();
        let mut is_first = true;
        while !self.take(")") {
            if !is_first {
                self.expect(",")?;
                if self.take(")") {
                    break;
                }
            }
            is_first = false;
            let at = self.here();
            if self.take("*") || self.is("**") {
                if self.take("**") {
                    self.note("unpacked-keywords", at);
                }
                args.unpacks = true;
                self.expression()?;
                continue;
            }
            let next = self.tokens.get(self.next + 1).map(|t| t.token);
            if let (Some(Token::Name(name)), Some(Token::Op("="))) = (self.peek(), next) {
                self.next += 2;
                args.keywords.push((name, self.expression()?));
            } else {
                args.values.push(self.expression()?);
            }
        }
        Ok(args)
    }

    fn filters(&mut self, mut id: Id) -> Result<Id> {
        loop {
            let at = self.here();
            if self.take("|") {
                id = self.one_filter(id)?;
            } else if self.take_word("is") {
                id = self.test(id, at)?;
            } else if self.is("(") {
                let args = self.args()?;
                id = self.push(Expr::Call(id, args), at)?;
            } else {
                return Ok(id);
            }
        }
    }

    fn test(&mut self, of: Id, at: usize) -> Result<Id> {
        let not = self.take_word("not");
        let name = self.name()?;
        if !names::is_test(name) {
            self.unknown("unknown-test", at);
        }
        let mut args = Args::default();
        let takes = match self.peek() {
            Some(Token::Name("else" | "or" | "and" | "is" | "if" | "in" | "not")) => false,
            Some(Token::Name(_) | Token::Text(_) | Token::Int(_) | Token::Float(_)) => true,
            Some(Token::Op("(" | "[" | "{")) => true,
            _ => false,
        };
        if takes {
            self.note("test-argument", at);
        }
        if self.is("(") {
            args = self.args()?;
        } else if takes {
            let id = self.primary()?;
            args.values.push(self.postfix(id)?);
        }
        self.push(Expr::Test { of, name, args, not }, at)
    }
}

/// Adds what a string literal means, and says what others cannot read of it.
fn unescape(raw: &str, out: &mut String) -> Option<&'static str> {
    let mut worst = None;
    let mut chars = raw.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some('b') => out.push('\u{8}'),
            Some('f') => out.push('\u{c}'),
            Some('v') => out.push('\u{b}'),
            Some(c @ ('\\' | '\'' | '"')) => out.push(c),
            Some(kind @ ('x' | 'u')) => {
                let digits: String = chars.by_ref().take(if kind == 'x' { 2 } else { 4 }).collect();
                let code = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
                out.push(code.unwrap_or('\u{fffd}'));
                worst = worst.or(Some(if kind == 'x' { "hex-escape" } else { "unicode-escape" }));
            }
            other => {
                out.push('\\');
                out.extend(other);
                worst = Some("escape");
            }
        }
    }
    worst
}
