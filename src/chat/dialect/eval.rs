//! Values of expressions, as far as they are known, and where engines differ over them.

use super::names::{self, Peer};
use super::syntax::{Expr, Id};
use super::values::{AFTER_FIRST, Kind, Shape, Text, Truth, Value};
use super::walk::Walk;

/// Whole numbers that a number of JavaScript holds.
const MAX_SAFE: u64 = 1 << 53;

impl<'a> Walk<'_, 'a> {
    /// The value of an expression.
    pub(super) fn eval(&mut self, id: Id) -> Value {
        if !self.enter() {
            return Value::Unknown;
        }
        let value = self.value(id);
        self.leave();
        value
    }

    /// The value of an expression that no more is made of than a decision.
    pub(super) fn unseen(&mut self, id: Id) -> Value {
        self.unseen += 1;
        let value = self.eval(id);
        self.unseen -= 1;
        value
    }

    /// What a condition comes to.
    pub(super) fn truth(&mut self, id: Id) -> Truth {
        if !self.enter() {
            return Truth::Open;
        }
        let parsed = self.parsed;
        let truth = match parsed.expr(id) {
            Expr::Not(of) => self.truth(*of).not(),
            Expr::And(a, b) => match self.truth(*a) {
                Truth::No => Truth::No,
                left => left.and(self.maybe(left, |walk| walk.truth(*b))),
            },
            Expr::Or(a, b) => match self.truth(*a) {
                Truth::Yes => Truth::Yes,
                left => left.or(self.maybe(left, |walk| walk.truth(*b))),
            },
            Expr::Compare(..) | Expr::Test { .. } => self.eval(id).truth(),
            _ => self.unseen(id).truth(),
        };
        self.leave();
        truth
    }

    /// What is evaluated only if something else comes out one way.
    fn maybe<T>(&mut self, when: Truth, eval: impl FnOnce(&mut Self) -> T) -> T {
        let (maybe, open) = (usize::from(!matches!(when, Truth::Yes | Truth::No)), usize::from(when == Truth::Open));
        (self.inline, self.open) = (self.inline + maybe, self.open + open);
        let value = eval(self);
        (self.inline, self.open) = (self.inline - maybe, self.open - open);
        value
    }

    fn value(&mut self, id: Id) -> Value {
        let parsed = self.parsed;
        let at = parsed.at(id);
        match parsed.expr(id) {
            Expr::Name(name) => self.name(name, at),
            Expr::None => Value::None,
            Expr::Bool(is) => Value::bool(*is),
            Expr::Int(n) => Value::Int(n.or(Some(i64::MAX))),
            Expr::Float(x) => Value::Float(Some(*x)),
            Expr::Text(text) => Value::text(text),
            Expr::List(items) => Value::known_list(items.iter().map(|id| self.eval(*id)).collect(), Shape::List),
            Expr::Tuple(items) => Value::known_list(items.iter().map(|id| self.eval(*id)).collect(), Shape::Tuple),
            Expr::Dict(pairs) => self.dictionary(pairs),
            Expr::Not(_) => Value::Bool(self.truth(id)),
            Expr::And(a, b) => self.either(*a, *b, false),
            Expr::Or(a, b) => self.either(*a, *b, true),
            Expr::Sign(sign, of) => match self.eval(*of) {
                Value::Int(n) if *sign == "-" => Value::Int(n.and_then(i64::checked_neg)),
                Value::Float(x) if *sign == "-" => Value::Float(x.map(|x| -x)),
                other => other,
            },
            Expr::Compare(first, rest) => self.compare(*first, rest, at),
            Expr::Binary(op, a, b) => {
                let (left, right) = (self.eval(*a), self.eval(*b));
                self.arithmetic(op, &left, &right, at)
            }
            Expr::Concat(parts) => self.concat(parts),
            Expr::If { test, then, other } => self.ternary(*test, *then, *other),
            Expr::Attribute(of, name) => {
                let value = self.eval(*of);
                self.attribute(value, name, at)
            }
            Expr::Item(of, index) => {
                if parsed.is_dotted_twice(id) {
                    self.meet("dotted-numbers", at);
                }
                let (value, index) = (self.eval(*of), self.eval(*index));
                self.item(value, &index, at)
            }
            Expr::Slice(of, parts) => self.slice(*of, parts, at),
            Expr::Call(of, args) => self.call(*of, args, at),
            Expr::Filter { of, name, args } => self.filter(*of, name, args.as_ref(), at),
            Expr::Test { of, name, args, not } => {
                let truth = self.test(*of, name, args, at);
                Value::Bool(if *not { truth.not() } else { truth })
            }
            Expr::Body => self.block.clone(),
        }
    }

    fn name(&mut self, name: &'a str, at: usize) -> Value {
        let value = self.lookup(name, at);
        if self.is_in_macro() && value == Value::Undefined && matches!(name, "varargs" | "kwargs") {
            if self.peer() == Peer::LlamaCpp {
                self.meet("macro-argument-lists", at);
            }
            return if name == "varargs" { Value::list_of(Value::Unknown, Shape::Tuple, 0) } else { Value::AnyDict };
        }
        value
    }

    fn dictionary(&mut self, pairs: &[(Id, Id)]) -> Value {
        let mut entries = Vec::new();
        for (key, value) in pairs {
            let at = self.parsed.at(*key);
            let (key, value) = (self.eval(*key), self.eval(*value));
            match &key {
                Value::Text(Text::Known(text)) => entries.push((text.to_string(), value)),
                Value::Int(Some(n)) => {
                    self.meet("number-as-key", at);
                    entries.push((format!("#{n}"), value));
                }
                Value::Undefined => {
                    self.meet("undefined-as-key", at);
                    return Value::AnyDict;
                }
                Value::None | Value::Bool(_) | Value::Float(_) => {
                    self.meet("number-as-key", at);
                    return Value::AnyDict;
                }
                _ => return Value::AnyDict,
            }
        }
        Value::dict(entries)
    }

    /// `and`, or `or`.
    fn either(&mut self, a: Id, b: Id, is_or: bool) -> Value {
        let left = self.eval(a);
        let truth = left.truth();
        if truth == Truth::of(is_or) {
            return left;
        }
        let right = self.maybe(truth, |walk| walk.eval(b));
        match truth {
            Truth::Yes | Truth::No => right,
            _ if left.kind() == Kind::Bool && right.kind() == Kind::Bool => {
                let (l, r) = (left.truth(), right.truth());
                Value::Bool(if is_or { l.or(r) } else { l.and(r) })
            }
            _ => left.join(&right),
        }
    }

    fn ternary(&mut self, test: Id, then: Id, other: Option<Id>) -> Value {
        let truth = self.truth(test);
        let mut then_value = || self.maybe(truth, |walk| walk.eval(then));
        if truth == Truth::Yes {
            return then_value();
        }
        let then = if truth == Truth::No { None } else { Some(then_value()) };
        let other = other.map_or(Value::Undefined, |other| self.maybe(truth, |walk| walk.eval(other)));
        then.map_or(other.clone(), |then| then.join(&other))
    }

    // Comparisons.

    fn compare(&mut self, first: Id, rest: &[(&'static str, Id)], at: usize) -> Value {
        if rest.len() > 1 {
            self.meet("chained-comparison", at);
        }
        let mut truth = Truth::Yes;
        let mut left = self.unseen(first);
        for (op, id) in rest {
            let right = self.unseen(*id);
            truth = truth.and(self.one_comparison(&left, op, &right, at));
            left = right;
        }
        Value::Bool(truth)
    }

    fn one_comparison(&mut self, left: &Value, op: &str, right: &Value, at: usize) -> Truth {
        self.length_compared(left, op, right, at);
        let is_nothing = |v: &Value| matches!(v.kind(), Kind::Undefined | Kind::None);
        match op {
            "in" => self.contains(right, left, at),
            "not in" => self.contains(right, left, at).not(),
            "==" => self.equal(left, right, at),
            "!=" => self.equal(left, right, at).not(),
            _ if is_nothing(left) || is_nothing(right) => {
                self.meet("order-of-nothing", at);
                Truth::Open
            }
            _ => {
                if left.kind() == Kind::Text && right.kind() == Kind::Text {
                    self.meet("text-order", at);
                }
                match (left, right) {
                    (Value::Int(Some(a)), Value::Int(Some(b))) => Truth::of(match op {
                        "<" => a < b,
                        ">" => a > b,
                        "<=" => a <= b,
                        _ => a >= b,
                    }),
                    (Value::Turns, Value::Int(Some(0..=3))) | (Value::Int(Some(0..=3)), Value::Turns) => Truth::Both,
                    (Value::Characters, Value::Int(Some(0))) => Truth::of(matches!(op, ">" | ">=")),
                    (Value::Characters, Value::Int(Some(1))) if matches!(op, ">=" | "<") => Truth::of(op == ">="),
                    _ => Truth::Open,
                }
            }
        }
    }

    /// A length in characters against a number: a length in bytes may fall on its other side.
    fn length_compared(&mut self, left: &Value, op: &str, right: &Value, at: usize) {
        let (length, op) = match (left, right) {
            (Value::Characters, Value::Int(Some(n))) => (*n, op),
            (Value::Int(Some(n)), Value::Characters) => (
                *n,
                ["<", ">", "<=", ">="]
                    .iter()
                    .zip([">", "<", ">=", "<="])
                    .find(|(o, _)| **o == op)
                    .map_or(op, |(_, r)| r),
            ),
            _ => return,
        };
        let is_whether_empty = length <= 0 || length == 1 && matches!(op, ">=" | "<");
        if !is_whether_empty {
            self.meet("length-in-bytes", at);
        }
    }

    fn equal(&mut self, left: &Value, right: &Value, at: usize) -> Truth {
        let kinds = (left.kind(), right.kind());
        if matches!(kinds, (Kind::List, Kind::List) | (Kind::Dict, Kind::Dict)) {
            self.meet("compare-lists", at);
        }
        match (left, right) {
            (Value::Text(Text::Known(a)), Value::Text(Text::Known(b))) => Truth::of(a == b),
            (Value::Text(Text::Role(i)), Value::Text(Text::Known(role)))
            | (Value::Text(Text::Known(role)), Value::Text(Text::Role(i))) => self.role_is(*i, role),
            // What people write is no word that a template knows.
            (Value::Text(Text::Content), Value::Text(Text::Known(_)))
            | (Value::Text(Text::Known(_)), Value::Text(Text::Content)) => Truth::No,
            (Value::Int(Some(a)), Value::Int(Some(b))) => Truth::of(a == b),
            (Value::Characters, Value::Int(Some(0))) => Truth::No,
            (Value::Turns, Value::Int(Some(0..=3))) | (Value::Int(Some(0..=3)), Value::Turns) => Truth::Both,
            (Value::Text(Text::Known(text)), Value::Int(Some(n)))
            | (Value::Int(Some(n)), Value::Text(Text::Known(text))) => {
                if **text == n.to_string() {
                    self.meet("compare-types", at);
                }
                Truth::No
            }
            (Value::Bool(a), Value::Bool(b)) => match (a, b) {
                (x, Truth::Yes) | (Truth::Yes, x) => *x,
                (x, Truth::No) | (Truth::No, x) => x.not(),
                _ => Truth::Open,
            },
            (Value::Unknown, _) | (_, Value::Unknown) => Truth::Open,
            (a, b) if a.kind() == b.kind() => {
                if matches!(a.kind(), Kind::None | Kind::Undefined) {
                    Truth::Yes
                } else {
                    Truth::Open
                }
            }
            (a, b) if numeric(a) && numeric(b) => Truth::Open,
            _ => Truth::No,
        }
    }

    fn contains(&mut self, whole: &Value, part: &Value, at: usize) -> Truth {
        match (whole, part) {
            (Value::None, _) => {
                self.meet("in-nothing", at);
                Truth::Open
            }
            (Value::Undefined, _) => Truth::No,
            (Value::Text(Text::Known(whole)), Value::Text(Text::Known(part))) => Truth::of(whole.contains(&**part)),
            // Marks such as `</think>` are no words of a conversation.
            (Value::Text(Text::Content), Value::Text(Text::Known(part))) if is_mark(part) => Truth::No,
            (Value::Message(_), Value::Text(Text::Known(key))) => Truth::of(matches!(&**key, "role" | "content")),
            (Value::Dict(dict), Value::Text(Text::Known(key))) => {
                Truth::of(dict.entries.iter().any(|(k, _)| **k == **key))
            }
            (Value::List(list), part) => {
                let Some(items) = &list.items else { return Truth::Open };
                let items = items.clone();
                items.iter().fold(Truth::No, |truth, item| truth.or(self.equal(item, part, at)))
            }
            _ => Truth::Open,
        }
    }

    // Operators.

    fn arithmetic(&mut self, op: &'static str, left: &Value, right: &Value, at: usize) -> Value {
        match (op, left.kind(), right.kind()) {
            (_, Kind::Unknown, _) | (_, _, Kind::Unknown) => return Value::Unknown,
            ("+", Kind::Text, Kind::Text) => return join_texts([left, right].into_iter()),
            ("+", Kind::Text, Kind::Int | Kind::Float | Kind::Bool)
            | ("+", Kind::Int | Kind::Float | Kind::Bool, Kind::Text) => {
                self.meet("add-text-number", at);
                return Value::any_text();
            }
            ("+", Kind::Text, Kind::None | Kind::Undefined) | ("+", Kind::None | Kind::Undefined, Kind::Text) => {
                self.meet("add-text-none", at);
                return Value::any_text();
            }
            ("+", Kind::List, Kind::List) => return add_lists(left, right),
            ("*", Kind::List, Kind::Int) | ("*", Kind::Int, Kind::List) => {
                self.meet("list-times", at);
                return left.widened();
            }
            ("*", Kind::Text, Kind::Int) | ("*", Kind::Int, Kind::Text) => {
                self.meet("text-times", at);
                return Value::any_text();
            }
            ("%", Kind::Text, _) => {
                self.meet("text-percent", at);
                return Value::any_text();
            }
            (_, Kind::Undefined | Kind::None, _) | (_, _, Kind::Undefined | Kind::None) => {
                self.meet("order-of-nothing", at);
                return Value::Unknown;
            }
            (_, Kind::Text, _) | (_, _, Kind::Text) => {
                self.meet("text-arithmetic", at);
                return Value::Unknown;
            }
            _ => {}
        }
        if numeric(left) && numeric(right) && (left.kind() == Kind::Bool || right.kind() == Kind::Bool) {
            self.meet("bool-arithmetic", at);
        }
        self.numbers(op, left, right, at)
    }

    fn numbers(&mut self, op: &str, left: &Value, right: &Value, at: usize) -> Value {
        if *left == Value::Characters || *right == Value::Characters {
            return Value::Characters;
        }
        if *left == Value::Turns && matches!((op, right), ("+" | "-" | "%", Value::Int(Some(0..=3)))) {
            return Value::Turns;
        }
        let (a, b) = (number(left), number(right));
        if op == "%"
            && let (Some(a), Some(b)) = (a, b)
            && (a < 0.0) != (b < 0.0)
            && a % b != 0.0
        {
            self.meet("negative-modulo", at);
        }
        let is_int = left.kind() == Kind::Int && right.kind() == Kind::Int && op != "/";
        let result = a.zip(b).map(|(a, b)| match op {
            "+" => a + b,
            "-" => a - b,
            "*" => a * b,
            "/" => a / b,
            "//" => (a / b).floor(),
            "%" => a - b * (a / b).floor(),
            _ => a.powf(b),
        });
        let result = result.filter(|x| x.is_finite());
        if is_int {
            return Value::Int(result.filter(|x| x.abs() < MAX_SAFE as f64).map(|x| x as i64));
        }
        Value::Float(result)
    }

    fn concat(&mut self, parts: &[Id]) -> Value {
        let mut values = Vec::new();
        let mut was_text = false;
        for (i, id) in parts.iter().enumerate() {
            let at = self.parsed.at(*id);
            let value = self.eval(*id);
            let is_text = matches!(value.kind(), Kind::Text | Kind::Unknown);
            if i > 0 && !was_text && !is_text {
                self.meet("concat-no-text", at);
            }
            was_text = i > 0 || is_text;
            match value.kind() {
                Kind::None => self.meet("concat-none", at),
                Kind::Undefined => self.meet("concat-undefined", at),
                Kind::Bool => self.meet("concat-bool", at),
                Kind::Float => {
                    self.float_digits(&value, at);
                    if number(&value).is_some_and(|x| x.fract() == 0.0) {
                        self.meet("concat-float", at);
                    }
                }
                Kind::List => {
                    let is_lazy =
                        matches!(&value, Value::List(list) if matches!(list.shape, Shape::Lazy | Shape::Generator));
                    self.meet(if is_lazy { "concat-lazy" } else { "concat-list" }, at);
                }
                Kind::Dict | Kind::Space => self.meet("concat-dict", at),
                _ if value == Value::Characters => self.meet("length-in-bytes", at),
                _ => {
                    if let Value::Text(Text::Cut(rule)) = value {
                        self.meet(rule, at);
                    }
                }
            }
            values.push(value);
        }
        join_texts(values.iter())
    }

    fn float_digits(&mut self, value: &Value, at: usize) {
        let Value::Float(Some(x)) = value else { return };
        let six = format!("{x:.6}");
        if six.trim_end_matches('0').trim_end_matches('.') != format!("{x}") {
            self.meet("float-digits", at);
        }
    }

    /// A value of `{{ }}`.
    pub(super) fn print(&mut self, value: &Value, at: usize) {
        match value {
            Value::Bool(_) => self.meet("print-bool", at),
            Value::None => self.meet("print-none", at),
            Value::Float(_) => self.float_digits(value, at),
            Value::Characters => self.meet("length-in-bytes", at),
            Value::Text(Text::Cut(rule)) => self.meet(rule, at),
            Value::Int(Some(n)) if n.unsigned_abs() > MAX_SAFE => self.meet("big-number", at),
            Value::List(list) => {
                let are_numbers = list.items.as_ref().is_some_and(|items| items.iter().all(|i| i.kind() == Kind::Int));
                match list.shape {
                    Shape::Tuple => self.meet("print-tuple", at),
                    Shape::List if are_numbers => self.meet("print-number-list", at),
                    Shape::List if list.items.is_none() && list.item.kind() == Kind::Int => {
                        self.meet("print-number-list", at);
                    }
                    _ => self.meet("print-list", at),
                }
            }
            _ => match value.kind() {
                Kind::Dict | Kind::Space => self.meet("print-dict", at),
                Kind::Function => self.meet("print-function", at),
                _ => {}
            },
        }
    }

    // Parts of values.

    fn attribute(&mut self, value: Value, name: &'a str, at: usize) -> Value {
        match &value {
            Value::Undefined => {
                self.meet("attribute-of-undefined", at);
                let is_theirs =
                    self.peer() == Peer::LlamaCpp && names::applies(Peer::LlamaCpp, Kind::Undefined, name, true);
                if is_theirs { Value::Unknown } else { Value::Undefined }
            }
            Value::Space(i) => self.spaces[*i].get(name).cloned().unwrap_or(Value::Undefined),
            Value::Loop => match name {
                "index0" | "first" if self.is_first_turn() => {
                    if name == "first" {
                        Value::bool(true)
                    } else {
                        Value::Int(Some(0))
                    }
                }
                "index" | "index0" | "revindex" | "revindex0" | "length" => Value::Turns,
                "first" | "last" => Value::Bool(Truth::Both),
                "depth" | "depth0" => {
                    self.meet("loop-depth", at);
                    Value::Int(None)
                }
                "cycle" | "changed" => {
                    self.meet("loop-method", at);
                    Value::Unknown
                }
                _ => Value::Unknown,
            },
            Value::Macro(_) => {
                self.meet("macro-attribute", at);
                Value::Unknown
            }
            _ if names::is_method(value.kind(), name) => {
                if matches!(value, Value::Dict(_)) && entry(&value, name) != Value::Undefined {
                    self.meet("key-named-as-method", at);
                }
                Value::Method(value.into(), name.into())
            }
            Value::Message(_) | Value::Dict(_) | Value::AnyDict => entry(&value, name),
            Value::Unknown | Value::Function(_) | Value::Method(..) => Value::Unknown,
            Value::Text(_) | Value::List(_) if name == "length" => {
                self.meet("length-attribute", at);
                Value::Undefined
            }
            _ => Value::Undefined,
        }
    }

    fn item(&mut self, value: Value, index: &Value, at: usize) -> Value {
        match (&value, index) {
            (Value::Undefined, index) => {
                let is_number = index.kind() == Kind::Int;
                self.meet(if is_number { "item-of-undefined" } else { "attribute-of-undefined" }, at);
                Value::Undefined
            }
            (Value::List(list), Value::Int(_) | Value::Turns) if list.shape == Shape::Generator => {
                self.meet("generator-item", at);
                Value::Undefined
            }
            (Value::Space(i), Value::Text(Text::Known(name))) => {
                self.spaces[*i].get(&**name).cloned().unwrap_or(Value::Undefined)
            }
            (Value::Message(_) | Value::Dict(_) | Value::AnyDict, Value::Text(Text::Known(key))) => entry(&value, key),
            (Value::Message(_), _) => Value::any_text(),
            (Value::Dict(_), Value::Int(Some(n))) => entry(&value, &format!("#{n}")),
            (Value::List(list), Value::Turns) => list.item.clone(),
            (Value::List(list), Value::Int(index)) => match (&list.items, index) {
                (Some(items), Some(i)) => {
                    let i = if *i < 0 { *i + items.len() as i64 } else { *i };
                    usize::try_from(i).ok().and_then(|i| items.get(i).cloned()).unwrap_or(Value::Undefined)
                }
                // No conversation here is so long.
                (None, Some(i)) if matches!(list.item, Value::Message(_)) && i.abs() > 8 => Value::Undefined,
                _ => list.item.clone(),
            },
            (Value::Text(_), Value::Int(i)) => {
                let is_negative = i.is_some_and(|i| i < 0);
                Value::Text(match (is_negative, value.is_wide()) {
                    (true, _) => Text::Cut("negative-text-index"),
                    (false, true) => Text::Cut("index-in-bytes"),
                    (false, false) => Text::Any,
                })
            }
            (Value::Text(_) | Value::List(_), Value::Text(Text::Known(_))) | (Value::None, _) => Value::Undefined,
            _ => Value::Unknown,
        }
    }

    fn slice(&mut self, of: Id, parts: &[Option<Id>; 3], at: usize) -> Value {
        let value = self.eval(of);
        let bounds: Vec<Option<Value>> = parts.iter().map(|part| part.map(|part| self.eval(part))).collect();
        match &value {
            Value::Undefined => {
                self.meet("slice-of-undefined", at);
                Value::Undefined
            }
            Value::List(list) => {
                if list.shape == Shape::Generator {
                    self.meet("generator-slice", at);
                }
                let item = match (&list.item, &bounds[0]) {
                    (Value::Message(0), Some(Value::Int(Some(1..)))) => Value::Message(AFTER_FIRST),
                    (item, _) => item.clone(),
                };
                let cut = usize::from(bounds[0].is_some()) + usize::from(bounds[1].is_some());
                Value::list_of(item, list.shape, list.at_least.saturating_sub(cut))
            }
            Value::Text(text) => {
                let is_whole = bounds.iter().all(Option::is_none);
                Value::Text(if value.is_wide() && !is_whole { Text::Cut("slice-in-bytes") } else { text.like() })
            }
            _ => Value::Unknown,
        }
    }
}

/// The value under a key.
pub(super) fn entry(value: &Value, key: &str) -> Value {
    match value {
        Value::Message(i) => match key {
            "role" => Value::Text(Text::Role(*i)),
            "content" => Value::Text(Text::Content),
            _ => Value::Undefined,
        },
        Value::Dict(dict) => {
            dict.entries.iter().rev().find(|(k, _)| k == key).map_or(Value::Undefined, |(_, value)| value.clone())
        }
        _ => Value::Unknown,
    }
}

fn numeric(value: &Value) -> bool {
    matches!(value.kind(), Kind::Int | Kind::Float | Kind::Bool)
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Int(n) => n.map(|n| n as f64),
        Value::Float(x) => *x,
        Value::Bool(Truth::Yes) => Some(1.0),
        Value::Bool(Truth::No) => Some(0.0),
        _ => None,
    }
}

