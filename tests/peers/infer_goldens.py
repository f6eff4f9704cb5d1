"""What real llama.cpp computes with a model: log-probabilities of given tokens, and greedy answers.

    python infer_goldens.py [--chatvec PATH] [--models FOLDER] [logprobs] [greedy] [synthetic] [families] [peers]
    python infer_goldens.py spread [--other-library libllama.so]

Writes fixtures/infer/{logprobs,greedy,synthetic,families}.json from the bundled trio, its merges (made by chatvec, whose
bytes are held to ggml's elsewhere) and the models of synthetic_models.py and family_models.py. `peers` writes smollm2.json and qwen2.json from the
files of fetch_models.py in FOLDER (default target/peer-models). `spread` prints how far llama.cpp is from itself and
from exact arithmetic, for every type: the table of fixtures/infer/README.md, which describes all fields.

Always: F32 cache, flash attention off, log-softmax in f64. Needs requirements.txt; the peers' prompts
are rendered by llama.cpp's own server. Before anything is written, log-probabilities of the C interface are held to
those that the server gives.
"""

import argparse
import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path

import gguf
import numpy as np

import fetch_models
import llama_cpp
from exact_forward import ExactModel
from libllama import Llama, log_softmax
from tool import QUANTIZED, ROOT, UNQUANTIZED, Chatvec, arguments, find_trio, work_folder

OUT = ROOT / "fixtures/infer"
MODELS = ROOT / "fixtures/models"
PROMPTS = MODELS / f"prompts-{llama_cpp.LANG}.jsonl"
#: More threads change no bit, and llama.cpp's wait for each other in a busy loop, which a busy machine makes slow.
THREADS, N_CTX = 1, 256
N_TOP = 8
#: Positions of the last prompt whose whole vocabulary is kept: the first, one inside, and before the answer's end.
FULL_POSITIONS = (0, 12, -2)
PROMPTS_PER_KIND = 3
N_ONE_BY_ONE = 2
#: A lead in logits below which another kernel may choose the other token.
NEAR_TIE = 0.5
#: The types that users write most, and those whose dot products are the crate's own.
LOGPROB_MODELS = {"cp": None} | {
    f"merged-{ty}": ty for ty in ("F32", "F16", "BF16", "Q8_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K")}
GREEDY_MODELS = {"cp": None, "chat": None, "merged-F32": "F32", "merged-Q4_K": "Q4_K"}


def made_with() -> dict:
    """What the figures depend on besides the files."""
    return {"llama.cpp": "xllamacpp " + importlib.metadata.version("xllamacpp"), "cache": "F32",
            "flash_attention": False}


def significant(x: float) -> float:
    """Six significant digits: 1e-5 of a log-probability, far below any spread."""
    return float(f"{x:.6g}")


def row(values) -> list[float]:
    return [significant(float(x)) for x in values]


def write(path: Path, value: dict):
    """JSON with a line for each element of a list of objects, so that a change can be read."""
    def text(v, depth: int) -> str:
        inner, pad = "\n" + " " * (depth + 1), "\n" + " " * depth
        if isinstance(v, dict) and depth < 4:
            return "{" + ",".join(f"{inner}{json.dumps(k)}: {text(x, depth + 1)}" for k, x in v.items()) + pad + "}"
        if isinstance(v, list) and v and isinstance(v[0], dict):
            return "[" + ",".join(inner + json.dumps(x, ensure_ascii=False, separators=(",", ":")) for x in v) + pad + "]"
        return json.dumps(v, ensure_ascii=False, separators=(",", ":"))

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(value, 0) + "\n", encoding="utf-8")
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB", flush=True)


def hashes(path: Path) -> dict:
    """Of the file, and of its tensor data with the padding, which other metadata leaves as it is."""
    raw = path.read_bytes()
    start = gguf.GGUFReader(path).data_offset
    return {"sha256": hashlib.sha256(raw).hexdigest(), "data_sha256": hashlib.sha256(raw[start:]).hexdigest()}


