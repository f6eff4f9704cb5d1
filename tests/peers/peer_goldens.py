"""Answers and log-probabilities of the models of fetch_models.py in llama.cpp; `infer_goldens.py peers` writes them."""

from pathlib import Path

import gguf
import numpy as np

import fetch_models
import llama_cpp
from libllama import Llama, log_softmax

CONTEXT = 256
MAX_NEW_TOKENS = 64
N_TOP, N_POSITIONS = 64, 8
#: One message each; two with a system message.
PROMPTS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "Write one sentence about the sea."}],
    [{"role": "system", "content": "You answer with a single word."}, {"role": "user", "content": "What colour is snow?"}],
    [{"role": "user", "content": "Nenne drei Städte in Österreich."}],
    [{"role": "system", "content": "Du antwortest auf Deutsch."},
     {"role": "user", "content": "Warum ist der Himmel blau? Erkläre es kurz."}],
    [{"role": "user", "content": "Write a Python function that returns the n-th Fibonacci number."}],
]
#: What base models go on with: they have no template.
TEXTS = [
    "The capital of France is Paris, and the capital of Austria is",
    "Es war einmal ein König, der hatte drei Töchter. Die jüngste von ihnen",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "日本で一番高い山は",
]


def goldens(folder: Path):
    """Name and figures of each model; every file must be in the folder, and the pinned one."""
    for name, model in fetch_models.MODELS.items():
        path = folder / model.file
        if not path.is_file() or fetch_models.sha256(path) != model.sha256:
            raise SystemExit(f"{path} is missing or another file: run fetch_models.py {folder}")
        yield name, of_file(path) | {"file": model.file, "sha256": model.sha256}


def of_file(path: Path) -> dict:
    """Figures of one model, as fixtures/infer/README.md describes them."""
    if gguf.GGUFReader(path).get_field("tokenizer.chat_template") is None:
        prompts = [([], text) for text in TEXTS]
    else:
        server = llama_cpp.Llama(path, n_ctx=CONTEXT)
        prompts = [(m, server.request("/apply-template", {"messages": m})["prompt"]) for m in PROMPTS]
        del server
    with Llama(path, CONTEXT, threads=1) as llama:
        return {"max_new_tokens": MAX_NEW_TOKENS,
                "prompts": [of_prompt(llama, messages, text) for messages, text in prompts]}


def of_prompt(llama: Llama, messages: list[dict], text: str) -> dict:
    """The greedy answer, and log-probabilities along prompt and answer."""
    from infer_goldens import greedy_answer, next_logprobs, row, top

    prompt = llama.tokenize(text)
    answer = greedy_answer(llama, prompt, MAX_NEW_TOKENS)
    tokens = prompt + answer["tokens"]
    lp = log_softmax(llama.logits(tokens))
    # From the last token of the prompt to the last one but the answer's end, without repeats where it is short.
    positions = np.unique(np.linspace(len(prompt) - 1, len(tokens) - 2, N_POSITIONS).astype(int))
    said = llama.detokenize(answer["tokens"])
    print(repr(said), flush=True)
    return {"messages": messages, "text": text, "tokens": prompt, "answer": answer | {"text": said},
            "next": row(next_logprobs(lp, tokens)), "positions": positions.tolist()} | top(lp[positions], N_TOP)
