"""What llama-imatrix gathers, what llama-quantize makes of a matrix, and what a matrix means.

    python imatrix_goldens.py --llama FOLDER [--chatvec PATH]

Writes fixtures/imatrix, which its README describes. FOLDER has `llama-imatrix` and `llama-quantize`, built from llama.cpp
without -march=native (`cmake -DGGML_NATIVE=OFF`), so that encoders use no fused multiply-add. Needs requirements.txt.

Matrices of models are written by llama-imatrix with keys and values in F32 and without flash attention, a chunk at a
time, but for `default.gguf`, which is made as people make it. Means of the synthetic matrices are computed by numpy in
float32, by the rules of `common_imatrix_load` and `load_imatrix`.
"""

import hashlib
import json
import os
import struct
import subprocess
from pathlib import Path

import gguf
import numpy as np

from synthetic_models import variants, write_gguf
from tool import ROOT, Chatvec, arguments, find_trio, work_folder

OUT = ROOT / "fixtures/imatrix"
TEXTS = ROOT / "fixtures/compare"
TEXT = "plain-de.txt"
MERGES = ("F32", "Q8_0", "Q4_K")
CHUNK, N_CHUNKS = 128, 8
EXACT = ("-ctk", "f32", "-ctv", "f32", "-fa", "off", "-b", str(CHUNK), "--process-output", "--chunks", str(N_CHUNKS))
#: File types of llama-quantize, with --pure.
TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_S", "Q4_K_S", "Q5_K_S", "Q6_K", "IQ4_NL", "IQ4_XS")
#: Those that it writes with a matrix alone, or that ggml wants one for; embeddings have none.
TYPES_OF_MATRICES = ("IQ3_XXS", "IQ3_S", "IQ2_XXS", "IQ2_XS", "IQ2_M", "IQ1_S", "IQ1_M")
ROW, ROWS, EXPERTS = 256, 10, 4


