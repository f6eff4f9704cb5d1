//! What engines were measured to do otherwise than jinja2, as data.
//!
//! Source: tests/peers/dialects.py of 2026-11-30 over 633 small templates and llama.cpp's 70, with
//! jinja2 3.1.6 as transformers 5.24.0 sets it up, llama.cpp's common/jinja of b11549 (the crate
//! llama-cpp-sys-2 0.1.161; the wheel xllamacpp 2026.10.11549 gives the same prompts) and
//! @huggingface/jinja 0.5.11. `mended` names the llama.cpp build in which the row no longer holds
//! (b12032, from the crate llama-cpp-sys-4 0.11.0).

use super::Verdict::{self, RefusesToParse as Parse, RefusesToRender as Render, RendersOtherwise as Other};

/// A construct, and what becomes of it.
pub(super) struct Rule {
    pub(super) construct: &'static str,
    pub(super) transformers: Option<Verdict>,
    pub(super) llama_cpp: Option<Verdict>,
    pub(super) javascript: Option<Verdict>,
    pub(super) mended: Option<&'static str>,
    pub(super) advice: &'static str,
}

type V = Option<Verdict>;

const fn row(construct: &'static str, [transformers, llama_cpp, javascript]: [V; 3], advice: &'static str) -> Rule {
    Rule { construct, transformers, llama_cpp, javascript, mended: None, advice }
}

const fn mended(rule: Rule, build: &'static str) -> Rule {
    Rule { mended: Some(build), ..rule }
}

const P: V = Some(Parse);
const R: V = Some(Render);
const O: V = Some(Other);
const N: V = None;

