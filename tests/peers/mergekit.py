"""Holds the methods of `chatvec merge --recipe FILE.yml` against the real mergekit, weight for weight in float32.

    python -m venv venv-mk
    venv-mk/bin/pip install mergekit==0.1.5 gguf
    venv-mk/bin/python tests/peers/mergekit.py [--models-dir FOLDER] [--chatvec PATH] [--goldens]

FOLDER holds a trio of F16 files (default fixtures/models). Each file is copied to safetensors under the names that mergekit
knows; every recipe is then run twice, by mergekit on the copies and by chatvec on the GGUF files, with nothing but the paths
in it changed. The outputs are float32 and compared by bits, -0 as +0. Ends with 1 when a comparison that must be equal is
not.

DARE is compared in both directions: chatvec with the masks that mergekit drew (`--masks`), and mergekit with the masks that
chatvec draws, made here from their definition (word i of a ChaCha8 stream) by numpy.

`linear` is compared on a processor with fused multiply-add, which torch's addcmul uses where it can (ATEN_CPU_CAPABILITY=default
shows the difference, one rounding a model).

Two more things that mergekit does depend on the machine, and each is compared as it is and settled:

- which of equally large weights TIES keeps: torch.argsort does not promise to be stable. Settled: `stable=True`.
- the sums of magnitudes that DARE scales by: float32, in an order that depends on threads and vector instructions. Settled:
  the same sums in float64, rounded once.

--goldens writes fixtures/recipe/expected.json: SHA-256 of every tensor of every settled result, and the recipes.
"""

import hashlib
import json
import logging
import shutil
import sys
from pathlib import Path

# This file has the name of the package it imports.
sys.path.append(sys.path.pop(0))

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from gguf_files import read_tensors
from tool import ROOT, Chatvec, arguments, find_trio, work_folder

import mergekit.merge_methods.generalized_task_arithmetic as gta
import mergekit.sparsify as sparsify
import safetensors.torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
IN_LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}

#: Name, whether masks are drawn, and the recipe with {base}, {chat} and {cp} for paths.
RECIPES = [
    ("sum", False, """
merge_method: task_arithmetic
base_model: {base}
models:
  - {{model: {cp}, parameters: {{weight: 1.0}}}}
  - {{model: {chat}, parameters: {{weight: 0.37}}}}
"""),
    ("sum-normalized", False, """
merge_method: task_arithmetic
base_model: {base}
models:
  - model: {base}
  - {{model: {cp}, parameters: {{weight: 0.9}}}}
  - {{model: {chat}, parameters: {{weight: 0.7}}}}
parameters: {{normalize: true, lambda: 1.3}}
"""),
    ("gradients", False, """
merge_method: task_arithmetic
base_model: {base}
models:
  - model: {cp}
    parameters:
      weight:
        - filter: self_attn
          value: [0.1, 0.9, 0.4]
        - filter: lm_head
          value: 0
        - filter: mlp.up_proj
          value: [1, 0]
        - value: 0.8
  - model: {chat}
    parameters:
      weight:
        - filter: layernorm
          value: 0.5
parameters:
  weight: [0.3, 0.6]
"""),
    ("slice", False, """
merge_method: ties
slices:
  - sources:
      - {{model: {base}, layer_range: [0, {layers}]}}
      - {{model: {cp}, layer_range: [0, {layers}], parameters: {{weight: 0.6, density: [0.2, 0.9]}}}}
      - {{model: {chat}, layer_range: [0, {layers}], parameters: {{weight: 0.4}}}}
    parameters: {{density: 0.5, weight: 9}}
base_model: {base}
parameters: {{density: 0.1, normalize: false}}
"""),
    ("linear", False, """
merge_method: linear
models:
  - {{model: {cp}, parameters: {{weight: 0.5}}}}
  - {{model: {chat}, parameters: {{weight: 0.3}}}}
  - {{model: {base}, parameters: {{weight: 0.4}}}}
"""),
    ("linear-sum", False, """
merge_method: linear
models:
  - {{model: {cp}, parameters: {{weight: [0.5, 1]}}}}
  - {{model: {chat}, parameters: {{weight: 0.3}}}}
parameters: {{normalize: false}}
"""),
    ("ties", False, """
merge_method: ties
base_model: {base}
models:
  - {{model: {cp}, parameters: {{weight: 0.6, density: 0.5}}}}
  - {{model: {chat}, parameters: {{weight: 0.8, density: 0.23}}}}
"""),
    ("ties-rescaled", False, """
merge_method: ties
base_model: {base}
models:
  - {{model: {cp}, parameters: {{weight: 0.6, density: 0.05}}}}
  - {{model: {chat}, parameters: {{weight: -0.8, density: [0.9, 0.3, 1.0]}}}}
parameters: {{normalize: false, rescale: true, int8_mask: true, lambda: 0.9}}
"""),
    ("dare-linear", True, """
merge_method: dare_linear
base_model: {base}
models:
  - {{model: {cp}, parameters: {{weight: 0.6, density: 0.5}}}}
  - {{model: {chat}, parameters: {{weight: 0.8, density: 0.1}}}}
"""),
    ("dare-linear-unscaled", True, """
merge_method: dare_linear
base_model: {base}
models:
  - {{model: {cp}, parameters: {{weight: 0.6, density: 0.5}}}}
  - {{model: {chat}, parameters: {{weight: 0.8, density: 1}}}}
parameters: {{rescale: false, normalize: true}}
"""),
    ("dare-ties", True, """
merge_method: dare_ties
base_model: {base}
models:
  - {{model: {cp}, parameters: {{weight: 0.6, density: 0.5}}}}
  - {{model: {chat}, parameters: {{weight: 0.8, density: [0.1, 0.9]}}}}
parameters: {{normalize: true, lambda: 0.5}}
"""),
]


