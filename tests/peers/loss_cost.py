"""What it costs a merge to lose the vector in some of its tensors: the tables of docs/SURVIVAL.md on the rule of `--min-survival`.

    python loss_cost.py [--chatvec PATH] [--models-dir FOLDER] [--synthetic MODEL] [--write]

The vector is left out of one tensor, or of one kind of tensors in all layers, or of a part of it (`--ratio-for REGEX=R`), all
in F32; `chatvec compare` says how far that merge diverges from the whole one (KL, nats). What that is equal to is the share of the
vector that, left out of *every* tensor, costs the same. What an output *misses* by the rule of `--min-survival` is held
against that: the root of Σ w·(1 − survival)² / Σ w over matrices, with w = ‖δ‖²/‖W‖² or w = ‖δ‖², whichever is more. A measure is
good if it is about as large as what the loss is equal to, and never much less.

Without `--synthetic` the models are the bundled trio and the text is German chats; with it, a vector is made up for a real model,
as in survival.py. `--write` puts the table into docs/SURVIVAL.md. Needs numpy and gguf (requirements.txt).
"""

import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ggml_codec import decode
from gguf_files import F32, Tensor, read_tensors, rewrite
from survival import DOCUMENT, put_tables
from tool import ROOT, Chatvec, Trio, arguments, find_trio, work_folder

#: Shares of the vector that are left out of every tensor, for the scale.
UNIFORM = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
#: A ratio that adds next to nothing: 0 is another merge.
NOTHING = 1e-6


