"""Tries base, chat and model in every order, on the bundled trio and on siblings made of a model that users run.

    python roles.py [--chatvec PATH] [--models-dir FOLDER] [--smollm2 FILE] [--types F16 Q8_0 Q4_0]

Siblings of SmolLM2 (`fetch_models.py` fetches it): the file is the base, chat is it plus one random vector, cp is it plus
another, in every tensor; and cp once with the rows of the template's tokens as they were, once with those moved too. The file ends
its texts with <|im_end|>, as a chat model does; once base and cp end theirs with <|endoftext|>, as a base does. Each trio is
tried with chat templates in chat alone, in all files and in none, and in every type. A line a trio: for the right order and the
five wrong ones the exit code of a dry run, then the overlaps of the vector with what the model learnt as numpy finds them
(over the square of the shorter one), right order first. Rounding errors are in these; those that the command judges have none.

Right are: 0 for the right order, 4 for the others; where nothing in the files tells chat from cp, 0 also for the order in which
these two changed places, with a warning in both that says so. Nothing tells them apart where neither one's own template does and all
rows moved; and where no file has a template and all end with one token, since then no token is one that only a conversation
needs. Ends with 1 where something else was found.
"""

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np

from ggml_codec import decode
from gguf_files import F16, is_quantizable, read_tensors, rewrite
from tool import ROOT, Chatvec, Trio, arguments, find_trio, work_folder

ORDERS = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
TEMPLATE = "tokenizer.chat_template"
UNTOLD = "which of chat and model is which could not be checked"
#: Lengths of what chat and cp learn, in units of each tensor's norm.
CHAT, CP = 0.05, 0.12


def sibling(source: Path, target: Path, share: float, seed: int, kept_rows=()) -> Path:
    """The model as F16 with noise of this share of each tensor's norm, but for some rows of the embeddings."""
    rng = np.random.default_rng(seed)
    tensors = read_tensors(source)
    for name, t in tensors.items():
        weights = decode(t).reshape(t.shape).astype(np.float32)
        moved = weights + rng.standard_normal(t.shape, np.float32) * np.float32(share * np.sqrt(np.mean(weights ** 2)))
        if name == "token_embd.weight":
            moved[list(kept_rows)] = weights[list(kept_rows)]
        stored = moved.astype(np.float16 if is_quantizable(t) else np.float32)
        t.type = F16 if is_quantizable(t) else t.type
        t.data = np.ascontiguousarray(stored).reshape(-1).view(np.uint8)
    return rewrite(source, target, tensors)


def without_template(source: Path, target: Path) -> Path:
    """The same file with another name for the template's key, of the same length."""
    data = bytearray(source.read_bytes())
    at = data.find(TEMPLATE.encode(), 0, 64 << 20)
    while at >= 0:
        data[at:at + len(TEMPLATE)] = (TEMPLATE[:-1] + "X").encode()
        at = data.find(TEMPLATE.encode(), at, 64 << 20)
    target.write_bytes(data)
    return target


def with_end(source: Path, target: Path, token: int) -> Path:
    """The same file with another end token."""
    data, key = bytearray(source.read_bytes()), b"tokenizer.ggml.eos_token_id"
    at = data.index(key) + len(key)
    assert int.from_bytes(data[at:at + 4], "little") == gguf.GGUFValueType.UINT32
    data[at + 4:at + 8] = token.to_bytes(4, "little")
    target.write_bytes(data)
    return target


def with_template(source: Path, target: Path, template: str) -> Path:
    """The same file with a template, in which key it has or under a new one."""
    reader = gguf.GGUFReader(source)
    if TEMPLATE in reader.fields:
        return source
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            sub_type = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type)
    writer.add_chat_template(template)
    for t in reader.tensors:
        writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def overlaps(files: list[Path]) -> list[float]:
    """For each order, ⟨chat − base, model − base⟩ over the lesser of the two squares."""
    inner = np.zeros((3, 3))
    tensors = [read_tensors(path) for path in files]
    for name, t in tensors[0].items():
        if not name.startswith("rope_"):
            flat = np.stack([decode(one[name]).astype(np.float64).reshape(-1) for one in tensors])
            inner += flat @ flat.T
    found = []
    for b, c, m in ORDERS:
        tau2 = inner[c, c] - 2 * inner[b, c] + inner[b, b]
        drift2 = inner[m, m] - 2 * inner[b, m] + inner[b, b]
        product = inner[c, m] - inner[b, c] - inner[b, m] + inner[b, b]
        found.append(product / min(tau2, drift2))
    return found


