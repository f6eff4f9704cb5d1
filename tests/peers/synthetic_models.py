"""Small models of fixed weights that differ in one thing each, and what llama.cpp computes with them.

    python synthetic_models.py OUTDIR

writes the GGUF files; `infer_goldens.py synthetic` writes fixtures/infer/synthetic.json. Weights come from a rule that
takes a few lines in any language (`uniform`, described in fixtures/infer/README.md), so no weights are committed.
"""

import hashlib
import math
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import gguf
import numpy as np

from exact_forward import ExactModel
from libllama import Llama, log_softmax
from synthetic import byte_symbols

MASK = (1 << 64) - 1
#: Between llama.cpp and exact arithmetic, in log-probabilities; F32 weights round no activations.
TOLERANCE = 1e-4
#: How far at least a variant is from the one it differs from: a program that ignores the difference cannot pass.
LEAST_MEAN_DIFFERENCE = 100 * TOLERANCE
N_TOP = 8
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ["Ġ t"]
#: Parts of the way through the tokens.
KEPT_POSITIONS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
CONTEXT = 512

NORM_SCALE = 0.1
SCALES = {"token_embd": 0.4, "output": 0.15, "attn_q": 0.25, "attn_k": 0.25, "attn_v": 0.2, "attn_output": 0.2,
          "ffn_gate": 0.2, "ffn_up": 0.2, "ffn_down": 0.2}
BIAS_SCALE = 0.5


