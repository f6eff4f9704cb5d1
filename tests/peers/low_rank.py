"""The least error of any approximation of a given rank, by numpy's SVD: fixtures/low_rank/optimum.json.

    python low_rank.py

For matrices of the bundled trio's vector (chat − base, from the F16 files) the root of the sum of the squares of all further
singular values, without weights and with `1 + j mod 7` for column j. Needs numpy and gguf (requirements.txt).
"""

import json

import numpy as np

from gguf import GGUFReader

from tool import ROOT

NAMES = ("blk.0.attn_q.weight", "blk.1.attn_v.weight", "blk.1.ffn_gate.weight", "blk.1.ffn_down.weight", "token_embd.weight")
RANKS = (1, 8, 32, 64, 100)


def weights_of(name: str) -> dict[str, np.ndarray]:
    path = ROOT / "fixtures" / "models" / f"tinyworld-A-{name}-F16.gguf"
    return {t.name: t.data.astype(np.float64) for t in GGUFReader(path).tensors}


def tails(matrix: np.ndarray) -> list[float]:
    singular = np.linalg.svd(matrix, compute_uv=False)
    return [float(np.sqrt((singular[rank:] ** 2).sum())) for rank in RANKS]


def main() -> None:
    base, chat = map(weights_of, ("base", "chat"))
    entries = []
    for name in NAMES:
        tau = chat[name] - base[name]
        weights = 1 + np.arange(tau.shape[1]) % 7
        entries.append({"tensor": name, "norm": float(np.linalg.norm(tau)), "least": tails(tau),
                        "least_weighted": tails(tau * np.sqrt(weights))})
    text = json.dumps({"ranks": RANKS, "matrices": entries}, indent=1)
    (ROOT / "fixtures" / "low_rank" / "optimum.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
