"""Mamba's operations, chosen by the device of the tensor at hand: vendor kernels on CUDA, PyTorch elsewhere."""

import logging
from types import ModuleType

import torch

from cobra.models.mamba.ops import torch_ops

logger = logging.getLogger(__name__)

_told: set[int] = set()


def ops_for(device: torch.device) -> ModuleType:
    """Return the module whose functions run on `device`: `cuda_ops` where its kernels work, else `torch_ops`.

    On a CUDA device without working kernels the PyTorch operations are used, and a warning says so once.
    """
    if device.type != "cuda":
        return torch_ops
    from cobra.models.mamba.ops import cuda_ops

    index = device.index if device.index is not None else torch.cuda.current_device()
    reason = cuda_ops.failure(index)
    if reason is None:
        return cuda_ops
    if index not in _told:
        _told.add(index)
        logger.warning(
            "The CUDA kernels of Mamba do not work on cuda:%d (%s); slower PyTorch operations are used. "
            "To install them: pip install --no-build-isolation 'cobra-vlm[cuda]'",
            index,
            reason,
        )
    return torch_ops