def tried(chatvec: Chatvec, files: list[Path], order) -> tuple[int, str]:
    base, chat, model = (files[i] for i in order)
    args = ["merge", "--base", base, "--chat", chat, "--model", model, "-o", "never-written.gguf", "--dry-run", "--json"]
    done = subprocess.run([chatvec.path, *map(str, args)], capture_output=True, text=True, errors="replace")
    return done.returncode, done.stderr


def judge(chatvec: Chatvec, what: str, files: list[Path], margins: list[float], is_told: bool) -> bool:
    """Tries all orders and prints a line; whether all is as it should be."""
    found = [tried(chatvec, files, order) for order in ORDERS]
    expected = [0, 4 if is_told else 0, 4, 4, 4, 4]
    said = [UNTOLD in text for _, text in found[:2]]
    is_right = [code for code, _ in found] == expected and said == [not is_told] * 2
    margins = " ".join(f"{o:5.2f}" for o in margins)
    codes = " ".join(str(code) for code, _ in found)
    print(f"{'right' if is_right else 'WRONG'}  {what:58}  {codes}  {margins}", flush=True)
    if not is_right:
        print("\n".join(line for _, text in found for line in text.splitlines() if "error" in line or "checked" in line))
    return is_right


def variants(chatvec: Chatvec, what: str, trio: Trio, folder: Path, types, told):
    """Every type, with templates in chat alone, in all and in none; chat and cp are told apart with those in `told`."""
    for type_ in types:
        stored = {}
        for role, path in vars(trio).items():
            stored[role] = path if type_ == "F16" else folder / f"{path.stem}-{type_}.gguf"
            if not stored[role].exists():
                chatvec.run("quantize", path, "-o", stored[role], "--type", type_, "--pure")
        margins = overlaps(list(stored.values()))
        for templates in ("chat", "all", "none"):
            files = []
            for role, path in stored.items():
                has = templates == "all" or (templates == "chat" and role == "chat")
                target = folder / f"{role}-{templates}.gguf"
                files.append(with_template(path, target, "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}")
                             if has else without_template(path, target))
            yield judge(chatvec, f"{what}, {type_}, template in {templates}", files, margins, templates in told)


def smollm2(folder: Path, source: Path):
    """Trios of siblings, and with which templates something tells chat from cp."""
    end, special = 0, (1, 2)  # <|endoftext|>; <|im_start|>, <|im_end|>
    base = sibling(source, folder / "smol-base.gguf", 0, 1)
    chat = sibling(source, folder / "smol-chat.gguf", CHAT, 2)
    cp = sibling(source, folder / "smol-cp.gguf", CP, 3, special)
    yield "SmolLM2, special rows kept in cp", Trio(base, chat, cp), ("chat", "all")
    ended = [with_end(path, folder / f"{path.stem}-end.gguf", end) for path in (base, cp)]
    yield "SmolLM2, these and ends of a base", Trio(ended[0], chat, ended[1]), ("chat", "all", "none")
    yield "SmolLM2, all rows moved", Trio(base, chat, sibling(source, folder / "smol-cp2.gguf", CP, 4)), ("chat",)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--models-dir", type=Path, default=ROOT / "fixtures/models")
    parser.add_argument("--smollm2", type=Path, default=ROOT / "target/peer-models/SmolLM2-135M-Instruct-Q4_1.gguf")
    parser.add_argument("--types", nargs="+", default=["F16", "Q8_0", "Q4_0"])
    options = parser.parse_args()
    chatvec = Chatvec(options.chatvec)
    results = []
    print(f"       {'':58}  exit codes   overlaps, the right order first")
    with work_folder(options.temp_dir) as folder:
        trio = find_trio(options.models_dir)
        results += variants(chatvec, "bundled", trio, folder, [*options.types, "Q4_K"], ("chat", "all", "none"))
        if options.smollm2.is_file():
            for what, trio, told in smollm2(folder, options.smollm2):
                results += variants(chatvec, what, trio, folder, options.types, told)
        else:
            print(f"left out: no {options.smollm2}; fetch_models.py fetches it")
    print(f"{sum(results)} passed, {results.count(False)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