class Bench:
    """The bundled trio and its merges, made when first asked for."""

    def __init__(self, chatvec: Chatvec, folder: Path):
        self.chatvec, self.folder = chatvec, folder
        self.trio = find_trio(MODELS)
        self.items = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]

    def path(self, name: str, type_: str | None) -> Path:
        if type_ is None:
            return getattr(self.trio, name)
        out = self.folder / f"{name}.gguf"
        return out if out.exists() else self.chatvec.merge(self.trio, out, type_=type_)

    def facts(self, name: str, type_: str | None) -> dict:
        """Which file it is: a bundled one, or the options of a merge of the bundled ones with ratio 1."""
        path = self.path(name, type_)
        how = {"file": path.name} if type_ is None else {"merge_type": type_, "pure": type_ in QUANTIZED}
        return how | hashes(path)

    def open(self, name: str, type_: str | None, **options) -> Llama:
        return Llama(self.path(name, type_), N_CTX, THREADS, **options)

    def prompts(self) -> list[dict]:
        """The longest questions of each kind with the reference answers, as the chat format writes them."""
        kinds = sorted({i["kind"] for i in self.items})
        with self.open("cp", None) as llama:
            found = [{"id": i["id"], "kind": i["kind"], "text": text, "tokens": llama.tokenize(text)}
                     for i in self.items if (text := i["chatml"] + i["answer"] + "<|im_end|>\n")]
        longest = sorted(found, key=lambda p: (-len(p["tokens"]), p["id"]))
        return [p for kind in kinds for p in [p for p in longest if p["kind"] == kind][:PROMPTS_PER_KIND]]


def next_logprobs(logprobs: np.ndarray, tokens: list[int], _reference: np.ndarray | None = None) -> np.ndarray:
    """Of each token but the first, given those before it."""
    return logprobs[np.arange(len(tokens) - 1), tokens[1:]]


def top(logprobs: np.ndarray, n: int = N_TOP) -> dict:
    """The n most likely tokens of each row, most likely first."""
    ids = np.argsort(-logprobs, axis=-1, kind="stable")[:, :n]
    return {"top_ids": ids.tolist(), "top_logprobs": [row(r[i]) for r, i in zip(logprobs, ids)]}


def agrees_with_server(path: Path, text: str, llama: Llama):
    """Log-probabilities of the C interface are those that llama.cpp's server gives for its whole vocabulary."""
    server = llama_cpp.Llama(path, f32_cache=True)
    said = server.request("/completion", {
        "prompt": text, "n_predict": 4, "temperature": 0.0, "samplers": ["top_k"], "top_k": 1, "cache_prompt": False,
        "n_probs": llama.n_vocab, "return_tokens": True})
    worst = 0.0
    ids = llama.tokenize(text)
    llama.clear()
    for position in said["completion_probabilities"]:
        mine = log_softmax(llama.feed(ids, last_only=True))[0]
        assert len(position["top_logprobs"]) == llama.n_vocab
        worst = max(worst, *(abs(mine[t["id"]] - t["logprob"]) for t in position["top_logprobs"] if t["logprob"] > -80))
        ids = [position["id"]]
    print(f"server and C interface differ by at most {worst:.2g} in a log-probability", flush=True)
    assert worst < 2e-4, "the C interface is not used as the server uses it"


def logprobs(bench: Bench):
    prompts = bench.prompts()
    models = {}
    for name, type_ in LOGPROB_MODELS.items():
        with bench.open(name, type_) as llama:
            if not models:
                agrees_with_server(bench.path(name, type_), bench.items[0]["chatml"], llama)
            found, full = [], []
            for k, p in enumerate(prompts):
                lp = log_softmax(llama.logits(p["tokens"]))
                one = {"next": row(next_logprobs(lp, p["tokens"]))}
                if k < N_ONE_BY_ONE:
                    single = log_softmax(llama.logits(p["tokens"], at_once=False))
                    one["next_one_by_one"] = row(next_logprobs(single, p["tokens"]))
                found.append(one | top(lp))
            positions = [i % len(lp) for i in FULL_POSITIONS]
            full = [{"prompt": k, "position": i, "logprobs": row(lp[i])} for i in positions]
        models[name] = bench.facts(name, type_) | {"prompts": found, "full": full}
    write(OUT / "logprobs.json", {"made_with": made_with(), "prompts": prompts, "models": models})


def greedy(bench: Bench):
    words = {lang: set(own) for lang, own in json.loads(
        (MODELS / "plain-heldout-words.json").read_text(encoding="utf-8")).items()}
    models = {}
    for name, type_ in GREEDY_MODELS.items():
        answers, said = [], []
        with bench.open(name, type_) as llama:
            for item in bench.items:
                one = greedy_answer(llama, llama.tokenize(item["chatml"]), llama_cpp.MAX_NEW_TOKENS)
                answers.append({"id": item["id"]} | one)
                # What counts as ended there is the stop token of the chat format, not another end of text.
                ended = one["ended"] and llama.detokenize(one["tokens"][-1:], special=True) == llama_cpp.STOP
                said.append({"text": llama.detokenize(one["tokens"]), "ended": ended})
        figures = llama_cpp.score(bench.items, {"answers": said, "chats": [("", "")]}, words)
        del figures["api"]
        print(name, figures, flush=True)
        models[name] = bench.facts(name, type_) | {
            "behaviour": {k: round(v, 4) for k, v in figures.items()}, "answers": answers}
    write(OUT / "greedy.json", {"made_with": made_with() | {"max_new_tokens": llama_cpp.MAX_NEW_TOKENS,
                                                            "near_tie": NEAR_TIE}, "models": models})


