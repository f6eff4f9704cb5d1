"""Holds every tensor of every merge against numpy's arithmetic and real ggml's encoder.

    python merge_oracle.py [--models-dir FOLDER] [--chatvec PATH] [--reference FILE] [--types Q4_K,Q6_K]

FOLDER holds a trio of F16 files (…base-F16.gguf, …chat-F16.gguf, …cp…-F16.gguf; default fixtures/models). F32 inputs
are the folder's own F32 files where it has them, otherwise the F16 ones widened. Prints a line per comparison and
ends with 1 when one differs.

The rule held: in f32, delta = ratio * (chat - base), out = cp + delta, encoded once; and where the output keeps cp's
type, a ggml block whose delta is all zero is cp's bytes. Tensors that llama-quantize would not touch keep cp's type.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ggml_codec import decode, encode
from gguf_files import BF16, F16, F32, Tensor, is_quantizable, read_tensors, rewrite
from tool import PLAIN, QUANTIZED, ROOT, UNQUANTIZED, Chatvec, ToolError, Trio, arguments, find_trio, work_folder

RATIOS = (1.0, 0.37)

#: Against a merge computed in f64 and rounded once: one unit in the last place of weights below 4. The trio's largest
#: difference is 3.7e-9, because its matrices hold weights well below 1.
REFERENCE_TOLERANCE = 2.4e-7


class Report:
    """Counts comparisons and prints a line for each."""

    def __init__(self):
        self.passed = self.failed = 0
        print(f"{'comparison':<44} {'type':>5} {'ratio':>5} {'tensors':>7} {'weights':>8} {'differing':>9}")

    def line(self, what: str, type_: str, ratio: float | None, tensors: int, weights: int, differing: int, note=""):
        ratio = "-" if ratio is None else f"{ratio:g}"
        verdict = "ok" if differing == 0 and tensors else "FAIL"
        print(f"{what:<44} {type_:>5} {ratio:>5} {tensors:>7} {weights:>8} {differing:>9}  {verdict} {note}".rstrip())
        self._count(verdict == "ok")

    def failure(self, what: str, reason):
        print(f"{what:<44} FAIL {reason}")
        self._count(False)

    def compare(self, what: str, type_: str, ratio: float | None, found: dict, expected: dict):
        """Two sets of tensors: the same names in the same order, shapes, types and bytes (-0 equals +0)."""
        if list(found) != list(expected):
            odd = [n for n in found if n not in expected] + [n for n in expected if n not in found]
            return self.failure(what, f"tensors or their order differ: {odd[:4] or 'order'}")
        differing, note = 0, ""
        for name, want in expected.items():
            n, said = difference(found[name], want)
            if n and not note:
                note = f"first in {name}: {said}"
            differing += n
        self.line(what, type_, ratio, len(expected), sum(t.n_weights for t in expected.values()), differing, note)

    def _count(self, ok: bool):
        self.passed += ok
        self.failed += not ok


def difference(found: Tensor, want: Tensor) -> tuple[int, str]:
    """How many weights lie in blocks that differ, and what the first difference is."""
    if (found.shape, found.type) != (want.shape, want.type):
        return want.n_weights, f"{found.type.name}{list(found.shape)}, not {want.type.name}{list(want.shape)}"
    block_len, block_size = GGML_QUANT_SIZES[want.type]
    a, b = (without_negative_zero(t).reshape(-1, block_size) for t in (found, want))
    odd = np.flatnonzero((a != b).any(axis=1))
    if not odd.size:
        return 0, ""
    return int(odd.size) * block_len, f"block {odd[0]}, {a[odd[0]].tobytes().hex()}, not {b[odd[0]].tobytes().hex()}"


def without_negative_zero(tensor: Tensor) -> np.ndarray:
    """Bytes with -0 as +0, for types that are one number a weight."""
    width = {F32: (np.uint32, 1 << 31), F16: (np.uint16, 1 << 15), BF16: (np.uint16, 1 << 15)}.get(tensor.type)
    if width is None:
        return tensor.data
    numbers = tensor.data.view(width[0])
    return np.where(numbers == width[1], width[0](0), numbers).view(np.uint8)


def oracle(trio: Trio, ratio: float, type_: str = "keep") -> dict[str, Tensor]:
    """The merge by numpy and ggml."""
    base, chat, cp = (read_tensors(p) for p in (trio.base, trio.chat, trio.cp))
    return {name: merged_tensor(base[name], chat[name], t, ratio, output_type(t, type_)) for name, t in cp.items()}


def output_type(cp: Tensor, type_: str) -> GGMLQuantizationType:
    """`--type`: the asked type for what llama-quantize would touch, cp's own for the rest."""
    return cp.type if type_ == "keep" or not is_quantizable(cp) else GGMLQuantizationType[type_]


