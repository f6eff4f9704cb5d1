"""Which type each tensor gets, and its bytes: `chatvec quantize` against llama-quantize.

    python type_mixtures.py types --llama-quantize PATH             writes fixtures/mixtures/types.json
    python type_mixtures.py bytes --llama-quantize PATH [--models DIR ...] [--types T ...] [--imatrix FILE]

PATH is a llama-quantize of llama.cpp; its libraries are looked for beside it.

`types` makes files of zeros with the headers of many kinds of models, asks `llama-quantize --dry-run` for every file type
(and for options, for some of them), and records the types. `cargo test` builds the same headers from what is recorded
and compares. `bytes` quantises models with both programs and compares tensor by tensor, and the metadata: the models in
fixtures/models and in each DIR, and synthetic ones of about 20 million weights.
"""

import argparse
import json
import os
import re
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType

from gguf_files import read_tensors
from tool import ROOT, Chatvec, ToolError, work_folder

OUT = ROOT / "fixtures" / "mixtures"

#: Every file type of llama-quantize but COPY, which changes nothing.
FILE_TYPES = """Q1_0 Q2_0 Q4_0 Q4_1 MXFP4_MOE Q5_0 Q5_1 IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ1_S IQ1_M TQ1_0 TQ2_0 Q2_K Q2_K_S
IQ3_XXS IQ3_S IQ3_M IQ3_XS Q3_K_S Q3_K_M Q3_K_L IQ4_NL IQ4_XS Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K Q8_0 F16 BF16
F32""".split()

