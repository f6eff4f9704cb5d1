"""Goldens for the tokenizer: small vocabularies cut out of llama.cpp's own, and what llama.cpp itself makes of them.

    python3 tests/peers/tokenizer_goldens.py --llama-cpp DIR --libllama FILE           writes fixtures/tokenizers
    python3 tests/peers/tokenizer_goldens.py --llama-cpp DIR --libllama FILE --full    whole vocabularies, then cargo

DIR is a source tree of llama.cpp, FILE the libllama.so built from it (cmake -B build -DBUILD_SHARED_LIBS=ON && cmake
--build build --target llama). Both are 0.8 (b12032), as in the crate llama-cpp-sys-4 0.11.0; struct llama_model_params and
the names of pre-tokenizers below are checked against the tree. The vocabularies, ggml-vocab-*.gguf with .inp and .out, are
those of llama-cpp-python 0.3.36, which the crate lacks: --vocabs names their folder if it is not models/ of the tree.
Needs the packages of tests/peers/requirements.txt, no network.

A cut vocabulary keeps the tokens whose text is part of one of the test texts, single bytes, and tokens with a role; and
the merges of which both halves and the result are kept. llama.cpp loads the cut file, and what it says is written down:
so the goldens are llama.cpp's, whatever the cut has changed.

Pre-tokenizers are told apart by a vocabulary made for it (`probe`).

With --full every vocabulary is used as it is, with llama.cpp's texts and the ones here, and with random texts; the
expectations go to a folder under target/, and `cargo test` is run on it with CHATVEC_VOCABS.
"""

import argparse
import ctypes
import hashlib
import json
import os
import random
import re
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "fixtures" / "tokenizers"

