"""AdamW with weight decay by parameter name, and the global gradient norm over shards."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from cobra.models.backbones.vision import Tower
from cobra.models.mamba.mixer import Mixer
from cobra.training.offload import OffloadedAdamW


def decayed_names(module: nn.Module) -> set[str]:
    """Return the names of the parameters that weight decay applies to: matrices that no mixer or tower spares.

    Decided by name and number of dimensions, because sharding changes local shapes and drops attributes.
    """
    parts = ((path, part) for path, part in module.named_modules() if isinstance(part, Mixer | Tower))
    spared = {f"{path}.{name}".removeprefix(".") for path, part in parts for name in part.undecayed_names}
    return {name for name, value in module.named_parameters() if value.ndim >= 2 and name not in spared}


def build_optimizer(module: nn.Module, rate: float, weight_decay: float, offload: bool = False) -> torch.optim.AdamW:
    """Build AdamW (betas 0.9 and 0.999, eps 1e-8) over the parameters that require gradients.

    The module may be sharded. Only what :func:`decayed_names` lists decays; `offload` keeps the state in main memory.
    """
    decayed, groups = decayed_names(module), {True: list[Tensor](), False: list[Tensor]()}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups[name in decayed].append(parameter)
    options = [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]
    used = [group for group in options if group["params"]]
    return OffloadedAdamW(used, lr=rate) if offload else torch.optim.AdamW(used, lr=rate, fused=True)


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients, over the shards of all processes, in place so that their norm is at most `max_norm`.

    Returns:
        The norm before clipping, a scalar in fp32, the same on every process.
    """
    learned = [parameter for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in learned if parameter.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(learned, max_norm, norm)
    return norm
