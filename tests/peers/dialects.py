#!/usr/bin/env python3
"""What four engines make of chat templates, against Python's jinja2 as transformers sets it up.

    python dialects.py --driver JINJA_DRIVER --npm FOLDER [--newer JINJA_DRIVER] [--server GGUF] \\
        [--templates FOLDER] [--snippets FILE.jsonl] [--why] -o TRUTH.json

needs transformers 5.24.0 and jinja2 3.1.6 (no torch), and for `--server` xllamacpp 2026.10.11549 beside them.
FOLDER of `--npm` is where `npm install @huggingface/jinja@0.5.11` ran. JINJA_DRIVER is jinja_driver.cpp, compiled with
llama.cpp's common/jinja (for instance of the crate llama-cpp-sys-2 0.1.161, from its folder llama.cpp):

    g++ -std=c++17 -O1 -DNDEBUG -Icommon -Ivendor -Iinclude -Iggml/include jinja_driver.cpp common/jinja/*.cpp \\
        common/json.cpp common/unicode.cpp -o jinja_driver

Every template meets three conversations, with and without a generation prompt, in ASCII and beyond. Each engine is told what
its own callers tell it: transformers `tools` and `documents` as None, so transformers.js; llama.cpp's server neither, and
`enable_thinking`. Its output is compared to what jinja2 makes of the very same names and values.

Verdicts: `parse` (refuses to parse), `render` (an error in some conversation that is not the template's own
`raise_exception`), `otherwise` (other output than jinja2's, or output where jinja2 has an error); none is the same output.
"""

import argparse
import collections
import hashlib
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

BOS, EOS = "<s>", "</s>"
TEXTS = {
    "ascii": ["You are a helpful assistant.", "What is the capital of Austria?", "Vienna.", "And of Japan?"],
    # Each begins with a character of several bytes, and has more.
    "beyond": ["Ärzte sind höflich: 日本語も。", "Österreichs Hauptstadt heißt wie?", "首都はウィーンです。", "और जापान की राजधानी?"],
}
ROLES = {"user": [(1, "user")], "turns": [(1, "user"), (2, "assistant"), (3, "user")]}
ROLES["system"] = [(0, "system"), *ROLES["turns"]]
CALLERS = {
    "transformers": {"tools": None, "documents": None},
    "llama.cpp": {"enable_thinking": True},
    "huggingface.js": {"tools": None, "documents": None},
}


def conversations():
    """Names and messages of all twelve, without a caller's own values."""
    for script, texts in TEXTS.items():
        for roles, turns in ROLES.items():
            for prompt in (False, True):
                messages = [{"role": role, "content": texts[i]} for i, role in turns]
                name = f"{roles}-{script}{'+' if prompt else ''}"
                yield name, {"messages": messages, "add_generation_prompt": prompt, "bos_token": BOS, "eos_token": EOS}


def contexts(caller: str):
    out = []
    for _, context in conversations():
        context = context | CALLERS[caller]
        # The server says nothing where no answer is to begin.
        if caller == "llama.cpp" and not context["add_generation_prompt"]:
            del context["add_generation_prompt"]
        out.append(context)
    return out


class Raised(Exception):
    """A template's own refusal."""


def python(source: str, caller: str):
    """What jinja2 makes of it: as the drivers answer, with `raised` where the template itself refuses."""
    import jinja2
    from transformers.utils import chat_template_utils

    try:
        template = chat_template_utils._cached_compile_jinja_template(source)
    except Exception as e:
        return {"parse": f"{type(e).__name__}: {e}"}
    results = []
    for context in contexts(caller):
        try:
            results.append({"text": template.render(**context)})
        except jinja2.exceptions.TemplateError as e:
            # raise_exception raises the base class, everything of jinja2's own a subclass.
            key = "raised" if type(e) is jinja2.exceptions.TemplateError else "error"
            results.append({key: f"{type(e).__name__}: {e}"})
        except Exception as e:
            results.append({"error": f"{type(e).__name__}: {e}"})
    return {"results": results}


def driven(command: list[str], sources: list[str], caller: str):
    """Answers of a driver, each template in a process of its own if the driver ends early."""
    asked = [json.dumps({"source": s, "contexts": contexts(caller)}) for s in sources]
    done = subprocess.run(command, input="\n".join(asked) + "\n", capture_output=True, text=True, timeout=600)
    lines = done.stdout.splitlines()
    if len(lines) == len(asked):
        return [json.loads(line) for line in lines]
    if len(asked) == 1:
        return [{"parse": f"the process ended with {done.returncode}"}]
    return [driven(command, [s], caller)[0] for s in sources]


def verdict(got, reference):
    """Verdict and, for a person, a word about why."""
    if "parse" in got:
        return "parse", got["parse"]
    if "parse" in reference:
        error = next((g["error"] for g in got["results"] if "error" in g), None)
        return ("render", error) if error else ("otherwise", "jinja2 refuses to parse it")
    names = [name for name, _ in conversations()]
    otherwise = None
    for name, g, r in zip(names, got["results"], reference["results"]):
        if "raised" in r and "text" not in g:
            continue
        if "error" in g:
            return "render", f"{name}: {g['error']}"
        if g != r and otherwise is None:
            otherwise = f"{name}: {g!r} for {r!r}"
    return ("otherwise", otherwise) if otherwise else (None, None)