class Llama:
    """The tools of llama.cpp."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()

    def run(self, tool: str, *args, cwd: Path = ROOT) -> str:
        env = os.environ | {"LD_LIBRARY_PATH": str(self.folder)}
        command = [str(self.folder / tool), *map(str, args)]
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")
        return done.stdout

    def imatrix(self, model: Path, out: Path, *args):
        """In the folder of the text, whose name is kept as it is given."""
        out.unlink(missing_ok=True)
        self.run("llama-imatrix", "-m", model.resolve(), "-f", TEXT, "-o", out.resolve(), "--no-ppl", *args, cwd=TEXTS)
        print(f"{out}: {out.stat().st_size} bytes", flush=True)

    def quantize(self, model: Path, matrix: Path, file_type: str, out: Path) -> dict:
        """The hash of its encoded tensors, by name one after the other, and the keys about the matrix."""
        self.run("llama-quantize", "--pure", "--imatrix", matrix, model, out, file_type)
        reader = gguf.GGUFReader(out)
        keys = {k: f.contents() for k, f in reader.fields.items() if k.startswith("quantize.")}
        # As it was given, which is no business of a fixture.
        keys["quantize.imatrix.file"] = Path(keys["quantize.imatrix.file"]).name
        encoded = sorted((t for t in reader.tensors if t.tensor_type.name not in ("F32", "F16")), key=lambda t: t.name)
        digest = hashlib.sha256(b"".join(t.data.tobytes() for t in encoded)).hexdigest()
        types = sorted({t.tensor_type.name for t in encoded})
        return {"keys": keys, "types": types, "n_tensors": len(encoded), "sha256": digest}


def with_bos(source: Path, target: Path) -> Path:
    """The same model with a vocabulary that adds BOS: one byte of its header."""
    data = bytearray(source.read_bytes())
    key = b"tokenizer.ggml.add_bos_token" + struct.pack("<I", gguf.GGUFValueType.BOOL)
    at = data.index(key) + len(key)
    assert data[at] == 0
    data[at] = 1
    target.write_bytes(data)
    return target


def experts(path: Path) -> Path:
    """A model with a stack of experts, as far as llama-quantize looks at it."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(ROW)
    writer.add_feed_forward_length(ROWS)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(2)
    rng = np.random.default_rng(1)
    for name, shape in SHAPES.items():
        writer.add_tensor(name, rng.normal(0, 0.05, shape).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


#: numpy's order, the row's length last.
SHAPES = {"blk.0.attn_v.weight": (ROWS, ROW), "blk.0.ffn_up_exps.weight": (EXPERTS, ROWS, ROW)}


def importance_of_experts(folder: Path) -> dict:
    """The same matrix in both forms, and its means. One expert was reached by no token, one by half a one."""
    rng = np.random.default_rng(2)
    sums = {name: rng.exponential(50, (int(np.prod(shape[:-2])), ROW)).astype(np.float32)
            for name, shape in SHAPES.items()}
    counts = {"blk.0.attn_v.weight": [300], "blk.0.ffn_up_exps.weight": [300, 37, 0, 2.5]}
    writer = gguf.GGUFWriter(folder / "experts.imatrix.gguf", "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["/texts/a.txt", "b.txt"])
    writer.add_uint32("imatrix.chunk_count", 2)
    writer.add_uint32("imatrix.chunk_size", 150)
    for name in SHAPES:
        writer.add_tensor(f"{name}.in_sum2", sums[name])
        writer.add_tensor(f"{name}.counts", np.array(counts[name], dtype=np.float32).reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    means, legacy = {}, {}
    calls = {"blk.0.attn_v.weight": 3, "blk.0.ffn_up_exps.weight": 0}
    data = struct.pack("<i", len(SHAPES))
    for name in SHAPES:
        # lround is half away from zero, numpy's rounding is not.
        count = np.floor(np.array(counts[name], dtype=np.float32) + np.float32(0.5))[:, None]
        with np.errstate(divide="ignore"):
            means[name] = np.where(count > 0, sums[name] / count, np.float32(1)).astype(np.float32)
        values = sums[name].astype("<f4")
        data += struct.pack("<i", len(name)) + name.encode()
        data += struct.pack("<ii", calls[name], values.size) + values.tobytes()
        legacy[name] = values / np.float32(calls[name]) if calls[name] else values
    data += struct.pack("<i", 7) + struct.pack("<i", 5) + b"a.txt"
    (folder / "experts.imatrix.dat").write_bytes(data)
    hashed = lambda entries: {n: hashlib.sha256(v.astype("<f4").tobytes()).hexdigest() for n, v in entries.items()}
    return {"gguf": {"n_chunks": 2, "datasets": ["/texts/a.txt", "b.txt"], "means": hashed(means)},
            "dat": {"n_chunks": 7, "datasets": ["a.txt"], "means": hashed(legacy)}}


def main():
    parser = arguments(__doc__)
    parser.add_argument("--llama", type=Path, required=True, help="folder of llama-imatrix and llama-quantize")
    args = parser.parse_args()
    llama, chatvec = Llama(args.llama), Chatvec(args.chatvec)
    OUT.mkdir(exist_ok=True)
    trio = find_trio(ROOT / "fixtures/models")
    with work_folder(args.temp_dir) as folder:
        llama.imatrix(trio.cp, OUT / "F16.gguf", "-c", CHUNK, *EXACT)
        llama.imatrix(trio.cp, OUT / "F16.dat", "-c", CHUNK, *EXACT, "--output-format", "dat")
        llama.imatrix(trio.cp, OUT / "default.gguf", "-c", 256, "-b", 256)
        bos = with_bos(trio.cp, folder / "bos.gguf")
        llama.imatrix(bos, OUT / "bos.gguf", "-c", CHUNK, *EXACT)
        for ty in MERGES:
            merged = chatvec.merge(trio, folder / f"{ty}.gguf", type_=ty)
            llama.imatrix(merged, OUT / f"{ty}.gguf", "-c", CHUNK, *EXACT)
        for name in ("qwen2", "qwen2-tied"):
            variant = next(v for v in variants() if v.name == name)
            model = write_gguf(variant, folder / f"{name}.gguf")
            llama.imatrix(model, OUT / f"{name}.gguf", "-c", CHUNK, *EXACT)

        expected = {"means": importance_of_experts(OUT), "quantized": {"F16": {}, "experts": {}}}
        model = experts(OUT / "experts-F16.gguf")
        for ty in TYPES:
            expected["quantized"]["F16"][ty] = llama.quantize(trio.cp, OUT / "F16.gguf", ty, folder / "out.gguf")
        for ty in TYPES + TYPES_OF_MATRICES:
            matrix = OUT / "experts.imatrix.gguf"
            expected["quantized"]["experts"][ty] = llama.quantize(model, matrix, ty, folder / "out.gguf")
        for ty in ("Q4_0", "Q4_K_S"):
            matrix = OUT / "F16.dat"
            expected["quantized"].setdefault("F16.dat", {})[ty] = llama.quantize(trio.cp, matrix, ty, folder / "out.gguf")
        (OUT / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