#: Vocabularies of llama.cpp that are cut: those with an algorithm that is built in, without near-twins.
CUT = ["llama-spm", "phi-3", "gpt-2", "llama-bpe", "qwen2", "deepseek-llm", "falcon", "gemma-4"]
#: Names that give one pre-tokenizer, as far as ids can tell; what they share is checked here, not assumed.
PRES = [
    ["default", ""],
    ["gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum", "modern-bert",
     "jina-v1-en", "jina-v2-code", "roberta-bpe", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4"],
    ["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "midm-2.0", "lfm2", "jina-v5-nano"],
    ["dbrx", "smaug-bpe"],
    ["chatglm-bpe"],
    ["glm4", "glm5"],
    ["jais-2"],
    ["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2",
     "bailingmoe", "bailingmoe2", "llada-moe"],
    ["qwen35"],
    ["ufakzeka"],
    ["laguna"],
    ["minicpm5"],
    ["seed-coder"],
    ["exaone-moe"],
    ["k2-horizon"],
    ["kimi-k2"],
    ["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"],
    ["falcon"],
    ["chameleon"],
    ["tekken", "pixtral"],
    ["tekken-num3"],
    ["nemotron-3.5-embed"],
    ["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
    ["granite-embed-multi-97m"],
    ["tiny_aya", "cohere2moe"],
    ["youtu"],
    ["flint"],
    ["superbpe"],
    ["deepseek-llm"],
    ["deepseek-coder"],
    ["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
    ["afmoe"],
    ["spark2_5"],
    ["poro-chat", "bloom", "gpt3-finnish"],
    ["viking"],
    ["gemma4", "granite-embed-multi-311m"],
    ["mmbert"],
    ["sarvam-moe", "domyn-small"],
    ["soprano"],
]

#: Beyond llama.cpp's texts. Characters of Unicode 16 (U+1C89, U+10D40, U+A7CB) are no letters to llama.cpp.
HARD = [
    "Hello, world!", " leading", "  two", "trailing  ", "a  b   c    d", "tabs\t\t1\t \tx", "\r\nCRLF\r\n\r\nline\n \n",
    "I'm he'll they've you'd we're it's IT'S WE'LL 'tis ''s 'S'T'RE", "don't'd've x'tisn't it'Snow we'REx", "x'\u017f",
    "1 12 123 1234 12345 1234567 3.14159 1,000,000 \u0661\u0662\u0663 \u00bd\u2167",
    "camelCase HTTPServer fooBAR BAZqux \u00c4rger \u00d6L \u01c5 \u02b0x \u00aa",
    "Gr\u00fc\u00dfe aus K\u00f6ln, \u00bfqu\u00e9 tal? \u0417\u0434\u0440\u0430\u0432\u0441\u0442\u0432\u0443\u0439\u0442\u0435 \u03ba\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f\u30ab\u30bf\u30ab\u30ca\uc548\ub155\ud558\uc138\uc694", "\u3000\u3000\u5168\u89d2\u3000\u7a7a\u767d\u3002\u3000\uff01",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd e\u0301 a\u0300b \u0301",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f44d\U0001f3fd\ufe0f \U0001f1e9\U0001f1ea", "\u2028para\u2029 \u00a0nbsp\u00a0\u00a0x \u1680 \u2003em \u0085",
    "\u1c89 \U00010d40\U00010d41 \ua7cb\U0001ccd6 \u0897 \u1b4e", "\ufeffbom \u200b\u00ad \ufffd \x00\x01\x1c\x1f\x7f", "$x+=y^2; a|b~c`d`<e> #!/\\_\u20ac\u00a3\u2200",
    "def f(x):\n    return x ** 2  # note\n\n\n\tpass", "...!!!???---___***///\n/\n", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "                                                  x", "\n\n\n\n\n\n\n\nx", "\u2581\u2581escaped \u2581", "{\"k\": [1, null, \"v\\n\"]}",
]
#: Texts that are no one's: what a page, a file or a cut download may hold.
HOSTILE = [
    # Marks alone, on spaces, in heaps; scripts that need them.
    "\u0301", "\u0301\u0301\u0327 \u0301a!\u0301\u0301 \n\u0301 1\u0301 A\u0301B\u0301c\u0301D'\u0301s", "z" + "\u0300\u0301\u0302\u0316" * 12,
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u09ac\u09be\u0982\u09b2\u09be \u0ba4\u0bae\u0bbf\u0bb4\u0bcd \u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22 \u0627\u0644\u0639\u064e\u0631\u064e\u0628\u0650\u064a\u0651\u064e\u0629\u064f",
    # Scripts in one word.
    "p\u0430yp\u0430l\u4f60A\u05d0\u0627\u0e01\uac00\u30ab\u3042x\u03a9\u0416 \u0e40\u0e02\u0e32\u0e81\u0e82\u1780\u1781\u1000\u1001\uaa60\ua9e0\u1100\u1161\u11a8 \ua000\ud7b0",
    "\u3105\u3106\u3131\u3132\u300c\u5f15\u7528\u300d\uff0c\u3001\u301c\ufe30 \uff21\uff11\uff76\uff85\u2f00 \U00020000\U0002a6df\U0002ebf0\U00031350 \u8c48\uf900\ufa0e\ufaff\u2026\u201c\u201d\u3400x's\u4e00's",
    # Cases: one capital letter becomes two characters, some letters are no letters, a sigma ends a word.
    "\u0130I\u0131i \u1e9e\u00df \u24b6\u24d0 \u2160\u2170 \u039f\u0394\u039f\u03a3 \u03a3 \u01c4\u01c5\u01c6 \u10a0\u13a0\u1c90 \U00010400 \u2126\u212a",
    "snake_case __init__ _x_1_ 'Sx'LLx 'x\u017fx' it\u2019s",
    # Numbers to be grouped, in scripts and fractions.
    "1234567 12 x1234y 12345\u0661\u0662\u0663\u0664\u0665 \u00bd1234 1234\u00bd567 \u0968\u0969\u096a\u096b  12\t3456\n\n7890!  1234",
    # What is no text: controls, the replacement for bytes that were none, half a pair's stand-in, bidi marks, tags.
    "".join(chr(c) for c in range(32)) + "\x7f\x80\x9f", b"\xff\xfeA\xc3(\xe2\x82\xed\xa0\x80\xf0\x9f\x98".decode(errors="replace"),
    "\u202eevil\u202c \u2066x\u2069 \U000e0041\U000e007f \ufff9\uffff\U0010ffff \ue000\uee00",
    "[\u200ctag] <\u200cb>[\u200c\u200c<<\u200c a\u200cb\u200d'\u200c1 \u200d\u200c",
    # White space without end.
    "a" + " " * 9 + "b" + " " * 5 + "\t" * 4 + "c" + "\u00a0" * 7 + "1" + " " * 17, " " * 520 + "x", " \n" * 20 + "\t\r\n" * 10 + "  ", "\u3000" * 33 + "\n",
    "x   !  ?    \u4f60     1 \u2009\u2009\u2009\u2009z\n \n  \n   y",
    # What some patterns know by name.
    "<sentinel:12><sentinel:x> IMGIMGABCDZ IMGIMGABCDEZ IMGIMGZ IMGIMGJZ", "\u2581a\u2581\u2581 \u2581\nb\n\n \u2581c",
    "/*//\n/\n\n;;\r\n\r\n..\n", "\u20ac\u20ac+\u00d7\u00f7^^``~~||<<>>\u2028", "\"\u00ab\u2018\u201e!\u00a1?\u00bf-\u2014\u3002\u3002",
]
#: One thing without end: a text and how often.
LONG = [(unit, 3000 // len(unit)) for unit in (
    "a", "A", "aB", " ", "\n", " \n", "\t ", "1", "\u0661", "'", "'s", "!", "_", "\u0301", "a\u0301", "\u4f60", "\u200d", "[\u200c", "\ufffd", "\x00", "\u2581",
    "\u00a0", "<|im_end|>", "</s>", "<", "ab1 ", "12 ", "\U0001f468\u200d", "\u0e01\u0e34", "\u4f60\u3042 ", " \n\n  x",
)]
#: Texts with special tokens, for parse_special on and off.
SPECIAL = [
    "<s>[INST] Hi [/INST] there </s>", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", "<|user|>\n  Hi <|end|>  \n<|assistant|>\n x <|endoftext|>  y",
    "a<s>b</s> c <s>  d<unk>e", "<|im_end|><|im_end|>x<|im_end", "<bos><start_of_turn>user\nHi<end_of_turn>\n<|turn>model\n<turn|>",
    "<<|im_end|>> <0x41> [EMPTY_1]", ">>QUESTION<< >>ANSWER<< <\uff5cend\u2581of\u2581sentence\uff5c>", "  </s>  </s>",
]


#: Vocabularies of a few tokens, for the roles and kinds of tokens: name, model, (text, type)s, keys with ids.
N, C, D = 1, 3, 4
LETTERS = [(c, N) for c in "abcdefghijklmnop"]
ROLES = [
    ("defaults of gpt2", "gpt2", LETTERS, {}),
    ("defaults out of range", "gpt2", LETTERS[:5], {}),
    ("defaults of llama", "llama", LETTERS, {}),
    ("ids of keys", "gpt2", LETTERS, {"bos": 1, "eos": 2, "eot": 3, "eom": 4, "fim_pad": 5, "fim_rep": 6, "fim_sep": 7, "fim_pre": 8}),
    ("ids out of range", "gpt2", LETTERS, {"bos": 99, "eos": 16, "eot": 2**32 - 1, "eom": 15}),
    ("a key before a text", "gpt2", [*LETTERS, ("<|im_end|>", N), ("<|fim_prefix|>", N), ("<|file_sep|>", N)], {"eot": 0, "fim_pre": 1, "fim_sep": 2}),
    ("deprecated keys", "gpt2", [*LETTERS, ("<PRE>", N), ("<SUF>", N), ("<MID>", N)], {"prefix": 0, "suffix": 99}),
    ("every text that ends", "gpt2", [(t, N) for t in (
        "<|eot_id|> <|im_end|> <|return|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] "
        "<|end_of_text|> <end_of_utterance> <eos> <turn|> <\uff5cend\u2581of\u2581sentence\uff5c> [e~[ <|eot|> <|ifm|im_end|>").split()] + LETTERS, {"eos": 25}),
    *[(f"the text {t}", "gpt2", [*LETTERS, (t, N)], {}) for t in (
        "<|end|> <end_of_utterance> <|eom_id|> [EOT] <|fim_prefix|> <fim-prefix> <fim_prefix> <\uff5cfim\u2581begin\uff5c> <PRE> \u2581<PRE> "
        "<|code_prefix|> <|prefix|> <|fim_suffix|> <fim-suffix> <fim_suffix> <\uff5cfim\u2581hole\uff5c> <SUF> \u2581<SUF> <|code_suffix|> "
        "<|suffix|> <|fim_middle|> <fim-middle> <fim_middle> <\uff5cfim\u2581end\uff5c> <MID> \u2581<MID> <|code_middle|> <|middle|> <|fim_pad|> "
        "<fim-pad> <fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|> <|end|>x "
        "<|eot|> <|ifm|im_end|> <|plamo:fim_prefix|> <|plamo:fim_suffix|> <|plamo:fim_middle|> <|plamo:file_separator|> <|user|>").split()],
    ("beam", "llama", [*LETTERS, ("<rfl:parameter name=\"", N), ("</s>", C)], {}),
    ("harmony", "gpt2", [*LETTERS, *[(t, C) for t in "<|start|> <|end|> <|message|> <|channel|> <|constrain|> <|return|> <|call|>".split()]], {"eos": 21}),
    ("solar-open", "gpt2", [*LETTERS, *[(t, C) for t in "<|end|> <|flush|> <|calls|>".split()]], {"eos": 17}),
    ("no harmony", "gpt2", [*LETTERS, *[(t, C) for t in "<|end|> <|return|>".split()]], {}),
    ("neither of both", "gpt2", [*LETTERS, *[(t, C) for t in "<|end|> <|return|> <|flush|>".split()]], {}),
    ("gemma 4", "llama", [*LETTERS, *[(t, C) for t in "</s> <eos> <turn|> <|tool_response>".split()]], {"eos": 17}),
    ("plamo", "llama", [*LETTERS, ("<|plamo:eos|>", C), ("</s>", C)], {"eos": 16}),
    ("plamo's token as text", "llama", [*LETTERS, ("<|plamo:eos|>", C), ("</s>", C)], {}),
    ("kinds", "gpt2", [*LETTERS, ("u", 2), ("<|unused_1|>", C), ("x y", D), ("w", 5), ("<0x41>", 6), ("<0xZ>", 6), ("v", 7), ("t", 0), ("s", -5), ("<|im_end|>", D)], {}),
    ("unused", "gpt2", [*LETTERS, ("<|unused|>", C), ("<|eot|>", 5)], {}),
    ("texts", "llama", [*LETTERS, ("", N), ("z\0z", N), ("\u2581x\u2581", N), ("\u2581y", D), ("<0x0a>", 6), ("<0xFF>", 6)], {}),
    ("texts that are no bytes", "gpt2", [*LETTERS, ("", N), (" x ", N), ("\u0120\u4f60", N), ("\u0143\u0144", N), ("y z", C)], {}),
]


BYTES = [(f"<0x{b:02X}>", 6) for b in range(256)]


def odd() -> list[dict]:
    """Vocabularies with a twist: keys, tokens that cut characters, scores that tie."""
    letters = [(c, N) for c in alphabet().values()]
    marked = [("\u2581", N), ("\u2581a", N), ("a", N), ("b", N), ("A", N), ("\n", N), ("\n\n", N), ("i", N), ("ab", N), ("\u0307", N), (" ", N), ("<mask>", C)]
    base = [("<unk>", 2), ("<s>", C), ("</s>", C), ("<|u|>", D), ("<|user|>", N), ("<|observation|>", C)]
    joins = ["a b", "\u2581 a", "\u00e2 \u0138", "\u00e2\u0138 \u0123", "\u2581a b", "\u0120 a"]
    texts = ["a b", " a", "\u2581a", "", " ", "<s>a", "<|u|>a", "a <|u|> b", " <|u|>", "\n\na\n\n b", "<s> a</s>", "A\u0130 ab", "a <mask> b"]
    whole = [*base, *BYTES, *letters, *marked]
    whole = list(dict(whole).items())
    unknown = {"tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    plain = unknown | {"tokenizer.ggml.clean_spaces": False}
    found = []

    def case(name, model, pre, keys, tokens=whole, merges=joins, texts=texts, scores=None):
        found.append({"name": name, "model": model, "pre": pre, "keys": keys, "tokens": tokens, "merges": merges, "texts": texts, "scores": scores})

    scheme = "tokenizer.ggml.metaspace.prepend_scheme"
    for pre in ["gpt-2", "gemma4", "sarvam-moe", "mmbert", "soprano", "tekken"]:
        for value in ["never", "first"]:
            case(f"{pre}, scheme {value}", "gpt2", pre, plain | {scheme: value})
    case("gemma 4, scheme first", "gemma4", "", plain | {scheme: "first"})
    case("scheme first, with a space before", "gpt2", "sarvam-moe", plain | {scheme: "first", "tokenizer.ggml.add_space_prefix": True})
    for value in ["never", "first", "always"]:
        case(f"llama, scheme {value}", "llama", "", plain | {scheme: value})
    for model, value in [("gpt2", "always"), ("gemma4", "always"), ("gpt2", ""), ("llama", "last")]:
        case(f"{model}, scheme {value!r}, refused", model, "", plain | {scheme: value})
    for model in ["gpt2", "llama", "gemma4"]:
        decomposed = ["e\u0301 \u1100\u1161 \u212b", "A <|u|> b\n\n"]
        for key in ["clean_spaces", "normalizer.nfc", "normalizer.lowercase", "dna_auto_tags", "remove_extra_whitespaces", "add_sep_token"]:
            case(f"{model}, {key}", model, "default", plain | {f"tokenizer.ggml.{key}": key != "clean_spaces"}, texts=decomposed)
    for key in ["add_bos_token", "add_eos_token"]:
        for value in [True, False]:
            case(f"mmbert, {key} {value}", "gpt2", "mmbert", plain | {f"tokenizer.ggml.{key}": value})
            case(f"gemma4, {key} {value}", "gpt2", "gemma4", plain | {f"tokenizer.ggml.{key}": value})
    for name, model, pre in [("flint", "gpt2", "flint"), ("no flint", "gpt2", "gpt-4o"), ("kimi", "gpt2", "kimi-k2")]:
        case(name, model, pre, plain)
    case("kimi without merges", "gpt2", "kimi-k2", plain, merges=None)
    case("no merges, refused", "gpt2", "gpt-2", plain, merges=None)
    case("soprano, no eos", "gpt2", "soprano", {k: v for k, v in plain.items() if "eos" not in k})
    for pre in ["jina-v2-de", "JINA-V2-DE", "mmbert", "phi-3"]:
        case(f"llama with pre {pre}", "llama", pre, plain)
    # Tokens that are parts of characters, and so leave parts of them.
    parts = [(b"\x9f\x98", D), (b"\x96", D), (b"\xe4\xbd", C), (b"\x80", N), (b"\xcc", D), (b"\xf0", 2)]
    cut = ["\U0001f600", "a\U0001f600b", "\u2581\u4f60", "\u4f60\u5f60 \u0301", "\U0001f61f\U0001f600\u2580", "\u0416\u2596"]
    for model, pre in [("llama", ""), ("gpt2", "gpt-2"), ("gpt2", "qwen2"), ("gpt2", "mmbert"), ("gpt2", "soprano"), ("gemma4", "")]:
        case(f"parts of characters, {model} {pre}", model, pre, plain, [*whole, *parts], texts=cut)
    # Scores by chance, with ties and zeros of both signs.
    for seed in range(3):
        rng = random.Random(seed)
        grams = sorted({"".join(rng.choice("ab\u2581\u00e4\u4f60") for _ in range(rng.randint(1, 5))) for _ in range(90)})
        tokens = [*base, *BYTES, *[(g, rng.choice([N, N, N, N, 5, D, 0])) for g in grams]]
        scores = [rng.choice([0.0, -0.0, -1.0, -1.0, 2.0, float("inf"), float("-inf"), rng.uniform(-9, 9)]) for _ in tokens]
        some = ["".join(rng.choice("aabb  \u2581\u00e4\u4f60\ncd") for _ in range(rng.randint(5, 60))) for _ in range(12)]
        case(f"scores by chance, {seed}", "llama", "", plain, tokens, None, some, scores)
    return found


class ModelParams(ctypes.Structure):
    """`struct llama_model_params` of llama.h."""

    _fields_ = [
        ("devices", ctypes.c_void_p),
        ("tensor_buft_overrides", ctypes.c_void_p),
        ("n_gpu_layers", ctypes.c_int32),
        ("split_mode", ctypes.c_int),
        ("load_mode", ctypes.c_int),
        ("lazy_mode", ctypes.c_int),
        ("main_gpu", ctypes.c_int32),
        ("tensor_split", ctypes.c_void_p),
        ("progress_callback", ctypes.c_void_p),
        ("progress_callback_user_data", ctypes.c_void_p),
        ("kv_overrides", ctypes.c_void_p),
        ("vocab_only", ctypes.c_bool),
        ("check_tensors", ctypes.c_bool),
        ("use_extra_bufts", ctypes.c_bool),
        ("no_host", ctypes.c_bool),
        ("no_alloc", ctypes.c_bool),
        ("load_mtp", ctypes.c_bool),
    ]


class Llama:
    """libllama."""

    def __init__(self, path: Path, source: Path):
        header = (source / "include" / "llama.h").read_text()
        members = re.sub(r"//.*", "", re.search(r"struct llama_model_params \{(.*?)\n    \};", header, re.S)[1])
        fields = [(re.search(r"(\w+)\s*$", line)[1], re.sub(r"\s*\w+\s*$", "", line).split()) for line in members.split(";") if line.strip()]
        kinds = {ctypes.c_int: ["int32_t", "enum"], ctypes.c_bool: ["bool"]}
        for (name, kind), (found, words) in zip(ModelParams._fields_, fields, strict=True):
            # Pointers; and the progress callback, which is one by its name.
            pointer = "*" in "".join(words) or words[-1].endswith("_callback")
            assert name == found and (pointer if kind == ctypes.c_void_p else words[0] in kinds[kind]), (name, found, words)
        lib = self.lib = ctypes.CDLL(str(path))
        p, i, b = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool
        signatures = {
            "llama_model_default_params": (ModelParams, []),
            "llama_model_load_from_file": (p, [ctypes.c_char_p, ModelParams]),
            "llama_model_free": (None, [p]),
            "llama_model_get_vocab": (p, [p]),
            "llama_vocab_n_tokens": (i, [p]),
            "llama_vocab_get_attr": (ctypes.c_int, [p, i]),
            "llama_vocab_is_eog": (b, [p, i]),
            "llama_vocab_is_control": (b, [p, i]),
            "llama_tokenize": (i, [p, ctypes.c_char_p, i, ctypes.POINTER(i), i, b, b]),
            "llama_token_to_piece": (i, [p, i, ctypes.c_char_p, i, i, b]),
            "llama_detokenize": (i, [p, ctypes.POINTER(i), i, ctypes.c_char_p, i, b, b]),
        }
        for role in ["bos", "eos", "eot"]:
            signatures[f"llama_vocab_{role}"] = (i, [p])
        for flag in ["llama_vocab_get_add_bos", "llama_vocab_get_add_eos"]:
            signatures[flag] = (b, [p])
        for name, (result, arguments) in signatures.items():
            getattr(lib, name).restype = result
            getattr(lib, name).argtypes = arguments
        self.log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, p)(lambda *_: None)
        lib.llama_log_set(self.log, None)
        lib.llama_backend_init()

    def load(self, path: Path) -> "Vocab":
        params = self.lib.llama_model_default_params()
        # Where the structure is as said, nothing is set that a default would not.
        assert not params.vocab_only and not params.kv_overrides and params.use_extra_bufts
        params.vocab_only = True
        model = self.lib.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        return Vocab(self.lib, model)


class Vocab:
    """A vocabulary that llama.cpp has loaded."""

    def __init__(self, lib, model):
        self.lib, self.model = lib, model
        self.vocab = lib.llama_model_get_vocab(model)
        self.n_tokens = lib.llama_vocab_n_tokens(self.vocab)

    def free(self):
        self.lib.llama_model_free(self.model)

    def encode(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode()
        room = 4 * len(data) + 16
        ids = (ctypes.c_int32 * room)()
        n = self.lib.llama_tokenize(self.vocab, data, len(data), ids, room, add_special, parse_special)
        assert n >= 0
        return ids[:n]

    def piece(self, token: int, lstrip: int, special: bool) -> bytes:
        out = ctypes.create_string_buffer(1 << 16)
        n = self.lib.llama_token_to_piece(self.vocab, token, out, len(out), lstrip, special)
        assert n >= 0
        return out.raw[:n]

    def detokenize(self, ids: list[int], special: bool) -> bytes:
        out = ctypes.create_string_buffer(1 << 16)
        array = (ctypes.c_int32 * len(ids))(*ids)
        n = self.lib.llama_detokenize(self.vocab, array, len(ids), out, len(out), False, special)
        assert n >= 0
        return out.raw[:n]

    def decode(self, ids: list[int], special: bool) -> bytes:
        """What llama_detokenize gives but for its clean-up of spaces: pieces, the first without its space if it is."""
        one = self.detokenize(ids[:1], special) if ids else b""
        strips = bool(ids) and one != self.piece(ids[0], 0, special)
        return b"".join(self.piece(t, int(strips and i == 0), special) for i, t in enumerate(ids))

    def kinds(self) -> str:
        """A letter a token, by the bits of llama_token_attr; control beats all, as it does in what the bits are for."""
        letters = [(8, "C"), (1, "?"), (2, "U"), (4, "N"), (16, "D"), (32, "B")]
        attrs = (self.lib.llama_vocab_get_attr(self.vocab, t) for t in range(self.n_tokens))
        return "".join(next((c for bit, c in letters if a & bit), "_") for a in attrs)

    def facts(self) -> dict:
        """All about the vocabulary that is not about a text."""
        role = lambda name: (lambda t: None if t < 0 else t)(getattr(self.lib, f"llama_vocab_{name}")(self.vocab))
        pieces = hashlib.sha256()
        for special in [False, True]:
            for token in range(self.n_tokens):
                piece = self.piece(token, 0, special)
                pieces.update(len(piece).to_bytes(4, "little") + piece)
        kinds = self.kinds()
        return {
            "n_tokens": self.n_tokens,
            "bos": role("bos"), "eos": role("eos"), "eot": role("eot"),
            "adds_bos": self.lib.llama_vocab_get_add_bos(self.vocab),
            "adds_eos": self.lib.llama_vocab_get_add_eos(self.vocab),
            "ends": [t for t in range(self.n_tokens) if self.lib.llama_vocab_is_eog(self.vocab, t)],
            "kinds": hashlib.sha256(kinds.encode()).hexdigest(),
            "pieces": pieces.hexdigest(),
        }

    def cases(self, texts: list[str], modes=((False, False),)) -> list:
        """[text, add_special, parse_special, ids]; modes that change nothing after the first are left out."""
        found = []
        for text in texts:
            seen = []
            for add, parse in modes:
                ids = self.encode(text, add, parse)
                if ids not in seen:
                    found.append([text, add, parse, ids])
                    seen.append(ids)
        return found

    def long(self, parse_special: bool) -> list[str]:
        """Of each of LONG, the SHA-256 of its ids, eight bytes of it."""
        ids = (self.encode(unit * times, False, parse_special) for unit, times in LONG)
        return [hashlib.sha256(b"".join(t.to_bytes(4, "little") for t in i)).hexdigest()[:16] for i in ids]

    def decodings(self, cases: list) -> list:
        """[ids, special, bytes in hex]"""
        some = [ids for _, _, _, ids in cases if ids]
        wanted = [(ids[k:], special) for ids in some for k in (0, 1) for special in (False, True)]
        found, seen = [], set()
        for ids, special in wanted:
            text = self.decode(ids, special)
            if text not in seen:
                seen.add(text)
                found.append([ids, special, text.hex()])
        return found


MODES = ((False, True), (False, False), (True, True))


def inputs(path: Path) -> list[str]:
    """llama.cpp's texts for a vocabulary, without the expectations."""
    text = path.with_name(path.name + ".inp").read_bytes().decode()
    return text.removesuffix("\n").removesuffix("\n__ggml_vocab_test__").split("\n__ggml_vocab_test__\n")


def alphabet() -> dict[int, str]:
    """GPT-2's characters for bytes."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}


def cut(source: Path, target: Path, texts: list[str]):
    """Writes the part of a vocabulary that the texts can need."""
    fields = gguf.GGUFReader(source).fields
    values = {name: field.contents() for name, field in fields.items() if not name.startswith("GGUF.")}
    raw = [bytes(fields["tokenizer.ggml.tokens"].parts[i]) for i in fields["tokenizer.ggml.tokens"].data]
    types = values["tokenizer.ggml.token_type"]
    byte_level = values["tokenizer.ggml.model"] == "gpt2"
    # Of long runs a part: some vocabularies have runs of all lengths, by all ways to merge them.
    texts = [re.sub(r"(.)\1{11,}", lambda m: m[0][:12], t, flags=re.S) for t in texts]
    letters = alphabet()
    if byte_level:
        hay = b"\n\n".join("".join(letters[b] for b in t.encode()).encode() for t in texts)
    else:
        hay = b"\x00\x00".join(("\u2581" + t.replace(" ", "\u2581")).encode() for t in texts)
    specials = [t for t in SPECIAL]
    roles = {v for k, v in values.items() if k.endswith("_token_id")}
    single = {letters[b].encode() for b in range(256)} | {b"<0x%02X>" % b for b in range(256)}
    joined = "\n".join(specials).encode()
    keep = [
        i
        for i, t in enumerate(raw)
        if i in roles or t in single or (t in hay) or (types[i] in (2, 3, 4) and t in joined)
        or any(t == e for e in (b"</s>", b"<unk>", b"<s>", b"<|endoftext|>", b"<|fim_pad|>", b"<|repo_name|>", b"<|file_sep|>"))
    ]
    new = {old: i for i, old in enumerate(keep)}
    kept = {raw[i] for i in keep}
    writer = gguf.GGUFWriter(target, values["general.architecture"])
    for name, value in values.items():
        if name in ("general.architecture", "general.file_type") or name.startswith("tokenizer.chat"):
            continue
        if name == "tokenizer.ggml.tokens":
            writer.add_token_list([raw[i] for i in keep])
        elif name == "tokenizer.ggml.token_type":
            writer.add_token_types([types[i] for i in keep])
        elif name == "tokenizer.ggml.scores":
            writer.add_token_scores([value[i] for i in keep])
        elif name == "tokenizer.ggml.merges":
            halves = [(m, m.encode()[:1] + m.encode()[1:].replace(b" ", b"\xff", 1)) for m in value]
            ok = lambda m: all(h in kept for h in m.split(b"\xff")) and m.replace(b"\xff", b"") in kept
            writer.add_token_merges([m for m, split in halves if ok(split)])
        elif name.endswith("_token_id"):
            writer.add_uint32(name, new[value])
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def probe(target: Path, texts: list[str], longest: int):
    """Writes a vocabulary that shows where words end: the n-grams of the texts, as bytes and as text with \u2581.

    Each is merged from the one shorter and a character, in an order drawn by chance; so most boundaries that one
    pre-tokenizer sees and another does not change the tokens. A few words have no merges, for those that ignore them.
    """
    letters = alphabet()
    grams, words = set(), set()
    for text in texts:
        for line in ("".join(letters[b] for b in text.encode()), text.replace(" ", "\u2581")):
            grams |= {line[i : i + n] for n in range(2, longest + 1) for i in range(len(line) - n + 1)}
        words |= {"".join(letters[b] for b in w.encode()) for w in text.split() if 4 <= len(w.encode()) <= 8}
    # llama.cpp reads texts of tokens up to a NUL.
    order = sorted(g for g in grams if "\0" not in g)
    random.Random(2).shuffle(order)
    words = sorted(words - grams)[::7] + ["\n\n\n", "\n\n\n\n\n\n\n", "\u010a\u010a"]
    bytes_of_text = [f"<0x{b:02X}>" for b in range(256)]
    tokens = list(dict.fromkeys(["<s>", "</s>", *bytes_of_text, *letters.values(), *sorted({c for g in order for c in g}), *order, *words]))
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [6] * 256 + [1] * (len(tokens) - 258))
    writer.add_token_merges([f"{g[:-1]} {g[-1]}" for g in order])
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def write_roles(llama: Llama, scratch: Path):
    """Writes what llama.cpp says of the vocabularies of ROLES."""
    rows = []
    for name, model, tokens, keys in ROLES:
        writer = gguf.GGUFWriter(scratch, "llama")
        writer.add_tokenizer_model(model)
        writer.add_token_list([t.encode() for t, _ in tokens])
        writer.add_token_types([k for _, k in tokens])
        writer.add_token_merges(["a b"])
        for key, token in keys.items():
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", token)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        vocab = llama.load(scratch)
        facts = vocab.facts()
        rows.append({
            "name": name, "model": model, "tokens": tokens, "keys": [[f"tokenizer.ggml.{k}_token_id", v] for k, v in keys.items()],
            **{k: facts[k] for k in ("bos", "eos", "eot", "ends")}, "kinds": vocab.kinds(),
            "pieces": [vocab.piece(t, 0, True).hex() for t in range(vocab.n_tokens)],
        })
        vocab.free()
    dump(TARGET / "roles.json", {"vocabularies": rows})


def write_odd(llama: Llama, scratch: Path):
    """Writes what llama.cpp makes of the vocabularies of odd()."""
    rows = []
    for case in odd():
        texts = case.pop("texts")
        tokens = [(t.encode() if isinstance(t, str) else t, kind) for t, kind in case["tokens"]]
        writer = gguf.GGUFWriter(scratch, "llama")
        writer.add_tokenizer_model(case["model"])
        if case["pre"]:
            writer.add_tokenizer_pre(case["pre"])
        writer.add_token_list([t for t, _ in tokens])
        writer.add_token_types([kind for _, kind in tokens])
        if case["scores"] is not None:
            writer.add_token_scores(case["scores"])
        if case["merges"] is not None:
            writer.add_token_merges(case["merges"])
        for key, value in case["keys"].items():
            add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}[type(value)]
            # The writer leaves out texts that are empty.
            writer.add_key_value(key, value, gguf.GGUFValueType.STRING) if value == "" else add(key, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        case["tokens"] = [[t.hex(), kind] for t, kind in tokens]
        case["keys"] = list(case["keys"].items())
        if case["scores"] is not None:
            # As bits: JSON has no infinity.
            case["scores"] = [int.from_bytes(struct.pack("<f", s), "little") for s in case["scores"]]
        try:
            vocab = llama.load(scratch)
        except RuntimeError:
            assert "refused" in case["name"], case["name"]
            rows.append(case | {"refused": True})
            continue
        assert "refused" not in case["name"], case["name"]
        facts = vocab.facts()
        cases = vocab.cases(texts, MODES)
        assert all(t >= 0 for *_, ids in cases for t in ids), case["name"]
        decodings = {}
        for *_, ids in cases[::2]:
            for k, special in [(0, False), (1, False), (0, True)]:
                text = vocab.detokenize(ids[k:], special)
                if len(ids) > k:
                    decodings.setdefault(text, [ids[k:], special, text.hex()])
        rows.append(case | {
            **{k: facts[k] for k in ("bos", "eos", "adds_bos", "adds_eos", "ends")}, "kinds": hashlib.sha256(vocab.kinds().encode()).hexdigest(), "encode": cases,
            "decode": list(decodings.values()),
        })
        vocab.free()
    # Most have the same tokens: each list once.
    lists = []
    for row in rows:
        for part in ["tokens", "merges"]:
            if row[part] not in lists:
                lists.append(row[part])
            row[part] = lists.index(row[part])
    print(len(rows), "odd vocabularies")
    dump(TARGET / "odd.json", {"lists": lists, "vocabularies": rows})


def with_pre(source: Path, target: Path, pre: str):
    """A copy of a vocabulary with another pre-tokenizer, of the same bytes else; none if the name is empty."""
    key, data = b"tokenizer.ggml.pre", source.read_bytes()
    at = data.index(key)
    old = int.from_bytes(data[at + len(key) + 4 : at + len(key) + 12], "little")
    end = at + len(key) + 12 + old
    # Without the name, the key is another one of the same length.
    head = data[:at] + (key if pre else b"tokenizer.ggml.prx") + data[at + len(key) : at + len(key) + 4]
    target.write_bytes(head + len(pre).to_bytes(8, "little") + pre.encode() + data[end:])


def dump(path: Path, value):
    """JSON of a line a case."""
    lines = []
    for key, item in value.items():
        if isinstance(item, list) and item and isinstance(item[0], (list, dict)):
            rows = ",\n".join("  " + json.dumps(row, separators=(",", ":")) for row in item)
            lines.append(f' "{key}": [\n{rows}\n ]')
        else:
            lines.append(f' "{key}": {json.dumps(item)}')
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def expectations(llama: Llama, path: Path, name: str, texts: list[str], pre: str = "") -> dict:
    vocab = llama.load(path)
    cases = vocab.cases(texts, MODES)
    long = [[*unit, found] for unit, found in zip(LONG, vocab.long(True), strict=True)]
    value = {"file": name, **vocab.facts(), "encode": cases, "decode": vocab.decodings(cases[:: 4]), "long": long}
    vocab.free()
    return value


def write_fixtures(llama: Llama, models: Path):
    TARGET.mkdir(exist_ok=True)
    scratch = ROOT / "target" / "with-pre.gguf"
    scratch.parent.mkdir(exist_ok=True)
    for name in CUT:
        source = models / f"ggml-vocab-{name}.gguf"
        texts = inputs(source) + HARD + HOSTILE + SPECIAL
        path = TARGET / f"{name}.gguf"
        cut(source, path, texts)
        dump(TARGET / f"{name}.json", expectations(llama, path, path.name, texts))
        print(name, path.stat().st_size)
    for path in sorted((ROOT / "fixtures" / "models").glob("*.gguf")):
        dump(TARGET / f"{path.stem}.json", expectations(llama, path, f"../models/{path.name}", HARD[:12] + SPECIAL))
    write_roles(llama, scratch)
    write_odd(llama, scratch)
    texts = HARD + HOSTILE
    probe(TARGET / "probe.gguf", texts, 3)
    groups = []
    for names in PRES:
        answers = []
        for pre in names:
            with_pre(TARGET / "probe.gguf", scratch, pre)
            vocab = llama.load(scratch)
            bos = [vocab.lib.llama_vocab_bos(vocab.vocab), vocab.lib.llama_vocab_get_add_bos(vocab.vocab)]
            ids = [vocab.encode(t, False, False) for t in texts]
            answers.append({"bos": bos, "ids": ids, "long": vocab.long(False)})
            vocab.free()
        assert all(a == answers[0] for a in answers), names
        assert all(a != answers[0] for _, a in groups), f"{names[0]} cannot be told from another"
        groups.append((names, answers[0]))
    print(len(groups), "pre-tokenizers,", sum(len(n) for n, _ in groups), "names,", len(texts), "texts")
    # Many agree on a text: each answer once, and which of them is whose.
    answers = [[] for _ in texts]
    for _, answer in groups:
        for i, ids in enumerate(answer["ids"]):
            if ids not in answers[i]:
                answers[i].append(ids)
            answer["ids"][i] = answers[i].index(ids)
    rows = [{"names": names, **answer} for names, answer in groups]
    dump(TARGET / "pre.json", {"file": "probe.gguf", "texts": [list(t) for t in zip(texts, answers)], "long": LONG, "pre": rows})
    scratch.unlink()


def random_texts(rng: random.Random, n: int) -> list[str]:
    """Texts of characters that pre-tokenizers care about."""
    pools = [
        "abcXYZ", "'sStTrReEvVmMlLdD", "0123456789", " \t\n\r\u00a0\u3000\u2003\x0b", "!?.,;:-_/\\|<>=+*&^%$#@~`\"()[]{}",
        "\u00e4\u00d6\u00df\u0416\u03c9\u05d0\u0645\u0928\u4f60\u3053\u30ab\ud55c\U00020000", "\u0e40\u1780\u1000\u3105\u3131\u1100\u8c48\uff76\u0130\u24b6", "\u200c\u200d_[<\u2581", "\u0301\u0300\u094d\u0e31\ufe0f\u200d", "\u0661\u00bd\u2167\uff11",
        "\U0001f468\U0001f44d\u20ac\u2200\u3002\uff01\u2026\u2019", "\x00\x1c\x7f\u0085\ufeff\u1c89\U00010d40\ud7ff\u1680\u2028",
    ]
    texts = []
    for _ in range(n):
        some = rng.sample(pools, rng.randint(1, 4))
        texts.append("".join(rng.choice(rng.choice(some)) * rng.choice([1, 1, 1, 2, 3]) for _ in range(rng.randint(1, 60))))
    return texts


def run_full(llama: Llama, models: Path, extra: list[Path], n_random: int):
    out = ROOT / "target" / "tokenizers-full"
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*"):
        old.unlink()
    rng = random.Random(1)
    for source in sorted(models.glob("ggml-vocab-*.gguf")) + extra:
        reader = gguf.GGUFReader(source)
        model = reader.fields["tokenizer.ggml.model"].contents()
        if model not in ("gpt2", "llama", "gemma4"):
            print(f"{source.name}: {model}, not built in")
            continue
        own = inputs(source) if source.with_name(source.name + ".inp").exists() else []
        if own:
            expected = [[int(t) for t in line.split()] for line in source.with_name(source.name + ".out").read_text().splitlines()]
            vocab = llama.load(source)
            same = sum(vocab.encode(t, False, False) == e for t, e in zip(own, expected, strict=True))
            vocab.free()
            print(f"{source.name}: llama.cpp itself gives {same} of {len(expected)} in its .out")
        texts = own + HARD + HOSTILE + SPECIAL + random_texts(rng, n_random)
        dump(out / f"{source.stem}.json", expectations(llama, source, str(source.resolve()), texts))
    texts = HARD + HOSTILE + SPECIAL + random_texts(rng, 3 * n_random)
    probe(out / "probe.gguf", texts, 4)
    for names in PRES:
        path = out / f"pre-{names[0]}.gguf"
        with_pre(out / "probe.gguf", path, names[0])
        dump(out / f"pre-{names[0]}.json", expectations(llama, path, str(path), texts, names[0]))
    command = ["cargo", "test", "--test", "integration", "--", "--ignored", "--nocapture", "whole_vocabularies"]
    sys.exit(subprocess.run(command, cwd=ROOT, env=os.environ | {"CHATVEC_VOCABS": str(out)}).returncode)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-cpp", type=Path, required=True, help="source tree of llama.cpp")
    parser.add_argument("--vocabs", type=Path, help="folder of ggml-vocab-*.gguf, if not models/ of the tree")
    parser.add_argument("--libllama", type=Path, required=True, help="libllama.so built from it")
    parser.add_argument("--full", action="store_true", help="compare on whole vocabularies instead of writing fixtures")
    parser.add_argument("--model", type=Path, action="append", default=[], help="with --full: another model to compare on")
    parser.add_argument("--random", type=int, default=300, help="with --full: random texts for each vocabulary")
    args = parser.parse_args()
    source = (args.llama_cpp / "src" / "llama-vocab.cpp").read_text()
    # That of embedding models, with which llama.cpp does not get through these texts, is not built in.
    known = set(re.findall(r'tokenizer_pre == "([^"]+)"', source)) - {"whitespace"}
    ours = {name for names in PRES for name in names if name}
    assert known == ours, f"pre-tokenizers of llama.cpp that PRES lacks {known - ours}, others {ours - known}"
    llama, models = Llama(args.libllama, args.llama_cpp), args.vocabs or args.llama_cpp / "models"
    if args.full:
        run_full(llama, models, args.model, args.random)
    else:
        write_fixtures(llama, models)


if __name__ == "__main__":
    # libstdc++ matches a regular expression by a call for each character.
    threading.stack_size(1 << 30)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(main).result()
