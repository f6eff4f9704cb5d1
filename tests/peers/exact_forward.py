"""The forward pass of llama and qwen2 models in f64 by numpy, written from the papers and the GGUF specification.

A second witness beside llama.cpp: it rounds nothing on the way, so it says how much of a difference between two programs
is llama.cpp's own rounding of activations. Slow; for models of a few megabytes.
"""

import math
from pathlib import Path

import gguf
import numpy as np

from ggml_codec import decode
from gguf_files import read_tensors


#: Turns within the original context above which a pair keeps its frequency, and below which it is interpolated.
YARN_BETA_FAST, YARN_BETA_SLOW = 32.0, 1.0


class ExactModel:
    """One file, its weights widened to f64."""

    def __init__(self, path: Path):
        fields = gguf.GGUFReader(path).fields
        self.arch = fields["general.architecture"].contents()
        prefix = self.arch + "."
        self.meta = {k.removeprefix(prefix): f.contents() for k, f in fields.items() if k.startswith(prefix)}
        self.weights = {n: decode(t).astype(np.float64) for n, t in read_tensors(path).items()}
        m = self.meta
        self.n_head = m["attention.head_count"]
        self.n_kv = m.get("attention.head_count_kv", self.n_head)
        self.head_dim = m.get("attention.key_length", m["embedding_length"] // self.n_head)
        # attention.scale and the betas of YaRN are keys of other architectures: llama.cpp does not read them here.
        self.kq_scale = 1 / math.sqrt(self.head_dim)

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        """Product with `name.weight`, and `name.bias` if there is one."""
        return x @ self.weights[name + ".weight"].T + self.weights.get(name + ".bias", 0.0)

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        eps = self.meta["attention.layer_norm_rms_epsilon"]
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * self.weights[name + ".weight"]

    def rope(self, n: int) -> tuple[np.ndarray, float]:
        """Angles of each position and pair, and the factor on rotated vectors."""
        m, pairs = self.meta, self.head_dim // 2
        base = m.get("rope.freq_base", 10000.0)
        frequencies = base ** (-np.arange(pairs) / pairs)
        if self.arch == "llama":
            frequencies = frequencies / self.weights.get("rope_freqs.weight", np.ones(pairs))
        kind = m.get("rope.scaling.type", "linear")
        factor = m.get("rope.scaling.factor", 0) or m.get("rope.scale_linear", 0)
        attention = m.get("rope.scaling.attn_factor", 1.0)
        if kind == "linear" and factor:
            frequencies = frequencies / factor
        if kind == "yarn" and factor:
            # arXiv 2309.00071, section 3.2 and 3.4: fast pairs stay, slow ones are interpolated, between them a ramp.
            context = m.get("rope.scaling.original_context_length", m["context_length"])

            def pair_of(turns):
                return self.head_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))

            low = max(0, math.floor(pair_of(YARN_BETA_FAST)))
            high = min(self.head_dim - 1, math.ceil(pair_of(YARN_BETA_SLOW)))
            ramp = np.clip((np.arange(pairs) - low) / max(0.001, high - low), 0, 1)
            frequencies = frequencies / factor * ramp + frequencies * (1 - ramp)
            attention *= 0.1 * math.log(factor) + 1
        return np.arange(n)[:, None] * frequencies, attention

    def rotate(self, x: np.ndarray, angles: np.ndarray, factor: float) -> np.ndarray:
        """(n, heads, head_dim): pairs are neighbours in llama files, halves in qwen2's."""
        halves = self.arch == "qwen2"
        a, b = np.split(x, 2, -1) if halves else (x[..., ::2], x[..., 1::2])
        cos, sin = np.cos(angles)[:, None] * factor, np.sin(angles)[:, None] * factor
        rotated = a * cos - b * sin, a * sin + b * cos
        return np.concatenate(rotated, -1) if halves else np.stack(rotated, -1).reshape(x.shape)

    def logits(self, tokens: list[int]) -> np.ndarray:
        """After each token, f64."""
        x = self.weights["token_embd.weight"][tokens]
        n = len(tokens)
        angles, factor = self.rope(n)
        mask = np.triu(np.full((n, n), -np.inf), 1)
        for i in range(self.meta["block_count"]):
            block = f"blk.{i}."
            h = self.norm(block + "attn_norm", x)
            q, k, v = (self.linear(block + p, h).reshape(n, -1, self.head_dim) for p in ("attn_q", "attn_k", "attn_v"))
            q, k = self.rotate(q, angles, factor), self.rotate(k, angles, factor)
            k, v = (np.repeat(y, self.n_head // self.n_kv, 1) for y in (k, v))
            scores = np.einsum("qhd,khd->hqk", q, k) * self.kq_scale + mask
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            attended = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v).reshape(n, -1)
            x = x + self.linear(block + "attn_output", attended)
            h = self.norm(block + "ffn_norm", x)
            gate = self.linear(block + "ffn_gate", h)
            x = x + self.linear(block + "ffn_down", gate / (1 + np.exp(-gate)) * self.linear(block + "ffn_up", h))
        x = self.norm("output_norm", x)
        return self.linear("output" if "output.weight" in self.weights else "token_embd", x)