/// Columns of verdicts: transformers, llama.cpp, @huggingface/jinja.
#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    // The grammar.
    row("syntax", [P, N, N], "this is not Jinja; correct it"),
    row("unknown-statement", [P, P, P], "transformers does not load this statement; write it with `set`, `if` and `for`"),
    row("set-item", [P, R, R], "assign to a `namespace`, not to an item"),
    row("other-templates", [R, P, P], "put the other template's text here; a model has one template"),
    row("with", [N, P, P], "use `set`"),
    row("raw", [N, P, P], "print the braces as a string: `{{ '{{' }}`"),
    row("autoescape", [N, P, P], "leave it out; chat templates escape nothing"),
    row("block", [N, P, P], "leave the `block` and `endblock` tags out"),
    row("recursive-loop", [N, P, P], "write a macro that calls itself"),
    row("loop-over-bare-tuple", [N, P, P], "put the items in brackets: `in [1, 2]`"),
    row("nested-target", [N, R, R], "unpack in two steps"),
    row("plus-sign", [N, P, P], "leave the `+` out, and print the whitespace as a string where it matters"),
    row("filter-block-chain", [N, P, P], "nest two `filter` blocks"),
    row("sign-after-word", [N, P, N], "put the number in parentheses: `else (-1)`"),
    row("dotted-numbers", [N, R, N], "use brackets: `x[0][1]`"),
    row("floor-division", [N, P, N], "use `(a / b) | int` for numbers that are not negative"),
    row("power", [N, P, N], "multiply"),
    row("short-tuple", [N, P, P], "use a list: `[]` or `[x]`"),
    row("number-notation", [N, P, P], "write the number with digits and at most one point"),
    row("huge-number", [N, P, N], "use a number that 64 bits hold"),
    mended(row("hex-escape", [N, P, N], "write the character itself, or a printable one"), "b12032"),
    row("unicode-escape", [N, P, N], "write the character itself"),
    row("escape", [N, P, P], "double the backslash: only n, t, r, b, f, v, quotes and backslashes are escaped everywhere"),
    row("name-beyond-ascii", [N, P, P], "use a name of ASCII letters"),
    row("unpacked-keywords", [N, P, N], "name each argument"),
    row("test-argument", [N, N, P], "compare by `==`, `<`, `in` or `%` in place of a test with an argument"),
    // Whitespace.
    row("first-character", [N, O, N], "begin with a second character or a `{{ '' }}`: the single character before the first block is lost"),
    row("wide-space", [N, O, N], "do not rely on `-` to take other whitespace than spaces, tabs and newlines"),
    row("carriage-return", [N, N, O], "end lines by a newline alone"),
    // Operators.
    row("chained-comparison", [N, R, R], "write two comparisons with `and`"),
    row("order-of-nothing", [R, R, R], "test `is defined` and `is not none` first"),
    row("text-order", [N, R, R], "compare texts by `==` or `in` only"),
    row("negative-modulo", [N, O, O], "add the divisor before `%`, so that no operand is negative"),
    row("list-times", [N, R, R], "write the items out, or add lists in a loop"),
    row("text-times", [N, N, R], "write the text out"),
    row("text-arithmetic", [R, R, R], "convert with `| int` first"),
    row("text-percent", [N, R, R], "join the parts by `~`"),
    row("bool-arithmetic", [N, R, R], "convert with `| int` first"),
    row("add-text-number", [R, O, O], "join by `~`, or convert with `| string`"),
    row("add-text-none", [R, O, R], "join only texts; `x or ''`"),
    row("float-digits", [N, O, N], "only six digits after the point are printed"),
    row("concat-no-text", [N, R, N], "begin with a text: `'' ~ a ~ b`"),
    row("concat-none", [N, O, R], "join `x or ''`"),
    row("concat-undefined", [N, N, R], "join `x | default('')`"),
    row("concat-bool", [N, N, O], "write `'True' if x else 'False'`"),
    row("concat-float", [N, N, O], "convert with `| string` first"),
    row("concat-list", [N, N, O], "use `| join` or `| tojson`"),
    row("concat-lazy", [N, O, O], "use `| list` and `| join` or `| tojson`"),
    row("concat-dict", [N, N, O], "use `| tojson`"),
    row("compare-types", [N, N, O], "convert to one type before comparing"),
    row("compare-lists", [N, N, O], "compare the items"),
    row("in-nothing", [R, R, R], "test `is defined` and `is not none` first"),
    // Literals and printing.
    row("number-as-key", [N, N, R], "use texts as keys"),
    row("print-bool", [N, N, O], "write `{{ 'True' if x else 'False' }}`"),
    row("big-number", [N, N, O], "write it as a text: JavaScript rounds it"),
    row("print-none", [N, O, O], "write `{{ x or '' }}` or the word `None` as a string"),
    row("print-list", [N, O, O], "use `| tojson` or `| join`"),
    row("print-number-list", [N, O, N], "use `| tojson` or `| join`"),
    row("print-tuple", [N, O, R], "use a list and `| tojson` or `| join`"),
    row("print-dict", [N, O, O], "use `| tojson`"),
    row("print-function", [N, O, O], "call it"),
    // Undefined values and none.
    row("attribute-of-undefined", [R, O, O], "test `is defined` first"),
    row("item-of-undefined", [R, O, R], "test `is defined` first"),
    row("slice-of-undefined", [R, R, R], "test `is defined` first"),
    row("filter-of-undefined", [R, N, N], "test `is defined` first"),
    row("filter-of-none", [R, N, N], "apply it to `x or []`"),
    row("undefined-as-key", [N, R, R], "test `is defined` first"),
    row("callable-undefined", [N, O, O], "use `is defined`"),
    row("default-none", [N, O, N], "use `default(x, true)`, which replaces none too"),
    row("default-keyword", [N, O, O], "give the default as the first argument, without its name"),
    row("default-without-value", [N, R, R], "write `default('')`"),
    row("loop-over-undefined", [N, N, R], "loop over `x or []`"),
    row("loop-over-none", [R, R, R], "loop over `x or []`"),
    row("unpack-tuple", [N, N, R], "use lists in place of tuples: `[[1, 2], [3, 4]]`"),
    row("loop-over-text", [N, R, R], "split the text first"),
    row("loop-over-number", [R, R, R], "loop over `range(n)`"),
    row("call-undefined", [R, R, R], "test `is defined` first"),
    row("filter-undefined", [N, N, R], "use `(x or '')` before the filter"),
    row("tojson-undefined", [R, R, O], "test `is defined` first"),
    // Statements.
    mended(row("set-in-loop", [N, O, O], "set it at the top of the loop's body, or keep it in a `namespace`"), "b12032"),
    row("output-before-leaving", [N, N, O], "put `break` and `continue` before what the turn prints"),
    row("output-before-leaving-if", [N, O, O], "print before the `if` that holds `break` or `continue`, or after the loop"),
    row("loop-method", [N, R, R], "use `loop.index0 % 2`"),
    row("loop-depth", [N, O, O], "count the depth in a `namespace`"),
    row("set-block-filter", [N, R, R], "set the block, then apply the filter in a second `set`"),
    row("set-attribute", [R, O, R], "use a `namespace`"),
    row("private-attribute", [R, O, O], "use a name without a leading underscore"),
    row("generation-scope", [N, O, O], "set it outside the `generation` block"),
    row("macro-missing-argument", [N, R, N], "give every argument, or give the parameter a default"),
    row("macro-extra-argument", [R, O, R], "leave the argument out"),
    row("macro-keyword-gap", [N, O, N], "give the arguments in the order of the parameters, without a gap"),
    row("macro-argument-lists", [N, O, N], "name the parameters in place of `varargs` and `kwargs`"),
    row("macro-default-of-parameter", [N, O, N], "use `b=none` and `{% set b = b or a %}`"),
    row("macro-caller-scope", [N, O, O], "give the macro what it reads as arguments, under names of its own"),
    row("macro-unpacking", [N, R, N], "give the arguments one by one"),
    row("macro-attribute", [N, R, O], "leave it out"),
    // Texts.
    row("length-in-bytes", [N, O, N], "do not print or compare the length of what people write"),
    row("index-in-bytes", [N, O, N], "use `startswith`, `endswith`, `split` or `replace`"),
    row("negative-text-index", [N, O, N], "use `endswith`, or a slice"),
    row("slice-in-bytes", [N, O, N], "do not cut what people write"),
    row("case-beyond-ascii", [N, O, N], "do not change the case of what people write: only ASCII letters change"),
    row("capitalize", [N, N, O], "use `upper` and `lower` on parts: the rest of the text keeps its case"),
    row("capitalize-beyond-ascii", [N, O, O], "do not change the case of what people write"),
    row("title", [N, N, O], "do not change the case of what people write"),
    row("title-letters", [N, O, N], "write the text as it is to be"),
    row("is-lower-beyond-ascii", [N, O, N], "do not test the case of what people write"),
    row("strip-characters", [N, N, O], "use `split` or `replace`: the argument is not looked at"),
    row("split-whitespace", [N, O, N], "give `split` its separator"),
    row("method-keywords", [N, R, R], "give the arguments by place"),
    row("starts-with-tuple", [N, R, N], "test each by `or`"),
    row("replace-keyword", [R, R, O], "use `split(x, 1)` and `~`"),
    row("replace-count", [N, R, N], "use `split(x, 1)` and `~`"),
    row("format-fields", [N, R, R], "join by `~`"),
    row("get-other-key", [N, R, R], "use texts as keys"),
    row("strip-beyond-ascii", [N, O, N], "strip ASCII characters only: it strips single bytes"),
    row("length-attribute", [N, N, O], "use `| length`"),
    row("key-named-as-method", [N, N, O], "write `d['items']` for the key, and `d | items` for the method"),
    row("changes-a-list", [R, O, R], "use `x = x + [item]` with a `namespace`"),
    row("changes-a-value", [R, R, R], "make a new value with `set`"),
    // Filters.
    row("unknown-filter", [P, R, R], "use a filter of Jinja"),
    row("unknown-filter-met", [R, R, R], "use a filter of Jinja"),
    row("unknown-test-met", [R, R, R], "use a test of Jinja"),
    row("unknown-test", [P, R, R], "use a test of Jinja"),
    row("generator-length", [R, O, O], "apply `| list` first"),
    row("generator-slice", [R, O, O], "apply `| list` first"),
    row("generator-item", [N, O, O], "apply `| list` or `| first` first"),
    row("generator-json", [R, O, O], "apply `| list` first"),
    row("join-others", [N, R, O], "join texts and numbers only"),
    row("join-keywords", [N, N, O], "give the separator alone; take attributes out by `map(attribute=…)`"),
    row("map-path", [N, R, N], "map one attribute after the other"),
    mended(row("select-by-test", [N, O, N], "loop with an `if`"), "b12032"),
    mended(row("select-by-truth", [N, R, N], "loop with an `if`"), "b12032"),
    row("select-with-argument", [N, N, R], "loop with an `if`"),
    row("select-test", [N, N, R], "use `equalto` or `defined`, or loop with an `if`"),
    row("select-test-symbol", [N, R, R], "use `equalto`"),
    mended(row("select-test-without-argument", [N, R, N], "loop with an `if`"), "b12032"),
    row("select-variable", [N, N, R], "loop with an `if`"),
    row("sort-case", [N, O, N], "sort texts of one case, or give `case_sensitive=true`"),
    row("format-percent", [N, O, R], "join by `~`"),
    row("safe-of-others", [N, N, O], "apply `safe` to texts only, or leave it out"),
    row("string-bool", [N, N, O], "write `'True' if x else 'False'`"),
    row("string-list", [N, N, O], "use `| tojson`"),
    mended(row("string-float", [N, O, N], "print the number itself"), "b12032"),
    row("json-sorted", [N, R, N], "write the keys in order"),
    row("json-indent-zero", [N, N, O], "leave `indent` out"),
    row("json-tuple", [N, N, R], "use a list"),
    row("json-function", [R, N, R], "call it"),
    mended(row("json-digits", [N, O, N], "only six digits are written"), "b12032"),
    mended(row("json-float", [N, O, O], "print whole numbers as integers"), "b12032"),
    row("int-of-negative", [N, N, O], "avoid `int` on negative numbers: it rounds down"),
    row("indent-text", [N, N, R], "give `indent` a number"),
    row("replace-in-number", [N, R, R], "convert with `| string` first"),
    // Tests.
    row("iterable-dict", [N, N, O], "use `is mapping`"),
    row("iterable-undefined", [N, N, O], "use `is defined`"),
    row("number-bool", [N, O, O], "use `is boolean`"),
    row("test-of-other-type", [R, R, R], "test `is number` first"),
];

