"""Measures memory and speed of a merge much larger than its budget, beside simpler ways of moving the same bytes.

    python peak_memory.py [--files DIR | --gb 1.0 --vocab 128000] [--chatvec PATH] [--runs 7] [--memory 64MiB] [--limit-mib 160]

Merges a synthetic trio (synthetic.py; or base-F16.gguf, chat-F16.gguf, cp-F16.gguf of DIR) with `--memory 64MiB
--threads 2`, once into F16 and once into Q8_0. Ends with 1 when the peak resident set reaches the limit or a tensor
differs from what numpy and ggml give. Times on a shared machine say little; the ratios to peers of the same run say more:

    cat and cp    reads the three inputs (`cat`), then copies one to the same disk and syncs it: all the bytes of a merge, and no
                  arithmetic. The F16 merge may take 1.5 times as long
    numpy         the same merge over memory-mapped files by numpy, with real ggml's Q8_0 encoder, on one thread
"""

import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from tool import PLAIN, VECTOR_LOST, Chatvec, Trio, arguments, work_folder

THREADS = 2
NUMPY_CHUNK_ROWS_BYTES = 1 << 23


@dataclass
class Run:
    """What one child process took."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    #: Read and written.
    n_bytes: int = 0

    def row(self, name: str, beside: "Run | None" = None) -> str:
        ratio = f"{self.wall_s / beside.wall_s:8.2f} {self.cpu_s / beside.cpu_s:8.2f}" if beside else f"{'':17}"
        speed = f"{self.n_bytes / self.wall_s / 1e9:6.2f}"
        return f"{name:<16} {self.wall_s:7.2f} {self.cpu_s:7.2f} {speed} {self.peak_mib:9.1f} {ratio}".rstrip()


def measure(command: list, good=(0,)) -> Run:
    """Runs a command to its end.

    The child is measured by wait4, whose ru_maxrss counts this process too until the child's exec: so this script
    stays small and leaves numpy to children.
    """
    began = time.monotonic()
    pid = os.posix_spawnp(str(command[0]), [str(c) for c in command], os.environ)
    _, status, used = os.wait4(pid, 0)
    wall_s = time.monotonic() - began
    code = os.waitstatus_to_exitcode(status)
    if code not in good:
        raise SystemExit(f"{' '.join(map(str, command))}: exit {code}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss * unit / (1 << 20))


def warm(trio: Trio):
    """Reads the inputs once, so that the first run does not pay for the disk."""
    for path in (trio.base, trio.chat, trio.cp):
        with open(path, "rb", buffering=0) as f:
            while f.read(1 << 22):
                pass


def size(*paths: Path) -> int:
    return sum(p.stat().st_size for p in paths)


def merge_run(chatvec: Chatvec, trio: Trio, out: Path, type_: str, memory: str) -> Run:
    """chatvec's own run."""
    pure = ("--pure",) if type_ == "Q8_0" else ()
    run = measure([chatvec.path, "merge", "--base", trio.base, "--chat", trio.chat, "--model", trio.cp, "-o", out,
                   "--type", type_, *pure, *PLAIN, "--memory", memory, "--threads", THREADS], good=(0, VECTOR_LOST))
    run.n_bytes = size(trio.base, trio.chat, trio.cp, out)
    return run


def copy_run(trio: Trio, out: Path) -> Run:
    """The bytes of a merge without its arithmetic."""
    run = measure(["sh", "-c", 'cat "$1" "$2" "$3" >/dev/null && cp "$3" "$4" && sync "$4"', "sh",
                   trio.base, trio.chat, trio.cp, out])
    run.n_bytes = size(trio.base, trio.chat, trio.cp) + 2 * size(trio.cp)
    out.unlink()
    return run


