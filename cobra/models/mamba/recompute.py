"""Recompute blocks in the backward pass, all of them or all but their scan and their first matrix product."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

# From the least memory to the most.
POLICIES = ("all", "scan", "none")

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.linear.default)


class Keeper:
    """The policy `scan` of one block: it keeps the outputs of the scan, and of the first matrix product.

    Of Mamba-1's block these are what takes the time: to compute the rest again, norm, convolution and two thin
    products, is a fortieth of the operations. Both passes of the block see the same operations in the same order.
    """

    def __init__(self) -> None:
        self._products = {False: 0, True: 0}

    def keeps(self, operation: Any, again: bool = False) -> bool:
        """Return True if the outputs of a pass's next operation are kept; `again` in the pass that recomputes."""
        if operation in _PRODUCTS:
            self._products[again] += 1
            return self._products[again] == 1
        space, _, name = operation.name().partition("::")
        return space.startswith("cobra") and name.partition(".")[0] == "selective_scan"

    def __call__(self, context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        """See :func:`torch.utils.checkpoint.create_selective_checkpoint_contexts`."""
        kept = self.keeps(operation, context.is_recompute)
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def run_block(block: Callable[..., tuple[Tensor, Tensor]], policy: str, *args: Any) -> tuple[Tensor, Tensor]:
    """Run a block, and again in the backward pass as far as the policy says, one of :data:`POLICIES`."""
    if policy == "none":
        return block(*args)
    if policy == "all":
        return checkpoint(block, *args, use_reentrant=False)
    return checkpoint(block, *args, use_reentrant=False, context_fn=_contexts)


def _contexts() -> Any:
    return create_selective_checkpoint_contexts(Keeper())
