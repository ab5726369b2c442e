"""Which operations are used: by device, by name, and what is said where they are not there."""

import logging
import sys

import pytest
import torch

from cobra.models import mamba
from cobra.models.mamba import ops as choice
from cobra.models.mamba.ops import cuda_ops, ops_for, torch_ops, use_op
from cobra.util.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture(autouse=True)
def unnamed(monkeypatch):
    """Nothing is named, and nothing was tried or said before."""
    monkeypatch.delenv(choice.VARIABLE, raising=False)
    tried = (choice._named, choice._fastest)
    for function in tried:
        function.cache_clear()
    yield
    for function in tried:
        function.cache_clear()


@pytest.fixture
def without_numba(monkeypatch):
    monkeypatch.setattr(choice, "find_spec", lambda name: None)


def test_on_the_cpu_numba_is_used_where_it_is_installed():
    pytest.importorskip("numba")
    assert ops_for(CPU).__name__.endswith(".numba_ops")


def test_without_numba_pytorch_is_used_and_nothing_said(without_numba, caplog):
    assert ops_for(CPU) is torch_ops
    assert not caplog.records


def test_a_numba_that_does_not_work_is_told_once(monkeypatch, caplog):
    monkeypatch.setattr(choice, "find_spec", lambda name: True)
    monkeypatch.setattr(choice, "_numba_failure", lambda: "ImportError: Numba needs NumPy 2.3 or less")
    with caplog.at_level(logging.WARNING):
        assert ops_for(CPU) is torch_ops
        assert ops_for(CPU) is torch_ops
    [record] = caplog.records
    assert "Numba needs NumPy 2.3 or less" in record.message
    assert "pip install --upgrade 'cobra-vlm[fast]'" in record.message


def test_a_module_that_cannot_be_imported_is_a_reason(monkeypatch):
    monkeypatch.delitem(sys.modules, "cobra.models.mamba.ops.numba_ops", raising=False)
    monkeypatch.delattr(choice, "numba_ops", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in [name for name in sys.modules if name.startswith("cobra.models.mamba.ops.numba_")]:
        monkeypatch.delitem(sys.modules, name)
    assert choice._numba_failure().startswith("ModuleNotFoundError: ")


def test_cuda_kernels_that_do_not_work_are_told_once(monkeypatch, caplog):
    monkeypatch.setattr(cuda_ops, "failure", lambda index: "RuntimeError: no kernel image")
    with caplog.at_level(logging.WARNING):
        assert ops_for(CUDA) is torch_ops
        assert ops_for(CUDA) is torch_ops
    [record] = caplog.records
    assert "do not work on cuda:0 (RuntimeError: no kernel image)" in record.message


def test_cuda_kernels_are_used_where_they_work(monkeypatch):
    monkeypatch.setattr(cuda_ops, "failure", lambda index: None)
    assert ops_for(CUDA) is cuda_ops
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert ops_for(torch.device("cuda")) is cuda_ops


@torch.no_grad()
def test_the_cpu_works_with_mamba_ssm_installed(monkeypatch, tmp_path):
    """Transformers would hand tensors of the CPU to its kernels, which raise."""
    for name in ("mamba_ssm", "causal_conv1d"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a kernel of CUDA was imported on the CPU')\n")
    monkeypatch.syspath_prepend(tmp_path)
    cuda_ops.kernels.cache_clear()
    monkeypatch.setattr(cuda_ops, "failure", lambda index: None)
    lm = mamba.MambaLM(mamba.MambaConfig(d_model=16, n_layer=1, vocab_size=8))
    assert lm(torch.randn(1, 3, 16)).isfinite().all()
    lm(torch.randn(1, 3, 16), mamba.MambaState.zeros(lm.config, 1, "cpu"))


@pytest.mark.parametrize("by", ["variable", "code"])
def test_what_is_named_is_used(by, monkeypatch):
    if by == "variable":
        monkeypatch.setenv(choice.VARIABLE, "torch")
        assert ops_for(CPU) is ops_for(CUDA) is torch_ops
        return
    with use_op("torch"):
        assert ops_for(CPU) is torch_ops
        # Code goes before the variable, and the inner before the outer.
        monkeypatch.setenv(choice.VARIABLE, "nonsense")
        assert ops_for(CUDA) is torch_ops
    with pytest.raises(
        UserError,
        match="COBRA_MAMBA_OP: the kind of Mamba's operations 'nonsense' is unknown; the known ones are: torch, nu",
    ):
        ops_for(CPU)


def test_the_inner_name_goes_before_the_outer():
    pytest.importorskip("numba")
    with use_op("torch"):
        with use_op("numba"):
            assert ops_for(CPU).__name__.endswith(".numba_ops")
        assert ops_for(CPU) is torch_ops


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("numba", r"use_op numba needs the package numba, .*: pip install 'cobra-vlm\[fast\]'"),
        ("cuda", r"use_op cuda needs the package mamba-ssm, .*: pip install 'cobra-vlm\[cuda\]'"),
        ("tpu", "use_op: the kind of Mamba's operations 'tpu' is unknown; the known ones are: torch, numba, cuda"),
    ],
)
def test_names_that_are_not_there_are_refused(without_numba, name, words):
    with pytest.raises(UserError, match=words), use_op(name):
        pass


@pytest.mark.parametrize(("name", "device"), [("numba", CUDA), ("cuda", CPU)])
def test_operations_of_another_device_are_refused(monkeypatch, name, device):
    monkeypatch.setattr(choice, "find_spec", lambda name: True)
    monkeypatch.setenv(choice.VARIABLE, name)
    with pytest.raises(UserError, match=rf"'{name}' of Mamba, which are for tensors on \w+, and one is on {device}"):
        ops_for(device)


@pytest.mark.parametrize(("name", "device"), [("numba", CPU), ("cuda", CUDA)])
def test_the_reason_why_a_named_one_does_not_work_is_told(monkeypatch, name, device):
    monkeypatch.setattr(choice, "find_spec", lambda name: True)
    monkeypatch.setattr(choice, "_numba_failure", lambda: "OSError: broken")
    monkeypatch.setattr(cuda_ops, "failure", lambda index: "OSError: broken")
    monkeypatch.setenv(choice.VARIABLE, name)
    with pytest.raises(UserError, match=f"names the operations '{name}' of Mamba, which do not work here: OSError: br"):
        ops_for(device)