#: Options that are tried with some file types.
OPTIONS = [
    "--leave-output-tensor",
    "--output-tensor-type q8_0",
    "--output-tensor-type iq4_nl --pure",
    "--token-embedding-type q5_0",
    "--token-embedding-type q5_0 --output-tensor-type q8_0 --leave-output-tensor",
    "--tensor-type attn_v=q8_0 --tensor-type attn_.*=iq4_nl --tensor-type FFN_DOWN=q3_k",
    r"--tensor-type blk\.([0-3]|1\d)\.ffn_(?!up)=q6_k --tensor-type weight$=q5_k --pure",
    "--tensor-type per_layer_token_embd=q4_1 --token-embedding-type q8_0",
    "--tensor-type ^blk\\.\\d+\\.attn_[qk]\\.=f16 --imatrix",
]
WITH_OPTIONS = ["Q4_K_M", "IQ2_XXS", "Q5_0", "F16"]
#: What is tried with models that differ from another one in a single rule.
BRIEF = ["Q2_K", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_M", "IQ2_S", "IQ3_XS", "IQ3_M", "IQ4_XS"]
BRIEF_MODELS = ["65b", "qwen2-72b", "deci-80", "olmo-80", "jais2-68", "eight-experts-80", "no-kv-heads", "looped",
                "falcon-60", "predicts-ahead"]
#: Types in the record, a letter each.
LETTERS = dict(zip("""F32 F16 BF16 Q8_0 Q6_K Q5_K Q5_1 Q5_0 Q4_K Q4_1 Q4_0 Q3_K Q2_K Q2_0 Q1_0 IQ4_NL IQ4_XS IQ3_S IQ3_XXS
IQ2_S IQ2_XS IQ2_XXS IQ1_M IQ1_S TQ2_0 TQ1_0 MXFP4 I32""".split(), "ABCDEFGHIJKLMNOPQRSTUVWXYZab"))


@dataclass
class Model:
    """A header: keys without the architecture before them, and tensors (name, shape with the row length first, type).

    A name with {} stands for that tensor of every layer from `layers[0]` up to, not with, `layers[1]`.
    """

    name: str
    architecture: str
    keys: dict
    tensors: list = field(default_factory=list)

    def add(self, name, ne, type_="F16", layers=None):
        self.tensors.append([name, ne, type_] if layers is None else [name, ne, type_, *layers])

    def all_tensors(self):
        for name, ne, type_, *layers in self.tensors:
            for layer in range(*layers) if layers else [None]:
                yield name.format(layer), ne, Type[type_]

    def header(self):
        return {"name": self.name, "architecture": self.architecture, "keys": self.keys, "tensors": self.tensors}


def model(name, architecture, n_layers, heads=(8, 2), experts=0, tied=False, embd=256, ff=512, **keys):
    """Keys and the tensors that are not in a layer."""
    keys = {"block_count": n_layers, "context_length": 64, "embedding_length": embd, "feed_forward_length": ff,
            "attention.head_count": heads[0], "attention.head_count_kv": heads[1],
            "attention.layer_norm_rms_epsilon": 1e-5, "attention.layer_norm_epsilon": 1e-5,
            **({"expert_count": experts, "expert_used_count": 2} if experts else {}),
            **{key.replace("__", "."): value for key, value in keys.items()}}
    made = Model(name, architecture, {key: value for key, value in keys.items() if value is not None})
    # Not in the order in which llama-quantize counts.
    if not tied:
        made.add("output.weight", [embd, 8])
    made.add("output_norm.weight", [embd], "F32")
    made.add("token_embd.weight", [embd, 8])
    return made


def attention(made, layers, embd=256, kv=64, type_="F16"):
    for name, ne in [("attn_v", [embd, kv]), ("attn_q", [embd, embd]), ("attn_k", [embd, kv]),
                     ("attn_output", [embd, embd])]:
        made.add(f"blk.{{}}.{name}.weight", ne, type_, layers)
    made.add("blk.{}.attn_norm.weight", [embd], "F32", layers)


def dense(made, layers, embd=256, ff=512, type_="F16"):
    for name, ne in [("ffn_up", [embd, ff]), ("ffn_gate", [embd, ff]), ("ffn_down", [ff, embd])]:
        made.add(f"blk.{{}}.{name}.weight", ne, type_, layers)
    made.add("blk.{}.ffn_norm.weight", [embd], "F32", layers)


def experts(made, layers, n, embd=256, ff=256, shared=False):
    made.add("blk.{}.ffn_gate_inp.weight", [embd, n], "F32", layers)
    for name, ne in [("ffn_down_exps", [ff, embd, n]), ("ffn_gate_exps", [embd, ff, n]), ("ffn_up_exps", [embd, ff, n])]:
        made.add(f"blk.{{}}.{name}.weight", ne, "F16", layers)
    if shared:
        for name, ne in [("ffn_down_shexp", [ff, embd]), ("ffn_gate_shexp", [embd, ff]), ("ffn_up_shexp", [embd, ff])]:
            made.add(f"blk.{{}}.{name}.weight", ne, "F16", layers)
        made.add("blk.{}.ffn_gate_inp_shexp.weight", [embd], "F32", layers)


def llama(name, n_layers, heads=(8, 2), architecture="llama", embd=256, ff=512, type_="F16", **keys):
    made = model(name, architecture, n_layers, heads, embd=embd, ff=ff, **keys)
    attention(made, (0, n_layers), embd, embd * heads[1] // heads[0] if heads[1] else embd, type_)
    dense(made, (0, n_layers), embd, ff, type_)
    return made


def mixture(name, n_layers, n, heads=(8, 2), architecture="llama", shared=False, **keys):
    made = model(name, architecture, n_layers, heads, experts=n, **keys)
    attention(made, (0, n_layers))
    experts(made, (0, n_layers), n, shared=shared)
    return made


def models():
    yield llama("grouped", 32)
    yield llama("plain-tied", 33, heads=(4, 4), tied=True)
    yield llama("two-queries", 40, heads=(4, 2))
    yield llama("odd-96", 12, embd=96, ff=288, heads=(4, 1))
    yield llama("odd-100-tied", 9, embd=100, ff=260, heads=(5, 1), tied=True)
    yield llama("odd-64-and-128", 9, embd=128, ff=192, heads=(4, 1))
    yield llama("70b", 80, heads=(8, 1))
    yield llama("65b", 80, heads=(8, 8))
    yield llama("qwen2-72b", 80, architecture="qwen2", heads=(8, 8))
    yield llama("qwen2-tied", 24, architecture="qwen2", heads=(7, 1), embd=896, tied=True)
    yield llama("deci-80", 80, architecture="deci", attention__head_count=[8] * 80, attention__head_count_kv=[0] + [8] * 79)
    yield llama("olmo-80", 80, architecture="olmo", heads=(8, 8))
    yield llama("jais2-68", 68, architecture="jais2", heads=(8, 8))
    yield llama("no-kv-heads", 10, attention__head_count_kv=None)
    yield llama("looped", 6, architecture="nanbeige", num_loops=2)
    yield mixture("eight-experts", 32, 8)
    yield mixture("eight-experts-80", 80, 8, heads=(8, 1))
    yield mixture("four-experts", 16, 4, heads=(4, 2))
    yield mixture("sixteen-experts-shared", 17, 16, heads=(4, 2), architecture="qwen2moe", shared=True)

    # Experts one by one, as in early files, in an order of their own.
    made = model("eight-experts-apart", "llama", 8, experts=8)
    attention(made, (0, 8))
    for layer in (5, 0, 7, 2, 1, 6, 3, 4):
        for expert in range(8):
            for name in ("ffn_up", "ffn_down", "ffn_gate"):
                made.add(f"blk.{layer}.{name}.{(expert * 3 + layer) % 8}.weight", [256, 256])
    yield made

    for n_layers in (32, 60):
        made = model(f"falcon-{n_layers}", "falcon", n_layers, heads=(8, 1))
        for name, ne in [("attn_qkv", [256, 320]), ("attn_output", [256, 256]), ("ffn_up", [256, 512]),
                         ("ffn_down", [512, 256])]:
            made.add(f"blk.{{}}.{name}.weight", ne, "F16", (0, n_layers))
            made.add(f"blk.{{}}.{name}.bias", [ne[1]], "F32", (0, n_layers))
        yield made

    made = model("gpt2-tied", "gpt2", 12, heads=(4, 4), tied=True)
    made.add("position_embd.weight", [256, 64])
    for name, ne in [("attn_qkv", [256, 768]), ("attn_output", [256, 256]), ("ffn_up", [256, 1024]),
                     ("ffn_down", [1024, 256])]:
        made.add(f"blk.{{}}.{name}.weight", ne, "F32", (0, 12))
    yield made

    made = llama("bert-tied", 12, architecture="bert", heads=(4, 4), tied=True, attention__causal=False, pooling_type=1)
    made.add("token_types.weight", [256, 2], "F32")
    made.add("position_embd.weight", [256, 64])
    yield made

    n, lead = 27, 1
    made = model("latent-attention", "deepseek2", n, heads=(4, 4), experts=64, leading_dense_block_count=lead,
                 attention__q_lora_rank=256, attention__kv_lora_rank=256, expert_feed_forward_length=256,
                 expert_shared_count=2)
    for name, ne in [("attn_q_a", [256, 256]), ("attn_q_b", [256, 512]), ("attn_kv_a_mqa", [256, 320]),
                     ("attn_kv_b", [256, 512]), ("attn_output", [512, 256])]:
        made.add(f"blk.{{}}.{name}.weight", ne, "F16", (0, n))
    made.add("blk.{}.attn_kv_a_norm.weight", [256], "F32", (0, n))
    dense(made, (0, lead))
    experts(made, (lead, n), 64, shared=True)
    yield made

    made = model("latent-attention-split", "deepseek2", 9, heads=(4, 1), experts=4, leading_dense_block_count=1,
                 attention__q_lora_rank=256, attention__kv_lora_rank=256, expert_feed_forward_length=256,
                 expert_shared_count=1)
    for name, ne in [("attn_q_a", [256, 256]), ("attn_q_b", [256, 512]), ("attn_kv_a_mqa", [256, 320]),
                     ("attn_k_b", [128, 256, 4]), ("attn_v_b", [256, 128, 4]), ("attn_output", [512, 256])]:
        made.add(f"blk.{{}}.{name}.weight", ne, "F16", (0, 9))
    dense(made, (0, 1))
    experts(made, (1, 9), 4, shared=True)
    yield made

    n = 10
    made = model("glm5-next", "glm5-next", n, heads=(4, 4), experts=16, nextn_predict_layers=1,
                 leading_dense_block_count=1, attention__key_length_mla=64, attention__value_length_mla=64,
                 attention__q_lora_rank=256, attention__kv_lora_rank=256, ssm__conv_kernel=4, kda__head_dim=64,
                 expert_feed_forward_length=256, expert_shared_count=1, attention__indexer__head_count=4,
                 attention__indexer__key_length=64, attention__indexer__top_k=64, attention__indexer__kpool=2,
                 hyper_connection__count=4, hyper_connection__sinkhorn_iterations=4, hyper_connection__epsilon=1e-6)
    for name, ne in [("attn_q_a", [256, 256]), ("attn_q_b", [256, 512]), ("attn_kv_a_mqa", [256, 320]),
                     ("attn_k_b", [128, 256, 4]), ("attn_v_b", [256, 128, 4]), ("attn_output", [512, 256]),
                     ("indexer.attn_q_b", [256, 256]), ("indexer.attn_k", [256, 64]), ("indexer.proj", [256, 4]),
                     ("hc_attn_fn", [1024, 24]), ("ssm_f_a", [256, 64]), ("ssm_g_b", [64, 256]), ("ssm_beta", [256, 4]),
                     ("attn_v", [256, 256])]:
        made.add(f"blk.{{}}.{name}.weight", ne, "F16", (0, n))
    made.add(f"blk.{n - 1}.nextn.eh_proj.weight", [512, 256])
    dense(made, (0, 1))
    experts(made, (1, n), 16, shared=True)
    yield made

    n = 20
    made = mixture("predicts-ahead", n, 16, architecture="glm4moe", heads=(4, 1), shared=True, nextn_predict_layers=1,
                   expert_feed_forward_length=256, expert_shared_count=1)
    made.add(f"blk.{n - 1}.nextn.eh_proj.weight", [512, 256])
    made.add(f"blk.{n - 1}.nextn.embed_tokens.weight", [256, 8])
    yield made

    made = llama("per-layer-embeddings", 30, architecture="gemma3n", tied=True, attention__sliding_window=32,
                 rope__freq_base=1e6)
    made.add("per_layer_token_embd.weight", [512, 8])
    made.add("per_layer_model_proj.weight", [256, 512])
    made.add("altup_proj.weight", [256, 256, 3])
    for name in ("laurel_l", "laurel_r", "inp_gate", "proj"):
        made.add(f"blk.{{}}.{name}.weight", [256, 256], "F16", (0, 30))
    yield made

    made = model("recurrent", "rwkv7", 12, heads=(0, 0), wkv__head_size=64, attention__decay_lora_rank=64,
                 attention__iclr_lora_rank=64, attention__value_residual_mix_lora_rank=32, attention__gate_lora_rank=128)
    for name in ("w0", "w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2", "key", "value", "receptance", "output"):
        made.add(f"blk.{{}}.time_mix_{name}.weight", [256, 256], "F16", (0, 12))
    made.add("blk.{}.channel_mix_value.weight", [1024, 256], "F16", (0, 12))
    yield made

    made = model("hybrid", "jamba", 16, experts=16, attention__head_count_kv=[2 if i % 8 == 4 else 0 for i in range(16)],
                 ssm__conv_kernel=4, ssm__inner_size=512, ssm__state_size=16, ssm__time_step_rank=16)
    for layer in range(16):
        if layer % 8 == 4:
            attention(made, (layer, layer + 1))
        else:
            for name, ne in [("ssm_in", [256, 1024]), ("ssm_conv1d", [4, 512]), ("ssm_x", [512, 48]),
                             ("ssm_out", [512, 256])]:
                made.add(f"blk.{layer}.{name}.weight", ne)
        (experts(made, (layer, layer + 1), 16) if layer % 2 else dense(made, (layer, layer + 1)))
    yield made

    made = model("encoder-decoder", "t5", 8, heads=(4, 4), attention__relative_buckets_count=32, decoder_block_count=8)
    for side in ("enc", "dec"):
        for name, ne in [("attn_q", [256, 256]), ("attn_k", [256, 256]), ("attn_v", [256, 256]), ("attn_o", [256, 256]),
                         ("attn_rel_b", [4, 32]), ("ffn_up", [256, 512]), ("ffn_down", [512, 256])]:
            made.add(f"{side}.blk.{{}}.{name}.weight", ne, "F16", (0, 8))
    yield made

    # A file of several types, one of them of integers.
    made = llama("many-types", 4, type_="Q8_0")
    made.add("blk.{}.ffn_gate_tid2eid.weight", [8, 16], "I32", (0, 4))
    made.add("blk.{}.indexer.k_proj.weight", [256, 64], "BF16", (0, 4))
    made.add("blk.{}.attn_sinks.weight", [8], "F32", (0, 4))
    made.add("rope_freqs.weight", [32], "F32")
    made.add("cls.weight", [256, 2], "Q4_K")
    made.add("cls.output", [256, 2], "F16")
    yield made

    made = model("bailingmoe3", "bailingmoe3", 6, heads=(4, 4), experts=16, leading_dense_block_count=1,
                 attention__key_length_mla=64, attention__value_length_mla=64, attention__kv_lora_rank=256,
                 ssm__conv_kernel=4, kda__head_dim=64, kda__safe_gate=True, kda__gate_lower_bound=-5.0,
                 expert_feed_forward_length=256, expert_shared_count=1, expert_gating_func=2)
    for name, ne in [("attn_k_b", [128, 256, 4]), ("attn_v_b", [256, 128, 4]), ("attn_output", [512, 256])]:
        made.add(f"blk.{{}}.{name}.weight", ne, "F16", (0, 6))
    experts(made, (0, 6), 16, shared=True)
    yield made

    # A multimodal projector: llama.cpp knows nothing of its layers.
    made = Model("projector", "clip", {"vision.block_count": 6, "vision.attention.head_count": 4})
    for name, ne in [("attn_q", [256, 256]), ("attn_k", [256, 256]), ("attn_out", [256, 256]), ("ffn_up", [256, 512]),
                     ("ffn_down", [512, 256])]:
        made.add(f"v.blk.{{}}.{name}.weight", ne, "F16", (0, 6))
    made.add("v.position_embd.weight", [256, 64])
    made.add("v.patch_embd.weight", [16, 16, 3, 256])
    made.add("mm.0.weight", [256, 256])
    yield made


class LlamaQuantize:
    """The program at one path."""

    def __init__(self, path: Path):
        self.path = path.resolve()
        self.env = {**os.environ, "LD_LIBRARY_PATH": str(self.path.parent)}

    def run(self, *args):
        done = subprocess.run([self.path, *map(str, args)], capture_output=True, text=True, errors="replace",
                              env=self.env)
        return done.returncode, done.stdout + done.stderr

    def types(self, path: Path, args: list[str], n_tensors: int) -> dict[str, str] | str:
        """The type of each tensor by --dry-run, or why there is none."""
        # Its log sometimes loses its last lines.
        for _ in range(5):
            code, said = self.run("--dry-run", *args[:-1], path, args[-1])
            if code != 0:
                reason = re.search(r"failed to quantize: (.*)", said)
                if reason is None:
                    continue
                return "error: " + reason[1]
            found = {}
            for line in said.splitlines():
                match = re.match(r"\[ *\d+/ *\d+\] (\S+) +- \[.*\], type = +(\S+), size = .*?(?:-> .*\((\S+)\))?$", line)
                if match:
                    found[match[1]] = (match[3] or match[2]).upper()
            if len(found) == n_tensors:
                return found
        raise SystemExit(f"llama-quantize {' '.join(args)} on {path}: exit {code}\n{said[-3000:]}")


def write_zeros(made: Model, path: Path):
    """A file with this header, and zeros that take no room on the disk."""
    writer = gguf.GGUFWriter(path, made.architecture)
    for key, value in made.keys.items():
        key = f"{made.architecture}.{key}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_key_value(key, value, GGUFValueType.ARRAY, GGUFValueType.INT32)
        else:
            writer.add_uint32(key, value)
    end = 0
    for name, ne, type_ in made.all_tensors():
        block, size = gguf.GGML_QUANT_SIZES[type_]
        n_bytes = int(np.prod(ne)) // block * size
        row = ne[0] // block * size
        # The writer takes the shape of the bytes where the type is a quantised one.
        shape = [*reversed(ne[1:]), row if block > 1 else ne[0]]
        writer.add_tensor_info(name, shape, np.uint8 if block > 1 else np.float32, n_bytes, raw_dtype=type_)
        end += -(-n_bytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    size = -(-path.stat().st_size // 32) * 32
    os.truncate(path, size + end)


def write_importance(path: Path):
    """An importance matrix of one tensor that no model has: enough for the rules to know that there is one."""
    name = b"none"
    path.write_bytes(struct.pack("<ii4siif", 1, len(name), name, 1, 1, 1.0) + struct.pack("<ii", 1, 0))


def cases(made: Model):
    """Arguments of llama-quantize, the file type last."""
    is_brief = made.name in BRIEF_MODELS
    for file_type in BRIEF if is_brief else FILE_TYPES:
        yield [file_type]
        yield ["--imatrix", file_type]
        if not is_brief:
            yield ["--pure", file_type]
    row_len = next((ne[0] for name, ne, _ in made.all_tensors() if name == "token_embd.weight"), 256)
    for options in [] if is_brief else OPTIONS:
        # What would end the program in the middle of its work.
        if row_len % 32 != 0 and ("embedding-type" in options or "output-tensor-type" in options):
            continue
        for file_type in WITH_OPTIONS:
            yield [*options.split(), file_type]


def layer_last(name: str):
    """Tensors of the same part behind each other: their types are often the same."""
    match = re.match(r"(\D*\bblk\.)(\d+)(\..*)", name)
    return (match[3], match[1], int(match[2])) if match else ("", name, 0)


def runs(types: dict[str, str]) -> str:
    """Types in the order of `layer_last`: a letter, and how often it comes if more than once."""
    out = []
    for name in sorted(types, key=layer_last):
        if out and out[-1][0] == types[name]:
            out[-1][1] += 1
        else:
            out.append([types[name], 1])
    return "".join(LETTERS[ty] + (str(n) if n > 1 else "") for ty, n in out)


def record_types(args):
    peer = LlamaQuantize(args.llama_quantize)
    recorded = []
    with work_folder(args.temp_dir) as folder:
        importance = folder / "imatrix.dat"
        write_importance(importance)

        def ask(made: Model, path: Path, case: list[str]):
            real = [word for arg in case for word in ([arg, str(importance)] if arg == "--imatrix" else [arg])]
            types = peer.types(path, real, len(list(made.all_tensors())))
            return types if isinstance(types, str) else runs(types)

        for made in models():
            path = folder / f"{made.name}.gguf"
            write_zeros(made, path)
            by_types = {}
            with ThreadPoolExecutor(2) as pool:
                all_cases = list(cases(made))
                for case, types in zip(all_cases, pool.map(lambda case: ask(made, path, case), all_cases)):
                    by_types.setdefault(types, []).append(" ".join(case))
            recorded.append({**made.header(), "types": by_types})
            path.unlink()
            errors = sum(len(v) for k, v in by_types.items() if k.startswith("error"))
            print(f"{made.name}: {len(list(made.all_tensors()))} tensors, {len(all_cases)} cases, {errors} errors, "
                  f"{len(by_types)} different")
    OUT.mkdir(exist_ok=True)
    # A line for each tensor and each set of types, so that a change can be read.
    lines = [f' {{"letters": {json.dumps({v: k for k, v in LETTERS.items()})},\n  "models": [']
    for made in recorded:
        parts = [f'"{key}": {json.dumps(made[key])}' for key in ("name", "architecture", "keys")]
        parts.append('"tensors": [\n    ' + ",\n    ".join(map(json.dumps, made["tensors"])) + "]")
        types = (f"{json.dumps(key)}: {json.dumps(cases)}" for key, cases in made["types"].items())
        parts.append('"types": {\n    ' + ",\n    ".join(types) + "}")
        lines.append("  {" + ",\n   ".join(parts) + ("}," if made is not recorded[-1] else "}"))
    text = "\n".join([*lines, " ]}"])
    json.loads(text)
    (OUT / "types.json").write_text(text + "\n")
    print(f"{OUT / 'types.json'}: {len(text)} bytes")


def synthetic_models(folder: Path):
    """About 20 million weights each: grouped queries, experts, tied, odd widths."""
    wide = llama("synthetic-grouped", 6, embd=512, ff=1536, type_="F32")
    eight = mixture("synthetic-experts", 6, 8)
    for tensor in eight.tensors:
        tensor[1] = [{256: 512}.get(n, n) for n in tensor[1][:2]] + tensor[1][2:] if "_exps" in tensor[0] else tensor[1]
    tied = llama("synthetic-tied", 4, heads=(12, 12), embd=768, ff=2048, tied=True)
    odd = llama("synthetic-odd", 6, heads=(5, 5), embd=480, ff=1312, type_="BF16")
    odd.add("blk.{}.attn_extra.weight", [100, 64], "F16", (0, 6))
    for made in (wide, eight, tied, odd):
        path = folder / f"{made.name}.gguf"
        write_zeros(made, path)
        fill(path)
        yield path


def fill(path: Path):
    """Weights as they are in models: normal, with heavier tails in some rows and some rows of zeros."""
    random = np.random.default_rng(len(path.name))
    with open(path, "r+b") as file:
        for tensor in gguf.GGUFReader(path).tensors:
            ne = [int(n) for n in tensor.shape]
            rows = random.standard_normal((int(np.prod(ne[1:])), ne[0]), dtype=np.float32) * np.float32(0.02)
            rows[::17] *= random.standard_normal(ne[0], dtype=np.float32) ** 2
            rows[5::101] = 0
            data = {Type.F32: lambda: rows, Type.F16: lambda: rows.astype(np.float16),
                    Type.BF16: lambda: (rows.view(np.uint32) >> 16).astype(np.uint16)}[tensor.tensor_type]()
            file.seek(tensor.data_offset)
            file.write(data.tobytes())


def writable_types(chatvec: Chatvec) -> list[str]:
    """The file types that this chatvec knows, in its own words."""
    said = subprocess.run([chatvec.path, "quantize", "none", "--dry-run", "--type", "nonsense"], capture_output=True,
                          text=True).stderr
    known = re.search(r"known are keep, (.*)", said)
    if known is None:
        raise SystemExit(f"chatvec does not say which types it knows: {said}")
    return [name for name in FILE_TYPES if name in known[1].strip().split(", ")]


def metadata(path: Path) -> dict:
    skipped = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count")
    values = {f.name: f.contents() for f in gguf.GGUFReader(path).fields.values() if f.name not in skipped}
    # COPY of a file that does not say its type: both guess, and only llama-quantize adds that it did.
    values["general.file_type"] &= ~int(gguf.LlamaFileType.GUESSED)
    return values


def compare_bytes(args) -> int:
    peer, chatvec = LlamaQuantize(args.llama_quantize), Chatvec(args.chatvec)
    types = args.types or [*writable_types(chatvec), "COPY"]
    passed, failed, without = 0, 0, []
    with work_folder(args.temp_dir) as folder:
        given = [path for models in [ROOT / "fixtures/models", *args.models] for path in sorted(models.glob("*.gguf"))]
        for source in [*given, *synthetic_models(folder)]:
            for file_type, pure in [(t, p) for t in types for p in ((), ("--pure",)) if not (p and t == "COPY")]:
                options = [*pure, *(["--imatrix", args.imatrix] if args.imatrix else [])]
                what = f"{source.stem} {' '.join(map(str, pure))} {file_type}"
                ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
                before = os.times()
                code, said = peer.run(*options, source, theirs, file_type)
                between = os.times()
                try:
                    chatvec.run("quantize", source, "-o", ours, "--type", file_type, "--overwrite", *options)
                except ToolError as e:
                    if code != 0 or "cannot be encoded yet" in str(e):
                        without.append(f"{what}: {str(e).splitlines()[-1]} (llama-quantize: exit {code})")
                        continue
                    print(f"FAILED {what}: {e}")
                    failed += 1
                    continue
                after = os.times()
                seconds = [t[2] + t[3] - s[2] - s[3] for s, t in ((before, between), (between, after))]
                fault = difference(ours, theirs) if code == 0 else f"llama-quantize refuses: {said[-300:]}"
                passed, failed = passed + (fault is None), failed + (fault is not None)
                print(f"{'FAILED' if fault else 'ok    '} {what}: CPU seconds {seconds[0]:.2f} llama-quantize, "
                      f"{seconds[1]:.2f} chatvec{': ' + fault if fault else ''}", flush=True)
            if source.parent == folder:
                source.unlink()
    for line in without:
        print("not compared:", line)
    print(f"{passed} passed, {failed} failed, {len(without)} not compared")
    return int(failed > 0)


def difference(ours: Path, theirs: Path) -> str | None:
    """The first thing in which two files differ, the order of keys and tensors aside."""
    found, expected = metadata(ours), metadata(theirs)
    for key in {**found, **expected}:
        if found.get(key) != expected.get(key):
            return f"key {key}: {found.get(key)} and not {expected.get(key)}"
    found, expected = read_tensors(ours), read_tensors(theirs)
    if found.keys() != expected.keys():
        return f"other tensors: {found.keys() ^ expected.keys()}"
    for name, tensor in expected.items():
        if found[name].type != tensor.type or found[name].shape != tensor.shape:
            return f"{name} is {found[name].type.name} and not {tensor.type.name}"
        differing = int((found[name].data != tensor.data).sum())
        if differing:
            return f"{name} ({tensor.type.name}): {differing} of {len(tensor.data)} bytes"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["types", "bytes"])
    parser.add_argument("--llama-quantize", type=Path, required=True)
    parser.add_argument("--chatvec", type=Path, default=ROOT / "target/release/chatvec", help="the command under test")
    parser.add_argument("--models", type=Path, action="append", default=[], help="bytes: a folder with further models")
    parser.add_argument("--types", nargs="*", help="bytes: file types (default: all that chatvec can write)")
    parser.add_argument("--imatrix", type=Path, help="bytes: an importance matrix for both")
    parser.add_argument("--temp-dir", type=Path, help="where to write (default: the system's folder)")
    args = parser.parse_args()
    if args.what == "types":
        record_types(args)
    else:
        sys.exit(compare_bytes(args))


if __name__ == "__main__":
    main()
