"""Holds merges of models of many architectures against numpy, and has llama.cpp load and run them.

    python architectures.py [--chatvec PATH] [--only NAME ...]

For each of ARCHITECTURES a trio of two layers with random weights is written, with the tensors, shapes and keys that
llama.cpp's loader asks for (src/models/*.cpp: load_arch_hparams, load_arch_tensors). chat is base plus 4 % noise, cp is
base plus 10 %. Each trio is merged by default options as F32, keep, Q8_0 and Q4_K_M. The tensors of every merge are
compared bit by bit with numpy's cp + (chat - base) in f32, which ggml's own code encodes where they are blocks. Rope
frequencies and factors, and the scales beside NVFP4 blocks, have to be cp's; norms, biases and routers have to stay F32.
Then llama.cpp loads each file in a process of its own, because it aborts on what it does not like, and generates tokens,
whose logits have to be finite.

Then files of other kinds are given by mistake for each of --base, --chat and --model: each has to be refused with exit
code 4, in words that name the file and what it is. Ends with 1 if anything differs.
"""

import re
import subprocess
import sys
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType

from ggml_codec import decode, encode
from gguf_files import F16, F32, Tensor, read_tensors
from llama_cpp import CHILD_TIMEOUT_S, last_words
from synthetic import CHAT_TEMPLATE, SPECIALS, vocabulary
from tool import ROOT, Chatvec, ToolError, Trio, arguments, work_folder

NVFP4 = GGMLQuantizationType.NVFP4
REFUSED = 4
LAYERS, VOCAB, WIDTH, FF, HEADS, KV_HEADS, HEAD = 2, 512, 256, 512, 4, 2, 64
EXPERTS, EXPERT_FF = 4, 256
#: Noise of each file relative to the weights.
NOISE = {"base": 0.0, "chat": 0.04, "cp": 0.10}
TYPES = ("F32", "keep", "Q8_0", "Q4_K_M")
ROPE = re.compile(r"rope_(freqs|factors_long|factors_short)\.weight")
PROMPT, NEW_TOKENS = "It is said that", 8


