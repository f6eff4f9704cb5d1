"""Holds merges of models with different vocabularies against numpy, which matches rows by the texts of their tokens.

    python vocabulary.py [--chatvec PATH] [--models-dir FOLDER] [--goldens]

The bundled trio is changed by rule (see VARIANTS): tokens in another order, added, padded, left out. Every variant is
merged under every policy, and every tensor is compared with numpy's, bit by bit. Then the variants that lose no token
answer the prompts in real llama.cpp: a vocabulary in another order is the same model, so they have to behave as the
merge of the trio itself does. Ends with 1 if anything differs. With --goldens only the hashes of numpy's tensors are
written to fixtures/merge/vocabulary.json, which `cargo test` reads; that needs no chatvec.
"""

import hashlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from gguf_files import F16, F32, Tensor, read_tensors
from tool import ROOT, Chatvec, ToolError, Trio, arguments, find_trio, work_folder

BY_TOKEN = ("token_embd.weight", "output.weight")
NORMAL, CONTROL, UNUSED = 1, 3, 5
UNTRAINED = 0.1
IDS = re.compile(r"tokenizer\.ggml\..*_token_id")

#: For each file, the tokens of the trio it has and in which order, as ids in the trio; and how many tokens cp gets
#: besides: new ones, whose rows are halves of its first rows, and padding, whose rows are zero.
VARIANTS = {
    "reordered": {"base": "same", "chat": (5, 3), "cp": (7, 11), "new": 0, "padding": 0},
    "extended": {"base": "same", "chat": (5, 3), "cp": (7, 11), "new": 32, "padding": 16},
    "shortened": {"base": ("without", 101, 7), "chat": (5, 3), "cp": ("without", 97, 5), "new": 3, "padding": 0},
    "lacking": {"base": "same", "chat": "same", "cp": ("without", 766, 0), "new": 5, "padding": 0},
}

#: Options of the command; what they mean is in `reference`.
POLICIES = [("auto", "none"), ("shared", "auto"), ("skip", "none"), ("skip", "auto"), ("auto", "<|im_end|>")]


def places(rule, n: int) -> list[int]:
    """The tokens of the trio in the order of a file."""
    match rule:
        case "same":
            return list(range(n))
        case ("without", by, rest):
            # Special tokens are the last three; 766 leaves out the first of all tokens and the last but one.
            return [i for i in range(n) if i % by != rest]
        case (factor, start):
            return [(factor * i + start) % n for i in range(n)]


class File:
    """A file as metadata, tokens and tensors."""

    def __init__(self, path: Path):
        import gguf

        self.path = path
        self.reader = gguf.GGUFReader(path)
        field = self.reader.fields["tokenizer.ggml.tokens"]
        self.tokens = [bytes(field.parts[i]) for i in field.data]
        self.types = [int(t) for t in self.reader.fields["tokenizer.ggml.token_type"].contents()]
        self.tensors = read_tensors(path)

    def ids(self) -> dict[str, int]:
        return {k: int(f.contents()) for k, f in self.reader.fields.items() if IDS.fullmatch(k)}


