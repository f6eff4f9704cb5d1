"""The forward pass of more architectures in f64 by numpy, and the same pass with one part done wrong.

A second witness beside llama.cpp, as `exact_forward.py` is for llama and qwen2. `mistakes` names what can be done wrong in
a given model: whoever makes such a mistake is as far from llama.cpp as `family_models.py` measures.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exact_forward import YARN_BETA_FAST, YARN_BETA_SLOW, ExactModel


@dataclass(frozen=True)
class Family:
    """What an architecture does that no key of the file says."""

    #: Pairs of rotary embeddings are halves of a head, not neighbours.
    halves: bool = True
    #: The default pattern of windows: every n-th layer has none. 0: the architecture knows no window.
    pattern: int = 0
    window: int = 0
    gelu: bool = False
    #: Embeddings times the root of their width.
    scaled_embeddings: bool = False
    #: Of the weights of chosen experts: as the softmax gave them, made to add up to 1, or the softmax of the chosen.
    expert_weights: str = "normed"


FAMILIES = {
    "llama": Family(halves=False),
    "qwen2moe": Family(expert_weights="plain"),
    "qwen3": Family(),
    "qwen3moe": Family(),
    "gemma": Family(gelu=True, scaled_embeddings=True),
    "gemma2": Family(gelu=True, scaled_embeddings=True, pattern=2, window=4096),
    "gemma3": Family(gelu=True, scaled_embeddings=True, pattern=6),
    "mistral3": Family(halves=False),
    "phi3": Family(),
    "gpt-oss": Family(pattern=2, expert_weights="softmax"),
    "olmo2": Family(pattern=4),
    "granite": Family(halves=False),
    "granitemoe": Family(halves=False),
    "smollm3": Family(halves=False),
}

#: In gpt-oss: the slope inside the sigmoid, and the largest gate and linear part.
OAI_ALPHA, OAI_LIMIT = 1.702, 7.0
#: Layers of the models whose attention is scaled by the width of the embedding: Gemma 2 and 3 with 27 billion weights.
N_LAYER_27B = {"gemma2": 46, "gemma3": 62}
NO_ROPE_EVERY = 4


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def gelu(x: np.ndarray) -> np.ndarray:
    """By tanh, as in the models' own code."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def table_gelu(x: np.ndarray) -> np.ndarray:
    """As llama.cpp takes it on CPUs: from a table of F16 by F16 between -10 and 10, outside 0 or x itself."""
    looked_up = gelu(x.astype(np.float16).astype(np.float64)).astype(np.float16).astype(np.float64)
    return np.where(x <= -10, 0.0, np.where(x >= 10, x, looked_up))


