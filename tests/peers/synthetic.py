"""Writes a trio of F16 Llama files of any size with random weights, for measuring memory and speed.

    python synthetic.py OUTDIR [--gb 1.0] [--vocab 128000] [--layers N] [--seed 0]

Gives OUTDIR/base-F16.gguf, chat-F16.gguf and cp-F16.gguf of about that size each: grouped-query attention, untied
output, a byte-level BPE vocabulary with one merge a token. chat is base plus 3 % noise, cp is base plus 5 %. The text
they would generate is noise; the files are valid for any reader. Memory stays below 100 MB whatever the size.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
HEAD_DIM = 64
HEADS_PER_KV_HEAD = 4
CHUNK = 1 << 20
#: Random numbers are drawn once and read from random places: drawing each anew would take most of the time.
POOL = (1 << 22) + CHUNK
WEIGHT_SCALE = 0.02
#: Noise of each file relative to the weights.
NOISE = {"base": 0.0, "chat": 0.03, "cp": 0.05}


@dataclass
class Shape:
    """Sizes of the model, in weights."""

    vocab: int
    width: int
    layers: int

    @property
    def heads(self) -> int:
        return self.width // HEAD_DIM

    @property
    def kv_heads(self) -> int:
        return max(1, self.heads // HEADS_PER_KV_HEAD)

    @property
    def feed_forward(self) -> int:
        """3.5 times the width, in whole super-blocks of 256."""
        return -(-self.width * 7 // 2 // 256) * 256

    def tensors(self):
        """Name and shape of each tensor in file order; numpy's order of dimensions."""
        kv = self.kv_heads * HEAD_DIM
        yield "token_embd.weight", (self.vocab, self.width)
        yield "rope_freqs.weight", (HEAD_DIM // 2,)
        for i in range(self.layers):
            block = f"blk.{i}."
            yield block + "attn_norm.weight", (self.width,)
            yield block + "attn_q.weight", (self.width, self.width)
            yield block + "attn_k.weight", (kv, self.width)
            yield block + "attn_v.weight", (kv, self.width)
            yield block + "attn_output.weight", (self.width, self.width)
            yield block + "ffn_norm.weight", (self.width,)
            yield block + "ffn_gate.weight", (self.feed_forward, self.width)
            yield block + "ffn_up.weight", (self.feed_forward, self.width)
            yield block + "ffn_down.weight", (self.width, self.feed_forward)
        yield "output_norm.weight", (self.width,)
        yield "output.weight", (self.vocab, self.width)

    def n_bytes(self) -> int:
        """Of the tensors in F16."""
        return 2 * sum(int(np.prod(s)) for _, s in self.tensors())


def choose_shape(gb: float, vocab: int, layers: int | None) -> Shape:
    """The widest model of 8 layers or more whose embeddings take at most 60 % of the size; layers fill the rest."""
    size = int(gb * 1e9)
    widths = [w for w in (256, 512, 1024, 2048, 3072, 4096, 5120, 8192)
              if 4 * vocab * w <= 0.6 * size and Shape(vocab, w, 8).n_bytes() <= size]
    width = widths[-1] if widths else 256
    if layers is None:
        empty, one = Shape(vocab, width, 0).n_bytes(), Shape(vocab, width, 1).n_bytes()
        layers = max(1, round((size - empty) / (one - empty)))
    return Shape(vocab, width, layers)


def vocabulary(n: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """`n` tokens, special ones last, and the merges that build all but the first 256."""
    tokens = byte_symbols()
    known, merges = set(tokens), []
    letters = [t for t in tokens if t.isascii() and t.isalpha() or t == "Ġ"]
    stems = list(letters)
    while len(tokens) < n - len(SPECIALS):
        for i, j in rng.integers(0, 1 << 30, size=(4096, 2)):
            left, right = stems[i % len(stems)], letters[j % len(letters)]
            if (word := left + right) in known or len(tokens) == n - len(SPECIALS):
                continue
            known.add(word)
            tokens.append(word)
            merges.append(f"{left} {right}")
            if len(word) < 12:
                stems.append(word)
    return tokens + list(SPECIALS), merges


def byte_symbols() -> list[str]:
    """The 256 characters by which byte-level BPE writes bytes: printable ones are themselves, others from U+0100 up."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols, n = [], 0
    for b in range(256):
        symbols.append(chr(b) if b in plain else chr(256 + n))
        n += b not in plain
    return symbols


def open_file(path: Path, kind: str, shape: Shape, tokens: list[str], merges: list[str]) -> gguf.GGUFWriter:
    """Writes everything but the weights."""
    w = gguf.GGUFWriter(path, "llama")
    w.add_name(f"synthetic-{kind}")
    w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    w.add_block_count(shape.layers)
    w.add_context_length(2048)
    w.add_embedding_length(shape.width)
    w.add_feed_forward_length(shape.feed_forward)
    w.add_head_count(shape.heads)
    w.add_head_count_kv(shape.kv_heads)
    w.add_rope_dimension_count(HEAD_DIM)
    w.add_rope_freq_base(10000.0)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(shape.vocab)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    control = int(gguf.TokenType.CONTROL)
    w.add_token_types([control if t in SPECIALS else int(gguf.TokenType.NORMAL) for t in tokens])
    w.add_token_merges(merges)
    w.add_eos_token_id(tokens.index("<|im_end|>" if kind == "chat" else "<|endoftext|>"))
    w.add_add_bos_token(False)
    if kind == "chat":
        w.add_chat_template(CHAT_TEMPLATE)
    for name, dims in shape.tensors():
        dtype = np.dtype(np.float32 if len(dims) == 1 else np.float16)
        w.add_tensor_info(name, dims, dtype, int(np.prod(dims)) * dtype.itemsize)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    return w


def write_weights(writers: dict[str, gguf.GGUFWriter], shape: Shape, rng: np.random.Generator):
    """Streams all tensors into all files, a chunk at a time."""
    pool = rng.standard_normal(POOL, dtype=np.float32) * np.float32(WEIGHT_SCALE)
    for name, dims in shape.tensors():
        left = int(np.prod(dims))
        for w in writers.values():
            w.write_padding(w.fout[0], w.fout[0].tell())
        while left:
            n = min(left, CHUNK)
            base = _draw(pool, n, rng)
            for kind, w in writers.items():
                weights = base if NOISE[kind] == 0 else base + np.float32(NOISE[kind]) * _draw(pool, n, rng)
                w.fout[0].write(stored(name, dims, weights).data)
            left -= n
    for w in writers.values():
        w.write_padding(w.fout[0], w.fout[0].tell())
        w.close()


def stored(name: str, dims: tuple[int, ...], weights: np.ndarray) -> np.ndarray:
    """Matrices in F16; norms in F32 around 1; the rope factors 1 in every file."""
    if name == "rope_freqs.weight":
        return np.ones_like(weights)
    return weights + np.float32(1) if len(dims) == 1 else weights.astype(np.float16)


def _draw(pool: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    start = int(rng.integers(0, len(pool) - n))
    return pool[start:start + n]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outdir", type=Path)
    parser.add_argument("--gb", type=float, default=1.0, help="size of each file in 10^9 bytes (default 1.0)")
    parser.add_argument("--vocab", type=int, default=128_000, help="tokens (default 128000)")
    parser.add_argument("--layers", type=int, help="layers (default: as many as the size asks for)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.vocab < 512:
        raise SystemExit("--vocab must be 512 or more: 256 byte symbols, merges and special tokens")
    rng = np.random.default_rng(options.seed)
    shape = choose_shape(options.gb, options.vocab, options.layers)
    tokens, merges = vocabulary(shape.vocab, rng)
    options.outdir.mkdir(parents=True, exist_ok=True)
    paths = {kind: options.outdir / f"{kind}-F16.gguf" for kind in NOISE}
    write_weights({k: open_file(p, k, shape, tokens, merges) for k, p in paths.items()}, shape, rng)
    print(f"{shape.layers} layers of width {shape.width}, {shape.feed_forward} wide inside, {shape.heads} heads, "
          f"{shape.kv_heads} key-value heads, {shape.vocab} tokens: "
          + ", ".join(f"{p.name} {p.stat().st_size / 1e9:.2f} GB" for p in paths.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