def mergekit_name(name: str) -> str:
    """A tensor's name in safetensors."""
    stem, kind = name.rsplit(".", 1)
    if stem in WHOLE:
        return f"{WHOLE[stem]}.{kind}"
    _, layer, part = stem.split(".", 2)
    return f"model.layers.{layer}.{IN_LAYER[part]}.{kind}"


def floats(path: Path) -> dict[str, np.ndarray]:
    """Tensors of F32 and F16 as float32."""
    width = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
    return {n: t.data.view(width[t.type]).astype(np.float32).reshape(t.shape) for n, t in read_tensors(path).items()}


def copy_to_safetensors(path: Path, folder: Path) -> Path:
    """A folder that mergekit takes for a llama."""
    folder.mkdir()
    fields = GGUFReader(path).fields
    key = lambda name: fields[f"llama.{name}"].contents()
    tensors = {mergekit_name(n): torch.from_numpy(t.copy()) for n, t in floats(path).items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": key("embedding_length"),
        "intermediate_size": key("feed_forward_length"), "num_hidden_layers": key("block_count"),
        "num_attention_heads": key("attention.head_count"), "num_key_value_heads": key("attention.head_count_kv"),
        "vocab_size": tensors["model.embed_tokens.weight"].shape[0], "rms_norm_eps": 1e-5,
        "tie_word_embeddings": "lm_head.weight" not in tensors, "torch_dtype": "float32",
    }))
    return folder


