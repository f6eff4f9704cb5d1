"""llama.cpp's C interface by ctypes: logits of every position, from the library inside the wheel xllamacpp.

The wheel's server gives log-probabilities of what it sampled; these scripts want those of given tokens, of a whole
prompt at once and token by token, so they call the library itself. Another build of it (`library`) can be compared.

llama.cpp changes its structures often. Only the leading fields used here are declared, over more room than either
structure takes, and `_check_defaults` refuses a library whose defaults are not where they are expected.
"""

import ctypes
import functools
from collections import deque
from pathlib import Path

import numpy as np

F32_CACHE, FLASH_ATTENTION_OFF = 0, 0
#: enum llama_flash_attn_type: AUTO, the default.
_FLASH_ATTENTION_AUTO = -1
_F16_CACHE = 1
#: More than either structure takes; the library writes and reads its own size of it.
_ROOM = 512


def _structure(name: str, fields: list[tuple[str, type]]) -> type[ctypes.Structure]:
    """A structure by its leading fields, with room behind them."""
    return type(name, (ctypes.Structure,), {"_fields_": [*fields, ("rest", ctypes.c_uint64 * (_ROOM // 8))]})


_ModelParams = _structure("_ModelParams", [])
_ContextParams = _structure("_ContextParams", [
    *((n, ctypes.c_uint32) for n in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq", "n_outputs_max",
                                     "n_outputs_max_per_seq")),
    *((n, ctypes.c_int32) for n in ("n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type", "pooling_type",
                                    "attention_type", "flash_attn_type")),
    *((n, ctypes.c_float) for n in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor",
                                    "yarn_beta_fast", "yarn_beta_slow")),
    ("yarn_orig_ctx", ctypes.c_uint32), ("defrag_thold", ctypes.c_float), ("cb_eval", ctypes.c_void_p),
    ("cb_eval_user_data", ctypes.c_void_p), ("type_k", ctypes.c_int32), ("type_v", ctypes.c_int32)])

#: `enum llama_ftype` is an int32.
_QuantizeParams = _structure("_QuantizeParams", [("nthread", ctypes.c_int32), ("ftype", ctypes.c_int32)])


class _Batch(ctypes.Structure):
    """`struct llama_batch` of llama.h."""

    _fields_ = [("n_tokens", ctypes.c_int32), ("token", ctypes.POINTER(ctypes.c_int32)),
                ("embd", ctypes.POINTER(ctypes.c_float)), ("pos", ctypes.POINTER(ctypes.c_int32)),
                ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
                ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))), ("logits", ctypes.POINTER(ctypes.c_int8))]


_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
#: llama.cpp's last words, which say what it did with the settings and why it failed.
_LOG: deque[str] = deque(maxlen=4000)


@_LogCallback
def _keep_log(_level, text, _data):
    _LOG.append(text.decode(errors="replace"))


def wheel_library() -> Path:
    """The library of the installed wheel."""
    import xllamacpp

    return next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))


@functools.cache
def _load(library: Path) -> ctypes.CDLL:
    lib = ctypes.CDLL(str(library))
    pointer, i32, text = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
    for name, result, arguments in (
            ("llama_log_set", None, [_LogCallback, pointer]),
            ("llama_model_default_params", _ModelParams, []),
            ("llama_context_default_params", _ContextParams, []),
            ("llama_model_load_from_file", pointer, [text, _ModelParams]),
            ("llama_init_from_model", pointer, [pointer, _ContextParams]),
            ("llama_free", None, [pointer]),
            ("llama_model_free", None, [pointer]),
            ("llama_n_ctx", ctypes.c_uint32, [pointer]),
            ("llama_model_get_vocab", pointer, [pointer]),
            ("llama_vocab_n_tokens", i32, [pointer]),
            ("llama_vocab_is_eog", ctypes.c_bool, [pointer, i32]),
            ("llama_tokenize", i32, [pointer, text, i32, ctypes.POINTER(i32), i32, ctypes.c_bool, ctypes.c_bool]),
            ("llama_detokenize", i32, [pointer, ctypes.POINTER(i32), i32, text, i32, ctypes.c_bool, ctypes.c_bool]),
            ("llama_get_memory", pointer, [pointer]),
            ("llama_memory_clear", None, [pointer, ctypes.c_bool]),
            ("llama_batch_init", _Batch, [i32, i32, i32]),
            ("llama_batch_free", None, [_Batch]),
            ("llama_decode", i32, [pointer, _Batch]),
            ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), [pointer, i32])):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    _check_defaults(lib.llama_context_default_params(), library)
    return lib


def _check_defaults(p: _ContextParams, library: Path):
    """The structure is as declared above: defaults that can be told from their neighbours are in their places."""
    found = (p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max, p.n_threads, p.flash_attn_type, p.rope_freq_base,
             p.yarn_ext_factor, p.type_k, p.type_v)
    expected = (512, 2048, 512, 1, 4, _FLASH_ATTENTION_AUTO, 0.0, -1.0, _F16_CACHE, _F16_CACHE)
    if found != expected:
        raise SystemExit(f"{library}: llama_context_params is laid out otherwise: {found}, expected {expected}")


