#!/usr/bin/env python3
"""Writes src/eval/language/table.zst, by which the command tells languages apart, from the model of py3langid 0.4.0.

    pip install -r tests/peers/requirements.txt
    python tests/peers/language_table.py                # writes the table
    python tests/peers/language_table.py --check        # says whether the table is what this script writes
    python tests/peers/language_table.py --goldens      # also writes fixtures/language, which `cargo test` reads

The model is naive Bayes over strings of 2 to 6 bytes: a log-probability for each string and class. What is left out: the
automaton that finds the strings (the reader looks them up), and precision. A weight is kept as steps of a quarter above the
lowest of its class, in six bits: 99.3 % of labels stay as they were, and the file has half of the size. The layout is
described where it is read, in src/eval/language/table.rs.

The model's licence (BSD, Marco Lui 2011, Adrien Barbaresi 2021) is in src/eval/language/NOTICE.
"""

import argparse
import collections
import hashlib
import importlib.util
import io
import json
import lzma
import pathlib
import struct
import sys

import numpy as np
import zstandard

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLE = ROOT / "src/eval/language/table.zst"
GOLDENS = ROOT / "fixtures/language/py3langid.jsonl"
MODEL_SHA256 = "f4f4a2c3465ca1f081541037f9cac23021d68151c2f709c55ae5eedfca522963"
MAGIC = b"CVLANG1\n"
# Parts of one: floors and priors are whole numbers of these, so that every sum is exact.
UNIT = 1 << 16
# A level, in units.
STEP = UNIT // 4
MAX_LEVEL = 63
# Two languages have a code of two letters, which is not the model's.
CODES = {"gug": "gn", "kik": "ki"}


def load():
    """The classes, priors, and the weights of each string, by class."""
    folder = pathlib.Path(importlib.util.find_spec("py3langid").origin).parent
    packed = (folder / "data/model.npz.xz").read_bytes()
    found = hashlib.sha256(packed).hexdigest()
    if found != MODEL_SHA256:
        sys.exit(f"{folder}/data/model.npz.xz: its SHA-256 is {found}, expected {MODEL_SHA256}; install py3langid==0.4.0")
    model = np.load(io.BytesIO(lzma.decompress(packed)))
    return [CODES.get(str(c), str(c)) for c in model["classes"]], model["pc"], model["ptc"].astype(np.float32), strings(model)


def strings(model) -> list[bytes]:
    """The string of each feature: that of the shortest way to a state of the automaton that reports it."""
    moves, row, reported = model["nextmove"].reshape(-1, 256), model["nextmove_row"], model["out_feat"]
    reached, queue = {0: b""}, collections.deque([0])
    while queue:
        state = queue.popleft()
        for byte, after in enumerate(moves[row[state]].tolist()):
            if after and after not in reached:
                reached[after] = reached[state] + bytes([byte])
                queue.append(after)
    found = {}
    for state, string in reached.items():
        feature = int(reported[state])
        if feature >= 0 and (feature not in found or len(string) < len(found[feature])):
            found[feature] = string
    assert sorted(found) == list(range(len(model["ptc"]))), "a feature that no state reports"
    return [found[i] for i in range(len(found))]


def quantised(classes, priors, weights, features):
    """The features in order with their levels; what is zero everywhere is left out."""
    floor = weights.min(0)
    levels = np.rint((weights - floor) * (UNIT / STEP)).clip(0, MAX_LEVEL).astype(np.uint8)
    order = [i for i in sorted(range(len(features)), key=features.__getitem__) if levels[i].any()]
    units = lambda x: np.rint(x.astype(np.float64) * UNIT).astype("<i4")
    return [features[i] for i in order], levels[order], units(floor), units(priors)


def table(classes, priors, weights, features) -> bytes:
    features, levels, floor, priors = quantised(classes, priors, weights, features)
    out = bytearray(MAGIC)
    ends, gaps, packed = bytearray(), bytearray(), bytearray()
    before = b""
    for feature in features:
        assert 2 <= len(feature) <= 6
        shared = next((i for i, (a, b) in enumerate(zip(feature, before)) if a != b), min(len(feature), len(before)))
        ends += bytes([shared * 8 + len(feature)]) + feature[shared:]
        before = feature
    for column in range(len(classes)):
        places = np.flatnonzero(levels[:, column])
        gaps += struct.pack("<I", len(places))
        for gap in np.diff(places, prepend=-1) - 1:
            gaps += b"\xff" * (int(gap) // 255) + bytes([int(gap) % 255])
        packed += levels[places, column].tobytes()
    out += struct.pack("<IIII", len(classes), len(features), len(ends), len(gaps))
    out += b"".join(c.encode().ljust(4, b"\0") for c in classes)
    out += floor.tobytes() + priors.tobytes()
    out += ends + gaps + packed
    return bytes(out)


def goldens(path: pathlib.Path, folder: pathlib.Path):
    """Texts with what py3langid itself says of them: the built-in prompts, and sentences of the declaration of human rights."""
    import language_texts
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    known = {CODES.get(label, label) for label in identifier.labels}
    texts = [text for _, text in language_texts.prompts()]
    taken = collections.Counter()
    for language, text in language_texts.declarations(folder):
        text = language_texts.clean(text)
        bin_ = text and language_texts.bin_of(text)
        if bin_ and language in known and taken[language, bin_] < 1:
            taken[language, bin_] += 1
            texts.append(text)
    # Capitals alone, and marks that are characters of their own.
    texts += ["DIE HAUPTSTADT VON FRANKREICH IST PARIS.", "Cafe\u0301 au lait, s'il vous plai\u0302t.", "ΟΔΥΣΣΕΥΣ ΕΡΧΕΤΑΙ"]
    with open(path, "w", encoding="utf-8") as file:
        for text in texts:
            ranked = [(CODES.get(code, code), p) for code, p in identifier.rank(text)]
            best = {code: round(p, 4) for code, p in ranked[:3]}
            golden = {"text": text, "label": ranked[0][0], "probabilities": best}
            file.write(json.dumps(golden, ensure_ascii=False) + "\n")
    print(f"{len(texts)} texts in {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the table is another one")
    parser.add_argument("--goldens", action="store_true", help="also write fixtures/language, after language_texts.py")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "target/language-texts", help="that of language_texts.py")
    parser.add_argument("--out", type=pathlib.Path, default=TABLE)
    options = parser.parse_args()
    plain = table(*load())
    packed = zstandard.ZstdCompressor(level=22).compress(plain)
    print(f"{len(plain)} bytes, {len(packed)} compressed")
    if options.check:
        same = zstandard.ZstdDecompressor().decompress(options.out.read_bytes()) == plain
        print("the table is as it should be" if same else f"{options.out} is not what this script writes")
        sys.exit(not same)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(packed)
    if options.goldens:
        GOLDENS.parent.mkdir(parents=True, exist_ok=True)
        goldens(GOLDENS, options.folder)


if __name__ == "__main__":
    main()
