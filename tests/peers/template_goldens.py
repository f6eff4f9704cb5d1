#!/usr/bin/env python3
"""Renders chat templates with Python's jinja2 as transformers sets it up, for tests/integration/template.rs.

    python tests/peers/template_goldens.py LLAMA_CPP/models/templates

needs jinja2 3.1.6. It reads the folder of llama.cpp's templates and writes, under fixtures/templates: the templates in
KEEP with what they make of CONVERSATIONS (rendered.json), hashes of what every template of the folder makes of them
(hashes.json), and the snippets below with their output (snippets.json). Nothing but the folder and the version of jinja2
changes the result.
"""

import hashlib
import json
import shutil
import sys
from datetime import datetime
from pathlib import Path

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

OUT = Path(__file__).parents[2] / "fixtures" / "templates"
NOW = datetime(2026, 7, 5, 9, 3, 7)
BOS, EOS = "<s>", "</s>"

# Licensed Apache-2.0 or MIT, by their models' cards.
KEEP = [
    "Apertus-8B-Instruct",
    "ByteDance-Seed-OSS",
    "GLM-4.6",
    "HuggingFaceTB-SmolLM3-3B",
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "deepseek-ai-DeepSeek-V3.1",
    "ibm-granite-granite-3.3-2B-Instruct",
    "ibm-granite-granite-4.0",
    "microsoft-Phi-3.5-mini-instruct",
    "mistralai-Ministral-3-14B-Reasoning-2512",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "openai-gpt-oss-120b",
]

SYSTEM = {"role": "system", "content": "Du bist ein hilfreicher Assistent."}
USER = {"role": "user", "content": "Wie heißt die Hauptstadt von Österreich?"}
CONVERSATIONS = {
    "plain": [USER],
    "system": [SYSTEM, USER],
    "turns": [
        SYSTEM,
        USER,
        {"role": "assistant", "content": "Wien."},
        {"role": "user", "content": "  <b>\"Danke\" & 'tschüss'</b>\n\n"},
        {"role": "assistant", "content": "<think>\nkurz\n</think>\n\nGern geschehen! 😀"},
        {"role": "user", "content": "{{ 1 + 1 }}\t\\n"},
    ],
}

