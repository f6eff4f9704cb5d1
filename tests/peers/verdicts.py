"""How often the verdicts of `chatvec smoke` are right: healthy models and broken copies, type by type.

    python verdicts.py [--models FOLDER] [--only trio,smollm2,qwen2] [--types F16,Q8_0] [--results FILE] [--write]

Healthy are the bundled trio merged at ratio 1, SmolLM2-135M-Instruct and Qwen2.5-Coder-0.5B-Instruct; the last two are
fetched by `fetch_models.py` (`--models` is its folder). Broken copies are made here, seeded: another end token, the ratios
0, 0.5 and 2 (trio), noise of three sizes in units of each matrix's deviation, layers in reverse order, no layers (which
loops), an empty template, a model that knows English alone asked in German, and Q2_K. Each is asked as F16, Q8_0, Q4_K_M
and Q4_1: the trio its 167 German prompts, the others a quarter of the built-in ones (`--quick`). Of Qwen2.5, only some
copies are made, since they take minutes each.

Bounds were tuned by looking at the first half of the broken copies; figures are of the other half. A miss is a broken
copy that does not FAIL, a false alarm a healthy model that does. `--results` keeps what was asked, and goes on from
there. `--write` puts the tables into docs/VERDICTS.md. Needs numpy and gguf (requirements.txt). With a release build on
two busy cores the trio took ten minutes; a broken copy of SmolLM2 in one type takes about three minutes of CPU time,
one of Qwen2.5 four times that (estimated from its size).
"""

import json
import subprocess
import time
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize

import fetch_models
from gguf_files import Tensor, is_quantizable, read_tensors, rewrite
from tool import ROOT, Chatvec, arguments, find_trio, work_folder

TYPES = ("F16", "Q8_0", "Q4_K_M", "Q4_1")
NOISE = (0.3, 0.6, 1.0)
#: Half of the broken copies, by which bounds were tuned; the others are what the figures are of.
TUNED_ON = {
    "trio": {"wrong end token", "ratio 0.5", "noise 0.6", "no layers", "English only"},
    "smollm2": {"noise 0.3", "noise 1.0", "reversed layers", "English only", "Q2_K"},
    "qwen2": {"wrong end token", "Q2_K"},
}
#: What is made of the largest one.
OF_QWEN2 = {"healthy", "wrong end token", "noise 0.6", "empty template", "Q2_K"}
MARKS = ("<!-- verdicts.py writes from here -->", "<!-- to here -->")
DOCS = ROOT / "docs/VERDICTS.md"
HEALTHY = "healthy"


class Weights:
    """A model's matrices in f32, and the file that the rest is taken from."""

    def __init__(self, path: Path):
        self.path = path
        self.tensors = {}
        for name, tensor in read_tensors(path).items():
            rows = tensor.data.reshape(*tensor.shape[:-1], -1) if tensor.type not in (0, 1) else None
            if rows is None:
                values = tensor.data.view(np.float32 if tensor.type == 0 else np.float16).astype(np.float32)
            else:
                values = dequantize(rows, tensor.type)
            self.tensors[name] = values.reshape(tensor.shape)

    def write(self, out: Path, change=None, values=None) -> Path:
        """Writes them as F32, each matrix through `change` first, with other values for some keys."""
        tensors = {}
        for name, weights in self.tensors.items():
            changed = weights if change is None else change(name, weights, self.tensors)
            data = np.ascontiguousarray(changed, dtype=np.float32)
            tensors[name] = Tensor(name, weights.shape, gguf.GGMLQuantizationType.F32, data.reshape(-1).view(np.uint8))
        return rewrite(self.path, out, tensors, values=values)


def is_matrix(name: str, weights: np.ndarray) -> bool:
    return len(weights.shape) > 1 and is_quantizable(Tensor(name, weights.shape, gguf.GGMLQuantizationType.F32, weights))


def noisy(size: float):
    rng = np.random.default_rng(7)

    def change(name, weights, _):
        if not is_matrix(name, weights):
            return weights
        return weights + rng.standard_normal(weights.shape, dtype=np.float32) * weights.std() * np.float32(size)

    return change


