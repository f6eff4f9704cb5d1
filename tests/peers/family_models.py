"""Small models of fixed weights of more architectures, and what llama.cpp computes with them.

    python family_models.py OUTDIR [NAME ...]
    python family_models.py --trio OUTDIR NAME

writes the GGUF files (of the variants of these names), or base.gguf, chat.gguf and cp.gguf: three siblings of a variant
in F16, which say nothing sensible; `infer_goldens.py families` writes fixtures/infer/families.json.
Weights come from the rule of `synthetic_models.py`. Every part of a model is measured: with any one of them done wrong
(`exact_families.py`), the log-probabilities move by at least LEAST_MEAN_DIFFERENCE.
"""

import hashlib
import math
import sys
import tempfile
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from exact_families import FAMILIES, ExactFamilyModel
from ggml_codec import encode
from gguf_files import read_tensors
from libllama import Llama, log_softmax, quantize
from synthetic_models import (CONTEXT, MERGES, SPECIALS, logprobs_at, tokens_fed, uniform, vocabulary, weights,
                              write_gguf)

#: Largest and mean difference between llama.cpp and itself, one token at a time, and between it and exact arithmetic,
#: for F32 weights.
BOUNDS = 5e-5, 5e-6
#: llama.cpp takes GELU from a table of F16: what differs in the last bit may fall on the next entry, 5e-4 away. In
#: dozens of layers that adds up.
BOUNDS_GELU, BOUNDS_GELU_DEEP, DEEP = (2e-3, 1e-4), (2e-2, 2e-3), 40
#: How far at least a variant is from the one it differs from, and a model from itself with one part done wrong.
LEAST_MEAN_DIFFERENCE = 5e-3
#: Difference of router logits between the last chosen and the first other expert: no program chooses otherwise.
LEAST_GAP = 2e-4
#: The same for quantised weights, where activations are rounded; tokens are chosen so that it holds.
LEAST_QUANTISED_GAP = 0.15
#: Of log-probabilities, which are below -10 here and there: a tenth of the bound.
DIGITS = 7
#: Layers whose tensors have elements to check in the fixture; deeper ones have the sum of all weights alone.
CHECKED_LAYERS = 2

#: Scale of a matrix times the root of its row length, so that products keep their size at every width.
GAINS = {"token_embd": 3.2, "output": 2.2, "attn_q": 2.4, "attn_k": 2.4, "attn_v": 2.4, "attn_output": 2.4,
         "attn_qkv": 2.4, "ffn_gate": 2.4, "ffn_up": 2.4, "ffn_down": 2.4, "ffn_gate_inp": 3.0,
         "ffn_gate_inp_shexp": 3.0, "ffn_gate_exps": 2.4, "ffn_up_exps": 2.4, "ffn_down_exps": 2.4,
         "ffn_gate_shexp": 2.4, "ffn_up_shexp": 2.4, "ffn_down_shexp": 2.4}
NORM_SCALE, BIAS_SCALE, SINK_SCALE = 0.3, 0.3, 1.5
ATTENTION = ("attn_q", "attn_k", "attn_v")
FEED_FORWARD = ("ffn_gate", "ffn_up", "ffn_down")
EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")

