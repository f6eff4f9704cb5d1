"""Holds what `--dry-run` forecasts to what the runs then do.

    python forecast.py [--chatvec PATH] [--models-dir FOLDER] [--gb 0.4]

The trio, as F16 and with its files quantised, and a synthetic one, are forecast and then merged into several types. A line a
merge: forecast and found size, survival, noise, memory and time, and the cosine of the vector where the trio's F32-exact one
is known. Ends with 1 where a forecast is further off than docs/PERFORMANCE.md says; time is shown and not judged.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from peak_memory import measure, warm
from tool import PLAIN, ROOT, VECTOR_LOST, Chatvec, Trio, arguments, find_trio, work_folder

#: How far a forecast may be off: survival and noise in units of the vector (noise above 1 as a share), the cosine, memory
#: as a share. Buffers that a tiny model does not fill are forecast all the same, so its memory may be less by any amount.
SURVIVAL, NOISE, COSINE, MEMORY = 0.02, 0.05, 0.1, 0.25
TYPES = ("keep", "F16", "Q8_0", "Q4_K", "Q2_K")


def quantized(chatvec: Chatvec, path: Path, type_: str, folder: Path) -> Path:
    out = folder / f"{path.stem}-{type_}.gguf"
    if not out.exists():
        chatvec.run("quantize", path, "-o", out, "--type", type_, "--pure")
    return out


def cosine(trio: Trio, exact: Trio) -> float:
    """Of the vector that the trio's files hold with the exact one."""
    import numpy as np

    from ggml_codec import decode
    from gguf_files import is_quantizable, read_tensors

    files = [read_tensors(p) for p in (trio.chat, trio.base, exact.chat, exact.base)]
    names = [n for n, t in files[2].items() if is_quantizable(t)]
    found, true = (np.concatenate([(decode(a[n]) - decode(b[n])).astype(np.float64).reshape(-1) for n in names])
                   for a, b in (files[:2], files[2:]))
    return float(found @ true / np.linalg.norm(found) / np.linalg.norm(true))


def cosine_by_child(trio: Trio, exact: Trio) -> float:
    """The same in a process of its own: this one's memory would count to those it starts."""
    paths = (trio.chat, trio.base, exact.chat, exact.base)
    done = subprocess.run([sys.executable, __file__, "--cosine", *paths], capture_output=True, check=True, text=True)
    return float(done.stdout)


def merge(chatvec: Chatvec, trio: Trio, type_: str, out: Path):
    """What is forecast and what is found, as JSON, and the run."""
    common = ["merge", "--base", trio.base, "--chat", trio.chat, "--model", trio.cp, "-o", out, "--type", type_, "--json",
              "--threads", 2, "--memory", "64MiB", "--overwrite", *PLAIN,
              *(["--pure"] if type_ not in ("keep", "F16") else [])]
    args = [chatvec.path, *map(str, common)]
    expected = json.loads(subprocess.run([*args, "--dry-run"], capture_output=True, check=True).stdout)
    result = out.with_suffix(".json")
    # The run's own output is not wanted on the screen.
    run = measure(["/bin/sh", "-c", 'exec "$@" > "$0" 2>/dev/null', result, *args], (0, VECTOR_LOST))
    return expected, json.loads(result.read_text()), run


def main() -> int:
    if sys.argv[1:2] == ["--cosine"]:
        chat, base, exact_chat, exact_base = map(Path, sys.argv[2:6])
        print(cosine(Trio(base, chat, base), Trio(exact_base, exact_chat, exact_base)))
        return 0
    parser = arguments(__doc__)
    parser.add_argument("--models-dir", type=Path, default=ROOT / "fixtures/models", help="folder of the trio")
    parser.add_argument("--gb", type=float, default=0.4, help="size of a synthetic file, about; 0 for none")
    given = parser.parse_args()
    chatvec = Chatvec(given.chatvec)
    exact = find_trio(given.models_dir)
    if exact is None:
        raise SystemExit(f"no F16 trio in {given.models_dir}")
    wrong = 0
    heads = ("trio", "type", "bytes", "survival", "", "noise", "", "cosine", "", "MiB", "", "s", "")
    print("{:<16} {:<5} {:>5} {:>8} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6}".format(*heads))
    with work_folder(given.temp_dir) as folder:
        trios = {"F16": exact}
        for type_ in ("Q8_0", "Q5_K", "Q4_K"):
            trios[f"all {type_}"] = exact.map(lambda p, t=type_: quantized(chatvec, p, t, folder))
        trios["cp Q4_K"] = Trio(exact.base, exact.chat, quantized(chatvec, exact.cp, "Q4_K", folder))
        if given.gb:
            subprocess.run([sys.executable, Path(__file__).parent / "synthetic.py", folder, "--gb", str(given.gb)], check=True,
                           stdout=subprocess.DEVNULL)
            trios["synthetic"] = Trio(*(folder / f"{n}-F16.gguf" for n in ("base", "chat", "cp")))
        for name, trio in trios.items():
            warm(trio)
            true = None if name == "synthetic" else cosine_by_child(trio, exact)
            for type_ in TYPES:
                out = folder / "out.gguf"
                expected, found, run = merge(chatvec, trio, type_, out)
                forecast, total = expected["forecast"], found["total"]
                bytes_off = expected["output_bytes"] - os.path.getsize(out)
                pairs = [(forecast["output"]["survival"], total["survival"], SURVIVAL),
                         (forecast["output"]["noise"], total["noise"], NOISE * max(1, total["noise"]))]
                if true is not None:
                    pairs.append((forecast["cosine"], true, COSINE))
                memory = expected["peak_memory_bytes"] / (1 << 20)
                bad = bool(bytes_off) or any(abs(a - b) > bound for a, b, bound in pairs)
                bad |= not (1 - MEMORY if name == "synthetic" else 0) < run.peak_mib / memory < 1 + MEMORY
                wrong += bad
                shown = [*pairs, (None, None, 0)][:3]
                cells = [f"{v:6.3f}" if v is not None else "     -" for a, b, _ in shown for v in (a, b)]
                print(f"{name:<16} {type_:<5} {bytes_off:>5} {cells[0]:>8} {' '.join(cells[1:])} {memory:6.0f} "
                      f"{run.peak_mib:6.0f} {expected['seconds']:6.2f} {run.wall_s:6.2f}  {'FAIL' if bad else 'ok'}", flush=True)
    print(f"{wrong} failed; forecast first, found second; time is not judged")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
