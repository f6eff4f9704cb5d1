"""A reader of patches in numpy, written from the first page of docs/PATCH.md, and nothing of the crate."""

import functools
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import zstandard
from blake3 import blake3

from ggml_codec import decode, encode
from gguf_files import F32, Tensor, read_tensors

#: What may stand behind the name of a tensor.
PARTS = (".svd_a.zstd", ".svd_b.zstd", ".svd_d", ".lora_a", ".lora_b", ".rows", ".special_rows", ".base_rows")
#: Tensors whose rows belong to tokens.
EMBEDDINGS, OUTPUT = "token_embd.weight", "output.weight"


class Refused(Exception):
    """A patch that a reader refuses."""


class File:
    """A GGUF file: values by key, tensors, tokens."""

    def __init__(self, path: Path):
        self.path, self.tensors = path, read_tensors(path)
        self.reader = gguf.GGUFReader(path)
        self.values = {f.name: f.contents() for f in self.reader.fields.values()}
        self.tokens: list[str] = self.values["tokenizer.ggml.tokens"]
        self.at = {text: i for i, text in enumerate(self.tokens)}
        self.types = dict(zip(self.tokens, self.values["tokenizer.ggml.token_type"]))

    def names_of(self, patch: "Patch") -> list[str]:
        """This file's tokens under the names that a patch has given them."""
        return [text if (new := patch.renames.get(text)) is None or new in self.at else new for text in self.tokens]

    def places(self, patch: "Patch") -> tuple[np.ndarray, np.ndarray]:
        """Rows of this file and of a patch that belong to tokens of the same text."""
        both = [(i, patch.at[text]) for i, text in enumerate(self.names_of(patch)) if text in patch.at]
        return tuple(np.array(both, dtype=int).reshape(-1, 2).T)


def need(holds: bool, what: str):
    if not holds:
        raise Refused(what)