# Name: source. Rendered with "turns" and a generation prompt.
SNIPPETS = {
    "trim_blocks": "a\n{% if true %}\n  b\n{% endif %}\n\nc\n",
    "lstrip_blocks": "a\n   {% if true %}b{% endif %}   \n  {# c #}  \n d {% if true %} e {% endif %} f\n",
    "trim_and_variables": "{{ 'a' }}\n{{ 'b' }}\n\n  {{- 'c' -}}  \n d",
    "plus": "a\n  {%+ if true +%}\n b {%- endif %}\n c",
    "comments": "a {#- b -#} c\n{# d #}\ne",
    "trailing_newline": "a\n\n",
    "raw": "{% raw %}{{ a }}{% generation %}{% endraw %} b",
    "loop": "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}{{ loop.last }}"
    "{{ loop.length }} {{ loop.previtem.role if loop.previtem is defined else '-' }} {{ loop.nextitem.role if not loop.last }};{% endfor %}",
    "slices": "{{ messages[1:]|length }}{{ messages[-1].role }}{{ messages[::-1][0]['role'] }}{{ messages[:2]|length }}"
    "{{ 'abcdef'[1:-1] }}{{ 'äöü'[::-1] }}{{ 'abc'[-1] }}{{ messages[1:3][0].role }}{{ [1,2,3][5:] }}",
    "tests": "{{ 'a' is string }}{{ messages is string }}{{ messages is iterable }}{{ messages is sequence }}"
    "{{ messages[0] is mapping }}{{ x is defined }}{{ x is undefined }}{{ none is none }}{{ tools is none }}"
    "{{ 1 is number }}{{ true is boolean }}{{ false is false }}{{ 3 is odd }}{{ 4 is divisibleby 2 }}"
    "{{ 'a' is eq 'a' }}{{ 1 is integer }}{{ 1.0 is float }}{{ 'a' is in 'abc' }}{{ tools is not none }}",
    "undefined": "[{{ x }}][{{ (x.y is defined) if x is defined else 'no' }}][{{ x|default('d') }}][{{ messages[0].name }}]"
    "[{{ messages[0]['name'] is defined }}][{{ '' | default('e', true) }}][{{ x or 'f' }}][{% for a in x %}{% endfor %}]",
    "dicts": "{% set d = {'a': 1, 'b': [1, 'x', none, true, 1.5], \"c\": {'e': \"it's\"}} %}{{ d }}|{{ d.a }}|{{ d['c'].e }}|"
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{{ d.keys()|list }}{{ d.values()|list }}{{ d.get('z') }}"
    "{{ d.get('z', 3) }}{{ 'a' in d }}{{ 'z' not in d }}{{ d|length }}{% for k in d %}{{ k }}{% endfor %}",
    "items_filter": "{% for k, v in messages[0]|items %}{{ k }}:{{ v }};{% endfor %}"
    "{% for k, v in {'b': 1, 'a': 2}|dictsort %}{{ k }}{{ v }}{% endfor %}",
    "tuples": "{{ (1, 2) }}{{ (1,) }}{{ () }}{% set a, b = 1, 2 %}{{ a }}{{ b }}{% for a, b in [(1, 2), (3, 4)] %}{{ a + b }}{% endfor %}",
    "strings": "{{ ' a '|trim }}.{{ 'a,b,c'.split(',') }}{{ 'a b  c'.split() }}{{ 'abc'.upper() }}{{ 'ABC'.lower() }}"
    "{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith(('x', 'c')) }}{{ ' a'.lstrip() }}{{ 'a\n'.rstrip('\n') }}"
    "{{ 'xxaxx'.strip('x') }}{{ 'aXbX'.replace('X', '-') }}{{ 'aaa'.replace('a', 'b', 2) }}{{ 'hello world'.title() }}"
    "{{ 'abc'.find('c') }}{{ ','.join(['a', 'b']) }}{{ 'abcabc'.count('b') }}{{ 'hello'.capitalize() }}{{ '12'.isdigit() }}"
    "{{ 'a</think>b'.split('</think>')[-1] }}{{ 'a|b|c'.split('|', 1) }}{{ '{} and {}'.format(1, 'b') }}{{ 'a\nb\n'.splitlines() }}",
    "concat": "{{ 'a' ~ 1 ~ none ~ true ~ 1.5 ~ [1, 'b'] }}{{ 'a' + 'b' }}{{ 'ab' * 3 }}{{ '%s-%d'|format('a', 3) }}",
    "arithmetic": "{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 4 / 2 }} {{ 2 ** 10 }} {{ 1 + 2 * 3 }} {{ 1e3 }} {{ 10|int }} {{ '3'|int + 1 }} {{ 2.50 }}",
    "logic": "{{ 1 and 2 }}{{ 0 or 'a' }}{{ not [] }}{{ 'a' if [] else 'b' }}{{ '' or none }}{{ 1 < 2 }}{{ 'a' < 'b' }}{{ 'b' not in 'abc' }}{{ 'x' if false }}{{ 1 == 1.0 }}{{ true == 1 }}",
    "namespace": "{% set ns = namespace(a=1, b='x', seen=false) %}{% for m in messages %}{% set ns.a = ns.a + 1 %}"
    "{% if m.role == 'user' and not ns.seen %}{% set ns.seen = true %}{% set ns.b = m.content %}{% endif %}{% endfor %}"
    "{{ ns.a }}{{ ns.b }}{{ ns.seen }}{% set ns.c = [1, {'a': 2}], 3 %}{{ ns.c }}{{ ns.d is defined }}",
    "scopes": "{% set a = 1 %}{% for m in messages %}{% set a = a + 1 %}{% endfor %}{{ a }}{% if true %}{% set a = 5 %}{% endif %}{{ a }}"
    "{% with %}{% set a = 9 %}{% endwith %}{{ a }}",
    "macros": "{% macro f(a, b='x', c=none) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ f(1) }}{{ f(1, 2) }}{{ f(1, c=3) }}{{ f(1)|trim }}"
    "{% macro g(n) %}{{ n }}{% if n > 0 %}{{ g(n - 1) }}{% endif %}{% endmacro %}{{ g(3) }}{{ f('a') ~ 'b' }}",
    "call_blocks": "{% macro f() %}<{{ caller() }}>{% endmacro %}{% call f() %}a{% endcall %}{% filter upper %}abc{% endfilter %}",
    "set_blocks": "{% set a %}\n  b {{ 1 }}\n{% endset %}[{{ a }}]{% set c | trim | upper %} d {% endset %}[{{ c }}]",
    "loop_controls": "{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "loop_else": "{% for a in [] %}x{% else %}y{% endfor %}{% for m in messages if m.role == 'user' %}{{ loop.index }}{% endfor %}{{ range(1, 10, 3)|list }}",
    "recursive": "{% for a in [[1, [2]], [3]] recursive %}{% if a is number %}{{ a }}{% else %}({{ loop(a) }}){% endif %}{% endfor %}",
    "generation": "{% for m in messages %}\n  {%- if m.role == 'assistant' %}\n    {%- generation -%}\n    {{ m.content }}\n"
    "    {%- set x = 1 %}\n    {%- endgeneration -%}\n  {%- else %}\n{% generation %}\n  b\n{% endgeneration %}\n{% endif %}{% endfor %}{{ x is defined }}",
    "tojson": "{{ messages[:2]|tojson }}{{ {'b': 1, 'a': [1, 2.5, none, true, {}, []]}|tojson(indent=2) }}{{ 'ä<>&\\'\"\\\\\\n\\u0001😀'|tojson }}"
    "{{ 'ä😀'|tojson(ensure_ascii=true) }}{{ {'b': 1, 'a': 2}|tojson(sort_keys=true) }}{{ {'b': 1}|tojson(separators=(',', ':')) }}"
    "{{ [1]|tojson(indent='\\t') }}{{ '<'|tojson|e }}{{ {1: 2, none: 3}|tojson }}{{ [1e20, 1e-7, 0.1, 1e16]|tojson }}{{ [(1, 2)]|tojson(indent=0) }}",
    "escapes": "{{ '<&>' }}{{ '<&>'|e }}{{ '<'|safe }}{{ messages[3].content }}{{ 'a\\tb\\x41\\u00e4' }}",
    "strftime": "{{ strftime_now('%Y-%m-%d %d %b %Y %B %A %a %H:%M:%S %I %p %j %y %% %e %-d %-m') }}",
    "filters": "{{ [3, 1, 2]|sort }}{{ [3, 1, 2]|max }}{{ ['a', 'b']|join(', ') }}{{ [1, 1, 2]|unique|list }}{{ [1, 2]|first }}{{ [1, 2]|last }}"
    "{{ messages|map(attribute='role')|join(',') }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}"
    "{{ messages|rejectattr('role', '==', 'user')|map(attribute='content')|list|length }}{{ 'a\nb'|indent(2) }}{{ 'abc'|reverse }}"
    "{{ ['a', 'b']|map('upper')|list }}{{ [1, 2, 3]|select('odd')|list }}{{ 3.7|int }}{{ 3.14159|round(2) }}{{ 'a b'|replace(' ', '_') }}{{ -3|abs }}{{ [1, 2]|sum }}{{ 'hello'|capitalize }}{{ 5|string + 'a' }}{{ 'abc'|list }}{{ none|string }}{{ [1, 'a']|string }}",
    "lists": "{{ [1] + [2, 'a'] }}{{ [0] * 3 }}{{ [1, 2] == [1, 2] }}{{ 2 in [1, 2] }}{{ [[1, 2], [3]][0][1] }}{{ ([1] + [2])|length }}{{ (messages + [messages[0]])|length }}",
    "options": "{{ add_generation_prompt }}{{ bos_token }}{{ eos_token }}{{ tools }}{{ documents }}{{ x if x is defined else 'none' }}",
    "line_breaks": "{{ 'a\\nb' }}{{ \"c\\n\" }}\r\nd\r\n{% if true %}\r\ne{% endif %}",
    "numbers": "{{ 1000000 }} {{ 1.0 }} {{ 1e100 }} {{ 1e-7 }} {{ 0.1 + 0.2 }} {{ 12345678901234567890 }} {{ 5 // 2.0 }} {{ true + 1 }}",
    "with": "{% with a = 1, b = 'c' %}{{ a }}{{ b }}{% endwith %}",
    "raise": "{% if messages|length > 1 %}{{ raise_exception('Only one message, not ' ~ messages|length) }}{% endif %}",
    "attribute_of_undefined": "{{ x.y.z }}",
}


