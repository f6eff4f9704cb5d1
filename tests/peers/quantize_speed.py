"""Measures `chatvec quantize` beside llama-quantize on a large synthetic Llama, and compares every tensor's bytes.

    cargo build --release && cargo build --release -p oracle --example llama_quantize
    python quantize_speed.py [--gb 1.0] [--types Q8_0,Q4_0,...] [--levels avx2,avx512] [--runs 3]

One F16 file (synthetic.py) is quantised by both in turns, two threads each, from the page cache. What counts is the CPU
time, as the medians of the runs; wall times on a shared machine say little. Ends with 1 when a tensor differs in type or
in a byte. `--levels` are levels of vector instructions that chatvec is held to; the default is the best there is.
"""

import statistics
import subprocess
import sys
from pathlib import Path

from peak_memory import THREADS, Run, measure
from tool import ROOT, Chatvec, arguments, work_folder

#: `enum llama_ftype` (include/llama.h).
FILE_TYPES = {"Q4_0": 2, "Q8_0": 7, "Q3_K_M": 12, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "Q2_K": 10, "IQ4_NL": 25, "IQ4_XS": 30,
              "IQ3_S": 26, "IQ3_XXS": 23}
DEFAULT_TYPES = "Q8_0,Q4_0,Q4_K_M,Q5_K_M,Q6_K,IQ4_XS"


def median(runs: list[Run]) -> Run:
    """Wall and CPU time as medians, memory as the largest."""
    return Run(statistics.median(r.wall_s for r in runs), statistics.median(r.cpu_s for r in runs),
               max(r.peak_mib for r in runs))


def differences(ours: Path, theirs: Path) -> list[str]:
    """What differs between two files, tensor by tensor; the order of tensors may."""
    import gguf

    def tensors(path):
        return {t.name: t for t in gguf.GGUFReader(path).tensors}

    a, b = tensors(ours), tensors(theirs)
    found = [f"{name} is in one file only" for name in a.keys() ^ b.keys()]
    for name in a.keys() & b.keys():
        if a[name].tensor_type != b[name].tensor_type:
            found.append(f"{name}: {a[name].tensor_type.name}, llama-quantize {b[name].tensor_type.name}")
        elif a[name].data.tobytes() != b[name].data.tobytes():
            found.append(f"{name}: bytes of {a[name].tensor_type.name} differ")
    return found


def main() -> int:
    if sys.argv[1:2] == ["--compare"]:
        found = differences(*map(Path, sys.argv[2:4]))
        print("\n".join(found), end="")
        return 0
    parser = arguments(__doc__)
    parser.add_argument("--peer", type=Path, default=ROOT / "target/release/examples/llama_quantize")
    parser.add_argument("--file", type=Path, help="an F16 file to quantise (default: write one)")
    parser.add_argument("--gb", type=float, default=1.0, help="size of the file to write, in 10^9 bytes")
    parser.add_argument("--types", default=DEFAULT_TYPES, help=f"of {', '.join(FILE_TYPES)}")
    parser.add_argument("--levels", default="", help="levels of vector instructions, such as scalar,avx2,avx512")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    chatvec = Chatvec(options.chatvec)
    if not options.peer.is_file():
        raise SystemExit(f"no {options.peer}: run `cargo build --release -p oracle --example llama_quantize`")
    levels = options.levels.split(",") if options.levels else [None]
    failed = 0
    with work_folder(options.temp_dir) as folder:
        source = options.file
        if not source:
            maker = Path(__file__).with_name("synthetic.py")
            measure([sys.executable, maker, folder, "--gb", options.gb, "--vocab", 32_000])
            source = folder / "base-F16.gguf"
            for other in ("chat", "cp"):
                (folder / f"{other}-F16.gguf").unlink()
        ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
        print("| type | level | wall s | CPU s | peak MiB | llama-quantize: wall s | CPU s | peak MiB | times less CPU | times less wall |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for name in options.types.split(","):
            peer_runs, runs = [], {level: [] for level in levels}
            for _ in range(options.runs):
                theirs.unlink(missing_ok=True)
                # The peer says much, on both streams.
                command = ["sh", "-c", 'exec "$@" >/dev/null 2>&1', "sh", options.peer, source, theirs, FILE_TYPES[name], THREADS]
                peer_runs.append(measure(command))
                for level in levels:
                    forced = ("--simd", level) if level else ()
                    ours.unlink(missing_ok=True)
                    command = ["sh", "-c", 'exec "$@" >/dev/null 2>&1', "sh", chatvec.path, "quantize", source, "-o", ours,
                               "--type", name, "--threads", THREADS, *forced]
                    runs[level].append(measure(command))
            peer = median(peer_runs)
            for level in levels:
                run = median(runs[level])
                print(f"| {name} | {level or 'best'} | {run.wall_s:.2f} | {run.cpu_s:.2f} | {run.peak_mib:.0f} | {peer.wall_s:.2f} | "
                      f"{peer.cpu_s:.2f} | {peer.peak_mib:.0f} | {peer.cpu_s / run.cpu_s:.2f} | {peer.wall_s / run.wall_s:.2f} |",
                      flush=True)
            # In a child: what this process takes counts as its children's.
            command = [sys.executable, __file__, "--compare", ours, theirs]
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
            for difference in found:
                print(f"FAIL {name}: {difference}")
            failed += len(found)
    print(f"{failed} differences")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
