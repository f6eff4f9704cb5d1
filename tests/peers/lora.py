"""Adapters by `extract --lora` and `--residual-lora`: the tables of docs/PATCH.md, section "LoRA".

    python lora.py [--chatvec PATH] [--models-dir FOLDER] [--only TABLE] [--write] [--quick]

For adapters of the bundled trio's vector at several ranks: how many of the 167 German prompts the model with the adapter, in
llama.cpp, answers token for token as the exact merge does (all in F32), and the divergence from it (KL, nats) by a forward pass
in f64 on the German transcripts. For merges to Q4_K: the divergence with and without the adapter of what rounding took.
`--write` puts the tables into docs/PATCH.md, between their marks; `--quick` leaves llama.cpp out. Needs what survival.py and
llama_cpp.py need.
"""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np

from ggml_codec import decode
from gguf_files import read_tensors
from llama_cpp import agreement
from survival import Judge
from tool import PLAIN, ROOT, Chatvec, Trio, arguments, find_trio, work_folder

DOCUMENT = ROOT / "docs" / "PATCH.md"
RANKS, RESIDUAL_RANKS = (8, 16, 32, 64, 96, 128), (8, 32)


def adapter_of(path: Path) -> dict[str, np.ndarray]:
    """What an adapter adds to each weight, as llama.cpp multiplies it out."""
    reader = gguf.GGUFReader(path)
    alpha = reader.fields["adapter.lora.alpha"].contents()
    tensors, added = {n: decode(t).astype(np.float64) for n, t in read_tensors(path).items()}, {}
    for name in (n.removesuffix(".lora_a") for n in tensors if n.endswith(".lora_a")):
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        # Factors of token embeddings have changed places: a row of the first for each token.
        product = a @ b.T if name == "token_embd.weight" else b @ a
        added[name] = product * (alpha / b.shape[-1])
    return added


def with_adapter(weights: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    added = adapter_of(path)
    return {n: w + added.get(n, 0.0) for n, w in weights.items()}


def weights_of(path: Path) -> dict[str, np.ndarray]:
    return {n: decode(t).astype(np.float64) for n, t in read_tensors(path).items()}


class Study:
    def __init__(self, chatvec: Chatvec, trio: Trio, models_dir: Path, folder: Path, quick: bool):
        self.chatvec, self.trio, self.folder, self.quick = chatvec, trio, folder, quick
        self.prompts = models_dir / "prompts-de.jsonl"
        self.judge = Judge(trio.chat, models_dir)
        self.cp, self.exact = folder / "cp.gguf", folder / "exact.gguf"
        chatvec.run("quantize", trio.cp, "-o", self.cp, "--type", "F32")
        chatvec.merge(trio, self.exact, *PLAIN, type_="F32")
        self.reference = self.judge.log_probabilities(weights_of(self.exact))
        self.weights = weights_of(self.cp)

    def run(self, *args) -> dict:
        command = [str(a) for a in (self.chatvec.path, *args, "--json", "--overwrite")]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode not in (0, 10):
            raise SystemExit(done.stderr)
        return json.loads(done.stdout)

    def divergence(self, weights: dict[str, np.ndarray]) -> str:
        return "{:.4f} ± {:.4f}".format(*self.judge.divergence(self.reference, weights))

    def matrix(self, model: Path) -> Path:
        return self.chatvec.matrix(model, self.prompts.parent, self.folder)

    def vector(self) -> str:
        heads = ["rank", "type", "KiB", "left out", "KL", *([] if self.quick else ["same answers"])]
        lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for rank in RANKS:
            for ty, options in (("f16", ()), ("q8_0", ()), ("f16, `--imatrix`", ("--imatrix", self.matrix(self.trio.chat)))):
                out = self.folder / f"lora-{rank}-{ty[:3]}{len(options)}.gguf"
                said = self.run("extract", "--base", self.trio.base, "--chat", self.trio.chat, "--lora", out, "--rank", rank,
                                "--lora-type", ty.split(",")[0], *options)
                kl = self.divergence(with_adapter(self.weights, out))
                cells = [rank, ty, out.stat().st_size // 1024, f"{100 * said['total']['error']:.1f} %", kl]
                if not self.quick:
                    cells.append(f"{100 * agreement(self.exact, self.cp, out, self.prompts):.1f} %")
                lines.append("| " + " | ".join(map(str, cells)) + " |")
                print(lines[-1], flush=True)
        return "\n".join(lines)

    def residual(self) -> str:
        heads = ["output", "adapter", "KiB of both", "survival", "noise", "KL"]
        lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        merge = ("merge", "--base", self.trio.base, "--chat", self.trio.chat, "--embeddings", "all", "--special-tokens", "none")
        warn = ("--on-loss", "warn")
        cp_q4 = self.folder / "cp-q4.gguf"
        self.run("quantize", self.trio.cp, "-o", cp_q4, "--type", "Q4_K", "--pure")
        for name, model, options in (
            ("F16 model, `--type Q4_K`", self.trio.cp, ("--type", "Q4_K", "--pure", *warn)),
            ("finer: `--type Q5_K`", self.trio.cp, ("--type", "Q5_K", "--pure", *warn)),
            ("finer: `--type Q6_K`", self.trio.cp, ("--type", "Q6_K", "--pure", *warn)),
            ("`--type Q4_K` with `--imatrix`", self.trio.cp, ("--type", "Q4_K", "--pure", *warn, "--imatrix", self.matrix(self.exact))),
            ("Q4_K model, `--on-loss warn`", cp_q4, warn),
            ("Q4_K model, `--on-loss dither`", cp_q4, ("--on-loss", "dither")),
        ):
            for rank in (None, *(RESIDUAL_RANKS if "finer" not in name else ())):
                out, beside = self.folder / "out.gguf", self.folder / f"residual-{rank}.gguf"
                more = () if rank is None else ("--residual-lora", beside, "--residual-rank", rank)
                said = self.run(*merge, "--model", model, "-o", out, *options, *more)
                total = said["total"] if rank is None else said["lora"]["total"]
                weights = weights_of(out)
                weights = weights if rank is None else with_adapter(weights, beside)
                size = out.stat().st_size // 1024
                size = str(size) if rank is None else f"{size} + {beside.stat().st_size // 1024}"
                rank = "–" if rank is None else f"rank {rank}"
                cells = [name, rank, size, f"{total['survival']:.3f}", f"{total['noise']:.3f}", self.divergence(weights)]
                lines.append("| " + " | ".join(map(str, cells)) + " |")
                print(lines[-1], flush=True)
        return "\n".join(lines)


def put(mark: str, table: str) -> None:
    text = DOCUMENT.read_text("utf-8")
    start, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
    before, rest = text.split(start)
    _, after = rest.split(end)
    DOCUMENT.write_text(f"{before}{start}{table}\n{end}{after}", "utf-8")


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--models-dir", type=Path, default=ROOT / "fixtures/models", help="folder of trio and prompts")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/PATCH.md")
    parser.add_argument("--only", choices=("vector", "residual"), help="one of the two tables")
    parser.add_argument("--quick", action="store_true", help="leave llama.cpp out")
    options = parser.parse_args()
    trio = find_trio(options.models_dir)
    with work_folder(options.temp_dir) as folder:
        study = Study(Chatvec(options.chatvec), trio, options.models_dir, folder, options.quick)
        makers = {"residual": study.residual, "vector": study.vector}
        tables = {f"lora: {name}": make() for name, make in makers.items() if options.only in (None, name)}
    if options.write:
        for mark, table in tables.items():
            put(mark, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
