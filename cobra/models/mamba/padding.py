"""Rows of different lengths in one batch."""

from typing import Literal

import torch
from torch import Tensor

from cobra.util.errors import UserError

Side = Literal["left", "right"]


def check_lengths(lengths: Tensor, inputs: Tensor, padding: str) -> None:
    """Check the lengths of rows, without waiting for another device.

    Args:
        lengths: Tokens of each row, to be (batch,) whole numbers; on the CPU they must lie between 0 and time.
        inputs: (batch, time, ...).
        padding: To be "left" or "right".

    Raises:
        UserError: They do not fit.
    """
    batch, steps = inputs.shape[:2]
    if padding not in ("left", "right"):
        raise UserError(f"padding is {padding!r}: expected 'left' or 'right'")
    if lengths.shape != (batch,) or lengths.is_floating_point():
        raise UserError(f"lengths are {tuple(lengths.shape)} {lengths.dtype}: expected ({batch},) of whole numbers")
    if lengths.device.type == "cpu" and batch and not 0 <= int(lengths.min()) <= int(lengths.max()) <= steps:
        raise UserError(f"lengths lie between {int(lengths.min())} and {int(lengths.max())}, but rows have {steps}")


def shift_rows(x: Tensor, places: Tensor) -> Tensor:
    """Move each row of x (batch, time, ...) to the left by a number of places (batch,); what leaves comes in behind."""
    steps = x.shape[1]
    index = (torch.arange(steps, device=x.device) + places.unsqueeze(1)) % max(steps, 1)
    return x.gather(1, index.view(*index.shape, *(1,) * (x.ndim - 2)).expand_as(x))
