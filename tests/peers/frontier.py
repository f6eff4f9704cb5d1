"""How small a vector can be: the table of docs/PATCH.md, section "Sizes", and what decomposed matrices are held to.

    python frontier.py [--chatvec PATH] [--models-dir FOLDER] [--write] [--quick]
    python frontier.py --fixture            writes fixtures/decomposed/expected.json

The vector of the bundled trio is extracted in many encodings and sizes, and applied to cp in F32. Error and gain are of all
tensors, by numpy from what `apply` wrote; rows of special tokens are in source precision, as always. KL (nats) is from the merge in F32, by the forward pass of exact_forward.py on
German transcripts, of which the second half of each 256 tokens is scored. The constants of src/patch/encode were chosen on
prompts at even places; the table is of those at odd places. Behaviour is by `chatvec smoke` on all German prompts. Intervals
of 95 % are by 2000 paired bootstraps: of chunks of text for KL, of prompts for the difference in behaviour from the exact merge.

Rows in plain words are ways that were not built, by numpy. `--write` puts the table into the document; `--quick` leaves
behaviour out. Needs numpy, gguf and libggml-python (requirements.txt); 10 minutes on two cores.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from exact_forward import ExactModel
from ggml_codec import decode, encode
from gguf_files import Tensor, read_tensors
from survival import N_CTX, tokenize
from tool import ROOT, Chatvec, Trio, arguments, find_trio, work_folder

DOCUMENT = ROOT / "docs" / "PATCH.md"
FIXTURE = ROOT / "fixtures" / "decomposed" / "expected.json"
#: As in src/patch/encode/codes.rs.
RIDGE, SHORTEST, STEP_B, MOST, GROUP = 0.1, 0.7, 1.3, 127, 256
CHECKS = ("ends", "language", "exact")
PLAIN_TYPES = ("f16", "q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k", "tq1_0", "q1_0")
BITS = ("2.7", "1.6", "1.1", "0.8", "0.6", "0.45", "0.3", "0.2")
FIXTURE_STEPS = (0.004, 0.01)
FIXTURE_TENSORS = ("output.weight", "blk.0.attn_k.weight", "blk.1.attn_q.weight", "blk.1.ffn_up.weight", "blk.2.ffn_down.weight")


def units(h: np.ndarray) -> np.ndarray:
    """U + I of H = (U + I)·D·(U + I)ᵀ."""
    upper = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    return upper / np.diag(upper)


def rounded(x: np.ndarray, step) -> np.ndarray:
    """To the nearest multiple, halves away from zero."""
    return np.clip(np.sign(x) * np.floor(np.abs(x / step) + 0.5), -MOST, MOST)


def fed_back(rows: np.ndarray, h: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Codes of rows, each column's error passed on; `steps` are of rows (a column) or of columns (a row)."""
    steps = np.broadcast_to(steps, rows.shape)
    upper, moved, codes = units(h), rows.copy(), np.zeros_like(rows)
    for j in range(rows.shape[1]):
        codes[:, j] = rounded(moved[:, j], steps[:, j])
        moved[:, j + 1 :] += np.outer(rows[:, j] - codes[:, j] * steps[:, j], upper[j, j + 1 :])
    return codes


