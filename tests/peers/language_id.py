#!/usr/bin/env python3
"""Measures how well the language of short texts is told: the tables of docs/LANGUAGES.md.

    python tests/peers/language_texts.py
    cargo build --release --example detect_language
    python tests/peers/language_id.py

Every text of the half `report` is given to the detector once for each of 30 languages that may be asked for, and for its own. Rules
were tuned on the other half (`--half tune`). Shares are means over languages, so that one with many texts does not count
more. `--before PATH` runs another build of the same program, which may know fewer languages.
Exits with 1 if a bound does not hold: own language right in 99, 99.9 and 99.9 % by length, and foreign text taken for the asked
language or for English in .5 %.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import subprocess
import sys
import time
import unicodedata

ROOT = pathlib.Path(__file__).resolve().parents[2]
ASKED = "en de es fr it pt nl pl ru uk tr ar fa hi bn ta th vi id zh ja ko el he sv fi ca eu gl se".split()
BEFORE = "ar bn de el en es fa fr he hi id it ja ko nl pl pt ru ta th tr uk vi zh".split()
BINS = ["3-5", "6-12", "13-30"]
# In per cent: own language right, by bin; foreign text taken for the asked language or for English.
RIGHT = dict(zip(BINS, [99.0, 99.9, 99.9]))
TAKEN = 0.5
# Nigerian Pidgin is a language of English words: much of it counts as English. It is shown, and not in the bounds.
PIDGIN = "pcm"
# Fewer texts of a language say nothing about it.
ENOUGH = 20


def languages(chatvec_table: pathlib.Path) -> set[str]:
    """Codes of the table, by its own bytes."""
    import zstandard

    plain = zstandard.ZstdDecompressor().decompress(chatvec_table.read_bytes())
    n = int.from_bytes(plain[8:12], "little")
    return {plain[24 + 4 * i : 28 + 4 * i].rstrip(b"\0").decode() for i in range(n)} - {"zxx"}


def groups() -> dict[str, set[str]]:
    """Languages that count as one another, as the command lists them (`chatvec languages`)."""
    return {code: set(group.split()) for group in ("ar ary arz", "bs hr sr", "el grc", "he hbo", "id ms", "no nn", "zh yue wuu")
            for code in group.split()}


GROUPS = groups()


def is_same(a: str, b: str) -> bool:
    return a == b or b in GROUPS.get(a, ())


def detect(program: pathlib.Path, texts: list[dict], asked: list[list[str]]) -> list[dict]:
    lines = "".join(json.dumps({"text": t["text"], "asked": a}) + "\n" for t, a in zip(texts, asked))
    begin = time.perf_counter()
    out = subprocess.run([program], input=lines, capture_output=True, text=True, check=True).stdout.splitlines()
    n = sum(map(len, asked))
    print(f"{program}: {n} detections, {1e6 * (time.perf_counter() - begin) / max(n, 1):.0f} µs each", file=sys.stderr)
    return [dict(zip(a, json.loads(line))) for a, line in zip(asked, out, strict=True)]


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def by_language(rows) -> float:
    """The mean over languages of the share of rows that hold, in per cent."""
    held = collections.defaultdict(list)
    for language, holds in rows:
        held[language].append(holds)
    return 100 * mean(mean(v) for v in held.values())


def own(texts, found, language, bin_):
    """Texts, right ones and undecided ones, in per cent."""
    mine = [f[language] for t, f in zip(texts, found) if t["language"] == language and t["bin"] == bin_]
    right, undecided = mean(f == language for f in mine), mean(f is None for f in mine)
    return len(mine), 100 * right, 100 * undecided


def own_table(name, texts, found, asked):
    """Own language right, by bin; languages that miss a bound."""
    worse, means = collections.defaultdict(list), []
    for bin_ in BINS:
        rows = []
        for language in asked:
            n, right, undecided = own(texts, found, language, bin_)
            if n >= ENOUGH:
                rows.append((right, undecided))
                if right < RIGHT[bin_]:
                    worse[language].append((bin_, n, right, undecided))
        means.append((mean(r for r, _ in rows), mean(u for _, u in rows), len(rows)))
    shown = " | ".join(f"{right:.2f} ({undecided:.2f} undecided, {n} languages)" for right, undecided, n in means)
    print(f"| {name} | {shown} |")
    return [right for right, _, _ in means], worse


def foreign(texts, found, asked, known, is_known, without=None):
    """Foreign text taken for the asked language, for English, undecided, in per cent."""
    of = [(t, f) for t, f in zip(texts, found) if (t["language"] in known) == is_known]
    of = [(t, f) for t, f in of if not is_same(asked, t["language"]) and t["language"] not in ("en", without) and asked in f]
    share = lambda what: by_language((t["language"], what(f[asked])) for t, f in of)
    english = float("nan") if asked == "en" else share(lambda f: f == "en")
    return share(lambda f: f == asked), english, share(lambda f: f is None)


def taken_for(texts, found, asked):
    """Which foreign languages are taken for this one, most often first: of those with enough texts."""
    held = collections.defaultdict(list)
    for t, f in zip(texts, found):
        if asked in f and not is_same(asked, t["language"]):
            held[t["language"]].append(f[asked] == asked)
    shares = sorted(((100 * mean(v), code) for code, v in held.items() if len(v) >= ENOUGH), reverse=True)
    return ", ".join(f"{code} {share:.1f}" for share, code in shares[:3] if share > 0.5)


def letters(text: str) -> int:
    """Letters as the rule counts them: a syllable is three, a sign of an Indian script two."""
    def weight(c):
        if "\u0900" <= c <= "\u17ff":
            return 2 * (c.isalpha() or unicodedata.category(c) in ("Mc", "Mn") and unicodedata.combining(c) != 9)
        return c.isalpha() * (3 if "\u3040" <= c <= "\ud7a3" else 1)

    return sum(map(weight, text))


def mixed(texts, program, asked):
    """A short text of each language, and then longer ones in English."""
    key = lambda t: hashlib.blake2b(t["text"].encode(), digest_size=8, key=b"mixed").digest()
    english = sorted((t["text"] for t in texts if t["language"] == "en" and t["bin"] != "3-5"), key=lambda x: key({"text": x}))
    made = []
    for language in asked:
        mine = sorted((t for t in texts if t["language"] == language and t["bin"] == "6-12"), key=key)[:60]
        for at, t in enumerate(mine):
            text, rest = t["text"] + ("" if t["text"][-1] in ".?!。？" else "."), []
            while letters(" ".join(rest)) < 1.3 * letters(text):
                rest.append(english[(7 * at + len(rest)) % len(english)])
            made.append(dict(language=language, text=f"{text} {' '.join(rest)}"))
    found = detect(program, made, [[t["language"]] for t in made])
    answers = [f[t["language"]] for t, f in zip(made, found)]
    for what, held in (("English", lambda f, t: f == "en"), ("the first one's language", lambda f, t: f == t["language"]),
                       ("undecided", lambda f, t: f is None)):
        share = by_language((t["language"], held(f, t)) for t, f in zip(made, answers))
        print(f"- {len(made)} texts with a sentence in one of {len(asked)} languages before more in English: {what} {share:.2f} %")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "target/language-texts")
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "target/release/examples/detect_language")
    parser.add_argument("--before", type=pathlib.Path, help="another build, which knows the 24 languages of lingua's time")
    parser.add_argument("--half", choices=["report", "tune"], default="report")
    options = parser.parse_args()
    known = languages(ROOT / "src/eval/language/table.zst")
    texts = [json.loads(line) for line in open(options.folder / "texts.jsonl", encoding="utf-8")]
    texts = [t for t in texts if t["half"] == options.half]
    web = [t for t in texts if t["source"] == "lingua"]
    texts = [t for t in texts if t["source"] != "lingua"]
    n_languages = len({t["language"] for t in texts})
    print(f"{len(texts)} sentences of {n_languages} languages, {len({t['language'] for t in texts} & known)} of them in the table; "
          f"{len(web)} of the web\n")
    wanted = lambda t: sorted(set(ASKED) | ({t["language"]} & known))
    found = detect(options.program, texts, [wanted(t) for t in texts])

    print("| own language right, % | " + " | ".join(f"{b} words" for b in BINS) + " |\n|---|---|---|---|")
    right, worse = own_table("30 languages that may have prompts", texts, found, ASKED)
    others = sorted(known - set(ASKED))
    _, worse_others = own_table("all others with enough texts", texts, found, others)
    of_web = detect(options.program, web, [sorted({t["language"]} & known) for t in web])
    own_table("30 languages, text of the web", web, of_web, ASKED)
    before = None
    if options.before:
        before = detect(options.before, texts, [sorted({"de", "en"} | ({t["language"]} & set(BEFORE))) for t in texts])
        own_table("before: 24 languages", texts, before, BEFORE)
        own_table("now: the same 24", texts, found, BEFORE)

    print("\n| foreign text, % | taken for the asked language | for English | undecided |\n|---|---|---|---|")
    rows = {a: foreign(texts, found, a, known, True) for a in ASKED}
    lacking = {a: foreign(texts, found, a, known, False) for a in ASKED}
    numbers = lambda row: " | ".join("–" if x != x else f"{x:.2f}" for x in row)
    over_runs = lambda rows: [mean(x for x in column if x == x) for column in zip(*rows.values())]
    taken = over_runs({a: foreign(texts, found, a, known, True, PIDGIN) for a in ASKED})
    print(f"| mean of 30 runs | {numbers(taken)} |")
    print(f"| the same with Nigerian Pidgin | {numbers(over_runs(rows))} |")
    for asked in ("de", "en"):
        print(f"| run in {asked} | {numbers(rows[asked])} |")
        if before:
            print(f"| run in {asked}, before | {numbers(foreign(texts, before, asked, known, True))} |")
    print(f"| mean of 30 runs, languages that the table lacks | {numbers(over_runs(lacking))} |")
    if before:
        for asked in ("de", "en"):
            print(f"| run in {asked}, languages that the table lacks | {numbers(lacking[asked])} |")
            print(f"| run in {asked}, these, before | {numbers(foreign(texts, before, asked, known, False))} |")
    print()
    mixed(texts, options.program, [a for a in ASKED if a != "en"])
    if before:
        print("- before:")
        mixed(texts, options.before, [a for a in BEFORE if a != "en"])

    print("\nWhere a bound is missed:\n\n| language | words | texts | right, % | undecided, % |\n|---|---|---|---|---|")
    for missed in (worse, worse_others):
        for language, bins in sorted(missed.items()):
            for bin_, n, share, undecided in bins:
                print(f"| {language} | {bin_} | {n} | {share:.1f} | {undecided:.1f} |")
    print("\n| run in | foreign text taken for it, % | most of all, % |\n|---|---|---|")
    for asked, row in sorted(rows.items(), key=lambda x: -x[1][0]):
        if row[0] > TAKEN / 2:
            print(f"| {asked} | {row[0]:.2f} | {taken_for(texts, found, asked)} |")

    failed = [f"own language, {b} words: {r:.2f} < {RIGHT[b]}" for b, r in zip(BINS, right) if r < RIGHT[b]]
    if taken[0] + taken[1] > TAKEN:
        failed.append(f"foreign text taken for the asked language or for English: {taken[0] + taken[1]:.2f} > {TAKEN}")
    print("\n" + ("; ".join(failed) or "all bounds hold"))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
