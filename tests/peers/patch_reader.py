"""Holds `chatvec apply` against a reader of patches that was written from their document (`patch_file.py`).

    python patch_reader.py [--models-dir FOLDER] [--chatvec PATH]

FOLDER holds a trio of F16 files (…base-F16.gguf, …chat-F16.gguf, …cp…-F16.gguf; default fixtures/models). Patches are
extracted in every way a patch stores a matrix, and some are made by hand: several parts of one matrix, a byte that is
changed, files a reader refuses. Every weight must be equal, in f32. Prints a line per comparison and ends with 1 when
one differs.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from ggml_codec import decode, encode
from gguf_files import F16, F32, Tensor, read_tensors, rewrite
from merge_oracle import Report
from patch_file import EMBEDDINGS, OUTPUT, File, Fold, Patch, Refused, applied
from tool import ROOT, Chatvec, ToolError, Trio, arguments, find_trio, work_folder

ENCODINGS = ("f32", "q8_0", "q4_k", "q1_0", "svd:1.1", "svd:0.3", "lora:16")


class Checks:
    """The comparisons; `report` gathers what they find."""

    def __init__(self, chatvec: Chatvec, trio: Trio, folder: Path, report: Report):
        self.chatvec, self.folder, self.report = chatvec, folder, report
        self.base, self.chat, self.model = File(trio.base), File(trio.chat), File(trio.cp)
        self.patches = {encoding: self.extract(trio, encoding) for encoding in ENCODINGS}

    def extract(self, trio: Trio, encoding: str) -> Patch:
        path = self.folder / f"{encoding.replace(':', '-')}.gguf"
        self.chatvec.run("extract", "--base", trio.base, "--chat", trio.chat, "-e", encoding, "-o", path)
        return Patch(path)

    def command(self, model: Path, patches: list[tuple[Path, float]], special: str = "none") -> Path:
        out = self.folder / "out.gguf"
        self.chatvec.run("apply", "--model", model, *(f"{path}@{ratio}" for path, ratio in patches), "-o", out,
                         "--type", "F32", "--special-tokens", special, "--overwrite", "--force")
        return out

    def apply(self, what: str, model: File, *patches: tuple[Patch, float], special: str = "none"):
        out = self.command(model.path, [(patch.path, ratio) for patch, ratio in patches], special)
        self.report.compare(what, "F32", patches[0][1], read_tensors(out),
                            applied(model, list(patches), special == "auto"))

    def encoding(self, encoding: str):
        patch = self.patches[encoding]
        wrong = list(patch.wrong_hashes(self.base, self.chat))
        self.count(f"{encoding}: hashes", len(patch.tensors) + 1 + 2 * len(patch.names), wrong)
        for ratio in (1.0, 0.7):
            self.apply(f"{encoding}: model + ratio * tau", self.model, (patch, ratio))
        self.apply(f"{encoding}: special tokens", self.model, (patch, 0.7), special="auto")
        self.changed_byte(encoding)

    def changed_byte(self, encoding: str):
        """One byte of each kind of part is another one: exactly its hash is wrong, and the command says so too."""
        patch, path, missed = self.patches[encoding], self.folder / "changed.gguf", []
        kinds = {t.name[t.name.index(".weight"):]: t for t in patch.reader.tensors}
        for tensor in kinds.values():
            content = bytearray(patch.path.read_bytes())
            content[tensor.data_offset + int(tensor.n_bytes) // 2] ^= 1
            path.write_bytes(content)
            if [*Patch(path).wrong_hashes(self.base, self.chat)] != [tensor.name] or self.runs("verify", path):
                missed.append(tensor.name)
        self.count(f"{encoding}: a changed byte is seen", len(kinds), missed)

    def several_patches(self):
        for names in (("svd:1.1", "lora:16"), ("lora:16", "svd:1.1"), ("q8_0", "q1_0", "f32")):
            patches = [(self.patches[name], ratio) for name, ratio in zip(names, (0.7, 0.4, -0.2))]
            self.apply(" + ".join(names), self.model, *patches)
            self.apply(f"{' + '.join(names)}: special tokens", self.model, *patches, special="auto")

    def several_parts(self):
        """The embeddings as rows, a dense part, factors and a decomposition at once; the output without rows."""
        svd, others = self.patches["svd:1.1"], (self.patches["q4_k"], self.patches["lora:16"])
        parts = {n: t for p in (*others, svd) for n, t in p.tensors.items() if n.startswith(OUTPUT)}
        # Both matrices have the same shape, and the embeddings have rows of their own.
        own = {n.replace(OUTPUT, EMBEDDINGS): t for n, t in parts.items()}
        own = {n: dataclasses.replace(t, name=n) for n, t in own.items()}
        values = {"chatvec.patch.svd.tensors": [*svd.values["chatvec.patch.svd.tensors"], EMBEDDINGS],
                  "chatvec.patch.svd.shapes": [*svd.values["chatvec.patch.svd.shapes"], *svd.svd_shapes[OUTPUT]]}
        path = rewrite(svd.path, self.folder / "parts.gguf", svd.tensors | parts | own, values=values)
        self.apply("dense, rows, factors, decomposition", self.model, (Patch(path), 0.7))

    def other_tokens(self):
        """A model with its tokens in another order, of which the patch lacks some."""
        order = np.roll(np.arange(len(self.model.tokens)), 7)
        tensors = dict(self.model.tensors)
        for name in (EMBEDDINGS, OUTPUT):
            tensors[name] = dataclasses.replace(tensors[name], data=encode(decode(tensors[name])[order], F16))
        values = {key: int(np.flatnonzero(order == value)[0]) for key, value in self.model.values.items()
                  if key.startswith("tokenizer.ggml.") and key.endswith("_token_id")}
        values["tokenizer.ggml.token_type"] = [self.model.values["tokenizer.ggml.token_type"][i] for i in order]
        values["tokenizer.ggml.tokens"] = [f"<new_{i}>" if i in (80, 500) else self.model.tokens[i] for i in order]
        model = File(rewrite(self.model.path, self.folder / "order.gguf", tensors, values=values))
        for special in ("none", "auto"):
            self.apply(f"tokens in another order, {special}", model, (self.patches["q8_0"], 0.7), special=special)
        out, patch = File(self.command(model.path, [(self.patches["q8_0"].path, 1.0)], "auto")), self.patches["q8_0"]
        wrong = [text for text in out.at if text in patch.at and out.types[text] != patch.types[text]]
        end, template = "tokenizer.ggml.eos_token_id", "tokenizer.chat_template"
        wrong += [end] if out.tokens[out.values[end]] != patch.tokens[patch.values[end]] else []
        wrong += [template] if out.values[template] != patch.values[template] else []
        self.count("template, end and types by text", len(out.tokens) + 2, wrong)

    def decays(self):
        """Files with the decay of a state, whose differences are of logarithms, and a patch of it as version 1 had it."""
        rng, a = np.random.default_rng(3), "blk.0.ssm_a"
        log = rng.uniform(np.log(1e-3), np.log(16), 64)

        def with_decay(file: File, log: np.ndarray) -> Path:
            decay = (-np.exp(log)).astype(np.float32)
            tensor = Tensor(a, decay.shape, F32, decay.view(np.uint8))
            return rewrite(file.path, self.folder / f"decay-{file.path.name}", file.tensors | {a: tensor})

        base = with_decay(self.base, log)
        chat, model = (with_decay(file, log + rng.normal(0, 0.5, 64)) for file in (self.chat, self.model))
        path = self.folder / "decay.gguf"
        self.chatvec.run("extract", "--base", base, "--chat", chat, "-e", "f32", "-o", path)
        patch, model = Patch(path), File(model)
        for ratio in (1.0, 0.7, -2.0):
            self.apply("decays: model * exp(ratio * tau)", model, (patch, ratio))
        self.apply("decays: two patches", model, (patch, 0.7), (patch, 0.4))
        older, taken = self.folder / "older.gguf", []
        rewrite(path, older, values={"chatvec.patch.version": 1, "chatvec.patch.logarithms": ["output_norm.weight"]})
        if self.runs("apply", "--model", model.path, older, "-o", self.folder / "none.gguf"):
            taken.append("the command takes it")
        self.count("refused: decays as they are stored", 1, taken)

    def folded(self, file: File, name: str, signs: dict | None, block: int, is_folded) -> Path:
        """A file with folded matrices, in F32, and the keys that say so."""
        tensors, names = dict(file.tensors), [n for n, t in file.tensors.items() if len(t.shape) == 2 and is_folded(n)]
        for n in names:
            rows = decode(tensors[n])
            fold = Fold(block, None if signs is None else signs[rows.shape[-1]])
            tensors[n] = Tensor(n, tensors[n].shape, F32, encode(fold.rotate(fold.flip(rows)), F32))
        keys = {"version": 1, "block_size": block, "transform": "normalized-sylvester-walsh-hadamard",
                "axis": "input-last-dimension", "sign_mode": "identity" if signs is None else "explicit",
                "weight_names": [n for n in names if n != EMBEDDINGS]}
        if EMBEDDINGS in names:
            keys["inverse_weight_names"] = [EMBEDDINGS]
        if signs is not None:
            keys |= {"sign_widths": list(signs), "sign_values": [int(s) for part in signs.values() for s in part]}
        added = {f"prism.hadamard.{key}": value for key, value in keys.items()}
        return rewrite(file.path, self.folder / name, tensors, added=added)

    def folds(self):
        """Patches and models that are folded in different ways, or one of them alone."""
        rng = np.random.default_rng(5)
        signs = {n: rng.choice([-1.0, 1.0], n).astype(np.float32) for n in (256, 768)}
        everything, layers = (lambda n: n.endswith(".weight")), (lambda n: n.startswith("blk."))
        model = File(self.folded(self.model, "model-folded.gguf", signs, 64, everything))
        for special in ("none", "auto"):
            self.apply(f"plain onto folded, {special}", model, (self.patches["q8_0"], 0.7), special=special)
        base = self.folded(self.base, "base-folded.gguf", None, 256, layers)
        chat = self.folded(self.chat, "chat-folded.gguf", None, 128, layers)
        path = self.folder / "folded.gguf"
        self.chatvec.run("extract", "--base", base, "--chat", chat, "-e", "f32", "-o", path)
        patch = Patch(path)
        for onto, what in ((self.model, "plain"), (model, "others")):
            for special in ("none", "auto"):
                self.apply(f"folded onto {what}, {special}", onto, (patch, 0.7), special=special)
        self.apply("folded and plain onto folded", model, (patch, 0.7), (self.patches["svd:1.1"], 0.3))

    def renamed(self):
        """A chat that gave names to placeholders of its base, which the model still has."""
        special = [i for i, t in enumerate(self.model.values["tokenizer.ggml.token_type"]) if t == 3][:2]

        def with_placeholders(file: File, name: str) -> File:
            tokens = [f"<|res{i}|>" if i in special else text for i, text in enumerate(file.tokens)]
            return File(rewrite(file.path, self.folder / name, file.tensors, values={"tokenizer.ggml.tokens": tokens}))

        base, model = with_placeholders(self.base, "base-res.gguf"), with_placeholders(self.model, "model-res.gguf")
        path = self.folder / "renamed.gguf"
        self.chatvec.run("extract", "--base", base.path, "--chat", self.chat.path, "-e", "f32", "-o", path)
        patch = Patch(path)
        for kind in ("none", "auto"):
            self.apply(f"renamed placeholders, {kind}", model, (patch, 0.7), special=kind)
        out = File(self.command(model.path, [(path, 1.0)], "auto"))
        wrong = [text for text, own in zip(out.tokens, model.names_of(patch)) if text != own]
        self.count("the output has the chat's names", len(out.tokens), wrong)

    def refusals(self):
        """Files that the page says are refused: by this reader, and by the command."""
        f32, lora, svd = (self.patches[e] for e in ("f32", "lora:16", "svd:1.1"))
        q, tokens = "blk.0.attn_q.weight", "chatvec.patch.rows.token_embd.weight"

        def data(patch: Patch, name: str, change) -> dict:
            old = patch.tensors[name]
            return {"tensors": patch.tensors | {name: dataclasses.replace(old, **change(old))}}

        def less(patch: Patch, name: str) -> dict:
            return {"tensors": {n: t for n, t in patch.tensors.items() if n != name}}

        swapped = [f32.values[tokens][1], f32.values[tokens][0], *f32.values[tokens][2:]]
        for what, patch, changed in (
            ("a later version", f32, {"values": {"chatvec.patch.version": 3}}),
            ("no patch", f32, {"values": {"general.type": "model"}}),
            ("tokens do not ascend", f32, {"values": {tokens: swapped}}),
            ("fewer tokens than rows", f32, {"values": {tokens: f32.values[tokens][1:]}}),
            ("NaN", f32, data(f32, q, lambda t: {"data": np.full(t.n_weights, np.nan, np.float32).view(np.uint8)})),
            ("another shape", f32, data(f32, q, lambda t: {"shape": (t.shape[0] // 2, t.shape[1] * 2)})),
            ("a factor alone", lora, less(lora, f"{q}.lora_b")),
            ("factors of other ranks", lora,
             data(lora, f"{q}.lora_b", lambda t: {"shape": (t.shape[0] * 2, t.shape[1] // 2)})),
            ("half a decomposition", svd, less(svd, f"{q}.svd_b.zstd")),
            ("a decomposition without d", svd, less(svd, f"{q}.svd_d")),
            ("a frame that is cut", svd,
             data(svd, f"{q}.svd_a.zstd", lambda t: {"data": t.data[:-9], "shape": (t.n_weights - 9,)})),
        ):
            path, taken = rewrite(patch.path, self.folder / "refused.gguf", **changed), []
            try:
                applied(self.model, [(Patch(path), 1.0)], False)
                taken.append("this reader takes it")
            except Refused:
                pass
            # Its hashes would do; what is looked at here is what comes after them.
            if self.runs("apply", "--model", self.model.path, path, "-o", self.folder / "none.gguf", "--force"):
                taken.append("the command takes it")
            self.count(f"refused: {what}", 2, taken)

    def runs(self, *args) -> bool:
        """Whether the command takes its input, whatever it says of it."""
        try:
            self.chatvec.run(*args)
            return True
        except ToolError:
            return False

    def count(self, what: str, n: int, wrong: list[str]):
        """A line of something that is no weight."""
        self.report.line(what, "-", None, n, 0, len(wrong), ", ".join(wrong[:4]))


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--models-dir", type=Path, default=ROOT / "fixtures/models", help="folder of the trio")
    options = parser.parse_args()
    trio = find_trio(options.models_dir)
    if trio is None:
        raise SystemExit(f"no F16 trio in {options.models_dir}")
    report = Report()
    with work_folder(options.temp_dir) as folder:
        checks = Checks(Chatvec(options.chatvec), trio, folder, report)
        cases = [(checks.encoding, encoding) for encoding in ENCODINGS]
        cases += [(c,) for c in (checks.several_patches, checks.several_parts, checks.other_tokens, checks.decays,
                                 checks.folds, checks.renamed, checks.refusals)]
        for check, *args in cases:
            try:
                check(*args)
            except (Refused, ToolError) as e:
                report.failure(f"{check.__name__} {args}", e)
    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
