"""Loads merged files in real llama.cpp (package xllamacpp) and lets them answer.

    python llama_cpp.py [--models-dir FOLDER] [--chatvec PATH]

FOLDER holds the F16 trio, prompts-de.jsonl and plain-heldout-words.json (default fixtures/models). The trio is merged
into every type, and from copies with other alignments; each file answers all prompts greedily in a process of its own,
because llama.cpp aborts on what it does not like. Ends with 1 unless every file loads and answers, carries the chat
model's template, the float and Q8_0 merges behave as measured when the models were trained, and the others as llama.cpp
was seen to make of ggml's own quantisation of the same sum, and unless the model with an adapter by `extract --lora` of the
default rank answers 95 % of the prompts as the exact merge does.

Columns: ends = share of answers that stopped by <|im_end|>; lang = share that is German; exact = share of the answers
to answerable prompts that are right to the letter; api = answers to /v1/chat/completions that end by themselves (that
the template renders; it says nothing of the vector, since cp ends there too).
"""

import functools
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import gguf

from gguf_files import rewrite
from tool import PLAIN, QUANTIZED, ROOT, UNQUANTIZED, Chatvec, ToolError, Trio, arguments, find_trio, work_folder

LANG = "de"
STOP = "<|im_end|>"
MAX_NEW_TOKENS = 56
N_CHAT_PROMPTS = 8

#: Greedy behaviour of cp + 1.0 * (chat - base), measured in f32 when the trio was trained.
EXPECTED = {"ends": 0.9102, "lang": 0.9162, "exact": 0.6222}
TOLERANCE = 0.03
#: The same of coarser types, whose bytes are ggml's: seen with the xllamacpp of requirements.txt on AVX-512. Kernels of
#: other processors break near-ties otherwise, which moves a few of the 167 answers.
EXPECTED_COARSE = {
    "Q6_K": {"ends": 0.9162, "lang": 0.9222, "exact": 0.6074},
    "Q5_K": {"ends": 0.9162, "lang": 0.9162, "exact": 0.6370},
    "Q5_1": {"ends": 0.9162, "lang": 0.8802, "exact": 0.6148},
    "Q5_0": {"ends": 0.9401, "lang": 0.9042, "exact": 0.6222},
    "Q4_K": {"ends": 0.9102, "lang": 0.9222, "exact": 0.6444},
    "Q4_1": {"ends": 0.9102, "lang": 0.8862, "exact": 0.5926},
    "Q4_0": {"ends": 0.9521, "lang": 0.9102, "exact": 0.6074},
    "Q3_K": {"ends": 0.9401, "lang": 0.8802, "exact": 0.5037},
    "Q2_K": {"ends": 0.9102, "lang": 0.8623, "exact": 0.3556},
}
TOLERANCE_COARSE = 0.06
LEAST_API = 0.5
#: Of all prompts, those that model and adapter answer as the exact merge does.
LEAST_AGREEMENT = 0.95

#: TENSOR_ALIGNMENT of ggml: what it asserts of the address of mapped weights.
MAPPED_ALIGNMENT = 32

CHILD_TIMEOUT_S = 600
WORD = re.compile(r"[^\W\d_]+")


class Llama:
    """One model in llama.cpp's own server, reached over its loopback endpoints."""

    def __init__(self, path: Path, f32_cache: bool = False, n_ctx: int = 256, lora: Path | None = None):
        import xllamacpp

        p = xllamacpp.CommonParams()
        p.model.path = str(path)
        p.n_ctx, p.n_parallel = n_ctx, 1
        p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 2
        if f32_cache:
            p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if lora is not None:
            adapter = xllamacpp.CommonAdapterLoraInfo()
            adapter.path, adapter.scale = str(lora), 1.0
            p.lora_adapters = [adapter]
        p.warmup = False
        p.verbosity = 0
        self.server = xllamacpp.Server(p)

    def request(self, endpoint: str, body: dict | None = None) -> dict:
        """POST with a body, GET without one."""
        data = None if body is None else json.dumps(body).encode()
        url = self.server.listening_address.rstrip("/") + endpoint
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return json.load(answer)

    def complete(self, prompt: str) -> dict:
        """Greedy continuation of a raw prompt: text, token ids with the stop token, and what stopped it."""
        return self.request("/completion", {
            "prompt": prompt, "n_predict": MAX_NEW_TOKENS, "temperature": 0.0, "top_k": 1, "samplers": ["top_k"],
            "cache_prompt": False, "return_tokens": True})

    def chat(self, prompt: str) -> tuple[str, str]:
        """Answer by the file's chat template, and why it ended."""
        choice = self.server.handle_chat_completions({
            "messages": [{"role": "user", "content": prompt}], "max_tokens": MAX_NEW_TOKENS,
            "temperature": 0.0, "top_k": 1})["choices"][0]
        return choice["message"]["content"] or "", choice["finish_reason"]

    def template(self) -> str:
        """The chat template in use; llama.cpp falls back to its own ChatML where the file has none."""
        return self.request("/props")["chat_template"]