#: Architectures whose files say the width of a head, and those that say how much of it is rotated.
WITH_KEY_LENGTH = ("qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "gpt-oss", "mistral3")
WITH_ROPE_DIMENSIONS = ("llama", "mistral3", "phi3", "granite", "granitemoe", "smollm3")
NORMS_OF_HEADS = ("qwen3", "qwen3moe", "gemma3")
NORMS_AFTER = ("gemma2", "gemma3", "olmo2")


@dataclass
class Variant:
    """One model: its shape, the keys that set it apart, and how many tokens it is fed."""

    name: str
    arch: str
    n_embd: int = 64
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 16
    n_ff: int = 96
    n_layer: int = 2
    tied: bool = False
    fused_qkv: bool = False
    biases: tuple[str, ...] = ()
    #: Experts, how many are chosen, their width, and that of the shared one.
    n_expert: int = 0
    n_used: int = 0
    n_ff_exp: int = 0
    n_ff_shexp: int = 0
    #: Values of tensors that are no weights: rope_freqs, rope_factors_long and _short.
    values: dict[str, list[float]] = field(default_factory=dict)
    gains: dict[str, float] = field(default_factory=dict)
    #: Keys without the architecture's prefix; None takes a key away.
    keys: dict = field(default_factory=dict)
    n_tokens: int = 40
    #: A file type of llama-quantize.
    type: str | None = None
    #: The variant whose output must be other, or the one whose output must be the same.
    differs_from: str | None = None
    same_as: str | None = None

    def metadata(self) -> dict:
        """All keys in file order but the tokenizer's."""
        own = {
            "context_length": CONTEXT, "embedding_length": self.n_embd, "block_count": self.n_layer,
            "feed_forward_length": self.n_ff, "attention.head_count": self.n_head,
            "attention.head_count_kv": self.n_head_kv, "attention.layer_norm_rms_epsilon": 1e-6}
        if self.arch in WITH_KEY_LENGTH:
            own |= {"attention.key_length": self.head_dim, "attention.value_length": self.head_dim}
        if self.arch in WITH_ROPE_DIMENSIONS:
            own["rope.dimension_count"] = self.head_dim
        if self.n_expert:
            own |= {"expert_count": self.n_expert, "expert_used_count": self.n_used}
            if self.arch in ("qwen2moe", "qwen3moe", "gpt-oss"):
                own["expert_feed_forward_length"] = self.n_ff_exp
            if self.n_ff_shexp:
                own["expert_shared_feed_forward_length"] = self.n_ff_shexp
        # A name with phi3 in it makes llama.cpp look for the special tokens of Phi-3 and fail without them.
        name = self.name.replace("phi3", "phi-three")
        return {"general.architecture": self.arch, "general.name": name} | {
            f"{self.arch}.{k}": v for k, v in (own | self.keys).items() if v is not None}

    def bounds(self) -> tuple[float, float]:
        """Largest and mean difference within which all right programs are, with F32 weights."""
        if not FAMILIES[self.arch].gelu:
            return BOUNDS
        return BOUNDS_GELU_DEEP if self.n_layer >= DEEP else BOUNDS_GELU

    def tensors(self):
        """Name, shape (row length last) and rule of each tensor in file order."""
        q, kv, d = self.n_head * self.head_dim, self.n_head_kv * self.head_dim, self.n_embd

        def matrix(name, *shape):
            part = name.rsplit(".", 1)[-1]
            scale = (GAINS | self.gains)[part] / math.sqrt(shape[-1])
            yield f"{name}.weight", shape, {"rule": "uniform", "scale": float(f"{scale:.3g}")}
            if part in self.biases:
                yield f"{name}.bias", shape[:-1], {"rule": "uniform", "scale": BIAS_SCALE}

        def norm(name, n=d):
            yield f"{name}.weight", (n,), {"rule": "one_plus_uniform", "scale": NORM_SCALE}

        yield from matrix("token_embd", len(vocabulary()), d)
        for name, values in self.values.items():
            yield f"{name}.weight", (len(values),), {"rule": "values", "values": values}
        for i in range(self.n_layer):
            block = f"blk.{i}."
            if self.arch != "olmo2":
                yield from norm(block + "attn_norm")
            if self.fused_qkv:
                yield from matrix(block + "attn_qkv", q + 2 * kv, d)
                for part, rows in zip(ATTENTION, (q, kv, kv)):
                    if part in self.biases:
                        yield f"{block}{part}.bias", (rows,), {"rule": "uniform", "scale": BIAS_SCALE}
            else:
                for part, rows in zip(ATTENTION, (q, kv, kv)):
                    yield from matrix(block + part, rows, d)
            if self.arch in NORMS_OF_HEADS or self.arch == "olmo2":
                sizes = (q, kv) if self.arch == "olmo2" else (self.head_dim, self.head_dim)
                for part, size in zip(("attn_q_norm", "attn_k_norm"), sizes):
                    yield from norm(block + part, size)
            if self.arch == "gpt-oss":
                yield block + "attn_sinks.weight", (self.n_head,), {"rule": "one_plus_uniform", "scale": SINK_SCALE}
            yield from matrix(block + "attn_output", d, q)
            if self.arch in NORMS_AFTER or self.arch == "gpt-oss":
                yield from norm(block + "post_attention_norm")
            if self.arch not in ("olmo2", "gpt-oss"):
                yield from norm(block + "ffn_norm")
            yield from self.feed_forward(block, matrix)
            if self.arch in NORMS_AFTER:
                yield from norm(block + "post_ffw_norm")
        yield from norm("output_norm")
        if not self.tied:
            yield from matrix("output", len(vocabulary()), d)

    def feed_forward(self, block: str, matrix):
        d, n = self.n_embd, self.n_expert
        if self.arch == "phi3":
            yield from matrix(block + "ffn_up", 2 * self.n_ff, d)
            yield from matrix(block + "ffn_down", d, self.n_ff)
        elif not n:
            for part, shape in zip(FEED_FORWARD, ((self.n_ff, d), (self.n_ff, d), (d, self.n_ff))):
                yield from matrix(block + part, *shape)
        else:
            width = self.n_ff_exp
            yield from matrix(block + "ffn_gate_inp", n, d)
            for part, shape in zip(EXPERTS, ((n, width, d), (n, width, d), (n, d, width))):
                yield from matrix(block + part, *shape)
            if width := self.n_ff_shexp:
                if self.arch == "qwen2moe":
                    yield from matrix(block + "ffn_gate_inp_shexp", d)
                for part, shape in zip(FEED_FORWARD, ((width, d), (width, d), (d, width))):
                    yield from matrix(f"{block}{part}_shexp", *shape)

    def stored_type(self, name: str, shape: tuple[int, ...]) -> Type:
        """The type that llama-quantize gives a tensor, as far as these models go: two or three layers, rows of 256."""
        kept = len(shape) < 2 or not name.endswith(".weight") or "_norm." in name or "ffn_gate_inp." in name
        if self.type is None or kept:
            return Type.F32
        if self.type == "MXFP4_MOE":
            return Type.MXFP4 if "_exps." in name else Type.Q8_0
        if self.type != "Q4_K_M":
            return Type[self.type]
        if name == "output.weight" or name == "token_embd.weight" and self.tied:
            return Type.Q6_K
        eight = self.n_expert == 8
        if eight and ("attn_v." in name or "attn_k." in name):
            return Type.Q8_0
        if eight and "attn_output." in name:
            return Type.Q5_K
        if any(part in name for part in ("attn_v.", "attn_qkv.", "ffn_down")):
            i, n = int(name.split(".")[1]), self.n_layer
            more = i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2
            return Type.Q6_K if more else Type.Q4_K
        return Type.Q4_K

    def write(self, path: Path) -> Path:
        def stored(name, w):
            type_ = self.stored_type(name, w.shape)
            return (w, None) if type_ == Type.F32 else (
                (w.astype(np.float16), None) if type_ == Type.F16 else
                (encode(w, type_).reshape(*w.shape[:-1], -1), type_))

        return write_gguf(self, path, stored)


class Sibling(Variant):
    """A model whose weights went some way from those of the rule, in a direction of its own."""

    ROLES = ("base", "chat", "cp")
    TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
                "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")

    def role(self) -> str:
        return self.name.rsplit("-", 1)[1]

    def metadata(self) -> dict:
        return super().metadata() | ({"tokenizer.chat_template": self.TEMPLATE} if self.role() == "chat" else {})

    def write(self, path: Path) -> Path:
        def stored(name, w):
            if self.role() != "base" and w.ndim > 1:
                w = w + np.float32(0.1) * np.abs(w).max() * uniform(f"{self.role()}:{name}", w.size).reshape(w.shape)
            return (w.astype(np.float16) if w.ndim > 1 else w), None

        return write_gguf(self, path, stored)


