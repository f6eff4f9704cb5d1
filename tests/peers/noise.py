"""Whether the noise of a vector from quantised files can be removed: the tables of docs/NOISE.md.

    python noise.py [--chatvec PATH] [--models-dir FOLDER] [--write]

Base and chat are each put on a coarse grid by ggml's encoders, their difference is cleaned in every way that is listed in
`ROWS`, and what cp becomes with it is held against what the exact vector (F16 files) makes of it. Divergence (KL, nats) is by a
forward pass by numpy in f32, over the answers that the exact merge gives to the German prompts, prompt by prompt: the numbers
that a way has are chosen by the prompts at even places, the tables are of those at odd places. Intervals are of 10,000 paired
bootstrap samples of prompts. `--write` puts the tables into docs/NOISE.md, between their marks.

The models folder has `tinyworld-*-base-F16.gguf`, `…-cp-de-F16.gguf`, and as many chat models of that base as there are:
`…-chat-F16.gguf` and `…-pirate-F16.gguf`, which is not bundled (it is left out of the tables where it is missing). It also has
`prompts-de.jsonl`, and `prompts-en.jsonl`, whose answers are the calibration text. Needs numpy, gguf, libggml-python
(requirements.txt), the command for the outputs in Q4_K, and some 15 minutes of one core (set OMP_NUM_THREADS=1).
"""

import json
import math
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from exact_forward import ExactModel
from ggml_codec import decode, encode
from gguf_files import F32, Tensor, read_tensors, rewrite
from survival import Grid, put_tables, tokenize
from tool import ROOT, VECTOR_LOST, Chatvec, arguments, work_folder

DOCUMENT = ROOT / "docs" / "NOISE.md"
ANSWER_LIMIT = 56
N_SAMPLES = 10_000


