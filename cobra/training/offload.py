"""AdamW with its state in main memory: a card then holds weights and gradients, and not twice as much again."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from cobra.util.errors import UserError


class OffloadedAdamW(torch.optim.AdamW):
    """AdamW on the CPU for parameters on any device; the numbers are those of `torch.optim.AdamW` there.

    At every step gradients are copied down one by one, and the updated weights up, through pinned memory. State and
    state dict are AdamW's (`step`, `exp_avg`, `exp_avg_sq`), all in fp32 on the CPU, so that a run may go on with or
    without offloading. A parameter that is not in fp32 also has its weights in fp32 there (`master`).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        """Take over parameters; their state is made at their first step. The arguments are those of AdamW.

        Raises:
            UserError: Parameters are sharded over processes.
        """
        super().__init__(params, lr, betas, eps, weight_decay, fused=True)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if any(isinstance(parameter, DTensor) for parameter in parameters):
            raise UserError(
                "--offload_optimizer is for a single process, and this model is sharded over several, which divide the "
                "optimiser's state among them: leave it out"
            )
        self._largest = max(parameter.numel() for parameter in parameters)
        self._pinned = any(parameter.device.type == "cuda" for parameter in parameters)
        self._buffers: tuple[Tensor, Tensor] | None = None

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._buffers is None:
            self._buffers = self._empty((self._largest,)), self._empty((self._largest,))
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group, *self._buffers)
        return loss

    def _update(
        self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], down: Tensor, weights: Tensor
    ) -> None:
        """Update one parameter; `down` and `weights` are buffers for its gradient and for itself."""
        state, shape, size = self.state[parameter], parameter.shape, parameter.numel()
        if not state:
            state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros(shape), "exp_avg_sq": torch.zeros(shape)}
        # Apart from the moments: those of a run without offloading come without it.
        if parameter.dtype != torch.float32 and "master" not in state:
            state["master"] = self._empty(shape).copy_(parameter)
        local = down[:size].view(shape).copy_(gradient)
        master = state["master"] if "master" in state else weights[:size].view(shape).copy_(parameter)
        beta1, beta2 = group["betas"]
        adamw(
            [master],
            [local],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        parameter.copy_(master)

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, pin_memory=self._pinned)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state dict of this class or of AdamW; the tensors are copied and stay on the CPU.

        torch's own would move them to the parameters' device.
        """
        super().load_state_dict({**state_dict, "state": {}})
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        for index, parameter in zip(saved, parameters, strict=True):
            values = state_dict["state"].get(index, {})
            copies = {name: torch.as_tensor(value).detach().float().cpu().clone() for name, value in values.items()}
            if copies:
                self.state[parameter] = copies
            if "master" in values:
                self.state[parameter]["master"] = self._empty(parameter.shape).copy_(values["master"])
