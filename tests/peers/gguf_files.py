"""GGUF files through the `gguf` package: bytes and shapes of tensors, and copies with other tensors or alignment.

Nothing of chatvec is used, so a mistake in its reader or writer cannot hide here.
"""

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

F32, F16, BF16 = GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16


@dataclass
class Tensor:
    """One tensor as the file stores it."""

    name: str
    #: Shape as numpy says it: the row length comes last (ggml lists it first).
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    #: Stored bytes, flat.
    data: np.ndarray

    @property
    def n_weights(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def row_len(self) -> int:
        return self.shape[-1]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, in the file's order."""
    found = {}
    for t in gguf.GGUFReader(path).tensors:
        shape = tuple(int(n) for n in reversed(t.shape))
        data = np.ascontiguousarray(t.data).reshape(-1).view(np.uint8)
        found[t.name] = Tensor(t.name, shape, t.tensor_type, data)
    return found


def is_quantizable(tensor: Tensor) -> bool:
    """Whether llama-quantize would change this tensor's type: a matrix that is a weight and no norm."""
    return len(tensor.shape) >= 2 and tensor.name.endswith(".weight") and "_norm.weight" not in tensor.name


def rewrite(source: Path, target: Path, tensors=None, alignment: int | None = None, values=None, added=None) -> Path:
    """Copies a file's metadata with `tensors` in place of its own ones (default: unchanged ones).

    With `alignment`, general.alignment is set and the data padded accordingly. `values` are other values for keys that
    the file has, in the types it has them in; `added` are keys that it lacks: numbers as uint32, in lists as int32.
    """
    reader = gguf.GGUFReader(source)
    tensors = list((tensors or read_tensors(source)).values())
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.alignment"):
            continue
        if field.name == "general.file_type":
            writer.add_file_type(file_type(tensors))
            continue
        sub_type = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
        value = (values or {}).get(field.name, field.contents())
        writer.add_key_value(field.name, value, field.types[0], sub_type)
    for key, value in (added or {}).items():
        assert key not in reader.fields, f"{key} is there"
        number = GGUFValueType.INT32 if isinstance(value, list) else GGUFValueType.UINT32
        first = value[0] if isinstance(value, list) else value
        single = GGUFValueType.STRING if isinstance(first, str) else number
        writer.add_key_value(key, value, *((GGUFValueType.ARRAY, single) if isinstance(value, list) else (single,)))
    for t in tensors:
        rows = t.data.reshape(*t.shape[:-1], -1)
        writer.add_tensor(t.name, rows, raw_dtype=t.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def file_type(tensors: list[Tensor]) -> int:
    """general.file_type of the most common type among the matrices; only used to label rewritten files."""
    types = [t.type.name for t in tensors if is_quantizable(t)]
    common = max(set(types), key=types.count)
    names = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q4_K": "MOSTLY_Q4_K_M", "Q5_K": "MOSTLY_Q5_K_M"}
    for name in (names.get(common), f"MOSTLY_{common}", f"MOSTLY_{common}_M"):
        if name in gguf.LlamaFileType.__members__:
            return int(gguf.LlamaFileType[name])
    return int(gguf.LlamaFileType.GUESSED)