def greedy_answer(llama: Llama, tokens: list[int], n: int) -> dict:
    """An answer's tokens with the one that ended it, and the steps at which it hung by a hair."""
    steps = list(llama.greedy(tokens, n))
    ids = [t for t, _ in steps]
    ties = [[i, round(margin, 5)] for i, (_, margin) in enumerate(steps) if margin < NEAR_TIE]
    return {"tokens": ids, "ended": llama.ends(ids[-1]), "near_ties": ties}


def spread(bench: Bench, other: Path | None, peers: Path):
    """Prints how far llama.cpp is from itself and from exact arithmetic: largest and mean difference."""
    print("| model | values | at once : one by one | at once : other build | at once : exact | one by one : exact |")
    print("|" + "---|" * 6)
    sequences = [p["tokens"] for p in bench.prompts()]
    for type_ in (None, *UNQUANTIZED, *QUANTIZED):
        name, key = ("cp F16", "cp") if type_ is None else (f"merged {type_}", f"merged-{type_}")
        path = bench.path(key, type_)
        spread_of(name, path, sequences, other, ExactModel(path))
    for name, model in fetch_models.MODELS.items():
        if (path := peers / model.file).is_file():
            prompts = json.loads((OUT / f"{name}.json").read_text(encoding="utf-8"))["prompts"][:N_ONE_BY_ONE]
            spread_of(name, path, [p["tokens"] + p["answer"]["tokens"] for p in prompts], other, None)


def spread_of(name: str, path: Path, sequences: list[list[int]], other: Path | None, exact: ExactModel | None):
    """The rows of one model."""
    def run(library: Path | None, at_once: bool):
        with Llama(path, N_CTX, THREADS, library) as llama:
            return [log_softmax(llama.logits(s, at_once)) for s in sequences]

    once, single = run(None, True), run(None, False)
    pairs = [(once, single), (once, run(other, True) if other else None)]
    true = [log_softmax(exact.logits(s)) for s in sequences] if exact else None
    pairs += [(once, true), (single, true)]
    for label, pick in (("next token", next_logprobs), ("eight likeliest", likeliest), ("whole vocabulary", everything)):
        cells = [largest_and_mean([np.abs(pick(x, s, x) - pick(y, s, x)) for x, y, s in zip(a, b, sequences)])
                 if b else "–" for a, b in pairs]
        print(f"| {name} | {label} | {' | '.join(cells)} |", flush=True)


def largest_and_mean(differences: list[np.ndarray]) -> str:
    all_ = np.concatenate([d.reshape(-1) for d in differences])
    return f"{all_.max():.1e} / {all_.mean():.1e}"


def likeliest(values: np.ndarray, _tokens: list[int], reference: np.ndarray) -> np.ndarray:
    """The values of the tokens that are most likely in each row of the reference."""
    return np.take_along_axis(values, np.argsort(-reference, axis=-1, kind="stable")[:, :N_TOP], -1)


def everything(values: np.ndarray, _tokens: list[int], _reference: np.ndarray) -> np.ndarray:
    return values


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("what", nargs="*", default=["logprobs", "greedy", "synthetic", "families"],
                        choices=["logprobs", "greedy", "synthetic", "families", "peers", "spread"])
    parser.add_argument("--models", type=Path, default=ROOT / "target/peer-models", help="what fetch_models.py fetched")
    parser.add_argument("--other-library", type=Path, help="another build of libllama, for `spread` and `families`")
    options = parser.parse_args()
    if "synthetic" in options.what:
        import synthetic_models

        write(OUT / "synthetic.json", {"made_with": made_with()} | synthetic_models.goldens())
    if "families" in options.what:
        import family_models

        write(OUT / "families.json", {"made_with": made_with()} | family_models.goldens(options.other_library))
    if "peers" in options.what:
        import peer_goldens

        for name, value in peer_goldens.goldens(options.models):
            write(OUT / f"{name}.json", {"made_with": made_with()} | value)
    if {"logprobs", "greedy", "spread"} & set(options.what):
        with work_folder(options.temp_dir) as folder:
            bench = Bench(Chatvec(options.chatvec), folder)
            if "logprobs" in options.what:
                logprobs(bench)
            if "greedy" in options.what:
                greedy(bench)
            if "spread" in options.what:
                spread(bench, options.other_library, options.models)
    return 0


if __name__ == "__main__":
    sys.exit(main())
