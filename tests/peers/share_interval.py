"""Exact intervals of shares (Clopper and Pearson), by fractions: the values in src/eval/interval.rs.

    python tests/peers/share_interval.py
"""
from fractions import Fraction
from math import comb


def at_least(hits, n, share):
    return sum(comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(hits, n + 1))


def rises_to(value, function, bits=40):
    low, high = Fraction(0), Fraction(1)
    for _ in range(bits):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < value else (low, middle)
    return float(low)


def interval(hits, n, level=Fraction(95, 100)):
    tail = (1 - level) / 2
    lower = 0.0 if hits == 0 else rises_to(tail, lambda p: at_least(hits, n, p))
    upper = 1.0 if hits == n else 1 - rises_to(tail, lambda p: at_least(n - hits, n, p))
    return lower, upper


for hits, n in [(0, 12), (2, 12), (5, 10), (12, 12), (131, 167), (0, 0)]:
    print(f"({hits}, {n}, ({interval(hits, n)[0]:.10f}, {interval(hits, n)[1]:.10f})),")
