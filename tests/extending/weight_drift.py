"""A part that follows every step: `pretrain(config, [WeightDrift()])` logs how far the weights have moved."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from cobra.training.run_context import RunContext, StepReport


class WeightDrift:
    """Logs the distance of the trained weights from those after the first step of this start."""

    def __init__(self) -> None:
        self._first: list[Tensor] | None = None

    def __call__(self, run: RunContext, report: StepReport) -> None:
        """Add `Weight Drift`, the Euclidean distance over all processes, to what is logged."""
        weights = [_local(weight) for weight in run.strategy.vlm.parameters() if weight.requires_grad]
        self._first = self._first or [weight.clone() for weight in weights]
        moved = torch.stack([(now - then).square().sum() for now, then in zip(weights, self._first, strict=True)])
        report.values["Weight Drift"] = run.world.sum(moved.sum()).sqrt().item()


def _local(weight: Tensor) -> Tensor:
    """Return this process's shard of a weight."""
    return (weight.to_local() if isinstance(weight, DTensor) else weight).detach()