def reversed_layers(name, weights, all_weights):
    n = 1 + max(int(other.split(".")[1]) for other in all_weights if other.startswith("blk."))
    if not name.startswith("blk."):
        return weights
    _, i, rest = name.split(".", 2)
    return all_weights[f"blk.{n - 1 - int(i)}.{rest}"]


def no_layers(name, weights, _):
    return np.zeros_like(weights) if "attn_output.weight" in name or "ffn_down.weight" in name else weights


def another_end(path: Path) -> dict:
    """The token that ends a turn under a name that no engine knows, and an ordinary token as the end of a text."""
    fields = gguf.GGUFReader(path).fields
    end, new = "<|im_end|>", "<|my_end|>"
    tokens = [new if text == end else text for text in fields["tokenizer.ggml.tokens"].contents()]
    template = fields["tokenizer.chat_template"].contents().replace(end, new)
    ends = {key: 20 for key in fields if key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")}
    return {"tokenizer.ggml.tokens": tokens, "tokenizer.chat_template": template, **ends}


class Copies:
    """The healthy model and its broken copies, as F32 files."""

    def __init__(self, healthy: Path, folder: Path):
        self.weights = Weights(healthy)
        self.folder = folder

    def names(self) -> list[str]:
        return [HEALTHY, "wrong end token", *(f"noise {size}" for size in NOISE), "reversed layers", "no layers",
                "empty template", "Q2_K"]

    def make(self, name: str) -> Path:
        out = self.folder / "copy.gguf"
        out.unlink(missing_ok=True)
        path = self.weights.path
        if name.startswith("noise "):
            return self.weights.write(out, noisy(float(name.split()[1])))
        change = {"reversed layers": reversed_layers, "no layers": no_layers}.get(name)
        values = {"empty template": {"tokenizer.chat_template": ""}}.get(name)
        if name == "wrong end token":
            values = another_end(path)
        return self.weights.write(out, change, values)


class Bench:
    """Asks and keeps what came of it."""

    def __init__(self, chatvec: Chatvec, results: Path, folder: Path, types: tuple[str, ...]):
        self.chatvec, self.results, self.folder, self.types = chatvec, results, folder, types
        lines = results.read_text("utf-8").splitlines() if results.exists() else []
        self.found = [json.loads(line) for line in lines]

    def is_known(self, model: str, copy: str, type_: str) -> bool:
        return any((f["model"], f["copy"], f["type"]) == (model, copy, type_) for f in self.found)

    def ask(self, model: str, copy: str, type_: str, path: Path, options: list):
        command = [str(a) for a in (self.chatvec.path, "smoke", path, "--json", *options)]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode not in (0, 11):
            raise SystemExit(f"{model}, {copy}, {type_}: exit {done.returncode}: {done.stderr[-600:]}")
        report = json.loads(done.stdout)
        checks = {c["name"]: [c["verdict"], c["decided"], c["hits"], c["n"]] for c in report["checks"]}
        found = {"model": model, "copy": copy, "type": type_, "verdict": report["verdict"], "checks": checks,
                 "conclusion": report["conclusion"], "seconds": round(time.perf_counter() - start, 1)}
        self.found.append(found)
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found, ensure_ascii=False) + "\n")
        print(f"{model:8} {copy:16} {type_:7} {report['verdict']:5} {found['seconds']:6.1f} s  {report['conclusion']}")

    def ask_types(self, model: str, copy: str, path_of, options: list):
        """Asks a copy in every type. `path_of` makes it, if it is needed."""
        types = ("Q2_K",) if copy == "Q2_K" else self.types
        due = [type_ for type_ in types if not self.is_known(model, copy, type_)]
        path = path_of() if due else None
        for type_ in due:
            out = self.folder / "typed.gguf"
            out.unlink(missing_ok=True)
            self.chatvec.run("quantize", path, "-o", out, "-t", type_)
            self.ask(model, copy, type_, out, options)


def trio(bench: Bench, chatvec: Chatvec, folder: Path):
    files = find_trio(ROOT / "fixtures/models")
    options = ["--prompts", ROOT / "fixtures/models/prompts-de.jsonl", "--max-tokens", 56]

    def merged(ratio: float) -> Path:
        return chatvec.merge(files, folder / f"ratio-{ratio}.gguf", "--overwrite",
                             type_="F32", ratio=ratio)

    copies = Copies(merged(1.0), folder)
    for name in copies.names():
        bench.ask_types("trio", name, lambda name=name: copies.make(name), options)
    for ratio in (0.0, 0.5, 2.0):
        bench.ask_types("trio", f"ratio {ratio}", lambda ratio=ratio: merged(ratio), options)
    bench.ask_types("trio", "English only", lambda: files.chat, options)