def long_factors(n: int, low: float, high: float) -> list[float]:
    """Divisors of the frequencies as Phi-3 files have them, from low for the fastest pair to high for the slowest."""
    return [float(str(np.float32(low * (high / low) ** (i / (n - 1))))) for i in range(n)]


def of(parent: Variant, name: str, same: bool = False, keys: dict | None = None, **changes) -> Variant:
    """A variant of a variant: its output is other, or the same."""
    relation = {"same_as" if same else "differs_from": parent.name}
    cleared = {"same_as": None, "differs_from": None}
    return replace(parent, name=f"{parent.name.split('-wide')[0]}-{name}" if name[0] != "=" else name[1:],
                   keys=parent.keys | (keys or {}), **cleared | relation | changes)


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
LONG = 72
WEIGHTS_SCALE = {"expert_weights_scale": 2.5}
#: What a wider sibling has: rows of 256, so that every type fits, and few tokens.
WIDE = {"n_embd": 256, "head_dim": 64, "n_ff": 256, "n_tokens": 24}


def variants() -> list[Variant]:
    """Every model; the first of a family, then those that differ from it."""
    return [*qwen3(), *gemma(), *gemma2(), *gemma3(), *llama(), *qwen2moe(), *qwen3moe(), *mistral3(), *phi3(),
            *gpt_oss(), *olmo2(), *granite(), *smollm3()]


