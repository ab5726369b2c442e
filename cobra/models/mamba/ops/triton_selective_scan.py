"""Selective scan by Triton kernels, as an operation of PyTorch with gradients.

For the backward pass only the inputs are kept.
"""

from typing import Any

import torch
from torch import Tensor

from cobra.models.mamba.ops.triton_launch import wide_dtype
from cobra.models.mamba.ops.triton_scan import run_forward
from cobra.models.mamba.ops.triton_scan_backward import selective_scan_backward
from cobra.models.mamba.ops.triton_sums import make_pairs


@torch.library.custom_op("cobra::selective_scan", mutates_args=())
def selective_scan(
    u: Tensor,
    dt: Tensor,
    A_log: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
    state: Tensor | None,
    valid: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See :func:`torch_ops.selective_scan`; `valid` is uint8.

    u, dt, B, C and z may have any strides but over their last dimension; the rest is dense.
    """
    [pairs] = make_pairs(B, C, wide_dtype(u), to_backward=False)
    return run_forward(u, dt, A_log, pairs, D, z, dt_bias, state, valid)


@selective_scan.register_fake
def _(u: Tensor, dt: Tensor, A_log: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), u.new_empty(len(u), *A_log.shape, dtype=wide_dtype(u))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    grads = selective_scan_backward(torch.zeros_like(inputs[0]) if grad is None else grad, grad_last, *inputs)
    return *grads[:8], None if inputs[8] is None else grads[8], None


selective_scan.register_autograd(_backward, setup_context=_keep)
