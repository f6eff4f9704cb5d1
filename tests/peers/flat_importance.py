"""Whether an importance matrix of ones is better than none: squared error and KL of every file type, with and without.

    python flat_importance.py measure MODEL --text FILE… --json OUT [--types T,T…] [--pure] [--matrix FILE]
    python flat_importance.py measure MODEL --base FILE --chat FILE --text FILE… --json OUT     of a merge
    python flat_importance.py off-grid MODEL OUT                                                see below
    python flat_importance.py permute MODEL OUT --seed N                                        see below
    python flat_importance.py table JSON…                                                       in Markdown

`measure` writes a matrix whose every entry is 1, for every matrix of the model (embeddings and output too, which
llama-imatrix leaves out), encodes the model in each type without and with it, and holds both against the model: squared
error by `chatvec compare`, KL (nats) and perplexity by llama.cpp (libllama.py), whose logits of the model are kept, so
that the two are compared token by token. Chunks are of `--n-ctx` tokens, the first 16 of each are not scored. Intervals
are of 95 %, by 2,000 paired bootstraps of pieces of 32 tokens. With `--base` and `--chat`, MODEL is what is merged, the
reference is the merge in F32, and each type is merged directly, with whatever --on-loss does.

`--matrix` is a real matrix of the model, as a third column: what there would be to win.

`off-grid` makes a model for this of one that was quantised: weights on the grid of a type are encoded without an error
by that type and unlike any other weights by others. To each weight is added noise, even between half a step down and
half a step up of its block of 32, and the result is written in F16. It is a slightly worse model, and its own reference.

`permute` writes the same model with its dimensions in another order: those that layers hand on, those inside the
feed-forward parts, and those of values in each head. What it computes is the same, but other weights share a block, so
that rounding errors are drawn anew. In a tiny model the KL of one draw says little of the next.

Needs requirements.txt. The flat matrix decides nothing for types that take none: their bytes are held equal.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, os.environ.get("PEERS", str(Path(__file__).resolve().parent)))

import gguf
import numpy as np

from gguf_files import F16, F32, Tensor, is_quantizable, read_tensors, rewrite
from libllama import Llama

MIXTURES = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_NL",
            "IQ4_XS", "IQ3_S", "IQ3_M", "IQ3_XXS", "IQ2_S", "IQ2_M", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "Q2_K_S",
            "TQ1_0", "TQ2_0", "Q8_0", "MXFP4_MOE", "NVFP4")
PURE = ("Q2_K", "Q3_K_S", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_S", "Q5_K_S", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS",
        "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ1_0", "TQ2_0", "Q8_0", "MXFP4_MOE", "NVFP4")
#: Of the t distribution, 97.5 %, for 2 draws and more.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16)
UNSCORED, PIECE, N_SAMPLES = 16, 32, 2000


def flat_matrix(model: Path, out: Path) -> Path:
    """Every entry 1, as llama-imatrix would have it after one token whose every activation was 1."""
    writer = gguf.GGUFWriter(out, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["flat"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 1)
    for t in read_tensors(model).values():
        if is_quantizable(t):
            n_mat = int(np.prod(t.shape[:-2]))
            writer.add_tensor(f"{t.name}.in_sum2", np.ones((n_mat, t.row_len), np.float32))
            writer.add_tensor(f"{t.name}.counts", np.ones((n_mat, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def run(*command) -> tuple[int, float, str, str]:
    """Exit code, seconds of processor time in user mode, and what was said."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, errors="replace")
    return done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before, done.stdout, done.stderr