def real(bench: Bench, name: str, path: Path, folder: Path, wanted):
    options = ["--quick", "--language", "en"]
    copies = Copies(path, folder)
    for copy in filter(wanted, copies.names()):
        bench.ask_types(name, copy, lambda copy=copy: copies.make(copy), options)
    if name == "smollm2":
        bench.ask_types(name, "English only", lambda: copies.make(HEALTHY), ["--quick", "--language", "de"])


def tables(found: list[dict]) -> str:
    """What docs/VERDICTS.md shows."""
    is_tuned = lambda f: f["copy"] in TUNED_ON[f["model"]]
    broken = [f for f in found if f["copy"] != HEALTHY]
    healthy = [f for f in found if f["copy"] == HEALTHY]
    lines = ["| type | broken, the other half | FAIL | WARN: missed | PASS: missed | healthy | false alarms (FAIL) | WARN |",
             "|---|---|---|---|---|---|---|---|"]
    count = lambda rows, verdict: sum(f["verdict"] == verdict for f in rows)
    for type_ in (*TYPES, "Q2_K", "all"):
        of = lambda rows: [f for f in rows if type_ in ("all", f["type"])]
        held, well = of([f for f in broken if not is_tuned(f)]), of(healthy)
        cells = [len(held), *(count(held, v) for v in ("fail", "warn", "pass")), len(well), count(well, "fail"), count(well, "warn")]
        lines.append(f"| {type_} | " + " | ".join(map(str, cells)) + " |")
    lines += ["", "| model | copy | half | " + " | ".join(TYPES) + " | checks that fail |", "|---|---|---|" + "---|" * (len(TYPES) + 1)]
    copies = dict.fromkeys((f["model"], f["copy"]) for f in found)
    for model, copy in copies:
        rows = {f["type"]: f for f in found if (f["model"], f["copy"]) == (model, copy)}
        half = "–" if copy == HEALTHY else "tuned on" if copy in TUNED_ON[model] else "other"
        words = [rows[t]["verdict"].upper() if t in rows else "" for t in TYPES]
        if "Q2_K" in rows:
            words = [rows["Q2_K"]["verdict"].upper(), "", "", ""]
        failed = dict.fromkeys(name for f in rows.values() for name, c in f["checks"].items() if c[0] == "fail")
        lines.append(f"| {model} | {copy} | {half} | " + " | ".join(words) + f" | {', '.join(failed) or '–'} |")
    lines += ["", "| healthy model | type | conclusion |", "|---|---|---|"]
    lines += [f"| {f['model']} | {f['type']} | {f['conclusion']} |" for f in healthy]
    return "\n".join(lines) + "\n"


def main():
    parser = arguments(__doc__)
    parser.add_argument("--models", type=Path, default=fetch_models.DEFAULT, help="the folder of fetch_models.py")
    parser.add_argument("--only", default="trio,smollm2,qwen2", help="which models, between commas")
    parser.add_argument("--types", default=",".join(TYPES), help="which types, between commas")
    parser.add_argument("--results", type=Path, default=ROOT / "target/verdicts.jsonl", help="what was asked so far")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/VERDICTS.md")
    args = parser.parse_args()
    chatvec = Chatvec(args.chatvec)
    with work_folder(args.temp_dir) as folder:
        bench = Bench(chatvec, args.results, folder, tuple(args.types.split(",")))
        for name in args.only.split(","):
            if name == "trio":
                trio(bench, chatvec, folder)
            else:
                wanted = (lambda copy: copy in OF_QWEN2) if name == "qwen2" else (lambda copy: True)
                real(bench, name, args.models / fetch_models.MODELS[name].file, folder, wanted)
        text = tables(bench.found)
    print("\n" + text)
    if args.write:
        before, rest = DOCS.read_text("utf-8").split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        DOCS.write_text(f"{before}{MARKS[0]}\n\n{text}\n{MARKS[1]}{after}", "utf-8")


if __name__ == "__main__":
    main()
