//! What templates expect of Python and transformers, and the engine does not do or does at any
//! price.

use std::fmt::{self, Write as _};
use std::time::SystemTime;

use minijinja::value::{Kwargs, ObjectRepr, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::source::HELD;

/// Bytes that one unit of fuel pays for (the engine's documentation of `Environment::set_fuel`).
const BYTES_PER_FUEL: u64 = 64;
/// Fuel for the text of a byte of a list or map: walking them costs more than copying (as in the
/// engine's vm/fuel.rs).
const FUEL_PER_CONTAINER_BYTES: u64 = 4;
/// Levels of lists and maps in JSON and in namespaces.
const MAX_NESTING: usize = 64;
/// Widest field of `str.format`.
const MAX_FORMAT_DIGITS: usize = 3;

/// The words of `raise_exception`, as the source of the engine's error.
#[derive(thiserror::Error, Debug)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// Puts all of it into an environment.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_formatter(print);
    environment.set_unknown_method_callback(method);
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |state: &State<'_, '_>, value: Value| text(state, &value).map(Value::from));
    environment.add_filter("join", join);
    environment.add_filter("e", escape);
    environment.add_filter("escape", escape);
    environment.add_filter("items", |state: &mut State<'_, '_>, map: Value| match map.kind() {
        ValueKind::Undefined => Ok(Value::from(Vec::<Value>::new())),
        _ => method(state, &map, "items", &[]),
    });
    // The engine iterates over none; `tools is iterable` must say that it is none.
    environment.add_test("iterable", |value: Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_function("raise_exception", |state: &State<'_, '_>, message: Value| -> Result<Value, Error> {
        let message = text(state, &message)?;
        Err(Error::new(ErrorKind::InvalidOperation, "raised").with_source(Raised(message)))
    });
    // The type of maps is the engine's own business, so it is asked what `{}` makes.
    let plain = environment.compile_expression("{}").and_then(|e| e.eval(())).ok().and_then(|map| type_of(&map));
    environment.add_function(HELD, move |state: &State<'_, '_>, value: Value| {
        held(state, &value, plain, 0)?;
        Ok(value)
    });
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// The Rust type behind a list, map or other object.
fn type_of(value: &Value) -> Option<&'static str> {
    value.as_object().map(|o| o.type_name())
}

/// Lets only values into a namespace that cannot hold it: no namespaces, and no loops, whose
/// neighbours change.
///
/// So the walk is over a tree, and its fuel ends it before lists that share lists grow beyond
/// bounds.
fn held(state: &State<'_, '_>, value: &Value, plain: Option<&str>, depth: usize) -> Result<(), Error> {
    state.consume_fuel(1)?;
    let Some(object) = value.as_object() else { return Ok(()) };
    if depth == MAX_NESTING {
        return Err(invalid(format!("more than {MAX_NESTING} levels of lists in a namespace")));
    }
    match object.repr() {
        ObjectRepr::Map if plain == type_of(value) => {
            for (_, item) in object.try_iter_pairs().into_iter().flatten() {
                held(state, &item, plain, depth + 1)?;
            }
            Ok(())
        }
        ObjectRepr::Seq | ObjectRepr::Iterable => {
            for item in object.try_iter().into_iter().flatten() {
                held(state, &item, plain, depth + 1)?;
            }
            Ok(())
        }
        _ => Err(invalid("a namespace holds strings, numbers, lists and maps only")),
    }
}

/// Prints a value of `{{ }}`, a list or map only as far as the fuel can pay for it.
fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.as_object() {
        None if value.kind() != ValueKind::Number => minijinja::escape_formatter(out, state, value),
        _ => out.write_str(&text(state, value)?).map_err(Error::from),
    }
}

/// The text of a value, as `str` gives it, paid for.
pub(super) fn text(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    let mut text = Paid::new(state);
    match value.as_object() {
        Some(_) => {
            if write!(text, "{value}").is_err() {
                text.exhaust()?;
            }
            state.consume_fuel(text.out.len() as u64 * FUEL_PER_CONTAINER_BYTES / BYTES_PER_FUEL)?;
        }
        None if value.kind() == ValueKind::Number => text.push(&number(value))?,
        None => text.push(&value.to_string())?,
    }
    Ok(text.out)
}

/// A string that grows only while the fuel lasts.
struct Paid<'a, 'b, 'c> {
    out: String,
    state: &'a State<'b, 'c>,
}

impl<'a, 'b, 'c> Paid<'a, 'b, 'c> {
    fn new(state: &'a State<'b, 'c>) -> Self {
        Self { out: String::new(), state }
    }

    /// Whether so many more bytes could be paid for. They are charged by the engine when the whole
    /// is returned.
    fn affords(&self, more: usize) -> bool {
        let left = self.state.fuel_levels().map_or(0, |(_, left)| left);
        (self.out.len() as u64).saturating_add(more as u64) < left.saturating_mul(BYTES_PER_FUEL)
    }

    fn push(&mut self, part: &str) -> Result<(), Error> {
        match self.affords(part.len()) {
            true => self.out.push_str(part),
            false => self.exhaust()?,
        }
        Ok(())
    }

