"""Configurations of the scan's kernels by batch, length and architecture.

They are looked up and not tried out: every process of a run must choose the same ones, and twice the same bits must
come of the same inputs.
"""

from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True)
class Split:
    """When the states of a channel are split over warps."""

    most_programs: int | None
    """Programs without the split, one warp each, up to which it is made; None where it always is."""
    least_steps: int
    """Shorter scans take microseconds either way, and are not worth another kernel to compile."""


# Twice the schedulers of the smallest data-center card of an architecture, or of the only one. A multiprocessor has
# four, and T4 40 of these, A100 108, A10 72, L4 58, H100 114 (PCIe), B200 148, RTX 5090 170; others count as T4.
# Counted and not measured, as no GPU was at hand: a warp that has a scheduler to itself waits for its own results most
# of the time. Split, one of sm_90 takes 322 instructions in place of 1,146 forward (8 steps), and 2,000 in place of
# 7,100 backward (16 steps). All four take 12 % more than the one, which is lost where schedulers have enough to do.
# On AMD a warp is always split: whole, it leaves no registers for a second one.
_SPLITS = {
    "sm_80": Split(most_programs=2 * 4 * 108, least_steps=64),
    "sm_86": Split(most_programs=2 * 4 * 72, least_steps=64),
    "sm_89": Split(most_programs=2 * 4 * 58, least_steps=64),
    "sm_90": Split(most_programs=2 * 4 * 114, least_steps=64),
    "sm_100": Split(most_programs=2 * 4 * 148, least_steps=64),
    "sm_120": Split(most_programs=2 * 4 * 170, least_steps=64),
    "sm_": Split(most_programs=2 * 4 * 40, least_steps=64),
    "gfx": Split(most_programs=None, least_steps=0),
}
PARTS = 4


def lookup(batch: int, blocks: int, steps: int, architecture: str) -> int:
    """Return the number of warps that share the states of a channel: 1 or PARTS.

    Args:
        batch: Rows.
        blocks: Blocks of channels of a row, each as wide as a warp.
        steps: Steps of a row.
        architecture: As :func:`architecture_of` names it.
    """
    split = next((split for name, split in _SPLITS.items() if architecture.startswith(name)), None)
    if split is None or steps < split.least_steps:
        return 1
    return PARTS if split.most_programs is None or batch * blocks <= split.most_programs else 1


@cache
def architecture_of(device: torch.device) -> str:
    """Return the name of a device's architecture: `sm_90`, `gfx942`; its type where it is no GPU."""
    if device.type != "cuda":
        return device.type
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