class Reference:
    """Log-probabilities of the model on the text, kept."""

    def __init__(self, model: Path, texts: list[Path], n_ctx: int, n_chunks: int, threads: int):
        self.n_ctx, self.threads = n_ctx, threads
        with Llama(model, n_ctx, threads) as llama:
            self.chunks = []
            for text in texts:
                ids = llama.tokenize(text.read_text("utf-8"))
                full = [ids[i : i + n_ctx] for i in range(0, len(ids) - n_ctx + 1, n_ctx)]
                self.chunks += full[: n_chunks or None]
            self.log_p = [log_softmax(llama.logits(c)[UNSCORED:]) for c in self.chunks]
        self.nll = self.surprise(self.log_p)

    def surprise(self, rows_of_chunks) -> np.ndarray:
        """Of the tokens that came."""
        return np.concatenate([-rows[np.arange(len(rows) - 1), c[UNSCORED + 1 :]]
                               for c, rows in zip(self.chunks, rows_of_chunks)])

    def against(self, model: Path) -> dict:
        """KL at each token, chunk after chunk, and perplexity."""
        kl, nll, same = [], [], []
        with Llama(model, self.n_ctx, self.threads) as llama:
            for c, p in zip(self.chunks, self.log_p):
                q = log_softmax(llama.logits(c)[UNSCORED:])
                nll.append(-q[np.arange(len(q) - 1), c[UNSCORED + 1 :]])
                same.append(q.argmax(1) == p.argmax(1))
                np.subtract(p, q, out=q)
                q *= np.exp(p)
                kl.append(q.sum(1, dtype=np.float64))
        kl, d = np.concatenate(kl), np.concatenate(nll) - self.nll
        return {"kl_each": kl, "kl": float(kl.mean()), "kl_error": float(kl.std() / np.sqrt(len(kl) - 1)),
                "kl_p99": float(np.percentile(kl, 99)), "ppl_ratio": float(np.exp(d.mean())),
                "ppl_ratio_error": float(np.exp(d.mean()) * d.std() / np.sqrt(len(d) - 1)),
                "same_top": float(np.concatenate(same).mean())}


def log_softmax(x: np.ndarray) -> np.ndarray:
    """In f32: rows of 150,000 tokens take no more than that."""
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True, dtype=np.float64)).astype(np.float32)


def interval(flat: np.ndarray, none: np.ndarray) -> list[float]:
    """Of the ratio of sums, by pieces of neighbouring tokens."""
    n = len(flat) // PIECE * PIECE
    a, b = (v[:n].reshape(-1, PIECE).sum(1) for v in (flat, none))
    drawn = np.random.default_rng(1).integers(0, len(a), (N_SAMPLES, len(a)))
    return np.percentile(a[drawn].sum(1) / b[drawn].sum(1), [2.5, 97.5]).tolist()


def same_bytes(a: Path, b: Path) -> bool:
    x, y = (gguf.GGUFReader(p).tensors for p in (a, b))
    return all(s.tensor_type == t.tensor_type and np.array_equal(s.data, t.data) for s, t in zip(x, y, strict=True))


def errors(chatvec: Path, a: Path, b: Path, threads: int) -> dict:
    """Squared error by tensor, and the types."""
    code, _, said, err = run(chatvec, "compare", a, b, "--json", "--threads", threads)
    if code:
        raise SystemExit(err)
    d = json.loads(said)
    found = {t["name"]: ((t["relative"] * t["norm_a"]) ** 2, t["type_b"]) for t in d["tensors"]}
    return {"total": (d["total"]["relative"] * d["total"]["norm_a"]) ** 2, "relative": d["total"]["relative"], "each": found}