def chacha8(key: bytes, n: int) -> np.ndarray:
    """The first n words of the ChaCha8 stream of a key: 64 bits of counter, a stream number of 0."""
    n_blocks = -(-n // 16)
    state = np.zeros((16, n_blocks), np.uint32)
    state[:4] = np.frombuffer(b"expand 32-byte k", "<u4")[:, None]
    state[4:12] = np.frombuffer(key, "<u4")[:, None]
    counter = np.arange(n_blocks, dtype=np.uint64)
    state[12], state[13] = (counter & 0xFFFFFFFF).astype(np.uint32), (counter >> 32).astype(np.uint32)
    x = state.copy()

    def turn(a, b, c, d):
        for a, b, d, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[a] += x[b]
            x[d] ^= x[a]
            x[d] = (x[d] << np.uint32(bits)) | (x[d] >> np.uint32(32 - bits))

    for _ in range(4):
        for i in range(4):
            turn(i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            turn(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return (x + state).T.reshape(-1)[:n]


def drawn(seed: int, tensor: str, vector: int, density: float, n: int) -> np.ndarray:
    """chatvec's mask, by its definition in src/vector/combine.rs."""
    name = 0xCBF29CE484222325
    for byte in tensor.encode():
        name = (name ^ byte) * 0x100000001B3 % (1 << 64)
    key = b"".join(word.to_bytes(8, "little") for word in (seed, name, vector)) + b"chatvec1"
    return chacha8(key, n).astype(np.uint64) < np.uint64(int(density * (1 << 32)))


class Mergekit:
    """The real mergekit, with its masks recorded or given, and settled where it depends on the machine."""

    def __init__(self, settled: bool, draw: bool):
        #: (vector, GGUF name) to masks that were used.
        self.masks = {}
        self.settled, self.draw = settled, draw
        self.current, self.vector = None, 0
        self.kept = {}

    def __enter__(self):
        own = {mergekit_name(n): n for n in self.names}
        merge_group, gta_sparsify = gta.GeneralizedTaskArithmeticMerge.merge_group, gta.sparsify
        bernoulli, argsort, rescaled = torch.bernoulli, torch.argsort, sparsify.rescaled_masked_tensor
        self.kept = {"merge_group": merge_group, "sparsify": gta_sparsify, "bernoulli": bernoulli,
                     "argsort": argsort, "rescaled": rescaled}

        def group(method, group, /, **parameters):
            self.current, self.vector = own[group.metadata.name], -1
            return merge_group(method, group, **parameters)

        def one(delta, **options):
            self.vector += 1
            return gta_sparsify(delta, **options)

        def mask(probabilities):
            if self.draw:
                found = drawn(0, self.current, self.vector, self.density, probabilities.numel())
                found = torch.from_numpy(found.astype(np.float32)).reshape(probabilities.shape)
            else:
                found = bernoulli(probabilities)
            self.masks[self.vector, self.current] = found.numpy().astype(np.int8)
            return found

        def in_double(tensor, mask, norm, eps=1e-7):
            masked = tensor * mask
            if norm is None:
                return masked
            before, after = (t.abs().double().sum().float() for t in (tensor, masked))
            return masked if before < eps or after < eps else masked * (before / after)

        def bernoulli_of(tensor, density, rescale_norm=None):
            # The density itself, which torch.bernoulli is handed as a float32.
            self.density = density
            return own_bernoulli(tensor, density, rescale_norm)

        own_bernoulli = sparsify.bernoulli
        self.kept["own_bernoulli"] = own_bernoulli
        gta.GeneralizedTaskArithmeticMerge.merge_group = group
        gta.sparsify = one
        sparsify.bernoulli = bernoulli_of
        torch.bernoulli = mask
        if self.settled:
            torch.argsort = lambda x, **options: argsort(x, **{**options, "stable": True})
            sparsify.rescaled_masked_tensor = in_double
        return self

    def __exit__(self, *_):
        gta.GeneralizedTaskArithmeticMerge.merge_group = self.kept["merge_group"]
        gta.sparsify = self.kept["sparsify"]
        torch.bernoulli, torch.argsort = self.kept["bernoulli"], self.kept["argsort"]
        sparsify.rescaled_masked_tensor = self.kept["rescaled"]
        sparsify.bernoulli = self.kept["own_bernoulli"]

    def merge(self, recipe: str, names: list[str], folder: Path) -> dict[str, np.ndarray]:
        """Tensors by their GGUF names."""
        self.names = names
        shutil.rmtree(folder, ignore_errors=True)
        with self:
            config = MergeConfiguration.model_validate(yaml.safe_load(recipe + "dtype: float32\n"))
            options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, random_seed=1)
            run_merge(config, str(folder), options)
        found = {}
        for path in folder.glob("*.safetensors"):
            found |= safetensors.torch.load_file(path)
        return {n: found[mergekit_name(n)].numpy() for n in names}


def write_masks(masks: dict, path: Path):
    """Masks as chatvec reads them."""
    writer = GGUFWriter(path, "masks")
    for (vector, name), mask in masks.items():
        writer.add_tensor(f"{vector}:{name}", mask)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def digest(tensor: np.ndarray) -> str:
    """SHA-256 of float32 bytes, -0 as +0."""
    return hashlib.sha256((tensor + np.float32(0)).astype("<f4").tobytes()).hexdigest()


class Report:
    """A line a comparison."""

    def __init__(self):
        self.failed = 0
        print(f"{'recipe':<22} {'comparison':<34} {'weights':>8} {'differ':>8} {'largest':>9}  verdict")

    def compare(self, recipe: str, what: str, found: dict, expected: dict, must: bool):
        n = sum(t.size for t in expected.values())
        differ = sum(int((found[k] != t).sum()) for k, t in expected.items())
        largest = max(float(np.abs(found[k].astype(np.float64) - t).max()) for k, t in expected.items())
        verdict = "equal" if differ == 0 else "FAIL" if must else "explained"
        self.failed += verdict == "FAIL"
        print(f"{recipe:<22} {what:<34} {n:>8} {differ:>8} {largest:>9.2e}  {verdict}")


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--models-dir", type=Path, default=ROOT / "fixtures/models", help="folder of the trio")
    parser.add_argument("--goldens", action="store_true", help="write fixtures/recipe/expected.json")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    trio = find_trio(options.models_dir)
    if trio is None:
        raise SystemExit(f"no F16 trio in {options.models_dir}")
    chatvec, report, goldens = Chatvec(options.chatvec), Report(), {}
    with work_folder(options.temp_dir) as folder:
        paths = {"base": trio.base.resolve(), "chat": trio.chat.resolve(), "cp": trio.cp.resolve()}
        copies = {role: copy_to_safetensors(path, folder / role) for role, path in paths.items()}
        names = list(read_tensors(trio.base))
        layers = GGUFReader(trio.base).fields["llama.block_count"].contents()
        for name, draws, text in RECIPES:
            recipe = folder / "recipe.yml"
            recipe.write_text(text.format(**paths, layers=layers) + "dtype: float32\n")
            by_mergekit = text.format(**copies, layers=layers)

            def ours(*args) -> dict[str, np.ndarray]:
                out = folder / "ours.gguf"
                chatvec.run("merge", "--recipe", recipe, "-o", out, "--overwrite", "--force", *args)
                return floats(out)

            def theirs(settled: bool, draw: bool):
                peer = Mergekit(settled, draw)
                return peer.merge(by_mergekit, names, folder / "theirs"), peer.masks

            if draws:
                expected, masks = theirs(False, False)
                write_masks(masks, folder / "masks.gguf")
                found = ours("--masks", folder / "masks.gguf")
                report.compare(name, "mergekit's masks, as it is", found, expected, False)
                expected, masks = theirs(True, False)
                write_masks(masks, folder / "masks.gguf")
                found = ours("--masks", folder / "masks.gguf")
                report.compare(name, "mergekit's masks, settled", found, expected, True)
                expected, _ = theirs(True, True)
                report.compare(name, "chatvec's masks, settled", ours(), expected, True)
            else:
                found = ours()
                expected, _ = theirs(False, False)
                is_open = "ties" in name or "slice" in name
                report.compare(name, "as it is", found, expected, not is_open)
                if is_open:
                    expected, _ = theirs(True, False)
                    report.compare(name, "settled", found, expected, True)
            goldens[name] = {"recipe": text.format(base="base.gguf", chat="chat.gguf", cp="cp.gguf", layers=layers),
                             "sha256": {n: digest(t) for n, t in expected.items()}}
    if options.goldens:
        target = ROOT / "fixtures/recipe/expected.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(goldens, indent=1) + "\n")
    print("all as it must be" if report.failed == 0 else f"{report.failed} failed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