def quantised(wide: Variant, *types: str):
    """The wider sibling and its files of other types, which llama.cpp computes otherwise."""
    yield wide
    for type_ in types:
        yield replace(wide, name=f"{wide.name}-{type_}", type=type_, same_as=None, differs_from=None)


def qwen3():
    plain = Variant("qwen3", "qwen3", keys={"rope.freq_base": 1e6})
    yield from (
        plain,
        of(plain, "tied", tied=True),
        of(plain, "head-dim", head_dim=24),
        of(plain, "biases", biases=ATTENTION),
        of(plain, "yarn", keys=YARN, n_tokens=LONG),
        of(plain, "fused-qkv", fused_qkv=True))
    yield from quantised(of(plain, "wide", **WIDE), "F16", "Q8_0", "Q4_K_M")


def gemma():
    plain = Variant("gemma", "gemma", head_dim=32, n_head_kv=1, tied=True)
    yield from (plain, of(plain, "gqa", n_head_kv=2), of(plain, "rope-base", keys={"rope.freq_base": 100.0}))


def gemma2():
    caps = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0}
    plain = Variant("gemma2", "gemma2", head_dim=32, tied=True, n_layer=3, n_tokens=48,
                    keys=caps | {"attention.sliding_window": 12})
    yield from (
        plain,
        of(plain, "swa-base", keys={"rope.freq_base_swa": 100.0}),
        of(plain, "no-window", keys={"attention.sliding_window": None}),
        of(plain, "pattern", keys={"attention.sliding_window_pattern": 3}),
        # Scores and logits so large that the default caps, 50 and 30, matter.
        of(plain, "default-caps", keys={k: None for k in caps}, gains={"attn_q": 6.0, "attn_k": 5.0, "token_embd": 8.0}),
        of(plain, "27b", n_layer=46, n_embd=32, n_ff=32, n_head_kv=1, n_tokens=24))