@dataclass
class Study:
    chatvec: Chatvec
    trio: Trio
    text: list
    folder: Path

    def __post_init__(self):
        base, chat, cp = (read_tensors(p) for p in (self.trio.base, self.trio.chat, self.trio.cp))
        self.energy, self.relative = {}, {}
        for name, model in cp.items():
            if name not in base or len(model.shape) < 2:
                continue
            square = lambda w: float(np.vdot(w, w))
            delta2 = square(decode(chat[name]) - decode(base[name]))
            if delta2 > 0:
                self.energy[name], self.relative[name] = delta2, delta2 / square(decode(model))
        self.whole = self.merge("whole.gguf")
        self.scale = [(share, self.cost("--ratio", max(1 - share, NOTHING))) for share in UNIFORM]

    def merge(self, name: str, *options) -> Path:
        out = self.folder / name
        self.chatvec.run("merge", "--base", self.trio.base, "--chat", self.trio.chat, "--model", self.trio.cp, "-o", out,
                         "--type", "F32", "--embeddings", "all", "--special-tokens", "none", "--on-loss", "warn",
                         "--overwrite", "--force", *options)
        return out

    def cost(self, *options) -> float:
        out = self.merge("part.gguf", *options)
        command = [self.chatvec.path, "compare", self.whole, out, *self.text, "--json"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace", check=True)
        return json.loads(done.stdout)["logits"]["kl"]["mean"]["value"]

    def equal_to(self, cost: float) -> float:
        """The share that costs as much when it is left out everywhere, between those that were tried; the cost grows with its square."""
        shares, costs = zip(*self.scale)
        if cost <= costs[0]:
            return shares[0] * math.sqrt(max(cost, 0) / costs[0])
        return math.exp(np.interp(math.log(cost), np.log(costs), np.log(shares)))

    def row(self, name: str, pattern: str, part: float) -> tuple:
        names = [n for n in self.relative if re.search(pattern, n)]
        share = lambda of: part * math.sqrt(sum(of[n] for n in names) / sum(of.values()))
        cost = self.cost("--ratio-for", f"{pattern}={1 - part}")
        row = (name, len(names), part, share(self.relative), share(self.energy), cost, self.equal_to(cost))
        print(f"{row[0]:28s} {row[2]:5.2f} own {row[3]:.3f} norm {row[4]:.3f} KL {row[5]:.4f} equal {row[6]:.3f}", flush=True)
        return row

    def rows(self, each: bool) -> list[tuple]:
        kinds = sorted({re.sub(r"^blk\.\d+\.", "", n) for n in self.relative})
        rows = [self.row(kind.removesuffix(".weight"), rf"(^|\.){re.escape(kind)}$", part) for kind in kinds for part in (0.3, 1.0)]
        rows.append(self.row("all layers", r"^blk\.", 1.0))
        rows += [self.row(n, f"^{re.escape(n)}$", 1.0) for n in self.relative] if each else []
        return rows


def table(study: Study, each: bool) -> str:
    rows = study.rows(each)
    lines = ["| left out | tensors | by ‖δ‖/‖W‖ | by ‖δ‖ | missing | KL | equal to |", "|---|---|---|---|---|---|---|"]
    lines += [f"| {share:.0%} of the vector everywhere | {len(study.relative)} | {share:.3f} | {share:.3f} | {share:.3f} | {cost:.4f} | {share:.3f} |"
              for share, cost in study.scale if share in (0.1, 1.0)]
    lines += [f"| {'all' if part == 1 else f'{part:.0%}'} of {name} | {n} | {own:.3f} | {norm:.3f} | {max(own, norm):.3f} | {cost:.4f} | {equal:.3f} |"
              for name, n, part, own, norm, cost, equal in rows]
    judged = [(r[6] / max(r[3], r[4]), r[6] / r[3], r[6] / r[4]) for r in rows if r[0] != "all layers"]
    for i, what in enumerate(("the rule", "‖δ‖/‖W‖ alone", "‖δ‖ alone")):
        ratios = sorted(pair[i] for pair in judged)
        spread = math.exp(np.std(np.log(ratios)))
        print(f"equal to / missing by {what}: {ratios[0]:.2f} to {ratios[-1]:.2f}, median {ratios[len(ratios) // 2]:.2f}, "
              f"spread × {spread:.2f}")
    return "\n".join(lines)


def made_up(model: Path, folder: Path) -> Trio:
    """A real model, that model again as base, and a chat model with a made-up vector of 3 % of the weights in every matrix."""
    random, base, chat = np.random.default_rng(1), {}, {}
    for name, t in read_tensors(model).items():
        w = decode(t)
        base[name] = chat[name] = Tensor(name, w.shape, F32, w.reshape(-1).view(np.uint8))
        if w.ndim == 2:
            tau = (random.standard_normal((w.shape[0], 32)) / np.arange(1, 33)) @ random.standard_normal((32, w.shape[1]))
            tau = tau / np.linalg.norm(tau) + 0.3 * random.standard_normal(w.shape) / math.sqrt(w.size)
            w = np.float32(w + tau * (0.03 * np.linalg.norm(w) / np.linalg.norm(tau)))
            chat[name] = Tensor(name, w.shape, F32, w.reshape(-1).view(np.uint8))
    paths = [rewrite(model, folder / f"{role}.gguf", t) for role, t in (("base", base), ("chat", chat), ("cp", base))]
    return Trio(*paths)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--models-dir", type=Path, default=ROOT / "fixtures/models", help="folder of the trio")
    parser.add_argument("--synthetic", type=Path, metavar="MODEL", help="a made-up vector on this quantised model instead")
    parser.add_argument("--mark", default="loss on a larger model", help="with --synthetic --write: the table's mark")
    parser.add_argument("--write", action="store_true", help="put the table into docs/SURVIVAL.md")
    options = parser.parse_args()
    with work_folder(options.temp_dir) as folder:
        if options.synthetic:
            trio, mark = made_up(options.synthetic, folder), options.mark
            text = ["--text", ROOT / "README.md", "-c", 128, "--chunks", 4]
        else:
            trio, mark = find_trio(options.models_dir), "loss on the trio"
            text = ["--text", ROOT / "fixtures/compare/chat-de.txt", "--parse-special", "-c", 256]
        if trio is None:
            raise SystemExit(f"no F16 trio in {options.models_dir}")
        text = table(Study(Chatvec(options.chatvec), trio, text, folder), options.synthetic is None)
    if options.write:
        put_tables(DOCUMENT, {mark: text})
    return 0


if __name__ == "__main__":
    sys.exit(main())