    fn exhaust(&self) -> Result<(), Error> {
        self.state.consume_fuel(u64::MAX)
    }
}

impl fmt::Write for Paid<'_, '_, '_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.push(part).map_err(|_| fmt::Error)
    }
}

/// markupsafe's `escape`, which writes quotes as numbers.
fn escape(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    if value.is_safe() {
        return Ok(value);
    }
    let text = text(state, &value)?;
    let mut out = Paid::new(state);
    for part in text.split_inclusive(['&', '<', '>', '\'', '"']) {
        let escape = match part.as_bytes().last() {
            Some(b'&') => "&amp;",
            Some(b'<') => "&lt;",
            Some(b'>') => "&gt;",
            Some(b'\'') => "&#39;",
            Some(b'"') => "&#34;",
            _ => "",
        };
        out.push(&part[..part.len() - usize::from(!escape.is_empty())])?;
        out.push(escape)?;
    }
    Ok(Value::from_safe_string(out.out))
}

/// `join(sep, attribute)`, each item paid for before it is copied.
fn join(
    state: &State<'_, '_>,
    values: Value,
    joiner: Option<Value>,
    attribute: Option<String>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let joiner = match joiner.or(kwargs.get::<Option<Value>>("d")?) {
        Some(joiner) => text(state, &joiner)?,
        None => String::new(),
    };
    let attribute = attribute.or(kwargs.get::<Option<String>>("attribute")?);
    kwargs.assert_all_used()?;
    let mut out = Paid::new(state);
    for (i, item) in values.try_iter()?.enumerate() {
        let item = match &attribute {
            Some(name) => item.get_attr(name)?,
            None => item,
        };
        state.consume_fuel(1)?;
        if i > 0 {
            out.push(&joiner)?;
        }
        match item.as_str() {
            Some(item) => out.push(item)?,
            None => out.push(&text(state, &item)?)?,
        }
    }
    Ok(out.out)
}

/// Python's methods, of strings and maps most of all; those whose price the engine does not see pay
/// for it here.
pub(super) fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    for arg in args.iter().filter_map(Value::as_str) {
        state.consume_fuel(arg.len() as u64 / BYTES_PER_FUEL)?;
    }
    match (value.as_str(), name) {
        (Some(_), "replace") => {
            let args: Vec<Value> = std::iter::once(value).chain(args).cloned().collect();
            return state.apply_filter("replace", &args);
        }
        (Some(_), "join") if args.len() == 1 => return state.apply_filter("join", &[args[0].clone(), value.clone()]),
        (Some(s), "format") => check_format(state, s, args)?,
        (Some(s), "split" | "splitlines") => {
            let parts = match args.first().and_then(Value::as_str) {
                Some("") | None => s.split_whitespace().count().max(s.lines().count()),
                Some(separator) => s.matches(separator).count(),
            };
            state.consume_fuel(parts as u64)?;
        }
        (Some(s), "strip" | "lstrip" | "rstrip") => {
            let set = args.first().and_then(Value::as_str).map_or(0, str::len);
            state.consume_fuel((s.len() as u64).saturating_mul(set as u64) / BYTES_PER_FUEL)?;
        }
        (None, "get") if args.first().is_some_and(|key| key.as_object().is_some()) => {
            return Err(invalid("a list or map is no key"));
        }
        // Python's are views; a view of a namespace in itself would hold itself.
        (None, "items" | "keys" | "values") if value.kind() == ValueKind::Map => {
            return Ok(unknown_method_callback(state, value, name, args)?.try_iter()?.collect());
        }
        _ => {}
    }
    unknown_method_callback(state, value, name, args)
}

/// Refuses a `str.format` that could make more text than the fuel pays for.
fn check_format(state: &State<'_, '_>, format: &str, args: &[Value]) -> Result<(), Error> {
    let widest = format.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
    if widest > MAX_FORMAT_DIGITS || args.iter().any(|a| a.as_object().is_some() && !a.is_kwargs()) {
        return Err(invalid("`format` is for strings and numbers, in fields of at most 999 characters"));
    }
    let len = |value: &Value| value.as_str().map_or(0, str::len);
    let longest = args.iter().map(len).max().unwrap_or(0).max(1000);
    let fields = format.matches('{').count() + 1;
    match Paid::new(state).affords(fields.saturating_mul(longest).saturating_add(format.len())) {
        true => Ok(()),
        false => state.consume_fuel(u64::MAX),
    }
}

