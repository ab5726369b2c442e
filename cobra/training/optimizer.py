"""AdamW with weight decay by parameter name, and the global gradient norm over shards."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from cobra.training.offload import OffloadedAdamW

# Not matrices of a linear map, though they have two or more dimensions: decay rates, tokens and positions.
_NEVER_DECAYED = ("A_log", "cls_token", "reg_token", "pos_embed", "latent")


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Return whether weight decay applies: matrices, yes; norms, biases, A_log, D, tokens and positions, no."""
    return parameter.ndim >= 2 and name.rpartition(".")[2] not in _NEVER_DECAYED


def build_optimizer(module: nn.Module, rate: float, weight_decay: float, offload: bool = False) -> torch.optim.AdamW:
    """Build AdamW (betas 0.9 and 0.999, eps 1e-8) over the parameters that require gradients.

    Decided by name, because sharding changes local shapes and drops attributes.

    Args:
        module: Sharded or not.
        rate: Learning rate.
        weight_decay: Of what is decayed, see :func:`is_decayed`.
        offload: Keep the optimiser's state in main memory.
    """
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups[is_decayed(name, parameter)].append(parameter)
    options = [
        {"params": groups[True], "weight_decay": weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]
    used = [group for group in options if group["params"]]
    return OffloadedAdamW(used, lr=rate) if offload else torch.optim.AdamW(used, lr=rate, fused=True)


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients in place so that their global norm is at most `max_norm`.

    Args:
        parameters: Of which those without a gradient are passed over. Shards of all processes count.
        max_norm: Largest norm.

    Returns:
        The norm before clipping, a scalar in fp32, the same on every process.
    """
    held = [parameter for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in held if parameter.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(held, max_norm, norm)
    return norm
