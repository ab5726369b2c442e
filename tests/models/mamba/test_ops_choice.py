"""Which operations are used: by device, by name, and what is said where they are not there."""

import importlib
import inspect
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from test_mamba_ops import get_ops

from cobra.models import mamba
from cobra.models.mamba import ops as choice
from cobra.models.mamba.ops import cuda_ops, ops_for, torch_ops, use_op
from cobra.models.mamba.ops.fallback import WithPyTorch
from cobra.models.mamba.ops.probe import compare, probe
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


def test_gpu_kernels_that_do_not_work_are_told_once(monkeypatch, caplog):
    monkeypatch.setattr(choice, "gpu_failure", lambda index: "RuntimeError: no kernel image")
    with caplog.at_level(logging.WARNING):
        assert ops_for(CUDA) is torch_ops
        assert ops_for(CUDA) is torch_ops
    [record] = caplog.records
    assert record.message == (
        "The Triton kernels of Mamba do not work on cuda:0 (RuntimeError: no kernel image); slower PyTorch operations "
        "are used. COBRA_MAMBA_OP=torch does not try them"
    )


def test_gpu_kernels_are_used_where_they_work(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(choice, "gpu_failure", lambda index: None)
    assert ops_for(CUDA).__name__.endswith(".triton_ops")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert ops_for(torch.device("cuda")) is ops_for(CUDA)


def test_without_triton_one_sentence_says_so(without_numba, caplog):
    with caplog.at_level(logging.WARNING):
        assert ops_for(CUDA) is ops_for(CUDA) is torch_ops
    [record] = caplog.records
    assert "(Triton is not installed; PyTorch's wheels for Linux with CUDA or ROCm bring it)" in record.message


def test_a_triton_that_cannot_be_imported_is_a_reason(monkeypatch):
    def broken():
        raise AttributeError("module 'triton' has no attribute 'jit'")

    monkeypatch.setattr(choice, "find_spec", lambda name: True)
    monkeypatch.setattr(choice, "_triton", broken)
    assert choice.gpu_failure(0) == "AttributeError: module 'triton' has no attribute 'jit'"


class TestFailure:
    """Why Triton's operations cannot be used."""

    @pytest.fixture
    def triton_ops(self, monkeypatch):
        pytest.importorskip("triton")
        from cobra.models.mamba.ops import triton_ops

        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setenv("CC", "gcc")
        triton_ops.failure.cache_clear()
        yield triton_ops
        triton_ops.failure.cache_clear()

    def test_none_where_the_probe_finds_none(self, triton_ops, monkeypatch):
        monkeypatch.setattr(triton_ops, "probe", lambda ops, device: None)
        assert triton_ops.failure(0) is None

    def test_an_old_version(self, triton_ops, monkeypatch):
        monkeypatch.setattr(triton_ops.triton, "__version__", "3.1.0")
        assert triton_ops.failure(0) == "Triton is 3.1.0, and at least 3.7 is needed"

    def test_an_old_card(self, triton_ops, monkeypatch):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
        assert triton_ops.failure(0) == "Tesla V100 has compute capability 7.0, and Triton needs at least 7.5"

    @pytest.mark.parametrize("compiler", [None, "/usr/bin/gcc"])
    def test_no_compiler(self, triton_ops, monkeypatch, compiler):
        def probe(ops, device):
            raise RuntimeError("Failed to find C compiler.")

        monkeypatch.setattr(triton_ops, "probe", probe)
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(triton_ops.shutil, "which", lambda name: compiler)
        reason = triton_ops.failure(0)
        if compiler is None:
            assert reason == "Triton needs a C compiler for its first launch: install gcc or clang, or name one in CC"
        else:
            assert reason == "RuntimeError: Failed to find C compiler."

    def test_no_headers(self, triton_ops, monkeypatch):
        def probe(ops, device):
            raise subprocess.CalledProcessError(1, ["/usr/bin/gcc", "/tmp/cuda_utils.c", "-O3"])

        monkeypatch.setattr(triton_ops, "probe", probe)
        assert triton_ops.failure(0) == (
            "Triton could not compile its driver: Python's headers may be missing (apt install python3-dev)"
        )

    def test_other_numbers(self, triton_ops):
        right = {"y": torch.tensor([1.0, -2.0]), "last": torch.ones(2)}
        assert compare(right, right) is None
        assert compare(right | {"last": torch.tensor([1.0, 1.1])}, right) == (
            "they compute other numbers than PyTorch's operations (last is off by 1.0e-01 of its largest)"
        )
        assert compare(right | {"y": torch.tensor([float("nan"), 1.0])}, right) is not None


def test_the_probe_finds_the_vendors_kernels_right_and_others_wrong(monkeypatch):
    """It runs everything in bf16, with gradients; here on the CPU, by stand-ins."""
    ops = get_ops("cuda with stand-ins", monkeypatch)
    assert probe(ops, CPU) is None
    monkeypatch.setattr(ops, "selective_scan_step", lambda u, *others: torch.zeros_like(u))
    assert probe(ops, CPU) == (
        "they compute other numbers than PyTorch's operations (state is off by 1.0e+00 of its largest)"
    )


@pytest.mark.parametrize("name", ["numba_ops", "triton_ops", "cuda_ops"])
def test_all_operations_have_one_form(name):
    pytest.importorskip({"numba_ops": "numba", "triton_ops": "triton", "cuda_ops": "torch"}[name])
    module = importlib.import_module(f"cobra.models.mamba.ops.{name}")
    functions = [name for name in vars(choice.Ops) if not name.startswith("_") and callable(getattr(torch_ops, name))]
    assert functions == ["add_norm", "causal_conv", "causal_conv_step", "selective_scan", "selective_scan_step"]
    for function in functions:
        assert inspect.signature(getattr(module, function)) == inspect.signature(getattr(torch_ops, function))
    for optional in ("inner", "block_step"):
        assert getattr(module, optional) is None or callable(getattr(module, optional))


def refusing(*args, **kwargs):
    raise UserError("the kernels know 16 states a channel, not 5")


@pytest.mark.parametrize("name", ["add_norm", "causal_conv", "causal_conv_step", "selective_scan", "block_step"])
def test_inputs_that_kernels_refuse_go_to_pytorch_and_a_warning_says_so_once(name, caplog):
    names = ("add_norm", "causal_conv", "causal_conv_step", "selective_scan", "selective_scan_step", "block_step")
    ops = WithPyTorch(SimpleNamespace(__name__="refusing", **dict.fromkeys(names, refusing)))
    inputs = {
        "add_norm": (torch.ones(2, 3), None, torch.ones(3), 1e-5, torch.float32),
        "causal_conv": (torch.ones(2, 5, 3), torch.ones(3, 4), None, None),
        "causal_conv_step": (torch.ones(2, 3), torch.ones(3, 4), None, torch.ones(2, 3, 4)),
        "selective_scan": (*(torch.ones(2, 5, 3),) * 2, torch.ones(3, 4), *(torch.ones(2, 5, 4),) * 2, torch.ones(3),
                           torch.ones(2, 5, 3), torch.ones(3), None, None),
        "block_step": (None, None, torch.ones(2, 1, 3), None, {}),
    }  # fmt: skip
    with caplog.at_level(logging.WARNING):
        results = [getattr(ops, name)(*inputs[name]) for _ in range(2)]
    [record] = caplog.records
    assert record.message == "Slower PyTorch operations are used: the kernels know 16 states a channel, not 5"
    assert results == [None, None] or all(torch.is_tensor(out[0]) for out in results)


@torch.no_grad()
def test_the_cpu_works_with_mamba_ssm_installed(monkeypatch, tmp_path):
    """Transformers would hand tensors of the CPU to its kernels, which raise."""
    for name in ("mamba_ssm", "causal_conv1d"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a kernel of CUDA was imported on the CPU')\n")
    monkeypatch.syspath_prepend(tmp_path)
    cuda_ops.kernels.cache_clear()
    monkeypatch.setattr(choice, "gpu_failure", lambda index: None)
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
        ("triton", "use_op triton needs Triton, which PyTorch's wheels for Linux with CUDA or ROCm bring"),
        ("cuda", r"use_op cuda needs the package mamba-ssm, .*: pip install 'cobra-vlm\[cuda\]'"),
        (
            "tpu",
            "use_op: the kind of Mamba's operations 'tpu' is unknown; the known ones are: torch, numba, triton, cuda",
        ),
    ],
)
def test_names_that_are_not_there_are_refused(without_numba, name, words):
    with pytest.raises(UserError, match=words), use_op(name):
        pass


@pytest.mark.parametrize(("name", "device"), [("numba", CUDA), ("triton", CPU), ("cuda", CPU)])
def test_operations_of_another_device_are_refused(monkeypatch, name, device):
    monkeypatch.setattr(choice, "find_spec", lambda name: True)
    monkeypatch.setenv(choice.VARIABLE, name)
    with pytest.raises(UserError, match=rf"'{name}' of Mamba, which are for tensors on \w+, and one is on {device}"):
        ops_for(device)


@pytest.mark.parametrize(("name", "device"), [("numba", CPU), ("triton", CUDA), ("cuda", CUDA)])
def test_the_reason_why_a_named_one_does_not_work_is_told(monkeypatch, name, device):
    monkeypatch.setattr(choice, "find_spec", lambda name: True)
    monkeypatch.setattr(choice, "_numba_failure", lambda: "OSError: broken")
    monkeypatch.setattr(choice, "gpu_failure", lambda index: "OSError: broken")
    monkeypatch.setattr(cuda_ops, "failure", lambda index: "OSError: broken")
    monkeypatch.setenv(choice.VARIABLE, name)
    with pytest.raises(UserError, match=f"names the operations '{name}' of Mamba, which do not work here: OSError: br"):
        ops_for(device)