def measure(o: argparse.Namespace):
    with tempfile.TemporaryDirectory(dir=o.temp_dir, prefix="flat-") as folder:
        folder = Path(folder)
        merge = [] if not o.base else ["--base", o.base, "--chat", o.chat]
        model, reference = o.model, o.model
        flat = flat_matrix(model, folder / "flat.imatrix.gguf")
        if merge:
            reference = folder / "exact.gguf"
            code, _, _, err = run(o.chatvec, "merge", *merge, "--model", model, "-o", reference, "--type", "F32",
                                  "--threads", o.threads)
            assert not code, err
        ways = {"none": [], "flat": ["--imatrix", flat]} | ({"real": ["--imatrix", o.matrix]} if o.matrix else {})
        start = time.time()
        logits = None if o.no_kl else Reference(reference, o.text, o.n_ctx, o.chunks, o.threads)
        n = 0 if o.no_kl else sum(len(p) for p in logits.log_p)
        print(f"{o.model.name}: {n} tokens scored, reference in {time.time() - start:.0f} s", flush=True)
        result = {"model": o.name or o.model.stem, "merge": bool(merge), "pure": o.pure, "tokens": n, "types": {}}
        for ty in o.types or (PURE if o.pure else MIXTURES):
            row, each, pure, out_type = {}, {}, ["--pure"] if o.pure else [], ty
            start = time.time()
            if o.keep:
                # The model is in this type already, the sum of its decoded weights and the vector is the reference.
                model, reference, out_type = folder / "model.gguf", folder / "exact.gguf", "keep"
                sum_of = ["merge", *merge, "--model", model, "-o", reference, "--type", "F32"]
                for command in (["quantize", o.model, "-o", model, "--type", ty, *pure], sum_of):
                    code, _, _, err = run(o.chatvec, *command, "--overwrite", "--threads", o.threads)
                    assert not code, err
                logits = Reference(reference, o.text, o.n_ctx, o.chunks, o.threads)
            for way, options in [*ways.items(), ("same", ways["flat"])]:
                if way == "same":
                    # With a matrix, llama-quantize gives some tensors other types: here they get those that they have without.
                    kinds = [{k: v[1] for k, v in each.get(w, {}).items()} for w in ("none", "flat")]
                    if not kinds[0] or kinds[0] == kinds[1]:
                        continue
                    (folder / "types").write_text("".join(f"^{k.replace('.', chr(92) + '.')}$={t}\n" for k, t in kinds[0].items()
                                                          if t not in ("f32", "f16")))
                    options = [*options, "--tensor-type-file", folder / "types"]
                out = folder / f"{way}.gguf"
                command = ["merge", *merge, "--model", model] if merge else ["quantize", model]
                if merge and o.on_loss:
                    command += ["--on-loss", o.on_loss]
                code, seconds, said, err = run(o.chatvec, *command, "-o", out, "--type", out_type, "--overwrite", "--json",
                                               "--threads", o.threads, *([] if o.keep else pure), *options)
                if code:
                    row[way] = {"refused": code, "why": err.strip()[-300:]}
                    continue
                e = errors(o.chatvec, reference, out, o.threads)
                row[way] = {"seconds": seconds, "squared": e["total"], "relative": e["relative"], "bytes": out.stat().st_size}
                if merge:
                    d = json.loads(said)
                    row[way]["merge"] = {k: d[k] for k in ("survival", "noise", "summary", "loss") if k in d}
                    row[way]["keys"] = sorted(d)
                if way == "flat" and "squared" in row["none"]:
                    row["same_bytes"] = same_bytes(folder / "none.gguf", out)
                each[way] = e["each"]
                if way == "flat" and row.get("same_bytes"):
                    row[way] |= {k: v for k, v in row["none"].items() if k.startswith(("kl", "ppl", "same"))}
                    continue
                if not o.no_kl:
                    found = logits.against(out)
                    row[way] |= found
            types = {}
            if "none" in each and "flat" in each:
                pairs = [(each["none"][k], each["flat"][k]) for k in each["none"]]
                encoded = [(a, b) for a, b in pairs if a[1] not in ("f32", "f16") and a[0] > 0]
                row["squared_ratio"] = row["flat"]["squared"] / row["none"]["squared"]
                row["lower_in"] = [sum(b[0] < a[0] for a, b in encoded), len(encoded)]
                for (x, ta), (y, tb) in encoded:
                    kept = types.setdefault(f"{ta}" if ta == tb else f"{ta}>{tb}", [0, 0.0, 0.0])
                    kept[0], kept[1], kept[2] = kept[0] + 1, kept[1] + x, kept[2] + y
                row["by_type"] = {t: [v[0], v[2] / v[1]] for t, v in types.items()}
                if "same" in each:
                    assert all(v[1] == each["none"][k][1] for k, v in each["same"].items())
                    row["squared_ratio_same"] = row["same"]["squared"] / row["none"]["squared"]
                for way in ("flat", "real", "same"):
                    if "kl_each" in row.get(way, {}):
                        row[f"kl_ratio_{way}"] = row[way]["kl"] / row["none"]["kl"]
                        row[f"kl_interval_{way}"] = interval(row[way]["kl_each"], row["none"]["kl_each"])
            elif "flat" in each:
                kept = [t for _, t in each["flat"].values()]
                row["by_type"] = {t: [kept.count(t), None] for t in set(kept)}
            for way in (*ways, "same"):
                row.get(way, {}).pop("kl_each", None)
            result["types"][ty] = row
            o.json.write_text(json.dumps(result, indent=1) + "\n")
            say = lambda k, f="{:.3f}": f.format(row[k]) if k in row else "–"
            print(f"{ty:9} KL {row['none'].get('kl', float('nan')):.4f} {row['flat'].get('kl', float('nan')):.4f} ratio {say('kl_ratio_flat')} "
                  f"{[round(x, 3) for x in row.get('kl_interval_flat', [])]} real {say('kl_ratio_real')} at the same types {say('kl_ratio_same')} "
                  f"{[round(x, 3) for x in row.get('kl_interval_same', [])]} squared {say('squared_ratio')} "
                  f"lower in {row.get('lower_in')} same {row.get('same_bytes')} {time.time() - start:.0f} s", flush=True)
            for way in ("none", "flat"):
                if "refused" in row[way]:
                    print(f"    {way}: {row[way]['why'][:160]}", flush=True)


