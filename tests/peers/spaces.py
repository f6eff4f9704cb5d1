"""Writes fixtures/spaces/decay.json: what numpy makes, in float64, of vectors of state-space decays.

    python spaces.py

A checkpoint has A_log; the file has ssm_a = -exp(A_log) (llama.cpp, conversion/mamba.py and its like), and one architecture
has +exp(A_log). So a vector is one of A_log = ln|ssm_a|: with the weights w_i of a model m and of pairs (b_i, c_i),

    sum     out = m * prod (c_i / b_i) ** w_i
    ties    t_i = ln(c_i / b_i), of each the largest half; out = m * exp(mean of those w_i * t_i that have the sign of their sum)
    linear  out = sign * prod |x_i| ** w_i, over models x_i, with w_i that add up to 1

Nothing of the crate is used. Weights are drawn by numpy's PCG64 with a fixed seed and rounded to float32 once; results
are float64. Two tensors: one of a Mamba-1 kind, [d_state, d_inner], all negative, with vectors from far below to far above an
ordinary size, and one of a head each with either sign. `cargo test` holds merges against it (tests/integration/spaces.rs).
"""

import json
import sys

import numpy as np

from tool import ROOT

SEED = 20


def weights(log: np.ndarray, sign: np.ndarray) -> np.ndarray:
    return (sign * np.exp(log)).astype(np.float32).astype(np.float64)


def tensors() -> dict[str, dict[str, np.ndarray]]:
    """By tensor and by model, in numpy's order of dimensions."""
    rng = np.random.default_rng(SEED)
    found = {}
    for name, shape, size in (("blk.0.ssm_a", (6, 8), 10.0 ** rng.uniform(-4, 0.3, (6, 8))), ("blk.1.ssm_a", (16, 1), 0.1)):
        sign = np.where(rng.random(shape) < 0.5, 1, -1) if name == "blk.1.ssm_a" else -np.ones(shape)
        base = rng.uniform(np.log(1e-3), np.log(16), shape)
        found[name] = {
            "base": weights(base, sign),
            "chat": weights(base + rng.normal(0, 1, shape) * size, sign),
            "style": weights(base + rng.normal(0, 1, shape) * size, sign),
            "cp": weights(base + rng.normal(0, 0.3, shape), sign),
        }
    return found


def summed(x: dict[str, np.ndarray], ratios: dict[str, float]) -> np.ndarray:
    return x["cp"] * np.prod([(x[name] / x["base"]) ** ratio for name, ratio in ratios.items()], axis=0)


def ties(x: dict[str, np.ndarray], ratios: dict[str, float], density: float) -> np.ndarray:
    parts = []
    for name in ratios:
        tau = np.log(x[name] / x["base"])
        least = np.sort(np.abs(tau), axis=None)[-max(int(density * tau.size), 1)]
        parts.append(np.where(np.abs(tau) >= least, tau, 0))
    scaled = np.array([ratio * tau for ratio, tau in zip(ratios.values(), parts)])
    majority = np.where(scaled.sum(0) >= 0, 1, -1)
    agrees = np.sign(scaled) == majority
    divisor = (agrees * np.array(list(ratios.values()))[:, None, None]).sum(0)
    return x["cp"] * np.exp((scaled * agrees).sum(0) / np.where(divisor == 0, 1, divisor))


def linear(x: dict[str, np.ndarray], ratios: dict[str, float]) -> np.ndarray:
    return np.sign(x["cp"]) * np.prod([np.abs(x[name]) ** ratio for name, ratio in ratios.items()], axis=0)


def main() -> int:
    found = tensors()
    cases = []

    def case(method: str, ratios: dict[str, float], compute, **options):
        out = {name: compute(x, ratios, *options.values()).ravel().tolist() for name, x in found.items()}
        cases.append({"method": method, "ratios": ratios, **options, "out": out})

    for ratio in (1.0, 2.0, 0.3, -0.5):
        case("task_arithmetic", {"chat": ratio}, summed)
    case("task_arithmetic", {"chat": 0.7, "style": 0.4}, summed)
    case("ties", {"chat": 0.7, "style": 0.4}, ties, density=0.5)
    case("linear", {"cp": 0.5, "chat": 0.3, "style": 0.2}, linear)
    given = {name: {"ne": x["base"].shape[::-1]} | {model: w.ravel().tolist() for model, w in x.items()}
             for name, x in found.items()}
    path = ROOT / "fixtures/spaces/decay.json"
    text = {"made_with": {"numpy": np.__version__, "seed": SEED}, "given": given, "cases": cases}
    path.write_text(json.dumps(text) + "\n")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