class Llama:
    """One model with a context for one sequence: F32 cache, no flash attention, so that nothing is rounded on the way
    but what llama.cpp's products of weights and activations round."""

    def __init__(self, path: Path, n_ctx: int = 512, threads: int = 2, library: Path | None = None):
        self.lib = lib = _load(library or wheel_library())
        # Each time: a server started in between logs elsewhere.
        lib.llama_log_set(_keep_log, None)
        _LOG.clear()
        self.model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path}: {''.join(list(_LOG)[-6:])}")
        p = lib.llama_context_default_params()
        p.n_ctx = p.n_batch = p.n_ubatch = n_ctx
        p.n_outputs_max = p.n_outputs_max_per_seq = 0
        p.n_threads = p.n_threads_batch = threads
        p.type_k = p.type_v = F32_CACHE
        p.flash_attn_type = FLASH_ATTENTION_OFF
        self.context = lib.llama_init_from_model(self.model, p)
        if not self.context:
            raise RuntimeError(f"llama.cpp makes no context for {path}: {''.join(list(_LOG)[-6:])}")
        self._check_settings(n_ctx)
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.n_vocab = lib.llama_vocab_n_tokens(self.vocab)
        self.batch = lib.llama_batch_init(n_ctx, 0, 1)
        self.n_past = 0

    def _check_settings(self, n_ctx: int):
        """llama.cpp's own log says that the settings took effect."""
        log = "".join(_LOG)
        assert self.lib.llama_n_ctx(self.context) >= n_ctx
        for said in ("K (f32)", "V (f32)", "flash_attn            = disabled"):
            assert said in log, f"llama.cpp's log does not say '{said}':\n{log[-3000:]}"

    def close(self):
        self.lib.llama_batch_free(self.batch)
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text whose special tokens count as such; the vocabulary decides about a first BOS."""
        raw = text.encode()
        ids = (ctypes.c_int32 * (len(raw) + 8))()
        n = self.lib.llama_tokenize(self.vocab, raw, len(raw), ids, len(ids), True, True)
        assert n >= 0
        return list(ids[:n])

    def detokenize(self, ids: list[int], special: bool = False) -> str:
        """The text of ids, special tokens left out or written."""
        room = ctypes.create_string_buffer(64 * len(ids) + 64)
        given = (ctypes.c_int32 * len(ids))(*ids)
        n = self.lib.llama_detokenize(self.vocab, given, len(ids), room, len(room), not special, special)
        assert n >= 0
        return room.raw[:n].decode(errors="replace")

    def ends(self, token: int) -> bool:
        """Whether llama.cpp ends an answer at this token."""
        return self.lib.llama_vocab_is_eog(self.vocab, token)

    def clear(self):
        """Forgets the sequence."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        self.n_past = 0

    def feed(self, ids: list[int], last_only: bool = False) -> np.ndarray:
        """Appends tokens in one call; logits of each of them, or of the last alone: (n, n_vocab), f32."""
        b = self.batch
        b.n_tokens = len(ids)
        for i, token in enumerate(ids):
            b.token[i], b.pos[i], b.n_seq_id[i] = token, self.n_past + i, 1
            b.seq_id[i][0] = 0
            b.logits[i] = not last_only or i == len(ids) - 1
        status = self.lib.llama_decode(self.context, b)
        if status:
            raise RuntimeError(f"llama_decode: {status}: {''.join(list(_LOG)[-4:])}")
        self.n_past += len(ids)
        rows = [len(ids) - 1] if last_only else range(len(ids))
        return np.stack([np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, i), (self.n_vocab,)).copy()
                         for i in rows])

    def logits(self, ids: list[int], at_once: bool = True) -> np.ndarray:
        """Logits after each token of a fresh sequence, fed in one call or token by token."""
        self.clear()
        return self.feed(ids) if at_once else np.concatenate([self.feed([i]) for i in ids])

    def greedy(self, ids: list[int], n: int):
        """Yields up to n pairs of the most likely next token and its lead in logits over the second; the last is the
        end-of-generation token if one comes."""
        self.clear()
        for _ in range(n):
            row = self.feed(ids, last_only=True)[0]
            second, first = np.partition(row, -2)[-2:]
            token = int(row.argmax())
            yield token, float(first - second)
            if self.ends(token):
                return
            ids = [token]


def quantize(source: Path, target: Path, file_type: int, library: Path):
    """llama.cpp's own quantiser, with its defaults; the wheel's library has none."""
    lib = _load(library)
    lib.llama_model_quantize_default_params.restype = _QuantizeParams
    lib.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_QuantizeParams)]
    lib.llama_log_set(_keep_log, None)
    p = lib.llama_model_quantize_default_params()
    p.nthread, p.ftype = 1, int(file_type)
    if lib.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(p)):
        raise RuntimeError(f"llama.cpp does not quantise {source}: {''.join(list(_LOG)[-4:])}")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of each row, in f64."""
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))
