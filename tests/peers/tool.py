"""Runs the chatvec command and keeps what it said."""

import argparse
import json
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: Written, but the vector did not survive quantisation. The bytes are still what was asked for.
VECTOR_LOST = 10

ROOT = Path(__file__).resolve().parents[2]

#: Quantised types that `--type` takes together with `--pure`.
QUANTIZED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
UNQUANTIZED = ("F32", "F16", "BF16")

#: The bare formula for every row: no embedding left out, no row taken from the chat model, no code but the encoder's.
PLAIN = ("--embeddings", "all", "--special-tokens", "none", "--on-loss", "warn", "--importance", "none")


class ToolError(Exception):
    """The command ended with a code that means no usable output."""


@dataclass
class Trio:
    """The three inputs of a merge."""

    base: Path
    chat: Path
    cp: Path

    def map(self, f) -> "Trio":
        """The trio of f(path)."""
        return Trio(f(self.base), f(self.chat), f(self.cp))


class Chatvec:
    """The command at one path."""

    def __init__(self, path: Path):
        self.path = path.resolve()
        if not self.path.is_file():
            raise SystemExit(f"no chatvec at {path}: run `cargo build --release`, or name it with --chatvec")

    def run(self, *args) -> int:
        """Runs one command; returns 0 or VECTOR_LOST, any other exit code is a ToolError."""
        done = subprocess.run([self.path, *map(str, args)], capture_output=True, text=True, errors="replace")
        if done.returncode not in (0, VECTOR_LOST):
            raise ToolError(f"chatvec {' '.join(map(str, args))}: exit {done.returncode}\n{done.stderr.strip()}")
        return done.returncode

    def merge(self, trio: Trio, out: Path, *args, type_: str = "keep", ratio: float = 1.0) -> Path:
        """Merges into `out`, with --pure for quantised types."""
        pure = ("--pure",) if type_ in QUANTIZED else ()
        self.run("merge", "--base", trio.base, "--chat", trio.chat, "--model", trio.cp, "-o", out,
                 "--ratio", ratio, "--type", type_, *pure, *args)
        return out

    def matrix(self, model: Path, models_dir: Path, folder: Path) -> Path:
        """An importance matrix of a model from the English transcripts, which nothing is judged by."""
        out, text = folder / f"matrix-{model.name}", folder / "text.txt"
        if not out.exists():
            items = [json.loads(line) for line in (models_dir / "prompts-en.jsonl").read_text("utf-8").splitlines()]
            text.write_text("".join(f"{i['chatml']}{i['answer']}<|im_end|>\n" for i in items), "utf-8")
            self.run("imatrix", model, "--text", text, "-o", out)
        return out


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that every script here shares."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chatvec", type=Path, default=ROOT / "target/release/chatvec", help="the command under test")
    parser.add_argument("--temp-dir", type=Path, help="where to write (default: the system's folder)")
    return parser


@contextmanager
def work_folder(parent: Path | None):
    """A fresh folder, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="chatvec-peers-", dir=parent) as name:
        yield Path(name)


def find_trio(folder: Path, type_: str = "F16") -> Trio | None:
    """The files `…base-F16.gguf`, `…chat-F16.gguf`, `…cp…-F16.gguf` of a folder, or None when one is missing."""
    def one(pattern):
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise SystemExit(f"{folder}: several files match {pattern}: {', '.join(p.name for p in found)}")
        return found[0] if found else None

    trio = [one(f"*base-{type_}.gguf"), one(f"*chat-{type_}.gguf"), one(f"*cp*-{type_}.gguf")]
    return None if None in trio else Trio(*trio)
