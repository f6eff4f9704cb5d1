"""How fast chatvec and llama.cpp answer with the same model, in tokens a second.

    python decode_speed.py [--models FOLDER] [--chatvec PATH] [--runs 5] [--threads 2] [--only llama|chatvec]

SmolLM2-135M-Instruct Q4_1, one prompt, 128 tokens greedily, flash attention off; the median of the runs,
which alternate so that other work on the machine meets both. Only what comes after the first new token counts, so
neither loading nor the prompt. Prints both and their ratio; judges nothing, since that depends on the machine.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import fetch_models
from libllama import Llama
from tool import Chatvec, arguments, work_folder

N_TOKENS, CONTEXT = 128, 512
#: A question whose answer llama.cpp does not end within N_TOKENS; the template's text is that of the file.
QUESTION = "Write a long story about a lighthouse keeper and the sea."
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TEXT = (f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n")


class LlamaSpeed:
    """llama.cpp, its model loaded once."""

    def __init__(self, model: Path, threads: int):
        self.llama = Llama(model, CONTEXT, threads)
        self.prompt = self.llama.tokenize(TEXT)

    def run(self) -> float:
        """Tokens a second of one answer; the clock starts when the first token is known."""
        n, start = 0, 0.0
        for n, _ in enumerate(self.llama.greedy(self.prompt, N_TOKENS)):
            start = start or time.perf_counter()
        if n + 1 < N_TOKENS:
            raise SystemExit(f"llama.cpp ended its answer after {n + 1} tokens: choose another question")
        return n / (time.perf_counter() - start)


class ChatvecSpeed:
    """`chatvec smoke` in a process of its own; it reports its speed itself."""

    def __init__(self, chatvec: Chatvec, model: Path, threads: int, folder: Path):
        self.chatvec, self.model, self.threads = chatvec, model, threads
        self.prompts = folder / "speed.jsonl"
        prompt = {"id": "speed", "kind": "general", "lang": "en", "prompt": QUESTION, "chatml": TEXT}
        self.prompts.write_text(json.dumps(prompt) + "\n", encoding="utf-8")

    def run(self) -> float:
        """Tokens a second as `speed.decode_tokens_per_second` says; any verdict of the checks is fine."""
        done = subprocess.run(
            [self.chatvec.path, "smoke", self.model, "--prompts", self.prompts, "--max-tokens", str(N_TOKENS),
             "--threads", str(self.threads), "--json"], capture_output=True, text=True, errors="replace")
        try:
            return float(json.loads(done.stdout)["speed"]["decode_tokens_per_second"])
        except (ValueError, KeyError, TypeError) as e:
            why = f"exit {done.returncode}: {done.stderr[-600:]}"
            raise SystemExit(f"chatvec smoke gave no speed ({e!r}), {why}") from None


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--models", type=Path, default=fetch_models.DEFAULT, help="what fetch_models.py fetched")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["llama", "chatvec"])
    options = parser.parse_args()
    model = options.models / fetch_models.SMOLLM2.file
    if not model.is_file():
        raise SystemExit(f"no {model}: run fetch_models.py")
    with work_folder(options.temp_dir) as folder:
        sides = {}
        if options.only != "chatvec":
            sides["llama.cpp"] = LlamaSpeed(model, options.threads)
        if options.only != "llama":
            sides["chatvec"] = ChatvecSpeed(Chatvec(options.chatvec), model, options.threads, folder)
        speeds = {name: [] for name in sides}
        for _ in range(options.runs):
            for name, side in sides.items():
                speeds[name].append(side.run())
    medians = {name: statistics.median(s) for name, s in speeds.items()}
    for name, s in speeds.items():
        print(f"{name:<10} {medians[name]:7.1f} tokens/s, median of {len(s)} ({min(s):.1f} to {max(s):.1f})")
    if len(medians) == 2:
        print(f"chatvec : llama.cpp = {medians['chatvec'] / medians['llama.cpp']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
