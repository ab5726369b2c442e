"""A stand-in for torch's CUDA graphs on a CPU: it records the operations on tensors, and replays them on the same ones.

As with a real graph, a replay runs no Python: what the captured function decides in Python, or reads from a tensor that
is made anew for every step, is fixed at the capture. Reading a value out of a tensor fails, as it does on CUDA.
"""

import contextlib
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorder(TorchDispatchMode):
    def __init__(self, graph, pool=None, capture_error_mode="global"):
        super().__init__()
        self.graph = graph
        graph.pool, graph.mode, graph.device = pool, capture_error_mode, StandInGraph.devices[-1]

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        result = operation(*args, **(kwargs or {}))
        self.graph.calls.append((operation, args, kwargs or {}, tree_leaves(result)))
        return result


class StandInGraph:
    """torch.cuda.CUDAGraph."""

    made = 0
    replays = 0
    all: list = []
    devices: list = []

    def __init__(self):
        StandInGraph.made += 1
        StandInGraph.all.append(self)
        self.calls = []

    def replay(self):
        StandInGraph.replays += 1
        for operation, args, kwargs, results in self.calls:
            for old, new in zip(results, tree_leaves(operation(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def install(monkeypatch):
    """Put the stand-in in place of what the capture uses of torch.cuda."""
    StandInGraph.made = StandInGraph.replays = 0
    StandInGraph.all, StandInGraph.devices = [], ["current"]

    @contextlib.contextmanager
    def device(chosen):
        StandInGraph.devices.append(chosen)
        yield
        StandInGraph.devices.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", StandInGraph)
    monkeypatch.setattr(torch.cuda, "graph", Recorder)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    return StandInGraph