def median(runs: list[Run]) -> Run:
    """The run that took the median time."""
    return replace(sorted(runs, key=lambda run: run.wall_s)[len(runs) // 2])


def numpy_run(trio: Trio, merged: Path, plain: Path) -> tuple[Run, int]:
    """The same merge by numpy, then the number of bytes in which chatvec's file differs from it."""
    run = measure([sys.executable, __file__, "--numpy-merge", trio.base, trio.chat, trio.cp, merged, plain])
    run.n_bytes = size(trio.base, trio.chat, trio.cp, plain)
    differing = plain.with_suffix(".differing")
    measure([sys.executable, __file__, "--compare", merged, plain, differing])
    return run, int(differing.read_text())


def numpy_merge(base: Path, chat: Path, cp: Path, like: Path, out: Path):
    """A child's work: tensor data of the merge, with the types and order of the file `like`, without a header."""
    import gguf
    import numpy as np

    from ggml_codec import encode

    def mapped(path):
        return {t.name: t for t in gguf.GGUFReader(path).tensors}

    b, c, m = mapped(base), mapped(chat), mapped(cp)
    with open(out, "wb") as f:
        for name, type_ in ((t.name, t.tensor_type) for t in gguf.GGUFReader(like).tensors):
            arrays = [t[name].data for t in (b, c, m)]
            if name == "rope_freqs.weight":
                f.write(arrays[2].tobytes())
                continue
            row_bytes = arrays[0].nbytes // arrays[0].shape[0]
            step = max(1, NUMPY_CHUNK_ROWS_BYTES // row_bytes)
            for start in range(0, arrays[0].shape[0], step):
                x, y, z = (np.asarray(a[start:start + step], dtype=np.float32) for a in arrays)
                f.write(encode(z + (y - x), type_).data)


def compare(merged: Path, plain: Path, result: Path):
    """A child's work: bytes that differ, -0 being equal to +0; all of them when the sizes disagree."""
    import gguf
    import numpy as np

    numbers = {"F32": np.float32, "F16": np.float16}
    expected = np.memmap(plain, dtype=np.uint8, mode="r")
    differing = at = 0
    for t in gguf.GGUFReader(merged).tensors:
        found = t.data.reshape(-1).view(np.uint8)
        for start in range(0, found.size, NUMPY_CHUNK_ROWS_BYTES):
            a = found[start:start + NUMPY_CHUNK_ROWS_BYTES]
            b = np.array(expected[at + start:at + start + a.size])
            dtype = numbers.get(t.tensor_type.name, np.uint8)
            differing += int((a.view(dtype) != b.view(dtype)).sum())
        at += found.size
    if at != expected.size:
        differing += abs(at - expected.size)
    result.write_text(str(differing))


def main() -> int:
    if sys.argv[1:2] == ["--numpy-merge"]:
        numpy_merge(*map(Path, sys.argv[2:7]))
        return 0
    if sys.argv[1:2] == ["--compare"]:
        compare(*map(Path, sys.argv[2:5]))
        return 0
    parser = arguments(__doc__)
    parser.add_argument("--files", type=Path, help="folder of a trio that synthetic.py wrote (default: write one)")
    parser.add_argument("--gb", type=float, default=1.0, help="size of each file to write, in 10^9 bytes")
    parser.add_argument("--vocab", type=int, default=128_000, help="tokens of the files to write")
    parser.add_argument("--runs", type=int, default=7, help="runs of each merge, of which the median counts")
    parser.add_argument("--memory", default="64MiB", help="what the merges get as --memory")
    parser.add_argument("--limit-mib", type=float, default=160, help="peak resident set that counts as too much")
    options = parser.parse_args()
    chatvec = Chatvec(options.chatvec)
    failed = 0
    with work_folder(options.temp_dir) as folder:
        files = options.files or folder
        if not options.files:
            maker = Path(__file__).with_name("synthetic.py")
            measure([sys.executable, maker, folder, "--gb", options.gb, "--vocab", options.vocab])
        trio = Trio(*(files / f"{k}-F16.gguf" for k in ("base", "chat", "cp")))
        warm(trio)
        print(f"{'':<16} {'wall s':>7} {'cpu s':>7} {'GB/s':>6} {'peak MiB':>9} {'wall':>8} {'cpu':>8} (of numpy's)")
        for type_ in ("keep", "Q8_0"):
            merged, plain = folder / f"merged-{type_}.gguf", folder / f"numpy-{type_}.bin"
            copies, runs = [], []
            # In turns, since the disk and other programs are not steady.
            for _ in range(options.runs):
                if type_ == "keep":
                    copies.append(copy_run(trio, folder / "copy.gguf"))
                merged.unlink(missing_ok=True)
                runs.append(merge_run(chatvec, trio, merged, type_, options.memory))
            run = median(runs)
            run.peak_mib = max(r.peak_mib for r in runs)
            if copies:
                copy = median(copies)
                print(copy.row("cat and cp"), flush=True)
            peer, differing = numpy_run(trio, merged, plain)
            print(peer.row(f"numpy {type_}"))
            print(run.row(f"chatvec {type_}", peer), flush=True)
            if type_ == "keep":
                print(f"chatvec keep takes {run.wall_s / copy.wall_s:.2f} times as long as cat and cp (medians of {options.runs})", flush=True)
                for name, all_ in (("cat and cp", copies), ("chatvec keep", runs)):
                    print(f"  {name}: " + ", ".join(f"{r.wall_s:.2f} s" for r in all_), flush=True)
            if run.peak_mib >= options.limit_mib:
                print(f"FAIL {type_}: peak of {run.peak_mib:.1f} MiB, limit {options.limit_mib:g} MiB, budget {options.memory}")
                failed += 1
            if differing:
                print(f"FAIL {type_}: {differing} weights or bytes differ from numpy's merge")
                failed += 1
            merged.unlink()
            plain.unlink()
    print(f"{4 - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