def merged_tensor(base: Tensor, chat: Tensor, cp: Tensor, ratio: float, type_: GGMLQuantizationType) -> Tensor:
    """One tensor by the rule in this file's first lines."""
    delta = np.float32(ratio) * (decode(chat) - decode(base))
    assert delta.dtype == np.float32
    data = encode(decode(cp) + delta, type_)
    if type_ == cp.type:
        block_len, block_size = GGML_QUANT_SIZES[type_]
        untouched = (delta.reshape(-1, block_len) == 0).all(axis=1)
        data = np.where(untouched[:, None], cp.data.reshape(-1, block_size), data.reshape(-1, block_size)).reshape(-1)
    return Tensor(cp.name, cp.shape, type_, data)


def widen(path: Path, folder: Path) -> Path:
    """An F32 copy of a file."""
    wide = {n: dataclasses.replace(t, type=F32, data=encode(decode(t), F32)) for n, t in read_tensors(path).items()}
    return rewrite(path, folder / path.name.replace("F16", "F32"), wide)


def partly_equal_chat(trio: Trio, folder: Path) -> Path:
    """A chat file whose every third run of 256 weights is the base's, so that some blocks have no delta."""
    base, chat = read_tensors(trio.base), read_tensors(trio.chat)
    mixed = {}
    for name, t in chat.items():
        bytes_per_run = 256 * t.data.size // t.n_weights
        run = np.arange(t.data.size) // bytes_per_run
        mixed[name] = dataclasses.replace(t, data=np.where(run % 3 == 0, base[name].data, t.data))
    return rewrite(trio.chat, folder / "partly-equal-chat.gguf", mixed)