def table(o: argparse.Namespace):
    """Draws of one model (names that differ behind "-perm") are one column: geometric mean, and 95 % by Student's t."""
    columns, types = {}, []
    for path in o.json:
        d = json.loads(path.read_text())
        columns.setdefault(d["model"].partition("-perm")[0], []).append(d["types"])
        types += [t for t in d["types"] if t not in types]
    print("| type | " + " | ".join(columns) + " | squared error |\n|---|" + "---|" * (len(columns) + 1))
    for ty in types:
        cells, squared = [], []
        for draws in columns.values():
            rows = [d[ty] for d in draws if ty in d]
            squared += [r["squared_ratio"] for r in rows if "squared_ratio" in r]
            ratios = [r["kl_ratio_flat"] for r in rows if "kl_ratio_flat" in r]
            if not ratios:
                alone = [r["flat"]["kl"] for r in rows if "kl" in r["flat"]]
                cells.append(f"(KL {alone[0]:.4f})" if alone else "–")
                continue
            if all(r.get("same_bytes") for r in rows):
                cells.append("same bytes")
                continue
            logs = np.log(ratios)
            mean, (low, high) = np.exp(logs.mean()), rows[0]["kl_interval_flat"]
            if len(ratios) > 1:
                half = STUDENT[len(ratios) - 2] * logs.std(ddof=1) / np.sqrt(len(ratios))
                low, high = mean * np.exp(-half), mean * np.exp(half)
            mark = "**" if low > 1 or high < 1 else ""
            cell = f"{mark}{mean:.2f}{mark} [{low:.2f}, {high:.2f}]" + (" worse" if low > 1 else "")
            same = [r["kl_ratio_same"] for r in rows if "kl_ratio_same" in r]
            cells.append(cell + (f"; same types {np.exp(np.mean(np.log(same))):.2f}" if same else ""))
        said = f"{min(squared):.2f}" + (f" to {max(squared):.2f}" if max(squared) - min(squared) > 0.005 else "") if squared else "–"
        print(f"| {ty} | " + " | ".join(cells) + f" | {said} |")


