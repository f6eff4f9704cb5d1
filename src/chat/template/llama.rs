//! What llama.cpp's engine makes of a template where that is other text than jinja2's.
//!
//! A merged file runs in llama.cpp, so it is asked in the prompts that llama.cpp would write. What
//! the engine can be made to do is here; it holds for the builds b11549 and b12032 (common/jinja,
//! measured by tests/peers/dialects.py). What it cannot is in [`crate::chat::dialect`]'s findings
//! that are not [`EMULATED`].

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, Output, State, UndefinedBehavior, Value};

use super::python;

/// The constructs of [`crate::chat::dialect`] that render as in llama.cpp here.
pub(super) const EMULATED: [&str; 11] = [
    "attribute-of-undefined",
    "capitalize-beyond-ascii",
    "case-beyond-ascii",
    "default-none",
    "float-digits",
    "length-in-bytes",
    "print-dict",
    "print-list",
    "print-none",
    "print-number-list",
    "print-tuple",
];

/// Levels of lists that are printed.
const MAX_NESTING: usize = 64;

/// Puts all of it into an environment that [`python::install`] has set up.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_undefined_behavior(UndefinedBehavior::Chainable);
    environment.set_formatter(print);
    environment.set_unknown_method_callback(method);
    for name in ["length", "count"] {
        environment.add_filter(name, length);
    }
    for (name, change) in CASES {
        environment.add_filter(name, move |state: &State<'_, '_>, value: Value| cased(state, &value, change));
    }
    for name in ["default", "d"] {
        environment.add_filter(name, default);
    }
}

/// Changes a text.
type Change = fn(&str) -> String;

/// Filters and methods that change ASCII letters alone.
const CASES: [(&str, Change); 3] =
    [("upper", str::to_ascii_uppercase), ("lower", str::to_ascii_lowercase), ("capitalize", capitalized)];

fn capitalized(text: &str) -> String {
    let mut text = text.to_ascii_lowercase();
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    text
}

fn cased(state: &State<'_, '_>, value: &Value, change: Change) -> Result<Value, Error> {
    let text = python::text(state, value)?;
    Ok(Value::from(change(&text)))
}

fn method(state: &mut State<'_, '_>, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let change = CASES.iter().find(|(known, _)| *known == name && arguments.is_empty());
    match change.filter(|_| value.kind() == ValueKind::String) {
        Some((_, change)) => cased(state, value, *change),
        None => python::method(state, value, name, arguments),
    }
}

/// Bytes of a text, items of anything else.
fn length(value: &Value) -> Result<usize, Error> {
    match value.as_str() {
        Some(text) => Ok(text.len()),
        None => minijinja::filters::length(value),
    }
}

/// The value, or what stands in for one that is undefined or none; with `true` behind it, also for
/// one that is false.
fn default(value: Value, others: Rest<Value>) -> Value {
    let is_strict = others.get(1).is_some_and(Value::is_true);
    let is_missing = value.is_undefined() || value.is_none() || is_strict && !value.is_true();
    if is_missing { others.first().cloned().unwrap_or_default() } else { value }
}

/// None and dictionaries print nothing, lists their items one behind the other, and floats at most
/// six digits behind the point.
fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let mut text = String::new();
    write(&mut text, state, value, 0)?;
    out.write_str(&text).map_err(Error::from)
}

fn write(text: &mut String, state: &State<'_, '_>, value: &Value, depth: usize) -> Result<(), Error> {
    state.consume_fuel(1)?;
    match value.kind() {
        ValueKind::None | ValueKind::Undefined | ValueKind::Map => Ok(()),
        ValueKind::Seq | ValueKind::Iterable if depth < MAX_NESTING => {
            value.try_iter()?.try_for_each(|item| write(text, state, &item, depth + 1))
        }
        ValueKind::Seq | ValueKind::Iterable => Ok(()),
        ValueKind::Number if !value.is_integer() => {
            let digits = format!("{:.6}", f64::try_from(value.clone())?);
            let short = digits.trim_end_matches('0');
            text.push_str(short);
            text.push_str(if short.ends_with('.') { "0" } else { "" });
            Ok(())
        }
        _ => {
            text.push_str(&python::text(state, value)?);
            Ok(())
        }
    }
}
