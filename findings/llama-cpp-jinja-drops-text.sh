#!/usr/bin/env bash
# llama.cpp's engine of chat templates (common/jinja of build b12032, from the crate llama-cpp-sys-4
# 0.11.0) beside jinja2 3.1.6 (PyPI), on four valid templates.
#
# Guess before:  what it parses it renders as jinja2 does, but for types that print otherwise.
# Seen:          1. Keyword arguments of a macro are bound by how many there are, not by their names:
#                   f(1, c=4) of f(a, b=2, c=3) leaves b undefined and gives c its default.
#                2. `continue` drops what the `if` around it has printed in this turn.
#                3. A single character before the first tag of a template is lost.
#                4. A sign behind a word, as in `1 if x else -1`, cannot be parsed.
# So a template that was tried in transformers can lose text in llama.cpp without an error: give every
# argument of a macro, print before the `if` that leaves a turn, and begin with two characters or more.
#
# Prints what it sees. Exit code 1 if that is no longer so. Needs cargo, a C++ compiler and python3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jinja2==3.1.6
cd "$folder"
mkdir src
echo 'fn main() {}' > src/main.rs
cat > Cargo.toml <<'TOML'
[package]
name = "fetch"
version = "0.1.0"
edition = "2021"

[dependencies]
llama-cpp-sys-4 = "=0.11.0"
TOML
cargo vendor --quiet vendor > /dev/null
cat > driver.cpp <<'CPP'
#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>

// The engine's JSON asks ggml for it; nothing else of ggml is needed.
extern "C" void ggml_abort(const char *, int, const char *, ...) {
    std::abort();
}

int main(int, char ** names) {
    std::ifstream file(names[1]);
    std::string source((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    try {
        auto tokens = jinja::lexer().tokenize(source);
        jinja::program program = jinja::parse_from_tokens(tokens);
        jinja::context context(tokens.source);
        jinja::runtime runtime(context);
        const jinja::value value = runtime.execute(program);
        std::cout << jinja::runtime::gather_string_parts(value)->as_string().str();
    } catch (const std::exception & e) {
        std::cout << "cannot be parsed";
    }
}
CPP
llama=$(echo vendor/llama-cpp-sys-4*/llama.cpp)
c++ -std=c++17 -O1 -DNDEBUG -I"$llama/common" -I"$llama/vendor" -I"$llama/include" -I"$llama/ggml/include" \
    driver.cpp "$llama"/common/jinja/*.cpp "$llama/common/json.cpp" "$llama/common/unicode.cpp" -o driver
cat > look.py <<'PYTHON'
import subprocess
import sys

import jinja2

environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
expected = [
    ("{% macro f(a, b=2, c=3) %}{{ a }}{{ b }}{{ c }}{% endmacro %}of f: {{ f(1, c=4) }}", "of f: 124", "of f: 13"),
    ("turns: {% for i in [1, 2] %}{% if i == 1 %}one{% continue %}{% endif %}{{ i }}{% endfor %}",
     "turns: one2", "turns: 2"),
    ("a{% if true %}b{% endif %}", "ab", "b"),
    ("sign: {{ 1 if true else -1 }}", "sign: 1", "cannot be parsed"),
]
changed = False
for source, of_jinja2, of_llama_cpp in expected:
    with open("template", "w") as file:
        file.write(source)
    python = environment.from_string(source).render()
    cpp = subprocess.run(["./driver", "template"], capture_output=True, text=True, check=True).stdout
    print(f"{source}\n    jinja2     {python!r}\n    llama.cpp  {cpp!r}")
    changed |= (python, cpp) != (of_jinja2, of_llama_cpp)
sys.exit("that is no longer so" if changed else 0)
PYTHON
venv/bin/python look.py