def in_groups(rows: np.ndarray, h: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """As the command does: in groups of columns, each with the ridge of its own mean."""
    parts = []
    for start in range(0, rows.shape[1], GROUP):
        columns = slice(start, min(start + GROUP, rows.shape[1]))
        own = h[columns, columns]
        own = own / np.trace(own) * len(own) + RIDGE * np.eye(len(own))
        parts.append(fed_back(rows[:, columns], own, steps))
    return np.concatenate(parts, 1)


def decomposed(tau: np.ndarray, step: float, feedback: bool = True) -> tuple[np.ndarray, int]:
    """What the quantised decomposition of src/patch/encode gives for a matrix, and its rank."""
    u, sigma, vt = np.linalg.svd(tau.astype(np.float64), full_matrices=False)
    share = tau.shape[1] / (sigma**2).sum()
    length = sigma * np.sqrt(share * sigma**2 + RIDGE)
    k = int((length > SHORTEST * step * np.sqrt(min(tau.shape))).sum())
    if k == 0:
        return np.zeros_like(tau), 0
    exact = sigma[:, None] * vt
    known = exact.T @ exact
    h = share * known + RIDGE * np.eye(len(known))
    steps = np.maximum(step, np.abs(exact[:k]).max(1) / MOST)[:, None]
    codes = in_groups(exact[:k], known, steps) if feedback else rounded(exact[:k], steps)
    some = np.abs(codes).sum(1) > 0
    a, length = codes[some] * steps[some], length[:k][some]
    a = a / length[:, None]
    inner = a @ h @ a.T
    b = u @ (exact @ h @ a.T) @ np.linalg.inv(inner)
    steps = np.maximum(STEP_B * step, np.abs(b).max(0) / MOST)
    b = (fed_back(b, inner, steps) if feedback else rounded(b, steps)) * steps
    return (b @ a).astype(np.float32), int((np.abs(b).sum(0) > 0).sum())


def by_type(tau: np.ndarray, rank: int, type_: gguf.GGMLQuantizationType) -> tuple[np.ndarray, float]:
    """The singular value decomposition cut at a rank, both factors stored by rows as a ggml type; and its bits."""
    u, sigma, vt = np.linalg.svd(tau.astype(np.float64), full_matrices=False)
    rank, out = min(rank, len(sigma)), []
    for rows in (sigma[:rank, None] * vt[:rank], u[:, :rank].T):
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 256))).astype(np.float32)
        out.append(decode(Tensor("", rows.shape, type_, encode(rows, type_))))
    a, b = out[0][:, : tau.shape[1]], out[1][:, : tau.shape[0]]
    block_len, block_size = gguf.GGML_QUANT_SIZES[type_]
    return b.T @ a, rank * sum(tau.shape) * block_size * 8 / block_len