/// transformers' `tojson`: `json.dumps` with `ensure_ascii` off and nothing made safe for HTML.
fn tojson(state: &State<'_, '_>, value: Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent = match kwargs.get::<Option<Value>>("indent")? {
        None => None,
        Some(indent) if indent.is_none() => None,
        Some(indent) => Some(match indent.as_str() {
            Some(indent) => indent.to_owned(),
            None => {
                let width = i64::try_from(indent)?.max(0) as usize;
                if !Paid::new(state).affords(width) {
                    state.consume_fuel(u64::MAX)?;
                }
                " ".repeat(width)
            }
        }),
    };
    let separators = match kwargs.get::<Option<Vec<String>>>("separators")? {
        None => [",".to_owned() + if indent.is_some() { "" } else { " " }, ": ".to_owned()],
        Some(pair) => <[String; 2]>::try_from(pair).map_err(|_| invalid("`separators` are two strings"))?,
    };
    let mut json = Json {
        out: Paid::new(state),
        indent,
        separators,
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    json.value(&value, 0)?;
    Ok(json.out.out)
}

struct Json<'a, 'b, 'c> {
    out: Paid<'a, 'b, 'c>,
    indent: Option<String>,
    /// Between items, and between key and value.
    separators: [String; 2],
    ensure_ascii: bool,
    sort_keys: bool,
}

impl Json<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.out.state.consume_fuel(1)?;
        if depth > MAX_NESTING {
            return Err(invalid(format!("more than {MAX_NESTING} levels of lists in JSON")));
        }
        match value.kind() {
            ValueKind::None => self.out.push("null"),
            ValueKind::Bool => self.out.push(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.container(['[', ']'], &items, depth, |json, item| json.value(item, depth + 1))
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.container(['{', '}'], &keys, depth, |json, key| {
                    json.key(key)?;
                    json.out.push(&json.separators[1].clone())?;
                    json.value(&value.get_item(key)?, depth + 1)
                })
            }
            kind => Err(invalid(format!("a value of type {kind} has no JSON"))),
        }
    }

    fn container(
        &mut self,
        [open, close]: [char; 2],
        items: &[Value],
        depth: usize,
        mut write: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open.encode_utf8(&mut [0]))?;
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.out.push(&self.separators[0].clone())?;
            }
            self.new_line(depth + 1)?;
            write(self, item)?;
        }
        if !items.is_empty() {
            self.new_line(depth)?;
        }
        self.out.push(close.encode_utf8(&mut [0]))
    }

    fn new_line(&mut self, depth: usize) -> Result<(), Error> {
        let Some(indent) = self.indent.clone() else { return Ok(()) };
        self.out.push("\n")?;
        (0..depth).try_for_each(|_| self.out.push(&indent))
    }

    fn key(&mut self, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.string(key.as_str().unwrap_or_default()),
            ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                self.out.push("\"")?;
                self.value(key, 0)?;
                self.out.push("\"")
            }
            kind => Err(invalid(format!("a value of type {kind} is no key in JSON"))),
        }
    }

    /// `json.encoder.ESCAPE` and `ESCAPE_ASCII`.
    fn string(&mut self, string: &str) -> Result<(), Error> {
        let mut quoted = String::new();
        self.out.push("\"")?;
        for c in string.chars() {
            quoted.clear();
            match c {
                '"' => quoted.push_str("\\\""),
                '\\' => quoted.push_str("\\\\"),
                '\n' => quoted.push_str("\\n"),
                '\r' => quoted.push_str("\\r"),
                '\t' => quoted.push_str("\\t"),
                '\x08' => quoted.push_str("\\b"),
                '\x0c' => quoted.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(quoted, "\\u{unit:04x}")?;
                    }
                }
                c => quoted.push(c),
            }
            self.out.push(&quoted)?;
        }
        self.out.push("\"")
    }
}

/// A number as Python writes it: Rust's shortest digits, and an exponent with a sign and two
/// digits.
fn number(value: &Value) -> String {
    let float = match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => float,
        _ => return value.to_string(),
    };
    match float.abs() {
        _ if float.is_nan() => "NaN".to_owned(),
        f64::INFINITY => if float > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        size if size == 0.0 || (1e-4..1e16).contains(&size) => format!("{float:?}"),
        _ => {
            let text = format!("{float:e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
            format!("{digits}e{sign}{exponent:0>2}")
        }
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// The days of the week, from that of 1970-01-01 on.
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Python's `datetime.strftime` of a time in UTC; a directive that is not known stays as it is, as
/// in glibc.
pub(super) fn strftime(time: SystemTime, format: &str) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day, day_of_year) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let hour12 = (hour + 11) % 12 + 1;

    let mut out = String::with_capacity(format.len());
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = chars.next();
        }
        let number = |n: u64, width: usize| match unpadded {
            true => n.to_string(),
            false => format!("{n:0width$}"),
        };
        out.push_str(&match directive {
            Some('Y') => year.to_string(),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('j') => number(day_of_year, 3),
            Some('e') => format!("{day:2}"),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('H') => number(hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z' | 'z') => String::new(),
            Some('%') => "%".to_owned(),
            other => ["%", if unpadded { "-" } else { "" }].concat() + &other.map(String::from).unwrap_or_default(),
        });
    }
    out
}

/// Year, month, day of the month and day of the year, in the Gregorian calendar, of a day counted
/// from 1970-01-01.
fn date(mut day: u64) -> (u64, u64, u64, u64) {
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // 146,097 days are 400 years, after which the calendar repeats itself.
    let mut year = 1970 + day / 146_097 * 400;
    day %= 146_097;
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let day_of_year = day + 1;
    let mut month = 1;
    for length in [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1, day_of_year)
}
