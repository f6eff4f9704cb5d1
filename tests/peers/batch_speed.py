"""How fast a set of prompts is answered at once, and a long prompt is read.

    python batch_speed.py [--models FOLDER] [--chatvec PATH] [--before PATH] [--library FILE] [--runs 3] [--threads 2]

Two figures for each model of fetch_models.py (`--only NAME` for one), medians of runs that alternate:

- 32 prompts in one run of `smoke`, 32 tokens each, against 32 runs of one prompt each by the build `--before` (default:
  the same one). Seconds of the whole process, loading included, and CPU seconds.
- Tokens a second of a prompt of some 400 tokens, against llama.cpp: the wheel's, or the build `--library`.

Prints ratios; judges nothing, since they depend on the machine.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import fetch_models
from libllama import Llama
from tool import ROOT, Chatvec, arguments, work_folder

N_PROMPTS, N_TOKENS, CONTEXT = 32, 32, 1024
TEXT = ROOT / "fixtures/compare/plain-de.txt"
TOPICS = ["the sea", "a lighthouse", "bread", "winter", "a river", "bees", "a train", "the moon"]
FORMS = ["Tell me about {}.", "Write a story about {}.", "Why do people like {}?", "Explain {} to a child."]
#: Bytes of the text that are a long prompt: some 400 tokens.
LONG = 1200


def prompt_of(id_: str, text: str) -> str:
    return json.dumps({"id": id_, "kind": "general", "language": "en", "prompt": text})


def seconds(command: list) -> tuple[float, float, str]:
    """Wall and CPU seconds of a process, and what it prints. Any verdict is fine."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, errors="replace")
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 11):
        raise SystemExit(f"{command}: exit {done.returncode}: {done.stderr[-600:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def sets(chatvec: Path, before: Path, model: Path, threads: int, runs: int, folder: Path):
    """The set at once against one by one."""
    lines = [prompt_of(f"p-{i}", FORMS[i // len(TOPICS)].format(TOPICS[i % len(TOPICS)])) for i in range(N_PROMPTS)]
    whole = folder / "set.jsonl"
    whole.write_text("\n".join(lines) + "\n", encoding="utf-8")
    each = []
    for i, line in enumerate(lines):
        each.append(folder / f"one-{i}.jsonl")
        each[-1].write_text(line + "\n", encoding="utf-8")
    common = ["--max-tokens", N_TOKENS, "--threads", threads, "--json"]
    found = {"at once": [], "one by one": []}
    for _ in range(runs):
        found["at once"].append(seconds([chatvec, "smoke", model, "--prompts", whole, *common])[:2])
        singles = [seconds([before, "smoke", model, "--prompts", one, *common])[:2] for one in each]
        found["one by one"].append((sum(s[0] for s in singles), sum(s[1] for s in singles)))
    for name, figures in found.items():
        wall, cpu = (statistics.median(f[i] for f in figures) for i in range(2))
        print(f"  {N_PROMPTS} prompts {name:<10} {wall:6.1f} s, {cpu:6.1f} CPU seconds")
    ratio = [statistics.median(a[i] / b[i] for a, b in zip(*found.values(), strict=True)) for i in range(2)]
    print(f"  at once : one by one = {ratio[0]:.2f}, CPU {ratio[1]:.2f}", flush=True)


def long_prompt(chatvec: Path, model: Path, threads: int, runs: int, library: Path | None, folder: Path):
    """Reading a long prompt, against llama.cpp."""
    text = TEXT.read_bytes()[:LONG].decode(errors="ignore")
    path = folder / "long.jsonl"
    path.write_text(prompt_of("long", text) + "\n", encoding="utf-8")
    ours, theirs = [], []
    with Llama(model, CONTEXT, threads, library) as llama:
        tokens = llama.tokenize(text)
        for _ in range(runs):
            said = seconds([chatvec, "smoke", model, "--prompts", path, "--max-tokens", 1, "--threads", threads, "--json"])[2]
            ours.append(float(json.loads(said)["speed"]["prompt_tokens_per_second"]))
            llama.clear()
            start = time.perf_counter()
            llama.feed(tokens, last_only=True)
            theirs.append(len(tokens) / (time.perf_counter() - start))
    a, b = statistics.median(ours), statistics.median(theirs)
    print(f"  a prompt of {len(tokens)} tokens: chatvec {a:.0f}, llama.cpp {b:.0f} tokens/s, ratio {a / b:.2f}", flush=True)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--models", type=Path, default=fetch_models.DEFAULT, help="what fetch_models.py fetched")
    parser.add_argument("--before", type=Path, help="another build of chatvec, for the single runs")
    parser.add_argument("--library", type=Path, help="another build of libllama than the wheel's")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=sorted(fetch_models.MODELS))
    options = parser.parse_args()
    chatvec = Chatvec(options.chatvec).path
    with work_folder(options.temp_dir) as folder:
        for name, model in fetch_models.MODELS.items():
            if options.only not in (None, name):
                continue
            path = options.models / model.file
            if not path.is_file():
                raise SystemExit(f"no {path}: run fetch_models.py")
            print(model.file)
            long_prompt(chatvec, path, options.threads, options.runs, options.library, folder)
            # A build from before a family was known cannot be asked.
            if options.before is None or name != "gemma3":
                sets(chatvec, options.before or chatvec, path, options.threads, options.runs, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
