"""The decode step on CUDA as a captured graph: a step of 64 blocks is a thousand small kernels, launched at once.

A graph has a fixed number of rows and works on buffers of its own: tokens in, the state updated in place, scores out.
So there is one graph for each bucket of batch sizes, captured when first needed and kept with its model; rows beyond
those that are there hold whatever was left in them, and reach no other row. When rows leave and the rest fits a smaller
bucket, their states move to its buffers.
"""

import logging
import os
from collections import defaultdict
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from cobra.models.generation.decoder import Decoder, read_tokens
from cobra.models.mamba import MambaLM, MambaState
from cobra.models.mamba.ops import ops_for

logger = logging.getLogger(__name__)

# Beyond the last bucket a step is bound by its kernels and not by their launches, and its buffers would be large.
BUCKETS = (1, 2, 4, 8, 16, 32, 64)

# `0` in this variable turns captured graphs off.
VARIABLE = "COBRA_CUDA_GRAPH"

# Before a capture: kernels are compiled and chosen, and libraries make their workspaces, at the first calls.
_WARM_UP_STEPS = 2

# Captures of a model that may fail: whatever broke one of them, as the end of another thread's work, may be over.
_ATTEMPTS = 2


def bucket_of(rows: int) -> int | None:
    """Return the smallest bucket that holds so many rows, or None beyond the last."""
    return next((bucket for bucket in BUCKETS if bucket >= rows), None)


class CapturedStep:
    """One step of a fixed number of rows.

    tokens: (rows,) int64, to be filled before :meth:`replay`.
    state: State of the rows; a replay updates it in place.
    scores: (rows, vocabulary) fp32, overwritten by every replay.
    """

    def __init__(self, llm: MambaLM, rows: int, device: torch.device, pool: Any = None) -> None:
        """Capture a step on the model's device, whichever is the current one.

        Args:
            llm: The model.
            rows: Their number.
            device: The model's.
            pool: Memory that graphs of the model share; None is the graph's own.
        """
        # Buffers that were made in inference mode could not be written outside.
        with torch.cuda.device(device), torch.inference_mode(False), torch.no_grad():
            self.tokens = torch.zeros(rows, dtype=torch.long, device=device)
            self.state = MambaState.zeros(llm.config, rows, device)
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP_STEPS):
                    read_tokens(llm, self.tokens, self.state)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Of this thread alone: the default lets an allocation by any other thread break the capture.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self.scores = read_tokens(llm, self.tokens, self.state)
            self.replay = graph.replay


class _Steps:
    """The graphs of one model that no decoder is using, by bucket; they hold while operations and weights are these.

    All of them share one pool of memory: they are replayed one after the other, and what a step needs in between is of
    no use after it. Rows only ever leave, so the largest bucket is captured first and the others fit what it took.
    """

    def __init__(self) -> None:
        self.holds_for: tuple[object, ...] = ()
        self.free: dict[int, list[CapturedStep]] = defaultdict(list)
        self.pool: Any = None
        self.failures = 0

    @property
    def failed(self) -> bool:
        """True where captures have failed too often to be tried again."""
        return self.failures >= _ATTEMPTS


_steps: WeakKeyDictionary[MambaLM, _Steps] = WeakKeyDictionary()


def can_capture(llm: MambaLM) -> bool:
    """Return True if a model's step may be captured: whole weights that stay in place, and no veto."""
    graphs = _steps.setdefault(llm, _Steps())
    if graphs.failed or os.environ.get(VARIABLE) == "0" or llm.training or torch.is_autocast_enabled("cuda"):
        return False
    parameters = list(llm.parameters())
    if any(isinstance(parameter, DTensor) for parameter in parameters):
        return False
    # A graph reads the addresses that it was captured with: after `to` or a load by assignment they are others.
    holds_for = (ops_for(parameters[0].device), *(parameter.data_ptr() for parameter in parameters))
    if holds_for != graphs.holds_for:
        graphs.holds_for = holds_for
        # A new dict: graphs in use are returned to the old one, and forgotten with it.
        graphs.free = defaultdict(list)
    return True


class GraphDecoder(Decoder):
    """A :class:`Decoder` whose steps are replayed graphs; with more rows than the last bucket it is a plain one."""

    def __init__(self, llm: MambaLM, state: MambaState) -> None:
        super().__init__(llm, state)
        self._free = _steps[llm].free
        self._step: CapturedStep | None = None
        self._bucket: int | None = None
        self._load_state(state)

    @property
    def state(self) -> MambaState:
        """See :attr:`Decoder.state`."""
        return self._state if self._step is None else self._step.state.rows(slice(self._rows))

    def read(self, tokens: Tensor) -> Tensor:
        """See :meth:`Decoder.read`."""
        if self._step is None:
            return super().read(tokens)
        self._step.tokens[: self._rows] = tokens
        self._step.replay()
        return self._step.scores[: self._rows]

    def keep(self, rows: Tensor) -> None:
        """See :meth:`Decoder.keep`."""
        self._load_state(self.state.select(rows))

    def join(self, state: MambaState) -> None:
        """See :meth:`Decoder.join`."""
        self._load_state(MambaState.join([self.state, state]))

    def close(self) -> None:
        """Return the graph for the next decoder of the model."""
        if self._step is not None and self._bucket is not None:
            self._free[self._bucket].append(self._step)
        self._step = self._bucket = None

    def _load_state(self, state: MambaState) -> None:
        """Write the state into the buffers of its bucket."""
        bucket = bucket_of(state.batch_size)
        if bucket != self._bucket:
            # First: after an error the decoder goes on as it was.
            step = self._borrow_graph(bucket, state.device)
            self.close()
            self._bucket, self._step = bucket, step
        self._rows = state.batch_size
        if self._step is None:
            self._state = state
        else:
            self._step.state.write(slice(self._rows), state)

    def _borrow_graph(self, bucket: int | None, device: torch.device) -> CapturedStep | None:
        """Return a free graph, captured if there is none; None where it cannot be captured."""
        graphs = _steps[self._llm]
        if bucket is None or graphs.failed:
            return None
        if self._free[bucket]:
            return self._free[bucket].pop()
        graphs.pool = torch.cuda.graph_pool_handle() if graphs.pool is None else graphs.pool
        while True:
            try:
                return CapturedStep(self._llm, bucket, device, graphs.pool)
            except RuntimeError as error:
                # A pool that a capture has left half used is of no use to the next.
                graphs.failures, graphs.pool = graphs.failures + 1, torch.cuda.graph_pool_handle()
                if graphs.failed:
                    logger.warning("The decode step cannot be captured as a CUDA graph, so it runs without: %s", error)
                    return None


def open_decoder(llm: MambaLM, state: MambaState) -> Decoder:
    """Return the fastest decoder for a model in evaluation mode: captured graphs on CUDA if possible, or a plain one.

    The rows' state is the decoder's own from now on, and changed in place.
    """
    graphs = state.device.type == "cuda" and can_capture(llm)
    return GraphDecoder(llm, state) if graphs else Decoder(llm, state)
