"""Devices, dtypes and seeds; what other machines have is stood in for."""

import random

import numpy as np
import pytest
import torch

from cobra.util.errors import UserError
from cobra.util.torch_utils import DTYPES, resolve_device, resolve_dtype, set_global_seed


@pytest.fixture
def machine(monkeypatch):
    """Pretend to have a number of CUDA devices, or Metal."""

    def pretend(cuda=0, mps=False):
        monkeypatch.setattr("torch.cuda.is_available", lambda: cuda > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: cuda)
        monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(0, False, "cpu"), (0, True, "mps"), (2, False, "cuda"), (1, True, "cuda")]
)
def test_the_best_device_at_hand(machine, cuda, mps, expected):
    machine(cuda, mps)
    assert resolve_device() == torch.device(expected)
    assert resolve_device(None) == torch.device(expected)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", "mps", torch.device("cpu")])
def test_a_device_that_is_there(machine, device):
    machine(cuda=2, mps=True)
    assert resolve_device(device) == torch.device(device)


BAD_DEVICES = {
    "warp": ("'warp' is not a device", "cuda, cuda:N, mps, cpu"),
    "": ("'' is not a device", "cpu"),
    "cuda:x": ("'cuda:x' is not a device", "cpu"),
    "cuda": ("'cuda'", "--device cpu"),
    "cuda:0": ("'cuda:0'", "--device cpu"),
    "mps": ("'mps'", "--device cpu"),
    "xpu": ("'xpu' is not supported", "cuda, cuda:N, mps, cpu"),
    "meta": ("'meta' is not supported", "cpu"),
}


@pytest.mark.parametrize("device", BAD_DEVICES)
def test_a_device_that_is_not_there(machine, device):
    machine()
    with pytest.raises(UserError) as error:
        resolve_device(device)
    for expected in BAD_DEVICES[device]:
        assert expected in str(error.value)


def test_an_index_beyond_the_last_device(machine):
    machine(cuda=2)
    with pytest.raises(UserError, match="'cuda:2' was asked for, but there are 2"):
        resolve_device("cuda:2")


@pytest.mark.parametrize(("device", "expected"), [("cpu", "float32"), ("mps", "float16"), ("cuda", "bfloat16")])
def test_the_default_dtype_of_a_device(device, expected):
    assert resolve_dtype(None, torch.device(device)) == getattr(torch, expected)


def test_dtypes_by_name():
    cpu = torch.device("cpu")
    assert {name: resolve_dtype(name, cpu) for name in DTYPES} == DTYPES
    assert resolve_dtype("bf16", cpu) == resolve_dtype(torch.bfloat16, cpu) == torch.bfloat16


@pytest.mark.parametrize("name", ["int8", "half precision", ""])
def test_an_unknown_dtype_lists_the_known_ones(name):
    with pytest.raises(UserError) as error:
        resolve_dtype(name, torch.device("cpu"))
    assert repr(name) in str(error.value)
    assert ", ".join(DTYPES) in str(error.value)


@pytest.mark.parametrize("seed", [7, 2**32 + 7])
def test_a_seed_fixes_every_source(seed):
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    set_global_seed(seed)
    first = draw()
    assert draw() != first
    set_global_seed(seed)
    assert draw() == first