class Patch(File):
    """A patch, as the page describes it."""

    def __init__(self, path: Path):
        super().__init__(path)
        need(self.values["general.type"] == "chat-vector", "no patch")
        need(self.values["chatvec.patch.version"] <= 2, "a version that is not known")
        self.names: list[str] = self.values["chatvec.patch.tensors"]
        self.logarithms = set(self.values.get("chatvec.patch.logarithms", ()))
        renamed = zip(self.values.get("chatvec.patch.renamed_from", ()), self.values.get("chatvec.patch.renamed_tokens", ()))
        self.renames = {old: self.tokens[i] for old, i in renamed}
        for name in self.names:
            is_there = any(name + part in self.tensors for part in ("", *PARTS))
            is_decay = name.startswith("blk.") and name.endswith(".ssm_a")
            need(not is_there or is_decay == (name in self.logarithms), f"{name}: which differences?")
        shapes = np.reshape(self.values.get("chatvec.patch.svd.shapes", ()), (-1, 2))
        self.svd_shapes = dict(zip(self.values.get("chatvec.patch.svd.tensors", ()), shapes.tolist()))
        for name in self.tensors:
            part = next((p for p in PARTS if name.endswith(p)), "")
            need(name.removesuffix(part) in self.names, f"{name} is not of the vector")

    def part(self, name: str) -> np.ndarray | None:
        """Weights of a tensor of the patch, which are numbers."""
        if name not in self.tensors:
            return None
        weights = decode(self.tensors[name])
        need(bool(np.isfinite(weights).all()), f"{name} holds NaN or infinity")
        return weights

    def pair(self, a: str, b: str) -> bool:
        need((a in self.tensors) == (b in self.tensors), f"{a} without {b}, or the other way round")
        return a in self.tensors

    def token_rows(self, name: str, key: str) -> tuple[list[int], np.ndarray] | None:
        """Token ids and rows of one of the tensors that hold rows."""
        rows = self.part(name)
        if rows is None:
            return None
        ids = self.values.get(key, [])
        need(len(ids) == len(rows), f"{key} is not as long as {name}")
        need(bool((np.diff(ids) > 0).all()) and all(i < len(self.tokens) for i in ids), f"{key} does not ascend")
        return ids, rows

    @functools.cache
    def tau(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """τ of a tensor of this shape, the row length last: dense, decomposition, rows, factors, in this order."""
        tau = self.part(name)
        tau = np.zeros(shape, np.float32) if tau is None else tau.copy()
        need(tau.shape == shape, f"{name} has another shape than the model's")
        need(self.pair(f"{name}.svd_a.zstd", f"{name}.svd_d") == self.pair(f"{name}.svd_b.zstd", f"{name}.svd_d")
             == (name in self.svd_shapes), f"decomposition of {name}")
        if name in self.svd_shapes:
            d, a, b = self.part(f"{name}.svd_d"), *(self.unpacked(f"{name}.svd_{x}.zstd") for x in "ab")
            row_len, n_rows = self.svd_shapes[name]
            need((n_rows, row_len) == shape, f"decomposition of {name}")
            need((a.size, b.size) == (d.size * row_len, d.size * n_rows), f"rows of {name}'s decomposition")
            a, b, total = d[:, None] * a.reshape(-1, row_len), b.reshape(-1, n_rows), np.zeros(shape, np.float32)
            for k in range(d.size):
                total += b[k, :, None] * a[k]
            tau += total
        if found := self.token_rows(f"{name}.rows", f"chatvec.patch.rows.{name}"):
            need(found[1].shape[1] == shape[-1], f"{name}.rows has another row length")
            tau[found[0]] += found[1]
        if self.pair(f"{name}.lora_a", f"{name}.lora_b"):
            a, b = self.part(f"{name}.lora_a"), self.part(f"{name}.lora_b")
            need((*a.shape[:-2], b.shape[-2], a.shape[-1]) == shape, f"factors of {name}")
            need(b.shape[-1] == a.shape[-2], f"ranks of {name}")
            for k in range(a.shape[-2]):
                tau += b[..., :, k, None] * a[..., k, None, :]
        assert tau.dtype == np.float32
        return tau

    def unpacked(self, name: str) -> np.ndarray:
        """Bytes with a sign, as f32, out of zstd frames one behind the other."""
        left, out = self.tensors[name].data.tobytes(), b""
        try:
            while left:
                size, frame = zstandard.frame_content_size(left), zstandard.ZstdDecompressor().decompressobj()
                content = frame.decompress(left)
                need(frame.eof and len(content) == size, f"{name} has a frame without its content's size")
                out, left = out + content, frame.unused_data
        except zstandard.ZstdError as e:
            raise Refused(f"{name}: {e}") from e
        return np.frombuffer(out, np.int8).astype(np.float32)

    def rows_by_text(self, name: str, kind: str) -> dict[str, np.ndarray]:
        found = self.token_rows(f"{name}.{kind}_rows", f"chatvec.patch.{kind}_tokens")
        return {self.tokens[i]: row for i, row in zip(*found)} if found else {}

    def wrong_hashes(self, base: File, chat: File) -> Iterator[str]:
        """What is not as its hash says: tensors, the header, and the files the patch was made of."""
        for t, said in zip(self.tensors.values(), self.values["chatvec.blake3"], strict=True):
            if blake3(t.data.tobytes()).hexdigest() != said:
                yield t.name
        last, said = self.reader.tensors[-1].field, self.reader.fields["chatvec.header_blake3"]
        header = bytearray(self.path.read_bytes()[:last.offset + sum(p.nbytes for p in last.parts)])
        at = said.offset + sum(p.nbytes for p in said.parts[:-1])
        header[at:at + 64] = b"0" * 64
        if blake3(header).hexdigest() != said.contents():
            yield "header"
        for file, key in ((base, "base"), (chat, "chat")):
            for name, digest in zip(self.names, self.values[f"chatvec.patch.{key}_blake3"], strict=True):
                if blake3(file.tensors[name].data.tobytes()).hexdigest() != digest:
                    yield f"{key}'s {name}"


class Fold:
    """How a file folds a tensor: w·D·H."""

    def __init__(self, block: int, signs: np.ndarray | None):
        self.block, self.signs = block, signs

    @classmethod
    def of(cls, file: File, name: str, row_len: int) -> "Fold | None":
        get = lambda word, other=None: file.values.get(f"prism.hadamard.{word}", other)
        if name not in [*get("weight_names", ()), *get("inverse_weight_names", ())]:
            return None
        need(get("version") in (1, 2) and get("transform") == "normalized-sylvester-walsh-hadamard", "a fold that is not known")
        signs = None
        if get("sign_mode") == "explicit":
            ends = np.cumsum(get("sign_widths")).tolist()
            parts = dict(zip(get("sign_widths"), np.split(np.array(get("sign_values"), np.float32), ends[:-1])))
            signs = parts[row_len]
        return cls(get("block_size"), signs)

    def flip(self, rows: np.ndarray) -> np.ndarray:
        return rows if self.signs is None else rows * self.signs

    def rotate(self, rows: np.ndarray) -> np.ndarray:
        """Sums and differences of halves of 1, 2, 4 … weights, then one product with 1/√block: all in f32."""
        out, half = rows.reshape(-1, self.block).copy(), 1
        while half < self.block:
            pairs = out.reshape(-1, 2, half)
            out = np.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), axis=1)
            half *= 2
        return (out.reshape(rows.shape) * (np.float32(1) / np.sqrt(np.float32(self.block)))).astype(np.float32)

    def same(self, other: "Fold | None") -> bool:
        plus = lambda signs: signs is None or bool((signs == 1).all())
        return other is not None and self.block == other.block and (
            plus(self.signs) and plus(other.signs) or np.array_equal(self.signs, other.signs))


