#!/usr/bin/env bash
# mlx 0.32.4 (PyPI mlx[cpu]) reads a GGUF file of several types. Written by gguf 0.19.0.
#
# Guess before:  a type that mlx cannot read is an error, and BF16 becomes mlx's own bfloat16.
# Seen:          1. A tensor of a type that its GGUF reader does not know (MXFP4, TQ1_0, TQ2_0) ends
#                   the list. mx.load returns the tensors before it and no error. It leaves out that
#                   tensor and all behind it, also those in F32.
#                2. BF16 becomes float16. 1e5 becomes infinity and 1e-9 becomes 0.
#                3. Q3_K, Q5_K, Q5_0, Q5_1, IQ4_NL and IQ4_XS are errors, so a Q4_K_M file with its
#                   Q6_K opens and a Q5_K_M file does not.
# So a model or a vector that passes through mx.load can lose tensors and weights without a word:
# count the tensors against the file's header, and convert BF16 to F32 before.
#
# Prints what it sees. Exit code 1 if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    'mlx[cpu]==0.32.4' gguf==0.19.0 numpy==2.4.6
cd "$folder"
cat > look.py <<'PYTHON'
import gguf
import mlx.core as mx
import numpy as np

Type = gguf.GGMLQuantizationType


def load(tensors):
    writer = gguf.GGUFWriter("file.gguf", "llama")
    for name, data, ty in tensors:
        writer.add_tensor(name, data, raw_dtype=ty)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert len(gguf.GGUFReader("file.gguf").tensors) == len(tensors)
    return mx.load("file.gguf")


weights = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
seen = {}
for name in ["MXFP4", "TQ1_0", "TQ2_0"]:
    middle = gguf.quants.quantize(weights, Type[name])
    loaded = load([("first", weights, Type.F32), ("middle", middle, Type[name]), ("last", weights, Type.F32)])
    seen[f"first in F32, middle in {name}, last in F32"] = sorted(loaded)

large = np.array([[1e5, 1e-9, 1.0, -2.0] * 8], np.float32)
loaded = load([("a", gguf.quants.quantize(large, Type.BF16), Type.BF16)])["a"]
seen["1e5, 1e-9, 1, -2 in BF16"] = [str(loaded.dtype), *loaded[0, :4].tolist()]

for name in ["Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q5_0", "IQ4_XS"]:
    block_len, block_size = gguf.GGML_QUANT_SIZES[Type[name]]
    zeros = np.zeros((4, 256 // block_len * block_size), np.uint8)
    try:
        seen[f"zeros in {name}"] = str(load([("a", zeros, Type[name])])["a"].dtype)
    except RuntimeError as error:
        seen[f"zeros in {name}"] = str(error)

expected = {f"first in F32, middle in {name}, last in F32": ["first"] for name in ["MXFP4", "TQ1_0", "TQ2_0"]}
expected["1e5, 1e-9, 1, -2 in BF16"] = ["mlx.core.float16", float("inf"), 0.0, 1.0, -2.0]
for name in ["Q3_K", "Q5_K", "Q5_0", "IQ4_XS"]:
    expected[f"zeros in {name}"] = "[load_gguf] gguf_tensor_to_f16 failed"
for name in ["Q4_K", "Q6_K"]:
    expected[f"zeros in {name}"] = "mlx.core.float16"
for what in seen:
    print(f"{what}: {seen[what]}" + ("" if seen[what] == expected[what] else f"   EXPECTED {expected[what]}"))
raise SystemExit(seen != expected)
PYTHON
venv/bin/python look.py