def fnv1a(name: str) -> int:
    """64-bit FNV-1a of the name's bytes."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 & MASK
    return h


def uniform(name: str, n: int) -> np.ndarray:
    """n numbers in [-1, 1): the upper 24 bits of splitmix64, seeded by the name."""
    with np.errstate(over="ignore"):
        z = np.uint64(fnv1a(name)) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)


@dataclass
class Variant:
    """One model: its shape, the keys that set it apart, and how many tokens it is fed."""

    name: str
    arch: str = "llama"
    n_head_kv: int = 4
    head_dim: int = 32
    tied: bool = False
    biases: tuple[str, ...] = ()
    rope_freqs: list[float] | None = None
    #: Keys without the architecture's prefix; None takes a key away.
    keys: dict = field(default_factory=dict)
    n_tokens: int = 40
    #: The variant whose output must be other, or the one whose output must be the same.
    differs_from: str | None = None
    same_as: str | None = None

    N_EMBD, N_HEAD, N_FF, N_LAYER = 128, 4, 192, 2

    def metadata(self) -> dict:
        """All keys in file order but the tokenizer's."""
        own = {
            "context_length": CONTEXT, "embedding_length": self.N_EMBD, "block_count": self.N_LAYER,
            "feed_forward_length": self.N_FF, "attention.head_count": self.N_HEAD,
            "attention.head_count_kv": self.n_head_kv, "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.dimension_count": self.head_dim} | self.keys
        return {"general.architecture": self.arch, "general.name": self.name} | {
            f"{self.arch}.{k}": v for k, v in own.items() if v is not None}

    def tensors(self):
        """Name, shape (row length last) and rule of each tensor in file order."""
        q, kv = self.N_HEAD * self.head_dim, self.n_head_kv * self.head_dim

        def matrix(name, rows, row_len):
            part = name.rsplit(".", 1)[-1]
            yield f"{name}.weight", (rows, row_len), {"rule": "uniform", "scale": SCALES[part]}
            if part in self.biases:
                yield f"{name}.bias", (rows,), {"rule": "uniform", "scale": BIAS_SCALE}

        def norm(name):
            yield f"{name}.weight", (self.N_EMBD,), {"rule": "one_plus_uniform", "scale": NORM_SCALE}

        yield from matrix("token_embd", len(vocabulary()), self.N_EMBD)
        if self.rope_freqs:
            yield "rope_freqs.weight", (self.head_dim // 2,), {"rule": "values", "values": self.rope_freqs}
        for i in range(self.N_LAYER):
            yield from norm(f"blk.{i}.attn_norm")
            yield from matrix(f"blk.{i}.attn_q", q, self.N_EMBD)
            yield from matrix(f"blk.{i}.attn_k", kv, self.N_EMBD)
            yield from matrix(f"blk.{i}.attn_v", kv, self.N_EMBD)
            yield from matrix(f"blk.{i}.attn_output", self.N_EMBD, q)
            yield from norm(f"blk.{i}.ffn_norm")
            yield from matrix(f"blk.{i}.ffn_gate", self.N_FF, self.N_EMBD)
            yield from matrix(f"blk.{i}.ffn_up", self.N_FF, self.N_EMBD)
            yield from matrix(f"blk.{i}.ffn_down", self.N_EMBD, self.N_FF)
        yield from norm("output_norm")
        if not self.tied:
            yield from matrix("output", len(vocabulary()), self.N_EMBD)


def vocabulary() -> list[str]:
    """A byte-level vocabulary of 260 tokens: the bytes, one merged pair, and special tokens."""
    return [*byte_symbols(), *(m.replace(" ", "") for m in MERGES), *SPECIALS]


def llama3_factors(head_dim: int, base: float, original: int) -> list[float]:
    """Divisors of the frequencies as Llama 3.1 files have them: factor 8, low 1, high 4."""
    found = []
    for i in range(head_dim // 2):
        wave_len = 2 * math.pi * base ** (2 * i / head_dim)
        smooth = min(1.0, max(0.0, (original / wave_len - 1) / (4 - 1)))
        found.append(float(str(np.float32(1 / ((1 - smooth) / 8 + smooth)))))
    return found


def variants() -> list[Variant]:
    """Every model; each differs in one thing from an earlier one."""
    attention = ("attn_q", "attn_k", "attn_v")
    plain = Variant("llama")
    far = Variant("llama-long", n_tokens=160)
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    qwen2 = Variant("qwen2", "qwen2", n_head_kv=2, biases=attention, keys={"rope.freq_base": 1e6})

    def of(parent: Variant, name: str, same: bool = False, keys: dict | None = None, **changes) -> Variant:
        relation = {"same_as" if same else "differs_from": parent.name}
        cleared = {"same_as": None, "differs_from": None}
        return replace(parent, name=name, keys=parent.keys | (keys or {}), **cleared | relation | changes)

    base = of(far, "llama-rope-base", keys={"rope.freq_base": 500000.0})
    scaled = of(far, "llama-rope-linear", keys=linear)
    stretched = of(far, "llama-rope-yarn", keys=yarn)
    wide = of(stretched, "llama-rope-yarn-wide", keys={"rope.scaling.original_context_length": CONTEXT})
    qwen2_far = replace(qwen2, name="qwen2-long", n_tokens=300)
    return [
        plain,
        of(plain, "llama-no-head-count-kv", same=True, keys={"attention.head_count_kv": None}),
        of(plain, "llama-no-rope-dimension-count", same=True, keys={"rope.dimension_count": None}),
        of(plain, "llama-attention-scale", same=True, keys={"attention.scale": 0.5}),
        of(plain, "llama-gqa", n_head_kv=1),
        of(plain, "llama-tied", tied=True),
        of(plain, "llama-epsilon", keys={"attention.layer_norm_rms_epsilon": 1e-2}),
        of(plain, "llama-head-dim", head_dim=48, keys={"attention.key_length": 48, "attention.value_length": 48}),
        of(plain, "llama-attention-biases", biases=(*attention, "attn_output")),
        of(plain, "llama-biases", biases=(*attention, "attn_output", "ffn_gate", "ffn_up", "ffn_down")),
        far,
        base,
        of(base, "llama-rope-freqs", rope_freqs=llama3_factors(32, 500000.0, 64)),
        scaled,
        of(scaled, "llama-rope-factor-alone", same=True, keys={"rope.scaling.type": None}),
        of(scaled, "llama-rope-scale-linear", same=True, keys={
            "rope.scaling.type": None, "rope.scaling.factor": None, "rope.scale_linear": 4.0}),
        of(far, "llama-rope-none", same=True, keys=linear | {"rope.scaling.type": "none"}),
        stretched,
        wide,
        of(wide, "llama-rope-yarn-no-original", same=True, keys={"rope.scaling.original_context_length": None}),
        of(stretched, "llama-rope-yarn-betas", same=True, keys={
            "rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_beta_slow": 2.0}),
        of(stretched, "llama-rope-yarn-attn-factor", keys={"rope.scaling.attn_factor": 0.7}),
        of(stretched, "llama-rope-yarn-freqs", rope_freqs=llama3_factors(32, 10000.0, 64)),
        of(far, "llama-rope-attn-factor", keys={"rope.scaling.attn_factor": 0.7}),
        qwen2,
        of(qwen2, "qwen2-no-biases", biases=()),
        of(qwen2, "qwen2-tied", tied=True),
        of(qwen2, "qwen2-output-bias", biases=(*attention, "output")),
        qwen2_far,
        of(qwen2_far, "qwen2-rope-yarn", keys=yarn),
    ]


def weights(name: str, shape: tuple[int, ...], how: dict) -> np.ndarray:
    """A tensor's values by its rule, all in f32."""
    if how["rule"] == "values":
        return np.array(how["values"], dtype=np.float32).reshape(shape)
    u = np.float32(how["scale"]) * uniform(name, math.prod(shape)).reshape(shape)
    return u + np.float32(1) if how["rule"] == "one_plus_uniform" else u


def write_gguf(variant: Variant, path: Path, stored=lambda _name, w: (w, None)) -> Path:
    """The model as a file. `stored` gives a tensor's rows as they are kept, and their type if it is not the array's."""
    writer = gguf.GGUFWriter(path, variant.arch)
    add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
           list: writer.add_array}
    for key, value in variant.metadata().items():
        if key != "general.architecture":
            add[type(value)](key, value)
    tokens = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
    writer.add_token_types([control if t in SPECIALS else normal for t in tokens])
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(tokens.index(SPECIALS[-1]))
    writer.add_add_bos_token(False)
    for name, shape, how in variant.tensors():
        rows, type_ = stored(name, weights(name, shape, how))
        writer.add_tensor(name, rows, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokens_fed() -> list[int]:
    """The tokens, of which every variant is fed the first few."""
    return ((uniform("tokens", 300) + 1) / 2 * 256).astype(int).tolist()


def described(variant: Variant, tensors: list) -> dict:
    """What another program needs to make the model, and five values of each tensor to check its rule."""
    digest, listed = hashlib.sha256(), []
    for name, shape, how in tensors:
        w = weights(name, shape, how).reshape(-1)
        digest.update(w.astype("<f4").tobytes())
        at = [0, 1, 2, w.size // 2, w.size - 1]
        # Shortest decimals that give the f32 back.
        listed.append({"name": name, "shape": shape} | how | {"at": at, "is": [float(str(w[i])) for i in at]})
    return {"metadata": variant.metadata(), "weights_sha256": digest.hexdigest(), "tensors": listed}


def goldens() -> dict:
    """Everything of synthetic.json; stops if a variant is not distinct enough or llama.cpp is not as exact as expected."""
    tokens, found, seen = tokens_fed(), {}, {}
    with tempfile.TemporaryDirectory(prefix="chatvec-peers-") as folder:
        for variant in variants():
            path = write_gguf(variant, Path(folder) / f"{variant.name}.gguf")
            fed = tokens[:variant.n_tokens]
            with Llama(path, CONTEXT, threads=1) as llama:
                lp = log_softmax(llama.logits(fed))
                single = log_softmax(llama.logits(fed, at_once=False))
            exact = np.abs(lp - log_softmax(ExactModel(path).logits(fed))).max()
            itself = np.abs(lp - single).max()
            seen[variant.name] = lp
            other = variant.differs_from or variant.same_as
            apart = np.abs(lp - seen[other][:len(lp)]).mean() if other else None
            print(f"{variant.name:<32} exact {exact:.1e} one by one {itself:.1e}"
                  + (f"  from {other} {apart:.1e}" if other else ""), flush=True)
            assert exact < TOLERANCE and itself < TOLERANCE
            assert not variant.differs_from or apart > LEAST_MEAN_DIFFERENCE, "too close to tell apart"
            assert not variant.same_as or apart == 0, "llama.cpp was expected to take both alike"
            found[variant.name] = described(variant, list(variant.tensors())) | {
                k: v for k in ("differs_from", "same_as") if (v := getattr(variant, k))} | {
                "n_tokens": len(fed)} | logprobs_at(lp, fed)
    return {"tokenizer": {"model": "gpt2", "pre": "gpt-2", "n_vocab": len(vocabulary()), "merges": MERGES,
                          "special_tokens": list(SPECIALS), "add_bos_token": False},
            "tokens": tokens, "variants": found}


def logprobs_at(lp: np.ndarray, fed: list[int], digits: int = 6) -> dict:
    """Of every next token, and the likeliest tokens at some positions, with so many significant digits."""
    last = len(fed) - 1
    positions = [int(part * last) for part in KEPT_POSITIONS]
    rounded = np.vectorize(lambda x: float(f"{x:.{digits}g}"))
    ids = np.argsort(-lp[positions], axis=-1, kind="stable")[:, :N_TOP]
    return {"next": rounded(lp[np.arange(last), fed[1:]]).tolist(), "positions": positions, "top_ids": ids.tolist(),
            "top_logprobs": rounded(np.take_along_axis(lp[positions], ids, -1)).tolist()}


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for v in variants():
        print(write_gguf(v, out / f"{v.name}.gguf"))
