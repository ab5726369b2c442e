"""Compile kernels once for a machine, and run them on PyTorch's threads."""

import ctypes
import hashlib
import logging
import os
import stat
import threading
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import types

from cobra.models.mamba.ops.numba_lanes import fetch_add
from cobra.util.cache import cache_folders, takes_files
from cobra.util.waiting import say_once, tell_waiting

logger = logging.getLogger(__name__)

# What every kernel's arguments begin with: where they lie, how many tasks there are, what was given out already.
_COMMON = ("itself", "tasks", "given_tasks", "given_slots")
_WORD = 8
_COMPILING = "compiling Mamba's loops for this processor, once"
_compiling = threading.Lock()


@numba.njit
def next_task(job: Any) -> int:
    """Take a task: a number that no other thread gets, or -1 where none is left."""
    task = fetch_add(job.itself + 2 * _WORD, 1)
    return task if task < job.tasks else -1


@numba.njit
def next_slot(job: Any) -> int:
    """Take a number below the number of threads, for memory of a thread's own."""
    return fetch_add(job.itself + 3 * _WORD, 1)


class Kernel:
    """A function of one argument, the address of its arguments; compiled when it is first run, or read from the cache.

    Its arguments are named int64 numbers, the same names in every run; inside they are the attributes of
    `carray(pointer, 1)[0]`.
    """

    def __init__(self, function: Callable[[Any], None]) -> None:
        self._function = function
        self._fields: list[str] = []
        self._start: Any = None

    def run(self, tasks: int, threads: int, values: dict[str, int]) -> None:
        """Do tasks 0 to `tasks` - 1, which :func:`next_task` gives out, on at most `threads` threads; wait for all."""
        if tasks == 0:
            return
        if self._start is None:
            with _compiling:
                if self._start is None:
                    # Sorted: the cache knows compiled code by its arguments' order.
                    self._fields = sorted(values)
                    self._start = _compile(self._function, [*_COMMON, *self._fields])
        words = array("q", [0, tasks, 0, 0, *[values[name] for name in self._fields]])
        address = words[0] = words.buffer_info()[0]
        threads = min(threads, tasks)
        if threads == 1:
            self._start(address)
        else:
            _on_threads()(self._start, address, threads)


def _compile(function: Callable[[Any], None], fields: list[str]) -> Any:
    """Return the compiled function; calling it releases the interpreter's lock."""
    record = numba.from_dtype(np.dtype([(name, np.int64) for name in fields]))
    kind = types.void(types.CPointer(record))
    compiled: Any = None
    folder = _cache_folder()
    if folder is not None:
        # Numba takes the folder when a function is made, and only then.
        settings: Any = numba.config
        before, settings.CACHE_DIR = settings.CACHE_DIR, str(folder)
        try:
            with tell_waiting(_COMPILING, say_once):
                compiled = numba.cfunc(kind, cache=True, error_model="numpy")(function)
        except OSError as error:
            # A disk that is full.
            logger.warning("compiled loops of Mamba are not kept for the next run: %s", error)
        finally:
            settings.CACHE_DIR = before
    if compiled is None:
        with tell_waiting(_COMPILING, say_once):
            compiled = numba.cfunc(kind, error_model="numpy")(function)
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(compiled.address)


@cache
def _cache_folder() -> Path | None:
    """Return a folder for code compiled of this version of the sources, or None where none takes files."""
    # Numba itself looks only at the file of the compiled function, and would keep what another file has made stale.
    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("numba_*.py")):
        sources.update(path.read_bytes())
    given = os.environ.get("NUMBA_CACHE_DIR")
    for parent in [Path(given)] if given else (folder / "numba" for folder in cache_folders()):
        folder = parent / sources.hexdigest()[:16]
        if takes_files(folder) and not _is_of_others(folder):
            return folder
    logger.warning(
        "no folder of this user's alone takes the compiled loops of Mamba: each process compiles them, some seconds"
    )
    return None


def _is_of_others(folder: Path) -> bool:
    """Return True if somebody else may have put files into a folder; numba unpickles and runs what it finds."""
    status = folder.stat()
    return status.st_uid != os.getuid() or bool(status.st_mode & stat.S_IWOTH)


@cache
def _on_threads() -> Callable[[Any, int, int], None]:
    """Return a function that calls a kernel on several threads: of PyTorch's OpenMP, or Python's where it has none."""
    # Of one pool, so that two do not spin for one set of cores; numba's own does not survive callers at the same time.
    try:
        # Loaded already, by torch, and of any vendor: GNU's, LLVM's and Intel's library all have it.
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError):
        return _on_python_threads
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    return lambda start, address, threads: parallel(start, address, threads, 0)


def _on_python_threads(start: Any, address: int, threads: int) -> None:
    with ThreadPoolExecutor(threads - 1) as pool:
        for _ in range(threads - 1):
            pool.submit(start, address)
        start(address)
