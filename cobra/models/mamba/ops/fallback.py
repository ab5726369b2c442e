"""Operations that refuse some inputs, and PyTorch's for those."""

import logging
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from torch import Tensor

from cobra.models.mamba.ops import torch_ops
from cobra.util.errors import UserError

logger = logging.getLogger(__name__)


class WithPyTorch:
    """Operations of a module, and PyTorch's wherever these raise a UserError; a warning says once why.

    They must raise before they have changed anything in place.
    """

    inner = None

    def __init__(self, ops: Any) -> None:
        self.__name__: str = ops.__name__
        self._said: set[str] = set()
        self._block_step = ops.block_step
        self.add_norm = self._or(torch_ops.add_norm, ops.add_norm)
        self.causal_conv = self._or(torch_ops.causal_conv, ops.causal_conv)
        self.causal_conv_step = self._or(torch_ops.causal_conv_step, ops.causal_conv_step)
        self.selective_scan = self._or(torch_ops.selective_scan, ops.selective_scan)
        self.selective_scan_step = self._or(torch_ops.selective_scan_step, ops.selective_scan_step)

    def block_step(
        self, mixer: Any, norm: Any, hidden: Tensor, residual: Tensor | None, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor] | None:
        """Take a whole block's step, or return None with nothing done."""
        try:
            return self._block_step(mixer, norm, hidden, residual, state)
        except UserError as error:
            self._warn(error)
            return None

    def _or(self, usual: Callable[..., Any], fast: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(usual)
        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return fast(*args, **kwargs)
            except UserError as error:
                self._warn(error)
            return usual(*args, **kwargs)

        return run

    def _warn(self, error: UserError) -> None:
        if str(error) not in self._said:
            self._said.add(str(error))
            logger.warning("Slower PyTorch operations are used: %s", error)