class ExactFamilyModel(ExactModel):
    """One file, its weights widened to f64; with `wrong`, one part is done wrong."""

    def __init__(self, path: Path, n_ctx: int):
        super().__init__(path)
        self.family, self.n_ctx, self.wrong = FAMILIES[self.arch], n_ctx, None
        m = self.meta
        self.n_rot = m.get("rope.dimension_count", self.head_dim)
        self.window = 0 if self.family.pattern == 0 else m.get("attention.sliding_window", self.family.window)
        #: Of each layer: the difference of router logits between the last chosen and the first other expert.
        self.routing_gaps: list[np.ndarray] = []

    # -- what a layer is ------------------------------------------------------------------------------------------

    def has_window(self, i: int) -> bool:
        if not self.window:
            return False
        pattern = self.meta.get("attention.sliding_window_pattern", self.family.pattern)
        if self.wrong == "other layers have the window" and not isinstance(pattern, list):
            return i % pattern > 0
        return bool(pattern[i]) if isinstance(pattern, list) else i % pattern < pattern - 1

    def has_rope(self, i: int) -> bool:
        if self.wrong == "no rope":
            return False
        if self.arch == "granite" and self.wrong != "rope in spite of the key":
            return self.meta.get("rope.scaling.finetuned", True)
        return self.arch != "smollm3" or self.wrong == "rope everywhere" or (i + 1) % NO_ROPE_EVERY != 0

    def attention_scale(self) -> float:
        m = self.meta
        scale = 1 / math.sqrt(self.head_dim)
        if self.arch in ("granite", "granitemoe"):
            scale = m.get("attention.scale", scale)
        if m["block_count"] == N_LAYER_27B.get(self.arch):
            scale = 1 / math.sqrt(m["embedding_length"] // self.n_head)
        return 1 / math.sqrt(self.head_dim) if self.wrong == "common attention scale" else scale

    def angles(self, n: int, i: int) -> tuple[np.ndarray, float]:
        """Angles of each position and pair in a layer, and the factor on rotated vectors."""
        m, pairs, wrong = self.meta, self.n_rot // 2, self.wrong
        base = m.get("rope.freq_base", 10000.0)
        factor = m.get("rope.scaling.factor", 0) or 1.0
        kind = m.get("rope.scaling.type", "linear")
        if self.has_window(i) and wrong != "one rope for all layers":
            if self.arch == "gemma3":
                base, factor = m.get("rope.freq_base_swa", 10000.0), 1.0
            elif self.arch == "olmo2":
                kind, factor = "none", 1.0
            else:
                base = m.get("rope.freq_base_swa", base)
        if wrong == "no rope scaling":
            kind, factor = "none", 1.0
        frequencies = base ** (-np.arange(pairs) / pairs)
        context = m.get("rope.scaling.original_context_length", m["context_length"])
        if "rope_freqs.weight" in self.weights:
            frequencies = frequencies / self.weights["rope_freqs.weight"]
        elif "rope_factors_long.weight" in self.weights and wrong != "no rope factors":
            long = (self.n_ctx > context) != (wrong == "other rope factors")
            frequencies = frequencies / self.weights[f"rope_factors_{'long' if long else 'short'}.weight"]
        attention = 1.0 if wrong == "no rope attention factor" else m.get("rope.scaling.attn_factor", 1.0)
        if kind != "yarn":
            return np.arange(n)[:, None] * frequencies / factor, attention
        fast, slow = YARN_BETA_FAST, YARN_BETA_SLOW
        if self.arch == "mistral3" and wrong != "default yarn betas":
            fast = m.get("rope.scaling.yarn_beta_fast", fast)
            slow = m.get("rope.scaling.yarn_beta_slow", slow)

        def pair_of(turns):
            return self.n_rot * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))

        low, high = max(0, math.floor(pair_of(fast))), min(self.n_rot - 1, math.ceil(pair_of(slow)))
        ramp = np.clip((np.arange(pairs) - low) / max(0.001, high - low), 0, 1)
        frequencies = frequencies / factor * ramp + frequencies * (1 - ramp)

        def magnitude(multiplier):
            return 0.1 * multiplier * math.log(factor) + 1 if factor > 1 else 1.0

        if wrong != "no yarn magnitude":
            attention *= magnitude(1)
            if self.arch == "mistral3" and wrong != "no log multiplier" and (
                    multiplier := m.get("rope.scaling.yarn_log_multiplier", 0)):
                attention /= magnitude(multiplier)
        return np.arange(n)[:, None] * frequencies, attention

    # -- parts ----------------------------------------------------------------------------------------------------

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        bias = self.weights.get(name + ".bias", 0.0)
        return x @ self.weights[name + ".weight"].T + (0.0 if self.wrong == "no biases" else bias)

    def rotate_part(self, x: np.ndarray, angles: np.ndarray, factor: float) -> np.ndarray:
        """(n, heads, head_dim), of which the first n_rot are rotated; the factor is on these alone."""
        rotated, rest = x[..., :self.n_rot], x[..., self.n_rot:]
        halves = self.family.halves != (self.wrong == "other rope pairs")
        a, b = np.split(rotated, 2, -1) if halves else (rotated[..., ::2], rotated[..., 1::2])
        cos, sin = np.cos(angles)[:, None] * factor, np.sin(angles)[:, None] * factor
        parts = a * cos - b * sin, a * sin + b * cos
        rotated = np.concatenate(parts, -1) if halves else np.stack(parts, -1).reshape(rotated.shape)
        return np.concatenate([rotated, rest], -1)

    def gated(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        if self.arch == "gpt-oss" and self.wrong != "other activation":
            limit = np.inf if self.wrong == "no limit" else OAI_LIMIT
            gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
            return gate * sigmoid(OAI_ALPHA * gate) * (up + 1)
        if self.family.gelu == (self.wrong == "other activation"):
            return silu(gate) * up
        return (gelu if self.wrong == "gelu without table" else table_gelu)(gate) * up

    def attention(self, block: str, i: int, h: np.ndarray) -> np.ndarray:
        n, m, w = len(h), self.meta, self.weights
        if block + "attn_qkv.weight" in w:
            sizes = self.n_head * self.head_dim, self.n_kv * self.head_dim
            q, k, v = np.split(self.linear(block + "attn_qkv", h), np.cumsum(sizes), -1)
            if self.wrong != "no biases":
                q, k, v = (x + w.get(f"{block}{p}.bias", 0.0) for x, p in zip((q, k, v), ("attn_q", "attn_k", "attn_v")))
        else:
            q, k, v = (self.linear(block + p, h) for p in ("attn_q", "attn_k", "attn_v"))
        found = []
        for x, name in ((q, "attn_q_norm"), (k, "attn_k_norm")):
            heads = x.reshape(n, -1, self.head_dim)
            if block + name + ".weight" in w and self.wrong != "no norm of queries and keys":
                whole = w[block + name + ".weight"].size == x.shape[-1]
                heads = self.norm(block + name, x if whole else heads).reshape(heads.shape)
            found.append(heads)
        if self.has_rope(i):
            angles, factor = self.angles(n, i)
            found = [self.rotate_part(x, angles, factor) for x in found]
        q, k = found
        v = v.reshape(n, -1, self.head_dim)
        if m.get("attention.temperature_scale") and self.arch == "mistral3" and self.wrong != "no temperature":
            steps = np.floor(np.arange(n) / m["rope.scaling.original_context_length"])
            q = q * (np.log(steps + 1) * m["attention.temperature_scale"] + 1)[:, None, None]
        group = self.n_head // self.n_kv
        k, v = ((np.tile(x, (1, group, 1)) if self.wrong == "other key heads" else np.repeat(x, group, 1))
                for x in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) * self.attention_scale()
        if self.arch == "gemma2" and self.wrong != "no soft cap of attention":
            cap = m.get("attn_logit_softcapping", 50.0)
            scores = np.tanh(scores / cap) * cap
        back = np.arange(n)[:, None] - np.arange(n)
        window = np.inf if not self.has_window(i) or self.wrong == "no window" else self.window
        scores = np.where((back < 0) | (back >= window + (self.wrong == "window of one more")), -np.inf, scores)
        if block + "attn_sinks.weight" in w and self.wrong != "no sinks":
            sinks = np.broadcast_to(w[block + "attn_sinks.weight"][:, None, None], (self.n_head, n, 1))
            scores = np.concatenate([scores, sinks], -1)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores = (scores / scores.sum(-1, keepdims=True))[..., :n]
        return self.linear(block + "attn_output", np.einsum("hqk,khd->qhd", scores, v).reshape(n, -1))

    def experts(self, block: str, h: np.ndarray) -> np.ndarray:
        m, w, n_used = self.meta, self.weights, self.meta["expert_used_count"]
        logits = self.linear(block + "ffn_gate_inp", h)
        order = np.argsort(-logits, -1, kind="stable")
        ranked = np.take_along_axis(logits, order, -1)
        self.routing_gaps.append(ranked[:, n_used - 1] - ranked[:, n_used])
        probabilities = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities /= probabilities.sum(-1, keepdims=True)
        chosen = order[:, 1:n_used + 1] if self.wrong == "second best experts" else order[:, :n_used]
        shares = np.take_along_axis(probabilities, chosen, -1)
        kind = self.family.expert_weights
        if self.wrong == "other expert weights":
            kind = "plain" if kind != "plain" else "normed"
        if kind != "plain":
            shares = shares / shares.sum(-1, keepdims=True)
        if self.wrong == "equal expert weights":
            shares = np.full_like(shares, shares.sum(-1).mean() / n_used)

        def product(name, x, e):
            bias = w.get(block + name + ".bias")
            return x @ w[block + name + ".weight"][e].T + (0.0 if bias is None or self.wrong == "no biases" else bias[e])

        out = np.zeros_like(h)
        for e in range(m["expert_count"]):
            at, rank = np.nonzero(chosen == e)
            x = h[at]
            y = product("ffn_down_exps", self.gated(product("ffn_gate_exps", x, e), product("ffn_up_exps", x, e)), e)
            out[at] += shares[at, rank][:, None] * y
        if block + "ffn_up_shexp.weight" in w and self.wrong != "no shared expert":
            y = self.linear(block + "ffn_down_shexp", self.gated(
                self.linear(block + "ffn_gate_shexp", h), self.linear(block + "ffn_up_shexp", h)))
            if block + "ffn_gate_inp_shexp.weight" in w and self.wrong != "no gate of the shared expert":
                y = y * sigmoid(h @ w[block + "ffn_gate_inp_shexp.weight"])[:, None]
            out += y
        return out

    def feed_forward(self, block: str, h: np.ndarray) -> np.ndarray:
        if block + "ffn_gate_inp.weight" in self.weights:
            return self.experts(block, h)
        up = self.linear(block + "ffn_up", h)
        if block + "ffn_gate.weight" in self.weights:
            gate = self.linear(block + "ffn_gate", h)
        else:
            gate, up = np.split(up, 2, -1)
            if self.wrong == "gate and up exchanged":
                gate, up = up, gate
        return self.linear(block + "ffn_down", self.gated(gate, up))

    def logits(self, tokens: list[int], wrong: str | None = None) -> np.ndarray:
        """After each token, f64; `wrong` is one of `mistakes`."""
        self.wrong, self.routing_gaps = wrong, []
        m, w = self.meta, self.weights
        x = w["token_embd.weight"][tokens]
        if self.family.scaled_embeddings and wrong != "no embedding scale":
            x = x * math.sqrt(m["embedding_length"])
        granite = self.arch.startswith("granite")
        if granite and wrong != "no embedding scale":
            x = x * m.get("embedding_scale", 1.0)
        residual = m.get("residual_scale", 1.0) if granite and wrong != "no residual scale" else 1.0
        norms_after = self.arch in ("gemma2", "gemma3", "olmo2")
        before_ffn = "post_attention_norm" if self.arch == "gpt-oss" else "ffn_norm"

        def normed(name, y, wanted=True):
            return self.norm(name, y) if wanted and name + ".weight" in w else y

        for i in range(m["block_count"]):
            block = f"blk.{i}."
            y = self.attention(block, i, normed(block + "attn_norm", x))
            y = normed(block + "post_attention_norm", y, norms_after and wrong != "no norm after attention")
            x = x + y * residual
            if wrong != "no ffn":
                y = self.feed_forward(block, normed(block + before_ffn, x, wrong != "no norm before ffn"))
                x = x + normed(block + "post_ffw_norm", y, wrong != "no norm after ffn") * residual
        x = self.norm("output_norm", x)
        x = self.linear("output" if "output.weight" in w else "token_embd", x)
        if granite and wrong != "no logit scale":
            x = x / m["logit_scale"]
        cap = m.get("final_logit_softcapping", 30.0 if self.arch == "gemma2" else 0.0)
        if self.arch in ("gemma2", "gemma3") and cap and wrong != "no final soft cap":
            x = np.tanh(x / cap) * cap
        return x

    def mistakes(self, n_tokens: int) -> list[str]:
        """What can be done wrong in this model so that it shows within so many tokens."""
        m, w = self.meta, self.weights
        has = lambda *parts: any(p in name for name in w for p in parts)  # noqa: E731
        windowed = [self.has_window(i) and self.window < n_tokens for i in range(m["block_count"])]
        found = ["other activation", "no ffn"]
        roped = any(self.has_rope(i) for i in range(m["block_count"]))
        found += ["no rope", "other rope pairs"] if roped else ["rope in spite of the key"]
        if self.n_kv not in (1, self.n_head):
            found.append("other key heads")
        if has(".bias"):
            found.append("no biases")
        if has("attn_q_norm"):
            found.append("no norm of queries and keys")
        if any(windowed):
            found += ["no window", "window of one more"]
            if not isinstance(m.get("attention.sliding_window_pattern"), list):
                found.append("other layers have the window")
            if self.arch == "gemma3" or (
                    "rope.scaling.factor" in m if self.arch == "olmo2" else "rope.freq_base_swa" in m):
                found.append("one rope for all layers")
        if m.get("rope.scaling.factor"):
            found.append("no rope scaling")
            if m.get("rope.scaling.type") == "yarn" and m.get("rope.scaling.yarn_log_multiplier") != 1.0:
                found.append("no yarn magnitude")
        if m.get("rope.scaling.attn_factor", 1.0) != 1.0:
            found.append("no rope attention factor")
        if self.arch == "mistral3":
            found += ["no log multiplier"] if "rope.scaling.yarn_log_multiplier" in m else []
            found += ["default yarn betas"] if "rope.scaling.yarn_beta_fast" in m else []
            found += ["no temperature"] if "attention.temperature_scale" in m else []
        if has("rope_factors"):
            found += ["no rope factors", "other rope factors"]
        if has("attn_sinks"):
            found.append("no sinks")
        if has("ffn_gate_inp.weight"):
            found += ["second best experts", "other expert weights", "equal expert weights"]
        if has("_shexp"):
            found.append("no shared expert")
        if has("ffn_gate_inp_shexp"):
            found.append("no gate of the shared expert")
        if self.arch == "gpt-oss":
            found.append("no limit")
        if self.arch in ("gemma2", "gemma3", "olmo2"):
            found += ["no norm after attention", "no norm after ffn"]
        if self.arch != "olmo2":
            found.append("no norm before ffn")
        if self.arch == "gemma2":
            found.append("no soft cap of attention")
        if self.arch == "gemma2" or "final_logit_softcapping" in m:
            found.append("no final soft cap")
        if self.family.scaled_embeddings or "embedding_scale" in m:
            found.append("no embedding scale")
        found += [f"no {key.replace('_', ' ')}" for key in ("residual_scale", "logit_scale") if key in m]
        if "attention.scale" in m and self.arch.startswith("granite") or (
                m["block_count"] == N_LAYER_27B.get(self.arch)):
            found.append("common attention scale")
        if self.arch == "smollm3":
            found.append("rope everywhere")
        if self.arch == "phi3":
            found.append("gate and up exchanged")
        return found