class Checks:
    """The comparisons, each a method; `report` gathers what they find."""

    def __init__(self, chatvec: Chatvec, f32: Trio, f16: Trio, folder: Path, report: Report):
        self.chatvec, self.f32, self.f16, self.folder, self.report = chatvec, f32, f16, folder, report
        self.out = folder / "out.gguf"

    def merge(self, trio: Trio, **options) -> dict[str, Tensor]:
        """The tool's merge by the bare formula."""
        self.out.unlink(missing_ok=True)
        return read_tensors(self.chatvec.merge(trio, self.out, *PLAIN, **options))

    def formula(self, inputs: str, type_: str, ratio: float):
        """Any output type against numpy and ggml."""
        trio = self.f32 if inputs == "F32" else self.f16
        found = self.merge(trio, type_=type_, ratio=ratio)
        self.report.compare(f"{inputs} trio == numpy, ggml", type_, ratio, found, oracle(trio, ratio, type_))

    def requantised_cp(self, type_: str):
        """base = chat: the product is cp re-quantised; it then serves as a quantised cp with `keep`."""
        nothing = Trio(self.f32.base, self.f32.base, self.f32.cp)
        quantised = self.folder / f"cp-{type_}.gguf"
        found = read_tensors(self.chatvec.merge(nothing, quantised, *PLAIN, type_=type_))
        self.report.compare("base = chat: ggml's re-quantisation of cp", type_, None, found, oracle(nothing, 1.0, type_))

        self.report.compare("quantised cp, base = chat: cp's bytes", type_, None,
                            self.merge(dataclasses.replace(nothing, cp=quantised)), read_tensors(quantised))

        for what, chat in (("quantised cp, keep", self.f32.chat), ("quantised cp, keep, some blocks without delta",
                                                                   partly_equal_chat(self.f32, self.folder))):
            trio = Trio(self.f32.base, chat, quantised)
            self.report.compare(what, type_, 1.0, self.merge(trio), oracle(trio, 1.0))

        trio = self.f32.map(lambda p: quantised if p == self.f32.cp else p)
        self.report.compare("quantised cp to F32", type_, 0.37, self.merge(trio, type_="F32", ratio=0.37),
                            oracle(trio, 0.37, "F32"))

    def quantised_trio(self, type_: str):
        """All three files quantised by ggml, written by gguf-py: decoding is ggml's too."""
        def quantised(path):
            tensors = {n: dataclasses.replace(t, type=output_type(t, type_), data=encode(decode(t), output_type(t, type_)))
                       for n, t in read_tensors(path).items()}
            return rewrite(path, self.folder / f"{path.stem}-{type_}.gguf", tensors)

        trio = self.f32.map(quantised)
        self.report.compare("quantised trio to F32", type_, 1.0, self.merge(trio, type_="F32"), oracle(trio, 1.0, "F32"))

    def identities(self):
        """base = chat gives cp, cp = base gives chat."""
        for inputs, trio in (("F32", self.f32), ("F16", self.f16)):
            found = self.merge(Trio(trio.base, trio.base, trio.cp))
            self.report.compare("base = chat: cp's bytes", inputs, None, found, read_tensors(trio.cp))
            found = self.merge(trio, ratio=0.0)
            self.report.compare("ratio 0: cp's bytes", inputs, 0.0, found, read_tensors(trio.cp))
        # Exact for F16: a difference of two F16 weights of ordinary size fits the 24 bits of an f32. For F32 files the
        # difference is rounded, and the formula (held above) rather than chat is what the output equals.
        found = self.merge(Trio(self.f16.base, self.f16.chat, self.f16.base))
        self.report.compare("cp = base: chat's weights", "F16", 1.0, found, read_tensors(self.f16.chat))

    def patch(self, inputs: str, type_: str, ratio: float):
        """extract (f32) and apply give the bytes of merge; a patch has no rows of its own to take."""
        trio = self.f32 if inputs == "F32" else self.f16
        pure = ("--pure",) if type_ in QUANTIZED else ()
        patch, applied, merged = (self.folder / n for n in ("patch.gguf", "applied.gguf", "merged.gguf"))
        for p in (patch, applied, merged):
            p.unlink(missing_ok=True)
        self.chatvec.run("extract", "--base", trio.base, "--chat", trio.chat, "-o", patch, "--encoding", "f32")
        self.chatvec.run("apply", "--model", trio.cp, f"{patch}@{ratio}", "-o", applied, "--type", type_, *pure, *PLAIN)
        self.chatvec.merge(trio, merged, *PLAIN, type_=type_, ratio=ratio)
        self.report.compare(f"{inputs} trio: extract f32 + apply == merge", type_, ratio,
                            read_tensors(applied), read_tensors(merged))

    def special_rows(self):
        """The default options change nothing but whole embedding rows, and those are the chat model's own."""
        self.out.unlink(missing_ok=True)
        found = read_tensors(self.chatvec.merge(self.f32, self.out))
        plain, chat = oracle(self.f32, 1.0), read_tensors(self.f32.chat)
        wrong, rows = 0, set()
        for name, t in found.items():
            odd = np.flatnonzero((decode(t) != decode(plain[name])).reshape(-1, t.row_len).any(axis=1))
            if name not in ("token_embd.weight", "output.weight"):
                wrong += odd.size
                continue
            theirs = decode(chat[name])
            wrong += sum(bool((decode(t)[r] != theirs[r]).any()) for r in odd)
            rows |= set(odd.tolist())
        weights = sum(t.n_weights for t in found.values())
        self.report.line("default options: odd rows are chat's", "F32", 1.0, len(found), weights, wrong,
                         f"(rows taken from chat: {sorted(rows)})")

    def threads_and_memory(self, type_: str):
        """The whole file is the same for any number of threads and any budget."""
        files = []
        for threads, memory in ((1, "64MiB"), (2, "64MiB"), (4, "1GiB")):
            files.append(self.folder / f"threads-{threads}.gguf")
            files[-1].unlink(missing_ok=True)
            self.chatvec.merge(self.f16, files[-1], "--threads", threads, "--memory", memory, type_=type_)
        first, *others = (p.read_bytes() for p in files)
        self.report.line("same file for any threads and memory", type_, 1.0, len(others), len(first),
                         sum(o != first for o in others), "(weights column: bytes of the file)")

    def reference(self, path: Path):
        """The F32 merge against one computed in f64 elsewhere: only rounding may differ."""
        found, expected = self.merge(self.f32, type_="F32"), read_tensors(path)
        if list(found) != list(expected):
            return self.report.failure("reference file", "tensors or their order differ")
        errors = [np.abs(decode(t).astype(np.float64) - decode(expected[n])) for n, t in found.items()]
        self.report.line(f"reference {path.name}", "F32", 1.0, len(found), sum(e.size for e in errors),
                         sum(int((e > REFERENCE_TOLERANCE).sum()) for e in errors),
                         f"(largest difference {max(float(e.max()) for e in errors):.2e})")