/// What people hardly write, but templates look for.
fn is_mark(text: &str) -> bool {
    text.contains(['<', '>', '[', ']', '{', '}', '|', '/', '_']) || text.len() > 12
}

fn join_texts<'v>(parts: impl Iterator<Item = &'v Value>) -> Value {
    let (mut known, mut is_content) = (Some(String::new()), false);
    for part in parts {
        is_content |= *part == Value::Text(Text::Content);
        known = match part {
            Value::Text(Text::Known(text)) => known.map(|known| known + text),
            Value::Int(Some(n)) => known.map(|known| known + &n.to_string()),
            _ => None,
        }
        .filter(|known| known.len() < 4096);
    }
    match known {
        Some(known) => Value::text(&known),
        None if is_content => Value::Text(Text::Content),
        None => Value::any_text(),
    }
}

fn add_lists(left: &Value, right: &Value) -> Value {
    let (Value::List(a), Value::List(b)) = (left, right) else { return Value::Unknown };
    if let (Some(x), Some(y)) = (&a.items, &b.items)
        && x.len() + y.len() <= 64
    {
        return Value::known_list([x.as_slice(), y.as_slice()].concat(), a.shape);
    }
    let is_empty = |list: &super::values::List| list.items.as_ref().is_some_and(Vec::is_empty);
    let item = match (is_empty(a), is_empty(b)) {
        (true, _) => b.item.clone(),
        (_, true) => a.item.clone(),
        _ => a.item.join(&b.item),
    };
    Value::list_of(item, a.shape, a.at_least.saturating_add(b.at_least))
}
