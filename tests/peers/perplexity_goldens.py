"""Figures of llama-perplexity and logits of llama.cpp, that `compare` is held against. Writes fixtures/compare/.

    PYTHONPATH=LLAMA_CPP_PYTHON LLAMA_CPP_LIB_PATH=BIN python perplexity_goldens.py --bin BIN [--chatvec PATH]

BIN holds llama-perplexity and libllama.so of one build of llama.cpp; LLAMA_CPP_PYTHON is a checkout of llama-cpp-python
(0.3.36) of the same revision, of which only the ctypes bindings are used (they need `pip install diskcache
typing_extensions`). `--heldout FILE` cuts the German text anew from a longer one; without it the text there is used.

1. The trio in fixtures/models is merged into F16, Q8_0 and Q4_K.
2. Texts: German documents that no model has seen, and the German prompts with their answers as chat transcripts.
   llama-perplexity reads special tokens as text unless they are user defined, and makes `<|im_end|>` a control token
   whatever the file says, so it gets copies of models and text in which `<|im_start|>` and `<|im_end|>` have other names
   and are user defined. Ids stay. Tokens are those of the file it saves, not of a tokenizer of ours.
3. For each pair of models and text: what llama-perplexity prints, at n_ctx 512 (its default) and 256 (what the models
   were trained with).
4. The same for the first tokens of the transcripts at n_ctx 64, with every logit it scored, by llama_decode.
5. From these logits, KL divergence and its percentiles in f64 by numpy: once exact, and once with the reference's
   log-probabilities rounded to 16 bits as llama-perplexity saves them, which is its noise floor.
6. Norms, cosine and so on of every tensor of base and cp with chat - base as the vector, in f64 by numpy.

Key-value cache in F32, no flash attention, one sequence a batch, two threads.
"""

import argparse
import importlib
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

from gguf_files import read_tensors, rewrite
from tool import ROOT, Chatvec, Trio

OUT = ROOT / "fixtures" / "compare"
MODELS = ROOT / "fixtures" / "models"
MERGES = ("F16", "Q8_0", "Q4_K")
PAIRS = [("merged-F16", "cp"), ("cp", "merged-F16"), ("merged-F16", "merged-Q8_0"), ("merged-F16", "merged-Q4_K"),
         ("merged-F16", "merged-F16")]
#: The two models whose logits are kept.
DUMPED = ("merged-F16", "cp")
SHORT = {"n_ctx": 64, "n_chunks": 4}

#: Special tokens, and names of the same length that llama.cpp knows nothing of.
RENAMED = {"<|im_start|>": "<|im_sssss|>", "<|im_end|>": "<|im_eee|>"}
USER_DEFINED = 4


def renamed(text: str) -> str:
    for name, other in RENAMED.items():
        text = text.replace(name, other)
    return text


