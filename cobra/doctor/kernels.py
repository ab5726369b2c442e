"""Trial of Mamba's kernels on the GPUs of this machine, each in a process of its own."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from cobra.doctor.finding import Finding

_DEVICES = ("/dev/nvidia0", "/dev/kfd")
# Compiling takes up to a minute at the first launch.
_WAIT_SECONDS = 180
_NEEDS = (
    "PyTorch's wheels for Linux with CUDA or ROCm bring Triton; its first launch needs a C compiler: apt install gcc"
)
_TRIAL = """
import sys

import torch

from cobra.models.mamba import MambaConfig, MambaLM
from cobra.models.mamba.ops import ops_for
torch.manual_seed(0)
model = MambaLM(MambaConfig(d_model=64, n_layer=1, vocab_size=64)).eval()
inputs = torch.randn(1, 16, 64)
with torch.inference_mode():
    expected = model(inputs)
    error = (model.cuda()(inputs.cuda()).cpu() - expected).abs().max().item()
print(ops_for(torch.device("cuda")).__name__.rpartition(".")[2], torch.cuda.get_device_name(), f"{error:.1e}")
sys.exit(error > 1e-2)
"""


def examine_kernels() -> Iterator[Finding]:
    """Yield the findings about the kernels that this machine would run: tried on a GPU, named on a CPU."""
    if find_spec("numba") is None:
        remedy = "pip install 'cobra-vlm[fast]'"
        yield Finding("cpu kernels", "note", "PyTorch's operations; compiled ones are several times faster", remedy)
    else:
        yield Finding("cpu kernels", "ok", "compiled by numba")
    if not any(Path(device).exists() for device in _DEVICES):
        return
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL], capture_output=True, text=True, timeout=_WAIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        yield Finding("gpu kernels", "problem", f"no answer of a small model on the GPU within {_WAIT_SECONDS} s")
        return
    last = (done.stderr if done.returncode else done.stdout).strip().splitlines()[-1:] or ["no message"]
    if done.returncode:
        yield Finding("gpu kernels", "problem", last[0][:300], "COBRA_MAMBA_OP=torch runs without the kernels")
    elif last[0].startswith("torch_ops"):
        reason = (done.stderr.strip().splitlines() or ["COBRA_MAMBA_OP names them"])[-1]
        yield Finding("gpu kernels", "note", f"PyTorch's operations, which are slower: {reason[:300]}", _NEEDS)
    else:
        yield Finding("gpu kernels", "ok", f"tried: {last[0]} from the CPU's answer")
