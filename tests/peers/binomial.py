"""Records what scipy's exact binomial test says, for the tests of `src/eval/binomial.rs`.

    python binomial.py [--out FILE]

Needs scipy, which is in no list of requirements here: `pip install scipy`. Written to fixtures/eval/binomial.json:
p-values of one-sided tests and intervals of Clopper and Pearson with 5 % on each side.
"""

import argparse
import json
from pathlib import Path

import scipy
from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = (1, 3, 8, 12, 17, 44, 68, 167, 5_000)
BOUNDS = (0.02, 0.05, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.99)


def hits_of(n: int) -> list[int]:
    """All counts of a few, and some of many."""
    return list(range(n + 1)) if n <= 17 else sorted({0, 1, n // 50, n // 5, n // 2, n * 7 // 10, n - n // 20, n - 1, n})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "fixtures/eval/binomial.json")
    out = parser.parse_args().out
    tests, intervals = [], []
    for n in NUMBERS:
        for hits in hits_of(n):
            found = binomtest(hits, n, 0.5).proportion_ci(0.9, "exact")
            intervals.append([hits, n, float(found.low), float(found.high)])
            for bound in BOUNDS:
                less, greater = (binomtest(hits, n, bound, alternative=side).pvalue for side in ("less", "greater"))
                tests.append([hits, n, bound, float(less), float(greater)])
    rows = lambda name, list_: f'  "{name}": [\n' + ",\n".join(f"    {json.dumps(row)}" for row in list_) + "\n  ]"
    out.write_text(f'{{\n  "scipy": "{scipy.__version__}",\n{rows("tests", tests)},\n{rows("intervals", intervals)}\n}}\n')


if __name__ == "__main__":
    main()
