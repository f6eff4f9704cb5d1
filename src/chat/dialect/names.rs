//! Which filters, tests, methods and functions an engine has, by the type of what they are for.
//!
//! jinja2's are those of 3.1.6 and Python 3.11; the others' were read in their sources
//! (`get_builtins` in common/jinja/value.cpp; `applyFilter`, `TESTS` and `builtins` in runtime.ts)
//! and each was measured once.

use super::values::Kind;

/// Filters of jinja2.
const FILTERS: &str = "abs attr batch capitalize center count d default dictsort e escape filesizeformat first float \
    forceescape format groupby indent int items join last length list lower map max min pprint random reject rejectattr \
    replace reverse round safe select selectattr slice sort string striptags sum title tojson trim truncate unique upper \
    urlencode urlize wordcount wordwrap xmlattr";

/// Tests of jinja2.
const TESTS: &str = "boolean callable defined divisibleby eq equalto escaped even false filter float ge gt greaterthan in \
    integer iterable le lessthan lower lt mapping ne none number odd sameas sequence string test true undefined upper";

/// Methods of Python's texts.
const TEXT_METHODS: &str = "capitalize casefold center count encode endswith expandtabs find format format_map index \
    isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join \
    ljust lower lstrip maketrans partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip \
    split splitlines startswith strip swapcase title translate upper zfill";
const LIST_METHODS: &str = "append clear copy count extend index insert pop remove reverse sort";
const DICT_METHODS: &str = "clear copy fromkeys get items keys pop popitem setdefault update values";

/// What transformers' sandbox keeps from being called.
const CHANGING: &str = "append clear extend insert pop remove reverse sort popitem setdefault update";

fn has(names: &str, name: &str) -> bool {
    names.split_ascii_whitespace().any(|n| n == name)
}

pub(super) fn is_filter(name: &str) -> bool {
    has(FILTERS, name)
}

pub(super) fn is_test(name: &str) -> bool {
    has(TESTS, name)
}

/// Filters that end with an error over none, at once.
pub(super) fn fails_on_none(name: &str) -> bool {
    has("length count list join first last sort sum reverse dictsort min max groupby abs round indent random", name)
}

/// Whether Python has the method; only for types that are known.
pub(super) fn is_method(kind: Kind, name: &str) -> bool {
    match kind {
        Kind::Text => has(TEXT_METHODS, name),
        Kind::List => has(LIST_METHODS, name),
        Kind::Dict => has(DICT_METHODS, name),
        _ => false,
    }
}

pub(super) fn is_changing(kind: Kind, name: &str) -> bool {
    matches!(kind, Kind::List | Kind::Dict) && has(CHANGING, name)
}

/// An engine that is not Python.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Peer {
    LlamaCpp,
    Javascript,
}

/// Whether an engine applies a filter to a type; `called` if it has parentheses.
pub(super) fn applies(peer: Peer, kind: Kind, name: &str, called: bool) -> bool {
    match peer {
        Peer::LlamaCpp => {
            let name = match name {
                "count" => "length",
                "d" => "default",
                "e" => "escape",
                other => other,
            };
            has(llama_cpp(kind), name)
                || !called && has("capitalize lower title trim upper", name) && kind != Kind::Function
        }
        Peer::Javascript => has(javascript(kind, called), name) || has(javascript_any(called), name),
    }
}

fn llama_cpp(kind: Kind) -> &'static str {
    match kind {
        Kind::Int | Kind::Float => "default abs int float safe string tojson",
        Kind::Bool => "default int float safe string tojson",
        Kind::Text => {
            "default upper lower trim title capitalize length replace format int float string slice safe tojson indent"
        }
        Kind::List => {
            "default list first last length selectattr select rejectattr reject join string tojson map sort reverse min \
             max"
        }
        Kind::Dict | Kind::Space => "items tojson string length dictsort default",
        Kind::None => "default tojson string safe items map reject rejectattr select selectattr unique",
        Kind::Undefined => {
            "default capitalize first items join last length list lower map max min reject rejectattr replace reverse \
             safe select selectattr sort string trim sum title truncate unique upper wordcount"
        }
        Kind::Function | Kind::Unknown => "",
    }
}

fn javascript_any(called: bool) -> &'static str {
    if called { "tojson default" } else { "safe tojson" }
}

fn javascript(kind: Kind, called: bool) -> &'static str {
    match (kind, called) {
        (Kind::Int | Kind::Float, false) => "abs int float string",
        (Kind::Int | Kind::Float | Kind::Bool, true) => "int float",
        (Kind::Bool, false) => "int float string",
        (Kind::Text, false) => "length upper lower title capitalize trim indent join string int float",
        (Kind::Text, true) => "indent replace join int float",
        (Kind::List, false) => "list first last length reverse sort join string unique",
        (Kind::List, true) => "sort selectattr rejectattr map join",
        (Kind::Dict, false) => "items length dictsort",
        (Kind::Dict, true) => "items dictsort",
        _ => "",
    }
}

/// Whether some type has the filter: what can be said where the type is not known.
pub(super) fn applies_to_some(peer: Peer, name: &str, called: bool) -> bool {
    [Kind::Int, Kind::Bool, Kind::Text, Kind::List, Kind::Dict]
        .into_iter()
        .any(|kind| applies(peer, kind, name, called))
}

/// Whether an engine has a method of a type.
pub(super) fn has_method(peer: Peer, kind: Kind, name: &str) -> bool {
    let names = match (peer, kind) {
        (Peer::LlamaCpp, Kind::Text) => {
            "upper lower strip rstrip lstrip title capitalize startswith endswith split rsplit replace format"
        }
        (Peer::LlamaCpp, Kind::List) => "append pop sort reverse",
        (_, Kind::Dict) => "get items keys values",
        (Peer::Javascript, Kind::Text) => {
            "upper lower strip rstrip lstrip title capitalize startswith endswith split replace"
        }
        _ => "",
    };
    has(names, name)
}

/// Whether an engine has a test.
pub(super) fn has_test(peer: Peer, name: &str) -> bool {
    let lacking = match peer {
        Peer::LlamaCpp => "escaped filter le",
        Peer::Javascript => "escaped filter le float test divisibleby ge gt greaterthan in lessthan lt ne sameas",
    };
    is_test(name) && !has(lacking, name)
}

/// Functions of jinja2 that an engine lacks.
pub(super) fn lacks_function(peer: Peer, name: &str) -> bool {
    match peer {
        Peer::LlamaCpp => has("lipsum cycler joiner", name),
        Peer::Javascript => has("lipsum cycler joiner dict", name),
    }
}
