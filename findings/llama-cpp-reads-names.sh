#!/usr/bin/env bash
# llama.cpp b11549 (PyPI xllamacpp 2026.10.11549) reads a model's name. Files written by gguf 0.19.0.
#
# Guess before:  general.name is for people; two files that differ in it alone give the same tokens.
# Seen:          A SentencePiece vocabulary whose general.name has "phi-3" or "phi3" in it, in any
#                case, gets other special tokens: white space behind them is dropped. The same text
#                has fewer tokens. Such a file is refused if <unk>, <s> or <|endoftext|> is no token.
# So who renames a Phi-3 file, or names another model after one, changes how it is read: keep the name
# when the tokenizer is kept.
#
# Prints what it sees. Exit code 1 if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    xllamacpp==2026.10.11549 gguf==0.19.0 numpy==2.4.6
cd "$folder"
cat > look.py <<'PYTHON'
import ctypes
from pathlib import Path

import gguf
import numpy as np
import xllamacpp

lib = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))))


class Params(ctypes.Structure):
    """More room than the structure takes."""

    _fields_ = [("rest", ctypes.c_uint64 * 64)]


pointer, i32 = ctypes.c_void_p, ctypes.c_int32
lib.llama_model_default_params.restype = Params
lib.llama_model_load_from_file.restype, lib.llama_model_load_from_file.argtypes = pointer, [ctypes.c_char_p, Params]
lib.llama_model_get_vocab.restype, lib.llama_model_get_vocab.argtypes = pointer, [pointer]
lib.llama_model_free.argtypes = [pointer]
lib.llama_tokenize.argtypes = [pointer, ctypes.c_char_p, i32, ctypes.POINTER(i32), i32, ctypes.c_bool, ctypes.c_bool]
quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, pointer)(lambda *_: None)
lib.llama_log_set.argtypes = [type(quiet), pointer]
lib.llama_log_set(quiet, None)

TYPE = gguf.TokenType
WORDS = [("<unk>", TYPE.UNKNOWN), ("<s>", TYPE.CONTROL), ("</s>", TYPE.CONTROL), ("<|endoftext|>", TYPE.CONTROL),
         ("<|user|>", TYPE.CONTROL), *((f"<0x{byte:02X}>", TYPE.BYTE) for byte in range(256)),
         *((letter, TYPE.NORMAL) for letter in "\u2581ahi")]


def tokens(name, words):
    """How many tokens a text has in a model of this name; none if it does not load."""
    writer, width = gguf.GGUFWriter("model.gguf", "llama"), 64
    writer.add_name(name)
    for add, value in ((writer.add_context_length, 64), (writer.add_embedding_length, width), (writer.add_block_count, 1),
                       (writer.add_feed_forward_length, width), (writer.add_head_count, 2),
                       (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_tokenizer_model, "llama"),
                       (writer.add_token_list, [word for word, _ in words]),
                       (writer.add_token_types, [int(kind) for _, kind in words]),
                       (writer.add_token_scores, [0.0] * len(words))):
        add(value)
    square, norm = np.zeros((width, width), np.float32), np.ones(width, np.float32)
    writer.add_tensor("token_embd.weight", np.zeros((len(words), width), np.float32))
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{part}.weight", square)
    for part in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{part}.weight", norm)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = lib.llama_model_load_from_file(b"model.gguf", lib.llama_model_default_params())
    if not model:
        return "not loaded"
    text, ids = b"<|user|>   \n  hi", (i32 * 64)()
    n = lib.llama_tokenize(lib.llama_model_get_vocab(model), text, len(text), ids, len(ids), False, True)
    lib.llama_model_free(model)
    return n


fewer = [(word, kind) for word, kind in WORDS if word != "<|endoftext|>"]
seen = {f"{name}, {what}": tokens(name, words)
        for name in ("My model", "My Phi-3 model", "phi3")
        for what, words in (("all words", WORDS), ("without <|endoftext|>", fewer))}
expected = dict.fromkeys(seen)
for name, all_words, others in (("My model", 10, 10), ("My Phi-3 model", 4, "not loaded"), ("phi3", 4, "not loaded")):
    expected[f"{name}, all words"], expected[f"{name}, without <|endoftext|>"] = all_words, others
for what in seen:
    print(f"{what}: {seen[what]}" + ("" if seen[what] == expected[what] else f"   EXPECTED {expected[what]}"))
raise SystemExit(seen != expected)
PYTHON
venv/bin/python look.py