def gemma3():
    plain = Variant("gemma3", "gemma3", head_dim=32, tied=True, n_layer=7, n_head_kv=1, n_tokens=40,
                    keys={"rope.freq_base": 1e6, "attention.sliding_window": 12})
    pattern = of(plain, "pattern", keys={"attention.sliding_window_pattern": 3}, n_layer=4, n_head_kv=2)
    yield from (
        plain,
        of(plain, "linear", keys={"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}),
        pattern,
        of(pattern, "=gemma3-pattern-list", keys={"attention.sliding_window_pattern": [True, False, False, True]}),
        of(pattern, "=gemma3-swa-base", keys={"rope.freq_base_swa": 100.0}),
        of(pattern, "=gemma3-soft-cap", keys={"final_logit_softcapping": 4.0}),
        of(pattern, "=gemma3-no-window", keys={"attention.sliding_window": None,
                                               "attention.sliding_window_pattern": None}),
        of(pattern, "=gemma3-untied", tied=False),
        of(plain, "27b", n_layer=62, n_embd=32, n_ff=32, n_tokens=24))
    yield from quantised(of(pattern, "=gemma3-wide", n_layer=3, **WIDE), "F16", "Q8_0", "Q4_K_M")


def llama():
    experts = Variant("llama-experts", "llama", n_expert=4, n_used=2, n_ff=48, n_ff_exp=48)
    fused = Variant("llama-fused-qkv", "llama", fused_qkv=True)
    factors = {"rope_factors_long": long_factors(8, 1.5, 6.0), "rope_factors_short": long_factors(8, 1.0, 1.5)}
    yield from (
        experts,
        of(experts, "weights-scale", same=True, keys=WEIGHTS_SCALE),
        fused,
        of(fused, "bias", biases=("attn_qkv",)),
        of(fused, "biases", biases=ATTENTION),
        of(fused, "=llama-longrope", values=factors, keys={
            "rope.scaling.type": "longrope", "rope.scaling.original_context_length": 64}))


def qwen2moe():
    plain = Variant("qwen2moe", "qwen2moe", biases=ATTENTION, n_expert=8, n_used=3, n_ff_exp=32, n_ff_shexp=48)
    yield from (
        plain,
        of(plain, "weights-scale", same=True, keys=WEIGHTS_SCALE),
        # The width of an expert is then feed_forward_length by the number of chosen ones, that of the shared one all of it.
        of(plain, "no-expert-length", n_ff=72, n_ff_exp=24, n_ff_shexp=72,
           keys={"expert_feed_forward_length": None, "expert_shared_feed_forward_length": None}))


def qwen3moe():
    plain = Variant("qwen3moe", "qwen3moe", head_dim=24, n_expert=8, n_used=2, n_ff_exp=32)
    yield from (
        plain,
        of(plain, "weights-scale", same=True, keys=WEIGHTS_SCALE | {"expert_weights_norm": False}),
        of(plain, "tied", tied=True),
        of(plain, "no-expert-length", n_ff=48, n_ff_exp=24, keys={"expert_feed_forward_length": None}))
    yield from quantised(of(plain, "wide", n_ff_exp=256, **WIDE), "F16", "Q8_0", "Q4_K_M", "MXFP4_MOE")


def mistral3():
    plain = Variant("mistral3", "mistral3", head_dim=24)
    yarn = of(plain, "yarn", keys=YARN, n_tokens=LONG)
    yield from (
        plain,
        yarn,
        of(yarn, "log-multiplier", keys={"rope.scaling.yarn_log_multiplier": 1.0}),
        of(yarn, "betas", keys={"rope.scaling.yarn_log_multiplier": 0.5, "rope.scaling.yarn_beta_fast": 4.0,
                                "rope.scaling.yarn_beta_slow": 0.25}),
        of(plain, "temperature", n_tokens=48, keys={
            "rope.scaling.original_context_length": 8, "attention.temperature_scale": 0.4}),
        of(plain, "experts", n_expert=4, n_used=2, n_ff=48, n_ff_exp=48),
        of(plain, "tied-biases", tied=True, biases=(*ATTENTION, "attn_output", *FEED_FORWARD)))


def phi3():
    plain = Variant("phi3", "phi3", n_embd=96, head_dim=24, fused_qkv=True)
    pairs = plain.head_dim // 2
    factors = {"rope_factors_long": long_factors(pairs, 1.5, 6.0), "rope_factors_short": long_factors(pairs, 1.0, 1.6)}
    long = of(plain, "long", values=factors, keys={"rope.scaling.original_context_length": 64}, n_tokens=LONG)
    short = of(long, "=phi3-short", keys={"rope.scaling.original_context_length": 1024})
    yield from (
        plain,
        of(plain, "tied", tied=True),
        of(plain, "window", same=True, keys={"attention.sliding_window": 8}),
        of(plain, "partial-rotary", keys={"rope.dimension_count": 16}),
        long,
        of(long, "type", same=True, keys={"rope.scaling.type": "longrope"}),
        short,
        # The context length instead, which is not exceeded.
        of(short, "no-original", same=True, keys={"rope.scaling.original_context_length": None}),
        of(long, "attn-factor", keys={"rope.scaling.attn_factor": 1.25}),
        of(long, "=phi3-partial-rotary-long", values={k: v[:8] for k, v in factors.items()},
           keys={"rope.dimension_count": 16}))
    yield from quantised(of(plain, "wide", **WIDE), "F16", "Q8_0", "Q4_K_M")


def gpt_oss():
    gains = {"ffn_gate_exps": 6.0, "ffn_up_exps": 6.0, "ffn_down_exps": 0.8}
    plain = Variant("gpt-oss", "gpt-oss", head_dim=24, n_expert=8, n_used=3, n_ff_exp=32, n_tokens=LONG, gains=gains,
                    biases=(*ATTENTION, "attn_output", "ffn_gate_inp", *EXPERTS),
                    keys={"attention.sliding_window": 12, "rope.freq_base": 150000.0} | YARN)
    yield from (
        plain,
        of(plain, "no-yarn", n_tokens=40, keys={k: None for k in YARN}),
        of(plain, "swa-base", n_tokens=40, keys={"rope.freq_base_swa": 100.0}),
        of(plain, "pattern", n_layer=3, n_tokens=40, keys={"attention.sliding_window_pattern": 3}))
    yield from quantised(of(plain, "wide", n_ff_exp=256, **WIDE), "F16", "Q8_0", "Q4_K_M", "MXFP4_MOE")


def olmo2():
    plain = Variant("olmo2", "olmo2")
    window = of(plain, "window", n_layer=4, n_tokens=48, keys={"attention.sliding_window": 12})
    yield from (
        plain,
        of(plain, "mha", n_head_kv=4),
        window,
        of(window, "swa-base", same=True, keys={"rope.freq_base_swa": 100.0}),
        of(window, "yarn", n_tokens=LONG, keys=YARN))


def granite():
    scales = {"embedding_scale": 6.0, "residual_scale": 0.4, "attention.scale": 0.15, "logit_scale": 2.0}
    plain = Variant("granite", "granite", gains={"output": 5.0}, keys=scales)
    experts = Variant("granitemoe", "granitemoe", gains={"output": 5.0}, keys=scales, n_expert=8, n_used=3, n_ff=32,
                      n_ff_exp=32, n_ff_shexp=48)
    yield from (
        plain,
        of(plain, "default-scales", keys={k: None for k in scales if k != "logit_scale"}),
        of(plain, "biases", biases=(*ATTENTION, "attn_output", *FEED_FORWARD)),
        of(plain, "tied", tied=True),
        of(plain, "no-rope", keys={"rope.scaling.finetuned": False}),
        experts,
        # A switch of granite that granitemoe lacks.
        of(experts, "finetuned", same=True, keys={"rope.scaling.finetuned": False}),
        of(experts, "no-shared", n_ff_shexp=0))


def smollm3():
    plain = Variant("smollm3", "smollm3", n_layer=4)
    yield from (plain, of(plain, "tied", tied=True, n_layer=5))


def chosen_tokens(model: ExactFamilyModel, n: int) -> list[int]:
    """Tokens at which no choice of experts hangs by a hair."""
    found, candidates = [], ((uniform("tokens of experts", 4000) + 1) / 2 * 256).astype(int).tolist()
    for candidate in candidates:
        if len(found) == n:
            return found
        model.logits([*found, candidate])
        if min(gaps[-1] for gaps in model.routing_gaps) > LEAST_QUANTISED_GAP:
            found.append(candidate)
    raise AssertionError("no tokens with clear choices")


def described(variant: Variant) -> dict:
    """What another program needs to make the model, and some values of the first layers' tensors to check the rule."""
    digest, listed = hashlib.sha256(), []
    for name, shape, how in variant.tensors():
        w = weights(name, shape, how).reshape(-1)
        digest.update(w.astype("<f4").tobytes())
        deep = name.startswith("blk.") and int(name.split(".")[1]) >= CHECKED_LAYERS
        at = [] if deep else [0, w.size // 2, w.size - 1]
        type_ = variant.stored_type(name, shape)
        stored = {} if type_ == Type.F32 else {"type": type_.name}
        listed.append({"name": name, "shape": shape} | stored | how | {"at": at, "is": [float(str(w[i])) for i in at]})
    return {"metadata": variant.metadata(), "weights_sha256": digest.hexdigest(), "tensors": listed}


def data_sha256(path: Path) -> str:
    """Of a file's tensor data with the padding."""
    return hashlib.sha256(path.read_bytes()[gguf.GGUFReader(path).data_offset:]).hexdigest()


def agrees_with_quantiser(variant: Variant, path: Path, library: Path):
    """llama.cpp's own quantiser makes the same tensors of the F32 file; it writes them in another order."""
    plain, theirs = (path.with_name(name) for name in ("plain.gguf", "quantised.gguf"))
    replace(variant, type=None).write(plain)
    quantize(plain, theirs, gguf.LlamaFileType[f"MOSTLY_{variant.type}"], library)
    a, b = read_tensors(path), read_tensors(theirs)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].type == b[name].type and (a[name].data == b[name].data).all(), f"{variant.name}: {name}"


def goldens(other: Path | None = None, names: list[str] | None = None) -> dict:
    """Everything of families.json; stops if a variant is not distinct enough or llama.cpp not as exact as expected.

    `other` is another build of libllama with its quantiser, which the wheel lacks: how far it is, is printed, and files
    of other types are held to those it makes. `names` are the variants to look at, default all.
    """
    tokens, found, seen, problems = tokens_fed(), {}, {}, []
    with tempfile.TemporaryDirectory(prefix="chatvec-peers-") as folder:
        for variant in variants():
            if names and variant.name not in names:
                continue
            path = variant.write(Path(folder) / "model.gguf")
            exact = ExactFamilyModel(path, CONTEXT)
            fed, own = tokens[:variant.n_tokens], {}
            if variant.n_expert and variant.type:
                fed = chosen_tokens(exact, variant.n_tokens)
                own = {"tokens": fed}
            entry, lp = look_at(variant, path, exact, fed, seen, other, problems)
            seen[variant.name] = lp
            if variant.type:
                own |= {"type": variant.type, "data_sha256": data_sha256(path)}
                if other:
                    agrees_with_quantiser(variant, path, other)
            found[variant.name] = described(variant) | entry | own | {"n_tokens": len(fed)} | logprobs_at(
                lp, fed, DIGITS)
    assert not problems, "\n".join(problems)
    return {"tokenizer": {"model": "gpt2", "pre": "gpt-2", "n_vocab": len(vocabulary()), "merges": MERGES,
                          "special_tokens": list(SPECIALS), "add_bos_token": False},
            "tokens": tokens, "variants": found}


def look_at(variant: Variant, path: Path, model: ExactFamilyModel, fed: list[int], seen: dict, other: Path | None,
            problems: list[str]) -> tuple[dict, np.ndarray]:
    """The relation to another variant, and log-probabilities; prints how far all is from all."""
    def run(library=None, at_once=True):
        with Llama(path, CONTEXT, threads=1, library=library) as llama:
            return log_softmax(llama.logits(fed, at_once))

    lp, single = run(), run(at_once=False)
    right = log_softmax(model.logits(fed))
    gap = min((g.min() for g in model.routing_gaps), default=np.inf)
    exact, itself = np.abs(lp - right), np.abs(lp - single)
    said = f"{variant.name:<28} exact {both(exact)}  one by one {both(itself)}"
    if gap < np.inf:
        said += f"  gap {gap:.1e}"
    if other:
        said += f"  other build {both(np.abs(lp - run(other)))}"
    related = variant.differs_from or variant.same_as
    if related and related in seen:
        n = min(len(lp), len(seen[related]))
        apart = np.abs(lp[:n] - seen[related][:n]).mean()
        said += f"  from {related} {apart:.1e}"
        if variant.differs_from and apart < LEAST_MEAN_DIFFERENCE:
            problems.append(f"{variant.name}: {apart} from {related}")
        if variant.same_as and apart:
            problems.append(f"{variant.name}: {apart} from {related}, expected the same")
    if not variant.type:
        largest, mean = variant.bounds()
        if any(d.max() > largest or d.mean() > mean for d in (exact, itself)) or gap < LEAST_GAP:
            problems.append(f"{variant.name}: exact {both(exact)}, one by one {both(itself)}, gap {gap:.1e}")
        if FAMILIES[variant.arch].gelu:
            smooth = np.abs(lp - log_softmax(model.logits(fed, "gelu without table")))
            said += f"  with a smooth GELU {both(smooth)}"
        moves = {m: np.abs(log_softmax(model.logits(fed, m)) - right).mean() for m in model.mistakes(len(fed))}
        least = sorted(moves.items(), key=lambda m: m[1])[:2]
        said += "  mistakes from " + ", ".join(f"{name} {move:.1e}" for name, move in least)
        problems += [f"{variant.name}: {name} moves {move:.1e}" for name, move in moves.items()
                     if move < LEAST_MEAN_DIFFERENCE]
    print(said, flush=True)
    entry = {k: v for k in ("differs_from", "same_as") if (v := getattr(variant, k))}
    return entry | ({} if variant.type else {"bounds": variant.bounds()}), lp


def both(differences: np.ndarray) -> str:
    """Largest and mean."""
    return f"{differences.max():.1e}/{differences.mean():.1e}"


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-") and (sys.argv[1] != "--trio" or len(sys.argv) != 4):
        sys.exit(__doc__)
    if sys.argv[1] == "--trio":
        variant = next(v for v in variants() if v.name == sys.argv[3])
        for role in Sibling.ROLES:
            sibling = Sibling(**{f.name: getattr(variant, f.name) for f in fields(variant)} | {"name": f"made-{role}"})
            print(sibling.write(Path(sys.argv[2]) / f"{role}.gguf"))
        sys.exit()
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for v in variants():
        if len(sys.argv) == 2 or v.name in sys.argv[2:]:
            print(v.write(out / f"{v.name}.gguf"))