@dataclass
class Architecture:
    """What one of them asks for. Names have {} for the layer; shapes are numpy's, with the row length last."""

    name: str
    #: general.architecture
    arch: str
    #: Keys without the architecture's prefix, besides those that all have.
    keys: dict
    layer: dict[str, tuple[int, ...]]
    tied: bool = False
    once: dict[str, tuple[int, ...]] = field(default_factory=dict)
    #: The type of the matrices of layers, with scales beside them if it is NVFP4.
    type: GGMLQuantizationType = F16
    #: Tensors of one layer only.
    first: dict[str, tuple[int, ...]] = field(default_factory=dict)
    last: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """All of them, in file order."""
        found = {"token_embd.weight": (VOCAB, WIDTH)} | self.once
        for i in range(LAYERS):
            extra = (self.first if i == 0 else {}) | (self.last if i == LAYERS - 1 else {})
            found |= {f"blk.{i}.{name}": shape for name, shape in (self.layer | extra).items()}
        found["output_norm.weight"] = (WIDTH,)
        return found if self.tied else found | {"output.weight": (VOCAB, WIDTH)}

    def metadata(self) -> dict:
        """The architecture's keys."""
        common = {"block_count": LAYERS, "context_length": 512, "embedding_length": WIDTH, "feed_forward_length": FF,
                  "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS,
                  "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 10000.0}
        return {f"{self.arch}.{k}": v for k, v in (common | self.keys).items()}


def attention(head: int = HEAD, biases=False, norms=False) -> dict:
    q, kv = HEADS * head, KV_HEADS * head
    found = {"attn_norm.weight": (WIDTH,), "attn_q.weight": (q, WIDTH), "attn_k.weight": (kv, WIDTH),
             "attn_v.weight": (kv, WIDTH), "attn_output.weight": (WIDTH, q)}
    if biases:
        found |= {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
    if norms:
        found |= {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}
    return found


def feed_forward() -> dict:
    return {"ffn_norm.weight": (WIDTH,), "ffn_gate.weight": (FF, WIDTH), "ffn_up.weight": (FF, WIDTH),
            "ffn_down.weight": (WIDTH, FF)}


def experts(inner: int = EXPERT_FF) -> dict:
    return {"ffn_norm.weight": (WIDTH,), "ffn_gate_inp.weight": (EXPERTS, WIDTH),
            "ffn_gate_exps.weight": (EXPERTS, inner, WIDTH), "ffn_up_exps.weight": (EXPERTS, inner, WIDTH),
            "ffn_down_exps.weight": (EXPERTS, WIDTH, inner)}


def head_keys(head: int) -> dict:
    return {"attention.key_length": head, "attention.value_length": head, "rope.dimension_count": head}


#: Multi-head latent attention and experts behind one dense layer, as DeepSeek V3 has them.
KV_RANK, Q_RANK, ROPE_PART, PLAIN_PART = 256, 256, 32, 64
LATENT = {
    "attn_norm.weight": (WIDTH,), "attn_q_a.weight": (Q_RANK, WIDTH), "attn_q_a_norm.weight": (Q_RANK,),
    "attn_q_b.weight": (HEADS * (PLAIN_PART + ROPE_PART), Q_RANK), "attn_kv_a_mqa.weight": (KV_RANK + ROPE_PART, WIDTH),
    "attn_kv_a_norm.weight": (KV_RANK,), "attn_k_b.weight": (HEADS, KV_RANK, PLAIN_PART),
    "attn_v_b.weight": (HEADS, PLAIN_PART, KV_RANK), "attn_output.weight": (WIDTH, HEADS * PLAIN_PART)}
POST_NORMS = {"post_attention_norm.weight": (WIDTH,), "post_ffw_norm.weight": (WIDTH,)}
FOUR_EXPERTS = {"expert_count": EXPERTS, "expert_used_count": 2}
FREQS = {"rope_freqs.weight": (HEAD // 2,)}

ARCHITECTURES = [
    Architecture("llama", "llama", {"rope.dimension_count": HEAD}, attention() | feed_forward(), once=FREQS),
    Architecture("llama-nvfp4", "llama", {}, attention() | feed_forward(), type=NVFP4),
    Architecture("mixtral", "llama", FOUR_EXPERTS, attention() | experts(FF)),
    Architecture("mixtral-nvfp4", "llama", FOUR_EXPERTS, attention() | experts(FF), type=NVFP4),
    Architecture("qwen2", "qwen2", {}, attention(biases=True) | feed_forward()),
    Architecture("qwen2-tied", "qwen2", {}, attention(biases=True) | feed_forward(), tied=True),
    Architecture("qwen3", "qwen3", head_keys(128), attention(128, norms=True) | feed_forward()),
    Architecture("qwen3moe", "qwen3moe", head_keys(128) | FOUR_EXPERTS | {"expert_feed_forward_length": EXPERT_FF},
                 attention(128, norms=True) | experts()),
    # The language parts of models that see; the other part is a file of its own.
    Architecture("qwen2vl", "qwen2vl", {"rope.dimension_sections": [16, 8, 8, 0]},
                 attention(biases=True) | feed_forward()),
    Architecture("qwen3vl", "qwen3vl", {"rope.dimension_sections": [12, 10, 10, 0], "n_deepstack_layers": 0},
                 attention(norms=True) | feed_forward(), tied=True),
    Architecture("gemma2", "gemma2", head_keys(HEAD) | {
        "attention.sliding_window": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        attention() | feed_forward() | POST_NORMS, tied=True),
    Architecture("gemma3", "gemma3", head_keys(128) | {"attention.sliding_window": 256},
                 attention(128, norms=True) | feed_forward() | POST_NORMS, tied=True),
    Architecture("phi3", "phi3", {"rope.dimension_count": HEAD, "rope.scaling.original_context_length": 256,
                                  "rope.scaling.attn_factor": 1.1, "attention.sliding_window": 511}, {
        "attn_norm.weight": (WIDTH,), "attn_qkv.weight": ((HEADS + 2 * KV_HEADS) * HEAD, WIDTH),
        "attn_output.weight": (WIDTH, WIDTH), "ffn_norm.weight": (WIDTH,), "ffn_up.weight": (2 * FF, WIDTH),
        "ffn_down.weight": (WIDTH, FF)},
        once={"rope_factors_long.weight": (HEAD // 2,), "rope_factors_short.weight": (HEAD // 2,)}),
    Architecture("granite", "granite", {"rope.dimension_count": HEAD, "attention.scale": 0.02, "embedding_scale": 12.0,
                                        "residual_scale": 0.22, "logit_scale": 8.0},
                 attention() | feed_forward(), tied=True),
    Architecture("deepseek2", "deepseek2", FOUR_EXPERTS | {
        "attention.head_count_kv": 1, "attention.q_lora_rank": Q_RANK, "attention.kv_lora_rank": KV_RANK,
        "attention.key_length": KV_RANK + ROPE_PART, "attention.value_length": KV_RANK,
        "attention.key_length_mla": PLAIN_PART + ROPE_PART, "attention.value_length_mla": PLAIN_PART,
        "rope.dimension_count": ROPE_PART, "leading_dense_block_count": 1, "expert_feed_forward_length": EXPERT_FF,
        "expert_shared_count": 1, "expert_weights_scale": 2.5, "expert_weights_norm": True, "expert_gating_func": 2},
        LATENT, first=feed_forward(), last=experts() | {
            "exp_probs_b.bias": (EXPERTS,), "ffn_gate_shexp.weight": (EXPERT_FF, WIDTH),
            "ffn_up_shexp.weight": (EXPERT_FF, WIDTH), "ffn_down_shexp.weight": (WIDTH, EXPERT_FF)}),
]


def weights(made: Architecture, kind: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Of one tensor in one file, f32."""
    def noise(what: str) -> np.ndarray:
        return np.random.default_rng(zlib.crc32(f"{made.name} {what} {name}".encode())).standard_normal(shape, "f4")

    if ROPE.fullmatch(name):
        # Others in each file: what is summed is not cp's.
        return 1 + np.abs(noise(kind))
    own = 1 + np.float32(0.1) * noise("base") if "norm" in name else np.float32(0.06) * noise("base")
    spread = np.float32(NOISE[kind]) * np.sqrt(np.mean(own**2))
    return own + spread * noise(kind)


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether converters write it in fewer bits: no router, no norm, no bias."""
    return len(shape) > 1 and "ffn_gate_inp" not in name


def stored(made: Architecture, name: str, values: np.ndarray):
    """Name, bytes and type of what a file has for a tensor."""
    if not is_matrix(name, values.shape):
        yield name, values, F32
    elif made.type != NVFP4 or not name.startswith("blk."):
        yield name, values.astype(np.float16), F16
    else:
        # A scale for each matrix of a stack, so that the largest weight is the largest number that blocks can say.
        stack = values if values.ndim == 3 else values[None]
        scales = (np.abs(stack).max((1, 2)) / np.float32(6 * 448)).astype(np.float32)
        scaled = (stack / scales[:, None, None]).reshape(values.shape)
        yield name, encode(scaled, NVFP4).reshape(*values.shape[:-1], -1), NVFP4
        yield name.replace(".weight", ".scale"), scales, F32


def write_model(made: Architecture, kind: str, path: Path) -> Path:
    """One file of a trio."""
    writer = gguf.GGUFWriter(path, made.arch)
    # llama.cpp asks for further tokens where "phi3" is in the name.
    writer.add_name(f"synthetic {kind}")
    for key, value in made.metadata().items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}[type(value)](key, value)
    add_vocabulary(writer, kind)
    for name, shape in made.tensors().items():
        for part, data, ty in stored(made, name, weights(made, kind, name, shape)):
            writer.add_tensor(part, data, raw_dtype=ty)
    return finish(writer, path)


def add_vocabulary(writer: gguf.GGUFWriter, kind: str):
    tokens, merges = vocabulary(VOCAB, np.random.default_rng(0))
    control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if t in SPECIALS else normal for t in tokens])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokens.index(SPECIALS[2 if kind == "chat" else 0]))
    writer.add_add_bos_token(False)
    if kind == "chat":
        writer.add_chat_template(CHAT_TEMPLATE)


def finish(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_trio(made: Architecture, folder: Path) -> Trio:
    return Trio(*(write_model(made, kind, folder / f"{made.name}-{kind}.gguf") for kind in NOISE))


def scale_beside(tensors: dict[str, Tensor], name: str) -> np.ndarray:
    """What llama.cpp multiplies the product with a tensor by: a number, or one for each matrix of a stack."""
    scale = tensors.get(name.replace(".weight", ".scale"))
    if scale is None or not name.endswith(".weight"):
        return np.float32(1)
    values = decode(scale)
    return values[:, None, None] if len(tensors[name].shape) == 3 else values


def real(tensors: dict[str, Tensor], name: str) -> np.ndarray:
    """The weights that a model computes with."""
    return decode(tensors[name]) * scale_beside(tensors, name)


def faults(files: Trio, out: Path, type_: str):
    """A sentence for everything in a merge that is not as numpy has it."""
    base, chat, cp, found = (read_tensors(p) for p in (files.base, files.chat, files.cp, out))
    if list(found) != list(cp):
        yield f"has other tensors, or in another order: {', '.join(found.keys() ^ cp.keys())}"
        return
    for name, tensor in found.items():
        expected = decode(cp[name])
        # Rope frequencies and factors belong to cp's context length, scales to its blocks.
        if not ROPE.fullmatch(name) and not name.endswith(".scale"):
            expected = (real(cp, name) + (real(chat, name) - real(base, name))) / scale_beside(cp, name)
        if tensor.shape != expected.shape:
            yield f"{name} is {tensor.shape} and not {expected.shape}"
        elif type_ in ("F32", "keep") and tensor.type != (F32 if type_ == "F32" else cp[name].type):
            yield f"{name} is {tensor.type.name}"
        elif not is_matrix(name, expected.shape) and tensor.type != F32:
            yield f"{name} is {tensor.type.name} and not F32"
        elif plus_zero(tensor) != plus_zero(replace(tensor, data=encode(expected, tensor.type))):
            yield f"{name} is not the sum in {tensor.type.name}"
    yield from other_keys(files.cp, out)


def plus_zero(tensor: Tensor) -> bytes:
    """Its bytes; in floats -0 as +0, since a weight without delta is copied."""
    return (decode(tensor) + 0).tobytes() if tensor.type in (F32, F16) else tensor.data.tobytes()


def other_keys(cp: Path, out: Path):
    """Hyperparameters that are not cp's."""
    own, found = (gguf.GGUFReader(p).fields for p in (cp, out))
    arch = own["general.architecture"].contents()
    for key in {k for k in (*own, *found) if k.startswith(arch + ".")} | {"general.architecture"}:
        values = [f[key].contents() if key in f else None for f in (own, found)]
        if values[0] != values[1]:
            yield f"{key} is {values[1]} and not {values[0]}"


def generate(path: Path) -> str:
    """The child's work: text by llama.cpp, greedily."""
    from libllama import Llama

    with Llama(path, 256, threads=1) as llama:
        ids, said = llama.tokenize(PROMPT), []
        for _ in range(NEW_TOKENS):
            row = llama.feed(ids, last_only=True)[0]
            assert np.isfinite(row).all(), "logits that are not finite"
            assert row.std() > 0, "logits that are all alike"
            ids = [int(row.argmax())]
            said += ids
        return llama.detokenize(said, special=True)


def in_llama(path: Path):
    """Nothing, or why llama.cpp has no use for a file."""
    command = [sys.executable, __file__, "--child", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=CHILD_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        yield f"llama.cpp did not finish within {CHILD_TIMEOUT_S} s"
        return
    if done.returncode:
        yield f"llama.cpp failed, exit {done.returncode}: {last_words(done.stderr)}"


class Table:
    """Prints a row for each comparison and counts those that failed."""

    def __init__(self):
        self.passed = self.failed = 0

    def row(self, what: str, faults):
        wrong = list(faults)
        self.passed += not wrong
        self.failed += bool(wrong)
        text = "; ".join(wrong[:3]) + (f"; {len(wrong) - 3} more" if len(wrong) > 3 else "")
        print(f"{'FAIL' if wrong else 'ok'}  {what}{': ' + text if wrong else ''}", flush=True)


def merge_all(made: Architecture, chatvec: Chatvec, folder: Path, table: Table):
    """Every type of one architecture."""
    trio = write_trio(made, folder)
    table.row(f"{made.name} cp in llama.cpp", in_llama(trio.cp))
    for type_ in TYPES:
        out = folder / f"{made.name}-{type_}.gguf"
        pure = ["--pure"] if type_ == "F32" else []
        try:
            # Not by `merge`, which has --pure for Q8_0 too.
            chatvec.run("merge", "--base", trio.base, "--chat", trio.chat, "--model", trio.cp, "-o", out, "--type",
                        type_, *pure)
        except ToolError as e:
            table.row(f"{made.name} {type_}", [str(e)])
            continue
        table.row(f"{made.name} {type_}", faults(trio, out, type_))
        table.row(f"{made.name} {type_} in llama.cpp", in_llama(out))
        out.unlink()


def other_files(folder: Path, trio: Trio, chatvec: Chatvec):
    """Files that are no model of the trio: name, path, and words of which a refusal has to have one."""
    small = {"blk.0.attn_q.weight": (WIDTH, WIDTH)}

    def made(name: str, arch: str, keys: dict[str, str | bool | int | float], tensors: dict, words, tokens=False):
        path = folder / f"mistake-{name}.gguf"
        writer = gguf.GGUFWriter(path, arch)
        for key, value in keys.items():
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            add[type(value)](key, value)
        if tokens:
            add_vocabulary(writer, "base")
        for i, (tensor, shape) in enumerate(tensors.items()):
            writer.add_tensor(tensor, np.random.default_rng(i).standard_normal(shape, "f4"))
        return name, finish(writer, path), words

    llama = ARCHITECTURES[0]
    # convert_lora_to_gguf.py
    yield made("adapter", "llama", {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 16.0},
               {f"{n}.{side}": (8, WIDTH) if side == "lora_a" else (WIDTH, 8) for n in small
                for side in ("lora_a", "lora_b")}, ("LoRA",))
    # convert_hf_to_gguf.py --mmproj, and the files before there was a type (legacy-models/convert_image_encoder...).
    sight = {"clip.has_vision_encoder": True, "clip.projector_type": "mlp", "clip.vision.block_count": 1,
             "clip.vision.embedding_length": WIDTH}
    parts = {"v.blk.0.attn_q.weight": (WIDTH, WIDTH), "mm.0.weight": (WIDTH, WIDTH)}
    projector = ("mmproj", "projector")
    yield made("mmproj", "clip", {"general.type": "mmproj"} | sight, parts, projector)
    yield made("mmproj-without-type", "clip", sight, parts, projector)
    yield made("vocabulary", "llama", llama.metadata(), {}, ("no tensors", "vocabulary"), tokens=True)
    yield "imatrix", ROOT / "fixtures/imatrix/default.gguf", ("imatrix", "importance matrix")
    patch = folder / "mistake-patch.gguf"
    chatvec.run("extract", "--base", trio.base, "--chat", trio.chat, "-o", patch)
    yield "patch", patch, ("patch",)
    other = next(a for a in ARCHITECTURES if a.name == "qwen3")
    yield "other-architecture", write_model(other, "chat", folder / "mistake-qwen3.gguf"), ("qwen3",)


def refuse_all(chatvec: Chatvec, folder: Path, table: Table):
    """Every other file in every place."""
    trio = write_trio(ARCHITECTURES[0], folder)
    for name, path, words in other_files(folder, trio, chatvec):
        for option in ("--base", "--chat", "--model"):
            given = {"--base": trio.base, "--chat": trio.chat, "--model": trio.cp} | {option: path}
            out = folder / "refused.gguf"
            command = [chatvec.path, "merge", "-o", out, *(str(x) for pair in given.items() for x in pair)]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
            table.row(f"{name} as {option}", wrong_refusal(done, path, words, out))


def wrong_refusal(done: subprocess.CompletedProcess, path: Path, words: tuple[str, ...], out: Path):
    said = done.stderr.strip()
    if done.returncode != REFUSED:
        yield f"exit {done.returncode} and not {REFUSED}: {said}"
    elif path.name not in said:
        yield f"does not name the file: {said}"
    elif not any(word in said.replace(str(path), "") for word in words):
        yield f"does not say {' or '.join(words)}: {said}"
    if out.exists():
        yield "an output is written"
        out.unlink()


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        print(generate(Path(sys.argv[2])))
        return 0
    parser = arguments(__doc__)
    names = [a.name for a in ARCHITECTURES]
    parser.add_argument("--only", nargs="+", choices=[*names, "refusals"], help="some of them (default: all)")
    given = parser.parse_args()
    chatvec, table = Chatvec(given.chatvec), Table()
    only = given.only or [*names, "refusals"]
    with work_folder(given.temp_dir) as folder:
        for made in (a for a in ARCHITECTURES if a.name in only):
            merge_all(made, chatvec, folder, table)
        if "refusals" in only:
            refuse_all(chatvec, folder, table)
    print(f"{table.passed} passed, {table.failed} failed")
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())
