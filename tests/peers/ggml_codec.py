"""Real ggml's codec by ctypes (package libggml-python): weights to bytes and back, for every type.

F32, F16 and BF16 are numpy's own arithmetic instead, as a witness that is not ggml either.
"""

import ctypes
import functools
from pathlib import Path

import libggml
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from gguf_files import BF16, F16, F32, Tensor


class _Traits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    ]


@functools.cache
def _ggml() -> ctypes.CDLL:
    """The ggml-base library inside the package, wherever the wheel for this system keeps it."""
    folder = Path(libggml.__file__).parent
    names = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
    found = [p for name in names for p in folder.rglob(name)]
    if not found:
        raise FileNotFoundError(f"no ggml-base library under {folder}")
    lib = ctypes.CDLL(str(found[0]))
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
                                        ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    lib.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    lib.ggml_get_type_traits.argtypes = [ctypes.c_int]
    lib.ggml_quantize_init.argtypes = [ctypes.c_int]
    return lib


def encode(weights: np.ndarray, type_: GGMLQuantizationType) -> np.ndarray:
    """Rows of f32 to stored bytes, flat; quantised types by `ggml_quantize_chunk` without importance matrix."""
    weights = np.ascontiguousarray(weights, dtype=np.float32)
    if type_ == F32:
        return weights.reshape(-1).view(np.uint8)
    if type_ == F16:
        return weights.astype(np.float16).reshape(-1).view(np.uint8)
    if type_ == BF16:
        return _bf16(weights).reshape(-1).view(np.uint8)
    block_len, block_size = GGML_QUANT_SIZES[type_]
    row_len = weights.shape[-1]
    n_rows = weights.size // row_len
    out = np.empty(weights.size // block_len * block_size, dtype=np.uint8)
    written = _ggml().ggml_quantize_chunk(int(type_), weights.ctypes.data, out.ctypes.data, 0, n_rows, row_len, None)
    assert written == out.size, f"ggml wrote {written} bytes of {type_.name}, expected {out.size}"
    return out


def decode(tensor: Tensor) -> np.ndarray:
    """Stored bytes to f32 in the tensor's shape."""
    if tensor.type == F32:
        return tensor.data.view(np.float32).reshape(tensor.shape)
    if tensor.type == F16:
        return tensor.data.view(np.float16).astype(np.float32).reshape(tensor.shape)
    if tensor.type == BF16:
        return (tensor.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(tensor.shape)
    out = np.empty(tensor.shape, dtype=np.float32)
    data = np.ascontiguousarray(tensor.data)
    traits = _ggml().ggml_get_type_traits(int(tensor.type)).contents
    assert traits.blck_size == GGML_QUANT_SIZES[tensor.type][0], "ggml and gguf disagree about the block length"
    _ggml().ggml_quantize_init(int(tensor.type))
    traits.to_float(data.ctypes.data, out.ctypes.data, out.size)
    return out


def _bf16(weights: np.ndarray) -> np.ndarray:
    """Upper half of each f32, rounded to nearest, ties to even. Weights here are finite."""
    bits = weights.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
