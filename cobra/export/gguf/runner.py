"""Answer questions about pictures with llama.cpp: `python answer.py photo.jpg "question"`.

This module goes along with an export, as `answer.py`; it needs xllamacpp beside the packages of `frontend.py`.
llama.cpp has no projector file for two towers: the graph of the towers makes image features, and llama.cpp takes them
as a batch of embeddings (`llama_batch.embd`) before the prompt's tokens. The bindings on PyPI with wheels for Linux
hand on no embeddings, so the functions of llama.h are called in xllamacpp's library, or in the one that the environment
variable `LLAMA_LIBRARY` names.
"""

import ctypes
import os
from collections.abc import Sequence
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_uint32, c_uint64, c_void_p
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from cobra.export.onnx.frontend import MAX_NEW_TOKENS, FrontendRunner, main

# Positions that llama.cpp reads at once.
_BATCH = 512


# Larger than the parameters of any release of llama.cpp: a structure that is handed over in memory may be too long.
_PARAMETERS = 256


class _ModelParameters(ctypes.Structure):
    """`llama_model_params`, used as it comes."""

    _fields_ = [("content", c_uint64 * _PARAMETERS)]


class _ContextParameters(ctypes.Structure):
    """`llama_context_params`: the fields that are set, which come first, and the rest as it comes."""

    _fields_ = [(name, c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max")] + [
        ("content", c_uint64 * _PARAMETERS)
    ]


class _Batch(ctypes.Structure):
    """`llama_batch`."""

    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)


@_LogCallback
def _silent(level: int, text: bytes, data: int) -> None:
    """Drop a message of llama.cpp."""


def _library() -> Any:
    """Open llama.cpp with the types of the functions that are called.

    Raises:
        ImportError: Neither xllamacpp is installed nor another library named.
        ValueError: The library that is named cannot be opened.
    """
    path = os.environ.get("LLAMA_LIBRARY")
    if not path:
        # Its package is not needed where another library is named.
        path = import_module("xllamacpp.xllamacpp").__file__
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise ValueError(f"{error}: LLAMA_LIBRARY must name the file of llama.cpp's library") from error
    functions = {
        "llama_log_set": (None, _LogCallback, c_void_p),
        "llama_backend_init": (None,),
        "llama_model_default_params": (_ModelParameters,),
        "llama_context_default_params": (_ContextParameters,),
        "llama_model_load_from_file": (c_void_p, c_char_p, _ModelParameters),
        "llama_init_from_model": (c_void_p, c_void_p, _ContextParameters),
        "llama_set_n_threads": (None, c_void_p, c_int32, c_int32),
        "llama_get_memory": (c_void_p, c_void_p),
        "llama_memory_clear": (None, c_void_p, c_bool),
        "llama_decode": (c_int32, c_void_p, _Batch),
        "llama_get_logits_ith": (POINTER(c_float), c_void_p, c_int32),
        "llama_free": (None, c_void_p),
        "llama_model_free": (None, c_void_p),
    }
    for name, (result, *arguments) in functions.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_log_set(_silent, None)
    library.llama_backend_init()
    return library


class Runner(FrontendRunner):
    """An exported model on llama.cpp; rows are answered one after the other."""

    def __init__(
        self, folder: Path | str, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        """See :class:`cobra.export.onnx.frontend.FrontendRunner`."""
        super().__init__(folder, threads, providers)
        self._lib, path = _library(), self._folder / "model.gguf"
        self._model = self._lib.llama_model_load_from_file(os.fsencode(path), self._lib.llama_model_default_params())
        if not self._model:
            raise ValueError(f"llama.cpp cannot read {path}: it is missing or damaged")
        inputs, parameters = self.frontend.inputs, self._lib.llama_context_default_params()
        parameters.n_ctx = inputs["images"]["positions"] + inputs["max_text_length"] + MAX_NEW_TOKENS
        parameters.n_batch = parameters.n_ubatch = _BATCH
        self._context = self._lib.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise ValueError(f"llama.cpp cannot run {path}")
        if threads:
            self._lib.llama_set_n_threads(self._context, threads, threads)

    def close(self) -> None:
        """Release the memory of llama.cpp; the runner cannot be used afterwards."""
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def write(
        self, features: np.ndarray | None, prompts: Sequence[Sequence[int]], max_new_tokens: int = MAX_NEW_TOKENS
    ) -> tuple[list[list[int]], np.ndarray]:
        """See :meth:`FrontendRunner.write`."""
        answers, first = [], []
        for row, prompt in enumerate(prompts):
            self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
            position = 0
            if features is not None:
                self._read(features[row], position)
                position += features.shape[1]
            scores = self._read(prompt, position)
            position += len(prompt)
            first.append(scores)
            answer = [int(scores.argmax())]
            while answer[-1] != self.frontend.end and len(answer) < max_new_tokens:
                answer.append(int(self._read(answer[-1:], position).argmax()))
                position += 1
            answers.append(answer)
        return answers, np.stack(first)

    def _read(self, values: Sequence[int] | np.ndarray, position: int) -> np.ndarray:
        """Read tokens (n,), or embeddings (n, d_model) float32; return the next scores (vocabulary,)."""
        for start in range(0, len(values), _BATCH):
            self._decode(values[start : start + _BATCH], position + start)
        scores = self._lib.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(scores, (self.frontend.inputs["vocabulary"],)).copy()

    def _decode(self, values: Sequence[int] | np.ndarray, position: int) -> None:
        count = len(values)
        sequence = (c_int32 * 1)(0)
        batch = _Batch(
            n_tokens=count,
            pos=(c_int32 * count)(*range(position, position + count)),
            n_seq_id=(c_int32 * count)(*[1] * count),
            seq_id=(POINTER(c_int32) * count)(*[ctypes.cast(sequence, POINTER(c_int32))] * count),
            logits=(c_int8 * count)(*[0] * (count - 1), 1),
        )
        if isinstance(values, np.ndarray):
            content = np.ascontiguousarray(values, np.float32)
            batch.embd = content.ctypes.data_as(POINTER(c_float))
        else:
            batch.token = (c_int32 * count)(*values)
        code = self._lib.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama.cpp cannot read {count} positions: llama_decode returns {code}")


if __name__ == "__main__":
    main(Runner)