def with_special_text(source: Path, target: Path) -> Path:
    """A copy in which the tokens of ChatML have their other names and are found in plain text too."""
    rewrite(source, target)
    reader = gguf.GGUFReader(target, "r+")
    tokens, types, eos = (reader.fields[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type", "eos_token_id"))
    names = [bytes(tokens.parts[i]).decode("utf-8", "replace") for i in tokens.data]
    for name, other in RENAMED.items():
        i = names.index(name)
        tokens.parts[tokens.data[i]][:] = np.frombuffer(other.encode(), np.uint8)
        types.parts[types.data[i]][0] = USER_DEFINED
    # The token that ends a text is a control token too.
    eos.parts[eos.data[0]][0] = names.index("<|endoftext|>")
    reader.data.flush()
    return target


def run(binary: Path, model: Path, *args) -> str:
    """What llama-perplexity says. Its log is written by a thread and sometimes loses its end, so it may need a repeat."""
    command = [binary / "llama-perplexity", "-m", model, "-ctk", "f32", "-ctv", "f32", "-fa", "off", "-t", "2", *args]
    env = dict(os.environ, LD_LIBRARY_PATH=str(binary))
    for _ in range(5):
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=env, errors="replace")
        if done.returncode:
            raise SystemExit(f"{command}: exit {done.returncode}\n{done.stderr[-2000:]}")
        said = done.stdout + done.stderr
        if "Final estimate" in said or "Same top p:" in said:
            return said
    raise SystemExit(f"{command}: no result\n{said[-2000:]}")


NUMBER = r"(-?[\d.]+(?:e-?\d+)?|-?nan|-?inf)"
FIGURES = {
    "ppl": r"Mean PPL\(Q\)", "ppl_reference": r"Mean PPL\(base\)", "correlation_percent": r"Cor\(ln\(PPL\(Q\)\), ln\(PPL\(base\)\)\)",
    "ln_ratio": r"Mean ln\(PPL\(Q\)/PPL\(base\)\)", "ratio": r"Mean PPL\(Q\)/PPL\(base\)", "difference": r"Mean PPL\(Q\)-PPL\(base\)",
    "kl_mean": r"Mean    KLD", "kl_max": r"Maximum KLD", "kl_p999": r"99\.9%   KLD", "kl_p99": r"99\.0%   KLD",
    "kl_p95": r"95\.0%   KLD", "kl_p90": r"90\.0%   KLD", "kl_median": r"Median  KLD", "kl_min": r"Minimum KLD",
    "delta_p_mean_percent": r"Mean    Δp", "delta_p_rms_percent": r"RMS Δp", "same_top_percent": r"Same top p",
}


def figures(said: str) -> dict:
    """The numbers of the final block, each with its error where it has one."""
    found = {}
    for name, label in FIGURES.items():
        match = re.search(rf"{label}\s*:\s*{NUMBER}\s*%?(?:\s*±\s*{NUMBER})?", said)
        found[name] = [float(n) for n in match.groups() if n]
    return found


def saved(path: Path) -> tuple[int, int, int, list[int]]:
    """n_ctx, n_vocab, n_chunks and tokens of a file of logits."""
    with path.open("rb") as file:
        assert file.read(8) == b"_logits_"
        n_ctx, n_vocab, n_chunks = struct.unpack("<iii", file.read(12))
        return n_ctx, n_vocab, n_chunks, np.fromfile(file, "<i4", n_ctx * n_chunks).tolist()


def logits_of(model: Path, tokens: list[int], n_ctx: int, n_vocab: int) -> np.ndarray:
    """Logits of the positions that are scored, chunk by chunk: [chunk][n_ctx/2 .. n_ctx-1][token]."""
    # Not the script of the same name in this folder.
    here = sys.path.pop(0)
    L = importlib.import_module("llama_cpp.llama_cpp")
    sys.path.insert(0, here)
    params = L.llama_model_default_params()
    handle = L.llama_model_load_from_file(str(model).encode(), params)
    settings = L.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = n_ctx
    settings.n_threads = settings.n_threads_batch = 2
    settings.type_k = settings.type_v = 0
    settings.flash_attn_type = 0
    context = L.llama_init_from_model(handle, settings)
    first, rows = n_ctx // 2, []
    for start in range(0, len(tokens), n_ctx):
        L.llama_memory_clear(L.llama_get_memory(context), True)
        batch = L.llama_batch_init(n_ctx, 0, 1)
        batch.n_tokens = n_ctx
        for i, token in enumerate(tokens[start:start + n_ctx]):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, i >= first
            batch.seq_id[i][0] = 0
        assert L.llama_decode(context, batch) == 0
        for i in range(first, n_ctx - 1):
            rows.append(np.ctypeslib.as_array(L.llama_get_logits_ith(context, i), (n_vocab,)).copy())
        L.llama_batch_free(batch)
    L.llama_free(context)
    L.llama_model_free(handle)
    return np.array(rows, np.float32)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def saved_log_softmax(logits: np.ndarray) -> np.ndarray:
    """As llama-perplexity's file has them: 16 bits between the row's maximum and its minimum, or 16 below the maximum."""
    exact = log_softmax(logits)
    top = exact.max(axis=1, keepdims=True)
    bottom = np.maximum(exact.min(axis=1, keepdims=True), top - 16)
    scale = (top - bottom) / 65535
    return bottom + scale * np.rint(np.maximum(exact - bottom, 0) / scale)


def kl(p: np.ndarray, q: np.ndarray, cut: bool) -> np.ndarray:
    terms = np.exp(p) * (p - q)
    return (np.where(p > -16, terms, 0) if cut else terms).sum(axis=1)


def summary(values: np.ndarray) -> dict:
    n = len(values)
    percentiles = {"kl_median": 50, "kl_p90": 90, "kl_p95": 95, "kl_p99": 99, "kl_p999": 99.9, "kl_max": 100}
    found = {"kl_mean": [values.mean(), values.std() / np.sqrt(n - 1)]}
    return found | {name: [float(np.percentile(values, q))] for name, q in percentiles.items()}


def exact_figures(reference: np.ndarray, other: np.ndarray, next_tokens: np.ndarray) -> dict:
    """Everything compare reports, in f64."""
    p, q = log_softmax(reference), log_softmax(other)
    rows = np.arange(len(p))
    nll_p, nll_q = -p[rows, next_tokens], -q[rows, next_tokens]
    n = len(rows)
    error = lambda v: v.std() / np.sqrt(n - 1)
    covariance = np.mean((nll_p - nll_p.mean()) * (nll_q - nll_q.mean())) / (n - 1)
    delta = np.exp(-nll_q) - np.exp(-nll_p)
    ln_error = np.sqrt(error(nll_p) ** 2 + error(nll_q) ** 2 - 2 * covariance)
    ratio = np.exp(nll_q.mean() - nll_p.mean())
    rms = np.sqrt(np.mean(delta ** 2))
    same = np.mean(p.argmax(axis=1) == q.argmax(axis=1))
    ppl, ppl_reference = np.exp(nll_q.mean()), np.exp(nll_p.mean())
    return {
        "ppl": [ppl, ppl * error(nll_q)], "ppl_reference": [ppl_reference, ppl_reference * error(nll_p)],
        "correlation_percent": [100 * covariance / (error(nll_p) * error(nll_q))],
        "ln_ratio": [nll_q.mean() - nll_p.mean(), ln_error], "ratio": [ratio, ratio * ln_error],
        "delta_p_mean_percent": [100 * delta.mean(), 100 * error(delta)],
        "delta_p_rms_percent": [100 * rms, 100 * 0.5 / rms * error(delta ** 2)],
        "same_top_percent": [100 * same, 100 * np.sqrt(same * (1 - same) / (n - 1))],
    } | summary(kl(p, q, cut=False))


def tensor_figures(a: Path, b: Path, plus: Path, minus: Path) -> dict:
    """What `compare_tensors` says of each tensor, and of all."""
    def widened(path: Path) -> dict:
        dtype = {0: np.float32, 1: np.float16}
        return {name: t.data.view(dtype[int(t.type)]).astype(np.float64) for name, t in read_tensors(path).items()}
    a, b, plus, minus = map(widened, (a, b, plus, minus))
    def one(a, b, tau) -> dict:
        d = b - a
        norm = np.linalg.norm
        return {"norm_a": norm(a), "norm_b": norm(b), "relative": norm(d) / norm(a), "cosine": a @ b / (norm(a) * norm(b)),
                "max": np.abs(d).max(), "survival": d @ tau / (tau @ tau)}
    # As the tool has it: the vector in f32.
    tau = {name: (plus[name].astype(np.float32) - minus[name].astype(np.float32)).astype(np.float64) for name in a}
    every = lambda tensors: np.concatenate([tensors[name] for name in a])
    return {name: one(a[name], b[name], tau[name]) for name in a} | {"total": one(every(a), every(b), every(tau))}


def chat_transcripts() -> str:
    prompts = [json.loads(line) for line in (MODELS / "prompts-de.jsonl").read_text().splitlines()]
    return "".join(p["chatml"] + p["answer"] + "<|im_end|>\n" for p in prompts[:90])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--chatvec", type=Path, default=ROOT / "target/release/chatvec")
    parser.add_argument("--heldout", type=Path)
    options = parser.parse_args()
    binary = options.bin.resolve()
    OUT.mkdir(exist_ok=True)
    texts = {"plain": OUT / "plain-de.txt", "chat": OUT / "chat-de.txt"}
    if options.heldout:
        lines = options.heldout.read_text().splitlines(keepends=True)
        texts["plain"].write_text("".join(lines[:60]))
    texts["chat"].write_text(chat_transcripts())

    env = dict(os.environ, LD_LIBRARY_PATH=str(binary))
    version = subprocess.run([binary / "llama-perplexity", "--version"], capture_output=True, text=True, env=env)
    version = (version.stdout + version.stderr).splitlines()[0]
    goldens = {"llama_cpp": version, "runs": [], "short": {}}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        tool, trio = Chatvec(options.chatvec), Trio(*(MODELS / f"tinyworld-A-{n}-F16.gguf" for n in ("base", "chat", "cp-de")))
        models = {"cp": with_special_text(trio.cp, folder / "cp.gguf")}
        for type_ in MERGES:
            merged = tool.merge(trio, folder / f"raw-{type_}.gguf", type_=type_)
            models[f"merged-{type_}"] = with_special_text(merged, folder / f"merged-{type_}.gguf")

        def pair(reference: str, other: str, text: Path, n_ctx: int, chunks: int) -> tuple[dict, list[int], int]:
            # `-b n_ctx`: one sequence a batch.
            readable = folder / text.name
            readable.write_text(renamed(text.read_text()))
            common = ["-c", n_ctx, "-b", n_ctx, "-f", readable, "--chunks", chunks]
            logits = folder / "logits"
            plain = run(binary, models[reference], *common, "--save-all-logits", logits)
            said = run(binary, models[other], *common, "--kl-divergence", "--kl-divergence-base", logits)
            _, n_vocab, n_chunks, tokens = saved(logits)
            found = {"reference": reference, "other": other, "n_ctx": n_ctx, "n_chunks": n_chunks, "figures": figures(said)}
            # From the logits themselves: "Mean PPL(base)" is of saved ones, which are cut at 16 below the maximum.
            estimate = re.search(rf"Final estimate: PPL = {NUMBER} \+/- {NUMBER}", plain)
            found["figures"]["ppl_reference_exact"] = [float(n) for n in estimate.groups()]
            return found, tokens, n_vocab

        for name, text in texts.items():
            all_tokens = []
            for n_ctx in (512, 256):
                for reference, other in PAIRS:
                    found, tokens, _ = pair(reference, other, text, n_ctx, -1)
                    goldens["runs"].append({"text": text.name} | found)
                    print(name, n_ctx, reference, other, found["n_chunks"], found["figures"], flush=True)
                # The longer list: of what is left over at the end, the smaller chunks take more.
                all_tokens = max(all_tokens, tokens, key=len)
            goldens.setdefault("tokens", {})[text.name] = all_tokens

        goldens["tensors"] = tensor_figures(trio.base, trio.cp, trio.chat, trio.base)
        n_ctx, chunks = SHORT["n_ctx"], SHORT["n_chunks"]
        a, b = DUMPED
        there, tokens, n_vocab = pair(a, b, texts["chat"], n_ctx, chunks)
        back, _, _ = pair(b, a, texts["chat"], n_ctx, chunks)
        logits = {name: logits_of(models[name], tokens, n_ctx, n_vocab) for name in DUMPED}
        for name, rows in logits.items():
            rows.astype("<f4").tofile(OUT / f"logits-{name}.f32")
        chunked = np.array(tokens).reshape(chunks, n_ctx)
        next_tokens = chunked[:, n_ctx // 2 + 1:].reshape(-1)
        goldens["short"] = {"text": "chat-de.txt", "n_vocab": n_vocab, "tokens": tokens, "runs": []}
        for found in (there, back):
            p, q = logits[found["reference"]], logits[found["other"]]
            found["exact"] = exact_figures(p, q, next_tokens)
            found["as_saved"] = summary(kl(saved_log_softmax(p), log_softmax(q), cut=True))
            goldens["short"]["runs"].append(found)
            print(json.dumps(found, indent=1))
    text = json.dumps(goldens, indent=1, ensure_ascii=False)
    # Lists of numbers on one line each.
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m.group(1)) + "]", text)
    (OUT / "goldens.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