class Generation(jinja2.ext.Extension):
    """transformers' AssistantTracker, which tracks nothing unless asked."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


def render(source, messages, add_generation_prompt):
    """The prompt, or none if the template raises.

    transformers says that tools are None, llama.cpp says nothing about them; the latter decides where a template written
    for tools loops over None, which is an error.
    """
    said = dict(messages=messages, add_generation_prompt=add_generation_prompt, bos_token=BOS, eos_token=EOS)
    try:
        template = environment().from_string(source)
        try:
            return template.render(said, tools=None, documents=None)
        except TypeError:
            return template.render(said)
    except jinja2.exceptions.TemplateError:
        return None


def every(source):
    return {
        f"{name}{'+' if prompt else ''}": render(source, messages, prompt)
        for name, messages in CONVERSATIONS.items()
        for prompt in (False, True)
    }


def sha256(text):
    return text and hashlib.sha256(text.encode()).hexdigest()


def write(name, value):
    (OUT / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def main():
    folder = Path(sys.argv[1])
    templates = {path.stem: path.read_bytes().decode() for path in sorted(folder.glob("*.jinja"))}
    rendered = {}
    for name in KEEP:
        shutil.copyfile(folder / f"{name}.jinja", OUT / f"{name}.jinja")
        rendered[name] = every(templates[name])
    write("rendered.json", {"conversations": CONVERSATIONS, "rendered": rendered})
    hashes = {
        name: {"source": sha256(source)} | {key: sha256(text) for key, text in every(source).items()}
        for name, source in templates.items()
    }
    write("hashes.json", hashes)
    snippets = {
        name: {"source": source, "text": render(source, CONVERSATIONS["turns"], True)}
        for name, source in SNIPPETS.items()
    }
    write("snippets.json", snippets)


main()
