"""Merges at the shapes of large models, onto a 4-bit model: the default way, finer types, and a patch must all be taken.

    python at_scale.py FOLDER [--chatvec PATH] [--set NAME] [--threads N] [--keep] [--beside PATH [--runs N]]

Makes two sets of files in FOLDER, one after the other (`synthetic.py` has the shapes and vocabularies), with cp as Q4_K_M:

    w8b   10 layers as wide as an 8B model's, 128,256 tokens; a vector of falling spectrum and noise     15 GB
    w2k   32 layers of width 2048, 32,000 tokens, 292 tensors; a vector of independent numbers            9 GB

and runs, on each: `merge`, `merge --on-loss promote`, `extract -e q4_k` with `apply`; each has to end with exit code 0, the first and
the last at the model's size within 1 %. Survival of every matrix is then computed from the output's bytes by gguf-py and numpy, and
held against what the run said and against the bound of .9. Rounding to the nearest must be told: `--on-loss warn` says so, and
`--on-loss fail` ends with exit code 10. Needs numpy and gguf.

With `--beside`, `merge` is only timed, in turns with another build of the command, and nothing is judged: medians of wall and CPU
seconds and of peak memory (`ru_maxrss`, Linux), and the exit codes.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np

import synthetic
from tool import ROOT

SETS = {"w8b": (synthetic.Shape(128_256, 4096, 10), 256), "w2k": (synthetic.Shape(32_000, 2048, 32), 0)}
#: ‖δ‖/‖W‖, and the share of independent numbers in the norm of a vector that has a spectrum.
SIZE, NOISE = 0.03, 0.6
DRIFT = 0.05
LEAST = 0.9
ROWS = 2048


class Vector:
    """The vector of one matrix, by rows: directions of falling strength and independent numbers, or these alone."""

    def __init__(self, n_columns: int, rank: int, draw, rng: np.random.Generator):
        self.draw, self.rng, self.rank = draw, rng, min(rank, n_columns)
        strength = np.arange(1, self.rank + 1, dtype=np.float32) ** -0.7
        scale = synthetic.WEIGHT_SCALE * SIZE
        self.noise = scale * (NOISE if rank else 1.0)
        self.strength = strength * scale * math.sqrt(1 - NOISE**2) / np.sqrt((strength**2).sum()) if rank else strength
        self.directions = rng.standard_normal((self.rank, n_columns), dtype=np.float32)

    def rows(self, shape: tuple[int, int]) -> np.ndarray:
        rows = np.float32(self.noise) * self.draw(shape)
        if self.rank:
            mixed = self.rng.standard_normal((shape[0], self.rank), dtype=np.float32) * self.strength
            rows += mixed @ self.directions
        return rows


def make(folder: Path, shape: synthetic.Shape, rank: int):
    rng = np.random.default_rng(1)
    tokens, merges = synthetic.vocabulary(shape.vocab, rng)
    kinds = ("base", "chat", "cp")
    writers = {k: synthetic.open_file(folder / f"{k}.gguf", k, shape, tokens, merges) for k in kinds}
    pool = rng.standard_normal(synthetic.POOL, dtype=np.float32)

    def draw(shape: tuple) -> np.ndarray:
        n = math.prod(shape)
        parts = [synthetic._draw(pool, min(synthetic.CHUNK, n - at), rng) for at in range(0, n, synthetic.CHUNK)]
        return np.concatenate(parts).reshape(shape)

    for name, dims in shape.tensors():
        for w in writers.values():
            w.write_padding(w.fout[0], w.fout[0].tell())
        if len(dims) == 1:
            for kind, w in writers.items():
                small = np.float32(0 if kind == "base" or name.startswith("rope") else 0.001)
                w.fout[0].write((1 + small * draw(dims)).astype(np.float32).data)
            continue
        vector = Vector(dims[1], rank, draw, rng)
        for start in range(0, dims[0], 1024):
            part = (min(1024, dims[0] - start), dims[1])
            base = np.float32(synthetic.WEIGHT_SCALE) * draw(part)
            rows = {"base": base, "chat": base + vector.rows(part),
                    "cp": base + np.float32(synthetic.WEIGHT_SCALE * DRIFT) * draw(part)}
            for kind, w in writers.items():
                w.fout[0].write(rows[kind].astype(np.float16).data)
    for w in writers.values():
        w.write_padding(w.fout[0], w.fout[0].tell())
        w.close()


def decoded(tensor: gguf.ReaderTensor, rows: slice) -> np.ndarray:
    if tensor.tensor_type in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        return tensor.data[rows].astype(np.float32)
    return gguf.quants.dequantize(tensor.data[rows], tensor.tensor_type)


def product(a: np.ndarray, b: np.ndarray) -> float:
    """The inner product, a row at a time in f32, rows in f64: one sum in f32 is off by up to 1e-4 at these sizes."""
    return float(np.einsum("ij,ij->i", a, b).sum(dtype=np.float64))


def survivals(files: dict[str, Path], output: Path) -> dict[str, tuple[float, float, float]]:
    """Survival of each matrix by the files' bytes, and its two weights in the rule."""
    readers = {k: {t.name: t for t in gguf.GGUFReader(p).tensors} for k, p in (*files.items(), ("out", output))}
    found = {}
    for name, out in readers["out"].items():
        if len(out.shape) == 1:
            continue
        kept = square = model2 = 0.0
        for start in range(0, len(out.data), ROWS):
            m, b, c, q = (decoded(readers[k][name], slice(start, start + ROWS)) for k in ("cp", "base", "chat", "out"))
            delta = c - b
            kept += product(q - m, delta)
            square += product(delta, delta)
            model2 += product(m, m)
        found[name] = (kept / square, square / model2, square)
    return found