def run_all(checks: Checks, types: list[str], reference: Path | None, f32_is_real: bool):
    """Every comparison; one that cannot run counts as failed and the next one follows."""
    def attempt(check, *args):
        try:
            check(*args)
        except ToolError as e:
            checks.report.failure(f"{check.__name__} {args}", e)

    for inputs in ("F32", "F16"):
        for type_ in ("keep", *UNQUANTIZED, *types):
            for ratio in RATIOS:
                attempt(checks.formula, inputs, type_, ratio)
    attempt(checks.identities)
    for type_ in types:
        attempt(checks.requantised_cp, type_)
        attempt(checks.quantised_trio, type_)
    for type_ in ("BF16",):
        attempt(checks.quantised_trio, type_)
    for inputs in ("F32", "F16"):
        for type_, ratio in (("keep", 1.0), ("F32", 0.37), ("Q4_K", 0.37)):
            attempt(checks.patch, inputs, type_, ratio)
    attempt(checks.special_rows)
    for type_ in ("keep", "Q4_K"):
        attempt(checks.threads_and_memory, type_)
    if reference and f32_is_real:
        attempt(checks.reference, reference)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--models-dir", type=Path, default=ROOT / "fixtures/models", help="folder of the trio")
    parser.add_argument("--reference", type=Path, help="F32 merge at ratio 1.0 of the folder's own F32 files")
    parser.add_argument("--types", default=",".join(QUANTIZED), help="quantised types to check (default: all)")
    options = parser.parse_args()
    f16 = find_trio(options.models_dir)
    if f16 is None:
        raise SystemExit(f"no F16 trio in {options.models_dir}")
    real_f32 = find_trio(options.models_dir, "F32")
    if options.reference and not real_f32:
        raise SystemExit(f"--reference needs the F32 trio it was made from, and {options.models_dir} has none")
    report = Report()
    with work_folder(options.temp_dir) as folder:
        f32 = real_f32 or f16.map(lambda p: widen(p, folder))
        checks = Checks(Chatvec(options.chatvec), f32, f16, folder, report)
        run_all(checks, options.types.split(","), options.reference, real_f32 is not None)
    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
