"""The study behind the defaults of `--on-loss`: the tables of docs/SURVIVAL.md.

    python survival.py [--chatvec PATH] [--models-dir FOLDER] [--write] [--quick]

The model of the bundled trio is put on a coarse grid (`chatvec quantize --pure`), the exact vector is added, and what
comes of it is held against the merge of all three in F32. Divergence (KL, nats) is by a forward pass in f64 (exact_forward.py)
on the German transcripts, of which the second half of each 256 tokens is scored; behaviour by `chatvec smoke` on the 167 German
prompts. `--write` puts the tables into docs/SURVIVAL.md, between their marks; `--quick` leaves out behaviour and the small
vectors.

Rows named by options of the command are files that it wrote. The others are ways that were not built: numpy chooses the codes
on the model's grid, and the weights that these mean are computed with. Needs numpy, gguf and libggml-python (requirements.txt).
"""

import json
import math
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from exact_forward import ExactModel
from ggml_codec import decode
from gguf_files import F32, Tensor, read_tensors, rewrite
from tool import ROOT, Chatvec, Trio, arguments, find_trio, work_folder

DOCUMENT = ROOT / "docs" / "SURVIVAL.md"
N_CTX = 256
#: As in src/quants/feedback.rs and src/plan/survival.rs.
RIDGE, AMPLITUDE = 0.1, 0.5
#: The vector is multiplied by these, so that ‖τ‖/‖W‖ is about 1.2, 2.4, 4.8 and 7.1 %.
RATIOS = (0.25, 0.5, 1.0, 1.5)