class Checks:
    def __init__(self, chatvec: Path, folder: Path, threads: int | None):
        self.chatvec, self.folder, self.n_wrong = chatvec, folder, 0
        self.threads = ("--threads", threads) if threads else ()

    def hold(self, what: str, is_right: bool):
        self.n_wrong += not is_right
        print(f"  {'right' if is_right else 'WRONG'}: {what}", flush=True)

    def run(self, *args):
        before, command = time.monotonic(), [self.chatvec, *map(str, args), *map(str, self.threads)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
        out, err = child.communicate()
        print(f"  {args[0]} {' '.join(str(a) for a in args if str(a).startswith('--'))}: exit {child.returncode}, "
              f"{time.monotonic() - before:.1f} s", flush=True)
        for line in err.splitlines():
            print("    " + line)
        return child.returncode, json.loads(out) if out.strip().startswith("{") else None, err

    def output(self, what: str, files: dict[str, Path], args: tuple, same_size: bool):
        out = self.folder / "out.gguf"
        code, said, _ = self.run(*args, "-o", out, "--json", "--overwrite")
        self.hold(f"{what}: exit code 0, got {code}", code == 0)
        path = out if code == 0 else Path(f"{out}.rejected")
        ratio = path.stat().st_size / files["cp"].stat().st_size
        self.hold(f"{what}: {ratio:.4f} of the model's size", not same_size or abs(ratio - 1) < 0.01)
        found = survivals(files, path)
        said_of = {t["name"]: t["survival"] for t in said["tensors"]}
        off, where = max((abs(said_of[n] - s), n) for n, (s, *_) in found.items())
        least = min(found, key=lambda n: found[n][0])
        self.hold(f"{what}: survival as the run said it, within {off:.1e}, in {where}", off < 1e-5)
        self.hold(f"{what}: least survival {found[least][0]:.4f}, in {least}", found[least][0] >= LEAST - 1e-5)
        mean = lambda i: sum(t[i] * max(0, 1 - t[0]) ** 2 for t in found.values()) / sum(t[i] for t in found.values())
        missing = math.sqrt(max(mean(1), mean(2)))
        self.hold(f"{what}: missing {missing:.4f}, the run said {said['missing']:.4f}", abs(missing - said["missing"]) < 1e-5)
        print(f"    encoded again: {len(said['mended'])}")
        path.unlink()

    def files(self, name: str) -> dict[str, Path]:
        """The files of a set, made if they are not there."""
        shape, rank = SETS[name]
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        files = {k: folder / f"{k}.gguf" for k in ("base", "chat")} | {"cp": folder / "cp-Q4_K_M.gguf"}
        if not all(path.exists() for path in files.values()):
            make(folder, shape, rank)
            self.run("quantize", folder / "cp.gguf", "-o", files["cp"], "--type", "Q4_K_M", "--overwrite")
            (folder / "cp.gguf").unlink()
        return files

    def timed(self, name: str, other: Path, n_runs: int):
        files, out = self.files(name), self.folder / "out.gguf"
        merge = ["merge", "--base", files["base"], "--chat", files["chat"], "--model", files["cp"], "-o", out, *self.threads]
        found = {command: [] for command in (self.chatvec, other)}
        for _ in range(n_runs):
            for command, runs in found.items():
                before = time.monotonic()
                child = subprocess.Popen([command, *map(str, merge)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                _, status, used = os.wait4(child.pid, 0)
                wall, code = time.monotonic() - before, os.waitstatus_to_exitcode(status)
                runs.append((wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, code))
                print(f"  {command}: {wall:.1f} s, CPU {runs[-1][1]:.1f} s, {runs[-1][2]:.0f} MiB, exit {code}", flush=True)
                for path in (out, Path(f"{out}.rejected")):
                    path.unlink(missing_ok=True)
        for command, runs in found.items():
            wall, cpu, peak, code = (sorted(values) for values in zip(*runs))
            print(f"  {command}, medians of {n_runs}: {statistics.median(wall):.1f} s ({wall[0]:.1f} to {wall[-1]:.1f}), "
                  f"CPU {statistics.median(cpu):.1f} s ({cpu[0]:.1f} to {cpu[-1]:.1f}), {statistics.median(peak):.0f} MiB, "
                  f"exit {', '.join(map(str, sorted(set(code))))}")

    def set(self, name: str):
        files, folder = self.files(name), self.folder / name
        merge = ("merge", "--base", files["base"], "--chat", files["chat"], "--model", files["cp"])
        self.output("merge", files, merge, True)
        self.output("promote", files, (*merge, "--on-loss", "promote"), False)
        patch = folder / "patch.gguf"
        code, *_ = self.run("extract", "--base", files["base"], "--chat", files["chat"], "-e", "q4_k", "-o", patch, "--overwrite")
        self.hold(f"extract: exit code 0, got {code}", code == 0)
        out = self.folder / "out.gguf"
        code, said, _ = self.run("apply", "--model", files["cp"], patch, "-o", out, "--json", "--overwrite")
        self.hold(f"apply: exit code 0, got {code}", code == 0)
        path = out if code == 0 else Path(f"{out}.rejected")
        ratio = path.stat().st_size / files["cp"].stat().st_size
        self.hold(f"apply: {ratio:.4f} of the model's size, {said['missing']:.4f} missing", abs(ratio - 1) < 0.01)
        path.unlink()
        patch.unlink()
        code, said, err = self.run(*merge, "--on-loss", "warn", "-o", out, "--json", "--overwrite")
        told = "rounding took the vector" in err and said["total"]["survival"] < LEAST
        self.hold(f"warn: exit code 0 and told, got {code}, survival {said['total']['survival']:.3f}", code == 0 and told)
        out.unlink()
        code, *_ = self.run(*merge, "--on-loss", "fail", "-o", out)
        self.hold(f"fail: exit code 10 before anything is written, got {code}", code == 10 and not out.exists())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chatvec", type=Path, default=ROOT / "target/release/chatvec", help="the command under test")
    parser.add_argument("--set", choices=SETS, help="only this one")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--keep", action="store_true", help="leave the files of the sets there, for the next time")
    parser.add_argument("--beside", type=Path, metavar="PATH", help="time merge in turns with this build of the command")
    parser.add_argument("--runs", type=int, default=5, help="how often, with --beside (default 5)")
    options = parser.parse_args()
    checks = Checks(options.chatvec.resolve(), options.folder, options.threads)
    for name in [options.set] if options.set else SETS:
        print(name, flush=True)
        if options.beside:
            checks.timed(name, options.beside.resolve(), options.runs)
        else:
            checks.set(name)
        if not options.keep:
            shutil.rmtree(options.folder / name)
    print(f"{checks.n_wrong} wrong")
    return int(checks.n_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
