"""Launch Triton kernels on the device of their tensors, and describe these tensors to them."""

from contextlib import nullcontext
from typing import Any

import torch
import triton.language as tl
from torch import Tensor


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Run a kernel on the device of its first argument, a tensor, unless the grid is empty."""
    if 0 in grid:
        return
    device = args[0].device
    # Triton launches on the current device, whatever its arguments are on.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*args, **options)


def wide_type(x: Tensor) -> tl.dtype:
    """Return the type that a kernel computes in."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the same of PyTorch's."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def rows_of(x: Tensor) -> int:
    """Return the numbers between rows of a batch; for a single one, what there is between rows of a dense tensor.

    A stride of a dimension of one may be anything, and each value could make Triton compile a kernel anew.
    """
    return x.stride(0) if len(x) > 1 else x.shape[1:].numel()
