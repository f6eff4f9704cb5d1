"""Greedy answers of broken models by llama.cpp, as fixtures/eval/broken-de.json.

    python tests/peers/answers.py [OUT.json]

Merges the bundled trio in f32 at ratios where the language is lost, adds noise to the weights of the merge (in units of
each tensor's standard deviation), and permutes the rows of its vocabulary, special tokens excepted; stores each as F32
and lets llama.cpp answer every second prompt of fixtures/models/prompts-de.jsonl, 56 tokens at most. Seeded. Near-ties may
break otherwise on other processors."""
import argparse, json, os, tempfile, urllib.request
from pathlib import Path

import gguf
import numpy as np
import xllamacpp as xl

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "fixtures/models"
N_SPECIAL = 3
EOG = ["<|im_end|>", "<|endoftext|>"]


class Llama:
    def __init__(self, path, n_ctx):
        p = xl.CommonParams()
        p.model.path, p.n_ctx, p.n_parallel, p.warmup, p.verbosity = str(path), n_ctx, 1, False, 0
        p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 2
        self.server = xl.Server(p)
        self.eog = {self.post("/tokenize", {"content": t, "parse_special": True})["tokens"][0]: t for t in EOG}

    def post(self, path, body):
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.server.listening_address.rstrip("/") + path, data, {"Content-Type": "application/json"})
        return json.load(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request))

    def answer(self, prompt, n):
        r = self.post("/completion", {"prompt": prompt, "n_predict": n, "temperature": 0.0, "top_k": 1,
                                      "samplers": ["top_k"], "cache_prompt": False, "return_tokens": True})
        # return_tokens omits nothing: a stop token is the last one.
        end = self.eog.get(r["tokens"][-1]) if r["stop_type"] == "eos" and r["tokens"] else None
        return r["content"], end or (EOG[0] if r["stop_type"] == "eos" else None)


def tensors(name):
    r = gguf.GGUFReader(MODELS / f"tinyworld-A-{name}-F16.gguf")
    return r, {t.name: np.array(t.data, dtype=np.float32) for t in r.tensors}


def write(like, weights, path):
    w = gguf.GGUFWriter(path, "llama")
    for f in like.fields.values():
        if f.name.startswith("GGUF.") or f.name == "general.architecture":
            continue
        sub = f.types[-1] if f.types[0] == gguf.GGUFValueType.ARRAY else None
        w.add_key_value(f.name, f.contents(), f.types[0], sub_type=sub)
    for name, x in weights.items():
        w.add_tensor(name, np.ascontiguousarray(x, dtype=np.float32))
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()


def main(out):
    rng = np.random.default_rng(1)
    (_, base), (chat_file, chat), (_, cp) = tensors("base"), tensors("chat"), tensors("cp-de")
    merge = lambda ratio: {k: cp[k] + np.float32(ratio) * (chat[k] - base[k]) for k in cp}
    merged = merge(1.0)
    noisy = lambda amount: {k: v + (rng.standard_normal(v.shape) * v.std() * amount).astype(np.float32) for k, v in merged.items()}
    n = len(merged["token_embd.weight"])
    order = np.concatenate([rng.permutation(n - N_SPECIAL), np.arange(n - N_SPECIAL, n)])
    shuffled = lambda names: {k: v[order] if k in names else v for k, v in merged.items()}
    models = {
        "ratio 3": merge(3.0), "ratio 2": merge(2.0),
        "noise 0.3": noisy(0.3), "noise 0.6": noisy(0.6), "noise 1": noisy(1.0),
        "scrambled": shuffled({"token_embd.weight", "output.weight"}), "scrambled output": shuffled({"output.weight"}),
    }
    prompts = [json.loads(x) for x in open(MODELS / "prompts-de.jsonl", encoding="utf-8")][::2]
    answers = {}
    with tempfile.TemporaryDirectory() as d:
        for name, weights in models.items():
            path = os.path.join(d, "m.gguf")
            write(chat_file, weights, path)
            m = Llama(path, 256)
            answers[name] = []
            for p in prompts:
                text, end = m.answer(p["chatml"], 56)
                answers[name].append([p["id"], text, end])
    lines = lambda rows: ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    with open(out, "w", encoding="utf-8") as f:
        f.write("{\n" + ",\n".join(f"{json.dumps(name)}: [\n{lines(rows)}\n]" for name, rows in answers.items()) + "\n}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "fixtures/eval/broken-de.json")
    main(parser.parse_args().out)