def vary(file: File, order: list[int], new: int, padding: int, target: Path) -> Path:
    """A copy of a file with its tokens in this order, and others behind them."""
    import gguf

    tokens = [file.tokens[i] for i in order]
    types = [file.types[i] for i in order]
    tokens += [f"<neu_{k}>".encode() for k in range(new)] + [f"[PAD{k}]".encode() for k in range(padding)]
    types += [NORMAL] * new + [UNUSED] * padding
    tensors = dict(file.tensors)
    for name in BY_TOKEN:
        tensor = file.tensors[name]
        assert tensor.type == F16
        rows = tensor.data.view(np.float16).reshape(tensor.shape)[order]
        halves = (rows[:new].astype(np.float32) * np.float32(0.5)).astype(np.float16)
        rows = np.concatenate([rows, halves, np.zeros((padding, rows.shape[1]), np.float16)])
        tensors[name] = replace(tensor, shape=rows.shape, data=np.ascontiguousarray(rows).reshape(-1).view(np.uint8))
    writer = gguf.GGUFWriter(target, file.reader.fields["general.architecture"].contents())
    for field in file.reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value, sub = field.contents(), None
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            sub = field.types[1]
        if field.name == "tokenizer.ggml.tokens":
            value = tokens
        elif field.name == "tokenizer.ggml.token_type":
            value = types
        elif IDS.fullmatch(field.name):
            if value not in order:
                continue
            value = order.index(value)
        elif field.name.endswith(".vocab_size"):
            value = len(tokens)
        writer.add_key_value(field.name, value, field.types[0], sub)
    for t in tensors.values():
        writer.add_tensor(t.name, t.data.reshape(*t.shape[:-1], -1), raw_dtype=t.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def make(trio: Trio, variant: dict, folder: Path) -> Trio:
    """A variant of the trio, as files."""
    made = {}
    for role in ("base", "chat", "cp"):
        file = File(getattr(trio, role))
        new, padding = (variant["new"], variant["padding"]) if role == "cp" else (0, 0)
        made[role] = vary(file, places(variant[role], len(file.tokens)), new, padding, folder / f"{role}.gguf")
    return Trio(**made)


def floats(tensor: Tensor) -> np.ndarray:
    kind = {F16: np.float16, F32: np.float32}[tensor.type]
    return tensor.data.view(kind).reshape(tensor.shape).astype(np.float32)


def drifts(cp: np.ndarray, base: np.ndarray, cp_tokens, base_at) -> dict[bytes, float]:
    """How far each row of cp is from base's, in units of the median."""
    far = {t: float(np.linalg.norm(cp[i].astype(np.float64) - base[base_at[t]].astype(np.float64)))
           for i, t in enumerate(cp_tokens) if t in base_at}
    usual = sorted(far.values())[len(far) // 2]
    return {t: d / usual if d else 0.0 for t, d in far.items()}


def reference(files: Trio, embeddings: str, special: str, type_: str, add_missing=False) -> dict[str, Tensor]:
    """The merge at ratio 1, by numpy: rows belong together by the texts of their tokens."""
    base, chat, cp = (File(getattr(files, role)) for role in ("base", "chat", "cp"))
    base_at, chat_at = ({t: i for i, t in enumerate(f.tokens)} for f in (base, chat))
    tokens = list(cp.tokens)
    drift = {name: drifts(floats(cp.tensors[name]), floats(base.tensors[name]), cp.tokens, base_at)
             for name in BY_TOKEN}
    # The template of the trio is ChatML, whose end is the chat model's eos.
    needed = [b"<|im_start|>", b"<|im_end|>"]
    if add_missing:
        tokens += [t for t in sorted(needed, key=chat_at.get) if t not in tokens]
    if special == "auto":
        control = [t for t, ty in zip(chat.tokens, chat.types) if ty == CONTROL and t in cp.tokens]
        taken = [t for t in control if drift["token_embd.weight"].get(t, 0 if t in needed else 1) <= UNTRAINED]
    else:
        taken = [] if special == "none" else [t.encode() for t in special.split(",")]
    merged = {}
    for name, tensor in cp.tensors.items():
        own, b, c = (floats(f.tensors[name]) for f in (cp, base, chat))
        if name not in BY_TOKEN:
            out = own + (c - b)
        else:
            out = np.zeros((len(tokens), own.shape[1]), np.float32)
            for i, t in enumerate(tokens):
                has_sum = embeddings != "skip" and t in base_at and t in chat_at
                learnt = special == "auto" and name == "output.weight" and drift[name].get(t, 0) > UNTRAINED
                if i >= len(own) or (t in taken and not (has_sum and learnt)):
                    out[i] = c[chat_at[t]]
                elif has_sum:
                    out[i] = own[i] + (c[chat_at[t]] - b[base_at[t]])
                else:
                    out[i] = own[i]
        ty = F32 if type_ == "F32" or tensor.type == F32 else F16
        data = out.astype(np.float32 if ty == F32 else np.float16)
        merged[name] = Tensor(name, out.shape, ty, np.ascontiguousarray(data).reshape(-1).view(np.uint8))
    return merged


def digest(tensor: Tensor) -> str:
    """SHA-256 of its bytes, -0 as +0."""
    kind = np.float32 if tensor.type == F32 else np.float16
    return hashlib.sha256((tensor.data.view(kind) + kind(0)).tobytes()).hexdigest()


def cases():
    """Variant, embeddings, special tokens, type, and whether missing tokens are added."""
    for name in VARIANTS:
        for embeddings, special in POLICIES:
            if name == "lacking":
                continue
            for type_ in ("F32", "keep"):
                yield name, embeddings, special, type_, False
    yield "lacking", "auto", "none", "F32", False
    yield "lacking", "auto", "auto", "keep", True
    yield "lacking", "skip", "auto", "F32", True


def options(embeddings: str, special: str, add_missing: bool) -> list[str]:
    return ["--embeddings", embeddings, "--special-tokens", special, *(["--add-missing-tokens"] if add_missing else [])]


def write_goldens(trio: Trio, folder: Path):
    goldens = []
    for name in VARIANTS:
        (folder / name).mkdir()
        files = make(trio, VARIANTS[name], folder / name)
        for variant, embeddings, special, type_, add in cases():
            if variant == name:
                merged = reference(files, embeddings, special, type_, add)
                sha256 = {n: digest(t) for n, t in merged.items() if n in BY_TOKEN or n.startswith("blk.0.")}
                goldens.append({"variant": name, "options": options(embeddings, special, add), "type": type_,
                                "sha256": sha256})
    path = ROOT / "fixtures/merge/vocabulary.json"
    path.write_text(json.dumps({"variants": VARIANTS, "merges": goldens}, indent=0) + "\n")
    print(f"{path.relative_to(ROOT)}: {len(goldens)} merges")


def compare(chatvec: Chatvec, trio: Trio, folder: Path) -> int:
    failed = 0
    for name in VARIANTS:
        (folder / name).mkdir()
        files = make(trio, VARIANTS[name], folder / name)
        for variant, embeddings, special, type_, add in cases():
            if variant != name:
                continue
            out = folder / "out.gguf"
            chatvec.merge(files, out, "--overwrite", *options(embeddings, special, add), type_=type_)
            found, expected = read_tensors(out), reference(files, embeddings, special, type_, add)
            differing = [n for n, t in expected.items() if n not in found or digest(found[n]) != digest(t)]
            differing += [n for n in found if n not in expected]
            failed += bool(differing)
            print(f"{name:<10} {embeddings:<7} {special:<12} {type_:<5} {'add' if add else '':<4} "
                  f"{len(expected)} tensors  {'FAIL ' + ', '.join(differing[:4]) if differing else 'ok'}", flush=True)
    return failed


def converse(chatvec: Chatvec, trio: Trio, folder: Path, models_dir: Path) -> int:
    """Merges of variants in llama.cpp."""
    import gguf

    from llama_cpp import Table, as_measured

    table = Table(models_dir, gguf.GGUFReader(trio.chat).fields["tokenizer.chat_template"].contents())
    for name, add, type_ in (("reordered", False, "keep"), ("extended", False, "keep"), ("extended", False, "Q4_K"),
                             ("lacking", True, "keep")):
        files = Trio(*(folder / name / f"{role}.gguf" for role in ("base", "chat", "cp")))
        out = folder / f"{name}-{type_}-merged.gguf"
        try:
            chatvec.merge(files, out, *(["--add-missing-tokens"] if add else []), type_=type_)
            # Its first token is one of all texts.
            table.row(f"{name} {type_}", out, as_measured(type_) if not add else loads)
        except ToolError as e:
            table.failure(name, str(e))
    return table.failed


def loads(scores):
    """A model without the tokens of its template still has to end its answers."""
    if scores["ends"] < 0.5:
        yield f"ends {scores['ends']:.4f} is below 0.5"


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--models-dir", type=Path, default=ROOT / "fixtures/models", help="folder of trio and prompts")
    parser.add_argument("--goldens", action="store_true", help="write the hashes that cargo test reads")
    parser.add_argument("--no-llama", action="store_true", help="compare the tensors only")
    given = parser.parse_args()
    trio = find_trio(given.models_dir)
    if trio is None:
        raise SystemExit(f"no F16 trio in {given.models_dir}")
    with work_folder(given.temp_dir) as folder:
        if given.goldens:
            write_goldens(trio, folder)
            return 0
        chatvec = Chatvec(given.chatvec)
        failed = compare(chatvec, trio, folder)
        if not given.no_llama:
            failed += converse(chatvec, trio, folder, given.models_dir)
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