def answer_all(model: Path, prompts: Path, result: Path):
    """The child's work: answers to every prompt, as JSON in `result`."""
    llama = Llama(model)
    stop = llama.request("/tokenize", {"content": STOP, "parse_special": True})["tokens"]
    items = [json.loads(line) for line in prompts.read_text(encoding="utf-8").splitlines()]
    answers = []
    for item in items:
        said = llama.complete(item["chatml"])
        ended = said["stop_type"] == "eos" and said["tokens"][-1:] == stop
        answers.append({"text": said["content"], "ended": ended})
    every = max(1, len(items) // N_CHAT_PROMPTS)
    chats = [llama.chat(item["prompt"]) for item in items[::every][:N_CHAT_PROMPTS]]
    result.write_text(json.dumps({"answers": answers, "chats": chats, "template": llama.template()}), encoding="utf-8")


def tokens_of_all(model: Path, prompts: Path, result: Path, lora: str = ""):
    """The child's work: the tokens of every answer, with as little rounding on the way as llama.cpp can do with."""
    llama = Llama(model, f32_cache=True, lora=Path(lora) if lora else None)
    items = [json.loads(line) for line in prompts.read_text(encoding="utf-8").splitlines()]
    result.write_text(json.dumps([llama.complete(item["chatml"])["tokens"] for item in items]), encoding="utf-8")


def agreement(exact: Path, model: Path, lora: Path, prompts: Path) -> float:
    """The share of prompts that a model with an adapter answers token for token as another does, greedily."""
    expected, found = tokens_in_child(exact, prompts), tokens_in_child(model, prompts, lora)
    return sum(a == b for a, b in zip(expected, found, strict=True)) / len(expected)


@functools.cache
def tokens_in_child(model: Path, prompts: Path, lora: Path | None = None) -> list[list[int]]:
    result = (lora or model).with_suffix(".tokens.json")
    return run_child("--child-tokens", model, prompts, result, *([lora] if lora else []))


def in_child(model: Path, prompts: Path) -> dict:
    """Runs answer_all in another process; a ToolError with llama.cpp's last words when that fails."""
    return run_child("--child", model, prompts, model.with_suffix(".json"))


def run_child(work: str, model: Path, prompts: Path, result: Path, *more: Path):
    command = [sys.executable, __file__, work, str(model), str(prompts), str(result), *map(str, more)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=CHILD_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ToolError(f"llama.cpp did not finish within {CHILD_TIMEOUT_S} s") from None
    if done.returncode or not result.is_file():
        raise ToolError(f"llama.cpp failed, exit {done.returncode}: {last_words(done.stderr)}")
    return json.loads(result.read_text(encoding="utf-8"))


def last_words(stderr: str) -> str:
    """The lines that say why; an abort is followed by a long stack trace that does not."""
    lines = stderr.splitlines()
    telling = [line for line in lines if "GGML_ASSERT" in line or "error" in line.lower()]
    return " | ".join((telling or lines)[-4:])


def language(text: str, words: dict[str, set[str]]) -> str | None:
    """The language with most words of its own in the text; None on a tie."""
    counts = sorted((sum(w.lower() in own for w in WORD.findall(text)), lang) for lang, own in words.items())
    return counts[-1][1] if counts[-1][0] > counts[-2][0] else None


def score(items: list[dict], said: dict, words: dict[str, set[str]]) -> dict[str, float]:
    """The columns of the table."""
    answers = said["answers"]
    pairs = [(i, a) for i, a in zip(items, answers, strict=True) if i["kind"] != "unsafe"]
    return {
        "ends": sum(a["ended"] for a in answers) / len(answers),
        "lang": sum(language(a["text"], words) == LANG for a in answers) / len(answers),
        "exact": sum(a["ended"] and a["text"].strip() == i["answer"] for i, a in pairs) / len(pairs),
        "api": sum(bool(text.strip()) and why == "stop" for text, why in said["chats"]) / len(said["chats"]),
    }


class Table:
    """Evaluates files, prints a row for each and remembers what failed."""

    def __init__(self, models_dir: Path, chat_template: str):
        self.prompts = models_dir / f"prompts-{LANG}.jsonl"
        self.items = [json.loads(line) for line in self.prompts.read_text(encoding="utf-8").splitlines()]
        words = json.loads((models_dir / "plain-heldout-words.json").read_text(encoding="utf-8"))
        self.words = {lang: set(own) for lang, own in words.items()}
        self.chat_template = chat_template
        self.passed = self.failed = 0
        print(f"{'model':<26} {'ends':>6} {'lang':>6} {'exact':>6} {'api':>6}")

    def row(self, name: str, model: Path, checks):
        """`checks(scores)` yields a sentence for each thing that is wrong."""
        try:
            said = in_child(model, self.prompts)
        except ToolError as e:
            return self.failure(name, str(e))
        scores = score(self.items, said, self.words)
        wrong = list(checks(scores))
        if checks is not not_a_chat_model and said["template"] != self.chat_template:
            wrong.append("the chat template in use is not the chat model's")
        columns = " ".join(f"{scores[c]:6.4f}" for c in ("ends", "lang", "exact", "api"))
        print(f"{name:<26} {columns}  {'; '.join(wrong) or 'ok'}", flush=True)
        self.passed += not wrong
        self.failed += bool(wrong)

    def failure(self, name: str, reason: str):
        print(f"{name:<26} FAIL {reason}", flush=True)
        self.failed += 1


def not_a_chat_model(scores):
    """cp itself: if it ended its answers, the merges' figures would show nothing."""
    if scores["ends"] > TOLERANCE:
        yield f"cp is expected not to end its answers, and does so in {scores['ends']:.2f}"


def as_measured(type_: str = "F16"):
    """The check that a file of this type is within the tolerance of its figures."""
    figures, tolerance = EXPECTED, TOLERANCE
    if type_ in EXPECTED_COARSE:
        figures, tolerance = EXPECTED_COARSE[type_], TOLERANCE_COARSE

    def check(scores):
        for column, expected in figures.items():
            if abs(scores[column] - expected) > tolerance:
                yield f"{column} {scores[column]:.4f} is not within {tolerance} of {expected}"
        if scores["api"] < LEAST_API:
            yield f"api {scores['api']:.4f} is below {LEAST_API}"

    return check


def evaluate(chatvec: Chatvec, trio: Trio, table: Table, folder: Path):
    """Every row of the table."""
    def merge(name: str, inputs: Trio, checks, *args, **options):
        out = folder / f"{name.replace(' ', '-')}.gguf"
        try:
            chatvec.merge(inputs, out, *args, **options)
            if (alignment := gguf.GGUFReader(out).alignment) % MAPPED_ALIGNMENT:
                return table.failure(name, f"general.alignment is {alignment}, no multiple of {MAPPED_ALIGNMENT}")
            table.row(name, out, checks)
        except ToolError as e:
            table.failure(name, str(e))
        out.unlink(missing_ok=True)

    own = folder / trio.cp.name
    own.write_bytes(trio.cp.read_bytes())
    table.row("cp", own, not_a_chat_model)
    for type_ in (*UNQUANTIZED, *QUANTIZED):
        merge(f"merged {type_}", trio, as_measured(type_), *PLAIN, type_=type_)
    merge("merged, default options", trio, as_measured())
    # llama.cpp maps weights and asserts 32-byte addresses, so a file of alignment 16 aborts it for half of all header
    # lengths: what is merged from such files has to be aligned to 32. llama.cpp's own tools write unreadable files
    # from inputs of alignment 128, because they copy the key and pad with 32.
    for alignment in (16, 128):
        aligned = trio.map(lambda p: rewrite(p, folder / f"{alignment}-{p.name}", alignment=alignment))
        merge(f"alignment {alignment}, keep", aligned, as_measured(), *PLAIN)
        merge(f"alignment {alignment}, Q4_K", aligned, as_measured("Q4_K"), *PLAIN, type_="Q4_K")


def adapters(chatvec: Chatvec, trio: Trio, table: Table, folder: Path):
    """The exported adapter on the F32 model answers as the exact merge does."""
    cp, exact = folder / "cp-F32.gguf", folder / "exact.gguf"
    chatvec.run("quantize", trio.cp, "-o", cp, "--type", "F32")
    chatvec.merge(trio, exact, *PLAIN, type_="F32")
    for type_ in ("f16", "q8_0"):
        lora = folder / f"lora-{type_}.gguf"
        name = f"model + adapter {type_}"
        try:
            chatvec.run("extract", "--base", trio.base, "--chat", trio.chat, "--lora", lora, "--lora-type", type_)
            share = agreement(exact, cp, lora, table.prompts)
        except ToolError as e:
            table.failure(name, str(e))
            continue
        is_wrong = share < LEAST_AGREEMENT
        print(f"{name:<26} {share:6.4f} of answers as the merge's  {'too few' if is_wrong else 'ok'}", flush=True)
        table.passed, table.failed = table.passed + (not is_wrong), table.failed + is_wrong


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        answer_all(*map(Path, sys.argv[2:5]))
        return 0
    if sys.argv[1:2] == ["--child-tokens"]:
        tokens_of_all(*map(Path, sys.argv[2:5]), *sys.argv[5:6])
        return 0
    parser = arguments(__doc__)
    parser.add_argument("--models-dir", type=Path, default=ROOT / "fixtures/models", help="folder of trio and prompts")
    options = parser.parse_args()
    trio = find_trio(options.models_dir)
    if trio is None:
        raise SystemExit(f"no F16 trio in {options.models_dir}")
    template = gguf.GGUFReader(trio.chat).fields["tokenizer.chat_template"].contents()
    chatvec = Chatvec(options.chatvec)
    with work_folder(options.temp_dir) as folder:
        table = Table(options.models_dir, template)
        evaluate(chatvec, trio, table, folder)
        adapters(chatvec, trio, table, folder)
    print(f"{table.passed} passed, {table.failed} failed")
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())