class Judge:
    """Divergence from a reference on the transcripts of every other prompt."""

    def __init__(self, chat: Path, models_dir: Path, first: int):
        self.model = ExactModel(chat)
        items = [json.loads(line) for line in (models_dir / "prompts-de.jsonl").read_text("utf-8").splitlines()]
        text = "".join(f"{i['chatml']}{i['answer']}<|im_end|>\n" for i in items[first::2])
        tokens = np.array(tokenize(chat, text))
        self.chunks = tokens[: len(tokens) // N_CTX * N_CTX].reshape(-1, N_CTX)

    def log_probabilities(self, weights: dict[str, np.ndarray]) -> np.ndarray:
        self.model.weights = {name: w.astype(np.float64) for name, w in weights.items()}
        rows = np.stack([self.model.logits(list(c))[N_CTX // 2 : -1] for c in self.chunks])
        rows -= rows.max(-1, keepdims=True)
        return rows - np.log(np.exp(rows).sum(-1, keepdims=True))

    def divergence(self, reference: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
        """The mean of each chunk."""
        return (np.exp(reference) * (reference - self.log_probabilities(weights))).sum(-1).mean(-1)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Of the mean, by bootstrap."""
    random = np.random.default_rng(0)
    means = values[random.integers(0, len(values), (2000, len(values)))].mean(1)
    return tuple(np.quantile(means, (0.025, 0.975)))


@dataclass
class Size:
    bits: float
    share: float | None


class Study:
    def __init__(self, chatvec: Chatvec, trio: Trio, models_dir: Path, folder: Path, quick: bool):
        self.chatvec, self.trio, self.models_dir, self.folder, self.quick = chatvec, trio, models_dir, folder, quick
        base, chat, self.cp = (weights_of(p) for p in (trio.base, trio.chat, trio.cp))
        self.tau = {n: chat[n] - base[n] for n in base}
        self.judge = Judge(trio.chat, models_dir, 1)
        self.exact = folder / "exact.gguf"
        chatvec.merge(trio, self.exact, type_="F32")
        merged = weights_of(self.exact)
        self.reference = self.judge.log_probabilities(merged)
        self.wanted = {n: w.astype(np.float64) - self.cp[n] for n, w in merged.items()}
        types = np.array(gguf.GGUFReader(trio.chat).fields["tokenizer.ggml.token_type"].contents())
        self.special = {n: merged[n][types == gguf.TokenType.CONTROL] for n in ("token_embd.weight", "output.weight")}
        self.is_special = types == gguf.TokenType.CONTROL
        self.usual = None if quick else self.answers(self.exact)
        self.f16_bytes = sum(t.n_weights * (2 if len(t.shape) > 1 else 4) for t in read_tensors(trio.chat).values())
        header = gguf.GGUFReader(trio.chat)
        self.f16_bytes += int(header.data_offset)

    def answers(self, path: Path) -> dict[str, np.ndarray]:
        """For each check, whether each prompt passed it; NaN where it was not asked for it."""
        command = [self.chatvec.path, "smoke", path, "--prompts", self.models_dir / "prompts-de.jsonl", "--max-tokens", 56, "--json"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace")
        said = json.loads(done.stdout)["marks"]
        return {check: np.array([passed(answer, check) for answer in said]) for check in CHECKS}

    def row(self, name: str, weights: dict[str, np.ndarray], size: Size, path: Path | None) -> str:
        moved = {n: weights[n].astype(np.float64) - self.cp[n] for n in self.wanted}
        square = sum((t**2).sum() for t in self.wanted.values())
        error = np.sqrt(sum(((moved[n] - t) ** 2).sum() for n, t in self.wanted.items()) / square)
        gain = sum((moved[n] * t).sum() for n, t in self.wanted.items()) / square
        kl = self.judge.divergence(self.reference, weights)
        low, high = interval(kl)
        share = "" if size.share is None else f"1/{1 / size.share:.1f}"
        cells = [name, f"{size.bits:.2f}", share, f"{error:.2f}", f"{gain:.2f}", f"{kl.mean():.4f} ({low:.4f}–{high:.4f})"]
        if not self.quick:
            cells.append("" if path is None else self.behaviour(path))
        print(line := "| " + " | ".join(cells) + " |", flush=True)
        return line

    def behaviour(self, path: Path) -> str:
        answers, cells = self.answers(path), []
        for check in CHECKS:
            difference = answers[check] - self.usual[check]
            low, high = interval(difference[~np.isnan(difference)])
            cells.append(f"{np.nanmean(answers[check]):.2f} ({low:+.2f}…{high:+.2f})")
        return " / ".join(cells)

    def extracted(self, *options: str | Path) -> str:
        patch, out = self.folder / "patch.gguf", self.folder / "out.gguf"
        self.chatvec.run("extract", "--base", self.trio.base, "--chat", self.trio.chat, "-o", patch, "--overwrite", *options)
        self.chatvec.run("apply", "--model", self.trio.cp, patch, "-o", out, "--type", "F32", "--overwrite")
        matrices = [n for n, t in self.tau.items() if t.ndim > 1]
        stored = sum(len(t.data) for n, t in read_tensors(patch).items()
                     if any(n.startswith(m) for m in matrices) and not n.endswith(("special_rows", "base_rows")))
        size = Size(stored * 8 / sum(self.tau[n].size for n in matrices), patch.stat().st_size / self.f16_bytes)
        shown = (o for o in map(str, options) if not o.startswith(str(self.folder)))
        return self.row(f"`{' '.join(shown)}`", weights_of(out), size, out)

    def imagined(self, name: str, matrix) -> str:
        """`matrix` gives what is stored of a matrix, and its bits. Embeddings are Q3_K, of rows that moved."""
        weights, bits, n_weights = {}, 0.0, sum(t.size for t in self.tau.values() if t.ndim > 1)
        for n, tau in self.tau.items():
            got = tau
            if n == "token_embd.weight":
                moved, q3_k = np.abs(tau).sum(1) > 0, gguf.GGMLQuantizationType.Q3_K
                rows, got = tau[moved], np.zeros_like(tau)
                data = encode(rows, q3_k)
                got[moved] = decode(Tensor("", rows.shape, q3_k, data))
                bits += 8 * len(data)
            elif tau.ndim > 1:
                got, n_bits = matrix(tau)
                bits += n_bits
            weights[n] = self.cp[n] + got
            if n in self.special:
                weights[n][self.is_special] = self.special[n]
        return self.row(name, weights, Size(bits / n_weights, None), None)

    def table(self) -> str:
        heads = ["encoding", "bits per weight", "of the F16 chat model", "error", "gain", "KL"]
        heads += [] if self.quick else ["ends / lang / exact, and the interval of what they differ by"]
        print("\n".join(lines := ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]))
        lines.append(self.row("the merge itself", weights_of(self.exact), Size(16, None), self.exact))
        lines += [self.extracted("--encoding", type_) for type_ in PLAIN_TYPES]
        lines.append(self.extracted("--size", "1/16"))
        lines += [self.extracted("--encoding", f"svd:{bits}") for bits in BITS]
        matrix = self.chatvec.matrix(self.trio.chat, self.models_dir, self.folder)
        lines += [self.extracted("--encoding", f"svd:{bits}", "--imatrix", matrix) for bits in (1.1, 0.45)]
        types = gguf.GGMLQuantizationType
        for rank, type_ in ((16, types.F16), (32, types.F16), (24, types.Q4_K), (32, types.Q4_K), (40, types.Q3_K)):
            name = f"rank {rank}, factors {type_.name}"
            lines.append(self.imagined(name, lambda tau: by_type(tau, rank, type_)))
        return "\n".join(lines)


def passed(marks: dict, check: str) -> float:
    """1, 0, or NaN where nobody can say."""
    if check == "language":
        spoken = marks["language"]
        return np.nan if spoken is None or spoken["found"] is None else float(spoken["found"] == spoken["expected"])
    value = marks["is_ended" if check == "ends" else "is_exact"]
    return np.nan if value is None else float(value)


def weights_of(path: Path) -> dict[str, np.ndarray]:
    return {n: decode(t) for n, t in read_tensors(path).items()}


def fixture() -> None:
    """Rank, error and gain of some matrices of the bundled F16 trio."""
    trio = find_trio(ROOT / "fixtures" / "models")
    base, chat = weights_of(trio.base), weights_of(trio.chat)
    entries = []
    for name in FIXTURE_TENSORS:
        tau = chat[name] - base[name]
        for step in FIXTURE_STEPS:
            got, rank = decomposed(tau, step)
            square = (tau.astype(np.float64) ** 2).sum()
            error = float(np.sqrt(((got - tau).astype(np.float64) ** 2).sum() / square))
            entries.append({"tensor": name, "step": step, "rank": rank, "error": round(error, 5),
                            "gain": round(float((got.astype(np.float64) * tau).sum() / square), 5)})
    FIXTURE.write_text("[\n" + ",\n".join(f"  {json.dumps(e)}" for e in entries) + "\n]\n", "utf-8")


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--models-dir", type=Path, default=ROOT / "fixtures/models", help="folder of trio and prompts")
    parser.add_argument("--write", action="store_true", help="put the table into docs/PATCH.md")
    parser.add_argument("--quick", action="store_true", help="without behaviour")
    parser.add_argument("--fixture", action="store_true", help="only write what decomposed matrices are held to")
    options = parser.parse_args()
    if options.fixture:
        fixture()
        return 0
    trio = find_trio(options.models_dir, "F32") or find_trio(options.models_dir)
    if trio is None:
        raise SystemExit(f"no trio in {options.models_dir}")
    with work_folder(options.temp_dir) as folder:
        table = Study(Chatvec(options.chatvec), trio, options.models_dir, folder, options.quick).table()
    if options.write:
        text = DOCUMENT.read_text("utf-8")
        before, rest = text.split("<!-- sizes -->\n")
        DOCUMENT.write_text(before + "<!-- sizes -->\n" + table + "\n<!-- end of sizes -->" + rest.split("<!-- end of sizes -->")[1], "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