def off_grid(o: argparse.Namespace):
    rng = np.random.default_rng(1)
    tensors, changed = {}, {}
    for t in gguf.GGUFReader(o.model).tensors:
        shape = tuple(int(n) for n in reversed(t.shape))
        if t.tensor_type in (F32, F16):
            tensors[t.name] = Tensor(t.name, shape, t.tensor_type, np.ascontiguousarray(t.data).reshape(-1).view(np.uint8))
            continue
        w = gguf.dequantize(t.data, t.tensor_type).reshape(-1, 32).astype(np.float32)
        for i in range(0, len(w), 1 << 20):
            part = w[i : i + (1 << 20)]
            gaps = np.diff(np.sort(part, 1), axis=1)
            # Equal values but for rounding are no step.
            gaps[gaps <= 1e-3 * np.ptp(part, 1)[:, None]] = np.inf
            step = gaps.min(1)
            step[~np.isfinite(step)] = 0
            part += rng.uniform(-0.5, 0.5, part.shape).astype(np.float32) * step[:, None]
        tensors[t.name] = Tensor(t.name, shape, F16, w.astype(np.float16).reshape(-1).view(np.uint8))
        print(t.name, t.tensor_type.name, flush=True)
    rewrite(o.model, o.out, tensors)


def permute(o: argparse.Namespace):
    rng = np.random.default_rng(o.seed)
    reader, tensors = gguf.GGUFReader(o.model), {}
    key = lambda name: int(reader.fields[f"llama.{name}"].contents())
    n_head, n_kv = key("attention.head_count"), key("attention.head_count_kv")
    weights = {t.name: np.array(t.data).reshape(*(int(n) for n in reversed(t.shape))) for t in reader.tensors}
    width = weights["token_embd.weight"].shape[1]
    residual, hidden, values = rng.permutation(width), {}, {}
    for t in reader.tensors:
        w = weights[t.name]
        *block, part = t.name.removesuffix(".weight").rsplit(".", 1)
        block = ".".join(block)
        if part.startswith("ffn_") and part != "ffn_norm":
            n = w.shape[1 if part == "ffn_down" else 0]
            order = hidden.setdefault(block, rng.permutation(n))
            w = w[:, order][residual] if part == "ffn_down" else w[order][:, residual]
        elif part in ("attn_v", "attn_output"):
            size = width // n_head
            heads = values.setdefault(block, [rng.permutation(size) for _ in range(n_kv)])
            of_values = np.concatenate([i * size + heads[i] for i in range(n_kv)])
            of_heads = np.concatenate([i * size + heads[i // (n_head // n_kv)] for i in range(n_head)])
            w = w[of_values][:, residual] if part == "attn_v" else w[:, of_heads][residual]
        else:
            w = w[..., residual]
        tensors[t.name] = Tensor(t.name, w.shape, t.tensor_type, np.ascontiguousarray(w).reshape(-1).view(np.uint8))
    rewrite(o.model, o.out, tensors)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    m = commands.add_parser("measure")
    m.add_argument("model", type=Path)
    m.add_argument("--base", type=Path)
    m.add_argument("--chat", type=Path)
    m.add_argument("--on-loss")
    m.add_argument("--keep", action="store_true", help="the model is encoded in each type first, and merged as it is")
    m.add_argument("--text", type=Path, nargs="+", required=True)
    m.add_argument("--name")
    m.add_argument("--json", type=Path, required=True)
    m.add_argument("--types", type=lambda s: s.split(","))
    m.add_argument("--pure", action="store_true")
    m.add_argument("--matrix", type=Path)
    m.add_argument("--no-kl", action="store_true")
    m.add_argument("--n-ctx", type=int, default=256)
    m.add_argument("--chunks", type=int, default=0, help="of each text at most")
    m.add_argument("--threads", type=int, default=1)
    m.add_argument("--temp-dir", type=Path)
    m.add_argument("--chatvec", type=Path, default=Path("target/release/chatvec"))
    m.set_defaults(do=measure)
    t = commands.add_parser("table")
    t.add_argument("json", type=Path, nargs="+")
    t.set_defaults(do=table)
    g = commands.add_parser("off-grid")
    g.add_argument("model", type=Path)
    g.add_argument("out", type=Path)
    g.set_defaults(do=off_grid)
    p = commands.add_parser("permute")
    p.add_argument("model", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--seed", type=int, required=True)
    p.set_defaults(do=permute)
    options = parser.parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