def measure(sources: dict[str, str], driver: str, npm: str):
    js = str(Path(__file__).with_name("dialects_js.mjs"))
    answers = {
        "llama.cpp": driven([driver], list(sources.values()), "llama.cpp"),
        "huggingface.js": driven(["node", js, npm], list(sources.values()), "huggingface.js"),
    }
    out = {}
    for i, (name, source) in enumerate(sources.items()):
        own = python(source, "transformers")
        found = {"transformers": verdict(own, own), "llama.cpp": verdict(answers["llama.cpp"][i], python(source, "llama.cpp")),
                 "huggingface.js": verdict(answers["huggingface.js"][i], own)}
        out[name] = {engine: {"verdict": v, "why": why} for engine, (v, why) in found.items()}
    return out


def serve(source: str, path: str, out):
    """A child's work: whether the server starts with it, and its prompts."""
    import urllib.error
    import urllib.request

    import xllamacpp

    p = xllamacpp.CommonParams()
    p.model.path, p.n_ctx, p.n_parallel, p.warmup, p.verbosity = path, 256, 1, False, 0
    p.chat_template, p.use_jinja = source, True
    try:
        server = xllamacpp.Server(p)
    except RuntimeError as e:
        out.put({"parse": str(e)})
        return
    results = []
    for _, context in conversations():
        body = {"messages": context["messages"], "add_generation_prompt": context["add_generation_prompt"]}
        request = urllib.request.Request(server.listening_address.rstrip("/") + "/apply-template", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
                results.append({"text": json.load(answer)["prompt"]})
        except urllib.error.HTTPError as e:
            results.append({"error": e.read().decode(errors="replace")})
    out.put({"results": results})


def served(source: str, path: str):
    out = multiprocessing.Queue()
    child = multiprocessing.Process(target=serve, args=(source, path, out))
    child.start()
    try:
        return out.get(timeout=60)
    except Exception:
        return {"parse": "no answer"}
    finally:
        child.kill()
        child.join()


def versions():
    import jinja2
    import transformers

    return {"transformers": f"transformers {transformers.__version__}, jinja2 {jinja2.__version__}",
            "llama.cpp": "common/jinja of b11549 (llama-cpp-sys-2 0.1.161)", "llama.cpp newer": "b12032 (llama-cpp-sys-4 0.11.0)",
            "huggingface.js": "@huggingface/jinja 0.5.11"}


def measured(sources: dict[str, str], options):
    """Verdicts by template and engine, where they are not the same; reasons are printed."""
    truth = measure(sources, options.driver, options.npm)
    if options.newer:
        for name, found in measure(sources, options.newer, options.npm).items():
            truth[name]["llama.cpp newer"] = found["llama.cpp"]
    out = {}
    for name, found in truth.items():
        out[name] = {engine: f["verdict"] for engine, f in found.items() if f["verdict"]}
        if options.why:
            for engine, f in found.items():
                if f["verdict"]:
                    print(f"{name}: {engine}: {f['verdict']}: {f['why'][-300:]!r}")
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--driver", required=True)
    parser.add_argument("--newer", help="a driver of a newer llama.cpp")
    parser.add_argument("--npm", required=True)
    parser.add_argument("--templates", type=Path)
    parser.add_argument("--snippets", type=Path)
    parser.add_argument("--server", help="a GGUF file; llama.cpp's server is asked too, and compared to the driver")
    parser.add_argument("--why", action="store_true", help="print what each engine said")
    parser.add_argument("-o", required=True, type=Path)
    options = parser.parse_args()
    truth = {"versions": versions(), "templates": {}, "snippets": {}}
    sources = {path.stem: path.read_bytes().decode() for path in sorted(options.templates.glob("*.jinja"))} if options.templates else {}
    snippets = options.snippets.read_text().splitlines() if options.snippets else []
    snippets = {(s := json.loads(line))["name"]: s["source"] for line in snippets}
    truth["templates"] = measured(sources, options)
    for name, source in sources.items():
        truth["templates"][name]["sha256"] = hashlib.sha256(source.encode()).hexdigest()
    for name, found in measured(snippets, options).items():
        truth["snippets"][name] = {"source": snippets[name]} | found
    options.o.write_text(json.dumps(truth, indent=0, ensure_ascii=False) + "\n")
    for part in ("templates", "snippets"):
        for engine in ("transformers", "llama.cpp", "llama.cpp newer", "huggingface.js"):
            print(part, engine, dict(collections.Counter(found.get(engine, "same") for found in truth[part].values())))
    if options.server:
        differ = [name for name, source in (sources | wrapped(snippets)).items() if not same_in_server(name, source, options)]
        print("the server's prompts are other than the driver's:", differ or "none")


#: After a snippet, so that the server takes the whole for a chat template; before it, so that its first character is not the first.
WRAP = ("<x>\n", "\n{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def wrapped(snippets: dict[str, str]):
    return {name: source.join(WRAP) for name, source in snippets.items()}


def same_in_server(name: str, source: str, options):
    """Whether the server, where it starts, gives the driver's prompts; a refusal is one of either's."""
    global BOS, EOS
    BOS, EOS = "<|endoftext|>", "<|im_end|>"
    asked, got = driven([options.driver], [source], "llama.cpp")[0], served(source, options.server)
    if "parse" in got:
        does = "parse" if "parse" in asked else "render" if any("error" in r for r in asked["results"]) else "text"
        print(f"{name}: the server does not start; the driver: {does}")
        return does != "text"
    return [r.get("text") for r in got["results"]] == [r.get("text") for r in asked.get("results", [])]


if __name__ == "__main__":
    sys.exit(main())
