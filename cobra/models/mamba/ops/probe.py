"""A trial of operations on a GPU: run once with gradients, and compared with PyTorch's."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cobra.models.mamba.ops import torch_ops

# Steps are more than any kernel takes at once, and no multiple of that; for many of them the scan has kernels of their
# own, see `triton_table`.
_WIDTH, _STATES, _TAPS, _STEPS, _MANY = 64, 16, 4, 37, 69
# Errors that bf16 explains, relative to the largest number.
_TOLERANCE = 2e-2


def probe(ops: Any, device: torch.device) -> str | None:
    """Run all operations in bf16 with gradients on a device; return how they differ from PyTorch's, or None."""
    return compare(run(ops, device), run(torch_ops, device))


def run(ops: Any, device: torch.device) -> dict[str, Tensor]:
    """Return outputs and gradients of the operations by name, of fixed random inputs on a device."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, torch.bfloat16).requires_grad_()

    leaves = {
        **{"xz": draw(2, _STEPS, 2 * _WIDTH), "taps": draw(_WIDTH, _TAPS), "reads": draw(2, _STEPS, 2 * _STATES)},
        **{"dt": draw(2, _STEPS, _WIDTH), "A_log": draw(_WIDTH, _STATES), "row": draw(_WIDTH)},
        "window": draw(2, _WIDTH, _TAPS),
    }
    xz, taps, reads, dt, A_log, row, window = leaves.values()
    many = {
        f"{name} of many steps": draw(2, _MANY, _STATES if name in "BC" else _WIDTH)
        for name in ("u", "dt", "B", "C", "z")
    }
    inputs, sizes, *written_and_read, gates = many.values()
    (x, z), (B, C), rates, D = xz.chunk(2, -1), reads.chunk(2, -1), A_log.float(), row.float()
    start = rates.expand(2, -1, -1)
    y_of_many, _ = ops.selective_scan(inputs, sizes, rates, *written_and_read, D, gates, D, start, None)
    u = ops.causal_conv(x, taps, row, window.float())
    y, last = ops.selective_scan(u, dt, rates, B, C, D, z, D, start, None)
    normed, stream = ops.add_norm(y, u.float(), row, 1e-5, torch.float32)
    total = sum(x.float().square().sum() for x in (normed, last, stream, y_of_many))
    leaves |= many
    found = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))
    with torch.no_grad():
        moved, state = window.float(), start.clone()
        stepped = ops.causal_conv_step(x[:, 0], taps, row, moved)
        after = ops.selective_scan_step(stepped, dt[:, 0], rates, B[:, 0], C[:, 0], D, z[:, 0], D, state)
    found |= {"y": y, "y of many steps": y_of_many, "last": last, "normed": normed}
    return found | {"next window": moved, "state": state, "step": after}


def compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Return the sentence that numbers differ by more than bf16 explains, or None."""
    for name, tensor in expected.items():
        wide = tensor.detach().float()
        error = ((found[name].detach().float() - wide).abs().max() / wide.abs().max()).item()
        # True of NaN too.
        if not error <= _TOLERANCE:
            return f"they compute other numbers than PyTorch's operations ({name} is off by {error:.1e} of its largest)"
    return None