class Judge:
    """KL divergence from a reference, on one text."""

    def __init__(self, chat: Path, models_dir: Path):
        self.model = ExactModel(chat)
        items = [json.loads(line) for line in (models_dir / "prompts-de.jsonl").read_text("utf-8").splitlines()]
        text = "".join(f"{i['chatml']}{i['answer']}<|im_end|>\n" for i in items)
        tokens = np.array(tokenize(chat, text))
        self.chunks = tokens[: len(tokens) // N_CTX * N_CTX].reshape(-1, N_CTX)

    def log_probabilities(self, weights: dict[str, np.ndarray]) -> np.ndarray:
        self.model.weights = {name: w.astype(np.float64) for name, w in weights.items()}
        rows = np.concatenate([self.model.logits(list(c))[N_CTX // 2 : -1] for c in self.chunks])
        rows -= rows.max(-1, keepdims=True)
        return rows - np.log(np.exp(rows).sum(-1, keepdims=True))

    def divergence(self, reference: np.ndarray, weights: dict[str, np.ndarray]) -> tuple[float, float]:
        """The mean and its standard error."""
        kl = (np.exp(reference) * (reference - self.log_probabilities(weights))).sum(-1)
        return kl.mean(), kl.std(ddof=1) / math.sqrt(len(kl))


def tokenize(path: Path, text: str) -> list[int]:
    """Byte-pair encoding by the file's own merges; the special tokens of ChatML are found in the text.

    The trio's pre-tokenizer cuts as GPT-2's does, for letters, digits and signs of German.
    """
    import re

    fields = gguf.GGUFReader(path).fields
    ids = {t: i for i, t in enumerate(fields["tokenizer.ggml.tokens"].contents())}
    ranks = {tuple(m.split(" ")): i for i, m in enumerate(fields["tokenizer.ggml.merges"].contents())}
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    to_char = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    special = re.compile(r"(<\|[a-z_]+\|>)")
    word = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
    out = []
    for part in special.split(text):
        if special.fullmatch(part):
            out.append(ids[part])
            continue
        for piece in word.findall(part):
            symbols = [to_char[b] for b in piece.encode()]
            while len(symbols) > 1:
                pairs = [(ranks.get(pair, math.inf), i) for i, pair in enumerate(zip(symbols, symbols[1:]))]
                rank, i = min(pairs)
                if rank == math.inf:
                    break
                symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
            out.extend(ids[s] for s in symbols)
    return out


@dataclass
class Grid:
    """The codes of a Q4_K tensor, and the scale and minimum that each weight has."""

    codes: np.ndarray
    scale: np.ndarray
    minimum: np.ndarray

    @staticmethod
    def of(tensor: Tensor) -> "Grid":
        b = tensor.data.reshape(-1, 144)
        half = lambda at: b[:, at : at + 2].copy().view(np.float16).astype(np.float32)
        packed, n = b[:, 4:16], len(b)
        scales, mins = np.empty((n, 8), np.uint8), np.empty((n, 8), np.uint8)
        scales[:, :4], mins[:, :4] = packed[:, :4] & 63, packed[:, 4:8] & 63
        scales[:, 4:] = (packed[:, 8:] & 15) | (packed[:, :4] >> 6 << 4)
        mins[:, 4:] = (packed[:, 8:] >> 4) | (packed[:, 4:8] >> 6 << 4)
        qs = b[:, 16:].reshape(n, 4, 32)
        codes = np.stack([qs & 15, qs >> 4], 2).astype(np.int64)
        each = lambda per_block: np.repeat((per_block)[:, :, None], 32, 2).reshape(tensor.shape)
        return Grid(codes.reshape(tensor.shape), each(half(0) * scales), each(half(2) * mins))

    def values(self, codes: np.ndarray) -> np.ndarray:
        return self.scale * np.clip(codes, 0, 15) - self.minimum

    def steps(self, delta: np.ndarray) -> np.ndarray:
        return np.divide(delta, self.scale, out=np.zeros_like(delta), where=self.scale != 0)


def rounded(grid: Grid, delta: np.ndarray, random) -> np.ndarray:
    return grid.values(grid.codes + np.floor(grid.steps(delta) + 0.5).astype(np.int64))


def stochastic(grid: Grid, delta: np.ndarray, random) -> np.ndarray:
    return grid.values(grid.codes + np.floor(grid.steps(delta) + random.random(delta.shape)).astype(np.int64))


def cheapest(unit: int):
    """Steps towards the vector where they cost least, until each unit of a row holds all of it."""

    def choose(grid: Grid, delta: np.ndarray, random) -> np.ndarray:
        scale = np.where(grid.scale == 0, 1, np.abs(grid.scale))
        whole = np.trunc(grid.steps(delta)).astype(np.int64)
        codes = np.clip(grid.codes + whole, 0, 15)
        rest = delta - (codes - grid.codes) * grid.scale
        up = np.sign(rest).astype(np.int64)
        free = (codes + up >= 0) & (codes + up <= 15) & (up != 0) & (grid.scale != 0)
        gain = np.where(free, scale * np.abs(delta), 0).reshape(-1, unit)
        cost = np.where(free, (scale - 2 * np.abs(rest)) / np.maximum(np.abs(delta), 1e-20), np.inf).reshape(-1, unit)
        need = (delta * delta - (codes - grid.codes) * grid.scale * delta).reshape(-1, unit).sum(1, keepdims=True)
        order = np.argsort(cost, 1, kind="stable")
        reached = np.cumsum(np.take_along_axis(gain, order, 1), 1)
        taken = np.zeros(gain.shape, bool)
        np.put_along_axis(taken, order, reached - np.take_along_axis(gain, order, 1) / 2 < need, 1)
        return grid.values(codes + up * (taken & (gain > 0)).reshape(delta.shape))

    return choose


def fed_back(amplitude: float, gram, group: int = 256, ridge: float = RIDGE, refit: bool = False):
    """Errors are passed on along the row as `gram` asks for; None is the whole error to the next weight."""

    def choose(grid: Grid, delta: np.ndarray, random) -> np.ndarray:
        out, n = np.empty_like(delta), delta.shape[1]
        for start in range(0, n, group):
            columns = slice(start, min(start + group, n))
            d, m = delta[:, columns], columns.stop - columns.start
            upper = np.eye(m, k=1) if gram is None else factor(gram(delta, columns), ridge)
            moved = d.astype(np.float64)
            for j in range(m):
                c = start + j
                scale, codes = grid.scale[:, c], grid.codes[:, c]
                steps = np.divide(moved[:, j], scale, out=np.zeros_like(moved[:, j]), where=scale != 0)
                new = codes + np.floor(steps + 0.5 + amplitude * (random.random(len(d)) - 0.5)).astype(np.int64)
                out[:, c] = scale * np.clip(new, 0, 15) - grid.minimum[:, c]
                error = d[:, j] - (out[:, c] - (scale * codes - grid.minimum[:, c]))
                # All of the error so far goes on to the next weight where there is no matrix.
                error = moved[:, j] - d[:, j] + error if gram is None else error
                moved[:, j + 1 :] += np.outer(error, upper[j, j + 1 :])
        return refitted(grid, delta, out) if refit else out

    return choose


def refitted(grid: Grid, delta: np.ndarray, out: np.ndarray) -> np.ndarray:
    """The best scale and minimum of each 32 weights for their codes, in floats: more than 6 bits could hold."""
    wanted = grid.values(grid.codes) + delta
    got, wanted_ = out.reshape(-1, 32), wanted.reshape(-1, 32)
    centred = got - got.mean(1, keepdims=True)
    square = (centred**2).sum(1, keepdims=True)
    slope = np.divide((centred * wanted_).sum(1, keepdims=True), square, out=np.ones_like(square), where=square > 0)
    return (wanted_.mean(1, keepdims=True) + slope * centred).reshape(out.shape)


def factor(h: np.ndarray, ridge: float) -> np.ndarray:
    """U of H = (U + I)·D·(U + I)ᵀ, with a ridge."""
    n = len(h)
    if not np.trace(h) > 0:
        return np.zeros_like(h)
    h = h.astype(np.float64) / np.trace(h) * n + ridge * np.eye(n)
    lower = np.linalg.cholesky(h[::-1, ::-1])
    upper = lower[::-1, ::-1]
    return upper / np.diag(upper)


def of_vector(delta: np.ndarray, columns: slice) -> np.ndarray:
    return delta[:, columns].T @ delta[:, columns]


@dataclass
class Row:
    name: str
    weights: dict[str, np.ndarray]
    bytes: int | None = None
    #: A file that can be talked to.
    path: Path | None = None


class Study:
    def __init__(self, chatvec: Chatvec, trio: Trio, models_dir: Path, folder: Path):
        self.chatvec, self.trio, self.folder, self.models_dir = chatvec, trio, folder, models_dir
        self.judge = Judge(trio.chat, models_dir)
        base, chat, self.cp = ({n: decode(t) for n, t in read_tensors(p).items()} for p in (trio.base, trio.chat, trio.cp))
        self.tau = {n: chat[n] - base[n] for n in base}
        self.on_grid = {ty: self.quantized(ty) for ty in ("Q4_K",)}

    def quantized(self, ty: str) -> Path:
        out = self.folder / f"cp-{ty}.gguf"
        self.chatvec.run("quantize", self.trio.cp, "-o", out, "--type", ty, "--pure", "--overwrite")
        return out

    def merge(self, name: str, model: Path, ratio: float, *options) -> Row:
        out = self.folder / f"out-{zlib.crc32(f'{name}{ratio}'.encode())}.gguf"
        command = [self.chatvec.path, "merge", "--base", self.trio.base, "--chat", self.trio.chat, "--model", model, "-o",
                   out, "--ratio", ratio, "--overwrite", *options]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace")
        if done.returncode not in (0, 10):
            raise SystemExit(done.stderr)
        path = out if done.returncode == 0 else Path(f"{out}.rejected")
        tensors = read_tensors(path)
        size = sum(len(t.data) for t in tensors.values())
        return Row(name, {n: decode(t) for n, t in tensors.items()}, size, path)

    def chosen(self, name: str, ratio: float, choose) -> Row:
        tensors, weights = read_tensors(self.on_grid["Q4_K"]), {}
        for n, t in tensors.items():
            delta = np.float32(ratio) * self.tau[n]
            random = np.random.default_rng(zlib.crc32(n.encode()))
            is_q4_k = t.type == gguf.GGMLQuantizationType.Q4_K
            weights[n] = np.float32(choose(Grid.of(t), delta, random)) if is_q4_k else decode(t) + delta
        out = self.folder / f"out-{zlib.crc32(f'{name}{ratio}'.encode())}.gguf"
        shell = self.merge("shell", self.trio.cp, ratio, "--type", "F32")
        copies = {n: Tensor(n, w.shape, F32, w.reshape(-1).view(np.uint8)) for n, w in weights.items()}
        rewrite(shell.path, out, copies)
        return Row(name, weights, sum(len(t.data) for t in tensors.values()), out)

    def figures(self, row: Row, ratio: float) -> tuple[float, float, float]:
        """Survival, noise and ‖q − o‖/‖o‖ of all matrices and vectors."""
        kept = square = error = 0.0
        cp = self.model
        for n, tau in self.tau.items():
            delta = (np.float32(ratio) * tau).astype(np.float64)
            moved = row.weights[n].astype(np.float64) - cp[n]
            kept, square, error = kept + (moved * delta).sum(), square + (delta**2).sum(), error + ((moved - delta) ** 2).sum()
        return kept / square, math.sqrt(error / square), square

    def behaviour(self, row: Row) -> list[str]:
        command = [self.chatvec.path, "smoke", row.path, "--prompts", self.models_dir / "prompts-de.jsonl", "--max-tokens",
                   56, "--json"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace")
        checks = {c["name"]: c["value"] for c in json.loads(done.stdout)["checks"]}
        return [f"{checks[name]:.2f}" for name in ("ends", "language", "exact")]

    def table(self, ratio: float, rows: list[Row], behaviour: bool) -> str:
        reference = self.judge.log_probabilities({n: self.cp[n] + np.float32(ratio) * t for n, t in self.tau.items()})
        heads = ["output", "MiB", "survival", "noise", "KL", *(["ends / lang / exact"] if behaviour else [])]
        lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for row in rows:
            mean, error = self.judge.divergence(reference, row.weights)
            survival, noise, _ = self.figures(row, ratio)
            cells = [row.name, f"{row.bytes / 2**20:.2f}", f"{survival:.2f}", f"{noise:.2f}", f"{mean:.3f} ± {error:.3f}"]
            cells += [" / ".join(self.behaviour(row))] if behaviour else []
            lines.append("| " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
        return "\n".join(lines)

    @property
    def model(self) -> dict[str, np.ndarray]:
        if not hasattr(self, "_model"):
            self._model = {n: decode(t) for n, t in read_tensors(self.on_grid["Q4_K"]).items()}
        return self._model

    def full(self) -> str:
        cp, exact = self.on_grid["Q4_K"], ("--type", "F32")
        rows = [
            self.merge("F32: all of the vector on the Q4_K model", cp, 1.0, *exact),
            self.merge("`--on-loss warn`: to the nearest, by ggml's encoder", cp, 1.0, "--on-loss", "warn"),
            self.merge("**`--on-loss dither`** (default)", cp, 1.0),
            self.merge("`--on-loss promote`", cp, 1.0, "--on-loss", "promote"),
            self.merge("`--type Q5_K --pure --on-loss warn`", cp, 1.0, "--type", "Q5_K", "--pure", "--on-loss", "warn"),
            self.merge("`--type Q6_K --pure --on-loss warn`", cp, 1.0, "--type", "Q6_K", "--pure", "--on-loss", "warn"),
            self.chosen("to the nearest on the model's grid", 1.0, rounded),
            self.chosen("stochastic rounding", 1.0, stochastic),
            self.chosen("all of the error to the next weight", 1.0, fed_back(0.0, None)),
            self.chosen("cheapest steps until each 32 weights hold the vector", 1.0, cheapest(32)),
            self.chosen("cheapest steps until each 256 weights hold the vector", 1.0, cheapest(256)),
            self.chosen("feedback by δᵀδ, no dither", 1.0, fed_back(0.0, of_vector)),
            self.chosen("feedback by δᵀδ, half dither", 1.0, fed_back(0.5, of_vector)),
            self.chosen("feedback by δᵀδ, full dither", 1.0, fed_back(1.0, of_vector)),
            self.chosen("the same in groups of 64, half dither", 1.0, fed_back(0.5, of_vector, 64)),
            self.chosen("the same in groups of 64, full dither", 1.0, fed_back(1.0, of_vector, 64)),
            self.chosen("feedback, half dither, ridge 0.01", 1.0, fed_back(0.5, of_vector, ridge=0.01)),
            self.chosen("feedback, half dither, ridge 1", 1.0, fed_back(0.5, of_vector, ridge=1.0)),
            self.chosen("feedback, half dither, then scales fitted anew (in floats)", 1.0, fed_back(0.5, of_vector, refit=True)),
        ]
        return self.table(1.0, rows, True)

    def small(self, ratio: float) -> str:
        cp = self.on_grid["Q4_K"]
        rows = [
            self.merge("F32: all of the vector on the Q4_K model", cp, ratio, "--type", "F32"),
            self.merge("`--on-loss warn`", cp, ratio, "--on-loss", "warn"),
            self.merge("**`--on-loss dither`**", cp, ratio),
            self.merge("`--on-loss promote`", cp, ratio, "--on-loss", "promote"),
            self.chosen("stochastic rounding", ratio, stochastic),
            self.chosen("feedback, no dither", ratio, fed_back(0.0, of_vector)),
            self.chosen("feedback, half dither", ratio, fed_back(0.5, of_vector)),
            self.chosen("feedback, full dither", ratio, fed_back(1.0, of_vector)),
        ]
        return self.table(ratio, rows, False)

    def noise(self, ratio: float) -> str:
        """The vector on the F16 model, once encoded in coarser and coarser types; and the model without any vector."""
        none = Row("the model itself: no vector", {n: self.cp[n] for n in self.cp}, 0)
        options = ("--pure", "--on-loss", "warn")
        rows = [self.merge(f"`--type {ty}`", self.trio.cp, ratio, "--type", ty, *options)
                for ty in ("Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K")]
        self._model = self.cp
        text = self.table(ratio, [none, *rows], False)
        del self._model
        return text


def synthetic(chatvec: Chatvec, model: Path, text: Path, folder: Path) -> str:
    """A vector that was made up, on a real model that is quantised: mixtures of 32 directions, the k-th with a share of 1/k, and
    noise with a tenth of their energy; ‖τ‖/‖W‖ 3 % in every matrix."""
    random, base, chat = np.random.default_rng(1), {}, {}
    for name, t in read_tensors(model).items():
        w = decode(t)
        base[name] = chat[name] = Tensor(name, w.shape, F32, w.reshape(-1).view(np.uint8))
        if w.ndim == 2:
            rows, columns = w.shape
            tau = (random.standard_normal((rows, 32)) / np.arange(1, 33)) @ random.standard_normal((32, columns))
            tau = tau / np.linalg.norm(tau) + 0.3 * random.standard_normal(w.shape) / math.sqrt(w.size)
            tau *= 0.03 * np.linalg.norm(w) / np.linalg.norm(tau)
            w = np.float32(w + tau)
            chat[name] = Tensor(name, w.shape, F32, w.reshape(-1).view(np.uint8))
    paths = {role: rewrite(model, folder / f"{role}.gguf", t) for role, t in (("base", base), ("chat", chat))}
    lines = ["| output | MiB | survival | noise | KL |", "|---|---|---|---|---|"]
    for name, options in (("warn", ("--on-loss", "warn")), ("dither", ()), ("promote", ("--on-loss", "promote"))):
        out = folder / f"{name}.gguf"
        command = [chatvec.path, "merge", "--base", paths["base"], "--chat", paths["chat"], "--model", model, "-o", out,
                   "--force", "--json", *options]
        said = json.loads(subprocess.run(list(map(str, command)), capture_output=True, text=True).stdout)
        command = [chatvec.path, "compare", paths["chat"], out, "--text", text, "-c", 256, "--chunks", 6, "--json"]
        compared = json.loads(subprocess.run(list(map(str, command)), capture_output=True, text=True).stdout)
        kl, total = compared["logits"]["kl"]["mean"], said["total"]
        lines.append(f"| `--on-loss {name}` | {said['output_bytes'] / 2**20:.0f} | {total['survival']:.2f} | "
                     f"{total['noise']:.2f} | {kl['value']:.3f} ± {kl['error']:.3f} |")
        print(lines[-1], flush=True)
        out.unlink()
    return "\n".join(lines)


def put_tables(document: Path, marks: dict[str, str]):
    text = document.read_text("utf-8")
    for mark, table in marks.items():
        begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
        before, rest = text.split(begin)
        text = before + begin + table + "\n" + end + rest.split(end)[1]
    document.write_text(text, "utf-8")


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--models-dir", type=Path, default=ROOT / "fixtures/models", help="folder of trio and prompts")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/SURVIVAL.md")
    parser.add_argument("--quick", action="store_true", help="only the vector at its size, without behaviour")
    parser.add_argument("--synthetic", type=Path, metavar="MODEL", help="only a made-up vector on this quantised model")
    options = parser.parse_args()
    if options.synthetic:
        with work_folder(options.temp_dir) as folder:
            text = ROOT / "README.md"
            table = synthetic(Chatvec(options.chatvec), options.synthetic, text, folder)
        if options.write:
            put_tables(DOCUMENT, {"made-up vector": table})
        return 0
    trio = find_trio(options.models_dir)
    if trio is None:
        raise SystemExit(f"no F16 trio in {options.models_dir}")
    marks = {}
    with work_folder(options.temp_dir) as folder:
        study = Study(Chatvec(options.chatvec), trio, options.models_dir, folder)
        if options.quick:
            study.behaviour = lambda row: ["", "", ""]
        marks["vector at its size"] = study.full()
        for ratio in () if options.quick else [r for r in RATIOS if r != 1.0]:
            print(f"ratio {ratio}")
            marks[f"vector times {ratio}"] = study.small(ratio)
        for ratio in () if options.quick else (0.25, 1.0):
            print(f"noise, ratio {ratio}")
            marks[f"noise at {ratio}"] = study.noise(ratio)
    if options.write:
        put_tables(DOCUMENT, marks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