def turned(rows: np.ndarray, own: Fold | None, other: Fold | None) -> np.ndarray:
    """Rows from the coordinates of one fold in those of another."""
    if own is other or own is not None and own.same(other):
        return rows
    if own is not None:
        rows = own.flip(own.rotate(rows))
    return rows if other is None else other.rotate(other.flip(rows))


def untrained(model: File, patch: Patch, name: str) -> list[str]:
    """The chat's special tokens on which this tensor of the model was never trained."""
    base, special = patch.rows_by_text(name, "base"), patch.rows_by_text(name, "special")
    weights, at = decode(model.tensors[name]), {text: i for i, text in enumerate(model.names_of(patch))}
    own, other = (Fold.of(file, name, weights.shape[-1]) for file in (patch, model))
    rows = {text: turned(row, own, other).astype(np.float64) for text, row in base.items() if text in at}
    far = {text: float(np.linalg.norm(weights[at[text]].astype(np.float64) - row)) for text, row in rows.items()}
    # The median: of an even number of tokens, the upper of the two in the middle.
    ordinary = sorted(far[text] for text in far if text not in special)
    return [text for text in special if text in far and far[text] <= 0.1 * ordinary[len(ordinary) // 2]]


def applied(model: File, patches: list[tuple[Patch, float]], special: bool) -> dict[str, Tensor]:
    """model + Σ ratio · τ, and with `special` the first patch's rows of untrained special tokens.

    The sum over patches comes first, then it is added to the model. The model is no quantised one.
    """
    for patch, _ in patches:
        need(patch.values["general.architecture"] == model.values["general.architecture"], "no siblings")
    taken = untrained(model, patches[0][0], EMBEDDINGS) if special else []
    out = {}
    for name, tensor in model.tensors.items():
        weights = decode(tensor).copy()
        delta = np.zeros(tensor.shape, np.float32)
        for patch, ratio in patches:
            source = EMBEDDINGS if name == OUTPUT and OUTPUT not in patch.names else name
            own, other = Fold.of(patch, source, tensor.row_len), Fold.of(model, name, tensor.row_len)
            if source not in (EMBEDDINGS, OUTPUT):
                delta += np.float32(ratio) * turned(patch.tau(source, tensor.shape), own, other)
                continue
            here, there = model.places(patch)
            tau = turned(patch.tau(source, (len(patch.tokens), tensor.row_len)), own, other)
            delta[here] += np.float32(ratio) * tau[there]
        if any(name in patch.logarithms for patch, _ in patches):
            need(bool((weights != 0).all()), f"{name} of the model has a 0")
            weights = (weights.astype(np.float64) * np.exp(delta.astype(np.float64))).astype(np.float32)
        else:
            weights += delta
        if special and name in (EMBEDDINGS, OUTPUT):
            rows, base = (patches[0][0].rows_by_text(name, which) for which in ("special", "base"))
            # The embeddings say which tokens are; a row of the output is taken if it was not trained either, and no row that
            # the chat left where the base has it.
            at = {text: i for i, text in enumerate(model.names_of(patches[0][0]))}
            own, other = (Fold.of(file, name, tensor.row_len) for file in (patches[0][0], model))
            for text in set(taken) & set(untrained(model, patches[0][0], name)):
                if not np.array_equal(rows[text], base[text]):
                    weights[at[text]] = turned(rows[text], own, other)
        out[name] = Tensor(name, tensor.shape, F32, encode(weights, F32))
    return out