/// The row of a construct.
pub(super) fn rule(construct: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.construct == construct)
}

/// Constructs that give the same kind of value with another text, or one with another spelling:
/// where only a condition looks at it, the outcome is mostly the same.
const OF_TEXT: &[&str] = &[
    "capitalize",
    "case-beyond-ascii",
    "concat-bool",
    "concat-dict",
    "concat-float",
    "concat-list",
    "concat-none",
    "default-keyword",
    "default-none",
    "float-digits",
    "format-percent",
    "generator-item",
    "index-in-bytes",
    "int-of-negative",
    "join-keywords",
    "join-others",
    "json-digits",
    "json-float",
    "json-indent-zero",
    "length-attribute",
    "negative-modulo",
    "negative-text-index",
    "select-by-test",
    "slice-in-bytes",
    "sort-case",
    "string-bool",
    "string-float",
    "string-list",
    "strip-beyond-ascii",
    "strip-characters",
    "title",
    "title-letters",
];

/// Whether a construct is one of those.
pub(super) fn is_of_text(construct: &str) -> bool {
    OF_TEXT.contains(&construct)
}

/// What to write in place of a name that an engine lacks.
pub(super) fn substitute(name: &str) -> &'static str {
    match name {
        "splitlines" => "use `split('\\n')`",
        "strip" | "lstrip" | "rstrip" | "trim" => "use `trim` without an argument",
        "join" => "use the filter: `list | join(', ')`",
        "find" | "index" | "count" | "rfind" | "rindex" | "partition" | "rpartition" => "use `in` or `split`",
        "rsplit" => "use `split` and `[-1]`",
        "format" | "format_map" => "join by `~`",
        "sum" => "add in a loop, in a `namespace`",
        "unique" => "test `in` before adding to a list in a `namespace`",
        "min" | "max" => "compare in a loop, in a `namespace`",
        "round" => "use `| int`",
        "escape" | "e" | "forceescape" => "leave it out; chat templates escape nothing",
        "cycler" => "use `loop.index0 % 2`",
        "joiner" => "use `loop.first` or `loop.last`",
        "dict" => "write the dictionary: `{'a': 1}`",
        "d" | "default" => "use `default(x)` with its value",
        "float" => "use `is number`",
        "copy" => "use the value itself",
        "map" => "apply the filter in a loop",
        "select" | "reject" => "loop with an `if`",
        _ => "write it with `if`, `for` and the filters that every engine has",
    }
}
