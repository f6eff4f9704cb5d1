//! Functions, methods, filters and tests.

use std::collections::HashMap;

use super::eval::entry;
use super::names::{self, Peer};
use super::syntax::{Args, Id};
use super::values::{Kind, Shape, Text, Truth, Value};
use super::walk::Walk;

/// Arguments, evaluated.
struct Given<'a> {
    values: Vec<Value>,
    keywords: Vec<(&'a str, Value)>,
}

impl Given<'_> {
    /// An argument by its name or place.
    fn get(&self, name: &str, place: usize) -> Option<&Value> {
        self.keyword(name).or_else(|| self.values.get(place))
    }

    fn keyword(&self, name: &str) -> Option<&Value> {
        self.keywords.iter().find(|(keyword, _)| *keyword == name).map(|(_, value)| value)
    }

    fn text(&self, place: usize) -> Option<&str> {
        self.values.get(place).and_then(Value::known_text)
    }
}

impl<'a> Walk<'_, 'a> {
    fn given_args(&mut self, args: &Args<'a>) -> Given<'a> {
        let values = args.values.iter().map(|id| self.eval(*id)).collect();
        let keywords = args.keywords.iter().map(|(name, id)| (*name, self.eval(*id))).collect();
        Given { values, keywords }
    }

    pub(super) fn call(&mut self, of: Id, args: &Args<'a>, at: usize) -> Value {
        let callee = self.eval(of);
        let given = self.given_args(args);
        match callee {
            Value::Function(name) => self.function(name, given, at),
            Value::Macro(_) if args.unpacks => {
                self.meet("macro-unpacking", at);
                Value::any_text()
            }
            Value::Macro(i) => self.call_macro(i, given.values, given.keywords, at),
            Value::Method(value, name) => self.method(&value, &name, &given, at),
            // The loop itself, of a recursive one.
            Value::Loop => Value::any_text(),
            Value::Unknown => Value::Unknown,
            _ => {
                self.meet("call-undefined", at);
                Value::Unknown
            }
        }
    }

    fn function(&mut self, name: &'static str, given: Given<'a>, at: usize) -> Value {
        if names::lacks_function(self.peer(), name) {
            self.lack("function", name, Kind::Function, at);
        }
        match name {
            "namespace" => {
                let mut entries: HashMap<String, Value> = HashMap::new();
                if let Some(Value::Dict(first)) = given.values.first() {
                    entries.extend(first.entries.iter().cloned());
                }
                if given.keywords.iter().any(|(name, _)| name.starts_with('_')) {
                    self.meet("private-attribute", at);
                }
                entries.extend(given.keywords.into_iter().map(|(name, value)| (name.to_owned(), value)));
                self.space(entries)
            }
            "dict" if given.values.is_empty() => {
                Value::dict(given.keywords.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
            }
            "dict" => Value::AnyDict,
            "range" => {
                let count = match given.values[..] {
                    [Value::Int(Some(n))] => usize::try_from(n).unwrap_or(0),
                    [Value::Int(Some(a)), Value::Int(Some(b))] => usize::try_from(b.saturating_sub(a)).unwrap_or(0),
                    _ => 0,
                };
                Value::list_of(Value::Turns, Shape::Lazy, count)
            }
            "raise_exception" => {
                self.end();
                Value::Unknown
            }
            "strftime_now" | "caller" => Value::any_text(),
            _ => Value::Unknown,
        }
    }

    // Methods.

    fn method(&mut self, of: &Value, name: &str, given: &Given<'a>, at: usize) -> Value {
        let kind = of.kind();
        if names::is_changing(kind, name) {
            let construct = if kind == Kind::List && name == "append" { "changes-a-list" } else { "changes-a-value" };
            self.meet(construct, at);
            return Value::Unknown;
        }
        if !names::has_method(self.peer(), kind, name) {
            self.lack("method", name, kind, at);
        }
        match kind {
            Kind::Text => self.text_method(of, name, given, at),
            Kind::Dict => self.dict_method(of, name, given, at),
            _ => Value::Int(None),
        }
    }

    fn dict_method(&mut self, of: &Value, name: &str, given: &Given<'a>, at: usize) -> Value {
        match name {
            "get" => {
                let default = given.values.get(1).cloned().unwrap_or(Value::None);
                match given.values.first() {
                    Some(Value::Text(Text::Known(key))) => match entry(of, key) {
                        Value::Undefined => default,
                        other => other,
                    },
                    Some(key) if matches!(key.kind(), Kind::Int | Kind::Float | Kind::Bool | Kind::None) => {
                        self.meet("get-other-key", at);
                        Value::Unknown
                    }
                    _ => Value::Unknown,
                }
            }
            "items" => Value::list_of(pair(of), Shape::Lazy, of.items().and_then(|(_, n)| n).unwrap_or(0)),
            "keys" => Value::list_of(Value::any_text(), Shape::Lazy, of.items().and_then(|(_, n)| n).unwrap_or(0)),
            "values" => Value::list_of(values_of(of), Shape::Lazy, of.items().and_then(|(_, n)| n).unwrap_or(0)),
            "copy" => of.clone(),
            _ => Value::Unknown,
        }
    }

    fn text_method(&mut self, of: &Value, name: &str, given: &Given<'a>, at: usize) -> Value {
        let Value::Text(text) = of else { return Value::Unknown };
        let like = || Value::Text(text.like());
        match name {
            "upper" | "lower" | "capitalize" | "title" => self.case(of, name, at),
            "strip" | "lstrip" | "rstrip" => {
                self.stripped(of, name, given, at);
                like()
            }
            "split" | "rsplit" => {
                if !given.keywords.is_empty() {
                    self.meet("method-keywords", at);
                }
                if given.values.first() == Some(&Value::None) {
                    self.meet("split-whitespace", at);
                }
                if let (None, Text::Known(text)) = (given.values.first(), text)
                    && !text.split(' ').eq(text.split_whitespace())
                {
                    self.meet("split-whitespace", at);
                }
                Value::list_of(like(), Shape::List, 1)
            }
            "startswith" | "endswith" => {
                if given.values.first().is_some_and(|prefix| prefix.kind() == Kind::List) {
                    self.meet("starts-with-tuple", at);
                }
                match (text, given.text(0)) {
                    (Text::Known(text), Some(part)) if name == "startswith" => Value::bool(text.starts_with(part)),
                    (Text::Known(text), Some(part)) => Value::bool(text.ends_with(part)),
                    _ => Value::Bool(Truth::Open),
                }
            }
            "replace" => {
                if given.keywords.is_empty() {
                    self.replaced(given, at);
                } else {
                    self.meet("replace-keyword", at);
                }
                like()
            }
            "format" => {
                if text_has_fields(text) || !given.keywords.is_empty() {
                    self.meet("format-fields", at);
                }
                Value::any_text()
            }
            "splitlines" | "partition" | "rpartition" => Value::list_of(like(), Shape::List, 1),
            "find" | "rfind" | "index" | "rindex" | "count" => Value::Int(None),
            _ if name.starts_with("is") => Value::Bool(Truth::Open),
            "encode" | "translate" | "maketrans" => Value::Unknown,
            _ => like(),
        }
    }

    fn replaced(&mut self, given: &Given<'a>, at: usize) {
        if given.get("count", 2).is_some_and(|count| !matches!(count, Value::None | Value::Int(Some(i64::MIN..=0)))) {
            self.meet("replace-count", at);
        }
    }

    /// Characters to strip, which JavaScript's engine does not look at.
    fn stripped(&mut self, of: &Value, name: &str, given: &Given<'a>, at: usize) {
        let Some(chars) = given.values.first().filter(|chars| chars.kind() != Kind::None) else { return };
        let matters = match (of, chars.known_text()) {
            (Value::Text(Text::Known(text)), Some(chars)) => {
                let set: Vec<char> = chars.chars().collect();
                let strip = |text: &str, is: &dyn Fn(char) -> bool| match name {
                    "lstrip" => text.trim_start_matches(is).to_owned(),
                    "rstrip" => text.trim_end_matches(is).to_owned(),
                    _ => text.trim_matches(is).to_owned(),
                };
                strip(text, &|c| set.contains(&c)) != strip(text, &char::is_whitespace)
            }
            (Value::Text(Text::Content), Some(chars)) => !chars.trim().is_empty(),
            _ => false,
        };
        if matters {
            self.meet("strip-characters", at);
        }
        if of.is_wide() && chars.is_wide() {
            self.meet("strip-beyond-ascii", at);
        }
    }

    /// `upper` and the like.
    fn case(&mut self, of: &Value, name: &str, at: usize) -> Value {
        let text = match of {
            Value::Text(text) => text,
            _ => return Value::any_text(),
        };
        match (name, text) {
            ("upper" | "lower", Text::Content) => self.meet("case-beyond-ascii", at),
            ("capitalize", Text::Content) => self.meet("capitalize", at),
            ("title", Text::Content) => self.meet("title", at),
            ("upper" | "lower", Text::Known(known)) => {
                let is_upper = name == "upper";
                let ascii = if is_upper { known.to_ascii_uppercase() } else { known.to_ascii_lowercase() };
                let python = if is_upper { known.to_uppercase() } else { known.to_lowercase() };
                if ascii != python {
                    self.meet("case-beyond-ascii", at);
                }
                return Value::text(&python);
            }
            ("capitalize", Text::Known(known)) if known.chars().skip(1).any(char::is_uppercase) => {
                self.meet("capitalize", at);
            }
            ("lower", Text::Role(_)) => return of.clone(),
            ("title", Text::Known(known)) => {
                let mut last = ' ';
                let (mut inner, mut upper) = (false, false);
                for c in known.chars() {
                    inner |= c.is_alphabetic() && !last.is_alphabetic() && !last.is_whitespace();
                    upper |= c.is_uppercase() && last.is_alphabetic();
                    last = c;
                }
                if inner {
                    self.meet("title-letters", at);
                }
                if upper {
                    self.meet("title", at);
                }
            }
            _ => {}
        }
        Value::Text(text.like())
    }

    // Filters.

    pub(super) fn filter(&mut self, of: Id, name: &'a str, args: Option<&Args<'a>>, at: usize) -> Value {
        let value = if matches!(name, "length" | "count") { self.unseen(of) } else { self.eval(of) };
        let given = args.map(|args| self.given_args(args));
        let called = given.is_some();
        let given = given.unwrap_or(Given { values: Vec::new(), keywords: Vec::new() });
        if !names::is_filter(name) {
            self.meet("unknown-filter-met", at);
            return Value::Unknown;
        }
        if name == "default" || name == "d" {
            return self.default(value, name, called, &given, at);
        }
        let (peer, kind) = (self.peer(), value.kind());
        let applies = match kind {
            Kind::Unknown => names::applies_to_some(peer, name, called),
            Kind::Undefined if name == "tojson" => {
                self.meet("tojson-undefined", at);
                true
            }
            Kind::Undefined if matches!(name, "dictsort" | "abs" | "round") => {
                self.meet("filter-of-undefined", at);
                self.meet("filter-undefined", at);
                peer != Peer::LlamaCpp
            }
            // An undefined value is an empty one to jinja2 and llama.cpp.
            Kind::Undefined if peer == Peer::Javascript => {
                self.meet("filter-undefined", at);
                true
            }
            Kind::Function => true,
            Kind::None if names::fails_on_none(name) => {
                self.meet("filter-of-none", at);
                names::applies(peer, kind, name, called)
            }
            _ => names::applies(peer, kind, name, called),
        };
        if !applies {
            self.lack("filter", name, kind, at);
        }
        if kind == Kind::Undefined
            && matches!(name, "map" | "select" | "selectattr" | "reject" | "rejectattr" | "unique")
        {
            return Value::list_of(Value::Unknown, Shape::Generator, 0);
        }
        if let Value::List(_) = &value {
            return self.list_filter(&value, name, &given, at);
        }
        self.other_filter(&value, name, &given, at)
    }

    fn default(&mut self, value: Value, name: &'a str, called: bool, given: &Given<'a>, at: usize) -> Value {
        if !called || given.values.is_empty() && given.keywords.is_empty() {
            self.meet("default-without-value", at);
        } else if self.peer() == Peer::Javascript && name == "d" {
            self.lack("filter", name, value.kind(), at);
        } else if given.keyword("default_value").is_some() {
            self.meet("default-keyword", at);
        }
        let fallback = given.get("default_value", 0).cloned().unwrap_or_else(|| Value::text(""));
        let is_boolean = given.get("boolean", 1).is_some_and(|flag| flag.truth() == Truth::Yes);
        if self.peer() == Peer::LlamaCpp && called && matches!(value.kind(), Kind::Dict | Kind::Space) {
            self.lack("filter", name, value.kind(), at);
        }
        match value.truth() {
            _ if value == Value::Undefined => fallback,
            Truth::No if is_boolean => fallback,
            Truth::Open if is_boolean => value.join(&fallback),
            _ if value == Value::None => {
                self.meet("default-none", at);
                value
            }
            _ if value == Value::Unknown => Value::Unknown,
            _ => value,
        }
    }

    fn list_filter(&mut self, value: &Value, name: &str, given: &Given<'a>, at: usize) -> Value {
        let Value::List(list) = value else { return Value::Unknown };
        let item = list.item.clone();
        match (list.shape, name) {
            (Shape::Generator, "length" | "count" | "random") => self.meet("generator-length", at),
            (Shape::Generator | Shape::Lazy, "tojson") => self.meet("generator-json", at),
            _ => {}
        }
        match name {
            "first" | "last" if list.items.as_ref().is_some_and(Vec::is_empty) => Value::Undefined,
            "first" | "last" | "min" | "max" | "random" => item,
            "length" | "count" if list.items.is_none() && matches!(list.item, Value::Message(_)) => Value::Turns,
            "length" | "count" => Value::Int(list.items.as_ref().and_then(|items| i64::try_from(items.len()).ok())),
            "list" | "sort" | "reverse" | "unique" => {
                if name == "sort" {
                    self.sorted(list, given, at);
                }
                match (&list.items, name) {
                    (Some(items), "list") => Value::known_list(items.clone(), Shape::List),
                    (_, "unique" | "reverse") => Value::list_of(item, Shape::Generator, list.at_least),
                    _ => Value::list_of(item, Shape::List, list.at_least),
                }
            }
            "join" => {
                self.joined(list, given, at);
                Value::any_text()
            }
            "map" => self.mapped(list, given, at),
            "select" | "reject" | "selectattr" | "rejectattr" => {
                self.selected(name, given, at);
                Value::list_of(item, Shape::Generator, 0)
            }
            "tojson" => {
                if list.shape == Shape::Tuple {
                    self.meet("json-tuple", at);
                }
                self.json(value, given, at)
            }
            "string" => {
                let is_other = |item: &Value| item.kind() != Kind::Int;
                if list.items.as_ref().map_or(is_other(&list.item), |items| items.iter().any(is_other)) {
                    self.meet("string-list", at);
                }
                Value::any_text()
            }
            "batch" | "slice" => Value::list_of(Value::Unknown, Shape::Generator, 0),
            "groupby" => Value::list_of(Value::Unknown, Shape::List, 0),
            "safe" => {
                self.meet("safe-of-others", at);
                Value::any_text()
            }
            _ => Value::Unknown,
        }
    }

    fn sorted(&mut self, list: &super::values::List, given: &Given<'a>, at: usize) {
        let texts: Vec<&str> = list.items.iter().flatten().filter_map(Value::known_text).collect();
        let (mut by_case, mut without) = (texts.clone(), texts);
        by_case.sort_unstable();
        without.sort_by_key(|text| text.to_lowercase());
        if by_case != without && given.keywords.is_empty() && given.values.is_empty() {
            self.meet("sort-case", at);
        }
    }

    fn joined(&mut self, list: &super::values::List, given: &Given<'a>, at: usize) {
        if !given.keywords.is_empty() {
            self.meet("join-keywords", at);
        }
        let is_other = |item: &Value| matches!(item.kind(), Kind::None | Kind::Bool | Kind::List | Kind::Dict);
        let takes_attribute = given.get("attribute", 1).is_some();
        if !takes_attribute && list.items.as_ref().map_or(is_other(&list.item), |items| items.iter().any(is_other)) {
            self.meet("join-others", at);
        }
    }

    fn mapped(&mut self, list: &super::values::List, given: &Given<'a>, at: usize) -> Value {
        let Some(attribute) = given.keyword("attribute") else {
            self.lack("filter", "map", Kind::List, at);
            let text = matches!(given.text(0), Some("upper" | "lower" | "trim" | "string" | "capitalize" | "tojson"));
            return Value::list_of(
                if text { Value::any_text() } else { Value::Unknown },
                Shape::Generator,
                list.at_least,
            );
        };
        let Some(path) = attribute.known_text() else {
            return Value::list_of(Value::Unknown, Shape::Generator, list.at_least);
        };
        if path.contains('.') {
            self.meet("map-path", at);
        }
        let mut item = list.item.clone();
        for name in path.split('.') {
            item = entry(&item, name);
        }
        if item == Value::Undefined {
            item = given.keyword("default").cloned().unwrap_or(item);
        }
        Value::list_of(item, Shape::Generator, list.at_least)
    }

    fn selected(&mut self, name: &str, given: &Given<'a>, at: usize) {
        if !name.ends_with("attr") {
            match given.values.len() {
                0 => self.meet("select-by-truth", at),
                1 => self.meet("select-by-test", at),
                _ => {}
            }
            return;
        }
        let is_literal = |value: &Value| value.known_text().is_some();
        if !given.values.iter().all(is_literal) {
            self.meet("select-variable", at);
        }
        let Some(test) = given.text(1) else { return };
        if matches!(test, "==" | "!=" | "<" | ">" | "<=" | ">=") {
            self.meet("select-test-symbol", at);
        } else if names::is_test(test) && !names::has_test(Peer::Javascript, test) {
            self.meet("select-test", at);
        } else if given.values.len() == 2 {
            self.meet("select-test-without-argument", at);
        }
    }

    fn json(&mut self, value: &Value, given: &Given<'a>, at: usize) -> Value {
        if given.get("sort_keys", 3).is_some_and(|flag| flag.truth() == Truth::Yes) {
            self.meet("json-sorted", at);
        }
        if given.keyword("indent") == Some(&Value::Int(Some(0))) {
            self.meet("json-indent-zero", at);
        }
        if let Value::Float(Some(x)) = value
            && x.fract() == 0.0
        {
            self.meet("json-float", at);
        }
        if let Value::Float(Some(x)) = value
            && format!("{x:.5e}").parse() != Ok(*x)
        {
            self.meet("json-digits", at);
        }
        Value::any_text()
    }

    fn other_filter(&mut self, value: &Value, name: &str, given: &Given<'a>, at: usize) -> Value {
        match (name, value) {
            ("length" | "count", Value::Text(Text::Known(text))) => {
                if text.is_ascii() {
                    Value::Int(i64::try_from(text.len()).ok())
                } else {
                    Value::Characters
                }
            }
            ("length" | "count", Value::Text(Text::Content)) => Value::Characters,
            ("length" | "count", Value::Undefined) => Value::Int(Some(0)),
            ("length" | "count" | "wordcount", _) => Value::Int(None),
            ("upper" | "lower" | "capitalize" | "title", _) => self.case(value, name, at),
            ("trim", Value::Text(Text::Role(_))) => value.clone(),
            ("trim", Value::Text(text)) => Value::Text(text.like()),
            ("replace", Value::Text(text)) => {
                self.replaced(given, at);
                Value::Text(text.like())
            }
            ("tojson", _) => self.json(value, given, at),
            ("string", Value::Bool(_) | Value::Float(_)) => self.number_as_text(value, at),
            ("string", Value::Int(Some(n))) => Value::text(&n.to_string()),
            ("string" | "safe", Value::Text(_)) => value.clone(),
            ("int", Value::Float(Some(x))) => {
                if *x < 0.0 && x.fract() != 0.0 {
                    self.meet("int-of-negative", at);
                }
                Value::Int(Some(x.trunc() as i64))
            }
            ("int", _) => Value::Int(None),
            ("abs", Value::Int(n)) => Value::Int(n.and_then(i64::checked_abs)),
            ("float", Value::Int(Some(n))) => Value::Float(Some(*n as f64)),
            ("float" | "round", _) => Value::Float(None),
            ("abs", _) => value.widened(),
            ("indent", _) => {
                if given.get("width", 0).is_some_and(|width| width.kind() == Kind::Text) {
                    self.meet("indent-text", at);
                }
                value.widened()
            }
            ("format", Value::Text(Text::Known(text))) => {
                if text.contains('%') {
                    self.meet("format-percent", at);
                }
                Value::any_text()
            }
            ("items" | "dictsort", _) => {
                let count = value.items().and_then(|(_, n)| n).unwrap_or(0);
                Value::list_of(pair(value), if name == "items" { Shape::Generator } else { Shape::List }, count)
            }
            ("list", _) => Value::list_of(Value::Unknown, Shape::List, 0),
            ("first" | "last", Value::Text(_)) => Value::any_text(),
            _ if matches!(value.kind(), Kind::Text) => Value::any_text(),
            _ => Value::Unknown,
        }
    }

    fn number_as_text(&mut self, value: &Value, at: usize) -> Value {
        match value {
            Value::Bool(_) => self.meet("string-bool", at),
            Value::Float(Some(x)) if x.fract() == 0.0 => self.meet("string-float", at),
            _ => {}
        }
        Value::any_text()
    }

    // Tests.

    pub(super) fn test(&mut self, of: Id, name: &'a str, args: &Args<'a>, at: usize) -> Truth {
        let value = self.unseen(of);
        let given = self.given_args(args);
        if !names::is_test(name) {
            self.meet("unknown-test-met", at);
            return Truth::Open;
        }
        if !names::has_test(self.peer(), name) {
            self.lack("test", name, value.kind(), at);
        }
        let kind = value.kind();
        match (name, kind) {
            ("iterable", Kind::Dict) => self.meet("iterable-dict", at),
            ("iterable", Kind::Undefined) => self.meet("iterable-undefined", at),
            ("callable", Kind::Undefined) => self.meet("callable-undefined", at),
            ("number", Kind::Bool) => self.meet("number-bool", at),
            ("odd" | "even", Kind::Text | Kind::List | Kind::None | Kind::Dict) => self.meet("test-of-other-type", at),
            ("lower" | "upper", _) if value.is_wide() => self.meet("is-lower-beyond-ascii", at),
            _ => {}
        }
        if kind == Kind::Unknown && !matches!(name, "eq" | "equalto") {
            return Truth::Open;
        }
        match name {
            "defined" => Truth::of(kind != Kind::Undefined),
            "undefined" => Truth::of(kind == Kind::Undefined),
            "none" => Truth::of(kind == Kind::None),
            "string" => Truth::of(kind == Kind::Text),
            "mapping" => Truth::of(kind == Kind::Dict),
            "iterable" => Truth::of(matches!(kind, Kind::Dict | Kind::List | Kind::Text | Kind::Undefined)),
            "sequence" => Truth::of(matches!(kind, Kind::Dict | Kind::List | Kind::Text | Kind::Undefined)),
            "number" => Truth::of(matches!(kind, Kind::Int | Kind::Float | Kind::Bool)),
            "integer" => Truth::of(kind == Kind::Int),
            "float" => Truth::of(kind == Kind::Float),
            "boolean" => Truth::of(kind == Kind::Bool),
            "callable" => Truth::of(matches!(kind, Kind::Function | Kind::Undefined)),
            "true" if kind == Kind::Bool => value.truth(),
            "false" if kind == Kind::Bool => value.truth().not(),
            "true" | "false" => Truth::No,
            "eq" | "equalto" => match (&value, given.values.first()) {
                (Value::Text(Text::Known(a)), Some(Value::Text(Text::Known(b)))) => Truth::of(a == b),
                _ => Truth::Open,
            },
            _ => Truth::Open,
        }
    }
}

/// A key with its value.
fn pair(of: &Value) -> Value {
    Value::known_list(vec![Value::any_text(), values_of(of)], Shape::List)
}

fn values_of(of: &Value) -> Value {
    match of {
        Value::Message(_) => Value::any_text(),
        Value::Dict(dict) => {
            dict.entries.iter().map(|(_, value)| value.clone()).reduce(|a, b| a.join(&b)).unwrap_or(Value::Unknown)
        }
        _ => Value::Unknown,
    }
}

/// `{` that is not the beginning of `{}`.
fn text_has_fields(text: &Text) -> bool {
    let Text::Known(text) = text else { return false };
    text.matches('{').count() != text.matches("{}").count()
}
