"""What llama-imatrix and llama-perplexity say of networks with experts and with windows.

    python family_tools.py --llama FOLDER

Writes fixtures/imatrix/{qwen3moe,gemma3}.gguf and fixtures/compare/families.json. FOLDER has `llama-imatrix` and
`llama-perplexity`, built from llama.cpp with `cmake -DGGML_NATIVE=OFF`. Models are those of family_models.py, texts those
of fixtures/compare; keys and values in F32, no flash attention, one chunk a batch. Needs requirements.txt.
"""

import argparse
import json
import re
from pathlib import Path

from family_models import variants
from imatrix_goldens import CHUNK, EXACT, OUT, Llama
from perplexity_goldens import NUMBER, figures, run
from tool import ROOT, work_folder

TEXT = ROOT / "fixtures/compare/plain-de.txt"
MATRICES = ("qwen3moe", "gemma3")
#: A is the first; n_ctx and chunks are small, as the networks are.
PAIRS = (("qwen3moe-wide", "qwen3moe-wide-Q8_0"), ("gemma3-wide", "gemma3-wide-F16"))
N_CTX, N_CHUNKS = 128, 12


def pair(llama: Llama, a: Path, b: Path, folder: Path) -> dict:
    """What llama-perplexity prints of B against A."""
    logits = folder / "logits"
    common = ["-c", N_CTX, "-b", N_CTX, "-f", TEXT, "--chunks", N_CHUNKS]
    plain = run(llama.folder, a, *common, "--save-all-logits", logits)
    said = figures(run(llama.folder, b, *common, "--kl-divergence", "--kl-divergence-base", logits))
    # "Mean PPL(base)" is of saved logits, which are cut at 16 below the maximum.
    estimate = re.search(rf"Final estimate: PPL = {NUMBER} \+/- {NUMBER}", plain)
    return said | {"ppl_reference_exact": [float(n) for n in estimate.groups()]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", type=Path, required=True)
    options = parser.parse_args()
    llama = Llama(options.llama)
    all_variants = {variant.name: variant for variant in variants()}
    with work_folder(None) as folder:
        def model(name: str) -> Path:
            return all_variants[name].write(folder / f"{name}.gguf")

        for name in MATRICES:
            llama.imatrix(model(name), OUT / f"{name}.gguf", "-c", CHUNK, *EXACT)
        runs = [{"a": a, "b": b, "n_ctx": N_CTX, "n_chunks": N_CHUNKS, "figures": pair(llama, model(a), model(b), folder)}
                for a, b in PAIRS]
    text = json.dumps({"text": TEXT.name, "runs": runs}, indent=1)
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m.group(1)) + "]", text)
    (ROOT / "fixtures/compare/families.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