class BatchModel(ExactModel):
    """The forward pass of many texts of a length at once, in f32, with a cache of keys and values."""

    def load(self, weights: dict[str, np.ndarray]):
        self.weights = {n: np.ascontiguousarray(w, np.float32) for n, w in weights.items()}

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        if self.watch is not None:
            self.watch(name + ".weight", x.reshape(-1, x.shape[-1]))
        return super().linear(name, x)

    #: Called with the name of each matrix and its inputs.
    watch: Callable[[str, np.ndarray], None] | None = None

    def batch(self, tokens: np.ndarray, cache: dict) -> np.ndarray:
        """Logits after each of `tokens` [texts, n], which follow those that are in the cache."""
        texts, n = tokens.shape
        past = cache["n"] if cache else 0
        cache["n"] = past + n
        angles, factor = self.rope(past + n)
        angles = angles[past:].astype(np.float32)
        mask = np.triu(np.full((n, past + n), -np.inf, np.float32), past + 1)
        x = self.weights["token_embd.weight"][tokens]
        for i in range(self.meta["block_count"]):
            block = f"blk.{i}."
            h = self.norm(block + "attn_norm", x)
            q, k, v = (self.linear(block + p, h).reshape(texts, n, -1, self.head_dim) for p in ("attn_q", "attn_k", "attn_v"))
            q, k, v = (y.swapaxes(1, 2) for y in (self.rotate(q, angles, factor), self.rotate(k, angles, factor), v))
            if past:
                k, v = (np.concatenate(both, 2) for both in zip(cache[i], (k, v)))
            cache[i] = k, v
            k, v = (np.repeat(y, self.n_head // self.n_kv, 1) for y in (k, v))
            scores = q @ k.swapaxes(2, 3) * np.float32(self.kq_scale) + mask
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            attended = scores / scores.sum(-1, keepdims=True) @ v
            x = x + self.linear(block + "attn_output", attended.swapaxes(1, 2).reshape(texts, n, -1))
            h = self.norm(block + "ffn_norm", x)
            gate = self.linear(block + "ffn_gate", h)
            x = x + self.linear(block + "ffn_down", gate / (1 + np.exp(-gate)) * self.linear(block + "ffn_up", h))
        return self.linear("output", self.norm("output_norm", x))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


class Judge:
    """The exact merge of one chat model: its answers, and how far others are from it on them."""

    def __init__(self, model: BatchModel, vocabulary: list[str], items: list[dict], prompts: list[list[int]], exact: dict):
        self.model, self.vocabulary, self.items, self.prompts = model, vocabulary, items, prompts
        self.end = vocabulary.index("<|im_end|>")
        self.reference = self.answers(exact)
        texts = [p + a for p, a in zip(prompts, self.reference)]
        #: Texts of about the same length: (which, tokens, log-probabilities, and the positions whose next token is of the
        #: answer, and of the text).
        self.groups = []
        for which in np.array_split(np.argsort([len(t) for t in texts], kind="stable"), 8):
            n = max(len(texts[i]) for i in which)
            tokens, asked = np.zeros((len(which), n), np.int64), np.zeros((2, len(which), n), bool)
            for row, i in enumerate(which):
                tokens[row, : len(texts[i])] = texts[i]
                asked[0, row, len(prompts[i]) - 1 : len(texts[i]) - 1] = True
                asked[1, row, : len(texts[i]) - 1] = True
            self.groups.append((which, tokens, log_softmax(model.batch(tokens, {})), asked))

    def answers(self, weights: dict[str, np.ndarray]) -> list[list[int]]:
        """Greedy, each to its end mark or the limit."""
        self.model.load(weights)
        lengths = np.array([len(p) for p in self.prompts])
        tokens = np.zeros((len(lengths), lengths.max() + ANSWER_LIMIT), np.int64)
        for row, p in zip(tokens, self.prompts):
            row[: len(p)] = p
        cache, at = {}, lengths.min()
        logits = self.model.batch(tokens[:, :at], cache)
        ended = np.zeros(len(lengths), bool)
        while at < tokens.shape[1] and not ended.all():
            asked = at >= lengths
            tokens[asked, at] = logits[asked, -1].argmax(-1)
            ended |= asked & (tokens[:, at] == self.end) | (at + 1 >= lengths + ANSWER_LIMIT)
            logits = self.model.batch(tokens[:, at : at + 1], cache)
            at += 1
        answers = [list(row[n : n + ANSWER_LIMIT]) for row, n in zip(tokens, lengths)]
        return [a[: a.index(self.end) + 1] if self.end in a else a for a in answers]

    def divergence(self, weights: dict[str, np.ndarray]) -> np.ndarray:
        """Mean over the answer to each prompt, and over prompt and answer: [2, prompts], in 10⁻³ nats."""
        self.model.load(weights)
        out = np.empty((2, len(self.prompts)))
        for which, tokens, reference, asked in self.groups:
            kl = (np.exp(reference) * (reference - log_softmax(self.model.batch(tokens, {})))).sum(-1)
            out[:, which] = 1e3 * (kl * asked).sum(2) / asked.sum(2)
        return out

    def behaviour(self, weights: dict[str, np.ndarray]) -> np.ndarray:
        """Of each prompt: whether the answer ends, is right, is the exact merge's. NaN: no answer is expected."""
        answers = self.answers(weights)
        ends = [a[-1] == self.end for a in answers]
        right = [e and self.text(a) == i["answer"] if i["kind"] != "unsafe" else math.nan
                 for a, e, i in zip(answers, ends, self.items)]
        return np.array([ends, right, [a == b for a, b in zip(answers, self.reference)]], float)

    def text(self, tokens: list[int]) -> str:
        """Without the word by which the second chat model begins every answer."""
        text = "".join(self.vocabulary[t] for t in tokens if t != self.end)
        return bytes(BYTE_OF[c] for c in text).decode("utf-8", "replace").strip().removeprefix("Ahoy! ")


def byte_of() -> dict[str, int]:
    """GPT-2's characters for bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_OF = byte_of()


def steps(tensor: Tensor) -> np.ndarray:
    """Distance of neighbouring codes, for each weight."""
    half = lambda b, at: b[:, at : at + 2].copy().view(np.float16).astype(np.float32)
    match tensor.type:
        case Type.Q4_K:
            return np.abs(Grid.of(tensor).scale)
        case Type.Q4_0:
            step = np.repeat(half(tensor.data.reshape(-1, 18), 0), 32, 1)
        case Type.Q8_0:
            step = np.repeat(half(tensor.data.reshape(-1, 34), 0), 32, 1)
        case Type.Q6_K:
            b = tensor.data.reshape(-1, 210)
            step = np.repeat(half(b, 208) * b[:, 192:208].copy().view(np.int8), 16, 1)
        case Type.Q2_K:
            b = tensor.data.reshape(-1, 84)
            step = np.repeat(half(b, 80) * (b[:, :16] & 15), 16, 1)
        case _:
            raise ValueError(f"no steps of {tensor.type.name}")
    return np.abs(step).reshape(tensor.shape)


@dataclass
class Matrix:
    """One matrix of a pair: what is known of it, and the exact vector, which only rows marked * may look at."""

    name: str
    base: np.ndarray
    chat: np.ndarray
    base_step: np.ndarray
    chat_step: np.ndarray
    tau: np.ndarray
    #: Of the inputs that the quantised chat model has on the calibration text; mean of the diagonal 1. None: a table of rows.
    gram: np.ndarray | None = None
    results: dict[Callable, np.ndarray] = field(default_factory=dict)

    @cached_property
    def difference(self) -> np.ndarray:
        return self.chat.astype(np.float64) - self.base

    @cached_property
    def svd(self):
        return np.linalg.svd(self.difference, full_matrices=False)

    @cached_property
    def variance(self) -> np.ndarray:
        """Of each weight's noise, if both roundings were independent and even over their steps."""
        return (self.base_step.astype(np.float64) ** 2 + self.chat_step**2) / 12

    @cached_property
    def reach(self) -> tuple[np.ndarray, np.ndarray]:
        """Half the sum and half the difference of both steps: τ is within the first of the difference."""
        a, b = self.base_step.astype(np.float64), self.chat_step
        return np.maximum((a + b) / 2, 1e-9), np.abs(a - b) / 2

    @property
    def codes_agree(self) -> np.ndarray:
        return np.abs(self.difference) < 0.5 * np.minimum(self.base_step, self.chat_step)


Way = Callable[[Matrix], np.ndarray]


def normalised(m: Matrix) -> tuple[np.ndarray, float, float]:
    """Singular values in units of the noise's σ·√(longer side), that unit, and shorter / longer side.

    The unit is from the median singular value, as a matrix of nothing but noise would have it (Gavish and Donoho 2014,
    section III-E).
    """
    values, beta = m.svd[1], min(m.base.shape) / max(m.base.shape)
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    x = np.linspace(low, high, 20_001)[1:]
    mass = np.cumsum(np.sqrt((high - x) * (x - low)) / x)
    unit = np.median(values) / math.sqrt(x[np.searchsorted(mass, mass[-1] / 2)])
    return values / unit, unit, beta


def optimal(y: np.ndarray, beta: float) -> np.ndarray:
    """Least squared error of any function of the singular values (Gavish and Donoho 2017, equation 7)."""
    return np.where(y > 1 + math.sqrt(beta), np.sqrt(np.maximum((y * y - beta - 1) ** 2 - 4 * beta, 0)) / y, 0)


def spectral(top: Callable, bulk: float) -> Way:
    """`top` of the singular values above the edge of the noise, `bulk` times those below."""

    def way(m: Matrix) -> np.ndarray:
        y, unit, beta = normalised(m)
        kept = np.where(y > 1 + math.sqrt(beta), top(y, beta), bulk * y)
        return (m.svd[0] * (kept * unit)) @ m.svd[2]

    return way


def as_it_is(y: np.ndarray, beta: float) -> np.ndarray:
    return y


def weighted(top: Callable, bulk: float, diagonal: bool, ridge: float = 0.01) -> Way:
    """The same of the matrix times the root of its inputs' Gram matrix, whose noise has the edge that a draw of it has."""

    def way(m: Matrix) -> np.ndarray:
        if m.gram is None:
            return m.difference
        gram = np.diag(np.diag(m.gram)) if diagonal else m.gram
        root = np.linalg.cholesky(gram + ridge * np.eye(len(gram)))
        drawn = np.random.default_rng(zlib.crc32(m.name.encode())).standard_normal(m.base.shape) * np.sqrt(m.variance)
        edge = np.linalg.norm(drawn @ root, 2)
        u, s, v = np.linalg.svd(m.difference @ root, full_matrices=False)
        return np.linalg.solve(root.T, ((u * np.where(s > edge, top(s, edge), bulk * s)) @ v).T).T

    return way


def less_edge(s: np.ndarray, edge: float) -> np.ndarray:
    return np.sqrt(np.maximum(s * s - edge * edge, 0))


def by_own_gram(outputs: bool) -> Way:
    """The linear filter of least error, C·(C + N)⁻¹, with the vector's own Gram matrix less the noise's as C."""

    def way(m: Matrix) -> np.ndarray:
        d = m.difference.T if outputs else m.difference
        values, vectors = np.linalg.eigh(d.T @ d)
        noise = len(d) * m.variance.mean()
        gain = np.divide(np.maximum(values - noise, 0), values, out=np.zeros_like(values), where=values > 0)
        filtered = d @ (vectors * gain) @ vectors.T
        return filtered.T if outputs else filtered

    return way


def posterior(m: Matrix, prior: np.ndarray | float, mean: np.ndarray | float = 0.0, n: int = 15):
    """Mean of τ, and of (τ − mean)², given both codes, for a normal prior.

    The base's weight is anywhere in its step with the same probability, so the likelihood of τ is a trapezoid around the
    difference: the length of the base's step from which τ leads into the chat's.
    """
    f = np.float32
    half, flat = (x.astype(f) for x in m.reach)
    difference, mean, sharp = m.difference.astype(f), f(mean), f(-0.5) / np.asarray(prior, f)
    slope, away = half / np.maximum(half - flat, f(1e-9)), difference - mean
    mass, first, second = (np.zeros(half.shape, f) for _ in range(3))
    for i in range(n):
        at = f((2 * i + 1) / n - 1)
        offset = away + half * at
        square = offset * offset
        p = np.minimum(f(1), slope * f(1 - abs(at))) * np.exp(square * sharp)
        mass += p
        first += p * offset
        second += p * square
    sure = mass > 1e-30
    mass = np.where(sure, mass, 1)
    return np.where(sure, mean + first / mass, difference), np.where(sure, second / mass, away * away)


def kept(way: Way) -> Way:
    """Computed once for each matrix."""
    return lambda m: m.results[way] if way in m.results else m.results.setdefault(way, way(m))


def per_weight(axes: str, n_rounds: int = 6) -> Way:
    """Posterior means; the prior's variance is of the tensor, each row or each of both, by as many rounds of EM."""

    def way(m: Matrix) -> np.ndarray:
        prior = np.full(m.base.shape, 0.2 * (m.difference**2).mean() + 1e-14)
        for _ in range(n_rounds):
            square = posterior(m, prior)[1]
            rows, columns = square.mean(1, keepdims=True), square.mean(0, keepdims=True)
            mean = square.mean()
            prior = np.maximum({"tensor": mean, "row": rows, "both": rows * columns / mean}[axes], 1e-14)
        return posterior(m, prior)[0]

    return way


def per_weight_and_rank(tail: bool, n_rounds: int = 6) -> Way:
    """Posterior means around a part of low rank, which is the optimally shrunk posterior mean of the round before."""

    def way(m: Matrix) -> np.ndarray:
        low, prior = spectral(optimal, 0.0)(m), 0.1 * (m.difference**2).mean() + 1e-14
        for _ in range(n_rounds):
            filled, square = posterior(m, prior, low)
            prior = max(square.mean(), 1e-14)
            low = spectral(optimal, 0.0)(Filled(m, filled))
        return posterior(m, prior, low)[0] if tail else low

    return way


class Filled:
    """A matrix whose difference has been filled in."""

    def __init__(self, m: Matrix, difference: np.ndarray):
        self.base, self.svd = m.base, np.linalg.svd(difference, full_matrices=False)


def soft(threshold: float) -> Way:
    """Nearer to 0 by a part of the step."""
    return lambda m: np.sign(m.difference) * np.maximum(np.abs(m.difference) - threshold * m.reach[0], 0)


def neighbours(share: float, axis: int) -> Way:
    def way(m: Matrix) -> np.ndarray:
        d = m.difference
        return (1 - share) * d + share / 2 * (np.roll(d, 1, axis) + np.roll(d, -1, axis))

    return way


def unit_gain(way: Way) -> Way:
    """* At the size at which it has all of the exact vector."""

    def scaled(m: Matrix) -> np.ndarray:
        t = way(m)
        kept = (t * m.tau).sum(dtype=np.float64)
        return t * ((m.tau**2).sum(dtype=np.float64) / kept) if kept > 0 else t

    return scaled


def times(way: Way, factor: float) -> Way:
    return lambda m: factor * way(m)


def part(way: Way, share: float) -> Way:
    return lambda m: share * way(m) + (1 - share) * m.difference


def only(way: Way, *names: str) -> Way:
    return lambda m: way(m) if any(n in m.name for n in names) else m.difference


def exact_in(*names: str) -> Way:
    """* What the noise of the other parts does alone."""
    return lambda m: m.tau if any(n in m.name for n in names) else m.difference


def exact_within_top(m: Matrix) -> np.ndarray:
    """* What the exact vector has in the directions above the edge: what dropping the others loses, without any noise."""
    y, _, beta = normalised(m)
    u, v = m.svd[0][:, y > 1 + math.sqrt(beta)], m.svd[2][y > 1 + math.sqrt(beta)]
    return u @ (u.T @ m.tau @ v.T) @ v


SHRUNK, OWN_GRAM = spectral(optimal, 0.0), kept(by_own_gram(False))
BY_BOTH, BY_RANK = kept(per_weight("both")), kept(per_weight_and_rank(True))
PLAIN_DIFFERENCE: Way = lambda m: m.difference


def shares(way: Callable[[float], Way], *numbers: float) -> list[tuple[str, Way]]:
    return [(f"{number:g}", way(number)) for number in numbers]


def one(way: Way) -> list[tuple[str, Way]]:
    return [("", way)]


Row = tuple[str, list[tuple[str, Way]]]
#: What is tried, each with the numbers that the even prompts choose from. Those marked * look at the exact vector.
ROWS: list[Row] = [
    ("the plain difference", one(PLAIN_DIFFERENCE)),
    ("times {}", shares(lambda r: lambda m: r * m.difference, 0.9, 0.95, 0.98, 1.02, 1.05, 1.1)),
    ("singular values: optimal shrinkage", one(SHRUNK)),
    ("the same at unit gain*", one(unit_gain(SHRUNK))),
    ("{} of it, the rest plain", shares(lambda r: part(SHRUNK, r), 0.1, 0.25, 0.5)),
    ("bulk times {}, the rest shrunk", shares(lambda r: spectral(optimal, r), 0.25, 0.5, 0.75, 0.9, 1.0)),
    ("bulk times {}, the rest kept", shares(lambda r: spectral(as_it_is, r), 0.0, 0.25, 0.5, 0.75, 0.9)),
    ("inputs' diagonal: bulk times {}", shares(lambda r: weighted(as_it_is, r, True), 0.0, 0.5, 0.75, 0.9)),
    ("inputs' Gram matrix: bulk times {}", shares(lambda r: weighted(as_it_is, r, False), 0.0, 0.5, 0.75, 0.9)),
    ("inputs' Gram matrix: shrunk", one(weighted(less_edge, 0.0, False))),
    ("own Gram matrix, along rows", one(OWN_GRAM)),
    ("the same at unit gain*", one(unit_gain(OWN_GRAM))),
    ("{} of it, the rest plain", shares(lambda r: part(OWN_GRAM, r), 0.1, 0.25, 0.5)),
    ("own Gram matrix, along columns", one(by_own_gram(True))),
    ("posterior mean, prior of the tensor", one(per_weight("tensor"))),
    ("posterior mean, prior of the row", one(per_weight("row"))),
    ("posterior mean, prior of row and column", one(BY_BOTH)),
    ("the same at unit gain*", one(unit_gain(BY_BOTH))),
    ("{} of it, the rest plain", shares(lambda r: part(BY_BOTH, r), 0.1, 0.25, 0.5)),
    ("posterior mean around a low rank", one(BY_RANK)),
    ("the same at unit gain*", one(unit_gain(BY_RANK))),
    ("{} of it, the rest plain", shares(lambda r: part(BY_RANK, r), 0.1, 0.25, 0.5)),
    ("0 where the codes agree", one(lambda m: np.where(m.codes_agree, 0, m.difference))),
    ("{} of a step nearer to 0", shares(soft, 0.02, 0.05, 0.1, 0.25)),
    ("{} of it the mean of neighbours in the row", shares(lambda r: neighbours(r, 1), 0.02, 0.1, 0.5)),
    ("{} of it the mean of neighbours in the column", shares(lambda r: neighbours(r, 0), 0.02, 0.1, 0.5)),
    ("the exact vector in the directions that shrinkage keeps*", one(exact_within_top)),
]
#: A little of what lowers the noise most, and its loss of size made up for.
GAIN_ROWS: list[Row] = [
    ROWS[0],
    ("{} of optimal shrinkage, at unit gain*", shares(lambda r: unit_gain(part(SHRUNK, r)), 0.1, 0.25, 0.5)),
    ("bulk times {}, the rest kept, at unit gain*", shares(lambda r: unit_gain(spectral(as_it_is, r)), 0.5, 0.75, 0.9)),
    ("{} of the posterior mean (row and column), at unit gain*", shares(lambda r: unit_gain(part(BY_BOTH, r)), 0.1, 0.25, 0.5)),
    ("{} of the posterior mean around a low rank, at unit gain*", shares(lambda r: unit_gain(part(BY_RANK, r)), 0.1, 0.25, 0.5)),
    ("{} of the own Gram matrix's, at unit gain*", shares(lambda r: unit_gain(part(OWN_GRAM, r)), 0.1, 0.25, 0.5)),
    ("0.1 of optimal shrinkage, all times {}", shares(lambda q: times(part(SHRUNK, 0.1), q), 1.02, 1.03)),
    ("bulk times 0.75, the rest kept, all times {}", shares(lambda q: times(spectral(as_it_is, 0.75), q), 1.02, 1.04)),
    ("0.25 of the posterior mean around a low rank, all times {}",
     shares(lambda q: times(part(BY_RANK, 0.25), q), 1.03, 1.06)),
]
PARTS = {"attention": ("attn_",), "ffn": ("ffn_",), "embeddings and output": ("token_embd", "output.weight")}
PART_ROWS: list[Row] = [ROWS[0]] + [
    (f"{what}, only {where}", one(only(way, *names)))
    for what, way in (("shrinkage", SHRUNK), ("bulk times 0.75", spectral(as_it_is, 0.75)))
    for where, names in PARTS.items()
] + [(f"exact in {where}*", one(exact_in(*names))) for where, names in PARTS.items()]
#: For other types: those of the above that say most.
FEW_ROWS: list[Row] = [
    ROWS[0],
    ("optimal shrinkage", one(SHRUNK)),
    ("{} of it, the rest plain", shares(lambda r: part(SHRUNK, r), 0.1, 0.25)),
    ("bulk times {}, the rest kept", shares(lambda r: spectral(as_it_is, r), 0.5, 0.75, 0.9)),
]
OUTPUTS = {"F32": ("--type", "F32"), "Q4_K, `--on-loss dither`": (), "Q4_K, `--on-loss warn`": ("--on-loss", "warn")}
OUTPUT_ROWS = [
    ("the plain difference", PLAIN_DIFFERENCE),
    ("exact*", lambda m: m.tau),
    ("optimal shrinkage", SHRUNK),
    ("bulk times 0.75, the rest kept", spectral(as_it_is, 0.75)),
    ("0.25 of the posterior mean around a low rank", part(BY_RANK, 0.25)),
]
TYPES = (Type.Q8_0, Type.Q6_K, Type.Q4_K, Type.Q4_0, Type.Q2_K)


def quantized(weights: np.ndarray, type_: Type) -> tuple[np.ndarray, np.ndarray]:
    """What the weights become, and their steps."""
    tensor = Tensor("", weights.shape, type_, encode(weights, type_))
    return decode(tensor), steps(tensor)


class Study:
    def __init__(self, models_dir: Path):
        files = {p.stem.split("-")[2]: p for p in models_dir.glob("tinyworld-*-F16.gguf")}
        self.chats = {role: files[role] for role in ("chat", "pirate") if role in files}
        self.files = files
        self.base, self.cp = (self.weights(files[role]) for role in ("base", "cp"))
        chat = files["chat"]
        vocabulary = gguf.GGUFReader(chat).fields["tokenizer.ggml.tokens"].contents()
        read = lambda name: [json.loads(line) for line in (models_dir / name).read_text("utf-8").splitlines()]
        items = read("prompts-de.jsonl")
        self.model = BatchModel(chat)
        prompts = [tokenize(chat, i["chatml"]) for i in items]
        english = (f"{i['chatml']}{i['answer']}<|im_end|>\n" for i in read("prompts-en.jsonl"))
        self.calibration = [tokenize(chat, text) for text in english]
        self.held_out = np.arange(len(items)) % 2 == 1
        self.exact = {role: self.weights(p) for role, p in self.chats.items()}
        exact = lambda chat: {n: self.cp[n] + (w - self.base[n]) for n, w in chat.items()}
        self.judges = {role: Judge(self.model, vocabulary, items, prompts, exact(w)) for role, w in self.exact.items()}
        self.pairs = {}

    @staticmethod
    def weights(path: Path) -> dict[str, np.ndarray]:
        return {n: decode(t) for n, t in read_tensors(path).items()}

    def pair(self, role: str, type_: Type) -> dict[str, Matrix]:
        """Only those of one type are kept."""
        if self.pairs.get("type") != type_:
            self.pairs = {"type": type_}
        if role not in self.pairs:
            exact, matrices = self.exact[role], [n for n, w in self.base.items() if w.ndim == 2]
            base, chat = ({n: quantized(of[n], type_) for n in matrices} for of in (self.base, exact))
            grams = self.grams(exact | {n: weights for n, (weights, _) in chat.items()})
            self.pairs[role] = {
                n: Matrix(n, base[n][0], chat[n][0], base[n][1], chat[n][1], exact[n] - self.base[n], grams.get(n))
                for n in matrices
            }
        return self.pairs[role]

    def grams(self, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        grams = {}

        def watch(name: str, x: np.ndarray):
            grams[name] = grams.get(name, 0) + (x.T @ x).astype(np.float64)

        self.model.load(weights)
        self.model.watch = watch
        for tokens in self.calibration:
            self.model.batch(np.array([tokens]), {})
        self.model.watch = None
        return {n: g / np.trace(g) * len(g) for n, g in grams.items()}

    def vector(self, role: str, type_: Type, way: Way) -> dict[str, np.ndarray]:
        """Norms are in F32 in quantised files."""
        pair = self.pair(role, type_)
        return {n: np.float32(way(pair[n])) if n in pair else w - self.base[n] for n, w in self.exact[role].items()}

    def merged(self, vector: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {n: self.cp[n] + t for n, t in vector.items()}

    def table(self, type_: Type, rows: list[Row]) -> str:
        """A line for each row, with the number that the even prompts prefer."""
        roles = list(self.judges)
        heads = ["way", *(f"{role}: {what}" for role in roles for what in
                          ("gain, cosine", "answers", "whole texts", "ends / exact / same"))]
        lines, plain = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"], None
        for label, choices in rows:
            tried = []
            for number, way in choices:
                vectors = {role: self.vector(role, type_, way) for role in roles}
                kl = {role: self.judges[role].divergence(self.merged(v)) for role, v in vectors.items()}
                plain = plain or kl
                even = lambda values: values[:, ~self.held_out].mean(1)
                worth = np.mean([even(kl[role]) / even(plain[role]) for role in roles])
                tried.append((worth, number, vectors, kl))
                print(f"    {label.format(number)}: even prompts, as a ratio {worth:.3f}", flush=True)
            _, number, vectors, kl = min(tried, key=lambda t: t[0])
            cells = [label.format(number)]
            for role in roles:
                said = self.judges[role].behaviour(self.merged(vectors[role]))[:, self.held_out]
                cells += [self.size(role, vectors[role]), *self.against(kl[role], plain[role]),
                          " / ".join(f"{x:.2f}" for x in np.nanmean(said, 1))]
            lines.append("| " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
        return "\n".join(lines)

    def against(self, kl: np.ndarray, plain: np.ndarray) -> list[str]:
        """Means over the held-out prompts, and by how much they are above the plain difference's."""
        cells = []
        for kl, difference in zip(kl[:, self.held_out], (kl - plain)[:, self.held_out]):
            cells.append(f"{kl.mean():.1f}")
            if difference.any():
                drawn = np.random.default_rng(1).integers(0, len(kl), (N_SAMPLES, len(kl)))
                low, high = np.percentile(difference[drawn].mean(1), [2.5, 97.5])
                text = f"{difference.mean():+.1f} ({low:+.1f} to {high:+.1f})"
                cells[-1] += f": **{text}**" if high < 0 else f": {text}"
        return cells

    def size(self, role: str, vector: dict[str, np.ndarray]) -> str:
        names = [n for n, w in self.base.items() if w.ndim == 2]
        dot = lambda a, b: sum((a(n).astype(np.float64) * b(n)).sum() for n in names)
        tau, got = (lambda n: self.exact[role][n] - self.base[n]), (lambda n: vector[n])
        square, kept = dot(tau, tau), dot(got, tau)
        return f"{kept / square:.2f}, {kept / math.sqrt(square * dot(got, got)):.2f}"

    def types(self) -> str:
        """What there is to remove."""
        whats = ("noise", "for the inputs", "cosine", "correlation of both errors", "codes that agree", "directions above the edge",
                 "answers", "whole texts", "ends / exact / same")
        heads = ["base and chat", *(f"{role}: {what}" for role in self.judges for what in whats)]
        lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for type_ in (None, *TYPES):
            cells = [type_.name if type_ else "F16"]
            for role, judge in self.judges.items():
                way = PLAIN_DIFFERENCE if type_ else lambda m: m.tau
                vector = self.vector(role, type_ or TYPES[0], way)
                cells += self.noise(role) if type_ else ["0.00", "0.00", "1.00", "", "", ""]
                kl = judge.divergence(self.merged(vector))[:, self.held_out].mean(1)
                said = judge.behaviour(self.merged(vector))[:, self.held_out]
                cells += [*(f"{x:.1f}" for x in kl), " / ".join(f"{x:.2f}" for x in np.nanmean(said, 1))]
            lines.append("| " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
        return "\n".join(lines)

    def noise(self, role: str) -> list[str]:
        matrices = list(self.pairs[role].values())
        error = lambda m: (m.base - self.base[m.name], m.chat - self.exact[role][m.name])
        dot = lambda f, g: sum((f(m).astype(np.float64) * g(m)).sum() for m in matrices)
        cosine = lambda f, g: dot(f, g) / math.sqrt(dot(f, f) * dot(g, g))
        tau, got = (lambda m: m.tau), (lambda m: m.difference)
        both = lambda m: m.difference - m.tau
        met = lambda f: sum(((f(m) @ m.gram) * f(m)).sum() for m in matrices if m.gram is not None)
        agree = sum(m.codes_agree.sum() for m in matrices) / sum(m.base.size for m in matrices)
        above = np.mean([(y > 1 + math.sqrt(b)).mean() for y, _, b in map(normalised, matrices)])
        return [f"{math.sqrt(dot(both, both) / dot(tau, tau)):.2f}", f"{math.sqrt(met(both) / met(tau)):.2f}",
                f"{cosine(tau, got):.2f}", f"{cosine(lambda m: error(m)[0], lambda m: error(m)[1]):.2f}", f"{agree:.2f}",
                f"{above:.2f}"]

    def outputs(self, chatvec: Chatvec, folder: Path, rows: list[tuple[str, Way]]) -> str:
        """cp and the outputs in Q4_K, as the command writes them."""
        roles = list(self.judges)
        heads = ["vector", "output", *(f"{role}: {what}" for role in roles for what in
                                       ("answers", "whole texts", "ends / exact / same"))]
        lines, plain = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"], {}
        cp = folder / "cp.gguf"
        chatvec.run("quantize", self.files["cp"], "-o", cp, "--type", "Q4_K", "--pure")
        for label, way in rows:
            for output, options in OUTPUTS.items():
                cells = [label, output]
                for role in roles:
                    weights = self.weights(self.command(chatvec, folder, cp, role, way, options))
                    kl = self.judges[role].divergence(weights)
                    said = self.judges[role].behaviour(weights)[:, self.held_out]
                    against = self.against(kl, plain.setdefault((role, output), kl))
                    cells += [*against, " / ".join(f"{x:.2f}" for x in np.nanmean(said, 1))]
                lines.append("| " + " | ".join(cells) + " |")
                print(lines[-1], flush=True)
        return "\n".join(lines)

    def command(self, chatvec: Chatvec, folder: Path, cp: Path, role: str, way: Way, options: tuple[str, ...]) -> Path:
        """The vector as the difference of two files in F32, of which the base is what the quantised one decodes to."""
        pair, vector = self.pair(role, Type.Q4_K), self.vector(role, Type.Q4_K, way)
        base = {n: pair[n].base if n in pair else w for n, w in self.base.items()}
        chat = {n: w + vector[n] for n, w in base.items()}
        as_f32 = lambda n, w: Tensor(n, w.shape, F32, np.ascontiguousarray(w, np.float32).reshape(-1).view(np.uint8))
        paths = [rewrite(self.files[name], folder / f"{name}.gguf", {n: as_f32(n, w) for n, w in weights.items()})
                 for name, weights in (("base", base), (role, chat))]
        out = folder / "out.gguf"
        code = chatvec.run("merge", "--base", paths[0], "--chat", paths[1], "--model", cp, "-o", out, "--overwrite",
                           "--embeddings", "all", "--special-tokens", "none", *options)
        return Path(f"{out}.rejected") if code == VECTOR_LOST else out


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--models-dir", type=Path, default=ROOT / "fixtures/models", help="folder of models and prompts")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/NOISE.md")
    parser.add_argument("--tables", default="types,ways,gains,parts,Q4_0,Q2_K,outputs", help="which tables, by comma")
    options = parser.parse_args()
    study = Study(options.models_dir)
    with work_folder(options.temp_dir) as folder:
        makers = {
            "types": study.types,
            "ways": lambda: study.table(Type.Q4_K, ROWS),
            "gains": lambda: study.table(Type.Q4_K, GAIN_ROWS),
            "parts": lambda: study.table(Type.Q4_K, PART_ROWS),
            "Q4_0": lambda: study.table(Type.Q4_0, FEW_ROWS),
            "Q2_K": lambda: study.table(Type.Q2_K, FEW_ROWS),
            "outputs": lambda: study.outputs(Chatvec(options.chatvec), folder, OUTPUT_ROWS),
        }
        for name in options.tables.split(","):
            print(name, flush=True)
            table = makers[name]()
            if options.write:
                put_tables(DOCUMENT, {name: table})
    return 0


if __name__ == "__main__":
    sys.exit(main())
